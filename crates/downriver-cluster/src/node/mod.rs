//! A node: Raft, the applied state, and what can be asked of them.
//!
//! - `log`: appending and reading. `control`: everything else that is replicated. `member`: the node as one of several.

mod control;
mod log;
mod member;

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use downriver_api::cluster::v1::command::Kind as C;
use downriver_api::cluster::v1::command_reply::Kind as R;
use downriver_event::Offset;
use downriver_log::ObjectStore;
use downriver_log::segment::SegmentReader;
use openraft::{BasicNode, Raft, ServerState, SnapshotPolicy};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::backup::{self, Backup, Backups};
use crate::control::Member;
use crate::disk;
use crate::elect;
use crate::form::{self, Promise, Seeds};
use crate::identity::Identity;
use crate::members::{self, MemberConfig, Watched};
use crate::peer::{self, Credentials, Network, Peers};
use crate::propose::{COMMAND_BYTES_MAX, Journal, Proposer, Silence};
use crate::sealer::{self, SealError};
use crate::state::Replicated;
use crate::store::{LogStore, Shared, StateMachine};
use crate::{TypeConfig, sealer::seal_all, tidy};

const INLINE_BLOCK_BYTES_MAX: usize = 512 << 10;
const INLINE_APPEND_BYTES_MAX: usize = 1 << 20;
/// How long a node that starts alone may take to lead.
const LEAD_WITHIN: Duration = Duration::from_secs(10);
/// How long the leader may take to say up to where a read has to see.
const READ_INDEX_WITHIN: Duration = Duration::from_secs(2);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How long an append is proposed again while it is not decided.
const APPEND_WITHIN: Duration = Duration::from_secs(10);
/// A follower that hears nothing for this long, and then for as long again at most as the second, asks to lead. Others
/// do not listen to it while they hear a leader.
const HEARTBEAT_MS: u64 = 200;
pub(crate) const ELECTION_MS: (u64, u64) = (600, 1_000);
/// The highest level of stored forms that this build reads. A form that an older build does not read begins a new level,
/// and is written when the cluster has it.
pub(crate) const FEATURE_LEVEL: u32 = 2;
/// From this level on a pipeline's tables are opened by shares.
const SHARES_LEVEL: u32 = 2;
/// Entries between snapshots.
const SNAPSHOT_EVERY: u64 = 20_000;

/// How long segments are kept.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// After every protected reader has read them, since they were stored.
    pub max_age: Duration,
    /// Of a stream, when every protected reader has read them.
    pub max_bytes: Option<u64>,
    /// For protected readers: one that has not read them then has a gap, and stops.
    pub protected_max_age: Duration,
}

#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// This node's own folder.
    pub data: PathBuf,
    pub node_id: u64,
    pub store: Arc<dyn ObjectStore>,
    pub seal_interval: Duration,
    pub seal_bytes: u64,
    /// Inline bytes that may wait for the object store before appends are turned away.
    pub unsealed_bytes_max: u64,
    pub retention: Retention,
    /// How often small segments are merged, old ones forgotten, and what nothing refers to is deleted.
    pub tidy_interval: Duration,
    /// Of a segment that others are merged into.
    pub segment_bytes_max: u64,
    /// As many adjacent small segments are worth a merge.
    pub merge_segments_min: usize,
    /// References of a stream in the replicated state; older ones live in manifests.
    pub segment_refs_max: usize,
    pub backups: Backups,
}

impl NodeConfig {
    #[must_use]
    pub fn new(data: PathBuf, store: Arc<dyn ObjectStore>) -> Self {
        Self {
            data,
            node_id: 1,
            store,
            seal_interval: Duration::from_secs(30),
            seal_bytes: 32 << 20,
            unsealed_bytes_max: 128 << 20,
            retention: Retention {
                max_age: Duration::from_secs(7 * 86_400),
                max_bytes: None,
                protected_max_age: Duration::from_secs(30 * 86_400),
            },
            tidy_interval: Duration::from_secs(60),
            segment_bytes_max: 64 << 20,
            merge_segments_min: 16,
            segment_refs_max: 1_000,
            backups: Backups::default(),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    #[error("the node's folder {path:?} cannot be used")]
    Folder {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error(transparent)]
    Store(Box<dyn std::error::Error + Send + Sync>),
    #[error(
        "DR-1110: the folder {path:?} has a journal from {purged} on and a snapshot to {snapshot:?}: what lies between is lost"
    )]
    Lacking {
        path: PathBuf,
        purged: u64,
        snapshot: Option<u64>,
    },
    #[error(
        "DR-1112: a backup was being restored into {0:?} and did not get to its end: empty the folder, and restore again"
    )]
    HalfRestored(PathBuf),
    #[error("{0}")]
    Removed(String),
    #[error("DR-1111: {0}")]
    OtherStore(String),
    #[error("Raft did not start: {0}")]
    Raft(String),
    #[error(
        "DR-1106: the data folder is an older copy of this node's ({0}), and has forgotten what the node promised: empty it, and the node joins as a new one; then downriver cluster remove the old one"
    )]
    OldFolder(String),
    #[error("{path:?} cannot be read")]
    Certificate {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error(
        "DR-1107: this node is of cluster {mine}, and another that answers it is of cluster {other}: name nodes of one cluster"
    )]
    OtherCluster { mine: String, other: String },
    #[error("the stream cannot be sealed: {0}")]
    Seal(String),
}

#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The state is not what was expected; nothing was changed.
    #[error("{0}")]
    Conflict(String),
    /// The command makes no sense; nothing was changed.
    #[error("{0}")]
    Invalid(String),
    /// Not decided: it may still be applied.
    #[error("{0}")]
    Unavailable(String),
    /// A command over the limit; nothing was changed.
    #[error("a command of {bytes} bytes is over the limit of {COMMAND_BYTES_MAX}")]
    TooLarge { bytes: usize },
}

/// Up to which offset of a stream its protected readers have read; `None`: nobody reads it.
pub(crate) type Protected = Arc<dyn Fn(&str) -> Option<Offset> + Send + Sync>;

pub struct Node {
    config: NodeConfig,
    raft: Raft<TypeConfig>,
    shared: Arc<Shared>,
    proposer: Proposer,
    segments: SegmentReader,
    store_problem: Mutex<Option<String>>,
    /// Streams that are to be sealed though neither old nor large.
    seal_soon: Mutex<HashSet<String>>,
    protected: OnceLock<Protected>,
    /// As far as this node has seen.
    newest_backup: Mutex<Option<Backup>>,
    /// Held by whoever takes a backup.
    pub(crate) backing_up: tokio::sync::Mutex<()>,
    fatal: watch::Sender<Option<String>>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
    peers: Peers,
    /// How this node describes itself to others; `None`: it is alone.
    described: Option<Member>,
    identity: Mutex<Option<Identity>>,
    promise: Mutex<Promise>,
    watched: Watched,
    silence: Arc<Silence>,
    also: peer::Also,
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node")
            .field("node_id", &self.config.node_id)
            .finish_non_exhaustive()
    }
}

impl Node {
    /// Opens the node's folder, makes a one-voter cluster of an empty one, and returns when it leads and
    /// everything committed is applied.
    ///
    /// # Errors
    /// The folder is damaged, of another format, or cannot be written.
    pub async fn start(config: NodeConfig) -> Result<Arc<Self>, NodeError> {
        let peers = Peers::new(config.node_id, None);
        let node = Self::open(config, peers, None, None).await?;
        let raft_error = |error: String| NodeError::Raft(error);
        let initialized = node.raft.is_initialized().await;
        if !initialized.map_err(|error| raft_error(error.to_string()))? {
            let members = BTreeMap::from([(node.config.node_id, BasicNode::default())]);
            let founded = node.raft.initialize(members).await;
            founded.map_err(|error| raft_error(error.to_string()))?;
        }
        let wait = node.raft.wait(Some(LEAD_WITHIN));
        let leads = wait.state(ServerState::Leader, "a single node leads").await;
        leads.map_err(|error| raft_error(error.to_string()))?;
        let applied = node.raft.ensure_linearizable().await;
        applied.map_err(|error| raft_error(error.to_string()))?;
        node.begin();
        Ok(node)
    }

    /// Opens the node's folder, founds a cluster with others or comes into theirs, and returns when everything that was
    /// committed until then is applied here. The number in `config` is of no account: the folder has its own.
    ///
    /// # Errors
    /// The folder is damaged, of another format or of another cluster, or cannot be written.
    pub async fn start_member(
        mut config: NodeConfig,
        member: MemberConfig,
    ) -> Result<Arc<Self>, NodeError> {
        std::fs::create_dir_all(&config.data).map_err(folder_error(&config.data))?;
        let identity = Identity::started(&config.data).map_err(folder_error(&config.data))?;
        config.node_id = identity.node_id;
        let credentials = member.tls.as_ref().map(Credentials::read).transpose();
        let credentials =
            credentials.map_err(|(path, source)| NodeError::Certificate { path, source })?;
        let peers = Peers::new(identity.node_id, credentials.clone());
        peers.join(&identity.cluster_id);
        let described = Member {
            id: identity.node_id,
            name: member.name,
            peer_address: member.address,
            grpc_address: member.grpc_address,
            http_address: member.http_address,
            version: member.version,
            starts: identity.starts,
            draining: false,
            removed: false,
            feature_level: FEATURE_LEVEL,
            process: uuid::Uuid::new_v4().to_string(),
        };
        let node = Self::open(config, peers, Some(described), Some(identity.clone())).await?;
        let initialized = node.raft.is_initialized().await;
        if identity.founds && !initialized.map_err(|error| NodeError::Raft(error.to_string()))? {
            // It was interrupted before anybody else could know of it.
            node.enter_cluster("")?;
        }
        let serving = peer::serve(
            member.listener,
            credentials,
            Arc::clone(&node),
            Arc::clone(&node.also),
        );
        node.keep(tokio::spawn(async move {
            if let Err(error) = serving.await {
                tracing::error!(error = %error, "other nodes are not answered any more");
            }
        }));
        node.keep(tokio::spawn(elect::run(Arc::clone(&node))));
        node.begin();
        tokio::select! {
            entered = node.come_in(&member.seeds) => entered?,
            reason = node.failed() => return Err(NodeError::Raft(reason)),
        }
        node.keep(tokio::spawn(members::run(Arc::clone(&node))));
        Ok(node)
    }

    /// Returns when it is a member that has everything.
    async fn come_in(self: &Arc<Self>, seeds: &Seeds) -> Result<(), NodeError> {
        form::enter(self, seeds).await?;
        while let Err(error) = self.read_index().await {
            tracing::info!(reason = %error, "waits for the cluster");
            tokio::time::sleep(LOOK_EVERY).await;
        }
        loop {
            match self.announce(false).await {
                Ok(()) => return Ok(()),
                Err(ControlError::Conflict(reason)) => return Err(NodeError::OldFolder(reason)),
                Err(ControlError::Invalid(reason)) => return Err(NodeError::Removed(reason)),
                Err(error) => tracing::info!(reason = %error, "waits to be a member"),
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn open(
        config: NodeConfig,
        peers: Peers,
        described: Option<Member>,
        identity: Option<Identity>,
    ) -> Result<Arc<Self>, NodeError> {
        let folder = folder_error(&config.data);
        std::fs::create_dir_all(&config.data).map_err(&folder)?;
        remove_leftovers(&config.data).map_err(&folder)?;
        backup::remove_leftovers(&config.data).map_err(&folder)?;
        if backup::is_half_restored(&config.data) {
            return Err(NodeError::HalfRestored(config.data.clone()));
        }
        let store_error = |error| NodeError::Store(Box::new(error));
        let log_store = LogStore::open(&config.data).map_err(store_error)?;
        let state_machine = StateMachine::open(&config.data).map_err(store_error)?;
        let shared = state_machine.shared();
        let log_store = log_store.applied_to(Arc::clone(&shared));
        let purged = log_store
            .purged()
            .map_err(|error| NodeError::Store(Box::new(error)))?;
        let purged = purged.map(|id| id.index);
        if purged > shared.snapshot_index() {
            return Err(NodeError::Lacking {
                path: config.data.clone(),
                purged: purged.unwrap_or_default(),
                snapshot: shared.snapshot_index(),
            });
        }
        let raft_config = openraft::Config {
            cluster_name: "downriver".into(),
            heartbeat_interval: HEARTBEAT_MS,
            election_timeout_min: ELECTION_MS.0,
            election_timeout_max: ELECTION_MS.1,
            install_snapshot_timeout: 10_000,
            snapshot_max_chunk_size: 1 << 20,
            snapshot_policy: SnapshotPolicy::LogsSinceLast(SNAPSHOT_EVERY),
            replication_lag_threshold: 2 * SNAPSHOT_EVERY,
            // Our own rule cuts the log: never past a block that is in no segment.
            max_in_snapshot_log_to_keep: u64::MAX,
            ..openraft::Config::default()
        };
        let raft_error = |error: String| NodeError::Raft(error);
        let raft_config = raft_config
            .validate()
            .map_err(|error| raft_error(error.to_string()))?;
        let raft = Raft::new(
            config.node_id,
            Arc::new(raft_config),
            Network(peers.clone()),
            log_store,
            state_machine,
        )
        .await
        .map_err(|error| raft_error(error.to_string()))?;
        let fatal = watch::Sender::new(None);
        let silence = Arc::<Silence>::default();
        let journal = Journal {
            silence: Arc::clone(&silence),
            raft: raft.clone(),
            peers: peers.clone(),
            applied: Arc::clone(&shared),
            data: config.data.clone(),
        };
        let (proposer, proposing) = Proposer::start(journal, fatal.clone());
        Ok(Arc::new(Self {
            segments: SegmentReader::new(Arc::clone(&config.store)),
            config,
            raft,
            shared,
            proposer,
            store_problem: Mutex::default(),
            seal_soon: Mutex::default(),
            protected: OnceLock::new(),
            newest_backup: Mutex::default(),
            backing_up: tokio::sync::Mutex::default(),
            fatal,
            tasks: Mutex::new(proposing.into()),
            peers,
            described,
            identity: Mutex::new(identity),
            promise: Mutex::default(),
            watched: Watched::default(),
            silence,
            also: peer::Also::default(),
        }))
    }

    /// Starts what a node does by itself.
    fn begin(self: &Arc<Self>) {
        self.keep(tokio::spawn(watch_raft(Arc::clone(self))));
        self.keep(tokio::spawn(sealer::run(Arc::clone(self))));
        self.keep(tokio::spawn(tidy::run(Arc::clone(self))));
        self.keep(tokio::spawn(backup::run(Arc::clone(self))));
    }

    fn keep(&self, task: JoinHandle<()>) {
        self.tasks.lock().expect("no holder panics").push(task);
    }

    /// Resolves with the reason when the journal has failed for good: the process must end.
    pub async fn failed(&self) -> String {
        let mut fatal = self.fatal.subscribe();
        match fatal.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_default(),
            Err(_) => std::future::pending().await,
        }
    }

    /// Says that the process must end.
    pub(crate) fn fail(&self, reason: &str) {
        self.fatal.send_replace(Some(reason.to_owned()));
    }

    /// Stops serving; everything that was answered is durable already.
    pub async fn shutdown(&self) {
        for task in self.tasks.lock().expect("no holder panics").drain(..) {
            task.abort();
        }
        if let Err(error) = self.raft.shutdown().await {
            tracing::warn!(error = %error, "Raft did not stop cleanly");
        }
    }

    /// Says who reads a stream and how far; until then nothing is forgotten.
    pub fn protect(&self, readers: impl Fn(&str) -> Option<Offset> + Send + Sync + 'static) {
        let _ = self.protected.set(Arc::new(readers));
    }

    /// Why segments cannot be stored now, if they cannot.
    #[must_use]
    pub fn store_problem(&self) -> Option<String> {
        self.store_problem.lock().expect("no holder panics").clone()
    }

    /// Why nothing more is written to this node's disk, if it is nearly full.
    #[must_use]
    pub fn disk_problem(&self) -> Option<String> {
        self.disk_takes_entries().err()
    }

    /// Room on the disk of the data folder; `None`: it does not say.
    #[must_use]
    pub fn disk_free_bytes(&self) -> Option<u64> {
        disk::free_bytes(&self.config.data)
    }

    pub(crate) fn disk_takes_entries(&self) -> Result<(), String> {
        disk::takes_entries(&self.config.data)
    }

    pub(crate) fn disk_takes_snapshot(&self, bytes: u64) -> Result<(), String> {
        disk::takes_snapshot(&self.config.data, bytes)
    }

    pub(crate) fn disk_takes_votes(&self) -> Result<(), String> {
        disk::takes_votes(&self.config.data)
    }

    /// Seals everything of a stream that is committed.
    ///
    /// # Errors
    /// The store cannot take it now.
    pub async fn seal_now(&self, stream: &str) -> Result<(), NodeError> {
        let sealed: Result<(), SealError> = seal_all(self, stream).await;
        sealed.map_err(|error| NodeError::Seal(error.to_string()))
    }

    /// Whether a stream has this object. An entry that was taken back here may have been committed by another leader.
    pub(crate) fn refers_to(&self, key: &str) -> bool {
        self.with_state(|state| {
            let mut streams = state.journal.streams.values();
            streams.any(|stream| stream.refers_to(key))
        })
    }

    pub(crate) fn note_seal_soon(&self, stream: &str) {
        let mut streams = self.seal_soon.lock().expect("no holder panics");
        streams.insert(stream.to_owned());
    }

    pub(crate) fn take_seal_soon(&self) -> HashSet<String> {
        std::mem::take(&mut *self.seal_soon.lock().expect("no holder panics"))
    }

    pub(crate) fn config(&self) -> &NodeConfig {
        &self.config
    }

    pub(crate) fn store(&self) -> &Arc<dyn ObjectStore> {
        &self.config.store
    }

    pub(crate) fn segments(&self) -> &SegmentReader {
        &self.segments
    }

    /// Of commands since the start.
    pub(crate) fn applied_bytes(&self) -> u64 {
        self.shared.applied_bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn proposer(&self) -> &Proposer {
        &self.proposer
    }

    pub(crate) fn protected(&self) -> Option<&Protected> {
        self.protected.get()
    }

    /// The newest backup. `None`: there is none, or this node has not looked, because it does not lead or has just begun to.
    #[must_use]
    pub fn newest_backup(&self) -> Option<Backup> {
        self.newest_backup.lock().expect("no holder panics").clone()
    }

    pub(crate) fn note_newest_backup(&self, newest: Option<Backup>) {
        *self.newest_backup.lock().expect("no holder panics") = newest;
    }

    pub(crate) fn set_store_problem(&self, problem: Option<String>) {
        *self.store_problem.lock().expect("no holder panics") = problem;
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    pub(crate) fn with_state<T>(&self, look: impl FnOnce(&Replicated) -> T) -> T {
        look(&self.shared.replicated.read().expect("no writer panics"))
    }

    pub(crate) async fn take_snapshot(&self) {
        if let Err(error) = self.raft.trigger().snapshot().await {
            tracing::warn!(error = %error, "no snapshot of the journal can be taken now");
        }
    }

    /// Cuts the Raft log behind what is in a snapshot and in segments.
    pub(crate) async fn cut_raft_log(&self) {
        let Some(snapshot) = self.shared.snapshot_index() else {
            return;
        };
        let unsealed = self.with_state(|state| state.journal.first_unsealed_index());
        let up_to = unsealed.map_or(snapshot, |first| snapshot.min(first.saturating_sub(1)));
        let purged = self
            .raft
            .metrics()
            .borrow()
            .purged
            .map_or(0, |purged| purged.index);
        if up_to > purged
            && self.disk_takes_votes().is_ok()
            && let Err(error) = self.raft.trigger().purge_log(up_to).await
        {
            tracing::warn!(error = %error, "the Raft log cannot be cut now");
        }
    }

    pub(crate) async fn propose(&self, command: C) -> Result<R, ControlError> {
        match self.proposer.propose(command).await? {
            R::Conflict(conflict) => Err(ControlError::Conflict(conflict.reason)),
            R::Invalid(invalid) => Err(ControlError::Invalid(invalid.reason)),
            reply => Ok(reply),
        }
    }

    /// This node's number.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.config.node_id
    }
}

fn folder_error(path: &std::path::Path) -> impl Fn(std::io::Error) -> NodeError + use<> {
    let path = path.to_owned();
    move |source| NodeError::Folder {
        path: path.clone(),
        source,
    }
}

/// Notices when Raft has failed on a node that is asked for nothing.
async fn watch_raft(node: Arc<Node>) {
    let mut metrics = node.raft.metrics();
    loop {
        let failed = metrics.borrow_and_update().running_state.clone();
        if let Err(fatal) = failed {
            tracing::error!(error = %fatal, "the journal failed: the node must stop");
            node.fail(&format!("DR-1104: the journal failed: {fatal}"));
            return;
        }
        if metrics.changed().await.is_err() {
            return;
        }
    }
}

/// Files that a crash left half-written.
fn remove_leftovers(data: &std::path::Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(data)? {
        let path = entry?.path();
        if path.extension().is_some_and(|suffix| suffix == "segment") {
            std::fs::remove_file(path)?;
        }
    }
    Ok(())
}
