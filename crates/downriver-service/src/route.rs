//! Which node answers a call: any may be asked, and passes on what another one runs.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use downriver_api::admin::v1 as pb;
use downriver_api::admin::v1::admin_service_client::AdminServiceClient;
use downriver_event::problem::Problem;
use downriver_event::{Offset, SourcePosition};
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::MESSAGE_BYTES_MAX;
use crate::admin::{Admin, StoredSpec};
use crate::problem::{of_status, status, to_pb};

/// Marks a call that another node has passed on: it is answered where it arrives.
const PASSED_ON: &str = "downriver-passed-on";
/// Names the shares of a pipeline that are asked for.
const SHARES: &str = "downriver-shares";
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

    /// Asks for the end of a source's log when everything up to a position is in it, which that node captures.
    ///
    /// # Errors
    /// What the node says, or that it does not answer.
    pub async fn passed(
        &self,
        source: &str,
        position: &SourcePosition,
        within: Duration,
    ) -> Result<Offset, Problem> {
        let request = pb::PassedRequest {
            source: source.to_owned(),
            position: Some(position.to_pb()),
            timeout: prost_types::Duration::try_from(within).ok(),
        };
        let passed = self.client().passed(passed_on(request)).await;
        let passed = passed.map_err(|status| self.said_of(source, &status))?;
        Ok(Offset(passed.into_inner().offset))
    }

    /// The tables of a source that the node captures, as "schema.table".
    ///
    /// # Errors
    /// What the node says, or that it does not answer.
    pub async fn tables_of(&self, source: &str) -> Result<BTreeSet<String>, Problem> {
        let request = pb::GetRequest {
            kind: pb::Kind::Source as i32,
            name: source.to_owned(),
        };
        let source_there = self.client().get(passed_on(request)).await;
        let source_there = source_there.map_err(|status| self.said_of(source, &status))?;
        let status = source_there.into_inner().resource.and_then(|it| it.status);
        let tables = status.unwrap_or_default().tables.into_iter();
        Ok(tables.map(|table| table.table).collect())
    }

    fn said_of(&self, source: &str, status: &Status) -> Problem {
        let (said, fix) = match of_status(status) {
            Some(said) => (format!("{}: {}", said.code, said.reason), said.fix),
            None => (status.message().to_owned(), "ask again".into()),
        };
        let reason = format!("node {}, which captures {source:?}: {said}", self.name);
        Problem::new("DR-2072", reason, fix)
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

/// The shares of a pipeline that another node, which answers for it, asks this one for; empty: the whole pipeline.
pub(crate) fn shares_of<T>(request: &Request<T>) -> Vec<u32> {
    let named = request.metadata().get(SHARES);
    let named = named.and_then(|named| named.to_str().ok());
    let shares = named.unwrap_or_default().split(' ');
    shares.filter_map(|share| share.parse().ok()).collect()
}

/// A request to a node for the shares of a pipeline that it has.
pub(crate) fn to_sharer<T>(message: T, shares: &[u32]) -> Request<T> {
    let mut request = passed_on(message);
    let shares: Vec<String> = shares.iter().map(u32::to_string).collect();
    let shares = AsciiMetadataValue::try_from(shares.join(" "));
    request
        .metadata_mut()
        .insert(SHARES, shares.expect("numbers are plain"));
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
    /// Resources with the status that the nodes have which run each.
    pub(crate) async fn with_status(&self, stored: Vec<StoredSpec>) -> Vec<pb::Resource> {
        let mut known: Vec<Vec<Known>> = Vec::new();
        let mut elsewhere: BTreeMap<u64, (Peer, Vec<usize>)> = BTreeMap::new();
        for (at, stored) in stored.iter().enumerate() {
            let mut places = vec![self.engine.owner(stored.kind, &stored.name)];
            if stored.kind == pb::Kind::Pipeline {
                let sharers = self.engine.sharers(&stored.name).into_iter();
                places.extend(sharers.map(|(place, _)| place));
            }
            let mut of_it = Vec::new();
            let mut is_here = false;
            for place in places {
                match place {
                    Where::Here => is_here = true,
                    Where::There(peer) => {
                        let (_, asked) = elsewhere
                            .entry(peer.id)
                            .or_insert_with(|| (peer, Vec::new()));
                        if asked.last() != Some(&at) {
                            asked.push(at);
                        }
                    }
                    Where::Nowhere(problem) => of_it.push(Err(problem)),
                }
            }
            if is_here {
                of_it.push(Ok(self.engine.status(stored.kind, &stored.name)));
            }
            known.push(of_it);
        }
        for (peer, asked) in elsewhere.into_values() {
            let of_peer: Vec<&StoredSpec> = asked.iter().map(|at| &stored[*at]).collect();
            let statuses = statuses(&peer, &of_peer).await;
            for (at, status) in asked.into_iter().zip(statuses) {
                known[at].push(status);
            }
        }
        let with = stored.into_iter().zip(known);
        let with = with.map(|(stored, known)| resource(stored, Some(joined(known))));
        let mut resources: Vec<pb::Resource> = with.collect();
        resources.sort_by(|a, b| (a.kind, &a.name).cmp(&(b.kind, &b.name)));
        resources
    }

    /// Other nodes that run shares of a pipeline, and which.
    pub(crate) fn sharers(&self, pipeline: &str) -> Result<Vec<Sharer>, Status> {
        let mut sharers = Vec::new();
        for (place, shares) in self.engine.sharers(pipeline) {
            match place {
                Where::Here => {}
                Where::There(peer) => sharers.push((peer.client(), shares)),
                Where::Nowhere(problem) => return Err(status(Code::Unavailable, &problem)),
            }
        }
        Ok(sharers)
    }
}

/// Another node that runs shares of a pipeline, and which.
type Sharer = (AdminServiceClient<Channel>, Vec<u32>);

/// What a node says of something that runs there, or why that is not known.
type Known = Result<pb::Status, Problem>;

/// What each of the nodes says that run a pipeline, as one status.
fn joined(known: Vec<Known>) -> pb::Status {
    let mut all: Option<pb::Status> = None;
    let mut silent = None;
    for known in known {
        match known {
            Ok(status) => {
                all = Some(match all {
                    Some(all) => join(all, status),
                    None => status,
                });
            }
            Err(problem) => silent = silent.or(Some(problem)),
        }
    }
    let mut all = all.unwrap_or_else(|| pb::Status {
        state: "pending".into(),
        ..pb::Status::default()
    });
    if let Some(silent) = silent {
        all.problem.get_or_insert_with(|| to_pb(&silent));
    }
    all
}

/// Of the states of two shares of a pipeline the first of these is shown.
const WORSE_FIRST: [&str; 5] = ["stopped", "refused", "paused", "pending", "snapshotting"];

fn join(mut one: pb::Status, other: pb::Status) -> pb::Status {
    let states = [&one.state, &other.state];
    let mut worse = WORSE_FIRST.into_iter();
    if let Some(state) = worse.find(|state| states.contains(&&(*state).to_owned())) {
        one.state = state.to_owned();
    }
    one.problem = one.problem.or(other.problem);
    one.tables.extend(other.tables);
    // One that the source refuses is told by the node that captures as well, and is that.
    let place = |table: &pb::TableStatus| (table.table.clone(), table.state != "refused");
    one.tables.sort_by_key(place);
    one.tables
        .dedup_by(|later, first| later.table == first.table);
    one.next_offset = one.next_offset.max(other.next_offset);
    one.delivered_offset = one.delivered_offset.min(other.delivered_offset);
    let time = |lag: &prost_types::Duration| (lag.seconds, lag.nanos);
    one.lag = [one.lag, other.lag].into_iter().flatten().max_by_key(time);
    // Each reads all of the log.
    one.events = one.events.max(other.events);
    one.rows_per_second = one.rows_per_second.max(other.rows_per_second);
    one
}

/// What another node says of what it runs, in the same order.
async fn statuses(peer: &Peer, stored: &[&StoredSpec]) -> Vec<Known> {
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
    let kinds: BTreeSet<i32> = stored.iter().map(|s| s.kind as i32).collect();
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
            let known = stored.iter().map(|stored| {
                let status = listed.remove(&(stored.kind as i32, stored.name.clone()));
                let status = status.flatten();
                status.ok_or_else(|| silent("it does not know it yet"))
            });
            return known.collect();
        }
        Ok(Err(error)) => silent(error.message()),
        Err(_) => silent("it takes too long"),
    };
    stored.iter().map(|_| Err(problem.clone())).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    fn status(state: &str, delivered: u64, lag: i64, tables: &[(&str, &str)]) -> pb::Status {
        let tables = tables.iter().map(|(table, state)| pb::TableStatus {
            table: (*table).into(),
            state: (*state).into(),
            ..pb::TableStatus::default()
        });
        pb::Status {
            state: state.into(),
            delivered_offset: delivered,
            next_offset: 100,
            lag: Some(prost_types::Duration {
                seconds: lag,
                nanos: 0,
            }),
            tables: tables.collect(),
            ..pb::Status::default()
        }
    }

    #[test]
    fn shares_are_shown_as_one_pipeline() {
        let here = status(
            "streaming",
            100,
            0,
            &[("s.b", "streaming"), ("s.d", "refused")],
        );
        let there = status(
            "stopped",
            70,
            5,
            &[("s.a", "stopped"), ("s.d", "streaming")],
        );
        let gone = Problem::new("DR-1109", "node n3 does not answer", "wait");
        let all = joined(vec![Ok(here.clone()), Ok(there), Err(gone.clone())]);
        assert_eq!((all.state.as_str(), all.delivered_offset), ("stopped", 70));
        assert_eq!(
            (all.next_offset, all.lag.map(|lag| lag.seconds)),
            (100, Some(5))
        );
        let tables = all
            .tables
            .iter()
            .map(|table| (table.table.as_str(), table.state.as_str()));
        assert_eq!(
            tables.collect::<Vec<_>>(),
            [("s.a", "stopped"), ("s.b", "streaming"), ("s.d", "refused")]
        );
        assert_eq!(
            all.problem.map(|problem| problem.code).as_deref(),
            Some("DR-1109")
        );
        assert_eq!(joined(vec![Ok(here.clone())]), here);
        assert_eq!(joined(vec![Err(gone)]).state, "pending");
    }

    #[test]
    fn the_shares_that_are_asked_for_arrive_with_the_request() {
        let asked = to_sharer(pb::WaitRequest::default(), &[1, 12]);
        assert_eq!(
            (shares_of(&asked), is_passed_on(&asked)),
            (vec![1, 12], true)
        );
        assert!(shares_of(&passed_on(pb::WaitRequest::default())).is_empty());
    }
}
