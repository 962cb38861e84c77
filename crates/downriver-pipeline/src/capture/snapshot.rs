//! Reads the tables whose snapshot is not done, chunk by chunk, several tables at once. Each worker has a
//! session of its own and one table at a time; it reads the next chunk while the capture holds the last.

use std::collections::{HashSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use downriver_event::block::{BLOCK_RAW_BYTES_MAX, OldImage, RowOp};
use downriver_event::{BlockBuilder, EncodedBlock, SourcePosition, TableId, TableSchema};
use downriver_source::SourceError;
use downriver_source::chunk::{ChunkRead, ChunkReader, ChunkRequest, Reshaped, Seen};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::SnapshotConfig;
use super::merge::Key;
use super::progress::Resume;
use super::shelf::Shelf;

/// How long a move that is not visible yet is waited for.
const MOVED_POLL: Duration = Duration::from_millis(200);

/// One table's snapshot, as far as it has come.
#[derive(Clone, Debug)]
pub(crate) struct TableTask {
    pub(crate) schema: Arc<TableSchema>,
    pub(crate) generation: u64,
    pub(crate) resume: Resume,
    pub(crate) rows_estimated: Option<u64>,
}

/// What a worker read, waiting for its place in the stream.
pub(crate) struct HeldChunk {
    pub(crate) schema: Arc<TableSchema>,
    pub(crate) generation: u64,
    pub(crate) seen: Seen,
    /// The stream must pass this position before the chunk joins it.
    pub(crate) high: SourcePosition,
    pub(crate) blocks: Vec<EncodedBlock>,
    /// The blocks of a table without a key, which is read whole.
    pub(crate) shelf: Option<Shelf>,
    pub(crate) rows: u64,
    /// Of the whole generation, where the worker knows better than the catalog.
    pub(crate) rows_estimated: Option<u64>,
    /// Where the next chunk starts; `None` after the last one.
    pub(crate) next: Option<Bytes>,
    /// The keys that were read again.
    pub(crate) reread: Vec<Key>,
    pub(crate) began: Instant,
    /// The capture's answer, asked for after the last chunk: the rows to read again, and, when there are
    /// none left, the end of the table.
    pub(crate) moved: Option<oneshot::Sender<Vec<Key>>>,
}

/// A table whose shape a worker did not find any more.
pub(crate) struct LostShape<T> {
    /// What it was to read.
    pub(crate) schema: Arc<TableSchema>,
    pub(crate) reshaped: Reshaped<T>,
    /// The shape to go on with, once the stream has passed what was found. Dropped: nothing more of this table.
    pub(crate) answer: oneshot::Sender<Arc<TableSchema>>,
}

/// The tables that a worker has begun to read.
pub(crate) type Begun = Arc<Mutex<HashSet<TableId>>>;

pub(crate) enum FromWorker<T> {
    Chunk(Box<HeldChunk>),
    LostShape(Box<LostShape<T>>),
    /// The table cannot be read; the others go on.
    Failed {
        table: TableId,
        error: SourceError,
    },
}

/// Starts the workers; they end when the queue is empty or the receiver is gone.
pub(crate) fn start<R: ChunkReader + 'static>(
    config: &R::Config,
    snapshot: &SnapshotConfig,
    tasks: Vec<TableTask>,
    begun: &Begun,
    spill: &Path,
) -> (mpsc::Receiver<FromWorker<R::Table>>, JoinSet<()>) {
    let workers = snapshot.max_workers.clamp(1, tasks.len().max(1));
    let queue = Arc::new(Mutex::new(VecDeque::from(tasks)));
    let (sender, receiver) = mpsc::channel(1);
    let mut running = JoinSet::new();
    for _ in 0..workers {
        let worker = Worker::<R> {
            config: config.clone(),
            snapshot: snapshot.clone(),
            queue: Arc::clone(&queue),
            begun: Arc::clone(begun),
            spill: spill.to_owned(),
            chunks: sender.clone(),
        };
        running.spawn(worker.run());
    }
    (receiver, running)
}

struct Worker<R: ChunkReader> {
    config: R::Config,
    snapshot: SnapshotConfig,
    queue: Arc<Mutex<VecDeque<TableTask>>>,
    begun: Begun,
    /// Where the rows of tables without a key wait.
    spill: PathBuf,
    chunks: mpsc::Sender<FromWorker<R::Table>>,
}

/// The capture wants nothing more of a table, or has ended.
struct Gone;

impl<R: ChunkReader> Worker<R> {
    async fn run(self) {
        loop {
            let next = self.queue.lock().expect("no holder panics").pop_front();
            let Some(task) = next else { return };
            let table = task.schema.id;
            self.begun.lock().expect("no holder panics").insert(table);
            match self.table(task).await {
                Ok(Err(Gone)) if self.chunks.is_closed() => return,
                Ok(_) => {}
                Err(error) => {
                    if self
                        .chunks
                        .send(FromWorker::Failed { table, error })
                        .await
                        .is_err()
                    {
                        return;
                    }
                }
            }
        }
    }

    async fn table(&self, mut task: TableTask) -> Result<Result<(), Gone>, SourceError> {
        let mut session = R::connect(&self.config).await?;
        if let Some(part) = &task.resume.part {
            task.rows_estimated = session.estimated_rows(&task.schema, part).await?;
        }
        loop {
            let reread = task.resume.exhausted.then(|| task.resume.moved.clone());
            let mut held = match self.read(&mut session, &mut task, reread).await? {
                Ok(held) => held,
                Err(Gone) => return Ok(Err(Gone)),
            };
            let (answer, moved) = oneshot::channel();
            let last = held.next.is_none();
            task.resume.next.clone_from(&held.next);
            held.moved = last.then_some(answer);
            if self
                .chunks
                .send(FromWorker::Chunk(Box::new(held)))
                .await
                .is_err()
            {
                return Ok(Err(Gone));
            }
            if last {
                return self.moved_rows(&mut session, &mut task, moved).await;
            }
        }
    }

    /// Reads the rows that moved between chunks, until none moves any more. One whose move is not visible yet is
    /// asked for again.
    async fn moved_rows(
        &self,
        session: &mut R,
        task: &mut TableTask,
        mut moved: oneshot::Receiver<Vec<Key>>,
    ) -> Result<Result<(), Gone>, SourceError> {
        let mut before = Vec::new();
        loop {
            let Ok(keys) = moved.await else {
                return Ok(Err(Gone));
            };
            if keys.is_empty() {
                return Ok(Ok(()));
            }
            if keys == before {
                tokio::time::sleep(MOVED_POLL).await;
            }
            before.clone_from(&keys);
            let mut held = match self.read(session, task, Some(keys)).await? {
                Ok(held) => held,
                Err(Gone) => return Ok(Err(Gone)),
            };
            let (answer, next) = oneshot::channel();
            held.moved = Some(answer);
            moved = next;
            if self
                .chunks
                .send(FromWorker::Chunk(Box::new(held)))
                .await
                .is_err()
            {
                return Ok(Err(Gone));
            }
        }
    }

    /// Reads a chunk in the table's shape of now.
    async fn read(
        &self,
        session: &mut R,
        task: &mut TableTask,
        reread: Option<Vec<Key>>,
    ) -> Result<Result<HeldChunk, Gone>, SourceError> {
        loop {
            let reshaped = match self.read_in_shape(session, task, reread.clone()).await? {
                Ok(held) => return Ok(Ok(held)),
                Err(reshaped) => reshaped,
            };
            let (answer, shape) = oneshot::channel();
            let lost = LostShape {
                schema: Arc::clone(&task.schema),
                reshaped,
                answer,
            };
            if self
                .chunks
                .send(FromWorker::LostShape(Box::new(lost)))
                .await
                .is_err()
            {
                return Ok(Err(Gone));
            }
            match shape.await {
                Ok(schema) => task.schema = schema,
                Err(_) => return Ok(Err(Gone)),
            }
        }
    }

    async fn read_in_shape(
        &self,
        session: &mut R,
        task: &TableTask,
        reread: Option<Vec<Key>>,
    ) -> Result<Result<HeldChunk, Reshaped<R::Table>>, SourceError> {
        let reread_keys = reread.clone().unwrap_or_default();
        let request = ChunkRequest {
            part: task.resume.part.clone(),
            after: task.resume.next.clone(),
            keys: reread.map(|keys| keys.into_iter().map(Bytes::from).collect()),
            rows_max: self.snapshot.chunk_rows,
        };
        let began = Instant::now();
        let now_us = micros_since_epoch();
        let mut builder = BlockBuilder::new();
        let mut blocks = Vec::new();
        let mut rows = 0u64;
        let of_bag = task.schema.is_bag();
        let shelf = of_bag.then(|| Shelf::create(&self.spill, task.schema.id));
        let mut shelf = shelf.transpose().map_err(|error| self.full(&error))?;
        builder.begin("snapshot".into(), now_us);
        let chunk = session
            .read_chunk(&task.schema, request, &mut |row| {
                row.push_into(builder.row(&task.schema, RowOp::Snapshot, OldImage::None))?;
                rows += 1;
                if rows.is_multiple_of(256)
                    && builder.raw_bytes() >= BLOCK_RAW_BYTES_MAX - (512 << 10)
                {
                    builder.commit_unplaced();
                    match (&mut shelf, builder.cut()) {
                        (Some(shelf), Some(block)) => {
                            shelf.push(&block).map_err(|error| self.full(&error))?;
                        }
                        (_, block) => blocks.extend(block),
                    }
                    builder.begin("snapshot".into(), now_us);
                }
                Ok(())
            })
            .await?;
        let chunk = match chunk {
            ChunkRead::Rows(chunk) => chunk,
            ChunkRead::Reshaped(reshaped) => return Ok(Err(reshaped)),
        };
        builder.commit_unplaced();
        match (&mut shelf, builder.cut()) {
            (Some(shelf), Some(block)) => shelf.push(&block).map_err(|error| self.full(&error))?,
            (_, block) => blocks.extend(block),
        }
        self.throttle(rows, began).await;
        Ok(Ok(HeldChunk {
            schema: Arc::clone(&task.schema),
            generation: task.generation,
            seen: chunk.seen,
            high: chunk.high,
            blocks,
            shelf,
            rows,
            rows_estimated: task.rows_estimated,
            next: chunk.next,
            reread: reread_keys,
            began,
            moved: None,
        }))
    }

    fn full(&self, error: &std::io::Error) -> SourceError {
        SourceError::spill(&self.spill, error)
    }

    async fn throttle(&self, rows: u64, began: Instant) {
        if self.snapshot.rows_per_second > 0 {
            let wanted =
                Duration::from_secs_f64(rows as f64 / self.snapshot.rows_per_second as f64);
            tokio::time::sleep(wanted.saturating_sub(began.elapsed())).await;
        }
    }
}

pub(crate) fn micros_since_epoch() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}
