//! Groups of consumers: how far each has come in a source's log, and who may say so. Pure, as the journal is.

use std::collections::BTreeMap;

use downriver_api::cluster::v1 as pb;
use downriver_event::planted::Bug;
use downriver_event::{Epoch, Incarnation, Offset};
use downriver_log::journal::Journal;

/// Where a consumer stands: everything before the offset was consumed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    pub incarnation: Incarnation,
    pub offset: Offset,
}

impl Cursor {
    pub(crate) fn to_pb(self) -> pb::Cursor {
        pb::Cursor {
            incarnation: self.incarnation.0,
            offset: self.offset.0,
        }
    }

    fn from_pb(cursor: pb::Cursor) -> Self {
        Self {
            incarnation: Incarnation(cursor.incarnation),
            offset: Offset(cursor.offset),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    pub source: String,
    pub name: String,
    /// Of the member that may commit.
    pub epoch: Epoch,
    pub member: String,
    /// `None`: nothing was committed yet.
    pub cursor: Option<Cursor>,
}

impl Group {
    pub(crate) fn to_pb(&self) -> pb::GroupState {
        pb::GroupState {
            source: self.source.clone(),
            group: self.name.clone(),
            epoch: self.epoch.0,
            member: self.member.clone(),
            cursor: self.cursor.map(Cursor::to_pb),
        }
    }

    pub(crate) fn from_pb(state: pb::GroupState) -> Self {
        Self {
            source: state.source,
            name: state.group,
            epoch: Epoch(state.epoch),
            member: state.member,
            cursor: state.cursor.map(Cursor::from_pb),
        }
    }
}

/// By source and name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Groups(BTreeMap<(String, String), Group>);

/// Why a command changed nothing.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NotCommitted {
    /// Epoch or cursor are not the group's, which stands so.
    Stale(Group),
    Invalid(String),
}

impl Groups {
    pub(crate) fn all(&self) -> impl Iterator<Item = &Group> {
        self.0.values()
    }

    pub(crate) fn get(&self, source: &str, name: &str) -> Option<&Group> {
        self.0.get(&(source.to_owned(), name.to_owned()))
    }

    pub(crate) fn all_mut(&mut self) -> impl Iterator<Item = &mut Group> {
        self.0.values_mut()
    }

    pub(crate) fn insert(&mut self, group: Group) {
        let key = (group.source.clone(), group.name.clone());
        self.0.insert(key, group);
    }

    /// `None`: the source has no log.
    /// The epoch is no earlier one's, also of a group of this name that is gone.
    pub(crate) fn take(
        &mut self,
        command: pb::TakeGroup,
        journal: &Journal,
        raft_index: u64,
    ) -> Option<Group> {
        journal.streams.get(&command.source)?;
        let key = (command.source.clone(), command.group.clone());
        let group = self.0.entry(key).or_insert_with(|| Group {
            source: command.source,
            name: command.group,
            epoch: Epoch(0),
            member: String::new(),
            cursor: None,
        });
        group.epoch = Epoch(raft_index.max(group.epoch.0 + 1));
        if let Some(cursor) = group.cursor.as_mut().filter(|_| Bug::SkipsOne.is_planted()) {
            cursor.offset = cursor.offset.plus(1);
        }
        group.member = command.member;
        Some(group.clone())
    }

    pub(crate) fn commit(
        &mut self,
        command: pb::CommitGroup,
        journal: &Journal,
    ) -> Result<(), NotCommitted> {
        let invalid = |reason: &str| Err(NotCommitted::Invalid(reason.to_owned()));
        let Some(cursor) = command.cursor.map(Cursor::from_pb) else {
            return invalid("the commit has no cursor");
        };
        let Some(stream) = journal.streams.get(&command.source) else {
            return invalid("the source has no log");
        };
        let Some(group) = self.0.get_mut(&(command.source, command.group)) else {
            return invalid("there is no such group");
        };
        let expected = command.expected.map(Cursor::from_pb);
        let is_repeated = group.cursor == Some(cursor);
        let is_members = group.epoch.0 == command.epoch || Bug::StaleMember.is_planted();
        if !is_members || group.cursor != expected && !is_repeated {
            return Err(NotCommitted::Stale(group.clone()));
        }
        if cursor.incarnation != stream.incarnation || cursor.offset > stream.next {
            return invalid("the log does not have this offset yet, or not in this incarnation");
        }
        let goes_back =
            |was: Cursor| was.incarnation == cursor.incarnation && was.offset > cursor.offset;
        if group.cursor.is_some_and(goes_back) {
            return invalid("a group does not go back: begin a new one");
        }
        group.cursor = Some(cursor);
        Ok(())
    }

    pub(crate) fn drop_group(&mut self, command: pb::DropGroup) {
        self.0.remove(&(command.source, command.group));
    }

    /// Forgets the groups of a source whose log is gone.
    pub(crate) fn drop_source(&mut self, source: &str) {
        self.0.retain(|(of, _), _| of != source);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn journal(next: u64) -> Journal {
        let mut journal = Journal::default();
        journal.open(&pb::OpenStream {
            stream: "s".into(),
            ..pb::OpenStream::default()
        });
        journal.streams.get_mut("s").unwrap().next = Offset(next);
        journal
    }

    fn take(groups: &mut Groups, member: &str, index: u64) -> Group {
        let command = pb::TakeGroup {
            source: "s".into(),
            group: "g".into(),
            member: member.into(),
        };
        groups.take(command, &journal(10), index).unwrap()
    }

    fn cursor(offset: u64) -> Option<pb::Cursor> {
        Some(pb::Cursor {
            incarnation: 1,
            offset,
        })
    }

    fn commit(
        groups: &mut Groups,
        epoch: u64,
        expected: Option<pb::Cursor>,
        offset: u64,
    ) -> Result<(), NotCommitted> {
        let command = pb::CommitGroup {
            source: "s".into(),
            group: "g".into(),
            epoch,
            expected,
            cursor: cursor(offset),
        };
        groups.commit(command, &journal(10))
    }

    #[test]
    fn a_member_commits_and_the_one_before_it_does_not_any_more() {
        let mut groups = Groups::default();
        assert_eq!(take(&mut groups, "a", 1).epoch, Epoch(1));
        commit(&mut groups, 1, None, 4).unwrap();
        // Its answer was lost, and it is sent again.
        commit(&mut groups, 1, None, 4).unwrap();
        let taken = take(&mut groups, "b", 2);
        assert_eq!(
            (taken.epoch, taken.cursor.unwrap().offset),
            (Epoch(2), Offset(4))
        );
        let stale = commit(&mut groups, 1, cursor(4), 6).unwrap_err();
        assert_eq!(stale, NotCommitted::Stale(taken));
        commit(&mut groups, 2, cursor(4), 6).unwrap();
        let group = groups.get("s", "g").unwrap();
        assert_eq!(group.cursor.unwrap().offset, Offset(6));
    }

    #[test]
    fn a_member_of_a_group_that_was_forgotten_is_fenced_by_the_next_of_its_name() {
        let mut groups = Groups::default();
        let old = take(&mut groups, "a", 7);
        groups.drop_group(pb::DropGroup {
            source: "s".into(),
            group: "g".into(),
        });
        take(&mut groups, "b", 9);
        let stale = commit(&mut groups, old.epoch.0, None, 4);
        assert!(matches!(stale, Err(NotCommitted::Stale(_))));
    }

    #[test]
    fn a_commit_that_skips_goes_back_or_is_not_in_the_log_is_refused() {
        let mut groups = Groups::default();
        take(&mut groups, "a", 1);
        commit(&mut groups, 1, None, 4).unwrap();
        let stale = |result| matches!(result, Err(NotCommitted::Stale(_)));
        let invalid = |result| matches!(result, Err(NotCommitted::Invalid(_)));
        assert!(stale(commit(&mut groups, 1, None, 5)));
        assert!(stale(commit(&mut groups, 1, cursor(3), 5)));
        assert!(invalid(commit(&mut groups, 1, cursor(4), 3)));
        assert!(invalid(commit(&mut groups, 1, cursor(4), 11)));
        commit(&mut groups, 1, cursor(4), 10).unwrap();
    }
}
