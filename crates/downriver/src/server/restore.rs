//! A new cluster of a backup, while no node runs.

use anyhow::{Context as _, bail, ensure};
use downriver_cluster::{Backup, Restored};
use downriver_log::store;

use super::NodeOptions;

/// The store's backups, the oldest first.
///
/// # Errors
/// The store does not answer, or the file names none.
pub(crate) async fn backups(options: &NodeOptions) -> anyhow::Result<Vec<Backup>> {
    let store = store::open(store_of(options)?, &options.s3)?;
    Ok(downriver_cluster::backups(&*store).await?)
}

fn store_of(options: &NodeOptions) -> anyhow::Result<&str> {
    options.store.as_deref().context("the file names no store")
}

/// Fills the data folder of a node's file with a backup, that of a key or the newest.
///
/// # Errors
/// The folder is not empty, a cluster is up, or there is no such backup.
pub(crate) async fn run(options: NodeOptions, key: Option<&str>) -> anyhow::Result<Restored> {
    let store = store::open(store_of(&options)?, &options.s3)?;
    let Some(cluster) = &options.cluster else {
        bail!("the file is no cluster's");
    };
    std::fs::create_dir_all(&options.data)?;
    let _lock = super::lock(&options.data)?;
    let mut there = std::fs::read_dir(&options.data)?;
    let is_other = |entry: std::io::Result<std::fs::DirEntry>| {
        entry.map_or(true, |entry| entry.file_name() != super::LOCK)
    };
    ensure!(
        !there.any(is_other),
        "DR-1112: {} is not empty: a restore begins with an empty data folder",
        options.data.display()
    );
    let listens = cluster.listen.to_string();
    let address = cluster.address.as_deref().unwrap_or(&listens);
    let peers = (&cluster.seeds, cluster.tls.as_ref());
    let folder = options.data.join(super::NODE_FOLDER);
    Ok(downriver_cluster::restore(&folder, &*store, peers, address, key).await?)
}
