//! What becomes of the slot in a hole.
//!
//! The old slot is dropped first. Until the append that repairs the hole is through, the new one therefore stands behind
//! the log's position, or there is none: a crash at any point leaves the hole, as it is found again, or the repair.

use std::sync::Arc;

use downriver_event::SourcePosition;
use downriver_event::problem::Problem;
use downriver_log::{Log, StreamState};
use downriver_source::SourceError;
use downriver_source::postgres::replication::Session;
use downriver_source::postgres::{reach, setup, slot};
use downriver_source::rules::uncovered;

use super::super::CaptureError;
use super::super::progress::Standing;
use super::super::repair::Anew;
use super::{PostgresSource, captured};
use crate::retry::Backoff;
use crate::status::{Board, SourceStatus};

/// Drops the slot before the server's disk is full of what is kept for it. The hole that this makes; `None`: it has
/// caught up meanwhile.
pub(in super::super) async fn give_up(
    name: &str,
    source: &PostgresSource,
    log: &Arc<dyn Log>,
    status: &Board<SourceStatus>,
) -> Option<Problem> {
    let mut backoff = Backoff::new();
    let max = source.wal_behind.max_bytes.unwrap_or_default();
    loop {
        match slot::give_up(&source.connection, max).await {
            Ok(true) => break,
            Ok(false) => return None,
            Err(error) => status.update(|s| s.problem = Some(error.problem())),
        }
        backoff.wait().await;
    }
    let position = captured(name, log.state(name).as_deref()).ok().flatten();
    let position = position.map_or_else(String::new, |known| format!(" after {}", known.position));
    let reason = format!(
        "replication slot {:?} was given up because more than {} MiB of WAL were kept for it (max_wal_behind): changes{position} are not to be had",
        source.connection.slot,
        max >> 20
    );
    let problem = SourceError::hole("DR-1029", reason).problem();
    tracing::error!(source = name, code = problem.code, "the slot was given up");
    Some(problem)
}

/// A new slot, and the tables as they are behind it.
pub(in super::super) async fn begin_anew(
    name: &str,
    source: &PostgresSource,
    state: Option<&StreamState>,
) -> Result<Anew, CaptureError> {
    let postgres = reach(&source.connection).await?;
    let mut session = Session::connect(&postgres).await?;
    let known = captured(name, state)?;
    let repaired = setup::repair(&postgres, &mut session, known.as_ref()).await?;
    let mut tables = Vec::new();
    for table in repaired.tables {
        let known = state.and_then(|state| state.newest_schema(table.schema.id));
        let goes_on = known.is_some_and(|known| table.goes_on_as(known));
        let uncovered = known.is_some_and(|known| uncovered(known, &table.schema).is_some());
        if table.problem.is_some() && !goes_on || uncovered {
            continue;
        }
        // One that is not published is read when it is.
        if let Some(outline) = table.seen.outline {
            tables.push((table.schema, Standing::Published(outline)));
        }
    }
    Ok(Anew {
        position: SourcePosition::Postgres(repaired.position),
        identity: repaired.identity.encode(),
        tables,
        debts: None,
    })
}
