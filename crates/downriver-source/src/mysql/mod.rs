//! MySQL and MariaDB: the sessions with one server.

pub mod catalog;
pub mod check;
mod columns;
pub mod config;
pub mod dump;
pub mod identity;
mod key;
mod key_value;
mod login;
mod packet;
mod public_key;
mod refusal;
mod row;
pub mod server;
mod session;
mod settings;
pub mod setup;
pub mod snapshot;
pub mod sql;
mod start;

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
