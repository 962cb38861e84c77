//! The byte stream to a server, below both kinds of session.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::config::PostgresConfig;
use crate::error::SourceError;
use crate::transport::{SslMode, Stream, encrypt, open, unreachable, without_tls};

/// Protocol version 1234.5679: a request for TLS.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xd2, 0x16, 0x2f];

pub(super) async fn connect(config: &PostgresConfig) -> Result<Stream, SourceError> {
    let (host, port) = (config.host.as_str(), config.port);
    let mut tcp = open(host, port).await?;
    if config.tls.mode == SslMode::Disable {
        return Ok(Box::new(tcp));
    }
    tcp.write_all(&SSL_REQUEST)
        .await
        .map_err(SourceError::Connection)?;
    match tcp.read_u8().await.map_err(SourceError::Connection)? {
        b'S' => encrypt(tcp, host, port, &config.tls).await,
        b'N' if config.tls.mode == SslMode::Prefer => Ok(Box::new(tcp)),
        b'N' => Err(without_tls(
            host,
            port,
            "turn on ssl at the server, or use sslmode=prefer",
        )),
        byte => Err(unreachable(
            host,
            port,
            format!("it answered {byte:#04x}; is it a PostgreSQL server?"),
        )),
    }
}
