//! Which tables are captured, announced and read again.

use std::sync::Arc;

use downriver_event::problem::Problem;
use downriver_event::{RowFilter, SourcePosition, TableId, TableSchema, pb};
use downriver_log::StreamState;

use super::super::CaptureError;
use super::super::progress::{OF_NO_TABLE, Resume, Standing, lapsed, wanted};
use super::super::registry::Registered;
use super::super::request::{Request, needs_whole};
use super::super::shelf::Shelf;
use super::super::snapshot::TableTask;
use super::{Intake, TableProgress};
use crate::status::{TableState, TableStatus, has_come_to};

impl Intake<'_> {
    /// Begins the reading of a table's generation, or goes on with it: the worker's task.
    pub(in super::super) fn read(
        &mut self,
        schema: Arc<TableSchema>,
        generation: u64,
        mut resume: Resume,
        starts: bool,
    ) -> Result<TableTask, CaptureError> {
        let table = schema.id;
        if schema.is_bag() {
            let shelf = Shelf::create(&self.config.spill, table);
            let shelf = shelf.map_err(|error| self.shelf_failed(error))?;
            self.set_aside.track(table, shelf);
            let standing = std::mem::take(&mut resume.standing);
            resume = Resume {
                standing: standing.clone(),
                ..Resume::default()
            };
            // Its start comes with its rows: until then it is read from the beginning.
            self.outbox
                .chunk_done(wanted(table, generation, standing, None));
        } else {
            self.recent.track(table);
            if starts {
                self.start_snapshot(table, generation, &resume);
            }
        }
        let progress = TableProgress {
            generation,
            resume: resume.clone(),
        };
        self.snapshots.insert(table, progress);
        Ok(TableTask {
            schema,
            generation,
            resume,
            rows_estimated: None,
        })
    }

    /// Captures no more of a table. Once its problem is gone it is read again, as it misses what comes until then.
    pub(in super::super) fn refuse(&mut self, table: TableId, problem: Problem) {
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

    /// A table that is not selected any more. What is missed of it from here on only a snapshot brings, if it comes
    /// back: the start that follows stores that it lapsed.
    pub(in super::super) fn leave(&mut self, table: TableId) {
        self.read_again(table);
        self.captured.insert(table, false);
    }

    /// Notes of tables that are not captured now that they will have missed changes when they are again.
    pub(in super::super) fn lapse(&mut self, state: &StreamState) {
        for (table, chunks) in state.chunks.iter() {
            if self.captured.get(table) == Some(&true) || *table == OF_NO_TABLE {
                continue;
            }
            let resume = Resume::decode(chunks.resume_after.clone());
            if let Some(resume) = resume.filter(|resume| resume.standing != Standing::Lapsed) {
                let lapsed = lapsed(*table, chunks.generation, resume);
                self.outbox.chunk_done(lapsed);
            }
        }
    }

    /// Puts a new version's announcement into the log, before its first row.
    pub(in super::super) fn announce(&mut self, registered: &Registered) {
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

    /// Whether tables may be asked for: one that was refused for a row would be refused once more where that row is yet
    /// to come again.
    pub(in super::super) fn takes_requests(&mut self) -> bool {
        let has_passed = |before: &mut SourcePosition| has_come_to(&self.received, before);
        self.spoiled_before.take_if(has_passed);
        self.spoiled_before.is_none()
    }

    /// Asks for a new snapshot of tables. Of those that are unsettled it is not decided yet what becomes of them.
    pub(in super::super) fn requested(
        &mut self,
        request: Request,
        is_unsettled: impl Fn(TableId) -> bool,
    ) -> Result<(), CaptureError> {
        if request.answer.is_closed() {
            return Ok(());
        }
        let parts = request.tables.iter();
        let mut parts = parts.filter_map(|(table, part)| Some((*table, part.as_ref()?)));
        if let Some(problem) =
            parts.find_map(|(table, part)| self.why_not_in_part(table, part, is_unsettled(table)))
        {
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
        if !self.builder.in_transaction() {
            // What was decoded is not to come again: a table that was refused for a row is read again from behind it.
            self.committed = Some(self.received.clone());
        }
        self.flush_between()
    }

    /// Rows of a table are others than they were, and no event tells of it: they are read again, or where nothing is read
    /// unasked it is said. Whether they are.
    pub(in super::super) fn rows_are_others(&mut self, table: TableId) -> bool {
        if self.config.snapshot.initial || self.snapshots.contains_key(&table) {
            self.read_again(table);
            return true;
        }
        if let Some(newest) = self.registry.newest(table) {
            let problem = rewritten_unread(newest);
            self.table_status(table, |status| status.problem = Some(problem));
        }
        false
    }

    /// Wants a table's next generation, once what is open has ended: it is stored with it. `None`: the table is not
    /// captured.
    pub(in super::super) fn read_again(&mut self, table: TableId) -> Option<u64> {
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
        let last = logged.max(self.reread.generation_of(table));
        let generation = last.unwrap_or(1).max(1) + 1;
        // What is under way of the last one must not be stored after this.
        self.recent.forget(table);
        self.set_aside.forget(table);
        self.snapshots.remove(&table);
        self.ended.remove(&table);
        let standing = self.standings.get(&table).cloned().unwrap_or_default();
        let is_whole = part.is_none();
        self.outbox
            .chunk_done_with_open(wanted(table, generation, standing, part));
        self.reread.wait_for(table, generation, is_whole, name);
        self.table_status(table, |status| {
            status.state = TableState::Pending;
            status.problem = None;
        });
        Some(generation)
    }

    pub(in super::super) fn table_status<T>(
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

    /// Whether a part of a table can be read again by itself: only of a table that is whole, or else what the rest lacks
    /// would be lost sight of. `None`: it can.
    fn why_not_in_part(
        &self,
        table: TableId,
        part: &RowFilter,
        is_unsettled: bool,
    ) -> Option<Problem> {
        let newest = self.registry.newest(table)?;
        let name = newest.qualified_name();
        if self.captured.get(&table) != Some(&true) || self.taken_out.contains(&table) {
            return Some(needs_whole(format!("table {name} is not captured now")));
        }
        let state = self.log.state(&self.config.name);
        let chunks = state.as_ref().and_then(|state| state.chunks.get(&table));
        let is_whole = match chunks.filter(|chunks| chunks.generation > 0) {
            Some(chunks) => chunks.done,
            None => !self.config.snapshot.initial,
        };
        let is_under_way =
            self.snapshots.contains_key(&table) || self.reread.waits_for(table) || is_unsettled;
        if !is_whole || is_under_way {
            return Some(needs_whole(format!(
                "the snapshot of table {name} is not done"
            )));
        }
        if newest.is_bag() || !part.fits(newest) {
            return Some(needs_whole(format!(
                "the key of table {name} is not what {:?} speaks of any more",
                part.text
            )));
        }
        None
    }
}

/// Why a table's rows are not what the source has where nothing is read unasked.
pub(in super::super) fn rewritten_unread(table: &TableSchema) -> Problem {
    let name = table.qualified_name();
    Problem::new(
        "DR-1054",
        format!(
            "rows of table {name} were written anew by a change of the table, or changed unseen: the stream does not tell their values"
        ),
        format!("downriver resnapshot PIPELINE --tables {name}"),
    )
}

pub(in super::super) fn in_state(state: TableState, problem: Option<Problem>) -> TableStatus {
    TableStatus {
        state,
        problem,
        ..TableStatus::default()
    }
}

pub(in super::super) fn refused(problem: Problem) -> TableStatus {
    in_state(TableState::Refused, Some(problem))
}
