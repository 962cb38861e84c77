//! What lies between a commit and its being seen, and what that comes to over thousands of them.

use std::collections::HashMap;
use std::time::Instant;

use anyhow::{Context as _, Result};
use serde::Serialize;

use super::super::summary::first_line;
use super::Viewer;
use super::commits::Commit;
use super::watch::Sighting;

/// Of one commit, in milliseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Delay {
    /// From sending COMMIT to the sight of it.
    seen_after_sent: f64,
    /// From its return to the sight of it. Whoever reads the server may be told before whoever committed.
    seen_after_return: f64,
    /// From sending COMMIT to its return.
    commit: f64,
}

/// What a viewer saw in one round.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) commits_per_second: f64,
    /// What the processes between took, of one core.
    pub(super) cores: f64,
    pub(super) others_share: f64,
    pub(super) delays: Vec<Delay>,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Spread {
    pub(super) p50_ms: f64,
    pub(super) p90_ms: f64,
    pub(super) p99_ms: f64,
    pub(super) p999_ms: f64,
    pub(super) max_ms: f64,
}

/// What delays come to.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Spreads {
    pub(super) commits: usize,
    pub(super) seen_after_sent: Spread,
    pub(super) seen_after_return: Spread,
    pub(super) commit: Spread,
}

/// A viewer in one round.
#[derive(Debug, Serialize)]
pub(super) struct Run {
    pub(super) round: u32,
    pub(super) viewer: Viewer,
    spreads: Option<Spreads>,
    commits_per_second: Option<f64>,
    cores: Option<f64>,
    others_share: Option<f64>,
    pub(super) failure: Option<String>,
    #[serde(skip)]
    delays: Vec<Delay>,
}

/// A viewer in all rounds.
#[derive(Debug, Serialize)]
pub(super) struct Summary {
    pub(super) viewer: Viewer,
    pub(super) spreads: Spreads,
    pub(super) commits_per_second_min: f64,
    pub(super) cores_max: f64,
    pub(super) others_share_max: f64,
}

impl Delay {
    /// One of each commit; an error when one was not seen.
    pub(super) fn all(commits: &[Commit], sightings: &[Sighting]) -> Result<Vec<Self>> {
        let seen: HashMap<u64, Instant> = sightings.iter().copied().collect();
        let delays = commits.iter().map(|commit| {
            let seen = seen.get(&commit.id);
            let seen = *seen.with_context(|| format!("commit {} was not seen", commit.id))?;
            let seen_after_sent = millis(commit.sent, seen);
            let took = millis(commit.sent, commit.returned);
            Ok(Self {
                seen_after_sent,
                seen_after_return: seen_after_sent - took,
                commit: took,
            })
        });
        delays.collect()
    }
}

fn millis(from: Instant, to: Instant) -> f64 {
    to.saturating_duration_since(from).as_secs_f64() * 1e3
}

impl Spread {
    /// `None` of nothing.
    fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        // The least value that so large a share does not exceed.
        let at = |share: f64| {
            let rank = (share * values.len() as f64).ceil() as usize;
            values.get(rank.saturating_sub(1)).copied()
        };
        Some(Self {
            p50_ms: at(0.5)?,
            p90_ms: at(0.9)?,
            p99_ms: at(0.99)?,
            p999_ms: at(0.999)?,
            max_ms: at(1.0)?,
        })
    }
}

impl Spreads {
    fn of(delays: &[Delay]) -> Option<Self> {
        let spread = |value: fn(&Delay) -> f64| Spread::of(delays.iter().map(value).collect());
        Some(Self {
            commits: delays.len(),
            seen_after_sent: spread(|delay| delay.seen_after_sent)?,
            seen_after_return: spread(|delay| delay.seen_after_return)?,
            commit: spread(|delay| delay.commit)?,
        })
    }
}

impl Run {
    pub(super) fn new(round: u32, viewer: Viewer, seen: Seen) -> Self {
        Self {
            round,
            viewer,
            spreads: Spreads::of(&seen.delays),
            commits_per_second: Some(seen.commits_per_second),
            cores: Some(seen.cores),
            others_share: Some(seen.others_share),
            failure: None,
            delays: seen.delays,
        }
    }

    pub(super) fn failed(round: u32, viewer: Viewer, error: &anyhow::Error) -> Self {
        Self {
            round,
            viewer,
            spreads: None,
            commits_per_second: None,
            cores: None,
            others_share: None,
            failure: Some(format!("{error:#}")),
            delays: Vec::new(),
        }
    }

    pub(super) fn line(&self) -> String {
        let name = self.viewer.name();
        match &self.spreads {
            Some(Spreads {
                seen_after_sent: seen,
                ..
            }) => format!(
                "{name}: p50 {:.2} ms, p99 {:.2} ms, at most {:.2} ms",
                seen.p50_ms, seen.p99_ms, seen.max_ms
            ),
            None => {
                let failure = self.failure.as_deref();
                format!("{name} failed: {}", failure.map_or("", first_line))
            }
        }
    }
}

impl Summary {
    /// Of all delays together: the slowest hundredth of a single round is too few. `None` when it saw nothing.
    pub(super) fn of(viewer: Viewer, runs: &[Run]) -> Option<Self> {
        let mine = || runs.iter().filter(move |run| run.viewer == viewer);
        let delays: Vec<Delay> = mine().flat_map(|run| run.delays.iter().copied()).collect();
        let rates = mine().filter_map(|run| run.commits_per_second);
        Some(Self {
            viewer,
            spreads: Spreads::of(&delays)?,
            commits_per_second_min: rates.fold(f64::INFINITY, f64::min),
            cores_max: mine().filter_map(|run| run.cores).fold(0.0, f64::max),
            others_share_max: mine()
                .filter_map(|run| run.others_share)
                .fold(0.0, f64::max),
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use super::*;

    fn commits(count: u64) -> Vec<Commit> {
        let sent = Instant::now();
        let returned = sent + Duration::from_millis(2);
        let commits = (0..count).map(|id| Commit { id, sent, returned });
        commits.collect()
    }

    #[test]
    fn of_two_hundred_delays_two_are_above_the_99th_percentile() {
        let commits = commits(200);
        let seen = commits.iter().map(|commit| {
            let after = Duration::from_millis(commit.id + 1);
            (commit.id, commit.sent + after)
        });
        let delays = Delay::all(&commits, &seen.collect::<Vec<_>>()).unwrap();
        let spreads = Spreads::of(&delays).unwrap();
        let rounded = |spread: Spread| {
            let Spread {
                p50_ms,
                p99_ms,
                max_ms,
                ..
            } = spread;
            [p50_ms, p99_ms, max_ms].map(f64::round)
        };
        assert_eq!(rounded(spreads.seen_after_sent), [100.0, 198.0, 200.0]);
        // The first was seen before its COMMIT returned.
        assert_eq!(rounded(spreads.seen_after_return), [98.0, 196.0, 198.0]);
        assert_eq!(rounded(spreads.commit), [2.0, 2.0, 2.0]);
    }

    #[test]
    fn a_commit_that_nobody_saw_is_an_error() {
        let commits = commits(2);
        let seen = [(0, commits[0].returned)];
        assert!(Delay::all(&commits, &seen).is_err());
    }
}
