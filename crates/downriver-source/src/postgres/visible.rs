//! When what the stream told of is in the catalog.
//!
//! A commit is logged, and sent, before it becomes visible to others: its backend may be slow, or wait for a synchronous
//! standby (`RecordTransactionCommit` and `ProcArrayEndTransaction` in `CommitTransaction` of PostgreSQL's source). Until
//! then the catalog shows tables as they were before it. A shape that came from another transaction needs no more waiting:
//! its lock is released after it became visible, and only then can a row of the new shape be written.

use std::time::Duration;

use super::catalog::Catalog;
use super::snapshot::PgSnapshot;
use crate::error::SourceError;

const LOOK_EVERY: Duration = Duration::from_millis(5);

impl Catalog {
    /// Returns when a committed transaction is visible to this session's next statement.
    ///
    /// # Errors
    /// The query failed.
    pub async fn until_visible(&self, xid: u32) -> Result<(), SourceError> {
        // A standby sends nothing before it shows it.
        while !self.is_standby().await? && !PgSnapshot::current(self.client()).await?.sees(xid) {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }
}
