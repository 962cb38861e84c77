//! What is done about a hole: a new slot, and in one append its position, the hole itself as an event, and a new
//! generation of every table. The ordinary re-snapshot then finds the rows and, by its sweep, those deleted in the hole.
//!
//! The old slot is dropped first. Until the append is through, the new one therefore stands behind the log's position,
//! or there is none: a crash at any point leaves the hole, as it is found again, or the repair.

use std::collections::HashMap;
use std::sync::Arc;

use downriver_event::problem::Problem;
use downriver_event::{BlockBuilder, RowFilter, SourcePosition, TableId, pb};
use downriver_log::{ChunkDone, Log, Moved};
use downriver_source::SourceError;
use downriver_source::postgres::replication::Session;
use downriver_source::postgres::rules::uncovered;
use downriver_source::postgres::{reach, setup, slot};

use super::outbox::{Outbox, Tip};
use super::progress::{Resume, Standing};
use super::registry::{Registered, Registry};
use super::request::{CaptureControl, Requested, needs_whole};
use super::{CaptureConfig, CaptureError, captured, chain, problem_of, snapshot};
use crate::retry::Backoff;
use crate::status::{Board, SourceStatus, TableState};

/// Drops the slot before the server's disk is full of what is kept for it. Returns when the hole is repaired.
pub(super) async fn give_up(
    config: &CaptureConfig,
    log: &Arc<dyn Log>,
    status: &Board<SourceStatus>,
    control: &CaptureControl,
) {
    let mut backoff = Backoff::new();
    let max = config.wal_behind.max_bytes.unwrap_or_default();
    loop {
        match slot::give_up(&config.postgres, max).await {
            Ok(true) => break,
            // It has caught up meanwhile.
            Ok(false) => return,
            Err(error) => status.update(|s| s.problem = Some(error.problem())),
        }
        backoff.wait().await;
    }
    let position = captured(log, &config.name).ok().flatten();
    let position = position.map_or_else(String::new, |known| format!(" after {}", known.position));
    let reason = format!(
        "replication slot {:?} was given up because more than {} MiB of WAL were kept for it (max_wal_behind): changes{position} are not to be had",
        config.postgres.slot,
        max >> 20
    );
    let problem = SourceError::hole("DR-1029", reason).problem();
    tracing::error!(
        source = config.name,
        code = problem.code,
        "the slot was given up"
    );
    until_repaired(config, log, status, control, problem).await;
}

/// Stands still until the hole is repaired: when somebody asks for it, or at once.
pub(super) async fn until_repaired(
    config: &CaptureConfig,
    log: &Arc<dyn Log>,
    status: &Board<SourceStatus>,
    control: &CaptureControl,
    hole: Problem,
) {
    let code = hole.code;
    status.update(|s| {
        s.state = TableState::Stopped;
        s.problem = Some(hole);
        s.in_hole = true;
    });
    let mut requests = control.requests.lock().await;
    let mut backoff = Backoff::new();
    loop {
        let request = if config.repairs_holes {
            None
        } else {
            requests.recv().await
        };
        let request = match request {
            Some(request) if request.is_of_parts() => {
                let why = format!("source {:?} stands in a hole ({code})", config.name);
                let _ = request.answer.send(Err(needs_whole(why)));
                continue;
            }
            request => request,
        };
        let error = match repair(config, log, code).await {
            Ok(generations) => {
                status.update(|s| {
                    s.state = TableState::Pending;
                    s.problem = None;
                    s.in_hole = false;
                });
                if let Some(request) = request {
                    // Whoever asked may have given up.
                    let _ = request.answer.send(Ok(generations));
                }
                return;
            }
            Err(error) => error,
        };
        tracing::warn!(source = config.name, error = %chain(&error), "the hole is not repaired");
        let problem = problem_of(&error);
        match request {
            Some(request) => {
                let _ = request.answer.send(Err(problem));
            }
            None => {
                status.update(|s| s.problem = Some(problem));
                backoff.wait().await;
            }
        }
    }
}

/// Goes on behind a hole that has this code. Every captured table, and the generation that it will have.
async fn repair(
    config: &CaptureConfig,
    log: &Arc<dyn Log>,
    code: &str,
) -> Result<Requested, CaptureError> {
    let postgres = reach(&config.postgres).await?;
    let mut session = Session::connect(&postgres).await?;
    let known = captured(log, &config.name)?;
    let repaired = setup::repair(&postgres, &mut session, known.as_ref()).await?;
    let identity = repaired.identity.encode();
    let start = SourcePosition::Postgres(repaired.position);
    let state = log
        .open(&config.name, Some(start.clone()), identity.clone())
        .await?;
    if known.is_none() {
        // There was a slot to take up, and it was of no use: the first snapshot is still to come.
        return Ok(Requested::new());
    }
    let tip = Tip::of(&config.name, &state);
    let mut outbox = Outbox::new(Arc::clone(log), config.spill.clone(), tip);
    let mut registry = Registry::new(&state);
    let mut builder = BlockBuilder::new();
    builder.begin("hole".into(), snapshot::micros_since_epoch());
    builder.marker(pb::marker::Kind::Hole(pb::Hole {
        from: state.position.as_ref().map(SourcePosition::to_pb),
        to: Some(start.to_pb()),
        code: code.to_owned(),
    }));
    let mut generations = HashMap::new();
    for table in repaired.tables {
        let id = table.schema.id;
        let known = registry.newest(id);
        let goes_on = known.is_some_and(|known| table.goes_on_as(known));
        let uncovered = known.is_some_and(|known| uncovered(known, &table.schema).is_some());
        if table.problem.is_some() && !goes_on || uncovered {
            continue;
        }
        // One that is not published is read when it is.
        let Some(outline) = table.seen.outline else {
            continue;
        };
        if let Registered::New {
            schema,
            previous_version,
        } = registry.register(table.schema)
        {
            builder.marker(pb::marker::Kind::SchemaChange(pb::SchemaChange {
                schema: Some(schema.to_pb()),
                previous_version,
            }));
            outbox.register(schema);
        }
        // A table without a generation counts as having had the first: what it missed is in no stream.
        let last = state.chunks.get(&id).map_or(1, |chunks| chunks.generation);
        let generation = last.max(1) + 1;
        generations.insert(id, generation);
        let standing = Standing::Published(outline);
        outbox.chunk_done_with_open(wanted(id, generation, standing, None));
    }
    builder.commit_unplaced();
    outbox.commit(builder.cut(), Some(start))?;
    outbox.move_source(Moved {
        identity,
        anew: true,
    });
    outbox.append();
    outbox.appended().await?;
    tracing::warn!(
        source = config.name,
        code,
        from = %state.position.map_or_else(String::new, |position| position.to_string()),
        to = %repaired.position,
        "a hole is repaired by a new snapshot of every table"
    );
    Ok(generations.into_iter().collect())
}

/// A generation that is to be read from the start of the table, or of a part of it; every change of the table comes
/// while it stands so in the publication.
pub(super) fn wanted(
    table: TableId,
    generation: u64,
    standing: Standing,
    part: Option<RowFilter>,
) -> ChunkDone {
    let resume = Resume {
        requested: true,
        standing,
        part,
        ..Resume::default()
    };
    ChunkDone {
        table,
        generation,
        resume_after: resume.encode(),
        rows: 0,
        last: false,
    }
}
