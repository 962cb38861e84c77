//! MariaDB's positions: the last transaction of each replication domain.
//!
//! Source: MariaDB knowledge base, "Global Transaction ID": `domain-server-sequence`. Within a domain transactions are in
//! the order of their sequence numbers, whichever server they come from; domains know no order among each other.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use crate::pb;

/// One transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DomainGtid {
    pub domain: u32,
    pub server: u32,
    pub sequence: u64,
}

/// Everything up to these transactions, one of each domain.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct DomainGtids(BTreeMap<u32, (u32, u64)>);

/// The text is no position.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a GTID position such as 0-1-100,7-1-5, with one GTID for each domain")]
pub struct InvalidDomainGtids(pub String);

impl DomainGtids {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The transaction is the last of its domain now.
    pub fn reach(&mut self, gtid: DomainGtid) {
        self.0.insert(gtid.domain, (gtid.server, gtid.sequence));
    }

    /// In the order of their domains.
    pub fn gtids(&self) -> impl Iterator<Item = DomainGtid> {
        self.0
            .iter()
            .map(|(domain, (server, sequence))| DomainGtid {
                domain: *domain,
                server: *server,
                sequence: *sequence,
            })
    }

    /// The last of a domain.
    #[must_use]
    pub fn last(&self, domain: u32) -> Option<DomainGtid> {
        let (server, sequence) = *self.0.get(&domain)?;
        Some(DomainGtid {
            domain,
            server,
            sequence,
        })
    }

    /// Whether a transaction is not behind the last of its domain, where sequences ascend.
    #[must_use]
    pub fn contains(&self, gtid: DomainGtid) -> bool {
        let last = self.last(gtid.domain);
        last.is_some_and(|last| last.sequence >= gtid.sequence)
    }

    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        other.gtids().all(|gtid| self.contains(gtid))
    }
}

impl DomainGtids {
    pub(super) fn to_pb(&self) -> Vec<pb::DomainGtid> {
        let gtids = self.gtids().map(|gtid| pb::DomainGtid {
            domain: gtid.domain,
            server: gtid.server,
            sequence: gtid.sequence,
        });
        gtids.collect()
    }

    /// `None` where a domain is there twice.
    pub(super) fn from_pb(gtids: &[pb::DomainGtid]) -> Option<Self> {
        let mut position = Self::default();
        for gtid in gtids {
            position.reach(DomainGtid {
                domain: gtid.domain,
                server: gtid.server,
                sequence: gtid.sequence,
            });
        }
        (position.0.len() == gtids.len()).then_some(position)
    }
}

impl fmt::Display for DomainGtid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}", self.domain, self.server, self.sequence)
    }
}

impl fmt::Display for DomainGtids {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, gtid) in self.gtids().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            write!(f, "{comma}{gtid}")?;
        }
        Ok(())
    }
}

impl FromStr for DomainGtids {
    type Err = InvalidDomainGtids;

    fn from_str(text: &str) -> Result<Self, InvalidDomainGtids> {
        let invalid = || InvalidDomainGtids(text.to_owned());
        let mut position = Self::default();
        let gtids = text.split(',').map(str::trim);
        for text in gtids.filter(|text| !text.is_empty()) {
            let mut numbers = text.split('-');
            let mut next = || numbers.next().ok_or_else(invalid);
            let gtid = DomainGtid {
                domain: next()?.parse().map_err(|_| invalid())?,
                server: next()?.parse().map_err(|_| invalid())?,
                sequence: next()?.parse().map_err(|_| invalid())?,
            };
            if numbers.next().is_some() || position.0.contains_key(&gtid.domain) {
                return Err(invalid());
            }
            position.reach(gtid);
        }
        Ok(position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> DomainGtids {
        text.parse().expect("a valid position")
    }

    #[test]
    fn a_position_is_shown_as_the_server_shows_it() {
        for text in ["", "0-1-100", "0-1-100,7-3-5"] {
            assert_eq!(at(text).to_string(), text);
        }
        assert_eq!(at("7-3-5, 0-1-100"), at("0-1-100,7-3-5"));
        for text in ["0-1", "0-1-2-3", "a-1-2", "0-1-2,0-2-3", "0-1--2"] {
            assert_eq!(
                text.parse::<DomainGtids>(),
                Err(InvalidDomainGtids(text.into()))
            );
        }
    }

    #[test]
    fn within_a_domain_the_sequence_alone_counts() {
        assert!(at("0-2-7").covers(&at("0-1-7")) && at("0-2-7").covers(&at("0-1-3")));
        assert!(!at("0-1-7").covers(&at("0-2-8")));
        assert!(!at("0-1-7").covers(&at("1-1-1")) && at("0-1-7,1-1-1").covers(&at("1-1-1")));
        let mut position = at("0-1-7");
        position.reach(DomainGtid {
            domain: 0,
            server: 2,
            sequence: 8,
        });
        assert_eq!(position, at("0-2-8"));
    }
}
