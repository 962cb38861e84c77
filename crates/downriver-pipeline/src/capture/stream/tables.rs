//! Which tables are captured, in which shape, and which are to be read again.

use std::collections::BTreeMap;
use std::sync::Arc;

use downriver_decode::postgres::decoder::Relation;
use downriver_decode::postgres::shape::Shape;
use downriver_event::problem::Problem;
use downriver_event::{RowFilter, TableId, TableSchema, pb};
use downriver_log::StreamState;
use downriver_source::postgres::catalog::SourceTable;
use downriver_source::postgres::rules::uncovered;

use super::super::CaptureError;
use super::super::outgrown::outgrown;
use super::super::progress::{Resume, Standing};
use super::super::registry::Registered;
use super::super::repair::wanted;
use super::super::request::Request;
use super::super::shelf::Shelf;
use super::super::snapshot::{LostShape, TableTask};
use super::drift::{self, Fate};
use super::{Run, TableProgress};
use crate::status::{SnapshotProgress, TableState, TableStatus};

impl Run<'_> {
    /// Registers the captured tables and returns those whose snapshot is not done.
    pub(super) fn take_tables(
        &mut self,
        tables: Vec<SourceTable>,
        state: &StreamState,
    ) -> Result<Vec<TableTask>, CaptureError> {
        let known = tables.iter();
        let known = known.map(|table| (table.schema.id, table.seen.clone()));
        let known = known.collect();
        let mut tasks = Vec::new();
        let mut statuses = BTreeMap::new();
        for table in tables {
            let name = table.schema.qualified_name();
            let status = self.take_table(table, state, &mut tasks)?;
            statuses.insert(name, status);
        }
        self.lapse(state);
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

    fn take_table(
        &mut self,
        table: SourceTable,
        state: &StreamState,
        tasks: &mut Vec<TableTask>,
    ) -> Result<TableStatus, CaptureError> {
        let id = table.schema.id;
        let name = table.schema.qualified_name();
        let chunks = state.chunks.get(&id);
        let resume = drift::resume(&name, chunks)?;
        let stored = resume.as_ref().map(|resume| resume.standing.clone());
        let before = self.registry.newest(id).cloned();
        let uncovered = before.as_ref().and_then(|b| uncovered(b, &table.schema));
        let goes_on = before.as_ref().is_some_and(|b| table.goes_on_as(b));
        let spoiled = self.control.why_refused(id);
        let refusal = uncovered.or_else(|| table.problem.clone().filter(|_| !goes_on));
        // Names that collide are none of one table's: other names are noticed as such. Of values the catalog tells nothing.
        let is_watched = spoiled.is_none()
            && (refusal.as_ref()).is_some_and(|p| p.code != "DR-1031" || table.has_twin_columns());
        let refusal = spoiled.or(refusal);
        let fate = Fate::of(&table, refusal, stored.as_ref(), &self.config.postgres);
        let in_state = |state, problem| TableStatus {
            state,
            problem,
            ..TableStatus::default()
        };
        self.captured.insert(id, !matches!(fate, Fate::Refused(_)));
        self.standings
            .insert(id, stored.clone().unwrap_or_default());
        let (outline, is_rewritten) = match fate {
            Fate::Refused(problem) => {
                if is_watched {
                    self.refused.insert(id, before);
                }
                return Ok(refused(Some(problem)));
            }
            Fate::TakenOut(problem) => {
                tracing::error!(
                    source = self.config.name,
                    table = name,
                    code = problem.code,
                    "the table was taken out of the publication"
                );
                self.taken_out.insert(id);
                return Ok(in_state(TableState::Stopped, Some(problem)));
            }
            Fate::Drifted(now) => {
                if let Err(problem) = self.take_up(table.schema.clone()) {
                    self.captured.insert(id, false);
                    return Ok(refused(Some(problem)));
                }
                self.relabel(&table.schema);
                self.drift.add(id, now);
                return Ok(in_state(TableState::Pending, None));
            }
            Fate::Whole(now) => (now, false),
            Fate::Rewritten(now) => (now, true),
        };
        let (schema, is_other) = match self.take_up(table.schema) {
            Ok(taken_up) => taken_up,
            Err(problem) => {
                self.captured.insert(id, false);
                return Ok(refused(Some(problem)));
            }
        };
        let standing = Standing::Published(outline);
        self.standings.insert(id, standing.clone());
        let initial = self.config.snapshot.initial;
        let begun = chunks.filter(|chunks| chunks.generation > 0);
        let is_reading =
            begun.is_some_and(|chunks| !chunks.done && (initial || chunks.generation > 1));
        let is_rewritten = is_rewritten && schema.tells_rows();
        let part = resume.as_ref().and_then(|resume| resume.part.as_ref());
        let is_part_lost = is_reading && part.is_some_and(|part| !part.fits(&schema));
        let is_other =
            is_other && initial || is_rewritten && (initial || is_reading) || is_part_lost;
        let is_wanted = begun.map_or(initial, |_| is_other || is_reading);
        // What other generation there is brings them as well.
        let is_lacking = self.control.takes_lacking(id) && !is_wanted && !schema.is_bag();
        let (is_wanted, is_other) = (is_wanted || is_lacking, is_other || is_lacking);
        let mut resume = resume.unwrap_or_default();
        if !is_wanted {
            if is_rewritten {
                let problem = drift::rewritten_unread(&schema);
                return Ok(in_state(TableState::Streaming, Some(problem)));
            }
            if stored.as_ref() != Some(&standing) {
                let restated = drift::restated(id, chunks, resume, standing);
                self.outbox.chunk_done(restated);
            }
            return Ok(in_state(TableState::Streaming, table.problem));
        }
        let taken_up = begun.filter(|_| !is_other);
        if taken_up.is_none() {
            resume = match is_lacking {
                true => rows_that_lack_values(),
                false => Resume::default(),
            };
        }
        resume.standing = standing.clone();
        let before = begun.map_or(u64::from(is_lacking), |chunks| chunks.generation);
        let generation = before + u64::from(is_other || begun.is_none());
        let starts = std::mem::take(&mut resume.requested) || taken_up.is_none();
        if schema.is_bag() {
            let shelf = Shelf::create(&self.config.spill, id);
            let shelf = shelf.map_err(|error| self.shelf_failed(error))?;
            self.set_aside.track(id, shelf);
            resume = Resume {
                standing: standing.clone(),
                ..Resume::default()
            };
            // Its start comes with its rows: until then it is read from the beginning.
            self.outbox
                .chunk_done(wanted(id, generation, standing, None));
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
            rows_estimated: None,
        });
        // Of a part the worker finds out.
        let rows_estimated = match resume.part {
            Some(_) => 0,
            None => table.estimated_rows,
        };
        self.snapshots
            .insert(id, TableProgress { generation, resume });
        Ok(TableStatus {
            snapshot: Some(SnapshotProgress {
                rows_done: taken_up.map_or(0, |chunks| chunks.rows),
                rows_estimated,
                ..SnapshotProgress::default()
            }),
            ..in_state(TableState::Snapshotting, table.problem)
        })
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
            Some(true) if self.drift.has(table) => {
                self.decoder.set_shape(relation.id, None);
                return Ok(());
            }
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
            && self.changes_rows(&before, registered.schema()).await?
        {
            self.read_again(table);
        }
        Ok(Arc::clone(registered.schema()))
    }

    /// Whether a change of a table's shape changes rows, of which the stream says nothing.
    async fn changes_rows(
        &mut self,
        before: &TableSchema,
        after: &TableSchema,
    ) -> Result<bool, CaptureError> {
        let is_kept = match self.standings.get(&after.id) {
            _ if !outgrown(before, after, false) => true,
            Some(Standing::Published(outline)) => {
                self.catalog.has_file_of(after.id, outline).await?
            }
            _ => false,
        };
        Ok(outgrown(before, after, is_kept) || self.catalog.fills_rows(before, after).await?)
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
                if let Some(TableProgress { generation, resume }) = self.snapshots.get(&table) {
                    let lapsed = drift::lapsed(table, *generation, resume.clone());
                    self.outbox.chunk_done(lapsed);
                }
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
        let parts = request.tables.iter();
        let mut parts = parts.filter_map(|(table, part)| Some((*table, part.as_ref()?)));
        if let Some(problem) = parts.find_map(|(table, part)| self.why_not_in_part(table, part)) {
            let _ = request.answer.send(Err(problem));
            return Ok(());
        }
        for (table, _) in &request.tables {
            if self.control.admit(*table) {
                self.captured.insert(*table, true);
                self.standings.insert(*table, Standing::Unknown);
            }
        }
        let tables = request.tables.into_iter();
        let requested: Vec<_> = tables
            .filter_map(|(table, part)| Some((table, self.read_part_again(table, part)?)))
            .collect();
        if requested.is_empty() {
            let _ = request.answer.send(Ok(requested));
            return Ok(());
        }
        self.reread.answer(request.answer, requested);
        self.flush_between()
    }

    /// Wants a table's next generation, once what is open has ended: it is stored with it. `None`: the table is not
    /// captured.
    pub(super) fn read_again(&mut self, table: TableId) -> Option<u64> {
        self.read_part_again(table, None)
    }

    /// The same of a part of the table only, if it is given.
    fn read_part_again(&mut self, table: TableId, part: Option<RowFilter>) -> Option<u64> {
        let name = self.registry.newest(table)?.qualified_name();
        if self.captured.get(&table) != Some(&true) || self.taken_out.contains(&table) {
            return None;
        }
        let state = self.log.state(&self.config.name);
        let logged = state.and_then(|state| Some(state.chunks.get(&table)?.generation));
        let generation = logged.unwrap_or(1).max(1) + 1;
        // What is under way of the last one must not be stored after this.
        self.recent.forget(table);
        self.set_aside.forget(table);
        self.snapshots.remove(&table);
        let standing = self.standings.get(&table).cloned().unwrap_or_default();
        self.outbox
            .chunk_done_with_open(wanted(table, generation, standing, part));
        self.reread.wait_for(table, generation, name);
        self.table_status(table, |status| {
            status.state = TableState::Pending;
            status.problem = None;
        });
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

/// A generation that reads nothing but the rows which come into the publication's filter while it runs: they are read
/// as rows are that moved between chunks.
fn rows_that_lack_values() -> Resume {
    Resume {
        exhausted: true,
        part: Some(RowFilter::nothing("its values were not all sent")),
        ..Resume::default()
    }
}

fn refused(problem: Option<Problem>) -> TableStatus {
    TableStatus {
        state: TableState::Refused,
        problem,
        ..TableStatus::default()
    }
}
