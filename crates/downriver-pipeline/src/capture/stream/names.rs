//! Names of tables move: a table is renamed, leaves the selection by that, or comes back.
//!
//! The log names tables as the catalog does when the change is noticed, and not as each message of the stream does: of
//! names that were passed around before a backlog is decoded only those of now belong to one table each.

use std::sync::Arc;

use downriver_decode::postgres::decoder::Relation;
use downriver_event::problem::Problem;
use downriver_event::{TableId, TableSchema};

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
        let rules = &self.config.postgres.columns;
        let known = self.registry.newest(today.id);
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
        let registered = self.registry.register(schema);
        self.announce(&registered);
        Ok((Arc::clone(registered.schema()), is_known))
    }

    /// A relation under the name that its table has in the catalog, if it is another one than before. A table that is
    /// gone keeps the last.
    pub(super) async fn called_today(
        &mut self,
        relation: &Relation,
    ) -> Result<Relation, CaptureError> {
        let mut relation = relation.clone();
        let Some(known) = self.registry.newest(TableId(relation.id)) else {
            return Ok(relation);
        };
        if (&known.namespace, &known.name) != (&relation.namespace, &relation.name) {
            let today = self.catalog.name_of(TableId(relation.id)).await?;
            let last = || (known.namespace.clone(), known.name.clone());
            (relation.namespace, relation.name) = today.unwrap_or_else(last);
        }
        Ok(relation)
    }

    /// A table that is not selected any more. What is missed of it from here on only a snapshot brings, if it comes
    /// back: the start that follows stores that it lapsed.
    pub(super) fn leave(&mut self, table: TableId) {
        self.read_again(table);
        self.captured.insert(table, false);
    }
}
