//! Events of a binlog, version 4: their header, their checksum, and what each kind means.
//!
//! Source: MySQL's `libs/mysql/binlog/event/binlog_event.h` and `control_events.h`; for kinds from 160 on, MariaDB's
//! `sql/log_event.h`.

use super::BinlogError;
use super::cursor::Cursor;

pub const HEADER_BYTES: usize = 19;
/// The largest event that is accepted: no server has one that is larger than its largest max_allowed_packet.
pub const EVENT_BYTES_MAX: usize = 1 << 30;
const CHECKSUM_BYTES: usize = 4;
/// The flag that a file still open for writing has in its first event; its checksum is of the event without it.
const IN_USE: u16 = 1;
/// The server made the event up for this connection.
const ARTIFICIAL: u16 = 0x20;
/// Whoever does not know the event may pass over it.
const IGNORABLE: u16 = 0x80;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Seconds since 1970.
    pub timestamp: u32,
    pub kind: Kind,
    pub server_id: u32,
    /// Of the whole event.
    pub len: u32,
    /// Where the event ends in its file, in 32 bits. 0 for events that are in none, and from MariaDB 11.4 on for all
    /// within a transaction.
    pub log_pos: u32,
    pub flags: u16,
}

impl Header {
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let mut cursor = Cursor::new(bytes);
        Some(Self {
            timestamp: cursor.u32()?,
            kind: Kind(cursor.u8()?),
            server_id: cursor.u32()?,
            len: cursor.u32()?,
            log_pos: cursor.u32()?,
            flags: cursor.u16()?,
        })
    }

    /// Whether the event has a place in the file. What describes a file is sent again where reading begins in its midst.
    #[must_use]
    pub fn is_in_file(&self) -> bool {
        let is_told_again = self.kind == Kind::FORMAT_DESCRIPTION && self.log_pos == 0;
        let is_heartbeat = matches!(self.kind, Kind::HEARTBEAT | Kind::HEARTBEAT_V2);
        self.flags & ARTIFICIAL == 0 && !is_heartbeat && !is_told_again
    }

    #[must_use]
    pub fn is_ignorable(&self) -> bool {
        self.flags & IGNORABLE != 0
    }

    /// Whether the event may be in a compressed transaction: what opens one, or says something of the file, may not.
    pub(super) fn is_nestable(&self) -> bool {
        matches!(
            self.kind,
            Kind::QUERY
                | Kind::XID
                | Kind::XA_PREPARE
                | Kind::ROWS_QUERY
                | Kind::INCIDENT
                | Kind::TABLE_MAP
                | Kind::WRITE_ROWS
                | Kind::UPDATE_ROWS
                | Kind::DELETE_ROWS
                | Kind::PARTIAL_UPDATE_ROWS
        )
    }
}

/// An event's type code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kind(pub u8);

impl Kind {
    /// Of an event with its header. `None`: the bytes end too early.
    #[must_use]
    pub fn of(event: &[u8]) -> Option<Self> {
        Header::parse(event).map(|header| header.kind)
    }

    pub const QUERY: Self = Self(2);
    pub const STOP: Self = Self(3);
    pub const ROTATE: Self = Self(4);
    pub const INTVAR: Self = Self(5);
    pub const APPEND_BLOCK: Self = Self(9);
    pub const DELETE_FILE: Self = Self(11);
    pub const RAND: Self = Self(13);
    pub const USER_VAR: Self = Self(14);
    pub const FORMAT_DESCRIPTION: Self = Self(15);
    pub const XID: Self = Self(16);
    pub const BEGIN_LOAD_QUERY: Self = Self(17);
    pub const EXECUTE_LOAD_QUERY: Self = Self(18);
    pub const TABLE_MAP: Self = Self(19);
    pub const WRITE_ROWS_V1: Self = Self(23);
    pub const UPDATE_ROWS_V1: Self = Self(24);
    pub const DELETE_ROWS_V1: Self = Self(25);
    pub const INCIDENT: Self = Self(26);
    pub const HEARTBEAT: Self = Self(27);
    pub const ROWS_QUERY: Self = Self(29);
    pub const WRITE_ROWS: Self = Self(30);
    pub const UPDATE_ROWS: Self = Self(31);
    pub const DELETE_ROWS: Self = Self(32);
    pub const GTID: Self = Self(33);
    pub const ANONYMOUS_GTID: Self = Self(34);
    pub const PREVIOUS_GTIDS: Self = Self(35);
    pub const TRANSACTION_CONTEXT: Self = Self(36);
    pub const VIEW_CHANGE: Self = Self(37);
    pub const XA_PREPARE: Self = Self(38);
    pub const PARTIAL_UPDATE_ROWS: Self = Self(39);
    pub const TRANSACTION_PAYLOAD: Self = Self(40);
    pub const HEARTBEAT_V2: Self = Self(41);
    pub const GTID_TAGGED: Self = Self(42);
    pub const MARIA_ANNOTATE_ROWS: Self = Self(160);
    pub const MARIA_BINLOG_CHECKPOINT: Self = Self(161);
    pub const MARIA_GTID: Self = Self(162);
    pub const MARIA_GTID_LIST: Self = Self(163);
    pub const MARIA_START_ENCRYPTION: Self = Self(164);
    pub const MARIA_QUERY_COMPRESSED: Self = Self(165);
    pub const MARIA_WRITE_ROWS_COMPRESSED_V1: Self = Self(166);
    pub const MARIA_UPDATE_ROWS_COMPRESSED_V1: Self = Self(167);
    pub const MARIA_DELETE_ROWS_COMPRESSED_V1: Self = Self(168);
    pub const MARIA_PARTIAL_ROW_DATA: Self = Self(172);
}

impl Kind {
    /// Rows as they were and are.
    pub(super) fn is_rows(self) -> bool {
        matches!(
            self,
            Self::WRITE_ROWS
                | Self::UPDATE_ROWS
                | Self::DELETE_ROWS
                | Self::WRITE_ROWS_V1
                | Self::UPDATE_ROWS_V1
                | Self::DELETE_ROWS_V1
                | Self::PARTIAL_UPDATE_ROWS
                | Self::MARIA_WRITE_ROWS_COMPRESSED_V1
                | Self::MARIA_UPDATE_ROWS_COMPRESSED_V1
                | Self::MARIA_DELETE_ROWS_COMPRESSED_V1
        )
    }

    /// What a statement that follows takes with it: numbers that it was given, variables of its session, pieces of a
    /// file that it loads.
    pub(super) fn is_of_statements(self) -> bool {
        matches!(
            self,
            Self::INTVAR
                | Self::RAND
                | Self::USER_VAR
                | Self::BEGIN_LOAD_QUERY
                | Self::APPEND_BLOCK
                | Self::DELETE_FILE
        )
    }
}

/// What a file's events are like, as its first one says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Format {
    /// As the server gives it: `9.7.0`, `10.11.14-MariaDB-log`.
    pub server_version: String,
    pub has_checksums: bool,
    /// The server was started with this file: whatever sessions had is gone.
    pub is_of_start: bool,
}

/// An event without its checksum.
#[derive(Clone, Copy, Debug)]
pub struct Event<'a> {
    pub header: Header,
    pub body: &'a [u8],
}

impl<'a> Event<'a> {
    /// Splits an event, and compares its checksum where the file has them.
    ///
    /// # Errors
    /// The bytes are not one whole event, or were changed.
    pub fn parse(bytes: &'a [u8], has_checksum: bool) -> Result<Self, BinlogError> {
        let header = Header::parse(bytes).ok_or(BinlogError::Cut("an event's header"))?;
        if header.len as usize != bytes.len() {
            return Err(BinlogError::Length {
                kind: header.kind,
                told: header.len,
                found: bytes.len(),
            });
        }
        // A file's first event tells whether the others have one, and has one itself as soon as servers know of it.
        if header.kind == Kind::FORMAT_DESCRIPTION {
            return Ok(Self {
                header,
                body: &bytes[HEADER_BYTES..],
            });
        }
        let end = match has_checksum {
            false => bytes.len(),
            true => bytes
                .len()
                .checked_sub(CHECKSUM_BYTES)
                .filter(|end| *end >= HEADER_BYTES)
                .ok_or(BinlogError::Cut("an event's checksum"))?,
        };
        let (event, checksum) = bytes.split_at(end);
        if has_checksum {
            verify(header.kind, event, checksum)?;
        }
        Ok(Self {
            header,
            body: &event[HEADER_BYTES..],
        })
    }

    /// Of a [`Kind::FORMAT_DESCRIPTION`].
    pub(super) fn format(&self) -> Result<Format, BinlogError> {
        // Binlog version, the server's in 50 bytes, when it was started if that was with this file, bytes of the headers to come, one number for each
        // known kind; then the checksums' algorithm, and a checksum always.
        const SERVER_VERSION_BYTES: usize = 50;
        let mut cursor = Cursor::new(self.body);
        let mut parse = || {
            let binlog_version = cursor.u16()?;
            let server_version = cursor.take(SERVER_VERSION_BYTES)?;
            let (created, header_bytes) = (cursor.u32()?, cursor.u8()?);
            Some((binlog_version, server_version, created, header_bytes))
        };
        let cut = || BinlogError::Cut("a format description");
        let (binlog_version, version, created, header_bytes) = parse().ok_or_else(cut)?;
        if binlog_version != 4 || usize::from(header_bytes) != HEADER_BYTES {
            return Err(BinlogError::Version(binlog_version));
        }
        let version = version.split(|byte| *byte == 0).next().unwrap_or_default();
        let (told, checksum) = self
            .body
            .split_last_chunk::<CHECKSUM_BYTES>()
            .ok_or_else(cut)?;
        let has_checksums = match told.last() {
            Some(0) => false,
            Some(1) => true,
            Some(other) => return Err(BinlogError::Checksums(*other)),
            None => return Err(cut()),
        };
        if has_checksums {
            let mut event = Vec::with_capacity(HEADER_BYTES + told.len());
            event.extend_from_slice(&self.header.timestamp.to_le_bytes());
            event.push(self.header.kind.0);
            event.extend_from_slice(&self.header.server_id.to_le_bytes());
            event.extend_from_slice(&self.header.len.to_le_bytes());
            event.extend_from_slice(&self.header.log_pos.to_le_bytes());
            event.extend_from_slice(&(self.header.flags & !IN_USE).to_le_bytes());
            event.extend_from_slice(told);
            verify(self.header.kind, &event, checksum)?;
        }
        Ok(Format {
            server_version: String::from_utf8_lossy(version).into_owned(),
            has_checksums,
            is_of_start: created != 0,
        })
    }
}

fn verify(kind: Kind, event: &[u8], checksum: &[u8]) -> Result<(), BinlogError> {
    match crc32fast::hash(event).to_le_bytes() == checksum {
        true => Ok(()),
        false => Err(BinlogError::Damaged { kind }),
    }
}
