//! Everything before the stream: whether the server can be captured, whether its binlog still has what follows the log's
//! position, and which tables there are.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use downriver_event::{BinlogPlace, SourcePosition};
use mysql_async::prelude::Queryable as _;
use mysql_async::{Conn, Row};

use super::begin::{self, Begin};
use super::catalog::{Catalog, SourceTable};
use super::config::MysqlConfig;
use super::identity::Identity;
use super::modes::{InMode, in_mode};
use super::replica::unlogged;
use super::server::{Flavor, Server};
use super::sql::{connect, number, text};
use crate::error::SourceError;

/// How often it is looked whether what was logged is visible.
const POLL: Duration = Duration::from_millis(100);
/// How long what a server has sent may take until it is committed there. It may wait for a replica, by default for 10 s.
const COMMITS_WITHIN: Duration = Duration::from_secs(30);

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
    /// Transactions are known by their places: not each has an identifier.
    pub by_place: bool,
    pub identity: Identity,
    pub tables: Vec<SourceTable>,
    /// Character sets by the numbers of their collations.
    pub charsets: HashMap<u64, String>,
    /// The server keeps tables' names in lower case, however a statement writes them.
    pub folds_names: bool,
    /// The binlog names the columns of its rows.
    pub names_columns: bool,
}

/// Gets a server ready to be streamed from. A log that has nothing of it yet begins where it is told to, or now.
///
/// # Errors
/// It cannot be reached or not be captured, or what follows the log's position is not to be had any more: a hole.
pub async fn prepare(
    config: &MysqlConfig,
    captured: Option<&Captured>,
    begin: Option<&Begin>,
) -> Result<Prepared, SourceError> {
    let mut session = connect(config).await?;
    let server = look(&mut session).await?;
    let start = match (captured, begin) {
        (None, None) => now(&mut session, &server).await?,
        (None, Some(begin)) => InMode {
            position: begin::position(config, &mut session, &server, begin).await?,
            by_place: server.goes_by_place(),
        },
        (Some(captured), _) => goes_on(config, &mut session, &server, captured).await?,
    };
    complete(config, session, &server, start).await
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
    let start = now(&mut session, &server).await?;
    complete(config, session, &server, start).await
}

/// Where the server is.
async fn now(session: &mut Conn, server: &Server) -> Result<InMode, SourceError> {
    Ok(InMode {
        position: server.position(session).await?,
        by_place: server.goes_by_place(),
    })
}

async fn look(session: &mut Conn) -> Result<Server, SourceError> {
    let server = Server::look(session).await?;
    if let Some(problem) = server.problems().into_iter().next() {
        return Err(SourceError::from_problem(problem));
    }
    if !server.logs_replica_updates {
        let channels = server.channels(session).await?;
        if let Some(problem) = unlogged(&server, channels.as_deref()) {
            return Err(SourceError::from_problem(problem));
        }
    }
    Ok(server)
}

async fn complete(
    config: &MysqlConfig,
    mut session: Conn,
    server: &Server,
    start: InMode,
) -> Result<Prepared, SourceError> {
    let charsets = charsets(&mut session, server.flavor).await?;
    let mut catalog = Catalog::connect(config).await?;
    Ok(Prepared {
        position: start.position,
        by_place: start.by_place,
        identity: Identity::of(server),
        tables: catalog.tables(config).await?,
        charsets,
        folds_names: server.lower_case_table_names == 1,
        names_columns: server.names_columns(),
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
    config: &MysqlConfig,
    session: &mut Conn,
    server: &Server,
    captured: &Captured,
) -> Result<InMode, SourceError> {
    same_flavor(server, captured)?;
    let start = in_mode(config, session, server, captured).await?;
    match start.position.is_place_only() {
        false => {
            by_identifiers(session, server, &start.position, captured).await?;
            let identity = Identity::of(server);
            if identity.is_of_one() && identity == captured.identity {
                not_begun_anew(session, server, &captured.position).await?;
            }
        }
        true => by_place(session, server, captured).await?,
    }
    Ok(start)
}

async fn by_identifiers(
    session: &mut Conn,
    server: &Server,
    ours: &SourcePosition,
    captured: &Captured,
) -> Result<(), SourceError> {
    let now = caught_up(session, server, ours, captured).await?;
    if !now.covers(ours) {
        return Err(SourceError::hole(
            "DR-1084",
            format!(
                "the server does not have {}, which was captured: it is at {now}, and the log at {ours}; it was reset, restored, or is not a replica of the same history",
                between(&now, ours)
            ),
        ));
    }
    let purged = server.purged(session).await?;
    if has_what_follows(ours, &purged) {
        return Ok(());
    }
    Err(purged_hole(&between(ours, &purged)))
}

/// A server that was reset, or restored, gives its identifiers once more: as soon as there are as many as before they do not
/// show it, and its binlog still may, as it does not reach to where it was read.
async fn not_begun_anew(
    session: &mut Conn,
    server: &Server,
    ours: &SourcePosition,
) -> Result<(), SourceError> {
    let Some(place) = ours.place().filter(|place| !place.file.is_empty()) else {
        return Ok(());
    };
    let ends = server.files(session).await?;
    let end = ends.iter().find(|end| end.file == place.file);
    let end = end.or(ends.last());
    let is_short = end.is_some_and(|end| place.covers(end) && place != end);
    match end {
        Some(end) if is_short => Err(too_short(place, end)),
        _ => Ok(()),
    }
}

fn too_short(ours: &BinlogPlace, end: &BinlogPlace) -> SourceError {
    SourceError::hole(
        "DR-1084",
        format!(
            "the log is at {ours}, and the server's binlog ends at {end}: it was reset or restored"
        ),
    )
}

/// What it means that a server's binlog ends before a place that was read of it. `identity`: whose binlog is followed.
#[must_use]
pub fn ends_before(
    server: &Server,
    identity: &Identity,
    ours: &BinlogPlace,
    end: &BinlogPlace,
) -> SourceError {
    let now = Identity::of(server);
    match now.is_of_one() && now == *identity {
        true => too_short(ours, end),
        // Another one, perhaps: that is found out at a new start.
        false => SourceError::transient(
            "DR-1002",
            format!("{ours} was read, and the server's binlog ends at {end} now"),
            "nothing: the binlog is taken up again",
        ),
    }
}

/// Where the server is. The one that was captured sends a transaction before it counts it as its own: it is given the time.
async fn caught_up(
    session: &mut Conn,
    server: &Server,
    ours: &SourcePosition,
    captured: &Captured,
) -> Result<SourcePosition, SourceError> {
    let is_same = Identity::of(server) == captured.identity;
    let since = Instant::now();
    loop {
        let now = server.position(session).await?;
        if now.covers(ours) || !is_same || since.elapsed() >= COMMITS_WITHIN {
            return Ok(now);
        }
        tokio::time::sleep(POLL).await;
    }
}

/// What is up to a position and not up to another.
fn between(one: &SourcePosition, other: &SourcePosition) -> String {
    match (one, other) {
        (SourcePosition::Mysql { gtids: one, .. }, SourcePosition::Mysql { gtids: other, .. }) => {
            other.without(one).to_string()
        }
        _ => format!("what lies behind {one}, up to {other}"),
    }
}

/// Whether a position with identifiers contains all that was purged. Where nothing that has one was purged, `purged` is a
/// place alone, perhaps of another server's binlog.
pub(super) fn has_what_follows(ours: &SourcePosition, purged: &SourcePosition) -> bool {
    purged.is_place_only() || ours.covers(purged)
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
    let ends = server.files(session).await?;
    if let Some(end) = ends.iter().find(|end| end.file == place.file) {
        return match end.covers(place) {
            true => Ok(()),
            false => Err(too_short(place, end)),
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
