//! What can go wrong with a source, classed by what can be done about it.

use downriver_decode::mysql;
use downriver_decode::postgres::ValueError;
use downriver_decode::postgres::decoder::DecodeError;
use downriver_event::problem::Problem;

pub(crate) const PUBLICATION_GONE: &str = "DR-1025";
/// What mends a hole.
const REPAIR: &str = "downriver resnapshot PIPELINE, of one of the source's pipelines, reads every table again and goes on from now; on_hole: resnapshot in the source does so by itself";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Trying again may help.
    Transient,
    /// Only a person can help.
    Definite,
    /// Changes are not to be had any more: only a new snapshot helps.
    Hole,
}

#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error("{}", .problem.reason)]
    Named {
        class: Class,
        problem: Problem,
        #[source]
        cause: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    #[error("the connection to the database failed")]
    Connection(#[source] std::io::Error),
    #[error(transparent)]
    Decode(#[from] DecodeError),
    #[error(transparent)]
    Binlog(#[from] mysql::decoder::DecodeError),
    #[error("column {column:?} of {table} {error}, in a row that the snapshot read")]
    Value {
        table: String,
        column: String,
        error: ValueError,
    },
}

impl SourceError {
    pub(crate) fn definite(
        code: &'static str,
        reason: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self::Named {
            class: Class::Definite,
            problem: Problem::new(code, reason, fix),
            cause: None,
        }
    }

    pub(crate) fn transient(
        code: &'static str,
        reason: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self::Named {
            class: Class::Transient,
            problem: Problem::new(code, reason, fix),
            cause: None,
        }
    }

    /// Only a person can help.
    pub(crate) fn from_problem(problem: Problem) -> Self {
        Self::Named {
            class: Class::Definite,
            problem,
            cause: None,
        }
    }

    /// Rows that were read cannot be kept until their place in the log has come.
    #[must_use]
    pub fn spill(folder: &std::path::Path, error: &std::io::Error) -> Self {
        Self::transient(
            "DR-1101",
            format!("cannot use the spill folder {folder:?}: {error}"),
            "make room on the disk of the data folder; capture goes on by itself",
        )
    }

    /// Changes of the source are not to be had any more.
    pub fn hole(code: &'static str, reason: impl Into<String>) -> Self {
        Self::Named {
            class: Class::Hole,
            problem: Problem::new(code, reason, REPAIR),
            cause: None,
        }
    }

    /// With what is to be done before the rest of the fix, so that it does not come again.
    #[must_use]
    pub(crate) fn and_first(mut self, advice: &str) -> Self {
        if let Self::Named { problem, .. } = &mut self {
            problem.fix = format!("first: {advice}; then: {}", problem.fix);
        }
        self
    }

    /// Whether changes of the source are not to be had any more.
    #[must_use]
    pub fn is_hole(&self) -> bool {
        matches!(
            self,
            Self::Named {
                class: Class::Hole,
                ..
            } | Self::Binlog(
                // Whoever goes on behind them has missed what they changed.
                mysql::decoder::DecodeError::Incident { .. }
                    | mysql::decoder::DecodeError::OutOfOrder { .. }
                    | mysql::decoder::DecodeError::Unsupported { .. }
            )
        )
    }

    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Named { class, .. } => *class == Class::Transient,
            Self::Connection(_) => true,
            Self::Decode(_) | Self::Binlog(_) | Self::Value { .. } => false,
        }
    }

    /// For the operator.
    #[must_use]
    pub fn problem(&self) -> Problem {
        match self {
            Self::Named { problem, .. } => problem.clone(),
            Self::Connection(cause) => Problem::new(
                "DR-1002",
                format!("the connection to the database failed: {cause}"),
                "make the database reachable; capture goes on by itself",
            ),
            Self::Value { error, .. } | Self::Decode(DecodeError::Value { error, .. }) => {
                let (code, fix) = match error {
                    ValueError::TooLarge(_) => (
                        "DR-1041",
                        "exclude the table from the source, or make the value smaller",
                    ),
                    ValueError::TooLate | ValueError::NotUtf8 => (
                        "DR-1043",
                        "correct the value, or exclude the table from the source",
                    ),
                    ValueError::Invalid(_) => ("DR-1040", "report it with the column's type"),
                };
                Problem::new(code, self.to_string(), fix)
            }
            Self::Binlog(error) => binlog(error),
            Self::Decode(error) => Problem::new(
                "DR-1040",
                error.to_string(),
                "report it with the position; the slot keeps everything from there on",
            ),
        }
    }
}

/// What a binlog has that cannot be gone on with.
fn binlog(error: &mysql::decoder::DecodeError) -> Problem {
    use mysql::decoder::DecodeError as Error;
    use mysql::value::ValueError as Value;
    let (code, fix) = match error {
        Error::Incident { .. } => ("DR-1086", REPAIR),
        Error::OutOfOrder { .. } => {
            let advice = "give every server that is written to a gtid_domain_id of its own, or set gtid_strict_mode = ON";
            return Problem::new(
                "DR-1090",
                error.to_string(),
                format!("first: {advice}; then: {REPAIR}"),
            );
        }
        Error::Unsupported { .. } => (
            "DR-1087",
            "see docs/mysql.md for what is not built yet; set the server or the session otherwise, then read all tables again: downriver resnapshot PIPELINE",
        ),
        Error::InPart { .. }
        | Error::Value {
            error: Value::InPart,
            ..
        } => (
            "DR-1081",
            "let the session log whole rows (binlog_row_image = FULL), then downriver resnapshot PIPELINE --tables DATABASE.TABLE",
        ),
        Error::Value {
            error: Value::TooLarge(_),
            ..
        } => (
            "DR-1041",
            "exclude the table from the source, or make the value smaller",
        ),
        Error::Value {
            error: Value::Charset(_),
            ..
        } => (
            "DR-1043",
            "correct the value, or exclude the table from the source",
        ),
        Error::Binlog { .. }
        | Error::OutOfPlace { .. }
        | Error::UnknownTable { .. }
        | Error::ColumnCount { .. }
        | Error::Value { .. } => (
            "DR-1040",
            "report it with the position; the binlog keeps everything for as long as the server is told to",
        ),
    };
    Problem::new(code, error.to_string(), fix)
}

impl From<tokio_postgres::Error> for SourceError {
    fn from(error: tokio_postgres::Error) -> Self {
        let Some(server) = error.as_db_error() else {
            return Self::Connection(std::io::Error::other(error));
        };
        let (state, message) = (server.code().code().to_owned(), server.message().to_owned());
        from_server(&state, &message, Some(Box::new(error)))
    }
}

/// What the server's own functions say of a table that went while they looked at it.
fn is_gone(state: &str, message: &str) -> bool {
    let words = [
        "could not open relation with OID",
        "cache lookup failed for",
    ];
    state == "XX000" && words.iter().any(|words| message.starts_with(words))
}

/// Names what the server refused, by its SQLSTATE.
pub(crate) fn from_server(
    state: &str,
    message: &str,
    cause: Option<Box<dyn std::error::Error + Send + Sync>>,
) -> SourceError {
    let (class, code, fix) = match state {
        "28P01" | "28000" => (
            Class::Definite,
            "DR-1001",
            "set the right user and password in the source, and a line for it in pg_hba.conf",
        ),
        "3D000" => (
            Class::Definite,
            "DR-1003",
            "name an existing database in the source's url",
        ),
        "42501" => (
            Class::Definite,
            "DR-1004",
            "grant what `downriver check` lists to the source's user",
        ),
        "55000" if message.contains("wal_level") => (
            Class::Definite,
            "DR-1010",
            "alter system set wal_level = logical, on a standby's primary as well; then restart the server",
        ),
        // A slot that was invalidated a moment ago, or a standby that was promoted: the next look finds it.
        "55000" => (
            Class::Transient,
            "DR-1005",
            "see the server's message; it is tried again by itself",
        ),
        "55006" => (
            Class::Transient,
            "DR-1012",
            "stop the other client of the slot, or give the source a slot of its own",
        ),
        _ if state == "53400" || (state == "53300" && message.contains("max_wal_senders")) => (
            Class::Transient,
            "DR-1011",
            "raise max_replication_slots or max_wal_senders and restart the server, or drop a slot that nobody uses",
        ),
        // Text of a SQL_ASCII database is whatever bytes its clients wrote.
        "22021" | "22P05" => (
            Class::Definite,
            "DR-1043",
            "make the text at the source UTF-8, or exclude the table",
        ),
        // Connection trouble, resources, operator intervention, system errors, conflicts.
        _ if ["08", "53", "57", "58", "40"]
            .iter()
            .any(|class| state.starts_with(class)) =>
        {
            (
                Class::Transient,
                "DR-1002",
                "make the database reachable; capture goes on by itself",
            )
        }
        // Tables, columns and schemas are named as the catalog had them a moment ago; and a session of ours that was cut
        // may still have put a table into the publication.
        _ if ["42P01", "42703", "42710", "3F000"].contains(&state) || is_gone(state, message) => (
            Class::Transient,
            "DR-1005",
            "nothing, if a table was dropped or changed a moment ago: it is tried again by itself",
        ),
        _ => (Class::Definite, "DR-1005", "see the server's message"),
    };
    let reason = format!("the database refused ({state}): {message}");
    SourceError::Named {
        class,
        problem: Problem::new(code, reason, fix),
        cause,
    }
}
