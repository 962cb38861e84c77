//! Values as PostgreSQL's send functions write them: what `COPY … (FORMAT binary)` carries. Pushes the same
//! canonical cell as `text` does for the same value.
//!
//! Source: the send functions in PostgreSQL's `src/backend/utils/adt`.

use downriver_event::block::{ColumnBuilder, VALUE_BYTES_MAX};
use downriver_event::{LogicalType, Presence, pb};
use prost::Message as _;

use super::ValueError;

/// Days and microseconds from 1970-01-01 to 2000-01-01.
const EPOCH_DAYS: i32 = 10_957;
const EPOCH_US: i64 = 946_684_800_000_000;

/// Pushes one value.
///
/// # Errors
/// The bytes are not of the type; nothing was pushed.
#[inline]
pub fn push(ty: &LogicalType, bytes: &[u8], out: &mut ColumnBuilder) -> Result<(), ValueError> {
    match ty {
        LogicalType::Int16 => {
            out.push_i32(i32::from(i16::from_be_bytes(fixed(bytes, "smallint")?)))
        }
        LogicalType::Int32 => out.push_i32(i32::from_be_bytes(fixed(bytes, "integer")?)),
        LogicalType::Int64 => out.push_i64(i64::from_be_bytes(fixed(bytes, "bigint")?)),
        LogicalType::Text | LogicalType::Enum { .. } | LogicalType::Other => {
            utf8(bytes)?;
            out.push_bytes(bytes);
        }
        LogicalType::Json => {
            // jsonb sends a version before its text; a JSON text cannot begin with that byte.
            let text = bytes.strip_prefix(&[1]).unwrap_or(bytes);
            utf8(text)?;
            out.push_bytes(text);
        }
        LogicalType::Timestamp | LogicalType::TimestampTz => {
            match i64::from_be_bytes(fixed(bytes, "timestamp")?) {
                i64::MAX => out.push_presence(Presence::PositiveInfinity),
                i64::MIN => out.push_presence(Presence::NegativeInfinity),
                micros => {
                    let micros = micros.checked_add(EPOCH_US);
                    out.push_i64(micros.ok_or(ValueError::TooLate)?);
                }
            }
        }
        LogicalType::Decimal { .. } => decimal(bytes, out)?,
        LogicalType::Bool => match bytes {
            [0] => out.push_bool(false),
            [1] => out.push_bool(true),
            _ => return Err(ValueError::Invalid("boolean")),
        },
        // The text form knows one NaN; computed ones may have a sign.
        LogicalType::Float32 => {
            let value = f32::from_be_bytes(fixed(bytes, "real")?);
            out.push_f32(if value.is_nan() { f32::NAN } else { value });
        }
        LogicalType::Float64 => {
            let value = f64::from_be_bytes(fixed(bytes, "double precision")?);
            out.push_f64(if value.is_nan() { f64::NAN } else { value });
        }
        LogicalType::Bytes => {
            if bytes.len() > VALUE_BYTES_MAX {
                return Err(ValueError::TooLarge(bytes.len()));
            }
            out.push_bytes(bytes);
        }
        LogicalType::Uuid => out.push_fixed16(&fixed(bytes, "uuid")?),
        LogicalType::Date => match i32::from_be_bytes(fixed(bytes, "date")?) {
            i32::MAX => out.push_presence(Presence::PositiveInfinity),
            i32::MIN => out.push_presence(Presence::NegativeInfinity),
            days => {
                let days = days.checked_add(EPOCH_DAYS);
                out.push_i32(days.ok_or(ValueError::Invalid("date"))?);
            }
        },
        LogicalType::Time => match i64::from_be_bytes(fixed(bytes, "time")?) {
            micros @ 0..=86_400_000_000 => out.push_i64(micros),
            _ => return Err(ValueError::Invalid("time")),
        },
        LogicalType::Interval => {
            let bytes: [u8; 16] = fixed(bytes, "interval")?;
            let micros = i64::from_be_bytes(bytes[..8].try_into().expect("eight bytes"));
            let days = i32::from_be_bytes(bytes[8..12].try_into().expect("four bytes"));
            let months = i32::from_be_bytes(bytes[12..].try_into().expect("four bytes"));
            super::push_interval(months, days, micros, out);
        }
        LogicalType::Array(element) => {
            let list = array(element, bytes)
                .ok_or(ValueError::Invalid("array"))??
                .encode_to_vec();
            if list.len() > VALUE_BYTES_MAX {
                return Err(ValueError::TooLarge(list.len()));
            }
            out.push_bytes(&list);
        }
    }
    Ok(())
}

fn fixed<const N: usize>(bytes: &[u8], name: &'static str) -> Result<[u8; N], ValueError> {
    bytes.try_into().map_err(|_| ValueError::Invalid(name))
}

fn utf8(text: &[u8]) -> Result<(), ValueError> {
    if text.len() > VALUE_BYTES_MAX {
        return Err(ValueError::TooLarge(text.len()));
    }
    std::str::from_utf8(text)
        .map(|_| ())
        .map_err(|_| ValueError::NotUtf8)
}

/// Base-10000 digits, as numeric prints them with its display scale.
fn decimal(bytes: &[u8], out: &mut ColumnBuilder) -> Result<(), ValueError> {
    let invalid = || ValueError::Invalid("numeric");
    let (head, digits) = bytes.split_first_chunk::<8>().ok_or_else(invalid)?;
    let field = |at: usize| u16::from_be_bytes([head[at], head[at + 1]]);
    let (count, weight, sign, scale) = (
        field(0),
        i32::from(field(2) as i16),
        field(4),
        usize::from(field(6)),
    );
    match sign {
        0xc000 => {
            out.push_presence(Presence::NaN);
            return Ok(());
        }
        0xd000 => {
            out.push_presence(Presence::PositiveInfinity);
            return Ok(());
        }
        0xf000 => {
            out.push_presence(Presence::NegativeInfinity);
            return Ok(());
        }
        0x0000 | 0x4000 => {}
        _ => return Err(invalid()),
    }
    if digits.len() != usize::from(count) * 2 {
        return Err(invalid());
    }
    let digit = |group: i32| {
        let at = usize::try_from(group).ok()?.checked_mul(2)?;
        let pair = digits.get(at..at + 2)?;
        Some(u16::from_be_bytes([pair[0], pair[1]]))
    };
    if (0..i32::from(count)).any(|group| digit(group).is_none_or(|d| d > 9999)) {
        return Err(invalid());
    }
    let mut text = Vec::with_capacity(usize::from(count) * 4 + scale + 8);
    if sign == 0x4000 {
        text.push(b'-');
    }
    if weight < 0 {
        text.push(b'0');
    } else {
        for group in 0..=weight {
            let value = digit(group).unwrap_or(0);
            let four = four_digits(value);
            if group == 0 {
                let zeros = four.iter().take(3).take_while(|d| **d == b'0').count();
                text.extend_from_slice(&four[zeros..]);
            } else {
                text.extend_from_slice(&four);
            }
        }
    }
    if scale > 0 {
        text.push(b'.');
        let end = text.len() + scale;
        let mut group = weight + 1;
        // Groups between the point and the first digit are zero.
        while text.len() < end {
            text.extend_from_slice(&four_digits(digit(group).unwrap_or(0)));
            group += 1;
        }
        text.truncate(end);
    }
    out.push_bytes(&text);
    Ok(())
}

fn four_digits(value: u16) -> [u8; 4] {
    let digit = |v: u16| b'0' + u8::try_from(v % 10).expect("a decimal digit");
    [
        digit(value / 1000),
        digit(value / 100),
        digit(value / 10),
        digit(value),
    ]
}

/// Dimensions, then elements with their lengths. `None`: the bytes do not hold together.
fn array(element: &LogicalType, bytes: &[u8]) -> Option<Result<pb::List, ValueError>> {
    let mut rest = bytes;
    let mut number = || {
        let (four, after) = rest.split_first_chunk::<4>()?;
        rest = after;
        Some(i32::from_be_bytes(*four))
    };
    let count = number()?;
    let (_has_nulls, _element_oid) = (number()?, number()?);
    let mut list = pb::List::default();
    let mut elements = usize::from(count > 0);
    for _ in 0..count {
        let (length, lower_bound) = (u32::try_from(number()?).ok()?, number()?);
        elements = elements.checked_mul(length as usize)?;
        list.dimensions.push(pb::Dimension {
            lower_bound,
            length,
        });
    }
    if !(0..=6).contains(&count) || elements > rest.len() / 4 {
        return None;
    }
    for _ in 0..elements {
        let (four, after) = rest.split_first_chunk::<4>()?;
        rest = after;
        let len = i32::from_be_bytes(*four);
        if len == -1 {
            list.elements
                .push(downriver_event::view::presence_cell(Presence::Null));
            continue;
        }
        let (value, after) = rest.split_at_checked(usize::try_from(len).ok()?)?;
        rest = after;
        match super::decoder::cell_with(element, |out| push(element, value, out)) {
            Ok(cell) => list.elements.push(cell),
            Err(error) => return Some(Err(error)),
        }
    }
    rest.is_empty().then_some(Ok(list))
}
