//! What the publication leaves out is noticed whenever it happens, and read again when it is published again.

use anyhow::{Result, ensure};
use downriver_testkit::postgres::{Options, Version};
use downriver_testkit::readers::{self, Lake};
use downriver_testkit::{Postgres, daemon, host, resources};
use e2e::{CATCH_UP, Shop, log};
use serde_json::Value;

async fn ensure_equal(shop: &Shop, tables: &[&str]) -> Result<()> {
    until_delivered(shop).await?;
    readers::ensure_equal(&shop.postgres, &Lake::builtin(&shop.daemon)?, tables).await?;
    shop.daemon.ok(&["verify", resources::PIPELINE]).await?;
    Ok(())
}

/// Waits until everything is delivered, also where a table stands still until its mending is noticed.
async fn until_delivered(shop: &Shop) -> Result<()> {
    host::until("the pipeline to catch up", CATCH_UP, async || {
        let waited = shop.daemon.run(&WAIT).await?;
        let stands = waited.text().contains("DR-1038");
        ensure!(waited.code == Some(0) || stands, "{}", waited.text());
        Ok(waited.code == Some(0))
    })
    .await
}

/// Waits until a table of the source is in a state, for a reason with this code.
async fn until_table(shop: &Shop, table: &str, state: &str, code: Option<&str>) -> Result<Value> {
    let mut found = Value::Null;
    host::until(&format!("{table} to be {state}"), CATCH_UP, async || {
        let source = shop.daemon.describe("source", resources::SOURCE).await?;
        found = daemon::table_in(&source, table)
            .cloned()
            .unwrap_or_default();
        Ok(found["state"] == state && found["code"].as_str() == code)
    })
    .await?;
    Ok(found)
}

async fn changed(shop: &Shop) -> Result<()> {
    for change in [
        "delete from customers where id % 10 = 1",
        "update customers set name = 'unseen' where id % 10 = 2",
        "insert into customers select 100000 + i, 'unseen', null, false, null, now() from generate_series(1, 30) i
             on conflict (id) do update set name = customers.name || '!'",
    ] {
        shop.postgres.execute(change).await?;
    }
    Ok(())
}

const WAIT: [&str; 6] = [
    "wait",
    resources::PIPELINE,
    "--for",
    "caught-up",
    "--timeout",
    "120s",
];
const TAKE_OUT: &str = "alter publication downriver_shop drop table customers";
const PUT_BACK: &str = "alter publication downriver_shop add table customers";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_taken_out_of_the_publication_stops_by_name_until_it_is_put_back() -> Result<()> {
    let mut shop = Shop::open(300).await?;
    shop.deliver("1s").await?;
    shop.ensure_lake_equal().await?;

    shop.postgres.execute(TAKE_OUT).await?;
    let table = until_table(&shop, "public.customers", "stopped", Some("DR-1038")).await?;
    let fix = table["fix"].as_str().unwrap_or_default();
    ensure!(
        fix.contains(
            "alter publication \"downriver_shop\" add table only \"public\".\"customers\""
        ),
        "{table}"
    );
    changed(&shop).await?;
    shop.postgres
        .execute("insert into ledger values (7000, 'the others go on')")
        .await?;
    shop.caught_up().await?;
    let others = ["public.ledger", "public.orders"];
    host::until("the others to be delivered", CATCH_UP, async || {
        let lake = Lake::builtin(&shop.daemon)?;
        Ok(readers::ensure_equal(&shop.postgres, &lake, &others)
            .await
            .is_ok())
    })
    .await?;
    let waited = shop.daemon.run(&WAIT).await?;
    ensure!(
        waited.code == Some(1) && waited.text().contains("DR-1038"),
        "{}",
        waited.text()
    );

    // A restart does not put it back, whose changes meanwhile nobody would miss.
    shop.daemon.kill();
    shop.daemon.start().await?;
    until_table(&shop, "public.customers", "stopped", Some("DR-1038")).await?;
    shop.postgres.execute(PUT_BACK).await?;
    ensure_equal(&shop, &["public.customers"]).await?;

    // Out and in again, before anybody looks.
    shop.postgres.execute(TAKE_OUT).await?;
    changed(&shop).await?;
    shop.postgres.execute(PUT_BACK).await?;
    ensure_equal(&shop, &["public.customers"]).await?;

    // While nobody can look.
    shop.daemon.kill();
    shop.postgres.execute(TAKE_OUT).await?;
    changed(&shop).await?;
    shop.postgres.execute(PUT_BACK).await?;
    shop.daemon.start().await?;
    ensure_equal(&shop, &["public.customers", "public.orders"]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_was_not_selected_for_a_while_is_read_again() -> Result<()> {
    let shop = Shop::open(300).await?;
    shop.deliver("1s").await?;
    shop.ensure_lake_equal().await?;
    let options = ["snapshot: { mode: initial, chunk_rows: 5000, max_workers: 2 }"];
    let without = ["public.*", "!public.customers"];
    let source = resources::source(&shop.postgres, &without, &options);
    shop.daemon.apply(&source).await?;
    changed(&shop).await?;
    shop.postgres
        .execute("insert into ledger values (7000, 'behind it')")
        .await?;
    shop.caught_up().await?;
    let source = resources::source(&shop.postgres, &["public.*"], &options);
    shop.daemon.apply(&source).await?;
    ensure_equal(&shop, &["public.customers", "public.ledger"]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publication_of_somebody_else_is_left_as_it_is_and_its_tables_are_captured() -> Result<()>
{
    let shop = Shop::open(100).await?;
    shop.postgres
        .execute("create publication downriver_shop for table customers, orders")
        .await?;
    shop.deliver("1s").await?;
    let refused = until_table(&shop, "public.products", "refused", Some("DR-1038")).await?;
    ensure!(
        refused["fix"]
            .as_str()
            .is_some_and(|fix| fix.contains("add table")),
        "{refused}"
    );
    ensure_equal(&shop, &["public.customers", "public.orders"]).await?;
    shop.postgres
        .execute("alter publication downriver_shop add table products")
        .await?;
    ensure_equal(&shop, &["public.products"]).await?;
    let members = "select count(*) from pg_publication_tables where pubname = 'downriver_shop'";
    ensure!(
        shop.postgres.number(members).await? == 3,
        "tables were added"
    );

    // One that leaves changes out holds the source until it does not; what was left out is read again.
    shop.postgres
        .execute("alter publication downriver_shop set (publish = 'insert')")
        .await?;
    host::until("the publication to be refused", CATCH_UP, async || {
        let source = shop.daemon.describe("source", resources::SOURCE).await?;
        Ok(source["code"] == "DR-1023")
    })
    .await?;
    changed(&shop).await?;
    shop.postgres
        .execute(
            "alter publication downriver_shop set (publish = 'insert, update, delete, truncate')",
        )
        .await?;
    ensure_equal(
        &shop,
        &["public.customers", "public.orders", "public.products"],
    )
    .await
}

/// A publication with a row filter and a column list, of tables of its own.
async fn filtered_on(version: Version) -> Result<Shop> {
    let postgres = Postgres::start_with(Options {
        version,
        ..Options::default()
    })
    .await?;
    for statement in [
        "create table people (id bigint primary key, name text, age int); alter table people owner to shop_owner;
         alter table people replica identity full",
        "create table listed (secret text, id bigint primary key, name text, more text default 'more');
         alter table listed owner to shop_owner",
        "insert into people select i, 'person ' || i, nullif(i % 100, 7) from generate_series(1, 300) i",
        "insert into listed select 'hush', i, 'name ' || i from generate_series(1, 300) i",
        "create publication downriver_shop for table people where (age > 50 and length(name) > 3), listed (id, name)",
    ] {
        postgres.execute(statement).await?;
    }
    Shop::over(postgres).await
}

/// The source's rows that are not published are deleted from it without a word, and the rest is the lake's.
async fn ensure_published(shop: &Shop, filter: &str) -> Result<()> {
    ensure_published_of(shop, "people", filter).await
}

async fn ensure_published_of(shop: &Shop, table: &str, filter: &str) -> Result<()> {
    shop.daemon.wait(CATCH_UP).await?;
    shop.daemon.ok(&["verify", resources::PIPELINE]).await?;
    let delete = format!(
        "create schema aside; create table aside.kept as select * from {table}; delete from {table} where ({filter}) is not true"
    );
    shop.change_unseen(table, &delete).await?;
    let compared = readers::ensure_equal(
        &shop.postgres,
        &Lake::builtin(&shop.daemon)?,
        &[&format!("public.{table}")],
    )
    .await;
    let restore = format!(
        "insert into {table} select * from aside.kept on conflict do nothing; drop schema aside cascade"
    );
    shop.change_unseen(table, &restore).await?;
    compared
}

async fn a_filter_and_a_list_hold_for_snapshot_stream_and_verify(version: Version) -> Result<()> {
    let shop = filtered_on(version).await?;
    shop.deliver("1s").await?;
    ensure_published(&shop, "age > 50 and length(name) > 3").await?;
    for change in [
        "update people set age = 60 where id between 10 and 20",
        "update people set age = 40 where id between 60 and 70",
        "update people set age = null where id between 71 and 75",
        "update people set id = id + 1000, name = name || '!' where id between 80 and 85",
        "insert into people values (500, 'in', 99), (501, 'inside', 99), (502, 'outside', 1)",
        "delete from people where id between 90 and 95 or id < 5",
        "update listed set name = name || '!', secret = 'other' where id < 50",
        "delete from listed where id > 290",
    ] {
        shop.postgres.execute(change).await?;
    }
    ensure_published(&shop, "age > 50 and length(name) > 3").await?;
    let events = log::events(&shop).await?;
    let op = |id: i64| {
        let mut of_row = events.iter().filter(|event| {
            event["table"] == "public.people" && event["key"]["id"].as_i64() == Some(id)
        });
        of_row.next_back().and_then(|event| event["op"].as_str())
    };
    ensure!(
        op(15) == Some("insert"),
        "an update into the filter is {:?}",
        op(15)
    );
    ensure!(
        op(65) == Some("delete"),
        "an update out of the filter is {:?}",
        op(65)
    );
    ensure!(
        op(502).is_none() && op(500).is_none(),
        "rows outside are in the log"
    );
    let unlisted = |event: &&Value| {
        event["table"] == "public.listed" && event["after"].get("secret").is_some()
    };
    ensure!(
        !events.iter().any(|event| unlisted(&event)),
        "a column outside of the list is in the log"
    );

    // Written while it is published, and committed when it is not any more.
    let writer = shop.postgres.client().await?;
    writer
        .batch_execute(
            "begin; insert into people select 2000 + i, 'late', 55 from generate_series(1, 30) i",
        )
        .await?;
    shop.postgres
        .execute("alter publication downriver_shop set table people where (age > 80), listed (id, name, more)")
        .await?;
    until_table(&shop, "public.people", "pending", None).await?;
    writer.batch_execute("commit").await?;
    ensure_published(&shop, "age > 80").await?;
    shop.postgres
        .execute("update people set age = 90 where id = 2001; alter table listed drop secret")
        .await?;
    ensure_published(&shop, "age > 80").await?;
    readers::ensure_equal(
        &shop.postgres,
        &Lake::builtin(&shop.daemon)?,
        &["public.listed"],
    )
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_filter_and_a_list_hold_for_snapshot_stream_and_verify_on_that_of_the_system()
-> Result<()> {
    a_filter_and_a_list_hold_for_snapshot_stream_and_verify(Version::System).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_filter_and_a_list_hold_for_snapshot_stream_and_verify_on_18() -> Result<()> {
    a_filter_and_a_list_hold_for_snapshot_stream_and_verify(Version::Major(18)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_column_list_without_the_key_is_refused_by_name_until_it_has_it() -> Result<()> {
    let shop = filtered_on(Version::Major(17)).await?;
    let set = |list: &str| {
        format!(
            "alter publication downriver_shop set table people where (age > 50), listed ({list})"
        )
    };
    shop.postgres.execute(&set("name")).await?;
    shop.deliver("1s").await?;
    let refused = until_table(&shop, "public.listed", "refused", Some("DR-1039")).await?;
    ensure!(
        refused["reason"]
            .as_str()
            .is_some_and(|r| r.contains("primary key")),
        "{refused}"
    );
    ensure_published(&shop, "age > 50").await?;
    shop.postgres
        .execute("insert into listed values ('hush', 1000, 'unseen')")
        .await?;
    shop.postgres.execute(&set("id, name")).await?;
    ensure_published(&shop, "age > 50").await?;
    shop.postgres
        .execute("alter table listed drop secret, drop more")
        .await?;
    readers::ensure_equal(
        &shop.postgres,
        &Lake::builtin(&shop.daemon)?,
        &["public.listed"],
    )
    .await
}

const LETTERS: &str = "create table letters (id bigint primary key, n int, body text);
    alter table letters owner to shop_owner, alter body set storage external;
    insert into letters select i, i, (select string_agg(md5(i || ' of ' || j), '') from generate_series(1, 80) j)
        from generate_series(1, 300) i;
    create publication downriver_shop for table letters where (id > 200)";

/// Of an update that brings a row into the filter the server makes an insert, without the values that stand outside the
/// row and were left as they are.
async fn a_row_that_comes_into_the_filter_is_whole(version: Version) -> Result<()> {
    let postgres = Postgres::start_with(Options {
        version,
        ..Options::default()
    })
    .await?;
    postgres.execute(LETTERS).await?;
    let shop = Shop::over(postgres).await?;
    shop.deliver("1s").await?;
    let filter = "id > 200";
    ensure_published_of(&shop, "letters", filter).await?;
    for change in [
        "update letters set id = id + 1000 where id between 1 and 20",
        "update letters set n = -n where id between 1001 and 1010",
        "update letters set id = id - 1000 where id between 1005 and 1015",
        "update letters set id = id + 2000, n = 0 where id between 1 and 30",
    ] {
        shop.postgres.execute(change).await?;
    }
    ensure_published_of(&shop, "letters", filter).await?;
    // Just the rows that lacked something were read.
    let events = log::events(&shop).await?;
    let of = |op: &str| events.iter().filter(|event| event["op"] == op).count();
    ensure!(of("snapshot_start") == 1 && of("partial_snapshot_start") > 0);
    ensure!(
        of("snapshot") < 100 + 60,
        "{} rows were read",
        of("snapshot")
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_snapshot_a_row_that_comes_into_the_filter_is_whole_as_well() -> Result<()> {
    let postgres = Postgres::start().await?;
    postgres.execute(LETTERS).await?;
    let shop = Shop::over(postgres).await?;
    shop.deliver_with(&["snapshot: none"]).await?;
    shop.caught_up().await?;
    let change = "update letters set id = id + 1000 where id between 1 and 20";
    shop.postgres.execute(change).await?;
    shop.daemon.wait(CATCH_UP).await?;
    let verify = ["verify", resources::PIPELINE, "-o", "json"];
    let verified = shop.daemon.run(&verify).await?;
    let verified: Value = serde_json::from_str(&verified.stdout)?;
    let of = |what: &str| verified[0][what].as_i64();
    ensure!(
        (of("target_rows"), of("missing")) == (Some(20), Some(100)),
        "{verified}"
    );
    ensure!(
        (of("different"), of("unexpected")) == (Some(0), Some(0)),
        "{verified}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_comes_into_the_filter_is_whole_on_that_of_the_system() -> Result<()> {
    a_row_that_comes_into_the_filter_is_whole(Version::System).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_comes_into_the_filter_is_whole_on_18() -> Result<()> {
    a_row_that_comes_into_the_filter_is_whole(Version::Major(18)).await
}
