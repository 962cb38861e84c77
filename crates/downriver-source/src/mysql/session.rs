//! A session before it streams: our own client, because the library's does not give its connection away.

use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use mysql_common::io::ParseBuf;

use super::config::MysqlConfig;
use super::login::{LoggedIn, login};
use super::packet::Packets;
use super::refusal::{of_packet, unknown};
use crate::error::SourceError;
use crate::transport::{Stream, unreachable};
use crate::wire::Wire;

const LOGIN_WITHIN: Duration = Duration::from_secs(60);
const COM_QUERY: u8 = 3;
const ERROR: u8 = 0xff;
/// Instead of a value.
const NULL: u8 = 0xfb;
/// An end of rows has fewer bytes than this; a row that begins with the same byte has more.
const END_BYTES_MAX: usize = 9;

/// Its connection lives on a thread of its own, where its reader may sleep.
pub(super) struct Session {
    packets: Packets<Stream>,
    is_mariadb: bool,
    wire: Wire,
}

impl Session {
    /// # Errors
    /// The server cannot be reached, or refuses.
    pub(super) async fn connect(config: &MysqlConfig) -> Result<Self, SourceError> {
        let wire = Wire::start().map_err(SourceError::Connection)?;
        let to = config.clone();
        let login = wire.spawn(async move { tokio::time::timeout(LOGIN_WITHIN, login(&to)).await });
        let LoggedIn {
            packets,
            is_mariadb,
        } = (login.await.expect("its thread is here"))
            .map_err(|_| unreachable(&config.host, config.port, "no login in 60 s"))??;
        Ok(Self {
            packets,
            is_mariadb,
            wire,
        })
    }

    pub(super) fn is_mariadb(&self) -> bool {
        self.is_mariadb
    }

    /// Runs a statement that gives no rows.
    pub(super) async fn execute(&mut self, statement: &str) -> Result<(), SourceError> {
        match self.first_row(statement).await? {
            None => Ok(()),
            Some(_) => Err(unknown("rows for a statement that has none")),
        }
    }

    /// The first column of the first row.
    pub(super) async fn value(&mut self, query: &str) -> Result<Option<String>, SourceError> {
        let Some(row) = self.first_row(query).await? else {
            return Ok(None);
        };
        if row.first() == Some(&NULL) {
            return Ok(None);
        }
        let value = ParseBuf(&row).checked_eat_lenenc_str();
        let value = value.and_then(|value| std::str::from_utf8(value).ok());
        match value {
            Some(value) => Ok(Some(value.to_owned())),
            None => Err(unknown("a row that cannot be read")),
        }
    }

    async fn first_row(&mut self, statement: &str) -> Result<Option<Bytes>, SourceError> {
        let mut request = Vec::with_capacity(1 + statement.len());
        request.push(COM_QUERY);
        request.extend_from_slice(statement.as_bytes());
        self.packets.command(&request).await?;
        let head = self.answer().await?;
        match head.first() {
            Some(0) => return Ok(None),
            // How many columns there are.
            Some(1..=250) => {}
            _ => return Err(unknown("an answer to a query")),
        }
        // What the columns are like, and then the rows.
        while !is_end(&self.answer().await?) {}
        let mut first = None;
        loop {
            let row = self.answer().await?;
            if is_end(&row) {
                return Ok(first);
            }
            first.get_or_insert(row);
        }
    }

    async fn answer(&mut self) -> Result<Bytes, SourceError> {
        let answer = self.packets.read().await?;
        match answer.has_remaining() {
            true if answer[0] == ERROR => Err(of_packet(&answer)),
            true => Ok(answer),
            false => Err(unknown("an empty answer")),
        }
    }

    /// Sends a command whose answer is a stream; with what was read of it already.
    pub(super) async fn stream(
        mut self,
        command: &[u8],
    ) -> Result<(Stream, BytesMut, Wire), SourceError> {
        self.packets.command(command).await?;
        let (stream, buffer) = self.packets.into_parts();
        Ok((stream, buffer, self.wire))
    }
}

fn is_end(packet: &[u8]) -> bool {
    packet.first() == Some(&0xfe) && packet.len() < END_BYTES_MAX
}
