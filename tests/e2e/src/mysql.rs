//! What the end-to-end tests of MySQL and MariaDB share: a server with a shop's tables, a daemon, and a load.

use std::collections::HashSet;

use anyhow::{Result, ensure};
use downriver_testkit::daemon::Daemon;
use downriver_testkit::mysql::{Mysql, Product};
use downriver_testkit::readers::{self, Lake};
use downriver_testkit::{daemon, resources};
use mysql_async::prelude::Queryable as _;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::{CATCH_UP, log};

/// What is committed outlasts a server that is killed, as it does where this has its default.
pub const DURABLE: &str = "innodb-flush-log-at-trx-commit = 2";
pub const ORDERS: &str = "
    create table orders (id bigint unsigned auto_increment primary key, customer int not null, total decimal(12,2),
                         note varchar(80), placed datetime(3) not null default current_timestamp(3), state enum('new','paid','sent'));
    create table customers (code varchar(20) character set latin1 collate latin1_swedish_ci primary key, name text, vip bit(1));
    create table pairs (a int, b varchar(10), c int, primary key (b, a));
    insert into customers values ('a', 'Zo\u{eb}', 1), ('B', null, 0), ('c', '', null);
    insert into pairs values (1, 'x', 1), (2, 'x', 2), (1, 'y', 3);";

/// Everything of one test. Fields are dropped in this order: the daemon first.
pub struct Shop {
    pub daemon: Daemon,
    pub mysql: Mysql,
    pub folder: tempfile::TempDir,
}

impl Shop {
    pub async fn open(product: Product) -> Result<Self> {
        Self::open_with(product, &[]).await
    }

    /// With more lines of the server's my.cnf.
    pub async fn open_with(product: Product, settings: &[&str]) -> Result<Self> {
        Self::over(Mysql::start_with(product, settings).await?).await
    }

    /// The shop's tables in a server that has none yet, and a running daemon that knows nothing of them.
    pub async fn over(mysql: Mysql) -> Result<Self> {
        mysql.create_capture_user().await?;
        mysql.execute(ORDERS).await?;
        let folder = tempfile::Builder::new()
            .prefix("downriver-e2e-")
            .tempdir()?;
        let mut daemon = Daemon::new(folder.path())?;
        daemon.start().await?;
        Ok(Self {
            daemon,
            mysql,
            folder,
        })
    }

    pub async fn deliver(&self, tables: &[&str]) -> Result<()> {
        let options = ["snapshot: { mode: initial, chunk_rows: 700, max_workers: 2 }"];
        self.deliver_with(tables, &options).await
    }

    /// With further lines of the source.
    pub async fn deliver_with(&self, tables: &[&str], options: &[&str]) -> Result<()> {
        let source = resources::mysql_source(&self.mysql, tables, options);
        let sink = resources::sink_in_folder(&self.folder.path().join("lake"));
        let pipeline = resources::pipeline("1s");
        self.daemon.apply(&(source + &sink + &pipeline)).await
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

    pub async fn until_streaming(&self) -> Result<Value> {
        let is_streaming = |source: &Value| source["state"] == "streaming";
        self.until_source("the source to stream", is_streaming)
            .await
    }

    pub async fn until_stopped(&self, code: &str) -> Result<Value> {
        self.until_source("the source to stop", |source| {
            source["state"] == "stopped" && source["code"] == code
        })
        .await
    }

    /// Waits until the source knows a table that comes, and one that does not come any more is gone.
    pub async fn until_captured(&self, table: &str, is: bool) -> Result<Value> {
        let name = format!("shop.{table}");
        self.until_source("the tables that are captured", |source| {
            source["state"] == "streaming" && daemon::table_in(source, &name).is_some() == is
        })
        .await
    }

    /// Waits until all is delivered, and compares tables of `shop` as others read them.
    pub async fn ensure_equal(&self, tables: &[&str]) -> Result<()> {
        self.daemon.wait(CATCH_UP).await?;
        let lake = Lake::builtin(&self.daemon)?;
        readers::ensure_equal_mysql(&self.mysql, &lake, tables).await?;
        Ok(())
    }

    /// Waits until all is delivered, and compares these tables (`database.table`) as the daemon reads them.
    pub async fn verify(&self, tables: &[&str]) -> Result<()> {
        self.daemon.wait(CATCH_UP).await?;
        let arguments = ["verify", resources::PIPELINE, "--tables", &tables.join(",")];
        println!("{}", self.daemon.ok(&arguments).await?);
        Ok(())
    }

    /// How many snapshots of tables were begun so far.
    pub async fn snapshots(&self) -> Result<usize> {
        let events = log::events_of(&self.daemon).await?;
        let starts = events
            .iter()
            .filter(|event| event["op"] == "snapshot_start");
        Ok(starts.count())
    }

    /// `rows` orders more.
    pub async fn fill(&self, rows: u32) -> Result<()> {
        let mut client = self.mysql.client().await?;
        for first in (0..rows).step_by(500) {
            let values: Vec<String> = (first..rows.min(first + 500))
                .map(|row| {
                    format!(
                        "({}, {}.{:02}, 'note {row}', 'new')",
                        row % 97,
                        row,
                        row % 100
                    )
                })
                .collect();
            let values = values.join(", ");
            client
                .query_drop(format!(
                    "insert into orders (customer, total, note, state) values {values}"
                ))
                .await?;
        }
        Ok(())
    }
}

/// Changes of all kinds in transactions of one to twenty, until it is told to stop; one at least. How many.
pub async fn change(mysql: &Mysql, seed: u64, stop: CancellationToken) -> Result<u64> {
    change_until(mysql, seed, |written| written > 0 && stop.is_cancelled()).await
}

/// The same until so many transactions are enough. How many.
pub async fn change_until(
    mysql: &Mysql,
    seed: u64,
    is_enough: impl Fn(u64) -> bool,
) -> Result<u64> {
    let mut client = mysql.client().await?;
    let (mut state, mut transactions) = (seed, 0);
    let mut random = |below: u64| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    'transactions: while !is_enough(transactions) {
        client.query_drop("begin").await?;
        for _ in 0..=random(20) {
            let (id, number) = (random(6_000), random(1_000));
            let changed = client
                .query_drop(match random(8) {
                    0..=2 => format!("insert into orders (customer, total) values ({number}, {id}.5)"),
                    3 | 4 => format!("update orders set total = total + 1, state = 'paid' where id = {id}"),
                    5 => format!("delete from orders where id = {id}"),
                    6 => format!("update ignore orders set id = id + 100000 where id = {id}"),
                    _ => format!("insert into pairs (a, b) values ({number}, 'r') on duplicate key update a = a + 1000"),
                })
                .await;
            match changed {
                // A key that is there already.
                Err(mysql_async::Error::Server(server)) if server.code == 1062 => {}
                // The victim of a deadlock, with a comparison that locks both tables: nothing of it is left.
                Err(mysql_async::Error::Server(server)) if server.code == 1213 => {
                    continue 'transactions;
                }
                changed => changed?,
            }
        }
        let end = if random(6) == 0 { "rollback" } else { "commit" };
        client.query_drop(end).await?;
        transactions += 1;
    }
    Ok(transactions)
}

/// An error if the log has a transaction of the server's at two places. How many it has.
pub async fn ensure_each_came_once(daemon: &Daemon) -> Result<usize> {
    let (mut ends, mut last) = (HashSet::new(), String::new());
    for event in log::events_of(daemon).await? {
        let transaction = event["txn"].as_str().unwrap_or_default();
        let is_the_servers = transaction.contains(':') || transaction.contains('-');
        if is_the_servers && transaction != last {
            let is_new = ends.insert(transaction.to_owned());
            ensure!(is_new, "{transaction} came twice");
        }
        last = transaction.to_owned();
    }
    Ok(ends.len())
}
