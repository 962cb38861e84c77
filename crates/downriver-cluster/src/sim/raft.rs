//! Raft on our own stores: messages that are lost, late or doubled, nodes that lose their power, disks that fail to sync.
//! Time is the runtime's, which stands still as long as anything can go on: seconds cost nothing.
//!
//! What a seed decides is what is done and when; which message it hits is up to openraft, whose own chance is not ours.
//! `DOWNRIVER_SEEDS` runs that many seeds, `DOWNRIVER_SEED` begins with that one; a single one says what happens.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use downriver_api::cluster::v1 as pb;
use downriver_api::cluster::v1::command::Kind as C;
use downriver_api::cluster::v1::command_reply::Kind as R;
use openraft::error::{InstallSnapshotError, RPCError, RaftError, RemoteError, Unreachable};
use openraft::network::{RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    VoteRequest, VoteResponse,
};
use openraft::{AnyError, BasicNode, Raft, SnapshotPolicy};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::disk::Disk;
use crate::TypeConfig;
use crate::state::FORMAT;
use crate::store::{LogStore, Shared, StateMachine};
use crate::wire::Wire;

const LOST: &str = "what was acknowledged is lost";
const APART: &str = "the nodes have applied different things";
const STANDS: &str = "the nodes do not converge";

const SEEDS: u64 = 60;
const NODES: u64 = 3;
const STEPS: u32 = 150;
const SNAPSHOT_EVERY: u64 = 20;
const ANSWERED_WITHIN: Duration = Duration::from_secs(3);
/// How long everything may take to be as if nothing had happened.
const CONVERGE: Duration = Duration::from_secs(60);

/// What the network does, by who sends to whom.
#[derive(Default)]
struct Hub {
    nodes: BTreeMap<u64, Raft<TypeConfig>>,
    cut: BTreeSet<(u64, u64)>,
    /// Of a hundred messages.
    lost: u32,
    late: u32,
    doubled: u32,
    random: Option<StdRng>,
}

impl Hub {
    fn chance(&mut self, of_hundred: u32) -> bool {
        let random = self.random.as_mut().unwrap();
        random.random_ratio(of_hundred, 100)
    }

    fn delay(&mut self) -> Duration {
        let random = self.random.as_mut().unwrap();
        Duration::from_millis(random.random_range(50..1_500))
    }
}

#[derive(Clone)]
struct Network {
    hub: Arc<Mutex<Hub>>,
    from: u64,
}

struct Peer {
    network: Network,
    to: u64,
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Peer;

    async fn new_client(&mut self, target: u64, _node: &BasicNode) -> Peer {
        Peer {
            network: self.clone(),
            to: target,
        }
    }
}

impl Peer {
    /// What comes back of a call; `None`: nothing.
    async fn call<Q, A, F>(&self, request: Q, ask: impl Fn(Raft<TypeConfig>, Q) -> F) -> Option<A>
    where
        Q: Clone,
        A: Send + 'static,
        F: Future<Output = A> + Send + 'static,
    {
        let (node, late, doubled) = {
            let mut hub = self.network.hub.lock().unwrap();
            let (lost, late, doubled) = (hub.lost, hub.late, hub.doubled);
            let is_cut = hub.cut.contains(&(self.network.from, self.to));
            if is_cut || hub.chance(lost) {
                return None;
            }
            let node = hub.nodes.get(&self.to)?.clone();
            let late = hub.chance(late).then(|| hub.delay());
            let doubled = hub.chance(doubled).then(|| hub.delay());
            (node, late, doubled)
        };
        if let Some(doubled) = doubled {
            let again = ask(node.clone(), request.clone());
            tokio::spawn(async move {
                sleep(doubled).await;
                again.await
            });
        }
        let asked = ask(node, request);
        let answer = match late {
            // Whoever waits gives up, and it arrives all the same.
            Some(late) => {
                let arrives = tokio::spawn(async move {
                    sleep(late).await;
                    asked.await
                });
                arrives.await.ok()?
            }
            None => asked.await,
        };
        let mut hub = self.network.hub.lock().unwrap();
        let lost = hub.lost;
        let is_cut = hub.cut.contains(&(self.to, self.network.from));
        (!is_cut && !hub.chance(lost)).then_some(answer)
    }
}

type Failed<E> = RPCError<u64, BasicNode, RaftError<u64, E>>;

/// A caller whose message or answer is lost waits as long as it would.
async fn answered<T, E: std::error::Error>(
    to: u64,
    option: &RPCOption,
    answer: impl Future<Output = Option<Result<T, RaftError<u64, E>>>>,
) -> Result<T, Failed<E>> {
    match answer.await {
        Some(Ok(answer)) => Ok(answer),
        Some(Err(error)) => Err(RPCError::RemoteError(RemoteError::new(to, error))),
        None => {
            sleep(option.hard_ttl()).await;
            Err(RPCError::Unreachable(Unreachable::new(&AnyError::error(
                "no answer",
            ))))
        }
    }
}

impl RaftNetwork<TypeConfig> for Peer {
    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<u64>, Failed<openraft::error::Infallible>> {
        let call = self.call(request, |node, request| async move {
            let answer = node.append_entries(request).await;
            answer.map_err(|error| {
                error
                    .into_fatal()
                    .map_or_else(|| unreachable!(), RaftError::Fatal)
            })
        });
        answered(self.to, &option, call).await
    }

    async fn install_snapshot(
        &mut self,
        request: InstallSnapshotRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<InstallSnapshotResponse<u64>, Failed<InstallSnapshotError>> {
        let call = self.call(request, |node, request| async move {
            node.install_snapshot(request).await
        });
        answered(self.to, &option, call).await
    }

    async fn vote(
        &mut self,
        request: VoteRequest<u64>,
        option: RPCOption,
    ) -> Result<VoteResponse<u64>, Failed<openraft::error::Infallible>> {
        let call = self.call(request, |node, request| async move {
            let answer = node.vote(request).await;
            answer.map_err(|error| {
                error
                    .into_fatal()
                    .map_or_else(|| unreachable!(), RaftError::Fatal)
            })
        });
        answered(self.to, &option, call).await
    }
}

/// A node while it is up.
struct Up {
    raft: Raft<TypeConfig>,
    applied: Arc<Shared>,
    folder: PathBuf,
}

struct World {
    random: StdRng,
    hub: Arc<Mutex<Hub>>,
    folder: tempfile::TempDir,
    disks: BTreeMap<u64, Disk>,
    up: BTreeMap<u64, Up>,
    /// Of nodes that are down: where their snapshots lie.
    down: BTreeMap<u64, PathBuf>,
    lives: u32,
    written: u64,
    /// Under way; the key that is in the log, once it is known to be there.
    writes: JoinSet<Option<String>>,
    acknowledged: BTreeSet<String>,
    faults: BTreeMap<&'static str, u32>,
    /// A single seed says what happens.
    tells: bool,
}

impl World {
    async fn new(seed: u64) -> Self {
        let mut world = Self {
            random: StdRng::seed_from_u64(seed),
            hub: Arc::default(),
            folder: tempfile::tempdir().unwrap(),
            disks: (1..=NODES).map(|id| (id, Disk::default())).collect(),
            up: BTreeMap::new(),
            down: BTreeMap::new(),
            lives: 0,
            written: 0,
            writes: JoinSet::new(),
            acknowledged: BTreeSet::new(),
            faults: BTreeMap::new(),
            tells: number("DOWNRIVER_SEEDS") == Some(1),
        };
        world.hub.lock().unwrap().random = Some(StdRng::seed_from_u64(!seed));
        for id in 1..=NODES {
            world.start(id).await;
        }
        let members: BTreeMap<u64, BasicNode> =
            (1..=NODES).map(|id| (id, BasicNode::default())).collect();
        world.up[&1].raft.initialize(members).await.unwrap();
        world
    }

    fn note(&mut self, fault: &'static str) {
        if self.tells {
            println!("{fault}");
        }
        *self.faults.entry(fault).or_default() += 1;
    }

    async fn start(&mut self, id: u64) {
        self.lives += 1;
        // What is left of an earlier life may still write into its own folder.
        let folder = self.folder.path().join(self.lives.to_string());
        std::fs::create_dir(&folder).unwrap();
        if let Some(before) = self.down.remove(&id) {
            for file in std::fs::read_dir(before).unwrap().flatten() {
                let is_snapshot = file.path().extension().is_some_and(|it| it == "snapshot");
                if is_snapshot {
                    std::fs::copy(file.path(), folder.join(file.file_name())).unwrap();
                }
            }
        }
        let disk = self.disks[&id].now();
        let log =
            LogStore::open_with(&folder, |builder| builder.create_with_backend(disk)).unwrap();
        let state = StateMachine::open(&folder).unwrap();
        let applied = state.shared();
        let purged = log.purged().unwrap().map(|id| id.index);
        assert!(
            purged <= applied.snapshot_index(),
            "the log was cut behind what the snapshot has"
        );
        let config = openraft::Config {
            heartbeat_interval: 200,
            election_timeout_min: 600,
            election_timeout_max: 1_000,
            install_snapshot_timeout: 2_000,
            snapshot_max_chunk_size: 512,
            snapshot_policy: SnapshotPolicy::LogsSinceLast(SNAPSHOT_EVERY),
            replication_lag_threshold: 2 * SNAPSHOT_EVERY,
            max_in_snapshot_log_to_keep: u64::MAX,
            ..openraft::Config::default()
        };
        let network = Network {
            hub: Arc::clone(&self.hub),
            from: id,
        };
        let log = log.applied_to(Arc::clone(&applied));
        let raft = Raft::new(id, Arc::new(config), network, log, state);
        let raft = raft.await.unwrap();
        self.hub.lock().unwrap().nodes.insert(id, raft.clone());
        self.up.insert(
            id,
            Up {
                raft,
                applied,
                folder,
            },
        );
    }

    async fn lose_power(&mut self, id: u64) {
        let Some(up) = self.up.remove(&id) else {
            return;
        };
        self.note("power");
        self.hub.lock().unwrap().nodes.remove(&id);
        self.disks[&id].lose_power(&mut self.random);
        let _ = up.raft.shutdown().await;
        self.down.insert(id, up.folder);
    }

    fn some(&mut self) -> u64 {
        self.random.random_range(1..=NODES)
    }

    fn write(&mut self) {
        let id = self.some();
        let Some(up) = self.up.get(&id) else {
            return;
        };
        let key = self.written.to_string();
        self.written += 1;
        let put = pb::PutRecord {
            key: key.clone(),
            value: Bytes::from(vec![b'x'; self.random.random_range(1..2_000)]),
            if_absent: true,
        };
        let entry = pb::Entry {
            format: FORMAT,
            commands: vec![pb::Command {
                kind: Some(C::PutRecord(put)),
            }],
        };
        let raft = up.raft.clone();
        self.writes.spawn(async move {
            let written = timeout(ANSWERED_WITHIN, raft.client_write(Wire(entry))).await;
            let Wire(reply) = written.ok()?.ok()?.data;
            matches!(reply.replies[0].kind, Some(R::Done(_))).then_some(key)
        });
    }

    /// For whoever looks into one seed.
    fn tell(&self) {
        for (id, up) in &self.up {
            let metrics = up.raft.metrics().borrow().clone();
            println!("n{id} {metrics}");
        }
        println!("acknowledged: {:?}", self.acknowledged);
    }

    async fn step(&mut self) {
        if self.tells {
            self.tell();
        }
        match self.random.random_range(0..100) {
            0..50 => {
                for _ in 0..self.random.random_range(1..10) {
                    self.write();
                }
            }
            50..54 => {
                let id = self.some();
                self.lose_power(id).await;
            }
            54..55 => {
                for id in 1..=NODES {
                    self.lose_power(id).await;
                }
            }
            55..72 => {
                if let Some(id) = self.down.keys().next().copied() {
                    self.start(id).await;
                }
            }
            72..74 => {
                let id = self.some();
                if self.up.contains_key(&id) {
                    self.note("sync");
                    self.disks[&id].fail_next_sync();
                }
            }
            74..79 => {
                let (from, to) = (self.some(), self.some());
                if from != to {
                    self.note("cut");
                    self.hub.lock().unwrap().cut.insert((from, to));
                }
            }
            79..88 => self.hub.lock().unwrap().cut.clear(),
            88..91 => {
                self.note("messages");
                let mut hub = self.hub.lock().unwrap();
                hub.lost = self.random.random_range(0..10);
                hub.late = self.random.random_range(0..10);
                hub.doubled = self.random.random_range(0..20);
            }
            _ => {
                let id = self.some();
                if let Some(up) = self.up.get(&id)
                    && let Some(index) = up.applied.snapshot_index()
                {
                    let _ = up.raft.trigger().purge_log(index).await;
                    self.note("cut logs");
                }
            }
        }
        sleep(Duration::from_millis(self.random.random_range(10..400))).await;
        self.look().await;
    }

    async fn look(&mut self) {
        while let Some(written) = self.writes.try_join_next() {
            self.acknowledged.extend(written.unwrap());
        }
        let mut failed = Vec::new();
        for (id, up) in &self.up {
            let metrics = up.raft.metrics().borrow().clone();
            if let Err(error) = metrics.running_state {
                assert!(
                    self.disks[id].has_failed(),
                    "n{id} failed on a disk that did not: {error}"
                );
                failed.push(*id);
            }
        }
        // As the process does: what the disk did not take ends it.
        for id in failed {
            self.lose_power(id).await;
        }
    }

    async fn converge(&mut self) {
        {
            let mut hub = self.hub.lock().unwrap();
            hub.cut.clear();
            (hub.lost, hub.late, hub.doubled) = (0, 0, 0);
        }
        let since = Instant::now();
        let before = self.acknowledged.len();
        loop {
            for id in 1..=NODES {
                if !self.up.contains_key(&id) {
                    self.start(id).await;
                }
            }
            self.write();
            sleep(Duration::from_millis(500)).await;
            self.look().await;
            let applied = |up: &Up| up.raft.metrics().borrow().last_applied;
            let ends: BTreeSet<_> = self.up.values().map(applied).collect();
            let all_are_up = self.up.len() as u64 == NODES && self.writes.is_empty();
            if all_are_up && ends.len() == 1 && self.acknowledged.len() > before {
                break;
            }
            assert!(since.elapsed() < CONVERGE, "{STANDS}");
        }
        let state = |up: &Up| format!("{:?}", up.applied.replicated.read().unwrap());
        let states: BTreeSet<String> = self.up.values().map(state).collect();
        assert_eq!(states.len(), 1, "{APART}");
        let first = self.up[&1].applied.replicated.read().unwrap();
        for key in &self.acknowledged {
            assert!(first.control.records.contains_key(key), "{LOST}");
        }
    }
}

/// How many writes were acknowledged, and what was done to the nodes.
fn run(seed: u64) -> (usize, BTreeMap<&'static str, u32>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut world = World::new(seed).await;
        for _ in 0..STEPS {
            world.step().await;
        }
        world.converge().await;
        for up in world.up.values() {
            let _ = up.raft.shutdown().await;
        }
        (world.acknowledged.len(), world.faults)
    })
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn whatever_fails_nothing_that_was_acknowledged_is_lost_and_all_nodes_agree() {
    let mut acknowledged = 0;
    let mut faults: BTreeMap<&str, u32> = BTreeMap::new();
    let first = number("DOWNRIVER_SEED").unwrap_or_default();
    let seeds = number("DOWNRIVER_SEEDS").unwrap_or(SEEDS);
    for seed in first..first + seeds {
        println!("seed {seed}");
        let (written, done) = run(seed);
        acknowledged += written as u64;
        for (fault, times) in done {
            *faults.entry(fault).or_default() += times;
        }
    }
    println!("{seeds} seeds: {acknowledged} writes acknowledged; {faults:?}");
    if seeds >= SEEDS {
        assert!(acknowledged > 20 * seeds, "only {acknowledged} writes");
        assert_eq!(faults.len(), 5, "{faults:?}");
    }
}

#[cfg(feature = "planted-bugs")]
#[test]
fn each_planted_bug_of_the_raft_log_is_found_by_what_watches_for_it() {
    use downriver_event::planted::Bug;
    super::planted::each_is_found(
        &[
            (Bug::NoSync, &[LOST, APART]),
            // A node that has forgotten its vote may also stand in the way of every leader.
            (Bug::NoVoteSync, &[LOST, APART, STANDS]),
            (Bug::WriteErrorIgnored, &[LOST, APART]),
        ],
        |seed| {
            run(seed);
        },
    );
}
