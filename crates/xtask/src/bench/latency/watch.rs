//! Whoever sees the commits, and when.

use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use downriver_api::log::v1 as pb;
use downriver_api::log::v1::log_service_client::LogServiceClient;
use downriver_testkit::{Postgres, resources};
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tonic::Streaming;

/// A row's id, and when its whole transaction was there.
pub(super) type Sighting = (u64, Instant);

pub(super) enum Watch {
    Subscription(Streaming<pb::SubscribeResponse>),
    Recvlogical {
        lines: Lines<BufReader<ChildStdout>>,
        /// Ends when it is dropped.
        process: Child,
    },
}

/// What was seen, and who goes on watching.
pub(super) struct Watched {
    pub(super) sightings: Vec<Sighting>,
    pub(super) watch: Watch,
}

impl Watch {
    /// A subscriber of the source's log from its end on.
    pub(super) async fn subscribe(address: &str) -> Result<Self> {
        let mut client = LogServiceClient::connect(format!("http://{address}")).await?;
        let latest = pb::start::At::Special(pb::start::Special::Latest.into());
        let request = pb::SubscribeRequest {
            source: resources::SOURCE.to_owned(),
            start: Some(pb::Start { at: Some(latest) }),
            format: pb::Format::Events.into(),
            ..pb::SubscribeRequest::default()
        };
        let events = client.subscribe(request).await?.into_inner();
        Ok(Self::Subscription(events))
    }

    /// The server's own client, of a slot that prints lines.
    pub(super) fn recvlogical(postgres: &Postgres, slot: &str) -> Result<Self> {
        let mut process = Command::new(postgres.program("pg_recvlogical"))
            .args(["--start", "--no-loop", "-f", "-"])
            .args(["-h", "127.0.0.1", "-U", "postgres", "-d", "shop"])
            .args(["-p", &postgres.port().to_string()])
            .args(["-S", slot])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("run pg_recvlogical")?;
        let output = process.stdout.take().context("its output")?;
        let lines = BufReader::new(output).lines();
        Ok(Self::Recvlogical { lines, process })
    }

    /// Of the process that watches, if it is one.
    pub(super) fn pid(&self) -> Option<u32> {
        match self {
            Self::Subscription(_) => None,
            Self::Recvlogical { process, .. } => process.id(),
        }
    }

    /// Watches until the row of this id was seen.
    pub(super) async fn until(mut self, last: u64) -> Result<Watched> {
        let mut sightings: Vec<Sighting> = Vec::new();
        while sightings.last().is_none_or(|(id, _)| *id != last) {
            match &mut self {
                Self::Subscription(events) => {
                    let message = events.message().await?;
                    let now = Instant::now();
                    let message = message.context("the subscription ended")?;
                    sightings.extend(ids(&message).map(|id| (id, now)));
                }
                Self::Recvlogical { lines, .. } => {
                    let id = next_commit(lines).await?;
                    sightings.extend(id.map(|id| (id, Instant::now())));
                }
            }
        }
        Ok(Watched {
            sightings,
            watch: self,
        })
    }
}

/// Of the rows that a message brings. The id is their first column.
fn ids(message: &pb::SubscribeResponse) -> impl Iterator<Item = u64> {
    let events = match &message.item {
        Some(pb::subscribe_response::Item::Events(events)) => events.events.as_slice(),
        _ => &[],
    };
    events.iter().filter_map(|event| {
        let cell = event.after.as_ref()?.cells.first()?;
        match cell.kind.as_ref()? {
            pb::cell::Kind::Value(pb::Value {
                kind: Some(pb::value::Kind::Int(id)),
            }) => u64::try_from(*id).ok(),
            _ => None,
        }
    })
}

/// The row of the next transaction, when its COMMIT is printed; `None`: it has none.
async fn next_commit(lines: &mut Lines<BufReader<ChildStdout>>) -> Result<Option<u64>> {
    let mut id = None;
    loop {
        let Some(line) = lines.next_line().await? else {
            bail!("pg_recvlogical ended");
        };
        if line.starts_with("COMMIT") {
            return Ok(id);
        }
        id = id.or_else(|| inserted(&line));
    }
}

/// `table public.latency: INSERT: id[bigint]:17 account_id[integer]:...`
fn inserted(line: &str) -> Option<u64> {
    let (_, row) = line.split_once(" INSERT: id[bigint]:")?;
    row.split(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_of_a_printed_row_is_found() {
        let line = "table public.latency: INSERT: id[bigint]:17 note[text]:'id[bigint]:4'";
        assert_eq!(inserted(line), Some(17));
        assert_eq!(inserted("BEGIN 751"), None);
    }
}
