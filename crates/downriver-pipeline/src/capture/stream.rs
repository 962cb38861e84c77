//! One run of a capture: connect, take up the stream where the log stands, and loop until something fails.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use downriver_decode::postgres::decoder::{Committed, Decoded, PgDecoder, Relation, Streaming};
use downriver_event::block::BLOCK_RAW_BYTES_MAX;
use downriver_event::problem::Problem;
use downriver_event::{BlockBuilder, Lsn, SourcePosition, TableId, pb};
use downriver_log::{ChunkDone, Log, LogError};
use downriver_source::SourceError;
use downriver_source::postgres::catalog::Catalog;
use downriver_source::postgres::replication::{Acknowledger, Message, ReplicationStream};
use downriver_source::postgres::setup;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use super::merge::RecentChanges;
use super::outbox::{Outbox, Tip};
use super::progress::Resume;
use super::registry::{Registered, Registry};
use super::request::{CaptureControl, Request, Reread};
use super::snapshot::{self, Begun, FromWorker, HeldChunk, TableTask};
use super::spool::{Spool, Spooled};
use super::{CaptureConfig, CaptureError};
use crate::status::{Board, SnapshotProgress, SourceStatus, TableState, TableStatus};

/// A block of whole transactions is cut when it has passed this many raw bytes.
const BLOCK_RAW_BYTES: usize = 1 << 20;
/// An open transaction is cut into blocks of this many raw bytes; the largest row comes on top.
const OPEN_BLOCK_RAW_BYTES: usize = BLOCK_RAW_BYTES_MAX - (512 << 10);
/// Bytes of rows between two looks at the size of the open block.
const BYTES_PER_SIZE_CHECK: usize = 16 << 10;
/// A streamed transaction is decoded in parts of this many bytes, so that everything else goes on meanwhile.
const REPLAY_BYTES: usize = 1 << 20;
/// How often an idle source's position is stored.
const POSITION_APPEND_EVERY: Duration = Duration::from_secs(10);
/// How often a source that has just become idle is asked where it is.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// How often held chunks ask the server where it is.
const TICK: Duration = Duration::from_millis(50);
/// Chunks waiting for the stream, over all tables.
const HELD_CHUNKS_MAX: usize = 4;

/// How far the snapshot of a table has come, as the log knows it.
struct TableProgress {
    generation: u64,
    resume: Resume,
}

struct Run<'a> {
    config: &'a CaptureConfig,
    log: &'a Arc<dyn Log>,
    status: &'a Board<SourceStatus>,
    catalog: Arc<Catalog>,
    /// Relations by id that this source captures; `false`: seen, and not captured.
    captured: HashMap<TableId, bool>,
    registry: Registry,
    decoder: PgDecoder,
    /// Transactions in progress.
    spool: Spool,
    /// What is left of the streamed transaction whose commit came.
    replay: Option<Spooled>,
    builder: BlockBuilder,
    /// Bytes of the rows that came since the builder's size was looked at.
    unmeasured_bytes: usize,
    outbox: Outbox,
    recent: RecentChanges,
    snapshots: HashMap<TableId, TableProgress>,
    held: Vec<HeldChunk>,
    /// Tables whose chunks are being read: of the others, changes that a chunk's snapshot saw are forgotten.
    begun: Begun,
    reread: Reread,
    /// Every commit up to here was received and decoded.
    received: Lsn,
    /// The position of the newest whole transaction in the builder.
    committed: Option<SourcePosition>,
    /// `received` when the append under way began.
    received_at_append: Lsn,
    position_appended: Instant,
    /// When the server was last asked where it is, and whether something came since.
    asked: Instant,
    came_since_asked: bool,
}

/// Never returns without an error.
pub(super) async fn run(
    config: &CaptureConfig,
    log: &Arc<dyn Log>,
    status: &Board<SourceStatus>,
    control: &CaptureControl,
    streaming: Streaming,
) -> Result<Infallible, CaptureError> {
    let catalog = Catalog::connect(&config.postgres).await?;
    let identity = catalog.identity().await?;
    let known = log.state(&config.name);
    let position = known
        .as_ref()
        .and_then(|state| state.position.as_ref()?.lsn());
    if let Some(known) = known.filter(|k| !k.identity.is_empty() && k.identity != identity) {
        return Err(CaptureError::Problem(Problem::new(
            "DR-1021",
            format!(
                "the database is not the one that source {:?} captured up to {}: its system identifier differs",
                config.name,
                known
                    .position
                    .as_ref()
                    .map_or_else(String::new, ToString::to_string),
            ),
            "point the source back at the original database, or delete the source and apply it under a new name",
        )));
    }
    let prepared = setup::prepare(&config.postgres, position).await?;
    let start = SourcePosition::Postgres(prepared.position);
    let state = log
        .open(&config.name, Some(start.clone()), identity)
        .await?;
    let position = state.position.clone().unwrap_or(start);
    let from = position.lsn().ok_or_else(|| {
        CaptureError::Problem(Problem::new(
            "DR-1022",
            format!("stream {:?} holds another kind of source", config.name),
            "delete the source and apply it under a new name",
        ))
    })?;
    let tip = Tip {
        stream: config.name.clone(),
        incarnation: state.incarnation,
        epoch: state.epoch,
        next: state.next,
        position: state.position.clone(),
    };
    let spool = Spool::open(&config.spill)?;
    let mut run = Run {
        config,
        log,
        status,
        catalog: Arc::new(catalog),
        captured: HashMap::new(),
        registry: Registry::new(&state),
        decoder: PgDecoder::new(None, Streaming::Off),
        spool,
        replay: None,
        builder: BlockBuilder::new(),
        unmeasured_bytes: 0,
        outbox: Outbox::new(Arc::clone(log), config.spill.clone(), tip),
        recent: RecentChanges::default(),
        snapshots: HashMap::new(),
        held: Vec::new(),
        begun: Begun::default(),
        reread: Reread::default(),
        received: from,
        committed: None,
        received_at_append: from,
        position_appended: Instant::now(),
        asked: Instant::now(),
        came_since_asked: true,
    };
    status.update(|s| {
        s.passed = from;
        s.passed_offset = state.next;
    });
    let tasks = run.take_tables(prepared.tables, &state)?;
    let stream = ReplicationStream::start(&config.postgres, from, streaming).await?;
    let known = state.position.is_some().then_some(from);
    run.decoder = PgDecoder::new(known, stream.streaming());
    let catalog = Arc::clone(&run.catalog);
    let lost = setup::publication_lost(catalog, &config.postgres, prepared.publication);
    tokio::select! {
        result = run.run(stream, tasks, control) => result,
        lost = lost => Err(lost.into()),
    }
}

impl Run<'_> {
    /// Registers the captured tables and returns those whose snapshot is not done.
    fn take_tables(
        &mut self,
        tables: Vec<downriver_source::postgres::catalog::SourceTable>,
        state: &downriver_log::StreamState,
    ) -> Result<Vec<TableTask>, CaptureError> {
        let mut tasks = Vec::new();
        let mut statuses = std::collections::BTreeMap::new();
        for table in tables {
            let id = table.schema.id;
            let name = table.schema.qualified_name();
            self.captured.insert(id, table.problem.is_none());
            if let Some(problem) = table.problem {
                let refused = TableStatus {
                    state: TableState::Refused,
                    problem: Some(problem),
                    ..TableStatus::default()
                };
                statuses.insert(name, refused);
                continue;
            }
            let schema = match self.registry.newest(id) {
                // What the stream brings decides when a known table's shape changes.
                Some(known) => Arc::clone(known),
                None => {
                    let registered = self.registry.register(table.schema);
                    self.announce(&registered);
                    Arc::clone(registered.schema())
                }
            };
            let chunks = state.chunks.get(&id);
            let mut table_status = TableStatus {
                state: TableState::Streaming,
                ..TableStatus::default()
            };
            let wanted = chunks.map_or(self.config.snapshot.initial, |chunks| {
                !chunks.done && (self.config.snapshot.initial || chunks.generation > 1)
            });
            if wanted {
                let resume = chunks.map_or_else(
                    || Some(Resume::default()),
                    |chunks| Resume::decode(chunks.resume_after.clone()),
                );
                let mut resume = resume.ok_or_else(|| {
                    CaptureError::Log(LogError::Unavailable(format!(
                        "the progress of the snapshot of {name} was written by a newer version"
                    )))
                })?;
                let generation = chunks.map_or(1, |chunks| chunks.generation);
                let starts = std::mem::take(&mut resume.requested) || chunks.is_none();
                let rows = chunks.map_or(0, |chunks| chunks.rows);
                table_status.state = TableState::Snapshotting;
                table_status.snapshot = Some(SnapshotProgress {
                    rows_done: rows,
                    rows_estimated: table.estimated_rows,
                    ..SnapshotProgress::default()
                });
                self.recent.track(id);
                if starts {
                    self.start_snapshot(id, generation, &resume);
                }
                tasks.push(TableTask {
                    schema,
                    generation,
                    resume: resume.clone(),
                });
                self.snapshots
                    .insert(id, TableProgress { generation, resume });
            }
            statuses.insert(name, table_status);
        }
        let snapshotting = !tasks.is_empty();
        self.status.update(|s| {
            s.state = if snapshotting {
                TableState::Snapshotting
            } else {
                TableState::Streaming
            };
            s.problem = None;
            s.tables = statuses;
        });
        self.flush()?;
        Ok(tasks)
    }

    /// Puts the start of a table's generation into the log, before every change that counts for it: at its end a
    /// sink deletes what was neither seen nor changed since.
    fn start_snapshot(&mut self, table: TableId, generation: u64, resume: &Resume) {
        self.builder
            .begin("snapshot".into(), snapshot::micros_since_epoch());
        self.builder
            .marker(pb::marker::Kind::SnapshotStart(pb::SnapshotStart {
                table_id: table.0,
                generation,
            }));
        self.builder.commit_unplaced();
        // With the marker in one append: a restart does not start the generation again.
        self.outbox.chunk_done(ChunkDone {
            table,
            generation,
            resume_after: resume.encode(),
            rows: 0,
            last: false,
        });
    }

    async fn run(
        mut self,
        mut stream: ReplicationStream,
        tasks: Vec<TableTask>,
        control: &CaptureControl,
    ) -> Result<Infallible, CaptureError> {
        let mut requests = control.requests.lock().await;
        let acknowledger = stream.acknowledger();
        let mut changes = self.log.changes();
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // Chunks may start only when the transactions that run now are gone from the server's snapshot.
        let postgres = self.config.postgres.clone();
        let mut old_transactions = (!tasks.is_empty())
            .then(|| Box::pin(async move { snapshot::old_transactions_gone(&postgres).await }));
        let mut tasks = Some(tasks);
        let (_idle, mut chunks) = mpsc::channel(1);
        let mut workers = JoinSet::new();
        self.acknowledge(&acknowledger);
        loop {
            if self.outbox.can_append() {
                self.received_at_append = self.received;
                self.outbox.append();
            }
            let full = self.outbox.is_full();
            let room = self.held.len() < HELD_CHUNKS_MAX;
            tokio::select! {
                biased;
                result = self.outbox.appended() => {
                    let progress = result?;
                    self.appended();
                    if self.reread.is_logged(&progress) {
                        return Err(CaptureError::Reread(self.reread.done()));
                    }
                }
                filled = fill(&mut stream, self.replay.is_some()), if !full => {
                    filled?;
                    self.drain(&mut stream).await?;
                    self.release_chunks()?;
                }
                Some(from_worker) = chunks.recv(), if room => {
                    self.take_from_worker(from_worker)?;
                    self.release_chunks()?;
                }
                gone = async { old_transactions.as_mut().expect("guarded").await }, if old_transactions.is_some() => {
                    gone?;
                    old_transactions = None;
                    let tasks = tasks.take().unwrap_or_default();
                    (chunks, workers) = snapshot::start(&self.config.postgres, &self.config.snapshot, tasks, &self.begun);
                }
                Some(ended) = workers.join_next() => {
                    if let Err(panic) = ended
                        && panic.is_panic()
                    {
                        std::panic::resume_unwind(panic.into_panic());
                    }
                }
                Some(request) = requests.recv() => self.requested(request)?,
                _ = changes.changed() => self.acknowledge(&acknowledger),
                () = control.nudge.notified() => acknowledger.request_reply(),
                _ = ticks.tick() => {
                    // The end of a backlog: what was gathered for a larger block waits for nothing more.
                    if !self.builder.in_transaction() {
                        self.flush()?;
                    }
                    self.tick(&acknowledger);
                }
            }
        }
    }

    /// Decodes everything that is buffered, then hands over what is complete.
    ///
    /// A keepalive says that everything which committed up to its position was sent. Transactions in progress,
    /// streamed in part, do not hold it back: their commits lie behind it. Acknowledging it loses nothing of
    /// them: the slot's `restart_lsn` stays before the first record of the oldest transaction that the server is
    /// still decoding, and after a reconnect it sends every transaction again, whole, whose commit lies behind
    /// the acknowledged position, because a new connection remembers no chunk (SnapBuildXactNeedsSkip and
    /// LogicalIncreaseRestartDecodingForSlot in PostgreSQL's source).
    async fn drain(&mut self, stream: &mut ReplicationStream) -> Result<(), CaptureError> {
        if !self.replay().await? {
            return Ok(());
        }
        while let Some(message) = stream.pop()? {
            let payload = match message {
                Message::Keepalive { wal_end, .. } => {
                    if !self.decoder.in_transaction() {
                        self.received = self.received.max(wal_end);
                    }
                    continue;
                }
                Message::Data { payload, .. } => payload,
            };
            match self
                .decoder
                .decode(payload, &mut self.builder)
                .map_err(SourceError::from)?
            {
                Decoded::Row => self.row(payload.len())?,
                Decoded::Relation(relation) => self.relation(&relation).await?,
                Decoded::Commit(committed) => {
                    self.commit(committed)?;
                    if self.outbox.is_full() {
                        break;
                    }
                }
                Decoded::Message(message) => self.message(message)?,
                Decoded::Piece(piece) => self.spool.push(piece.xid, piece.described, payload)?,
                Decoded::StreamAbort { xid } => self.spool.discard(xid),
                Decoded::StreamCommit { xid } => {
                    self.replay = Some(self.spool.take(xid)?);
                    if !self.replay().await? {
                        return Ok(());
                    }
                    if self.outbox.is_full() {
                        break;
                    }
                }
                _ => {}
            }
        }
        let wanted = !stream.has_backlog() || self.builder.raw_bytes() >= BLOCK_RAW_BYTES;
        if wanted && !self.builder.in_transaction() {
            self.flush()?;
        }
        Ok(())
    }

    /// Decodes some more of the streamed transaction whose commit came, as it does the messages of any other.
    /// Whether none is left.
    async fn replay(&mut self) -> Result<bool, CaptureError> {
        let Some(mut spooled) = self.replay.take() else {
            return Ok(true);
        };
        let mut bytes = 0;
        while bytes < REPLAY_BYTES {
            let Some((described, message)) = spooled.next()? else {
                let committed = self.decoder.commit_streamed(&mut self.builder);
                self.commit(committed)?;
                return Ok(true);
            };
            bytes += message.len();
            match self
                .decoder
                .replay(message, described, &mut self.builder)
                .map_err(SourceError::from)?
            {
                Decoded::Row => self.row(message.len())?,
                Decoded::Relation(relation) => self.relation(&relation).await?,
                Decoded::Message(message) => self.message(message)?,
                Decoded::Uncertain { xid } => return Err(CaptureError::Uncertain(xid)),
                _ => {}
            }
        }
        self.replay = Some(spooled);
        Ok(false)
    }

    fn row(&mut self, bytes: usize) -> Result<(), CaptureError> {
        self.unmeasured_bytes += bytes;
        if self.unmeasured_bytes < BYTES_PER_SIZE_CHECK {
            return Ok(());
        }
        self.unmeasured_bytes = 0;
        if self.builder.raw_bytes() >= OPEN_BLOCK_RAW_BYTES {
            self.cut_open()?;
        }
        Ok(())
    }

    fn commit(&mut self, Committed { end_lsn, events }: Committed) -> Result<(), CaptureError> {
        self.received = self.received.max(end_lsn);
        if events > 0 {
            self.committed = Some(SourcePosition::Postgres(end_lsn));
            self.status_events(events);
        }
        self.flush_if_large()
    }

    /// A message that belongs to no transaction becomes one of its own, that moves no position.
    fn message(&mut self, message: pb::LogicalMessage) -> Result<(), CaptureError> {
        self.event("message", pb::marker::Kind::Message(message));
        self.flush_if_large()
    }

    fn flush_if_large(&mut self) -> Result<(), CaptureError> {
        if !self.builder.in_transaction() && self.builder.raw_bytes() >= BLOCK_RAW_BYTES {
            self.flush()?;
        }
        Ok(())
    }

    /// A relation's shape decides which schema its rows use from here on.
    async fn relation(&mut self, relation: &Relation) -> Result<(), CaptureError> {
        let table = TableId(relation.id);
        match self.captured.get(&table) {
            Some(true) => {}
            Some(false) => {
                self.decoder.set_schema(relation.id, None);
                return Ok(());
            }
            None if self
                .config
                .postgres
                .captures(&relation.namespace, &relation.name) =>
            {
                // Made since the capture began. Starting again finds it and takes its snapshot, which
                // contains what is passed over here.
                return Err(CaptureError::NewTable(format!(
                    "{}.{}",
                    relation.namespace, relation.name
                )));
            }
            None => {
                self.captured.insert(table, false);
                self.decoder.set_schema(relation.id, None);
                return Ok(());
            }
        }
        let schema = self
            .catalog
            .schema_of(relation, self.registry.newest(table).map(|s| &**s))
            .await?;
        let before = self.registry.newest(table).cloned();
        let registered = self.registry.register(schema);
        self.announce(&registered);
        if let Some(before) = before
            && self.config.snapshot.initial
            && self
                .catalog
                .fills_rows(&before, registered.schema())
                .await?
        {
            self.read_again(table);
        }
        self.decoder
            .set_schema(relation.id, Some(Arc::clone(registered.schema())));
        Ok(())
    }

    /// Asks for a new snapshot of tables.
    fn requested(&mut self, request: Request) -> Result<(), CaptureError> {
        if request.answer.is_closed() {
            return Ok(());
        }
        let tables = request.tables.into_iter();
        let requested: Vec<_> = tables
            .filter_map(|table| Some((table, self.read_again(table)?)))
            .collect();
        if requested.is_empty() {
            let _ = request.answer.send(requested);
            return Ok(());
        }
        self.reread.answer(request.answer, requested);
        if !self.builder.in_transaction() {
            self.flush()?;
        }
        Ok(())
    }

    /// Wants a table's next generation, once what is open has ended: it is stored with it. `None`: the table is not
    /// captured.
    fn read_again(&mut self, table: TableId) -> Option<u64> {
        let name = self.registry.newest(table)?.qualified_name();
        if self.captured.get(&table) != Some(&true) {
            return None;
        }
        let state = self.log.state(&self.config.name);
        let logged = state.and_then(|state| Some(state.chunks.get(&table)?.generation));
        let generation = logged.unwrap_or(1) + 1;
        // What is under way of the last one must not be stored after this.
        self.recent.forget(table);
        self.snapshots.remove(&table);
        let resume = Resume {
            requested: true,
            ..Resume::default()
        };
        self.outbox.chunk_done_with_open(ChunkDone {
            table,
            generation,
            resume_after: resume.encode(),
            rows: 0,
            last: false,
        });
        self.reread.wait_for(table, generation, name);
        Some(generation)
    }

    /// Puts a new version's announcement into the log, before its first row.
    fn announce(&mut self, registered: &Registered) {
        let Registered::New {
            schema,
            previous_version,
        } = registered
        else {
            return;
        };
        self.outbox.register(Arc::clone(schema));
        let change = pb::marker::Kind::SchemaChange(pb::SchemaChange {
            schema: Some(schema.to_pb()),
            previous_version: *previous_version,
        });
        self.event("schema", change);
    }

    /// Puts an event that is no row into the open transaction, or into one of its own.
    fn event(&mut self, transaction: &str, kind: pb::marker::Kind) {
        if self.builder.in_transaction() {
            self.builder.marker(kind);
        } else {
            self.builder
                .begin(transaction.into(), snapshot::micros_since_epoch());
            self.builder.marker(kind);
            self.builder.commit_unplaced();
        }
    }

    /// Hands over the whole transactions that were built.
    fn flush(&mut self) -> Result<(), CaptureError> {
        debug_assert!(!self.builder.in_transaction());
        let block = self.cut();
        let position = self.committed.take();
        Ok(self.outbox.commit(block, position)?)
    }

    /// Hands over a full block of a transaction that goes on.
    fn cut_open(&mut self) -> Result<(), CaptureError> {
        match self.cut() {
            Some(block) => Ok(self.outbox.push_open(block)?),
            None => Ok(()),
        }
    }

    fn cut(&mut self) -> Option<downriver_event::EncodedBlock> {
        if !self.recent.tracks_any() {
            return self.builder.cut();
        }
        let (encoded, block) = self.builder.cut_and_read()?;
        let registry = &self.registry;
        self.recent
            .observe(&block, |table, version| registry.version(table, version));
        for (table, moved) in self.recent.newly_moved() {
            if let Some(progress) = self.snapshots.get_mut(&table) {
                progress.resume.moved.extend(moved);
                self.outbox.chunk_done(ChunkDone {
                    table,
                    generation: progress.generation,
                    resume_after: progress.resume.encode(),
                    rows: 0,
                    last: false,
                });
            }
        }
        Some(encoded)
    }

    fn take_from_worker(&mut self, from_worker: FromWorker) -> Result<(), CaptureError> {
        match from_worker {
            FromWorker::Chunk(chunk) => self.held.push(*chunk),
            FromWorker::Failed { table, error } if error.is_transient() => {
                tracing::warn!(
                    source = self.config.name,
                    table = table.0,
                    "snapshot failed; it will be tried again"
                );
                return Err(error.into());
            }
            FromWorker::Failed { table, error } => {
                let problem = error.problem();
                tracing::error!(
                    source = self.config.name,
                    table = table.0,
                    code = problem.code,
                    "snapshot stopped"
                );
                self.recent.forget(table);
                self.snapshots.remove(&table);
                self.table_status(table, |status| {
                    status.state = TableState::Stopped;
                    status.problem = Some(problem);
                });
                self.snapshots_ended();
            }
        }
        Ok(())
    }

    /// Lets the chunks that the stream has passed join it.
    fn release_chunks(&mut self) -> Result<(), CaptureError> {
        if self.builder.in_transaction() || self.outbox.is_full() {
            return Ok(());
        }
        let (passed, held) = std::mem::take(&mut self.held)
            .into_iter()
            .partition(|chunk| chunk.high <= self.received);
        self.held = held;
        let passed: Vec<HeldChunk> = passed;
        if passed.is_empty() {
            return Ok(());
        }
        self.flush()?;
        passed.into_iter().try_for_each(|chunk| self.release(chunk))
    }

    fn release(&mut self, mut chunk: HeldChunk) -> Result<(), CaptureError> {
        let table = chunk.schema.id;
        let newest = self.registry.newest(table).map(|schema| schema.version);
        if newest != Some(chunk.schema.version) {
            return Err(CaptureError::SchemaMoved(chunk.schema.qualified_name()));
        }
        let newer = self
            .recent
            .newer_than(table, |xid| chunk.snapshot.sees(xid));
        for block in newer.resolve(std::mem::take(&mut chunk.blocks), &chunk.schema) {
            self.outbox.commit(Some(block), None)?;
        }
        {
            let begun = self.begun.lock().expect("no holder panics");
            self.recent.forget_visible(
                |table| !begun.contains(&table),
                |xid| chunk.snapshot.sees(xid),
            );
        }
        let Some(progress) = self.snapshots.get_mut(&table) else {
            return Ok(());
        };
        for key in chunk.reread.iter().filter(|key| !newer.has_moved(key)) {
            progress.resume.moved.retain(|moved| moved != key);
        }
        progress.resume.next = chunk.next.take();
        progress.resume.exhausted = chunk.moved.is_some();
        let last = chunk.moved.is_some() && progress.resume.moved.is_empty();
        let moved = if chunk.moved.is_some() {
            progress.resume.moved.clone()
        } else {
            Vec::new()
        };
        let done = ChunkDone {
            table,
            generation: progress.generation,
            resume_after: progress.resume.encode(),
            rows: chunk.rows,
            last,
        };
        self.outbox.chunk_done(done);
        self.table_status(table, |status| {
            if let Some(snapshot) = &mut status.snapshot {
                snapshot.began.get_or_insert(chunk.began);
                snapshot.rows_done += chunk.rows;
                snapshot.rows_of_run += chunk.rows;
                snapshot.rows_estimated = snapshot.rows_estimated.max(snapshot.rows_done);
            }
        });
        if last {
            self.end_table(table, chunk.generation)?;
        }
        if let Some(answer) = chunk.moved {
            // A worker that is gone has failed, and said so.
            let _ = answer.send(moved);
        }
        Ok(())
    }

    fn end_table(&mut self, table: TableId, generation: u64) -> Result<(), CaptureError> {
        self.recent.forget(table);
        self.snapshots.remove(&table);
        let rows = self.table_status(table, |status| {
            status.state = TableState::Streaming;
            status.snapshot.as_mut().map_or(0, |snapshot| {
                snapshot.rows_estimated = snapshot.rows_done;
                snapshot.rows_done
            })
        });
        self.builder
            .begin("snapshot".into(), snapshot::micros_since_epoch());
        self.builder
            .marker(pb::marker::Kind::SnapshotEnd(pb::SnapshotEnd {
                table_id: table.0,
                generation,
                rows: rows.unwrap_or_default(),
            }));
        self.builder.commit_unplaced();
        self.flush()?;
        self.snapshots_ended();
        Ok(())
    }

    fn snapshots_ended(&self) {
        if self.snapshots.is_empty() {
            tracing::info!(source = self.config.name, "snapshot complete");
            self.status.update(|s| s.state = TableState::Streaming);
        }
    }

    fn table_status<T>(
        &self,
        table: TableId,
        change: impl FnOnce(&mut TableStatus) -> T,
    ) -> Option<T> {
        let name = self.registry.newest(table)?.qualified_name();
        let mut result = None;
        self.status
            .update(|s| result = s.tables.get_mut(&name).map(change));
        result
    }

    fn status_events(&self, events: u64) {
        self.status.update(|s| s.events += events);
    }

    fn appended(&mut self) {
        let (passed, offset) = (self.received_at_append, self.outbox.tip().next);
        self.position_appended = Instant::now();
        self.came_since_asked = true;
        self.status.update(|s| {
            s.problem = None;
            s.passed = s.passed.max(passed);
            s.passed_offset = offset;
        });
    }

    fn acknowledge(&self, acknowledger: &Acknowledger) {
        let state = self.log.state(&self.config.name);
        let sealed = state.and_then(|state| state.sealed_position.as_ref()?.lsn());
        if let Some(sealed) = sealed {
            acknowledger.acknowledge(sealed);
            self.status
                .update(|s| s.acknowledged = s.acknowledged.max(sealed));
        }
        acknowledger.received(self.received);
    }

    fn tick(&mut self, acknowledger: &Acknowledger) {
        if !self.held.is_empty() {
            acknowledger.request_reply();
        }
        let idle =
            self.outbox.is_idle() && self.builder.events() == 0 && !self.decoder.in_transaction();
        if !idle {
            self.came_since_asked = true;
            return;
        }
        // The last commit is not the end of what the server has written: it says so when it is asked.
        if self.came_since_asked && self.asked.elapsed() >= ASK_EVERY {
            self.asked = Instant::now();
            self.came_since_asked = false;
            acknowledger.request_reply();
        }
        let (passed, offset) = (self.received, self.outbox.tip().next);
        self.status.update(|s| {
            s.passed = s.passed.max(passed);
            s.passed_offset = offset;
        });
        let position = SourcePosition::Postgres(self.received);
        let stored = self
            .outbox
            .tip()
            .position
            .as_ref()
            .is_some_and(|stored| stored.covers(&position));
        if !stored && self.position_appended.elapsed() >= POSITION_APPEND_EVERY {
            self.received_at_append = self.received;
            self.outbox.append_position(position);
        }
    }
}

/// Returns when there is something to decode. May be dropped at any time.
async fn fill(stream: &mut ReplicationStream, replaying: bool) -> Result<(), SourceError> {
    if replaying {
        // Once round: what else is due comes first.
        tokio::task::yield_now().await;
        return Ok(());
    }
    stream.fill().await
}
