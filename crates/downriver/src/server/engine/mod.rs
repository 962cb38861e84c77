//! What runs on this node: reads what should be from the replicated state, makes it so, and answers for the
//! services.
//!
//! - `captures`: one for each source.
//! - `chunks`: parts of snapshots, read for the node that captures their source.
//! - `lakes`: one for each sink: its store and its catalog.
//! - `pipelines`: a delivery for each pipeline that is not paused, and how long the log is kept for it.
//! - `shares`: which of a pipeline's tables are delivered here, where they are shared out over nodes.
//! - `groups`: how far consumers have come.
//! - `nodes`: who they are, and which of them runs what.
//! - `stored`: the form of what the replicated state holds for it.
//! - `wait`, `verify`: what is asked of a pipeline.
//!
//! Starting and stopping is the reconciler's alone, under `acting`; whoever deletes takes `acting` as well, so
//! that nothing is started from a specification that is gone.

mod approved;
mod backups;
mod captures;
mod chunks;
mod groups;
mod lakes;
mod nodes;
mod paused;
mod pipelines;
mod rates;
mod replicated;
mod resnapshot;
mod shares;
mod source_config;
mod stored;
mod verify;
mod wait;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use downriver_api::admin::v1 as pb;
use downriver_cluster::{ControlError, Node, ResourcePut, Task, pipeline_task, source_task};
use downriver_event::filter::WrittenFilter;
use downriver_event::problem::Problem;
use downriver_event::{Offset, SourcePosition};
use downriver_log::Log as _;
use downriver_service::spec::{Source, Spec};
use downriver_service::{
    ConsumerGroup, Engine, Finding, GroupCommit, Reached, StoredSpec, TableName, Verified, Where,
    Whose,
};
use serde_json::Value;
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Addresses;
use captures::RunningCapture;
use lakes::Lake;
use pipelines::RunningDelivery;
use rates::Rates;

pub(super) use chunks::chunk_service;
pub(super) use lakes::s3_options;
pub(super) use nodes::NodeFigures;
pub(super) use pipelines::PipelineView;
pub(super) use stored::check as check_stored;

/// How often what runs is compared with what should run, besides being woken.
const RECONCILE_EVERY: Duration = Duration::from_secs(1);
/// How often the leader looks who is alive.
const ASSIGN_EVERY: Duration = Duration::from_millis(250);

/// One time that a node was given a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Turn(u64);

pub(super) struct NodeEngine {
    node: Arc<Node>,
    data: PathBuf,
    addresses: Addresses,
    acting: tokio::sync::Mutex<()>,
    captures: Mutex<BTreeMap<String, RunningCapture>>,
    lakes: Mutex<BTreeMap<String, Lake>>,
    /// By pipeline and share.
    deliveries: Mutex<BTreeMap<(String, u32), RunningDelivery>>,
    /// What cannot be started, and why.
    unstartable: Mutex<BTreeMap<(pb::Kind, String), Problem>>,
    /// Where each source's log must begin for its pipelines; `None`: not known yet, so nothing is forgotten.
    kept: Arc<Mutex<Option<BTreeMap<String, Offset>>>>,
    rates: Mutex<Rates>,
    /// Comparisons under way, and what tells them to end.
    verifications: TaskTracker,
    stopping: CancellationToken,
    wake: Notify,
    changed: watch::Sender<u64>,
}

/// No holder of these locks panics: they are held for a look or a change of one entry.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no holder panics")
}

impl NodeEngine {
    pub(super) fn new(node: Arc<Node>, data: PathBuf, addresses: Addresses) -> Arc<Self> {
        let kept: Arc<Mutex<Option<BTreeMap<String, Offset>>>> = Arc::default();
        let protected = Arc::clone(&kept);
        // Called with the replicated state locked: it looks at what the reconciler has put down.
        node.protect(move |stream| match &*locked(&protected) {
            None => Some(Offset(0)),
            Some(kept) => kept.get(stream).copied(),
        });
        Arc::new(Self {
            node,
            data,
            addresses,
            acting: tokio::sync::Mutex::default(),
            captures: Mutex::default(),
            lakes: Mutex::default(),
            deliveries: Mutex::default(),
            unstartable: Mutex::default(),
            kept,
            rates: Mutex::default(),
            verifications: TaskTracker::new(),
            stopping: CancellationToken::new(),
            wake: Notify::new(),
            changed: watch::Sender::new(0),
        })
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
                    spec: stored::decode(&resource.spec_json).ok()?,
                    revision: resource.revision,
                })
            })
            .collect()
    }

    /// The stored resources of a kind, by name.
    fn stored_of(&self, kind: pb::Kind) -> BTreeMap<String, StoredSpec> {
        let stored = self.stored().into_iter().filter(|s| s.kind == kind);
        stored.map(|s| (s.name.clone(), s)).collect()
    }

    /// The parsed specification of a stored resource.
    fn spec_of(&self, kind: pb::Kind, name: &str) -> Result<Spec, Problem> {
        let word = kind_name(kind);
        match self.stored_of(kind).get(name) {
            Some(stored) => Spec::parse(word, &stored.spec),
            None => Err(Problem::new(
                "DR-2020",
                format!("there is no {} {name:?}", word.to_lowercase()),
                format!("see downriver get {}s", word.to_lowercase()),
            )),
        }
    }

    /// As the leader: keeps every source and pipeline with a node that is alive, until it is told to stop.
    pub(super) async fn assign(self: Arc<Self>, stop: CancellationToken) {
        let mut changes = self.node.control_changes();
        while !stop.is_cancelled() {
            changes.borrow_and_update();
            if let Err(error) = self.node.assign(&self.tasks()).await {
                tracing::warn!(error = %error, "nothing can be assigned now");
            }
            tokio::select! {
                () = stop.cancelled() => {}
                _ = changes.changed() => {}
                () = tokio::time::sleep(ASSIGN_EVERY) => {}
            }
        }
    }

    /// Everything that some node has to run.
    fn tasks(&self) -> Vec<Task> {
        let mut tasks = Vec::new();
        for stored in self.stored() {
            match stored.kind {
                pb::Kind::Source => tasks.push(Task {
                    key: source_task(&stored.name),
                    ..Task::default()
                }),
                pb::Kind::Pipeline => {
                    let shares = match Spec::parse("Pipeline", &stored.spec) {
                        Ok(Spec::Pipeline(pipeline)) => pipeline.shares(),
                        _ => 1,
                    };
                    // What is read from the log where it is written needs no network.
                    let source = stored.spec["source"].as_str().map(source_task);
                    tasks.extend((0..shares).map(|share| Task {
                        key: pipeline_task(&stored.name, share),
                        near: source.clone().filter(|_| share == 0),
                        apart: (shares > 1).then(|| stored.name.clone()),
                    }));
                }
                pb::Kind::Sink | pb::Kind::Unspecified => {}
            }
        }
        tasks
    }

    /// When this node was given a task, if it is to run it. What was given away and came back is another turn.
    fn turn(&self, task: &str) -> Option<Turn> {
        let assigned = self.node.assigned(task)?;
        (assigned.node == self.node.id()).then_some(Turn(assigned.since))
    }

    /// Keeps what runs equal to what should run here, until it is told to stop; then stops everything.
    pub(super) async fn reconcile(self: Arc<Self>, stop: CancellationToken) {
        let mut changes = self.node.control_changes();
        while !stop.is_cancelled() {
            changes.borrow_and_update();
            self.reconcile_once().await;
            self.changed.send_modify(|changes| *changes += 1);
            tokio::select! {
                () = stop.cancelled() => {}
                () = self.wake.notified() => {}
                _ = changes.changed() => {}
                () = tokio::time::sleep(RECONCILE_EVERY) => {}
            }
        }
        self.stopping.cancel();
        self.verifications.close();
        self.verifications.wait().await;
        // What reads the log first.
        let deliveries = std::mem::take(&mut *locked(&self.deliveries));
        for delivery in deliveries.into_values() {
            delivery.end().await;
        }
        let captures = std::mem::take(&mut *locked(&self.captures));
        for capture in captures.into_values() {
            capture.end().await;
        }
    }

    async fn reconcile_once(&self) {
        let _acting = self.acting.lock().await;
        let stored = self.stored();
        locked(&self.unstartable)
            .retain(|(kind, name), _| stored.iter().any(|s| s.kind == *kind && s.name == *name));
        self.reconcile_captures().await;
        self.reconcile_lakes();
        self.reconcile_deliveries().await;
        if self.node.leads() {
            self.forget_orphans().await;
        }
        self.keep_what_is_needed();
        self.measure();
    }

    /// Says why something does not run, once.
    fn cannot_start(&self, kind: pb::Kind, name: &str, problem: Problem) {
        let mut unstartable = locked(&self.unstartable);
        let key = (kind, name.to_owned());
        if unstartable.get(&key) != Some(&problem) {
            tracing::error!(
                kind = kind_name(kind),
                name,
                code = problem.code,
                reason = problem.reason,
                "cannot be started"
            );
        }
        unstartable.insert(key, problem);
    }

    fn can_start(&self, kind: pb::Kind, name: &str) {
        locked(&self.unstartable).remove(&(kind, name.to_owned()));
    }

    fn why_not_started(&self, kind: pb::Kind, name: &str) -> Option<Problem> {
        locked(&self.unstartable)
            .get(&(kind, name.to_owned()))
            .cloned()
    }

    fn measure(&self) {
        let sources = self.sources().into_iter();
        let sources = sources.map(|(name, s)| ((pb::Kind::Source, name), s.events));
        let pipelines = self.pipelines().into_iter();
        let pipelines = pipelines.map(|(name, s)| ((pb::Kind::Pipeline, name), s.status.events));
        locked(&self.rates).measure(sources.chain(pipelines).collect());
    }
}

fn kind_name(kind: pb::Kind) -> &'static str {
    match kind {
        pb::Kind::Source | pb::Kind::Unspecified => "Source",
        pb::Kind::Sink => "Sink",
        pb::Kind::Pipeline => "Pipeline",
    }
}

fn unavailable(error: &ControlError) -> Problem {
    match error {
        ControlError::Conflict(reason) => Problem::new(
            "DR-2021",
            reason.clone(),
            "it was changed meanwhile: apply again",
        ),
        other => Problem::new(
            "DR-1100",
            other.to_string(),
            "see the node's log; try again when it is well",
        ),
    }
}

#[async_trait]
impl Engine for NodeEngine {
    fn resources(&self) -> Vec<StoredSpec> {
        self.stored()
    }

    async fn put(&self, puts: Vec<(pb::Kind, String, Value, u64)>) -> Result<(), Problem> {
        for (kind, _, spec, _) in &puts {
            // A new pipeline reads the whole log: nothing of it may be forgotten from here on.
            if *kind == pb::Kind::Pipeline
                && let Some(source) = spec["source"].as_str()
            {
                self.keep_all_of(source);
            }
        }
        let puts = puts
            .into_iter()
            .map(|(kind, name, spec, revision)| ResourcePut {
                kind: kind_name(kind).into(),
                name,
                spec_json: stored::encode(&spec),
                expected_revision: Some(revision),
            });
        let applied = self.node.apply_resources(puts.collect()).await;
        self.wake.notify_one();
        applied.map(|_| ()).map_err(|error| unavailable(&error))
    }

    async fn remove(
        &self,
        kind: pb::Kind,
        name: &str,
        dry_run: bool,
    ) -> Result<Vec<String>, Problem> {
        match kind {
            pb::Kind::Source | pb::Kind::Unspecified => self.remove_source(name, dry_run).await,
            pb::Kind::Sink => self.remove_sink(name, dry_run).await,
            pb::Kind::Pipeline => self.remove_pipeline(name, dry_run).await,
        }
    }

    async fn preflight(&self, name: &str, spec: &Spec) -> Vec<Finding> {
        match spec {
            Spec::Source(source) => {
                let has_log = self.node.state(name).is_some();
                captures::preflight(name, source, has_log).await
            }
            Spec::Sink(sink) => self.preflight_sink(name, sink).await,
            // Everything about it is checked against its source and sink.
            Spec::Pipeline(_) => Vec::new(),
        }
    }

    async fn tables(
        &self,
        name: &str,
        source: &Source,
        changed: bool,
    ) -> Result<Vec<TableName>, Problem> {
        if !changed && let Some(tables) = self.captured_tables(name) {
            return Ok(tables);
        }
        captures::list_tables(name, source).await
    }

    fn log_start(&self, source: &str) -> Option<Offset> {
        self.node.state(source).map(|state| state.trimmed)
    }

    fn status(&self, kind: pb::Kind, name: &str) -> pb::Status {
        let mut status = match kind {
            pb::Kind::Source | pb::Kind::Unspecified => self.source_status(name),
            pb::Kind::Sink => self.sink_status(name),
            pb::Kind::Pipeline => self.pipeline_status(name),
        };
        status.rows_per_second = locked(&self.rates).of(kind, name);
        status
    }

    fn leader(&self) -> Where {
        self.leader_node()
    }

    fn owner(&self, kind: pb::Kind, name: &str) -> Where {
        self.owner_of(kind, name)
    }

    fn sharers(&self, pipeline: &str) -> Vec<(Where, Vec<u32>)> {
        self.sharers_of(pipeline)
    }

    fn knows_shares(&self) -> bool {
        self.node.knows_shares()
    }

    fn nodes(&self) -> Vec<pb::Node> {
        self.known_nodes()
    }

    async fn add_node(&self, address: &str) -> Result<u64, Problem> {
        self.let_in(address).await
    }

    async fn remove_node(&self, node: &str) -> Result<(), Problem> {
        self.take_out(node).await
    }

    async fn transfer_leader(&self, node: &str) -> Result<String, Problem> {
        self.let_lead(node).await
    }

    async fn back_up(&self) -> Result<pb::Backup, Problem> {
        self.take_backup().await
    }

    async fn backups(&self) -> Result<Vec<pb::Backup>, Problem> {
        self.list_backups().await
    }

    fn groups(&self) -> Vec<ConsumerGroup> {
        self.known_groups()
    }

    async fn group(&self, source: &str, name: &str) -> Result<Option<ConsumerGroup>, Problem> {
        self.group_now(source, name).await
    }

    async fn take_group(
        &self,
        source: &str,
        name: &str,
        member: &str,
    ) -> Result<ConsumerGroup, Problem> {
        let taken = self.node.take_group(source, name, member).await;
        let group = taken.map_err(|error| unavailable(&error))?;
        Ok(self.consumer_group(group))
    }

    async fn commit_group(&self, commit: GroupCommit) -> Result<Option<ConsumerGroup>, Problem> {
        self.commit(commit).await
    }

    async fn drop_group(&self, source: &str, name: &str) -> Result<(), Problem> {
        let dropped = self.node.drop_group(source, name).await;
        dropped.map_err(|error| unavailable(&error))
    }

    async fn pause(&self, pipeline: &str, tables: &[String]) -> Result<(), Problem> {
        self.pause_tables(pipeline, tables).await
    }

    async fn resume(&self, pipeline: &str, tables: &[String]) -> Result<(), Problem> {
        self.resume_tables(pipeline, tables).await
    }

    async fn resnapshot(
        &self,
        pipeline: &str,
        tables: &[String],
        part: Option<WrittenFilter>,
    ) -> Result<Vec<(TableName, u64)>, Problem> {
        self.resnapshot_tables(pipeline, tables, part).await
    }

    async fn take_effect(&self, pipeline: &str, retries: bool) -> Result<(), Problem> {
        self.come_up().await?;
        if retries {
            self.end_stopped(pipeline).await;
        }
        self.reconcile_now().await;
        Ok(())
    }

    async fn wait(
        &self,
        pipeline: &str,
        shares: &[u32],
        until: Option<Offset>,
        timeout: Duration,
    ) -> Result<Reached, Problem> {
        self.wait_caught_up(pipeline, shares, until, timeout).await
    }

    async fn passed(
        &self,
        source: &str,
        position: &SourcePosition,
        timeout: Duration,
    ) -> Result<Offset, Problem> {
        self.source_has_passed(source, position, timeout).await
    }

    async fn verify(
        &self,
        pipeline: &str,
        tables: &[String],
        whose: Whose<'_>,
    ) -> Result<mpsc::Receiver<Verified>, Problem> {
        self.verify_tables(pipeline, tables, whose).await
    }

    fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}
