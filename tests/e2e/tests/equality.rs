//! Tables are equal, row by row, between PostgreSQL and the lake read by DuckDB and by PyIceberg.

use std::time::Duration;

use anyhow::{Result, ensure};
use downriver_testkit::workload::{Style, Workload};
use downriver_testkit::{Daemon, Postgres, Seaweed, readers, resources, shop};
use e2e::{CATCH_UP, Shop};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_under_write_load_and_200_000_mixed_changes_are_equal() -> Result<()> {
    let shop = Shop::open(20_000).await?;
    shop::fill_types(&shop.postgres).await?;
    let during = Workload::start(
        &shop.postgres,
        Style {
            scale: 20_000,
            ..Style::default()
        },
    );
    shop.replicate().await?;
    shop.daemon.wait(CATCH_UP).await?;
    let written = during.stop().await?;
    ensure!(
        written.changes > 0,
        "nothing was written while the snapshot ran"
    );
    shop.ensure_equal(&shop::TABLES).await?;

    let mixed = Style {
        seed: 2,
        pause: Duration::ZERO,
        scale: 20_000,
        changes_max: Some(200_000),
        key_changes: true,
    };
    let written = Workload::start(&shop.postgres, mixed).finish().await?;
    ensure!(written.changes >= 200_000, "only {written:?}");
    shop.ensure_equal(&shop::TABLES).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_transactions_unchanged_toast_key_changes_truncate_and_added_columns_are_equal()
-> Result<()> {
    let shop = Shop::open(500).await?;
    let postgres = &shop.postgres;
    // Bodies of 100 KB, different for each row.
    postgres
        .execute(
            "insert into documents select i, 1, (select string_agg(md5(i || ':' || k), '') from generate_series(1, 3200) k),
             decode(md5(i::text), 'hex') from generate_series(1, 40) i",
        )
        .await?;
    shop.replicate().await?;
    shop.daemon.wait(CATCH_UP).await?;

    // One transaction of 300,000 rows, over two tables.
    postgres
        .execute(
            "begin; insert into ledger select i, 'large ' || i from generate_series(1, 200000) i;
             insert into orders select i, 1, 'new', i / 100.0, now()::timestamp(6), null from generate_series(1000001, 1100000) i; commit",
        )
        .await?;
    shop.ensure_equal(&["public.ledger", "public.orders"])
        .await?;

    // The body does not travel with these updates; the second transaction touches each row twice.
    postgres
        .execute("update documents set version = version + 1")
        .await?;
    postgres
        .execute("begin; update documents set version = 10; update documents set scan = '\\x00' where id % 2 = 0; commit")
        .await?;
    // A key change keeps the unchanged body, also when the old key comes back in the same transaction.
    postgres
        .execute("update documents set id = id + 1000 where id <= 10")
        .await?;
    postgres
        .execute("begin; update documents set id = 2000 where id = 20; insert into documents values (20, 1, 'new body', null); commit")
        .await?;
    postgres
        .execute("update orders set id = id + 5000000 where id between 1000001 and 1001000")
        .await?;
    postgres
        .execute("update order_lines set line = line + 100 where order_id < 100")
        .await?;
    shop.ensure_equal(&["public.documents", "public.orders", "public.order_lines"])
        .await?;

    postgres
        .execute("begin; truncate carts, ledger; insert into ledger values (1, 'after'); commit")
        .await?;
    shop.ensure_equal(&["public.carts", "public.ledger"])
        .await?;

    let load = Workload::start(
        postgres,
        Style {
            scale: 500,
            ..Style::default()
        },
    );
    tokio::time::sleep(Duration::from_millis(500)).await;
    postgres.execute("alter table orders add column channel text default 'web', add column score numeric(6,3)").await?;
    postgres
        .execute("update orders set channel = 'shop', score = 1.5 where id % 3 = 0")
        .await?;
    postgres
        .execute("alter table stock add column seen timestamptz")
        .await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    load.stop().await?;
    // Every row is written again, so that also those from before the column carry its value in the stream.
    postgres
        .execute("update orders set score = coalesce(score, 0)")
        .await?;
    shop.ensure_equal(&[
        "public.orders",
        "public.stock",
        "public.documents",
        "public.order_lines",
    ])
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn log_and_warehouse_in_s3_are_equal_with_the_builtin_catalog() -> Result<()> {
    let server = Seaweed::start().await?;
    let (postgres, daemon, _folder) =
        over_s3(&server, &resources::sink_in_bucket(&server.s3_endpoint())).await?;
    let lake = readers::Lake::builtin_on(&daemon, &server)?;
    readers::ensure_equal(&postgres, &lake, &shop::TABLES).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_external_rest_catalog_is_equal() -> Result<()> {
    let server = Seaweed::start().await?;
    let (postgres, daemon, _folder) =
        over_s3(&server, &resources::sink_in_catalog(&server)).await?;
    readers::ensure_equal(&postgres, &readers::Lake::external(&server), &shop::TABLES).await?;
    drop(daemon);
    Ok(())
}

/// Snapshot under load and 20,000 changes, with the node's own store in S3.
async fn over_s3(server: &Seaweed, sink: &str) -> Result<(Postgres, Daemon, tempfile::TempDir)> {
    let postgres = Postgres::start().await?;
    shop::create(&postgres).await?;
    shop::fill(&postgres, 2_000).await?;
    shop::fill_types(&postgres).await?;
    let folder = tempfile::Builder::new()
        .prefix("downriver-e2e-")
        .tempdir()?;
    let mut daemon =
        Daemon::new(folder.path())?.with_store(&e2e::store_in_s3(&server.s3_endpoint()));
    daemon.start().await?;
    let load = Workload::start(
        &postgres,
        Style {
            scale: 2_000,
            changes_max: Some(20_000),
            ..Style::default()
        },
    );
    let yaml = resources::source(&postgres, &["public.*"], &[]) + sink + &resources::pipeline("1s");
    daemon.apply(&yaml).await?;
    load.finish().await?;
    daemon.wait(CATCH_UP).await?;
    Ok((postgres, daemon, folder))
}
