//! Where a decoder is: what its server calls all that was decoded.

use downriver_event::{BinlogPlace, DomainGtid, DomainGtids, GtidSet, SourcePosition};

use super::super::Flavor;
use super::super::gtid::Identifier;

/// Everything up to here was decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reached {
    Mysql(GtidSet),
    /// Of MySQL, by places alone: not every transaction has an identifier.
    Places,
    Mariadb(DomainGtids),
}

impl Reached {
    pub(super) fn flavor(&self) -> Flavor {
        match self {
            Self::Mysql(_) | Self::Places => Flavor::Mysql,
            Self::Mariadb(_) => Flavor::Mariadb,
        }
    }

    pub(super) fn contains(&self, id: &Identifier) -> bool {
        match (self, id) {
            (Self::Mysql(set), Identifier::Gtid(gtid)) => set.contains(gtid),
            (Self::Mariadb(position), Identifier::Domain(gtid)) => position.contains(*gtid),
            _ => false,
        }
    }

    /// The last transaction of the same domain of MariaDB's, where one comes behind it that does not follow it: nobody knows
    /// any more what such a position contains. Of its positions the server sends only what is behind them.
    pub(super) fn out_of_order(&self, id: &Identifier) -> Option<DomainGtid> {
        let (Self::Mariadb(position), Identifier::Domain(gtid)) = (self, id) else {
            return None;
        };
        let last = position.last(gtid.domain)?;
        (last != *gtid && position.contains(*gtid)).then_some(last)
    }

    pub(super) fn add(&mut self, id: &Identifier) {
        match (self, id) {
            (Self::Mysql(set), Identifier::Gtid(gtid)) => set.add(gtid),
            (Self::Mariadb(position), Identifier::Domain(gtid)) => position.reach(*gtid),
            _ => {}
        }
    }

    pub(super) fn has_identifiers(&self) -> bool {
        match self {
            Self::Mysql(set) => !set.is_empty(),
            Self::Places => false,
            Self::Mariadb(position) => !position.is_empty(),
        }
    }

    /// The position of a transaction alone.
    pub(super) fn of(&self, id: &Identifier, place: BinlogPlace) -> SourcePosition {
        match self {
            Self::Mysql(_) => {
                let mut only = Self::Mysql(GtidSet::default());
                only.add(id);
                only.at(place)
            }
            Self::Places => Self::Places.at(place),
            Self::Mariadb(_) => {
                let mut only = Self::Mariadb(DomainGtids::default());
                only.add(id);
                only.at(place)
            }
        }
    }

    pub(super) fn at(self, place: BinlogPlace) -> SourcePosition {
        match self {
            Self::Mysql(gtids) => SourcePosition::Mysql { gtids, place },
            Self::Places => SourcePosition::Mysql {
                gtids: GtidSet::default(),
                place,
            },
            Self::Mariadb(gtids) => SourcePosition::Mariadb { gtids, place },
        }
    }
}
