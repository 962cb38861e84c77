//! A slot that is not to be had: timed out, half made by somebody, or without a walsender to read it. What is missing is
//! named, nothing half made is left, and what can heal heals by itself.

use std::process::{Child, Stdio};

use anyhow::{Context, Result, ensure};
use downriver_testkit::postgres::{CDC_PASSWORD, Options, Version};
use downriver_testkit::{Postgres, host, resources, shop};
use e2e::{CATCH_UP, Shop};
use serde_json::Value;

const SCALE: u32 = 500;

async fn over(version: u32, settings: &[&str]) -> Result<Shop> {
    let postgres = Postgres::start_with(Options {
        version: Version::Major(version),
        settings: settings.iter().map(|line| (*line).to_owned()).collect(),
        ..Options::default()
    })
    .await?;
    shop::create(&postgres).await?;
    shop::fill(&postgres, SCALE).await?;
    Shop::over(postgres).await
}

fn says(value: &Value, field: &str, part: &str) -> bool {
    value[field]
        .as_str()
        .is_some_and(|text| text.contains(part))
}

/// Somebody who has a walsender.
fn take_walsender(postgres: &Postgres) -> Result<Child> {
    let database = format!(
        "host=127.0.0.1 port={} user=cdc dbname=shop replication=database",
        postgres.port()
    );
    std::process::Command::new(postgres.program("psql"))
        .args(["-X", "-d", &database])
        .env("PGPASSWORD", CDC_PASSWORD)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("psql")
}

const WALSENDERS: &str = "select count(*) from pg_stat_activity where backend_type = 'walsender'";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_nobody_read_for_too_long_is_a_hole_that_says_what_to_raise() -> Result<()> {
    let mut shop = over(18, &["idle_replication_slot_timeout = 2s"]).await?;
    shop.deliver_with(&[]).await?;
    shop.ensure_lake_equal().await?;
    let source = shop
        .until_source("the slot to be shown", |source| source["slot"].is_object())
        .await?;
    ensure!(source["slot"]["catalog_xmin_age"].is_u64(), "{source}");
    let text = shop.daemon.ok(&["describe", "source", resources::SOURCE]);
    let text = text.await?;
    ensure!(text.contains("catalog rows of the last"), "{text}");

    shop.daemon.kill();
    host::until("a checkpoint to invalidate the slot", CATCH_UP, async || {
        shop.postgres.execute("checkpoint").await?;
        let timed_out = "select count(*) from pg_replication_slots where invalidation_reason = 'idle_timeout'";
        Ok(shop.postgres.number(timed_out).await? == 1)
    })
    .await?;
    shop.postgres
        .execute("delete from customers where id % 10 = 1")
        .await?;
    shop.daemon.start().await?;
    let stopped = shop.until_stopped("DR-1020").await?;
    ensure!(
        says(&stopped, "reason", "idle_replication_slot_timeout")
            && says(&stopped, "fix", "raise idle_replication_slot_timeout")
            && says(&stopped, "fix", "downriver resnapshot"),
        "{stopped}"
    );
    shop.daemon.ok(&["resnapshot", resources::PIPELINE]).await?;
    shop.ensure_lake_equal().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_somebody_is_still_making_is_waited_for_and_then_taken_up() -> Result<()> {
    let shop = over(17, &[]).await?;
    let open = shop.postgres.client().await?;
    open.batch_execute("begin; insert into ledger values (1, 'open')")
        .await?;
    let maker = shop.postgres.client().await?;
    let making = tokio::spawn(async move {
        let make = "select pg_create_logical_replication_slot('downriver_shop', 'pgoutput')";
        maker.batch_execute(make).await
    });
    host::until("the slot to be half made", CATCH_UP, async || {
        let half = "select count(*) from pg_replication_slots where confirmed_flush_lsn is null";
        Ok(shop.postgres.number(half).await? == 1)
    })
    .await?;
    shop.deliver_with(&[]).await?;
    let pid = "select active_pid from pg_replication_slots";
    let pid = format!("pid {}", shop.postgres.number(pid).await?);
    let waiting = shop
        .until_source("the slot's maker to be named", |source| {
            source["code"] == "DR-1013"
        })
        .await?;
    ensure!(says(&waiting, "reason", &pid), "{waiting}");
    open.batch_execute("commit").await?;
    making.await??;
    shop.ensure_lake_equal().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_walsender_nothing_is_made_and_a_running_capture_waits_for_one() -> Result<()> {
    let shop = over(16, &["max_wal_senders = 1"]).await?;
    let until_walsenders = async |wanted: i64| {
        host::until("a walsender to come or go", CATCH_UP, async || {
            Ok(shop.postgres.number(WALSENDERS).await? == wanted)
        })
        .await
    };
    let mut other = take_walsender(&shop.postgres)?;
    until_walsenders(1).await?;
    let source = resources::source(&shop.postgres, &["public.*"], &[]);
    let refused = shop.daemon.try_apply(&source).await?;
    ensure!(
        refused.code == Some(1) && refused.text().contains("DR-1011"),
        "{}",
        refused.text()
    );
    let made = "select (select count(*) from pg_publication) + (select count(*) from pg_replication_slots)";
    ensure!(shop.postgres.number(made).await? == 0);
    other.kill()?;
    other.wait()?;
    until_walsenders(0).await?;
    shop.deliver_with(&[]).await?;
    shop.ensure_lake_equal().await?;

    // Its place is taken as soon as it loses it.
    let lost = "select count(pg_terminate_backend(pid)) from pg_stat_activity where backend_type = 'walsender'";
    let mut other = None;
    host::until("the other to be first", CATCH_UP, async || {
        shop.postgres.number(lost).await?;
        let mut child = take_walsender(&shop.postgres)?;
        let named = shop.until_source("what becomes of the capture", |source| {
            source["code"] == "DR-1011" || source["slot"]["active"] == true
        });
        if named.await?["code"] == "DR-1011" {
            other = Some(child);
            return Ok(true);
        }
        child.kill()?;
        child.wait()?;
        Ok(false)
    })
    .await?;
    shop.postgres
        .execute("delete from customers where id % 10 = 1")
        .await?;
    let source = shop
        .until_source("the walsenders to be named", |source| {
            source["code"] == "DR-1011"
        })
        .await?;
    ensure!(
        source["state"] != "stopped" && says(&source, "fix", "max_wal_senders"),
        "{source}"
    );
    let mut other = other.context("nobody took the walsender")?;
    other.kill()?;
    other.wait()?;
    shop.ensure_lake_equal().await
}
