//! Deliveries: one for each share of a pipeline that is not paused as a whole; and where the log must begin for them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use downriver_api::admin::v1 as pb;
use downriver_event::Offset;
use downriver_event::problem::Problem;
use downriver_log::Log;
use downriver_pipeline::delivery::{self, Control, DeliveryConfig, Told};
use downriver_pipeline::status::Board;
use downriver_pipeline::{DeliveryStatus, PipelineStatus, TableState};
use downriver_service::StoredSpec;
use downriver_service::spec::{Pipeline, Spec};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::super::status::pipeline_status;
use super::approved::approved_key;
use super::lakes::open_warehouse;
use super::paused::{Paused, paused_key};
use super::replicated::{ReplicatedProgress, pipeline_id_key};
use super::shares::share_of;
use super::{NodeEngine, Turn, locked, unavailable};

/// In the data folder: one folder for each pipeline. Nothing of anybody else lies here: what belongs to no pipeline is
/// removed.
const DELIVERY: &str = "delivery";
/// In a pipeline's folder: one folder for each share but the first.
const SHARES: &str = "shares";

pub(super) struct RunningDelivery {
    turn: Turn,
    /// Revisions of the pipeline and of its sink.
    revisions: (u64, u64),
    pub(super) status: Board<PipelineStatus>,
    pub(super) control: Arc<Control>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl RunningDelivery {
    pub(super) async fn end(self) {
        self.stop.cancel();
        match self.task.await {
            Err(panic) if panic.is_panic() => std::panic::resume_unwind(panic.into_panic()),
            _ => {}
        }
    }
}

/// A pipeline, running or not.
pub(in crate::server) struct PipelineView {
    pub(in crate::server) status: PipelineStatus,
    /// Age of the oldest commit that is not delivered; `None` while the source has no log.
    pub(in crate::server) lag: Option<Duration>,
}

impl NodeEngine {
    pub(super) async fn reconcile_deliveries(&self) {
        let mut wanted: BTreeMap<(String, u32), (Turn, StoredSpec)> = BTreeMap::new();
        for (name, stored) in self.stored_of(pb::Kind::Pipeline) {
            if self.paused(&name) == Paused::All {
                continue;
            }
            match Spec::parse("Pipeline", &stored.spec) {
                Ok(Spec::Pipeline(pipeline)) => {
                    for (share, turn) in self.shares_here(&name, &pipeline) {
                        wanted.insert((name.clone(), share), (turn, stored.clone()));
                    }
                }
                Ok(_) => unreachable!("a pipeline is parsed as one"),
                Err(problem) => self.cannot_start(pb::Kind::Pipeline, &name, problem),
            }
        }
        let current = |key: &(String, u32), running: &RunningDelivery| {
            let Some((turn, stored)) = wanted.get(key) else {
                return false;
            };
            let lake = stored.spec["sink"]
                .as_str()
                .and_then(|sink| self.lake(sink));
            lake.is_some_and(|lake| running.revisions == (stored.revision, lake.revision))
                && *turn == running.turn
                && !running.task.is_finished()
        };
        let ending: Vec<RunningDelivery> = {
            let mut deliveries = locked(&self.deliveries);
            let stale = deliveries.extract_if(.., |key, running| !current(key, running));
            stale.map(|(_, running)| running).collect()
        };
        // All at once: none is to go on while another one takes long.
        for delivery in &ending {
            delivery.stop.cancel();
        }
        for delivery in ending {
            delivery.end().await;
        }
        self.remove_old_folders().await;
        for (key, (turn, stored)) in wanted {
            let (name, share) = (&key.0, key.1);
            if !locked(&self.deliveries).contains_key(&key)
                && let Err(problem) = self.start_delivery(name, share, turn, &stored).await
            {
                self.cannot_start(pb::Kind::Pipeline, name, problem);
            }
            self.tell(name);
        }
    }

    /// The deliveries of a pipeline that run here, by share.
    fn running_shares(&self, name: &str) -> BTreeMap<u32, (Board<PipelineStatus>, Arc<Control>)> {
        let deliveries = locked(&self.deliveries);
        let of_it = deliveries.range((name.to_owned(), 0)..=(name.to_owned(), u32::MAX));
        let handles = of_it.map(|((_, share), running)| {
            (
                *share,
                (running.status.clone(), Arc::clone(&running.control)),
            )
        });
        handles.collect()
    }

    /// Whether nothing of a pipeline runs here by another specification than the one that is stored.
    pub(super) fn runs_as_stored(&self, name: &str) -> bool {
        let stored = self.stored_of(pb::Kind::Pipeline);
        let revision = stored.get(name).map(|stored| stored.revision);
        let deliveries = locked(&self.deliveries);
        let mut of_it = deliveries.range((name.to_owned(), 0)..=(name.to_owned(), u32::MAX));
        of_it.all(|(_, running)| Some(running.revisions.0) == revision)
    }

    /// Handles of the deliveries of a pipeline that run here, by share.
    pub(super) fn controls(&self, name: &str) -> BTreeMap<u32, Arc<Control>> {
        let running = self.running_shares(name).into_iter();
        running
            .map(|(share, (_, control))| (share, control))
            .collect()
    }

    /// What runs of a pipeline here; `None`: nothing does.
    pub(super) fn running_status(&self, name: &str) -> Option<PipelineStatus> {
        let running = self.running_shares(name).into_values();
        let statuses = running.map(|(status, _)| status.get());
        statuses.reduce(PipelineStatus::join)
    }

    /// Ends deliveries of which something was stopped by a problem; the reconciler starts them again.
    pub(super) async fn end_stopped(&self, name: &str) {
        let _acting = self.acting.lock().await;
        let stopped: Vec<RunningDelivery> = {
            let mut deliveries = locked(&self.deliveries);
            let of_it = (name.to_owned(), 0)..=(name.to_owned(), u32::MAX);
            let stopped = deliveries.extract_if(of_it, |_, delivery| {
                let status = delivery.status.get();
                let mut tables = status.tables.values();
                status.state == TableState::Stopped
                    || tables.any(|table| table.state == TableState::Stopped)
            });
            stopped.map(|(_, delivery)| delivery).collect()
        };
        for stopped in stopped {
            stopped.end().await;
        }
    }

    /// Tells deliveries that run which of their tables are paused, and which of their changes are let through.
    fn tell(&self, name: &str) {
        let Some(now) = self.told(name) else {
            return;
        };
        for control in self.controls(name).into_values() {
            control.told.send_if_modified(|told| {
                let differs = *told != now;
                told.clone_from(&now);
                differs
            });
        }
    }

    /// `None`: the whole pipeline is paused.
    fn told(&self, name: &str) -> Option<Told> {
        match self.paused(name) {
            Paused::All => None,
            Paused::Tables(paused) => Some(Told {
                paused,
                approved: self.approved(name),
            }),
        }
    }

    async fn start_delivery(
        &self,
        name: &str,
        share: u32,
        turn: Turn,
        stored: &StoredSpec,
    ) -> Result<(), Problem> {
        let Spec::Pipeline(pipeline) = Spec::parse("Pipeline", &stored.spec)? else {
            unreachable!("a pipeline is parsed as one");
        };
        let Some(lake) = self.lake(&pipeline.sink) else {
            let sink = self.why_not_started(pb::Kind::Sink, &pipeline.sink);
            return Err(sink.unwrap_or_else(|| {
                Problem::new(
                    "DR-2015",
                    format!("there is no sink {:?}", pipeline.sink),
                    "apply the sink",
                )
            }));
        };
        let folder = self.share_folder(name, share);
        let warehouse = open_warehouse(Arc::clone(&lake.store), &folder.join("spool"))?;
        let stream_id = self.stream_id(&pipeline.source, name).await;
        let config = DeliveryConfig {
            pipeline: name.to_owned(),
            source: pipeline.source.clone(),
            stream_id: stream_id.map_err(|error| unavailable(&error))?,
            catalog: lake.catalog,
            warehouse,
            namespace: pipeline.namespace.clone(),
            tables: pipeline.tables.clone(),
            share: share_of(&pipeline, share),
            freshness: pipeline.freshness(),
            schema_changes: pipeline.schema_changes(),
            folder,
        };
        self.can_start(pb::Kind::Pipeline, name);
        let control = Arc::new(Control::default());
        if let Some(told) = self.told(name) {
            control.told.send_replace(told);
        }
        let status = Board::default();
        let stop = CancellationToken::new();
        let log: Arc<dyn Log> = self.node.clone();
        let task = tokio::spawn(delivery::run(
            config,
            log,
            Arc::new(ReplicatedProgress {
                node: Arc::clone(&self.node),
                share,
            }),
            status.clone(),
            Arc::clone(&control),
            stop.clone(),
        ));
        let running = RunningDelivery {
            turn,
            revisions: (stored.revision, lake.revision),
            status,
            control,
            stop,
            task,
        };
        locked(&self.deliveries).insert((name.to_owned(), share), running);
        Ok(())
    }

    fn delivery_folder(&self, pipeline: &str) -> PathBuf {
        self.data.join(DELIVERY).join(pipeline)
    }

    fn share_folder(&self, pipeline: &str, share: u32) -> PathBuf {
        let folder = self.delivery_folder(pipeline);
        match share {
            0 => folder,
            share => folder.join(SHARES).join(share.to_string()),
        }
    }

    /// Removes what this node has of pipelines and of shares that are there no more.
    async fn remove_old_folders(&self) {
        // One that has just begun may not know yet what there is.
        if self.old_folders().is_empty() || self.come_up().await.is_err() {
            return;
        }
        for folder in self.old_folders() {
            remove(&folder);
        }
    }

    fn old_folders(&self) -> Vec<PathBuf> {
        let pipelines = self.stored_of(pb::Kind::Pipeline);
        let running: BTreeSet<(String, u32)> = locked(&self.deliveries).keys().cloned().collect();
        let mut old = Vec::new();
        for (name, folder) in folders_in(&self.data.join(DELIVERY)) {
            let Some(stored) = pipelines.get(&name) else {
                if !running.iter().any(|(pipeline, _)| *pipeline == name) {
                    old.push(folder);
                }
                continue;
            };
            let Ok(Spec::Pipeline(pipeline)) = Spec::parse("Pipeline", &stored.spec) else {
                continue;
            };
            for (share, folder) in folders_in(&folder.join(SHARES)) {
                let is_old = |share: u32| {
                    share >= pipeline.shares() && !running.contains(&(name.clone(), share))
                };
                if share.parse().is_ok_and(is_old) {
                    old.push(folder);
                }
            }
        }
        old
    }

    /// Every pipeline that this node is to run, by name.
    pub(in crate::server) fn pipelines(&self) -> Vec<(String, PipelineView)> {
        let stored = self.stored_of(pb::Kind::Pipeline).into_iter();
        let parsed =
            stored.filter_map(
                |(name, stored)| match Spec::parse("Pipeline", &stored.spec) {
                    Ok(Spec::Pipeline(pipeline)) => Some((name, pipeline)),
                    _ => None,
                },
            );
        parsed
            .filter(|(name, pipeline)| !self.shares_here(name, pipeline).is_empty())
            .map(|(name, pipeline)| {
                let view = self.view(&name, &pipeline);
                (name, view)
            })
            .collect()
    }

    pub(super) fn pipeline_status(&self, name: &str) -> pb::Status {
        match self.pipeline_spec(name) {
            Ok(pipeline) => {
                let next = self.node.state(&pipeline.source).map(|state| state.next);
                pipeline_status(&self.view(name, &pipeline), next.unwrap_or_default())
            }
            Err(problem) => {
                let status = PipelineStatus {
                    state: TableState::Stopped,
                    problem: Some(problem),
                    ..PipelineStatus::default()
                };
                pipeline_status(&PipelineView { status, lag: None }, Offset(0))
            }
        }
    }

    /// A pipeline, as far as its shares are to run here; one of which none is, as a whole.
    pub(super) fn view(&self, name: &str, pipeline: &Pipeline) -> PipelineView {
        let paused = self.paused(name);
        let running = self.running_shares(name);
        let mut shares: BTreeSet<u32> = self.shares_here(name, pipeline).into_keys().collect();
        if shares.is_empty() {
            shares.extend(0..pipeline.shares());
        }
        shares.retain(|share| !running.contains_key(share));
        let still = self.still(name, pipeline, &paused, &shares);
        let statuses = running.into_values().map(|(status, _)| status.get());
        let status = statuses.chain(still).reduce(PipelineStatus::join);
        let mut status = status.unwrap_or_default();
        for (table, delivery) in &mut status.tables {
            let runs = !matches!(delivery.state, TableState::Stopped | TableState::Refused);
            if runs && paused.has(table) {
                delivery.state = TableState::Paused;
            }
        }
        self.add_refused(pipeline, &mut status);
        let lag = self.lag(&pipeline.source, &status);
        PipelineView { status, lag }
    }

    /// The status of shares of a pipeline that do not run, from what is stored; `None`: there are none.
    fn still(
        &self,
        name: &str,
        pipeline: &Pipeline,
        paused: &Paused,
        shares: &BTreeSet<u32>,
    ) -> Option<PipelineStatus> {
        if shares.is_empty() {
            return None;
        }
        let problem = self.why_not_started(pb::Kind::Pipeline, name);
        let state = match (paused, &problem) {
            (Paused::All, _) => TableState::Paused,
            (_, Some(_)) => TableState::Stopped,
            _ => TableState::Pending,
        };
        let stored: BTreeMap<_, _> = self.node.sink_tables(name).into_iter().collect();
        let dealt = self.dealt(pipeline);
        let mut tables = BTreeMap::new();
        for (id, table) in self.logged_tables(&pipeline.source) {
            let is_of_them = dealt.get(&id).is_none_or(|share| shares.contains(share));
            if !is_of_them || !pipeline.delivers(&table.schema, &table.table) {
                continue;
            }
            let delivery = DeliveryStatus {
                state,
                delivered: stored.get(&id).map_or(Offset(0), |table| table.delivered),
                target: format!("{}.{}", pipeline.namespace_of(&table.schema), table.table),
                ..DeliveryStatus::default()
            };
            tables.insert(table.to_string(), delivery);
        }
        let delivered = tables.values().map(|table| table.delivered).min();
        Some(PipelineStatus {
            state,
            problem: problem.filter(|_| *paused != Paused::All),
            tables,
            delivered: delivered.unwrap_or_default(),
            needed: delivered.unwrap_or_default(),
            ..PipelineStatus::default()
        })
    }

    /// Tables that are refused at the source never reach the log, and are shown here as well.
    fn add_refused(&self, pipeline: &Pipeline, status: &mut PipelineStatus) {
        let Some(source) = locked(&self.captures)
            .get(&pipeline.source)
            .map(|capture| capture.status.get())
        else {
            return;
        };
        for (name, table) in source.tables {
            let (schema, plain) = name.split_once('.').unwrap_or_default();
            if table.state == TableState::Refused && pipeline.delivers(schema, plain) {
                status.tables.entry(name).or_insert(DeliveryStatus {
                    state: TableState::Refused,
                    problem: table.problem,
                    ..DeliveryStatus::default()
                });
            }
        }
    }

    fn lag(&self, source: &str, status: &PipelineStatus) -> Option<Duration> {
        let log = self.node.state(source)?;
        if status.delivered >= log.next {
            return Some(Duration::ZERO);
        }
        let oldest = self.node.time_of(source, status.delivered)?;
        // Of a segment only the time of its first commit is known, and some of it may be delivered.
        let oldest = oldest.max(status.delivered_time_us);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
        let oldest = Duration::from_micros(u64::try_from(oldest).ok()?);
        Some(now.saturating_sub(oldest))
    }

    /// Puts down where each source's log must begin for its pipelines.
    pub(super) fn keep_what_is_needed(&self) {
        let mut kept: BTreeMap<String, Offset> = BTreeMap::new();
        for (name, stored) in self.stored_of(pb::Kind::Pipeline) {
            let Some(source) = stored.spec["source"].as_str() else {
                continue;
            };
            let needed = self.needed(&name, &stored);
            let kept = kept.entry(source.to_owned()).or_insert(needed);
            *kept = needed.min(*kept);
        }
        *locked(&self.kept) = Some(kept);
    }

    /// Where the log must begin for a pipeline. A table of which nothing is stored needs everything.
    fn needed(&self, name: &str, stored: &StoredSpec) -> Offset {
        let Ok(Spec::Pipeline(pipeline)) = Spec::parse("Pipeline", &stored.spec) else {
            return Offset(0);
        };
        let Some(running) = self.running_status(name) else {
            let all = (0..pipeline.shares()).collect();
            let still = self.still(name, &pipeline, &Paused::All, &all);
            return still.map_or(Offset(0), |still| still.needed);
        };
        if pipeline.shares() == 1 && self.runs_as_stored(name) {
            return running.needed;
        }
        // Those of other shares, and those that are on their way from one to another.
        let all = (0..pipeline.shares()).collect();
        let still = self.still(name, &pipeline, &Paused::All, &all);
        let tables = still.map(|still| still.tables).unwrap_or_default();
        let others = tables.into_iter();
        let others = others.filter(|(table, _)| !running.tables.contains_key(table));
        let others = others.map(|(_, table)| table.delivered);
        others.fold(running.needed, Offset::min)
    }

    pub(super) fn keep_all_of(&self, source: &str) {
        if let Some(kept) = &mut *locked(&self.kept) {
            kept.insert(source.to_owned(), Offset(0));
        }
    }

    pub(super) async fn remove_pipeline(
        &self,
        name: &str,
        dry_run: bool,
    ) -> Result<Vec<String>, Problem> {
        let pipeline = self.pipeline_spec(name)?;
        let shares = (0..pipeline.shares()).collect();
        let still = self.still(name, &pipeline, &Paused::All, &shares);
        let shown = still.into_iter().chain([self.view(name, &pipeline).status]);
        let tables = shown.flat_map(|status| status.tables.into_values());
        let targets = tables.map(|table| table.target);
        let targets: BTreeSet<String> = targets.filter(|target| !target.is_empty()).collect();
        let mut dropped = vec![format!("progress of pipeline {name}")];
        let left = targets
            .iter()
            .map(|target| format!("nothing of lake table {target}, which is left where it is"));
        dropped.extend(left);
        if dry_run {
            return Ok(dropped);
        }
        let _acting = self.acting.lock().await;
        self.node
            .delete_resource("Pipeline", name, None)
            .await
            .map_err(|error| unavailable(&error))?;
        let of_it = (name.to_owned(), 0)..=(name.to_owned(), u32::MAX);
        let running: Vec<RunningDelivery> = {
            let mut deliveries = locked(&self.deliveries);
            let running = deliveries.extract_if(of_it, |_, _| true);
            running.map(|(_, running)| running).collect()
        };
        for running in running {
            running.end().await;
        }
        self.forget_pipeline(name)
            .await
            .map_err(|error| unavailable(&error))?;
        self.wake.notify_one();
        Ok(dropped)
    }

    async fn forget_pipeline(&self, name: &str) -> Result<(), downriver_cluster::ControlError> {
        self.node.put_record(&paused_key(name), None).await?;
        self.node.put_record(&approved_key(name), None).await?;
        self.node.put_record(&pipeline_id_key(name), None).await?;
        self.node.drop_pipeline(name).await?;
        remove(&self.delivery_folder(name));
        Ok(())
    }

    /// Ends what a crash interrupted: a pipeline that is gone leaves no progress to one of its name.
    pub(super) async fn forget_orphans(&self) {
        let stored = self.stored_of(pb::Kind::Pipeline);
        for name in self.node.sink_pipelines() {
            if stored.contains_key(&name) {
                continue;
            }
            if let Err(error) = self.forget_pipeline(&name).await {
                tracing::warn!(pipeline = name, error = %error, "progress of a deleted pipeline is left for now");
            }
        }
    }
}

/// The folders in one, by name; none if it is not there.
fn folders_in(folder: &Path) -> Vec<(String, PathBuf)> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let entries = entries.filter(|entry| entry.path().is_dir());
    let named =
        entries.filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path())));
    named.collect()
}

fn remove(folder: &Path) {
    if let Err(error) = std::fs::remove_dir_all(folder)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(folder = %folder.display(), error = %error, "a folder that nobody needs is left");
    }
}
