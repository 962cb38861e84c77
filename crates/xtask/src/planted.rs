//! Bugs on purpose: whether the simulations, the rounds and the plays of faults find each of them, by what watches for it.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::basis::Basis;
use crate::page::Page;

const PAGE: Page = Page::results("docs/planted-bugs.md");
/// Rounds within which a bug has to be found.
const ROUNDS: u32 = 5;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Only this one, with real processes.
    #[arg(long, conflicts_with = "update_docs")]
    bug: Option<String>,
    /// Put the result into docs/planted-bugs.md.
    #[arg(long)]
    update_docs: bool,
}

/// How a bug is to be found with real processes.
struct Directed {
    bug: &'static str,
    /// The test of `tests/fault`, and the faults of its rounds.
    test: &'static str,
    play: &'static str,
    only: &'static str,
    /// One of these is said when it is found.
    detectors: &'static [&'static str],
}

/// A transaction, or a row that it inserts.
const TWICE: &[&str] = &["is in the log twice"];

const fn rounds(
    bug: &'static str,
    only: &'static str,
    detectors: &'static [&'static str],
) -> Directed {
    Directed {
        bug,
        test: "rounds",
        play: "ten_rounds",
        only,
        detectors,
    }
}

const DIRECTED: [Directed; 6] = [
    rounds("no-dedupe", "KillAll", TWICE),
    rounds("wrong-lsn", "KillAll", TWICE),
    rounds(
        "acknowledges-received",
        "KillAll",
        &["the slot was told", "wait says"],
    ),
    rounds(
        "loses-block-at-seal",
        "Restart",
        &[
            "stands in place",
            "came after",
            "wait says",
            "tells another log",
        ],
    ),
    rounds(
        "logs-secret",
        "Kill",
        &["contains the object store's secret"],
    ),
    Directed {
        bug: "stale-member",
        test: "cluster",
        play: "a_groups_cursor",
        only: "",
        detectors: &["the stale member was fenced"],
    },
];

struct Found {
    bug: String,
    /// A seed of a simulation, or a round.
    at: String,
    detector: String,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    if arguments.update_docs {
        PAGE.check()?;
    }
    let basis = Basis::look()?;
    let wanted = |bug: &str| arguments.bug.as_deref().is_none_or(|wanted| wanted == bug);
    if let Some(bug) = &arguments.bug {
        let is_directed = DIRECTED.iter().any(|directed| directed.bug == bug);
        ensure!(is_directed, "no bug of real processes is called {bug:?}");
    }
    let mut found = Vec::new();
    if arguments.bug.is_none() {
        found.extend(simulated()?);
    }
    let binary = binary()?;
    let mut failures = Vec::new();
    for directed in DIRECTED.iter().filter(|directed| wanted(directed.bug)) {
        match play(directed, &binary) {
            Ok(directed) => found.push(directed),
            Err(error) => failures.push(format!("{error:#}")),
        }
    }
    let report = markdown(&basis, &found);
    println!("\n{report}");
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    if arguments.update_docs {
        PAGE.update(&report)?;
    }
    Ok(())
}

fn cargo(arguments: &[&str]) -> Command {
    let mut cargo = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".into()));
    cargo.args(arguments).args(["--profile", "ci"]);
    cargo
}

/// Runs the simulations, which plant their bugs themselves.
fn simulated() -> Result<Vec<Found>> {
    println!("simulations");
    let mut tests = cargo(&["test", "-p", "downriver-cluster", "-p", "downriver-lake"]);
    tests.args(["--features", "downriver-cluster/planted-bugs"]);
    tests.args(["--features", "downriver-lake/planted-bugs"]);
    tests.args(["--", "planted", "--nocapture", "--test-threads", "1"]);
    let output = tests.output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "a bug is not found: {text}\n{errors}"
    );
    let found: Vec<Found> = text.lines().filter_map(of_line).collect();
    ensure!(!found.is_empty(), "no simulation has found anything");
    Ok(found)
}

/// `planted <bug>: seed <seed>: <detector>`
fn of_line(line: &str) -> Option<Found> {
    let line = &line[line.find("planted ")? + "planted ".len()..];
    let mut parts = line.splitn(3, ": ");
    Some(Found {
        bug: parts.next()?.to_owned(),
        at: format!("simulated {}", parts.next()?),
        detector: parts.next()?.trim().to_owned(),
    })
}

/// A daemon with bugs on purpose, beside the one without.
fn binary() -> Result<PathBuf> {
    let build = |features: &[&str]| -> Result<()> {
        let mut build = cargo(&["build", "--workspace", "--bin", "downriver"]);
        let status = build.args(features).status()?;
        ensure!(status.success(), "cargo build failed");
        Ok(())
    };
    let folder =
        std::env::var("CARGO_TARGET_DIR").context("run it as docs/planted-bugs.md says")?;
    let folder = Path::new(&folder).join("ci");
    build(&["--features", "downriver/planted-bugs"])?;
    let kept = folder.join("downriver-planted");
    std::fs::copy(folder.join("downriver"), &kept)?;
    build(&[])?;
    Ok(kept)
}

fn play(directed: &Directed, binary: &Path) -> Result<Found> {
    println!("{}: {}", directed.bug, directed.test);
    let mut test = cargo(&["test", "--workspace", "--test", directed.test]);
    let output = test
        .args(["--", directed.play, "--nocapture"])
        .env("DOWNRIVER_BIN", binary)
        .env("DOWNRIVER_PLANTED_BUG", directed.bug)
        .env("DOWNRIVER_FAULT_ONLY", directed.only)
        .env("DOWNRIVER_FAULT_SEED", "1")
        .env("DOWNRIVER_FAULT_ROUNDS", ROUNDS.to_string())
        .output()?;
    ensure!(!output.status.success(), "{} is not found", directed.bug);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let detector = directed.detectors.iter().find(|said| text.contains(**said));
    let detector = detector.with_context(|| format!("{} is found as: {text}", directed.bug))?;
    let round = (1..=ROUNDS).find(|round| text.contains(&format!("the round of seed {round}")));
    Ok(Found {
        bug: directed.bug.to_owned(),
        at: match round {
            Some(round) => format!("real processes, round {round}"),
            None => format!("real processes, {}", directed.play),
        },
        detector: (*detector).to_owned(),
    })
}

fn markdown(basis: &Basis, found: &[Found]) -> String {
    let mut text = format!("{}; {}.\n\n", basis.commit(), basis.machine());
    text += "| bug | found by | which says |\n|---|---|---|\n";
    for found in found {
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "| {} | {} | {} |",
            found.bug, found.at, found.detector
        );
    }
    text
}
