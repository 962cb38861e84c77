//! Rows of the open transaction are taken back: the source rolled them back, as a whole or to a savepoint.
//!
//! ```text
//! events of the block   0 1 2 3 4 5 6        r: row, m: marker
//!                       r r r m r m r
//!           take_back to 2 ┘
//!                       r r m m             markers stay, and move up
//! ```
//!
//! Markers are not the source's to roll back: a schema that was announced is known from there on.

use super::builder::{BlockBuilder, Buffer, ColumnBuilder, GroupBuilder, OldImage, RowOp};
use crate::presence::Presence;

impl BlockBuilder {
    /// How many events the open transaction has so far, over all its blocks; 0 if none is open.
    #[must_use]
    pub fn open_events(&self) -> u64 {
        self.open.as_ref().map_or(0, |open| {
            open.events_before + u64::from(self.events - open.first_event)
        })
    }

    /// Takes back the rows that came to the open transaction since it had so many events. False: some of them were cut
    /// off already, and are in a block that was handed out.
    ///
    /// # Panics
    /// If no transaction is open.
    pub fn take_back(&mut self, to: u64) -> bool {
        let open = self.open.as_ref().expect("a transaction is open");
        let is_here = to >= open.events_before;
        let kept = u32::try_from(to.saturating_sub(open.events_before)).unwrap_or(u32::MAX);
        let first = open.first_event.saturating_add(kept).min(self.events);
        for group in &mut self.groups {
            group.take_back(first);
        }
        self.groups.retain(|group| !group.events.is_empty());
        self.last_group = 0;
        self.events = first;
        for marker in self.markers.iter_mut().filter(|m| m.event >= first) {
            marker.event = self.events;
            self.events += 1;
        }
        is_here
    }
}

impl GroupBuilder {
    /// Only the rows before an event stay.
    fn take_back(&mut self, first: u32) {
        let rows = self.events.partition_point(|event| *event < first);
        if rows == self.events.len() {
            return;
        }
        self.events.truncate(rows);
        self.ops.truncate(rows);
        self.old_images.truncate(rows);
        let new = self.ops.iter();
        let new = new.filter(|op| RowOp::from_code(**op).is_some_and(RowOp::has_new));
        let (new, none) = (new.count(), OldImage::None as u8);
        let old = self.old_images.iter().filter(|image| **image != none);
        let old = old.count();
        self.new.iter_mut().for_each(|column| column.truncate(new));
        self.old.iter_mut().for_each(|column| column.truncate(old));
    }
}

impl ColumnBuilder {
    /// Only so many cells stay.
    fn truncate(&mut self, cells: usize) {
        if cells >= self.cells as usize {
            return;
        }
        let before = self.cells as usize;
        self.cells = u32::try_from(cells).expect("fewer than there were");
        self.presence.truncate(cells);
        let value = Presence::Value.code();
        if self.presence.iter().all(|code| *code == value) {
            self.presence.clear();
        }
        match &mut self.values {
            Buffer::Bool(values) => values.truncate(cells),
            Buffer::Int32(values) => values.truncate(cells),
            Buffer::Int64(values) => values.truncate(cells),
            Buffer::Float32(values) => values.truncate(cells),
            Buffer::Float64(values) => values.truncate(cells),
            Buffer::Variable { lengths, data } => {
                lengths.truncate(cells);
                let bytes = lengths.iter().map(|length| *length as usize).sum();
                data.truncate(bytes);
            }
            Buffer::Fixed16(data) => data.truncate(16 * cells),
        }
        // What the block has before compression is known about, and needs no more.
        self.raw_bytes = self.raw_bytes / before * cells;
        let absent = Presence::Absent.code();
        self.all_absent = match self.presence.is_empty() {
            true => cells == 0,
            false => self.presence.iter().all(|code| *code == absent),
        };
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use super::*;
    use crate::block::{Block, RowColumns};
    use crate::{BinlogPlace, Column, Cover, GtidSet, LogicalType, ReplicaIdentity};
    use crate::{SourcePosition, TableId, TableSchema, pb};

    fn schema(id: u32) -> Arc<TableSchema> {
        let column = |id, name: &str, ty| Column {
            id,
            name: name.into(),
            ty,
            nullable: true,
            source_type: String::new(),
            cover: Cover::None,
            default: None,
        };
        Arc::new(TableSchema {
            id: TableId(id),
            version: 1,
            namespace: "d".into(),
            name: "t".into(),
            columns: vec![
                column(1, "a", LogicalType::Int32),
                column(2, "b", LogicalType::Text),
            ],
            key: vec![1],
            identity: ReplicaIdentity::Default,
            withheld: Vec::new(),
        })
    }

    fn push(builder: &mut BlockBuilder, table: u32, op: RowOp, a: i32, b: Option<&str>) {
        let old = match op {
            RowOp::Insert => OldImage::None,
            _ => OldImage::Full,
        };
        let RowColumns { new, old } = builder.row(&schema(table), op, old);
        for columns in [new, old] {
            if let [first, second] = columns {
                first.push_i32(a);
                match b {
                    Some(b) => second.push_bytes(b.as_bytes()),
                    None => second.push_presence(Presence::Null),
                }
            }
        }
    }

    fn marker(builder: &mut BlockBuilder) {
        builder.marker(pb::marker::Kind::Truncate(pb::Truncate {
            table_ids: vec![9],
            ..pb::Truncate::default()
        }));
    }

    fn at(position: u64) -> SourcePosition {
        let place = BinlogPlace {
            file: "b".into(),
            position,
        };
        let gtids = GtidSet::default();
        SourcePosition::Mysql { gtids, place }
    }

    fn built(builder: &mut BlockBuilder) -> Option<(Vec<u8>, Block)> {
        let (encoded, block) = builder.cut_and_read()?;
        Some((encoded.frame.to_vec(), block))
    }

    #[test]
    fn what_was_taken_back_leaves_the_block_that_would_be_without_it() {
        let whole = |builder: &mut BlockBuilder| {
            builder.begin("before".into(), 1);
            push(builder, 1, RowOp::Update, 1, Some("one"));
            builder.commit(&at(1));
            builder.begin("after".into(), 2);
            push(builder, 1, RowOp::Insert, 2, None);
            push(builder, 2, RowOp::Delete, 3, Some("three"));
        };
        let mut expected = BlockBuilder::new();
        whole(&mut expected);
        marker(&mut expected);
        expected.commit(&at(2));
        let mut found = BlockBuilder::new();
        whole(&mut found);
        let mark = found.open_events();
        assert_eq!(mark, 2);
        push(&mut found, 1, RowOp::Update, 7, Some("gone"));
        push(&mut found, 3, RowOp::Insert, 7, Some("gone"));
        marker(&mut found);
        push(&mut found, 2, RowOp::Delete, 7, None);
        assert!(found.take_back(mark));
        assert_eq!(found.commit(&at(2)), 3);
        let (found, expected) = (built(&mut found).unwrap(), built(&mut expected).unwrap());
        assert_eq!(found.0, expected.0);
    }

    #[test]
    fn a_transaction_that_is_taken_back_whole_leaves_nothing() {
        let mut builder = BlockBuilder::new();
        builder.begin("x".into(), 1);
        push(&mut builder, 1, RowOp::Insert, 1, Some("one"));
        assert!(builder.take_back(0));
        assert_eq!(builder.commit(&at(1)), 0);
        assert!(builder.cut().is_none());
    }

    #[test]
    fn rows_that_were_handed_out_are_told() {
        let mut builder = BlockBuilder::new();
        builder.begin("x".into(), 1);
        push(&mut builder, 1, RowOp::Insert, 1, None);
        assert!(builder.cut().is_some_and(|block| block.continues));
        push(&mut builder, 1, RowOp::Insert, 2, None);
        assert!(!builder.take_back(0));
        assert_eq!(builder.commit(&at(1)), 1);
    }
}
