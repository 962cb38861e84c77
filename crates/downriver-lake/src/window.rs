//! The changes of a table since its last spill, reduced to each key's last state.
//!
//! ```text
//!   key ──> entry ──┬─> deleted
//!                   └─> version ── inherits ─┬─> nothing: the row came whole
//!                                            ├─> an earlier version of the window
//!                                            └─> the row that the lake has for a key
//! ```
//! A version whose source did not send a value (unchanged TOAST) inherits it, along a key change too.

mod bag;

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use downriver_event::block::{Column, OldImage, RowGroup, RowOp};
use downriver_event::{Column as Named, Offset, Presence, TableSchema};

use crate::LakeError;
use crate::index::KeyHash;

/// Bytes that an entry and its version take, beside the blocks.
const ENTRY_BYTES: usize = 120;

#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) group: Arc<RowGroup>,
    pub(crate) schema: Arc<TableSchema>,
    /// Indexes into the group's new columns in the order of the key; and of its old columns.
    new_key: Vec<usize>,
    old_key: Vec<usize>,
    /// Some cell of an update was not sent.
    partial: Vec<usize>,
    /// Columns of the schema that the rows cannot have: the source dropped them, and the table keeps them.
    lacking: Vec<u32>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Version {
    pub(crate) held: u32,
    pub(crate) cell: u32,
    /// The cells of its full old image.
    pub(crate) old_cell: Option<u32>,
    pub(crate) is_update: bool,
    pub(crate) offset: Offset,
    pub(crate) time_us: i64,
    pub(crate) inherits: Inherits,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Inherits {
    Nothing,
    Version(u32),
    /// What the lake had for this entry's key before the window.
    Lake(u32),
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    /// Where the key's cells are.
    pub(crate) held: u32,
    pub(crate) cell: u32,
    pub(crate) in_old: bool,
    /// `None`: deleted.
    pub(crate) version: Option<u32>,
}

/// Where a column's value of a version is.
pub(crate) enum Found<'a> {
    Cell(&'a Column, usize),
    /// The row's schema did not have the column, or it is an insert that did not log it.
    Null,
    /// In the lake's row of this entry's key.
    Lake(u32),
    /// Left out of an insert: the row had it before it came into the publication's filter.
    Unsent,
    /// Nobody has it.
    Lost,
}

/// The keys are hashes already.
#[derive(Default)]
struct Identity(u64);

impl Hasher for Identity {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u128(&mut self, value: u128) {
        self.0 = value as u64;
    }
}

impl std::hash::Hash for WindowKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u128(self.0.0);
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct WindowKey(KeyHash);

#[derive(Debug, Default)]
pub(crate) struct Window {
    held: Vec<Held>,
    versions: Vec<Version>,
    entries: Vec<Entry>,
    by_key: HashMap<WindowKey, u32, BuildHasherDefault<Identity>>,
    /// Of a table without a key: the entries of the rows that came, by all that is in them.
    came: HashMap<WindowKey, Vec<u32>, BuildHasherDefault<Identity>>,
    seed: u64,
    /// A key's bytes while they are hashed.
    scratch: Vec<u8>,
}

impl Window {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            seed,
            ..Self::default()
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes beside the blocks that it holds.
    pub(crate) fn bytes(&self) -> usize {
        (self.entries.len().max(self.versions.len()) + self.came.len() / 2) * ENTRY_BYTES
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::new(self.seed);
    }

    /// Whether some row may lack a value that was not sent.
    pub(crate) fn is_partial(&self) -> bool {
        self.held.iter().any(|held| !held.partial.is_empty())
    }

    pub(crate) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    pub(crate) fn version(&self, at: u32) -> &Version {
        &self.versions[at as usize]
    }

    pub(crate) fn held(&self) -> &[Held] {
        &self.held
    }

    /// Takes a group over; its rows are then given to [`Window::row`].
    pub(crate) fn hold(
        &mut self,
        group: Arc<RowGroup>,
        schema: Arc<TableSchema>,
        lacking: Vec<u32>,
    ) -> Result<u32, LakeError> {
        let telling = schema.telling();
        let places = |columns: &[Column]| -> Option<Vec<usize>> {
            let place = |id: &u32| columns.iter().position(|column| column.id == *id);
            telling.iter().map(place).collect()
        };
        let new_key = places(&group.new_columns).unwrap_or_default();
        let old_key = places(&group.old_columns).unwrap_or_default();
        let partial = |column: &Column| {
            !column.all_values()
                && (0..column.cells()).any(|cell| {
                    matches!(
                        column.presence(cell),
                        Presence::Unchanged | Presence::Absent
                    )
                })
        };
        let mut partial: Vec<usize> = (0..group.new_columns.len())
            .filter(|at| partial(&group.new_columns[*at]))
            .collect();
        let is_logged = |column: &Named| group.new_column(column.id).is_some();
        if !schema.columns.iter().all(is_logged) {
            // A column that no row logged has no cells at all.
            partial.push(usize::MAX);
        }
        self.held.push(Held {
            group,
            schema,
            new_key,
            old_key,
            partial,
            lacking,
        });
        Ok(u32::try_from(self.held.len() - 1).expect("a window holds few groups"))
    }

    /// Applies one row of a held group.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn row(
        &mut self,
        held: u32,
        (op, image): (RowOp, OldImage),
        at_new: Option<usize>,
        at_old: Option<usize>,
        offset: Offset,
        time_us: i64,
    ) -> Result<(), LakeError> {
        if self.held[held as usize].schema.is_bag() {
            return self.bag_row(held, (op, image), (at_new, at_old), offset, time_us);
        }
        let cell = |at: usize| u32::try_from(at).expect("a block has under 2^32 cells");
        let old = match at_old {
            Some(at) => Some((self.key(held, true, at, offset)?, cell(at))),
            None => None,
        };
        let Some(at_new) = at_new else {
            let Some((key, old_cell)) = old else {
                return Err(self.says_no_key(held, offset));
            };
            self.set(key, held, old_cell, true, None);
            return Ok(());
        };
        let key = self.key(held, false, at_new, offset)?;
        let is_update = op == RowOp::Update;
        let mut version = Version {
            held,
            cell: cell(at_new),
            old_cell: (image == OldImage::Full)
                .then(|| at_old.map(cell))
                .flatten(),
            is_update,
            offset,
            time_us,
            inherits: Inherits::Nothing,
        };
        let moved = old.filter(|(old_key, _)| *old_key != key);
        if is_update && self.lacks_a_value(held, at_new) {
            let (from, from_cell, in_old) = match moved {
                Some((old_key, old_cell)) => (old_key, old_cell, true),
                None => (key, cell(at_new), false),
            };
            version.inherits = match self.by_key.get(&WindowKey(from)) {
                Some(entry) => match self.entries[*entry as usize].version {
                    Some(before) => Inherits::Version(before),
                    None => Inherits::Nothing,
                },
                None => Inherits::Lake(self.set(from, held, from_cell, in_old, None)),
            };
        }
        if let Some((old_key, old_cell)) = moved {
            self.set(old_key, held, old_cell, true, None);
        }
        let at = u32::try_from(self.versions.len()).expect("a window has under 2^32 rows");
        self.versions.push(version);
        self.set(key, held, cell(at_new), false, Some(at));
        Ok(())
    }

    fn set(
        &mut self,
        key: KeyHash,
        held: u32,
        cell: u32,
        in_old: bool,
        version: Option<u32>,
    ) -> u32 {
        if let Some(entry) = self.by_key.get(&WindowKey(key)) {
            // The key's cells may stay where they were found first: they are equal.
            self.entries[*entry as usize].version = version;
            return *entry;
        }
        let at = u32::try_from(self.entries.len()).expect("a window has under 2^32 keys");
        self.entries.push(Entry {
            held,
            cell,
            in_old,
            version,
        });
        self.by_key.insert(WindowKey(key), at);
        at
    }

    fn key(
        &mut self,
        held_at: u32,
        in_old: bool,
        cell: usize,
        offset: Offset,
    ) -> Result<KeyHash, LakeError> {
        let held = &self.held[held_at as usize];
        let (places, columns) = if in_old {
            (&held.old_key, &held.group.old_columns)
        } else {
            (&held.new_key, &held.group.new_columns)
        };
        let known = |at: &usize| {
            !matches!(
                columns[*at].presence(cell),
                Presence::Unchanged | Presence::Absent
            )
        };
        let is_whole = if held.schema.is_bag() {
            places.len() == held.schema.columns.len()
        } else {
            !places.is_empty()
        };
        if !is_whole || !places.iter().all(known) {
            return Err(self.says_no_key(held_at, offset));
        }
        self.scratch.clear();
        for at in places {
            if held.schema.is_bag() {
                columns[*at].write_exact(cell, &mut self.scratch);
            } else {
                columns[*at].write_key(cell, &mut self.scratch);
            }
        }
        Ok(KeyHash::of(&self.scratch, self.seed))
    }

    fn says_no_key(&self, held: u32, offset: Offset) -> LakeError {
        let schema = &self.held[held as usize].schema;
        let what = if schema.is_bag() { "row" } else { "key" };
        LakeError::stopped(
            "DR-3015",
            format!(
                "the change at offset {offset} of {} does not say its whole {what}",
                schema.qualified_name()
            ),
            "give the table a primary key, or the replica identity full, and apply the pipeline again",
        )
    }

    fn lacks_a_value(&self, held: u32, cell: usize) -> bool {
        let held = &self.held[held as usize];
        held.partial.iter().any(|at| {
            held.group.new_columns.get(*at).is_none_or(|column| {
                matches!(
                    column.presence(cell),
                    Presence::Unchanged | Presence::Absent
                )
            })
        })
    }

    /// Whether a version cannot have the column, and has what was there before it, if anything was.
    pub(crate) fn lacks(&self, version: &Version, column: u32) -> bool {
        self.held[version.held as usize].lacking.contains(&column)
    }

    /// Where the value of a column is; `new` and `old` are the column's data in each held group.
    pub(crate) fn find<'a>(
        &'a self,
        version: &Version,
        column: u32,
        new: &[Option<&'a Column>],
        old: &[Option<&'a Column>],
    ) -> Found<'a> {
        let mut version = version;
        loop {
            let held = version.held as usize;
            match new[held] {
                Some(data) => match data.presence(version.cell as usize) {
                    Presence::Unchanged | Presence::Absent => {}
                    _ => return Found::Cell(data, version.cell as usize),
                },
                None if self.held[held].schema.column_index(column).is_none() => {
                    return Found::Null;
                }
                None => {}
            }
            if !version.is_update {
                // Only an update may leave a value to the row before it.
                let left_out =
                    |data: &Column| data.presence(version.cell as usize) == Presence::Unchanged;
                return if new[held].is_some_and(left_out) {
                    Found::Unsent
                } else {
                    Found::Null
                };
            }
            if let (Some(data), Some(cell)) = (old[held], version.old_cell)
                && !matches!(
                    data.presence(cell as usize),
                    Presence::Unchanged | Presence::Absent
                )
            {
                return Found::Cell(data, cell as usize);
            }
            match version.inherits {
                Inherits::Version(before) => version = self.version(before),
                Inherits::Lake(entry) => return Found::Lake(entry),
                Inherits::Nothing => return Found::Lost,
            }
        }
    }
}
