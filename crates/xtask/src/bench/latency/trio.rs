//! Three nodes on this machine over a real object store, and what each of them is.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use downriver_testkit::{Cluster, Seaweed, resources};

const NODES: usize = 3;

/// Fields are dropped in this order: the nodes first.
pub(super) struct Trio {
    pub(super) cluster: Cluster,
    store: Seaweed,
    _folder: tempfile::TempDir,
}

/// Each another node, by its index.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cast {
    pub(super) owner: usize,
    pub(super) leader: usize,
    pub(super) third: usize,
}

impl Trio {
    pub(super) async fn start(binary: &Path) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("downriver-bench-")
            .tempdir()?;
        let store = Seaweed::start().await?;
        let binary = binary.to_path_buf();
        Ok(Self {
            cluster: Cluster::start_of(binary, folder.path(), &store, NODES).await?,
            store,
            _folder: folder,
        })
    }

    /// Lets another node lead than the source's owner.
    pub(super) async fn cast(&self) -> Result<Cast> {
        let (owner, leader) = self.look().await?;
        if owner == leader {
            let next = format!("n{}", (owner + 1) % NODES + 1);
            let asked = ["cluster", "transfer-leader", next.as_str()];
            self.cluster.nodes[0].ok(&asked).await?;
        }
        let (owner, leader) = self.look().await?;
        ensure!(owner != leader, "n{} owns and leads", owner + 1);
        let third = (0..NODES).find(|node| *node != owner && *node != leader);
        let third = third.context("there are three")?;
        Ok(Cast {
            owner,
            leader,
            third,
        })
    }

    /// Who owns the source, and who leads.
    pub(super) async fn look(&self) -> Result<(usize, usize)> {
        let task = format!("source/{}", resources::SOURCE);
        let owner = self.cluster.owner(0, &task).await?;
        Ok((owner, self.cluster.leader(0).await?))
    }

    /// Of the nodes and of the store.
    pub(super) fn pids(&self) -> Result<Vec<u32>> {
        let nodes = self.cluster.nodes.iter().map(|node| node.pid());
        let store = self.store.pid().context("the store does not run");
        nodes.chain([store]).collect()
    }

    /// What they have is not needed any more, and handing it over would take its time.
    pub(super) fn end(mut self) {
        for node in &mut self.cluster.nodes {
            node.kill();
        }
    }
}
