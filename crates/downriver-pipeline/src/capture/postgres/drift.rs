//! Tables whose outline is another one than when they were last whole are read again: changes were left out of the
//! stream, or rows were written anew.
//!
//! After changes were left out, or keys were written anew, what the stream still brings from before the change must not
//! count for that generation: a row that was published then may not be now, or has another key, and the end of the
//! generation keeps what changed since its start. So a generation starts only when every transaction is over that ran when
//! the change was noticed, and the stream has passed them. Until then rows of the table are passed over: its snapshot has
//! them.
//!
//! A rewrite of rows had the table for itself: what the stream brings from before it, every chunk's snapshot sees.
//!
//! A change is noticed by a look at the catalog, or at the start of a run, where the log's outline and the catalog
//! differ. A run ends when a look finds that changes were left out, so that there is one place where it is decided what
//! becomes of a table. Of everything else that a look finds the run is told.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use downriver_event::problem::Problem;
use downriver_event::{Lsn, TableId};
use downriver_source::SourceError;
use downriver_source::postgres::catalog::{Catalog, SourceTable};
use downriver_source::postgres::config::PostgresConfig;
use downriver_source::postgres::outline::{Outline, Turn};
use downriver_source::postgres::publication::{Seen, Standing as Stands, not_published};
use tokio::sync::mpsc;

use super::super::CaptureError;
use super::super::progress::{Resume, Standing, restated};
use super::Run;
use crate::status::Known;

/// How often the catalog is looked at, and for how much of the time at most: a database may have very many tables.
const LOOK_EVERY: Duration = Duration::from_secs(1);
const LOOK_SHARE: u32 = 50;

/// A table that was seen otherwise than before, and of which no change was left out.
pub(super) struct News {
    table: TableId,
    seen: Seen,
    is_rewritten: bool,
}

/// Returns when a table came, or changes of one may have been left out.
pub(super) async fn noticed(
    catalog: &Catalog,
    mut known: Known,
    tell: mpsc::Sender<News>,
) -> Result<CaptureError, SourceError> {
    let mut rest = LOOK_EVERY;
    loop {
        tokio::time::sleep(rest).await;
        let began = Instant::now();
        let standings = catalog.standings().await?;
        rest = LOOK_EVERY.max(began.elapsed() * LOOK_SHARE);
        let mut drifted = Vec::new();
        for standing in standings {
            let Stands { table, name, seen } = standing;
            let Some(before) = known.get(&table) else {
                return Ok(CaptureError::NewTable(name));
            };
            let is_rewritten = match before.turn(&seen) {
                _ if *before == seen => continue,
                None | Some(Turn::Drifted) => {
                    drifted.push(name);
                    continue;
                }
                Some(turn) => turn == Turn::Rewritten,
            };
            known.insert(table, seen.clone());
            let news = News {
                table,
                seen,
                is_rewritten,
            };
            if tell.send(news).await.is_err() {
                // The run ends.
                std::future::pending::<()>().await;
            }
        }
        if !drifted.is_empty() {
            return Ok(CaptureError::Drifted(drifted.join(", ")));
        }
    }
}

/// What becomes of a table at the start of a run.
pub(super) enum Fate {
    /// No change of it was left out.
    Whole(Outline),
    Rewritten(Outline),
    Drifted(Outline),
    /// It was in the publication and is not any more: the stream is taken up to there.
    TakenOut(Problem),
    Refused(Problem),
}

impl Fate {
    pub(super) fn of(
        table: &SourceTable,
        refusal: Option<Problem>,
        stored: Option<&Standing>,
        config: &PostgresConfig,
    ) -> Self {
        if let Some(problem) = refusal {
            return Self::Refused(problem);
        }
        match (&table.seen.outline, stored) {
            (None, None | Some(Standing::Lapsed)) => {
                Self::Refused(not_published(&table.schema, config))
            }
            (None, Some(_)) => Self::TakenOut(not_published(&table.schema, config)),
            (Some(now), None | Some(Standing::Unknown)) => Self::Whole(now.clone()),
            (Some(now), Some(Standing::Published(stored))) => {
                match stored.turn(now, &table.new_parts) {
                    Turn::Whole => Self::Whole(now.clone()),
                    Turn::Rewritten => Self::Rewritten(now.clone()),
                    Turn::Drifted => Self::Drifted(now.clone()),
                }
            }
            (Some(now), Some(Standing::Lapsed)) => Self::Drifted(now.clone()),
        }
    }
}

/// Tables that are to be read again.
#[derive(Default)]
pub(super) struct Drift {
    tables: HashMap<TableId, Outline>,
    /// The stream that has passed it brings nothing more from before.
    high: Option<Lsn>,
}

impl Drift {
    pub(super) fn add(&mut self, table: TableId, now: Outline) {
        self.tables.insert(table, now);
    }

    pub(super) fn has(&self, table: TableId) -> bool {
        self.tables.contains_key(&table)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.tables.is_empty()
    }

    pub(super) fn settled(&mut self, high: Lsn) {
        self.high = Some(high);
    }

    pub(super) fn waits_for_stream(&self) -> bool {
        self.high.is_some()
    }
}

impl Run<'_> {
    /// A table's outline is another one, or the table cannot be captured and was seen otherwise than before.
    pub(super) fn looked(&mut self, news: News) -> Result<(), CaptureError> {
        let News {
            table,
            seen,
            is_rewritten,
        } = news;
        if self.intake.captured.get(&table) == Some(&true)
            && let Some(outline) = seen.outline.clone()
        {
            let standing = Standing::Published(outline);
            self.intake.standings.insert(table, standing.clone());
            if is_rewritten {
                return self.rewritten(table, seen);
            }
            self.restate(table, standing);
        }
        self.intake.status.update(|s| {
            s.known.insert(table, seen);
        });
        Ok(())
    }

    fn rewritten(&mut self, table: TableId, seen: Seen) -> Result<(), CaptureError> {
        if self.intake.rows_are_others(table) {
            // Whoever waits for what was seen waits for the start that follows.
            return self.intake.flush_between();
        }
        self.intake.status.update(|s| {
            s.known.insert(table, seen);
        });
        Ok(())
    }

    /// Stores how a table stands now. Where its progress is on its way into the log that is left to the next start.
    fn restate(&mut self, table: TableId, standing: Standing) {
        if let Some(progress) = self.intake.snapshots.get_mut(&table) {
            progress.resume.standing = standing;
            return;
        }
        let state = self.intake.log.state(&self.intake.config.name);
        let chunks = state.as_ref().and_then(|state| state.chunks.get(&table));
        if let Some(chunks) = chunks.filter(|chunks| chunks.done)
            && !self.intake.reread.waits_for(table)
            && let Some(resume) = Resume::decode(chunks.resume_after.clone())
        {
            let restated = restated(table, Some(chunks), resume, standing);
            self.intake.outbox.chunk_done(restated);
        }
    }

    /// Wants the tables' next generation once the stream brings nothing more from before.
    pub(super) fn read_drifted(&mut self) -> Result<(), CaptureError> {
        let is_passed = |high: Lsn| self.intake.received.lsn().is_some_and(|at| at >= high);
        if self.intake.builder.in_transaction() || !self.drift.high.is_some_and(is_passed) {
            return Ok(());
        }
        for (table, outline) in std::mem::take(&mut self.drift).tables {
            self.intake
                .standings
                .insert(table, Standing::Published(outline));
            self.intake.read_again(table);
        }
        // What came until here is not to come again after the generation's start.
        self.intake.committed = Some(self.intake.received.clone());
        self.intake.flush()
    }
}
