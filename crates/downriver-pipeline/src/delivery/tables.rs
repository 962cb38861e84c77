//! The tables of a pipeline: who owns them, and how far each has come.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use downriver_event::problem::Problem;
use downriver_event::{Epoch, Offset, TableId, TableSchema, pattern};
use downriver_lake::catalog::TableName;
use downriver_lake::{Changes, LakeError, Schemas, TableConfig, TableWriter};
use downriver_log::StreamState;
use futures_util::{StreamExt as _, TryStreamExt as _};

mod changes;
mod names;

use super::control::TableCut;
use super::progress::{Detail, HeldAt, TableProgress, committed, decode, encode};
use super::{Control, DeliveryConfig, DeliveryError, Progress};
use crate::capture::is_left;
use crate::status::{Board, DeliveryStatus, PipelineStatus, TableState};
pub(super) use changes::Held;
pub(super) use names::Claim;

/// Tables that commit at the same time.
const COMMITS_AT_ONCE: usize = 4;
/// In the folder of a share: one folder for each table.
const TABLES: &str = "tables";
/// How often the progress of a table that has nothing to commit is stored.
const IDLE_PROGRESS_EVERY: Duration = Duration::from_secs(10);

pub(super) struct Table {
    qualified: String,
    target: TableName,
    /// Others deliver tables of the same pipeline, and may hold this one for theirs for a moment.
    is_shared: bool,
    /// `None`: it stands still.
    writer: Option<TableWriter>,
    /// Another table of the source has the lake's table: changes are passed over, until one says that this has a name.
    displaced: bool,
    /// Where the log says that it got a name, and another table has it since later.
    refused_at: Option<Offset>,
    epoch: Epoch,
    /// Versions of its schema up to this one were let through.
    accepted: u32,
    /// It goes no further than this change.
    holds: Option<Held>,
    /// Retention took what comes next: it begins again where a generation of its snapshot starts, which brings all rows.
    waits_for_snapshot: bool,
    /// The rows that it waits for do not come: the source does not bring the table any more.
    is_left: bool,
    /// It waits for a generation of its snapshot, and nothing before this asks for one.
    unasked: Option<Offset>,
    /// Events before it were applied.
    applied: Offset,
    /// Everything of it before this is in the lake.
    delivered: Offset,
    stored: (Offset, Instant),
    state: TableState,
    problem: Option<Problem>,
    rows: u64,
}

pub(super) struct Tables<'a> {
    config: &'a DeliveryConfig,
    progress: &'a Arc<dyn Progress>,
    control: &'a Control,
    approved: BTreeMap<TableId, u32>,
    /// The share of each table, as it was found from these.
    shares: BTreeMap<TableId, u32>,
    shared_out: Arc<Schemas>,
    by_id: BTreeMap<TableId, Table>,
    /// Tables of the lake that were left behind under a name that the source does not have any more.
    left: Vec<names::Left>,
}

impl<'a> Tables<'a> {
    /// `approved`: see [`super::control::Told`].
    pub(super) fn new(
        config: &'a DeliveryConfig,
        progress: &'a Arc<dyn Progress>,
        control: &'a Control,
        approved: BTreeMap<TableId, u32>,
    ) -> Self {
        Self {
            config,
            progress,
            control,
            approved,
            shares: BTreeMap::new(),
            shared_out: Arc::default(),
            by_id: BTreeMap::new(),
            left: Vec::new(),
        }
    }

    /// The offset that tables are read from of which nothing is stored. Over a log that was cut, the pipeline
    /// took in all tables that there were: such a table came after what the others have.
    pub(super) fn first_of_new(&self, state: &StreamState) -> Result<Offset, DeliveryError> {
        let mut first = state.trimmed;
        // Nor can it be told by tables of which some have another reader, which may be ahead.
        if first == Offset(0) || self.config.share.of > 1 {
            return Ok(first);
        }
        for (table, _) in state.schemas.keys() {
            let stored = self.progress.get(&self.config.pipeline, *table);
            let stored = stored.unwrap_or_default();
            if committed(&stored.detail, &self.config.stream_id)
                .map_err(DeliveryError::Progress)?
                .is_some()
            {
                first = first.max(stored.delivered);
            }
        }
        Ok(first)
    }

    /// Finds the tables of this delivery's share. Whether one belongs to it now that belonged to another, or the other way
    /// round.
    pub(super) fn share_out(&mut self, schemas: &Arc<Schemas>) -> bool {
        if self.config.share.of == 1 || Arc::ptr_eq(&self.shared_out, schemas) {
            return false;
        }
        let sharing = self.config.sharing();
        let before = std::mem::replace(&mut self.shares, sharing.deal(schemas));
        self.shared_out = Arc::clone(schemas);
        self.forget_others();
        let ours = self.config.share.index;
        let mut known = before.into_iter();
        known.any(|(table, share)| (share == ours) != self.is_ours(table))
    }

    /// Removes what this node has of tables that another share has now: their key indexes.
    fn forget_others(&self) {
        let folders = std::fs::read_dir(self.config.folder.join(TABLES)).into_iter();
        for folder in folders.flatten().flatten() {
            let name = folder.file_name();
            let id = name
                .to_str()
                .and_then(|name| name.parse().ok())
                .map(TableId);
            let is_others = id.is_some_and(|id| self.shares.contains_key(&id) && !self.is_ours(id));
            if is_others && let Err(error) = std::fs::remove_dir_all(folder.path()) {
                tracing::warn!(error = %error, "what was kept of a table that another node has now is left");
            }
        }
    }

    fn is_ours(&self, table: TableId) -> bool {
        let share = self.config.share;
        share.of == 1 || self.shares.get(&table) == Some(&share.index)
    }

    /// Whether nothing of any table is stored: what there is in the log is no change for the pipeline.
    fn is_fresh(&self, state: &StreamState) -> Result<bool, DeliveryError> {
        let tables = state.schemas.keys().map(|(table, _)| table);
        for table in tables.filter(|table| self.is_ours(**table)) {
            let stored = self.progress.get(&self.config.pipeline, *table);
            let stored = stored.unwrap_or_default();
            let kept = committed(&stored.detail, &self.config.stream_id);
            if kept.map_err(DeliveryError::Progress)?.is_some() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    pub(super) fn wants(&self, schema: &TableSchema) -> bool {
        pattern::selects(&self.config.tables, &schema.namespace, &schema.name)
    }

    pub(super) fn has(&self, table: TableId) -> bool {
        self.by_id.contains_key(&table)
    }

    /// Opens every table of the stream that is wanted and not open yet. `first` is the offset that a table
    /// without a progress of its own is read from.
    pub(super) async fn open(
        &mut self,
        state: &StreamState,
        first: Offset,
        paused: impl Fn(&str) -> bool,
    ) -> Result<(), DeliveryError> {
        let mut newest: BTreeMap<TableId, &Arc<TableSchema>> = BTreeMap::new();
        for ((table, _), schema) in state.schemas.iter() {
            newest.insert(*table, schema);
        }
        let is_fresh = self.is_fresh(state)?;
        let this = &*self;
        let versions = |id: TableId| -> Vec<Arc<TableSchema>> {
            let of_table = state.schemas.range((id, 0)..=(id, u32::MAX));
            of_table.map(|(_, schema)| Arc::clone(schema)).collect()
        };
        newest.retain(|id, schema| {
            !this.has(*id)
                && this.is_ours(*id)
                && (this.wants(schema) || this.may_leave(&versions(*id)))
        });
        let opened: Vec<(TableId, Table, Vec<names::Left>)> = futures_util::stream::iter(newest)
            .map(|(id, schema)| {
                let is_paused = paused(&schema.qualified_name());
                let versions = versions(id);
                async move {
                    let (name, left) = this.name_of(&versions).await?;
                    let table = this.open_one(state, &versions, name, (first, None), is_paused);
                    let mut table = table.await?;
                    if table.displaced && is_fresh {
                        table.accepted = table.accepted.max(schema.version);
                    }
                    Ok::<_, DeliveryError>((id, table, left))
                }
            })
            .buffer_unordered(COMMITS_AT_ONCE)
            .try_collect()
            .await?;
        for (id, table, left) in opened {
            self.by_id.insert(id, table);
            self.left.extend(left);
        }
        Ok(())
    }

    async fn open_one(
        &self,
        state: &StreamState,
        versions: &[Arc<TableSchema>],
        names::Name { qualified, target }: names::Name,
        (first, claim): (Offset, Option<Offset>),
        paused: bool,
    ) -> Result<Table, DeliveryError> {
        let config = self.config;
        let schema = versions.last().expect("a table of the log has a schema");
        let stored = if paused {
            self.progress
                .get(&config.pipeline, schema.id)
                .unwrap_or_default()
        } else {
            let opened = self.progress.open(&config.pipeline, schema.id).await;
            opened.map_err(DeliveryError::Progress)?
        };
        let kept = decode(&stored.detail, &config.stream_id).map_err(|reason| {
            DeliveryError::Progress(format!("what is stored of {qualified} {reason}"))
        })?;
        let known = kept.map(|kept| kept.committed);
        let accepted = kept.and_then(|kept| kept.accepted);
        let delivered = known.map_or(Offset(0), |_| stored.delivered);
        let mut table = Table {
            qualified,
            target: target.clone(),
            is_shared: config.share.of > 1,
            writer: None,
            displaced: false,
            refused_at: None,
            epoch: stored.epoch,
            accepted: accepted.unwrap_or_default(),
            holds: self.held_before(schema.id),
            waits_for_snapshot: false,
            is_left: false,
            unasked: None,
            applied: delivered,
            delivered,
            stored: (delivered, Instant::now()),
            state: TableState::Paused,
            problem: None,
            rows: 0,
        };
        if let Some(kept) = kept.and_then(|kept| kept.held) {
            let found = self.held_again(schema.id, kept, &table, &state.schemas);
            table.holds = table.holds.take().or(found);
        }
        let stands = table.holds.clone().filter(|held| delivered >= held.at);
        if let Some(held) = stands.filter(|_| claim.is_none()) {
            table.stand_before(held);
            return Ok(table);
        }
        if paused {
            table.holds = None;
            return Ok(table);
        }
        let folder = config.folder.join(TABLES).join(schema.id.0.to_string());
        let open = TableConfig {
            name: target,
            pipeline: config.pipeline.clone(),
            stream: config.stream_id.clone(),
            incarnation: state.incarnation,
            ended: state.ended.clone(),
            epoch: stored.epoch,
            start: first,
            claim,
            committed: known.filter(|_| claim.is_none()),
            schema_changes: config.schema_changes,
            folder,
        };
        let (catalog, warehouse) = (Arc::clone(&config.catalog), config.warehouse.clone());
        match TableWriter::open(catalog, warehouse, open, versions).await {
            Ok(writer) => {
                table.delivered = delivered.max(writer.committed());
                table.applied = table.delivered;
                table.accepted = accepted.unwrap_or(writer.schema_version());
                table.writer = Some(writer);
                table.look();
                if table.delivered < state.trimmed {
                    table.wait_for_snapshot(state.trimmed).await?;
                }
            }
            Err(error) if table.may_pass(&error) => return Err(error.into()),
            Err(LakeError::OfAnother(problem)) => {
                table.displace(problem);
                table.delivered = known.map_or(first, |_| stored.delivered);
                table.applied = table.delivered;
            }
            Err(error) => table.stop(error.problem()),
        }
        Ok(table)
    }

    /// The first offset that a running table has not applied.
    pub(super) fn next(&self) -> Option<Offset> {
        let mut running = self.by_id.values();
        let running = running
            .by_ref()
            .filter(|t| t.writer.is_some() || (t.displaced && !t.is_held()));
        running.map(|table| table.applied).min()
    }

    pub(super) fn has_changes(&self) -> bool {
        let mut writers = self
            .by_id
            .values()
            .filter_map(|table| table.writer.as_ref());
        writers.any(TableWriter::has_changes)
    }

    pub(super) fn window_bytes(&self) -> usize {
        let writers = self
            .by_id
            .values()
            .filter_map(|table| table.writer.as_ref());
        writers.map(TableWriter::window_bytes).sum()
    }

    /// Whether rows are in memory that are in no file.
    pub(super) fn hold_rows(&self) -> bool {
        let mut writers = self
            .by_id
            .values()
            .filter_map(|table| table.writer.as_ref());
        writers.any(TableWriter::holds_rows)
    }

    /// Everything before it is in the lake: not what only a generation has that is built beside what readers see.
    pub(super) fn delivered(&self, applied: Offset) -> Offset {
        let beside = self.by_id.values();
        let beside = beside.filter(|table| !table.is_whole() && !table.is_left);
        beside
            .map(|table| table.delivered)
            .fold(applied, Offset::min)
    }

    /// Stops tables that wait for a generation although everything was read and none is asked for, and passes over those
    /// that the source does not bring any more. They go on when one starts.
    pub(super) fn leave_unawaited(&mut self, at: Offset, state: &StreamState) {
        for (id, table) in &mut self.by_id {
            let chunks = state.chunks.get(id);
            let is_left = !table.is_whole() && chunks.is_some_and(is_left);
            if is_left {
                table.leave();
            } else if std::mem::take(&mut table.is_left) {
                table.look();
            }
            let comes = chunks.is_some_and(|chunks| !chunks.done);
            let waits = table.writer.as_ref().is_some_and(|w| w.waits().is_some());
            let was_unasked = table.unasked.is_some();
            let is_unasked = waits && !comes && !is_left && (was_unasked || at >= state.next);
            table.unasked = is_unasked.then_some(at);
            if was_unasked || is_unasked {
                table.look();
            }
        }
    }

    /// Applies the events before `end` that a table has not applied yet. Whether the state of one is another then.
    pub(super) async fn apply(
        &mut self,
        changes: &Changes,
        end: Offset,
        schemas: &Schemas,
    ) -> Result<bool, DeliveryError> {
        let event = |offset: Offset| {
            let events = offset.0.saturating_sub(changes.base.0);
            u32::try_from(events)
                .unwrap_or(u32::MAX)
                .min(changes.events)
        };
        let mut met = false;
        let (config, progress) = (self.config, self.progress);
        for (id, table) in &mut self.by_id {
            let end = table.limit(end);
            if table.waits_for_snapshot {
                met |= table.find_snapshot(*id, changes, end);
            }
            if table.displaced {
                table.applied = table.applied.max(end);
            }
            if let Some(writer) = &mut table.writer
                && table.applied < end
                && !table.waits_for_snapshot
            {
                let range = event(table.applied)..event(end);
                let applied = writer.apply(changes, range, schemas).await;
                table.take(applied)?;
                table.applied = end;
                met |= table.look();
            }
            met |= table.stand(*id, config, progress).await?;
        }
        Ok(met)
    }

    /// Writes what is in memory into files.
    pub(super) async fn spill(&mut self) -> Result<(), DeliveryError> {
        for table in self.by_id.values_mut() {
            if let Some(writer) = &mut table.writer {
                let spilled = writer.spill().await;
                table.take(spilled)?;
            }
        }
        Ok(())
    }

    /// Commits everything that was applied: each running table then holds all before `at`.
    pub(super) async fn commit(&mut self, at: Offset) -> Result<(), DeliveryError> {
        let (config, progress) = (self.config, self.progress);
        futures_util::stream::iter(self.by_id.iter_mut())
            .map(Ok)
            .try_for_each_concurrent(COMMITS_AT_ONCE, |(id, table)| async move {
                table.commit(*id, at, config, progress).await
            })
            .await
    }

    /// What readers see of each running table now, which is everything before the last cut.
    pub(super) async fn cuts(&mut self) -> Result<Vec<TableCut>, DeliveryError> {
        let mut cuts = Vec::with_capacity(self.by_id.len());
        for (id, table) in &mut self.by_id {
            let Some(writer) = table.writer.as_ref().filter(|writer| writer.is_whole()) else {
                continue;
            };
            let current = writer.current_snapshot().await;
            if let Some(snapshot) = table.take(current)? {
                cuts.push(TableCut {
                    table: *id,
                    target: table.target.clone(),
                    snapshot,
                });
            }
        }
        Ok(cuts)
    }

    /// Puts the tables on the board, together with what else changes there.
    pub(super) fn show(
        &self,
        board: &Board<PipelineStatus>,
        more: impl FnOnce(&mut PipelineStatus),
    ) {
        let mut tables = BTreeMap::new();
        let mut shown: Vec<&Table> = self.by_id.values().collect();
        // Of two of one name the one that waits for somebody is shown, or else the one that has it.
        shown.sort_by_key(|table| (!table.is_held(), table.displaced));
        for table in shown {
            let status = DeliveryStatus {
                state: table.state,
                problem: table.problem.clone(),
                delivered: table.delivered,
                target: table.target.to_string(),
                rows: table.rows,
                held: table.held(),
                unasked: table.unasked,
            };
            tables.entry(table.qualified.clone()).or_insert(status);
        }
        for left in &self.left {
            let name = left.name.qualified.clone();
            tables.entry(name).or_insert_with(|| left.status());
        }
        let needed = self.by_id.values().map(Table::found_again).min();
        board.update(|status| {
            status.tables = tables;
            more(status);
            // Without a table that of one which is to come.
            status.needed = needed.unwrap_or(status.delivered);
        });
    }
}

impl Table {
    /// Where the table would be taken up after a crash: what is only in memory does not count.
    fn found_again(&self) -> Offset {
        let committed = self.writer.as_ref().map(TableWriter::committed);
        self.stored.0.max(committed.unwrap_or_default())
    }

    async fn wait_for_snapshot(&mut self, trimmed: Offset) -> Result<(), DeliveryError> {
        let problem = Problem::new(
            "DR-3030",
            format!(
                "offsets {} to {trimmed} of the log, which {} needs, are gone by retention",
                self.delivered, self.qualified
            ),
            "downriver resnapshot PIPELINE: the table begins again with the new snapshot",
        );
        tracing::error!(
            table = self.qualified,
            code = problem.code,
            reason = problem.reason,
            "a table waits for a snapshot; the others go on"
        );
        if let Some(writer) = &mut self.writer {
            writer.wait_for_generation(problem.clone()).await?;
        }
        self.waits_for_snapshot = true;
        self.applied = trimmed;
        self.state = TableState::Stopped;
        self.problem = Some(problem);
        Ok(())
    }

    fn is_whole(&self) -> bool {
        self.writer.as_ref().is_none_or(TableWriter::is_whole)
    }

    fn leave(&mut self) {
        self.is_left = true;
        self.state = TableState::Refused;
        self.problem = Some(Problem::new(
            "DR-3027",
            format!(
                "the source does not have {} any more, or does not capture it, and its new rows were not whole: table {} stays as it was",
                self.qualified, self.target
            ),
            "nothing, if the table was dropped; otherwise downriver describe the source: the table is read again when it is captured again",
        ));
    }

    /// Takes over what the writer says of itself. Whether that is news.
    fn look(&mut self) -> bool {
        let Some(writer) = self.writer.as_ref().filter(|_| !self.is_left) else {
            return false;
        };
        let before = self.state;
        (self.state, self.problem) = match writer.waits() {
            // Stopped: nothing was seen to come, and that has not changed.
            Some(problem) if self.unasked.is_some() => (TableState::Stopped, Some(problem.clone())),
            Some(problem) => (TableState::Pending, Some(problem.clone())),
            None if writer.is_whole() => (TableState::Streaming, None),
            None => (TableState::Snapshotting, None),
        };
        self.state != before
    }

    /// Begins again where a generation of the table's snapshot starts; passes over what comes before. Whether it does.
    fn find_snapshot(&mut self, id: TableId, changes: &Changes, end: Offset) -> bool {
        let first = changes::snapshot_start(changes, id, self.applied).filter(|at| *at < end);
        self.applied = self.applied.max(first.unwrap_or(end));
        if first.is_some() {
            self.waits_for_snapshot = false;
            self.state = TableState::Streaming;
            self.problem = None;
        }
        first.is_some()
    }

    fn stop(&mut self, problem: Problem) {
        tracing::error!(
            table = self.qualified,
            code = problem.code,
            reason = problem.reason,
            "a table stopped; the others go on"
        );
        self.writer = None;
        self.waits_for_snapshot = false;
        self.applied = self.delivered;
        self.state = TableState::Stopped;
        self.problem = Some(problem);
    }

    /// Whether to begin again. Whoever took a shared table over may have done so by what it knew of the log then.
    fn may_pass(&self, error: &LakeError) -> bool {
        error.is_transient() || (self.is_shared && matches!(error, LakeError::Fenced(_)))
    }

    /// A definite error stops this table alone.
    fn take<T: Default>(&mut self, result: Result<T, LakeError>) -> Result<T, DeliveryError> {
        match result {
            Ok(value) => Ok(value),
            Err(error) if self.may_pass(&error) => Err(error.into()),
            Err(error) => {
                self.stop(error.problem());
                Ok(T::default())
            }
        }
    }

    async fn commit(
        &mut self,
        id: TableId,
        at: Offset,
        config: &DeliveryConfig,
        progress: &Arc<dyn Progress>,
    ) -> Result<(), DeliveryError> {
        if self.waits_for_snapshot {
            return Ok(());
        }
        if self.is_held() {
            return Ok(());
        }
        if self.displaced {
            return self.pass(id, at, config, progress).await;
        }
        let Some(writer) = &mut self.writer else {
            return Ok(());
        };
        let committed = writer.commit(at).await;
        let wrote = self.take(committed)?;
        let Some(writer) = &self.writer else {
            return Ok(());
        };
        let delivered = if writer.is_whole() || self.is_left {
            at
        } else {
            writer.committed()
        };
        self.delivered = self.delivered.max(delivered);
        self.look();
        let Some(writer) = &self.writer else {
            return Ok(());
        };
        let rows = writer.rows();
        let (stored, when) = self.stored;
        let due = wrote || when.elapsed() >= IDLE_PROGRESS_EVERY;
        if !due || stored == self.delivered {
            return Ok(());
        }
        self.store(id, None, config, progress).await?;
        self.rows = rows;
        Ok(())
    }

    /// Puts down how far it has come, and the change that it stands before.
    async fn store(
        &mut self,
        id: TableId,
        held: Option<HeldAt>,
        config: &DeliveryConfig,
        progress: &Arc<dyn Progress>,
    ) -> Result<(), DeliveryError> {
        let committed = match &self.writer {
            Some(writer) => writer.committed(),
            None => {
                let before = progress.get(&config.pipeline, id).unwrap_or_default();
                let before = committed(&before.detail, &config.stream_id);
                before.map_err(DeliveryError::Progress)?.unwrap_or_default()
            }
        };
        let detail = Detail {
            committed,
            accepted: Some(self.accepted),
            held,
        };
        let now = TableProgress {
            epoch: self.epoch,
            delivered: self.delivered,
            detail: encode(detail, &config.stream_id),
        };
        progress
            .commit(&config.pipeline, id, now)
            .await
            .map_err(DeliveryError::Progress)?;
        self.stored = (self.delivered, Instant::now());
        Ok(())
    }
}
