//! What kind of server it is, how it writes its binlog, and where it stands.

use std::collections::HashMap;

use downriver_decode::mysql::FIRST_EVENT;
pub use downriver_decode::mysql::Flavor;
use downriver_decode::mysql::is_same_name;
use downriver_event::{BinlogPlace, DomainGtids, GtidSet, SourcePosition};
use mysql_async::prelude::Queryable as _;
use mysql_async::{Conn, Row};

use super::refusal::{PARSE_ERROR, errno};
use super::sql::{literal, number, text, variables};
use crate::error::SourceError;

/// Facts of a server. What has `None` the server does not know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// Told by what the server knows, never by its version's text, which forks and services write as they like.
    pub flavor: Flavor,
    /// For messages only.
    pub version: String,
    /// Of MySQL; of newer ones of MariaDB what is of the host and port.
    pub server_uid: Option<String>,
    pub server_id: u64,
    pub log_bin: bool,
    /// `ROW`, `MIXED` or `STATEMENT`.
    pub binlog_format: String,
    /// `FULL`, `MINIMAL` or `NOBLOB`; of MariaDB also `FULL_NODUP`.
    pub binlog_row_image: String,
    /// Whether the rows of an update have its generated columns. MariaDB leaves them out, also of whole rows, since it has
    /// the row image `FULL_NODUP`, and of minimal ones virtual columns always.
    pub logs_generated_columns: bool,
    /// `FULL` or `MINIMAL`; of MariaDB also `NO_LOG`.
    pub binlog_row_metadata: Option<String>,
    /// Of MySQL: `ON`, `ON_PERMISSIVE`, `OFF_PERMISSIVE` or `OFF`.
    pub gtid_mode: Option<String>,
    /// Whether what it gets from another server is in its own binlog.
    pub logs_replica_updates: bool,
    /// 0: names that differ in case are two; 1: stored in lower case; 2: stored as given, and compared in lower case.
    pub lower_case_table_names: u8,
    /// After so many seconds the server drops a file of its binlog; `None`: not by age.
    pub binlog_expires_s: Option<u64>,
    /// Of some: with more bytes in all the server drops the oldest files of its binlog; `None`: not by size.
    pub binlog_bytes_max: Option<u64>,
    /// In whose files the binlog is, of MariaDB's from 12.3 on. `None`: in its own.
    pub(super) binlog_engine: Option<String>,
    /// Of MariaDB: it has taken transactions of another server.
    pub was_replica: bool,
    /// The name that its version has for the statement that tells where the binlog ends.
    status: &'static str,
}

const VARIABLES: [&str; 22] = [
    "gtid_domain_id",
    "version",
    "server_uuid",
    "server_uid",
    "server_id",
    "log_bin",
    "binlog_format",
    "binlog_row_image",
    "binlog_row_metadata",
    "gtid_mode",
    "log_slave_updates",
    "log_replica_updates",
    "lower_case_table_names",
    "binlog_expire_logs_seconds",
    "binlog_expire_logs_auto_purge",
    "expire_logs_days",
    "max_binlog_total_size",
    "binlog_space_limit",
    "gtid_slave_pos",
    "gtid_executed",
    "gtid_binlog_pos",
    "binlog_storage_engine",
];

impl Server {
    /// # Errors
    /// A query failed.
    pub async fn look(session: &mut Conn) -> Result<Self, SourceError> {
        let found = variables(session, "global", &VARIABLES).await?;
        let get = |name: &str| found.get(name).cloned();
        let is_on = |name: &str| get(name).map(|value| value == "ON" || value == "1");
        let flavor = match get("gtid_domain_id") {
            Some(_) => Flavor::Mariadb,
            None => Flavor::Mysql,
        };
        let log_bin = is_on("log_bin").unwrap_or_default();
        let logs_replica_updates = is_on("log_replica_updates").or(is_on("log_slave_updates"));
        let number = |name: &str| get(name).and_then(|value| value.parse().ok());
        let row_image = get("binlog_row_image").unwrap_or_else(|| "FULL".into());
        let logs_generated_columns = match flavor {
            Flavor::Mysql => true,
            Flavor::Mariadb => row_image != "MINIMAL" && !knows_full_nodup(session).await?,
        };
        Ok(Self {
            flavor,
            version: get("version").unwrap_or_default(),
            server_uid: get(match flavor {
                Flavor::Mysql => "server_uuid",
                Flavor::Mariadb => "server_uid",
            })
            .filter(|id| !id.is_empty() && id != "unknown"),
            server_id: number("server_id").unwrap_or_default(),
            log_bin,
            binlog_format: get("binlog_format").unwrap_or_else(|| "ROW".into()),
            binlog_row_image: row_image,
            logs_generated_columns,
            binlog_row_metadata: get("binlog_row_metadata"),
            gtid_mode: get("gtid_mode"),
            logs_replica_updates: logs_replica_updates.unwrap_or_default(),
            lower_case_table_names: number("lower_case_table_names")
                .and_then(|value| u8::try_from(value).ok())
                .unwrap_or_default(),
            binlog_expires_s: expires_s(&found),
            binlog_bytes_max: ["max_binlog_total_size", "binlog_space_limit"]
                .iter()
                .find_map(|name| number(name))
                .filter(|bytes| *bytes > 0),
            binlog_engine: get("binlog_storage_engine").filter(|engine| !engine.is_empty()),
            was_replica: get("gtid_slave_pos").is_some_and(|position| !position.is_empty()),
            status: status_statement(session, flavor).await?,
        })
    }

    /// Whether every transaction of it has an identifier of MySQL's.
    #[must_use]
    pub fn has_gtids(&self) -> bool {
        self.flavor == Flavor::Mysql && self.gtid_mode.as_deref() == Some("ON")
    }

    /// Whether transactions are known by their places alone: not each has an identifier.
    pub(super) fn goes_by_place(&self) -> bool {
        self.flavor == Flavor::Mysql && !self.has_gtids()
    }

    /// Whether what is logged of a changed row tells all that is in it.
    #[must_use]
    pub fn tells_rows(&self) -> bool {
        self.flavor == Flavor::Mysql || !self.logs_in_part()
    }

    /// Whether rows are logged without columns that a statement leaves out.
    #[must_use]
    pub fn logs_in_part(&self) -> bool {
        !["FULL", "FULL_NODUP"].contains(&self.binlog_row_image.as_str())
    }

    /// Whether the binlog names the columns of its rows.
    #[must_use]
    pub fn names_columns(&self) -> bool {
        let told = self.binlog_row_metadata.as_deref();
        told.is_some_and(|told| told.eq_ignore_ascii_case("FULL"))
    }

    /// Whether two names are one table's or database's.
    #[must_use]
    pub fn is_same_name(&self, one: &str, other: &str) -> bool {
        match self.lower_case_table_names {
            0 => one == other,
            _ => is_same_name(one, other),
        }
    }

    /// Where the server is now: everything that was committed before the call lies before it.
    ///
    /// # Errors
    /// The server writes no binlog, or the query failed.
    pub async fn position(&self, session: &mut Conn) -> Result<SourcePosition, SourceError> {
        Ok(match self.flavor {
            Flavor::Mysql => loop {
                let gtids = self.executed(session).await?;
                let place = self.place(session).await?;
                // Without an identifier the place is asked for: nothing may have come between.
                if !gtids.is_empty() || self.executed(session).await?.is_empty() {
                    break SourcePosition::Mysql { gtids, place };
                }
            },
            Flavor::Mariadb => {
                let gtids = domains(session, "@@global.gtid_binlog_pos").await?;
                let place = self.place(session).await?;
                SourcePosition::Mariadb { gtids, place }
            }
        })
    }

    /// The files of its binlog, the oldest first, each with where it ends.
    pub(super) async fn files(&self, session: &mut Conn) -> Result<Vec<BinlogPlace>, SourceError> {
        let files: Vec<Row> = session.query("show binary logs").await?;
        let file = |row: &Row| {
            Some(BinlogPlace {
                file: text(row, 0)?,
                position: number(row, 1)?,
            })
        };
        Ok(files.iter().filter_map(file).collect())
    }

    /// A position that is a place alone.
    pub(super) fn position_at(&self, place: BinlogPlace) -> SourcePosition {
        match self.flavor {
            Flavor::Mysql => SourcePosition::Mysql {
                gtids: GtidSet::default(),
                place,
            },
            Flavor::Mariadb => SourcePosition::Mariadb {
                gtids: DomainGtids::default(),
                place,
            },
        }
    }

    /// Everything up to here is not in the binlog any more: its place is where the oldest file begins.
    ///
    /// # Errors
    /// The server writes no binlog, or the query failed.
    pub async fn purged(&self, session: &mut Conn) -> Result<SourcePosition, SourceError> {
        let files = self.files(session).await?;
        self.purged_before(session, files.first()).await
    }

    /// The same where the oldest file is known.
    pub(super) async fn purged_before(
        &self,
        session: &mut Conn,
        oldest: Option<&BinlogPlace>,
    ) -> Result<SourcePosition, SourceError> {
        let place = BinlogPlace {
            file: oldest.ok_or_else(no_binlog)?.file.clone(),
            position: FIRST_EVENT,
        };
        Ok(match self.flavor {
            Flavor::Mysql => SourcePosition::Mysql {
                gtids: match self.has_gtids() {
                    true => gtids(session, "@@global.gtid_purged").await?,
                    false => GtidSet::default(),
                },
                place,
            },
            Flavor::Mariadb => {
                let at = format!("binlog_gtid_pos({}, {FIRST_EVENT})", literal(&place.file));
                let gtids = domains(session, &at).await?;
                SourcePosition::Mariadb { gtids, place }
            }
        })
    }

    /// The identifiers of what has become visible. Empty where not all have one.
    ///
    /// A transaction's identifier is added after its engine has committed it, also while transactions are logged in
    /// groups: whoever begins to read after it was seen here sees the transaction. Source: `MYSQL_BIN_LOG::finish_commit`
    /// in MySQL's `sql/binlog.cc`.
    pub(super) async fn executed(&self, session: &mut Conn) -> Result<GtidSet, SourceError> {
        match self.has_gtids() {
            true => gtids(session, "@@global.gtid_executed").await,
            false => Ok(GtidSet::default()),
        }
    }

    /// Where the binlog ends.
    pub(super) async fn place(&self, session: &mut Conn) -> Result<BinlogPlace, SourceError> {
        let row: Option<Row> = session.query_first(self.status).await?;
        let place = row.and_then(|row| {
            Some(BinlogPlace {
                file: text(&row, 0)?,
                position: number(&row, 1)?,
            })
        });
        place.ok_or_else(no_binlog)
    }
}

pub(super) fn no_binlog() -> SourceError {
    SourceError::definite(
        "DR-1070",
        "the server writes no binlog",
        "set log_bin (and log_replica_updates, if it is a replica) in the server's configuration and restart it",
    )
}

/// Newer versions of MySQL know no other name, and older ones and MariaDB not this one.
async fn status_statement(session: &mut Conn, flavor: Flavor) -> Result<&'static str, SourceError> {
    const NEW: &str = "show binary log status";
    const OLD: &str = "show master status";
    if flavor == Flavor::Mariadb {
        return Ok(OLD);
    }
    match session.query_drop(NEW).await {
        Ok(()) => Ok(NEW),
        Err(error) if errno(&error) == Some(PARSE_ERROR) => Ok(OLD),
        Err(error) => Err(error.into()),
    }
}

async fn knows_full_nodup(session: &mut Conn) -> Result<bool, SourceError> {
    let values = "(select enum_value_list from information_schema.system_variables where variable_name = 'binlog_row_image')";
    Ok(one(session, values).await?.contains("FULL_NODUP"))
}

fn expires_s(found: &HashMap<String, String>) -> Option<u64> {
    let number = |name: &str| found.get(name)?.parse::<f64>().ok();
    if found
        .get("binlog_expire_logs_auto_purge")
        .is_some_and(|purges| purges == "OFF")
    {
        return None;
    }
    // Days may have a fraction in MariaDB; of both the larger unit is the one that was set.
    let days = number("expire_logs_days").unwrap_or_default() * 86_400.0;
    let seconds = number("binlog_expire_logs_seconds").unwrap_or_default();
    let expires = if seconds > 0.0 { seconds } else { days };
    (expires > 0.0).then_some(expires as u64)
}

async fn one(session: &mut Conn, expression: &str) -> Result<String, SourceError> {
    let row: Option<Row> = session.query_first(format!("select {expression}")).await?;
    Ok(row.and_then(|row| text(&row, 0)).unwrap_or_default())
}

async fn gtids(session: &mut Conn, expression: &str) -> Result<GtidSet, SourceError> {
    let told = one(session, expression).await?;
    told.parse().map_err(|_| unreadable(expression, &told))
}

pub(super) async fn domains(
    session: &mut Conn,
    expression: &str,
) -> Result<DomainGtids, SourceError> {
    let told = one(session, expression).await?;
    told.parse().map_err(|_| unreadable(expression, &told))
}

pub(super) fn unreadable(expression: &str, told: &str) -> SourceError {
    SourceError::definite(
        "DR-1040",
        format!("the server says that {expression} is {told:?}, which is not understood"),
        "report it",
    )
}
