//! Downriver as a reader: a node in a folder of its own, and how far it has come.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use downriver_testkit::fixture::copy_folder;
use downriver_testkit::{Daemon, resources};
use serde_json::Value;

use super::measure::{Meter, Reading, Used};
use super::server::Database;

pub(super) const PATIENCE: Duration = Duration::from_secs(1_800);
/// A segment is sealed after 30 s at the latest.
const SEAL_PATIENCE: Duration = Duration::from_secs(60);

pub(super) struct Node {
    // Stopped before its folder goes.
    pub(super) daemon: Daemon,
    database: Database,
    folder: tempfile::TempDir,
}

/// What a reading is to reach.
#[derive(Clone, Copy, Debug)]
pub(super) struct Goal {
    /// A place in the server's log.
    pub(super) end: u64,
    /// Offsets are dense: so many events tell that none is missing.
    pub(super) next_offset: u64,
    pub(super) tables: usize,
}

impl Node {
    /// It does not run yet.
    pub(super) fn new(binary: &Path, database: Database) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("downriver-bench-")
            .tempdir()?;
        Ok(Self {
            daemon: Daemon::of_binary(binary.to_path_buf(), &live(&folder)),
            database,
            folder,
        })
    }

    pub(super) fn warehouse(&self) -> PathBuf {
        live(&self.folder).join("warehouse")
    }

    /// Keeps a stopped node as it is, log, lake and all, for `restore`.
    pub(super) fn keep(&self) -> Result<()> {
        Ok(copy_folder(&live(&self.folder), &kept(&self.folder))?)
    }

    pub(super) fn restore(&self) -> Result<()> {
        std::fs::remove_dir_all(live(&self.folder))?;
        Ok(copy_folder(&kept(&self.folder), &live(&self.folder))?)
    }

    async fn source(&self) -> Result<Value> {
        self.daemon.describe("source", resources::SOURCE).await
    }

    pub(super) async fn next_offset(&self) -> Result<u64> {
        Ok(self.source().await?["next_offset"].as_u64().unwrap_or(0))
    }

    fn place(&self, described: &Value, field: &str) -> u64 {
        let position = described[field].as_str().unwrap_or_default();
        self.database.place(position)
    }

    /// Returns when everything of the backlog is in the log, and durable there.
    ///
    /// Each look is a client command and costs some milliseconds of the cores that are measured, so there are
    /// few of them far from the end and many near it.
    pub(super) async fn until_passed(&self, goal: Goal, meter: &Meter) -> Result<()> {
        let mut first: Option<(u64, Duration)> = None;
        loop {
            let source = self.source().await?;
            check_tables(&source)?;
            let now = self.place(&source, "position");
            if now >= goal.end && has_events(&source, goal) {
                return Ok(());
            }
            let (elapsed, remaining) = (meter.elapsed(), goal.end.saturating_sub(now));
            check_patience(elapsed)?;
            let expected = match first {
                Some((from, at)) if now > from => {
                    (elapsed - at).mul_f64(remaining as f64 / (now - from) as f64)
                }
                _ => {
                    if now > 0 {
                        first.get_or_insert((now, elapsed));
                    }
                    Duration::from_millis(200)
                }
            };
            let rest = (expected / 4).clamp(Duration::from_millis(10), Duration::from_millis(500));
            tokio::time::sleep(rest).await;
        }
    }

    /// Returns when no table is being copied any more, and every row is durable in the log.
    pub(super) async fn until_streaming(&self, goal: Goal) -> Result<()> {
        let started = Instant::now();
        loop {
            let source = self.source().await?;
            check_tables(&source)?;
            let tables = source["tables"].as_array().cloned().unwrap_or_default();
            let is_streaming = tables.iter().all(|table| table["state"] == "streaming");
            if tables.len() >= goal.tables && is_streaming && has_events(&source, goal) {
                return Ok(());
            }
            check_patience(started.elapsed())?;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Notes what the log's last segment cost, if it is sealed in time.
    pub(super) async fn until_sealed(&self, end: u64, reading: &mut Reading) -> Result<()> {
        let started = Instant::now();
        while started.elapsed() < SEAL_PATIENCE {
            let source = self.source().await?;
            if self.place(&source, "acknowledged_position") >= end {
                let used = Used::of_running(self.daemon.pid()?)?;
                reading.sealed_cpu_seconds = Some(used.cpu_seconds);
                reading.sealed_after_seconds = Some(started.elapsed().as_secs_f64());
                reading.peak_rss_bytes = used.peak_rss_bytes;
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        Ok(())
    }

    /// A pipeline that stopped a table, or never had one, was fast for nothing.
    pub(super) async fn check_delivered(&self, goal: Goal) -> Result<()> {
        let source = self.source().await?;
        ensure!(
            has_events(&source, goal),
            "the log ends at offset {} and not at {}",
            source["next_offset"],
            goal.next_offset
        );
        let pipeline = self
            .daemon
            .describe("pipeline", resources::PIPELINE)
            .await?;
        check_tables(&pipeline)?;
        let tables = pipeline["tables"].as_array().map_or(0, Vec::len);
        ensure!(tables >= goal.tables, "the pipeline has {tables} tables");
        Ok(())
    }
}

fn live(folder: &tempfile::TempDir) -> PathBuf {
    folder.path().join("live")
}

fn kept(folder: &tempfile::TempDir) -> PathBuf {
    folder.path().join("kept")
}

fn check_patience(elapsed: Duration) -> Result<()> {
    ensure!(
        elapsed < PATIENCE,
        "the end was not reached within {} s",
        PATIENCE.as_secs()
    );
    Ok(())
}

/// An error when the resource or one of its tables has stopped.
fn check_tables(described: &Value) -> Result<()> {
    let tables = described["tables"].as_array().into_iter().flatten();
    for part in std::iter::once(described).chain(tables) {
        ensure!(
            !matches!(part["state"].as_str(), Some("stopped" | "refused")),
            "{} is {}: {} {}",
            part["table"].as_str().unwrap_or(resources::SOURCE),
            part["state"],
            part["code"],
            part["reason"]
        );
    }
    Ok(())
}

fn has_events(source: &Value, goal: Goal) -> bool {
    source["next_offset"].as_u64() >= Some(goal.next_offset)
}
