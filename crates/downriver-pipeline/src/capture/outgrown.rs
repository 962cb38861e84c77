//! Whether rows from before a change of a table's shape have to be read again, because the change may have given them
//! other values and no event tells of it, or because they are known by another key or in a table of another name.

use downriver_event::{LogicalType, TableSchema};

/// A change of a type may convert and round values, with or without a `USING` clause, or rename labels. Without a key
/// nothing can be read.
pub(super) fn outgrown(before: &TableSchema, after: &TableSchema) -> bool {
    if after.is_bag() && !(before.is_bag() && before.telling() == after.telling()) {
        // Rows that are known by all that is in them are others with another column.
        return true;
    }
    if !after.tells_rows() {
        return false;
    }
    let converted = after.columns.iter().any(|column| {
        let was = before.column_index(column.id).map(|at| &before.columns[at]);
        was.is_some_and(|was| {
            was.source_type != column.source_type || !keeps_values(&was.ty, &column.ty)
        })
    });
    let renamed = (&before.namespace, &before.name) != (&after.namespace, &after.name);
    renamed || before.key != after.key || converted
}

fn keeps_values(before: &LogicalType, after: &LogicalType) -> bool {
    match (before, after) {
        (LogicalType::Enum { labels: before }, LogicalType::Enum { labels: after }) => {
            before.iter().all(|label| after.contains(label))
        }
        (LogicalType::Array(before), LogicalType::Array(after)) => keeps_values(before, after),
        _ => before == after,
    }
}

#[cfg(test)]
mod tests {
    use downriver_event::{Column, Cover, ReplicaIdentity, TableId};

    use super::*;

    fn table(source_type: &str, ty: LogicalType, key: &[u32]) -> TableSchema {
        let column = |id, source_type: &str, ty| Column {
            id,
            name: format!("c{id}"),
            ty,
            nullable: true,
            source_type: source_type.to_owned(),
            cover: Cover::None,
        };
        TableSchema {
            id: TableId(1),
            version: 1,
            namespace: "public".into(),
            name: "t".into(),
            columns: vec![
                column(1, "bigint", LogicalType::Int64),
                column(3, source_type, ty),
            ],
            key: key.to_vec(),
            identity: ReplicaIdentity::Default,
            withheld: Vec::new(),
        }
    }

    fn grade(labels: &[&str]) -> TableSchema {
        let labels = labels.iter().map(|label| (*label).to_owned()).collect();
        table("grade", LogicalType::Enum { labels }, &[1])
    }

    #[test]
    fn rows_are_read_again_where_their_values_or_their_key_may_be_others() {
        let text = |ty: &str| table(ty, LogicalType::Text, &[1]);
        assert!(!outgrown(&text("text"), &text("text")));
        assert!(outgrown(&text("text"), &text("character varying(3)")));
        let number = table("integer", LogicalType::Int32, &[1]);
        assert!(outgrown(
            &number,
            &table("bigint", LogicalType::Int64, &[1])
        ));
        assert!(outgrown(
            &number,
            &table("integer", LogicalType::Int32, &[3])
        ));
        let keyless = table("integer", LogicalType::Int32, &[]);
        assert!(!outgrown(&number, &keyless));
        assert!(outgrown(&keyless, &number));
    }

    #[test]
    fn an_enum_that_gets_a_label_keeps_its_rows_and_one_that_renames_a_label_does_not() {
        assert!(!outgrown(&grade(&["a", "b"]), &grade(&["a", "new", "b"])));
        assert!(outgrown(&grade(&["a", "b"]), &grade(&["a", "renamed"])));
    }
}
