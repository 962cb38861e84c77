//! MySQL and MariaDB: the events of a binlog and the types' forms in it.

mod charset;
mod cursor;
pub mod ddl;
pub mod declared;
pub mod decoder;
pub mod event;
mod gtid;
mod images;
mod inflate;
mod json;
mod masked;
pub mod native;
mod payload;
mod printed;
pub mod recall;
mod rows;
pub mod selected;
pub mod shape;
pub mod table_map;
pub mod value;
pub mod walk;
pub mod wording;

use std::fmt;

pub use charset::Charset;
use downriver_event::block::ColumnBuilder;
use downriver_event::pb;
use event::Kind;
pub use printed::constant;
use prost::Message as _;

/// A buffer that was larger is given back before it is used again.
const RETAINED_BYTES_MAX: usize = 1 << 20;
/// Where the first event of a file is, behind the bytes that mark it as a binlog.
pub const FIRST_EVENT: u64 = 4;

/// Whose server it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavor {
    Mysql,
    Mariadb,
}

impl Flavor {
    /// As it is stored.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Mysql => "mysql",
            Self::Mariadb => "mariadb",
        }
    }
}

impl fmt::Display for Flavor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mysql => "MySQL",
            Self::Mariadb => "MariaDB",
        })
    }
}

/// Whether names are equal but for their case, as every server compares those of columns.
#[must_use]
pub fn is_same_name(one: &str, other: &str) -> bool {
    one == other || one.to_lowercase() == other.to_lowercase()
}

/// Bytes that are not what a binlog has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BinlogError {
    #[error("{0} ends too early")]
    Cut(&'static str),
    #[error("an event of type {} says that it has {told} bytes, and has {found}", kind.0)]
    Length { kind: Kind, told: u32, found: usize },
    #[error("the checksum of an event of type {} does not match: its bytes were changed", kind.0)]
    Damaged { kind: Kind },
    #[error("the binlog has version {0}, not 4")]
    Version(u16),
    #[error("the binlog has checksums of the unknown kind {0}")]
    Checksums(u8),
    #[error("an event has the unknown type {}", .0.0)]
    Unknown(Kind),
    #[error("what is compressed {0}")]
    Compressed(&'static str),
    #[error("an event of type {}, which belongs outside, is in a compressed transaction", .0.0)]
    Nested(Kind),
}

/// An array of numbers, none of them null.
fn push_floats(floats: impl ExactSizeIterator<Item = f32>, out: &mut ColumnBuilder) {
    let element = |float| {
        let value = pb::Value {
            kind: Some(pb::value::Kind::Float(float)),
        };
        pb::Cell {
            kind: Some(pb::cell::Kind::Value(value)),
        }
    };
    let dimension = pb::Dimension {
        lower_bound: 1,
        length: u32::try_from(floats.len()).expect("a value is under VALUE_BYTES_MAX"),
    };
    let list = pb::List {
        dimensions: if floats.len() == 0 {
            Vec::new()
        } else {
            vec![dimension]
        },
        elements: floats.map(element).collect(),
    };
    out.push_bytes(&list.encode_to_vec());
}
