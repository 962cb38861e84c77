//! MySQL and MariaDB: the sessions with one server.

pub mod config;
