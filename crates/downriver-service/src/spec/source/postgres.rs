//! A source of PostgreSQL.

use std::time::Duration;

use downriver_event::problem::Problem;
use downriver_source::postgres::config::PostgresConfig;
use serde::{Deserialize, Serialize};

use super::super::mask::{MaskRule, check_columns};
use super::super::{Secret, at, parse_bytes, parse_duration};
use super::{OnHole, Place, Snapshot, Tls};

/// The shortest time between two heartbeats.
const HEARTBEAT_MIN: Duration = Duration::from_secs(1);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Postgres {
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
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub publication: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<Snapshot>,
    /// What is done about changes that are not to be had any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_hole: Option<OnHole>,
    /// WAL that the server may keep for the slot: `50GiB`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_wal_behind: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_max_wal_behind: Option<OnMaxWalBehind>,
    /// How often a message is written into the database's WAL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heartbeat: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failover: Option<Failover>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnMaxWalBehind {
    #[default]
    Warn,
    DropSlot,
}

/// Whether the slot that is made follows a failover.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Failover {
    /// Where the server can: from version 17 on.
    #[default]
    Auto,
    Off,
}

impl Postgres {
    pub(super) fn check(&self) -> Result<(), Problem> {
        if let Err(error) = PostgresConfig::from_url(&self.url) {
            let problem = Problem::new("DR-2005", error.0, "correct postgres.url");
            return Err(at("postgres.url", problem));
        }
        let place = Place {
            kind: "postgres",
            namespace: ("schema", "public"),
            url: &self.url,
            tables: &self.tables,
        };
        place.check()?;
        self.check_limits()?;
        check_columns("postgres", "public", &self.exclude_columns, &self.mask)
    }

    /// Bytes of WAL that the server may keep for the slot.
    #[must_use]
    pub fn wal_behind_max(&self) -> Option<u64> {
        self.max_wal_behind.as_deref().and_then(parse_bytes)
    }

    #[must_use]
    pub fn heartbeat(&self) -> Option<Duration> {
        self.heartbeat.as_deref().and_then(parse_duration)
    }

    fn check_limits(&self) -> Result<(), Problem> {
        let invalid = |field: &str, reason: String, fix: &str| {
            Err(at(field, Problem::new("DR-2027", reason, fix)))
        };
        if let Some(text) = &self.max_wal_behind
            && parse_bytes(text).is_none_or(|bytes| bytes == 0)
        {
            let reason = format!("max_wal_behind {text:?} is not a size");
            let fix = "write a whole number with MiB, GiB or TiB: 50GiB";
            return invalid("postgres.max_wal_behind", reason, fix);
        }
        if self.on_max_wal_behind.is_some() && self.max_wal_behind.is_none() {
            let reason = "on_max_wal_behind goes with max_wal_behind".to_owned();
            let fix = "give max_wal_behind as well, or leave both out";
            return invalid("postgres.on_max_wal_behind", reason, fix);
        }
        if let Some(text) = &self.heartbeat
            && parse_duration(text).is_none_or(|every| every < HEARTBEAT_MIN)
        {
            let reason = format!("heartbeat {text:?} is not a time of at least 1s");
            return invalid("postgres.heartbeat", reason, "write 10s or 1m");
        }
        Ok(())
    }
}
