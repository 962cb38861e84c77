//! One run of a capture of PostgreSQL: connect, take up the stream where the log stands, and loop until something fails.

mod decode;
mod drift;
mod names;
pub(super) mod repair;
mod settled;
mod spool;
mod tables;
pub(super) mod watch;

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use downriver_decode::postgres::decoder::{PgDecoder, Streaming};
use downriver_event::planted::Bug;
use downriver_event::{Lsn, SourcePosition, TableId, TableSchema};
use downriver_log::{Log, Moved, StreamState};
use downriver_source::SourceError;
use downriver_source::postgres::catalog::{Catalog, SourceTable};
use downriver_source::postgres::config::PostgresConfig;
use downriver_source::postgres::identity::Identity;
use downriver_source::postgres::replication::{Acknowledger, ReplicationStream, Session};
use downriver_source::postgres::setup::Captured;
use downriver_source::postgres::snapshot::SnapshotSession;
use downriver_source::postgres::standby::{self, TimelineGuard};
use downriver_source::postgres::{heartbeat, publication, reach, setup};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use super::intake::Intake;
use super::outbox::{Outbox, Tip};
use super::progress::{Resume, Standing};
use super::request::CaptureControl;
use super::snapshot::{self, LostShape, TableTask};
use super::{CaptureConfig, CaptureError, claim, not_ours};
use crate::status::{Board, SourceStatus};
use drift::{Drift, News};
use spool::{Spool, Spooled};

/// How often an idle source's position is stored.
const POSITION_APPEND_EVERY: Duration = Duration::from_secs(10);
/// How often a source that has just become idle is asked where it is.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// How often held chunks ask the server where it is.
const TICK: Duration = Duration::from_millis(50);

/// How much WAL the server may keep for the slot.
#[derive(Clone, Copy, Debug, Default)]
pub struct WalBehind {
    /// A warning above it; `None`: no limit.
    pub max_bytes: Option<u64>,
    /// Above it the slot is given up as well, which makes a hole.
    pub drop_slot: bool,
}

/// A database of PostgreSQL, and how it is captured.
#[derive(Clone, Debug)]
pub struct PostgresSource {
    pub connection: PostgresConfig,
    pub wal_behind: WalBehind,
    /// How often a message is written into the database's WAL; `None`: never.
    pub heartbeat: Option<Duration>,
}

struct Run<'a> {
    intake: Intake<'a>,
    postgres: &'a PostgresConfig,
    catalog: Arc<Catalog>,
    /// Tables that cannot be captured for what they are.
    refused: HashMap<TableId, Option<Arc<TableSchema>>>,
    drift: Drift,
    decoder: PgDecoder,
    /// Transactions in progress.
    spool: Spool,
    /// What is left of the streamed transaction whose commit came.
    replay: Option<Spooled>,
    lost_shapes: Vec<LostShape<SourceTable>>,
    /// The server asks how far it may forget. When it is to stop it waits until that is everything.
    is_asked: bool,
    /// Of a standby.
    timeline: Option<TimelineGuard>,
    /// When the server was last asked where it is, and whether something came since.
    asked: Instant,
    came_since_asked: bool,
}

/// What the log has of a source; `None`: nothing yet.
fn captured(source: &str, state: Option<&StreamState>) -> Result<Option<Captured>, CaptureError> {
    let Some((state, position)) = state.and_then(|state| Some((state, state.position.as_ref()?)))
    else {
        return Ok(None);
    };
    let known = position.lsn().zip(Identity::decode(&state.identity));
    let (position, identity) = known.ok_or_else(|| not_ours(source))?;
    let tables = state.chunks.iter().filter_map(|(table, chunks)| {
        match Resume::decode(chunks.resume_after.clone())?.standing {
            Standing::Unknown => Some((*table, None)),
            Standing::Published(outline) => Some((*table, Some(outline))),
            Standing::Lapsed => None,
        }
    });
    Ok(Some(Captured {
        position,
        identity,
        tables: tables.collect(),
    }))
}

/// Never returns without an error.
pub(super) async fn run(
    config: &CaptureConfig,
    source: &PostgresSource,
    log: &Arc<dyn Log>,
    status: &Board<SourceStatus>,
    control: &CaptureControl,
    streaming: Streaming,
) -> Result<Infallible, CaptureError> {
    // Every session of this run comes to one server, whichever of the url's it is.
    let postgres = &reach(&source.connection).await?;
    // First: a server that has no walsender left is left as it is.
    let mut session = Session::connect(postgres).await?;
    let claimed = claim(log, &config.name).await?;
    let known = captured(&config.name, claimed.as_ref())?;
    let prepared = setup::prepare(postgres, &mut session, known.as_ref()).await?;
    let start = SourcePosition::Postgres(prepared.position);
    let identity = prepared.identity.encode();
    let state = match claimed {
        Some(state) => state,
        None => {
            let start = Some(start.clone());
            log.open(&config.name, start, identity.clone()).await?
        }
    };
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
        TimelineGuard::connect(postgres, &prepared.identity).await?
    } else {
        None
    };
    let spool = Spool::open(&config.spill)?;
    let catalog = Catalog::connect(postgres).await?;
    let mut run = Run {
        intake: Intake::new(config, log, status, control, &state, outbox, position),
        postgres,
        catalog: Arc::new(catalog),
        refused: HashMap::new(),
        drift: Drift::default(),
        decoder: PgDecoder::new(None, Streaming::Off),
        spool,
        replay: None,
        lost_shapes: Vec::new(),
        is_asked: false,
        timeline,
        asked: Instant::now(),
        came_since_asked: true,
    };
    if control.has_refused() {
        let now = run.catalog.current_position().await?;
        run.intake.spoiled_before = Some(SourcePosition::Postgres(now));
    }
    let tasks = run.take_tables(prepared.tables, &state)?;
    let stream = ReplicationStream::start(session, postgres, from, streaming).await?;
    let known = state.position.is_some().then_some(from);
    run.decoder = PgDecoder::new(known, stream.streaming());
    let catalog = Arc::clone(&run.catalog);
    let lost = publication::lost(Arc::clone(&catalog), postgres, prepared.publication);
    let known = status.get().known;
    let refused = run.refused.clone();
    let beating = async {
        match source.heartbeat {
            // Nothing can be written on a standby.
            Some(every) if !is_standby => heartbeat::beat(&catalog, every).await,
            _ => std::future::pending().await,
        }
    };
    // At a standby's new slot everything is over that ran before it was asked for.
    let waits_for_old = !(is_standby && prepared.is_slot_new);
    let (tell, news) = mpsc::channel(1);
    tokio::select! {
        result = run.run(stream, tasks, from, news, waits_for_old) => result,
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
        from: Lsn,
        mut news: mpsc::Receiver<News>,
        waits_for_old: bool,
    ) -> Result<Infallible, CaptureError> {
        let control = self.intake.control;
        let mut requests = control.requests.lock().await;
        let acknowledger = stream.acknowledger();
        let mut changes = self.intake.log.changes();
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // Chunks may start only when the transactions that run now are gone from the server's snapshot.
        let postgres = self.postgres.clone();
        // And what is in the log from an earlier run must show again on a standby that has crashed since.
        let mut old_transactions = (!tasks.is_empty()).then(|| {
            Box::pin(async move {
                if waits_for_old {
                    settled::old_transactions_gone(&postgres).await?;
                }
                standby::until_replayed(&postgres, from).await
            })
        });
        let postgres = self.postgres.clone();
        let mut settling = (!self.drift.is_empty()).then(|| Box::pin(settled::settle(postgres)));
        let mut tasks = Some(tasks);
        let (_idle, mut chunks) = mpsc::channel(1);
        let mut workers = JoinSet::new();
        self.acknowledge(&acknowledger);
        loop {
            if self.intake.outbox.can_append() {
                self.same_timeline().await?;
                self.intake.append();
            }
            let full = self.intake.outbox.is_full();
            let room = self.intake.has_room();
            let takes_requests = self.intake.takes_requests();
            let is_replaying = self.replay.is_some() || self.intake.is_joining();
            tokio::select! {
                biased;
                result = self.intake.outbox.appended() => {
                    self.intake.appended(&result?)?;
                    self.came_since_asked = true;
                }
                filled = fill(&mut stream, is_replaying), if !full => {
                    filled?;
                    self.drain(&mut stream).await?;
                    self.release_chunks().await?;
                    self.read_drifted()?;
                }
                Some(from_worker) = chunks.recv(), if room => {
                    let lost = self.intake.take_from_worker(from_worker)?;
                    self.lost_shapes.extend(lost);
                    self.release_chunks().await?;
                }
                gone = async { old_transactions.as_mut().expect("guarded").await }, if old_transactions.is_some() => {
                    gone?;
                    old_transactions = None;
                    let tasks = tasks.take().unwrap_or_default();
                    (chunks, workers) = {
                        let Intake { config, begun, .. } = &self.intake;
                        snapshot::start::<SnapshotSession>(self.postgres, &config.snapshot, tasks, begun, &config.spill)
                    };
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
                Some(request) = requests.recv(), if takes_requests => {
                    let drift = &self.drift;
                    self.intake.requested(request, |table| drift.has(table))?;
                }
                Some(news) = news.recv() => self.looked(news)?,
                _ = changes.changed() => self.acknowledge(&acknowledger),
                () = control.nudge.notified() => acknowledger.request_reply(),
                _ = ticks.tick() => {
                    // The end of a backlog: what was gathered for a larger block waits for nothing more.
                    if !self.intake.builder.in_transaction() {
                        self.intake.flush()?;
                    }
                    self.tick(&acknowledger).await?;
                }
            }
        }
    }

    /// Lets the chunks that the stream has passed join it, and tells workers the shapes that it has come to.
    async fn release_chunks(&mut self) -> Result<(), CaptureError> {
        if !self.intake.takes_chunks() {
            return Ok(());
        }
        let received = self.intake.received.clone();
        let lost = self
            .lost_shapes
            .extract_if(.., |lost| received.covers(&lost.reshaped.high));
        for lost in lost.collect::<Vec<_>>() {
            self.find_shape(lost).await?;
        }
        self.intake.release_chunks()
    }

    fn acknowledge(&self, acknowledger: &Acknowledger) {
        let state = self.intake.log.state(&self.intake.config.name);
        let sealed = match Bug::AcknowledgesReceived.is_planted() {
            true => Some(self.intake.received.clone()),
            false => state.and_then(|state| state.sealed_position.clone()),
        };
        if let Some(sealed) = sealed {
            if let Some(lsn) = sealed.lsn() {
                acknowledger.acknowledge(lsn);
            }
            self.intake.status.update(|s| s.acknowledged = Some(sealed));
        }
        if let Some(received) = self.intake.received.lsn() {
            acknowledger.received(received);
        }
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
        let holds = self.intake.holds_chunks() || !self.lost_shapes.is_empty();
        if holds || self.drift.waits_for_stream() || !self.intake.takes_requests() {
            acknowledger.request_reply();
        }
        if !self.intake.is_idle() || self.decoder.in_transaction() {
            self.came_since_asked = true;
            return Ok(());
        }
        // The last commit is not the end of what the server has written: it says so when it is asked.
        if self.came_since_asked && self.asked.elapsed() >= ASK_EVERY {
            self.asked = Instant::now();
            self.came_since_asked = false;
            acknowledger.request_reply();
        }
        self.intake.tell_passed(self.intake.received.clone());
        let is_asked = std::mem::take(&mut self.is_asked);
        if is_asked {
            self.intake.log.seal_soon(&self.intake.config.name);
        }
        let is_due = is_asked || self.intake.position_appended.elapsed() >= POSITION_APPEND_EVERY;
        if is_due && !self.intake.is_stored() {
            self.same_timeline().await?;
            self.intake.append_position();
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
