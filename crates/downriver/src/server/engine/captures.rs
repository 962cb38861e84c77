//! Captures: one for each source, kept equal to its specification.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use downriver_api::admin::v1 as pb;
use downriver_cluster::source_task;
use downriver_event::problem::Problem;
use downriver_event::{Offset, SourcePosition, TableSchema};
use downriver_log::Log;
use downriver_pipeline::capture::{
    self, CaptureConfig, CaptureControl, Database, MysqlSource, PostgresSource, SnapshotConfig,
    WalBehind,
};
use downriver_pipeline::status::Board;
use downriver_pipeline::{SourceStatus, TableState};
use downriver_service::spec::{OnMaxWalBehind, SnapshotMode, Source, Spec};
use downriver_service::{Finding, StoredSpec, TableName};
use downriver_source::check::Severity;
use downriver_source::mysql::config::MysqlConfig;
use downriver_source::postgres::config::PostgresConfig;
use downriver_source::postgres::setup;
use downriver_source::{SourceError, mysql, postgres};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::super::status::source_status;
use super::chunks::OtherNodes;
use super::replicated::stream_id_key;
use super::source_config::{Connection, connection, mysql_config, postgres_config};
use super::{NodeEngine, Turn, locked, unavailable};

pub(super) struct RunningCapture {
    turn: Turn,
    revision: u64,
    pub(super) status: Board<SourceStatus>,
    pub(super) control: Arc<CaptureControl>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl RunningCapture {
    pub(super) async fn end(self) {
        self.stop.cancel();
        match self.task.await {
            Err(panic) if panic.is_panic() => std::panic::resume_unwind(panic.into_panic()),
            _ => {}
        }
    }
}

impl NodeEngine {
    /// Every source's status, by name.
    pub(in crate::server) fn sources(&self) -> Vec<(String, SourceStatus)> {
        let captures = locked(&self.captures);
        captures
            .iter()
            .map(|(name, capture)| (name.clone(), capture.status.get()))
            .collect()
    }

    pub(super) fn source_status(&self, name: &str) -> pb::Status {
        let running = locked(&self.captures).get(name).map(|c| c.status.get());
        let problem = self.why_not_started(pb::Kind::Source, name);
        source_status(running, problem, self.node.state(name).as_deref())
    }

    pub(super) async fn source_has_passed(
        &self,
        name: &str,
        position: &SourcePosition,
        within: Duration,
    ) -> Result<Offset, Problem> {
        let running = {
            let captures = locked(&self.captures);
            let capture = captures.get(name);
            capture.map(|capture| (capture.status.clone(), Arc::clone(&capture.control)))
        };
        let (status, control) = running.ok_or_else(|| {
            let why = self.why_not_started(pb::Kind::Source, name);
            why.unwrap_or_else(|| {
                Problem::new(
                    "DR-1109",
                    format!("source {name:?} does not run here now"),
                    "ask again",
                )
            })
        })?;
        capture::passed(&status, &control, position, within).await
    }

    pub(super) async fn reconcile_captures(&self) {
        let mut wanted = self.stored_of(pb::Kind::Source);
        wanted.retain(|name, _| self.turn(&source_task(name)).is_some());
        let ending: Vec<RunningCapture> = {
            let mut captures = locked(&self.captures);
            let stale: Vec<String> = captures
                .iter()
                .filter(|(name, running)| {
                    wanted
                        .get(*name)
                        .is_none_or(|w| w.revision != running.revision)
                        || self.turn(&source_task(name)) != Some(running.turn)
                        || running.task.is_finished()
                })
                .map(|(name, _)| name.clone())
                .collect();
            stale
                .iter()
                .filter_map(|name| captures.remove(name))
                .collect()
        };
        for capture in ending {
            capture.end().await;
        }
        for (name, stored) in wanted {
            if !locked(&self.captures).contains_key(&name)
                && let Err(problem) = self.start_capture(&name, &stored).await
            {
                self.cannot_start(pb::Kind::Source, &name, problem);
            }
        }
    }

    async fn start_capture(&self, name: &str, stored: &StoredSpec) -> Result<(), Problem> {
        let Some(turn) = self.turn(&source_task(name)) else {
            return Ok(());
        };
        let mut config = self.capture_config(name, stored)?;
        if let Database::Postgres(source) = &mut config.database {
            let id = self.id_in(&stream_id_key(name)).await;
            let id = id.map_err(|error| unavailable(&error))?;
            source.connection.session = format!("{} {id}", source.connection.session);
        }
        self.can_start(pb::Kind::Source, name);
        let status = Board::default();
        let stop = CancellationToken::new();
        let log: Arc<dyn Log> = self.node.clone();
        let control = Arc::new(CaptureControl::default());
        let task = tokio::spawn(capture::run(
            config,
            log,
            status.clone(),
            Arc::clone(&control),
            stop.clone(),
        ));
        let running = RunningCapture {
            turn,
            revision: stored.revision,
            status,
            control,
            stop,
            task,
        };
        locked(&self.captures).insert(name.to_owned(), running);
        Ok(())
    }

    fn capture_config(&self, name: &str, stored: &StoredSpec) -> Result<CaptureConfig, Problem> {
        let revision = stored.revision;
        let Spec::Source(source) = Spec::parse("Source", &stored.spec)? else {
            unreachable!("a source is parsed as one");
        };
        let options = source.snapshot();
        Ok(CaptureConfig {
            name: name.to_owned(),
            database: database(name, &source)?,
            snapshot: SnapshotConfig {
                initial: options.mode == SnapshotMode::Initial,
                chunk_rows: options.chunk_rows,
                max_workers: options.max_workers,
                rows_per_second: options.rows_per_second,
                helpers: Arc::new(OtherNodes {
                    node: Arc::clone(&self.node),
                    source: name.to_owned(),
                    revision,
                }),
            },
            repairs_holes: source.repairs_holes(),
            spill: self.spill(name),
        })
    }

    pub(super) fn source_spec(&self, name: &str) -> Result<Source, Problem> {
        match self.spec_of(pb::Kind::Source, name)? {
            Spec::Source(source) => Ok(source),
            Spec::Sink(_) | Spec::Pipeline(_) => unreachable!("a source is parsed as one"),
        }
    }

    /// The tables that a running capture delivers to the log; `None` if that is not known yet.
    pub(super) fn captured_tables(&self, source: &str) -> Option<Vec<TableName>> {
        let running = locked(&self.captures).get(source).map(|c| c.status.get())?;
        let captured: BTreeSet<String> = running
            .tables
            .into_iter()
            .filter(|(_, table)| table.state != TableState::Refused)
            .map(|(name, _)| name)
            .collect();
        let tables: Vec<TableName> = self
            .logged_tables(source)
            .into_values()
            .filter(|table| captured.contains(&table.to_string()))
            .collect();
        (!captured.is_empty() && tables.len() == captured.len()).then_some(tables)
    }

    pub(super) async fn remove_source(
        &self,
        name: &str,
        dry_run: bool,
    ) -> Result<Vec<String>, Problem> {
        let connection = connection(name, &self.source_spec(name)?)?;
        let mut dropped = owned(&connection).await.map_err(|error| error.problem())?;
        dropped.push(format!("log of source {name}"));
        if dry_run {
            return Ok(dropped);
        }
        {
            let _acting = self.acting.lock().await;
            self.node
                .delete_resource("Source", name, None)
                .await
                .map_err(|error| unavailable(&error))?;
            let running = locked(&self.captures).remove(name);
            if let Some(running) = running {
                running.end().await;
            }
        }
        // One of these failing is no reason to leave the others.
        let on_database = match &connection {
            Connection::Postgres(config) => setup::drop_owned(config).await,
            Connection::Mysql(_) => Ok(()),
        };
        let spilled = std::fs::remove_dir_all(self.spill(name));
        let forgotten = self.node.put_record(&stream_id_key(name), None).await;
        let log = self.node.drop_stream(name).await;
        on_database.map_err(|error| error.problem())?;
        forgotten.map_err(|error| unavailable(&error))?;
        log.map_err(|error| unavailable(&error))?;
        if let Err(error) = spilled
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(source = name, %error, "what was spilled of a source that is deleted is left");
        }
        Ok(dropped)
    }

    /// Where a source keeps what does not fit into memory.
    fn spill(&self, name: &str) -> PathBuf {
        self.data.join("spill").join(name)
    }
}

pub(super) fn database(name: &str, source: &Source) -> Result<Database, Problem> {
    Ok(match source {
        Source::Postgres(spec) => Database::Postgres(Box::new(PostgresSource {
            connection: postgres_config(name, spec)?,
            wal_behind: WalBehind {
                max_bytes: spec.wal_behind_max(),
                drop_slot: spec.on_max_wal_behind == Some(OnMaxWalBehind::DropSlot),
            },
            heartbeat: spec.heartbeat(),
        })),
        Source::Mysql(spec) => Database::Mysql(Box::new(MysqlSource {
            connection: mysql_config(spec)?,
            begin: spec.begin()?,
            binlog_warn: spec.binlog_warn(),
        })),
    })
}

/// What a source has on its database, and is dropped with it.
async fn owned(connection: &Connection) -> Result<Vec<String>, SourceError> {
    match connection {
        Connection::Postgres(config) => setup::owned(config).await,
        // A binlog is read without leaving anything at the server.
        Connection::Mysql(_) => Ok(Vec::new()),
    }
}

async fn checked(
    name: &str,
    source: &Source,
    has_log: bool,
) -> Result<Vec<downriver_source::check::Finding>, Problem> {
    Ok(match source {
        Source::Postgres(spec) => postgres::check::check(&postgres_config(name, spec)?).await,
        Source::Mysql(spec) => {
            let config = mysql_config(spec)?;
            let begin = spec.begin()?.filter(|_| !has_log);
            mysql::check::check(&config, begin.as_ref(), spec.binlog_warn()).await
        }
    })
}

/// `has_log`: it has begun, so that where it was to begin is of no account.
pub(super) async fn preflight(name: &str, source: &Source, has_log: bool) -> Vec<Finding> {
    let findings = match checked(name, source, has_log).await {
        Ok(findings) => findings,
        Err(problem) => {
            return vec![Finding {
                severity: "error",
                subject: name.to_owned(),
                problem: Some(problem),
            }];
        }
    };
    let findings = findings.into_iter().map(|finding| Finding {
        severity: match finding.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Ok => "ok",
        },
        subject: finding.subject,
        problem: finding.problem,
    });
    findings.collect()
}

/// The tables that a source would capture, as the database has them now.
pub(super) async fn list_tables(name: &str, source: &Source) -> Result<Vec<TableName>, Problem> {
    let tables = match connection(name, source)? {
        Connection::Postgres(config) => postgres_tables(&config).await,
        Connection::Mysql(config) => mysql_tables(&config).await,
    };
    let tables = tables.map_err(|error| error.problem())?.into_iter();
    Ok(tables
        .map(|schema| TableName {
            schema: schema.namespace,
            table: schema.name,
        })
        .collect())
}

async fn postgres_tables(config: &PostgresConfig) -> Result<Vec<TableSchema>, SourceError> {
    let catalog = postgres::catalog::Catalog::connect(config).await?;
    let tables = catalog.list_tables(config).await?.into_iter();
    let captured = tables.filter(|table| table.problem.is_none());
    Ok(captured.map(|table| table.schema).collect())
}

async fn mysql_tables(config: &MysqlConfig) -> Result<Vec<TableSchema>, SourceError> {
    let mut catalog = mysql::catalog::Catalog::connect(config).await?;
    let tables = catalog.tables(config).await?.into_iter();
    let captured = tables.filter(|table| table.problem.is_none());
    Ok(captured.map(|table| table.schema).collect())
}
