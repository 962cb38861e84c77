//! Events into the rows of a block, transaction by transaction.
//!
//! ```text
//!   GTID ──> QUERY "BEGIN" ──> (TABLE_MAP ──> rows)* ──> XID, or QUERY "COMMIT"
//!      ├───> TRANSACTION_PAYLOAD: the same, from BEGIN on, compressed
//!      └───> QUERY: a statement by itself, which changes no rows of tables with transactions
//! ```
//!
//! `events` takes an event of the file apart, `rows` has the rows, `reached` where the decoder is, `xa` what is different in
//! prepared transactions, `aside` what a transaction does beside the rows that it logs, and `temporary` the tables of sessions.

mod aside;
mod events;
mod reached;
mod rows;
mod temporary;
mod xa;

use std::collections::HashMap;
use std::sync::Arc;

use downriver_event::block::BlockBuilder;
use downriver_event::{BinlogPlace, DomainGtid, SourcePosition, TableId};

use super::cursor::Cursor;
use super::ddl::Named;
use super::event::{Event, Format, Kind};
use super::gtid::{self, Identifier, Opened};
use super::payload::Zstd;
use super::table_map::TableMap;
use super::value::ValueError;
use super::wording::Wording;
use super::{BinlogError, inflate};
use aside::Aside;
pub use aside::Parent;
pub use events::Events;
pub use reached::Reached;
use rows::{Asked, Described, Lacking};
use temporary::Temporary;
use xa::Holding;
pub use xa::{Prepared, Xid};

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("{error}, at {at}")]
    Binlog { error: BinlogError, at: BinlogPlace },
    #[error("a {what} came {state}, at {at}")]
    OutOfPlace {
        what: &'static str,
        state: &'static str,
        at: BinlogPlace,
    },
    #[error("transaction {id} came behind {last} of its domain, at {at}")]
    OutOfOrder {
        id: String,
        last: DomainGtid,
        at: BinlogPlace,
    },
    #[error("{what} are not understood by this build, at {at}")]
    Unsupported { what: &'static str, at: BinlogPlace },
    #[error("the server lost events of its binlog, at {at}")]
    Incident { at: BinlogPlace },
    #[error("a row came of a table that no table map describes, at {at}")]
    UnknownTable { at: BinlogPlace },
    #[error("a row of {table} has {found} columns, not {expected}, at {at}")]
    ColumnCount {
        table: String,
        expected: usize,
        found: usize,
        at: BinlogPlace,
    },
    #[error(
        "a row of {table} was logged without columns that nothing else tells (binlog_row_image is not FULL in the session that wrote it), at {at}"
    )]
    InPart {
        id: TableId,
        table: String,
        at: BinlogPlace,
    },
    #[error("column {column:?} of {table} {error}, at {at}")]
    Value {
        id: TableId,
        table: String,
        column: String,
        error: ValueError,
        at: BinlogPlace,
    },
}

/// What an event was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decoded {
    /// Answer with [`BinlogDecoder::set_shape`] before the next event.
    Table(TableMap),
    Rows {
        /// Of the event, uncompressed.
        bytes: usize,
    },
    /// Rows that were inserted without columns whose defaults are not known. Answer with [`BinlogDecoder::complete`] before
    /// the next event.
    Lacking(TableId),
    /// A statement that changes no rows by itself: a change of a table's shape, say. Unless rows of its own follow, as
    /// [`BinlogDecoder::in_transaction`] tells, its identifier is reached with [`BinlogDecoder::end_statement`].
    Statement(Statement),
    /// A statement that changes rows which no event has. Outside a transaction it is ended as any other.
    Unseen(Statement),
    Commit(Committed),
    /// An event of a prepared transaction: keep it as it came, for [`BinlogDecoder::replay`].
    Held,
    /// What was held is prepared, and may be forgotten when nobody commits it.
    Prepared(Prepared),
    /// What was held is committed at once: open its transaction with [`BinlogDecoder::open_statement`], replay what was
    /// held, and end it with [`BinlogDecoder::end_statement`].
    CommittedHeld,
    /// The same of a transaction that was prepared before.
    XaCommit(Xid),
    /// A transaction that was prepared before has no effect. Its identifier is reached with
    /// [`BinlogDecoder::end_statement`].
    XaRollback(Xid),
    /// Nothing that anybody has to do something about.
    Passed,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    /// The one that was current.
    pub database: String,
    pub text: String,
    pub wording: Wording,
    /// Temporary tables that its session has, as far as the binlog told of them: they hide others of their names.
    pub temporary: Vec<Named>,
}

/// The end of a transaction, or of a statement by itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Committed {
    /// Those that went into the block builder.
    pub events: u64,
    /// It has no effect.
    pub is_rolled_back: bool,
    /// Tables of which rows that were rolled back could not be taken back any more.
    pub spoiled: Vec<TableId>,
    /// Tables whose changes may have changed rows of others, unseen.
    pub parents: Vec<Parent>,
}

#[derive(Debug)]
enum State {
    Outside,
    /// A transaction's identifier came, and nothing of it yet.
    Opened(Opened),
    Inside(Identifier),
    /// Its events are held until it is committed.
    Holding(Holding),
    /// It is contained in the position already.
    Dropping,
}

impl State {
    fn name(&self) -> &'static str {
        match self {
            Self::Outside => "outside a transaction",
            Self::Opened(_) => "before a transaction's beginning",
            Self::Inside(_) | Self::Holding(_) | Self::Dropping => "inside a transaction",
        }
    }
}

/// One for each connection.
#[derive(Debug)]
pub struct BinlogDecoder {
    format: Format,
    reached: Reached,
    place: BinlogPlace,
    state: State,
    tables: HashMap<u64, Described>,
    asked: Option<Asked>,
    lacking: Option<Lacking>,
    aside: Aside,
    temporary: Temporary,
    /// The open transaction came earlier, and was held.
    is_replaying: bool,
    zstd: Zstd,
    scratch: Vec<u8>,
    /// The rows of an event that had them compressed.
    inflated: Vec<u8>,
    newest_us: Option<i64>,
}

impl BinlogDecoder {
    /// Begins at a position: transactions that it contains are passed over.
    #[must_use]
    pub fn new(reached: Reached, place: BinlogPlace) -> Self {
        Self {
            format: Format {
                server_version: String::new(),
                has_checksums: false,
                is_of_start: false,
            },
            reached,
            place,
            state: State::Outside,
            tables: HashMap::new(),
            asked: None,
            lacking: None,
            aside: Aside::default(),
            temporary: Temporary::default(),
            is_replaying: false,
            zstd: Zstd::default(),
            scratch: Vec::new(),
            inflated: Vec::new(),
            newest_us: None,
        }
    }

    /// Everything up to here was decoded.
    #[must_use]
    pub fn position(&self) -> SourcePosition {
        self.reached.clone().at(self.place.clone())
    }

    /// When the newest transaction that came was committed first, in microseconds since 1970.
    #[must_use]
    pub fn newest_commit_us(&self) -> Option<i64> {
        self.newest_us
    }

    #[must_use]
    pub fn in_transaction(&self) -> bool {
        !matches!(self.state, State::Outside)
    }

    /// One that reads the same binlog ahead of this one, for its statements: all rows are passed over. `is_ended`: the
    /// statement that came by itself, whose effects are looked at, has ended for it.
    #[must_use]
    pub fn scout(&self, is_ended: bool, out: &mut BlockBuilder) -> Self {
        let mut scout = Self::new(self.reached.clone(), self.place.clone());
        scout.format = self.format.clone();
        scout.temporary = self.temporary.clone();
        match &self.state {
            // What is replayed has ended in the binlog.
            State::Inside(id) if is_ended || self.is_replaying => scout.reached.add(id),
            State::Inside(id) => {
                out.begin(String::new(), 0);
                scout.state = State::Inside(id.clone());
                let described = self.tables.iter().map(|(table, described)| {
                    let passed = Described {
                        map: described.map.clone(),
                        named: Arc::clone(&described.named),
                        shape: None,
                        watched: None,
                    };
                    (*table, passed)
                });
                scout.tables.extend(described);
                scout.asked = self.asked.as_ref().map(Asked::passed);
                scout.set_shape(None);
            }
            State::Opened(_) | State::Outside | State::Holding(_) | State::Dropping => {}
        }
        scout
    }

    /// Opens the transaction of a statement that came by itself, for what becomes of it.
    pub fn open_statement(&mut self, out: &mut BlockBuilder) {
        let state = std::mem::replace(&mut self.state, State::Outside);
        let opened = match state {
            State::Opened(opened) => opened,
            state => {
                self.state = state;
                return;
            }
        };
        self.enter(opened, out);
    }

    /// Ends a statement that came by itself.
    pub fn end_statement(&mut self, out: &mut BlockBuilder) -> Committed {
        self.commit(out)
    }

    fn decode(
        &mut self,
        event: &Event<'_>,
        out: &mut BlockBuilder,
    ) -> Result<Decoded, DecodeError> {
        if let Some(decoded) = self.hold(event)? {
            return Ok(decoded);
        }
        match event.header.kind {
            Kind::FORMAT_DESCRIPTION => {
                self.format = event.format().map_err(|error| self.wrong(error))?;
                self.tables.clear();
                if self.format.is_of_start {
                    self.temporary = Temporary::default();
                }
                Ok(self.abandon(out))
            }
            Kind::ROTATE => self.rotate(event),
            Kind::GTID => self.opened(event, gtid::plain(event.body, false)),
            Kind::ANONYMOUS_GTID => self.opened(event, gtid::plain(event.body, true)),
            Kind::GTID_TAGGED => self.opened(event, gtid::tagged(event.body)),
            Kind::MARIA_GTID => {
                let opened = gtid::maria(event.body, event.header.server_id);
                let is_standalone = opened.as_ref().is_ok_and(|opened| opened.is_standalone);
                self.opened(event, opened)?;
                if gtid::is_prepared(event.body) {
                    return self.begin_holding();
                }
                // There the event that opens a transaction begins it.
                if !is_standalone {
                    self.begin(event, out)?;
                }
                Ok(Decoded::Passed)
            }
            Kind::QUERY | Kind::MARIA_QUERY_COMPRESSED => self.query(event, out),
            Kind::TABLE_MAP => self.table_map(event),
            Kind::WRITE_ROWS
            | Kind::UPDATE_ROWS
            | Kind::DELETE_ROWS
            | Kind::WRITE_ROWS_V1
            | Kind::UPDATE_ROWS_V1
            | Kind::DELETE_ROWS_V1
            | Kind::PARTIAL_UPDATE_ROWS
            | Kind::MARIA_WRITE_ROWS_COMPRESSED_V1
            | Kind::MARIA_UPDATE_ROWS_COMPRESSED_V1
            | Kind::MARIA_DELETE_ROWS_COMPRESSED_V1 => {
                self.rows(event.header.kind, event.body, out)
            }
            Kind::XID => self.end(out),
            Kind::INCIDENT => Err(DecodeError::Incident {
                at: self.place.clone(),
            }),
            // Of one that is contained: what is held ends elsewhere.
            Kind::XA_PREPARE => self.end(out),
            Kind::EXECUTE_LOAD_QUERY => self.load_query(event),
            Kind::MARIA_PARTIAL_ROW_DATA => {
                Err(self.unsupported("rows in fragments (binlog_row_event_fragment_threshold)"))
            }
            Kind::HEARTBEAT => {
                // Its body is the file's name alone.
                if event.body == self.place.file.as_bytes() && !self.in_transaction() {
                    self.told(event.header.log_pos);
                }
                Ok(Decoded::Passed)
            }
            Kind::STOP
            | Kind::HEARTBEAT_V2
            | Kind::ROWS_QUERY
            | Kind::PREVIOUS_GTIDS
            // Of group replication: who takes part in it.
            | Kind::TRANSACTION_CONTEXT
            | Kind::VIEW_CHANGE
            | Kind::MARIA_ANNOTATE_ROWS
            | Kind::MARIA_BINLOG_CHECKPOINT
            | Kind::MARIA_GTID_LIST
            | Kind::MARIA_START_ENCRYPTION => Ok(Decoded::Passed),
            // What a statement that follows takes with it.
            kind if kind.is_of_statements() => Ok(Decoded::Passed),
            _ if event.header.is_ignorable() => Ok(Decoded::Passed),
            kind => Err(self.wrong(BinlogError::Unknown(kind))),
        }
    }

    /// Takes the place that the server tells in 32 bits, if it is ahead: a server passes over what it was told that we
    /// have.
    fn told(&mut self, log_pos: u32) {
        if log_pos == 0 {
            return;
        }
        let high = self.place.position & !u64::from(u32::MAX);
        let told = high | u64::from(log_pos);
        // Far behind: the field has begun anew.
        let told = match self.place.position.saturating_sub(told) > u64::from(u32::MAX / 2) {
            true => told.saturating_add(1 << 32),
            false => told,
        };
        self.place.position = self.place.position.max(told);
    }

    fn wrong(&self, error: BinlogError) -> DecodeError {
        let at = self.place.clone();
        DecodeError::Binlog { error, at }
    }

    fn unsupported(&self, what: &'static str) -> DecodeError {
        let at = self.place.clone();
        DecodeError::Unsupported { what, at }
    }

    fn out_of_place(&self, what: &'static str) -> DecodeError {
        DecodeError::OutOfPlace {
            what,
            state: self.state.name(),
            at: self.place.clone(),
        }
    }

    /// Goes on at the beginning of a file, or, where the server makes the event up, at the place that was asked for.
    fn rotate(&mut self, event: &Event<'_>) -> Result<Decoded, DecodeError> {
        let mut cursor = Cursor::new(event.body);
        let Some(position) = cursor.u64() else {
            return Err(self.wrong(BinlogError::Cut("a change of files")));
        };
        self.place = BinlogPlace {
            file: String::from_utf8_lossy(cursor.rest()).into_owned(),
            position,
        };
        Ok(Decoded::Passed)
    }

    fn opened(
        &mut self,
        event: &Event<'_>,
        opened: Result<Opened, BinlogError>,
    ) -> Result<Decoded, DecodeError> {
        let opened = opened.map_err(|error| self.wrong(error))?;
        if self.in_transaction() {
            return Err(self.out_of_place("transaction's identifier"));
        }
        // A position that has identifiers would not tell of it.
        if opened.id == Identifier::Anonymous && self.reached.has_identifiers() {
            return Err(self.unsupported("transactions without identifiers behind others with"));
        }
        if let Some(last) = self.reached.out_of_order(&opened.id) {
            return Err(DecodeError::OutOfOrder {
                id: self.called(&opened.id),
                last,
                at: self.place.clone(),
            });
        }
        let seconds = i64::from(event.header.timestamp);
        let commit_time_us = opened.commit_time_us.or(Some(seconds * 1_000_000));
        self.newest_us = commit_time_us;
        self.state = State::Opened(Opened {
            commit_time_us,
            ..opened
        });
        Ok(Decoded::Passed)
    }

    fn begin(&mut self, event: &Event<'_>, out: &mut BlockBuilder) -> Result<(), DecodeError> {
        let opened = match std::mem::replace(&mut self.state, State::Outside) {
            State::Opened(opened) => opened,
            // Servers before 5.7 number nothing and announce nothing.
            State::Outside => Opened {
                id: Identifier::Anonymous,
                commit_time_us: Some(i64::from(event.header.timestamp) * 1_000_000),
                is_standalone: false,
            },
            state => {
                self.state = state;
                return Err(self.out_of_place("transaction's beginning"));
            }
        };
        if self.reached.contains(&opened.id) {
            self.state = State::Dropping;
            return Ok(());
        }
        self.enter(opened, out);
        Ok(())
    }

    fn enter(&mut self, opened: Opened, out: &mut BlockBuilder) {
        let id = self.called(&opened.id);
        out.begin(id, opened.commit_time_us.unwrap_or_default());
        self.state = State::Inside(opened.id);
    }

    fn query(&mut self, event: &Event<'_>, out: &mut BlockBuilder) -> Result<Decoded, DecodeError> {
        let mut statement = statement(event).map_err(|error| self.wrong(error))?;
        self.temporary.meet(thread(event), &mut statement);
        match (&*statement.text, &self.state) {
            ("BEGIN", _) => {
                self.begin(event, out)?;
                Ok(Decoded::Passed)
            }
            ("COMMIT", _) | ("ROLLBACK", State::Dropping) => self.end(out),
            ("ROLLBACK", State::Inside(_)) => Ok(self.rolled_back(out)),
            ("ROLLBACK", _) => Err(self.out_of_place("transaction's end")),
            (_, State::Dropping) => Ok(Decoded::Passed),
            // What begins it is held by nobody, and what ends it comes behind it.
            (text, State::Inside(_)) if text.starts_with("XA ") => Ok(Decoded::Passed),
            // From a query: its rows follow.
            (text, State::Inside(_)) if makes_table(text) => Ok(Decoded::Statement(statement)),
            (text, State::Inside(_)) if aside::is_of_no_rows(text) => Ok(Decoded::Passed),
            (text, State::Inside(_)) => Ok(self
                .savepoint(text, out)
                .unwrap_or(Decoded::Unseen(statement))),
            (text, State::Opened(_)) if text.starts_with("XA START ") => self.begin_holding(),
            (text, _) if xa::ends(text) => self.xa_ended(&statement.text),
            (_, state) => {
                // What the tables are called and have in them may be otherwise from here on.
                self.tables.clear();
                if matches!(state, State::Opened(opened) if self.reached.contains(&opened.id)) {
                    self.state = State::Outside;
                    return Ok(Decoded::Passed);
                }
                Ok(self.alone(statement))
            }
        }
    }

    fn end(&mut self, out: &mut BlockBuilder) -> Result<Decoded, DecodeError> {
        match self.state {
            State::Inside(_) | State::Dropping => Ok(Decoded::Commit(self.commit(out))),
            _ => Err(self.out_of_place("transaction's end")),
        }
    }

    fn commit(&mut self, out: &mut BlockBuilder) -> Committed {
        self.is_replaying = false;
        let state = std::mem::replace(&mut self.state, State::Outside);
        let events = match state {
            State::Inside(id) => {
                let position = self.reached.of(&id, self.place.clone());
                self.reached.add(&id);
                out.commit(&position)
            }
            State::Opened(opened) => {
                self.reached.add(&opened.id);
                0
            }
            State::Dropping | State::Outside | State::Holding(_) => 0,
        };
        self.beside(events)
    }
}

fn makes_table(text: &str) -> bool {
    let is = |words: &str| {
        text.get(..words.len())
            .is_some_and(|t| t.eq_ignore_ascii_case(words))
    };
    is("CREATE TABLE ") || is("CREATE OR REPLACE TABLE ")
}

/// Source: MySQL's `libs/mysql/binlog/event/statement_events.h`, `Query_event`.
fn statement(event: &Event<'_>) -> Result<Statement, BinlogError> {
    statement_behind(event, 0)
}

/// The number of the session that ran a statement.
fn thread(event: &Event<'_>) -> u32 {
    Cursor::new(event.body).u32().unwrap_or_default()
}

/// The same with so many bytes of its own in front of its variables.
fn statement_behind(event: &Event<'_>, own: usize) -> Result<Statement, BinlogError> {
    let mut cursor = Cursor::new(event.body);
    let mut read = || {
        let (_thread, _seconds) = (cursor.u32()?, cursor.u32()?);
        let database = usize::from(cursor.u8()?);
        let _error = cursor.u16()?;
        let status = usize::from(cursor.u16()?);
        let settings = cursor.take(own + status)?.get(own..)?;
        let database = cursor.take(database)?;
        cursor.u8()?;
        Some((settings, String::from_utf8_lossy(database).into_owned()))
    };
    let (settings, database) = read().ok_or(BinlogError::Cut("a statement"))?;
    let mut inflated = Vec::new();
    let mut text = cursor.rest();
    if event.header.kind == Kind::MARIA_QUERY_COMPRESSED {
        inflate::event(text, &mut inflated)?;
        text = &inflated;
    }
    Ok(Statement {
        database,
        text: String::from_utf8_lossy(text).into_owned(),
        wording: Wording::of(settings, text),
        temporary: Vec::new(),
    })
}
