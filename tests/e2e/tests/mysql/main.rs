//! MySQL and MariaDB: real servers, their binlogs, a daemon, and what others read of the lake. One program, so that it is
//! linked once.

mod binlog;
mod chunks;
mod clocks;
mod columns;
mod corners;
mod dump;
mod failover;
mod history;
mod images;
mod kept;
mod kills;
mod mirror;
mod modes;
mod names;
mod natives;
mod online_ddl;
mod parts;
mod places;
mod quiet;
mod shapes;
mod sources;
mod starts;
mod transactions;
