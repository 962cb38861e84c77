//! What is kept of a pipeline's tables beside the tables themselves: epochs, and how far those have come that
//! had nothing to commit.

use async_trait::async_trait;
use bytes::Bytes;
use downriver_event::{Epoch, Offset, TableId};

const FORMAT: u8 = 2;

/// A sink table's replicated progress.
#[derive(Clone, Debug, Default)]
pub struct TableProgress {
    pub epoch: Epoch,
    pub delivered: Offset,
    /// Opaque to who stores it.
    pub detail: Bytes,
}

/// Replicated progress of a pipeline's tables; the cluster keeps it.
#[async_trait]
pub trait Progress: Send + Sync + 'static {
    /// Gives the caller a new epoch as the table's owner.
    async fn open(&self, pipeline: &str, table: TableId) -> Result<TableProgress, String>;

    /// Refused under a stale epoch; never goes back.
    async fn commit(
        &self,
        pipeline: &str,
        table: TableId,
        progress: TableProgress,
    ) -> Result<(), String>;

    fn get(&self, pipeline: &str, table: TableId) -> Option<TableProgress>;
}

/// What a table's progress says beside the offset that is delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Detail {
    /// What the table of the lake had committed when this was stored.
    pub(super) committed: Offset,
    /// The newest version of the source's schema that was let through; `None`: none was asked about.
    pub(super) accepted: Option<u32>,
    /// It stands before this change.
    pub(super) held: Option<HeldAt>,
}

/// A change that has to be let through: the version of the schema after it, and the first event that needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HeldAt {
    pub(super) version: u32,
    pub(super) event: Offset,
}

/// `format u8 = 2 | committed u64 | accepted u32 | held u32, event u64 | the stream's life, UTF-8`, little endian; versions
/// that are 0 are none. Format 1 goes from `committed` to the life.
pub(super) fn encode(detail: Detail, stream_id: &str) -> Bytes {
    let mut out = Vec::with_capacity(25 + stream_id.len());
    out.push(FORMAT);
    out.extend_from_slice(&detail.committed.0.to_le_bytes());
    out.extend_from_slice(&detail.accepted.unwrap_or_default().to_le_bytes());
    let held = detail
        .held
        .map_or((0, 0), |held| (held.version, held.event.0));
    out.extend_from_slice(&held.0.to_le_bytes());
    out.extend_from_slice(&held.1.to_le_bytes());
    out.extend_from_slice(stream_id.as_bytes());
    out.into()
}

/// What was stored; `None` if nothing was, or in another life.
///
/// # Errors
/// The bytes are of another format or cut short: to take them for nothing would deliver everything again.
pub(super) fn decode(detail: &[u8], stream_id: &str) -> Result<Option<Detail>, String> {
    let stored = parse(detail)?;
    let of_this_life = stored.filter(|(_, life)| *life == stream_id.as_bytes());
    Ok(of_this_life.map(|(detail, _)| detail))
}

/// The version of a table's schema that it stands before until that is let through.
#[must_use]
pub fn held_version(detail: &[u8]) -> Option<u32> {
    let (detail, _) = parse(detail).ok()??;
    detail.held.map(|held| held.version)
}

/// What was stored, and the life that it is of.
fn parse(detail: &[u8]) -> Result<Option<(Detail, &[u8])>, String> {
    let Some((format, rest)) = detail.split_first() else {
        return Ok(None);
    };
    if !(1..=FORMAT).contains(format) {
        return Err(format!(
            "has format {format}, this build reads up to {FORMAT}"
        ));
    }
    let (committed, mut id) = rest.split_first_chunk::<8>().ok_or("is cut short")?;
    let (mut accepted, mut held, mut event) = (0, 0, 0);
    if *format > 1 {
        let (of_accepted, rest) = id.split_first_chunk::<4>().ok_or("is cut short")?;
        let (of_held, rest) = rest.split_first_chunk::<4>().ok_or("is cut short")?;
        let (of_event, rest) = rest.split_first_chunk::<8>().ok_or("is cut short")?;
        accepted = u32::from_le_bytes(*of_accepted);
        held = u32::from_le_bytes(*of_held);
        event = u64::from_le_bytes(*of_event);
        id = rest;
    }
    let detail = Detail {
        committed: Offset(u64::from_le_bytes(*committed)),
        accepted: (accepted > 0).then_some(accepted),
        held: (held > 0).then_some(HeldAt {
            version: held,
            event: Offset(event),
        }),
    };
    Ok(Some((detail, id)))
}

/// What the table of the lake had committed, as [`decode`] tells it.
pub(super) fn committed(detail: &[u8], stream_id: &str) -> Result<Option<Offset>, String> {
    let detail = decode(detail, stream_id)?;
    Ok(detail.map(|detail| detail.committed))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use downriver_testkit::fixture;

    use super::*;

    #[test]
    fn progress_of_every_format_is_read_as_it_was_stored() {
        let (offset, life) = (Offset(0x0123_4567_89ab_cdef), "stream.pipeline");
        let held = HeldAt {
            version: 0x89ab_cdef,
            event: Offset(0xfedc_ba98_7654_3210),
        };
        for (name, accepted, held) in [
            ("table-progress-v1.bin", None, None),
            ("table-progress-v2.bin", Some(0x0123_4567), Some(held)),
        ] {
            let detail = Detail {
                committed: offset,
                accepted,
                held,
            };
            let stored = fixture::bytes(name, || encode(detail, life).to_vec()).unwrap();
            assert_eq!(decode(&stored, life), Ok(Some(detail)), "{name}");
            assert_eq!(decode(&stored, "another.pipeline"), Ok(None));
            assert_eq!(held_version(&stored), held.map(|held| held.version));
        }
        assert_eq!(decode(&[], life), Ok(None));
    }

    #[test]
    fn progress_of_a_newer_format_is_refused() {
        let detail = Detail {
            committed: Offset(7),
            accepted: None,
            held: None,
        };
        let mut newer = encode(detail, "life").to_vec();
        newer[0] = 3;
        let refused = committed(&newer, "life");
        assert_eq!(
            refused,
            Err("has format 3, this build reads up to 2".into())
        );
        for length in [5, 10, 14, 24] {
            let cut = committed(&encode(detail, "life")[..length], "life");
            assert_eq!(cut, Err("is cut short".into()));
        }
    }
}
