//! Follows one file of a binlog from its start to a place: whether a transaction may begin there, and the identifiers of
//! all that was logged before it.
//!
//! Source: MySQL's `libs/mysql/binlog/event/control_events.h`, `Previous_gtids_event`, and `sql/rpl_gtid_set.cc`,
//! `Gtid_set::encode`.

use downriver_event::{GtidSet, GtidSource};

use super::cursor::Cursor;
use super::event::{Event, Format, Kind};
use super::gtid::{self, Identifier};
use super::{BinlogError, FIRST_EVENT};

/// What a place is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Whole transactions lie before it.
    Between,
    /// A transaction has begun before it, and not ended.
    Inside,
    /// Inside an event.
    NoEvent,
}

/// One for each file and place.
#[derive(Debug)]
pub struct Walk {
    format: Format,
    target: u64,
    at: u64,
    gtids: GtidSet,
}

impl Walk {
    #[must_use]
    pub fn to(target: u64) -> Self {
        Self {
            format: Format {
                server_version: String::new(),
                has_checksums: false,
                is_of_start: false,
            },
            target,
            at: FIRST_EVENT,
            gtids: GtidSet::default(),
        }
    }

    /// Where the event that comes next begins.
    #[must_use]
    pub fn at(&self) -> u64 {
        self.at
    }

    /// MySQL's identifiers of what lies before the place, also in the files before.
    #[must_use]
    pub fn gtids(&self) -> &GtidSet {
        &self.gtids
    }

    /// Takes the file's next event. `None`: the place lies behind it.
    ///
    /// # Errors
    /// The bytes are not understood.
    pub fn step(&mut self, bytes: &[u8]) -> Result<Option<Place>, BinlogError> {
        let event = Event::parse(bytes, self.format.has_checksums)?;
        let header = event.header;
        if header.is_in_file() && self.at >= self.target {
            return Ok(Some(match self.at == self.target {
                true if is_between(header.kind) => Place::Between,
                true => Place::Inside,
                false => Place::NoEvent,
            }));
        }
        if header.is_in_file() {
            let end = self.at + u64::from(header.len);
            self.at = end.max(u64::from(header.log_pos));
        }
        match header.kind {
            Kind::FORMAT_DESCRIPTION => self.format = event.format()?,
            Kind::PREVIOUS_GTIDS => {
                let before = previous(event.body);
                let before = before.ok_or(BinlogError::Cut("the identifiers before a file"))?;
                self.gtids.extend(&before);
            }
            Kind::GTID => self.add(gtid::plain(event.body, false)?.id),
            Kind::GTID_TAGGED => self.add(gtid::tagged(event.body)?.id),
            _ => {}
        }
        Ok(None)
    }

    fn add(&mut self, id: Identifier) {
        if let Identifier::Gtid(gtid) = id {
            self.gtids.add(&gtid);
        }
    }
}

/// What comes outside of transactions only: what begins one, and what a file begins or ends with.
fn is_between(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::GTID
            | Kind::ANONYMOUS_GTID
            | Kind::GTID_TAGGED
            | Kind::MARIA_GTID
            | Kind::FORMAT_DESCRIPTION
            | Kind::PREVIOUS_GTIDS
            | Kind::MARIA_GTID_LIST
            | Kind::MARIA_BINLOG_CHECKPOINT
            | Kind::MARIA_START_ENCRYPTION
            | Kind::INCIDENT
            | Kind::ROTATE
            | Kind::STOP
    )
}

/// ```text
/// sources u64, or 1 | u48 | 1 where they have tags | (uuid, tag: length, bytes; intervals u64 | (first, after: u64)*)*
/// ```
fn previous(body: &[u8]) -> Option<GtidSet> {
    const TAGGED: u64 = 1;
    let mut cursor = Cursor::new(body);
    let head = cursor.u64()?;
    let is_tagged = head >> 56 == TAGGED;
    let sources = match is_tagged {
        true => head >> 8 & 0xffff_ffff_ffff,
        false => head,
    };
    let mut set = GtidSet::default();
    for _ in 0..sources {
        let mut source = GtidSource {
            server: cursor.array()?,
            tag: String::new(),
        };
        if is_tagged {
            let len = usize::try_from(gtid::varlen(&mut cursor)?).ok()?;
            std::str::from_utf8(cursor.take(len)?)
                .ok()?
                .clone_into(&mut source.tag);
        }
        for _ in 0..cursor.u64()? {
            let (first, after) = (cursor.u64()?, cursor.u64()?);
            set.insert(source.clone(), first..=after.checked_sub(1)?);
        }
    }
    Some(set)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const A: &str = "3e11fa47-71ca-11e1-9e33-c80aa9429562";
    const A_BYTES: [u8; 16] = [
        0x3e, 0x11, 0xfa, 0x47, 0x71, 0xca, 0x11, 0xe1, 0x9e, 0x33, 0xc8, 0x0a, 0xa9, 0x42, 0x95,
        0x62,
    ];

    fn event(kind: Kind, log_pos: u32, body: &[u8]) -> Vec<u8> {
        let mut event = vec![0; 4];
        event.push(kind.0);
        event.extend_from_slice(&1u32.to_le_bytes());
        let len = u32::try_from(19 + body.len()).unwrap();
        event.extend_from_slice(&len.to_le_bytes());
        event.extend_from_slice(&log_pos.to_le_bytes());
        event.extend_from_slice(&[0; 2]);
        event.extend_from_slice(body);
        event
    }

    fn set(text: &str) -> GtidSet {
        text.replace('A', A).parse().unwrap()
    }

    fn plain_set() -> Vec<u8> {
        let mut body = 1u64.to_le_bytes().to_vec();
        body.extend_from_slice(&A_BYTES);
        for number in [2u64, 1, 6, 8, 9] {
            body.extend_from_slice(&number.to_le_bytes());
        }
        body
    }

    #[test]
    fn identifiers_before_a_file_are_read_with_holes_and_tags() {
        assert_eq!(previous(&plain_set()), Some(set("A:1-5:8")));
        let mut tagged = vec![1, 2, 0, 0, 0, 0, 0, 1];
        for (tag, bounds) in [("", [1u64, 1, 4]), ("night", [1, 7, 9])] {
            tagged.extend_from_slice(&A_BYTES);
            tagged.push(u8::try_from(tag.len() << 1).unwrap());
            tagged.extend_from_slice(tag.as_bytes());
            for number in bounds {
                tagged.extend_from_slice(&number.to_le_bytes());
            }
        }
        assert_eq!(previous(&tagged), Some(set("A:1-3:night:7-8")));
        for body in [plain_set(), tagged] {
            for len in 0..body.len() {
                assert_eq!(previous(&body[..len]), None, "cut at {len}");
            }
        }
        assert_eq!(previous(&0u64.to_le_bytes()), Some(GtidSet::default()));
    }

    #[test]
    fn a_place_is_between_transactions_inside_one_or_nowhere() {
        let mut gtid = vec![0];
        gtid.extend_from_slice(&A_BYTES);
        gtid.extend_from_slice(&9u64.to_le_bytes());
        let events = [
            (Kind::PREVIOUS_GTIDS, plain_set()),
            (Kind::GTID, gtid),
            (Kind::QUERY, b"begin".to_vec()),
            (Kind::XID, vec![0; 8]),
            (Kind::STOP, Vec::new()),
        ];
        let walked = |target| {
            let mut walk = Walk::to(target);
            let found = events.iter().find_map(|(kind, body)| {
                // A heartbeat is nowhere in the file.
                assert_eq!(walk.step(&event(Kind::HEARTBEAT, 0, b"f")), Ok(None));
                walk.step(&event(*kind, 0, body)).unwrap()
            });
            (found, walk.gtids().clone())
        };
        let mut at = FIRST_EVENT;
        let mut places = Vec::new();
        for (_, body) in &events {
            places.push(at);
            at += 19 + u64::try_from(body.len()).unwrap();
        }
        assert_eq!(walked(places[0]), (Some(Place::Between), set("")));
        assert_eq!(walked(places[1]), (Some(Place::Between), set("A:1-5:8")));
        assert_eq!(walked(places[2]).0, Some(Place::Inside));
        assert_eq!(walked(places[3]).0, Some(Place::Inside));
        assert_eq!(walked(places[4]), (Some(Place::Between), set("A:1-5:8-9")));
        assert_eq!(walked(places[2] + 1).0, Some(Place::NoEvent));
        assert_eq!(walked(at).0, None);
    }
}
