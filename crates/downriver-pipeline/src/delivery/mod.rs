//! Delivers one stream into one sink's tables.
//!
//! ```text
//!            ┌─ one reader: blocks in offset order, opened once
//!   log ─────┤
//!            └─> a task for each table: window ──freshness──> commit (data and offset together)
//! ```
//!
//! Each table has an owner's epoch, its own window and its own progress: a table that stops or is slow holds
//! up neither the others nor the source. After a failure a table starts again from what its sink says it
//! holds; nothing is remembered here that the sink or the log does not know.

mod reader;
mod table;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use downriver_event::problem::Problem;
use downriver_event::{Epoch, Offset, TableId, TableSchema};
use downriver_lake::LakeContext;
use downriver_log::{Log, LogError, ReadError};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::retry::Backoff;
use crate::status::{Board, DeliveryStatus, TableState, TableStatus};
use table::{TableFeed, TableTask};

/// How often the set of the stream's tables is looked at again.
const TABLES_EVERY: Duration = Duration::from_millis(500);

#[derive(Clone, Debug)]
pub struct DeliveryConfig {
    pub pipeline: String,
    /// The source's name, and its stream's.
    pub source: String,
    /// Patterns over "namespace.table"; empty: every captured table.
    pub tables: Vec<String>,
    /// The lake namespace; `None`: `<source>_<namespace of the table>`.
    pub namespace: Option<String>,
    pub freshness: Duration,
    /// Local folder for key indexes.
    pub index: PathBuf,
    /// Bytes of a table's window in memory.
    pub window_bytes_max: usize,
    /// Tables that are paused, by qualified name; `*` stands for all.
    pub paused: Vec<String>,
}

impl DeliveryConfig {
    /// The table's name in the lake: namespace and name.
    #[must_use]
    pub fn target(&self, schema: &TableSchema) -> (String, String) {
        let namespace = self
            .namespace
            .clone()
            .unwrap_or_else(|| format!("{}_{}", self.source, schema.namespace));
        (namespace, schema.name.clone())
    }

    fn delivers(&self, schema: &TableSchema) -> bool {
        self.tables.is_empty()
            || downriver_event::pattern::selects(&self.tables, &schema.namespace, &schema.name)
    }

    fn is_paused(&self, schema: &TableSchema) -> bool {
        let name = schema.qualified_name();
        self.paused.iter().any(|paused| paused == "*" || *paused == name)
    }
}

/// Replicated progress and epochs of sink tables; whoever replicates them implements it.
#[async_trait]
pub trait SinkTables: Send + Sync + 'static {
    /// A new epoch for the table's owner, and the offset stored last.
    async fn open(&self, pipeline: &str, table: TableId) -> Result<(Epoch, Offset), LogError>;

    /// Stores that the sink holds everything before `delivered`.
    async fn delivered(
        &self,
        pipeline: &str,
        table: TableId,
        epoch: Epoch,
        delivered: Offset,
    ) -> Result<(), LogError>;
}

/// What a delivery needs of its surroundings.
#[derive(Clone)]
pub struct Surroundings {
    pub log: Arc<dyn Log>,
    pub sink_tables: Arc<dyn SinkTables>,
    pub lake: Arc<LakeContext>,
}

/// Runs until it is told to stop. Stopping loses nothing: what was not committed is read again.
pub async fn run(
    config: DeliveryConfig,
    surroundings: Surroundings,
    status: Board<DeliveryStatus>,
    stop: CancellationToken,
) {
    let mut backoff = Backoff::new();
    loop {
        let delivery = Delivery {
            config: &config,
            surroundings: &surroundings,
            status: &status,
            feeds: HashMap::new(),
            tasks: JoinSet::new(),
        };
        let result = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            result = delivery.run(&stop) => result,
        };
        match result {
            Ok(()) => return,
            Err(error) => {
                let problem = read_problem(&error);
                let lasting = matches!(error, ReadError::Trimmed { .. } | ReadError::Damaged { .. });
                status.update(|s| {
                    s.problem = Some(problem.clone());
                    if lasting {
                        s.state = TableState::Stopped;
                    }
                });
                if lasting {
                    tracing::error!(pipeline = config.pipeline, code = problem.code, error = %error, "delivery stopped");
                    return stop.cancelled().await;
                }
                tracing::warn!(pipeline = config.pipeline, error = %error, "the log cannot be read; it will be tried again");
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = backoff.wait() => {}
        }
    }
}

fn read_problem(error: &ReadError) -> Problem {
    match error {
        ReadError::Trimmed { .. } => Problem::new(
            "DR-1201",
            error.to_string(),
            "the table was behind for longer than the log is kept: delete the pipeline and its tables in the lake, then apply the source under a new name",
        ),
        ReadError::Damaged { .. } => Problem::new(
            "DR-1202",
            error.to_string(),
            "restore the object from a copy of the object store",
        ),
        _ => Problem::new(
            "DR-1200",
            error.to_string(),
            "make the object store reachable; delivery goes on by itself",
        ),
    }
}

struct Delivery<'a> {
    config: &'a DeliveryConfig,
    surroundings: &'a Surroundings,
    status: &'a Board<DeliveryStatus>,
    feeds: HashMap<TableId, TableFeed>,
    tasks: JoinSet<()>,
}

impl Delivery<'_> {
    async fn run(mut self, stop: &CancellationToken) -> Result<(), ReadError> {
        let mut reader = reader::Reader::new(
            Arc::clone(&self.surroundings.log),
            self.config.source.clone(),
        );
        let mut look = tokio::time::interval(TABLES_EVERY);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                _ = look.tick() => self.take_tables(stop),
                Some(ended) = self.tasks.join_next() => {
                    if let Err(panic) = ended
                        && panic.is_panic()
                    {
                        std::panic::resume_unwind(panic.into_panic());
                    }
                }
                read = reader.next(&mut self.feeds) => read?,
            }
        }
    }

    /// Starts a task for each table of the stream that has none.
    fn take_tables(&mut self, stop: &CancellationToken) {
        let Some(state) = self.surroundings.log.state(&self.config.source) else { return };
        let mut newest: BTreeMap<TableId, &Arc<TableSchema>> = BTreeMap::new();
        for ((table, _), schema) in &state.schemas {
            newest.insert(*table, schema);
        }
        let mut found = false;
        for (table, schema) in newest {
            if self.feeds.contains_key(&table) || !self.config.delivers(schema) {
                continue;
            }
            found = true;
            let name = schema.qualified_name();
            let (namespace, target) = self.config.target(schema);
            let paused = self.config.is_paused(schema);
            self.status.update(|s| {
                let known = s.tables.entry(name.clone()).or_default();
                *known = TableStatus {
                    state: if paused { TableState::Paused } else { TableState::Pending },
                    target: format!("{namespace}.{target}"),
                    delivered: known.delivered,
                    ..TableStatus::default()
                };
            });
            if paused {
                self.feeds.insert(table, TableFeed::closed());
                continue;
            }
            let task = TableTask {
                config: self.config.clone(),
                surroundings: self.surroundings.clone(),
                status: self.status.clone(),
                table,
                name,
                incarnation: state.incarnation,
            };
            let (feed, blocks) = table::feed();
            self.feeds.insert(table, feed);
            self.tasks.spawn(task.run(blocks, stop.clone()));
        }
        if found {
            self.status.update(|s| {
                let all_paused = s.tables.values().all(|t| t.state == TableState::Paused);
                s.state = if all_paused { TableState::Paused } else { TableState::Streaming };
                s.problem = None;
            });
        }
    }
}
