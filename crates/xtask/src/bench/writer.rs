//! Whoever writes a backlog: a connection whose commits do not wait for the disk, as no reader notices.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use downriver_testkit::host;
use futures_util::SinkExt as _;
use mysql_async::Conn;
use mysql_async::prelude::Queryable as _;
use tokio_postgres::Client;
use tokio_postgres::types::PgLsn;

use super::rows::{Rows, push_insert};
use super::server::{Database, Server};
use super::workloads::{MARK, Tables};

/// A statement string or COPY message is sent when it has grown to this.
const BATCH_BYTES: usize = 1 << 20;
const ROWS_A_STATEMENT: u64 = 1_000;
const PAGES_PATIENCE: Duration = Duration::from_secs(300);
/// Fewer than these are no work.
const DIRTY_PAGES: f64 = 100.0;

/// Name, bytes, and whether it is encrypted.
type BinlogFile = (String, u64, String);

pub(super) enum Writer {
    Postgres(Client),
    Mysql(Conn),
}

impl Writer {
    pub(super) async fn connect(server: &Server) -> Result<Self> {
        let mut writer = match server {
            Server::Postgres(postgres) => Self::Postgres(postgres.client().await?),
            Server::Mysql(mysql) => Self::Mysql(mysql.client().await?),
        };
        writer.hurry().await?;
        Ok(writer)
    }

    async fn hurry(&mut self) -> Result<()> {
        self.execute(match self {
            Self::Postgres(_) => "set synchronous_commit = off",
            Self::Mysql(_) => {
                "set global sync_binlog = 0; set global innodb_flush_log_at_trx_commit = 0"
            }
        })
        .await
    }

    pub(super) async fn execute(&mut self, sql: &str) -> Result<()> {
        match self {
            _ if sql.is_empty() => {}
            Self::Postgres(client) => client.batch_execute(sql).await?,
            Self::Mysql(client) => client.query_drop(sql).await?,
        }
        Ok(())
    }

    pub(super) async fn execute_when_large(&mut self, sql: &mut String) -> Result<()> {
        if sql.len() >= BATCH_BYTES {
            self.execute(sql).await?;
            sql.clear();
        }
        Ok(())
    }

    /// Behind everything that was committed.
    pub(super) async fn place(&mut self) -> Result<u64> {
        match self {
            // What is written, not where the next record would go: at the start of a page that lies behind the page's
            // header, and no reader ever comes to it.
            Self::Postgres(client) => {
                let row = client.query_one("select pg_current_wal_flush_lsn()", &[]);
                Ok(row.await?.get::<_, PgLsn>(0).into())
            }
            Self::Mysql(client) => {
                let gtids: Option<String> = client.query_first("select @@gtid_executed").await?;
                Ok(Database::Mysql.place(&gtids.unwrap_or_default()))
            }
        }
    }

    /// How much was ever written of the log.
    pub(super) async fn log_bytes(&mut self) -> Result<u64> {
        match self {
            Self::Postgres(_) => self.place().await,
            Self::Mysql(client) => {
                let files: Vec<BinlogFile> = client.query("show binary logs").await?;
                Ok(files.iter().map(|(_, bytes, _)| bytes).sum())
            }
        }
    }

    /// Begins a new file of the log where readers name one, and returns its name.
    pub(super) async fn begin_log_file(&mut self) -> Result<Option<String>> {
        let Self::Mysql(client) = self else {
            return Ok(None);
        };
        client.query_drop("flush binary logs").await?;
        let files: Vec<BinlogFile> = client.query("show binary logs").await?;
        Ok(files.into_iter().last().map(|(name, ..)| name))
    }

    /// The rows that a table has before the backlog, numbered from 0.
    pub(super) async fn seed(&mut self, table: &str, count: u64, rows: &mut Rows) -> Result<()> {
        match self {
            Self::Postgres(client) => copy_rows(client, table, count, rows).await,
            Self::Mysql(_) => {
                // No reader begins so early, and a snapshot does not read the log.
                self.execute("set sql_log_bin = 0").await?;
                let mut sql = String::new();
                for first in (0..count).step_by(ROWS_A_STATEMENT as usize) {
                    push_insert(
                        &mut sql,
                        table,
                        first,
                        ROWS_A_STATEMENT.min(count - first),
                        rows,
                    );
                    self.execute_when_large(&mut sql).await?;
                }
                self.execute(&sql).await?;
                self.execute("set sql_log_bin = 1").await
            }
        }
    }

    pub(super) async fn publish(&mut self, tables: &Tables) -> Result<()> {
        match self {
            Self::Postgres(_) => {
                self.execute(&format!(
                    "create publication {} for table {}, {MARK}",
                    tables.publication,
                    tables.names.join(", ")
                ))
                .await
            }
            // Its log is of all tables.
            Self::Mysql(_) => Ok(()),
        }
    }

    /// What the server would do later by itself, and on whose time nobody knows.
    pub(super) async fn settle(&mut self) -> Result<()> {
        match self {
            Self::Postgres(_) => self.execute("vacuum analyze").await?,
            Self::Mysql(_) => {}
        }
        self.write_pages().await
    }

    async fn write_pages(&mut self) -> Result<()> {
        let client = match self {
            Self::Postgres(client) => return Ok(client.batch_execute("checkpoint").await?),
            Self::Mysql(client) => client,
        };
        client
            .query_drop("set global innodb_max_dirty_pages_pct = 0")
            .await?;
        let dirty = "select variable_value + 0 from performance_schema.global_status
                      where variable_name = 'Innodb_buffer_pool_pages_dirty'";
        host::until(
            "the server to write its pages",
            PAGES_PATIENCE,
            async || {
                let pages: Option<f64> = client.query_first(dirty).await?;
                Ok(pages.context("no number of pages")? < DIRTY_PAGES)
            },
        )
        .await?;
        let usual = "set global innodb_max_dirty_pages_pct = default";
        Ok(client.query_drop(usual).await?)
    }

    /// Ends a backlog durably; returns where the server then stands.
    pub(super) async fn mark(&mut self) -> Result<u64> {
        self.execute(match self {
            Self::Postgres(_) => "set synchronous_commit = on",
            Self::Mysql(_) => {
                "set global sync_binlog = 1; set global innodb_flush_log_at_trx_commit = 1"
            }
        })
        .await?;
        let insert = format!("insert into {MARK} select count(*) + 1, 'end' from {MARK}");
        self.execute(&insert).await?;
        self.write_pages().await?;
        self.place().await
    }
}

async fn copy_rows(client: &Client, table: &str, count: u64, rows: &mut Rows) -> Result<()> {
    let sink = client.copy_in(&format!("copy {table} from stdin")).await?;
    let mut sink = std::pin::pin!(sink);
    let mut lines = String::new();
    for id in 0..count {
        rows.draw(id).push_line(&mut lines);
        if lines.len() >= BATCH_BYTES {
            sink.send(Bytes::from(std::mem::take(&mut lines))).await?;
        }
    }
    sink.send(Bytes::from(lines)).await?;
    let copied = sink.finish().await.context("copy rows")?;
    ensure!(copied == count, "{copied} of {count} rows were copied");
    Ok(())
}
