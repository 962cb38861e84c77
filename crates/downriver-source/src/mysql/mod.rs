//! MySQL and MariaDB: the sessions with one server.

pub mod begin;
pub mod behind;
pub mod catalog;
pub mod check;
mod columns;
pub mod config;
pub mod cut;
mod defaults;
pub mod dump;
pub mod filter;
pub mod identity;
pub mod kept;
mod key;
mod key_value;
mod login;
mod modes;
mod packet;
mod public_key;
pub mod reach;
mod refusal;
mod replica;
mod row;
pub mod server;
mod session;
mod settings;
pub mod setup;
pub mod snapshot;
pub mod sql;
mod start;

use downriver_decode::mysql::recall::Unfit;
use downriver_decode::mysql::shape::Unshaped;
use downriver_event::problem::Problem;

/// Why the rows of a table cannot be read any more.
#[must_use]
pub fn unshaped(table: &str, why: &Unshaped) -> Problem {
    Problem::new(
        "DR-1088",
        format!("the rows of table {table} cannot be read: {why}"),
        "exclude the table from the source, or give the column another type",
    )
}

/// Why the rows of a table cannot be read, though the catalog has what is known of it.
#[must_use]
pub fn unfit(table: &str, why: &Unfit) -> Problem {
    Problem::new(
        "DR-1088",
        format!("the rows of table {table} are not of the shape that the catalog has: {why}"),
        "set global binlog_row_metadata = FULL, then alter the table (a comment is enough): it is read again by itself",
    )
}
