//! Capture from a standby: what it shows and sends is what its primary has, however far it lags; what becomes of its slot
//! is named; a promotion is gone on with.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use downriver_testkit::postgres::{Options, Version};
use downriver_testkit::readers::{self, Lake};
use downriver_testkit::workload::{Style, Workload};
use downriver_testkit::{Postgres, host, resources, shop};
use e2e::{CATCH_UP, Shop, log};
use serde_json::Value;
use tokio::task::JoinHandle;

const SCALE: u32 = 1_500;
const BAG: &str = "public.readings";
const SMALL_CHUNKS: &str = "snapshot: { mode: initial, chunk_rows: 100, max_workers: 2 }";

/// Ends what it does when it is dropped.
struct Background(JoinHandle<Result<()>>);

impl Background {
    fn start(work: impl Future<Output = Result<()>> + Send + 'static) -> Self {
        Self(tokio::spawn(work))
    }

    fn is_well(&self) -> bool {
        !self.0.is_finished()
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A primary, which is `shop.postgres`, and the standby that is captured.
struct Pair {
    shop: Shop,
    standby: Postgres,
}

impl Pair {
    async fn open(version: u32, settings: &[&str]) -> Result<Self> {
        let mut primary = Postgres::start_with(Options {
            version: Version::Major(version),
            ..Options::default()
        })
        .await?;
        shop::create(&primary).await?;
        shop::fill(&primary, SCALE).await?;
        primary
            .execute(
                "create table readings (sensor int, value float8);
                 alter table readings replica identity full;
                 insert into readings select i % 20, i % 7 from generate_series(1, 3000) i;
                 create publication downriver_shop for all tables",
            )
            .await?;
        let standby = primary.start_standby("standby", settings).await?;
        let shop = Shop::over(primary).await?;
        Ok(Self { shop, standby })
    }

    async fn deliver(&self, url: &str, options: &[&str]) -> Result<()> {
        let source = resources::source_at(url, &["public.*"], options);
        let sink = resources::sink_in_folder(&self.shop.folder.path().join("lake"));
        let yaml = source + &sink + &resources::pipeline("1s");
        self.shop.daemon.apply(&yaml).await
    }

    fn url(&self, attributes: &str) -> String {
        let standby = self.standby.source_url();
        format!("{standby}?target_session_attrs={attributes}")
    }

    /// What a primary that is written to does now and then.
    fn records(&self) -> Background {
        let url = self.shop.postgres.admin_url("shop");
        Background::start(async move {
            loop {
                if let Ok((client, connection)) =
                    tokio_postgres::connect(&url, tokio_postgres::NoTls).await
                {
                    tokio::spawn(connection);
                    while client
                        .execute("select pg_log_standby_snapshot()", &[])
                        .await
                        .is_ok()
                    {
                        tokio::time::sleep(Duration::from_millis(300)).await;
                    }
                }
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
        })
    }

    /// Equal rows come, change and go.
    fn readings(&self) -> Result<Background> {
        let url = self.shop.postgres.admin_url("shop");
        Ok(Background::start(async move {
            let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await?;
            tokio::spawn(connection);
            for turn in 0.. {
                let sql = format!(
                    "begin; insert into readings select {turn} % 20, i from generate_series(1, 3) i;
                     update readings set value = value + 1 where ctid in
                        (select ctid from readings where sensor = {turn} % 20 limit 4);
                     delete from readings where ctid in
                        (select ctid from readings where sensor = ({turn} + 7) % 20 limit 3); commit"
                );
                client.batch_execute(&sql).await?;
                tokio::time::sleep(Duration::from_millis(3)).await;
            }
            Ok(())
        }))
    }

    /// Replay that stands still and comes after, again and again.
    async fn lag(&self) -> Result<Background> {
        let client = self.standby.client().await?;
        Ok(Background::start(async move {
            loop {
                client.execute("select pg_wal_replay_pause()", &[]).await?;
                tokio::time::sleep(Duration::from_millis(400)).await;
                client.execute("select pg_wal_replay_resume()", &[]).await?;
                tokio::time::sleep(Duration::from_millis(150)).await;
            }
        }))
    }

    async fn replayed(&self) -> Result<()> {
        let written = "select pg_current_wal_flush_lsn() - '0/0'::pg_lsn";
        let written = self.shop.postgres.number(written).await?;
        host::until("the standby to catch up", CATCH_UP, async || {
            self.standby
                .execute("select pg_wal_replay_resume() where pg_is_wal_replay_paused()")
                .await?;
            let replayed = "select pg_last_wal_replay_lsn() - '0/0'::pg_lsn";
            Ok(self.standby.number(replayed).await? >= written)
        })
        .await
    }

    async fn ensure_equal(&self) -> Result<()> {
        self.replayed().await?;
        ensure_equal(&self.shop).await
    }
}

async fn ensure_equal(shop: &Shop) -> Result<()> {
    shop.ensure_lake_equal().await?;
    let lake = Lake::builtin(&shop.daemon)?;
    readers::ensure_equal(&shop.postgres, &lake, &[BAG]).await
}

fn load(shop: &Shop, seed: u64) -> Workload {
    let style = Style {
        scale: SCALE,
        seed,
        ..Style::default()
    };
    Workload::start(&shop.postgres, style)
}

fn says(value: &Value, field: &str, part: &str) -> bool {
    value[field]
        .as_str()
        .is_some_and(|text| text.contains(part))
}

async fn ensure_no_hole(shop: &Shop) -> Result<()> {
    let events = log::events(shop).await?;
    ensure!(
        !events.iter().any(|event| event["op"] == "hole"),
        "a hole where nothing was lost"
    );
    Ok(())
}

async fn lagging_standby(version: u32) -> Result<()> {
    let mut pair = Pair::open(version, &[]).await?;
    let records = pair.records();
    let during = load(&pair.shop, 1);
    let readings = pair.readings()?;
    let lag = pair.lag().await?;
    let one_by_one =
        SMALL_CHUNKS.replace("max_workers: 2", "max_workers: 2, rows_per_second: 4000");
    pair.deliver(&pair.url("standby"), &[&one_by_one]).await?;
    for _ in 0..2 {
        pair.shop
            .until_source("some chunks", |source| {
                let tables = source["tables"].as_array().into_iter().flatten();
                let mut rows = tables.filter_map(|table| table["snapshot"]["rows_done"].as_u64());
                source["state"] == "streaming" || rows.any(|rows| rows > 0)
            })
            .await?;
        pair.shop.daemon.kill();
        pair.shop.daemon.start().await?;
    }
    // A table that comes while a transaction runs that writes to it.
    pair.shop
        .postgres
        .execute("create table made_later (id int primary key, v text)")
        .await?;
    let open = pair.shop.postgres.client().await?;
    open.batch_execute(
        "begin; insert into made_later select i, 'open' from generate_series(1, 50) i",
    )
    .await?;
    pair.shop
        .until_source("the new table to be seen", |source| {
            let tables = source["tables"].as_array().into_iter().flatten();
            tables
                .into_iter()
                .any(|t| t["table"] == "public.made_later")
        })
        .await?;
    open.batch_execute("commit").await?;
    ensure!(lag.is_well() && readings.is_well(), "the load has ended");
    drop(lag);
    pair.ensure_streaming().await?;

    // A crash takes the standby back to before what it has sent.
    pair.standby.kill();
    pair.standby.start_again().await?;
    tokio::time::sleep(Duration::from_millis(100)).await;
    during.stop().await?;
    drop(readings);
    pair.ensure_equal().await?;
    let lake = Lake::builtin(&pair.shop.daemon)?;
    readers::ensure_equal(&pair.shop.postgres, &lake, &["public.made_later"]).await?;
    pair.shop
        .daemon
        .ok(&["verify", resources::PIPELINE])
        .await?;
    ensure_no_hole(&pair.shop).await?;
    drop(records);
    Ok(())
}

impl Pair {
    async fn ensure_streaming(&self) -> Result<()> {
        self.replayed().await?;
        self.shop
            .until_source("the snapshot to end", |source| {
                let mut tables = source["tables"].as_array().into_iter().flatten();
                source["state"] == "streaming" && tables.all(|t| t["state"] == "streaming")
            })
            .await?;
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_of_a_lagging_standby_under_load_is_what_its_primary_has_on_16() -> Result<()> {
    lagging_standby(16).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_of_a_lagging_standby_under_load_is_what_its_primary_has_on_18() -> Result<()> {
    lagging_standby(18).await
}

/// A standby's snapshot does not say which transactions run, so one that runs between others that have ended looks as
/// if it had ended too. Here one commits after the chunk was read and before it joins the stream.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_ran_while_a_chunk_was_read_is_not_taken_for_seen() -> Result<()> {
    let pair = Pair::open(18, &[]).await?;
    let primary = &pair.shop.postgres;
    primary
        .execute(
            "create table first (id int primary key, v text); create table second (id int primary key, v text);
             insert into first select i, 'old' from generate_series(1, 160) i;
             insert into second select i, 'old' from generate_series(1, 200) i",
        )
        .await?;
    let records = pair.records();
    pair.replayed().await?;
    // A chunk is held back as long as its rows may take.
    let source = resources::source_at(
        &pair.url("standby"),
        &["public.first", "public.second"],
        &["snapshot: { mode: initial, chunk_rows: 1000, max_workers: 1, rows_per_second: 40 }"],
    );
    let sink = resources::sink_in_folder(&pair.shop.folder.path().join("lake"));
    let yaml = source + &sink + &resources::pipeline("1s");
    pair.shop.daemon.apply(&yaml).await?;
    // What a reader asks when it has read a chunk.
    let until_read = async |but: i64| {
        let reader = format!(
            "coalesce((select max(pid) from pg_stat_activity where application_name = 'downriver'
                          and query like '%pg_get_wal_replay_pause_state%' and state = 'idle' and pid <> {but}), 0)"
        );
        let mut pid = 0;
        host::until("a chunk to be read", CATCH_UP, async || {
            pid = pair.standby.number(&reader).await?;
            Ok(pid > 0)
        })
        .await?;
        Ok::<_, anyhow::Error>(pid)
    };
    let reader = until_read(0).await?;
    let open = primary.client().await?;
    open.batch_execute(
        "begin; update second set v = 'new' where id <= 100; delete from second where id > 180;
         update second set id = id + 1000 where id between 101 and 120",
    )
    .await?;
    primary
        .execute("update first set v = 'ended' where id = 1")
        .await?;
    pair.replayed().await?;
    until_read(reader).await?;
    open.batch_execute("commit").await?;
    pair.replayed().await?;
    pair.shop.daemon.wait(CATCH_UP).await?;
    let lake = Lake::builtin(&pair.shop.daemon)?;
    readers::ensure_equal(primary, &lake, &["public.first", "public.second"]).await?;
    drop(records);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_captured_standby_that_is_promoted_is_gone_on_with() -> Result<()> {
    let mut pair = Pair::open(18, &[]).await?;
    let records = pair.records();
    pair.deliver(&pair.url("prefer-standby"), &["heartbeat: 1s"])
        .await?;
    let before = load(&pair.shop, 1);
    let readings = pair.readings()?;
    pair.ensure_streaming().await?;
    drop(readings);
    drop(records);
    // Until the primary is gone nothing is written to the standby, and from then on at once.
    pair.shop.postgres.kill();
    pair.standby.promote().await?;
    std::mem::swap(&mut pair.shop.postgres, &mut pair.standby);
    before.stop().await?;
    let after = load(&pair.shop, 2);
    let readings = pair.readings()?;
    pair.shop.daemon.wait(CATCH_UP).await?;
    // In the middle of the new timeline.
    pair.shop.daemon.kill();
    pair.shop.daemon.start().await?;
    pair.shop.daemon.wait(CATCH_UP).await?;
    after.stop().await?;
    drop(readings);
    ensure_equal(&pair.shop).await?;
    pair.shop
        .daemon
        .ok(&["verify", resources::PIPELINE])
        .await?;
    ensure_no_hole(&pair.shop).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_the_standbys_recovery_invalidates_is_a_hole_with_its_reason() -> Result<()> {
    let mut pair = Pair::open(18, &["hot_standby_feedback = off"]).await?;
    let records = pair.records();
    pair.deliver(&pair.url("standby"), &[SMALL_CHUNKS]).await?;
    pair.ensure_equal().await?;
    let vacuum =
        "create table passing (id int); drop table passing; vacuum pg_class, pg_attribute, pg_type";
    host::until("the slot to conflict", CATCH_UP, async || {
        for sql in vacuum.split("; ") {
            pair.shop.postgres.execute(sql).await?;
        }
        let lost =
            "select count(*) from pg_replication_slots where invalidation_reason = 'rows_removed'";
        Ok(pair.standby.number(lost).await? == 1)
    })
    .await?;
    let stopped = pair.shop.until_stopped("DR-1020").await?;
    ensure!(
        says(&stopped, "reason", "removed catalog rows")
            && says(&stopped, "fix", "hot_standby_feedback"),
        "{stopped}"
    );
    pair.standby
        .execute("alter system set hot_standby_feedback = on")
        .await?;
    pair.standby.execute("select pg_reload_conf()").await?;
    pair.shop
        .postgres
        .execute("delete from customers where id % 10 = 1")
        .await?;
    let arguments = ["resnapshot", resources::PIPELINE];
    pair.replayed().await?;
    pair.shop.daemon.ok(&arguments).await?;
    pair.ensure_equal().await?;

    // Its primary logs too little for a while.
    for level in ["replica", "logical"] {
        let lower = format!("alter system set wal_level = {level}");
        pair.shop.postgres.execute(&lower).await?;
        pair.shop.postgres.stop();
        pair.shop.postgres.start_again().await?;
        pair.shop
            .postgres
            .execute("delete from customers where id % 10 = 2")
            .await?;
        pair.replayed().await?;
        let stopped = pair.shop.until_stopped("DR-1020").await?;
        ensure!(says(&stopped, "reason", "wal_level"), "{stopped}");
    }
    pair.shop.daemon.ok(&arguments).await?;
    pair.ensure_equal().await?;
    drop(records);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_standby_cannot_do_is_named_with_what_its_primary_has_to_do() -> Result<()> {
    let pair = Pair::open(16, &["hot_standby_feedback = off"]).await?;
    let primary = &pair.shop.postgres;
    primary.execute("drop publication downriver_shop").await?;
    pair.replayed().await?;
    let refusal = async |url: &str| {
        let source = resources::source_at(url, &["public.*"], &[]);
        let refused = pair.shop.daemon.try_apply(&source).await?;
        ensure!(refused.code == Some(1), "{}", refused.text());
        Ok::<_, anyhow::Error>(refused.text())
    };
    let unsaid = refusal(&pair.standby.source_url()).await?;
    ensure!(
        unsaid.contains("DR-1014") && unsaid.contains("target_session_attrs=standby"),
        "{unsaid}"
    );
    let both = format!(
        "postgres://cdc@127.0.0.1:{},127.0.0.1:{}/shop?target_session_attrs=standby",
        primary.port(),
        pair.standby.port()
    );
    let unpublished = refusal(&both).await?;
    ensure!(
        unpublished.contains("DR-1015") && unpublished.contains("create publication"),
        "{unpublished}"
    );
    primary
        .execute("create publication downriver_shop for table customers")
        .await?;
    pair.replayed().await?;
    // The slot begins when what runs on the primary is over.
    let open = primary.client().await?;
    open.batch_execute("begin; insert into ledger values (-1, 'open')")
        .await?;
    pair.deliver(&both, &[]).await?;
    let waiting = pair
        .shop
        .until_source("the slot to be waited for", |source| {
            source["code"] == "DR-1013"
        })
        .await?;
    ensure!(
        says(&waiting, "fix", "pg_log_standby_snapshot"),
        "{waiting}"
    );
    open.batch_execute("commit").await?;
    // An idle primary that may be asked is.
    primary
        .execute("grant execute on function pg_log_standby_snapshot to cdc")
        .await?;
    let is_captured = |source: &Value| {
        let tables = source["tables"].as_array().into_iter().flatten();
        let state = |table: &Value| match table["table"].as_str() {
            Some("public.customers") => table["state"] == "streaming",
            _ => table["code"] == "DR-1038",
        };
        source["state"] == "streaming"
            && tables.clone().count() > 2
            && tables.into_iter().all(state)
    };
    pair.shop
        .until_source("what is published to be captured", is_captured)
        .await?;
    let file = pair.shop.folder.path().join("source.yaml");
    std::fs::write(&file, resources::source_at(&both, &["public.*"], &[]))?;
    let file = file.to_str().context("a path that is no text")?;
    let checked = pair.shop.daemon.run(&["check", "-f", file]).await?;
    ensure!(checked.text().contains("DR-1016"), "{}", checked.text());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_of_version_15_is_refused_with_the_version_that_could() -> Result<()> {
    let pair = Pair::open(15, &[]).await?;
    let source = resources::source_at(&pair.url("standby"), &["public.*"], &[]);
    let refused = pair.shop.daemon.try_apply(&source).await?;
    ensure!(
        refused.code == Some(1) && refused.text().contains("from version 16 on"),
        "{}",
        refused.text()
    );
    Ok(())
}
