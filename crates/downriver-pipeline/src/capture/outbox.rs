//! What was decoded and is not yet in the log, in order, and the append that is under way.
//!
//! ```text
//!  builder ──cut──> open ──commit──> ready ──> append under way ──> durable
//!                    │ over a limit: a local segment file, put to the object store at the commit
//! ```
//!
//! `open` holds the blocks of a transaction that has not ended; only whole transactions become `ready`.
//! Small appends travel inline; what piled up over the inline limit (a backlog, a large transaction, a
//! snapshot) goes to the object store first and bulk never passes through Raft.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use downriver_event::{
    EncodedBlock, Epoch, Incarnation, Offset, SourcePosition, TableId, TableSchema,
};
use downriver_log::segment::SegmentWriter;
use downriver_log::{
    Append, AppendError, Appended, ChunkDone, Log, Moved, Payload, StoreError, StreamState,
};
use tokio::task::JoinHandle;

/// Largest block that travels inline, after compression.
const INLINE_BLOCK_BYTES_MAX: usize = 512 << 10;
/// Largest append that travels inline.
const INLINE_APPEND_BYTES_MAX: usize = 1 << 20;
/// Blocks kept in memory before they go to a local file.
const MEMORY_BYTES_MAX: usize = 8 << 20;
/// Largest segment object.
const SEGMENT_BYTES_MAX: u64 = 64 << 20;
/// Ready bytes above which the capture stops reading its source until the append is through.
const READY_BYTES_MAX: u64 = 16 << 20;

#[derive(Debug, thiserror::Error)]
pub(crate) enum OutboxError {
    #[error(transparent)]
    Append(#[from] AppendError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("cannot use the spill folder {folder:?}")]
    Spill {
        folder: PathBuf,
        source: std::io::Error,
    },
}

/// Where the stream stands, as its owner knows it.
#[derive(Clone, Debug)]
pub(crate) struct Tip {
    pub(crate) stream: String,
    pub(crate) incarnation: Incarnation,
    pub(crate) epoch: Epoch,
    pub(crate) next: Offset,
    pub(crate) position: Option<SourcePosition>,
}

impl Tip {
    pub(crate) fn of(stream: &str, state: &StreamState) -> Self {
        Self {
            stream: stream.to_owned(),
            incarnation: state.incarnation,
            epoch: state.epoch,
            next: state.next,
            position: state.position.clone(),
        }
    }
}

/// Blocks in memory, or in finished and unfinished segments.
#[derive(Default)]
struct Pile {
    memory: Vec<EncodedBlock>,
    memory_bytes: usize,
    /// In order, all before `memory`.
    segments: Vec<SegmentWriter>,
}

impl Pile {
    fn is_empty(&self) -> bool {
        self.memory.is_empty() && self.segments.is_empty()
    }

    fn bytes(&self) -> u64 {
        self.memory_bytes as u64 + self.segments.iter().map(SegmentWriter::bytes).sum::<u64>()
    }

    fn fits_inline(&self) -> bool {
        self.segments.is_empty()
            && self.memory_bytes <= INLINE_APPEND_BYTES_MAX
            && self
                .memory
                .iter()
                .all(|block| block.frame.len() <= INLINE_BLOCK_BYTES_MAX)
    }

    fn push(&mut self, block: EncodedBlock) {
        self.memory_bytes += block.frame.len();
        self.memory.push(block);
    }

    /// Moves the memory's blocks to the segment file.
    fn spill(&mut self, tip: &Tip, folder: &Path) -> Result<(), OutboxError> {
        let failed = |source| OutboxError::Spill {
            folder: folder.to_owned(),
            source,
        };
        for block in self.memory.drain(..) {
            if self
                .segments
                .last()
                .is_none_or(|segment| segment.bytes() >= SEGMENT_BYTES_MAX)
            {
                let segment =
                    SegmentWriter::create(folder, &tip.stream, tip.incarnation, tip.epoch);
                self.segments.push(segment.map_err(failed)?);
            }
            let segment = self.segments.last_mut().expect("one was just made");
            segment.write(&block).map_err(failed)?;
        }
        self.memory_bytes = 0;
        Ok(())
    }
}

/// How far an append brought a table's snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) table: TableId,
    pub(crate) generation: u64,
    /// All of it is in the log.
    pub(crate) is_done: bool,
}

/// Each snapshot that an append moved on.
pub(crate) type Progress = Vec<Stored>;

pub(crate) struct Outbox {
    log: Arc<dyn Log>,
    folder: PathBuf,
    tip: Tip,
    open: Pile,
    ready: Pile,
    /// Where the newest ready transaction ends.
    ready_position: Option<SourcePosition>,
    /// Ready when what is open is.
    open_schemas: Vec<Arc<TableSchema>>,
    open_chunks: Vec<ChunkDone>,
    schemas: Vec<Arc<TableSchema>>,
    chunks_done: Vec<ChunkDone>,
    /// Goes with the next append.
    moved: Option<Moved>,
    under_way: Option<UnderWay>,
}

struct UnderWay {
    append: JoinHandle<Result<Appended, OutboxError>>,
    progress: Progress,
    position_after: Option<SourcePosition>,
}

impl Outbox {
    pub(crate) fn new(log: Arc<dyn Log>, folder: PathBuf, tip: Tip) -> Self {
        Self {
            log,
            folder,
            tip,
            open: Pile::default(),
            ready: Pile::default(),
            ready_position: None,
            open_schemas: Vec::new(),
            open_chunks: Vec::new(),
            schemas: Vec::new(),
            chunks_done: Vec::new(),
            moved: None,
            under_way: None,
        }
    }

    /// Takes a block whose last transaction goes on.
    pub(crate) fn push_open(&mut self, block: EncodedBlock) -> Result<(), OutboxError> {
        self.open.push(block);
        if self.open.memory_bytes > MEMORY_BYTES_MAX {
            self.open.spill(&self.tip, &self.folder)?;
        }
        Ok(())
    }

    /// Takes the last block of what is open, if there is one: everything given so far ends at `position`.
    pub(crate) fn commit(
        &mut self,
        block: Option<EncodedBlock>,
        position: Option<SourcePosition>,
    ) -> Result<(), OutboxError> {
        if let Some(block) = block {
            self.open.push(block);
        }
        if !self.open.segments.is_empty() {
            // Order: what is ready comes first, so it goes into files too.
            self.open.spill(&self.tip, &self.folder)?;
            self.ready.spill(&self.tip, &self.folder)?;
            self.ready.segments.append(&mut self.open.segments);
        }
        for block in std::mem::take(&mut self.open).memory {
            self.ready.push(block);
        }
        if self.ready.memory_bytes > MEMORY_BYTES_MAX {
            self.ready.spill(&self.tip, &self.folder)?;
        }
        self.schemas.append(&mut self.open_schemas);
        self.chunks_done.append(&mut self.open_chunks);
        if position.is_some() {
            self.ready_position = position;
        }
        Ok(())
    }

    /// Registers a schema with what is open: not before the event that announces it.
    pub(crate) fn register(&mut self, schema: Arc<TableSchema>) {
        self.open_schemas.push(schema);
    }

    /// Stores a snapshot's progress with the next append.
    pub(crate) fn chunk_done(&mut self, chunk: ChunkDone) {
        self.chunks_done.push(chunk);
    }

    /// Stores a snapshot's progress with what is open.
    pub(crate) fn chunk_done_with_open(&mut self, chunk: ChunkDone) {
        self.open_chunks.push(chunk);
    }

    pub(crate) fn has_open_progress(&self) -> bool {
        !self.open_chunks.is_empty()
    }

    /// The next append says that the source's history is another one from there on.
    pub(crate) fn move_source(&mut self, moved: Moved) {
        self.moved = Some(moved);
    }

    /// Whether an append of what is ready can begin now.
    pub(crate) fn can_append(&self) -> bool {
        self.under_way.is_none()
            && !(self.ready.is_empty() && self.chunks_done.is_empty() && self.schemas.is_empty())
    }

    /// Whether the source should be read no further for now.
    pub(crate) fn is_full(&self) -> bool {
        self.under_way.is_some() && self.ready.bytes() >= READY_BYTES_MAX
    }

    /// Nothing is waiting: what was received is in the log.
    pub(crate) fn is_idle(&self) -> bool {
        self.under_way.is_none()
            && self.ready.is_empty()
            && self.open.is_empty()
            && self.chunks_done.is_empty()
            && self.schemas.is_empty()
            && self.open_chunks.is_empty()
            && self.open_schemas.is_empty()
    }

    pub(crate) fn tip(&self) -> &Tip {
        &self.tip
    }

    /// Begins the append of everything that is ready.
    pub(crate) fn append(&mut self) {
        let position = self.ready_position.take();
        self.begin(position);
    }

    /// Begins an append without events: the position of an idle source moves on.
    pub(crate) fn append_position(&mut self, position: SourcePosition) {
        debug_assert!(self.is_idle());
        self.begin(Some(position));
    }

    fn begin(&mut self, position: Option<SourcePosition>) {
        let ready = std::mem::take(&mut self.ready);
        let position_after = position.or_else(|| self.tip.position.clone());
        let progress = self.chunks_done.iter().map(|chunk| Stored {
            table: chunk.table,
            generation: chunk.generation,
            is_done: chunk.last,
        });
        let progress = progress.collect();
        let append = Append {
            stream: self.tip.stream.clone(),
            incarnation: self.tip.incarnation,
            epoch: self.tip.epoch,
            base: self.tip.next,
            position_before: self.tip.position.clone(),
            position_after: position_after.clone(),
            schemas: std::mem::take(&mut self.schemas),
            chunks_done: std::mem::take(&mut self.chunks_done),
            payloads: Vec::new(),
            moved: self.moved.take(),
        };
        let (log, tip, folder) = (Arc::clone(&self.log), self.tip.clone(), self.folder.clone());
        let append = tokio::spawn(send(log, tip, folder, ready, append));
        self.under_way = Some(UnderWay {
            append,
            progress,
            position_after,
        });
    }

    /// Waits for the append under way; for ever if there is none. Dropping the future loses nothing.
    pub(crate) async fn appended(&mut self) -> Result<Progress, OutboxError> {
        let Some(under_way) = &mut self.under_way else {
            return std::future::pending().await;
        };
        let result = (&mut under_way.append).await;
        let under_way = self.under_way.take().expect("it was there");
        let appended =
            result.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?;
        self.tip.next = appended.next;
        self.tip.position = under_way.position_after;
        Ok(under_way.progress)
    }
}

async fn send(
    log: Arc<dyn Log>,
    tip: Tip,
    folder: PathBuf,
    mut ready: Pile,
    mut append: Append,
) -> Result<Appended, OutboxError> {
    if ready.fits_inline() {
        append.payloads = ready.memory.drain(..).map(Payload::Inline).collect();
    } else {
        ready.spill(&tip, &folder)?;
        let store = log.objects();
        for segment in ready.segments {
            append
                .payloads
                .push(segment.put(&*store, &append.schemas).await?);
        }
    }
    Ok(log.append(append).await?)
}
