//! Turns the window into a data file and the positions of the rows that it replaces.
//!
//! Rows are sorted by key. Values that the source did not send come from the table's own row of the key (or of
//! the key's predecessor): it is read from its data file just before the new row is written.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use arrow_array::{Array, ArrayRef, Int64Array, RecordBatch, TimestampMicrosecondArray};
use arrow_schema::DataType;
use downriver_event::block::Column;
use downriver_event::{LogicalType, Offset};
use futures_util::TryStreamExt as _;

use super::TableWriter;
use crate::LakeError;
use crate::data::{DataWriter, only, read_rows};
use crate::encoding::{self, Cell, write_canonical};
use crate::index::{KeyHash, Location};
use crate::schema::Holds;
use crate::window::{Found, Held, Window};

/// Rows of a batch, at most; fewer when rows are wide.
const BATCH_ROWS_MAX: usize = 8_192;
const BATCH_ROWS_FIRST: usize = 1_024;
/// Where rows take values from the table, of which nothing is known before they are read.
const BATCH_ROWS_FIRST_PARTIAL: usize = 32;
const BATCH_BYTES: usize = 4 << 20;

impl TableWriter {
    /// Writes everything that was applied into files. They become part of the table with the next commit.
    ///
    /// # Errors
    /// A value that its column cannot hold, a row that the table should have and has not; or the store's.
    pub async fn spill(&mut self) -> Result<(), LakeError> {
        if self.window.is_empty() {
            return Ok(());
        }
        self.ensure_schema().await?;
        let window = std::mem::replace(&mut self.window, Window::new(self.seed));
        if self.source.is_bag() {
            return self.spill_bag(&window).await;
        }
        let (keys, _) = self.keys(&window)?;
        let hashes = hash_keys(&keys, window.entries().len(), self.seed);
        let before = self.locate(&hashes)?;

        let mut rows: Vec<u32> = (0..hashes.len())
            .filter(|entry| window.entries()[*entry].version.is_some())
            .map(|entry| u32::try_from(entry).expect("entries are counted so"))
            .collect();
        sort_by_keys(&mut rows, &keys);
        let file = self.write_rows(&window, &rows, &before).await?;

        for at in before.into_iter().flatten() {
            self.pending
                .deleted
                .entry(at.file)
                .or_default()
                .insert(at.row);
        }
        if let Some(file) = file {
            let at = |(entry, row): (&u32, u32)| (hashes[*entry as usize], Location { file, row });
            let entries = rows.iter().zip(0..).map(at).collect();
            self.index
                .add(entries)
                .map_err(|error| self.index_failed(error))?;
            self.rows_written += rows.len() as u64;
        }
        Ok(())
    }

    /// The values of all entries in each column that tells rows apart; and the entries that have one which the lake
    /// cannot hold, so that it does not have their row.
    pub(super) fn keys(
        &self,
        window: &Window,
    ) -> Result<(Vec<ArrayRef>, BTreeSet<usize>), LakeError> {
        let fields = self.layout.schema.as_struct().fields();
        let mut unholdable = BTreeSet::new();
        let key = self.source.telling().into_iter();
        let keys = key.map(|id| {
            let at = self
                .layout
                .holds
                .iter()
                .position(|holds| *holds == Holds::Column(id))
                .ok_or_else(|| self.lost_column(id))?;
            let to = self.layout.arrow.field(at);
            let ty = self.type_of(window, id);
            let ty = ty.ok_or_else(|| self.lost_column(id))?;
            let of_new = columns(window.held(), |held| held.group.new_column(id));
            let of_old = columns(window.held(), |held| held.group.old_column(id));
            let mut cells: Vec<Cell<'_>> = window
                .entries()
                .iter()
                .map(|entry| {
                    let of = if entry.in_old { &of_old } else { &of_new };
                    of[entry.held as usize].map(|column| (column, entry.cell as usize))
                })
                .collect();
            loop {
                let error = match encoding::column(to, &ty, &cells) {
                    Ok(array) => return Ok(array),
                    Err(error) => error,
                };
                match window.entries()[error.at].version {
                    Some(version) => {
                        let offset = window.version(version).offset;
                        return Err(self.unholdable(&fields[at].name, error.what, offset));
                    }
                    // A key that the lake cannot hold is not in it: there is nothing to delete, and NULL finds nothing.
                    None => {
                        cells[error.at] = None;
                        unholdable.insert(error.at);
                    }
                }
            }
        });
        let keys = keys.collect::<Result<_, LakeError>>()?;
        Ok((keys, unholdable))
    }

    fn lost_column(&self, id: u32) -> LakeError {
        LakeError::stopped(
            "DR-3011",
            format!("table {} has no field for key column {id}", self.name()),
            "delete the lake's table and the pipeline, and apply the pipeline again",
        )
    }

    /// The row is named by the event that brought it.
    fn unholdable(&self, column: &str, what: &str, at: Offset) -> LakeError {
        LakeError::stopped(
            "DR-3020",
            format!(
                "column {column:?} of {} cannot hold {what} in the lake: the row is at offset {at}",
                self.source.qualified_name(),
            ),
            "correct the value at the source, or exclude the table from the pipeline; the pipeline goes on from here when it is resumed",
        )
    }

    /// The type of a source column: the newest, or the one it had when it was last there.
    fn type_of(&self, window: &Window, id: u32) -> Option<LogicalType> {
        let schemas = std::iter::once(&self.source)
            .chain(window.held().iter().rev().map(|held| &held.schema));
        for schema in schemas {
            if let Some(at) = schema.column_index(id) {
                return Some(schema.columns[at].ty.clone());
            }
        }
        None
    }

    /// Where the table has each key, if it has it.
    fn locate(&self, hashes: &[KeyHash]) -> Result<Vec<Option<Location>>, LakeError> {
        let mut order: Vec<u32> =
            (0..u32::try_from(hashes.len()).expect("entries are counted so")).collect();
        order.sort_unstable_by_key(|at| hashes[*at as usize]);
        let sorted: Vec<KeyHash> = order.iter().map(|at| hashes[*at as usize]).collect();
        let found = self
            .index
            .lookup(&sorted)
            .map_err(|error| self.index_failed(error))?;
        let mut located = vec![None; hashes.len()];
        for (at, location) in order.into_iter().zip(found) {
            // A file that is gone holds nothing any more.
            let is_there = |location: &Location| {
                self.pending.added.contains_key(&location.file)
                    || (self.live.files.contains_key(&location.file)
                        && !self.pending.removed.contains(&location.file))
            };
            located[at as usize] = location.filter(is_there);
        }
        Ok(located)
    }

    /// Writes the last versions of the entries `rows`, in this order. The file's number.
    pub(super) async fn write_rows(
        &mut self,
        window: &Window,
        rows: &[u32],
        before: &[Option<Location>],
    ) -> Result<Option<u32>, LakeError> {
        if rows.is_empty() {
            return Ok(None);
        }
        let path = format!(
            "{}/data/{}.parquet",
            self.metadata.location(),
            uuid::Uuid::now_v7()
        );
        let schema = self.layout.schema.clone();
        let mut writer = DataWriter::create(&self.warehouse, &path, schema).await?;
        let mut rest = rows;
        let mut batch_rows = if window.is_partial() {
            BATCH_ROWS_FIRST_PARTIAL
        } else {
            BATCH_ROWS_FIRST
        };
        // Wide rows may come again after narrow ones.
        let mut row_bytes_max = 1;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(batch_rows.min(rest.len()));
            let batch = self.batch(window, now, before).await?;
            writer.write(&batch).await?;
            row_bytes_max = row_bytes_max.max(batch.get_array_memory_size() / now.len());
            batch_rows = (BATCH_BYTES / row_bytes_max).clamp(16, BATCH_ROWS_MAX);
            rest = later;
        }
        let number = self.next_file;
        self.next_file += 1;
        self.pending.added.insert(number, writer.close().await?);
        Ok(Some(number))
    }

    async fn batch(
        &self,
        window: &Window,
        entries: &[u32],
        before: &[Option<Location>],
    ) -> Result<RecordBatch, LakeError> {
        let versions: Vec<_> = entries
            .iter()
            .map(|entry| {
                let version = window.entries()[*entry as usize].version;
                window.version(version.expect("only rows that live are written"))
            })
            .collect();
        let mut arrays: Vec<ArrayRef> = Vec::with_capacity(self.layout.holds.len());
        // Of each field, the rows whose value the table has, and where.
        let mut inherited: BTreeMap<usize, Vec<(usize, Location)>> = BTreeMap::new();
        for (at, (holds, field)) in self
            .layout
            .holds
            .iter()
            .zip(self.layout.arrow.fields())
            .enumerate()
        {
            let array: ArrayRef = match holds {
                Holds::Offset => {
                    let offsets = versions
                        .iter()
                        .map(|v| i64::try_from(v.offset.0).unwrap_or(i64::MAX));
                    Arc::new(Int64Array::from_iter_values(offsets))
                }
                Holds::CommitTime => Arc::new(
                    TimestampMicrosecondArray::from_iter_values(
                        versions.iter().map(|version| version.time_us),
                    )
                    .with_data_type(field.data_type().clone()),
                ),
                Holds::Nothing => arrow_array::new_null_array(field.data_type(), versions.len()),
                Holds::Column(id) => {
                    let Some(ty) = self.type_of(window, *id) else {
                        arrays.push(arrow_array::new_null_array(
                            field.data_type(),
                            versions.len(),
                        ));
                        continue;
                    };
                    let new = columns(window.held(), |held| held.group.new_column(*id));
                    let old = columns(window.held(), |held| held.group.old_column(*id));
                    let mut cells: Vec<Cell<'_>> = Vec::with_capacity(versions.len());
                    for (row, version) in versions.iter().enumerate() {
                        let cell = match window.find(version, *id, &new, &old) {
                            Found::Cell(column, cell) => Some((column, cell)),
                            Found::Null => None,
                            Found::Lake(entry) => {
                                match before[entry as usize] {
                                    Some(location) => {
                                        inherited.entry(at).or_default().push((row, location));
                                    }
                                    // The row's chunk comes later and brings the value.
                                    None if self.chunks_are_to_come() => {}
                                    None if window.lacks(version, *id) => {}
                                    None => {
                                        return Err(self.lost_row(version.offset, field.name()));
                                    }
                                }
                                None
                            }
                            Found::Unsent if self.chunks_are_to_come() => None,
                            Found::Unsent | Found::Lost if window.lacks(version, *id) => None,
                            Found::Unsent | Found::Lost => {
                                return Err(self.lost_row(version.offset, field.name()));
                            }
                        };
                        cells.push(cell);
                    }
                    encoding::column(field, &ty, &cells).map_err(|error| {
                        self.unholdable(field.name(), error.what, versions[error.at].offset)
                    })?
                }
            };
            arrays.push(array);
        }
        if !inherited.is_empty() {
            self.inherit(&mut arrays, inherited).await?;
        }
        RecordBatch::try_new(Arc::clone(&self.layout.arrow), arrays).map_err(|error| {
            LakeError::stopped(
                "DR-3020",
                format!(
                    "rows of {} do not fit the lake's table: {error}",
                    self.name()
                ),
                "correct the value at the source, or exclude the table from the pipeline",
            )
        })
    }

    fn lost_row(&self, offset: Offset, column: &str) -> LakeError {
        LakeError::stopped(
            "DR-3012",
            format!(
                "the update at offset {offset} did not send the unchanged value of column {column:?}, and the lake has no row to take it from",
            ),
            "delete the lake's table and the pipeline, and apply the pipeline again",
        )
    }

    /// Puts the values that the table has into the arrays.
    async fn inherit(
        &self,
        arrays: &mut [ArrayRef],
        inherited: BTreeMap<usize, Vec<(usize, Location)>>,
    ) -> Result<(), LakeError> {
        let fields: Vec<usize> = inherited.keys().copied().collect();
        let wanted: BTreeSet<Location> = inherited.values().flatten().map(|(_, at)| *at).collect();
        let mut by_file: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for location in &wanted {
            by_file.entry(location.file).or_default().push(location.row);
        }
        let mut read: Vec<RecordBatch> = Vec::with_capacity(by_file.len());
        let mut place: HashMap<Location, (usize, usize)> = HashMap::new();
        for (file, rows) in by_file {
            let batch = self.read_file_rows(file, &rows, &fields).await?;
            for (at, row) in rows.into_iter().enumerate() {
                place.insert(Location { file, row }, (read.len() + 1, at));
            }
            read.push(batch);
        }
        for (column, (field, cells)) in inherited.into_iter().enumerate() {
            let own = Arc::clone(&arrays[field]);
            let mut indices: Vec<(usize, usize)> = (0..own.len()).map(|row| (0, row)).collect();
            for (row, location) in cells {
                indices[row] = place[&location];
            }
            let mut sources: Vec<&dyn Array> = vec![&own];
            sources.extend(read.iter().map(|batch| batch.column(column) as &dyn Array));
            arrays[field] = arrow_select::interleave::interleave(&sources, &indices)
                .expect("all arrays have the field's type");
        }
        Ok(())
    }

    /// Rows of a data file, in order, with these fields of the layout.
    async fn read_file_rows(
        &self,
        file: u32,
        rows: &[u32],
        fields: &[usize],
    ) -> Result<RecordBatch, LakeError> {
        let (path, bytes, count) = match (self.pending.added.get(&file), self.live.files.get(&file))
        {
            (Some(added), _) => (
                added.file_path().to_owned(),
                added.file_size_in_bytes(),
                u32::try_from(added.record_count()).expect("rows are counted so"),
            ),
            (None, Some(live)) => (live.path.clone(), live.bytes, live.rows),
            (None, None) => unreachable!("a location is of a file that is there"),
        };
        let all = self.layout.schema.as_struct().fields();
        let ids: Vec<i32> = fields.iter().map(|at| all[*at].id).collect();
        let selected = Some(only(rows, count));
        let arrow = &self.layout.arrow;
        let batches: Vec<RecordBatch> =
            read_rows(&self.warehouse, &path, bytes, arrow, &ids, selected)
                .await?
                .try_collect()
                .await?;
        let schema = Arc::new(arrow.project(fields).expect("the fields are the schema's"));
        let batch = arrow_select::concat::concat_batches(&schema, &batches)
            .expect("the batches have the schema");
        if batch.num_rows() == rows.len() {
            Ok(batch)
        } else {
            Err(LakeError::Iceberg(iceberg::Error::new(
                iceberg::ErrorKind::DataInvalid,
                format!(
                    "{path} gave {} rows and not {}",
                    batch.num_rows(),
                    rows.len()
                ),
            )))
        }
    }
}

fn columns<'a>(
    held: &'a [Held],
    of: impl Fn(&'a Held) -> Option<&'a Column>,
) -> Vec<Option<&'a Column>> {
    held.iter().map(of).collect()
}

pub(super) fn hash_keys(keys: &[ArrayRef], rows: usize, seed: u64) -> Vec<KeyHash> {
    let mut bytes = Vec::with_capacity(64);
    (0..rows)
        .map(|row| {
            bytes.clear();
            for key in keys {
                write_canonical(key, row, &mut bytes);
            }
            KeyHash::of(&bytes, seed)
        })
        .collect()
}

pub(super) fn sort_by_keys(rows: &mut Vec<u32>, keys: &[ArrayRef]) {
    let sortable = |key: &ArrayRef| !matches!(key.data_type(), DataType::List(_));
    if !keys.iter().all(sortable) {
        return;
    }
    let indices = arrow_array::UInt32Array::from(rows.clone());
    let columns: Vec<arrow_ord::sort::SortColumn> = keys
        .iter()
        .map(|key| arrow_ord::sort::SortColumn {
            values: arrow_select::take::take(key, &indices, None).expect("rows are of the keys"),
            options: None,
        })
        .collect();
    // The order only makes files smaller and reading faster.
    if let Ok(order) = arrow_ord::sort::lexsort_to_indices(&columns, None) {
        *rows = order.values().iter().map(|at| rows[*at as usize]).collect();
    }
}
