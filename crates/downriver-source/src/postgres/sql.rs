//! SQL sessions, and how names and values are written into statements.

use tokio_postgres::{Client, NoTls};

use super::config::{PostgresConfig, Target};
use super::transport;
use crate::error::SourceError;

/// How our sessions, also those of replication, name themselves to the server.
pub(super) const APPLICATION: &str = "downriver";

/// Settings that decide how values print, the same in every session of ours.
pub(super) const PINNED: [(&str, &str); 7] = [
    ("DateStyle", "ISO"),
    ("IntervalStyle", "postgres"),
    ("bytea_output", "hex"),
    ("extra_float_digits", "3"),
    ("TimeZone", "UTC"),
    ("lc_monetary", "C"),
    ("client_encoding", "UTF8"),
];

/// Limits that a database or a role may set for its users, and that would end our sessions at their work.
pub(super) const UNLIMITED: [(&str, &str); 3] = [
    ("statement_timeout", "0"),
    ("lock_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
];

/// The same that not every version knows: idle_session_timeout from 14, transaction_timeout from 17 on.
const UNLIMITED_LATER: &str = "select set_config(name, '0', false) from pg_settings
    where name in ('idle_session_timeout', 'transaction_timeout')";

/// Opens a session with the pinned settings. It ends when the client is dropped.
pub(super) async fn connect(config: &PostgresConfig) -> Result<Client, SourceError> {
    Ok(find(config).await?.1)
}

/// The one server that all sessions of a task come to: of several the first that can be reached and is wanted, as
/// libpq finds it.
///
/// # Errors
/// None can be reached, or one refuses.
pub async fn reach(config: &PostgresConfig) -> Result<PostgresConfig, SourceError> {
    if config.others.is_empty() && config.target == Target::Any {
        return Ok(config.clone());
    }
    Ok(find(config).await?.0)
}

async fn find(config: &PostgresConfig) -> Result<(PostgresConfig, Client), SourceError> {
    let mut failures = Vec::new();
    for server in config.servers() {
        let client = match open(&server, &PINNED).await {
            Ok(client) => client,
            Err(error) if config.others.is_empty() || !error.is_transient() => return Err(error),
            Err(error) => {
                failures.push(error.problem().reason);
                continue;
            }
        };
        let is_wanted = match config.target {
            Target::Any => true,
            Target::Primary => {
                let query = "select not pg_is_in_recovery()";
                client.query_one(query, &[]).await?.get(0)
            }
        };
        if is_wanted {
            return Ok((server, client));
        }
        failures.push(format!("{}:{} is a standby", server.host, server.port));
    }
    Err(SourceError::transient(
        "DR-1002",
        format!("no server of the url can be used: {}", failures.join("; ")),
        "let the url name the primary, and see that it runs; capture goes on by itself",
    ))
}

async fn open(config: &PostgresConfig, pinned: &[(&str, &str)]) -> Result<Client, SourceError> {
    let stream = transport::connect(config).await?;
    let options: Vec<String> = pinned
        .iter()
        .chain(&UNLIMITED)
        .chain(&[("row_security", "off")])
        .map(|(name, value)| format!("-c {name}={value}"))
        .collect();
    let mut session = tokio_postgres::Config::new();
    session
        .user(&config.user)
        .dbname(&config.database)
        .application_name(APPLICATION)
        .options(options.join(" "))
        .ssl_mode(tokio_postgres::config::SslMode::Disable);
    if let Some(password) = &config.password {
        session.password(password);
    }
    let (client, connection) = session.connect_raw(stream, NoTls).await.map_err(|error| {
        // Without a password the client gives up before the server can refuse.
        if config.password.is_none()
            && error.as_db_error().is_none()
            && error.to_string().contains("password")
        {
            return SourceError::definite(
                "DR-1001",
                format!(
                    "{} asks for a password and the source has none",
                    config.place()
                ),
                "set postgres.password in the source",
            );
        }
        SourceError::from(error)
    })?;
    tokio::spawn(async move {
        // Whoever uses the client sees its error.
        let _ = connection.await;
    });
    client.batch_execute(UNLIMITED_LATER).await?;
    Ok(client)
}

/// How many digits make a unit of the database's own currency: what `money` means without the pinned lc_monetary.
pub(super) async fn currency_digits(config: &PostgresConfig) -> Result<i32, SourceError> {
    let server = reach(config).await?;
    let unpinned = open(&server, &[]).await?;
    let row = unpinned
        .query_one("select scale('1'::money::numeric)", &[])
        .await?;
    Ok(row.get(0))
}

/// A quoted identifier.
pub(super) fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A quoted qualified name.
pub(super) fn qualified(namespace: &str, name: &str) -> String {
    format!("{}.{}", identifier(namespace), identifier(name))
}

/// A string literal that means the same whatever standard_conforming_strings says.
pub(super) fn literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if quoted.contains('\\') {
        format!("E'{}'", quoted.replace('\\', "\\\\"))
    } else {
        format!("'{quoted}'")
    }
}
