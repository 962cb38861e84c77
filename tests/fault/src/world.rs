//! What the rounds are played on: three nodes over real servers, with every connection through a proxy that can hurt it.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use downriver_testkit::cluster::{Machines, Peers};
use downriver_testkit::link::{Link, Mode};
use downriver_testkit::mysql::Product;
use downriver_testkit::{Cluster, Postgres, Seaweed, host, resources, shop};

use crate::bank;
use crate::branch::Branch;
use crate::members::Guest;
use crate::share_out;

pub const NODES: usize = 3;
/// With one that comes and goes.
pub const SEATS: usize = NODES + 1;
pub const SOURCE: &str = "source/shop";
/// Of the pipeline's tables; a branch's pipeline is one.
const SHARES: u32 = 3;

const ANSWER_WITHIN: Duration = Duration::from_secs(2);
const UP_WITHIN: Duration = Duration::from_secs(60);

/// Everything under one folder. Fields are dropped in this order: the nodes first.
pub struct World {
    pub cluster: Cluster,
    /// The last of the cluster's nodes, while there is one more than usual.
    pub(crate) guest: Option<Guest>,
    /// Nodes that may end by themselves a little later: they were told to stop, or their disks were hurt.
    pub(crate) may_end: BTreeSet<usize>,
    pub links: Links,
    pub postgres: Postgres,
    /// A second source, if the world has one.
    pub branch: Option<Branch>,
    pub store: Seaweed,
    pub folder: tempfile::TempDir,
}

/// What nodes connect through.
pub struct Links {
    /// In front of each node: the others call.
    pub nodes: Vec<Link>,
    pub database: Link,
    pub store: Link,
    pub branch: Option<Link>,
}

impl Links {
    fn all(&self) -> impl Iterator<Item = &Link> {
        let others = [&self.database, &self.store];
        self.nodes.iter().chain(others).chain(&self.branch)
    }

    /// Lets everything pass.
    pub fn heal(&self) {
        for link in self.all() {
            for caller in 0..SEATS {
                link.set(caller, Mode::Pass);
            }
        }
    }
}

impl World {
    /// Three nodes that deliver a shop and a bank into a lake, caught up.
    pub async fn open() -> Result<Self> {
        Self::open_beside(None).await
    }

    /// The same with a branch of the bank in MySQL or MariaDB.
    pub async fn open_with_branch(product: Product) -> Result<Self> {
        Self::open_beside(Some(Branch::open(product).await?)).await
    }

    async fn open_beside(branch: Option<Branch>) -> Result<Self> {
        let postgres = Postgres::start().await?;
        shop::create(&postgres).await?;
        shop::fill(&postgres, 50).await?;
        bank::create(&postgres).await?;
        let store = Seaweed::start().await?;
        let folder = tempfile::Builder::new()
            .prefix("downriver-rounds-")
            .tempdir()?;
        let peers = Peers::reserve(NODES)?;
        let mut nodes = Vec::new();
        for port in peers.ports() {
            nodes.push(Link::start(port, SEATS).await?);
        }
        let branch_link = match &branch {
            Some(branch) => Some(Link::start(branch.mysql.port(), SEATS).await?),
            None => None,
        };
        let links = Links {
            branch: branch_link,
            database: Link::start(postgres.port(), SEATS).await?,
            store: Link::start(port_of(&store.s3_endpoint())?, SEATS).await?,
            nodes,
        };
        let reached = links.nodes.iter().map(Link::port).collect();
        let endpoint = format!("http://127.0.0.1:{}", links.store.port());
        let peers = peers.behind(reached);
        let cluster =
            Cluster::start_with(folder.path(), &endpoint, peers, Machines::ToHurt).await?;
        let world = Self {
            cluster,
            guest: None,
            may_end: BTreeSet::new(),
            links,
            postgres,
            branch,
            store,
            folder,
        };
        world.know_callers();
        let here = format!(":{}/", world.postgres.port());
        let through = format!(":{}/", world.links.database.port());
        let url = world.postgres.source_url().replace(&here, &through);
        let yaml = [
            resources::source_at(&url, &["public.*"], &[]),
            resources::sink_in_bucket(&endpoint),
            resources::pipeline("1s"),
        ];
        world.cluster.nodes[0].apply(&yaml.concat()).await?;
        share_out(&world.cluster.nodes[0], SHARES).await?;
        if let (Some(branch), Some(link)) = (&world.branch, &world.links.branch) {
            let yaml = branch.resources(link.port());
            world.cluster.nodes[0].apply(&yaml).await?;
        }
        world.cluster.nodes[0].wait(Duration::from_secs(60)).await?;
        Ok(world)
    }

    /// Tells the links which processes the nodes are now.
    pub fn know_callers(&self) {
        for (index, node) in self.cluster.nodes.iter().enumerate() {
            for link in self.links.all() {
                link.is(index, node.pid().ok());
            }
        }
    }

    /// A node that is up and not frozen.
    pub async fn some_node(&mut self) -> Result<usize> {
        for index in 0..NODES {
            let node = &mut self.cluster.nodes[index];
            if !node.is_running() {
                continue;
            }
            // One that is frozen accepts connections, and says nothing.
            let answer = tokio::time::timeout(ANSWER_WITHIN, node.run(&["get", "nodes"])).await;
            if answer.is_ok_and(|answer| answer.is_ok_and(|answer| answer.code == Some(0))) {
                return Ok(index);
            }
        }
        anyhow::bail!("no node answers")
    }

    /// Lets everything pass, starts every node that is not running, and sees a guest out.
    pub async fn heal(&mut self) -> Result<()> {
        self.links.heal();
        if self.postgres.pid().is_none() {
            self.postgres.start_again().await?;
        }
        if let Some(branch) = &mut self.branch
            && branch.mysql.pid().is_none()
        {
            branch.mysql.start_again().await?;
        }
        for (index, node) in self.cluster.nodes.iter_mut().enumerate() {
            if let Some(disk) = node.disk() {
                disk.make_room()?;
            }
            if let Some(board) = node.board() {
                board.heal()?;
            }
            if node.is_running() {
                node.thaw()?;
            } else if index < NODES {
                node.kill();
                node.launch()?;
            }
        }
        self.know_callers();
        for index in 0..NODES {
            self.until_ready(index).await?;
        }
        self.see_out().await.context("the guest")?;
        self.may_end.clear();
        self.know_callers();
        Ok(())
    }

    async fn until_ready(&mut self, index: usize) -> Result<()> {
        let node = &mut self.cluster.nodes[index];
        if !self.may_end.contains(&index) {
            return node.until_ready(UP_WITHIN).await;
        }
        host::until("the node to be ready", UP_WITHIN, async || {
            if !node.is_running() {
                node.kill();
                node.launch()?;
            }
            node.is_ready().await
        })
        .await
        .with_context(|| format!("n{}, which might end", index + 1))
    }

    /// Keeps what a failed round left.
    pub fn keep(&self, to: &Path) -> Result<()> {
        std::fs::create_dir_all(to)?;
        for (index, node) in self.cluster.nodes.iter().enumerate() {
            std::fs::copy(node.log(), to.join(format!("n{}.log", index + 1)))?;
        }
        let copied = std::process::Command::new("cp")
            .args(["-r"])
            .arg(self.folder.path())
            .arg(to)
            .status()?;
        ensure!(copied.success(), "the folder cannot be kept");
        Ok(())
    }
}

fn port_of(endpoint: &str) -> Result<u16> {
    let (_, port) = endpoint.rsplit_once(':').context("a port")?;
    Ok(port.parse()?)
}
