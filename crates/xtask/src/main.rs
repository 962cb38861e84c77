//! Chores: the demo, the benchmark, the campaign, and what a machine can check of the tree.

mod basis;
mod bench;
mod campaign;
mod demo;
mod histories;
mod page;
mod planted;
mod tidy;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Drains backlogs of a real PostgreSQL and MySQL, beside their own clients; see docs/benchmarks.md.
    Bench(bench::Arguments),
    /// Plays seeded rounds of faults against a cluster over real servers; see docs/reliability.md.
    Campaign(campaign::Arguments),
    /// Plays seeded histories of schema and row changes against real servers; see docs/campaigns.md.
    Histories(histories::Arguments),
    /// A shop under load, captured into the log and compared with it.
    Demo {
        /// Leave everything running.
        #[arg(long)]
        keep: bool,
    },
    /// Plants bugs, one by one, and has each found; see docs/planted-bugs.md.
    Planted(planted::Arguments),
    /// Checks what the compiler does not: error pages, paths of a workplace.
    Tidy,
}

#[tokio::main]
async fn main() -> Result<()> {
    match Arguments::parse().chore {
        Chore::Bench(arguments) => bench::run(arguments).await,
        Chore::Campaign(arguments) => campaign::run(arguments).await,
        Chore::Histories(arguments) => histories::run(arguments).await,
        Chore::Demo { keep } => demo::run(keep).await,
        Chore::Planted(arguments) => planted::run(&arguments),
        Chore::Tidy => tidy::run(),
    }
}
