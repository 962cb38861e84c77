//! What tells one history of a server from another.
//!
//! ```text
//! mysql SERVER_UUID
//! mariadb SERVER_ID [SERVER_UID]
//! ```
//!
//! Servers of MariaDB that are made alike have one `server_id`; newer ones have a `server_uid` besides, of the host and port.
//!
//! Where transactions have identifiers another server may go on with the same history: then these decide.

use bytes::Bytes;

use super::server::{Flavor, Server};

/// The server that a log was captured from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub flavor: Flavor,
    pub(super) server: String,
}

impl Identity {
    pub(super) fn of(server: &Server) -> Self {
        Self {
            flavor: server.flavor,
            server: match (&server.server_uid, server.flavor) {
                (Some(uuid), Flavor::Mysql) => uuid.clone(),
                (Some(uid), Flavor::Mariadb) => format!("{} {uid}", server.server_id),
                (None, _) => server.server_id.to_string(),
            },
        }
    }

    /// Whether no other server has it.
    pub(super) fn is_of_one(&self) -> bool {
        self.flavor == Flavor::Mysql || self.server.contains(' ')
    }

    #[must_use]
    pub fn encode(&self) -> Bytes {
        Bytes::from(format!("{} {}", self.flavor.word(), self.server))
    }

    /// `None` if it is of a form that this build does not know.
    #[must_use]
    pub fn decode(stored: &[u8]) -> Option<Self> {
        let (flavor, server) = std::str::from_utf8(stored).ok()?.split_once(' ')?;
        let flavors = [Flavor::Mysql, Flavor::Mariadb];
        let flavor = flavors.into_iter().find(|known| known.word() == flavor)?;
        let server = server.to_owned();
        Some(Self { flavor, server })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_read_as_it_was_stored() {
        for (text, is_of_one) in [
            ("mysql 3e11fa47-71ca-11e1-9e33-c80aa9429562", true),
            ("mariadb 7", false),
            ("mariadb 7 UxVGKFJJLxDnV9IvbvZx6Ftx7eE=", true),
        ] {
            let identity = Identity::decode(text.as_bytes()).expect("it is one");
            assert_eq!(identity.encode(), text);
            assert_eq!(identity.is_of_one(), is_of_one);
        }
        assert_eq!(Identity::decode(b"postgres 7 8"), None);
        assert_eq!(Identity::decode(b"mysql"), None);
    }
}
