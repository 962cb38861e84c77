//! The log of one source table: events at dense offsets, the blocks that carry them, and what they make of the table.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use downriver_event::block::{Block, OldImage, RowOp};
use downriver_event::{
    BlockBuilder, Column, Cover, LogicalType, Lsn, Offset, Presence, ReplicaIdentity,
    SourcePosition, TableId, TableSchema, pb,
};
use downriver_lake::{Changes, Schemas};
use rand::Rng;
use rand::rngs::StdRng;

const TABLE: TableId = TableId(7);
/// Another table of the same stream: its events pass this one by.
const OTHER: TableId = TableId(8);
/// Few, so that every key is changed again and again.
const KEYS: i64 = 12;

pub(crate) fn schema(version: u32) -> Arc<TableSchema> {
    of_table(TABLE, version)
}

fn of_table(id: TableId, version: u32) -> Arc<TableSchema> {
    let column = |id, name: &str| Column {
        id,
        name: name.into(),
        ty: LogicalType::Int64,
        nullable: id > 1,
        source_type: "bigint".into(),
        cover: Cover::None,
        default: None,
    };
    let mut columns = vec![column(1, "id"), column(2, "value"), column(3, "note")];
    if version > 1 {
        columns.push(column(4, "extra"));
    }
    Arc::new(TableSchema {
        id,
        version,
        namespace: "public".into(),
        name: format!("things_{}", id.0),
        columns,
        key: vec![1],
        identity: ReplicaIdentity::Default,
        withheld: Vec::new(),
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    value: i64,
    note: i64,
    extra: Option<i64>,
}

pub(crate) type Rows = BTreeMap<i64, Row>;

#[derive(Clone, Copy, Debug)]
enum Event {
    /// A row that is there afterwards, and the key that it had before.
    Put(i64, Row, Option<i64>),
    /// The value was not sent: it is what it was.
    Keep(i64, Row),
    Delete(i64),
    Truncate,
    /// A generation of the table's snapshot starts, brings a row, and ends: what it did not see and nothing changed since
    /// it started is gone at the source.
    Start,
    Seen(i64, Row),
    End,
    /// The table has another column from here on.
    Widen,
    OfOther,
}

#[derive(Debug, Default)]
pub(crate) struct SourceLog {
    events: Vec<Event>,
    blocks: Vec<(Offset, Block)>,
    /// Where transactions end.
    ends: Vec<Offset>,
    /// As the source has them: some may have gone without an event.
    rows: Rows,
    is_wide: bool,
    /// Keys that the generation under way has not read yet.
    unread: Option<Vec<i64>>,
    values: i64,
}

impl SourceLog {
    pub(crate) fn end(&self) -> Offset {
        Offset(self.events.len() as u64)
    }

    /// Versions of the table's schema that the log speaks of.
    pub(crate) fn versions(&self) -> Vec<Arc<TableSchema>> {
        (1..=1 + u32::from(self.is_wide)).map(schema).collect()
    }

    pub(crate) fn schemas() -> Schemas {
        [TABLE, OTHER]
            .into_iter()
            .flat_map(|table| (1..=2).map(move |v| ((table, v), of_table(table, v))))
            .collect()
    }

    /// The end of some transaction behind an offset; the offset itself if there is none.
    pub(crate) fn some_end(&self, after: Offset, random: &mut StdRng) -> Offset {
        let first = self.ends.partition_point(|end| *end <= after);
        let last = self.ends.len().min(first + 4);
        if first >= last {
            return after;
        }
        self.ends[random.random_range(first..last)]
    }

    /// The blocks that hold the events from `from` to `to`, and which of their events that are.
    pub(crate) fn read(&self, from: Offset, to: Offset) -> Vec<(Changes, std::ops::Range<u32>)> {
        let of_block = |(base, block): &(Offset, Block)| {
            let within = |at: Offset| {
                let at = at.0.saturating_sub(base.0).min(u64::from(block.events));
                u32::try_from(at).unwrap()
            };
            let range = within(from)..within(to);
            (!range.is_empty()).then(|| (Changes::new(*base, block.clone()), range))
        };
        self.blocks.iter().filter_map(of_block).collect()
    }

    /// What the events before `to` make of the table.
    pub(crate) fn fold(&self, to: Offset) -> Rows {
        let mut rows = Rows::new();
        let mut seen = BTreeSet::new();
        let count = usize::try_from(to.0).unwrap().min(self.events.len());
        for event in &self.events[..count] {
            match event {
                Event::Start => seen.clear(),
                Event::End => rows.retain(|key, _| seen.contains(key)),
                Event::Put(key, _, _) | Event::Keep(key, _) | Event::Seen(key, _) => {
                    seen.insert(*key);
                }
                _ => {}
            }
            apply(&mut rows, *event);
        }
        rows
    }

    /// Logs a block of a few transactions.
    pub(crate) fn grow(&mut self, random: &mut StdRng) {
        let base = self.end();
        let mut builder = BlockBuilder::new();
        for _ in 0..random.random_range(1..=3) {
            builder.begin(self.ends.len().to_string(), 1_000);
            for event in self.some_transaction(random) {
                push(&mut builder, event, self.is_wide);
                apply(&mut self.rows, event);
                self.is_wide |= matches!(event, Event::Widen);
                self.events.push(event);
            }
            builder.commit(&SourcePosition::Postgres(Lsn(self.end().0)));
            self.ends.push(self.end());
        }
        let (encoded, block) = builder.cut_and_read().unwrap();
        assert_eq!(base.plus(u64::from(encoded.events)), self.end());
        self.blocks.push((base, block));
    }

    fn some_transaction(&mut self, random: &mut StdRng) -> Vec<Event> {
        match &mut self.unread {
            None if random.random_bool(0.05) => {
                // The hole that the generation mends.
                self.rows.retain(|_, _| random.random_bool(0.8));
                self.unread = Some((0..KEYS).collect());
                return vec![Event::Start];
            }
            Some(unread) if random.random_bool(0.4) => {
                if unread.is_empty() {
                    self.unread = None;
                    return vec![Event::End];
                }
                let chunk: Vec<i64> = unread.drain(..unread.len().min(4)).collect();
                let read = chunk.iter().filter_map(|key| self.rows.get_key_value(key));
                let read: Vec<Event> = read.map(|(key, row)| Event::Seen(*key, *row)).collect();
                if !read.is_empty() {
                    return read;
                }
            }
            _ => {}
        }
        let of_other = random.random_bool(0.2);
        let count = random.random_range(1..=5);
        let mut events = Vec::new();
        let before = (self.rows.clone(), self.is_wide);
        for _ in 0..count {
            let event = if of_other {
                Event::OfOther
            } else {
                self.some_event(random)
            };
            apply(&mut self.rows, event);
            self.is_wide |= matches!(event, Event::Widen);
            events.push(event);
        }
        (self.rows, self.is_wide) = before;
        events
    }

    fn some_event(&mut self, random: &mut StdRng) -> Event {
        self.values += 1;
        let row = Row {
            value: self.values,
            note: self.values * 10,
            extra: self.is_wide.then_some(self.values * 100),
        };
        let key = random.random_range(0..KEYS);
        let is_there = self.rows.contains_key(&key);
        match random.random_range(0..100) {
            0 => Event::Truncate,
            1..3 if !self.is_wide => Event::Widen,
            3..30 if is_there => Event::Delete(key),
            30..50 if is_there => Event::Keep(key, row),
            50..65 => match random.random_range(0..KEYS) {
                old if self.rows.contains_key(&old) && !is_there => Event::Put(key, row, Some(old)),
                _ => Event::Put(key, row, None),
            },
            _ => Event::Put(key, row, None),
        }
    }
}

fn apply(rows: &mut Rows, event: Event) {
    match event {
        Event::Put(key, row, old) => {
            if let Some(old) = old {
                rows.remove(&old);
            }
            rows.insert(key, row);
        }
        Event::Seen(key, row) => {
            rows.insert(key, row);
        }
        Event::Keep(key, row) => {
            let value = rows[&key].value;
            rows.insert(key, Row { value, ..row });
        }
        Event::Delete(key) => {
            rows.remove(&key);
        }
        Event::Truncate => rows.clear(),
        Event::Start | Event::End | Event::Widen | Event::OfOther => {}
    }
}

fn push(builder: &mut BlockBuilder, event: Event, is_wide: bool) {
    let shape = schema(1 + u32::from(is_wide));
    match event {
        Event::Put(key, row, old) => {
            push_row(builder, &shape, (RowOp::Update, false), key, row, old);
        }
        Event::Keep(key, row) => push_row(builder, &shape, (RowOp::Update, true), key, row, None),
        Event::Seen(key, row) => {
            push_row(builder, &shape, (RowOp::Snapshot, false), key, row, None);
        }
        Event::Start => builder.marker(pb::marker::Kind::SnapshotStart(pb::SnapshotStart {
            table_id: TABLE.0,
            generation: 1,
        })),
        Event::End => builder.marker(pb::marker::Kind::SnapshotEnd(pb::SnapshotEnd {
            table_id: TABLE.0,
            generation: 1,
            rows: 0,
        })),
        Event::Delete(key) => {
            let columns = builder.row(&shape, RowOp::Delete, OldImage::Key);
            columns.old[0].push_i64(key);
            for column in &mut columns.old[1..] {
                column.push_presence(Presence::Absent);
            }
        }
        Event::Truncate => builder.marker(pb::marker::Kind::Truncate(pb::Truncate {
            table_ids: vec![TABLE.0],
            cascade: false,
            restart_identity: false,
        })),
        Event::Widen => builder.marker(pb::marker::Kind::SchemaChange(pb::SchemaChange {
            schema: Some(schema(2).to_pb()),
            previous_version: 1,
        })),
        Event::OfOther => {
            let columns = builder.row(&of_table(OTHER, 1), RowOp::Insert, OldImage::None);
            for column in columns.new.iter_mut() {
                column.push_i64(1);
            }
        }
    }
}

fn push_row(
    builder: &mut BlockBuilder,
    shape: &Arc<TableSchema>,
    (op, keeps_value): (RowOp, bool),
    key: i64,
    row: Row,
    old: Option<i64>,
) {
    let image = old.map_or(OldImage::None, |_| OldImage::Key);
    let columns = builder.row(shape, op, image);
    columns.new[0].push_i64(key);
    if keeps_value {
        columns.new[1].push_presence(Presence::Unchanged);
    } else {
        columns.new[1].push_i64(row.value);
    }
    columns.new[2].push_i64(row.note);
    if let Some(column) = columns.new.get_mut(3) {
        match row.extra {
            Some(extra) => column.push_i64(extra),
            None => column.push_presence(Presence::Null),
        }
    }
    if let Some(old) = old {
        columns.old[0].push_i64(old);
        for column in &mut columns.old[1..] {
            column.push_presence(Presence::Absent);
        }
    }
}

/// Rows as a block of the log would bring them, to be compared with the lake's. `None`: the shape cannot hold them.
pub(crate) fn block_of(rows: &Rows, shape: &Arc<TableSchema>) -> Option<Vec<Block>> {
    if shape.version == 1 && rows.values().any(|row| row.extra.is_some()) {
        return None;
    }
    let mut builder = BlockBuilder::new();
    builder.begin("model".into(), 0);
    for (key, row) in rows {
        push_row(
            &mut builder,
            shape,
            (RowOp::Snapshot, false),
            *key,
            *row,
            None,
        );
    }
    let cut = builder.cut_and_read();
    Some(cut.map(|(_, block)| block).into_iter().collect())
}
