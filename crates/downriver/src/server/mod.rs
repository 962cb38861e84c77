//! The node: builds everything, serves it, and drains it when told to stop.

mod access;
pub(crate) mod config;
mod door;
mod engine;
mod http;
mod metrics;
mod progress;
pub(crate) mod restore;
mod status;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use downriver_cluster::{Backups, MemberConfig, Node, NodeConfig, PeerTls, Retention, Seeds};
use downriver_log::Log;
use downriver_log::store::{self, S3Options};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use access::Access;
pub(crate) use access::{AccessOptions, Token};
use engine::NodeEngine;

/// How long calls that are being answered may take when the node stops.
const ANSWERS_WITHIN: Duration = Duration::from_millis(500);

/// What a node was asked to be.
#[derive(Debug, Clone)]
pub(crate) struct NodeOptions {
    pub(crate) data: PathBuf,
    /// `None`: a folder under `data`.
    pub(crate) store: Option<String>,
    pub(crate) s3: S3Options,
    pub(crate) grpc: SocketAddr,
    pub(crate) http: SocketAddr,
    pub(crate) access: AccessOptions,
    pub(crate) retention: Retention,
    pub(crate) backups: Backups,
    /// `None`: it is alone.
    pub(crate) cluster: Option<ClusterOptions>,
}

/// How a node is one of several.
#[derive(Debug, Clone)]
pub(crate) struct ClusterOptions {
    pub(crate) name: String,
    pub(crate) listen: SocketAddr,
    /// `None`: where it listens.
    pub(crate) address: Option<String>,
    pub(crate) seeds: Seeds,
    pub(crate) tls: Option<PeerTls>,
}

/// Runs a node until it is told to stop.
///
/// # Errors
/// The data folder, the store or an address cannot be used.
pub(crate) async fn run(options: NodeOptions) -> anyhow::Result<()> {
    let access = Arc::new(Access::new(options.access)?);
    access.check(options.grpc)?;
    access.check(options.http)?;
    std::fs::create_dir_all(&options.data)
        .with_context(|| format!("cannot make the data folder {}", options.data.display()))?;
    let data = options.data.canonicalize()?;
    let _lock = lock(&data)?;
    let url = options
        .store
        .unwrap_or_else(|| format!("file://{}", data.join("objects").display()));
    let objects = store::open(&url, &options.s3)?;
    let grpc = listen(options.grpc, "gRPC").await?;
    let http = listen(options.http, "HTTP").await?;
    let addresses = Addresses {
        grpc: grpc.local_addr()?,
        http: http.local_addr()?,
    };
    let config = NodeConfig {
        retention: options.retention,
        backups: options.backups,
        ..NodeConfig::new(data.join(NODE_FOLDER), objects)
    };
    let node = match options.cluster {
        None => Node::start(config).await?,
        Some(cluster) => {
            let member = cluster.member(addresses).await?;
            tokio::select! {
                node = Node::start_member(config, member) => node?,
                signal = wait_for_signal() => return signal,
            }
        }
    };
    engine::check_stored(&node)?;
    let stop = CancellationToken::new();
    let engine = NodeEngine::new(Arc::clone(&node), data.clone(), addresses);
    let log: Arc<dyn Log> = node.clone();
    let services = downriver_service::routes(engine.clone(), Arc::clone(&log));
    node.also_serve(services.add_service(engine::chunk_service(Arc::clone(&engine))));
    let assigner = tokio::spawn(Arc::clone(&engine).assign(stop.clone()));
    let reconciler = tokio::spawn(Arc::clone(&engine).reconcile(stop.clone()));
    let services = downriver_service::router(engine.clone(), log).await;
    let serve = |listener, app, what: &'static str| {
        let served = door::serve(listener, app, Arc::clone(&access), stop.clone());
        tokio::spawn(async move {
            if let Err(error) = served.await {
                tracing::error!(error = %error, what, "clients are not answered any more");
            }
        })
    };
    let grpc_server = serve(grpc, services, "gRPC");
    let http_server = serve(http, http::router(Arc::clone(&engine)), "HTTP");

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
        anyhow::bail!("{reason}");
    }
    tracing::info!("stopping");
    node.hand_over().await;
    stop.cancel();
    let drained = async {
        let _ = tokio::join!(assigner, reconciler, progress);
        // Subscribers stay for ever if they are let.
        for server in [http_server, grpc_server] {
            let stop = server.abort_handle();
            if tokio::time::timeout(ANSWERS_WITHIN, server).await.is_err() {
                stop.abort();
            }
        }
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

/// What is replicated, under the data folder.
const NODE_FOLDER: &str = "node";
/// In the data folder: held by the process that uses it.
const LOCK: &str = "lock";
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

async fn listen(address: SocketAddr, what: &str) -> anyhow::Result<TcpListener> {
    let listener = TcpListener::bind(address).await;
    listener.with_context(|| format!("cannot listen for {what} on {address}"))
}

impl ClusterOptions {
    async fn member(self, addresses: Addresses) -> anyhow::Result<MemberConfig> {
        anyhow::ensure!(
            self.listen.ip().is_loopback() || self.tls.is_some(),
            "DR-2090: {} is not a loopback address: give the node a certificate with cluster.tls",
            self.listen
        );
        let listener = listen(self.listen, "other nodes").await?;
        let here = listener.local_addr()?;
        Ok(MemberConfig {
            name: self.name,
            address: self.address.unwrap_or_else(|| here.to_string()),
            listener,
            tls: self.tls,
            seeds: self.seeds,
            grpc_address: addresses.grpc.to_string(),
            http_address: addresses.http.to_string(),
            version: env!("CARGO_PKG_VERSION").into(),
        })
    }
}

/// One process per data folder.
fn lock(data: &Path) -> anyhow::Result<std::fs::File> {
    let path = data.join(LOCK);
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
