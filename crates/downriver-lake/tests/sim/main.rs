//! The lake's commit protocol under whatever a catalog, a store and other owners may do to it, from a seed: the writer and
//! the catalog are the real ones.
//!
//! `DOWNRIVER_SEEDS` runs that many seeds, `DOWNRIVER_SEED` begins with that one; a single one says what happens.

#![allow(clippy::unwrap_used)]

mod far;
mod faults;
mod history;
mod log;
mod owner;
#[cfg(feature = "planted-bugs")]
mod planted;
mod world;

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use world::Report;

/// As many as run in some 20 seconds on one core.
const SEEDS: u64 = 150;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Runs a seed on a thread and a runtime of its own, and hands out what it panicked with.
fn run(seed: u64) -> Result<Report, String> {
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(world::run(seed))
    });
    thread.join().map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        text.unwrap_or_default()
    })
}

fn run_well(seed: u64) -> Report {
    run(seed).unwrap_or_else(|broken| panic!("DOWNRIVER_SEED={seed} DOWNRIVER_SEEDS=1: {broken}"))
}

/// A bug is planted for the whole process: one that a test plants, or the one that `DOWNRIVER_PLANTED_BUG` names.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn whatever_happens_the_table_is_the_fold_of_the_log_or_everybody_stops() {
    let _alone = alone();
    let first = number("DOWNRIVER_SEED").unwrap_or_default();
    let seeds = number("DOWNRIVER_SEEDS").unwrap_or(SEEDS);
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    let began = std::time::Instant::now();
    for seed in first..first + seeds {
        let report = run_well(seed);
        for (what, count) in report.counts {
            *counts.entry(what).or_default() += count;
        }
    }
    println!("{seeds} seeds in {:?}: {counts:#?}", began.elapsed());
    if seeds >= SEEDS {
        for what in faults::ALL {
            assert!(counts.contains_key(*what), "it never happened: {what}");
        }
    }
}

#[test]
fn a_seed_goes_the_same_way_twice() {
    let _alone = alone();
    for seed in 0..6 {
        assert_eq!(run_well(seed).trace, run_well(seed).trace, "seed {seed}");
    }
}
