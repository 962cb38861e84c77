//! Builds blocks column by column, straight from the source's cells.
//!
//! ```text
//! begin ─> row* / marker* ─> commit          one source transaction
//!              └─ cut ─> block               any time: an open transaction goes on in the next block
//! ```

use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;

use super::frame::encode_frame;
use super::reader::{Block, Column, Values};
use crate::pb;
use crate::position::SourcePosition;
use crate::presence::Presence;
use crate::schema::{LogicalType, Physical, TableId, TableSchema};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum RowOp {
    Insert = 1,
    Update = 2,
    Delete = 3,
    Snapshot = 4,
}

impl RowOp {
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => Self::Insert,
            2 => Self::Update,
            3 => Self::Delete,
            4 => Self::Snapshot,
            _ => return None,
        })
    }

    /// Whether the row has an image after the change.
    #[must_use]
    pub fn has_new(self) -> bool {
        self != Self::Delete
    }
}

/// Which image before the change a row carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum OldImage {
    None = 0,
    Key = 1,
    Full = 2,
}

impl OldImage {
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            0 => Self::None,
            1 => Self::Key,
            2 => Self::Full,
            _ => return None,
        })
    }
}

/// A finished block: framed bytes, and what the journal needs to know of them.
#[derive(Clone, Debug)]
pub struct EncodedBlock {
    pub frame: Bytes,
    pub events: u32,
    /// Smallest and largest commit time, microseconds since 1970 UTC.
    pub time_min_us: i64,
    pub time_max_us: i64,
    /// Sorted, each once.
    pub tables: Vec<TableId>,
    /// Whether the last transaction goes on in the next block.
    pub continues: bool,
}

/// The columns of the row that was just opened. Each column of `new` (`old`) must get exactly one cell if
/// the row has that image; the slice is empty if it has not.
pub struct RowColumns<'a> {
    pub new: &'a mut [ColumnBuilder],
    pub old: &'a mut [ColumnBuilder],
}

/// Collects the cells of one column of one image.
#[derive(Debug)]
pub struct ColumnBuilder {
    pub(super) id: u32,
    pub(super) cells: u32,
    /// Empty as long as every cell is a value.
    pub(super) presence: Vec<u8>,
    pub(super) values: Buffer,
    pub(super) raw_bytes: usize,
    pub(super) all_absent: bool,
    pub(super) int_stats: bool,
}

#[derive(Debug)]
pub(super) enum Buffer {
    Bool(Vec<u8>),
    Int32(Vec<i32>),
    Int64(Vec<i64>),
    Float32(Vec<f32>),
    Float64(Vec<f64>),
    Variable { lengths: Vec<u32>, data: Vec<u8> },
    Fixed16(Vec<u8>),
}

impl ColumnBuilder {
    #[must_use]
    pub fn new(id: u32, ty: &LogicalType) -> Self {
        let values = match ty.physical() {
            Physical::Bool => Buffer::Bool(Vec::new()),
            Physical::Int32 => Buffer::Int32(Vec::new()),
            Physical::Int64 => Buffer::Int64(Vec::new()),
            Physical::Float32 => Buffer::Float32(Vec::new()),
            Physical::Float64 => Buffer::Float64(Vec::new()),
            Physical::Variable => Buffer::Variable {
                lengths: Vec::new(),
                data: Vec::new(),
            },
            Physical::Fixed16 => Buffer::Fixed16(Vec::new()),
        };
        Self {
            id,
            cells: 0,
            presence: Vec::new(),
            values,
            raw_bytes: 0,
            all_absent: true,
            int_stats: true,
        }
    }

    fn value_added(&mut self, bytes: usize) {
        if !self.presence.is_empty() {
            self.presence.push(Presence::Value.code());
        }
        self.cells += 1;
        self.raw_bytes += bytes;
        self.all_absent = false;
    }

    /// # Panics
    /// If the column is not of that physical form; the same holds for the other `push_` functions.
    pub fn push_bool(&mut self, value: bool) {
        let Buffer::Bool(cells) = &mut self.values else {
            panic!("column {} holds no booleans", self.id)
        };
        cells.push(u8::from(value));
        self.value_added(1);
    }

    pub fn push_i32(&mut self, value: i32) {
        let Buffer::Int32(cells) = &mut self.values else {
            panic!("column {} holds no 32-bit integers", self.id)
        };
        cells.push(value);
        self.value_added(4);
    }

    pub fn push_i64(&mut self, value: i64) {
        let Buffer::Int64(cells) = &mut self.values else {
            panic!("column {} holds no 64-bit integers", self.id)
        };
        cells.push(value);
        self.value_added(8);
    }

    pub fn push_f32(&mut self, value: f32) {
        let Buffer::Float32(cells) = &mut self.values else {
            panic!("column {} holds no 32-bit floats", self.id)
        };
        cells.push(value);
        self.value_added(4);
    }

    pub fn push_f64(&mut self, value: f64) {
        let Buffer::Float64(cells) = &mut self.values else {
            panic!("column {} holds no 64-bit floats", self.id)
        };
        cells.push(value);
        self.value_added(8);
    }

    pub fn push_bytes(&mut self, value: &[u8]) {
        let Buffer::Variable { lengths, data } = &mut self.values else {
            panic!("column {} holds no variable-length values", self.id)
        };
        data.extend_from_slice(value);
        lengths.push(u32::try_from(value.len()).expect("a value is under VALUE_BYTES_MAX"));
        self.value_added(value.len() + 2);
    }

    pub fn push_fixed16(&mut self, value: &[u8; 16]) {
        let Buffer::Fixed16(data) = &mut self.values else {
            panic!("column {} holds no 16-byte values", self.id)
        };
        data.extend_from_slice(value);
        self.value_added(16);
    }

    /// Months, days and microseconds of an interval.
    pub fn push_interval(&mut self, months: i32, days: i32, micros: i64) {
        let mut value = [0; 16];
        value[..4].copy_from_slice(&months.to_le_bytes());
        value[4..8].copy_from_slice(&days.to_le_bytes());
        value[8..].copy_from_slice(&micros.to_le_bytes());
        self.push_fixed16(&value);
    }

    /// A cell that is not a value. `Presence::Value` here is a bug of the caller.
    pub fn push_presence(&mut self, presence: Presence) {
        debug_assert_ne!(presence, Presence::Value);
        if self.presence.is_empty() {
            self.presence = vec![Presence::Value.code(); self.cells as usize];
        }
        self.presence.push(presence.code());
        self.cells += 1;
        self.raw_bytes += 2;
        self.all_absent &= presence == Presence::Absent;
        match &mut self.values {
            Buffer::Bool(cells) => cells.push(0),
            Buffer::Int32(cells) => cells.push(0),
            Buffer::Int64(cells) => cells.push(0),
            Buffer::Float32(cells) => cells.push(0.0),
            Buffer::Float64(cells) => cells.push(0.0),
            Buffer::Variable { lengths, .. } => lengths.push(0),
            Buffer::Fixed16(data) => data.extend_from_slice(&[0; 16]),
        }
    }

    /// Copies a cell of a block that was read.
    ///
    /// # Panics
    /// If the columns are of different physical forms.
    pub fn push_cell(&mut self, column: &Column, cell: usize) {
        let presence = column.presence(cell);
        if presence != Presence::Value {
            return self.push_presence(presence);
        }
        match &column.values {
            Values::Bool(cells) => self.push_bool(cells[cell] != 0),
            Values::Int32(cells) => self.push_i32(cells[cell]),
            Values::Int64(cells) => self.push_i64(cells[cell]),
            Values::Float32(cells) => self.push_f32(cells[cell]),
            Values::Float64(cells) => self.push_f64(cells[cell]),
            Values::Variable { .. } => {
                self.push_bytes(
                    column
                        .bytes(cell)
                        .expect("a variable-length column has bytes"),
                );
            }
            Values::Fixed16(_) => {
                let bytes = column.bytes(cell).expect("a 16-byte column has bytes");
                self.push_fixed16(bytes.try_into().expect("a cell has 16 bytes"));
            }
        }
    }

    fn is_value(&self, cell: usize) -> bool {
        self.presence.is_empty() || self.presence[cell] == Presence::Value.code()
    }

    fn stats(&self) -> pb::ColumnStats {
        let null = Presence::Null.code();
        let nulls = self.presence.iter().filter(|code| **code == null).count();
        let range = |values: &mut dyn Iterator<Item = i64>| {
            values.fold(None, |range: Option<(i64, i64)>, v| match range {
                None => Some((v, v)),
                Some((low, high)) => Some((low.min(v), high.max(v))),
            })
        };
        let known = |index: &usize| self.is_value(*index);
        let bounds = match &self.values {
            Buffer::Int32(cells) => {
                range(&mut (0..cells.len()).filter(known).map(|i| i64::from(cells[i])))
            }
            Buffer::Int64(cells) => range(&mut (0..cells.len()).filter(known).map(|i| cells[i])),
            _ => None,
        };
        pb::ColumnStats {
            nulls: u32::try_from(nulls).expect("a block has under 2^32 cells"),
            min_int: bounds.map(|b| b.0),
            max_int: bounds.map(|b| b.1),
        }
    }

    /// The cells pushed so far as a column that can be read; `None` if there are none.
    #[must_use]
    pub fn read(self) -> Option<Column> {
        let cells = self.cells as usize;
        (cells > 0).then(|| Column::new(self.finish(), cells).expect("what was built can be read"))
    }

    fn finish(self) -> pb::ColumnData {
        let stats = self.int_stats.then(|| self.stats());
        let mut column = pb::ColumnData {
            column_id: self.id,
            presence: Bytes::from(self.presence),
            stats,
            ..pb::ColumnData::default()
        };
        match self.values {
            Buffer::Bool(cells) => column.bools = Bytes::from(cells),
            Buffer::Int32(cells) => column.int32s = cells,
            Buffer::Int64(cells) => column.int64s = cells,
            Buffer::Float32(cells) => column.floats = cells,
            Buffer::Float64(cells) => column.doubles = cells,
            Buffer::Variable { lengths, data } => {
                column.lengths = lengths;
                column.data = Bytes::from(data);
            }
            Buffer::Fixed16(data) => column.data = Bytes::from(data),
        }
        column
    }
}

#[derive(Debug)]
pub(super) struct GroupBuilder {
    pub(super) table: TableId,
    pub(super) version: u32,
    pub(super) events: Vec<u32>,
    pub(super) ops: Vec<u8>,
    /// Empty as long as no row has an old image.
    pub(super) old_images: Vec<u8>,
    pub(super) new: Vec<ColumnBuilder>,
    pub(super) old: Vec<ColumnBuilder>,
}

impl GroupBuilder {
    fn new(schema: &TableSchema) -> Self {
        let columns = || {
            schema
                .columns
                .iter()
                .map(|column| ColumnBuilder::new(column.id, &column.ty))
                .collect()
        };
        Self {
            table: schema.id,
            version: schema.version,
            events: Vec::new(),
            ops: Vec::new(),
            old_images: Vec::new(),
            new: columns(),
            old: columns(),
        }
    }

    fn finish(self) -> pb::RowGroup {
        let columns = |columns: Vec<ColumnBuilder>| {
            columns
                .into_iter()
                .filter(|column| column.cells > 0 && !column.all_absent)
                .map(ColumnBuilder::finish)
                .collect()
        };
        pb::RowGroup {
            table_id: self.table.0,
            schema_version: self.version,
            events: self.events,
            ops: Bytes::from(self.ops),
            old_images: Bytes::from(self.old_images),
            new_columns: columns(self.new),
            old_columns: columns(self.old),
        }
    }
}

#[derive(Debug)]
pub(super) struct OpenTransaction {
    pub(super) id: String,
    pub(super) origin: String,
    pub(super) commit_time_us: i64,
    pub(super) first_event: u32,
    pub(super) events_before: u64,
}

/// Builds one block after another. Holds at most one open transaction.
#[derive(Debug, Default)]
pub struct BlockBuilder {
    pub(super) events: u32,
    pub(super) transactions: Vec<pb::Transaction>,
    pub(super) groups: Vec<GroupBuilder>,
    pub(super) last_group: usize,
    pub(super) markers: Vec<pb::Marker>,
    pub(super) open: Option<OpenTransaction>,
    /// Raw bytes of the rows that are finished; the row being written is counted with the next one.
    pub(super) raw_bytes: usize,
}

impl BlockBuilder {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// # Panics
    /// If a transaction is open.
    pub fn begin(&mut self, id: String, commit_time_us: i64) {
        assert!(self.open.is_none(), "a transaction is open");
        self.open = Some(OpenTransaction {
            id,
            origin: String::new(),
            commit_time_us,
            first_event: self.events,
            events_before: 0,
        });
    }

    /// The open transaction was applied at the source under this replication origin.
    ///
    /// # Panics
    /// If no transaction is open.
    pub fn origin(&mut self, name: &str) {
        let open = self.open.as_mut().expect("a transaction is open");
        name.clone_into(&mut open.origin);
    }

    #[must_use]
    pub fn in_transaction(&self) -> bool {
        self.open.is_some()
    }

    /// Opens a row of the open transaction; the caller fills every column of the images that it has.
    ///
    /// # Panics
    /// If no transaction is open.
    pub fn row(&mut self, schema: &Arc<TableSchema>, op: RowOp, old: OldImage) -> RowColumns<'_> {
        assert!(self.open.is_some(), "a row outside a transaction");
        let matches =
            |group: &GroupBuilder| group.table == schema.id && group.version == schema.version;
        if !self.groups.get(self.last_group).is_some_and(matches) {
            self.last_group = match self.groups.iter().position(matches) {
                Some(found) => found,
                None => {
                    self.groups.push(GroupBuilder::new(schema));
                    self.groups.len() - 1
                }
            };
        }
        let group = &mut self.groups[self.last_group];
        if old != OldImage::None && group.old_images.is_empty() {
            group.old_images = vec![OldImage::None as u8; group.ops.len()];
        }
        group.events.push(self.events);
        group.ops.push(op as u8);
        if old != OldImage::None || !group.old_images.is_empty() {
            group.old_images.push(old as u8);
        }
        self.events += 1;
        self.raw_bytes += 6;
        RowColumns {
            new: if op.has_new() {
                &mut group.new
            } else {
                &mut []
            },
            old: if old == OldImage::None {
                &mut []
            } else {
                &mut group.old
            },
        }
    }

    /// Adds an event without a row to the open transaction.
    ///
    /// # Panics
    /// If no transaction is open.
    pub fn marker(&mut self, kind: pb::marker::Kind) {
        assert!(self.open.is_some(), "a marker outside a transaction");
        self.raw_bytes += match &kind {
            pb::marker::Kind::Message(message) => 64 + message.content.len(),
            _ => 64,
        };
        self.markers.push(pb::Marker {
            event: self.events,
            kind: Some(kind),
        });
        self.events += 1;
    }

    /// Ends the open transaction. Returns how many events it had, over all its blocks; one without
    /// events leaves no trace.
    ///
    /// # Panics
    /// If no transaction is open.
    pub fn commit(&mut self, position: &SourcePosition) -> u64 {
        self.end_transaction(Some(position))
    }

    /// As [`BlockBuilder::commit`], at the position that the append will have: for rows that a snapshot
    /// read and that join the stream later.
    ///
    /// # Panics
    /// If no transaction is open.
    pub fn commit_unplaced(&mut self) -> u64 {
        self.end_transaction(None)
    }

    fn end_transaction(&mut self, position: Option<&SourcePosition>) -> u64 {
        let open = self.open.take().expect("a transaction is open");
        let here = self.events - open.first_event;
        let total = open.events_before + u64::from(here);
        if total > 0 {
            self.push_transaction(open, here, position, true);
        }
        total
    }

    fn push_transaction(
        &mut self,
        open: OpenTransaction,
        events: u32,
        position: Option<&SourcePosition>,
        ends: bool,
    ) {
        self.transactions.push(pb::Transaction {
            id: open.id,
            position: position.map(SourcePosition::to_pb),
            commit_time_us: open.commit_time_us,
            first_event: open.first_event,
            events,
            ends,
            events_before: open.events_before,
            origin: open.origin,
        });
    }

    /// Events in the block being built.
    #[must_use]
    pub fn events(&self) -> u32 {
        self.events
    }

    /// About how many bytes the block has before compression.
    #[must_use]
    pub fn raw_bytes(&self) -> usize {
        let columns = self.groups.iter().flat_map(|g| g.new.iter().chain(&g.old));
        self.raw_bytes + columns.map(|column| column.raw_bytes).sum::<usize>()
    }

    /// Finishes the block; `None` if it is empty and no transaction ended in it. An open
    /// transaction goes on in the next one, which this builder then holds.
    pub fn cut(&mut self) -> Option<EncodedBlock> {
        self.cut_message().map(|(encoded, _)| encoded)
    }

    /// As [`BlockBuilder::cut`], and hands out the block itself for whoever needs its rows now.
    ///
    /// # Panics
    /// If the builder built a block that its reader refuses: a bug.
    pub fn cut_and_read(&mut self) -> Option<(EncodedBlock, Block)> {
        self.cut_message().map(|(encoded, message)| {
            let block = Block::from_pb(message).expect("what was built can be read");
            (encoded, block)
        })
    }

    fn cut_message(&mut self) -> Option<(EncodedBlock, pb::Block)> {
        if self.events == 0 && self.transactions.is_empty() {
            return None;
        }
        let continued = self.open.take().map(|open| {
            let here = self.events - open.first_event;
            let next = OpenTransaction {
                id: open.id.clone(),
                origin: open.origin.clone(),
                commit_time_us: open.commit_time_us,
                first_event: 0,
                events_before: open.events_before + u64::from(here),
            };
            if here > 0 {
                self.push_transaction(open, here, None, false);
            }
            (here > 0, next)
        });
        let built = std::mem::take(self);
        let (continues, open) = continued.map_or((false, None), |(c, next)| (c, Some(next)));
        self.open = open;
        Some(built.finish(continues))
    }

    fn finish(self, continues: bool) -> (EncodedBlock, pb::Block) {
        let mut tables: Vec<TableId> = self.groups.iter().map(|group| group.table).collect();
        tables.extend(self.markers.iter().flat_map(marker_tables));
        tables.sort_unstable();
        tables.dedup();
        let times = self.transactions.iter().map(|t| t.commit_time_us);
        let time_min_us = times.clone().min().unwrap_or_default();
        let time_max_us = times.max().unwrap_or_default();
        let block = pb::Block {
            events: self.events,
            transactions: self.transactions,
            groups: self.groups.into_iter().map(GroupBuilder::finish).collect(),
            markers: self.markers,
        };
        let encoded = EncodedBlock {
            frame: encode_frame(&block.encode_to_vec()),
            events: block.events,
            time_min_us,
            time_max_us,
            tables,
            continues,
        };
        (encoded, block)
    }
}

/// The tables that an event without a row speaks of.
fn marker_tables(marker: &pb::Marker) -> Vec<TableId> {
    use pb::marker::Kind;
    match &marker.kind {
        Some(Kind::SchemaChange(change)) => {
            change.schema.iter().map(|s| TableId(s.table_id)).collect()
        }
        Some(Kind::SnapshotStart(start)) => vec![TableId(start.table_id)],
        Some(Kind::SnapshotEnd(end)) => vec![TableId(end.table_id)],
        Some(Kind::PartialSnapshotStart(start)) => vec![TableId(start.table_id)],
        Some(Kind::PartialSnapshotEnd(end)) => vec![TableId(end.table_id)],
        Some(Kind::Truncate(truncate)) => {
            truncate.table_ids.iter().map(|id| TableId(*id)).collect()
        }
        Some(Kind::Message(_) | Kind::Hole(_)) | None => Vec::new(),
    }
}
