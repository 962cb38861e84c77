//! PostgreSQL into Iceberg: the tables are equal, row by row, as other people's engines read them.

use std::time::Duration;

use anyhow::{Result, ensure};
use downriver_testkit::readers::{self, Lake};
use downriver_testkit::seaweed::Seaweed;
use downriver_testkit::workload::{Style, Workload};
use downriver_testkit::{Daemon, Postgres, daemon, resources, shop};
use e2e::{CATCH_UP, Shop};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_under_load_and_200_000_changes_with_an_added_column_are_equal() -> Result<()> {
    let shop = Shop::open(20_000).await?;
    shop::fill_types(&shop.postgres).await?;
    let load = |seed, changes| {
        let style = Style {
            seed,
            pause: Duration::ZERO,
            scale: 20_000,
            changes_max: Some(changes),
            ..Style::default()
        };
        Workload::start(&shop.postgres, style)
    };
    let during = load(1, 100_000);
    shop.deliver("1s").await?;
    during.finish().await?;
    shop.ensure_lake_equal().await?;

    let second = load(2, 100_000);
    shop.postgres
        .execute(
            "alter table customers add column grade smallint, add column \"Nick Name\" text;
             update customers set grade = id % 5, \"Nick Name\" = 'n' || id where id % 3 = 0",
        )
        .await?;
    let written = second.finish().await?;
    ensure!(written.changes >= 100_000, "{written:?}");
    shop.ensure_lake_equal().await?;

    let table = shop
        .daemon
        .describe("pipeline", resources::PIPELINE)
        .await?;
    ensure!(table["state"] == "streaming", "{table}");
    shop.daemon.ok(&["verify", resources::PIPELINE]).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_transactions_unchanged_toast_key_changes_and_truncate_are_equal() -> Result<()> {
    let shop = Shop::open(1_000).await?;
    // Random hex is stored as it is: a hundred thousand bytes out of line.
    shop.postgres
        .execute(
            "insert into documents select i, 0, (select string_agg(md5(i || ':' || j), '') from generate_series(1, 3200) j),
                decode(md5(i::text), 'hex') from generate_series(1, 40) i",
        )
        .await?;
    shop.deliver("1s").await?;
    shop.ensure_lake_equal().await?;

    // Unchanged values: from the lake's own rows, along key changes, and along a chain in one transaction.
    shop.postgres
        .execute(
            "update documents set version = version + 1;
             update documents set id = id + 1000 where id % 4 = 0;
             begin; update documents set version = 50 where id = 1; update documents set id = 7001 where id = 1;
             update documents set version = 51 where id = 7001; commit;
             delete from documents where id = 2;
             insert into documents values (2, 9, repeat('new ', 30000), null)",
        )
        .await?;
    shop.ensure_lake_equal().await?;

    shop.postgres
        .execute(
            "begin; insert into ledger select i, repeat('y', 60) from generate_series(1, 300000) i;
             update ledger set what = 'changed' where id % 3 = 0; delete from ledger where id % 5 = 0; commit",
        )
        .await?;
    shop.ensure_lake_equal().await?;

    // Keys that swap places, and a truncate in the middle of a transaction.
    shop.postgres
        .execute(
            "begin; update orders set id = -1 where id = 1; update orders set id = 1 where id = 2;
             update orders set id = 2 where id = -1; commit;
             update order_lines set line = line + 100 where order_id < 50;
             truncate carts;
             begin; insert into payments values ('00000000-0000-0000-0000-000000000001', 1, 1, null); truncate payments;
             insert into payments values ('00000000-0000-0000-0000-000000000002', 2, 2, now()); commit;
             begin; truncate stock; rollback",
        )
        .await?;
    shop.ensure_lake_equal().await?;
    shop.daemon.ok(&["verify", resources::PIPELINE]).await?;
    Ok(())
}

/// A shop whose log's segments are in a bucket.
async fn in_bucket(store: &Seaweed) -> Result<Shop> {
    let postgres = Postgres::start().await?;
    shop::create(&postgres).await?;
    shop::fill(&postgres, 2_000).await?;
    shop::fill_types(&postgres).await?;
    let folder = tempfile::tempdir()?;
    let mut daemon = Daemon::new(folder.path())?
        .with_store(&format!("s3://{}/log", downriver_testkit::seaweed::BUCKET))
        .with_variable("DOWNRIVER_S3_ENDPOINT", &store.s3_endpoint());
    daemon.start().await?;
    Ok(Shop {
        daemon,
        postgres,
        folder,
    })
}

async fn under_load_in_bucket(shop: &Shop, lake: &Lake) -> Result<()> {
    let style = Style {
        pause: Duration::ZERO,
        scale: 2_000,
        changes_max: Some(20_000),
        ..Style::default()
    };
    let load = Workload::start(&shop.postgres, style);
    // One after another: a transaction over both tables could lock itself out with the load's.
    for change in [
        "alter table orders add column if not exists channel text",
        "update orders set channel = 'web' where id = 7",
        "truncate carts",
    ] {
        shop.postgres.execute(change).await?;
    }
    load.finish().await?;
    shop.daemon.wait(CATCH_UP).await?;
    readers::ensure_equal(&shop.postgres, lake, &shop::TABLES).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_log_and_warehouse_in_s3_the_tables_are_equal() -> Result<()> {
    let store = Seaweed::start().await?;
    let shop = in_bucket(&store).await?;
    let sink = resources::sink_in_bucket(&store.s3_endpoint());
    shop.deliver_to(&sink, "1s").await?;
    let lake = Lake::builtin_on(&shop.daemon, &store)?;
    under_load_in_bucket(&shop, &lake).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_an_external_rest_catalog_the_tables_are_equal() -> Result<()> {
    let store = Seaweed::start().await?;
    let mut shop = in_bucket(&store).await?;
    shop.deliver_to(&resources::sink_in_catalog(&store), "1s")
        .await?;
    let lake = Lake::external(&store);
    under_load_in_bucket(&shop, &lake).await?;
    // A new owner takes the tables over from what the catalog says.
    shop.daemon.kill();
    shop.daemon.start().await?;
    under_load_in_bucket(&shop, &lake).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wait_returns_on_an_idle_and_on_a_busy_database_and_verify_finds_what_was_tampered_with()
-> Result<()> {
    let shop = Shop::open(1_000).await?;
    shop.deliver("1s").await?;
    shop.daemon.wait(CATCH_UP).await?;
    // Nothing is written for it: keepalives carry the tables past the position.
    let written = "select (pg_current_wal_insert_lsn() - '0/0')::bigint";
    let before = shop.postgres.number(written).await?;
    shop.daemon.wait(CATCH_UP).await?;
    let after = shop.postgres.number(written).await?;
    ensure!(after - before < 4_096, "{} bytes of WAL", after - before);
    let load = Workload::start(
        &shop.postgres,
        Style {
            scale: 1_000,
            ..Style::default()
        },
    );
    for _ in 0..3 {
        shop.postgres
            .execute("insert into stock values (left(md5(clock_timestamp()::text), 30), 1, 1, 1)")
            .await?;
        shop.daemon.wait(CATCH_UP).await?;
    }
    // At one position both sides are equal, whatever is written meanwhile.
    let verified = shop
        .daemon
        .json(&["verify", resources::PIPELINE, "-o", "json"])
        .await?;
    println!("{verified}");
    load.stop().await?;
    shop.ensure_lake_equal().await?;

    tamper(&shop).await?;
    let answer = shop
        .daemon
        .run(&["verify", resources::PIPELINE, "--tables", "public.products"])
        .await?;
    ensure!(
        answer.code == Some(1) && answer.text().contains("tampered"),
        "{:?}: {}",
        answer.code,
        answer.text()
    );
    Ok(())
}

/// Appends a row to the lake's table of products with PyIceberg, as nobody should.
async fn tamper(shop: &Shop) -> Result<()> {
    let script = "
import sys
from pyiceberg.catalog import load_catalog
table = load_catalog('lake', type='rest', uri=sys.argv[1], warehouse='lake').load_table(('shop_public', 'products'))
rows = table.scan(limit=1).to_arrow()
row = rows.set_column(rows.schema.get_field_index('sku'), rows.schema.field('sku'), [['tampered']])
table.append(row)
";
    let output = tokio::process::Command::new(downriver_testkit::host::venv_program("python")?)
        .args(["-c", script, &shop.daemon.catalog_uri()?])
        .output()
        .await?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_cannot_be_held_stops_alone_and_pause_and_resume_keep_everything() -> Result<()>
{
    let mut shop = Shop::open(100).await?;
    shop.deliver("1s").await?;
    shop.daemon.wait(CATCH_UP).await?;
    shop.postgres
        .execute("insert into types (id, n) values (1, 'NaN')")
        .await?;
    let stopped = shop
        .daemon
        .until_described(
            "pipeline",
            resources::PIPELINE,
            "the table to stop",
            CATCH_UP,
            |pipeline| {
                daemon::table_in(pipeline, "public.types")
                    .is_some_and(|table| table["state"] == "stopped")
            },
        )
        .await?;
    let table = daemon::table_in(&stopped, "public.types").cloned();
    ensure!(
        table.is_some_and(|t| t["code"] == "DR-3020" && t["fix"].is_string()),
        "{stopped}"
    );

    shop.daemon
        .ok(&["pause", resources::PIPELINE, "--tables", "public.orders"])
        .await?;
    shop.daemon.kill();
    shop.daemon.start().await?;
    shop.postgres
        .execute("update orders set note = 'while paused'; update customers set name = 'goes on'")
        .await?;
    shop.daemon
        .until_described(
            "pipeline",
            resources::PIPELINE,
            "the pause to be shown",
            CATCH_UP,
            |pipeline| {
                daemon::table_in(pipeline, "public.orders")
                    .is_some_and(|table| table["state"] == "paused")
            },
        )
        .await?;
    let lake = Lake::builtin(&shop.daemon)?;
    downriver_testkit::host::until("the others to go on", CATCH_UP, async || {
        let compared = readers::compare(
            &shop.postgres,
            &lake,
            &["public.customers", "public.orders"],
        )
        .await?;
        Ok(compared[0].equal && !compared[1].equal)
    })
    .await?;
    // The value goes, and the table goes on from where it stopped.
    shop.postgres
        .execute("delete from types where id = 1")
        .await?;
    shop.daemon.ok(&["resume", resources::PIPELINE]).await?;
    downriver_testkit::host::until("the paused table to catch up", CATCH_UP, async || {
        let compared = readers::compare(&shop.postgres, &lake, &["public.orders"]).await?;
        Ok(compared[0].equal)
    })
    .await
}
