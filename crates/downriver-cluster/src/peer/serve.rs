//! What other nodes ask of this one.

use std::convert::Infallible;
use std::sync::{Arc, OnceLock};

use axum::body::Body;
use downriver_api::cluster::v1 as pb;
use downriver_api::cluster::v1::append_entries_response as appended;
use downriver_api::cluster::v1::peer_service_server::{PeerService, PeerServiceServer};
use openraft::error::{InstallSnapshotError, RaftError};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, VoteRequest,
};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::service::Routes;
use tonic::{Request, Response, Status};
use tower::ServiceExt as _;

use super::convert::{log_id, log_id_to_pb, vote, vote_to_pb};
use super::{Credentials, MESSAGE_BYTES_MAX, WINDOW_BYTES};
use crate::node::Node;
use crate::store::raft_entry;
use crate::{form, transfer};

/// What a node serves to others beside what the nodes themselves need; set when it is there.
pub(crate) type Also = Arc<OnceLock<Routes>>;

/// Serves other nodes until the task is aborted.
pub(crate) async fn serve(
    listener: TcpListener,
    credentials: Option<Credentials>,
    node: Arc<Node>,
    also: Also,
) -> Result<(), tonic::transport::Error> {
    let peers = PeerServiceServer::new(Answers { node })
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let later = move |request: axum::extract::Request| {
        let also = Arc::clone(&also);
        async move {
            match also.get() {
                Some(routes) => {
                    let answer = routes.clone().oneshot(request).await;
                    answer.map(|answer| answer.map(Body::new))
                }
                None => {
                    Ok::<_, Infallible>(Status::unavailable("the node is starting").into_http())
                }
            }
        }
    };
    let routes = axum::Router::new()
        .route_service("/downriver.cluster.v1.PeerService/{*method}", peers)
        .fallback(later);
    let mut server = tonic::transport::Server::builder()
        .tcp_nodelay(true)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(2 * WINDOW_BYTES);
    if let Some(credentials) = credentials {
        server = server.tls_config(credentials.server())?;
    }
    server
        .add_routes(Routes::from(routes))
        .serve_with_incoming(TcpListenerStream::new(listener))
        .await
}

struct Answers {
    node: Arc<Node>,
}

fn missing(what: &str) -> Status {
    Status::invalid_argument(format!("the request has no {what}"))
}

/// Raft asks again.
fn full(reason: String) -> Status {
    Status::resource_exhausted(reason)
}

fn fatal(error: &impl std::fmt::Display) -> Status {
    Status::internal(error.to_string())
}

impl Answers {
    /// Refuses what is for another node, or of another cluster.
    fn check(&self, envelope: Option<&pb::Envelope>) -> Result<(), Status> {
        let envelope = envelope.ok_or_else(|| missing("envelope"))?;
        let node = &self.node;
        if envelope.to != node.id() {
            return Err(Status::failed_precondition(format!(
                "this is node {}, not {}",
                node.id(),
                envelope.to
            )));
        }
        let mine = node.cluster_id();
        if mine.is_empty() && !envelope.cluster_id.is_empty() {
            // It knows this node's number: it was founded with this node.
            return node
                .enter_cluster(&envelope.cluster_id)
                .map_err(|error| fatal(&error));
        }
        if envelope.cluster_id != mine {
            return Err(Status::failed_precondition(format!(
                "this node is of cluster {mine:?}, not of {:?}",
                envelope.cluster_id
            )));
        }
        Ok(())
    }
}

#[tonic::async_trait]
impl PeerService for Answers {
    async fn hello(
        &self,
        request: Request<pb::HelloRequest>,
    ) -> Result<Response<pb::HelloResponse>, Status> {
        Ok(Response::new(self.node.hello(&request.into_inner())))
    }

    async fn join(
        &self,
        request: Request<pb::JoinRequest>,
    ) -> Result<Response<pb::JoinResponse>, Status> {
        let request = request.into_inner();
        if request.cluster_id != self.node.cluster_id() {
            return Err(Status::failed_precondition(format!(
                "this node is of cluster {:?}",
                self.node.cluster_id()
            )));
        }
        let leader_address = form::let_in(&self.node, &request).await?;
        Ok(Response::new(pb::JoinResponse { leader_address }))
    }

    async fn append_entries(
        &self,
        request: Request<pb::AppendEntriesRequest>,
    ) -> Result<Response<pb::AppendEntriesResponse>, Status> {
        let request = request.into_inner();
        self.check(request.envelope.as_ref())?;
        if !request.entries.is_empty() {
            self.node.disk_takes_entries().map_err(full)?;
        }
        let entries = request.entries.into_iter().map(raft_entry);
        let request = AppendEntriesRequest {
            vote: vote(request.vote.as_ref()).ok_or_else(|| missing("vote"))?,
            prev_log_id: request.prev_log_id.as_ref().map(log_id),
            leader_commit: request.leader_commit.as_ref().map(log_id),
            entries: entries
                .collect::<Result<_, _>>()
                .map_err(Status::failed_precondition)?,
        };
        let from = request.vote.leader_id.node_id;
        let answer = self.node.raft().append_entries(request).await;
        use appended::Result as R;
        let result = match answer.map_err(|error| fatal(&error))? {
            AppendEntriesResponse::Success => {
                self.node.peers().is_led_by(from);
                R::Success(appended::Success::default())
            }
            AppendEntriesResponse::PartialSuccess(last) => R::Success(appended::Success {
                partial: last.as_ref().map(log_id_to_pb),
                is_partial: true,
            }),
            AppendEntriesResponse::Conflict => R::Conflict(appended::Conflict {}),
            AppendEntriesResponse::HigherVote(vote) => R::HigherVote(vote_to_pb(&vote)),
        };
        Ok(Response::new(pb::AppendEntriesResponse {
            result: Some(result),
        }))
    }

    async fn vote(
        &self,
        request: Request<pb::VoteRequest>,
    ) -> Result<Response<pb::VoteResponse>, Status> {
        let request = request.into_inner();
        self.check(request.envelope.as_ref())?;
        self.node.disk_takes_votes().map_err(full)?;
        let request = VoteRequest::new(
            vote(request.vote.as_ref()).ok_or_else(|| missing("vote"))?,
            request.last_log_id.as_ref().map(log_id),
        );
        let answer = self.node.raft().vote(request).await;
        let answer = answer.map_err(|error| fatal(&error))?;
        Ok(Response::new(pb::VoteResponse {
            vote: Some(vote_to_pb(&answer.vote)),
            granted: answer.vote_granted,
            last_log_id: answer.last_log_id.as_ref().map(log_id_to_pb),
        }))
    }

    async fn install_snapshot(
        &self,
        request: Request<pb::InstallSnapshotRequest>,
    ) -> Result<Response<pb::InstallSnapshotResponse>, Status> {
        let request = request.into_inner();
        self.check(request.envelope.as_ref())?;
        self.node
            .disk_takes_snapshot(request.data.len() as u64)
            .map_err(full)?;
        let request = InstallSnapshotRequest {
            vote: vote(request.vote.as_ref()).ok_or_else(|| missing("vote"))?,
            meta: serde_json::from_slice(&request.meta_json)
                .map_err(|error| Status::invalid_argument(error.to_string()))?,
            offset: request.offset,
            data: request.data.into(),
            done: request.done,
        };
        let response = match self.node.raft().install_snapshot(request).await {
            Ok(installed) => pb::InstallSnapshotResponse {
                vote: Some(vote_to_pb(&installed.vote)),
                begin_again: false,
            },
            Err(RaftError::APIError(InstallSnapshotError::SnapshotMismatch(_))) => {
                pb::InstallSnapshotResponse {
                    vote: None,
                    begin_again: true,
                }
            }
            Err(RaftError::Fatal(error)) => return Err(fatal(&error)),
        };
        Ok(Response::new(response))
    }

    async fn propose(
        &self,
        request: Request<pb::ProposeRequest>,
    ) -> Result<Response<pb::ProposeResponse>, Status> {
        let request = request.into_inner();
        self.check(request.envelope.as_ref())?;
        let entry = request.entry.ok_or_else(|| missing("entry"))?;
        crate::state::check_format(&entry)
            .map_err(|reason| Status::failed_precondition(format!("the entry {reason}")))?;
        if !self.node.leads() {
            return Ok(Response::new(pb::ProposeResponse::default()));
        }
        let answered = self.node.proposer().propose_here(entry.commands).await;
        let answered = answered.map_err(|error| Status::unavailable(error.to_string()))?;
        let Some((replies, index)) = answered else {
            return Ok(Response::new(pb::ProposeResponse::default()));
        };
        let reply = |kind| pb::CommandReply { kind: Some(kind) };
        Ok(Response::new(pb::ProposeResponse {
            leads: true,
            index,
            replies: replies.into_iter().map(reply).collect(),
        }))
    }

    async fn read_index(
        &self,
        request: Request<pb::ReadIndexRequest>,
    ) -> Result<Response<pb::ReadIndexResponse>, Status> {
        self.check(request.into_inner().envelope.as_ref())?;
        let index = self.node.leaders_read_index().await;
        Ok(Response::new(pb::ReadIndexResponse {
            leads: index.is_some(),
            index: index.unwrap_or_default(),
        }))
    }

    async fn lead(
        &self,
        request: Request<pb::LeadRequest>,
    ) -> Result<Response<pb::LeadResponse>, Status> {
        self.check(request.into_inner().envelope.as_ref())?;
        self.node.disk_takes_entries().map_err(full)?;
        let leads = transfer::take(&self.node).await;
        Ok(Response::new(pb::LeadResponse { leads }))
    }

    async fn seal_soon(
        &self,
        request: Request<pb::SealSoonRequest>,
    ) -> Result<Response<pb::SealSoonResponse>, Status> {
        let request = request.into_inner();
        self.check(request.envelope.as_ref())?;
        self.node.note_seal_soon(&request.stream);
        Ok(Response::new(pb::SealSoonResponse {}))
    }
}
