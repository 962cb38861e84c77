//! The journal's state machine: what a command does to a stream. Pure: no clock, no I/O, no randomness; the
//! same commands give the same state on every node.
//!
//! Fencing happens here and only here: an append is accepted if incarnation, epoch, base offset and position
//! are the stream's, and rejected with what they are otherwise.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use downriver_api::cluster::v1 as pb;
use downriver_event::planted::Bug;
use downriver_event::{
    EndedIncarnations, Epoch, Incarnation, Offset, SourcePosition, TableId, TableSchema,
};

use crate::log::{ChunkState, ObjectRef, StoredBlock, StreamState};
use crate::segment::{ManifestRef, Segment, SegmentPlace};

/// A stream's replicated state.
#[derive(Clone, Debug, Default)]
pub struct Stream {
    pub incarnation: Incarnation,
    pub ended: EndedIncarnations,
    pub epoch: Epoch,
    pub owner: u64,
    pub next: Offset,
    pub position: Option<SourcePosition>,
    pub identity: Bytes,
    pub sealed: Offset,
    pub sealed_position: Option<SourcePosition>,
    pub trimmed: Offset,
    /// Ascending, without a gap, up to the first of `segments`. `trimmed` may lie in the first, or behind it until
    /// all that it lists is deleted.
    pub manifests: Vec<ManifestRef>,
    /// Ascending, without a gap, to `sealed`; from `trimmed`, if there are no manifests.
    pub segments: Vec<Segment>,
    /// What nothing refers to any more and is still to be deleted.
    pub garbage: Vec<Garbage>,
    /// Ascending, without a gap, from `sealed` to `next`. Never begins with an object.
    pub unsealed: VecDeque<Unsealed>,
    pub schemas: Arc<BTreeMap<(TableId, u32), Arc<TableSchema>>>,
    pub chunks: Arc<BTreeMap<TableId, ChunkState>>,
}

impl Stream {
    /// Whether it has this object: as a segment, a manifest, a block's, or one that is to be deleted.
    #[must_use]
    pub fn refers_to(&self, key: &str) -> bool {
        let mut segments = self.segments.iter();
        let mut manifests = self.manifests.iter();
        let mut unsealed = self.unsealed.iter();
        segments.any(|segment| segment.place.object.key == key)
            || manifests.any(|manifest| manifest.object.key == key)
            || unsealed.any(|block| matches!(&block.payload, UnsealedPayload::Object(object) if object.key == key))
            || self.garbage.iter().any(|garbage| garbage.key == key)
    }
}

/// An object that is to be deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Garbage {
    pub key: String,
    /// The Raft entry since which another object has its events: a backup of before refers to this one. 0: nobody is to have
    /// them any more.
    pub since: u64,
}

impl Garbage {
    fn gone(segment: Segment) -> Self {
        Self {
            key: segment.place.object.key,
            since: 0,
        }
    }
}

/// A committed block that is in no segment yet, or an object that waits for the blocks before it.
#[derive(Clone, Debug)]
pub struct Unsealed {
    pub base: Offset,
    pub events: u64,
    pub epoch: Epoch,
    pub payload: UnsealedPayload,
    pub time_min_us: i64,
    pub time_max_us: i64,
    /// Tables of an inline block.
    pub tables: Vec<u32>,
    /// Where its append moved the stream to: what its transactions without a position of their own have, for good.
    pub position_after: Option<SourcePosition>,
    /// The stream's sealed position once this block is sealed, if it is the last of its append: `position_after`, or where
    /// appends without blocks moved the stream to since.
    pub seals: Option<SourcePosition>,
    /// Of the Raft entry that brought it: the Raft log is kept from there on.
    pub raft_index: u64,
}

#[derive(Clone, Debug)]
pub enum UnsealedPayload {
    Inline(Bytes),
    Object(ObjectRef),
}

impl Unsealed {
    #[must_use]
    pub fn end(&self) -> Offset {
        self.base.plus(self.events)
    }

    /// The frame of an inline block.
    #[must_use]
    pub fn inline(&self) -> Option<&Bytes> {
        match &self.payload {
            UnsealedPayload::Inline(frame) => Some(frame),
            UnsealedPayload::Object(_) => None,
        }
    }

    /// As it is read; `frame` is its payload.
    #[must_use]
    pub fn stored(&self, frame: &Bytes) -> StoredBlock {
        StoredBlock {
            base: self.base,
            events: u32::try_from(self.events).expect("an inline block's events fit its message"),
            epoch: self.epoch,
            frame: frame.clone(),
            position_after: self.position_after.clone(),
        }
    }
}

/// What applying a command answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Applied {
    /// Nothing to say but that it is done.
    Done,
    Appended {
        next: Offset,
    },
    Rejected {
        epoch: Epoch,
        next: Offset,
        position: Option<SourcePosition>,
    },
    /// The command no longer fits the state; nothing was changed.
    Stale,
    NoStream,
    /// The command is malformed; nothing was changed.
    Invalid(&'static str),
}

/// All streams of one group.
#[derive(Clone, Debug, Default)]
pub struct Journal {
    pub streams: BTreeMap<String, Stream>,
    /// The last incarnation of streams that are gone: what was read or is on its way from one of them is never taken
    /// for a later one's.
    pub dropped: BTreeMap<String, Incarnation>,
}

const UNKNOWN_POSITION: Applied =
    Applied::Invalid("a source position that this build does not know");

impl Journal {
    pub fn open(&mut self, command: &pb::OpenStream) -> Applied {
        let Ok(start) = SourcePosition::from_field(command.start.as_ref()) else {
            return UNKNOWN_POSITION;
        };
        let dropped = &mut self.dropped;
        let stream = self
            .streams
            .entry(command.stream.clone())
            .or_insert_with_key(|name| Stream {
                incarnation: Incarnation(dropped.remove(name).map_or(1, |last| last.0 + 1)),
                ..Stream::default()
            });
        stream.epoch = Epoch(stream.epoch.0 + 1);
        stream.owner = command.node_id;
        if stream.position.is_none() {
            stream.position = start;
            stream.sealed_position.clone_from(&stream.position);
            stream.identity.clone_from(&command.identity);
        }
        Applied::Done
    }

    pub fn append(&mut self, command: pb::AppendBlocks, raft_index: u64) -> Applied {
        let Some(stream) = self.streams.get_mut(&command.stream) else {
            return Applied::NoStream;
        };
        let Ok(before) = SourcePosition::from_field(command.position_before.as_ref()) else {
            return UNKNOWN_POSITION;
        };
        let is_owners = command.epoch == stream.epoch.0 || Bug::AnyEpoch.is_planted();
        let follows = command.base_offset == stream.next.0 && before == stream.position
            || Bug::AnyPlace.is_planted();
        if command.incarnation != stream.incarnation.0 || !is_owners || !follows {
            return Applied::Rejected {
                epoch: stream.epoch,
                next: stream.next,
                position: stream.position.clone(),
            };
        }
        stream.append(command, raft_index)
    }

    /// An append that gives the stream another identity, and with `anew` lets the position begin elsewhere.
    pub fn move_source(&mut self, command: pb::MoveSource, raft_index: u64) -> Applied {
        let Some(append) = command.append else {
            return Applied::Invalid("a move without an append");
        };
        if command.anew && append.blocks.is_empty() {
            return Applied::Invalid("a move that the log does not show");
        }
        let (name, base) = (append.stream.clone(), Offset(append.base_offset));
        let applied = self.append(append, raft_index);
        if let (Applied::Appended { .. }, Some(stream)) = (&applied, self.streams.get_mut(&name)) {
            stream.identity = command.identity;
            if command.anew {
                stream.forget_sealed_position(base);
            }
        }
        applied
    }

    pub fn seal(&mut self, command: &pb::SealSegment) -> Applied {
        let Some(stream) = self.streams.get_mut(&command.stream) else {
            return Applied::NoStream;
        };
        let Some(object) = &command.object else {
            return Applied::Invalid("a segment without an object");
        };
        let end = Offset(command.end_offset);
        let fits = command.incarnation == stream.incarnation.0
            && command.base_offset == stream.sealed.0
            && stream.inline_prefix().any(|block| block.end() == end);
        if !fits {
            return Applied::Stale;
        }
        let mut position_after = None;
        let mut epoch = stream.epoch;
        while let Some(block) = stream.unsealed.pop_front_if(|block| block.end() <= end) {
            epoch = block.epoch;
            if block.seals.is_some() {
                stream.sealed_position = block.seals;
            }
            position_after = block.position_after;
        }
        stream.segments.push(Segment {
            place: SegmentPlace {
                base: stream.sealed,
                end,
                epoch,
                object: ObjectRef::from_pb(object.clone()),
                position_after,
            },
            time_min_us: command.time_min_us,
            time_max_us: command.time_max_us,
        });
        stream.sealed = end;
        stream.take_leading_objects();
        Applied::Done
    }

    /// Puts one segment in the place of those between the command's offsets. `index` is the Raft entry's.
    pub fn merge(&mut self, command: &pb::MergeSegments, index: u64) -> Applied {
        let Some(stream) = self.streams.get_mut(&command.stream) else {
            return Applied::NoStream;
        };
        let Some(object) = &command.object else {
            return Applied::Invalid("a segment without an object");
        };
        let offsets = Offset(command.base_offset)..Offset(command.end_offset);
        let found = stream.segments_of(Incarnation(command.incarnation), offsets, command.segments);
        let Some(range) = found else {
            return Applied::Stale;
        };
        let Some(merged) = Segment::of(&stream.segments[range.clone()], object) else {
            return Applied::Invalid("a merge of no segments");
        };
        let replaced = stream.segments.splice(range, [merged]);
        stream.garbage.extend(replaced.map(|segment| Garbage {
            key: segment.place.object.key,
            since: index,
        }));
        Applied::Done
    }

    /// Moves the oldest references into a manifest.
    pub fn fold(&mut self, command: &pb::FoldSegments) -> Applied {
        let Some(stream) = self.streams.get_mut(&command.stream) else {
            return Applied::NoStream;
        };
        let Some(object) = &command.object else {
            return Applied::Invalid("a manifest without an object");
        };
        let offsets = Offset(command.base_offset)..Offset(command.end_offset);
        let found = stream.segments_of(Incarnation(command.incarnation), offsets, command.segments);
        let Some(range) = found.filter(|range| range.start == 0) else {
            return Applied::Stale;
        };
        let object = ObjectRef::from_pb(object.clone());
        let Some(manifest) = ManifestRef::of(&stream.segments[range.clone()], object) else {
            return Applied::Invalid("a manifest of no segments");
        };
        stream.segments.drain(range);
        stream.manifests.push(manifest);
        Applied::Done
    }

    /// Forgets the events before an offset. What a manifest lists is deleted before the manifest is forgotten; whole
    /// segments behind the manifests become garbage.
    pub fn trim(&mut self, command: &pb::TrimStream) -> Applied {
        let Some(stream) = self.streams.get_mut(&command.stream) else {
            return Applied::NoStream;
        };
        if command.incarnation != 0 && command.incarnation != stream.incarnation.0 {
            return Applied::Stale;
        }
        let offset = Offset(command.offset);
        if let Some(last) = stream.manifests.last() {
            stream.trimmed = stream.trimmed.max(offset.min(last.end));
        }
        let gone = stream.segments.partition_point(|s| s.place.end <= offset);
        for segment in stream.segments.drain(..gone) {
            stream.trimmed = segment.place.end;
            stream.garbage.push(Garbage::gone(segment));
        }
        Applied::Done
    }

    /// Forgets garbage that was deleted, and manifests that were deleted with all that they list.
    pub fn forget(&mut self, command: &pb::ForgetObjects) -> Applied {
        let Some(stream) = self.streams.get_mut(&command.stream) else {
            return Applied::NoStream;
        };
        let deleted = |key: &String| command.keys.contains(key);
        let trimmed = stream.trimmed;
        stream.garbage.retain(|garbage| !deleted(&garbage.key));
        stream
            .manifests
            .retain(|manifest| manifest.end > trimmed || !deleted(&manifest.object.key));
        Applied::Done
    }

    pub fn drop_stream(&mut self, command: &pb::DropStream) -> Applied {
        match self.streams.remove(&command.stream) {
            Some(stream) => {
                self.dropped
                    .insert(command.stream.clone(), stream.incarnation);
                Applied::Done
            }
            None => Applied::NoStream,
        }
    }

    /// The first Raft index whose bytes are in no segment; the Raft log is kept from there on.
    #[must_use]
    pub fn first_unsealed_index(&self) -> Option<u64> {
        self.streams
            .values()
            .filter_map(|stream| stream.unsealed.front())
            .map(|b| b.raft_index)
            .min()
    }

    /// Bytes of inline blocks that are in no segment.
    #[must_use]
    pub fn unsealed_bytes(&self) -> u64 {
        self.streams.values().map(Stream::unsealed_bytes).sum()
    }
}

impl Stream {
    fn append(&mut self, command: pb::AppendBlocks, raft_index: u64) -> Applied {
        let mut schemas = Vec::with_capacity(command.schemas.len());
        for schema in &command.schemas {
            match TableSchema::from_pb(schema) {
                Ok(schema) => schemas.push(Arc::new(schema)),
                Err(_) => return Applied::Invalid("a schema that this build does not know"),
            }
        }
        let Ok(position_after) = SourcePosition::from_field(command.position_after.as_ref()) else {
            return UNKNOWN_POSITION;
        };
        let mut blocks = Vec::with_capacity(command.blocks.len());
        let mut base = self.next;
        for block in command.blocks {
            let payload = match block.payload {
                Some(pb::block_payload::Payload::Inline(frame)) => UnsealedPayload::Inline(frame),
                Some(pb::block_payload::Payload::Object(object)) => {
                    UnsealedPayload::Object(ObjectRef::from_pb(object))
                }
                None => return Applied::Invalid("a block without a payload"),
            };
            blocks.push(Unsealed {
                base,
                events: block.events,
                epoch: self.epoch,
                payload,
                time_min_us: block.time_min_us,
                time_max_us: block.time_max_us,
                tables: block.table_ids,
                position_after: position_after.clone(),
                seals: None,
                raft_index,
            });
            base = base.plus(block.events);
        }
        if !schemas.is_empty() {
            let known = Arc::make_mut(&mut self.schemas);
            known.extend(
                schemas
                    .into_iter()
                    .map(|schema| ((schema.id, schema.version), schema)),
            );
        }
        for chunk in command.chunks_done {
            self.chunk_done(chunk);
        }
        self.next = base;
        self.position.clone_from(&position_after);
        match blocks.last_mut().or_else(|| self.unsealed.back_mut()) {
            Some(last) if !Bug::SealedEarly.is_planted() => last.seals = position_after,
            Some(_) => self.sealed_position = position_after,
            None => self.sealed_position = position_after,
        }
        self.unsealed.extend(blocks);
        self.take_leading_objects();
        Applied::Appended { next: self.next }
    }

    /// No position from before this offset is acknowledged any more.
    fn forget_sealed_position(&mut self, base: Offset) {
        for block in self.unsealed.iter_mut().filter(|block| block.base < base) {
            block.seals = None;
        }
        if self.sealed <= base {
            self.sealed_position = None;
        }
    }

    fn chunk_done(&mut self, chunk: pb::ChunkDone) {
        let chunks = Arc::make_mut(&mut self.chunks);
        let before = chunks.get(&TableId(chunk.table_id));
        let rows = before
            .filter(|b| b.generation == chunk.generation)
            .map_or(0, |b| b.rows);
        let state = ChunkState {
            generation: chunk.generation,
            resume_after: chunk.resume_after,
            rows: rows + chunk.rows,
            done: chunk.last,
        };
        chunks.insert(TableId(chunk.table_id), state);
    }

    /// Objects that have everything before them in segments are segments themselves, in their place.
    fn take_leading_objects(&mut self) {
        let is_object = |block: &mut Unsealed| matches!(block.payload, UnsealedPayload::Object(_));
        while let Some(block) = self.unsealed.pop_front_if(is_object) {
            let UnsealedPayload::Object(object) = block.payload else {
                continue;
            };
            if block.seals.is_some() {
                self.sealed_position = block.seals;
            }
            self.sealed = block.base.plus(block.events);
            self.segments.push(Segment {
                place: SegmentPlace {
                    base: block.base,
                    end: self.sealed,
                    epoch: block.epoch,
                    object,
                    position_after: block.position_after,
                },
                time_min_us: block.time_min_us,
                time_max_us: block.time_max_us,
            });
        }
    }

    /// The references between two offsets, if there are just so many.
    fn segments_of(
        &self,
        incarnation: Incarnation,
        offsets: Range<Offset>,
        segments: u32,
    ) -> Option<Range<usize>> {
        let start = self
            .segments
            .partition_point(|s| s.place.base < offsets.start);
        let range = start..start.checked_add(segments as usize)?;
        let (first, last) = {
            let found = self.segments.get(range.clone())?;
            found.first().zip(found.last())?
        };
        let fits = incarnation == self.incarnation
            && first.place.base == offsets.start
            && last.place.end == offsets.end;
        fits.then_some(range)
    }

    /// The manifest that lists the segment of an offset.
    #[must_use]
    pub fn manifest_of(&self, offset: Offset) -> Option<&ManifestRef> {
        let at = self.manifests.partition_point(|m| m.end <= offset);
        self.manifests.get(at)
    }

    /// The inline blocks that come next into a segment.
    pub fn inline_prefix(&self) -> impl Iterator<Item = &Unsealed> {
        self.unsealed
            .iter()
            .take_while(|block| block.inline().is_some())
    }

    #[must_use]
    pub fn unsealed_bytes(&self) -> u64 {
        let frames = self.unsealed.iter().filter_map(Unsealed::inline);
        frames.map(|frame| frame.len() as u64).sum()
    }

    /// What came after this is lost for good: the log goes on in another incarnation, which nobody had, and under epochs that
    /// nobody had. The objects of events before `from` are lost as well; it lies where one of them ends.
    pub fn begin_anew(&mut self, incarnation: Incarnation, epoch: Epoch, from: Offset) {
        self.ended.push(self.incarnation, self.next);
        self.incarnation = incarnation;
        self.epoch = epoch;
        self.owner = 0;
        if from <= self.trimmed {
            return;
        }
        self.trimmed = from;
        self.manifests.retain(|manifest| manifest.end > from);
        let gone = self.segments.partition_point(|s| s.place.end <= from);
        let gone = self.segments.drain(..gone);
        self.garbage.extend(gone.map(Garbage::gone));
        self.unsealed.retain(|block| block.end() > from);
        self.sealed = self.sealed.max(from);
    }

    /// The state as everyone else sees it.
    #[must_use]
    pub fn state(&self) -> StreamState {
        StreamState {
            incarnation: self.incarnation,
            ended: self.ended.clone(),
            epoch: self.epoch,
            trimmed: self.trimmed,
            sealed: self.sealed,
            next: self.next,
            position: self.position.clone(),
            sealed_position: self.sealed_position.clone(),
            identity: self.identity.clone(),
            schemas: Arc::clone(&self.schemas),
            chunks: Arc::clone(&self.chunks),
        }
    }
}
