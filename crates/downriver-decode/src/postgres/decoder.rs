//! pgoutput messages into the rows of a block. A plain state machine: whoever runs it does the I/O.
//!
//! A transaction that the log has already (its commit ends at or before the position) is dropped whole: at
//! Begin the final LSN, where the commit record *starts*, is before the position exactly then.
//!
//! ```text
//!            Begin ─> row* ─> Commit                                         sent at its commit
//!  Stream Start ─> piece* ─> Stream Stop ┐
//!        ▲         Stream Abort          │                                   sent in chunks, before it ends
//!        └───────────────────────────────┴─> Stream Commit ─> replay* ─> commit_streamed
//! ```
//!
//! Pieces of a transaction in progress are not opened: whoever runs the decoder keeps their bytes, in order, and
//! gives them back when Stream Commit comes. Then they take the path of an ordinary transaction's messages, and
//! this is what differs:
//!
//! - A piece of a subtransaction that was aborted is passed over. The server sends one Stream Abort for each
//!   subtransaction that had been streamed, those released into the aborted one included (ReorderBufferAbort is
//!   called for every child that the abort record lists).
//! - A logical message has the id of the transaction and not of its subtransaction (ReorderBufferApplyMessage is given
//!   the former): where a subtransaction was aborted, whether a message was its own is not to be known.
//! - Relations are those that came in the transaction itself: it alone sees its uncommitted DDL, and the server
//!   describes every relation again for each streamed transaction, and after each Stream Abort
//!   (`schema_sent` and `streamed_txns` in pgoutput.c).
//! - After the commit the server takes these descriptions as known, unless the relation changed since it sent them
//!   (cleanup_rel_sync_cache); then it sends a new one to whichever transaction needs it. So of two descriptions
//!   the one that *arrived* later holds for the transactions that follow, whichever commits first.

use std::collections::{HashMap, HashSet};

use downriver_event::block::{
    BlockBuilder, ColumnBuilder, OldImage, RowColumns, RowOp, VALUE_BYTES_MAX,
};
use downriver_event::planted::Bug;
use downriver_event::{LogicalType, Lsn, SourcePosition, TableId, pb, view};

use super::ValueError;
use super::message::{
    Cell, Message, MessageError, OldTuple, Tuple, has_transaction_id, in_chunk, parse,
};
pub use super::message::{Relation, RelationColumn, Streaming};
use super::shape::{Shape, check_columns, push_cells, push_old};

/// The prefix of messages that we write ourselves and nobody is to see.
pub const HEARTBEAT_PREFIX: &str = "downriver.heartbeat";

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("unknown bytes in the replication stream after {after}: {error}")]
    Message { after: Lsn, error: MessageError },
    #[error("a {what} came outside a transaction, after {after}")]
    OutsideTransaction { what: &'static str, after: Lsn },
    #[error("a {what} came inside a transaction, after {after}")]
    InsideTransaction { what: &'static str, after: Lsn },
    #[error("a {what} of transaction {xid}, which {state}, after {after}")]
    Streamed {
        what: &'static str,
        xid: u32,
        state: &'static str,
        after: Lsn,
    },
    #[error(
        "a logical message has {len} bytes, more than the limit of {VALUE_BYTES_MAX}, after {after}"
    )]
    MessageTooLarge { len: usize, after: Lsn },
    #[error(
        "a row of relation {relation} came before its description, in the transaction that ends after {after}"
    )]
    UnknownRelation { relation: u32, after: Lsn },
    #[error(
        "a row of {table} has {found} columns, not {expected}, in the transaction committed at {at}"
    )]
    ColumnCount {
        table: String,
        expected: usize,
        found: usize,
        at: Lsn,
    },
    #[error("column {column:?} of {table} {error}, in the transaction committed at {at}")]
    Value {
        id: TableId,
        table: String,
        column: String,
        error: ValueError,
        at: Lsn,
    },
}

/// What a message was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decoded {
    Begin {
        xid: u32,
        final_lsn: Lsn,
        commit_time_us: i64,
    },
    Commit(Committed),
    /// Answer with [`PgDecoder::set_shape`] before the next message.
    Relation(Relation),
    Row,
    /// A row that was updated and comes as an insert, because it was not in the publication's filter before: values that
    /// the update left unchanged were not sent, and nobody has them.
    Lacking {
        relation: u32,
    },
    /// Belongs to no transaction: may come again after a restart, and its place is not a commit's.
    Message(pb::LogicalMessage),
    /// Of a transaction in progress: keep the message, with its place, until its transaction's end is known.
    Piece(Piece),
    /// The transaction came to nothing: forget its pieces.
    StreamAbort {
        xid: u32,
    },
    /// Give the transaction's pieces to [`PgDecoder::replay`], in order, then call [`PgDecoder::commit_streamed`],
    /// both before the next message.
    StreamCommit {
        xid: u32,
    },
    /// A message of a streamed transaction some of whose subtransactions were aborted, perhaps its own. Only a session
    /// without streaming tells: everything since the position is to be read again by one.
    Uncertain {
        xid: u32,
    },
    /// Nothing that changes a row.
    Other,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Committed {
    pub end_lsn: Lsn,
    /// Of the whole transaction; 0 for one that was dropped or is empty.
    pub events: u64,
}

/// Where a kept message belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    pub xid: u32,
    /// Relations that had been described when it came, itself included.
    pub described: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Outside,
    Inside {
        at: Lsn,
    },
    Dropping,
    /// Between Stream Start and Stream Stop.
    Chunk {
        xid: u32,
    },
}

/// A relation as it was described last.
#[derive(Debug, Clone)]
struct Described {
    /// The how many-eth description of the session.
    number: u64,
    /// `None`: the relation is not captured.
    shape: Option<Shape>,
}

type Relations = HashMap<u32, Described>;

/// A streamed transaction in progress.
#[derive(Debug, Default)]
struct Open {
    /// Its aborted subtransactions: four bytes for each.
    aborted: HashSet<u32>,
    origin: Option<String>,
}

/// A streamed transaction whose commit came.
#[derive(Debug)]
struct Replay {
    xid: u32,
    end_lsn: Lsn,
    aborted: HashSet<u32>,
    relations: Relations,
    /// Of the last piece.
    described: u64,
}

#[derive(Debug)]
pub struct PgDecoder {
    position: Option<Lsn>,
    streaming: Streaming,
    state: State,
    /// The id of the transaction that began last.
    xid: u32,
    /// The end of the last transaction, for error messages.
    after: Lsn,
    relations: Relations,
    /// How many descriptions of relations came in this session.
    described: u64,
    /// Streamed transactions in progress.
    open: HashMap<u32, Open>,
    replay: Option<Replay>,
}

impl PgDecoder {
    /// Transactions whose commit ends at or before `position` are dropped.
    #[must_use]
    pub fn new(position: Option<Lsn>, streaming: Streaming) -> Self {
        Self {
            position,
            streaming,
            state: State::Outside,
            xid: 0,
            after: position.unwrap_or_default(),
            relations: Relations::new(),
            described: 0,
            open: HashMap::new(),
            replay: None,
        }
    }

    /// Whether the next message belongs to the last one's transaction. Between two chunks of a streamed transaction
    /// it does not.
    #[must_use]
    pub fn in_transaction(&self) -> bool {
        self.state != State::Outside
    }

    /// The id of the transaction that began last: the one that a relation was described in.
    #[must_use]
    pub fn xid(&self) -> u32 {
        self.xid
    }

    /// Rows of the relation have this shape from now on; `None`: they are passed over.
    pub fn set_shape(&mut self, relation: u32, shape: Option<Shape>) {
        let (relations, number) = match &mut self.replay {
            Some(replay) => (&mut replay.relations, replay.described),
            None => (&mut self.relations, self.described),
        };
        relations.insert(relation, Described { number, shape });
    }

    /// Decodes one message into the builder.
    ///
    /// # Errors
    /// Bytes that this build does not know, or a value that is not of its column's type. The builder is then
    /// of no use any more.
    ///
    /// # Panics
    /// If a streamed transaction waits for its end.
    pub fn decode(
        &mut self,
        message: &[u8],
        out: &mut BlockBuilder,
    ) -> Result<Decoded, DecodeError> {
        assert!(self.replay.is_none(), "a transaction is replayed");
        if let State::Chunk { xid } = self.state {
            return self.chunk(xid, message);
        }
        let message = parse(message, self.streaming).map_err(|error| self.unknown(error))?;
        self.apply(message, out)
    }

    fn chunk(&mut self, xid: u32, message: &[u8]) -> Result<Decoded, DecodeError> {
        if has_transaction_id(message) {
            self.described += u64::from(message[0] == b'R');
            let described = self.described;
            return Ok(Decoded::Piece(Piece { xid, described }));
        }
        match parse(message, self.streaming).map_err(|error| self.unknown(error))? {
            Message::StreamStop => {
                self.state = State::Outside;
                Ok(Decoded::Other)
            }
            Message::Origin { name } => {
                if let Some(open) = self.open.get_mut(&xid) {
                    open.origin = Some(name.to_owned());
                }
                Ok(Decoded::Other)
            }
            message => Err(self.inside(name(&message))),
        }
    }

    /// Decodes a kept message of the transaction whose Stream Commit came last.
    ///
    /// # Errors
    /// As [`PgDecoder::decode`].
    ///
    /// # Panics
    /// If there is no such transaction.
    pub fn replay(
        &mut self,
        message: &[u8],
        described: u64,
        out: &mut BlockBuilder,
    ) -> Result<Decoded, DecodeError> {
        let (subxid, message) = in_chunk(message).map_err(|error| self.unknown(error))?;
        let replay = self.replay.as_mut().expect("a transaction is replayed");
        replay.described = described;
        if replay.aborted.contains(&subxid) {
            return Ok(Decoded::Other);
        }
        self.apply(message, out)
    }

    /// Ends the transaction that was replayed.
    ///
    /// # Panics
    /// If there is none.
    pub fn commit_streamed(&mut self, out: &mut BlockBuilder) -> Committed {
        let replay = self.replay.take().expect("a transaction is replayed");
        for (relation, described) in replay.relations {
            let known = self.relations.get(&relation);
            if known.is_none_or(|known| known.number < described.number) {
                self.relations.insert(relation, described);
            }
        }
        self.commit(replay.end_lsn, out)
    }

    fn begin(&mut self, xid: u32, final_lsn: Lsn, commit_time_us: i64, out: &mut BlockBuilder) {
        self.xid = xid;
        let is_logged = self.position.is_some_and(|position| final_lsn < position);
        if is_logged && !Bug::NoDedupe.is_planted() {
            self.state = State::Dropping;
        } else {
            self.state = State::Inside { at: final_lsn };
            out.begin(xid.to_string(), commit_time_us);
        }
    }

    /// Of the transaction alone: the next one has none unless it is told.
    fn origin(&self, name: &str, out: &mut BlockBuilder) {
        if let State::Inside { .. } = self.state {
            out.origin(name);
        }
    }

    fn commit(&mut self, end_lsn: Lsn, out: &mut BlockBuilder) -> Committed {
        let state = std::mem::replace(&mut self.state, State::Outside);
        let end_lsn = match state {
            State::Inside { at } if Bug::WrongLsn.is_planted() => at,
            _ => end_lsn,
        };
        self.after = end_lsn;
        let events = match state {
            State::Inside { .. } => out.commit(&SourcePosition::Postgres(end_lsn)),
            _ => 0,
        };
        Committed { end_lsn, events }
    }

    #[inline]
    fn apply(
        &mut self,
        message: Message<'_>,
        out: &mut BlockBuilder,
    ) -> Result<Decoded, DecodeError> {
        match message {
            Message::Insert { relation, new } => self.insert(relation, new, out),
            Message::Update { relation, old, new } => self.update(relation, old, new, out),
            Message::Delete { relation, old } => self.delete(relation, old, out),
            Message::Begin {
                final_lsn,
                commit_time_us,
                xid,
            } => {
                self.ensure_outside("begin")?;
                self.begin(xid, final_lsn, commit_time_us, out);
                Ok(Decoded::Begin {
                    xid,
                    final_lsn,
                    commit_time_us,
                })
            }
            Message::Commit { end_lsn, .. } => match self.state {
                State::Outside => Err(self.outside("commit")),
                _ => Ok(Decoded::Commit(self.commit(end_lsn, out))),
            },
            Message::Relation(relation) => {
                self.described += u64::from(self.replay.is_none());
                Ok(Decoded::Relation(relation))
            }
            Message::Truncate {
                relations,
                cascade,
                restart_identity,
            } => self.truncate(&relations, cascade, restart_identity, out),
            Message::Logical {
                transactional,
                lsn,
                prefix,
                content,
            } => self.logical(transactional, lsn, prefix, content, out),
            Message::Origin { name } => {
                self.origin(name, out);
                Ok(Decoded::Other)
            }
            Message::Type { .. } => Ok(Decoded::Other),
            Message::StreamStart { xid, first } => {
                self.ensure_outside("stream start")?;
                match (first, self.open.contains_key(&xid)) {
                    (true, true) => return Err(self.streamed("first chunk", xid, "has begun")),
                    (false, false) => return Err(self.streamed("chunk", xid, NOT_BEGUN)),
                    (true, false) => _ = self.open.insert(xid, Open::default()),
                    (false, true) => {}
                }
                self.state = State::Chunk { xid };
                Ok(Decoded::Other)
            }
            Message::StreamStop => Err(self.outside("stream stop")),
            Message::StreamAbort { xid, subxid } => {
                self.ensure_outside("stream abort")?;
                if xid == subxid {
                    self.open.remove(&xid);
                    return Ok(Decoded::StreamAbort { xid });
                }
                // One that we never saw has no row to be forgotten.
                if let Some(open) = self.open.get_mut(&xid) {
                    open.aborted.insert(subxid);
                }
                Ok(Decoded::Other)
            }
            Message::StreamCommit {
                xid,
                commit_lsn,
                end_lsn,
                commit_time_us,
            } => {
                self.ensure_outside("stream commit")?;
                let Some(Open { aborted, origin }) = self.open.remove(&xid) else {
                    return Err(self.streamed("stream commit", xid, NOT_BEGUN));
                };
                self.begin(xid, commit_lsn, commit_time_us, out);
                if let Some(origin) = origin {
                    self.origin(&origin, out);
                }
                self.replay = Some(Replay {
                    xid,
                    end_lsn,
                    aborted,
                    relations: Relations::new(),
                    described: 0,
                });
                Ok(Decoded::StreamCommit { xid })
            }
        }
    }

    fn truncate(
        &self,
        relations: &[u32],
        cascade: bool,
        restart_identity: bool,
        out: &mut BlockBuilder,
    ) -> Result<Decoded, DecodeError> {
        let mut captured = Vec::new();
        for relation in relations {
            if self.wanted(*relation)?.is_some() {
                captured.push(*relation);
            }
        }
        if captured.is_empty() {
            return Ok(Decoded::Other);
        }
        out.marker(pb::marker::Kind::Truncate(pb::Truncate {
            table_ids: captured,
            cascade,
            restart_identity,
        }));
        Ok(Decoded::Row)
    }

    fn logical(
        &self,
        transactional: bool,
        lsn: Lsn,
        prefix: &str,
        content: &[u8],
        out: &mut BlockBuilder,
    ) -> Result<Decoded, DecodeError> {
        if prefix == HEARTBEAT_PREFIX {
            return Ok(Decoded::Other);
        }
        let len = content.len();
        if len > VALUE_BYTES_MAX {
            let after = self.after;
            return Err(DecodeError::MessageTooLarge { len, after });
        }
        let message = pb::LogicalMessage {
            prefix: prefix.to_owned(),
            content: content.to_vec().into(),
            transactional,
        };
        match self.state {
            _ if !transactional => {
                let known = self.position.is_some_and(|position| lsn < position);
                Ok(if known {
                    Decoded::Other
                } else {
                    Decoded::Message(message)
                })
            }
            State::Inside { .. } => {
                if let Some(replay) = self.replay.as_ref().filter(|r| !r.aborted.is_empty()) {
                    return Ok(Decoded::Uncertain { xid: replay.xid });
                }
                out.marker(pb::marker::Kind::Message(message));
                Ok(Decoded::Row)
            }
            State::Dropping => Ok(Decoded::Other),
            State::Outside | State::Chunk { .. } => Err(self.outside("logical message")),
        }
    }

    fn unknown(&self, error: MessageError) -> DecodeError {
        DecodeError::Message {
            after: self.after,
            error,
        }
    }

    fn ensure_outside(&self, what: &'static str) -> Result<(), DecodeError> {
        match self.state {
            State::Outside => Ok(()),
            _ => Err(self.inside(what)),
        }
    }

    fn inside(&self, what: &'static str) -> DecodeError {
        DecodeError::InsideTransaction {
            what,
            after: self.after,
        }
    }

    fn streamed(&self, what: &'static str, xid: u32, state: &'static str) -> DecodeError {
        DecodeError::Streamed {
            what,
            xid,
            state,
            after: self.after,
        }
    }

    fn outside(&self, what: &'static str) -> DecodeError {
        DecodeError::OutsideTransaction {
            what,
            after: self.after,
        }
    }

    fn shape(&self, relation: u32) -> Result<Option<&Shape>, DecodeError> {
        let relations = match &self.replay {
            Some(replay) => &replay.relations,
            None => &self.relations,
        };
        let known = relations.get(&relation);
        let known = known.ok_or(DecodeError::UnknownRelation {
            relation,
            after: self.after,
        })?;
        Ok(known.shape.as_ref())
    }

    /// The shape of a row that is to be decoded, and its transaction's final LSN.
    fn wanted(&self, relation: u32) -> Result<Option<(&Shape, Lsn)>, DecodeError> {
        match self.state {
            State::Outside | State::Chunk { .. } => Err(self.outside("row")),
            State::Dropping => Ok(None),
            State::Inside { at } => Ok(self.shape(relation)?.map(|shape| (shape, at))),
        }
    }

    fn insert(
        &self,
        relation: u32,
        new: Tuple<'_>,
        out: &mut BlockBuilder,
    ) -> Result<Decoded, DecodeError> {
        let Some((shape, at)) = self.wanted(relation)? else {
            return Ok(Decoded::Other);
        };
        check_columns(shape, &new, at)?;
        let row = out.row(&shape.schema, RowOp::Insert, OldImage::None);
        Ok(match push_cells(shape, new.cells(), row.new, at)? {
            true => Decoded::Lacking { relation },
            false => Decoded::Row,
        })
    }

    fn update(
        &self,
        relation: u32,
        old: Option<OldTuple<'_>>,
        new: Tuple<'_>,
        out: &mut BlockBuilder,
    ) -> Result<Decoded, DecodeError> {
        let Some((shape, at)) = self.wanted(relation)? else {
            return Ok(Decoded::Other);
        };
        check_columns(shape, &new, at)?;
        let (kind, old) = match old {
            None => {
                let row = out.row(&shape.schema, RowOp::Update, OldImage::None);
                push_cells(shape, new.cells(), row.new, at)?;
                return Ok(Decoded::Row);
            }
            Some(OldTuple::Key(old)) => (OldImage::Key, old),
            Some(OldTuple::Full(old)) => (OldImage::Full, old),
        };
        check_columns(shape, &old, at)?;
        let RowColumns {
            new: new_columns,
            old: old_columns,
        } = out.row(&shape.schema, RowOp::Update, kind);
        push_old(shape, kind, old, old_columns, at)?;
        // An unchanged value that is in the old tuple is known: any under FULL, else one that is part of the key and
        // is stored out of line, for which the server sends the key although it is the same.
        let cells = new.cells().zip(old.cells()).map(|(new, old)| match new {
            Cell::Unchanged if old != Cell::Null => old,
            new => new,
        });
        push_cells(shape, cells, new_columns, at)?;
        Ok(Decoded::Row)
    }

    fn delete(
        &self,
        relation: u32,
        old: OldTuple<'_>,
        out: &mut BlockBuilder,
    ) -> Result<Decoded, DecodeError> {
        let Some((shape, at)) = self.wanted(relation)? else {
            return Ok(Decoded::Other);
        };
        let (kind, old) = match old {
            OldTuple::Key(old) => (OldImage::Key, old),
            OldTuple::Full(old) => (OldImage::Full, old),
        };
        check_columns(shape, &old, at)?;
        let row = out.row(&shape.schema, RowOp::Delete, kind);
        push_old(shape, kind, old, row.old, at)?;
        Ok(Decoded::Row)
    }
}

const NOT_BEGUN: &str = "has not begun";

/// For error messages.
fn name(message: &Message<'_>) -> &'static str {
    match message {
        Message::Begin { .. } => "begin",
        Message::Commit { .. } => "commit",
        Message::StreamStart { .. } => "stream start",
        Message::StreamStop => "stream stop",
        Message::StreamCommit { .. } => "stream commit",
        Message::StreamAbort { .. } => "stream abort",
        _ => "change without a transaction id",
    }
}

/// One value as a cell of a message, through the same functions as a column's.
pub(super) fn cell_with(
    ty: &LogicalType,
    push: impl FnOnce(&mut ColumnBuilder) -> Result<(), ValueError>,
) -> Result<pb::Cell, ValueError> {
    let mut column = ColumnBuilder::new(0, ty);
    push(&mut column)?;
    let column = column.read().expect("one cell was pushed");
    view::cell_of(&column, ty, 0).map_err(|_| ValueError::Invalid("array element"))
}
