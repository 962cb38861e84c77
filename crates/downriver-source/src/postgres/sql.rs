//! SQL sessions, and how names and values are written into statements.

use tokio_postgres::{Client, NoTls};

use super::config::{PostgresConfig, Target};
use super::transport;
use crate::error::SourceError;

/// How our sessions name themselves to the server, and how the name of one of replication begins.
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
/// libpq finds it. Among standbys one that has the source's slot comes before others: only there it can go on.
///
/// # Errors
/// None can be reached, or one refuses.
pub async fn reach(config: &PostgresConfig) -> Result<PostgresConfig, SourceError> {
    if config.others.is_empty() && matches!(config.target, Target::Unsaid | Target::Any) {
        return Ok(config.clone());
    }
    Ok(find(config).await?.0)
}

async fn find(config: &PostgresConfig) -> Result<(PostgresConfig, Client), SourceError> {
    let mut failures = Vec::new();
    // The best one that may not have to do: a standby comes before the primary.
    let mut fallback: Option<(bool, PostgresConfig, Client)> = None;
    for server in config.servers() {
        let client = match open(&server, &PINNED).await {
            Ok(client) => client,
            Err(error) if config.others.is_empty() || !error.is_transient() => return Err(error),
            Err(error) => {
                failures.push(error.problem().reason);
                continue;
            }
        };
        if matches!(config.target, Target::Unsaid | Target::Any) {
            return Ok((server, client));
        }
        let query = "select pg_is_in_recovery(),
                            exists(select from pg_replication_slots s where slot_name = $1
                                    and not (pg_is_in_recovery() and coalesce((to_jsonb(s) ->> 'synced')::bool, false)))";
        let row = client.query_one(query, &[&config.slot]).await?;
        let (is_standby, has_slot): (bool, bool) = (row.get(0), row.get(1));
        let is_wanted = match config.target {
            Target::Primary => !is_standby,
            Target::Standby => is_standby,
            Target::Unsaid | Target::Any | Target::PreferStandby => true,
        };
        if !is_wanted {
            let is = if is_standby {
                "a standby"
            } else {
                "the primary"
            };
            failures.push(format!("{}:{} is {is}", server.host, server.port));
            continue;
        }
        if config.target == Target::Primary || has_slot || config.others.is_empty() {
            return Ok((server, client));
        }
        if fallback
            .as_ref()
            .is_none_or(|(was_standby, ..)| is_standby && !was_standby)
        {
            fallback = Some((is_standby, server, client));
        }
    }
    if let Some((_, server, client)) = fallback {
        return Ok((server, client));
    }
    let wanted = if config.target == Target::Standby {
        "a standby"
    } else {
        "the primary"
    };
    Err(SourceError::transient(
        "DR-1002",
        format!("no server of the url can be used: {}", failures.join("; ")),
        format!("let the url name {wanted}, and see that it runs; capture goes on by itself"),
    ))
}

pub(super) async fn open(
    config: &PostgresConfig,
    pinned: &[(&str, &str)],
) -> Result<Client, SourceError> {
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
