//! Bytes and schemas in, canonical transactions out. No I/O and no clock: what is here can be run a million
//! times a second with generated input.
//!
//! - `postgres::message`: one pgoutput message, borrowed.
//! - `postgres::text`, `postgres::binary`: one value, in either form, into the same canonical cell.
//! - `postgres::decoder`: messages into the rows of a block.
//! - `mysql::event`, `mysql::table_map`: the events of a binlog, and what they say of a table.
//! - `mysql::value`, `mysql::selected`: one value of a row into the canonical cell, as the binlog has it, and as a
//!   statement reads it.
//! - `mysql::decoder`: events into the rows of a block.
//! - `mask`: values that are made into others before anything is stored of them.

mod hex;
pub mod mask;
pub mod mysql;
pub mod postgres;
