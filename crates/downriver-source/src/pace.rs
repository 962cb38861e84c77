//! When a connection is read: at once after a pause, and in gulps where it has none. A database sends each change by
//! itself, and a reader that wakes for each takes from it the time in which it would send the next.

use std::time::{Duration, Instant};

/// How long changes are let gather between two reads while they come without a pause.
const GATHER_FOR: Duration = Duration::from_millis(2);
/// A read that waits as long found a pause.
const PAUSE: Duration = Duration::from_millis(1);
/// Changes that come for so long without a pause are gathered.
const WITHOUT_PAUSE: Duration = Duration::from_millis(5);

pub(crate) struct Pace {
    /// When a read last found a pause.
    paused: Instant,
    next_read: Instant,
}

impl Pace {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            paused: now,
            next_read: now,
        }
    }

    /// How long to rest before the next read.
    pub(crate) fn rest(&self, now: Instant) -> Duration {
        self.next_read.saturating_duration_since(now)
    }

    /// A read is over for which nothing came for so long at first; `much`: so much came that more is likely.
    pub(crate) fn read(&mut self, waited: Duration, now: Instant, much: bool) {
        if waited >= PAUSE {
            self.paused = now;
        }
        let gathers = much || now - self.paused >= WITHOUT_PAUSE;
        self.next_read = if gathers { now + GATHER_FOR } else { now };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lets a change come every so many microseconds, and counts the changes that were let wait, and the reads.
    fn run(every_us: u64, changes: u64) -> (u64, u64) {
        let start = Instant::now();
        let at = |change: u64| start + Duration::from_micros(every_us * (change + 1));
        let mut pace = Pace::new(start);
        let (mut now, mut change, mut waited, mut reads) = (start, 0, 0, 0);
        while change < changes {
            now += pace.rest(now);
            waited += u64::from(at(change) < now);
            let began = now;
            now = now.max(at(change));
            while change < changes && at(change) <= now {
                change += 1;
            }
            pace.read(now - began, now, false);
            reads += 1;
        }
        (waited, reads)
    }

    #[test]
    fn changes_with_pauses_between_are_read_at_once() {
        assert_eq!(run(1_000, 1_000), (0, 1_000));
        assert_eq!(run(10_000, 1_000), (0, 1_000));
    }

    #[test]
    fn changes_without_a_pause_are_gathered() {
        let (_, reads) = run(10, 100_000);
        assert!(
            reads < 1_100,
            "{reads} reads of 100,000 changes in a second"
        );
    }
}
