//! Parts of tables: what was written is given its columns and values, and becomes SQL again.
//!
//! Every row that the SQL selects, and no other, fulfils the filter for whoever else compares its values: texts are
//! therefore compared byte by byte as they are printed, whatever the column's collation calls equal.

use downriver_decode::postgres::text;
use downriver_event::block::ColumnBuilder;
use downriver_event::filter::{Comparator, Comparison, Condition, Written, WrittenFilter};
use downriver_event::view::cell_of;
use downriver_event::{Column, LogicalType, RowFilter, TableSchema, pb};
use tokio_postgres::error::SqlState;

use super::key_sql::{KeyColumns, key_value};
use super::snapshot::SnapshotSession;
use super::sql::{identifier, literal, qualified};
use crate::error::SourceError;

/// Digits of a decimal that is a number in every sink.
const PRECISION_MAX: u32 = 38;

fn refused(reason: String, fix: String) -> SourceError {
    SourceError::definite("DR-2057", reason, fix)
}

impl SnapshotSession {
    /// Gives a condition its columns, and its literals the values that the server reads them as.
    ///
    /// # Errors
    /// It compares what is not of the table's key, or what cannot be compared; or the server cannot be asked.
    pub async fn understand(
        &mut self,
        schema: &TableSchema,
        written: &WrittenFilter,
    ) -> Result<RowFilter, SourceError> {
        let types = self.key_types(schema).await?.to_vec();
        let key = KeyColumns::of(schema, &types);
        let mut comparisons = Vec::new();
        for comparison in written.condition.comparisons() {
            comparisons.push(self.compared(schema, &key, comparison).await?);
        }
        let mut comparisons = comparisons.into_iter();
        let mut next = |_: &Written| comparisons.next().ok_or(());
        let condition = written.condition.try_map(&mut next);
        Ok(RowFilter {
            text: written.text.clone(),
            condition: condition.expect("there is one for each"),
        })
    }

    /// How many rows the server expects in a part of a table; `None`: the table is another one by now.
    pub(super) async fn expected_rows(
        &mut self,
        schema: &TableSchema,
        part: &RowFilter,
    ) -> Result<Option<u64>, SourceError> {
        let types = self.key_types(schema).await?.to_vec();
        let filter = selecting(part, &KeyColumns::of(schema, &types))?;
        let table = qualified(&schema.namespace, &schema.name);
        let explain = format!("explain select from {table} where {filter}");
        let plan = match self.client().query(&explain, &[]).await {
            Ok(plan) => plan,
            Err(error) if error.as_db_error().is_some() => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // Seq Scan on orders  (cost=0.00..25.88 rows=423 width=0)
        let top: &str = plan.first().map_or("", |line| line.get(0));
        let rows = top.split_once(" rows=");
        Ok(rows.and_then(|(_, rows)| rows.split(' ').next()?.parse().ok()))
    }

    async fn compared(
        &self,
        schema: &TableSchema,
        key: &KeyColumns<'_>,
        written: &Written,
    ) -> Result<Comparison, SourceError> {
        let name = &written.column;
        let of_key = key.0.iter().find(|(column, _)| column.name == *name);
        let Some((column, ty)) = of_key else {
            let reason = format!(
                "column {name:?} is not of the key of {}",
                schema.qualified_name()
            );
            let keys: Vec<&str> = key
                .0
                .iter()
                .map(|(column, _)| column.name.as_str())
                .collect();
            let fix = match keys.is_empty() {
                true => "a table without a key is read whole: leave the condition away".to_owned(),
                false => format!("compare what rows are known by: {}", keys.join(", ")),
            };
            return Err(refused(reason, fix));
        };
        can_compare(column, written.comparator)?;
        let printed = format!("select format('%s', {}::{ty})", literal(&written.literal));
        let printed = self.client().query_one(&printed, &[]).await;
        let printed: String = match printed {
            Ok(row) => row.get(0),
            Err(error) if error.code().is_some_and(is_of_value) => {
                let said = error.as_db_error().map_or("", |error| error.message());
                return Err(no_value(column, written, said));
            }
            Err(error) => return Err(error.into()),
        };
        let value = value_of(&column.ty, &printed);
        let value = value.ok_or_else(|| no_value(column, written, "it is none of a key's"))?;
        Ok(Comparison {
            column: column.id,
            comparator: written.comparator,
            value,
        })
    }
}

fn no_value(column: &Column, written: &Written, why: &str) -> SourceError {
    refused(
        format!(
            "{:?} cannot be compared with column {:?} ({}): {why}",
            written.literal, column.name, column.source_type
        ),
        "write a literal of the column's type".to_owned(),
    )
}

/// Classes 22 (data exception) and 23, which a domain answers with.
fn is_of_value(code: &SqlState) -> bool {
    code.code().starts_with("22") || code.code().starts_with("23")
}

/// Whether everybody compares values of the column in the same way.
fn can_compare(column: &Column, comparator: Comparator) -> Result<(), SourceError> {
    let is_for_equality = matches!(comparator, Comparator::Equal | Comparator::NotEqual);
    // Padded with blanks, which count or not as it is looked at.
    let is_padded = column.source_type.starts_with("character(") || column.source_type == "bpchar";
    let can = match &column.ty {
        LogicalType::Bool
        | LogicalType::Int16
        | LogicalType::Int32
        | LogicalType::Int64
        | LogicalType::Date
        | LogicalType::Time
        | LogicalType::Timestamp
        | LogicalType::TimestampTz
        | LogicalType::Uuid
        | LogicalType::Bytes => true,
        LogicalType::Decimal { precision, scale } => {
            let scale = u32::try_from(*scale);
            (1..=PRECISION_MAX).contains(precision) && scale.is_ok_and(|s| s <= *precision)
        }
        LogicalType::Text | LogicalType::Enum { .. } | LogicalType::Other if is_padded => false,
        LogicalType::Text | LogicalType::Enum { .. } | LogicalType::Other => {
            if !is_for_equality {
                return Err(refused(
                    format!(
                        "values of column {:?} ({}) can only be equal or not: their order is not the same everywhere",
                        column.name, column.source_type
                    ),
                    "compare it with =, <>, in or not in".to_owned(),
                ));
            }
            true
        }
        LogicalType::Float32
        | LogicalType::Float64
        | LogicalType::Interval
        | LogicalType::Json
        | LogicalType::Array(_) => false,
    };
    match can {
        true => Ok(()),
        false => Err(refused(
            format!(
                "values of column {:?} ({}) are not compared the same everywhere",
                column.name, column.source_type
            ),
            "compare other columns of the key, or read the whole table".to_owned(),
        )),
    }
}

/// What the server printed, as a value. `None`: it is none, such as infinity, or has more digits than the column.
fn value_of(ty: &LogicalType, printed: &str) -> Option<pb::Value> {
    if let LogicalType::Decimal { scale, .. } = ty {
        let fraction = printed.split_once('.').map_or("", |(_, fraction)| fraction);
        let scale = usize::try_from(*scale).ok()?;
        if fraction.trim_end_matches('0').len() > scale {
            return None;
        }
    }
    let mut cells = ColumnBuilder::new(0, ty);
    text::push(ty, printed.as_bytes(), &mut cells).ok()?;
    let cells = cells.read()?;
    match cell_of(&cells, ty, 0).ok()?.kind? {
        pb::cell::Kind::Value(value) => Some(value),
        pb::cell::Kind::Presence(_) => None,
    }
}

/// The filter as it stands behind `where`.
pub(super) fn selecting(filter: &RowFilter, key: &KeyColumns<'_>) -> Result<String, SourceError> {
    selects(&filter.condition, key).ok_or_else(|| {
        SourceError::definite(
            "DR-2057",
            format!(
                "the key of the table is another one than when {:?} was asked for",
                filter.text
            ),
            "ask again: downriver resnapshot PIPELINE --tables SCHEMA.TABLE",
        )
    })
}

fn selects(condition: &Condition<Comparison>, key: &KeyColumns<'_>) -> Option<String> {
    let joined = |of: &[Condition<Comparison>], by: &str| {
        let each: Option<Vec<String>> = of.iter().map(|one| selects(one, key)).collect();
        Some(format!("({})", each?.join(by)))
    };
    match condition {
        Condition::All(of) if of.is_empty() => Some("true".to_owned()),
        Condition::Any(of) if of.is_empty() => Some("false".to_owned()),
        Condition::All(of) => joined(of, " and "),
        Condition::Any(of) => joined(of, " or "),
        Condition::Is(comparison) => {
            let mut columns = key.0.iter();
            let (column, ty) = columns.find(|(column, _)| column.id == comparison.column)?;
            compares(column, ty, comparison)
        }
    }
}

fn compares(column: &Column, ty: &str, comparison: &Comparison) -> Option<String> {
    let name = identifier(&column.name);
    let comparator = comparison.comparator.symbol();
    let cell = comparison.cell(&column.ty)?;
    if let Some(pb::value::Kind::Text(value)) = &comparison.value.kind
        && !matches!(column.ty, LogicalType::Decimal { .. })
    {
        let value = literal(value);
        let printed = format!("format('%s', {name}) collate \"C\" {comparator} {value}");
        return Some(match comparison.comparator {
            // What is printed the same is equal: by this the server finds the rows in the key's index.
            Comparator::Equal => format!("({name}::{ty} = {value}::{ty} and {printed})"),
            _ => printed,
        });
    }
    let mut key = Vec::new();
    cell.write_key(0, &mut key);
    let value = key_value(&column.ty, &mut key.as_slice())?;
    Some(format!("{name}::{ty} {comparator} {value}::{ty}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use downriver_event::Cover;

    use super::*;

    fn column(id: u32, name: &str, source_type: &str, ty: LogicalType) -> Column {
        Column {
            id,
            name: name.into(),
            ty,
            nullable: false,
            source_type: source_type.into(),
            cover: Cover::None,
            default: None,
        }
    }

    #[test]
    fn a_filter_is_written_in_the_types_of_the_key() {
        let decimal = LogicalType::Decimal {
            precision: 12,
            scale: 2,
        };
        let columns = [
            column(1, "id", "bigint", LogicalType::Int64),
            column(4, "Code", "text", LogicalType::Text),
            column(5, "price", "numeric(12,2)", decimal),
            column(6, "day", "date", LogicalType::Date),
        ];
        let types = ["bigint", "text", "numeric", "date"];
        let key = KeyColumns(columns.iter().zip(types).collect());
        let is = |at: usize, comparator, printed: &str| {
            Condition::Is(Comparison {
                column: columns[at].id,
                comparator,
                value: value_of(&columns[at].ty, printed).unwrap(),
            })
        };
        let condition = Condition::Any(vec![
            Condition::All(vec![
                is(0, Comparator::GreaterOrEqual, "-7"),
                is(2, Comparator::Less, "1.50"),
            ]),
            is(1, Comparator::Equal, "it's"),
            is(1, Comparator::NotEqual, "b"),
            is(3, Comparator::Greater, "1969-12-31"),
        ]);
        let filter = RowFilter {
            text: String::new(),
            condition,
        };
        assert_eq!(
            selecting(&filter, &key).unwrap(),
            "((\"id\"::bigint >= (-7)::bigint and \"price\"::numeric < '1.50'::numeric) or \
             (\"Code\"::text = 'it''s'::text and format('%s', \"Code\") collate \"C\" = 'it''s') or \
             format('%s', \"Code\") collate \"C\" <> 'b' or \
             \"day\"::date > (date '1970-01-01' + (-1))::date)"
        );
        let nothing = RowFilter::nothing("");
        assert_eq!(selecting(&nothing, &key).unwrap(), "false");
        let without_code = KeyColumns(columns[..1].iter().zip(types).collect());
        assert!(selecting(&filter, &without_code).is_err());
    }

    #[test]
    fn what_is_not_compared_the_same_everywhere_is_refused() {
        let can = |source_type: &str, ty: LogicalType, comparator| {
            can_compare(&column(1, "k", source_type, ty), comparator).is_ok()
        };
        let decimal = |precision, scale| LogicalType::Decimal { precision, scale };
        assert!(can("text", LogicalType::Text, Comparator::NotEqual));
        assert!(!can("text", LogicalType::Text, Comparator::Less));
        assert!(!can("character(3)", LogicalType::Text, Comparator::Equal));
        assert!(can("numeric(38,0)", decimal(38, 0), Comparator::Less));
        assert!(!can("numeric", decimal(0, 0), Comparator::Equal));
        assert!(!can("numeric(3,5)", decimal(3, 5), Comparator::Equal));
        assert!(!can("real", LogicalType::Float32, Comparator::Equal));
        assert_eq!(value_of(&LogicalType::Date, "infinity"), None);
        assert_eq!(value_of(&decimal(12, 2), "1.005"), None);
        assert!(value_of(&decimal(12, 2), "1.0500").is_some());
    }
}
