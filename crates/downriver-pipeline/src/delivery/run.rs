//! One run of a delivery: open the tables, read, cut, until something fails or it is told to stop.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use downriver_event::block::Block;
use downriver_event::{Offset, TableId};
use downriver_lake::Changes;
use downriver_log::{Log, ReadError, StoredBlock, StreamState};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::control::HoldRequest;
use super::tables::{Claim, Tables};
use super::{Control, Cut, DeliveryConfig, DeliveryError, Progress, Told};
use crate::status::{Board, PipelineStatus, TableState};

/// Compressed bytes of one read.
const READ_BYTES_MAX: usize = 4 << 20;
/// Bytes of changes that all tables together hold in memory before they are written to files.
const WINDOW_BYTES_MAX: usize = 24 << 20;
/// A look at whether the stream is there yet.
const LOOK_EVERY: Duration = Duration::from_millis(200);

struct Run<'a> {
    config: &'a DeliveryConfig,
    log: &'a Arc<dyn Log>,
    board: &'a Board<PipelineStatus>,
    tables: Tables<'a>,
    told: Told,
    /// A table has to be taken back to where its open transaction begins, or others belong to this share than before.
    reopen: bool,
    /// Everything before it was applied to the running tables.
    next: Offset,
    /// The last boundary between transactions that `next` has passed.
    boundary: Offset,
    /// Everything before it is in the lake, as far as tables run.
    delivered: Offset,
    /// Bytes of the blocks that the windows hold.
    held_bytes: usize,
    /// When the oldest change that is not committed was applied.
    oldest: Option<Instant>,
    /// Commit time of the newest transaction that was applied.
    time_us: i64,
    excluded: BTreeSet<TableId>,
}

/// Returns without an error when it is told to stop, when something else is said of the tables than before, and when one
/// has to be opened anew.
pub(super) async fn run(
    config: &DeliveryConfig,
    log: &Arc<dyn Log>,
    progress: &Arc<dyn Progress>,
    board: &Board<PipelineStatus>,
    control: &Control,
    stop: &CancellationToken,
) -> Result<(), DeliveryError> {
    let mut told = control.told.subscribe();
    let mut changes = log.changes();
    let state = loop {
        match log.state(&config.source) {
            Some(state) => break state,
            None => tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(LOOK_EVERY) => {}
            },
        }
    };
    let said = told.borrow_and_update().clone();
    let mut run = Run {
        config,
        log,
        board,
        tables: Tables::new(config, progress, control, said.approved.clone()),
        told: said,
        reopen: false,
        next: Offset(0),
        boundary: Offset(0),
        delivered: Offset(0),
        held_bytes: 0,
        oldest: None,
        time_us: 0,
        excluded: BTreeSet::new(),
    };
    run.tables.share_out(&state.schemas);
    let first = run.tables.first_of_new(&state)?;
    run.open(&state, first).await?;
    run.next = run.tables.next().unwrap_or(state.next);
    run.boundary = run.next;
    run.delivered = run.next;
    run.tables.show(board, |status| {
        status.state = TableState::Streaming;
        status.problem = None;
        status.delivered = run.next;
    });

    let mut holds = control.holds.lock().await;
    let mut flush = false;
    while !run.reopen {
        // Looked at here, so that whoever asks often does not keep a slow read from ever ending.
        flush |= was_asked(&control.flush).await;
        if run.due(flush) {
            run.cut(run.boundary).await?;
        }
        flush &= run.boundary != run.next;
        let until_due = run.until_due();
        tokio::select! {
            biased;
            () = stop.cancelled() => return Ok(()),
            changed = told.changed() => {
                // The sender lives as long as the delivery.
                if changed.is_ok() && *told.borrow() != run.told {
                    return run.cut_if_between().await;
                }
            }
            Some(request) = holds.recv() => run.hold(request, stop).await?,
            read = log.read(&config.source, run.next, READ_BYTES_MAX) => {
                let blocks = read?;
                if blocks.is_empty() {
                    tokio::select! {
                        () = stop.cancelled() => return Ok(()),
                        _ = changes.changed() => {}
                        () = tokio::time::sleep(until_due) => {}
                        () = control.flush.notified() => flush = true,
                        changed = told.changed() => {
                            if changed.is_ok() && *told.borrow() != run.told {
                                return run.cut_if_between().await;
                            }
                        }
                        Some(request) = holds.recv() => run.hold(request, stop).await?,
                    }
                } else {
                    run.take(blocks, None).await?;
                }
            }
        }
    }
    Ok(())
}

/// Whether somebody notified it since the last look.
async fn was_asked(notify: &Notify) -> bool {
    tokio::select! {
        biased;
        () = notify.notified() => true,
        () = std::future::ready(()) => false,
    }
}

impl Run<'_> {
    async fn open(&mut self, state: &StreamState, first: Offset) -> Result<(), DeliveryError> {
        let paused = self.told.paused.clone();
        self.tables
            .open(state, first, |name| paused.contains(name))
            .await
    }

    /// Whether a cut has to be made now.
    fn due(&self, flush: bool) -> bool {
        let between = self.boundary == self.next;
        let old = self
            .oldest
            .is_some_and(|oldest| oldest.elapsed() >= self.config.freshness);
        between && (old || flush || (self.oldest.is_none() && self.delivered < self.next))
    }

    fn until_due(&self) -> Duration {
        self.oldest.map_or(Duration::from_secs(3_600), |oldest| {
            self.config.freshness.saturating_sub(oldest.elapsed())
        })
    }

    /// Applies blocks, up to `end` if it is given.
    async fn take(
        &mut self,
        blocks: Vec<StoredBlock>,
        end: Option<Offset>,
    ) -> Result<(), DeliveryError> {
        for stored in blocks {
            let block_end = end.map_or(stored.end(), |end| end.min(stored.end()));
            if block_end <= self.next {
                break;
            }
            self.block(&stored, block_end).await?;
            if self.reopen {
                break;
            }
            if self.held_bytes + self.tables.window_bytes() > WINDOW_BYTES_MAX {
                self.tables.spill().await?;
                self.held_bytes = 0;
            }
        }
        Ok(())
    }

    async fn block(&mut self, stored: &StoredBlock, end: Offset) -> Result<(), DeliveryError> {
        let state = self.log.state(&self.config.source);
        let schemas = state.map(|state| Arc::clone(&state.schemas));
        let schemas = schemas.unwrap_or_default();
        // Before anything of the block: a name that moves is for the one that has both tables.
        if self.tables.share_out(&schemas) {
            self.reopen = true;
            return Ok(());
        }
        let block = Block::decode(&stored.frame)?;
        let mut changes = Changes::new(stored.base, block);
        changes.continues = self.boundary != self.next;
        self.meet(&changes).await?;
        let mut met = false;
        loop {
            let claim = self.tables.next_claim(&changes, end, &schemas);
            let before = claim.as_ref().map_or(end, |claim| claim.at.plus(1));
            let found = self
                .tables
                .next_held(&changes, before, self.boundary, &schemas);
            let claimed = |claim: &Claim| self.tables.held_claim(claim, &schemas);
            if let Some(held) = found.or_else(|| claim.as_ref().and_then(claimed)) {
                self.reopen = !held.is_between;
                self.tables.hold(held);
                if self.reopen {
                    return Ok(());
                }
                continue;
            }
            let Some(claim) = claim else {
                break;
            };
            self.tables.apply(&changes, claim.begin, &schemas).await?;
            let state = self.log.state(&self.config.source);
            let state = state.ok_or_else(|| ReadError::NoStream(self.config.source.clone()))?;
            let paused = |name: &str| self.told.paused.contains(name);
            self.tables.claim(claim, &state, paused).await?;
            met = true;
        }
        met |= self.tables.apply(&changes, end, &schemas).await?;
        self.next = end;
        let events = end.0 - stored.base.0;
        for transaction in &changes.transactions {
            let ends_at = u64::from(transaction.first_event) + u64::from(transaction.events);
            if ends_at > events {
                break;
            }
            self.time_us = self.time_us.max(transaction.commit_time_us);
            if transaction.ends {
                self.boundary = stored.base.plus(ends_at);
            }
        }
        if met {
            self.tables.show(self.board, |_| {});
        }
        if self.tables.hold_rows() {
            self.held_bytes += downriver_event::block::check_frame(&stored.frame)
                .map_or(stored.frame.len(), |frame| frame.uncompressed_len);
        }
        if self.tables.has_changes() {
            self.oldest.get_or_insert_with(Instant::now);
        }
        self.board.update(|status| status.events += events);
        Ok(())
    }

    /// Opens tables that the stream brings for the first time.
    async fn meet(&mut self, changes: &Changes) -> Result<(), DeliveryError> {
        use downriver_event::pb::marker::Kind;
        let announced = changes
            .markers
            .iter()
            .filter_map(|marker| match &marker.kind {
                Some(Kind::SchemaChange(change)) => change
                    .schema
                    .as_ref()
                    .map(|schema| TableId(schema.table_id)),
                _ => None,
            });
        let unknown: Vec<TableId> = announced
            .chain(changes.tables())
            .filter(|table| !self.tables.has(*table) && !self.excluded.contains(table))
            .collect();
        if unknown.is_empty() {
            return Ok(());
        }
        if let Some(state) = self.log.state(&self.config.source) {
            self.open(&state, changes.base).await?;
        }
        // Those that are still not there are not wanted.
        let not_wanted = unknown.into_iter().filter(|table| !self.tables.has(*table));
        self.excluded.extend(not_wanted.collect::<Vec<_>>());
        self.tables.show(self.board, |_| {});
        Ok(())
    }

    async fn cut(&mut self, at: Offset) -> Result<(), DeliveryError> {
        if let Some(state) = self.log.state(&self.config.source) {
            self.tables.leave_unawaited(at, &state);
        }
        self.tables.commit(at).await?;
        // What is built beside is not written at a cut, but when memory is full.
        if !self.tables.hold_rows() {
            self.held_bytes = 0;
        }
        self.oldest = None;
        self.delivered = at;
        let delivered = self.tables.delivered(at);
        let time_us = self.time_us;
        self.tables.show(self.board, |status| {
            status.delivered = delivered;
            if delivered == at {
                status.delivered_time_us = time_us;
            }
            status.problem = None;
        });
        Ok(())
    }

    async fn cut_if_between(&mut self) -> Result<(), DeliveryError> {
        if self.boundary == self.next {
            self.cut(self.boundary).await?;
        }
        Ok(())
    }

    /// Stands still at a boundary until told where to cut.
    async fn hold(
        &mut self,
        request: HoldRequest,
        stop: &CancellationToken,
    ) -> Result<(), DeliveryError> {
        // A transaction that was begun is finished first.
        while self.boundary != self.next {
            let blocks = self.read_some(stop).await?;
            if stop.is_cancelled() {
                return Ok(());
            }
            self.take(blocks, None).await?;
            if self.reopen {
                return Ok(());
            }
        }
        self.cut(self.boundary).await?;
        let HoldRequest { held, cut, done } = request;
        if held.send(self.next).is_err() {
            return Ok(());
        }
        let cut = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            cut = cut => cut,
        };
        let Ok(at) = cut else {
            return Ok(());
        };
        while self.next < at {
            let blocks = self.read_some(stop).await?;
            if stop.is_cancelled() {
                return Ok(());
            }
            self.take(blocks, Some(at)).await?;
            if self.reopen {
                return Ok(());
            }
        }
        self.cut(at.max(self.boundary)).await?;
        let tables = self.tables.cuts().await?;
        // Whoever asked may be gone.
        let _ = done.send(Cut {
            at: self.next,
            tables,
        });
        Ok(())
    }

    async fn read_some(&self, stop: &CancellationToken) -> Result<Vec<StoredBlock>, DeliveryError> {
        let mut changes = self.log.changes();
        loop {
            let blocks = self
                .log
                .read(&self.config.source, self.next, READ_BYTES_MAX)
                .await?;
            if !blocks.is_empty() {
                return Ok(blocks);
            }
            tokio::select! {
                () = stop.cancelled() => return Ok(Vec::new()),
                _ = changes.changed() => {}
            }
        }
    }
}
