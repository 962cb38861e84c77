//! Captures one source into its stream.
//!
//! ```text
//!                           in progress: spool
//!                                         ▲ ▼ at its commit
//!             ┌──────── fill ── pop ── decode ─> builder ── cut ─> outbox ─> log
//!     database│                                    ▲                          │
//!             │  snapshot workers ── held chunk ───┘ once the stream passed   │
//!             └──────────────────────── acknowledge <───── sealed position ───┘
//! ```
//!
//! `intake` is what all databases have in common from the decoder to the outbox; each has its own event loop and its own
//! rules for what becomes of a table: `postgres`, `mysql`.
//!
//! `run` connects, decides what is to be read, and keeps the event loop going; a transient failure starts it
//! again from the log's position, so nothing that was in flight needs to be saved. A failure that will
//! not go away stops the source with its problem.

mod chunks;
mod intake;
pub(crate) mod merge;
mod mysql;
mod outbox;
mod outgrown;
mod passed;
mod postgres;
mod progress;
mod registry;
mod repair;
mod request;
mod shelf;
mod snapshot;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use downriver_decode::postgres::decoder::Streaming;
use downriver_event::problem::Problem;
use downriver_event::{Epoch, TableId};
use downriver_log::{AppendError, ChunkState, Log, LogError, StoreError, StreamState};
use downriver_source::SourceError;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

pub use chunks::{EncodedChunk, Helper, Helpers, NoHelpers, WantedChunk, help};
pub use mysql::MysqlSource;
pub use passed::passed;
pub use postgres::{PostgresSource, WalBehind};
pub use request::{CaptureControl, NotRequested, Requested, Wanted, needs_whole};

use crate::retry::Backoff;
use crate::status::{Board, SourceStatus, TableState};
use outbox::OutboxError;
use progress::{Resume, Standing};
use repair::Repairs;

#[derive(Clone, Debug)]
pub struct SnapshotConfig {
    /// False: capture starts with the stream.
    pub initial: bool,
    pub chunk_rows: u64,
    pub max_workers: usize,
    /// 0: no limit.
    pub rows_per_second: u64,
    /// Who else reads chunks.
    pub helpers: Arc<dyn Helpers>,
}

/// Whose changes are captured.
#[derive(Clone, Debug)]
pub enum Database {
    Postgres(Box<PostgresSource>),
    Mysql(Box<MysqlSource>),
}

#[derive(Clone, Debug)]
pub struct CaptureConfig {
    /// The source's name, and its stream's.
    pub name: String,
    pub database: Database,
    pub snapshot: SnapshotConfig,
    /// A hole is repaired as soon as it is found, and not when somebody asks for it.
    pub repairs_holes: bool,
    /// Where transactions in progress, and those larger than memory, are written.
    pub spill: PathBuf,
}

/// Why a capture ended.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error("another owner has epoch {0}")]
    Fenced(Epoch),
    #[error("the log did not take an append")]
    Log(#[from] LogError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("cannot use the spill folder {folder:?}")]
    Spill {
        folder: PathBuf,
        source: std::io::Error,
    },
    /// The stream moved under us; starting again from its position is the cure.
    #[error("the stream is at offset {0}: starting again from there")]
    Behind(u64),
    #[error("table {0} was made since the capture began: starting again to take it in")]
    NewTable(String),
    #[error("table {0} can be captured now: starting again to take it in")]
    Mended(String),
    #[error("a value of a table cannot be logged: starting again without the table")]
    Spoiled(TableId, Problem),
    #[error(
        "a row came into the filter of table {1} without all of its values: starting again to read it"
    )]
    Lacking(TableId, String),
    #[error(
        "{0}, or what is published of it, is not what it was: starting again to see whether it is to be read again"
    )]
    Drifted(String),
    #[error("{0} to be read again: starting with the snapshot")]
    Reread(String),
    #[error("the shape of table {0} changed during its snapshot: reading its last chunk again")]
    SchemaMoved(String),
    #[error(
        "transaction {0} has a message that may have been rolled back: starting again without streaming"
    )]
    Uncertain(u32),
    #[error(
        "the standby was promoted, or follows a server that was: starting again on its new timeline"
    )]
    Promoted,
    #[error("every transaction has an identifier now: starting again to go by them")]
    Identified,
    #[error("more WAL is kept for the slot than the source may have kept")]
    OverBudget,
    #[error("stopped: {}", .0.reason)]
    Problem(Problem),
}

/// Whether the source does not bring a table any more: it is gone, not selected, or refused.
pub(crate) fn is_left(chunks: &ChunkState) -> bool {
    let resume = Resume::decode(chunks.resume_after.clone());
    chunks.done && resume.is_some_and(|resume| resume.standing == Standing::Lapsed)
}

/// Takes a capture's spill folder and removes what is in it: files of a killed process, or segments of an append of an
/// older epoch, which the log refuses.
fn clear(folder: &Path) -> Result<(), CaptureError> {
    let clear = || -> std::io::Result<()> {
        std::fs::create_dir_all(folder)?;
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            // Folders belong to who made them.
            if !entry.file_type()?.is_dir() {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    };
    clear().map_err(|source| CaptureError::Spill {
        folder: folder.to_owned(),
        source,
    })
}

fn not_ours(source: &str) -> CaptureError {
    CaptureError::Problem(Problem::new(
        "DR-1022",
        format!(
            "stream {source:?} holds another kind of source, or was written by a newer version"
        ),
        "delete the source and apply it under a new name",
    ))
}

impl From<OutboxError> for CaptureError {
    fn from(error: OutboxError) -> Self {
        match error {
            OutboxError::Append(AppendError::Rejected { next, .. }) => Self::Behind(next.0),
            OutboxError::Append(AppendError::Log(error)) => Self::Log(error),
            OutboxError::Store(error) => Self::Store(error),
            OutboxError::Spill { folder, source } => Self::Spill { folder, source },
        }
    }
}

/// What to do about an error.
enum Act {
    /// Start again at once: it was asked for, and has come further.
    Again,
    /// Start again from the log's position.
    Retry(Problem),
    Stop(Problem),
    /// Stand still until the hole is repaired.
    Repair(Problem),
    /// Give the slot up first.
    GiveUp,
}

/// Runs until it is told to stop, or a problem stops it. Stopping loses nothing: what was not appended
/// is sent again by the source.
pub async fn run(
    config: CaptureConfig,
    log: Arc<dyn Log>,
    status: Board<SourceStatus>,
    control: Arc<CaptureControl>,
    stop: CancellationToken,
) {
    let over_budget = Notify::new();
    tokio::select! {
        biased;
        () = stop.cancelled() => {}
        () = keep_capturing(&config, &log, &status, &control, &over_budget) => {}
        () = watch(&config, &log, &status, &over_budget) => {}
    }
}

/// Never returns. `over` is told when what the source keeps for us is too much.
async fn watch(
    config: &CaptureConfig,
    log: &Arc<dyn Log>,
    status: &Board<SourceStatus>,
    over: &Notify,
) {
    match &config.database {
        Database::Postgres(source) => {
            postgres::watch::watch(&config.name, source, status, over).await;
        }
        // A server drops its binlog by itself, and keeps no more of it for whoever is behind.
        Database::Mysql(source) => mysql::watch::watch(&config.name, source, log, status).await,
    }
}

/// Never returns.
async fn keep_capturing(
    config: &CaptureConfig,
    log: &Arc<dyn Log>,
    status: &Board<SourceStatus>,
    control: &CaptureControl,
    over_budget: &Notify,
) {
    let mut backoff = Backoff::new();
    let mut streaming = Streaming::On;
    let mut last_new = None;
    let mut repairs = Repairs::default();
    loop {
        let began = tokio::time::Instant::now();
        let running = async {
            match &config.database {
                Database::Postgres(source) => {
                    postgres::run(config, source, log, status, control, streaming).await
                }
                Database::Mysql(source) => mysql::run(config, source, log, status, control).await,
            }
        };
        let result = tokio::select! {
            biased;
            () = over_budget.notified() => Err(CaptureError::OverBudget),
            result = running => result,
        };
        let Err(error) = result;
        // For one session: the server then sends what was kept of the transaction, whole.
        streaming = match error {
            CaptureError::Uncertain(_) => Streaming::Off,
            _ => Streaming::On,
        };
        if began.elapsed() > Duration::from_secs(60) {
            backoff.reset();
        }
        if let CaptureError::Spoiled(table, problem) = &error {
            tracing::error!(
                source = config.name,
                code = problem.code,
                reason = problem.reason,
                "a table is not captured any more; the others go on"
            );
            control.refuse(*table, problem.clone());
        }
        if let CaptureError::Lacking(table, _) = &error {
            control.note_lacking(*table);
        }
        match act_on(&error) {
            Act::Again => {
                tracing::info!(source = config.name, "{error}");
                let new = match &error {
                    CaptureError::NewTable(table) => Some(table.clone()),
                    _ => None,
                };
                let is_taken_in = new.is_none() || new != last_new;
                last_new = new;
                if is_taken_in {
                    continue;
                }
                // The start before did not take it in: it is not to be tried without a rest for ever, nor unseen.
                status.update(|s| s.problem = Some(problem_of(&error)));
            }
            Act::Retry(problem) => {
                tracing::warn!(source = config.name, error = %chain(&error), "capture failed; it will be tried again");
                status.update(|s| s.problem = Some(problem));
            }
            Act::Stop(problem) => {
                tracing::error!(source = config.name, code = problem.code, error = %chain(&error), "capture stopped");
                status.update(|s| {
                    s.state = TableState::Stopped;
                    s.problem = Some(problem);
                });
                over_budget.notified().await;
                give_up(config, log, status, control, &mut repairs).await;
                continue;
            }
            Act::Repair(problem) => {
                tracing::error!(source = config.name, code = problem.code, error = %chain(&error), "the source's log has a hole");
                repair::until_repaired(config, log, status, control, &mut repairs, problem).await;
                continue;
            }
            Act::GiveUp => {
                give_up(config, log, status, control, &mut repairs).await;
                continue;
            }
        }
        backoff.wait().await;
    }
}

/// Opens a stream that has begun, before anything is done at its source: whoever owned it until now can neither append to
/// it any more nor come here, and its position stands still. `None`: it has not begun.
async fn claim(log: &Arc<dyn Log>, source: &str) -> Result<Option<StreamState>, LogError> {
    match log.state(source) {
        Some(state) if state.position.is_some() => {
            log.open(source, None, Bytes::new()).await.map(Some)
        }
        _ => Ok(None),
    }
}

/// Gives up what the source keeps for us.
async fn give_up(
    config: &CaptureConfig,
    log: &Arc<dyn Log>,
    status: &Board<SourceStatus>,
    control: &CaptureControl,
    repairs: &mut Repairs,
) {
    if let Err(error) = claim(log, &config.name).await {
        tracing::warn!(source = config.name, error = %error, "nothing is given up now");
        return;
    }
    match &config.database {
        Database::Postgres(source) => {
            let hole = postgres::repair::give_up(&config.name, source, log, status).await;
            if let Some(hole) = hole {
                repair::until_repaired(config, log, status, control, repairs, hole).await;
            }
        }
        Database::Mysql(_) => {}
    }
}

fn problem_of(error: &CaptureError) -> Problem {
    match act_on(error) {
        Act::Retry(problem) | Act::Stop(problem) | Act::Repair(problem) => problem,
        Act::Again | Act::GiveUp => Problem::new(
            "DR-1102",
            error.to_string(),
            "nothing: the capture starts again by itself",
        ),
    }
}

fn act_on(error: &CaptureError) -> Act {
    match error {
        CaptureError::Source(error) => match (error.is_transient(), error.problem()) {
            (_, problem) if error.is_hole() => Act::Repair(problem),
            (true, problem) => Act::Retry(problem),
            (false, problem) => Act::Stop(problem),
        },
        CaptureError::OverBudget => Act::GiveUp,
        CaptureError::Reread(_)
        | CaptureError::NewTable(_)
        | CaptureError::Mended(_)
        | CaptureError::Spoiled(..)
        | CaptureError::Lacking(..)
        | CaptureError::Drifted(_)
        | CaptureError::Identified
        | CaptureError::Promoted => Act::Again,
        // Whoever is not to run it any more is told so when it opens the stream again.
        CaptureError::Fenced(_)
        | CaptureError::Behind(_)
        | CaptureError::SchemaMoved(_)
        | CaptureError::Uncertain(_) => Act::Retry(Problem::new(
            "DR-1102",
            error.to_string(),
            "nothing: the capture starts again by itself",
        )),
        CaptureError::Log(_) | CaptureError::Store(_) => Act::Retry(Problem::new(
            "DR-1100",
            chain(error),
            "make the object store reachable and see that the data folder's disk has room; capture goes on by itself",
        )),
        CaptureError::Spill { .. } => Act::Retry(Problem::new(
            "DR-1101",
            chain(error),
            "make room on the disk of the data folder; capture goes on by itself",
        )),
        CaptureError::Problem(problem) => Act::Stop(problem.clone()),
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
