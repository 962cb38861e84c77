//! The replicated state under a seeded world: owners that crash and stand still, commands and answers that are lost, late or
//! doubled, tasks that move, consumers that take a group from each other. The same seed gives the same run.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use downriver_api::cluster::v1 as pb;
use downriver_api::cluster::v1::command::Kind as C;
use downriver_api::cluster::v1::command_reply::Kind as R;
use downriver_event::{Lsn, SourcePosition};
use openraft::SnapshotMeta;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use crate::snapshot;
use crate::state::{self, At, Replicated};

const STREAM: &str = "s";
const GROUP: &str = "g";
const NODES: u64 = 3;
const STEPS: u32 = 600;

/// Where the source's transaction of this number ends.
fn position(transaction: u64) -> Option<downriver_event::pb::SourcePosition> {
    Some(SourcePosition::Postgres(Lsn(10 * (transaction + 1))).to_pb())
}

/// Events of the source's transaction of this number.
fn events(transaction: u64) -> u64 {
    1 + transaction * 7 % 4
}

/// How many transactions end at or before a position.
fn covered(position: Option<&downriver_event::pb::SourcePosition>) -> u64 {
    let position = SourcePosition::from_field(position).unwrap();
    position.map_or(0, |position| position.lsn().unwrap().0 / 10)
}

/// One node as the owner of the stream.
#[derive(Default)]
struct Owner {
    /// As it was opened: the epoch, and the first transaction that the log has not.
    open: Option<(u64, u64)>,
    /// What it has proposed and not heard of.
    asked: Option<C>,
    /// What it believes of who is to run the stream.
    believes: u64,
}

#[derive(Default)]
struct Consumer {
    /// Its epoch and where it stands.
    taken: Option<(u64, Option<pb::Cursor>)>,
    asked: Option<C>,
}

/// Who asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Owner(u64),
    Consumer(usize),
    Nobody,
}

struct World {
    random: StdRng,
    state: Replicated,
    at: At,
    owners: BTreeMap<u64, Owner>,
    consumers: [Consumer; 2],
    /// Commands on their way to the log.
    sent: Vec<(Who, C)>,
    /// Answers on their way back, with the command.
    answers: Vec<(Who, C, R)>,
    /// Transactions in the log, in its order, and who appended each under which epoch.
    logged: Vec<(u64, u64)>,
    /// Transactions that the source has committed.
    committed: u64,
    /// Appends since the last seal: end offset and last transaction.
    unsealed: VecDeque<u64>,
    epochs: BTreeMap<u64, u64>,
    consumed: u64,
    group_epoch: u64,
    trace: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        Self {
            random: StdRng::seed_from_u64(seed),
            state: Replicated::default(),
            at: At {
                index: 0,
                term: 1,
                leader: 1,
            },
            owners: (1..=NODES).map(|node| (node, Owner::default())).collect(),
            consumers: Default::default(),
            sent: Vec::new(),
            answers: Vec::new(),
            logged: Vec::new(),
            committed: 0,
            unsealed: VecDeque::new(),
            epochs: BTreeMap::new(),
            consumed: 0,
            group_epoch: 0,
            trace: 0,
        }
    }

    fn chance(&mut self, of_hundred: u32) -> bool {
        self.random.random_ratio(of_hundred, 100)
    }

    fn send(&mut self, who: Who, command: C) {
        self.sent.push((who, command.clone()));
        if self.chance(10) {
            self.sent.push((who, command));
        }
    }

    fn step(&mut self) {
        match self.random.random_range(0..100) {
            0..12 => self.committed += u64::from(self.committed < 200),
            12..36 => self.owner_acts(),
            36..41 => self.consumer_acts(),
            41..42 => self.assign(),
            42..45 => self.seal(),
            45..46 => self.crash(),
            46..47 => self.at.term += 1,
            47..48 if self.random.random_ratio(1, 20) => self.restore(),
            47..78 => self.deliver(),
            _ => self.answer(),
        }
        self.check();
        self.trace = self
            .trace
            .wrapping_mul(1_099_511_628_211)
            .wrapping_add(self.at.index ^ self.logged.len() as u64 ^ self.consumed << 20);
    }

    fn assign(&mut self) {
        let to = self.random.random_range(1..=NODES);
        let from = self.state.control.assignments.get("source/s");
        let from = from.map_or(0, |assignment| assignment.node);
        let term = self.at.term - u64::from(self.at.term > 1 && self.random.random_bool(0.2));
        let step = pb::Move {
            task: "source/s".into(),
            from,
            to,
        };
        let assign = pb::Assign {
            moves: vec![step],
            term,
            leader: self.at.leader,
        };
        self.send(Who::Nobody, C::Assign(assign));
    }

    /// Somebody who may be mistaken about being the owner opens the stream, or appends what it reads at the source.
    fn owner_acts(&mut self) {
        let node = self.random.random_range(1..=NODES);
        let assigned = self.state.control.assignments.get("source/s");
        let assigned = assigned.map_or(0, |assignment| assignment.node);
        let learns = self.chance(50);
        let gives_up = self.chance(5);
        let count = self.random.random_range(1..=3);
        let committed = self.committed;
        let owner = self.owners.get_mut(&node).unwrap();
        if learns {
            owner.believes = assigned;
        }
        if owner.believes != node {
            return;
        }
        if gives_up {
            // It was not answered for long: an append is proposed again, or everything begins anew.
            match owner.asked.clone() {
                Some(again) if self.random.random_bool(0.7) => self.send(Who::Owner(node), again),
                _ => {
                    *owner = Owner {
                        believes: node,
                        ..Owner::default()
                    }
                }
            }
            return;
        }
        if owner.asked.is_some() {
            return;
        }
        let command = match owner.open {
            None => C::OpenStream(pb::OpenStream {
                stream: STREAM.into(),
                node_id: node,
                start: Some(SourcePosition::Postgres(Lsn(0)).to_pb()),
                ..pb::OpenStream::default()
            }),
            Some((epoch, next)) if next < committed => {
                let end = committed.min(next + count);
                let offset = (0..next).map(events).sum();
                let block = |transaction| pb::BlockPayload {
                    events: events(transaction),
                    payload: Some(pb::block_payload::Payload::Inline(Bytes::from(
                        transaction.to_string(),
                    ))),
                    ..pb::BlockPayload::default()
                };
                let before = match next {
                    0 => Some(SourcePosition::Postgres(Lsn(0)).to_pb()),
                    next => position(next - 1),
                };
                C::AppendBlocks(pb::AppendBlocks {
                    stream: STREAM.into(),
                    incarnation: 1,
                    epoch,
                    base_offset: offset,
                    position_before: before,
                    position_after: position(end - 1),
                    blocks: (next..end).map(block).collect(),
                    ..pb::AppendBlocks::default()
                })
            }
            Some(_) => return,
        };
        owner.asked = Some(command.clone());
        self.send(Who::Owner(node), command);
    }

    fn consumer_acts(&mut self) {
        let index = self.random.random_range(0..2);
        let next = self
            .state
            .journal
            .streams
            .get(STREAM)
            .map_or(0, |s| s.next.0);
        let takes = self.chance(20);
        let forward = self.random.random_range(0..5);
        let consumer = &mut self.consumers[index];
        let command = match (&consumer.taken, takes) {
            (Some((epoch, cursor)), false) => {
                let at = cursor.as_ref().map_or(0, |cursor| cursor.offset);
                C::CommitGroup(pb::CommitGroup {
                    source: STREAM.into(),
                    group: GROUP.into(),
                    epoch: *epoch,
                    expected: *cursor,
                    cursor: Some(pb::Cursor {
                        incarnation: 1,
                        offset: next.min(at + forward).max(at),
                    }),
                })
            }
            _ => C::TakeGroup(pb::TakeGroup {
                source: STREAM.into(),
                group: GROUP.into(),
                member: index.to_string(),
            }),
        };
        consumer.asked = Some(command.clone());
        self.send(Who::Consumer(index), command);
    }

    fn seal(&mut self) {
        let Some(stream) = self.state.journal.streams.get(STREAM) else {
            return;
        };
        let Some(last) = stream.inline_prefix().last() else {
            return;
        };
        let seal = pb::SealSegment {
            stream: STREAM.into(),
            incarnation: 1,
            base_offset: stream.sealed.0,
            end_offset: last.end().0,
            object: Some(pb::ObjectRef::default()),
            ..pb::SealSegment::default()
        };
        self.send(Who::Nobody, C::SealSegment(seal));
    }

    fn crash(&mut self) {
        let node = self.random.random_range(1..=NODES);
        self.owners.insert(node, Owner::default());
    }

    /// Another node takes over what a snapshot has.
    fn restore(&mut self) {
        let folder = tempfile::tempdir().unwrap();
        let meta = SnapshotMeta {
            snapshot_id: "one".into(),
            ..SnapshotMeta::default()
        };
        let path = snapshot::write(folder.path(), &meta, &self.state).unwrap();
        let (_, restored) = snapshot::read(&path).unwrap();
        assert_eq!(
            format!("{:?}", restored.groups),
            format!("{:?}", self.state.groups)
        );
        assert_eq!(
            format!("{:?}", restored.control),
            format!("{:?}", self.state.control)
        );
        self.state = restored;
    }

    /// One of the commands that are on their way arrives, or is lost.
    fn deliver(&mut self) {
        if self.sent.is_empty() {
            return;
        }
        let (who, command) = self
            .sent
            .remove(self.random.random_range(0..self.sent.len()));
        if self.chance(10) {
            return;
        }
        self.at.index += 1;
        let entry = pb::Entry {
            format: state::FORMAT,
            commands: vec![pb::Command {
                kind: Some(command.clone()),
            }],
        };
        let reply = self
            .state
            .apply(entry, self.at)
            .replies
            .pop()
            .unwrap()
            .kind
            .unwrap();
        self.note(who, &command, &reply);
        if !self.chance(15) {
            self.answers.push((who, command, reply));
        }
    }

    fn note(&mut self, who: Who, command: &C, reply: &R) {
        match (command, reply) {
            (C::OpenStream(open), R::Opened(opened)) => {
                let assigned = self.state.control.assignments.get("source/s");
                assert!(
                    assigned.is_none_or(|a| a.node == open.node_id),
                    "who is not assigned opened"
                );
                let before = self.epochs.insert(opened.epoch, open.node_id);
                assert_eq!(before, None, "an epoch was given twice");
            }
            (C::AppendBlocks(append), R::Appended(_)) => {
                let Who::Owner(node) = who else {
                    panic!("only owners append")
                };
                assert_eq!(
                    self.epochs.last_key_value(),
                    Some((&append.epoch, &node)),
                    "a former owner appended"
                );
                let first = self.logged.len() as u64;
                for block in &append.blocks {
                    let Some(pb::block_payload::Payload::Inline(bytes)) = &block.payload else {
                        panic!("blocks are inline")
                    };
                    let transaction: u64 = std::str::from_utf8(bytes).unwrap().parse().unwrap();
                    self.logged.push((transaction, append.epoch));
                }
                assert_eq!(
                    covered(append.position_before.as_ref()),
                    first,
                    "an append was taken that does not follow the log"
                );
                self.unsealed.push_back(self.logged.len() as u64);
            }
            (C::TakeGroup(_), R::Group(group)) => {
                assert!(
                    group.epoch > self.group_epoch,
                    "a member's epoch is another's"
                );
                self.group_epoch = group.epoch;
                assert_eq!(
                    group.cursor.map_or(0, |cursor| cursor.offset),
                    self.consumed,
                    "a group goes on elsewhere than where it stood"
                );
            }
            (C::CommitGroup(commit), R::Done(_)) => {
                assert_eq!(commit.epoch, self.group_epoch, "a stale member committed");
                let offset = commit.cursor.unwrap().offset;
                assert!(offset >= self.consumed, "the group went back");
                self.consumed = offset;
            }
            _ => {}
        }
    }

    /// One of the answers that are on their way arrives.
    fn answer(&mut self) {
        if self.answers.is_empty() {
            return;
        }
        let at = self.random.random_range(0..self.answers.len());
        let (who, command, reply) = self.answers.remove(at);
        match who {
            Who::Owner(node) => {
                let owner = self.owners.get_mut(&node).unwrap();
                // One that has begun anew meanwhile does not wait for it any more.
                if owner.asked.as_ref() != Some(&command) {
                    return;
                }
                owner.asked = None;
                match (command, reply) {
                    (C::OpenStream(_), R::Opened(opened)) => {
                        let stream = &self.state.journal.streams[STREAM];
                        let position = stream.position.as_ref().map(SourcePosition::to_pb);
                        owner.open = Some((opened.epoch, covered(position.as_ref())));
                    }
                    (C::AppendBlocks(append), R::Appended(_)) => {
                        owner.open = Some((append.epoch, covered(append.position_after.as_ref())));
                    }
                    (C::AppendBlocks(append), R::Rejected(rejected))
                        if rejected.epoch == append.epoch
                            && rejected.position == append.position_after =>
                    {
                        owner.open = Some((append.epoch, covered(append.position_after.as_ref())));
                    }
                    _ => owner.open = None,
                }
            }
            Who::Consumer(index) => {
                let consumer = &mut self.consumers[index];
                if consumer.asked.as_ref() != Some(&command) {
                    return;
                }
                consumer.asked = None;
                consumer.taken = match (command, reply) {
                    (C::TakeGroup(_), R::Group(group)) => Some((group.epoch, group.cursor)),
                    (C::CommitGroup(commit), R::Done(_)) => Some((commit.epoch, commit.cursor)),
                    _ => None,
                };
            }
            Who::Nobody => {}
        }
    }

    fn check(&self) {
        for (expected, (transaction, _)) in self.logged.iter().enumerate() {
            assert_eq!(
                *transaction, expected as u64,
                "a transaction is lost, doubled or out of order"
            );
        }
        let Some(stream) = self.state.journal.streams.get(STREAM) else {
            return;
        };
        let logged = self.logged.len() as u64;
        assert_eq!(stream.next.0, (0..logged).map(events).sum::<u64>());
        let covers = |position: &Option<SourcePosition>| {
            covered(position.as_ref().map(SourcePosition::to_pb).as_ref())
        };
        assert_eq!(covers(&stream.position), logged);
        let sealed = (0..covers(&stream.sealed_position))
            .map(events)
            .sum::<u64>();
        assert!(
            sealed <= stream.sealed.0,
            "the source may forget what is in no segment"
        );
        let mut end = stream.sealed;
        for block in &stream.unsealed {
            assert_eq!(block.base, end, "the log has lost a block");
            end = block.end();
        }
        assert_eq!(end, stream.next, "the log has lost a block");
        assert_eq!(
            self.epochs.last_key_value().map(|(epoch, _)| *epoch),
            Some(stream.epoch.0)
        );
    }
}

fn run(seed: u64) -> (u64, usize) {
    let mut world = World::new(seed);
    for _ in 0..STEPS {
        world.step();
    }
    (world.trace, world.logged.len())
}

#[test]
fn whatever_is_lost_late_or_doubled_each_transaction_is_logged_once_in_order() {
    let mut logged = 0;
    for seed in 0..3_000 {
        logged += run(seed).1;
    }
    assert!(
        logged > 25_000,
        "only {logged} transactions came into the log"
    );
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in 0..20 {
        assert_eq!(run(seed), run(seed));
    }
    assert_ne!(run(1).0, run(2).0);
}

#[cfg(feature = "planted-bugs")]
#[test]
fn each_planted_bug_of_the_state_is_found_by_what_watches_for_it() {
    use downriver_event::planted::Bug;
    super::planted::each_is_found(
        &[
            (Bug::AnyEpoch, &["a former owner appended"]),
            (Bug::AnyPlace, &["does not follow the log"]),
            (
                Bug::SealedEarly,
                &["the source may forget what is in no segment"],
            ),
            (Bug::SnapshotLacksBlock, &["the log has lost a block"]),
            (Bug::AnyOwner, &["who is not assigned opened"]),
            (Bug::StaleMember, &["a stale member committed"]),
            (Bug::SkipsOne, &["a group goes on elsewhere"]),
        ],
        |seed| {
            run(seed);
        },
    );
}
