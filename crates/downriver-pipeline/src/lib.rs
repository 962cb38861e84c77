//! Moves changes from source to log to sink under an epoch, and owns every rule of progress and retry.
//!
//! - `capture`: one source into its stream: the event loop, the hand-over from snapshot to stream,
//!   acknowledgement.
//!
//! It does not know who decided that it should run (the binary does) nor how the log is replicated.

pub mod capture;
mod retry;
pub mod status;

pub use status::{SnapshotProgress, SourceStatus, TableState, TableStatus};
