//! A table without a key: its rows are known by all that is in them, and counted.

use std::collections::BTreeMap;

use arrow_array::ArrayRef;

use super::TableWriter;
use super::spill::sort_by_keys;
use crate::LakeError;
use crate::encoding::write_exact;
use crate::index::{BagChange, KeyHash, Location};
use crate::window::Window;

impl TableWriter {
    /// Writes the rows that came, and takes away as many of those that the table has as went.
    pub(super) async fn spill_bag(&mut self, window: &Window) -> Result<(), LakeError> {
        let (columns, unholdable) = self.keys(window)?;
        let hashes = hash_rows(&columns, window.entries().len(), self.seed);
        let mut rows: Vec<u32> = (0..hashes.len())
            .filter(|entry| window.entries()[*entry].version.is_some())
            .map(|entry| u32::try_from(entry).expect("entries are counted so"))
            .collect();
        sort_by_keys(&mut rows, &columns);
        let file = self
            .write_rows(window, &rows, &vec![None; hashes.len()])
            .await?;

        let mut changes: BTreeMap<KeyHash, BagChange> = BTreeMap::new();
        for (at, entry) in window.entries().iter().enumerate() {
            // What the lake cannot hold is not in it.
            if entry.in_old && !unholdable.contains(&at) {
                changes.entry(hashes[at]).or_default().deleted += 1;
            }
        }
        if let Some(file) = file {
            for (entry, row) in rows.iter().zip(0..) {
                let change = changes.entry(hashes[*entry as usize]).or_default();
                change.inserted.push(Location { file, row });
            }
        }
        let gone = self.index.change_bag(changes);
        for at in gone.map_err(|error| self.index_failed(error))? {
            self.pending
                .deleted
                .entry(at.file)
                .or_default()
                .insert(at.row);
        }
        self.rows_written += rows.len() as u64;
        Ok(())
    }

    /// Adds rows that the table has to an index that is made again.
    pub(super) fn add_rebuilt(&mut self, rows: Vec<(KeyHash, Location)>) -> std::io::Result<()> {
        if !self.source.is_bag() {
            return self.index.add(rows);
        }
        let mut changes: BTreeMap<KeyHash, BagChange> = BTreeMap::new();
        for (hash, location) in rows {
            changes.entry(hash).or_default().inserted.push(location);
        }
        self.index.change_bag(changes).map(|_| ())
    }
}

pub(super) fn hash_rows(columns: &[ArrayRef], rows: usize, seed: u64) -> Vec<KeyHash> {
    let mut bytes = Vec::with_capacity(256);
    let rows = 0..rows;
    rows.map(|row| {
        bytes.clear();
        for column in columns {
            write_exact(column, row, &mut bytes);
        }
        KeyHash::of(&bytes, seed)
    })
    .collect()
}
