//! Plays a history against a real server with a daemon beside it, and compares after each round.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use mysql_async::Conn;
use mysql_async::prelude::Queryable as _;

use super::{Act, History};
use crate::daemon::Daemon;
use crate::history::Played;
use crate::host;
use crate::mysql::{Mysql, Product};
use crate::readers::{self, Lake};
use crate::resources;

/// How long the slowest machine may take to catch up with a round.
const CATCH_UP: Duration = Duration::from_secs(90);
/// Rounds between two comparisons by the daemon itself.
const VERIFY_EVERY: u32 = 5;

#[derive(Clone, Copy, Debug)]
pub struct Style {
    pub seed: u64,
    pub product: Product,
}

/// A server, a daemon and a history that both live through. Fields are dropped in this order.
pub struct Player {
    daemon: Daemon,
    session: Conn,
    aside: Conn,
    mysql: Mysql,
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
        // What is committed outlasts the server, as it does where these have their defaults.
        let settings = ["innodb-flush-log-at-trx-commit = 2"];
        let mysql = Mysql::start_with(style.product, &settings).await?;
        mysql.create_capture_user().await?;
        let mut daemon = Daemon::new(folder.path())?;
        daemon.start().await?;
        let mut player = Self {
            daemon,
            session: mysql.client().await?,
            aside: mysql.client().await?,
            mysql,
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
        let source = resources::mysql_source(&player.mysql, &["shop.*"], &options);
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
        let rows = readers::ensure_equal_mysql(&self.mysql, &lake, &tables).await?;
        self.played.rows_compared += rows;
        if round.is_multiple_of(VERIFY_EVERY) {
            let named: Vec<String> = tables.iter().map(|table| format!("shop.{table}")).collect();
            let arguments = ["verify", resources::PIPELINE, "--tables", &named.join(",")];
            self.daemon.ok(&arguments).await?;
        }
        Ok(())
    }

    async fn act(&mut self, act: Act) -> Result<()> {
        match act {
            Act::Sql(sql) => {
                self.write(&format!("{sql};"))?;
                self.count(&sql);
                run(&mut self.session, &sql).await
            }
            Act::Aside(sql) => {
                self.write(&format!("-- aside: {sql};"))?;
                self.count(&sql);
                run(&mut self.aside, &sql).await
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
                self.write("-- the binlog's connection is cut")?;
                self.played.cuts += 1;
                let query = "select id from information_schema.processlist where command like 'Binlog Dump%'";
                let mut administrator = self.mysql.client().await?;
                let connections: Vec<u64> = administrator.query(query).await?;
                for id in connections {
                    // It may have ended by itself.
                    let _ = administrator.query_drop(format!("kill {id}")).await;
                }
                Ok(())
            }
            Act::Crash => {
                self.write("-- the server is killed and started")?;
                self.played.cuts += 1;
                self.mysql.kill()?;
                self.mysql.start_again().await?;
                self.session = self.mysql.client().await?;
                self.aside = self.mysql.client().await?;
                Ok(())
            }
            Act::Resnapshot(table) => {
                self.write(&format!("-- resnapshot of {table}"))?;
                self.played.resnapshots += 1;
                let arguments = ["resnapshot", resources::PIPELINE, "--tables", &table];
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
            let is_ddl = ["alter table", "create table", "drop table", "rename table"];
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
        let kept = self.folder.path().to_path_buf();
        // A folder that is kept is not removed when it is dropped.
        let _ = self.folder.keep();
        kept
    }
}

/// Rows of equal keys are no failure of a history: which rows there are it leaves to their numbers.
async fn run(client: &mut Conn, sql: &str) -> Result<()> {
    for statement in sql.split(";\n").flat_map(|part| part.split("; ")) {
        let result = client.query_drop(statement).await;
        match result {
            Err(mysql_async::Error::Server(error)) if error.code == 1062 => {}
            result => result.with_context(|| format!("the server refused: {statement}"))?,
        }
    }
    Ok(())
}
