//! The replication stream: START_REPLICATION, its messages, and what the server is told.
//!
//! Whoever calls `fill` and `pop` decodes. The connection is read and written on a thread of its own, so that the server
//! hears from us in time however busy or blocked the decoder is.
//!
//! Source: PostgreSQL manual, "Streaming Replication Protocol".

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use downriver_decode::postgres::decoder::Streaming;
use downriver_event::Lsn;
use downriver_event::planted::Bug;
use tokio::io::{AsyncWriteExt as _, WriteHalf};
use tokio::sync::Notify;

use super::config::PostgresConfig;
pub use super::session::Session;
use super::session::{error_response, frame, unknown};
use super::sql;
use crate::error::SourceError;
use crate::reader::{Gulp, Gulps, Reader};
use crate::transport::Stream;
use crate::wire::Wire;

const STATUS_EVERY_MAX: Duration = Duration::from_secs(10);
/// How long an acknowledgement may wait for others.
const ACKNOWLEDGE_WITHIN: Duration = Duration::from_millis(500);
/// Microseconds from 1970 to 2000.
const EPOCH_US: u64 = 946_684_800_000_000;

#[derive(Debug, PartialEq, Eq)]
pub enum Message<'a> {
    Data { wal_end: Lsn, payload: &'a [u8] },
    Keepalive { wal_end: Lsn, reply_requested: bool },
}

/// Tells the server how far we are. Positions only grow.
#[derive(Clone, Debug)]
pub struct Acknowledger(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    received: AtomicU64,
    acknowledged: AtomicU64,
    reply_now: AtomicBool,
    ask_now: AtomicBool,
    wake: Notify,
}

impl Acknowledger {
    /// The server may forget everything up to here.
    pub fn acknowledge(&self, position: Lsn) {
        if self.0.acknowledged.fetch_max(position.0, Ordering::Relaxed) < position.0 {
            self.0.wake.notify_one();
        }
    }

    /// Everything up to here has arrived.
    pub fn received(&self, position: Lsn) {
        self.0.received.fetch_max(position.0, Ordering::Relaxed);
    }

    /// Asks the server to say where it is.
    pub fn request_reply(&self) {
        self.0.ask_now.store(true, Ordering::Relaxed);
        self.0.wake.notify_one();
    }
}

pub struct ReplicationStream {
    gulps: Gulps,
    gulp: Gulp,
    /// Bytes at the gulp's start that were popped.
    popped: usize,
    streaming: Streaming,
    shared: Arc<Shared>,
    _wire: Wire,
}

/// The newest version of the protocol that a server speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Protocol(u8);

impl Protocol {
    /// Source: PostgreSQL manual, "Logical Streaming Replication Parameters": each version came with a release, and an
    /// option that a release does not know is an error there.
    fn of(server_version_num: Option<&str>) -> Result<Self, SourceError> {
        match server_version_num.and_then(|number| number.parse::<u32>().ok()) {
            Some(160_000..) => Ok(Self(4)),
            Some(150_000..) => Ok(Self(3)),
            Some(140_000..) => Ok(Self(2)),
            Some(_) => Ok(Self(1)),
            None => Err(unknown(format!(
                "version number {}",
                server_version_num.unwrap_or_default()
            ))),
        }
    }

    fn streaming(self, wanted: Streaming) -> Streaming {
        if self.0 >= 2 { wanted } else { Streaming::Off }
    }

    /// `binary` stays off: it holds for all types at once, and of a type that is not interpreted the log keeps the
    /// text. `two_phase` stays off: a prepared transaction comes whole when it is committed.
    fn options(self, wanted: Streaming) -> String {
        let mut options = format!("proto_version '{}'", self.0);
        if self.0 >= 2 {
            options.push_str(", messages 'true'");
        }
        options.push_str(match self.streaming(wanted) {
            Streaming::Off => "",
            Streaming::On => ", streaming 'on'",
            Streaming::Parallel => ", streaming 'parallel'",
        });
        options
    }
}

impl ReplicationStream {
    /// Starts the slot at a position, with streaming if it is wanted and the server knows it.
    ///
    /// # Errors
    /// The server refuses, or the connection failed.
    pub async fn start(
        mut session: Session,
        config: &PostgresConfig,
        from: Lsn,
        wanted: Streaming,
    ) -> Result<Self, SourceError> {
        let timeout = session.query("SHOW wal_sender_timeout").await?;
        let timeout = timeout.into_iter().next().flatten();
        let status_every = status_interval(timeout.as_deref());
        let version = session.query("SHOW server_version_num").await?;
        let protocol = Protocol::of(version.into_iter().next().flatten().as_deref())?;
        let from = match Bug::NoDedupe.is_planted() {
            true => Lsn(0),
            false => from,
        };
        let command = format!(
            "START_REPLICATION SLOT {} LOGICAL {from} (publication_names {}, {})",
            sql::identifier(&config.slot),
            sql::literal(&sql::identifier(&config.publication)),
            protocol.options(wanted),
        );
        session.start_copy(&command).await?;
        let shared = Arc::new(Shared::default());
        shared.received.store(from.0, Ordering::Relaxed);
        let (reader, writer) = tokio::io::split(session.stream);
        let (reader, gulps) = Reader::new(reader, session.buffer, message_bytes);
        let keep_alive = keep_alive(writer, Arc::clone(&shared), status_every);
        let wire = session.wire;
        wire.spawn(async move {
            tokio::select! {
                () = reader.run() => {}
                () = keep_alive => {}
            }
        });
        Ok(Self {
            gulps,
            gulp: Gulp::default(),
            popped: 0,
            streaming: protocol.streaming(wanted),
            shared,
            _wire: wire,
        })
    }

    /// How the server was asked to send large transactions.
    #[must_use]
    pub fn streaming(&self) -> Streaming {
        self.streaming
    }

    #[must_use]
    pub fn acknowledger(&self) -> Acknowledger {
        Acknowledger(Arc::clone(&self.shared))
    }

    /// Whether more is likely to wait.
    #[must_use]
    pub fn has_backlog(&self) -> bool {
        self.gulp.is_large()
    }

    /// Returns when at least one message can be popped. May be dropped at any time.
    ///
    /// # Errors
    /// The connection failed, or the server ended it.
    pub async fn fill(&mut self) -> Result<(), SourceError> {
        if self.popped == self.gulp.0.len() {
            self.popped = 0;
            self.gulp = self.gulps.next(&mut self.gulp).await?;
        }
        Ok(())
    }

    /// The next message that is here whole.
    ///
    /// # Errors
    /// The server reported an error, ended the stream, or sent what is not known.
    pub fn pop(&mut self) -> Result<Option<Message<'_>>, SourceError> {
        loop {
            let Some((tag, len)) = frame(&self.gulp.0[self.popped..])? else {
                return Ok(None);
            };
            let start = self.popped + 5;
            self.popped += 1 + len;
            match tag {
                b'd' => {
                    let body = &self.gulp.0[start..self.popped];
                    let message = copy_data(body)?;
                    if let Message::Keepalive {
                        reply_requested: true,
                        ..
                    } = message
                    {
                        self.shared.reply_now.store(true, Ordering::Relaxed);
                        self.shared.wake.notify_one();
                    }
                    return Ok(Some(message));
                }
                b'N' | b'S' => {}
                b'E' => return Err(error_response(&self.gulp.0[start..self.popped])),
                b'c' | b'C' => {
                    let ended = std::io::Error::other("the server ended the stream");
                    return Err(SourceError::Connection(ended));
                }
                tag => return Err(unknown(format!("message type {:?}", char::from(tag)))),
            }
        }
    }
}

/// With its tag.
fn message_bytes(buffer: &[u8]) -> Result<Option<usize>, SourceError> {
    Ok(frame(buffer)?.map(|(_, len)| 1 + len))
}

fn copy_data(body: &[u8]) -> Result<Message<'_>, SourceError> {
    let lsn = |at: usize| {
        let bytes = body.get(at..at + 8)?;
        Some(Lsn(u64::from_be_bytes(
            bytes.try_into().expect("eight bytes"),
        )))
    };
    match body.first() {
        Some(b'w') if body.len() >= 25 => {
            let wal_end = lsn(9).expect("the length was checked");
            Ok(Message::Data {
                wal_end,
                payload: &body[25..],
            })
        }
        Some(b'k') if body.len() == 18 => {
            let wal_end = lsn(1).expect("the length was checked");
            Ok(Message::Keepalive {
                wal_end,
                reply_requested: body[17] != 0,
            })
        }
        _ => Err(unknown(
            "a replication message that is neither data nor keepalive".into(),
        )),
    }
}

/// A third of the server's patience, at most ten seconds.
fn status_interval(wal_sender_timeout: Option<&str>) -> Duration {
    let text = wal_sender_timeout.unwrap_or("0");
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().unwrap_or(0);
    let millis = match unit {
        "s" => number * 1_000,
        "min" => number * 60_000,
        "h" => number * 3_600_000,
        "d" => number * 86_400_000,
        _ => number,
    };
    if millis == 0 {
        return STATUS_EVERY_MAX;
    }
    Duration::from_millis((millis / 3).max(100)).min(STATUS_EVERY_MAX)
}

/// Returns when the connection fails.
async fn keep_alive(mut writer: WriteHalf<Stream>, shared: Arc<Shared>, every: Duration) {
    let mut acknowledged = 0;
    loop {
        let ask = shared.ask_now.swap(false, Ordering::Relaxed);
        let now = shared.reply_now.swap(false, Ordering::Relaxed) || ask;
        if !now {
            // Acknowledgements wait for each other; whoever asks does not wait.
            let waiting = shared.acknowledged.load(Ordering::Relaxed) > acknowledged;
            let patience = if waiting {
                ACKNOWLEDGE_WITHIN.min(every)
            } else {
                every
            };
            let woken = tokio::time::timeout(patience, shared.wake.notified()).await;
            if woken.is_ok() && !waiting {
                continue;
            }
            if woken.is_ok()
                && (shared.ask_now.load(Ordering::Relaxed)
                    || shared.reply_now.load(Ordering::Relaxed))
            {
                continue;
            }
        }
        acknowledged = shared.acknowledged.load(Ordering::Relaxed);
        let received = shared.received.load(Ordering::Relaxed).max(acknowledged);
        let mut status = Vec::with_capacity(39);
        status.push(b'd');
        status.extend_from_slice(&38u32.to_be_bytes());
        status.push(b'r');
        for position in [received, acknowledged, acknowledged] {
            status.extend_from_slice(&position.to_be_bytes());
        }
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let micros = u64::try_from(since.as_micros())
            .unwrap_or_default()
            .saturating_sub(EPOCH_US);
        status.extend_from_slice(&micros.to_be_bytes());
        status.push(u8::from(ask));
        let sent = async {
            writer.write_all(&status).await?;
            writer.flush().await
        };
        if sent.await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_asked_only_for_what_its_version_knows() {
        let options = |version, wanted| {
            let protocol = Protocol::of(Some(version)).expect("a version number");
            protocol.options(wanted)
        };
        for (server, version) in [("140000", 2), ("150013", 3), ("160009", 4), ("180001", 4)] {
            let whole = format!("proto_version '{version}', messages 'true'");
            assert_eq!(options(server, Streaming::Off), whole);
            assert_eq!(options(server, Streaming::On), whole + ", streaming 'on'");
        }
        assert_eq!(options("130021", Streaming::On), "proto_version '1'");
        assert!(Protocol::of(None).is_err());
        assert!(Protocol::of(Some("devel")).is_err());
    }

    #[test]
    fn the_server_hears_from_us_thrice_within_its_patience() {
        let millis = |patience| status_interval(Some(patience)).as_millis();
        assert_eq!(millis("1min"), 10_000);
        assert_eq!(millis("30min"), 10_000);
        assert_eq!(millis("15s"), 5_000);
        assert_eq!(millis("1s"), 333);
        assert_eq!(millis("600ms"), 200);
        // No more often than that, and where it has no end of its patience as often as ever.
        assert_eq!(millis("90ms"), 100);
        assert_eq!(millis("0"), 10_000);
        assert_eq!(status_interval(None), STATUS_EVERY_MAX);
    }
}
