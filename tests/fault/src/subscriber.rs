//! A subscriber of one node that goes on where it was when it is cut off, and never sees an offset twice or out of order.

use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use downriver_testkit::{Daemon, resources};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::task::JoinHandle;

use crate::round::digest;

/// Offsets and digests of what came.
type Seen = Vec<(u64, u64)>;

pub(crate) struct Subscriber {
    binary: std::path::PathBuf,
    seen: Arc<Mutex<Seen>>,
    task: JoinHandle<Result<()>>,
}

impl Subscriber {
    /// Follows the log from its end on, as the node has it now.
    pub(crate) fn start(node: &Daemon) -> Self {
        let seen = Arc::<Mutex<Seen>>::default();
        let binary = node.binary().to_path_buf();
        let address = node.addresses().map(|addresses| addresses.grpc.clone());
        let (of, program) = (Arc::clone(&seen), binary.clone());
        let task = tokio::spawn(async move {
            let address = address?;
            loop {
                // The node may be gone, or be somewhere else until the round is over.
                follow(&program, &address, &of, None).await?;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
        Self { binary, seen, task }
    }

    /// Reads the rest from the node, which may have another address by now; everything that was seen.
    pub(crate) async fn finish(self, address: &str, until: u64) -> Result<Seen> {
        if self.task.is_finished() {
            self.task.await??;
        } else {
            self.task.abort();
            let _ = self.task.await;
        }
        let last = |seen: &Mutex<Seen>| {
            let seen = seen.lock().expect("no holder panics");
            seen.last().map(|(last, _)| *last)
        };
        if last(&self.seen).is_none_or(|last| last + 1 < until) {
            follow(&self.binary, address, &self.seen, Some(until)).await?;
        }
        let seen = self.seen.lock().expect("no holder panics").clone();
        ensure!(
            seen.last().is_none_or(|(last, _)| last + 1 >= until),
            "it came to {:?} of {until}",
            seen.last()
        );
        Ok(seen)
    }
}

/// One connection, until it ends.
async fn follow(
    binary: &std::path::Path,
    address: &str,
    seen: &Mutex<Seen>,
    until: Option<u64>,
) -> Result<()> {
    let next = seen
        .lock()
        .expect("no holder panics")
        .last()
        .map(|(last, _)| last + 1);
    let from = next.map_or("latest".to_owned(), |next| next.to_string());
    let mut command = tokio::process::Command::new(binary);
    command.args(["tail", resources::SOURCE, "--from", &from, "-o", "json"]);
    if let Some(until) = until {
        command.args(["--until", &until.to_string()]);
    }
    let mut tail = command
        .env("DOWNRIVER_ADDR", address)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    let mut lines = BufReader::new(tail.stdout.take().context("its output")?).lines();
    while let Some(line) = lines.next_line().await? {
        // The process may be killed while it writes.
        let Ok(event) = serde_json::from_str::<Value>(&line) else {
            break;
        };
        let offset = event["offset"]
            .as_u64()
            .context("an event without offset")?;
        let mut seen = seen.lock().expect("no holder panics");
        if let Some((last, _)) = seen.last() {
            ensure!(offset == last + 1, "offset {offset} came after {last}");
        }
        seen.push((offset, digest(&line)));
    }
    Ok(())
}
