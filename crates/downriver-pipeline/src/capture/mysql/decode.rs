//! What the binlog has becomes rows and markers of the open block.

use downriver_decode::mysql::decoder::{
    BinlogDecoder, Committed, DecodeError, Decoded, Reached, Xid,
};
use downriver_decode::mysql::event::Kind;
use downriver_event::{BinlogPlace, SourcePosition};
use downriver_source::SourceError;

use super::super::CaptureError;
use super::Run;
use super::ahead::Binlog;
use super::held::Reader;

/// After so many bytes of a compressed transaction others have their turn: they come without anything being waited for.
const TURN_BYTES: usize = 1 << 20;

/// `None`: the position is no one of a binlog.
pub(super) fn decoder_from(position: &SourcePosition, by_place: bool) -> Option<BinlogDecoder> {
    let (reached, place) = match position.clone() {
        SourcePosition::Mysql { place, .. } if by_place => (Reached::Places, place),
        SourcePosition::Mysql { gtids, place } => (Reached::Mysql(gtids), place),
        SourcePosition::Mariadb { gtids, place } => (Reached::Mariadb(gtids), place),
        SourcePosition::Postgres(_) => return None,
    };
    Some(BinlogDecoder::new(reached, place))
}

/// Where there are identifiers the stream alone tells where it is: the place may be one of another server, whose files
/// have higher numbers, and a chunk that waits for its place would be taken for passed.
pub(super) fn unplaced(position: SourcePosition) -> SourcePosition {
    let place = BinlogPlace {
        file: String::new(),
        position: 0,
    };
    match position {
        SourcePosition::Mysql { gtids, .. } if !gtids.is_empty() => {
            SourcePosition::Mysql { gtids, place }
        }
        SourcePosition::Mariadb { gtids, .. } if !gtids.is_empty() => {
            SourcePosition::Mariadb { gtids, place }
        }
        position => position,
    }
}

/// A transaction whose events were held is decoded in parts of this many bytes, so that everything else goes on meanwhile.
const REPLAY_BYTES: usize = 1 << 20;

/// The events of a prepared transaction, which is committed.
pub(super) struct Replay {
    events: Reader,
    /// The identifier that it was prepared with; `None`: it was committed at once.
    prepared: Option<String>,
}

impl Run<'_> {
    /// Decodes everything that is buffered, then hands over what is complete.
    pub(super) async fn drain(&mut self, binlog: &mut Binlog) -> Result<(), CaptureError> {
        if !self.intake.join()? || !self.replay(binlog).await? {
            return Ok(());
        }
        while let Some(event) = binlog.pop()? {
            let is_ended = match Kind::of(event) == Some(Kind::TRANSACTION_PAYLOAD) {
                true => {
                    // More may be read ahead before it is over.
                    let event = event.to_vec();
                    self.transaction(&event, binlog).await?
                }
                false => {
                    let mut events = self.decoder.open(event).map_err(undecodable)?;
                    let decoded = self.decoder.next(&mut events, &mut self.intake.builder);
                    let decoded = decoded.map_err(undecodable)?;
                    if decoded == Some(Decoded::Held) {
                        let (event, has_checksum) = events.last();
                        self.lasting.held.push(event, has_checksum)?;
                    }
                    match decoded {
                        Some(decoded) => self.decoded(decoded, binlog).await?,
                        None => false,
                    }
                }
            };
            if self.replay.is_some() || is_ended && self.intake.outbox.is_full() {
                break;
            }
        }
        if !self.unsure.is_empty() && self.replay.is_none() {
            self.foretell(binlog).await?;
        }
        match binlog.has_backlog() && !self.intake.is_large() {
            true => Ok(()),
            false => self.flush(),
        }
    }

    /// All the events of a compressed transaction. Whether it has ended.
    async fn transaction(
        &mut self,
        event: &[u8],
        binlog: &mut Binlog,
    ) -> Result<bool, CaptureError> {
        let mut events = self.decoder.open(event).map_err(undecodable)?;
        let (mut turn_bytes, mut last) = (0, None);
        self.is_in_payload = true;
        loop {
            let decoded = self.decoder.next(&mut events, &mut self.intake.builder);
            match decoded.map_err(undecodable)? {
                // It is over before what was held of it is decoded.
                Some(decoded @ Decoded::CommittedHeld) => last = Some(decoded),
                Some(Decoded::Held) => {
                    let (event, has_checksum) = events.last();
                    self.lasting.held.push(event, has_checksum)?;
                }
                Some(decoded) => {
                    self.decoded(decoded, binlog).await?;
                }
                None => break,
            }
            turn_bytes += events.last().0.len();
            if turn_bytes >= TURN_BYTES {
                turn_bytes = 0;
                tokio::task::yield_now().await;
            }
        }
        self.is_in_payload = false;
        match last {
            Some(decoded) => self.decoded(decoded, binlog).await,
            None => Ok(true),
        }
    }

    /// What became of an event that is decoded. Whether a transaction has ended with it.
    async fn decoded(
        &mut self,
        decoded: Decoded,
        binlog: &mut Binlog,
    ) -> Result<bool, CaptureError> {
        match decoded {
            Decoded::Commit(committed) => {
                self.lasting.held.drop_current();
                self.beside(&committed).await?;
                self.commit(&committed)?;
                Ok(true)
            }
            Decoded::Prepared(prepared) => {
                self.lasting.held.prepared(&prepared.id);
                self.debts.prepare(prepared);
                self.commit(&Committed::default())?;
                Ok(true)
            }
            Decoded::CommittedHeld => {
                let events = self.lasting.held.take_current()?;
                self.begin_replay(events, None, binlog).await
            }
            Decoded::XaCommit(xid) => self.xa_committed(&xid, binlog).await,
            Decoded::XaRollback(xid) => {
                let prepared = self.debts.end(&xid);
                let committed = self.decoder.end_statement(&mut self.intake.builder);
                if let Some(prepared) = prepared {
                    let here = self.decoder.position();
                    self.lasting.held.ended(prepared.id, here);
                }
                self.commit(&committed)?;
                Ok(true)
            }
            decoded => {
                self.take(decoded, binlog).await?;
                Ok(false)
            }
        }
    }

    /// What an event within a transaction is, or a statement.
    async fn take(&mut self, decoded: Decoded, binlog: &mut Binlog) -> Result<(), CaptureError> {
        match decoded {
            Decoded::Rows { bytes } => self.intake.rows(bytes)?,
            Decoded::Lacking(table) => self.lacking(table, binlog).await?,
            Decoded::Table(map) => {
                let shape = self.table(&map, binlog).await?;
                self.watch(&map, shape.is_some()).await?;
                self.decoder.set_shape(shape);
            }
            Decoded::Statement(statement) => {
                self.reach_changed(&statement);
                self.statement(&statement, binlog).await?;
            }
            Decoded::Unseen(statement) => {
                self.note_statement(&statement);
                if !self.intake.builder.in_transaction() {
                    let committed = self.decoder.end_statement(&mut self.intake.builder);
                    self.beside(&committed).await?;
                    self.commit(&committed)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    async fn xa_committed(&mut self, xid: &Xid, binlog: &mut Binlog) -> Result<bool, CaptureError> {
        let prepared = self.debts.end(xid);
        let held = match &prepared {
            Some(prepared) => self.lasting.held.read(&prepared.id)?,
            None => None,
        };
        if let (Some(events), Some(prepared)) = (held, &prepared) {
            let id = Some(prepared.id.clone());
            return self.begin_replay(events, id, binlog).await;
        }
        let committed = self.decoder.end_statement(&mut self.intake.builder);
        self.lost(prepared).await?;
        self.commit(&committed)?;
        Ok(true)
    }

    /// Begins to decode what was held, as a transaction of the identifier that came last. Whether it has ended.
    async fn begin_replay(
        &mut self,
        events: Reader,
        prepared: Option<String>,
        binlog: &mut Binlog,
    ) -> Result<bool, CaptureError> {
        self.decoder.open_statement(&mut self.intake.builder);
        self.replay = Some(Replay { events, prepared });
        self.replay(binlog).await
    }

    /// Decodes some more of it. Whether none is left.
    async fn replay(&mut self, binlog: &mut Binlog) -> Result<bool, CaptureError> {
        let Some(mut replay) = self.replay.take() else {
            return Ok(true);
        };
        let mut bytes = 0;
        while bytes < REPLAY_BYTES {
            let Some((event, has_checksums)) = replay.events.next()? else {
                let committed = self.decoder.end_statement(&mut self.intake.builder);
                if let Some(id) = replay.prepared {
                    self.lasting.held.ended(id, self.decoder.position());
                }
                self.beside(&committed).await?;
                self.commit(&committed)?;
                return Ok(true);
            };
            bytes += event.len();
            let decoded = self
                .decoder
                .replay(event, has_checksums, &mut self.intake.builder);
            self.take(decoded.map_err(undecodable)?, binlog).await?;
        }
        self.replay = Some(replay);
        Ok(false)
    }

    pub(super) fn commit(&mut self, committed: &Committed) -> Result<(), CaptureError> {
        // What a transaction without events asks for is stored with its end: else it would come, and ask, for ever.
        self.has_committed |= committed.events > 0 || self.intake.outbox.has_open_progress();
        self.intake.count_events(committed.events);
        match self.intake.is_large() {
            true => self.flush(),
            false => Ok(()),
        }
    }

    fn tell_newest(&mut self) {
        let newest = self.decoder.newest_commit_us();
        if newest != self.told_newest_us {
            self.told_newest_us = newest;
            self.intake.status.update(|s| s.committed_us = newest);
        }
    }

    /// Hands over the whole transactions that were decoded, unless one is open: then its end does.
    pub(super) fn flush(&mut self) -> Result<(), CaptureError> {
        if self.decoder.in_transaction() {
            return Ok(());
        }
        if let Some(debts) = self.debts.unstored() {
            // With the position of what they come from.
            self.intake.outbox.chunk_done_with_open(debts);
            self.has_committed = true;
        }
        self.intake.received = self.decoder.position();
        self.tell_newest();
        if std::mem::take(&mut self.has_committed) {
            self.intake.committed = Some(self.intake.received.clone());
        }
        self.intake.flush_between()
    }
}

/// A row stops its table; whatever else is not understood stops the source.
pub(super) fn undecodable(error: DecodeError) -> CaptureError {
    let table = match &error {
        DecodeError::Value { id, .. } | DecodeError::InPart { id, .. } => Some(*id),
        _ => None,
    };
    let error = SourceError::from(error);
    match table {
        Some(table) => CaptureError::Spoiled(table, error.problem()),
        None => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(gtids: &str, file: &str) -> SourcePosition {
        SourcePosition::Mysql {
            gtids: gtids.parse().expect("a valid set"),
            place: BinlogPlace {
                file: file.into(),
                position: 100,
            },
        }
    }

    #[test]
    fn a_place_of_the_server_before_covers_nothing_of_another() {
        let ours = at("3e11fa47-71ca-11e1-9e33-c80aa9429562:1-5", "binlog.000009");
        let chunk = at("", "binlog.000002");
        assert!(ours.covers(&chunk) && !unplaced(ours.clone()).covers(&chunk));
        assert!(unplaced(ours.clone()).covers(&ours));
        assert_eq!(unplaced(chunk.clone()), chunk);
    }
}
