//! The log service: reads one stream's events from any node.

use std::collections::HashSet;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use downriver_api::log::v1::log_service_server::LogService;
use downriver_api::log::v1::subscribe_response::Item;
use downriver_api::log::v1::{self as pb};
use downriver_event::block::{Block, decode_frame};
use downriver_event::problem::Problem;
use downriver_event::{
    DomainGtids, GtidSet, Incarnation, Offset, SourcePosition, TableId, pattern, view,
};
use downriver_log::{Log, ReadError, StoredBlock, StreamState};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status};

use crate::admin::{ConsumerGroup, Engine, GroupCommit, no_group};
use crate::problem::status;

/// Subscribers that one node serves.
const SUBSCRIBERS_MAX: usize = 1_000;
const READ_BYTES_MAX: usize = 1 << 20;
/// Events of one message.
const EVENTS_MAX: usize = 2_000;
/// How often an idle subscriber is told where it stands.
const PROGRESS_EVERY: Duration = Duration::from_secs(10);

pub(crate) struct LogReads {
    log: Arc<dyn Log>,
    engine: Arc<dyn Engine>,
    subscribers: Arc<Semaphore>,
}

impl LogReads {
    pub(crate) fn new(log: Arc<dyn Log>, engine: Arc<dyn Engine>) -> Self {
        Self {
            log,
            engine,
            subscribers: Arc::new(Semaphore::new(SUBSCRIBERS_MAX)),
        }
    }

    async fn resolve(&self, source: &str, start: Option<&pb::Start>) -> Result<Offset, Status> {
        use pb::start::At;
        let state = stream(&*self.log, source)?;
        let offset = match start.and_then(|start| start.at.as_ref()) {
            None | Some(At::Special(0)) => state.trimmed,
            Some(At::Special(special)) if *special == pb::start::Special::Earliest as i32 => {
                state.trimmed
            }
            Some(At::Special(special)) if *special == pb::start::Special::Latest as i32 => {
                state.next
            }
            Some(At::Special(special)) => {
                return Err(unknown_start(format!("start {special} is not known")));
            }
            Some(At::Offset(offset)) => Offset(*offset),
            Some(At::Time(time)) => {
                let micros = time.seconds.saturating_mul(1_000_000) + i64::from(time.nanos / 1_000);
                self.log
                    .offset_at_time(source, micros)
                    .await
                    .map_err(read_status)?
            }
            Some(At::Position(position)) => {
                let position = SourcePosition::from_pb(position).ok_or_else(|| {
                    unknown_start("the position is of no known kind of source".into())
                })?;
                self.offset_after(source, &position).await?
            }
        };
        Ok(offset)
    }

    /// The first transaction that this position does not cover. Of sets that are ordered in part only, what follows it may
    /// be covered.
    async fn offset_after(
        &self,
        source: &str,
        position: &SourcePosition,
    ) -> Result<Offset, Status> {
        let state = stream(&*self.log, source)?;
        let asked = UpTo::in_stream(position, state.position.as_ref())?;
        let mut from = state.trimmed;
        while from < state.next {
            for stored in self
                .log
                .read(source, from, READ_BYTES_MAX)
                .await
                .map_err(read_status)?
            {
                from = stored.end();
                if stored
                    .position_after
                    .as_ref()
                    .is_none_or(|after| asked.covers(after))
                {
                    continue;
                }
                let block = open(&stored)?;
                for transaction in block.transactions.iter().filter(|t| t.events_before == 0) {
                    let at = transaction
                        .position
                        .as_ref()
                        .and_then(SourcePosition::from_pb);
                    let at = at.or_else(|| stored.position_after.clone());
                    if at.is_none_or(|at| !asked.covers(&at)) {
                        return Ok(stored.base.plus(u64::from(transaction.first_event)));
                    }
                }
            }
        }
        Ok(state.next)
    }

    async fn reader(&self, request: pb::SubscribeRequest) -> Result<Reader, Status> {
        let state = stream(&*self.log, &request.source)?;
        let permit = Arc::clone(&self.subscribers)
            .try_acquire_owned()
            .map_err(|_| {
                let problem = Problem::new(
                    "DR-2032",
                    format!("{SUBSCRIBERS_MAX} subscribers are being served"),
                    "read from another node, or end a subscription",
                );
                status(Code::ResourceExhausted, &problem)
            })?;
        let next = self
            .resolve(&request.source, request.start.as_ref())
            .await?;
        let theirs = Incarnation(request.incarnation);
        let is_of_before = request.incarnation != 0 && theirs != state.incarnation;
        if is_of_before && !state.has(theirs, next) {
            let until = state.ended.same_until(theirs).map_or_else(
                || "it never had that one".to_owned(),
                |until| format!("what it had in that one from offset {until} on was lost"),
            );
            let problem = Problem::new(
                "DR-2031",
                format!(
                    "the log's incarnation is {}, not {}: {until}",
                    state.incarnation.0, request.incarnation
                ),
                "read again from the earliest offset, or from where the history was lost",
            );
            return Err(status(Code::FailedPrecondition, &problem));
        }
        Ok(Reader {
            log: Arc::clone(&self.log),
            next,
            until: (request.until_offset > 0).then_some(Offset(request.until_offset)),
            safe: next,
            schemas_sent: HashSet::new(),
            source: request.source.clone(),
            tables: request.tables.clone(),
            blocks: request.format() == pb::Format::Blocks,
            _permit: permit,
        })
    }
}

fn stream(log: &dyn Log, source: &str) -> Result<Arc<StreamState>, Status> {
    log.state(source).ok_or_else(|| {
        let problem = Problem::new(
            "DR-2030",
            format!("source {source:?} has no log"),
            "see downriver get sources; a new source has one when it is connected",
        );
        status(Code::NotFound, &problem)
    })
}

fn cursor(cursor: &pb::GroupCursor) -> (Incarnation, Offset) {
    (Incarnation(cursor.incarnation), Offset(cursor.offset))
}

fn cursor_to_pb((incarnation, offset): (Incarnation, Offset)) -> pb::GroupCursor {
    pb::GroupCursor {
        incarnation: incarnation.0,
        offset: offset.0,
    }
}

/// Another member has the group, or its cursor is elsewhere.
fn not_committed(commit: &GroupCommit, group: &ConsumerGroup) -> Status {
    let name = &commit.name;
    if group.epoch != commit.epoch {
        let problem = Problem::new(
            "DR-2043",
            format!(
                "group {name:?} has member {:?} with epoch {}, not {}",
                group.member, group.epoch, commit.epoch
            ),
            "stop this member, or take the group again and go on at the offset that it has",
        );
        return status(Code::FailedPrecondition, &problem);
    }
    let at = group.cursor.map_or_else(
        || "has committed nothing".to_owned(),
        |(incarnation, offset)| {
            format!("stands at offset {offset} of incarnation {}", incarnation.0)
        },
    );
    let problem = Problem::new(
        "DR-2045",
        format!("group {name:?} {at}, which is not what the commit goes on from"),
        "fetch the group's offset, and go on from there",
    );
    status(Code::Aborted, &problem)
}

fn unknown_start(reason: String) -> Status {
    let fix = "update the node to the client's version, or start at an offset or a time";
    status(Code::InvalidArgument, &Problem::new("DR-2038", reason, fix))
}

fn open(stored: &StoredBlock) -> Result<Block, Status> {
    Block::decode(&stored.frame).map_err(|error| Status::data_loss(error.to_string()))
}

fn read_status(error: ReadError) -> Status {
    let (code, number, fix) = match &error {
        ReadError::NoStream(_) => (Code::NotFound, "DR-2030", "see downriver get sources"),
        ReadError::Trimmed { .. } => (
            Code::OutOfRange,
            "DR-2033",
            "start at earliest; what lies before is gone by retention",
        ),
        ReadError::PastEnd { .. } => (Code::OutOfRange, "DR-2034", "start at latest"),
        ReadError::Damaged { .. } => (
            Code::DataLoss,
            "DR-2035",
            "restore the object from a copy of the object store",
        ),
        ReadError::Store(_) => (
            Code::Unavailable,
            "DR-2036",
            "make the object store reachable and try again",
        ),
    };
    status(code, &Problem::new(number, error.to_string(), fix))
}

/// What lies at or before a position that somebody asked for.
struct UpTo(SourcePosition);

impl UpTo {
    /// `of`: the stream's own position.
    fn in_stream(asked: &SourcePosition, of: Option<&SourcePosition>) -> Result<Self, Status> {
        let Some(of) = of else {
            return Ok(Self(asked.clone()));
        };
        // MySQL's and MariaDB's places look alike.
        let place = asked.place().filter(|_| asked.is_place_only()).cloned();
        let position = match (place, of) {
            (Some(place), SourcePosition::Mysql { .. }) => SourcePosition::Mysql {
                gtids: GtidSet::default(),
                place,
            },
            (Some(place), SourcePosition::Mariadb { .. }) => SourcePosition::Mariadb {
                gtids: DomainGtids::default(),
                place,
            },
            _ => asked.clone(),
        };
        if !position.is_of_kind(of) {
            let reason = format!(
                "the source's positions are such as {of}, and {asked} is of another database"
            );
            let fix = "name a position of the source's own database, an offset, or a time";
            let problem = Problem::new("DR-2039", reason, fix);
            return Err(status(Code::InvalidArgument, &problem));
        }
        Ok(Self(position))
    }

    /// By places if it is one. A log that began behind identifiers has no place before the first transaction.
    fn covers(&self, at: &SourcePosition) -> bool {
        match (self.0.is_place_only(), self.0.place(), at.place()) {
            (true, Some(mine), Some(there)) => there.file.is_empty() || mine.covers(there),
            _ => self.0.covers(at),
        }
    }
}

/// One subscription.
struct Reader {
    log: Arc<dyn Log>,
    source: String,
    /// First offset not delivered.
    next: Offset,
    until: Option<Offset>,
    /// The latest transaction boundary in what was delivered.
    safe: Offset,
    tables: Vec<String>,
    blocks: bool,
    schemas_sent: HashSet<(TableId, u32)>,
    _permit: OwnedSemaphorePermit,
}

impl Reader {
    fn is_done(&self) -> bool {
        self.until.is_some_and(|until| self.next >= until)
    }

    /// What is there to deliver now; empty at the tail.
    async fn read(&mut self) -> Result<Vec<pb::SubscribeResponse>, Status> {
        let state = stream(&*self.log, &self.source)?;
        let stored = self
            .log
            .read(&self.source, self.next, READ_BYTES_MAX)
            .await
            .map_err(read_status)?;
        let mut responses = Vec::new();
        for stored in &stored {
            if self.is_done() {
                break;
            }
            self.block(stored, &state, &mut responses)?;
        }
        Ok(responses)
    }

    fn block(
        &mut self,
        stored: &StoredBlock,
        state: &StreamState,
        responses: &mut Vec<pb::SubscribeResponse>,
    ) -> Result<(), Status> {
        let block = open(stored)?;
        let incarnation = state.incarnation.0;
        let response = |item| pb::SubscribeResponse {
            incarnation,
            item: Some(item),
        };
        for group in &block.groups {
            let key = (group.table, group.schema_version);
            let schema = state.schemas.get(&key);
            if let Some(schema) = schema.filter(|s| self.wants(&s.namespace, &s.name))
                && self.schemas_sent.insert(key)
            {
                responses.push(response(Item::Schema(schema.to_pb())));
            }
        }
        let ends_transaction = block.transactions.last().is_some_and(|last| last.ends);
        if self.blocks {
            let payload =
                decode_frame(&stored.frame).map_err(|e| Status::data_loss(e.to_string()))?;
            responses.push(response(Item::Block(pb::RawBlock {
                base_offset: stored.base.0,
                epoch: stored.epoch.0,
                payload,
                ends_transaction,
            })));
            self.next = stored.end();
            return Ok(());
        }
        let position = stored
            .position_after
            .clone()
            .ok_or_else(|| Status::internal("a block without a position"))?;
        let schema = |table, version| state.schemas.get(&(TableId(table), version)).map(|s| &**s);
        let mut events = view::events(&block, stored.base, &position, schema)
            .map_err(|error| Status::data_loss(error.to_string()))?;
        let end = self
            .until
            .map_or(stored.end(), |until| until.min(stored.end()));
        events.retain(|event| {
            (self.next.0..end.0).contains(&event.offset) && self.wants_event(state, event)
        });
        let ended = block
            .transactions
            .iter()
            .rev()
            .find(|t| t.ends && stored.base.plus(u64::from(t.first_event + t.events)) <= end);
        if let Some(ended) = ended {
            self.safe = stored
                .base
                .plus(u64::from(ended.first_event + ended.events));
        }
        self.next = end;
        let last = events.len().div_ceil(EVENTS_MAX).saturating_sub(1);
        for (at, events) in events.chunks(EVENTS_MAX).enumerate() {
            let next = if at == last {
                end.0
            } else {
                events.last().map_or(end.0, |e| e.offset + 1)
            };
            responses.push(response(Item::Events(pb::Events {
                events: events.to_vec(),
                next_offset: next,
                safe_offset: self.safe.0.min(next),
            })));
        }
        Ok(())
    }

    fn wants(&self, namespace: &str, table: &str) -> bool {
        self.tables.is_empty() || pattern::selects(&self.tables, namespace, table)
    }

    fn wants_event(&self, state: &StreamState, event: &pb::ChangeEvent) -> bool {
        if self.tables.is_empty() {
            return true;
        }
        match event.marker.as_ref().and_then(|m| m.kind.as_ref()) {
            Some(pb::marker::Kind::Truncate(truncate)) => {
                return truncate
                    .table_ids
                    .iter()
                    .any(|id| self.wants_table(state, TableId(*id)));
            }
            // It is in every table.
            Some(pb::marker::Kind::Hole(_)) => return true,
            _ => {}
        }
        self.wants_table(state, TableId(event.table_id))
    }

    fn wants_table(&self, state: &StreamState, table: TableId) -> bool {
        state
            .newest_schema(table)
            .is_some_and(|schema| self.wants(&schema.namespace, &schema.name))
    }

    fn progress(&self) -> pb::SubscribeResponse {
        let state = self.log.state(&self.source);
        let (tail, trimmed, incarnation) = state.map_or((self.next, Offset(0), 0), |s| {
            (s.next, s.trimmed, s.incarnation.0)
        });
        pb::SubscribeResponse {
            incarnation,
            item: Some(Item::Progress(pb::Progress {
                next_offset: self.next.0,
                tail_offset: tail.0,
                trimmed_offset: trimmed.0,
            })),
        }
    }

    async fn run(mut self, sender: mpsc::Sender<Result<pb::SubscribeResponse, Status>>) {
        let mut changes = self.log.changes();
        while !self.is_done() {
            changes.borrow_and_update();
            let responses = match self.read().await {
                Ok(responses) => responses,
                Err(error) => {
                    let _ = sender.send(Err(error)).await;
                    return;
                }
            };
            let at_tail = self
                .log
                .state(&self.source)
                .is_none_or(|state| state.next <= self.next);
            for response in responses {
                if sender.send(Ok(response)).await.is_err() {
                    return;
                }
            }
            if self.is_done() || !at_tail {
                continue;
            }
            tokio::select! {
                changed = changes.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                () = sender.closed() => return,
                () = tokio::time::sleep(PROGRESS_EVERY) => {
                    if sender.send(Ok(self.progress())).await.is_err() {
                        return;
                    }
                }
            }
        }
        let _ = sender.send(Ok(self.progress())).await;
    }
}

#[tonic::async_trait]
impl LogService for LogReads {
    type SubscribeStream =
        Pin<Box<dyn Stream<Item = Result<pb::SubscribeResponse, Status>> + Send>>;

    async fn subscribe(
        &self,
        request: Request<pb::SubscribeRequest>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let reader = self.reader(request.into_inner()).await?;
        let (sender, receiver) = mpsc::channel(4);
        tokio::spawn(reader.run(sender));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn fetch(
        &self,
        request: Request<pb::FetchRequest>,
    ) -> Result<Response<pb::FetchResponse>, Status> {
        let request = request.into_inner();
        let mut reader = self
            .reader(request.subscription.unwrap_or_default())
            .await?;
        let wait = request
            .max_wait
            .and_then(|wait| Duration::try_from(wait).ok())
            .unwrap_or_default();
        let deadline = tokio::time::Instant::now() + wait;
        let mut changes = self.log.changes();
        let items = loop {
            changes.borrow_and_update();
            let items = reader.read().await?;
            if !items.is_empty() || reader.is_done() {
                break items;
            }
            let changed = tokio::time::timeout_at(deadline, changes.changed()).await;
            if changed.is_err() {
                break items;
            }
        };
        let tail_offset = stream(&*self.log, &reader.source)?.next.0;
        Ok(Response::new(pb::FetchResponse {
            items,
            next_offset: reader.next.0,
            tail_offset,
        }))
    }

    async fn resolve_offset(
        &self,
        request: Request<pb::ResolveOffsetRequest>,
    ) -> Result<Response<pb::ResolveOffsetResponse>, Status> {
        let request = request.into_inner();
        let offset = self
            .resolve(&request.source, request.start.as_ref())
            .await?;
        let state = stream(&*self.log, &request.source)?;
        Ok(Response::new(pb::ResolveOffsetResponse {
            offset: offset.0,
            trimmed_offset: state.trimmed.0,
            tail_offset: state.next.0,
            incarnation: state.incarnation.0,
            position: state.position.as_ref().map(SourcePosition::to_pb),
        }))
    }

    async fn fetch_offset(
        &self,
        request: Request<pb::FetchOffsetRequest>,
    ) -> Result<Response<pb::FetchOffsetResponse>, Status> {
        let request = request.into_inner();
        let (source, name) = (&request.source, &request.group);
        stream(&*self.log, source)?;
        if name.is_empty() {
            return Err(Status::invalid_argument("the group has no name"));
        }
        let unavailable = |problem: Problem| status(Code::Unavailable, &problem);
        let group = match request.take {
            true => {
                let taken = self.engine.take_group(source, name, &request.member).await;
                Some(taken.map_err(unavailable)?)
            }
            false => {
                let known = self.engine.group(source, name).await;
                known.map_err(unavailable)?
            }
        };
        Ok(Response::new(group.map_or_else(
            pb::FetchOffsetResponse::default,
            |group| pb::FetchOffsetResponse {
                epoch: group.epoch,
                cursor: group.cursor.map(cursor_to_pb),
                member: group.member,
            },
        )))
    }

    async fn commit_offset(
        &self,
        request: Request<pb::CommitOffsetRequest>,
    ) -> Result<Response<pb::CommitOffsetResponse>, Status> {
        let request = request.into_inner();
        stream(&*self.log, &request.source)?;
        let cursor = request.cursor.as_ref().map(cursor);
        let commit = GroupCommit {
            cursor: cursor.ok_or_else(|| Status::invalid_argument("the commit has no cursor"))?,
            expected: request.expected.as_ref().map(self::cursor),
            source: request.source,
            name: request.group,
            epoch: request.epoch,
        };
        let committed = self.engine.commit_group(commit.clone()).await;
        let committed = committed.map_err(|problem| {
            let code = match problem.code {
                "DR-2044" => Code::FailedPrecondition,
                _ => Code::Unavailable,
            };
            status(code, &problem)
        });
        match committed? {
            None => Ok(Response::new(pb::CommitOffsetResponse {})),
            Some(group) if group.epoch == 0 => Err(no_group(&commit.source, &commit.name)),
            Some(group) => Err(not_committed(&commit, &group)),
        }
    }

    async fn get_schema(
        &self,
        request: Request<pb::GetSchemaRequest>,
    ) -> Result<Response<pb::GetSchemaResponse>, Status> {
        let request = request.into_inner();
        let state = stream(&*self.log, &request.source)?;
        let table = TableId(request.table_id);
        let found = match request.version {
            0 => state.newest_schema(table),
            version => state.schemas.get(&(table, version)),
        };
        match found {
            Some(schema) => Ok(Response::new(pb::GetSchemaResponse {
                schema: Some(schema.to_pb()),
            })),
            None => Err(Status::not_found("there is no such table or version")),
        }
    }
}
