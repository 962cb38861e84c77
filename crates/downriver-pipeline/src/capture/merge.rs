//! Which of two values of a row is newer: the one that a snapshot chunk read, or the one that the stream
//! brought? A pure state machine; it does no I/O.
//!
//! Commits become visible after they are logged, so positions alone do not tell. A chunk is read in a
//! transaction whose snapshot is S. Of each row of the chunk:
//!
//! - a streamed transaction that is visible in S is contained in what the chunk read: the row stands, and
//!   because the chunk is held until the stream has passed `high` (a position taken after S), that
//!   transaction's own event lies before the row in the log;
//! - a streamed transaction that is *not* visible in S is newer, whether its event was appended before S was
//!   taken (logged, not yet visible) or while the chunk was held: what it set wins. If it deleted the row,
//!   the row is dropped. If it left columns unchanged (TOAST), the chunk's values fill just these: the row becomes
//!   an update that leaves the other columns unchanged.
//!
//! On a standby commits become visible in the stream's order, and of a chunk it is known up to which position it sees
//! everything at least. What lies behind it and was streamed counts as not visible: if it is, the chunk has nothing that
//! the stream has not.
//!
//! A row whose key changed with unchanged columns has their values at its new key only in a snapshot that sees the
//! change: it is read again after the table's last chunk, until such a snapshot was taken. So is a row that came into the
//! publication's filter with unchanged columns, which the server makes an insert.
//!
//! A crash loses what is remembered here. It is rebuilt by not starting any chunk until every transaction
//! that ran when the capture (re)started is over: all others are streamed, and
//! remembered, from then on.

use std::collections::{HashMap, HashSet, VecDeque};

use downriver_event::block::{Block, RowGroup, RowOp};
use downriver_event::{
    BlockBuilder, EncodedBlock, Presence, SourcePosition, TableId, TableSchema, pb,
};
use downriver_source::chunk::Seen;
use std::sync::Arc;

/// The bytes that identify a row: see [`key_of`].
pub(crate) type Key = Box<[u8]>;

/// What streamed transactions did to a row since some snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Deleted,
    /// Set; the columns listed (indexes into the schema) were left unchanged.
    Set {
        unchanged: Vec<usize>,
    },
}

impl Change {
    /// The effect of `self` and then `later`.
    fn then(&mut self, later: &Self) {
        *self = match (&*self, later) {
            (_, Self::Deleted) => Self::Deleted,
            (Self::Deleted, Self::Set { .. }) => Self::Set {
                unchanged: Vec::new(),
            },
            (Self::Set { unchanged: first }, Self::Set { unchanged: second }) => Self::Set {
                unchanged: first
                    .iter()
                    .filter(|c| second.contains(c))
                    .copied()
                    .collect(),
            },
        };
    }
}

/// One streamed transaction's effect on one table.
#[derive(Debug, Default)]
struct Streamed {
    id: String,
    /// Where its commit ends, once all of it was observed.
    end: Option<SourcePosition>,
    truncated: bool,
    rows: HashMap<Key, Change>,
    /// Keys that rows with unchanged columns were moved to.
    moved: HashSet<Key>,
}

/// What the stream did lately to the tables whose snapshot runs.
#[derive(Debug, Default)]
pub(crate) struct RecentChanges {
    tables: HashMap<TableId, VecDeque<Streamed>>,
    /// Rows whose key changed with unchanged columns: their values may lie in a part of the table that was
    /// read before they moved there, so they are read again when the rest is done.
    moved: HashMap<TableId, Vec<Key>>,
}

impl RecentChanges {
    pub(crate) fn track(&mut self, table: TableId) {
        self.tables.entry(table).or_default();
    }

    pub(crate) fn forget(&mut self, table: TableId) {
        self.tables.remove(&table);
        self.moved.remove(&table);
    }

    pub(crate) fn tracks_any(&self) -> bool {
        !self.tables.is_empty()
    }

    /// The moved rows that were noticed since the last call.
    pub(crate) fn newly_moved(&mut self) -> HashMap<TableId, Vec<Key>> {
        std::mem::take(&mut self.moved)
    }

    /// Takes note of a streamed block.
    pub(crate) fn observe(
        &mut self,
        block: &Block,
        schema: impl Fn(TableId, u32) -> Option<Arc<TableSchema>>,
    ) {
        let id_of = |event: u32| block.transactions[block.transaction_of(event)].id.as_str();
        for group in &block.groups {
            if !self.tables.contains_key(&group.table) {
                continue;
            }
            let Some(schema) = schema(group.table, group.schema_version) else {
                continue;
            };
            let key = schema.key_indexes();
            for (row, (op, _, at_new, at_old)) in group.images().enumerate() {
                let id = id_of(group.events[row]);
                let old = at_old.and_then(|cell| key_of(&schema, &key, group, cell, false));
                let new = at_new.and_then(|cell| key_of(&schema, &key, group, cell, true));
                let unchanged =
                    at_new.map_or_else(Vec::new, |cell| unchanged(&schema, group, cell));
                let moved = matches!((&old, &new), (Some(old), Some(new)) if old != new);
                if let Some(old) = old.filter(|_| moved || op == RowOp::Delete) {
                    self.note(group.table, id, old, Change::Deleted);
                }
                if let Some(new) = new {
                    // A row that came into the publication's filter moved there from a key that nobody has.
                    let moved = moved || op == RowOp::Insert;
                    if moved && !unchanged.is_empty() {
                        self.moved.entry(group.table).or_default().push(new.clone());
                        if let Some(streamed) = self.transaction(group.table, id) {
                            streamed.moved.insert(new.clone());
                        }
                    }
                    let unchanged = if moved { Vec::new() } else { unchanged };
                    self.note(group.table, id, new, Change::Set { unchanged });
                }
            }
        }
        for marker in &block.markers {
            let Some(pb::marker::Kind::Truncate(truncate)) = &marker.kind else {
                continue;
            };
            for table in &truncate.table_ids {
                let id = id_of(marker.event);
                if let Some(streamed) = self.transaction(TableId(*table), id) {
                    streamed.truncated = true;
                    streamed.rows.clear();
                }
            }
        }
        let ends = ends_of(block);
        for recent in self.tables.values_mut() {
            let newest = recent.iter_mut().rev();
            for streamed in newest.take_while(|streamed| streamed.end.is_none()) {
                streamed.end = ends.get(streamed.id.as_str()).cloned();
            }
        }
    }

    fn transaction(&mut self, table: TableId, id: &str) -> Option<&mut Streamed> {
        let recent = self.tables.get_mut(&table)?;
        if recent.back().is_none_or(|last| last.id != id) {
            recent.push_back(Streamed {
                id: id.to_owned(),
                ..Streamed::default()
            });
        }
        recent.back_mut()
    }

    fn note(&mut self, table: TableId, id: &str, key: Key, change: Change) {
        let Some(streamed) = self.transaction(table, id) else {
            return;
        };
        match streamed.rows.get_mut(&key) {
            Some(earlier) => earlier.then(&change),
            None => {
                streamed.rows.insert(key, change);
            }
        }
    }

    /// What streamed transactions that are not visible did to the table, and forgets the visible ones:
    /// a table's chunks are read one after another, so what one sees, all later ones see.
    pub(crate) fn newer_than(&mut self, table: TableId, seen: &Seen) -> Newer {
        let mut newer = Newer::default();
        let Some(recent) = self.tables.get_mut(&table) else {
            return newer;
        };
        recent.retain(|streamed| !seen.has(&streamed.id, streamed.end.as_ref()));
        for streamed in recent.iter() {
            if streamed.truncated {
                newer.truncated = true;
            }
            newer.moved.extend(streamed.moved.iter().cloned());
            for (key, change) in &streamed.rows {
                match newer.rows.get_mut(key) {
                    Some(earlier) => earlier.then(change),
                    None => {
                        newer.rows.insert(key.clone(), change.clone());
                    }
                }
            }
        }
        newer
    }

    /// Forgets what is visible in a snapshot that is older than every chunk of these tables will be.
    pub(crate) fn forget_visible(&mut self, waits: impl Fn(TableId) -> bool, seen: &Seen) {
        for (_, recent) in self.tables.iter_mut().filter(|(table, _)| waits(**table)) {
            recent.retain(|streamed| !seen.has(&streamed.id, streamed.end.as_ref()));
        }
    }
}

/// Where the commits of a block's transactions end: of those that end in it.
fn ends_of(block: &Block) -> HashMap<&str, SourcePosition> {
    let transactions = block.transactions.iter();
    let ends = transactions
        .filter_map(|transaction| Some((transaction.id.as_str(), end_of(transaction)?)));
    ends.collect()
}

/// Where a transaction's commit ends; `None`: in another block.
pub(crate) fn end_of(transaction: &pb::Transaction) -> Option<SourcePosition> {
    SourcePosition::from_pb(transaction.position.as_ref()?)
}

/// What the stream knows better than a chunk.
#[derive(Debug, Default)]
pub(crate) struct Newer {
    truncated: bool,
    rows: HashMap<Key, Change>,
    moved: HashSet<Key>,
}

impl Newer {
    pub(crate) fn is_empty(&self) -> bool {
        !self.truncated && self.rows.is_empty()
    }

    /// Whether a row was moved to this key unseen by the chunk: its unchanged columns are to be had here only by a
    /// later chunk.
    pub(crate) fn has_moved(&self, key: &Key) -> bool {
        self.moved.contains(key)
    }

    /// The chunk's blocks without what the stream knows better. Blocks that nothing touches stay as they are.
    pub(crate) fn resolve(
        &self,
        blocks: Vec<EncodedBlock>,
        schema: &Arc<TableSchema>,
    ) -> Vec<EncodedBlock> {
        if self.is_empty() {
            return blocks;
        }
        blocks
            .into_iter()
            .filter_map(|block| self.resolve_block(block, schema))
            .collect()
    }

    fn resolve_block(
        &self,
        encoded: EncodedBlock,
        schema: &Arc<TableSchema>,
    ) -> Option<EncodedBlock> {
        let block = Block::decode(&encoded.frame).expect("the chunk was encoded here");
        let key = schema.key_indexes();
        let touched = block.groups.iter().any(|group| {
            (0..group.rows()).any(|cell| {
                key_of(schema, &key, group, cell, true)
                    .is_some_and(|key| self.rows.contains_key(&key))
            })
        });
        if !touched && !self.truncated {
            return Some(encoded);
        }
        let mut builder = BlockBuilder::new();
        let transaction = block.transactions.first()?;
        builder.begin(transaction.id.clone(), transaction.commit_time_us);
        for marker in &block.markers {
            builder.marker(
                marker
                    .kind
                    .clone()
                    .expect("checked when the block was opened"),
            );
        }
        for group in block.groups.iter().filter(|_| !self.truncated) {
            for cell in 0..group.rows() {
                let key = key_of(schema, &key, group, cell, true);
                let keep: Option<&[usize]> = match key.and_then(|key| self.rows.get(&key)) {
                    None => None,
                    Some(Change::Deleted) => continue,
                    Some(Change::Set { unchanged }) if unchanged.is_empty() => continue,
                    Some(Change::Set { unchanged }) => Some(unchanged),
                };
                // A snapshot's row is whole; what fills a row up is an update of it.
                let op = keep.map_or(RowOp::Snapshot, |_| RowOp::Update);
                let row = builder.row(schema, op, downriver_event::block::OldImage::None);
                for (index, column) in schema.columns.iter().enumerate() {
                    let is_key = schema.key.contains(&column.id);
                    let filled = keep.is_none_or(|keep| keep.contains(&index)) || is_key;
                    match group.new_column(column.id).filter(|_| filled) {
                        Some(cells) => row.new[index].push_cell(cells, cell),
                        None if filled => row.new[index].push_presence(Presence::Absent),
                        None => row.new[index].push_presence(Presence::Unchanged),
                    }
                }
            }
        }
        builder.commit_unplaced();
        builder.cut()
    }
}

/// The row's key as comparable bytes; `None` if the image does not hold the whole key.
pub(crate) fn key_of(
    schema: &TableSchema,
    key_indexes: &[usize],
    group: &RowGroup,
    cell: usize,
    new: bool,
) -> Option<Key> {
    let mut key = Vec::with_capacity(key_indexes.len() * 9);
    for index in key_indexes {
        let id = schema.columns[*index].id;
        let column = if new {
            group.new_column(id)
        } else {
            group.old_column(id)
        }?;
        if matches!(
            column.presence(cell),
            Presence::Absent | Presence::Unchanged
        ) {
            return None;
        }
        column.write_key(cell, &mut key);
    }
    Some(key.into_boxed_slice())
}

fn unchanged(schema: &TableSchema, group: &RowGroup, cell: usize) -> Vec<usize> {
    let is_unchanged = |id| {
        group
            .new_column(id)
            .is_some_and(|column| column.presence(cell) == Presence::Unchanged)
    };
    (0..schema.columns.len())
        .filter(|index| is_unchanged(schema.columns[*index].id))
        .collect()
}

#[cfg(test)]
mod tests;
