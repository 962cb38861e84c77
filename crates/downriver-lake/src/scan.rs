//! Reads a table's rows at one snapshot, as digests that can be compared with those of the source's rows.
//!
//! A row's digest is over its values in the lake's types, in the order of the source's columns: what a row of the
//! source becomes in the lake is computed with the same code that writes it.

use std::sync::Arc;

use arrow_array::{Array, ArrayRef};
use downriver_event::block::RowGroup;
use downriver_event::{LogicalType, TableSchema};
use futures_util::TryStreamExt as _;

use crate::catalog::{Catalog, TableName};
use crate::data::{all_but, read_position_deletes, read_rows};
use crate::encoding::{self, Cell, write_canonical, write_exact};
use crate::index::KeyHash;
use crate::schema::{Holds, Layout};
use crate::snapshot::Live;
use crate::table::ignored_columns;
use crate::{LakeError, Warehouse};

/// Seed of the digests: both sides of a comparison use the same.
const SEED: u64 = 0;

/// A row, known by its key and by all of its values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Digest {
    pub key: u128,
    pub row: u128,
}

/// A table at one of its snapshots.
pub struct TableScan {
    warehouse: Warehouse,
    layout: Layout,
    live: Live,
    source: Arc<TableSchema>,
    /// Places in the layout: of the key in key order, and of the source's columns in their order.
    key: Vec<usize>,
    columns: Vec<(usize, u32, LogicalType)>,
}

impl TableScan {
    /// # Errors
    /// The table or its snapshot is gone, or does not have the source's columns.
    pub async fn open(
        catalog: &dyn Catalog,
        warehouse: Warehouse,
        name: &TableName,
        snapshot: i64,
        source: Arc<TableSchema>,
    ) -> Result<Self, LakeError> {
        let gone = || {
            LakeError::stopped(
                "DR-3021",
                format!("table {name} or its snapshot {snapshot} is gone"),
                "verify again",
            )
        };
        let metadata = catalog.load(name).await?.ok_or_else(gone)?.metadata;
        let at = metadata.snapshot_by_id(snapshot).ok_or_else(gone)?.clone();
        let mut number = 0;
        let live = Live::load(&warehouse, &metadata, &at, |_| {
            number += 1;
            number
        })
        .await?;
        let layout = Layout::of(&metadata)?;
        let place = |id: u32| {
            let at = layout.holds.iter().position(|h| *h == Holds::Column(id));
            at.ok_or_else(|| {
                LakeError::stopped(
                    "DR-3011",
                    format!("table {name} does not have column {id} of its source yet"),
                    "verify again when the table has caught up",
                )
            })
        };
        // What the table leaves out by the pipeline's policy is no difference.
        let ignored = ignored_columns(&metadata);
        let columns = source
            .columns
            .iter()
            .filter(|column| !ignored.contains(&column.id))
            .map(|column| Ok((place(column.id)?, column.id, column.ty.clone())))
            .collect::<Result<_, LakeError>>()?;
        let key = source.telling().into_iter().map(place);
        Ok(Self {
            key: key.collect::<Result<_, _>>()?,
            columns,
            warehouse,
            layout,
            live,
            source,
        })
    }

    /// Rows that the snapshot has.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.live.rows()
    }

    /// Every row of the snapshot: its digest, and its key as text when that is asked for.
    ///
    /// # Errors
    /// The store's, or a file that is not what it should be.
    pub async fn digests(
        &self,
        mut each: impl FnMut(Digest, &dyn Fn() -> String) -> std::io::Result<()>,
    ) -> Result<(), LakeError> {
        let all = self.layout.schema.as_struct().fields();
        let ids: Vec<i32> = self.columns.iter().map(|(at, _, _)| all[*at].id).collect();
        for file in self.live.files.values() {
            let deleted = match &file.deletes {
                Some(deletes) => {
                    let (path, bytes) =
                        (deletes.file.file_path(), deletes.file.file_size_in_bytes());
                    read_position_deletes(&self.warehouse, path, bytes).await?
                }
                None => roaring::RoaringBitmap::new(),
            };
            let selected = Some(all_but(&deleted, file.rows));
            let arrow = &self.layout.arrow;
            let stream = read_rows(
                &self.warehouse,
                &file.path,
                file.bytes,
                arrow,
                &ids,
                selected,
            )
            .await?;
            let mut stream = std::pin::pin!(stream);
            while let Some(batch) = stream.try_next().await? {
                self.digest(batch.columns(), batch.num_rows(), &mut each)?;
            }
        }
        Ok(())
    }

    /// The rows of a group that was read from the source, as they would be in the lake.
    ///
    /// # Errors
    /// A value that the lake cannot hold.
    pub fn digest_group(
        &self,
        group: &RowGroup,
        mut each: impl FnMut(Digest, &dyn Fn() -> String) -> std::io::Result<()>,
    ) -> Result<(), LakeError> {
        let arrays = self
            .columns
            .iter()
            .map(|(at, id, ty)| {
                let column = group.new_column(*id);
                let cells: Vec<Cell<'_>> = (0..group.rows())
                    .map(|row| column.map(|column| (column, row)))
                    .collect();
                encoding::column(self.layout.arrow.field(*at), ty, &cells).map_err(|error| {
                    LakeError::stopped(
                        "DR-3020",
                        format!(
                            "column {id} of {} cannot hold {} in the lake",
                            self.source.qualified_name(),
                            error.what
                        ),
                        "correct the value at the source",
                    )
                })
            })
            .collect::<Result<Vec<ArrayRef>, _>>()?;
        self.digest(&arrays, group.rows(), &mut each)
    }

    fn digest(
        &self,
        arrays: &[ArrayRef],
        rows: usize,
        each: &mut impl FnMut(Digest, &dyn Fn() -> String) -> std::io::Result<()>,
    ) -> Result<(), LakeError> {
        let key: Vec<&ArrayRef> = self
            .key
            .iter()
            .filter_map(|place| self.columns.iter().position(|(at, _, _)| at == place))
            .map(|at| &arrays[at])
            .collect();
        let write = if self.source.is_bag() {
            write_exact
        } else {
            write_canonical
        };
        let (mut of_key, mut of_row) = (Vec::new(), Vec::new());
        for row in 0..rows {
            of_key.clear();
            of_row.clear();
            for array in &key {
                write(array, row, &mut of_key);
            }
            for array in arrays {
                write(array, row, &mut of_row);
            }
            let digest = Digest {
                key: KeyHash::of(&of_key, SEED).0,
                row: KeyHash::of(&of_row, SEED).0,
            };
            let text = || {
                let parts: Vec<String> = key.iter().map(|array| value_text(array, row)).collect();
                parts.join(", ")
            };
            each(digest, &text)?;
        }
        Ok(())
    }
}

/// A key's value for people.
fn value_text(array: &ArrayRef, row: usize) -> String {
    use arrow_array::cast::AsArray as _;
    use arrow_array::types::{Int32Type, Int64Type};
    use arrow_schema::DataType;
    if array.is_null(row) {
        return "null".into();
    }
    match array.data_type() {
        DataType::Int32 => array.as_primitive::<Int32Type>().value(row).to_string(),
        DataType::Int64 => array.as_primitive::<Int64Type>().value(row).to_string(),
        DataType::Utf8 => format!("{:?}", array.as_string::<i32>().value(row)),
        DataType::FixedSizeBinary(16) => {
            let bytes = array.as_fixed_size_binary().value(row);
            bytes
                .try_into()
                .map(|bytes| uuid::Uuid::from_bytes(bytes).to_string())
                .unwrap_or_default()
        }
        _ => {
            let value = array.slice(row, 1);
            format!("{value:?}")
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(" ")
        }
    }
}
