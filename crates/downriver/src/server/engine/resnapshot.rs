//! Snapshots that are taken again: the capture is asked, and answers when its log knows of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use downriver_event::TableId;
use downriver_event::filter::WrittenFilter;
use downriver_event::problem::Problem;
use downriver_log::Log as _;
use downriver_pipeline::capture::{NotRequested, Wanted, needs_whole};
use downriver_service::TableName;
use downriver_source::SourceError;
use downriver_source::chunk::ChunkReader as _;
use downriver_source::mysql::filter;
use downriver_source::postgres::reach;
use downriver_source::postgres::snapshot::SnapshotSession;

use super::source_config::{Connection, connection};
use super::{NodeEngine, locked};

/// How long a capture may take to take a request in: an append, after a transaction that is open.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// The same of one that has to make a slot, which waits for the transactions that run.
const REPAIR_WITHIN: Duration = Duration::from_secs(150);

/// How long a delivery may take to read where the snapshot begins.
const MEET_WITHIN: Duration = Duration::from_secs(15);
const LOOK_EVERY: Duration = Duration::from_millis(100);

impl NodeEngine {
    /// Each table that will be read again, and the generation of that snapshot.
    pub(super) async fn resnapshot_tables(
        &self,
        name: &str,
        patterns: &[String],
        part: Option<WrittenFilter>,
    ) -> Result<Vec<(TableName, u64)>, Problem> {
        let pipeline = self.pipeline_spec(name)?;
        let selected = match patterns {
            [] => self.pipeline_tables(name, &pipeline),
            some => self.select(name, some)?,
        };
        let in_hole = locked(&self.captures)
            .get(&pipeline.source)
            .is_some_and(|capture| capture.status.get().in_hole);
        if in_hole && part.is_some() {
            return Err(needs_whole(format!(
                "source {:?} stands in a hole",
                pipeline.source
            )));
        }
        if !in_hole {
            // What stands still is said, instead of waited for.
            self.seen_running(name, &pipeline)?;
        }
        let names = self.logged_tables(&pipeline.source);
        let wanted = names.iter();
        let wanted: Vec<TableId> = wanted
            .filter(|(_, table)| selected.contains(&table.to_string()))
            .map(|(id, _)| *id)
            .collect();
        let control = {
            let captures = locked(&self.captures);
            captures
                .get(&pipeline.source)
                .map(|c| Arc::clone(&c.control))
        };
        let refused = |reason: &str| {
            Problem::new(
                "DR-2056",
                format!(
                    "source {:?} {reason}: nothing was asked for",
                    pipeline.source
                ),
                "see downriver status, and ask again when the source is streaming",
            )
        };
        let control = control.ok_or_else(|| refused("is not captured"))?;
        let within = if in_hole {
            REPAIR_WITHIN
        } else {
            ANSWER_WITHIN
        };
        let wanted = match part {
            None => wanted.into_iter().map(|table| (table, None)).collect(),
            Some(part) => {
                let parts = self.parts(&pipeline.source, wanted, &part);
                let parts = tokio::time::timeout(within, parts).await;
                parts.unwrap_or_else(|_| Err(refused("does not answer")))?
            }
        };
        let asked = tokio::time::timeout(within, control.resnapshot(wanted)).await;
        let requested = match asked {
            Ok(Ok(requested)) if !requested.is_empty() || in_hole => requested,
            Ok(Ok(_)) => return Err(refused("captures none of these tables")),
            Ok(Err(NotRequested::Problem(problem))) => return Err(problem),
            Ok(Err(error)) => return Err(refused(&format!("cannot be asked ({error})"))),
            Err(_) => return Err(refused("does not take the request in")),
        };
        self.until_met(name, &requested, &names).await;
        // A repair may have met tables for the first time.
        let names = self.logged_tables(&pipeline.source);
        let named = requested
            .into_iter()
            .filter_map(|(table, generation)| Some((names.get(&table)?.clone(), generation)));
        Ok(named.collect())
    }

    /// What the condition means for each table.
    async fn parts(
        &self,
        source: &str,
        tables: Vec<TableId>,
        part: &WrittenFilter,
    ) -> Result<Vec<Wanted>, Problem> {
        let connection = connection(source, &self.source_spec(source)?)?;
        let state = self.node.state(source);
        let schemas = tables
            .into_iter()
            .filter_map(|table| state.as_ref()?.newest_schema(table).cloned());
        let understood = async {
            let mut parts = Vec::new();
            match connection {
                Connection::Postgres(config) => {
                    let mut session = SnapshotSession::connect(&reach(&config).await?).await?;
                    for schema in schemas {
                        let filter = session.understand(&schema, part).await?;
                        parts.push((schema.id, Some(filter)));
                    }
                }
                Connection::Mysql(_) => {
                    for schema in schemas {
                        let filter = filter::understand(&schema, part)?;
                        parts.push((schema.id, Some(filter)));
                    }
                }
            }
            Ok(parts)
        };
        let understood: Result<_, SourceError> = understood.await;
        understood.map_err(|error| error.problem())
    }

    /// Waits a while for tables of what is delivered here that retention took something from, or that lack columns: the delivery says that they
    /// stand still until it has read where the snapshot begins.
    async fn until_met(
        &self,
        name: &str,
        requested: &[(TableId, u64)],
        names: &BTreeMap<TableId, TableName>,
    ) {
        let waits = || {
            let status = self.running_status(name);
            let tables = status.map(|status| status.tables).unwrap_or_default();
            requested.iter().any(|(table, _)| {
                let table = names.get(table).and_then(|n| tables.get(&n.to_string()));
                let problem = table.and_then(|table| table.problem.as_ref());
                problem.is_some_and(|problem| matches!(problem.code, "DR-3030" | "DR-3032"))
            })
        };
        let began = Instant::now();
        while waits() && began.elapsed() < MEET_WITHIN {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}
