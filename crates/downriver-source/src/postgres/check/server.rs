//! What the server has to be set to, and has to have left.

use downriver_event::problem::Problem;

use crate::check::Finding;
use crate::error::SourceError;
use crate::postgres::catalog::Catalog;
use crate::postgres::config::PostgresConfig;
use crate::postgres::setup::check_wal_level;
use crate::postgres::slot;
use crate::postgres::sql::identifier;
use crate::postgres::standby::{Role, check_role};

pub(super) async fn look(
    catalog: &Catalog,
    config: &PostgresConfig,
    findings: &mut Vec<Finding>,
) -> Result<(), SourceError> {
    match check_role(catalog).await {
        Ok(Role::Primary) => findings.push(Finding::ok("primary")),
        Ok(Role::Standby) => {
            findings.push(Finding::ok("standby"));
            findings.push(feedback(catalog).await?);
        }
        Err(error) => findings.push(Finding::error("primary", error.problem())),
    }
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

/// Without it the primary removes catalog rows that the slot needs.
async fn feedback(catalog: &Catalog) -> Result<Finding, SourceError> {
    let query = "select current_setting('hot_standby_feedback')::bool";
    if catalog.client().query_one(query, &[]).await?.get(0) {
        return Ok(Finding::ok("hot_standby_feedback"));
    }
    let problem = Problem::new(
        "DR-1016",
        "hot_standby_feedback is off: what the primary vacuums may invalidate the slot, which makes a hole, and end reads of the snapshot",
        "on the standby: alter system set hot_standby_feedback = on; select pg_reload_conf(); and let it stream through a physical slot (primary_slot_name)",
    );
    Ok(Finding::warning("hot_standby_feedback", problem))
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
