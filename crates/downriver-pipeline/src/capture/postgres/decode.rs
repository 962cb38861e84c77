//! What the server sends becomes rows and markers of the open block.

use downriver_decode::postgres::decoder::{Committed, DecodeError, Decoded};
use downriver_event::{Lsn, SourcePosition, TableId, pb};
use downriver_source::SourceError;
use downriver_source::postgres::replication::{Message, ReplicationStream};

use super::super::CaptureError;
use super::Run;

/// A streamed transaction is decoded in parts of this many bytes, so that everything else goes on meanwhile.
const REPLAY_BYTES: usize = 1 << 20;

impl Run<'_> {
    /// Decodes everything that is buffered, then hands over what is complete.
    ///
    /// A keepalive says that everything which committed up to its position was sent. Transactions in progress,
    /// streamed in part, do not hold it back: their commits lie behind it. Acknowledging it loses nothing of
    /// them: the slot's `restart_lsn` stays before the first record of the oldest transaction that the server is
    /// still decoding, and after a reconnect it sends every transaction again, whole, whose commit lies behind
    /// the acknowledged position, because a new connection remembers no chunk (SnapBuildXactNeedsSkip and
    /// LogicalIncreaseRestartDecodingForSlot in PostgreSQL's source).
    pub(super) async fn drain(
        &mut self,
        stream: &mut ReplicationStream,
    ) -> Result<(), CaptureError> {
        if !self.intake.join()? || !self.replay().await? {
            return Ok(());
        }
        while let Some(message) = stream.pop()? {
            let payload = match message {
                Message::Keepalive {
                    wal_end,
                    reply_requested,
                } => {
                    self.is_asked |= reply_requested;
                    if !self.decoder.in_transaction() {
                        self.receive(wal_end);
                    }
                    continue;
                }
                Message::Data { payload, .. } => payload,
            };
            match self
                .decoder
                .decode(payload, &mut self.intake.builder)
                .map_err(undecodable)?
            {
                Decoded::Row => self.intake.rows(payload.len())?,
                Decoded::Lacking { relation } => {
                    self.lacking(TableId(relation))?;
                    self.intake.rows(payload.len())?;
                }
                Decoded::Relation(relation) => self.relation(&relation).await?,
                Decoded::Commit(committed) => {
                    self.commit(committed)?;
                    if self.intake.outbox.is_full() {
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
                    if self.intake.outbox.is_full() {
                        break;
                    }
                }
                _ => {}
            }
        }
        match stream.has_backlog() {
            true => self.intake.flush_if_large(),
            false => self.intake.flush_between(),
        }
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
                let committed = self.decoder.commit_streamed(&mut self.intake.builder);
                self.commit(committed)?;
                return Ok(true);
            };
            bytes += message.len();
            match self
                .decoder
                .replay(message, described, &mut self.intake.builder)
                .map_err(undecodable)?
            {
                Decoded::Row => self.intake.rows(message.len())?,
                Decoded::Lacking { relation } => {
                    self.lacking(TableId(relation))?;
                    self.intake.rows(message.len())?;
                }
                Decoded::Relation(relation) => self.relation(&relation).await?,
                Decoded::Message(message) => self.message(message)?,
                Decoded::Uncertain { xid } => return Err(CaptureError::Uncertain(xid)),
                _ => {}
            }
        }
        self.replay = Some(spooled);
        Ok(false)
    }

    /// What a row lacks is read again: by the snapshot that runs, or by one that begins before the row's transaction.
    fn lacking(&self, table: TableId) -> Result<(), CaptureError> {
        if self.intake.snapshots.contains_key(&table) {
            return Ok(());
        }
        let name = self.intake.registry.newest(table);
        let name = name.map(|schema| schema.qualified_name());
        Err(CaptureError::Lacking(table, name.unwrap_or_default()))
    }

    /// Every commit that ends here or before was decoded.
    fn receive(&mut self, position: Lsn) {
        let position = SourcePosition::Postgres(position);
        if position.covers(&self.intake.received) {
            self.intake.received = position;
        }
    }

    fn commit(&mut self, Committed { end_lsn, events }: Committed) -> Result<(), CaptureError> {
        self.receive(end_lsn);
        // What a transaction without events asks for is stored with its end: else it would come, and ask, for ever.
        if events > 0 || self.intake.outbox.has_open_progress() {
            self.intake.committed = Some(SourcePosition::Postgres(end_lsn));
        }
        self.intake.count_events(events);
        self.intake.flush_if_large()
    }

    /// A message that belongs to no transaction becomes one of its own, that moves no position.
    fn message(&mut self, message: pb::LogicalMessage) -> Result<(), CaptureError> {
        self.intake
            .event("message", pb::marker::Kind::Message(message));
        self.intake.flush_if_large()
    }
}

/// A value stops its table; whatever else is not understood stops the source.
fn undecodable(error: DecodeError) -> CaptureError {
    let table = match &error {
        DecodeError::Value { id, .. } => Some(*id),
        _ => None,
    };
    let error = SourceError::from(error);
    match table {
        Some(table) => CaptureError::Spoiled(table, error.problem()),
        None => error.into(),
    }
}
