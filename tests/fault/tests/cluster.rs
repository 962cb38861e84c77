//! A cluster of three nodes over real servers.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use downriver_api::log::v1 as pb;
use downriver_testkit::link::Mode;
use downriver_testkit::workload::{Style, Workload};
use downriver_testkit::{host, resources};
use fault::bank::Transfers;
use fault::world::NODES;
use fault::{ClusteredShop, Gap, World};

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
        let watched = Gap::watch(&shop.cluster.nodes[asked]);
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_are_added_and_removed_while_changes_flow() -> Result<()> {
    let mut shop = ClusteredShop::open(50).await?;
    shop.deliver(0).await?;
    let style = Style {
        scale: 50,
        ..Style::default()
    };
    let workload = Workload::start(&shop.postgres, style);
    let node = shop.cluster.add()?;
    node.start().await?;
    let listed = shop.cluster.listed(3).await?;
    ensure!(listed.len() == 4, "{listed:?}");
    let learner = |node: &serde_json::Value| node["name"] == "n4" && node["state"] == "learner";
    ensure!(
        listed.iter().any(learner),
        "an even number of voters is of no use: {listed:?}"
    );

    // The owner goes for good, and the new node votes instead of it.
    let owner = shop.cluster.owner(3, SOURCE).await?;
    if shop.cluster.leader(3).await? == owner {
        shop.cluster.nodes[3]
            .ok(&["cluster", "transfer-leader"])
            .await?;
    }
    let name = format!("n{}", owner + 1);
    shop.cluster.nodes[3]
        .ok(&["cluster", "remove", &name])
        .await?;
    host::until(
        "the new node to vote",
        Duration::from_secs(30),
        async || {
            let listed = shop.cluster.listed(3).await?;
            let votes = |node: &serde_json::Value| {
                node["name"] == "n4" && (node["state"] == "voter" || node["state"] == "leader")
            };
            Ok(listed.len() == 3 && listed.iter().any(votes))
        },
    )
    .await?;
    // It ends, and does not come back with its folder.
    for times in 1..=2 {
        host::until(
            "the removed node to end",
            Duration::from_secs(30),
            async || Ok(!shop.cluster.nodes[owner].is_running()),
        )
        .await?;
        let log = std::fs::read_to_string(shop.cluster.nodes[owner].log())?;
        ensure!(log.matches("DR-1108").count() == times, "{log}");
        shop.cluster.nodes[owner].kill();
        shop.cluster.nodes[owner].launch()?;
    }
    workload.stop().await?;
    shop.ensure_equal(3).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_and_a_dead_node_are_replaced_while_changes_flow() -> Result<()> {
    let mut shop = ClusteredShop::open(50).await?;
    shop.deliver(0).await?;
    let style = Style {
        scale: 50,
        ..Style::default()
    };
    let workload = Workload::start(&shop.postgres, style);
    let mut left = vec![0, 1, 2];
    for new in [3, 4] {
        let old = if new == 3 {
            shop.cluster.leader(left[0]).await?
        } else {
            shop.cluster.nodes[left[0]].kill();
            left[0]
        };
        left.retain(|node| *node != old);
        // It knows the others, and comes in by itself.
        shop.cluster.add()?.start().await?;
        let address = shop.cluster.address(new);
        let name = format!("n{}", old + 1);
        let said = shop.cluster.nodes[left[0]]
            .ok(&["cluster", "replace", &name, &address])
            .await?;
        println!("{said}");
        left.push(new);
        for asked in &left {
            let listed = shop.cluster.listed(*asked).await?;
            let votes =
                |node: &serde_json::Value| node["state"] == "voter" || node["state"] == "leader";
            ensure!(
                listed.len() == 3 && listed.iter().all(votes),
                "n{}: {listed:?}",
                asked + 1
            );
        }
    }
    workload.stop().await?;
    for asked in left {
        shop.ensure_equal(asked).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_groups_cursor_outlasts_the_leader_and_a_stale_member_is_fenced() -> Result<()> {
    let mut shop = ClusteredShop::open(50).await?;
    shop.deliver(0).await?;
    shop.ensure_equal(0).await?;
    let leader = shop.cluster.leader(0).await?;
    let (one, other) = (another(leader), another(another(leader)));
    let mut first = shop.log_client(one).await?;
    let taken = first.fetch_offset(take("one")).await?.into_inner();
    ensure!(taken.cursor.is_none(), "{taken:?}");
    let cursor = |offset| {
        Some(pb::GroupCursor {
            incarnation: 1,
            offset,
        })
    };
    let commit = |epoch, expected, offset| pb::CommitOffsetRequest {
        source: resources::SOURCE.into(),
        group: "readers".into(),
        epoch,
        expected,
        cursor: cursor(offset),
    };
    first.commit_offset(commit(taken.epoch, None, 7)).await?;
    shop.cluster.nodes[leader].kill();
    let mut second = shop.log_client(other).await?;
    let mut taken_over = pb::FetchOffsetResponse::default();
    host::until("a new leader", Duration::from_secs(30), async || {
        taken_over = second.fetch_offset(take("two")).await?.into_inner();
        Ok(true)
    })
    .await?;
    ensure!(
        taken_over.cursor == cursor(7) && taken_over.epoch > taken.epoch,
        "{taken_over:?}"
    );
    let stale = first
        .commit_offset(commit(taken.epoch, cursor(7), 9))
        .await
        .err();
    let stale = stale.context("the stale member was fenced")?;
    ensure!(stale.message().contains("has member \"two\""), "{stale}");
    second
        .commit_offset(commit(taken_over.epoch, cursor(7), 9))
        .await?;
    let groups = shop.cluster.nodes[one]
        .json(&["get", "groups", "-o", "json"])
        .await?;
    ensure!(
        groups[0]["offset"] == 9 && groups[0]["member"] == "two",
        "{groups}"
    );
    Ok(())
}

fn take(member: &str) -> pb::FetchOffsetRequest {
    pb::FetchOffsetRequest {
        source: resources::SOURCE.into(),
        group: "readers".into(),
        take: true,
        member: member.into(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_are_far_from_each_other_go_on() -> Result<()> {
    let mut world = World::open().await?;
    // Longer than Raft waits for an answer, both ways together.
    let far = Mode::Delay(Duration::from_millis(150));
    for link in &world.links.nodes {
        for caller in 0..NODES {
            link.set(caller, far);
        }
    }
    let transfers = Transfers::start(&world.postgres, 1);
    tokio::time::sleep(Duration::from_secs(3)).await;
    for node in 0..NODES {
        // Also one that has just come back finds out what it has missed.
        world.cluster.nodes[node].kill();
        world.cluster.nodes[node].launch()?;
        world.know_callers();
        let node = &mut world.cluster.nodes[node];
        node.until_ready(Duration::from_secs(60)).await?;
    }
    ensure!(transfers.stop().await? > 100);
    for node in &world.cluster.nodes {
        node.wait(Duration::from_secs(60)).await?;
    }
    Ok(())
}
