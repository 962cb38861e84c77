//! What statements in the binlog do to the captured tables.

use std::cell::Cell;
use std::sync::Arc;

use downriver_decode::mysql::ddl::{Change, Effect, Named, effects_as};
use downriver_decode::mysql::decoder::Statement;
use downriver_decode::mysql::is_same_name;
use downriver_event::{TableId, TableSchema, pb};
use downriver_source::SourceError;
use downriver_source::mysql::catalog::SourceTable;
use downriver_source::rules::kept_covered;

use super::super::CaptureError;
use super::Run;
use super::ahead::Binlog;
use crate::status::TableState;

impl Run<'_> {
    /// Takes a statement's effects, and ends it unless rows of its own follow.
    pub(super) async fn statement(
        &mut self,
        statement: &Statement,
        binlog: &mut Binlog,
    ) -> Result<(), CaptureError> {
        let effects = self.effects_of(statement).ok_or_else(unreadable)?;
        self.unsettle(&effects);
        let has_rows = self.decoder.in_transaction() && self.intake.builder.in_transaction();
        if !has_rows && !effects.is_empty() {
            self.decoder.open_statement(&mut self.intake.builder);
        }
        let (renames, others): (Vec<_>, Vec<_>) = effects
            .into_iter()
            .partition(|effect| matches!(effect, Effect::Renamed { .. }));
        for effect in others {
            self.effect(effect, binlog).await?;
        }
        self.renamed(&in_all(renames), binlog).await?;
        if !has_rows {
            let committed = self.decoder.end_statement(&mut self.intake.builder);
            self.commit(&committed)?;
        }
        Ok(())
    }

    /// A statement's effects, as the server calls its tables. `None`: a name is in a character set that is not understood.
    pub(super) fn effects_of(&self, statement: &Statement) -> Option<Vec<Effect>> {
        let read = statement.wording.read(|of| self.charsets.get(&of).cloned());
        let text = read.as_deref().unwrap_or(&statement.text);
        let effects = effects_as(&statement.database, text, statement.wording.quoting);
        if effects.iter().any(is_unreadable) {
            return None;
        }
        let called = |named: Named| match self.folds_names {
            true => named.in_lower_case(),
            false => named,
        };
        let temporary: Vec<Named> = statement.temporary.iter().cloned().map(called).collect();
        // What is made or dropped beside a temporary table is a table of all sessions.
        let is_hidden = |effect: &Effect| match effect {
            Effect::Altered { table, .. }
            | Effect::Truncated(table)
            | Effect::Renamed { from: table, .. } => temporary.contains(table),
            _ => false,
        };
        let effects = effects.into_iter().map(|effect| effect.called(called));
        Some(effects.filter(|effect| !is_hidden(effect)).collect())
    }

    async fn effect(&mut self, effect: Effect, binlog: &mut Binlog) -> Result<(), CaptureError> {
        match effect {
            Effect::Created(table) => self.created(&table, binlog).await,
            Effect::Replaced(table) => match self.captured(&table) {
                Some(id) => self.take_up(id, binlog).await,
                None => self.created(&table, binlog).await,
            },
            Effect::Dropped(table) => {
                // One that is made under its name is another one.
                self.refused
                    .remove(&(table.database.clone(), table.table.clone()));
                if let Some(id) = self.captured(&table) {
                    self.intake.leave(id);
                }
                Ok(())
            }
            Effect::DatabaseDropped(database) => {
                let tables = self.intake.registry.tables();
                let dropped = tables.filter(|table| table.namespace == database);
                for id in dropped.map(|table| table.id).collect::<Vec<_>>() {
                    self.intake.leave(id);
                }
                Ok(())
            }
            // All of a statement's at once.
            Effect::Renamed { .. } => Ok(()),
            Effect::Truncated(table) => {
                if let Some(id) = self.captured(&table) {
                    let truncate = pb::Truncate {
                        table_ids: vec![id.0],
                        cascade: false,
                        restart_identity: true,
                    };
                    self.intake
                        .event("truncate", pb::marker::Kind::Truncate(truncate));
                }
                Ok(())
            }
            Effect::Altered { table, changes } => self.altered(&table, changes, binlog).await,
        }
    }

    /// The number of a table that is captured now.
    fn captured(&self, table: &Named) -> Option<TableId> {
        let known = self.known(&table.database, &table.table)?;
        (self.intake.captured.get(&known.id) == Some(&true)).then_some(known.id)
    }

    /// A table that was not there, or was not captured. One that had its name before goes on with its number; another
    /// is taken in when the capture starts again.
    async fn created(&mut self, table: &Named, binlog: &mut Binlog) -> Result<(), CaptureError> {
        let Named {
            database,
            table: name,
        } = table;
        let key = (database.clone(), name.clone());
        let is_known = self.captured(table).is_some()
            || self.refused.contains(&key)
            || self.unsettled.contains_key(&key);
        if is_known || !self.connection.captures(database, name) {
            return Ok(());
        }
        let Some(known) = self.known(database, name) else {
            return match self.had_at_first.contains(&key) {
                true => self.take_in(table, binlog).await,
                false => self.unknown(database, name).await,
            };
        };
        self.take_up(known.id, binlog).await
    }

    /// Captures another table under a known number, and reads it.
    pub(super) async fn take_up(
        &mut self,
        id: TableId,
        binlog: &mut Binlog,
    ) -> Result<(), CaptureError> {
        self.intake.captured.insert(id, true);
        self.intake.read_again(id);
        self.pass_over(id);
        self.shape_changed(id, binlog).await
    }

    async fn renamed(
        &mut self,
        renames: &[(Named, Named)],
        binlog: &mut Binlog,
    ) -> Result<(), CaptureError> {
        let renames = &self.renamed_unsettled(renames)[..];
        let known = renames.iter().map(|(from, to)| {
            let known = self.known(&from.database, &from.table);
            (self.captured(from), known.map(|known| known.id), to)
        });
        let known: Vec<_> = known.collect();
        let moves = |id: TableId| known.iter().any(|(captured, ..)| *captured == Some(id));
        for (captured, _, to) in &known {
            // What is called so today was taken in under that name already.
            let is_taken = self.captured(to).is_some_and(|holder| !moves(holder));
            let is_selected = self.connection.captures(&to.database, &to.table);
            match captured {
                Some(id) if is_selected && !is_taken => {
                    let is_captured = self.called(*id, to);
                    if is_captured {
                        self.rows_are_others(*id);
                    }
                }
                Some(id) => {
                    self.intake.leave(*id);
                }
                None => {}
            }
        }
        // What is called so now was not captured under its old name.
        for (_, known, to) in known.iter().filter(|(captured, ..)| captured.is_none()) {
            let is_selected = self.connection.captures(&to.database, &to.table);
            match known {
                Some(id) if is_selected && self.captured(to).is_none() => {
                    let is_captured = self.called(*id, to);
                    if is_captured {
                        self.take_up(*id, binlog).await?;
                    }
                }
                _ => self.created(to, binlog).await?,
            }
        }
        Ok(())
    }

    async fn altered(
        &mut self,
        table: &Named,
        changes: Vec<Change>,
        binlog: &mut Binlog,
    ) -> Result<(), CaptureError> {
        let Some(id) = self.captured(table) else {
            let key = (table.database.clone(), table.table.clone());
            if self.unsettled.contains_key(&key)
                && let Some(known) = self.known(&table.database, &table.table)
            {
                // Its rows are passed over; what is covered of it is followed all the same.
                self.columns_changed(known.id, &changes, None);
                return Ok(());
            }
            return self.altered_refused(table, &changes, binlog).await;
        };
        // What cannot be captured any more no row says.
        let now = self.catalog.table(&table.database, &table.table).await?;
        if let Some(problem) = now.as_ref().and_then(|now| now.problem.clone()) {
            self.refuse(id, problem);
            return Ok(());
        }
        let is_other = changes.iter().any(|change| match change {
            Change::Retyped(column) => self.is_retyped(id, now.as_ref(), column),
            Change::Rows => true,
            Change::ColumnRenamed { .. } | Change::ColumnDropped(_) => false,
        });
        let is_retyped = |change: &Change| matches!(change, Change::Retyped(_));
        let is_typed_anew = changes.iter().any(is_retyped);
        if !self.columns_changed(id, &changes, now.as_ref()) {
            return Ok(());
        }
        // Values that were cut to a type do not come back with the former one.
        if is_other || is_typed_anew && self.is_changed_since(table, binlog).await? {
            self.rows_are_others(id);
        }
        self.shape_changed(id, binlog).await
    }

    /// A table that cannot be captured: after the statement it may be one that can.
    async fn altered_refused(
        &mut self,
        table: &Named,
        changes: &[Change],
        binlog: &mut Binlog,
    ) -> Result<(), CaptureError> {
        let key = (table.database.clone(), table.table.clone());
        if !self.refused.contains(&key) {
            return Ok(());
        }
        let Some(now) = self.catalog.table(&key.0, &key.1).await? else {
            return Ok(());
        };
        if now.problem.is_some() {
            return Ok(());
        }
        match self.known(&key.0, &key.1) {
            // Under other names its columns may be covered again; and where a row of it could not be read another may be.
            // Who starts again before the statement would come to the same.
            Some(known)
                if kept_covered(&known).is_some()
                    || self.intake.control.why_refused(known.id).is_some() =>
            {
                if self.columns_changed(known.id, changes, Some(&now)) {
                    self.intake.control.admit(known.id);
                    self.refused.remove(&key);
                    self.take_up(known.id, binlog).await?;
                }
                Ok(())
            }
            // It was refused since the log's position: who starts again there would refuse it again. The next run begins
            // behind that, and finds it as it is now.
            Some(known) if self.intake.reread.waits_for(known.id) => {
                self.intake.table_status(known.id, |status| {
                    status.state = TableState::Pending;
                    status.problem = None;
                });
                Ok(())
            }
            _ => Err(CaptureError::Mended(now.schema.qualified_name())),
        }
    }

    /// Whether the catalog has another type for a column than its rows have so far.
    fn is_retyped(&self, id: TableId, now: Option<&SourceTable>, column: &str) -> bool {
        let of = |schema: &TableSchema| {
            let mut columns = schema.source_columns().map(|(column, _)| column);
            let column = columns.find(|c| is_same_name(&c.name, column))?;
            Some((column.source_type.clone(), column.nullable))
        };
        let now = now.and_then(|now| of(&now.schema));
        let before = self.intake.registry.newest(id).and_then(|known| of(known));
        match (before, now) {
            (Some((before, was_nullable)), Some((now, is_nullable))) => {
                before != now || was_nullable && !is_nullable
            }
            _ => true,
        }
    }

    /// Gives a table another shape, before any row of it.
    pub(super) fn reshaped(
        &mut self,
        id: TableId,
        change: impl FnOnce(TableSchema) -> TableSchema,
    ) -> Option<Arc<TableSchema>> {
        let known = self.intake.registry.newest(id)?;
        let schema = change((**known).clone());
        let registered = self.intake.registry.register(schema);
        self.intake.announce(&registered);
        Some(Arc::clone(registered.schema()))
    }
}

/// What a statement's renames, one after another, come to: tables may take each other's names by way of a third.
fn in_all(renames: Vec<Effect>) -> Vec<(Named, Named)> {
    let mut all: Vec<(Named, Named)> = Vec::new();
    for rename in renames {
        let Effect::Renamed { from, to } = rename else {
            continue;
        };
        match all.iter_mut().find(|(_, now)| *now == from) {
            Some((_, now)) => *now = to,
            None => all.push((from, to)),
        }
    }
    all.retain(|(from, to)| from != to);
    all
}

/// A name is not what was written: which table it is nobody knows.
fn is_unreadable(effect: &Effect) -> bool {
    let found = Cell::new(false);
    let is_no_name = |name: &str| name.contains(char::REPLACEMENT_CHARACTER);
    let _same = effect.clone().called(|named| {
        let is_no_name = is_no_name(&named.database) || is_no_name(&named.table);
        found.set(found.get() || is_no_name);
        named
    });
    found.get()
}

fn unreadable() -> SourceError {
    SourceError::hole(
        "DR-1087",
        "the binlog has a statement that changes a table whose name is in a character set that is not understood",
    )
}

#[cfg(test)]
mod tests {
    use downriver_decode::mysql::wording::Quoting;

    use super::*;

    #[test]
    fn tables_that_take_each_others_names_are_called_so_at_once() {
        let renames = |text: &str| {
            let found = in_all(effects_as("d", text, Quoting::default())).into_iter();
            let names = found.map(|(from, to)| format!("{}>{}", from.table, to.table));
            names.collect::<Vec<_>>().join(" ")
        };
        assert_eq!(
            renames("rename table a to tmp, b to a, tmp to b"),
            "a>b b>a"
        );
        assert_eq!(
            renames("rename table t to _t_del, _t_gho to t"),
            "t>_t_del _t_gho>t"
        );
        assert_eq!(renames("rename table a to b, b to a"), "");
        assert_eq!(renames("alter table a rename b"), "a>b");
    }
}
