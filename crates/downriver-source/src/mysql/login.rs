//! The beginning of a connection: the server's greeting, TLS, and who we are.
//!
//! Source: MySQL's internals, "Connection Phase"; MariaDB's knowledge base, "Connecting". What a password is mixed with, and
//! how, is `mysql_common`'s.

use std::collections::HashMap;

use mysql_common::constants::CapabilityFlags;
use mysql_common::io::ParseBuf;
use mysql_common::packets::{AuthPlugin, HandshakePacket, HandshakeResponse, SslRequest};
use mysql_common::proto::MySerialize as _;
use tokio::net::TcpStream;

use super::config::MysqlConfig;
use super::packet::Packets;
use super::public_key;
use super::refusal::{of_packet, unknown};
use crate::error::SourceError;
use crate::transport::{self, SslMode, Stream};

const OK: u8 = 0x00;
const MORE: u8 = 0x01;
const SWITCH: u8 = 0xfe;
const ERROR: u8 = 0xff;
/// Answers of `caching_sha2_password`: the server knows the password's hash, or needs the password.
const IS_KNOWN: &[u8] = &[MORE, 3];
const IS_NEEDED: &[u8] = &[MORE, 4];
/// What `caching_sha2_password` is asked for its key with.
const KEY_REQUEST: &[u8] = &[2];
/// Packets that a server may answer with until it is content: a user of MariaDB's may have several kinds of password.
const ANSWERS_MAX: usize = 16;
/// What a kind of password is mixed with, in bytes; MariaDB's ed25519 takes more.
const NONCE_BYTES: usize = 20;
const ED25519_NONCE_BYTES: usize = 32;
/// utf8mb4_general_ci.
const COLLATION: u8 = 45;
/// The largest packet that we would send.
const PACKET_BYTES_MAX: u32 = 1 << 30;

/// A connection whose server knows who we are.
pub(super) struct LoggedIn {
    pub(super) packets: Packets<Stream>,
    pub(super) is_mariadb: bool,
}

struct Greeting {
    offered: CapabilityFlags,
    is_mariadb: bool,
    plugin: AuthPlugin<'static>,
    nonce: Vec<u8>,
}

pub(super) async fn login(config: &MysqlConfig) -> Result<LoggedIn, SourceError> {
    let (host, port) = (config.host.as_str(), config.port);
    let mut packets = Packets::new(transport::open(host, port).await?);
    let greeting = greeting(&packets.read().await?)?;
    let offers_tls = greeting.offered.contains(CapabilityFlags::CLIENT_SSL);
    let is_encrypted = match config.tls.mode {
        SslMode::Disable => false,
        SslMode::Prefer => offers_tls,
        _ if offers_tls => true,
        _ => {
            let fix = "give the server a certificate and a key, or use ssl-mode=PREFERRED";
            return Err(transport::without_tls(host, port, fix));
        }
    };
    let mut flags = flags(&greeting)?;
    flags.set(CapabilityFlags::CLIENT_SSL, is_encrypted);
    let packets = match is_encrypted {
        true => encrypted(packets, config, flags).await?,
        false => {
            packets
                .over(async |tcp| Ok(Box::new(tcp) as Stream))
                .await?
        }
    };
    let mut login = Login {
        packets,
        config,
        plugin: greeting.plugin,
        nonce: greeting.nonce,
        is_encrypted,
    };
    login.introduce(flags).await?;
    login.authenticate().await?;
    Ok(LoggedIn {
        packets: login.packets,
        is_mariadb: greeting.is_mariadb,
    })
}

fn greeting(packet: &[u8]) -> Result<Greeting, SourceError> {
    // Behind the version's end: the connection's number (4), the first bytes of the nonce (8), a zero, flags (2), a
    // collation, a status (2), flags (2).
    const UP_TO_NONCE_LEN: usize = 4 + 8 + 1 + 2 + 1 + 2 + 2;
    match packet.first() {
        Some(&10) => {}
        Some(&ERROR) => return Err(of_packet(packet)),
        _ => return Err(unknown("a greeting that is not of protocol version 10")),
    }
    let cut = || unknown("a greeting that ends too early");
    let version_end = packet.iter().position(|byte| *byte == 0).ok_or_else(cut)?;
    // The library takes the length for a signed number.
    if packet
        .get(version_end + 1 + UP_TO_NONCE_LEN)
        .is_none_or(|len| *len >= 0x80)
    {
        return Err(cut());
    }
    let hello: HandshakePacket<'_> = ParseBuf(packet).parse(()).map_err(|_| cut())?;
    let offered = hello.capabilities();
    // MariaDB has a use of its own for the flag that MySQL always sets.
    let is_mariadb = !offered.contains(CapabilityFlags::CLIENT_LONG_PASSWORD)
        || hello
            .server_version_str()
            .to_lowercase()
            .contains("mariadb");
    let plugin = match hello.auth_plugin() {
        Some(AuthPlugin::CachingSha2Password) => AuthPlugin::CachingSha2Password,
        // Any other is asked for again, with a nonce of its own.
        _ => AuthPlugin::MysqlNativePassword,
    };
    Ok(Greeting {
        offered,
        is_mariadb,
        plugin,
        nonce: hello.nonce(),
    })
}

fn flags(greeting: &Greeting) -> Result<CapabilityFlags, SourceError> {
    let needed = CapabilityFlags::CLIENT_PROTOCOL_41
        | CapabilityFlags::CLIENT_SECURE_CONNECTION
        | CapabilityFlags::CLIENT_PLUGIN_AUTH;
    if !greeting.offered.contains(needed) {
        return Err(unknown("a greeting of a server older than 5.5"));
    }
    let wanted = needed
        | CapabilityFlags::CLIENT_LONG_PASSWORD
        | CapabilityFlags::CLIENT_TRANSACTIONS
        | CapabilityFlags::CLIENT_PLUGIN_AUTH_LENENC_CLIENT_DATA
        | CapabilityFlags::CLIENT_CONNECT_ATTRS;
    Ok(wanted & greeting.offered)
}

async fn encrypted(
    mut packets: Packets<TcpStream>,
    config: &MysqlConfig,
    flags: CapabilityFlags,
) -> Result<Packets<Stream>, SourceError> {
    let mut request = Vec::new();
    SslRequest::new(flags, PACKET_BYTES_MAX, COLLATION).serialize(&mut request);
    packets.write(&request).await?;
    let encrypt = |tcp| transport::encrypt(tcp, &config.host, config.port, &config.tls);
    packets.over(encrypt).await
}

struct Login<'a> {
    packets: Packets<Stream>,
    config: &'a MysqlConfig,
    plugin: AuthPlugin<'static>,
    nonce: Vec<u8>,
    is_encrypted: bool,
}

impl Login<'_> {
    async fn introduce(&mut self, flags: CapabilityFlags) -> Result<(), SourceError> {
        let attributes = flags
            .contains(CapabilityFlags::CLIENT_CONNECT_ATTRS)
            .then(|| {
                HashMap::from([
                    ("program_name".to_owned(), "downriver".to_owned()),
                    (
                        "_client_version".to_owned(),
                        env!("CARGO_PKG_VERSION").to_owned(),
                    ),
                ])
            });
        let proof = self.proof()?;
        let response = HandshakeResponse::new(
            Some(proof),
            // Says no more than that the collation is known.
            (5, 5, 3),
            Some(self.config.user.as_bytes()),
            None::<&[u8]>,
            Some(self.plugin.borrow()),
            flags,
            attributes,
            PACKET_BYTES_MAX,
        );
        let mut payload = Vec::new();
        response.serialize(&mut payload);
        self.packets.write(&payload).await
    }

    /// That we know the password; empty where there is none.
    fn proof(&self) -> Result<Vec<u8>, SourceError> {
        match self.plugin {
            AuthPlugin::MysqlNativePassword
            | AuthPlugin::CachingSha2Password
            | AuthPlugin::Ed25519 => {
                let password = self.config.password.as_deref();
                let proof = self.plugin.gen_data(password, &self.nonce);
                Ok(proof.as_deref().unwrap_or_default().to_vec())
            }
            _ => Err(self.unsupported()),
        }
    }

    fn unsupported(&self) -> SourceError {
        let plugin = String::from_utf8_lossy(self.plugin.as_bytes());
        SourceError::definite(
            "DR-1067",
            format!(
                "{} is authenticated with {plugin}, which this build does not know",
                self.config.place()
            ),
            "give the source a user that is identified with caching_sha2_password, mysql_native_password or ed25519",
        )
    }

    async fn authenticate(&mut self) -> Result<(), SourceError> {
        for _ in 0..ANSWERS_MAX {
            let answer = self.packets.read().await?;
            match &answer[..] {
                [OK, ..] => return Ok(()),
                [ERROR, ..] => return Err(of_packet(&answer)),
                [SWITCH, request @ ..] => self.switch(request).await?,
                IS_KNOWN => {}
                IS_NEEDED => self.tell_password().await?,
                _ => return Err(unknown("an answer to a login")),
            }
        }
        Err(unknown("no end of a login"))
    }

    /// Proves it in the way of another plugin. Without a request the way is that of before 4.1.
    async fn switch(&mut self, request: &[u8]) -> Result<(), SourceError> {
        let end = request.iter().position(|byte| *byte == 0);
        let (plugin, nonce) = end.map_or((&b"mysql_old_password"[..], &[][..]), |end| {
            (&request[..end], &request[end + 1..])
        });
        self.plugin = AuthPlugin::from_bytes(plugin).into_owned();
        let bytes = match self.plugin {
            AuthPlugin::Ed25519 => ED25519_NONCE_BYTES,
            _ => NONCE_BYTES,
        };
        // A zero may follow, and one may be part of it.
        self.nonce = nonce[..nonce.len().min(bytes)].to_vec();
        let proof = self.proof()?;
        self.packets.write(&proof).await
    }

    /// Where the server has no hash of it yet. In the clear, and its end marked, where the connection is encrypted.
    async fn tell_password(&mut self) -> Result<(), SourceError> {
        let password = self.config.password.as_deref().unwrap_or_default();
        if self.is_encrypted {
            let told: Vec<u8> = password.bytes().chain([0]).collect();
            return self.packets.write(&told).await;
        }
        self.packets.write(KEY_REQUEST).await?;
        let answer = self.packets.read().await?;
        let key = match &answer[..] {
            [MORE, key @ ..] => key,
            [ERROR, ..] => return Err(of_packet(&answer)),
            _ => return Err(unknown("an answer to a request for its key")),
        };
        let told = public_key::encrypt(password, &self.nonce, key).map_err(|unusable| {
            SourceError::definite(
                "DR-1067",
                format!(
                    "the server of {} gave a key for the password that {unusable}",
                    self.config.place()
                ),
                "use ssl-mode=REQUIRED, or give the server an RSA key of 2048 bits or more",
            )
        })?;
        self.packets.write(&told).await
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// As MySQL 9 and MariaDB 11 send it.
    fn hello(version: &str, flags: u32, plugin: &str) -> Vec<u8> {
        let mut packet = vec![10];
        packet.extend_from_slice(version.as_bytes());
        packet.push(0);
        packet.extend_from_slice(&7u32.to_le_bytes());
        packet.extend_from_slice(b"12345678\0");
        packet.extend_from_slice(&flags.to_le_bytes()[..2]);
        packet.extend_from_slice(&[COLLATION, 2, 0]);
        packet.extend_from_slice(&flags.to_le_bytes()[2..]);
        packet.push(21);
        packet.extend_from_slice(&[0; 10]);
        packet.extend_from_slice(b"123456789012\0");
        packet.extend_from_slice(plugin.as_bytes());
        packet.push(0);
        packet
    }

    #[test]
    fn a_server_is_known_by_its_greeting() {
        let mysql = greeting(&hello("9.4.0", 0xdfff_ffff, "caching_sha2_password")).unwrap();
        assert!(!mysql.is_mariadb && mysql.offered.contains(CapabilityFlags::CLIENT_SSL));
        assert_eq!(mysql.plugin, AuthPlugin::CachingSha2Password);
        assert_eq!(mysql.nonce, b"12345678123456789012");
        for (version, flags) in [
            ("5.5.5-10.11.14-MariaDB-log", 0x81ff_f7fe),
            ("11.8.3-MariaDB-enterprise", 0x81ff_f7fe),
            ("whatever it was told to say", 0x81ff_f7fe),
        ] {
            let maria = greeting(&hello(version, flags, "mysql_native_password")).unwrap();
            assert!(maria.is_mariadb, "{version}");
            assert!(!maria.offered.contains(CapabilityFlags::CLIENT_SSL));
            assert_eq!(maria.plugin, AuthPlugin::MysqlNativePassword);
        }
    }

    #[test]
    fn what_is_no_greeting_is_refused() {
        let whole = hello("9.4.0", 0xdfff_ffff, "caching_sha2_password");
        for cut in 0..whole.len() - "caching_sha2_password\0".len() {
            assert!(greeting(&whole[..cut]).is_err(), "{cut}");
        }
        // Whatever stands where.
        for at in 0..whole.len() {
            for byte in [0, 0x7f, 0x80, 0xff] {
                let mut changed = whole.clone();
                changed[at] = byte;
                let _ = greeting(&changed);
            }
        }
        let refused = greeting(b"\xff\x10\x04Too many connections").err().unwrap();
        assert!(refused.is_transient());
        let old = greeting(&hello("4.0.1", 0, "")).unwrap();
        assert_eq!(flags(&old).unwrap_err().problem().code, "DR-1040");
    }
}
