//! Plays a history against a real server with a daemon beside it, and compares after each round.

use std::iter::Sum;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio_postgres::Client;

use super::{Act, History};
use crate::daemon::Daemon;
use crate::host;
use crate::postgres::{Options, Postgres, Version};
use crate::readers::{self, Lake};
use crate::resources;

/// How long the slowest machine may take to catch up with a round.
const CATCH_UP: Duration = Duration::from_secs(180);
/// Rounds between two comparisons by the daemon itself.
const VERIFY_EVERY: u32 = 5;

#[derive(Clone, Copy, Debug)]
pub struct Style {
    pub seed: u64,
    pub version: Version,
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
pub struct Player {
    daemon: Daemon,
    session: Client,
    aside: Client,
    postgres: Postgres,
    history: History,
    played: Played,
    /// Everything that was done, to be read when a round fails.
    script: PathBuf,
    folder: tempfile::TempDir,
}

impl Player {
    pub async fn start(style: Style) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("downriver-history-")
            .tempdir()?;
        let postgres = Postgres::start_with(Options {
            version: style.version,
            ..Options::default()
        })
        .await?;
        let mut daemon = Daemon::new(folder.path())?;
        daemon.start().await?;
        let mut player = Self {
            daemon,
            session: postgres.client().await?,
            aside: postgres.client().await?,
            postgres,
            history: History::new(style.seed),
            played: Played::default(),
            script: folder.path().join("history.sql"),
            folder,
        };
        player.write(&format!("-- {style:?}"))?;
        for sql in player.history.begin() {
            player.act(Act::Sql(sql)).await?;
        }
        let options = ["snapshot: { mode: initial, chunk_rows: 500, max_workers: 2 }"];
        let source = resources::source(&player.postgres, &["public.*"], &options);
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
        let compared = readers::compare(&self.postgres, &lake, &tables).await?;
        let rows = compared.iter().map(|table| table.source.rows);
        self.played.rows_compared += rows.sum::<u64>();
        let different: Vec<_> = compared.iter().filter(|table| !table.equal).collect();
        ensure!(
            different.is_empty(),
            "source and lake differ: {different:#?}"
        );
        if round.is_multiple_of(VERIFY_EVERY) {
            let tables = tables.join(",");
            self.daemon
                .ok(&["verify", resources::PIPELINE, "--tables", &tables])
                .await?;
        }
        Ok(())
    }

    async fn act(&mut self, act: Act) -> Result<()> {
        match &act {
            Act::Sql(sql) => {
                self.write(&format!("{sql};"))?;
                self.count(sql);
                run(&self.session, sql).await
            }
            Act::Aside(sql) => {
                self.write(&format!("-- aside: {sql};"))?;
                self.count(sql);
                run(&self.aside, sql).await
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
                self.write("-- the replication connection is cut")?;
                self.played.cuts += 1;
                let sql = "select pg_terminate_backend(active_pid) from pg_replication_slots where active";
                self.postgres.execute(sql).await
            }
            Act::ResnapshotPart(table, part) => {
                self.write(&format!("-- resnapshot of {table} where {part}"))?;
                self.played.resnapshots += 1;
                let arguments = [
                    "resnapshot",
                    resources::PIPELINE,
                    "--tables",
                    table,
                    "--where",
                    part,
                ];
                host::until("a part to be asked for", CATCH_UP, async || {
                    let asked = self.daemon.run(&arguments).await?;
                    // Of a table that is being read whole, or has another key by now, no part is read.
                    let is_refused = ["DR-1055", "DR-2057"].map(|code| asked.text().contains(code));
                    Ok(asked.code == Some(0) || is_refused.contains(&true))
                })
                .await
            }
            Act::Resnapshot(table) => {
                self.write(&format!("-- resnapshot of {table}"))?;
                self.played.resnapshots += 1;
                let arguments = ["resnapshot", resources::PIPELINE, "--tables", table];
                // A table that was made a moment ago may not be known yet: then it is read anyway.
                host::until("the snapshot to be asked for", CATCH_UP, async || {
                    Ok(self.daemon.run(&arguments).await?.code == Some(0))
                })
                .await
            }
        }
    }

    fn count(&mut self, sql: &str) {
        for statement in sql.split(';').map(str::trim_start) {
            self.played.statements += u64::from(!statement.is_empty());
            let is_ddl = ["alter table", "create table", "drop table", "alter type"];
            let is_ddl = is_ddl.iter().any(|start| statement.starts_with(start));
            self.played.shape_changes += u64::from(is_ddl);
        }
    }

    fn write(&self, line: &str) -> Result<()> {
        use std::io::Write as _;
        let mut file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.script)?;
        Ok(writeln!(file, "{line}")?)
    }

    /// Leaves the files of a failure behind, and says where.
    pub fn keep(self) -> PathBuf {
        let path: &Path = self.folder.path();
        let kept = path.to_path_buf();
        // A folder that is kept is not removed when it is dropped.
        let _ = self.folder.keep();
        kept
    }
}

async fn run(client: &Client, sql: &str) -> Result<()> {
    client
        .batch_execute(sql)
        .await
        .with_context(|| format!("the server refused: {sql}"))
}
