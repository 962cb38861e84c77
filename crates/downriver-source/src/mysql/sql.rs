//! SQL sessions, and how names and values are written into statements.

use std::collections::HashMap;
use std::time::Duration;

use mysql_async::prelude::Queryable as _;
use mysql_async::{Conn, DriverError, Error, Opts, OptsBuilder, Row, SslOpts};

use super::config::MysqlConfig;
use crate::error::SourceError;
use crate::transport::{SslMode, Tls, unreachable, without_tls};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A server that is gone without a word is noticed.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// A row of the result of a statement: with more the client stops.
const ROW_BYTES_MAX: usize = 256 << 20;
/// How long a statement waits for whoever changes a table's shape.
pub(super) const LOCK_WAIT: Duration = Duration::from_secs(10);

/// Settings that decide how values are read, and limits that would end our sessions at their work. Text comes in its own
/// character set, as in the binlog, and is decoded by the same code.
const PINNED: &str = "set names utf8mb4, character_set_results = null, time_zone = '+00:00', sql_mode = '',
    sql_select_limit = 18446744073709551615, sql_big_selects = 1,
    net_read_timeout = 86400, net_write_timeout = 86400, wait_timeout = 86400, interactive_timeout = 86400";

/// The same that not every server has, and what it is set to: limits, and what a catalog leaves unsaid by itself.
const PINNED_WHERE_KNOWN: [(&str, &str); 8] = [
    ("max_execution_time", "0"),
    ("max_statement_time", "0"),
    ("idle_transaction_timeout", "0"),
    ("idle_readonly_transaction_timeout", "0"),
    ("range_optimizer_max_mem_size", "0"),
    ("show_gipk_in_create_table_and_information_schema", "on"),
    ("show_old_temporals", "on"),
    ("system_versioning_asof", "default"),
];

/// Opens a session that reads only, with the pinned settings.
///
/// # Errors
/// The server cannot be reached, or refuses.
pub async fn connect(config: &MysqlConfig) -> Result<Conn, SourceError> {
    let mut session = open(config).await?;
    session.query_drop(PINNED).await?;
    let names = PINNED_WHERE_KNOWN.map(|(name, _)| name);
    let known = variables(&mut session, "session", &names).await?;
    let mut settings = vec![format!("lock_wait_timeout = {}", LOCK_WAIT.as_secs())];
    for (name, value) in PINNED_WHERE_KNOWN {
        if known.contains_key(name) {
            settings.push(format!("{name} = {value}"));
        }
    }
    let settings = format!("set session {}", settings.join(", "));
    session.query_drop(settings).await?;
    session
        .query_drop("set session transaction isolation level repeatable read, read only")
        .await?;
    Ok(session)
}

async fn open(config: &MysqlConfig) -> Result<Conn, SourceError> {
    let encrypted = match config.tls.mode {
        SslMode::Disable => None,
        _ => Some(ssl_opts(&config.tls)),
    };
    let is_optional = config.tls.mode == SslMode::Prefer;
    match attempt(config, encrypted).await? {
        Err(Error::Driver(DriverError::NoClientSslFlagFromServer)) if is_optional => {
            Ok(attempt(config, None).await??)
        }
        Err(Error::Driver(DriverError::NoClientSslFlagFromServer)) => Err(without_tls(
            &config.host,
            config.port,
            "give the server a certificate, or set ssl-mode=DISABLED in the url",
        )),
        Err(Error::Io(mysql_async::IoError::Io(error))) if is_unreachable(&error) => {
            Err(unreachable(&config.host, config.port, error))
        }
        session => Ok(session?),
    }
}

fn is_unreachable(error: &std::io::Error) -> bool {
    !error
        .get_ref()
        .is_some_and(|cause| cause.is::<rustls::Error>())
}

async fn attempt(
    config: &MysqlConfig,
    encrypted: Option<SslOpts>,
) -> Result<Result<Conn, Error>, SourceError> {
    let options = OptsBuilder::default()
        .ip_or_hostname(&config.host)
        .tcp_port(config.port)
        .user(Some(&config.user))
        .pass(config.password.as_ref())
        .prefer_socket(false)
        .tcp_keepalive(Some(KEEPALIVE))
        .max_allowed_packet(Some(ROW_BYTES_MAX))
        .stmt_cache_size(0)
        .ssl_opts(encrypted);
    tokio::time::timeout(CONNECT_TIMEOUT, Conn::new(Opts::from(options)))
        .await
        .map_err(|_| unreachable(&config.host, config.port, "no answer in 10 s"))
}

fn ssl_opts(tls: &Tls) -> SslOpts {
    let options = SslOpts::default();
    let is_verified = matches!(tls.mode, SslMode::VerifyCa | SslMode::VerifyFull)
        || (tls.mode == SslMode::Require && tls.ca_file.is_some());
    if !is_verified {
        return options
            .with_danger_accept_invalid_certs(true)
            .with_danger_skip_domain_validation(true);
    }
    let roots = match &tls.ca_file {
        Some(file) => vec![file.clone().into()],
        None => {
            let certificates = rustls_native_certs::load_native_certs().certs;
            let certificates = certificates.into_iter();
            certificates
                .map(|certificate| certificate.to_vec().into())
                .collect()
        }
    };
    options
        .with_disable_built_in_roots(true)
        .with_root_certs(roots)
        .with_danger_skip_domain_validation(tls.mode != SslMode::VerifyFull)
}

/// Those of these variables that the server has.
pub(super) async fn variables(
    session: &mut Conn,
    scope: &str,
    names: &[&str],
) -> Result<HashMap<String, String>, SourceError> {
    let names: Vec<String> = names.iter().map(|name| format!("'{name}'")).collect();
    let query = format!(
        "show {scope} variables where variable_name in ({})",
        names.join(", ")
    );
    let rows: Vec<Row> = session.query(query).await?;
    let pair = |row: &Row| Some((text(row, 0)?.to_ascii_lowercase(), text(row, 1)?));
    Ok(rows.iter().filter_map(pair).collect())
}

/// A cell of a catalog's row; `None`: it is null.
pub(super) fn text(row: &Row, at: usize) -> Option<String> {
    match row.as_ref(at)? {
        mysql_async::Value::Bytes(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
        mysql_async::Value::NULL => None,
        other => Some(other.as_sql(true)),
    }
}

/// The same as a whole number.
pub(super) fn number(row: &Row, at: usize) -> Option<u64> {
    text(row, at)?.parse().ok()
}

/// A quoted identifier.
pub(super) fn identifier(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}

/// A quoted qualified name.
pub(super) fn qualified(database: &str, name: &str) -> String {
    format!("{}.{}", identifier(database), identifier(name))
}

/// A string literal. Sessions of ours have neither `ANSI_QUOTES` nor `NO_BACKSLASH_ESCAPES`.
pub(super) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

/// Bytes as a literal.
pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut literal = String::with_capacity(2 * bytes.len() + 3);
    literal.push_str("X'");
    for byte in bytes {
        let _ = write!(literal, "{byte:02x}");
    }
    literal.push('\'');
    literal
}
