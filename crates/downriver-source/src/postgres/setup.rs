//! Makes or adopts the publication and the slot, notices a hole in the source's log, and makes what is needed to go on
//! behind one.
//!
//! The publication comes first: a slot that is older than its publication decodes with a catalog that does not
//! know it. What we make carries our mark, so that deleting a source drops only that.
//!
//! A hole is whatever the slot cannot bring any more of what follows the log's position: the slot is missing, lost,
//! or stands behind it; the publication was gone for a while; or the server left the timeline that the position is
//! of before it got there. [`prepare`] only finds one. [`repair`] drops the slot first, so that until a new one is
//! there, and the log knows it, the hole is found again whatever happens.

use std::collections::HashMap;

use downriver_event::{Lsn, TableId};

use super::catalog::{Catalog, SourceTable};
use super::config::PostgresConfig;
use super::identity::{Identity, Lineage, Server, fork, identify};
use super::outline::Outline;
use super::publication::{self, PublicationId, Seen};
use super::replication::Session;
use super::slot;
use super::sql::identifier;
use super::standby::{Role, check_role};
use crate::error::SourceError;

/// What a log has of a source.
#[derive(Clone, Debug)]
pub struct Captured {
    pub position: Lsn,
    pub identity: Identity,
    /// Tables that it has whole, or will have from a snapshot: they were in the publication, and stood so in it.
    pub tables: HashMap<TableId, Option<Outline>>,
}

#[derive(Debug)]
pub struct Prepared {
    /// Where the slot stands: streaming can start at it or later.
    pub position: Lsn,
    /// It was made just now, after the publication: everything that ran before is over at the position.
    pub is_slot_new: bool,
    pub identity: Identity,
    pub is_standby: bool,
    pub publication: PublicationId,
    pub tables: Vec<SourceTable>,
}

/// Prepares a database for streaming, by this session and from where the log stands; `None`: nothing was captured yet.
///
/// # Errors
/// A setting or privilege is missing, or the source's log has a hole since that position.
pub async fn prepare(
    config: &PostgresConfig,
    session: &mut Session,
    captured: Option<&Captured>,
) -> Result<Prepared, SourceError> {
    let catalog = Catalog::connect(config).await?;
    let (server, role) = check_server(&catalog, session, captured).await?;
    let mut position = None;
    if let Some(captured) = captured {
        // Before anything is made: a hole is left as it is.
        check_timeline(session, &server, role, captured).await?;
        check_publication(&catalog, config, captured).await?;
        position = Some(prepare_slot(&catalog, config, Some(captured)).await?.at);
    } else if slot::find(&catalog, config).await?.is_none() {
        slot::check_room(&catalog).await?;
    }
    let (mut tables, seen) = publish(&catalog, config, captured).await?;
    place(&catalog, &mut tables, &seen, captured).await?;
    let publication = publication::id(&catalog, config).await?;
    let (position, is_slot_new) = match position {
        Some(position) => (position, false),
        None => {
            let slot = prepare_slot(&catalog, config, None).await?;
            (slot.at, slot.is_new)
        }
    };
    let identity = identity(&catalog, server, publication).await?;
    Ok(Prepared {
        position,
        is_slot_new,
        identity,
        is_standby: role == Role::Standby,
        publication,
        tables,
    })
}

/// Makes a new slot, and the publication if it is gone, for a source that stands in a hole. The old slot is dropped.
///
/// # Errors
/// A setting or privilege is missing, or somebody else reads the slot.
pub async fn repair(
    config: &PostgresConfig,
    session: &mut Session,
    captured: Option<&Captured>,
) -> Result<Prepared, SourceError> {
    let catalog = Catalog::connect(config).await?;
    let (server, role) = check_server(&catalog, session, captured).await?;
    match slot::find(&catalog, config).await? {
        Some(found) => {
            found.check_kind(config)?;
            slot::take_over(&catalog, config).await?;
            slot::drop(&catalog, config).await?;
        }
        None => slot::check_room(&catalog).await?,
    }
    // Before the slot: what becomes of the publication from here on is noticed as a change of it.
    let (_, seen) = publish(&catalog, config, captured).await?;
    let publication = publication::id(&catalog, config).await?;
    let position = slot::create(&catalog, config).await?;
    // As they are now that every change from here on is in the stream.
    let mut tables = catalog.list_tables(config).await?;
    place(&catalog, &mut tables, &seen, captured).await?;
    Ok(Prepared {
        position,
        is_slot_new: true,
        identity: identity(&catalog, server, publication).await?,
        is_standby: role == Role::Standby,
        publication,
        tables,
    })
}

/// The tables as they are when the publication has them, and how each stands in it.
async fn publish(
    catalog: &Catalog,
    config: &PostgresConfig,
    captured: Option<&Captured>,
) -> Result<(Vec<SourceTable>, HashMap<TableId, Seen>), SourceError> {
    let mut tables = catalog.list_tables(config).await?;
    let is_whole = |table| captured.is_some_and(|known| known.tables.contains_key(&table));
    // Until nothing is missing: a table that came meanwhile is to be published as well.
    while publication::prepare(catalog, config, &tables, is_whole).await? {
        tables = catalog.list_tables(config).await?;
    }
    Ok((tables, catalog.seen().await?))
}

/// Notes how each table stands in the publication, and which of its partitions are no reason to read it again. A table
/// that went or came between the two looks is left to the next one.
async fn place(
    catalog: &Catalog,
    tables: &mut Vec<SourceTable>,
    seen: &HashMap<TableId, Seen>,
    captured: Option<&Captured>,
) -> Result<(), SourceError> {
    tables.retain(|table| seen.contains_key(&table.schema.id));
    for table in tables {
        let id = table.schema.id;
        table.seen = seen.get(&id).cloned().unwrap_or_default();
        let stored = captured.and_then(|known| known.tables.get(&id)?.as_ref());
        let (Some(stored), Some(now)) = (stored, &table.seen.outline) else {
            continue;
        };
        for part in now.parts_since(stored) {
            let leaf = part.split(':').next().and_then(|oid| oid.parse().ok());
            if let Some(leaf) = leaf
                && catalog.was_born_part(leaf).await?
            {
                table.new_parts.insert(part);
            }
        }
    }
    Ok(())
}

/// Refuses another database, and a server that cannot be streamed from.
async fn check_server(
    catalog: &Catalog,
    session: &mut Session,
    captured: Option<&Captured>,
) -> Result<(Server, Role), SourceError> {
    let server = identify(session).await?;
    let (system, database) = catalog.system_and_database().await?;
    if system != server.system {
        return Err(SourceError::transient(
            "DR-1002",
            "two connections came to two servers",
            "let the url name servers of one cluster; it is tried again by itself",
        ));
    }
    if let Some(captured) = captured
        && (captured.identity.system != system || captured.identity.database != database)
    {
        return Err(SourceError::definite(
            "DR-1021",
            format!(
                "the database is not the one that was captured up to {}: its system identifier or its oid differs",
                captured.position
            ),
            "point the source back at the original database, or delete the source and apply it under a new name",
        ));
    }
    let role = check_role(catalog).await?;
    check_wal_level(catalog).await?;
    Ok((server, role))
}

async fn identity(
    catalog: &Catalog,
    server: Server,
    publication: PublicationId,
) -> Result<Identity, SourceError> {
    let (system, database) = catalog.system_and_database().await?;
    let timeline = server.timeline;
    Ok(Identity {
        system,
        database,
        lineage: Some(Lineage {
            timeline,
            publication,
        }),
    })
}

/// Goes on where the position lies before the point at which the server left its timeline: what the slot brings from
/// there on is then what it would have brought. A server whose WAL ends before the position is an older copy of itself.
async fn check_timeline(
    session: &mut Session,
    server: &Server,
    role: Role,
    captured: &Captured,
) -> Result<(), SourceError> {
    let Some(known) = captured.identity.lineage else {
        return Ok(());
    };
    let hole = |reason: String| Err(SourceError::hole("DR-1026", reason));
    let (before, now) = (known.timeline, server.timeline);
    let position = captured.position;
    if before == now {
        // A standby comes to where it was by itself.
        if role == Role::Standby || position <= server.flushed {
            return Ok(());
        }
        let end = server.flushed;
        return hole(format!(
            "the server's WAL ends at {end}, and it was captured up to {position}: it was put back to an older state of itself"
        ));
    }
    let forked = if before < now {
        fork(session, now, before).await?
    } else {
        None
    };
    match forked {
        Some(at) if position <= at => {
            tracing::info!(before, now, %at, "the server was promoted; capture goes on");
            Ok(())
        }
        Some(at) => hole(format!(
            "the server was promoted at {at}, from timeline {before} to {now}, and the log has what timeline {before} had up to {position}: changes between are not in the database any more"
        )),
        None => hole(format!(
            "the server is on timeline {now}, which does not come from timeline {before} that was captured up to {position}"
        )),
    }
}

async fn check_publication(
    catalog: &Catalog,
    config: &PostgresConfig,
    captured: &Captured,
) -> Result<(), SourceError> {
    let found = publication::id(catalog, config).await?;
    match captured.identity.lineage {
        Some(known) if known.publication != found => Err(publication::gone(
            "is not the one that was captured",
            config,
        )),
        _ => Ok(()),
    }
}

pub(super) async fn check_wal_level(catalog: &Catalog) -> Result<(), SourceError> {
    let row = catalog
        .client()
        .query_one(
            "select current_setting('wal_level'), current_setting('effective_wal_level', true)",
            &[],
        )
        .await?;
    let level: String = row.get(0);
    let effective: Option<String> = row.get(1);
    // Where the server has an effective level it raises that of `replica` itself, for the first logical slot.
    if level == "logical" || (level == "replica" && effective.is_some()) {
        return Ok(());
    }
    Err(SourceError::definite(
        "DR-1010",
        format!("wal_level is {level}, not logical"),
        "alter system set wal_level = logical; then restart the server",
    ))
}

struct Slot {
    at: Lsn,
    is_new: bool,
}

async fn prepare_slot(
    catalog: &Catalog,
    config: &PostgresConfig,
    captured: Option<&Captured>,
) -> Result<Slot, SourceError> {
    let Some(found) = slot::find(catalog, config).await? else {
        return match captured {
            None => Ok(Slot {
                at: slot::create(catalog, config).await?,
                is_new: true,
            }),
            Some(_) => Err(hole(catalog, config, captured, "is missing", None).await?),
        };
    };
    found.check_kind(config)?;
    if let Some((why, advice)) = found.state.lost_because() {
        let what = format!("was invalidated: {why}");
        return Err(hole(catalog, config, captured, &what, Some(advice)).await?);
    }
    let Some(confirmed) = found.confirmed else {
        return Err(slot::in_the_making(catalog, config).await?);
    };
    if captured.is_some_and(|captured| confirmed > captured.position) {
        let what = format!("was made anew or advanced by somebody else, to {confirmed}");
        return Err(hole(catalog, config, captured, &what, None).await?);
    }
    slot::take_over(catalog, config).await?;
    Ok(Slot {
        at: confirmed,
        is_new: false,
    })
}

async fn hole(
    catalog: &Catalog,
    config: &PostgresConfig,
    captured: Option<&Captured>,
    what: &str,
    advice: Option<&str>,
) -> Result<SourceError, SourceError> {
    let until = catalog.current_position().await?;
    let from = captured.map_or_else(|| "it was made".to_owned(), |c| c.position.to_string());
    let reason = format!(
        "replication slot {:?} {what}: changes from {from} to {until} or later are not to be had",
        config.slot
    );
    let hole = SourceError::hole("DR-1020", reason);
    Ok(match advice {
        Some(advice) => hole.and_first(advice),
        None => hole,
    })
}

/// What deleting a source drops: the slot, and the publication if we made it.
///
/// # Errors
/// A query failed.
pub async fn owned(config: &PostgresConfig) -> Result<Vec<String>, SourceError> {
    let catalog = Catalog::connect(config).await?;
    let mut owned = Vec::new();
    if slot::find(&catalog, config).await?.is_some() {
        owned.push(format!("replication slot {}", config.slot));
    }
    if drops_publication(&catalog, config).await? {
        owned.push(format!("publication {}", config.publication));
    }
    Ok(owned)
}

/// On a standby nothing but a slot can be dropped.
async fn drops_publication(
    catalog: &Catalog,
    config: &PostgresConfig,
) -> Result<bool, SourceError> {
    Ok(publication::is_ours(catalog, config).await? && !catalog.is_standby().await?)
}

/// Drops what [`owned`] lists. The slot's stream must have been closed: the server is given the time to
/// notice it, and a session of ours that it still believes in is ended.
///
/// # Errors
/// A query failed, or somebody else reads the slot.
pub async fn drop_owned(config: &PostgresConfig) -> Result<(), SourceError> {
    let catalog = Catalog::connect(config).await?;
    slot::drop(&catalog, config).await?;
    if drops_publication(&catalog, config).await? {
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
