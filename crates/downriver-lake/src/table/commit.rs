//! Commits: the fence, the snapshot with its offset, and what a lost answer means.
//!
//! | answer | means | then |
//! |---|---|---|
//! | done | it is there | go on |
//! | conflict, our snapshot is the current one | an earlier try of the same commit landed | go on |
//! | conflict, main is where it was | something else of the table changed | open it anew |
//! | conflict, main has moved | another owner, or a foreign edit | stop |
//! | conflict, main has moved to an older owner's commit | it was on its way when we took over | open it anew |
//! | unknown, our snapshot is the current one | it landed | go on |
//! | unknown, main is where it was | it may still land | send the identical commit again: one of the two fails |
//! | unknown, main has moved | the lost commit cannot land any more | as a conflict |

use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use downriver_event::planted::Bug;
use downriver_event::{Epoch, Offset};
use futures_util::{StreamExt as _, TryStreamExt as _};
use iceberg::spec::{DataFile, MAIN_BRANCH, SnapshotReference, SnapshotRetention, TableMetadata};
use iceberg::{TableRequirement, TableUpdate};
use roaring::RoaringBitmap;

use super::bag::hash_rows;
use super::beside::{Beside, Standing};
use super::local::{FORMAT, Garbage, LocalState, Version};
use super::spill::hash_keys;
use super::{
    DATA_SNAPSHOT_SUMMARY, EPOCH_PROPERTY, FROM_SUMMARY, INCARNATION_PROPERTY, KEY_PROPERTY,
    OFFSET_PROPERTY, PIPELINE_PROPERTY, Pending, SCHEMA_PROPERTY, STREAM_PROPERTY, TABLE_PROPERTY,
    TO_SUMMARY, TableWriter, key_property,
};
use crate::LakeError;
use crate::catalog::CatalogError;
use crate::data::{all_but, read_position_deletes, read_rows, write_position_deletes};
use crate::index::{KeyIndex, Location};
use crate::schema::{COLUMNS_PROPERTY, Layout, evolve, mapping_property};
use crate::snapshot::{Change, Live, Staged, stage};

/// Snapshots younger than this stay readable, and always the newest few, unless the table's properties
/// `history.expire.max-snapshot-age-ms` and `history.expire.min-snapshots-to-keep` say otherwise.
const SNAPSHOTS_KEPT_FOR_MS: i64 = 3_600_000;
const SNAPSHOTS_KEPT_MIN: usize = 10;
const EXPIRED_AT_ONCE_MIN: usize = 10;
/// Tries of one commit, with a growing rest between them: about a minute. Then the table is opened anew,
/// which tells what happened.
const COMMIT_TRIES: u32 = 12;
const REST_FIRST: Duration = Duration::from_millis(100);
const REST_MAX: Duration = Duration::from_secs(8);
/// Delete files that are written at the same time.
const WRITES_AT_ONCE: usize = 8;
/// Files whose deleted positions are kept in memory.
const DELETED_KEPT_MAX: usize = 1_024;

/// Whether there are tags or branches beside main. The library shows references only when it writes them; where
/// it does not, there may be some.
fn has_references(metadata: &TableMetadata) -> bool {
    let Ok(written) = serde_json::to_value(metadata) else {
        return true;
    };
    let references = written["refs"].as_object();
    references.is_some_and(|references| references.keys().any(|name| name != MAIN_BRANCH))
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
    })
}

impl TableWriter {
    /// The requirements of every commit: this table, following the snapshot that we know.
    fn requirements(&self) -> Vec<TableRequirement> {
        vec![
            TableRequirement::UuidMatch {
                uuid: self.metadata.uuid(),
            },
            TableRequirement::RefSnapshotIdMatch {
                r#ref: MAIN_BRANCH.into(),
                snapshot_id: self.metadata.current_snapshot_id(),
            },
        ]
    }

    /// Takes the table over: a snapshot with our epoch that changes no row.
    pub(super) async fn fence(&mut self) -> Result<(), LakeError> {
        if let Some(snapshot) = self.metadata.current_snapshot().cloned() {
            let mut state = self.local_state()?;
            if state.table_uuid != self.metadata.uuid().to_string() {
                state = LocalState::default();
            }
            self.data_snapshot = self
                .summary(DATA_SNAPSHOT_SUMMARY)
                .and_then(|id| id.parse().ok())
                .unwrap_or_else(|| snapshot.snapshot_id());
            self.adopt_numbers(&state);
            let numbers = self.numbers(&state);
            let mut next = self.next_file;
            self.live = Live::load(&self.warehouse, &self.metadata, &snapshot, |path| {
                numbers.get(path).copied().unwrap_or_else(|| {
                    next += 1;
                    next - 1
                })
            })
            .await?;
            self.next_file = next;
            self.garbage = state.garbage;
        }
        if Bug::NoFence.is_planted() && self.metadata.current_snapshot().is_some() {
            return Ok(());
        }
        let committed = self.committed;
        let change = Change {
            summary: self.own_summary(committed, self.data_snapshot),
            ..Change::default()
        };
        self.commit_change(change, committed, self.data_snapshot)
            .await
    }

    /// Takes over the numbers of data files and of what comes next from the version that fits.
    fn adopt_numbers(&mut self, state: &LocalState) {
        let fitting = state
            .versions
            .iter()
            .find(|version| version.data_snapshot == self.data_snapshot);
        self.next_file = fitting.map_or(1, |version| version.next_file);
    }

    fn numbers(&self, state: &LocalState) -> HashMap<String, u32> {
        let fitting = state
            .versions
            .iter()
            .find(|version| version.data_snapshot == self.data_snapshot);
        let files = fitting.map(|version| version.files.as_slice());
        files
            .unwrap_or_default()
            .iter()
            .map(|(number, path)| (path.clone(), *number))
            .collect()
    }

    /// What is stored of the index. What cannot be read counts as nothing: it is made again from the table.
    fn local_state(&self) -> Result<LocalState, LakeError> {
        match LocalState::read(&self.config.folder) {
            Ok(state) => Ok(state.unwrap_or_default()),
            Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {
                tracing::warn!(
                    table = %self.config.name,
                    error = %error,
                    "the state of the key index cannot be read; files that only it knew to be unneeded stay"
                );
                Ok(LocalState::default())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Opens the key index, or makes it again from the table.
    pub(super) async fn take_index(&mut self) -> Result<(), LakeError> {
        let state = self.local_state()?;
        if state.table_uuid == self.metadata.uuid().to_string() {
            let fitting = state
                .versions
                .iter()
                .find(|version| version.data_snapshot == self.data_snapshot);
            let newest = Bug::AnyIndex.is_planted().then(|| state.versions.last());
            if let Some(version) = newest.unwrap_or(fitting) {
                match KeyIndex::open(&self.config.folder, &version.runs) {
                    Ok(index) => {
                        self.index = index;
                        self.committed_runs = Some(version.runs.clone());
                        self.seed = state.seed;
                        return Ok(());
                    }
                    Err(error) => tracing::warn!(
                        table = %self.config.name,
                        error = %error,
                        "the key index cannot be read"
                    ),
                }
            }
        }
        self.rebuild_index().await
    }

    /// A damaged index is made again when the table is opened next.
    pub(super) fn index_failed(&self, error: std::io::Error) -> LakeError {
        if error.kind() == std::io::ErrorKind::InvalidData {
            tracing::warn!(table = %self.config.name, error = %error, "the key index is damaged");
            if let Err(error) = LocalState::forget_index(&self.config.folder) {
                return error.into();
            }
        }
        error.into()
    }

    async fn rebuild_index(&mut self) -> Result<(), LakeError> {
        /// Entries collected before they become a run.
        const RUN_ENTRIES: usize = 500_000;
        self.seed = uuid::Uuid::new_v4().as_u64_pair().0;
        self.index = KeyIndex::empty(&self.config.folder);
        if !self.live.files.is_empty() {
            tracing::info!(
                table = %self.config.name,
                files = self.live.files.len(),
                "the key index is made again from the table"
            );
        }
        let fields = self.layout.key_fields(&self.source)?;
        let mut entries = Vec::new();
        let files: Vec<u32> = self.live.files.keys().copied().collect();
        for file in files {
            let deleted = self.deleted_of(file).await?;
            let live = &self.live.files[&file];
            let mut live_rows = (0..live.rows).filter(|row| !deleted.contains(*row));
            let selected = Some(all_but(&deleted, live.rows));
            let arrow = &self.layout.arrow;
            let stream = read_rows(
                &self.warehouse,
                &live.path,
                live.bytes,
                arrow,
                &fields,
                selected,
            )
            .await?;
            let mut stream = std::pin::pin!(stream);
            while let Some(batch) = stream.try_next().await? {
                let hashes = if self.source.is_bag() {
                    hash_rows(batch.columns(), batch.num_rows(), self.seed)
                } else {
                    hash_keys(batch.columns(), batch.num_rows(), self.seed)
                };
                let located = hashes.into_iter().zip(live_rows.by_ref());
                entries.extend(located.map(|(hash, row)| (hash, Location { file, row })));
                if entries.len() >= RUN_ENTRIES {
                    let due = std::mem::take(&mut entries);
                    self.add_rebuilt(due).map_err(|e| self.index_failed(e))?;
                }
            }
        }
        self.add_rebuilt(entries)
            .map_err(|error| self.index_failed(error))?;
        self.write_local(Vec::new())
    }

    /// The positions of a data file that are deleted in the table.
    pub(super) async fn deleted_of(&mut self, file: u32) -> Result<RoaringBitmap, LakeError> {
        if let Some(known) = self.deleted.get(&file) {
            return Ok(known.clone());
        }
        let deletes = self
            .live
            .files
            .get(&file)
            .and_then(|live| live.deletes.as_ref());
        match deletes {
            Some(deletes) => {
                let (path, bytes) = (deletes.file.file_path(), deletes.file.file_size_in_bytes());
                read_position_deletes(&self.warehouse, path, bytes).await
            }
            None => Ok(RoaringBitmap::new()),
        }
    }

    /// Brings the lake's columns up to the source's newest schema. A commit of its own: a crash after it finds
    /// nothing left to do.
    pub(super) async fn ensure_schema(&mut self) -> Result<(), LakeError> {
        let metadata = match &self.standing {
            Standing::Beside(beside) => &beside.metadata,
            Standing::Whole | Standing::Waiting(_) => &self.metadata,
        };
        let evolution = evolve(metadata, &self.layout, &self.source)?;
        self.source_is_new = false;
        let Some(evolution) = evolution else {
            return Ok(());
        };
        if matches!(self.standing, Standing::Beside(_)) {
            return self.evolve_beside(evolution);
        }
        let mut requirements = self.requirements();
        requirements.extend(Beside::requirements(&self.metadata));
        let updates = vec![
            TableUpdate::AddSchema {
                schema: evolution.schema,
            },
            TableUpdate::SetCurrentSchema { schema_id: -1 },
            TableUpdate::SetProperties {
                updates: HashMap::from([
                    (
                        COLUMNS_PROPERTY.to_owned(),
                        mapping_property(&evolution.mapping),
                    ),
                    (SCHEMA_PROPERTY.to_owned(), self.source.version.to_string()),
                ]),
            },
        ];
        let done = self
            .catalog
            .commit(&self.config.name, requirements, updates)
            .await;
        let metadata = match done {
            Ok(loaded) => loaded.metadata,
            // Whether it landed does not matter: what is there now decides what is still to do.
            Err(CatalogError::Unknown(_) | CatalogError::Conflict(_)) => {
                let loaded = self.reload().await?;
                if loaded.current_snapshot_id() != self.metadata.current_snapshot_id() {
                    return Err(self.moved(&loaded));
                }
                loaded
            }
            Err(error) => return Err(error.into()),
        };
        self.layout = Layout::of(&metadata)?;
        self.metadata = metadata;
        if evolve(&self.metadata, &self.layout, &self.source)?.is_some() {
            return Err(CatalogError::Conflict(format!(
                "the schema of {} was not changed",
                self.config.name
            ))
            .into());
        }
        Ok(())
    }

    pub(super) async fn reload(&self) -> Result<TableMetadata, LakeError> {
        match self.catalog.load(&self.config.name).await? {
            Some(loaded) if loaded.metadata.uuid() == self.metadata.uuid() => Ok(loaded.metadata),
            _ => Err(LakeError::stopped(
                "DR-3021",
                format!("table {} was dropped from the catalog", self.config.name),
                "delete the pipeline and apply it again: the table is made anew",
            )),
        }
    }

    /// Main is not where we left it.
    fn moved(&self, now: &TableMetadata) -> LakeError {
        let epoch = now
            .properties()
            .get(EPOCH_PROPERTY)
            .and_then(|epoch| epoch.parse().ok());
        let of = |name: &str| {
            let summary = now.current_snapshot()?.summary();
            summary.additional_properties.get(name).map(String::as_str)
        };
        let ours = of(STREAM_PROPERTY) == Some(&self.config.stream)
            && of(PIPELINE_PROPERTY) == Some(&self.config.pipeline);
        match epoch {
            Some(epoch) if epoch > self.config.epoch.0 => LakeError::Fenced(Epoch(epoch)),
            // A commit of an earlier owner was still on its way.
            Some(_) if ours => CatalogError::Conflict(format!(
                "an earlier commit of table {} has landed late",
                self.config.name
            ))
            .into(),
            _ => LakeError::stopped(
                "DR-3010",
                format!(
                    "somebody else changed table {} after offset {}",
                    self.config.name, self.committed
                ),
                "delete the lake's table and the pipeline, and apply the pipeline again; or roll the table back to its last own snapshot",
            ),
        }
    }

    fn own_summary(&self, to: Offset, data_snapshot: i64) -> HashMap<String, String> {
        let incarnation = self.config.incarnation.0.to_string();
        HashMap::from([
            (PIPELINE_PROPERTY.to_owned(), self.config.pipeline.clone()),
            (STREAM_PROPERTY.to_owned(), self.config.stream.clone()),
            (INCARNATION_PROPERTY.to_owned(), incarnation),
            (EPOCH_PROPERTY.to_owned(), self.config.epoch.to_string()),
            (FROM_SUMMARY.to_owned(), self.committed.to_string()),
            (TO_SUMMARY.to_owned(), to.to_string()),
            (DATA_SNAPSHOT_SUMMARY.to_owned(), data_snapshot.to_string()),
        ])
    }

    /// Makes everything that was applied visible, with `to`. True if the table has a new snapshot; a table
    /// without changes is left alone.
    ///
    /// # Errors
    /// Fenced, edited by somebody else, or the catalog or the store's.
    pub async fn commit(&mut self, to: Offset) -> Result<bool, LakeError> {
        let replaces = match &self.standing {
            Standing::Whole => false,
            Standing::Beside(beside) if beside.ended => true,
            Standing::Waiting(_) | Standing::Beside(_) => return Ok(false),
        };
        self.spill().await?;
        if self.source_is_new {
            // Columns come also where no row does.
            self.ensure_schema().await?;
        }
        if self.pending.is_empty() && !replaces {
            return Ok(false);
        }
        let mut change = Change {
            removed: std::mem::take(&mut self.pending.removed),
            ..Change::default()
        };
        let deletes = self.deletes(&mut change).await?;
        change.deletes = deletes;
        change.added = std::mem::take(&mut self.pending.added)
            .into_iter()
            .collect();
        // Named by its own id, which is not known before it is staged: 0 stands for it.
        change.summary = self.own_summary(to, 0);
        let done = self.commit_change(change, to, 0).await;
        if Bug::CountsFailed.is_planted() && done.as_ref().is_err_and(LakeError::is_transient) {
            return Ok(false);
        }
        done.map(|()| true)
    }

    /// Writes the delete files of the data files that have new ones. Data files without a row left leave.
    async fn deletes(&mut self, change: &mut Change) -> Result<Vec<(u32, DataFile)>, LakeError> {
        let mut due = Vec::new();
        for (file, new) in std::mem::take(&mut self.pending.deleted) {
            if change.removed.contains(&file) {
                continue;
            }
            let all = if let Some(added) = self.pending.added.get(&file) {
                if new.len() == added.record_count() {
                    let key = self.warehouse.key(added.file_path())?;
                    self.warehouse.store().delete(key).await?;
                    self.pending.added.remove(&file);
                    continue;
                }
                new
            } else {
                let before = self.deleted_of(file).await?;
                let all = &before | &new;
                let rows = self.live.files.get(&file).map_or(0, |live| live.rows);
                if all.len() == u64::from(rows) {
                    change.removed.insert(file);
                    self.deleted.remove(&file);
                    continue;
                }
                if all == before {
                    continue;
                }
                all
            };
            let data = match self.pending.added.get(&file) {
                Some(added) => added.file_path().to_owned(),
                None => self.live.files[&file].path.clone(),
            };
            due.push((file, data, all));
        }
        if self.deleted.len() + due.len() > DELETED_KEPT_MAX {
            self.deleted.clear();
        }
        let location = self.metadata.location().to_owned();
        let warehouse = &self.warehouse;
        let written: Vec<(u32, DataFile)> = futures_util::stream::iter(&due)
            .map(|(file, data, all)| {
                let path = format!("{location}/data/{}-deletes.parquet", uuid::Uuid::now_v7());
                async move {
                    let written = write_position_deletes(warehouse, &path, data, all).await?;
                    Ok::<_, LakeError>((*file, written))
                }
            })
            .buffer_unordered(WRITES_AT_ONCE)
            .try_collect()
            .await?;
        self.deleted
            .extend(due.into_iter().map(|(file, _, all)| (file, all)));
        Ok(written)
    }

    /// Stages the change and commits it; `data_snapshot` 0 stands for the new snapshot itself.
    async fn commit_change(
        &mut self,
        change: Change,
        to: Offset,
        data_snapshot: i64,
    ) -> Result<(), LakeError> {
        let replacing = match &self.standing {
            Standing::Beside(beside) => Some(beside),
            Standing::Whole | Standing::Waiting(_) => None,
        };
        let mut staged = stage(
            &self.warehouse,
            replacing.map_or(&self.metadata, |beside| &beside.metadata),
            &self.live,
            change,
            now_ms(),
        )
        .await?;
        let id = staged.snapshot.snapshot_id();
        let data_snapshot = if data_snapshot == 0 {
            staged.name_itself(DATA_SNAPSHOT_SUMMARY);
            id
        } else {
            data_snapshot
        };
        let incarnation = self.config.incarnation.0.to_string();
        let mut properties = HashMap::from([
            (OFFSET_PROPERTY.to_owned(), to.to_string()),
            (EPOCH_PROPERTY.to_owned(), self.config.epoch.to_string()),
            (STREAM_PROPERTY.to_owned(), self.config.stream.clone()),
            (INCARNATION_PROPERTY.to_owned(), incarnation),
            (PIPELINE_PROPERTY.to_owned(), self.config.pipeline.clone()),
            (TABLE_PROPERTY.to_owned(), self.source.id.0.to_string()),
        ]);
        // The rows of a table that waits are not of this shape.
        if self.waits().is_none() {
            properties.extend([
                (KEY_PROPERTY.to_owned(), key_property(&self.source)),
                (SCHEMA_PROPERTY.to_owned(), self.source.version.to_string()),
            ]);
        }
        let (set, removed): (Vec<_>, Vec<_>) = std::mem::take(&mut self.pending.properties)
            .into_iter()
            .partition(|(_, value)| !value.is_empty());
        properties.extend(set);
        let mut requirements = self.requirements();
        let mut updates = Vec::new();
        if let Some(beside) = replacing {
            requirements.extend(Beside::requirements(&self.metadata));
            updates = beside.updates();
        }
        updates.extend([
            TableUpdate::AddSnapshot {
                snapshot: staged.snapshot.clone(),
            },
            TableUpdate::SetSnapshotRef {
                ref_name: MAIN_BRANCH.into(),
                reference: SnapshotReference::new(id, SnapshotRetention::branch(None, None, None)),
            },
            TableUpdate::SetProperties {
                updates: properties,
            },
        ]);
        if !removed.is_empty() {
            updates.push(TableUpdate::RemoveProperties {
                removals: removed.into_iter().map(|(name, _)| name).collect(),
            });
        }
        let expired = self.expired().await?;
        if !expired.is_empty() {
            updates.push(TableUpdate::RemoveSnapshots {
                snapshot_ids: expired.iter().map(|(id, _)| *id).collect(),
            });
        }
        // The index is for the new snapshot from here on, and for the old one as long as that is current.
        if self.seed != 0 {
            let before = self.committed_runs.clone().map(|runs| Version {
                runs,
                ..self.version(&self.live, self.data_snapshot)
            });
            let after = self.version(&staged.live, data_snapshot);
            self.write_versions(before.into_iter().chain([after]).collect())?;
        }
        let sent = self.send(id, requirements, updates).await;
        if Bug::DeletesUnknown.is_planted() && sent.is_err() {
            self.delete_added(&staged.live).await?;
        }
        self.metadata = sent?;
        if self.waits().is_none() {
            self.standing = Standing::Whole;
        }
        self.layout = Layout::of(&self.metadata)?;
        self.committed = to;
        self.data_snapshot = data_snapshot;
        self.pending = Pending::default();
        let Staged {
            live,
            replaced,
            snapshot,
        } = staged;
        self.live = live;
        let sequence = snapshot.sequence_number();
        let replaced = replaced.into_iter().map(|path| Garbage { path, sequence });
        self.garbage.extend(replaced);
        if self.seed != 0 {
            self.write_local(expired.into_iter().map(|(_, list)| list).collect())?;
        }
        self.collect_garbage().await
    }

    /// Sends one commit until it is known to have landed or not.
    async fn send(
        &self,
        snapshot_id: i64,
        requirements: Vec<TableRequirement>,
        updates: Vec<TableUpdate>,
    ) -> Result<TableMetadata, LakeError> {
        let mut rest = REST_FIRST;
        let mut tries = 0;
        loop {
            let sent = self
                .catalog
                .commit(&self.config.name, requirements.clone(), updates.clone())
                .await;
            let error = match sent {
                Ok(loaded) => return Ok(loaded.metadata),
                Err(error @ (CatalogError::Refused(_) | CatalogError::Unavailable(_))) => {
                    return Err(error.into());
                }
                Err(error) => error,
            };
            let is_unknown = matches!(error, CatalogError::Unknown(_));
            if Bug::DeletesUnknown.is_planted() && is_unknown {
                return Err(error.into());
            }
            if Bug::LostCounts.is_planted() && is_unknown {
                return self.reload().await;
            }
            if Bug::Rebases.is_planted() && !is_unknown {
                return self.rebase(updates).await;
            }
            if let Some(now) = self.landed(snapshot_id).await? {
                return Ok(now);
            }
            tries += 1;
            // What else of the table changed is read when it is opened again.
            if matches!(error, CatalogError::Conflict(_)) || tries == COMMIT_TRIES {
                return Err(error.into());
            }
            tracing::warn!(table = %self.config.name, error = %error, "a commit is sent again");
            tokio::time::sleep(rest).await;
            rest = (rest * 2).min(REST_MAX);
        }
    }

    /// The table, if the snapshot is in it; `None` if main is where we left it.
    async fn landed(&self, snapshot_id: i64) -> Result<Option<TableMetadata>, LakeError> {
        let mut rest = REST_FIRST;
        loop {
            match self.reload().await {
                // It must still be the current one: behind it a newer owner may have committed.
                Ok(now) if now.current_snapshot_id() == Some(snapshot_id) => return Ok(Some(now)),
                Ok(now)
                    if Bug::FoundBehind.is_planted()
                        && now.snapshot_by_id(snapshot_id).is_some() =>
                {
                    return Ok(Some(now));
                }
                Ok(now) if now.current_snapshot_id() != self.metadata.current_snapshot_id() => {
                    return Err(self.moved(&now));
                }
                Ok(_) => return Ok(None),
                Err(error) if error.is_transient() && rest < REST_MAX => {
                    tokio::time::sleep(rest).await;
                    rest *= 2;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Snapshots to forget with the next commit: their ids and manifest lists. None as long as somebody keeps a tag
    /// or a branch: what that needs is not told from the rest.
    async fn expired(&self) -> Result<Vec<(i64, String)>, LakeError> {
        let said = |name: &str| {
            self.property(name)
                .and_then(|text| text.parse::<i64>().ok())
        };
        let kept_ms = said("history.expire.max-snapshot-age-ms").unwrap_or(SNAPSHOTS_KEPT_FOR_MS);
        let kept_min = said("history.expire.min-snapshots-to-keep")
            .and_then(|kept| usize::try_from(kept).ok())
            .unwrap_or(SNAPSHOTS_KEPT_MIN);
        let oldest = now_ms() - kept_ms;
        let mut snapshots: Vec<_> = self.metadata.snapshots().collect();
        snapshots.sort_by_key(|snapshot| std::cmp::Reverse(snapshot.sequence_number()));
        let due: Vec<_> = snapshots
            .into_iter()
            .skip(kept_min.max(1))
            .filter(|snapshot| snapshot.timestamp_ms() < oldest)
            .map(|s| (s.snapshot_id(), s.manifest_list().to_owned()))
            .collect();
        // A tag may have been set since our last commit.
        if due.len() < EXPIRED_AT_ONCE_MIN || has_references(&self.reload().await?) {
            return Ok(Vec::new());
        }
        Ok(due)
    }

    fn version(&self, live: &Live, data_snapshot: i64) -> Version {
        Version {
            data_snapshot,
            files: live
                .files
                .iter()
                .map(|(number, file)| (*number, file.path.clone()))
                .collect(),
            next_file: self.next_file,
            runs: self.index.names(),
        }
    }

    fn write_versions(&self, versions: Vec<Version>) -> Result<(), LakeError> {
        let state = LocalState {
            format: FORMAT,
            table_uuid: self.metadata.uuid().to_string(),
            seed: self.seed,
            versions,
            garbage: self.garbage.clone(),
        };
        Ok(state.write(&self.config.folder)?)
    }

    /// Stores that the index is of the table's current snapshot, and what only expired snapshots need.
    fn write_local(&mut self, expired_lists: Vec<String>) -> Result<(), LakeError> {
        let lists = expired_lists
            .into_iter()
            .map(|path| Garbage { path, sequence: 0 });
        self.garbage.extend(lists);
        let version = self.version(&self.live, self.data_snapshot);
        let runs = version.runs.clone();
        self.write_versions(vec![version])?;
        KeyIndex::remove_others(&self.config.folder, &runs)?;
        self.committed_runs = Some(runs);
        Ok(())
    }

    /// Deletes the files that no snapshot needs any more. One that cannot be deleted now is tried again.
    async fn collect_garbage(&mut self) -> Result<(), LakeError> {
        let oldest = self
            .metadata
            .snapshots()
            .map(|snapshot| snapshot.sequence_number())
            .min()
            .unwrap_or_default();
        let (due, kept): (Vec<Garbage>, Vec<Garbage>) = std::mem::take(&mut self.garbage)
            .into_iter()
            .partition(|garbage| garbage.sequence <= oldest || Bug::CollectsEarly.is_planted());
        self.garbage = kept;
        if due.is_empty() || has_references(&self.metadata) {
            self.garbage.extend(due);
            return Ok(());
        }
        for garbage in due {
            let Ok(key) = self.warehouse.key(&garbage.path) else {
                continue;
            };
            if self.warehouse.store().delete(key).await.is_err() {
                self.garbage.push(garbage);
            }
        }
        Ok(())
    }
}
