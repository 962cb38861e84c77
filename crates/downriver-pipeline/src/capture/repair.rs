//! What is done about a hole: the source is taken up anew, and in one append go its position, the hole itself as an event,
//! and a new generation of every table. The ordinary re-snapshot then finds the rows and, by its sweep, those deleted in
//! the hole.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use downriver_event::problem::Problem;
use downriver_event::{BlockBuilder, SourcePosition, TableSchema, pb};
use downriver_log::{ChunkDone, Log, Moved};

use super::outbox::{Outbox, Tip};
use super::progress::{Standing, wanted};
use super::registry::{Registered, Registry};
use super::request::{CaptureControl, Requested, needs_whole};
use super::{
    CaptureConfig, CaptureError, Database, chain, claim, mysql, postgres, problem_of, snapshot,
};
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

/// Holes that were repaired by themselves. One that comes again soon is not to have everything read all the time.
#[derive(Debug, Default)]
pub(super) struct Repairs {
    /// In a row, with less than [`FAR_BETWEEN`] from one to the next.
    count: u32,
    last: Option<Instant>,
}

const FAR_BETWEEN: Duration = Duration::from_secs(3_600);
const REST_MAX: Duration = Duration::from_secs(600);

impl Repairs {
    /// How long the next one is left alone: the first one not at all, and each one behind it for twice as long.
    fn rest(&mut self, now: Instant) -> Duration {
        let last = self.last.replace(now);
        if last.is_none_or(|last| now.duration_since(last) > FAR_BETWEEN) {
            self.count = 0;
        }
        let rest = match self.count {
            0 => Duration::ZERO,
            count => Duration::from_secs(1 << count.min(10)).min(REST_MAX),
        };
        self.count += 1;
        rest
    }
}

/// Stands still until the hole is repaired: when somebody asks for it, or by itself.
pub(super) async fn until_repaired(
    config: &CaptureConfig,
    log: &Arc<dyn Log>,
    status: &Board<SourceStatus>,
    control: &CaptureControl,
    repairs: &mut Repairs,
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
    let by_itself = config
        .repairs_holes
        .then(|| tokio::time::Instant::now() + repairs.rest(Instant::now()));
    loop {
        let request = match by_itself {
            Some(at) => tokio::select! {
                () = tokio::time::sleep_until(at) => None,
                request = requests.recv() => request,
            },
            None => requests.recv().await,
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
    let claimed = claim(log, &config.name).await?;
    let (name, known) = (&config.name, claimed.as_ref());
    let anew = match &config.database {
        Database::Postgres(source) => postgres::repair::begin_anew(name, source, known).await?,
        Database::Mysql(source) => mysql::repair::begin_anew(name, source, known).await?,
    };
    let Anew {
        position: start,
        identity,
        tables,
        debts,
    } = anew;
    let Some(state) = claimed else {
        // There was a slot to take up, and it was of no use: the first snapshot is still to come.
        log.open(&config.name, Some(start), identity).await?;
        return Ok(Requested::new());
    };
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_that_come_one_after_the_other_are_left_alone_for_longer_each_time() {
        let (mut repairs, mut now) = (Repairs::default(), Instant::now());
        let mut rest = |after: Duration| {
            now += after;
            repairs.rest(now).as_secs()
        };
        let soon = Duration::from_secs(1);
        let rests: Vec<u64> = (0..12).map(|_| rest(soon)).collect();
        assert_eq!(rests, [0, 2, 4, 8, 16, 32, 64, 128, 256, 512, 600, 600]);
        assert_eq!(rest(FAR_BETWEEN + soon), 0);
        assert_eq!(rest(soon), 2);
    }
}
