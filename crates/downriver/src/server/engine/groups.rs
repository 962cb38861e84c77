//! Groups of consumers, as the services ask for them.

use downriver_cluster::{ControlError, Cursor, Group};
use downriver_event::problem::Problem;
use downriver_event::{Epoch, Incarnation, Offset};
use downriver_log::Log as _;
use downriver_service::{ConsumerGroup, GroupCommit};

use super::{NodeEngine, unavailable};

impl NodeEngine {
    pub(super) fn known_groups(&self) -> Vec<ConsumerGroup> {
        let groups = self.node.groups().into_iter();
        groups.map(|group| self.consumer_group(group)).collect()
    }

    pub(super) async fn group_now(
        &self,
        source: &str,
        name: &str,
    ) -> Result<Option<ConsumerGroup>, Problem> {
        let read = self.node.read_index().await;
        read.map_err(|error| unavailable(&error))?;
        let group = self.node.group(source, name);
        Ok(group.map(|group| self.consumer_group(group)))
    }

    pub(super) fn consumer_group(&self, group: Group) -> ConsumerGroup {
        let state = self.node.state(&group.source);
        let consumed = group.cursor.map_or(Offset(0), |cursor| cursor.offset);
        ConsumerGroup {
            behind: state.map_or(0, |state| state.next.0.saturating_sub(consumed.0)),
            source: group.source,
            name: group.name,
            member: group.member,
            epoch: group.epoch.0,
            cursor: group
                .cursor
                .map(|cursor| (cursor.incarnation, cursor.offset)),
        }
    }

    pub(super) async fn commit(
        &self,
        commit: GroupCommit,
    ) -> Result<Option<ConsumerGroup>, Problem> {
        let cursor = |(incarnation, offset): (Incarnation, Offset)| Cursor {
            incarnation,
            offset,
        };
        let committed = self
            .node
            .commit_group(
                (&commit.source, &commit.name),
                Epoch(commit.epoch),
                commit.expected.map(cursor),
                cursor(commit.cursor),
            )
            .await;
        match committed {
            Ok(refused) => Ok(refused.map(|group| self.consumer_group(group))),
            Err(ControlError::Invalid(reason)) => Err(Problem::new(
                "DR-2044",
                format!("group {:?}: {reason}", commit.name),
                "commit what was read of this source's log, in its order",
            )),
            Err(error) => Err(unavailable(&error)),
        }
    }
}
