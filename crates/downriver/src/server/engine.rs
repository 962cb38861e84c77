//! What runs on this node: reads what should be from the replicated state, starts and stops captures, and
//! answers for the services.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use downriver_api::admin::v1 as pb;
use downriver_cluster::{Node, ResourcePut};
use downriver_event::problem::Problem;
use downriver_log::Log;
use downriver_pipeline::SourceStatus;
use downriver_pipeline::capture::{self, CaptureConfig, SnapshotConfig};
use downriver_pipeline::status::Board;
use downriver_service::spec::{SnapshotMode, Source, Spec};
use downriver_service::{Engine, Finding, StoredSpec};
use downriver_source::postgres::check::{Severity, check};
use downriver_source::postgres::config::PostgresConfig;
use downriver_source::postgres::setup;
use serde_json::Value;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::status::source_status;

/// How often what runs is compared with what should run, besides being woken.
const RECONCILE_EVERY: Duration = Duration::from_secs(1);

struct RunningCapture {
    revision: u64,
    status: Board<SourceStatus>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

pub(super) struct NodeEngine {
    node: Arc<Node>,
    data: PathBuf,
    captures: Mutex<BTreeMap<String, RunningCapture>>,
    /// Sources that cannot be started, and why.
    unstartable: Mutex<BTreeMap<String, Problem>>,
    wake: Notify,
    changed: watch::Sender<u64>,
}

impl NodeEngine {
    pub(super) fn new(node: Arc<Node>, data: PathBuf) -> Arc<Self> {
        Arc::new(Self {
            node,
            data,
            captures: Mutex::default(),
            unstartable: Mutex::default(),
            wake: Notify::new(),
            changed: watch::Sender::new(0),
        })
    }

    pub(super) fn node(&self) -> &Arc<Node> {
        &self.node
    }

    /// Every source's status, by name.
    pub(super) fn sources(&self) -> Vec<(String, SourceStatus)> {
        let captures = self.captures.lock().expect("no holder panics");
        captures
            .iter()
            .map(|(name, capture)| (name.clone(), capture.status.get()))
            .collect()
    }

    fn stored(&self) -> Vec<StoredSpec> {
        let stored = self.node.resources().into_iter();
        stored
            .filter_map(|resource| {
                Some(StoredSpec {
                    kind: match resource.kind.as_str() {
                        "Source" => pb::Kind::Source,
                        "Sink" => pb::Kind::Sink,
                        "Pipeline" => pb::Kind::Pipeline,
                        _ => return None,
                    },
                    name: resource.name,
                    spec: serde_json::from_slice(&resource.spec_json).ok()?,
                    revision: resource.revision,
                })
            })
            .collect()
    }

    /// Keeps what runs equal to what should run, until it is told to stop; then stops everything.
    pub(super) async fn reconcile(self: Arc<Self>, stop: CancellationToken) {
        while !stop.is_cancelled() {
            self.reconcile_once().await;
            self.changed.send_modify(|changes| *changes += 1);
            tokio::select! {
                () = stop.cancelled() => {}
                () = self.wake.notified() => {}
                () = tokio::time::sleep(RECONCILE_EVERY) => {}
            }
        }
        let captures = std::mem::take(&mut *self.captures.lock().expect("no holder panics"));
        for capture in captures.into_values() {
            end(capture).await;
        }
    }

    async fn reconcile_once(&self) {
        let wanted: BTreeMap<String, StoredSpec> = self
            .stored()
            .into_iter()
            .filter(|stored| stored.kind == pb::Kind::Source)
            .map(|stored| (stored.name.clone(), stored))
            .collect();
        let ending: Vec<RunningCapture> = {
            let mut captures = self.captures.lock().expect("no holder panics");
            let stale: Vec<String> = captures
                .iter()
                .filter(|(name, running)| {
                    wanted
                        .get(*name)
                        .is_none_or(|w| w.revision != running.revision)
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
            end(capture).await;
        }
        for (name, stored) in wanted {
            let runs = self
                .captures
                .lock()
                .expect("no holder panics")
                .contains_key(&name);
            if !runs {
                self.start(name, &stored);
            }
        }
    }

    fn start(&self, name: String, stored: &StoredSpec) {
        let config = self.capture_config(&name, &stored.spec);
        let mut unstartable = self.unstartable.lock().expect("no holder panics");
        let config = match config {
            Ok(config) => config,
            Err(problem) => {
                if unstartable.get(&name) != Some(&problem) {
                    tracing::error!(
                        source = name,
                        code = problem.code,
                        reason = problem.reason,
                        "source cannot be started"
                    );
                }
                unstartable.insert(name, problem);
                return;
            }
        };
        unstartable.remove(&name);
        let status = Board::default();
        let stop = CancellationToken::new();
        let log: Arc<dyn Log> = self.node.clone();
        let nudge = Arc::new(Notify::new());
        let task = tokio::spawn(capture::run(
            config,
            log,
            status.clone(),
            nudge,
            stop.clone(),
        ));
        let running = RunningCapture {
            revision: stored.revision,
            status,
            stop,
            task,
        };
        self.captures
            .lock()
            .expect("no holder panics")
            .insert(name, running);
    }

    fn capture_config(&self, name: &str, spec: &Value) -> Result<CaptureConfig, Problem> {
        let Spec::Source(source) = Spec::parse("Source", spec)?;
        let options = source.snapshot();
        Ok(CaptureConfig {
            name: name.to_owned(),
            postgres: postgres_config(name, &source)?,
            snapshot: SnapshotConfig {
                initial: options.mode == SnapshotMode::Initial,
                chunk_rows: options.chunk_rows,
                max_workers: options.max_workers,
                rows_per_second: options.rows_per_second,
            },
            spill: self.data.join("spill").join(name),
        })
    }

    fn source_of(&self, name: &str) -> Result<Source, Problem> {
        let stored = self
            .stored()
            .into_iter()
            .find(|s| s.kind == pb::Kind::Source && s.name == name);
        let stored = stored.ok_or_else(|| {
            Problem::new(
                "DR-2020",
                format!("there is no source {name:?}"),
                "see downriver get sources",
            )
        })?;
        let Spec::Source(source) = Spec::parse("Source", &stored.spec)?;
        Ok(source)
    }
}

async fn end(capture: RunningCapture) {
    capture.stop.cancel();
    match capture.task.await {
        Err(panic) if panic.is_panic() => std::panic::resume_unwind(panic.into_panic()),
        _ => {}
    }
}

/// The connection that a source's specification describes, its secret resolved.
fn postgres_config(name: &str, source: &Source) -> Result<PostgresConfig, Problem> {
    let spec = &source.postgres;
    let mut config = PostgresConfig::from_url(&spec.url)
        .map_err(|error| Problem::new("DR-2005", error.0, "correct postgres.url"))?;
    if let Some(secret) = &spec.password {
        config.password = Some(secret.resolve()?);
    }
    if let Some(tls) = &spec.tls {
        config.ca_file = Some(tls.ca.file.clone());
    }
    let own = format!("downriver_{}", name.replace('-', "_"));
    config.tables.clone_from(&spec.tables);
    config.slot = spec.slot.clone().unwrap_or_else(|| own.clone());
    config.publication = spec.publication.clone().unwrap_or(own);
    Ok(config)
}

fn unavailable(error: &downriver_cluster::ControlError) -> Problem {
    match error {
        downriver_cluster::ControlError::Conflict(reason) => Problem::new(
            "DR-2021",
            reason.clone(),
            "it was changed meanwhile: apply again",
        ),
        other => Problem::new(
            "DR-1100",
            other.to_string(),
            "see the node's log; apply again when it is well",
        ),
    }
}

#[async_trait]
impl Engine for NodeEngine {
    fn resources(&self) -> Vec<StoredSpec> {
        self.stored()
    }

    async fn put(&self, puts: Vec<(pb::Kind, String, Value, u64)>) -> Result<(), Problem> {
        let puts = puts
            .into_iter()
            .map(|(kind, name, spec, revision)| ResourcePut {
                kind: match kind {
                    pb::Kind::Sink => "Sink",
                    pb::Kind::Pipeline => "Pipeline",
                    pb::Kind::Source | pb::Kind::Unspecified => "Source",
                }
                .into(),
                name,
                spec_json: Bytes::from(spec.to_string()),
                expected_revision: Some(revision),
            });
        let applied = self.node.apply_resources(puts.collect()).await;
        self.wake.notify_one();
        applied.map(|_| ()).map_err(|error| unavailable(&error))
    }

    async fn remove(
        &self,
        _kind: pb::Kind,
        name: &str,
        dry_run: bool,
    ) -> Result<Vec<String>, Problem> {
        let source = self.source_of(name)?;
        let config = postgres_config(name, &source)?;
        let mut dropped = setup::owned(&config)
            .await
            .map_err(|error| error.problem())?;
        dropped.push(format!("log of source {name}"));
        if dry_run {
            return Ok(dropped);
        }
        self.node
            .delete_resource("Source", name, None)
            .await
            .map_err(|error| unavailable(&error))?;
        let running = self.captures.lock().expect("no holder panics").remove(name);
        if let Some(running) = running {
            end(running).await;
        }
        setup::drop_owned(&config)
            .await
            .map_err(|error| error.problem())?;
        self.node
            .drop_stream(name)
            .await
            .map_err(|error| unavailable(&error))?;
        Ok(dropped)
    }

    async fn preflight(&self, name: &str, spec: &Spec) -> Vec<Finding> {
        let Spec::Source(source) = spec;
        let config = match postgres_config(name, source) {
            Ok(config) => config,
            Err(problem) => {
                return vec![Finding {
                    severity: "error",
                    subject: name.to_owned(),
                    problem: Some(problem),
                }];
            }
        };
        let findings = check(&config).await.into_iter().map(|finding| Finding {
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

    fn status(&self, kind: pb::Kind, name: &str) -> pb::Status {
        if kind != pb::Kind::Source {
            return pb::Status {
                state: "pending".into(),
                ..pb::Status::default()
            };
        }
        let running = self
            .captures
            .lock()
            .expect("no holder panics")
            .get(name)
            .map(|c| c.status.get());
        let problem = self
            .unstartable
            .lock()
            .expect("no holder panics")
            .get(name)
            .cloned();
        source_status(running, problem, self.node.state(name).as_deref())
    }

    fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}
