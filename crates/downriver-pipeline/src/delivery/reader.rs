//! Reads a stream once for all of a pipeline's tables: opens each block a single time and hands it to the
//! tables that it speaks of. A table that starts (again) further back is served from there; tables that
//! stand further on pass over what they have.

use std::collections::HashMap;
use std::sync::Arc;

use downriver_event::block::Block;
use downriver_event::{Offset, TableId};
use downriver_log::{Log, ReadError, StoredBlock};

use super::table::{Fed, TableFeed};

/// Bytes of one read of the log.
const READ_BYTES_MAX: usize = 8 << 20;

/// A block as tables get it.
#[derive(Debug)]
pub(super) struct OpenBlock {
    pub(super) base: Offset,
    pub(super) end: Offset,
    pub(super) block: Block,
    /// Whether a transaction goes on in the next block.
    pub(super) continues: bool,
    pub(super) commit_time_us: i64,
}

pub(super) struct Reader {
    log: Arc<dyn Log>,
    stream: String,
}

impl Reader {
    pub(super) fn new(log: Arc<dyn Log>, stream: String) -> Self {
        Self { log, stream }
    }

    /// Feeds the tables that are furthest behind, or waits for something to read. May be dropped at any
    /// await: a table's feed knows what it was given.
    pub(super) async fn next(&self, feeds: &mut HashMap<TableId, TableFeed>) -> Result<(), ReadError> {
        let mut changes = self.log.changes();
        changes.borrow_and_update();
        let end = self.log.state(&self.stream).map_or(Offset(0), |state| state.next);
        let behind = feeds.values().filter_map(TableFeed::wants).filter(|offset| *offset < end).min();
        let Some(from) = behind else {
            tokio::select! {
                _ = changes.changed() => {}
                () = any_moved(feeds) => {}
            }
            return Ok(());
        };
        for stored in self.log.read(&self.stream, from, READ_BYTES_MAX).await? {
            let open = Arc::new(self.open(&stored)?);
            let mut tables: Vec<TableId> = open.block.groups.iter().map(|g| g.table).collect();
            tables.extend(marker_tables(&open.block));
            for (table, feed) in feeds.iter_mut() {
                // Only a table that has everything before the block may get it.
                if feed.wants().is_some_and(|wants| wants >= open.base && wants < open.end) {
                    let fed = if tables.contains(table) {
                        Fed::Block(Arc::clone(&open))
                    } else {
                        Fed::Passed { to: open.end, continues: open.continues }
                    };
                    feed.give(fed, open.end, stored.frame.len()).await;
                }
            }
        }
        Ok(())
    }

    fn open(&self, stored: &StoredBlock) -> Result<OpenBlock, ReadError> {
        let block = Block::decode(&stored.frame).map_err(|error| ReadError::Damaged {
            object: self.stream.clone(),
            position: 0,
            offset: stored.base,
            reason: error.to_string(),
        })?;
        Ok(OpenBlock {
            base: stored.base,
            end: stored.end(),
            continues: block.transactions.last().is_some_and(|last| !last.ends),
            commit_time_us: block.transactions.last().map_or(0, |last| last.commit_time_us),
            block,
        })
    }
}

async fn any_moved(feeds: &mut HashMap<TableId, TableFeed>) {
    let waits: Vec<_> = feeds.values_mut().map(|feed| Box::pin(feed.moved())).collect();
    if waits.is_empty() {
        return std::future::pending().await;
    }
    futures_util::future::select_all(waits).await;
}

fn marker_tables(block: &Block) -> Vec<TableId> {
    use downriver_event::pb::marker::Kind;
    let of = |marker: &downriver_event::pb::Marker| match &marker.kind {
        Some(Kind::SchemaChange(change)) => change.schema.iter().map(|s| TableId(s.table_id)).collect(),
        Some(Kind::SnapshotStart(start)) => vec![TableId(start.table_id)],
        Some(Kind::SnapshotEnd(end)) => vec![TableId(end.table_id)],
        Some(Kind::Truncate(truncate)) => truncate.table_ids.iter().map(|id| TableId(*id)).collect(),
        Some(Kind::Message(_)) | None => Vec::new(),
    };
    block.markers.iter().flat_map(of).collect()
}
