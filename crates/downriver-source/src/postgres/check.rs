//! Preflight: everything that is missing on the database, with the SQL that mends it.

use downriver_event::LogicalType;
use downriver_event::problem::Problem;

use super::catalog::Catalog;
use super::config::PostgresConfig;
use super::setup::{check_primary, check_wal_level};
use super::sql::{identifier, qualified};
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
    findings.push(match check_primary(catalog).await {
        Ok(()) => Finding::ok("primary"),
        Err(error) => Finding::error("primary", error.problem()),
    });
    findings.push(match check_wal_level(catalog).await {
        Ok(()) => Finding::ok("wal_level"),
        Err(error) => Finding::error("wal_level", error.problem()),
    });
    let client = catalog.client();
    let role = client
        .query_one("select rolreplication or rolsuper, rolsuper from pg_roles where rolname = current_user", &[])
        .await?;
    let superuser: bool = role.get(1);
    findings.push(if role.get(0) {
        Finding::ok("replication privilege")
    } else {
        let user = identifier(&config.user);
        let reason = format!("role {} may not stream", config.user);
        Finding::error(
            "replication privilege",
            Problem::new("DR-1004", reason, format!("alter role {user} replication")),
        )
    });
    let slots = client
        .query_one(
            "select current_setting('max_replication_slots')::int8 - count(*) > 0
                    or count(*) filter (where slot_name = $1) > 0
               from pg_replication_slots",
            &[&config.slot],
        )
        .await?;
    findings.push(if slots.get(0) {
        Finding::ok("replication slots")
    } else {
        let fix =
            "raise max_replication_slots and restart the server, or drop a slot that nobody uses";
        Finding::error(
            "replication slots",
            Problem::new("DR-1011", "every replication slot is taken", fix),
        )
    });
    let published = client
        .query_opt(
            "select from pg_publication where pubname = $1",
            &[&config.publication],
        )
        .await?
        .is_some();
    let may_create: bool = client
        .query_one(
            "select has_database_privilege(current_database(), 'create')",
            &[],
        )
        .await?
        .get(0);
    if !published && !may_create {
        let (database, user) = (identifier(&config.database), identifier(&config.user));
        let reason = format!(
            "role {} may not create the publication {}",
            config.user, config.publication
        );
        let fix = format!(
            "grant create on database {database} to {user}; or create the publication yourself"
        );
        findings.push(Finding::error(
            "publication",
            Problem::new("DR-1004", reason, fix),
        ));
    }
    let tables = catalog.list_tables(config).await?;
    if tables.is_empty() {
        let reason = format!("no table is selected by {:?}", config.tables);
        let fix = "correct postgres.tables, or grant usage on the schema to the source's user";
        let mut problem = Problem::new("DR-1033", reason, fix);
        problem.field = Some("postgres.tables".into());
        findings.push(Finding::error("tables", problem));
    }
    for table in tables {
        let name = table.schema.qualified_name();
        if let Some(problem) = table.problem {
            findings.push(Finding::warning(name, problem));
            continue;
        }
        let quoted = qualified(&table.schema.namespace, &table.schema.name);
        let rights = client
            .query_one(
                "select has_schema_privilege(n.oid, 'usage') and has_table_privilege(c.oid, 'select'),
                        pg_has_role(c.relowner, 'usage')
                   from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = $1",
                &[&table.schema.id.0],
            )
            .await?;
        let user = identifier(&config.user);
        if !rights.get::<_, bool>(0) {
            let reason = format!("role {} may not read table {name}", config.user);
            let fix = format!(
                "grant usage on schema {} to {user}; grant select on {quoted} to {user}",
                identifier(&table.schema.namespace)
            );
            findings.push(Finding::error(
                name.clone(),
                Problem::new("DR-1004", reason, fix),
            ));
        }
        if !published && !superuser && !rights.get::<_, bool>(1) {
            let reason = format!(
                "role {} does not own table {name} and so cannot publish it",
                config.user
            );
            let fix = format!(
                "as the owner or a superuser: create publication {} for table {quoted}; or make {user} a member of the owner's role",
                identifier(&config.publication)
            );
            findings.push(Finding::error(
                name.clone(),
                Problem::new("DR-1004", reason, fix),
            ));
        }
        let as_text: Vec<String> = table
            .schema
            .columns
            .iter()
            .filter(|column| column.ty == LogicalType::Other)
            .map(|column| format!("{} ({})", column.name, column.source_type))
            .collect();
        if !as_text.is_empty() {
            let reason = format!(
                "columns of table {name} are carried as text: {}",
                as_text.join(", ")
            );
            findings.push(Finding::warning(
                name,
                Problem::new("DR-1034", reason, "nothing, if text is good enough"),
            ));
        }
    }
    Ok(())
}
