//! Tells what was measured: a table for a terminal, the same as markdown, and all of it as JSON.

use std::fmt::Write as _;

use anyhow::Result;
use serde::Serialize;

use super::build::Binary;
use super::readers::Reader;
use super::server::{Server, Told};
use super::summary::{Run, Summary, budget, first_line, grouped};
use super::workloads::{Backlog, Workload};
use crate::basis::Basis;
use crate::page::Page;

pub(super) const PAGE: Page = Page::results("docs/benchmarks.md");
/// Above this share of the machine, somebody else's work is part of the result.
pub(super) const OTHERS_SHARE_MAX: f64 = 0.1;

/// Everything that was measured, and on what.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    #[serde(flatten)]
    basis: Basis,
    downriver: Binary,
    /// Each kind once.
    servers: Vec<Told>,
    scale: f64,
    rounds: u32,
    workloads: Vec<WorkloadReport>,
}

#[derive(Debug, Serialize)]
pub(super) struct WorkloadReport {
    name: &'static str,
    title: String,
    changes: u64,
    transactions: u64,
    log_bytes: u64,
    #[serde(skip)]
    workload: Workload,
    readers: Vec<Summary>,
    runs: Vec<Run>,
}

impl Report {
    pub(super) fn begin(rounds: u32, scale: f64, binary: &Binary) -> Result<Self> {
        Ok(Self {
            basis: Basis::look()?,
            downriver: binary.clone(),
            servers: Vec::new(),
            scale,
            rounds,
            workloads: Vec::new(),
        })
    }

    pub(super) async fn note_server(&mut self, server: &Server) -> Result<()> {
        let told = server.told().await?;
        if !self.servers.contains(&told) {
            self.servers.push(told);
        }
        Ok(())
    }

    pub(super) fn add(&mut self, workload: WorkloadReport) {
        self.workloads.push(workload);
    }

    pub(super) fn has_failures(&self) -> bool {
        let mut runs = self.workloads.iter().flat_map(|workload| &workload.runs);
        runs.any(|run| run.failure.is_some())
    }

    pub(super) fn json(&self) -> Result<String> {
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        Ok(text)
    }

    pub(super) fn terminal(&self) -> String {
        let mut text = format!(
            "{:<15} {:>8} {:>9} {:>6} {:>8} {:>7} {:>7} {:>8} {:>6}\n",
            "", "seconds", "rows/s", "of ref", "CPU s/M", "sealed", "DB s/M", "peak MiB", "others"
        );
        for workload in &self.workloads {
            let _infallible = writeln!(text, "{}", workload.heading());
            for seen in &workload.readers {
                let cells = seen.cells();
                let _infallible = writeln!(
                    text,
                    "{:<15} {:>8} {:>9} {:>6} {:>8} {:>7} {:>7} {:>8} {:>6}",
                    seen.reader.name(),
                    cells[0],
                    cells[1],
                    cells[2],
                    cells[3],
                    cells[4],
                    cells[5],
                    cells[6],
                    cells[7]
                );
            }
            for line in self.remarks(workload) {
                let _infallible = writeln!(text, "  {line}");
            }
        }
        let _infallible = write!(text, "\n{}", self.basis().join("\n"));
        text
    }

    pub(super) fn markdown(&self) -> String {
        let mut text = String::new();
        for line in self.basis() {
            let _infallible = writeln!(text, "{line}  ");
        }
        for workload in &self.workloads {
            let _infallible = write!(
                text,
                "\n**{}**\n\n| reader | seconds | rows/s | of reference | CPU s/M | CPU s/M until sealed \
                 | server CPU s/M | peak RSS MiB | others |\n|---|---:|---:|---:|---:|---:|---:|---:|---:|\n",
                workload.heading()
            );
            for seen in &workload.readers {
                let _infallible = writeln!(
                    text,
                    "| {} | {} |",
                    seen.reader.name(),
                    seen.cells().join(" | ")
                );
            }
            for (at, line) in self.remarks(workload).iter().enumerate() {
                let before = if at == 0 { "\n" } else { "" };
                let _infallible = writeln!(text, "{before}- {line}");
            }
        }
        text
    }

    /// On what it was measured.
    fn basis(&self) -> Vec<String> {
        let mut lines = vec![
            format!(
                "{}, {} ({}), scale {}, median of {} rounds",
                self.basis.commit(),
                self.downriver.version,
                if self.downriver.is_release_build {
                    "release build"
                } else {
                    "binary given by DOWNRIVER_BIN"
                },
                self.scale,
                self.rounds
            ),
            format!(
                "{}; source and reader on the same cores, over loopback",
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

    /// Budgets, failures, and what puts the numbers in doubt.
    fn remarks(&self, workload: &WorkloadReport) -> Vec<String> {
        let mut lines = Vec::new();
        let is_budget_run = self.scale >= 1.0 && self.downriver.is_release_build;
        for seen in &workload.readers {
            let demands = budget(workload.workload, seen.reader).filter(|_| is_budget_run);
            for line in demands.iter().flat_map(|demands| demands.against(seen)) {
                lines.push(format!("{}: {line}", seen.reader.name()));
            }
            if seen.others_share_max > OTHERS_SHARE_MAX {
                lines.push(format!(
                    "{}: others used {:.0} % of the machine: measure again on a quiet one",
                    seen.reader.name(),
                    seen.others_share_max * 100.0
                ));
            }
        }
        let is_with_budget = workload
            .readers
            .iter()
            .any(|seen| budget(workload.workload, seen.reader).is_some());
        if is_with_budget && !is_budget_run {
            lines.push("no budget is compared: they are for a release build at scale 1".to_owned());
        }
        for run in &workload.runs {
            if let Some(failure) = &run.failure {
                lines.push(format!(
                    "{} failed in round {}: {}",
                    run.reader.name(),
                    run.round,
                    first_line(failure)
                ));
            }
        }
        lines
    }
}

impl WorkloadReport {
    pub(super) fn new(workload: Workload, backlog: &Backlog, runs: Vec<Run>) -> Self {
        let readers = Reader::of(workload)
            .into_iter()
            .filter_map(|reader| Summary::of(reader, backlog.changes, &runs))
            .collect();
        Self {
            name: workload.name(),
            title: workload.title(),
            changes: backlog.changes,
            transactions: backlog.transactions,
            log_bytes: backlog.log_bytes,
            workload,
            readers,
            runs,
        }
    }

    fn heading(&self) -> String {
        let mut text = format!(
            "{}, {}: {} rows",
            self.name,
            self.title,
            grouped(self.changes as f64)
        );
        if self.transactions > 0 {
            let megabytes = self.log_bytes / 1_000_000;
            let log = self.workload.database.log_name();
            let _infallible = write!(text, ", {megabytes} MB of {log}");
        }
        text
    }
}
