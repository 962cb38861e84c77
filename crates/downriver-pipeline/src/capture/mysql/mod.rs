//! One run of a capture of MySQL or MariaDB: connect, take up the binlog where the log stands, and loop until something
//! fails.
//!
//! The binlog itself says what becomes of tables: a statement that changes one comes between its rows. So nothing but
//! the binlog is followed, and the catalog is asked only where it says too little.

mod decode;
mod numbers;
pub(super) mod repair;
mod statements;
mod tables;

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use downriver_decode::mysql::decoder::BinlogDecoder;
use downriver_event::SourcePosition;
use downriver_log::{Log, Moved};
use downriver_source::SourceError;
use downriver_source::mysql::catalog::{Catalog, SourceTable};
use downriver_source::mysql::config::MysqlConfig;
use downriver_source::mysql::dump::BinlogStream;
use downriver_source::mysql::identity::Identity;
use downriver_source::mysql::setup::{self, Captured};
use downriver_source::mysql::snapshot::SnapshotSession;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use super::intake::Intake;
use super::outbox::{Outbox, Tip};
use super::request::CaptureControl;
use super::snapshot::{self, LostShape, TableTask};
use super::{CaptureConfig, CaptureError, clear, not_ours};
use crate::status::{Board, SourceStatus};

/// How often the position of a source without events is stored.
const POSITION_APPEND_EVERY: Duration = Duration::from_secs(10);
/// How long what was decoded may wait for more.
const TICK: Duration = Duration::from_millis(50);

/// A server of MySQL or MariaDB, and how it is captured.
#[derive(Clone, Debug)]
pub struct MysqlSource {
    pub connection: MysqlConfig,
}

struct Run<'a> {
    intake: Intake<'a>,
    connection: &'a MysqlConfig,
    catalog: Catalog,
    /// Character sets by the numbers of their collations.
    charsets: HashMap<u64, String>,
    /// Tables are called in lower case, however a statement writes it.
    folds_names: bool,
    decoder: BinlogDecoder,
    /// A transaction that belongs into the log has ended since the last one was handed over.
    has_committed: bool,
    /// Tables, by database and name, that cannot be captured for what they are.
    refused: HashSet<(String, String)>,
    lost_shapes: Vec<LostShape<SourceTable>>,
}

/// What the log has of a source; `None`: nothing yet.
fn captured(log: &Arc<dyn Log>, source: &str) -> Result<Option<Captured>, CaptureError> {
    let Some(state) = log.state(source) else {
        return Ok(None);
    };
    let Some(position) = state.position.clone() else {
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
    let connection = &source.connection;
    let known = captured(log, &config.name)?;
    let prepared = setup::prepare(connection, known.as_ref()).await?;
    let start = prepared.position;
    let identity: Bytes = prepared.identity.encode();
    let state = log
        .open(&config.name, Some(start.clone()), identity.clone())
        .await?;
    let from = state.position.clone().unwrap_or(start);
    let tip = Tip::of(&config.name, &state);
    let mut outbox = Outbox::new(Arc::clone(log), config.spill.clone(), tip);
    if state.identity != identity {
        // The same history, on another server.
        outbox.move_source(Moved {
            identity,
            anew: false,
        });
        outbox.append();
        outbox.appended().await.map_err(CaptureError::from)?;
    }
    clear(&config.spill)?;
    let decoder = decode::decoder_from(&from).ok_or_else(|| not_ours(&config.name))?;
    let mut run = Run {
        intake: Intake::new(config, log, status, control, &state, outbox, from.clone()),
        connection,
        catalog: Catalog::connect(connection).await?,
        charsets: prepared.charsets,
        folds_names: prepared.folds_names,
        decoder,
        has_committed: false,
        refused: HashSet::new(),
        lost_shapes: Vec::new(),
    };
    let tasks = run.take_tables(prepared.tables, &state)?;
    let stream = BinlogStream::start(connection, &from).await?;
    run.run(stream, tasks, from).await
}

impl Run<'_> {
    async fn run(
        mut self,
        mut stream: BinlogStream,
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
            let is_joining = self.intake.is_joining();
            tokio::select! {
                biased;
                result = self.intake.outbox.appended() => self.intake.appended(&result?)?,
                filled = fill(&mut stream, is_joining), if !full => {
                    filled?;
                    self.drain(&mut stream).await?;
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
                Some(request) = requests.recv() => self.intake.requested(request, |_| false)?,
                _ = changes.changed() => self.sealed(),
                _ = ticks.tick() => self.tick()?,
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

    fn tick(&mut self) -> Result<(), CaptureError> {
        if !self.decoder.in_transaction() {
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
        Ok(())
    }
}

/// Returns when there is something to decode. May be dropped at any time.
async fn fill(stream: &mut BinlogStream, is_joining: bool) -> Result<(), SourceError> {
    if is_joining {
        // Once round: what else is due comes first.
        tokio::task::yield_now().await;
        return Ok(());
    }
    stream.fill().await
}
