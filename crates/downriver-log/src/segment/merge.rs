//! Merges adjacent small segments into one that holds the same blocks at the same offsets.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use downriver_event::{Incarnation, TableSchema};

use super::{Segment, SegmentPlace, SegmentReader, SegmentWriter};
use crate::log::ReadError;

/// Bytes of blocks in memory while they are copied.
const PIECE_BYTES: usize = 4 << 20;
/// Of the footers of one merge: a reader has the merged one in memory.
const FOOTER_BYTES_MAX: u64 = 4 << 20;
/// Segments of one merge.
const RUN_MAX: usize = 256;

/// The first run of adjacent segments that is worth one segment of at most `bytes_max`: at least `run_min` of them,
/// none larger than half of all. So a byte is copied again only into a segment of at least twice the size.
#[must_use]
pub fn worth_merging(segments: &[Segment], run_min: usize, bytes_max: u64) -> Option<Range<usize>> {
    (0..segments.len()).find_map(|start| {
        let (mut sum, mut footers, mut largest, mut found) = (0, 0, 0, None);
        for (at, segment) in segments.iter().enumerate().skip(start).take(RUN_MAX) {
            let object = &segment.place.object;
            sum += object.len;
            footers += object.len.saturating_sub(object.footer_offset);
            largest = largest.max(object.len);
            if sum > bytes_max || footers > FOOTER_BYTES_MAX {
                break;
            }
            if at + 1 - start >= run_min && largest * 2 <= sum {
                found = Some(start..at + 1);
            }
        }
        found
    })
}

#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("the segment's file cannot be written: {0}")]
    File(#[from] std::io::Error),
    #[error("schema of table {0} cannot be read")]
    Schema(u32),
}

/// Writes the blocks of adjacent segments into one, and says which schemas it uses. Every block's checksum is checked.
///
/// # Errors
/// A segment is damaged or cannot be read now; or the folder's disk.
pub async fn merge(
    reader: &SegmentReader,
    folder: PathBuf,
    (stream, incarnation): (&str, Incarnation),
    places: &[SegmentPlace],
) -> Result<(SegmentWriter, Vec<Arc<TableSchema>>), MergeError> {
    let epoch = places.last().map(|place| place.epoch).unwrap_or_default();
    let mut segment = SegmentWriter::create(&folder, stream, incarnation, epoch)?;
    let mut schemas = BTreeMap::new();
    for place in places {
        let footer = reader.footer(place).await?;
        for schema in &footer.schemas {
            let read =
                TableSchema::from_pb(schema).map_err(|_| MergeError::Schema(schema.table_id))?;
            schemas.insert((read.id, read.version), Arc::new(read));
        }
        let mut copied = 0;
        while let Some(next) = footer.blocks.get(copied) {
            let from = place.base.plus(next.first_event);
            let blocks = reader.blocks(place, from, PIECE_BYTES).await?;
            let entries = footer.blocks[copied..][..blocks.len()].to_vec();
            copied += blocks.len();
            let written = tokio::task::spawn_blocking(move || {
                for (block, entry) in blocks.iter().zip(entries) {
                    let times = (entry.time_min_us, entry.time_max_us);
                    segment.write_appended(block, times, entry.table_ids)?;
                }
                Ok::<_, std::io::Error>(segment)
            });
            segment = written
                .await
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?;
        }
    }
    Ok((segment, schemas.into_values().collect()))
}
