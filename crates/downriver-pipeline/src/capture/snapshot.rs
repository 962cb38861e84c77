//! Reads the tables whose snapshot is not done, chunk by chunk, several tables at once. Each worker has a
//! session of its own and one table at a time; it reads the next chunk while the capture holds the last.

use std::collections::{HashSet, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use downriver_event::{EncodedBlock, SourcePosition, TableId, TableSchema};
use downriver_source::SourceError;
use downriver_source::chunk::{ChunkReader, ChunkRequest, Reshaped, Seen};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::SnapshotConfig;
use super::chunks::{EncodedChunk, Helper, WantedChunk, encode};
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
    for number in 0..workers {
        let worker = Worker::<R> {
            helper: snapshot.helpers.of_worker(number),
            server: None,
            session: None,
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
    /// Another node that reads for it, as long as that goes well.
    helper: Option<Box<dyn Helper>>,
    /// The server that this node has come to, if it was asked.
    server: Option<String>,
    session: Option<R>,
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
    async fn run(mut self) {
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

    async fn table(&mut self, mut task: TableTask) -> Result<Result<(), Gone>, SourceError> {
        // One that failed is of no use to the next table.
        self.session = None;
        if let Some(part) = &task.resume.part {
            let session = self.session().await?;
            task.rows_estimated = session.estimated_rows(&task.schema, part).await?;
        }
        loop {
            let reread = task.resume.exhausted.then(|| task.resume.moved.clone());
            let mut held = match self.read(&mut task, reread).await? {
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
                return self.moved_rows(&mut task, moved).await;
            }
        }
    }

    /// Reads the rows that moved between chunks, until none moves any more. One whose move is not visible yet is
    /// asked for again.
    async fn moved_rows(
        &mut self,
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
            let mut held = match self.read(task, Some(keys)).await? {
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
        &mut self,
        task: &mut TableTask,
        reread: Option<Vec<Key>>,
    ) -> Result<Result<HeldChunk, Gone>, SourceError> {
        loop {
            let reshaped = match self.read_in_shape(task, reread.clone()).await? {
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

    /// The session with the database, which is begun when it is first needed.
    async fn session(&mut self) -> Result<&mut R, SourceError> {
        let session = match self.session.take() {
            Some(session) => session,
            None => R::connect(&self.config).await?,
        };
        Ok(self.session.insert(session))
    }

    async fn read_in_shape(
        &mut self,
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
        let (encoded, shelf) = match self.read_elsewhere(task, &request).await {
            Some(encoded) => (encoded, None),
            None => match self.read_here(task, request).await? {
                Ok(read) => read,
                Err(reshaped) => return Ok(Err(reshaped)),
            },
        };
        let EncodedChunk {
            chunk,
            blocks,
            rows,
        } = encoded;
        throttle(self.snapshot.rows_per_second, rows, began).await;
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

    /// `None`: it is to be read here. What a table without a key has waits in this node's files, and how much a part of a
    /// table has is asked for here.
    async fn read_elsewhere(
        &mut self,
        task: &TableTask,
        request: &ChunkRequest,
    ) -> Option<EncodedChunk> {
        if self.helper.is_none() || task.schema.is_bag() || request.part.is_some() {
            return None;
        }
        match self.ask_helper(task, request).await {
            Ok(read) => read,
            Err(reason) => {
                tracing::warn!(
                    table = task.schema.qualified_name(),
                    reason,
                    "another node reads no chunks for this one any more; they are read here"
                );
                self.helper = None;
                None
            }
        }
    }

    async fn ask_helper(
        &mut self,
        task: &TableTask,
        request: &ChunkRequest,
    ) -> Result<Option<EncodedChunk>, String> {
        if self.server.is_none() {
            let server = self.session().await.map_err(|e| e.to_string())?.server();
            self.server = Some(server.await.map_err(|error| error.to_string())?);
            // It is the helper's session that is needed now.
            self.session = None;
        }
        let (Some(helper), Some(server)) = (&mut self.helper, &self.server) else {
            return Ok(None);
        };
        let wanted = WantedChunk {
            server: server.clone(),
            schema: Arc::clone(&task.schema),
            request: request.clone(),
        };
        helper.read(&wanted).await
    }

    async fn read_here(
        &mut self,
        task: &TableTask,
        request: ChunkRequest,
    ) -> Result<Result<(EncodedChunk, Option<Shelf>), Reshaped<R::Table>>, SourceError> {
        let spill = self.spill.clone();
        let full = |error: io::Error| SourceError::spill(&spill, &error);
        let of_bag = task.schema.is_bag();
        let shelf = of_bag.then(|| Shelf::create(&spill, task.schema.id));
        let mut shelf = shelf.transpose().map_err(full)?;
        let mut blocks = Vec::new();
        let mut put = |block: EncodedBlock| match &mut shelf {
            Some(shelf) => shelf.push(&block).map_err(full),
            None => {
                blocks.push(block);
                Ok(())
            }
        };
        let session = self.session().await?;
        let read = encode(session, &task.schema, request, &mut put).await?;
        Ok(read.map(|(chunk, rows)| {
            let encoded = EncodedChunk {
                chunk,
                blocks,
                rows,
            };
            (encoded, shelf)
        }))
    }
}

async fn throttle(rows_per_second: u64, rows: u64, began: Instant) {
    if rows_per_second > 0 {
        let wanted = Duration::from_secs_f64(rows as f64 / rows_per_second as f64);
        tokio::time::sleep(wanted.saturating_sub(began.elapsed())).await;
    }
}

pub(crate) fn micros_since_epoch() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}
