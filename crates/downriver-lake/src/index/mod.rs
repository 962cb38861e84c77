//! The key index: where each key's newest row lies. It lives on local disk; memory holds only fences.
//!
//! Keys are known by a seeded 128-bit hash of their canonical bytes: with a seed of the index's own nobody can
//! prepare two keys that collide, and by chance none do. A key that was deleted keeps its entry: deleting the same
//! row again changes nothing, and a file that is gone is known to hold nothing.

mod bag;
mod run;

use std::collections::BinaryHeap;
use std::path::{Path, PathBuf};

pub(crate) use bag::BagChange;
use run::Run;

/// A run is merged with the ones before it until each is this many times as large as the next.
const GROWTH: u64 = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct KeyHash(pub(crate) u128);

impl KeyHash {
    pub(crate) fn of(key: &[u8], seed: u64) -> Self {
        Self(xxhash_rust::xxh3::xxh3_128_with_seed(key, seed))
    }
}

/// A row of a data file; files are numbered by their table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Location {
    pub(crate) file: u32,
    pub(crate) row: u32,
}

/// Runs from the oldest to the newest; a newer one's entry of a key hides the older ones'.
#[derive(Debug)]
pub(crate) struct KeyIndex {
    folder: PathBuf,
    runs: Vec<Run>,
}

impl KeyIndex {
    pub(crate) fn empty(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            runs: Vec::new(),
        }
    }

    /// Opens the runs with these file names.
    pub(crate) fn open(folder: &Path, names: &[String]) -> std::io::Result<Self> {
        let runs = names.iter().map(|name| Run::open(&folder.join(name)));
        Ok(Self {
            folder: folder.to_owned(),
            runs: runs.collect::<Result<_, _>>()?,
        })
    }

    /// File names of the runs, in order.
    pub(crate) fn names(&self) -> Vec<String> {
        let name = |run: &Run| {
            run.path
                .file_name()
                .map(|n| n.to_string_lossy().into_owned())
        };
        self.runs.iter().filter_map(name).collect()
    }

    /// Where the keys are; `hashes` ascend.
    pub(crate) fn lookup(&self, hashes: &[KeyHash]) -> std::io::Result<Vec<Option<Location>>> {
        debug_assert!(hashes.is_sorted());
        let mut found = vec![None; hashes.len()];
        for run in self.runs.iter().rev() {
            run.lookup(hashes, &mut found)?;
        }
        Ok(found)
    }

    /// Adds the newest locations of keys, in any order, each key once.
    pub(crate) fn add(&mut self, mut entries: Vec<(KeyHash, Location)>) -> std::io::Result<()> {
        if entries.is_empty() {
            return Ok(());
        }
        entries.sort_unstable();
        let path = self.new_path();
        self.runs
            .push(Run::write(&path, entries.into_iter().map(Ok))?);
        self.merge()
    }

    pub(crate) fn clear(&mut self) {
        self.runs.clear();
    }

    fn new_path(&self) -> PathBuf {
        self.folder.join(format!("{}.run", uuid::Uuid::now_v7()))
    }

    /// Keeps the number of runs logarithmic. Files of merged runs stay until [`KeyIndex::remove_others`].
    fn merge(&mut self) -> std::io::Result<()> {
        let mut from = self.runs.len() - 1;
        let mut entries = self.runs[from].entries();
        while from > 0 && self.runs[from - 1].entries() < entries * GROWTH {
            from -= 1;
            entries += self.runs[from].entries();
        }
        if from + 1 == self.runs.len() {
            return Ok(());
        }
        let merged = Merge::new(&self.runs[from..])?;
        let run = Run::write(&self.new_path(), merged)?;
        self.runs.truncate(from);
        self.runs.push(run);
        Ok(())
    }

    /// Removes the folder's run files that are not among these names.
    pub(crate) fn remove_others(folder: &Path, names: &[String]) -> std::io::Result<()> {
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            if path.extension().is_some_and(|suffix| suffix == "run") && !names.contains(&name) {
                std::fs::remove_file(path)?;
            }
        }
        Ok(())
    }
}

type Entries = Box<dyn Iterator<Item = std::io::Result<(KeyHash, Location)>>>;

/// The runs' entries in one ascending order; of equal keys the newest run's.
struct Merge {
    inputs: Vec<Entries>,
    /// Smallest hash first; of equal ones the newest run.
    heads: BinaryHeap<(std::cmp::Reverse<KeyHash>, usize, Location)>,
    last: Option<KeyHash>,
    failed: Option<std::io::Error>,
}

impl Merge {
    fn new(runs: &[Run]) -> std::io::Result<Self> {
        let mut merge = Self {
            inputs: Vec::with_capacity(runs.len()),
            heads: BinaryHeap::new(),
            last: None,
            failed: None,
        };
        for (at, run) in runs.iter().enumerate() {
            merge.inputs.push(Box::new(run.iter()?));
            merge.advance(at);
        }
        Ok(merge)
    }

    fn advance(&mut self, at: usize) {
        match self.inputs[at].next() {
            Some(Ok((hash, location))) => {
                self.heads.push((std::cmp::Reverse(hash), at, location));
            }
            Some(Err(error)) => self.failed = Some(error),
            None => {}
        }
    }
}

impl Iterator for Merge {
    type Item = std::io::Result<(KeyHash, Location)>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(error) = self.failed.take() {
                self.heads.clear();
                return Some(Err(error));
            }
            let (std::cmp::Reverse(hash), at, location) = self.heads.pop()?;
            self.advance(at);
            if self.last != Some(hash) {
                self.last = Some(hash);
                return Some(Ok((hash, location)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn a_lookup_finds_what_was_added_last(rounds in prop::collection::vec(
            prop::collection::vec((0u64..3_000, any::<u32>()), 0..1_500), 1..8)) {
            let folder = tempfile::tempdir().unwrap();
            let mut index = KeyIndex::empty(folder.path());
            let mut model = HashMap::new();
            for (round, entries) in rounds.iter().enumerate() {
                let mut latest = HashMap::new();
                for (key, row) in entries {
                    latest.insert(*key, Location { file: round as u32, row: *row });
                }
                model.extend(latest.clone());
                let hash = |key: &u64| KeyHash::of(&key.to_le_bytes(), 7);
                index.add(latest.iter().map(|(key, at)| (hash(key), *at)).collect()).unwrap();
                // As after a restart.
                let names = index.names();
                KeyIndex::remove_others(folder.path(), &names).unwrap();
                index = KeyIndex::open(folder.path(), &names).unwrap();
            }
            let mut keys: Vec<(KeyHash, u64)> =
                (0..3_000).map(|key: u64| (KeyHash::of(&key.to_le_bytes(), 7), key)).collect();
            keys.sort_unstable();
            let hashes: Vec<KeyHash> = keys.iter().map(|k| k.0).collect();
            for ((_, key), found) in keys.iter().zip(index.lookup(&hashes).unwrap()) {
                prop_assert_eq!(found, model.get(key).copied());
            }
        }
    }

    #[test]
    fn a_damaged_byte_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let mut index = KeyIndex::empty(folder.path());
        let entry = |at: u32| (KeyHash(u128::from(at) << 90), Location { file: 1, row: at });
        index.add((0..600).map(entry).collect()).unwrap();
        let path = folder.path().join(&index.names()[0]);
        let sound = std::fs::read(&path).unwrap();
        for at in (0..sound.len())
            .step_by(97)
            .chain(sound.len() - 16..sound.len())
        {
            let mut damaged = sound.clone();
            damaged[at] ^= 4;
            std::fs::write(&path, damaged).unwrap();
            let hashes: Vec<KeyHash> = (0..600).map(|at| entry(at).0).collect();
            let read =
                KeyIndex::open(folder.path(), &index.names()).and_then(|i| i.lookup(&hashes));
            assert!(read.is_err(), "byte {at}");
        }
    }
}
