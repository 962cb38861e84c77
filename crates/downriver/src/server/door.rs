//! Where clients come in: the same for gRPC and HTTP, with TLS or without.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::connect_info::Connected;
use axum::middleware;
use axum::serve::{IncomingStream, Listener};
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;
use tokio_util::sync::CancellationToken;

use super::access::{Access, admit};

/// Connections that have not shown yet who they are; further ones wait.
const HANDSHAKES_MAX: usize = 256;
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(3);

/// Answers calls until `stop` is cancelled.
pub(super) async fn serve(
    listener: TcpListener,
    app: Router,
    access: Arc<Access>,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let door = Door {
        listener,
        tls: access.tls().map(TlsAcceptor::from),
        handshakes: JoinSet::new(),
    };
    let app = app.layer(middleware::from_fn_with_state(access, admit));
    axum::serve(door, app.into_make_service_with_connect_info::<Caller>())
        .with_graceful_shutdown(stop.cancelled_owned())
        .await
}

/// What is known of whoever opened a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caller {
    /// A certificate of the clients' authority was shown.
    pub(super) has_certificate: bool,
}

type Stream = Either<TcpStream, TlsStream<TcpStream>>;

struct Door {
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    /// A slow one does not hold up others.
    handshakes: JoinSet<Option<(Stream, SocketAddr)>>,
}

impl Listener for Door {
    type Io = Stream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Stream, SocketAddr) {
        loop {
            tokio::select! {
                (stream, from) = Listener::accept(&mut self.listener), if self.handshakes.len() < HANDSHAKES_MAX => {
                    // Without it answers are late, and not wrong.
                    let _ = stream.set_nodelay(true);
                    let Some(tls) = self.tls.clone() else {
                        return (Either::Left(stream), from);
                    };
                    self.handshakes.spawn(async move {
                        let shaken = tokio::time::timeout(HANDSHAKE_WITHIN, tls.accept(stream)).await;
                        let failed = match shaken {
                            Ok(Ok(stream)) => return Some((Either::Right(stream), from)),
                            Ok(Err(error)) => error.to_string(),
                            Err(_) => "nothing more came".into(),
                        };
                        tracing::debug!(%from, reason = failed, "TLS with a caller failed");
                        None
                    });
                }
                Some(shaken) = self.handshakes.join_next() => {
                    if let Ok(Some(come_in)) = shaken {
                        return come_in;
                    }
                }
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

impl Connected<IncomingStream<'_, Door>> for Caller {
    fn connect_info(stream: IncomingStream<'_, Door>) -> Self {
        let has_certificate = match stream.io() {
            Either::Left(_) => false,
            Either::Right(tls) => tls.get_ref().1.peer_certificates().is_some(),
        };
        Self { has_certificate }
    }
}

/// Protocols that both ports speak, the preferred one first.
pub(super) fn with_protocols(mut config: ServerConfig) -> Arc<ServerConfig> {
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Arc::new(config)
}
