//! A pipeline whose tables are shared out over the nodes.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use downriver_testkit::readers::{self, Lake};
use downriver_testkit::workload::{Style, Workload};
use downriver_testkit::{daemon, host, resources, shop};
use fault::{CATCH_UP, ClusteredShop, share_out};

const SHARES: u32 = 3;

/// The task of a share.
fn task(share: u32) -> String {
    match share {
        0 => format!("pipeline/{}", resources::PIPELINE),
        share => format!("pipeline/{}/{share}", resources::PIPELINE),
    }
}

async fn open() -> Result<ClusteredShop> {
    let shop = ClusteredShop::open(50).await?;
    shop.deliver(0).await?;
    share_out(&shop.cluster.nodes[0], SHARES).await?;
    shop.ensure_equal(0).await?;
    Ok(shop)
}

/// The nodes that run shares, by share.
async fn owners(shop: &ClusteredShop, asked: usize) -> Result<Vec<usize>> {
    let mut owners = Vec::new();
    for share in 0..SHARES {
        owners.push(shop.cluster.owner(asked, &task(share)).await?);
    }
    Ok(owners)
}

/// Waits until changes flow.
async fn until_changes(shop: &ClusteredShop, asked: usize) -> Result<()> {
    let before = shop.tail(asked).await?;
    host::until("changes to flow", CATCH_UP, async || {
        Ok(shop.tail(asked).await? > before + 100)
    })
    .await
}

/// How many tables each node delivers, as its own metrics say.
async fn delivered_by(shop: &ClusteredShop) -> Result<Vec<u64>> {
    let mut counts = Vec::new();
    for node in &shop.cluster.nodes {
        let (_, metrics) = daemon::http_get(&node.addresses()?.http, "/metrics").await?;
        let line = format!(
            "downriver_pipeline_tables{{pipeline=\"{}\",state=\"streaming\"}} ",
            resources::PIPELINE
        );
        let count = metrics.lines().find_map(|found| found.strip_prefix(&line));
        counts.push(count.unwrap_or("0").parse()?);
    }
    Ok(counts)
}

/// Asked of any node, every table has a verdict, and it is a good one.
async fn ensure_verified(shop: &ClusteredShop, asked: usize, tables: &[&str]) -> Result<()> {
    let verified = shop.cluster.nodes[asked]
        .json(&["verify", resources::PIPELINE, "-o", "json"])
        .await?;
    let verdicts = verified.as_array().context("a list")?;
    let good = verdicts.iter().filter(|verdict| verdict["equal"] == true);
    let good: BTreeSet<&str> = good
        .filter_map(|verdict| verdict["table"].as_str())
        .collect();
    ensure!(
        good == tables.iter().copied().collect() && verdicts.len() == tables.len(),
        "n{} says {verified}",
        asked + 1
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_node_delivers_tables_of_its_own_and_any_answers_for_all() -> Result<()> {
    let shop = open().await?;
    let on: BTreeSet<usize> = owners(&shop, 0).await?.into_iter().collect();
    ensure!(on.len() == 3, "shares run on {on:?}");
    let counts = delivered_by(&shop).await?;
    ensure!(
        counts.iter().all(|count| *count >= 3) && counts.iter().sum::<u64>() == 10,
        "{counts:?}"
    );
    for asked in 0..3 {
        let style = Style {
            seed: asked as u64,
            scale: 50,
            ..Style::default()
        };
        let workload = Workload::start(&shop.postgres, style);
        until_changes(&shop, asked).await?;
        workload.stop().await?;
        shop.ensure_equal(asked).await?;
        ensure_verified(&shop, asked, &shop::TABLES).await?;
        let pipeline = shop.cluster.nodes[asked]
            .describe("pipeline", resources::PIPELINE)
            .await?;
        let tables = pipeline["tables"].as_array().context("tables")?;
        ensure!(
            pipeline["state"] == "streaming"
                && tables.len() == shop::TABLES.len()
                && tables.iter().all(|table| table["state"] == "streaming"),
            "n{} says {pipeline}",
            asked + 1
        );
    }
    // Pauses reach every share, and whoever is asked.
    for (asked, command) in [(1, "pause"), (2, "resume")] {
        shop.cluster.nodes[asked]
            .ok(&[command, resources::PIPELINE])
            .await?;
        let state = if command == "pause" {
            "paused"
        } else {
            "streaming"
        };
        shop.cluster.nodes[0]
            .until_described(
                "pipeline",
                resources::PIPELINE,
                state,
                CATCH_UP,
                |pipeline| pipeline["state"] == state,
            )
            .await?;
    }
    shop.ensure_equal(0).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_node_s_share_goes_on_with_another_and_comes_back_to_it() -> Result<()> {
    let mut shop = open().await?;
    for round in 0..2 {
        let style = Style {
            seed: round,
            scale: 50,
            ..Style::default()
        };
        let workload = Workload::start(&shop.postgres, style);
        until_changes(&shop, 0).await?;
        let before = owners(&shop, 0).await?;
        let source = shop.cluster.owner(0, "source/shop").await?;
        ensure!(before[0] == source, "the first share runs with its source");
        // One with a share alone, and the one that answers for the pipeline.
        let killed = if round == 0 { before[1] } else { source };
        let asked = (killed + 1) % 3;
        shop.cluster.nodes[killed].kill();
        host::until("others to have it", CATCH_UP, async || {
            Ok(owners(&shop, asked)
                .await
                .is_ok_and(|now| !now.contains(&killed)))
        })
        .await?;
        workload.stop().await?;
        shop.ensure_equal(asked).await?;
        ensure_verified(&shop, asked, &shop::TABLES).await?;
        shop.cluster.nodes[killed].start().await?;
        host::until("the nodes to have one each", CATCH_UP, async || {
            let now = owners(&shop, asked).await?;
            Ok(now.iter().collect::<BTreeSet<_>>().len() == 3)
        })
        .await?;
        shop.ensure_equal(killed).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_moves_between_tables_of_two_nodes_is_one_node_s() -> Result<()> {
    let shop = open().await?;
    // As a tool does that rebuilds tables: beside, and then under the name.
    let mut tables = shop::TABLES.to_vec();
    tables.push("public._orders_old");
    for round in 0..3 {
        let rebuild = format!(
            "drop table if exists _orders_old;
             create table _orders_new (like orders including all);
             alter table _orders_new owner to shop_owner;
             insert into _orders_new select * from orders;
             begin;
             alter table orders rename to _orders_old;
             alter table _orders_new rename to orders;
             update orders set note = 'rebuilt {round}' where id % 2 = 0;
             commit;
             update orders set note = note || '!' where id % 3 = 0"
        );
        shop.postgres.execute(&rebuild).await?;
        let node = &shop.cluster.nodes[round % 3];
        node.wait(CATCH_UP).await?;
        let lake = Lake::builtin_on(node, &shop.store)?;
        readers::ensure_equal(&shop.postgres, &lake, &tables)
            .await
            .with_context(|| format!("round {round}"))?;
        ensure_verified(&shop, round % 3, &tables).await?;
    }
    Ok(())
}
