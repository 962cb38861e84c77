//! An event of the file, taken apart: of a compressed transaction there are several in it.

use downriver_event::block::BlockBuilder;

use super::super::BinlogError;
use super::super::event::{Event, Kind};
use super::super::payload::Payload;
use super::{BinlogDecoder, DecodeError, Decoded, State};

/// An event of the file: itself, or, of a compressed transaction, the events in it.
#[derive(Debug)]
pub struct Events<'a> {
    bytes: &'a [u8],
    has_checksum: bool,
    what: What<'a>,
    /// The one that came out of a compressed transaction.
    inner: Vec<u8>,
    is_compressed: bool,
}

impl Events<'_> {
    /// The event that was decoded last, as [`BinlogDecoder::replay`] takes it, and whether it has a checksum.
    #[must_use]
    pub fn last(&self) -> (&[u8], bool) {
        match self.is_compressed {
            true => (&self.inner, false),
            false => (self.bytes, self.has_checksum),
        }
    }
}

#[derive(Debug)]
enum What<'a> {
    Nothing,
    Plain(Event<'a>),
    Transaction(Payload<'a>),
    /// Its end came out: nothing is to follow.
    Ended(Payload<'a>),
}

impl BinlogDecoder {
    /// Takes up an event of the file, with its header and its checksum.
    ///
    /// ```text
    ///   open ──> next ──> next ──> ... ──> None
    /// ```
    ///
    /// What it has is to be decoded to its end before the next one is taken up. A compressed transaction is one place in
    /// the file: there is no position in its midst.
    ///
    /// # Errors
    /// The bytes are no event, or it has no place here.
    pub fn open<'a>(&mut self, bytes: &'a [u8]) -> Result<Events<'a>, DecodeError> {
        let event = Event::parse(bytes, self.format.has_checksums);
        let event = event.map_err(|error| self.wrong(error))?;
        if event.header.is_in_file() {
            let len = u64::from(event.header.len);
            self.place.position = self.place.position.saturating_add(len);
            self.told(event.header.log_pos);
        }
        let is_compressed = event.header.kind == Kind::TRANSACTION_PAYLOAD;
        Ok(Events {
            bytes,
            has_checksum: self.format.has_checksums,
            what: match is_compressed {
                true => self.transaction(event)?,
                false => What::Plain(event),
            },
            inner: Vec::new(),
            is_compressed,
        })
    }

    /// Decodes the next of an event's events. `None`: there is no more of it.
    ///
    /// # Errors
    /// The bytes are not understood, or nobody would know what they are about.
    pub fn next(
        &mut self,
        events: &mut Events<'_>,
        out: &mut BlockBuilder,
    ) -> Result<Option<Decoded>, DecodeError> {
        let Events { what, inner, .. } = events;
        let payload = match what {
            What::Nothing => return Ok(None),
            What::Plain(event) => {
                let decoded = self.decode(event, out)?;
                *what = What::Nothing;
                return Ok(Some(decoded));
            }
            What::Transaction(payload) | What::Ended(payload) => payload,
        };
        let came = payload.next(&mut self.zstd, inner);
        match (&what, came.map_err(|error| self.wrong(error))?) {
            (What::Transaction(_), true) => {}
            (What::Transaction(_), false) => {
                return Err(self.wrong(BinlogError::Compressed("has no end")));
            }
            (_, true) => return Err(self.wrong(BinlogError::Compressed("goes on behind its end"))),
            (_, false) => {
                *what = What::Nothing;
                return Ok(None);
            }
        }
        let event = Event::parse(inner, false).map_err(|error| self.wrong(error))?;
        let decoded = match event.header {
            header if header.is_nestable() => self.decode(&event, out)?,
            header if header.is_ignorable() => Decoded::Passed,
            header => return Err(self.wrong(BinlogError::Nested(header.kind))),
        };
        // What is committed at once is opened again to be replayed.
        let is_over = !self.in_transaction() || decoded == Decoded::CommittedHeld;
        if is_over && let What::Transaction(payload) = std::mem::replace(what, What::Nothing) {
            *what = What::Ended(payload);
        }
        Ok(Some(decoded))
    }

    /// A compressed transaction; nothing, if the position contains it.
    fn transaction<'a>(&mut self, event: Event<'a>) -> Result<What<'a>, DecodeError> {
        let State::Opened(opened) = &self.state else {
            return Err(self.out_of_place("compressed transaction"));
        };
        if self.reached.contains(&opened.id) {
            self.state = State::Outside;
            return Ok(What::Nothing);
        }
        let payload = Payload::parse(event.body).map_err(|error| self.wrong(error))?;
        let begun = payload.begin(&mut self.zstd);
        begun.map_err(|error| self.wrong(error))?;
        Ok(What::Transaction(payload))
    }
}
