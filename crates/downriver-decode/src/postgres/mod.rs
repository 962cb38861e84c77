//! PostgreSQL: the pgoutput protocol and the types' text and binary forms.

pub mod binary;
mod civil;
pub mod decoder;
pub mod message;
pub mod text;

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
