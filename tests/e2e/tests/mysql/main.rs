//! MySQL and MariaDB: real servers, their binlogs, a daemon, and what others read of the lake. One program, so that it is
//! linked once.

mod binlog;
mod chunks;
mod dump;
mod history;
mod mirror;
