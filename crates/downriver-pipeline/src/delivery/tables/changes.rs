//! Changes of the source's tables that wait until somebody lets them through.
//!
//! ```text
//!   ... rows of the old shape │ begin ── rows ── change to version N ── rows of the new shape ── commit │ ...
//!                             ▲                        ▲
//!                        delivered up to here    the first event that needs the change
//! ```
//!
//! A table is held where the transaction begins that has such an event, as no reader may see half of one. What lets it
//! through names the version of the table's schema, so that the next change is asked about again.

use std::collections::BTreeSet;
use std::sync::Arc;

use downriver_event::change::{Change, ChangeKind, ChangePolicy, changes};
use downriver_event::problem::Problem;
use downriver_event::{Offset, TableId, TableSchema, pb};
use downriver_lake::{Changes, Schemas};

use super::super::progress::{HeldAt, decode};
use super::super::{DeliveryConfig, DeliveryError, Progress};
use super::names::Claim;
use super::{Table, Tables};
use crate::status::TableState;

/// A change that waits, and the table before it.
#[derive(Clone, Debug)]
pub(in super::super) struct Held {
    pub(in super::super) table: TableId,
    /// Where its transaction begins.
    pub(in super::super) at: Offset,
    change: HeldAt,
    /// Its transaction begins in the block where it was found.
    pub(in super::super) is_between: bool,
    problem: Problem,
}

impl Tables<'_> {
    /// The versions of a table's schema up to this one are let through.
    fn approved(&self, table: TableId) -> u32 {
        self.approved.get(&table).copied().unwrap_or_default()
    }

    /// Whether a table that is called as none of the pipeline's has to be let through first.
    pub(super) fn may_leave(&self, versions: &[Arc<TableSchema>]) -> bool {
        let Some(newest) = versions.last() else {
            return false;
        };
        let pauses = self.config.schema_changes.of(ChangeKind::RenameTable) == ChangePolicy::Pause;
        let is_asked = || {
            let stored = self.progress.get(&self.config.pipeline, newest.id)?;
            let kept = decode(&stored.detail, &self.config.stream_id).ok()??;
            Some(kept.accepted?.max(self.approved(newest.id)) < newest.version)
        };
        pauses && versions.iter().any(|schema| self.wants(schema)) && is_asked().unwrap_or_default()
    }

    /// What the runs before found out of a table, if it still waits.
    pub(super) fn held_before(&self, table: TableId) -> Option<Held> {
        let held = self.control.held.lock().expect("no holder panics");
        let held = held.get(&table).cloned();
        held.filter(|held| held.change.version > self.approved(table))
    }

    /// The first event before `end` that needs a change which has to be let through. `boundary`: where the transaction
    /// begins that goes on in this block.
    pub(in super::super) fn next_held(
        &mut self,
        changes: &Changes,
        end: Offset,
        boundary: Offset,
        schemas: &Schemas,
    ) -> Option<Held> {
        let tables: BTreeSet<TableId> = changes.tables().chain(announced(changes)).collect();
        let held = tables.into_iter().filter_map(|id| {
            let (event, version, asked) = self.first_asked(id, changes, end, schemas)?;
            let begin = changes.begin_of(event);
            let event = changes.base.plus(u64::from(event));
            let at = begin.map_or(boundary, |begin| changes.base.plus(u64::from(begin)));
            let name = self.by_id.get(&id)?.qualified.as_str();
            let mut held = self.held(id, name, at, HeldAt { version, event }, &asked);
            held.is_between = begin.is_some();
            Some(held)
        });
        held.min_by_key(|held| held.at)
    }

    fn first_asked(
        &mut self,
        id: TableId,
        changes: &Changes,
        end: Offset,
        schemas: &Schemas,
    ) -> Option<(u32, u32, Vec<Change>)> {
        let approved = self.approved(id);
        let table = self.by_id.get(&id)?;
        if table.writer.is_none() || table.holds.is_some() {
            return None;
        }
        let mut from = table.applied;
        if table.waits_for_snapshot {
            // What comes before its start is passed over.
            from = snapshot_start(changes, id, from)?;
        }
        let mut accepted = table.accepted;
        let mut found = None;
        for (event, version) in shapes(changes, id, from) {
            let at = changes.base.plus(u64::from(event));
            if at >= end || version <= accepted {
                continue;
            }
            let since = accepted.max(approved);
            let asked = between(schemas, id, since, version);
            if self.asks(id, &asked, (since, version), schemas) {
                found = Some((event, version, asked));
                break;
            }
            accepted = version;
        }
        self.by_id.get_mut(&id)?.accepted = accepted;
        found
    }

    /// Whether a table that would take over a name has to be let through first.
    pub(in super::super) fn held_claim(&self, claim: &Claim, schemas: &Schemas) -> Option<Held> {
        let (id, version) = (claim.schema.id, claim.schema.version);
        let table = self.by_id.get(&id)?;
        // Of one that has a table of the lake its shapes tell.
        if !table.displaced || version <= table.accepted.max(self.approved(id)) {
            return None;
        }
        let change = HeldAt {
            version,
            event: claim.at,
        };
        let asked = claimed(schemas, id, version);
        let pauses = self.config.schema_changes.of(asked.kind) == ChangePolicy::Pause;
        pauses.then(|| self.held(id, &table.qualified, claim.begin, change, &[asked]))
    }

    /// A change that a table stood before when this was stored, if it still has to be let through.
    pub(super) fn held_again(
        &self,
        id: TableId,
        change: HeldAt,
        table: &Table,
        schemas: &Schemas,
    ) -> Option<Held> {
        let version = change.version;
        let since = table.accepted.max(self.approved(id));
        if version <= since {
            return None;
        }
        let mut asked = between(schemas, id, since, version);
        if asked.is_empty() {
            asked.push(claimed(schemas, id, version));
        }
        let asks = self.asks(id, &asked, (since, version), schemas);
        asks.then(|| self.held(id, &table.qualified, table.delivered, change, &asked))
    }

    /// Whether one of the changes has to be let through.
    fn asks(
        &self,
        id: TableId,
        asked: &[Change],
        (since, version): (u32, u32),
        schemas: &Schemas,
    ) -> bool {
        // Without a key rows are known by all their columns: none can be left out.
        let is_bag = |version| {
            let schema = schemas.get(&(id, version));
            schema.is_some_and(|schema| schema.is_bag())
        };
        let is_bag = is_bag(since) || is_bag(version);
        let mut asked = asked.iter();
        asked.any(|change| match self.config.schema_changes.of(change.kind) {
            ChangePolicy::Evolve => false,
            ChangePolicy::Pause => true,
            ChangePolicy::Ignore => is_bag,
        })
    }

    fn held(
        &self,
        table: TableId,
        name: &str,
        at: Offset,
        change: HeldAt,
        asked: &[Change],
    ) -> Held {
        let what: Vec<&str> = asked.iter().map(|change| change.what.as_str()).collect();
        let problem = Problem::new(
            "DR-3031",
            format!(
                "{name} waits before a change at offset {}: {}",
                change.event,
                what.join("; ")
            ),
            format!(
                "downriver resume {} --tables {name} lets this change through",
                self.config.pipeline
            ),
        );
        Held {
            table,
            at,
            change,
            is_between: true,
            problem,
        }
    }

    /// Lets a table go on up to the change and no further.
    pub(in super::super) fn hold(&mut self, held: Held) {
        tracing::warn!(
            code = held.problem.code,
            reason = held.problem.reason,
            "a table is paused before a change; the others go on"
        );
        let mut known = self.control.held.lock().expect("no holder panics");
        known.insert(held.table, held.clone());
        if let Some(table) = self.by_id.get_mut(&held.table) {
            table.holds = Some(held);
        }
    }
}

impl Table {
    /// Up to where changes are applied.
    pub(super) fn limit(&self, end: Offset) -> Offset {
        self.holds.as_ref().map_or(end, |held| end.min(held.at))
    }

    /// The table, and the version of its schema that it waits before.
    pub(super) fn held(&self) -> Option<(TableId, u32)> {
        let held = self.holds.as_ref().filter(|_| self.is_held())?;
        Some((held.table, held.change.version))
    }

    /// Whether it stands before a change, and nothing of it runs.
    pub(super) fn is_held(&self) -> bool {
        self.holds.is_some() && self.state == TableState::Paused
    }

    /// Stands still if it has come to the change that it waits for. Whether it does now and did not before.
    pub(super) async fn stand(
        &mut self,
        id: TableId,
        config: &DeliveryConfig,
        progress: &Arc<dyn Progress>,
    ) -> Result<bool, DeliveryError> {
        let Some(held) = self.holds.clone().filter(|held| self.applied >= held.at) else {
            return Ok(false);
        };
        if self.is_held() || (self.writer.is_none() && !self.displaced) {
            return Ok(false);
        }
        self.commit(id, held.at, config, progress).await?;
        // It may have been stopped by a problem.
        if self.writer.is_some() || self.displaced {
            self.store(id, Some(held.change), config, progress).await?;
            self.stand_before(held);
        }
        Ok(true)
    }

    pub(super) fn stand_before(&mut self, held: Held) {
        self.writer = None;
        self.waits_for_snapshot = false;
        self.applied = self.delivered;
        self.state = TableState::Paused;
        self.problem = Some(held.problem.clone());
        self.holds = Some(held);
    }
}

fn announced(changes: &Changes) -> impl Iterator<Item = TableId> + '_ {
    let markers = changes.markers.iter();
    markers.filter_map(|marker| Some(TableId(announcement(marker)?.table_id)))
}

fn announcement(marker: &pb::Marker) -> Option<&pb::TableSchema> {
    match &marker.kind {
        Some(pb::marker::Kind::SchemaChange(change)) => change.schema.as_ref(),
        _ => None,
    }
}

/// The versions of a table's schema that a block announces or has rows of from an offset on, each with its first event,
/// in order.
fn shapes(changes: &Changes, table: TableId, from: Offset) -> Vec<(u32, u32)> {
    let from = u32::try_from(from.0.saturating_sub(changes.base.0)).unwrap_or(u32::MAX);
    let markers = changes.markers.iter().filter(|marker| marker.event >= from);
    let announced = markers.filter_map(|marker| {
        let schema = announcement(marker).filter(|schema| schema.table_id == table.0)?;
        Some((marker.event, schema.version))
    });
    let mut shapes: Vec<(u32, u32)> = announced.chain(changes.versions(table, from)).collect();
    shapes.sort_unstable();
    shapes
}

/// The first start of a generation of a table's snapshot from an offset on.
pub(super) fn snapshot_start(changes: &Changes, table: TableId, from: Offset) -> Option<Offset> {
    use pb::marker::Kind;
    let starts = changes.markers.iter().filter(
        |marker| matches!(&marker.kind, Some(Kind::SnapshotStart(start)) if start.table_id == table.0),
    );
    let starts = starts.map(|marker| changes.base.plus(u64::from(marker.event)));
    starts.filter(|at| *at >= from).min()
}

/// What it is that a table gets a name which another has.
fn claimed(schemas: &Schemas, table: TableId, version: u32) -> Change {
    let mut all = between(schemas, table, version - 1, version).into_iter();
    let renamed = all.find(|change| change.kind == ChangeKind::RenameTable);
    renamed.unwrap_or_else(|| Change {
        kind: ChangeKind::RecreateTable,
        what: "another table of the source has this name now: the one before it was dropped or renamed"
            .to_owned(),
    })
}

/// What changes from one version of a table's schema to another.
fn between(schemas: &Schemas, table: TableId, since: u32, version: u32) -> Vec<Change> {
    let pairs = (since..version).filter_map(|before| {
        let before_it = schemas.get(&(table, before))?;
        Some((before_it, schemas.get(&(table, before + 1))?))
    });
    pairs
        .flat_map(|(before, after)| changes(before, after))
        .collect()
}
