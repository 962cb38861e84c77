//! Raft's calls of other nodes.

use std::time::Duration;

use downriver_api::cluster::v1 as pb;
use downriver_api::cluster::v1::append_entries_response::Result as Appended;
use openraft::error::{
    InstallSnapshotError, NetworkError, RPCError, RaftError, RemoteError, SnapshotMismatch,
    Unreachable,
};
use openraft::network::{Backoff, RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    VoteRequest, VoteResponse,
};
use openraft::{AnyError, BasicNode, SnapshotSegmentId};

use super::convert::{log_id, log_id_to_pb, vote, vote_to_pb};
use super::{Client, Peers};
use crate::TypeConfig;
use crate::store::stored_entry;

type Failed<E> = RPCError<u64, BasicNode, RaftError<u64, E>>;

/// Connects to nodes by what the membership says of them.
pub(crate) struct Network(pub(crate) Peers);

/// One node, as Raft talks to it.
pub(crate) struct Peer {
    peers: Peers,
    id: u64,
    address: String,
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Peer;

    async fn new_client(&mut self, target: u64, node: &BasicNode) -> Peer {
        Peer {
            peers: self.0.clone(),
            id: target,
            address: node.addr.clone(),
        }
    }
}

impl Peer {
    fn client(&self) -> Result<Client, Unreachable> {
        let client = self.peers.client(&self.address);
        client.map_err(|error| Unreachable::new(&error))
    }
}

fn failed<E: std::error::Error>(status: &tonic::Status) -> Failed<E> {
    match status.code() {
        tonic::Code::DeadlineExceeded | tonic::Code::Cancelled => {
            RPCError::Network(NetworkError::new(status))
        }
        _ => RPCError::Unreachable(Unreachable::new(status)),
    }
}

fn malformed<E: std::error::Error>(what: &str) -> Failed<E> {
    let error = AnyError::error(format!("the answer has no {what}"));
    RPCError::Unreachable(Unreachable::new(&error))
}

impl RaftNetwork<TypeConfig> for Peer {
    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<u64>, Failed<openraft::error::Infallible>> {
        let request = pb::AppendEntriesRequest {
            envelope: self.peers.envelope(self.id),
            vote: Some(vote_to_pb(&request.vote)),
            prev_log_id: request.prev_log_id.as_ref().map(log_id_to_pb),
            leader_commit: request.leader_commit.as_ref().map(log_id_to_pb),
            entries: request.entries.iter().map(stored_entry).collect(),
        };
        let response = self.client()?.append_entries(request).await;
        let response = response.map_err(|status| failed(&status))?.into_inner();
        self.peers.hears(self.id);
        Ok(match response.result {
            Some(Appended::Conflict(_)) => AppendEntriesResponse::Conflict,
            Some(Appended::HigherVote(higher)) => AppendEntriesResponse::HigherVote(
                vote(Some(&higher)).ok_or_else(|| malformed("vote"))?,
            ),
            Some(Appended::Success(success)) if success.is_partial => {
                AppendEntriesResponse::PartialSuccess(success.partial.as_ref().map(log_id))
            }
            Some(Appended::Success(_)) => AppendEntriesResponse::Success,
            None => return Err(malformed("result")),
        })
    }

    async fn install_snapshot(
        &mut self,
        request: InstallSnapshotRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<InstallSnapshotResponse<u64>, Failed<InstallSnapshotError>> {
        let segment = SnapshotSegmentId {
            id: request.meta.snapshot_id.clone(),
            offset: request.offset,
        };
        let meta = serde_json::to_vec(&request.meta).expect("openraft's types are plain");
        let request = pb::InstallSnapshotRequest {
            envelope: self.peers.envelope(self.id),
            vote: Some(vote_to_pb(&request.vote)),
            meta_json: meta.into(),
            offset: request.offset,
            data: request.data.into(),
            done: request.done,
        };
        let response = self.client()?.install_snapshot(request).await;
        let response = response.map_err(|status| failed(&status))?.into_inner();
        self.peers.hears(self.id);
        if response.begin_again {
            let mismatch = SnapshotMismatch {
                expect: SnapshotSegmentId {
                    id: segment.id.clone(),
                    offset: 0,
                },
                got: segment,
            };
            let mismatch = RaftError::APIError(InstallSnapshotError::SnapshotMismatch(mismatch));
            return Err(RPCError::RemoteError(RemoteError::new(self.id, mismatch)));
        }
        Ok(InstallSnapshotResponse {
            vote: vote(response.vote.as_ref()).ok_or_else(|| malformed("vote"))?,
        })
    }

    async fn vote(
        &mut self,
        request: VoteRequest<u64>,
        _option: RPCOption,
    ) -> Result<VoteResponse<u64>, Failed<openraft::error::Infallible>> {
        let request = pb::VoteRequest {
            envelope: self.peers.envelope(self.id),
            vote: Some(vote_to_pb(&request.vote)),
            last_log_id: request.last_log_id.as_ref().map(log_id_to_pb),
        };
        let response = self.client()?.vote(request).await;
        let response = response.map_err(|status| failed(&status))?.into_inner();
        self.peers.hears(self.id);
        let vote = vote(response.vote.as_ref()).ok_or_else(|| malformed("vote"))?;
        let last = response.last_log_id.as_ref().map(log_id);
        Ok(VoteResponse::new(vote, last, response.granted))
    }

    fn backoff(&self) -> Backoff {
        let rests = [50, 100, 200].into_iter().chain(std::iter::repeat(500));
        Backoff::new(rests.map(Duration::from_millis))
    }
}
