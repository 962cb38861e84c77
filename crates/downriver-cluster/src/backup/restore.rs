//! A new cluster from a backup, of one node that others join.
//!
//! Everything since the backup is lost to it: so each log goes on in a new incarnation, and whoever has read further than the
//! backup reaches is told. The nodes of the cluster before it cannot come back into it: it is another cluster.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use downriver_event::{Incarnation, Offset};
use downriver_log::ReadError;
use downriver_log::journal::{Stream, UnsealedPayload};
use downriver_log::segment::read_manifest;
use downriver_log::store::{ObjectStore, StoreError};
use openraft::storage::RaftLogStorage as _;
use openraft::{BasicNode, Membership, SnapshotMeta, StoredMembership, Vote};

use super::{Backup, backups};
use crate::form::{self, Seeds};
use crate::identity::Identity;
use crate::objects::{incarnation_of, list_all};
use crate::peer::{Credentials, PeerTls, Peers};
use crate::snapshot;
use crate::state::Replicated;
use crate::store::LogStore;

/// An object for each restore.
const PREFIX: &str = "restored/";
const RESTORING: &str = "restoring";

/// Whether a restore into the folder did not get to its end.
pub(crate) fn is_half_restored(folder: &Path) -> bool {
    folder.join(RESTORING).exists()
}

/// What was restored.
#[derive(Clone, Debug)]
pub struct Restored {
    pub backup: Backup,
    pub streams: Vec<RestoredStream>,
}

/// A source's log after the restore.
#[derive(Clone, Debug)]
pub struct RestoredStream {
    pub stream: String,
    pub incarnation: Incarnation,
    /// First offset that is there.
    pub from: Offset,
    /// Where the log goes on.
    pub next: Offset,
    /// Whether events before `from` were there when the backup was taken, and their objects are gone.
    pub is_cut: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    #[error("DR-1112: {0:?} has a node already: give the new one an empty data folder")]
    NotEmpty(PathBuf),
    #[error(
        "DR-1112: the node at {0} is of a cluster that is up: a backup is for one that is gone; stop its nodes first, and empty their data folders"
    )]
    Alive(String),
    #[error("DR-1112: the store has no backup{}", .0.as_ref().map(|key| format!(" {key:?}")).unwrap_or_default())]
    None(Option<String>),
    #[error("DR-1112: the backup {key} cannot be used: {reason}")]
    Damaged { key: String, reason: String },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Segments(#[from] ReadError),
    #[error("the data folder cannot be written")]
    Folder(#[from] std::io::Error),
    #[error("the journal cannot be written: {0}")]
    Journal(String),
    #[error("{path:?} cannot be read")]
    Certificate {
        path: PathBuf,
        source: std::io::Error,
    },
}

/// Makes a folder one of a node that is a cluster by itself, as the backup of a key, or the newest, has it. The node is reached
/// at `address` by those who join.
///
/// # Errors
/// See [`RestoreError`]. Nothing is left in the folder then that would start.
pub async fn restore(
    folder: &Path,
    store: &dyn ObjectStore,
    (seeds, tls): (&Seeds, Option<&PeerTls>),
    address: &str,
    key: Option<&str>,
) -> Result<Restored, RestoreError> {
    std::fs::create_dir_all(folder)?;
    if std::fs::read_dir(folder)?.next().is_some() {
        return Err(RestoreError::NotEmpty(folder.to_owned()));
    }
    let credentials = tls.map(Credentials::read).transpose();
    let credentials =
        credentials.map_err(|(path, source)| RestoreError::Certificate { path, source })?;
    let peers = Peers::new(0, credentials);
    if let Some(alive) = form::any_cluster(&peers, &seeds.addresses).await {
        return Err(RestoreError::Alive(alive));
    }
    let found = backups(store).await?;
    let backup = match key {
        Some(key) => found.into_iter().find(|backup| backup.key == key),
        None => found.into_iter().next_back(),
    };
    let backup = backup.ok_or_else(|| RestoreError::None(key.map(str::to_owned)))?;
    let bytes = store.get(&backup.key).await?;
    // As long as it is there, the folder is no node's.
    let beside = folder.join(RESTORING);
    std::fs::create_dir_all(&beside)?;
    let path = beside.join("backup.snapshot");
    std::fs::write(&path, &bytes)?;
    let damaged = |reason: String| RestoreError::Damaged {
        key: backup.key.clone(),
        reason,
    };
    let (meta, mut replicated) = snapshot::read(&path).map_err(damaged)?;
    let restores = count(store).await?;
    let streams = begin_anew(store, &mut replicated, restores).await?;

    let identity = Identity::of_cluster(&uuid::Uuid::new_v4().to_string());
    let last = meta
        .last_log_id
        .ok_or_else(|| damaged("it has nothing".into()))?;
    let nodes = BTreeMap::from([(identity.node_id, BasicNode::new(address))]);
    let voters = BTreeSet::from([identity.node_id]);
    let meta = SnapshotMeta {
        last_log_id: Some(last),
        last_membership: StoredMembership::new(Some(last), Membership::new(vec![voters], nodes)),
        snapshot_id: uuid::Uuid::now_v7().to_string(),
    };
    let written = snapshot::write(folder, &meta, &replicated)?;
    // The newest backup is one of this life: by its index it is known what may be deleted.
    let bytes = std::fs::metadata(&written)?.len();
    super::put(store, &written, last.index, bytes).await?;
    let journal = |error: &dyn std::error::Error| RestoreError::Journal(error.to_string());
    let mut log = LogStore::open(folder).map_err(|error| journal(&error))?;
    // It goes on behind the terms that were.
    let vote = Vote::new(last.leader_id.term, identity.node_id);
    log.save_vote(&vote)
        .await
        .map_err(|error| journal(&error))?;
    identity.store(folder)?;
    std::fs::remove_dir_all(&beside)?;
    Ok(Restored { backup, streams })
}

/// Nobody runs anything, and every log goes on in a new incarnation, from the first event on whose objects are all there.
async fn begin_anew(
    store: &dyn ObjectStore,
    replicated: &mut Replicated,
    restores: u32,
) -> Result<Vec<RestoredStream>, RestoreError> {
    replicated.control.members.clear();
    replicated.control.assignments.clear();
    for table in replicated.control.sink_tables.values_mut() {
        table.epoch = table.epoch.of_life(restores);
    }
    for group in replicated.groups.all_mut() {
        group.epoch = group.epoch.of_life(restores);
    }
    let mut restored = Vec::new();
    for (name, stream) in &mut replicated.journal.streams {
        let there = list_all(store, &format!("log/{name}/")).await?;
        let from = first_whole(store, &there, stream).await?;
        let is_cut = from > stream.trimmed;
        let incarnation = Incarnation(newest(name, &there).max(stream.incarnation.0) + restores);
        stream.begin_anew(incarnation, stream.epoch.of_life(restores), from);
        restored.push(RestoredStream {
            stream: name.clone(),
            incarnation: stream.incarnation,
            from: stream.trimmed,
            next: stream.next,
            is_cut,
        });
    }
    Ok(restored)
}

/// The first offset from which on nothing is missing in the store: retention and merges have gone on since the backup.
async fn first_whole(
    store: &dyn ObjectStore,
    there: &BTreeMap<String, u64>,
    stream: &Stream,
) -> Result<Offset, RestoreError> {
    let mut from = stream.trimmed;
    let mut look = |key: &str, end: Offset| {
        if !there.contains_key(key) {
            from = from.max(end);
        }
    };
    for manifest in &stream.manifests {
        if !there.contains_key(&manifest.object.key) {
            look(&manifest.object.key, manifest.end);
            continue;
        }
        for segment in read_manifest(store, manifest).await? {
            // What retention has passed was gone before.
            if segment.place.end > stream.trimmed {
                look(&segment.place.object.key, segment.place.end);
            }
        }
    }
    for segment in &stream.segments {
        look(&segment.place.object.key, segment.place.end);
    }
    for block in &stream.unsealed {
        if let UnsealedPayload::Object(object) = &block.payload {
            look(&object.key, block.end());
        }
    }
    Ok(from)
}

/// The greatest incarnation of a stream that has objects: of the log that is lost, or of another restore's.
fn newest(name: &str, there: &BTreeMap<String, u64>) -> u32 {
    let prefix = format!("log/{name}/");
    let incarnations = there.keys().filter_map(|key| incarnation_of(key, &prefix));
    incarnations.map(|one| one.0).max().unwrap_or_default()
}

/// Counts this restore, for good. The same backup may be restored twice, and nothing that the first one gave may come again.
async fn count(store: &dyn ObjectStore) -> Result<u32, RestoreError> {
    let before = list_all(store, PREFIX).await?;
    let numbers = before
        .keys()
        .filter_map(|key| key.strip_prefix(PREFIX)?.parse::<u32>().ok());
    let number = numbers.max().unwrap_or_default() + 1;
    store
        .put(
            &format!("{PREFIX}{number:06}"),
            Bytes::from_static(b"restored"),
        )
        .await?;
    Ok(number)
}
