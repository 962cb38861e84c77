//! A disk with hardly any room: what its node does before nothing fits any more.

use anyhow::{Result, ensure};
use downriver_testkit::cluster::Machines;
use downriver_testkit::daemon::http_get;
use downriver_testkit::host;
use downriver_testkit::workload::{Style, Workload};
use fault::{CATCH_UP, ClusteredShop};
use serde_json::Value;

const SOURCE: &str = "source/shop";
/// Too little for entries, and enough for votes.
const LEFT_MIB: u64 = 48;

/// What a node is said to be by another one.
async fn listed(shop: &ClusteredShop, asked: usize, index: usize) -> Result<Value> {
    let nodes = shop.cluster.listed(asked).await?;
    let name = format!("n{}", index + 1);
    let node = nodes.into_iter().find(|node| node["name"] == name);
    Ok(node.unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_leads_steps_aside_and_takes_nothing_until_there_is_room() -> Result<()> {
    let shop = ClusteredShop::open_on(Machines::ToHurt, 50).await?;
    if shop.cluster.nodes[0].disk().is_none() {
        return Ok(());
    }
    shop.deliver(0).await?;
    shop.ensure_equal(0).await?;
    let style = Style {
        scale: 50,
        ..Style::default()
    };
    let workload = Workload::start(&shop.postgres, style);
    let full = shop.cluster.leader(0).await?;
    let other = (full + 1) % 3;
    let disk = shop.cluster.nodes[full].disk().expect("all have one");
    disk.leave(LEFT_MIB)?;

    host::until(
        "another to lead and to run everything",
        CATCH_UP,
        async || {
            let leads = shop.cluster.leader(other).await? != full;
            let runs = listed(&shop, other, full).await?["runs"].clone();
            Ok(leads && runs == serde_json::json!([]))
        },
    )
    .await?;
    ensure!(shop.cluster.owner(other, SOURCE).await? != full);
    let http = &shop.cluster.nodes[full].addresses()?.http;
    let (status, said) = http_get(http, "/readyz").await?;
    ensure!(status == 503 && said.contains("is full"), "{status} {said}");
    let (_, metrics) = http_get(http, "/metrics").await?;
    for line in [
        "downriver_node_problem 1",
        "downriver_node_leads 0",
        "downriver_node_hears_leader 1",
    ] {
        ensure!(metrics.contains(line), "{line}: {metrics}");
    }
    // Changes flow without it, and it has less and less of them.
    let before = shop.tail(other).await?;
    host::until("it to lack what is logged now", CATCH_UP, async || {
        let node = listed(&shop, other, full).await?;
        let lacks = node["behind"].as_u64().is_some_and(|behind| behind > 50);
        Ok(lacks && node["code"] == "DR-1103" && shop.tail(other).await? > before + 100)
    })
    .await?;

    disk.make_room()?;
    host::until("it to have everything again", CATCH_UP, async || {
        let node = listed(&shop, other, full).await?;
        let (status, _) = http_get(http, "/readyz").await?;
        let has = node["behind"].as_u64().is_some_and(|behind| behind < 50);
        Ok(status == 200 && node["code"].is_null() && has)
    })
    .await?;
    workload.stop().await?;
    shop.ensure_equal(full).await?;
    // As before: it may lead again.
    let name = format!("n{}", full + 1);
    host::until("it to lead again", CATCH_UP, async || {
        if shop.cluster.leader(other).await? == full {
            return Ok(true);
        }
        let transfer = ["cluster", "transfer-leader", &name];
        let answer = shop.cluster.nodes[other].run(&transfer).await?;
        ensure!(answer.code == Some(0), "{}", answer.text());
        Ok(false)
    })
    .await?;
    shop.ensure_equal(other).await
}
