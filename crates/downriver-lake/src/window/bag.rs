//! Changes of a table without a key, whose rows are known by all that is in them.
//!
//! Each row that came is an entry of its own, and so is each that went; a row that came and went is in no file. Equal
//! rows cannot be told apart, so which of them goes makes no difference.

use downriver_event::Offset;
use downriver_event::block::{OldImage, RowOp};

use super::{Entry, Inherits, Version, Window, WindowKey};
use crate::LakeError;

impl Window {
    /// Applies one row of a held group.
    pub(super) fn bag_row(
        &mut self,
        held: u32,
        (op, image): (RowOp, OldImage),
        (at_new, at_old): (Option<usize>, Option<usize>),
        offset: Offset,
        time_us: i64,
    ) -> Result<(), LakeError> {
        let cell = |at: usize| u32::try_from(at).expect("a block has under 2^32 cells");
        let old = at_old.filter(|_| image == OldImage::Full);
        if old.is_none() && matches!(op, RowOp::Update | RowOp::Delete) {
            return Err(self.says_no_key(held, offset));
        }
        if let Some(at) = old {
            let row = WindowKey(self.key(held, true, at, offset)?);
            match self.came.get_mut(&row).and_then(Vec::pop) {
                Some(entry) => self.entries[entry as usize].version = None,
                None => _ = self.bag_entry(held, cell(at), true, None),
            }
        }
        if let Some(at) = at_new {
            let row = WindowKey(self.key(held, false, at, offset)?);
            let version = u32::try_from(self.versions.len()).expect("a window has under 2^32 rows");
            self.versions.push(Version {
                held,
                cell: cell(at),
                old_cell: None,
                is_update: false,
                offset,
                time_us,
                inherits: Inherits::Nothing,
            });
            let entry = self.bag_entry(held, cell(at), false, Some(version));
            self.came.entry(row).or_default().push(entry);
        }
        Ok(())
    }

    fn bag_entry(&mut self, held: u32, cell: u32, in_old: bool, version: Option<u32>) -> u32 {
        let at = u32::try_from(self.entries.len()).expect("a window has under 2^32 rows");
        self.entries.push(Entry {
            held,
            cell,
            in_old,
            version,
        });
        at
    }
}
