//! Which node answers a call: any may be asked, and passes on what another one runs.

use std::collections::BTreeMap;
use std::time::Duration;

use downriver_api::admin::v1 as pb;
use downriver_api::admin::v1::admin_service_client::AdminServiceClient;
use downriver_event::problem::Problem;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::MESSAGE_BYTES_MAX;
use crate::admin::{Admin, StoredSpec};
use crate::problem::{status, to_pb};

/// Marks a call that another node has passed on: it is answered where it arrives.
const PASSED_ON: &str = "downriver-passed-on";
/// How long another node may take to tell what it knows.
pub(crate) const STATUS_WITHIN: Duration = Duration::from_secs(1);

/// Where something runs, or is decided.
#[derive(Clone, Debug)]
pub enum Where {
    Here,
    There(Peer),
    /// Why nobody can be asked now.
    Nowhere(Problem),
}

/// Another node.
#[derive(Clone, Debug)]
pub struct Peer {
    pub id: u64,
    /// As people call it.
    pub name: String,
    pub channel: Channel,
}

impl Peer {
    pub(crate) fn client(&self) -> AdminServiceClient<Channel> {
        AdminServiceClient::new(self.channel.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }
}

pub(crate) fn is_passed_on<T>(request: &Request<T>) -> bool {
    request.metadata().contains_key(PASSED_ON)
}

/// The same request, marked.
pub(crate) fn passed_on<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    let mark = AsciiMetadataValue::from_static("1");
    request.metadata_mut().insert(PASSED_ON, mark);
    request
}

/// The node to pass a request on to; `None`: it is answered here.
pub(crate) fn elsewhere<T>(
    request: &Request<T>,
    place: impl FnOnce(&T) -> Where,
) -> Result<Option<AdminServiceClient<Channel>>, Status> {
    if is_passed_on(request) {
        return Ok(None);
    }
    match place(request.get_ref()) {
        Where::Here => Ok(None),
        Where::There(peer) => Ok(Some(peer.client())),
        Where::Nowhere(problem) => Err(status(Code::Unavailable, &problem)),
    }
}

impl Admin {
    /// Resources with the status that the node has which runs each.
    pub(crate) async fn with_status(&self, stored: Vec<StoredSpec>) -> Vec<pb::Resource> {
        let mut resources = Vec::new();
        let mut elsewhere: BTreeMap<u64, (Peer, Vec<StoredSpec>)> = BTreeMap::new();
        for stored in stored {
            match self.engine.owner(stored.kind, &stored.name) {
                Where::Here => resources.push(self.resource(stored)),
                Where::There(peer) => {
                    let of_peer = elsewhere.entry(peer.id);
                    of_peer.or_insert_with(|| (peer, Vec::new())).1.push(stored);
                }
                Where::Nowhere(problem) => resources.push(unknown(stored, &problem)),
            }
        }
        for (peer, stored) in elsewhere.into_values() {
            resources.extend(statuses(&peer, stored).await);
        }
        resources.sort_by(|a, b| (a.kind, &a.name).cmp(&(b.kind, &b.name)));
        resources
    }
}

async fn statuses(peer: &Peer, stored: Vec<StoredSpec>) -> Vec<pb::Resource> {
    let silent = |reason: &str| {
        Problem::new(
            "DR-1109",
            format!(
                "node {}, which runs it, does not answer: {reason}",
                peer.name
            ),
            "wait until the node is back, or what it runs is with another",
        )
    };
    let kinds: std::collections::BTreeSet<i32> = stored.iter().map(|s| s.kind as i32).collect();
    let listed = async {
        let mut listed = BTreeMap::new();
        for kind in kinds {
            let mut page_token = String::new();
            loop {
                let request = pb::ListRequest {
                    kind,
                    page_token,
                    ..pb::ListRequest::default()
                };
                let page = peer.client().list(passed_on(request)).await?.into_inner();
                for resource in page.resources {
                    listed.insert((resource.kind, resource.name), resource.status);
                }
                page_token = page.next_page_token;
                if page_token.is_empty() {
                    break;
                }
            }
        }
        Ok::<_, Status>(listed)
    };
    let problem = match tokio::time::timeout(STATUS_WITHIN, listed).await {
        Ok(Ok(mut listed)) => {
            let with = stored.into_iter().map(|stored| {
                match listed.remove(&(stored.kind as i32, stored.name.clone())) {
                    Some(status) => resource(stored, status),
                    None => unknown(stored, &silent("it does not know it yet")),
                }
            });
            return with.collect();
        }
        Ok(Err(error)) => silent(error.message()),
        Err(_) => silent("it takes too long"),
    };
    let unknown = stored.into_iter().map(|stored| unknown(stored, &problem));
    unknown.collect()
}

fn unknown(stored: StoredSpec, problem: &Problem) -> pb::Resource {
    let status = pb::Status {
        state: "pending".into(),
        problem: Some(to_pb(problem)),
        ..pb::Status::default()
    };
    resource(stored, Some(status))
}

pub(crate) fn resource(stored: StoredSpec, status: Option<pb::Status>) -> pb::Resource {
    pb::Resource {
        kind: stored.kind as i32,
        status,
        name: stored.name,
        spec_json: stored.spec.to_string(),
        etag: stored.revision.to_string(),
    }
}
