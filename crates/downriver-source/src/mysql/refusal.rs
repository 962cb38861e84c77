//! What a server refuses, by its error number.
//!
//! Source: MySQL's error reference and `sql/rpl_binlog_sender.cc`; MariaDB's `sql/sql_repl.cc`.

use mysql_async::{DriverError, Error, IoError};
use mysql_common::constants::CapabilityFlags;
use mysql_common::io::ParseBuf;
use mysql_common::packets::ErrPacket;

use crate::error::SourceError;

/// `ER_PARSE_ERROR`: the server does not know the statement.
pub(super) const PARSE_ERROR: u16 = 1064;
/// What goes wrong while the binlog is read has one number, and its kind in words.
const CANNOT_READ_BINLOG: u16 = 1236;
/// MariaDB's number for what MySQL says in words.
const SAME_SERVER_ID: u16 = 4052;
const OF_MODE: &str = "DR-1083";
const COMES_BACK: &str = "make the database reachable; capture goes on by itself";

/// The server sent what nobody would understand.
pub(super) fn unknown(what: impl std::fmt::Display) -> SourceError {
    SourceError::definite(
        "DR-1040",
        format!("the server sent {what}, which this build does not know"),
        "report it with the server's version; the binlog keeps everything for as long as the server is told to",
    )
}

/// Of an error packet.
pub(super) fn of_packet(payload: &[u8]) -> SourceError {
    // Before it knows its client a server leaves the SQLSTATE out.
    let flags = match payload.get(3) {
        Some(b'#') => CapabilityFlags::CLIENT_PROTOCOL_41,
        _ => CapabilityFlags::empty(),
    };
    match ParseBuf(payload).parse(flags) {
        Ok(ErrPacket::Error(error)) => refused(error.error_code(), &error.message_str()),
        Ok(ErrPacket::Progress(_)) | Err(_) => unknown("an error without a number"),
    }
}

/// Names what the server refused.
pub(crate) fn refused(number: u16, message: &str) -> SourceError {
    let reason = format!("the database refused ({number}): {message}");
    match number {
        CANNOT_READ_BINLOG => cannot_read(reason, message),
        SAME_SERVER_ID => same_server_id(reason),
        // Access denied; a host that may not connect; an account that is locked, or whose password
        // has expired.
        1045 | 1130 | 1524 | 1698 | 1820 | 1862 | 3118 | 3955 | 4151 => SourceError::definite(
            "DR-1001",
            reason,
            "set the right user and password in the source, and let the user in from this host",
        ),
        // Privileges of a database, of a table, of a column, of the server, of a procedure.
        1044 | 1142 | 1143 | 1227 | 1370 => SourceError::definite(
            "DR-1004",
            reason,
            "grant select, replication slave, replication client on *.* to the source's user; docs/mysql.md has what else it may need",
        ),
        3159 => SourceError::definite(
            "DR-1006",
            reason,
            "use ssl-mode=REQUIRED, or one that verifies the server",
        ),
        // Full, starting or stopping, out of memory, disk or threads, killed, or cut.
        1021
        | 1037
        | 1038
        | 1040
        | 1041
        | 1053
        | 1077..=1080
        | 1129
        | 1135
        | 1152
        | 1158..=1161
        | 1184
        | 1203
        | 1226
        | 1317
        | 1927
        | 2006
        | 2013
        | 3032
        | 3168
        | 3169
        | 4031 => SourceError::transient("DR-1002", reason, COMES_BACK),
        // Another session holds a lock, or was preferred.
        1020 | 1205 | 1213 | 1637 => {
            SourceError::transient("DR-1005", reason, "nothing: it is tried again by itself")
        }
        // Databases, columns and tables are named as the catalog had them a moment ago.
        1049 | 1051 | 1054 | 1109 | 1146 | 1347 | 1356 | 1412 | 1615 => SourceError::transient(
            "DR-1005",
            reason,
            "nothing, if a table was dropped or changed a moment ago: it is tried again by itself",
        ),
        _ => SourceError::definite("DR-1005", reason, "see the server's message"),
    }
}

fn same_server_id(reason: String) -> SourceError {
    SourceError::transient(
        "DR-1060",
        reason,
        "give this source a server_id that no replica of the server and no other source has; capture goes on by itself",
    )
}

fn cannot_read(reason: String, message: &str) -> SourceError {
    let message = message.to_ascii_lowercase();
    let says = |words: &[&str]| words.iter().any(|words| message.contains(words));
    if says(&["with the same server_uuid/server_id"]) {
        return same_server_id(reason);
    }
    if says(&[
        "purged required binary logs",
        "has purged binary logs",
        "could not find first log file name",
        "required binlog files have been purged",
    ]) {
        return SourceError::hole("DR-1062", reason)
            .and_first("let the server keep its binlogs for longer than capture may stand still");
    }
    if says(&[
        "more gtids than the",
        "impossible position",
        "position > file size",
        // The position is none between two events.
        "truncated in the middle of event",
        "bogus data in log event",
        "not in the master's binlog",
        "is missing the gtid",
    ]) {
        return SourceError::hole("DR-1063", reason);
    }
    if says(&[
        "cannot replicate anonymous transaction",
        "cannot replicate gtid-transaction",
        "gtid_mode = off",
        "gtid_mode = on_permissive",
    ]) {
        return SourceError::transient(
            OF_MODE,
            reason,
            "set gtid_mode one step back (ON_PERMISSIVE, or OFF_PERMISSIVE), until the source has passed what was written before; capture goes on by itself",
        );
    }
    if says(&["exceeded max_allowed_packet"]) {
        return SourceError::definite(
            "DR-1064",
            reason,
            "raise max_allowed_packet at the server, to 1G at most; where it is large enough, the binlog is damaged there: resnapshot from a position behind",
        );
    }
    if says(&["binary log is not open"]) {
        return SourceError::definite(
            "DR-1066",
            reason,
            "turn log_bin on in the server's configuration, and restart it",
        );
    }
    SourceError::definite("DR-1005", reason, "see the server's message")
}

impl From<Error> for SourceError {
    fn from(error: Error) -> Self {
        match error {
            Error::Server(server) => refused(server.code, &server.message),
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

/// The server does not send what was written while its `gtid_mode` was another. Source: `ER_CANT_REPLICATE_…` in MySQL's
/// `share/messages_to_clients.txt`.
pub(super) fn is_of_mode(error: &SourceError) -> bool {
    error.is_transient() && error.problem().code == OF_MODE
}

/// The name is no table's any more. Source: `ER_BAD_DB_ERROR`, `ER_NO_SUCH_TABLE`.
pub(super) fn is_gone(error: &Error) -> bool {
    matches!(errno(error), Some(1049 | 1146))
}

/// `ER_LOCK_WAIT_TIMEOUT`.
pub(super) fn waited_for_lock(error: &Error) -> bool {
    errno(error) == Some(1205)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Class;

    fn class(error: &SourceError) -> Class {
        match error {
            error if error.is_hole() => Class::Hole,
            error if error.is_transient() => Class::Transient,
            _ => Class::Definite,
        }
    }

    #[test]
    fn a_refusal_is_named_by_its_number() {
        for (number, named, as_class) in [
            (1045, "DR-1001", Class::Definite),
            (1698, "DR-1001", Class::Definite),
            (1227, "DR-1004", Class::Definite),
            (4052, "DR-1060", Class::Transient),
            (1040, "DR-1002", Class::Transient),
            (1053, "DR-1002", Class::Transient),
            (1146, "DR-1005", Class::Transient),
            (1064, "DR-1005", Class::Definite),
        ] {
            let error = refused(number, "words");
            assert_eq!(error.problem().code, named, "{number}");
            assert_eq!(class(&error), as_class, "{number}");
            assert!(
                error
                    .problem()
                    .reason
                    .ends_with(&format!("({number}): words"))
            );
        }
    }

    #[test]
    fn what_the_server_cannot_read_is_named_by_its_words() {
        for (words, named, as_class) in [
            (
                "A replica with the same server_uuid/server_id as this replica has connected to the source; the first event '' at 4",
                "DR-1060",
                Class::Transient,
            ),
            (
                "Cannot replicate because the source purged required binary logs. Replicate the missing transactions from elsewhere",
                "DR-1062",
                Class::Hole,
            ),
            (
                "Could not find first log file name in binary log index file",
                "DR-1062",
                Class::Hole,
            ),
            (
                "Could not find GTID state requested by slave in any binlog files. Probably the slave state is too old and required binlog files have been purged.",
                "DR-1062",
                Class::Hole,
            ),
            (
                "Slave has more GTIDs than the master has, using the master's SERVER_UUID.",
                "DR-1063",
                Class::Hole,
            ),
            (
                "Error: connecting slave requested to start from GTID 0-1-5, which is not in the master's binlog",
                "DR-1063",
                Class::Hole,
            ),
            (
                "log event entry exceeded max_allowed_packet; Increase max_allowed_packet on source",
                "DR-1064",
                Class::Definite,
            ),
            (
                "Cannot replicate anonymous transaction when @@GLOBAL.GTID_MODE = ON, at file ./binlog.000003, position 158.",
                "DR-1083",
                Class::Transient,
            ),
            (
                "Cannot replicate GTID-transaction when @@GLOBAL.GTID_MODE = OFF, at file ./binlog.000004, position 158.",
                "DR-1083",
                Class::Transient,
            ),
            (
                "The replication sender thread cannot start in AUTO_POSITION mode: this server has GTID_MODE = ON_PERMISSIVE instead of ON.",
                "DR-1083",
                Class::Transient,
            ),
            (
                "The replication sender thread cannot start in AUTO_POSITION mode: this server has GTID_MODE = OFF instead of ON.",
                "DR-1083",
                Class::Transient,
            ),
            ("Binary log is not open", "DR-1066", Class::Definite),
            (
                "Cannot replicate anonymous transaction when AUTO_POSITION = 1, at file ./binlog.000007",
                "DR-1083",
                Class::Transient,
            ),
            (
                "binlog truncated in the middle of event; consider out of disk space on source",
                "DR-1063",
                Class::Hole,
            ),
            ("something else", "DR-1005", Class::Definite),
        ] {
            let error = refused(CANNOT_READ_BINLOG, words);
            assert_eq!(error.problem().code, named, "{words}");
            assert_eq!(class(&error), as_class, "{words}");
        }
    }

    #[test]
    fn an_error_packet_is_read_with_and_without_its_state() {
        let with = of_packet(b"\xff\x15\x04#28000Access denied");
        assert_eq!(
            with.problem().reason,
            "the database refused (1045): Access denied"
        );
        let without = of_packet(b"\xff\x10\x04Too many connections");
        assert_eq!(
            without.problem().reason,
            "the database refused (1040): Too many connections"
        );
        for cut in [&b"\xff"[..], b"\xff\x15", b"\xff\x15\x04#28"] {
            assert_eq!(of_packet(cut).problem().code, "DR-1040");
        }
    }
}
