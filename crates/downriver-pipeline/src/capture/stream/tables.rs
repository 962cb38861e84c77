//! Which tables are captured, in which shape, and which are to be read again.

use std::collections::BTreeMap;
use std::sync::Arc;

use downriver_decode::postgres::decoder::Relation;
use downriver_event::{TableId, TableSchema, pb};
use downriver_log::{LogError, StreamState};
use downriver_source::postgres::catalog::SourceTable;

use super::super::CaptureError;
use super::super::outgrown::outgrown;
use super::super::progress::Resume;
use super::super::registry::Registered;
use super::super::repair::wanted;
use super::super::request::Request;
use super::super::snapshot::{LostShape, TableTask};
use super::{Run, TableProgress};
use crate::status::{SnapshotProgress, TableState, TableStatus};

impl Run<'_> {
    /// Registers the captured tables and returns those whose snapshot is not done.
    pub(super) fn take_tables(
        &mut self,
        tables: Vec<SourceTable>,
        state: &StreamState,
    ) -> Result<Vec<TableTask>, CaptureError> {
        let names = tables
            .iter()
            .map(|table| (table.schema.id, table.schema.qualified_name()));
        self.names = names.collect();
        let known = self.names.keys().copied().collect();
        let mut tasks = Vec::new();
        let mut statuses = BTreeMap::new();
        for table in tables {
            let id = table.schema.id;
            let name = table.schema.qualified_name();
            let before = self.registry.newest(id).cloned();
            let captured =
                table.problem.is_none() || before.as_ref().is_some_and(|b| table.goes_on_as(b));
            self.captured.insert(id, captured);
            if !captured {
                if before.is_some() {
                    self.miss(id, state);
                }
                let refused = TableStatus {
                    state: TableState::Refused,
                    problem: table.problem,
                    ..TableStatus::default()
                };
                statuses.insert(name, refused);
                continue;
            }
            let (schema, is_renamed) = self.take_name(table.schema);
            let chunks = state.chunks.get(&id);
            let mut table_status = TableStatus {
                state: TableState::Streaming,
                problem: table.problem,
                ..TableStatus::default()
            };
            let is_renamed = is_renamed && self.config.snapshot.initial;
            let wanted = chunks.map_or(self.config.snapshot.initial, |chunks| {
                is_renamed
                    || !chunks.done && (self.config.snapshot.initial || chunks.generation > 1)
            });
            if wanted {
                let taken_up = chunks.filter(|_| !is_renamed);
                let resume = taken_up.map_or_else(
                    || Some(Resume::default()),
                    |chunks| Resume::decode(chunks.resume_after.clone()),
                );
                let mut resume = resume.ok_or_else(|| {
                    CaptureError::Log(LogError::Unavailable(format!(
                        "the progress of the snapshot of {name} was written by a newer version"
                    )))
                })?;
                let generation = chunks.map_or(1, |chunks| chunks.generation);
                let generation = generation + u64::from(is_renamed && chunks.is_some());
                let starts = std::mem::take(&mut resume.requested) || taken_up.is_none();
                let rows = taken_up.map_or(0, |chunks| chunks.rows);
                table_status.state = TableState::Snapshotting;
                table_status.snapshot = Some(SnapshotProgress {
                    rows_done: rows,
                    rows_estimated: table.estimated_rows,
                    ..SnapshotProgress::default()
                });
                self.recent.track(id);
                if starts {
                    self.start_snapshot(id, generation, &resume);
                }
                tasks.push(TableTask {
                    schema,
                    generation,
                    resume: resume.clone(),
                });
                self.snapshots
                    .insert(id, TableProgress { generation, resume });
            }
            statuses.insert(name, table_status);
        }
        let snapshotting = !tasks.is_empty();
        self.status.update(|s| {
            s.state = if snapshotting {
                TableState::Snapshotting
            } else {
                TableState::Streaming
            };
            s.problem = None;
            s.in_hole = false;
            s.tables = statuses;
            s.known = known;
        });
        self.flush()?;
        Ok(tasks)
    }

    /// A table that was captured and is not in this run lacks what changes meanwhile: when it is captured again, it is
    /// read again.
    fn miss(&mut self, table: TableId, state: &StreamState) {
        let chunks = state.chunks.get(&table);
        let resume = chunks.and_then(|chunks| Resume::decode(chunks.resume_after.clone()));
        if !resume.is_some_and(|resume| resume.requested) {
            let generation = chunks.map_or(1, |chunks| chunks.generation) + 1;
            self.outbox.chunk_done(wanted(table, generation));
        }
    }

    /// A relation's shape decides which schema its rows use from here on.
    pub(super) async fn relation(&mut self, relation: &Relation) -> Result<(), CaptureError> {
        let table = TableId(relation.id);
        let relation = &self.called_today(relation).await?;
        match self.captured.get(&table) {
            Some(true) if self.is_selected(relation) => {}
            Some(true) => {
                self.leave(table);
                self.decoder.set_schema(relation.id, None);
                return Ok(());
            }
            Some(false) => {
                self.decoder.set_schema(relation.id, None);
                return Ok(());
            }
            // Dropped since: what is left of it in the stream still counts.
            None if self.registry.newest(table).is_some() && self.is_selected(relation) => {
                self.captured.insert(table, true);
            }
            None if self.is_selected(relation) && self.catalog.table(table).await?.is_some() => {
                // Made since the capture began. Starting again finds it and takes its snapshot, which
                // contains what is passed over here.
                return Err(CaptureError::NewTable(format!(
                    "{}.{}",
                    relation.namespace, relation.name
                )));
            }
            None => {
                self.captured.insert(table, false);
                self.decoder.set_schema(relation.id, None);
                return Ok(());
            }
        }
        let schema = self
            .catalog
            .schema_of(relation, self.registry.newest(table).map(|s| &**s))
            .await?;
        let schema = self.reshape(schema).await?;
        self.decoder.set_schema(relation.id, Some(schema));
        Ok(())
    }

    fn is_selected(&self, relation: &Relation) -> bool {
        let postgres = &self.config.postgres;
        postgres.captures(&relation.namespace, &relation.name)
    }

    /// The shape of a table's rows from here on. Where old rows got other values without events they are read again.
    async fn reshape(&mut self, schema: TableSchema) -> Result<Arc<TableSchema>, CaptureError> {
        let table = schema.id;
        let before = self.registry.newest(table).cloned();
        let registered = self.registry.register(schema);
        self.announce(&registered);
        if before.as_ref().map(|before| before.identity) != Some(registered.schema().identity) {
            let now = self.catalog.table(table).await?;
            let problem = now.and_then(|now| now.problem);
            self.table_status(table, |status| status.problem = problem);
        }
        if let Some(before) = before
            && self.config.snapshot.initial
            && (outgrown(&before, registered.schema())
                || self
                    .catalog
                    .fills_rows(&before, registered.schema())
                    .await?)
        {
            self.read_again(table);
        }
        Ok(Arc::clone(registered.schema()))
    }

    /// Answers a worker that did not find the shape which it was to read. The stream has passed what it found; it may
    /// have said nothing of it, as a shape is told with the next row only.
    pub(super) async fn find_shape(&mut self, lost: LostShape) -> Result<(), CaptureError> {
        let table = lost.schema.id;
        let told = self
            .registry
            .newest(table)
            .is_some_and(|newest| newest.version != lost.schema.version);
        match lost.reshaped.now {
            _ if told => {}
            Some(now) if now.problem.is_none() || now.goes_on_as(&lost.schema) => {
                self.reshape(now.schema).await?;
                self.flush()?;
            }
            // It is refused when the capture starts again.
            Some(now) => return Err(CaptureError::SchemaMoved(now.schema.qualified_name())),
            None => {
                self.forget_snapshot(table);
                let name = lost.schema.qualified_name();
                self.status.update(|s| {
                    s.tables.remove(&name);
                });
            }
        }
        // A table that is to be read again, or not at all, is nothing for this worker any more.
        if self.snapshots.contains_key(&table)
            && let Some(newest) = self.registry.newest(table)
        {
            let _ = lost.answer.send(Arc::clone(newest));
        }
        Ok(())
    }

    /// Puts a new version's announcement into the log, before its first row.
    pub(super) fn announce(&mut self, registered: &Registered) {
        let Registered::New {
            schema,
            previous_version,
        } = registered
        else {
            return;
        };
        self.outbox.register(Arc::clone(schema));
        let change = pb::marker::Kind::SchemaChange(pb::SchemaChange {
            schema: Some(schema.to_pb()),
            previous_version: *previous_version,
        });
        self.event("schema", change);
    }

    /// Asks for a new snapshot of tables.
    pub(super) fn requested(&mut self, request: Request) -> Result<(), CaptureError> {
        if request.answer.is_closed() {
            return Ok(());
        }
        let tables = request.tables.into_iter();
        let requested: Vec<_> = tables
            .filter_map(|table| Some((table, self.read_again(table)?)))
            .collect();
        if requested.is_empty() {
            let _ = request.answer.send(Ok(requested));
            return Ok(());
        }
        self.reread.answer(request.answer, requested);
        if !self.builder.in_transaction() {
            self.flush()?;
        }
        Ok(())
    }

    /// Wants a table's next generation, once what is open has ended: it is stored with it. `None`: the table is not
    /// captured.
    pub(super) fn read_again(&mut self, table: TableId) -> Option<u64> {
        let name = self.registry.newest(table)?.qualified_name();
        if self.captured.get(&table) != Some(&true) {
            return None;
        }
        let state = self.log.state(&self.config.name);
        let logged = state.and_then(|state| Some(state.chunks.get(&table)?.generation));
        let generation = logged.unwrap_or(1) + 1;
        // What is under way of the last one must not be stored after this.
        self.recent.forget(table);
        self.snapshots.remove(&table);
        self.outbox.chunk_done_with_open(wanted(table, generation));
        self.reread.wait_for(table, generation, name);
        Some(generation)
    }

    pub(super) fn table_status<T>(
        &self,
        table: TableId,
        change: impl FnOnce(&mut TableStatus) -> T,
    ) -> Option<T> {
        let name = self.registry.newest(table)?.qualified_name();
        let mut result = None;
        self.status
            .update(|s| result = s.tables.get_mut(&name).map(change));
        result
    }
}
