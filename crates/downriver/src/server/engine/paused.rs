//! Which pipelines and tables are paused: a replicated record, so it outlasts the node.

use std::collections::BTreeSet;

use bytes::Bytes;
use downriver_api::admin::v1 as pb;
use downriver_event::pattern;
use downriver_event::problem::Problem;
use downriver_service::spec::{Pipeline, Spec};
use serde_json::json;

use super::{NodeEngine, locked, stored, unavailable};

/// In a record: the whole pipeline.
const ALL: &str = "*";

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Paused {
    All,
    /// As "schema.table"; may be none.
    Tables(BTreeSet<String>),
}

impl Paused {
    /// A record that cannot be read stands for everything: the node does not start with one.
    fn read(record: Option<&[u8]>) -> Self {
        let tables: BTreeSet<String> = match record.map(stored::decode) {
            None => BTreeSet::new(),
            Some(Ok(tables)) => match serde_json::from_value(tables) {
                Ok(tables) => tables,
                Err(_) => return Self::All,
            },
            Some(Err(_)) => return Self::All,
        };
        if tables.contains(ALL) {
            Self::All
        } else {
            Self::Tables(tables)
        }
    }

    /// `None`: no record is needed.
    fn record(&self) -> Option<Bytes> {
        match self {
            Self::All => Some(stored::encode(&json!([ALL]))),
            Self::Tables(tables) if tables.is_empty() => None,
            Self::Tables(tables) => Some(stored::encode(&json!(tables))),
        }
    }

    pub(super) fn has(&self, table: &str) -> bool {
        match self {
            Self::All => true,
            Self::Tables(tables) => tables.contains(table),
        }
    }

    fn with(self, tables: &BTreeSet<String>) -> Self {
        match self {
            Self::All => Self::All,
            Self::Tables(paused) => Self::Tables(paused.union(tables).cloned().collect()),
        }
    }

    /// `all`: the pipeline's tables, of which the others stay paused when everything was.
    fn without(self, tables: &BTreeSet<String>, all: &BTreeSet<String>) -> Self {
        let paused = match &self {
            Self::All => all,
            Self::Tables(paused) => paused,
        };
        Self::Tables(paused.difference(tables).cloned().collect())
    }
}

pub(super) fn paused_key(pipeline: &str) -> String {
    format!("paused/{pipeline}")
}

impl NodeEngine {
    pub(super) fn paused(&self, pipeline: &str) -> Paused {
        Paused::read(self.node.record(&paused_key(pipeline)).as_deref())
    }

    pub(super) fn pipeline_spec(&self, name: &str) -> Result<Pipeline, Problem> {
        match self.spec_of(pb::Kind::Pipeline, name)? {
            Spec::Pipeline(pipeline) => Ok(pipeline),
            Spec::Source(_) | Spec::Sink(_) => unreachable!("a pipeline is parsed as one"),
        }
    }

    pub(super) async fn pause_tables(&self, name: &str, tables: &[String]) -> Result<(), Problem> {
        let paused = match tables {
            [] => Paused::All,
            some => self.paused(name).with(&self.select(name, some)?),
        };
        self.set_paused(name, &paused).await
    }

    /// Goes on with what is paused, and tries again what was stopped by a problem. Of tables that are named the changes
    /// are let through that they wait for.
    pub(super) async fn resume_tables(&self, name: &str, tables: &[String]) -> Result<(), Problem> {
        let paused = match tables {
            [] => Paused::Tables(BTreeSet::new()),
            some => {
                let selected = self.select(name, some)?;
                self.approve_held(name, &selected).await?;
                let all = self.pipeline_tables(name, &self.pipeline_spec(name)?);
                self.paused(name).without(&selected, &all)
            }
        };
        self.end_stopped(name).await;
        self.set_paused(name, &paused).await
    }

    /// Returns when it has taken effect here.
    async fn set_paused(&self, pipeline: &str, paused: &Paused) -> Result<(), Problem> {
        let stored = self
            .node
            .put_record(&paused_key(pipeline), paused.record())
            .await;
        stored.map_err(|error| unavailable(&error))?;
        self.reconcile_now().await;
        Ok(())
    }

    pub(super) async fn reconcile_now(&self) {
        self.reconcile_once().await;
        self.changed.send_modify(|changes| *changes += 1);
    }

    /// The tables that a pipeline delivers, or would if they were not refused, as "schema.table".
    pub(super) fn pipeline_tables(&self, name: &str, pipeline: &Pipeline) -> BTreeSet<String> {
        let logged = self.logged_tables(&pipeline.source).into_values();
        let mut tables: BTreeSet<String> = logged.map(|table| table.to_string()).collect();
        if let Some(capture) = locked(&self.captures).get(&pipeline.source) {
            tables.extend(capture.status.get().tables.into_keys());
        }
        tables.retain(|table| {
            let (schema, table) = table.split_once('.').unwrap_or_default();
            pipeline.delivers(schema, table)
        });
        if let Some(running) = self.running_status(name) {
            tables.extend(running.tables.into_keys());
        }
        tables
    }

    /// The tables of a pipeline that the patterns select; every pattern selects one.
    pub(super) fn select(
        &self,
        name: &str,
        patterns: &[String],
    ) -> Result<BTreeSet<String>, Problem> {
        let tables = self.pipeline_tables(name, &self.pipeline_spec(name)?);
        for wanted in patterns.iter().filter(|p| !p.starts_with('!')) {
            let alone = std::slice::from_ref(wanted);
            if !tables.iter().any(|table| selects(alone, table)) {
                return Err(Problem::new(
                    "DR-2023",
                    format!("pipeline {name:?} has no table {wanted:?}"),
                    format!(
                        "name tables as downriver describe pipeline {name} does: public.orders"
                    ),
                ));
            }
        }
        let selected = tables.into_iter().filter(|table| selects(patterns, table));
        Ok(selected.collect())
    }

    /// The same, whether patterns select something or not.
    pub(super) fn selected(
        &self,
        name: &str,
        pipeline: &Pipeline,
        patterns: &[String],
    ) -> BTreeSet<String> {
        let mut tables = self.pipeline_tables(name, pipeline);
        tables.retain(|table| selects(patterns, table));
        tables
    }
}

fn selects(patterns: &[String], table: &str) -> bool {
    let (schema, table) = table.split_once('.').unwrap_or_default();
    pattern::selects(patterns, schema, table)
}

#[cfg(test)]
mod tests {
    use downriver_testkit::fixture;

    use super::*;

    fn tables(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn what_is_paused_is_read_as_it_was_stored() {
        for paused in [
            Paused::All,
            Paused::Tables(tables(&["a.b", "a.c"])),
            Paused::Tables(BTreeSet::new()),
        ] {
            assert_eq!(Paused::read(paused.record().as_deref()), paused);
        }
    }

    #[test]
    fn records_of_format_1_are_read_as_they_were_stored() {
        let some = Paused::Tables(tables(&["a.b", "a.c"]));
        for (name, paused) in [
            ("paused-all-v1.json", Paused::All),
            ("paused-tables-v1.json", some),
        ] {
            let write = || paused.record().expect("something is paused").to_vec();
            let stored = fixture::bytes(name, write).expect("it is kept");
            assert_eq!(Paused::read(Some(&stored)), paused, "{name}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_paused() {
        assert_eq!(Paused::read(Some(br#"{"format":2,"of":[]}"#)), Paused::All);
    }

    #[test]
    fn resuming_one_table_of_a_paused_pipeline_leaves_the_others_paused() {
        let all = tables(&["a.b", "a.c"]);
        let left = Paused::All.without(&tables(&["a.b"]), &all);
        assert_eq!(left, Paused::Tables(tables(&["a.c"])));
        assert_eq!(
            left.clone().with(&tables(&["a.b"])),
            Paused::Tables(all.clone())
        );
        assert!(Paused::All.with(&tables(&["a.b"])).has("a.c"));
        assert_eq!(left.without(&all, &all), Paused::Tables(BTreeSet::new()));
    }
}
