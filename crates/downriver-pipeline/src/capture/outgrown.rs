//! Whether rows from before a change of a table's shape have to be read again, because the change may have given them
//! other values and no event tells of it, or because they are known by another key or in a table of another name.

use downriver_event::TableSchema;
use downriver_event::change::keeps_values;

/// A change of a type may convert and round values, with or without a `USING` clause, or rename labels; where no row was
/// written anew (`kept`) what a value is has not changed as long as the canonical type has not. Without a key nothing
/// can be read.
pub(super) fn outgrown(before: &TableSchema, after: &TableSchema, kept: bool) -> bool {
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
            !kept && was.source_type != column.source_type || !keeps_values(&was.ty, &column.ty)
        })
    });
    let renamed = (&before.namespace, &before.name) != (&after.namespace, &after.name);
    renamed || before.key != after.key || converted
}

#[cfg(test)]
mod tests {
    use downriver_event::{Column, Cover, LogicalType, ReplicaIdentity, TableId};

    use super::*;

    fn table(source_type: &str, ty: LogicalType, key: &[u32]) -> TableSchema {
        let column = |id, source_type: &str, ty| Column {
            id,
            name: format!("c{id}"),
            ty,
            nullable: true,
            source_type: source_type.to_owned(),
            cover: Cover::None,
            default: None,
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
        assert!(!outgrown(&text("text"), &text("text"), false));
        assert!(outgrown(&text("text"), &text("varchar(3)"), false));
        assert!(!outgrown(&text("varchar(3)"), &text("varchar(5)"), true));
        let number = table("integer", LogicalType::Int32, &[1]);
        let larger = table("bigint", LogicalType::Int64, &[1]);
        assert!(outgrown(&number, &larger, false));
        assert!(outgrown(&number, &larger, true));
        let other_key = table("integer", LogicalType::Int32, &[3]);
        assert!(outgrown(&number, &other_key, true));
        let keyless = table("integer", LogicalType::Int32, &[]);
        assert!(!outgrown(&number, &keyless, false));
        assert!(outgrown(&keyless, &number, true));
    }

    #[test]
    fn an_enum_that_gets_a_label_keeps_its_rows_and_one_that_renames_a_label_does_not() {
        let before = grade(&["a", "b"]);
        assert!(!outgrown(&before, &grade(&["a", "new", "b"]), false));
        assert!(outgrown(&before, &grade(&["a", "renamed"]), true));
    }
}
