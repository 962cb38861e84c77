//! Keys of rows in SQL: they are compared by the server only, in the key's own types and collations.
//!
//! `(a, b) > (x, y)` is written out, `a > x or (a = x and b > y)`: of the short form the servers make no range of an
//! index.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use downriver_decode::mysql::native::Native;
use downriver_event::{Column, TableSchema};
use mysql_async::Value;

use super::columns::KnownColumn;
use super::key_value::{compared, equal, literal, printed};
use super::sql::identifier;
use crate::error::SourceError;

/// The index by which rows are known.
#[derive(Clone, Debug)]
pub(super) struct Key {
    pub(super) index: String,
    pub(super) parts: Vec<KeyPart>,
    /// It has only the beginning of a column, and so not the order of the column.
    pub(super) has_prefix: bool,
}

#[derive(Clone, Debug)]
pub(super) struct KeyPart {
    /// Its index among the table's columns.
    pub(super) column: usize,
    pub(super) is_descending: bool,
}

/// The key's columns in key order.
pub(super) struct KeyColumns<'a>(Vec<KeyColumn<'a>>);

struct KeyColumn<'a> {
    column: &'a Column,
    known: &'a KnownColumn,
    /// Its index among the values of a row that was selected.
    at: usize,
    is_descending: bool,
}

impl<'a> KeyColumns<'a> {
    /// `columns`: the table's, in its own order.
    pub(super) fn of(schema: &'a TableSchema, columns: &'a [KnownColumn], key: &Key) -> Self {
        let columns = key.parts.iter().filter_map(|part| {
            let known = columns.get(part.column)?;
            let is_it = |column: &Column| column.name == known.described.name;
            let at = schema.columns.iter().position(is_it)?;
            Some(KeyColumn {
                column: &schema.columns[at],
                known,
                at,
                is_descending: part.is_descending,
            })
        });
        Self(columns.collect())
    }

    pub(super) fn order(&self) -> String {
        let columns = self.0.iter().map(|column| {
            let direction = if column.is_descending { " desc" } else { "" };
            format!("t.{}{direction}", identifier(&column.column.name))
        });
        columns.collect::<Vec<_>>().join(", ")
    }

    /// The rows behind a bound.
    pub(super) fn after(&self, bound: &[u8]) -> Result<String, SourceError> {
        let values = decode_bound(bound)
            .filter(|values| values.len() == self.0.len())
            .ok_or_else(unreadable_bound)?;
        let mut same = Vec::new();
        let mut ranges = Vec::new();
        for (column, value) in self.0.iter().zip(values) {
            let value = literal(column.known, value).ok_or_else(unreadable_bound)?;
            let name = compared(column.known);
            let than = if column.is_descending { '<' } else { '>' };
            let mut range = same.clone();
            range.push(format!("{name} {than} {value}"));
            ranges.push(format!("({})", range.join(" and ")));
            same.push(format!("{name} = {value}"));
        }
        Ok(format!("({})", ranges.join(" or ")))
    }

    /// The row of a bound.
    pub(super) fn at(&self, bound: &[u8]) -> Result<String, SourceError> {
        let values = decode_bound(bound).ok_or_else(unreadable_bound)?;
        let equal = self.0.iter().zip(values).map(|(column, value)| {
            let value = literal(column.known, value)?;
            Some(format!("{} = {value}", compared(column.known)))
        });
        let equal: Option<Vec<String>> = equal.collect();
        Ok(equal.ok_or_else(unreadable_bound)?.join(" and "))
    }

    pub(super) fn has_uuid(&self) -> bool {
        let mut natives = self.0.iter().map(|column| column.known.declared.native);
        natives.any(|native| native == Some(Native::Uuid))
    }

    /// The rows with these keys, of the form that `Column::write_key` writes.
    pub(super) fn any_of(&self, keys: &[Bytes]) -> Result<String, SourceError> {
        let row = |key: &Bytes| {
            let mut rest: &[u8] = key;
            let equal = self.0.iter().map(|key| {
                equal(key.known, &key.column.ty, &mut rest).ok_or_else(|| {
                    let column = key.column;
                    SourceError::definite(
                        "DR-1042",
                        format!(
                            "a row's key cannot be looked up by column {:?} ({})",
                            column.name, column.source_type
                        ),
                        "report it; excluding the table lets the others go on",
                    )
                })
            });
            let equal: Result<Vec<_>, _> = equal.collect();
            Ok::<_, SourceError>(format!("({})", equal?.join(" and ")))
        };
        let rows: Vec<String> = keys.iter().map(row).collect::<Result<_, _>>()?;
        Ok(format!("({})", rows.join(" or ")))
    }

    /// What the rows behind this one are read by.
    pub(super) fn bound(&self, row: &[Value]) -> Result<Bytes, SourceError> {
        let mut bytes = BytesMut::new();
        for key in &self.0 {
            let value = row.get(key.at).and_then(|value| printed(key.known, value));
            let value = value.ok_or_else(|| {
                let name = &key.column.name;
                SourceError::definite(
                    "DR-1040",
                    format!("column {name:?} of a key has what is no value of its type"),
                    "report it with the column's type",
                )
            })?;
            bytes.put_u32_le(u32::try_from(value.len()).expect("a key's value is small"));
            bytes.extend_from_slice(&value);
        }
        Ok(bytes.freeze())
    }
}

/// Length and bytes of each of the bound's values.
fn decode_bound(mut bytes: &[u8]) -> Option<Vec<&[u8]>> {
    let mut values = Vec::new();
    while !bytes.is_empty() {
        let len = bytes.try_get_u32_le().ok()?;
        let (value, after) = bytes.split_at_checked(len as usize)?;
        values.push(value);
        bytes = after;
    }
    Some(values)
}

fn unreadable_bound() -> SourceError {
    SourceError::definite(
        "DR-1040",
        "where a chunk begins is not of the key that the table has",
        "downriver resnapshot PIPELINE --tables …, of this table, begins anew",
    )
}
