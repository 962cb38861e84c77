//! Bugs on purpose: each has to be found by the detector that is there for it, within so many seeds.

use downriver_event::planted::Bug;

use crate::history::{FILE_GONE, FORMER_OWNER, NOT_THE_FOLD, RANGES_APART, UNNOTICED};
use crate::{alone, run};

const SEEDS: u64 = 200;

fn is_found(bug: Bug, detector: &str) {
    let _alone = alone();
    // What is expected is not to fill the screen.
    std::panic::set_hook(Box::new(|_| {}));
    Bug::plant(Some(bug));
    let mut others = Vec::new();
    let found = (0..SEEDS).find(|seed| match run(*seed) {
        Err(broken) if broken.starts_with(detector) => true,
        Err(broken) => {
            others.push(format!("{seed}: {broken}"));
            false
        }
        Ok(_) => false,
    });
    Bug::plant(None);
    let _ = std::panic::take_hook();
    let name = bug.name();
    let seed = found.unwrap_or_else(|| panic!("{name} is not found, but: {others:#?}"));
    println!("planted {name}: seed {seed}: {detector}");
}

#[test]
fn planted_rebases() {
    is_found(Bug::Rebases, FORMER_OWNER);
}

#[test]
fn planted_deletes_unknown() {
    is_found(Bug::DeletesUnknown, FILE_GONE);
}

#[test]
fn planted_ignores_rollback() {
    is_found(Bug::IgnoresRollback, UNNOTICED);
}

#[test]
fn planted_ignores_foreign() {
    is_found(Bug::IgnoresForeign, UNNOTICED);
}

#[test]
fn planted_counts_failed() {
    is_found(Bug::CountsFailed, NOT_THE_FOLD);
}

#[test]
fn planted_no_fence() {
    is_found(Bug::NoFence, FORMER_OWNER);
}

#[test]
fn planted_takes_back() {
    is_found(Bug::TakesBack, FORMER_OWNER);
}

#[test]
fn planted_found_behind() {
    is_found(Bug::FoundBehind, FORMER_OWNER);
}

#[test]
fn planted_lost_counts() {
    is_found(Bug::LostCounts, RANGES_APART);
}

#[test]
fn planted_any_index() {
    is_found(Bug::AnyIndex, NOT_THE_FOLD);
}

#[test]
fn planted_collects_early() {
    is_found(Bug::CollectsEarly, FILE_GONE);
}
