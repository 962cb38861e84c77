//! verify: source and lake compared row by row, as a stream of progress and verdicts.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use downriver_api::admin::v1 as pb;
use downriver_event::problem::Problem;
use downriver_event::{Offset, SourcePosition, TableSchema};
use downriver_log::Log;
use downriver_pipeline::capture::{self, CaptureControl};
use downriver_pipeline::status::Board;
use downriver_pipeline::verify::{
    Captured, Connection as Database, PASS_WITHIN, Report, Running, Verdict, VerifyConfig, verify,
};
use downriver_pipeline::{SourceStatus, TableState};
use downriver_service::problem::to_pb;
use downriver_service::spec::Pipeline;
use downriver_service::{Peer, Verified, Where, Whose};
use tokio::sync::mpsc;

use super::lakes::open_warehouse;
use super::source_config::{Connection, connection};
use super::{NodeEngine, locked};

/// Reports that wait for a slow client.
const REPORTS_MAX: usize = 64;

impl NodeEngine {
    /// Every selected table ends with a verdict; one that is not delivered now has the reason as its verdict.
    pub(super) async fn verify_tables(
        &self,
        name: &str,
        patterns: &[String],
        whose: Whose<'_>,
    ) -> Result<mpsc::Receiver<Verified>, Problem> {
        self.come_up().await?;
        let pipeline = self.pipeline_spec(name)?;
        let mut tables = match whose {
            Whose::AllBut(_) => self.select(name, patterns)?,
            // Whether every pattern selects something was looked at where it was asked.
            Whose::Shares(_) => self.selected(name, &pipeline, patterns),
        };
        self.leave_to_others(&pipeline, whose, &mut tables);
        let (_, status) = self.seen_running(name, &pipeline)?;
        let mut apart = Vec::new();
        for (table, status) in &status.tables {
            let problem = match status.state {
                // Nobody who names no table means one that cannot be there.
                TableState::Refused if patterns.is_empty() => None,
                TableState::Paused => Some(status.problem.clone().unwrap_or_else(|| paused(table))),
                TableState::Refused | TableState::Stopped => status.problem.clone(),
                _ => continue,
            };
            if tables.remove(table) {
                apart.extend(problem.map(|problem| unequal(table, problem)));
            }
        }
        let captured = self.captured(&pipeline.source)?;
        if patterns.is_empty()
            && let Some(there) = captured.tables().await?
        {
            // Nor one that the source has no more.
            tables.retain(|table| there.contains(table));
        }
        let captured: Arc<dyn Captured> = Arc::new(captured);
        let running = self.controls(name).into_values().map(|control| {
            let log: Arc<dyn Log> = self.node.clone();
            let captured = Arc::clone(&captured);
            Running {
                log,
                captured,
                control,
            }
        });
        let running: Vec<Running> = running.collect();
        if running.is_empty() {
            return Err(not_running(name));
        }
        let folder = self
            .data
            .join("verify")
            .join(uuid::Uuid::new_v4().to_string());
        let config = self.verify_config(&pipeline, folder.clone())?;
        let (responses, receiver) = mpsc::channel(REPORTS_MAX);
        let runtime = tokio::runtime::Handle::current();
        let stopping = self.stopping.clone();
        // Rows are hashed on a thread of their own, so that nothing else of the node waits for them.
        self.verifications.spawn_blocking(move || {
            let compared = compare(&config, &running, &tables, apart, &responses);
            runtime.block_on(async {
                tokio::select! {
                    () = stopping.cancelled() => {}
                    () = responses.closed() => {}
                    () = compared => {}
                }
            });
            let _ = std::fs::remove_dir_all(folder);
        });
        Ok(receiver)
    }

    fn leave_to_others(
        &self,
        pipeline: &Pipeline,
        whose: Whose<'_>,
        tables: &mut BTreeSet<String>,
    ) {
        let names = self.logged_tables(&pipeline.source);
        let dealt: BTreeMap<String, u32> = self
            .dealt(pipeline)
            .into_iter()
            .filter_map(|(id, share)| Some((names.get(&id)?.to_string(), share)))
            .collect();
        tables.retain(|table| match (whose, dealt.get(table)) {
            (Whose::AllBut(others), Some(share)) => !others.contains(share),
            (Whose::Shares(ours), Some(share)) => ours.contains(share),
            // What the log does not know is for the one that answers for the pipeline.
            (Whose::AllBut(_), None) => true,
            (Whose::Shares(_), None) => false,
        });
    }

    fn captured(&self, source: &str) -> Result<CapturedSource, Problem> {
        let captures = locked(&self.captures);
        if let Some(capture) = captures.get(source) {
            return Ok(CapturedSource::Here {
                status: capture.status.clone(),
                control: Arc::clone(&capture.control),
            });
        }
        match self.owner_of(pb::Kind::Source, source) {
            Where::There(peer) => Ok(CapturedSource::There {
                peer,
                source: source.to_owned(),
                log: self.node.clone(),
            }),
            Where::Nowhere(problem) => Err(problem),
            Where::Here => Err(not_running(source)),
        }
    }

    fn verify_config(&self, pipeline: &Pipeline, folder: PathBuf) -> Result<VerifyConfig, Problem> {
        let source = self.source_spec(&pipeline.source)?;
        let database = match connection(&pipeline.source, &source)? {
            Connection::Postgres(config) => Database::Postgres(config),
            Connection::Mysql(config) => Database::Mysql(config),
        };
        let lake = self.lake(&pipeline.sink).ok_or_else(|| {
            let reason = format!("sink {:?} is not open", pipeline.sink);
            Problem::new("DR-2073", reason, "see downriver status; verify when it is")
        })?;
        Ok(VerifyConfig {
            source: pipeline.source.clone(),
            database,
            catalog: lake.catalog,
            warehouse: open_warehouse(lake.store, &folder.join("spool"))?,
            folder: folder.join("digests"),
        })
    }
}

/// The capture of a source, wherever it is.
enum CapturedSource {
    Here {
        status: Board<SourceStatus>,
        control: Arc<CaptureControl>,
    },
    There {
        peer: Peer,
        source: String,
        log: Arc<dyn Log>,
    },
}

impl CapturedSource {
    /// The tables that the source has; `None`: that is not known yet.
    async fn tables(&self) -> Result<Option<BTreeSet<String>>, Problem> {
        let tables: BTreeSet<String> = match self {
            Self::Here { status, .. } => status.get().tables.into_keys().collect(),
            Self::There { peer, source, .. } => peer.tables_of(source).await?,
        };
        Ok((!tables.is_empty()).then_some(tables))
    }
}

#[async_trait]
impl Captured for CapturedSource {
    async fn passed(&self, position: &SourcePosition) -> Result<Offset, Problem> {
        match self {
            Self::Here { status, control } => {
                capture::passed(status, control, position, PASS_WITHIN).await
            }
            Self::There { peer, source, .. } => peer.passed(source, position, PASS_WITHIN).await,
        }
    }

    fn is_copying(&self, table: &TableSchema) -> bool {
        match self {
            Self::Here { status, .. } => {
                let tables = status.get().tables;
                let table = tables.get(&table.qualified_name());
                table.is_some_and(|table| table.state == TableState::Snapshotting)
            }
            Self::There { log, source, .. } => {
                let state = log.state(source);
                let chunks = state.as_ref().and_then(|state| state.chunks.get(&table.id));
                chunks.is_some_and(|chunks| !chunks.done)
            }
        }
    }
}

fn not_running(name: &str) -> Problem {
    Problem::new(
        "DR-2073",
        format!("pipeline {name:?} or its source does not run"),
        "see downriver status; verify when both do",
    )
}

async fn compare(
    config: &VerifyConfig,
    running: &[Running],
    tables: &BTreeSet<String>,
    apart: Vec<pb::VerifyResponse>,
    responses: &mpsc::Sender<Verified>,
) {
    // A client that is gone needs no answers.
    for response in apart {
        let _ = responses.send(Ok(response)).await;
    }
    if tables.is_empty() {
        return;
    }
    let (reports, mut reported) = mpsc::channel(REPORTS_MAX);
    let mut left = tables.clone();
    let comparing = async {
        let wanted = |schema: &TableSchema| tables.contains(&schema.qualified_name());
        for running in running {
            if let Err(problem) = verify(config, running, wanted, &reports).await {
                drop(reports);
                return Err(problem);
            }
        }
        drop(reports);
        Ok(())
    };
    let forwarding = async {
        while let Some(report) = reported.recv().await {
            if report.verdict.is_some() {
                left.remove(&report.table);
            }
            if responses.send(Ok(response(report))).await.is_err() {
                return;
            }
        }
    };
    let (compared, ()) = tokio::join!(comparing, forwarding);
    if let Err(problem) = compared {
        let _ = responses.send(Err(problem)).await;
        return;
    }
    for table in left {
        let problem = Problem::new(
            "DR-2073",
            format!("{table} was not delivered when the pipeline was brought to one position"),
            "see downriver describe for the pipeline, and verify again",
        );
        let _ = responses.send(Ok(unequal(&table, problem))).await;
    }
}

fn paused(table: &str) -> Problem {
    Problem::new(
        "DR-2025",
        format!("{table} is paused"),
        "resume it, wait until it has caught up, and verify again",
    )
}

/// The verdict on a table that cannot be compared.
fn unequal(table: &str, problem: Problem) -> pb::VerifyResponse {
    response(Report {
        table: table.to_owned(),
        rows_compared: 0,
        rows_estimated: 0,
        verdict: Some(Verdict {
            problem: Some(problem),
            ..Verdict::default()
        }),
    })
}

fn response(report: Report) -> pb::VerifyResponse {
    pb::VerifyResponse {
        table: report.table,
        rows_compared: report.rows_compared,
        rows_estimated: report.rows_estimated,
        verdict: report.verdict.map(|verdict| pb::TableVerdict {
            equal: verdict.equal(),
            source_rows: verdict.source_rows,
            target_rows: verdict.target_rows,
            missing: verdict.missing,
            unexpected: verdict.unexpected,
            different: verdict.different,
            problem: verdict.problem.as_ref().map(to_pb),
            examples: verdict.examples,
        }),
    }
}
