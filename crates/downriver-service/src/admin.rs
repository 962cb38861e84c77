//! The admin service: plans, applies and shows resources, and passes on what is asked of pipelines.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use downriver_api::admin::v1::admin_service_server::AdminService;
use downriver_api::admin::v1::{self as pb};
use downriver_event::filter::WrittenFilter;
use downriver_event::problem::Problem;
use downriver_event::{Incarnation, Offset, SourcePosition};
use serde_json::Value;
use tokio::sync::{Mutex, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Code, Request, Response, Status};

use crate::condition;
use crate::plan::{check_unused, parse, plan};
use crate::problem::{of_status, status, to_pb};
use crate::route::{
    STATUS_WITHIN, Where, elsewhere, is_passed_on, passed_on, resource, shares_of, to_sharer,
};
use crate::spec::{Source, Spec};

const PAGE_SIZE_MAX: u32 = 500;
/// A watch answers at most this often.
const WATCH_EVERY: Duration = Duration::from_millis(500);
const WAIT_DEFAULT: Duration = Duration::from_secs(60);
const ASK_AGAIN: Duration = Duration::from_millis(200);

/// A stored specification.
#[derive(Clone, Debug)]
pub struct StoredSpec {
    pub kind: pb::Kind,
    pub name: String,
    pub spec: Value,
    pub revision: u64,
}

#[derive(Clone, Debug)]
pub struct Finding {
    /// error, warning or ok.
    pub severity: &'static str,
    pub subject: String,
    pub problem: Option<Problem>,
}

/// How far consumers have come in a source's log, and who of them may say so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsumerGroup {
    pub source: String,
    pub name: String,
    pub member: String,
    pub epoch: u64,
    /// `None`: nothing was committed yet.
    pub cursor: Option<(Incarnation, Offset)>,
    /// Events that it has not consumed.
    pub behind: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupCommit {
    pub source: String,
    pub name: String,
    pub epoch: u64,
    pub expected: Option<(Incarnation, Offset)>,
    pub cursor: (Incarnation, Offset),
}

/// A table of a source.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TableName {
    pub schema: String,
    pub table: String,
}

impl std::fmt::Display for TableName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.schema, self.table)
    }
}

/// What a pipeline has caught up with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reached {
    /// The source's position at the call, as text; empty where an offset was asked for.
    pub position: String,
    /// The offset that had to be delivered.
    pub until: Offset,
    pub delivered: Offset,
}

/// Which tables of a pipeline are meant.
#[derive(Clone, Copy, Debug)]
pub enum Whose<'a> {
    /// Those of these shares.
    Shares(&'a [u32]),
    /// All but those of these shares.
    AllBut(&'a [u32]),
}

/// Progress or a verdict; a problem ends the comparison.
pub type Verified = Result<pb::VerifyResponse, Problem>;

/// What runs, as the services ask for it; the binary implements it.
#[async_trait]
pub trait Engine: Send + Sync + 'static {
    fn resources(&self) -> Vec<StoredSpec>;

    /// Stores all or none; the revision is the one that must be current, 0 for none.
    async fn put(&self, puts: Vec<(pb::Kind, String, Value, u64)>) -> Result<(), Problem>;

    /// Stops, drops what was made for it, and forgets it. Returns what is dropped.
    async fn remove(
        &self,
        kind: pb::Kind,
        name: &str,
        dry_run: bool,
    ) -> Result<Vec<String>, Problem>;

    /// Looks at the database, the warehouse and the catalog; changes nothing.
    async fn preflight(&self, name: &str, spec: &Spec) -> Vec<Finding>;

    /// The tables that a source captures. `changed`: what runs is another specification, or none.
    async fn tables(
        &self,
        name: &str,
        source: &Source,
        changed: bool,
    ) -> Result<Vec<TableName>, Problem>;

    /// First offset that a source's log still has; `None` without a log.
    fn log_start(&self, source: &str) -> Option<Offset>;

    /// As this node sees it.
    fn status(&self, kind: pb::Kind, name: &str) -> pb::Status;

    /// The node that decides what is stored.
    fn leader(&self) -> Where;

    /// The node that runs it; of a pipeline, the one with its first share, which answers for it.
    fn owner(&self, kind: pb::Kind, name: &str) -> Where;

    /// Where the other shares of a pipeline's tables run, and which.
    fn sharers(&self, pipeline: &str) -> Vec<(Where, Vec<u32>)>;

    /// Whether every node knows that a pipeline's tables can be shared out.
    fn knows_shares(&self) -> bool;

    fn nodes(&self) -> Vec<pb::Node>;

    /// As the leader: lets a node in. Its number.
    async fn add_node(&self, address: &str) -> Result<u64, Problem>;

    /// As the leader: takes a node out of the cluster.
    async fn remove_node(&self, node: &str) -> Result<(), Problem>;

    /// As the leader: lets another lead, which is named or not. Its name.
    async fn transfer_leader(&self, node: &str) -> Result<String, Problem>;

    /// As the leader: puts a backup of the cluster into the object store.
    async fn back_up(&self) -> Result<pb::Backup, Problem>;

    /// The object store's, the oldest first.
    async fn backups(&self) -> Result<Vec<pb::Backup>, Problem>;

    fn groups(&self) -> Vec<ConsumerGroup>;

    /// A group as it stands now, also where another node has just changed it.
    async fn group(&self, source: &str, name: &str) -> Result<Option<ConsumerGroup>, Problem>;

    /// Makes somebody the member of a group, which is made if it is not there.
    async fn take_group(
        &self,
        source: &str,
        name: &str,
        member: &str,
    ) -> Result<ConsumerGroup, Problem>;

    /// Moves a group's cursor. `Some`: epoch or cursor are not the group's, which stands so.
    async fn commit_group(&self, commit: GroupCommit) -> Result<Option<ConsumerGroup>, Problem>;

    async fn drop_group(&self, source: &str, name: &str) -> Result<(), Problem>;

    /// Without tables: the whole pipeline. It stays so over restarts.
    async fn pause(&self, pipeline: &str, tables: &[String]) -> Result<(), Problem>;

    /// Without tables: the whole pipeline, and every table of it that was paused alone.
    async fn resume(&self, pipeline: &str, tables: &[String]) -> Result<(), Problem>;

    /// Returns when what was stored of a pipeline before the call has taken effect here. `retries`: what a problem has stopped
    /// is tried again.
    async fn take_effect(&self, pipeline: &str, retries: bool) -> Result<(), Problem>;

    /// Takes the snapshot of tables again, without tables of all, or of a part of each: the generation that each will
    /// have. Returns when that outlasts a crash.
    async fn resnapshot(
        &self,
        pipeline: &str,
        tables: &[String],
        part: Option<WrittenFilter>,
    ) -> Result<Vec<(TableName, u64)>, Problem>;

    /// Returns when everything committed at the source before the call is delivered by the shares that run here, or
    /// everything before an offset. These shares must.
    async fn wait(
        &self,
        pipeline: &str,
        shares: &[u32],
        until: Option<Offset>,
        timeout: Duration,
    ) -> Result<Reached, Problem>;

    /// Returns when everything committed at a source up to a position is in its log, whose end that is.
    async fn passed(
        &self,
        source: &str,
        position: &SourcePosition,
        timeout: Duration,
    ) -> Result<Offset, Problem>;

    /// Compares source and target; every selected table of these ends with a verdict.
    async fn verify(
        &self,
        pipeline: &str,
        tables: &[String],
        whose: Whose<'_>,
    ) -> Result<mpsc::Receiver<Verified>, Problem>;

    /// Changes whenever a status or a resource does.
    fn changed(&self) -> watch::Receiver<u64>;
}

#[derive(Clone)]
pub(crate) struct Admin {
    pub(crate) engine: Arc<dyn Engine>,
    /// Held from a check to what it allows: a sink must not be deleted while a pipeline into it is applied.
    changing: Arc<Mutex<()>>,
}

impl Admin {
    pub(crate) fn new(engine: Arc<dyn Engine>) -> Self {
        Self {
            engine,
            changing: Arc::default(),
        }
    }

    /// With the status that it has on this node.
    pub(crate) fn resource(&self, stored: StoredSpec) -> pb::Resource {
        let status = self.engine.status(stored.kind, &stored.name);
        resource(stored, Some(status))
    }

    /// Which node runs a pipeline. One that is not known here is not known anywhere.
    fn runs(&self, pipeline: &str) -> Where {
        self.engine.owner(pb::Kind::Pipeline, pipeline)
    }

    fn known_pipeline(&self, name: &str) -> Result<(), Status> {
        let known = self
            .engine
            .resources()
            .iter()
            .any(|s| s.kind == pb::Kind::Pipeline && s.name == name);
        if known {
            Ok(())
        } else {
            Err(not_found(pb::Kind::Pipeline, name))
        }
    }

    async fn take_effect(&self, pipeline: &str, retries: bool) -> Result<(), Status> {
        let taken = self.engine.take_effect(pipeline, retries).await;
        taken.map_err(|problem| refused(&problem))
    }

    fn selected(&self, kind: pb::Kind, name: &str) -> Vec<StoredSpec> {
        let mut stored = self.engine.resources();
        stored.retain(|s| {
            (kind == pb::Kind::Unspecified || s.kind == kind) && (name.is_empty() || s.name == name)
        });
        stored
    }

    /// What is asked of a pipeline's shares: all that run here and, where none is named, all that run elsewhere.
    async fn wait_here(
        &self,
        request: &pb::WaitRequest,
        shares: &[u32],
        deadline: tokio::time::Instant,
    ) -> Result<pb::WaitResponse, Status> {
        let pipeline = &request.pipeline;
        let left = || deadline.saturating_duration_since(tokio::time::Instant::now());
        let until = request.offset.map(Offset);
        let others = || -> Result<BTreeSet<u32>, Status> {
            let sharers = self.sharers(pipeline)?.into_iter();
            Ok(sharers.flat_map(|(_, shares)| shares).collect())
        };
        let before = match shares.is_empty() {
            true => others()?,
            false => BTreeSet::new(),
        };
        let reached = self.engine.wait(pipeline, shares, until, left()).await;
        let reached = reached.map_err(|problem| refused(&problem))?;
        if shares.is_empty() {
            if !before.is_subset(&others()?) {
                let reason = format!("tables of pipeline {pipeline:?} moved to another node");
                let problem = Problem::new("DR-1109", reason, "ask again");
                return Err(refused(&problem));
            }
            let asked = pb::WaitRequest {
                offset: Some(reached.until.0),
                timeout: prost_types::Duration::try_from(left()).ok(),
                pipeline: pipeline.clone(),
            };
            let sharers = self.sharers(pipeline)?;
            let waiting = sharers.into_iter().map(|(mut sharer, shares)| {
                let asked = to_sharer(asked.clone(), &shares);
                async move { sharer.wait(asked).await }
            });
            futures_util::future::try_join_all(waiting).await?;
        }
        Ok(pb::WaitResponse {
            position: reached.position,
            delivered_offset: reached.delivered.0,
        })
    }

    /// `here`: only what this node knows of them.
    async fn shown(&self, stored: Vec<StoredSpec>, here: bool) -> Vec<pb::Resource> {
        if here {
            return stored.into_iter().map(|s| self.resource(s)).collect();
        }
        self.with_status(stored).await
    }
}

pub(crate) fn kind_name(kind: pb::Kind) -> &'static str {
    match kind {
        pb::Kind::Source => "Source",
        pb::Kind::Sink => "Sink",
        pb::Kind::Pipeline => "Pipeline",
        pb::Kind::Unspecified => "unspecified",
    }
}

/// Whether a call came to a node that does not run it any more, or that is gone.
fn has_moved(status: &Status) -> bool {
    let problem = of_status(status);
    status.code() == Code::Unavailable || problem.is_some_and(|problem| problem.code == "DR-1109")
}

pub(crate) fn no_group(source: &str, name: &str) -> Status {
    let problem = Problem::new(
        "DR-2042",
        format!("source {source:?} has no group {name:?}"),
        "see downriver get groups; FetchOffset with take makes one",
    );
    status(Code::NotFound, &problem)
}

fn not_found(kind: pb::Kind, name: &str) -> Status {
    let kind = kind_name(kind).to_lowercase();
    let problem = Problem::new(
        "DR-2020",
        format!("there is no {kind} {name:?}"),
        format!("see downriver get {kind}s"),
    );
    status(Code::NotFound, &problem)
}

/// What is stored takes effect by itself where a node did not answer.
fn all_took_effect(later: &[Status]) -> Result<(), Status> {
    let Some(why) = later.first() else {
        return Ok(());
    };
    let problem = Problem::new(
        "DR-1109",
        format!(
            "it is stored, and has no effect yet on every node that runs the pipeline: {}",
            why.message()
        ),
        "nothing: a node that comes back does what is stored; see downriver describe",
    );
    Err(status(Code::Unavailable, &problem))
}

fn refused(problem: &Problem) -> Status {
    status(Code::FailedPrecondition, problem)
}

type Streaming<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl AdminService for Admin {
    async fn plan(
        &self,
        request: Request<pb::PlanRequest>,
    ) -> Result<Response<pb::PlanResponse>, Status> {
        let plan = plan(&*self.engine, &request.into_inner().resources).await;
        Ok(Response::new(pb::PlanResponse {
            changes: plan.changes(),
            problems: plan.problems.iter().map(to_pb).collect(),
            warnings: plan.warnings.iter().map(to_pb).collect(),
        }))
    }

    async fn apply(
        &self,
        request: Request<pb::ApplyRequest>,
    ) -> Result<Response<pb::ApplyResponse>, Status> {
        if let Some(mut leader) = elsewhere(&request, |_| self.engine.leader())? {
            return leader.apply(passed_on(request.into_inner())).await;
        }
        let _changing = self.changing.lock().await;
        let plan = plan(&*self.engine, &request.into_inner().resources).await;
        if let Some(problem) = plan.problems.first() {
            return Err(refused(problem));
        }
        let reply = pb::ApplyResponse {
            changes: plan.changes(),
            warnings: plan.warnings.iter().map(to_pb).collect(),
        };
        let puts = plan
            .changes
            .into_iter()
            .filter(|change| change.action != "unchanged");
        let puts: Vec<_> = puts
            .map(|put| (put.kind, put.name, put.spec, put.revision))
            .collect();
        if !puts.is_empty() {
            self.engine
                .put(puts)
                .await
                .map_err(|problem| status(Code::Aborted, &problem))?;
        }
        Ok(Response::new(reply))
    }

    async fn get(
        &self,
        request: Request<pb::GetRequest>,
    ) -> Result<Response<pb::GetResponse>, Status> {
        let here = is_passed_on(&request);
        let request = request.into_inner();
        let mut found = self.selected(request.kind(), &request.name);
        found.truncate(1);
        if found.is_empty() || request.name.is_empty() {
            return Err(not_found(request.kind(), &request.name));
        }
        Ok(Response::new(pb::GetResponse {
            resource: self.shown(found, here).await.pop(),
        }))
    }

    async fn list(
        &self,
        request: Request<pb::ListRequest>,
    ) -> Result<Response<pb::ListResponse>, Status> {
        let here = is_passed_on(&request);
        let request = request.into_inner();
        let size = match request.page_size {
            0 => PAGE_SIZE_MAX,
            size => size.min(PAGE_SIZE_MAX),
        } as usize;
        let mut resources = self.selected(request.kind(), "");
        resources.retain(|resource| resource.name > request.page_token);
        resources.sort_by(|a, b| a.name.cmp(&b.name));
        let more = resources.len() > size;
        resources.truncate(size);
        let next_page_token = match resources.last() {
            Some(last) if more => last.name.clone(),
            _ => String::new(),
        };
        Ok(Response::new(pb::ListResponse {
            resources: self.shown(resources, here).await,
            next_page_token,
        }))
    }

    async fn delete(
        &self,
        request: Request<pb::DeleteRequest>,
    ) -> Result<Response<pb::DeleteResponse>, Status> {
        let is_checked = is_passed_on(&request);
        if let Some(mut leader) = elsewhere(&request, |_| self.engine.leader())? {
            return leader.delete(request).await;
        }
        let request = request.into_inner();
        let _changing = self.changing.lock().await;
        let known = self
            .selected(request.kind(), &request.name)
            .into_iter()
            .next();
        let Some(known) = known.filter(|_| !request.name.is_empty()) else {
            return Err(not_found(request.kind(), &request.name));
        };
        if !request.etag.is_empty() && request.etag != known.revision.to_string() {
            let problem = Problem::new(
                "DR-2021",
                "it was changed since it was read",
                "read it again",
            );
            return Err(status(Code::Aborted, &problem));
        }
        check_unused(&self.engine.resources(), request.kind(), &request.name)
            .map_err(|problem| refused(&problem))?;
        // Whoever runs it stops it first.
        let owner = || self.engine.owner(request.kind(), &request.name);
        if !is_checked && let Where::There(owner) = owner() {
            return owner.client().delete(passed_on(request)).await;
        }
        let removed = self
            .engine
            .remove(request.kind(), &request.name, request.dry_run)
            .await;
        let dropped = removed.map_err(|problem| refused(&problem))?;
        Ok(Response::new(pb::DeleteResponse { dropped }))
    }

    type WatchStream = Streaming<pb::WatchResponse>;

    async fn watch(
        &self,
        request: Request<pb::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let here = is_passed_on(&request);
        let request = request.into_inner();
        let admin = self.clone();
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(async move {
            let mut changed = admin.engine.changed();
            loop {
                changed.borrow_and_update();
                let selected = admin.selected(request.kind(), &request.name);
                let resources = admin.shown(selected, here).await;
                let time = Some(prost_types::Timestamp::from(std::time::SystemTime::now()));
                if sender
                    .send(Ok(pb::WatchResponse { resources, time }))
                    .await
                    .is_err()
                {
                    return;
                }
                tokio::time::sleep(WATCH_EVERY).await;
                if changed.changed().await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn pause(
        &self,
        request: Request<pb::PauseRequest>,
    ) -> Result<Response<pb::PauseResponse>, Status> {
        if let Some(mut owner) = elsewhere(&request, |r| self.runs(&r.pipeline))? {
            return owner.pause(passed_on(request.into_inner())).await;
        }
        let is_sharer = !shares_of(&request).is_empty();
        let request = request.into_inner();
        if is_sharer {
            self.take_effect(&request.pipeline, false).await?;
            return Ok(Response::new(pb::PauseResponse {}));
        }
        self.known_pipeline(&request.pipeline)?;
        let paused = self.engine.pause(&request.pipeline, &request.tables).await;
        paused.map_err(|problem| refused(&problem))?;
        let mut later = Vec::new();
        for (mut sharer, shares) in self.sharers(&request.pipeline)? {
            let paused = sharer.pause(to_sharer(request.clone(), &shares)).await;
            later.extend(paused.err());
        }
        all_took_effect(&later)?;
        Ok(Response::new(pb::PauseResponse {}))
    }

    async fn resume(
        &self,
        request: Request<pb::ResumeRequest>,
    ) -> Result<Response<pb::ResumeResponse>, Status> {
        if let Some(mut owner) = elsewhere(&request, |r| self.runs(&r.pipeline))? {
            return owner.resume(passed_on(request.into_inner())).await;
        }
        let is_sharer = !shares_of(&request).is_empty();
        let request = request.into_inner();
        if is_sharer {
            self.take_effect(&request.pipeline, true).await?;
            return Ok(Response::new(pb::ResumeResponse {}));
        }
        self.known_pipeline(&request.pipeline)?;
        let resumed = self.engine.resume(&request.pipeline, &request.tables).await;
        resumed.map_err(|problem| refused(&problem))?;
        let mut later = Vec::new();
        for (mut sharer, shares) in self.sharers(&request.pipeline)? {
            let resumed = sharer.resume(to_sharer(request.clone(), &shares)).await;
            later.extend(resumed.err());
        }
        all_took_effect(&later)?;
        Ok(Response::new(pb::ResumeResponse {}))
    }

    async fn resnapshot(
        &self,
        request: Request<pb::ResnapshotRequest>,
    ) -> Result<Response<pb::ResnapshotResponse>, Status> {
        if let Some(mut owner) = elsewhere(&request, |r| self.runs(&r.pipeline))? {
            return owner.resnapshot(passed_on(request.into_inner())).await;
        }
        let request = request.into_inner();
        self.known_pipeline(&request.pipeline)?;
        let part = request.condition.as_deref().map(condition::parse);
        let part = part.transpose().map_err(|problem| refused(&problem))?;
        let asked = self
            .engine
            .resnapshot(&request.pipeline, &request.tables, part)
            .await;
        let tables = asked.map_err(|problem| refused(&problem))?.into_iter();
        let tables = tables.map(|(table, generation)| pb::TableGeneration {
            table: table.to_string(),
            generation,
        });
        Ok(Response::new(pb::ResnapshotResponse {
            tables: tables.collect(),
        }))
    }

    async fn check(
        &self,
        request: Request<pb::CheckRequest>,
    ) -> Result<Response<pb::CheckResponse>, Status> {
        let mut findings = Vec::new();
        for resource in request.into_inner().resources {
            match parse(&resource) {
                Ok((document, spec)) => {
                    findings.extend(self.engine.preflight(&document.name, &spec).await)
                }
                Err(problem) => findings.push(Finding {
                    severity: "error",
                    subject: resource.name,
                    problem: Some(problem),
                }),
            }
        }
        let findings = findings.into_iter().map(|finding| pb::Finding {
            severity: finding.severity.to_owned(),
            subject: finding.subject,
            problem: finding.problem.as_ref().map(to_pb),
        });
        Ok(Response::new(pb::CheckResponse {
            findings: findings.collect(),
        }))
    }

    async fn wait(
        &self,
        request: Request<pb::WaitRequest>,
    ) -> Result<Response<pb::WaitResponse>, Status> {
        let is_passed_on = is_passed_on(&request);
        let shares = shares_of(&request);
        let request = request.into_inner();
        // A node that is asked for shares may be behind, and comes up first.
        if shares.is_empty() {
            self.known_pipeline(&request.pipeline)?;
        }
        let timeout = request.timeout.and_then(|timeout| timeout.try_into().ok());
        let deadline = tokio::time::Instant::now() + timeout.unwrap_or(WAIT_DEFAULT);
        loop {
            let left = deadline.saturating_duration_since(tokio::time::Instant::now());
            let answer = match self.runs(&request.pipeline) {
                Where::There(owner) if !is_passed_on => {
                    let asked = pb::WaitRequest {
                        timeout: prost_types::Duration::try_from(left).ok(),
                        ..request.clone()
                    };
                    owner.client().wait(passed_on(asked)).await
                }
                _ => {
                    let answer = self.wait_here(&request, &shares, deadline).await;
                    answer.map(Response::new)
                }
            };
            // The pipeline moves, or its node is lost: the next one is asked.
            match answer {
                Err(status) if !is_passed_on && !left.is_zero() && has_moved(&status) => {
                    tokio::time::sleep(ASK_AGAIN.min(left)).await;
                }
                answer => return answer,
            }
        }
    }

    async fn passed(
        &self,
        request: Request<pb::PassedRequest>,
    ) -> Result<Response<pb::PassedResponse>, Status> {
        let owner =
            |request: &pb::PassedRequest| self.engine.owner(pb::Kind::Source, &request.source);
        if let Some(mut owner) = elsewhere(&request, owner)? {
            return owner.passed(passed_on(request.into_inner())).await;
        }
        let request = request.into_inner();
        if self.selected(pb::Kind::Source, &request.source).is_empty() {
            return Err(not_found(pb::Kind::Source, &request.source));
        }
        let position = request.position.as_ref();
        let Some(position) = position.and_then(SourcePosition::from_pb) else {
            let problem = Problem::new(
                "DR-2048",
                "the position is none that a source has",
                "send one as events have it",
            );
            return Err(status(Code::InvalidArgument, &problem));
        };
        let timeout = request.timeout.and_then(|timeout| timeout.try_into().ok());
        let timeout = timeout.unwrap_or(WAIT_DEFAULT);
        let passed = self
            .engine
            .passed(&request.source, &position, timeout)
            .await;
        let offset = passed.map_err(|problem| refused(&problem))?;
        Ok(Response::new(pb::PassedResponse { offset: offset.0 }))
    }

    type VerifyStream = Streaming<pb::VerifyResponse>;

    async fn verify(
        &self,
        request: Request<pb::VerifyRequest>,
    ) -> Result<Response<Self::VerifyStream>, Status> {
        if let Some(mut owner) = elsewhere(&request, |r| self.runs(&r.pipeline))? {
            let verified = owner.verify(passed_on(request.into_inner())).await?;
            return Ok(Response::new(Box::pin(verified.into_inner())));
        }
        let shares = shares_of(&request);
        let request = request.into_inner();
        let pipeline = &request.pipeline;
        if shares.is_empty() {
            self.known_pipeline(pipeline)?;
        }
        let sharers = match shares.is_empty() {
            true => self.sharers(pipeline)?,
            false => Vec::new(),
        };
        let others: Vec<u32> = sharers
            .iter()
            .flat_map(|(_, shares)| shares.clone())
            .collect();
        let whose = match shares.is_empty() {
            true => Whose::AllBut(&others),
            false => Whose::Shares(&shares),
        };
        let verified = self.engine.verify(pipeline, &request.tables, whose).await;
        let responses = ReceiverStream::new(verified.map_err(|problem| refused(&problem))?);
        let here = responses.map(|response| response.map_err(|problem| refused(&problem)));
        let mut all: Self::VerifyStream = Box::pin(here);
        for (mut sharer, shares) in sharers {
            let verified = sharer.verify(to_sharer(request.clone(), &shares)).await?;
            all = Box::pin(all.merge(verified.into_inner()));
        }
        Ok(Response::new(all))
    }

    async fn nodes(
        &self,
        request: Request<pb::NodesRequest>,
    ) -> Result<Response<pb::NodesResponse>, Status> {
        // Only the leader knows who is alive; where it does not answer the others say what they know.
        if let Ok(Some(mut leader)) = elsewhere(&request, |_| self.engine.leader()) {
            let asked = leader.nodes(passed_on(request.into_inner()));
            if let Ok(Ok(nodes)) = tokio::time::timeout(STATUS_WITHIN, asked).await {
                return Ok(nodes);
            }
        }
        let nodes = self.engine.nodes();
        Ok(Response::new(pb::NodesResponse { nodes }))
    }

    async fn add_node(
        &self,
        request: Request<pb::AddNodeRequest>,
    ) -> Result<Response<pb::AddNodeResponse>, Status> {
        if let Some(mut leader) = elsewhere(&request, |_| self.engine.leader())? {
            return leader.add_node(request).await;
        }
        let added = self.engine.add_node(&request.get_ref().address).await;
        let id = added.map_err(|problem| refused(&problem))?;
        Ok(Response::new(pb::AddNodeResponse { id }))
    }

    async fn remove_node(
        &self,
        request: Request<pb::RemoveNodeRequest>,
    ) -> Result<Response<pb::RemoveNodeResponse>, Status> {
        if let Some(mut leader) = elsewhere(&request, |_| self.engine.leader())? {
            return leader.remove_node(request).await;
        }
        let removed = self.engine.remove_node(&request.get_ref().node).await;
        removed.map_err(|problem| refused(&problem))?;
        Ok(Response::new(pb::RemoveNodeResponse {}))
    }

    async fn transfer_leader(
        &self,
        request: Request<pb::TransferLeaderRequest>,
    ) -> Result<Response<pb::TransferLeaderResponse>, Status> {
        if let Some(mut leader) = elsewhere(&request, |_| self.engine.leader())? {
            return leader.transfer_leader(request).await;
        }
        let transferred = self.engine.transfer_leader(&request.get_ref().node).await;
        let leader = transferred.map_err(|problem| refused(&problem))?;
        Ok(Response::new(pb::TransferLeaderResponse { leader }))
    }

    async fn back_up(
        &self,
        request: Request<pb::BackUpRequest>,
    ) -> Result<Response<pb::BackUpResponse>, Status> {
        if let Some(mut leader) = elsewhere(&request, |_| self.engine.leader())? {
            return leader.back_up(request).await;
        }
        let backup = self.engine.back_up().await;
        let backup = Some(backup.map_err(|problem| refused(&problem))?);
        Ok(Response::new(pb::BackUpResponse { backup }))
    }

    async fn backups(
        &self,
        _request: Request<pb::BackupsRequest>,
    ) -> Result<Response<pb::BackupsResponse>, Status> {
        let backups = self.engine.backups().await;
        let backups = backups.map_err(|problem| refused(&problem))?;
        Ok(Response::new(pb::BackupsResponse { backups }))
    }

    async fn groups(
        &self,
        _request: Request<pb::GroupsRequest>,
    ) -> Result<Response<pb::GroupsResponse>, Status> {
        let groups = self.engine.groups().into_iter();
        let groups = groups.map(|group| pb::Group {
            source: group.source,
            name: group.name,
            member: group.member,
            epoch: group.epoch,
            offset: group.cursor.map(|(_, offset)| offset.0),
            incarnation: group.cursor.map_or(0, |(incarnation, _)| incarnation.0),
            behind: group.behind,
        });
        Ok(Response::new(pb::GroupsResponse {
            groups: groups.collect(),
        }))
    }

    async fn delete_group(
        &self,
        request: Request<pb::DeleteGroupRequest>,
    ) -> Result<Response<pb::DeleteGroupResponse>, Status> {
        let request = request.into_inner();
        let known = self.engine.group(&request.source, &request.name).await;
        if known.map_err(|problem| refused(&problem))?.is_none() {
            return Err(no_group(&request.source, &request.name));
        }
        let dropped = self.engine.drop_group(&request.source, &request.name).await;
        dropped.map_err(|problem| refused(&problem))?;
        Ok(Response::new(pb::DeleteGroupResponse {}))
    }
}
