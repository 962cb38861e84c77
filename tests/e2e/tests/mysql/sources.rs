//! What becomes of a source of MySQL: its tables are changed, it is deleted and comes anew.

use anyhow::{Context as _, Result, ensure};
use downriver_testkit::mysql::Product;
use downriver_testkit::{daemon, resources};
use e2e::CATCH_UP;
use e2e::mysql::Shop;
use serde_json::Value;

fn names_of(source: &Value) -> Vec<&str> {
    let tables = source["tables"].as_array();
    let names = tables.into_iter().flatten();
    names.filter_map(|table| table["table"].as_str()).collect()
}

/// Whether any file or folder under a folder is called by a name.
fn is_named_below(folder: &std::path::Path, name: &str) -> Result<bool> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let is_named = entry.file_name().to_string_lossy() == name;
        if is_named || entry.file_type()?.is_dir() && is_named_below(&entry.path(), name)? {
            println!("{}", entry.path().display());
            return Ok(true);
        }
    }
    Ok(false)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_is_deleted_leaves_nothing_and_may_come_anew() -> Result<()> {
    let shop = Shop::open(Product::Mysql9).await?;
    shop.fill(2_000).await?;
    shop.deliver(&["shop.*"]).await?;
    shop.ensure_equal(&["orders", "pairs"]).await?;
    let delete = |kind: &'static str, name: &'static str| ["delete", kind, name, "--yes"];
    let used = shop
        .daemon
        .run(&delete("source", resources::SOURCE))
        .await?;
    ensure!(
        used.code == Some(1) && used.text().contains("DR-2022"),
        "{}",
        used.text()
    );
    shop.daemon
        .ok(&delete("pipeline", resources::PIPELINE))
        .await?;
    let asked = shop
        .daemon
        .run(&["delete", "source", resources::SOURCE])
        .await?;
    ensure!(
        asked.code == Some(2) && asked.stdout.contains("log of source shop"),
        "{}",
        asked.text()
    );
    println!("{}", asked.stdout);
    shop.daemon.ok(&delete("source", resources::SOURCE)).await?;
    ensure!(!shop.daemon.exists("source", resources::SOURCE).await?);
    let spilled = shop.daemon.data().join("spill");
    ensure!(
        !spilled.exists() || !is_named_below(&spilled, resources::SOURCE)?,
        "what was spilled is there still"
    );
    let dumps =
        "select count(*) from information_schema.processlist where command like 'Binlog Dump%'";
    let users = "select count(*) from information_schema.processlist where user = 'cdc'";
    for what in [dumps, users] {
        let mut client = shop.mysql.client().await?;
        downriver_testkit::host::until("our sessions to end", CATCH_UP, async || {
            use mysql_async::prelude::Queryable as _;
            Ok(client.query_first(what).await? == Some(0u64))
        })
        .await?;
    }

    // Anew, and other rows are there by now.
    shop.mysql
        .execute(
            "delete from orders where id % 3 = 0; insert into pairs (a, b) values (5, 'between')",
        )
        .await?;
    shop.deliver(&["shop.*"]).await?;
    shop.ensure_equal(&["orders", "pairs", "customers"]).await?;
    shop.mysql
        .execute("update orders set note = 'anew' where id % 7 = 0")
        .await?;
    shop.ensure_equal(&["orders", "pairs", "customers"]).await?;
    shop.verify(&["shop.orders", "shop.pairs"]).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_that_are_selected_left_and_selected_again_have_all_their_rows() -> Result<()> {
    let shop = Shop::open(Product::Mariadb11).await?;
    shop.fill(1_500).await?;
    let bag =
        "create table bag (a int, b text); insert into bag values (1, 'x'), (1, 'x'), (2, null)";
    shop.mysql.execute(bag).await?;
    shop.deliver(&["shop.orders"]).await?;
    shop.ensure_equal(&["orders"]).await?;
    shop.deliver(&["shop.orders", "shop.pairs", "shop.bag"])
        .await?;
    shop.ensure_equal(&["orders", "pairs", "bag"]).await?;
    let snapshots = shop.snapshots().await?;

    // The ones that stay are not read again.
    shop.deliver(&["shop.orders", "!shop.pairs"]).await?;
    let source = shop.until_captured("pairs", false).await?;
    ensure!(names_of(&source) == ["shop.orders"], "{source}");
    shop.mysql
        .execute(
            "update pairs set c = 100 where a = 1; delete from pairs where a = 2; insert into pairs values (50, 'missed', 1);
             insert into bag values (1, 'x'), (3, 'missed'); delete from bag where a = 2;
             alter table pairs add column missed int not null default 4;
             insert into orders (customer) values (77)",
        )
        .await?;
    shop.ensure_equal(&["orders"]).await?;
    ensure!(shop.snapshots().await? == snapshots);

    shop.deliver(&["shop.orders", "shop.pairs", "shop.bag"])
        .await?;
    shop.mysql
        .execute(
            "insert into pairs (a, b) values (51, 'after'); insert into bag values (4, 'after')",
        )
        .await?;
    shop.ensure_equal(&["orders", "pairs", "bag"]).await?;
    shop.verify(&["shop.orders", "shop.pairs", "shop.bag"])
        .await?;

    // Away again, dropped and made anew, and back under its name.
    shop.deliver(&["shop.orders"]).await?;
    shop.until_captured("pairs", false).await?;
    shop.mysql
        .execute(
            "drop table pairs; create table pairs (b varchar(10), a int primary key, other date);
             insert into pairs values ('anew', 1, '2024-02-29')",
        )
        .await?;
    shop.deliver(&["shop.*"]).await?;
    shop.mysql
        .execute("insert into pairs values ('anew', 2, null)")
        .await?;
    shop.ensure_equal(&["orders", "pairs", "bag"]).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_table_missed_is_read_also_where_nothing_is_read_at_first() -> Result<()> {
    let shop = Shop::open(Product::Mysql9).await?;
    shop.mysql.execute("delete from pairs").await?;
    shop.deliver_with(&["shop.orders", "shop.pairs"], &["snapshot: none"])
        .await?;
    shop.until_streaming().await?;
    shop.mysql
        .execute("insert into pairs values (1, 'one', 1), (2, 'two', 2); insert into orders (customer) values (1)")
        .await?;
    shop.ensure_equal(&["orders", "pairs"]).await?;
    shop.deliver_with(&["shop.orders"], &["snapshot: none"])
        .await?;
    shop.until_captured("pairs", false).await?;
    shop.mysql
        .execute("update pairs set c = 5 where a = 1; delete from pairs where a = 2; insert into pairs values (3, 'missed', 3)")
        .await?;
    shop.ensure_equal(&["orders"]).await?;
    shop.deliver_with(&["shop.orders", "shop.pairs"], &["snapshot: none"])
        .await?;
    shop.mysql
        .execute("insert into pairs values (4, 'after', 4)")
        .await?;
    shop.ensure_equal(&["orders", "pairs"]).await?;
    let source = shop.until_streaming().await?;
    let pairs = daemon::table_in(&source, "shop.pairs").context("it is captured")?;
    ensure!(pairs["code"].is_null(), "{pairs}");
    shop.verify(&["shop.orders", "shop.pairs"]).await
}
