//! Slots of PostgreSQL: a place in the log, of which each reader gets a copy.

use std::time::Duration;

use anyhow::Result;
use downriver_testkit::{Postgres, host};

const PATIENCE: Duration = Duration::from_secs(60);

/// One that stands here.
pub(super) async fn create(postgres: &Postgres, slot: &str, plugin: &str) -> Result<()> {
    let sql = format!("select pg_create_logical_replication_slot('{slot}', '{plugin}')");
    postgres.execute(&sql).await
}

/// A reader that failed may have left its copy, for a moment even in use.
pub(super) async fn copy(postgres: &Postgres, slot: &str) -> Result<String> {
    let copy = format!("{slot}_copy");
    let sql = format!(
        "select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name = '{copy}';
         select pg_copy_logical_replication_slot('{slot}', '{copy}')"
    );
    host::until("a copy of the slot", PATIENCE, async || {
        postgres.execute(&sql).await?;
        Ok(true)
    })
    .await?;
    Ok(copy)
}

/// Returns when the slot is gone; its walsender may outlive its reader for a moment.
pub(super) async fn drop(postgres: &Postgres, slot: &str) -> Result<()> {
    let sql = format!("select pg_drop_replication_slot('{slot}')");
    host::until("the slot to be free", PATIENCE, async || {
        postgres.execute(&sql).await?;
        Ok(true)
    })
    .await
}
