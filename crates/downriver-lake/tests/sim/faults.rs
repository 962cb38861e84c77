//! What goes wrong between an owner and the catalog, as a seed has it.
//!
//! Half of the seeds have it at the catalog, where a request that was thought lost is checked by its own requirements when
//! it arrives; the others at the pointers, where it is the move from one metadata file to the next.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use downriver_lake::catalog::{Pointer, TableName};
use iceberg::{TableRequirement, TableUpdate};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::Notify;

/// Calls of the catalog after which what is late arrives, at most.
const LATE_CALLS_MAX: u32 = 12;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    /// Something else happened first.
    Conflict,
    Unavailable,
    AnswerLost,
    RequestLost,
    /// The answer is lost, and the request arrives some time later.
    Late,
    /// Whoever asked stops before the request goes out, and goes on some time later or never.
    SleepsBefore,
    /// The same before the answer is there.
    SleepsAfter,
    /// The same, and the answer is lost.
    SleepsAndLost,
    /// The same with a request that arrives some time later.
    SleepsAndLate,
    LoadUnavailable,
    SleepsBeforeLoad,
    SleepsAfterLoad,
    StoreUnavailable,
}

pub(crate) const OF_COMMITS: [Fault; 9] = [
    Fault::Conflict,
    Fault::Unavailable,
    Fault::AnswerLost,
    Fault::RequestLost,
    Fault::Late,
    Fault::SleepsBefore,
    Fault::SleepsAfter,
    Fault::SleepsAndLost,
    Fault::SleepsAndLate,
];

/// What has to happen over many seeds, or they prove nothing.
pub(crate) const ALL: &[&str] = &[
    "Conflict",
    "Unavailable",
    "AnswerLost",
    "RequestLost",
    "Late",
    "SleepsBefore",
    "SleepsAfter",
    "SleepsAndLost",
    "SleepsAndLate",
    "LoadUnavailable",
    "SleepsBeforeLoad",
    "SleepsAfterLoad",
    "StoreUnavailable",
    "late and landed",
    "late and refused",
    "forgetful tables",
    "a rollback",
    "a foreign commit",
    "fenced",
    "begins anew",
    "DR-3010",
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    Catalog,
    Pointers,
}

#[derive(Debug)]
pub(crate) enum Request {
    Commit(TableName, Vec<TableRequirement>, Vec<TableUpdate>),
    Swap(Vec<Pointer>),
}

#[derive(Debug)]
struct State {
    random: StdRng,
    chance: f64,
    late: Vec<(u32, Request)>,
    gate: Option<Arc<Notify>>,
    /// How often each thing happened.
    counts: BTreeMap<String, u64>,
    /// Moves of a stranger who does no harm.
    strangers: u64,
    may_meet_strangers: bool,
}

#[derive(Debug)]
pub(crate) struct Faults {
    level: Level,
    state: Mutex<State>,
    /// Told when a call goes to sleep.
    pub(crate) asleep: Notify,
}

impl Faults {
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed ^ 0xFA17);
        let chance = random.random_range(0.1..0.5);
        Self {
            level: if seed.is_multiple_of(2) {
                Level::Catalog
            } else {
                Level::Pointers
            },
            state: Mutex::new(State {
                random,
                chance,
                late: Vec::new(),
                gate: None,
                counts: BTreeMap::new(),
                strangers: 0,
                may_meet_strangers: true,
            }),
            asleep: Notify::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(crate) fn level(&self) -> Level {
        self.level
    }

    pub(crate) fn count(&self, what: impl Into<String>) {
        *self.state().counts.entry(what.into()).or_default() += 1;
    }

    pub(crate) fn counts(&self) -> BTreeMap<String, u64> {
        self.state().counts.clone()
    }

    /// Nothing goes wrong any more; what is late is still under way.
    pub(crate) fn end(&self) {
        self.state().chance = 0.0;
    }

    /// Nobody but our owners and what is known to have happened changes the table from here on.
    pub(crate) fn end_strangers(&self) {
        self.state().may_meet_strangers = false;
    }

    /// What the call that fell asleep last waits for.
    pub(crate) fn take_gate(&self) -> Arc<Notify> {
        self.state().gate.take().expect("a call fell asleep")
    }

    /// The snapshots that the late requests follow.
    pub(crate) fn late_bases(&self) -> Vec<i64> {
        let state = self.state();
        let requirements = state.late.iter().filter_map(|(_, request)| match request {
            Request::Commit(_, requirements, _) => Some(requirements),
            Request::Swap(_) => None,
        });
        let bases = requirements.flatten().filter_map(|r| match r {
            TableRequirement::RefSnapshotIdMatch { snapshot_id, .. } => *snapshot_id,
            _ => None,
        });
        bases.collect()
    }

    pub(crate) fn draw(&self, level: Level, of: &[Fault]) -> Option<Fault> {
        if level != self.level {
            return None;
        }
        let mut state = self.state();
        let chance = state.chance;
        if !state.random.random_bool(chance) {
            return None;
        }
        let at = state.random.random_range(0..of.len());
        let fault = of[at];
        if fault == Fault::Conflict && !state.may_meet_strangers {
            return None;
        }
        *state.counts.entry(format!("{fault:?}")).or_default() += 1;
        Some(fault)
    }

    pub(crate) fn keep(&self, request: Request) {
        let mut state = self.state();
        let calls = state.random.random_range(1..=LATE_CALLS_MAX);
        state.late.push((calls, request));
    }

    /// What is due of what is late, or all of it.
    pub(crate) fn due(&self, all: bool) -> Vec<Request> {
        let mut state = self.state();
        for (calls, _) in &mut state.late {
            *calls = calls.saturating_sub(1);
        }
        let late = std::mem::take(&mut state.late);
        let (due, kept): (Vec<_>, Vec<_>) = late.into_iter().partition(|(c, _)| all || *c == 0);
        state.late = kept;
        due.into_iter().map(|(_, request)| request).collect()
    }

    pub(crate) async fn sleep(&self) {
        let gate = Arc::new(Notify::new());
        self.state().gate = Some(Arc::clone(&gate));
        self.asleep.notify_one();
        gate.notified().await;
    }

    /// How many moves somebody has made who does no harm, this one too.
    pub(crate) fn next_stranger(&self) -> u64 {
        let mut state = self.state();
        state.strangers += 1;
        state.strangers
    }

    /// Whether the store refuses to take a file.
    pub(crate) fn store_fails(&self) -> bool {
        let mut state = self.state();
        let chance = state.chance / 20.0;
        let fails = state.random.random_bool(chance);
        if fails {
            let name = format!("{:?}", Fault::StoreUnavailable);
            *state.counts.entry(name).or_default() += 1;
        }
        fails
    }
}
