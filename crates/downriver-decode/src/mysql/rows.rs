//! Events with rows: which columns each row has, and where its values begin.
//!
//! Source: MySQL's `libs/mysql/binlog/event/rows_event.h`, `Rows_event`.

use super::BinlogError;
use super::cursor::Cursor;
use super::event::Kind;

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
    pub(super) change: Change,
    /// How many columns the table has.
    pub(super) columns: usize,
    /// Of an update, the columns of the old rows; of the others, of the only ones.
    pub(super) first: Bits<'a>,
    /// Of an update, the columns of the new rows.
    pub(super) second: Bits<'a>,
    pub(super) values: &'a [u8],
}

/// A bit for each column, the lowest of a byte first.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bits<'a>(&'a [u8]);

impl Bits<'_> {
    #[inline]
    pub(super) fn has(self, at: usize) -> bool {
        self.0[at / 8] >> (at % 8) & 1 == 1
    }

    pub(super) fn count(self, columns: usize) -> usize {
        (0..columns).filter(|at| self.has(*at)).count()
    }
}

impl<'a> Rows<'a> {
    pub(super) fn parse(kind: Kind, body: &'a [u8]) -> Result<Self, BinlogError> {
        let (change, has_extra) = match kind {
            Kind::WRITE_ROWS => (Change::Insert, true),
            Kind::UPDATE_ROWS => (Change::Update, true),
            Kind::DELETE_ROWS => (Change::Delete, true),
            Kind::WRITE_ROWS_V1 => (Change::Insert, false),
            Kind::UPDATE_ROWS_V1 => (Change::Update, false),
            Kind::DELETE_ROWS_V1 => (Change::Delete, false),
            kind => return Err(BinlogError::Unknown(kind)),
        };
        let read = |mut cursor: Cursor<'a>| {
            let table = cursor.uint(6)?;
            let _flags = cursor.u16()?;
            if has_extra {
                // Its length counts itself.
                let len = usize::from(cursor.u16()?).checked_sub(2)?;
                cursor.take(len)?;
            }
            let columns = usize::try_from(cursor.lenenc()?).ok()?;
            let first = Bits(cursor.take(columns.div_ceil(8))?);
            let second = match change {
                Change::Update => Bits(cursor.take(columns.div_ceil(8))?),
                Change::Insert | Change::Delete => first,
            };
            Some(Self {
                table,
                change,
                columns,
                first,
                second,
                values: cursor.rest(),
            })
        };
        read(Cursor::new(body)).ok_or(BinlogError::Cut("an event with rows"))
    }
}

/// The columns that are null, among those that a row has.
pub(super) fn nulls<'a>(row: &mut Cursor<'a>, present: usize) -> Option<Bits<'a>> {
    row.take(present.div_ceil(8)).map(Bits)
}
