//! How fast sources and pipelines are: events a second over the last look.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use downriver_api::admin::v1 as pb;

/// Looks that follow each other faster are passed over.
const MEASURE_EVERY: Duration = Duration::from_millis(900);

type Key = (pb::Kind, String);

#[derive(Default)]
pub(super) struct Rates {
    measured: Option<Instant>,
    /// Events counted, and events a second.
    of: BTreeMap<Key, (u64, f64)>,
}

impl Rates {
    /// Takes the events that each has counted since it was started.
    pub(super) fn measure(&mut self, counted: BTreeMap<Key, u64>) {
        let since = self.measured.map(|measured| measured.elapsed());
        if since.is_some_and(|since| since < MEASURE_EVERY) {
            return;
        }
        self.measured = Some(Instant::now());
        let before = std::mem::take(&mut self.of);
        self.of = counted
            .into_iter()
            .map(|(key, events)| {
                let rate = match (before.get(&key), since) {
                    // What was started again counts from 0.
                    (Some((before, _)), Some(since)) => {
                        events.checked_sub(*before).unwrap_or(events) as f64 / since.as_secs_f64()
                    }
                    _ => 0.0,
                };
                (key, (events, rate))
            })
            .collect();
    }

    pub(super) fn of(&self, kind: pb::Kind, name: &str) -> f64 {
        self.of
            .get(&(kind, name.to_owned()))
            .map_or(0.0, |(_, rate)| *rate)
    }
}
