//! What rows have of columns that an insert leaves out.
//!
//! The server itself tells the default of a column that may be null, also where the table has no row; of another it tells
//! none then, and the catalog's text is read: it has values as they are printed. Where that may not be the value, the default
//! is not known: an instant is printed in the time zone of whoever made the table, a float with six digits, bytes up to a
//! zero, and text with `?` for characters beyond the plane.

use std::sync::Arc;

use downriver_decode::mask::Mask;
use downriver_decode::mysql::table_map::Wire;
use downriver_event::block::ColumnBuilder;
use downriver_event::{DefaultCell, LogicalType, TableSchema, view};
use mysql_async::prelude::Queryable as _;
use mysql_async::{Conn, Row, Value};

use super::catalog::{Catalog, Found};
use super::columns::KnownColumn;
use super::row::SelectedRow;
use super::snapshot::selected_columns;
use super::sql::{identifier, literal, qualified, text};
use crate::error::SourceError;

/// A column's default.
enum Given {
    /// As a statement reads it.
    Selected(Value),
    Text(String),
}

impl Catalog {
    /// Finds the defaults of a table's columns.
    pub(super) async fn find_defaults(&mut self, found: &mut Found) -> Result<(), SourceError> {
        if found.table.problem.is_some() {
            return Ok(());
        }
        let schema = &found.table.schema;
        let query = format!(
            "select column_default, is_nullable, extra from information_schema.columns
              where table_schema = {} and table_name = {} order by ordinal_position",
            literal(&schema.namespace),
            literal(&schema.name)
        );
        let rows: Vec<Row> = self.session.query(query).await?;
        let columns = selected_columns(schema, &found.columns);
        let declared = columns.iter().map(|column| {
            let mut all = found.columns.iter();
            let at = all.position(|it| it.described.name == column.described.name)?;
            rows.get(at).map(declared)
        });
        let declared: Vec<Option<Declared>> = declared.collect();
        let told = columns.iter().zip(&declared);
        let told = told.filter(|(_, declared)| matches!(declared, Some(Declared::Told)));
        let told: Vec<&KnownColumn> = told.map(|(column, _)| *column).collect();
        let name = qualified(&schema.namespace, &schema.name);
        let mut told = told_defaults(&mut self.session, &name, &told)
            .await?
            .into_iter();
        let defaults = columns.iter().zip(declared);
        let defaults = defaults.map(|(column, declared)| match declared? {
            Declared::Null => Some(Given::Selected(Value::NULL)),
            Declared::Told => {
                let told = told.next().filter(|told| *told != Value::NULL);
                told.map(Given::Selected)
            }
            Declared::Written(text) => written(column, text),
            Declared::OfType => of_type(column).map(Given::Selected),
            Declared::Logged => None,
        });
        let defaults: Vec<Option<Given>> = defaults.collect();
        let masks = self.rules().masks(&found.table.schema);
        let columns = selected_columns(&found.table.schema, &found.columns);
        let defaults = cells(&found.table.schema, &columns, &masks, defaults)?;
        let columns = found.table.schema.columns.iter_mut();
        for (column, default) in columns.zip(defaults) {
            column.default = default;
        }
        Ok(())
    }
}

/// What the catalog says of a column's default.
enum Declared {
    Null,
    /// The server tells it.
    Told,
    /// As the catalog writes it.
    Written(String),
    /// None: it is the type's own, in a session that is not strict.
    OfType,
    /// What it comes to the server logs.
    Logged,
}

fn declared(row: &Row) -> Declared {
    let extra = text(row, 2).unwrap_or_default().to_lowercase();
    let is_nullable = text(row, 1).as_deref() == Some("YES");
    match text(row, 0) {
        _ if extra.contains("generated") || extra.contains("auto_increment") => Declared::Logged,
        // Before 8.0 nothing else tells that it is no value.
        Some(text) if text.starts_with("CURRENT_TIMESTAMP") => Declared::Logged,
        Some(_) if is_nullable => Declared::Told,
        Some(text) => Declared::Written(text),
        None if is_nullable => Declared::Null,
        None => Declared::OfType,
    }
}

/// The defaults of columns that may be null, as the server reads them.
async fn told_defaults(
    session: &mut Conn,
    table: &str,
    columns: &[&KnownColumn],
) -> Result<Vec<Value>, SourceError> {
    if columns.is_empty() {
        return Ok(Vec::new());
    }
    let default = |column: &&KnownColumn| {
        let default = format!("default(t.{})", identifier(&column.described.name));
        match column.wire {
            Wire::Enum(_) | Wire::Set(_) => format!("cast({default} as unsigned)"),
            _ => default,
        }
    };
    let defaults: Vec<String> = columns.iter().map(default).collect();
    let query = format!(
        "select {} from (select 1) one left join {table} t on false",
        defaults.join(", ")
    );
    let row: Option<Row> = session.exec_first(query, ()).await?;
    Ok(row.map(Row::unwrap).unwrap_or_default())
}

/// A default as the catalog writes it. `None`: it may be another one.
fn written(column: &KnownColumn, default: String) -> Option<Given> {
    if column.described.ty == LogicalType::Text && has_charset(column) {
        // A statement would read it in the column's character set.
        return (!default.contains('?')).then_some(Given::Text(default));
    }
    value(column, &default).map(Given::Selected)
}

fn has_charset(column: &KnownColumn) -> bool {
    matches!(column.wire, Wire::Char(_) | Wire::Bytes(_))
}

fn value(column: &KnownColumn, default: &str) -> Option<Value> {
    let labels = &column.declared.labels;
    let number = |label: &str| labels.iter().position(|known| known == label);
    Some(match column.wire {
        Wire::Integer(_) | Wire::Year => match default.parse() {
            Ok(number) => Value::Int(number),
            Err(_) => Value::UInt(default.parse().ok()?),
        },
        Wire::Bits(_) => {
            let bits = default.strip_prefix("b'")?.strip_suffix('\'')?;
            let bits = u64::from_str_radix(bits, 2).ok()?;
            Value::Bytes(bits.to_be_bytes().to_vec())
        }
        Wire::Enum(_) => Value::UInt(u64::try_from(number(default)? + 1).ok()?),
        Wire::Set(_) => {
            let members = default.split(',').filter(|member| !member.is_empty());
            let bits = members.map(|member| Some(1 << number(member)?));
            Value::UInt(bits.sum::<Option<u64>>()?)
        }
        Wire::Double => Value::Double(default.parse().ok()?),
        Wire::Date | Wire::Datetime(_) => instant(default)?,
        Wire::Time(_) => clock(default)?,
        Wire::Decimal { .. } => Value::Bytes(default.into()),
        _ => return None,
    })
}

/// What a column has that must have something, and is given nothing by a session that is not strict. Source: "Data Type
/// Default Values" in MySQL's manual. `None`: the type has none.
fn of_type(column: &KnownColumn) -> Option<Value> {
    Some(match column.wire {
        Wire::Integer(_) | Wire::Year | Wire::Set(_) => Value::Int(0),
        Wire::Bits(_) => Value::Bytes(vec![0]),
        // The number of the first label.
        Wire::Enum(_) => Value::Int(1),
        Wire::Float => Value::Float(0.0),
        Wire::Double => Value::Double(0.0),
        Wire::Decimal { scale: 0, .. } => Value::Bytes(b"0".to_vec()),
        Wire::Decimal { scale, .. } => {
            Value::Bytes(format!("0.{}", "0".repeat(scale.into())).into_bytes())
        }
        Wire::Date | Wire::Datetime(_) | Wire::Timestamp(_) => Value::Date(0, 0, 0, 0, 0, 0, 0),
        Wire::Time(_) => Value::Time(false, 0, 0, 0, 0, 0),
        Wire::Char(_) | Wire::Bytes(_) if is_string(column) => Value::Bytes(Vec::new()),
        _ => return None,
    })
}

fn is_string(column: &KnownColumn) -> bool {
    let source_type = &column.described.source_type;
    let mut bytes = ["binary", "blob"].iter();
    column.described.ty == LogicalType::Text || bytes.any(|word| source_type.contains(word))
}

/// Of `2020-06-01`, or `2020-06-01 12:00:00.125`.
fn instant(text: &str) -> Option<Value> {
    let (date, clock) = text.split_once(' ').unwrap_or((text, "0:0:0"));
    let mut date = date.split('-').map(str::parse::<u16>);
    let mut next = || date.next()?.ok();
    let (year, month, day) = (next()?, next()?, next()?);
    let ([hour, minute, second], micros) = parts(clock)?;
    let small = |number: u32| u8::try_from(number).ok();
    Some(Value::Date(
        year,
        u8::try_from(month).ok()?,
        u8::try_from(day).ok()?,
        small(hour)?,
        small(minute)?,
        small(second)?,
        micros,
    ))
}

/// Of `-11:22:33.5`.
fn clock(text: &str) -> Option<Value> {
    let positive = text.strip_prefix('-');
    let ([hours, minutes, seconds], micros) = parts(positive.unwrap_or(text))?;
    let small = |number: u32| u8::try_from(number).ok();
    Some(Value::Time(
        positive.is_some(),
        hours / 24,
        small(hours % 24)?,
        small(minutes)?,
        small(seconds)?,
        micros,
    ))
}

/// Hours, minutes and seconds, and microseconds.
fn parts(clock: &str) -> Option<([u32; 3], u32)> {
    let (whole, fraction) = clock.split_once('.').unwrap_or((clock, ""));
    let mut numbers = whole.split(':').map(str::parse);
    let mut next = || numbers.next()?.ok();
    let clock = [next()?, next()?, next()?];
    Some((clock, format!("{fraction:0<6}").parse().ok()?))
}

/// The defaults as rows have them: what masks make of those of masked columns.
fn cells(
    schema: &TableSchema,
    columns: &[&KnownColumn],
    masks: &[Option<Arc<Mask>>],
    defaults: Vec<Option<Given>>,
) -> Result<Vec<Option<DefaultCell>>, SourceError> {
    let mut values = vec![Value::NULL; columns.len()];
    let mut cells = Vec::with_capacity(columns.len());
    for (at, default) in defaults.into_iter().enumerate() {
        let Some(default) = default else {
            cells.push(None);
            continue;
        };
        let column = &schema.columns[at];
        let mut cell = ColumnBuilder::new(column.id, &column.ty);
        let mask = masks.get(at).and_then(Option::as_deref);
        match (default, mask) {
            (Given::Text(text), None) => cell.push_bytes(text.as_bytes()),
            (Given::Text(text), Some(mask)) => {
                let pushed = mask.push(column, Some(text.as_bytes()), &mut cell);
                if pushed.is_err() {
                    cells.push(None);
                    continue;
                }
            }
            (Given::Selected(value), _) => {
                values[at] = value;
                let row = SelectedRow {
                    schema,
                    columns,
                    masks,
                    values: &values,
                };
                row.push(at, &mut cell, &mut Vec::new())?;
            }
        }
        let cell = cell.read();
        let cell = cell.and_then(|cell| view::cell_of(&cell, &column.ty, 0).ok());
        cells.push(cell.map(DefaultCell));
    }
    Ok(cells)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_read_as_the_catalog_writes_them() {
        let whole = Value::Date(2020, 6, 1, 12, 0, 0, 125_000);
        assert_eq!(instant("2020-06-01 12:00:00.125"), Some(whole));
        let date = Value::Date(0, 0, 0, 0, 0, 0, 0);
        assert_eq!(instant("0000-00-00"), Some(date));
        let back = Value::Time(true, 34, 22, 59, 58, 500_000);
        assert_eq!(clock("-838:59:58.50"), Some(back));
        assert_eq!(instant("CURRENT_TIMESTAMP"), None);
    }
}
