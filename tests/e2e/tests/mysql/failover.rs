//! Another server takes the place of the one that was captured: by its own address, or at the same one. What both have by
//! transaction identifiers is neither read again nor lost; a server that lacks what was captured is refused.

use anyhow::{Context as _, Result, ensure};
use downriver_testkit::mysql::{Mysql, Product};
use downriver_testkit::{host, resources};
use e2e::mysql::{DURABLE, Shop, change_until, ensure_each_came_once};
use e2e::{CATCH_UP, log};
use mysql_async::prelude::Queryable as _;

const TABLES: [&str; 3] = ["orders", "customers", "pairs"];

/// A shop whose server has a replica with all of it.
async fn with_replica(product: Product) -> Result<(Shop, Mysql)> {
    // It becomes a replica itself, and is to log what it gets then: MySQL does so by default.
    let settings: &[&str] = match product.is_mariadb() {
        true => &[DURABLE, "log-slave-updates = ON"],
        false => &[DURABLE],
    };
    let mysql = Mysql::start_with(product, settings).await?;
    let replica = mysql.start_replica(&[DURABLE]).await?;
    let shop = Shop::over(mysql).await?;
    shop.fill(3_000).await?;
    Ok((shop, replica))
}

/// Some transactions, with MariaDB of two domains.
async fn write(mysql: &Mysql, seed: u64) -> Result<()> {
    change_until(mysql, seed, |transactions| transactions >= 40).await?;
    let (domain, note) = match mysql.product().is_mariadb() {
        true => ("set gtid_domain_id = 7", format!("of domain 7, {seed}")),
        false => ("set gtid_next = automatic", format!("{seed}")),
    };
    let replace =
        format!("{domain}; replace into customers (code, name) values ('last', '{note}')");
    mysql.execute(&replace).await
}

async fn ensure_no_new_snapshot(shop: &Shop, snapshots: usize) -> Result<()> {
    let now = shop.snapshots().await?;
    ensure!(
        now == snapshots,
        "{now} snapshots were begun, before it were {snapshots}"
    );
    ensure_each_came_once(&shop.daemon).await?;
    Ok(())
}

async fn goes_on_with_another_server(product: Product) -> Result<()> {
    let (mut shop, mut other) = with_replica(product).await?;
    shop.deliver(&["shop.*"]).await?;
    write(&shop.mysql, 1).await?;
    shop.ensure_equal(&TABLES).await?;
    let snapshots = shop.snapshots().await?;

    // By its own address, with changes that were not captured yet, and some that the one before never had.
    shop.daemon.kill();
    write(&shop.mysql, 2).await?;
    other.until_it_has_all_of(&shop.mysql).await?;
    shop.mysql.kill()?;
    other.promote().await?;
    write(&other, 3).await?;
    std::mem::swap(&mut shop.mysql, &mut other);
    shop.daemon.start().await?;
    shop.deliver(&["shop.*"]).await?;
    write(&shop.mysql, 4).await?;
    shop.ensure_equal(&TABLES).await?;
    ensure_no_new_snapshot(&shop, snapshots).await?;

    // At the same address, while the daemon runs: the first one is back, as a replica at first.
    other.start_again().await?;
    other.follow(&shop.mysql).await?;
    write(&shop.mysql, 5).await?;
    other.until_it_has_all_of(&shop.mysql).await?;
    other.promote().await?;
    other.take_over(&mut shop.mysql).await?;
    std::mem::swap(&mut shop.mysql, &mut other);
    write(&shop.mysql, 6).await?;
    shop.mysql
        .execute(
            "alter table pairs add column d int; insert into pairs (a, b, d) values (77, 'new', 7)",
        )
        .await?;
    shop.ensure_equal(&TABLES).await?;
    ensure_no_new_snapshot(&shop, snapshots).await?;
    shop.verify(&["shop.orders", "shop.pairs"]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mysql_is_gone_on_with_from_another_server() -> Result<()> {
    goes_on_with_another_server(Product::Mysql9).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mariadb_is_gone_on_with_from_another_server() -> Result<()> {
    goes_on_with_another_server(Product::Mariadb11).await
}

fn source_at(mysql: &Mysql) -> String {
    let options = ["snapshot: { mode: initial, chunk_rows: 700, max_workers: 2 }"];
    resources::mysql_source(mysql, &["shop.*"], &options)
}

async fn reason_of_stop(shop: &Shop, codes: &[&str]) -> Result<String> {
    let stopped = shop
        .until_source("the source to stop", |source| source["state"] == "stopped")
        .await?;
    let code = stopped["code"].as_str().context("it has no code")?;
    ensure!(codes.contains(&code), "{stopped}");
    let reason = stopped["reason"].as_str().context("it has no reason")?;
    println!("{code}: {reason}");
    Ok(reason.to_owned())
}

/// What a server did between two of its positions, as it is said.
fn between(product: Product, before: &str, after: &str) -> Result<String> {
    let last = |gtids: &str| -> Result<u64> {
        let last = gtids.rsplit(['-', ':']).next().context("no number")?;
        Ok(last.parse()?)
    };
    if product.is_mariadb() {
        return Ok(format!("behind {before}, up to {after}"));
    }
    let (server, _) = after.rsplit_once(':').context("no server")?;
    let (first, last) = (last(before)? + 1, last(after)?);
    Ok(match first == last {
        true => format!("{server}:{last}"),
        false => format!("{server}:{first}-{last}"),
    })
}

async fn lacking_server_is_refused(product: Product) -> Result<()> {
    let (mut shop, replica) = with_replica(product).await?;
    shop.deliver(&["shop.*"]).await?;
    replica.until_it_has_all_of(&shop.mysql).await?;
    replica.promote().await?;
    let before = shop.mysql.gtids().await?;
    // The replica never gets these.
    for customer in [9_001, 9_002] {
        let insert = format!("insert into orders (customer) values ({customer})");
        shop.mysql.execute(&insert).await?;
    }
    let after = shop.mysql.gtids().await?;
    let lacking = between(product, &before, &after)?;
    shop.ensure_equal(&["orders"]).await?;
    shop.daemon.apply(&source_at(&replica)).await?;
    let reason = reason_of_stop(&shop, &["DR-1084"]).await?;
    ensure!(reason.contains(&lacking), "{reason}: {lacking} is not said");

    // As many transactions of its own hide nothing.
    for customer in [9_003, 9_004, 9_005] {
        let insert = format!("insert into orders (customer) values ({customer})");
        replica.execute(&insert).await?;
    }
    shop.daemon.kill();
    shop.daemon.start().await?;
    let reason = reason_of_stop(&shop, &["DR-1084", "DR-1063"]).await?;
    let is_said = match product.is_mariadb() {
        true => reason.contains(&after),
        false => reason.contains(&lacking),
    };
    ensure!(is_said, "{reason}");

    // Back at the right server nothing is read again; at the other one a new snapshot repairs it.
    let snapshots = shop.snapshots().await?;
    shop.daemon.apply(&source_at(&shop.mysql)).await?;
    shop.mysql
        .execute("insert into orders (customer) values (9006)")
        .await?;
    shop.ensure_equal(&TABLES).await?;
    ensure_no_new_snapshot(&shop, snapshots).await?;
    shop.daemon.apply(&source_at(&replica)).await?;
    reason_of_stop(&shop, &["DR-1084", "DR-1063"]).await?;
    shop.daemon.ok(&["resnapshot", resources::PIPELINE]).await?;
    let shop = Shop {
        mysql: replica,
        ..shop
    };
    shop.ensure_equal(&TABLES).await?;
    shop.mysql
        .execute("update orders set note = 'after' where customer > 9000")
        .await?;
    shop.ensure_equal(&TABLES).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_of_mysql_that_lacks_what_was_captured_is_refused_with_what_it_lacks() -> Result<()>
{
    lacking_server_is_refused(Product::Mysql9).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_of_mariadb_that_lacks_what_was_captured_is_refused_with_what_it_lacks()
-> Result<()> {
    lacking_server_is_refused(Product::Mariadb11).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_purged_what_was_not_captured_is_refused_with_what_it_purged() -> Result<()> {
    for product in [Product::Mysql9, Product::Mariadb11] {
        let (mut shop, replica) = with_replica(product).await?;
        shop.deliver(&["shop.*"]).await?;
        shop.ensure_equal(&TABLES).await?;
        shop.daemon.kill();
        let before = shop.mysql.gtids().await?;
        for note in ["unseen", "unseen too"] {
            let update = format!("update orders set note = '{note}' where id % 5 = 0");
            shop.mysql.execute(&update).await?;
        }
        replica.until_it_has_all_of(&shop.mysql).await?;
        let lost = between(product, &before, &shop.mysql.gtids().await?)?;
        replica.flush_and_purge_binlogs().await?;
        shop.mysql.kill()?;
        shop.daemon.start().await?;
        shop.daemon.apply(&source_at(&replica)).await?;
        let reason = reason_of_stop(&shop, &["DR-1085"]).await?;
        ensure!(reason.contains(&lost), "{reason}: {lost} is not said");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_server_sends_before_it_is_committed_there_is_not_lacking() -> Result<()> {
    let mut shop =
        Shop::open_with(Product::Mysql9, &["plugin-load-add = semisync_source.so"]).await?;
    shop.deliver(&["shop.*"]).await?;
    shop.ensure_equal(&TABLES).await?;
    // Every commit waits for a replica between the binlog and the engine, and there is none.
    shop.mysql
        .administer(
            "set global rpl_semi_sync_source_wait_point = AFTER_SYNC, global rpl_semi_sync_source_timeout = 600000,
             global rpl_semi_sync_source_wait_no_replica = on, global rpl_semi_sync_source_enabled = on",
        )
        .await?;
    let mut client = shop.mysql.client().await?;
    let insert = "insert into orders (customer) values (777)";
    let hanging = tokio::spawn(async move { client.query_drop(insert).await });
    host::until("the commit to be logged", CATCH_UP, async || {
        let events = log::events_of(&shop.daemon).await?;
        Ok(events.iter().any(|event| event["after"]["customer"] == 777))
    })
    .await?;
    shop.daemon.kill();
    shop.daemon.start().await?;
    let looks = "select count(*) from information_schema.processlist where user = 'cdc'";
    let mut administrator = shop.mysql.client().await?;
    host::until("the source to look at the server", CATCH_UP, async || {
        let source = shop.daemon.describe("source", resources::SOURCE).await?;
        ensure!(source["state"] != "stopped", "{source}");
        Ok(administrator.query_first(looks).await? > Some(0u64))
    })
    .await?;
    shop.mysql
        .administer("set global rpl_semi_sync_source_enabled = off")
        .await?;
    hanging.await??;
    shop.ensure_equal(&TABLES).await?;
    ensure_each_came_once(&shop.daemon).await?;
    Ok(())
}

/// A server that begins its binlog anew, and is ahead again before anybody looks.
async fn begins_anew(product: Product) -> Result<()> {
    let mut shop = Shop::open(product).await?;
    shop.fill(100).await?;
    shop.deliver(&["shop.orders"]).await?;
    shop.ensure_equal(&["orders"]).await?;
    shop.mysql
        .administer("flush binary logs; flush binary logs")
        .await?;
    shop.mysql
        .execute("update orders set note = 'captured' where id % 2 = 0")
        .await?;
    shop.ensure_equal(&["orders"]).await?;
    let reset = match product.is_mariadb() {
        true => "reset master",
        false => "reset binary logs and gtids",
    };
    shop.daemon.kill();
    shop.mysql.administer(reset).await?;
    for customer in 0..60 {
        shop.mysql
            .execute(&format!("insert into orders (customer) values ({customer}); delete from orders where id = {customer}"))
            .await?;
    }
    shop.daemon.start().await?;
    reason_of_stop(&shop, &["DR-1084"]).await?;
    shop.daemon.ok(&["resnapshot", resources::PIPELINE]).await?;
    shop.ensure_equal(&["orders"]).await?;

    // While it is followed.
    shop.mysql.administer(reset).await?;
    shop.mysql
        .execute("delete from orders where id % 3 = 0")
        .await?;
    reason_of_stop(&shop, &["DR-1084"]).await?;
    shop.daemon.ok(&["resnapshot", resources::PIPELINE]).await?;
    shop.ensure_equal(&["orders"]).await?;

    // By itself, where the source says so.
    let options = ["on_hole: resnapshot"];
    let source = resources::mysql_source(&shop.mysql, &["shop.orders"], &options);
    shop.daemon.apply(&source).await?;
    shop.until_streaming().await?;
    let before = shop.snapshots().await?;
    shop.mysql.administer(reset).await?;
    shop.mysql
        .execute("delete from orders where id % 5 = 0")
        .await?;
    host::until("the hole to be repaired", CATCH_UP, async || {
        Ok(shop.snapshots().await? > before)
    })
    .await?;
    shop.ensure_equal(&["orders"]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_of_mysql_that_begins_its_binlog_anew_is_noticed() -> Result<()> {
    begins_anew(Product::Mysql9).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_of_mariadb_that_begins_its_binlog_anew_is_noticed() -> Result<()> {
    begins_anew(Product::Mariadb11).await
}

/// A replica that is written to in the domain of its primary logs transactions of both: nobody could say where in them a
/// position is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_of_mariadb_that_do_not_follow_each_other_are_a_hole() -> Result<()> {
    let shop = Shop::open(Product::Mariadb11).await?;
    shop.fill(50).await?;
    shop.deliver(&["shop.orders"]).await?;
    shop.ensure_equal(&["orders"]).await?;
    shop.mysql
        .execute("set session server_id = 77; set session gtid_seq_no = 3; delete from orders where id % 2 = 0")
        .await?;
    let reason = reason_of_stop(&shop, &["DR-1090"]).await?;
    ensure!(
        reason.contains("transaction 0-77-3 came behind 0-"),
        "{reason}"
    );
    shop.mysql
        .execute("insert into orders (customer) values (1)")
        .await?;
    shop.daemon.ok(&["resnapshot", resources::PIPELINE]).await?;
    shop.ensure_equal(&["orders"]).await
}
