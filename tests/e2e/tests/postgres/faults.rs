//! What breaks around the daemon: it says so by name, and goes on by itself where the cause goes away.

use std::time::Duration;

use anyhow::{Result, ensure};
use downriver_testkit::disk::SmallDisk;
use downriver_testkit::oracle::Oracle;
use downriver_testkit::postgres::Options;
use downriver_testkit::proxy::{Mode, Proxy};
use downriver_testkit::readers::{self, Lake};
use downriver_testkit::seaweed::{self, Seaweed};
use downriver_testkit::workload::{Style, Workload};
use downriver_testkit::{Daemon, Postgres, host, resources, shop};
use e2e::{CATCH_UP, Shop};

async fn ensure_ledger_complete(shop: &Shop) -> Result<()> {
    let last = shop
        .postgres
        .number("select coalesce(max(id), 0) from ledger")
        .await?;
    let census = Oracle::new()
        .review(&shop.daemon, "public.ledger", "id")
        .await?;
    census.ensure_complete(last)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_or_killed_postgres_is_taken_up_again_without_loss() -> Result<()> {
    let mut shop = Shop::open(1_000).await?;
    shop.capture().await?;
    let load = Workload::start(
        &shop.postgres,
        Style {
            scale: 1_000,
            ..Style::default()
        },
    );
    shop.caught_up().await?;
    for hard in [false, true] {
        if hard {
            shop.postgres.kill();
        } else {
            shop.postgres.stop();
        }
        shop.daemon
            .until_described(
                "source",
                resources::SOURCE,
                "the outage to be named",
                CATCH_UP,
                |source| source["code"] == "DR-1002",
            )
            .await?;
        shop.postgres.start_again().await?;
        shop.caught_up().await?;
    }
    load.stop().await?;
    shop.caught_up().await?;
    let source = shop.daemon.describe("source", resources::SOURCE).await?;
    ensure!(
        source["code"].is_null(),
        "the problem is still shown: {source}"
    );
    ensure_ledger_complete(&shop).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_somebody_dropped_stops_the_source_with_the_range() -> Result<()> {
    let mut shop = Shop::open(100).await?;
    shop.capture().await?;
    shop.caught_up().await?;
    let drop = "select pg_terminate_backend(active_pid) from pg_replication_slots where active;
                select pg_drop_replication_slot(slot_name) from pg_replication_slots";
    host::until("the slot to be dropped", CATCH_UP, async || {
        Ok(shop.postgres.execute(drop).await.is_ok()
            && shop
                .postgres
                .number("select count(*) from pg_replication_slots")
                .await?
                == 0)
    })
    .await?;
    let is_stopped =
        |source: &serde_json::Value| source["state"] == "stopped" && source["code"] == "DR-1020";
    let stopped = shop
        .daemon
        .until_described(
            "source",
            resources::SOURCE,
            "the source to stop",
            CATCH_UP,
            is_stopped,
        )
        .await?;
    ensure!(
        stopped["fix"].as_str().is_some_and(|fix| !fix.is_empty()),
        "{stopped}"
    );
    // A restart does not hide it.
    shop.daemon.kill();
    shop.daemon.start().await?;
    shop.daemon
        .until_described(
            "source",
            resources::SOURCE,
            "the source to stop again",
            CATCH_UP,
            is_stopped,
        )
        .await?;
    Ok(())
}

/// A daemon whose object store is a bucket behind a proxy.
async fn in_bucket(proxy: &Proxy, settings: &[&str]) -> Result<Shop> {
    let postgres = Postgres::start_with(Options {
        settings: settings.iter().map(|line| (*line).to_owned()).collect(),
        ..Options::default()
    })
    .await?;
    shop::create(&postgres).await?;
    shop::fill(&postgres, 2_000).await?;
    let folder = tempfile::tempdir()?;
    let mut daemon = Daemon::new(folder.path())?
        .with_store(&format!("s3://{}/log", seaweed::BUCKET))
        .with_variable(
            "DOWNRIVER_S3_ENDPOINT",
            &format!("http://{}", proxy.address()),
        )
        .with_variable("AWS_ACCESS_KEY_ID", seaweed::ACCESS_KEY)
        .with_variable("AWS_SECRET_ACCESS_KEY", seaweed::SECRET_KEY)
        .with_variable("AWS_REGION", "us-east-1");
    daemon.start().await?;
    Ok(Shop {
        daemon,
        postgres,
        folder,
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_s3_outage_of_a_minute_is_absorbed_and_loses_nothing() -> Result<()> {
    let store = Seaweed::start().await?;
    let proxy = Proxy::start(store.s3_port()).await?;
    let mut shop = in_bucket(&proxy, &[]).await?;
    let sink = resources::sink_in_bucket(&format!("http://{}", proxy.address()));
    shop.deliver_to(&sink, "1s").await?;
    shop.daemon.wait(CATCH_UP).await?;
    let load = Workload::start(
        &shop.postgres,
        Style {
            scale: 2_000,
            ..Style::default()
        },
    );
    proxy.set(Mode::Refuse);
    let outage = tokio::time::Instant::now() + Duration::from_secs(60);
    let ready = shop.daemon.addresses()?.http.clone();
    host::until(
        "the outage to be noticed",
        Duration::from_secs(90),
        async || Ok(downriver_testkit::daemon::http_status(&ready, "/readyz").await? == 503),
    )
    .await?;
    // The journal keeps what the store cannot take: readers see the changes all the while.
    shop.caught_up().await?;
    shop.daemon
        .until_described(
            "pipeline",
            resources::PIPELINE,
            "the outage to be named by the pipeline",
            CATCH_UP,
            // What fails first: a data file, or the catalog's own metadata file.
            |pipeline| {
                (pipeline["code"] == "DR-3001" || pipeline["code"] == "DR-3003")
                    && pipeline["fix"].is_string()
            },
        )
        .await?;
    tokio::time::sleep_until(outage).await;
    proxy.set(Mode::Pass);
    host::until("the store to be used again", CATCH_UP, async || {
        Ok(downriver_testkit::daemon::http_status(&ready, "/readyz").await? == 200)
    })
    .await?;
    load.stop().await?;
    // The pipeline goes on by itself.
    shop.daemon.wait(CATCH_UP).await?;
    shop.daemon.kill();
    shop.daemon.start().await?;
    shop.daemon.wait(CATCH_UP).await?;
    let lake = Lake::builtin_on(&shop.daemon, &store)?;
    readers::ensure_equal(&shop.postgres, &lake, &shop::TABLES).await?;
    ensure_ledger_complete(&shop).await
}

/// The server's patience is much shorter than the outage, and than it takes to read a large transaction.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_with_little_patience_is_answered_while_nothing_can_be_stored() -> Result<()> {
    let store = Seaweed::start().await?;
    let proxy = Proxy::start(store.s3_port()).await?;
    let shop = in_bucket(&proxy, &["wal_sender_timeout = 1s"]).await?;
    shop.capture().await?;
    shop.caught_up().await?;
    let first = shop.walsender().await?;
    proxy.set(Mode::Refuse);
    shop.postgres
        .execute("insert into ledger select i, repeat('row ' || i, 40) from generate_series(1, 200000) i")
        .await?;
    // Six times its patience.
    let outage = tokio::time::Instant::now() + Duration::from_secs(6);
    while tokio::time::Instant::now() < outage {
        shop.postgres
            .execute("update stock set amount = amount + 1")
            .await?;
        let source = shop.daemon.describe("source", resources::SOURCE).await?;
        ensure!(source["code"] != "DR-1002", "{source}");
        let now = shop.walsender().await?;
        ensure!(now == first, "the session was ended: {source}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    proxy.set(Mode::Pass);
    shop.caught_up().await?;
    ensure!(shop.walsender().await? == first, "the session was ended");
    let logged = e2e::log::fold(&e2e::log::events(&shop).await?, "public.ledger")?;
    ensure!(logged.len() == 200_000, "the log has {} rows", logged.len());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_pauses_the_capture_by_name_and_room_lets_it_go_on() -> Result<()> {
    let Some(disk) = SmallDisk::mount(400)? else {
        return Ok(());
    };
    let postgres = Postgres::start().await?;
    shop::create(&postgres).await?;
    let folder = tempfile::tempdir()?;
    let mut daemon = Daemon::new(disk.path())?;
    daemon.start().await?;
    let mut shop = Shop {
        daemon,
        postgres,
        folder,
    };
    shop.deliver("1s").await?;
    shop.daemon.wait(CATCH_UP).await?;
    disk.fill()?;
    let load = Workload::start(
        &shop.postgres,
        Style {
            scale: 500,
            ..Style::default()
        },
    );
    shop.daemon
        .until_described(
            "source",
            resources::SOURCE,
            "the full disk to be named",
            CATCH_UP,
            |source| {
                source["code"] == "DR-1100"
                    && source["reason"]
                        .as_str()
                        .is_some_and(|r| r.contains("full"))
            },
        )
        .await?;
    shop.daemon.check_alive()?;
    disk.make_room()?;
    load.stop().await?;
    shop.ensure_lake_equal().await?;
    ensure_ledger_complete(&shop).await?;
    shop.daemon.stop()
}
