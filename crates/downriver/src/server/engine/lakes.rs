//! Lakes: for each sink its store and its catalog, also before a pipeline uses it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use downriver_api::admin::v1 as pb;
use downriver_event::problem::Problem;
use downriver_lake::catalog::server::Catalogs;
use downriver_lake::catalog::{
    BuiltinCatalog, Catalog, CatalogError, RestCatalog, RestOptions, TableName,
};
use downriver_lake::{LakeError, Warehouse};
use downriver_log::store::{self, S3Options};
use downriver_log::{ObjectStore, StoreError};
use downriver_service::problem::to_pb;
use downriver_service::spec::{CatalogSpec, RestSpec, S3Spec, Secret, Sink, Spec};
use downriver_service::{Finding, StoredSpec};

use super::replicated::ReplicatedPointers;
use super::{NodeEngine, locked, unavailable};

/// How long a preflight waits for a store or a catalog.
const PREFLIGHT_WITHIN: Duration = Duration::from_secs(20);

/// A sink that can be used.
#[derive(Clone)]
pub(super) struct Lake {
    pub(super) revision: u64,
    pub(super) store: Arc<dyn ObjectStore>,
    pub(super) catalog: Arc<dyn Catalog>,
    /// The same catalog, if we serve it.
    builtin: Option<Arc<BuiltinCatalog>>,
}

impl NodeEngine {
    pub(super) fn reconcile_lakes(&self) {
        let wanted = self.stored_of(pb::Kind::Sink);
        locked(&self.lakes).retain(|name, lake| {
            wanted
                .get(name)
                .is_some_and(|wanted| wanted.revision == lake.revision)
        });
        for (name, stored) in wanted {
            if locked(&self.lakes).contains_key(&name) {
                continue;
            }
            match self.open_lake(&name, &stored) {
                Ok(lake) => {
                    self.can_start(pb::Kind::Sink, &name);
                    locked(&self.lakes).insert(name, lake);
                }
                Err(problem) => self.cannot_start(pb::Kind::Sink, &name, problem),
            }
        }
    }

    fn open_lake(&self, name: &str, stored: &StoredSpec) -> Result<Lake, Problem> {
        let Spec::Sink(sink) = Spec::parse("Sink", &stored.spec)? else {
            unreachable!("a sink is parsed as one");
        };
        let lake_problem = |error: LakeError| error.problem();
        let store = open_store(&sink)?;
        let (catalog, builtin): (Arc<dyn Catalog>, _) = match &sink.iceberg.catalog {
            CatalogSpec::Builtin => {
                let spool = self.data.join("catalog").join(name).join("spool");
                let warehouse = open_warehouse(Arc::clone(&store), &spool)?;
                let pointers = Arc::new(ReplicatedPointers(Arc::clone(&self.node)));
                let builtin = Arc::new(BuiltinCatalog::new(name, warehouse, pointers));
                (builtin.clone(), Some(builtin))
            }
            CatalogSpec::Rest(rest) => {
                let opened = RestCatalog::open(rest_options(rest)?);
                let rest = opened.map_err(|error| lake_problem(error.into()))?;
                (Arc::new(rest), None)
            }
        };
        Ok(Lake {
            revision: stored.revision,
            store,
            catalog,
            builtin,
        })
    }

    pub(super) fn lake(&self, sink: &str) -> Option<Lake> {
        locked(&self.lakes).get(sink).cloned()
    }

    pub(super) fn sink_status(&self, name: &str) -> pb::Status {
        let problem = self.why_not_started(pb::Kind::Sink, name);
        let used = self
            .stored_of(pb::Kind::Pipeline)
            .values()
            .any(|pipeline| pipeline.spec["sink"] == name);
        let state = match (&problem, used) {
            (Some(_), _) => "stopped",
            (None, true) => "streaming",
            (None, false) => "pending",
        };
        pb::Status {
            state: state.into(),
            problem: problem.as_ref().map(to_pb),
            ..pb::Status::default()
        }
    }

    pub(super) async fn preflight_sink(&self, name: &str, sink: &Sink) -> Vec<Finding> {
        let looked = [
            ("warehouse", look_at_warehouse(sink).await),
            ("catalog", self.look_at_catalog(name, sink).await),
        ];
        let findings = looked.map(|(subject, looked)| {
            let problem = looked.err();
            Finding {
                severity: if problem.is_some() { "error" } else { "ok" },
                subject: subject.into(),
                problem,
            }
        });
        findings.into()
    }

    async fn look_at_catalog(&self, name: &str, sink: &Sink) -> Result<(), Problem> {
        let rest = match &sink.iceberg.catalog {
            CatalogSpec::Rest(rest) => rest,
            CatalogSpec::Builtin => return self.check_pointers(name, sink),
        };
        let field = "iceberg.catalog.rest";
        let refused = |error: CatalogError| at_plan(&LakeError::from(error), field);
        let catalog = RestCatalog::open(rest_options(rest)?).map_err(refused)?;
        // A table that nobody has; what counts is that the catalog answers.
        let nobody = TableName {
            namespace: "downriver".into(),
            table: "preflight".into(),
        };
        let looked = tokio::time::timeout(PREFLIGHT_WITHIN, catalog.load(&nobody)).await;
        let looked = looked.unwrap_or_else(|_| {
            let reason = format!("no answer in {} s", PREFLIGHT_WITHIN.as_secs());
            Err(CatalogError::Unavailable(reason))
        });
        looked.map(|_| ()).map_err(refused)
    }

    /// The tables that the built-in catalog has under this name lie in this warehouse.
    fn check_pointers(&self, name: &str, sink: &Sink) -> Result<(), Problem> {
        let root = format!("{}/", sink.root());
        let pointers = self.node.pointers(name).into_iter();
        let elsewhere = pointers
            .filter(|(_, table, _)| !table.is_empty())
            .find(|(_, _, location)| !location.starts_with(&root));
        let Some((namespace, table, location)) = elsewhere else {
            return Ok(());
        };
        let mut problem = Problem::new(
            "DR-2019",
            format!("table {namespace}.{table} of sink {name:?} lies elsewhere: {location}"),
            "keep the warehouse as it was, or apply a sink of another name",
        );
        problem.field = Some("iceberg.warehouse".into());
        Err(problem)
    }

    pub(super) async fn remove_sink(
        &self,
        name: &str,
        dry_run: bool,
    ) -> Result<Vec<String>, Problem> {
        let Spec::Sink(sink) = self.spec_of(pb::Kind::Sink, name)? else {
            unreachable!("a sink is parsed as one");
        };
        let dropped = vec![format!(
            "the sink's settings; its tables in {} are left where they are",
            sink.iceberg.warehouse
        )];
        if dry_run {
            return Ok(dropped);
        }
        let _acting = self.acting.lock().await;
        self.node
            .delete_resource("Sink", name, None)
            .await
            .map_err(|error| unavailable(&error))?;
        locked(&self.lakes).remove(name);
        // Only files that were being written lie here.
        let _ = std::fs::remove_dir_all(self.data.join("catalog").join(name));
        self.wake.notify_one();
        Ok(dropped)
    }
}

/// The warehouses that are served to other engines.
impl Catalogs for NodeEngine {
    fn find(&self, warehouse: &str) -> Option<Arc<BuiltinCatalog>> {
        locked(&self.lakes).get(warehouse)?.builtin.clone()
    }

    fn names(&self) -> Vec<String> {
        let lakes = locked(&self.lakes);
        let served = lakes.iter().filter(|(_, lake)| lake.builtin.is_some());
        served.map(|(name, _)| name.clone()).collect()
    }
}

/// A warehouse over the store. What a process before left in its spool is nobody's.
pub(super) fn open_warehouse(
    store: Arc<dyn ObjectStore>,
    spool: &Path,
) -> Result<Warehouse, Problem> {
    let _ = std::fs::remove_dir_all(spool);
    Warehouse::open(store, spool).map_err(|error| LakeError::from(error).problem())
}

fn open_store(sink: &Sink) -> Result<Arc<dyn ObjectStore>, Problem> {
    let options = sink_options(sink)?;
    store::open(sink.root(), &options).map_err(|error| LakeError::from(error).problem())
}

fn resolved(secret: Option<&Secret>) -> Result<Option<String>, Problem> {
    secret.map(Secret::resolve).transpose()
}

fn sink_options(sink: &Sink) -> Result<S3Options, Problem> {
    match &sink.iceberg.s3 {
        Some(spec) => s3_options(spec),
        None => Ok(S3Options::default()),
    }
}

/// How a specification says that a store is reached.
pub(in crate::server) fn s3_options(s3: &S3Spec) -> Result<S3Options, Problem> {
    Ok(S3Options {
        endpoint: s3.endpoint.clone(),
        region: s3.region.clone(),
        path_style: s3.path_style.unwrap_or(s3.endpoint.is_some()),
        access_key: resolved(s3.access_key.as_ref())?,
        secret_key: resolved(s3.secret_key.as_ref())?,
    })
}

fn rest_options(rest: &RestSpec) -> Result<RestOptions, Problem> {
    let mut options = RestOptions::new(rest.uri.trim_end_matches('/'));
    options.warehouse.clone_from(&rest.warehouse);
    options.token = resolved(rest.token.as_ref())?;
    if let Some(credential) = resolved(rest.credential.as_ref())? {
        let (id, secret) = credential.split_once(':').ok_or_else(|| {
            let mut problem = Problem::new(
                "DR-2010",
                "the catalog's credential is not of the form id:secret",
                "correct the variable or the file that holds it",
            );
            problem.field = Some("iceberg.catalog.rest.credential".into());
            problem
        })?;
        options.credential = Some((id.to_owned(), secret.to_owned()));
    }
    Ok(options)
}

async fn look_at_warehouse(sink: &Sink) -> Result<(), Problem> {
    let field = "iceberg.warehouse";
    if let Some(folder) = sink.folder() {
        return look_at_folder(Path::new(folder)).map_err(|reason| {
            let fix = "name a folder that downriver can write, or that it can make";
            let mut problem = Problem::new("DR-2012", reason, fix);
            problem.field = Some(field.into());
            problem
        });
    }
    let refused = |error: StoreError| {
        let named =
            |reason: String| format!("{}: {}", sink.root(), reason.trim_start_matches(": "));
        let error = match error {
            StoreError::NotFound(reason) => StoreError::NotFound(named(reason)),
            StoreError::Unavailable(reason) => StoreError::Unavailable(named(reason)),
            StoreError::Refused(reason) => StoreError::Refused(named(reason)),
        };
        at_plan(&LakeError::from(error), field)
    };
    let store = store::open(sink.root(), &sink_options(sink)?).map_err(refused)?;
    let looked = tokio::time::timeout(PREFLIGHT_WITHIN, store.list("", None)).await;
    let looked = looked.unwrap_or_else(|_| {
        let reason = format!("no answer in {} s", PREFLIGHT_WITHIN.as_secs());
        Err(StoreError::Unavailable(reason))
    });
    looked.map(|_| ()).map_err(refused)
}

/// The folder, or the nearest above it that is there, is one that can be written.
fn look_at_folder(folder: &Path) -> Result<(), String> {
    let there = folder.ancestors().find(|above| above.exists());
    let there = there.unwrap_or(Path::new("/"));
    let shown = there.display();
    let metadata = there
        .metadata()
        .map_err(|error| format!("{shown} cannot be read: {error}"))?;
    if !metadata.is_dir() {
        return Err(format!("{shown} is not a folder"));
    }
    if metadata.permissions().readonly() {
        return Err(format!("{shown} cannot be written"));
    }
    Ok(())
}

/// The problem as whoever applies meets it: nothing goes on by itself.
fn at_plan(error: &LakeError, field: &str) -> Problem {
    let mut problem = error.problem();
    problem.fix = match problem.code {
        "DR-3001" => "make the warehouse's object store reachable, then apply again",
        "DR-3002" => "correct the sink's warehouse and s3 settings, then apply again",
        "DR-3003" => "make the catalog reachable, then apply again",
        _ => "correct the sink's catalog settings, then apply again",
    }
    .into();
    problem.field = Some(field.to_owned());
    problem
}
