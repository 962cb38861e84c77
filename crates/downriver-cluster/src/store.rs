//! The Raft log on redb, and the state machine in memory.
//!
//! One redb transaction an append, durable when it returns (`Durability::Immediate`); openraft hands over one
//! append at a time. Recent entries stay in memory, bounded by bytes, so that applying one does not read it
//! back.
//!
//! | table | key | value |
//! |---|---|---|
//! | `log` | index | `StoredEntry` |
//! | `meta` | `format`, `vote`, `committed`, `purged` | one byte; JSON of openraft's type |

use std::collections::VecDeque;
use std::fmt::Debug;
use std::ops::{Bound, RangeBounds};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use downriver_api::cluster::v1 as pb;
use downriver_event::planted::Bug;
use openraft::storage::{LogFlushed, RaftLogStorage, RaftStateMachine, Snapshot};
use openraft::{
    CommittedLeaderId, Entry, EntryPayload, LogId, LogState, OptionalSend, RaftLogReader,
    RaftSnapshotBuilder, SnapshotMeta, StorageError, StorageIOError, StoredMembership, Vote,
};
use prost::Message as _;
use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use crate::state::{self, At, Replicated};
use crate::wire::Wire;
use crate::{TypeConfig, disk, snapshot};

const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
const LOG_FILE: &str = "raft.redb";
const FORMAT: u8 = 1;
const ENTRY_FORMAT: u32 = 1;
/// redb's page cache. Entries are read back only after a restart.
const PAGE_CACHE_BYTES: usize = 8 << 20;
/// Entries that go to another node in one message.
const MESSAGE_BYTES: usize = 1 << 20;
/// How long a snapshot from another node may take to be written.
const SNAPSHOT_WITHIN: Duration = Duration::from_secs(120);
/// How often a full disk is looked at while a snapshot waits for room.
const LOOK_FOR_ROOM_EVERY: Duration = Duration::from_secs(1);
/// Entries kept in memory for applying and replicating.
const RECENT_BYTES_MAX: usize = 16 << 20;

type NodeId = u64;
type Result<T> = std::result::Result<T, StorageError<NodeId>>;

/// The store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error("the Raft log {path:?} cannot be opened")]
    Open { path: PathBuf, source: redb::Error },
    #[error("the Raft log {path:?} has format {found}, this build reads {FORMAT}")]
    Format { path: PathBuf, found: u8 },
    #[error("the snapshot {path:?} cannot be read: {reason}")]
    Snapshot { path: PathBuf, reason: String },
}

#[derive(Clone)]
pub(crate) struct LogStore {
    database: Arc<Database>,
    recent: Arc<Mutex<Recent>>,
    applied: Option<Arc<Shared>>,
}

#[derive(Default)]
struct Recent {
    entries: VecDeque<(Entry<TypeConfig>, usize)>,
    bytes: usize,
}

impl Recent {
    fn push(&mut self, entry: Entry<TypeConfig>, bytes: usize) {
        // Behind a snapshot that was installed there is a gap.
        let last = self.entries.back();
        if last.is_some_and(|(last, _)| last.log_id.index + 1 != entry.log_id.index) {
            *self = Self::default();
        }
        self.bytes += bytes;
        self.entries.push_back((entry, bytes));
        while self.bytes > RECENT_BYTES_MAX {
            let Some((_, bytes)) = self.entries.pop_front() else {
                break;
            };
            self.bytes -= bytes;
        }
    }

    fn truncate(&mut self, from: u64) {
        while self
            .entries
            .back()
            .is_some_and(|(entry, _)| entry.log_id.index >= from)
        {
            let (_, bytes) = self.entries.pop_back().expect("it was there");
            self.bytes -= bytes;
        }
    }

    fn purge(&mut self, up_to: u64) {
        while let Some((entry, bytes)) = self.entries.pop_front() {
            if entry.log_id.index > up_to {
                self.entries.push_front((entry, bytes));
                return;
            }
            self.bytes -= bytes;
        }
    }

    /// The first entries from an index on, as many as go into one message but at least one, if they are here.
    fn first_of(&self, from: u64, to: u64) -> Option<Vec<Entry<TypeConfig>>> {
        let first = self.entries.front()?.0.log_id.index;
        let skip = usize::try_from(from.checked_sub(first)?).ok()?;
        let count = usize::try_from(to.checked_sub(from)?).ok()?;
        let mut bytes = 0;
        let entries = self.entries.iter().skip(skip).take(count);
        let entries = entries.take_while(|(_, len)| {
            let fits = bytes == 0 || bytes + len <= MESSAGE_BYTES;
            bytes += len;
            fits
        });
        let entries: Vec<_> = entries.map(|(entry, _)| entry.clone()).collect();
        (!entries.is_empty()).then_some(entries)
    }

    /// The entries of the range, if all of it is here.
    fn get(&self, from: u64, to: u64) -> Option<Vec<Entry<TypeConfig>>> {
        let first = self.entries.front()?.0.log_id.index;
        let skip = usize::try_from(from.checked_sub(first)?).ok()?;
        let count = usize::try_from(to.checked_sub(from)?).ok()?;
        let entries = self.entries.iter().skip(skip).take(count);
        let entries: Vec<_> = entries.map(|(entry, _)| entry.clone()).collect();
        (entries.len() == count).then_some(entries)
    }
}

impl LogStore {
    pub(crate) fn open(folder: &Path) -> std::result::Result<Self, OpenError> {
        Self::open_with(folder, |builder| builder.create(folder.join(LOG_FILE)))
    }

    /// The same, wherever the bytes are.
    pub(crate) fn open_with(
        folder: &Path,
        create: impl FnOnce(&redb::Builder) -> std::result::Result<Database, redb::DatabaseError>,
    ) -> std::result::Result<Self, OpenError> {
        let path = folder.join(LOG_FILE);
        let open = || -> std::result::Result<(Database, u8), redb::Error> {
            let database = create(Database::builder().set_cache_size(PAGE_CACHE_BYTES))?;
            let write = database.begin_write()?;
            let found = {
                let mut meta = write.open_table(META)?;
                let found = meta.get("format")?.map(|value| value.value().to_vec());
                if found.is_none() {
                    meta.insert("format", &[FORMAT][..])?;
                }
                found
            };
            let format = found.map_or(FORMAT, |found| found.first().copied().unwrap_or_default());
            if format != FORMAT {
                // Another format's file stays as it is.
                write.abort()?;
                return Ok((database, format));
            }
            write.open_table(LOG)?;
            write.commit()?;
            Ok((database, format))
        };
        let (database, found) = open().map_err(|source| OpenError::Open {
            path: path.clone(),
            source,
        })?;
        if found != FORMAT {
            return Err(OpenError::Format { path, found });
        }
        Ok(Self {
            database: Arc::new(database),
            recent: Arc::default(),
            applied: None,
        })
    }

    /// The log with what its entries are applied to: they are forgotten when a snapshot there has them.
    pub(crate) fn applied_to(mut self, shared: Arc<Shared>) -> Self {
        self.applied = Some(shared);
        self
    }

    /// The last entry that was forgotten.
    pub(crate) fn purged(&self) -> std::result::Result<Option<LogId<NodeId>>, redb::Error> {
        self.meta("purged")
    }

    /// Returns when a snapshot on the disk reaches the index. One that comes from another node is taken over while Raft
    /// asks to forget what it has.
    async fn is_in_snapshot(&self, index: u64) -> std::result::Result<(), std::io::Error> {
        let Some(applied) = &self.applied else {
            return Ok(());
        };
        let mut changes = applied.changes.subscribe();
        let reaches = |_: &u64| applied.snapshot_index() >= Some(index);
        let waited = tokio::time::timeout(SNAPSHOT_WITHIN, changes.wait_for(reaches)).await;
        match waited {
            Ok(Ok(_)) => Ok(()),
            _ => Err(std::io::Error::other(
                "no snapshot has what is to be forgotten",
            )),
        }
    }

    async fn write(
        &self,
        work: impl FnOnce(&mut redb::WriteTransaction) -> std::result::Result<(), redb::Error>
        + Send
        + 'static,
    ) -> std::result::Result<(), redb::Error> {
        let database = Arc::clone(&self.database);
        let written = tokio::task::spawn_blocking(move || {
            let mut write = database.begin_write()?;
            work(&mut write)?;
            write.commit()?;
            Ok(())
        })
        .await;
        match written {
            Ok(written) => written,
            Err(ended) if ended.is_cancelled() => {
                Err(redb::Error::Io(std::io::Error::other("the process ends")))
            }
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    }

    async fn put_meta(
        &self,
        key: &'static str,
        value: &impl Serialize,
    ) -> std::result::Result<(), redb::Error> {
        let value = serde_json::to_vec(value).expect("openraft's types are plain");
        self.write(move |write| {
            if key == "vote" && Bug::NoVoteSync.is_planted() {
                write.set_durability(redb::Durability::None)?;
            }
            write.open_table(META)?.insert(key, &value[..])?;
            Ok(())
        })
        .await
    }

    fn meta<T: DeserializeOwned>(
        &self,
        key: &'static str,
    ) -> std::result::Result<Option<T>, redb::Error> {
        let read = self.database.begin_read()?;
        let meta = read.open_table(META)?;
        let Some(value) = meta.get(key)? else {
            return Ok(None);
        };
        let value = serde_json::from_slice(value.value());
        value
            .map(Some)
            .map_err(|error| redb::Error::Corrupted(format!("{key}: {error}")))
    }

    fn last_entry(&self) -> std::result::Result<Option<LogId<NodeId>>, redb::Error> {
        let read = self.database.begin_read()?;
        let log = read.open_table(LOG)?;
        let last = log.last()?.map(|(_, value)| decode(value.value()));
        last.transpose()
            .map(|entry| entry.map(|entry| entry.log_id))
    }

    /// As [`Recent::first_of`], from the disk.
    fn first_entries(
        &self,
        from: u64,
        to: u64,
    ) -> std::result::Result<Vec<Entry<TypeConfig>>, redb::Error> {
        let read = self.database.begin_read()?;
        let log = read.open_table(LOG)?;
        let (mut entries, mut bytes) = (Vec::new(), 0);
        for row in log.range(from..to)? {
            let (_, value) = row?;
            bytes += value.value().len();
            if bytes > MESSAGE_BYTES && !entries.is_empty() {
                break;
            }
            entries.push(decode(value.value())?);
        }
        Ok(entries)
    }

    fn entries(
        &self,
        from: u64,
        to: u64,
    ) -> std::result::Result<Vec<Entry<TypeConfig>>, redb::Error> {
        let read = self.database.begin_read()?;
        let log = read.open_table(LOG)?;
        log.range(from..to)?
            .map(|row| decode(row?.1.value()))
            .collect()
    }
}

/// An entry as it is stored, and sent to other nodes.
pub(crate) fn stored_entry(entry: &Entry<TypeConfig>) -> pb::StoredEntry {
    use pb::stored_entry::Payload;
    let payload = match &entry.payload {
        EntryPayload::Blank => Payload::Blank(pb::Blank {}),
        EntryPayload::Normal(Wire(commands)) => Payload::Normal(commands.clone()),
        EntryPayload::Membership(membership) => Payload::MembershipJson(
            serde_json::to_vec(membership)
                .expect("openraft's types are plain")
                .into(),
        ),
    };
    pb::StoredEntry {
        format: ENTRY_FORMAT,
        term: entry.log_id.leader_id.term,
        node_id: entry.log_id.leader_id.node_id,
        index: entry.log_id.index,
        payload: Some(payload),
    }
}

/// The entry that is stored so, or what is wrong with it.
pub(crate) fn raft_entry(
    stored: pb::StoredEntry,
) -> std::result::Result<Entry<TypeConfig>, String> {
    use pb::stored_entry::Payload;
    let wrong = |reason: String| format!("a Raft entry {reason}");
    if stored.format != ENTRY_FORMAT {
        return Err(wrong(format!(
            "has format {}, this build reads {ENTRY_FORMAT}",
            stored.format
        )));
    }
    let payload = match stored.payload {
        Some(Payload::Blank(_)) => EntryPayload::Blank,
        Some(Payload::Normal(commands)) => {
            state::check_format(&commands).map_err(wrong)?;
            EntryPayload::Normal(Wire(commands))
        }
        Some(Payload::MembershipJson(json)) => EntryPayload::Membership(
            serde_json::from_slice(&json).map_err(|error| wrong(error.to_string()))?,
        ),
        None => return Err(wrong("has no payload".into())),
    };
    Ok(Entry {
        log_id: LogId::new(
            CommittedLeaderId::new(stored.term, stored.node_id),
            stored.index,
        ),
        payload,
    })
}

fn decode(bytes: &[u8]) -> std::result::Result<Entry<TypeConfig>, redb::Error> {
    let stored = pb::StoredEntry::decode(bytes);
    let stored =
        stored.map_err(|error| redb::Error::Corrupted(format!("a Raft entry: {error}")))?;
    raft_entry(stored).map_err(redb::Error::Corrupted)
}

fn bounds(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let from = match range.start_bound() {
        Bound::Included(from) => *from,
        Bound::Excluded(from) => from + 1,
        Bound::Unbounded => 0,
    };
    let to = match range.end_bound() {
        Bound::Included(to) => to + 1,
        Bound::Excluded(to) => *to,
        Bound::Unbounded => u64::MAX,
    };
    (from, to)
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry<TypeConfig>>> {
        let (from, to) = bounds(&range);
        let recent = self.recent.lock().expect("no holder panics").get(from, to);
        match recent {
            Some(entries) => Ok(entries),
            None => Ok(self
                .entries(from, to)
                .map_err(|e| StorageIOError::read_logs(&e))?),
        }
    }

    async fn limited_get_log_entries(
        &mut self,
        from: u64,
        to: u64,
    ) -> Result<Vec<Entry<TypeConfig>>> {
        let recent = self.recent.lock().expect("no holder panics");
        if let Some(entries) = recent.first_of(from, to) {
            return Ok(entries);
        }
        drop(recent);
        Ok(self
            .first_entries(from, to)
            .map_err(|e| StorageIOError::read_logs(&e))?)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>> {
        let purged = self
            .meta("purged")
            .map_err(|e| StorageIOError::read_logs(&e))?;
        let last = self
            .last_entry()
            .map_err(|e| StorageIOError::read_logs(&e))?;
        Ok(LogState {
            last_purged_log_id: purged,
            last_log_id: last.or(purged),
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote<NodeId>) -> Result<()> {
        Ok(self
            .put_meta("vote", vote)
            .await
            .map_err(|e| StorageIOError::write_vote(&e))?)
    }

    async fn read_vote(&mut self) -> Result<Option<Vote<NodeId>>> {
        Ok(self
            .meta("vote")
            .map_err(|e| StorageIOError::read_vote(&e))?)
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<TypeConfig>) -> Result<()>
    where
        I: IntoIterator<Item = Entry<TypeConfig>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<_> = entries
            .into_iter()
            .map(|entry| (stored_entry(&entry).encode_to_vec(), entry))
            .collect();
        {
            let mut recent = self.recent.lock().expect("no holder panics");
            for (bytes, entry) in &entries {
                recent.push(entry.clone(), bytes.len());
            }
        }
        let written = self
            .write(move |write| {
                if Bug::NoSync.is_planted() {
                    write.set_durability(redb::Durability::None)?;
                }
                let mut log = write.open_table(LOG)?;
                for (bytes, entry) in &entries {
                    log.insert(entry.log_id.index, &bytes[..])?;
                }
                Ok(())
            })
            .await;
        match written.or_else(|error| match Bug::WriteErrorIgnored.is_planted() {
            true => Ok(()),
            false => Err(error),
        }) {
            Ok(()) => {
                callback.log_io_completed(Ok(()));
                Ok(())
            }
            Err(error) => {
                callback.log_io_completed(Err(std::io::Error::other(error.to_string())));
                Err(StorageIOError::write_logs(&error).into())
            }
        }
    }

    async fn truncate(&mut self, log_id: LogId<NodeId>) -> Result<()> {
        self.recent
            .lock()
            .expect("no holder panics")
            .truncate(log_id.index);
        let truncated = self
            .write(move |write| {
                write
                    .open_table(LOG)?
                    .retain_in(log_id.index.., |_, _| false)?;
                Ok(())
            })
            .await;
        Ok(truncated.map_err(|e| StorageIOError::write_logs(&e))?)
    }

    async fn purge(&mut self, log_id: LogId<NodeId>) -> Result<()> {
        self.is_in_snapshot(log_id.index)
            .await
            .map_err(|e| StorageIOError::write_logs(&e))?;
        self.recent
            .lock()
            .expect("no holder panics")
            .purge(log_id.index);
        let purged = serde_json::to_vec(&log_id).expect("openraft's types are plain");
        let done = self
            .write(move |write| {
                write.open_table(META)?.insert("purged", &purged[..])?;
                write
                    .open_table(LOG)?
                    .retain_in(..=log_id.index, |_, _| false)?;
                Ok(())
            })
            .await;
        Ok(done.map_err(|e| StorageIOError::write_logs(&e))?)
    }

    async fn save_committed(&mut self, committed: Option<LogId<NodeId>>) -> Result<()> {
        // Not durable by itself: after a restart a leader finds out again what is committed.
        let _ = committed;
        Ok(())
    }
}

/// The last applied entry and the membership then.
pub(crate) type Applied = (
    Option<LogId<NodeId>>,
    StoredMembership<NodeId, openraft::BasicNode>,
);

/// The applied state and its snapshots.
#[derive(Clone)]
pub(crate) struct StateMachine {
    shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub(crate) replicated: RwLock<Replicated>,
    applied: Mutex<Applied>,
    /// Counts applied entries, for whoever waits for a change.
    pub(crate) changes: watch::Sender<u64>,
    /// Bytes of commands since the start.
    pub(crate) applied_bytes: AtomicU64,
    /// Counts changes of what should run and of where.
    pub(crate) control_changes: watch::Sender<u64>,
    folder: PathBuf,
    current: Mutex<Option<(SnapshotMeta<NodeId, openraft::BasicNode>, PathBuf)>>,
}

impl Shared {
    /// Returns when the entry of an index is applied.
    pub(crate) async fn has_applied(&self, index: u64) {
        let mut changes = self.changes.subscribe();
        let reached = |_: &u64| {
            let applied = self.applied.lock().expect("no holder panics");
            applied.0.is_some_and(|last| last.index >= index)
        };
        // The sender is here.
        let _ = changes.wait_for(reached).await;
    }

    /// All that is applied, and where that is.
    pub(crate) fn copy(&self) -> (Replicated, Applied) {
        let replicated = self.replicated.read().expect("no writer panics");
        let applied = self.applied.lock().expect("no holder panics");
        (replicated.clone(), applied.clone())
    }

    fn disk_takes_snapshot(&self) -> std::result::Result<(), String> {
        let replicated = self.replicated.read().expect("no writer panics");
        disk::takes_snapshot(&self.folder, replicated.journal.unsealed_bytes())
    }

    /// The newest snapshot's last index: the Raft log is kept from there on.
    pub(crate) fn snapshot_index(&self) -> Option<u64> {
        let current = self.current.lock().expect("no holder panics");
        current
            .as_ref()
            .and_then(|(meta, _)| Some(meta.last_log_id?.index))
    }
}

impl StateMachine {
    /// Opens the state machine at its newest snapshot.
    pub(crate) fn open(folder: &Path) -> std::result::Result<Self, OpenError> {
        let newest = snapshot::newest(folder).map_err(|error| OpenError::Snapshot {
            path: folder.to_owned(),
            reason: error.to_string(),
        })?;
        let mut replicated = Replicated::default();
        let mut applied = (None, StoredMembership::default());
        let mut current = None;
        if let Some(path) = newest {
            let (meta, restored) = snapshot::read(&path).map_err(|reason| OpenError::Snapshot {
                path: path.clone(),
                reason,
            })?;
            replicated = restored;
            applied = (meta.last_log_id, meta.last_membership.clone());
            current = Some((meta, path));
        }
        let shared = Shared {
            replicated: RwLock::new(replicated),
            applied: Mutex::new(applied),
            changes: watch::Sender::new(0),
            applied_bytes: AtomicU64::new(0),
            control_changes: watch::Sender::new(0),
            folder: folder.to_owned(),
            current: Mutex::new(current),
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    pub(crate) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }
}

impl RaftSnapshotBuilder<TypeConfig> for StateMachine {
    async fn build_snapshot(&mut self) -> Result<Snapshot<TypeConfig>> {
        let shared = self.shared();
        // One that does not fit would end the node. Raft waits for it beside everything else.
        while let Err(reason) = shared.disk_takes_snapshot() {
            tracing::warn!(reason, "no snapshot of the journal is written");
            tokio::time::sleep(LOOK_FOR_ROOM_EVERY).await;
        }
        let built = tokio::task::spawn_blocking(move || {
            let (replicated, (last_log_id, last_membership)) = shared.copy();
            let meta = SnapshotMeta {
                last_log_id,
                last_membership,
                snapshot_id: uuid::Uuid::now_v7().to_string(),
            };
            let path = snapshot::write(&shared.folder, &meta, &replicated)?;
            let mut current = shared.current.lock().expect("no holder panics");
            match &*current {
                // One from another node came in between.
                Some((newer, _)) if newer.last_log_id > meta.last_log_id => {
                    std::fs::remove_file(path)?;
                }
                _ => {
                    snapshot::remove_others(&shared.folder, &path);
                    *current = Some((meta, path));
                }
            }
            let (meta, path) = current.clone().expect("there is one now");
            Ok::<_, std::io::Error>((meta, std::fs::File::open(path)?))
        })
        .await;
        let built = built.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
        let (meta, file) = built.map_err(|e| StorageIOError::write_snapshot(None, &e))?;
        Ok(Snapshot {
            meta,
            snapshot: Box::new(tokio::fs::File::from_std(file)),
        })
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotBuilder = Self;

    async fn applied_state(
        &mut self,
    ) -> Result<(
        Option<LogId<NodeId>>,
        StoredMembership<NodeId, openraft::BasicNode>,
    )> {
        Ok(self
            .shared
            .applied
            .lock()
            .expect("no holder panics")
            .clone())
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Wire<pb::EntryReply>>>
    where
        I: IntoIterator<Item = Entry<TypeConfig>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut replies = Vec::new();
        let mut changes_control = false;
        {
            let mut replicated = self.shared.replicated.write().expect("no writer panics");
            let mut applied = self.shared.applied.lock().expect("no holder panics");
            for entry in entries {
                let reply = match entry.payload {
                    EntryPayload::Blank => pb::EntryReply::default(),
                    EntryPayload::Normal(Wire(commands)) => {
                        let at = At {
                            index: entry.log_id.index,
                            term: entry.log_id.leader_id.term,
                            leader: entry.log_id.leader_id.node_id,
                        };
                        let bytes = commands.encoded_len() as u64;
                        self.shared
                            .applied_bytes
                            .fetch_add(bytes, Ordering::Relaxed);
                        changes_control |= state::changes_control(&commands);
                        replicated.apply(commands, at)
                    }
                    EntryPayload::Membership(membership) => {
                        applied.1 = StoredMembership::new(Some(entry.log_id), membership);
                        pb::EntryReply::default()
                    }
                };
                applied.0 = Some(entry.log_id);
                replies.push(Wire(reply));
            }
        }
        self.shared.changes.send_modify(|changes| *changes += 1);
        if changes_control {
            let control_changes = &self.shared.control_changes;
            control_changes.send_modify(|changes| *changes += 1);
        }
        Ok(replies)
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<tokio::fs::File>> {
        let path = snapshot::receiving(&self.shared.folder);
        let file = tokio::fs::File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(path)
            .await;
        Ok(Box::new(
            file.map_err(|e| StorageIOError::write_snapshot(None, &e))?,
        ))
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta<NodeId, openraft::BasicNode>,
        received: Box<tokio::fs::File>,
    ) -> Result<()> {
        let failed = |e: std::io::Error| StorageIOError::write_snapshot(Some(meta.signature()), &e);
        let file = received.into_std().await;
        let (path, replicated) =
            snapshot::adopt(&self.shared.folder, &file, meta).map_err(failed)?;
        {
            let mut current = self.shared.replicated.write().expect("no writer panics");
            let mut applied = self.shared.applied.lock().expect("no holder panics");
            *current = replicated;
            *applied = (meta.last_log_id, meta.last_membership.clone());
        }
        {
            let mut current = self.shared.current.lock().expect("no holder panics");
            snapshot::remove_others(&self.shared.folder, &path);
            *current = Some((meta.clone(), path));
        }
        self.shared.changes.send_modify(|changes| *changes += 1);
        let control_changes = &self.shared.control_changes;
        control_changes.send_modify(|changes| *changes += 1);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<TypeConfig>>> {
        // Opened before another one can take its place.
        let current = self.shared.current.lock().expect("no holder panics");
        let Some((meta, path)) = &*current else {
            return Ok(None);
        };
        let file = std::fs::File::open(path);
        let file = file.map_err(|e| StorageIOError::read_snapshot(Some(meta.signature()), &e))?;
        Ok(Some(Snapshot {
            meta: meta.clone(),
            snapshot: Box::new(tokio::fs::File::from_std(file)),
        }))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use openraft::testing::{StoreBuilder, Suite};

    use super::*;

    struct InFolder;

    impl StoreBuilder<TypeConfig, LogStore, StateMachine, tempfile::TempDir> for InFolder {
        async fn build(&self) -> Result<(tempfile::TempDir, LogStore, StateMachine)> {
            let folder = tempfile::tempdir().unwrap();
            let log = LogStore::open(folder.path()).unwrap();
            let state_machine = StateMachine::open(folder.path()).unwrap();
            Ok((folder, log, state_machine))
        }
    }

    #[test]
    fn the_stores_do_what_raft_asks_of_them() {
        Suite::test_all(InFolder).unwrap();
    }
}
