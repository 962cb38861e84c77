//! One table of a lake and its owner: changes in, snapshots out.
//!
//! ```text
//!   open ── fence ─> apply* ─> commit ─> apply* ─> commit ...
//!                      └ spill: rows beyond memory become a data file that no snapshot names yet
//! ```
//!
//! - `open` first commits a snapshot of its own epoch that changes no row: from then on a commit of any earlier
//!   owner fails, for every commit asserts the snapshot that it follows.
//! - `apply` takes events in order, each once; `commit(to)` makes everything before `to` visible together
//!   with `to` itself.
//! - After an error the writer is of no use any more: open the table again and go on from what it says.
//!   A file that was stored and that no snapshot names is nobody's; it is never deleted while a commit that
//!   names it may still land.

mod bag;
mod beside;
mod commit;
#[cfg(test)]
mod compat;
mod ignored;
mod local;
mod owned;
mod planted;
mod spill;
mod sweep;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use downriver_event::block::{Block, RowGroup};
use downriver_event::change::{ChangePolicies, ChangePolicy};
use downriver_event::planted::Bug;
use downriver_event::problem::Problem;
use downriver_event::{EndedIncarnations, Epoch, Incarnation, Offset, TableId, TableSchema, pb};
use iceberg::spec::{DataFile, TableMetadata};
use roaring::RoaringBitmap;

use crate::catalog::{Catalog, CatalogError, NewTable, TableName};
use crate::index::KeyIndex;
use crate::reshape::{holds, keyless};
use crate::schema::{COLUMNS_PROPERTY, Layout, mapping_by_name, mapping_property, new_schema};
use crate::snapshot::Live;
use crate::window::Window;
use crate::{LakeError, Warehouse};
use beside::Standing;
pub(crate) use ignored::ignored_columns;
use local::Garbage;
pub use owned::owner_of;

/// Of the properties and summaries that are ours.
const FORMAT_PROPERTY: &str = "downriver.format";
const FORMAT: &str = "1";
pub(crate) const OFFSET_PROPERTY: &str = "downriver.offset";
pub(crate) const EPOCH_PROPERTY: &str = "downriver.epoch";
pub(crate) const STREAM_PROPERTY: &str = "downriver.stream";
/// Of the log that the offset is of.
pub(crate) const INCARNATION_PROPERTY: &str = "downriver.incarnation";
pub(crate) const PIPELINE_PROPERTY: &str = "downriver.pipeline";
/// Of the source's table: one lake table is never of two.
const TABLE_PROPERTY: &str = "downriver.table";
/// Where the log says that the source's table got the name; nothing: it had it from the first.
const CLAIM_PROPERTY: &str = "downriver.claim";
/// Why only a generation of the snapshot of the source's table makes the rows right, until one has ended: [`CLAIMED`] or
/// [`LOST`].
const AWAITS_PROPERTY: &str = "downriver.awaits";
/// The table was another one's.
const CLAIMED: &str = "true";
/// It has what the log has lost.
const LOST: &str = "lost";
/// Column ids of the key that the rows are known by.
const KEY_PROPERTY: &str = "downriver.key";
/// Version of the source's schema that the rows were brought up to.
const SCHEMA_PROPERTY: &str = "downriver.schema";
/// While a snapshot of the source's table is being delivered: the last sequence number of the files from before
/// it. What is still in them at its end is gone at the source. Until then a value that was not sent may be one
/// that the snapshot brings later.
const SNAPSHOT_PROPERTY: &str = "downriver.snapshot-since";
const FROM_SUMMARY: &str = "downriver.from";
const TO_SUMMARY: &str = "downriver.to";
const DATA_SNAPSHOT_SUMMARY: &str = "downriver.data-snapshot";

/// A block of the log, opened once for all tables.
#[derive(Debug)]
pub struct Changes {
    pub base: Offset,
    pub events: u32,
    pub transactions: Vec<pb::Transaction>,
    pub markers: Vec<pb::Marker>,
    /// Its first transaction began in an earlier block.
    pub continues: bool,
    groups: Vec<Arc<RowGroup>>,
}

impl Changes {
    #[must_use]
    pub fn new(base: Offset, block: Block) -> Self {
        Self {
            base,
            events: block.events,
            transactions: block.transactions,
            markers: block.markers,
            continues: false,
            groups: block.groups.into_iter().map(Arc::new).collect(),
        }
    }

    /// Tables that have rows in it.
    pub fn tables(&self) -> impl Iterator<Item = TableId> + '_ {
        self.groups.iter().map(|group| group.table)
    }

    /// The versions of a table's schema that its rows have from an event on, each with its first event.
    pub fn versions(&self, table: TableId, from: u32) -> impl Iterator<Item = (u32, u32)> + '_ {
        let groups = self.groups.iter().filter(move |group| group.table == table);
        groups.filter_map(move |group| {
            let first = group.events.partition_point(|event| *event < from);
            Some((*group.events.get(first)?, group.schema_version))
        })
    }

    /// The first event of the transaction that has this one; `None`: it is in an earlier block.
    #[must_use]
    pub fn begin_of(&self, event: u32) -> Option<u32> {
        let at = self
            .transactions
            .partition_point(|t| t.first_event + t.events <= event);
        let first = self.transactions.get(at)?.first_event;
        (at > 0 || !self.continues).then_some(first)
    }

    fn time_of(&self, event: u32) -> i64 {
        let at = self
            .transactions
            .partition_point(|t| t.first_event + t.events <= event);
        self.transactions.get(at).map_or(0, |t| t.commit_time_us)
    }
}

/// Every version of every table's schema, by table and version.
pub type Schemas = BTreeMap<(TableId, u32), Arc<TableSchema>>;

#[derive(Clone, Debug)]
pub struct TableConfig {
    pub name: TableName,
    pub pipeline: String,
    /// Names the stream and which of its lives this is.
    pub stream: String,
    /// Of the stream's log.
    pub incarnation: Incarnation,
    pub ended: EndedIncarnations,
    pub epoch: Epoch,
    /// Where the stream starts for a table that is made now, or that another stream or another of the source's tables
    /// filled.
    pub start: Offset,
    /// The source's table got this name where the log says so: from there on it has the lake's table, whichever had it.
    pub claim: Option<Offset>,
    /// What is known elsewhere to have been committed by this stream, if anything: a table that says less was
    /// rolled back, one that is of another stream was taken over.
    pub committed: Option<Offset>,
    /// What is done when the source's table changes.
    pub schema_changes: ChangePolicies,
    /// Of this table alone, on local disk.
    pub folder: PathBuf,
}

/// What has been written and is in no snapshot yet.
#[derive(Debug, Default)]
struct Pending {
    added: BTreeMap<u32, DataFile>,
    /// Positions deleted since the last commit, by data file.
    deleted: BTreeMap<u32, RoaringBitmap>,
    removed: BTreeSet<u32>,
    /// Properties to set with the next commit; an empty value removes one.
    properties: HashMap<String, String>,
}

impl Pending {
    fn is_empty(&self) -> bool {
        self.added.is_empty()
            && self.deleted.is_empty()
            && self.removed.is_empty()
            && self.properties.is_empty()
    }
}

#[derive(Debug)]
pub struct TableWriter {
    catalog: Arc<dyn Catalog>,
    warehouse: Warehouse,
    config: TableConfig,
    metadata: TableMetadata,
    layout: Layout,
    /// The newest schema of the source's table that was met and that the rows are brought up to.
    source: Arc<TableSchema>,
    /// The table may not have all of its columns yet.
    source_is_new: bool,
    /// The one that was met last.
    met: Arc<TableSchema>,
    /// Columns of the schema that was met last which the table does not take.
    ignored: Vec<u32>,
    standing: Standing,
    live: Live,
    index: KeyIndex,
    /// The index's runs as of the last commit: those of what is pending may never count.
    /// `None`: nothing is known of the index of what is committed.
    committed_runs: Option<Vec<String>>,
    seed: u64,
    next_file: u32,
    /// The snapshot that last changed rows.
    data_snapshot: i64,
    garbage: Vec<Garbage>,
    window: Window,
    pending: Pending,
    /// Deleted positions of data files as they are in the table; a cache.
    deleted: HashMap<u32, RoaringBitmap>,
    /// Everything before it is in the table.
    committed: Offset,
    /// See [`SNAPSHOT_PROPERTY`].
    snapshot_since: Option<i64>,
    rows_written: u64,
}

impl TableWriter {
    /// Opens the table as its owner, making it if it is not there.
    ///
    /// # Errors
    /// Somebody else owns it, changed it, or rolled it back; or the catalog or the store's.
    pub async fn open(
        catalog: Arc<dyn Catalog>,
        warehouse: Warehouse,
        config: TableConfig,
        versions: &[Arc<TableSchema>],
    ) -> Result<Self, LakeError> {
        std::fs::create_dir_all(&config.folder)?;
        let newest = versions.last().expect("a table has a schema");
        let keyed = versions.iter().rev().find(|schema| schema.tells_rows());
        let keyed = keyed.ok_or_else(|| LakeError::Stopped(keyless(newest)))?;
        let source = Arc::clone(keyed);
        let metadata = match catalog.load(&config.name).await? {
            Some(loaded) => loaded.metadata,
            None => Self::create(&*catalog, &config, &source).await?,
        };
        // A table that was just made does not say yet which column each field holds.
        let unsaid = !metadata.properties().contains_key(COLUMNS_PROPERTY);
        let mapping = unsaid.then(|| mapping_by_name(&metadata, &source));
        let layout = match &mapping {
            Some(mapping) => Layout::with(&metadata, mapping)?,
            None => Layout::of(&metadata)?,
        };
        let mut table = Self {
            committed: config.start,
            snapshot_since: None,
            rows_written: 0,
            seed: 0,
            next_file: 1,
            data_snapshot: 0,
            live: Live::default(),
            index: KeyIndex::empty(&config.folder),
            committed_runs: None,
            garbage: Vec::new(),
            window: Window::default(),
            pending: Pending::default(),
            deleted: HashMap::new(),
            catalog,
            warehouse,
            config,
            metadata,
            layout,
            met: Arc::clone(&source),
            source,
            source_is_new: false,
            ignored: Vec::new(),
            standing: Standing::Whole,
        };
        table.take_progress()?;
        table.take_shape(versions);
        let is_ours = table.property(STREAM_PROPERTY) == Some(&table.config.stream);
        if !is_ours && table.is_whole() && table.config.schema_changes.has(ChangePolicy::Ignore) {
            // From here on its fields tell what is ignored.
            table.ensure_schema().await?;
        }
        if let Some(mapping) = mapping {
            table
                .pending
                .properties
                .insert(COLUMNS_PROPERTY.to_owned(), mapping_property(&mapping));
        }
        table.fence().await?;
        if table.is_whole() {
            table.take_index().await?;
        }
        table.window = Window::new(table.seed);
        Ok(table)
    }

    async fn create(
        catalog: &dyn Catalog,
        config: &TableConfig,
        source: &TableSchema,
    ) -> Result<TableMetadata, LakeError> {
        let properties = HashMap::from([
            (FORMAT_PROPERTY.to_owned(), FORMAT.to_owned()),
            (OFFSET_PROPERTY.to_owned(), config.start.to_string()),
            (EPOCH_PROPERTY.to_owned(), "0".to_owned()),
            (STREAM_PROPERTY.to_owned(), config.stream.clone()),
            (
                INCARNATION_PROPERTY.to_owned(),
                config.incarnation.0.to_string(),
            ),
            (PIPELINE_PROPERTY.to_owned(), config.pipeline.clone()),
            ("write.delete.granularity".to_owned(), "file".to_owned()),
        ]);
        let new = NewTable {
            schema: new_schema(source)?,
            properties,
        };
        let created = match catalog.create(&config.name, new).await {
            Ok(created) => created,
            // Our own request that was thought lost, or somebody was faster: the table itself says.
            Err(CatalogError::Conflict(_) | CatalogError::Unknown(_)) => {
                let loaded = catalog.load(&config.name).await?;
                loaded.ok_or_else(|| {
                    CatalogError::Unavailable(format!("table {} was not made", config.name))
                })?
            }
            Err(error) => return Err(error.into()),
        };
        Ok(created.metadata)
    }

    fn property(&self, name: &str) -> Option<&str> {
        self.metadata.properties().get(name).map(String::as_str)
    }

    fn summary(&self, name: &str) -> Option<&str> {
        let snapshot = self.metadata.current_snapshot()?;
        let summary = &snapshot.summary().additional_properties;
        summary.get(name).map(String::as_str)
    }

    /// Reads how far the table has come, from the table itself.
    fn take_progress(&mut self) -> Result<(), LakeError> {
        let name = &self.config.name;
        let Some(stream) = self.property(STREAM_PROPERTY).map(str::to_owned) else {
            return Err(LakeError::stopped(
                "DR-3017",
                format!("table {name} is in the catalog already and was not made by Downriver"),
                "drop or rename the table, or give the pipeline another namespace",
            ));
        };
        let format = self.property(FORMAT_PROPERTY).unwrap_or_default();
        if format != FORMAT {
            return Err(LakeError::stopped(
                "DR-3017",
                format!(
                    "table {name} was made by another version of Downriver: it has format {format:?}, this build reads {FORMAT:?}"
                ),
                "run the version that made it, or drop or rename the table, or give the pipeline another namespace",
            ));
        }
        if self.is_claimed(stream == self.config.stream)? {
            self.take_over();
            return Ok(());
        }
        let number = |text: Option<&str>| text.and_then(|text| text.parse::<u64>().ok());
        let epoch = number(self.property(EPOCH_PROPERTY)).unwrap_or_default();
        let is_replaced = epoch > self.config.epoch.0 && !Bug::TakesBack.is_planted();
        if stream == self.config.stream && is_replaced {
            return Err(LakeError::Fenced(Epoch(epoch)));
        }
        if stream != self.config.stream {
            if self.property(PIPELINE_PROPERTY) != Some(&self.config.pipeline) {
                return Err(LakeError::stopped(
                    "DR-3018",
                    format!(
                        "table {name} belongs to pipeline {:?}",
                        self.property(PIPELINE_PROPERTY).unwrap_or_default()
                    ),
                    "give this pipeline another namespace, or drop the table",
                ));
            }
            if let Some(committed) = self.config.committed {
                return Err(LakeError::stopped(
                    "DR-3018",
                    format!(
                        "table {name} was taken over by another pipeline of this name after offset {committed}"
                    ),
                    "let only one of them write it: give the other a name or a namespace of its own",
                ));
            }
            // Filled from another life of the source: the new snapshot replaces what is there.
            self.committed = self.config.start;
            if self.config.claim.is_some() {
                self.take_over();
                return Ok(());
            }
            for of_that_life in [CLAIM_PROPERTY, AWAITS_PROPERTY] {
                if self.property(of_that_life).is_some() {
                    let gone = (of_that_life.to_owned(), String::new());
                    self.pending.properties.extend([gone]);
                }
            }
            return Ok(());
        }
        let offset = number(self.property(OFFSET_PROPERTY));
        let foreign = |what: String| {
            LakeError::stopped(
                "DR-3010",
                what,
                "delete the lake's table and the pipeline, and apply the pipeline again; or roll the table forward to its last own snapshot",
            )
        };
        let Some(offset) = offset else {
            return Err(foreign(format!("table {name} has lost its offset")));
        };
        let ahead_of = self.ahead_of(Offset(offset))?;
        if self.metadata.current_snapshot().is_some() {
            let otherwise = Bug::IgnoresForeign.is_planted().then_some(offset);
            let Some(to) = number(self.summary(TO_SUMMARY)).or(otherwise) else {
                return Err(foreign(format!(
                    "somebody else changed table {name} after offset {offset}"
                )));
            };
            if to != offset && !Bug::IgnoresRollback.is_planted() {
                return Err(foreign(format!(
                    "table {name} was rolled back from offset {offset} to {to}"
                )));
            }
        }
        if let Some(until) = ahead_of {
            self.committed = until;
            self.replace_rows(LOST);
            return Ok(());
        }
        let known = self.config.committed.unwrap_or_default();
        if offset < known.0 {
            return Err(foreign(format!(
                "table {name} was rolled back from offset {known} to {offset}"
            )));
        }
        self.committed = Offset(offset);
        self.snapshot_since = self
            .property(SNAPSHOT_PROPERTY)
            .and_then(|text| text.parse().ok());
        Ok(())
    }

    /// Up to where the log has what the table was filled from, if the table was filled further.
    fn ahead_of(&self, offset: Offset) -> Result<Option<Offset>, LakeError> {
        let ours = self.config.incarnation;
        let theirs = self.property(INCARNATION_PROPERTY);
        let theirs = theirs.and_then(|text| text.parse().ok());
        let theirs = theirs.map_or(ours, Incarnation);
        if theirs == ours {
            return Ok(None);
        }
        match self.config.ended.same_until(theirs) {
            Some(until) => Ok((offset > until).then_some(until)),
            None => Err(LakeError::stopped(
                "DR-3024",
                format!(
                    "table {} was filled from incarnation {} of the log, which is at {} and never had that one",
                    self.config.name, theirs.0, ours.0
                ),
                "delete the pipeline and the source and apply them again: the new snapshot repairs the tables",
            )),
        }
    }

    /// Finds the version of the source's schema that the table's rows have. If there is none, only a generation of the
    /// source's snapshot can be taken.
    fn take_shape(&mut self, versions: &[Arc<TableSchema>]) {
        let is_ours = self.property(STREAM_PROPERTY) == Some(&self.config.stream);
        if is_ours
            && self.is_whole()
            && let Some(why) = self.property(AWAITS_PROPERTY).map(str::to_owned)
        {
            self.await_rows(&why);
        }
        if !self.is_whole() {
            return;
        }
        let said = self.property(SCHEMA_PROPERTY).filter(|_| is_ours);
        let said = said.and_then(|text| text.parse::<u32>().ok());
        let key = self.property(KEY_PROPERTY).filter(|_| is_ours);
        let fits = |schema: &&Arc<TableSchema>| {
            schema.tells_rows()
                && key.is_none_or(|key| key == key_property(schema))
                && holds(&self.layout, schema)
        };
        let of_rows = versions
            .iter()
            .find(|schema| Some(schema.version) == said)
            .filter(fits)
            .or_else(|| versions.iter().rev().find(fits));
        match of_rows {
            Some(schema) => self.take_columns(schema, versions, is_ours),
            None => {
                self.standing = Standing::Waiting(self.outgrown());
                if !is_ours {
                    let unknown = [KEY_PROPERTY, SCHEMA_PROPERTY]
                        .map(|name| (name.to_owned(), String::new()));
                    self.pending.properties.extend(unknown);
                }
            }
        }
    }

    fn outgrown(&self) -> Problem {
        Problem::new(
            "DR-3014",
            format!(
                "the rows of table {} have another shape than {} of the source",
                self.config.name,
                self.source.qualified_name()
            ),
            "downriver resnapshot PIPELINE --tables SCHEMA.TABLE: a new snapshot replaces the table's rows",
        )
    }

    #[must_use]
    pub fn name(&self) -> &TableName {
        &self.config.name
    }

    /// Everything before it is in the table.
    #[must_use]
    pub fn committed(&self) -> Offset {
        self.committed
    }

    /// Of the source's schema that the rows are brought up to.
    #[must_use]
    pub fn schema_version(&self) -> u32 {
        self.source.version
    }

    /// The snapshot that readers see now: not our last one, if somebody else changed the table.
    ///
    /// # Errors
    /// The catalog's, or the table is gone.
    pub async fn current_snapshot(&self) -> Result<Option<i64>, LakeError> {
        Ok(self.reload().await?.current_snapshot_id())
    }

    /// Rows written since it was opened.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.rows_written
    }

    /// Bytes that the changes take which were not spilled yet, beside the blocks they came in.
    #[must_use]
    pub fn window_bytes(&self) -> usize {
        self.window.bytes()
    }

    /// Whether there is anything to commit.
    #[must_use]
    pub fn has_changes(&self) -> bool {
        match &self.standing {
            Standing::Whole => {
                !self.window.is_empty() || !self.pending.is_empty() || self.source_is_new
            }
            Standing::Waiting(_) => false,
            Standing::Beside(beside) => beside.ended,
        }
    }

    /// Whether rows are in memory that are in no file.
    #[must_use]
    pub fn holds_rows(&self) -> bool {
        !self.window.is_empty()
    }

    /// Whether a row may still come that an earlier one takes values from.
    fn chunks_are_to_come(&self) -> bool {
        match &self.standing {
            Standing::Beside(beside) => !beside.ended,
            Standing::Whole | Standing::Waiting(_) => self.snapshot_since.is_some(),
        }
    }

    /// Applies the events of a block that lie in `range`, as far as they are of this table.
    ///
    /// # Errors
    /// A change that the table cannot take; or the catalog or the store's.
    pub async fn apply(
        &mut self,
        changes: &Changes,
        range: Range<u32>,
        schemas: &Schemas,
    ) -> Result<(), LakeError> {
        let table = self.source.id;
        let mut from = range.start;
        for marker in &changes.markers {
            if !range.contains(&marker.event) || !speaks_of(marker, table) {
                continue;
            }
            if self.is_whole()
                && announced(marker)
                    .is_some_and(|s| self.misfit(&self.taken(&Arc::new(s)).0).is_some())
                && let Some(begin) = changes.begin_of(marker.event).filter(|at| *at >= from)
            {
                // Readers go on seeing what was before the change. The rest of its transaction the generation has.
                self.apply_rows(changes, from..begin, schemas).await?;
                self.commit(changes.base.plus(u64::from(begin))).await?;
            } else {
                self.apply_rows(changes, from..marker.event, schemas)
                    .await?;
            }
            from = marker.event;
            let at = changes.base.plus(u64::from(marker.event));
            self.marker(marker, at).await?;
        }
        self.apply_rows(changes, from..range.end, schemas).await
    }

    async fn apply_rows(
        &mut self,
        changes: &Changes,
        range: Range<u32>,
        schemas: &Schemas,
    ) -> Result<(), LakeError> {
        if range.is_empty() {
            return Ok(());
        }
        let table = self.source.id;
        for group in changes.groups.iter().filter(|group| group.table == table) {
            let first = group.events.partition_point(|event| *event < range.start);
            let last = group.events.partition_point(|event| *event < range.end);
            if first == last {
                continue;
            }
            let schema = schemas.get(&(table, group.schema_version)).ok_or_else(|| {
                LakeError::stopped(
                    "DR-3019",
                    format!(
                        "schema version {} of {} is not known",
                        group.schema_version,
                        self.source.qualified_name()
                    ),
                    "report it",
                )
            })?;
            self.meet(schema).await?;
            if self.waits().is_some() {
                return Ok(());
            }
            let (group_of, shape) = (Arc::clone(group), Arc::clone(&self.met));
            let held = self.window.hold(group_of, shape, self.lacking(schema))?;
            for (row, (op, image, at_new, at_old)) in
                group.images().enumerate().skip(first).take(last - first)
            {
                let event = group.events[row];
                let offset = changes.base.plus(u64::from(event));
                let time = changes.time_of(event);
                self.window
                    .row(held, (op, image), at_new, at_old, offset, time)?;
            }
        }
        Ok(())
    }

    async fn marker(&mut self, marker: &pb::Marker, at: Offset) -> Result<(), LakeError> {
        use pb::marker::Kind;
        match &marker.kind {
            Some(Kind::SchemaChange(_)) => {
                if let Some(schema) = announced(marker) {
                    self.meet(&Arc::new(schema)).await?;
                }
            }
            Some(Kind::Truncate(_)) if self.waits().is_some() => {}
            Some(Kind::Truncate(_)) => self.truncate().await?,
            Some(Kind::SnapshotStart(_)) if !self.is_whole() => self.begin_beside().await?,
            // Equal rows of two generations could not be told apart.
            Some(Kind::SnapshotStart(_)) if self.source.is_bag() => {
                self.commit(at).await?;
                self.begin_beside().await?;
            }
            // The marker is a transaction of its own: what came before it may be committed.
            Some(Kind::SnapshotStart(_)) => self.begin_sweep(at).await?,
            // What waits for all of its rows, or gets them, has nothing of a part.
            Some(Kind::PartialSnapshotStart(_) | Kind::PartialSnapshotEnd(_))
                if !self.is_whole() => {}
            Some(Kind::PartialSnapshotStart(_)) => self.begin_sweep(at).await?,
            Some(Kind::PartialSnapshotEnd(end)) => {
                if let Some(last) = self.end_sweep().await? {
                    self.sweep_part(last, end.filter.as_ref()).await?;
                }
            }
            Some(Kind::SnapshotEnd(_)) if matches!(self.standing, Standing::Beside(_)) => {
                self.spill().await?;
                if let Standing::Beside(beside) = &mut self.standing {
                    beside.ended = true;
                }
            }
            Some(Kind::SnapshotEnd(_)) => {
                if let Some(last) = self.end_sweep().await? {
                    let old = self.live.files.iter().filter(|(_, f)| f.sequence <= last);
                    self.pending.removed.extend(old.map(|(number, _)| *number));
                }
            }
            Some(Kind::Message(_) | Kind::Hole(_)) | None => {}
        }
        Ok(())
    }

    /// All rows go, those that were written and not committed too.
    async fn truncate(&mut self) -> Result<(), LakeError> {
        self.window.clear();
        self.index.clear();
        let added = std::mem::take(&mut self.pending.added);
        self.pending.deleted.clear();
        self.pending.removed.extend(self.live.files.keys().copied());
        for file in added.into_values() {
            let key = self.warehouse.key(file.file_path())?;
            self.warehouse.store().delete(key).await?;
        }
        Ok(())
    }
}

fn key_property(source: &TableSchema) -> String {
    if source.is_bag() {
        return "*".to_owned();
    }
    let key = source.key.iter().map(u32::to_string);
    key.collect::<Vec<_>>().join(",")
}

fn announced(marker: &pb::Marker) -> Option<TableSchema> {
    match &marker.kind {
        Some(pb::marker::Kind::SchemaChange(change)) => {
            TableSchema::from_pb(change.schema.as_ref()?).ok()
        }
        _ => None,
    }
}

fn speaks_of(marker: &pb::Marker, table: TableId) -> bool {
    use pb::marker::Kind;
    match &marker.kind {
        Some(Kind::SchemaChange(change)) => change
            .schema
            .as_ref()
            .is_some_and(|s| s.table_id == table.0),
        Some(Kind::SnapshotStart(start)) => start.table_id == table.0,
        Some(Kind::SnapshotEnd(end)) => end.table_id == table.0,
        Some(Kind::PartialSnapshotStart(start)) => start.table_id == table.0,
        Some(Kind::PartialSnapshotEnd(end)) => end.table_id == table.0,
        Some(Kind::Truncate(truncate)) => truncate.table_ids.contains(&table.0),
        Some(Kind::Message(_) | Kind::Hole(_)) | None => false,
    }
}
