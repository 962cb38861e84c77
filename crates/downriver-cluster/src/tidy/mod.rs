//! The leader keeps little of what is old: adjacent small segments become one, the oldest references move into
//! manifests, what retention has passed is forgotten, and objects that nothing refers to are deleted.
//!
//! Every step writes first and proposes then; a command that no longer fits the state changes nothing, and what was
//! written for it is deleted. What is to be deleted stands in the replicated state until it is, so a crash leaves
//! nothing behind. A reader that comes too late for an object looks again where its offsets are now.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use downriver_api::cluster::v1 as pb;
use downriver_api::cluster::v1::command::Kind as C;
use downriver_event::{Incarnation, Offset};
use downriver_log::journal::Stream;
use downriver_log::segment::{self, ManifestRef, MergeError, Segment, SegmentPlace};
use downriver_log::{Payload, ReadError, StoreError};

use crate::node::{ControlError, Node};

/// Objects of one stream that are deleted before they are forgotten.
const DELETED_AT_ONCE: usize = 500;
/// Objects of one stream that wait for a backup; where backups are rare or fail, the oldest ones do not.
const SPARED_MAX: usize = 10_000;

#[derive(Debug, thiserror::Error)]
enum TidyError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Merge(#[from] MergeError),
    #[error(transparent)]
    Control(#[from] ControlError),
}

/// What this leader knows of a stream beside the replicated state.
#[derive(Debug, Default)]
struct Known {
    incarnation: Incarnation,
    /// Segments before it are damaged, or were tried with one that is.
    merge_from: Offset,
    /// Segments of manifests that end at or before it are deleted.
    deleted: Offset,
}

pub(crate) async fn run(node: Arc<Node>) {
    let mut known: HashMap<String, Known> = HashMap::new();
    loop {
        tokio::time::sleep(node.config().tidy_interval).await;
        if !node.leads() {
            known.clear();
            continue;
        }
        let streams: HashMap<String, Incarnation> = node.with_state(|state| {
            let streams = state.journal.streams.iter();
            streams
                .map(|(name, s)| (name.clone(), s.incarnation))
                .collect()
        });
        known.retain(|name, of| streams.get(name) == Some(&of.incarnation));
        for (name, incarnation) in streams {
            let known = known.entry(name.clone()).or_insert_with(|| Known {
                incarnation,
                ..Known::default()
            });
            let stream = Tidied {
                node: &node,
                name,
                incarnation,
            };
            if let Err(error) = stream.tidy(known).await {
                let stream = stream.name;
                tracing::warn!(stream, error = %error, "old segments cannot be tidied up now");
            }
        }
    }
}

struct Tidied<'a> {
    node: &'a Node,
    name: String,
    incarnation: Incarnation,
}

impl Tidied<'_> {
    /// A step that fails keeps no other back: a full store cannot take a merged segment, and has room again when what
    /// retention has passed is deleted.
    async fn tidy(&self, known: &mut Known) -> Result<(), TidyError> {
        let steps = [
            self.trim().await,
            self.delete_garbage().await,
            self.delete_manifests(known).await,
            self.merge_all(known).await,
            self.fold().await,
        ];
        steps.into_iter().collect()
    }

    async fn merge_all(&self, known: &mut Known) -> Result<(), TidyError> {
        while self.merge(known).await? {}
        Ok(())
    }

    /// `None`: the stream is gone, or is another one of its name by now.
    fn look<T>(&self, look: impl FnOnce(&Stream) -> T) -> Option<T> {
        self.node.with_state(|state| {
            let stream = state.journal.streams.get(&self.name)?;
            (stream.incarnation == self.incarnation).then(|| look(stream))
        })
    }

    /// Merges the first run that is worth it; whether there was one.
    async fn merge(&self, known: &mut Known) -> Result<bool, TidyError> {
        let config = self.node.config();
        let from = known.merge_from;
        let run = self.look(|stream| {
            let first = stream.segments.partition_point(|s| s.place.base < from);
            let segments = &stream.segments[first..];
            let (min, max) = (config.merge_segments_min, config.segment_bytes_max);
            let run = segment::worth_merging(segments, min, max)?;
            let places = segments[run].iter().map(|s| s.place.clone());
            Some(places.collect::<Vec<SegmentPlace>>())
        });
        let Some(places) = run.flatten() else {
            return Ok(false);
        };
        let of = (self.name.as_str(), self.incarnation);
        let merged = segment::merge(self.node.segments(), config.data.clone(), of, &places).await;
        let (merged, schemas) = match merged {
            Ok(merged) => merged,
            Err(MergeError::Read(error @ ReadError::Damaged { offset, .. })) => {
                let damaged = places.iter().find(|place| offset < place.end);
                known.merge_from = damaged.map_or(from, |place| place.end);
                let (stream, from) = (&self.name, known.merge_from);
                tracing::error!(stream, %error, "a segment is damaged; only those from offset {from} on are merged");
                return Ok(true);
            }
            Err(error) => return Err(error.into()),
        };
        let Payload::Object { object, .. } = merged.put(&**self.node.store(), &schemas).await?
        else {
            unreachable!("a segment is an object");
        };
        let command = pb::MergeSegments {
            group: 0,
            stream: self.name.clone(),
            incarnation: self.incarnation.0,
            base_offset: places[0].base.0,
            end_offset: places[places.len() - 1].end.0,
            segments: u32::try_from(places.len()).expect("a run is short"),
            object: Some(object.to_pb()),
        };
        self.propose(C::MergeSegments(command), &object.key).await?;
        Ok(true)
    }

    /// Moves the older half of the references into a manifest, when there are too many.
    async fn fold(&self) -> Result<(), TidyError> {
        let max = self.node.config().segment_refs_max;
        let oldest = self.look(|stream| {
            let kept = max / 2;
            let too_many = stream.segments.len() > max;
            too_many.then(|| stream.segments[..stream.segments.len() - kept].to_vec())
        });
        let Some(oldest) = oldest.flatten() else {
            return Ok(());
        };
        let store = &**self.node.store();
        let object = segment::put_manifest(store, &self.name, self.incarnation, &oldest).await?;
        let command = pb::FoldSegments {
            group: 0,
            stream: self.name.clone(),
            incarnation: self.incarnation.0,
            base_offset: oldest[0].place.base.0,
            end_offset: oldest[oldest.len() - 1].place.end.0,
            segments: u32::try_from(oldest.len()).expect("references fit memory"),
            object: Some(object.to_pb()),
        };
        self.propose(C::FoldSegments(command), &object.key).await
    }

    /// Proposes what an object was written for, and deletes the object if the command no longer fits. An object
    /// whose command is undecided is left: it may be in use.
    async fn propose(&self, command: C, key: &str) -> Result<(), TidyError> {
        match self.node.propose(command).await {
            Ok(_) => Ok(()),
            Err(error @ (ControlError::Conflict(_) | ControlError::Invalid(_))) => {
                self.node.store().delete(key).await?;
                Err(error.into())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Forgets what is older or more than wanted, as far as every protected reader has it or was waited for.
    async fn trim(&self) -> Result<(), TidyError> {
        let Some(protected) = self.node.protected() else {
            return Ok(());
        };
        let seen = self.look(|stream| {
            let manifests = stream.manifests.clone();
            (
                manifests,
                stream.segments.clone(),
                stream.trimmed,
                stream.sealed,
            )
        });
        let Some((manifests, segments, trimmed, sealed)) = seen else {
            return Ok(());
        };
        let keep_from = protected(&self.name).unwrap_or(sealed);
        let listed: u64 = manifests.iter().map(|m| m.segment_bytes).sum();
        let mut rule = Rule {
            now_us: now_us(),
            retention: self.node.config().retention,
            keep_from,
            trimmed,
            bytes: listed + segments.iter().map(|s| s.place.object.len).sum::<u64>(),
        };
        let mut to = trimmed;
        let mut all_gone = true;
        for manifest in &manifests {
            let segments = self.node.segments().manifest(manifest).await?;
            (to, all_gone) = rule.pass(&segments, to);
            if !all_gone {
                break;
            }
        }
        if all_gone {
            (to, _) = rule.pass(&segments, to);
        }
        if to > trimmed {
            let trim = pb::TrimStream {
                group: 0,
                stream: self.name.clone(),
                offset: to.0,
                incarnation: self.incarnation.0,
            };
            self.node.propose(C::TrimStream(trim)).await?;
        }
        Ok(())
    }

    /// Deletes what nothing refers to. What was replaced by another object stays until the newest backup was taken after that:
    /// a restored log would begin behind it.
    async fn delete_garbage(&self) -> Result<(), TidyError> {
        let backed_up = self.node.newest_backup().map_or(0, |newest| newest.index);
        loop {
            let keys = self.look(|stream| {
                // The oldest ones come first.
                let too_many = stream.garbage.len().saturating_sub(SPARED_MAX);
                let all = stream.garbage.iter().enumerate();
                let may_go = all.filter(|(at, one)| one.since <= backed_up || *at < too_many);
                let keys = may_go.map(|(_, one)| one.key.clone());
                keys.take(DELETED_AT_ONCE).collect::<Vec<_>>()
            });
            match keys.filter(|keys| !keys.is_empty()) {
                Some(keys) => self.delete(keys).await?,
                None => return Ok(()),
            }
        }
    }

    /// Deletes the segments that retention has passed in manifests, and manifests that it has passed whole.
    async fn delete_manifests(&self, known: &mut Known) -> Result<(), TidyError> {
        let passed = self.look(|stream| {
            let passed = |m: &&ManifestRef| m.base < stream.trimmed;
            let manifests: Vec<_> = stream.manifests.iter().filter(passed).cloned().collect();
            (manifests, stream.trimmed)
        });
        let Some((manifests, trimmed)) = passed else {
            return Ok(());
        };
        for manifest in manifests {
            let segments = match self.node.segments().manifest(&manifest).await {
                Ok(segments) => segments,
                // Deleted, and not forgotten yet: what it lists was deleted before it.
                Err(ReadError::Store(StoreError::NotFound(_))) if manifest.end <= trimmed => {
                    Arc::default()
                }
                Err(error) => return Err(error.into()),
            };
            for segment in &*segments {
                let end = segment.place.end;
                if end <= trimmed && end > known.deleted {
                    self.node.store().delete(&segment.place.object.key).await?;
                    known.deleted = end;
                }
            }
            if manifest.end <= trimmed {
                self.delete(vec![manifest.object.key]).await?;
            }
        }
        Ok(())
    }

    async fn delete(&self, keys: Vec<String>) -> Result<(), TidyError> {
        for key in &keys {
            self.node.store().delete(key).await?;
        }
        let forget = pb::ForgetObjects {
            group: 0,
            stream: self.name.clone(),
            keys,
        };
        self.node.propose(C::ForgetObjects(forget)).await?;
        Ok(())
    }
}

/// What retention takes, the oldest first.
struct Rule {
    now_us: i64,
    retention: crate::Retention,
    /// A protected reader has not read what ends after it.
    keep_from: Offset,
    trimmed: Offset,
    /// Of the segments that are kept so far.
    bytes: u64,
}

impl Rule {
    /// How far these segments go, `to` if none does, and whether all of them do.
    fn pass(&mut self, segments: &[Segment], mut to: Offset) -> (Offset, bool) {
        for segment in segments {
            if segment.place.end > self.trimmed {
                if !self.takes(segment) {
                    return (to, false);
                }
                to = segment.place.end;
            }
            self.bytes -= segment.place.object.len;
        }
        (to, true)
    }

    fn takes(&self, segment: &Segment) -> bool {
        // What was committed long ago may have come a moment ago. Only segments of older builds do not say when.
        let stored_us = match segment.place.object.stored_us {
            0 => segment.time_max_us,
            stored_us => stored_us,
        };
        let older_than = |age| stored_us < self.now_us.saturating_sub(micros(age));
        if segment.place.end > self.keep_from {
            return older_than(self.retention.protected_max_age);
        }
        let much = self.retention.max_bytes.is_some_and(|max| self.bytes > max);
        much || older_than(self.retention.max_age)
    }
}

fn now_us() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, micros)
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
