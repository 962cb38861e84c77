//! What the crates ask of each other and only the binary knows both sides of.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use downriver_cluster::{ControlError, Node};
use downriver_event::{Epoch, Offset, TableId};
use downriver_lake::catalog::builtin::{PointerError, Pointers};
use downriver_log::LogError;
use downriver_pipeline::delivery::SinkTables;

/// A pipeline's replicated progress.
pub(super) struct ReplicatedSinkTables(pub(super) Arc<Node>);

#[async_trait]
impl SinkTables for ReplicatedSinkTables {
    async fn open(&self, pipeline: &str, table: TableId) -> Result<(Epoch, Offset), LogError> {
        let state = self.0.open_sink_table(pipeline, table).await.map_err(unavailable)?;
        Ok((state.epoch, state.delivered))
    }

    async fn delivered(
        &self,
        pipeline: &str,
        table: TableId,
        epoch: Epoch,
        delivered: Offset,
    ) -> Result<(), LogError> {
        let stored = self.0.commit_sink_table(pipeline, table, epoch, delivered, Bytes::new()).await;
        stored.map_err(unavailable)
    }
}

fn unavailable(error: ControlError) -> LogError {
    LogError::Unavailable(error.to_string())
}

/// The table pointers of one sink's built-in catalog.
pub(super) struct ReplicatedPointers {
    pub(super) node: Arc<Node>,
    pub(super) catalog: String,
}

#[async_trait]
impl Pointers for ReplicatedPointers {
    async fn swap(
        &self,
        namespace: &str,
        table: &str,
        expected: Option<&str>,
        new: Option<&str>,
    ) -> Result<bool, PointerError> {
        let swap = downriver_cluster::PointerSwap {
            catalog: self.catalog.clone(),
            namespace: namespace.to_owned(),
            table: table.to_owned(),
            expected: expected.unwrap_or_default().to_owned(),
            metadata_location: new.unwrap_or_default().to_owned(),
        };
        match self.node.swap_pointers(vec![swap]).await {
            Ok(()) => Ok(true),
            Err(ControlError::Conflict { .. }) => Ok(false),
            Err(error) => Err(PointerError(error.to_string())),
        }
    }

    fn get(&self, namespace: &str, table: &str) -> Option<String> {
        self.node.pointer(&self.catalog, namespace, table)
    }

    fn list(&self) -> Vec<(String, String, String)> {
        self.node.pointers(&self.catalog)
    }
}
