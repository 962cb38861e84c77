//! MySQL whose transactions have no identifiers: the source is known by its binlog's file and byte.

use anyhow::{Result, ensure};
use downriver_testkit::mysql::Product;
use downriver_testkit::resources;
use e2e::mysql::{DURABLE, Shop, change};
use tokio_util::sync::CancellationToken;

const WITHOUT: [&str; 3] = [DURABLE, "gtid-mode = OFF", "enforce-gtid-consistency = OFF"];
const TABLES: [&str; 2] = ["orders", "pairs"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_identifiers_nothing_is_lost_or_doubled_by_kills_and_new_files() -> Result<()> {
    let mut shop = Shop::open_with(Product::Mysql9, &WITHOUT).await?;
    shop.fill(5_000).await?;
    // Without a key a table is read whole, and nothing may come twice.
    let bag = "create table bag (a int, b varchar(9)); insert into bag values (1, 'x'), (1, 'x'), (2, null)";
    shop.mysql.execute(bag).await?;
    shop.deliver(&["shop.orders", "shop.pairs", "shop.bag"])
        .await?;
    for round in 0..4 {
        let stop = CancellationToken::new();
        {
            let writing = change(&shop.mysql, round, stop.clone());
            let disturbing = async {
                shop.mysql.execute("insert into bag values (1, 'x'), (7, 'y'); delete from bag where a = 2 limit 1").await?;
                if round % 2 == 1 {
                    shop.mysql.administer("flush binary logs").await?;
                }
                let described = shop.daemon.describe("source", resources::SOURCE).await?;
                println!("killed while the source is {}", described["state"]);
                stop.cancel();
                anyhow::Ok(())
            };
            let (written, disturbed) = tokio::join!(writing, disturbing);
            ensure!(written? > 0, "nothing was written");
            disturbed?;
        }
        shop.daemon.kill();
        if round == 2 {
            shop.mysql.kill()?;
            shop.mysql.start_again().await?;
        }
        shop.daemon.start().await?;
    }
    shop.ensure_equal(&["orders", "pairs", "bag"]).await?;
    let described = shop.daemon.describe("source", resources::SOURCE).await?;
    let position = described["position"].as_str().unwrap_or_default();
    ensure!(position.starts_with("binlog.0"), "{described}");

    // The server is restarted while the daemon runs, and a whole file is passed over.
    shop.mysql.kill()?;
    shop.mysql.start_again().await?;
    shop.mysql
        .execute("flush binary logs; flush binary logs")
        .await?;
    shop.mysql
        .execute("update orders set note = 'restarted' where id % 7 = 0; alter table pairs add column d int")
        .await?;
    shop.mysql
        .execute("insert into pairs (a, b, d) values (1, 'd', 5)")
        .await?;
    shop.ensure_equal(&TABLES).await?;
    shop.verify(&["shop.orders", "shop.pairs"]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_identifiers_a_purged_file_and_another_server_are_holes() -> Result<()> {
    let mut shop = Shop::open_with(Product::Mysql9, &WITHOUT).await?;
    shop.fill(500).await?;
    shop.deliver(&["shop.orders"]).await?;
    shop.ensure_equal(&["orders"]).await?;
    shop.daemon.kill();
    shop.mysql
        .execute("delete from orders where id % 3 = 0; flush binary logs")
        .await?;
    shop.mysql
        .execute("update orders set note = 'unseen' where id % 5 = 0")
        .await?;
    shop.mysql.flush_and_purge_binlogs().await?;
    shop.daemon.start().await?;
    let stopped = shop.until_stopped("DR-1085").await?;
    let reason = stopped["reason"].as_str().unwrap_or_default();
    ensure!(reason.contains("between binlog.0"), "{stopped}");
    shop.daemon.ok(&["resnapshot", resources::PIPELINE]).await?;
    shop.ensure_equal(&["orders"]).await?;

    // The binlog begins anew: its first file has the name of one that was read.
    shop.daemon.kill();
    shop.mysql
        .execute("reset binary logs and gtids; delete from orders where id % 2 = 0")
        .await?;
    shop.daemon.start().await?;
    let stopped = shop.until_stopped("DR-1084").await?;
    println!("{}", stopped["reason"]);
    shop.daemon.ok(&["resnapshot", resources::PIPELINE]).await?;
    shop.ensure_equal(&["orders"]).await?;

    // The same when what was written since is longer than what was captured.
    shop.daemon.kill();
    shop.mysql.administer("reset binary logs and gtids").await?;
    shop.fill(3_000).await?;
    shop.mysql.administer("flush binary logs").await?;
    shop.fill(3_000).await?;
    shop.daemon.start().await?;
    // The server itself says that the place is none.
    let stopped = shop.until_stopped("DR-1063").await?;
    println!("{}", stopped["reason"]);
    shop.daemon.ok(&["resnapshot", resources::PIPELINE]).await?;
    shop.ensure_equal(&["orders"]).await?;

    // A copy of the server is another one.
    let other = Shop::open_with(Product::Mysql9, &WITHOUT).await?;
    let source = resources::mysql_source(&other.mysql, &["shop.orders"], &[]);
    shop.daemon.apply(&source).await?;
    let stopped = shop.until_stopped("DR-1084").await?;
    println!("{}", stopped["reason"]);
    Ok(())
}
