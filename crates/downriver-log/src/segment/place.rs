//! Where a segment lies in its stream.

use downriver_api::cluster::v1 as pb;
use downriver_event::{Epoch, Offset, SourcePosition};

use crate::log::ObjectRef;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentPlace {
    pub base: Offset,
    /// Exclusive.
    pub end: Offset,
    /// Of the owner that appended its blocks, where its footer does not name another.
    pub epoch: Epoch,
    pub object: ObjectRef,
    /// Where the append of its last block moved the stream to.
    pub position_after: Option<SourcePosition>,
}

/// A reference to a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    pub place: SegmentPlace,
    /// Least and greatest commit time, microseconds since 1970.
    pub time_min_us: i64,
    pub time_max_us: i64,
}

impl Segment {
    /// The reference to a segment that holds the blocks of these, if there are any.
    pub(crate) fn of(merged: &[Self], object: &pb::ObjectRef) -> Option<Self> {
        let (first, last) = merged.first().zip(merged.last())?;
        let (time_min_us, time_max_us) = times(merged);
        let stored = merged.iter().map(|part| part.place.object.stored_us).max();
        Some(Self {
            place: SegmentPlace {
                base: first.place.base,
                object: ObjectRef {
                    stored_us: stored.unwrap_or_default(),
                    ..ObjectRef::from_pb(object.clone())
                },
                ..last.place.clone()
            },
            time_min_us,
            time_max_us,
        })
    }

    #[must_use]
    pub fn to_pb(&self) -> pb::SegmentRef {
        let place = &self.place;
        pb::SegmentRef {
            base_offset: place.base.0,
            end_offset: place.end.0,
            object: Some(place.object.to_pb()),
            time_min_us: self.time_min_us,
            time_max_us: self.time_max_us,
            position_after: place.position_after.as_ref().map(SourcePosition::to_pb),
            epoch: place.epoch.0,
        }
    }

    /// # Errors
    /// What is wrong with it.
    pub fn from_pb(segment: pb::SegmentRef) -> Result<Self, String> {
        let object = segment.object.ok_or("a segment without an object")?;
        let position_after = SourcePosition::from_field(segment.position_after.as_ref())
            .map_err(|unknown| unknown.to_string())?;
        Ok(Self {
            place: SegmentPlace {
                base: Offset(segment.base_offset),
                end: Offset(segment.end_offset),
                epoch: Epoch(segment.epoch),
                object: ObjectRef::from_pb(object),
                position_after,
            },
            time_min_us: segment.time_min_us,
            time_max_us: segment.time_max_us,
        })
    }
}

/// Least and greatest commit time of adjacent segments; there is at least one.
pub(crate) fn times(segments: &[Segment]) -> (i64, i64) {
    let least = segments.iter().map(|segment| segment.time_min_us).min();
    let greatest = segments.iter().map(|segment| segment.time_max_us).max();
    (least.unwrap_or_default(), greatest.unwrap_or_default())
}
