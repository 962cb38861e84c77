//! wait: until everything that was committed at a source before the call is delivered.
//!
//! The source's position at the call is passed when the capture has logged or skipped everything up to it; the
//! log's end at that moment is what the pipeline must have delivered. A snapshot is part of it: its rows were
//! committed before, so its tables must be complete in the log first, also those that were made a moment ago.

use std::time::Duration;

use downriver_api::admin::v1 as pb;
use downriver_event::problem::Problem;
use downriver_event::{Offset, SourcePosition, TableId};
use downriver_log::Log as _;
use downriver_pipeline::status::Known;
use downriver_pipeline::{DeliveryStatus, PipelineStatus, SourceStatus, TableState};
use downriver_service::spec::{Pipeline, Source};
use downriver_service::{Reached, Where};
use downriver_source::postgres::catalog::Catalog;
use downriver_source::postgres::publication::Seen;
use downriver_source::{SourceError, mysql};
use tokio::time::Instant;

use super::source_config::{Connection, connection};
use super::{NodeEngine, locked};

/// How often capture and delivery are looked at, and asked to hurry.
const LOOK_EVERY: Duration = Duration::from_millis(200);

impl NodeEngine {
    /// `shares`: those that have to be here; empty: this node answers for the pipeline. `until`: what the source's
    /// position is to be taken for; then its capture may be elsewhere.
    pub(super) async fn wait_caught_up(
        &self,
        name: &str,
        shares: &[u32],
        mut until: Option<Offset>,
        timeout: Duration,
    ) -> Result<Reached, Problem> {
        let deadline = Instant::now() + timeout;
        // Whoever asks for shares may know already what is another's now.
        while !shares.is_empty()
            && let Err(problem) = self.come_up().await
        {
            if Instant::now() >= deadline {
                return Err(problem);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        let pipeline = self.pipeline_spec(name)?;
        // What stands still is said before the database is asked.
        self.seen(name, &pipeline, until)?;
        let mut asked = match until {
            Some(_) => None,
            None => {
                let source = self.source_spec(&pipeline.source)?;
                let asked = asked(&pipeline.source, &source);
                let asked = tokio::time::timeout_at(deadline, asked).await;
                Some(asked.unwrap_or_else(|_| {
                    Err(timed_out(
                        timeout,
                        format!("source {:?} has not told its position", pipeline.source),
                        "see that the database answers",
                    ))
                })?)
            }
        };
        let position = asked.as_ref().map(|asked| asked.position.clone());
        loop {
            // It moved to another node meanwhile, which is to be asked.
            if !self.is_answered_here(name, &pipeline, shares) {
                return Err(moved(name));
            }
            let (capture, status) = self.seen(name, &pipeline, until)?;
            if let Some(asked) = &mut asked
                && until.is_none()
                && self
                    .is_logged(asked, capture.as_ref(), &pipeline, deadline)
                    .await
            {
                let next = self.node.state(&pipeline.source).map(|state| state.next);
                let passed = capture.as_ref().map(|c| c.passed_offset);
                until = next.max(passed);
            }
            if let Some(until) = until
                && status.delivered >= until
                && self.runs_as_stored(name)
                && !self.is_resuming(name, &status)
            {
                return Ok(Reached {
                    position: position.map(|at| at.to_string()).unwrap_or_default(),
                    until,
                    delivered: status.delivered,
                });
            }
            if Instant::now() >= deadline {
                return Err(behind(
                    name,
                    timeout,
                    position.as_ref(),
                    until,
                    capture.as_ref(),
                    &status,
                ));
            }
            self.hurry(name, &pipeline.source);
            tokio::time::sleep_until((Instant::now() + LOOK_EVERY).min(deadline)).await;
        }
    }

    fn is_answered_here(&self, name: &str, pipeline: &Pipeline, shares: &[u32]) -> bool {
        if shares.is_empty() {
            return matches!(self.owner_of(pb::Kind::Pipeline, name), Where::Here);
        }
        let here = self.shares_here(name, pipeline);
        shares.iter().all(|share| here.contains_key(share))
    }

    /// Whether everything that was committed when the database was asked is in the log.
    async fn is_logged(
        &self,
        asked: &mut Asked,
        capture: Option<&SourceStatus>,
        pipeline: &Pipeline,
        deadline: Instant,
    ) -> bool {
        let Asked {
            database,
            position,
            tables,
        } = asked;
        let known = capture.map(|capture| &capture.known);
        tables.retain(|table, seen| !is_known(known, *table, seen));
        // What is gone again will never be known, nor what has changed again. A database that does not answer
        // now is asked again.
        if !tables.is_empty()
            && let Ok(Ok(now)) = tokio::time::timeout_at(deadline, database.standings()).await
        {
            tables.retain(|table, _| {
                let now = now.get(table);
                now.is_some_and(|now| !is_known(known, *table, now))
            });
        }
        tables.is_empty()
            && capture.is_some_and(|c| c.has_passed(position) && snapshots_are_logged(c, pipeline))
    }

    /// Whether a table was resumed that the delivery still leaves out, and does not count.
    fn is_resuming(&self, name: &str, status: &PipelineStatus) -> bool {
        let (paused, approved) = (self.paused(name), self.approved(name));
        let mut tables = status.tables.iter();
        tables.any(|(table, status)| {
            let waits = status.held.is_some_and(|(id, version)| {
                approved.get(&id).is_none_or(|approved| *approved < version)
            });
            status.state == TableState::Paused && !waits && !paused.has(table)
        })
    }

    fn hurry(&self, name: &str, source: &str) {
        if let Some(capture) = locked(&self.captures).get(source) {
            capture.control.nudge.notify_one();
        }
        for control in self.controls(name).into_values() {
            control.flush.notify_one();
        }
    }

    /// Capture and delivery as they are now, or what keeps them from ever catching up with this offset.
    fn seen(
        &self,
        name: &str,
        pipeline: &Pipeline,
        until: Option<Offset>,
    ) -> Result<(Option<SourceStatus>, PipelineStatus), Problem> {
        let (capture, status) = self.seen_running(name, pipeline)?;
        for (table, status) in capture.iter().flat_map(|capture| &capture.tables) {
            let (schema, table) = table.split_once('.').unwrap_or_default();
            if pipeline.delivers(schema, table) {
                stopped(status.state, status.problem.as_ref())?;
            }
        }
        for table in status.tables.values() {
            // What waits for its rows to be read again may be asked for behind.
            if table
                .unasked
                .is_some_and(|at| until.is_none_or(|until| at < until))
            {
                continue;
            }
            stopped(table.state, table.problem.as_ref())?;
        }
        let mut tables = status.tables.values();
        let mut running = tables.by_ref().filter(|t| t.state != TableState::Refused);
        let first = running.next();
        let paused = |table: &DeliveryStatus| table.state == TableState::Paused;
        // Where tables are shared out, those of the other shares may go on.
        if let Some(first) = first.filter(|first| paused(first))
            && running.all(paused)
            && pipeline.shares() == 1
        {
            return Err(first.problem.clone().unwrap_or_else(|| is_paused(name)));
        }
        Ok((capture, status))
    }

    /// The same, whatever the tables' states are.
    pub(super) fn seen_running(
        &self,
        name: &str,
        pipeline: &Pipeline,
    ) -> Result<(Option<SourceStatus>, PipelineStatus), Problem> {
        if let Some(problem) = self.why_not_started(pb::Kind::Source, &pipeline.source) {
            return Err(problem);
        }
        let capture = locked(&self.captures)
            .get(&pipeline.source)
            .map(|capture| capture.status.get());
        if let Some(capture) = &capture {
            stopped(capture.state, capture.problem.as_ref())?;
        }
        let status = self.view(name, pipeline).status;
        stopped(status.state, status.problem.as_ref())?;
        if status.state == TableState::Paused {
            return Err(is_paused(name));
        }
        Ok((capture, status))
    }
}

/// Whether the rows of every snapshot that a pipeline delivers are in the log.
fn snapshots_are_logged(capture: &SourceStatus, pipeline: &Pipeline) -> bool {
    // Before it has connected it does not know its tables.
    let knows_tables = capture.state != TableState::Pending;
    let mut read = capture
        .tables
        .iter()
        .filter(|(_, table)| matches!(table.state, TableState::Pending | TableState::Snapshotting));
    knows_tables
        && !read.any(|(name, _)| {
            let (schema, table) = name.split_once('.').unwrap_or_default();
            pipeline.delivers(schema, table)
        })
}

/// A session with a source's database.
enum Session {
    Postgres(Catalog),
    Mysql(mysql::catalog::Catalog),
}

/// What a database says when the wait begins.
struct Asked {
    database: Session,
    position: SourcePosition,
    /// The tables that are to be captured, as they stand in the publication.
    tables: Known,
}

async fn asked(name: &str, source: &Source) -> Result<Asked, Problem> {
    let connection = connection(name, source)?;
    let asked = async {
        let mut database = match &connection {
            Connection::Postgres(config) => Session::Postgres(Catalog::connect(config).await?),
            Connection::Mysql(config) => {
                Session::Mysql(mysql::catalog::Catalog::connect(config).await?)
            }
        };
        Ok::<_, SourceError>(Asked {
            tables: database.standings().await?,
            position: database.position().await?,
            database,
        })
    };
    asked.await.map_err(|error| error.problem())
}

impl Session {
    async fn position(&mut self) -> Result<SourcePosition, SourceError> {
        match self {
            Self::Postgres(catalog) => {
                Ok(SourcePosition::Postgres(catalog.current_position().await?))
            }
            Self::Mysql(catalog) => catalog.position().await,
        }
    }

    /// How tables stand in the publication. In a binlog they come and change at positions of their own.
    async fn standings(&self) -> Result<Known, SourceError> {
        match self {
            Self::Postgres(catalog) => {
                let standings = catalog.standings().await?.into_iter();
                let known = standings.map(|standing| (standing.table, standing.seen));
                Ok(known.collect())
            }
            Self::Mysql(_) => Ok(Known::new()),
        }
    }
}

/// Whether a capture has decided what becomes of a table that is seen so.
fn is_known(known: Option<&Known>, table: TableId, seen: &Seen) -> bool {
    let known = known.and_then(|known| known.get(&table));
    known.is_some_and(|known| known == seen || known.goes_on_as(seen))
}

fn stopped(state: TableState, problem: Option<&Problem>) -> Result<(), Problem> {
    match (state, problem) {
        (TableState::Stopped, Some(problem)) => Err(problem.clone()),
        _ => Ok(()),
    }
}

fn moved(name: &str) -> Problem {
    Problem::new(
        "DR-1109",
        format!("pipeline {name:?} moved to another node"),
        "ask again",
    )
}

fn is_paused(name: &str) -> Problem {
    Problem::new(
        "DR-2025",
        format!("pipeline {name:?} is paused"),
        format!("downriver resume {name}"),
    )
}

fn timed_out(timeout: Duration, reason: String, fix: &str) -> Problem {
    Problem::new(
        "DR-2024",
        format!("not caught up after {} s: {reason}", timeout.as_secs_f64()),
        fix,
    )
}

fn behind(
    name: &str,
    timeout: Duration,
    position: Option<&SourcePosition>,
    until: Option<Offset>,
    capture: Option<&SourceStatus>,
    status: &PipelineStatus,
) -> Problem {
    let reason = match (until, capture.zip(position)) {
        (Some(until), _) => format!(
            "pipeline {name:?} has delivered up to offset {} of {until}",
            status.delivered
        ),
        (None, Some((capture, position))) if !capture.has_passed(position) => match &capture.passed
        {
            Some(passed) => format!("the source's log is at {passed} of {position}"),
            None => format!("the source's log has not begun to come to {position}"),
        },
        (None, Some(_)) => "a snapshot is being taken".into(),
        (None, None) => "the source's capture has not begun".into(),
    };
    // What is being tried again is the likely cause.
    let cause = capture
        .and_then(|c| c.problem.as_ref())
        .or(status.problem.as_ref());
    match cause {
        Some(cause) => timed_out(
            timeout,
            format!("{reason}; {}: {}", cause.code, cause.reason),
            &cause.fix,
        ),
        None => timed_out(
            timeout,
            reason,
            "see downriver status for its pace, and wait again with a longer --timeout",
        ),
    }
}
