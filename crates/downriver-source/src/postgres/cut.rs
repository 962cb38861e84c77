//! A whole database at exactly one position: what a temporary slot exports at its consistent point.
//!
//! The exported snapshot sees every transaction that committed before the consistent point and no other
//! (PostgreSQL manual, "Exported snapshots" under logical decoding): so rows read through it are what the stream
//! makes of everything up to that position. The server waits for transactions that run when the slot is made.

use std::sync::atomic::{AtomicU64, Ordering};

use downriver_event::{Lsn, TableSchema};

use super::catalog::{Catalog, parse_lsn};
use super::config::PostgresConfig;
use super::copy::BinaryRow;
use super::reach;
use super::replication::Session;
use super::snapshot::copy_table;
use super::standby::{waits_for_primary, with_running_transactions};
use crate::error::SourceError;

/// Cuts that this process has taken.
static TAKEN: AtomicU64 = AtomicU64::new(0);

/// Where a temporary slot begins: everything that ran when it was asked for is over there. The slot goes with it.
pub(super) struct ConsistentPoint {
    _session: Session,
    position: Lsn,
    /// The exported snapshot's name.
    snapshot: String,
}

impl ConsistentPoint {
    /// # Errors
    /// The server cannot be reached or has no slot left, or a standby's primary does not tell in time what runs.
    pub(super) async fn find(config: &PostgresConfig) -> Result<Self, SourceError> {
        let mut session = Session::connect(config).await?;
        // Two may be taken at once, and one that was dropped may still be there.
        let name = format!(
            "{}_cut_{}_{}",
            config.slot,
            std::process::id(),
            TAKEN.fetch_add(1, Ordering::Relaxed)
        );
        let create = format!(
            "CREATE_REPLICATION_SLOT \"{}\" TEMPORARY LOGICAL pgoutput EXPORT_SNAPSHOT",
            &name[name.len().saturating_sub(63)..]
        );
        let created = if Catalog::connect(config).await?.is_standby().await? {
            let created = with_running_transactions(config, session.query(&create)).await;
            created.ok_or_else(|| waits_for_primary(config, "a temporary slot"))??
        } else {
            session.query(&create).await?
        };
        let [_, Some(position), Some(snapshot), ..] = &created[..] else {
            return Err(SourceError::definite(
                "DR-1040",
                "the server made a slot and named no snapshot",
                "report it with the server's version",
            ));
        };
        Ok(Self {
            position: parse_lsn(position)?,
            snapshot: snapshot.clone(),
            _session: session,
        })
    }
}

/// Holds the snapshot as long as it lives.
pub struct DatabaseCut {
    point: ConsistentPoint,
    reader: Catalog,
}

impl DatabaseCut {
    /// # Errors
    /// The server cannot be reached or has no slot left, or a standby's primary does not tell in time what runs.
    pub async fn take(config: &PostgresConfig) -> Result<Self, SourceError> {
        let config = &reach(config).await?;
        let point = ConsistentPoint::find(config).await?;
        let reader = Catalog::connect(config).await?;
        reader
            .client()
            .batch_execute(&format!(
                "begin isolation level repeatable read read only; set transaction snapshot {}",
                super::sql::literal(&point.snapshot)
            ))
            .await?;
        Ok(Self { point, reader })
    }

    /// Every commit that ends at or before it is seen, and no other.
    #[must_use]
    pub fn position(&self) -> Lsn {
        self.point.position
    }

    /// The planner's estimate of a table's rows.
    ///
    /// # Errors
    /// The query failed.
    pub async fn estimated_rows(&self, schema: &TableSchema) -> Result<u64, SourceError> {
        let row = self
            .reader
            .client()
            .query_one(
                "select greatest(reltuples, 0)::bigint from pg_class where oid = $1",
                &[&schema.id.0],
            )
            .await?;
        Ok(u64::try_from(row.get::<_, i64>(0)).unwrap_or_default())
    }

    /// Reads what is published of a table, row by row.
    ///
    /// # Errors
    /// The query failed, or `row` did.
    pub async fn read(
        &self,
        schema: &TableSchema,
        row: &mut (dyn FnMut(&BinaryRow<'_>) -> Result<(), SourceError> + Send),
    ) -> Result<(), SourceError> {
        copy_table(&self.reader, schema, row).await
    }
}
