//! One run of a capture: connect, take up the stream where the log stands, and loop until something fails.

mod bags;
mod chunks;
mod decode;
mod drift;
mod names;
mod parts;
mod tables;

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use downriver_decode::postgres::decoder::{PgDecoder, Streaming};
use downriver_event::{BlockBuilder, Lsn, SourcePosition, TableId, TableSchema, pb};
use downriver_log::{ChunkDone, Log, Moved};
use downriver_source::SourceError;
use downriver_source::postgres::catalog::Catalog;
use downriver_source::postgres::replication::{Acknowledger, ReplicationStream, Session};
use downriver_source::postgres::standby::{self, TimelineGuard};
use downriver_source::postgres::{heartbeat, publication, reach, setup};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use super::merge::RecentChanges;
use super::outbox::{Outbox, Tip};
use super::progress::{Resume, Standing};
use super::registry::Registry;
use super::request::{CaptureControl, Reread};
use super::snapshot::{self, Begun, HeldChunk, LostShape, TableTask};
use super::spool::{Spool, Spooled};
use super::{CaptureConfig, CaptureError, captured, not_ours};
use crate::status::{Board, SourceStatus};
use bags::{Joining, SetAside};
use drift::{Drift, News};

/// How often an idle source's position is stored.
const POSITION_APPEND_EVERY: Duration = Duration::from_secs(10);
/// How often a source that has just become idle is asked where it is.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// How often held chunks ask the server where it is.
const TICK: Duration = Duration::from_millis(50);
/// Chunks waiting for the stream, over all tables.
const HELD_CHUNKS_MAX: usize = 4;

/// How far the snapshot of a table has come, as the log knows it.
struct TableProgress {
    generation: u64,
    resume: Resume,
}

struct Run<'a> {
    config: &'a CaptureConfig,
    log: &'a Arc<dyn Log>,
    status: &'a Board<SourceStatus>,
    control: &'a CaptureControl,
    catalog: Arc<Catalog>,
    /// Relations by id that this source captures; `false`: seen, and not captured.
    captured: HashMap<TableId, bool>,
    /// Tables that cannot be captured for what they are.
    refused: HashMap<TableId, Option<Arc<TableSchema>>>,
    /// Captured tables that are not in the publication any more.
    taken_out: HashSet<TableId>,
    /// What is stored of each table as its standing in the publication with the next generation.
    standings: HashMap<TableId, Standing>,
    drift: Drift,
    registry: Registry,
    decoder: PgDecoder,
    /// Transactions in progress.
    spool: Spool,
    /// What is left of the streamed transaction whose commit came.
    replay: Option<Spooled>,
    builder: BlockBuilder,
    /// Bytes of the rows that came since the builder's size was looked at.
    unmeasured_bytes: usize,
    outbox: Outbox,
    recent: RecentChanges,
    set_aside: SetAside,
    /// While there is one, nothing else is handed to the outbox.
    joining: Option<Joining>,
    snapshots: HashMap<TableId, TableProgress>,
    held: Vec<HeldChunk>,
    lost_shapes: Vec<LostShape>,
    /// Tables whose chunks are being read: of the others, changes that a chunk's snapshot saw are forgotten.
    begun: Begun,
    reread: Reread,
    /// Every commit up to here was received and decoded.
    received: Lsn,
    /// The position of the newest whole transaction in the builder.
    committed: Option<SourcePosition>,
    /// Every commit up to here was handed to the outbox; those behind it may be in the builder.
    handed_over: Lsn,
    /// Every commit up to here is in the log when the append under way has succeeded.
    received_at_append: Lsn,
    position_appended: Instant,
    /// The server asks how far it may forget. When it is to stop it waits until that is everything.
    is_asked: bool,
    /// Of a standby.
    timeline: Option<TimelineGuard>,
    /// When the server was last asked where it is, and whether something came since.
    asked: Instant,
    came_since_asked: bool,
}

/// Never returns without an error.
pub(super) async fn run(
    config: &CaptureConfig,
    log: &Arc<dyn Log>,
    status: &Board<SourceStatus>,
    control: &CaptureControl,
    streaming: Streaming,
) -> Result<Infallible, CaptureError> {
    // Every session of this run comes to one server, whichever of the url's it is.
    let config = &CaptureConfig {
        postgres: reach(&config.postgres).await?,
        ..config.clone()
    };
    // First: a server that has no walsender left is left as it is.
    let mut session = Session::connect(&config.postgres).await?;
    let known = captured(log, &config.name)?;
    let prepared = setup::prepare(&config.postgres, &mut session, known.as_ref()).await?;
    let start = SourcePosition::Postgres(prepared.position);
    let identity = prepared.identity.encode();
    let state = log
        .open(&config.name, Some(start.clone()), identity.clone())
        .await?;
    let position = state.position.clone().unwrap_or(start);
    let from = position.lsn().ok_or_else(|| not_ours(&config.name))?;
    let tip = Tip::of(&config.name, &state);
    let mut outbox = Outbox::new(Arc::clone(log), config.spill.clone(), tip);
    if state.identity != identity {
        // The same history, which goes on elsewhere: under a new timeline, say.
        outbox.move_source(Moved {
            identity,
            anew: false,
        });
        outbox.append();
        outbox.appended().await.map_err(CaptureError::from)?;
    }
    let is_standby = prepared.is_standby;
    let timeline = if is_standby {
        TimelineGuard::connect(&config.postgres, &prepared.identity).await?
    } else {
        None
    };
    let spool = Spool::open(&config.spill)?;
    let catalog = Catalog::connect(&config.postgres).await?;
    let mut run = Run {
        config,
        log,
        status,
        control,
        catalog: Arc::new(catalog),
        captured: HashMap::new(),
        refused: HashMap::new(),
        taken_out: HashSet::new(),
        standings: HashMap::new(),
        drift: Drift::default(),
        registry: Registry::new(&state),
        decoder: PgDecoder::new(None, Streaming::Off),
        spool,
        replay: None,
        builder: BlockBuilder::new(),
        unmeasured_bytes: 0,
        outbox,
        recent: RecentChanges::default(),
        set_aside: SetAside::default(),
        joining: None,
        snapshots: HashMap::new(),
        held: Vec::new(),
        lost_shapes: Vec::new(),
        begun: Begun::default(),
        reread: Reread::default(),
        received: from,
        committed: None,
        handed_over: from,
        received_at_append: from,
        position_appended: Instant::now(),
        is_asked: false,
        timeline,
        asked: Instant::now(),
        came_since_asked: true,
    };
    status.update(|s| {
        s.passed = from;
        s.passed_offset = state.next;
    });
    let tasks = run.take_tables(prepared.tables, &state)?;
    let stream = ReplicationStream::start(session, &config.postgres, from, streaming).await?;
    let known = state.position.is_some().then_some(from);
    run.decoder = PgDecoder::new(known, stream.streaming());
    let catalog = Arc::clone(&run.catalog);
    let lost = publication::lost(Arc::clone(&catalog), &config.postgres, prepared.publication);
    let known = status.get().known;
    let refused = run.refused.clone();
    let beating = async {
        match config.heartbeat {
            // Nothing can be written on a standby.
            Some(every) if !is_standby => heartbeat::beat(&catalog, every).await,
            _ => std::future::pending().await,
        }
    };
    // At a standby's new slot everything is over that ran before it was asked for.
    let waits_for_old = !(is_standby && prepared.is_slot_new);
    let (tell, news) = mpsc::channel(1);
    tokio::select! {
        result = run.run(stream, tasks, news, waits_for_old) => result,
        lost = lost => Err(lost.into()),
        failed = beating => Err(failed.into()),
        noticed = drift::noticed(&catalog, known, tell) => Err(noticed?),
        mended = catalog.mended(&refused) => Err(CaptureError::Mended(mended?)),
    }
}

impl Run<'_> {
    async fn run(
        mut self,
        mut stream: ReplicationStream,
        tasks: Vec<TableTask>,
        mut news: mpsc::Receiver<News>,
        waits_for_old: bool,
    ) -> Result<Infallible, CaptureError> {
        let control = self.control;
        let mut requests = control.requests.lock().await;
        let acknowledger = stream.acknowledger();
        let mut changes = self.log.changes();
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // Chunks may start only when the transactions that run now are gone from the server's snapshot.
        let postgres = self.config.postgres.clone();
        // And what is in the log from an earlier run must show again on a standby that has crashed since.
        let from = self.received;
        let mut old_transactions = (!tasks.is_empty()).then(|| {
            Box::pin(async move {
                if waits_for_old {
                    snapshot::old_transactions_gone(&postgres).await?;
                }
                standby::until_replayed(&postgres, from).await
            })
        });
        let postgres = self.config.postgres.clone();
        let mut settling = (!self.drift.is_empty()).then(|| Box::pin(drift::settle(postgres)));
        let mut tasks = Some(tasks);
        let (_idle, mut chunks) = mpsc::channel(1);
        let mut workers = JoinSet::new();
        self.acknowledge(&acknowledger);
        loop {
            if self.outbox.can_append() {
                self.same_timeline().await?;
                self.received_at_append =
                    if self.builder.events() == 0 && !self.builder.in_transaction() {
                        self.received
                    } else {
                        self.handed_over
                    };
                self.outbox.append();
            }
            let full = self.outbox.is_full();
            let room = self.held.len() < HELD_CHUNKS_MAX;
            tokio::select! {
                biased;
                result = self.outbox.appended() => {
                    let progress = result?;
                    self.appended();
                    if self.reread.is_logged(&progress) {
                        return Err(CaptureError::Reread(self.reread.done()));
                    }
                }
                filled = fill(&mut stream, self.replay.is_some() || self.joining.is_some()), if !full => {
                    filled?;
                    self.drain(&mut stream).await?;
                    self.release_chunks().await?;
                    self.read_drifted()?;
                }
                Some(from_worker) = chunks.recv(), if room => {
                    self.take_from_worker(from_worker)?;
                    self.release_chunks().await?;
                }
                gone = async { old_transactions.as_mut().expect("guarded").await }, if old_transactions.is_some() => {
                    gone?;
                    old_transactions = None;
                    let tasks = tasks.take().unwrap_or_default();
                    (chunks, workers) = snapshot::start(&self.config.postgres, &self.config.snapshot, tasks, &self.begun, &self.config.spill);
                }
                high = async { settling.as_mut().expect("guarded").await }, if settling.is_some() => {
                    settling = None;
                    self.drift.settled(high?);
                    self.read_drifted()?;
                }
                Some(ended) = workers.join_next() => {
                    if let Err(panic) = ended
                        && panic.is_panic()
                    {
                        std::panic::resume_unwind(panic.into_panic());
                    }
                }
                Some(request) = requests.recv() => self.requested(request)?,
                Some(news) = news.recv() => self.looked(news)?,
                _ = changes.changed() => self.acknowledge(&acknowledger),
                () = control.nudge.notified() => acknowledger.request_reply(),
                _ = ticks.tick() => {
                    // The end of a backlog: what was gathered for a larger block waits for nothing more.
                    if !self.builder.in_transaction() {
                        self.flush()?;
                    }
                    self.tick(&acknowledger).await?;
                }
            }
        }
    }

    /// Puts an event that is no row into the open transaction, or into one of its own.
    fn event(&mut self, transaction: &str, kind: pb::marker::Kind) {
        if self.builder.in_transaction() {
            self.builder.marker(kind);
        } else {
            self.builder
                .begin(transaction.into(), snapshot::micros_since_epoch());
            self.builder.marker(kind);
            self.builder.commit_unplaced();
        }
    }

    /// Hands over the whole transactions that were built.
    fn flush(&mut self) -> Result<(), CaptureError> {
        debug_assert!(!self.builder.in_transaction());
        if self.joining.is_some() {
            // What was built since follows it.
            return Ok(());
        }
        let block = self.cut()?;
        self.handed_over = self.received;
        let position = self.committed.take();
        Ok(self.outbox.commit(block, position)?)
    }

    /// The same, unless a transaction is open: then its end does.
    fn flush_between(&mut self) -> Result<(), CaptureError> {
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

    fn cut(&mut self) -> Result<Option<downriver_event::EncodedBlock>, CaptureError> {
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

    fn status_events(&self, events: u64) {
        self.status.update(|s| s.events += events);
    }

    fn appended(&mut self) {
        let (passed, offset) = (self.received_at_append, self.outbox.tip().next);
        self.position_appended = Instant::now();
        self.came_since_asked = true;
        self.status.update(|s| {
            s.problem = None;
            s.passed = s.passed.max(passed);
            s.passed_offset = offset;
        });
    }

    fn acknowledge(&self, acknowledger: &Acknowledger) {
        let state = self.log.state(&self.config.name);
        let sealed = state.and_then(|state| state.sealed_position.as_ref()?.lsn());
        if let Some(sealed) = sealed {
            acknowledger.acknowledge(sealed);
            self.status
                .update(|s| s.acknowledged = s.acknowledged.max(sealed));
        }
        acknowledger.received(self.received);
    }

    /// Before something behind the fork is stored under the history that a promoted standby has left.
    async fn same_timeline(&mut self) -> Result<(), CaptureError> {
        match &mut self.timeline {
            None => Ok(()),
            Some(timeline) => match timeline.holds().await? {
                true => Ok(()),
                false => Err(CaptureError::Promoted),
            },
        }
    }

    async fn tick(&mut self, acknowledger: &Acknowledger) -> Result<(), CaptureError> {
        let waiting = !self.held.is_empty() || !self.lost_shapes.is_empty();
        if waiting || self.drift.waits_for_stream() {
            acknowledger.request_reply();
        }
        let idle =
            self.outbox.is_idle() && self.builder.events() == 0 && !self.decoder.in_transaction();
        if !idle {
            self.came_since_asked = true;
            return Ok(());
        }
        // The last commit is not the end of what the server has written: it says so when it is asked.
        if self.came_since_asked && self.asked.elapsed() >= ASK_EVERY {
            self.asked = Instant::now();
            self.came_since_asked = false;
            acknowledger.request_reply();
        }
        let (passed, offset) = (self.received, self.outbox.tip().next);
        self.status.update(|s| {
            s.passed = s.passed.max(passed);
            s.passed_offset = offset;
        });
        let position = SourcePosition::Postgres(self.received);
        let stored = self
            .outbox
            .tip()
            .position
            .as_ref()
            .is_some_and(|stored| stored.covers(&position));
        let is_asked = std::mem::take(&mut self.is_asked);
        if is_asked {
            self.log.seal_soon(&self.config.name);
        }
        if !stored && (is_asked || self.position_appended.elapsed() >= POSITION_APPEND_EVERY) {
            self.same_timeline().await?;
            self.received_at_append = self.received;
            self.outbox.append_position(position);
        }
        Ok(())
    }
}

/// Returns when there is something to decode. May be dropped at any time.
async fn fill(stream: &mut ReplicationStream, replaying: bool) -> Result<(), SourceError> {
    if replaying {
        // Once round: what else is due comes first.
        tokio::task::yield_now().await;
        return Ok(());
    }
    stream.fill().await
}
