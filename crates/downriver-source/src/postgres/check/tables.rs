//! Each table that the patterns select, and each pattern that selects none.

use downriver_event::problem::Problem;
use downriver_event::{LogicalType, pattern};

use super::publication::Published;
use crate::check::Finding;
use crate::error::SourceError;
use crate::postgres::catalog::{Catalog, SourceTable};
use crate::postgres::config::PostgresConfig;
use crate::postgres::sql::{identifier, qualified};

pub(super) async fn look(
    catalog: &Catalog,
    config: &PostgresConfig,
    tables: &[SourceTable],
    published: Published,
    findings: &mut Vec<Finding>,
) -> Result<(), SourceError> {
    if tables.is_empty() {
        let reason = format!("no table is selected by {:?}", config.tables);
        let fix = "correct postgres.tables, or grant usage on the schema to the source's user";
        let mut problem = Problem::new("DR-1033", reason, fix);
        problem.field = Some("postgres.tables".into());
        findings.push(Finding::error("tables", problem));
    } else {
        idle_patterns(catalog, config, tables, findings).await?;
    }
    for table in tables {
        match &table.problem {
            Some(problem) => {
                let name = table.schema.qualified_name();
                findings.push(Finding::warning(name, problem.clone()));
            }
            None => {
                rights(catalog, config, table, published, findings).await?;
                findings.extend(as_text(table));
            }
        }
    }
    Ok(())
}

/// A pattern that selects nothing is a slip, or names what is no table.
async fn idle_patterns(
    catalog: &Catalog,
    config: &PostgresConfig,
    tables: &[SourceTable],
    findings: &mut Vec<Finding>,
) -> Result<(), SourceError> {
    for (at, selecting) in config.tables.iter().enumerate() {
        let alone = [selecting.clone()];
        let selects = |table: &SourceTable| {
            pattern::selects(&alone, &table.schema.namespace, &table.schema.name)
        };
        if selecting.starts_with('!') || tables.iter().any(selects) {
            continue;
        }
        let query = "select c.relkind in ('v', 'm'), c.relispartition
                       from pg_class c join pg_namespace n on n.oid = c.relnamespace
                      where n.nspname::text || '.' || c.relname::text = $1 limit 1";
        let found = catalog.client().query_opt(query, &[selecting]).await?;
        let (is_view, is_part) = found.map_or((false, false), |row| (row.get(0), row.get(1)));
        if is_part {
            continue;
        }
        let mut problem = if is_view {
            Problem::new(
                "DR-1037",
                format!("{selecting} is a view: it has no changes of its own"),
                "name the tables that it is made of",
            )
        } else {
            Problem::new(
                "DR-1033",
                format!("no table is selected by {selecting:?}"),
                "correct postgres.tables; a table that is made later is captured then",
            )
        };
        problem.field = Some(format!("postgres.tables[{at}]"));
        findings.push(Finding::warning(selecting.clone(), problem));
    }
    Ok(())
}

async fn rights(
    catalog: &Catalog,
    config: &PostgresConfig,
    table: &SourceTable,
    published: Published,
    findings: &mut Vec<Finding>,
) -> Result<(), SourceError> {
    let name = table.schema.qualified_name();
    let quoted = qualified(&table.schema.namespace, &table.schema.name);
    let rights = catalog
        .client()
        .query_one(
            "select has_schema_privilege(n.oid, 'usage') and has_table_privilege(c.oid, 'select'),
                    pg_has_role(c.relowner, 'usage')
                        or (n.nspname, c.relname) in
                           (select schemaname, tablename from pg_publication_tables where pubname = $2),
                    (select array_agg(attname::text order by attnum) from pg_attribute
                      where attrelid = c.oid and attnum > 0 and not attisdropped and has_any_column_privilege(c.oid, 'select')
                        and not has_column_privilege(c.oid, attnum, 'select'))
               from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = $1",
            &[&table.schema.id.0, &config.publication],
        )
        .await?;
    let user = identifier(&config.user);
    if !rights.get::<_, bool>(0) {
        let unread: Option<Vec<String>> = rights.get(2);
        let reason = match unread {
            None => format!("role {} may not read table {name}", config.user),
            Some(columns) => format!(
                "role {} may not read all of table {name}: not {}, and the table is locked as a whole while it is read",
                config.user,
                columns.join(", ")
            ),
        };
        let fix = format!(
            "grant usage on schema {} to {user}; grant select on {quoted} to {user}",
            identifier(&table.schema.namespace)
        );
        let problem = Problem::new("DR-1004", reason, fix);
        findings.push(Finding::error(name.clone(), problem));
    }
    if published == Published::ByUs && !rights.get::<_, bool>(1) {
        let reason = format!(
            "role {} does not own table {name} and so cannot publish it",
            config.user
        );
        let fix = format!(
            "as the owner or a superuser: create publication {} for table {quoted}; or make {user} a member of the owner's role",
            identifier(&config.publication)
        );
        findings.push(Finding::error(name, Problem::new("DR-1004", reason, fix)));
    }
    Ok(())
}

fn as_text(table: &SourceTable) -> Option<Finding> {
    let columns = table.schema.columns.iter();
    let as_text: Vec<String> = columns
        .filter(|column| column.ty == LogicalType::Other)
        .map(|column| format!("{} ({})", column.name, column.source_type))
        .collect();
    if as_text.is_empty() {
        return None;
    }
    let name = table.schema.qualified_name();
    let reason = format!(
        "columns of table {name} are carried as text: {}",
        as_text.join(", ")
    );
    let problem = Problem::new("DR-1034", reason, "nothing, if text is good enough");
    Some(Finding::warning(name, problem))
}
