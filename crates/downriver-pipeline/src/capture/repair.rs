//! What is done about a hole: a new slot, and in one append its position, the hole itself as an event, and a new
//! generation of every table. The ordinary re-snapshot then finds the rows and, by its sweep, those deleted in the hole.
//!
//! The old slot is dropped first. Until the append is through, the new one therefore stands behind the log's position,
//! or there is none: a crash at any point leaves the hole, as it is found again, or the repair.

use std::collections::HashMap;
use std::sync::Arc;

use downriver_event::{BlockBuilder, SourcePosition, TableId, pb};
use downriver_log::{ChunkDone, Log, Moved};
use downriver_source::postgres::replication::Session;
use downriver_source::postgres::{reach, setup};

use super::outbox::{Outbox, Tip};
use super::progress::Resume;
use super::registry::{Registered, Registry};
use super::request::Requested;
use super::{CaptureConfig, CaptureError, captured, snapshot};

/// Goes on behind a hole that has this code. Every captured table, and the generation that it will have.
pub(super) async fn repair(
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
    let tip = Tip {
        stream: config.name.clone(),
        incarnation: state.incarnation,
        epoch: state.epoch,
        next: state.next,
        position: state.position.clone(),
    };
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
    let captured = repaired.tables.into_iter().filter(|t| t.problem.is_none());
    for table in captured {
        let id = table.schema.id;
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
        generations.insert(id, last + 1);
        outbox.chunk_done_with_open(wanted(id, last + 1));
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

/// A generation that is to be read from the table's start.
pub(super) fn wanted(table: TableId, generation: u64) -> ChunkDone {
    let resume = Resume {
        requested: true,
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
