//! Reads segments: every byte that is served has passed its checksum.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use downriver_api::cluster::v1 as pb;
use downriver_event::block::check_frame;
use downriver_event::{Epoch, Offset, SourcePosition};
use prost::Message as _;

use super::{FOOTER_BYTES_MAX, FOOTER_FORMAT, MAGIC, TRAILER_BYTES};
use crate::log::{ObjectRef, ReadError, StoredBlock};
use crate::store::ObjectStore;

/// Footers kept in memory.
const FOOTERS_MAX: usize = 64;

/// Where a segment lies in its stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentPlace {
    pub base: Offset,
    pub end: Offset,
    pub epoch: Epoch,
    pub object: ObjectRef,
    /// Where the append of its last block moved the stream to.
    pub position_after: Option<SourcePosition>,
}

/// Recently used footers, by object key.
type Footers = VecDeque<(String, Arc<pb::SegmentFooter>)>;

#[derive(Debug)]
pub struct SegmentReader {
    store: Arc<dyn ObjectStore>,
    footers: Mutex<Footers>,
}

impl SegmentReader {
    #[must_use]
    pub fn new(store: Arc<dyn ObjectStore>) -> Self {
        Self {
            store,
            footers: Mutex::default(),
        }
    }

    #[must_use]
    pub fn store(&self) -> &Arc<dyn ObjectStore> {
        &self.store
    }

    /// The blocks from the one that contains `from` to the segment's end, or until `bytes_max` is passed.
    ///
    /// # Errors
    /// The store's, or damaged bytes.
    pub async fn blocks(
        &self,
        place: &SegmentPlace,
        from: Offset,
        bytes_max: usize,
    ) -> Result<Vec<StoredBlock>, ReadError> {
        let footer = self.footer(place).await?;
        let relative = from.0.saturating_sub(place.base.0);
        let first = footer
            .blocks
            .partition_point(|b| b.first_event + u64::from(b.events) <= relative);
        let wanted = &footer.blocks[first.min(footer.blocks.len())..];
        let mut len = 0;
        let taken = wanted
            .iter()
            .take_while(|block| {
                let take = len == 0 || len + block.len as usize <= bytes_max;
                len += block.len as usize;
                take
            })
            .count();
        let Some((start, last)) = wanted.first().zip(wanted[..taken].last()) else {
            return Ok(Vec::new());
        };
        let range = start.position..last.position + u64::from(last.len);
        let bytes = self.store.get_range(&place.object.key, range).await?;
        let mut blocks = Vec::with_capacity(taken);
        for entry in &wanted[..taken] {
            let base = place.base.plus(entry.first_event);
            let at = usize::try_from(entry.position - start.position).expect("a range fits memory");
            let frame = bytes.slice(at..at + entry.len as usize);
            check_frame(&frame)
                .map_err(|error| damaged(place, entry.position, base, &error.to_string()))?;
            let position = entry
                .position_after
                .as_ref()
                .and_then(SourcePosition::from_pb);
            blocks.push(StoredBlock {
                base,
                events: entry.events,
                epoch: place.epoch,
                frame,
                position_after: position.or_else(|| place.position_after.clone()),
            });
        }
        Ok(blocks)
    }

    /// The segment's index.
    ///
    /// # Errors
    /// The store's, or damaged bytes.
    pub async fn footer(&self, place: &SegmentPlace) -> Result<Arc<pb::SegmentFooter>, ReadError> {
        let key = &place.object.key;
        let known = {
            let footers = self.footers.lock().expect("no holder panics");
            footers
                .iter()
                .find(|(k, _)| k == key)
                .map(|(_, footer)| Arc::clone(footer))
        };
        if let Some(footer) = known {
            return Ok(footer);
        }
        let range = place.object.footer_offset..place.object.len;
        let len = range.end.saturating_sub(range.start);
        let wrong = |reason: &str| damaged(place, place.object.footer_offset, place.base, reason);
        if !(TRAILER_BYTES..=FOOTER_BYTES_MAX).contains(&len) {
            return Err(wrong("the footer's length is impossible"));
        }
        let bytes = self.store.get_range(key, range).await?;
        let footer = Arc::new(read_footer(bytes).map_err(|reason| wrong(&reason))?);
        let events: u64 = footer
            .blocks
            .iter()
            .map(|block| u64::from(block.events))
            .sum();
        if events != place.end.0 - place.base.0 {
            return Err(wrong("the footer's events are not the segment's"));
        }
        let mut footers = self.footers.lock().expect("no holder panics");
        if footers.len() == FOOTERS_MAX {
            footers.pop_front();
        }
        footers.push_back((key.clone(), Arc::clone(&footer)));
        Ok(footer)
    }
}

fn damaged(place: &SegmentPlace, position: u64, offset: Offset, reason: &str) -> ReadError {
    ReadError::Damaged {
        object: place.object.key.clone(),
        position,
        offset,
        reason: reason.to_owned(),
    }
}

/// Opens the bytes from the footer's start to the object's end.
///
/// # Errors
/// What is wrong with them.
pub fn read_footer(bytes: Bytes) -> Result<pb::SegmentFooter, String> {
    let trailer_len = usize::try_from(TRAILER_BYTES).expect("small");
    let Some(footer_len) = bytes.len().checked_sub(trailer_len) else {
        return Err("the footer is cut short".into());
    };
    let trailer = &bytes[footer_len..];
    if &trailer[8..] != MAGIC {
        return Err("the object does not end as a segment does".into());
    }
    let number =
        |at: usize| u32::from_le_bytes(trailer[at..at + 4].try_into().expect("four bytes"));
    if number(0) as usize != footer_len {
        return Err("the footer's length is not the announced one".into());
    }
    let actual = crc32c::crc32c(&bytes[..footer_len]);
    if number(4) != actual {
        return Err(format!(
            "the footer's checksum is {actual:08x}, should be {:08x}",
            number(4)
        ));
    }
    let footer = pb::SegmentFooter::decode(bytes.slice(..footer_len)).map_err(|e| e.to_string())?;
    if footer.format != FOOTER_FORMAT {
        return Err(format!(
            "segment format {} is not known to this build",
            footer.format
        ));
    }
    Ok(footer)
}
