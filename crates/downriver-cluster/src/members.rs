//! Members: what a node tells of itself, who of them is alive, and what the leader keeps in order.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use downriver_api::cluster::v1 as pb;
use downriver_api::cluster::v1::command::Kind as C;
use openraft::ChangeMembers;
use tokio::net::TcpListener;

use crate::assign::{self, Nodes, Task};
use crate::control::{Assignment, Member};
use crate::form::{self, Seeds, VOTERS_MAX};
use crate::node::{ControlError, Node};
use crate::peer::PeerTls;
use crate::{elect, transfer};

/// A node that has not answered for so long is taken for dead: what it runs is given to others.
const DEAD_AFTER: Duration = Duration::from_millis(1_500);
/// For so long a node has to be alive before it is given what runs well elsewhere.
const SETTLED_AFTER: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How often a leader whose disk is full lets another lead, if none could.
const STEPS_ASIDE_EVERY: Duration = Duration::from_secs(10);
/// How long a node that stops may take to hand over what it runs.
const HAND_OVER_WITHIN: Duration = Duration::from_secs(5);
const HAND_OVER_LOOK: Duration = Duration::from_millis(10);
/// Entries that a node may be behind and become a voter, or be given what runs elsewhere.
const BEHIND_MAX: u64 = 1_000;

/// What makes a node one of a cluster.
#[derive(Debug)]
pub struct MemberConfig {
    /// As people call it.
    pub name: String,
    /// Where other nodes are answered.
    pub listener: TcpListener,
    /// `host:port` under which others reach the listener; their certificates' authority vouches for the host.
    pub address: String,
    /// `None`: neither encrypted nor authenticated, for loopback addresses only.
    pub tls: Option<PeerTls>,
    pub seeds: Seeds,
    pub grpc_address: String,
    pub http_address: String,
    pub version: String,
}

/// A member, as another node sees it.
#[derive(Clone, Debug)]
pub struct MemberView {
    pub member: Member,
    pub is_leader: bool,
    pub is_voter: bool,
    /// `None`: this node does not lead, and does not know.
    pub is_alive: Option<bool>,
    /// Why it takes nothing more, as the leader was told.
    pub full: Option<String>,
    /// Entries that it has not yet, of a node that this one sends them to as the leader.
    pub behind: Option<u64>,
}

/// Since when this node leads, and since when each node has been alive without a break, as it sees it.
#[derive(Debug, Default)]
pub(crate) struct Liveness {
    leads_since: Option<Instant>,
    alive_since: BTreeMap<u64, Instant>,
}

/// Liveness as the leader keeps it.
pub(crate) type Watched = Mutex<Liveness>;

impl Liveness {
    /// What a look finds: when each node last answered, or as the leader before this one was last heard of.
    fn look(
        &mut self,
        now: Instant,
        heard: &BTreeMap<u64, Option<Instant>>,
        former_leader: Option<(u64, Instant)>,
    ) -> Nodes {
        let leads_since = *self.leads_since.get_or_insert(now);
        let mut nodes = Nodes::default();
        for (node, heard) in heard {
            let heard = match former_leader {
                // Its silence made this node the leader.
                Some((leader, led)) if leader == *node => heard.unwrap_or(led).max(led),
                // Before this node led, others may not have had to answer it.
                _ => heard.unwrap_or(leads_since).max(leads_since),
            };
            if now.duration_since(heard) >= DEAD_AFTER {
                self.alive_since.remove(node);
                continue;
            }
            let since = *self.alive_since.entry(*node).or_insert(now);
            nodes.alive.insert(*node);
            if now.duration_since(since) >= SETTLED_AFTER {
                nodes.settled.insert(*node);
            }
        }
        nodes
    }

    fn leads_no_more(&mut self) {
        *self = Self::default();
    }
}

impl Node {
    /// Tells the cluster of this node.
    pub(crate) async fn announce(&self, draining: bool) -> Result<(), ControlError> {
        let Some(mut member) = self.described() else {
            return Ok(());
        };
        member.draining = draining;
        let put = pb::PutMember {
            member: Some(member.to_pb()),
        };
        self.propose(C::PutMember(put)).await.map(|_| ())
    }

    /// A member by its number, also one that was removed.
    #[must_use]
    pub fn member(&self, id: u64) -> Option<Member> {
        self.with_state(|state| state.control.members.get(&id).cloned())
    }

    /// Members in the order of their names.
    #[must_use]
    pub fn members(&self) -> Vec<MemberView> {
        let metrics = self.raft().metrics().borrow().clone();
        let membership = metrics.membership_config.membership();
        let voters: BTreeSet<u64> = membership.voter_ids().collect();
        let alive = self.leads().then(|| self.alive());
        let behind = self.behind();
        let mut members: Vec<MemberView> = self.with_state(|state| {
            let members = state.control.members.values();
            members
                .filter(|member| !member.removed)
                .map(|member| MemberView {
                    is_leader: metrics.current_leader == Some(member.id),
                    is_voter: voters.contains(&member.id),
                    is_alive: alive.as_ref().map(|alive| alive.contains(&member.id)),
                    behind: behind.get(&member.id).copied(),
                    full: self.peers().why_full(member.id).filter(|_| alive.is_some()),
                    member: member.clone(),
                })
                .collect()
        });
        members.sort_by(|one, other| one.member.name.cmp(&other.member.name));
        members
    }

    /// Who runs a task; `None`: nobody was given it.
    #[must_use]
    pub fn assigned(&self, task: &str) -> Option<Assignment> {
        self.with_state(|state| state.control.assignments.get(task).copied())
    }

    /// What a node was given to run.
    #[must_use]
    pub fn tasks_of(&self, id: u64) -> Vec<String> {
        self.with_state(|state| {
            let assigned = state.control.assignments.iter();
            let of_node = assigned.filter(|(_, owner)| owner.node == id);
            of_node.map(|(task, _)| task.clone()).collect()
        })
    }

    /// Whether this node hears a leader, which it may be itself, that has lately heard most voters.
    #[must_use]
    pub fn hears_leader(&self) -> bool {
        elect::hears_leader(self)
    }

    /// The node that leads, as far as this one knows.
    #[must_use]
    pub fn leader(&self) -> Option<u64> {
        self.raft().metrics().borrow().current_leader
    }

    /// As the leader: gives these tasks to nodes, and takes all others away. Of another node nothing is done.
    ///
    /// # Errors
    /// Not decided.
    pub async fn assign(&self, tasks: &[Task]) -> Result<(), ControlError> {
        if !self.leads() {
            let mut watched = self.watched().lock().expect("no holder panics");
            watched.leads_no_more();
            return Ok(());
        }
        // One that stood still for long knows of nobody.
        if self.described().is_some() && !elect::hears_leader(self) {
            return Ok(());
        }
        let mut nodes = self.look_for_life();
        let close = self.close();
        let moves = self.with_state(|state| {
            // One that is coming in runs nothing before it is there.
            let runs = |id: &u64| match state.control.members.get(id) {
                Some(member) => !member.draining && !member.removed,
                None => self.described().is_none(),
            };
            nodes.alive.retain(runs);
            nodes.settled.retain(|id| runs(id) && close.contains(id));
            let assigned = state.control.assignments.iter();
            let assigned = assigned.map(|(task, owner)| (task.clone(), owner.node));
            assign::plan(tasks, &nodes, &assigned.collect())
        });
        if moves.is_empty() {
            return Ok(());
        }
        for step in &moves {
            tracing::info!(
                task = step.task,
                from = step.from,
                to = step.to,
                "is assigned"
            );
        }
        let assign = pb::Assign {
            moves,
            term: self.raft().metrics().borrow().current_term,
            leader: self.id(),
        };
        match self.propose(C::Assign(assign)).await {
            // Another leader was faster: it is planned anew.
            Ok(_) | Err(ControlError::Conflict(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// As the leader: who answers.
    pub(crate) fn alive(&self) -> BTreeSet<u64> {
        self.look_for_life().alive
    }

    /// As the leader: lets the node at an address in, which belongs to no cluster yet. Its number.
    ///
    /// # Errors
    /// It does not answer, or belongs to another cluster; or not decided.
    pub async fn add_member(&self, address: &str) -> Result<u64, ControlError> {
        let invalid = |reason: String| Err(ControlError::Invalid(reason));
        let Some(answer) = form::ask(self, address).await else {
            return invalid(format!(
                "no node of this cluster's authority answers at {address}"
            ));
        };
        if !answer.cluster_id.is_empty() && answer.cluster_id != self.cluster_id() {
            return invalid(format!(
                "the node at {address} is of cluster {}: empty its data folder first",
                answer.cluster_id
            ));
        }
        let request = pb::JoinRequest {
            cluster_id: self.cluster_id(),
            node_id: answer.node_id,
            address: answer.address,
            store: answer.store,
        };
        match form::let_in(self, &request).await {
            Ok(leader) if leader.is_empty() => Ok(answer.node_id),
            Ok(_) => Err(ControlError::Unavailable(
                "this node does not lead any more".into(),
            )),
            Err(status) => Err(ControlError::Unavailable(status.message().to_owned())),
        }
    }

    /// As the leader: takes a node out of the cluster for good. What it runs is given to others first, if it is alive.
    ///
    /// # Errors
    /// It is this node, or most of the voters that stay do not answer; or not decided.
    pub async fn remove_member(&self, id: u64) -> Result<(), ControlError> {
        if id == self.id() {
            return Err(ControlError::Invalid(
                "this node leads: let another lead first, with downriver cluster transfer-leader"
                    .into(),
            ));
        }
        let alive = self.alive();
        let metrics = self.raft().metrics().borrow().clone();
        let membership = metrics.membership_config.membership();
        let voters: BTreeSet<u64> = membership
            .voter_ids()
            .filter(|voter| *voter != id)
            .collect();
        let up = voters.intersection(&alive).count();
        if up <= voters.len() / 2 {
            return Err(ControlError::Invalid(format!(
                "of the {} voters that would be left only {up} are up",
                voters.len()
            )));
        }
        self.propose(C::DropMember(pb::DropMember { node_id: id }))
            .await?;
        let deadline = tokio::time::Instant::now() + HAND_OVER_WITHIN;
        while !self.tasks_of(id).is_empty() && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(HAND_OVER_LOOK).await;
        }
        // The leader's own loop does it, and goes on with it where this call is given up.
        let is_there = || {
            let metrics = self.raft().metrics().borrow().clone();
            metrics
                .membership_config
                .membership()
                .get_node(&id)
                .is_some()
        };
        while is_there() {
            if tokio::time::Instant::now() >= deadline {
                return Err(ControlError::Unavailable(
                    "the node is taken out as soon as most of the voters agree".into(),
                ));
            }
            tokio::time::sleep(HAND_OVER_LOOK).await;
        }
        Ok(())
    }

    /// As the leader: takes removed nodes out of the membership, and ends a change of it that was interrupted.
    async fn finish_changes(&self) -> Result<(), String> {
        let metrics = self.raft().metrics().borrow().clone();
        let membership = metrics.membership_config.membership();
        let removed: BTreeSet<u64> = self.with_state(|state| {
            let members = state.control.members.values();
            let removed = members.filter(|member| member.removed);
            removed.map(|member| member.id).collect()
        });
        let present: BTreeSet<u64> = membership.nodes().map(|(id, _)| *id).collect();
        let voters: BTreeSet<u64> = match membership.get_joint_config().last() {
            Some(last) => last.clone(),
            None => return Ok(()),
        };
        let is_joint = membership.get_joint_config().len() > 1;
        let gone = removed
            .intersection(&present)
            .filter(|id| **id != self.id());
        let gone: BTreeSet<u64> = gone.copied().collect();
        // What they run is handed over first, while they can.
        let runs = gone.iter().any(|id| !self.tasks_of(*id).is_empty());
        if (gone.is_empty() || runs) && !is_joint {
            return Ok(());
        }
        let (leaving, staying): (BTreeSet<u64>, BTreeSet<u64>) =
            voters.into_iter().partition(|voter| gone.contains(voter));
        let change = match leaving.is_empty() && !is_joint {
            true => ChangeMembers::RemoveNodes(gone),
            false => ChangeMembers::ReplaceAllVoters(staying),
        };
        let changed = self.raft().change_membership(change, false).await;
        changed.map(|_| ()).map_err(|error| error.to_string())
    }

    /// Whether this node was taken out of the cluster.
    fn is_removed(&self) -> bool {
        self.member(self.id()).is_some_and(|member| member.removed)
    }

    /// Gives what this node runs to others, and leadership if it leads; returns when they have it, or cannot take it in
    /// time.
    pub async fn hand_over(&self) {
        if self.described().is_none() {
            return;
        }
        let deadline = tokio::time::Instant::now() + HAND_OVER_WITHIN;
        let handed = async {
            self.announce(true).await?;
            let is_alone = || self.leads() && self.alive().len() == 1;
            while !self.tasks_of(self.id()).is_empty() && !is_alone() {
                tokio::time::sleep(HAND_OVER_LOOK).await;
            }
            if is_alone() {
                return Err(ControlError::Unavailable("no other node is up".into()));
            }
            if self.leads() {
                let leader = transfer::give(self, None).await?;
                tracing::info!(leader, "leadership was handed over");
            }
            Ok::<_, ControlError>(())
        };
        match tokio::time::timeout_at(deadline, handed).await {
            Ok(Ok(())) => tracing::info!("everything was handed over"),
            Ok(Err(error)) => tracing::warn!(error = %error, "not everything was handed over"),
            Err(_) => tracing::warn!("not everything was handed over in time"),
        }
    }

    /// Lets another voter lead, this one or the one that is closest behind. The number of the new leader.
    ///
    /// # Errors
    /// This node does not lead, or no other voter can.
    pub async fn transfer_leadership(&self, to: Option<u64>) -> Result<u64, ControlError> {
        if !self.leads() {
            return Err(ControlError::Unavailable("this node does not lead".into()));
        }
        transfer::give(self, to).await
    }

    /// As the leader: who has nearly everything. However short the log is, one of which it is not known what it has is far.
    fn close(&self) -> BTreeSet<u64> {
        let (last, others) = self.matched();
        let close = others.filter(|(_, matched)| {
            matched.is_some_and(|matched| last.saturating_sub(matched) <= BEHIND_MAX)
        });
        close.map(|(id, _)| id).chain([self.id()]).collect()
    }

    /// As the leader: how many entries each other node lacks.
    fn behind(&self) -> BTreeMap<u64, u64> {
        let (last, others) = self.matched();
        let behind = others.map(|(id, matched)| (id, last.saturating_sub(matched.unwrap_or(0))));
        behind.collect()
    }

    /// As the leader: its last entry, and the last one that each other node is known to have.
    fn matched(&self) -> (u64, impl Iterator<Item = (u64, Option<u64>)> + use<>) {
        let metrics = self.raft().metrics().borrow().clone();
        let others = metrics.replication.unwrap_or_default().into_iter();
        let others = others.filter(move |(id, _)| *id != metrics.id);
        let matched = others.map(|(id, matched)| (id, matched.map(|matched| matched.index)));
        (metrics.last_log_index.unwrap_or_default(), matched)
    }

    fn look_for_life(&self) -> Nodes {
        let metrics = self.raft().metrics().borrow().clone();
        let membership = metrics.membership_config.membership();
        let now = Instant::now();
        let heard = membership.nodes().map(|(id, _)| {
            let heard = match *id == self.id() {
                true => Some(now),
                false => self.peers().heard(*id),
            };
            (*id, heard)
        });
        let mut watched = self.watched().lock().expect("no holder panics");
        watched.look(now, &heard.collect(), self.peers().led())
    }
}

/// What was last said of the cluster.
#[derive(Default)]
struct Said {
    leader: Option<u64>,
    alive: Option<BTreeSet<u64>>,
}

impl Said {
    fn tell(&mut self, node: &Node) {
        let name = |id: u64| node.member(id).map_or_else(|| id.to_string(), |m| m.name);
        let leader = node.leader();
        if leader != self.leader {
            self.leader = leader;
            match leader {
                Some(leader) => tracing::info!(leader = name(leader), "leads the cluster"),
                None => tracing::warn!("the cluster has no leader"),
            }
        }
        let alive = node.leads().then(|| node.alive());
        if let (Some(before), Some(now)) = (&self.alive, &alive) {
            for lost in before.difference(now) {
                tracing::warn!(node = name(*lost), "does not answer any more");
            }
            for back in now.difference(before) {
                tracing::info!(node = name(*back), "answers");
            }
        }
        self.alive = alive;
    }
}

/// Says what becomes of the cluster; and the leader's work: nodes that were let in become voters, as many as are of use.
pub(crate) async fn run(node: Arc<Node>) {
    let mut said = Said::default();
    let mut steps_aside_at = Instant::now();
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        said.tell(&node);
        if node.leads()
            && let Some(reason) = node.disk_problem()
            && Instant::now() >= steps_aside_at
        {
            steps_aside_at = Instant::now() + STEPS_ASIDE_EVERY;
            match transfer::give(&node, None).await {
                Ok(_) => tracing::warn!(reason, "leads no more"),
                Err(error) => {
                    tracing::error!(reason, error = %error, "takes nothing more, and nobody else can lead")
                }
            }
        }
        if node.is_removed() {
            node.fail(
                "DR-1108: this node was removed from the cluster: empty its data folder, and it joins as a new one",
            );
            return;
        }
        if node.leads()
            && let Err(error) = raise_feature_level(&node).await
        {
            tracing::warn!(error = %error, "the feature level cannot be raised now");
        }
        if node.leads()
            && let Err(reason) = node.finish_changes().await
        {
            tracing::warn!(reason, "a change of the members cannot be ended now");
        }
        if node.leads()
            && let Err(reason) = promote(&node).await
        {
            tracing::warn!(reason, "a node that was let in cannot become a voter now");
        }
    }
}

/// Stored forms of a higher level may be written when every member reads them. A level is never given back, so it is raised
/// when no member that is known is missing.
async fn raise_feature_level(node: &Node) -> Result<(), ControlError> {
    let (level, common) = node.with_state(|state| {
        let members = state.control.members.values();
        let members = members.filter(|member| !member.removed);
        let common = members.map(|member| member.feature_level).min();
        (state.control.feature_level, common.unwrap_or_default())
    });
    if common <= level {
        return Ok(());
    }
    tracing::info!(
        level = common,
        "every member reads stored forms of this level"
    );
    let raise = pb::RaiseFeatureLevel { level: common };
    node.propose(C::RaiseFeatureLevel(raise)).await.map(|_| ())
}

async fn promote(node: &Node) -> Result<(), String> {
    let metrics = node.raft().metrics().borrow().clone();
    let membership = metrics.membership_config.membership();
    let voters: BTreeSet<u64> = membership.voter_ids().collect();
    let (alive, close) = (node.alive(), node.close());
    let is_member = |id: &u64| node.member(*id).is_some_and(|member| !member.removed);
    let learners = membership.learner_ids();
    let ready: Vec<u64> = learners
        .filter(|id| alive.contains(id) && close.contains(id) && is_member(id))
        .collect();
    let count = voters_to_add(voters.len(), ready.len());
    if count == 0 {
        return Ok(());
    }
    let added: BTreeSet<u64> = ready.into_iter().take(count).collect();
    tracing::info!(nodes = ?added, "become voters");
    let change = ChangeMembers::AddVoterIds(added);
    let changed = node.raft().change_membership(change, true).await;
    changed.map(|_| ()).map_err(|error| error.to_string())
}

/// An even number of voters outlasts no more failures than the odd one below it.
fn voters_to_add(voters: usize, ready: usize) -> usize {
    let most = (voters + ready).min(VOTERS_MAX);
    let odd = most - (most + 1) % 2;
    odd.saturating_sub(voters)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn voters_grow_to_odd_numbers_and_no_further_than_is_of_use() {
        let cases = [
            ((1, 1), 0),
            ((1, 2), 2),
            ((2, 1), 1),
            ((3, 1), 0),
            ((3, 2), 2),
            ((4, 1), 1),
            ((5, 3), 0),
            ((3, 0), 0),
        ];
        for ((voters, ready), added) in cases {
            assert_eq!(voters_to_add(voters, ready), added, "{voters} and {ready}");
        }
    }

    #[test]
    fn of_the_leader_before_it_is_known_since_when_it_was_silent() {
        let start = Instant::now();
        let now = start + Duration::from_secs(2);
        let heard = BTreeMap::from([(1, None), (2, None)]);
        let nodes = Liveness::default().look(now, &heard, Some((1, start)));
        assert_eq!(nodes.alive, BTreeSet::from([2]));
    }

    #[test]
    fn a_node_is_dead_when_it_does_not_answer_and_settled_when_it_has_for_long() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut liveness = Liveness::default();
        let mut look = |now, one: Option<Instant>| {
            let nodes = liveness.look(now, &BTreeMap::from([(1, one)]), None);
            (nodes.alive.contains(&1), nodes.settled.contains(&1))
        };
        // Nothing is known of it, and it has had no time to answer.
        assert_eq!(look(at(0), None), (true, false));
        assert_eq!(look(at(1_499), None), (true, false));
        assert_eq!(look(at(1_500), None), (false, false));
        assert_eq!(look(at(2_000), Some(at(1_990))), (true, false));
        assert_eq!(look(at(6_999), Some(at(6_990))), (true, false));
        assert_eq!(look(at(7_000), Some(at(6_990))), (true, true));
        assert_eq!(look(at(9_000), Some(at(6_990))), (false, false));
        assert_eq!(look(at(9_100), Some(at(9_090))), (true, false));
    }
}
