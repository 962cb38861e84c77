//! How long no change came, as a subscriber sees it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use downriver_testkit::{Daemon, resources};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// A subscriber of one node, while something is written all the time.
pub struct Gap {
    stop: watch::Sender<bool>,
    task: JoinHandle<Result<Duration>>,
}

impl Gap {
    /// Follows the log from its end on.
    pub fn watch(node: &Daemon) -> Self {
        let tail = ["tail", resources::SOURCE, "--from", "latest", "-o", "json"];
        let command = node.command(&tail);
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(async move {
            let mut command = command?;
            let mut tail = command.stdout(std::process::Stdio::piped()).spawn()?;
            let mut lines = BufReader::new(tail.stdout.take().context("its output")?).lines();
            let mut stopped = stopped;
            let (mut last, mut longest) = (None::<Instant>, Duration::ZERO);
            loop {
                tokio::select! {
                    line = lines.next_line() => {
                        line?.context("the subscription ended")?;
                        if let Some(last) = last {
                            longest = longest.max(last.elapsed());
                        }
                        last = Some(Instant::now());
                    }
                    _ = stopped.wait_for(|stopped| *stopped) => return Ok(longest),
                }
            }
        });
        Self { stop, task }
    }

    /// The longest time without a change so far.
    pub async fn longest(self) -> Result<Duration> {
        self.stop.send_replace(true);
        self.task.await.context("the subscriber's task")?
    }
}
