//! What a reading took: time, CPU and memory of the reader, CPU of the whole server, and how much of the
//! machine somebody else used meanwhile.
//!
//! All of it comes from `/proc`. A process that has ended but was not waited for still has its CPU time
//! there, so the reader is looked at before it is reaped.

use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use downriver_testkit::host;
use serde::Serialize;

const LOOK_EVERY: Duration = Duration::from_millis(5);
/// Linux reports CPU time in units of 1/100 s on every architecture that this runs on.
const TICKS_PER_SECOND: f64 = 100.0;

/// One reading of a backlog, from its start to its end.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Reading {
    pub(super) seconds: f64,
    /// User and system time of the reader's process since it was started.
    pub(super) cpu_seconds: f64,
    /// The same of all processes of the database's server, during the reading.
    pub(super) server_cpu_seconds: f64,
    pub(super) peak_rss_bytes: u64,
    /// The share of all cores that neither reader nor server nor this program used.
    pub(super) others_share: f64,
    /// Downriver alone: resident memory of the ready node before it had anything to do.
    pub(super) idle_rss_bytes: Option<u64>,
    /// Downriver alone: CPU time once the log's last segment was in the store and acknowledged.
    pub(super) sealed_cpu_seconds: Option<f64>,
    /// How long after the end of the reading that was.
    pub(super) sealed_after_seconds: Option<f64>,
}

/// Runs from the start of a reading to its end.
pub(super) struct Meter {
    /// Of its processes, the parent of the others.
    server_pid: u32,
    started: Instant,
    server: f64,
    machine: f64,
    own: f64,
    /// What the reader had used before the start.
    reader: f64,
}

/// What a process has used in its life.
#[derive(Clone, Copy, Debug)]
pub(super) struct Used {
    pub(super) cpu_seconds: f64,
    pub(super) peak_rss_bytes: u64,
}

impl Used {
    pub(super) fn of_running(pid: u32) -> Result<Self> {
        Ok(Self {
            cpu_seconds: host::cpu_seconds(pid)?,
            peak_rss_bytes: host::peak_memory_bytes(pid)?,
        })
    }
}

impl Meter {
    /// `reader`: the CPU seconds of a reader that runs already.
    pub(super) fn start(server_pid: u32, reader: f64) -> Result<Self> {
        Ok(Self {
            server_pid,
            server: server_cpu_seconds(server_pid)?,
            machine: machine_cpu_seconds()?,
            own: own_cpu_seconds()?,
            reader,
            started: Instant::now(),
        })
    }

    /// The reader must not have been waited for.
    pub(super) fn finish(&self, used: Used) -> Result<Reading> {
        let seconds = self.started.elapsed().as_secs_f64();
        let server = server_cpu_seconds(self.server_pid)? - self.server;
        let ours = server + (used.cpu_seconds - self.reader) + own_cpu_seconds()? - self.own;
        let others = machine_cpu_seconds()? - self.machine - ours;
        let cores = std::thread::available_parallelism()?.get() as f64;
        Ok(Reading {
            seconds,
            cpu_seconds: used.cpu_seconds,
            server_cpu_seconds: server,
            peak_rss_bytes: used.peak_rss_bytes,
            others_share: (others / (seconds * cores)).clamp(0.0, 1.0),
            idle_rss_bytes: None,
            sealed_cpu_seconds: None,
            sealed_after_seconds: None,
        })
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }
}

/// Waits for a child to end, and leaves it to its parent to reap it.
pub(super) async fn until_ended(child: &Child, patience: Duration) -> Result<Used> {
    let (pid, started) = (child.id(), Instant::now());
    let mut peak_rss_bytes = 0;
    loop {
        let stat = Stat::read(pid)?;
        if stat.has_ended {
            return Ok(Used {
                cpu_seconds: stat.cpu_seconds,
                peak_rss_bytes,
            });
        }
        // A process that ends between the two looks has no memory any more.
        if let Ok(peak) = host::peak_memory_bytes(pid) {
            peak_rss_bytes = peak;
        }
        if started.elapsed() > patience {
            bail!("process {pid} did not end within {} s", patience.as_secs());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// A line of `/proc/PID/stat`, as far as it concerns us (proc_pid_stat(5)).
struct Stat {
    has_ended: bool,
    parent: u32,
    cpu_seconds: f64,
    /// Of the children that were waited for, and theirs.
    children_cpu_seconds: f64,
}

impl Stat {
    fn read(pid: u32) -> Result<Self> {
        let line =
            std::fs::read_to_string(format!("/proc/{pid}/stat")).context("process is gone")?;
        Self::parse(&line).context("unexpected /proc/PID/stat")
    }

    /// The name in parentheses may hold anything, so the fields are counted from behind it.
    fn parse(line: &str) -> Option<Self> {
        let fields: Vec<&str> = line.rsplit_once(')')?.1.split_whitespace().collect();
        let seconds = |at: usize| Some(fields.get(at)?.parse::<f64>().ok()? / TICKS_PER_SECOND);
        Some(Self {
            has_ended: matches!(*fields.first()?, "Z" | "X"),
            parent: fields.get(1)?.parse().ok()?,
            cpu_seconds: seconds(11)? + seconds(12)?,
            children_cpu_seconds: seconds(13)? + seconds(14)?,
        })
    }
}

/// A server's first process, the children that it has now, and those that it had. MySQL has none.
fn server_cpu_seconds(pid: u32) -> Result<f64> {
    loop {
        let before = Stat::read(pid)?;
        let running = children_cpu_seconds(pid)?;
        let after = Stat::read(pid)?;
        // A process that ended between the looks would be counted twice, or not at all.
        if before.children_cpu_seconds == after.children_cpu_seconds {
            return Ok(running + after.cpu_seconds + after.children_cpu_seconds);
        }
    }
}

fn children_cpu_seconds(parent: u32) -> Result<f64> {
    let mut seconds = 0.0;
    for entry in std::fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        if let Ok(stat) = Stat::read(pid)
            && stat.parent == parent
        {
            seconds += stat.cpu_seconds;
        }
    }
    Ok(seconds)
}

/// This program, and the client commands that it ran.
fn own_cpu_seconds() -> Result<f64> {
    let stat = Stat::read(std::process::id())?;
    Ok(stat.cpu_seconds + stat.children_cpu_seconds)
}

/// What all processes together have used since the machine was started.
fn machine_cpu_seconds() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/stat")?;
    let line = text.lines().next().unwrap_or_default();
    let ticks: Vec<f64> = line
        .split_whitespace()
        .skip(1)
        .take(8)
        .map(str::parse)
        .collect::<Result<_, _>>()
        .context("unexpected /proc/stat")?;
    // Fields 3 and 4 are idle and waiting for a disk (proc_stat(5)).
    let busy = ticks
        .iter()
        .enumerate()
        .filter(|(at, _)| !matches!(at, 3 | 4));
    Ok(busy.map(|(_, ticks)| ticks).sum::<f64>() / TICKS_PER_SECOND)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_process_name_with_spaces_and_parentheses_does_not_move_the_fields() {
        let stat = Stat::parse(
            "17 (walsender (a) b) Z 5 17 17 0 -1 4194560 1 2 3 4 150 50 7 3 20 0 1 0 9 0 0\n",
        )
        .unwrap();
        assert!(stat.has_ended);
        assert_eq!(stat.parent, 5);
        assert!((stat.cpu_seconds - 2.0).abs() < 1e-9);
        assert!((stat.children_cpu_seconds - 0.1).abs() < 1e-9);
    }

    #[tokio::test]
    async fn a_child_that_ended_is_measured_before_it_is_reaped() {
        let mut child = std::process::Command::new("sh")
            .args([
                "-c",
                "i=0; while [ $i -lt 200000 ]; do i=$((i + 1)); done; exit 3",
            ])
            .spawn()
            .unwrap();
        let used = until_ended(&child, Duration::from_secs(60)).await.unwrap();
        assert!(used.cpu_seconds > 0.0);
        assert!(used.peak_rss_bytes > 0);
        assert_eq!(child.wait().unwrap().code(), Some(3));
    }
}
