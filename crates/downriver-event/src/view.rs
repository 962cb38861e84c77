//! The row view: a block's events one by one, as clients of the log read them.

use prost::Message as _;

use crate::block::{Block, BlockError, Column, ColumnBuilder, OldImage, RowGroup, RowOp, Values};
use crate::pb;
use crate::position::{Offset, SourcePosition};
use crate::presence::Presence;
use crate::schema::{LogicalType, Physical, TableSchema};

/// Makes the row view of a block's events, in order.
///
/// `position_after` is where the append that brought the block ends: the position of a transaction that
/// goes on in the next block. `schema` finds the schema of a table's version.
///
/// # Errors
/// A group whose schema is not known, or whose columns are not of their schema's types.
pub fn events<'a>(
    block: &Block,
    base: Offset,
    position_after: &SourcePosition,
    schema: impl Fn(u32, u32) -> Option<&'a TableSchema>,
) -> Result<Vec<pb::ChangeEvent>, BlockError> {
    let mut events: Vec<Option<pb::ChangeEvent>> = vec![None; block.events as usize];
    let fresh = |event: u32| {
        let transaction = &block.transactions[block.transaction_of(event)];
        let position = transaction
            .position
            .clone()
            .unwrap_or_else(|| position_after.to_pb());
        let index = event - transaction.first_event;
        pb::ChangeEvent {
            offset: base.plus(u64::from(event)).0,
            transaction_id: transaction.id.clone(),
            origin: transaction.origin.clone(),
            position: Some(position),
            transaction_index: transaction.events_before + u64::from(index),
            transaction_ends: transaction.ends && index + 1 == transaction.events,
            commit_time_us: transaction.commit_time_us,
            ..pb::ChangeEvent::default()
        }
    };
    for group in &block.groups {
        let schema = schema(group.table.0, group.schema_version)
            .ok_or(BlockError::Shape("a group's schema is not registered"))?;
        for (row, (op, image, at_new, at_old)) in group.images().enumerate() {
            let event = group.events[row];
            events[event as usize] = Some(pb::ChangeEvent {
                op: op_of(op) as i32,
                table_id: group.table.0,
                schema_version: group.schema_version,
                after: at_new
                    .map(|cell| image_row(schema, group, cell, true))
                    .transpose()?,
                before: at_old
                    .map(|cell| image_row(schema, group, cell, false))
                    .transpose()?,
                old_image: match image {
                    OldImage::None => pb::OldImage::Unspecified,
                    OldImage::Key => pb::OldImage::Key,
                    OldImage::Full => pb::OldImage::Full,
                } as i32,
                ..fresh(event)
            });
        }
    }
    for marker in &block.markers {
        let (op, table_id, schema_version) = marker_head(marker)?;
        events[marker.event as usize] = Some(pb::ChangeEvent {
            op: op as i32,
            table_id,
            schema_version,
            marker: Some(marker.clone()),
            ..fresh(marker.event)
        });
    }
    events
        .into_iter()
        .map(|event| event.ok_or(BlockError::Shape("an event is neither row nor marker")))
        .collect()
}

fn op_of(op: RowOp) -> pb::Op {
    match op {
        RowOp::Insert => pb::Op::Insert,
        RowOp::Update => pb::Op::Update,
        RowOp::Delete => pb::Op::Delete,
        RowOp::Snapshot => pb::Op::Snapshot,
    }
}

fn marker_head(marker: &pb::Marker) -> Result<(pb::Op, u32, u32), BlockError> {
    use pb::marker::Kind;
    Ok(match marker.kind.as_ref() {
        Some(Kind::SchemaChange(change)) => {
            let (id, version) = change
                .schema
                .as_ref()
                .map_or((0, 0), |s| (s.table_id, s.version));
            (pb::Op::SchemaChange, id, version)
        }
        Some(Kind::SnapshotStart(start)) => (pb::Op::SnapshotStart, start.table_id, 0),
        Some(Kind::SnapshotEnd(end)) => (pb::Op::SnapshotEnd, end.table_id, 0),
        Some(Kind::PartialSnapshotStart(start)) => {
            (pb::Op::PartialSnapshotStart, start.table_id, 0)
        }
        Some(Kind::PartialSnapshotEnd(end)) => (pb::Op::PartialSnapshotEnd, end.table_id, 0),
        Some(Kind::Truncate(truncate)) => (
            pb::Op::Truncate,
            truncate.table_ids.first().copied().unwrap_or_default(),
            0,
        ),
        Some(Kind::Message(_)) => (pb::Op::Message, 0, 0),
        Some(Kind::Hole(_)) => (pb::Op::Hole, 0, 0),
        None => return Err(BlockError::Shape("a marker is empty")),
    })
}

fn image_row(
    schema: &TableSchema,
    group: &RowGroup,
    cell: usize,
    new: bool,
) -> Result<pb::Row, BlockError> {
    let cells = schema
        .columns
        .iter()
        .map(|column| {
            let data = if new {
                group.new_column(column.id)
            } else {
                group.old_column(column.id)
            };
            match data {
                Some(data) => cell_of(data, &column.ty, cell),
                None => Ok(presence_cell(Presence::Absent)),
            }
        })
        .collect::<Result<_, _>>()?;
    Ok(pb::Row { cells })
}

/// A cell that is not a value.
#[must_use]
pub fn presence_cell(presence: Presence) -> pb::Cell {
    pb::Cell {
        kind: Some(pb::cell::Kind::Presence(presence.to_pb() as i32)),
    }
}

/// One cell of a block as a message.
///
/// # Errors
/// The column does not hold what its type says.
pub fn cell_of(column: &Column, ty: &LogicalType, cell: usize) -> Result<pb::Cell, BlockError> {
    use pb::value::Kind;
    let presence = column.presence(cell);
    if presence != Presence::Value {
        return Ok(presence_cell(presence));
    }
    let text = |bytes: &[u8]| {
        String::from_utf8(bytes.to_vec())
            .map(Kind::Text)
            .map_err(|_| BlockError::Shape("a text cell is not UTF-8"))
    };
    let kind = match (&column.values, ty) {
        (Values::Bool(cells), _) => Kind::Bool(cells[cell] != 0),
        (Values::Int32(cells), _) => Kind::Int(i64::from(cells[cell])),
        (Values::Int64(cells), _) => Kind::Int(cells[cell]),
        (Values::Float32(cells), _) => Kind::Float(cells[cell]),
        (Values::Float64(cells), _) => Kind::Double(cells[cell]),
        (Values::Fixed16(_), LogicalType::Interval) => {
            let i = column
                .interval(cell)
                .ok_or(BlockError::Shape("an interval is too short"))?;
            Kind::Interval(pb::Interval {
                months: i.months,
                days: i.days,
                micros: i.micros,
            })
        }
        (Values::Fixed16(data), _) => Kind::Bytes(data.slice(cell * 16..cell * 16 + 16)),
        (Values::Variable { offsets, data }, ty) => {
            let data = data.slice(offsets[cell] as usize..offsets[cell + 1] as usize);
            match ty {
                LogicalType::Bytes => Kind::Bytes(data),
                LogicalType::Array(_) => Kind::List(
                    pb::List::decode(data).map_err(|e| BlockError::Message(e.to_string()))?,
                ),
                _ => text(&data)?,
            }
        }
    };
    Ok(pb::Cell {
        kind: Some(pb::cell::Kind::Value(pb::Value { kind: Some(kind) })),
    })
}

/// The inverse of [`cell_of`].
///
/// # Errors
/// The message is none of a cell of this type.
pub fn push_cell(
    out: &mut ColumnBuilder,
    ty: &LogicalType,
    cell: &pb::Cell,
) -> Result<(), BlockError> {
    use pb::value::Kind;
    const WRONG: BlockError = BlockError::Shape("a cell is not of its type");
    let value = match &cell.kind {
        Some(pb::cell::Kind::Presence(code)) => {
            let code = u8::try_from(*code).ok().and_then(Presence::from_code);
            out.push_presence(code.filter(|p| *p != Presence::Value).ok_or(WRONG)?);
            return Ok(());
        }
        Some(pb::cell::Kind::Value(value)) => value.kind.as_ref().ok_or(WRONG)?,
        None => return Err(WRONG),
    };
    match (ty.physical(), value) {
        (Physical::Bool, Kind::Bool(v)) => out.push_bool(*v),
        (Physical::Int32, Kind::Int(v)) => out.push_i32(i32::try_from(*v).map_err(|_| WRONG)?),
        (Physical::Int64, Kind::Int(v)) => out.push_i64(*v),
        (Physical::Float32, Kind::Float(v)) => out.push_f32(*v),
        (Physical::Float64, Kind::Double(v)) => out.push_f64(*v),
        (Physical::Fixed16, Kind::Interval(v)) => out.push_interval(v.months, v.days, v.micros),
        (Physical::Fixed16, Kind::Bytes(v)) => {
            out.push_fixed16(v[..].try_into().map_err(|_| WRONG)?)
        }
        (Physical::Variable, Kind::Text(v)) => out.push_bytes(v.as_bytes()),
        (Physical::Variable, Kind::Bytes(v)) => out.push_bytes(v),
        (Physical::Variable, Kind::List(v)) => out.push_bytes(&v.encode_to_vec()),
        _ => return Err(WRONG),
    }
    Ok(())
}
