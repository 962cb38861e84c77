//! Tells what was measured: a table for a terminal, the same as markdown, and all of it as JSON.

use std::fmt::Write as _;

use anyhow::Result;
use serde::Serialize;

use super::super::build::Binary;
use super::super::report::OTHERS_SHARE_MAX;
use super::super::server::{Server, Told};
use super::super::summary::{first_line, grouped};
use super::Viewer;
use super::commits::PER_SECOND;
use super::delays::{Run, Summary};
use crate::basis::Basis;
use crate::page::Page;

pub(super) const PAGE: Page = Page::part("docs/benchmarks.md", "latency");
/// Below this share of the rate that was meant, commits waited for each other.
const RATE_MIN: f64 = 0.98;

/// Everything that was measured, and on what.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    #[serde(flatten)]
    basis: Basis,
    downriver: Binary,
    servers: Vec<Told>,
    commits_per_second: u32,
    rounds: u32,
    seconds: u32,
    viewers: Vec<Summary>,
    runs: Vec<Run>,
}

impl Report {
    pub(super) fn begin(rounds: u32, seconds: u32, binary: &Binary) -> Result<Self> {
        Ok(Self {
            basis: Basis::look()?,
            downriver: binary.clone(),
            servers: Vec::new(),
            commits_per_second: PER_SECOND,
            rounds,
            seconds,
            viewers: Vec::new(),
            runs: Vec::new(),
        })
    }

    pub(super) async fn note_server(&mut self, server: &Server) -> Result<()> {
        self.servers.push(server.told().await?);
        Ok(())
    }

    pub(super) fn add(&mut self, runs: Vec<Run>) {
        let viewers = Viewer::ALL.into_iter();
        self.viewers = viewers
            .filter_map(|viewer| Summary::of(viewer, &runs))
            .collect();
        self.runs = runs;
    }

    pub(super) fn has_failures(&self) -> bool {
        self.runs.iter().any(|run| run.failure.is_some())
    }

    pub(super) fn json(&self) -> Result<String> {
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        Ok(text)
    }

    pub(super) fn terminal(&self) -> String {
        let mut text = format!(
            "{:<23} {:>8} {:>8} {:>8} {:>10} {:>10} {:>10} {:>10} {:>6} {:>6}\n",
            "",
            "p50 ms",
            "p99 ms",
            "most ms",
            "after p50",
            "after p99",
            "COMMIT p50",
            "COMMIT p99",
            "cores",
            "others"
        );
        for seen in &self.viewers {
            let cells = cells(seen);
            let _infallible = writeln!(
                text,
                "{:<23} {:>8} {:>8} {:>8} {:>10} {:>10} {:>10} {:>10} {:>6} {:>6}",
                seen.viewer.name(),
                cells[0],
                cells[1],
                cells[2],
                cells[3],
                cells[4],
                cells[5],
                cells[6],
                cells[7],
                cells[8]
            );
        }
        for line in self.remarks() {
            let _infallible = writeln!(text, "  {line}");
        }
        let _infallible = write!(text, "\n{}", self.basis().join("\n"));
        text
    }

    pub(super) fn markdown(&self) -> String {
        let mut text = String::new();
        for line in self.basis() {
            let _infallible = writeln!(text, "{line}  ");
        }
        text.push_str(
            "\n| seen by a subscriber of | p50 ms | p99 ms | most ms | after COMMIT's return p50 | p99 \
             | COMMIT itself p50 | p99 | cores | others |\n\
             |---|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n",
        );
        for seen in &self.viewers {
            let _infallible = writeln!(
                text,
                "| {} | {} |",
                seen.viewer.name(),
                cells(seen).join(" | ")
            );
        }
        for (at, line) in self.remarks().iter().enumerate() {
            let before = if at == 0 { "\n" } else { "" };
            let _infallible = writeln!(text, "{before}- {line}");
        }
        text
    }

    /// On what it was measured.
    fn basis(&self) -> Vec<String> {
        let build = if self.downriver.is_release_build {
            "release build"
        } else {
            "binary given by DOWNRIVER_BIN"
        };
        let commits = self.rounds * self.seconds * PER_SECOND;
        let mut lines = vec![
            format!(
                "{}, {} ({build}), {} commits for each, {PER_SECOND} a second, in {} rounds",
                self.basis.commit(),
                self.downriver.version,
                grouped(f64::from(commits)),
                self.rounds
            ),
            format!(
                "{}; server, nodes, store and subscriber on the same cores, over loopback",
                self.basis.machine()
            ),
        ];
        for server in &self.servers {
            lines.push(format!(
                "{} {}: {}",
                server.name,
                server.version,
                server.settings.join(", ")
            ));
        }
        lines
    }

    /// What is asked, failures, and what puts the numbers in doubt.
    fn remarks(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for seen in &self.viewers {
            let name = seen.viewer.name();
            let asked = seen.viewer.p99_ms_max();
            if let Some(max) = asked.filter(|_| self.downriver.is_release_build) {
                let p99 = seen.spreads.seen_after_sent.p99_ms;
                let met = if p99 <= max { "met" } else { "missed" };
                lines.push(format!(
                    "{name}: p99 {p99:.1} of at most {max:.0} ms: {met}"
                ));
            }
            let rate = seen.commits_per_second_min;
            if rate < RATE_MIN * f64::from(PER_SECOND) {
                lines.push(format!(
                    "{name}: only {rate:.0} commits a second: COMMIT itself took too long"
                ));
            }
            if seen.others_share_max > OTHERS_SHARE_MAX {
                lines.push(format!(
                    "{name}: others used {:.0} % of the machine: measure again on a quiet one",
                    seen.others_share_max * 100.0
                ));
            }
        }
        if !self.downriver.is_release_build {
            lines.push("no goal is compared: they are for a release build".to_owned());
        }
        for run in &self.runs {
            if let Some(failure) = &run.failure {
                lines.push(format!(
                    "{} failed in round {}: {}",
                    run.viewer.name(),
                    run.round,
                    first_line(failure)
                ));
            }
        }
        lines
    }
}

fn cells(seen: &Summary) -> [String; 9] {
    let spreads = &seen.spreads;
    let (sent, after, commit) = (
        &spreads.seen_after_sent,
        &spreads.seen_after_return,
        &spreads.commit,
    );
    let millis = [
        sent.p50_ms,
        sent.p99_ms,
        sent.max_ms,
        after.p50_ms,
        after.p99_ms,
        commit.p50_ms,
        commit.p99_ms,
    ];
    let [a, b, c, d, e, f, g] = millis.map(|ms| format!("{ms:.2}"));
    let cores = format!("{:.2}", seen.cores_max);
    let others = format!("{:.0} %", seen.others_share_max * 100.0);
    [a, b, c, d, e, f, g, cores, others]
}
