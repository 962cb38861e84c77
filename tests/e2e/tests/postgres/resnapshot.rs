//! Snapshots that are taken again: asked for, or because a change of a table filled rows without saying so.

use anyhow::{Result, ensure};
use downriver_testkit::workload::{Style, Workload};
use downriver_testkit::{daemon, resources};
use e2e::{CATCH_UP, Shop};
use serde_json::Value;

fn load(shop: &Shop, scale: u32) -> Workload {
    let style = Style {
        scale,
        ..Style::default()
    };
    Workload::start(&shop.postgres, style)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_taken_again_under_load_repairs_what_the_stream_did_not_bring() -> Result<()> {
    let shop = Shop::open(5_000).await?;
    shop.deliver("1s").await?;
    shop.ensure_lake_equal().await?;
    // Behind the back of the stream: new, changed and deleted rows.
    let unseen_products = "delete from products where hashtext(sku) % 10 = 1;
         update products set title = 'unseen' where hashtext(sku) % 10 = 2;
         insert into products select 'unseen-' || i, 'new', 1 from generate_series(1, 60) i";
    shop.change_unseen("products", unseen_products).await?;
    let unseen_customers = "update customers set name = 'unseen' where id % 7 = 0";
    shop.change_unseen("customers", unseen_customers).await?;
    shop.daemon.wait(CATCH_UP).await?;
    let verified = shop.daemon.run(&["verify", resources::PIPELINE]).await?;
    ensure!(verified.code == Some(1), "{}", verified.text());

    let during = load(&shop, 5_000);
    let answer = shop
        .daemon
        .json(&[
            "resnapshot",
            resources::PIPELINE,
            "--tables",
            "public.products,public.customers",
            "-o",
            "json",
        ])
        .await?;
    ensure!(
        answer["tables"][0]["table"] == "public.customers",
        "{answer}"
    );
    ensure!(answer["tables"][1]["generation"] == 2, "{answer}");
    shop.daemon.wait(CATCH_UP).await?;
    during.stop().await?;
    shop.ensure_lake_equal().await?;
    shop.daemon.ok(&["verify", resources::PIPELINE]).await?;

    let wrong = [
        "resnapshot",
        resources::PIPELINE,
        "--tables",
        "public.nothing",
    ];
    let refused = shop.daemon.run(&wrong).await?;
    ensure!(
        refused.code == Some(1) && refused.text().contains("DR-2023"),
        "{}",
        refused.text()
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_taken_again_goes_on_after_kills() -> Result<()> {
    let mut shop = Shop::open(20_000).await?;
    shop.deliver("1s").await?;
    shop.ensure_lake_equal().await?;
    shop.change_unseen("orders", "delete from orders where id % 50 = 1")
        .await?;
    let during = load(&shop, 20_000);
    shop.daemon.ok(&["resnapshot", resources::PIPELINE]).await?;
    for _ in 0..3 {
        let is_read = |source: &Value| {
            daemon::table_in(source, "public.orders").is_some_and(|t| t["state"] == "snapshotting")
        };
        let described = shop.daemon.describe("source", resources::SOURCE).await?;
        println!("killed while it is read: {}", is_read(&described));
        shop.daemon.kill();
        shop.daemon.start().await?;
    }
    shop.daemon.wait(CATCH_UP).await?;
    during.stop().await?;
    shop.ensure_lake_equal().await?;
    shop.daemon.ok(&["verify", resources::PIPELINE]).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn columns_that_fill_rows_without_events_are_read_again() -> Result<()> {
    let mut shop = Shop::open(3_000).await?;
    shop.deliver("1s").await?;
    shop.ensure_lake_equal().await?;
    let during = load(&shop, 3_000);
    for change in [
        // Kept in the catalog, written into every row, and drawn for every row.
        "alter table customers add column tier text default 'bronze'",
        "alter table customers alter column tier set default 'silver'",
        "alter table products add column token uuid default gen_random_uuid()",
        "alter table orders add column serial bigint generated always as identity",
        "update customers set name = name || '!' where id < 10",
        "update products set title = title || '!' where hashtext(sku) % 10 = 3",
        "update orders set total = total + 1 where id < 10",
    ] {
        shop.postgres.execute(change).await?;
    }
    during.stop().await?;
    shop.ensure_lake_equal().await?;

    // A backlog: dropped and added under the same name, and two names that change places.
    shop.daemon.kill();
    for change in [
        "update customers set tier = 'gold' where id % 3 = 0",
        "alter table customers drop column tier",
        "alter table customers add column tier text default 'new'",
        "update customers set name = name || '?' where id < 10",
        "alter table products add column first text, add column second text",
        "update products set first = 'one ' || sku, second = 'two ' || sku where hashtext(sku) % 2 = 0",
        "begin; alter table products rename column first to third; alter table products rename column second to first;
         alter table products rename column third to second; commit",
        "update products set title = title || '?', first = 'swapped' where hashtext(sku) % 4 = 0",
    ] {
        shop.postgres.execute(change).await?;
    }
    shop.daemon.start().await?;
    shop.ensure_lake_equal().await?;
    shop.daemon.ok(&["verify", resources::PIPELINE]).await?;
    Ok(())
}
