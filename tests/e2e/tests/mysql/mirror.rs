//! MySQL and MariaDB from the snapshot and the binlog into the lake, as a user sets them up: a real server, a daemon, and
//! what others read of the lake.

use anyhow::{Result, ensure};
use downriver_testkit::daemon::Daemon;
use downriver_testkit::mysql::{Mysql, Product};
use downriver_testkit::{daemon, resources};
use e2e::CATCH_UP;
use e2e::mysql::{ORDERS, Shop, change, change_until, ensure_each_came_once};
use tokio_util::sync::CancellationToken;

const TYPES: &str = include_str!("binlog/load.sql");
async fn is_mirrored(product: Product, settings: &[&str]) -> Result<()> {
    let shop = Shop::open_with(product, settings).await?;
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
    is_mirrored(Product::Mysql9, &[]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mariadb_10_is_mirrored() -> Result<()> {
    let settings = ["log-bin-compress = ON", "log-bin-compress-min-len = 10"];
    is_mirrored(Product::Mariadb10, &settings).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mariadb_11_is_mirrored() -> Result<()> {
    is_mirrored(Product::Mariadb11, &["binlog-row-image = FULL_NODUP"]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_or_doubled_by_kills_of_daemon_and_server() -> Result<()> {
    let settings = [
        "binlog-transaction-compression = ON",
        "binlog-row-value-options = PARTIAL_JSON",
    ];
    let mut shop = Shop::open_with(Product::Mysql9, &settings).await?;
    shop.fill(5_000).await?;
    shop.mysql
        .execute(
            "create table documents (id int primary key, j json, filler text);
             insert into documents
                with recursive n as (select 1 as id union all select id + 1 from n where id < 900)
                select id, json_object('n', 0, 'list', json_array(id, 'two', null)), repeat(sha2(id, 256), 75) from n;",
        )
        .await?;
    let tables = ["shop.orders", "shop.pairs", "shop.documents"];
    shop.deliver(&tables).await?;
    for round in 0..4 {
        let stop = CancellationToken::new();
        {
            // So many at least that some are in the log, also of those that began before the source was read.
            let writing = change_until(&shop.mysql, round, |written| {
                stop.is_cancelled() && written >= 10
            });
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
        // One transaction of several blocks, which are being decoded.
        shop.mysql
            .execute(&format!(
                "update documents set filler = concat(filler, {round}),
                    j = json_set(json_remove(j, '$.list[0]'), '$.n', {round}, '$.list[9]', json_object('round', {round}, 'id', id))"
            ))
            .await?;
        shop.daemon.kill();
        shop.daemon.start().await?;
    }
    shop.ensure_equal(&["orders", "pairs", "documents"]).await?;
    let transactions = ensure_each_came_once(&shop.daemon).await?;
    ensure!(transactions > 10, "{transactions} transactions");
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
             update orders set note = 'unseen' where id % 5 = 0;",
        )
        .await?;
    shop.mysql.flush_and_purge_binlogs().await?;
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
    let mysql = Mysql::start_with(Product::Mysql9, &["binlog-format = STATEMENT"]).await?;
    mysql.create_capture_user().await?;
    mysql.execute(ORDERS).await?;
    let folder = tempfile::tempdir()?;
    let mut daemon = Daemon::new(folder.path())?;
    daemon.start().await?;
    let source = resources::mysql_source(&mysql, &["shop.*"], &[]);
    let refused = daemon.try_apply(&source).await?;
    ensure!(refused.code == Some(1), "{}", refused.text());
    for expected in ["DR-1080", "SET PERSIST binlog_format = ROW"] {
        ensure!(
            refused.text().contains(expected),
            "{expected}: {}",
            refused.text()
        );
    }
    mysql.execute("set global binlog_format = ROW").await?;
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
