//! Positions. `Offset` is ours and dense; `SourcePosition` is the source's and says where a commit ends.
//! Row positions inside a transaction are deliberately not represented: they are neither ordered across
//! transactions nor unique.

mod domains;
mod gtid;
mod place;

use std::fmt;
use std::str::FromStr;

pub use domains::{DomainGtid, DomainGtids, InvalidDomainGtids};
pub use gtid::{Gtid, GtidSet, GtidSource, InvalidGtidSet};
pub use place::{BinlogPlace, InvalidPlace};

use crate::pb;

/// Dense position of an event in a stream, assigned at append and never reused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Offset(pub u64);

impl Offset {
    /// The offset `events` further on.
    #[must_use]
    pub fn plus(self, events: u64) -> Self {
        Self(self.0 + events)
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Fencing number of the owner of a stream or sink table. Decided only by Raft; grows with every owner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u64);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Epoch {
    /// An epoch behind all that may have been given since the backup that this one is from, which sinks know: in the life
    /// after so many restores.
    #[must_use]
    pub fn of_life(self, restores: u32) -> Self {
        Self(self.0 + (u64::from(restores) << 32))
    }
}

/// Number of the log's history; grows when unsealed data was lost for good or a backup was restored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Incarnation(pub u32);

/// The incarnations that a log had before the one it has, and where each ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndedIncarnations(Vec<(Incarnation, Offset)>);

impl EndedIncarnations {
    /// One more ended; what it had before the offset is there in the next one as well.
    pub fn push(&mut self, incarnation: Incarnation, end: Offset) {
        self.0.push((incarnation, end));
    }

    pub fn iter(&self) -> impl Iterator<Item = (Incarnation, Offset)> + '_ {
        self.0.iter().copied()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Up to where an earlier incarnation and the log of now are the same; `None`: it never had this one.
    #[must_use]
    pub fn same_until(&self, incarnation: Incarnation) -> Option<Offset> {
        let is_known = self.0.iter().any(|(ended, _)| *ended == incarnation);
        let since = self.0.iter().filter(|(ended, _)| *ended >= incarnation);
        since.map(|(_, end)| *end).min().filter(|_| is_known)
    }
}

impl FromIterator<(Incarnation, Offset)> for EndedIncarnations {
    fn from_iter<I: IntoIterator<Item = (Incarnation, Offset)>>(ended: I) -> Self {
        Self(ended.into_iter().collect())
    }
}

/// A PostgreSQL write-ahead log position, compared as an unsigned number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xffff_ffff)
    }
}

/// The text is not `XXXXXXXX/XXXXXXXX`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a log sequence number such as 16/B374D848")]
pub struct InvalidLsn(pub String);

impl FromStr for Lsn {
    type Err = InvalidLsn;

    fn from_str(text: &str) -> Result<Self, InvalidLsn> {
        let invalid = || InvalidLsn(text.to_owned());
        let (high, low) = text.split_once('/').ok_or_else(invalid)?;
        let high = u32::from_str_radix(high, 16).map_err(|_| invalid())?;
        let low = u32::from_str_radix(low, 16).map_err(|_| invalid())?;
        Ok(Self(u64::from(high) << 32 | u64::from(low)))
    }
}

/// Where a source transaction's commit ends; inclusive: everything up to it is fully contained. As the position of one
/// transaction it has that transaction's own identifier only.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum SourcePosition {
    /// `Commit.end_lsn`.
    Postgres(Lsn),
    Mysql {
        /// Empty where the server gives its transactions no identifiers.
        gtids: GtidSet,
        place: BinlogPlace,
    },
    Mariadb {
        gtids: DomainGtids,
        place: BinlogPlace,
    },
}

impl SourcePosition {
    /// Whether everything up to `other` is contained in what `self` names. Positions of different
    /// kinds of source cover nothing of each other. Places count only where there are no identifiers.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Postgres(mine), Self::Postgres(theirs)) => mine >= theirs,
            (
                Self::Mysql { gtids, place },
                Self::Mysql {
                    gtids: theirs,
                    place: there,
                },
            ) => match theirs.is_empty() {
                true => place.covers(there),
                false => gtids.covers(theirs),
            },
            (
                Self::Mariadb { gtids, place },
                Self::Mariadb {
                    gtids: theirs,
                    place: there,
                },
            ) => match theirs.is_empty() {
                true => place.covers(there),
                false => gtids.covers(theirs),
            },
            _ => false,
        }
    }

    /// Whether both are of one kind of source.
    #[must_use]
    pub fn is_of_kind(&self, other: &Self) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other)
    }

    /// Whether it is a place alone, of a server that gives its transactions no identifiers or that they were not asked of.
    #[must_use]
    pub fn is_place_only(&self) -> bool {
        match self {
            Self::Postgres(_) => false,
            Self::Mysql { gtids, .. } => gtids.is_empty(),
            Self::Mariadb { gtids, .. } => gtids.is_empty(),
        }
    }

    #[must_use]
    pub fn lsn(&self) -> Option<Lsn> {
        match self {
            Self::Postgres(lsn) => Some(*lsn),
            Self::Mysql { .. } | Self::Mariadb { .. } => None,
        }
    }

    /// Where it lies in the server's binlog.
    #[must_use]
    pub fn place(&self) -> Option<&BinlogPlace> {
        match self {
            Self::Postgres(_) => None,
            Self::Mysql { place, .. } | Self::Mariadb { place, .. } => Some(place),
        }
    }

    #[must_use]
    pub fn to_pb(&self) -> pb::SourcePosition {
        use pb::source_position::Kind;
        let kind = match self {
            Self::Postgres(lsn) => Kind::Postgres(pb::PostgresPosition { end_lsn: lsn.0 }),
            Self::Mysql { gtids, place } => Kind::Mysql(pb::MysqlPosition {
                gtids: gtids.to_pb(),
                place: Some(place.to_pb()),
            }),
            Self::Mariadb { gtids, place } => Kind::Mariadb(pb::MariadbPosition {
                gtids: gtids.to_pb(),
                place: Some(place.to_pb()),
            }),
        };
        pb::SourcePosition { kind: Some(kind) }
    }

    /// `None` when the message names no position or a kind of source that this build does not know.
    #[must_use]
    pub fn from_pb(position: &pb::SourcePosition) -> Option<Self> {
        use pb::source_position::Kind;
        Some(match position.kind.as_ref()? {
            Kind::Postgres(p) => Self::Postgres(Lsn(p.end_lsn)),
            Kind::Mysql(p) => Self::Mysql {
                gtids: GtidSet::from_pb(&p.gtids)?,
                place: BinlogPlace::from_pb(p.place.as_ref()?),
            },
            Kind::Mariadb(p) => Self::Mariadb {
                gtids: DomainGtids::from_pb(&p.gtids)?,
                place: BinlogPlace::from_pb(p.place.as_ref()?),
            },
        })
    }

    /// Reads a field that may be absent. A position that this build does not know is not none: without it a
    /// stream would start anew.
    ///
    /// # Errors
    /// The field is there and cannot be read.
    pub fn from_field(field: Option<&pb::SourcePosition>) -> Result<Option<Self>, UnknownPosition> {
        let read = |position| Self::from_pb(position).ok_or(UnknownPosition);
        field.map(read).transpose()
    }
}

/// A stored position is of a kind that this build does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a source position that this build does not know")]
pub struct UnknownPosition;

impl fmt::Display for SourcePosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Postgres(lsn) => lsn.fmt(f),
            Self::Mysql { gtids, place } if gtids.is_empty() => place.fmt(f),
            Self::Mysql { gtids, .. } => gtids.fmt(f),
            Self::Mariadb { gtids, place } if gtids.is_empty() => place.fmt(f),
            Self::Mariadb { gtids, .. } => gtids.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_incarnation_is_that_of_now_as_far_as_all_since_reached() {
        let ended: EndedIncarnations = [(1, 50), (2, 30), (3, 70)]
            .map(|(incarnation, end)| (Incarnation(incarnation), Offset(end)))
            .into_iter()
            .collect();
        let until = |incarnation| ended.same_until(Incarnation(incarnation)).map(|at| at.0);
        assert_eq!(
            (until(1), until(2), until(3), until(4)),
            (Some(30), Some(30), Some(70), None)
        );
    }

    #[test]
    fn an_lsn_is_compared_as_an_unsigned_number_and_prints_as_postgres_does() {
        let low: Lsn = "0/FFFFFFFF".parse().expect("valid");
        let high: Lsn = "1/0".parse().expect("valid");
        assert!(low < high);
        assert_eq!(high.to_string(), "1/0");
        assert!("8000000000000000/0".parse::<Lsn>().is_err());
        let top: Lsn = "FFFFFFFF/FFFFFFFF".parse().expect("valid");
        assert_eq!(top.0, u64::MAX);
    }

    #[test]
    fn a_position_of_every_kind_is_stored_and_read_again() {
        let place = || BinlogPlace {
            file: "binlog.000007".into(),
            position: 5 << 32,
        };
        let gtids = "3e11fa47-71ca-11e1-9e33-c80aa9429562:1-5:7:night:2".parse();
        let positions = [
            SourcePosition::Postgres(Lsn(77)),
            SourcePosition::Mysql {
                gtids: gtids.expect("a valid set"),
                place: place(),
            },
            SourcePosition::Mysql {
                gtids: GtidSet::default(),
                place: place(),
            },
            SourcePosition::Mariadb {
                gtids: "0-1-100,7-2-5".parse().expect("a valid position"),
                place: place(),
            },
        ];
        for position in &positions {
            assert_eq!(
                SourcePosition::from_pb(&position.to_pb()).as_ref(),
                Some(position)
            );
            for other in &positions {
                let is_same_kind =
                    std::mem::discriminant(position) == std::mem::discriminant(other);
                assert!(
                    is_same_kind || !position.covers(other),
                    "{position} {other}"
                );
            }
            assert!(position.covers(position));
        }
        // With identifiers to tell, a place of another server's log says nothing.
        let elsewhere = SourcePosition::Mysql {
            gtids: "3e11fa47-71ca-11e1-9e33-c80aa9429562:7"
                .parse()
                .expect("valid"),
            place: BinlogPlace {
                file: "other.000900".into(),
                position: 4,
            },
        };
        assert!(positions[1].covers(&elsewhere) && !elsewhere.covers(&positions[1]));
    }
}
