//! Preflight: everything that is missing on the database, with the SQL that mends it.

mod publication;
mod server;
mod tables;

use super::catalog::Catalog;
use super::config::PostgresConfig;
use crate::check::Finding;
use crate::error::SourceError;

/// Looks at the database; changes nothing. A table that cannot be captured is a warning: the others can.
pub async fn check(config: &PostgresConfig) -> Vec<Finding> {
    let catalog = match Catalog::connect(config).await {
        Ok(catalog) => catalog,
        Err(error) => return vec![Finding::error("connection", error.problem())],
    };
    let mut findings = vec![Finding::ok("connection")];
    if let Err(error) = look(&catalog, config, &mut findings).await {
        findings.push(Finding::error("database", error.problem()));
    }
    findings
}

async fn look(
    catalog: &Catalog,
    config: &PostgresConfig,
    findings: &mut Vec<Finding>,
) -> Result<(), SourceError> {
    server::look(catalog, config, findings).await?;
    let tables = catalog.list_tables(config).await?;
    let published = publication::look(catalog, config, &tables, findings).await?;
    tables::look(catalog, config, &tables, published, findings).await
}
