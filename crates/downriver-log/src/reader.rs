//! Reads a stream: unsealed blocks from memory, everything else from segments.

use downriver_event::Offset;
use downriver_event::block::Block;
use downriver_event::planted::Bug;

use crate::journal::{Stream, UnsealedPayload};
use crate::log::{ReadError, StoredBlock};
use crate::segment::{ManifestRef, SegmentPlace, SegmentReader};

/// What has to be done to read from an offset; taken from the state at one moment.
#[derive(Debug, PartialEq, Eq)]
pub enum ReadPlan {
    /// At the tail.
    Nothing,
    Memory(Vec<StoredBlock>),
    Segment(SegmentPlace),
    /// In a segment that this manifest lists.
    Manifest(ManifestRef),
}

/// # Errors
/// The offset is gone, or past the end.
pub fn plan(stream: &Stream, from: Offset, bytes_max: usize) -> Result<ReadPlan, ReadError> {
    if from < stream.trimmed {
        return Err(ReadError::Trimmed {
            from,
            trimmed: stream.trimmed,
        });
    }
    if from > stream.next {
        return Err(ReadError::PastEnd {
            from,
            next: stream.next,
        });
    }
    if from == stream.next {
        return Ok(ReadPlan::Nothing);
    }
    if let Some(manifest) = stream.manifest_of(from) {
        return Ok(ReadPlan::Manifest(manifest.clone()));
    }
    if from < stream.sealed {
        let at = stream
            .segments
            .partition_point(|segment| segment.place.end <= from);
        return Ok(ReadPlan::Segment(stream.segments[at].place.clone()));
    }
    let mut at = stream.unsealed.partition_point(|block| block.end() <= from);
    if Bug::LosesBlockAtSeal.is_planted() && from == stream.sealed && from.0 > 0 {
        at += 1;
    }
    let mut blocks = Vec::new();
    let mut len = 0;
    for block in stream.unsealed.iter().skip(at) {
        match &block.payload {
            UnsealedPayload::Inline(frame) => {
                if len > 0 && len + frame.len() > bytes_max {
                    break;
                }
                len += frame.len();
                blocks.push(block.stored(frame));
            }
            UnsealedPayload::Object(object) if blocks.is_empty() => {
                return Ok(ReadPlan::Segment(SegmentPlace {
                    base: block.base,
                    end: block.end(),
                    epoch: block.epoch,
                    object: object.clone(),
                    position_after: block.position_after.clone(),
                }));
            }
            UnsealedPayload::Object(_) => break,
        }
    }
    Ok(ReadPlan::Memory(blocks))
}

/// Carries out a plan.
///
/// # Errors
/// The store's, or damaged bytes.
pub async fn execute(
    plan: &ReadPlan,
    segments: &SegmentReader,
    from: Offset,
    bytes_max: usize,
) -> Result<Vec<StoredBlock>, ReadError> {
    match plan {
        ReadPlan::Nothing => Ok(Vec::new()),
        ReadPlan::Memory(blocks) => Ok(blocks.clone()),
        ReadPlan::Segment(place) => segments.blocks(place, from, bytes_max).await,
        ReadPlan::Manifest(manifest) => {
            let listed = segments.manifest(manifest).await?;
            let at = listed.partition_point(|segment| segment.place.end <= from);
            segments.blocks(&listed[at].place, from, bytes_max).await
        }
    }
}

/// The first transaction of the block that was committed at or after the time.
#[must_use]
pub fn transaction_at(stored: &StoredBlock, time_us: i64) -> Option<Offset> {
    let block = Block::decode(&stored.frame).ok()?;
    let found = block
        .transactions
        .iter()
        .find(|t| t.events_before == 0 && t.commit_time_us >= time_us)?;
    Some(stored.base.plus(u64::from(found.first_event)))
}
