//! What a running capture is asked from outside: where the server is, and to read tables again.

use std::collections::{HashMap, HashSet};

use downriver_event::problem::Problem;
use downriver_event::{RowFilter, TableId};
use tokio::sync::{Mutex, Notify, mpsc, oneshot};

use super::mysql;
use super::outbox::Progress;

pub(super) type Answer = oneshot::Sender<Result<Requested, Problem>>;

/// A table that is to be read again, or a part of it.
pub type Wanted = (TableId, Option<RowFilter>);

/// Tables whose snapshot is to be taken again, and the answer when that is durable.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) tables: Vec<Wanted>,
    pub(super) answer: Answer,
}

impl Request {
    pub(super) fn is_of_parts(&self) -> bool {
        self.tables.iter().any(|(_, part)| part.is_some())
    }
}

/// Tables that are to be read again, until the log knows of it; then the capture starts again.
#[derive(Debug, Default)]
pub(super) struct Reread {
    /// For people.
    names: Vec<String>,
    waiting: Vec<Waiting>,
    answers: Vec<(Answer, Requested)>,
}

#[derive(Debug)]
struct Waiting {
    table: TableId,
    generation: u64,
    /// All of its rows are read, and not a part of them.
    is_whole: bool,
}

impl Reread {
    pub(super) fn wait_for(
        &mut self,
        table: TableId,
        generation: u64,
        is_whole: bool,
        name: String,
    ) {
        self.names.push(name);
        self.waiting.push(Waiting {
            table,
            generation,
            is_whole,
        });
    }

    /// The newest generation of a table that is waited for.
    pub(super) fn generation_of(&self, table: TableId) -> Option<u64> {
        let of_table = self.waiting.iter().filter(|it| it.table == table);
        of_table.map(|it| it.generation).max()
    }

    pub(super) fn waits_for(&self, table: TableId) -> bool {
        self.generation_of(table).is_some()
    }

    /// Whether all of a table is to be read again.
    pub(super) fn waits_for_whole(&self, table: TableId) -> bool {
        self.waiting
            .iter()
            .any(|it| it.table == table && it.is_whole)
    }

    pub(super) fn waits(&self) -> bool {
        !self.names.is_empty()
    }

    pub(super) fn answer(&mut self, answer: Answer, requested: Requested) {
        self.answers.push((answer, requested));
    }

    /// Whether something is asked for, and all of it is in the log now.
    pub(super) fn is_logged(&mut self, appended: &Progress) -> bool {
        self.waiting.retain(|it| {
            let mut stored = appended.iter();
            !stored.any(|stored| stored.table == it.table && stored.generation == it.generation)
        });
        !self.names.is_empty() && self.waiting.is_empty()
    }

    /// Tells who asked, and names the tables.
    pub(super) fn done(self) -> String {
        for (answer, requested) in self.answers {
            // Whoever asked may have given up.
            let _ = answer.send(Ok(requested));
        }
        self.names.join(", ")
    }
}

/// A part cannot be read where all of it has to be.
#[must_use]
pub fn needs_whole(why: String) -> Problem {
    Problem::new(
        "DR-1055",
        why,
        "ask again when its snapshot is done, or read the whole of it: downriver resnapshot PIPELINE --tables SCHEMA.TABLE, without --where",
    )
}

/// The generation that each table will have; a table that the capture does not have is left out.
pub type Requested = Vec<(TableId, u64)>;

/// Nothing was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotRequested {
    #[error("the capture does not take requests now")]
    Ended,
    /// What keeps the tables from being read again, or the hole that the capture stands in from being repaired.
    #[error("{}", .0.reason)]
    Problem(Problem),
}

/// Held by the capture and by whoever asks it something.
#[derive(Debug)]
pub struct CaptureControl {
    /// Asks the server where it is.
    pub nudge: Notify,
    sender: mpsc::Sender<Request>,
    /// Each run of the capture takes it up where the last one left it.
    pub(super) requests: Mutex<mpsc::Receiver<Request>>,
    /// Tables that have a value which cannot be logged, until they are asked for again or the process ends.
    refused: std::sync::Mutex<HashMap<TableId, Problem>>,
    /// Tables of which the stream brings rows without all of their values: the next run reads those before it takes it up.
    lacking: std::sync::Mutex<HashSet<TableId>>,
    /// Of a capture of MySQL or MariaDB.
    pub(super) mysql: Mutex<mysql::Lasting>,
}

impl Default for CaptureControl {
    fn default() -> Self {
        let (sender, requests) = mpsc::channel(1);
        Self {
            nudge: Notify::new(),
            sender,
            requests: Mutex::new(requests),
            refused: std::sync::Mutex::default(),
            lacking: std::sync::Mutex::default(),
            mysql: Mutex::default(),
        }
    }
}

impl CaptureControl {
    fn refused(&self) -> std::sync::MutexGuard<'_, HashMap<TableId, Problem>> {
        self.refused.lock().expect("no holder panics")
    }

    pub(super) fn refuse(&self, table: TableId, problem: Problem) {
        self.refused().insert(table, problem);
    }

    pub(super) fn why_refused(&self, table: TableId) -> Option<Problem> {
        self.refused().get(&table).cloned()
    }

    pub(super) fn has_refused(&self) -> bool {
        !self.refused().is_empty()
    }

    pub(super) fn note_lacking(&self, table: TableId) {
        let mut tables = self.lacking.lock().expect("no holder panics");
        tables.insert(table);
    }

    /// Whether rows of the table are to be read, which is left to the caller.
    pub(super) fn takes_lacking(&self, table: TableId) -> bool {
        let mut tables = self.lacking.lock().expect("no holder panics");
        tables.remove(&table)
    }

    /// Whether the table was refused, and is not any more.
    pub(super) fn admit(&self, table: TableId) -> bool {
        self.refused().remove(&table).is_some()
    }

    /// Asks for a new snapshot of tables or parts of them, and returns when the log knows of it. Dropping the future
    /// before takes the request back, unless it is on its way into the log. A capture that stands in a hole repairs it,
    /// and takes the snapshot of every table.
    ///
    /// # Errors
    /// The capture failed meanwhile; asking again is safe.
    pub async fn resnapshot(&self, tables: Vec<Wanted>) -> Result<Requested, NotRequested> {
        let (answer, answered) = oneshot::channel();
        let request = Request { tables, answer };
        let sent = self.sender.send(request).await;
        sent.map_err(|_| NotRequested::Ended)?;
        let answer = answered.await.map_err(|_| NotRequested::Ended)?;
        answer.map_err(NotRequested::Problem)
    }
}

#[cfg(test)]
mod tests {
    use super::super::outbox::Stored;
    use super::*;

    fn stored(generation: u64) -> Stored {
        Stored {
            table: TableId(7),
            generation,
            is_done: false,
        }
    }

    #[test]
    fn a_table_that_is_asked_for_in_part_and_whole_waits_for_both() {
        let mut reread = Reread::default();
        reread.wait_for(TableId(7), 2, false, "shop.t".into());
        assert!(reread.waits_for(TableId(7)) && !reread.waits_for_whole(TableId(7)));
        assert_eq!(reread.generation_of(TableId(7)), Some(2));
        reread.wait_for(TableId(7), 3, true, "shop.t".into());
        assert!(reread.waits_for_whole(TableId(7)));
        assert!(!reread.is_logged(&vec![stored(2)]));
        assert!(reread.is_logged(&vec![stored(3)]));
        assert!(!reread.waits_for(TableId(7)) && !reread.waits_for(TableId(8)));
    }
}
