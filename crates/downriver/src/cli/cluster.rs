//! The cluster's nodes: who is in it, and who leads.

use std::time::Duration;

use clap::Subcommand;
use downriver_api::admin::v1 as pb;

use super::client::{Client, Failure};
use super::{Output, backups};

const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How often it is said how far a new node is.
const SAY_EVERY: Duration = Duration::from_secs(5);
/// Entries of the journal that a new node may lack when the old one goes.
const BEHIND_MAX: u64 = 1_000;

#[derive(Subcommand, Debug)]
pub(super) enum ClusterCommand {
    /// Let a running node into the cluster.
    Add {
        /// Where it answers other nodes, host:port.
        address: String,
    },
    /// Take a node out of the cluster for good, alive or not.
    Remove {
        /// Its name or ID.
        node: String,
    },
    /// Let a running node into the cluster, and take another one out when the new one has everything.
    Replace {
        /// The name or ID of the one that goes, alive or not.
        node: String,
        /// Where the new one answers other nodes, host:port.
        address: String,
    },
    /// Put a backup of the cluster into the object store, beside those that are taken by themselves.
    Backup {
        /// Only list those that are there.
        #[arg(long)]
        list: bool,
        #[arg(short, long, default_value = "table")]
        output: Output,
    },
    /// Make a new cluster of a backup, for one whose nodes are gone. Needs no node that runs.
    Restore(backups::Restore),
    /// Let another node lead.
    TransferLeader {
        /// Its name or ID; default: the voter that is closest behind.
        node: Option<String>,
    },
}

pub(super) async fn run(command: ClusterCommand, mut client: Client) -> Result<(), Failure> {
    match command {
        ClusterCommand::Add { address } => {
            let added = add(&mut client, &address).await?;
            println!("the node at {address} was let in as {added}; see downriver get nodes");
        }
        ClusterCommand::Remove { node } => remove(&mut client, &node).await?,
        ClusterCommand::Replace { node, address } => replace(&mut client, &node, &address).await?,
        ClusterCommand::TransferLeader { node } => {
            let leader = transfer(&mut client, node.unwrap_or_default()).await?;
            println!("{leader} leads");
        }
        ClusterCommand::Backup { list, output } => backups::run(&mut client, list, output).await?,
        ClusterCommand::Restore(_) => unreachable!("it needs no client"),
    }
    Ok(())
}

async fn add(client: &mut Client, address: &str) -> Result<u64, Failure> {
    let request = pb::AddNodeRequest {
        address: address.to_owned(),
    };
    Ok(client.admin.add_node(request).await?.into_inner().id)
}

async fn transfer(client: &mut Client, node: String) -> Result<String, Failure> {
    let request = pb::TransferLeaderRequest { node };
    let led = client.admin.transfer_leader(request).await?;
    Ok(led.into_inner().leader)
}

async fn nodes(client: &mut Client) -> Result<Vec<pb::Node>, Failure> {
    let nodes = client.admin.nodes(pb::NodesRequest {}).await?;
    Ok(nodes.into_inner().nodes)
}

fn is_named(node: &pb::Node, name: &str) -> bool {
    node.name == name || node.id.to_string() == name
}

/// A node that leads lets another lead first.
async fn remove(client: &mut Client, name: &str) -> Result<(), Failure> {
    let leads = |node: &pb::Node| node.state == "leader" && is_named(node, name);
    if nodes(client).await?.iter().any(leads) {
        let leader = transfer(client, String::new()).await?;
        println!("{leader} leads");
    }
    let request = pb::RemoveNodeRequest { node: name.into() };
    client.admin.remove_node(request).await?;
    println!("node {name} is out of the cluster");
    Ok(())
}

async fn replace(client: &mut Client, name: &str, address: &str) -> Result<(), Failure> {
    // Before anything is done: a name that is mistyped is no reason to let somebody in.
    let before = nodes(client).await?;
    let old: Vec<_> = before.iter().filter(|node| is_named(node, name)).collect();
    let [old] = old[..] else {
        return Err(Failure::Usage(format!(
            "the cluster has {} nodes that are called {name:?}: see downriver get nodes, and give its ID",
            old.len()
        )));
    };
    let id = add(client, address).await?;
    if id == old.id {
        return Err(Failure::Usage(format!(
            "{name} itself answers at {address}: give the address of the one that takes its place"
        )));
    }
    println!("the node at {address} was let in as {id}");
    let is_there = |node: &pb::Node| match node.behind {
        Some(behind) => behind <= BEHIND_MAX && node.state != "unreachable",
        None => node.state == "leader",
    };
    until(client, id, "it has everything", is_there).await?;
    remove(client, &old.id.to_string()).await?;
    // As many voters as are left need one more, or need none.
    let voters = nodes(client).await?.iter().filter(|n| is_voter(n)).count();
    if voters % 2 == 0 {
        until(client, id, "it votes", is_voter).await?;
    }
    Ok(())
}

fn is_voter(node: &pb::Node) -> bool {
    node.state == "voter" || node.state == "leader"
}

/// Waits until a node is so, and tells how far it is.
async fn until(
    client: &mut Client,
    id: u64,
    what: &str,
    is_so: impl Fn(&pb::Node) -> bool,
) -> Result<(), Failure> {
    let mut said = tokio::time::Instant::now();
    loop {
        let nodes = nodes(client).await?;
        let node = nodes.iter().find(|node| node.id == id);
        if node.is_some_and(&is_so) {
            println!("{what}");
            return Ok(());
        }
        if said.elapsed() >= SAY_EVERY {
            said = tokio::time::Instant::now();
            let now = match node {
                None => "it has not said yet that it is there".to_owned(),
                Some(node) => match node.behind {
                    Some(behind) => format!("{}, {behind} entries behind", node.state),
                    None => node.state.clone(),
                },
            };
            println!("waits until {what}: {now}");
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
