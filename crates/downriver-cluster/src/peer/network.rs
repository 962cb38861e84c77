//! Raft's calls of other nodes.
//!
//! Raft gives up an append that is not answered within a heartbeat's interval, and sends what it has by then. Where the way
//! is longer than that nothing would ever be answered in time: so a call that was given up goes on, and its answer is that
//! of the next append from the same place, as far as it goes. Heartbeats go beside: they come between an append and the
//! next from the same place, and go out from another place while Raft looks for where two logs agree.

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
use openraft::{AnyError, BasicNode, LogId, SnapshotSegmentId, Vote};
use tokio::task::JoinHandle;

use super::convert::{log_id, log_id_to_pb, vote, vote_to_pb};
use super::{Client, Peers};
use crate::TypeConfig;
use crate::store::stored_entry;

/// How long an answer may be on its way.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);

type Failed<E> = RPCError<u64, BasicNode, RaftError<u64, E>>;

/// Connects to nodes by what the membership says of them.
pub(crate) struct Network(pub(crate) Peers);

/// One node, as Raft talks to it.
pub(crate) struct Peer {
    peers: Peers,
    id: u64,
    address: String,
    heartbeat: Option<UnderWay>,
    append: Option<UnderWay>,
}

/// An append that was sent and is not answered yet.
struct UnderWay {
    vote: Vote<u64>,
    after: Option<LogId<u64>>,
    /// The last entry that it carries, or `after`.
    last: Option<LogId<u64>>,
    call: JoinHandle<Result<pb::AppendEntriesResponse, tonic::Status>>,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.call.abort();
    }
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Peer;

    async fn new_client(&mut self, target: u64, node: &BasicNode) -> Peer {
        Peer {
            peers: self.0.clone(),
            id: target,
            address: node.addr.clone(),
            heartbeat: None,
            append: None,
        }
    }
}

impl Peer {
    fn send(&self, request: &AppendEntriesRequest<TypeConfig>) -> Result<UnderWay, Unreachable> {
        let mut client = self.client()?;
        let message = pb::AppendEntriesRequest {
            envelope: self.peers.envelope(self.id),
            vote: Some(vote_to_pb(&request.vote)),
            prev_log_id: request.prev_log_id.as_ref().map(log_id_to_pb),
            leader_commit: request.leader_commit.as_ref().map(log_id_to_pb),
            entries: request.entries.iter().map(stored_entry).collect(),
        };
        let (peers, id) = (self.peers.clone(), self.id);
        let is_written = !request.entries.is_empty();
        let call = tokio::spawn(async move {
            let answer = tokio::time::timeout(ANSWER_WITHIN, client.append_entries(message)).await;
            let answer = answer.map_err(|_| tonic::Status::deadline_exceeded("no answer"))?;
            peers.has_answered(id, &answer, is_written);
            Ok(answer?.into_inner())
        });
        Ok(UnderWay {
            vote: request.vote,
            after: request.prev_log_id,
            last: last_of(request),
            call,
        })
    }

    fn client(&self) -> Result<Client, Unreachable> {
        let client = self.peers.client(&self.address);
        client.map_err(|error| Unreachable::new(&error))
    }
}

fn last_of(request: &AppendEntriesRequest<TypeConfig>) -> Option<LogId<u64>> {
    let last = request.entries.last().map(|entry| entry.log_id);
    last.or(request.prev_log_id)
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
        let is_heartbeat = request.entries.is_empty();
        let sent_before = match is_heartbeat {
            true => self.heartbeat.take(),
            false => self.append.take(),
        };
        let goes_on = sent_before
            .filter(|sent| sent.vote == request.vote && sent.after == request.prev_log_id);
        let sent = match goes_on {
            Some(sent) => sent,
            None => self.send(&request)?,
        };
        let under_way = match is_heartbeat {
            true => &mut self.heartbeat,
            false => &mut self.append,
        };
        // It stays there when Raft does not wait any longer.
        let sent = under_way.insert(sent);
        let answer = (&mut sent.call).await;
        let carried = sent.last;
        *under_way = None;
        let answer = answer.map_err(|panicked| Unreachable::new(&panicked))?;
        let response = answer.map_err(|status| failed(&status))?;
        Ok(match response.result {
            Some(Appended::Conflict(_)) => AppendEntriesResponse::Conflict,
            Some(Appended::HigherVote(higher)) => AppendEntriesResponse::HigherVote(
                vote(Some(&higher)).ok_or_else(|| malformed("vote"))?,
            ),
            Some(Appended::Success(success)) if success.is_partial => {
                AppendEntriesResponse::PartialSuccess(success.partial.as_ref().map(log_id))
            }
            Some(Appended::Success(_)) if carried < last_of(&request) => {
                AppendEntriesResponse::PartialSuccess(carried)
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
        self.peers.has_answered(self.id, &response, true);
        let response = response.map_err(|status| failed(&status))?.into_inner();
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
        self.peers.has_answered(self.id, &response, false);
        let response = response.map_err(|status| failed(&status))?.into_inner();
        let vote = vote(response.vote.as_ref()).ok_or_else(|| malformed("vote"))?;
        let last = response.last_log_id.as_ref().map(log_id);
        Ok(VoteResponse::new(vote, last, response.granted))
    }

    fn backoff(&self) -> Backoff {
        let rests = [50, 100, 200].into_iter().chain(std::iter::repeat(500));
        Backoff::new(rests.map(Duration::from_millis))
    }
}

#[cfg(test)]
mod tests {
    use downriver_api::cluster::v1::peer_service_server::{PeerService, PeerServiceServer};
    use openraft::{CommittedLeaderId, Entry, EntryPayload};
    use tokio::time::timeout;
    use tokio_stream::wrappers::TcpListenerStream;
    use tonic::{Request, Response, Status};

    use super::*;
    use crate::wire::Wire;

    /// Answers appends after longer than Raft waits for one, and nothing else.
    struct FarNode;

    const RAFT_WAITS: Duration = Duration::from_millis(60);

    macro_rules! answers_appends_alone {
        ($($method:ident: $asked:ident -> $answer:ident),*) => {
            #[tonic::async_trait]
            impl PeerService for FarNode {
                async fn append_entries(
                    &self,
                    _request: Request<pb::AppendEntriesRequest>,
                ) -> Result<Response<pb::AppendEntriesResponse>, Status> {
                    tokio::time::sleep(RAFT_WAITS * 3 / 2).await;
                    let done = Appended::Success(Default::default());
                    Ok(Response::new(pb::AppendEntriesResponse { result: Some(done) }))
                }
                $(async fn $method(&self, _: Request<pb::$asked>) -> Result<Response<pb::$answer>, Status> {
                    Err(Status::unimplemented(stringify!($method)))
                })*
            }
        };
    }

    answers_appends_alone! {
        hello: HelloRequest -> HelloResponse,
        join: JoinRequest -> JoinResponse,
        vote: VoteRequest -> VoteResponse,
        install_snapshot: InstallSnapshotRequest -> InstallSnapshotResponse,
        propose: ProposeRequest -> ProposeResponse,
        read_index: ReadIndexRequest -> ReadIndexResponse,
        lead: LeadRequest -> LeadResponse,
        seal_soon: SealSoonRequest -> SealSoonResponse
    }

    #[tokio::test]
    async fn an_append_is_answered_though_the_way_is_long_and_heartbeats_come_between() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
        let listener = listener.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let serving = tonic::transport::Server::builder()
            .add_service(PeerServiceServer::new(FarNode))
            .serve_with_incoming(TcpListenerStream::new(listener));
        tokio::spawn(serving);

        let id = |index| LogId::new(CommittedLeaderId::new(1, 1), index);
        let mut network = Network(Peers::new(1, None));
        let mut peer = network
            .new_client(2, &BasicNode::new(address.to_string()))
            .await;
        // A leader that does not know yet where a follower's log agrees with its own asks from somewhere in the middle; its
        // heartbeats go out from the last place that is known to agree.
        let append = AppendEntriesRequest::<TypeConfig> {
            vote: Vote::new_committed(1, 1),
            prev_log_id: Some(id(7)),
            leader_commit: None,
            entries: vec![Entry {
                log_id: id(8),
                payload: EntryPayload::Normal(Wire(pb::Entry::default())),
            }],
        };
        let heartbeat = AppendEntriesRequest {
            prev_log_id: None,
            entries: Vec::new(),
            ..append.clone()
        };
        let mut answered = false;
        for _ in 0..20 {
            let option = RPCOption::new(RAFT_WAITS);
            let answer = timeout(RAFT_WAITS, peer.append_entries(append.clone(), option)).await;
            if let Ok(answer) = answer {
                assert_eq!(
                    answer.expect("it is reached"),
                    AppendEntriesResponse::Success
                );
                answered = true;
                break;
            }
            let option = RPCOption::new(RAFT_WAITS);
            let _ = timeout(RAFT_WAITS, peer.append_entries(heartbeat.clone(), option)).await;
        }
        assert!(answered, "heartbeats displaced the append again and again");
    }
}
