//! A part of a table: the rows whose key fulfils a condition. The source selects by it what it reads, and a sink what it
//! may delete, so both must come to the same answer for every row: it speaks of the key's columns only, which are never
//! NULL, and of values that are compared the same everywhere.

use prost::Message as _;

use crate::block::{Column, ColumnBuilder};
use crate::pb;
use crate::schema::{LogicalType, TableSchema};
use crate::view::push_cell;

/// A condition over comparisons of one kind.
#[derive(Clone, Debug, PartialEq)]
pub enum Condition<C> {
    All(Vec<Condition<C>>),
    Any(Vec<Condition<C>>),
    Is(C),
}

impl<C> Condition<C> {
    /// The comparisons, in the order that they are written in.
    pub fn comparisons(&self) -> Vec<&C> {
        match self {
            Self::All(of) | Self::Any(of) => of.iter().flat_map(Self::comparisons).collect(),
            Self::Is(comparison) => vec![comparison],
        }
    }

    /// The same condition over other comparisons, made in the order of [`Condition::comparisons`].
    ///
    /// # Errors
    /// One could not be made.
    pub fn try_map<D, E>(
        &self,
        make: &mut impl FnMut(&C) -> Result<D, E>,
    ) -> Result<Condition<D>, E> {
        let mut each =
            |of: &[Self]| -> Result<_, E> { of.iter().map(|one| one.try_map(make)).collect() };
        Ok(match self {
            Self::All(of) => Condition::All(each(of)?),
            Self::Any(of) => Condition::Any(each(of)?),
            Self::Is(comparison) => Condition::Is(make(comparison)?),
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparator {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

impl Comparator {
    /// As SQL has it.
    #[must_use]
    pub fn symbol(self) -> &'static str {
        match self {
            Self::Equal => "=",
            Self::NotEqual => "<>",
            Self::Less => "<",
            Self::LessOrEqual => "<=",
            Self::Greater => ">",
            Self::GreaterOrEqual => ">=",
        }
    }

    /// What holds where this does not.
    #[must_use]
    pub fn negated(self) -> Self {
        match self {
            Self::Equal => Self::NotEqual,
            Self::NotEqual => Self::Equal,
            Self::Less => Self::GreaterOrEqual,
            Self::LessOrEqual => Self::Greater,
            Self::Greater => Self::LessOrEqual,
            Self::GreaterOrEqual => Self::Less,
        }
    }

    /// The same with the two sides exchanged.
    #[must_use]
    pub fn mirrored(self) -> Self {
        match self {
            Self::Equal | Self::NotEqual => self,
            Self::Less => Self::Greater,
            Self::LessOrEqual => Self::GreaterOrEqual,
            Self::Greater => Self::Less,
            Self::GreaterOrEqual => Self::LessOrEqual,
        }
    }
}

/// A comparison as somebody wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    pub column: String,
    pub comparator: Comparator,
    /// As it would stand between quotes.
    pub literal: String,
}

/// A condition as somebody wrote it.
#[derive(Clone, Debug, PartialEq)]
pub struct WrittenFilter {
    pub text: String,
    pub condition: Condition<Written>,
}

/// A comparison with a value of the column's type.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// Id of a column of the key.
    pub column: u32,
    pub comparator: Comparator,
    pub value: pb::Value,
}

impl Comparison {
    /// The value as a column's only cell; `None`: it is not of this type.
    #[must_use]
    pub fn cell(&self, ty: &LogicalType) -> Option<Column> {
        let mut cells = ColumnBuilder::new(self.column, ty);
        let value = pb::Cell {
            kind: Some(pb::cell::Kind::Value(self.value.clone())),
        };
        push_cell(&mut cells, ty, &value).ok()?;
        cells.read()
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct RowFilter {
    /// As it was asked for, for people.
    pub text: String,
    pub condition: Condition<Comparison>,
}

/// A stored filter says what this build does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a filter of rows that this build does not know")]
pub struct UnknownFilter;

impl RowFilter {
    /// No row at all.
    #[must_use]
    pub fn nothing(text: &str) -> Self {
        Self {
            text: text.to_owned(),
            condition: Condition::Any(Vec::new()),
        }
    }

    /// Whether it speaks of columns of the table's key only, and of their types.
    #[must_use]
    pub fn fits(&self, schema: &TableSchema) -> bool {
        let fits = |comparison: &Comparison| {
            let at = schema.column_index(comparison.column);
            let is_of_key = schema.key.contains(&comparison.column);
            is_of_key && at.is_some_and(|at| comparison.cell(&schema.columns[at].ty).is_some())
        };
        self.condition.comparisons().into_iter().all(fits)
    }

    /// The bytes of its message.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        self.to_pb().encode_to_vec()
    }

    /// # Errors
    /// They are none of a message, or it says what this build does not know.
    pub fn decode(bytes: &[u8]) -> Result<Self, UnknownFilter> {
        let filter = pb::RowFilter::decode(bytes).map_err(|_| UnknownFilter)?;
        Self::from_pb(&filter)
    }

    #[must_use]
    pub fn to_pb(&self) -> pb::RowFilter {
        pb::RowFilter {
            text: self.text.clone(),
            condition: Some(condition_to_pb(&self.condition)),
        }
    }

    /// # Errors
    /// It says what this build does not know.
    pub fn from_pb(filter: &pb::RowFilter) -> Result<Self, UnknownFilter> {
        let condition = filter.condition.as_ref().ok_or(UnknownFilter)?;
        Ok(Self {
            text: filter.text.clone(),
            condition: condition_from_pb(condition)?,
        })
    }
}

fn condition_to_pb(condition: &Condition<Comparison>) -> pb::Condition {
    use pb::condition::Kind;
    let each = |of: &[Condition<Comparison>]| pb::Conditions {
        of: of.iter().map(condition_to_pb).collect(),
    };
    let kind = match condition {
        Condition::All(of) => Kind::All(each(of)),
        Condition::Any(of) => Kind::Any(each(of)),
        Condition::Is(comparison) => Kind::Comparison(pb::Comparison {
            column_id: comparison.column,
            comparator: match comparison.comparator {
                Comparator::Equal => pb::Comparator::Equal,
                Comparator::NotEqual => pb::Comparator::NotEqual,
                Comparator::Less => pb::Comparator::Less,
                Comparator::LessOrEqual => pb::Comparator::LessOrEqual,
                Comparator::Greater => pb::Comparator::Greater,
                Comparator::GreaterOrEqual => pb::Comparator::GreaterOrEqual,
            } as i32,
            value: Some(comparison.value.clone()),
        }),
    };
    pb::Condition { kind: Some(kind) }
}

fn condition_from_pb(condition: &pb::Condition) -> Result<Condition<Comparison>, UnknownFilter> {
    use pb::condition::Kind;
    let each = |of: &pb::Conditions| -> Result<_, UnknownFilter> {
        of.of.iter().map(condition_from_pb).collect()
    };
    Ok(match condition.kind.as_ref().ok_or(UnknownFilter)? {
        Kind::All(of) => Condition::All(each(of)?),
        Kind::Any(of) => Condition::Any(each(of)?),
        Kind::Comparison(comparison) => Condition::Is(Comparison {
            column: comparison.column_id,
            comparator: match comparison.comparator() {
                pb::Comparator::Equal => Comparator::Equal,
                pb::Comparator::NotEqual => Comparator::NotEqual,
                pb::Comparator::Less => Comparator::Less,
                pb::Comparator::LessOrEqual => Comparator::LessOrEqual,
                pb::Comparator::Greater => Comparator::Greater,
                pb::Comparator::GreaterOrEqual => Comparator::GreaterOrEqual,
                pb::Comparator::Unspecified => return Err(UnknownFilter),
            },
            value: comparison.value.clone().ok_or(UnknownFilter)?,
        }),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::cmp::Ordering;

    use super::*;

    const ALL: [Comparator; 6] = [
        Comparator::Equal,
        Comparator::NotEqual,
        Comparator::Less,
        Comparator::LessOrEqual,
        Comparator::Greater,
        Comparator::GreaterOrEqual,
    ];

    fn holds(comparator: Comparator, order: Ordering) -> bool {
        match comparator {
            Comparator::Equal => order.is_eq(),
            Comparator::NotEqual => order.is_ne(),
            Comparator::Less => order.is_lt(),
            Comparator::LessOrEqual => order.is_le(),
            Comparator::Greater => order.is_gt(),
            Comparator::GreaterOrEqual => order.is_ge(),
        }
    }

    #[test]
    fn a_negated_comparison_holds_where_it_does_not_and_a_mirrored_one_from_the_other_side() {
        for comparator in ALL {
            for order in [Ordering::Less, Ordering::Equal, Ordering::Greater] {
                let is = holds(comparator, order);
                assert_eq!(holds(comparator.negated(), order), !is);
                assert_eq!(holds(comparator.mirrored(), order.reverse()), is);
            }
        }
    }

    #[test]
    fn a_filter_is_read_back_and_one_that_is_not_known_is_refused() {
        let is = |column, comparator, value| {
            let value = pb::Value { kind: Some(value) };
            Condition::Is(Comparison {
                column,
                comparator,
                value,
            })
        };
        let each = ALL.map(|comparator| is(2, comparator, pb::value::Kind::Int(-7)));
        let text = is(
            1,
            Comparator::Equal,
            pb::value::Kind::Text("Zo\u{eb}".into()),
        );
        let filter = RowFilter {
            text: "as it was written".into(),
            condition: Condition::Any(vec![Condition::All(each.to_vec()), text]),
        };
        assert_eq!(RowFilter::decode(&filter.encode()), Ok(filter.clone()));
        let unknown = pb::Condition {
            kind: Some(pb::condition::Kind::Comparison(pb::Comparison {
                comparator: 99,
                ..Default::default()
            })),
        };
        let mut newer = filter.to_pb();
        newer.condition = Some(unknown);
        assert_eq!(RowFilter::from_pb(&newer), Err(UnknownFilter));
        assert_eq!(
            RowFilter::from_pb(&pb::RowFilter::default()),
            Err(UnknownFilter)
        );
    }
}
