//! What the server has to be set to, and has to have left.

use downriver_event::problem::Problem;

use super::Finding;
use crate::error::SourceError;
use crate::postgres::catalog::Catalog;
use crate::postgres::config::PostgresConfig;
use crate::postgres::setup::{check_primary, check_wal_level};
use crate::postgres::slot;
use crate::postgres::sql::identifier;

pub(super) async fn look(
    catalog: &Catalog,
    config: &PostgresConfig,
    findings: &mut Vec<Finding>,
) -> Result<(), SourceError> {
    findings.push(Finding::of("primary", check_primary(catalog).await));
    findings.push(Finding::of("wal_level", check_wal_level(catalog).await));
    findings.push(may_stream(catalog, config).await?);
    let (slot, is_read) = match slot::find(catalog, config).await? {
        Some(found) => (found.check_kind(config), found.state.active),
        None => (slot::check_room(catalog).await, false),
    };
    findings.push(Finding::of("replication slots", slot));
    if !is_read {
        findings.push(walsenders(catalog).await?);
    }
    Ok(())
}

async fn may_stream(catalog: &Catalog, config: &PostgresConfig) -> Result<Finding, SourceError> {
    let query = "select rolreplication or rolsuper from pg_roles where rolname = current_user";
    let may: bool = catalog.client().query_one(query, &[]).await?.get(0);
    if may {
        return Ok(Finding::ok("replication privilege"));
    }
    let user = identifier(&config.user);
    let reason = format!("role {} may not stream", config.user);
    let problem = Problem::new("DR-1004", reason, format!("alter role {user} replication"));
    Ok(Finding::error("replication privilege", problem))
}

async fn walsenders(catalog: &Catalog) -> Result<Finding, SourceError> {
    let query = "select current_setting('max_wal_senders')::int8 > (select count(*) from pg_stat_replication)";
    if catalog.client().query_one(query, &[]).await?.get(0) {
        return Ok(Finding::ok("walsenders"));
    }
    let problem = Problem::new(
        "DR-1011",
        "every walsender of the server is taken",
        "end a replication client that nobody needs, or raise max_wal_senders and restart the server",
    );
    Ok(Finding::error("walsenders", problem))
}
