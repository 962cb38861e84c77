//! The cluster's nodes: who is in it, and who leads.

use clap::Subcommand;
use downriver_api::admin::v1 as pb;

use super::client::{Client, Failure};

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
    /// Let another node lead.
    TransferLeader {
        /// Its name or ID; default: the voter that is closest behind.
        node: Option<String>,
    },
}

pub(super) async fn run(command: ClusterCommand, mut client: Client) -> Result<(), Failure> {
    match command {
        ClusterCommand::Add { address } => {
            let request = pb::AddNodeRequest {
                address: address.clone(),
            };
            let added = client.admin.add_node(request).await?.into_inner();
            println!(
                "the node at {address} was let in as {}; see downriver get nodes",
                added.id
            );
        }
        ClusterCommand::Remove { node } => {
            let request = pb::RemoveNodeRequest { node: node.clone() };
            client.admin.remove_node(request).await?;
            println!("node {node} is out of the cluster");
        }
        ClusterCommand::TransferLeader { node } => {
            let request = pb::TransferLeaderRequest {
                node: node.unwrap_or_default(),
            };
            let led = client.admin.transfer_leader(request).await?.into_inner();
            println!("{} leads", led.leader);
        }
    }
    Ok(())
}
