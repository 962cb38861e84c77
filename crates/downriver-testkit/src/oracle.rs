//! A subscriber that forgets nothing: it remembers a digest of every offset that it has seen, over all
//! restarts of the daemon, and calls out when an offset is missing, comes twice in one subscription, or
//! has changed.

use std::collections::BTreeMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::daemon::Daemon;
use crate::resources;

/// What was seen of one source's stream.
#[derive(Debug, Default)]
pub struct Oracle {
    /// Of each offset, from the first one on.
    digests: Vec<u64>,
    first: Option<u64>,
}

/// Events of one table by operation, and how often each key was inserted by the stream.
#[derive(Debug, Default)]
pub struct Census {
    pub events: u64,
    pub by_operation: BTreeMap<String, u64>,
    /// Of the table asked for: key -> (snapshot rows, streamed inserts).
    pub keys: BTreeMap<String, (u32, u32)>,
}

impl Oracle {
    pub fn new() -> Self {
        Self::default()
    }

    /// The next offset that has not been seen.
    pub fn next(&self) -> u64 {
        self.first
            .map_or(0, |first| first + self.digests.len() as u64)
    }

    /// Follows the stream from an offset that was seen already, until told to stop or the daemon dies.
    /// Whatever was read is judged; the end of the connection is not an error.
    pub async fn follow(&mut self, daemon: &Daemon, rewind: u64, patience: Duration) -> Result<()> {
        let from = match self.first {
            Some(first) => self.next().saturating_sub(rewind).max(first).to_string(),
            None => "earliest".to_owned(),
        };
        let mut command =
            daemon.command(&["tail", resources::SOURCE, "--from", &from, "-o", "json"])?;
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let stdout = child.stdout.take().context("no output of tail")?;
        let mut lines = BufReader::new(stdout).lines();
        let mut expected = (from != "earliest")
            .then(|| from.parse::<u64>())
            .transpose()?;
        let deadline = tokio::time::Instant::now() + patience;
        while let Ok(Ok(Some(line))) = tokio::time::timeout_at(deadline, lines.next_line()).await {
            // A process that is killed may leave half a line, which is no event.
            let Ok(event) = serde_json::from_str::<Value>(&line) else {
                break;
            };
            self.judge(&event, &mut expected)?;
        }
        let _ = child.kill().await;
        Ok(())
    }

    /// Reads the whole stream once more and compares it with all that was ever seen.
    pub async fn review(
        &mut self,
        daemon: &Daemon,
        table: &str,
        key_column: &str,
    ) -> Result<Census> {
        let arguments = [
            "tail",
            resources::SOURCE,
            "--from",
            "earliest",
            "--until",
            "latest",
            "-o",
            "json",
        ];
        let mut child = daemon.command(&arguments)?.stdout(Stdio::piped()).spawn()?;
        let stdout = child.stdout.take().context("no output of tail")?;
        let mut lines = BufReader::new(stdout).lines();
        let (mut expected, mut census) = (None, Census::default());
        while let Some(line) = lines.next_line().await? {
            let event: Value =
                serde_json::from_str(&line).with_context(|| format!("not JSON: {line}"))?;
            self.judge(&event, &mut expected)?;
            census.count(&event, table, key_column)?;
        }
        let status = child.wait().await?;
        ensure!(status.success(), "tail ended with {status}");
        ensure!(
            expected.unwrap_or(0) >= self.next(),
            "the stream ends before offset {:?}, offset {} was seen earlier: events were lost",
            expected,
            self.next()
        );
        Ok(census)
    }

    fn judge(&mut self, event: &Value, expected: &mut Option<u64>) -> Result<()> {
        let offset = event["offset"]
            .as_u64()
            .with_context(|| format!("event without offset: {event}"))?;
        if let Some(expected) = *expected {
            ensure!(
                offset == expected,
                "offset {offset} follows where {expected} should: a gap or a repetition"
            );
        }
        *expected = Some(offset + 1);
        let first = *self.first.get_or_insert(offset);
        let Some(index) = offset.checked_sub(first) else {
            bail!("offset {offset} lies before {first}, the earliest that was ever seen")
        };
        let digest = digest_of(event);
        match self.digests.get(index as usize) {
            Some(known) => ensure!(
                *known == digest,
                "the content of offset {offset} has changed: now {event}"
            ),
            None => {
                ensure!(
                    index as usize == self.digests.len(),
                    "offset {offset} skips unseen {}",
                    self.next()
                );
                self.digests.push(digest);
            }
        }
        Ok(())
    }
}

impl Census {
    fn count(&mut self, event: &Value, table: &str, key_column: &str) -> Result<()> {
        self.events += 1;
        let operation = event["op"]
            .as_str()
            .with_context(|| format!("event without op: {event}"))?;
        *self.by_operation.entry(operation.to_owned()).or_default() += 1;
        if event["table"] == table && !event["after"].is_null() {
            let key = &event["after"][key_column];
            let key = key.as_str().map_or_else(|| key.to_string(), str::to_owned);
            let entry = self.keys.entry(key).or_default();
            match operation {
                "snapshot" => entry.0 += 1,
                "insert" => entry.1 += 1,
                _ => {}
            }
        }
        Ok(())
    }

    /// Every key 1..=last is there, and none was streamed or read by the snapshot twice.
    pub fn ensure_complete(&self, last: i64) -> Result<()> {
        for key in 1..=last {
            match self.keys.get(&key.to_string()) {
                None => bail!("row {key} was committed and is not in the log"),
                Some((snapshot, streamed)) if *snapshot > 1 || *streamed > 1 => {
                    bail!(
                        "row {key} is in the log {snapshot} times as snapshot and {streamed} times as insert"
                    )
                }
                Some(_) => {}
            }
        }
        ensure!(
            self.keys.len() as i64 == last,
            "the log has {} keys, the table {last}",
            self.keys.len()
        );
        Ok(())
    }
}

/// serde_json's maps are ordered by key, so equal events have equal texts. A marker has a table's number only: `tail` calls
/// it by the newest name that it has met, which is another one where it begins elsewhere and the table was renamed.
fn digest_of(event: &Value) -> u64 {
    let op = event["op"].as_str().unwrap_or_default();
    let is_marker = op.contains("snapshot_") || op == "truncate";
    let mut event = event.clone();
    if is_marker && let Some(fields) = event.as_object_mut() {
        fields.remove("table");
    }
    let mut hasher = DefaultHasher::new();
    event.to_string().hash(&mut hasher);
    hasher.finish()
}
