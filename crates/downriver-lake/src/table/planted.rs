//! What bugs on purpose do that one line cannot. In other builds nothing calls it.

use iceberg::spec::{MAIN_BRANCH, Snapshot, TableMetadata};
use iceberg::{TableRequirement, TableUpdate};

use super::TableWriter;
use crate::LakeError;
use crate::snapshot::Live;

impl TableWriter {
    /// Puts what lost on top of what won.
    pub(super) async fn rebase(
        &self,
        mut updates: Vec<TableUpdate>,
    ) -> Result<TableMetadata, LakeError> {
        let now = self.reload().await?;
        let uuid = now.uuid();
        let requirements = vec![
            TableRequirement::UuidMatch { uuid },
            TableRequirement::RefSnapshotIdMatch {
                r#ref: MAIN_BRANCH.into(),
                snapshot_id: now.current_snapshot_id(),
            },
        ];
        for update in &mut updates {
            if let TableUpdate::AddSnapshot { snapshot } = update {
                let id = snapshot.snapshot_id();
                *snapshot = Snapshot::builder()
                    .with_snapshot_id(id)
                    .with_parent_snapshot_id(now.current_snapshot_id())
                    .with_sequence_number(now.last_sequence_number() + 1)
                    .with_timestamp_ms(now.last_updated_ms())
                    .with_manifest_list(snapshot.manifest_list())
                    .with_summary(snapshot.summary().clone())
                    .with_schema_id(now.current_schema_id())
                    .build();
            }
        }
        let name = &self.config.name;
        let done = self.catalog.commit(name, requirements, updates).await?;
        Ok(done.metadata)
    }

    /// Deletes the data files that a commit was to add.
    pub(super) async fn delete_added(&self, after: &Live) -> Result<(), LakeError> {
        let is_added = |number: &u32| !self.live.files.contains_key(number);
        for (_, file) in after.files.iter().filter(|(number, _)| is_added(number)) {
            let key = self.warehouse.key(&file.path)?;
            self.warehouse.store().delete(key).await?;
        }
        Ok(())
    }
}
