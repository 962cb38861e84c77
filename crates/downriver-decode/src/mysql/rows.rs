//! Events with rows: which columns each row has, and where its values begin.
//!
//! Source: MySQL's `libs/mysql/binlog/event/rows_event.h`, `Rows_event`.

use super::BinlogError;
use super::cursor::Cursor;
use super::event::Kind;
use super::shape::Shape;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Insert,
    Update,
    Delete,
}

/// The rows of one event, all of one table and one kind.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rows<'a> {
    pub(super) table: u64,
    pub(super) flags: u16,
    pub(super) change: Change,
    /// How many columns the table has.
    pub(super) columns: usize,
    /// Of an update, the columns of the old rows; of the others, of the only ones.
    pub(super) first: Present<'a>,
    /// Of an update, the columns of the new rows.
    pub(super) second: Present<'a>,
    /// Documents in new rows may be changes of those in the old ones.
    pub(super) may_change_in_part: bool,
    /// The values are compressed.
    pub(super) is_compressed: bool,
    pub(super) values: &'a [u8],
}

/// The columns that rows have.
#[derive(Clone, Copy, Debug)]
pub(super) struct Present<'a> {
    pub(super) has: Bits<'a>,
    pub(super) count: usize,
}

/// A bit for each column, the lowest of a byte first.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bits<'a>(&'a [u8]);

impl Bits<'_> {
    #[inline]
    pub(super) fn has(self, at: usize) -> bool {
        self.0[at / 8] >> (at % 8) & 1 == 1
    }
}

/// A bit for each of so many columns.
fn bits<'a>(cursor: &mut Cursor<'a>, columns: usize) -> Option<Bits<'a>> {
    cursor.take(columns.div_ceil(8)).map(Bits)
}

fn present<'a>(cursor: &mut Cursor<'a>, columns: usize) -> Option<Present<'a>> {
    let has = bits(cursor, columns)?;
    let count = (0..columns).filter(|at| has.has(*at)).count();
    Some(Present { has, count })
}

impl<'a> Rows<'a> {
    pub(super) fn parse(kind: Kind, body: &'a [u8]) -> Result<Self, BinlogError> {
        let (change, has_extra) = match kind {
            Kind::WRITE_ROWS => (Change::Insert, true),
            Kind::UPDATE_ROWS | Kind::PARTIAL_UPDATE_ROWS => (Change::Update, true),
            Kind::DELETE_ROWS => (Change::Delete, true),
            Kind::WRITE_ROWS_V1 | Kind::MARIA_WRITE_ROWS_COMPRESSED_V1 => (Change::Insert, false),
            Kind::UPDATE_ROWS_V1 | Kind::MARIA_UPDATE_ROWS_COMPRESSED_V1 => (Change::Update, false),
            Kind::DELETE_ROWS_V1 | Kind::MARIA_DELETE_ROWS_COMPRESSED_V1 => (Change::Delete, false),
            kind => return Err(BinlogError::Unknown(kind)),
        };
        let read = |mut cursor: Cursor<'a>| {
            let table = cursor.uint(6)?;
            let flags = cursor.u16()?;
            if has_extra {
                // Its length counts itself.
                let len = usize::from(cursor.u16()?).checked_sub(2)?;
                cursor.take(len)?;
            }
            let columns = usize::try_from(cursor.lenenc()?).ok()?;
            let first = present(&mut cursor, columns)?;
            let second = match change {
                Change::Update => present(&mut cursor, columns)?,
                Change::Insert | Change::Delete => first,
            };
            Some(Self {
                table,
                flags,
                change,
                columns,
                first,
                second,
                may_change_in_part: kind == Kind::PARTIAL_UPDATE_ROWS,
                is_compressed: kind >= Kind::MARIA_WRITE_ROWS_COMPRESSED_V1,
                values: cursor.rest(),
            })
        };
        read(Cursor::new(body)).ok_or(BinlogError::Cut("an event with rows"))
    }

    /// Whether they were inserted without columns whose defaults are not known.
    pub(super) fn lacks_defaults(&self, shape: &Shape) -> bool {
        self.change == Change::Insert
            && self.columns == shape.columns()
            && self.first.count < self.columns
            && shape.lacks_default(self.first.has)
    }

    /// Whether nothing is missing that only a whole row tells. `fills_in`: what rows are logged without is known.
    pub(super) fn tell_all(&self, shape: &Shape, fills_in: bool) -> bool {
        let has_key = !shape.schema.key.is_empty();
        let is_whole = shape.is_whole(self.first);
        let tells_new = || shape.are_all(|at| self.first.has.has(at) || self.second.has.has(at));
        match self.change {
            Change::Insert => is_whole || fills_in,
            Change::Update => (has_key || is_whole) && (fills_in || tells_new()),
            // By the whole row, where there is no key.
            Change::Delete => has_key || is_whole,
        }
    }
}

/// The columns that are null, among those that a row has.
#[inline]
pub(super) fn nulls<'a>(row: &mut Cursor<'a>, present: usize) -> Option<Bits<'a>> {
    bits(row, present)
}

/// The documents of a new row that are changes of the old ones, with a bit for each column of documents, whether the row
/// has it or not. `None`: the bytes end too early, or are not understood; `Some(None)`: there are no such documents.
pub(super) fn changed_in_part<'a>(
    row: &mut Cursor<'a>,
    documents: usize,
) -> Option<Option<Bits<'a>>> {
    match row.lenenc()? {
        0 => Some(None),
        1 => bits(row, documents).map(Some),
        _ => None,
    }
}
