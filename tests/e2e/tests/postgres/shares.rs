//! A pipeline whose tables are shared out, on the one node that there is.

use anyhow::{Context, Result, ensure};
use downriver_testkit::workload::{Style, Workload};
use downriver_testkit::{resources, shop};
use e2e::Shop;
use serde_json::Value;

/// Every table has a verdict, and it is a good one.
async fn ensure_verified(shop: &Shop) -> Result<()> {
    let verified = shop
        .daemon
        .json(&["verify", resources::PIPELINE, "-o", "json"])
        .await?;
    let mut tables: Vec<&str> = verified
        .as_array()
        .context("a list")?
        .iter()
        .filter(|verdict| verdict["equal"] == true)
        .filter_map(|verdict| verdict["table"].as_str())
        .collect();
    tables.sort_unstable();
    let mut all = shop::TABLES.to_vec();
    all.sort_unstable();
    ensure!(tables == all, "{verified}");
    Ok(())
}

async fn share_out(shop: &Shop, nodes: u32) -> Result<()> {
    let yaml = format!("{}nodes: {nodes}\n", resources::pipeline("1s"));
    shop.daemon.apply(&yaml).await
}

/// The tasks of the pipeline.
async fn shares(shop: &Shop) -> Result<usize> {
    let nodes = shop.daemon.json(&["get", "nodes", "-o", "json"]).await?;
    let runs = nodes[0]["runs"].as_array().context("what runs")?;
    let of_pipeline = |task: &&Value| {
        task.as_str()
            .is_some_and(|task| task.starts_with("pipeline/"))
    };
    Ok(runs.iter().filter(of_pipeline).count())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_go_from_share_to_share_and_nothing_is_lost_or_doubled() -> Result<()> {
    let mut shop = Shop::open(50).await?;
    // Beside what the node itself keeps there: none of it may be taken for that.
    let sink = resources::sink_in_folder(&shop.daemon.data().join("lake"));
    shop.deliver_to(&sink, "1s").await?;
    shop.ensure_lake_equal().await?;
    for (round, nodes) in [3, 2, 32, 1, 3].into_iter().enumerate() {
        let style = Style {
            seed: round as u64,
            scale: 50,
            ..Style::default()
        };
        let workload = Workload::start(&shop.postgres, style);
        share_out(&shop, nodes).await?;
        // The node's own loop gives tasks to nodes.
        downriver_testkit::host::until("the shares to run", e2e::CATCH_UP, async || {
            Ok(shares(&shop).await? == nodes as usize)
        })
        .await?;
        if nodes == 2 {
            shop.daemon.kill();
            shop.daemon.start().await?;
        }
        workload.stop().await?;
        shop.ensure_lake_equal().await?;
        ensure_verified(&shop).await?;
    }
    let pipeline = shop
        .daemon
        .describe("pipeline", resources::PIPELINE)
        .await?;
    ensure!(pipeline["state"] == "streaming", "{pipeline}");
    ensure!(
        pipeline["delivered_offset"] == pipeline["next_offset"],
        "{pipeline}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_share_that_stands_still_keeps_none_of_the_others_from_going_on() -> Result<()> {
    let shop = Shop::open(50).await?;
    shop.deliver("1s").await?;
    share_out(&shop, 3).await?;
    shop.ensure_lake_equal().await?;
    let paused = shop::TABLES[0];
    for command in ["pause", "resume"] {
        shop.daemon
            .ok(&[command, resources::PIPELINE, "--tables", paused])
            .await?;
        let change = "update customers set name = name || '!' where id % 3 = 0; update orders set note = 'shared' where id % 5 = 0";
        shop.postgres.execute(change).await?;
        shop.daemon.wait(e2e::CATCH_UP).await?;
    }
    shop.ensure_lake_equal().await?;
    ensure_verified(&shop).await?;
    shop.daemon.ok(&["pause", resources::PIPELINE]).await?;
    let waited = shop
        .daemon
        .run(&["wait", resources::PIPELINE, "--for", "caught-up"])
        .await?;
    ensure!(waited.text().contains("DR-2025"), "{}", waited.text());
    shop.daemon.ok(&["resume", resources::PIPELINE]).await?;
    shop.ensure_lake_equal().await
}
