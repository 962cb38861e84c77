//! A TCP proxy that a test can cut: connections hang or break as they do when a server is unreachable.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// What happens to bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Pass,
    /// Connections are accepted and stay open, no byte passes: the worst kind of outage.
    Hang,
    /// Open connections are closed and new ones are closed at once.
    Refuse,
}

pub struct Proxy {
    address: SocketAddr,
    mode: Arc<watch::Sender<Mode>>,
    task: JoinHandle<()>,
}

impl Proxy {
    pub async fn start(target_port: u16) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let mode = Arc::new(watch::Sender::new(Mode::Pass));
        let task = tokio::spawn(serve(listener, target_port, mode.clone()));
        Ok(Self {
            address,
            mode,
            task,
        })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(listener: TcpListener, target_port: u16, mode: Arc<watch::Sender<Mode>>) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let Ok((client, _)) = listener.accept().await else {
            return;
        };
        let mut mode = mode.subscribe();
        connections.spawn(async move {
            if wait_to_pass(&mut mode).await.is_err() {
                return;
            }
            let Ok(server) = TcpStream::connect(("127.0.0.1", target_port)).await else {
                return;
            };
            let (client_read, client_write) = client.into_split();
            let (server_read, server_write) = server.into_split();
            tokio::select! {
                () = copy(client_read, server_write, mode.clone()) => {}
                () = copy(server_read, client_write, mode) => {}
            }
        });
        while connections.try_join_next().is_some() {}
    }
}

/// Returns when bytes may pass; an error when the connection must break.
async fn wait_to_pass(mode: &mut watch::Receiver<Mode>) -> Result<(), ()> {
    let seen = *mode
        .wait_for(|mode| *mode != Mode::Hang)
        .await
        .map_err(|_| ())?;
    if seen == Mode::Refuse {
        Err(())
    } else {
        Ok(())
    }
}

async fn copy(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    mut mode: watch::Receiver<Mode>,
) {
    let mut breaks = mode.clone();
    let broken = async {
        breaks
            .wait_for(|mode| *mode == Mode::Refuse)
            .await
            .map(|_| ())
    };
    let copied = async {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let Ok(read @ 1..) = from.read(&mut buffer).await else {
                return;
            };
            if wait_to_pass(&mut mode).await.is_err()
                || to.write_all(&buffer[..read]).await.is_err()
            {
                return;
            }
        }
    };
    tokio::select! {
        _ = broken => {}
        () = copied => {}
    }
}
