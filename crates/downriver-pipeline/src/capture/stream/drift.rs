//! Tables whose standing in the publication is another one than when they were last whole: changes may have been left
//! out of the stream, so they are read again.
//!
//! What the stream still brings from before the change must not count for that generation: a row that was published
//! then may not be now, and the end of the generation keeps what changed since its start. So a generation starts only
//! when every transaction is over that ran when the change was noticed, and the stream has passed them. Until then
//! rows of the table are passed over: its snapshot has them.
//!
//! A change is noticed by a look at the catalog, or at the start of a run, where the log's outline and the catalog
//! differ. A run ends when a look finds one, so that there is one place where it is decided what becomes of a table.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use downriver_event::problem::Problem;
use downriver_event::{Lsn, SourcePosition, TableId};
use downriver_log::{ChunkDone, ChunkState, LogError, StreamState};
use downriver_source::SourceError;
use downriver_source::postgres::catalog::{Catalog, SourceTable};
use downriver_source::postgres::config::PostgresConfig;
use downriver_source::postgres::publication::{Outline, not_published};

use super::super::CaptureError;
use super::super::progress::{Resume, Standing};
use super::super::snapshot::old_transactions_gone;
use super::Run;
use crate::status::Known;

/// How often the catalog is looked at, and for how much of the time at most: a database may have very many tables.
const LOOK_EVERY: Duration = Duration::from_secs(1);
const LOOK_SHARE: u32 = 50;

/// Returns when a table came, or one stands in the publication as it did not.
pub(super) async fn noticed(catalog: &Catalog, known: &Known) -> Result<CaptureError, SourceError> {
    let mut rest = LOOK_EVERY;
    loop {
        tokio::time::sleep(rest).await;
        let began = Instant::now();
        let standings = catalog.standings().await?;
        rest = LOOK_EVERY.max(began.elapsed() * LOOK_SHARE);
        let mut drifted = Vec::new();
        for standing in standings {
            match known.get(&standing.table) {
                None => return Ok(CaptureError::NewTable(standing.name)),
                Some(seen) if *seen != standing.seen => drifted.push(standing.name),
                Some(_) => {}
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
            (Some(now), Some(Standing::Published(stored)))
                if stored.holds(now, &table.new_parts) =>
            {
                Self::Whole(now.clone())
            }
            (Some(now), Some(_)) => Self::Drifted(now.clone()),
        }
    }
}

/// What the log has of a table's snapshot.
pub(super) fn resume(
    name: &str,
    chunks: Option<&ChunkState>,
) -> Result<Option<Resume>, CaptureError> {
    let Some(chunks) = chunks else {
        return Ok(None);
    };
    match Resume::decode(chunks.resume_after.clone()) {
        Some(resume) => Ok(Some(resume)),
        None => Err(CaptureError::Log(LogError::Unavailable(format!(
            "the progress of the snapshot of {name} was written by a newer version"
        )))),
    }
}

/// The same progress of a table, with another standing.
pub(super) fn restated(
    table: TableId,
    chunks: Option<&ChunkState>,
    resume: Resume,
    standing: Standing,
) -> ChunkDone {
    ChunkDone {
        table,
        // A table that has had no snapshot, and none is wanted of it.
        generation: chunks.map_or(0, |chunks| chunks.generation),
        resume_after: Resume { standing, ..resume }.encode(),
        rows: 0,
        last: chunks.is_none_or(|chunks| chunks.done),
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

/// Where the server is when everything is over that runs now.
pub(super) async fn settle(config: PostgresConfig) -> Result<Lsn, SourceError> {
    old_transactions_gone(&config).await?;
    Catalog::connect(&config).await?.current_position().await
}

impl Run<'_> {
    /// Notes of tables that are not captured now that they will have missed changes when they are again.
    pub(super) fn lapse(&mut self, state: &StreamState) {
        for (table, chunks) in state.chunks.iter() {
            if self.captured.get(table) == Some(&true) {
                continue;
            }
            let resume = Resume::decode(chunks.resume_after.clone());
            if let Some(resume) = resume.filter(|resume| resume.standing != Standing::Lapsed) {
                let lapsed = restated(*table, Some(chunks), resume, Standing::Lapsed);
                self.outbox.chunk_done(lapsed);
            }
        }
    }

    /// Wants the tables' next generation once the stream brings nothing more from before.
    pub(super) fn read_drifted(&mut self) -> Result<(), CaptureError> {
        if self.builder.in_transaction() || self.drift.high.is_none_or(|high| self.received < high)
        {
            return Ok(());
        }
        for (table, outline) in std::mem::take(&mut self.drift).tables {
            self.standings.insert(table, Standing::Published(outline));
            self.read_again(table);
        }
        // What came until here is not to come again after the generation's start.
        self.committed = Some(SourcePosition::Postgres(self.received));
        self.flush()
    }
}
