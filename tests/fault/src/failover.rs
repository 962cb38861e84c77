//! How long nothing comes after a node is killed, as a subscriber of another node sees it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use downriver_testkit::{host, resources};

use crate::bank::Transfers;
use crate::gap::Gap;
use crate::world::{NODES, SOURCE, World};

/// Who is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Of the source; another node leads.
    Owner,
    /// Another node owns the source.
    Leader,
    /// Owner and leader in one.
    Both,
}

/// Kills the node that has the role, under load, and brings it back. The longest time without a change.
pub async fn kill(world: &mut World, role: Role) -> Result<Duration> {
    let (owner, leader) = cast(world, role).await?;
    let killed = match role {
        Role::Leader => leader,
        _ => owner,
    };
    let watched = (0..NODES).find(|node| *node != owner && *node != leader);
    let watched = watched.context("a node that is neither")?;
    let transfers = Transfers::start(&world.postgres, 7);
    let gap = Gap::watch(&world.cluster.nodes[watched]);
    tokio::time::sleep(Duration::from_millis(700)).await;
    world.cluster.nodes[killed].kill();
    let before = tail(world, watched).await?;
    let began = Instant::now();
    host::until(
        "changes to flow again",
        Duration::from_secs(30),
        async || {
            // What was under way when it was killed does not count.
            Ok(began.elapsed() > Duration::from_millis(200)
                && tail(world, watched).await? > before + 20)
        },
    )
    .await?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let longest = gap.longest().await?;
    transfers.stop().await?;
    world.heal().await?;
    world.cluster.nodes[watched]
        .wait(Duration::from_secs(60))
        .await?;
    Ok(longest)
}

/// Lets owner and leader be one node or two, as the role asks.
async fn cast(world: &mut World, role: Role) -> Result<(usize, usize)> {
    let owner = world.cluster.owner(0, SOURCE).await?;
    let leader = world.cluster.leader(0).await?;
    let wanted = match (role, owner == leader) {
        (Role::Both, false) => owner,
        (Role::Owner | Role::Leader, true) => (owner + 1) % NODES,
        _ => return Ok((owner, leader)),
    };
    let name = format!("n{}", wanted + 1);
    world.cluster.nodes[0]
        .ok(&["cluster", "transfer-leader", &name])
        .await?;
    let leader = world.cluster.leader(0).await?;
    ensure!(leader == wanted, "{name} does not lead");
    Ok((world.cluster.owner(0, SOURCE).await?, leader))
}

async fn tail(world: &World, asked: usize) -> Result<u64> {
    let source = world.cluster.nodes[asked]
        .describe("source", resources::SOURCE)
        .await?;
    Ok(source["next_offset"].as_u64().unwrap_or_default())
}
