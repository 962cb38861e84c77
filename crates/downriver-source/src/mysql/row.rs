//! A row that a prepared statement read, into the cells that the binlog's form of it becomes.

use std::sync::Arc;

use downriver_decode::mask::Mask;
use downriver_decode::mysql::selected::Selected;
use downriver_decode::mysql::table_map::Wire;
use downriver_decode::mysql::value::ValueError;
use downriver_event::block::{ColumnBuilder, RowColumns};
use downriver_event::{Presence, TableSchema};
use mysql_async::Value;

use super::columns::KnownColumn;
use super::sql::identifier;
use crate::chunk::Row;
use crate::error::SourceError;

/// One row, with a value for each of the schema's columns.
pub(super) struct SelectedRow<'a> {
    pub(super) schema: &'a TableSchema,
    pub(super) columns: &'a [&'a KnownColumn],
    /// One for each of them; empty: none is masked.
    pub(super) masks: &'a [Option<Arc<Mask>>],
    pub(super) values: &'a [Value],
}

impl Row for SelectedRow<'_> {
    fn push_into(&self, columns: RowColumns<'_>) -> Result<(), SourceError> {
        let mut scratch = Vec::new();
        for (at, out) in columns.new.iter_mut().enumerate() {
            self.push(at, out, &mut scratch)?;
        }
        Ok(())
    }
}

impl SelectedRow<'_> {
    /// The row's key, of the form that `Column::write_key` writes.
    pub(super) fn key(&self) -> Result<Vec<u8>, SourceError> {
        let (mut key, mut scratch) = (Vec::new(), Vec::new());
        for at in self.schema.key_indexes() {
            let column = &self.schema.columns[at];
            let mut cell = ColumnBuilder::new(column.id, &column.ty);
            self.push(at, &mut cell, &mut scratch)?;
            if let Some(cell) = cell.read() {
                cell.write_key(0, &mut key);
            }
        }
        Ok(key)
    }

    pub(super) fn push(
        &self,
        at: usize,
        out: &mut ColumnBuilder,
        scratch: &mut Vec<u8>,
    ) -> Result<(), SourceError> {
        let (Some(column), Some(value)) = (self.columns.get(at), self.values.get(at)) else {
            return Err(self.unreadable(at, &ValueError::Cut));
        };
        let plan = &column.described.plan;
        let mask = self.masks.get(at).and_then(Option::as_deref);
        let of_schema = &self.schema.columns[at];
        let is_null = *value == Value::NULL;
        let pushed = match (mask, selected(column.wire, value)) {
            (Some(mask), _) if is_null || mask.is_fixed() => {
                mask.push(of_schema, None, out).map_err(ValueError::from)
            }
            (None, _) if is_null => {
                out.push_presence(Presence::Null);
                Ok(())
            }
            (_, None) => Err(ValueError::Invalid("value of its type")),
            (None, Some(value)) => plan.push_selected(value, out, scratch),
            (Some(mask), Some(value)) => {
                plan.push_selected_masked(mask, of_schema, value, out, scratch)
            }
        };
        pushed.map_err(|error| self.unreadable(at, &error))
    }

    fn unreadable(&self, at: usize, error: &ValueError) -> SourceError {
        let column = self.schema.columns.get(at).map(|column| &column.name);
        let reason = format!(
            "column {:?} of {} {error}, in a row that the snapshot read",
            column.map_or("", String::as_str),
            self.schema.qualified_name()
        );
        let (code, fix) = match error {
            ValueError::TooLarge(_) => (
                "DR-1041",
                "exclude the table from the source, or make the value smaller",
            ),
            ValueError::Charset(_) => (
                "DR-1043",
                "correct the value, or exclude the table from the source",
            ),
            ValueError::Cut | ValueError::Invalid(_) | ValueError::InPart => {
                ("DR-1040", "report it with the column's type")
            }
        };
        SourceError::definite(code, reason, fix)
    }
}

/// A column as its value is asked for. Of labels their numbers are: what they are called, the plan knows. What a mask does
/// not need is not asked for.
pub(super) fn expression(column: &KnownColumn, mask: Option<&Mask>) -> String {
    if mask.is_some_and(Mask::is_fixed) {
        return "null".to_owned();
    }
    let name = format!("t.{}", identifier(&column.described.name));
    match column.wire {
        Wire::Enum(_) | Wire::Set(_) => format!("cast({name} as unsigned)"),
        _ => name,
    }
}

fn selected(wire: Wire, value: &Value) -> Option<Selected<'_>> {
    Some(match value {
        Value::NULL => return None,
        Value::Int(number) => Selected::Integer(number.cast_unsigned()),
        Value::UInt(number) => Selected::Integer(*number),
        Value::Float(number) => Selected::Float(*number),
        Value::Double(number) => Selected::Double(*number),
        Value::Date(year, month, day, hour, minute, second, micros) => Selected::Instant(
            [(*year).into(), (*month).into(), (*day).into()],
            [(*hour).into(), (*minute).into(), (*second).into()],
            (*micros).into(),
        ),
        Value::Time(is_negative, days, hours, minutes, seconds, micros) => Selected::Clock {
            is_negative: *is_negative,
            clock: [
                u64::from(*days) * 24 + u64::from(*hours),
                (*minutes).into(),
                (*seconds).into(),
            ],
            micros: (*micros).into(),
        },
        Value::Bytes(bytes) => match wire {
            Wire::Bits(_) => Selected::Integer(bits(bytes)?),
            _ => Selected::Bytes(bytes),
        },
    })
}

/// At most eight bytes, the highest first.
pub(super) fn bits(bytes: &[u8]) -> Option<u64> {
    let mut number = [0; 8];
    number
        .get_mut(8_usize.checked_sub(bytes.len())?..)?
        .copy_from_slice(bytes);
    Some(u64::from_be_bytes(number))
}
