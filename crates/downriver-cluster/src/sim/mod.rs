//! Seeded worlds in one process, a thousand times faster than real ones.
//!
//! - `state`: the replicated state, with owners, tasks and consumers around it; no Raft, no time.
//! - `raft`: Raft on our own stores, with a network and disks that fail.
//! - `disk`: such a disk.
//! - `planted`: bugs on purpose, which the worlds must find.

mod disk;
#[cfg(feature = "planted-bugs")]
mod planted;
mod raft;
mod state;
