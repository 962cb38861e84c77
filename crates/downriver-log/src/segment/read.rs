//! Reads segments: every byte that is served has passed its checksum.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use downriver_api::cluster::v1 as pb;
use downriver_event::block::check_frame;
use downriver_event::{Epoch, Offset, SourcePosition};
use prost::Message as _;

use super::manifest::{ManifestRef, read_manifest};
use super::place::{Segment, SegmentPlace};
use super::{FOOTER_BYTES_MAX, FOOTER_FORMAT, MAGIC, TRAILER_BYTES};
use crate::log::{ReadError, StoredBlock};
use crate::store::ObjectStore;

/// Stored bytes of the footers that are kept in memory, and of the manifests; opened they take a few times as much.
const FOOTERS_BYTES_MAX: u64 = 8 << 20;
const MANIFESTS_BYTES_MAX: u64 = 2 << 20;

/// What was read last, by object key.
#[derive(Debug)]
struct Recent<T> {
    bytes_max: u64,
    /// With the stored bytes of each.
    read: Mutex<VecDeque<(String, u64, Arc<T>)>>,
}

impl<T> Recent<T> {
    fn new(bytes_max: u64) -> Self {
        Self {
            bytes_max,
            read: Mutex::default(),
        }
    }

    fn get(&self, key: &str) -> Option<Arc<T>> {
        let read = self.read.lock().expect("no holder panics");
        let found = read.iter().find(|(k, ..)| k == key);
        found.map(|(.., item)| Arc::clone(item))
    }

    /// Keeps it, and forgets the oldest that no longer fit beside it.
    fn put(&self, key: &str, bytes: u64, item: T) -> Arc<T> {
        let item = Arc::new(item);
        let mut read = self.read.lock().expect("no holder panics");
        read.push_back((key.to_owned(), bytes, Arc::clone(&item)));
        let mut total: u64 = read.iter().map(|(_, bytes, _)| bytes).sum();
        while total > self.bytes_max && read.len() > 1 {
            total -= read.pop_front().map_or(0, |(_, bytes, _)| bytes);
        }
        item
    }
}

#[derive(Debug)]
pub struct SegmentReader {
    store: Arc<dyn ObjectStore>,
    footers: Recent<pb::SegmentFooter>,
    manifests: Recent<Vec<Segment>>,
}

impl SegmentReader {
    #[must_use]
    pub fn new(store: Arc<dyn ObjectStore>) -> Self {
        Self {
            store,
            footers: Recent::new(FOOTERS_BYTES_MAX),
            manifests: Recent::new(MANIFESTS_BYTES_MAX),
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
            let position =
                SourcePosition::from_field(entry.position_after.as_ref()).map_err(|unknown| {
                    let footer = place.object.footer_offset;
                    damaged(place, footer, base, &format!("its index has {unknown}"))
                })?;
            blocks.push(StoredBlock {
                base,
                events: entry.events,
                epoch: if entry.epoch == 0 {
                    place.epoch
                } else {
                    Epoch(entry.epoch)
                },
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
        if let Some(known) = self.footers.get(key) {
            return Ok(known);
        }
        let range = place.object.footer_offset..place.object.len;
        let len = range.end.saturating_sub(range.start);
        let wrong = |reason: &str| damaged(place, place.object.footer_offset, place.base, reason);
        if !(TRAILER_BYTES..=FOOTER_BYTES_MAX).contains(&len) {
            return Err(wrong("the footer's length is impossible"));
        }
        let bytes = self.store.get_range(key, range).await?;
        let footer = read_footer(bytes).map_err(|reason| wrong(&reason))?;
        let events: u64 = footer
            .blocks
            .iter()
            .map(|block| u64::from(block.events))
            .sum();
        if events != place.end.0 - place.base.0 {
            return Err(wrong("the footer's events are not the segment's"));
        }
        Ok(self.footers.put(key, len, footer))
    }

    /// The segments that a manifest lists.
    ///
    /// # Errors
    /// The store's, or damaged bytes.
    pub async fn manifest(&self, manifest: &ManifestRef) -> Result<Arc<Vec<Segment>>, ReadError> {
        let key = &manifest.object.key;
        if let Some(known) = self.manifests.get(key) {
            return Ok(known);
        }
        let segments = read_manifest(&*self.store, manifest).await?;
        Ok(self.manifests.put(key, manifest.object.len, segments))
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
