//! A table's columns in the lake: types, field ids, and which source column each holds.
//!
//! | source | lake |
//! |---|---|
//! | bool, int16/32, int64, float32, float64 | boolean, int, long, float, double |
//! | decimal with precision up to 38 | decimal; else string |
//! | text, json, enum, other, interval (ISO 8601) | string |
//! | bytes, uuid, date, time | binary, uuid, date, time |
//! | timestamp, timestamp with time zone | timestamp, timestamptz |
//! | array | list of the element |
//!
//! The catalog may give field ids of its own, and names change: the property `downriver.columns` says which
//! source column a field holds.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use downriver_event::{LogicalType, TableSchema};
use iceberg::spec::{
    ListType, NestedField, NestedFieldRef, PrimitiveType, Schema, TableMetadata, Type,
};

use crate::LakeError;

/// Largest precision of a decimal in the lake.
pub(crate) const DECIMAL_PRECISION_MAX: u32 = 38;
/// Offset of the event that wrote the row.
pub(crate) const OFFSET_FIELD: &str = "_dr_offset";
/// When the source committed it.
pub(crate) const COMMIT_TIME_FIELD: &str = "_dr_commit_ts";
pub(crate) const COLUMNS_PROPERTY: &str = "downriver.columns";

/// What a field of the lake's table holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Holds {
    /// A source column, by its id.
    Column(u32),
    Offset,
    CommitTime,
    /// Somebody else added it: written as NULL.
    Nothing,
}

/// The table's current shape.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    pub(crate) schema: Arc<Schema>,
    pub(crate) arrow: arrow_schema::SchemaRef,
    /// One for each field of `schema`, in order.
    pub(crate) holds: Vec<Holds>,
}

impl Layout {
    pub(crate) fn of(metadata: &TableMetadata) -> Result<Self, LakeError> {
        Self::with(metadata, &mapping_of(metadata))
    }

    /// The layout of a table whose fields hold these source columns.
    pub(crate) fn with(
        metadata: &TableMetadata,
        mapping: &BTreeMap<i32, u32>,
    ) -> Result<Self, LakeError> {
        let schema = metadata.current_schema().clone();
        let holds = schema
            .as_struct()
            .fields()
            .iter()
            .map(|field| match field.name.as_str() {
                OFFSET_FIELD => Holds::Offset,
                COMMIT_TIME_FIELD => Holds::CommitTime,
                _ => mapping
                    .get(&field.id)
                    .map_or(Holds::Nothing, |source| Holds::Column(*source)),
            });
        Ok(Self {
            holds: holds.collect(),
            arrow: Arc::new(iceberg::arrow::schema_to_arrow_schema(&schema)?),
            schema,
        })
    }

    /// Source column by field id.
    pub(crate) fn mapping(&self) -> BTreeMap<i32, u32> {
        let fields = self.schema.as_struct().fields().iter();
        let pairs = fields
            .zip(&self.holds)
            .filter_map(|(field, holds)| match holds {
                Holds::Column(id) => Some((field.id, *id)),
                _ => None,
            });
        pairs.collect()
    }

    pub(crate) fn field_of(&self, column: u32) -> Option<&NestedFieldRef> {
        let at = self
            .holds
            .iter()
            .position(|holds| *holds == Holds::Column(column))?;
        self.schema.as_struct().fields().get(at)
    }

    /// Field ids of the key, in key order.
    pub(crate) fn key_fields(&self, source: &TableSchema) -> Result<Vec<i32>, LakeError> {
        source
            .telling()
            .into_iter()
            .map(|id| {
                self.field_of(id).map(|field| field.id).ok_or_else(|| {
                    LakeError::stopped(
                        "DR-3011",
                        format!(
                            "the lake's table of {} has no field for key column {id}",
                            source.qualified_name()
                        ),
                        "delete the lake's table and the pipeline, and apply the pipeline again",
                    )
                })
            })
            .collect()
    }
}

/// Source column by field id.
fn mapping_of(metadata: &TableMetadata) -> BTreeMap<i32, u32> {
    let Some(text) = metadata.properties().get(COLUMNS_PROPERTY) else {
        return BTreeMap::new();
    };
    let pairs = text.split(',').filter_map(|pair| {
        let (field, column) = pair.split_once(':')?;
        Some((field.parse().ok()?, column.parse().ok()?))
    });
    pairs.collect()
}

/// The property that says which source column a field holds.
pub(crate) fn mapping_property(pairs: &BTreeMap<i32, u32>) -> String {
    let pairs = pairs
        .iter()
        .map(|(field, column)| format!("{field}:{column}"));
    pairs.collect::<Vec<_>>().join(",")
}

/// The lake's type of a source type; `next_id` gives ids to the fields inside it.
pub(crate) fn lake_type(ty: &LogicalType, next_id: &mut i32) -> Type {
    let primitive = match ty {
        LogicalType::Bool => PrimitiveType::Boolean,
        LogicalType::Int16 | LogicalType::Int32 => PrimitiveType::Int,
        LogicalType::Int64 => PrimitiveType::Long,
        LogicalType::Float32 => PrimitiveType::Float,
        LogicalType::Float64 => PrimitiveType::Double,
        LogicalType::Decimal { .. } => match decimal_of(ty) {
            Some((precision, scale)) => PrimitiveType::Decimal { precision, scale },
            None => PrimitiveType::String,
        },
        LogicalType::Bytes => PrimitiveType::Binary,
        LogicalType::Uuid => PrimitiveType::Uuid,
        LogicalType::Date => PrimitiveType::Date,
        LogicalType::Time => PrimitiveType::Time,
        LogicalType::Timestamp => PrimitiveType::Timestamp,
        LogicalType::TimestampTz => PrimitiveType::Timestamptz,
        LogicalType::Text
        | LogicalType::Json
        | LogicalType::Interval
        | LogicalType::Enum { .. }
        | LogicalType::Other => PrimitiveType::String,
        LogicalType::Array(element) => {
            let id = *next_id;
            *next_id += 1;
            let element = lake_type(element, next_id);
            return Type::List(ListType::new(Arc::new(NestedField::list_element(
                id, element, false,
            ))));
        }
    };
    Type::Primitive(primitive)
}

/// Precision and scale of a decimal that the lake can hold as one.
pub(crate) fn decimal_of(ty: &LogicalType) -> Option<(u32, u32)> {
    match ty {
        LogicalType::Decimal { precision, scale } => {
            let scale = u32::try_from(*scale).ok()?;
            ((1..=DECIMAL_PRECISION_MAX).contains(precision) && scale <= *precision)
                .then_some((*precision, scale))
        }
        _ => None,
    }
}

fn may_identify(ty: &Type) -> bool {
    !matches!(
        ty,
        Type::Primitive(PrimitiveType::Float | PrimitiveType::Double)
            | Type::List(_)
            | Type::Map(_)
            | Type::Struct(_)
    )
}

/// The schema of a new table, with its fields' meaning by position.
pub(crate) fn new_schema(source: &TableSchema) -> Result<Schema, LakeError> {
    refuse_own_names(source)?;
    let columns = i32::try_from(source.columns.len()).expect("a table has few columns");
    // Nested ids come after those of the top level, as catalogs that give their own do.
    let mut nested = columns + 3;
    let mut fields: Vec<NestedFieldRef> = Vec::new();
    for (column, id) in source.columns.iter().zip(1..) {
        let ty = lake_type(&column.ty, &mut nested);
        let required = source.key.contains(&column.id);
        fields.push(Arc::new(NestedField::new(id, &column.name, ty, required)));
    }
    fields.push(Arc::new(NestedField::optional(
        columns + 1,
        OFFSET_FIELD,
        Type::Primitive(PrimitiveType::Long),
    )));
    fields.push(Arc::new(NestedField::optional(
        columns + 2,
        COMMIT_TIME_FIELD,
        Type::Primitive(PrimitiveType::Timestamptz),
    )));
    let key: Vec<&NestedFieldRef> = source
        .key_indexes()
        .into_iter()
        .map(|at| &fields[at])
        .collect();
    let identifiers = identifiers(&key);
    Ok(Schema::builder()
        .with_fields(fields)
        .with_identifier_field_ids(identifiers)
        .build()?)
}

/// Ids of a key's fields, if the format lets all of them identify a row.
pub(crate) fn identifiers(key: &[&NestedFieldRef]) -> Vec<i32> {
    if key.iter().all(|field| may_identify(&field.field_type)) {
        key.iter().map(|field| field.id).collect()
    } else {
        Vec::new()
    }
}

pub(crate) fn refuse_own_names(source: &TableSchema) -> Result<(), LakeError> {
    let own = |name: &str| {
        name.eq_ignore_ascii_case(OFFSET_FIELD) || name.eq_ignore_ascii_case(COMMIT_TIME_FIELD)
    };
    if let Some(column) = source.columns.iter().find(|column| own(&column.name)) {
        return Err(LakeError::stopped(
            "DR-3013",
            format!(
                "column {:?} of {} has the name of a column of our own in the lake",
                column.name,
                source.qualified_name()
            ),
            "rename the column, or exclude the table from the pipeline",
        ));
    }
    for (at, column) in source.columns.iter().enumerate() {
        if source.columns[..at]
            .iter()
            .any(|other| other.name.eq_ignore_ascii_case(&column.name))
        {
            return Err(LakeError::stopped(
                "DR-3013",
                format!(
                    "two columns of {} are called {:?} in engines that ignore case",
                    source.qualified_name(),
                    column.name.to_lowercase()
                ),
                "rename one of them, or exclude the table from the pipeline",
            ));
        }
    }
    Ok(())
}

/// Which column each field of a table that was just made holds: by name, as it was asked for.
pub(crate) fn mapping_by_name(
    metadata: &TableMetadata,
    source: &TableSchema,
) -> BTreeMap<i32, u32> {
    let ids: HashMap<&str, u32> = source
        .columns
        .iter()
        .map(|column| (column.name.as_str(), column.id))
        .collect();
    let fields = metadata.current_schema().as_struct().fields();
    fields
        .iter()
        .filter_map(|field| Some((field.id, *ids.get(field.name.as_str())?)))
        .collect()
}

/// What has to change in the lake's schema so that it holds every column of `source`.
pub(crate) struct Evolution {
    pub(crate) schema: Schema,
    pub(crate) mapping: BTreeMap<i32, u32>,
}

/// `None` if nothing has to change. Columns that the source has no more keep their field.
pub(crate) fn evolve(
    metadata: &TableMetadata,
    layout: &Layout,
    source: &TableSchema,
) -> Result<Option<Evolution>, LakeError> {
    refuse_own_names(source)?;
    let mut mapping = layout.mapping();
    let mut next_id = metadata.last_column_id() + 1;
    let mut fields: Vec<NestedFieldRef> = layout.schema.as_struct().fields().to_vec();
    let mut changed = false;
    // The source may reuse the name of a column that it dropped, for a new one or for another that is renamed.
    for (field, holds) in fields.iter_mut().zip(&layout.holds) {
        let dropped =
            matches!(holds, Holds::Column(id) if source.columns.iter().all(|c| c.id != *id));
        let name = field.name.to_lowercase();
        if dropped && source.columns.iter().any(|c| c.name.to_lowercase() == name) {
            let mut renamed = (**field).clone();
            renamed.name = format!("{}_dropped_{}", field.name, field.id);
            *field = Arc::new(renamed);
            changed = true;
        }
    }
    for column in &source.columns {
        let Some(at) = layout
            .holds
            .iter()
            .position(|holds| *holds == Holds::Column(column.id))
        else {
            let id = next_id;
            next_id += 1;
            let ty = lake_type(&column.ty, &mut next_id);
            fields.push(Arc::new(NestedField::optional(id, &column.name, ty)));
            mapping.insert(id, column.id);
            changed = true;
            continue;
        };
        let field = fields[at].clone();
        let same = same_type(&field.field_type, &column.ty);
        if !same {
            return Err(LakeError::stopped(
                "DR-3014",
                format!(
                    "the type of column {:?} of {} changed to {}: the lake holds {}",
                    column.name,
                    source.qualified_name(),
                    column.source_type,
                    field.field_type
                ),
                "downriver resnapshot PIPELINE --tables SCHEMA.TABLE: a new snapshot replaces the table's rows",
            ));
        }
        if field.name != column.name {
            let mut renamed = (*field).clone();
            renamed.name.clone_from(&column.name);
            fields[at] = Arc::new(renamed);
            changed = true;
        }
    }
    if !changed {
        return Ok(None);
    }
    let schema = Schema::builder()
        .with_fields(fields)
        .with_identifier_field_ids(layout.schema.identifier_field_ids())
        .build()?;
    Ok(Some(Evolution { schema, mapping }))
}

pub(crate) fn same_type(field: &Type, ty: &LogicalType) -> bool {
    match (field, ty) {
        (Type::List(list), LogicalType::Array(element)) => {
            same_type(&list.element_field.field_type, element)
        }
        (Type::Primitive(_), _) => *field == lake_type(ty, &mut 0),
        _ => false,
    }
}
