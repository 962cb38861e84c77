//! Keys of rows in SQL: they are compared by the server only, in the key's own types and collations.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use downriver_event::{Column, LogicalType, Presence, TableSchema};

use super::copy::malformed;
use super::sql::{identifier, literal};
use crate::error::SourceError;

/// The key's columns in key order, each with the type that it is compared as.
pub(super) struct KeyColumns<'a>(pub(super) Vec<(&'a Column, &'a str)>);

impl<'a> KeyColumns<'a> {
    pub(super) fn of(schema: &'a TableSchema, types: &'a [String]) -> Self {
        let columns = schema.key_indexes().into_iter();
        let columns = columns.map(|index| &schema.columns[index]);
        Self(columns.zip(types.iter().map(String::as_str)).collect())
    }

    fn each(&self, sql: impl Fn(&str, &str) -> String) -> String {
        let each: Vec<String> = self
            .0
            .iter()
            .map(|(column, ty)| sql(&identifier(&column.name), ty))
            .collect();
        each.join(", ")
    }

    pub(super) fn names(&self) -> String {
        self.each(|name, _| name.to_owned())
    }

    pub(super) fn compared(&self) -> String {
        self.each(|name, ty| format!("{name}::{ty}"))
    }

    pub(super) fn texts(&self) -> String {
        self.each(|name, _| format!("{name}::text"))
    }

    /// A row of values printed as text.
    pub(super) fn row(&self, values: &[String]) -> String {
        let values: Vec<String> = values
            .iter()
            .zip(&self.0)
            .map(|(value, (_, ty))| format!("{}::{ty}", literal(value)))
            .collect();
        format!("({})", values.join(", "))
    }

    /// A row of values as `Column::write_key` wrote them.
    pub(super) fn row_of(&self, key: &[u8]) -> Result<String, SourceError> {
        let mut rest = key;
        let mut values = Vec::with_capacity(self.0.len());
        for (column, ty) in &self.0 {
            let value = key_value(&column.ty, &mut rest).ok_or_else(|| {
                SourceError::definite(
                    "DR-1042",
                    format!(
                        "a row's key cannot be looked up by column {:?} ({})",
                        column.name, column.source_type
                    ),
                    "report it; excluding the table lets the others go on",
                )
            })?;
            values.push(format!("{value}::{ty}"));
        }
        Ok(format!("({})", values.join(", ")))
    }
}

/// One value of a key as an SQL expression.
pub(super) fn key_value(ty: &LogicalType, rest: &mut &[u8]) -> Option<String> {
    let (presence, after) = rest.split_first()?;
    *rest = after;
    match Presence::from_code(*presence)? {
        Presence::Value => {}
        Presence::NaN => return Some("'NaN'".into()),
        Presence::PositiveInfinity => return Some("'Infinity'".into()),
        Presence::NegativeInfinity => return Some("'-Infinity'".into()),
        _ => return None,
    }
    let mut take = |len: usize| {
        let (taken, after) = rest.split_at_checked(len)?;
        *rest = after;
        Some(taken)
    };
    let hex = |bytes: &[u8]| -> String { bytes.iter().map(|byte| format!("{byte:02x}")).collect() };
    Some(match ty {
        LogicalType::Bool => format!("'{}'", take(1)? != [0]),
        LogicalType::Int16 | LogicalType::Int32 => {
            format!("({})", i32::from_le_bytes(take(4)?.try_into().ok()?))
        }
        LogicalType::Date => {
            let days = i32::from_le_bytes(take(4)?.try_into().ok()?);
            format!("(date '1970-01-01' + ({days}))")
        }
        LogicalType::Int64 => format!("({})", i64::from_le_bytes(take(8)?.try_into().ok()?)),
        LogicalType::Float32 => {
            format!("'{}'", f32::from_le_bytes(take(4)?.try_into().ok()?))
        }
        LogicalType::Float64 => {
            format!("'{}'", f64::from_le_bytes(take(8)?.try_into().ok()?))
        }
        LogicalType::Time => {
            // Not as midnight and an interval: that makes 24:00:00 to 00:00:00.
            let micros = i64::from_le_bytes(take(8)?.try_into().ok()?);
            let (minutes, micros) = (micros / 60_000_000, micros % 60_000_000);
            let (seconds, micros) = (micros / 1_000_000, micros % 1_000_000);
            format!(
                "'{:02}:{:02}:{seconds:02}.{micros:06}'",
                minutes / 60,
                minutes % 60
            )
        }
        LogicalType::Timestamp | LogicalType::TimestampTz => {
            let micros = i64::from_le_bytes(take(8)?.try_into().ok()?);
            let zone = if *ty == LogicalType::TimestampTz {
                "timestamptz '1970-01-01 00:00:00+00'"
            } else {
                "timestamp '1970-01-01'"
            };
            // Before version 15 a number of microseconds is no larger than an int4; UTC has days of one length.
            let day = 86_400_000_000;
            let (days, micros) = (micros.div_euclid(day), micros.rem_euclid(day));
            let (seconds, micros) = (micros / 1_000_000, micros % 1_000_000);
            format!("({zone} + interval '{days} days {seconds}.{micros:06} seconds')")
        }
        LogicalType::Interval => {
            let bytes = take(8 + 16)?.split_at(8).1;
            let months = i32::from_le_bytes(bytes[..4].try_into().ok()?);
            let days = i32::from_le_bytes(bytes[4..8].try_into().ok()?);
            let micros = i64::from_le_bytes(bytes[8..].try_into().ok()?);
            format!("'{months} mons {days} days {micros} microseconds'")
        }
        LogicalType::Uuid => format!("'{}'", hex(take(8 + 16)?.split_at(8).1)),
        LogicalType::Bytes => {
            let len = usize::try_from(u64::from_le_bytes(take(8)?.try_into().ok()?)).ok()?;
            format!("E'\\\\x{}'", hex(take(len)?))
        }
        LogicalType::Text
        | LogicalType::Decimal { .. }
        | LogicalType::Enum { .. }
        | LogicalType::Other
        | LogicalType::Json => {
            let len = usize::try_from(u64::from_le_bytes(take(8)?.try_into().ok()?)).ok()?;
            literal(std::str::from_utf8(take(len)?).ok()?)
        }
        LogicalType::Array(_) => return None,
    })
}

/// Length and text of each of the bound's values.
pub(super) fn encode_bound(values: &[String]) -> Bytes {
    let mut bytes = BytesMut::new();
    for value in values {
        bytes.put_u32_le(u32::try_from(value.len()).expect("a key's value is small"));
        bytes.extend_from_slice(value.as_bytes());
    }
    bytes.freeze()
}

pub(super) fn decode_bound(mut bytes: &[u8]) -> Result<Vec<String>, SourceError> {
    let mut values = Vec::new();
    while !bytes.is_empty() {
        let value = bytes
            .try_get_u32_le()
            .ok()
            .and_then(|len| bytes.split_at_checked(len as usize));
        let (value, after) = value.ok_or_else(|| malformed("a stored bound"))?;
        bytes = after;
        values.push(String::from_utf8(value.to_vec()).map_err(|_| malformed("a stored bound"))?);
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_bound_is_read_back() {
        let bound = vec!["a'b".to_owned(), String::new(), "ü".to_owned()];
        assert_eq!(decode_bound(&encode_bound(&bound)).unwrap(), bound);
    }
}
