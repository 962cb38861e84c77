//! Parts of tables: what was written is given its columns and values, and becomes SQL again. Literals are written as the
//! server prints values of the column's type. Comparisons are the server's; text is compared byte by byte.

use downriver_decode::mysql::constant;
use downriver_event::filter::{Comparator, Comparison, Written, WrittenFilter};
use downriver_event::{Column, LogicalType, RowFilter, TableSchema, pb};
use mysql_async::Row;
use mysql_async::prelude::Queryable as _;

use super::catalog::Found;
use super::key_value::compares;
use super::snapshot::SnapshotSession;
use super::sql::{number, qualified};
use crate::error::SourceError;
use crate::filter::{self, can_compare, differs, key_column, no_value, with_comparisons};

/// Gives a condition its columns, and its literals the values that they are of the columns' types.
///
/// # Errors
/// It compares what is not of the table's key, or what cannot be compared.
pub fn understand(schema: &TableSchema, written: &WrittenFilter) -> Result<RowFilter, SourceError> {
    let comparisons = written.condition.comparisons().into_iter();
    let comparisons = comparisons.map(|written| compared(schema, written));
    let comparisons = comparisons.collect::<Result<_, _>>()?;
    Ok(with_comparisons(written, comparisons))
}

fn compared(schema: &TableSchema, written: &Written) -> Result<Comparison, SourceError> {
    let is_same = |one: &str, other: &str| one.to_lowercase() == other.to_lowercase();
    let column = key_column(schema, &written.column, is_same)?;
    let is_for_equality = matches!(written.comparator, Comparator::Equal | Comparator::NotEqual);
    // A set's text has its members in their order, an address more than one form, and a uuid an order of its own.
    let is_known = match &column.ty {
        LogicalType::Text => !column.source_type.starts_with("set("),
        LogicalType::Other => column.source_type.starts_with("time"),
        LogicalType::Uuid => is_for_equality,
        _ => true,
    };
    if !is_known {
        return Err(differs(column));
    }
    can_compare(column, written.comparator)?;
    let value = value_of(column, &written.literal);
    let value = value.ok_or_else(|| no_value(column, written, "it is none of a key's"))?;
    Ok(Comparison {
        column: column.id,
        comparator: written.comparator,
        value,
    })
}

fn value_of(column: &Column, literal: &str) -> Option<pb::Value> {
    let is_instant = matches!(column.ty, LogicalType::Timestamp | LogicalType::TimestampTz);
    let of_day = match is_instant && !literal.contains(':') {
        true => format!("{literal} 00:00:00"),
        false => literal.to_owned(),
    };
    filter::value_of(&column.ty, &of_day, |cells| {
        constant(&column.ty, of_day.as_bytes(), cells).ok()
    })
}

/// The filter as it stands behind `where`.
pub(super) fn selecting(
    part: &RowFilter,
    schema: &TableSchema,
    found: &Found,
) -> Result<String, SourceError> {
    filter::selecting(part, &|comparison| {
        let column = &schema.columns[schema.column_index(comparison.column)?];
        let mut columns = found.columns.iter();
        let known = columns.find(|known| known.described.name == column.name)?;
        let mut value = Vec::new();
        comparison.cell(&column.ty)?.write_key(0, &mut value);
        compares(known, &column.ty, comparison.comparator, &value)
    })
}

impl SnapshotSession {
    /// How many rows the server expects in a part of a table; `None`: the table is another one by now.
    pub(super) async fn expected_rows(
        &mut self,
        schema: &TableSchema,
        part: &RowFilter,
    ) -> Result<Option<u64>, SourceError> {
        let (namespace, name) = (&schema.namespace, &schema.name);
        let Some(found) = self.catalog.found(namespace, name).await? else {
            return Ok(None);
        };
        let Ok(filter) = selecting(part, schema, &found) else {
            return Ok(None);
        };
        let table = qualified(namespace, name);
        let explain =
            format!("explain format = traditional select 1 from {table} as t where {filter}");
        let plan: Vec<Row> = match self.session().query(explain).await {
            Ok(plan) => plan,
            Err(mysql_async::Error::Server(_)) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        Ok(plan.first().and_then(|plan| {
            let of = |name: &str| {
                let columns = plan.columns_ref().iter();
                let at = columns
                    .clone()
                    .position(|column| column.name_str() == name)?;
                number(plan, at)
            };
            of("rows")
        }))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use downriver_event::filter::Condition;
    use downriver_event::{Cover, ReplicaIdentity, TableId};

    use super::*;

    fn schema(source_type: &str, ty: LogicalType) -> TableSchema {
        let column = |id, name: &str, source_type: &str, ty| Column {
            id,
            name: name.into(),
            ty,
            nullable: false,
            source_type: source_type.into(),
            cover: Cover::None,
            default: None,
        };
        TableSchema {
            id: TableId(1),
            version: 1,
            namespace: "shop".into(),
            name: "t".into(),
            columns: vec![
                column(1, "Key", source_type, ty),
                column(2, "other", "int", LogicalType::Int32),
            ],
            key: vec![1],
            identity: ReplicaIdentity::Default,
            withheld: Vec::new(),
        }
    }

    fn is_understood(
        source_type: &str,
        ty: LogicalType,
        column: &str,
        comparator: Comparator,
        literal: &str,
    ) -> bool {
        let written = WrittenFilter {
            text: String::new(),
            condition: Condition::Is(Written {
                column: column.into(),
                comparator,
                literal: literal.into(),
            }),
        };
        understand(&schema(source_type, ty), &written).is_ok()
    }

    #[test]
    fn what_is_not_compared_the_same_everywhere_is_refused() {
        use Comparator::{Equal, Less, NotEqual};
        let decimal = |precision, scale| LogicalType::Decimal { precision, scale };
        let enumeration = LogicalType::Enum {
            labels: vec!["a".into()],
        };
        let (int, text) = (LogicalType::Int32, LogicalType::Text);
        for (source_type, ty, comparator, literal, is) in [
            ("int", int.clone(), Less, "-7", true),
            ("int", int.clone(), Less, "7.5", false),
            ("int", int.clone(), Less, "3000000000", false),
            (
                "bigint unsigned",
                decimal(20, 0),
                Less,
                "18446744073709551615",
                true,
            ),
            ("decimal(5,2)", decimal(5, 2), Equal, "1.50", true),
            ("decimal(5,2)", decimal(5, 2), Equal, "1.505", false),
            ("decimal(40,2)", decimal(40, 2), Equal, "1.50", false),
            ("varchar", text.clone(), NotEqual, "it's", true),
            ("varchar", text.clone(), Less, "b", false),
            ("set('a','b')", text, Equal, "a", false),
            ("enum", enumeration.clone(), Equal, "a", true),
            ("enum", enumeration, Equal, "c", false),
            ("date", LogicalType::Date, Less, "2026-02-30", false),
            ("date", LogicalType::Date, Less, "2026-02-28", true),
            ("date", LogicalType::Date, Less, "0000-00-00", false),
            ("datetime", LogicalType::Timestamp, Less, "2026-02-28", true),
            (
                "datetime(6)",
                LogicalType::Timestamp,
                Less,
                "2026-02-28 12:00:00.5",
                true,
            ),
            ("time", LogicalType::Other, Equal, "12:00:00", true),
            ("time", LogicalType::Other, Less, "12:00:00", false),
            ("inet6", LogicalType::Other, Equal, "::1", false),
            (
                "uuid",
                LogicalType::Uuid,
                Equal,
                "00112233-4455-6677-8899-aabbccddeeff",
                true,
            ),
            (
                "uuid",
                LogicalType::Uuid,
                Less,
                "00112233-4455-6677-8899-aabbccddeeff",
                false,
            ),
            ("binary(2)", LogicalType::Bytes, Less, "\\x00ff", true),
            ("double", LogicalType::Float64, Equal, "1", false),
        ] {
            let found = is_understood(source_type, ty, "key", comparator, literal);
            assert_eq!(found, is, "{source_type} {literal}");
        }
        assert!(!is_understood("int", int, "other", Equal, "1"));
    }
}
