//! How to reach a database and what to capture of it.

use std::path::PathBuf;

use downriver_event::pattern;

/// As libpq's sslmode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SslMode {
    Disable,
    /// TLS if the server has it, unverified.
    Prefer,
    /// TLS, unverified unless a CA is given.
    Require,
    /// TLS, the certificate's chain verified.
    VerifyCa,
    /// TLS, chain and host name verified.
    VerifyFull,
}

#[derive(Clone)]
pub struct PostgresConfig {
    pub host: String,
    pub port: u16,
    pub user: String,
    pub database: String,
    pub password: Option<String>,
    pub ssl_mode: SslMode,
    pub ca_file: Option<PathBuf>,
    /// Patterns over "schema.table".
    pub tables: Vec<String>,
    pub slot: String,
    pub publication: String,
}

impl std::fmt::Debug for PostgresConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PostgresConfig")
            .field("host", &self.host)
            .field("port", &self.port)
            .field("user", &self.user)
            .field("database", &self.database)
            .field("ssl_mode", &self.ssl_mode)
            .field("slot", &self.slot)
            .field("publication", &self.publication)
            .finish_non_exhaustive()
    }
}

/// The url is not one of a PostgreSQL database.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidUrl(pub String);

impl PostgresConfig {
    /// Reads `postgres://user[:password]@host[:port]/database[?sslmode=…]`. Tables, slot and publication are
    /// left empty.
    ///
    /// # Errors
    /// What is wrong with the url.
    pub fn from_url(url: &str) -> Result<Self, InvalidUrl> {
        let invalid =
            |what: &str| InvalidUrl(format!("{what}: use postgres://user@host:5432/database"));
        let rest = url
            .strip_prefix("postgres://")
            .or_else(|| url.strip_prefix("postgresql://"))
            .ok_or_else(|| invalid("the url does not begin with postgres://"))?;
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, database) = place
            .split_once('/')
            .ok_or_else(|| invalid("the url names no database"))?;
        let (login, address) = authority
            .rsplit_once('@')
            .ok_or_else(|| invalid("the url names no user"))?;
        let (user, password) = match login.split_once(':') {
            Some((user, password)) => (user, Some(unescape(password)?)),
            None => (login, None),
        };
        let (host, port) = match address.strip_prefix('[') {
            Some(v6) => {
                let (host, port) = v6
                    .split_once(']')
                    .ok_or_else(|| invalid("the host is not closed by ]"))?;
                (host, port.strip_prefix(':'))
            }
            None => match address.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (address, None),
            },
        };
        let port = port.map_or(Ok(5432), |port| {
            port.parse()
                .map_err(|_| invalid("the port is not a number"))
        })?;
        if host.is_empty() || user.is_empty() || database.is_empty() {
            return Err(invalid("the url needs a user, a host and a database"));
        }
        let mut ssl_mode = SslMode::Prefer;
        let mut ca_file = None;
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = unescape(value)?;
            match key {
                "sslmode" => ssl_mode = parse_ssl_mode(&value)?,
                "sslrootcert" => ca_file = Some(PathBuf::from(value)),
                _ => {
                    return Err(InvalidUrl(format!(
                        "the url's parameter {key:?} is not known: use sslmode or sslrootcert"
                    )));
                }
            }
        }
        Ok(Self {
            host: unescape(host)?,
            port,
            user: unescape(user)?,
            database: unescape(database)?,
            password,
            ssl_mode,
            ca_file,
            tables: Vec::new(),
            slot: String::new(),
            publication: String::new(),
        })
    }

    /// Whether the patterns select the table.
    #[must_use]
    pub fn captures(&self, namespace: &str, table: &str) -> bool {
        pattern::selects(&self.tables, namespace, table)
    }

    /// For messages.
    #[must_use]
    pub fn place(&self) -> String {
        format!(
            "{}@{}:{}/{}",
            self.user, self.host, self.port, self.database
        )
    }
}

fn parse_ssl_mode(mode: &str) -> Result<SslMode, InvalidUrl> {
    Ok(match mode {
        "disable" => SslMode::Disable,
        "allow" | "prefer" => SslMode::Prefer,
        "require" => SslMode::Require,
        "verify-ca" => SslMode::VerifyCa,
        "verify-full" => SslMode::VerifyFull,
        other => {
            return Err(InvalidUrl(format!(
                "sslmode {other:?} is not known: use disable, allow, prefer, require, verify-ca or verify-full"
            )));
        }
    })
}

/// Resolves `%xx`.
fn unescape(text: &str) -> Result<String, InvalidUrl> {
    let invalid = || InvalidUrl(format!("{text:?} has an invalid % escape"));
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        rest = after;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let (pair, after) = rest.split_at_checked(2).ok_or_else(invalid)?;
        rest = after;
        let pair = std::str::from_utf8(pair).map_err(|_| invalid())?;
        bytes.push(u8::from_str_radix(pair, 16).map_err(|_| invalid())?);
    }
    String::from_utf8(bytes).map_err(|_| invalid())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_url_is_read_as_libpq_reads_it() {
        let config =
            PostgresConfig::from_url("postgres://c%40c:p%2Fw@db.internal/shop?sslmode=verify-full")
                .unwrap();
        assert_eq!(config.place(), "c@c@db.internal:5432/shop");
        assert_eq!(config.password.as_deref(), Some("p/w"));
        assert_eq!(config.ssl_mode, SslMode::VerifyFull);
        let config = PostgresConfig::from_url("postgresql://u@[::1]:6543/d").unwrap();
        assert_eq!((config.host.as_str(), config.port), ("::1", 6543));
        for wrong in [
            "mysql://u@h/d",
            "postgres://h/d",
            "postgres://u@h",
            "postgres://u@h:x/d",
            "postgres://u@h/d?sslmod=require",
        ] {
            assert!(PostgresConfig::from_url(wrong).is_err(), "{wrong}");
        }
        assert!(!format!("{config:?}").contains("password"));
    }
}
