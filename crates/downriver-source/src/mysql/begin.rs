//! Where a source begins that is told where: behind the transactions of a set, or at a place of the binlog.
//!
//! A place counts only where a transaction may begin, which the file's own events tell: it is read from its start to
//! there. So the identifiers of what lies before are known as well, and a server that has them is asked by them.

use downriver_decode::mysql::FIRST_EVENT;
use downriver_decode::mysql::decoder::DecodeError;
use downriver_decode::mysql::walk::{Place, Walk};
use downriver_event::{BinlogPlace, DomainGtids, GtidSet, SourcePosition};
use mysql_async::Conn;

use super::config::MysqlConfig;
use super::dump::BinlogStream;
use super::server::{Flavor, Server, domains};
use super::setup::has_what_follows;
use super::sql::literal;
use crate::error::SourceError;

const STILL_THERE: &str = "give a start whose transactions the server still has: SHOW BINARY LOGS lists its files, and what is gone is in @@global.gtid_purged";

/// What comes first is what this does not contain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Begin {
    /// Of MySQL.
    Gtids(GtidSet),
    /// Of MariaDB.
    Domains(DomainGtids),
    Place(BinlogPlace),
}

impl Begin {
    /// Reads a set of MySQL's GTIDs, or MariaDB's with one for each domain.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn gtid(text: &str) -> Result<Self, String> {
        if text.trim().is_empty() {
            return Err("it names no transaction".into());
        }
        match text.contains(':') {
            true => (text.parse().map(Self::Gtids)).map_err(|error| error.to_string()),
            false => (text.parse().map(Self::Domains)).map_err(|error| error.to_string()),
        }
    }

    /// Reads `binlog.000042:4711`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn file_pos(text: &str) -> Result<Self, String> {
        let place: BinlogPlace = text.parse().map_err(|error| format!("{error}"))?;
        match place.position {
            ..FIRST_EVENT => Err(format!("a file's first event is at {FIRST_EVENT}")),
            4_294_967_296.. => {
                Err("the protocol has no way to ask for what is behind the first 4 GiB".into())
            }
            _ => Ok(Self::Place(place)),
        }
    }
}

/// The position that a source has at its beginning.
///
/// # Errors
/// The server does not have what follows any more, or never had what lies before; the place is not one at which a
/// transaction may begin.
pub(super) async fn position(
    config: &MysqlConfig,
    session: &mut Conn,
    server: &Server,
    begin: &Begin,
) -> Result<SourcePosition, SourceError> {
    let position = match (begin, server.flavor) {
        (Begin::Gtids(gtids), Flavor::Mysql) => behind_set(session, server, gtids).await?,
        (Begin::Domains(gtids), Flavor::Mariadb) => behind_domains(session, server, gtids).await?,
        (Begin::Place(place), _) => at_place(config, session, server, place).await?,
        (Begin::Gtids(_), Flavor::Mariadb) => {
            return Err(unusable(
                "start.gtid is a set of MySQL's GTIDs, and the server is MariaDB",
                "write the last GTID of each domain: 0-1-100,1-1-5",
            ));
        }
        (Begin::Domains(_), Flavor::Mysql) => {
            return Err(unusable(
                "start.gtid is of MariaDB, and the server is MySQL",
                "write a set: 3e11fa47-71ca-11e1-9e33-c80aa9429562:1-5:7",
            ));
        }
    };
    is_taken(config, &position).await?;
    Ok(position)
}

async fn behind_set(
    session: &mut Conn,
    server: &Server,
    gtids: &GtidSet,
) -> Result<SourcePosition, SourceError> {
    if !server.has_gtids() {
        let mode = server.gtid_mode.as_deref().unwrap_or("not known");
        return Err(unusable(
            format!(
                "start.gtid needs gtid_mode = ON, and it is {mode}: not every transaction has an identifier"
            ),
            "give start.file_pos, or set gtid_mode = ON",
        ));
    }
    let executed = server.executed(session).await?;
    if !executed.covers(gtids) {
        let missing = gtids.without(&executed);
        return Err(unusable(
            format!("the server has never executed {missing}, which start.gtid names"),
            "give a set that is in @@global.gtid_executed of this server",
        ));
    }
    if let SourcePosition::Mysql { gtids: purged, .. } = server.purged(session).await?
        && !gtids.covers(&purged)
    {
        let lost = purged.without(gtids);
        return Err(unusable(
            format!("the server has purged {lost} from its binlog, which is not in start.gtid"),
            STILL_THERE,
        ));
    }
    Ok(SourcePosition::Mysql {
        gtids: gtids.clone(),
        place: unknown_place(),
    })
}

async fn behind_domains(
    session: &mut Conn,
    server: &Server,
    gtids: &DomainGtids,
) -> Result<SourcePosition, SourceError> {
    let start = SourcePosition::Mariadb {
        gtids: gtids.clone(),
        place: unknown_place(),
    };
    let now = server.position(session).await?;
    if !now.covers(&start) {
        return Err(unusable(
            format!("the server is at {now}, and start.gtid is ahead of it: {gtids}"),
            "give a position that is in @@global.gtid_binlog_pos of this server, or before it",
        ));
    }
    let purged = server.purged(session).await?;
    if !has_what_follows(&start, &purged) {
        return Err(unusable(
            format!(
                "the server has purged its binlog up to {purged}, which is not in start.gtid: {gtids}"
            ),
            STILL_THERE,
        ));
    }
    Ok(start)
}

async fn at_place(
    config: &MysqlConfig,
    session: &mut Conn,
    server: &Server,
    place: &BinlogPlace,
) -> Result<SourcePosition, SourceError> {
    let files = server.files(session).await?;
    let Some(end) = files.iter().find(|end| end.file == place.file) else {
        let first = files.first().map_or("none", |first| &first.file);
        return Err(unusable(
            format!(
                "the server's binlog has no file {}: the oldest is {first}",
                place.file
            ),
            STILL_THERE,
        ));
    };
    if !end.covers(place) {
        return Err(unusable(
            format!("start.file_pos is {place}, and the file ends at {end}"),
            STILL_THERE,
        ));
    }
    let walk = walked(config, server, place, end).await?;
    let walk = walk.map_err(|Between(what)| {
        unusable(
            format!("start.file_pos {place} is {what}: what came before it would be missing"),
            "give the place where the transaction begins: that of its GTID event in SHOW BINLOG EVENTS, or in mysqlbinlog's output (# at N)",
        )
    })?;
    let start = server.position_at(place.clone());
    Ok(match (start, server.has_gtids()) {
        (SourcePosition::Mysql { place, .. }, true) => SourcePosition::Mysql {
            gtids: walk.gtids().clone(),
            place,
        },
        (SourcePosition::Mariadb { place, .. }, _) => {
            let before = format!(
                "binlog_gtid_pos({}, {})",
                literal(&place.file),
                place.position
            );
            let gtids = domains(session, &before).await?;
            SourcePosition::Mariadb { gtids, place }
        }
        (start, _) => start,
    })
}

/// No transaction begins at the place, which is inside of something.
#[derive(Debug)]
pub(super) struct Between(pub(super) &'static str);

/// Reads a file from its start to a place. `end` is where the file ended when it was looked at.
pub(super) async fn walked(
    config: &MysqlConfig,
    server: &Server,
    place: &BinlogPlace,
    end: &BinlogPlace,
) -> Result<Result<Walk, Between>, SourceError> {
    let beginning = server.position_at(BinlogPlace {
        position: FIRST_EVENT,
        ..place.clone()
    });
    let mut stream = BinlogStream::start(&config.beside(), &beginning).await?;
    let mut walk = Walk::to(place.position);
    loop {
        // Behind whole transactions: nothing may ever come.
        if walk.at() == place.position && *place == *end {
            return Ok(Ok(walk));
        }
        let Some(event) = stream.pop()? else {
            stream.fill().await?;
            continue;
        };
        let found = walk.step(event).map_err(|error| DecodeError::Binlog {
            error,
            at: place.clone(),
        })?;
        match found {
            None => {}
            Some(Place::Between) => return Ok(Ok(walk)),
            Some(Place::Inside) => return Ok(Err(Between("inside a transaction"))),
            Some(Place::NoEvent) => return Ok(Err(Between("inside an event"))),
        }
    }
}

/// Whether the server sends what follows: what it says before its first event.
async fn is_taken(config: &MysqlConfig, position: &SourcePosition) -> Result<(), SourceError> {
    let mut stream = BinlogStream::start(&config.beside(), position).await?;
    let begun = async {
        stream.fill().await?;
        while stream.pop()?.is_some() {}
        Ok(())
    };
    begun.await.map_err(|error: SourceError| match error {
        // Nothing was captured yet that a new snapshot would have to mend.
        error if error.is_hole() => unusable(error.problem().reason, STILL_THERE),
        error => error,
    })
}

/// The server finds the file by the identifiers, and says then where it begins.
fn unknown_place() -> BinlogPlace {
    BinlogPlace {
        file: String::new(),
        position: 0,
    }
}

fn unusable(reason: impl Into<String>, fix: &str) -> SourceError {
    SourceError::definite("DR-1096", reason, fix)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_start_is_read_as_people_write_it() {
        let uuid = "3e11fa47-71ca-11e1-9e33-c80aa9429562";
        assert!(matches!(
            Begin::gtid(&format!("{uuid}:1-5:7")),
            Ok(Begin::Gtids(_))
        ));
        assert!(matches!(
            Begin::gtid("0-1-100, 1-1-5"),
            Ok(Begin::Domains(_))
        ));
        assert!(matches!(
            Begin::file_pos("mysql-bin.000003:4711"),
            Ok(Begin::Place(_))
        ));
        for wrong in ["", " ", uuid, "0-1", "binlog.000001:4"] {
            assert!(Begin::gtid(wrong).is_err(), "{wrong}");
        }
        for wrong in ["binlog.000001:3", "binlog.000001:4294967296", "0-1-100"] {
            assert!(Begin::file_pos(wrong).is_err(), "{wrong}");
        }
    }
}
