//! What tells one history of a database from another: which cluster and database it is, on which timeline, and which
//! publication its changes pass through.
//!
//! ```text
//! postgres SYSTEM DATABASE                          the first form
//! postgres SYSTEM DATABASE TIMELINE PUBLICATION
//! ```

use bytes::Bytes;
use downriver_event::Lsn;

use super::catalog::parse_lsn;
use super::publication::PublicationId;
use super::replication::Session;
use crate::error::SourceError;

/// The history that a log was captured from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub(super) system: String,
    /// Its oid.
    pub(super) database: String,
    /// `None`: stored by a build that did not look at it.
    pub(super) lineage: Option<Lineage>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lineage {
    pub(super) timeline: u32,
    pub(super) publication: PublicationId,
}

impl Identity {
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let Self {
            system, database, ..
        } = self;
        let lineage = self.lineage.map_or_else(String::new, |lineage| {
            format!(" {} {}", lineage.timeline, lineage.publication.0)
        });
        Bytes::from(format!("postgres {system} {database}{lineage}"))
    }

    pub(super) fn timeline(&self) -> Option<u32> {
        self.lineage.map(|lineage| lineage.timeline)
    }

    /// `None` if it is of a form that this build does not know.
    #[must_use]
    pub fn decode(stored: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(stored).ok()?;
        let words: Vec<&str> = text.split(' ').collect();
        let (system, database, lineage) = match words[..] {
            ["postgres", system, database] => (system, database, None),
            ["postgres", system, database, timeline, publication] => {
                let lineage = Lineage {
                    timeline: timeline.parse().ok()?,
                    publication: PublicationId(publication.parse().ok()?),
                };
                (system, database, Some(lineage))
            }
            _ => return None,
        };
        Some(Self {
            system: system.to_owned(),
            database: database.to_owned(),
            lineage,
        })
    }
}

/// A server as its own replication session shows it.
#[derive(Clone, Debug)]
pub(super) struct Server {
    pub(super) system: String,
    pub(super) timeline: u32,
    /// Everything that it streams lies before.
    pub(super) flushed: Lsn,
}

/// Asks a server which cluster it is, and on which timeline.
pub(super) async fn identify(session: &mut Session) -> Result<Server, SourceError> {
    let answer = session.query("IDENTIFY_SYSTEM").await?;
    let mut columns = answer.into_iter();
    let system = columns.next().flatten();
    let timeline = columns.next().flatten().and_then(|text| text.parse().ok());
    let flushed = columns.next().flatten().map(|text| parse_lsn(&text));
    match (system, timeline, flushed) {
        (Some(system), Some(timeline), Some(flushed)) => Ok(Server {
            system,
            timeline,
            flushed: flushed?,
        }),
        _ => Err(SourceError::definite(
            "DR-1040",
            "the server does not say which cluster it is",
            "report it with the server's version",
        )),
    }
}

/// Where a timeline, of which `timeline` is a descendant, was left; `None` if it is no descendant.
pub(super) async fn fork(
    session: &mut Session,
    timeline: u32,
    left: u32,
) -> Result<Option<Lsn>, SourceError> {
    let answer = session
        .query(&format!("TIMELINE_HISTORY {timeline}"))
        .await?;
    let history = answer.into_iter().nth(1).flatten().unwrap_or_default();
    left_at(&history, left)
}

/// Source: PostgreSQL manual, "Timelines": a line for each ancestor, its number, where it was left, and why.
fn left_at(history: &str, left: u32) -> Result<Option<Lsn>, SourceError> {
    let mut found = None;
    for line in history.lines() {
        let mut words = line.split_whitespace();
        let ancestor = words.next().and_then(|word| word.parse::<u32>().ok());
        if ancestor == Some(left)
            && let Some(position) = words.next()
        {
            found = Some(parse_lsn(position)?);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_identity_of_every_form_is_read_and_an_unknown_one_refused() {
        let first = Identity {
            system: "7301".into(),
            database: "16384".into(),
            lineage: None,
        };
        assert_eq!(&first.encode()[..], b"postgres 7301 16384");
        let second = Identity {
            lineage: Some(Lineage {
                timeline: 2,
                publication: PublicationId(16_400),
            }),
            ..first.clone()
        };
        assert_eq!(&second.encode()[..], b"postgres 7301 16384 2 16400");
        for identity in [first, second] {
            assert_eq!(Identity::decode(&identity.encode()), Some(identity));
        }
        for unknown in ["", "mysql 1 2", "postgres 1 2 3", "postgres 1 2 x 4"] {
            assert_eq!(Identity::decode(unknown.as_bytes()), None, "{unknown}");
        }
    }

    #[test]
    fn a_timeline_is_left_where_its_descendants_history_says() {
        let history =
            "1\t0/3000148\tno recovery target specified\n\n2\t0/5000060\tbefore 2026-01-01\n";
        assert_eq!(left_at(history, 1).unwrap(), Some(Lsn(0x300_0148)));
        assert_eq!(left_at(history, 2).unwrap(), Some(Lsn(0x500_0060)));
        assert_eq!(left_at(history, 3).unwrap(), None);
        assert_eq!(left_at("", 1).unwrap(), None);
        assert!(left_at("1 nonsense", 1).is_err());
    }
}
