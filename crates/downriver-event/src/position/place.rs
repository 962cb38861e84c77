//! A place in a server's own binlog: of use with that server only.

use std::fmt;
use std::str::FromStr;

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

/// The text is no place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a place in a binlog such as binlog.000042:4711")]
pub struct InvalidPlace(pub String);

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

impl FromStr for BinlogPlace {
    type Err = InvalidPlace;

    fn from_str(text: &str) -> Result<Self, InvalidPlace> {
        let invalid = || InvalidPlace(text.to_owned());
        let (file, position) = text.trim().rsplit_once(':').ok_or_else(invalid)?;
        let place = Self {
            file: file.to_owned(),
            position: position.parse().map_err(|_| invalid())?,
        };
        let is_file = place.number().is_some_and(|(base, _)| !base.is_empty());
        match is_file {
            true => Ok(place),
            false => Err(invalid()),
        }
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

    #[test]
    fn a_place_is_read_as_it_is_shown() {
        let place = at("my.bin-log.000042", 4711);
        assert_eq!(place.to_string().parse(), Ok(place));
        for text in [
            "binlog.000042",
            "binlog:4",
            ".000042:4",
            "binlog.x:4",
            "binlog.000042:-4",
        ] {
            assert_eq!(text.parse::<BinlogPlace>(), Err(InvalidPlace(text.into())));
        }
    }
}
