//! The nodes of the cluster: who they are, and which of them runs what.

use std::collections::BTreeMap;
use std::time::Duration;

use downriver_api::admin::v1 as pb;
use downriver_cluster::{ControlError, MemberView, pipeline_task, source_task};
use downriver_event::problem::Problem;
use downriver_log::Log as _;
use downriver_service::problem::to_pb;
use downriver_service::{Peer, Where};

use super::NodeEngine;

/// What is measured at a node itself.
#[derive(Clone, Debug, Default)]
pub(in crate::server) struct NodeFigures {
    pub(crate) has_problem: bool,
    pub(crate) leads: bool,
    pub(crate) hears_leader: bool,
    /// `None`: the disk does not say.
    pub(crate) disk_free_bytes: Option<u64>,
    /// `None`: there is none, or this node does not lead.
    pub(crate) backup_age: Option<Duration>,
    /// How many there are in each state; empty: this node does not lead, or is no member of anything.
    pub(crate) nodes: BTreeMap<&'static str, u64>,
}

impl NodeEngine {
    pub(super) fn leader_node(&self) -> Where {
        if self.node.leads() {
            return Where::Here;
        }
        match self.node.leader() {
            Some(leader) => self.place_of(leader),
            None => Where::Nowhere(Problem::new(
                "DR-1105",
                "the cluster has no leader now",
                "most of its voters must be up and reach each other: see downriver get nodes",
            )),
        }
    }

    /// What nobody was given yet, and what runs nowhere, is answered here.
    pub(super) fn owner_of(&self, kind: pb::Kind, name: &str) -> Where {
        let owner = match kind {
            pb::Kind::Source => self.node.assigned(&source_task(name)),
            pb::Kind::Pipeline => self.node.assigned(&pipeline_task(name, 0)),
            pb::Kind::Sink | pb::Kind::Unspecified => None,
        };
        match owner {
            Some(owner) if owner.node != self.node.id() => self.place_of(owner.node),
            _ => Where::Here,
        }
    }

    pub(super) fn place_of(&self, id: u64) -> Where {
        match self.node.channel_to(id) {
            Ok(channel) => Where::There(Peer {
                id,
                name: self.node.member(id).map(|m| m.name).unwrap_or_default(),
                channel,
            }),
            Err(error) => Where::Nowhere(Problem::new(
                "DR-1109",
                error.to_string(),
                "wait until the node is back, or what it runs is with another",
            )),
        }
    }

    pub(super) async fn let_in(&self, address: &str) -> Result<u64, Problem> {
        self.node.add_member(address).await.map_err(|e| refused(&e))
    }

    pub(super) async fn take_out(&self, node: &str) -> Result<(), Problem> {
        let id = self.member_named(node)?;
        self.node.remove_member(id).await.map_err(|e| refused(&e))
    }

    pub(super) async fn let_lead(&self, node: &str) -> Result<String, Problem> {
        let to = match node {
            "" => None,
            node => Some(self.member_named(node)?),
        };
        let led = self.node.transfer_leadership(to).await;
        let leader = led.map_err(|e| refused(&e))?;
        Ok(self.node.member(leader).map(|m| m.name).unwrap_or_default())
    }

    /// By name or number.
    fn member_named(&self, node: &str) -> Result<u64, Problem> {
        let members = self.node.members().into_iter().map(|view| view.member);
        let named: Vec<u64> = members
            .filter(|member| member.name == node || member.id.to_string() == node)
            .map(|member| member.id)
            .collect();
        let wrong = |reason: String| {
            Problem::new(
                "DR-2046",
                reason,
                "see downriver get nodes, and give its ID",
            )
        };
        match named[..] {
            [id] => Ok(id),
            [] => Err(wrong(format!("the cluster has no node {node:?}"))),
            _ => Err(wrong(format!("several nodes are called {node:?}"))),
        }
    }

    /// What keeps this node from its work.
    pub(crate) fn problem_here(&self) -> Option<Problem> {
        let full = self.node.disk_problem();
        full.map(|reason| is_full(&reason)).or_else(|| {
            let reason = self.node.store_problem()?;
            let fix = "make the object store reachable; everything goes on by itself";
            Some(Problem::new("DR-1100", reason, fix))
        })
    }

    pub(in crate::server) fn figures(&self) -> NodeFigures {
        let leads = self.node.leads();
        let mut nodes = BTreeMap::new();
        if leads {
            for member in self.node.members() {
                *nodes.entry(state(&member)).or_default() += 1;
            }
        }
        let newest = self.node.newest_backup();
        NodeFigures {
            has_problem: self.problem_here().is_some(),
            leads,
            hears_leader: self.node.hears_leader(),
            disk_free_bytes: self.node.disk_free_bytes(),
            // One of a clock that is ahead was taken now.
            backup_age: newest.map(|newest| newest.taken.elapsed().unwrap_or_default()),
            nodes,
        }
    }

    pub(super) fn known_nodes(&self) -> Vec<pb::Node> {
        let problem = self.problem_here();
        let mut here = pb::Node {
            id: self.node.id(),
            version: env!("CARGO_PKG_VERSION").into(),
            state: "leader".into(),
            grpc: self.addresses.grpc.to_string(),
            http: self.addresses.http.to_string(),
            store: self.node.objects().url().into(),
            problem: problem.as_ref().map(to_pb),
            ..pb::Node::default()
        };
        let members = self.node.members();
        if members.is_empty() {
            here.runs = self.node.tasks_of(here.id);
            return vec![here];
        }
        let node = |view: MemberView| {
            let is_here = view.member.id == here.id;
            pb::Node {
                id: view.member.id,
                state: state(&view).into(),
                runs: self.node.tasks_of(view.member.id),
                name: view.member.name,
                version: view.member.version,
                grpc: view.member.grpc_address,
                http: view.member.http_address,
                peer: view.member.peer_address,
                behind: view.behind,
                store: here.store.clone(),
                problem: match is_here {
                    true => here.problem.clone(),
                    false => view.full.as_deref().map(|reason| to_pb(&is_full(reason))),
                },
            }
        };
        members.into_iter().map(node).collect()
    }
}

fn is_full(reason: &str) -> Problem {
    let reason = reason.trim_start_matches("DR-1103: ");
    let fix = "make room on the disk; everything goes on by itself";
    Problem::new("DR-1103", reason, fix)
}

fn refused(error: &ControlError) -> Problem {
    Problem::new(
        "DR-2047",
        error.to_string(),
        "see downriver get nodes; a majority of the voters must be up, before and after",
    )
}

fn state(view: &MemberView) -> &'static str {
    if view.is_alive == Some(false) {
        "unreachable"
    } else if view.is_leader {
        "leader"
    } else if view.member.draining {
        "draining"
    } else if view.is_voter {
        "voter"
    } else {
        "learner"
    }
}
