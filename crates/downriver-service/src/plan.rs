//! What applying would do, and what keeps it from being done. Every check looks at the resources as they would
//! be afterwards, so the order of documents in a file does not matter.

use std::collections::{BTreeMap, BTreeSet};

use downriver_api::admin::v1::{self as pb};
use downriver_event::problem::Problem;
use downriver_event::{Offset, pattern};
use serde_json::Value;

use crate::admin::{Engine, StoredSpec, TableName, kind_name};
use crate::spec::{Document, Pipeline, Sink, Source, Spec, at};

/// A checked change.
pub(crate) struct Planned {
    pub(crate) kind: pb::Kind,
    pub(crate) name: String,
    pub(crate) spec: Value,
    /// The revision that must be current; 0: none.
    pub(crate) revision: u64,
    pub(crate) action: &'static str,
    difference: String,
}

#[derive(Default)]
pub(crate) struct Plan {
    pub(crate) changes: Vec<Planned>,
    pub(crate) problems: Vec<Problem>,
    pub(crate) warnings: Vec<Problem>,
}

impl Plan {
    pub(crate) fn changes(&self) -> Vec<pb::Change> {
        let change = |change: &Planned| pb::Change {
            kind: change.kind as i32,
            name: change.name.clone(),
            action: change.action.to_owned(),
            difference: change.difference.clone(),
        };
        self.changes.iter().map(change).collect()
    }
}

/// A document that would change something.
struct Changing {
    kind: pb::Kind,
    name: String,
    spec: Spec,
    before: Option<Spec>,
}

pub(crate) async fn plan(engine: &dyn Engine, resources: &[pb::Resource]) -> Plan {
    let mut plan = Plan::default();
    let stored = engine.resources();
    let mut changing = Vec::new();
    for resource in resources {
        match parse(resource) {
            Ok((document, spec)) => take(&mut plan, &mut changing, &stored, document, spec),
            Err(problem) => plan.problems.push(problem),
        }
    }
    let afterwards = Afterwards::new(&stored, &changing);
    let mut broken_sources = BTreeSet::new();
    for change in &changing {
        let mut sound = true;
        plan.problems.extend(moved_start(engine, change));
        for finding in engine.preflight(&change.name, &change.spec).await {
            match (finding.severity, finding.problem) {
                ("error", Some(problem)) => {
                    sound = false;
                    plan.problems.push(problem);
                }
                ("warning", Some(problem)) => plan.warnings.push(problem),
                _ => {}
            }
        }
        if !sound && change.kind == pb::Kind::Source {
            broken_sources.insert(change.name.as_str());
        }
    }
    let mut tables = Tables {
        engine,
        afterwards: &afterwards,
        known: BTreeMap::new(),
    };
    for change in &changing {
        let Spec::Pipeline(pipeline) = &change.spec else {
            continue;
        };
        if broken_sources.contains(pipeline.source.as_str()) {
            continue;
        }
        let before = match &change.before {
            Some(Spec::Pipeline(before)) => Some(before),
            _ => None,
        };
        let checked = check_pipeline(&mut tables, &change.name, pipeline, before).await;
        plan.problems.extend(checked.err());
    }
    plan
}

fn take(
    plan: &mut Plan,
    changing: &mut Vec<Changing>,
    stored: &[StoredSpec],
    document: Document,
    spec: Spec,
) {
    let kind = kind_of(&spec);
    let twice = |change: &Planned| change.kind == kind && change.name == document.name;
    if plan.changes.iter().any(twice) {
        let reason = format!("{} {:?} is there twice", document.kind, document.name);
        let problem = Problem::new("DR-2009", reason, "keep one of them");
        plan.problems.push(problem);
        return;
    }
    let known = stored
        .iter()
        .find(|s| s.kind == kind && s.name == document.name);
    let action = match known {
        None => "create",
        Some(known) if known.spec == document.spec => "unchanged",
        Some(_) => "update",
    };
    plan.changes.push(Planned {
        kind,
        name: document.name.clone(),
        revision: known.map_or(0, |known| known.revision),
        action,
        difference: difference(
            known.map_or(&Value::Null, |known| &known.spec),
            &document.spec,
        ),
        spec: document.spec,
    });
    if action != "unchanged" {
        changing.push(Changing {
            kind,
            name: document.name,
            spec,
            before: known.and_then(|known| Spec::parse(kind_name(kind), &known.spec).ok()),
        });
    }
}

fn kind_of(spec: &Spec) -> pb::Kind {
    match spec {
        Spec::Source(_) => pb::Kind::Source,
        Spec::Sink(_) => pb::Kind::Sink,
        Spec::Pipeline(_) => pb::Kind::Pipeline,
    }
}

pub(crate) fn parse(resource: &pb::Resource) -> Result<(Document, Spec), Problem> {
    let spec: Value = serde_json::from_str(&resource.spec_json).map_err(|error| {
        Problem::new(
            "DR-2001",
            format!("the specification is not JSON: {error}"),
            "send a JSON object",
        )
    })?;
    let kind = kind_name(resource.kind());
    let parsed = Spec::parse(kind, &spec)?;
    let document = Document {
        kind: kind.into(),
        name: resource.name.clone(),
        spec,
    };
    Ok((document, parsed))
}

/// Where a source begins counts once.
fn moved_start(engine: &dyn Engine, change: &Changing) -> Option<Problem> {
    let Spec::Source(Source::Mysql(now)) = &change.spec else {
        return None;
    };
    let before = match &change.before {
        Some(Spec::Source(Source::Mysql(before))) => before.start.as_ref(),
        _ => None,
    };
    let is_moved = now.start.is_some() && now.start.as_ref() != before;
    (is_moved && engine.log_start(&change.name).is_some()).then(|| {
        let name = &change.name;
        let problem = Problem::new(
            "DR-1096",
            format!("source {name:?} has begun already: it goes on where its log ends, and another start would change nothing"),
            "leave start as it was; to begin elsewhere apply the same database as a source of another name",
        );
        at("mysql.start", problem)
    })
}

/// The resources as they would be.
struct Afterwards {
    sources: BTreeMap<String, Source>,
    sinks: BTreeMap<String, Sink>,
    pipelines: BTreeMap<String, Pipeline>,
    /// Sources whose specification would be another than what runs.
    changed_sources: BTreeSet<String>,
}

impl Afterwards {
    fn new(stored: &[StoredSpec], changing: &[Changing]) -> Self {
        let mut all = Self {
            sources: BTreeMap::new(),
            sinks: BTreeMap::new(),
            pipelines: BTreeMap::new(),
            changed_sources: BTreeSet::new(),
        };
        for stored in stored {
            // A specification that an older version stored and this one does not take is no ground to refuse others.
            if let Ok(spec) = Spec::parse(kind_name(stored.kind), &stored.spec) {
                all.insert(&stored.name, spec);
            }
        }
        for change in changing {
            if change.kind == pb::Kind::Source {
                all.changed_sources.insert(change.name.clone());
            }
            all.insert(&change.name, change.spec.clone());
        }
        all
    }

    fn insert(&mut self, name: &str, spec: Spec) {
        let name = name.to_owned();
        match spec {
            Spec::Source(source) => drop(self.sources.insert(name, source)),
            Spec::Sink(sink) => drop(self.sinks.insert(name, sink)),
            Spec::Pipeline(pipeline) => drop(self.pipelines.insert(name, pipeline)),
        }
    }
}

/// The sources' tables, each asked for once.
struct Tables<'a> {
    engine: &'a dyn Engine,
    afterwards: &'a Afterwards,
    known: BTreeMap<String, Result<Vec<TableName>, Problem>>,
}

impl Tables<'_> {
    async fn of(&mut self, source: &str) -> Result<Vec<TableName>, Problem> {
        if let Some(known) = self.known.get(source) {
            return known.clone();
        }
        let Some(spec) = self.afterwards.sources.get(source) else {
            return Ok(Vec::new());
        };
        let changed = self.afterwards.changed_sources.contains(source);
        let tables = self.engine.tables(source, spec, changed).await;
        self.known.insert(source.to_owned(), tables.clone());
        tables
    }
}

async fn check_pipeline(
    tables: &mut Tables<'_>,
    name: &str,
    pipeline: &Pipeline,
    before: Option<&Pipeline>,
) -> Result<(), Problem> {
    let (engine, afterwards) = (tables.engine, tables.afterwards);
    let missing = |kind: &str, missing: &str| {
        let problem = Problem::new(
            "DR-2015",
            format!("pipeline {name:?} names {kind} {missing:?}, which is not there"),
            format!("put the {kind} into the same file, or name one of downriver get {kind}s"),
        );
        Err(at(kind, problem))
    };
    if !afterwards.sources.contains_key(&pipeline.source) {
        return missing("source", &pipeline.source);
    }
    if !afterwards.sinks.contains_key(&pipeline.sink) {
        return missing("sink", &pipeline.sink);
    }
    if let Some(before) = before {
        let moved = [
            ("source", pipeline.source != before.source),
            ("sink", pipeline.sink != before.sink),
            ("namespace", pipeline.namespace != before.namespace),
        ];
        if let Some((field, _)) = moved.into_iter().find(|(_, moved)| *moved) {
            let problem = Problem::new(
                "DR-2019",
                format!(
                    "the {field} of pipeline {name:?} cannot be changed: its tables lie where they lie"
                ),
                "apply a pipeline of another name, and delete this one when it is no longer needed",
            );
            return Err(at(field, problem));
        }
    }
    if pipeline.shares() > 1 && !engine.knows_shares() {
        let problem = Problem::new(
            "DR-1114",
            format!(
                "pipeline {name:?} cannot be shared out over nodes yet: some of them run an older version"
            ),
            "upgrade all nodes, see downriver get nodes, and apply again",
        );
        return Err(at("nodes", problem));
    }
    let widened = before.is_none_or(|before| before.tables != pipeline.tables);
    let start = engine.log_start(&pipeline.source);
    if widened && start.is_some_and(|start| start > Offset(0)) {
        let problem = Problem::new(
            "DR-2017",
            format!(
                "the log of source {:?} begins at offset {}: its tables' snapshots are no longer in it",
                pipeline.source,
                start.unwrap_or_default()
            ),
            "apply the same database as a source of another name and use that one: its snapshot is taken anew",
        );
        return Err(at("source", problem));
    }
    let all = tables.of(&pipeline.source).await?;
    check_patterns(pipeline, &all)?;
    check_collisions(tables, name, pipeline).await
}

/// Every pattern selects something.
fn check_patterns(pipeline: &Pipeline, tables: &[TableName]) -> Result<(), Problem> {
    let fix = "correct the pattern; downriver get tables lists what the source has";
    for (place, wanted) in pipeline.tables.iter().enumerate() {
        let alone = [wanted.trim_start_matches('!').to_owned()];
        let found = tables
            .iter()
            .any(|table| pattern::selects(&alone, &table.schema, &table.table));
        if !found && !wanted.starts_with('!') {
            let problem = Problem::new(
                "DR-2018",
                format!(
                    "no table of source {:?} matches {wanted:?}",
                    pipeline.source
                ),
                fix,
            );
            return Err(at(&format!("tables[{place}]"), problem));
        }
    }
    let delivered = |table: &TableName| pipeline.delivers(&table.schema, &table.table);
    if tables.iter().any(delivered) {
        return Ok(());
    }
    let problem = Problem::new(
        "DR-2018",
        format!(
            "the pipeline selects no table of source {:?}",
            pipeline.source
        ),
        fix,
    );
    Err(at("tables", problem))
}

/// A lake's table is written by one pipeline from one table.
async fn check_collisions(
    tables: &mut Tables<'_>,
    name: &str,
    pipeline: &Pipeline,
) -> Result<(), Problem> {
    let same_sink = tables.afterwards.pipelines.iter();
    let same_sink = same_sink.filter(|(_, other)| other.sink == pipeline.sink);
    let mut taken: BTreeMap<String, (&str, TableName)> = BTreeMap::new();
    for (other_name, other) in same_sink {
        // Tables that cannot be listed now are compared when they are met.
        let Ok(all) = tables.of(&other.source).await else {
            continue;
        };
        for table in all {
            if !other.delivers(&table.schema, &table.table) {
                continue;
            }
            let target = format!("{}.{}", other.namespace_of(&table.schema), table.table);
            let first = taken.insert(target.to_lowercase(), (other_name.as_str(), table.clone()));
            let Some((first_pipeline, first)) = first else {
                continue;
            };
            if first_pipeline != name && other_name != name {
                continue;
            }
            let problem = Problem::new(
                "DR-2016",
                format!(
                    "lake table {target} would be written from {first} by pipeline {first_pipeline:?} and from {table} by pipeline {other_name:?}"
                ),
                "give one of the pipelines a namespace of its own, or select the table in one of them only",
            );
            return Err(at("namespace", problem));
        }
    }
    Ok(())
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

/// What keeps a resource from being deleted.
pub(crate) fn check_unused(
    stored: &[StoredSpec],
    kind: pb::Kind,
    name: &str,
) -> Result<(), Problem> {
    let field = match kind {
        pb::Kind::Source => "source",
        pb::Kind::Sink => "sink",
        pb::Kind::Pipeline | pb::Kind::Unspecified => return Ok(()),
    };
    let users = stored
        .iter()
        .filter(|s| s.kind == pb::Kind::Pipeline && s.spec[field] == name);
    let users: Vec<&str> = users.map(|s| s.name.as_str()).collect();
    if users.is_empty() {
        return Ok(());
    }
    Err(Problem::new(
        "DR-2022",
        format!("{field} {name:?} is used by pipeline {}", users.join(", ")),
        format!(
            "delete the pipeline first: downriver delete pipeline {}",
            users[0]
        ),
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use async_trait::async_trait;
    use downriver_event::SourcePosition;
    use downriver_event::filter::WrittenFilter;
    use tokio::sync::{mpsc, watch};

    use super::*;
    use crate::admin::{ConsumerGroup, Finding, GroupCommit, Reached, Verified, Whose};
    use crate::route::Where;

    /// An engine of which only what a plan asks is answered.
    #[derive(Default)]
    struct Still {
        stored: Vec<StoredSpec>,
        start: Option<Offset>,
        has_old_nodes: bool,
    }

    #[async_trait]
    impl Engine for Still {
        fn resources(&self) -> Vec<StoredSpec> {
            self.stored.clone()
        }

        async fn put(&self, _: Vec<(pb::Kind, String, Value, u64)>) -> Result<(), Problem> {
            panic!("a plan stores nothing")
        }

        async fn remove(&self, _: pb::Kind, _: &str, _: bool) -> Result<Vec<String>, Problem> {
            panic!("a plan removes nothing")
        }

        async fn preflight(&self, _: &str, _: &Spec) -> Vec<Finding> {
            Vec::new()
        }

        async fn tables(&self, _: &str, _: &Source, _: bool) -> Result<Vec<TableName>, Problem> {
            let table = |schema: &str, table: &str| TableName {
                schema: schema.into(),
                table: table.into(),
            };
            Ok(vec![
                table("public", "orders"),
                table("public", "customers"),
                table("audit", "ORDERS"),
            ])
        }

        fn log_start(&self, _: &str) -> Option<Offset> {
            self.start
        }

        fn status(&self, _: pb::Kind, _: &str) -> pb::Status {
            pb::Status::default()
        }

        fn leader(&self) -> Where {
            Where::Here
        }

        fn owner(&self, _: pb::Kind, _: &str) -> Where {
            Where::Here
        }

        fn sharers(&self, _: &str) -> Vec<(Where, Vec<u32>)> {
            Vec::new()
        }

        fn knows_shares(&self) -> bool {
            !self.has_old_nodes
        }

        fn nodes(&self) -> Vec<pb::Node> {
            Vec::new()
        }

        async fn add_node(&self, _: &str) -> Result<u64, Problem> {
            panic!("a plan adds no node")
        }

        async fn remove_node(&self, _: &str) -> Result<(), Problem> {
            panic!("a plan removes no node")
        }

        async fn transfer_leader(&self, _: &str) -> Result<String, Problem> {
            panic!("a plan lets nobody lead")
        }

        async fn back_up(&self) -> Result<pb::Backup, Problem> {
            panic!("a plan takes no backup")
        }

        async fn backups(&self) -> Result<Vec<pb::Backup>, Problem> {
            panic!("a plan lists no backups")
        }

        fn groups(&self) -> Vec<ConsumerGroup> {
            Vec::new()
        }

        async fn group(&self, _: &str, _: &str) -> Result<Option<ConsumerGroup>, Problem> {
            Ok(None)
        }

        async fn take_group(&self, _: &str, _: &str, _: &str) -> Result<ConsumerGroup, Problem> {
            panic!("a plan takes no group")
        }

        async fn commit_group(&self, _: GroupCommit) -> Result<Option<ConsumerGroup>, Problem> {
            panic!("a plan commits nothing")
        }

        async fn drop_group(&self, _: &str, _: &str) -> Result<(), Problem> {
            panic!("a plan drops nothing")
        }

        async fn pause(&self, _: &str, _: &[String]) -> Result<(), Problem> {
            panic!("a plan pauses nothing")
        }

        async fn resume(&self, _: &str, _: &[String]) -> Result<(), Problem> {
            panic!("a plan resumes nothing")
        }

        async fn resnapshot(
            &self,
            _: &str,
            _: &[String],
            _: Option<WrittenFilter>,
        ) -> Result<Vec<(TableName, u64)>, Problem> {
            panic!("a plan reads nothing again")
        }

        async fn take_effect(&self, _: &str, _: bool) -> Result<(), Problem> {
            panic!("a plan has no effect")
        }

        async fn wait(
            &self,
            _: &str,
            _: &[u32],
            _: Option<Offset>,
            _: Duration,
        ) -> Result<Reached, Problem> {
            panic!("a plan does not wait")
        }

        async fn passed(
            &self,
            _: &str,
            _: &SourcePosition,
            _: Duration,
        ) -> Result<Offset, Problem> {
            panic!("a plan does not wait")
        }

        async fn verify(
            &self,
            _: &str,
            _: &[String],
            _: Whose<'_>,
        ) -> Result<mpsc::Receiver<Verified>, Problem> {
            panic!("a plan verifies nothing")
        }

        fn changed(&self) -> watch::Receiver<u64> {
            watch::Sender::new(0).subscribe()
        }
    }

    fn resource(kind: pb::Kind, name: &str, spec: &Value) -> pb::Resource {
        pb::Resource {
            kind: kind as i32,
            name: name.into(),
            spec_json: spec.to_string(),
            ..pb::Resource::default()
        }
    }

    fn source() -> pb::Resource {
        let spec = serde_json::json!({ "postgres": { "url": "postgres://cdc@h/shop", "tables": ["*.*"] } });
        resource(pb::Kind::Source, "shop", &spec)
    }

    fn sink() -> pb::Resource {
        let spec =
            serde_json::json!({ "iceberg": { "catalog": "builtin", "warehouse": "file:///lake" } });
        resource(pb::Kind::Sink, "lake", &spec)
    }

    fn pipeline(name: &str, more: &Value) -> pb::Resource {
        let mut spec = serde_json::json!({ "source": "shop", "sink": "lake" });
        for (name, value) in more.as_object().unwrap() {
            spec[name] = value.clone();
        }
        resource(pb::Kind::Pipeline, name, &spec)
    }

    fn none() -> Value {
        serde_json::json!({})
    }

    async fn codes(engine: &Still, resources: &[pb::Resource]) -> Vec<&'static str> {
        let plan = plan(engine, resources).await;
        plan.problems.iter().map(|problem| problem.code).collect()
    }

    fn store(resources: &[pb::Resource]) -> Vec<StoredSpec> {
        let stored = resources.iter().map(|resource| StoredSpec {
            kind: resource.kind(),
            name: resource.name.clone(),
            spec: serde_json::from_str(&resource.spec_json).unwrap(),
            revision: 1,
        });
        stored.collect()
    }

    #[tokio::test]
    async fn a_pipeline_finds_its_source_and_sink_in_the_same_file_in_any_order_or_stored() {
        let all = [pipeline("p", &none()), sink(), source()];
        assert!(codes(&Still::default(), &all).await.is_empty());
        assert_eq!(codes(&Still::default(), &all[..2]).await, ["DR-2015"]);
        let stored = Still {
            stored: store(&all[1..]),
            ..Still::default()
        };
        assert!(codes(&stored, &all[..1]).await.is_empty());
        let moved = Still {
            stored: store(&all),
            ..Still::default()
        };
        let elsewhere = [pipeline("p", &serde_json::json!({ "namespace": "other" }))];
        assert_eq!(codes(&moved, &elsewhere).await, ["DR-2019"]);
        assert!(check_unused(&moved.stored, pb::Kind::Pipeline, "p").is_ok());
        assert_eq!(
            check_unused(&moved.stored, pb::Kind::Sink, "lake")
                .unwrap_err()
                .code,
            "DR-2022"
        );
    }

    #[tokio::test]
    async fn two_tables_never_become_one_table_of_a_lake() {
        let engine = Still {
            stored: store(&[
                source(),
                sink(),
                pipeline("p", &serde_json::json!({ "tables": ["public.*"] })),
            ]),
            ..Still::default()
        };
        let again = |more: Value| [pipeline("q", &more)];
        assert_eq!(codes(&engine, &again(none())).await, ["DR-2016"]);
        let apart = serde_json::json!({ "tables": ["audit.*"] });
        assert!(codes(&engine, &again(apart)).await.is_empty());
        // One namespace for two schemas: orders and ORDERS.
        let folded = serde_json::json!({ "namespace": "n" });
        assert_eq!(codes(&engine, &again(folded)).await, ["DR-2016"]);
        let own = serde_json::json!({ "namespace": "n", "tables": ["public.*"] });
        assert!(codes(&engine, &again(own)).await.is_empty());
    }

    #[tokio::test]
    async fn tables_are_shared_out_when_every_node_knows_how() {
        let mut engine = Still {
            stored: store(&[source(), sink()]),
            ..Still::default()
        };
        let over = |nodes: u32| [pipeline("p", &serde_json::json!({ "nodes": nodes }))];
        assert!(codes(&engine, &over(3)).await.is_empty());
        for wrong in [0, 33] {
            assert_eq!(codes(&engine, &over(wrong)).await, ["DR-2013"]);
        }
        engine.has_old_nodes = true;
        assert_eq!(codes(&engine, &over(3)).await, ["DR-1114"]);
        assert!(codes(&engine, &over(1)).await.is_empty());
    }

    #[tokio::test]
    async fn a_new_pipeline_needs_the_whole_log_and_patterns_that_match() {
        let engine = Still {
            stored: store(&[source(), sink()]),
            start: Some(Offset(7)),
            ..Still::default()
        };
        assert_eq!(codes(&engine, &[pipeline("p", &none())]).await, ["DR-2017"]);
        let engine = Still {
            start: Some(Offset(0)),
            ..engine
        };
        let unknown = serde_json::json!({ "tables": ["public.orders", "public.nothing"] });
        assert_eq!(
            codes(&engine, &[pipeline("p", &unknown)]).await,
            ["DR-2018"]
        );
        let all_excluded = serde_json::json!({ "tables": ["public.orders", "!*.*"] });
        assert_eq!(
            codes(&engine, &[pipeline("p", &all_excluded)]).await,
            ["DR-2018"]
        );
    }
}
