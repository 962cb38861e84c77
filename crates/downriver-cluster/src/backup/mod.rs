//! Backups: the replicated state, put into the object store beside the log's segments.
//!
//! A backup is what a Raft snapshot is, under a key that says when it was taken. It has what is in no segment yet, and refers
//! to segments where they are; so it is small, and is one as long as those are kept. The leader takes one every so often, and
//! whenever somebody asks.

mod restore;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use downriver_log::store::{ObjectStore, StoreError};
use openraft::SnapshotMeta;

use crate::node::{ControlError, Node};
use crate::snapshot;

pub(crate) use restore::is_half_restored;
pub use restore::{RestoreError, Restored, RestoredStream, restore};

const PREFIX: &str = "backup/";
const SUFFIX: &str = ".snapshot";
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// A cluster that has no backup gets one when it has had a leader for so long.
const FIRST_AFTER: Duration = Duration::from_secs(300);

/// When backups are taken by themselves, and how many are kept.
#[derive(Clone, Copy, Debug)]
pub struct Backups {
    pub every: Duration,
    pub kept: usize,
}

impl Default for Backups {
    fn default() -> Self {
        Self {
            every: Duration::from_secs(3_600),
            kept: 24,
        }
    }
}

/// A backup in the object store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backup {
    pub key: String,
    /// By the clock of the node that took it.
    pub taken: SystemTime,
    /// The last Raft entry in it.
    pub index: u64,
    pub bytes: u64,
}

impl Backup {
    fn new(taken: SystemTime, index: u64, bytes: u64) -> Self {
        let since_1970 = taken.duration_since(SystemTime::UNIX_EPOCH);
        let millis = u64::try_from(since_1970.unwrap_or_default().as_millis()).unwrap_or(u64::MAX);
        Self {
            key: format!("{PREFIX}{millis:013}-{index}{SUFFIX}"),
            taken: SystemTime::UNIX_EPOCH + Duration::from_millis(millis),
            index,
            bytes,
        }
    }

    fn of_key(key: &str, bytes: u64) -> Option<Self> {
        let name = key.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?;
        let (millis, index) = name.split_once('-')?;
        let taken = SystemTime::UNIX_EPOCH + Duration::from_millis(millis.parse().ok()?);
        Some(Self {
            key: key.to_owned(),
            taken,
            index: index.parse().ok()?,
            bytes,
        })
    }
}

/// The store's backups, the oldest first.
///
/// # Errors
/// The store's.
pub async fn backups(store: &dyn ObjectStore) -> Result<Vec<Backup>, StoreError> {
    let mut found = Vec::new();
    let mut after = None;
    loop {
        let keys = store.list(PREFIX, after.as_deref()).await?;
        let Some((last, _)) = keys.last() else {
            return Ok(found);
        };
        after = Some(last.clone());
        let of_key = |(key, bytes): &(String, u64)| Backup::of_key(key, *bytes);
        found.extend(keys.iter().filter_map(of_key));
    }
}

impl Node {
    /// As the leader: puts a backup into the object store, and deletes those that are too many.
    ///
    /// # Errors
    /// The store takes or deletes nothing now, or the disk has no room.
    pub async fn back_up(&self) -> Result<Backup, ControlError> {
        let unavailable = |reason: String| ControlError::Unavailable(reason);
        let streams: Vec<String> = self.with_state(|state| {
            let streams = state.journal.streams.keys();
            streams.cloned().collect()
        });
        for stream in streams {
            let sealed = self.seal_now(&stream).await;
            sealed.map_err(|error| unavailable(error.to_string()))?;
        }
        let (replicated, (last_log_id, last_membership)) = self.shared().copy();
        let waiting = replicated.journal.unsealed_bytes();
        self.disk_takes(waiting).map_err(unavailable)?;
        let meta = SnapshotMeta {
            last_log_id,
            last_membership,
            snapshot_id: uuid::Uuid::now_v7().to_string(),
        };
        let folder = self.config().data.join("backup");
        let written = tokio::task::spawn_blocking(move || {
            // What a crash left.
            let _ = std::fs::remove_dir_all(&folder);
            std::fs::create_dir_all(&folder)?;
            let path = snapshot::write(&folder, &meta, &replicated)?;
            let bytes = std::fs::metadata(&path)?.len();
            Ok::<_, std::io::Error>((folder, path, bytes))
        });
        let written = written
            .await
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
        let (folder, path, bytes) = written.map_err(|error| unavailable(error.to_string()))?;
        let index = last_log_id.map_or(0, |id| id.index);
        let backup = Backup::new(SystemTime::now(), index, bytes);
        let put = self.store().put_file(&backup.key, &path).await;
        let _ = std::fs::remove_dir_all(&folder);
        put.map_err(|error| unavailable(error.to_string()))?;
        tracing::info!(key = backup.key, bytes, "a backup was taken");
        self.drop_old_backups()
            .await
            .map_err(|error| unavailable(error.to_string()))?;
        Ok(backup)
    }

    async fn drop_old_backups(&self) -> Result<(), StoreError> {
        let found = backups(&**self.store()).await?;
        let too_many = found.len().saturating_sub(self.config().backups.kept);
        for old in &found[..too_many] {
            self.store().delete(&old.key).await?;
        }
        Ok(())
    }
}

/// The leader's: takes a backup when the newest one is old enough.
pub(crate) async fn run(node: Arc<Node>) {
    let mut leads_since: Option<Instant> = None;
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        if !node.leads() {
            leads_since = None;
            continue;
        }
        let leads_since = *leads_since.get_or_insert_with(Instant::now);
        let every = node.config().backups.every;
        let is_due = match backups(&**node.store()).await {
            Ok(found) => match found.last() {
                // A clock that was set back does not put it off for long.
                Some(newest) => newest
                    .taken
                    .elapsed()
                    .map_or_else(|ahead| ahead.duration() > every, |age| age >= every),
                None => leads_since.elapsed() >= every.min(FIRST_AFTER),
            },
            Err(_) => false,
        };
        if is_due && let Err(error) = node.back_up().await {
            tracing::warn!(error = %error, "no backup can be taken now");
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_key_tells_when_a_backup_was_taken() {
        let taken = SystemTime::UNIX_EPOCH + Duration::from_millis(1_764_000_000_123);
        let backup = Backup::new(taken, 77, 5);
        assert_eq!(backup.key, "backup/1764000000123-77.snapshot");
        assert_eq!(Backup::of_key(&backup.key, 5), Some(backup));
        for other in ["backup/x.snapshot", "backup/1-2", "log/1-2.snapshot"] {
            assert_eq!(Backup::of_key(other, 5), None, "{other}");
        }
    }
}
