//! Which changes of a source's table the rows of its lake table do not survive, and the lake's schema after one.
//!
//! A changed type may have changed every value, by a `USING` clause or a rounding, and no event tells of it; rows are
//! known by the key that they were written with. So neither is carried over: a generation of the table's snapshot
//! replaces the rows.

use std::collections::BTreeMap;
use std::sync::Arc;

use downriver_event::problem::Problem;
use downriver_event::{LogicalType, TableSchema};
use iceberg::spec::{NestedField, NestedFieldRef, Schema, TableMetadata};

use crate::LakeError;
use crate::schema::{
    COMMIT_TIME_FIELD, Holds, Layout, OFFSET_FIELD, identifiers, lake_type, refuse_own_names,
    same_type,
};

pub(crate) const WHEN_NONE_COMES: &str = "nothing while the source takes snapshots: a new one is on its way and replaces the table's rows, and readers see the old ones until then; otherwise downriver resnapshot PIPELINE --tables SCHEMA.TABLE";

/// Why rows of one shape cannot stand in a table that has rows of another; `None`: they can.
pub(crate) fn misfit(before: &TableSchema, after: &TableSchema) -> Option<Problem> {
    let name = after.qualified_name();
    if !after.tells_rows() {
        return Some(keyless(after));
    }
    if before.key != after.key {
        let reason = format!("the primary key of {name} is of other columns than before");
        return Some(Problem::new("DR-3022", reason, WHEN_NONE_COMES));
    }
    let told = |schema: &TableSchema| -> Vec<_> {
        let columns = schema.columns.iter();
        columns.map(|c| (c.id, c.cover.clone())).collect()
    };
    if after.is_bag() && told(before) != told(after) {
        let reason = format!(
            "{name} has other columns than before, and without a key its rows are known by all of them"
        );
        return Some(Problem::new("DR-3014", reason, WHEN_NONE_COMES));
    }
    for column in &after.columns {
        let Some(at) = before.column_index(column.id) else {
            continue;
        };
        let was = &before.columns[at];
        if !same_values(&was.ty, &column.ty) {
            let reason = format!(
                "the type of column {:?} of {name} changed from {} to {}",
                column.name, was.source_type, column.source_type
            );
            return Some(Problem::new("DR-3014", reason, WHEN_NONE_COMES));
        }
    }
    None
}

pub(crate) fn keyless(schema: &TableSchema) -> Problem {
    let name = schema.qualified_name();
    Problem::new(
        "DR-3016",
        format!("table {name} has no key, and its replica identity is not full"),
        format!("alter table {name} replica identity full, or add primary key (...)"),
    )
}

/// Whether cells of both types mean the same by the same bytes. An enum may get labels.
fn same_values(one: &LogicalType, other: &LogicalType) -> bool {
    match (one, other) {
        (LogicalType::Enum { .. }, LogicalType::Enum { .. }) => true,
        (LogicalType::Array(one), LogicalType::Array(other)) => same_values(one, other),
        _ => one == other,
    }
}

/// Whether the table's fields can hold the columns, as far as it has fields for them, and all of the key's.
pub(crate) fn holds(layout: &Layout, source: &TableSchema) -> bool {
    let held = source.columns.iter().all(|column| {
        let field = layout.field_of(column.id);
        field.is_none_or(|field| same_type(&field.field_type, &column.ty))
    });
    held && source
        .telling()
        .iter()
        .all(|id| layout.field_of(*id).is_some())
}

/// The schema of a table whose rows are all replaced, and which source column each field holds. A column keeps its
/// field if the type is the same; columns that the source has no more go.
pub(crate) fn replacement(
    metadata: &TableMetadata,
    layout: &Layout,
    source: &TableSchema,
) -> Result<(Schema, BTreeMap<i32, u32>), LakeError> {
    refuse_own_names(source)?;
    let mut next_id = metadata.last_column_id() + 1;
    let mut mapping = BTreeMap::new();
    let mut fields: Vec<NestedFieldRef> = Vec::new();
    for column in &source.columns {
        let kept = layout.field_of(column.id);
        let kept = kept.filter(|field| same_type(&field.field_type, &column.ty));
        let (id, ty) = match kept {
            Some(field) => (field.id, (*field.field_type).clone()),
            None => {
                let id = next_id;
                next_id += 1;
                (id, lake_type(&column.ty, &mut next_id))
            }
        };
        let required = source.key.contains(&column.id);
        fields.push(Arc::new(NestedField::new(id, &column.name, ty, required)));
        mapping.insert(id, column.id);
    }
    let is_taken = |name: &str| {
        let mut columns = source.columns.iter();
        columns.any(|column| column.name.eq_ignore_ascii_case(name))
    };
    let all = layout.schema.as_struct().fields();
    for (field, holds) in all.iter().zip(&layout.holds) {
        match holds {
            Holds::Column(_) => {}
            Holds::Nothing if is_taken(&field.name) => {}
            Holds::Nothing | Holds::Offset | Holds::CommitTime => fields.push(Arc::clone(field)),
        }
    }
    debug_assert!(
        [OFFSET_FIELD, COMMIT_TIME_FIELD]
            .iter()
            .all(|own| fields.iter().any(|field| field.name == *own))
    );
    let key: Vec<&NestedFieldRef> = source.key_indexes().iter().map(|at| &fields[*at]).collect();
    let schema = Schema::builder()
        .with_identifier_field_ids(identifiers(&key))
        .with_fields(fields.clone())
        .build()?;
    Ok((schema, mapping))
}

#[cfg(test)]
mod tests {
    use downriver_event::{Column, Cover, ReplicaIdentity, TableId};

    use super::*;

    fn table(columns: &[(u32, LogicalType)], key: &[u32]) -> TableSchema {
        let column = |(id, ty): &(u32, LogicalType)| Column {
            id: *id,
            name: format!("c{id}"),
            ty: ty.clone(),
            nullable: true,
            source_type: "any".into(),
            cover: Cover::None,
            default: None,
        };
        TableSchema {
            id: TableId(1),
            version: 1,
            namespace: "public".into(),
            name: "t".into(),
            columns: columns.iter().map(column).collect(),
            key: key.to_vec(),
            identity: ReplicaIdentity::Default,
            withheld: Vec::new(),
        }
    }

    #[test]
    fn rows_outlive_new_columns_and_labels_and_no_change_of_type_or_key() {
        use LogicalType::{Array, Enum, Int32, Int64, Text};
        let labels = |labels: &[&str]| Enum {
            labels: labels.iter().map(|label| (*label).to_owned()).collect(),
        };
        let code = |before: &TableSchema, after: &TableSchema| {
            misfit(before, after).map(|problem| problem.code)
        };
        let before = table(&[(1, Int64), (2, Text), (3, labels(&["a"]))], &[1]);
        let grown = [(1, Int64), (3, labels(&["a", "b"])), (4, Int32)];
        assert_eq!(code(&before, &table(&grown, &[1])), None);
        assert_eq!(code(&before, &table(&grown, &[1, 4])), Some("DR-3022"));
        let arrays = |element| table(&[(1, Int64), (2, Array(Box::new(element)))], &[1]);
        assert_eq!(code(&before, &arrays(Text)), Some("DR-3014"));
        assert_eq!(code(&arrays(Int32), &arrays(Int64)), Some("DR-3014"));
        assert_eq!(code(&arrays(labels(&["a"])), &arrays(labels(&["b"]))), None);
        // The lake holds both as int.
        let small = table(&[(1, LogicalType::Int16)], &[1]);
        assert_eq!(code(&small, &table(&[(1, Int32)], &[1])), Some("DR-3014"));
    }
}
