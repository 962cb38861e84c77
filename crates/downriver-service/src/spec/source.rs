//! A source: a database, what is captured of it, and how its snapshot is taken.

use std::path::PathBuf;
use std::time::Duration;

use downriver_event::problem::Problem;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::mask::MaskRule;
use super::{Secret, at, fields, parse_bytes, parse_duration};

/// The shortest time between two heartbeats.
const HEARTBEAT_MIN: Duration = Duration::from_secs(1);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    pub postgres: Postgres,
}

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
#[serde(rename_all = "lowercase")]
pub enum OnHole {
    #[default]
    Stop,
    Resnapshot,
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

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    pub ca: CaFile,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CaFile {
    pub file: PathBuf,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Snapshot {
    Mode(SnapshotMode),
    Options(SnapshotOptions),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SnapshotMode {
    Initial,
    None,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotOptions {
    pub mode: SnapshotMode,
    #[serde(default = "SnapshotOptions::chunk_rows_default")]
    pub chunk_rows: u64,
    #[serde(default = "SnapshotOptions::max_workers_default")]
    pub max_workers: usize,
    /// 0: no limit.
    #[serde(default)]
    pub rows_per_second: u64,
}

impl SnapshotOptions {
    fn chunk_rows_default() -> u64 {
        100_000
    }

    fn max_workers_default() -> usize {
        2
    }
}

impl Source {
    pub(super) fn parse(spec: &Value) -> Result<Self, Problem> {
        if spec.get("mysql").is_some() {
            let problem = Problem::new(
                "DR-2051",
                "MySQL and MariaDB sources are not built yet",
                "use a postgres source",
            );
            return Err(at("mysql", problem));
        }
        let source: Self = fields(spec, "DR-2004", "source")?;
        let postgres = &source.postgres;
        if let Err(error) =
            downriver_source::postgres::config::PostgresConfig::from_url(&postgres.url)
        {
            let problem = Problem::new("DR-2005", error.0, "correct postgres.url");
            return Err(at("postgres.url", problem));
        }
        if postgres
            .url
            .split('@')
            .next()
            .is_some_and(|login| login.matches(':').count() > 1)
        {
            let problem = Problem::new(
                "DR-2006",
                "the url holds a password, which would be stored and shown",
                "take it out of the url and set postgres.password: { env: NAME } or { file: PATH }",
            );
            return Err(at("postgres.url", problem));
        }
        if postgres.tables.is_empty() {
            let problem = Problem::new(
                "DR-2007",
                "no tables are named",
                "give patterns such as [\"public.*\"]",
            );
            return Err(at("postgres.tables", problem));
        }
        if let Some(bad) = postgres
            .tables
            .iter()
            .position(|pattern| !pattern.contains('.'))
        {
            let pattern = &postgres.tables[bad];
            let problem = Problem::new(
                "DR-2007",
                format!("table pattern {pattern:?} names no schema"),
                format!("write it as public.{pattern}"),
            );
            return Err(at(&format!("postgres.tables[{bad}]"), problem));
        }
        let options = source.snapshot();
        if options.chunk_rows == 0 || options.max_workers == 0 {
            let problem = Problem::new(
                "DR-2008",
                "a snapshot needs chunk_rows and max_workers of at least 1",
                "leave them out for the defaults",
            );
            return Err(at("postgres.snapshot", problem));
        }
        postgres.check_limits()?;
        postgres.check_columns()?;
        Ok(source)
    }

    /// Bytes of WAL that the server may keep for the slot.
    #[must_use]
    pub fn wal_behind_max(&self) -> Option<u64> {
        self.postgres
            .max_wal_behind
            .as_deref()
            .and_then(parse_bytes)
    }

    #[must_use]
    pub fn heartbeat(&self) -> Option<Duration> {
        self.postgres.heartbeat.as_deref().and_then(parse_duration)
    }

    /// The snapshot's options, with what is not given filled in.
    #[must_use]
    pub fn snapshot(&self) -> SnapshotOptions {
        let of = |mode| SnapshotOptions {
            mode,
            chunk_rows: SnapshotOptions::chunk_rows_default(),
            max_workers: SnapshotOptions::max_workers_default(),
            rows_per_second: 0,
        };
        match &self.postgres.snapshot {
            None => of(SnapshotMode::Initial),
            Some(Snapshot::Mode(mode)) => of(*mode),
            Some(Snapshot::Options(options)) => options.clone(),
        }
    }
}

impl Postgres {
    /// The rules' patterns name schema, table and column.
    fn check_columns(&self) -> Result<(), Problem> {
        let excluded = self.exclude_columns.iter().enumerate();
        let excluded = excluded.map(|(at, p)| (p, format!("postgres.exclude_columns[{at}]")));
        let rules = self.mask.iter().enumerate();
        let masked = rules.flat_map(|(rule, mask)| {
            let patterns = mask.columns.iter().enumerate();
            patterns.map(move |(at, p)| (p, format!("postgres.mask[{rule}].columns[{at}]")))
        });
        for (pattern, field) in excluded.chain(masked) {
            if pattern.matches('.').count() < 2 {
                let column = pattern.rsplit('.').next().unwrap_or_default();
                let problem = Problem::new(
                    "DR-2028",
                    format!("pattern {pattern:?} does not name schema, table and column"),
                    format!("write it as \"public.users.{column}\" or \"*.*.{column}\""),
                );
                return Err(at(&field, problem));
            }
        }
        Ok(())
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::{Spec, read_documents};
    use super::*;

    fn source(text: &str) -> Result<Spec, Problem> {
        let documents = read_documents(text)?;
        Spec::parse(&documents[0].kind, &documents[0].spec)
    }

    #[test]
    fn a_source_is_read_with_its_defaults() {
        let text = "kind: Source\nname: shop\npostgres:\n  url: postgres://cdc@h/shop\n  password: { env: P }\n  tables: [\"public.*\"]\n  snapshot: none\n";
        let Spec::Source(source) = source(text).unwrap() else {
            panic!("a source")
        };
        assert_eq!(source.postgres.password, Some(Secret::Env("P".into())));
        assert_eq!(source.snapshot().mode, SnapshotMode::None);
        assert_eq!(source.snapshot().chunk_rows, 100_000);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_field() {
        let base = "kind: Source\nname: shop\npostgres:\n  url: postgres://cdc@h/shop\n  tables: [\"public.*\"]\n";
        let code = |text: &str| source(text).unwrap_err();
        let problem = code(&format!("{base}  colour: red\n"));
        assert!(problem.reason.contains("colour"));
        assert_eq!(problem.field.as_deref(), Some("postgres.colour"));
        assert_eq!(
            code(&base.replace("postgres://cdc@h", "postgres://cdc:secret@h")).code,
            "DR-2006"
        );
        assert!(
            !code(&base.replace("postgres://cdc@h", "postgres://cdc:secret@h"))
                .reason
                .contains("secret")
        );
        let problem = code(&base.replace("public.*", "orders"));
        assert_eq!(
            (problem.code, problem.field.as_deref()),
            ("DR-2007", Some("postgres.tables[0]"))
        );
        for (line, field) in [
            ("max_wal_behind: much", "postgres.max_wal_behind"),
            ("max_wal_behind: 0GiB", "postgres.max_wal_behind"),
            ("on_max_wal_behind: drop_slot", "postgres.on_max_wal_behind"),
            ("heartbeat: 10ms", "postgres.heartbeat"),
        ] {
            let problem = code(&format!("{base}  {line}\n"));
            assert_eq!(
                (problem.code, problem.field.as_deref()),
                ("DR-2027", Some(field))
            );
        }
        let whole = format!(
            "{base}  on_hole: resnapshot\n  max_wal_behind: 2GiB\n  on_max_wal_behind: drop_slot\n  heartbeat: 30s\n  failover: off\n"
        );
        let Spec::Source(whole) = source(&whole).unwrap() else {
            panic!("a source")
        };
        assert_eq!(whole.wal_behind_max(), Some(2 << 30));
        assert_eq!(whole.heartbeat(), Some(Duration::from_secs(30)));
        assert_eq!(
            code(&base.replace("name: shop", "name: Shop")).code,
            "DR-2003"
        );
        assert!(code("kind: [\n").reason.contains("line"));
    }
}
