//! MySQL and MariaDB: the sessions with one server.

pub mod config;
pub mod dump;
mod key;
mod login;
mod packet;
mod refusal;
mod session;
mod start;
