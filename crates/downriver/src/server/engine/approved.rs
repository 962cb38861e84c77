//! Which changes of a pipeline's tables are let through: a replicated record, so it outlasts the node.
//!
//! `{ table's id: version of its schema }`: the changes up to that version, and no later one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use downriver_event::TableId;
use downriver_event::problem::Problem;
use downriver_log::Log as _;
use downriver_pipeline::delivery::held_version;
use serde_json::json;

use super::{NodeEngine, stored, unavailable};

pub(super) fn approved_key(pipeline: &str) -> String {
    format!("approved/{pipeline}")
}

fn record(approved: &BTreeMap<TableId, u32>) -> Bytes {
    let approved = approved.iter().map(|(id, version)| (id.0, *version));
    stored::encode(&json!(approved.collect::<BTreeMap<u32, u32>>()))
}

/// A record that cannot be read lets nothing through: the node does not start with one of another format.
fn read(record: Option<&[u8]>) -> BTreeMap<TableId, u32> {
    let stored = record.and_then(|record| stored::decode(record).ok());
    let approved = stored.and_then(|stored| serde_json::from_value(stored).ok());
    let approved: BTreeMap<u32, u32> = approved.unwrap_or_default();
    let approved = approved.into_iter();
    approved
        .map(|(id, version)| (TableId(id), version))
        .collect()
}

impl NodeEngine {
    pub(super) fn approved(&self, pipeline: &str) -> BTreeMap<TableId, u32> {
        read(self.node.record(&approved_key(pipeline)).as_deref())
    }

    /// Lets the changes through that these tables wait for now.
    pub(super) async fn approve_held(
        &self,
        pipeline: &str,
        tables: &BTreeSet<String>,
    ) -> Result<(), Problem> {
        let source = self.pipeline_spec(pipeline)?.source;
        let state = self.node.state(&source);
        let schemas = state.map(|state| Arc::clone(&state.schemas));
        let schemas = schemas.unwrap_or_default();
        // One that is renamed still has the name before.
        let is_named = |id: TableId| {
            let mut versions = schemas.range((id, 0)..=(id, u32::MAX));
            versions.any(|(_, schema)| tables.contains(&schema.qualified_name()))
        };
        let stored = self.node.sink_tables(pipeline).into_iter();
        let held: Vec<(TableId, u32)> = stored
            .filter(|(id, _)| is_named(*id))
            .filter_map(|(id, table)| Some((id, held_version(&table.detail)?)))
            .collect();
        if held.is_empty() {
            return Ok(());
        }
        let mut approved = self.approved(pipeline);
        for (id, version) in held {
            let known = approved.entry(id).or_default();
            *known = version.max(*known);
        }
        let stored = self
            .node
            .put_record(&approved_key(pipeline), Some(record(&approved)))
            .await;
        stored.map_err(|error| unavailable(&error))
    }
}

#[cfg(test)]
mod tests {
    use downriver_testkit::fixture;

    use super::*;

    #[test]
    fn a_record_of_format_1_is_read_as_it_was_stored() {
        let approved = BTreeMap::from([(TableId(16_401), 3), (TableId(u32::MAX), 1)]);
        let write = || record(&approved).to_vec();
        let stored = fixture::bytes("approved-v1.json", write).expect("it is kept");
        assert_eq!(read(Some(&stored)), approved);
    }

    #[test]
    fn what_cannot_be_read_lets_nothing_through() {
        assert_eq!(read(None), BTreeMap::new());
        assert_eq!(read(Some(br#"{"format":2,"of":{"1":9}}"#)), BTreeMap::new());
    }
}
