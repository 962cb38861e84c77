//! One seed's world: a log that grows, owners on a few nodes, of whom the newest is the right one, and somebody who has no
//! business with the table.

mod stranger;

use std::collections::BTreeMap;
use std::sync::Arc;

use downriver_event::change::ChangePolicies;
use downriver_event::{EndedIncarnations, Epoch, Incarnation, Offset};
use downriver_lake::catalog::BuiltinCatalog;
use downriver_lake::{LakeError, TableConfig, TableWriter, Warehouse};
use downriver_log::store::LocalStore;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::far::{FarCatalog, FarRegistry, FarStore, Registry, table_name};
use crate::faults::Faults;
use crate::history::{History, NOT_THE_FOLD, STOPPED, UNNOTICED};
use crate::log::SourceLog;
use crate::owner::{self, Act, Acted, Done, Mind, Owner};

const NODES: usize = 3;
const STEPS: u32 = 60;
/// Steps after a foreign change.
const STEPS_AFTER: u32 = 10;
/// Of an owner without faults: an earlier commit may still land, once for each.
const TRIES: u32 = 5;

/// What the cluster keeps of the table beside it.
#[derive(Debug, Default)]
struct Progress {
    epoch: u64,
    delivered: Offset,
    committed: Option<Offset>,
    /// It is never kept.
    is_lost: bool,
}

/// What a seed came to.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) trace: Vec<String>,
    pub(crate) counts: BTreeMap<String, u64>,
}

struct World {
    folder: tempfile::TempDir,
    random: StdRng,
    log: SourceLog,
    faults: Arc<Faults>,
    near: BuiltinCatalog,
    catalog: Arc<FarCatalog>,
    /// As owners reach it.
    warehouse: Warehouse,
    history: History,
    progress: Progress,
    /// In the order of their epochs; the last one is the right one, if the newest is still there.
    owners: Vec<(Owner, Mind)>,
    is_foreign: bool,
    /// How often it is anybody's turn, not the right owner's.
    zeal: f64,
    /// Old snapshots are to expire as soon as they may.
    is_forgetful: bool,
}

pub(crate) async fn run(seed: u64) -> Report {
    let mut world = World::new(seed);
    let mut foreign = world.random.random_bool(0.3).then(|| {
        let at = world.random.random_range(15..STEPS);
        (at, world.random.random_bool(0.5))
    });
    let mut steps = STEPS;
    let mut step = 0;
    while step < steps {
        step += 1;
        world.step().await;
        world.forget().await;
        world.history.look(&world.log).await;
        let due = foreign.take_if(|(at, _)| *at <= step);
        if let Some((_, rolls_back)) = due {
            if world.interfere(rolls_back).await {
                steps = step + STEPS_AFTER;
            } else {
                foreign = Some((step + 1, rolls_back));
            }
        }
    }
    world.end().await;
    Report {
        trace: world.history.trace,
        counts: world.faults.counts(),
    }
}

impl World {
    fn new(seed: u64) -> Self {
        // Memory, where there is some for files: nothing of this is to be kept.
        let in_memory = std::path::Path::new("/dev/shm");
        let folder = if in_memory.is_dir() {
            tempfile::tempdir_in(in_memory)
        } else {
            tempfile::tempdir()
        };
        let folder = folder.unwrap();
        let open = || LocalStore::open(&folder.path().join("warehouse")).unwrap();
        let (near_spool, spool) = (folder.path().join("near"), folder.path().join("spool"));
        let near_warehouse = Warehouse::open(Arc::new(open()), &near_spool).unwrap();
        let faults = Arc::new(Faults::new(seed));
        let store = FarStore {
            inner: open(),
            faults: Arc::clone(&faults),
        };
        let warehouse = Warehouse::open(Arc::new(store), &spool).unwrap();
        let registry = Arc::new(Registry::default());
        let near = BuiltinCatalog::new("lake", near_warehouse.clone(), registry.clone());
        let far = FarRegistry {
            near: near.clone(),
            registry: Arc::clone(&registry),
            faults: Arc::clone(&faults),
        };
        let catalog = FarCatalog {
            inner: BuiltinCatalog::new("lake", near_warehouse.clone(), Arc::new(far)),
            near: near.clone(),
            registry: Arc::clone(&registry),
            faults: Arc::clone(&faults),
        };
        let mut random = StdRng::seed_from_u64(seed);
        let is_forgetful = random.random_bool(0.5);
        let zeal = random.random_range(0.1..0.9);
        Self {
            history: History::new(registry, near.clone(), near_warehouse),
            progress: Progress {
                is_lost: random.random_bool(0.25),
                ..Progress::default()
            },
            random,
            log: SourceLog::default(),
            faults,
            near,
            catalog: Arc::new(catalog),
            warehouse,
            owners: Vec::new(),
            is_foreign: false,
            is_forgetful,
            zeal,
            folder,
        }
    }

    fn say(&mut self, what: impl Into<String>) {
        self.history.say(what.into());
    }

    async fn step(&mut self) {
        match self.random.random_range(0..100) {
            0..18 => {
                self.log.grow(&mut self.random);
                self.say(format!("the log ends at {}", self.log.end()));
            }
            18..22 => self.catalog.arrive(false).await,
            22..25 => {
                if let Some(at) = self.some_owner() {
                    self.owners.remove(at);
                    self.say(format!("owner {at} crashes"));
                }
            }
            25..33 => self.take_over().await,
            _ if self.random.random_bool(self.zeal) => {
                if let Some(at) = self.some_owner() {
                    self.act(at).await;
                }
            }
            _ => match self.owners.last() {
                // Who does not answer is replaced.
                Some((_, Mind::Asleep(..))) if self.random.random_bool(0.5) => {
                    self.take_over().await;
                }
                Some((newest, _)) if newest.epoch == self.progress.epoch => {
                    self.act(self.owners.len() - 1).await;
                }
                _ => self.take_over().await,
            },
        }
    }

    fn some_owner(&mut self) -> Option<usize> {
        let count = self.owners.len();
        (count > 0).then(|| self.random.random_range(0..count))
    }

    /// The next owner opens the table, on a node where nobody else is then.
    async fn take_over(&mut self) {
        let node = self.random.random_range(0..NODES);
        self.owners.retain(|(owner, _)| owner.node != node);
        self.progress.epoch += 1;
        let known = self.progress.committed;
        let config = TableConfig {
            name: table_name(),
            pipeline: "p".into(),
            stream: "shop/1".into(),
            incarnation: Incarnation(1),
            ended: EndedIncarnations::default(),
            epoch: Epoch(self.progress.epoch),
            start: Offset(0),
            claim: None,
            committed: known,
            schema_changes: ChangePolicies::default(),
            folder: self.folder.path().join(format!("node {node}")),
        };
        let delivered = known.map_or(Offset(0), |_| self.progress.delivered);
        let (catalog, warehouse) = (self.catalog.clone(), self.warehouse.clone());
        let versions = self.log.versions();
        let act =
            owner::open(
                async move { TableWriter::open(catalog, warehouse, config, &versions).await },
            );
        self.say(format!("epoch {} opens on {node}", self.progress.epoch));
        let owner = Owner {
            epoch: self.progress.epoch,
            node,
            delivered,
            applied: delivered,
            base: None,
        };
        self.attend(owner, act).await;
    }

    /// An owner goes on with what it was about, or with the next.
    async fn act(&mut self, at: usize) {
        let (owner, mind) = self.owners.remove(at);
        let epoch = owner.epoch;
        match mind {
            Mind::Asleep(act, gate) => {
                self.say(format!("epoch {epoch} wakes up"));
                gate.notify_one();
                self.attend(owner, act).await;
                if self.random.random_bool(0.5) {
                    self.hurry(epoch).await;
                }
            }
            Mind::Awake(writer) => {
                let applied = owner.applied;
                let to = self.random.random_bool(0.6);
                let to = to.then(|| self.log.some_end(applied, &mut self.random));
                self.go_on(owner, *writer, to).await;
            }
        }
    }

    /// Who wakes up does not know that time went by: it applies and commits before anybody else does anything.
    async fn hurry(&mut self, epoch: u64) {
        for to in [Some(self.log.end()), None] {
            let at = self.owners.iter().position(|(o, _)| o.epoch == epoch);
            let awake = at.filter(|at| matches!(self.owners[*at].1, Mind::Awake(_)));
            let Some(at) = awake else { return };
            if let (owner, Mind::Awake(writer)) = self.owners.remove(at) {
                self.go_on(owner, *writer, to).await;
            }
        }
    }

    /// Applies, or commits what was applied.
    async fn go_on(&mut self, owner: Owner, writer: TableWriter, to: Option<Offset>) {
        let applied = owner.applied;
        let act = match to {
            Some(to) => {
                let read = self.log.read(applied, to);
                let spills = self.random.random_bool(0.3);
                owner::apply(writer, read, SourceLog::schemas(), to, spills)
            }
            None => owner::commit(writer, applied),
        };
        self.attend(owner, act).await;
    }

    /// Drives an act until it is done or asleep.
    async fn attend(&mut self, mut owner: Owner, mut act: Act) {
        let acted = tokio::select! {
            biased;
            acted = &mut act => Some(acted),
            () = self.faults.asleep.notified() => None,
        };
        let Some(Acted { writer, done }) = acted else {
            let gate = self.faults.take_gate();
            self.say(format!("epoch {} falls asleep", owner.epoch));
            self.keep(owner, Mind::Asleep(act, gate));
            return;
        };
        self.say(format!("epoch {}: {}", owner.epoch, told(&done)));
        self.history.look(&self.log).await;
        let done = match done {
            Ok(done) => done,
            Err(error) => return self.fail(owner.epoch, &error),
        };
        let writer = writer.expect("it is lost with an error only");
        if !matches!(done, Done::Applied(_) | Done::Committed(_, false)) {
            owner.base = self.history.main;
        }
        match done {
            Done::Opened => {
                self.history.has_owner(owner.epoch);
                owner.delivered = owner.delivered.max(writer.committed());
                owner.applied = owner.delivered;
            }
            Done::Applied(to) => owner.applied = to,
            Done::Committed(to, wrote) => {
                owner.delivered = owner.delivered.max(to);
                if (wrote || self.random.random_bool(0.5)) && !self.store(&owner, &writer) {
                    return;
                }
            }
        }
        self.keep(owner, Mind::Awake(Box::new(writer)));
    }

    fn keep(&mut self, owner: Owner, mind: Mind) {
        let before = |(other, _): &(Owner, Mind)| other.epoch < owner.epoch;
        let at = self.owners.partition_point(before);
        self.owners.insert(at, (owner, mind));
    }

    /// Stores the progress. False: it could not be, and the owner begins anew.
    fn store(&mut self, owner: &Owner, writer: &TableWriter) -> bool {
        if self.random.random_bool(0.05) || owner.epoch < self.progress.epoch {
            return false;
        }
        if !self.progress.is_lost {
            self.progress.delivered = self.progress.delivered.max(owner.delivered);
            self.progress.committed = self.progress.committed.max(Some(writer.committed()));
        }
        true
    }

    /// An owner that failed is gone; whether it may fail so.
    fn fail(&mut self, epoch: u64, error: &LakeError) {
        self.faults.count(match error {
            LakeError::Fenced(_) => "fenced".to_owned(),
            LakeError::Stopped(problem) => problem.code.to_owned(),
            _ if error.is_transient() => "begins anew".to_owned(),
            _ => "other errors".to_owned(),
        });
        let is_due = match error {
            LakeError::Fenced(by) => by.0 > epoch,
            LakeError::Stopped(problem) => self.is_foreign && problem.code == "DR-3010",
            // The files that a former owner goes by may have gone with the snapshots that needed them.
            LakeError::Store(_) | LakeError::Iceberg(_) | LakeError::Parquet(_) => {
                error.is_transient() || epoch < self.progress.epoch
            }
            _ => error.is_transient(),
        };
        assert!(is_due, "{STOPPED}: {error:?}");
    }

    /// Nothing goes wrong any more: the table becomes what the whole log makes of it, or everybody has stopped.
    async fn end(&mut self) {
        self.faults.end();
        self.catalog.arrive(true).await;
        self.history.look(&self.log).await;
        for _ in 0..TRIES {
            self.take_over().await;
            let Some((newest, _)) = self.owners.last() else {
                continue;
            };
            if newest.epoch != self.progress.epoch {
                continue;
            }
            assert!(!self.is_foreign, "{UNNOTICED}: an owner has the table");
            break;
        }
        if self.is_foreign {
            let stopped = self.faults.counts().get("DR-3010").copied();
            assert!(stopped.is_some(), "{UNNOTICED}: nobody stopped");
            return;
        }
        let newest = self.owners.pop();
        let (newest, mind) = newest.expect("an owner that nothing disturbs");
        let Mind::Awake(mut writer) = mind else {
            panic!("an owner sleeps that nothing disturbs");
        };
        let end = self.log.end();
        for (changes, range) in self.log.read(newest.applied, end) {
            let applied = writer.apply(&changes, range, &SourceLog::schemas()).await;
            applied.unwrap_or_else(|error| panic!("{STOPPED}: {error:?}"));
        }
        let committed = writer.commit(end).await;
        let wrote = committed.unwrap_or_else(|error| panic!("{STOPPED}: {error:?}"));
        self.history.look(&self.log).await;
        let now = self.history.now().await.expect("the table");
        let snapshot = now.current_snapshot_id().expect("a snapshot");
        let rows = self.log.fold(end);
        self.history.ensure_rows(&now, snapshot, &rows).await;
        assert!(
            !wrote || self.history.to == end.0,
            "{NOT_THE_FOLD}: it does not say so"
        );
    }
}

fn told(done: &Result<Done, LakeError>) -> String {
    match done {
        Ok(done) => format!("{done:?}"),
        Err(LakeError::Stopped(problem)) => problem.code.to_owned(),
        Err(LakeError::Fenced(by)) => format!("fenced by {by}"),
        Err(error) if error.is_transient() => "begins anew".to_owned(),
        Err(_) => "another error".to_owned(),
    }
}
