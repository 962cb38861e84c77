//! Which tables are captured, in which shape, and which are to be read again.

use std::collections::BTreeMap;
use std::sync::Arc;

use downriver_decode::postgres::decoder::Relation;
use downriver_decode::postgres::shape::Shape;
use downriver_event::problem::Problem;
use downriver_event::{TableId, TableSchema, pb};
use downriver_log::{LogError, StreamState};
use downriver_source::postgres::catalog::SourceTable;
use downriver_source::postgres::rules::uncovered;

use super::super::CaptureError;
use super::super::outgrown::outgrown;
use super::super::progress::Resume;
use super::super::registry::Registered;
use super::super::repair::wanted;
use super::super::request::Request;
use super::super::shelf::Shelf;
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
            let uncovered = before.as_ref().and_then(|b| uncovered(b, &table.schema));
            let goes_on = before.as_ref().is_some_and(|b| table.goes_on_as(b));
            let captured = uncovered.is_none() && (table.problem.is_none() || goes_on);
            let problem = uncovered.or(table.problem);
            self.captured.insert(id, captured);
            if !captured {
                if before.is_some() {
                    self.miss(id, state);
                }
                statuses.insert(name, refused(problem));
                continue;
            }
            let (schema, is_other) = match self.take_up(table.schema) {
                Ok(taken_up) => taken_up,
                Err(problem) => {
                    self.captured.insert(id, false);
                    self.miss(id, state);
                    statuses.insert(name, refused(Some(problem)));
                    continue;
                }
            };
            let chunks = state.chunks.get(&id);
            let mut table_status = TableStatus {
                state: TableState::Streaming,
                problem,
                ..TableStatus::default()
            };
            let is_other = is_other && self.config.snapshot.initial;
            let is_wanted = chunks.map_or(self.config.snapshot.initial, |chunks| {
                is_other || !chunks.done && (self.config.snapshot.initial || chunks.generation > 1)
            });
            if is_wanted {
                let taken_up = chunks.filter(|_| !is_other);
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
                let generation = generation + u64::from(is_other && chunks.is_some());
                let starts = std::mem::take(&mut resume.requested) || taken_up.is_none();
                let rows = taken_up.map_or(0, |chunks| chunks.rows);
                table_status.state = TableState::Snapshotting;
                table_status.snapshot = Some(SnapshotProgress {
                    rows_done: rows,
                    rows_estimated: table.estimated_rows,
                    ..SnapshotProgress::default()
                });
                if schema.is_bag() {
                    let shelf = Shelf::create(&self.config.spill, id);
                    let shelf = shelf.map_err(|error| self.shelf_failed(error))?;
                    self.set_aside.track(id, shelf);
                    resume = Resume::default();
                    // Its start comes with its rows: until then it is read from the beginning.
                    self.outbox.chunk_done(wanted(id, generation));
                } else {
                    self.recent.track(id);
                    if starts {
                        self.start_snapshot(id, generation, &resume);
                    }
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
        if self.captured.get(&table) == Some(&false) {
            self.decoder.set_shape(relation.id, None);
            return Ok(());
        }
        self.catalog.until_visible(self.decoder.xid()).await?;
        let relation = &self.called_today(relation).await?;
        match self.captured.get(&table) {
            Some(_) if self.is_selected(relation) => {}
            Some(_) => {
                self.leave(table);
                self.decoder.set_shape(relation.id, None);
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
                self.decoder.set_shape(relation.id, None);
                return Ok(());
            }
        }
        let before = self.registry.newest(table).map(|s| &**s);
        let SourceTable {
            schema, problem, ..
        } = self.catalog.described(relation, before).await?;
        let problem = problem.or_else(|| before.and_then(|before| uncovered(before, &schema)));
        if let Some(problem) = problem {
            self.decoder.set_shape(relation.id, None);
            self.refuse(table, problem);
            return Ok(());
        }
        let schema = self.reshape(schema).await?;
        let treatments = self.config.postgres.columns.treatments(&schema);
        let shape = Shape::new(schema, treatments);
        self.decoder.set_shape(relation.id, Some(shape));
        Ok(())
    }

    /// Captures no more of a table. Once its problem is gone it is read again, as it misses what comes until then.
    fn refuse(&mut self, table: TableId, problem: Problem) {
        tracing::error!(
            source = self.config.name,
            code = problem.code,
            reason = problem.reason,
            "a table is not captured any more; the others go on"
        );
        self.read_again(table);
        self.captured.insert(table, false);
        self.table_status(table, |status| {
            status.state = TableState::Refused;
            status.problem = Some(problem);
        });
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
            Some(now)
                if uncovered(&lost.schema, &now.schema).is_none()
                    && (now.problem.is_none() || now.goes_on_as(&lost.schema)) =>
            {
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
        self.set_aside.forget(table);
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

fn refused(problem: Option<Problem>) -> TableStatus {
    TableStatus {
        state: TableState::Refused,
        problem,
        ..TableStatus::default()
    }
}
