//! Tables without a key under REPLICA IDENTITY FULL: bags, whose equal rows are counted.

use anyhow::{Context, Result, ensure};
use downriver_testkit::postgres::Options;
use downriver_testkit::readers::{self, Lake};
use downriver_testkit::{Postgres, daemon, host, resources, shop};
use e2e::{CATCH_UP, Shop};
use serde_json::Value;
use tokio::task::JoinHandle;

const TABLES: [&str; 5] = [
    "public.bag",
    "public.values_of_all_kinds",
    "public.long",
    "public.shifted",
    "public.nullable",
];
/// Which the readers cannot compare: it has no column.
const EMPTY: &str = "public.nothing_in_it";

const BODY: &str =
    "(select string_agg(md5(i % 10 || ' of ' || j), '') from generate_series(1, 80) j)";

fn tables() -> String {
    let mut sql = "create table bag (a int, b text);
         create table values_of_all_kinds (f float8, r real, n numeric, d numeric(10, 2), t text, j json, jb jsonb, ts timestamptz, a int[], u uuid);
         create table long (n int, body text, more bytea);
         create table shifted (id int primary key deferrable initially deferred, what text);
         create table nullable (id int unique, what text);
         create table nothing_in_it ();"
        .to_owned();
    for table in TABLES.into_iter().chain([EMPTY]) {
        sql += &format!(
            "alter table {table} owner to shop_owner; alter table {table} replica identity full;"
        );
    }
    sql + "alter table long alter body set storage external, alter more set storage external;"
}

/// Rows that are there once, and rows that are there several times.
fn rows() -> String {
    format!(
        "insert into bag select i % 50, case when i % 7 > 0 then 'b ' || i % 5 end from generate_series(1, 1000) i;
         insert into bag values (null, null), (null, null), (null, null);
         insert into values_of_all_kinds select f, f::real, n, n, t, '{{\"a\" : 1}}', '{{\"a\": 1}}', timestamptz '2026-01-01' + t::int * interval '1 day',
                array[t::int, null], md5(t::text)::uuid
           from unnest(array['NaN', '0', '-0', '1.5', null, '1.5']::float8[], array[1.0, 1.00, null, 2, 2, 2.000]) v(f, n), generate_series(1, 3) t;
         insert into long select i % 10, {BODY}, null from generate_series(1, 60) i;
         insert into shifted select i, 'what ' || i from generate_series(1, 500) i;
         insert into nullable select case when i % 3 > 0 then i end, 'what' from generate_series(1, 300) i;
         insert into nothing_in_it select from generate_series(1, 30)"
    )
}

/// Changes after which there still are equal rows of each table.
const CHANGES: [&str; 8] = [
    // One of equal rows, all of them, and each of them in its turn.
    "delete from bag where ctid = (select min(ctid) from bag where a = 3 and b = 'b 3');
     update bag set b = 'changed' where ctid = (select min(ctid) from bag where a is null);
     delete from bag where a = 7; update bag set a = a + 1 where a between 10 and 20",
    "insert into bag select 3, 'b 3' from generate_series(1, 5); update bag set b = b; delete from bag where ctid in
       (select ctid from bag where a = 3 limit 3)",
    "begin; insert into bag select 1000, 'passing' from generate_series(1, 20); update bag set a = 1001 where a = 1000;
     delete from bag where ctid in (select ctid from bag where a = 1001 limit 15); commit",
    "update values_of_all_kinds set t = t || '0' where f = 1.5; delete from values_of_all_kinds where f::text = '-0' and t = '1';
     update values_of_all_kinds set n = 2.00 where n::text = '2'; delete from values_of_all_kinds where n::text = '1.00' and t = '2';
     update values_of_all_kinds set d = d where f = 'NaN'; delete from values_of_all_kinds where f is null and t = '3'",
    "update long set n = n + 100 where n < 5; update long set more = '\\x01' where n = 6; delete from long where ctid in
       (select ctid from long where n = 7 limit 2); update long set body = null where n = 8",
    // Rows take each other's place.
    "update shifted set id = id + 1; begin; update shifted set id = 502 - id; update shifted set what = what || '!' where id < 20;
     delete from shifted where id between 100 and 110; update shifted set id = id - 1 where id <= 100; commit",
    "update nullable set id = null where id < 20; delete from nullable where ctid = (select min(ctid) from nullable where id is null);
     update nullable set what = 'else' where id is null",
    "delete from nothing_in_it where ctid in (select ctid from nothing_in_it limit 7); insert into nothing_in_it default values",
];

async fn ensure_equal(shop: &Shop, tables: &[&str]) -> Result<()> {
    shop.daemon.wait(CATCH_UP).await?;
    readers::ensure_equal(&shop.postgres, &Lake::builtin(&shop.daemon)?, tables).await
}

async fn change(shop: &Shop) -> Result<()> {
    for sql in CHANGES {
        shop.postgres.execute(sql).await?;
    }
    Ok(())
}

async fn filled() -> Result<Shop> {
    let shop = Shop::open(0).await?;
    shop.postgres.execute(&tables()).await?;
    shop.postgres.execute(&rows()).await?;
    Ok(shop)
}

async fn of_log(shop: &Shop, table: &str, op: &str) -> Result<Vec<Value>> {
    let mut events = e2e::log::events(shop).await?;
    events.retain(|event| event["table"] == table && event["op"] == op);
    Ok(events)
}

/// How many tables the source has.
async fn of_source(shop: &Shop) -> Result<usize> {
    let source = shop.daemon.describe("source", resources::SOURCE).await?;
    Ok(source["tables"].as_array().map_or(0, Vec::len))
}

/// How many snapshots have begun and ended in the log.
async fn snapshots(shop: &Shop) -> Result<(usize, usize)> {
    let events = e2e::log::events(shop).await?;
    let count = |op: &str| events.iter().filter(|event| event["op"] == op).count();
    Ok((count("snapshot_start"), count("snapshot_end")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_equal_rows_exactly_those_go_that_went_at_the_source() -> Result<()> {
    let mut shop = filled().await?;
    shop.deliver("1s").await?;
    ensure_equal(&shop, &TABLES).await?;
    change(&shop).await?;
    ensure_equal(&shop, &TABLES).await?;
    for event in of_log(&shop, "public.bag", "delete").await? {
        ensure!(
            event["key"].is_null() && event["before"].is_object(),
            "{event}"
        );
    }
    // A backlog, and the index that is made again from the table.
    shop.daemon.stop()?;
    let lake = shop.daemon.data().join("delivery");
    ensure!(lake.is_dir(), "{} is no folder", lake.display());
    std::fs::remove_dir_all(&lake)?;
    change(&shop).await?;
    shop.daemon.start().await?;
    ensure_equal(&shop, &TABLES).await?;
    shop.postgres
        .execute("truncate bag, long; insert into bag values (1, 'one'), (1, 'one')")
        .await?;
    ensure_equal(&shop, &TABLES).await?;
    let verified = shop
        .daemon
        .json(&["verify", resources::PIPELINE, "-o", "json"])
        .await?;
    let verified = verified.as_array().cloned().unwrap_or_default();
    let bags = verified
        .iter()
        .filter(|table| TABLES.contains(&table["table"].as_str().unwrap_or_default()));
    let equal = bags.filter(|table| table["equal"] == true).count();
    ensure!(equal == TABLES.len(), "{verified:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bag_that_is_read_again_while_it_changes_is_equal_afterwards() -> Result<()> {
    let shop = filled().await?;
    shop.deliver("1s").await?;
    ensure_equal(&shop, &TABLES).await?;
    for _ in 0..2 {
        shop.daemon.ok(&["resnapshot", resources::PIPELINE]).await?;
        change(&shop).await?;
        ensure_equal(&shop, &TABLES).await?;
    }
    let tables = of_source(&shop).await?;
    let found = snapshots(&shop).await?;
    ensure!(
        found == (3 * tables, 3 * tables),
        "{found:?} of {tables} tables"
    );
    Ok(())
}

/// A new column fills rows of which no event tells, and a key makes another table of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bag_whose_shape_changes_is_read_again() -> Result<()> {
    let shop = filled().await?;
    shop.deliver("1s").await?;
    ensure_equal(&shop, &TABLES).await?;
    for sql in [
        "alter table bag add c int default 5; update bag set b = 'c' where a = 1",
        "alter table bag add d int; delete from bag where a = 2",
        "alter table bag drop b; delete from bag where ctid in (select ctid from bag where a = 4 limit 5)",
        "alter table bag rename c to e; delete from bag where ctid in (select ctid from bag where a = 5 limit 5)",
        "alter table bag alter e type bigint; delete from bag where ctid in (select ctid from bag where a = 6 limit 5)",
        "alter table bag add id int generated by default as identity primary key; delete from bag where ctid in (select ctid from bag where a = 8 limit 5)",
        "update bag set a = 100 where id % 2 = 0",
        "alter table bag drop constraint bag_pkey; update bag set id = 1 where id % 3 = 0; delete from bag where a = 8",
    ] {
        shop.postgres.execute(sql).await?;
        ensure_equal(&shop, &["public.bag"]).await.context(sql)?;
    }
    Ok(())
}

async fn hanging(postgres: &Postgres) -> Result<i64> {
    postgres
        .number("select count(*) from pg_stat_activity where wait_event = 'SyncRep'")
        .await
}

/// Commits that are in the WAL, so that they are streamed, and are not visible until a standby confirms them.
async fn hang(postgres: &Postgres, sql: &'static str) -> Result<JoinHandle<Result<()>>> {
    let before = hanging(postgres).await?;
    let client = postgres.client().await?;
    let sql = format!("set synchronous_commit = on; begin; {sql}; commit");
    let waiting = tokio::spawn(async move { Ok(client.batch_execute(&sql).await?) });
    host::until("the commit to hang", CATCH_UP, async || {
        Ok(hanging(postgres).await? == before + 1)
    })
    .await?;
    Ok(waiting)
}

/// Each order of commit, log and visibility: what the snapshot sees is in the log before it and counts once; what it
/// does not see is applied after it, also where it was logged before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_logged_and_not_visible_is_applied_behind_the_one_snapshot() -> Result<()> {
    let postgres = Postgres::start_with(Options {
        settings: vec![
            "synchronous_standby_names = 'nobody'".into(),
            "synchronous_commit = local".into(),
        ],
        ..Options::default()
    })
    .await?;
    shop::create(&postgres).await?;
    let mut shop = Shop::over(postgres).await?;
    shop.postgres
        .execute(
            "create table bag (a int, b text); alter table bag owner to shop_owner; alter table bag replica identity full;
             insert into bag select i % 10, 'old' from generate_series(1, 1000) i;
             create publication downriver_shop for all tables",
        )
        .await?;
    shop.postgres
        .execute("select pg_create_logical_replication_slot('downriver_shop', 'pgoutput')")
        .await?;
    // It runs when the capture starts, so the read waits for it, and the stream does not.
    let gate = shop.postgres.client().await?;
    gate.batch_execute("begin; select pg_current_xact_id()")
        .await?;
    let sink = resources::sink_in_folder(&shop.folder.path().join("lake"));
    let source = resources::source(&shop.postgres, &["public.*"], &[]);
    let pipeline = resources::pipeline("1s");
    shop.daemon.apply(&(source + &sink + &pipeline)).await?;
    shop.daemon
        .until_described(
            "source",
            resources::SOURCE,
            "the snapshot",
            CATCH_UP,
            |source| source["state"] == "snapshotting",
        )
        .await?;
    // Visible to the read.
    shop.postgres
        .execute("insert into bag select 1, 'seen' from generate_series(1, 3); update bag set b = 'seen' where a = 2; delete from bag where a = 3")
        .await?;
    let unseen = [
        hang(
            &shop.postgres,
            "insert into bag select 1, 'seen' from generate_series(1, 2)",
        )
        .await?,
        hang(&shop.postgres, "update bag set b = 'unseen' where a = 4").await?,
        hang(
            &shop.postgres,
            "delete from bag where ctid in (select ctid from bag where a = 5 limit 30)",
        )
        .await?,
    ];
    let logged = async |op: &str, count: usize| {
        host::until(
            &format!("{count} times {op} to be logged"),
            CATCH_UP,
            async || Ok(of_log(&shop, "public.bag", op).await?.len() >= count),
        )
        .await
    };
    logged("delete", 130).await?;
    logged("update", 200).await?;
    gate.batch_execute("commit").await?;
    logged("snapshot", 903).await?;
    let confirm = "alter system set synchronous_standby_names = ''; select pg_reload_conf()";
    for sql in confirm.split(';') {
        shop.postgres.execute(sql).await?;
    }
    for unseen in unseen {
        unseen.await??;
    }
    shop.postgres.execute("delete from bag where b = 'unseen' and ctid in (select ctid from bag where a = 4 limit 7)").await?;
    ensure_equal(&shop, &["public.bag"]).await?;
    let rows = of_log(&shop, "public.bag", "snapshot").await?;
    ensure!(rows.len() == 903, "the snapshot has {} rows", rows.len());
    // What it did not see was logged once more, behind it.
    ensure!(
        of_log(&shop, "public.bag", "delete").await?.len() == 130 + 30 + 7,
        "what was not seen is not there again"
    );
    shop.daemon.stop()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_while_a_bag_is_read_leaves_nothing_of_it() -> Result<()> {
    let mut shop = filled().await?;
    shop.postgres
        .execute(
            "insert into bag select i % 100, repeat('x', 100) from generate_series(1, 100000) i",
        )
        .await?;
    shop.deliver("1s").await?;
    for round in 0..3 {
        let is_read = format!(
            "select count(*) from pg_stat_activity where query like 'copy (select%bag%' or {round} < 0"
        );
        host::until("the table to be read", CATCH_UP, async || {
            let read = shop.postgres.number(&is_read).await? > 0;
            let source = shop.daemon.describe("source", resources::SOURCE).await?;
            let done =
                daemon::table_in(&source, "public.bag").is_some_and(|t| t["state"] == "streaming");
            Ok(read || done)
        })
        .await?;
        shop.daemon.kill();
        change(&shop).await?;
        shop.daemon.start().await?;
    }
    ensure_equal(&shop, &TABLES).await?;
    let tables = of_source(&shop).await?;
    let found = snapshots(&shop).await?;
    ensure!(found == (tables, tables), "{found:?} of {tables} tables");
    Ok(())
}
