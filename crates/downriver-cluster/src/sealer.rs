//! The leader's work: committed inline blocks become segments, and the Raft log is cut back behind them. A stream
//! without an owner is sealed all the same, so it never pins the Raft log.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use downriver_api::cluster::v1 as pb;
use downriver_event::{Epoch, Incarnation, Offset, TableSchema};
use downriver_log::journal::{Stream, Unsealed};
use downriver_log::segment::SegmentWriter;
use downriver_log::{Payload, StoreError};
use tokio::time::Instant;

use crate::node::{ControlError, Node};

/// How often the streams are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Raft log bytes after which a snapshot is taken, so that the log can be cut.
const SNAPSHOT_EVERY_BYTES: u64 = 64 << 20;
const BACKOFF_MAX: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub(crate) enum SealError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the segment's file cannot be written: {0}")]
    File(#[from] std::io::Error),
    #[error(transparent)]
    Control(#[from] ControlError),
}

/// The next segment of a stream.
struct Sealable {
    stream: String,
    incarnation: Incarnation,
    epoch: Epoch,
    base: Offset,
    end: Offset,
    blocks: Vec<Unsealed>,
    schemas: Vec<Arc<TableSchema>>,
}

impl Sealable {
    fn of(name: &str, stream: &Stream, bytes_max: u64) -> Option<Self> {
        let mut bytes = 0;
        let blocks: Vec<Unsealed> = stream
            .inline_prefix()
            .take_while(|block| {
                let take = bytes < bytes_max;
                bytes += block.inline().map_or(0, |frame| frame.len() as u64);
                take
            })
            .cloned()
            .collect();
        let last = blocks.last()?;
        Some(Self {
            stream: name.to_owned(),
            incarnation: stream.incarnation,
            epoch: last.epoch,
            base: stream.sealed,
            end: last.end(),
            schemas: stream.schemas.values().cloned().collect(),
            blocks,
        })
    }
}

pub(crate) async fn run(node: Arc<Node>) {
    let mut waiting = Waiting::new();
    let mut bytes_at_snapshot = 0;
    let mut backoff = LOOK_EVERY;
    loop {
        tokio::time::sleep(backoff).await;
        look(&node, &mut waiting);
        let sealed = match node.leads() {
            true => seal_due(&node, &waiting).await,
            false => Ok(()),
        };
        match sealed {
            Ok(()) => {
                backoff = LOOK_EVERY;
                node.set_store_problem(None);
            }
            Err(error) => {
                tracing::warn!(error = %error, "segments cannot be stored; the journal keeps them meanwhile");
                node.set_store_problem(Some(error.to_string()));
                backoff = (backoff * 2).min(BACKOFF_MAX);
            }
        }
        let bytes = node.applied_bytes();
        if bytes - bytes_at_snapshot >= SNAPSHOT_EVERY_BYTES {
            bytes_at_snapshot = bytes;
            node.take_snapshot().await;
        }
        node.cut_raft_log().await;
    }
}

/// The first block of each stream that is in no segment, and since when it was seen so here. Every node looks: one that comes
/// to lead would begin to wait anew, and where leaders change often nothing would ever be old enough.
type Waiting = HashMap<String, (Offset, Instant)>;

fn look(node: &Node, waiting: &mut Waiting) {
    node.with_state(|state| {
        waiting.retain(|name, _| state.journal.streams.contains_key(name));
        for (name, stream) in &state.journal.streams {
            let Some(first) = stream.inline_prefix().next() else {
                continue;
            };
            let now = (first.base, Instant::now());
            let seen = waiting.entry(name.clone()).or_insert(now);
            if seen.0 != first.base {
                *seen = now;
            }
        }
    });
}

async fn seal_due(node: &Node, waiting: &Waiting) -> Result<(), SealError> {
    let config = node.config();
    let soon = node.take_seal_soon();
    let due: Vec<Sealable> = node.with_state(|state| {
        let streams = state.journal.streams.iter();
        streams
            .filter_map(|(name, stream)| {
                let first = stream.inline_prefix().next()?.base;
                let seen = waiting.get(name).filter(|(base, _)| *base == first);
                let old = seen.is_some_and(|(_, since)| since.elapsed() >= config.seal_interval);
                let large = stream.unsealed_bytes() >= config.seal_bytes;
                // What stands before an object keeps it from being a segment.
                let blocks_object = stream.unsealed.iter().any(|block| block.inline().is_none());
                (old || large || blocks_object || soon.contains(name))
                    .then(|| Sealable::of(name, stream, config.seal_bytes))?
            })
            .collect()
    });
    for sealable in due {
        seal(node, sealable).await?;
    }
    Ok(())
}

/// Seals everything of a stream that is committed now; what comes meanwhile is not waited for.
pub(crate) async fn seal_all(node: &Node, stream: &str) -> Result<(), SealError> {
    let until = node.with_state(|state| state.journal.streams.get(stream).map(|found| found.next));
    loop {
        let next = node.with_state(|state| {
            let found = state.journal.streams.get(stream)?;
            if Some(found.sealed) >= until {
                return None;
            }
            Sealable::of(stream, found, node.config().seal_bytes)
        });
        match next {
            Some(sealable) => seal(node, sealable).await?,
            None => return Ok(()),
        }
    }
}

async fn seal(node: &Node, sealable: Sealable) -> Result<(), SealError> {
    let folder = node.config().data.clone();
    let Sealable {
        stream,
        incarnation,
        epoch,
        base,
        end,
        blocks,
        schemas,
    } = sealable;
    let name = stream.clone();
    let written = tokio::task::spawn_blocking(move || {
        let mut segment = SegmentWriter::create(&folder, &name, incarnation, epoch)?;
        for block in &blocks {
            if let Some(frame) = block.inline() {
                let times = (block.time_min_us, block.time_max_us);
                segment.write_appended(&block.stored(frame), times, block.tables.clone())?;
            }
        }
        Ok::<_, std::io::Error>(segment)
    })
    .await;
    let segment = written.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?;
    let payload = segment.put(&**node.store(), &schemas).await?;
    let Payload::Object {
        object,
        time_min_us,
        time_max_us,
        ..
    } = payload
    else {
        unreachable!("a segment is an object");
    };
    let command = pb::SealSegment {
        group: 0,
        stream,
        incarnation: incarnation.0,
        base_offset: base.0,
        end_offset: end.0,
        object: Some(object.to_pb()),
        time_min_us,
        time_max_us,
    };
    match node.propose(pb::command::Kind::SealSegment(command)).await {
        Ok(_) => Ok(()),
        // Somebody else sealed it, or the stream is gone: this object is nobody's.
        Err(ControlError::Conflict(_) | ControlError::Invalid(_)) => {
            if !node.refers_to(&object.key) {
                node.store().delete(&object.key).await?;
            }
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}
