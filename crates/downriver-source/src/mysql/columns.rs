//! A column of information_schema as a table map would tell it.

use downriver_decode::mysql::Charset;
use downriver_decode::mysql::declared::Declared;
use downriver_decode::mysql::native::Native;
use downriver_decode::mysql::shape::Described;
use downriver_decode::mysql::table_map::{Wire, code};
use downriver_event::problem::Problem;
use mysql_async::Row;

use super::server::Flavor;
use super::sql::{number, text};

/// What [`CatalogColumn::read`] reads, in its order, behind the names of database and table.
pub(super) const COLUMNS: &str = "column_name, data_type, column_type, character_octet_length,
    numeric_precision, numeric_scale, datetime_precision, character_set_name, is_nullable, column_key, extra";

/// What follows the comment's beginning in the type of a compressed column.
const COMPRESSED: &str = "M!100301 COMPRESSED*/";
/// What it is called in messages and in the catalog of a table that cannot be captured.
const EXCLUDE: &str = "exclude the table from the source, or give the column another type";

#[derive(Clone, Debug)]
pub(super) struct CatalogColumn {
    pub(super) name: String,
    data_type: String,
    /// With all that belongs to it.
    pub(super) column_type: String,
    octets: Option<u64>,
    precision: Option<u64>,
    scale: Option<u64>,
    fraction: Option<u64>,
    charset: Option<String>,
    pub(super) nullable: bool,
    /// Whether it is one of those that the server knows rows by.
    pub(super) is_key: bool,
    pub(super) is_generated: bool,
}

/// A column that is understood.
#[derive(Clone, Debug)]
pub(super) struct KnownColumn {
    pub(super) described: Described,
    pub(super) wire: Wire,
    /// The server's own name of the character set of text.
    pub(super) charset: Option<String>,
    pub(super) declared: Declared,
}

impl CatalogColumn {
    pub(super) fn read(row: &Row, at: usize) -> Option<Self> {
        Some(Self {
            name: text(row, at)?,
            data_type: text(row, at + 1)?.to_ascii_lowercase(),
            column_type: text(row, at + 2)?,
            octets: number(row, at + 3),
            precision: number(row, at + 4),
            scale: number(row, at + 5),
            fraction: number(row, at + 6),
            charset: text(row, at + 7).filter(|charset| charset != "binary"),
            nullable: text(row, at + 8)? == "YES",
            is_key: text(row, at + 9)? == "PRI",
            is_generated: text(row, at + 10).is_some_and(|extra| {
                extra.contains("VIRTUAL GENERATED") || extra.contains("STORED GENERATED")
            }),
        })
    }

    /// # Errors
    /// Values of its type are not understood.
    pub(super) fn known(&self, flavor: Flavor) -> Result<KnownColumn, Problem> {
        let charset = self.charset.as_deref().map(|name| {
            let refused = || {
                let (column, fix) = (&self.name, "convert the column to utf8mb4");
                let reason = format!("column {column:?} has text in the character set {name:?}");
                Problem::new("DR-1072", format!("{reason}, which is not understood"), fix)
            };
            Charset::named(name).ok_or_else(refused)
        });
        let charset = charset.transpose()?;
        let (code, wire) = self.wire(flavor).ok_or_else(|| self.refused())?;
        let labels = match wire {
            Wire::Enum(_) | Wire::Set(_) => self.labels()?,
            _ => Vec::new(),
        };
        let is_number = matches!(
            wire,
            Wire::Integer(_) | Wire::Float | Wire::Double | Wire::Decimal { .. }
        );
        let declared = Declared {
            unsigned: is_number && self.column_type.contains(" unsigned"),
            charset,
            labels,
            native: Native::named(&self.data_type),
        };
        let name = self.name.clone();
        Ok(KnownColumn {
            described: Described::new(name, self.nullable, code, wire, declared.clone()),
            wire,
            charset: self.charset.clone(),
            declared,
        })
    }

    fn refused(&self) -> Problem {
        let (column, ty) = (&self.name, &self.column_type);
        let reason = format!("column {column:?} has the type {ty}, which is not captured yet");
        Problem::new("DR-1071", reason, EXCLUDE)
    }

    /// The code and the form that the binlog has for it.
    fn wire(&self, flavor: Flavor) -> Option<(u8, Wire)> {
        let small = |number: Option<u64>| u8::try_from(number?).ok();
        let has_labels = matches!(self.data_type.as_str(), "enum" | "set");
        // Both say so of temporal columns in the form of before 5.6; MariaDB also that values are compressed, which whoever
        // reads them by a statement does not see.
        let comment = self
            .column_type
            .split_once("/*")
            .map(|(_, comment)| comment);
        if !has_labels && comment.is_some_and(|comment| comment != COMPRESSED) {
            return None;
        }
        let lengths = || Some(if self.octets? > 255 { 2 } else { 1 });
        Some(match self.data_type.as_str() {
            "tinyint" => (code::TINY, Wire::Integer(1)),
            "smallint" => (code::SHORT, Wire::Integer(2)),
            "mediumint" => (code::INT24, Wire::Integer(3)),
            "int" => (code::LONG, Wire::Integer(4)),
            "bigint" => (code::LONGLONG, Wire::Integer(8)),
            "float" => (code::FLOAT, Wire::Float),
            "double" => (code::DOUBLE, Wire::Double),
            "decimal" => {
                let (precision, scale) = (small(self.precision)?, small(self.scale)?);
                (code::NEWDECIMAL, Wire::Decimal { precision, scale })
            }
            "year" => (code::YEAR, Wire::Year),
            "date" => (code::DATE, Wire::Date),
            "time" => (code::TIME2, Wire::Time(small(self.fraction)?)),
            "datetime" => (code::DATETIME2, Wire::Datetime(small(self.fraction)?)),
            "timestamp" => (code::TIMESTAMP2, Wire::Timestamp(small(self.fraction)?)),
            "bit" => (code::BIT, Wire::Bits(u16::try_from(self.precision?).ok()?)),
            // How many bytes a number has follows from the labels, and does not matter here.
            "enum" => (code::ENUM, Wire::Enum(2)),
            "set" => (code::SET, Wire::Set(8)),
            "char" | "binary" => (code::STRING, Wire::Char(u16::try_from(self.octets?).ok()?)),
            "varchar" | "varbinary" => (code::VARCHAR, Wire::Bytes(lengths()?)),
            "tinytext" | "tinyblob" => (code::BLOB, Wire::Bytes(1)),
            "text" | "blob" => (code::BLOB, Wire::Bytes(2)),
            "mediumtext" | "mediumblob" => (code::BLOB, Wire::Bytes(3)),
            "longtext" | "longblob" => (code::BLOB, Wire::Bytes(4)),
            "json" => (code::JSON, Wire::Json(4)),
            "geometry" | "point" | "linestring" | "polygon" | "multipoint" | "multilinestring"
            | "multipolygon" | "geometrycollection" | "geomcollection" => {
                (code::GEOMETRY, Wire::Bytes(4))
            }
            // MariaDB's binlog has it as bytes, and says nothing of numbers.
            "vector" if flavor == Flavor::Mariadb => (code::VARCHAR, Wire::Bytes(2)),
            "vector" => (code::VECTOR, Wire::Bytes(4)),
            name => {
                let native = Native::named(name).filter(|_| flavor == Flavor::Mariadb)?;
                (code::STRING, Wire::Char(native.bytes()))
            }
        })
    }

    /// The labels of an enumeration or a set, from how its type is written.
    fn labels(&self) -> Result<Vec<String>, Problem> {
        let labels = labels(&self.column_type).ok_or_else(|| self.refused())?;
        // The catalog has three bytes for a character at most, and ? for each with more.
        let may_be_lost = |label: &String| label.contains('?');
        let holds_more = self.charset.as_deref().is_none_or(|charset| {
            ["utf8mb4", "utf16", "utf16le", "utf32", "gb18030"].contains(&charset)
        });
        if holds_more && labels.iter().any(may_be_lost) {
            let column = &self.name;
            let reason = format!(
                "the labels of column {column:?} cannot be told: the server's catalog shows ? for what may be another character"
            );
            return Err(Problem::new("DR-1071", reason, EXCLUDE));
        }
        Ok(labels)
    }
}

/// Source: `append_unescaped` in the servers' `sql/unireg.cc` and `sql/sql_show.cc`.
fn labels(column_type: &str) -> Option<Vec<String>> {
    let (_, list) = column_type.split_once('(')?;
    let mut chars = list.chars().peekable();
    let mut labels = Vec::new();
    loop {
        if chars.next()? != '\'' {
            return None;
        }
        let mut label = String::new();
        loop {
            match chars.next()? {
                '\'' if chars.peek() == Some(&'\'') => {
                    chars.next();
                    label.push('\'');
                }
                '\'' => break,
                '\\' => label.push(match chars.next()? {
                    'n' => '\n',
                    'r' => '\r',
                    '0' => '\0',
                    'Z' => '\u{1a}',
                    other => other,
                }),
                other => label.push(other),
            }
        }
        labels.push(label);
        match chars.next()? {
            ',' => {}
            ')' => return Some(labels),
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_read_as_they_were_declared() {
        let written = r#"enum('a','it''s','back\\slash','new\nline','q"q','com,ma',''')','')"#;
        let read = labels(written);
        let expected = [
            "a",
            "it's",
            "back\\slash",
            "new\nline",
            "q\"q",
            "com,ma",
            "')",
            "",
        ];
        assert_eq!(read, Some(expected.map(String::from).to_vec()));
        assert_eq!(labels("set('a'"), None);
        assert_eq!(labels("enum('a' 'b')"), None);
    }
}
