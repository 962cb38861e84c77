//! Parts of tables: what was written is given its columns and values, and becomes SQL again. Texts are compared as they
//! are printed.

use downriver_decode::postgres::text;
use downriver_event::filter::{Comparator, Comparison, Written, WrittenFilter};
use downriver_event::{Column, LogicalType, RowFilter, TableSchema, pb};
use tokio_postgres::error::SqlState;

use super::key_sql::{KeyColumns, key_value};
use super::snapshot::SnapshotSession;
use super::sql::{identifier, literal, qualified};
use crate::error::SourceError;
use crate::filter::{self, differs, key_column, no_value, with_comparisons};

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
        Ok(with_comparisons(written, comparisons))
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
        let column = key_column(schema, &written.column, |one, other| one == other)?;
        let of_key = key.0.iter().find(|(of_key, _)| of_key.id == column.id);
        let (_, ty) = of_key.ok_or_else(|| differs(column))?;
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

/// Classes 22 (data exception) and 23, which a domain answers with.
fn is_of_value(code: &SqlState) -> bool {
    code.code().starts_with("22") || code.code().starts_with("23")
}

fn can_compare(column: &Column, comparator: Comparator) -> Result<(), SourceError> {
    // Padded with blanks, which count or not as it is looked at.
    let is_padded = column.source_type.starts_with("character(") || column.source_type == "bpchar";
    match &column.ty {
        LogicalType::Text | LogicalType::Enum { .. } | LogicalType::Other if is_padded => {
            Err(differs(column))
        }
        _ => filter::can_compare(column, comparator),
    }
}

/// What the server printed, as a value. `None`: it is none, such as infinity, or has more digits than the column.
fn value_of(ty: &LogicalType, printed: &str) -> Option<pb::Value> {
    filter::value_of(ty, printed, |cells| {
        text::push(ty, printed.as_bytes(), cells).ok()
    })
}

/// The filter as it stands behind `where`.
pub(super) fn selecting(part: &RowFilter, key: &KeyColumns<'_>) -> Result<String, SourceError> {
    filter::selecting(part, &|comparison| {
        let mut columns = key.0.iter();
        let (column, ty) = columns.find(|(column, _)| column.id == comparison.column)?;
        compares(column, ty, comparison)
    })
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
    use downriver_event::filter::Condition;

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
