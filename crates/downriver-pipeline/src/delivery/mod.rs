//! Delivers one stream to the tables of one lake.
//!
//! ```text
//!            ┌──────── read blocks ── open ──> tables' windows ── cut every `freshness` ──> commits
//!   log ─────┤                                        │
//!            └──────── protected up to <───────────────┴── delivered, stored with the table and in `Progress`
//! ```
//!
//! One reader feeds all tables; each table has an owner's epoch and a progress of its own, in the table itself.
//! A cut lies between two transactions and is the same for all tables. A table that stops leaves the others going
//! on; the log is kept for it. A failure that may pass starts everything again from what the tables say. Tables may be
//! shared out over nodes, each of which reads the log (`shares`).

mod control;
mod progress;
mod run;
mod shares;
mod tables;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use downriver_event::change::ChangePolicies;
use downriver_event::problem::Problem;
use downriver_lake::catalog::Catalog;
use downriver_lake::{LakeError, Warehouse};
use downriver_log::{Log, ReadError};
use tokio_util::sync::CancellationToken;

pub use control::{Control, Cut, Held, TableCut, Told};
pub use progress::{Progress, TableProgress, held_version};
pub use shares::{Share, Sharing};

use crate::retry::Backoff;
use crate::status::{Board, PipelineStatus, TableState};

#[derive(Clone, Debug)]
pub struct DeliveryConfig {
    pub pipeline: String,
    /// The stream's name.
    pub source: String,
    /// Which life of the stream and of the pipeline: differs when one was deleted and made again.
    pub stream_id: String,
    pub catalog: Arc<dyn Catalog>,
    pub warehouse: Warehouse,
    /// The lake's namespace for all tables; `None`: `<source>_<schema>`.
    pub namespace: Option<String>,
    /// Patterns of the source's tables; empty: all.
    pub tables: Vec<String>,
    /// Which of them this delivery has.
    pub share: Share,
    pub freshness: Duration,
    /// What is done when a table of the source changes.
    pub schema_changes: ChangePolicies,
    /// This node's own folder for the share: key indexes, and rows larger than memory.
    pub folder: PathBuf,
}

/// Why a run ended.
#[derive(Debug, thiserror::Error)]
enum DeliveryError {
    #[error(transparent)]
    Lake(#[from] LakeError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("the pipeline's progress cannot be kept: {0}")]
    Progress(String),
    #[error("a block of the log cannot be read")]
    Block(#[from] downriver_event::block::BlockError),
}

impl DeliveryConfig {
    fn sharing(&self) -> Sharing<'_> {
        Sharing {
            tables: &self.tables,
            one_namespace: self.namespace.is_some(),
            shares: self.share.of,
        }
    }
}

impl DeliveryError {
    fn is_transient(&self) -> bool {
        match self {
            // It comes here only of a table that is shared, see `may_pass`: whose task it is not any more opens none.
            Self::Lake(LakeError::Fenced(_)) => true,
            Self::Lake(error) => error.is_transient(),
            // What retention took is told of each table when they are opened anew.
            Self::Read(error) => matches!(
                error,
                ReadError::Store(_) | ReadError::NoStream(_) | ReadError::Trimmed { .. }
            ),
            Self::Progress(_) => true,
            Self::Block(_) => false,
        }
    }

    fn problem(&self) -> Problem {
        match self {
            Self::Lake(error) => error.problem(),
            Self::Read(ReadError::Store(_)) | Self::Progress(_) => Problem::new(
                "DR-1100",
                self.to_string(),
                "make the object store reachable and see that the data folder's disk has room; delivery goes on by itself",
            ),
            Self::Read(ReadError::Trimmed { .. }) => Problem::new(
                "DR-3030",
                self.to_string(),
                "downriver resnapshot PIPELINE: its tables begin again with the new snapshot",
            ),
            Self::Read(_) | Self::Block(_) => Problem::new(
                "DR-2035",
                self.to_string(),
                "restore the object from a copy of the object store",
            ),
        }
    }
}

/// Runs until it is told to stop. Stopping loses nothing: what was not committed is read again.
///
/// Rows are encoded on a thread of their own, so that nothing else of the node waits for them.
///
/// # Panics
/// If the delivery does.
pub async fn run(
    config: DeliveryConfig,
    log: Arc<dyn Log>,
    progress: Arc<dyn Progress>,
    status: Board<PipelineStatus>,
    control: Arc<Control>,
    stop: CancellationToken,
) {
    let runtime = tokio::runtime::Handle::current();
    let thread = tokio::task::spawn_blocking(move || {
        runtime.block_on(keep_running(config, log, progress, status, control, stop));
    });
    if let Err(panic) = thread.await
        && panic.is_panic()
    {
        std::panic::resume_unwind(panic.into_panic());
    }
}

async fn keep_running(
    config: DeliveryConfig,
    log: Arc<dyn Log>,
    progress: Arc<dyn Progress>,
    status: Board<PipelineStatus>,
    control: Arc<Control>,
    stop: CancellationToken,
) {
    let mut backoff = Backoff::new();
    loop {
        let began = tokio::time::Instant::now();
        let ended = run::run(&config, &log, &progress, &status, &control, &stop).await;
        if began.elapsed() > Duration::from_secs(60) {
            backoff.reset();
        }
        let error = match ended {
            Ok(()) if stop.is_cancelled() => return,
            Ok(()) => continue,
            Err(error) => error,
        };
        let problem = error.problem();
        if !error.is_transient() {
            tracing::error!(pipeline = config.pipeline, code = problem.code, error = %error, "delivery stopped");
            status.update(|s| {
                s.state = TableState::Stopped;
                s.problem = Some(problem);
            });
            return stop.cancelled().await;
        }
        tracing::warn!(pipeline = config.pipeline, code = problem.code, error = %error, "delivery failed; it will be tried again");
        status.update(|s| s.problem = Some(problem));
        tokio::select! {
            () = stop.cancelled() => return,
            () = backoff.wait() => {}
        }
    }
}
