//! Whether the publication can be made, or publishes what is wanted of it.

use downriver_event::problem::Problem;

use crate::check::Finding;
use crate::error::SourceError;
use crate::postgres::catalog::{Catalog, SourceTable};
use crate::postgres::config::PostgresConfig;
use crate::postgres::publication::{
    creation, is_ours, leaves_changes_out, missing_on_standby, not_published,
};
use crate::postgres::sql::{identifier, qualified};

/// What is to be done to the publication for a table that is not in it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Published {
    /// It is made, or the table is put into it, by whoever owns the table.
    ByUs,
    /// Nothing.
    ByOthers,
}

pub(super) async fn look(
    catalog: &Catalog,
    config: &PostgresConfig,
    tables: &[SourceTable],
    findings: &mut Vec<Finding>,
) -> Result<Published, SourceError> {
    let found = catalog
        .client()
        .query_opt(
            "select pubinsert and pubupdate and pubdelete and pubtruncate, pg_has_role(pubowner, 'usage')
               from pg_publication where pubname = $1",
            &[&config.publication],
        )
        .await?;
    let is_standby = catalog.is_standby().await?;
    let Some(found) = found else {
        if is_standby {
            let captured = tables.iter().filter(|table| table.problem.is_none());
            let names = captured
                .map(|table| qualified(&table.schema.namespace, &table.schema.name))
                .collect();
            let problem = missing_on_standby(config, &creation(config, names)).problem();
            findings.push(Finding::error("publication", problem));
            return Ok(Published::ByOthers);
        }
        findings.push(may_make(catalog, config).await?);
        return Ok(Published::ByUs);
    };
    if !found.get::<_, bool>(0) {
        let problem = leaves_changes_out(config).problem();
        findings.push(Finding::error("publication", problem));
    }
    let seen = catalog.seen().await?;
    let missing = |table: &&SourceTable| {
        let seen = seen.get(&table.schema.id);
        table.problem.is_none() && seen.is_none_or(|seen| seen.outline.is_none())
    };
    let missing: Vec<&SourceTable> = tables.iter().filter(missing).collect();
    if is_standby || !is_ours(catalog, config).await? {
        // Others are captured: these are refused.
        findings.extend(missing.into_iter().map(|table| {
            let problem = not_published(&table.schema, config);
            Finding::warning(table.schema.qualified_name(), problem)
        }));
        return Ok(Published::ByOthers);
    }
    if !missing.is_empty() && !found.get::<_, bool>(1) {
        let (publication, user) = (identifier(&config.publication), identifier(&config.user));
        let reason = format!(
            "role {} does not own publication {} and so cannot put tables into it",
            config.user, config.publication
        );
        let fix = format!("alter publication {publication} owner to {user}");
        findings.push(Finding::error(
            "publication",
            Problem::new("DR-1004", reason, fix),
        ));
    }
    Ok(Published::ByUs)
}

async fn may_make(catalog: &Catalog, config: &PostgresConfig) -> Result<Finding, SourceError> {
    let query = "select has_database_privilege(current_database(), 'create')";
    if catalog.client().query_one(query, &[]).await?.get(0) {
        return Ok(Finding::ok("publication"));
    }
    let (database, user) = (identifier(&config.database), identifier(&config.user));
    let reason = format!(
        "role {} may not create the publication {}",
        config.user, config.publication
    );
    let fix = format!(
        "grant create on database {database} to {user}; or create the publication yourself"
    );
    Ok(Finding::error(
        "publication",
        Problem::new("DR-1004", reason, fix),
    ))
}
