//! A cluster of three nodes over real servers.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use downriver_testkit::workload::{Style, Workload};
use downriver_testkit::{host, resources};
use fault::{ClusteredShop, Gap};

const SOURCE: &str = "source/shop";

/// A node other than this one.
fn another(than: usize) -> usize {
    (than + 1) % 3
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_node_answers_and_one_captures() -> Result<()> {
    let shop = ClusteredShop::open(50).await?;
    let leader = shop.cluster.leader(0).await?;
    for asked in 0..3 {
        let listed = shop.cluster.listed(asked).await?;
        ensure!(listed.len() == 3, "node {asked} lists {listed:?}");
        ensure!(shop.cluster.leader(asked).await? == leader);
    }
    shop.deliver(another(leader)).await?;
    for asked in 0..3 {
        shop.ensure_equal(asked).await?;
        let described = shop.cluster.nodes[asked]
            .describe("source", resources::SOURCE)
            .await?;
        ensure!(
            described["state"] == "streaming",
            "node {asked}: {described}"
        );
    }
    let owner = shop.cluster.owner(0, SOURCE).await?;
    for asked in 0..3 {
        ensure!(shop.cluster.owner(asked, SOURCE).await? == owner);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_node_ran_goes_on_with_another_and_the_node_comes_back() -> Result<()> {
    let mut shop = ClusteredShop::open(50).await?;
    shop.deliver(0).await?;
    shop.ensure_equal(0).await?;
    for round in 0..3 {
        let style = Style {
            seed: round,
            scale: 50,
            ..Style::default()
        };
        let workload = Workload::start(&shop.postgres, style);
        tokio::time::sleep(Duration::from_secs(1)).await;
        let leader = shop.cluster.leader(0).await?;
        let owner = shop.cluster.owner(0, SOURCE).await?;
        // The owner, the leader where it is another, and the owner again.
        let killed = if round == 1 && leader != owner {
            leader
        } else {
            owner
        };
        let asked = another(killed);
        let before = shop.tail(asked).await?;
        shop.cluster.nodes[killed].kill();
        let since = Instant::now();
        host::until(
            "changes to flow again",
            Duration::from_secs(30),
            async || Ok(shop.tail(asked).await? > before + 100),
        )
        .await?;
        println!(
            "round {round}: killed n{} (owner n{}, leader n{}), flows again after {:?}",
            killed + 1,
            owner + 1,
            leader + 1,
            since.elapsed()
        );
        workload.stop().await?;
        shop.ensure_equal(asked).await?;
        shop.cluster.nodes[killed]
            .start()
            .await
            .context("the node that was killed")?;
        shop.ensure_equal(killed).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_told_to_stop_hands_over_what_it_runs_and_its_lead() -> Result<()> {
    let mut shop = ClusteredShop::open(50).await?;
    shop.deliver(0).await?;
    shop.ensure_equal(0).await?;
    for round in 0..3 {
        let style = Style {
            seed: round,
            scale: 50,
            ..Style::default()
        };
        let workload = Workload::start(&shop.postgres, style);
        let leader = shop.cluster.leader(0).await?;
        let owner = shop.cluster.owner(0, SOURCE).await?;
        let stopped = if round == 1 { leader } else { owner };
        let asked = another(stopped);
        let watched = Gap::watch(&shop, asked);
        shop.cluster.nodes[stopped].stop()?;
        tokio::time::sleep(Duration::from_secs(3)).await;
        let gap = watched.longest().await?;
        let log = std::fs::read_to_string(shop.cluster.nodes[stopped].log())?;
        ensure!(log.contains("everything was handed over"), "{log}");
        ensure!(
            log.contains("leadership was handed over") == (stopped == leader),
            "{log}"
        );
        println!(
            "round {round}: stopped n{} (owner n{}, leader n{}), no change came for {gap:?}",
            stopped + 1,
            owner + 1,
            leader + 1,
        );
        workload.stop().await?;
        shop.ensure_equal(asked).await?;
        shop.cluster.nodes[stopped].start().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_that_was_frozen_changes_nothing_when_it_goes_on() -> Result<()> {
    let shop = ClusteredShop::open(50).await?;
    shop.deliver(0).await?;
    shop.ensure_equal(0).await?;
    for round in 0..2 {
        let style = Style {
            seed: round,
            scale: 50,
            ..Style::default()
        };
        let workload = Workload::start(&shop.postgres, style);
        tokio::time::sleep(Duration::from_secs(1)).await;
        let owner = shop.cluster.owner(0, SOURCE).await?;
        let asked = another(owner);
        let before = shop.tail(asked).await?;
        shop.cluster.nodes[owner].freeze()?;
        let since = Instant::now();
        host::until(
            "changes to flow again",
            Duration::from_secs(60),
            async || Ok(shop.tail(asked).await? > before + 100),
        )
        .await?;
        println!("round {round}: flows again after {:?}", since.elapsed());
        tokio::time::sleep(Duration::from_secs(10)).await;
        shop.cluster.nodes[owner].thaw()?;
        tokio::time::sleep(Duration::from_secs(5)).await;
        workload.stop().await?;
        shop.ensure_equal(asked).await?;
        shop.ensure_equal(owner).await?;
    }
    Ok(())
}
