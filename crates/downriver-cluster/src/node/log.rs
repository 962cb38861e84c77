//! A node as a log: appends that outlast a change of leaders, and reads.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use downriver_api::cluster::v1 as pb;
use downriver_api::cluster::v1::command::Kind as C;
use downriver_api::cluster::v1::command_reply::Kind as R;
use downriver_event::{Epoch, Offset, SourcePosition};
use downriver_log::reader::{self, ReadPlan};
use downriver_log::{
    Append, AppendError, Appended, Log, LogError, Moved, ObjectStore, Payload, ReadError,
    StoreError, StoredBlock, StreamState,
};
use tokio::sync::watch;

use super::control::unexpected;
use super::{
    APPEND_WITHIN, ControlError, INLINE_APPEND_BYTES_MAX, INLINE_BLOCK_BYTES_MAX, LOOK_EVERY, Node,
};
use crate::propose::COMMAND_BYTES_MAX;

/// An append, and where it ends.
fn append_of(command: &C) -> Option<(&pb::AppendBlocks, u64)> {
    let append = match command {
        C::AppendBlocks(append) => append,
        C::MoveSource(moved) => moved.append.as_ref()?,
        _ => return None,
    };
    let events: u64 = append.blocks.iter().map(|block| block.events).sum();
    Some((append, append.base_offset + events))
}

impl Node {
    /// Proposes an append until it is decided: over a change of leaders. It can be proposed again where its outcome is not
    /// known, since it fits the stream only once; an owner has one under way at a time, so that one that no longer fits a
    /// stream which ends where it would end has landed.
    async fn append_decided(&self, command: C) -> Result<R, ControlError> {
        let give_up = tokio::time::Instant::now() + APPEND_WITHIN;
        let mut is_first = true;
        loop {
            match self.propose(command.clone()).await {
                Ok(R::Rejected(rejected)) if !is_first => {
                    let landed = append_of(&command).is_some_and(|(append, end)| {
                        rejected.epoch == append.epoch
                            && rejected.next_offset == end
                            && rejected.position == append.position_after
                    });
                    return Ok(match landed {
                        true => R::Appended(pb::AppendDone {
                            next_offset: rejected.next_offset,
                        }),
                        false => R::Rejected(rejected),
                    });
                }
                Err(ControlError::Unavailable(reason))
                    if tokio::time::Instant::now() < give_up && self.fatal.borrow().is_none() =>
                {
                    tracing::debug!(reason, "an append is proposed again");
                    is_first = false;
                    tokio::time::sleep(LOOK_EVERY).await;
                }
                decided => return decided,
            }
        }
    }

    fn read_plan(
        &self,
        stream: &str,
        from: Offset,
        bytes_max: usize,
    ) -> Result<ReadPlan, ReadError> {
        self.with_state(|state| {
            let found = state.journal.streams.get(stream);
            let found = found.ok_or_else(|| ReadError::NoStream(stream.to_owned()))?;
            reader::plan(found, from, bytes_max)
        })
    }
}

fn log_error(stream: &str, error: ControlError) -> LogError {
    match error {
        ControlError::Invalid(_) => LogError::NoStream(stream.to_owned()),
        ControlError::TooLarge { .. } => LogError::Limit {
            what: "a command",
            limit: COMMAND_BYTES_MAX as u64,
        },
        other => LogError::Unavailable(other.to_string()),
    }
}

#[async_trait]
impl Log for Node {
    async fn open(
        &self,
        stream: &str,
        start: Option<SourcePosition>,
        identity: Bytes,
    ) -> Result<StreamState, LogError> {
        let open = pb::OpenStream {
            group: 0,
            stream: stream.to_owned(),
            node_id: self.config.node_id,
            start: start.as_ref().map(SourcePosition::to_pb),
            identity,
        };
        let opened = self.propose(C::OpenStream(open)).await;
        let opened = opened.map_err(|error| log_error(stream, error))?;
        let state = self
            .state(stream)
            .ok_or_else(|| LogError::NoStream(stream.to_owned()))?;
        let R::Opened(opened) = opened else {
            return Err(LogError::Unavailable(unexpected(&opened).to_string()));
        };
        // Another owner may have opened it since, and its epoch is not this one's.
        Ok(StreamState {
            epoch: Epoch(opened.epoch),
            ..(*state).clone()
        })
    }

    async fn append(&self, append: Append) -> Result<Appended, AppendError> {
        let inline = check_inline(&append)?;
        if inline > 0 {
            let waiting = self.with_state(|state| state.journal.unsealed_bytes());
            if waiting + inline > self.config.unsealed_bytes_max {
                let reason = self
                    .store_problem()
                    .unwrap_or_else(|| "segments are being written".into());
                return Err(LogError::Unavailable(format!(
                    "{} MiB wait for the object store: {reason}",
                    waiting >> 20
                ))
                .into());
            }
        }
        let stream = append.stream.clone();
        let moved = append.moved.clone();
        let append = append_command(append);
        let command = match moved {
            None => C::AppendBlocks(append),
            Some(Moved { identity, anew }) => C::MoveSource(pb::MoveSource {
                append: Some(append),
                identity,
                anew,
            }),
        };
        let reply = self.append_decided(command).await;
        match reply.map_err(|error| log_error(&stream, error))? {
            R::Appended(done) => Ok(Appended {
                next: Offset(done.next_offset),
            }),
            R::Rejected(rejected) => Err(AppendError::Rejected {
                epoch: Epoch(rejected.epoch),
                next: Offset(rejected.next_offset),
                position: SourcePosition::from_field(rejected.position.as_ref())
                    .map_err(|e| LogError::Unavailable(format!("the reply has {e}")))?,
            }),
            other => Err(LogError::Unavailable(format!("unexpected reply: {other:?}")).into()),
        }
    }

    fn seal_soon(&self, stream: &str) {
        let leader = self.raft.metrics().borrow().current_leader;
        let address = leader.and_then(|leader| self.raft_address(leader));
        if leader == Some(self.config.node_id) {
            return self.note_seal_soon(stream);
        }
        // It is a wish: where it is lost the stream is sealed when it is old enough.
        if let (Some(leader), Some(address)) = (leader, address)
            && let Ok(mut client) = self.peers.client(&address)
        {
            let request = pb::SealSoonRequest {
                envelope: self.peers.envelope(leader),
                stream: stream.to_owned(),
            };
            tokio::spawn(async move { client.seal_soon(request).await });
        }
    }

    fn state(&self, stream: &str) -> Option<Arc<StreamState>> {
        self.with_state(|state| state.states.get(stream).cloned())
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    async fn read(
        &self,
        stream: &str,
        from: Offset,
        bytes_max: usize,
    ) -> Result<Vec<StoredBlock>, ReadError> {
        loop {
            let plan = match self.read_plan(stream, from, bytes_max) {
                // Another node has shown it to whoever asks.
                Err(ReadError::PastEnd { .. }) if self.read_index().await.is_ok() => {
                    self.read_plan(stream, from, bytes_max)?
                }
                plan => plan?,
            };
            let read = reader::execute(&plan, &self.segments, from, bytes_max).await;
            // Merged or trimmed since the plan was made: it is somewhere else now, also where this node is behind.
            if let Err(ReadError::Store(StoreError::NotFound(_))) = &read
                && self.read_index().await.is_ok()
                && self.read_plan(stream, from, bytes_max)? != plan
            {
                continue;
            }
            return read;
        }
    }

    async fn offset_at_time(&self, stream: &str, time_us: i64) -> Result<Offset, ReadError> {
        // Commit times need not ascend: the first segment that reaches the time is looked through.
        let (manifest, late, trimmed, end) = self.with_state(|state| {
            let found = state.journal.streams.get(stream);
            let found = found.ok_or_else(|| ReadError::NoStream(stream.to_owned()))?;
            let mut manifests = found.manifests.iter();
            let mut segments = found.segments.iter();
            let late = segments.find(|segment| segment.time_max_us >= time_us);
            Ok::<_, ReadError>((
                manifests
                    .find(|m| m.time_max_us >= time_us && m.end > found.trimmed)
                    .cloned(),
                late.map_or(found.sealed, |segment| segment.place.base),
                found.trimmed,
                found.next,
            ))
        })?;
        let mut from = late;
        if let Some(manifest) = manifest {
            let listed = self.segments.manifest(&manifest).await?;
            let mut listed = listed.iter();
            let late = listed.find(|s| s.time_max_us >= time_us && s.place.end > trimmed);
            from = late.map_or(manifest.end, |segment| segment.place.base);
        }
        from = from.max(trimmed);
        while from < end {
            for block in self.read(stream, from, 4 << 20).await? {
                if let Some(offset) = reader::transaction_at(&block, time_us) {
                    return Ok(offset);
                }
                from = block.end();
            }
        }
        Ok(end)
    }

    fn objects(&self) -> Arc<dyn ObjectStore> {
        Arc::clone(&self.config.store)
    }
}

/// Bytes that would travel inline.
fn check_inline(append: &Append) -> Result<u64, LogError> {
    let mut total = 0;
    for payload in &append.payloads {
        let Payload::Inline(block) = payload else {
            continue;
        };
        if block.frame.len() > INLINE_BLOCK_BYTES_MAX {
            return Err(LogError::Limit {
                what: "an inline block",
                limit: INLINE_BLOCK_BYTES_MAX as u64,
            });
        }
        total += block.frame.len();
    }
    if total > INLINE_APPEND_BYTES_MAX {
        return Err(LogError::Limit {
            what: "an inline append",
            limit: INLINE_APPEND_BYTES_MAX as u64,
        });
    }
    Ok(total as u64)
}

fn append_command(append: Append) -> pb::AppendBlocks {
    use pb::block_payload::Payload as Stored;
    let block = |payload: Payload| match payload {
        Payload::Inline(block) => pb::BlockPayload {
            events: u64::from(block.events),
            time_min_us: block.time_min_us,
            time_max_us: block.time_max_us,
            table_ids: block.tables.iter().map(|table| table.0).collect(),
            payload: Some(Stored::Inline(block.frame)),
        },
        Payload::Object {
            object,
            events,
            time_min_us,
            time_max_us,
        } => pb::BlockPayload {
            events,
            time_min_us,
            time_max_us,
            table_ids: Vec::new(),
            payload: Some(Stored::Object(object.to_pb())),
        },
    };
    pb::AppendBlocks {
        group: 0,
        stream: append.stream,
        incarnation: append.incarnation.0,
        epoch: append.epoch.0,
        base_offset: append.base.0,
        position_before: append.position_before.as_ref().map(SourcePosition::to_pb),
        position_after: append.position_after.as_ref().map(SourcePosition::to_pb),
        schemas: append.schemas.iter().map(|schema| schema.to_pb()).collect(),
        chunks_done: append
            .chunks_done
            .into_iter()
            .map(|chunk| pb::ChunkDone {
                table_id: chunk.table.0,
                generation: chunk.generation,
                resume_after: chunk.resume_after,
                rows: chunk.rows,
                last: chunk.last,
            })
            .collect(),
        blocks: append.payloads.into_iter().map(block).collect(),
    }
}
