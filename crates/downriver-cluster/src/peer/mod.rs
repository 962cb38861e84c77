//! Other nodes: how they are reached, what is asked of them, and what they ask.
//!
//! - `network`: openraft's side of it. `serve`: the answers.
//! - `convert`: openraft's types as protobuf messages.

mod convert;
mod network;
mod serve;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use downriver_api::cluster::v1 as pb;
use downriver_api::cluster::v1::peer_service_client::PeerServiceClient;
use downriver_api::connect::tcp;
use tonic::transport::{
    Certificate, Channel, ClientTlsConfig, Endpoint, Identity, ServerTlsConfig,
};

pub(crate) use network::Network;
pub(crate) use serve::{Also, serve};

/// Largest message between nodes: an entry of the largest size, and what surrounds it.
const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// TCP and TLS take two ways forth and back.
const CONNECT_WITHIN: Duration = Duration::from_secs(2);
/// A connection on which nothing comes back for this long is a dead one.
const ALIVE_WITHIN: Duration = Duration::from_secs(2);
/// So that a large append does not hold up what is sent beside it.
const WINDOW_BYTES: u32 = 8 << 20;

/// What a node shows to others, and whom it believes.
#[derive(Clone, Debug)]
pub struct PeerTls {
    /// PEM files: the authority that every node's certificate is of, this node's certificate and its key.
    pub ca: PathBuf,
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// [`PeerTls`], read.
#[derive(Clone)]
pub(crate) struct Credentials {
    ca: Certificate,
    identity: Identity,
}

impl Credentials {
    pub(crate) fn read(tls: &PeerTls) -> Result<Self, (PathBuf, std::io::Error)> {
        let read = |path: &PathBuf| std::fs::read(path).map_err(|error| (path.clone(), error));
        Ok(Self {
            ca: Certificate::from_pem(read(&tls.ca)?),
            identity: Identity::from_pem(read(&tls.certificate)?, read(&tls.key)?),
        })
    }

    /// Only those whose certificate is of the same authority are let in.
    pub(crate) fn server(&self) -> ServerTlsConfig {
        ServerTlsConfig::new()
            .identity(self.identity.clone())
            .client_ca_root(self.ca.clone())
    }

    fn client(&self) -> ClientTlsConfig {
        ClientTlsConfig::new()
            .identity(self.identity.clone())
            .ca_certificate(self.ca.clone())
    }
}

pub(crate) type Client = PeerServiceClient<Channel>;

/// Connections to other nodes, by address; and when each node was last heard of.
#[derive(Clone)]
pub(crate) struct Peers {
    shared: Arc<Shared>,
}

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Lane {
    /// What is short, or must not wait.
    Words,
    /// What is large.
    Bulk,
}

/// An address, the name that vouches for it, and what the connection is for.
type Line = (String, Option<String>, Lane);

struct Shared {
    node_id: u64,
    credentials: Option<Credentials>,
    cluster_id: Mutex<String>,
    channels: Mutex<HashMap<Line, Channel>>,
    heard: Mutex<BTreeMap<u64, Instant>>,
    /// Nodes that take no entries, and why. They answer, and can do nothing of what they are told.
    full: Mutex<BTreeMap<u64, String>>,
    /// Who last led this node, and when it was last heard of.
    led: Mutex<Option<(u64, Instant)>>,
}

impl Peers {
    pub(crate) fn new(node_id: u64, credentials: Option<Credentials>) -> Self {
        Self {
            shared: Arc::new(Shared {
                node_id,
                credentials,
                cluster_id: Mutex::default(),
                channels: Mutex::default(),
                heard: Mutex::default(),
                full: Mutex::default(),
                led: Mutex::default(),
            }),
        }
    }

    pub(crate) fn join(&self, cluster_id: &str) {
        cluster_id.clone_into(&mut self.shared.cluster_id.lock().expect("no holder panics"));
    }

    /// Empty: none yet.
    pub(crate) fn cluster_id(&self) -> String {
        let cluster_id = self.shared.cluster_id.lock().expect("no holder panics");
        cluster_id.clone()
    }

    pub(crate) fn envelope(&self, to: u64) -> Option<pb::Envelope> {
        Some(pb::Envelope {
            cluster_id: self.cluster_id(),
            to,
            from: self.shared.node_id,
        })
    }

    /// A connection to an address, `host:port`; made when it is first used, and again when it was lost.
    pub(crate) fn channel(&self, address: &str) -> Result<Channel, tonic::transport::Error> {
        self.channel_as(address, None, Lane::Words)
    }

    /// Another connection to it: what is short does not wait behind what is large.
    pub(crate) fn bulk_channel(&self, address: &str) -> Result<Channel, tonic::transport::Error> {
        self.channel_as(address, None, Lane::Bulk)
    }

    /// The same, to whoever shows a certificate for this name instead of the host.
    fn channel_as(
        &self,
        address: &str,
        name: Option<&str>,
        lane: Lane,
    ) -> Result<Channel, tonic::transport::Error> {
        let line = (address.to_owned(), name.map(str::to_owned), lane);
        let mut channels = self.shared.channels.lock().expect("no holder panics");
        if let Some(channel) = channels.get(&line) {
            return Ok(channel.clone());
        }
        let scheme = match self.shared.credentials {
            Some(_) => "https",
            None => "http",
        };
        let mut endpoint = Endpoint::from_shared(format!("{scheme}://{address}"))?
            .connect_timeout(CONNECT_WITHIN)
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(2 * WINDOW_BYTES)
            .http2_keep_alive_interval(ALIVE_WITHIN / 2)
            .keep_alive_timeout(ALIVE_WITHIN)
            .keep_alive_while_idle(true);
        if let Some(credentials) = &self.shared.credentials {
            let mut tls = credentials.client();
            if let Some(name) = name {
                tls = tls.domain_name(name);
            }
            endpoint = endpoint.tls_config(tls)?;
        }
        let channel = endpoint.connect_with_connector_lazy(tcp(CONNECT_WITHIN));
        channels.insert(line, channel.clone());
        Ok(channel)
    }

    pub(crate) fn client(&self, address: &str) -> Result<Client, tonic::transport::Error> {
        self.client_as(address, None)
    }

    pub(crate) fn client_as(
        &self,
        address: &str,
        name: Option<&str>,
    ) -> Result<Client, tonic::transport::Error> {
        Ok(
            PeerServiceClient::new(self.channel_as(address, name, Lane::Words)?)
                .max_decoding_message_size(MESSAGE_BYTES_MAX)
                .max_encoding_message_size(MESSAGE_BYTES_MAX),
        )
    }

    /// Notes what a node answered. One whose disk takes nothing answers heartbeats all the same: it counts as silent until
    /// it has written what it was sent.
    fn has_answered<T>(&self, node: u64, answer: &Result<T, tonic::Status>, is_written: bool) {
        let mut full = self.shared.full.lock().expect("no holder panics");
        match answer {
            Ok(_) => {
                if is_written {
                    full.remove(&node);
                }
                if !full.contains_key(&node) {
                    let mut heard = self.shared.heard.lock().expect("no holder panics");
                    heard.insert(node, Instant::now());
                }
            }
            Err(status) if status.code() == tonic::Code::ResourceExhausted => {
                full.insert(node, status.message().to_owned());
            }
            Err(_) => {}
        }
    }

    /// Why a node takes no entries, if it does not.
    pub(crate) fn why_full(&self, node: u64) -> Option<String> {
        let full = self.shared.full.lock().expect("no holder panics");
        full.get(&node).cloned()
    }

    fn is_led_by(&self, node: u64) {
        let mut led = self.shared.led.lock().expect("no holder panics");
        *led = Some((node, Instant::now()));
    }

    pub(crate) fn led(&self) -> Option<(u64, Instant)> {
        *self.shared.led.lock().expect("no holder panics")
    }

    /// When a node last answered this one.
    pub(crate) fn heard(&self, node: u64) -> Option<Instant> {
        let heard = self.shared.heard.lock().expect("no holder panics");
        heard.get(&node).copied()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use downriver_testkit::certificates::Authority;

    use super::*;

    /// As a node does that is frozen, or of which nothing arrives any more.
    #[tokio::test]
    async fn a_node_that_accepts_and_says_nothing_does_not_hold_up_who_calls() {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::new(folder.path(), "nodes").unwrap();
        let node = authority.issue("localhost").unwrap();
        let tls = PeerTls {
            ca: authority.file(),
            certificate: node.certificate,
            key: node.key,
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let mut held = Vec::new();
            loop {
                held.push(listener.accept().await);
            }
        });
        for credentials in [Some(Credentials::read(&tls).unwrap()), None] {
            let over = credentials.as_ref().map_or("TCP", |_| "TLS");
            let peers = Peers::new(1, credentials);
            let mut client = peers.client(&address.to_string()).unwrap();
            let asked = client.read_index(pb::ReadIndexRequest::default());
            let answer = tokio::time::timeout(10 * (CONNECT_WITHIN + ALIVE_WITHIN), asked).await;
            assert!(
                answer.is_ok_and(|answer| answer.is_err()),
                "over {over} it is waited for without end"
            );
        }
    }
}
