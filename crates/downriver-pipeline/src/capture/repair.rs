//! What is done about a hole: the source is taken up anew, and in one append go its position, the hole itself as an event,
//! and a new generation of every table. The ordinary re-snapshot then finds the rows and, by its sweep, those deleted in
//! the hole.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use downriver_event::problem::Problem;
use downriver_event::{BlockBuilder, SourcePosition, TableSchema, pb};
use downriver_log::{ChunkDone, Log, Moved};

use super::outbox::{Outbox, Tip};
use super::progress::{Standing, wanted};
use super::registry::{Registered, Registry};
use super::request::{CaptureControl, Requested, needs_whole};
use super::{CaptureConfig, CaptureError, Database, chain, mysql, postgres, problem_of, snapshot};
use crate::retry::Backoff;
use crate::status::{Board, SourceStatus, TableState};

/// Where a source goes on behind a hole.
pub(super) struct Anew {
    pub(super) position: SourcePosition,
    pub(super) identity: Bytes,
    /// The tables that are captured, each with its standing there.
    pub(super) tables: Vec<(TableSchema, Standing)>,
    /// Stored in the place of what was not in the log yet: nothing of before counts any more.
    pub(super) debts: Option<ChunkDone>,
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
    let anew = match &config.database {
        Database::Postgres(source) => {
            postgres::repair::begin_anew(&config.name, source, log).await?
        }
        Database::Mysql(source) => mysql::repair::begin_anew(&config.name, source, log).await?,
    };
    let is_known = log
        .state(&config.name)
        .is_some_and(|state| state.position.is_some());
    let Anew {
        position: start,
        identity,
        tables,
        debts,
    } = anew;
    let state = log
        .open(&config.name, Some(start.clone()), identity.clone())
        .await?;
    if !is_known {
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
    for (schema, standing) in tables {
        let id = schema.id;
        if let Registered::New {
            schema,
            previous_version,
        } = registry.register(schema)
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
        outbox.chunk_done_with_open(wanted(id, generation, standing, None));
    }
    if let Some(debts) = debts {
        outbox.chunk_done_with_open(debts);
    }
    builder.commit_unplaced();
    outbox.commit(builder.cut(), Some(start.clone()))?;
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
        to = %start,
        "a hole is repaired by a new snapshot of every table"
    );
    Ok(generations.into_iter().collect())
}
