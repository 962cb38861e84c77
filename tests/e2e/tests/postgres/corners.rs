//! Corners of capture that no other file is about, each against the versions that have them.

use anyhow::{Result, ensure};
use downriver_testkit::postgres::{Options, Version};
use downriver_testkit::readers::{self, Lake};
use downriver_testkit::{Postgres, host, resources, shop};
use e2e::{CATCH_UP, Shop};
use serde_json::Value;

async fn on(version: Version, settings: &[&str]) -> Result<Shop> {
    let postgres = Postgres::start_with(Options {
        version,
        settings: settings.iter().map(|line| (*line).to_owned()).collect(),
        ..Options::default()
    })
    .await?;
    shop::create(&postgres).await?;
    Shop::over(postgres).await
}

async fn run(shop: &Shop, statements: &str) -> Result<()> {
    for sql in statements.split(";\n").filter(|sql| !sql.trim().is_empty()) {
        shop.postgres.execute(sql).await?;
    }
    Ok(())
}

async fn ensure_equal(shop: &Shop, tables: &[&str]) -> Result<()> {
    shop.daemon.wait(CATCH_UP).await?;
    readers::ensure_equal(&shop.postgres, &Lake::builtin(&shop.daemon)?, tables).await
}

/// What a publication of everything brings of tables that come, leave the selection and come back.
async fn tables_of_everything(version: Version, publication: &str) -> Result<()> {
    let shop = on(version, &["logical_decoding_work_mem = 64kB"]).await?;
    let sql = format!("create publication downriver_shop for {publication}");
    shop.postgres.execute(&sql).await?;
    run(
        &shop,
        "create schema elsewhere;\ngrant usage on schema elsewhere to public",
    )
    .await?;
    shop.deliver("1s").await?;
    // Made and filled by one transaction, which the server streams where it can.
    run(
        &shop,
        "begin; create table late (id int primary key, what text); alter table late owner to shop_owner; \
         insert into late select i, repeat('late ' || i, 20) from generate_series(1, 3000) i; \
         update late set what = 'again' where id % 3 = 0; commit",
    )
    .await?;
    ensure_equal(&shop, &["public.late"]).await?;
    run(
        &shop,
        "alter table late set schema elsewhere;\nupdate elsewhere.late set what = 'unseen' where id % 2 = 0; \
         delete from elsewhere.late where id % 7 = 0;\nalter table elsewhere.late set schema public;\ninsert into late values (0, 'back')",
    )
    .await?;
    ensure_equal(&shop, &["public.late"]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_come_and_go_under_a_publication_for_all_tables() -> Result<()> {
    tables_of_everything(Version::Major(14), "all tables").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_come_and_go_under_a_publication_for_tables_in_a_schema() -> Result<()> {
    tables_of_everything(Version::Major(18), "tables in schema public").await
}

/// The server may forget to tell running transactions of a table that was added: what they write of it is in the
/// snapshot.
async fn added_under_an_open_transaction(version: Version) -> Result<()> {
    let shop = on(version, &[]).await?;
    run(
        &shop,
        "create publication downriver_shop for table customers;
create table added (id int primary key, what text);
alter table added owner to shop_owner;
insert into added select i, 'before' from generate_series(1, 500) i",
    )
    .await?;
    shop.deliver("1s").await?;
    shop.daemon.wait(CATCH_UP).await?;
    let open = shop.postgres.client().await?;
    open.batch_execute(
        "begin; insert into customers (id, name, joined) values (-1, 'open', now())",
    )
    .await?;
    run(
        &shop,
        "alter publication downriver_shop add table only added",
    )
    .await?;
    // The capture looks, and waits for the transaction that may not know of it.
    let waits = |source: &Value| {
        let tables = source["tables"].as_array();
        let mut tables = tables.into_iter().flatten();
        tables.any(|table| {
            table["table"] == "public.added"
                && (table["state"] == "pending" || table["state"] == "snapshotting")
        })
    };
    shop.daemon
        .until_described(
            "source",
            resources::SOURCE,
            "the table to be taken in",
            CATCH_UP,
            waits,
        )
        .await?;
    open.batch_execute(
        "insert into added select i, 'open' from generate_series(501, 900) i; update added set what = 'open' where id % 5 = 0; delete from added where id % 7 = 0; commit",
    )
    .await?;
    run(&shop, "update added set what = 'after' where id % 11 = 0").await?;
    ensure_equal(&shop, &["public.added", "public.customers"]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_is_published_under_an_open_transaction_gets_its_rows_on_13() -> Result<()> {
    added_under_an_open_transaction(Version::Major(13)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_is_published_under_an_open_transaction_gets_its_rows_on_18() -> Result<()> {
    added_under_an_open_transaction(Version::Major(18)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_of_a_tables_shape_between_two_chunks_lose_nothing() -> Result<()> {
    let shop = on(Version::Major(18), &[]).await?;
    run(
        &shop,
        "create table long (id int primary key, one text, two int, three text);
alter table long owner to shop_owner;
insert into long select i, 'one ' || i, i, 'three ' || i from generate_series(1, 1200) i",
    )
    .await?;
    let options =
        ["snapshot: { mode: initial, chunk_rows: 50, max_workers: 1, rows_per_second: 300 }"];
    let source = resources::source(&shop.postgres, &["public.long"], &options);
    let sink = resources::sink_in_folder(&shop.folder.path().join("lake"));
    shop.daemon
        .apply(&(source + &sink + &resources::pipeline("1s")))
        .await?;
    for change in [
        "alter table long add four text default 'filled'; update long set four = 'set' where id % 10 = 0",
        "alter table long rename one to uno; insert into long (id, uno) values (-1, 'renamed')",
        "alter table long drop two; delete from long where id % 90 = 0",
        "alter table long alter three type varchar(40); update long set three = 'short' where id % 70 = 0",
    ] {
        let is_read = |source: &Value| {
            let done = &source["tables"][0]["snapshot"]["rows_done"];
            let state = &source["tables"][0]["state"];
            state == "snapshotting" && done.as_u64().is_some_and(|rows| rows > 0)
        };
        shop.daemon
            .until_described(
                "source",
                resources::SOURCE,
                "rows to be read",
                CATCH_UP,
                is_read,
            )
            .await?;
        shop.postgres.execute(change).await?;
    }
    ensure_equal(&shop, &["public.long"]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_that_leave_rows_as_they_are_leave_them_in_the_lake() -> Result<()> {
    let shop = on(Version::Major(18), &[]).await?;
    run(
        &shop,
        "create schema one;
create schema two;
create type one.kind as enum ('a', 'b');
create type two.kind as enum ('b', 'x');
create table kinds (id int primary key, k one.kind, o two.kind, n numeric(5, 2) not null, keyed two.kind);
alter table kinds owner to shop_owner;
insert into kinds select i, 'a', 'x', i / 100.0, 'b' from generate_series(1, 200) i",
    )
    .await?;
    shop.deliver("1s").await?;
    for change in [
        "begin; alter type one.kind add value 'later'; commit",
        "insert into kinds values (300, 'later', 'b', 1, 'x')",
        "alter table kinds alter n drop not null; update kinds set n = null where id % 10 = 0",
        "update kinds set n = 0 where n is null; alter table kinds alter n set not null",
        "alter table kinds alter n type numeric(8, 2); update kinds set n = n + 1000 where id % 3 = 0",
        "alter schema two rename to three; update kinds set o = 'b' where id % 4 = 0",
        "alter type three.kind rename to sort; insert into kinds values (301, 'b', 'x', 2, 'x')",
    ] {
        shop.postgres.execute(change).await?;
        ensure_equal(&shop, &["public.kinds"]).await?;
    }
    Ok(())
}

/// Version 18's temporal keys: a range is part of the key.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_without_overlaps_knows_its_rows() -> Result<()> {
    let shop = on(Version::Major(18), &[]).await?;
    run(
        &shop,
        "create extension btree_gist;
create table booked (room int, during tstzrange, who text, primary key (room, during without overlaps));
alter table booked owner to shop_owner;
insert into booked select i % 5, tstzrange(timestamptz '2026-01-01' + i * interval '1 h', timestamptz '2026-01-01' + (i + 1) * interval '1 h'), 'who ' || i
    from generate_series(1, 300) i;
insert into booked values (9, tstzrange(null, '2020-01-01'), 'ever before'), (9, tstzrange('2030-01-01', null), 'ever after')",
    )
    .await?;
    let options = ["snapshot: { mode: initial, chunk_rows: 7, max_workers: 2 }"];
    let source = resources::source(&shop.postgres, &["public.booked"], &options);
    let sink = resources::sink_in_folder(&shop.folder.path().join("lake"));
    shop.daemon
        .apply(&(source + &sink + &resources::pipeline("1s")))
        .await?;
    ensure_equal(&shop, &["public.booked"]).await?;
    run(
        &shop,
        "update booked set who = 'changed' where room = 1;
update booked set during = tstzrange(lower(during), upper(during) - interval '1 min') where room = 2;
update booked set room = 20 where room = 3;
delete from booked where room = 4;
delete from booked where during @> timestamptz '2031-01-01'",
    )
    .await?;
    ensure_equal(&shop, &["public.booked"]).await
}

/// The index that is a table's identity goes: nothing tells its rows from then on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_loses_its_identitys_index_says_so_until_it_has_one() -> Result<()> {
    let shop = on(Version::System, &[]).await?;
    run(
        &shop,
        "create table coded (code text not null, v int);
create unique index by_code on coded (code);
alter table coded replica identity using index by_code;
alter table coded owner to shop_owner;
insert into coded select 'c' || i, i from generate_series(1, 100) i",
    )
    .await?;
    shop.deliver("1s").await?;
    ensure_equal(&shop, &["public.coded"]).await?;
    run(&shop, "drop index by_code").await?;
    let state = async |what: &str, is_so: &dyn Fn(&Value) -> bool| {
        let is_so = |source: &Value| {
            let tables = source["tables"].as_array();
            let mut tables = tables.into_iter().flatten();
            tables.any(|table| table["table"] == "public.coded" && is_so(table))
        };
        let described =
            shop.daemon
                .until_described("source", resources::SOURCE, what, CATCH_UP, is_so);
        described.await.map(|_| ())
    };
    state("the loss to be told", &|table| table["code"].is_string()).await?;
    run(
        &shop,
        "create unique index by_code on coded (code);
alter table coded replica identity using index by_code;
update coded set v = -v where v % 2 = 0",
    )
    .await?;
    state("it to be captured", &|table| {
        table["state"] == "streaming" && table["code"].is_null()
    })
    .await?;
    ensure_equal(&shop, &["public.coded"]).await
}

/// What the server's roles set for their sessions ends none of ours.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_of_the_role_end_no_session_of_ours() -> Result<()> {
    let shop = on(Version::Major(18), &[]).await?;
    for limit in [
        "transaction_timeout",
        "idle_session_timeout",
        "statement_timeout",
        "lock_timeout",
    ] {
        let sql = format!("alter role cdc set {limit} = '400ms'");
        shop.postgres.execute(&sql).await?;
    }
    run(
        &shop,
        "create table slow (v text);
alter table slow replica identity full;
alter table slow owner to shop_owner;
insert into slow select repeat(md5(i::text), 30) from generate_series(1, 30000) i",
    )
    .await?;
    let limit = ["snapshot: { mode: initial, rows_per_second: 20000 }"];
    let source = resources::source(&shop.postgres, &["public.slow"], &limit);
    let sink = resources::sink_in_folder(&shop.folder.path().join("lake"));
    shop.daemon
        .apply(&(source + &sink + &resources::pipeline("1s")))
        .await?;
    ensure_equal(&shop, &["public.slow"]).await?;
    // Later than any of the limits.
    let quiet = "select count(*) from pg_stat_activity where application_name = 'downriver' and state = 'idle' and state_change < now() - interval '800 ms'";
    host::until("a session to be idle for longer", CATCH_UP, async || {
        Ok(shop.postgres.number(quiet).await? > 0)
    })
    .await?;
    let described = shop.daemon.describe("source", resources::SOURCE).await?;
    ensure!(
        described["state"] == "streaming" && described["code"].is_null(),
        "{described}"
    );
    Ok(())
}
