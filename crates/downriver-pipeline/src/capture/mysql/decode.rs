//! What the binlog has becomes rows and markers of the open block.

use downriver_decode::mysql::decoder::{BinlogDecoder, Committed, DecodeError, Decoded, Reached};
use downriver_event::SourcePosition;
use downriver_source::SourceError;
use downriver_source::mysql::dump::BinlogStream;

use super::super::CaptureError;
use super::Run;

/// `None`: the position is no one of a binlog.
pub(super) fn decoder_from(position: &SourcePosition) -> Option<BinlogDecoder> {
    let (reached, place) = match position.clone() {
        SourcePosition::Mysql { gtids, place } => (Reached::Mysql(gtids), place),
        SourcePosition::Mariadb { gtids, place } => (Reached::Mariadb(gtids), place),
        SourcePosition::Postgres(_) => return None,
    };
    Some(BinlogDecoder::new(reached, place))
}

impl Run<'_> {
    /// Decodes everything that is buffered, then hands over what is complete.
    pub(super) async fn drain(&mut self, stream: &mut BinlogStream) -> Result<(), CaptureError> {
        if !self.intake.join()? {
            return Ok(());
        }
        while let Some(event) = stream.pop()? {
            let bytes = event.len();
            let decoded = self.decoder.decode(event, &mut self.intake.builder);
            match decoded.map_err(undecodable)? {
                Decoded::Rows => self.intake.rows(bytes)?,
                Decoded::Table(map) => {
                    let shape = self.table(&map).await?;
                    self.decoder.set_shape(shape);
                }
                Decoded::Statement(statement) => self.statement(&statement).await?,
                Decoded::Commit(committed) => {
                    self.commit(&committed)?;
                    if self.intake.outbox.is_full() {
                        break;
                    }
                }
                Decoded::Passed => {}
            }
        }
        match stream.has_backlog() && !self.intake.is_large() {
            true => Ok(()),
            false => self.flush(),
        }
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

    /// Hands over the whole transactions that were decoded, unless one is open: then its end does.
    pub(super) fn flush(&mut self) -> Result<(), CaptureError> {
        if self.decoder.in_transaction() {
            return Ok(());
        }
        self.intake.received = self.decoder.position();
        if std::mem::take(&mut self.has_committed) {
            self.intake.committed = Some(self.intake.received.clone());
        }
        self.intake.flush_between()
    }
}

/// A row stops its table; whatever else is not understood stops the source.
fn undecodable(error: DecodeError) -> CaptureError {
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
