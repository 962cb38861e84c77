//! Whether a part of a table can be read again by itself: only of a table that is whole, or else what the rest lacks
//! would be lost sight of.

use downriver_event::problem::Problem;
use downriver_event::{RowFilter, TableId};

use super::super::request::needs_whole;
use super::Run;

impl Run<'_> {
    /// `None`: it can.
    pub(super) fn why_not_in_part(&self, table: TableId, part: &RowFilter) -> Option<Problem> {
        let newest = self.registry.newest(table)?;
        let name = newest.qualified_name();
        if self.captured.get(&table) != Some(&true) || self.taken_out.contains(&table) {
            return Some(needs_whole(format!("table {name} is not captured now")));
        }
        let state = self.log.state(&self.config.name);
        let chunks = state.as_ref().and_then(|state| state.chunks.get(&table));
        let is_whole = match chunks.filter(|chunks| chunks.generation > 0) {
            Some(chunks) => chunks.done,
            None => !self.config.snapshot.initial,
        };
        let is_under_way = self.snapshots.contains_key(&table)
            || self.reread.waits_for(table)
            || self.drift.has(table);
        if !is_whole || is_under_way {
            return Some(needs_whole(format!(
                "the snapshot of table {name} is not done"
            )));
        }
        if newest.is_bag() || !part.fits(newest) {
            return Some(needs_whole(format!(
                "the key of table {name} is not what {:?} speaks of any more",
                part.text
            )));
        }
        None
    }
}
