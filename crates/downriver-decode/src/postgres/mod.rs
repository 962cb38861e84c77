//! PostgreSQL: the pgoutput protocol and the types' text and binary forms.

pub mod binary;
pub mod decoder;
pub mod message;
pub mod shape;
pub mod text;

use downriver_event::Presence;
use downriver_event::block::ColumnBuilder;

use crate::mask::Unmaskable;

/// From PostgreSQL 17 on, the interval of the largest or smallest fields is infinite.
fn push_interval(months: i32, days: i32, micros: i64, out: &mut ColumnBuilder) {
    match (months, days, micros) {
        (i32::MAX, i32::MAX, i64::MAX) => out.push_presence(Presence::PositiveInfinity),
        (i32::MIN, i32::MIN, i64::MIN) => out.push_presence(Presence::NegativeInfinity),
        _ => out.push_interval(months, days, micros),
    }
}

/// A value that is not what its type allows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    #[error("is not a valid {0}")]
    Invalid(&'static str),
    /// PostgreSQL counts from 2000, the log from 1970: the last thirty years of its range do not fit.
    #[error("is later than the year 294246, the last that the log can hold")]
    TooLate,
    #[error("is not UTF-8")]
    NotUtf8,
    #[error("has {0} bytes, more than the limit of {max}", max = downriver_event::block::VALUE_BYTES_MAX)]
    TooLarge(usize),
}

impl From<Unmaskable> for ValueError {
    fn from(error: Unmaskable) -> Self {
        match error {
            Unmaskable::Constant(_) => Self::Invalid("constant of a mask"),
            Unmaskable::NotUtf8 => Self::NotUtf8,
        }
    }
}
