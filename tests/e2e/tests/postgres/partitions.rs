//! Partitioned tables, and other relations whose rows come by ways that the stream does not tell of.

use anyhow::{Result, ensure};
use downriver_testkit::postgres::{Options, Version};
use downriver_testkit::readers::{self, Lake};
use downriver_testkit::{Postgres, daemon, host, resources};
use e2e::{CATCH_UP, Shop};
use serde_json::Value;

/// A partitioned table; the second partition has its columns in another order, and one that it had before.
const METRICS: &str = "
    create schema aside; grant usage on schema aside to cdc, shop_owner;
    create table metrics (id bigint, day date, v text, primary key (id, day)) partition by range (day);
    create table metrics_1 partition of metrics for values from ('2025-01-01') to ('2025-02-01');
    create table metrics_2 (v text, gone int, day date not null, id bigint not null);
    alter table metrics_2 drop gone;
    insert into metrics_2 select 'v' || i, date '2025-02-01' + i % 28, i from generate_series(1, 200) i;
    alter table metrics attach partition metrics_2 for values from ('2025-02-01') to ('2025-03-01');
    create table metrics_3 partition of metrics for values from ('2025-03-01') to ('2025-06-01') partition by range (day);
    create table metrics_3a partition of metrics_3 for values from ('2025-03-01') to ('2025-04-01');
    insert into metrics select i, date '2025-01-01' + i % 90, 'v' || i from generate_series(1000, 1500) i";

const OWNERS: &str = "do $$ declare t text; begin
    for t in select oid::regclass from pg_class where relnamespace = 'public'::regnamespace and relkind in ('r', 'p') loop
        execute 'alter table ' || t || ' owner to shop_owner';
    end loop;
end $$";

async fn shop_with(major: u32, statements: &[&str]) -> Result<Shop> {
    let postgres = Postgres::start_with(Options {
        version: Version::Major(major),
        ..Options::default()
    })
    .await?;
    for statement in statements {
        postgres.execute(statement).await?;
    }
    Shop::over(postgres).await
}

async fn ensure_verified(shop: &Shop) -> Result<()> {
    shop.daemon.wait(CATCH_UP).await?;
    shop.daemon.ok(&["verify", resources::PIPELINE]).await?;
    Ok(())
}

async fn ensure_equal(shop: &Shop, tables: &[&str]) -> Result<()> {
    ensure_verified(shop).await?;
    readers::ensure_equal(&shop.postgres, &Lake::builtin(&shop.daemon)?, tables).await
}

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

async fn snapshot_rows(shop: &Shop) -> Result<usize> {
    let events = e2e::log::events(shop).await?;
    let of_metrics =
        |event: &&Value| event["table"] == "public.metrics" && event["op"] == "snapshot";
    Ok(events.iter().filter(of_metrics).count())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partitioned_table_is_one_table_whatever_becomes_of_its_partitions() -> Result<()> {
    let mut shop = shop_with(18, &[METRICS, OWNERS]).await?;
    shop.deliver("1s").await?;
    ensure_equal(&shop, &["public.metrics"]).await?;
    let source = shop.daemon.describe("source", resources::SOURCE).await?;
    ensure!(
        daemon::table_in(&source, "public.metrics_1").is_none(),
        "{source}"
    );
    let snapshot = snapshot_rows(&shop).await?;

    // What is streamed, also into partitions that are made as such.
    for change in [
        "update metrics set day = day + 31 where id between 1001 and 1005; update metrics set v = 'changed' where id % 7 = 0;
         delete from metrics where id % 11 = 0",
        "begin; create table metrics_6 partition of metrics for values from ('2025-06-01') to ('2025-07-01');
         alter table metrics_6 owner to shop_owner; commit; insert into metrics values (6000, '2025-06-02', 'new')",
        "create table metrics_3b partition of metrics_3 for values from ('2025-04-01') to ('2025-05-01')",
        "insert into metrics values (3000, '2025-04-02', 'new')",
    ] {
        shop.postgres.execute(change).await?;
        ensure_verified(&shop).await?;
    }
    ensure!(
        snapshot_rows(&shop).await? == snapshot,
        "the table was read again"
    );

    // What is not.
    for change in [
        "create table aside.metrics_7 (like metrics including all); insert into aside.metrics_7 values (7000, '2025-07-02', 'attached');
         alter table metrics attach partition aside.metrics_7 for values from ('2025-07-01') to ('2025-08-01')",
        "begin; create table aside.metrics_8 (like metrics including all); insert into aside.metrics_8 values (8000, '2025-08-02', 'attached');
         alter table metrics attach partition aside.metrics_8 for values from ('2025-08-01') to ('2025-09-01'); commit",
        "truncate metrics_2",
        "alter table metrics detach partition aside.metrics_7; drop table metrics_6",
        "insert into metrics select i, date '2025-02-01' + i % 28, 'back' from generate_series(1, 100) i; truncate metrics",
        "insert into metrics select i, date '2025-02-01' + i % 28, 'again' from generate_series(1, 100) i",
    ] {
        shop.postgres.execute(change).await?;
        ensure_verified(&shop).await?;
    }

    ensure_equal(&shop, &["public.metrics"]).await?;
    shop.daemon.kill();
    shop.postgres
        .execute(
            "insert into metrics values (9000, '2025-02-03', 'then'), (9001, '2025-01-03', 'now');
             alter table metrics detach partition metrics_2; alter table metrics_2 set schema aside;
             create table metrics_9 partition of metrics for values from ('2025-09-01') to ('2025-10-01');
             insert into metrics values (9900, '2025-09-09', 'made while nobody looked')",
        )
        .await?;
    shop.daemon.start().await?;
    ensure_equal(&shop, &["public.metrics"]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_are_tables_where_the_publication_says_so_until_it_does_not() -> Result<()> {
    let publication = "create publication downriver_shop for table metrics";
    let shop = shop_with(16, &[METRICS, OWNERS, publication]).await?;
    shop.deliver("1s").await?;
    let shell = until_table(&shop, "public.metrics", "refused", Some("DR-1036")).await?;
    ensure!(
        shell["fix"]
            .as_str()
            .is_some_and(|fix| fix.contains("publish_via_partition_root")),
        "{shell}"
    );
    ensure_equal(
        &shop,
        &["public.metrics_1", "public.metrics_2", "public.metrics_3a"],
    )
    .await?;
    shop.postgres
        .execute(
            "update metrics set day = day + 31 where id between 1001 and 1005;
             create table metrics_6 partition of metrics for values from ('2025-06-01') to ('2025-07-01');
             insert into metrics values (6000, '2025-06-02', 'new')",
        )
        .await?;
    ensure_equal(
        &shop,
        &["public.metrics_1", "public.metrics_2", "public.metrics_6"],
    )
    .await?;
    shop.postgres
        .execute("alter publication downriver_shop set (publish_via_partition_root = true)")
        .await?;
    ensure_equal(&shop, &["public.metrics"]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_rows_that_cannot_be_seen_is_refused_by_name_until_it_can() -> Result<()> {
    let shop = shop_with(
        17,
        &[
            METRICS,
            "create table plain (id bigint primary key); insert into plain select generate_series(1, 100);
             create unlogged table passing (id bigint primary key);
             create table guarded (id bigint primary key, who text); alter table guarded enable row level security;
             alter table guarded force row level security; create policy own on guarded using (who = current_user);
             insert into guarded select i, 'somebody' from generate_series(1, 100) i;
             alter table metrics_1 replica identity full;
             create table parent (id bigint primary key, v text); create table child (primary key (id)) inherits (parent);
             insert into parent select i, 'parent' from generate_series(1, 50) i;
             insert into child select i, 'child' from generate_series(51, 100) i;
             create view seen as select 1 as id",
            OWNERS,
        ],
    )
    .await?;
    shop.deliver("1s").await?;
    let passing = until_table(&shop, "public.passing", "refused", Some("DR-1037")).await?;
    ensure!(
        passing["fix"]
            .as_str()
            .is_some_and(|fix| fix.contains("set logged")),
        "{passing}"
    );
    let guarded = until_table(&shop, "public.guarded", "refused", Some("DR-1037")).await?;
    ensure!(
        guarded["fix"]
            .as_str()
            .is_some_and(|fix| fix.contains("bypassrls")),
        "{guarded}"
    );
    let metrics = until_table(&shop, "public.metrics", "refused", Some("DR-1037")).await?;
    ensure!(
        metrics["fix"]
            .as_str()
            .is_some_and(|fix| fix.contains("metrics_1")),
        "{metrics}"
    );
    ensure_equal(&shop, &["public.plain", "public.child"]).await?;
    shop.postgres
        .execute("update parent set v = v || '!' where id % 10 = 0")
        .await?;
    ensure_equal(&shop, &["public.child"]).await?;
    let parent = e2e::log::fold(&e2e::log::events(&shop).await?, "public.parent")?;
    ensure!(
        parent.keys().copied().eq(1..=50),
        "the parent has other rows than its own"
    );

    shop.postgres
        .execute(
            "alter table passing set logged; insert into passing select generate_series(1, 10)",
        )
        .await?;
    shop.postgres.execute("alter role cdc bypassrls").await?;
    ensure_equal(&shop, &["public.passing", "public.guarded"]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_was_unlogged_for_a_while_is_read_again() -> Result<()> {
    let made = "create table plain (id bigint primary key); insert into plain select generate_series(1, 100);
                create publication downriver_shop for all tables";
    let shop = shop_with(14, &[made]).await?;
    shop.deliver("1s").await?;
    ensure_equal(&shop, &["public.plain"]).await?;
    shop.postgres
        .execute("alter table plain set unlogged")
        .await?;
    until_table(&shop, "public.plain", "refused", Some("DR-1037")).await?;
    shop.postgres
        .execute("delete from plain where id < 50; insert into plain values (1000)")
        .await?;
    shop.postgres
        .execute("alter table plain set logged")
        .await?;
    ensure_equal(&shop, &["public.plain"]).await
}

/// A part of a partitioned table that is partitioned itself is a table, if it is what is published.
async fn a_middle_one_is_a_table_of_its_own(
    publication: Option<&str>,
    changes: &[&str],
) -> Result<()> {
    let mut statements = vec![METRICS, OWNERS];
    statements.extend(publication);
    let shop = shop_with(15, &statements).await?;
    let source = resources::source(&shop.postgres, &["public.metrics_3"], &[]);
    let sink = resources::sink_in_folder(&shop.folder.path().join("lake"));
    shop.daemon
        .apply(&(source + &sink + &resources::pipeline("1s")))
        .await?;
    for change in changes {
        ensure_verified(&shop).await?;
        shop.postgres.execute(change).await?;
    }
    ensure_equal(&shop, &["public.metrics_3"]).await
}

/// Rows come into it, leave it, and move within.
const OF_THE_MIDDLE: &str = "
    update metrics set day = '2025-03-05' where id between 1001 and 1005;
    update metrics set day = '2025-01-05', v = 'left' where day = '2025-03-07';
    create table metrics_3b partition of metrics_3 for values from ('2025-04-01') to ('2025-05-01');
    update metrics_3 set day = '2025-04-02' where day = '2025-03-08'; delete from metrics where id % 7 = 0";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_middle_one_that_is_selected_alone_is_a_table_of_its_own() -> Result<()> {
    let changes = [
        OF_THE_MIDDLE,
        "create table aside.metrics_3c (like metrics including all); insert into aside.metrics_3c values (7000, '2025-05-02', 'attached');
         alter table metrics_3 attach partition aside.metrics_3c for values from ('2025-05-01') to ('2025-06-01')",
        "truncate metrics_3b",
        "alter table metrics_3 detach partition aside.metrics_3c",
        "alter table metrics detach partition metrics_3; insert into metrics_3 values (8000, '2025-03-02', 'alone'); truncate metrics",
        "alter table metrics attach partition metrics_3 for values from ('2025-03-01') to ('2025-06-01'); insert into metrics values (8001, '2025-03-02', 'back')",
    ];
    a_middle_one_is_a_table_of_its_own(None, &changes).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_middle_one_that_is_published_alone_is_a_table_of_its_own() -> Result<()> {
    let publication = "create publication downriver_shop for table metrics_3 with (publish_via_partition_root = true)";
    let changes = [
        OF_THE_MIDDLE,
        "truncate metrics; insert into metrics values (8002, '2025-03-02', 'last'), (8003, '2025-01-02', 'other')",
    ];
    a_middle_one_is_a_table_of_its_own(Some(publication), &changes).await
}

/// A row filter of a partitioned table holds for all its partitions; then they are published as tables.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_filter_of_a_partitioned_table_holds_until_its_partitions_are_tables() -> Result<()> {
    let publication = "create publication downriver_shop for table metrics where (id > 1200)
                         with (publish_via_partition_root = true)";
    let shop = shop_with(18, &[METRICS, OWNERS, publication]).await?;
    shop.deliver("1s").await?;
    let published = async || {
        ensure_verified(&shop).await?;
        let of_source = "select id, day::text, v from metrics where id > 1200 order by id, day";
        let expected = shop.postgres.client().await?.query(of_source, &[]).await?;
        let expected: Vec<(i64, String, String)> = expected
            .iter()
            .map(|row| (row.get(0), row.get(1), row.get(2)))
            .collect();
        let mut logged = std::collections::BTreeMap::new();
        for event in e2e::log::events(&shop).await? {
            let key = |row: &Value| Some((row["id"].as_i64()?, row["day"].as_str()?.to_owned()));
            if event["table"] != "public.metrics" {
                continue;
            }
            if let Some(old) = key(&event["before"]).or_else(|| key(&event["key"])) {
                logged.remove(&old);
            }
            if let Some(new) = key(&event["after"]) {
                logged.insert(
                    new,
                    event["after"]["v"].as_str().unwrap_or_default().to_owned(),
                );
            }
        }
        let logged: Vec<_> = logged
            .into_iter()
            .map(|((id, day), v)| (id, day, v))
            .collect();
        ensure!(
            logged == expected,
            "the log has {} rows of {}",
            logged.len(),
            expected.len()
        );
        Ok(())
    };
    published().await?;
    for change in [
        "update metrics set v = 'changed' where id % 3 = 0; update metrics set id = id + 1000 where id between 1000 and 1100;
         update metrics set id = id - 1000 where id between 1300 and 1320",
        "update metrics set day = day + 31 where id between 1210 and 1230 and day < '2025-03-01';
         update metrics set day = '2025-03-02', id = id + 2000 where id between 1 and 20;
         insert into metrics values (7, '2025-01-01', 'out'), (7777, '2025-01-01', 'in'); delete from metrics where id % 11 = 0",
    ] {
        shop.postgres.execute(change).await?;
        published().await?;
    }
    shop.postgres
        .execute("alter publication downriver_shop set table metrics")
        .await?;
    ensure_equal(&shop, &["public.metrics"]).await?;

    shop.postgres
        .execute("alter publication downriver_shop set (publish_via_partition_root = false)")
        .await?;
    until_table(&shop, "public.metrics", "refused", Some("DR-1036")).await?;
    shop.postgres
        .execute("update metrics set day = day + 31 where id between 1250 and 1290 and day < '2025-03-01'; delete from metrics where id % 13 = 0")
        .await?;
    shop.daemon.wait(CATCH_UP).await?;
    // What the lake has of the table stays as it was.
    let leaves = ["public.metrics_1", "public.metrics_2", "public.metrics_3a"];
    readers::ensure_equal(&shop.postgres, &Lake::builtin(&shop.daemon)?, &leaves).await?;
    shop.postgres
        .execute("alter publication downriver_shop set (publish_via_partition_root = true)")
        .await?;
    ensure_equal(&shop, &["public.metrics"]).await
}
