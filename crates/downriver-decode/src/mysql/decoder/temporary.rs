//! Temporary tables, which hide tables of their names from the statements of their sessions. Servers log what becomes of them
//! where a session logs statements.

use std::collections::{HashMap, HashSet};

use super::super::ddl::{self, Effect, Named};
use super::Statement;

/// Tables of all sessions that are noted at most; those beyond hide nothing.
const NOTED_MAX: usize = 10_000;

/// By the numbers of their sessions.
#[derive(Clone, Debug, Default)]
pub(super) struct Temporary(HashMap<u32, HashSet<Named>>);

impl Temporary {
    /// Tells a statement what its session has, and takes note of what becomes of that.
    pub(super) fn meet(&mut self, session: u32, statement: &mut Statement) {
        let (database, text) = (&statement.database, &statement.text);
        if matches!(&**text, "BEGIN" | "COMMIT" | "ROLLBACK") {
            return;
        }
        let told = ddl::temporary(database, text, statement.wording.quoting);
        if told.is_empty() && self.0.is_empty() {
            return;
        }
        if let Some(tables) = self.0.get_mut(&session) {
            statement.temporary = tables.iter().cloned().collect();
            for effect in ddl::effects_as(database, text, statement.wording.quoting) {
                if let Effect::Renamed { from, to } = effect
                    && tables.remove(&from)
                {
                    tables.insert(to);
                }
            }
        }
        let noted = self.0.values().map(HashSet::len).sum::<usize>();
        for (table, is_made) in told {
            if !is_made {
                self.0.entry(session).or_default().remove(&table);
            } else if noted < NOTED_MAX {
                self.0.entry(session).or_default().insert(table);
            }
        }
        self.0.retain(|_, tables| !tables.is_empty());
    }
}
