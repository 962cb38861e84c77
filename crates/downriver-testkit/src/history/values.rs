//! Types of generated columns and keys, and expressions of their values.

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;

use crate::types::{CASES, Case};

/// Types of [`CASES`] that every server has without an extension.
const TYPES: &[&str] = &[
    "numeric",
    "numeric(12,2)",
    "numeric(38,10)",
    "float8",
    "real",
    "smallint",
    "int",
    "bigint",
    "boolean",
    "money",
    "date",
    "timestamp",
    "timestamptz",
    "time",
    "timetz",
    "interval",
    "bytea",
    "bit(5)",
    "varbit",
    "char(5)",
    "varchar(20)",
    "text",
    "json",
    "jsonb",
    "uuid",
    "inet",
    "macaddr",
    "int4range",
    "tstzrange",
    "xml",
    "tsvector",
    "point",
];

/// The enum of every history, which gets further labels.
pub(super) const ENUM: &str = "grade";

#[derive(Clone, Debug)]
pub(super) enum ColumnType {
    Of(&'static Case),
    /// An array of a type.
    ArrayOf(&'static Case),
    Enum,
}

impl ColumnType {
    pub(super) fn draw(random: &mut StdRng) -> Self {
        let name = TYPES.choose(random).expect("there are types");
        match random.random_range(0..10) {
            0 => Self::ArrayOf(case(name)),
            1 => Self::Enum,
            _ => Self::Of(case(name)),
        }
    }

    pub(super) fn is(&self, name: &str) -> bool {
        matches!(self, Self::Of(case) if case.ty == name)
    }

    pub(super) fn sql(&self) -> String {
        match self {
            Self::Of(case) => case.ty.to_owned(),
            Self::ArrayOf(case) => format!("{}[]", case.ty),
            Self::Enum => ENUM.to_owned(),
        }
    }

    /// One value, the same for every row.
    pub(super) fn constant(&self, random: &mut StdRng) -> String {
        match self {
            Self::Of(case) => literal(random, case),
            Self::ArrayOf(case) => match random.random_range(0..4) {
                0 => format!("'{{}}'::{}[]", case.ty),
                _ => format!(
                    "array[{}, null, {}]::{}[]",
                    literal(random, case),
                    literal(random, case),
                    case.ty
                ),
            },
            // The labels that are there from the start.
            Self::Enum => format!("'g{}'::{ENUM}", random.random_range(0..3)),
        }
    }

    /// Values that differ between rows, by the number that an expression gives each.
    pub(super) fn varied(&self, random: &mut StdRng, number: &str) -> String {
        let (one, other) = (self.constant(random), self.constant(random));
        let ty = self.sql();
        match random.random_range(0..5) {
            0 => format!("null::{ty}"),
            1 => one,
            _ => format!("case {number} % 3 when 0 then {one} when 1 then {other} end"),
        }
    }
}

/// The primary key: every form is a function of `n`, so that it is unique as `n` is; but a table without a key may have
/// equal rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    Bag,
    N,
    Text,
    Uuid,
    Numeric,
    Timestamp,
    Bytes,
    /// A column that repeats itself, then `n`.
    Composite,
}

impl Key {
    pub(super) fn draw(random: &mut StdRng) -> Self {
        use Key::{Bag, Bytes, Composite, N, Numeric, Text, Timestamp, Uuid};
        *[N, N, Text, Uuid, Numeric, Timestamp, Bytes, Composite, Bag]
            .choose(random)
            .expect("there are keys")
    }

    /// Of `k`, for keys that have a column of their own.
    pub(super) fn column_type(self) -> Option<&'static str> {
        Some(match self {
            Self::N | Self::Bag => return None,
            Self::Text | Self::Composite => "text",
            Self::Uuid => "uuid",
            Self::Numeric => "numeric",
            Self::Timestamp => "timestamptz",
            Self::Bytes => "bytea",
        })
    }

    pub(super) fn columns(self) -> &'static str {
        match self {
            Self::Bag => "",
            Self::N => "n",
            Self::Composite => "k, n",
            _ => "k",
        }
    }

    /// What may be the primary key of a table with this one.
    pub(super) fn all_columns(self) -> &'static [&'static str] {
        match self {
            Self::Bag => &[],
            Self::N => &["n"],
            Self::Composite => &["n", "k, n"],
            _ => &["n", "k", "k, n"],
        }
    }

    /// The value of `k` in the row with this number.
    pub(super) fn expression(self, n: &str) -> Option<String> {
        Some(match self {
            Self::N | Self::Bag => return None,
            Self::Text => format!("'Schlüssel ' || {n}"),
            Self::Composite => format!("'part ' || {n} % 7"),
            Self::Uuid => format!("md5({n}::text)::uuid"),
            Self::Numeric => format!("{n} / 100.0"),
            Self::Timestamp => {
                format!("timestamptz '2000-01-01 00:00:00+00' + {n} * interval '1 microsecond'")
            }
            Self::Bytes => format!("decode(md5({n}::text), 'hex')"),
        })
    }
}

fn case(name: &str) -> &'static Case {
    CASES
        .iter()
        .find(|case| case.ty == name)
        .expect("a type of CASES")
}

fn literal(random: &mut StdRng, case: &Case) -> String {
    // Infinite numbers and intervals, and the longest intervals, came with later servers.
    let later = [
        "nfinity",
        "9223372036854775807 microseconds",
        "2562047788:00:54",
    ];
    let is_later = |value: &&str| later.iter().any(|later| value.contains(later));
    let values = case.values.iter().copied();
    let everywhere: Vec<&str> = values.filter(|value| !is_later(value)).collect();
    let value = everywhere.choose(random).expect("a case has finite values");
    format!("$q${value}$q$::{}", case.ty)
}
