//! Plays a history against a real server with a daemon beside it, and compares after each round.

use std::fmt::Debug;
use std::future::Future;
use std::io::Write as _;
use std::iter::Sum;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::daemon::Daemon;
use crate::host;
use crate::readers::Lake;
use crate::resources;

/// How long the slowest machine may take to catch up with a round.
const CATCH_UP: Duration = Duration::from_secs(180);
/// Rounds between two comparisons by the daemon itself.
const VERIFY_EVERY: u32 = 5;
/// What a statement that changes a shape begins with.
const SHAPE_CHANGES: [&str; 5] = [
    "alter table",
    "create table",
    "drop table",
    "rename table",
    "alter type",
];

/// What happens next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// Statements of one session, with the transactions that they open and end.
    Sql(String),
    /// A second session, whose transaction stays open over other acts.
    Aside(String),
    /// The daemon is killed; what follows becomes a backlog.
    Kill,
    Start,
    /// The server ends the connection that the stream is sent by.
    Cut,
    /// The server is killed, and started again.
    Crash,
    /// The snapshot of a table is asked for again.
    Resnapshot(String),
    /// The same of a part of it.
    ResnapshotPart(String, String),
}

/// What happens to the tables of a server, from a seed.
pub trait History {
    /// The tables of now, as `schema.table`.
    fn tables(&self) -> Vec<String>;

    /// What stands before the source is captured.
    fn begin(&mut self) -> Vec<String>;

    /// The acts of one round. Whatever it opened is closed at its end.
    fn round(&mut self) -> Vec<Act>;
}

/// A server of a kind, as a player needs it.
pub trait Stage: Sized {
    /// Which server, and which history of it.
    type Style: Copy + Debug;
    type History: History;
    type Session;

    /// A running server that can be captured, and its history.
    fn start(style: Self::Style) -> impl Future<Output = Result<(Self, Self::History)>>;

    fn session(&self) -> impl Future<Output = Result<Self::Session>>;

    fn run(session: &mut Self::Session, sql: &str) -> impl Future<Output = Result<()>>;

    /// The source with all of its tables, and further lines of it.
    fn source(&self, options: &[&str]) -> String;

    /// Ends the connection that the stream is sent by.
    fn cut(&self) -> impl Future<Output = Result<()>>;

    /// Kills the server and starts it again: its sessions are gone.
    fn crash(&mut self) -> impl Future<Output = Result<()>>;

    /// How many rows the tables (`schema.table`) have; an error that shows the first differences if the lake has others.
    fn ensure_equal(&self, lake: &Lake, tables: &[&str]) -> impl Future<Output = Result<u64>>;
}

/// What was done, and compared.
#[derive(Clone, Copy, Debug, Default)]
pub struct Played {
    /// Whole ones, after which all was equal.
    pub rounds: u32,
    pub statements: u64,
    pub shape_changes: u64,
    pub kills: u64,
    pub cuts: u64,
    pub resnapshots: u64,
    pub rows_compared: u64,
}

impl Sum for Played {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |one, other| Self {
            rounds: one.rounds + other.rounds,
            statements: one.statements + other.statements,
            shape_changes: one.shape_changes + other.shape_changes,
            kills: one.kills + other.kills,
            cuts: one.cuts + other.cuts,
            resnapshots: one.resnapshots + other.resnapshots,
            rows_compared: one.rows_compared + other.rows_compared,
        })
    }
}

/// A server, a daemon and a history that both live through. Fields are dropped in this order.
pub struct Player<S: Stage> {
    daemon: Daemon,
    session: S::Session,
    aside: S::Session,
    stage: S,
    history: S::History,
    played: Played,
    /// Everything that was done, to be read when a round fails.
    script: PathBuf,
    folder: tempfile::TempDir,
}

impl<S: Stage> Player<S> {
    pub async fn start(style: S::Style) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("downriver-history-")
            .tempdir()?;
        let (stage, history) = S::start(style).await?;
        let mut daemon = Daemon::new(folder.path())?;
        daemon.start().await?;
        let mut player = Self {
            daemon,
            session: stage.session().await?,
            aside: stage.session().await?,
            stage,
            history,
            played: Played::default(),
            script: folder.path().join("history.sql"),
            folder,
        };
        player.write(&format!("-- {style:?}"))?;
        for sql in player.history.begin() {
            player.act(Act::Sql(sql)).await?;
        }
        let options = ["snapshot: { mode: initial, chunk_rows: 500, max_workers: 2 }"];
        let source = player.stage.source(&options);
        let sink = resources::sink_in_folder(&player.folder.path().join("lake"));
        let pipeline = resources::pipeline("1s");
        player.daemon.apply(&(source + &sink + &pipeline)).await?;
        Ok(player)
    }

    /// Plays one round and waits until the lake has it; an error when the lake is not equal to the source.
    pub async fn round(&mut self) -> Result<()> {
        let round = self.played.rounds + 1;
        let result = self.play_and_compare(round).await;
        self.played.rounds += u32::from(result.is_ok());
        result.with_context(|| {
            format!(
                "round {round}; what was done is in {}, the daemon's log in {}",
                self.script.display(),
                self.daemon.log().display()
            )
        })
    }

    pub fn played(&self) -> Played {
        self.played
    }

    async fn play_and_compare(&mut self, round: u32) -> Result<()> {
        self.write(&format!("-- round {round}"))?;
        for act in self.history.round() {
            self.act(act).await?;
        }
        let tables = self.history.tables();
        let tables: Vec<&str> = tables.iter().map(String::as_str).collect();
        self.daemon.wait(CATCH_UP).await?;
        let lake = Lake::builtin(&self.daemon)?;
        self.played.rows_compared += self.stage.ensure_equal(&lake, &tables).await?;
        if round.is_multiple_of(VERIFY_EVERY) {
            let arguments = ["verify", resources::PIPELINE, "--tables", &tables.join(",")];
            self.daemon.ok(&arguments).await?;
        }
        Ok(())
    }

    async fn act(&mut self, act: Act) -> Result<()> {
        match act {
            Act::Sql(sql) => {
                self.write(&format!("{sql};"))?;
                self.count(&sql);
                S::run(&mut self.session, &sql).await
            }
            Act::Aside(sql) => {
                self.write(&format!("-- aside: {sql};"))?;
                self.count(&sql);
                S::run(&mut self.aside, &sql).await
            }
            Act::Kill => {
                self.write("-- the daemon is killed")?;
                self.played.kills += 1;
                self.daemon.kill();
                Ok(())
            }
            Act::Start => {
                self.write("-- the daemon is started")?;
                self.daemon.start().await
            }
            Act::Cut => {
                self.write("-- the stream's connection is cut")?;
                self.played.cuts += 1;
                self.stage.cut().await
            }
            Act::Crash => {
                self.write("-- the server is killed and started")?;
                self.played.cuts += 1;
                self.stage.crash().await?;
                self.session = self.stage.session().await?;
                self.aside = self.stage.session().await?;
                Ok(())
            }
            Act::Resnapshot(table) => {
                self.write(&format!("-- resnapshot of {table}"))?;
                self.resnapshot(&table, None).await
            }
            Act::ResnapshotPart(table, part) => {
                self.write(&format!("-- resnapshot of {table} where {part}"))?;
                self.resnapshot(&table, Some(&part)).await
            }
        }
    }

    /// A table that was made a moment ago may not be known yet: then it is read anyway.
    async fn resnapshot(&mut self, table: &str, part: Option<&str>) -> Result<()> {
        self.played.resnapshots += 1;
        let mut arguments = vec!["resnapshot", resources::PIPELINE, "--tables", table];
        arguments.extend(part.iter().flat_map(|part| ["--where", *part]));
        host::until("the snapshot to be asked for", CATCH_UP, async || {
            let asked = self.daemon.run(&arguments).await?;
            // Of a table that is being read whole, or has another key by now, no part is read.
            let refusals = ["DR-1055", "DR-2057"];
            let is_refused = refusals.iter().any(|code| asked.text().contains(code));
            Ok(asked.code == Some(0) || part.is_some() && is_refused)
        })
        .await
    }

    fn count(&mut self, sql: &str) {
        for statement in sql.split(';').map(str::trim_start) {
            self.played.statements += u64::from(!statement.is_empty());
            let mut starts = SHAPE_CHANGES.iter();
            let is_shape_change = starts.any(|start| statement.starts_with(start));
            self.played.shape_changes += u64::from(is_shape_change);
        }
    }

    fn write(&self, line: &str) -> Result<()> {
        let mut file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.script)?;
        Ok(writeln!(file, "{line}")?)
    }

    /// Leaves the files of a failure behind, and says where.
    pub fn keep(self) -> PathBuf {
        let kept = self.folder.path().to_path_buf();
        // A folder that is kept is not removed when it is dropped.
        let _ = self.folder.keep();
        kept
    }
}
