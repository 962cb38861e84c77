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

/// What the table had committed when this was stored; `None` if it is of another life or format.
pub(super) fn committed(detail: &[u8], stream_id: &str) -> Option<Offset> {
    let rest = detail.strip_prefix(&[FORMAT])?;
    let (committed, id) = rest.split_first_chunk::<8>()?;
    (id == stream_id.as_bytes()).then(|| Offset(u64::from_le_bytes(*committed)))
}
