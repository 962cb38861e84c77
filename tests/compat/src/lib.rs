//! Old bytes must stay readable: a fixture for each version of each stored form, in `fixtures/`. A test that a
//! form is read as it was written, and that a newer one is refused, stands where the form can be seen:
//!
//! | fixture | form | test |
//! |---|---|---|
//! | `block-v1.bin` | block | `tests/blocks.rs` |
//! | `segment-v1.seg` | segment with its footer | `tests/segments.rs` |
//! | `binlog-positions-v1.bin`, `identity-…-v1.txt` | positions and identities of MySQL and MariaDB | `tests/positions.rs` |
//! | `node-v1/` | Raft log, entries and commands, snapshot; a node's whole folder | downriver-cluster, `compat` |
//! | `lake-table-v1/` | a lake table's index and its runs | downriver-lake, `table::compat` |
//! | `table-progress-v1.bin` | a sink table's control row | downriver-pipeline, `delivery::progress` |
//! | `snapshot-progress-v1.bin` | how far a table's snapshot has come | downriver-pipeline, `capture::progress` |
//! | `binlog-debts-v1.bin` | what a binlog told of and the log does not have yet | downriver-pipeline, `capture::mysql::debts` |
//! | `source-`, `source-mysql-`, `sink-`, `pipeline-v1.json` | stored specifications | downriver, `server::engine::stored` |
//! | `paused-…-v1.json` | what is paused | downriver, `server::engine::paused` |
//!
//! `DOWNRIVER_WRITE_FIXTURES=1` on a test run writes those that are not there, and replaces none.
