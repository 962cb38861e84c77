//! Makes or adopts the publication and the slot, and notices a hole in the source's log.
//!
//! The publication comes first: a slot that is older than its publication decodes with a catalog that does not
//! know it. What we make carries our mark, so that deleting a source drops only that.

use std::sync::Arc;
use std::time::{Duration, Instant};

use downriver_event::Lsn;

use super::catalog::{Catalog, SourceTable, parse_lsn};
use super::config::PostgresConfig;
use super::sql::{APPLICATION, identifier, literal, qualified};
use crate::error::{PUBLICATION_GONE, START_ANEW, SourceError};

/// The comment on a publication that we made.
const MARK: &str = "made by downriver";
/// How long the server may take to notice that a slot's reader is gone, before it is told, and in all.
const SLOT_ASK_AFTER: Duration = Duration::from_secs(2);
const SLOT_FREE_WITHIN: Duration = Duration::from_secs(15);
const SLOT_LOOK_EVERY: Duration = Duration::from_millis(50);
const PUBLICATION_LOOK_EVERY: Duration = Duration::from_secs(2);

/// Tells a publication from another that was made later under its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublicationId(u32);

#[derive(Debug)]
pub struct Prepared {
    /// Where the slot stands: streaming can start at it or later.
    pub position: Lsn,
    pub publication: PublicationId,
    pub tables: Vec<SourceTable>,
}

/// Prepares a database for streaming from `position` on; `None`: nothing was captured yet.
///
/// # Errors
/// A setting or privilege is missing, or the source's log has a hole since `position`.
pub async fn prepare(
    config: &PostgresConfig,
    position: Option<Lsn>,
) -> Result<Prepared, SourceError> {
    let catalog = Catalog::connect(config).await?;
    check_wal_level(&catalog).await?;
    let tables = catalog.list_tables(config).await?;
    // What changed while there was none is not in the stream: only the first one is made.
    if position.is_some() {
        publication_id(&catalog, config).await?;
    }
    prepare_publication(&catalog, config, &tables).await?;
    let publication = publication_id(&catalog, config).await?;
    let position = prepare_slot(&catalog, config, position).await?;
    Ok(Prepared {
        position,
        publication,
        tables,
    })
}

/// Returns when the publication of a running stream is gone or was made anew, or the database does not answer. From
/// version 18 on the server leaves out what it cannot find a publication for, and only its own log says so.
pub async fn publication_lost(
    catalog: Arc<Catalog>,
    config: &PostgresConfig,
    publication: PublicationId,
) -> SourceError {
    loop {
        tokio::time::sleep(PUBLICATION_LOOK_EVERY).await;
        match publication_id(&catalog, config).await {
            Ok(found) if found == publication => {}
            Ok(_) => return publication_gone("was made anew", config),
            Err(error) => return error,
        }
    }
}

async fn publication_id(
    catalog: &Catalog,
    config: &PostgresConfig,
) -> Result<PublicationId, SourceError> {
    let query = "select oid from pg_publication where pubname = $1";
    let found = catalog
        .client()
        .query_opt(query, &[&config.publication])
        .await?;
    found
        .map(|row| PublicationId(row.get(0)))
        .ok_or_else(|| publication_gone("is missing", config))
}

fn publication_gone(what: &str, config: &PostgresConfig) -> SourceError {
    SourceError::definite(
        PUBLICATION_GONE,
        format!(
            "publication {:?} {what}: changes since it was dropped are not in the stream",
            config.publication
        ),
        START_ANEW,
    )
}

pub(super) async fn check_wal_level(catalog: &Catalog) -> Result<(), SourceError> {
    let row = catalog
        .client()
        .query_one("select current_setting('wal_level')", &[])
        .await?;
    let level: String = row.get(0);
    if level == "logical" {
        return Ok(());
    }
    Err(SourceError::definite(
        "DR-1010",
        format!("wal_level is {level}, not logical"),
        "alter system set wal_level = logical; then restart the server",
    ))
}

async fn prepare_publication(
    catalog: &Catalog,
    config: &PostgresConfig,
    tables: &[SourceTable],
) -> Result<(), SourceError> {
    let client = catalog.client();
    let captured: Vec<&SourceTable> = tables
        .iter()
        .filter(|table| table.problem.is_none())
        .collect();
    let name = |table: &SourceTable| qualified(&table.schema.namespace, &table.schema.name);
    let publication = identifier(&config.publication);
    let found = client
        .query_opt(
            "select puballtables, pubinsert and pubupdate and pubdelete and pubtruncate
               from pg_publication where pubname = $1",
            &[&config.publication],
        )
        .await?;
    let Some(found) = found else {
        let names: Vec<String> = captured.iter().map(|table| name(table)).collect();
        let tables = if names.is_empty() {
            String::new()
        } else {
            format!(" for table only {}", names.join(", only "))
        };
        let create = format!(
            "begin; create publication {publication}{tables}; comment on publication {publication} is {}; commit",
            literal(MARK)
        );
        return Ok(client.batch_execute(&create).await?);
    };
    if !found.get::<_, bool>(1) {
        return Err(SourceError::definite(
            "DR-1023",
            format!(
                "publication {} does not publish every kind of change",
                config.publication
            ),
            format!(
                "alter publication {publication} set (publish = 'insert, update, delete, truncate')"
            ),
        ));
    }
    if found.get::<_, bool>(0) {
        return Ok(());
    }
    let rows = client
        .query(
            "select schemaname::text, tablename::text from pg_publication_tables where pubname = $1",
            &[&config.publication],
        )
        .await?;
    let published: Vec<String> = rows
        .iter()
        .map(|row| qualified(row.get(0), row.get(1)))
        .collect();
    let missing: Vec<String> = captured
        .iter()
        .map(|table| name(table))
        .filter(|n| !published.contains(n))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let add = format!(
        "alter publication {publication} add table only {}",
        missing.join(", only ")
    );
    Ok(client.batch_execute(&add).await?)
}

async fn prepare_slot(
    catalog: &Catalog,
    config: &PostgresConfig,
    position: Option<Lsn>,
) -> Result<Lsn, SourceError> {
    let client = catalog.client();
    let hole = |what: &str, until: &str| {
        let from = position.unwrap_or_default();
        SourceError::definite(
            "DR-1020",
            format!(
                "replication slot {:?} {what}: changes from {from} to {until} are not to be had",
                config.slot
            ),
            START_ANEW,
        )
    };
    let found = client
        .query_opt(
            "select plugin::text, database::text, confirmed_flush_lsn::text, wal_status, slot_type
               from pg_replication_slots where slot_name = $1",
            &[&config.slot],
        )
        .await?;
    let Some(found) = found else {
        if position.is_some() {
            let now = catalog.current_position().await?;
            return Err(hole("is missing", &now.to_string()));
        }
        let row = client
            .query_one(
                "select lsn::text from pg_create_logical_replication_slot($1, 'pgoutput')",
                &[&config.slot],
            )
            .await?;
        return parse_lsn(row.get(0));
    };
    let (plugin, database): (Option<String>, Option<String>) = (found.get(0), found.get(1));
    if found.get::<_, &str>(4) != "logical"
        || plugin.as_deref() != Some("pgoutput")
        || database.as_deref() != Some(&config.database)
    {
        return Err(SourceError::definite(
            "DR-1024",
            format!(
                "replication slot {:?} is not a pgoutput slot of database {}",
                config.slot, config.database
            ),
            "name another slot in the source, or drop this one",
        ));
    }
    let confirmed = match found.get::<_, Option<&str>>(2) {
        Some(confirmed) => parse_lsn(confirmed)?,
        None => return Err(hole("has no position", "an unknown position")),
    };
    if found.get::<_, Option<&str>>(3) == Some("lost") {
        return Err(hole(
            "was invalidated because the server removed its WAL",
            &confirmed.to_string(),
        ));
    }
    match position {
        Some(position) if confirmed > position => Err(hole(
            "was advanced by somebody else",
            &confirmed.to_string(),
        )),
        _ => Ok(confirmed),
    }
}

/// What deleting a source drops: the slot, and the publication if we made it.
///
/// # Errors
/// A query failed.
pub async fn owned(config: &PostgresConfig) -> Result<Vec<String>, SourceError> {
    let catalog = Catalog::connect(config).await?;
    let mut owned = Vec::new();
    if slot_exists(&catalog, config).await? {
        owned.push(format!("replication slot {}", config.slot));
    }
    if publication_is_ours(&catalog, config).await? {
        owned.push(format!("publication {}", config.publication));
    }
    Ok(owned)
}

/// Drops what [`owned`] lists. The slot's stream must have been closed: the server is given the time to
/// notice it, and a session of ours that it still believes in is ended.
///
/// # Errors
/// A query failed, or somebody else reads the slot.
pub async fn drop_owned(config: &PostgresConfig) -> Result<(), SourceError> {
    let catalog = Catalog::connect(config).await?;
    drop_slot(&catalog, config).await?;
    if publication_is_ours(&catalog, config).await? {
        catalog
            .client()
            .batch_execute(&format!(
                "drop publication {}",
                identifier(&config.publication)
            ))
            .await?;
    }
    Ok(())
}

/// A walsender notices the end of its connection when it next waits or sends, so the slot may stay active for a
/// while after its reader is gone.
async fn drop_slot(catalog: &Catalog, config: &PostgresConfig) -> Result<(), SourceError> {
    let client = catalog.client();
    let began = Instant::now();
    let mut ended = false;
    loop {
        let holder = client
            .query_opt(
                "select s.active_pid, a.application_name = $2 and a.usename = current_user
                   from pg_replication_slots s left join pg_stat_activity a on a.pid = s.active_pid
                  where s.slot_name = $1",
                &[&config.slot, &APPLICATION],
            )
            .await?;
        let Some(holder) = holder else {
            return Ok(());
        };
        let waited = began.elapsed();
        match holder.get::<_, Option<i32>>(0) {
            None => {
                let dropped = client
                    .execute("select pg_drop_replication_slot($1)", &[&config.slot])
                    .await;
                let in_use = |error: &tokio_postgres::Error| {
                    error.code() == Some(&tokio_postgres::error::SqlState::OBJECT_IN_USE)
                };
                match dropped {
                    Ok(_) => return Ok(()),
                    // Somebody took it between the two statements.
                    Err(error) if in_use(&error) && waited < SLOT_FREE_WITHIN => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Some(pid) if waited >= SLOT_FREE_WITHIN => {
                return Err(SourceError::definite(
                    "DR-1012",
                    format!(
                        "replication slot {:?} cannot be dropped: pid {pid} still reads it",
                        config.slot
                    ),
                    format!(
                        "stop that client; then select pg_drop_replication_slot({})",
                        literal(&config.slot)
                    ),
                ));
            }
            Some(pid) => {
                let ours = holder.get::<_, Option<bool>>(1) == Some(true);
                if ours && !ended && waited >= SLOT_ASK_AFTER {
                    ended = true;
                    client
                        .execute("select pg_terminate_backend($1)", &[&pid])
                        .await?;
                }
            }
        }
        tokio::time::sleep(SLOT_LOOK_EVERY).await;
    }
}

async fn slot_exists(catalog: &Catalog, config: &PostgresConfig) -> Result<bool, SourceError> {
    let query = "select from pg_replication_slots where slot_name = $1";
    Ok(catalog
        .client()
        .query_opt(query, &[&config.slot])
        .await?
        .is_some())
}

async fn publication_is_ours(
    catalog: &Catalog,
    config: &PostgresConfig,
) -> Result<bool, SourceError> {
    let query = "select from pg_publication where pubname = $1 and obj_description(oid, 'pg_publication') = $2";
    Ok(catalog
        .client()
        .query_opt(query, &[&config.publication, &MARK])
        .await?
        .is_some())
}
