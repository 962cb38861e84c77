//! MySQL while its `gtid_mode` is changed: the position of a log in the form that the mode asks for.
//!
//! ```text
//!   OFF, OFF_PERMISSIVE, ON_PERMISSIVE    some transactions have no identifier: by places
//!   ON                                    each has one: by identifiers
//! ```
//!
//! The file with the position tells the identifiers of all that lies before it, and whether a set has anything that lies
//! behind. So a position is turned into the other form exactly, or not at all. A server whose mode is ON does not send
//! what has no identifier; it begins another file when the mode is changed, so that a file after that has none of it.

use downriver_event::{BinlogPlace, GtidSet, SourcePosition};
use mysql_async::Conn;

use super::begin::{Between, walked};
use super::config::MysqlConfig;
use super::identity::Identity;
use super::refusal::is_of_mode;
use super::server::Server;
use super::setup::Captured;
use crate::error::SourceError;

/// Where a log goes on.
#[derive(Debug)]
pub(super) struct InMode {
    pub(super) position: SourcePosition,
    /// Transactions are known by their places: not each has an identifier.
    pub(super) by_place: bool,
}

/// # Errors
/// What was captured by identifiers cannot be gone on with by its place.
pub(super) async fn in_mode(
    config: &MysqlConfig,
    session: &mut Conn,
    server: &Server,
    captured: &Captured,
) -> Result<InMode, SourceError> {
    let as_it_was = |by_place| InMode {
        position: captured.position.clone(),
        by_place,
    };
    let SourcePosition::Mysql { gtids, place } = &captured.position else {
        return Ok(as_it_was(false));
    };
    let is_its = Identity::of(server) == captured.identity;
    match (gtids.is_empty(), server.has_gtids()) {
        (false, true) => Ok(as_it_was(false)),
        (true, false) => Ok(as_it_was(true)),
        // Of another server's places nothing is known.
        (true, true) if !is_its => Ok(as_it_was(true)),
        (true, true) => match before(config, session, server, place).await {
            Ok(Some(gtids)) => Ok(InMode {
                position: SourcePosition::Mysql {
                    gtids,
                    place: place.clone(),
                },
                by_place: false,
            }),
            Ok(None) => Ok(as_it_was(true)),
            // Of a file with transactions of before: it is gone on with until there is another.
            Err(error) if is_of_mode(&error) => Ok(as_it_was(true)),
            Err(error) => Err(error),
        },
        (false, false) => {
            let before = match is_its {
                true => before(config, session, server, place).await?,
                false => None,
            };
            match before {
                Some(before) if before.covers(gtids) => Ok(InMode {
                    position: server.position_at(place.clone()),
                    by_place: true,
                }),
                _ => Err(not_by_place(server, &captured.position)),
            }
        }
    }
}

/// The identifiers of all that lies before a place; `None`: the server does not have its file.
async fn before(
    config: &MysqlConfig,
    session: &mut Conn,
    server: &Server,
    place: &BinlogPlace,
) -> Result<Option<GtidSet>, SourceError> {
    let files = server.files(session).await?;
    let end = files.iter().find(|end| end.file == place.file);
    let Some(end) = end.filter(|end| end.covers(place)) else {
        return Ok(None);
    };
    match walked(config, server, place, end).await? {
        Ok(walk) => Ok(Some(walk.gtids().clone())),
        Err(Between(what)) => Err(SourceError::hole(
            "DR-1084",
            format!(
                "the log is at {place}, which is {what} in the server's file: it was reset or restored"
            ),
        )),
    }
}

fn not_by_place(server: &Server, ours: &SourcePosition) -> SourceError {
    let mode = server.gtid_mode.as_deref().unwrap_or("not known");
    SourceError::definite(
        "DR-1083",
        format!(
            "the source was captured by transaction identifiers up to {ours}, gtid_mode is {mode}, and the place of this in the server's binlog is not known"
        ),
        "set gtid_mode = ON again, or connect to the server that was captured last",
    )
}
