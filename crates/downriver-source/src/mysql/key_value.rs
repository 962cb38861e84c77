//! One value of a key: printed from a row, and as an exact literal.
//!
//! Text is kept in the bytes of its own character set and written as such, so that no conversion stands between a bound
//! and the column. Numbers are written as numbers: as text the servers would compare them as doubles.

use std::borrow::Cow;

use downriver_decode::mysql::table_map::Wire;
use downriver_event::civil;
use downriver_event::filter::Comparator;
use downriver_event::{LogicalType, Presence};
use mysql_async::Value;

use super::columns::KnownColumn;
use super::row::bits;
use super::sql::{hex, identifier};

/// The expression that is compared with a literal. Of a year as it is the servers take a number under 100 for one of this
/// or the last century, also the year 0.
pub(super) fn compared(column: &KnownColumn) -> String {
    let name = format!("t.{}", identifier(&column.described.name));
    match column.wire {
        Wire::Year => format!("({name} + 0)"),
        _ => name,
    }
}

/// A value as bytes that [`literal`] reads; `None`: it is none of the column's type.
pub(super) fn printed<'a>(column: &KnownColumn, value: &'a Value) -> Option<Cow<'a, [u8]>> {
    let text = match (column.wire, value) {
        (Wire::Bits(_), Value::Bytes(bytes)) => bits(bytes)?.to_string(),
        (Wire::Char(_) | Wire::Bytes(_) | Wire::Decimal { .. }, Value::Bytes(bytes)) => {
            return Some(Cow::Borrowed(bytes));
        }
        (Wire::Integer(_) | Wire::Year | Wire::Enum(_) | Wire::Set(_), Value::Int(number)) => {
            number.to_string()
        }
        (Wire::Integer(_) | Wire::Year | Wire::Enum(_) | Wire::Set(_), Value::UInt(number)) => {
            number.to_string()
        }
        (Wire::Float, Value::Float(number)) => double(f64::from(*number)),
        (Wire::Double, Value::Double(number)) => double(*number),
        (Wire::Date, Value::Date(year, month, day, ..)) => {
            format!("{year:04}-{month:02}-{day:02}")
        }
        (
            Wire::Datetime(_) | Wire::Timestamp(_),
            Value::Date(year, month, day, hour, minute, second, micros),
        ) => format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}.{micros:06}"),
        (Wire::Time(_), Value::Time(is_negative, days, hours, minutes, seconds, micros)) => {
            let sign = if *is_negative { "-" } else { "" };
            let hours = 24 * days + u32::from(*hours);
            format!("{sign}{hours:02}:{minutes:02}:{seconds:02}.{micros:06}")
        }
        _ => return None,
    };
    Some(Cow::Owned(text.into_bytes()))
}

/// A float is compared as the double that it is.
fn double(number: f64) -> String {
    format!("{number:e}")
}

/// The literal of printed bytes; `None`: they are none of the column's type.
pub(super) fn literal(column: &KnownColumn, printed: &[u8]) -> Option<String> {
    let of = |allowed: &[u8]| {
        let is_allowed = |byte: &u8| byte.is_ascii_digit() || allowed.contains(byte);
        let text = std::str::from_utf8(printed).ok()?;
        (!text.is_empty() && printed.iter().all(is_allowed)).then_some(text)
    };
    match column.wire {
        Wire::Integer(_) | Wire::Bits(_) | Wire::Enum(_) | Wire::Set(_) | Wire::Year => {
            of(b"-").map(str::to_owned)
        }
        Wire::Decimal { .. } => of(b"-.").map(str::to_owned),
        Wire::Float | Wire::Double => of(b"-+.e").map(str::to_owned),
        Wire::Date | Wire::Datetime(_) | Wire::Timestamp(_) | Wire::Time(_) => {
            of(b"-:. ").map(|text| format!("'{text}'"))
        }
        Wire::Char(_) if let Some(native) = column.declared.native => {
            of(b"abcdef-:.").map(|text| format!("cast('{text}' as {})", native.word()))
        }
        Wire::Char(_) | Wire::Bytes(_) => Some(match &column.charset {
            Some(charset) => format!("_{charset} {}", hex(printed)),
            None => hex(printed),
        }),
        Wire::Json(_)
        | Wire::Compressed(_)
        | Wire::OldTime
        | Wire::OldDatetime
        | Wire::OldTimestamp => None,
    }
}

/// The condition that a column has the value in front of a key that `Column::write_key` wrote.
pub(super) fn equal(column: &KnownColumn, ty: &LogicalType, rest: &mut &[u8]) -> Option<String> {
    let name = compared(column);
    let (presence, after) = rest.split_first()?;
    *rest = after;
    match Presence::from_code(*presence)? {
        Presence::Value => {}
        // One cell for all of them.
        Presence::ZeroDate => {
            return Some(format!("(month({name}) = 0 or dayofmonth({name}) = 0)"));
        }
        _ => return None,
    }
    let printed = printed_key(ty, rest)?;
    let text = || std::str::from_utf8(&printed).ok();
    if let (Some(native), LogicalType::Uuid) = (column.declared.native, ty) {
        let shown = native.shown(&printed)?;
        return Some(format!("{name} = {}", literal(column, shown.as_bytes())?));
    }
    match column.wire {
        Wire::Enum(_) => {
            let numbers = numbers(&column.declared.labels, text()?);
            (!numbers.is_empty()).then(|| format!("{name} in ({})", numbers.join(", ")))
        }
        Wire::Set(_) => Some(format!(
            "{name} = {}",
            members(&column.declared.labels, text()?)?
        )),
        Wire::Char(_) | Wire::Bytes(_) => {
            let bytes = match column.declared.charset {
                Some(charset) => charset.encode(text()?)?,
                None => Cow::Borrowed(&*printed),
            };
            Some(format!("{name} = {}", literal(column, &bytes)?))
        }
        _ => Some(format!("{name} = {}", literal(column, &printed)?)),
    }
}

/// A key's value in front of the rest of one that `Column::write_key` wrote, as bytes that [`literal`] reads; of text in
/// UTF-8.
fn printed_key<'a>(ty: &LogicalType, rest: &mut &'a [u8]) -> Option<Cow<'a, [u8]>> {
    Some(match ty {
        LogicalType::Bool => Cow::Owned(u8::from(take(rest, 1)? != [0]).to_string().into_bytes()),
        LogicalType::Int16 | LogicalType::Int32 => {
            Cow::Owned(i32::from_le_bytes(array(rest)?).to_string().into_bytes())
        }
        LogicalType::Int64 => Cow::Owned(i64::from_le_bytes(array(rest)?).to_string().into_bytes()),
        LogicalType::Float32 => {
            Cow::Owned(double(f32::from_le_bytes(array(rest)?).into()).into_bytes())
        }
        LogicalType::Float64 => Cow::Owned(double(f64::from_le_bytes(array(rest)?)).into_bytes()),
        LogicalType::Date => {
            let days = i32::from_le_bytes(array(rest)?);
            Cow::Owned(date(days.into()).into_bytes())
        }
        LogicalType::Timestamp | LogicalType::TimestampTz => {
            Cow::Owned(instant(i64::from_le_bytes(array(rest)?)).into_bytes())
        }
        _ => {
            let len = u64::from_le_bytes(array(rest)?);
            Cow::Borrowed(take(rest, usize::try_from(len).ok()?)?)
        }
    })
}

/// A comparison of a column of the key with a value, which stands in a key that `Column::write_key` wrote. Text is compared
/// byte by byte, whatever the column's collation calls equal.
pub(super) fn compares(
    column: &KnownColumn,
    ty: &LogicalType,
    comparator: Comparator,
    mut value: &[u8],
) -> Option<String> {
    let mut after_presence = value.split_first()?.1;
    let is_equality = matches!(comparator, Comparator::Equal | Comparator::NotEqual);
    let printed = printed_key(ty, &mut after_presence)?;
    if let Some(native) = column.declared.native {
        let shown = native.shown(&printed);
        let shown = shown.filter(|_| is_equality && *ty == LogicalType::Uuid)?;
        let (name, value) = (compared(column), literal(column, shown.as_bytes())?);
        return Some(format!("{name} {} {value}", comparator.symbol()));
    }
    match column.wire {
        Wire::Char(_) | Wire::Bytes(_) if column.declared.charset.is_some() => {
            let name = compared(column);
            let is = format!(
                "cast(convert({name} using utf8mb4) as binary) {} {}",
                comparator.symbol(),
                hex(&printed)
            );
            // What has the same bytes is equal: by this the server finds the rows in the key's index.
            let found = match comparator {
                Comparator::Equal => equal(column, ty, &mut value),
                _ => None,
            };
            Some(found.map_or(is.clone(), |found| format!("({found} and {is})")))
        }
        Wire::Enum(_) => match (comparator, equal(column, ty, &mut value)) {
            (Comparator::Equal, found) => Some(found.unwrap_or_else(|| "false".to_owned())),
            (Comparator::NotEqual, Some(found)) => Some(format!("not {found}")),
            (Comparator::NotEqual, None) => Some("true".to_owned()),
            _ => None,
        },
        Wire::Set(_) => None,
        // As it is printed: of two texts of one time whoever else compares takes only one for it.
        Wire::Time(_) => is_equality.then(|| {
            let (name, symbol) = (compared(column), comparator.symbol());
            format!(
                "cast(cast({name} as char) as binary) {symbol} {}",
                hex(&printed)
            )
        }),
        _ => {
            let (name, value) = (compared(column), literal(column, &printed)?);
            Some(format!("{name} {} {value}", comparator.symbol()))
        }
    }
}

fn take<'a>(rest: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (taken, after) = rest.split_at_checked(len)?;
    *rest = after;
    Some(taken)
}

fn array<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(*taken)
}

/// The numbers under which an enumeration has a label; 0 is shown as an empty one.
fn numbers(labels: &[String], label: &str) -> Vec<String> {
    let invalid = label.is_empty().then_some(0);
    let valid = (1..).zip(labels).filter(|(_, of)| *of == label);
    let numbers = invalid.into_iter().chain(valid.map(|(number, _)| number));
    numbers.map(|number: usize| number.to_string()).collect()
}

/// The bits of a set's members.
fn members(labels: &[String], text: &str) -> Option<u64> {
    let mut members = 0;
    for member in text.split(',').filter(|member| !member.is_empty()) {
        members |= 1 << labels.iter().position(|label| label == member)?;
    }
    Some(members)
}

/// The day so many days after 1970-01-01.
fn date(days: i64) -> String {
    let (year, month, day) = civil::of_days(days);
    format!("{year:04}-{month:02}-{day:02}")
}

/// The instant so many microseconds after 1970-01-01.
fn instant(micros: i64) -> String {
    const DAY: i64 = 86_400_000_000;
    let (days, micros) = (micros.div_euclid(DAY), micros.rem_euclid(DAY));
    let (seconds, micros) = (micros / 1_000_000, micros % 1_000_000);
    let (minutes, seconds) = (seconds / 60, seconds % 60);
    format!(
        "{} {:02}:{:02}:{seconds:02}.{micros:06}",
        date(days),
        minutes / 60,
        minutes % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_is_written_as_the_server_does() {
        assert_eq!(date(0), "1970-01-01");
        assert_eq!(date(11_016), "2000-02-29");
        assert_eq!(date(-719_162), "0001-01-01");
        assert_eq!(date(2_932_896), "9999-12-31");
        assert_eq!(instant(-1), "1969-12-31 23:59:59.999999");
    }

    #[test]
    fn labels_are_found_by_what_they_show() {
        let labels = ["a", "", "b"].map(String::from);
        assert_eq!(numbers(&labels, ""), ["0", "2"]);
        assert_eq!(numbers(&labels, "b"), ["3"]);
        assert_eq!(members(&labels, "a,b"), Some(5));
        assert_eq!(members(&labels, ""), Some(0));
        assert_eq!(members(&labels, "c"), None);
    }
}
