//! Opens a block: checks that its parts fit together, so that whoever walks it needs no further checks.

use bytes::Bytes;
use prost::Message as _;

use super::builder::{OldImage, RowOp};
use super::frame::{FrameError, decode_frame};
use crate::pb;
use crate::position::{SourcePosition, UnknownPosition};
use crate::presence::Presence;
use crate::schema::TableId;

/// A block that cannot be read. Its bytes passed the checksum, so it was written by a newer version or
/// by a bug; it is never skipped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BlockError {
    #[error("block frame {0}")]
    Frame(#[from] FrameError),
    #[error("block is not a valid message: {0}")]
    Message(String),
    #[error("block has an unknown {what} code {code}")]
    UnknownCode { what: &'static str, code: u8 },
    #[error("block has {0}")]
    Position(#[from] UnknownPosition),
    #[error("block does not fit together: {0}")]
    Shape(&'static str),
}

/// A checked block.
#[derive(Debug, Clone)]
pub struct Block {
    pub events: u32,
    pub transactions: Vec<pb::Transaction>,
    pub groups: Vec<RowGroup>,
    pub markers: Vec<pb::Marker>,
}

/// Rows of one table and schema version, in event order.
#[derive(Debug, Clone)]
pub struct RowGroup {
    pub table: TableId,
    pub schema_version: u32,
    /// Event index of each row.
    pub events: Vec<u32>,
    ops: Bytes,
    old_images: Bytes,
    /// A cell for each row whose op has a new image. A schema column that is not here is absent.
    pub new_columns: Vec<Column>,
    /// A cell for each row with an old image.
    pub old_columns: Vec<Column>,
}

#[derive(Debug, Clone)]
pub struct Column {
    pub id: u32,
    /// Empty: every cell is a value.
    presence: Bytes,
    pub values: Values,
    cells: usize,
}

#[derive(Debug, Clone)]
pub enum Values {
    Bool(Bytes),
    Int32(Vec<i32>),
    Int64(Vec<i64>),
    Float32(Vec<f32>),
    Float64(Vec<f64>),
    /// Cell `i` is `data[offsets[i]..offsets[i + 1]]`.
    Variable {
        offsets: Vec<u32>,
        data: Bytes,
    },
    Fixed16(Bytes),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interval {
    pub months: i32,
    pub days: i32,
    pub micros: i64,
}

/// ISO 8601, as PostgreSQL's `intervalstyle = iso_8601` prints it: `P1Y2M3DT4H5M6.7S`.
impl std::fmt::Display for Interval {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if (self.months, self.days, self.micros) == (0, 0, 0) {
            return f.write_str("PT0S");
        }
        f.write_str("P")?;
        let parts = |f: &mut std::fmt::Formatter<'_>, parts: &[(i64, char)]| {
            parts
                .iter()
                .filter(|(count, _)| *count != 0)
                .try_for_each(|(count, unit)| write!(f, "{count}{unit}"))
        };
        let months = i64::from(self.months);
        let days = i64::from(self.days);
        parts(f, &[(months / 12, 'Y'), (months % 12, 'M'), (days, 'D')])?;
        if self.micros == 0 {
            return Ok(());
        }
        f.write_str("T")?;
        let seconds = self.micros / 1_000_000;
        parts(f, &[(seconds / 3600, 'H'), (seconds / 60 % 60, 'M')])?;
        let micros = self.micros % 60_000_000;
        if micros == 0 {
            return Ok(());
        }
        let sign = if micros < 0 { "-" } else { "" };
        let (whole, fraction) = (micros.abs() / 1_000_000, micros.abs() % 1_000_000);
        let digits = format!(".{fraction:06}");
        let digits = digits.trim_end_matches('0').trim_end_matches('.');
        write!(f, "{sign}{whole}{digits}S")
    }
}

impl Block {
    /// Opens a framed block.
    ///
    /// # Errors
    /// Damaged bytes, an unknown code, or parts that do not fit together.
    pub fn decode(frame: &[u8]) -> Result<Self, BlockError> {
        Self::from_message(decode_frame(frame)?)
    }

    /// Opens the message inside a frame.
    ///
    /// # Errors
    /// As [`Block::decode`].
    pub fn from_message(message: Bytes) -> Result<Self, BlockError> {
        let block =
            pb::Block::decode(message).map_err(|error| BlockError::Message(error.to_string()))?;
        Self::from_pb(block)
    }

    pub(super) fn from_pb(block: pb::Block) -> Result<Self, BlockError> {
        let mut next = 0;
        for transaction in &block.transactions {
            if transaction.first_event != next {
                return Err(BlockError::Shape("transactions leave a gap"));
            }
            SourcePosition::from_field(transaction.position.as_ref())?;
            next = next
                .checked_add(transaction.events)
                .ok_or(BlockError::Shape("transactions have too many events"))?;
        }
        if next != block.events {
            return Err(BlockError::Shape("transactions do not cover the block"));
        }
        let groups: Vec<RowGroup> = block
            .groups
            .into_iter()
            .map(|group| RowGroup::new(group, block.events))
            .collect::<Result<_, _>>()?;
        let rows: usize = groups.iter().map(|group| group.events.len()).sum();
        if rows + block.markers.len() != block.events as usize {
            return Err(BlockError::Shape("rows and markers are not the events"));
        }
        if block
            .markers
            .iter()
            .any(|m| m.event >= block.events || m.kind.is_none())
        {
            return Err(BlockError::Shape("a marker is empty or outside the block"));
        }
        Ok(Self {
            events: block.events,
            transactions: block.transactions,
            groups,
            markers: block.markers,
        })
    }

    /// Index into `transactions` of the one that holds the event.
    #[must_use]
    pub fn transaction_of(&self, event: u32) -> usize {
        self.transactions
            .partition_point(|t| t.first_event + t.events <= event)
    }
}

impl RowGroup {
    fn new(group: pb::RowGroup, events: u32) -> Result<Self, BlockError> {
        let rows = group.events.len();
        if group.ops.len() != rows
            || !(group.old_images.is_empty() || group.old_images.len() == rows)
        {
            return Err(BlockError::Shape("a group's ops are not one a row"));
        }
        if group.events.windows(2).any(|w| w[0] >= w[1])
            || group.events.last().is_some_and(|e| *e >= events)
        {
            return Err(BlockError::Shape(
                "a group's events are not ascending in the block",
            ));
        }
        let mut new_rows = 0;
        for code in &group.ops {
            let op = RowOp::from_code(*code).ok_or(BlockError::UnknownCode {
                what: "op",
                code: *code,
            })?;
            new_rows += usize::from(op.has_new());
        }
        let mut old_rows = 0;
        for code in &group.old_images {
            let old = OldImage::from_code(*code).ok_or(BlockError::UnknownCode {
                what: "old image",
                code: *code,
            })?;
            old_rows += usize::from(old != OldImage::None);
        }
        let columns = |columns: Vec<pb::ColumnData>, cells: usize| {
            columns
                .into_iter()
                .map(|c| Column::new(c, cells))
                .collect::<Result<Vec<_>, _>>()
        };
        Ok(Self {
            table: TableId(group.table_id),
            schema_version: group.schema_version,
            events: group.events,
            new_columns: columns(group.new_columns, new_rows)?,
            old_columns: columns(group.old_columns, old_rows)?,
            ops: group.ops,
            old_images: group.old_images,
        })
    }

    #[must_use]
    pub fn rows(&self) -> usize {
        self.events.len()
    }

    /// # Panics
    /// If there is no such row.
    #[must_use]
    pub fn op(&self, row: usize) -> RowOp {
        RowOp::from_code(self.ops[row]).expect("checked when the block was opened")
    }

    /// # Panics
    /// If there is no such row.
    #[must_use]
    pub fn old_image(&self, row: usize) -> OldImage {
        match self.old_images.get(row) {
            Some(code) => OldImage::from_code(*code).expect("checked when the block was opened"),
            None => OldImage::None,
        }
    }

    /// For each row, in order: its op, its old image, and the index of its cells in `new_columns` and in
    /// `old_columns`, where it has them.
    pub fn images(
        &self,
    ) -> impl Iterator<Item = (RowOp, OldImage, Option<usize>, Option<usize>)> + '_ {
        let (mut new, mut old) = (0, 0);
        (0..self.rows()).map(move |row| {
            let (op, image) = (self.op(row), self.old_image(row));
            let at_new = op.has_new().then_some(new);
            let at_old = (image != OldImage::None).then_some(old);
            new += usize::from(at_new.is_some());
            old += usize::from(at_old.is_some());
            (op, image, at_new, at_old)
        })
    }

    #[must_use]
    pub fn new_column(&self, id: u32) -> Option<&Column> {
        self.new_columns.iter().find(|column| column.id == id)
    }

    #[must_use]
    pub fn old_column(&self, id: u32) -> Option<&Column> {
        self.old_columns.iter().find(|column| column.id == id)
    }
}

impl Column {
    pub(super) fn new(column: pb::ColumnData, cells: usize) -> Result<Self, BlockError> {
        if !(column.presence.is_empty() || column.presence.len() == cells) {
            return Err(BlockError::Shape("a column's presence is not one a cell"));
        }
        if let Some(code) = column
            .presence
            .iter()
            .find(|c| Presence::from_code(**c).is_none())
        {
            return Err(BlockError::UnknownCode {
                what: "presence",
                code: *code,
            });
        }
        let (values, present) = if !column.bools.is_empty() {
            let len = column.bools.len();
            (Values::Bool(column.bools), len)
        } else if !column.int32s.is_empty() {
            let len = column.int32s.len();
            (Values::Int32(column.int32s), len)
        } else if !column.int64s.is_empty() {
            let len = column.int64s.len();
            (Values::Int64(column.int64s), len)
        } else if !column.floats.is_empty() {
            let len = column.floats.len();
            (Values::Float32(column.floats), len)
        } else if !column.doubles.is_empty() {
            let len = column.doubles.len();
            (Values::Float64(column.doubles), len)
        } else if !column.lengths.is_empty() {
            let mut offsets = Vec::with_capacity(column.lengths.len() + 1);
            let mut end = 0u32;
            offsets.push(0);
            for len in &column.lengths {
                end = end
                    .checked_add(*len)
                    .ok_or(BlockError::Shape("a column is over 4 GiB"))?;
                offsets.push(end);
            }
            if end as usize != column.data.len() {
                return Err(BlockError::Shape(
                    "a column's lengths do not add up to its data",
                ));
            }
            let len = column.lengths.len();
            (
                Values::Variable {
                    offsets,
                    data: column.data,
                },
                len,
            )
        } else {
            if !column.data.len().is_multiple_of(16) {
                return Err(BlockError::Shape("a column's data are not 16 bytes a cell"));
            }
            let len = column.data.len() / 16;
            (Values::Fixed16(column.data), len)
        };
        if present != cells {
            return Err(BlockError::Shape("a column's cells are not one a row"));
        }
        Ok(Self {
            id: column.column_id,
            presence: column.presence,
            values,
            cells,
        })
    }

    #[must_use]
    pub fn cells(&self) -> usize {
        self.cells
    }

    /// # Panics
    /// If there is no such cell.
    #[must_use]
    pub fn presence(&self, cell: usize) -> Presence {
        match self.presence.get(cell) {
            Some(code) => Presence::from_code(*code).expect("checked when the block was opened"),
            None => Presence::Value,
        }
    }

    /// Appends a form of the cell that is equal for equal cells and differs for different ones, among
    /// columns of one type: a key's bytes are those of its columns, one after another.
    pub fn write_key(&self, cell: usize, key: &mut Vec<u8>) {
        let presence = self.presence(cell);
        key.push(presence.code());
        if presence != Presence::Value {
            return;
        }
        match &self.values {
            Values::Bool(cells) => key.push(cells[cell]),
            Values::Int32(cells) => key.extend_from_slice(&cells[cell].to_le_bytes()),
            Values::Int64(cells) => key.extend_from_slice(&cells[cell].to_le_bytes()),
            Values::Float32(cells) => {
                key.extend_from_slice(&(cells[cell] + 0.0).to_bits().to_le_bytes())
            }
            Values::Float64(cells) => {
                key.extend_from_slice(&(cells[cell] + 0.0).to_bits().to_le_bytes())
            }
            Values::Variable { .. } | Values::Fixed16(_) => {
                let bytes = self.bytes(cell).expect("the column holds bytes");
                key.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
                key.extend_from_slice(bytes);
            }
        }
    }

    /// As [`Column::write_key`], where 0 and -0 are different too.
    pub fn write_exact(&self, cell: usize, row: &mut Vec<u8>) {
        let value = |presence: Presence| presence == Presence::Value;
        match &self.values {
            Values::Float32(cells) if value(self.presence(cell)) => {
                row.push(Presence::Value.code());
                row.extend_from_slice(&cells[cell].to_bits().to_le_bytes());
            }
            Values::Float64(cells) if value(self.presence(cell)) => {
                row.push(Presence::Value.code());
                row.extend_from_slice(&cells[cell].to_bits().to_le_bytes());
            }
            _ => self.write_key(cell, row),
        }
    }

    #[must_use]
    pub fn all_values(&self) -> bool {
        self.presence.is_empty()
    }

    /// Bytes of a variable-length or 16-byte cell; `None` for other columns.
    #[must_use]
    pub fn bytes(&self, cell: usize) -> Option<&[u8]> {
        match &self.values {
            Values::Variable { offsets, data } => {
                Some(&data[offsets[cell] as usize..offsets[cell + 1] as usize])
            }
            Values::Fixed16(data) => Some(&data[cell * 16..cell * 16 + 16]),
            _ => None,
        }
    }

    /// The interval in a 16-byte cell; `None` for other columns.
    #[must_use]
    pub fn interval(&self, cell: usize) -> Option<Interval> {
        let Values::Fixed16(data) = &self.values else {
            return None;
        };
        let bytes = &data[cell * 16..cell * 16 + 16];
        let four = |at: usize| bytes[at..at + 4].try_into().map(i32::from_le_bytes).ok();
        Some(Interval {
            months: four(0)?,
            days: four(4)?,
            micros: bytes[8..].try_into().map(i64::from_le_bytes).ok()?,
        })
    }
}
