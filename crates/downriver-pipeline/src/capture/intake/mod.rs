//! What came from a source, on its way into the log: rows and markers of the open block, chunks of snapshots that wait
//! for their place, and how far the source was read. The same for every kind of database; its own event loop fills it.

mod bags;
mod chunks;
mod tables;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use downriver_event::block::BLOCK_RAW_BYTES_MAX;
use downriver_event::problem::Problem;
use downriver_event::{BlockBuilder, EncodedBlock, SourcePosition, TableId, pb};
use downriver_log::{ChunkDone, Log, StreamState};

use super::merge::RecentChanges;
use super::outbox::{Outbox, Progress};
use super::progress::{Resume, Standing};
use super::registry::Registry;
use super::request::{CaptureControl, Reread};
use super::snapshot::{self, Begun, HeldChunk};
use super::{CaptureConfig, CaptureError};
use crate::status::{Board, SourceStatus};
use bags::{Joining, SetAside};
pub(super) use tables::{in_state, refused, rewritten_unread};

/// A block of whole transactions is cut when it has passed this many raw bytes.
const BLOCK_RAW_BYTES: usize = 1 << 20;
/// An open transaction is cut into blocks of this many raw bytes; the largest row comes on top.
const OPEN_BLOCK_RAW_BYTES: usize = BLOCK_RAW_BYTES_MAX - (512 << 10);
/// Bytes of rows between two looks at the size of the open block.
const BYTES_PER_SIZE_CHECK: usize = 16 << 10;
/// Chunks waiting for the stream, over all tables.
const HELD_CHUNKS_MAX: usize = 4;

/// How far the snapshot of a table has come, as the log knows it.
pub(super) struct TableProgress {
    pub(super) generation: u64,
    pub(super) resume: Resume,
}

pub(super) struct Intake<'a> {
    pub(super) config: &'a CaptureConfig,
    pub(super) log: &'a Arc<dyn Log>,
    pub(super) status: &'a Board<SourceStatus>,
    pub(super) control: &'a CaptureControl,
    /// Tables that were seen; `false`: not captured.
    pub(super) captured: HashMap<TableId, bool>,
    /// Captured tables of which the source brings nothing any more.
    pub(super) taken_out: HashSet<TableId>,
    /// Tables that are to be read once more when the reading that is under way has ended, and what is said of them then.
    pub(super) owing: HashMap<TableId, Problem>,
    /// What is stored of each table as its standing with the next generation.
    pub(super) standings: HashMap<TableId, Standing>,
    pub(super) registry: Registry,
    pub(super) builder: BlockBuilder,
    /// Bytes of the rows that came since the builder's size was looked at.
    unmeasured_bytes: usize,
    pub(super) outbox: Outbox,
    recent: RecentChanges,
    set_aside: SetAside,
    /// While there is one, nothing else is handed to the outbox.
    joining: Option<Joining>,
    pub(super) snapshots: HashMap<TableId, TableProgress>,
    /// Tables whose snapshot was handed over whole, until the log has it.
    ended: HashSet<TableId>,
    held: Vec<HeldChunk>,
    /// Tables whose chunks are being read: of the others, changes that a chunk's snapshot saw are forgotten.
    pub(super) begun: Begun,
    pub(super) reread: Reread,
    /// Before it the rows may come again for which tables were refused.
    pub(super) spoiled_before: Option<SourcePosition>,
    /// Every commit up to here was received and decoded.
    pub(super) received: SourcePosition,
    /// The position of the newest whole transaction in the builder.
    pub(super) committed: Option<SourcePosition>,
    /// Every commit up to here was handed to the outbox; those behind it may be in the builder.
    handed_over: SourcePosition,
    /// Every commit up to here is in the log when the append under way has succeeded.
    received_at_append: SourcePosition,
    pub(super) position_appended: Instant,
}

impl<'a> Intake<'a> {
    /// Takes the stream up where the log stands.
    pub(super) fn new(
        config: &'a CaptureConfig,
        log: &'a Arc<dyn Log>,
        status: &'a Board<SourceStatus>,
        control: &'a CaptureControl,
        state: &StreamState,
        outbox: Outbox,
        from: SourcePosition,
    ) -> Self {
        status.update(|s| {
            s.passed = Some(from.clone());
            s.passed_offset = state.next;
        });
        Self {
            config,
            log,
            status,
            control,
            captured: HashMap::new(),
            taken_out: HashSet::new(),
            owing: HashMap::new(),
            standings: HashMap::new(),
            registry: Registry::new(state),
            builder: BlockBuilder::new(),
            unmeasured_bytes: 0,
            outbox,
            recent: RecentChanges::default(),
            set_aside: SetAside::default(),
            joining: None,
            snapshots: HashMap::new(),
            ended: HashSet::new(),
            held: Vec::new(),
            begun: Begun::default(),
            reread: Reread::default(),
            spoiled_before: None,
            received: from.clone(),
            committed: None,
            handed_over: from.clone(),
            received_at_append: from,
            position_appended: Instant::now(),
        }
    }

    /// Puts an event that is no row into the open transaction, or into one of its own.
    pub(super) fn event(&mut self, transaction: &str, kind: pb::marker::Kind) {
        if self.builder.in_transaction() {
            self.builder.marker(kind);
        } else {
            self.builder
                .begin(transaction.into(), snapshot::micros_since_epoch());
            self.builder.marker(kind);
            self.builder.commit_unplaced();
        }
    }

    /// Takes note of rows of the open transaction that were so many bytes on the wire.
    pub(super) fn rows(&mut self, bytes: usize) -> Result<(), CaptureError> {
        self.unmeasured_bytes += bytes;
        if self.unmeasured_bytes < BYTES_PER_SIZE_CHECK {
            return Ok(());
        }
        self.unmeasured_bytes = 0;
        if self.builder.raw_bytes() >= OPEN_BLOCK_RAW_BYTES {
            self.cut_open()?;
        }
        Ok(())
    }

    /// Whether the block of whole transactions is to wait for no more.
    pub(super) fn is_large(&self) -> bool {
        !self.builder.in_transaction() && self.builder.raw_bytes() >= BLOCK_RAW_BYTES
    }

    pub(super) fn flush_if_large(&mut self) -> Result<(), CaptureError> {
        if self.is_large() {
            self.flush()?;
        }
        Ok(())
    }

    /// Hands over the whole transactions that were built.
    pub(super) fn flush(&mut self) -> Result<(), CaptureError> {
        debug_assert!(!self.builder.in_transaction());
        if self.joining.is_some() {
            // What was built since follows it.
            return Ok(());
        }
        let block = self.cut()?;
        self.handed_over.clone_from(&self.received);
        let position = self.committed.take();
        Ok(self.outbox.commit(block, position)?)
    }

    /// The same, unless a transaction is open: then its end does.
    pub(super) fn flush_between(&mut self) -> Result<(), CaptureError> {
        if self.builder.in_transaction() {
            return Ok(());
        }
        self.flush()
    }

    /// Hands over a full block of a transaction that goes on.
    fn cut_open(&mut self) -> Result<(), CaptureError> {
        match self.cut()? {
            Some(block) => Ok(self.outbox.push_open(block)?),
            None => Ok(()),
        }
    }

    fn cut(&mut self) -> Result<Option<EncodedBlock>, CaptureError> {
        if !self.recent.tracks_any() && !self.set_aside.tracks_any() {
            return Ok(self.builder.cut());
        }
        let Some((encoded, block)) = self.builder.cut_and_read() else {
            return Ok(None);
        };
        let observed = self.set_aside.observe(&encoded, &block);
        observed.map_err(|error| self.shelf_failed(error))?;
        let registry = &self.registry;
        self.recent
            .observe(&block, |table, version| registry.version(table, version));
        for (table, moved) in self.recent.newly_moved() {
            if let Some(progress) = self.snapshots.get_mut(&table) {
                progress.resume.moved.extend(moved);
                self.outbox.chunk_done(ChunkDone {
                    table,
                    generation: progress.generation,
                    resume_after: progress.resume.encode(),
                    rows: 0,
                    last: false,
                });
            }
        }
        Ok(Some(encoded))
    }

    /// Begins the append of what is ready.
    pub(super) fn append(&mut self) {
        let is_empty = self.builder.events() == 0 && !self.builder.in_transaction();
        let all_of = if is_empty {
            &self.received
        } else {
            &self.handed_over
        };
        self.received_at_append.clone_from(all_of);
        self.outbox.append();
    }

    /// Begins an append without events: the position of an idle source moves on.
    pub(super) fn append_position(&mut self) {
        self.received_at_append.clone_from(&self.received);
        self.outbox.append_position(self.received.clone());
    }

    /// The append under way has succeeded.
    pub(super) fn appended(&mut self, progress: &Progress) -> Result<(), CaptureError> {
        self.position_appended = Instant::now();
        self.status.update(|s| s.problem = None);
        self.tell_passed(self.received_at_append.clone());
        for stored in progress.iter().filter(|stored| stored.is_done) {
            self.snapshot_stored(stored.table);
        }
        match self.reread.is_logged(progress) {
            true => Err(CaptureError::Reread(
                std::mem::take(&mut self.reread).done(),
            )),
            false => Ok(()),
        }
    }

    /// Whether everything that was received is in the log.
    pub(super) fn is_idle(&self) -> bool {
        self.outbox.is_idle() && self.builder.events() == 0
    }

    /// Whether what was received is the log's position.
    pub(super) fn is_stored(&self) -> bool {
        let stored = self.outbox.tip().position.as_ref();
        stored.is_some_and(|stored| stored.covers(&self.received))
    }

    /// Everything up to a position is in the log.
    pub(super) fn tell_passed(&self, position: SourcePosition) {
        let offset = self.outbox.tip().next;
        self.status.update(|s| {
            if s.passed
                .as_ref()
                .is_none_or(|passed| position.covers(passed))
            {
                s.passed = Some(position);
            }
            s.passed_offset = offset;
        });
    }

    pub(super) fn count_events(&self, events: u64) {
        if events > 0 {
            self.status.update(|s| s.events += events);
        }
    }
}
