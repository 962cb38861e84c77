//! A replication session before it streams: our own client, because no library speaks CopyBoth.
//!
//! Source: PostgreSQL manual, "Message Formats".

use bytes::BytesMut;
use postgres_protocol::authentication::{md5_hash, sasl};
use postgres_protocol::message::backend;
use postgres_protocol::message::frontend;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::config::PostgresConfig;
use super::sql::{PINNED, UNLIMITED};
use super::transport;
use crate::error::{PUBLICATION_GONE, SourceError, from_server};
use crate::transport::Stream;
use crate::wire::Wire;

/// Largest message that is accepted: PostgreSQL's own limit.
const MESSAGE_BYTES_MAX: usize = 1 << 30;
const READ_BYTES: usize = 16 << 10;
const UNDEFINED_OBJECT: &str = "42704";

/// Its connection lives on a thread of its own, where its reader may sleep.
pub struct Session {
    pub(super) stream: Stream,
    pub(super) buffer: BytesMut,
    pub(super) wire: Wire,
}

impl Session {
    /// # Errors
    /// The server cannot be reached, or refuses: it has no walsender left, among others.
    pub async fn connect(config: &PostgresConfig) -> Result<Self, SourceError> {
        let wire = Wire::start().map_err(SourceError::Connection)?;
        let to = config.clone();
        let stream = wire.spawn(async move { transport::connect(&to).await });
        let mut session = Self {
            stream: stream.await.expect("its thread is here")?,
            buffer: BytesMut::with_capacity(READ_BYTES),
            wire,
        };
        let mut parameters = vec![
            ("user", config.user.as_str()),
            ("database", config.database.as_str()),
            ("replication", "database"),
            ("application_name", config.session.as_str()),
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
    pub(super) async fn start_copy(&mut self, command: &str) -> Result<(), SourceError> {
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

/// Tag and length (from after the tag) of the message at the start, if it is here whole.
pub(super) fn frame(buffer: &[u8]) -> Result<Option<(u8, usize)>, SourceError> {
    let Some((head, _)) = buffer.split_first_chunk::<5>() else {
        return Ok(None);
    };
    let len = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
    if !(4..=MESSAGE_BYTES_MAX).contains(&len) {
        return Err(unknown(format!("a message of {len} bytes")));
    }
    Ok((buffer.len() > len).then_some((head[0], len)))
}

pub(super) fn unknown(what: String) -> SourceError {
    SourceError::definite(
        "DR-1040",
        format!("the server sent {what}, which this build does not know"),
        "report it; the slot keeps everything",
    )
}

pub(super) fn error_response(body: &[u8]) -> SourceError {
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
