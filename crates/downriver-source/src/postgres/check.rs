//! Preflight: everything that is missing on the database, with the SQL that mends it.

mod publication;
mod server;
mod tables;

use downriver_event::problem::Problem;

use super::catalog::Catalog;
use super::config::PostgresConfig;
use crate::error::SourceError;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    Error,
    Warning,
    Ok,
}

#[derive(Clone, Debug)]
pub struct Finding {
    pub severity: Severity,
    pub subject: String,
    pub problem: Option<Problem>,
}

impl Finding {
    fn ok(subject: impl Into<String>) -> Self {
        Self {
            severity: Severity::Ok,
            subject: subject.into(),
            problem: None,
        }
    }

    fn error(subject: impl Into<String>, problem: Problem) -> Self {
        Self {
            severity: Severity::Error,
            subject: subject.into(),
            problem: Some(problem),
        }
    }

    fn warning(subject: impl Into<String>, problem: Problem) -> Self {
        Self {
            severity: Severity::Warning,
            subject: subject.into(),
            problem: Some(problem),
        }
    }

    fn of(subject: &str, checked: Result<(), SourceError>) -> Self {
        match checked {
            Ok(()) => Self::ok(subject),
            Err(error) => Self::error(subject, error.problem()),
        }
    }
}

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
