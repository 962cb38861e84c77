//! What the tests of clusters share: nodes over one object store, and a shop in PostgreSQL that they capture.

pub mod bank;
mod branch;
mod calls;
mod disks;
pub mod failover;
pub mod faults;
mod gap;
mod members;
pub mod round;
mod subscriber;
pub mod world;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use downriver_api::log::v1::log_service_client::LogServiceClient;
use downriver_testkit::cluster::{Machines, Peers};
use downriver_testkit::readers::{self, Lake};
use downriver_testkit::{Cluster, Daemon, Postgres, Seaweed, host, resources, shop};
use tonic::transport::Channel;

pub use gap::Gap;
pub use world::World;

/// How long the slowest machine of ours may take to catch up.
pub const CATCH_UP: Duration = Duration::from_secs(120);

/// Everything of one test under one folder. Fields are dropped in this order: the nodes first.
pub struct ClusteredShop {
    pub cluster: Cluster,
    pub postgres: Postgres,
    pub store: Seaweed,
    pub folder: tempfile::TempDir,
}

/// The shop's pipeline, with its tables shared out over this many nodes.
pub async fn share_out(node: &Daemon, nodes: u32) -> Result<()> {
    let yaml = format!("{}nodes: {nodes}\n", resources::pipeline("1s"));
    // A cluster that has just begun does not know yet which forms all of its nodes read.
    host::until("every node to know shares", CATCH_UP, async || {
        let applied = node.try_apply(&yaml).await?;
        let is_early = applied.text().contains("DR-1114");
        ensure!(applied.code == Some(0) || is_early, "{}", applied.text());
        Ok(!is_early)
    })
    .await
}

impl ClusteredShop {
    /// Three nodes that know nothing yet, beside the shop's tables.
    pub async fn open(scale: u32) -> Result<Self> {
        Self::open_on(Machines::Ordinary, scale).await
    }

    /// The same on such machines.
    pub async fn open_on(machines: Machines, scale: u32) -> Result<Self> {
        let postgres = Postgres::start().await?;
        shop::create(&postgres).await?;
        shop::fill(&postgres, scale).await?;
        let store = Seaweed::start().await?;
        let folder = tempfile::Builder::new()
            .prefix("downriver-fault-")
            .tempdir()?;
        let (peers, endpoint) = (Peers::reserve(3)?, store.s3_endpoint());
        let cluster = Cluster::start_with(folder.path(), &endpoint, peers, machines).await?;
        Ok(Self {
            cluster,
            postgres,
            store,
            folder,
        })
    }

    /// Captures all tables of `public` and delivers them to a lake in the bucket; asked of one of the nodes.
    pub async fn deliver(&self, asked: usize) -> Result<()> {
        let yaml = [
            resources::source(&self.postgres, &["public.*"], &[]),
            resources::sink_in_bucket(&self.store.s3_endpoint()),
            resources::pipeline("1s"),
        ];
        self.cluster.nodes[asked].apply(&yaml.concat()).await
    }

    /// The log service of one of the nodes.
    pub async fn log_client(&self, asked: usize) -> Result<LogServiceClient<Channel>> {
        let address = &self.cluster.nodes[asked].addresses()?.grpc;
        Ok(LogServiceClient::connect(format!("http://{address}")).await?)
    }

    /// The log's next offset, as one of the nodes knows it.
    pub async fn tail(&self, asked: usize) -> Result<u64> {
        let source = self.cluster.nodes[asked]
            .describe("source", resources::SOURCE)
            .await?;
        source["next_offset"].as_u64().context("the next offset")
    }

    /// Waits until all is delivered, and compares the lake with the source; asked of one of the nodes.
    pub async fn ensure_equal(&self, asked: usize) -> Result<()> {
        let node = &self.cluster.nodes[asked];
        node.wait(CATCH_UP).await?;
        let lake = Lake::builtin_on(node, &self.store)?;
        readers::ensure_equal(&self.postgres, &lake, &shop::TABLES)
            .await
            .context("the lake")?;
        Ok(())
    }
}
