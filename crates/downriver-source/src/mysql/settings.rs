//! Whether a server writes a binlog that can be captured, and what is visible of it.

use std::fmt;

use downriver_event::problem::Problem;
use downriver_event::{BinlogPlace, SourcePosition};
use mysql_async::prelude::Queryable as _;
use mysql_async::{Conn, Row};

use super::server::{Flavor, Server, no_binlog};
use super::sql::text;
use crate::error::SourceError;

impl Flavor {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Mysql => "mysql",
            Self::Mariadb => "mariadb",
        }
    }
}

impl fmt::Display for Flavor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mysql => "MySQL",
            Self::Mariadb => "MariaDB",
        })
    }
}

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
                Flavor::Mariadb => format!("SET GLOBAL {set}, and the same in the server's configuration"),
            };
            let fix = format!("{set}; sessions that are open keep what they began with: let applications connect again");
            problems.push(Problem::new(code, reason, fix));
        };
        if self.binlog_format != "ROW" {
            let reason = format!("binlog_format is {}: statements do not tell which rows they change", self.binlog_format);
            wants("DR-1080", reason, "binlog_format = ROW");
        }
        if self.binlog_row_image != "FULL" {
            let reason = format!("binlog_row_image is {}: rows are logged in part, which is not built yet", self.binlog_row_image);
            wants("DR-1081", reason, "binlog_row_image = FULL");
        }
        if self.binlog_row_metadata.as_deref() != Some("FULL") {
            let told = self.binlog_row_metadata.as_deref().unwrap_or("not known to the server");
            let reason = format!("binlog_row_metadata is {told}: the binlog does not name the columns of its rows");
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
            let reason = "log_bin_compress is ON: compressed events are not understood yet".to_owned();
            wants("DR-1083", reason, "log_bin_compress = OFF");
        }
        let mode = self.gtid_mode.as_deref().unwrap_or_default();
        if mode.contains("PERMISSIVE") {
            let reason = format!("gtid_mode is {mode}: some transactions have identifiers and others have none");
            wants("DR-1083", reason, "gtid_mode = ON (or OFF, as it was): finish the change");
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
                session.query_drop("start transaction with consistent snapshot").await?;
                let place = snapshot_place(session).await;
                session.query_drop("commit").await?;
                let seen = self.domains_at(session, &place?).await?;
                Ok(seen.covers(gtids))
            }
            SourcePosition::Postgres(_) => Ok(true),
        }
    }
}

/// Where the binlog ended when the transaction's snapshot was taken. Of MariaDB.
async fn snapshot_place(session: &mut Conn) -> Result<BinlogPlace, SourceError> {
    let rows: Vec<Row> = session.query("show status like 'binlog_snapshot_%'").await?;
    let of = |name: &str| {
        let mut rows = rows.iter();
        rows.find(|row| text(row, 0).is_some_and(|found| found.eq_ignore_ascii_case(name)))
            .and_then(|row| text(row, 1))
    };
    let place = of("binlog_snapshot_file").zip(of("binlog_snapshot_position"));
    place
        .and_then(|(file, position)| {
            let position = position.parse().ok()?;
            Some(BinlogPlace { file, position })
        })
        .ok_or_else(no_binlog)
}
