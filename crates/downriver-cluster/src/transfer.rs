//! Leadership that is handed over: before the leader stops, or because somebody asks for it.
//!
//! A voter turns away whoever asks to lead while it hears the leader, or has entries that the other has not. So the leader
//! takes no more commands and falls silent, and when the one that is to follow has everything it asks at once, and again when
//! the others have not heard of a leader for long enough.

use std::time::{Duration, Instant};

use downriver_api::cluster::v1 as pb;

use crate::node::{ControlError, ELECTION_MS, Node};

const LOOK_EVERY: Duration = Duration::from_millis(10);
/// How long the others may take to answer one that asks to lead.
const ANSWER_WITHIN: Duration = Duration::from_millis(200);
/// How long the whole may take.
const LEAD_WITHIN: Duration = Duration::from_secs(3);

/// As the leader: lets another voter lead, this one or the one that is closest behind.
pub(crate) async fn give(node: &Node, to: Option<u64>) -> Result<u64, ControlError> {
    let unavailable = |reason: String| ControlError::Unavailable(reason);
    // Before anything falls silent for one that cannot lead.
    let Some(follower) = to
        .or_else(|| closest(node))
        .filter(|to| may_lead(node, *to))
    else {
        return Err(unavailable(
            "only another voter that is alive can lead".into(),
        ));
    };
    let address = node.raft_address(follower).unwrap_or_default();
    let mut client = node
        .peers()
        .client(&address)
        .map_err(|error| unavailable(error.to_string()))?;
    let request = pb::LeadRequest {
        envelope: node.peers().envelope(follower),
    };
    let silent = Silent(node);
    let asked = async {
        node.raft().runtime_config().heartbeat(false);
        node.raft().runtime_config().elect(false);
        node.silence().begin().await;
        while !has_everything(node, follower) {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        client.lead(request).await
    };
    let asked = tokio::time::timeout(LEAD_WITHIN, asked).await;
    drop(silent);
    match asked {
        Ok(Ok(response)) if response.get_ref().leads => Ok(follower),
        Ok(Ok(_)) => Err(unavailable("it was not elected".into())),
        Ok(Err(status)) => Err(unavailable(status.message().to_owned())),
        Err(_) => Err(unavailable(
            "it does not answer, or is too far behind".into(),
        )),
    }
}

/// The leader as long as it lets another lead: it takes no commands, does not tell that it leads, and does not ask to.
struct Silent<'a>(&'a Node);

impl Drop for Silent<'_> {
    fn drop(&mut self) {
        self.0.silence().end();
        self.0.raft().runtime_config().heartbeat(true);
        self.0.raft().runtime_config().elect(true);
    }
}

fn may_lead(node: &Node, to: u64) -> bool {
    let metrics = node.raft().metrics().borrow().clone();
    let mut voters = metrics.membership_config.membership().voter_ids();
    to != metrics.id && voters.any(|voter| voter == to) && node.alive().contains(&to)
}

fn has_everything(node: &Node, follower: u64) -> bool {
    let metrics = node.raft().metrics().borrow().clone();
    let replication = metrics.replication.unwrap_or_default();
    let matched = replication.get(&follower).copied().flatten();
    matched.map(|matched| matched.index) >= metrics.last_log_index
}

fn closest(node: &Node) -> Option<u64> {
    let metrics = node.raft().metrics().borrow().clone();
    let replication = metrics.replication?;
    let alive = node.alive();
    let voters = metrics.membership_config.membership().voter_ids();
    let others = voters.filter(|id| *id != metrics.id && alive.contains(id));
    others.max_by_key(|id| replication.get(id).copied().flatten())
}

/// As a voter that is to lead: whether it does.
pub(crate) async fn take(node: &Node) -> bool {
    let lease = Duration::from_millis(ELECTION_MS.1);
    for rest in [Duration::ZERO, lease, ANSWER_WITHIN] {
        tokio::time::sleep(rest).await;
        if node.raft().trigger().elect().await.is_err() {
            return false;
        }
        let asked = Instant::now();
        while asked.elapsed() < ANSWER_WITHIN {
            if node.leads() {
                return true;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
    node.leads()
}
