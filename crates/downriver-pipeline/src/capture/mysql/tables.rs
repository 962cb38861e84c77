//! Which tables are captured, in which shape, and which are to be read again.

use std::collections::BTreeMap;
use std::sync::Arc;

use downriver_decode::mysql::shape::{Shape, describe};
use downriver_decode::mysql::table_map::TableMap;
use downriver_decode::mysql::value::Plan;
use downriver_event::problem::Problem;
use downriver_event::{Column, Cover, ReplicaIdentity, TableId, TableSchema};
use downriver_log::StreamState;
use downriver_source::mysql::catalog::{SourceTable, left_out_of};
use downriver_source::mysql::unshaped;
use downriver_source::rules::keep_covered;

use super::super::CaptureError;
use super::super::intake::{in_state, refused};
use super::super::outgrown::outgrown;
use super::super::progress::{self, Resume, Standing};
use super::super::snapshot::{LostShape, TableTask};
use super::Run;
use super::ahead::Binlog;
use super::covers::{is_covered_otherwise, leave_out_today};
use super::history::{NO_SHAPE, is_same};
use super::numbers::{named, numbered};
use crate::status::{SnapshotProgress, TableState, TableStatus};

impl Run<'_> {
    /// Registers the captured tables and returns those whose snapshot is not done.
    pub(super) fn take_tables(
        &mut self,
        tables: Vec<SourceTable>,
        state: &StreamState,
    ) -> Result<Vec<TableTask>, CaptureError> {
        let mut tasks = Vec::new();
        let mut statuses = BTreeMap::new();
        for table in tables {
            let name = table.schema.qualified_name();
            let key = (table.schema.namespace.clone(), table.schema.name.clone());
            self.had_at_first.insert(key);
            let status = self.take_table(table, state, &mut tasks)?;
            statuses.insert(name, status);
        }
        for (database, name) in self.unsettled.keys() {
            self.had_at_first.insert((database.clone(), name.clone()));
            let pending = in_state(TableState::Pending, None);
            statuses.insert(format!("{database}.{name}"), pending);
        }
        self.take_debts(&mut statuses);
        self.intake.lapse(state);
        let snapshotting = !tasks.is_empty();
        self.intake.status.update(|s| {
            s.state = match snapshotting {
                true => TableState::Snapshotting,
                false => TableState::Streaming,
            };
            s.problem = None;
            s.in_hole = false;
            s.tables = statuses;
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
        let SourceTable {
            schema: today,
            estimated_rows,
            problem,
            warning: _,
        } = table;
        let registry = &self.intake.registry;
        let known = named(registry, &today.namespace, &today.name, |id| {
            comes(state, id)
        });
        let spoiled = known
            .as_ref()
            .and_then(|known| self.intake.control.why_refused(known.id));
        if let Some(problem) = spoiled.or(problem) {
            if let Some(known) = &known {
                self.intake.captured.insert(known.id, false);
            }
            self.refused.insert((today.namespace, today.name));
            return Ok(refused(problem));
        }
        let name = (today.namespace.clone(), today.name.clone());
        let (schema, is_other) = match self.taken_up(known, today, state) {
            Ok(taken_up) => taken_up,
            Err((id, problem)) => {
                self.intake.captured.insert(id, false);
                self.refused.insert(name);
                return Ok(refused(problem));
            }
        };
        let id = schema.id;
        self.intake.captured.insert(id, true);
        let chunks = state.chunks.get(&id);
        let resume = progress::resume(&schema.qualified_name(), chunks)?;
        let has_lapsed = resume
            .as_ref()
            .is_some_and(|resume| resume.standing == Standing::Lapsed);
        self.intake.standings.insert(id, Standing::Unknown);
        let initial = self.intake.config.snapshot.initial;
        let begun = chunks.filter(|chunks| chunks.generation > 0);
        let is_reading =
            begun.is_some_and(|chunks| !chunks.done && (initial || chunks.generation > 1));
        let part = resume.as_ref().and_then(|resume| resume.part.as_ref());
        let is_part_lost = is_reading && part.is_some_and(|part| !part.fits(&schema));
        let is_other = is_other && (initial || is_reading) || is_part_lost;
        // What was missed meanwhile only a snapshot brings.
        let is_wanted = has_lapsed || begun.map_or(initial, |_| is_other || is_reading);
        let mut resume = resume.unwrap_or_default();
        resume.standing = Standing::Unknown;
        let warning = left_out_of(&schema);
        if !is_wanted {
            return Ok(in_state(TableState::Streaming, warning));
        }
        let taken_up = begun.filter(|_| !has_lapsed && !is_other);
        if taken_up.is_none() {
            resume = Resume::default();
        }
        let before = begun.map_or(u64::from(has_lapsed), |chunks| chunks.generation);
        let generation = before + u64::from(taken_up.is_none());
        let starts = std::mem::take(&mut resume.requested) || taken_up.is_none();
        // Of a part the worker finds out.
        let rows_estimated = match resume.part {
            Some(_) => 0,
            None => estimated_rows,
        };
        tasks.push(self.intake.read(schema, generation, resume, starts)?);
        Ok(TableStatus {
            snapshot: Some(SnapshotProgress {
                rows_done: taken_up.map_or(0, |chunks| chunks.rows),
                rows_estimated,
                ..SnapshotProgress::default()
            }),
            ..in_state(TableState::Snapshotting, warning)
        })
    }

    /// The shape that a table's rows have, under the rules of now. Whether these are other ones than the log's: then its
    /// rows are to be read again. Or its number, and why it is refused.
    fn taken_up(
        &mut self,
        known: Option<Arc<TableSchema>>,
        today: TableSchema,
        state: &StreamState,
    ) -> Result<(Arc<TableSchema>, bool), (TableId, Problem)> {
        let registry = &self.intake.registry;
        let Some(known) = known else {
            let schema = numbered(registry, None, today);
            let registered = self.intake.registry.register(schema);
            self.intake.announce(&registered);
            return Ok((Arc::clone(registered.schema()), false));
        };
        let has_lapsed = has_lapsed(state, known.id);
        let is_told = self.is_told(&known) && self.is_told(&today);
        let is_whole = is_told || !has_lapsed;
        if is_told && !is_same(&known, &today) {
            // A statement made it so, and no row of it has come.
            self.unsure.insert(known.id);
        }
        let known = match is_whole && has_lapsed {
            // Of one that was left nobody heard of other defaults.
            true => self.forget_defaults(known.id).unwrap_or(known),
            false => known,
        };
        let registry = &self.intake.registry;
        let mut schema = match is_whole {
            // The binlog says when its shape changes.
            true => {
                let left_out = leave_out_today(&known, &today);
                let covered = self.connection.columns.cover_again(&left_out);
                // What keeps them from holding is one of the statements to come.
                covered.unwrap_or_else(|_| numbered(registry, Some(&known), today))
            }
            false => numbered(registry, Some(&known), today),
        };
        let problem = keep_covered(&known, &mut schema);
        let is_other = is_whole && !known.same_shape(&schema);
        let registered = self.intake.registry.register(schema);
        self.intake.announce(&registered);
        match problem {
            Some(problem) => Err((known.id, problem)),
            None => Ok((Arc::clone(registered.schema()), is_other)),
        }
    }

    /// How the rows that a table map announces are read; `None`: they are not.
    pub(super) async fn table(
        &mut self,
        map: &TableMap,
        binlog: &mut Binlog,
    ) -> Result<Option<Shape>, CaptureError> {
        let (database, name) = (&map.database, &map.table);
        if !self.connection.captures(database, name) {
            return Ok(None);
        }
        let key = (database.clone(), name.clone());
        if self.refused.contains(&key) || self.unsettled.contains_key(&key) {
            return Ok(None);
        }
        let known = self.known(database, name);
        let Some(before) = known.filter(|known| self.intake.captured.contains_key(&known.id))
        else {
            return self.unknown(database, name).await.map(|()| None);
        };
        let is_captured = self.intake.captured.get(&before.id) == Some(&true);
        if !is_captured || self.passed_over.contains(&before.id) {
            return Ok(None);
        }
        if map.columns.iter().any(|column| column.name.is_none()) {
            return self.recalled(map, before.id, binlog).await;
        }
        self.unsure.remove(&before.id);
        let described = describe(map, |collation| self.charsets.get(&collation).cloned());
        let described = match described {
            Ok(described) => described,
            Err(why) => {
                self.refuse(before.id, unshaped(&before.qualified_name(), &why));
                return Ok(None);
            }
        };
        let Some((before, described)) = self.closed(before, described, binlog).await? else {
            return Ok(None);
        };
        let places = (1..).zip(&described);
        let columns = places.map(|(id, column)| Column {
            id,
            name: column.name.clone(),
            ty: column.ty.clone(),
            nullable: column.nullable,
            source_type: column.source_type.clone(),
            cover: Cover::None,
            default: None,
        });
        let key = map.key.iter().flatten();
        let key: Vec<u32> = key.filter_map(|at| u32::try_from(at + 1).ok()).collect();
        let mut schema = TableSchema {
            id: TableId(0),
            version: 0,
            namespace: database.clone(),
            name: name.clone(),
            columns: columns.collect(),
            identity: match key.is_empty() {
                true => ReplicaIdentity::Full,
                false => ReplicaIdentity::Default,
            },
            key,
            withheld: Vec::new(),
        };
        self.leave_out(&before, &mut schema).await?;
        if let Err(problem) = self.connection.columns.cover(&mut schema) {
            self.refuse(before.id, problem);
            return Ok(None);
        }
        let plans = described.into_iter().map(|column| column.plan).collect();
        let schema = self.reshape(&before, schema);
        let schema = schema.filter(|schema| !self.passed_over.contains(&schema.id));
        Ok(schema.map(|schema| self.shape(schema, plans)))
    }

    /// How rows of a schema are read. `plans` has one for each of the source's columns.
    pub(super) fn shape(&self, schema: Arc<TableSchema>, plans: Vec<Plan>) -> Shape {
        let treatments = self.connection.columns.treatments(&schema);
        Shape::new(schema, plans, treatments)
    }

    /// The shape of a table's rows from here on, by names, with the defaults that are known. `None`: it is refused.
    pub(super) fn reshape(
        &mut self,
        before: &TableSchema,
        now: TableSchema,
    ) -> Option<Arc<TableSchema>> {
        let mut now = numbered(&self.intake.registry, Some(before), now);
        for column in &mut now.columns {
            let mut known = before.columns.iter();
            let known = known.find(|known| {
                known.id == column.id && known.ty == column.ty && known.cover == column.cover
            });
            column.default = known.and_then(|known| known.default.clone());
        }
        self.reshape_numbered(before, now)
    }

    /// The same of one whose columns have their numbers. Where old rows may have other values they are read again.
    pub(super) fn reshape_numbered(
        &mut self,
        before: &TableSchema,
        mut now: TableSchema,
    ) -> Option<Arc<TableSchema>> {
        let problem = keep_covered(before, &mut now);
        let registered = self.intake.registry.register(now);
        self.intake.announce(&registered);
        let schema = Arc::clone(registered.schema());
        if let Some(problem) = problem {
            self.refuse(schema.id, problem);
            return None;
        }
        self.tell_left_out(&schema);
        if outgrown(before, &schema, false) || is_covered_otherwise(before, &schema) {
            self.rows_are_others(schema.id);
        }
        Some(schema)
    }

    /// Rows of a table are others than those in the log: it is read again, unless nothing is read unasked. Whether it is.
    pub(super) fn rows_are_others(&mut self, table: TableId) -> bool {
        let is_read = self.intake.rows_are_others(table);
        if is_read {
            self.pass_over(table);
        }
        is_read
    }

    /// A table is read again that the log may lack rows of. Where rows are logged in part its rows are passed over until
    /// then: a change may be of one that nobody has.
    pub(super) fn pass_over(&mut self, table: TableId) {
        if self.catalog.server().logs_in_part() {
            self.passed_over.insert(table);
            self.decoder.pass_over(table);
        }
    }

    /// The table that has a name now, or had it last.
    pub(super) fn known(&self, database: &str, name: &str) -> Option<Arc<TableSchema>> {
        let intake = &self.intake;
        let comes = |id| intake.captured.get(&id) == Some(&true);
        named(&intake.registry, database, name, comes)
    }

    /// A table of which nothing is known. If it is there, starting again takes it in, with what is passed over here.
    pub(super) async fn unknown(&mut self, database: &str, name: &str) -> Result<(), CaptureError> {
        match self.catalog.table(database, name).await? {
            Some(_) => Err(CaptureError::NewTable(format!("{database}.{name}"))),
            None => Ok(()),
        }
    }

    /// Captures no more of a table, until a change of it lets it be captured again.
    pub(super) fn refuse(&mut self, table: TableId, problem: Problem) {
        if let Some(known) = self.intake.registry.newest(table) {
            let key = (known.namespace.clone(), known.name.clone());
            self.refused.insert(key);
        }
        self.intake.standings.insert(table, Standing::Lapsed);
        self.intake.refuse(table, problem);
    }

    /// Lets the chunks that the stream has passed join it, and tells workers the shapes that it has come to.
    pub(super) fn release_chunks(&mut self) -> Result<(), CaptureError> {
        if self.decoder.in_transaction() || !self.intake.takes_chunks() {
            return Ok(());
        }
        if self.intake.holds_chunks() {
            // A chunk goes behind what was decoded, with its position.
            self.flush()?;
        }
        let received = self.intake.received.clone();
        let lost = self
            .lost_shapes
            .extract_if(.., |lost| received.covers(&lost.reshaped.high));
        for lost in lost.collect::<Vec<_>>() {
            self.find_shape(lost)?;
        }
        self.intake.release_chunks()
    }

    /// Answers a worker that did not find the shape which it was to read. The stream has passed what it found; it may
    /// have said nothing of it, as a shape is told with the next row only.
    fn find_shape(&mut self, lost: LostShape<SourceTable>) -> Result<(), CaptureError> {
        let table = lost.schema.id;
        let newest = self.intake.registry.newest(table).cloned();
        let told = newest
            .as_ref()
            .is_some_and(|newest| newest.version != lost.schema.version);
        match lost.reshaped.now {
            _ if told => {}
            // It was changed, and the binlog says nothing of it.
            Some(now) if !self.is_told(&lost.schema) || !self.is_told(&now.schema) => {
                self.lose(table, NO_SHAPE);
                self.flush()?;
            }
            Some(now) if now.problem.is_none() => {
                self.reshape(&lost.schema, now.schema);
                self.flush()?;
            }
            // It is refused when the capture starts again.
            Some(now) => return Err(CaptureError::SchemaMoved(now.schema.qualified_name())),
            None => {
                self.intake.leave(table);
                self.flush()?;
                self.intake.forget_snapshot(table);
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

/// Whether the log lacks changes of a table.
pub(super) fn has_lapsed(state: &StreamState, table: TableId) -> bool {
    let chunks = state.chunks.get(&table);
    let resume = chunks.and_then(|chunks| Resume::decode(chunks.resume_after.clone()));
    resume.is_some_and(|resume| resume.standing == Standing::Lapsed)
}

/// Whether the log has every change of a table.
pub(super) fn comes(state: &StreamState, table: TableId) -> bool {
    let chunks = state.chunks.get(&table);
    let resume = chunks.and_then(|chunks| Resume::decode(chunks.resume_after.clone()));
    resume.is_some_and(|resume| resume.standing != Standing::Lapsed)
}
