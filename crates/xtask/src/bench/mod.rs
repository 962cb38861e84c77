//! The benchmark: every reader of a workload drains the same backlog of a real PostgreSQL or MySQL, in turns.
//!
//! `workloads` says what is written, and `writer` how; `server` is what it is written to. `readers` says who reads it:
//! `references`, which are the databases' own clients, and Downriver, a `node`. `measure` is what that took, `summary`
//! what the rounds come to, `report` how it is told. What the numbers mean is in `docs/benchmarks.md`.
//!
//! `latency` measures something else: how long a commit takes to be seen while nobody is behind.

mod build;
mod latency;
mod measure;
mod node;
mod readers;
mod references;
mod report;
mod rows;
mod server;
mod slots;
mod summary;
mod workloads;
mod writer;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use clap::ValueEnum as _;

use self::build::Binary;
use self::readers::{Bench, Reader};
use self::report::{Report, WorkloadReport};
use self::server::Server;
use self::summary::{Run, grouped};
use self::workloads::Workload;
use self::writer::Writer;

#[derive(clap::Args, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    other: Option<Other>,
    /// Which workloads; all unless named.
    #[arg(value_enum, ignore_case = true)]
    workloads: Vec<Workload>,
    /// How often every reader reads each backlog; medians are reported.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Factor on the number of changes: 0.1 for a quick look, 1 for numbers to show.
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// Write everything that was measured, and on what.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the result as markdown.
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Put the result into docs/benchmarks.md.
    #[arg(long)]
    update_docs: bool,
    /// Leave out the variants with a sink and a pipeline.
    #[arg(long)]
    no_lake: bool,
    /// The pipelines' freshness.
    #[arg(long, default_value = "10s")]
    freshness: String,
}

/// What is no reading of a backlog.
#[derive(clap::Subcommand, Debug)]
enum Other {
    /// How long a commit takes to be seen by a subscriber, at 100 commits a second.
    Latency(latency::Arguments),
}

pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    ensure!(
        arguments.scale > 0.0 && arguments.scale.is_finite(),
        "the scale must be positive"
    );
    // The measuring is dropped on an interrupt, and with it the servers and their folders.
    tokio::select! {
        done = measure(&arguments) => done,
        interrupted = tokio::signal::ctrl_c() => {
            interrupted?;
            bail!("interrupted")
        }
    }
}

async fn measure(arguments: &Arguments) -> Result<()> {
    match &arguments.other {
        Some(Other::Latency(arguments)) => latency::measure_all(arguments).await,
        None => measure_all(arguments).await,
    }
}

async fn measure_all(arguments: &Arguments) -> Result<()> {
    if arguments.update_docs {
        report::PAGE.check()?;
    }
    let binary = build::binary()?;
    let mut report = Report::begin(arguments.rounds, arguments.scale, &binary)?;
    for workload in chosen(&arguments.workloads) {
        step(&format!("{}, {}", workload.name(), workload.title()));
        measure_workload(workload, arguments, &binary, &mut report)
            .await
            .with_context(|| format!("workload {}", workload.name()))?;
        // Written after each, so that what was measured outlives a failure of the next.
        write(report.json()?, arguments.json.as_deref())?;
    }
    println!("\n{}", report.terminal());
    write(report.markdown(), arguments.markdown.as_deref())?;
    if arguments.update_docs {
        report::PAGE.update(&report.markdown())?;
    }
    ensure!(
        !report.has_failures(),
        "not every reader reached the end of its backlog"
    );
    Ok(())
}

/// In the order of their names, each once.
fn chosen(named: &[Workload]) -> Vec<Workload> {
    let all = Workload::value_variants().iter().copied();
    all.filter(|workload| named.is_empty() || named.contains(workload))
        .collect()
}

fn write(text: String, file: Option<&Path>) -> Result<()> {
    let Some(file) = file else {
        return Ok(());
    };
    std::fs::write(file, text).with_context(|| format!("write {}", file.display()))
}

async fn measure_workload(
    workload: Workload,
    arguments: &Arguments,
    binary: &Binary,
    report: &mut Report,
) -> Result<()> {
    let database = workload.database;
    progress(&format!("starting {}", database.name()));
    let server = Server::start(database).await?;
    report.note_server(&server).await?;
    let mut writer = Writer::connect(&server).await?;
    let base = workload.name().to_lowercase();
    let (shape, scale) = (workload.shape, arguments.scale);
    progress("making the tables, and the place before the backlog");
    let bench = Bench {
        server: &server,
        binary: &binary.path,
        workload,
        scale,
        freshness: &arguments.freshness,
        tables: workloads::create(&mut writer, shape, &base, scale).await?,
    };
    let mut readers = Reader::of(workload);
    readers.retain(|reader| *reader != Reader::Lake || !arguments.no_lake);
    let mut standing = bench.take_place(&readers).await?;
    progress("writing the backlog, which nobody reads meanwhile");
    let backlog = workloads::write(&mut writer, shape, &bench.tables, scale).await?;
    drop(writer);
    progress(&format!(
        "{} changes in {} transactions, {} MB of {}",
        grouped(backlog.changes as f64),
        grouped(backlog.transactions as f64),
        backlog.log_bytes / 1_000_000,
        database.log_name()
    ));
    let mut runs: Vec<Run> = Vec::new();
    for round in 1..=arguments.rounds {
        for reader in order(&readers, round) {
            // A reader that failed will fail again, and may take its whole patience for it.
            if runs
                .iter()
                .any(|run| run.reader == reader && run.failure.is_some())
            {
                continue;
            }
            let reading = bench.read(reader, round, &backlog, &mut standing).await;
            let run = Run::new(round, reader, reading);
            progress(&format!(
                "round {round} of {}: {}",
                arguments.rounds,
                run.line(backlog.changes)
            ));
            runs.push(run);
        }
    }
    report.add(WorkloadReport::new(workload, &backlog, runs));
    Ok(())
}

/// Every second round goes the other way, so that none is always first.
fn order<T: Clone>(all: &[T], round: u32) -> Vec<T> {
    let mut order = all.to_vec();
    if round.is_multiple_of(2) {
        order.reverse();
    }
    order
}

fn step(what: &str) {
    println!("== {what}");
}

fn progress(what: &str) {
    println!("   {what}");
}
