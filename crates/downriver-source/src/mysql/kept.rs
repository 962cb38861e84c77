//! A table's shape at a place of the binlog.

use std::time::Duration;

use downriver_event::{DomainGtids, GtidSet, SourcePosition};
use mysql_async::prelude::Queryable as _;

use super::catalog::{Catalog, SourceTable};
use super::server::Flavor;
use super::snapshot::{SHAPE_IS_CHANGING, keep_shape};
use super::sql::{LOCK_WAIT, qualified};
use crate::error::SourceError;

/// The shortest that servers wait for a lock.
const SHORTLY: Duration = Duration::from_secs(1);

/// A table that nobody changed between a look at the catalog and a place of the binlog.
#[derive(Clone, Debug)]
pub struct Kept {
    /// `None`: there is none of the name.
    pub now: Option<SourceTable>,
    /// Compared by its place.
    pub at: SourcePosition,
}

impl Catalog {
    /// A table as it is, and where the binlog ends: whatever changed it before lies before that place, and what changes it
    /// afterwards behind. A statement takes a lock on the table's shape until its transaction ends, and whoever changes a
    /// table writes to the binlog while that lock is his.
    ///
    /// # Errors
    /// A query failed, or the table is being changed for too long.
    pub async fn kept(&mut self, database: &str, table: &str) -> Result<Kept, SourceError> {
        self.look_kept(database, table, false).await
    }

    /// The same with the defaults of its columns.
    ///
    /// # Errors
    /// As of [`Self::kept`].
    pub async fn kept_with_defaults(
        &mut self,
        database: &str,
        table: &str,
    ) -> Result<Kept, SourceError> {
        self.look_kept(database, table, true).await
    }

    /// The same as [`Self::kept`]; `None`: somebody changes the table, or waits for it to do so, and is not waited for.
    ///
    /// # Errors
    /// A query failed.
    pub async fn kept_at_once(
        &mut self,
        database: &str,
        table: &str,
    ) -> Result<Option<Kept>, SourceError> {
        self.lock_wait(SHORTLY).await?;
        let kept = self.look_kept(database, table, false).await;
        self.lock_wait(LOCK_WAIT).await?;
        match kept {
            Err(error) if error.problem().code == SHAPE_IS_CHANGING => Ok(None),
            kept => kept.map(Some),
        }
    }

    async fn lock_wait(&mut self, wait: Duration) -> Result<(), SourceError> {
        let setting = format!("set session lock_wait_timeout = {}", wait.as_secs());
        Ok(self.session.query_drop(setting).await?)
    }

    async fn look_kept(
        &mut self,
        database: &str,
        table: &str,
        with_defaults: bool,
    ) -> Result<Kept, SourceError> {
        self.session
            .query_drop("start transaction read only")
            .await?;
        let kept = self.look(database, table, with_defaults).await;
        self.session.query_drop("commit").await?;
        kept
    }

    async fn look(
        &mut self,
        database: &str,
        table: &str,
        with_defaults: bool,
    ) -> Result<Kept, SourceError> {
        // Of a table that is not there, and is made at this moment, the binlog tells behind the place.
        let mut place = self.place().await?;
        let is_there = keep_shape(&mut self.session, &qualified(database, table), "").await?;
        let mut now = None;
        if is_there {
            let mut found = self.found(database, table).await?;
            if let (Some(found), true) = (&mut found, with_defaults) {
                self.find_defaults(found).await?;
            }
            now = found.map(|found| found.table);
            place = self.place().await?;
        }
        let at = match self.server().flavor {
            Flavor::Mysql => SourcePosition::Mysql {
                gtids: GtidSet::default(),
                place,
            },
            Flavor::Mariadb => SourcePosition::Mariadb {
                gtids: DomainGtids::default(),
                place,
            },
        };
        Ok(Kept { now, at })
    }
}
