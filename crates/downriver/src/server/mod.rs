//! The node: builds everything, serves it, and drains it when told to stop.

mod engine;
mod http;
mod progress;
mod status;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use downriver_cluster::{Node, NodeConfig, Retention};
use downriver_log::Log;
use downriver_log::store::{self, S3Options};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use engine::NodeEngine;

/// What `downriver dev` was asked for.
#[derive(Debug, Clone)]
pub(crate) struct DevOptions {
    pub(crate) data: PathBuf,
    /// `None`: a folder under `data`.
    pub(crate) store: Option<String>,
    pub(crate) s3: S3Options,
    pub(crate) grpc: SocketAddr,
    pub(crate) http: SocketAddr,
    pub(crate) retention: Retention,
}

/// Runs one node with everything embedded until it is told to stop.
///
/// # Errors
/// The data folder, the store or an address cannot be used.
pub(crate) async fn dev(options: DevOptions) -> anyhow::Result<()> {
    refuse_open_address(options.grpc)?;
    refuse_open_address(options.http)?;
    std::fs::create_dir_all(&options.data)
        .with_context(|| format!("cannot make the data folder {}", options.data.display()))?;
    let data = options.data.canonicalize()?;
    let _lock = lock(&data)?;
    let url = options
        .store
        .unwrap_or_else(|| format!("file://{}", data.join("objects").display()));
    let objects = store::open(&url, &options.s3)?;
    let grpc = TcpListener::bind(options.grpc)
        .await
        .with_context(|| format!("cannot listen for gRPC on {}", options.grpc))?;
    let http = TcpListener::bind(options.http)
        .await
        .with_context(|| format!("cannot listen for HTTP on {}", options.http))?;
    let addresses = Addresses {
        grpc: grpc.local_addr()?,
        http: http.local_addr()?,
    };

    let node = Node::start(NodeConfig {
        retention: options.retention,
        ..NodeConfig::new(data.join("node"), objects)
    })
    .await?;
    engine::check_stored(&node)?;
    let stop = CancellationToken::new();
    let engine = NodeEngine::new(Arc::clone(&node), data.clone(), addresses);
    let reconciler = tokio::spawn(Arc::clone(&engine).reconcile(stop.clone()));
    let http_server = tokio::spawn(http::serve(http, Arc::clone(&engine), stop.clone()));
    let log: Arc<dyn Log> = node.clone();
    let services = Arc::clone(&engine);
    let grpc_server = tokio::spawn(downriver_service::serve(
        grpc,
        services,
        log,
        stop.clone().cancelled_owned(),
    ));

    addresses.publish(&data)?;
    println!(
        "downriver is up: gRPC {}, HTTP {}, data {}",
        addresses.grpc,
        addresses.http,
        data.display()
    );
    let progress = tokio::spawn(progress::report(Arc::clone(&engine), stop.clone()));
    let failed = tokio::select! {
        signal = wait_for_signal() => {
            signal?;
            None
        }
        reason = node.failed() => Some(reason),
    };
    if let Some(reason) = failed {
        // Nothing that was answered is lost; to go on would be to answer what is not durable.
        anyhow::bail!("DR-1104: the journal failed: {reason}");
    }
    tracing::info!("stopping");
    stop.cancel();
    let drained = async {
        let _ = tokio::join!(reconciler, http_server, grpc_server, progress);
        node.shutdown().await;
    };
    if tokio::time::timeout(Duration::from_secs(20), drained)
        .await
        .is_err()
    {
        tracing::warn!(
            "not everything stopped in time; nothing is lost, the source sends again what was not stored"
        );
    }
    let _ = std::fs::remove_file(data.join(ADDRESSES));
    Ok(())
}

const ADDRESSES: &str = "addresses.json";

#[derive(Clone, Copy, Debug, serde::Serialize)]
struct Addresses {
    grpc: SocketAddr,
    http: SocketAddr,
}

impl Addresses {
    /// Written beside and renamed, so that whoever polls for the file reads it whole.
    fn publish(&self, data: &Path) -> anyhow::Result<()> {
        let written = data.join(".addresses.json.new");
        std::fs::write(&written, serde_json::to_vec(self)?)?;
        std::fs::rename(written, data.join(ADDRESSES))?;
        Ok(())
    }
}

fn refuse_open_address(address: SocketAddr) -> anyhow::Result<()> {
    anyhow::ensure!(
        address.ip().is_loopback(),
        "DR-2090: {address} is not a loopback address, and TLS for listeners is not built yet: listen on 127.0.0.1"
    );
    Ok(())
}

/// One process per data folder.
fn lock(data: &Path) -> anyhow::Result<std::fs::File> {
    let path = data.join("lock");
    let file = std::fs::File::create(&path)?;
    file.try_lock().map_err(|_| {
        anyhow::anyhow!(
            "DR-2091: another downriver runs on {}: stop it, or take another --data",
            data.display()
        )
    })?;
    Ok(file)
}

async fn wait_for_signal() -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
