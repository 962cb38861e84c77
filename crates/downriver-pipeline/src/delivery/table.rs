//! One table's delivery: takes its blocks, and commits a window at a transaction boundary when it is old or
//! large enough.

use std::sync::Arc;
use std::time::Duration;

use downriver_event::problem::Problem;
use downriver_event::{Epoch, Incarnation, Offset, TableId, TableSchema};
use downriver_lake::{ErrorClass, LakeError, TableWriter};
use downriver_log::LogError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::reader::OpenBlock;
use super::{DeliveryConfig, Surroundings};
use crate::retry::Backoff;
use crate::status::{Board, DeliveryStatus, TableState, TableStatus};

/// Compressed bytes of blocks on the way to one table.
const FEED_BYTES_MAX: usize = 4 << 20;
/// Items on the way to one table.
const FEED_ITEMS_MAX: usize = 256;
/// How often the progress of a table without changes is stored.
const IDLE_PROGRESS_EVERY: Duration = Duration::from_secs(30);

pub(super) enum Fed {
    Block(Arc<OpenBlock>),
    /// Nothing for this table up to here.
    Passed { to: Offset, continues: bool },
}

/// The reader's end of a table's feed.
pub(super) struct TableFeed {
    items: mpsc::Sender<(Fed, OwnedSemaphorePermit)>,
    room: Arc<Semaphore>,
    /// Where the table wants to start reading; a new value whenever it starts again.
    start: watch::Receiver<Option<Offset>>,
    given: Option<Offset>,
}

/// The table's end.
pub(super) struct Blocks {
    items: mpsc::Receiver<(Fed, OwnedSemaphorePermit)>,
    start: watch::Sender<Option<Offset>>,
}

pub(super) fn feed() -> (TableFeed, Blocks) {
    let (sender, items) = mpsc::channel(FEED_ITEMS_MAX);
    let (start, started) = watch::channel(None);
    let room = Arc::new(Semaphore::new(FEED_BYTES_MAX));
    let feed = TableFeed { items: sender, room, start: started, given: None };
    (feed, Blocks { items, start })
}

impl TableFeed {
    /// The feed of a table that wants nothing.
    pub(super) fn closed() -> Self {
        feed().0
    }

    /// The next offset that the table wants; `None` while it is not ready.
    pub(super) fn wants(&self) -> Option<Offset> {
        self.given
    }

    /// Returns when the table wants something else than before.
    pub(super) async fn moved(&mut self) {
        if self.start.changed().await.is_err() {
            return std::future::pending().await;
        }
        self.given = *self.start.borrow_and_update();
    }

    /// Waits for room in the feed. A table that started again meanwhile is not given this.
    pub(super) async fn give(&mut self, fed: Fed, end: Offset, bytes: usize) {
        let bytes = u32::try_from(bytes.clamp(64, FEED_BYTES_MAX)).expect("clamped");
        let room = Arc::clone(&self.room).acquire_many_owned(bytes);
        tokio::select! {
            biased;
            () = self.moved() => {}
            Ok(permit) = room => {
                if self.items.send((fed, permit)).await.is_ok() {
                    self.given = Some(end);
                } else {
                    self.given = None;
                }
            }
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum TableError {
    #[error(transparent)]
    Lake(#[from] LakeError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error("the feed of the table ended")]
    FeedEnded,
}

pub(super) struct TableTask {
    pub(super) config: DeliveryConfig,
    pub(super) surroundings: Surroundings,
    pub(super) status: Board<DeliveryStatus>,
    pub(super) table: TableId,
    pub(super) name: String,
    pub(super) incarnation: Incarnation,
}

struct Window {
    /// Everything before it was pushed.
    pushed: Offset,
    /// The newest transaction boundary in what was pushed.
    boundary: Offset,
    /// Whether the last transaction pushed goes on.
    open: bool,
    since: Option<Instant>,
    commit_time_us: i64,
}

impl TableTask {
    pub(super) async fn run(self, mut blocks: Blocks, stop: CancellationToken) {
        let mut backoff = Backoff::new();
        loop {
            let result = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                result = self.deliver(&mut blocks, &mut backoff) => result,
            };
            let Err(error) = result else { return };
            let Some(problem) = self.failed(&error) else { return };
            let lasting = problem.1;
            self.set(|t| {
                t.problem = Some(problem.0);
                if lasting {
                    t.state = TableState::Stopped;
                }
            });
            let _ = blocks.start.send(None);
            if lasting {
                return stop.cancelled().await;
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = backoff.wait() => {}
            }
        }
    }

    /// The problem to show and whether it lasts; `None` to leave the table to its new owner.
    fn failed(&self, error: &TableError) -> Option<(Problem, bool)> {
        let lake = match error {
            TableError::Lake(lake) => lake,
            TableError::FeedEnded => return None,
            TableError::Log(log) => {
                tracing::warn!(pipeline = self.config.pipeline, table = self.name, error = %log, "progress cannot be stored; it will be tried again");
                let fix = "see that the data folder's disk has room; delivery goes on by itself";
                return Some((Problem::new("DR-1100", log.to_string(), fix), false));
            }
        };
        match lake.class() {
            ErrorClass::Fenced => {
                tracing::warn!(pipeline = self.config.pipeline, table = self.name, error = %lake, "table left to another owner");
                None
            }
            ErrorClass::Definite => {
                tracing::error!(pipeline = self.config.pipeline, table = self.name, error = %lake, "table stopped");
                Some((lake.problem(), true))
            }
            ErrorClass::Transient => {
                tracing::warn!(pipeline = self.config.pipeline, table = self.name, error = %lake, "the sink failed; it will be tried again");
                Some((lake.problem(), false))
            }
        }
    }

    fn set(&self, change: impl FnOnce(&mut TableStatus)) {
        self.status.update(|s| change(s.tables.entry(self.name.clone()).or_default()));
    }

    fn schema(&self, version: Option<u32>) -> Option<Arc<TableSchema>> {
        let state = self.surroundings.log.state(&self.config.source)?;
        match version {
            Some(version) => state.schemas.get(&(self.table, version)).cloned(),
            None => state.newest_schema(self.table).cloned(),
        }
    }

    async fn deliver(&self, blocks: &mut Blocks, backoff: &mut Backoff) -> Result<(), TableError> {
        let pipeline = &self.config.pipeline;
        let (epoch, stored) = self.surroundings.sink_tables.open(pipeline, self.table).await?;
        let schema = self.schema(None).ok_or(TableError::FeedEnded)?;
        let target = self.config.target(&schema);
        let mut writer = TableWriter::open(
            &self.surroundings.lake,
            pipeline,
            target,
            schema,
            epoch,
            self.incarnation,
        )
        .await?;
        // The sink is right about what it holds; a stored offset further on only says that nothing for
        // this table lay between.
        let delivered = writer.delivered().max(stored);
        let mut window =
            Window { pushed: delivered, boundary: delivered, open: false, since: None, commit_time_us: 0 };
        self.set(|t| {
            t.state = TableState::Streaming;
            t.problem = None;
            t.delivered = delivered;
        });
        while blocks.items.try_recv().is_ok() {}
        let _ = blocks.start.send(Some(delivered));
        let mut idle_stored = (Instant::now(), delivered);
        loop {
            let due = window.since.map(|since| since + self.config.freshness);
            tokio::select! {
                biased;
                () = until(due), if !window.open => {
                    self.commit(&mut writer, &mut window, epoch).await?;
                    backoff.reset();
                }
                item = blocks.items.recv() => {
                    let (fed, _room) = item.ok_or(TableError::FeedEnded)?;
                    self.take(&mut writer, &mut window, fed).await?;
                    if writer.pending_events() == 0 && !window.open {
                        self.set(|t| t.delivered = window.boundary);
                    }
                    if writer.pending_bytes() >= self.config.window_bytes_max && !window.open {
                        self.commit(&mut writer, &mut window, epoch).await?;
                    }
                }
                () = tokio::time::sleep_until(idle_stored.0 + IDLE_PROGRESS_EVERY) => {
                    if writer.pending_events() == 0 && window.boundary > idle_stored.1 {
                        self.store(epoch, window.boundary).await?;
                    }
                    idle_stored = (Instant::now(), window.boundary);
                }
            }
        }
    }

    async fn take(&self, writer: &mut TableWriter, window: &mut Window, fed: Fed) -> Result<(), TableError> {
        let (end, continues) = match fed {
            Fed::Passed { to, continues } => (to, continues),
            Fed::Block(open) => {
                if open.end <= window.pushed {
                    return Ok(());
                }
                let schemas = |table: TableId, version: u32| {
                    (table == self.table).then(|| self.schema(Some(version))).flatten()
                };
                writer.push(&open.block, open.base, &schemas).await?;
                window.commit_time_us = open.commit_time_us;
                (open.end, open.continues)
            }
        };
        window.pushed = window.pushed.max(end);
        window.open = continues;
        if !continues {
            window.boundary = window.pushed;
        }
        if writer.pending_events() > 0 {
            window.since.get_or_insert_with(Instant::now);
        }
        Ok(())
    }

    async fn commit(&self, writer: &mut TableWriter, window: &mut Window, epoch: Epoch) -> Result<(), TableError> {
        let events = writer.pending_events();
        if events > 0 {
            writer.commit(window.boundary).await?;
            self.store(epoch, window.boundary).await?;
        }
        window.since = None;
        self.set(|t| t.delivered = window.boundary);
        self.status.update(|s| {
            s.events += events;
            s.delivered_time_us = s.delivered_time_us.max(window.commit_time_us);
        });
        Ok(())
    }

    async fn store(&self, epoch: Epoch, delivered: Offset) -> Result<(), LogError> {
        let tables = &self.surroundings.sink_tables;
        tables.delivered(&self.config.pipeline, self.table, epoch, delivered).await
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}
