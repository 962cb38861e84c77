//! The replicated state as a delivery and a lake ask for it.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use downriver_cluster::{ControlError, Node, PointerSwap};
use downriver_event::TableId;
use downriver_lake::catalog::{Pointer, PointerError, Pointers};
use downriver_log::Log as _;
use downriver_pipeline::delivery::{Progress, TableProgress};
use downriver_service::TableName;
use serde_json::Value;

use super::{NodeEngine, stored};

/// Progress of a pipeline, as one of its shares makes it.
pub(super) struct ReplicatedProgress {
    pub(super) node: Arc<Node>,
    pub(super) share: u32,
}

#[async_trait]
impl Progress for ReplicatedProgress {
    async fn open(&self, pipeline: &str, table: TableId) -> Result<TableProgress, String> {
        let opened = self.node.open_sink_table(pipeline, self.share, table).await;
        let state = opened.map_err(|error| error.to_string())?;
        Ok(TableProgress {
            epoch: state.epoch,
            delivered: state.delivered,
            detail: state.detail,
        })
    }

    async fn commit(
        &self,
        pipeline: &str,
        table: TableId,
        progress: TableProgress,
    ) -> Result<(), String> {
        let TableProgress {
            epoch,
            delivered,
            detail,
        } = progress;
        let committed = self
            .node
            .commit_sink_table(pipeline, table, epoch, delivered, detail)
            .await;
        committed.map_err(|error| error.to_string())
    }

    fn get(&self, pipeline: &str, table: TableId) -> Option<TableProgress> {
        let tables = self.node.sink_tables(pipeline).into_iter();
        let (_, state) = tables.into_iter().find(|(id, _)| *id == table)?;
        Some(TableProgress {
            epoch: state.epoch,
            delivered: state.delivered,
            detail: state.detail,
        })
    }
}

/// Pointers of built-in catalogs.
#[derive(Debug)]
pub(super) struct ReplicatedPointers(pub(super) Arc<Node>);

#[async_trait]
impl Pointers for ReplicatedPointers {
    fn get(&self, catalog: &str, namespace: &str, table: &str) -> Option<String> {
        self.0.pointer(catalog, namespace, table)
    }

    fn list(&self, catalog: &str) -> Vec<(String, String, String)> {
        self.0.pointers(catalog)
    }

    async fn swap(&self, swaps: Vec<Pointer>) -> Result<(), PointerError> {
        let swaps = swaps.into_iter().map(|pointer| PointerSwap {
            catalog: pointer.catalog,
            namespace: pointer.namespace,
            table: pointer.table,
            expected: pointer.expected,
            metadata_location: pointer.metadata_location,
        });
        match self.0.swap_pointers(swaps.collect()).await {
            Ok(()) => Ok(()),
            Err(ControlError::Conflict(reason)) => Err(PointerError::Conflict(reason)),
            Err(error) => Err(PointerError::Unknown(error.to_string())),
        }
    }
}

/// The record that tells one life of a source's stream from the next.
pub(super) fn stream_id_key(source: &str) -> String {
    format!("stream-id/{source}")
}

/// The record that tells one life of a pipeline from the next.
pub(super) fn pipeline_id_key(pipeline: &str) -> String {
    format!("pipeline-id/{pipeline}")
}

impl NodeEngine {
    /// Which life of the stream and of the pipeline this is.
    pub(super) async fn stream_id(
        &self,
        source: &str,
        pipeline: &str,
    ) -> Result<String, ControlError> {
        let stream = self.id_in(&stream_id_key(source)).await?;
        let pipeline = self.id_in(&pipeline_id_key(pipeline)).await?;
        Ok(format!("{stream}.{pipeline}"))
    }

    /// Made at first need.
    pub(super) async fn id_in(&self, key: &str) -> Result<String, ControlError> {
        let known = match self.node.record(key) {
            Some(known) => known,
            None => {
                let made = uuid::Uuid::new_v4().to_string();
                self.node
                    .record_or_put(key, stored::encode(&made.into()))
                    .await?
            }
        };
        let id = stored::decode(&known).and_then(|id| match id {
            Value::String(id) => Ok(id),
            _ => Err("is no id".into()),
        });
        id.map_err(|reason| ControlError::Invalid(format!("record {key:?} {reason}")))
    }

    /// Every table of a source that its log knows, under its newest name.
    pub(super) fn logged_tables(&self, source: &str) -> BTreeMap<TableId, TableName> {
        let Some(state) = self.node.state(source) else {
            return BTreeMap::new();
        };
        // Versions ascend, so that the newest wins.
        let schemas = state.schemas.iter().map(|((id, _), schema)| {
            let name = TableName {
                schema: schema.namespace.clone(),
                table: schema.name.clone(),
            };
            (*id, name)
        });
        schemas.collect()
    }
}
