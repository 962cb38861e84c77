//! The rows of a table as COPY's binary form gives them.

use std::sync::Arc;

use bytes::{Buf as _, BytesMut};
use downriver_decode::mask::Mask;
use downriver_decode::postgres::binary;
use downriver_event::block::RowColumns;
use downriver_event::{Column, LogicalType, Presence, TableSchema};
use futures_util::TryStreamExt as _;
use tokio_postgres::Client;

use super::sql::identifier;
use crate::chunk::Row;
use crate::error::SourceError;
use crate::rules::{ColumnRules, rules_moved};

/// One row of COPY's binary form.
#[derive(Debug)]
pub struct BinaryRow<'a> {
    schema: &'a TableSchema,
    /// One for each column; empty: none is masked.
    masks: &'a [Option<Arc<Mask>>],
    fields: &'a [u8],
}

impl Row for BinaryRow<'_> {
    fn push_into(&self, columns: RowColumns<'_>) -> Result<(), SourceError> {
        let mut rest = self.fields;
        let mut masks = self.masks.iter();
        for (column, out) in self.schema.columns.iter().zip(columns.new) {
            if rest.len() < 4 {
                return Err(malformed("a row ends early"));
            }
            let len = rest.get_i32();
            let value = if len == -1 {
                None
            } else {
                let value = usize::try_from(len)
                    .ok()
                    .and_then(|len| rest.split_at_checked(len));
                let (value, after) = value.ok_or_else(|| malformed("a value ends early"))?;
                rest = after;
                Some(value)
            };
            let pushed = match (masks.next(), value) {
                (Some(Some(mask)), value) => mask.push(column, value, out).map_err(Into::into),
                (_, Some(value)) => binary::push(&column.ty, value, out),
                (_, None) => {
                    out.push_presence(Presence::Null);
                    Ok(())
                }
            };
            pushed.map_err(|error| SourceError::Value {
                table: self.schema.qualified_name(),
                column: column.name.clone(),
                error,
            })?;
        }
        Ok(())
    }
}

pub(super) fn malformed(what: &str) -> SourceError {
    SourceError::definite(
        "DR-1040",
        format!("COPY sent what is not its format: {what}"),
        "report it",
    )
}

/// Reads the rows of `table`, as it stands behind `from`, that all the filters let through.
pub(super) async fn copy(
    client: &Client,
    schema: &TableSchema,
    rules: &ColumnRules,
    table: &str,
    filters: &[String],
    row: &mut (dyn FnMut(&BinaryRow<'_>) -> Result<(), SourceError> + Send),
) -> Result<(), SourceError> {
    if !rules.fit(schema) {
        return Err(rules_moved(schema));
    }
    let masks = rules.masks(schema);
    let columns = schema.columns.iter().enumerate();
    let columns: Vec<String> = columns
        .map(|(at, column)| match masks.get(at) {
            Some(Some(mask)) => select_masked(column, mask),
            _ => select_column(column),
        })
        .collect();
    let query = format!(
        "copy (select {} from {table} {}) to stdout (format binary)",
        columns.join(", "),
        where_(filters)
    );
    let stream = client.copy_out(&query).await?;
    let mut stream = std::pin::pin!(stream);
    let mut buffer = BytesMut::new();
    let mut header = true;
    while let Some(bytes) = stream.try_next().await? {
        // Usually one row a message; the header comes with the first.
        let mut rest: &[u8] = if buffer.is_empty() {
            &bytes
        } else {
            buffer.extend_from_slice(&bytes);
            &buffer
        };
        if header {
            let Some(after) = after_header(rest)? else {
                let kept = BytesMut::from(rest);
                buffer = kept;
                continue;
            };
            header = false;
            rest = after;
        }
        loop {
            match split_row(rest, schema.columns.len())? {
                Split::Row(fields, after) => {
                    row(&BinaryRow {
                        schema,
                        masks: &masks,
                        fields,
                    })?;
                    rest = after;
                }
                Split::End => {
                    rest = &[];
                    break;
                }
                Split::More => break,
            }
        }
        buffer = BytesMut::from(rest);
    }
    if buffer.is_empty() {
        Ok(())
    } else {
        Err(malformed("it ends in the middle of a row"))
    }
}

pub(super) fn where_(filters: &[String]) -> String {
    if filters.is_empty() {
        String::new()
    } else {
        format!("where {}", filters.join(" and "))
    }
}

/// A masked column as its text, or not at all.
fn select_masked(column: &Column, mask: &Mask) -> String {
    if mask.is_fixed() {
        return "null::text".to_owned();
    }
    printed(&identifier(&column.name))
}

/// As the type's output function prints it, as in the stream. A cast to text may differ: `inet '::1'::text` is
/// `::1/128`. And `is null` holds for a composite value of nulls.
fn printed(name: &str) -> String {
    format!("case when {name} is distinct from null then format('%s', {name}) end")
}

/// A column in the form that `binary` reads as its type.
fn select_column(column: &Column) -> String {
    let name = identifier(&column.name);
    match &column.ty {
        // Not interpreted.
        LogicalType::Other => printed(&name),
        LogicalType::Array(element) => match wider(element) {
            Some(ty) => format!("{name}::{ty}[]"),
            None => name,
        },
        ty => match wider(ty) {
            Some(ty) => format!("{name}::{ty}"),
            None => name,
        },
    }
}

/// The one type whose binary form stands for all that are read as this one (money as numeric, oid as bigint); the cast
/// costs nothing for the type itself.
fn wider(ty: &LogicalType) -> Option<&'static str> {
    match ty {
        LogicalType::Decimal { .. } => Some("pg_catalog.numeric"),
        LogicalType::Int64 => Some("pg_catalog.int8"),
        _ => None,
    }
}

/// Past the signature, flags and extension; `None` if there is more to come.
fn after_header(bytes: &[u8]) -> Result<Option<&[u8]>, SourceError> {
    const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0";
    if bytes.len() < SIGNATURE.len() + 8 {
        return Ok(None);
    }
    let rest = bytes
        .strip_prefix(SIGNATURE)
        .ok_or_else(|| malformed("no signature"))?;
    let extension = u32::from_be_bytes([rest[4], rest[5], rest[6], rest[7]]) as usize;
    Ok(rest[8..].get(extension..))
}

enum Split<'a> {
    Row(&'a [u8], &'a [u8]),
    End,
    More,
}

fn split_row(bytes: &[u8], columns: usize) -> Result<Split<'_>, SourceError> {
    let Some((count, mut rest)) = bytes.split_first_chunk::<2>() else {
        return Ok(Split::More);
    };
    let count = i16::from_be_bytes(*count);
    if count == -1 {
        return Ok(Split::End);
    }
    if usize::try_from(count) != Ok(columns) {
        return Err(malformed("a row has another number of columns"));
    }
    let start = rest;
    for _ in 0..columns {
        let Some((len, after)) = rest.split_first_chunk::<4>() else {
            return Ok(Split::More);
        };
        rest = after;
        let len = i32::from_be_bytes(*len);
        if len >= 0 {
            let len = usize::try_from(len).expect("not negative");
            let Some(after) = rest.get(len..) else {
                return Ok(Split::More);
            };
            rest = after;
        }
    }
    Ok(Split::Row(&start[..start.len() - rest.len()], rest))
}
