//! One pgoutput message of protocol versions 1 to 4, borrowed from its bytes.
//!
//! Versions 2 and later send a large transaction before it ends, in chunks between Stream Start and Stream Stop.
//! Inside a chunk, and only there, every message that belongs to the transaction has the id of its
//! (sub)transaction behind its tag: [`in_chunk`] reads these, [`parse`] all others.
//!
//! Source: PostgreSQL manual, "Logical Replication Message Formats". An unknown tag, tuple byte or a short
//! message is an error; nothing is skipped.

use downriver_event::Lsn;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    #[error("message ends in the middle of its {0}")]
    Truncated(&'static str),
    #[error("message tag {0:#04x} is not known")]
    UnknownTag(u8),
    #[error(
        "message {:?} is of a two-phase commit, which was not asked for",
        char::from(*.0)
    )]
    TwoPhase(u8),
    #[error(
        "message {:?} is of a transaction in progress, which was not asked for",
        char::from(*.0)
    )]
    Streaming(u8),
    #[error("{what} byte {byte:#04x} is not known")]
    UnknownByte { what: &'static str, byte: u8 },
    #[error("{0} bytes are left over after the message")]
    LeftOver(usize),
    #[error("a name is not UTF-8")]
    NameNotUtf8,
}

/// How the server was asked to send large transactions: its option `streaming`.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Streaming {
    /// Whole, at their commit.
    #[default]
    Off,
    /// In chunks, before they end.
    On,
    /// The same, for several appliers. It is this mode, and not the version, that gives Stream Abort its longer form.
    Parallel,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Message<'a> {
    Begin {
        final_lsn: Lsn,
        commit_time_us: i64,
        xid: u32,
    },
    Commit {
        commit_lsn: Lsn,
        end_lsn: Lsn,
        commit_time_us: i64,
    },
    Origin {
        name: &'a str,
    },
    Relation(Relation),
    Type {
        id: u32,
        namespace: &'a str,
        name: &'a str,
    },
    Insert {
        relation: u32,
        new: Tuple<'a>,
    },
    Update {
        relation: u32,
        old: Option<OldTuple<'a>>,
        new: Tuple<'a>,
    },
    Delete {
        relation: u32,
        old: OldTuple<'a>,
    },
    Truncate {
        relations: Vec<u32>,
        cascade: bool,
        restart_identity: bool,
    },
    Logical {
        transactional: bool,
        lsn: Lsn,
        prefix: &'a str,
        content: &'a [u8],
    },
    StreamStart {
        xid: u32,
        /// Of the transaction's chunks, this is the first.
        first: bool,
    },
    StreamStop,
    StreamCommit {
        xid: u32,
        commit_lsn: Lsn,
        end_lsn: Lsn,
        commit_time_us: i64,
    },
    /// The whole transaction, if both are the same.
    StreamAbort {
        xid: u32,
        subxid: u32,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relation {
    pub id: u32,
    /// Empty means `pg_catalog`.
    pub namespace: String,
    pub name: String,
    /// `pg_class.relreplident`: d, n, f or i.
    pub replica_identity: u8,
    pub columns: Vec<RelationColumn>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelationColumn {
    /// Of the replica identity; under FULL every column is flagged.
    pub is_key: bool,
    pub name: String,
    pub type_oid: u32,
    pub type_modifier: i32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OldTuple<'a> {
    /// Only the replica identity's columns are set; the others read as null.
    Key(Tuple<'a>),
    Full(Tuple<'a>),
}

/// A tuple's columns, not opened yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tuple<'a> {
    pub columns: usize,
    bytes: &'a [u8],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cell<'a> {
    Null,
    Unchanged,
    Text(&'a [u8]),
    Binary(&'a [u8]),
}

impl<'a> Tuple<'a> {
    /// The cells in column order.
    pub fn cells(&self) -> Cells<'a> {
        Cells(Reader(self.bytes))
    }
}

#[derive(Debug, Clone)]
pub struct Cells<'a>(Reader<'a>);

impl<'a> Iterator for Cells<'a> {
    type Item = Cell<'a>;

    #[inline]
    fn next(&mut self) -> Option<Cell<'a>> {
        if self.0.0.is_empty() {
            return None;
        }
        Some(self.0.cell().expect("checked when the message was parsed"))
    }
}

#[derive(Debug, Clone)]
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize, what: &'static str) -> Result<&'a [u8], MessageError> {
        let (taken, rest) = self
            .0
            .split_at_checked(len)
            .ok_or(MessageError::Truncated(what))?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], MessageError> {
        let (taken, rest) = self
            .0
            .split_first_chunk()
            .ok_or(MessageError::Truncated(what))?;
        self.0 = rest;
        Ok(*taken)
    }

    fn u8(&mut self, what: &'static str) -> Result<u8, MessageError> {
        Ok(self.array::<1>(what)?[0])
    }

    fn u16(&mut self, what: &'static str) -> Result<u16, MessageError> {
        self.array(what).map(u16::from_be_bytes)
    }

    fn u32(&mut self, what: &'static str) -> Result<u32, MessageError> {
        self.array(what).map(u32::from_be_bytes)
    }

    fn i64(&mut self, what: &'static str) -> Result<i64, MessageError> {
        self.array(what).map(i64::from_be_bytes)
    }

    fn lsn(&mut self, what: &'static str) -> Result<Lsn, MessageError> {
        self.array(what).map(|bytes| Lsn(u64::from_be_bytes(bytes)))
    }

    /// The message, if nothing is left over behind it.
    fn end<T>(&self, message: T) -> Result<T, MessageError> {
        match self.0.len() {
            0 => Ok(message),
            left => Err(MessageError::LeftOver(left)),
        }
    }

    fn name(&mut self, what: &'static str) -> Result<&'a str, MessageError> {
        let end = self
            .0
            .iter()
            .position(|byte| *byte == 0)
            .ok_or(MessageError::Truncated(what))?;
        let name = self.take(end, what)?;
        self.take(1, what)?;
        std::str::from_utf8(name).map_err(|_| MessageError::NameNotUtf8)
    }

    #[inline]
    fn cell(&mut self) -> Result<Cell<'a>, MessageError> {
        match self.u8("tuple")? {
            b'n' => Ok(Cell::Null),
            b'u' => Ok(Cell::Unchanged),
            kind @ (b't' | b'b') => {
                let len = self.u32("tuple")? as usize;
                let bytes = self.take(len, "tuple")?;
                Ok(if kind == b't' {
                    Cell::Text(bytes)
                } else {
                    Cell::Binary(bytes)
                })
            }
            byte => Err(MessageError::UnknownByte {
                what: "tuple",
                byte,
            }),
        }
    }

    fn tuple(&mut self) -> Result<Tuple<'a>, MessageError> {
        let columns = usize::from(self.u16("tuple")?);
        let start = self.0;
        for _ in 0..columns {
            self.cell()?;
        }
        Ok(Tuple {
            columns,
            bytes: &start[..start.len() - self.0.len()],
        })
    }

    fn old_tuple(&mut self, kind: u8) -> Result<OldTuple<'a>, MessageError> {
        match kind {
            b'K' => self.tuple().map(OldTuple::Key),
            b'O' => self.tuple().map(OldTuple::Full),
            byte => Err(MessageError::UnknownByte {
                what: "old tuple",
                byte,
            }),
        }
    }

    fn new_tuple(&mut self, kind: u8) -> Result<Tuple<'a>, MessageError> {
        match kind {
            b'N' => self.tuple(),
            byte => Err(MessageError::UnknownByte {
                what: "new tuple",
                byte,
            }),
        }
    }
}

/// Microseconds from 1970 to PostgreSQL's epoch, 2000-01-01.
const EPOCH_US: i64 = 946_684_800_000_000;

/// A message outside a chunk.
///
/// # Errors
/// The message is not one that this build knows, whole.
pub fn parse(bytes: &[u8], streaming: Streaming) -> Result<Message<'_>, MessageError> {
    let mut reader = Reader(bytes);
    let tag = reader.u8("tag")?;
    let message = match tag {
        b'S' | b'E' | b'c' | b'A' if streaming == Streaming::Off => {
            return Err(MessageError::Streaming(tag));
        }
        b'S' => Message::StreamStart {
            xid: reader.u32("stream start")?,
            first: match reader.u8("stream start")? {
                0 => false,
                1 => true,
                byte => {
                    return Err(MessageError::UnknownByte {
                        what: "stream start",
                        byte,
                    });
                }
            },
        },
        b'E' => Message::StreamStop,
        b'c' => {
            let xid = reader.u32("stream commit")?;
            let (commit_lsn, end_lsn, commit_time_us) = commit(&mut reader)?;
            Message::StreamCommit {
                xid,
                commit_lsn,
                end_lsn,
                commit_time_us,
            }
        }
        b'A' => {
            let (xid, subxid) = (reader.u32("stream abort")?, reader.u32("stream abort")?);
            if streaming == Streaming::Parallel {
                reader.lsn("stream abort")?;
                reader.i64("stream abort")?;
            }
            Message::StreamAbort { xid, subxid }
        }
        b'B' => Message::Begin {
            final_lsn: reader.lsn("begin")?,
            commit_time_us: reader.i64("begin")?.saturating_add(EPOCH_US),
            xid: reader.u32("begin")?,
        },
        b'C' => {
            let (commit_lsn, end_lsn, commit_time_us) = commit(&mut reader)?;
            Message::Commit {
                commit_lsn,
                end_lsn,
                commit_time_us,
            }
        }
        tag => change(tag, &mut reader)?,
    };
    reader.end(message)
}

/// A message inside a chunk, with the (sub)transaction that it belongs to.
///
/// # Errors
/// As [`parse`].
pub fn in_chunk(bytes: &[u8]) -> Result<(u32, Message<'_>), MessageError> {
    let mut reader = Reader(bytes);
    let tag = reader.u8("tag")?;
    let subxid = reader.u32("transaction id")?;
    let message = change(tag, &mut reader)?;
    Ok((subxid, reader.end(message)?))
}

/// Whether a chunk's message has a transaction id behind its tag. Of what a chunk may hold only Origin and Stream
/// Stop have none.
#[must_use]
pub fn has_transaction_id(bytes: &[u8]) -> bool {
    bytes.first().is_some_and(|tag| b"RYIUDTM".contains(tag))
}

/// The rest of a commit behind its tag and, if it is streamed, its transaction: where it starts, ends, and when.
fn commit(reader: &mut Reader<'_>) -> Result<(Lsn, Lsn, i64), MessageError> {
    let flags = reader.u8("commit")?;
    if flags != 0 {
        return Err(MessageError::UnknownByte {
            what: "commit flags",
            byte: flags,
        });
    }
    let (commit_lsn, end_lsn) = (reader.lsn("commit")?, reader.lsn("commit")?);
    let commit_time_us = reader.i64("commit")?.saturating_add(EPOCH_US);
    Ok((commit_lsn, end_lsn, commit_time_us))
}

/// What may stand inside a transaction, behind its tag.
#[inline]
fn change<'a>(tag: u8, reader: &mut Reader<'a>) -> Result<Message<'a>, MessageError> {
    Ok(match tag {
        b'O' => {
            reader.lsn("origin")?;
            Message::Origin {
                name: reader.name("origin")?,
            }
        }
        b'R' => Message::Relation(relation(reader)?),
        b'Y' => Message::Type {
            id: reader.u32("type")?,
            namespace: reader.name("type")?,
            name: reader.name("type")?,
        },
        b'I' => {
            let relation = reader.u32("insert")?;
            let kind = reader.u8("insert")?;
            Message::Insert {
                relation,
                new: reader.new_tuple(kind)?,
            }
        }
        b'U' => {
            let relation = reader.u32("update")?;
            let kind = reader.u8("update")?;
            if kind == b'N' {
                Message::Update {
                    relation,
                    old: None,
                    new: reader.tuple()?,
                }
            } else {
                let old = Some(reader.old_tuple(kind)?);
                let kind = reader.u8("update")?;
                Message::Update {
                    relation,
                    old,
                    new: reader.new_tuple(kind)?,
                }
            }
        }
        b'D' => {
            let relation = reader.u32("delete")?;
            let kind = reader.u8("delete")?;
            Message::Delete {
                relation,
                old: reader.old_tuple(kind)?,
            }
        }
        b'T' => {
            let count = reader.u32("truncate")?;
            let options = reader.u8("truncate")?;
            if options > 3 {
                return Err(MessageError::UnknownByte {
                    what: "truncate options",
                    byte: options,
                });
            }
            let relations = (0..count)
                .map(|_| reader.u32("truncate"))
                .collect::<Result<_, _>>()?;
            Message::Truncate {
                relations,
                cascade: options & 1 != 0,
                restart_identity: options & 2 != 0,
            }
        }
        b'M' => {
            let flags = reader.u8("logical message")?;
            if flags > 1 {
                return Err(MessageError::UnknownByte {
                    what: "logical message flags",
                    byte: flags,
                });
            }
            let lsn = reader.lsn("logical message")?;
            let prefix = reader.name("logical message")?;
            let len = reader.u32("logical message")? as usize;
            let content = reader.take(len, "logical message")?;
            Message::Logical {
                transactional: flags == 1,
                lsn,
                prefix,
                content,
            }
        }
        b'b' | b'P' | b'K' | b'r' | b'p' => return Err(MessageError::TwoPhase(tag)),
        tag => return Err(MessageError::UnknownTag(tag)),
    })
}

fn relation(reader: &mut Reader<'_>) -> Result<Relation, MessageError> {
    let id = reader.u32("relation")?;
    let namespace = reader.name("relation")?.to_owned();
    let name = reader.name("relation")?.to_owned();
    let replica_identity = reader.u8("relation")?;
    if !b"dnfi".contains(&replica_identity) {
        return Err(MessageError::UnknownByte {
            what: "replica identity",
            byte: replica_identity,
        });
    }
    let count = reader.u16("relation")?;
    let columns = (0..count)
        .map(|_| {
            let flags = reader.u8("relation")?;
            if flags > 1 {
                return Err(MessageError::UnknownByte {
                    what: "column flags",
                    byte: flags,
                });
            }
            Ok(RelationColumn {
                is_key: flags == 1,
                name: reader.name("relation")?.to_owned(),
                type_oid: reader.u32("relation")?,
                type_modifier: reader.array("relation").map(i32::from_be_bytes)?,
            })
        })
        .collect::<Result<_, _>>()?;
    Ok(Relation {
        id,
        namespace,
        name,
        replica_identity,
        columns,
    })
}
