//! Snapshot progress in the node's log output.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::engine::NodeEngine;

const REPORT_EVERY: Duration = Duration::from_secs(5);

pub(super) async fn report(engine: Arc<NodeEngine>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(REPORT_EVERY) => {}
        }
        for (source, status) in engine.sources() {
            for (table, status) in status.tables {
                let Some(snapshot) = status.snapshot.filter(|s| s.rows_done < s.rows_estimated)
                else {
                    continue;
                };
                tracing::info!(
                    source,
                    table,
                    rows_done = snapshot.rows_done,
                    rows_estimated = snapshot.rows_estimated,
                    rows_per_second = snapshot.rows_per_second().round(),
                    seconds_left = snapshot.time_left().map(|left| left.as_secs()),
                    "snapshot"
                );
            }
        }
    }
}
