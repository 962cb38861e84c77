//! Which numbers tables and columns have: the server gives them none that last, so they are counted here.
//!
//! A table that is made again under the name of a dropped one goes on with its number, as another version and with another
//! generation of its rows. A column has the number that the column of its name has in the version before, or the next one
//! that the table never had.

use std::sync::Arc;

use downriver_decode::mysql::is_same_name;
use downriver_event::{Column, TableId, TableSchema};

use super::super::registry::Registry;

/// The one of the tables that were called so last that has the name, or may take it up again: one of which changes come
/// (`comes`) before any that was left.
pub(super) fn named(
    registry: &Registry,
    namespace: &str,
    name: &str,
    comes: impl Fn(TableId) -> bool,
) -> Option<Arc<TableSchema>> {
    let named = registry.named(namespace, name);
    named
        .max_by_key(|schema| (comes(schema.id), schema.id))
        .cloned()
}

/// The schema with the numbers that its table and columns have; its own are places only.
pub(super) fn numbered(
    registry: &Registry,
    before: Option<&TableSchema>,
    schema: TableSchema,
) -> TableSchema {
    let id = before.map_or_else(|| next_table(registry), |before| before.id);
    let mut last = registry
        .versions(id)
        .flat_map(|version| version.columns.iter().chain(&version.withheld))
        .map(|column| column.id)
        .max()
        .unwrap_or_default();
    let mut number = |name: &str| {
        let known = before.and_then(|before| {
            let mut columns = before.columns.iter().chain(&before.withheld);
            columns.find(|column| is_same_name(&column.name, name))
        });
        known.map_or_else(
            || {
                last += 1;
                last
            },
            |known| known.id,
        )
    };
    // In the table's order, so that of a new one it is that of the numbers.
    let numbers: Vec<(u32, u32)> = schema
        .source_columns()
        .map(|(column, _)| (column.id, number(&column.name)))
        .collect();
    let number_of = |place: &u32| {
        let numbers = numbers.iter();
        numbers
            .clone()
            .find_map(|(at, number)| (at == place).then_some(*number))
    };
    let renumbered = |columns: Vec<Column>| {
        let columns = columns.into_iter();
        let columns = columns.filter_map(|column| {
            let id = number_of(&column.id)?;
            Some(Column { id, ..column })
        });
        columns.collect()
    };
    TableSchema {
        id,
        key: schema.key.iter().filter_map(&number_of).collect(),
        columns: renumbered(schema.columns),
        withheld: renumbered(schema.withheld),
        ..schema
    }
}

fn next_table(registry: &Registry) -> TableId {
    let last = registry.tables().map(|schema| schema.id.0).max();
    TableId(last.unwrap_or_default() + 1)
}

#[cfg(test)]
mod tests {
    use downriver_event::{Cover, LogicalType, ReplicaIdentity};

    use super::*;

    fn table(name: &str, columns: &[&str], key: &[u32]) -> TableSchema {
        let columns = (1..).zip(columns).map(|(id, name)| Column {
            id,
            name: (*name).to_owned(),
            ty: LogicalType::Int32,
            nullable: true,
            source_type: "int".into(),
            cover: Cover::None,
            default: None,
        });
        TableSchema {
            id: TableId(0),
            version: 0,
            namespace: "shop".into(),
            name: name.into(),
            columns: columns.collect(),
            key: key.to_vec(),
            identity: ReplicaIdentity::Default,
            withheld: Vec::new(),
        }
    }

    fn numbers(schema: &TableSchema) -> Vec<u32> {
        schema.columns.iter().map(|column| column.id).collect()
    }

    #[test]
    fn numbers_go_with_names_and_never_come_again() {
        let mut registry = Registry::default();
        let mut take = |schema: TableSchema| {
            let before = named(&registry, &schema.namespace, &schema.name, |_| true);
            let schema = numbered(&registry, before.as_deref(), schema);
            registry.register(schema).schema().as_ref().clone()
        };
        assert_eq!(take(table("a", &["x", "y"], &[2])).id, TableId(1));
        let other = take(table("b", &["x"], &[1]));
        assert_eq!((other.id, other.key), (TableId(2), vec![1]));
        let more = take(table("a", &["z", "X", "y"], &[3, 1]));
        assert_eq!((more.id, numbers(&more)), (TableId(1), vec![3, 1, 2]));
        assert_eq!(more.key, [2, 3]);
        let less = take(table("a", &["z"], &[]));
        assert_eq!(numbers(&less), [3]);
        let again = take(table("a", &["y", "z"], &[]));
        assert_eq!(numbers(&again), [4, 3], "the first y is forgotten");
    }
}
