//! Sets of MySQL's global transaction identifiers.
//!
//! Source: MySQL manual, "GTID Format and Storage": `uuid:1-5:7` with intervals that include both ends, and since 8.3
//! `uuid:tag:1-3`; a tag holds for the intervals that follow it. A set may have holes, and sets are ordered in part only.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use crate::pb;

/// The largest number of a transaction that a server gives.
const NUMBER_MAX: u64 = i64::MAX as u64 - 1;
const TAG_CHARS_MAX: usize = 32;

/// Where transactions are numbered: a server, and a tag that somebody gave them there.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GtidSource {
    pub server: [u8; 16],
    /// Empty for none; in small letters.
    pub tag: String,
}

/// One transaction.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Gtid {
    pub source: GtidSource,
    /// From 1.
    pub number: u64,
}

/// Transactions. Intervals of a source are in order, and neither overlap nor touch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct GtidSet(BTreeMap<GtidSource, Vec<(u64, u64)>>);

/// The text is no set of GTIDs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a GTID set such as 3e11fa47-71ca-11e1-9e33-c80aa9429562:1-5:7")]
pub struct InvalidGtidSet(pub String);

impl GtidSet {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds transactions of a source; nothing where the interval is empty.
    pub fn insert(&mut self, source: GtidSource, numbers: RangeInclusive<u64>) {
        let (mut first, mut last) = numbers.into_inner();
        if first > last {
            return;
        }
        let intervals = self.0.entry(source).or_default();
        let touched =
            |(a, b): &(u64, u64)| *a <= last.saturating_add(1) && first <= b.saturating_add(1);
        let begin = intervals.partition_point(|(_, b)| b.saturating_add(1) < first);
        let end = begin + intervals[begin..].iter().take_while(|i| touched(i)).count();
        for (a, b) in intervals.drain(begin..end) {
            first = first.min(a);
            last = last.max(b);
        }
        intervals.insert(begin, (first, last));
    }

    pub fn add(&mut self, gtid: &Gtid) {
        // Almost always the next one.
        if let Some(intervals) = self.0.get_mut(&gtid.source)
            && let Some(last) = intervals.last_mut()
            && last.1 + 1 == gtid.number
        {
            last.1 = gtid.number;
            return;
        }
        self.insert(gtid.source.clone(), gtid.number..=gtid.number);
    }

    pub fn extend(&mut self, other: &Self) {
        for (source, first, last) in other.intervals() {
            self.insert(source.clone(), first..=last);
        }
    }

    /// Sources with first and last number, in order.
    pub fn intervals(&self) -> impl Iterator<Item = (&GtidSource, u64, u64)> {
        self.0.iter().flat_map(|(source, intervals)| {
            intervals
                .iter()
                .map(move |(first, last)| (source, *first, *last))
        })
    }

    #[must_use]
    pub fn contains(&self, gtid: &Gtid) -> bool {
        self.has(&gtid.source, gtid.number, gtid.number)
    }

    fn has(&self, source: &GtidSource, first: u64, last: u64) -> bool {
        let Some(intervals) = self.0.get(source) else {
            return false;
        };
        let at = intervals.partition_point(|(_, b)| *b < first);
        intervals
            .get(at)
            .is_some_and(|(a, b)| *a <= first && last <= *b)
    }

    /// Whether every transaction of `other` is in this.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        other
            .intervals()
            .all(|(source, first, last)| self.has(source, first, last))
    }

    /// What of this is not in `other`.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        let mut rest = Self::default();
        for (source, first, last) in self.intervals() {
            let mut from = first;
            let taken = other.0.get(source).map_or(&[][..], Vec::as_slice);
            for (a, b) in taken {
                if *b < from || *a > last {
                    continue;
                }
                if *a > from {
                    rest.insert(source.clone(), from..=a - 1);
                }
                from = b + 1;
            }
            rest.insert(source.clone(), from..=last);
        }
        rest
    }
}

impl GtidSet {
    pub(super) fn to_pb(&self) -> Vec<pb::GtidIntervals> {
        let sources = self.0.iter();
        let sources = sources.map(|(source, intervals)| pb::GtidIntervals {
            server: source.server.to_vec().into(),
            tag: source.tag.clone(),
            bounds: intervals.iter().flat_map(|(a, b)| [*a, *b]).collect(),
        });
        sources.collect()
    }

    /// `None` for what is no set.
    pub(super) fn from_pb(sources: &[pb::GtidIntervals]) -> Option<Self> {
        let mut set = Self::default();
        for stored in sources {
            let source = GtidSource {
                server: stored.server[..].try_into().ok()?,
                tag: stored.tag.clone(),
            };
            let (intervals, []) = stored.bounds.as_chunks::<2>() else {
                return None;
            };
            for [first, last] in intervals {
                set.insert(source.clone(), *first..=*last);
            }
        }
        Some(set)
    }
}

impl fmt::Display for GtidSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, byte) in self.server.iter().enumerate() {
            if matches!(at, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        if self.tag.is_empty() {
            return Ok(());
        }
        write!(f, ":{}", self.tag)
    }
}

impl fmt::Display for Gtid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.source, self.number)
    }
}

impl fmt::Display for GtidSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (source, intervals)) in self.0.iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            write!(f, "{comma}{source}")?;
            for (first, last) in intervals {
                match first == last {
                    true => write!(f, ":{first}")?,
                    false => write!(f, ":{first}-{last}")?,
                }
            }
        }
        Ok(())
    }
}

impl FromStr for GtidSet {
    type Err = InvalidGtidSet;

    fn from_str(text: &str) -> Result<Self, InvalidGtidSet> {
        let invalid = || InvalidGtidSet(text.to_owned());
        let mut set = Self::default();
        let sources = text.split(',').map(str::trim);
        for of_server in sources.filter(|part| !part.is_empty()) {
            let mut parts = of_server.split(':').map(str::trim);
            let server = parts.next().and_then(server).ok_or_else(invalid)?;
            let mut source = GtidSource {
                server,
                tag: String::new(),
            };
            for part in parts {
                if let Some(tag) = tag(part) {
                    source.tag = tag;
                    continue;
                }
                let numbers = interval(part).ok_or_else(invalid)?;
                set.insert(source.clone(), numbers);
            }
        }
        Ok(set)
    }
}

/// 32 hexadecimal digits, with hyphens between or without.
fn server(text: &str) -> Option<[u8; 16]> {
    let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b'-').collect();
    let digits = std::str::from_utf8(&digits).ok()?;
    if digits.len() != 32 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    Some(u128::from_str_radix(digits, 16).ok()?.to_be_bytes())
}

fn tag(text: &str) -> Option<String> {
    let starts = |c: char| c.is_ascii_alphabetic() || c == '_';
    let is_tag = text.starts_with(starts)
        && text.len() <= TAG_CHARS_MAX
        && text.chars().all(|c| starts(c) || c.is_ascii_digit());
    is_tag.then(|| text.to_ascii_lowercase())
}

fn interval(text: &str) -> Option<RangeInclusive<u64>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let number = |text: &str| {
        let number: u64 = text.trim().parse().ok()?;
        (1..=NUMBER_MAX).contains(&number).then_some(number)
    };
    let (first, last) = (number(first)?, number(last)?);
    (first <= last).then_some(first..=last)
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "3e11fa47-71ca-11e1-9e33-c80aa9429562";
    const B: &str = "ffffffff-0000-0000-0000-000000000001";

    fn set(text: &str) -> GtidSet {
        let text = text.replace('A', A).replace('B', B);
        text.parse().expect("a valid set")
    }

    fn shown(text: &str) -> String {
        text.replace('A', A).replace('B', B)
    }

    #[test]
    fn a_set_is_shown_as_the_server_shows_it() {
        for text in ["", "A:1-5:7", "A:1-7:9-10,B:4", "A:1-3,A:t_1:2:8-9", "B:5"] {
            assert_eq!(set(text).to_string(), shown(text));
        }
        assert_eq!(set("A:1-3:T:4").to_string(), shown("A:1-3,A:t:4"));
        assert_eq!(
            set(" A:3:1-2,\n B:7-9:8 ").to_string(),
            shown("A:1-3,B:7-9")
        );
        let bare = A.replace('-', "").to_uppercase();
        let bare: GtidSet = format!("{bare}:9").parse().expect("a valid set");
        assert_eq!(bare, set("A:9"));
    }

    #[test]
    fn what_is_no_set_is_refused() {
        let over = format!("A:{}", u64::MAX);
        for text in ["A:0", "A:5-3", "A:x-1", "A:1-", "nothing", "A:1:é:2", &over] {
            let text = shown(text);
            assert_eq!(text.parse::<GtidSet>(), Err(InvalidGtidSet(text.clone())));
        }
    }

    #[test]
    fn holes_are_kept_and_filled() {
        let mut holed = set("A:1-7:9-10");
        let eight = Gtid {
            source: holed.intervals().next().expect("one").0.clone(),
            number: 8,
        };
        assert!(!holed.contains(&eight) && !holed.covers(&set("A:7-9")));
        holed.add(&eight);
        assert_eq!(holed, set("A:1-10"));
        holed.add(&Gtid {
            number: 11,
            ..eight.clone()
        });
        holed.add(&Gtid {
            number: 13,
            ..eight
        });
        assert_eq!(holed, set("A:1-11:13"));
    }

    #[test]
    fn sets_cover_each_other_in_part_only() {
        assert!(set("A:1-9,B:1").covers(&set("A:2-3:9")));
        assert!(!set("A:1-9").covers(&set("B:1")) && !set("B:1").covers(&set("A:1-9")));
        assert!(!set("A:1-9").covers(&set("A:t:1")));
        assert!(set("A:1").covers(&set("")) && !set("").covers(&set("A:1")));
    }

    #[test]
    fn what_is_missing_is_told_exactly() {
        for (from, taken, rest) in [
            ("A:1-10", "A:3-4:7", "A:1-2:5-6:8-10"),
            ("A:1-10", "A:1-10", ""),
            ("A:5-6", "A:1-5:9", "A:6"),
            ("A:1-3,B:1-3", "B:2", "A:1-3,B:1:3"),
            ("A:1-3:t:1-3", "A:1-3", "A:t:1-3"),
        ] {
            assert_eq!(
                set(from).without(&set(taken)),
                set(rest),
                "{from} without {taken}"
            );
        }
    }

    /// Against a set of single numbers.
    #[test]
    fn random_sets_do_what_sets_do() {
        let mut state = 7u64;
        let mut random = |below: u64| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 33) % below
        };
        let source = GtidSource::default();
        for _ in 0..2_000 {
            let mut sets = [GtidSet::default(), GtidSet::default()];
            let mut plain = [[false; 40]; 2];
            for _ in 0..random(12) {
                let (which, first, len) = (random(2) as usize, 1 + random(30), random(9));
                sets[which].insert(source.clone(), first..=first + len);
                for number in first..=first + len {
                    plain[which][number as usize] = true;
                }
            }
            let rest = sets[0].without(&sets[1]);
            let mut both = sets[0].clone();
            both.extend(&sets[1]);
            for number in 1..40 {
                let gtid = Gtid {
                    source: source.clone(),
                    number,
                };
                let (mine, theirs) = (plain[0][number as usize], plain[1][number as usize]);
                assert_eq!(sets[0].contains(&gtid), mine);
                assert_eq!(rest.contains(&gtid), mine && !theirs);
                assert_eq!(both.contains(&gtid), mine || theirs);
            }
            assert_eq!(
                sets[0].covers(&sets[1]),
                sets[1].without(&sets[0]).is_empty()
            );
            assert_eq!(both.to_string().parse(), Ok(both));
        }
    }
}
