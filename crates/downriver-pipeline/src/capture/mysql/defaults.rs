//! Rows that are inserted without all of their columns, as they are where rows are logged in part: what they lack is the
//! columns' defaults at that place. The catalog tells them, and they are kept with the log's schema until a statement may
//! have changed them.

use std::sync::Arc;

use downriver_decode::mysql::decoder::Decoded;
use downriver_decode::mysql::is_same_name;
use downriver_event::{Column, TableId, TableSchema};

use super::super::CaptureError;
use super::Run;
use super::ahead::{Binlog, Met};
use super::decode::undecodable;
use super::history::{Unsettled, is_changed, is_same};

impl Run<'_> {
    /// Nobody knows any more what inserts that are logged without columns have in them.
    pub(super) fn forget_defaults(&mut self, table: TableId) -> Option<Arc<TableSchema>> {
        self.reshaped(table, |mut schema| {
            for column in &mut schema.columns {
                column.default = None;
            }
            schema
        })
    }

    /// Rows were inserted without columns whose defaults are not known: they are looked up, and hold if nothing changes the
    /// table up to where that is. Otherwise its rows are passed over up to there.
    pub(super) async fn lacking(
        &mut self,
        table: TableId,
        binlog: &mut Binlog,
    ) -> Result<(), CaptureError> {
        let schema = self.with_defaults(table, binlog).await?;
        let decoded = self.decoder.complete(schema, &mut self.intake.builder);
        if let Decoded::Rows { bytes } = decoded.map_err(undecodable)? {
            self.intake.rows(bytes)?;
        }
        Ok(())
    }

    async fn with_defaults(
        &mut self,
        table: TableId,
        binlog: &mut Binlog,
    ) -> Result<Option<Arc<TableSchema>>, CaptureError> {
        let Some(known) = self.intake.registry.newest(table).cloned() else {
            return Ok(None);
        };
        let name = (known.namespace.clone(), known.name.clone());
        let kept = self.catalog.kept_with_defaults(&name.0, &name.1).await?;
        let mut is_changed_since = false;
        let is_reached = self
            .look_ahead(binlog, false, &kept.at, |met| {
                if let Met::Statement(statement) = met {
                    is_changed_since |= is_changed(self.effects_of(statement).as_deref(), &name);
                }
                is_changed_since
            })
            .await?;
        let now = kept.now.as_ref().map(|now| &now.schema);
        let now = now.filter(|now| is_reached && !is_changed_since && is_same(now, &known));
        let Some(now) = now else {
            self.lose(
                table,
                "an insert was logged without columns whose defaults are not known here",
            );
            self.unsettled.insert(name, Unsettled::since(kept));
            return Ok(None);
        };
        Ok(self.reshaped(table, |schema| with_defaults_of(schema, now)))
    }
}

fn with_defaults_of(mut schema: TableSchema, now: &TableSchema) -> TableSchema {
    for column in &mut schema.columns {
        let mut columns = now.columns.iter();
        let is_it =
            |now: &&Column| is_same_name(&now.name, &column.name) && now.cover == column.cover;
        let now = columns.find(is_it);
        column.default = now.and_then(|now| now.default.clone());
    }
    schema
}
