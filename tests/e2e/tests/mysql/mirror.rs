//! MySQL and MariaDB from the snapshot and the binlog into the lake, as a user sets them up: a real server, a daemon, and
//! what others read of the lake.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use downriver_testkit::daemon::Daemon;
use downriver_testkit::mysql::{Mysql, Product};
use downriver_testkit::readers::{self, Lake};
use downriver_testkit::{daemon, resources};
use mysql_async::prelude::Queryable as _;
use tokio_util::sync::CancellationToken;

const CATCH_UP: Duration = Duration::from_secs(180);
const TYPES: &str = include_str!("binlog/load.sql");
const ORDERS: &str = "
    create table orders (id bigint unsigned auto_increment primary key, customer int not null, total decimal(12,2),
                         note varchar(80), placed datetime(3) not null default current_timestamp(3), state enum('new','paid','sent'));
    create table customers (code varchar(20) character set latin1 collate latin1_swedish_ci primary key, name text, vip bit(1));
    create table pairs (a int, b varchar(10), c int, primary key (b, a));
    insert into customers values ('a', 'Zo\u{eb}', 1), ('B', null, 0), ('c', '', null);
    insert into pairs values (1, 'x', 1), (2, 'x', 2), (1, 'y', 3);";

/// Everything of one test. Fields are dropped in this order: the daemon first.
struct Shop {
    daemon: Daemon,
    mysql: Mysql,
    folder: tempfile::TempDir,
}

impl Shop {
    async fn open(product: Product) -> Result<Self> {
        let mysql = Mysql::start(product).await?;
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

    async fn deliver(&self, tables: &[&str]) -> Result<()> {
        let options = ["snapshot: { mode: initial, chunk_rows: 700, max_workers: 2 }"];
        let source = resources::mysql_source(&self.mysql, tables, &options);
        let sink = resources::sink_in_folder(&self.folder.path().join("lake"));
        let pipeline = resources::pipeline("1s");
        self.daemon.apply(&(source + &sink + &pipeline)).await
    }

    async fn ensure_equal(&self, tables: &[&str]) -> Result<()> {
        self.daemon.wait(CATCH_UP).await?;
        let lake = Lake::builtin(&self.daemon)?;
        readers::ensure_equal_mysql(&self.mysql, &lake, tables).await?;
        Ok(())
    }

    /// `rows` orders more.
    async fn fill(&self, rows: u32) -> Result<()> {
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

/// Changes of all kinds in transactions of one to twenty, until it is told to stop. How many.
async fn change(mysql: &Mysql, seed: u64, stop: CancellationToken) -> Result<u64> {
    let mut client = mysql.client().await?;
    let (mut state, mut transactions) = (seed, 0);
    let mut random = |below: u64| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    while !stop.is_cancelled() {
        client.query_drop("begin").await?;
        for _ in 0..=random(20) {
            let (id, number) = (random(6_000), random(1_000));
            client
                .query_drop(match random(8) {
                    0..=2 => format!("insert into orders (customer, total) values ({number}, {id}.5)"),
                    3 | 4 => format!("update orders set total = total + 1, state = 'paid' where id = {id}"),
                    5 => format!("delete from orders where id = {id}"),
                    6 => format!("update ignore orders set id = id + 100000 where id = {id}"),
                    _ => format!("insert into pairs (a, b) values ({number}, 'r') on duplicate key update a = a + 1000"),
                })
                .await
                .or_else(|error| match error {
                    // A key that is there already.
                    mysql_async::Error::Server(server) if server.code == 1062 => Ok(()),
                    error => Err(error),
                })?;
        }
        let end = if random(6) == 0 { "rollback" } else { "commit" };
        client.query_drop(end).await?;
        transactions += 1;
    }
    Ok(transactions)
}

async fn is_mirrored(product: Product) -> Result<()> {
    let shop = Shop::open(product).await?;
    shop.mysql.execute(TYPES).await?;
    shop.fill(5_000).await?;
    let stop = CancellationToken::new();
    shop.deliver(&["shop.*"]).await?;
    let writing = async {
        let writing = change(&shop.mysql, 7, stop.clone());
        let reading = async {
            let wait = shop.daemon.wait(CATCH_UP).await;
            stop.cancel();
            wait
        };
        let (written, waited) = tokio::join!(writing, reading);
        waited?;
        written
    };
    let transactions = writing.await?;
    ensure!(
        transactions > 5,
        "{transactions} transactions during the snapshot"
    );
    let mut tables = vec!["orders", "customers", "pairs", "numbers", "times", "texts"];
    shop.ensure_equal(&tables).await?;

    // Changes of shape, each followed at its place.
    shop.mysql
        .execute(
            "alter table orders add column channel varchar(10) not null default 'web' after customer;
             insert into orders (customer, total) values (1, 2);
             alter table orders rename column note to remark;
             update orders set remark = 'renamed' where id < 50;
             alter table pairs drop column c;
             insert into pairs values (9, 'z');
             create table added (id int primary key, t text);
             insert into added values (1, 'a'), (2, 'b');
             create table made (id int primary key) select 7 as id, 'x' as t;
             insert into made values (8, 'y');
             truncate table customers;
             insert into customers values ('d', 'after', 1);",
        )
        .await?;
    tables.extend(["added", "made"]);
    shop.ensure_equal(&tables).await?;
    let stop = CancellationToken::new();
    let writing = change(&shop.mysql, 9, stop.clone());
    let verifying = async {
        let verified = shop.daemon.ok(&["verify", resources::PIPELINE]).await;
        stop.cancel();
        verified
    };
    let (written, verified) = tokio::join!(writing, verifying);
    println!("{}", verified?);
    ensure!(written? > 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mysql_is_mirrored() -> Result<()> {
    is_mirrored(Product::Mysql9).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mariadb_10_is_mirrored() -> Result<()> {
    is_mirrored(Product::Mariadb10).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mariadb_11_is_mirrored() -> Result<()> {
    is_mirrored(Product::Mariadb11).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_or_doubled_by_kills_of_daemon_and_server() -> Result<()> {
    let mut shop = Shop::open(Product::Mysql9).await?;
    shop.fill(5_000).await?;
    shop.deliver(&["shop.orders", "shop.pairs"]).await?;
    for round in 0..4 {
        let stop = CancellationToken::new();
        {
            let writing = change(&shop.mysql, round, stop.clone());
            let killing = async {
                let described = shop.daemon.describe("source", resources::SOURCE).await;
                println!(
                    "killed while the source is {}",
                    described.map_or("?".into(), |d| d["state"].clone())
                );
                stop.cancel();
            };
            tokio::join!(writing, killing).0?;
        }
        shop.daemon.kill();
        shop.daemon.start().await?;
    }
    shop.ensure_equal(&["orders", "pairs"]).await?;
    // What the log has, each transaction once.
    let text = shop
        .daemon
        .ok(&[
            "tail",
            resources::SOURCE,
            "--from",
            "earliest",
            "--until",
            "latest",
            "-o",
            "json",
        ])
        .await?;
    let mut ends = std::collections::HashSet::new();
    let mut last = String::new();
    for line in text.lines() {
        let event: serde_json::Value = serde_json::from_str(line)?;
        let transaction = event["txn"].as_str().unwrap_or_default().to_owned();
        if transaction.contains(':') && transaction != last {
            ensure!(ends.insert(transaction.clone()), "{transaction} came twice");
        }
        last = transaction;
    }
    ensure!(ends.len() > 10, "{} transactions", ends.len());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purged_binlog_is_a_hole_and_a_new_snapshot_repairs_it() -> Result<()> {
    let mut shop = Shop::open(Product::Mysql9).await?;
    shop.fill(500).await?;
    shop.deliver(&["shop.orders"]).await?;
    shop.ensure_equal(&["orders"]).await?;
    shop.daemon.kill();
    shop.mysql
        .execute(
            "delete from orders where id % 3 = 0;
             flush binary logs;
             update orders set note = 'unseen' where id % 5 = 0;
             flush binary logs;",
        )
        .await?;
    let newest: Option<(String, u64)> = shop
        .mysql
        .client()
        .await?
        .query::<mysql_async::Row, _>("show binary logs")
        .await?
        .pop()
        .and_then(|row| Some((row.get(0)?, row.get(1)?)));
    let (newest, _) = newest.context("a binlog")?;
    shop.mysql
        .execute(&format!("purge binary logs to '{newest}'"))
        .await?;
    shop.daemon.start().await?;
    let described = shop
        .daemon
        .until_described(
            "source",
            resources::SOURCE,
            "the hole to be found",
            CATCH_UP,
            |source| source["state"] == "stopped",
        )
        .await?;
    ensure!(described["code"] == "DR-1085", "{described}");
    ensure!(
        described["reason"]
            .as_str()
            .is_some_and(|reason| reason.contains(":")),
        "{described}"
    );
    shop.daemon.ok(&["resnapshot", resources::PIPELINE]).await?;
    shop.ensure_equal(&["orders"]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_missing_at_the_server_is_said_with_its_fix() -> Result<()> {
    let settings = [
        "binlog-row-metadata = MINIMAL",
        "binlog-row-image = MINIMAL",
    ];
    let mysql = Mysql::start_with(Product::Mysql9, &settings).await?;
    mysql.create_capture_user().await?;
    mysql.execute(ORDERS).await?;
    let folder = tempfile::tempdir()?;
    let mut daemon = Daemon::new(folder.path())?;
    daemon.start().await?;
    let source = resources::mysql_source(&mysql, &["shop.*"], &[]);
    let refused = daemon.try_apply(&source).await?;
    ensure!(refused.code == Some(1), "{}", refused.text());
    for expected in [
        "DR-1081",
        "DR-1082",
        "SET PERSIST binlog_row_metadata = FULL",
    ] {
        ensure!(
            refused.text().contains(expected),
            "{expected}: {}",
            refused.text()
        );
    }
    mysql
        .execute("set global binlog_row_metadata = FULL; set global binlog_row_image = FULL")
        .await?;
    daemon.apply(&source).await?;
    let described = daemon
        .until_described(
            "source",
            resources::SOURCE,
            "the source to stream",
            CATCH_UP,
            |source| source["state"] == "streaming",
        )
        .await?;
    ensure!(
        daemon::table_in(&described, "shop.orders").is_some(),
        "{described}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_no_event_tells_of_are_said_where_nothing_is_read_unasked() -> Result<()> {
    let shop = Shop::open(Product::Mysql9).await?;
    shop.mysql.execute("delete from pairs").await?;
    let source = resources::mysql_source(&shop.mysql, &["shop.pairs"], &["snapshot: none"]);
    let sink = resources::sink_in_folder(&shop.folder.path().join("lake"));
    let pipeline = resources::pipeline("1s");
    shop.daemon.apply(&(source + &sink + &pipeline)).await?;
    let is_streaming = |source: &serde_json::Value| source["state"] == "streaming";
    shop.daemon
        .until_described(
            "source",
            resources::SOURCE,
            "the source to stream",
            CATCH_UP,
            is_streaming,
        )
        .await?;
    let insert = "insert into pairs (a, b) values (1, 'x'), (2, 'y')";
    shop.mysql.execute(insert).await?;
    shop.ensure_equal(&["pairs"]).await?;
    shop.mysql
        .execute("alter table pairs add column d int not null default 5; insert into pairs (a, b) values (3, 'z')")
        .await?;
    let is_said = |source: &serde_json::Value| {
        let table = daemon::table_in(source, "shop.pairs");
        table.is_some_and(|table| table["code"] == "DR-1054" && table["fix"].is_string())
    };
    shop.daemon
        .until_described(
            "source",
            resources::SOURCE,
            "it to be said",
            CATCH_UP,
            is_said,
        )
        .await?;
    shop.daemon.ok(&["resnapshot", resources::PIPELINE]).await?;
    shop.ensure_equal(&["pairs"]).await
}
