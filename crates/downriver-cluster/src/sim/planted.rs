#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::panic::{AssertUnwindSafe, catch_unwind};

use downriver_event::planted::Bug;

const SEEDS: u64 = 200;

/// Plants each bug by itself, and runs seeds until one fails: with one of what watches for just that.
pub(super) fn each_is_found(bugs: &[(Bug, &[&str])], run: impl Fn(u64)) {
    for (bug, detectors) in bugs {
        Bug::plant(Some(*bug));
        let found = (0..SEEDS).find_map(|seed| {
            let failed = catch_unwind(AssertUnwindSafe(|| run(seed))).err()?;
            let text = failed.downcast_ref::<String>().cloned();
            let text = text.or_else(|| Some((*failed.downcast_ref::<&str>()?).to_owned()));
            Some((seed, text.unwrap_or_default()))
        });
        Bug::plant(None);
        let name = bug.name();
        let (seed, text) = found.unwrap_or_else(|| panic!("{name} is not found"));
        let detector = detectors.iter().find(|detector| text.contains(**detector));
        let detector = detector.unwrap_or_else(|| panic!("{name} is found as: {text}"));
        println!("planted {name}: seed {seed}: {detector}");
    }
}
