//! Everything before the stream: whether the server can be captured, whether its binlog still has what follows the log's
//! position, and which tables there are.

use std::collections::HashMap;
use std::time::Duration;

use downriver_event::{BinlogPlace, SourcePosition};
use mysql_async::prelude::Queryable as _;
use mysql_async::{Conn, Row};

use super::catalog::{Catalog, SourceTable};
use super::config::MysqlConfig;
use super::identity::Identity;
use super::server::{Flavor, Server};
use super::sql::{connect, number, text};
use crate::error::SourceError;

/// How often it is looked whether what was logged is visible.
const POLL: Duration = Duration::from_millis(100);

/// What a log has of a source.
#[derive(Clone, Debug)]
pub struct Captured {
    pub position: SourcePosition,
    pub identity: Identity,
}

#[derive(Debug)]
pub struct Prepared {
    /// Where the binlog is to be read from.
    pub position: SourcePosition,
    pub identity: Identity,
    pub tables: Vec<SourceTable>,
    /// Character sets by the numbers of their collations.
    pub charsets: HashMap<u64, String>,
    /// The server keeps tables' names in lower case, however a statement writes them.
    pub folds_names: bool,
}

/// Gets a server ready to be streamed from.
///
/// # Errors
/// It cannot be reached or not be captured, or what follows the log's position is not to be had any more: a hole.
pub async fn prepare(
    config: &MysqlConfig,
    captured: Option<&Captured>,
) -> Result<Prepared, SourceError> {
    let mut session = connect(config).await?;
    let server = look(&mut session).await?;
    let position = match captured {
        None => server.position(&mut session).await?,
        Some(captured) => {
            goes_on(&mut session, &server, captured).await?;
            captured.position.clone()
        }
    };
    complete(config, session, &server, position).await
}

/// Takes a server up where it is now: behind a hole.
///
/// # Errors
/// It cannot be reached or not be captured.
pub async fn begin_anew(
    config: &MysqlConfig,
    captured: Option<&Captured>,
) -> Result<Prepared, SourceError> {
    let mut session = connect(config).await?;
    let server = look(&mut session).await?;
    if let Some(captured) = captured {
        same_flavor(&server, captured)?;
    }
    let position = server.position(&mut session).await?;
    complete(config, session, &server, position).await
}

async fn look(session: &mut Conn) -> Result<Server, SourceError> {
    let server = Server::look(session).await?;
    match server.problems().into_iter().next() {
        Some(problem) => Err(SourceError::from_problem(problem)),
        None => Ok(server),
    }
}

async fn complete(
    config: &MysqlConfig,
    mut session: Conn,
    server: &Server,
    position: SourcePosition,
) -> Result<Prepared, SourceError> {
    let charsets = charsets(&mut session, server.flavor).await?;
    let mut catalog = Catalog::connect(config).await?;
    Ok(Prepared {
        position,
        identity: Identity::of(server),
        tables: catalog.tables(config).await?,
        charsets,
        folds_names: server.lower_case_table_names == 1,
    })
}

fn same_flavor(server: &Server, captured: &Captured) -> Result<(), SourceError> {
    let before = captured.identity.flavor;
    match server.flavor == before {
        true => Ok(()),
        false => Err(SourceError::definite(
            "DR-1021",
            format!(
                "the server is one of {}, and what was captured up to {} was one of {}: their positions have nothing in common",
                server.flavor, captured.position, before
            ),
            "point the source back at the original server, or delete the source and apply it under a new name",
        )),
    }
}

/// Whether the server's binlog goes on behind the log's position.
async fn goes_on(
    session: &mut Conn,
    server: &Server,
    captured: &Captured,
) -> Result<(), SourceError> {
    same_flavor(server, captured)?;
    let has_identifiers = match &captured.position {
        SourcePosition::Mysql { gtids, .. } => !gtids.is_empty(),
        SourcePosition::Mariadb { gtids, .. } => !gtids.is_empty(),
        SourcePosition::Postgres(_) => false,
    };
    match has_identifiers {
        true => by_identifiers(session, server, &captured.position).await,
        false => by_place(session, server, captured).await,
    }
}

async fn by_identifiers(
    session: &mut Conn,
    server: &Server,
    ours: &SourcePosition,
) -> Result<(), SourceError> {
    if server.flavor == Flavor::Mysql && !server.has_gtids() {
        return Err(SourceError::definite(
            "DR-1083",
            format!(
                "the source was captured by transaction identifiers up to {ours}, and gtid_mode is not ON any more"
            ),
            "set gtid_mode = ON again",
        ));
    }
    let now = server.position(session).await?;
    if !now.covers(ours) {
        return Err(SourceError::hole(
            "DR-1084",
            format!(
                "the server does not have all that was captured: it is at {now}, and the log at {ours}; it was reset, restored, or is not a replica of the same history"
            ),
        ));
    }
    let purged = server.purged(session).await?;
    if ours.covers(&purged) {
        return Ok(());
    }
    let lost = match (&purged, ours) {
        (SourcePosition::Mysql { gtids, .. }, SourcePosition::Mysql { gtids: ours, .. }) => {
            gtids.without(ours).to_string()
        }
        _ => format!("what lies behind {ours}, up to {purged}"),
    };
    Err(purged_hole(&lost))
}

fn purged_hole(lost: &str) -> SourceError {
    SourceError::hole(
        "DR-1085",
        format!("the server has purged {lost} from its binlog before it was captured"),
    )
    .and_first("let the server keep its binlogs for longer than capture may stand still (binlog_expire_logs_seconds)")
}

async fn by_place(
    session: &mut Conn,
    server: &Server,
    captured: &Captured,
) -> Result<(), SourceError> {
    let ours = &captured.position;
    let Some(place) = ours.place() else {
        return Err(SourceError::hole(
            "DR-1084",
            format!("{ours} is no position of a binlog"),
        ));
    };
    if Identity::of(server) != captured.identity {
        return Err(SourceError::hole(
            "DR-1084",
            format!(
                "the server is another one than the one that was captured up to {ours}, and without transaction identifiers (gtid_mode = ON) nobody knows where that is in its binlog"
            ),
        ));
    }
    let files: Vec<Row> = session.query("show binary logs").await?;
    let ends: Vec<BinlogPlace> = files
        .iter()
        .filter_map(|row| {
            Some(BinlogPlace {
                file: text(row, 0)?,
                position: number(row, 1)?,
            })
        })
        .collect();
    if let Some(end) = ends.iter().find(|end| end.file == place.file) {
        return match end.covers(place) {
            true => Ok(()),
            false => Err(SourceError::hole(
                "DR-1084",
                format!(
                    "the log is at {place}, and the server's file ends at {end}: it was reset or restored"
                ),
            )),
        };
    }
    match ends.first() {
        Some(first) if first.covers(place) => Err(purged_hole(&format!(
            "what lies between {place} and file {}",
            first.file
        ))),
        _ => Err(SourceError::hole(
            "DR-1084",
            format!(
                "the server's binlog has no file {}, where the log is: it was reset or restored",
                place.file
            ),
        )),
    }
}

/// Waits until everything up to a position is visible to whoever begins to read: it is logged before it is.
///
/// # Errors
/// The server cannot be reached, or a query failed.
pub async fn until_visible(
    config: &MysqlConfig,
    position: &SourcePosition,
) -> Result<(), SourceError> {
    let mut session = connect(config).await?;
    let server = Server::look(&mut session).await?;
    loop {
        if server.shows(&mut session, position).await? {
            return Ok(());
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn charsets(session: &mut Conn, flavor: Flavor) -> Result<HashMap<u64, String>, SourceError> {
    let query = match flavor {
        Flavor::Mysql => "select id, character_set_name from information_schema.collations",
        Flavor::Mariadb => {
            "select id, character_set_name from information_schema.collation_character_set_applicability"
        }
    };
    let rows: Vec<Row> = match session.query(query).await {
        Ok(rows) => rows,
        // Older versions of MariaDB have the numbers elsewhere.
        Err(_) if flavor == Flavor::Mariadb => {
            session
                .query("select id, character_set_name from information_schema.collations")
                .await?
        }
        Err(error) => return Err(error.into()),
    };
    let rows = rows.iter();
    Ok(rows
        .filter_map(|row| Some((number(row, 0)?, text(row, 1)?)))
        .collect())
}
