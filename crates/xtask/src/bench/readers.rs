//! The readers of a backlog: PostgreSQL's own clients, and Downriver with and without a lake behind it.
//!
//! A reader of changes gets a fresh copy of the backlog's slot, so that all begin at the same place with
//! the same work before them. Downriver is ready before its clock starts; PostgreSQL's clients are started
//! by it, which takes some milliseconds.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use downriver_testkit::{Daemon, Postgres, host, resources};
use serde::Serialize;
use serde_json::Value;
use tokio_postgres::types::PgLsn;

use super::measure::{self, Meter, Reading, Used};
use super::workloads::{self, Backlog, Workload};

const PATIENCE: Duration = Duration::from_secs(1_800);
/// Less than the test kit gives a client command, so that `wait` itself says what is missing.
const WAIT_PATIENCE: Duration = Duration::from_secs(590);
/// A segment is sealed after 30 s at the latest.
const SEAL_PATIENCE: Duration = Duration::from_secs(60);
const SLOT_PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Reader {
    /// `pg_recvlogical` to /dev/null.
    Recvlogical,
    /// `COPY ... TO STDOUT (FORMAT binary)` through psql to /dev/null.
    Copy,
    /// `downriver dev`, into its durable log.
    Log,
    /// The same, with a sink and a pipeline behind the log.
    Lake,
}

impl Reader {
    /// The first is what the others are compared with.
    pub(super) fn of(workload: Workload) -> &'static [Self] {
        match workload {
            Workload::Inserts => &[Self::Recvlogical, Self::Log],
            Workload::Mixed | Workload::OneTransaction => {
                &[Self::Recvlogical, Self::Log, Self::Lake]
            }
            Workload::Snapshot => &[Self::Copy, Self::Log, Self::Lake],
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Recvlogical => "pg_recvlogical",
            Self::Copy => "COPY binary",
            Self::Log => "downriver log",
            Self::Lake => "downriver lake",
        }
    }

    pub(super) fn is_reference(self) -> bool {
        matches!(self, Self::Recvlogical | Self::Copy)
    }
}

/// What all readings of a workload share.
pub(super) struct Bench<'a> {
    pub(super) postgres: &'a Postgres,
    pub(super) binary: &'a Path,
    pub(super) workload: Workload,
    pub(super) scale: f64,
    pub(super) freshness: &'a str,
    pub(super) backlog: &'a Backlog,
}

impl Bench<'_> {
    pub(super) async fn read(&self, reader: Reader, round: u32) -> Result<Reading> {
        self.warm_up().await?;
        match (reader, self.workload) {
            (Reader::Recvlogical, _) => self.recvlogical().await,
            (Reader::Copy, _) => self.copy().await,
            (Reader::Lake, Workload::Mixed) => self.mirror_of_grown_tables(round).await,
            (Reader::Log | Reader::Lake, Workload::Snapshot) => self.snapshot(reader).await,
            (Reader::Log | Reader::Lake, _) => self.drain(reader).await,
        }
    }

    /// Reads the WAL once, so that the first reader does not wait for a disk on behalf of the others.
    async fn warm_up(&self) -> Result<()> {
        let client = self.postgres.client().await?;
        let folder: String = client.query_one("show data_directory", &[]).await?.get(0);
        for entry in std::fs::read_dir(Path::new(&folder).join("pg_wal"))? {
            let path = entry?.path();
            if path.is_file() {
                std::io::copy(&mut File::open(path)?, &mut std::io::sink())?;
            }
        }
        Ok(())
    }

    async fn recvlogical(&self) -> Result<Reading> {
        let slot = self.copy_slot().await?;
        let mut command = Command::new(self.postgres.program("pg_recvlogical"));
        command
            .args(["--start", "--no-loop", "-f", "/dev/null"])
            .args(["-h", "127.0.0.1", "-U", "postgres", "-d", "shop"])
            .args(["-p", &self.postgres.port().to_string()])
            .args(["-S", &slot])
            .arg(format!("--endpos={}", self.backlog.end))
            .args(["-o", "proto_version=1"])
            .args([
                "-o",
                &format!("publication_names={}", self.backlog.publication),
            ]);
        let reading = self.run_to_end(command).await?;
        self.drop_slot(&slot).await?;
        Ok(reading)
    }

    async fn copy(&self) -> Result<Reading> {
        let mut command = Command::new(self.postgres.program("psql"));
        command
            .args(["-X", "-q", "-d", &self.postgres.admin_url("shop"), "-c"])
            .arg(format!(
                "copy {} to stdout (format binary)",
                self.backlog.tables[0]
            ));
        self.run_to_end(command).await
    }

    async fn run_to_end(&self, mut command: Command) -> Result<Reading> {
        let mut errors = tempfile::tempfile()?;
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(errors.try_clone()?);
        let meter = Meter::start(self.postmaster()?, 0.0)?;
        let program = command.get_program().to_owned();
        let mut child = Killed(
            command
                .spawn()
                .with_context(|| format!("run {}", program.display()))?,
        );
        let used = measure::until_ended(&child.0, PATIENCE).await?;
        let reading = meter.finish(used)?;
        let status = child.0.wait()?;
        if !status.success() {
            let mut text = Vec::new();
            std::io::Seek::rewind(&mut errors)?;
            std::io::Read::read_to_end(&mut errors, &mut text)?;
            bail!(
                "{} ended with {status}: {}",
                program.display(),
                String::from_utf8_lossy(&text)
            );
        }
        Ok(reading)
    }

    /// A node that is ready takes over the slot.
    async fn drain(&self, reader: Reader) -> Result<Reading> {
        let slot = self.copy_slot().await?;
        let mut node = self.node()?;
        node.daemon.start().await?;
        let (slot_line, publication) = (
            format!("slot: {slot}"),
            format!("publication: {}", self.backlog.publication),
        );
        let yaml = self.yaml(
            reader,
            &node,
            &self.backlog.tables,
            &[&slot_line, &publication, "snapshot: none"],
        );
        let reading = self.measure_from_apply(reader, &mut node, &yaml).await?;
        node.daemon.stop()?;
        self.drop_slot(&slot).await?;
        Ok(reading)
    }

    /// A node that is ready copies the table.
    async fn snapshot(&self, reader: Reader) -> Result<Reading> {
        let slot = format!("{}_snapshot", self.backlog.slot);
        let mut node = self.node()?;
        node.daemon.start().await?;
        let (slot_line, publication) = (
            format!("slot: {slot}"),
            format!("publication: {}", self.backlog.publication),
        );
        let yaml = self.yaml(
            reader,
            &node,
            &self.backlog.tables,
            &[&slot_line, &publication, "snapshot: initial"],
        );
        let reading = self.measure_from_apply(reader, &mut node, &yaml).await?;
        node.daemon.stop()?;
        self.drop_slot(&slot).await?;
        Ok(reading)
    }

    async fn measure_from_apply(
        &self,
        reader: Reader,
        node: &mut Node,
        yaml: &str,
    ) -> Result<Reading> {
        let pid = node.daemon.pid()?;
        let idle = host::memory_bytes(pid)?;
        let meter = Meter::start(self.postmaster()?, host::cpu_seconds(pid)?)?;
        node.daemon.apply(yaml).await?;
        if reader == Reader::Lake {
            node.daemon.wait(WAIT_PATIENCE).await?;
        } else if self.workload == Workload::Snapshot {
            until_streaming(&node.daemon, self.backlog, &meter).await?;
        } else {
            until_passed(&node.daemon, self.backlog, &meter).await?;
        }
        let mut reading = meter.finish(Used::of_running(pid)?)?;
        reading.idle_rss_bytes = Some(idle);
        if reader == Reader::Lake {
            self.check_delivered(&node.daemon).await?;
        }
        until_sealed(&node.daemon, self.backlog.end, &mut reading).await?;
        Ok(reading)
    }

    /// The lake has the tables already; they are changed while the node is down, and the clock starts when
    /// it is started again. A mirror without the rows that a backlog updates and deletes would have less to do.
    async fn mirror_of_grown_tables(&self, round: u32) -> Result<Reading> {
        let name = format!("{}_lake_{round}", self.workload.name().to_lowercase());
        let tables = [name.clone()];
        let writer = workloads::writer(self.postgres).await?;
        workloads::create(&writer, self.workload, &tables, &name, self.scale).await?;
        let mut node = self.node()?;
        node.daemon.start().await?;
        let idle = host::memory_bytes(node.daemon.pid()?)?;
        let (slot, publication) = (format!("slot: {name}"), format!("publication: {name}"));
        let yaml = self.yaml(
            Reader::Lake,
            &node,
            &tables,
            &[&slot, &publication, "snapshot: initial"],
        );
        node.daemon.apply(&yaml).await?;
        node.daemon.wait(WAIT_PATIENCE).await?;
        node.daemon.stop()?;
        let written = workloads::fill(&writer, self.workload, &tables, self.scale).await?;
        ensure!(
            written.changes == self.backlog.changes,
            "the same seed has written {} changes, not {}",
            written.changes,
            self.backlog.changes
        );
        let end = workloads::mark(&writer).await?;
        self.warm_up().await?;
        let meter = Meter::start(self.postmaster()?, 0.0)?;
        node.daemon.start().await?;
        node.daemon.wait(WAIT_PATIENCE).await?;
        let mut reading = meter.finish(Used::of_running(node.daemon.pid()?)?)?;
        reading.idle_rss_bytes = Some(idle);
        self.check_delivered(&node.daemon).await?;
        until_sealed(&node.daemon, end, &mut reading).await?;
        node.daemon.stop()?;
        self.drop_slot(&name).await?;
        writer
            .batch_execute(&format!("drop publication {name}; drop table {name}"))
            .await?;
        Ok(reading)
    }

    /// A pipeline that stopped a table, or never had one, was fast for nothing.
    async fn check_delivered(&self, daemon: &Daemon) -> Result<()> {
        let source = daemon.describe("source", resources::SOURCE).await?;
        ensure!(
            has_events(&source, self.backlog),
            "the log ends at offset {} and lacks some of {} changes",
            source["next_offset"],
            self.backlog.changes
        );
        let pipeline = daemon.describe("pipeline", resources::PIPELINE).await?;
        check_tables(&pipeline)?;
        let tables = pipeline["tables"].as_array().cloned().unwrap_or_default();
        ensure!(
            tables.len() >= self.backlog.tables.len(),
            "the pipeline has {} tables",
            tables.len()
        );
        Ok(())
    }

    fn node(&self) -> Result<Node> {
        let folder = tempfile::Builder::new()
            .prefix("downriver-bench-")
            .tempdir()?;
        Ok(Node {
            daemon: Daemon::of_binary(self.binary.to_path_buf(), folder.path()),
            warehouse: folder.path().join("warehouse"),
            _folder: folder,
        })
    }

    fn yaml(&self, reader: Reader, node: &Node, tables: &[String], lines: &[&str]) -> String {
        let patterns: Vec<String> = tables
            .iter()
            .map(|table| format!("public.{table}"))
            .collect();
        let mut patterns: Vec<&str> = patterns.iter().map(String::as_str).collect();
        patterns.push("public.mark");
        let mut yaml = resources::source(self.postgres, &patterns, lines);
        if reader == Reader::Lake {
            yaml += &resources::sink_in_folder(&node.warehouse);
            yaml += &resources::pipeline(self.freshness);
        }
        yaml
    }

    fn postmaster(&self) -> Result<u32> {
        self.postgres.pid().context("PostgreSQL does not run")
    }

    /// A reader that failed may have left its copy, for a moment even in use.
    async fn copy_slot(&self) -> Result<String> {
        let copy = format!("{}_copy", self.backlog.slot);
        let sql = format!(
            "select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name = '{copy}';
             select pg_copy_logical_replication_slot('{}', '{copy}')",
            self.backlog.slot
        );
        host::until("a copy of the slot", SLOT_PATIENCE, async || {
            self.postgres.execute(&sql).await?;
            Ok(true)
        })
        .await?;
        Ok(copy)
    }

    /// Returns when the slot is gone; its walsender may outlive its reader for a moment.
    async fn drop_slot(&self, slot: &str) -> Result<()> {
        host::until("the slot to be free", SLOT_PATIENCE, async || {
            self.postgres
                .execute(&format!("select pg_drop_replication_slot('{slot}')"))
                .await?;
            Ok(true)
        })
        .await
    }
}

/// Downriver in a folder of its own.
struct Node {
    // Stopped before its folder goes.
    daemon: Daemon,
    warehouse: PathBuf,
    _folder: tempfile::TempDir,
}

/// A child that does not outlive an error.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // Both fail when it has ended and was waited for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Returns when everything of the backlog is in the log, and durable there.
///
/// Each look is a client command and costs some milliseconds of the cores that are measured, so there are
/// few of them far from the end and many near it.
async fn until_passed(daemon: &Daemon, backlog: &Backlog, meter: &Meter) -> Result<()> {
    let end = u64::from(backlog.end);
    let mut first: Option<(u64, Duration)> = None;
    loop {
        let source = daemon.describe("source", resources::SOURCE).await?;
        check_tables(&source)?;
        let now = position(&source, "position");
        if now >= end && has_events(&source, backlog) {
            return Ok(());
        }
        let (elapsed, remaining) = (meter.elapsed(), end.saturating_sub(now));
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
async fn until_streaming(daemon: &Daemon, backlog: &Backlog, meter: &Meter) -> Result<()> {
    loop {
        let source = daemon.describe("source", resources::SOURCE).await?;
        check_tables(&source)?;
        let tables = source["tables"].as_array().cloned().unwrap_or_default();
        if has_events(&source, backlog) && tables.iter().all(|table| table["state"] == "streaming")
        {
            return Ok(());
        }
        check_patience(meter.elapsed())?;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Notes what the log's last segment cost, if it is sealed in time.
async fn until_sealed(daemon: &Daemon, end: PgLsn, reading: &mut Reading) -> Result<()> {
    let started = Instant::now();
    while started.elapsed() < SEAL_PATIENCE {
        let source = daemon.describe("source", resources::SOURCE).await?;
        if position(&source, "acknowledged_position") >= u64::from(end) {
            let used = Used::of_running(daemon.pid()?)?;
            reading.sealed_cpu_seconds = Some(used.cpu_seconds);
            reading.sealed_after_seconds = Some(started.elapsed().as_secs_f64());
            reading.peak_rss_bytes = used.peak_rss_bytes;
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    Ok(())
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

/// A log that was empty before holds at least as many events as the backlog has changes: offsets are dense.
fn has_events(source: &Value, backlog: &Backlog) -> bool {
    source["next_offset"].as_u64() >= Some(backlog.changes)
}

/// 0 when there is none yet.
fn position(described: &Value, field: &str) -> u64 {
    let text = described[field].as_str().unwrap_or_default();
    text.parse::<PgLsn>().map_or(0, u64::from)
}
