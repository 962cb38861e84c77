//! How a node comes into a cluster: by founding it with others, or by being let in.
//!
//! A cluster is founded once, when as many nodes as it is to begin with answer each other and none of them belongs to
//! one. Each of them promises itself to one founder, so that no two clusters come of the same nodes. A node whose folder
//! was emptied can therefore found nothing while the others are up or down: it waits, and is let in as a new node.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use downriver_api::cluster::v1 as pb;
use openraft::{BasicNode, ChangeMembers};
use tonic::Status;

use crate::control::Member;
use crate::node::{Node, NodeError};
use crate::peer::Peers;

/// Where to look for other nodes, and how many a new cluster begins with.
#[derive(Clone, Debug)]
pub struct Seeds {
    /// `host:port`; a name may stand for several nodes.
    pub addresses: Vec<String>,
    pub expect: usize,
}

/// Of other nodes a new cluster has no more than these as voters.
pub(crate) const VOTERS_MAX: usize = 5;
const LOOK_EVERY: Duration = Duration::from_millis(200);
const SAY_EVERY: Duration = Duration::from_secs(5);
const ANSWER_WITHIN: Duration = Duration::from_secs(1);
/// How long a node keeps itself for who wanted to found a cluster with it.
const PROMISED_FOR: Duration = Duration::from_secs(5);

/// The founder that a node has promised itself to.
#[derive(Debug, Default)]
pub(crate) struct Promise(Option<(u64, Instant)>);

impl Promise {
    /// Whether the node is this founder's.
    pub(crate) fn give(&mut self, founder: u64) -> bool {
        let held = self.0.filter(|(_, since)| since.elapsed() < PROMISED_FOR);
        match held {
            Some((other, _)) if other != founder => false,
            _ => {
                self.0 = Some((founder, Instant::now()));
                true
            }
        }
    }
}

/// Returns when this node is a member of a cluster that has a leader.
pub(crate) async fn enter(node: &Arc<Node>, seeds: &Seeds) -> Result<(), NodeError> {
    let mut said: Option<Instant> = None;
    let mut is_let_in = false;
    loop {
        let metrics = node.raft().metrics().borrow().clone();
        let membership = metrics.membership_config.membership();
        let here = membership.get_node(&node.id());
        let is_known = here.is_some_and(|here| here.addr == node.address());
        let leads = metrics.current_leader == Some(node.id());
        if is_known && (leads || is_let_in && metrics.current_leader.is_some()) {
            return Ok(());
        }
        let mut addresses = resolve(&seeds.addresses).await;
        let known = membership
            .nodes()
            .map(|(_, node)| (node.addr.clone(), None));
        addresses.extend(known.filter(|(address, _)| !address.is_empty()));
        addresses.remove(node.address());
        let answers = ask_all(node, &addresses, 0).await;
        let waits_for = match look(node, seeds, &answers).await? {
            Step::Wait(reason) => reason,
            Step::LetIn => {
                is_let_in = true;
                "the leader tells this node of it".to_owned()
            }
            Step::Founded => "a leader is elected".to_owned(),
            Step::Refused(error) => return Err(error),
        };
        if said.is_none_or(|said| said.elapsed() >= SAY_EVERY) {
            said = Some(Instant::now());
            let found = answers.len();
            tracing::info!(
                node = node.id(),
                found,
                of = addresses.len(),
                "waits until {waits_for}"
            );
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

enum Step {
    Wait(String),
    LetIn,
    Founded,
    Refused(NodeError),
}

async fn look(
    node: &Arc<Node>,
    seeds: &Seeds,
    answers: &[pb::HelloResponse],
) -> Result<Step, NodeError> {
    let mine = node.cluster_id();
    let clusters = answers.iter().map(|answer| answer.cluster_id.clone());
    let mut clusters: BTreeSet<String> = clusters.filter(|id| !id.is_empty()).collect();
    if mine.is_empty() && clusters.len() == 1 {
        let cluster = clusters.pop_first().expect("there is one");
        node.enter_cluster(&cluster)?;
        return Ok(ask_in(node, answers, &cluster).await);
    }
    if mine.is_empty() && clusters.is_empty() {
        return found(node, seeds, answers).await;
    }
    if let Some(other) = clusters.iter().find(|cluster| **cluster != mine) {
        return Err(NodeError::OtherCluster {
            mine,
            other: other.clone(),
        });
    }
    Ok(ask_in(node, answers, &mine).await)
}

/// Asks those who answered to be let in, and whom they name as the leader.
async fn ask_in(node: &Arc<Node>, answers: &[pb::HelloResponse], cluster: &str) -> Step {
    let members = answers.iter().filter(|answer| answer.cluster_id == cluster);
    let mut reason = "a member of the cluster answers".to_owned();
    for member in members {
        let mut address = member.address.clone();
        for _ in 0..2 {
            match join(node, &address, cluster).await {
                Ok(leader) if leader.is_empty() => return Step::LetIn,
                Ok(leader) => address = leader,
                Err(status) if status.code() == tonic::Code::PermissionDenied => {
                    return Step::Refused(NodeError::Removed(status.message().to_owned()));
                }
                Err(status) if status.code() == tonic::Code::FailedPrecondition => {
                    return Step::Refused(NodeError::OtherStore(status.message().to_owned()));
                }
                Err(status) => {
                    reason = format!("it is let in; {address}: {}", status.message());
                    break;
                }
            }
        }
    }
    Step::Wait(reason)
}

async fn join(node: &Arc<Node>, address: &str, cluster: &str) -> Result<String, Status> {
    let request = pb::JoinRequest {
        cluster_id: cluster.to_owned(),
        node_id: node.id(),
        address: node.address().to_owned(),
        store: node.store_url(),
    };
    let mut client = node
        .peers()
        .client(address)
        .map_err(|error| Status::unavailable(error.to_string()))?;
    let answer = tokio::time::timeout(ANSWER_WITHIN, client.join(request)).await;
    let answer = answer.map_err(|_| Status::unavailable("it does not answer"))?;
    Ok(answer?.into_inner().leader_address)
}

async fn found(
    node: &Arc<Node>,
    seeds: &Seeds,
    answers: &[pb::HelloResponse],
) -> Result<Step, NodeError> {
    let store = node.store_url();
    if let Some(other) = answers.iter().find(|answer| answer.store != store) {
        return Ok(Step::Refused(NodeError::OtherStore(format!(
            "this node's store is {store}, and that of the node at {} is {}: all nodes need one store",
            other.address, other.store
        ))));
    }
    let mut members = BTreeMap::from([(node.id(), node.address().to_owned())]);
    members.extend(answers.iter().map(|a| (a.node_id, a.address.clone())));
    if members.len() < seeds.expect {
        return Ok(Step::Wait(format!(
            "{} nodes answer each other",
            seeds.expect
        )));
    }
    if members.first_key_value().map(|(id, _)| *id) != Some(node.id()) {
        return Ok(Step::Wait("another node founds the cluster".into()));
    }
    let others = members
        .values()
        .filter(|address| *address != node.address());
    let others: BTreeMap<String, Option<String>> =
        others.map(|address| (address.clone(), None)).collect();
    let promised = ask_all(node, &others, node.id()).await;
    let promised = promised.iter().filter(|answer| answer.promised).count();
    if promised < others.len() || !node.promise(node.id()) {
        return Ok(Step::Wait("all nodes promise themselves".into()));
    }
    let cluster = uuid::Uuid::new_v4().to_string();
    node.founds_cluster(&cluster)?;
    let voters = members.into_iter().take(VOTERS_MAX);
    let voters: BTreeMap<u64, BasicNode> = voters
        .map(|(id, address)| (id, BasicNode::new(address)))
        .collect();
    tracing::info!(cluster, voters = voters.len(), "founds the cluster");
    let founded = node.raft().initialize(voters).await;
    founded.map_err(|error| NodeError::Raft(error.to_string()))?;
    node.enter_cluster(&cluster)?;
    Ok(Step::Founded)
}

/// Who answers at an address.
pub(crate) async fn ask(node: &Node, address: &str) -> Option<pb::HelloResponse> {
    let mut client = node.peers().client(address).ok()?;
    let asked = client.hello(pb::HelloRequest::default());
    let answer = tokio::time::timeout(ANSWER_WITHIN, asked)
        .await
        .ok()?
        .ok()?;
    Some(answer.into_inner())
}

/// The address of a node that is of a cluster, if one answers.
pub(crate) async fn any_cluster(peers: &Peers, addresses: &[String]) -> Option<String> {
    for (address, name) in resolve(addresses).await {
        let Ok(mut client) = peers.client_as(&address, name.as_deref()) else {
            continue;
        };
        let asked = client.hello(pb::HelloRequest::default());
        let answer = tokio::time::timeout(ANSWER_WITHIN, asked).await;
        if answer.is_ok_and(|answer| answer.is_ok_and(|it| !it.get_ref().cluster_id.is_empty())) {
            return Some(address);
        }
    }
    None
}

/// What answers at the addresses, each node once.
async fn ask_all(
    node: &Arc<Node>,
    addresses: &BTreeMap<String, Option<String>>,
    founder: u64,
) -> Vec<pb::HelloResponse> {
    let mut asked = tokio::task::JoinSet::new();
    for (address, name) in addresses {
        let client = node.peers().client_as(address, name.as_deref());
        asked.spawn(async move {
            let request = pb::HelloRequest { founder };
            let answer = tokio::time::timeout(ANSWER_WITHIN, async {
                client.ok()?.hello(request).await.ok()
            });
            answer.await.ok().flatten().map(tonic::Response::into_inner)
        });
    }
    let mut answers: BTreeMap<u64, pb::HelloResponse> = BTreeMap::new();
    while let Some(answer) = asked.join_next().await {
        if let Ok(Some(answer)) = answer
            && answer.node_id != node.id()
        {
            answers.insert(answer.node_id, answer);
        }
    }
    answers.into_values().collect()
}

/// Every address that the names stand for, and the name that vouches for it where it is another. A name that cannot be
/// resolved now stands for itself.
async fn resolve(addresses: &[String]) -> BTreeMap<String, Option<String>> {
    let mut resolved = BTreeMap::new();
    for address in addresses {
        let found = tokio::net::lookup_host(address).await;
        let found: Vec<SocketAddr> = found.map(Iterator::collect).unwrap_or_default();
        let is_one_node = found.len() <= 1 || found.iter().all(|a| a.ip().is_loopback());
        if is_one_node {
            resolved.insert(address.clone(), None);
            continue;
        }
        let host = address.rsplit_once(':').map(|(host, _)| host.to_owned());
        let found = found.into_iter().map(|a| (a.to_string(), host.clone()));
        resolved.extend(found);
    }
    resolved
}

/// As the leader: takes a node in, or another address of one. The leader's address where this node does not lead.
pub(crate) async fn let_in(node: &Node, request: &pb::JoinRequest) -> Result<String, Status> {
    let metrics = node.raft().metrics().borrow().clone();
    let membership = metrics.membership_config.membership();
    match metrics.current_leader {
        Some(leader) if leader == node.id() => {}
        Some(leader) => {
            let leader = membership.get_node(&leader);
            return Ok(leader.map(|node| node.addr.clone()).unwrap_or_default());
        }
        None => return Err(Status::unavailable("there is no leader now")),
    }
    if node
        .member(request.node_id)
        .is_some_and(|member: Member| member.removed)
    {
        return Err(Status::permission_denied(
            "DR-1108: the node was removed from the cluster: empty its data folder, and it joins as a new one",
        ));
    }
    if node.store().is_local() || request.store != node.store_url() {
        return Err(Status::failed_precondition(format!(
            "the cluster's store is {}, and this node's is {}: all nodes need one store that each of them reaches",
            node.store_url(),
            request.store
        )));
    }
    let there = BasicNode::new(request.address.clone());
    let known = membership.get_node(&request.node_id);
    if known == Some(&there) {
        return Ok(String::new());
    }
    let nodes = BTreeMap::from([(request.node_id, there)]);
    let change = match known {
        Some(_) => ChangeMembers::SetNodes(nodes),
        None => ChangeMembers::AddNodes(nodes),
    };
    let changed = node.raft().change_membership(change, true).await;
    changed.map_err(|error| Status::unavailable(error.to_string()))?;
    tracing::info!(
        node = request.node_id,
        address = request.address,
        "a node was let in"
    );
    Ok(String::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_promised_to_one_founder_until_that_takes_too_long() {
        let mut promise = Promise::default();
        assert!(promise.give(1) && promise.give(1));
        assert!(!promise.give(2));
        promise.0 = promise
            .0
            .map(|(founder, since)| (founder, since - PROMISED_FOR));
        assert!(promise.give(2) && !promise.give(1));
    }
}
