//! A value that a statement read, into the cell that the binlog's form of it becomes.

use downriver_event::block::ColumnBuilder;

use super::table_map::Wire;
use super::value::{
    Plan, ValueError, check_size, push_date, push_datetime, push_time, write_decimal,
};

/// A value as a statement's result has it, in the binary protocol.
#[derive(Clone, Copy, Debug)]
pub enum Selected<'a> {
    /// Two's complement. Of an enumeration, a set and bits: its number.
    Integer(u64),
    Float(f32),
    Double(f64),
    /// Year, month and day; hour, minute and second; microseconds.
    Instant([u64; 3], [u64; 3], u64),
    Clock {
        is_negative: bool,
        clock: [u64; 3],
        micros: u64,
    },
    Bytes(&'a [u8]),
}

impl Plan {
    /// Pushes a value that a statement read, as the same cell that the binlog's form of it becomes.
    ///
    /// # Errors
    /// It is no value of the column's type.
    pub fn push_selected(
        &self,
        value: Selected<'_>,
        out: &mut ColumnBuilder,
        scratch: &mut Vec<u8>,
    ) -> Result<(), ValueError> {
        match (self.wire, value) {
            (Wire::Integer(bytes), Selected::Integer(value)) => {
                self.push_integer(value, 8 * u32::from(bytes), out, scratch)
            }
            (Wire::Bits(_), Selected::Integer(value)) => self.push_integer(value, 64, out, scratch),
            (Wire::Float, Selected::Float(value)) => {
                out.push_f32(value);
                Ok(())
            }
            (Wire::Double, Selected::Double(value)) => {
                out.push_f64(value);
                Ok(())
            }
            (Wire::Decimal { .. }, Selected::Bytes(digits)) => {
                scratch.clear();
                write_decimal(digits, scratch)?;
                out.push_bytes(scratch);
                Ok(())
            }
            (Wire::Year, Selected::Integer(year)) => {
                let year = i32::try_from(year).map_err(|_| ValueError::Invalid("year"))?;
                out.push_i32(year);
                Ok(())
            }
            (Wire::Date, Selected::Instant([year, month, day], _, _)) => {
                push_date(year, month, day, out)
            }
            (
                Wire::Datetime(_) | Wire::Timestamp(_),
                Selected::Instant([year, month, day], clock, micros),
            ) => push_datetime([year * 13 + month, day], clock, micros, out),
            (
                Wire::Time(digits),
                Selected::Clock {
                    is_negative,
                    clock,
                    micros,
                },
            ) => push_time(is_negative, clock, micros, digits, out, scratch),
            (Wire::Enum(_), Selected::Integer(number)) => self.push_label(number, out),
            (Wire::Set(_), Selected::Integer(members)) => self.push_set(members, out, scratch),
            (Wire::Json(_), Selected::Bytes(text)) => {
                check_size(text.len())?;
                out.push_bytes(text);
                Ok(())
            }
            (Wire::Char(_), Selected::Bytes(shown)) if let Some(native) = self.native() => {
                native.push_shown(shown, out)
            }
            (Wire::Char(_) | Wire::Bytes(_) | Wire::Compressed(_), Selected::Bytes(bytes)) => {
                self.push_text(bytes, out, scratch)
            }
            _ => Err(ValueError::Invalid("value of its type")),
        }
    }
}
