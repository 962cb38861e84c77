//! When a node may ask to lead: not before most voters, this one among them, say that they hear no leader; and never one
//! whose disk is full.
//!
//! Raft alone lets a node ask as soon as it hears nothing itself. One that was cut off then comes back with a later term than
//! anybody's, and the leader that everybody else hears has to go.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::form;
use crate::node::{ELECTION_MS, Node};

const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Whether this node hears a leader, which it may be itself.
pub(crate) fn hears_leader(node: &Node) -> bool {
    let recent = Duration::from_millis(ELECTION_MS.0);
    let metrics = node.raft().metrics().borrow().clone();
    if metrics.current_leader == Some(metrics.id) {
        let acked = metrics.millis_since_quorum_ack;
        return acked.is_some_and(|millis| millis < ELECTION_MS.0);
    }
    node.peers()
        .led()
        .is_some_and(|(_, heard)| heard.elapsed() < recent)
}

pub(crate) async fn run(node: Arc<Node>) {
    loop {
        let may_ask = !hears_leader(&node)
            && !node.leads()
            && node.disk_takes_votes().is_ok()
            && most_hear_none(&node).await;
        node.raft().runtime_config().elect(may_ask);
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn most_hear_none(node: &Arc<Node>) -> bool {
    let metrics = node.raft().metrics().borrow().clone();
    let membership = metrics.membership_config.membership();
    let voters: BTreeSet<u64> = membership.voter_ids().collect();
    let others = voters.iter().filter(|voter| **voter != metrics.id);
    let mut asked = tokio::task::JoinSet::new();
    for other in others {
        let address = membership.get_node(other).map(|node| node.addr.clone());
        let (node, other) = (Arc::clone(node), *other);
        asked.spawn(async move {
            let answer = form::ask(&node, &address?).await?;
            (answer.node_id == other && !answer.hears_leader).then_some(())
        });
    }
    let mut hear_none = usize::from(voters.contains(&metrics.id));
    while hear_none <= voters.len() / 2 {
        match asked.join_next().await {
            Some(Ok(Some(()))) => hear_none += 1,
            Some(_) => {}
            None => return false,
        }
    }
    true
}
