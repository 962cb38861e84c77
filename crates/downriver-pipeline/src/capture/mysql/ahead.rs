//! The binlog, and what was read of it ahead.

use std::collections::VecDeque;

use downriver_decode::mysql::decoder::{BinlogDecoder, Decoded, Statement};
use downriver_decode::mysql::table_map::TableMap;
use downriver_event::{BlockBuilder, SourcePosition};
use downriver_source::SourceError;
use downriver_source::mysql::dump::BinlogStream;

/// Bytes of events that are read ahead at most, also of those that come out of a compressed transaction. They wait in
/// memory.
const AHEAD_BYTES_MAX: usize = 64 << 20;

/// What is met ahead.
pub(super) enum Met<'a> {
    Statement(&'a Statement),
    /// Rows of a table may follow.
    Rows(&'a TableMap),
    /// Rows of whatever tables may follow: those that were held.
    Held,
}

pub(super) struct Binlog {
    stream: BinlogStream,
    ahead: VecDeque<Vec<u8>>,
    /// The one that was popped last, if it was read ahead.
    popped: Vec<u8>,
}

impl Binlog {
    pub(super) fn new(stream: BinlogStream) -> Self {
        Self {
            stream,
            ahead: VecDeque::new(),
            popped: Vec::new(),
        }
    }

    pub(super) fn has_backlog(&self) -> bool {
        !self.ahead.is_empty() || self.stream.has_backlog()
    }

    /// Returns when there is something to decode. May be dropped at any time.
    pub(super) async fn fill(&mut self) -> Result<(), SourceError> {
        match self.ahead.is_empty() {
            true => self.stream.fill().await,
            false => Ok(()),
        }
    }

    pub(super) fn pop(&mut self) -> Result<Option<&[u8]>, SourceError> {
        match self.ahead.pop_front() {
            Some(event) => {
                self.popped = event;
                Ok(Some(&self.popped))
            }
            None => self.stream.pop(),
        }
    }

    /// Reads on behind what `scout` has decoded up to a place, and gives what it meets to `look` until that has seen
    /// enough. Whether the place was reached: not where it is too far, or what lies between is not understood.
    pub(super) async fn look_ahead(
        &mut self,
        mut scout: BinlogDecoder,
        mut out: BlockBuilder,
        place: &SourcePosition,
        mut look: impl FnMut(Met<'_>) -> bool,
    ) -> Result<bool, SourceError> {
        let mut bytes = 0;
        for at in 0.. {
            if !scout.in_transaction() && scout.position().covers(place) {
                return Ok(true);
            }
            if at == self.ahead.len() {
                let event = self.read_on().await?;
                self.ahead.push_back(event);
            }
            let event = &self.ahead[at];
            if !scouted(&mut scout, event, &mut out, &mut bytes, &mut look) {
                return Ok(false);
            }
        }
        Ok(false)
    }

    async fn read_on(&mut self) -> Result<Vec<u8>, SourceError> {
        loop {
            if let Some(event) = self.stream.pop()? {
                return Ok(event.to_vec());
            }
            self.stream.fill().await?;
        }
    }
}

/// Whether to go on.
fn scouted(
    scout: &mut BinlogDecoder,
    event: &[u8],
    out: &mut BlockBuilder,
    bytes: &mut usize,
    look: &mut impl FnMut(Met<'_>) -> bool,
) -> bool {
    let Ok(mut events) = scout.open(event) else {
        // It is said when its turn comes.
        return false;
    };
    loop {
        let goes_on = match scout.next(&mut events, out) {
            Ok(Some(Decoded::Table(map))) => {
                scout.set_shape(None);
                !look(Met::Rows(&map))
            }
            Ok(Some(Decoded::Statement(statement))) => {
                if !(scout.in_transaction() && out.in_transaction()) {
                    scout.end_statement(out);
                }
                !look(Met::Statement(&statement))
            }
            Ok(Some(Decoded::CommittedHeld | Decoded::XaCommit(_))) => {
                scout.end_statement(out);
                !look(Met::Held)
            }
            Ok(Some(Decoded::Unseen(_) | Decoded::XaRollback(_))) if !out.in_transaction() => {
                scout.end_statement(out);
                true
            }
            Ok(Some(_)) => true,
            Ok(None) => return true,
            Err(_) => false,
        };
        *bytes += events.last().0.len();
        if !goes_on || *bytes > AHEAD_BYTES_MAX {
            return false;
        }
    }
}
