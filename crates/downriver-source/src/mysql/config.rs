//! How to reach a server and what to capture of it.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};

use downriver_event::pattern;

use crate::rules::{ColumnOrder, ColumnRules};
use crate::transport::{SslMode, Tls};
use crate::url::{InvalidUrl, host_and_port, ssl_mode, unescape};

#[derive(Clone)]
pub struct MysqlConfig {
    pub host: String,
    pub port: u16,
    pub user: String,
    pub password: Option<String>,
    pub tls: Tls,
    /// Patterns over "database.table".
    pub tables: Vec<String>,
    /// Columns that are excluded or masked.
    pub columns: ColumnRules,
    /// What the server knows us by among its replicas.
    pub server_id: u32,
    /// Snapshots lock their table for a moment, whatever identifiers the server gives: the stream goes by places.
    pub by_place: bool,
    /// Names that differ in case are one to the server, and the patterns are in lower case.
    pub folds_names: bool,
}

impl std::fmt::Debug for MysqlConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MysqlConfig")
            .field("host", &self.host)
            .field("port", &self.port)
            .field("user", &self.user)
            .field("tls", &self.tls)
            .field("server_id", &self.server_id)
            .finish_non_exhaustive()
    }
}

impl MysqlConfig {
    /// Reads `mysql://user[:password]@host[:port][?sslmode=…]`; `mariadb://` is the same. Tables and the server id are
    /// left empty.
    ///
    /// # Errors
    /// What is wrong with the url.
    pub fn from_url(url: &str) -> Result<Self, InvalidUrl> {
        let invalid = |what: &str| InvalidUrl(format!("{what}: use mysql://user@host:3306"));
        let rest = url
            .strip_prefix("mysql://")
            .or_else(|| url.strip_prefix("mariadb://"))
            .ok_or_else(|| invalid("the url does not begin with mysql:// or mariadb://"))?;
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let place = place.strip_suffix('/').unwrap_or(place);
        if place.contains('/') {
            return Err(invalid(
                "the url names a database: one source captures the whole server, and `tables` selects",
            ));
        }
        let (login, address) = place
            .rsplit_once('@')
            .ok_or_else(|| invalid("the url names no user"))?;
        let (user, password) = match login.split_once(':') {
            Some((user, password)) => (user, Some(unescape(password)?)),
            None => (login, None),
        };
        if user.is_empty() {
            return Err(invalid("the url names no user"));
        }
        let (host, port) = host_and_port(address, 3306).map_err(invalid)?;
        let mut tls = Tls {
            mode: SslMode::Prefer,
            ca_file: None,
        };
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = unescape(value)?;
            match key {
                "sslmode" => tls.mode = ssl_mode(&value)?,
                "ssl-mode" => tls.mode = own_ssl_mode(&value)?,
                "sslrootcert" | "ssl-ca" => tls.ca_file = Some(value.into()),
                _ => {
                    return Err(InvalidUrl(format!(
                        "the url's parameter {key:?} is not known: use ssl-mode or ssl-ca"
                    )));
                }
            }
        }
        Ok(Self {
            host,
            port,
            user: unescape(user)?,
            password,
            tls,
            tables: Vec::new(),
            columns: ColumnRules::new(&[], Vec::new(), ColumnOrder::Places),
            server_id: 0,
            by_place: false,
            folds_names: false,
        })
    }

    /// Whether the patterns select the table.
    #[must_use]
    pub fn captures(&self, database: &str, table: &str) -> bool {
        pattern::selects(&self.tables, database, table)
    }

    /// With patterns for a server to which names that differ in case are one: it tells them in lower case.
    #[must_use]
    pub fn in_lower_case(&self) -> Self {
        let tables = self.tables.iter().map(|table| table.to_lowercase());
        Self {
            tables: tables.collect(),
            folds_names: true,
            ..self.clone()
        }
    }

    /// The same server, which knows us by another number: a second stream under the number of the first would end that.
    #[must_use]
    pub(super) fn beside(&self) -> Self {
        Self {
            server_id: random_server_id(),
            ..self.clone()
        }
    }

    /// For messages.
    #[must_use]
    pub fn place(&self) -> String {
        format!("{}@{}:{}", self.user, self.host, self.port)
    }
}

/// One by chance. Numbers that people give servers are small ones.
#[must_use]
pub fn random_server_id() -> u32 {
    let random = RandomState::new().build_hasher().finish();
    (1 << 31) | (random & 0x7fff_ffff) as u32
}

/// As MySQL's own clients call it.
fn own_ssl_mode(mode: &str) -> Result<SslMode, InvalidUrl> {
    Ok(match mode.to_ascii_uppercase().as_str() {
        "DISABLED" => SslMode::Disable,
        "PREFERRED" => SslMode::Prefer,
        "REQUIRED" => SslMode::Require,
        "VERIFY_CA" => SslMode::VerifyCa,
        "VERIFY_IDENTITY" => SslMode::VerifyFull,
        other => {
            return Err(InvalidUrl(format!(
                "ssl-mode {other:?} is not known: use DISABLED, PREFERRED, REQUIRED, VERIFY_CA or VERIFY_IDENTITY"
            )));
        }
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_url_is_read_as_it_is_written() {
        let url = "mysql://c%40c:p%2Fw@db.internal?ssl-mode=verify_identity&ssl-ca=/ca.pem";
        let config = MysqlConfig::from_url(url).unwrap();
        assert_eq!(config.place(), "c@c@db.internal:3306");
        assert_eq!(config.password.as_deref(), Some("p/w"));
        assert_eq!(config.tls.mode, SslMode::VerifyFull);
        assert_eq!(config.tls.ca_file, Some("/ca.pem".into()));
        assert!(!format!("{config:?}").contains("p/w"));
        let config = MysqlConfig::from_url("mariadb://u@[::1]:3307/?sslmode=disable").unwrap();
        assert_eq!((config.host.as_str(), config.port), ("::1", 3307));
        assert_eq!(config.tls.mode, SslMode::Disable);
        for wrong in [
            "postgres://u@h",
            "mysql://h",
            "mysql://@h",
            "mysql://u@",
            "mysql://u@h/shop",
            "mysql://u@h?ssl-mode=sometimes",
            "mysql://u@h?charset=latin1",
        ] {
            assert!(MysqlConfig::from_url(wrong).is_err(), "{wrong}");
        }
    }
}
