//! Objects that nothing refers to any more but the newest backup: they stay in the store until the next one, or the log of a
//! restored cluster would begin behind them.

use std::collections::HashMap;

use downriver_event::Offset;
use downriver_log::journal::UnsealedPayload;

use crate::state::Replicated;

/// As a leader knows it. In another term another one may have taken a newer backup.
#[derive(Debug)]
pub(crate) struct Spared {
    pub(super) term: u64,
    /// Where the events of an object end, by its key.
    ends: HashMap<String, Offset>,
}

impl Spared {
    /// What a backup of this state refers to. Manifests, and what they list, are deleted by retention alone.
    pub(crate) fn by_backup_of(replicated: &Replicated, term: u64) -> Self {
        let mut ends = HashMap::new();
        for stream in replicated.journal.streams.values() {
            let segments = stream.segments.iter().map(|segment| &segment.place);
            ends.extend(segments.map(|place| (place.object.key.clone(), place.end)));
            for block in &stream.unsealed {
                if let UnsealedPayload::Object(object) = &block.payload {
                    ends.insert(object.key.clone(), block.end());
                }
            }
        }
        Self { term, ends }
    }

    /// What a backup may refer to that was taken before, of whatever state.
    pub(super) fn by_backups_before(replicated: &Replicated, term: u64) -> Self {
        let mut spared = Self::by_backup_of(replicated, term);
        let streams = replicated.journal.streams.values();
        let garbage = streams.flat_map(|stream| stream.garbage.iter().cloned());
        let garbage = garbage.map(|key| (key, Offset(u64::MAX)));
        spared.ends.extend(garbage);
        spared
    }

    /// Whether an object stays. What retention has passed goes: a restored log begins behind it just the same.
    pub(super) fn has(&self, key: &str, trimmed: Offset) -> bool {
        self.ends.get(key).is_some_and(|end| *end > trimmed)
    }
}
