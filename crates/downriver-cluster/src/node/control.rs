//! What is asked of the replicated state beside streams: resources, pointers, sink tables, groups, records.

use std::collections::BTreeSet;

use bytes::Bytes;
use downriver_api::cluster::v1::command::Kind as C;
use downriver_api::cluster::v1::command_reply::Kind as R;
use downriver_api::cluster::v1::{self as pb, PointerSwap};
use downriver_event::{Epoch, Offset, TableId};
use downriver_log::StoreError;

use super::{ControlError, Node};
use crate::control::{ResourcePut, SinkTableState, StoredResource};
use crate::groups::{Cursor, Group};
use crate::objects::{incarnation_of, list_all};

impl Node {
    /// Stores all or none.
    ///
    /// # Errors
    /// A revision is not the expected one; or not decided.
    pub async fn apply_resources(&self, puts: Vec<ResourcePut>) -> Result<Vec<u64>, ControlError> {
        let puts = puts.into_iter().map(|put| pb::ResourcePut {
            kind: put.kind,
            name: put.name,
            spec_json: put.spec_json,
            expected_revision: put.expected_revision,
        });
        match self
            .propose(C::PutResources(pb::PutResources {
                puts: puts.collect(),
            }))
            .await?
        {
            R::Revisions(revisions) => Ok(revisions.revisions),
            other => Err(unexpected(&other)),
        }
    }

    /// # Errors
    /// The revision is not the expected one; or not decided.
    pub async fn delete_resource(
        &self,
        kind: &str,
        name: &str,
        expected_revision: Option<u64>,
    ) -> Result<(), ControlError> {
        let (kind, name) = (kind.to_owned(), name.to_owned());
        let delete = pb::DeleteResource {
            kind,
            name,
            expected_revision,
        };
        self.propose(C::DeleteResource(delete)).await.map(|_| ())
    }

    #[must_use]
    pub fn resources(&self) -> Vec<StoredResource> {
        self.with_state(|state| state.control.resources.values().cloned().collect())
    }

    /// Moves all pointers or none.
    ///
    /// # Errors
    /// A pointer is not where it was expected; or not decided.
    pub async fn swap_pointers(&self, swaps: Vec<PointerSwap>) -> Result<(), ControlError> {
        self.propose(C::SwapPointer(pb::SwapPointer { swaps }))
            .await
            .map(|_| ())
    }

    #[must_use]
    pub fn pointer(&self, catalog: &str, namespace: &str, table: &str) -> Option<String> {
        let key = (catalog.to_owned(), namespace.to_owned(), table.to_owned());
        self.with_state(|state| state.control.pointers.get(&key).cloned())
    }

    /// Namespace, table and metadata location of a catalog's tables.
    #[must_use]
    pub fn pointers(&self, catalog: &str) -> Vec<(String, String, String)> {
        self.with_state(|state| {
            let pointers = state
                .control
                .pointers
                .iter()
                .filter(|((c, _, _), _)| c == catalog);
            pointers
                .map(|((_, n, t), location)| (n.clone(), t.clone(), location.clone()))
                .collect()
        })
    }

    /// Whether every node knows that a pipeline's tables can be shared out.
    #[must_use]
    pub fn knows_shares(&self) -> bool {
        // One that is alone has no members.
        self.with_state(|state| {
            state.control.members.is_empty() || state.control.feature_level >= super::SHARES_LEVEL
        })
    }

    /// Gives the table, which belongs to a share of the pipeline's, a new owner's epoch.
    ///
    /// # Errors
    /// Not decided.
    pub async fn open_sink_table(
        &self,
        pipeline: &str,
        share: u32,
        table: TableId,
    ) -> Result<SinkTableState, ControlError> {
        let open = pb::OpenSinkTable {
            share,
            pipeline: pipeline.to_owned(),
            table_id: table.0,
            node_id: self.config.node_id,
        };
        match self.propose(C::OpenSinkTable(open)).await? {
            R::SinkTable(state) => Ok(SinkTableState {
                epoch: Epoch(state.epoch),
                owner: state.owner,
                delivered: Offset(state.delivered),
                detail: state.detail,
            }),
            other => Err(unexpected(&other)),
        }
    }

    /// Stores how far the sink's table has come; progress never goes back.
    ///
    /// # Errors
    /// Another owner has a newer epoch; or not decided.
    pub async fn commit_sink_table(
        &self,
        pipeline: &str,
        table: TableId,
        epoch: Epoch,
        delivered: Offset,
        detail: Bytes,
    ) -> Result<(), ControlError> {
        let commit = pb::CommitSinkTable {
            pipeline: pipeline.to_owned(),
            table_id: table.0,
            epoch: epoch.0,
            delivered: delivered.0,
            detail,
        };
        self.propose(C::CommitSinkTable(commit)).await.map(|_| ())
    }

    #[must_use]
    pub fn sink_tables(&self, pipeline: &str) -> Vec<(TableId, SinkTableState)> {
        self.with_state(|state| {
            let tables = state
                .control
                .sink_tables
                .iter()
                .filter(|((p, _), _)| p == pipeline);
            tables
                .map(|((_, table), state)| (*table, state.clone()))
                .collect()
        })
    }

    /// Every pipeline of which progress is stored.
    #[must_use]
    pub fn sink_pipelines(&self) -> BTreeSet<String> {
        self.with_state(|state| {
            let tables = state.control.sink_tables.keys();
            tables.map(|(pipeline, _)| pipeline.clone()).collect()
        })
    }

    /// Forgets the progress of a pipeline's sink tables.
    ///
    /// # Errors
    /// Not decided.
    pub async fn drop_pipeline(&self, pipeline: &str) -> Result<(), ControlError> {
        let drop = pb::DropPipeline {
            pipeline: pipeline.to_owned(),
        };
        self.propose(C::DropPipeline(drop)).await.map(|_| ())
    }

    /// When the events from an offset on were committed, microseconds since 1970: the least commit time of the
    /// block, segment or manifest that holds it. `None` at the tail.
    #[must_use]
    pub fn time_of(&self, stream: &str, offset: Offset) -> Option<i64> {
        self.with_state(|state| {
            let stream = state.journal.streams.get(stream)?;
            if let Some(manifest) = stream.manifest_of(offset) {
                return Some(manifest.time_min_us);
            }
            if offset < stream.sealed {
                let at = stream
                    .segments
                    .partition_point(|segment| segment.place.end <= offset);
                return stream.segments.get(at).map(|segment| segment.time_min_us);
            }
            let at = stream
                .unsealed
                .partition_point(|block| block.end() <= offset);
            stream.unsealed.get(at).map(|block| block.time_min_us)
        })
    }

    /// Forgets a stream and deletes its objects.
    ///
    /// # Errors
    /// Not decided, or the store cannot delete now.
    pub async fn drop_stream(&self, stream: &str) -> Result<(), ControlError> {
        let drop = pb::DropStream {
            group: 0,
            stream: stream.to_owned(),
        };
        match self.propose(C::DropStream(drop)).await {
            Ok(_) | Err(ControlError::Invalid(_)) => {}
            Err(error) => return Err(error),
        }
        let unavailable = |error: StoreError| ControlError::Unavailable(error.to_string());
        // What of this name came since is not this one's.
        let last = self.with_state(|state| state.journal.dropped.get(stream).copied());
        let Some(last) = last else {
            return Ok(());
        };
        let prefix = format!("log/{stream}/");
        let there = list_all(&**self.store(), &prefix).await;
        for key in there.map_err(unavailable)?.into_keys() {
            if incarnation_of(&key, &prefix).is_some_and(|incarnation| incarnation <= last) {
                self.store().delete(&key).await.map_err(unavailable)?;
            }
        }
        Ok(())
    }

    /// Every group of consumers.
    #[must_use]
    pub fn groups(&self) -> Vec<Group> {
        self.with_state(|state| state.groups.all().cloned().collect())
    }

    #[must_use]
    pub fn group(&self, source: &str, name: &str) -> Option<Group> {
        self.with_state(|state| state.groups.get(source, name).cloned())
    }

    /// Makes somebody the member of a group, which is made if it is not there: whoever was is fenced.
    ///
    /// # Errors
    /// The source has no log; or not decided.
    pub async fn take_group(
        &self,
        source: &str,
        name: &str,
        member: &str,
    ) -> Result<Group, ControlError> {
        let take = pb::TakeGroup {
            source: source.to_owned(),
            group: name.to_owned(),
            member: member.to_owned(),
        };
        match self.propose(C::TakeGroup(take)).await? {
            R::Group(group) => Ok(Group::from_pb(group)),
            other => Err(unexpected(&other)),
        }
    }

    /// Moves a group's cursor from where it was expected. `Some`: the member's epoch or the cursor are not the group's,
    /// which stands so.
    ///
    /// # Errors
    /// The log does not have the cursor, or the group went back; or not decided.
    pub async fn commit_group(
        &self,
        (source, name): (&str, &str),
        epoch: Epoch,
        expected: Option<Cursor>,
        cursor: Cursor,
    ) -> Result<Option<Group>, ControlError> {
        let commit = pb::CommitGroup {
            source: source.to_owned(),
            group: name.to_owned(),
            epoch: epoch.0,
            expected: expected.map(Cursor::to_pb),
            cursor: Some(cursor.to_pb()),
        };
        match self.propose(C::CommitGroup(commit)).await? {
            R::Done(_) => Ok(None),
            R::GroupRefused(group) => Ok(Some(Group::from_pb(group))),
            other => Err(unexpected(&other)),
        }
    }

    /// Forgets a group.
    ///
    /// # Errors
    /// Not decided.
    pub async fn drop_group(&self, source: &str, name: &str) -> Result<(), ControlError> {
        let dropped = pb::DropGroup {
            source: source.to_owned(),
            group: name.to_owned(),
        };
        self.propose(C::DropGroup(dropped)).await.map(|_| ())
    }

    /// A small replicated value under a name; `None` removes it.
    ///
    /// # Errors
    /// Not decided.
    pub async fn put_record(&self, key: &str, value: Option<Bytes>) -> Result<(), ControlError> {
        let record = pb::PutRecord {
            key: key.to_owned(),
            value: value.unwrap_or_default(),
            if_absent: false,
        };
        self.propose(C::PutRecord(record)).await.map(|_| ())
    }

    /// The value under a name, which is this one if there was none.
    ///
    /// # Errors
    /// Not decided.
    pub async fn record_or_put(&self, key: &str, value: Bytes) -> Result<Bytes, ControlError> {
        let record = pb::PutRecord {
            key: key.to_owned(),
            value: value.clone(),
            if_absent: true,
        };
        match self.propose(C::PutRecord(record)).await {
            Ok(_) => Ok(value),
            Err(ControlError::Conflict(reason)) => {
                self.record(key).ok_or(ControlError::Conflict(reason))
            }
            Err(error) => Err(error),
        }
    }

    #[must_use]
    pub fn record(&self, key: &str) -> Option<Bytes> {
        self.with_state(|state| state.control.records.get(key).cloned())
    }
}

pub(super) fn unexpected(reply: &R) -> ControlError {
    ControlError::Invalid(format!("unexpected reply: {reply:?}"))
}
