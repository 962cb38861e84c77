//! A place in a server's own binlog: of use with that server only.

use std::fmt;

use crate::pb;

/// Where an event ends.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BinlogPlace {
    /// Base name and number, such as `binlog.000042`.
    pub file: String,
    /// Bytes from the file's start. Counted by the reader: the server's own field has 32 bits, and a large transaction
    /// makes a file larger.
    pub position: u64,
}

impl BinlogPlace {
    /// Numbers are compared as such: after 999999 they have a digit more. Places in logs of two names cover nothing of
    /// each other.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        let (mine, theirs) = (self.number(), other.number());
        mine.zip(theirs).is_some_and(|(mine, theirs)| {
            mine.0 == theirs.0 && (mine.1, self.position) >= (theirs.1, other.position)
        })
    }

    pub(super) fn to_pb(&self) -> pb::BinlogPlace {
        pb::BinlogPlace {
            file: self.file.clone(),
            position: self.position,
        }
    }

    pub(super) fn from_pb(place: &pb::BinlogPlace) -> Self {
        Self {
            file: place.file.clone(),
            position: place.position,
        }
    }

    fn number(&self) -> Option<(&str, u64)> {
        let (base, number) = self.file.rsplit_once('.')?;
        Some((base, number.parse().ok()?))
    }
}

impl fmt::Display for BinlogPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(file: &str, position: u64) -> BinlogPlace {
        BinlogPlace {
            file: file.into(),
            position,
        }
    }

    #[test]
    fn files_are_in_the_order_of_their_numbers() {
        assert!(at("binlog.1000000", 4).covers(&at("binlog.999999", 900)));
        assert!(!at("binlog.999999", 900).covers(&at("binlog.1000000", 4)));
        assert!(at("binlog.000002", 5).covers(&at("binlog.000002", 5)));
        assert!(at("binlog.000002", 5 << 32).covers(&at("binlog.000002", 7)));
    }

    #[test]
    fn logs_of_two_names_cover_nothing_of_each_other() {
        assert!(!at("mysql-bin.000002", 5).covers(&at("binlog.000001", 4)));
        assert!(!at("binlog", 5).covers(&at("binlog", 4)));
    }
}
