//! MySQL and MariaDB: the sessions with one server.

pub mod catalog;
mod columns;
pub mod config;
mod key;
mod key_value;
mod refusal;
mod row;
pub mod server;
pub mod snapshot;
pub mod sql;
