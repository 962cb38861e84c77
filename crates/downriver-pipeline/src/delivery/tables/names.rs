//! Which table of the lake a table of the source fills: the one of its name, and names move.
//!
//! A table that gets another name, or the name of one that is gone, claims the lake's table of that name where the log
//! says so. What was applied before is committed under the old name, whose table in the lake stays as it is; what comes
//! after is a generation of the table's snapshot. Two tables of the source never write to one of the lake at once: whose
//! name another one gets is displaced, and passes over its changes until the log says which name it has now.

use std::collections::BTreeSet;
use std::sync::Arc;

use downriver_event::problem::Problem;
use downriver_event::{Offset, TableId, TableSchema, pb};
use downriver_lake::catalog::TableName;
use downriver_lake::{Changes, Schemas, owner_of};
use downriver_log::StreamState;

use super::super::progress::committed;
use super::super::{DeliveryConfig, DeliveryError, Progress};
use super::{IDLE_PROGRESS_EVERY, Table, Tables};
use crate::status::{DeliveryStatus, TableState};

/// A table's name at the source and in the lake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Name {
    pub(super) qualified: String,
    pub(super) target: TableName,
}

pub(super) struct Left {
    pub(super) name: Name,
    problem: Problem,
}

impl Left {
    fn behind(old: Name, new: &Name) -> Self {
        let problem = Problem::new(
            "DR-3025",
            format!(
                "the source's table {} is called {} now: table {} of the lake stays as it was",
                old.qualified, new.qualified, old.target
            ),
            "nothing; drop the table from the lake's catalog when nobody reads it any more",
        );
        Self { name: old, problem }
    }

    pub(super) fn status(&self) -> DeliveryStatus {
        DeliveryStatus {
            state: TableState::Refused,
            problem: Some(self.problem.clone()),
            target: self.name.target.to_string(),
            ..DeliveryStatus::default()
        }
    }
}

/// A table got a name.
pub(in super::super) struct Claim {
    pub(super) schema: TableSchema,
    /// Where the log says so.
    pub(in super::super) at: Offset,
    /// Where the transaction that says so begins.
    pub(in super::super) begin: Offset,
    /// It begins in this block: everything before it is whole.
    is_between: bool,
}

impl Tables<'_> {
    fn named(&self, schema: &TableSchema) -> Name {
        let config = self.config;
        let namespace = config.namespace.clone();
        Name {
            qualified: schema.qualified_name(),
            target: TableName {
                namespace: namespace
                    .unwrap_or_else(|| format!("{}_{}", config.source, schema.namespace)),
                table: schema.name.clone(),
            },
        }
    }

    /// The name of the table of the lake that a table of the source has, which may not have come to its newest one yet;
    /// and those that it left behind.
    pub(super) async fn name_of(
        &self,
        versions: &[Arc<TableSchema>],
    ) -> Result<(Name, Vec<Left>), DeliveryError> {
        let newest = versions.last().expect("a table of the log has a schema");
        let mut seen = BTreeSet::new();
        let mut names = Vec::new();
        for schema in versions.iter().rev().filter(|schema| self.wants(schema)) {
            let name = self.named(schema);
            if seen.insert(name.qualified.clone()) {
                names.push(name);
            }
        }
        // The one that it has may not be wanted.
        if let [name] = names.as_slice() {
            return Ok((name.clone(), Vec::new()));
        }
        if names.len() > 1 {
            let config = self.config;
            let progress = self.progress.get(&config.pipeline, newest.id);
            let known = committed(&progress.unwrap_or_default().detail, &config.stream_id);
            let known = known.map_err(DeliveryError::Progress)?.unwrap_or_default();
            let (mut held, mut left) = (Vec::new(), Vec::new());
            for name in names {
                let owner = owner_of(&*config.catalog, &name.target, &config.stream_id).await?;
                match owner.filter(|(id, _, _)| *id == newest.id) {
                    // One that does not have what was delivered is one that was left.
                    Some((_, _, at)) if at < known => left.push(name),
                    Some((_, claim, _)) => held.push((claim, name)),
                    None => {}
                }
            }
            // What it claimed before it has left; it may have come back to a name since, which it does not have yet.
            held.sort_by_key(|(claim, _)| std::cmp::Reverse(*claim));
            let mut held = held.into_iter().map(|(_, name)| name);
            let name = held.next().unwrap_or_else(|| self.named(newest));
            let left = held.chain(left).filter(|old| *old != name);
            let left = left.map(|old| Left::behind(old, &name)).collect();
            return Ok((name, left));
        }
        Ok((self.named(newest), Vec::new()))
    }

    /// The next table before `end` that got a name which it does not have yet. Another shape under the same name is no
    /// claim: it may be of a table that was dropped, and of which more comes out of a backlog.
    pub(in super::super) fn next_claim(
        &self,
        changes: &Changes,
        end: Offset,
        schemas: &Schemas,
    ) -> Option<Claim> {
        use pb::marker::Kind;
        changes.markers.iter().find_map(|marker| {
            let Some(Kind::SchemaChange(change)) = &marker.kind else {
                return None;
            };
            let at = changes.base.plus(u64::from(marker.event));
            let announced = change.schema.as_ref()?;
            let table = self.by_id.get(&TableId(announced.table_id))?;
            let follows = table.writer.is_some() || table.displaced;
            if at >= table.limit(end) || at < table.applied || !follows || table.waits_for_snapshot
            {
                return None;
            }
            let schema = TableSchema::from_pb(announced).ok()?;
            if !table.displaced && table.target == self.named(&schema).target {
                return None;
            }
            if table.refused_at.is_some_and(|refused| at <= refused) {
                return None;
            }
            let before = schemas.get(&(schema.id, change.previous_version));
            if before.is_some_and(|before| before.qualified_name() == schema.qualified_name()) {
                return None;
            }
            let begin = changes.begin_of(marker.event);
            Some(Claim {
                schema,
                at,
                begin: begin.map_or(at, |event| changes.base.plus(u64::from(event))),
                is_between: begin.is_some(),
            })
        })
    }

    /// Gives a table its name. Everything before the claim was applied.
    pub(in super::super) async fn claim(
        &mut self,
        claim: Claim,
        state: &StreamState,
        paused: impl Fn(&str) -> bool,
    ) -> Result<(), DeliveryError> {
        let id = claim.schema.id;
        let name = self.named(&claim.schema);
        let wanted = self.wants(&claim.schema);
        let Some(table) = self.by_id.get_mut(&id) else {
            return Ok(());
        };
        let old = Name {
            qualified: table.qualified.clone(),
            target: table.target.clone(),
        };
        if let Some(writer) = &mut table.writer
            && claim.is_between
            && writer.is_whole()
        {
            let committed = writer.commit(claim.begin).await;
            table.take(committed)?;
            table.delivered = table.delivered.max(claim.begin);
        }
        let accepted = table.accepted;
        let is_left = !table.displaced && old.target != name.target;
        let left = Left::behind(old, &name);
        if !wanted {
            table.displace(left.problem);
            table.refused_at = Some(claim.at);
            return Ok(());
        }
        table.writer = None;
        let versions = state.schemas.range((id, 0)..=(id, u32::MAX));
        let versions: Vec<_> = versions.map(|(_, schema)| Arc::clone(schema)).collect();
        let is_paused = paused(&name.qualified);
        let place = (claim.begin, Some(claim.at));
        let mut opened = self
            .open_one(state, &versions, name.clone(), place, is_paused)
            .await?;
        opened.refused_at = opened.displaced.then_some(claim.at);
        opened.accepted = accepted.max(claim.schema.version);
        // A claim that comes too late displaces nobody.
        if !opened.displaced {
            let others = self.by_id.iter_mut();
            for (_, other) in
                others.filter(|(other, table)| **other != id && table.target == name.target)
            {
                // One that is held finds out when it goes on.
                if !other.displaced && !other.is_held() {
                    other.displace(Problem::new(
                    "DR-3025",
                    format!(
                        "another table of the source is called {} now: this one was dropped or renamed",
                        name.qualified
                    ),
                    "nothing; it goes on under its new name with its next change, if it has one",
                ));
                }
            }
        }
        self.left.retain(|left| left.name.target != name.target);
        if is_left {
            self.left.push(left);
        }
        self.by_id.insert(id, opened);
        Ok(())
    }
}

impl Table {
    pub(super) fn displace(&mut self, problem: Problem) {
        tracing::info!(
            table = self.qualified,
            code = problem.code,
            reason = problem.reason,
            "a table has no table of the lake"
        );
        self.writer = None;
        self.waits_for_snapshot = false;
        self.displaced = true;
        self.state = TableState::Refused;
        self.problem = Some(problem);
    }

    /// A table without a table of the lake has delivered what it passed over.
    pub(super) async fn pass(
        &mut self,
        id: TableId,
        at: Offset,
        config: &DeliveryConfig,
        progress: &Arc<dyn Progress>,
    ) -> Result<(), DeliveryError> {
        self.delivered = self.delivered.max(at);
        let (stored, when) = self.stored;
        if stored == self.delivered || when.elapsed() < IDLE_PROGRESS_EVERY {
            return Ok(());
        }
        self.store(id, None, config, progress).await
    }
}
