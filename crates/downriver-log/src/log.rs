//! The contract of a log.
//!
//! ```text
//!   0        trimmed          sealed               next
//!   |- gone -|--- segments ----|- unsealed, fsynced -|  not yet given out
//!            ^ first readable                        ^ base_offset of the next append
//! ```
//!
//! - An append is accepted only if incarnation, epoch, base offset and position-before equal the stream's.
//!   It becomes visible as a whole or not at all; when `append` has returned it is durable.
//! - Dropping the future of `append` does not tell whether it landed: the next append's rejection does.
//! - A reader sees offsets without a gap, and the content of an offset never changes.
//! - The source may be acknowledged up to `sealed_position`.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use downriver_api::cluster::v1 as pb;
use downriver_event::{
    EncodedBlock, EndedIncarnations, Epoch, Incarnation, Offset, SourcePosition, TableId,
    TableSchema,
};
use tokio::sync::watch;

use crate::store::{ObjectStore, StoreError};

/// What is known of a stream: the applied, replicated state.
#[derive(Clone, Debug)]
pub struct StreamState {
    pub incarnation: Incarnation,
    pub ended: EndedIncarnations,
    pub epoch: Epoch,
    /// First offset that can be read.
    pub trimmed: Offset,
    /// Exclusive: everything before it is in segments.
    pub sealed: Offset,
    /// One past the last durable event: the base of the next append.
    pub next: Offset,
    /// Last source commit fully contained; `None` until the first append or a start was given.
    pub position: Option<SourcePosition>,
    /// Last source commit whose segment is in the object store.
    pub sealed_position: Option<SourcePosition>,
    /// What identifies the source's history, as its owner stored it at `open`.
    pub identity: Bytes,
    /// Every registered schema version.
    pub schemas: Arc<BTreeMap<(TableId, u32), Arc<TableSchema>>>,
    pub chunks: Arc<BTreeMap<TableId, ChunkState>>,
}

impl StreamState {
    /// Whether the events before an offset of an incarnation are those of this log.
    #[must_use]
    pub fn has(&self, incarnation: Incarnation, offset: Offset) -> bool {
        let until = match incarnation == self.incarnation {
            true => Some(self.next),
            false => self.ended.same_until(incarnation),
        };
        until.is_some_and(|until| offset <= until)
    }

    /// The table's newest registered schema.
    #[must_use]
    pub fn newest_schema(&self, table: TableId) -> Option<&Arc<TableSchema>> {
        let mut versions = self.schemas.range((table, 0)..=(table, u32::MAX));
        versions.next_back().map(|(_, schema)| schema)
    }
}

/// How far a table's snapshot has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkState {
    pub generation: u64,
    /// Opaque to the log: where the next chunk starts.
    pub resume_after: Bytes,
    /// Rows of all chunks of this generation.
    pub rows: u64,
    pub done: bool,
}

#[derive(Clone, Debug)]
pub struct ChunkDone {
    pub table: TableId,
    pub generation: u64,
    pub resume_after: Bytes,
    /// Rows of this chunk.
    pub rows: u64,
    pub last: bool,
}

/// A whole object in the store: a segment, or a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectRef {
    pub key: String,
    pub len: u64,
    /// crc32c of the whole object.
    pub crc: u32,
    /// Where a segment's footer starts.
    pub footer_offset: u64,
    /// When it was written, microseconds since 1970 by the writer's clock; of a merged segment, when the last of its
    /// parts was. 0: not known. Retention counts from it.
    pub stored_us: i64,
}

impl ObjectRef {
    #[must_use]
    pub fn to_pb(&self) -> pb::ObjectRef {
        pb::ObjectRef {
            key: self.key.clone(),
            len: self.len,
            crc: self.crc,
            footer_offset: self.footer_offset,
            stored_us: self.stored_us,
        }
    }

    #[must_use]
    pub fn from_pb(object: pb::ObjectRef) -> Self {
        Self {
            key: object.key,
            len: object.len,
            crc: object.crc,
            footer_offset: object.footer_offset,
            stored_us: object.stored_us,
        }
    }
}

#[derive(Clone, Debug)]
pub enum Payload {
    /// Travels inside the Raft entry: at most 512 KiB, and 1 MiB an append.
    Inline(EncodedBlock),
    /// Already in the object store as a segment; it is never copied.
    Object {
        object: ObjectRef,
        events: u64,
        time_min_us: i64,
        time_max_us: i64,
    },
}

impl Payload {
    #[must_use]
    pub fn events(&self) -> u64 {
        match self {
            Self::Inline(block) => u64::from(block.events),
            Self::Object { events, .. } => *events,
        }
    }
}

#[derive(Clone, Debug)]
pub struct Append {
    pub stream: String,
    pub incarnation: Incarnation,
    pub epoch: Epoch,
    pub base: Offset,
    pub position_before: Option<SourcePosition>,
    pub position_after: Option<SourcePosition>,
    pub schemas: Vec<Arc<TableSchema>>,
    pub chunks_done: Vec<ChunkDone>,
    /// Empty: only the position moves.
    pub payloads: Vec<Payload>,
    /// Where the source's history is another one from here on.
    pub moved: Option<Moved>,
}

/// A change of what the stream's positions are positions of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    pub identity: Bytes,
    /// `position_after` lies in a history of its own: nothing sealed before is acknowledged any more. The append has
    /// payloads, which say so to readers.
    pub anew: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    pub next: Offset,
}

#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// The compare-and-set failed. The owner drops what the position covers (its own append may have
    /// landed) and sends the rest; a higher epoch means that it is no longer the owner.
    #[error("append rejected: the stream is at epoch {epoch}, offset {next}")]
    Rejected {
        epoch: Epoch,
        next: Offset,
        position: Option<SourcePosition>,
    },
    #[error(transparent)]
    Log(#[from] LogError),
}

#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("stream {0:?} does not exist")]
    NoStream(String),
    /// Not decided: the command may still land.
    #[error("the journal cannot take commands now: {0}")]
    Unavailable(String),
    #[error("{what} is over its limit of {limit}")]
    Limit { what: &'static str, limit: u64 },
}

#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("stream {0:?} does not exist")]
    NoStream(String),
    /// The named gap: these offsets are gone by retention.
    #[error("offset {from} is gone: the log starts at {trimmed}")]
    Trimmed { from: Offset, trimmed: Offset },
    #[error("offset {from} is past the end {next}")]
    PastEnd { from: Offset, next: Offset },
    /// Damaged bytes are reported, never served.
    #[error("object {object:?} is damaged at byte {position} (log offset {offset}): {reason}")]
    Damaged {
        object: String,
        position: u64,
        offset: Offset,
        reason: String,
    },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// One block as it was appended. `frame` passed its checksum.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredBlock {
    pub base: Offset,
    pub events: u32,
    pub epoch: Epoch,
    pub frame: Bytes,
    /// The position that its append moved the stream to: the commit position of a transaction that
    /// goes on in the next block.
    pub position_after: Option<SourcePosition>,
}

impl StoredBlock {
    #[must_use]
    pub fn end(&self) -> Offset {
        self.base.plus(u64::from(self.events))
    }
}

#[async_trait]
pub trait Log: Send + Sync + 'static {
    /// Gives the caller a new epoch as the stream's owner, makes the stream if it is not there, and stores
    /// `identity` and `start` if it has no position yet.
    async fn open(
        &self,
        stream: &str,
        start: Option<SourcePosition>,
        identity: Bytes,
    ) -> Result<StreamState, LogError>;

    async fn append(&self, append: Append) -> Result<Appended, AppendError>;

    /// Asks that what the stream has be sealed soon, as its source waits to be acknowledged. Nothing is promised.
    fn seal_soon(&self, stream: &str);

    /// The applied state; `None` if there is no such stream. Cheap: shared, not copied deep.
    fn state(&self, stream: &str) -> Option<Arc<StreamState>>;

    /// Changes whenever any applied state changes: wait on it, then look again.
    fn changes(&self) -> watch::Receiver<u64>;

    /// The blocks from the one that contains `from` on, in order without a gap, until `bytes_max` is passed
    /// (at least one, if there is one). Empty at the tail. Reads memory first, then segments.
    async fn read(
        &self,
        stream: &str,
        from: Offset,
        bytes_max: usize,
    ) -> Result<Vec<StoredBlock>, ReadError>;

    /// The first transaction boundary whose commit time is not before `time_us`; `next` if there is none.
    async fn offset_at_time(&self, stream: &str, time_us: i64) -> Result<Offset, ReadError>;

    fn objects(&self) -> Arc<dyn ObjectStore>;
}
