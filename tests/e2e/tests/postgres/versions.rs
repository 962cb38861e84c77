//! The whole path against every version of PostgreSQL that is captured: what a server does not know it is not
//! asked for, and what the versions do differently comes out the same.

use std::time::Duration;

use anyhow::{Result, ensure};
use downriver_testkit::oracle::Oracle;
use downriver_testkit::postgres::{Options, Version};
use downriver_testkit::readers::{self, Lake};
use downriver_testkit::workload::{Style, Workload};
use downriver_testkit::{Postgres, resources, shop};
use e2e::{CATCH_UP, Shop};
use serde_json::Value;

const SCALE: u32 = 500;

/// Settings that change how values print, of the role that captures.
const ODD: &str =
    "alter role cdc set DateStyle = 'German'; alter role cdc set IntervalStyle = 'sql_standard';
    alter role cdc set bytea_output = 'escape'; alter role cdc set extra_float_digits = 0;
    alter role cdc set TimeZone = 'Asia/Kathmandu'";

/// The stored column is in no stream unless it is asked for, so the snapshot leaves it out too.
const GENERATED: &str = "create table parcels (id bigint primary key, grams int, kilos numeric generated always as (grams / 1000.0) stored);
    alter table parcels owner to shop_owner; insert into parcels select i, i * 10 from generate_series(1, 100) i";

/// Every kind of change, among them those that a version could treat in its own way.
const CHANGES: [&str; 8] = [
    // Before version 15 the server sends the transaction, with nothing in it.
    "create schema elsewhere; create table elsewhere.t (id int); insert into elsewhere.t values (1)",
    "insert into types select id + 100, i2, i4, i8, f4, f8, n, free, b, t, vc, c, ba, u, j, jb, d, ti, ts, tz, iv, st, ai,
        at, an, net from types",
    "update documents set version = version + 1",
    "update documents set id = id + 1000 where id % 4 = 0",
    "begin; truncate carts; insert into carts values (1, '{}', null); commit",
    "alter table products add column origin text",
    "update products set origin = 'there' where sku like '%1'; delete from products where sku like '%2'",
    "update parcels set grams = grams + 1 where id < 50; delete from parcels where id > 90",
];

async fn start(version: Version) -> Result<Postgres> {
    Postgres::start_with(Options {
        version,
        ..Options::default()
    })
    .await
}

async fn shop_on(version: Version) -> Result<Shop> {
    let postgres = start(version).await?;
    shop::create(&postgres).await?;
    shop::fill(&postgres, SCALE).await?;
    shop::fill_types(&postgres).await?;
    // Random hex is stored as it is, out of line.
    postgres
        .execute(
            "insert into documents select i, 0, (select string_agg(md5(i || ':' || j), '') from generate_series(1, 300) j),
                decode(md5(i::text), 'hex') from generate_series(1, 40) i",
        )
        .await?;
    postgres.execute(GENERATED).await?;
    postgres.execute(ODD).await?;
    Shop::over(postgres).await
}

/// What `check` says of the shop's source.
async fn ensure_nothing_is_missing(shop: &Shop) -> Result<()> {
    let file = shop.folder.path().join("checked.yaml");
    std::fs::write(&file, resources::source(&shop.postgres, &["public.*"], &[]))?;
    let file = file.to_string_lossy();
    let findings = shop
        .daemon
        .json(&["check", "-f", &file, "-o", "json"])
        .await?;
    let findings = findings.as_array().cloned().unwrap_or_default();
    let is_fine = |finding: &Value| finding["severity"] == "ok" || finding["code"] == "DR-1034";
    ensure!(
        findings.len() > 3 && findings.iter().all(is_fine),
        "{findings:?}"
    );
    Ok(())
}

async fn a_source_is_captured_and_delivered_across_a_kill(version: Version) -> Result<()> {
    let mut shop = shop_on(version).await?;
    ensure_nothing_is_missing(&shop).await?;
    let load = Workload::start(
        &shop.postgres,
        Style {
            scale: SCALE,
            ..Style::default()
        },
    );
    shop.deliver("1s").await?;
    let mut oracle = Oracle::new();
    oracle
        .follow(&shop.daemon, 0, Duration::from_secs(1))
        .await?;
    for change in &CHANGES[..5] {
        shop.postgres.execute(change).await?;
    }
    shop.daemon.kill();
    for change in &CHANGES[5..] {
        shop.postgres.execute(change).await?;
    }
    shop.daemon.start().await?;
    let written = load.stop().await?;
    shop.caught_up().await?;
    let census = oracle.review(&shop.daemon, "public.ledger", "id").await?;
    census.ensure_complete(written.ledger)?;
    shop.daemon.wait(CATCH_UP).await?;
    let tables = [&shop::TABLES[..], &["public.parcels"]].concat();
    readers::ensure_equal(&shop.postgres, &Lake::builtin(&shop.daemon)?, &tables).await?;
    shop.daemon.ok(&["verify", resources::PIPELINE]).await?;
    shop.daemon.stop()
}

async fn a_dropped_publication_stops_the_source(version: Version) -> Result<()> {
    let postgres = start(version).await?;
    shop::create(&postgres).await?;
    let mut shop = Shop::over(postgres).await?;
    shop.capture().await?;
    shop.caught_up().await?;
    shop.postgres
        .execute("drop publication downriver_shop")
        .await?;
    shop.postgres
        .execute("insert into ledger values (1, 'published by nobody')")
        .await?;
    until_the_publication_is_missed(&shop).await?;
    // It is not made again: the row would be passed over.
    shop.daemon.kill();
    shop.daemon.start().await?;
    until_the_publication_is_missed(&shop).await
}

async fn until_the_publication_is_missed(shop: &Shop) -> Result<()> {
    let stopped = shop.daemon.until_described(
        "source",
        resources::SOURCE,
        "the source to stop",
        CATCH_UP,
        |source| source["state"] == "stopped" && source["code"] == "DR-1025",
    );
    stopped.await.map(|_| ())
}

macro_rules! tests_on {
    ($($name:ident: $version:expr,)*) => { $(
        mod $name {
            use super::*;

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn a_source_is_captured_and_delivered_across_a_kill() -> Result<()> {
                super::a_source_is_captured_and_delivered_across_a_kill($version).await
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn a_dropped_publication_stops_the_source() -> Result<()> {
                super::a_dropped_publication_stops_the_source($version).await
            }
        }
    )* };
}

tests_on! {
    postgres_13: Version::Major(13),
    postgres_14: Version::Major(14),
    postgres_of_the_system: Version::System,
    postgres_16: Version::Major(16),
    postgres_17: Version::Major(17),
    postgres_18: Version::Major(18),
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publication_made_anew_while_it_is_used_stops_the_source() -> Result<()> {
    let postgres = start(Version::Major(18)).await?;
    shop::create(&postgres).await?;
    let shop = Shop::over(postgres).await?;
    shop.capture().await?;
    shop.caught_up().await?;
    shop.postgres
        .execute(
            "drop publication downriver_shop; create publication downriver_shop for all tables",
        )
        .await?;
    until_the_publication_is_missed(&shop).await
}

/// A server before version 18 does not find the publication where it decodes what was written before it was made.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_older_than_its_publication_stops_the_source_and_a_new_source_mends_it() -> Result<()>
{
    let postgres = start(Version::Major(17)).await?;
    shop::create(&postgres).await?;
    for statement in [
        "select pg_create_logical_replication_slot('downriver_shop', 'pgoutput')",
        "insert into ledger values (1, 'published by nobody')",
        "create publication downriver_shop for all tables",
    ] {
        postgres.execute(statement).await?;
    }
    let shop = Shop::over(postgres).await?;
    shop.capture().await?;
    until_the_publication_is_missed(&shop).await?;
    shop.daemon
        .ok(&["delete", "source", resources::SOURCE, "--yes"])
        .await?;
    shop.capture().await?;
    shop.caught_up().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stored_generated_column_is_captured_where_the_publication_has_it() -> Result<()> {
    let postgres = start(Version::Major(18)).await?;
    shop::create(&postgres).await?;
    for statement in [
        GENERATED,
        "alter table parcels add column pounds numeric generated always as (grams / 453.6) virtual",
        "create publication downriver_shop for all tables with (publish_generated_columns = stored)",
    ] {
        postgres.execute(statement).await?;
    }
    let shop = Shop::over(postgres).await?;
    shop.deliver("1s").await?;
    shop.daemon.wait(CATCH_UP).await?;
    shop.postgres
        .execute("update parcels set grams = grams + 1 where id < 50")
        .await?;
    shop.daemon.wait(CATCH_UP).await?;
    shop.daemon.ok(&["verify", resources::PIPELINE]).await?;

    let arguments = ["--from", "earliest", "--until", "latest", "-o", "json"];
    let events = shop
        .daemon
        .ok(&[&["tail", resources::SOURCE], &arguments[..]].concat())
        .await?;
    let mut rows = 0;
    for event in events.lines() {
        let event: Value = serde_json::from_str(event)?;
        if let Some(row) = event["after"].as_object() {
            rows += 1;
            ensure!(
                row.contains_key("kilos") && !row.contains_key("pounds"),
                "{event}"
            );
        }
    }
    ensure!(rows == 149, "{rows} rows");
    Ok(())
}
