//! The life of the slot: what is lost with it is named, and repaired; what will be lost is said before.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use downriver_testkit::postgres::{Options, Version};
use downriver_testkit::workload::{Style, Workload};
use downriver_testkit::{Postgres, daemon, host, resources, shop};
use e2e::{CATCH_UP, Shop, log};
use serde_json::Value;

const SCALE: u32 = 2_000;

fn load(shop: &Shop) -> Workload {
    let style = Style {
        scale: SCALE,
        ..Style::default()
    };
    Workload::start(&shop.postgres, style)
}

async fn on(version: u32, settings: &[&str]) -> Result<Postgres> {
    let postgres = Postgres::start_with(Options {
        version: Version::Major(version),
        settings: settings.iter().map(|line| (*line).to_owned()).collect(),
        ..Options::default()
    })
    .await?;
    shop::create(&postgres).await?;
    Ok(postgres)
}

/// Captures and delivers everything, with further lines of the source.
async fn deliver(shop: &Shop, options: &[&str]) -> Result<()> {
    let source = resources::source(&shop.postgres, &["public.*"], options);
    let sink = resources::sink_in_folder(&shop.folder.path().join("lake"));
    let pipeline = resources::pipeline("1s");
    shop.daemon.apply(&(source + &sink + &pipeline)).await
}

async fn until_source(
    shop: &Shop,
    what: &str,
    condition: impl Fn(&Value) -> bool,
) -> Result<Value> {
    shop.daemon
        .until_described("source", resources::SOURCE, what, CATCH_UP, condition)
        .await
}

async fn until_stopped(shop: &Shop, code: &str) -> Result<Value> {
    until_source(shop, "the source to stop", |source| {
        source["state"] == "stopped" && source["code"] == code
    })
    .await
}

/// Drops the slot under the capture.
async fn drop_slot(shop: &Shop) -> Result<()> {
    let drop = "select pg_terminate_backend(active_pid) from pg_replication_slots where active;
                select pg_drop_replication_slot(slot_name) from pg_replication_slots";
    host::until("the slot to be dropped", CATCH_UP, async || {
        let left = "select count(*) from pg_replication_slots";
        Ok(shop.postgres.execute(drop).await.is_ok() && shop.postgres.number(left).await? == 0)
    })
    .await
}

/// Rows that come, change and go while nobody looks.
async fn change_unseen(shop: &Shop) -> Result<()> {
    for change in [
        "delete from customers where id % 10 = 1",
        "update customers set name = 'unseen' where id % 10 = 2",
        "delete from order_lines where order_id % 7 = 3",
        "update products set title = 'unseen' where hashtext(sku) % 10 = 2",
        "truncate carts",
        "create table made_unseen (id int primary key, v text)",
        "alter table made_unseen owner to shop_owner",
        "insert into made_unseen select i, 'unseen' from generate_series(1, 50) i",
    ] {
        shop.postgres.execute(change).await?;
    }
    Ok(())
}

async fn resnapshot(shop: &Shop) -> Result<Value> {
    let arguments = ["resnapshot", resources::PIPELINE, "-o", "json"];
    shop.daemon.json(&arguments).await
}

async fn ensure_repaired(shop: &Shop) -> Result<()> {
    shop.ensure_lake_equal().await?;
    shop.daemon.ok(&["verify", resources::PIPELINE]).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_slot_is_repaired_with_what_was_deleted_meanwhile() -> Result<()> {
    let shop = Shop::open(SCALE).await?;
    deliver(&shop, &[]).await?;
    shop.ensure_lake_equal().await?;
    let during = load(&shop);
    drop_slot(&shop).await?;
    change_unseen(&shop).await?;
    let stopped = until_stopped(&shop, "DR-1020").await?;
    let position = stopped["position"].as_str().context("no position")?;
    ensure!(
        stopped["reason"]
            .as_str()
            .is_some_and(|reason| reason.contains(position)),
        "{stopped}"
    );
    let answer = resnapshot(&shop).await?;
    let generation = |table: &str| {
        let tables = answer["tables"].as_array().into_iter().flatten();
        let mut found = tables.filter(|entry| entry["table"] == table);
        found.next().map(|entry| entry["generation"].clone())
    };
    ensure!(
        generation("public.customers") == Some(Value::from(2)),
        "{answer}"
    );
    ensure!(generation("public.made_unseen").is_some(), "{answer}");
    shop.daemon.wait(CATCH_UP).await?;
    during.stop().await?;
    ensure_repaired(&shop).await?;

    // The log says what it has not, before the snapshot that repairs it.
    let events = log::events(&shop).await?;
    let holes: Vec<usize> = (0..events.len())
        .filter(|at| events[*at]["op"] == "hole")
        .collect();
    let [hole] = holes[..] else {
        anyhow::bail!("{} holes", holes.len());
    };
    ensure!(events[hole]["hole"]["from"] == position, "{}", events[hole]);
    ensure!(events[hole]["hole"]["to"].is_string(), "{}", events[hole]);
    let starts = events[hole..]
        .iter()
        .filter(|e| e["op"] == "snapshot_start");
    ensure!(starts.count() >= shop::TABLES.len());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_at_any_point_of_a_repair_leaves_the_hole_or_the_repair() -> Result<()> {
    let mut shop = Shop::open(SCALE).await?;
    deliver(&shop, &[]).await?;
    shop.ensure_lake_equal().await?;
    let during = load(&shop);
    drop_slot(&shop).await?;
    change_unseen(&shop).await?;
    let mut repaired = 0;
    for attempt in 0..8u64 {
        let is_known = |source: &Value| {
            source["code"] == "DR-1020"
                || ["snapshotting", "streaming"]
                    .iter()
                    .any(|s| source["state"] == *s)
        };
        let source = until_source(&shop, "hole or repair", is_known).await?;
        if source["code"] != "DR-1020" {
            repaired += 1;
            drop_slot(&shop).await?;
            until_stopped(&shop, "DR-1020").await?;
        }
        let mut asked = shop.daemon.command(&["resnapshot", resources::PIPELINE])?;
        let asked = asked
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()?;
        tokio::time::sleep(Duration::from_millis(20 + attempt * 25)).await;
        shop.daemon.kill();
        drop(asked);
        shop.daemon.start().await?;
    }
    println!("{repaired} of the killed repairs were durable");
    let source = until_source(&shop, "hole or repair", |source| {
        source["code"] == "DR-1020" || source["state"] == "streaming"
    })
    .await?;
    if source["code"] == "DR-1020" {
        resnapshot(&shop).await?;
    }
    shop.daemon.wait(CATCH_UP).await?;
    during.stop().await?;
    ensure_repaired(&shop).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_may_repairs_its_holes_by_itself() -> Result<()> {
    let shop = Shop::open(SCALE).await?;
    deliver(&shop, &["on_hole: resnapshot"]).await?;
    shop.ensure_lake_equal().await?;
    let during = load(&shop);
    drop_slot(&shop).await?;
    change_unseen(&shop).await?;
    host::until("the hole to be in the log", CATCH_UP, async || {
        let events = log::events(&shop).await?;
        Ok(events.iter().any(|event| event["op"] == "hole"))
    })
    .await?;
    shop.daemon.wait(CATCH_UP).await?;
    during.stop().await?;
    ensure_repaired(&shop).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publication_made_anew_while_nobody_looks_is_a_hole_and_repaired() -> Result<()> {
    let postgres = on(18, &[]).await?;
    shop::fill(&postgres, SCALE).await?;
    let mut shop = Shop::over(postgres).await?;
    deliver(&shop, &[]).await?;
    shop.ensure_lake_equal().await?;
    shop.daemon.kill();
    shop.postgres
        .execute("drop publication downriver_shop")
        .await?;
    change_unseen(&shop).await?;
    shop.postgres
        .execute("create publication downriver_shop for all tables")
        .await?;
    shop.daemon.start().await?;
    until_stopped(&shop, "DR-1025").await?;
    resnapshot(&shop).await?;
    ensure_repaired(&shop).await?;

    // One that is gone is made again.
    shop.postgres
        .execute("drop publication downriver_shop")
        .await?;
    shop.postgres
        .execute("delete from customers where id % 10 = 3")
        .await?;
    until_stopped(&shop, "DR-1025").await?;
    resnapshot(&shop).await?;
    ensure_repaired(&shop).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_whose_wal_is_removed_is_warned_of_and_repaired() -> Result<()> {
    let postgres = on(
        17,
        &[
            "max_slot_wal_keep_size = 64MB",
            "max_wal_size = 64MB",
            "min_wal_size = 32MB",
        ],
    )
    .await?;
    shop::fill(&postgres, SCALE).await?;
    let mut shop = Shop::over(postgres).await?;
    deliver(&shop, &[]).await?;
    shop.ensure_lake_equal().await?;
    let source = until_source(&shop, "the slot to be shown", |source| {
        source["slot"].is_object()
    })
    .await?;
    ensure!(source["slot"]["wal_status"] == "reserved", "{source}");
    ensure!(source["slot"]["active"] == true, "{source}");

    // A value that the log cannot hold stops the source; the slot then holds the WAL.
    shop.postgres
        .execute("insert into carts values (-1, null, timestamp '294276-12-31')")
        .await?;
    until_stopped(&shop, "DR-1043").await?;
    let write = "create table if not exists filler (id int primary key, v text);
                 insert into filler select i, repeat(md5(i::text), 30) from generate_series(1, 12000) i
                     on conflict (id) do update set v = excluded.v";
    let warned = async {
        loop {
            shop.postgres.execute(write).await?;
            let source = shop.daemon.describe("source", resources::SOURCE).await?;
            if source["warning"]["code"] == "DR-1028" {
                return Ok::<_, anyhow::Error>(source);
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    };
    let warned = tokio::time::timeout(CATCH_UP, warned)
        .await
        .context("no warning")??;
    ensure!(warned["code"] == "DR-1043", "{warned}");
    host::until("the slot to be lost", CATCH_UP, async || {
        shop.postgres.execute(write).await?;
        shop.postgres
            .execute("select pg_switch_wal(); checkpoint")
            .await?;
        let lost = "select count(*) from pg_replication_slots where wal_status = 'lost'";
        Ok(shop.postgres.number(lost).await? == 1)
    })
    .await?;
    shop.postgres
        .execute("delete from carts where id = -1")
        .await?;
    change_unseen(&shop).await?;
    shop.daemon.kill();
    shop.daemon.start().await?;
    let stopped = until_stopped(&shop, "DR-1020").await?;
    ensure!(
        stopped["reason"]
            .as_str()
            .is_some_and(|r| r.contains("max_slot_wal_keep_size")),
        "{stopped}"
    );
    resnapshot(&shop).await?;
    ensure_repaired(&shop).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_over_its_budget_is_given_up_before_the_disk_is_full() -> Result<()> {
    let shop = Shop::open(SCALE).await?;
    deliver(
        &shop,
        &["max_wal_behind: 24MiB", "on_max_wal_behind: drop_slot"],
    )
    .await?;
    shop.ensure_lake_equal().await?;
    shop.postgres
        .execute("insert into carts values (-1, null, timestamp '294276-12-31')")
        .await?;
    until_stopped(&shop, "DR-1043").await?;
    for _ in 0..3 {
        shop.postgres
            .execute("select pg_switch_wal(); update customers set name = name || '!'; select pg_switch_wal()")
            .await?;
    }
    until_stopped(&shop, "DR-1029").await?;
    ensure!(
        shop.postgres
            .number("select count(*) from pg_replication_slots")
            .await?
            == 0
    );
    shop.postgres
        .execute("delete from carts where id = -1")
        .await?;
    change_unseen(&shop).await?;
    resnapshot(&shop).await?;
    ensure_repaired(&shop).await?;
    ensure!(
        shop.postgres
            .number("select count(*) from pg_replication_slots")
            .await?
            == 1
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_source_beside_a_busy_database_holds_no_wal() -> Result<()> {
    let shop = Shop::open(200).await?;
    deliver(&shop, &["heartbeat: 1s"]).await?;
    shop.ensure_lake_equal().await?;
    let admin = shop.postgres.client_of("postgres").await?;
    admin.batch_execute("create database other").await?;
    let other = shop.postgres.client_of("other").await?;
    other
        .batch_execute("create table busy (id int primary key, v text)")
        .await?;
    let restart = "select pg_wal_lsn_diff(restart_lsn, '0/0') from pg_replication_slots";
    let began = shop.postgres.number(restart).await?;
    host::until(
        "the slot to follow the other database",
        CATCH_UP,
        async || {
            other
            .batch_execute(
                "insert into busy select i, repeat(md5(i::text), 20) from generate_series(1, 5000) i
                     on conflict (id) do update set v = excluded.v; checkpoint",
            )
            .await?;
            Ok(shop.postgres.number(restart).await? > began + (48 << 20))
        },
    )
    .await?;
    let source = until_source(&shop, "little to be kept", |source| {
        source["slot"]["retained_bytes"]
            .as_u64()
            .is_some_and(|kept| kept < 32 << 20)
    })
    .await?;
    ensure!(
        source["state"] == "streaming" && source["warning"].is_null(),
        "{source}"
    );
    let events = log::events(&shop).await?;
    ensure!(
        !events.iter().any(|event| event["op"] == "message"),
        "a heartbeat shows in the log"
    );
    Ok(())
}
