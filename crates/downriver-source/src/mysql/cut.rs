//! The captured tables at exactly one position.
//!
//! MariaDB tells where in the binlog a view was made. MySQL does not: there the tables are locked against writers for the
//! moment in which the view is made. A writer holds its lock until what it wrote is visible and its identifier counts as
//! executed, so that of these tables nothing hangs between.

use downriver_event::{SourcePosition, TableSchema};
use mysql_async::Conn;
use mysql_async::prelude::Queryable as _;

use super::catalog::Catalog;
use super::config::MysqlConfig;
use super::refusal::waited_for_lock;
use super::server::{Flavor, domains};
use super::snapshot::{read_whole, view_at_place};
use super::sql::{connect, literal, qualified};
use crate::chunk::RowSink;
use crate::error::SourceError;

/// How long writers may keep the lock away. Meanwhile those that come later wait behind it.
const WRITERS_WAIT_S: u64 = 5;

/// Holds the view as long as it lives.
pub struct DatabaseCut {
    catalog: Catalog,
    position: SourcePosition,
}

impl DatabaseCut {
    /// # Errors
    /// The server cannot be reached, or writers do not let the tables be locked in time.
    pub async fn take(config: &MysqlConfig) -> Result<Self, SourceError> {
        let mut catalog = Catalog::connect(config).await?;
        let position = match catalog.server().flavor {
            Flavor::Mariadb => {
                let place = view_at_place(&mut catalog.session).await?;
                let at = format!(
                    "binlog_gtid_pos({}, {})",
                    literal(&place.file),
                    place.position
                );
                let gtids = domains(&mut catalog.session, &at).await?;
                SourcePosition::Mariadb { gtids, place }
            }
            Flavor::Mysql => {
                let mut guard = connect(config).await?;
                lock(&mut guard, &mut catalog, config).await?;
                let view = "start transaction with consistent snapshot, read only";
                catalog.session.query_drop(view).await?;
                let position = catalog.position().await?;
                guard.query_drop("unlock tables").await?;
                position
            }
        };
        Ok(Self { catalog, position })
    }

    /// Every commit to the captured tables up to here is seen, and no other.
    #[must_use]
    pub fn position(&self) -> &SourcePosition {
        &self.position
    }

    /// The server's estimate of a table's rows.
    ///
    /// # Errors
    /// The query failed.
    pub async fn estimated_rows(&mut self, schema: &TableSchema) -> Result<u64, SourceError> {
        let table = self.catalog.table(&schema.namespace, &schema.name).await?;
        Ok(table.map_or(0, |table| table.estimated_rows))
    }

    /// Reads a table, row by row.
    ///
    /// # Errors
    /// The query failed, the table is another one by now, or `row` failed.
    pub async fn read(
        &mut self,
        schema: &TableSchema,
        row: &mut RowSink<'_>,
    ) -> Result<(), SourceError> {
        read_whole(&mut self.catalog, schema, row).await
    }
}

async fn lock(
    guard: &mut Conn,
    catalog: &mut Catalog,
    config: &MysqlConfig,
) -> Result<(), SourceError> {
    let tables = catalog.tables(config).await?;
    let locked = tables.iter().filter(|table| table.problem.is_none());
    let locked: Vec<String> = locked
        .map(|table| {
            let (database, name) = (&table.schema.namespace, &table.schema.name);
            format!("{} read", qualified(database, name))
        })
        .collect();
    if locked.is_empty() {
        return Ok(());
    }
    let wait = format!("set session lock_wait_timeout = {WRITERS_WAIT_S}");
    guard.query_drop(wait).await?;
    let lock = format!("lock tables {}", locked.join(", "));
    match guard.query_drop(lock).await {
        Err(error) if waited_for_lock(&error) => Err(SourceError::transient(
            "DR-1075",
            format!("writers did not let the tables be locked for {WRITERS_WAIT_S} s"),
            "ask again when no transaction stays open",
        )),
        locked => Ok(locked?),
    }
}
