//! Waiting for the transactions that run now.

use std::time::Duration;

use downriver_event::Lsn;
use downriver_source::SourceError;
use downriver_source::chunk::ChunkReader as _;
use downriver_source::postgres::catalog::Catalog;
use downriver_source::postgres::config::PostgresConfig;
use downriver_source::postgres::snapshot::SnapshotSession;
use downriver_source::postgres::standby;

/// How often the server is looked at.
const POLL: Duration = Duration::from_millis(200);

/// Where the server is when everything is over that runs now.
pub(super) async fn settle(config: PostgresConfig) -> Result<Lsn, SourceError> {
    old_transactions_gone(&config).await?;
    Catalog::connect(&config).await?.current_position().await
}

/// Waits until every transaction that runs now is over, and so visible or void to every later snapshot. What a chunk sees
/// afterwards differs from the stream only by transactions that are streamed from now on.
pub(super) async fn old_transactions_gone(config: &PostgresConfig) -> Result<(), SourceError> {
    if standby::old_transactions_gone(config).await? {
        return Ok(());
    }
    let session = SnapshotSession::connect(config).await?;
    let mut old = session.running_transactions().await?;
    while !old.is_empty() {
        tokio::time::sleep(POLL).await;
        let running = session.running_transactions().await?;
        old.retain(|xid| running.contains(xid));
    }
    Ok(())
}
