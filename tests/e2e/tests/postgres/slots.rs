//! The life of the slot: what is lost with it is named, and repaired; what will be lost is said before.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use downriver_testkit::postgres::{Options, Version};
use downriver_testkit::readers::{self, Lake};
use downriver_testkit::workload::{Style, Workload};
use downriver_testkit::{Postgres, host, resources, shop};
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

/// A message that is over the limit belongs to no table that could stop alone.
async fn stop_the_source(shop: &Shop) -> Result<()> {
    let message = "select pg_logical_emit_message(false, 'large', repeat('x', 67108865))";
    shop.postgres.execute(message).await?;
    shop.until_stopped("DR-1040").await?;
    Ok(())
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
    shop.deliver_with(&[]).await?;
    shop.ensure_lake_equal().await?;
    let during = load(&shop);
    drop_slot(&shop).await?;
    change_unseen(&shop).await?;
    let stopped = shop.until_stopped("DR-1020").await?;
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
    shop.deliver_with(&[]).await?;
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
        let source = shop.until_source("hole or repair", is_known).await?;
        if source["code"] != "DR-1020" {
            repaired += 1;
            drop_slot(&shop).await?;
            shop.until_stopped("DR-1020").await?;
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
    let source = shop
        .until_source("hole or repair", |source| {
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
    shop.deliver_with(&["on_hole: resnapshot"]).await?;
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
    shop.deliver_with(&[]).await?;
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
    shop.until_stopped("DR-1025").await?;
    resnapshot(&shop).await?;
    ensure_repaired(&shop).await?;

    // One that is gone is made again.
    shop.postgres
        .execute("drop publication downriver_shop")
        .await?;
    shop.postgres
        .execute("delete from customers where id % 10 = 3")
        .await?;
    shop.until_stopped("DR-1025").await?;
    resnapshot(&shop).await?;
    ensure_repaired(&shop).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_whose_wal_is_removed_is_warned_of_and_repaired() -> Result<()> {
    let postgres = on(
        17,
        &[
            "max_slot_wal_keep_size = 192MB",
            "max_wal_size = 64MB",
            "min_wal_size = 32MB",
        ],
    )
    .await?;
    shop::fill(&postgres, SCALE).await?;
    let mut shop = Shop::over(postgres).await?;
    shop.deliver_with(&[]).await?;
    shop.ensure_lake_equal().await?;
    let source = shop
        .until_source("the slot to be shown", |source| source["slot"].is_object())
        .await?;
    ensure!(source["slot"]["wal_status"] == "reserved", "{source}");
    ensure!(source["slot"]["active"] == true, "{source}");

    // The slot then holds the WAL.
    stop_the_source(&shop).await?;
    shop.postgres.execute("create schema elsewhere").await?;
    let write = "create table if not exists elsewhere.filler (id int primary key, v text);
                 insert into elsewhere.filler select i, repeat(md5(i::text), 30) from generate_series(1, 4000) i
                     on conflict (id) do update set v = excluded.v";
    let kept = "select pg_current_wal_lsn() - restart_lsn from pg_replication_slots";
    host::until("a warning", CATCH_UP, async || {
        shop.postgres.execute(write).await?;
        // Seen step by step, as what grows slowly is.
        let kept = shop.postgres.number(kept).await?;
        let source = shop.until_source("the WAL to be seen", |source| {
            source["slot"]["retained_bytes"].as_i64() >= Some(kept)
        });
        let source = source.await?;
        ensure!(source["code"] == "DR-1040", "{source}");
        Ok(source["warning"]["code"] == "DR-1028")
    })
    .await?;
    host::until("the slot to be lost", CATCH_UP, async || {
        shop.postgres.execute(write).await?;
        shop.postgres
            .execute("select pg_switch_wal(); checkpoint")
            .await?;
        let lost = "select count(*) from pg_replication_slots where wal_status = 'lost'";
        Ok(shop.postgres.number(lost).await? == 1)
    })
    .await?;
    change_unseen(&shop).await?;
    shop.daemon.kill();
    shop.daemon.start().await?;
    let stopped = shop.until_stopped("DR-1020").await?;
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
    shop.deliver_with(&["max_wal_behind: 100MiB", "on_max_wal_behind: drop_slot"])
        .await?;
    shop.ensure_lake_equal().await?;
    stop_the_source(&shop).await?;
    for _ in 0..6 {
        shop.postgres
            .execute("select pg_switch_wal(); update customers set name = name || '!'; select pg_switch_wal()")
            .await?;
    }
    shop.until_stopped("DR-1029").await?;
    ensure!(
        shop.postgres
            .number("select count(*) from pg_replication_slots")
            .await?
            == 0
    );
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
    shop.deliver_with(&["heartbeat: 1s"]).await?;
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
    let source = shop
        .until_source("little to be kept", |source| {
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

/// A primary, its standby, and a daemon that knows both.
struct Cluster {
    shop: Shop,
    standby: Postgres,
}

impl Cluster {
    async fn open() -> Result<Self> {
        let mut primary = on(17, &[]).await?;
        shop::fill(&primary, SCALE).await?;
        let standby = primary
            .start_standby("standby", &["sync_replication_slots = on"])
            .await?;
        let shop = Shop::over(primary).await?;
        let url = format!(
            "postgres://cdc@127.0.0.1:{},127.0.0.1:{}/shop",
            shop.postgres.port(),
            standby.port()
        );
        let source = resources::source_at(&url, &["public.*"], &[]);
        let sink = resources::sink_in_folder(&shop.folder.path().join("lake"));
        let yaml = source + &sink + &resources::pipeline("1s");
        shop.daemon.apply(&yaml).await?;
        shop.ensure_lake_equal().await?;
        let cluster = Self { shop, standby };
        cluster.until_slot_follows().await?;
        Ok(cluster)
    }

    async fn until_slot_follows(&self) -> Result<()> {
        host::until("the slot to be on the standby", CATCH_UP, async || {
            let synced = "select count(*) from pg_replication_slots
                           where slot_name = 'downriver_shop' and synced and not temporary";
            Ok(self.standby.number(synced).await? == 1)
        })
        .await
    }

    /// The standby takes the primary's place. The old primary is kept: its programs are the standby's.
    async fn fail_over(&mut self) -> Result<()> {
        self.shop.postgres.kill();
        self.standby.promote().await?;
        std::mem::swap(&mut self.shop.postgres, &mut self.standby);
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_promoted_standby_is_gone_on_with_where_the_slot_followed() -> Result<()> {
    let mut cluster = Cluster::open().await?;
    // The log is never ahead of the standby.
    cluster
        .shop
        .postgres
        .execute("alter system set synchronized_standby_slots = 'standby'")
        .await?;
    cluster
        .shop
        .postgres
        .execute("select pg_reload_conf()")
        .await?;
    let before = load(&cluster.shop);
    cluster.shop.caught_up().await?;
    cluster.fail_over().await?;
    before.stop().await?;
    let after = load(&cluster.shop);
    cluster.shop.daemon.wait(CATCH_UP).await?;
    after.stop().await?;
    ensure_repaired(&cluster.shop).await?;
    let events = log::events(&cluster.shop).await?;
    ensure!(
        !events.iter().any(|event| event["op"] == "hole"),
        "a hole where nothing was lost"
    );
    // The new timeline is known from here on.
    cluster.shop.daemon.kill();
    cluster.shop.daemon.start().await?;
    ensure_repaired(&cluster.shop).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_promoted_standby_never_had_is_a_hole_and_taken_back() -> Result<()> {
    let mut cluster = Cluster::open().await?;
    cluster.standby.stop();
    for change in [
        "insert into ledger select i, 'lost with the primary' from generate_series(1, 500) i",
        "delete from customers where id % 5 = 0",
        "update products set title = 'lost with the primary'",
    ] {
        cluster.shop.postgres.execute(change).await?;
    }
    cluster.shop.ensure_lake_equal().await?;
    cluster.shop.postgres.kill();
    cluster.standby.start_again().await?;
    cluster.fail_over().await?;
    let stopped = cluster.shop.until_stopped("DR-1026").await?;
    ensure!(
        stopped["reason"]
            .as_str()
            .is_some_and(|r| r.contains("timeline 1 to 2")),
        "{stopped}"
    );
    let during = load(&cluster.shop);
    resnapshot(&cluster.shop).await?;
    cluster.shop.daemon.wait(CATCH_UP).await?;
    during.stop().await?;
    ensure_repaired(&cluster.shop).await?;
    cluster.shop.daemon.kill();
    cluster.shop.daemon.start().await?;
    ensure_repaired(&cluster.shop).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_another_reads_is_left_to_it_and_a_silent_session_of_ours_is_ended()
-> Result<()> {
    let postgres = on(17, &["wal_sender_timeout = 0"]).await?;
    let mut shop = Shop::over(postgres).await?;
    shop.deliver_with(&[]).await?;
    shop.ensure_lake_equal().await?;
    shop.daemon.kill();
    let until_read = async |wanted: bool| {
        host::until("the slot to be read, or free", CATCH_UP, async || {
            let active = "select count(*) from pg_replication_slots where active";
            Ok((shop.postgres.number(active).await? > 0) == wanted)
        })
        .await
    };
    until_read(false).await?;
    let read = |application: &str| {
        let database = format!(
            "{} application_name={application}",
            conninfo(&shop.postgres)
        );
        std::process::Command::new(shop.postgres.program("pg_recvlogical"))
            .args([
                "-d",
                &database,
                "--slot",
                "downriver_shop",
                "--start",
                "-s",
                "1",
                "-f",
                "/dev/null",
            ])
            .args([
                "-o",
                "proto_version=1",
                "-o",
                "publication_names=downriver_shop",
            ])
            .env("PGPASSWORD", downriver_testkit::postgres::CDC_PASSWORD)
            .spawn()
    };
    let mut other = read("another")?;
    until_read(true).await?;
    shop.daemon.start().await?;
    let source = shop
        .until_source("the other client to be named", |source| {
            source["code"] == "DR-1012"
        })
        .await?;
    ensure!(
        source["reason"]
            .as_str()
            .is_some_and(|r| r.contains("another")),
        "{source}"
    );
    ensure!(other.try_wait()?.is_none(), "the other client was ended");
    other.kill()?;
    other.wait()?;
    shop.caught_up().await?;

    // What a network split leaves: a session of ours at the server, and nobody at its other end.
    shop.daemon.kill();
    until_read(false).await?;
    let mut zombie = read("downriver")?;
    until_read(true).await?;
    host::signal(zombie.id(), "STOP");
    shop.daemon.start().await?;
    shop.caught_up().await?;
    zombie.kill()?;
    zombie.wait()?;
    Ok(())
}

fn conninfo(postgres: &Postgres) -> String {
    format!(
        "host=127.0.0.1 port={} user=cdc dbname=shop",
        postgres.port()
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_free_slot_nothing_is_made_and_with_one_it_begins() -> Result<()> {
    let postgres = on(17, &["max_replication_slots = 1"]).await?;
    postgres
        .execute("select pg_create_physical_replication_slot('somebody')")
        .await?;
    let shop = Shop::over(postgres).await?;
    let source = resources::source(&shop.postgres, &["public.*"], &[]);
    let refused = shop.daemon.try_apply(&source).await?;
    ensure!(
        refused.code == Some(1) && refused.text().contains("DR-1011"),
        "{}",
        refused.text()
    );
    let published = "select count(*) from pg_publication";
    ensure!(shop.postgres.number(published).await? == 0);
    shop.postgres
        .execute("select pg_drop_replication_slot('somebody')")
        .await?;

    // Then the slot waits for a transaction that is open, and the source says which.
    let open = shop.postgres.client().await?;
    open.batch_execute("begin; insert into ledger values (1, 'open')")
        .await?;
    let pid: i32 = open.query_one("select pg_backend_pid()", &[]).await?.get(0);
    shop.daemon.apply(&source).await?;
    let source = shop
        .until_source("the open transaction to be named", |source| {
            source["code"] == "DR-1013"
        })
        .await?;
    ensure!(
        source["reason"]
            .as_str()
            .is_some_and(|reason| reason.contains(&format!("pid {pid}"))),
        "{source}"
    );
    open.batch_execute("commit").await?;
    shop.caught_up().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_retention_left_behind_begins_again_with_a_new_snapshot() -> Result<()> {
    let postgres = Postgres::start().await?;
    shop::create(&postgres).await?;
    shop::fill(&postgres, SCALE).await?;
    let mut shop = Shop::over(postgres).await?;
    shop.daemon.stop()?;
    shop.daemon = downriver_testkit::Daemon::new(shop.folder.path())?.with_arguments(&[
        "--retention",
        "1s",
        "--retention-max",
        "1s",
    ]);
    shop.daemon.start().await?;
    shop.deliver_with(&[]).await?;
    shop.ensure_lake_equal().await?;
    shop.daemon.ok(&["pause", resources::PIPELINE]).await?;
    change_unseen(&shop).await?;
    let paused = shop
        .daemon
        .describe("pipeline", resources::PIPELINE)
        .await?;
    let needed = paused["delivered_offset"].as_u64().context("no offset")?;
    host::until(
        "retention to take what was not delivered",
        CATCH_UP,
        async || {
            shop.postgres
                .execute("update stock set amount = amount + 1")
                .await?;
            let first = log::events(&shop).await?;
            Ok(first.first().and_then(|event| event["offset"].as_u64()) > Some(needed))
        },
    )
    .await?;
    shop.daemon.ok(&["resume", resources::PIPELINE]).await?;
    let is_gone = |pipeline: &Value| {
        let tables = pipeline["tables"].as_array().into_iter().flatten();
        tables.filter(|table| table["code"] == "DR-3030").count() >= shop::TABLES.len()
    };
    shop.daemon
        .until_described(
            "pipeline",
            resources::PIPELINE,
            "the gap to be named",
            CATCH_UP,
            is_gone,
        )
        .await?;
    resnapshot(&shop).await?;
    shop.daemon.wait(CATCH_UP).await?;
    let lake = Lake::builtin(&shop.daemon)?;
    readers::ensure_equal(&shop.postgres, &lake, &shop::TABLES).await?;
    shop.daemon.ok(&["verify", resources::PIPELINE]).await?;
    Ok(())
}
