//! Backups: the replicated state, put into the object store beside the log's segments.
//!
//! A backup is what a Raft snapshot is, under a key that says when it was taken. It has what is in no segment yet, and refers
//! to segments where they are; so it is small, and is one as long as those are kept. The leader takes one every so often, and
//! whenever somebody asks.

mod restore;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use downriver_log::store::{ObjectStore, StoreError};
use openraft::SnapshotMeta;

use crate::node::{ControlError, Node};
use crate::objects::list_all;
use crate::snapshot;

pub(crate) use restore::is_half_restored;
pub use restore::{RestoreError, Restored, RestoredStream, restore};

const PREFIX: &str = "backup/";
const SUFFIX: &str = ".snapshot";
/// In the data folder: backups on their way to the store.
const FOLDER: &str = "backup";
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
    let there = list_all(store, PREFIX).await?.into_iter();
    Ok(there
        .filter_map(|(key, bytes)| Backup::of_key(&key, bytes))
        .collect())
}

/// When a backup counts as taken that is to be the newest: that is the one which has most, whatever clocks say.
async fn time_of_next(store: &dyn ObjectStore) -> Result<SystemTime, StoreError> {
    let newest = backups(store).await?.into_iter().next_back();
    let after = newest.map(|newest| newest.taken + Duration::from_millis(1));
    Ok(after.map_or_else(SystemTime::now, |after| after.max(SystemTime::now())))
}

/// Puts a file into the store as the newest backup.
async fn put(
    store: &dyn ObjectStore,
    path: &Path,
    index: u64,
    bytes: u64,
) -> Result<Backup, StoreError> {
    let backup = Backup::new(time_of_next(store).await?, index, bytes);
    store.put_file(&backup.key, path).await?;
    Ok(backup)
}

impl Node {
    /// As the leader: puts a backup into the object store, and deletes those that are too many.
    ///
    /// # Errors
    /// The store takes or deletes nothing now, or the disk has no room.
    pub async fn back_up(&self) -> Result<Backup, ControlError> {
        let unavailable = |reason: String| ControlError::Unavailable(reason);
        // Of two at once the one that has less could be the newer one.
        let _alone = self.backing_up.lock().await;
        let streams: Vec<String> = self.with_state(|state| {
            let streams = state.journal.streams.keys();
            streams.cloned().collect()
        });
        for stream in streams {
            let sealed = self.seal_now(&stream).await;
            sealed.map_err(|error| unavailable(error.to_string()))?;
        }
        self.ensure_leads().await?;
        let (replicated, (last_log_id, last_membership)) = self.shared().copy();
        let waiting = replicated.journal.unsealed_bytes();
        self.disk_takes_snapshot(waiting).map_err(unavailable)?;
        let meta = SnapshotMeta {
            last_log_id,
            last_membership,
            snapshot_id: uuid::Uuid::now_v7().to_string(),
        };
        // Of this call alone: another may be at work.
        let folder = self.config().data.join(FOLDER).join(&meta.snapshot_id);
        let at = folder.clone();
        let written = tokio::task::spawn_blocking(move || {
            std::fs::create_dir_all(&at)?;
            let path = snapshot::write(&at, &meta, &replicated)?;
            let bytes = std::fs::metadata(&path)?.len();
            Ok::<_, std::io::Error>((path, bytes))
        });
        let written = written
            .await
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
        let (path, bytes) = written.map_err(|error| unavailable(error.to_string()))?;
        let index = last_log_id.map_or(0, |id| id.index);
        let put = self.put_backup(&path, index, bytes).await;
        let _ = std::fs::remove_dir_all(&folder);
        let backup = put?;
        self.note_newest_backup(Some(backup.clone()));
        tracing::info!(key = backup.key, bytes, "a backup was taken");
        if let Err(error) = self.drop_old_backups().await {
            tracing::warn!(error = %error, "old backups are left");
        }
        Ok(backup)
    }

    async fn put_backup(
        &self,
        path: &Path,
        index: u64,
        bytes: u64,
    ) -> Result<Backup, ControlError> {
        let unavailable = |error: StoreError| ControlError::Unavailable(error.to_string());
        let store = &**self.store();
        let taken = time_of_next(store).await.map_err(unavailable)?;
        // Behind it: a node that stood still puts nothing in front of what another has taken since.
        self.ensure_leads().await?;
        let backup = Backup::new(taken, index, bytes);
        let put = store.put_file(&backup.key, path).await;
        put.map_err(unavailable)?;
        Ok(backup)
    }

    /// One that is cut off leads still as far as it knows, and others have gone on.
    async fn ensure_leads(&self) -> Result<(), ControlError> {
        self.read_index().await?;
        match self.leads() {
            true => Ok(()),
            false => Err(ControlError::Unavailable(
                "this node does not lead any more".into(),
            )),
        }
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

/// Removes what a crash left of backups on their way.
pub(crate) fn remove_leftovers(data: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(data.join(FOLDER)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The leader's: takes a backup when the newest one is old enough.
pub(crate) async fn run(node: Arc<Node>) {
    let mut leads_since: Option<Instant> = None;
    let mut last: Option<Instant> = None;
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        if !node.leads() {
            (leads_since, last) = (None, None);
            node.note_newest_backup(None);
            continue;
        }
        let leads_since = *leads_since.get_or_insert_with(Instant::now);
        let every = node.config().backups.every;
        // A clock that is wrong brings neither many nor none.
        if last.is_some_and(|last| last.elapsed() < every) {
            continue;
        }
        let newest = backups(&**node.store())
            .await
            .map(|found| found.into_iter().next_back());
        let is_old = match newest {
            Ok(newest) => {
                node.note_newest_backup(newest.clone());
                match newest {
                    Some(newest) => newest.taken.elapsed().is_ok_and(|age| age >= every),
                    None => leads_since.elapsed() >= every.min(FIRST_AFTER),
                }
            }
            Err(_) => false,
        };
        let is_due = is_old || leads_since.elapsed() >= every;
        if !is_due {
            continue;
        }
        match node.back_up().await {
            Ok(_) => last = Some(Instant::now()),
            Err(error) => tracing::warn!(error = %error, "no backup can be taken now"),
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
