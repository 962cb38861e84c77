//! The admin service: plans, applies and shows resources.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use downriver_api::admin::v1::admin_service_server::AdminService;
use downriver_api::admin::v1::{self as pb};
use downriver_event::problem::Problem;
use serde_json::Value;
use tokio::sync::watch;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status};

use crate::problem::{status, to_pb};
use crate::spec::{Document, Spec};

const PAGE_SIZE_MAX: u32 = 500;
/// A watch answers at most this often.
const WATCH_EVERY: Duration = Duration::from_millis(500);

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

    /// Looks at the database; changes nothing.
    async fn preflight(&self, name: &str, spec: &Spec) -> Vec<Finding>;

    fn status(&self, kind: pb::Kind, name: &str) -> pb::Status;

    /// Changes whenever a status or a resource does.
    fn changed(&self) -> watch::Receiver<u64>;
}

pub(crate) struct Admin {
    engine: Arc<dyn Engine>,
}

/// A checked change.
struct Planned {
    kind: pb::Kind,
    name: String,
    spec: Value,
    revision: u64,
    action: &'static str,
    difference: String,
}

#[derive(Default)]
struct Plan {
    changes: Vec<Planned>,
    problems: Vec<Problem>,
    warnings: Vec<Problem>,
}

impl Admin {
    pub(crate) fn new(engine: Arc<dyn Engine>) -> Self {
        Self { engine }
    }

    async fn plan(&self, resources: &[pb::Resource]) -> Plan {
        let mut plan = Plan::default();
        let stored = self.engine.resources();
        for resource in resources {
            let (document, spec) = match parse(resource) {
                Ok(parsed) => parsed,
                Err(problem) => {
                    plan.problems.push(problem);
                    continue;
                }
            };
            let known = stored
                .iter()
                .find(|s| s.kind == resource.kind() && s.name == document.name);
            if let Some(known) = known.filter(|known| known.spec == document.spec) {
                plan.changes.push(planned(
                    resource.kind(),
                    &document,
                    known.revision,
                    "unchanged",
                    String::new(),
                ));
                continue;
            }
            if plan
                .changes
                .iter()
                .any(|c| c.kind == resource.kind() && c.name == document.name)
            {
                let reason = format!("{} {:?} is there twice", document.kind, document.name);
                plan.problems
                    .push(Problem::new("DR-2009", reason, "keep one of them"));
                continue;
            }
            for finding in self.engine.preflight(&document.name, &spec).await {
                match (finding.severity, finding.problem) {
                    ("error", Some(problem)) => plan.problems.push(problem),
                    ("warning", Some(problem)) => plan.warnings.push(problem),
                    _ => {}
                }
            }
            let action = if known.is_some() { "update" } else { "create" };
            let before = known.map_or(Value::Null, |known| known.spec.clone());
            let revision = known.map_or(0, |known| known.revision);
            let difference = difference(&before, &document.spec);
            plan.changes.push(planned(
                resource.kind(),
                &document,
                revision,
                action,
                difference,
            ));
        }
        plan
    }

    fn resource(&self, stored: StoredSpec) -> pb::Resource {
        pb::Resource {
            kind: stored.kind as i32,
            status: Some(self.engine.status(stored.kind, &stored.name)),
            name: stored.name,
            spec_json: stored.spec.to_string(),
            etag: stored.revision.to_string(),
        }
    }

    fn selected(&self, kind: pb::Kind, name: &str) -> Vec<pb::Resource> {
        let stored = self.engine.resources().into_iter();
        stored
            .filter(|s| {
                (kind == pb::Kind::Unspecified || s.kind == kind)
                    && (name.is_empty() || s.name == name)
            })
            .map(|s| self.resource(s))
            .collect()
    }
}

fn planned(
    kind: pb::Kind,
    document: &Document,
    revision: u64,
    action: &'static str,
    difference: String,
) -> Planned {
    Planned {
        kind,
        name: document.name.clone(),
        spec: document.spec.clone(),
        revision,
        action,
        difference,
    }
}

fn parse(resource: &pb::Resource) -> Result<(Document, Spec), Problem> {
    let spec: Value = serde_json::from_str(&resource.spec_json).map_err(|error| {
        Problem::new(
            "DR-2001",
            format!("the specification is not JSON: {error}"),
            "send a JSON object",
        )
    })?;
    let kind = kind_name(resource.kind());
    let parsed = Spec::parse(kind, &spec)?;
    Ok((
        Document {
            kind: kind.into(),
            name: resource.name.clone(),
            spec,
        },
        parsed,
    ))
}

fn kind_name(kind: pb::Kind) -> &'static str {
    match kind {
        pb::Kind::Source => "Source",
        pb::Kind::Sink => "Sink",
        pb::Kind::Pipeline => "Pipeline",
        pb::Kind::Unspecified => "unspecified",
    }
}

/// What changes, a line a field.
fn difference(before: &Value, after: &Value) -> String {
    fn flatten(path: &str, value: &Value, lines: &mut Vec<(String, String)>) {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    let path = if path.is_empty() {
                        name.clone()
                    } else {
                        format!("{path}.{name}")
                    };
                    flatten(&path, value, lines);
                }
            }
            Value::Null => {}
            other => lines.push((path.to_owned(), other.to_string())),
        }
    }
    let (mut old, mut new) = (Vec::new(), Vec::new());
    flatten("", before, &mut old);
    flatten("", after, &mut new);
    let gone = old
        .iter()
        .filter(|line| !new.contains(line))
        .map(|(path, value)| format!("- {path}: {value}"));
    let come = new
        .iter()
        .filter(|line| !old.contains(line))
        .map(|(path, value)| format!("+ {path}: {value}"));
    gone.chain(come).collect::<Vec<_>>().join("\n")
}

fn changes(plan: &Plan) -> Vec<pb::Change> {
    let change = |change: &Planned| pb::Change {
        kind: change.kind as i32,
        name: change.name.clone(),
        action: change.action.to_owned(),
        difference: change.difference.clone(),
    };
    plan.changes.iter().map(change).collect()
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

fn no_pipelines() -> Status {
    let problem = Problem::new(
        "DR-2050",
        "pipelines are not built yet",
        "read the source's log with downriver tail",
    );
    status(Code::Unimplemented, &problem)
}

type Streaming<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl AdminService for Admin {
    async fn plan(
        &self,
        request: Request<pb::PlanRequest>,
    ) -> Result<Response<pb::PlanResponse>, Status> {
        let plan = Self::plan(self, &request.into_inner().resources).await;
        Ok(Response::new(pb::PlanResponse {
            changes: changes(&plan),
            problems: plan.problems.iter().map(to_pb).collect(),
            warnings: plan.warnings.iter().map(to_pb).collect(),
        }))
    }

    async fn apply(
        &self,
        request: Request<pb::ApplyRequest>,
    ) -> Result<Response<pb::ApplyResponse>, Status> {
        let plan = Self::plan(self, &request.into_inner().resources).await;
        if let Some(problem) = plan.problems.first() {
            return Err(status(Code::FailedPrecondition, problem));
        }
        let reply = pb::ApplyResponse {
            changes: changes(&plan),
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
        let request = request.into_inner();
        match self
            .selected(request.kind(), &request.name)
            .into_iter()
            .next()
        {
            Some(resource) if !request.name.is_empty() => Ok(Response::new(pb::GetResponse {
                resource: Some(resource),
            })),
            _ => Err(not_found(request.kind(), &request.name)),
        }
    }

    async fn list(
        &self,
        request: Request<pb::ListRequest>,
    ) -> Result<Response<pb::ListResponse>, Status> {
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
            resources,
            next_page_token,
        }))
    }

    async fn delete(
        &self,
        request: Request<pb::DeleteRequest>,
    ) -> Result<Response<pb::DeleteResponse>, Status> {
        let request = request.into_inner();
        let known = self
            .selected(request.kind(), &request.name)
            .into_iter()
            .next();
        let Some(known) = known.filter(|_| !request.name.is_empty()) else {
            return Err(not_found(request.kind(), &request.name));
        };
        if !request.etag.is_empty() && request.etag != known.etag {
            let problem = Problem::new(
                "DR-2021",
                "it was changed since it was read",
                "read it again",
            );
            return Err(status(Code::Aborted, &problem));
        }
        let removed = self
            .engine
            .remove(request.kind(), &request.name, request.dry_run)
            .await;
        let dropped = removed.map_err(|problem| status(Code::FailedPrecondition, &problem))?;
        Ok(Response::new(pb::DeleteResponse { dropped }))
    }

    type WatchStream = Streaming<pb::WatchResponse>;

    async fn watch(
        &self,
        request: Request<pb::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let request = request.into_inner();
        let admin = Self::new(Arc::clone(&self.engine));
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        tokio::spawn(async move {
            let mut changed = admin.engine.changed();
            loop {
                changed.borrow_and_update();
                let resources = admin.selected(request.kind(), &request.name);
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
        _request: Request<pb::PauseRequest>,
    ) -> Result<Response<pb::PauseResponse>, Status> {
        Err(no_pipelines())
    }

    async fn resume(
        &self,
        _request: Request<pb::ResumeRequest>,
    ) -> Result<Response<pb::ResumeResponse>, Status> {
        Err(no_pipelines())
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
        _request: Request<pb::WaitRequest>,
    ) -> Result<Response<pb::WaitResponse>, Status> {
        Err(no_pipelines())
    }

    type VerifyStream = Streaming<pb::VerifyResponse>;

    async fn verify(
        &self,
        _request: Request<pb::VerifyRequest>,
    ) -> Result<Response<Self::VerifyStream>, Status> {
        Err(no_pipelines())
    }
}
