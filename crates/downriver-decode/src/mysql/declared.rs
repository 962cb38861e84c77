//! A column as it is declared, and its type in the server's words.

use super::charset::Charset;
use super::native::Native;
use super::table_map::Wire;

/// A column as it is declared, as far as its values depend on it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Declared {
    pub unsigned: bool,
    /// `None`: the values are bytes.
    pub charset: Option<Charset>,
    /// Of an enumeration or a set.
    pub labels: Vec<String>,
    /// A type of MariaDB's that the binlog does not tell from bytes.
    pub native: Option<Native>,
}

impl Declared {
    /// The type in the server's words, with all that values depend on, and no more: `int unsigned`, `datetime(6)`,
    /// `varchar character set latin1`, `set('a','b')`. An enumeration's labels are in its logical type.
    #[must_use]
    pub fn source_type(&self, code: u8, wire: Wire) -> String {
        use super::table_map::code::{GEOMETRY, VARCHAR, VARCHAR_COMPRESSED, VECTOR};
        let number = |name: &str| match self.unsigned {
            true => format!("{name} unsigned"),
            false => name.to_owned(),
        };
        let digits = |name: &str, digits: u8| match digits {
            0 => name.to_owned(),
            _ => format!("{name}({digits})"),
        };
        let text = |text: &str, bytes: &str| match self.charset {
            None => bytes.to_owned(),
            Some(Charset::UTF8) => text.to_owned(),
            Some(charset) => format!("{text} character set {}", charset.name()),
        };
        match wire {
            Wire::Integer(1) => number("tinyint"),
            Wire::Integer(2) => number("smallint"),
            Wire::Integer(3) => number("mediumint"),
            Wire::Integer(4) => number("int"),
            Wire::Integer(_) => number("bigint"),
            Wire::Float => number("float"),
            Wire::Double => number("double"),
            Wire::Decimal { precision, scale } => number(&format!("decimal({precision},{scale})")),
            Wire::Year => "year".into(),
            Wire::Date => "date".into(),
            Wire::Time(fraction) => digits("time", fraction),
            Wire::Datetime(fraction) => digits("datetime", fraction),
            Wire::Timestamp(fraction) => digits("timestamp", fraction),
            Wire::OldTime => "time".into(),
            Wire::OldDatetime => "datetime".into(),
            Wire::OldTimestamp => "timestamp".into(),
            Wire::Bits(bits) => format!("bit({bits})"),
            Wire::Enum(_) => "enum".into(),
            Wire::Set(_) => {
                let quoted = |label: &String| format!("'{}'", label.replace('\'', "''"));
                let labels: Vec<String> = self.labels.iter().map(quoted).collect();
                format!("set({})", labels.join(","))
            }
            Wire::Json(_) => "json".into(),
            Wire::Char(_) if let Some(native) = self.native => native.word().into(),
            Wire::Char(bytes) => text("char", &format!("binary({bytes})")),
            Wire::Bytes(_) if code == VECTOR => "vector".into(),
            Wire::Bytes(_) if code == GEOMETRY => "geometry".into(),
            // Whether values are stored compressed makes no others of them.
            Wire::Bytes(_) | Wire::Compressed(_)
                if [VARCHAR, VARCHAR_COMPRESSED].contains(&code) =>
            {
                text("varchar", "varbinary")
            }
            Wire::Bytes(1) | Wire::Compressed(1) => text("tinytext", "tinyblob"),
            Wire::Bytes(2) | Wire::Compressed(2) => text("text", "blob"),
            Wire::Bytes(3) | Wire::Compressed(3) => text("mediumtext", "mediumblob"),
            Wire::Bytes(_) | Wire::Compressed(_) => text("longtext", "longblob"),
        }
    }
}
