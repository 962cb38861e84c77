//! The leader's chores: committed inline blocks become segments, old segments are forgotten, the Raft log is
//! cut back. A stream without an owner is sealed all the same, so it never pins the Raft log.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use downriver_api::cluster::v1 as pb;
use downriver_event::{Epoch, Incarnation, Offset, SourcePosition, TableSchema};
use downriver_log::journal::{Stream, Unsealed, UnsealedPayload};
use downriver_log::segment::SegmentWriter;
use downriver_log::{Payload, StoreError};
use tokio::time::Instant;

use crate::node::{ControlError, Node};

/// How often the streams are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);
const RETAIN_EVERY: Duration = Duration::from_secs(60);
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
                bytes += frame(block).len() as u64;
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

fn frame(block: &Unsealed) -> &[u8] {
    match &block.payload {
        UnsealedPayload::Inline(frame) => frame,
        UnsealedPayload::Object(_) => &[],
    }
}

pub(crate) async fn run(node: Arc<Node>) {
    let mut first_seen: HashMap<String, (Offset, Instant)> = HashMap::new();
    let mut retained = Instant::now();
    let mut bytes_at_snapshot = 0;
    let mut backoff = LOOK_EVERY;
    loop {
        tokio::time::sleep(backoff).await;
        match seal_due(&node, &mut first_seen).await {
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
        if retained.elapsed() >= RETAIN_EVERY {
            retained = Instant::now();
            if let Err(error) = retain(&node).await {
                tracing::warn!(error = %error, "old segments cannot be forgotten now");
            }
        }
        let bytes = node.proposer().bytes();
        if bytes - bytes_at_snapshot >= SNAPSHOT_EVERY_BYTES {
            bytes_at_snapshot = bytes;
            node.take_snapshot().await;
        }
        node.cut_raft_log().await;
    }
}

async fn seal_due(
    node: &Node,
    first_seen: &mut HashMap<String, (Offset, Instant)>,
) -> Result<(), SealError> {
    let config = node.config();
    let due: Vec<Sealable> = node.with_state(|state| {
        first_seen.retain(|name, _| state.journal.streams.contains_key(name));
        let streams = state.journal.streams.iter();
        streams
            .filter_map(|(name, stream)| {
                let first = stream.inline_prefix().next()?.base;
                let seen = first_seen
                    .entry(name.clone())
                    .or_insert((first, Instant::now()));
                if seen.0 != first {
                    *seen = (first, Instant::now());
                }
                let old = seen.1.elapsed() >= config.seal_interval;
                let large = stream.unsealed_bytes() >= config.seal_bytes;
                // What stands before an object keeps it from being a segment.
                let blocks_object = stream
                    .unsealed
                    .iter()
                    .any(|block| matches!(block.payload, UnsealedPayload::Object(_)));
                (old || large || blocks_object)
                    .then(|| Sealable::of(name, stream, config.seal_bytes))?
            })
            .collect()
    });
    for sealable in due {
        seal(node, sealable).await?;
    }
    Ok(())
}

/// Seals everything of a stream that is committed.
pub(crate) async fn seal_all(node: &Node, stream: &str) -> Result<(), SealError> {
    loop {
        let next = node.with_state(|state| {
            let found = state.journal.streams.get(stream)?;
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
            let events = u32::try_from(block.events).map_err(std::io::Error::other)?;
            let times = (block.time_min_us, block.time_max_us);
            let position: Option<&SourcePosition> = block.position_after.as_ref();
            segment.write_frame(frame(block), events, times, block.tables.clone(), position)?;
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
        object: Some(pb::ObjectRef {
            key: object.key.clone(),
            len: object.len,
            crc: object.crc,
            footer_offset: object.footer_offset,
        }),
        time_min_us,
        time_max_us,
    };
    match node.propose(pb::command::Kind::SealSegment(command)).await {
        Ok(_) => Ok(()),
        // Somebody else sealed it, or the stream is gone: this object is nobody's.
        Err(ControlError::Conflict(_) | ControlError::Invalid(_)) => {
            Ok(node.store().delete(&object.key).await?)
        }
        Err(error) => Err(error.into()),
    }
}

/// Forgets what is older or more than wanted, as far as every protected reader has it.
async fn retain(node: &Node) -> Result<(), SealError> {
    let Some(protected) = node.protected() else {
        return Ok(());
    };
    let retention = node.config().retention;
    let now_us = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| {
            i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
        });
    let plans: Vec<(String, Offset, Vec<String>)> = node.with_state(|state| {
        let streams = state.journal.streams.iter();
        streams
            .filter_map(|(name, stream)| {
                let keep_from = protected(name).unwrap_or(stream.sealed);
                let mut bytes: u64 = stream.segments.iter().map(|s| s.place.object.len).sum();
                let gone: Vec<_> = stream
                    .segments
                    .iter()
                    .take_while(|segment| {
                        let old = retention.max_age.is_some_and(|age| {
                            let age_us = i64::try_from(age.as_micros()).unwrap_or(i64::MAX);
                            segment.time_max_us < now_us.saturating_sub(age_us)
                        });
                        let much = retention.max_bytes.is_some_and(|max| bytes > max);
                        bytes -= segment.place.object.len;
                        (old || much) && segment.place.end <= keep_from
                    })
                    .collect();
                let to = gone.last()?.place.end;
                Some((
                    name.clone(),
                    to,
                    gone.iter().map(|s| s.place.object.key.clone()).collect(),
                ))
            })
            .collect()
    });
    for (stream, to, keys) in plans {
        let trim = pb::TrimStream {
            group: 0,
            stream,
            offset: to.0,
        };
        node.propose(pb::command::Kind::TrimStream(trim)).await?;
        for key in keys {
            node.store().delete(&key).await?;
        }
    }
    Ok(())
}
