//! What somebody does to the table who is not its owner.

use std::collections::HashMap;

use downriver_lake::catalog::Catalog;
use iceberg::spec::{Operation, Snapshot, SnapshotReference, SnapshotRetention, Summary};
use iceberg::{TableRequirement, TableUpdate};

use super::World;
use crate::far::table_name;
use crate::owner::Mind;

impl World {
    /// Has old snapshots expire, from the first time on that there is a table.
    pub(super) async fn forget(&mut self) {
        let Some(now) = self.history.now().await.filter(|_| self.is_forgetful) else {
            return;
        };
        self.is_forgetful = false;
        let of_history =
            |(name, value): (&str, &str)| (format!("history.expire.{name}"), value.to_owned());
        // Younger than now by an hour, which no clock makes of them.
        let updates = [
            ("max-snapshot-age-ms", "-3600000"),
            ("min-snapshots-to-keep", "2"),
        ];
        let updates = updates.map(of_history).into();
        self.change(now.uuid(), vec![TableUpdate::SetProperties { updates }])
            .await;
        self.faults.count("forgetful tables");
    }

    /// A commit of somebody else.
    async fn change(&self, uuid: uuid::Uuid, updates: Vec<TableUpdate>) {
        let same = vec![TableRequirement::UuidMatch { uuid }];
        let done = self.near.commit(&table_name(), same, updates).await;
        done.unwrap();
    }

    /// Somebody else rolls the table back, or commits. False: it would mean nothing now.
    pub(super) async fn interfere(&mut self, rolls_back: bool) -> bool {
        let Some(now) = self.history.now().await else {
            return false;
        };
        let Some(current) = now.current_snapshot() else {
            return false;
        };
        let mut updates = Vec::new();
        let main = if rolls_back {
            // An owner that is asleep may follow any snapshot, and one whose snapshot is the current one again cannot
            // be told from the right one by a catalog.
            self.owners
                .retain(|(_, mind)| matches!(mind, Mind::Awake(_)));
            let mut bases = self.faults.late_bases();
            bases.extend(self.owners.iter().filter_map(|(owner, _)| owner.base));
            let to = |snapshot: &Snapshot| {
                let summary = &snapshot.summary().additional_properties;
                summary["downriver.to"].clone()
            };
            let older = now
                .snapshots()
                .filter(|s| to(s) != to(current) && !bases.contains(&s.snapshot_id()));
            let Some(older) = older.max_by_key(|s| s.sequence_number()) else {
                return false;
            };
            older.snapshot_id()
        } else {
            let id = 1 + current.snapshot_id() / 2;
            let snapshot = Snapshot::builder()
                .with_snapshot_id(id)
                .with_parent_snapshot_id(Some(current.snapshot_id()))
                .with_sequence_number(now.last_sequence_number() + 1)
                .with_timestamp_ms(now.last_updated_ms())
                .with_manifest_list(current.manifest_list())
                .with_summary(Summary {
                    operation: Operation::Append,
                    additional_properties: HashMap::new(),
                })
                .with_schema_id(now.current_schema_id())
                .build();
            updates.push(TableUpdate::AddSnapshot { snapshot });
            id
        };
        updates.push(TableUpdate::SetSnapshotRef {
            ref_name: "main".into(),
            reference: SnapshotReference::new(main, SnapshotRetention::branch(None, None, None)),
        });
        self.change(now.uuid(), updates).await;
        self.faults.end_strangers();
        self.history.take_foreign(main);
        self.is_foreign = true;
        let what = if rolls_back {
            "a rollback"
        } else {
            "a foreign commit"
        };
        self.faults.count(what);
        self.say(what);
        true
    }
}
