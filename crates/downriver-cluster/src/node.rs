//! A node: Raft, the applied state, and what can be asked of them.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use downriver_api::cluster::v1::command::Kind as C;
use downriver_api::cluster::v1::command_reply::Kind as R;
use downriver_api::cluster::v1::{self as pb, PointerSwap};
use downriver_event::{Epoch, Incarnation, Offset, SourcePosition, TableId};
use downriver_log::reader::{self, ReadPlan};
use downriver_log::segment::SegmentReader;
use downriver_log::{
    Append, AppendError, Appended, Log, LogError, Moved, ObjectStore, Payload, ReadError,
    StoreError, StoredBlock, StreamState,
};
use openraft::{BasicNode, Raft, ServerState, SnapshotPolicy};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::control::{Member, ResourcePut, SinkTableState, StoredResource};
use crate::elect;
use crate::form::{self, Promise, Seeds};
use crate::groups::{Cursor, Group};
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
pub(crate) const FEATURE_LEVEL: u32 = 1;
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
            fatal,
            tasks: Mutex::new(vec![proposing]),
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

    /// Seals everything of a stream that is committed.
    ///
    /// # Errors
    /// The store cannot take it now.
    pub async fn seal_now(&self, stream: &str) -> Result<(), NodeError> {
        let sealed: Result<(), SealError> = seal_all(self, stream).await;
        sealed.map_err(|error| NodeError::Seal(error.to_string()))
    }

    /// Whether this node leads, as far as it knows.
    #[must_use]
    pub fn leads(&self) -> bool {
        self.raft.metrics().borrow().state == ServerState::Leader
    }

    /// Counts changes of what should run and of where.
    #[must_use]
    pub fn control_changes(&self) -> watch::Receiver<u64> {
        self.shared.control_changes.subscribe()
    }

    /// Serves this to other nodes as well, at the address where they reach this one.
    pub fn also_serve(&self, routes: tonic::service::Routes) {
        let _ = self.also.set(routes);
    }

    /// A connection to another member.
    ///
    /// # Errors
    /// It is no member, or its address is none.
    pub fn channel_to(&self, id: u64) -> Result<tonic::transport::Channel, ControlError> {
        let member = self
            .member(id)
            .ok_or_else(|| ControlError::Unavailable(format!("node {id} is not known here")))?;
        let channel = self.peers.channel(&member.peer_address);
        channel.map_err(|error| ControlError::Unavailable(error.to_string()))
    }

    /// Returns when everything that was committed before the call is applied here.
    ///
    /// # Errors
    /// Most of the voters, or the leader, do not answer.
    pub async fn read_index(&self) -> Result<(), ControlError> {
        let unavailable = |reason: &str| ControlError::Unavailable(reason.to_owned());
        let asked = async {
            let leader = self.raft.metrics().borrow().current_leader;
            let leader = leader.ok_or_else(|| unavailable("there is no leader now"))?;
            if leader == self.config.node_id {
                let index = self.leaders_read_index().await;
                return index.ok_or_else(|| unavailable("most of the voters do not answer"));
            }
            let address = self.raft_address(leader).unwrap_or_default();
            let request = pb::ReadIndexRequest {
                envelope: self.peers.envelope(leader),
            };
            let mut client = self
                .peers
                .client(&address)
                .map_err(|error| unavailable(&error.to_string()))?;
            let response = client.read_index(request).await;
            let response = response.map_err(|status| unavailable(status.message()))?;
            match response.into_inner() {
                pb::ReadIndexResponse { leads: true, index } => Ok(index),
                _ => Err(unavailable("the leader has changed")),
            }
        };
        let applied = async {
            self.shared.has_applied(asked.await?).await;
            Ok(())
        };
        tokio::time::timeout(2 * READ_INDEX_WITHIN, applied)
            .await
            .unwrap_or_else(|_| Err(unavailable("the leader does not answer")))
    }

    /// `None`: it does not lead, or cannot know whether it still does.
    pub(crate) async fn leaders_read_index(&self) -> Option<u64> {
        let read = tokio::time::timeout(READ_INDEX_WITHIN, self.raft.get_read_log_id()).await;
        let (read, _) = read.ok()?.ok()?;
        Some(read.map_or(0, |id| id.index))
    }

    pub(crate) fn raft_address(&self, id: u64) -> Option<String> {
        let metrics = self.raft.metrics().borrow().clone();
        let membership = metrics.membership_config.membership();
        membership.get_node(&id).map(|node| node.addr.clone())
    }

    pub(crate) fn silence(&self) -> &Silence {
        &self.silence
    }

    pub(crate) fn raft(&self) -> &Raft<TypeConfig> {
        &self.raft
    }

    pub(crate) fn peers(&self) -> &Peers {
        &self.peers
    }

    pub(crate) fn watched(&self) -> &Watched {
        &self.watched
    }

    pub(crate) fn described(&self) -> Option<Member> {
        self.described.clone()
    }

    /// Where others reach this node; empty: nowhere.
    pub(crate) fn address(&self) -> &str {
        self.described
            .as_ref()
            .map_or("", |here| &here.peer_address)
    }

    /// Empty: none yet.
    pub(crate) fn cluster_id(&self) -> String {
        self.peers.cluster_id()
    }

    /// Where this node's segments go.
    pub(crate) fn store_url(&self) -> String {
        self.config.store.url().to_owned()
    }

    pub(crate) fn promise(&self, founder: u64) -> bool {
        self.promise.lock().expect("no holder panics").give(founder)
    }

    /// Answers who this is, and promises it to a founder.
    pub(crate) fn hello(&self, asked: &pb::HelloRequest) -> pb::HelloResponse {
        // Of a cluster that is not founded yet nobody else is to know.
        let founds = {
            let identity = self.identity.lock().expect("no holder panics");
            identity.as_ref().is_some_and(|identity| identity.founds)
        };
        let cluster_id = match founds {
            true => String::new(),
            false => self.cluster_id(),
        };
        let is_free = cluster_id.is_empty() && asked.founder != 0;
        pb::HelloResponse {
            node_id: self.config.node_id,
            address: self.address().to_owned(),
            cluster_id,
            promised: is_free && self.promise(asked.founder),
            hears_leader: elect::hears_leader(self),
            store: self.store_url(),
        }
    }

    /// Belongs to this cluster from now on; to none with an empty one.
    pub(crate) fn enter_cluster(&self, cluster_id: &str) -> Result<(), NodeError> {
        self.enter(cluster_id, false)
    }

    /// The same, as the one that is about to found it.
    pub(crate) fn founds_cluster(&self, cluster_id: &str) -> Result<(), NodeError> {
        self.enter(cluster_id, true)
    }

    fn enter(&self, cluster_id: &str, founds: bool) -> Result<(), NodeError> {
        let mut identity = self.identity.lock().expect("no holder panics");
        if let Some(identity) = &mut *identity {
            cluster_id.clone_into(&mut identity.cluster_id);
            identity.founds = founds;
            let stored = identity.store(&self.config.data);
            stored.map_err(folder_error(&self.config.data))?;
        }
        self.peers.join(cluster_id);
        Ok(())
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

    pub(crate) fn set_store_problem(&self, problem: Option<String>) {
        *self.store_problem.lock().expect("no holder panics") = problem;
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

    /// Stores all or none.
    ///
    /// # Errors
    /// A revision is not the expected one; or not decided.
    pub async fn apply_resources(&self, puts: Vec<ResourcePut>) -> Result<Vec<u64>, ControlError> {
        let puts = puts.into_iter().map(|put| pb::ResourcePut {
            kind: put.kind,
            name: put.name,
            spec_json: put.spec_json,
            expected_revision: put.expected_revision,
        });
        match self
            .propose(C::PutResources(pb::PutResources {
                puts: puts.collect(),
            }))
            .await?
        {
            R::Revisions(revisions) => Ok(revisions.revisions),
            other => Err(unexpected(&other)),
        }
    }

    /// # Errors
    /// The revision is not the expected one; or not decided.
    pub async fn delete_resource(
        &self,
        kind: &str,
        name: &str,
        expected_revision: Option<u64>,
    ) -> Result<(), ControlError> {
        let (kind, name) = (kind.to_owned(), name.to_owned());
        let delete = pb::DeleteResource {
            kind,
            name,
            expected_revision,
        };
        self.propose(C::DeleteResource(delete)).await.map(|_| ())
    }

    #[must_use]
    pub fn resources(&self) -> Vec<StoredResource> {
        self.with_state(|state| state.control.resources.values().cloned().collect())
    }

    /// Moves all pointers or none.
    ///
    /// # Errors
    /// A pointer is not where it was expected; or not decided.
    pub async fn swap_pointers(&self, swaps: Vec<PointerSwap>) -> Result<(), ControlError> {
        self.propose(C::SwapPointer(pb::SwapPointer { swaps }))
            .await
            .map(|_| ())
    }

    #[must_use]
    pub fn pointer(&self, catalog: &str, namespace: &str, table: &str) -> Option<String> {
        let key = (catalog.to_owned(), namespace.to_owned(), table.to_owned());
        self.with_state(|state| state.control.pointers.get(&key).cloned())
    }

    /// Namespace, table and metadata location of a catalog's tables.
    #[must_use]
    pub fn pointers(&self, catalog: &str) -> Vec<(String, String, String)> {
        self.with_state(|state| {
            let pointers = state
                .control
                .pointers
                .iter()
                .filter(|((c, _, _), _)| c == catalog);
            pointers
                .map(|((_, n, t), location)| (n.clone(), t.clone(), location.clone()))
                .collect()
        })
    }

    /// Gives the table a new owner's epoch.
    ///
    /// # Errors
    /// Not decided.
    pub async fn open_sink_table(
        &self,
        pipeline: &str,
        table: TableId,
    ) -> Result<SinkTableState, ControlError> {
        let open = pb::OpenSinkTable {
            pipeline: pipeline.to_owned(),
            table_id: table.0,
            node_id: self.config.node_id,
        };
        match self.propose(C::OpenSinkTable(open)).await? {
            R::SinkTable(state) => Ok(SinkTableState {
                epoch: Epoch(state.epoch),
                owner: state.owner,
                delivered: Offset(state.delivered),
                detail: state.detail,
            }),
            other => Err(unexpected(&other)),
        }
    }

    /// Stores how far the sink's table has come; progress never goes back.
    ///
    /// # Errors
    /// Another owner has a newer epoch; or not decided.
    pub async fn commit_sink_table(
        &self,
        pipeline: &str,
        table: TableId,
        epoch: Epoch,
        delivered: Offset,
        detail: Bytes,
    ) -> Result<(), ControlError> {
        let commit = pb::CommitSinkTable {
            pipeline: pipeline.to_owned(),
            table_id: table.0,
            epoch: epoch.0,
            delivered: delivered.0,
            detail,
        };
        self.propose(C::CommitSinkTable(commit)).await.map(|_| ())
    }

    #[must_use]
    pub fn sink_tables(&self, pipeline: &str) -> Vec<(TableId, SinkTableState)> {
        self.with_state(|state| {
            let tables = state
                .control
                .sink_tables
                .iter()
                .filter(|((p, _), _)| p == pipeline);
            tables
                .map(|((_, table), state)| (*table, state.clone()))
                .collect()
        })
    }

    /// Every pipeline of which progress is stored.
    #[must_use]
    pub fn sink_pipelines(&self) -> BTreeSet<String> {
        self.with_state(|state| {
            let tables = state.control.sink_tables.keys();
            tables.map(|(pipeline, _)| pipeline.clone()).collect()
        })
    }

    /// Forgets the progress of a pipeline's sink tables.
    ///
    /// # Errors
    /// Not decided.
    pub async fn drop_pipeline(&self, pipeline: &str) -> Result<(), ControlError> {
        let drop = pb::DropPipeline {
            pipeline: pipeline.to_owned(),
        };
        self.propose(C::DropPipeline(drop)).await.map(|_| ())
    }

    /// When the events from an offset on were committed, microseconds since 1970: the least commit time of the
    /// block, segment or manifest that holds it. `None` at the tail.
    #[must_use]
    pub fn time_of(&self, stream: &str, offset: Offset) -> Option<i64> {
        self.with_state(|state| {
            let stream = state.journal.streams.get(stream)?;
            if let Some(manifest) = stream.manifest_of(offset) {
                return Some(manifest.time_min_us);
            }
            if offset < stream.sealed {
                let at = stream
                    .segments
                    .partition_point(|segment| segment.place.end <= offset);
                return stream.segments.get(at).map(|segment| segment.time_min_us);
            }
            let at = stream
                .unsealed
                .partition_point(|block| block.end() <= offset);
            stream.unsealed.get(at).map(|block| block.time_min_us)
        })
    }

    /// This node's number.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.config.node_id
    }

    /// Forgets a stream and deletes its objects.
    ///
    /// # Errors
    /// Not decided, or the store cannot delete now.
    pub async fn drop_stream(&self, stream: &str) -> Result<(), ControlError> {
        let drop = pb::DropStream {
            group: 0,
            stream: stream.to_owned(),
        };
        match self.propose(C::DropStream(drop)).await {
            Ok(_) | Err(ControlError::Invalid(_)) => {}
            Err(error) => return Err(error),
        }
        let unavailable = |error: StoreError| ControlError::Unavailable(error.to_string());
        // What of this name came since is not this one's.
        let last = self.with_state(|state| state.journal.dropped.get(stream).copied());
        let Some(last) = last else {
            return Ok(());
        };
        let prefix = format!("log/{stream}/");
        let mut after = None;
        loop {
            let keys = self.store().list(&prefix, after.as_deref()).await;
            let keys = keys.map_err(unavailable)?;
            let Some((last_key, _)) = keys.last() else {
                return Ok(());
            };
            after = Some(last_key.clone());
            for (key, _) in keys {
                if incarnation_of(&key, &prefix).is_some_and(|incarnation| incarnation <= last) {
                    self.store().delete(&key).await.map_err(unavailable)?;
                }
            }
        }
    }

    /// Every group of consumers.
    #[must_use]
    pub fn groups(&self) -> Vec<Group> {
        self.with_state(|state| state.groups.all().cloned().collect())
    }

    #[must_use]
    pub fn group(&self, source: &str, name: &str) -> Option<Group> {
        self.with_state(|state| state.groups.get(source, name).cloned())
    }

    /// Makes somebody the member of a group, which is made if it is not there: whoever was is fenced.
    ///
    /// # Errors
    /// The source has no log; or not decided.
    pub async fn take_group(
        &self,
        source: &str,
        name: &str,
        member: &str,
    ) -> Result<Group, ControlError> {
        let take = pb::TakeGroup {
            source: source.to_owned(),
            group: name.to_owned(),
            member: member.to_owned(),
        };
        match self.propose(C::TakeGroup(take)).await? {
            R::Group(group) => Ok(Group::from_pb(group)),
            other => Err(unexpected(&other)),
        }
    }

    /// Moves a group's cursor from where it was expected. `Some`: the member's epoch or the cursor are not the group's,
    /// which stands so.
    ///
    /// # Errors
    /// The log does not have the cursor, or the group went back; or not decided.
    pub async fn commit_group(
        &self,
        (source, name): (&str, &str),
        epoch: Epoch,
        expected: Option<Cursor>,
        cursor: Cursor,
    ) -> Result<Option<Group>, ControlError> {
        let commit = pb::CommitGroup {
            source: source.to_owned(),
            group: name.to_owned(),
            epoch: epoch.0,
            expected: expected.map(Cursor::to_pb),
            cursor: Some(cursor.to_pb()),
        };
        match self.propose(C::CommitGroup(commit)).await? {
            R::Done(_) => Ok(None),
            R::GroupRefused(group) => Ok(Some(Group::from_pb(group))),
            other => Err(unexpected(&other)),
        }
    }

    /// Forgets a group.
    ///
    /// # Errors
    /// Not decided.
    pub async fn drop_group(&self, source: &str, name: &str) -> Result<(), ControlError> {
        let dropped = pb::DropGroup {
            source: source.to_owned(),
            group: name.to_owned(),
        };
        self.propose(C::DropGroup(dropped)).await.map(|_| ())
    }

    /// A small replicated value under a name; `None` removes it.
    ///
    /// # Errors
    /// Not decided.
    pub async fn put_record(&self, key: &str, value: Option<Bytes>) -> Result<(), ControlError> {
        let record = pb::PutRecord {
            key: key.to_owned(),
            value: value.unwrap_or_default(),
            if_absent: false,
        };
        self.propose(C::PutRecord(record)).await.map(|_| ())
    }

    /// The value under a name, which is this one if there was none.
    ///
    /// # Errors
    /// Not decided.
    pub async fn record_or_put(&self, key: &str, value: Bytes) -> Result<Bytes, ControlError> {
        let record = pb::PutRecord {
            key: key.to_owned(),
            value: value.clone(),
            if_absent: true,
        };
        match self.propose(C::PutRecord(record)).await {
            Ok(_) => Ok(value),
            Err(ControlError::Conflict(reason)) => {
                self.record(key).ok_or(ControlError::Conflict(reason))
            }
            Err(error) => Err(error),
        }
    }

    #[must_use]
    pub fn record(&self, key: &str) -> Option<Bytes> {
        self.with_state(|state| state.control.records.get(key).cloned())
    }
}

/// An append, and where it ends.
fn append_of(command: &C) -> Option<(&pb::AppendBlocks, u64)> {
    let append = match command {
        C::AppendBlocks(append) => append,
        C::MoveSource(moved) => moved.append.as_ref()?,
        _ => return None,
    };
    let events: u64 = append.blocks.iter().map(|block| block.events).sum();
    Some((append, append.base_offset + events))
}

impl Node {
    /// Proposes an append until it is decided: over a change of leaders. It can be proposed again where its outcome is not
    /// known, since it fits the stream only once; an owner has one under way at a time, so that one that no longer fits a
    /// stream which ends where it would end has landed.
    async fn append_decided(&self, command: C) -> Result<R, ControlError> {
        let give_up = tokio::time::Instant::now() + APPEND_WITHIN;
        let mut is_first = true;
        loop {
            match self.propose(command.clone()).await {
                Ok(R::Rejected(rejected)) if !is_first => {
                    let landed = append_of(&command).is_some_and(|(append, end)| {
                        rejected.epoch == append.epoch
                            && rejected.next_offset == end
                            && rejected.position == append.position_after
                    });
                    return Ok(match landed {
                        true => R::Appended(pb::AppendDone {
                            next_offset: rejected.next_offset,
                        }),
                        false => R::Rejected(rejected),
                    });
                }
                Err(ControlError::Unavailable(reason))
                    if tokio::time::Instant::now() < give_up && self.fatal.borrow().is_none() =>
                {
                    tracing::debug!(reason, "an append is proposed again");
                    is_first = false;
                    tokio::time::sleep(LOOK_EVERY).await;
                }
                decided => return decided,
            }
        }
    }

    fn read_plan(
        &self,
        stream: &str,
        from: Offset,
        bytes_max: usize,
    ) -> Result<ReadPlan, ReadError> {
        self.with_state(|state| {
            let found = state.journal.streams.get(stream);
            let found = found.ok_or_else(|| ReadError::NoStream(stream.to_owned()))?;
            reader::plan(found, from, bytes_max)
        })
    }
}

/// Of an object of a stream: its key goes on with it.
fn incarnation_of(key: &str, prefix: &str) -> Option<Incarnation> {
    let (incarnation, _) = key.strip_prefix(prefix)?.split_once('-')?;
    incarnation.parse().ok().map(Incarnation)
}

fn folder_error(path: &std::path::Path) -> impl Fn(std::io::Error) -> NodeError + use<> {
    let path = path.to_owned();
    move |source| NodeError::Folder {
        path: path.clone(),
        source,
    }
}

fn unexpected(reply: &R) -> ControlError {
    ControlError::Invalid(format!("unexpected reply: {reply:?}"))
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

fn log_error(stream: &str, error: ControlError) -> LogError {
    match error {
        ControlError::Invalid(_) => LogError::NoStream(stream.to_owned()),
        ControlError::TooLarge { .. } => LogError::Limit {
            what: "a command",
            limit: COMMAND_BYTES_MAX as u64,
        },
        other => LogError::Unavailable(other.to_string()),
    }
}

#[async_trait]
impl Log for Node {
    async fn open(
        &self,
        stream: &str,
        start: Option<SourcePosition>,
        identity: Bytes,
    ) -> Result<StreamState, LogError> {
        let open = pb::OpenStream {
            group: 0,
            stream: stream.to_owned(),
            node_id: self.config.node_id,
            start: start.as_ref().map(SourcePosition::to_pb),
            identity,
        };
        let opened = self.propose(C::OpenStream(open)).await;
        let opened = opened.map_err(|error| log_error(stream, error))?;
        let state = self
            .state(stream)
            .ok_or_else(|| LogError::NoStream(stream.to_owned()))?;
        let R::Opened(opened) = opened else {
            return Err(LogError::Unavailable(unexpected(&opened).to_string()));
        };
        // Another owner may have opened it since, and its epoch is not this one's.
        Ok(StreamState {
            epoch: Epoch(opened.epoch),
            ..(*state).clone()
        })
    }

    async fn append(&self, append: Append) -> Result<Appended, AppendError> {
        let inline = check_inline(&append)?;
        if inline > 0 {
            let waiting = self.with_state(|state| state.journal.unsealed_bytes());
            if waiting + inline > self.config.unsealed_bytes_max {
                let reason = self
                    .store_problem()
                    .unwrap_or_else(|| "segments are being written".into());
                return Err(LogError::Unavailable(format!(
                    "{} MiB wait for the object store: {reason}",
                    waiting >> 20
                ))
                .into());
            }
        }
        let stream = append.stream.clone();
        let moved = append.moved.clone();
        let append = append_command(append);
        let command = match moved {
            None => C::AppendBlocks(append),
            Some(Moved { identity, anew }) => C::MoveSource(pb::MoveSource {
                append: Some(append),
                identity,
                anew,
            }),
        };
        let reply = self.append_decided(command).await;
        match reply.map_err(|error| log_error(&stream, error))? {
            R::Appended(done) => Ok(Appended {
                next: Offset(done.next_offset),
            }),
            R::Rejected(rejected) => Err(AppendError::Rejected {
                epoch: Epoch(rejected.epoch),
                next: Offset(rejected.next_offset),
                position: SourcePosition::from_field(rejected.position.as_ref())
                    .map_err(|e| LogError::Unavailable(format!("the reply has {e}")))?,
            }),
            other => Err(LogError::Unavailable(format!("unexpected reply: {other:?}")).into()),
        }
    }

    fn seal_soon(&self, stream: &str) {
        let leader = self.raft.metrics().borrow().current_leader;
        let address = leader.and_then(|leader| self.raft_address(leader));
        if leader == Some(self.config.node_id) {
            return self.note_seal_soon(stream);
        }
        // It is a wish: where it is lost the stream is sealed when it is old enough.
        if let (Some(leader), Some(address)) = (leader, address)
            && let Ok(mut client) = self.peers.client(&address)
        {
            let request = pb::SealSoonRequest {
                envelope: self.peers.envelope(leader),
                stream: stream.to_owned(),
            };
            tokio::spawn(async move { client.seal_soon(request).await });
        }
    }

    fn state(&self, stream: &str) -> Option<Arc<StreamState>> {
        self.with_state(|state| state.states.get(stream).cloned())
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    async fn read(
        &self,
        stream: &str,
        from: Offset,
        bytes_max: usize,
    ) -> Result<Vec<StoredBlock>, ReadError> {
        loop {
            let plan = match self.read_plan(stream, from, bytes_max) {
                // Another node has shown it to whoever asks.
                Err(ReadError::PastEnd { .. }) if self.read_index().await.is_ok() => {
                    self.read_plan(stream, from, bytes_max)?
                }
                plan => plan?,
            };
            let read = reader::execute(&plan, &self.segments, from, bytes_max).await;
            // Merged or trimmed since the plan was made: it is somewhere else now, also where this node is behind.
            if let Err(ReadError::Store(StoreError::NotFound(_))) = &read
                && self.read_index().await.is_ok()
                && self.read_plan(stream, from, bytes_max)? != plan
            {
                continue;
            }
            return read;
        }
    }

    async fn offset_at_time(&self, stream: &str, time_us: i64) -> Result<Offset, ReadError> {
        // Commit times need not ascend: the first segment that reaches the time is looked through.
        let (manifest, late, trimmed, end) = self.with_state(|state| {
            let found = state.journal.streams.get(stream);
            let found = found.ok_or_else(|| ReadError::NoStream(stream.to_owned()))?;
            let mut manifests = found.manifests.iter();
            let mut segments = found.segments.iter();
            let late = segments.find(|segment| segment.time_max_us >= time_us);
            Ok::<_, ReadError>((
                manifests
                    .find(|m| m.time_max_us >= time_us && m.end > found.trimmed)
                    .cloned(),
                late.map_or(found.sealed, |segment| segment.place.base),
                found.trimmed,
                found.next,
            ))
        })?;
        let mut from = late;
        if let Some(manifest) = manifest {
            let listed = self.segments.manifest(&manifest).await?;
            let mut listed = listed.iter();
            let late = listed.find(|s| s.time_max_us >= time_us && s.place.end > trimmed);
            from = late.map_or(manifest.end, |segment| segment.place.base);
        }
        from = from.max(trimmed);
        while from < end {
            for block in self.read(stream, from, 4 << 20).await? {
                if let Some(offset) = reader::transaction_at(&block, time_us) {
                    return Ok(offset);
                }
                from = block.end();
            }
        }
        Ok(end)
    }

    fn objects(&self) -> Arc<dyn ObjectStore> {
        Arc::clone(&self.config.store)
    }
}

/// Bytes that would travel inline.
fn check_inline(append: &Append) -> Result<u64, LogError> {
    let mut total = 0;
    for payload in &append.payloads {
        let Payload::Inline(block) = payload else {
            continue;
        };
        if block.frame.len() > INLINE_BLOCK_BYTES_MAX {
            return Err(LogError::Limit {
                what: "an inline block",
                limit: INLINE_BLOCK_BYTES_MAX as u64,
            });
        }
        total += block.frame.len();
    }
    if total > INLINE_APPEND_BYTES_MAX {
        return Err(LogError::Limit {
            what: "an inline append",
            limit: INLINE_APPEND_BYTES_MAX as u64,
        });
    }
    Ok(total as u64)
}

fn append_command(append: Append) -> pb::AppendBlocks {
    use pb::block_payload::Payload as Stored;
    let block = |payload: Payload| match payload {
        Payload::Inline(block) => pb::BlockPayload {
            events: u64::from(block.events),
            time_min_us: block.time_min_us,
            time_max_us: block.time_max_us,
            table_ids: block.tables.iter().map(|table| table.0).collect(),
            payload: Some(Stored::Inline(block.frame)),
        },
        Payload::Object {
            object,
            events,
            time_min_us,
            time_max_us,
        } => pb::BlockPayload {
            events,
            time_min_us,
            time_max_us,
            table_ids: Vec::new(),
            payload: Some(Stored::Object(object.to_pb())),
        },
    };
    pb::AppendBlocks {
        group: 0,
        stream: append.stream,
        incarnation: append.incarnation.0,
        epoch: append.epoch.0,
        base_offset: append.base.0,
        position_before: append.position_before.as_ref().map(SourcePosition::to_pb),
        position_after: append.position_after.as_ref().map(SourcePosition::to_pb),
        schemas: append.schemas.iter().map(|schema| schema.to_pb()).collect(),
        chunks_done: append
            .chunks_done
            .into_iter()
            .map(|chunk| pb::ChunkDone {
                table_id: chunk.table.0,
                generation: chunk.generation,
                resume_after: chunk.resume_after,
                rows: chunk.rows,
                last: chunk.last,
            })
            .collect(),
        blocks: append.payloads.into_iter().map(block).collect(),
    }
}
