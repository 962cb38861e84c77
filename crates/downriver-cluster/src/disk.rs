//! Room on the disk of the data folder. A write of the Raft log that fails is the end of the node: so nothing is begun
//! that may not fit.

use std::path::Path;

/// Below it no more entries are taken; the largest has room in it.
const BYTES_KEPT: u64 = 64 << 20;
/// Below it not even a vote is given: what Raft writes by itself has the difference for it.
const BYTES_KEPT_BY_RAFT: u64 = 32 << 20;

/// Whether an entry may be written.
///
/// # Errors
/// Why not, for people.
pub(crate) fn takes_entries(data: &Path) -> Result<(), String> {
    leaves(data, BYTES_KEPT)
}

/// Whether a snapshot of so many bytes may be written.
///
/// # Errors
/// Why not, for people.
pub(crate) fn takes_snapshot(data: &Path, bytes: u64) -> Result<(), String> {
    leaves(data, BYTES_KEPT + bytes)
}

/// Whether a vote may be written, or what else is small and Raft's own.
///
/// # Errors
/// Why not, for people.
pub(crate) fn takes_votes(data: &Path) -> Result<(), String> {
    leaves(data, BYTES_KEPT_BY_RAFT)
}

/// `None`: the disk does not say.
pub(crate) fn free_bytes(data: &Path) -> Option<u64> {
    let disk = rustix::fs::statvfs(data).ok()?;
    Some(disk.f_bavail * disk.f_frsize)
}

fn leaves(data: &Path, bytes: u64) -> Result<(), String> {
    // A disk that does not say how full it is says so when it is.
    let Some(free) = free_bytes(data).filter(|free| *free < bytes) else {
        return Ok(());
    };
    Err(format!(
        "DR-1103: the disk of {} is full: {} MiB are free, {} MiB are kept for the journal",
        data.display(),
        free >> 20,
        BYTES_KEPT >> 20
    ))
}
