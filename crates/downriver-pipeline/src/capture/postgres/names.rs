//! Names of tables move: a table is renamed, leaves the selection by that, or comes back.
//!
//! The log names tables as the catalog does when the change is noticed, and not as each message of the stream does: of
//! names that were passed around before a backlog is decoded only those of now belong to one table each.

use std::sync::Arc;

use downriver_decode::postgres::decoder::Relation;
use downriver_event::problem::Problem;
use downriver_event::{LogicalType, TableId, TableSchema};

use super::super::CaptureError;
use super::Run;

impl Run<'_> {
    /// The shape that a table's rows have, under the table's name and the rules of now. Whether these are other ones than
    /// the log's: then its rows are to be read again.
    pub(super) fn take_up(
        &mut self,
        today: TableSchema,
    ) -> Result<(Arc<TableSchema>, bool), Problem> {
        // What the stream brings decides when a known table's columns change.
        let rules = &self.postgres.columns;
        let known = self.intake.registry.newest(today.id);
        let is_known = known.is_some();
        let schema = match known {
            Some(known)
                if (&known.namespace, &known.name) == (&today.namespace, &today.name)
                    && rules.fit(known) =>
            {
                return Ok((Arc::clone(known), false));
            }
            Some(known) => rules.cover_again(&TableSchema {
                namespace: today.namespace,
                name: today.name,
                ..(**known).clone()
            })?,
            None => today,
        };
        let registered = self.intake.registry.register(schema);
        self.intake.announce(&registered);
        Ok((Arc::clone(registered.schema()), is_known))
    }

    /// Gives a known table's enums the labels of today: its rows are read with them before the stream says anything.
    pub(super) fn relabel(&mut self, today: &TableSchema) {
        let Some(known) = self.intake.registry.newest(today.id) else {
            return;
        };
        let mut relabelled = (**known).clone();
        for column in &mut relabelled.columns {
            let now = today
                .column_index(column.id)
                .map(|at| &today.columns[at].ty);
            if let Some(now) = now.filter(|now| is_of_labels(now) && is_of_labels(&column.ty)) {
                column.ty = now.clone();
            }
        }
        if relabelled.columns != known.columns {
            let registered = self.intake.registry.register(relabelled);
            self.intake.announce(&registered);
        }
    }

    /// A relation under the name that its table has in the catalog, if it is another one than before. A table that is
    /// gone keeps the last.
    pub(super) async fn called_today(
        &mut self,
        relation: &Relation,
    ) -> Result<Relation, CaptureError> {
        let mut relation = relation.clone();
        let Some(known) = self.intake.registry.newest(TableId(relation.id)) else {
            return Ok(relation);
        };
        if (&known.namespace, &known.name) != (&relation.namespace, &relation.name) {
            let today = self.catalog.name_of(TableId(relation.id)).await?;
            let last = || (known.namespace.clone(), known.name.clone());
            (relation.namespace, relation.name) = today.unwrap_or_else(last);
        }
        Ok(relation)
    }
}

fn is_of_labels(ty: &LogicalType) -> bool {
    match ty {
        LogicalType::Array(element) => is_of_labels(element),
        ty => matches!(ty, LogicalType::Enum { .. }),
    }
}
