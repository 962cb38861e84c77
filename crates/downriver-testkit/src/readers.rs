//! Are a database's tables and the lake's equal, as DuckDB and PyIceberg read the lake?
//!
//! The comparison itself is `tests/e2e/readers/compare.py`, in other people's engines.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::daemon::Daemon;
use crate::host;
use crate::mysql::Mysql;
use crate::postgres::Postgres;
use crate::resources;
use crate::seaweed::{self, Seaweed};

/// Carried along: a target folder may outlast the checkout that it was built from.
const COMPARE: &str = include_str!("../../../tests/e2e/readers/compare.py");

/// Rows and their order-independent checksum, as one reader saw them.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Seen {
    #[serde(default)]
    pub rows: u64,
    #[serde(default)]
    pub checksum: String,
    pub error: Option<String>,
    pub differences: Option<Value>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Comparison {
    pub table: String,
    pub equal: bool,
    pub source: Seen,
    #[serde(default)]
    pub duckdb: Seen,
    #[serde(default)]
    pub pyiceberg: Seen,
}

/// Where the lake is.
pub struct Lake {
    uri: String,
    warehouse: String,
    credential: Option<String>,
    s3: Option<String>,
    /// Of whose tables.
    source: String,
}

impl Lake {
    /// The daemon's own catalog; files in a folder.
    pub fn builtin(daemon: &Daemon) -> Result<Self> {
        Ok(Self {
            uri: daemon.catalog_uri()?,
            warehouse: resources::SINK.to_owned(),
            credential: None,
            s3: None,
            source: resources::SOURCE.to_owned(),
        })
    }

    /// The daemon's own catalog; files in S3.
    pub fn builtin_on(daemon: &Daemon, server: &Seaweed) -> Result<Self> {
        Ok(Self {
            s3: Some(server.s3_endpoint()),
            ..Self::builtin(daemon)?
        })
    }

    /// SeaweedFS' catalog.
    pub fn external(server: &Seaweed) -> Self {
        Self {
            uri: server.catalog_uri(),
            warehouse: seaweed::WAREHOUSE.to_owned(),
            credential: Some(format!("{}:{}", seaweed::ACCESS_KEY, seaweed::SECRET_KEY)),
            s3: Some(server.s3_endpoint()),
            source: resources::SOURCE.to_owned(),
        }
    }

    /// The tables of another source.
    #[must_use]
    pub fn of_source(mut self, name: &str) -> Self {
        self.source = name.to_owned();
        self
    }
}

/// Compares tables ("schema.table") and returns what each reader saw.
pub async fn compare(postgres: &Postgres, lake: &Lake, tables: &[&str]) -> Result<Vec<Comparison>> {
    let request = json!({
        "postgres": { "psql": postgres.program("psql"), "url": postgres.admin_url("shop") },
        "tables": tables,
    });
    compare_as(request, lake).await
}

async fn compare_as(mut request: Value, lake: &Lake) -> Result<Vec<Comparison>> {
    let mut catalog = json!({ "uri": lake.uri, "warehouse": lake.warehouse });
    if let Some(credential) = &lake.credential {
        catalog["credential"] = json!(credential);
    }
    if let Some(endpoint) = &lake.s3 {
        catalog["s3"] = json!({
            "endpoint": endpoint, "access_key": seaweed::ACCESS_KEY, "secret_key": seaweed::SECRET_KEY
        });
    }
    request["namespace"] = json!(lake.source);
    request["catalog"] = catalog;
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), request.to_string())?;
    let output = tokio::process::Command::new(host::venv_program("python")?)
        .args(["-c", COMPARE])
        .arg(file.path())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .context("run compare.py")?;
    ensure!(
        output.status.success(),
        "compare.py failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );

    #[derive(Deserialize)]
    struct Answer {
        tables: Vec<Comparison>,
    }
    let answer: Answer = serde_json::from_slice(&output.stdout).context("answer of compare.py")?;
    Ok(answer.tables)
}

/// An error that shows the first differences unless all tables are equal.
pub async fn ensure_equal(postgres: &Postgres, lake: &Lake, tables: &[&str]) -> Result<()> {
    ensure_all_equal(&compare(postgres, lake, tables).await?)
}

/// The same of tables of `shop` in MySQL or MariaDB. The number of rows.
pub async fn ensure_equal_mysql(mysql: &Mysql, lake: &Lake, tables: &[&str]) -> Result<u64> {
    let tables: Vec<_> = tables.iter().map(|table| (*table, *table)).collect();
    ensure_equal_mysql_views(mysql, lake, &tables).await
}

/// The same of tables of the lake, each with the table or view of `shop` that has what is to be in it.
pub async fn ensure_equal_mysql_views(
    mysql: &Mysql,
    lake: &Lake,
    tables: &[(&str, &str)],
) -> Result<u64> {
    let mut rows = serde_json::Map::new();
    let names = tables.iter().map(|(table, _)| format!("shop.{table}"));
    let names: Vec<String> = names.collect();
    for ((_, view), name) in tables.iter().zip(&names) {
        rows.insert(name.clone(), mysql.canonical_rows(view).await?);
    }
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), Value::Object(rows).to_string())?;
    let request = json!({ "rows": file.path(), "tables": names });
    let compared = compare_as(request, lake).await?;
    ensure_all_equal(&compared)?;
    Ok(compared.iter().map(|table| table.source.rows).sum())
}

fn ensure_all_equal(compared: &[Comparison]) -> Result<()> {
    for table in compared {
        println!(
            "{}: the source {} rows {}, DuckDB {} rows, PyIceberg {} rows, equal: {}",
            table.table,
            table.source.rows,
            table.source.checksum,
            table.duckdb.rows,
            table.pyiceberg.rows,
            table.equal
        );
    }
    let different: Vec<&Comparison> = compared.iter().filter(|table| !table.equal).collect();
    ensure!(
        different.is_empty(),
        "source and lake differ: {different:#?}"
    );
    Ok(())
}
