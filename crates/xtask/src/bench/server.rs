//! The database whose log is read: how it is started and set, and how it tells places in its log.
//!
//! A place is a number here: an LSN, or of the server's GTIDs the last one's. Each workload has a server of its own, which
//! numbers its transactions without gaps, and nobody else writes to it.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use downriver_testkit::mysql::{Mysql, Product};
use downriver_testkit::postgres::Options;
use downriver_testkit::{Postgres, resources};
use mysql_async::prelude::Queryable as _;
use serde::Serialize;
use tokio_postgres::types::PgLsn;

use super::workloads::{MARK, Tables};

/// What the measured servers differ in from the test kit's. A backlog is read from the page cache, so
/// `fsync` costs a reader next to nothing; it is on because a user's is.
const POSTGRES_SETTINGS: [&str; 8] = [
    "fsync = on",
    "shared_buffers = 1GB",
    "max_wal_size = 16GB",
    "checkpoint_timeout = 30min",
    "wal_compression = off",
    "logical_decoding_work_mem = 64MB",
    "wal_sender_timeout = 10min",
    // Keeps the other core quiet.
    "autovacuum = off",
];

const MYSQL_SETTINGS: [&str; 6] = [
    "sync-binlog = 1",
    "innodb-flush-log-at-trx-commit = 1",
    "innodb-buffer-pool-size = 1G",
    "innodb-redo-log-capacity = 4G",
    "max-binlog-size = 1G",
    // Without certificates nobody encrypts, neither Downriver nor the server's own clients.
    "auto-generate-certs = OFF",
];

/// What is told of a MySQL server, beside its version.
const MYSQL_TOLD: &str = "'auto_generate_certs', 'binlog_checksum', 'binlog_format', 'binlog_row_image', \
     'binlog_row_metadata', 'binlog_transaction_compression', 'gtid_mode', 'innodb_buffer_pool_size', \
     'innodb_flush_log_at_trx_commit', 'innodb_redo_log_capacity', 'max_binlog_size', 'sync_binlog'";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Database {
    Postgres,
    Mysql,
}

impl Database {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Postgres => "PostgreSQL",
            Self::Mysql => "MySQL",
        }
    }

    /// What a backlog is kept in.
    pub(super) fn log_name(self) -> &'static str {
        match self {
            Self::Postgres => "WAL",
            Self::Mysql => "binlog",
        }
    }

    /// Of a position as it is shown; 0 when there is none.
    pub(super) fn place(self, position: &str) -> u64 {
        match self {
            Self::Postgres => position.parse::<PgLsn>().map_or(0, u64::from),
            Self::Mysql => {
                let mut numbers = position.trim().rsplit([':', '-']);
                numbers.next().map_or(0, |last| last.parse().unwrap_or(0))
            }
        }
    }
}

pub(super) enum Server {
    Postgres(Postgres),
    Mysql(Mysql),
}

/// What a server says that it is.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Told {
    pub(super) name: &'static str,
    pub(super) version: String,
    /// As "name = value".
    pub(super) settings: Vec<String>,
}

impl Server {
    pub(super) async fn start(database: Database) -> Result<Self> {
        Ok(match database {
            Database::Postgres => {
                let settings = POSTGRES_SETTINGS.map(str::to_owned).to_vec();
                let options = Options {
                    settings,
                    ..Options::default()
                };
                Self::Postgres(Postgres::start_with(options).await?)
            }
            Database::Mysql => {
                let mysql = Mysql::start_with(Product::Mysql9, &MYSQL_SETTINGS).await?;
                mysql.create_capture_user().await?;
                Self::Mysql(mysql)
            }
        })
    }

    pub(super) fn database(&self) -> Database {
        match self {
            Self::Postgres(_) => Database::Postgres,
            Self::Mysql(_) => Database::Mysql,
        }
    }

    pub(super) fn pid(&self) -> Result<u32> {
        let pid = match self {
            Self::Postgres(postgres) => postgres.pid(),
            Self::Mysql(mysql) => mysql.pid(),
        };
        pid.with_context(|| format!("{} does not run", self.database().name()))
    }

    /// Reads the log once, so that the first reader does not wait for a disk on behalf of the others.
    pub(super) async fn warm_up(&self) -> Result<()> {
        for path in self.log_files().await? {
            std::io::copy(&mut File::open(path)?, &mut std::io::sink())?;
        }
        Ok(())
    }

    async fn log_files(&self) -> Result<Vec<PathBuf>> {
        match self {
            Self::Postgres(postgres) => {
                let client = postgres.client().await?;
                let row = client.query_one("show data_directory", &[]).await?;
                let folder = Path::new(row.get::<_, &str>(0)).join("pg_wal");
                let entries =
                    std::fs::read_dir(folder)?.filter_map(|entry| Some(entry.ok()?.path()));
                Ok(entries.filter(|path| path.is_file()).collect())
            }
            Self::Mysql(mysql) => mysql.binlogs(),
        }
    }

    /// A source of these tables and the one that ends a backlog, with its further lines.
    pub(super) fn source(&self, tables: &Tables, lines: &[&str]) -> String {
        let schema = match self {
            Self::Postgres(_) => "public",
            Self::Mysql(_) => "shop",
        };
        let names = tables.names.iter().map(String::as_str).chain([MARK]);
        let patterns: Vec<String> = names.map(|table| format!("{schema}.{table}")).collect();
        let patterns: Vec<&str> = patterns.iter().map(String::as_str).collect();
        match self {
            Self::Postgres(postgres) => resources::source(postgres, &patterns, lines),
            Self::Mysql(mysql) => resources::mysql_source(mysql, &patterns, lines),
        }
    }

    /// Asks the server itself what it is and how it is set.
    pub(super) async fn told(&self) -> Result<Told> {
        let (version, settings) = match self {
            Self::Postgres(postgres) => postgres_told(postgres).await?,
            Self::Mysql(mysql) => {
                let mut client = mysql.client().await?;
                let version = client.query_first("select version()").await?;
                let settings = format!(
                    "select concat(variable_name, ' = ', variable_value) from performance_schema.global_variables
                      where variable_name in ({MYSQL_TOLD}) order by variable_name"
                );
                let version = version.context("the server told no version")?;
                (version, client.query(settings).await?)
            }
        };
        Ok(Told {
            name: self.database().name(),
            version,
            settings,
        })
    }
}

/// Those of postgresql.conf.
async fn postgres_told(postgres: &Postgres) -> Result<(String, Vec<String>)> {
    let client = postgres.client().await?;
    let version = client.query_one("show server_version", &[]).await?.get(0);
    let rows = client
        .query(
            "select name || ' = ' || current_setting(name) from pg_settings
              where source = 'configuration file'
                and name !~ '^(lc_|port|listen|unix_socket|TimeZone|log_|DateStyle|default_text|dynamic_shared)'
              order by name",
            &[],
        )
        .await?;
    Ok((version, rows.iter().map(|row| row.get(0)).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_of_mysql_is_the_number_of_its_last_transaction() {
        let place = |position| Database::Mysql.place(position);
        assert_eq!(
            place("3e11fa47-71ca-11e1-9e33-c80aa9429562:1-10005\n"),
            10_005
        );
        assert_eq!(place("3e11fa47-71ca-11e1-9e33-c80aa9429562:7"), 7);
        assert_eq!(place(""), 0);
        assert_eq!(Database::Postgres.place("1/10"), (1 << 32) + 16);
        assert_eq!(Database::Postgres.place(""), 0);
    }
}
