//! What a table's current snapshot holds, and the next one: its manifests and its list.
//!
//! At most one position delete file belongs to a data file; a new one replaces it in the same snapshot. All
//! delete files stand in one manifest, which is written anew when one changes. A data file whose rows are all
//! deleted leaves the table.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use iceberg::spec::{
    DataFile, ManifestContentType, ManifestFile, ManifestList, ManifestListWriter,
    ManifestWriterBuilder, Operation, Snapshot, SnapshotSummaryCollector, Summary, TableMetadata,
};

use crate::{LakeError, Warehouse};

/// Data manifests above which the small ones are merged.
const MANIFESTS_MAX: usize = 30;
/// Entries of a manifest that is merged no more.
const MANIFEST_ENTRIES_MAX: u32 = 5_000;

#[derive(Clone, Debug)]
pub(crate) struct LiveFile {
    pub(crate) path: String,
    pub(crate) bytes: u64,
    pub(crate) rows: u32,
    /// Of the commit that added it.
    pub(crate) sequence: i64,
    manifest: Arc<str>,
    pub(crate) deletes: Option<LiveDeletes>,
}

/// The position delete file of a data file.
#[derive(Clone, Debug)]
pub(crate) struct LiveDeletes {
    pub(crate) file: DataFile,
    snapshot: i64,
    sequence: i64,
    file_sequence: i64,
}

/// The current snapshot's content; data files by the number that their table gave them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Live {
    manifests: Vec<ManifestFile>,
    delete_manifests: Vec<ManifestFile>,
    pub(crate) files: BTreeMap<u32, LiveFile>,
}

fn broken(what: String) -> LakeError {
    LakeError::Iceberg(iceberg::Error::new(iceberg::ErrorKind::DataInvalid, what))
}

impl Live {
    /// Reads the snapshot's manifests. `number` gives a data file its number.
    pub(crate) async fn load(
        warehouse: &Warehouse,
        metadata: &TableMetadata,
        snapshot: &Snapshot,
        mut number: impl FnMut(&str) -> u32,
    ) -> Result<Self, LakeError> {
        let bytes = warehouse
            .io()
            .new_input(snapshot.manifest_list())?
            .read()
            .await?;
        let list = ManifestList::parse_with_version(&bytes, metadata.format_version())?;
        let mut live = Self::default();
        let mut deletes: HashMap<String, LiveDeletes> = HashMap::new();
        for manifest in list.entries() {
            let loaded = manifest.load_manifest(warehouse.io()).await?;
            let path: Arc<str> = manifest.manifest_path.as_str().into();
            for entry in loaded.entries().iter().filter(|entry| entry.is_alive()) {
                let file = entry.data_file();
                if manifest.content == ManifestContentType::Data {
                    let rows = u32::try_from(file.record_count())
                        .map_err(|_| broken(format!("{} has over 2^32 rows", file.file_path())))?;
                    live.files.insert(
                        number(file.file_path()),
                        LiveFile {
                            path: file.file_path().to_owned(),
                            bytes: file.file_size_in_bytes(),
                            rows,
                            sequence: entry.sequence_number.unwrap_or_default(),
                            manifest: Arc::clone(&path),
                            deletes: None,
                        },
                    );
                    continue;
                }
                let Some(data) = file.referenced_data_file() else {
                    return Err(broken(format!(
                        "delete file {} is of no single data file",
                        file.file_path()
                    )));
                };
                let numbers = (
                    entry.snapshot_id,
                    entry.sequence_number,
                    entry.file_sequence_number,
                );
                let (Some(snapshot), Some(sequence), Some(file_sequence)) = numbers else {
                    return Err(broken(format!(
                        "delete file {} has no sequence number",
                        file.file_path()
                    )));
                };
                let found = LiveDeletes {
                    file: file.clone(),
                    snapshot,
                    sequence,
                    file_sequence,
                };
                if deletes.insert(data.clone(), found).is_some() {
                    return Err(broken(format!("{data} has two delete files")));
                }
            }
            match manifest.content {
                ManifestContentType::Data => live.manifests.push(manifest.clone()),
                ManifestContentType::Deletes => live.delete_manifests.push(manifest.clone()),
            }
        }
        for file in live.files.values_mut() {
            file.deletes = deletes.remove(&file.path);
        }
        Ok(live)
    }

    /// Rows that readers see.
    pub(crate) fn rows(&self) -> u64 {
        let rows = self.files.values().map(|file| {
            let deleted = file
                .deletes
                .as_ref()
                .map_or(0, |deletes| deletes.file.record_count());
            u64::from(file.rows).saturating_sub(deleted)
        });
        rows.sum()
    }
}

/// What the next snapshot changes.
#[derive(Debug, Default)]
pub(crate) struct Change {
    pub(crate) added: Vec<(u32, DataFile)>,
    /// Files whose rows are all deleted.
    pub(crate) removed: BTreeSet<u32>,
    /// Delete files, each with all deleted positions of its data file.
    pub(crate) deletes: Vec<(u32, DataFile)>,
    /// Our own entries of the summary.
    pub(crate) summary: HashMap<String, String>,
}

/// A snapshot whose files are stored and which no metadata names yet.
#[derive(Debug)]
pub(crate) struct Staged {
    pub(crate) snapshot: Snapshot,
    pub(crate) live: Live,
    /// Files that this snapshot does not need any more, and older ones do.
    pub(crate) replaced: Vec<String>,
}

impl Staged {
    /// Puts the snapshot's own id into its summary.
    pub(crate) fn name_itself(&mut self, property: &str) {
        let snapshot = &self.snapshot;
        let mut summary = snapshot.summary().clone();
        summary
            .additional_properties
            .insert(property.to_owned(), snapshot.snapshot_id().to_string());
        self.snapshot = Snapshot::builder()
            .with_snapshot_id(snapshot.snapshot_id())
            .with_parent_snapshot_id(snapshot.parent_snapshot_id())
            .with_sequence_number(snapshot.sequence_number())
            .with_timestamp_ms(snapshot.timestamp_ms())
            .with_manifest_list(snapshot.manifest_list())
            .with_summary(summary)
            .with_schema_id(snapshot.schema_id().expect("it was staged with one"))
            .build();
    }
}

struct Writer<'a> {
    warehouse: &'a Warehouse,
    metadata: &'a TableMetadata,
    snapshot_id: i64,
    sequence: i64,
    commit: uuid::Uuid,
    manifests: usize,
}

impl Writer<'_> {
    fn manifest(&mut self) -> Result<ManifestWriterBuilder, LakeError> {
        let (location, commit, number) = (self.metadata.location(), self.commit, self.manifests);
        self.manifests += 1;
        let output = self
            .warehouse
            .io()
            .new_output(format!("{location}/metadata/{commit}-m{number}.avro"))?;
        Ok(ManifestWriterBuilder::new(
            output,
            Some(self.snapshot_id),
            self.metadata.current_schema().clone(),
            self.metadata.default_partition_spec().as_ref().clone(),
        ))
    }

    /// The library leaves the numbers to the list; the next snapshot needs them too.
    fn numbered(&self, mut manifest: ManifestFile) -> ManifestFile {
        if manifest.sequence_number < 0 {
            manifest.sequence_number = self.sequence;
        }
        if manifest.min_sequence_number < 0 {
            manifest.min_sequence_number = self.sequence;
        }
        manifest
    }

    /// Writes the live entries of manifests into one, with the removed files as deleted.
    async fn rewrite(
        &mut self,
        manifests: &[&ManifestFile],
        removed: &BTreeSet<&str>,
    ) -> Result<ManifestFile, LakeError> {
        let mut writer = self.manifest()?.build_v2_data();
        for manifest in manifests {
            let loaded = manifest.load_manifest(self.warehouse.io()).await?;
            for entry in loaded.entries().iter().filter(|entry| entry.is_alive()) {
                let file = entry.data_file.clone();
                let (Some(snapshot), Some(sequence)) = (entry.snapshot_id, entry.sequence_number)
                else {
                    return Err(broken(format!(
                        "{} has no sequence number",
                        file.file_path()
                    )));
                };
                if removed.contains(file.file_path()) {
                    writer.add_delete_file(file, sequence, entry.file_sequence_number)?;
                } else {
                    writer.add_existing_file(
                        file,
                        snapshot,
                        sequence,
                        entry.file_sequence_number,
                    )?;
                }
            }
        }
        let written = writer.write_manifest_file().await?;
        Ok(self.numbered(written))
    }

    async fn data_manifests(
        &mut self,
        before: &Live,
        live: &mut Live,
        change: &Change,
        replaced: &mut Vec<String>,
    ) -> Result<(), LakeError> {
        let removed: BTreeSet<&str> = change
            .removed
            .iter()
            .filter_map(|number| before.files.get(number))
            .map(|file| file.path.as_str())
            .collect();
        let touched: BTreeSet<&str> = change
            .removed
            .iter()
            .filter_map(|number| before.files.get(number))
            .map(|file| &*file.manifest)
            .collect();
        // One whose entries are all gone was kept to say so; nobody needs it now.
        let empty = |m: &&ManifestFile| {
            m.added_files_count.unwrap_or(1) + m.existing_files_count.unwrap_or(1) == 0
        };
        let entries = |m: &ManifestFile| {
            m.added_files_count.unwrap_or_default() + m.existing_files_count.unwrap_or_default()
        };
        let kept: Vec<&ManifestFile> = before.manifests.iter().filter(|m| !empty(m)).collect();
        let merge = kept.len() > MANIFESTS_MAX;
        let (rewritten, kept): (Vec<&ManifestFile>, Vec<&ManifestFile>) =
            kept.into_iter().partition(|m| {
                touched.contains(m.manifest_path.as_str())
                    || (merge && entries(m) < MANIFEST_ENTRIES_MAX)
            });
        live.manifests = kept.into_iter().cloned().collect();
        if !rewritten.is_empty() {
            let written = self.rewrite(&rewritten, &removed).await?;
            let path: Arc<str> = written.manifest_path.as_str().into();
            let old: BTreeSet<&str> = rewritten.iter().map(|m| m.manifest_path.as_str()).collect();
            for file in live.files.values_mut() {
                if old.contains(&*file.manifest) {
                    file.manifest = Arc::clone(&path);
                }
            }
            replaced.extend(old.into_iter().map(str::to_owned));
            live.manifests.push(written);
        }
        replaced.extend(
            before
                .manifests
                .iter()
                .filter(empty)
                .map(|m| m.manifest_path.clone()),
        );
        if !change.added.is_empty() {
            let mut writer = self.manifest()?.build_v2_data();
            for (_, file) in &change.added {
                writer.add_file(file.clone(), -1)?;
            }
            let written = writer.write_manifest_file().await?;
            let written = self.numbered(written);
            let path: Arc<str> = written.manifest_path.as_str().into();
            for (number, file) in &change.added {
                live.files.insert(
                    *number,
                    LiveFile {
                        path: file.file_path().to_owned(),
                        bytes: file.file_size_in_bytes(),
                        rows: u32::try_from(file.record_count()).expect("rows are counted so"),
                        sequence: self.sequence,
                        manifest: Arc::clone(&path),
                        deletes: None,
                    },
                );
            }
            live.manifests.push(written);
        }
        Ok(())
    }

    async fn delete_manifest(
        &mut self,
        before: &Live,
        live: &mut Live,
        change: &Change,
        replaced: &mut Vec<String>,
    ) -> Result<(), LakeError> {
        let touched: BTreeSet<u32> = change
            .deletes
            .iter()
            .map(|(number, _)| *number)
            .chain(change.removed.iter().copied())
            .collect();
        let gone: Vec<&LiveDeletes> = touched
            .iter()
            .filter_map(|number| before.files.get(number)?.deletes.as_ref())
            .collect();
        let nothing = change.deletes.is_empty() && gone.is_empty();
        let empty = before
            .delete_manifests
            .iter()
            .all(|m| m.added_files_count.unwrap_or(1) + m.existing_files_count.unwrap_or(1) == 0);
        if nothing {
            if !empty {
                live.delete_manifests.clone_from(&before.delete_manifests);
            }
            return Ok(());
        }
        let mut writer = self.manifest()?.build_v2_deletes();
        for (number, file) in &before.files {
            let Some(deletes) = file.deletes.as_ref().filter(|_| !touched.contains(number)) else {
                continue;
            };
            writer.add_existing_file(
                deletes.file.clone(),
                deletes.snapshot,
                deletes.sequence,
                Some(deletes.file_sequence),
            )?;
        }
        for deletes in gone {
            writer.add_delete_file(
                deletes.file.clone(),
                deletes.sequence,
                Some(deletes.file_sequence),
            )?;
            replaced.push(deletes.file.file_path().to_owned());
        }
        for (number, file) in &change.deletes {
            writer.add_file(file.clone(), -1)?;
            if let Some(data) = live.files.get_mut(number) {
                data.deletes = Some(LiveDeletes {
                    file: file.clone(),
                    snapshot: self.snapshot_id,
                    sequence: self.sequence,
                    file_sequence: self.sequence,
                });
            }
        }
        let written = writer.write_manifest_file().await?;
        replaced.extend(
            before
                .delete_manifests
                .iter()
                .map(|m| m.manifest_path.clone()),
        );
        live.delete_manifests = vec![self.numbered(written)];
        Ok(())
    }
}

/// Writes the manifests and the list of the snapshot that follows `metadata`'s current one.
pub(crate) async fn stage(
    warehouse: &Warehouse,
    metadata: &TableMetadata,
    before: &Live,
    change: Change,
    now_ms: i64,
) -> Result<Staged, LakeError> {
    let sequence = metadata.last_sequence_number() + 1;
    let commit = uuid::Uuid::now_v7();
    let snapshot_id = i64::from_le_bytes(
        uuid::Uuid::new_v4().as_bytes()[..8]
            .try_into()
            .expect("eight bytes"),
    ) & i64::MAX;
    let mut writer = Writer {
        warehouse,
        metadata,
        snapshot_id,
        sequence,
        commit,
        manifests: 0,
    };
    let mut replaced = Vec::new();
    let mut live = Live {
        files: before.files.clone(),
        ..Live::default()
    };
    for number in &change.removed {
        if let Some(file) = live.files.remove(number) {
            replaced.push(file.path);
        }
    }
    writer
        .data_manifests(before, &mut live, &change, &mut replaced)
        .await?;
    writer
        .delete_manifest(before, &mut live, &change, &mut replaced)
        .await?;

    let parent = metadata.current_snapshot();
    let list_path = format!(
        "{}/metadata/snap-{snapshot_id}-0-{commit}.avro",
        metadata.location()
    );
    let output = warehouse.io().new_output(&list_path)?.writer().await?;
    let parent_id = parent.map(|parent| parent.snapshot_id());
    let mut list = ManifestListWriter::v2(output, snapshot_id, parent_id, sequence);
    list.add_manifests(live.manifests.iter().chain(&live.delete_manifests).cloned())?;
    list.close().await?;

    let snapshot = Snapshot::builder()
        .with_snapshot_id(snapshot_id)
        .with_parent_snapshot_id(parent_id)
        .with_sequence_number(sequence)
        // Snapshots of a table must not go back in time, whatever the clock does.
        .with_timestamp_ms(now_ms.max(metadata.last_updated_ms()))
        .with_manifest_list(list_path)
        .with_summary(summary(metadata, before, &live, change))
        .with_schema_id(metadata.current_schema_id())
        .build();
    Ok(Staged {
        snapshot,
        live,
        replaced,
    })
}

fn summary(metadata: &TableMetadata, before: &Live, live: &Live, change: Change) -> Summary {
    let mut collector = SnapshotSummaryCollector::default();
    let schema = metadata.current_schema();
    let spec = metadata.default_partition_spec();
    for (_, file) in change.added.iter().chain(&change.deletes) {
        collector.add_file(file, schema.clone(), spec.clone());
    }
    let operation = if change.removed.is_empty() && change.deletes.is_empty() {
        Operation::Append
    } else {
        Operation::Overwrite
    };
    let mut properties = collector.build();
    if !change.removed.is_empty() {
        let rows: u64 = change
            .removed
            .iter()
            .filter_map(|number| before.files.get(number))
            .map(|file| u64::from(file.rows))
            .sum();
        properties.insert(
            "deleted-data-files".into(),
            change.removed.len().to_string(),
        );
        properties.insert("deleted-records".into(), rows.to_string());
    }
    let deletes: Vec<&LiveDeletes> = live
        .files
        .values()
        .filter_map(|file| file.deletes.as_ref())
        .collect();
    let positions: u64 = deletes.iter().map(|d| d.file.record_count()).sum();
    let rows: u64 = live.files.values().map(|file| u64::from(file.rows)).sum();
    let bytes: u64 = live.files.values().map(|file| file.bytes).sum::<u64>()
        + deletes
            .iter()
            .map(|d| d.file.file_size_in_bytes())
            .sum::<u64>();
    for (name, total) in [
        ("total-data-files", live.files.len() as u64),
        ("total-delete-files", deletes.len() as u64),
        ("total-records", rows),
        ("total-position-deletes", positions),
        ("total-equality-deletes", 0),
        ("total-files-size", bytes),
    ] {
        properties.insert(name.into(), total.to_string());
    }
    properties.extend(change.summary);
    Summary {
        operation,
        additional_properties: properties,
    }
}
