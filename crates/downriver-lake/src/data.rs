//! Parquet files of a table: rows, and positions of rows that are deleted.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_array::cast::AsArray as _;
use arrow_array::types::Int64Type;
use arrow_array::{Array, ArrayRef, Int64Array, RecordBatch, StringArray};
use futures_util::{Stream, TryStreamExt as _};
use iceberg::arrow::ArrowFileReader;
use iceberg::io::FileMetadata;
use iceberg::spec::{
    DataContentType, DataFile, DataFileBuilder, NestedField, PrimitiveType, Schema, SchemaRef,
    Struct, Type,
};
use iceberg::writer::file_writer::{
    FileWriter as _, FileWriterBuilder as _, ParquetWriter, ParquetWriterBuilder,
};
use parquet::arrow::arrow_reader::{RowSelection, RowSelector};
use parquet::arrow::{PARQUET_FIELD_ID_META_KEY, ParquetRecordBatchStreamBuilder, ProjectionMask};
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use roaring::RoaringBitmap;

use crate::{LakeError, Warehouse};

/// Reserved by the specification for position delete files.
const FILE_PATH_FIELD: i32 = 2_147_483_546;
const POSITION_FIELD: i32 = 2_147_483_545;
/// Encoded bytes of a row group, which are held in memory while it is written.
const ROW_GROUP_BYTES_MAX: usize = 8 << 20;
const READ_ROWS: usize = 4_096;

fn properties() -> WriterProperties {
    WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_max_row_group_bytes(Some(ROW_GROUP_BYTES_MAX))
        .set_statistics_enabled(EnabledStatistics::Chunk)
        .set_statistics_truncate_length(None)
        .build()
}

/// A data file that is being written.
pub(crate) struct DataWriter {
    writer: ParquetWriter,
    pub(crate) rows: u32,
}

impl DataWriter {
    pub(crate) async fn create(
        warehouse: &Warehouse,
        path: &str,
        schema: SchemaRef,
    ) -> Result<Self, LakeError> {
        let output = warehouse.io().new_output(path)?;
        let writer = ParquetWriterBuilder::new(properties(), schema)
            .build(output)
            .await?;
        Ok(Self { writer, rows: 0 })
    }

    pub(crate) async fn write(&mut self, batch: &RecordBatch) -> Result<(), LakeError> {
        self.rows += u32::try_from(batch.num_rows()).expect("a batch is small");
        Ok(self.writer.write(batch).await?)
    }

    pub(crate) async fn close(self) -> Result<DataFile, LakeError> {
        let mut built = self.writer.close().await?;
        let file = built.pop().ok_or_else(|| nothing_written("a data file"))?;
        finish(file, DataContentType::Data, None)
    }
}

fn nothing_written(what: &str) -> LakeError {
    LakeError::Iceberg(iceberg::Error::new(
        iceberg::ErrorKind::Unexpected,
        format!("{what} has no rows"),
    ))
}

fn finish(
    mut file: DataFileBuilder,
    content: DataContentType,
    referenced: Option<String>,
) -> Result<DataFile, LakeError> {
    file.content(content)
        .partition(Struct::empty())
        .partition_spec_id(0)
        .referenced_data_file(referenced)
        .build()
        .map_err(|error| {
            LakeError::Iceberg(iceberg::Error::new(
                iceberg::ErrorKind::Unexpected,
                error.to_string(),
            ))
        })
}

/// Writes the deleted positions of one data file.
pub(crate) async fn write_position_deletes(
    warehouse: &Warehouse,
    path: &str,
    data_path: &str,
    positions: &RoaringBitmap,
) -> Result<DataFile, LakeError> {
    let schema = Arc::new(
        Schema::builder()
            .with_fields(vec![
                NestedField::required(
                    FILE_PATH_FIELD,
                    "file_path",
                    Type::Primitive(PrimitiveType::String),
                )
                .into(),
                NestedField::required(POSITION_FIELD, "pos", Type::Primitive(PrimitiveType::Long))
                    .into(),
            ])
            .build()?,
    );
    let arrow = Arc::new(iceberg::arrow::schema_to_arrow_schema(&schema)?);
    let output = warehouse.io().new_output(path)?;
    let mut writer = ParquetWriterBuilder::new(properties(), schema)
        .build(output)
        .await?;
    let mut positions = positions.iter().map(i64::from);
    loop {
        let batch: Int64Array = positions.by_ref().take(READ_ROWS).collect();
        if batch.is_empty() {
            break;
        }
        let paths: StringArray = std::iter::repeat_n(Some(data_path), batch.len()).collect();
        let columns: Vec<ArrayRef> = vec![Arc::new(paths), Arc::new(batch)];
        let batch = RecordBatch::try_new(Arc::clone(&arrow), columns)
            .expect("the columns are the schema's");
        writer.write(&batch).await?;
    }
    let mut built = writer.close().await?;
    let file = built
        .pop()
        .ok_or_else(|| nothing_written("a position delete file"))?;
    finish(
        file,
        DataContentType::PositionDeletes,
        Some(data_path.to_owned()),
    )
}

/// The deleted positions that a file of ours holds.
pub(crate) async fn read_position_deletes(
    warehouse: &Warehouse,
    path: &str,
    bytes: u64,
) -> Result<RoaringBitmap, LakeError> {
    let reader = open(warehouse, path, bytes).await?;
    let mask = mask(&reader, &[POSITION_FIELD]);
    let mut stream = reader.with_projection(mask).build()?;
    let mut positions = RoaringBitmap::new();
    while let Some(batch) = stream.try_next().await? {
        let column = batch.column(0).as_primitive::<Int64Type>();
        positions.extend(
            column
                .values()
                .iter()
                .filter_map(|position| u32::try_from(*position).ok()),
        );
    }
    Ok(positions)
}

type Reader = ParquetRecordBatchStreamBuilder<ArrowFileReader>;

async fn open(warehouse: &Warehouse, path: &str, bytes: u64) -> Result<Reader, LakeError> {
    let input = warehouse.io().new_input(path)?;
    let reader = ArrowFileReader::new(FileMetadata { size: bytes }, input.reader().await?);
    Ok(ParquetRecordBatchStreamBuilder::new(reader).await?)
}

fn field_id(field: &arrow_schema::Field) -> Option<i32> {
    field
        .metadata()
        .get(PARQUET_FIELD_ID_META_KEY)?
        .parse()
        .ok()
}

fn mask(reader: &Reader, fields: &[i32]) -> ProjectionMask {
    let roots = reader
        .schema()
        .fields()
        .iter()
        .enumerate()
        .filter(|(_, field)| field_id(field).is_some_and(|id| fields.contains(&id)))
        .map(|(at, _)| at);
    ProjectionMask::roots(reader.parquet_schema(), roots.collect::<Vec<_>>())
}

/// The rows `selected` of a data file, in order, as batches with the columns `fields` of `arrow`. A field that
/// the file does not have is NULL.
pub(crate) async fn read_rows(
    warehouse: &Warehouse,
    path: &str,
    bytes: u64,
    arrow: &arrow_schema::SchemaRef,
    fields: &[i32],
    selected: Option<RowSelection>,
) -> Result<impl Stream<Item = Result<RecordBatch, LakeError>> + use<>, LakeError> {
    let reader = open(warehouse, path, bytes).await?;
    let mask = mask(&reader, fields);
    let mut reader = reader.with_projection(mask).with_batch_size(READ_ROWS);
    if let Some(selected) = selected {
        reader = reader.with_row_selection(selected);
    }
    let by_id: HashMap<i32, usize> = arrow
        .fields()
        .iter()
        .enumerate()
        .filter_map(|(at, field)| Some((field_id(field)?, at)))
        .collect();
    let wanted: Vec<usize> = fields
        .iter()
        .filter_map(|id| by_id.get(id).copied())
        .collect();
    let schema = Arc::new(arrow.project(&wanted).expect("the fields are the schema's"));
    let path = path.to_owned();
    let stream = reader.build()?.map_err(LakeError::from);
    Ok(stream.and_then(move |batch| std::future::ready(as_wanted(&path, &schema, &batch))))
}

fn as_wanted(
    path: &str,
    schema: &arrow_schema::SchemaRef,
    batch: &RecordBatch,
) -> Result<RecordBatch, LakeError> {
    let rows = batch.num_rows();
    let in_file = batch.schema();
    let column = |field: &arrow_schema::FieldRef| {
        let id = field_id(field);
        let at = in_file.fields().iter().position(|f| field_id(f) == id);
        match at {
            Some(at) if batch.column(at).data_type() == field.data_type() => {
                Ok(Arc::clone(batch.column(at)))
            }
            Some(at) => same_data(batch.column(at), field.data_type()).ok_or_else(|| {
                LakeError::Iceberg(iceberg::Error::new(
                    iceberg::ErrorKind::DataInvalid,
                    format!(
                        "column {} of {path} is {} and not {}",
                        field.name(),
                        batch.column(at).data_type(),
                        field.data_type()
                    ),
                ))
            }),
            None => Ok(arrow_array::new_null_array(field.data_type(), rows)),
        }
    };
    let columns: Vec<ArrayRef> = schema
        .fields()
        .iter()
        .map(column)
        .collect::<Result<_, _>>()?;
    let options = arrow_array::RecordBatchOptions::new().with_row_count(Some(rows));
    Ok(
        RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)
            .expect("every column has the schema's type"),
    )
}

/// The same data under a type that differs in names and metadata only.
fn same_data(array: &ArrayRef, to: &arrow_schema::DataType) -> Option<ArrayRef> {
    let (arrow_schema::DataType::List(_), arrow_schema::DataType::List(element)) =
        (array.data_type(), to)
    else {
        return None;
    };
    let list = array.as_list::<i32>();
    if list.values().data_type() != element.data_type() {
        return None;
    }
    Some(Arc::new(arrow_array::ListArray::new(
        Arc::clone(element),
        list.offsets().clone(),
        Arc::clone(list.values()),
        list.nulls().cloned(),
    )))
}

/// Selects just these rows, which ascend.
pub(crate) fn only(rows: &[u32], of: u32) -> RowSelection {
    let mut selectors = Vec::with_capacity(rows.len() * 2 + 1);
    let mut next = 0;
    for row in rows {
        if *row > next {
            selectors.push(RowSelector::skip((row - next) as usize));
        }
        selectors.push(RowSelector::select(1));
        next = row + 1;
    }
    if of > next {
        selectors.push(RowSelector::skip((of - next) as usize));
    }
    RowSelection::from(selectors)
}

/// Selects all rows but these.
pub(crate) fn all_but(deleted: &RoaringBitmap, of: u32) -> RowSelection {
    let mut selectors = Vec::new();
    let mut next = 0;
    for row in deleted {
        if row > next {
            selectors.push(RowSelector::select((row - next) as usize));
        }
        selectors.push(RowSelector::skip(1));
        next = row + 1;
    }
    if of > next {
        selectors.push(RowSelector::select((of - next) as usize));
    }
    RowSelection::from(selectors)
}
