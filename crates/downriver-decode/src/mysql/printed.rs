//! A value as text, for the masks that need it: the same whether the binlog or a statement brought it. And texts read as
//! values, for their constants.
//!
//! | type | text |
//! |---|---|
//! | whole numbers, bits (also of one), years | digits, with `-` in front |
//! | decimal | the exact digits, as many behind the point as the column has |
//! | float, double | the fewest digits that tell it from every other one of its kind |
//! | date; datetime; timestamp | `2026-01-31`; `2026-01-31 12:00:00`, with as many digits of the second as the column has; in UTC |
//! | any day of zeros | `0000-00-00` |
//! | time, text, enumerations, sets, documents | as in the log |
//! | bytes, geometries | `\x` and two hexadecimal digits for each |
//! | vectors | `[1,2.5]` |
//! | uuids, addresses | as the server shows them |

use std::borrow::Cow;
use std::fmt::Write as _;

use downriver_event::block::{Column as Cells, ColumnBuilder, Values};
use downriver_event::view::cell_of;
use downriver_event::{LogicalType, Presence, pb};

use super::native::Native;
use super::push_floats;
use super::table_map::Wire;
use super::value::{Plan, ValueError, write_fraction};
use crate::postgres::text;
use downriver_event::civil;

const ZERO_DATE: &[u8] = b"0000-00-00";
const DAY_MICROS: i64 = 86_400_000_000;

impl Plan {
    /// The text of a column's only cell, which this plan has read.
    pub(super) fn printed<'a>(
        &self,
        ty: &LogicalType,
        cell: &'a Cells,
    ) -> Result<Cow<'a, [u8]>, ValueError> {
        const NONE: ValueError = ValueError::Invalid("value of its type");
        match cell.presence(0) {
            Presence::Value => {}
            Presence::ZeroDate => return Ok(Cow::Borrowed(ZERO_DATE)),
            _ => return Err(NONE),
        }
        let text = match (&cell.values, ty) {
            (Values::Bool(cells), _) => cells[0].to_string(),
            (Values::Int32(cells), LogicalType::Date) => date(cells[0].into()),
            (Values::Int32(cells), _) => cells[0].to_string(),
            (Values::Int64(cells), LogicalType::Timestamp | LogicalType::TimestampTz) => {
                instant(cells[0], self.fraction())
            }
            (Values::Int64(cells), _) => cells[0].to_string(),
            (Values::Float32(cells), _) => cells[0].to_string(),
            (Values::Float64(cells), _) => cells[0].to_string(),
            (Values::Fixed16(bytes), LogicalType::Uuid) => Native::Uuid.shown(bytes).ok_or(NONE)?,
            (Values::Variable { .. }, LogicalType::Bytes) => hex(cell.bytes(0).ok_or(NONE)?),
            (Values::Variable { .. }, LogicalType::Array(_)) => vector(cell, ty).ok_or(NONE)?,
            (Values::Variable { .. } | Values::Fixed16(_), _) => {
                return cell.bytes(0).map(Cow::Borrowed).ok_or(NONE);
            }
        };
        Ok(Cow::Owned(text.into_bytes()))
    }

    /// Digits behind the second's point.
    fn fraction(&self) -> u8 {
        match self.wire {
            Wire::Datetime(digits) | Wire::Timestamp(digits) => digits,
            _ => 0,
        }
    }
}

fn date(days: i64) -> String {
    let (year, month, day) = civil::of_days(days);
    format!("{year:04}-{month:02}-{day:02}")
}

/// The instant so many microseconds after 1970-01-01.
fn instant(micros: i64, digits: u8) -> String {
    let (days, micros) = (micros.div_euclid(DAY_MICROS), micros.rem_euclid(DAY_MICROS));
    let (seconds, micros) = (micros / 1_000_000, micros % 1_000_000);
    let (minutes, seconds) = (seconds / 60, seconds % 60);
    let mut text = format!(
        "{} {:02}:{:02}:{seconds:02}",
        date(days),
        minutes / 60,
        minutes % 60
    );
    let mut fraction = Vec::new();
    write_fraction(micros.unsigned_abs(), digits, &mut fraction);
    text.extend(fraction.into_iter().map(char::from));
    text
}

fn hex(bytes: &[u8]) -> String {
    let mut hex = String::from("\\x");
    for byte in bytes {
        let _ = write!(hex, "{byte:02x}");
    }
    hex
}

fn vector(cell: &Cells, ty: &LogicalType) -> Option<String> {
    let pb::cell::Kind::Value(value) = cell_of(cell, ty, 0).ok()?.kind? else {
        return None;
    };
    let pb::value::Kind::List(list) = value.kind? else {
        return None;
    };
    let element = |element: &pb::Cell| match element.kind.as_ref()? {
        pb::cell::Kind::Value(value) => match value.kind.as_ref()? {
            pb::value::Kind::Float(float) => Some(float.to_string()),
            _ => None,
        },
        pb::cell::Kind::Presence(_) => None,
    };
    let elements: Option<Vec<String>> = list.elements.iter().map(element).collect();
    Some(format!("[{}]", elements?.join(",")))
}

/// Reads a value that is written as it is printed here: the constant of a mask, say.
///
/// # Errors
/// What it is not.
pub fn constant(ty: &LogicalType, text: &[u8], out: &mut ColumnBuilder) -> Result<(), String> {
    let is_not = |what: &str| Err(format!("is not a valid {what}"));
    match ty {
        LogicalType::Bool => match text {
            b"0" | b"1" => out.push_bool(text == b"1"),
            _ => return is_not("bit"),
        },
        LogicalType::Date | LogicalType::Timestamp | LogicalType::TimestampTz
            if text == ZERO_DATE =>
        {
            out.push_presence(Presence::ZeroDate);
        }
        LogicalType::TimestampTz => {
            let zoned = [text, b"+00"].concat();
            return text::constant(ty, &zoned, out);
        }
        LogicalType::Date | LogicalType::Timestamp | LogicalType::Decimal { .. }
            if text.iter().any(u8::is_ascii_alphabetic) || text.contains(&b'$') =>
        {
            return is_not(if *ty == LogicalType::Date {
                "date"
            } else {
                "value"
            });
        }
        LogicalType::Enum { labels } => {
            let is_label = |label: &String| label.as_bytes() == text;
            if !text.is_empty() && !labels.iter().any(is_label) {
                return is_not("label");
            }
            out.push_bytes(text);
        }
        LogicalType::Array(_) => {
            let list = text
                .strip_prefix(b"[")
                .and_then(|rest| rest.strip_suffix(b"]"));
            let list = list.and_then(|list| std::str::from_utf8(list).ok());
            let floats = list.map(|list| list.split(',').map(|one| one.trim().parse::<f32>()));
            match floats.map(Iterator::collect::<Result<Vec<f32>, _>>) {
                Some(Ok(floats)) => push_floats(floats.into_iter(), out),
                _ => return is_not("vector"),
            }
        }
        _ => return text::constant(ty, text, out),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::declared::Declared;
    use super::super::table_map::code;
    use super::*;

    fn round(code: u8, wire: Wire, text: &str) -> String {
        let declared = Declared {
            labels: vec!["a".into(), "b".into()],
            ..Declared::default()
        };
        let (plan, ty) = Plan::new(code, wire, declared);
        let mut cell = ColumnBuilder::new(0, &ty);
        constant(&ty, text.as_bytes(), &mut cell).unwrap();
        let cell = cell.read().unwrap();
        let printed = plan.printed(&ty, &cell).unwrap();
        String::from_utf8(printed.into_owned()).unwrap()
    }

    #[test]
    fn what_is_printed_is_read_as_the_same_value() {
        for (code, wire, text) in [
            (code::LONG, Wire::Integer(4), "-7"),
            (code::BIT, Wire::Bits(1), "1"),
            (code::BIT, Wire::Bits(64), "18446744073709551615"),
            (code::FLOAT, Wire::Float, "0.1"),
            (code::DOUBLE, Wire::Double, "-1234567.125"),
            (
                code::NEWDECIMAL,
                Wire::Decimal {
                    precision: 5,
                    scale: 2,
                },
                "7.50",
            ),
            (code::YEAR, Wire::Year, "0"),
            (code::DATE, Wire::Date, "1969-12-31"),
            (code::DATE, Wire::Date, "0000-00-00"),
            (code::DATETIME2, Wire::Datetime(0), "2026-01-31 12:00:00"),
            (
                code::DATETIME2,
                Wire::Datetime(3),
                "1000-01-01 00:00:00.001",
            ),
            (
                code::TIMESTAMP2,
                Wire::Timestamp(6),
                "2038-01-19 03:14:07.999999",
            ),
            (code::TIME2, Wire::Time(0), "-838:59:59"),
            (code::ENUM, Wire::Enum(1), "b"),
            (code::ENUM, Wire::Enum(1), ""),
            (code::BLOB, Wire::Bytes(2), "\\x00ff"),
            (code::VECTOR, Wire::Bytes(4), "[1,2.5]"),
            (code::JSON, Wire::Json(4), "{\"a\": 1}"),
        ] {
            assert_eq!(round(code, wire, text), text);
        }
    }

    #[test]
    fn what_is_no_value_of_a_type_is_refused() {
        let labels = vec!["a".to_owned()];
        for (ty, text) in [
            (LogicalType::Int16, "40000"),
            (LogicalType::Bool, "t"),
            (LogicalType::Date, "infinity"),
            (LogicalType::Timestamp, "2026-01-31"),
            (LogicalType::Enum { labels }, "c"),
            (LogicalType::Bytes, "ff"),
            (LogicalType::Array(Box::new(LogicalType::Float32)), "[a]"),
        ] {
            let mut cell = ColumnBuilder::new(0, &ty);
            assert!(constant(&ty, text.as_bytes(), &mut cell).is_err(), "{text}");
        }
        let number = LogicalType::Decimal {
            precision: 5,
            scale: 2,
        };
        let mut cell = ColumnBuilder::new(0, &number);
        assert!(constant(&number, b"NaN", &mut cell).is_err());
    }
}
