//! A server that is itself a replica: what keeps it from having, or from logging, what its primary has.

use std::time::Duration;

use downriver_event::problem::Problem;
use mysql_async::prelude::Queryable as _;
use mysql_async::{Conn, Row};

use super::refusal::{PARSE_ERROR, errno};
use super::server::{Flavor, Server};
use super::sql::text;
use crate::error::SourceError;

/// Behind its primary by more than this is said.
const LAG_MAX: Duration = Duration::from_secs(60);
/// `ER_SPECIFIC_ACCESS_DENIED_ERROR`.
const DENIED: u16 = 1227;

/// Where a server takes transactions from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Channel {
    /// Empty for the only one.
    pub(super) name: String,
    /// Transactions are taken from the primary, and executed.
    pub(super) receives: bool,
    pub(super) executes: bool,
    /// Why they are not.
    pub(super) error: String,
    /// `None`: not known, as long as it does not execute.
    pub(super) behind: Option<Duration>,
}

impl Server {
    /// The servers that it takes transactions from; `None`: the user may not look.
    ///
    /// # Errors
    /// The query failed.
    pub(super) async fn channels(
        &self,
        session: &mut Conn,
    ) -> Result<Option<Vec<Channel>>, SourceError> {
        // Versions of MySQL since 8.4 know the first name only, those before 8.0.22 the last; MariaDB shows all channels
        // by one of its own.
        let statements: &[&str] = match self.flavor {
            Flavor::Mysql => &["show replica status", "show slave status"],
            Flavor::Mariadb => &["show all slaves status"],
        };
        for statement in statements {
            return match session.query::<Row, _>(*statement).await {
                Ok(rows) => Ok(Some(rows.iter().map(channel).collect())),
                Err(error) if errno(&error) == Some(PARSE_ERROR) => continue,
                Err(error) if errno(&error) == Some(DENIED) => Ok(None),
                Err(error) => Err(error.into()),
            };
        }
        Ok(None)
    }
}

/// Columns are known by their names: each version has more of them.
fn channel(row: &Row) -> Channel {
    let get = |names: &[&str]| {
        let at = row.columns_ref().iter().position(|column| {
            let name = column.name_str();
            names.iter().any(|known| name.eq_ignore_ascii_case(known))
        });
        at.and_then(|at| text(row, at))
    };
    let is_on = |names: &[&str]| get(names).is_some_and(|state| state == "Yes");
    let errors = ["Last_SQL_Error", "Last_IO_Error"].map(|name| get(&[name]).unwrap_or_default());
    let behind = get(&["Seconds_Behind_Source", "Seconds_Behind_Master"]);
    Channel {
        name: get(&["Channel_Name", "Connection_name"]).unwrap_or_default(),
        receives: is_on(&["Replica_IO_Running", "Slave_IO_Running"]),
        executes: is_on(&["Replica_SQL_Running", "Slave_SQL_Running"]),
        error: errors
            .into_iter()
            .find(|e| !e.is_empty())
            .unwrap_or_default(),
        behind: behind
            .and_then(|seconds| seconds.parse().ok())
            .map(Duration::from_secs),
    }
}

/// What it takes from another server is not in its own binlog. `channels`: `None` where the user may not look.
pub(super) fn unlogged(server: &Server, channels: Option<&[Channel]>) -> Option<Problem> {
    const LOG: &str = "set log_replica_updates = ON (MariaDB: log_slave_updates) in the server's configuration and restart it, or capture the primary";
    if server.logs_replica_updates {
        return None;
    }
    match channels {
        None if server.was_replica => Some(Problem::new(
            "DR-1070",
            "the server has taken transactions of another one and log_slave_updates is OFF: if it still does, what its primary changes is not in its binlog, and the source's user may not see it",
            format!(
                "{LOG}; if it is no replica any more: grant slave monitor on *.* to the source's user"
            ),
        )),
        None | Some([]) => None,
        Some(_) => Some(Problem::new(
            "DR-1070",
            "the server is a replica and log_replica_updates is OFF: what its primary changes is not in its binlog",
            LOG,
        )),
    }
}

/// What keeps it from having what its primary has.
pub(super) fn warnings(channels: &[Channel]) -> Vec<Problem> {
    channels.iter().filter_map(warning).collect()
}

fn warning(channel: &Channel) -> Option<Problem> {
    let of = match channel.name.as_str() {
        "" => String::new(),
        name => format!(" (channel {name})"),
    };
    let error = match channel.error.as_str() {
        "" => String::new(),
        error => format!(": {error}"),
    };
    let (reason, fix) = match channel {
        Channel {
            executes: false, ..
        } => (
            format!(
                "the server is a replica{of} and executes nothing of what its primary logs{error}"
            ),
            "mend what stopped it, then START REPLICA SQL_THREAD (MariaDB: START SLAVE SQL_THREAD)",
        ),
        Channel {
            receives: false, ..
        } => (
            format!("the server is a replica{of} and gets nothing from its primary{error}"),
            "mend what stopped it, then START REPLICA IO_THREAD (MariaDB: START SLAVE IO_THREAD)",
        ),
        Channel {
            behind: Some(behind),
            ..
        } if *behind > LAG_MAX => (
            format!(
                "the server is a replica{of} and {} s behind its primary: what is captured is as old at least",
                behind.as_secs()
            ),
            "nothing, if it catches up; else see what slows the replica down, or capture the primary",
        ),
        _ => return None,
    };
    Some(Problem::new("DR-1098", reason, fix))
}

/// It has taken transactions of another server, and whether it still does cannot be looked at.
pub(super) fn unknown() -> Problem {
    Problem::new(
        "DR-1098",
        "the server has taken transactions of another one, and the source's user may not see whether it still does, or how far behind it is",
        "grant slave monitor on *.* to the source's user, if it is a replica",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_that_stands_still_or_lags_is_said() {
        let channel = Channel {
            receives: true,
            executes: true,
            behind: Some(Duration::from_secs(3)),
            ..Channel::default()
        };
        assert_eq!(warnings(std::slice::from_ref(&channel)), []);
        let said = |channel: Channel| {
            let mut warnings = warnings(&[channel]);
            warnings.pop().map(|problem| problem.reason)
        };
        let slow = Channel {
            behind: Some(Duration::from_secs(300)),
            ..channel.clone()
        };
        assert!(said(slow).is_some_and(|reason| reason.contains("300 s behind")));
        let stopped = Channel {
            name: "east".into(),
            executes: false,
            error: "duplicate key".into(),
            ..channel.clone()
        };
        let reason = said(stopped).unwrap_or_default();
        assert!(reason.contains("(channel east)") && reason.contains("duplicate key"));
        let cut = Channel {
            receives: false,
            ..channel
        };
        assert!(said(cut).is_some());
    }
}
