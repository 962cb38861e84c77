//! What the end-to-end tests share: a shop in PostgreSQL, or in MySQL and MariaDB, and a daemon.

pub mod history;
pub mod log;
pub mod mysql;

use std::time::Duration;

use anyhow::Result;
use downriver_testkit::readers::{self, Lake};
use downriver_testkit::{Daemon, Postgres, host, resources, shop};
use serde_json::Value;

/// How long the slowest machine of ours may take to catch up.
pub const CATCH_UP: Duration = Duration::from_secs(180);

/// Everything of one test under one folder. Fields are dropped in this order: the daemon first.
pub struct Shop {
    pub daemon: Daemon,
    pub postgres: Postgres,
    pub folder: tempfile::TempDir,
}

impl Shop {
    /// PostgreSQL with the shop's tables and a running daemon that knows nothing yet.
    pub async fn open(scale: u32) -> Result<Self> {
        let postgres = Postgres::start().await?;
        shop::create(&postgres).await?;
        if scale > 0 {
            shop::fill(&postgres, scale).await?;
        }
        Self::over(postgres).await
    }

    /// A running daemon beside a prepared PostgreSQL.
    pub async fn over(postgres: Postgres) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("downriver-e2e-")
            .tempdir()?;
        let mut daemon = Daemon::new(folder.path())?;
        daemon.start().await?;
        Ok(Self {
            daemon,
            postgres,
            folder,
        })
    }

    /// Captures all tables of `public`.
    pub async fn capture(&self) -> Result<()> {
        let options = ["snapshot: { mode: initial, chunk_rows: 5000, max_workers: 2 }"];
        let source = resources::source(&self.postgres, &["public.*"], &options);
        self.daemon.apply(&source).await
    }

    /// Captures all tables of `public` and delivers them to a lake in a folder.
    pub async fn deliver(&self, freshness: &str) -> Result<()> {
        let warehouse = self.folder.path().join("lake");
        let sink = resources::sink_in_folder(&warehouse);
        self.deliver_to(&sink, freshness).await
    }

    /// Captures all tables of `public` and delivers them to this sink.
    pub async fn deliver_to(&self, sink: &str, freshness: &str) -> Result<()> {
        let options = ["snapshot: { mode: initial, chunk_rows: 5000, max_workers: 2 }"];
        let source = resources::source(&self.postgres, &["public.*"], &options);
        let pipeline = resources::pipeline(freshness);
        self.daemon.apply(&(source + sink + &pipeline)).await
    }

    /// Captures and delivers everything, with further lines of the source.
    pub async fn deliver_with(&self, options: &[&str]) -> Result<()> {
        let source = resources::source(&self.postgres, &["public.*"], options);
        let sink = resources::sink_in_folder(&self.folder.path().join("lake"));
        let pipeline = resources::pipeline("1s");
        self.daemon.apply(&(source + &sink + &pipeline)).await
    }

    /// The server's process that sends the source's stream, once there is one.
    pub async fn walsender(&self) -> Result<u32> {
        let pid = "select max(coalesce(active_pid, 0)) from pg_replication_slots where slot_name = 'downriver_shop'";
        let mut sender = 0;
        host::until("the stream to be sent", CATCH_UP, async || {
            sender = u32::try_from(self.postgres.number(pid).await?)?;
            Ok(sender != 0)
        })
        .await?;
        Ok(sender)
    }

    pub async fn until_source(
        &self,
        what: &str,
        condition: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        self.daemon
            .until_described("source", resources::SOURCE, what, CATCH_UP, condition)
            .await
    }

    pub async fn until_stopped(&self, code: &str) -> Result<Value> {
        self.until_source("the source to stop", |source| {
            source["state"] == "stopped" && source["code"] == code
        })
        .await
    }

    /// Waits until everything committed before the call is delivered, then compares every table row by row
    /// between PostgreSQL and what DuckDB and PyIceberg read.
    pub async fn ensure_lake_equal(&self) -> Result<()> {
        self.daemon.wait(CATCH_UP).await?;
        let lake = Lake::builtin(&self.daemon)?;
        readers::ensure_equal(&self.postgres, &lake, &shop::TABLES).await
    }

    /// Changes a table as nothing does but a superuser who writes into the catalog: what an unlogged table is told goes
    /// into no WAL.
    pub async fn change_unseen(&self, table: &str, change: &str) -> Result<()> {
        let persistence = |is: char| {
            format!("update pg_class set relpersistence = '{is}' where oid = '{table}'::regclass")
        };
        let (unlogged, logged) = (persistence('u'), persistence('p'));
        let change = format!("begin; {unlogged}; {change}; {logged}; commit");
        self.postgres.execute(&change).await
    }

    /// Waits until everything committed before the call is in the log.
    pub async fn caught_up(&self) -> Result<()> {
        let client = self.postgres.client().await?;
        // Its own commit writes out those before it that did not wait for the disk.
        let message = "select pg_logical_emit_message(true, 'e2e', '')::text";
        let row = client.query_one(message, &[]).await?;
        let committed: String = row.get(0);
        host::until("the capture to catch up", CATCH_UP, async || {
            let source = self.daemon.describe("source", resources::SOURCE).await?;
            let passed = source["position"].as_str().unwrap_or("0/0");
            let query = format!("select '{passed}'::pg_lsn >= '{committed}'::pg_lsn");
            let passed: bool = client.query_one(&query, &[]).await?.get(0);
            Ok(passed && source["state"] == "streaming")
        })
        .await
    }
}
