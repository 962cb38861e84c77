//! PostgreSQL: the sessions with one database.

pub mod catalog;
pub mod check;
mod columns;
pub mod config;
pub mod copy;
pub mod cut;
mod extent;
pub mod filter;
pub mod heartbeat;
pub mod identity;
mod key;
mod key_sql;
pub mod outline;
mod partitions;
pub mod publication;
pub mod replication;
mod session;
pub mod setup;
pub mod slot;
pub mod snapshot;
mod sql;
pub mod standby;
mod transport;
mod visible;

pub use sql::reach;
