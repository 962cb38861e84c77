//! The event that describes a table before its rows: types, and with `binlog_row_metadata = FULL` names, character sets,
//! labels and the key.
//!
//! Source: MySQL's `libs/mysql/binlog/event/rows_event.h`, `Table_map_event`.

use super::cursor::Cursor;
use super::{BinlogError, Flavor};

/// Type codes of columns. Source: MySQL's `include/field_types.h`; 140 and 141 are MariaDB's compressed ones.
pub mod code {
    pub const TINY: u8 = 1;
    pub const SHORT: u8 = 2;
    pub const LONG: u8 = 3;
    pub const FLOAT: u8 = 4;
    pub const DOUBLE: u8 = 5;
    pub const TIMESTAMP: u8 = 7;
    pub const LONGLONG: u8 = 8;
    pub const INT24: u8 = 9;
    pub const DATE: u8 = 10;
    pub const TIME: u8 = 11;
    pub const DATETIME: u8 = 12;
    pub const YEAR: u8 = 13;
    pub const NEWDATE: u8 = 14;
    pub const VARCHAR: u8 = 15;
    pub const BIT: u8 = 16;
    pub const TIMESTAMP2: u8 = 17;
    pub const DATETIME2: u8 = 18;
    pub const TIME2: u8 = 19;
    pub const BLOB_COMPRESSED: u8 = 140;
    pub const VARCHAR_COMPRESSED: u8 = 141;
    pub const VECTOR: u8 = 242;
    pub const JSON: u8 = 245;
    pub const NEWDECIMAL: u8 = 246;
    pub const ENUM: u8 = 247;
    pub const SET: u8 = 248;
    pub const TINY_BLOB: u8 = 249;
    pub const MEDIUM_BLOB: u8 = 250;
    pub const LONG_BLOB: u8 = 251;
    pub const BLOB: u8 = 252;
    pub const VAR_STRING: u8 = 253;
    pub const STRING: u8 = 254;
    pub const GEOMETRY: u8 = 255;
}

/// How a column's values lie in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    /// A whole number of so many bytes.
    Integer(u8),
    Float,
    Double,
    Decimal {
        precision: u8,
        scale: u8,
    },
    Year,
    Date,
    /// Digits after the second's point.
    Time(u8),
    Datetime(u8),
    Timestamp(u8),
    /// The forms of before 5.6, which a table that was never rebuilt still has.
    OldTime,
    OldDatetime,
    OldTimestamp,
    Bits(u16),
    /// One byte or two.
    Enum(u8),
    /// So many bytes, a bit for each member.
    Set(u8),
    /// At most so many bytes, behind a length of one byte, or of two if that is over 255. Spaces or zeros at the end are
    /// cut.
    Char(u16),
    /// Bytes behind a length of so many bytes.
    Bytes(u8),
    /// The same, of a compressed column of MariaDB's.
    Compressed(u8),
    Json(u8),
}

/// What a table map says of a column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapColumn {
    pub code: u8,
    /// `None`: values of this type are not understood.
    pub wire: Option<Wire>,
    pub nullable: bool,
    /// The rest only where the server tells it.
    pub unsigned: Option<bool>,
    pub name: Option<String>,
    /// The number of a collation; 63 is that of bytes.
    pub collation: Option<u64>,
    /// Of an enumeration or a set, in the column's character set.
    pub labels: Option<Vec<Vec<u8>>>,
    pub visible: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableMap {
    /// What the rows that follow call it; another number after each change of the table, and each start of the server.
    pub number: u64,
    pub database: String,
    pub table: String,
    pub columns: Vec<MapColumn>,
    /// Indexes of the primary key's columns, in its order; `None` where it is not told or there is none.
    pub key: Option<Vec<usize>>,
}

/// The names of a table map's database and table, and nothing else of it.
pub(super) fn names(body: &[u8]) -> Option<(String, String)> {
    let mut cursor = Cursor::new(body);
    let (_number, _flags) = (cursor.uint(6)?, cursor.u16()?);
    Some((name(&mut cursor)?, name(&mut cursor)?))
}

const CUT: BinlogError = BinlogError::Cut("a table map");

impl TableMap {
    /// # Errors
    /// The bytes end too early.
    pub fn parse(body: &[u8], flavor: Flavor) -> Result<Self, BinlogError> {
        let mut cursor = Cursor::new(body);
        Self::read(&mut cursor, flavor).ok_or(CUT)
    }

    fn read(cursor: &mut Cursor<'_>, flavor: Flavor) -> Option<Self> {
        let number = cursor.uint(6)?;
        let _flags = cursor.u16()?;
        let database = name(cursor)?;
        let table = name(cursor)?;
        let count = usize::try_from(cursor.lenenc()?).ok()?;
        let codes = cursor.take(count)?;
        let mut meta = Cursor::new(cursor.lenenc_bytes()?);
        let nullable = cursor.take(count.div_ceil(8))?;
        let mut columns = Vec::with_capacity(count);
        for (at, code) in codes.iter().enumerate() {
            let (code, wire) = wire(*code, &mut meta)?;
            columns.push(MapColumn {
                code,
                wire,
                nullable: nullable[at / 8] >> (at % 8) & 1 == 1,
                unsigned: None,
                name: None,
                collation: None,
                labels: None,
                visible: true,
            });
        }
        let mut map = Self {
            number,
            database,
            table,
            columns,
            key: None,
        };
        while !cursor.is_empty() {
            let field = cursor.u8()?;
            let mut value = Cursor::new(cursor.lenenc_bytes()?);
            map.take_field(field, &mut value, flavor)?;
        }
        Some(map)
    }

    /// One of the fields that tell more; those that are not known say nothing that the rows need.
    fn take_field(&mut self, field: u8, value: &mut Cursor<'_>, flavor: Flavor) -> Option<()> {
        let is_text = |column: &MapColumn| column.is_text(flavor);
        match field {
            1 => self.take_bits(value, MapColumn::is_number, |column, is_set| {
                column.unsigned = Some(is_set);
            })?,
            2 => self.take_default_collation(value, is_text)?,
            3 => self.take_collations(value, is_text)?,
            4 => {
                for column in &mut self.columns {
                    let name = value.lenenc_bytes()?;
                    column.name = Some(String::from_utf8_lossy(name).into_owned());
                }
            }
            5 => self.take_labels(value, |column| column.code == code::SET)?,
            6 => self.take_labels(value, |column| column.code == code::ENUM)?,
            8 | 9 => {
                let mut key = Vec::new();
                while !value.is_empty() {
                    key.push(usize::try_from(value.lenenc()?).ok()?);
                    if field == 9 {
                        let _prefix = value.lenenc()?;
                    }
                }
                self.key = Some(key).filter(|key| key.iter().all(|at| *at < self.columns.len()));
                self.key.as_ref()?;
            }
            10 => self.take_default_collation(value, MapColumn::has_labels)?,
            11 => self.take_collations(value, MapColumn::has_labels)?,
            12 => self.take_bits(value, |_| true, |column, is_set| column.visible = is_set)?,
            _ => {}
        }
        Some(())
    }

    /// A bit for each column of a kind, the highest of a byte first.
    fn take_bits(
        &mut self,
        value: &mut Cursor<'_>,
        of: impl Fn(&MapColumn) -> bool,
        set: impl Fn(&mut MapColumn, bool),
    ) -> Option<()> {
        let bits = value.take(self.columns.iter().filter(|c| of(c)).count().div_ceil(8))?;
        let columns = self.columns.iter_mut().filter(|column| of(column));
        for (at, column) in columns.enumerate() {
            set(column, bits[at / 8] >> (7 - at % 8) & 1 == 1);
        }
        Some(())
    }

    /// One collation for all columns of a kind but those that follow, by their number among them.
    fn take_default_collation(
        &mut self,
        value: &mut Cursor<'_>,
        of: impl Fn(&MapColumn) -> bool,
    ) -> Option<()> {
        let default = value.lenenc()?;
        let mut columns: Vec<_> = self.columns.iter_mut().filter(|c| of(c)).collect();
        for column in &mut columns {
            column.collation = Some(default);
        }
        while !value.is_empty() {
            let at = usize::try_from(value.lenenc()?).ok()?;
            columns.get_mut(at)?.collation = Some(value.lenenc()?);
        }
        Some(())
    }

    fn take_collations(
        &mut self,
        value: &mut Cursor<'_>,
        of: impl Fn(&MapColumn) -> bool,
    ) -> Option<()> {
        for column in self.columns.iter_mut().filter(|column| of(column)) {
            column.collation = Some(value.lenenc()?);
        }
        Some(())
    }

    fn take_labels(
        &mut self,
        value: &mut Cursor<'_>,
        of: impl Fn(&MapColumn) -> bool,
    ) -> Option<()> {
        for column in self.columns.iter_mut().filter(|column| of(column)) {
            let count = value.lenenc()?;
            let labels: Option<Vec<_>> = (0..count)
                .map(|_| value.lenenc_bytes().map(<[u8]>::to_vec))
                .collect();
            column.labels = Some(labels?);
        }
        Some(())
    }
}

impl MapColumn {
    /// Source: `Table_map_event::init_signedness_field` and `is_numeric_type` in MySQL's `sql/log_event.cc`.
    fn is_number(&self) -> bool {
        use code::{DOUBLE, FLOAT, INT24, LONG, LONGLONG, NEWDECIMAL, SHORT, TINY, YEAR};
        matches!(
            self.code,
            TINY | SHORT | INT24 | LONG | LONGLONG | NEWDECIMAL | FLOAT | DOUBLE | YEAR
        )
    }

    /// Source: `is_character_type`, there. MariaDB counts among them whatever has bytes, geometries too.
    fn is_text(&self, flavor: Flavor) -> bool {
        use code::{
            BLOB, BLOB_COMPRESSED, GEOMETRY, STRING, VAR_STRING, VARCHAR, VARCHAR_COMPRESSED,
        };
        let is_geometry = self.code == GEOMETRY && flavor == Flavor::Mariadb;
        is_geometry
            || matches!(
                self.code,
                STRING | VAR_STRING | VARCHAR | BLOB | BLOB_COMPRESSED | VARCHAR_COMPRESSED
            )
    }

    fn has_labels(&self) -> bool {
        matches!(self.code, code::ENUM | code::SET)
    }
}

/// A length in one byte, the name, and a zero.
fn name(cursor: &mut Cursor<'_>) -> Option<String> {
    let len = cursor.u8()?;
    let name = cursor.take(usize::from(len))?;
    cursor.u8()?;
    Some(String::from_utf8_lossy(name).into_owned())
}

/// The type's own code, and the form of its values. `None`: the bytes end too early.
fn wire(code: u8, meta: &mut Cursor<'_>) -> Option<(u8, Option<Wire>)> {
    let lengths_of = |max: u16| if max > 255 { 2 } else { 1 };
    let wire = match code {
        code::TINY => Wire::Integer(1),
        code::SHORT => Wire::Integer(2),
        code::INT24 => Wire::Integer(3),
        code::LONG => Wire::Integer(4),
        code::LONGLONG => Wire::Integer(8),
        code::FLOAT => {
            meta.u8()?;
            Wire::Float
        }
        code::DOUBLE => {
            meta.u8()?;
            Wire::Double
        }
        code::NEWDECIMAL => Wire::Decimal {
            precision: meta.u8()?,
            scale: meta.u8()?,
        },
        code::YEAR => Wire::Year,
        code::DATE | code::NEWDATE => Wire::Date,
        code::TIME => Wire::OldTime,
        code::DATETIME => Wire::OldDatetime,
        code::TIMESTAMP => Wire::OldTimestamp,
        code::TIME2 => Wire::Time(meta.u8()?),
        code::DATETIME2 => Wire::Datetime(meta.u8()?),
        code::TIMESTAMP2 => Wire::Timestamp(meta.u8()?),
        code::BIT => {
            let (bits, bytes) = (meta.u8()?, meta.u8()?);
            Wire::Bits(u16::from(bytes) * 8 + u16::from(bits))
        }
        code::VARCHAR | code::VAR_STRING => Wire::Bytes(lengths_of(meta.u16()?)),
        code::TINY_BLOB
        | code::MEDIUM_BLOB
        | code::LONG_BLOB
        | code::BLOB
        | code::GEOMETRY
        | code::VECTOR => Wire::Bytes(meta.u8()?),
        code::JSON => Wire::Json(meta.u8()?),
        code::ENUM | code::SET | code::STRING => {
            let (kind, len) = (meta.u8()?, meta.u8()?);
            return Some(string(kind, len));
        }
        code::BLOB_COMPRESSED => Wire::Compressed(meta.u8()?),
        code::VARCHAR_COMPRESSED => Wire::Compressed(lengths_of(meta.u16()?)),
        // How many bytes of what follows are this one's is not known either.
        _ => return None,
    };
    Some((code, Some(wire)))
}

/// The real type of what is called a string, and two bits of its length, hide in one byte. Source: `Field_string`'s
/// `do_save_field_metadata` in MySQL's `sql/field.cc`.
fn string(kind: u8, len: u8) -> (u8, Option<Wire>) {
    let (real, high) = match kind & 0x30 == 0x30 {
        true => (kind, 0),
        false => (kind | 0x30, u16::from((kind & 0x30) ^ 0x30) << 4),
    };
    let wire = match real {
        code::ENUM => Wire::Enum(len),
        code::SET => Wire::Set(len),
        code::STRING => Wire::Char(high | u16::from(len)),
        _ => return (real, None),
    };
    (real, Some(wire))
}
