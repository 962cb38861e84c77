//! Which share of a pipeline's tables each one belongs to, where they are shared out over nodes.
//!
//! Names of the lake's tables move between tables of the source (see `tables::names`), and one delivery has to see all of
//! it. So tables that had one name after each other belong together; these groups are dealt out in turn, by the number of
//! their oldest table, so that a new table mostly moves none. A table that gets the name of another joins its group: from
//! then on another delivery may have it, which takes it over as it would after a failure. Every node finds the same as soon
//! as it has the same of the log. Until then two may hold a table for theirs: what they commit is fenced by its epoch, and
//! whoever is refused looks again.

use std::collections::{BTreeMap, BTreeSet};

use downriver_event::{TableId, pattern};
use downriver_lake::Schemas;

/// One of the shares, which count from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    pub index: u32,
    pub of: u32,
}

/// How tables are selected, named and shared out.
#[derive(Clone, Debug)]
pub struct Sharing<'a> {
    /// Patterns of the source's tables; empty: all.
    pub tables: &'a [String],
    /// All tables are in one namespace of the lake.
    pub one_namespace: bool,
    pub shares: u32,
}

impl Sharing<'_> {
    /// The share of every table that the pipeline delivers, or did under a name before.
    #[must_use]
    pub fn deal(&self, schemas: &Schemas) -> BTreeMap<TableId, u32> {
        let mut names: BTreeMap<(&str, &str), TableId> = BTreeMap::new();
        // Of each table one that is older and belongs to it, or itself.
        let mut older: BTreeMap<TableId, TableId> = BTreeMap::new();
        for ((table, _), schema) in schemas {
            if !pattern::selects(self.tables, &schema.namespace, &schema.name) {
                continue;
            }
            older.entry(*table).or_insert(*table);
            let namespace = match self.one_namespace {
                true => "",
                false => schema.namespace.as_str(),
            };
            let first = *names.entry((namespace, &schema.name)).or_insert(*table);
            let (one, other) = (oldest(&older, first), oldest(&older, *table));
            older.insert(one.max(other), one.min(other));
        }
        let groups: BTreeSet<TableId> = older.keys().map(|table| oldest(&older, *table)).collect();
        let dealt: BTreeMap<TableId, u32> = groups
            .into_iter()
            .zip((0..self.shares.max(1)).cycle())
            .collect();
        let tables = older.keys();
        tables
            .map(|table| (*table, dealt[&oldest(&older, *table)]))
            .collect()
    }
}

fn oldest(older: &BTreeMap<TableId, TableId>, table: TableId) -> TableId {
    let mut at = table;
    while older[&at] != at {
        at = older[&at];
    }
    at
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use downriver_event::{ReplicaIdentity, TableSchema};

    use super::*;

    fn schemas(names: &[(u32, u32, &str)]) -> Schemas {
        let named = names.iter().map(|(table, version, name)| {
            let schema = TableSchema {
                id: TableId(*table),
                version: *version,
                namespace: "public".into(),
                name: (*name).into(),
                columns: Vec::new(),
                key: Vec::new(),
                identity: ReplicaIdentity::Default,
                withheld: Vec::new(),
            };
            ((schema.id, schema.version), Arc::new(schema))
        });
        named.collect()
    }

    fn deal(shares: u32, tables: &[&str], schemas: &Schemas) -> Vec<(u32, u32)> {
        let tables: Vec<String> = tables.iter().map(|pattern| (*pattern).to_owned()).collect();
        let sharing = Sharing {
            tables: &tables,
            one_namespace: false,
            shares,
        };
        let dealt = sharing.deal(schemas).into_iter();
        dealt.map(|(table, share)| (table.0, share)).collect()
    }

    #[test]
    fn tables_are_dealt_out_in_turn_and_a_new_one_moves_none() {
        let before = [(10, 1, "a"), (20, 1, "b"), (30, 1, "c"), (40, 1, "d")];
        let dealt = deal(3, &[], &schemas(&before));
        assert_eq!(dealt, [(10, 0), (20, 1), (30, 2), (40, 0)]);
        let mut after = before.to_vec();
        after.push((50, 1, "e"));
        let more = deal(3, &[], &schemas(&after));
        assert_eq!((&more[..4], more[4]), (dealt.as_slice(), (50, 1)));
        assert!(
            deal(1, &[], &schemas(&after))
                .iter()
                .all(|(_, share)| *share == 0)
        );
    }

    #[test]
    fn what_is_not_delivered_takes_no_turn() {
        let tables = schemas(&[(10, 1, "a"), (20, 1, "b"), (30, 1, "c")]);
        let wanted = ["public.*", "!public.b"];
        assert_eq!(deal(2, &wanted, &tables), [(10, 0), (30, 1)]);
    }

    #[test]
    fn tables_that_had_one_name_belong_together() {
        // A table is rebuilt beside, and changes names with the one that it replaces, twice.
        let before = [(10, 1, "a"), (20, 1, "b"), (30, 1, "_b_new"), (40, 1, "c")];
        assert_eq!(
            deal(3, &[], &schemas(&before)),
            [(10, 0), (20, 1), (30, 2), (40, 0)]
        );
        let mut renamed = before.to_vec();
        renamed.extend([(20, 2, "_b_old"), (30, 2, "b"), (50, 1, "_b_old")]);
        assert_eq!(
            deal(3, &[], &schemas(&renamed)),
            [(10, 0), (20, 1), (30, 1), (40, 2), (50, 1)]
        );
    }

    #[test]
    fn names_meet_where_schemas_share_a_namespace() {
        let mut tables = schemas(&[(10, 1, "a"), (20, 1, "a"), (30, 1, "b")]);
        let other = tables.get_mut(&(TableId(20), 1)).expect("it is there");
        Arc::get_mut(other).expect("nobody else has it").namespace = "sales".into();
        let deal = |one_namespace| {
            let sharing = Sharing {
                tables: &[],
                one_namespace,
                shares: 2,
            };
            let dealt = sharing.deal(&tables).into_values();
            dealt.collect::<Vec<u32>>()
        };
        assert_eq!(deal(false), [0, 1, 0]);
        assert_eq!(deal(true), [0, 0, 1]);
    }
}
