//! The replication session: START_REPLICATION over our own client, because no library speaks CopyBoth.
//!
//! The reader is whoever calls `fill` and `pop`. The write half belongs to a task of its own, so that
//! the server hears from us in time however busy or blocked the reader is. The walsender sends every
//! message by itself: under a backlog the reader therefore waits a moment and takes many at once, and when
//! idle it wakes for the first.
//!
//! Source: PostgreSQL manual, "Streaming Replication Protocol".

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{Buf as _, BytesMut};
use downriver_decode::postgres::decoder::Streaming;
use downriver_event::Lsn;
use postgres_protocol::authentication::{md5_hash, sasl};
use postgres_protocol::message::backend;
use postgres_protocol::message::frontend;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::config::PostgresConfig;
use super::sql::{self, APPLICATION, PINNED, UNLIMITED};
use super::transport::{self, Stream};
use crate::error::{PUBLICATION_GONE, SourceError, from_server};

/// Largest message that is accepted: PostgreSQL's own limit.
const MESSAGE_BYTES_MAX: usize = 1 << 30;
const READ_BYTES: usize = 256 << 10;
/// A read of this many bytes means that more is waiting.
const BACKLOG_BYTES: usize = 16 << 10;
/// Bytes gathered before the reader gets them, under a backlog.
const GATHER_BYTES: usize = 1 << 20;
/// How long a backlog is let grow between two reads.
const GATHER_FOR: Duration = Duration::from_millis(2);
const STATUS_EVERY_MAX: Duration = Duration::from_secs(10);
/// How long an acknowledgement may wait for others.
const ACKNOWLEDGE_WITHIN: Duration = Duration::from_millis(500);
const UNDEFINED_OBJECT: &str = "42704";
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
    /// The write half has failed.
    broken: AtomicBool,
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
    reader: ReadHalf<Stream>,
    buffer: BytesMut,
    /// Bytes at the buffer's start that were popped.
    popped: usize,
    backlog: bool,
    streaming: Streaming,
    shared: Arc<Shared>,
    writer: JoinHandle<()>,
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

impl Drop for ReplicationStream {
    fn drop(&mut self) {
        self.writer.abort();
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
        let writer = tokio::spawn(keep_alive(writer, Arc::clone(&shared), status_every));
        Ok(Self {
            reader,
            buffer: session.buffer,
            popped: 0,
            backlog: false,
            streaming: protocol.streaming(wanted),
            shared,
            writer,
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

    /// Whether the last read found much waiting.
    #[must_use]
    pub fn has_backlog(&self) -> bool {
        self.backlog
    }

    /// Returns when at least one message can be popped. May be dropped at any time.
    ///
    /// # Errors
    /// The connection failed, or the server ended it.
    pub async fn fill(&mut self) -> Result<(), SourceError> {
        self.buffer.advance(std::mem::take(&mut self.popped));
        if frame(&self.buffer)?.is_some() {
            return Ok(());
        }
        if self.backlog {
            tokio::time::sleep(GATHER_FOR).await;
        }
        let mut gathered = 0;
        loop {
            self.buffer.reserve(READ_BYTES);
            let read = if gathered == 0 || frame(&self.buffer)?.is_none() {
                self.reader.read_buf(&mut self.buffer).await
            } else {
                // Only what is there already.
                tokio::select! {
                    biased;
                    read = self.reader.read_buf(&mut self.buffer) => read,
                    () = std::future::ready(()) => break,
                }
            };
            let read = read.map_err(SourceError::Connection)?;
            if read == 0 {
                let ended = std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
                return Err(SourceError::Connection(ended));
            }
            if self.shared.broken.load(Ordering::Relaxed) {
                let broken = std::io::Error::from(std::io::ErrorKind::BrokenPipe);
                return Err(SourceError::Connection(broken));
            }
            gathered += read;
            if gathered >= GATHER_BYTES && frame(&self.buffer)?.is_some() {
                break;
            }
        }
        self.backlog = gathered >= BACKLOG_BYTES;
        Ok(())
    }

    /// The next message that is here whole.
    ///
    /// # Errors
    /// The server reported an error, ended the stream, or sent what is not known.
    pub fn pop(&mut self) -> Result<Option<Message<'_>>, SourceError> {
        loop {
            let Some((tag, len)) = frame(&self.buffer[self.popped..])? else {
                return Ok(None);
            };
            let start = self.popped + 5;
            self.popped += 1 + len;
            match tag {
                b'd' => {
                    let body = &self.buffer[start..self.popped];
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
                b'E' => return Err(error_response(&self.buffer[start..self.popped])),
                b'c' | b'C' => {
                    let ended = std::io::Error::other("the server ended the stream");
                    return Err(SourceError::Connection(ended));
                }
                tag => return Err(unknown(format!("message type {:?}", char::from(tag)))),
            }
        }
    }
}

/// Tag and length (from after the tag) of the message at the start, if it is here whole.
fn frame(buffer: &[u8]) -> Result<Option<(u8, usize)>, SourceError> {
    let Some((head, _)) = buffer.split_first_chunk::<5>() else {
        return Ok(None);
    };
    let len = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
    if !(4..=MESSAGE_BYTES_MAX).contains(&len) {
        return Err(unknown(format!("a message of {len} bytes")));
    }
    Ok((buffer.len() > len).then_some((head[0], len)))
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

fn unknown(what: String) -> SourceError {
    SourceError::definite(
        "DR-1040",
        format!("the server sent {what}, which this build does not know"),
        "report it; the slot keeps everything",
    )
}

fn error_response(body: &[u8]) -> SourceError {
    let mut state = "";
    let mut message = "";
    for field in body.split(|byte| *byte == 0) {
        let Some((kind, text)) = field.split_first() else {
            continue;
        };
        let text = std::str::from_utf8(text).unwrap_or("(not UTF-8)");
        match kind {
            b'C' => state = text,
            b'M' => message = text,
            _ => {}
        }
    }
    if state == UNDEFINED_OBJECT {
        // All that a stream names is its slot, which it holds, and its publication.
        let reason = format!("the database ended the stream: {message}");
        return SourceError::hole(PUBLICATION_GONE, reason);
    }
    from_server(state, message, None)
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
            shared.broken.store(true, Ordering::Relaxed);
            return;
        }
    }
}

/// A replication session before it streams.
pub struct Session {
    stream: Stream,
    buffer: BytesMut,
}

impl Session {
    /// # Errors
    /// The server cannot be reached, or refuses: it has no walsender left, among others.
    pub async fn connect(config: &PostgresConfig) -> Result<Self, SourceError> {
        let stream = transport::connect(config).await?;
        let mut session = Self {
            stream,
            buffer: BytesMut::with_capacity(READ_BYTES),
        };
        let mut parameters = vec![
            ("user", config.user.as_str()),
            ("database", config.database.as_str()),
            ("replication", "database"),
            ("application_name", APPLICATION),
        ];
        parameters.extend(PINNED);
        parameters.extend(UNLIMITED);
        let mut startup = BytesMut::new();
        frontend::startup_message(parameters, &mut startup).map_err(SourceError::Connection)?;
        session.send(&startup).await?;
        session.authenticate(config).await?;
        Ok(session)
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<(), SourceError> {
        self.stream
            .write_all(bytes)
            .await
            .map_err(SourceError::Connection)?;
        self.stream.flush().await.map_err(SourceError::Connection)
    }

    async fn read_more(&mut self) -> Result<(), SourceError> {
        match self.stream.read_buf(&mut self.buffer).await {
            Ok(0) => Err(SourceError::Connection(
                std::io::ErrorKind::UnexpectedEof.into(),
            )),
            Ok(_) => Ok(()),
            Err(error) => Err(SourceError::Connection(error)),
        }
    }

    async fn message(&mut self) -> Result<backend::Message, SourceError> {
        loop {
            let parsed =
                backend::Message::parse(&mut self.buffer).map_err(SourceError::Connection)?;
            match parsed {
                Some(backend::Message::ErrorResponse(body)) => return Err(server_error(&body)),
                Some(
                    backend::Message::NoticeResponse(_) | backend::Message::ParameterStatus(_),
                ) => {}
                Some(message) => return Ok(message),
                None => self.read_more().await?,
            }
        }
    }

    async fn authenticate(&mut self, config: &PostgresConfig) -> Result<(), SourceError> {
        let password = || {
            config.password.as_deref().ok_or_else(|| {
                SourceError::definite(
                    "DR-1001",
                    format!(
                        "{} asks for a password and the source has none",
                        config.place()
                    ),
                    "set postgres.password in the source",
                )
            })
        };
        let mut reply = BytesMut::new();
        loop {
            match self.message().await? {
                backend::Message::AuthenticationOk | backend::Message::BackendKeyData(_) => {
                    continue;
                }
                backend::Message::ReadyForQuery(_) => return Ok(()),
                backend::Message::AuthenticationCleartextPassword => {
                    frontend::password_message(password()?.as_bytes(), &mut reply)
                }
                backend::Message::AuthenticationMd5Password(body) => {
                    let hash =
                        md5_hash(config.user.as_bytes(), password()?.as_bytes(), body.salt());
                    frontend::password_message(hash.as_bytes(), &mut reply)
                }
                backend::Message::AuthenticationSasl(_) => {
                    self.scram(password()?).await?;
                    continue;
                }
                _ => return Err(unknown("a request for a kind of authentication".into())),
            }
            .map_err(SourceError::Connection)?;
            self.send(&reply.split()).await?;
        }
    }

    /// SCRAM-SHA-256, without channel binding.
    async fn scram(&mut self, password: &str) -> Result<(), SourceError> {
        let mut scram =
            sasl::ScramSha256::new(password.as_bytes(), sasl::ChannelBinding::unsupported());
        let mut reply = BytesMut::new();
        frontend::sasl_initial_response(sasl::SCRAM_SHA_256, scram.message(), &mut reply)
            .map_err(SourceError::Connection)?;
        self.send(&reply.split()).await?;
        match self.message().await? {
            backend::Message::AuthenticationSaslContinue(body) => {
                scram.update(body.data()).map_err(SourceError::Connection)?;
            }
            _ => return Err(unknown("an unexpected answer to SCRAM".into())),
        }
        frontend::sasl_response(scram.message(), &mut reply).map_err(SourceError::Connection)?;
        self.send(&reply.split()).await?;
        match self.message().await? {
            backend::Message::AuthenticationSaslFinal(body) => {
                scram.finish(body.data()).map_err(SourceError::Connection)
            }
            _ => Err(unknown("an unexpected end of SCRAM".into())),
        }
    }

    /// The columns of the first row; none if there is no row.
    pub(super) async fn query(&mut self, query: &str) -> Result<Vec<Option<String>>, SourceError> {
        use fallible_iterator::FallibleIterator as _;
        let mut request = BytesMut::new();
        frontend::query(query, &mut request).map_err(SourceError::Connection)?;
        self.send(&request).await?;
        let mut first = Vec::new();
        loop {
            match self.message().await? {
                backend::Message::DataRow(row) if first.is_empty() => {
                    let text = |range: Option<std::ops::Range<usize>>| {
                        range.map(|r| String::from_utf8_lossy(&row.buffer()[r]).into_owned())
                    };
                    first = row
                        .ranges()
                        .map(|range| Ok(text(range)))
                        .collect()
                        .map_err(SourceError::Connection)?;
                }
                backend::Message::ReadyForQuery(_) => return Ok(first),
                _ => {}
            }
        }
    }

    /// Sends a command that the server answers with CopyBoth.
    async fn start_copy(&mut self, command: &str) -> Result<(), SourceError> {
        let mut request = BytesMut::new();
        frontend::query(command, &mut request).map_err(SourceError::Connection)?;
        self.send(&request).await?;
        loop {
            let Some((tag, len)) = frame(&self.buffer)? else {
                self.read_more().await?;
                continue;
            };
            let message = self.buffer.split_to(1 + len);
            match tag {
                b'W' => return Ok(()),
                b'E' => return Err(error_response(&message[5..])),
                b'N' | b'S' => {}
                tag => return Err(unknown(format!("message type {:?}", char::from(tag)))),
            }
        }
    }
}

fn server_error(body: &backend::ErrorResponseBody) -> SourceError {
    use fallible_iterator::FallibleIterator as _;
    let (mut state, mut message) = (String::new(), String::new());
    let mut fields = body.fields();
    while let Ok(Some(field)) = fields.next() {
        let text = || String::from_utf8_lossy(field.value_bytes()).into_owned();
        match field.type_() {
            b'C' => state = text(),
            b'M' => message = text(),
            _ => {}
        }
    }
    from_server(&state, &message, None)
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
}
