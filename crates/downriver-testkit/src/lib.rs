//! Real servers and honest witnesses for tests, the demo and the benchmarks.
//!
//! What is here starts PostgreSQL, SeaweedFS and the `downriver` binary as processes of their own on
//! free loopback ports, writes to them, hurts them, and reads back what others would read. Nothing here
//! knows Downriver's insides: it uses the command line and the files that a user has.
//!
//! Every server is stopped when its value is dropped, by the id of the process that was started.

pub mod board;
pub mod certificates;
pub mod cluster;
pub mod daemon;
pub mod disk;
pub mod fixture;
pub mod history;
pub mod host;
pub mod link;
pub mod mysql;
pub mod mysql_history;
pub mod oracle;
pub mod player;
pub mod port;
pub mod postgres;
pub mod proxy;
pub mod readers;
pub mod resources;
pub mod seaweed;
pub mod shop;
pub mod types;
pub mod workload;

pub use cluster::Cluster;
pub use daemon::Daemon;
pub use postgres::Postgres;
pub use seaweed::Seaweed;
