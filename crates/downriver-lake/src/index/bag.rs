//! Where the rows of a table without a key lie: as often as a row is there, so often it has an entry.
//!
//! ```text
//!   row ──> count                      under the row's own hash
//!   row, 1 ──> location of one of them under a hash of both
//!   row, 2 ──> location of another …
//! ```
//!
//! Equal rows cannot be told apart, so a delete takes the one with the highest number: the others keep theirs. What is
//! left behind under a number above the count means nothing.

use std::collections::BTreeMap;

use super::{KeyHash, KeyIndex, Location};

/// The file of an entry that is a count.
const COUNT: u32 = u32::MAX;

/// What happens to equal rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct BagChange {
    /// So many go first, or as many as there are.
    pub(crate) deleted: u32,
    pub(crate) inserted: Vec<Location>,
}

fn numbered(row: KeyHash, number: u32) -> KeyHash {
    let mut bytes = [0; 20];
    bytes[..16].copy_from_slice(&row.0.to_le_bytes());
    bytes[16..].copy_from_slice(&number.to_le_bytes());
    KeyHash(xxhash_rust::xxh3::xxh3_128(&bytes))
}

impl KeyIndex {
    /// Changes the rows of a table without a key. Where those lie that are deleted.
    pub(crate) fn change_bag(
        &mut self,
        changes: BTreeMap<KeyHash, BagChange>,
    ) -> std::io::Result<Vec<Location>> {
        let rows: Vec<KeyHash> = changes.keys().copied().collect();
        let counts = self.lookup(&rows)?;
        let mut entries = Vec::new();
        let mut gone = Vec::new();
        for ((row, change), count) in changes.into_iter().zip(counts) {
            let before = count.map_or(0, |count| {
                debug_assert_eq!(count.file, COUNT);
                count.row
            });
            let kept = before - before.min(change.deleted);
            gone.extend((kept..before).map(|number| numbered(row, number + 1)));
            let mut after = kept;
            for location in change.inserted {
                after += 1;
                entries.push((numbered(row, after), location));
            }
            if after != before {
                let count = Location {
                    file: COUNT,
                    row: after,
                };
                entries.push((row, count));
            }
        }
        gone.sort_unstable();
        let found = self.lookup(&gone)?;
        let missing = || {
            let what = "a row that is counted in the key index has no place in it";
            std::io::Error::new(std::io::ErrorKind::InvalidData, what)
        };
        let found: Option<Vec<Location>> = found.into_iter().collect();
        let found = found.ok_or_else(missing)?;
        self.add(entries)?;
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn hash(row: u8) -> KeyHash {
        KeyHash::of(&[row], 7)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn of_equal_rows_exactly_as_many_go_as_are_deleted(rounds in prop::collection::vec(
            prop::collection::vec((0u8..12, 0u32..4, 0usize..4), 0..20), 1..25)) {
            let folder = tempfile::tempdir().unwrap();
            let mut index = KeyIndex::empty(folder.path());
            let mut model: HashMap<KeyHash, Vec<Location>> = HashMap::new();
            for (file, round) in rounds.into_iter().enumerate() {
                let mut changes: BTreeMap<KeyHash, BagChange> = BTreeMap::new();
                let mut next = 0;
                for (row, deleted, inserted) in round {
                    let inserted: Vec<Location> = (next..next + inserted)
                        .map(|row| Location { file: file as u32, row: row as u32 })
                        .collect();
                    next += inserted.len();
                    changes.insert(hash(row), BagChange { deleted, inserted });
                }
                // A row that was overwritten above is in no file.
                let expected: usize = changes
                    .iter()
                    .map(|(row, change)| model.get(row).map_or(0, Vec::len).min(change.deleted as usize))
                    .sum();
                let deleted = index.change_bag(changes.clone()).unwrap();
                prop_assert_eq!(deleted.len(), expected);
                for (row, change) in changes {
                    let there = model.entry(row).or_default();
                    let before = there.len();
                    there.retain(|location| !deleted.contains(location));
                    prop_assert_eq!(before - there.len(), before.min(change.deleted as usize));
                    there.extend(change.inserted);
                }
                // As after a restart.
                let names = index.names();
                KeyIndex::remove_others(folder.path(), &names).unwrap();
                index = KeyIndex::open(folder.path(), &names).unwrap();
            }
            let all = model.keys().map(|row| (*row, BagChange { deleted: u32::MAX, inserted: Vec::new() }));
            let mut deleted = index.change_bag(all.collect()).unwrap();
            let mut there: Vec<Location> = model.into_values().flatten().collect();
            deleted.sort_unstable();
            there.sort_unstable();
            prop_assert_eq!(deleted, there);
        }
    }
}
