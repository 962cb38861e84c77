//! Tables without a key join the stream: rows that are equal cannot be told apart, so nothing is merged row by row.
//!
//! ```text
//!            S: the one snapshot that reads the whole table              the stream has passed `high`
//!            │                                                           │
//!  ──t1──────┼──t2───────────t3──────────────────────────────────────────┤ start │ rows of S │ t2 t3 again │ end ├── t4
//!            │ (t2 is logged, and not visible in S)                      │       one append, or none         │
//! ```
//!
//! Whatever is visible in S lies before the start, since the stream has passed a position that was taken after S. So the
//! table is, at the end: what S saw, then the streamed transactions that S did not see, in their order. Those that came
//! before the start were logged at their own place too; whoever follows the table forgets it at the start, and what came
//! before with it. They are set aside in a file from the beginning of the run on, as are the rows.
//!
//! Everything from the start to the end is one append. A crash before it leaves nothing, and the table is read again.

use std::collections::HashMap;
use std::sync::Arc;

use downriver_event::block::{Block, OldImage, RowGroup, RowOp};
use downriver_event::{
    BlockBuilder, EncodedBlock, Presence, SourcePosition, TableId, TableSchema, pb,
};
use downriver_log::ChunkDone;

use super::super::CaptureError;
use super::super::merge::end_of;
use super::super::shelf::{Shelf, Shelved};
use super::super::snapshot::{self, HeldChunk};
use super::Intake;

/// Bytes that are put into the log between two looks at what else there is.
const PART_BYTES: usize = 4 << 20;

/// What the stream brought of the tables without a key whose snapshot runs.
#[derive(Debug, Default)]
pub(super) struct SetAside(HashMap<TableId, Aside>);

/// The blocks that have something of a table.
#[derive(Debug)]
pub(super) struct Aside {
    shelf: Shelf,
    /// Where the commits of transactions end that began in an earlier block.
    ends: HashMap<String, SourcePosition>,
}

impl SetAside {
    pub(super) fn track(&mut self, table: TableId, shelf: Shelf) {
        let aside = Aside {
            shelf,
            ends: HashMap::new(),
        };
        self.0.insert(table, aside);
    }

    pub(super) fn forget(&mut self, table: TableId) -> Option<Aside> {
        self.0.remove(&table)
    }

    pub(super) fn tracks_any(&self) -> bool {
        !self.0.is_empty()
    }

    pub(super) fn observe(&mut self, encoded: &EncodedBlock, block: &Block) -> std::io::Result<()> {
        let transactions = block.transactions.iter();
        let began_before = transactions.filter(|transaction| transaction.events_before > 0);
        let ends: Vec<(String, SourcePosition)> = began_before
            .filter_map(|transaction| Some((transaction.id.clone(), end_of(transaction)?)))
            .collect();
        for (table, aside) in &mut self.0 {
            if block.groups.iter().any(|group| group.table == *table) || truncates(block, *table) {
                aside.shelf.push(encoded)?;
            }
            aside.ends.extend(ends.iter().cloned());
        }
        Ok(())
    }
}

fn truncates(block: &Block, table: TableId) -> bool {
    use pb::marker::Kind::Truncate;
    let mut kinds = block.markers.iter().map(|marker| &marker.kind);
    kinds.any(|kind| matches!(kind, Some(Truncate(t)) if t.table_ids.contains(&table.0)))
}

/// A table that is being put into the log.
pub(super) struct Joining {
    chunk: HeldChunk,
    rows: Shelved,
    changes: Shelved,
    /// Where the commits of changes end that are in several blocks.
    ends: HashMap<String, SourcePosition>,
    /// Events that are in the log for the second time.
    again: u64,
}

impl Intake<'_> {
    /// Whether a table joins the log, and nothing else does meanwhile.
    pub(in super::super) fn is_joining(&self) -> bool {
        self.joining.is_some()
    }

    /// Puts the start of a table that was read whole into the log; the rest follows in parts. Until it is all there
    /// nothing else may be handed to the outbox.
    pub(super) fn begin_joining(&mut self, mut chunk: HeldChunk) -> Result<(), CaptureError> {
        let table = chunk.schema.id;
        let (Some(rows), Some(changes)) = (chunk.shelf.take(), self.set_aside.forget(table)) else {
            // It is to be read again, or not at all.
            return Ok(());
        };
        let rows = rows.take().map_err(|error| self.shelf_failed(error))?;
        let Aside { shelf, ends } = changes;
        let changes = shelf.take().map_err(|error| self.shelf_failed(error))?;
        let start = pb::SnapshotStart {
            table_id: table.0,
            generation: chunk.generation,
        };
        self.push_marker(pb::marker::Kind::SnapshotStart(start))?;
        self.joining = Some(Joining {
            chunk,
            rows,
            changes,
            ends,
            again: 0,
        });
        Ok(())
    }

    /// Puts some more of a table that joins into the log. Whether none does any more.
    pub(in super::super) fn join(&mut self) -> Result<bool, CaptureError> {
        let Some(mut joining) = self.joining.take() else {
            return Ok(true);
        };
        let mut bytes = 0;
        while bytes < PART_BYTES {
            let row = joining.rows.next();
            if let Some(block) = row.map_err(|error| self.shelf_failed(error))? {
                bytes += block.frame.len();
                self.outbox.push_open(block)?;
                continue;
            }
            let change = joining.changes.next();
            let Some(block) = change.map_err(|error| self.shelf_failed(error))? else {
                self.end_joining(&joining)?;
                return Ok(true);
            };
            bytes += block.frame.len();
            let block = Block::decode(&block.frame).expect("it was encoded here");
            let HeldChunk { schema, seen, .. } = &joining.chunk;
            let unseen = unseen(&block, schema, |transaction| {
                let end = end_of(transaction);
                let end = end.as_ref().or_else(|| joining.ends.get(&transaction.id));
                seen.has(&transaction.id, end)
            });
            let unseen =
                unseen.map_err(|OtherShape| CaptureError::SchemaMoved(schema.qualified_name()))?;
            if let Some(block) = unseen {
                joining.again += u64::from(block.events);
                self.outbox.push_open(block)?;
            }
        }
        self.joining = Some(joining);
        Ok(false)
    }

    fn end_joining(&mut self, joining: &Joining) -> Result<(), CaptureError> {
        let chunk = &joining.chunk;
        let table = chunk.schema.id;
        tracing::info!(
            source = self.config.name,
            table = table.0,
            rows = chunk.rows,
            again = joining.again,
            "a table without a key is in the log"
        );
        let end = pb::SnapshotEnd {
            table_id: table.0,
            generation: chunk.generation,
            rows: chunk.rows,
        };
        self.push_marker(pb::marker::Kind::SnapshotEnd(end))?;
        let progress = self.snapshots.get(&table);
        let progress = progress.filter(|progress| progress.generation == chunk.generation);
        if let Some(progress) = progress {
            let resume_after = progress.resume.encode();
            self.outbox.chunk_done_with_open(ChunkDone {
                table,
                generation: chunk.generation,
                resume_after,
                rows: chunk.rows,
                last: true,
            });
            self.outbox.commit(None, None)?;
            self.chunk_status(table, chunk.began, chunk.rows, None);
            self.table_ended(table);
            return Ok(());
        }
        // It was asked for again meanwhile.
        Ok(self.outbox.commit(None, None)?)
    }

    fn push_marker(&mut self, kind: pb::marker::Kind) -> Result<(), CaptureError> {
        let mut builder = BlockBuilder::new();
        builder.begin("snapshot".into(), snapshot::micros_since_epoch());
        builder.marker(kind);
        builder.commit_unplaced();
        let block = builder.cut().expect("it has a marker");
        Ok(self.outbox.push_open(block)?)
    }

    pub(in super::super) fn shelf_failed(&self, source: std::io::Error) -> CaptureError {
        CaptureError::Spill {
            folder: self.config.spill.clone(),
            source,
        }
    }
}

/// Rows of the table do not have the shape that its snapshot was read in.
#[derive(Debug)]
struct OtherShape;

enum Change<'a> {
    Row(&'a RowGroup, RowOp, OldImage, Option<usize>, Option<usize>),
    Truncate(&'a pb::Truncate),
}

/// What the transactions of a block that a snapshot does not see did to the table, each as a transaction of its own.
fn unseen(
    block: &Block,
    schema: &Arc<TableSchema>,
    sees: impl Fn(&pb::Transaction) -> bool,
) -> Result<Option<EncodedBlock>, OtherShape> {
    let is_seen = |event: u32| sees(&block.transactions[block.transaction_of(event)]);
    let mut changes: Vec<(u32, Change<'_>)> = Vec::new();
    for group in block.groups.iter().filter(|group| group.table == schema.id) {
        for (row, (op, image, at_new, at_old)) in group.images().enumerate() {
            let event = group.events[row];
            if is_seen(event) {
                continue;
            }
            if group.schema_version != schema.version {
                return Err(OtherShape);
            }
            changes.push((event, Change::Row(group, op, image, at_new, at_old)));
        }
    }
    for marker in &block.markers {
        if let Some(pb::marker::Kind::Truncate(truncate)) = &marker.kind
            && truncate.table_ids.contains(&schema.id.0)
            && !is_seen(marker.event)
        {
            changes.push((marker.event, Change::Truncate(truncate)));
        }
    }
    changes.sort_by_key(|(event, _)| *event);
    let mut builder = BlockBuilder::new();
    let mut open = None;
    for (event, change) in changes {
        let at = block.transaction_of(event);
        if open != Some(at) {
            if open.is_some() {
                builder.commit_unplaced();
            }
            let transaction = &block.transactions[at];
            builder.begin(transaction.id.clone(), transaction.commit_time_us);
            builder.origin(&transaction.origin);
            open = Some(at);
        }
        match change {
            Change::Row(group, op, image, at_new, at_old) => {
                let row = builder.row(schema, op, image);
                let new = schema.columns.iter().zip(row.new);
                for (column, out) in new {
                    push(group.new_column(column.id), at_new, out);
                }
                let old = schema.columns.iter().zip(row.old);
                for (column, out) in old {
                    push(group.old_column(column.id), at_old, out);
                }
            }
            Change::Truncate(truncate) => {
                builder.marker(pb::marker::Kind::Truncate(pb::Truncate {
                    table_ids: vec![schema.id.0],
                    ..truncate.clone()
                }))
            }
        }
    }
    if open.is_some() {
        builder.commit_unplaced();
    }
    Ok(builder.cut())
}

fn push(
    cells: Option<&downriver_event::block::Column>,
    at: Option<usize>,
    out: &mut downriver_event::block::ColumnBuilder,
) {
    match (cells, at) {
        (Some(cells), Some(at)) => out.push_cell(cells, at),
        _ => out.push_presence(Presence::Absent),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use downriver_event::{LogicalType, ReplicaIdentity};

    use super::*;

    fn table() -> Arc<TableSchema> {
        Arc::new(TableSchema {
            id: TableId(7),
            version: 2,
            namespace: "public".into(),
            name: "bag".into(),
            columns: vec![downriver_event::Column {
                id: 1,
                name: "a".into(),
                ty: LogicalType::Int32,
                nullable: true,
                source_type: "integer".into(),
                cover: downriver_event::Cover::None,
                default: None,
            }],
            key: Vec::new(),
            identity: ReplicaIdentity::Full,
            withheld: Vec::new(),
        })
    }

    fn change(
        out: &mut BlockBuilder,
        schema: &Arc<TableSchema>,
        old: Option<i32>,
        new: Option<i32>,
    ) {
        let image = old.map_or(OldImage::None, |_| OldImage::Full);
        let op = match (old, new) {
            (_, None) => RowOp::Delete,
            (None, _) => RowOp::Insert,
            _ => RowOp::Update,
        };
        let row = out.row(schema, op, image);
        old.into_iter().for_each(|value| row.old[0].push_i32(value));
        new.into_iter().for_each(|value| row.new[0].push_i32(value));
    }

    /// `id: changes` of each transaction.
    fn told(block: &Block) -> Vec<String> {
        let mut told = vec![String::new(); block.transactions.len()];
        let mut say = |event: u32, what: String| {
            let at = block.transaction_of(event);
            told[at] += &what;
        };
        let mut events: Vec<(u32, String)> = Vec::new();
        for group in &block.groups {
            for (row, (_, _, new, old)) in group.images().enumerate() {
                let value = |column: Option<&downriver_event::block::Column>, at: Option<usize>| {
                    let mut bytes = Vec::new();
                    let column = column?;
                    column.write_key(at?, &mut bytes);
                    Some(i32::from_le_bytes(bytes[1..5].try_into().unwrap()))
                };
                let (old, new) = (
                    value(group.old_column(1), old),
                    value(group.new_column(1), new),
                );
                events.push((group.events[row], format!(" {old:?}>{new:?}")));
            }
        }
        for marker in &block.markers {
            if let Some(pb::marker::Kind::Truncate(truncate)) = &marker.kind {
                events.push((marker.event, format!(" truncate {:?}", truncate.table_ids)));
            }
        }
        events.sort();
        events
            .into_iter()
            .for_each(|(event, what)| say(event, what));
        let ids = block.transactions.iter().map(|t| t.id.clone());
        ids.zip(told).map(|(id, what)| id + &what).collect()
    }

    #[test]
    fn what_the_snapshot_did_not_see_comes_again_in_its_order() {
        let (bag, mut other) = (table(), (*table()).clone());
        other.id = TableId(8);
        let other = Arc::new(other);
        let mut out = BlockBuilder::new();
        for xid in [3, 5, 4] {
            out.begin(xid.to_string(), 0);
            change(&mut out, &bag, None, Some(xid));
            change(&mut out, &other, None, Some(9));
            out.marker(pb::marker::Kind::Truncate(pb::Truncate {
                table_ids: vec![8, 7],
                cascade: false,
                restart_identity: false,
            }));
            change(&mut out, &bag, Some(1), Some(xid));
            change(&mut out, &bag, Some(xid), None);
            out.commit_unplaced();
        }
        let block = Block::decode(&out.cut().unwrap().frame).unwrap();
        let again = unseen(&block, &bag, |transaction| transaction.id == "3")
            .unwrap()
            .unwrap();
        let again = Block::decode(&again.frame).unwrap();
        let of = |xid: i32| {
            format!("{xid} None>Some({xid}) truncate [7] Some(1)>Some({xid}) Some({xid})>None")
        };
        assert_eq!(told(&again), [of(5), of(4)]);
        assert!(unseen(&block, &bag, |_| true).unwrap().is_none());
        let mut newer = (*bag).clone();
        newer.version = 3;
        assert!(unseen(&block, &Arc::new(newer), |_| false).is_err());
    }
}
