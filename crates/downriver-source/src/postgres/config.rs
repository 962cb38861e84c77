//! How to reach a database and what to capture of it.

use std::path::PathBuf;

use downriver_event::pattern;

use super::sql::APPLICATION;
use crate::rules::ColumnRules;
use crate::transport::{SslMode, Tls};
use crate::url::{InvalidUrl, host_and_port, ssl_mode, unescape};

/// As libpq's target_session_attrs, as far as it makes a difference here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Nothing is said: the url's one server, which is to be a primary.
    Unsaid,
    /// Whichever can be reached.
    Any,
    /// Also `read-write`: a server that is in no recovery.
    Primary,
    /// Also `read-only`: a server that is in recovery.
    Standby,
    /// A standby, or else the primary.
    PreferStandby,
}

impl Target {
    /// Whether it was said that a standby may be captured from.
    pub(super) fn may_be_standby(self) -> bool {
        matches!(self, Self::Any | Self::Standby | Self::PreferStandby)
    }
}

#[derive(Clone)]
pub struct PostgresConfig {
    pub host: String,
    pub port: u16,
    /// Further servers of the cluster, tried in this order.
    pub others: Vec<(String, u16)>,
    /// Every server that the url names, also when one of them was chosen.
    pub cluster: Vec<(String, u16)>,
    pub target: Target,
    pub user: String,
    pub database: String,
    pub password: Option<String>,
    pub tls: Tls,
    /// Patterns over "schema.table".
    pub tables: Vec<String>,
    pub columns: ColumnRules,
    pub slot: String,
    pub publication: String,
    /// Whether the slot that is made follows a failover, from version 17 on.
    pub failover: bool,
    /// How the session of replication names itself to the server. One that reads the slot under this name is of whoever
    /// captured the same source before, and is ended.
    pub session: String,
}

impl std::fmt::Debug for PostgresConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PostgresConfig")
            .field("host", &self.host)
            .field("port", &self.port)
            .field("user", &self.user)
            .field("database", &self.database)
            .field("tls", &self.tls)
            .field("slot", &self.slot)
            .field("publication", &self.publication)
            .finish_non_exhaustive()
    }
}

impl PostgresConfig {
    /// Reads `postgres://user[:password]@host[:port][,host[:port]…]/database[?sslmode=…]`. Tables, slot and publication
    /// are left empty. Of several servers the primary is meant, unless `target_session_attrs` says otherwise.
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
        let mut hosts = Vec::new();
        for address in address.split(',') {
            hosts.push(host_and_port(address, 5432).map_err(invalid)?);
        }
        let cluster = hosts.clone();
        let mut others = hosts.into_iter();
        let (host, port) = others
            .next()
            .ok_or_else(|| invalid("the url names no host"))?;
        let others: Vec<_> = others.collect();
        if user.is_empty() || database.is_empty() {
            return Err(invalid("the url needs a user, a host and a database"));
        }
        let mut target = if others.is_empty() {
            Target::Unsaid
        } else {
            Target::Primary
        };
        let mut tls = Tls {
            mode: SslMode::Prefer,
            ca_file: None,
        };
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = unescape(value)?;
            match key {
                "sslmode" => tls.mode = ssl_mode(&value)?,
                "sslrootcert" => tls.ca_file = Some(PathBuf::from(value)),
                "target_session_attrs" => target = parse_target(&value)?,
                _ => {
                    return Err(InvalidUrl(format!(
                        "the url's parameter {key:?} is not known: use sslmode, sslrootcert or target_session_attrs"
                    )));
                }
            }
        }
        Ok(Self {
            host,
            port,
            others,
            cluster,
            target,
            user: unescape(user)?,
            database: unescape(database)?,
            password,
            tls,
            tables: Vec::new(),
            columns: ColumnRules::default(),
            slot: String::new(),
            publication: String::new(),
            failover: true,
            session: APPLICATION.into(),
        })
    }

    /// Whether the patterns select the table.
    #[must_use]
    pub fn captures(&self, namespace: &str, table: &str) -> bool {
        pattern::selects(&self.tables, namespace, table)
    }

    /// One configuration for each server.
    pub(super) fn servers(&self) -> impl Iterator<Item = Self> + '_ {
        let first = std::iter::once((&self.host, self.port));
        let others = self.others.iter().map(|(host, port)| (host, *port));
        first.chain(others).map(|(host, port)| self.at(host, port))
    }

    /// The same with this server alone.
    pub(super) fn at(&self, host: &str, port: u16) -> Self {
        Self {
            host: host.to_owned(),
            port,
            others: Vec::new(),
            ..self.clone()
        }
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

fn parse_target(attributes: &str) -> Result<Target, InvalidUrl> {
    match attributes {
        "any" => Ok(Target::Any),
        "primary" | "read-write" => Ok(Target::Primary),
        "standby" | "read-only" => Ok(Target::Standby),
        "prefer-standby" => Ok(Target::PreferStandby),
        other => Err(InvalidUrl(format!(
            "target_session_attrs {other:?} is not known: use primary, read-write, standby, read-only, prefer-standby or any"
        ))),
    }
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
        assert_eq!(config.tls.mode, SslMode::VerifyFull);
        let config = PostgresConfig::from_url("postgresql://u@[::1]:6543/d").unwrap();
        assert_eq!((config.host.as_str(), config.port), ("::1", 6543));
        let config = PostgresConfig::from_url("postgres://u@one,two:6543,[::1]/d").unwrap();
        let servers: Vec<_> = config.servers().map(|one| (one.host, one.port)).collect();
        let expected = [("one", 5432), ("two", 6543), ("::1", 5432)];
        assert_eq!(
            servers,
            expected.map(|(host, port)| (host.to_owned(), port))
        );
        assert_eq!(config.target, Target::Primary);
        let target = |url: &str| PostgresConfig::from_url(url).unwrap().target;
        assert_eq!(target("postgres://u@one/d"), Target::Unsaid);
        for (attributes, expected) in [
            ("any", Target::Any),
            ("read-write", Target::Primary),
            ("standby", Target::Standby),
            ("prefer-standby", Target::PreferStandby),
        ] {
            let url = format!("postgres://u@one,two/d?target_session_attrs={attributes}");
            assert_eq!(target(&url), expected);
        }
        for wrong in [
            "postgres://u@h,/d",
            "postgres://u@h/d?target_session_attrs=secondary",
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
