//! A lake of one table in a folder, its writers, and a comparison with the rows that it should have.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, ensure};
use downriver_event::change::ChangePolicies;
use downriver_event::{BlockBuilder, EndedIncarnations, Epoch, Incarnation, Offset, TableSchema};
use downriver_lake::catalog::{BuiltinCatalog, Catalog, TableName};
use downriver_lake::{Digest, LakeError, TableConfig, TableScan, TableWriter, Warehouse};
use downriver_log::store::LocalStore;

use super::Memory;

#[derive(Debug)]
pub(crate) struct Lake {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) catalog: Arc<BuiltinCatalog>,
    pub(crate) pointers: Arc<Memory>,
    pub(crate) warehouse: Warehouse,
    pub(crate) name: TableName,
    owners: AtomicU64,
}

impl Lake {
    pub(crate) fn new(table: &str) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let store = LocalStore::open(&folder.path().join("warehouse"))?;
        let warehouse = Warehouse::open(Arc::new(store), &folder.path().join("spool"))?;
        let pointers = Arc::new(Memory::default());
        let catalog = BuiltinCatalog::new("lake", warehouse.clone(), pointers.clone());
        Ok(Self {
            catalog: Arc::new(catalog),
            pointers,
            warehouse,
            name: TableName {
                namespace: "shop_public".into(),
                table: table.into(),
            },
            folder,
            owners: AtomicU64::new(0),
        })
    }

    pub(crate) fn index(&self) -> PathBuf {
        self.folder.path().join("index")
    }

    pub(crate) fn config(&self, epoch: u64) -> TableConfig {
        TableConfig {
            name: self.name.clone(),
            pipeline: "p".into(),
            stream: "shop/1".into(),
            incarnation: Incarnation(1),
            ended: EndedIncarnations::default(),
            epoch: Epoch(epoch),
            start: Offset(0),
            claim: None,
            committed: None,
            schema_changes: ChangePolicies::default(),
            folder: self.index(),
        }
    }

    pub(crate) async fn open(
        &self,
        config: TableConfig,
        versions: &[Arc<TableSchema>],
    ) -> Result<TableWriter, LakeError> {
        let (catalog, warehouse) = (self.catalog.clone(), self.warehouse.clone());
        TableWriter::open(catalog, warehouse, config, versions).await
    }

    /// For an owner after all those before it.
    pub(crate) fn config_of_next(&self) -> TableConfig {
        self.config(1 + self.owners.fetch_add(1, Ordering::Relaxed))
    }

    /// The table's rows are exactly those that `fill` puts into a transaction.
    pub(crate) async fn ensure_is(
        &self,
        shape: Arc<TableSchema>,
        fill: impl FnOnce(&mut BlockBuilder),
    ) -> Result<()> {
        let loaded = self.catalog.load(&self.name).await?.context("no table")?;
        let snapshot = loaded.metadata.current_snapshot_id();
        let snapshot = snapshot.context("no snapshot")?;
        let warehouse = self.warehouse.clone();
        let scan = TableScan::open(&*self.catalog, warehouse, &self.name, snapshot, shape).await?;
        let mut lake: Vec<Digest> = Vec::new();
        scan.digests(|digest, _| {
            lake.push(digest);
            Ok(())
        })
        .await?;
        let mut builder = BlockBuilder::new();
        builder.begin("model".into(), 0);
        fill(&mut builder);
        let mut wanted: Vec<Digest> = Vec::new();
        if let Some((_, block)) = builder.cut_and_read() {
            for group in &block.groups {
                scan.digest_group(group, |digest, _| {
                    wanted.push(digest);
                    Ok(())
                })?;
            }
        }
        ensure!(
            scan.rows() == lake.len() as u64,
            "the table counts {} rows",
            scan.rows()
        );
        lake.sort_unstable();
        wanted.sort_unstable();
        let (has, wants) = (lake.len(), wanted.len());
        ensure!(
            lake == wanted,
            "the table is not the model: {has} rows, {wants} wanted"
        );
        Ok(())
    }
}
