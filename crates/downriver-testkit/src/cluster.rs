//! Several nodes as processes, over one object store.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::certificates::{Authority, ServerCertificate};
use crate::port::Port;
use crate::seaweed::{self, Seaweed};
use crate::{Daemon, host};

/// How long a cluster may take to agree on something.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where nodes listen for each other, and under which port of this host each is reached by the others.
pub struct Peers {
    listen: Vec<Port>,
    reached: Vec<u16>,
}

impl Peers {
    pub fn reserve(count: usize) -> Result<Self> {
        let listen: Vec<Port> = (0..count).map(|_| Port::reserve()).collect::<Result<_>>()?;
        let reached = listen.iter().map(Port::number).collect();
        Ok(Self { listen, reached })
    }

    /// Where the nodes listen.
    pub fn ports(&self) -> Vec<u16> {
        self.listen.iter().map(Port::number).collect()
    }

    /// The same nodes, each reached through what listens on these ports.
    #[must_use]
    pub fn behind(mut self, ports: Vec<u16>) -> Self {
        self.reached = ports;
        self
    }
}

/// What nodes run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Machines {
    Ordinary,
    /// Each with a disk and a clock of its own that can be hurt.
    ToHurt,
}

/// Nodes n1, n2, ... with one authority's certificate for each other.
pub struct Cluster {
    pub nodes: Vec<Daemon>,
    binary: PathBuf,
    machines: Machines,
    peers: Peers,
    certificate: ServerCertificate,
    authority: Authority,
    folder: PathBuf,
    endpoint: String,
}

impl Cluster {
    /// As many nodes of a binary that the caller names, started and with a leader; segments go to the bucket's folder `log`.
    pub async fn start_of(
        binary: PathBuf,
        folder: &Path,
        store: &Seaweed,
        count: usize,
    ) -> Result<Self> {
        let peers = Peers::reserve(count)?;
        let endpoint = store.s3_endpoint();
        Self::start_all(binary, folder, &endpoint, peers, Machines::Ordinary).await
    }

    /// Nodes of the workspace's binary, where their ports, their machines and the store's endpoint are given.
    pub async fn start_with(
        folder: &Path,
        endpoint: &str,
        peers: Peers,
        machines: Machines,
    ) -> Result<Self> {
        Self::start_all(host::downriver_binary()?, folder, endpoint, peers, machines).await
    }

    async fn start_all(
        binary: PathBuf,
        folder: &Path,
        endpoint: &str,
        peers: Peers,
        machines: Machines,
    ) -> Result<Self> {
        let authority = Authority::new(&folder.join("authority"), "nodes")?;
        let certificate = authority.issue("localhost")?;
        let count = peers.listen.len();
        let mut cluster = Self {
            nodes: Vec::new(),
            binary,
            machines,
            peers,
            certificate,
            authority,
            folder: folder.to_path_buf(),
            endpoint: endpoint.to_owned(),
        };
        for index in 0..count {
            let mut node = cluster.node(index)?;
            node.launch()?;
            cluster.nodes.push(node);
        }
        for node in &mut cluster.nodes {
            node.until_ready(PATIENCE).await?;
        }
        Ok(cluster)
    }

    /// One more node, which is not running yet and knows the others.
    pub fn add(&mut self) -> Result<&mut Daemon> {
        let port = Port::reserve()?;
        self.peers.reached.push(port.number());
        self.peers.listen.push(port);
        let node = self.node(self.nodes.len())?;
        self.nodes.push(node);
        Ok(self.nodes.last_mut().expect("it was pushed"))
    }

    /// Where others reach a node, by its index.
    pub fn address(&self, index: usize) -> String {
        format!("localhost:{}", self.peers.reached[index])
    }

    /// Forgets the last node, which has left, and its folder: one that is added later is another, of the same name.
    pub fn forget_last(&mut self) -> Result<()> {
        drop(self.nodes.pop());
        self.peers.listen.pop();
        self.peers.reached.pop();
        fs::remove_dir_all(self.folder_of(self.nodes.len()))?;
        Ok(())
    }

    fn folder_of(&self, index: usize) -> PathBuf {
        self.folder.join(format!("n{}", index + 1))
    }

    /// A node of this cluster, which is not running yet.
    fn node(&self, index: usize) -> Result<Daemon> {
        let folder = self.folder_of(index);
        fs::create_dir_all(&folder)?;
        let address = |index| format!("{:?}", self.address(index));
        let nodes: Vec<String> = (0..self.peers.reached.len()).map(address).collect();
        let config = format!(
            "name = \"n{}\"\ndata = {:?}\ngrpc = \"127.0.0.1:0\"\nhttp = \"127.0.0.1:0\"\n\
             [store]\nurl = \"s3://{}/log\"\ns3 = {{ endpoint = {:?}, path_style = true }}\n\
             [cluster]\nlisten = \"127.0.0.1:{}\"\naddress = {}\nnodes = [{}]\n\
             [cluster.tls]\nca = {:?}\ncertificate = {:?}\nkey = {:?}\n",
            index + 1,
            folder.join("data"),
            seaweed::BUCKET,
            self.endpoint,
            self.peers.listen[index].number(),
            address(index),
            nodes.join(", "),
            self.authority.file(),
            self.certificate.certificate,
            self.certificate.key,
        );
        let file = folder.join("node.toml");
        fs::write(&file, config)?;
        let node = Daemon::of_cluster(self.binary.clone(), &folder, file);
        match self.machines {
            Machines::Ordinary => Ok(node),
            Machines::ToHurt => node.with_disk_and_clock_to_hurt(),
        }
    }

    /// The nodes as one of them lists them.
    pub async fn listed(&self, by: usize) -> Result<Vec<Value>> {
        let nodes = self.nodes[by].json(&["get", "nodes", "-o", "json"]).await?;
        Ok(nodes.as_array().context("a list of nodes")?.clone())
    }

    /// Which node leads, by its index.
    pub async fn leader(&self, asked: usize) -> Result<usize> {
        let mut leader = None;
        host::until("a leader", PATIENCE, async || {
            let listed = self.listed(asked).await?;
            let found = listed.iter().find(|node| node["state"] == "leader");
            leader = found.and_then(|node| index_of(&node["name"]));
            Ok(leader.is_some())
        })
        .await?;
        leader.context("there is one")
    }

    /// Which node runs a task, such as "source/shop", by its index.
    pub async fn owner(&self, asked: usize, task: &str) -> Result<usize> {
        let mut owner = None;
        host::until("an owner", PATIENCE, async || {
            let listed = self.listed(asked).await?;
            let runs = |node: &&Value| {
                let runs = node["runs"].as_array();
                node["state"] != "unreachable"
                    && runs.is_some_and(|runs| runs.iter().any(|run| run == task))
            };
            owner = listed
                .iter()
                .find(runs)
                .and_then(|node| index_of(&node["name"]));
            Ok(owner.is_some())
        })
        .await?;
        owner.context("there is one")
    }
}

fn index_of(name: &Value) -> Option<usize> {
    let number: usize = name.as_str()?.strip_prefix('n')?.parse().ok()?;
    number.checked_sub(1)
}
