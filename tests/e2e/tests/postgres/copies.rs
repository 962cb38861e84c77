//! The server is put back to an older state of itself, is another one, or somebody moved the slot: what is lost by that
//! is named, and repaired.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};
use downriver_testkit::{Postgres, resources, shop};
use e2e::{CATCH_UP, Shop};
use serde_json::Value;

const SCALE: u32 = 300;

async fn until_stopped(shop: &Shop, code: &str) -> Result<Value> {
    let stopped = |source: &Value| source["state"] == "stopped" && source["code"] == code;
    shop.daemon
        .until_described("source", resources::SOURCE, code, CATCH_UP, stopped)
        .await
}

async fn repair(shop: &Shop) -> Result<()> {
    shop.daemon.ok(&["resnapshot", resources::PIPELINE]).await?;
    shop.ensure_lake_equal().await
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status()?;
    ensure!(status.success(), "cp failed");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_older_copy_of_the_server_never_had_is_a_hole_and_taken_back() -> Result<()> {
    let mut shop = Shop::open(SCALE).await?;
    shop.deliver("1s").await?;
    shop.ensure_lake_equal().await?;
    let kept = shop.folder.path().join("kept");
    shop.postgres.stop();
    copy(shop.postgres.data(), &kept)?;
    shop.postgres.start_again().await?;
    for change in [
        "update customers set name = 'lost' where id % 3 = 0",
        "delete from order_lines where order_id % 2 = 0",
        "select pg_switch_wal()",
    ] {
        shop.postgres.execute(change).await?;
    }
    shop.ensure_lake_equal().await?;

    shop.daemon.kill();
    shop.postgres.stop();
    std::fs::remove_dir_all(shop.postgres.data())?;
    copy(&kept, shop.postgres.data())?;
    shop.postgres.start_again().await?;
    let change = "update customers set name = 'after' where id % 5 = 0";
    shop.postgres.execute(change).await?;
    shop.daemon.start().await?;
    let stopped = until_stopped(&shop, "DR-1026").await?;
    let reason = stopped["reason"].as_str().unwrap_or_default();
    ensure!(reason.contains("older state of itself"), "{reason}");
    repair(&shop).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_database_is_refused_until_the_url_names_the_one_that_was_captured() -> Result<()> {
    let shop = Shop::open(SCALE).await?;
    shop.deliver("1s").await?;
    shop.ensure_lake_equal().await?;
    let other = Postgres::start().await?;
    shop::create(&other).await?;
    shop.daemon
        .apply(&resources::source(&other, &["public.*"], &[]))
        .await?;
    until_stopped(&shop, "DR-1021").await?;
    let made = "select count(*) from pg_replication_slots";
    ensure!(other.number(made).await? == 0, "a slot was made there");
    let change = "update customers set name = 'meanwhile' where id % 3 = 0";
    shop.postgres.execute(change).await?;
    shop.deliver("1s").await?;
    shop.ensure_lake_equal().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_somebody_else_moved_or_made_anew_is_a_hole() -> Result<()> {
    let mut shop = Shop::open(SCALE).await?;
    shop.deliver("1s").await?;
    shop.ensure_lake_equal().await?;
    for moved in [
        "select pg_replication_slot_advance('downriver_shop', pg_current_wal_lsn())",
        "select pg_drop_replication_slot('downriver_shop'); select pg_create_logical_replication_slot('downriver_shop', 'pgoutput')",
    ] {
        shop.daemon.kill();
        let changes = "delete from order_lines where order_id % 3 = 0; update customers set name = name || '!'";
        for sql in changes.split("; ").chain(moved.split("; ")) {
            let postgres = &shop.postgres;
            // The server notices a little later that nobody reads the slot any more.
            downriver_testkit::host::until("the slot to be free", CATCH_UP, async || {
                Ok(postgres.execute(sql).await.is_ok())
            })
            .await?;
        }
        shop.daemon.start().await?;
        let stopped = until_stopped(&shop, "DR-1020").await?;
        let reason = stopped["reason"].as_str().unwrap_or_default();
        ensure!(reason.contains("advanced by somebody else"), "{reason}");
        repair(&shop).await?;
    }
    Ok(())
}
