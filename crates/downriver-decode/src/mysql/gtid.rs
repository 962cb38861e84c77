//! What a transaction's first event says of it.
//!
//! Source: MySQL's `libs/mysql/binlog/event/control_events.h`, `Gtid_event`, and `libs/mysql/serialization/readme.md` for
//! the form of tagged ones; MariaDB's `sql/log_event.h`, `Gtid_log_event`.

use downriver_event::{DomainGtid, Gtid, GtidSource};

use super::BinlogError;
use super::cursor::Cursor;

/// A transaction's identifier and the time of its commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Opened {
    pub id: Identifier,
    /// Microseconds since 1970 at the server where it was committed first; `None`: not told.
    pub commit_time_us: Option<i64>,
    /// It is one statement, and no event ends it.
    pub is_standalone: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Identifier {
    /// The server numbers none.
    Anonymous,
    Gtid(Gtid),
    Domain(DomainGtid),
}

/// The bit that says that the time of the first commit follows.
const HAS_ORIGINAL: u64 = 1 << 55;

pub(super) fn plain(body: &[u8], is_anonymous: bool) -> Result<Opened, BinlogError> {
    let read = |mut cursor: Cursor<'_>| {
        let _flags = cursor.u8()?;
        let server = cursor.array()?;
        let number = cursor.u64()?;
        // Logical clocks, from 5.7 on, and times, from 8.0 on.
        let commit_time_us = time(|| {
            let _clocks = cursor.take(1 + 8 + 8)?;
            let time = cursor.uint(7)?;
            match time & HAS_ORIGINAL {
                0 => Some(time),
                _ => cursor.uint(7),
            }
        });
        let source = GtidSource {
            server,
            tag: String::new(),
        };
        Some(Opened {
            id: match is_anonymous {
                true => Identifier::Anonymous,
                false => Identifier::Gtid(Gtid { source, number }),
            },
            commit_time_us,
            is_standalone: false,
        })
    };
    read(Cursor::new(body)).ok_or(BinlogError::Cut("a transaction's identifier"))
}

fn time(read: impl FnOnce() -> Option<u64>) -> Option<i64> {
    i64::try_from(read()?).ok()
}

/// Fields by their number, in order, each behind it; those at the end may be missing.
pub(super) fn tagged(body: &[u8]) -> Result<Opened, BinlogError> {
    let read = |mut cursor: Cursor<'_>| {
        let (_version, _bytes, _last_required) = (
            varlen(&mut cursor)?,
            varlen(&mut cursor)?,
            varlen(&mut cursor)?,
        );
        let mut source = GtidSource::default();
        let (mut number, mut immediate, mut original) = (None, None, None);
        while !cursor.is_empty() {
            match varlen(&mut cursor)? {
                0 => {
                    let _flags = varlen(&mut cursor)?;
                }
                1 => {
                    for byte in &mut source.server {
                        *byte = u8::try_from(varlen(&mut cursor)?).ok()?;
                    }
                }
                2 => number = Some(signed(varlen(&mut cursor)?)),
                3 => {
                    let len = usize::try_from(varlen(&mut cursor)?).ok()?;
                    let tag = std::str::from_utf8(cursor.take(len)?).ok()?;
                    tag.clone_into(&mut source.tag);
                }
                6 => immediate = Some(varlen(&mut cursor)?),
                7 => original = Some(varlen(&mut cursor)?),
                // Logical clocks, lengths and versions: a number each.
                _ => {
                    varlen(&mut cursor)?;
                }
            }
        }
        Some(Opened {
            id: Identifier::Gtid(Gtid {
                source,
                number: u64::try_from(number?).ok()?,
            }),
            commit_time_us: time(|| original.or(immediate)),
            is_standalone: false,
        })
    };
    read(Cursor::new(body)).ok_or(BinlogError::Cut("a transaction's identifier"))
}

/// The number of one bits at the low end says how many bytes follow the first; the rest are the number.
pub(super) fn varlen(cursor: &mut Cursor<'_>) -> Option<u64> {
    let first = cursor.u8()?;
    let more = first.trailing_ones() as usize;
    match more {
        8 => cursor.u64(),
        7 => cursor.uint(7),
        _ => {
            let rest = cursor.uint(more)?;
            Some(u64::from(first) >> (more + 1) | rest << (7 - more))
        }
    }
}

/// The lowest bit is the sign.
fn signed(number: u64) -> i64 {
    let magnitude = (number >> 1).cast_signed();
    if number & 1 == 1 {
        !magnitude
    } else {
        magnitude
    }
}

pub(super) fn maria(body: &[u8], server: u32) -> Result<Opened, BinlogError> {
    const STANDALONE: u8 = 1;
    let read = |mut cursor: Cursor<'_>| {
        let sequence = cursor.u64()?;
        let domain = cursor.u32()?;
        let flags = cursor.u8()?;
        Some(Opened {
            id: Identifier::Domain(DomainGtid {
                domain,
                server,
                sequence,
            }),
            commit_time_us: None,
            is_standalone: flags & STANDALONE != 0,
        })
    };
    read(Cursor::new(body)).ok_or(BinlogError::Cut("a transaction's identifier"))
}

/// Whether the transaction of one of MariaDB's is prepared, and committed later under another.
pub(super) fn is_prepared(body: &[u8]) -> bool {
    const FLAGS_AT: usize = 8 + 4;
    const PREPARED_XA: u8 = 64;
    body.get(FLAGS_AT)
        .is_some_and(|flags| flags & PREPARED_XA != 0)
}
