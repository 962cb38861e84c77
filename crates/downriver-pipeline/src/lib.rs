//! Moves changes from source to log to sink under an epoch, and owns every rule of progress and retry.
//!
//! - `capture`: one source into its stream: the event loop, the hand-over from snapshot to stream,
//!   acknowledgement.
//! - `delivery`: one stream into the tables of one lake.
//! - `verify`: source and lake compared row by row at one position.
//!
//! It does not know who decided that it should run (the binary does) nor how the log is replicated.

pub mod capture;
pub mod delivery;
mod retry;
pub mod status;
pub mod verify;

pub use status::{
    DeliveryStatus, PipelineStatus, SnapshotProgress, SourceStatus, TableState, TableStatus,
};
