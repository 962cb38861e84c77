//! What is kept of a pipeline's tables beside the tables themselves: epochs, and how far those have come that
//! had nothing to commit.

use async_trait::async_trait;
use bytes::Bytes;
use downriver_event::{Epoch, Offset, TableId};

const FORMAT: u8 = 1;

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

/// `format u8 = 1 | committed u64, little endian | the stream's life, UTF-8`
pub(super) fn encode(committed: Offset, stream_id: &str) -> Bytes {
    let mut out = Vec::with_capacity(9 + stream_id.len());
    out.push(FORMAT);
    out.extend_from_slice(&committed.0.to_le_bytes());
    out.extend_from_slice(stream_id.as_bytes());
    out.into()
}

/// What the table had committed when this was stored; `None` if nothing was, or in another life.
///
/// # Errors
/// The bytes are of another format or cut short: to take them for nothing would deliver everything again.
pub(super) fn committed(detail: &[u8], stream_id: &str) -> Result<Option<Offset>, String> {
    let Some((format, rest)) = detail.split_first() else {
        return Ok(None);
    };
    if *format != FORMAT {
        return Err(format!("has format {format}, this build reads {FORMAT}"));
    }
    let (committed, id) = rest.split_first_chunk::<8>().ok_or("is cut short")?;
    let same_life = id == stream_id.as_bytes();
    Ok(same_life.then(|| Offset(u64::from_le_bytes(*committed))))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use downriver_testkit::fixture;

    use super::*;

    #[test]
    fn progress_of_format_1_is_read_as_it_was_stored() {
        let (offset, life) = (Offset(0x0123_4567_89ab_cdef), "stream.pipeline");
        let write = || encode(offset, life).to_vec();
        let stored = fixture::bytes("table-progress-v1.bin", write).unwrap();
        assert_eq!(committed(&stored, life), Ok(Some(offset)));
        assert_eq!(committed(&stored, "another.pipeline"), Ok(None));
        assert_eq!(committed(&[], life), Ok(None));
    }

    #[test]
    fn progress_of_a_newer_format_is_refused() {
        let mut newer = encode(Offset(7), "life").to_vec();
        newer[0] = 2;
        let refused = committed(&newer, "life");
        assert_eq!(refused, Err("has format 2, this build reads 1".into()));
        let cut = committed(&encode(Offset(7), "life")[..5], "life");
        assert_eq!(cut, Err("is cut short".into()));
    }
}
