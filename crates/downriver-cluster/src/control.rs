//! The part of the replicated state that is not a stream: resources, catalog pointers, sink tables,
//! records. Pure, as the journal is.

use std::collections::BTreeMap;

use bytes::Bytes;
use downriver_api::cluster::v1 as pb;
use downriver_event::planted::Bug;
use downriver_event::{Epoch, Offset, TableId};

use crate::state::At;

/// A specification as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredResource {
    pub kind: String,
    pub name: String,
    pub spec_json: Bytes,
    /// Grows with every change of anything.
    pub revision: u64,
}

#[derive(Clone, Debug)]
pub struct ResourcePut {
    pub kind: String,
    pub name: String,
    pub spec_json: Bytes,
    /// The revision that must be current; 0: it must not exist; `None`: not checked.
    pub expected_revision: Option<u64>,
}

/// Who owns a sink's table, and how far it has come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SinkTableState {
    pub epoch: Epoch,
    pub owner: u64,
    pub delivered: Offset,
    pub detail: Bytes,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Control {
    /// By kind and name.
    pub(crate) resources: BTreeMap<(String, String), StoredResource>,
    pub(crate) next_revision: u64,
    /// By catalog, namespace and table.
    pub(crate) pointers: BTreeMap<(String, String, String), String>,
    /// By pipeline and table.
    pub(crate) sink_tables: BTreeMap<(String, TableId), SinkTableState>,
    pub(crate) records: BTreeMap<String, Bytes>,
    /// By number.
    pub(crate) members: BTreeMap<u64, Member>,
    /// Stored forms up to this level may be written: every member reads them.
    pub(crate) feature_level: u32,
    /// Who runs a task.
    pub(crate) assignments: BTreeMap<String, Assignment>,
}

/// Who runs a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Assignment {
    pub node: u64,
    /// Which of all assignments it is: grows with each.
    pub since: u64,
}

/// A node, as it described itself when it started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub id: u64,
    /// As people call it.
    pub name: String,
    /// Where other nodes reach it.
    pub peer_address: String,
    pub grpc_address: String,
    pub http_address: String,
    pub version: String,
    /// How often it was started with its folder.
    pub starts: u64,
    /// It hands over what it runs, to stop.
    pub draining: bool,
    /// It is no member any more, and does not become one again.
    pub removed: bool,
    /// The highest level of stored forms that its build reads.
    pub feature_level: u32,
    /// Of the process that started it.
    pub process: String,
}

impl Member {
    pub(crate) fn to_pb(&self) -> pb::Member {
        pb::Member {
            node_id: self.id,
            name: self.name.clone(),
            peer_address: self.peer_address.clone(),
            grpc_address: self.grpc_address.clone(),
            http_address: self.http_address.clone(),
            version: self.version.clone(),
            starts: self.starts,
            draining: self.draining,
            removed: self.removed,
            feature_level: self.feature_level,
            process: self.process.clone(),
        }
    }

    pub(crate) fn from_pb(member: pb::Member) -> Self {
        Self {
            id: member.node_id,
            name: member.name,
            peer_address: member.peer_address,
            grpc_address: member.grpc_address,
            http_address: member.http_address,
            version: member.version,
            starts: member.starts,
            draining: member.draining,
            removed: member.removed,
            feature_level: member.feature_level,
            process: member.process,
        }
    }
}

/// Why a command changed nothing.
#[derive(Debug)]
pub(crate) enum Refused {
    Conflict(String),
    Invalid(String),
}

impl Control {
    fn revision(&self, kind: &str, name: &str) -> u64 {
        let key = (kind.to_owned(), name.to_owned());
        self.resources
            .get(&key)
            .map_or(0, |resource| resource.revision)
    }

    fn check_revision(&self, kind: &str, name: &str, expected: Option<u64>) -> Result<(), Refused> {
        let current = self.revision(kind, name);
        match expected {
            Some(expected) if expected != current => Err(Refused::Conflict(format!(
                "{kind} {name:?} is at revision {current}, not {expected}"
            ))),
            _ => Ok(()),
        }
    }

    pub(crate) fn put_resources(&mut self, command: pb::PutResources) -> Result<Vec<u64>, Refused> {
        for put in &command.puts {
            self.check_revision(&put.kind, &put.name, put.expected_revision)?;
        }
        let revisions = command.puts.into_iter().map(|put| {
            self.next_revision += 1;
            let resource = StoredResource {
                kind: put.kind.clone(),
                name: put.name.clone(),
                spec_json: put.spec_json,
                revision: self.next_revision,
            };
            self.resources.insert((put.kind, put.name), resource);
            self.next_revision
        });
        Ok(revisions.collect())
    }

    pub(crate) fn delete_resource(&mut self, command: &pb::DeleteResource) -> Result<(), Refused> {
        self.check_revision(&command.kind, &command.name, command.expected_revision)?;
        self.resources
            .remove(&(command.kind.clone(), command.name.clone()));
        Ok(())
    }

    pub(crate) fn swap_pointers(&mut self, command: pb::SwapPointer) -> Result<(), Refused> {
        let key = |swap: &pb::PointerSwap| {
            (
                swap.catalog.clone(),
                swap.namespace.clone(),
                swap.table.clone(),
            )
        };
        for swap in &command.swaps {
            let current = self.pointers.get(&key(swap)).map_or("", String::as_str);
            if current != swap.expected {
                let (namespace, table) = (&swap.namespace, &swap.table);
                return Err(Refused::Conflict(format!(
                    "table {namespace}.{table} has moved on"
                )));
            }
        }
        for swap in command.swaps {
            if swap.metadata_location.is_empty() {
                self.pointers.remove(&key(&swap));
            } else {
                self.pointers.insert(key(&swap), swap.metadata_location);
            }
        }
        Ok(())
    }

    pub(crate) fn open_sink_table(&mut self, command: pb::OpenSinkTable) -> SinkTableState {
        let state = self
            .sink_tables
            .entry((command.pipeline, TableId(command.table_id)))
            .or_default();
        state.epoch = Epoch(state.epoch.0 + 1);
        state.owner = command.node_id;
        state.clone()
    }

    pub(crate) fn commit_sink_table(
        &mut self,
        command: pb::CommitSinkTable,
    ) -> Result<(), Refused> {
        let key = (command.pipeline, TableId(command.table_id));
        let Some(state) = self.sink_tables.get_mut(&key) else {
            return Err(Refused::Invalid("the sink's table was never opened".into()));
        };
        if state.epoch.0 != command.epoch {
            return Err(Refused::Conflict(format!(
                "the table's owner has epoch {}",
                state.epoch
            )));
        }
        state.delivered = state.delivered.max(Offset(command.delivered));
        state.detail = command.detail;
        Ok(())
    }

    pub(crate) fn drop_pipeline(&mut self, command: &pb::DropPipeline) {
        self.sink_tables
            .retain(|(pipeline, _), _| *pipeline != command.pipeline);
    }

    pub(crate) fn put_record(&mut self, command: pb::PutRecord) -> Result<(), Refused> {
        if command.if_absent && self.records.contains_key(&command.key) {
            return Err(Refused::Conflict(format!(
                "record {:?} is there already",
                command.key
            )));
        }
        if command.value.is_empty() {
            self.records.remove(&command.key);
        } else {
            self.records.insert(command.key, command.value);
        }
        Ok(())
    }

    /// What an older copy of a node's folder says of it is refused.
    pub(crate) fn put_member(&mut self, command: pb::PutMember) -> Result<(), Refused> {
        let Some(member) = command.member.map(Member::from_pb) else {
            return Err(Refused::Invalid("there is no member".into()));
        };
        if member.feature_level < self.feature_level {
            return Err(Refused::Conflict(format!(
                "node {} reads stored forms up to level {}, and the cluster writes level {}",
                member.name, member.feature_level, self.feature_level
            )));
        }
        let known = self.members.get(&member.id);
        if known.is_some_and(|known| known.removed) {
            return Err(Refused::Invalid(format!(
                "node {} was removed",
                member.name
            )));
        }
        let is_copy = |known: &&Member| {
            known.starts > member.starts
                || known.starts == member.starts && known.process != member.process
        };
        if let Some(known) = known.filter(is_copy) {
            return Err(Refused::Conflict(format!(
                "node {} was started {} times, and says {}",
                member.name, known.starts, member.starts
            )));
        }
        self.members.insert(member.id, member);
        Ok(())
    }

    /// A level never falls: what was written is there.
    pub(crate) fn raise_feature_level(&mut self, level: u32) {
        self.feature_level = self.feature_level.max(level);
    }

    pub(crate) fn drop_member(&mut self, command: &pb::DropMember) {
        if let Some(member) = self.members.get_mut(&command.node_id) {
            member.removed = true;
        }
    }

    pub(crate) fn assign(&mut self, command: pb::Assign, at: At) -> Result<(), Refused> {
        // Entries of before have no leader.
        let is_others = command.leader != 0 && command.leader != at.leader;
        if command.term != at.term || is_others {
            return Err(Refused::Conflict("whoever planned it leads no more".into()));
        }
        for step in &command.moves {
            let owner = self.assignments.get(&step.task);
            let owner = owner.map_or(0, |owner| owner.node);
            if owner != step.from {
                return Err(Refused::Conflict(format!(
                    "{:?} is node {owner}'s, not {}'s",
                    step.task, step.from
                )));
            }
        }
        for step in command.moves {
            if step.to == 0 {
                self.assignments.remove(&step.task);
            } else {
                let node = step.to;
                let since = at.index;
                let assignment = Assignment { node, since };
                self.assignments.insert(step.task, assignment);
            }
        }
        Ok(())
    }

    /// Of a node that is alone a task need not be given.
    pub(crate) fn check_assigned(&self, task: &str, node: u64) -> Result<(), Refused> {
        match self.assignments.get(task) {
            None if !self.members.is_empty() => {
                Err(Refused::Conflict(format!("{task:?} is nobody's")))
            }
            Some(Assignment { node: owner, .. })
                if *owner != node && !Bug::AnyOwner.is_planted() =>
            {
                Err(Refused::Conflict(format!(
                    "{task:?} is node {owner}'s, not {node}'s"
                )))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn dropping_a_pipeline_forgets_its_tables_and_no_others() {
        let mut control = Control::default();
        let open = |pipeline: &str| pb::OpenSinkTable {
            pipeline: pipeline.into(),
            table_id: 7,
            node_id: 1,
            share: 0,
        };
        let commit = |pipeline: &str, epoch| pb::CommitSinkTable {
            pipeline: pipeline.into(),
            table_id: 7,
            epoch,
            delivered: 100,
            detail: Bytes::new(),
        };
        control.open_sink_table(open("gone"));
        control.open_sink_table(open("gone-not"));
        control.commit_sink_table(commit("gone", 1)).unwrap();
        control.drop_pipeline(&pb::DropPipeline {
            pipeline: "gone".into(),
        });
        let left: Vec<_> = control.sink_tables.keys().map(|(p, _)| p.clone()).collect();
        assert_eq!(left, ["gone-not"]);
        // The owner from before cannot commit to what is opened anew as a later one.
        assert!(control.commit_sink_table(commit("gone", 1)).is_err());
        assert_eq!(control.open_sink_table(open("gone")).delivered, Offset(0));
    }
}
