//! verify: source and lake compared row by row, as a stream of progress and verdicts.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use downriver_api::admin::v1 as pb;
use downriver_event::problem::Problem;
use downriver_log::Log;
use downriver_pipeline::TableState;
use downriver_pipeline::verify::{
    Connection as Database, Report, Running, Verdict, VerifyConfig, verify,
};
use downriver_service::Verified;
use downriver_service::problem::to_pb;
use downriver_service::spec::Pipeline;
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
    ) -> Result<mpsc::Receiver<Verified>, Problem> {
        let pipeline = self.pipeline_spec(name)?;
        let mut tables = self.select(name, patterns)?;
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
        let running = self.running(name, &pipeline)?;
        let captured = running.source.get().tables;
        if patterns.is_empty() && !captured.is_empty() {
            // Nor one that the source has no more.
            tables.retain(|table| captured.contains_key(table));
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

    fn running(&self, name: &str, pipeline: &Pipeline) -> Result<Running, Problem> {
        let not_running = || {
            Problem::new(
                "DR-2073",
                format!("pipeline {name:?} or its source does not run"),
                "see downriver status; verify when both do",
            )
        };
        let captures = locked(&self.captures);
        let capture = captures.get(&pipeline.source).ok_or_else(not_running)?;
        let deliveries = locked(&self.deliveries);
        let delivery = deliveries.get(name).ok_or_else(not_running)?;
        let log: Arc<dyn Log> = self.node.clone();
        Ok(Running {
            log,
            source: capture.status.clone(),
            capture: Arc::clone(&capture.control),
            control: Arc::clone(&delivery.control),
        })
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

async fn compare(
    config: &VerifyConfig,
    running: &Running,
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
        let wanted =
            |schema: &downriver_event::TableSchema| tables.contains(&schema.qualified_name());
        let compared = verify(config, running, wanted, &reports).await;
        drop(reports);
        compared
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
