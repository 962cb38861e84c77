//! A node as one of several: who it is to others, what it asks the leader, and how they are reached.

use downriver_api::cluster::v1 as pb;
use openraft::{Raft, ServerState};
use tokio::sync::watch;

use super::{ControlError, Node, NodeError, READ_INDEX_WITHIN, folder_error};
use crate::control::Member;
use crate::members::Watched;
use crate::peer::Peers;
use crate::propose::Silence;
use crate::{TypeConfig, elect};

impl Node {
    /// Whether this node leads, as far as it knows.
    #[must_use]
    pub fn leads(&self) -> bool {
        self.raft.metrics().borrow().state == ServerState::Leader
    }

    /// Counts changes of what should run and of where.
    #[must_use]
    pub fn control_changes(&self) -> watch::Receiver<u64> {
        self.shared.control_changes.subscribe()
    }

    /// Serves this to other nodes as well, at the address where they reach this one.
    pub fn also_serve(&self, routes: tonic::service::Routes) {
        let _ = self.also.set(routes);
    }

    /// A connection to another member.
    ///
    /// # Errors
    /// It is no member, or its address is none.
    pub fn channel_to(&self, id: u64) -> Result<tonic::transport::Channel, ControlError> {
        let channel = self.peers.channel(&self.peer_address(id)?);
        channel.map_err(|error| ControlError::Unavailable(error.to_string()))
    }

    /// The same for what is large: a connection of its own.
    ///
    /// # Errors
    /// As above.
    pub fn bulk_channel_to(&self, id: u64) -> Result<tonic::transport::Channel, ControlError> {
        let channel = self.peers.bulk_channel(&self.peer_address(id)?);
        channel.map_err(|error| ControlError::Unavailable(error.to_string()))
    }

    fn peer_address(&self, id: u64) -> Result<String, ControlError> {
        let member = self.member(id).map(|member| member.peer_address);
        member.ok_or_else(|| ControlError::Unavailable(format!("node {id} is not known here")))
    }

    /// Returns when everything that was committed before the call is applied here.
    ///
    /// # Errors
    /// Most of the voters, or the leader, do not answer.
    pub async fn read_index(&self) -> Result<(), ControlError> {
        let unavailable = |reason: &str| ControlError::Unavailable(reason.to_owned());
        let asked = async {
            let leader = self.raft.metrics().borrow().current_leader;
            let leader = leader.ok_or_else(|| unavailable("there is no leader now"))?;
            if leader == self.config.node_id {
                let index = self.leaders_read_index().await;
                return index.ok_or_else(|| unavailable("most of the voters do not answer"));
            }
            let address = self.raft_address(leader).unwrap_or_default();
            let request = pb::ReadIndexRequest {
                envelope: self.peers.envelope(leader),
            };
            let mut client = self
                .peers
                .client(&address)
                .map_err(|error| unavailable(&error.to_string()))?;
            let response = client.read_index(request).await;
            let response = response.map_err(|status| unavailable(status.message()))?;
            match response.into_inner() {
                pb::ReadIndexResponse { leads: true, index } => Ok(index),
                _ => Err(unavailable("the leader has changed")),
            }
        };
        let applied = async {
            self.shared.has_applied(asked.await?).await;
            Ok(())
        };
        tokio::time::timeout(2 * READ_INDEX_WITHIN, applied)
            .await
            .unwrap_or_else(|_| Err(unavailable("the leader does not answer")))
    }

    /// `None`: it does not lead, or cannot know whether it still does.
    pub(crate) async fn leaders_read_index(&self) -> Option<u64> {
        if !self.leads() {
            return None;
        }
        let read = tokio::time::timeout(READ_INDEX_WITHIN, self.raft.get_read_log_id()).await;
        if let Ok(Ok((read, _))) = read {
            return Some(read.map_or(0, |id| id.index));
        }
        // Raft asks once, and waits no longer than a heartbeat's interval. An entry without commands asks until most voters
        // have it.
        let entry = self.proposer.propose_all(Vec::new());
        let written = tokio::time::timeout(READ_INDEX_WITHIN, entry).await;
        Some(written.ok()?.ok()?.1)
    }

    pub(crate) fn raft_address(&self, id: u64) -> Option<String> {
        let metrics = self.raft.metrics().borrow().clone();
        let membership = metrics.membership_config.membership();
        membership.get_node(&id).map(|node| node.addr.clone())
    }

    pub(crate) fn silence(&self) -> &Silence {
        &self.silence
    }

    pub(crate) fn raft(&self) -> &Raft<TypeConfig> {
        &self.raft
    }

    pub(crate) fn peers(&self) -> &Peers {
        &self.peers
    }

    pub(crate) fn watched(&self) -> &Watched {
        &self.watched
    }

    pub(crate) fn described(&self) -> Option<Member> {
        self.described.clone()
    }

    /// Where others reach this node; empty: nowhere.
    pub(crate) fn address(&self) -> &str {
        self.described
            .as_ref()
            .map_or("", |here| &here.peer_address)
    }

    /// Empty: none yet.
    pub(crate) fn cluster_id(&self) -> String {
        self.peers.cluster_id()
    }

    /// Where this node's segments go.
    pub(crate) fn store_url(&self) -> String {
        self.config.store.url().to_owned()
    }

    pub(crate) fn promise(&self, founder: u64) -> bool {
        self.promise.lock().expect("no holder panics").give(founder)
    }

    /// Answers who this is, and promises it to a founder.
    pub(crate) fn hello(&self, asked: &pb::HelloRequest) -> pb::HelloResponse {
        // Of a cluster that is not founded yet nobody else is to know.
        let founds = {
            let identity = self.identity.lock().expect("no holder panics");
            identity.as_ref().is_some_and(|identity| identity.founds)
        };
        let cluster_id = match founds {
            true => String::new(),
            false => self.cluster_id(),
        };
        let is_free = cluster_id.is_empty() && asked.founder != 0;
        pb::HelloResponse {
            node_id: self.config.node_id,
            address: self.address().to_owned(),
            cluster_id,
            promised: is_free && self.promise(asked.founder),
            hears_leader: elect::hears_leader(self),
            store: self.store_url(),
        }
    }

    /// Belongs to this cluster from now on; to none with an empty one.
    pub(crate) fn enter_cluster(&self, cluster_id: &str) -> Result<(), NodeError> {
        self.enter(cluster_id, false)
    }

    /// The same, as the one that is about to found it.
    pub(crate) fn founds_cluster(&self, cluster_id: &str) -> Result<(), NodeError> {
        self.enter(cluster_id, true)
    }

    fn enter(&self, cluster_id: &str, founds: bool) -> Result<(), NodeError> {
        let mut identity = self.identity.lock().expect("no holder panics");
        if let Some(identity) = &mut *identity {
            cluster_id.clone_into(&mut identity.cluster_id);
            identity.founds = founds;
            let stored = identity.store(&self.config.data);
            stored.map_err(folder_error(&self.config.data))?;
        }
        self.peers.join(cluster_id);
        Ok(())
    }
}
