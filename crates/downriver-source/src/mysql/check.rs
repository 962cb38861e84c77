//! Preflight: everything that is missing on the server, with the SQL that mends it.

use super::catalog::Catalog;
use super::config::MysqlConfig;
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
