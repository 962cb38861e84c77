//! Seeded histories of real servers, many of them: the long form of the end-to-end tests `history`.

use std::fmt::{self, Write as _};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use downriver_testkit::history;
use downriver_testkit::mysql::Product;
use downriver_testkit::mysql_history;
use downriver_testkit::player::Played;
use downriver_testkit::postgres::Version;

use crate::basis::Basis;
use crate::page::Page;

const PAGE: Page = Page::results("docs/campaigns.md");

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// A server and how many rounds are played on it: a major version of PostgreSQL, mysql9, mariadb10 or mariadb11; may be
    /// repeated.
    #[arg(long = "server", value_name = "SERVER=ROUNDS", value_parser = parse_server,
          default_values = ["18=200", "17=40", "16=40", "15=40", "14=40", "13=40",
                            "mysql9=200", "mariadb10=40", "mariadb11=40"])]
    servers: Vec<(Server, u32)>,
    /// The first history's seed; each one after it has the next.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Rounds of one history.
    #[arg(long, default_value_t = 20)]
    rounds: u32,
    /// Put the result into docs/campaigns.md.
    #[arg(long)]
    update_docs: bool,
}

fn parse_server(text: &str) -> Result<(Server, u32), String> {
    let parts = text.split_once('=');
    let parsed = parts.and_then(|(server, rounds)| {
        let server = match server {
            "mysql9" => Server::Mysql(Product::Mysql9),
            "mariadb10" => Server::Mysql(Product::Mariadb10),
            "mariadb11" => Server::Mysql(Product::Mariadb11),
            major => Server::Postgres(major.parse().ok()?),
        };
        Some((server, rounds.parse().ok()?))
    });
    parsed.ok_or_else(|| "write SERVER=ROUNDS, 18=200 or mysql9=200 say".to_owned())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Server {
    /// A major version.
    Postgres(u32),
    Mysql(Product),
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Postgres(major) => write!(f, "PostgreSQL {major}"),
            Self::Mysql(Product::Mysql9) => f.write_str("MySQL 9"),
            Self::Mysql(Product::Mariadb10) => f.write_str("MariaDB 10"),
            Self::Mysql(Product::Mariadb11) => f.write_str("MariaDB 11"),
        }
    }
}

enum Player {
    Postgres(Box<history::Player>),
    Mysql(Box<mysql_history::Player>),
}

impl Player {
    async fn start(server: Server, seed: u64) -> Result<Self> {
        Ok(match server {
            Server::Postgres(major) => {
                let version = Version::Major(major);
                let style = history::Style { seed, version };
                Self::Postgres(Box::new(history::Player::start(style).await?))
            }
            Server::Mysql(product) => {
                let style = mysql_history::Style { seed, product };
                Self::Mysql(Box::new(mysql_history::Player::start(style).await?))
            }
        })
    }

    async fn round(&mut self) -> Result<()> {
        match self {
            Self::Postgres(player) => player.round().await,
            Self::Mysql(player) => player.round().await,
        }
    }

    fn played(&self) -> Played {
        match self {
            Self::Postgres(player) => player.played(),
            Self::Mysql(player) => player.played(),
        }
    }

    fn keep(self) -> PathBuf {
        match self {
            Self::Postgres(player) => player.keep(),
            Self::Mysql(player) => player.keep(),
        }
    }
}

/// A history that is to be played.
#[derive(Clone, Copy)]
struct Planned {
    server: Server,
    seed: u64,
    rounds: u32,
}

struct Outcome {
    planned: Planned,
    played: Played,
    took: Duration,
    /// Why it did not come to its end.
    failure: Option<String>,
}

pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    ensure!(arguments.rounds > 0, "a history has at least one round");
    if arguments.update_docs {
        PAGE.check()?;
    }
    let basis = Basis::look()?;
    // The servers are dropped on an interrupt, and with them their folders.
    let outcomes = tokio::select! {
        outcomes = play_all(&arguments) => outcomes?,
        interrupted = tokio::signal::ctrl_c() => {
            interrupted?;
            bail!("interrupted")
        }
    };
    let report = markdown(&basis, &outcomes);
    println!("\n{report}");
    if arguments.update_docs {
        PAGE.update(&report)?;
    }
    let failed = outcomes.iter().filter(|outcome| outcome.failure.is_some());
    let failed = failed.count();
    ensure!(failed == 0, "{failed} histories failed");
    Ok(())
}

fn plan(arguments: &Arguments) -> Vec<Planned> {
    let mut seeds = arguments.seed..;
    let mut planned = Vec::new();
    for (server, rounds) in &arguments.servers {
        let mut left = *rounds;
        while left > 0 {
            let rounds = left.min(arguments.rounds);
            left -= rounds;
            planned.push(Planned {
                server: *server,
                seed: seeds.next().expect("seeds have no end"),
                rounds,
            });
        }
    }
    planned
}

async fn play_all(arguments: &Arguments) -> Result<Vec<Outcome>> {
    let plan = plan(arguments);
    let total: u32 = plan.iter().map(|planned| planned.rounds).sum();
    let began = Instant::now();
    let mut outcomes = Vec::new();
    let (mut done, mut passed_over) = (0, 0);
    for planned in plan {
        let Planned {
            server,
            seed,
            rounds,
        } = planned;
        let start = Instant::now();
        let mut player = Player::start(server, seed)
            .await
            .with_context(|| format!("start seed {seed} on {server}"))?;
        let mut failure = None;
        for round in 1..=rounds {
            if let Err(error) = player.round().await {
                failure = Some(format!("{error:#}"));
                passed_over += rounds - round + 1;
                break;
            }
            done += 1;
            let each = began.elapsed() / done;
            println!(
                "{done} of {total} rounds; {server}, seed {seed}: round {round}; {:.1} s each, {} min left",
                each.as_secs_f64(),
                (each * (total - done - passed_over)).as_secs() / 60
            );
        }
        let played = player.played();
        if let Some(failure) = &failure {
            println!(
                "seed {seed} failed: {failure}\nkept in {}",
                player.keep().display()
            );
        }
        outcomes.push(Outcome {
            planned,
            played,
            took: start.elapsed(),
            failure,
        });
    }
    Ok(outcomes)
}

fn markdown(basis: &Basis, outcomes: &[Outcome]) -> String {
    let mut text = format!("{}; {}.\n\n", basis.commit(), basis.machine());
    text += "| server | seeds | rounds equal | statements | changes of shape | kills | cuts | re-snapshots | rows compared | min | failed |\n";
    text += "|---|---|---|---|---|---|---|---|---|---|---|\n";
    let mut servers: Vec<Server> = outcomes.iter().map(|o| o.planned.server).collect();
    servers.dedup();
    for server in servers {
        let of: Vec<_> = outcomes
            .iter()
            .filter(|o| o.planned.server == server)
            .collect();
        let played: Played = of.iter().map(|outcome| outcome.played).sum();
        let seeds = of.iter().map(|outcome| outcome.planned.seed);
        let took: Duration = of.iter().map(|outcome| outcome.took).sum();
        let _infallible = writeln!(
            text,
            "| {server} | {}–{} | {} of {} | {} | {} | {} | {} | {} | {} | {} | {} |",
            seeds.clone().min().unwrap_or_default(),
            seeds.max().unwrap_or_default(),
            played.rounds,
            of.iter().map(|outcome| outcome.planned.rounds).sum::<u32>(),
            played.statements,
            played.shape_changes,
            played.kills,
            played.cuts,
            played.resnapshots,
            played.rows_compared,
            took.as_secs() / 60,
            of.iter()
                .filter(|outcome| outcome.failure.is_some())
                .count(),
        );
    }
    for outcome in outcomes {
        if let Some(failure) = &outcome.failure {
            let line = failure.lines().next().unwrap_or_default();
            let (server, seed) = (outcome.planned.server, outcome.planned.seed);
            let _infallible = writeln!(text, "\nSeed {seed} on {server} failed: {line}");
        }
    }
    text
}
