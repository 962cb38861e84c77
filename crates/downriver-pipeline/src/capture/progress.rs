//! What a table's snapshot stores beside its rows, so that a crash resumes at the chunk: where the next
//! chunk starts and which rows have to be read again because they moved.
//!
//! ```text
//! format u8 = 2 | flags u8: 1 exhausted, 2 requested | next: len u32, bytes | moved: count u32, (len u32, bytes)*
//! ```
//! Format 1 had no flag but the first.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

use super::merge::Key;

const FORMAT: u8 = 2;
const OLDEST_FORMAT: u8 = 1;
const EXHAUSTED: u8 = 1;
const REQUESTED: u8 = 2;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Resume {
    /// This generation is to be read, and its start is not in the log yet.
    pub(crate) requested: bool,
    /// The last chunk was read; only moved rows are left.
    pub(crate) exhausted: bool,
    /// `None`: from the table's start (or nothing, when exhausted).
    pub(crate) next: Option<Bytes>,
    pub(crate) moved: Vec<Key>,
}

impl Resume {
    pub(crate) fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        let put = |out: &mut BytesMut, bytes: &[u8]| {
            out.put_u32_le(u32::try_from(bytes.len()).expect("a key is under VALUE_BYTES_MAX"));
            out.extend_from_slice(bytes);
        };
        out.put_u8(FORMAT);
        let flag = |is: bool, flag: u8| if is { flag } else { 0 };
        out.put_u8(flag(self.exhausted, EXHAUSTED) | flag(self.requested, REQUESTED));
        put(&mut out, self.next.as_deref().unwrap_or_default());
        out.put_u32_le(u32::try_from(self.moved.len()).expect("moved rows fit the memory"));
        for key in &self.moved {
            put(&mut out, key);
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
        if flags & !(EXHAUSTED | REQUESTED) != 0 {
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
        Some(Self {
            requested: flags & REQUESTED != 0,
            exhausted: flags & EXHAUSTED != 0,
            next: (!next.is_empty()).then_some(next),
            moved,
        })
    }
}

#[cfg(test)]
mod tests {
    use downriver_testkit::fixture;

    use super::*;

    #[test]
    fn what_was_stored_is_read_back_and_anything_cut_is_refused() {
        let resume = Resume {
            requested: true,
            exhausted: true,
            next: Some(Bytes::from_static(b"next")),
            moved: vec![b"a".to_vec().into(), Vec::new().into()],
        };
        let bytes = resume.encode();
        assert_eq!(Resume::decode(bytes.clone()), Some(resume));
        for len in 1..bytes.len() {
            assert_eq!(Resume::decode(bytes.slice(..len)), None, "cut at {len}");
        }
        assert_eq!(Resume::decode(Bytes::new()), Some(Resume::default()));
    }

    #[test]
    fn progress_of_every_format_is_read_as_it_was_stored_and_of_a_newer_one_refused() {
        let resume = |requested| Resume {
            requested,
            exhausted: true,
            next: Some(Bytes::from_static("Zo\u{eb}".as_bytes())),
            moved: vec![
                b"a".to_vec().into(),
                Vec::new().into(),
                vec![0xff; 300].into(),
            ],
        };
        let lost = || unreachable!("no build writes format 1 any more");
        let stored = fixture::bytes("snapshot-progress-v1.bin", lost).expect("it is kept");
        assert_eq!(Resume::decode(stored.into()), Some(resume(false)));
        let write = || resume(true).encode().to_vec();
        let mut stored = fixture::bytes("snapshot-progress-v2.bin", write).expect("it is kept");
        assert_eq!(Resume::decode(stored.clone().into()), Some(resume(true)));
        stored[0] = 3;
        assert_eq!(Resume::decode(stored.into()), None);
    }
}
