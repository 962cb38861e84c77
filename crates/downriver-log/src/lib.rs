//! The event log: the journal's state machine, segments, readers, retention, and the object store.
//!
//! `log` is the contract that everything else uses. The journal state machine is pure; who replicates its
//! commands (downriver-cluster) is not known here.

pub mod journal;
pub mod log;
pub mod reader;
pub mod segment;
pub mod store;

pub use log::{
    Append, AppendError, Appended, ChunkDone, ChunkState, Log, LogError, Moved, ObjectRef, Payload,
    ReadError, StoredBlock, StreamState,
};
pub use store::{ObjectStore, StoreError};
