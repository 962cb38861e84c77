//! What a transaction did beside the rows that it logged: savepoints and what was rolled back to them, statements whose
//! rows nobody logged, and changes by which the storage engine may have changed rows of other tables by foreign keys.

use std::sync::Arc;

use downriver_event::TableId;
use downriver_event::block::BlockBuilder;

use super::super::ddl::{Named, verb};
use super::super::is_same_name;
use super::super::rows::{Change, Present, Rows, nulls};
use super::super::shape::Shape;
use super::super::table_map::{TableMap, Wire};
use super::{
    BinlogDecoder, Committed, Cursor, DecodeError, Decoded, Event, State, Statement,
    statement_behind,
};

/// The session checked no foreign keys: then none cascades.
const NO_FOREIGN_KEY_CHECKS: u16 = 2;
/// The server itself, and not the storage engine, changed rows by foreign keys: they are logged. MySQL from 9.6 on.
const SQL_FOREIGN_KEYS: u16 = 16;
/// Bytes of a file's number and of the places of its name, in front of the statement that loads it.
const LOAD_BYTES: usize = 4 + 4 + 4 + 1;

/// What the open transaction did beside its rows.
#[derive(Debug, Default)]
pub(super) struct Aside {
    /// In their order, and how many events the transaction had at each.
    savepoints: Vec<(String, u64)>,
    parents: Vec<Parent>,
    /// Captured tables that it has rows of.
    touched: Vec<TableId>,
    /// Rows that were rolled back are in blocks that were handed out.
    is_spoiled: bool,
}

/// A table of which the storage engine changed or deleted rows: rows that refer to them may have changed with them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parent {
    pub table: Arc<Named>,
    pub deletes: bool,
    /// Of columns that rows of other tables refer to.
    pub updates: bool,
}

/// Columns of a table whose change matters to others.
#[derive(Debug)]
pub(super) struct Watched {
    wires: Vec<Option<Wire>>,
    /// Their indexes; `None`: they are not to be found.
    columns: Option<Vec<usize>>,
}

impl Watched {
    /// The columns of a table that have one of these names.
    fn new(map: &TableMap, names: &[String]) -> Self {
        let at = |name: &String| {
            let mut columns = map.columns.iter();
            columns.position(|column| {
                let column = column.name.as_ref();
                column.is_some_and(|column| is_same_name(column, name))
            })
        };
        Self {
            wires: map.columns.iter().map(|column| column.wire).collect(),
            columns: names.iter().map(at).collect(),
        }
    }

    /// Whether an update changed one of the columns, or may have.
    fn are_changed(&self, rows: &Rows<'_>) -> bool {
        let Some(columns) = self.columns.as_ref().filter(|_| !rows.may_change_in_part) else {
            return true;
        };
        if rows.first.count + rows.second.count == 0 {
            return true;
        }
        let mut cursor = Cursor::new(rows.values);
        while !cursor.is_empty() {
            let old = self.values(columns, &mut cursor, rows.columns, rows.first);
            let new = self.values(columns, &mut cursor, rows.columns, rows.second);
            let (Some(old), Some(new)) = (old, new) else {
                return true;
            };
            // What a new row leaves out is as it was.
            if new.iter().any(|value| !old.contains(value)) {
                return true;
            }
        }
        false
    }

    /// The columns that one image has, and their bytes, if they are not null. `None`: they are not to be found.
    fn values<'a>(
        &self,
        watched: &[usize],
        row: &mut Cursor<'a>,
        columns: usize,
        Present { has, count }: Present<'_>,
    ) -> Option<Vec<Held<'a>>> {
        let nulls = nulls(row, count)?;
        let mut values = Vec::with_capacity(watched.len());
        let present = (0..columns).filter(|column| has.has(*column));
        for (at, column) in present.enumerate() {
            let value = match nulls.has(at) {
                true => None,
                false => Some((*self.wires.get(column)?)?.take(row)?),
            };
            if watched.contains(&column) {
                values.push((column, value));
            }
        }
        Some(values)
    }
}

/// A column, and its bytes if it is not null.
type Held<'a> = (usize, Option<&'a [u8]>);

impl Wire {
    /// The bytes of one value.
    pub(in super::super) fn take<'a>(self, row: &mut Cursor<'a>) -> Option<&'a [u8]> {
        let behind = |row: &mut Cursor<'a>, bytes: u8| {
            let len = row.uint(bytes.into())?;
            row.take(usize::try_from(len).ok()?)
        };
        let fraction = |digits: u8| usize::from(digits.min(6)).div_ceil(2);
        let bytes = match self {
            Self::Char(max) => return behind(row, if max > 255 { 2 } else { 1 }),
            Self::Bytes(bytes) | Self::Json(bytes) | Self::Compressed(bytes) => {
                return behind(row, bytes);
            }
            Self::Integer(bytes) | Self::Enum(bytes) | Self::Set(bytes) => bytes.into(),
            Self::Bits(bits) => usize::from(bits.div_ceil(8)),
            Self::Year => 1,
            Self::Date | Self::OldTime => 3,
            Self::Float | Self::OldTimestamp => 4,
            Self::Double | Self::OldDatetime => 8,
            Self::Time(digits) => 3 + fraction(digits),
            Self::Timestamp(digits) => 4 + fraction(digits),
            Self::Datetime(digits) => 5 + fraction(digits),
            Self::Decimal { precision, scale } => decimal_bytes(precision, scale)?,
        };
        row.take(bytes)
    }
}

/// Nine digits in four bytes, and what is left over in fewer. Source: `decimal_bin_size` in MySQL's `mysys/decimal.cc`.
fn decimal_bytes(precision: u8, scale: u8) -> Option<usize> {
    const OF_LEFT_OVER: [usize; 9] = [0, 1, 1, 2, 2, 3, 3, 4, 4];
    let bytes = |digits: u8| 4 * usize::from(digits / 9) + OF_LEFT_OVER[usize::from(digits % 9)];
    Some(bytes(precision.checked_sub(scale)?) + bytes(scale))
}

impl Aside {
    /// Takes note of rows of a captured table.
    pub(super) fn touch(&mut self, table: TableId) {
        if !self.touched.contains(&table) {
            self.touched.push(table);
        }
    }

    /// Takes note of rows of a table.
    pub(super) fn rows(&mut self, table: &Arc<Named>, watched: Option<&Watched>, rows: &Rows<'_>) {
        let unseen = rows.flags & (SQL_FOREIGN_KEYS | NO_FOREIGN_KEY_CHECKS) == 0;
        let (deletes, updates) = match rows.change {
            Change::Delete => (unseen, false),
            Change::Update => (false, unseen && watched.is_some()),
            Change::Insert => return,
        };
        if !deletes && !updates {
            return;
        }
        let known = self.parents.iter().position(|known| known.table == *table);
        let known = known.map(|at| &mut self.parents[at]);
        if let Some(parent) = known {
            parent.deletes |= deletes;
            if updates && !parent.updates {
                parent.updates = watched.is_some_and(|watched| watched.are_changed(rows));
            }
            return;
        }
        let updates = updates && watched.is_some_and(|watched| watched.are_changed(rows));
        if deletes || updates {
            self.parents.push(Parent {
                table: Arc::clone(table),
                deletes,
                updates,
            });
        }
    }
}

impl BinlogDecoder {
    /// Rows of a table matter to others that refer to these columns of it. For the table that was asked for, before its
    /// shape is set.
    pub fn watch(&mut self, map: &TableMap, columns: &[String]) {
        if let Some(asked) = &mut self.asked {
            asked.watched = Some(Watched::new(map, columns));
        }
    }

    /// Every table is asked for again.
    pub fn forget_tables(&mut self) {
        self.tables.clear();
    }

    /// The rows of a table are passed over, until it is asked for again.
    pub fn pass_over(&mut self, table: TableId) {
        let is_of_it = |shape: &mut Arc<Shape>| shape.schema.id == table;
        for described in self.tables.values_mut() {
            described.shape.take_if(is_of_it);
        }
    }

    /// A savepoint of the open transaction, or its end. `None`: the statement is about none.
    pub(super) fn savepoint(&mut self, text: &str, out: &mut BlockBuilder) -> Option<Decoded> {
        let (is, name) = savepoint(text)?;
        let savepoints = &mut self.aside.savepoints;
        let at = savepoints.iter().rposition(|(known, _)| *known == name);
        match (is, at) {
            (Savepoint::Set, at) => {
                // One of the same name is another one from here on.
                if let Some(at) = at {
                    savepoints.remove(at);
                }
                savepoints.push((name, out.open_events()));
            }
            (Savepoint::Released, Some(at)) => savepoints.truncate(at),
            (Savepoint::Released, None) => {}
            (Savepoint::RolledBack, at) => {
                let (to, kept) = at.map_or((0, 0), |at| (savepoints[at].1, at + 1));
                savepoints.truncate(kept);
                let is_whole = out.take_back(to);
                // Of one that never came nobody knows where it was.
                self.aside.is_spoiled |= !is_whole || at.is_none();
            }
        }
        Some(Decoded::Passed)
    }

    /// The open transaction was rolled back, which is logged only where tables without transactions were changed too.
    pub(super) fn rolled_back(&mut self, out: &mut BlockBuilder) -> Decoded {
        self.aside = Aside {
            is_spoiled: !out.take_back(0),
            touched: std::mem::take(&mut self.aside.touched),
            ..Aside::default()
        };
        let mut committed = self.commit(out);
        committed.is_rolled_back = true;
        Decoded::Commit(committed)
    }

    /// A file begins: the server ended in the middle of what is open, and never logged the rest.
    pub(super) fn abandon(&mut self, out: &mut BlockBuilder) -> Decoded {
        let state = std::mem::replace(&mut self.state, State::Outside);
        if !matches!(state, State::Inside(_)) {
            return match state {
                State::Holding(_) => Decoded::Commit(Committed::default()),
                _ => Decoded::Passed,
            };
        }
        self.aside.is_spoiled = !out.take_back(0);
        self.aside.parents.clear();
        let events = out.commit_unplaced();
        let mut committed = self.beside(events);
        committed.is_rolled_back = true;
        Decoded::Commit(committed)
    }

    /// What the transaction that ends did beside its rows.
    pub(super) fn beside(&mut self, events: u64) -> Committed {
        let aside = std::mem::take(&mut self.aside);
        Committed {
            events,
            is_rolled_back: false,
            spoiled: match aside.is_spoiled {
                true => aside.touched,
                false => Vec::new(),
            },
            parents: aside.parents,
        }
    }

    /// A statement with a file's rows.
    pub(super) fn load_query(&mut self, event: &Event<'_>) -> Result<Decoded, DecodeError> {
        let statement = statement_behind(event, LOAD_BYTES);
        let statement = statement.map_err(|error| self.wrong(error))?;
        match &self.state {
            State::Dropping => Ok(Decoded::Passed),
            State::Inside(_) => Ok(Decoded::Unseen(statement)),
            _ => Err(self.out_of_place("statement with a file's rows")),
        }
    }

    /// A statement that came by itself, outside a transaction, and changes rows all the same.
    pub(super) fn alone(&mut self, statement: Statement) -> Decoded {
        match changes_rows(&statement.text) {
            true => Decoded::Unseen(statement),
            false => Decoded::Statement(statement),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Savepoint {
    Set,
    Released,
    RolledBack,
}

pub(super) fn is_of_savepoints(text: &str) -> bool {
    savepoint(text).is_some()
}

/// Servers write the name between backticks; in whatever case, it is the same.
fn savepoint(text: &str) -> Option<(Savepoint, String)> {
    let behind = |words: &str| {
        let start = text.get(..words.len())?;
        start
            .eq_ignore_ascii_case(words)
            .then(|| &text[words.len()..])
    };
    let (is, name) = if let Some(name) = behind("SAVEPOINT ") {
        (Savepoint::Set, name)
    } else if let Some(name) = behind("RELEASE SAVEPOINT ") {
        (Savepoint::Released, name)
    } else if let Some(name) = behind("ROLLBACK TO SAVEPOINT ") {
        (Savepoint::RolledBack, name)
    } else {
        (Savepoint::RolledBack, behind("ROLLBACK TO ")?)
    };
    Some((is, name.trim().trim_matches('`').to_lowercase()))
}

/// Whether a statement inside a transaction has rows of its own, or none that last.
pub(super) fn is_of_no_rows(text: &str) -> bool {
    let words = verb(text, 4);
    let is = |at: usize, word: &str| words.get(at).is_some_and(|found| found == word);
    let of_temporary = is(1, "TEMPORARY") || is(3, "TEMPORARY");
    (is(0, "CREATE") || is(0, "DROP")) && of_temporary
}

/// Whether a statement changes rows, and not tables.
fn changes_rows(text: &str) -> bool {
    const VERBS: [&str; 9] = [
        "INSERT", "REPLACE", "UPDATE", "DELETE", "LOAD", "WITH", "SELECT", "DO", "CALL",
    ];
    let first = verb(text, 1).into_iter().next();
    first.is_some_and(|first| VERBS.contains(&first.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn savepoints_are_told_with_their_names() {
        let of = savepoint;
        let is = |is, name: &str| Some((is, name.to_owned()));
        assert_eq!(of("SAVEPOINT `A b`"), is(Savepoint::Set, "a b"));
        assert_eq!(of("ROLLBACK TO `s`"), is(Savepoint::RolledBack, "s"));
        assert_eq!(
            of("rollback to savepoint s"),
            is(Savepoint::RolledBack, "s")
        );
        assert_eq!(of("RELEASE SAVEPOINT x"), is(Savepoint::Released, "x"));
        assert_eq!(of("ROLLBACK"), None);
        assert_eq!(of("insert into savepoint values (1)"), None);
    }

    #[test]
    fn statements_that_change_rows_are_told_from_those_that_change_tables() {
        for text in [
            "insert into t values (1)",
            "/* x */ UPDATE t set a = 1",
            "(select f())",
        ] {
            assert!(changes_rows(text), "{text}");
        }
        for text in [
            "create table t (a int)",
            "GRANT all on *.* to x",
            "XA COMMIT X''",
        ] {
            assert!(!changes_rows(text), "{text}");
        }
        assert!(is_of_no_rows("CREATE TEMPORARY TABLE t (a int)"));
        assert!(is_of_no_rows(
            "DROP /*!40005 TEMPORARY */ TABLE IF EXISTS `t`"
        ));
        assert!(!is_of_no_rows("insert into t values (1)"));
        assert!(!is_of_no_rows("create table t (a int)"));
    }

    #[test]
    fn decimals_have_as_many_bytes_as_the_server_gives_them() {
        for (precision, scale, bytes) in [(10, 2, 5), (1, 0, 1), (65, 30, 30), (9, 9, 4)] {
            assert_eq!(decimal_bytes(precision, scale), Some(bytes));
        }
        assert_eq!(decimal_bytes(1, 2), None);
    }
}
