//! Events into the rows of a block, transaction by transaction.
//!
//! ```text
//!   GTID ──> QUERY "BEGIN" ──> (TABLE_MAP ──> rows)* ──> XID, or QUERY "COMMIT"
//!      └───> QUERY: a statement by itself, which changes no rows of tables with transactions
//! ```

use std::collections::HashMap;
use std::sync::Arc;

use downriver_event::block::{BlockBuilder, OldImage, RowColumns, RowOp};
use downriver_event::{BinlogPlace, DomainGtids, GtidSet, Presence, SourcePosition, TableId};

use super::cursor::Cursor;
use super::event::{Event, Format, Kind};
use super::gtid::{self, Identifier, Opened};
use super::rows::{Change, Rows};
use super::shape::{Shape, Unreadable};
use super::table_map::TableMap;
use super::value::ValueError;
use super::{BinlogError, Flavor};

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
        "a row of {table} was logged without all of its columns (binlog_row_image is not FULL in the session that wrote it), at {at}"
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
    Rows,
    /// A statement that changes no rows by itself: a change of a table's shape, say. Unless rows of its own follow, as
    /// [`BinlogDecoder::in_transaction`] tells, its identifier is reached with [`BinlogDecoder::end_statement`].
    Statement(Statement),
    Commit(Committed),
    /// Nothing that anybody has to do something about.
    Passed,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    /// The one that was current.
    pub database: String,
    pub text: String,
}

/// The end of a transaction, or of a statement by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// Those that went into the block builder.
    pub events: u64,
}

/// Everything up to here was decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reached {
    Mysql(GtidSet),
    Mariadb(DomainGtids),
}

impl Reached {
    fn flavor(&self) -> Flavor {
        match self {
            Self::Mysql(_) => Flavor::Mysql,
            Self::Mariadb(_) => Flavor::Mariadb,
        }
    }

    fn contains(&self, id: &Identifier) -> bool {
        match (self, id) {
            (Self::Mysql(set), Identifier::Gtid(gtid)) => set.contains(gtid),
            (Self::Mariadb(position), Identifier::Domain(gtid)) => position.contains(*gtid),
            _ => false,
        }
    }

    fn add(&mut self, id: &Identifier) {
        match (self, id) {
            (Self::Mysql(set), Identifier::Gtid(gtid)) => set.add(gtid),
            (Self::Mariadb(position), Identifier::Domain(gtid)) => position.reach(*gtid),
            _ => {}
        }
    }

    /// The position of a transaction alone.
    fn of(&self, id: &Identifier, place: BinlogPlace) -> SourcePosition {
        match self {
            Self::Mysql(_) => {
                let mut only = Self::Mysql(GtidSet::default());
                only.add(id);
                only.at(place)
            }
            Self::Mariadb(_) => {
                let mut only = Self::Mariadb(DomainGtids::default());
                only.add(id);
                only.at(place)
            }
        }
    }

    fn at(self, place: BinlogPlace) -> SourcePosition {
        match self {
            Self::Mysql(gtids) => SourcePosition::Mysql { gtids, place },
            Self::Mariadb(gtids) => SourcePosition::Mariadb { gtids, place },
        }
    }
}

#[derive(Debug)]
enum State {
    Outside,
    /// A transaction's identifier came, and nothing of it yet.
    Opened(Opened),
    Inside(Identifier),
    /// It is contained in the position already.
    Dropping,
}

impl State {
    fn name(&self) -> &'static str {
        match self {
            Self::Outside => "outside a transaction",
            Self::Opened(_) => "before a transaction's beginning",
            Self::Inside(_) | Self::Dropping => "inside a transaction",
        }
    }
}

/// A table as its last table map described it.
#[derive(Debug)]
struct Described {
    map: Vec<u8>,
    /// `None`: it is not captured.
    shape: Option<Arc<Shape>>,
}

/// One for each connection.
#[derive(Debug)]
pub struct BinlogDecoder {
    format: Format,
    reached: Reached,
    place: BinlogPlace,
    state: State,
    tables: HashMap<u64, Described>,
    /// The table map that waits for its shape.
    asked: Option<(u64, Vec<u8>)>,
    scratch: Vec<u8>,
}

impl BinlogDecoder {
    /// Begins at a position: transactions that it contains are passed over.
    #[must_use]
    pub fn new(reached: Reached, place: BinlogPlace) -> Self {
        Self {
            format: Format {
                server_version: String::new(),
                has_checksums: false,
            },
            reached,
            place,
            state: State::Outside,
            tables: HashMap::new(),
            asked: None,
            scratch: Vec::new(),
        }
    }

    /// Everything up to here was decoded.
    #[must_use]
    pub fn position(&self) -> SourcePosition {
        self.reached.clone().at(self.place.clone())
    }

    #[must_use]
    pub fn in_transaction(&self) -> bool {
        !matches!(self.state, State::Outside)
    }

    /// How the rows of the table that was asked for are read; `None`: they are passed over.
    pub fn set_shape(&mut self, shape: Option<Shape>) {
        if let Some((table, map)) = self.asked.take() {
            let shape = shape.map(Arc::new);
            self.tables.insert(table, Described { map, shape });
        }
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

    /// Decodes one event, with its header and its checksum.
    ///
    /// # Errors
    /// The bytes are not understood, or nobody would know what they are about.
    pub fn decode(&mut self, bytes: &[u8], out: &mut BlockBuilder) -> Result<Decoded, DecodeError> {
        let event = Event::parse(bytes, self.format.has_checksums);
        let event = event.map_err(|error| self.wrong(error))?;
        if event.header.is_in_file() {
            self.place.position += u64::from(event.header.len);
            self.told(event.header.log_pos);
        }
        match event.header.kind {
            Kind::FORMAT_DESCRIPTION => {
                self.format = event.format().map_err(|error| self.wrong(error))?;
                self.tables.clear();
                Ok(Decoded::Passed)
            }
            Kind::ROTATE => self.rotate(&event),
            Kind::GTID => self.opened(&event, gtid::plain(event.body, false)),
            Kind::ANONYMOUS_GTID => self.opened(&event, gtid::plain(event.body, true)),
            Kind::GTID_TAGGED => self.opened(&event, gtid::tagged(event.body)),
            Kind::MARIA_GTID => {
                let opened = gtid::maria(event.body, event.header.server_id);
                let is_standalone = opened.as_ref().is_ok_and(|opened| opened.is_standalone);
                self.opened(&event, opened)?;
                // There the event that opens a transaction begins it.
                if !is_standalone {
                    self.begin(&event, out)?;
                }
                Ok(Decoded::Passed)
            }
            Kind::QUERY => self.query(&event, out),
            Kind::TABLE_MAP => self.table_map(&event),
            Kind::WRITE_ROWS
            | Kind::UPDATE_ROWS
            | Kind::DELETE_ROWS
            | Kind::WRITE_ROWS_V1
            | Kind::UPDATE_ROWS_V1
            | Kind::DELETE_ROWS_V1 => self.rows(&event, out),
            Kind::XID => self.end(out),
            Kind::INCIDENT => Err(DecodeError::Incident {
                at: self.place.clone(),
            }),
            Kind::XA_PREPARE => Err(self.unsupported("prepared transactions")),
            Kind::PARTIAL_UPDATE_ROWS => Err(self.unsupported("partial updates of JSON documents")),
            Kind::TRANSACTION_PAYLOAD => Err(self.unsupported("compressed transactions")),
            Kind::MARIA_QUERY_COMPRESSED
            | Kind::MARIA_WRITE_ROWS_COMPRESSED_V1
            | Kind::MARIA_UPDATE_ROWS_COMPRESSED_V1
            | Kind::MARIA_DELETE_ROWS_COMPRESSED_V1 => Err(self.unsupported("compressed events")),
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
            | Kind::MARIA_ANNOTATE_ROWS
            | Kind::MARIA_BINLOG_CHECKPOINT
            | Kind::MARIA_GTID_LIST
            | Kind::MARIA_START_ENCRYPTION => Ok(Decoded::Passed),
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
            true => told + (1 << 32),
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
        let seconds = i64::from(event.header.timestamp);
        self.state = State::Opened(Opened {
            commit_time_us: opened.commit_time_us.or(Some(seconds * 1_000_000)),
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
        let id = match &opened.id {
            Identifier::Anonymous => self.place.to_string(),
            Identifier::Gtid(gtid) => gtid.to_string(),
            Identifier::Domain(gtid) => gtid.to_string(),
        };
        out.begin(id, opened.commit_time_us.unwrap_or_default());
        self.state = State::Inside(opened.id);
    }

    fn query(&mut self, event: &Event<'_>, out: &mut BlockBuilder) -> Result<Decoded, DecodeError> {
        let Some(statement) = statement(event.body) else {
            return Err(self.wrong(BinlogError::Cut("a statement")));
        };
        match (&*statement.text, &self.state) {
            ("BEGIN", _) => {
                self.begin(event, out)?;
                Ok(Decoded::Passed)
            }
            ("COMMIT", _) | ("ROLLBACK", State::Dropping) => self.end(out),
            ("ROLLBACK", _) => Err(self.unsupported("transactions that were rolled back in part")),
            (_, State::Dropping) => Ok(Decoded::Passed),
            // Rows that were rolled back to one are not logged, unless tables without transactions were changed as well.
            (text, State::Inside(_)) if is_savepoint(text) => Ok(Decoded::Passed),
            // From a query: its rows follow.
            (text, State::Inside(_)) if makes_table(text) => Ok(Decoded::Statement(statement)),
            (_, State::Inside(_)) => Err(self.unsupported("statements inside a transaction")),
            (_, state) => {
                // What the tables are called and have in them may be otherwise from here on.
                self.tables.clear();
                if matches!(state, State::Opened(opened) if self.reached.contains(&opened.id)) {
                    self.state = State::Outside;
                    return Ok(Decoded::Passed);
                }
                Ok(Decoded::Statement(statement))
            }
        }
    }

    fn table_map(&mut self, event: &Event<'_>) -> Result<Decoded, DecodeError> {
        match self.state {
            State::Inside(_) => {}
            State::Dropping => return Ok(Decoded::Passed),
            State::Outside | State::Opened(_) => return Err(self.out_of_place("table map")),
        }
        let number = Cursor::new(event.body).uint(6);
        let known = number.and_then(|number| self.tables.get(&number));
        if known.is_some_and(|known| known.map == event.body) {
            return Ok(Decoded::Passed);
        }
        let map = TableMap::parse(event.body, self.reached.flavor());
        let map = map.map_err(|error| self.wrong(error))?;
        self.asked = Some((map.number, event.body.to_vec()));
        Ok(Decoded::Table(map))
    }

    fn rows(&mut self, event: &Event<'_>, out: &mut BlockBuilder) -> Result<Decoded, DecodeError> {
        match self.state {
            State::Inside(_) => {}
            State::Dropping => return Ok(Decoded::Passed),
            State::Outside | State::Opened(_) => return Err(self.out_of_place("row")),
        }
        let rows = Rows::parse(event.header.kind, event.body).map_err(|error| self.wrong(error))?;
        let Some(described) = self.tables.get(&rows.table) else {
            // What ends a statement that changed nothing has a number of its own.
            if rows.values.is_empty() {
                return Ok(Decoded::Passed);
            }
            let at = self.place.clone();
            return Err(DecodeError::UnknownTable { at });
        };
        let Some(shape) = described.shape.clone() else {
            return Ok(Decoded::Passed);
        };
        if rows.columns != shape.columns() {
            return Err(DecodeError::ColumnCount {
                table: shape.schema.qualified_name(),
                expected: shape.columns(),
                found: rows.columns,
                at: self.place.clone(),
            });
        }
        // What an insert leaves out is the column's default, which nobody tells; and without a key all of a row tells it.
        let needs_all = rows.change == Change::Insert || shape.schema.key.is_empty();
        if needs_all && rows.first.count(rows.columns) < rows.columns {
            return Err(DecodeError::InPart {
                id: shape.schema.id,
                table: shape.schema.qualified_name(),
                at: self.place.clone(),
            });
        }
        let pushed = push_rows(&shape, &rows, out, &mut self.scratch);
        pushed.map_err(|Unreadable { column, error }| DecodeError::Value {
            id: shape.schema.id,
            table: shape.schema.qualified_name(),
            column: (shape.schema.columns.get(column))
                .map_or_else(String::new, |column| column.name.clone()),
            error,
            at: self.place.clone(),
        })?;
        Ok(Decoded::Rows)
    }

    fn end(&mut self, out: &mut BlockBuilder) -> Result<Decoded, DecodeError> {
        match self.state {
            State::Inside(_) | State::Dropping => Ok(Decoded::Commit(self.commit(out))),
            State::Outside | State::Opened(_) => Err(self.out_of_place("transaction's end")),
        }
    }

    fn commit(&mut self, out: &mut BlockBuilder) -> Committed {
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
            State::Dropping | State::Outside => 0,
        };
        Committed { events }
    }
}

fn push_rows(
    shape: &Shape,
    rows: &Rows<'_>,
    out: &mut BlockBuilder,
    scratch: &mut Vec<u8>,
) -> Result<(), Unreadable> {
    let (first, second) = (
        rows.first.count(rows.columns),
        rows.second.count(rows.columns),
    );
    // An old row that is not logged whole has the key at least.
    let old_image = match (rows.change, first == rows.columns) {
        (Change::Insert, _) => OldImage::None,
        (_, true) => OldImage::Full,
        (_, false) => OldImage::Key,
    };
    let mut cursor = Cursor::new(rows.values);
    // Of rows without columns nobody could tell how many they are.
    if first.min(second) == 0 && !cursor.is_empty() {
        return Err(Unreadable {
            column: 0,
            error: ValueError::Invalid("row: it has no columns"),
        });
    }
    while !cursor.is_empty() {
        let op = match rows.change {
            Change::Insert => RowOp::Insert,
            Change::Update => RowOp::Update,
            Change::Delete => RowOp::Delete,
        };
        let RowColumns { new, old } = out.row(&shape.schema, op, old_image);
        if rows.change != Change::Insert {
            shape.push(
                &mut cursor,
                rows.first,
                first,
                Presence::Absent,
                old,
                scratch,
            )?;
        }
        match rows.change {
            Change::Insert => {
                shape.push(
                    &mut cursor,
                    rows.first,
                    first,
                    Presence::Absent,
                    new,
                    scratch,
                )?;
            }
            // What is not logged of a new row is as it was.
            Change::Update => {
                shape.push(
                    &mut cursor,
                    rows.second,
                    second,
                    Presence::Unchanged,
                    new,
                    scratch,
                )?;
            }
            Change::Delete => {}
        }
    }
    Ok(())
}

fn is_savepoint(text: &str) -> bool {
    let is = |words: &str| {
        text.get(..words.len())
            .is_some_and(|t| t.eq_ignore_ascii_case(words))
    };
    is("SAVEPOINT ") || is("RELEASE SAVEPOINT ")
}

fn makes_table(text: &str) -> bool {
    let is = |words: &str| {
        text.get(..words.len())
            .is_some_and(|t| t.eq_ignore_ascii_case(words))
    };
    is("CREATE TABLE ") || is("CREATE OR REPLACE TABLE ")
}

/// Source: MySQL's `libs/mysql/binlog/event/statement_events.h`, `Query_event`.
fn statement(body: &[u8]) -> Option<Statement> {
    let mut cursor = Cursor::new(body);
    let (_thread, _seconds) = (cursor.u32()?, cursor.u32()?);
    let database = usize::from(cursor.u8()?);
    let _error = cursor.u16()?;
    let status = usize::from(cursor.u16()?);
    cursor.take(status)?;
    let database = cursor.take(database)?;
    cursor.u8()?;
    Some(Statement {
        database: String::from_utf8_lossy(database).into_owned(),
        text: String::from_utf8_lossy(cursor.rest()).into_owned(),
    })
}
