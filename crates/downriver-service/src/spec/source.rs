//! A source: a database, what is captured of it, and how its snapshot is taken.

mod mysql;
mod postgres;

use std::path::PathBuf;

use downriver_event::problem::Problem;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{at, fields};
pub use mysql::Mysql;
pub use postgres::{Failover, OnMaxWalBehind, Postgres};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    Postgres(Postgres),
    /// Of MariaDB as well.
    Mysql(Mysql),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnHole {
    #[default]
    Stop,
    Resnapshot,
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
        let source: Self = fields(spec, "DR-2004", "source")?;
        match &source {
            Self::Postgres(postgres) => postgres.check()?,
            Self::Mysql(mysql) => mysql.check()?,
        }
        let options = source.snapshot();
        if options.chunk_rows == 0 || options.max_workers == 0 {
            let problem = Problem::new(
                "DR-2008",
                "a snapshot needs chunk_rows and max_workers of at least 1",
                "leave them out for the defaults",
            );
            return Err(at(&format!("{}.snapshot", source.kind()), problem));
        }
        Ok(source)
    }

    /// The field that names its kind.
    fn kind(&self) -> &'static str {
        match self {
            Self::Postgres(_) => "postgres",
            Self::Mysql(_) => "mysql",
        }
    }

    #[must_use]
    pub fn repairs_holes(&self) -> bool {
        let on_hole = match self {
            Self::Postgres(postgres) => postgres.on_hole,
            Self::Mysql(mysql) => mysql.on_hole,
        };
        on_hole == Some(OnHole::Resnapshot)
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
        let snapshot = match self {
            Self::Postgres(postgres) => &postgres.snapshot,
            Self::Mysql(mysql) => &mysql.snapshot,
        };
        match snapshot {
            None => of(SnapshotMode::Initial),
            Some(Snapshot::Mode(mode)) => of(*mode),
            Some(Snapshot::Options(options)) => options.clone(),
        }
    }
}

/// What the urls and tables of all databases have in common.
struct Place<'a> {
    /// The field that names the database's kind.
    kind: &'static str,
    /// What its tables' names begin with, and a name of one.
    namespace: (&'static str, &'static str),
    url: &'a str,
    tables: &'a [String],
}

impl Place<'_> {
    fn check(&self) -> Result<(), Problem> {
        let Self { kind, url, .. } = self;
        let login = url.split('@').next();
        if login.is_some_and(|login| login.matches(':').count() > 1) {
            let problem = Problem::new(
                "DR-2006",
                "the url holds a password, which would be stored and shown",
                format!(
                    "take it out of the url and set {kind}.password: {{ env: NAME }} or {{ file: PATH }}"
                ),
            );
            return Err(at(&format!("{kind}.url"), problem));
        }
        let (namespace, example) = self.namespace;
        if self.tables.is_empty() {
            let problem = Problem::new(
                "DR-2007",
                "no tables are named",
                format!("give patterns such as [\"{example}.*\"]"),
            );
            return Err(at(&format!("{kind}.tables"), problem));
        }
        let mut patterns = self.tables.iter().enumerate();
        if let Some((bad, pattern)) = patterns.find(|(_, pattern)| !pattern.contains('.')) {
            let problem = Problem::new(
                "DR-2007",
                format!("table pattern {pattern:?} names no {namespace}"),
                format!("write it as {example}.{pattern}"),
            );
            return Err(at(&format!("{kind}.tables[{bad}]"), problem));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::{Spec, read_documents};
    use std::time::Duration;

    use super::super::Secret;
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
        let Source::Postgres(postgres) = &source else {
            panic!("one of PostgreSQL")
        };
        assert_eq!(postgres.password, Some(Secret::Env("P".into())));
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
        let Spec::Source(Source::Postgres(whole)) = source(&whole).unwrap() else {
            panic!("a source of PostgreSQL")
        };
        assert_eq!(whole.wal_behind_max(), Some(2 << 30));
        assert_eq!(whole.heartbeat(), Some(Duration::from_secs(30)));
        assert_eq!(
            code(&base.replace("name: shop", "name: Shop")).code,
            "DR-2003"
        );
        assert!(code("kind: [\n").reason.contains("line"));
    }

    #[test]
    fn a_source_of_mysql_is_read_with_its_defaults_and_what_is_wrong_is_named() {
        let base =
            "kind: Source\nname: shop\nmysql:\n  url: mysql://cdc@h:3307\n  tables: [\"shop.*\"]\n";
        let Spec::Source(Source::Mysql(mysql)) = source(base).unwrap() else {
            panic!("a source of MySQL")
        };
        assert_eq!((mysql.server_id, mysql.on_hole), (None, None));
        let more = "  snapshot: none\n  start: { gtid: \"0-1-100,1-1-5\" }\n  binlog_retention: { warn: 6h }\n";
        let Spec::Source(Source::Mysql(mysql)) = source(&format!("{base}{more}")).unwrap() else {
            panic!("a source of MySQL")
        };
        assert_eq!(mysql.binlog_warn(), Some(Duration::from_secs(6 * 3600)));
        assert!(mysql.begin().unwrap().is_some());
        for (before, after, code, field) in [
            (
                "mysql://cdc@h:3307",
                "postgres://cdc@h/shop",
                "DR-2005",
                "mysql.url",
            ),
            (
                "mysql://cdc@h:3307",
                "mysql://cdc:secret@h",
                "DR-2006",
                "mysql.url",
            ),
            ("shop.*", "orders", "DR-2007", "mysql.tables[0]"),
            (
                "tables:",
                "server_id: 0\n  tables:",
                "DR-2037",
                "mysql.server_id",
            ),
            ("tables:", "slot: s\n  tables:", "DR-2004", "mysql.slot"),
            (
                "tables:",
                "start: { file_pos: \"binlog.000001:4\" }\n  tables:",
                "DR-1096",
                "mysql.start",
            ),
            (
                "tables:",
                "start: { gtid: \"binlog.000001:4\" }\n  snapshot: none\n  tables:",
                "DR-1096",
                "mysql.start.gtid",
            ),
            (
                "tables:",
                "binlog_retention: { warn: long }\n  tables:",
                "DR-2027",
                "mysql.binlog_retention.warn",
            ),
        ] {
            let problem = source(&base.replace(before, after)).unwrap_err();
            assert_eq!(
                (problem.code, problem.field.as_deref()),
                (code, Some(field))
            );
        }
    }
}
