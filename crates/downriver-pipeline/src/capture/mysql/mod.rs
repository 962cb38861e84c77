//! One run of a capture of MySQL or MariaDB: connect, take up the binlog where the log stands, and loop until something
//! fails.
//!
//! The binlog itself says what becomes of tables: a statement that changes one comes between its rows. So nothing but
//! the binlog is followed, and the catalog is asked only where it says too little.

mod ahead;
mod covers;
mod debts;
mod decode;
mod defaults;
mod held;
mod history;
mod newcomers;
mod numbers;
pub(super) mod repair;
mod statements;
mod tables;
mod unseen;
pub(super) mod watch;

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use downriver_decode::mysql::decoder::BinlogDecoder;
use downriver_event::{SourcePosition, TableId};
use downriver_log::{Log, Moved, StreamState};
use downriver_source::SourceError;
use downriver_source::mysql::begin::Begin;
use downriver_source::mysql::catalog::{Catalog, SourceTable};
use downriver_source::mysql::config::MysqlConfig;
use downriver_source::mysql::dump::BinlogStream;
use downriver_source::mysql::identity::Identity;
use downriver_source::mysql::setup::{self, Captured};
use downriver_source::mysql::snapshot::SnapshotSession;
use tokio::sync::{MutexGuard, mpsc};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use super::intake::Intake;
use super::outbox::{Outbox, Tip};
use super::request::CaptureControl;
use super::snapshot::{self, LostShape, TableTask};
use super::{CaptureConfig, CaptureError, claim, clear, not_ours};
use crate::status::{Board, SourceStatus};
use ahead::Binlog;
use debts::Debts;
use decode::Replay;
use history::Unsettled;
pub(super) use unseen::Lasting;
use unseen::{Beyond, Statements};

/// How often the position of a source without events is stored.
const POSITION_APPEND_EVERY: Duration = Duration::from_secs(10);
/// How often it is looked whether the server has what was read, while nothing comes.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How long what was decoded may wait for more.
const TICK: Duration = Duration::from_millis(50);

/// A server of MySQL or MariaDB, and how it is captured.
#[derive(Clone, Debug)]
pub struct MysqlSource {
    pub connection: MysqlConfig,
    /// Where it begins; `None`: where the server is then.
    pub begin: Option<Begin>,
    /// How long the server is to keep what is not captured yet at least, else it is said.
    pub binlog_warn: Option<Duration>,
}

struct Run<'a> {
    intake: Intake<'a>,
    connection: &'a MysqlConfig,
    identity: Identity,
    catalog: Catalog,
    /// Character sets by the numbers of their collations.
    charsets: HashMap<u64, String>,
    /// Tables are called in lower case, however a statement writes it.
    folds_names: bool,
    decoder: BinlogDecoder,
    /// A transaction that belongs into the log has ended since the last one was handed over.
    has_committed: bool,
    debts: Debts,
    lasting: MutexGuard<'a, Lasting>,
    /// Of the transaction that is open.
    statements: Statements,
    beyond: Beyond,
    replay: Option<Replay>,
    /// Tables, by database and name, that the server had when the capture began.
    had_at_first: HashSet<(String, String)>,
    /// What was told of when the newest transaction was committed.
    told_newest_us: Option<i64>,
    /// Transactions are known by their places; the file in which it was looked whether they have to be.
    by_place_in: Option<String>,
    /// Tables, by database and name, that cannot be captured for what they are.
    refused: HashSet<(String, String)>,
    lost_shapes: Vec<LostShape<SourceTable>>,
    /// The binlog names the columns of its rows; where it does not, see `history`.
    names_columns: bool,
    /// Tables that a statement may have changed, and that had no row since.
    unsure: HashSet<TableId>,
    /// When it was looked last whether the server has what was read.
    looked: Instant,
    /// Until when the shapes of those are not asked for.
    not_foretold_until: Option<Instant>,
    /// What is decoded is in a compressed transaction, which is one place in the binlog: what follows lies behind it.
    is_in_payload: bool,
    /// Tables whose rows are passed over until they are read again, by the next run.
    passed_over: HashSet<TableId>,
    /// By database and name.
    unsettled: HashMap<(String, String), Unsettled>,
}

/// What the log has of a source; `None`: nothing yet.
fn captured(source: &str, state: Option<&StreamState>) -> Result<Option<Captured>, CaptureError> {
    let Some((state, position)) = state.and_then(|state| Some((state, state.position.clone()?)))
    else {
        return Ok(None);
    };
    let identity = Identity::decode(&state.identity);
    let identity = identity.ok_or_else(|| not_ours(source))?;
    Ok(Some(Captured { position, identity }))
}

/// Never returns without an error.
pub(super) async fn run(
    config: &CaptureConfig,
    source: &MysqlSource,
    log: &Arc<dyn Log>,
    status: &Board<SourceStatus>,
    control: &CaptureControl,
) -> Result<Infallible, CaptureError> {
    let claimed = claim(log, &config.name).await?;
    let known = captured(&config.name, claimed.as_ref())?;
    let prepared =
        setup::prepare(&source.connection, known.as_ref(), source.begin.as_ref()).await?;
    let mut connection = MysqlConfig {
        by_place: prepared.by_place,
        ..source.connection.clone()
    };
    if prepared.folds_names {
        connection = connection.in_lower_case();
    }
    let connection = &connection;
    let start = prepared.position;
    let identity: Bytes = prepared.identity.encode();
    // In the form that the server goes by now.
    let (state, from) = match claimed {
        Some(state) => (state, start),
        None => {
            let begin = Some(start.clone());
            let state = log.open(&config.name, begin, identity.clone()).await?;
            let from = state.position.clone().unwrap_or(start);
            (state, from)
        }
    };
    let from = match prepared.by_place {
        true => from,
        false => decode::unplaced(from),
    };
    let tip = Tip::of(&config.name, &state);
    let mut outbox = Outbox::new(Arc::clone(log), config.spill.clone(), tip);
    if state.identity != identity {
        // The same history, on another server: the place is none of its binlog.
        outbox.move_source(Moved {
            identity,
            anew: false,
        });
        if !prepared.by_place {
            outbox.commit(None, Some(from.clone()))?;
        }
        outbox.append();
        outbox.appended().await.map_err(CaptureError::from)?;
    }
    clear(&config.spill)?;
    let debts = Debts::of(&state)?;
    let mut lasting = control.mysql.lock().await;
    lasting.begin_run(&config.spill, &debts)?;
    let decoder =
        decode::decoder_from(&from, prepared.by_place).ok_or_else(|| not_ours(&config.name))?;
    let mut run = Run {
        intake: Intake::new(config, log, status, control, &state, outbox, from.clone()),
        connection,
        identity: prepared.identity,
        catalog: Catalog::connect(connection).await?,
        charsets: prepared.charsets,
        folds_names: prepared.folds_names,
        decoder,
        has_committed: false,
        debts,
        lasting,
        statements: Statements::default(),
        beyond: Beyond::default(),
        replay: None,
        had_at_first: HashSet::new(),
        told_newest_us: None,
        by_place_in: by_place_in(&from, prepared.by_place),
        refused: HashSet::new(),
        lost_shapes: Vec::new(),
        names_columns: prepared.names_columns,
        unsure: HashSet::new(),
        looked: Instant::now(),
        not_foretold_until: None,
        is_in_payload: false,
        passed_over: HashSet::new(),
        unsettled: HashMap::new(),
    };
    let mut binlog = Binlog::new(BinlogStream::start(connection, &from).await?);
    if control.has_refused() {
        run.intake.spoiled_before = Some(run.catalog.position().await?);
    }
    let tables = run
        .settle_at_start(prepared.tables, &state, &mut binlog)
        .await?;
    let tasks = run.take_tables(tables, &state)?;
    run.look_beyond().await?;
    run.run(binlog, tasks, from).await
}

impl Run<'_> {
    async fn run(
        mut self,
        mut binlog: Binlog,
        tasks: Vec<TableTask>,
        from: SourcePosition,
    ) -> Result<Infallible, CaptureError> {
        let control = self.intake.control;
        let mut requests = control.requests.lock().await;
        let mut changes = self.intake.log.changes();
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // What is in the log from an earlier run is to be visible to every chunk.
        let connection = self.connection.clone();
        let mut visible = (!tasks.is_empty())
            .then(|| Box::pin(async move { setup::until_visible(&connection, &from).await }));
        let mut tasks = Some(tasks);
        let (_idle, mut chunks) = mpsc::channel(1);
        let mut workers = JoinSet::new();
        self.sealed();
        loop {
            if self.intake.outbox.can_append() {
                self.intake.append();
            }
            let full = self.intake.outbox.is_full();
            let room = self.intake.has_room();
            let takes_requests = self.intake.takes_requests() && !self.decoder.in_transaction();
            let is_busy = self.intake.is_joining() || self.replay.is_some();
            tokio::select! {
                biased;
                result = self.intake.outbox.appended() => {
                    self.intake.appended(&result?)?;
                    self.lasting.held.stored(self.intake.outbox.tip().position.as_ref());
                }
                filled = fill(&mut binlog, is_busy), if !full => {
                    filled?;
                    self.drain(&mut binlog).await?;
                    self.settle_passed().await?;
                    self.release_chunks()?;
                }
                Some(from_worker) = chunks.recv(), if room => {
                    let lost = self.intake.take_from_worker(from_worker)?;
                    self.lost_shapes.extend(lost);
                    self.release_chunks()?;
                }
                gone = async { visible.as_mut().expect("guarded").await }, if visible.is_some() => {
                    gone?;
                    visible = None;
                    let tasks = tasks.take().unwrap_or_default();
                    (chunks, workers) = {
                        let Intake { config, begun, .. } = &self.intake;
                        snapshot::start::<SnapshotSession>(self.connection, &config.snapshot, tasks, begun, &config.spill)
                    };
                }
                Some(ended) = workers.join_next() => {
                    if let Err(panic) = ended
                        && panic.is_panic()
                    {
                        std::panic::resume_unwind(panic.into_panic());
                    }
                }
                // What is asked for is stored with a position, and there is none inside a transaction.
                Some(request) = requests.recv(), if takes_requests => {
                    self.flush()?;
                    let (debts, passed_over) = (&self.debts, &self.passed_over);
                    let lacks = |table| debts.is_due(table) || passed_over.contains(&table);
                    self.intake.requested(request, lacks)?;
                }
                _ = changes.changed() => self.sealed(),
                _ = ticks.tick() => self.tick().await?,
            }
        }
    }

    /// A binlog is not told what may be forgotten: this is for those who look.
    fn sealed(&self) {
        let state = self.intake.log.state(&self.intake.config.name);
        if let Some(sealed) = state.and_then(|state| state.sealed_position.clone()) {
            self.intake.status.update(|s| s.acknowledged = Some(sealed));
        }
    }

    async fn tick(&mut self) -> Result<(), CaptureError> {
        if !self.decoder.in_transaction() {
            self.pay_debts()?;
            self.flush()?;
        }
        if !self.intake.is_idle() || self.decoder.in_transaction() {
            return Ok(());
        }
        self.intake.tell_passed(self.intake.received.clone());
        let is_due = self.intake.position_appended.elapsed() >= POSITION_APPEND_EVERY;
        if is_due && !self.intake.is_stored() {
            self.intake.append_position();
        }
        self.look_for_identifiers().await?;
        self.look_for_beginning().await
    }

    /// A server whose binlog is begun anew while it is followed says nothing of it, and sends nothing more.
    async fn look_for_beginning(&mut self) -> Result<(), CaptureError> {
        if self.looked.elapsed() < LOOK_EVERY {
            return Ok(());
        }
        self.looked = Instant::now();
        let end = self.catalog.position().await?;
        match self.intake.received.place().zip(end.place()) {
            Some((ours, end)) if ours.covers(end) && ours != end => {
                Err(setup::ends_before(self.catalog.server(), &self.identity, ours, end).into())
            }
            _ => Ok(()),
        }
    }

    /// With another `gtid_mode` the server begins another file. What is stored is to lie in it: so it is told by what it
    /// has where to go on by identifiers.
    async fn look_for_identifiers(&mut self) -> Result<(), CaptureError> {
        let now = self.intake.received.place().map(|place| &place.file);
        if self.by_place_in.is_none() || self.by_place_in.as_ref() == now {
            return Ok(());
        }
        if !self.intake.is_stored() {
            return Ok(());
        }
        self.by_place_in = now.cloned();
        match self.catalog.gives_identifiers().await? {
            true => Err(CaptureError::Identified),
            false => Ok(()),
        }
    }
}

fn by_place_in(from: &SourcePosition, by_place: bool) -> Option<String> {
    let place = from.place().filter(|_| by_place);
    place.map(|place| place.file.clone())
}

/// Returns when there is something to decode. May be dropped at any time.
async fn fill(binlog: &mut Binlog, is_busy: bool) -> Result<(), SourceError> {
    if is_busy {
        // Once round: what else is due comes first.
        tokio::task::yield_now().await;
        return Ok(());
    }
    binlog.fill().await
}
