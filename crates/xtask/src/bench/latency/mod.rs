//! How long a commit takes to be seen, while commits come at a steady rate.
//!
//! `commits` writes them and notes when; `watch` notes when they were seen, by a subscriber of a node or by a bare reader
//! of the server; `trio` is three nodes and what each of them is. `delays` is what lies between, `report` how it is told.
//! What the numbers mean is in `docs/benchmarks.md`.

mod commits;
mod delays;
mod report;
mod trio;
mod watch;

use std::ops::Range;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use downriver_testkit::{Daemon, Postgres, host, resources};
use serde::Serialize;
use tokio::task::JoinSet;
use tokio_postgres::Client;

use self::commits::PER_SECOND;
use self::delays::{Delay, Run, Seen};
use self::report::Report;
use self::trio::Trio;
use self::watch::Watch;
use super::build::{self, Binary};
use super::measure::{Meter, Used};
use super::node::Node;
use super::rows::Rows;
use super::server::{Database, Server};
use super::workloads::{self, Shape, Tables};
use super::writer::Writer;
use super::{order, progress, slots, step, write};

const WARM_UP_SECONDS: u32 = 3;
/// For the last commit to be seen, and for a source to stream.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(clap::Args, Debug)]
pub(super) struct Arguments {
    /// How often each viewer is measured; what it saw in all rounds is counted together.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// How long a viewer is measured in each round, after it has been warmed up.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Write everything that was measured, and on what.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the result as markdown.
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Put the result into docs/benchmarks.md.
    #[arg(long)]
    update_docs: bool,
}

/// Who sees the commits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Viewer {
    /// `pg_recvlogical` into a pipe: what the server alone takes.
    Recvlogical,
    /// A subscriber of `downriver dev`.
    OneNode,
    /// A subscriber of the one of three nodes that owns the source; another leads.
    Owner,
    /// A subscriber of the one of three nodes that neither owns the source nor leads.
    Third,
}

impl Viewer {
    const ALL: [Self; 4] = [Self::Recvlogical, Self::OneNode, Self::Owner, Self::Third];

    fn name(self) -> &'static str {
        match self {
            Self::Recvlogical => "pg_recvlogical",
            Self::OneNode => "one node",
            Self::Owner => "three nodes, the owner",
            Self::Third => "three nodes, the third",
        }
    }

    /// What the architecture asks of the 99th percentile, of a release build.
    fn p99_ms_max(self) -> Option<f64> {
        match self {
            Self::Recvlogical => None,
            Self::OneNode => Some(20.0),
            Self::Owner | Self::Third => Some(50.0),
        }
    }
}

/// What runs while its viewers are measured, and not otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Server,
    OneNode,
    ThreeNodes,
}

impl Stage {
    const ALL: [Self; 3] = [Self::Server, Self::OneNode, Self::ThreeNodes];

    fn name(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::OneNode => "one",
            Self::ThreeNodes => "three",
        }
    }

    fn viewers(self) -> &'static [Viewer] {
        match self {
            Self::Server => &[Viewer::Recvlogical],
            Self::OneNode => &[Viewer::OneNode],
            Self::ThreeNodes => &[Viewer::Owner, Viewer::Third],
        }
    }
}

pub(super) async fn measure_all(arguments: &Arguments) -> Result<()> {
    if arguments.update_docs {
        report::PAGE.check()?;
    }
    let binary = build::binary()?;
    let mut report = Report::begin(arguments.rounds, arguments.seconds, &binary)?;
    step("PostgreSQL, from a commit to whoever sees it");
    let server = Server::start(Database::Postgres).await?;
    report.note_server(&server).await?;
    let mut writer = Writer::connect(&server).await?;
    let tables = workloads::create(&mut writer, Shape::Inserts, "latency", 1.0).await?;
    drop(writer);
    let Server::Postgres(postgres) = &server else {
        bail!("a server of PostgreSQL was started");
    };
    let mut bench = Bench {
        server: &server,
        postgres,
        // Its commits wait for the disk, as a user's do.
        client: postgres.client().await?,
        binary: &binary,
        tables,
        rows: Rows::new(),
        next_id: 0,
        seconds: arguments.seconds,
        runs: Vec::new(),
    };
    for round in 1..=arguments.rounds {
        for stage in order(&Stage::ALL, round) {
            bench.play(stage, round).await;
        }
    }
    report.add(bench.runs);
    println!("\n{}", report.terminal());
    write(report.json()?, arguments.json.as_deref())?;
    write(report.markdown(), arguments.markdown.as_deref())?;
    if arguments.update_docs {
        report::PAGE.update(&report.markdown())?;
    }
    ensure!(!report.has_failures(), "not every viewer saw every commit");
    Ok(())
}

/// What all measurements share.
struct Bench<'a> {
    server: &'a Server,
    postgres: &'a Postgres,
    client: Client,
    binary: &'a Binary,
    tables: Tables,
    rows: Rows,
    next_id: u64,
    seconds: u32,
    runs: Vec<Run>,
}

impl Bench<'_> {
    /// Measures each viewer of a stage that has not failed yet.
    async fn play(&mut self, stage: Stage, round: u32) {
        let mut viewers = order(stage.viewers(), round);
        viewers.retain(|viewer| !self.has_failed(*viewer));
        if viewers.is_empty() {
            return;
        }
        // One that failed leaves its own.
        let slot = format!("latency_{}_{round}", stage.name());
        let played = match stage {
            Stage::Server => self.on_server(&slot, round).await,
            Stage::OneNode => self.on_one_node(&slot, round).await,
            Stage::ThreeNodes => self.on_three_nodes(&slot, round, &viewers).await,
        };
        if let Err(error) = played {
            // Those that were not measured any more failed with it.
            let is_measured = |viewer| {
                let mut runs = self.runs.iter();
                runs.any(|run| run.round == round && run.viewer == viewer)
            };
            let left: Vec<Viewer> = viewers.into_iter().filter(|v| !is_measured(*v)).collect();
            for viewer in left {
                self.note(Run::failed(round, viewer, &error));
            }
        }
    }

    fn has_failed(&self, viewer: Viewer) -> bool {
        let mut runs = self.runs.iter();
        runs.any(|run| run.viewer == viewer && run.failure.is_some())
    }

    fn note(&mut self, run: Run) {
        progress(&format!("round {}: {}", run.round, run.line()));
        self.runs.push(run);
    }

    async fn on_server(&mut self, slot: &str, round: u32) -> Result<()> {
        slots::create(self.postgres, slot, "test_decoding").await?;
        let watch = Watch::recvlogical(self.postgres, slot)?;
        let pids = [watch.pid().context("pg_recvlogical does not run")?];
        let seen = self.measure(watch, &pids).await?;
        slots::drop(self.postgres, slot).await?;
        self.note(Run::new(round, Viewer::Recvlogical, seen));
        Ok(())
    }

    async fn on_one_node(&mut self, slot: &str, round: u32) -> Result<()> {
        let mut node = Node::new(&self.binary.path, Database::Postgres)?;
        node.daemon.start().await?;
        slots::create(self.postgres, slot, "pgoutput").await?;
        node.daemon.apply(&self.source(slot)).await?;
        let watch = subscribe(&node.daemon).await?;
        let seen = self.measure(watch, &[node.daemon.pid()?]).await?;
        node.daemon.stop()?;
        slots::drop(self.postgres, slot).await?;
        self.note(Run::new(round, Viewer::OneNode, seen));
        Ok(())
    }

    async fn on_three_nodes(&mut self, slot: &str, round: u32, viewers: &[Viewer]) -> Result<()> {
        let trio = Trio::start(&self.binary.path).await?;
        slots::create(self.postgres, slot, "pgoutput").await?;
        trio.cluster.nodes[0].apply(&self.source(slot)).await?;
        let cast = trio.cast().await?;
        for viewer in viewers {
            let node = match viewer {
                Viewer::Third => cast.third,
                _ => cast.owner,
            };
            let watch = subscribe(&trio.cluster.nodes[node]).await?;
            let seen = self.measure(watch, &trio.pids()?).await?;
            let now = trio.look().await?;
            ensure!(
                now == (cast.owner, cast.leader),
                "owner and leader were {:?}, and then {now:?}",
                (cast.owner, cast.leader)
            );
            self.note(Run::new(round, *viewer, seen));
        }
        trio.end();
        slots::drop(self.postgres, slot).await
    }

    fn source(&self, slot: &str) -> String {
        let slot = format!("slot: {slot}");
        let publication = format!("publication: {}", self.tables.publication);
        let lines = [&slot, &publication, "snapshot: none"];
        self.server.source(&self.tables, &lines)
    }

    /// Lets a viewer watch commits; `pids`: the processes that bring them there.
    async fn measure(&mut self, watch: Watch, pids: &[u32]) -> Result<Seen> {
        let warm_up = self.ids(WARM_UP_SECONDS);
        let ids = self.ids(self.seconds);
        let last = ids.end - 1;
        let mut watching = JoinSet::new();
        watching.spawn(watch.until(last));
        let table = &self.tables.names[0];
        commits::write(&self.client, table, &mut self.rows, warm_up).await?;
        let before = used(pids)?;
        let meter = Meter::start(self.server.pid()?, before.cpu_seconds)?;
        let began = Instant::now();
        let commits = commits::write(&self.client, table, &mut self.rows, ids).await?;
        let seconds = began.elapsed().as_secs_f64();
        let watched = tokio::time::timeout(PATIENCE, watching.join_next()).await;
        let watched = watched.with_context(|| {
            format!("commit {last} was not seen within {} s", PATIENCE.as_secs())
        })?;
        let watched = watched.context("there is a viewer")???;
        let after = used(pids)?;
        let reading = meter.finish(after)?;
        drop(watched.watch);
        Ok(Seen {
            commits_per_second: commits.len() as f64 / seconds,
            cores: (after.cpu_seconds - before.cpu_seconds) / reading.seconds,
            others_share: reading.others_share,
            delays: Delay::all(&commits, &watched.sightings)?,
        })
    }

    /// So many seconds' rows that were not written yet.
    fn ids(&mut self, seconds: u32) -> Range<u64> {
        let first = self.next_id;
        self.next_id += u64::from(seconds * PER_SECOND);
        first..self.next_id
    }
}

/// Watches what a node has of the source from here on.
async fn subscribe(node: &Daemon) -> Result<Watch> {
    let (kind, name) = ("source", resources::SOURCE);
    let is_streaming = |source: &serde_json::Value| source["state"] == "streaming";
    node.until_described(kind, name, "the source to stream", PATIENCE, is_streaming)
        .await?;
    Watch::subscribe(&node.addresses()?.grpc).await
}

/// What several processes have used together.
fn used(pids: &[u32]) -> Result<Used> {
    let mut all = Used {
        cpu_seconds: 0.0,
        peak_rss_bytes: 0,
    };
    for pid in pids {
        all.cpu_seconds += host::cpu_seconds(*pid)?;
        all.peak_rss_bytes += host::peak_memory_bytes(*pid)?;
    }
    Ok(all)
}
