//! Parts of tables, as both databases have them: which columns of a key can be compared, and how a condition becomes SQL.
//!
//! Every row that the SQL selects, and no other, fulfils the filter for whoever else compares its values: texts are
//! therefore compared byte by byte, whatever the column's collation calls equal.

use downriver_event::block::ColumnBuilder;
use downriver_event::filter::{Comparator, Comparison, Condition, Written, WrittenFilter};
use downriver_event::view::cell_of;
use downriver_event::{Column, LogicalType, RowFilter, TableSchema, pb};

use crate::error::SourceError;

/// Digits of a decimal that is a number in every sink.
const PRECISION_MAX: u32 = 38;

pub(crate) fn refused(reason: String, fix: String) -> SourceError {
    SourceError::definite("DR-2057", reason, fix)
}

/// The column of the key that a comparison names.
pub(crate) fn key_column<'a>(
    schema: &'a TableSchema,
    name: &str,
    is_same: impl Fn(&str, &str) -> bool,
) -> Result<&'a Column, SourceError> {
    let key: Vec<&Column> = schema
        .key_indexes()
        .into_iter()
        .map(|at| &schema.columns[at])
        .collect();
    let named = key.iter().find(|column| is_same(&column.name, name));
    named.copied().ok_or_else(|| {
        let reason = format!(
            "column {name:?} is not of the key of {}",
            schema.qualified_name()
        );
        let keys: Vec<&str> = key.iter().map(|column| column.name.as_str()).collect();
        let fix = match keys.is_empty() {
            true => "a table without a key is read whole: leave the condition away".to_owned(),
            false => format!("compare what rows are known by: {}", keys.join(", ")),
        };
        refused(reason, fix)
    })
}

pub(crate) fn no_value(column: &Column, written: &Written, why: &str) -> SourceError {
    refused(
        format!(
            "{:?} cannot be compared with column {:?} ({}): {why}",
            written.literal, column.name, column.source_type
        ),
        "write a literal of the column's type".to_owned(),
    )
}

/// Whether everybody compares values of the column in the same way.
pub(crate) fn can_compare(column: &Column, comparator: Comparator) -> Result<(), SourceError> {
    let is_for_equality = matches!(comparator, Comparator::Equal | Comparator::NotEqual);
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
        false => Err(differs(column)),
    }
}

pub(crate) fn differs(column: &Column) -> SourceError {
    refused(
        format!(
            "values of column {:?} ({}) are not compared the same everywhere",
            column.name, column.source_type
        ),
        "compare other columns of the key, or read the whole table".to_owned(),
    )
}

/// A text as a value. `read`: pushes it. `None`: it is none, such as infinity, or has more digits than the column.
pub(crate) fn value_of(
    ty: &LogicalType,
    text: &str,
    read: impl FnOnce(&mut ColumnBuilder) -> Option<()>,
) -> Option<pb::Value> {
    if let LogicalType::Decimal { scale, .. } = ty {
        let fraction = text.split_once('.').map_or("", |(_, fraction)| fraction);
        let scale = usize::try_from(*scale).ok()?;
        if fraction.trim_end_matches('0').len() > scale {
            return None;
        }
    }
    let mut cells = ColumnBuilder::new(0, ty);
    read(&mut cells)?;
    let cells = cells.read()?;
    match cell_of(&cells, ty, 0).ok()?.kind? {
        pb::cell::Kind::Value(value) => Some(value),
        pb::cell::Kind::Presence(_) => None,
    }
}

/// The filter that was written, with these comparisons, which are in its order.
pub(crate) fn with_comparisons(written: &WrittenFilter, comparisons: Vec<Comparison>) -> RowFilter {
    let mut comparisons = comparisons.into_iter();
    let mut next = |_: &Written| comparisons.next().ok_or(());
    let condition = written.condition.try_map(&mut next);
    RowFilter {
        text: written.text.clone(),
        condition: condition.expect("there is one for each"),
    }
}

/// The filter as it stands behind `where`. `compares`: a comparison as SQL; `None`: it does not fit the table any more.
pub(crate) fn selecting(
    filter: &RowFilter,
    compares: &dyn Fn(&Comparison) -> Option<String>,
) -> Result<String, SourceError> {
    selects(&filter.condition, compares).ok_or_else(|| {
        refused(
            format!(
                "the key of the table is another one than when {:?} was asked for",
                filter.text
            ),
            "ask again: downriver resnapshot PIPELINE --tables SCHEMA.TABLE".to_owned(),
        )
    })
}

fn selects(
    condition: &Condition<Comparison>,
    compares: &dyn Fn(&Comparison) -> Option<String>,
) -> Option<String> {
    let joined = |of: &[Condition<Comparison>], by: &str| {
        let each: Option<Vec<String>> = of.iter().map(|one| selects(one, compares)).collect();
        Some(format!("({})", each?.join(by)))
    };
    match condition {
        Condition::All(of) if of.is_empty() => Some("true".to_owned()),
        Condition::Any(of) if of.is_empty() => Some("false".to_owned()),
        Condition::All(of) => joined(of, " and "),
        Condition::Any(of) => joined(of, " or "),
        Condition::Is(comparison) => compares(comparison),
    }
}
