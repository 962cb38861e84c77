//! What a server refused, by its error number, and what the client failed at.

use downriver_event::problem::Problem;
use mysql_async::{DriverError, Error, IoError};

use crate::error::{Class, SourceError};

const REACHABLE: &str = "make the database reachable; capture goes on by itself";

/// Source: MySQL's `share/messages_to_clients.txt` and MariaDB's `sql/share/errmsg-utf8.txt`.
pub(crate) fn refusal(errno: u16, message: &str) -> SourceError {
    let (class, code, fix) = match errno {
        // Access denied, a host that is not allowed, a locked account, a password that is over.
        1045 | 1130 | 1524 | 1698 | 1820 | 1862 | 3118 | 3955 | 4151 => (
            Class::Definite,
            "DR-1001",
            "set the right user and password in the source, and let the user come from this host",
        ),
        1129 => (
            Class::Definite,
            "DR-1001",
            "`flush hosts` at the server: it has refused this host since too many connections of it failed",
        ),
        1044 | 1142 | 1143 | 1227 | 1370 => (
            Class::Definite,
            "DR-1004",
            "grant what `downriver check` lists to the source's user",
        ),
        // Too many connections, no memory or disk, shutdown, a connection that was killed or cut.
        1021 | 1037 | 1038 | 1040 | 1041 | 1042 | 1043 | 1053 | 1077 | 1079 | 1080 | 1152
        | 1153 | 1154..=1161 | 1184 | 1203 | 1226 | 1317 | 1927 | 3032 | 3168 | 3169 | 4031 => {
            (Class::Transient, "DR-1002", REACHABLE)
        }
        // Another session holds a lock, or was preferred.
        1020 | 1205 | 1213 | 1637 => (
            Class::Transient,
            "DR-1005",
            "nothing: it is tried again by itself",
        ),
        // Tables and columns are named as the catalog had them a moment ago.
        1049 | 1051 | 1054 | 1109 | 1146 | 1347 | 1356 | 1412 | 1615 => (
            Class::Transient,
            "DR-1005",
            "nothing, if a table was dropped or changed a moment ago: it is tried again by itself",
        ),
        _ => (Class::Definite, "DR-1005", "see the server's message"),
    };
    SourceError::Named {
        class,
        problem: Problem::new(
            code,
            format!("the database refused ({errno}): {message}"),
            fix,
        ),
        cause: None,
    }
}

impl From<Error> for SourceError {
    fn from(error: Error) -> Self {
        match error {
            Error::Server(server) => refusal(server.code, &server.message),
            Error::Io(IoError::Io(io)) if io.get_ref().is_some_and(|e| e.is::<rustls::Error>()) => {
                no_tls(&io.to_string())
            }
            Error::Io(IoError::Io(io)) => Self::Connection(io),
            Error::Io(IoError::Tls(tls)) => no_tls(&tls.to_string()),
            Error::Driver(DriverError::ConnectionClosed) => {
                Self::Connection(std::io::ErrorKind::ConnectionAborted.into())
            }
            Error::Driver(DriverError::PacketTooLarge) => Self::definite(
                "DR-1041",
                "a row is larger than what is read of one",
                "exclude the table from the source, or make the row smaller",
            ),
            Error::Driver(
                error @ (DriverError::UnknownAuthPlugin { .. }
                | DriverError::MysqlOldPasswordDisabled
                | DriverError::CleartextPluginDisabled),
            ) => Self::definite(
                "DR-1001",
                format!("the user cannot log in: {error}"),
                "let the user log in by caching_sha2_password, ed25519 or mysql_native_password",
            ),
            error => Self::definite(
                "DR-1040",
                format!("the server answered what is not its protocol: {error}"),
                "report it",
            ),
        }
    }
}

fn no_tls(reason: &str) -> SourceError {
    SourceError::definite(
        "DR-1006",
        format!("TLS with the server failed: {reason}"),
        "give the server's CA in ssl-ca, and connect by the name in its certificate",
    )
}

/// The number of the server's error, if it is one.
pub(super) fn errno(error: &Error) -> Option<u16> {
    match error {
        Error::Server(server) => Some(server.code),
        _ => None,
    }
}

/// The name is no table's any more. Source: `ER_BAD_DB_ERROR`, `ER_NO_SUCH_TABLE`.
pub(super) fn is_gone(error: &Error) -> bool {
    matches!(errno(error), Some(1049 | 1146))
}

/// `ER_LOCK_WAIT_TIMEOUT`.
pub(super) fn waited_for_lock(error: &Error) -> bool {
    errno(error) == Some(1205)
}
