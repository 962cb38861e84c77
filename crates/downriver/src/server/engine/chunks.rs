//! Chunks of snapshots that one node reads for another, which captures the source.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use downriver_api::admin::v1 as admin;
use downriver_api::cluster::v1::chunk_service_client::ChunkServiceClient;
use downriver_api::cluster::v1::chunk_service_server::{ChunkService, ChunkServiceServer};
use downriver_api::cluster::v1::{
    self as pb, chunk_end::Seen as PbSeen, read_chunks_response::Part,
};
use downriver_cluster::Node;
use downriver_event::{EncodedBlock, SourcePosition, TableSchema};
use downriver_pipeline::capture::{EncodedChunk, Helper, Helpers, WantedChunk, help};
use downriver_service::MESSAGE_BYTES_MAX;
use downriver_service::spec::Spec;
use downriver_source::chunk::{Chunk, ChunkRequest, Seen};
use downriver_source::postgres::snapshot::PgSnapshot;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::NodeEngine;
use super::captures::database;

/// Who takes longer for a chunk is given up.
const SAYS_WITHIN: Duration = Duration::from_secs(120);
/// Blocks on their way.
const PARTS_MAX: usize = 4;

/// The nodes that may read chunks of a source for this one.
pub(super) struct OtherNodes {
    pub(super) node: Arc<Node>,
    pub(super) source: String,
    /// Of the source's specification: both go by the same.
    pub(super) revision: u64,
}

impl fmt::Debug for OtherNodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OtherNodes")
            .field("source", &self.source)
            .finish_non_exhaustive()
    }
}

impl Helpers for OtherNodes {
    fn of_worker(&self, worker: usize) -> Option<Box<dyn Helper>> {
        let members = self.node.members().into_iter();
        let members = members.filter(|view| view.is_alive != Some(false));
        let members = members.map(|view| view.member);
        let able = members.filter(|member| !member.draining && !member.removed);
        let nodes: Vec<u64> = able.map(|member| member.id).collect();
        let id = in_turn(worker, self.node.id(), &nodes)?;
        let channel = self.node.bulk_channel_to(id).ok()?;
        Some(Box::new(OtherNode {
            name: self.node.member(id).map(|member| member.name)?,
            client: ChunkServiceClient::new(channel)
                .max_decoding_message_size(MESSAGE_BYTES_MAX)
                .max_encoding_message_size(MESSAGE_BYTES_MAX),
            begin: pb::ReadChunksRequest {
                source: self.source.clone(),
                revision: self.revision,
                ..pb::ReadChunksRequest::default()
            },
            session: None,
        }))
    }
}

/// Workers go round the nodes, from this one on; `None`: it is this one's turn.
fn in_turn(worker: usize, here: u64, nodes: &[u64]) -> Option<u64> {
    let (before, after): (Vec<u64>, Vec<u64>) = nodes.iter().partition(|id| **id < here);
    let mut others: Vec<u64> = after.into_iter().chain(before).collect();
    others.retain(|id| *id != here);
    match worker % (others.len() + 1) {
        0 => None,
        turn => Some(others[turn - 1]),
    }
}

/// One of them, and what was begun with it.
struct OtherNode {
    name: String,
    client: ChunkServiceClient<tonic::transport::Channel>,
    begin: pb::ReadChunksRequest,
    session: Option<(
        mpsc::Sender<pb::ReadChunksRequest>,
        Streaming<pb::ReadChunksResponse>,
    )>,
}

#[async_trait]
impl Helper for OtherNode {
    async fn read(&mut self, wanted: &WantedChunk) -> Result<Option<EncodedChunk>, String> {
        let read = self.ask(wanted).await;
        read.map_err(|status| format!("node {}: {}", self.name, status.message()))
    }
}

impl OtherNode {
    async fn ask(&mut self, wanted: &WantedChunk) -> Result<Option<EncodedChunk>, Status> {
        let gone = || Status::unavailable("it reads no more");
        let request = to_pb(&self.begin, wanted);
        let (_, parts) = match &mut self.session {
            Some(session) => {
                session.0.send(request).await.map_err(|_| gone())?;
                session
            }
            None => {
                let (requests, receiver) = mpsc::channel(1);
                requests.send(request).await.map_err(|_| gone())?;
                let stream = ReceiverStream::new(receiver);
                let parts = self.client.read_chunks(stream).await?.into_inner();
                self.session.insert((requests, parts))
            }
        };
        let mut blocks = Vec::new();
        loop {
            let part = tokio::time::timeout(SAYS_WITHIN, parts.message()).await;
            let part = part.map_err(|_| Status::deadline_exceeded("it says nothing more"))?;
            match part?.ok_or_else(gone)?.part {
                Some(Part::Block(block)) => blocks.push(EncodedBlock {
                    frame: block.frame,
                    events: block.events,
                    time_min_us: block.time_min_us,
                    time_max_us: block.time_max_us,
                    tables: vec![wanted.schema.id],
                    continues: false,
                }),
                Some(Part::End(end)) => {
                    let chunk = chunk_from_pb(&end);
                    let chunk = chunk.ok_or_else(|| Status::internal("it speaks otherwise"))?;
                    return Ok(Some(EncodedChunk {
                        chunk,
                        blocks,
                        rows: end.rows,
                    }));
                }
                Some(Part::Reshaped(_)) => return Ok(None),
                None => return Err(Status::internal("it speaks otherwise")),
            }
        }
    }
}

fn to_pb(begin: &pb::ReadChunksRequest, wanted: &WantedChunk) -> pb::ReadChunksRequest {
    let request = &wanted.request;
    pb::ReadChunksRequest {
        server: wanted.server.clone(),
        schema: Some(wanted.schema.to_pb()),
        after: request.after.clone(),
        by_keys: request.keys.is_some(),
        keys: request.keys.clone().unwrap_or_default(),
        rows_max: request.rows_max,
        ..begin.clone()
    }
}

fn wanted_from_pb(request: pb::ReadChunksRequest) -> Result<WantedChunk, Status> {
    let schema = request.schema.as_ref();
    let schema = schema.ok_or_else(|| Status::invalid_argument("no table is named"))?;
    let schema = TableSchema::from_pb(schema);
    let schema = schema.map_err(|error| Status::invalid_argument(error.to_string()))?;
    Ok(WantedChunk {
        server: request.server,
        schema: Arc::new(schema),
        request: ChunkRequest {
            part: None,
            after: request.after,
            keys: request.by_keys.then_some(request.keys),
            rows_max: request.rows_max,
        },
    })
}

fn chunk_from_pb(end: &pb::ChunkEnd) -> Option<Chunk> {
    let seen = match end.seen.as_ref()? {
        PbSeen::Snapshot(snapshot) => Seen::In(PgSnapshot::parse(snapshot)?),
        PbSeen::UpTo(position) => Seen::UpTo(SourcePosition::from_pb(position)?),
        PbSeen::UpToPlace(place) => Seen::UpToPlace(place.parse().ok()?),
    };
    Some(Chunk {
        seen,
        high: SourcePosition::from_pb(end.high.as_ref()?)?,
        next: end.next.clone(),
    })
}

fn end_to_pb(chunk: &Chunk, rows: u64) -> pb::ChunkEnd {
    pb::ChunkEnd {
        seen: Some(match &chunk.seen {
            Seen::In(snapshot) => PbSeen::Snapshot(snapshot.to_string()),
            Seen::UpTo(position) => PbSeen::UpTo(position.to_pb()),
            Seen::UpToPlace(place) => PbSeen::UpToPlace(place.to_string()),
        }),
        high: Some(chunk.high.to_pb()),
        next: chunk.next.clone(),
        rows,
    }
}

/// Answers nodes of the cluster: rows as the source has them are for nobody else.
struct Chunks(Arc<NodeEngine>);

/// For other nodes alone.
pub(in crate::server) fn chunk_service(
    engine: Arc<NodeEngine>,
) -> ChunkServiceServer<impl ChunkService> {
    ChunkServiceServer::new(Chunks(engine))
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

type Parts = Pin<Box<dyn Stream<Item = Result<pb::ReadChunksResponse, Status>> + Send>>;

#[tonic::async_trait]
impl ChunkService for Chunks {
    type ReadChunksStream = Parts;

    async fn read_chunks(
        &self,
        requests: Request<Streaming<pb::ReadChunksRequest>>,
    ) -> Result<Response<Parts>, Status> {
        let mut requests = requests.into_inner();
        let first = requests.message().await?;
        let first = first.ok_or_else(|| Status::invalid_argument("nothing is asked"))?;
        let source = first.source.clone();
        let stored = self.0.stored_of(admin::Kind::Source).remove(&source);
        let stored = stored.filter(|stored| stored.revision == first.revision);
        let stored =
            stored.ok_or_else(|| Status::failed_precondition("it knows another source"))?;
        let problem = |problem: downriver_event::problem::Problem| {
            Status::failed_precondition(format!("{}: {}", problem.code, problem.reason))
        };
        let spec = Spec::parse("Source", &stored.spec).map_err(problem)?;
        let Spec::Source(spec) = spec else {
            unreachable!("a source is parsed as one");
        };
        let database = database(&source, &spec).map_err(problem)?;
        let (wants, wanted) = mpsc::channel(1);
        let (reads, mut read) = mpsc::channel::<Option<EncodedChunk>>(1);
        let (parts, receiver) = mpsc::channel(PARTS_MAX);
        let first = wanted_from_pb(first)?;
        // Ends only where what is asked cannot be understood.
        let asking = async move {
            let mut next = Some(first);
            while let Some(want) = next {
                if wants.send(want).await.is_err() {
                    break;
                }
                next = match requests.message().await {
                    Ok(request) => request.map(wanted_from_pb).transpose()?,
                    // Whoever asked is gone.
                    Err(_) => None,
                };
            }
            drop(wants);
            std::future::pending::<Result<(), Status>>().await
        };
        let answers = parts.clone();
        let (chunks, rows) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        let (chunks_read, rows_read) = (Arc::clone(&chunks), Arc::clone(&rows));
        let answering = async move {
            while let Some(encoded) = read.recv().await {
                if let Some(encoded) = &encoded {
                    chunks_read.fetch_add(1, Ordering::Relaxed);
                    rows_read.fetch_add(encoded.rows, Ordering::Relaxed);
                }
                for part in to_parts(encoded) {
                    if answers.send(Ok(part)).await.is_err() {
                        return;
                    }
                }
            }
        };
        let stopping = self.0.stopping.clone();
        tokio::spawn(async move {
            let helping = async { tokio::join!(help(&database, wanted, reads), answering) };
            let failed = tokio::select! {
                () = stopping.cancelled() => Some(Status::unavailable("it is about to stop")),
                () = parts.closed() => None,
                asked = asking => asked.err(),
                (helped, ()) = helping => helped.err().map(Status::unavailable),
            };
            tracing::info!(source, ?chunks, ?rows, "read chunks for another node");
            if let Some(failed) = failed {
                // Whoever asked may be gone.
                let _ = parts.send(Err(failed)).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

fn to_parts(encoded: Option<EncodedChunk>) -> Vec<pb::ReadChunksResponse> {
    let parts = match encoded {
        None => vec![Part::Reshaped(pb::Done {})],
        Some(EncodedChunk {
            chunk,
            blocks,
            rows,
        }) => {
            let blocks = blocks.into_iter().map(|block| {
                Part::Block(pb::ChunkBlock {
                    frame: block.frame,
                    events: block.events,
                    time_min_us: block.time_min_us,
                    time_max_us: block.time_max_us,
                })
            });
            let end = Part::End(end_to_pb(&chunk, rows));
            blocks.chain([end]).collect()
        }
    };
    let parts = parts.into_iter();
    parts
        .map(|part| pb::ReadChunksResponse { part: Some(part) })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_go_round_the_nodes_from_the_one_that_captures() {
        let nodes = [10, 20, 30];
        let turns = |here| -> Vec<Option<u64>> {
            (0..5).map(|worker| in_turn(worker, here, &nodes)).collect()
        };
        assert_eq!(turns(20), [None, Some(30), Some(10), None, Some(30)]);
        assert_eq!(turns(30), [None, Some(10), Some(20), None, Some(10)]);
        // One that is alone, or no member yet.
        assert_eq!(in_turn(1, 20, &[20]), None);
        assert_eq!(in_turn(1, 20, &[]), None);
    }
}
