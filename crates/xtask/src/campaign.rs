//! Seeded rounds of faults against a cluster, many of them: the long form of `tests/fault`'s `rounds`. What was played is
//! kept, so that a campaign that was interrupted goes on.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use downriver_testkit::host;
use downriver_testkit::mysql::Product;
use fault::World;
use fault::failover::{self, Role};
use fault::faults::Evidence;
use fault::round::{self, Round};
use serde::{Deserialize, Serialize};

use crate::basis::Basis;
use crate::page::Page;

const PAGE: Page = Page::results("docs/reliability.md");
/// Rounds of one cluster; then comes a new one.
const ROUNDS_OF_A_WORLD: usize = 10;
/// Kills of one cluster, in each role.
const KILLS_OF_A_WORLD: usize = 10;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Rounds in which something was really hurt.
    #[arg(long, default_value_t = 120)]
    rounds: usize,
    /// The first round's seed; each one after it has the next.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// With a second source.
    #[arg(long, value_enum, conflicts_with = "update_docs")]
    branch: Option<Branch>,
    /// How often a node is killed in each role, to see how long nothing comes.
    #[arg(long, default_value_t = 0)]
    kills: usize,
    /// Forget what was played of this commit before.
    #[arg(long)]
    anew: bool,
    /// Put the result into docs/reliability.md.
    #[arg(long)]
    update_docs: bool,
}

/// What the second source is in.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Branch {
    Mysql,
    Mariadb,
}

impl Branch {
    fn product(self) -> Product {
        match self {
            Self::Mysql => Product::Mysql9,
            Self::Mariadb => Product::Mariadb11,
        }
    }
}

/// One line of what was played.
#[derive(Debug, Serialize, Deserialize)]
enum Line {
    Round(Played),
    Kill { role: String, millis: u64 },
}

#[derive(Debug, Serialize, Deserialize)]
struct Played {
    seed: u64,
    /// Kinds of faults, and what each did; `None`: it bit nothing.
    faults: Vec<(String, Option<String>)>,
    converged_ms: u64,
    took_ms: u64,
    transactions: u64,
    events: usize,
    failure: Option<String>,
}

impl Played {
    fn of(round: &Round) -> Self {
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let faults = round.faults.iter().map(|(fault, evidence)| {
            let did = match evidence {
                Evidence::Bit(what) => Some(what.clone()),
                Evidence::Skipped(_) => None,
            };
            (fault.kind.to_string(), did)
        });
        Self {
            seed: round.seed,
            faults: faults.collect(),
            converged_ms: millis(round.converged),
            took_ms: millis(round.took),
            transactions: round.transactions,
            events: round.events,
            failure: None,
        }
    }

    fn counts(&self) -> bool {
        self.failure.is_some() || self.faults.iter().any(|(_, did)| did.is_some())
    }
}

/// What was played of one commit, in worlds of one kind.
struct Record {
    path: PathBuf,
    lines: Vec<Line>,
}

impl Record {
    fn open(commit: &str, arguments: &Arguments) -> Result<Self> {
        let folder = host::cache_dir().join("campaign");
        std::fs::create_dir_all(&folder)?;
        let kind = arguments.branch.map(|branch| format!("-{branch:?}"));
        let kind = kind.unwrap_or_default().to_lowercase();
        let path = folder.join(format!("{commit}{kind}.jsonl"));
        if arguments.anew {
            let _ = std::fs::remove_file(&path);
        }
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let lines = text.lines().map(serde_json::from_str);
        let lines = lines.collect::<Result<_, _>>();
        Ok(Self {
            lines: lines.with_context(|| format!("read {}", path.display()))?,
            path,
        })
    }

    fn add(&mut self, line: Line) -> Result<()> {
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.path)?;
        writeln!(file, "{}", serde_json::to_string(&line)?)?;
        self.lines.push(line);
        Ok(())
    }

    fn rounds(&self) -> impl Iterator<Item = &Played> {
        self.lines.iter().filter_map(|line| match line {
            Line::Round(played) => Some(played),
            Line::Kill { .. } => None,
        })
    }

    fn kills(&self, of: Role) -> Vec<u64> {
        let of = format!("{of:?}");
        let kills = self.lines.iter().filter_map(|line| match line {
            Line::Kill { role, millis } if *role == of => Some(*millis),
            _ => None,
        });
        kills.collect()
    }

    fn counted(&self) -> usize {
        self.rounds().filter(|played| played.counts()).count()
    }
}

pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    if arguments.update_docs {
        PAGE.check()?;
    }
    let basis = Basis::look()?;
    let mut record = Record::open(basis.short(), &arguments)?;
    let played = async {
        play_rounds(&arguments, &mut record).await?;
        play_kills(&arguments, &mut record).await
    };
    // The servers are dropped on an interrupt, and with them their folders.
    tokio::select! {
        played = played => played?,
        interrupted = tokio::signal::ctrl_c() => {
            interrupted?;
            bail!("interrupted: the same command goes on")
        }
    }
    let report = markdown(&basis, &record);
    println!("\n{report}");
    if arguments.update_docs {
        PAGE.update(&report)?;
    }
    let failed = record.rounds().filter(|played| played.failure.is_some());
    let failed = failed.count();
    ensure!(failed == 0, "{failed} rounds failed");
    Ok(())
}

async fn play_rounds(arguments: &Arguments, record: &mut Record) -> Result<()> {
    let last = record.rounds().map(|played| played.seed).max();
    let mut seed = last.map_or(arguments.seed, |last| last + 1);
    let (began, done_before) = (Instant::now(), record.counted());
    let mut world: Option<(World, usize)> = None;
    while record.counted() < arguments.rounds {
        let (mut here, played) = match world.take() {
            Some((world, played)) if played < ROUNDS_OF_A_WORLD => (world, played),
            _ => {
                let opened = match arguments.branch {
                    Some(branch) => World::open_with_branch(branch.product()).await,
                    None => World::open().await,
                };
                (opened.context("open a cluster")?, 0)
            }
        };
        match round::play(&mut here, seed).await {
            Ok(round) => {
                record.add(Line::Round(Played::of(&round)))?;
                world = Some((here, played + 1));
            }
            Err(error) => {
                let failure = format!("{error:#}");
                let kept = kept(seed);
                here.keep(&kept)?;
                println!("seed {seed} failed: {failure}\\nkept in {}", kept.display());
                record.add(Line::Round(Played {
                    seed,
                    faults: Vec::new(),
                    converged_ms: 0,
                    took_ms: 0,
                    transactions: 0,
                    events: 0,
                    failure: Some(failure),
                }))?;
            }
        }
        let done = record.counted();
        let new = u32::try_from(done - done_before)?.max(1);
        let each = began.elapsed() / new;
        let left = u32::try_from(arguments.rounds.saturating_sub(done))?;
        println!(
            "{done} of {} rounds; seed {seed}; {:.1} s each, {} min left",
            arguments.rounds,
            each.as_secs_f64(),
            (each * left).as_secs() / 60
        );
        seed += 1;
    }
    Ok(())
}

fn kept(seed: u64) -> PathBuf {
    std::env::temp_dir().join(format!("downriver-campaign-{seed}"))
}

async fn play_kills(arguments: &Arguments, record: &mut Record) -> Result<()> {
    let mut world: Option<(World, usize)> = None;
    for role in [Role::Owner, Role::Leader, Role::Both] {
        while record.kills(role).len() < arguments.kills {
            let (mut here, killed) = match world.take() {
                Some((world, killed)) if killed < 3 * KILLS_OF_A_WORLD => (world, killed),
                _ => (World::open().await.context("open a cluster")?, 0),
            };
            let gap = failover::kill(&mut here, role).await?;
            let millis = u64::try_from(gap.as_millis())?;
            record.add(Line::Kill {
                role: format!("{role:?}"),
                millis,
            })?;
            println!(
                "{role:?} killed, {} of {}: nothing came for {millis} ms",
                record.kills(role).len(),
                arguments.kills
            );
            world = Some((here, killed + 1));
        }
    }
    Ok(())
}

/// The least value that as many of the sorted values do not exceed.
fn percentile(sorted: &[u64], of_hundred: usize) -> u64 {
    let at = (sorted.len() * of_hundred).div_ceil(100).max(1) - 1;
    sorted.get(at).copied().unwrap_or_default()
}

fn spread(mut millis: Vec<u64>) -> String {
    millis.sort_unstable();
    format!(
        "{} | {} | {}",
        percentile(&millis, 50),
        percentile(&millis, 99),
        millis.last().copied().unwrap_or_default()
    )
}

fn markdown(basis: &Basis, record: &Record) -> String {
    let mut text = format!("{}; {}.\n\n", basis.commit(), basis.machine());
    let rounds: Vec<&Played> = record.rounds().filter(|played| played.counts()).collect();
    let seeds = || rounds.iter().map(|played| played.seed);
    let sum = |of: fn(&Played) -> u64| -> u64 { rounds.iter().map(|played| of(played)).sum() };
    let failed = rounds.iter().filter(|played| played.failure.is_some());
    // Writing to a string does not fail.
    let _ = writeln!(
        text,
        "{} rounds counted, of seeds {}–{}: {} failed. {} transactions; {} min.\n",
        rounds.len(),
        seeds().min().unwrap_or_default(),
        seeds().max().unwrap_or_default(),
        failed.clone().count(),
        sum(|played| played.transactions),
        sum(|played| played.took_ms) / 60_000,
    );
    for played in failed {
        let failure = played.failure.as_deref().unwrap_or_default();
        let line = failure.lines().next().unwrap_or_default();
        let _ = writeln!(text, "Seed {} failed: {line}\n", played.seed);
    }
    let converged = rounds.iter().map(|played| played.converged_ms).collect();
    text += "| | p50 ms | p99 ms | most ms |\n|---|---|---|---|\n";
    let _ = writeln!(
        text,
        "| from the end of the faults until all was delivered | {} |",
        spread(converged)
    );
    for (role, what) in [
        (Role::Owner, "no change came, the source's owner killed"),
        (Role::Leader, "no change came, the leader killed"),
        (Role::Both, "no change came, owner and leader in one killed"),
    ] {
        let kills = record.kills(role);
        if !kills.is_empty() {
            let _ = writeln!(
                text,
                "| {what} ({} times) | {} |",
                kills.len(),
                spread(kills)
            );
        }
    }
    text += "\n| fault | planned | bit |\n|---|---|---|\n";
    let mut kinds: BTreeMap<&str, (u32, u32)> = BTreeMap::new();
    for (kind, did) in rounds.iter().flat_map(|played| &played.faults) {
        let (planned, bit) = kinds.entry(kind).or_default();
        *planned += 1;
        *bit += u32::from(did.is_some());
    }
    for (kind, (planned, bit)) in kinds {
        let _ = writeln!(text, "| {kind} | {planned} | {bit} |");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_seen() {
        let hundred: Vec<u64> = (1..=100).collect();
        assert_eq!(
            (percentile(&hundred, 50), percentile(&hundred, 99)),
            (50, 99)
        );
        assert_eq!((percentile(&[7], 50), percentile(&[7], 99)), (7, 7));
        assert_eq!(percentile(&[], 50), 0);
    }
}
