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
        if self.binlog_row_image != "FULL" {
            let reason = format!(
                "binlog_row_image is {}: rows are logged in part, which is not built yet",
                self.binlog_row_image
            );
            wants("DR-1081", reason, "binlog_row_image = FULL");
        }
        if self.binlog_row_metadata.as_deref() != Some("FULL") {
            let told = self
                .binlog_row_metadata
                .as_deref()
                .unwrap_or("not known to the server");
            let reason = format!(
                "binlog_row_metadata is {told}: the binlog does not name the columns of its rows"
            );
            wants("DR-1082", reason, "binlog_row_metadata = FULL");
        }
        if self.binlog_row_value_options.is_some() {
            let reason = "binlog_row_value_options is PARTIAL_JSON: updates of documents in part are not understood yet".to_owned();
            wants("DR-1083", reason, "binlog_row_value_options = ''");
        }
        if self.binlog_transaction_compression == Some(true) {
            let reason = "binlog_transaction_compression is ON: compressed transactions are not understood yet".to_owned();
            wants("DR-1083", reason, "binlog_transaction_compression = OFF");
        }
        if self.log_bin_compress == Some(true) {
            let reason =
                "log_bin_compress is ON: compressed events are not understood yet".to_owned();
            wants("DR-1083", reason, "log_bin_compress = OFF");
        }
        let mode = self.gtid_mode.as_deref().unwrap_or_default();
        if mode.contains("PERMISSIVE") {
            let reason = format!(
                "gtid_mode is {mode}: some transactions have identifiers and others have none"
            );
            wants(
                "DR-1083",
                reason,
                "gtid_mode = ON (or OFF, as it was): finish the change",
            );
        }
        problems
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
