//! Preflight: everything that is missing on the server, with the SQL that mends it.

use downriver_event::problem::Problem;
use mysql_async::Row;
use mysql_async::prelude::Queryable as _;

use super::catalog::Catalog;
use super::config::MysqlConfig;
use super::sql::{text, variables};
use crate::check::Finding;
use crate::error::SourceError;

/// Looks at the server; changes nothing. A table that cannot be captured is a warning: the others can.
pub async fn check(config: &MysqlConfig) -> Vec<Finding> {
    let mut catalog = match Catalog::connect(config).await {
        Ok(catalog) => catalog,
        Err(error) => return vec![Finding::error("connection", error.problem())],
    };
    let mut findings = vec![Finding::ok("connection")];
    if let Err(error) = look(&mut catalog, config, &mut findings).await {
        findings.push(Finding::error("server", error.problem()));
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
    findings.push(Finding::of("privileges", privileges(catalog, config).await));
    for problem in cascades(catalog, config).await? {
        findings.push(Finding::warning("foreign keys", problem));
    }
    for table in catalog.tables(config).await? {
        let name = table.schema.qualified_name();
        findings.push(match table.problem {
            Some(problem) => Finding::warning(name, problem),
            None => Finding::ok(name),
        });
    }
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
    let query = "select constraint_schema, table_name, constraint_name, referenced_table_name
                   from information_schema.referential_constraints
                  where delete_rule in ('CASCADE', 'SET NULL', 'SET DEFAULT')
                     or update_rule in ('CASCADE', 'SET NULL', 'SET DEFAULT')
                  order by 1, 2, 3";
    let rows: Vec<Row> = catalog.session.query(query).await?;
    let problem = |row: &Row| {
        let (database, table) = (text(row, 0)?, text(row, 1)?);
        let (key, parent) = (text(row, 2)?, text(row, 3)?);
        config.captures(&database, &table).then(|| {
            let reason = format!(
                "foreign key {key} changes rows of {database}.{table} when {parent} changes, and the server does not log it: such a change is missed"
            );
            Problem::new(
                "DR-1089",
                reason,
                format!("let the application delete, or after such a change: downriver resnapshot PIPELINE --tables {database}.{table}"),
            )
        })
    };
    Ok(rows.iter().filter_map(problem).collect())
}
