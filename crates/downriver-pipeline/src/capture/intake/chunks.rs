//! Chunks of snapshots join the stream.

use std::time::Instant;

use downriver_event::{RowFilter, TableId, pb};
use downriver_log::ChunkDone;

use super::super::CaptureError;
use super::super::progress::Resume;
use super::super::snapshot::{self, FromWorker, HeldChunk, LostShape};
use super::{HELD_CHUNKS_MAX, Intake};
use crate::status::TableState;

impl Intake<'_> {
    /// Whether a chunk more may wait.
    pub(in super::super) fn has_room(&self) -> bool {
        self.held.len() < HELD_CHUNKS_MAX
    }

    /// Whether chunks wait for the stream.
    pub(in super::super) fn holds_chunks(&self) -> bool {
        !self.held.is_empty()
    }

    /// Whether chunks may join the stream now.
    pub(in super::super) fn takes_chunks(&self) -> bool {
        !self.builder.in_transaction() && !self.outbox.is_full() && self.joining.is_none()
    }

    /// Puts the start of a table's generation into the log, before every change that counts for it: at its end a
    /// sink deletes what was neither seen nor changed since.
    pub(in super::super) fn start_snapshot(
        &mut self,
        table: TableId,
        generation: u64,
        resume: &Resume,
    ) {
        self.builder
            .begin("snapshot".into(), snapshot::micros_since_epoch());
        let table_id = table.0;
        self.builder.marker(match &resume.part {
            None => pb::marker::Kind::SnapshotStart(pb::SnapshotStart {
                table_id,
                generation,
            }),
            Some(part) => pb::marker::Kind::PartialSnapshotStart(pb::PartialSnapshotStart {
                table_id,
                generation,
                filter: Some(part.to_pb()),
            }),
        });
        self.builder.commit_unplaced();
        // With the marker in one append: a restart does not start the generation again.
        self.outbox.chunk_done(ChunkDone {
            table,
            generation,
            resume_after: resume.encode(),
            rows: 0,
            last: false,
        });
    }

    /// Takes what a worker read; a shape that it lost is the caller's to find.
    pub(in super::super) fn take_from_worker<T>(
        &mut self,
        from_worker: FromWorker<T>,
    ) -> Result<Option<LostShape<T>>, CaptureError> {
        match from_worker {
            FromWorker::Chunk(chunk) => self.held.push(*chunk),
            FromWorker::LostShape(lost) => return Ok(Some(*lost)),
            FromWorker::Failed { table, error } if error.is_transient() => {
                tracing::warn!(
                    source = self.config.name,
                    table = table.0,
                    "snapshot failed; it will be tried again"
                );
                return Err(error.into());
            }
            FromWorker::Failed { table, error } => {
                let problem = error.problem();
                tracing::error!(
                    source = self.config.name,
                    table = table.0,
                    code = problem.code,
                    "snapshot stopped"
                );
                self.forget_snapshot(table);
                self.table_status(table, |status| {
                    status.state = TableState::Stopped;
                    status.problem = Some(problem);
                });
            }
        }
        Ok(None)
    }

    /// Nothing more is read of a table.
    pub(in super::super) fn forget_snapshot(&mut self, table: TableId) {
        self.recent.forget(table);
        self.set_aside.forget(table);
        self.snapshots.remove(&table);
        self.snapshots_ended();
    }

    /// Lets the chunks that the stream has passed join it.
    pub(in super::super) fn release_chunks(&mut self) -> Result<(), CaptureError> {
        if !self.takes_chunks() {
            return Ok(());
        }
        let (passed, held) = std::mem::take(&mut self.held)
            .into_iter()
            .partition(|chunk| self.received.covers(&chunk.high));
        self.held = held;
        let passed: Vec<HeldChunk> = passed;
        if passed.is_empty() {
            return Ok(());
        }
        self.flush()?;
        for chunk in passed {
            if self.joining.is_some() || self.is_reshaped_unlogged(&chunk) {
                // Behind the table that joins now, or until the shape is stored that the next run is to begin with:
                // else that would come to the same place.
                self.held.push(chunk);
            } else {
                self.release(chunk)?;
            }
        }
        Ok(())
    }

    /// Whether the chunk's table has another shape by now, which the log does not have yet.
    fn is_reshaped_unlogged(&self, chunk: &HeldChunk) -> bool {
        let table = chunk.schema.id;
        let newest = self.registry.newest(table);
        newest.is_some_and(|newest| {
            let key = (table, newest.version);
            let is_logged = || {
                let state = self.log.state(&self.config.name);
                state.is_some_and(|state| state.schemas.contains_key(&key))
            };
            newest.version != chunk.schema.version && !is_logged()
        })
    }

    fn release(&mut self, mut chunk: HeldChunk) -> Result<(), CaptureError> {
        let table = chunk.schema.id;
        let newest = self.registry.newest(table).map(|schema| schema.version);
        if newest != Some(chunk.schema.version) {
            return Err(CaptureError::SchemaMoved(chunk.schema.qualified_name()));
        }
        if chunk.schema.is_bag() {
            return self.begin_joining(chunk);
        }
        let newer = self.recent.newer_than(table, &chunk.seen);
        for block in newer.resolve(std::mem::take(&mut chunk.blocks), &chunk.schema) {
            self.outbox.commit(Some(block), None)?;
        }
        {
            let begun = self.begun.lock().expect("no holder panics");
            self.recent
                .forget_visible(|table| !begun.contains(&table), &chunk.seen);
        }
        let Some(progress) = self.snapshots.get_mut(&table) else {
            return Ok(());
        };
        for key in chunk.reread.iter().filter(|key| !newer.has_moved(key)) {
            progress.resume.moved.retain(|moved| moved != key);
        }
        progress.resume.next = chunk.next.take();
        progress.resume.exhausted = chunk.moved.is_some();
        let last = chunk.moved.is_some() && progress.resume.moved.is_empty();
        let part = progress.resume.part.clone();
        let moved = if chunk.moved.is_some() {
            progress.resume.moved.clone()
        } else {
            Vec::new()
        };
        let done = ChunkDone {
            table,
            generation: progress.generation,
            resume_after: progress.resume.encode(),
            rows: chunk.rows,
            last,
        };
        self.outbox.chunk_done(done);
        self.chunk_status(table, chunk.began, chunk.rows, chunk.rows_estimated);
        if last {
            self.end_table(table, chunk.generation, part)?;
        }
        if let Some(answer) = chunk.moved {
            // A worker that is gone has failed, and said so.
            let _ = answer.send(moved);
        }
        Ok(())
    }

    pub(super) fn chunk_status(
        &self,
        table: TableId,
        began: Instant,
        rows: u64,
        estimated: Option<u64>,
    ) {
        self.table_status(table, |status| {
            if let Some(snapshot) = &mut status.snapshot {
                snapshot.rows_estimated = estimated.unwrap_or(snapshot.rows_estimated);
                snapshot.began.get_or_insert(began);
                snapshot.rows_done += rows;
                snapshot.rows_of_run += rows;
                snapshot.rows_estimated = snapshot.rows_estimated.max(snapshot.rows_done);
            }
        });
    }

    /// The snapshot of a table is handed over whole: the rows that were read.
    pub(super) fn table_ended(&mut self, table: TableId) -> u64 {
        self.recent.forget(table);
        self.snapshots.remove(&table);
        self.ended.insert(table);
        let rows = self.table_status(table, |status| {
            status.snapshot.as_mut().map_or(0, |snapshot| {
                snapshot.rows_estimated = snapshot.rows_done;
                snapshot.rows_done
            })
        });
        rows.unwrap_or_default()
    }

    /// The log has the whole snapshot of a table. Not before it is said: whoever waits looks where the log ends then.
    pub(super) fn snapshot_stored(&mut self, table: TableId) {
        if !self.ended.remove(&table) {
            // It is to be read again, or not at all.
            return;
        }
        self.table_status(table, |status| match self.owing.get(&table) {
            Some(owing) => {
                status.state = TableState::Pending;
                status.problem = Some(owing.clone());
            }
            None => status.state = TableState::Streaming,
        });
        self.snapshots_ended();
    }

    fn end_table(
        &mut self,
        table: TableId,
        generation: u64,
        part: Option<RowFilter>,
    ) -> Result<(), CaptureError> {
        let rows = self.table_ended(table);
        self.builder
            .begin("snapshot".into(), snapshot::micros_since_epoch());
        let table_id = table.0;
        self.builder.marker(match part {
            None => pb::marker::Kind::SnapshotEnd(pb::SnapshotEnd {
                table_id,
                generation,
                rows,
            }),
            Some(part) => pb::marker::Kind::PartialSnapshotEnd(pb::PartialSnapshotEnd {
                table_id,
                generation,
                rows,
                filter: Some(part.to_pb()),
            }),
        });
        self.builder.commit_unplaced();
        self.flush()
    }

    fn snapshots_ended(&self) {
        if self.snapshots.is_empty() && self.ended.is_empty() {
            tracing::info!(source = self.config.name, "snapshot complete");
            self.status.update(|s| s.state = TableState::Streaming);
        }
    }
}
