//! What a test finds in the log, table by table.

use std::collections::BTreeMap;
use std::sync::Arc;

use downriver_cluster::Node;
use downriver_event::block::{Block, RowOp};
use downriver_event::{Offset, TableId, TableSchema, pb, view};
use downriver_log::Log;

pub(crate) struct LoggedTable {
    /// The newest.
    pub(crate) schema: Arc<TableSchema>,
    pub(crate) events: Vec<pb::ChangeEvent>,
    /// `Column::write_key` of each row that the snapshot read.
    pub(crate) snapshot_keys: Vec<Vec<u8>>,
}

impl LoggedTable {
    pub(crate) fn of(&self, op: pb::Op) -> impl Iterator<Item = &pb::ChangeEvent> {
        self.events.iter().filter(move |event| event.op() == op)
    }

    /// Place of a column among a row's cells.
    pub(crate) fn place(&self, name: &str) -> usize {
        let at = self.schema.columns.iter().position(|c| c.name == name);
        at.unwrap_or_else(|| panic!("{} has no column {name}", self.schema.name))
    }
}

/// Everything below `to`, by `schema.table`.
pub(crate) async fn read(node: &Arc<Node>, to: Offset) -> BTreeMap<String, LoggedTable> {
    let state = node.state("shop").unwrap();
    let mut tables: BTreeMap<String, LoggedTable> = BTreeMap::new();
    let mut from = Offset(0);
    while from < to {
        for stored in node.read("shop", from, 1 << 20).await.unwrap() {
            let block = Block::decode(&stored.frame).unwrap();
            let schema =
                |table, version| state.schemas.get(&(TableId(table), version)).map(|s| &**s);
            let table = |id: u32| {
                let schema = state.newest_schema(TableId(id)).unwrap();
                (schema.qualified_name(), Arc::clone(schema))
            };
            let end = stored.position_after.clone().unwrap();
            for event in view::events(&block, stored.base, &end, schema).unwrap() {
                if event.table_id == 0 {
                    continue;
                }
                let (name, schema) = table(event.table_id);
                let logged = tables.entry(name).or_insert_with(|| LoggedTable {
                    schema,
                    events: Vec::new(),
                    snapshot_keys: Vec::new(),
                });
                logged.events.push(event);
            }
            for group in &block.groups {
                let (name, schema) = table(group.table.0);
                for (op, _, at_new, _) in group.images() {
                    let (RowOp::Snapshot, Some(cell)) = (op, at_new) else {
                        continue;
                    };
                    let mut key = Vec::new();
                    for id in &schema.key {
                        group.new_column(*id).unwrap().write_key(cell, &mut key);
                    }
                    tables.get_mut(&name).unwrap().snapshot_keys.push(key);
                }
            }
            from = stored.end();
        }
    }
    tables
}
