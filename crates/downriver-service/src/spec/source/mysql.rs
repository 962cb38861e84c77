//! A source of MySQL or MariaDB.

use std::time::Duration;

use downriver_event::problem::Problem;
use downriver_source::mysql::begin::Begin;
use downriver_source::mysql::config::MysqlConfig;
use serde::{Deserialize, Serialize};

use super::super::mask::{MaskRule, check_columns};
use super::super::{Secret, at, parse_duration};
use super::{OnHole, Place, Snapshot, SnapshotMode, Tls};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mysql {
    pub url: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<Secret>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
    pub tables: Vec<String>,
    /// Columns of which nothing reaches the log.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude_columns: Vec<String>,
    /// Columns whose values are made into others before they reach the log.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mask: Vec<MaskRule>,
    /// What the server knows the source by among its replicas; one of its own by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_id: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<Snapshot>,
    /// Where a source without a snapshot begins; where the server is then by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<Start>,
    /// What is done about changes that are not to be had any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_hole: Option<OnHole>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub binlog_retention: Option<BinlogRetention>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Start {
    /// A set of MySQL's GTIDs, or MariaDB's with one for each domain.
    Gtid(String),
    /// `binlog.000042:4711`
    FilePos(String),
}

/// How long the server keeps its binlog.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BinlogRetention {
    /// It is said when what is not captured yet stays for less than this.
    pub warn: String,
}

impl Mysql {
    pub(super) fn check(&self) -> Result<(), Problem> {
        if let Err(error) = MysqlConfig::from_url(&self.url) {
            let problem = Problem::new("DR-2005", error.0, "correct mysql.url");
            return Err(at("mysql.url", problem));
        }
        let place = Place {
            kind: "mysql",
            namespace: ("database", "shop"),
            url: &self.url,
            tables: &self.tables,
        };
        place.check()?;
        if self.server_id == Some(0) {
            let problem = Problem::new(
                "DR-2037",
                "server_id 0 is no replica's",
                "give a number of its own from 1 on, or leave it out",
            );
            return Err(at("mysql.server_id", problem));
        }
        self.check_start()?;
        if let Some(BinlogRetention { warn }) = &self.binlog_retention
            && self.binlog_warn().is_none()
        {
            let problem = Problem::new(
                "DR-2027",
                format!("binlog_retention.warn {warn:?} is not a time"),
                "write 6h or 2d",
            );
            return Err(at("mysql.binlog_retention.warn", problem));
        }
        check_columns("mysql", "shop", &self.exclude_columns, &self.mask)
    }

    /// How long the server is to keep what is not captured yet at least.
    #[must_use]
    pub fn binlog_warn(&self) -> Option<Duration> {
        let retention = self.binlog_retention.as_ref()?;
        parse_duration(&retention.warn).filter(|warn| !warn.is_zero())
    }

    /// Where the source begins, if that is said.
    ///
    /// # Errors
    /// What is said is no position.
    pub fn begin(&self) -> Result<Option<Begin>, Problem> {
        let (field, text, begin) = match &self.start {
            None => return Ok(None),
            Some(Start::Gtid(text)) => ("gtid", text, Begin::gtid(text)),
            Some(Start::FilePos(text)) => ("file_pos", text, Begin::file_pos(text)),
        };
        begin.map(Some).map_err(|error| {
            let problem = Problem::new(
                "DR-1096",
                format!("start.{field} {text:?} is no position: {error}"),
                "write gtid: \"3e11fa47-71ca-11e1-9e33-c80aa9429562:1-5:7\", of MariaDB gtid: \"0-1-100,1-1-5\", or file_pos: \"binlog.000042:4711\"",
            );
            at(&format!("mysql.start.{field}"), problem)
        })
    }

    /// A snapshot is of now: what the tables had at the start nobody knows.
    fn check_start(&self) -> Result<(), Problem> {
        self.begin()?;
        let is_none = match &self.snapshot {
            Some(Snapshot::Mode(mode)) => *mode == SnapshotMode::None,
            Some(Snapshot::Options(options)) => options.mode == SnapshotMode::None,
            None => false,
        };
        if self.start.is_some() && !is_none {
            let problem = Problem::new(
                "DR-1096",
                "a start is given, and an initial snapshot is to be taken, which is of now",
                "set snapshot: none, or leave start out",
            );
            return Err(at("mysql.start", problem));
        }
        Ok(())
    }
}
