//! What a table's snapshot stores beside its rows, so that a crash resumes at the chunk: where the next
//! chunk starts and which rows have to be read again because they moved. How the table stood in the publication
//! when the generation began, so that a change of that is noticed whenever it happens. And which part of the table is
//! read, if it is not all of it.
//!
//! ```text
//! format u8 = 3, or 4 with a part | flags u8: 1 exhausted, 2 requested, 4 outlined, 8 lapsed, 16 of a part
//!   | next: len u32, bytes | moved: count u32, (len u32, bytes)* | outline, if outlined: len u32, bytes
//!   | RowFilter, if of a part: len u32, bytes
//! ```
//! Format 2 had the first two flags only, and format 1 the first.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use downriver_event::{RowFilter, TableId};
use downriver_log::{ChunkDone, ChunkState, LogError};
use downriver_source::postgres::outline::Outline;

use super::CaptureError;
use super::merge::Key;

/// What is stored under this number is no table's progress, but the source's own: no table has it.
pub(crate) const OF_NO_TABLE: TableId = TableId(0);

const FORMAT: u8 = 4;
const FORMAT_OF_WHOLE: u8 = 3;
const OLDEST_FORMAT: u8 = 1;
const EXHAUSTED: u8 = 1;
const REQUESTED: u8 = 2;
const OUTLINED: u8 = 4;
const LAPSED: u8 = 8;
const OF_PART: u8 = 16;

/// What is known of the changes that came of a table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Stored by a build that did not look.
    #[default]
    Unknown,
    /// Those that came since are all that this stood for.
    Published(Outline),
    /// For a while none came: the table was not selected, or refused.
    Lapsed,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Resume {
    /// This generation is to be read, and its start is not in the log yet.
    pub(crate) requested: bool,
    /// The last chunk was read; only moved rows are left.
    pub(crate) exhausted: bool,
    /// `None`: from the table's start (or nothing, when exhausted).
    pub(crate) next: Option<Bytes>,
    pub(crate) moved: Vec<Key>,
    pub(crate) standing: Standing,
    /// `None`: the whole table is read.
    pub(crate) part: Option<RowFilter>,
}

impl Resume {
    pub(crate) fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        let put = |out: &mut BytesMut, bytes: &[u8]| {
            out.put_u32_le(u32::try_from(bytes.len()).expect("a key is under VALUE_BYTES_MAX"));
            out.extend_from_slice(bytes);
        };
        // Who does not know of parts would take one for the whole.
        out.put_u8(self.part.as_ref().map_or(FORMAT_OF_WHOLE, |_| FORMAT));
        let flag = |is: bool, flag: u8| if is { flag } else { 0 };
        let standing = match &self.standing {
            Standing::Unknown => 0,
            Standing::Published(_) => OUTLINED,
            Standing::Lapsed => LAPSED,
        };
        let flags = flag(self.exhausted, EXHAUSTED)
            | flag(self.requested, REQUESTED)
            | flag(self.part.is_some(), OF_PART);
        out.put_u8(flags | standing);
        put(&mut out, self.next.as_deref().unwrap_or_default());
        out.put_u32_le(u32::try_from(self.moved.len()).expect("moved rows fit the memory"));
        for key in &self.moved {
            put(&mut out, key);
        }
        if let Standing::Published(outline) = &self.standing {
            put(&mut out, &outline.encode());
        }
        if let Some(part) = &self.part {
            put(&mut out, &part.encode());
        }
        out.freeze()
    }

    /// `None` if the bytes are of a format that this build does not know.
    pub(crate) fn decode(mut bytes: Bytes) -> Option<Self> {
        if bytes.is_empty() {
            return Some(Self::default());
        }
        if !(OLDEST_FORMAT..=FORMAT).contains(&bytes.try_get_u8().ok()?) {
            return None;
        }
        let flags = bytes.try_get_u8().ok()?;
        if flags & !(EXHAUSTED | REQUESTED | OUTLINED | LAPSED | OF_PART) != 0 {
            return None;
        }
        let take = |bytes: &mut Bytes| {
            let len = bytes.try_get_u32_le().ok()? as usize;
            (bytes.len() >= len).then(|| bytes.split_to(len))
        };
        let next = take(&mut bytes)?;
        let count = bytes.try_get_u32_le().ok()?;
        let mut moved = Vec::new();
        for _ in 0..count {
            moved.push(take(&mut bytes)?.to_vec().into_boxed_slice());
        }
        let standing = match (flags & OUTLINED != 0, flags & LAPSED != 0) {
            (false, false) => Standing::Unknown,
            (true, false) => Standing::Published(Outline::decode(&take(&mut bytes)?)?),
            (false, true) => Standing::Lapsed,
            (true, true) => return None,
        };
        let part = if flags & OF_PART != 0 {
            Some(RowFilter::decode(&take(&mut bytes)?).ok()?)
        } else {
            None
        };
        Some(Self {
            standing,
            part,
            requested: flags & REQUESTED != 0,
            exhausted: flags & EXHAUSTED != 0,
            next: (!next.is_empty()).then_some(next),
            moved,
        })
    }
}

/// What the log has of a table's snapshot.
pub(crate) fn resume(
    name: &str,
    chunks: Option<&ChunkState>,
) -> Result<Option<Resume>, CaptureError> {
    let Some(chunks) = chunks else {
        return Ok(None);
    };
    match Resume::decode(chunks.resume_after.clone()) {
        Some(resume) => Ok(Some(resume)),
        None => Err(CaptureError::Log(LogError::Unavailable(format!(
            "the progress of the snapshot of {name} was written by a newer version"
        )))),
    }
}

/// The same progress of a table, with another standing.
pub(crate) fn restated(
    table: TableId,
    chunks: Option<&ChunkState>,
    resume: Resume,
    standing: Standing,
) -> ChunkDone {
    ChunkDone {
        table,
        // A table that has had no snapshot, and none is wanted of it.
        generation: chunks.map_or(0, |chunks| chunks.generation),
        resume_after: Resume { standing, ..resume }.encode(),
        rows: 0,
        last: chunks.is_none_or(|chunks| chunks.done),
    }
}

/// A table that is not captured any more: of a generation of it that was begun nothing comes.
pub(crate) fn lapsed(table: TableId, generation: u64, resume: Resume) -> ChunkDone {
    let standing = Standing::Lapsed;
    ChunkDone {
        table,
        generation,
        resume_after: Resume { standing, ..resume }.encode(),
        rows: 0,
        last: true,
    }
}

/// A generation that is to be read from the start of the table, or of a part of it; every change of the table comes
/// while it stands so in the publication.
pub(crate) fn wanted(
    table: TableId,
    generation: u64,
    standing: Standing,
    part: Option<RowFilter>,
) -> ChunkDone {
    let resume = Resume {
        requested: true,
        standing,
        part,
        ..Resume::default()
    };
    ChunkDone {
        table,
        generation,
        resume_after: resume.encode(),
        rows: 0,
        last: false,
    }
}

#[cfg(test)]
mod tests {
    use downriver_event::filter::{Comparator, Comparison, Condition};
    use downriver_event::pb;
    use downriver_testkit::fixture;

    use super::*;

    fn outlined() -> Standing {
        let outline = Outline::decode(b"members table:16412\npublication 16400:753\n");
        Standing::Published(outline.expect("it is one"))
    }

    fn part() -> RowFilter {
        let is = Comparison {
            column: 1,
            comparator: Comparator::Less,
            value: pb::Value {
                kind: Some(pb::value::Kind::Int(7)),
            },
        };
        RowFilter {
            text: "id < 7".into(),
            condition: Condition::Is(is),
        }
    }

    #[test]
    fn what_was_stored_is_read_back_and_anything_cut_is_refused() {
        for part in [None, Some(part())] {
            let resume = Resume {
                requested: true,
                exhausted: true,
                next: Some(Bytes::from_static(b"next")),
                moved: vec![b"a".to_vec().into(), Vec::new().into()],
                standing: outlined(),
                part,
            };
            let bytes = resume.encode();
            assert_eq!(Resume::decode(bytes.clone()), Some(resume));
            for len in 1..bytes.len() {
                assert_eq!(Resume::decode(bytes.slice(..len)), None, "cut at {len}");
            }
        }
        assert_eq!(Resume::decode(Bytes::new()), Some(Resume::default()));
    }

    #[test]
    fn progress_of_every_format_is_read_as_it_was_stored_and_of_a_newer_one_refused() {
        let resume = |requested, standing, part| Resume {
            part,
            requested,
            exhausted: true,
            next: Some(Bytes::from_static("Zo\u{eb}".as_bytes())),
            moved: vec![
                b"a".to_vec().into(),
                Vec::new().into(),
                vec![0xff; 300].into(),
            ],
            standing,
        };
        let lost = || unreachable!("no build writes this format any more");
        for (name, requested) in [("v1", false), ("v2", true)] {
            let name = format!("snapshot-progress-{name}.bin");
            let stored = fixture::bytes(&name, lost).expect("it is kept");
            let expected = resume(requested, Standing::Unknown, None);
            assert_eq!(Resume::decode(stored.into()), Some(expected), "{name}");
        }
        for (name, standing, part) in [
            ("v3", outlined(), None),
            ("v3-lapsed", Standing::Lapsed, None),
            ("v4", outlined(), Some(part())),
        ] {
            let name = format!("snapshot-progress-{name}.bin");
            let expected = resume(true, standing, part);
            let write = || expected.encode().to_vec();
            let mut stored = fixture::bytes(&name, write).expect("it is kept");
            assert_eq!(
                Resume::decode(stored.clone().into()).as_ref(),
                Some(&expected),
                "{name}"
            );
            stored[0] = 5;
            assert_eq!(Resume::decode(stored.into()), None);
        }
    }
}
