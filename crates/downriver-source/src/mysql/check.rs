//! Preflight: everything that is missing on the server, with the SQL that mends it.

use std::time::Duration;

use downriver_decode::mysql::ddl::Named;
use downriver_event::problem::Problem;

use super::begin::{self, Begin};
use super::behind::kept_too_short;
use super::catalog::Catalog;
use super::config::MysqlConfig;
use super::reach::ForeignKey;
use super::replica;
use super::sql::variables;
use crate::check::{Finding, Severity};
use crate::error::SourceError;

/// Looks at the server; changes nothing. A table that cannot be captured is a warning: the others can. `begin`: where a
/// source without a log is to begin. `warn`: how long the server is to keep its binlog at least.
pub async fn check(
    config: &MysqlConfig,
    begin: Option<&Begin>,
    warn: Option<Duration>,
) -> Vec<Finding> {
    let mut catalog = match Catalog::connect(config).await {
        Ok(catalog) => catalog,
        Err(error) => return vec![Finding::error("connection", error.problem())],
    };
    let mut findings = vec![Finding::ok("connection")];
    if let Err(error) = look(&mut catalog, config, &mut findings).await {
        findings.push(Finding::error("server", error.problem()));
    }
    let has_errors = findings.iter().any(|f| f.severity == Severity::Error);
    if let Some(begin) = begin.filter(|_| !has_errors) {
        findings.push(Finding::of(
            "start",
            starts(&mut catalog, config, begin).await,
        ));
    }
    let expires = catalog.server().binlog_expires_s.map(Duration::from_secs);
    if let Some(problem) = expires
        .zip(warn)
        .and_then(|(expires, warn)| kept_too_short(expires, warn))
    {
        findings.push(Finding::warning("binlog", problem));
    }
    findings
}

async fn look(
    catalog: &mut Catalog,
    config: &MysqlConfig,
    findings: &mut Vec<Finding>,
) -> Result<(), SourceError> {
    let problems = catalog.server().problems();
    match problems.is_empty() {
        true => findings.push(Finding::ok("binlog")),
        false => {
            findings.extend(
                problems
                    .into_iter()
                    .map(|problem| Finding::error("binlog", problem)),
            );
        }
    }
    if let Some(advice) = catalog.server().advice() {
        findings.push(Finding::warning("binlog", advice));
    }
    findings.push(Finding::of("privileges", privileges(catalog, config).await));
    of_replica(catalog, findings).await?;
    for problem in cascades(catalog, config).await? {
        findings.push(Finding::warning("foreign keys", problem));
    }
    for table in catalog.tables(config).await? {
        let name = table.schema.qualified_name();
        findings.push(match table.problem.or(table.warning) {
            Some(problem) => Finding::warning(name, problem),
            None => Finding::ok(name),
        });
    }
    Ok(())
}

/// Whether the server has, and logs, what another one changes.
async fn of_replica(catalog: &mut Catalog, findings: &mut Vec<Finding>) -> Result<(), SourceError> {
    let server = catalog.server().clone();
    let channels = server.channels(&mut catalog.session).await?;
    if channels.is_none() && server.was_replica {
        findings.push(Finding::warning("replication", replica::unknown()));
    }
    if let Some(problem) = replica::unlogged(&server, channels.as_deref()) {
        findings.push(Finding::error("replication", problem));
    }
    for problem in replica::warnings(&channels.unwrap_or_default()) {
        findings.push(Finding::warning("replication", problem));
    }
    Ok(())
}

async fn starts(
    catalog: &mut Catalog,
    config: &MysqlConfig,
    begin: &Begin,
) -> Result<(), SourceError> {
    let server = catalog.server().clone();
    begin::position(config, &mut catalog.session, &server, begin).await?;
    Ok(())
}

/// The binlog may be read, and where it ends asked for.
async fn privileges(catalog: &mut Catalog, config: &MysqlConfig) -> Result<(), SourceError> {
    let position = catalog.position().await?;
    super::dump::BinlogStream::start(config, &position).await?;
    Ok(())
}

/// Foreign keys by which the storage engine changes rows of captured tables, and logs nothing. From MySQL 9.6 on the server
/// changes them itself, and logs it, unless it is told otherwise.
async fn cascades(
    catalog: &mut Catalog,
    config: &MysqlConfig,
) -> Result<Vec<Problem>, SourceError> {
    const NATIVE: &str = "innodb_native_foreign_keys";
    let native = variables(&mut catalog.session, "global", &[NATIVE]).await?;
    if native.get(NATIVE).is_some_and(|native| native == "OFF") {
        return Ok(Vec::new());
    }
    let keys = catalog.keys_by_child().await?;
    let captured = keys
        .iter()
        .filter(|(child, _)| catalog.captures(config, &child.database, &child.table));
    let problem = |(child, keys): (&Named, &Vec<ForeignKey>)| {
        let named = keys.iter().map(|key| {
            let Named { database, table } = &key.parent;
            format!("{} (to {database}.{table})", key.name)
        });
        let named: Vec<String> = named.collect();
        let Named { database, table } = child;
        Problem::new(
            "DR-1089",
            format!(
                "rows of {database}.{table} change by foreign keys with the rows that they refer to, and the server does not log it: the table is then read again. The keys: {}",
                named.join(", ")
            ),
            "nothing, if that is seldom or the table is small; else let the application change the rows itself, or set innodb_native_foreign_keys = OFF where the server has it",
        )
    };
    Ok(captured.map(problem).collect())
}
