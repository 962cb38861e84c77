//! A value that the log cannot hold stops its table, and no other.

use anyhow::{Result, ensure};
use downriver_testkit::readers::{self, Lake};
use downriver_testkit::{daemon, resources, shop};
use e2e::{CATCH_UP, Shop};
use serde_json::Value;

async fn until_carts(shop: &Shop, what: &str, state: &str, code: Option<&str>) -> Result<Value> {
    let is_so = |source: &Value| {
        let tables = source["tables"].as_array();
        let mut carts = tables.into_iter().flatten();
        let carts = carts.find(|table| table["table"] == "public.carts");
        carts.is_some_and(|carts| carts["state"] == state && carts["code"].as_str() == code)
    };
    shop.daemon
        .until_described("source", resources::SOURCE, what, CATCH_UP, is_so)
        .await
}

async fn ensure_others_equal(shop: &Shop) -> Result<()> {
    let change = "update customers set name = name || '!' where id % 3 = 0";
    shop.postgres.execute(change).await?;
    shop.daemon.wait(CATCH_UP).await?;
    let others = shop::TABLES
        .iter()
        .filter(|table| **table != "public.carts");
    let others: Vec<&str> = others.copied().collect();
    readers::ensure_equal(&shop.postgres, &Lake::builtin(&shop.daemon)?, &others).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_that_cannot_be_logged_stops_its_table_alone_until_it_is_corrected() -> Result<()> {
    let mut shop = Shop::open(300).await?;
    shop.deliver("1s").await?;
    shop.ensure_lake_equal().await?;
    // In a transaction with others, of which nothing is lost.
    let spoil = "begin; insert into carts values (-1, null, timestamp '294276-12-31'); update products set title = 'beside'; commit";
    shop.postgres.execute(spoil).await?;
    until_carts(&shop, "the table to be refused", "refused", Some("DR-1043")).await?;
    let address = &shop.daemon.addresses()?.http;
    let (_, metrics) = daemon::http_get(address, "/metrics").await?;
    for line in [
        "downriver_source_tables{source=\"shop\",state=\"refused\"} 1",
        "downriver_pipeline_tables{pipeline=\"shop-to-lake\",state=\"stopped\"} 0",
        "downriver_source_slot_retained_bytes{source=\"shop\"} ",
        "downriver_source_warning{source=\"shop\"} 0",
    ] {
        ensure!(metrics.contains(line), "{line}: {metrics}");
    }
    ensure_others_equal(&shop).await?;

    let ask = [
        "resnapshot",
        resources::PIPELINE,
        "--tables",
        "public.carts",
    ];
    let correct = "delete from carts where id = -1";
    shop.postgres.execute(correct).await?;
    shop.daemon.ok(&ask).await?;
    shop.ensure_lake_equal().await?;
    // With nothing beside it that would be stored: it does not come again.
    let alone = "insert into carts values (-1, null, timestamp '294276-12-31')";
    shop.postgres.execute(alone).await?;
    until_carts(&shop, "the table to be refused", "refused", Some("DR-1043")).await?;
    shop.postgres.execute(correct).await?;
    shop.daemon.ok(&ask).await?;
    shop.ensure_lake_equal().await?;

    // Without the memory of it the table is read, as changes of it were left out.
    shop.postgres.execute(spoil).await?;
    until_carts(&shop, "the table to be refused", "refused", Some("DR-1043")).await?;
    // The log is past the row: else that comes again.
    shop.daemon.wait(CATCH_UP).await?;
    shop.daemon.kill();
    shop.daemon.start().await?;
    until_carts(&shop, "the snapshot to stop", "stopped", Some("DR-1043")).await?;
    shop.postgres.execute(correct).await?;
    shop.daemon.ok(&ask).await?;
    shop.ensure_lake_equal().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_over_the_limit_stops_its_table_alone() -> Result<()> {
    let shop = Shop::open(100).await?;
    shop.deliver("1s").await?;
    shop.ensure_lake_equal().await?;
    let spoil = "insert into carts values (-1, to_json(repeat('x', 67108864)), null)";
    shop.postgres.execute(spoil).await?;
    let source = until_carts(&shop, "the table to be refused", "refused", Some("DR-1041")).await?;
    ensure!(source["state"] == "streaming", "{source}");
    ensure_others_equal(&shop).await
}
