//! Which tables are captured, in which shape, and which are to be read again.

use std::collections::BTreeMap;
use std::sync::Arc;

use downriver_decode::postgres::decoder::Relation;
use downriver_decode::postgres::shape::Shape;
use downriver_event::{RowFilter, TableId, TableSchema};
use downriver_log::StreamState;
use downriver_source::postgres::catalog::SourceTable;
use downriver_source::rules::uncovered;

use super::super::CaptureError;
use super::super::intake::{TableProgress, in_state, refused, rewritten_unread};
use super::super::outgrown::outgrown;
use super::super::progress::{self, Resume, Standing};
use super::super::snapshot::{LostShape, TableTask};
use super::Run;
use super::drift::Fate;
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
        self.intake.lapse(state);
        let snapshotting = !tasks.is_empty();
        self.intake.status.update(|s| {
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
        self.intake.flush()?;
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
        let resume = progress::resume(&name, chunks)?;
        let stored = resume.as_ref().map(|resume| resume.standing.clone());
        let before = self.intake.registry.newest(id).cloned();
        let uncovered = before.as_ref().and_then(|b| uncovered(b, &table.schema));
        let goes_on = before.as_ref().is_some_and(|b| table.goes_on_as(b));
        let spoiled = self.intake.control.why_refused(id);
        let refusal = uncovered.or_else(|| table.problem.clone().filter(|_| !goes_on));
        // Names that collide are none of one table's: other names are noticed as such. Of values the catalog tells nothing.
        let is_watched = spoiled.is_none()
            && (refusal.as_ref()).is_some_and(|p| p.code != "DR-1031" || table.has_twin_columns());
        let refusal = spoiled.or(refusal);
        let fate = Fate::of(&table, refusal, stored.as_ref(), self.postgres);
        self.intake
            .captured
            .insert(id, !matches!(fate, Fate::Refused(_)));
        self.intake
            .standings
            .insert(id, stored.clone().unwrap_or_default());
        let (outline, is_rewritten) = match fate {
            Fate::Refused(problem) => {
                if is_watched {
                    self.refused.insert(id, before);
                }
                return Ok(refused(problem));
            }
            Fate::TakenOut(problem) => {
                tracing::error!(
                    source = self.intake.config.name,
                    table = name,
                    code = problem.code,
                    "the table was taken out of the publication"
                );
                self.intake.taken_out.insert(id);
                return Ok(in_state(TableState::Stopped, Some(problem)));
            }
            Fate::Drifted(now) => {
                if let Err(problem) = self.take_up(table.schema.clone()) {
                    self.intake.captured.insert(id, false);
                    return Ok(refused(problem));
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
                self.intake.captured.insert(id, false);
                return Ok(refused(problem));
            }
        };
        let standing = Standing::Published(outline);
        self.intake.standings.insert(id, standing.clone());
        let initial = self.intake.config.snapshot.initial;
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
        let is_lacking = self.intake.control.takes_lacking(id) && !is_wanted && !schema.is_bag();
        let (is_wanted, is_other) = (is_wanted || is_lacking, is_other || is_lacking);
        let mut resume = resume.unwrap_or_default();
        if !is_wanted {
            if is_rewritten {
                let problem = rewritten_unread(&schema);
                return Ok(in_state(TableState::Streaming, Some(problem)));
            }
            if stored.as_ref() != Some(&standing) {
                let restated = progress::restated(id, chunks, resume, standing);
                self.intake.outbox.chunk_done(restated);
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
        // Of a part the worker finds out.
        let rows_estimated = match resume.part {
            Some(_) => 0,
            None => table.estimated_rows,
        };
        tasks.push(self.intake.read(schema, generation, resume, starts)?);
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
        if self.intake.captured.get(&table) == Some(&false) {
            self.decoder.set_shape(relation.id, None);
            return Ok(());
        }
        self.catalog.until_visible(self.decoder.xid()).await?;
        let relation = &self.called_today(relation).await?;
        match self.intake.captured.get(&table) {
            Some(true) if self.drift.has(table) => {
                self.decoder.set_shape(relation.id, None);
                return Ok(());
            }
            Some(_) if self.is_selected(relation) => {}
            Some(_) => {
                self.intake.leave(table);
                self.decoder.set_shape(relation.id, None);
                return Ok(());
            }
            // Dropped since: what is left of it in the stream still counts.
            None if self.intake.registry.newest(table).is_some() && self.is_selected(relation) => {
                self.intake.captured.insert(table, true);
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
                self.intake.captured.insert(table, false);
                self.decoder.set_shape(relation.id, None);
                return Ok(());
            }
        }
        let before = self.intake.registry.newest(table).map(|s| &**s);
        let SourceTable {
            schema, problem, ..
        } = self.catalog.described(relation, before).await?;
        let problem = problem.or_else(|| before.and_then(|before| uncovered(before, &schema)));
        if let Some(problem) = problem {
            self.decoder.set_shape(relation.id, None);
            self.intake.refuse(table, problem);
            return Ok(());
        }
        let schema = self.reshape(schema).await?;
        let treatments = self.postgres.columns.treatments(&schema);
        let shape = Shape::new(schema, treatments);
        self.decoder.set_shape(relation.id, Some(shape));
        Ok(())
    }

    fn is_selected(&self, relation: &Relation) -> bool {
        self.postgres.captures(&relation.namespace, &relation.name)
    }

    /// The shape of a table's rows from here on. Where old rows got other values without events they are read again.
    async fn reshape(&mut self, schema: TableSchema) -> Result<Arc<TableSchema>, CaptureError> {
        let table = schema.id;
        let before = self.intake.registry.newest(table).cloned();
        let registered = self.intake.registry.register(schema);
        self.intake.announce(&registered);
        if before.as_ref().map(|before| before.identity) != Some(registered.schema().identity) {
            let now = self.catalog.table(table).await?;
            let problem = now.and_then(|now| now.problem);
            self.intake
                .table_status(table, |status| status.problem = problem);
        }
        if let Some(before) = before
            && self.intake.config.snapshot.initial
            && self.changes_rows(&before, registered.schema()).await?
        {
            self.intake.read_again(table);
        }
        Ok(Arc::clone(registered.schema()))
    }

    /// Whether a change of a table's shape changes rows, of which the stream says nothing.
    async fn changes_rows(
        &mut self,
        before: &TableSchema,
        after: &TableSchema,
    ) -> Result<bool, CaptureError> {
        let is_kept = match self.intake.standings.get(&after.id) {
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
    pub(super) async fn find_shape(
        &mut self,
        lost: LostShape<SourceTable>,
    ) -> Result<(), CaptureError> {
        let table = lost.schema.id;
        let told = self
            .intake
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
                self.intake.flush()?;
            }
            // It is refused when the capture starts again.
            Some(now) => return Err(CaptureError::SchemaMoved(now.schema.qualified_name())),
            None => {
                if let Some(TableProgress { generation, resume }) =
                    self.intake.snapshots.get(&table)
                {
                    let lapsed = progress::lapsed(table, *generation, resume.clone());
                    self.intake.outbox.chunk_done(lapsed);
                }
                self.intake.forget_snapshot(table);
                let name = lost.schema.qualified_name();
                self.intake.status.update(|s| {
                    s.tables.remove(&name);
                });
            }
        }
        // A table that is to be read again, or not at all, is nothing for this worker any more.
        if self.intake.snapshots.contains_key(&table)
            && let Some(newest) = self.intake.registry.newest(table)
        {
            let _ = lost.answer.send(Arc::clone(newest));
        }
        Ok(())
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
