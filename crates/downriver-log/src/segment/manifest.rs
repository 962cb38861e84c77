//! Manifests: objects that list the oldest segments of a stream, so that the replicated state does not.
//!
//! A manifest is written once, for segments that will not be merged any more, and is deleted when retention has
//! passed the last of them. It lists what it was made with: segments that retention has passed are gone.

use bytes::Bytes;
use downriver_api::cluster::v1 as pb;
use downriver_event::{Incarnation, Offset};
use prost::Message as _;

use super::place::times;
use super::{Segment, now_us};
use crate::log::{ObjectRef, ReadError};
use crate::store::{ObjectStore, StoreError};

const FORMAT: u32 = 1;

/// A reference to a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestRef {
    pub base: Offset,
    /// Exclusive.
    pub end: Offset,
    pub object: ObjectRef,
    /// Least and greatest commit time of its segments, microseconds since 1970.
    pub time_min_us: i64,
    pub time_max_us: i64,
    /// Bytes of the segments that it lists.
    pub segment_bytes: u64,
}

impl ManifestRef {
    /// The reference to a manifest of these segments, if there are any.
    pub(crate) fn of(segments: &[Segment], object: ObjectRef) -> Option<Self> {
        let (first, last) = segments.first().zip(segments.last())?;
        let (time_min_us, time_max_us) = times(segments);
        Some(Self {
            base: first.place.base,
            end: last.place.end,
            object,
            time_min_us,
            time_max_us,
            segment_bytes: segments.iter().map(|s| s.place.object.len).sum(),
        })
    }

    #[must_use]
    pub fn to_pb(&self) -> pb::ManifestRef {
        pb::ManifestRef {
            base_offset: self.base.0,
            end_offset: self.end.0,
            object: Some(self.object.to_pb()),
            time_min_us: self.time_min_us,
            time_max_us: self.time_max_us,
            segment_bytes: self.segment_bytes,
        }
    }

    /// # Errors
    /// What is wrong with it.
    pub fn from_pb(manifest: pb::ManifestRef) -> Result<Self, String> {
        Ok(Self {
            base: Offset(manifest.base_offset),
            end: Offset(manifest.end_offset),
            object: ObjectRef::from_pb(manifest.object.ok_or("a manifest without an object")?),
            time_min_us: manifest.time_min_us,
            time_max_us: manifest.time_max_us,
            segment_bytes: manifest.segment_bytes,
        })
    }
}

/// Stores a manifest of these segments under a key of its own.
///
/// # Errors
/// The store's.
pub async fn put_manifest(
    store: &dyn ObjectStore,
    stream: &str,
    incarnation: Incarnation,
    segments: &[Segment],
) -> Result<ObjectRef, StoreError> {
    let manifest = pb::Manifest {
        format: FORMAT,
        stream: stream.to_owned(),
        incarnation: incarnation.0,
        segments: segments.iter().map(Segment::to_pb).collect(),
    };
    let bytes = Bytes::from(manifest.encode_to_vec());
    let unique = uuid::Uuid::now_v7();
    let object = ObjectRef {
        key: format!("log/{stream}/{}-{unique}.manifest", incarnation.0),
        len: bytes.len() as u64,
        crc: crc32c::crc32c(&bytes),
        footer_offset: 0,
        stored_us: now_us(),
    };
    store.put(&object.key, bytes).await?;
    Ok(object)
}

/// Reads the segments that a manifest lists: ascending, without a gap, of just the reference's offsets.
///
/// # Errors
/// The store's, or damaged bytes.
pub async fn read_manifest(
    store: &dyn ObjectStore,
    manifest: &ManifestRef,
) -> Result<Vec<Segment>, ReadError> {
    let object = &manifest.object;
    let bytes = store.get(&object.key).await?;
    open(&bytes, manifest).map_err(|reason| ReadError::Damaged {
        object: object.key.clone(),
        position: 0,
        offset: manifest.base,
        reason,
    })
}

fn open(bytes: &[u8], manifest: &ManifestRef) -> Result<Vec<Segment>, String> {
    let (actual, expected) = (crc32c::crc32c(bytes), manifest.object.crc);
    if actual != expected {
        return Err(format!(
            "the manifest's checksum is {actual:08x}, should be {expected:08x}"
        ));
    }
    let listed = pb::Manifest::decode(bytes).map_err(|error| error.to_string())?;
    if listed.format != FORMAT {
        return Err(format!(
            "manifest format {} is not known to this build",
            listed.format
        ));
    }
    let mut end = manifest.base;
    let mut segments = Vec::with_capacity(listed.segments.len());
    for segment in listed.segments {
        let segment = Segment::from_pb(segment)?;
        if segment.place.base != end {
            return Err(format!("the manifest lists nothing for offset {end}"));
        }
        end = segment.place.end;
        segments.push(segment);
    }
    if end != manifest.end {
        return Err(format!(
            "the manifest ends at {end}, should end at {}",
            manifest.end
        ));
    }
    Ok(segments)
}
