//! Whether a server writes a binlog that can be captured, and what is visible of it.

use downriver_event::SourcePosition;
use downriver_event::problem::Problem;
use mysql_async::Conn;
use mysql_async::prelude::Queryable as _;

use super::server::{Flavor, Server, domains, no_binlog};
use super::snapshot::view_at_place;
use super::sql::literal;
use crate::error::SourceError;

impl Server {
    /// What is to be set otherwise before its binlog can be captured.
    #[must_use]
    pub fn problems(&self) -> Vec<Problem> {
        if !self.log_bin {
            return vec![no_binlog().problem()];
        }
        if let Some(engine) = &self.binlog_engine {
            return vec![Problem::new(
                "DR-1091",
                format!(
                    "the server keeps its binlog in {engine} (binlog_storage_engine): it is not in files, and is not read yet"
                ),
                "unset binlog_storage_engine in the server's configuration, and restart the server",
            )];
        }
        let mut problems = Vec::new();
        let mut wants = |code, reason: String, set: &str| {
            let set = match self.flavor {
                Flavor::Mysql => format!("SET PERSIST {set}"),
                Flavor::Mariadb => {
                    format!("SET GLOBAL {set}, and the same in the server's configuration")
                }
            };
            let fix = format!(
                "{set}; sessions that are open keep what they began with: let applications connect again"
            );
            problems.push(Problem::new(code, reason, fix));
        };
        if self.binlog_format != "ROW" {
            let reason = format!(
                "binlog_format is {}: statements do not tell which rows they change",
                self.binlog_format
            );
            wants("DR-1080", reason, "binlog_format = ROW");
        }
        if !self.tells_rows() {
            let reason = format!(
                "binlog_row_image is {}: this server logs REPLACE without the columns that it leaves out and sets to their defaults",
                self.binlog_row_image
            );
            wants("DR-1081", reason, "binlog_row_image = FULL");
        }
        problems
    }

    /// What would better be set otherwise.
    pub(super) fn advice(&self) -> Option<Problem> {
        if self.names_columns() {
            return None;
        }
        let told = self
            .binlog_row_metadata
            .as_deref()
            .unwrap_or("not known to the server");
        Some(Problem::new(
            "DR-1082",
            format!(
                "binlog_row_metadata is {told}: the binlog does not name the columns of its rows. After a change of a table they are looked up, and where it was changed again since, or lies far back, the table is read again"
            ),
            "set global binlog_row_metadata = FULL, and the same in the server's configuration",
        ))
    }

    /// Whether whoever begins to read now sees everything up to a position.
    pub(super) async fn shows(
        &self,
        session: &mut Conn,
        position: &SourcePosition,
    ) -> Result<bool, SourceError> {
        match position {
            SourcePosition::Mysql { gtids, .. } => Ok(self.executed(session).await?.covers(gtids)),
            SourcePosition::Mariadb { gtids, .. } => {
                let place = view_at_place(session).await;
                session.query_drop("commit").await?;
                let place = place?;
                let at = format!(
                    "binlog_gtid_pos({}, {})",
                    literal(&place.file),
                    place.position
                );
                Ok(domains(session, &at).await?.covers(gtids))
            }
            SourcePosition::Postgres(_) => Ok(true),
        }
    }
}
