//! What statements in the binlog do to the captured tables.

use downriver_decode::mysql::ddl::{Change, Effect, Named, effects};
use downriver_decode::mysql::decoder::Statement;
use downriver_event::{TableId, TableSchema, pb};
use downriver_source::mysql::catalog::SourceTable;

use super::super::CaptureError;
use super::Run;
use super::numbers::is_same_name;

impl Run<'_> {
    /// Takes a statement's effects, and ends it unless rows of its own follow.
    pub(super) async fn statement(&mut self, statement: &Statement) -> Result<(), CaptureError> {
        let mut effects = effects(&statement.database, &statement.text);
        if self.folds_names {
            let fold = |effect: Effect| effect.called(in_lower_case);
            effects = effects.into_iter().map(fold).collect();
        }
        let has_rows = self.decoder.in_transaction() && self.intake.builder.in_transaction();
        if !has_rows && !effects.is_empty() {
            self.decoder.open_statement(&mut self.intake.builder);
        }
        let (renames, others): (Vec<_>, Vec<_>) = effects
            .into_iter()
            .partition(|effect| matches!(effect, Effect::Renamed { .. }));
        for effect in others {
            self.effect(effect).await?;
        }
        self.renamed(&in_all(renames)).await?;
        if !has_rows {
            let committed = self.decoder.end_statement(&mut self.intake.builder);
            self.commit(&committed)?;
        }
        Ok(())
    }

    async fn effect(&mut self, effect: Effect) -> Result<(), CaptureError> {
        match effect {
            Effect::Created(table) => self.created(&table).await,
            Effect::Replaced(table) => match self.captured(&table) {
                Some(id) => {
                    self.intake.read_again(id);
                    Ok(())
                }
                None => self.created(&table).await,
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
            Effect::Altered { table, changes } => self.altered(&table, changes).await,
        }
    }

    /// The number of a table that is captured now.
    fn captured(&self, table: &Named) -> Option<TableId> {
        let known = self.known(&table.database, &table.table)?;
        (self.intake.captured.get(&known.id) == Some(&true)).then_some(known.id)
    }

    /// A table that was not there, or was not captured. One that had its name before goes on with its number; another
    /// is taken in when the capture starts again.
    async fn created(&mut self, table: &Named) -> Result<(), CaptureError> {
        let Named {
            database,
            table: name,
        } = table;
        let is_known = self.captured(table).is_some()
            || self.refused.contains(&(database.clone(), name.clone()));
        if is_known || !self.connection.captures(database, name) {
            return Ok(());
        }
        let Some(known) = self.known(database, name) else {
            return self.unknown(database, name).await;
        };
        self.intake.captured.insert(known.id, true);
        self.intake.read_again(known.id);
        Ok(())
    }

    async fn renamed(&mut self, renames: &[(Named, Named)]) -> Result<(), CaptureError> {
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
                    self.called(*id, to);
                    self.intake.rows_are_others(*id);
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
                    self.called(*id, to);
                    self.intake.captured.insert(*id, true);
                    self.intake.read_again(*id);
                }
                _ => self.created(to).await?,
            }
        }
        Ok(())
    }

    fn called(&mut self, id: TableId, name: &Named) {
        self.reshaped(id, |schema| TableSchema {
            namespace: name.database.clone(),
            name: name.table.clone(),
            ..schema
        });
    }

    async fn altered(&mut self, table: &Named, changes: Vec<Change>) -> Result<(), CaptureError> {
        let Some(id) = self.captured(table) else {
            // It may be one that can be captured now.
            let key = (table.database.clone(), table.table.clone());
            if self.refused.contains(&key)
                && let Some(now) = self.catalog.table(&key.0, &key.1).await?
                && now.problem.is_none()
            {
                return Err(CaptureError::Mended(now.schema.qualified_name()));
            }
            return Ok(());
        };
        // What cannot be captured any more no row says.
        let now = self.catalog.table(&table.database, &table.table).await?;
        if let Some(problem) = now.as_ref().and_then(|now| now.problem.clone()) {
            self.refuse(id, problem);
            return Ok(());
        }
        let mut is_other = false;
        for change in changes {
            match change {
                Change::ColumnRenamed { from, to } => {
                    self.reshaped(id, |mut schema| {
                        let mut columns = schema.columns.iter_mut();
                        if let Some(column) = columns.find(|c| is_same_name(&c.name, &from)) {
                            column.name.clone_from(&to);
                        }
                        schema
                    });
                }
                Change::Retyped(column) => {
                    is_other |= self.is_retyped(id, now.as_ref(), &column);
                }
                Change::Rows => is_other = true,
            }
        }
        if is_other {
            self.intake.rows_are_others(id);
        }
        Ok(())
    }

    /// Whether the catalog has another type for a column than its rows have so far.
    fn is_retyped(&self, id: TableId, now: Option<&SourceTable>, column: &str) -> bool {
        let of = |schema: &TableSchema| {
            let mut columns = schema.columns.iter();
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
    fn reshaped(&mut self, id: TableId, change: impl FnOnce(TableSchema) -> TableSchema) {
        if let Some(known) = self.intake.registry.newest(id) {
            let schema = change((**known).clone());
            let registered = self.intake.registry.register(schema);
            self.intake.announce(&registered);
        }
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

fn in_lower_case(named: Named) -> Named {
    Named {
        database: named.database.to_lowercase(),
        table: named.table.to_lowercase(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_that_take_each_others_names_are_called_so_at_once() {
        let renames = |text: &str| {
            let found = in_all(effects("d", text)).into_iter();
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
