//! The journal's state machine: what a command does to a stream. Pure: no clock, no I/O, no randomness; the
//! same commands give the same state on every node.
//!
//! Fencing happens here and only here: an append is accepted if incarnation, epoch, base offset and position
//! are the stream's, and rejected with what they are otherwise.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use downriver_api::cluster::v1 as pb;
use downriver_event::{Epoch, Incarnation, Offset, SourcePosition, TableId, TableSchema};

use crate::log::{ChunkState, ObjectRef, StreamState};
use crate::segment::SegmentPlace;

/// A stream's replicated state.
#[derive(Clone, Debug, Default)]
pub struct Stream {
    pub incarnation: Incarnation,
    pub epoch: Epoch,
    pub owner: u64,
    pub next: Offset,
    pub position: Option<SourcePosition>,
    pub identity: Bytes,
    pub sealed: Offset,
    pub sealed_position: Option<SourcePosition>,
    pub trimmed: Offset,
    /// Ascending, without a gap, from `trimmed` to `sealed`.
    pub segments: Vec<Segment>,
    /// Ascending, without a gap, from `sealed` to `next`. Never begins with an object.
    pub unsealed: VecDeque<Unsealed>,
    pub schemas: Arc<BTreeMap<(TableId, u32), Arc<TableSchema>>>,
    pub chunks: Arc<BTreeMap<TableId, ChunkState>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    pub place: SegmentPlace,
    pub time_min_us: i64,
    pub time_max_us: i64,
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
    /// Where its append moved the stream to.
    pub position_after: Option<SourcePosition>,
    /// Whether it is the last of its append: the stream's position is then `position_after`.
    pub ends_append: bool,
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
}

/// What applying a command answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Applied {
    Opened,
    Appended {
        next: Offset,
    },
    Rejected {
        epoch: Epoch,
        next: Offset,
        position: Option<SourcePosition>,
    },
    Sealed,
    /// The command no longer fits the state; nothing was changed.
    Stale,
    Trimmed,
    Dropped,
    NoStream,
    /// The command is malformed; nothing was changed.
    Invalid(&'static str),
}

/// All streams of one group.
#[derive(Clone, Debug, Default)]
pub struct Journal {
    pub streams: BTreeMap<String, Stream>,
}

impl Journal {
    pub fn open(&mut self, command: &pb::OpenStream) -> Applied {
        let stream = self
            .streams
            .entry(command.stream.clone())
            .or_insert_with(|| Stream {
                incarnation: Incarnation(1),
                ..Stream::default()
            });
        stream.epoch = Epoch(stream.epoch.0 + 1);
        stream.owner = command.node_id;
        if stream.position.is_none() {
            stream.position = command.start.as_ref().and_then(SourcePosition::from_pb);
            stream.sealed_position.clone_from(&stream.position);
            stream.identity.clone_from(&command.identity);
        }
        Applied::Opened
    }

    pub fn append(&mut self, command: pb::AppendBlocks, raft_index: u64) -> Applied {
        let Some(stream) = self.streams.get_mut(&command.stream) else {
            return Applied::NoStream;
        };
        let before = command
            .position_before
            .as_ref()
            .and_then(SourcePosition::from_pb);
        let fits = command.incarnation == stream.incarnation.0
            && command.epoch == stream.epoch.0
            && command.base_offset == stream.next.0
            && before == stream.position;
        if !fits {
            return Applied::Rejected {
                epoch: stream.epoch,
                next: stream.next,
                position: stream.position.clone(),
            };
        }
        stream.append(command, raft_index)
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
            if block.ends_append {
                stream.sealed_position.clone_from(&block.position_after);
            }
            position_after = block.position_after;
        }
        stream.segments.push(Segment {
            place: SegmentPlace {
                base: stream.sealed,
                end,
                epoch,
                object: object_ref(object),
                position_after,
            },
            time_min_us: command.time_min_us,
            time_max_us: command.time_max_us,
        });
        stream.sealed = end;
        stream.take_leading_objects();
        Applied::Sealed
    }

    pub fn trim(&mut self, command: &pb::TrimStream) -> Applied {
        let Some(stream) = self.streams.get_mut(&command.stream) else {
            return Applied::NoStream;
        };
        let gone = stream
            .segments
            .partition_point(|s| s.place.end.0 <= command.offset);
        if let Some(last) = stream.segments.drain(..gone).next_back() {
            stream.trimmed = last.place.end;
        }
        Applied::Trimmed
    }

    pub fn drop_stream(&mut self, command: &pb::DropStream) -> Applied {
        match self.streams.remove(&command.stream) {
            Some(_) => Applied::Dropped,
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
        let position_after = command
            .position_after
            .as_ref()
            .and_then(SourcePosition::from_pb);
        let mut blocks = Vec::with_capacity(command.blocks.len());
        let mut base = self.next;
        for block in command.blocks {
            let payload = match block.payload {
                Some(pb::block_payload::Payload::Inline(frame)) => UnsealedPayload::Inline(frame),
                Some(pb::block_payload::Payload::Object(object)) => {
                    UnsealedPayload::Object(object_ref(&object))
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
                ends_append: false,
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
            Some(last) => {
                last.ends_append = true;
                last.position_after.clone_from(&position_after);
            }
            None => self.sealed_position = position_after,
        }
        self.unsealed.extend(blocks);
        self.take_leading_objects();
        Applied::Appended { next: self.next }
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
            if block.ends_append {
                self.sealed_position.clone_from(&block.position_after);
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

    /// The inline blocks that come next into a segment.
    pub fn inline_prefix(&self) -> impl Iterator<Item = &Unsealed> {
        let inline = |block: &&Unsealed| matches!(block.payload, UnsealedPayload::Inline(_));
        self.unsealed.iter().take_while(inline)
    }

    #[must_use]
    pub fn unsealed_bytes(&self) -> u64 {
        let len = |block: &Unsealed| match &block.payload {
            UnsealedPayload::Inline(frame) => frame.len() as u64,
            UnsealedPayload::Object(_) => 0,
        };
        self.unsealed.iter().map(len).sum()
    }

    /// The state as everyone else sees it.
    #[must_use]
    pub fn state(&self) -> StreamState {
        StreamState {
            incarnation: self.incarnation,
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

fn object_ref(object: &pb::ObjectRef) -> ObjectRef {
    ObjectRef {
        key: object.key.clone(),
        len: object.len,
        crc: object.crc,
        footer_offset: object.footer_offset,
    }
}
