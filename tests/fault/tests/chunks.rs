//! Snapshots of which other nodes read chunks for the one that captures.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use downriver_testkit::mysql::{Mysql, Product};
use downriver_testkit::workload::{Style, Workload};
use downriver_testkit::{Cluster, host, resources};
use fault::{CATCH_UP, ClusteredShop};

/// Without the colours of a terminal.
fn plain(text: &str) -> String {
    let mut parts = text.split("\u{1b}[");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |plain, part| {
        plain + part.split_once('m').map_or(part, |(_, rest)| rest)
    })
}

/// What nodes have read for another one, as they say when it asks no more: rows by node.
fn read_for_others(cluster: &Cluster, source: &str) -> Result<Vec<u64>> {
    let mut counts = Vec::new();
    for node in &cluster.nodes {
        let log = plain(&std::fs::read_to_string(node.log())?);
        let said = log.lines().filter(|line| {
            line.contains("read chunks for another node")
                && line.contains(&format!("source=\"{source}\""))
        });
        let rows = said.filter_map(|line| {
            let (_, rows) = line.split_once("rows=")?;
            rows.split_whitespace().next()?.parse::<u64>().ok()
        });
        counts.push(rows.sum());
    }
    Ok(counts)
}

async fn capture(shop: &ClusteredShop, snapshot: &str) -> Result<()> {
    let options = format!("snapshot: {{ {snapshot} }}");
    let yaml = [
        resources::source(&shop.postgres, &["public.*"], &[&options]),
        resources::sink_in_bucket(&shop.store.s3_endpoint()),
        resources::pipeline("1s"),
    ];
    shop.cluster.nodes[0].apply(&yaml.concat()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_node_reads_chunks_of_a_snapshot_beside_the_stream() -> Result<()> {
    let shop = ClusteredShop::open(400).await?;
    let style = Style {
        seed: 1,
        scale: 400,
        ..Style::default()
    };
    let workload = Workload::start(&shop.postgres, style);
    capture(&shop, "mode: initial, chunk_rows: 50, max_workers: 3").await?;
    shop.cluster.nodes[0]
        .until_described(
            "source",
            resources::SOURCE,
            "the snapshot",
            CATCH_UP,
            |source| source["state"] == "streaming",
        )
        .await?;
    workload.stop().await?;
    shop.ensure_equal(0).await?;
    let owner = shop.cluster.owner(0, "source/shop").await?;
    let read = read_for_others(&shop.cluster, "shop")?;
    for (node, rows) in read.iter().enumerate() {
        ensure!(
            (*rows > 0) == (node != owner),
            "n{} captures, and these were read for it: {read:?}",
            owner + 1
        );
    }
    shop.cluster.nodes[0]
        .ok(&["verify", resources::PIPELINE])
        .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_lost_node_was_to_read_is_read_by_the_one_that_captures() -> Result<()> {
    let mut shop = ClusteredShop::open(400).await?;
    let style = Style {
        seed: 2,
        scale: 400,
        ..Style::default()
    };
    let workload = Workload::start(&shop.postgres, style);
    // So slow that there is time to lose nodes.
    capture(
        &shop,
        "mode: initial, chunk_rows: 20, max_workers: 3, rows_per_second: 100",
    )
    .await?;
    let owner = shop.cluster.owner(0, "source/shop").await?;
    let rows_done = async || {
        let source = shop.cluster.nodes[owner]
            .describe("source", resources::SOURCE)
            .await?;
        let tables = source["tables"].as_array().context("tables")?;
        let done = tables
            .iter()
            .filter_map(|table| table["snapshot"]["rows_done"].as_u64());
        anyhow::Ok(done.sum::<u64>())
    };
    host::until("chunks to join", CATCH_UP, async || {
        Ok(rows_done().await? > 100)
    })
    .await?;
    let (killed, frozen) = ((owner + 1) % 3, (owner + 2) % 3);
    shop.cluster.nodes[killed].kill();
    let log = shop.cluster.nodes[owner].log();
    let given_up = |times: usize| {
        let log = std::fs::read_to_string(&log)?;
        anyhow::Ok(log.matches("reads no chunks for this one any more").count() == times)
    };
    host::until(
        "the node that was killed to be given up",
        CATCH_UP,
        async || given_up(1),
    )
    .await?;
    shop.cluster.nodes[killed].start().await?;
    shop.cluster.nodes[frozen].freeze()?;
    host::until(
        "the node that is frozen to be given up",
        CATCH_UP,
        async || given_up(2),
    )
    .await?;
    shop.cluster.nodes[frozen].thaw()?;
    workload.stop().await?;
    let owner = shop.cluster.owner(killed, "source/shop").await?;
    shop.ensure_equal(owner).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_nodes_read_chunks_of_mysql_and_mariadb_too() -> Result<()> {
    for product in [Product::Mysql9, Product::Mariadb11] {
        let mysql = Mysql::start(product).await?;
        mysql.create_capture_user().await?;
        mysql
            .execute(
                "create table one (id int primary key, what text);
                 create table Two (id int primary key, what text);
                 insert into one select seq, concat('one ', seq) from (with recursive n as (select 1 as seq union all select seq + 1 from n where seq < 900) select seq from n) as numbers;
                 insert into Two select id, concat('two ', id) from one",
            )
            .await?;
        let shop = ClusteredShop::open(0).await?;
        let snapshot = "snapshot: { mode: initial, chunk_rows: 100, max_workers: 2 }";
        let yaml = [
            resources::mysql_source(&mysql, &["shop.*"], &[snapshot]),
            resources::sink_in_bucket(&shop.store.s3_endpoint()),
            resources::pipeline("1s"),
        ];
        let node = &shop.cluster.nodes[0];
        node.apply(&yaml.concat()).await?;
        node.wait(CATCH_UP).await?;
        mysql
            .execute("update one set what = 'streamed' where id % 7 = 0; delete from Two where id % 9 = 0")
            .await?;
        node.wait(CATCH_UP).await?;
        let verified = node
            .json(&["verify", resources::PIPELINE, "-o", "json"])
            .await?;
        let verdicts = verified.as_array().context("a list")?;
        ensure!(
            verdicts.len() == 2 && verdicts.iter().all(|verdict| verdict["equal"] == true),
            "{verified}"
        );
        // It is said when the stream between the nodes ends.
        host::until(
            "the other node to say what it read",
            Duration::from_secs(20),
            async || Ok(read_for_others(&shop.cluster, "shop")?.iter().sum::<u64>() >= 900),
        )
        .await?;
    }
    Ok(())
}
