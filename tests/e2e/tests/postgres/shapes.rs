//! Tables that are made, reshaped and dropped where the stream says nothing of it, or says it late.

use anyhow::{Result, ensure};
use downriver_testkit::readers::{self, Lake};
use downriver_testkit::{daemon, host, resources};
use e2e::{CATCH_UP, Shop};

async fn ensure_equal(shop: &Shop, tables: &[&str]) -> Result<()> {
    shop.daemon.wait(CATCH_UP).await?;
    readers::ensure_equal(&shop.postgres, &Lake::builtin(&shop.daemon)?, tables).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_made_while_it_runs_is_waited_for_with_its_rows() -> Result<()> {
    let shop = Shop::open(100).await?;
    shop.deliver("1s").await?;
    shop.ensure_lake_equal().await?;
    shop.postgres
        .execute(
            "create table late (id bigint primary key, what text); alter table late owner to shop_owner;
             create table empty (id bigint primary key); alter table empty owner to shop_owner;
             insert into late select i, 'row ' || i from generate_series(1, 500) i",
        )
        .await?;
    ensure_equal(&shop, &["public.late", "public.empty"]).await?;
    shop.postgres
        .execute("update late set what = 'streamed' where id < 100; insert into empty values (1)")
        .await?;
    ensure_equal(&shop, &["public.late", "public.empty"]).await?;
    let source = shop.daemon.describe("source", resources::SOURCE).await?;
    ensure!(source["code"].is_null(), "{source}");
    Ok(())
}

/// No row follows the changes, so only the catalog tells a chunk which column is which.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_taken_again_knows_columns_whose_change_no_row_has_told() -> Result<()> {
    let shop = Shop::open(100).await?;
    shop.postgres
        .execute(
            "create table pairs (id bigint primary key, one text, other text, gone text);
             alter table pairs owner to shop_owner;
             insert into pairs select i, 'one ' || i, 'other ' || i, 'gone' from generate_series(1, 300) i",
        )
        .await?;
    shop.deliver("1s").await?;
    ensure_equal(&shop, &["public.pairs"]).await?;
    let resnapshot = [
        "resnapshot",
        resources::PIPELINE,
        "--tables",
        "public.pairs",
    ];
    for change in [
        "begin; alter table pairs rename one to passing; alter table pairs rename other to one;
         alter table pairs rename passing to other; commit",
        "alter table pairs drop gone",
    ] {
        shop.postgres.execute(change).await?;
        shop.daemon.ok(&resnapshot).await?;
        ensure_equal(&shop, &["public.pairs"]).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_name_of_a_dropped_column_is_free_for_another() -> Result<()> {
    let shop = Shop::open(100).await?;
    shop.postgres
        .execute(
            "create table names (id bigint primary key, one text, other text, third text);
             alter table names owner to shop_owner;
             insert into names select i, 'one ' || i, 'other ' || i, 'third ' || i from generate_series(1, 300) i",
        )
        .await?;
    shop.deliver("1s").await?;
    ensure_equal(&shop, &["public.names"]).await?;
    for (change, column) in [
        ("drop one", "other"),
        ("rename other to one", "one"),
        ("drop one", "third"),
        ("add one int", "one"),
        ("drop third", "one"),
        ("rename one to \"Third\"", "\"Third\""),
    ] {
        let change =
            format!("alter table names {change}; update names set {column} = null where id < 10");
        shop.postgres.execute(&change).await?;
        ensure_equal(&shop, &["public.names"]).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_goes_while_it_is_taken_in_stops_nothing() -> Result<()> {
    let shop = Shop::open(100).await?;
    shop.deliver("1s").await?;
    shop.ensure_lake_equal().await?;
    let fleeting =
        "create table fleeting (id bigint primary key); alter table fleeting owner to shop_owner";
    shop.postgres.execute(fleeting).await?;
    let client = shop.postgres.client().await?;
    client
        .batch_execute("begin; lock table fleeting in access exclusive mode")
        .await?;
    host::until(
        "the publication to wait for the table",
        CATCH_UP,
        async || {
            let waiting =
                "select count(*) from pg_stat_activity where application_name = 'downriver'
            and wait_event_type = 'Lock' and query like 'alter publication%fleeting%'";
            Ok(shop.postgres.number(waiting).await? > 0)
        },
    )
    .await?;
    client.batch_execute("drop table fleeting; commit").await?;
    shop.postgres
        .execute("insert into ledger values (7000, 'behind it')")
        .await?;
    ensure_equal(&shop, &["public.ledger"]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_dropped_with_rows_in_the_backlog_keeps_nothing_from_going_on() -> Result<()> {
    let mut shop = Shop::open(100).await?;
    shop.deliver("1s").await?;
    shop.ensure_lake_equal().await?;
    shop.daemon.kill();
    shop.postgres
        .execute(
            "insert into carts select i, '{}', null from generate_series(9001, 9100) i; drop table carts;
             create table passing (id bigint primary key); drop table passing;
             insert into ledger values (7000, 'behind it')",
        )
        .await?;
    shop.daemon.start().await?;
    ensure_equal(&shop, &["public.ledger", "public.orders"]).await?;
    // Rows from before the drop are in the log.
    let logged = e2e::log::events(&shop).await?;
    let of_carts = logged.iter().filter(|event| {
        event["table"] == "public.carts" && event["key"]["id"].as_i64() > Some(9000)
    });
    ensure!(of_carts.count() == 100, "rows before the drop are missing");
    let source = shop.daemon.describe("source", resources::SOURCE).await?;
    ensure!(
        source["state"] == "streaming" && daemon::table_in(&source, "public.carts").is_none(),
        "{source}"
    );
    Ok(())
}

/// A commit that waits for a synchronous standby is logged and sent, and shows to nobody: the catalog is still the one
/// of before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shape_whose_transaction_is_not_visible_yet_is_not_taken_for_the_one_before() -> Result<()>
{
    let shop = Shop::open(100).await?;
    shop.postgres
        .execute(
            "create table late (id bigint primary key, one text, other text); alter table late owner to shop_owner;
             insert into late select i, 'one ' || i, 'other ' || i from generate_series(1, 300) i",
        )
        .await?;
    shop.deliver("1s").await?;
    ensure_equal(&shop, &["public.late"]).await?;
    shop.postgres
        .execute("alter table late drop one; update late set other = 'told' where id < 10")
        .await?;
    ensure_equal(&shop, &["public.late"]).await?;

    let reload = |names: &str| {
        format!("alter system set synchronous_standby_names = '{names}'; select pg_reload_conf()")
    };
    for sql in reload("nobody").split("; ") {
        shop.postgres.execute(sql).await?;
    }
    // The server takes the setting up a little later than its sessions do.
    let first = shop.postgres.client().await?;
    let first = tokio::spawn(async move {
        let commit = "select pg_logical_emit_message(true, 'first', '')";
        while first.batch_execute(commit).await.is_ok() {}
    });
    let waiting = "select count(*) from pg_stat_activity where wait_event = 'SyncRep'";
    host::until("a commit to wait", CATCH_UP, async || {
        Ok(shop.postgres.number(waiting).await? > 0)
    })
    .await?;
    let client = shop.postgres.client().await?;
    let change = tokio::spawn(async move {
        client
            .batch_execute("begin; alter table late add one int; update late set one = id where id < 20; commit")
            .await
    });
    host::until("the commit to be sent and to wait", CATCH_UP, async || {
        let sent =
            "select count(*) from pg_stat_replication where sent_lsn = pg_current_wal_flush_lsn()";
        Ok(shop.postgres.number(waiting).await? > 1 && shop.postgres.number(sent).await? > 0)
    })
    .await?;
    // Whoever does not wait has taken it in by now.
    let described = shop.daemon.describe("source", resources::SOURCE).await?;
    ensure!(described["state"] == "streaming", "{described}");
    first.abort();
    for sql in reload("").split("; ") {
        shop.postgres.execute(sql).await?;
    }
    change.await??;
    ensure_equal(&shop, &["public.late"]).await
}
