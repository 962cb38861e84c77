//! Columns of which nothing, or not their own values, reaches the log, through changes of their tables.
//!
//! A column is known by its name alone. So what was covered stays so by what the statements in the binlog say of it; where
//! one that is covered is gone, another has come, and no statement tells of it, nobody knows whether they are the same.
//!
//! Which columns a server leaves out of updates because they are generated is not in the binlog. The catalog is asked when
//! one comes, and when a statement changes the table.

use std::sync::Arc;

use downriver_decode::mysql::ddl::{Change, Named};
use downriver_decode::mysql::is_same_name;
use downriver_event::problem::Problem;
use downriver_event::schema::Masked;
use downriver_event::{Column, Cover, ReplicaIdentity, TableId, TableSchema};
use downriver_source::mysql::catalog::{SourceTable, left_out, left_out_of};
use downriver_source::rules::{
    ColumnOrder, ColumnRules, is_generated, keep_covered, withhold_covered,
};

use super::super::CaptureError;
use super::Run;
use crate::status::TableStatus;

impl Run<'_> {
    /// Marks the columns of a table map that the server leaves out of updates.
    pub(super) async fn leave_out(
        &mut self,
        before: &TableSchema,
        schema: &mut TableSchema,
    ) -> Result<(), CaptureError> {
        if self.catalog.server().logs_generated_columns {
            return Ok(());
        }
        let mut now = None;
        let is_unknown = |column: &Column| is_left_out(before, &column.name).is_none();
        if schema.columns.iter().any(is_unknown) {
            let found = self.catalog.table(&schema.namespace, &schema.name).await?;
            now = found.map(|found| found.schema);
        }
        for column in &mut schema.columns {
            let today = || is_left_out(now.as_ref()?, &column.name);
            // Of one that is gone by now nobody knows it any more: its old values would be taken for its new ones.
            let unless_key = !schema.key.contains(&column.id);
            if is_left_out(before, &column.name)
                .or_else(today)
                .unwrap_or(unless_key)
            {
                column.cover = left_out();
            }
        }
        Ok(())
    }

    /// Says which columns of a table are left out.
    pub(super) fn tell_left_out(&self, schema: &TableSchema) {
        let warning = left_out_of(schema);
        self.intake
            .table_status(schema.id, |status: &mut TableStatus| {
                let is_of_it = |problem: &Problem| problem.code == "DR-1079";
                if status.problem.as_ref().is_none_or(is_of_it) {
                    status.problem = warning;
                }
            });
    }

    /// What a statement did to columns: some have other names, and some are gone. One that is made under the name of such a
    /// one is another, also where no row comes between. `now`: the table as it is in the catalog. Whether the table is
    /// captured still.
    pub(super) fn columns_changed(
        &mut self,
        id: TableId,
        changes: &[Change],
        now: Option<&SourceTable>,
    ) -> bool {
        let Some(before) = self.intake.registry.newest(id).cloned() else {
            return true;
        };
        let is_dropped = |column: &Column| {
            changes.iter().any(|change| match change {
                Change::ColumnDropped(name) => is_same_name(name, &column.name),
                _ => false,
            })
        };
        let columns = before.source_columns().map(|(column, _)| column);
        let (dropped, columns): (Vec<&Column>, Vec<&Column>) =
            columns.partition(|column| is_dropped(column));
        let is_of_dropped = |id: &u32| dropped.iter().any(|column| column.id == *id);
        let mut changed = TableSchema {
            columns: columns.into_iter().cloned().collect(),
            withheld: Vec::new(),
            ..(*before).clone()
        };
        // As the server does it.
        changed.key.retain(|id| !is_of_dropped(id));
        if changed.key.is_empty() {
            changed.identity = ReplicaIdentity::Full;
        }
        for column in &mut changed.columns {
            // All at once: columns may take each other's names.
            let to = changes.iter().find_map(|change| match change {
                Change::ColumnRenamed { from, to } => {
                    is_same_name(from, &column.name).then_some(to)
                }
                _ => None,
            });
            if let Some(to) = to {
                column.name.clone_from(to);
            }
        }
        if let Some(now) = now {
            changed = leave_out_as(&changed, &now.schema, changes);
        }
        match self.connection.columns.cover_again(&changed) {
            Ok(after) => self.reshape_numbered(&before, after).is_some(),
            Err(problem) => {
                self.refuse_renamed(&before, changed, problem);
                false
            }
        }
    }

    /// A table has another name, of which other rules may speak. Whether it is captured still.
    pub(super) fn called(&mut self, id: TableId, name: &Named) -> bool {
        let Some(before) = self.intake.registry.newest(id).cloned() else {
            return true;
        };
        let changed = TableSchema {
            namespace: name.database.clone(),
            name: name.table.clone(),
            ..(*before).clone()
        };
        let mut after = match self.connection.columns.cover_again(&changed) {
            Ok(after) => after,
            Err(problem) => {
                self.refuse_renamed(&before, changed, problem);
                return false;
            }
        };
        let problem = keep_covered(&before, &mut after);
        let registered = self.intake.registry.register(after);
        self.intake.announce(&registered);
        let is_refused = problem.is_some();
        if let Some(problem) = problem {
            self.refuse(id, problem);
        }
        !is_refused
    }

    /// Refuses a table under whose new names the rules cannot hold. What was covered stays so, whatever it is called.
    fn refuse_renamed(&mut self, before: &Arc<TableSchema>, changed: TableSchema, why: Problem) {
        let none = ColumnRules::new(&[], Vec::new(), ColumnOrder::Places);
        if let Ok(mut after) = none.cover_again(&changed) {
            withhold_covered(before, &mut after);
            let registered = self.intake.registry.register(after);
            self.intake.announce(&registered);
        }
        self.refuse(before.id, why);
    }
}

/// Whether the server leaves a column out of updates, as a schema has it. `None`: it has no such column.
fn is_left_out(schema: &TableSchema, name: &str) -> Option<bool> {
    let mut columns = schema.columns.iter().chain(&schema.withheld);
    let column = columns.find(|column| is_same_name(&column.name, name))?;
    Some(is_generated(column))
}

/// A known table with those columns marked as well that the server leaves out of updates today.
pub(super) fn leave_out_today(known: &TableSchema, today: &TableSchema) -> TableSchema {
    marked(known, |column| {
        is_generated(column) || is_left_out(today, &column.name) == Some(true)
    })
}

/// A table with those columns marked that the catalog says it of. It may be ahead: one that was marked is so until a
/// statement changes its type.
fn leave_out_as(known: &TableSchema, now: &TableSchema, changes: &[Change]) -> TableSchema {
    marked(known, |column| {
        let now = is_left_out(now, &column.name);
        let is_retyped = || {
            changes.iter().any(|change| match change {
                Change::Retyped(name) => is_same_name(name, &column.name),
                _ => false,
            })
        };
        match is_generated(column) {
            true => now != Some(false) || !is_retyped(),
            false => now == Some(true),
        }
    })
}

fn marked(schema: &TableSchema, is: impl Fn(&Column) -> bool) -> TableSchema {
    let columns = schema.source_columns().map(|(column, ty)| {
        let cover = match (is(column), is_generated(column)) {
            (true, false) => left_out(),
            (false, true) => Cover::None,
            _ => return column.clone(),
        };
        Column {
            ty: ty.clone(),
            cover,
            ..column.clone()
        }
    });
    TableSchema {
        columns: columns.collect(),
        withheld: Vec::new(),
        ..schema.clone()
    }
}

/// Whether a column has its own values, or others, that had not, or had others, before.
pub(super) fn is_covered_otherwise(before: &TableSchema, after: &TableSchema) -> bool {
    fn mask(column: &Column) -> Option<&Masked> {
        match &column.cover {
            Cover::Masked(masked) => Some(masked),
            Cover::None | Cover::Shown | Cover::Withheld(_) => None,
        }
    }
    after.columns.iter().any(|column| {
        let was_withheld = before.withheld.iter().any(|was| was.id == column.id);
        let mut was = before.columns.iter().filter(|was| was.id == column.id);
        was_withheld || was.next().is_some_and(|was| mask(was) != mask(column))
    })
}
