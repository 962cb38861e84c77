//! The stream of a binlog: the events of a server from a position on, whole and as they are in its files.
//!
//! Whoever calls `fill` and `pop` decodes. The connection is read on a thread of its own. The server is told nothing while
//! it streams; it does not wait for anybody, because semi-synchronous replication is not agreed to.
//!
//! ```text
//!   payload:  0x00 | event      0xff | error      0xfe: the end
//! ```
//!
//! Source: MySQL's internals, "Binlog Network Stream".

use std::time::Duration;

use downriver_decode::mysql::event::{EVENT_BYTES_MAX, HEADER_BYTES, Kind};
use downriver_event::SourcePosition;
use tokio::time::{Instant, timeout};

use super::config::MysqlConfig;
use super::packet::{goes_on, join, payload_bytes, payload_start, span};
use super::refusal::{of_packet, unknown};
use super::session::Session;
use super::start::{HEARTBEAT_EVERY, Start};
use crate::error::SourceError;
use crate::reader::{Gulp, Gulps, Reader};
use crate::wire::Wire;

/// A connection on which nothing comes for so long is dead: the server would have said that it is there.
const SILENCE_MAX: Duration = HEARTBEAT_EVERY.saturating_mul(30);
/// As long as the server looks for the place to begin it may say nothing: it reads through a file.
const SEEK_MAX: Duration = Duration::from_secs(600);
const EVENT: u8 = 0x00;
const END: u8 = 0xfe;
const ERROR: u8 = 0xff;
const CHECKSUM_BYTES: usize = 4;
/// What the packets of an event have around it, at most.
const FRAMING_BYTES_MAX: usize = 1 << 10;
/// Where an event's type and its length are.
const KIND_AT: usize = 4;
const LEN_AT: std::ops::Range<usize> = 9..13;

/// What a file begins with, and what says where one begins.
const BEGINNINGS: [Kind; 6] = [
    Kind::ROTATE,
    Kind::FORMAT_DESCRIPTION,
    Kind::PREVIOUS_GTIDS,
    Kind::MARIA_GTID_LIST,
    Kind::MARIA_BINLOG_CHECKPOINT,
    Kind::MARIA_START_ENCRYPTION,
];

pub struct BinlogStream {
    gulps: Gulps,
    gulp: Gulp,
    /// Bytes at the gulp's start that were popped.
    popped: usize,
    /// When a gulp came.
    filled: Instant,
    begin: Begin,
    _wire: Wire,
}

/// What was popped so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Begin {
    /// Nothing that says what the events are like. The server makes one up before, and as it has no file to look at, it has
    /// a checksum where the session agreed to them.
    Undescribed { has_checksums: bool },
    /// What a file begins with.
    Seeking,
    /// An event from behind the position, or a heartbeat.
    Over,
}

impl BinlogStream {
    /// Asks for the events behind a position: by its identifiers where it has them, else by its place.
    ///
    /// # Errors
    /// The server cannot be reached, or refuses; the position is not of such a server. That the server does not have the
    /// events any more is known by the first `pop`.
    pub async fn start(config: &MysqlConfig, from: &SourcePosition) -> Result<Self, SourceError> {
        let mut session = Session::connect(config).await?;
        let start = Start::after(from, config.server_id, session.is_mariadb())?;
        session.execute(&start.settings).await?;
        let checksums = session.value("SELECT @master_binlog_checksum").await?;
        let (stream, buffer, wire) = session.stream(&start.command).await?;
        let (reader, _) = tokio::io::split(stream);
        let (reader, gulps) = Reader::new(reader, buffer, event_span);
        wire.spawn(reader.run());
        Ok(Self {
            gulps,
            gulp: Gulp::default(),
            popped: 0,
            filled: Instant::now(),
            begin: Begin::Undescribed {
                has_checksums: checksums.is_some_and(|kind| kind != "NONE"),
            },
            _wire: wire,
        })
    }

    /// Whether more is likely to wait.
    #[must_use]
    pub fn has_backlog(&self) -> bool {
        self.gulp.is_large()
    }

    /// Returns when at least one event can be popped. May be dropped at any time.
    ///
    /// # Errors
    /// The connection failed or is dead.
    pub async fn fill(&mut self) -> Result<(), SourceError> {
        if self.popped < self.gulp.0.len() {
            return Ok(());
        }
        self.popped = 0;
        let patience = match self.begin {
            Begin::Undescribed { .. } | Begin::Seeking => SEEK_MAX,
            Begin::Over => SILENCE_MAX,
        };
        loop {
            // A large event comes piece by piece, and while nobody fills nothing is read.
            let silence = self.gulps.silent_for().min(self.filled.elapsed());
            let left = patience.saturating_sub(silence);
            match timeout(left, self.gulps.next(&mut self.gulp)).await {
                Ok(gulp) => {
                    self.gulp = gulp?;
                    self.filled = Instant::now();
                    return Ok(());
                }
                Err(_) if left.is_zero() => return Err(dead(patience)),
                Err(_) => {}
            }
        }
    }

    /// The next event that is here whole, as the decoder takes it.
    ///
    /// # Errors
    /// The server reported an error, ended the stream, or sent what is not known.
    pub fn pop(&mut self) -> Result<Option<&[u8]>, SourceError> {
        let Some(bytes) = event_span(&self.gulp.0[self.popped..])? else {
            return Ok(None);
        };
        let packets = &mut self.gulp.0[self.popped..self.popped + bytes];
        self.popped += bytes;
        let payload = join(packets);
        match payload.first() {
            Some(&EVENT) if payload.len() > HEADER_BYTES => match self.begin {
                Begin::Over => Ok(Some(&payload[1..])),
                _ => Ok(Some(self.begin.event(&mut payload[1..]))),
            },
            Some(&ERROR) => Err(of_packet(payload)),
            Some(&END) => Err(SourceError::Connection(std::io::Error::other(
                "the server ended the stream",
            ))),
            _ => Err(unknown("a packet that is no event")),
        }
    }
}

impl Begin {
    /// An event before the stream's own, as the decoder takes it.
    fn event<'a>(&mut self, event: &'a mut [u8]) -> &'a [u8] {
        match (*self, Kind(event[KIND_AT])) {
            (Self::Undescribed { .. }, Kind::FORMAT_DESCRIPTION) => *self = Self::Seeking,
            (Self::Undescribed { has_checksums }, _) => {
                return if has_checksums {
                    without_checksum(event)
                } else {
                    event
                };
            }
            (Self::Seeking, kind) if !BEGINNINGS.contains(&kind) => *self = Self::Over,
            _ => {}
        }
        event
    }
}

fn without_checksum(event: &mut [u8]) -> &[u8] {
    let Some(bytes) = event.len().checked_sub(CHECKSUM_BYTES) else {
        return event;
    };
    if bytes < HEADER_BYTES {
        return event;
    }
    let told = u32::try_from(bytes).expect("an event is under EVENT_BYTES_MAX");
    event[LEN_AT].copy_from_slice(&told.to_le_bytes());
    &event[..bytes]
}

/// Bytes of the packets of the event at the start. One that is too large is refused by what it says of itself, before it
/// comes.
fn event_span(buffer: &[u8]) -> Result<Option<usize>, SourceError> {
    if !payload_bytes(buffer).is_some_and(goes_on) {
        return Ok(span(buffer));
    }
    let Some(told) = payload_start(buffer).get(1..1 + HEADER_BYTES) else {
        return Ok(None);
    };
    let told = u32::from_le_bytes(told[LEN_AT].try_into().expect("four bytes")) as usize;
    if told > EVENT_BYTES_MAX {
        return Err(SourceError::definite(
            "DR-1064",
            format!("the server sent an event of {told} bytes, over 1 GiB"),
            "report it with the server's version: no server writes such an event",
        ));
    }
    let span = span(buffer);
    if span.is_none() && buffer.len() > told + FRAMING_BYTES_MAX {
        return Err(unknown("an event that is longer than it says"));
    }
    Ok(span)
}

fn dead(patience: Duration) -> SourceError {
    SourceError::transient(
        "DR-1002",
        format!(
            "the server has sent nothing for {} s, not even that it is there",
            patience.as_secs()
        ),
        "make the database reachable; capture goes on by itself",
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn event(kind: Kind, bytes: usize) -> Vec<u8> {
        let mut event = vec![0; bytes];
        event[KIND_AT] = kind.0;
        event[LEN_AT].copy_from_slice(&u32::try_from(bytes).unwrap().to_le_bytes());
        event
    }

    #[test]
    fn what_a_server_makes_up_first_has_a_checksum_where_they_were_agreed_to() {
        for has_checksums in [true, false] {
            let mut begin = Begin::Undescribed { has_checksums };
            let mut rotate = event(Kind::ROTATE, 44);
            let bytes = if has_checksums { 40 } else { 44 };
            let plain = begin.event(&mut rotate).to_vec();
            assert_eq!(plain, event(Kind::ROTATE, bytes));
            let mut described = event(Kind::FORMAT_DESCRIPTION, 120);
            assert_eq!(begin.event(&mut described).len(), 120);
            // What the file is like is known from here on.
            assert_eq!(begin.event(&mut event(Kind::ROTATE, 44)).len(), 44);
            begin.event(&mut event(Kind::PREVIOUS_GTIDS, 44));
            assert_eq!(begin, Begin::Seeking);
            begin.event(&mut event(Kind::HEARTBEAT, 44));
            assert_eq!(begin, Begin::Over);
        }
    }

    #[test]
    fn an_event_that_is_too_large_is_refused_by_its_head() {
        let mut head = vec![0xff, 0xff, 0xff, 0, EVENT];
        head.extend_from_slice(&event(Kind::WRITE_ROWS, HEADER_BYTES));
        let told = |bytes: usize| {
            let mut head = head.clone();
            let bytes = u32::try_from(bytes).unwrap();
            head[5..][LEN_AT].copy_from_slice(&bytes.to_le_bytes());
            head
        };
        assert!(event_span(&told(EVENT_BYTES_MAX)).unwrap().is_none());
        let refused = event_span(&told(EVENT_BYTES_MAX + 1)).unwrap_err();
        assert_eq!(refused.problem().code, "DR-1064");
        assert!(event_span(&head[..head.len() - 1]).unwrap().is_none());
        // One that goes on and on.
        let mut endless = told(17 << 20);
        endless.resize(4 + 0xff_ffff, 0);
        endless.extend_from_slice(&[0xff, 0xff, 0xff, 1]);
        endless.resize(18 << 20, 0);
        assert!(event_span(&endless).is_err());
    }
}
