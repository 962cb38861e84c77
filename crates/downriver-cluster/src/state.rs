//! The replicated state: what each command of an entry does.

use std::collections::BTreeMap;
use std::sync::Arc;

use downriver_api::cluster::v1::command::Kind as C;
use downriver_api::cluster::v1::command_reply::Kind as R;
use downriver_api::cluster::v1::{self as pb};
use downriver_event::SourcePosition;
use downriver_log::StreamState;
use downriver_log::journal::{Applied, Journal};

use crate::control::{Control, Refused};
use crate::groups::{Groups, NotCommitted};

/// Of an entry's commands.
pub(crate) const FORMAT: u32 = 1;

/// Refuses an entry that this build would apply otherwise than the one that proposed it: a command that is
/// skipped here and applied there would part their states.
pub(crate) fn check_format(entry: &pb::Entry) -> Result<(), String> {
    if entry.format != FORMAT {
        let format = entry.format;
        return Err(format!(
            "has commands of format {format}, this build reads {FORMAT}"
        ));
    }
    for command in &entry.commands {
        fn of(append: &pb::AppendBlocks) -> [Option<&downriver_event::pb::SourcePosition>; 2] {
            [
                append.position_before.as_ref(),
                append.position_after.as_ref(),
            ]
        }
        let positions = match &command.kind {
            None => return Err("has a command that this build does not know".into()),
            Some(C::OpenStream(open)) => [open.start.as_ref(), None],
            Some(C::AppendBlocks(append)) => of(append),
            Some(C::MoveSource(moved)) => moved.append.as_ref().map_or([None, None], of),
            Some(_) => continue,
        };
        for position in positions {
            SourcePosition::from_field(position).map_err(|e| format!("has {e}"))?;
        }
    }
    Ok(())
}

/// Whether an entry may change what should run, or where.
pub(crate) fn changes_control(entry: &pb::Entry) -> bool {
    entry.commands.iter().any(|command| {
        matches!(
            command.kind,
            Some(
                C::PutResources(_)
                    | C::DeleteResource(_)
                    | C::PutRecord(_)
                    | C::PutMember(_)
                    | C::DropMember(_)
                    | C::Assign(_)
            )
        )
    })
}

/// Where an entry stands in the Raft log.
#[derive(Clone, Copy, Debug)]
pub(crate) struct At {
    pub(crate) index: u64,
    pub(crate) term: u64,
    /// The node that led when it was written.
    pub(crate) leader: u64,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Replicated {
    pub(crate) journal: Journal,
    pub(crate) control: Control,
    pub(crate) groups: Groups,
    /// Each stream's state as readers see it; renewed when a command touches the stream.
    pub(crate) states: BTreeMap<String, Arc<StreamState>>,
}

impl Replicated {
    pub(crate) fn apply(&mut self, entry: pb::Entry, at: At) -> pb::EntryReply {
        let replies = entry.commands.into_iter().map(|command| {
            let kind = match command.kind {
                Some(kind) => self.command(kind, at),
                None => invalid("a command that this build does not know"),
            };
            pb::CommandReply { kind: Some(kind) }
        });
        pb::EntryReply {
            replies: replies.collect(),
        }
    }

    fn command(&mut self, command: C, at: At) -> R {
        match command {
            C::OpenStream(open) => {
                let task = source_task(&open.stream);
                if let Err(refused) = self.control.check_assigned(&task, open.node_id) {
                    return refused_reply(refused);
                }
                let applied = self.journal.open(&open);
                match (
                    self.streamed(&open.stream, applied),
                    self.states.get(&open.stream),
                ) {
                    (R::Done(_), Some(state)) => R::Opened(pb::StreamOpened {
                        epoch: state.epoch.0,
                    }),
                    (reply, _) => reply,
                }
            }
            C::AppendBlocks(append) => {
                let stream = append.stream.clone();
                let applied = self.journal.append(append, at.index);
                self.streamed(&stream, applied)
            }
            C::MoveSource(moved) => {
                let append = moved.append.as_ref();
                let stream = append.map(|append| append.stream.clone());
                let applied = self.journal.move_source(moved, at.index);
                self.streamed(&stream.unwrap_or_default(), applied)
            }
            C::SealSegment(seal) => {
                let applied = self.journal.seal(&seal);
                self.streamed(&seal.stream, applied)
            }
            C::TrimStream(trim) => {
                let applied = self.journal.trim(&trim);
                self.streamed(&trim.stream, applied)
            }
            C::MergeSegments(merge) => {
                let applied = self.journal.merge(&merge, at.index);
                self.streamed(&merge.stream, applied)
            }
            C::FoldSegments(fold) => {
                let applied = self.journal.fold(&fold);
                self.streamed(&fold.stream, applied)
            }
            C::ForgetObjects(forget) => {
                let applied = self.journal.forget(&forget);
                self.streamed(&forget.stream, applied)
            }
            C::DropStream(drop) => {
                self.groups.drop_source(&drop.stream);
                let applied = self.journal.drop_stream(&drop);
                self.streamed(&drop.stream, applied)
            }
            C::PutResources(puts) => match self.control.put_resources(puts) {
                Ok(revisions) => R::Revisions(pb::Revisions { revisions }),
                Err(refused) => refused_reply(refused),
            },
            C::DeleteResource(delete) => done(self.control.delete_resource(&delete)),
            C::SwapPointer(swap) => done(self.control.swap_pointers(swap)),
            C::OpenSinkTable(open) => {
                let task = pipeline_task(&open.pipeline, open.share);
                if let Err(refused) = self.control.check_assigned(&task, open.node_id) {
                    return refused_reply(refused);
                }
                let (pipeline, table_id) = (open.pipeline.clone(), open.table_id);
                let state = self.control.open_sink_table(open);
                R::SinkTable(pb::SinkTableState {
                    pipeline,
                    table_id,
                    epoch: state.epoch.0,
                    owner: state.owner,
                    delivered: state.delivered.0,
                    detail: state.detail,
                })
            }
            C::CommitSinkTable(commit) => done(self.control.commit_sink_table(commit)),
            C::DropPipeline(drop) => {
                self.control.drop_pipeline(&drop);
                R::Done(pb::Done {})
            }
            C::PutRecord(record) => done(self.control.put_record(record)),
            C::PutMember(put) => done(self.control.put_member(put)),
            C::DropMember(dropped) => {
                self.control.drop_member(&dropped);
                R::Done(pb::Done {})
            }
            C::TakeGroup(take) => match self.groups.take(take, &self.journal, at.index) {
                Some(group) => R::Group(group.to_pb()),
                None => invalid("the source has no log"),
            },
            C::CommitGroup(commit) => match self.groups.commit(commit, &self.journal) {
                Ok(()) => R::Done(pb::Done {}),
                Err(NotCommitted::Stale(group)) => R::GroupRefused(group.to_pb()),
                Err(NotCommitted::Invalid(reason)) => invalid(&reason),
            },
            C::DropGroup(dropped) => {
                self.groups.drop_group(dropped);
                R::Done(pb::Done {})
            }
            C::RaiseFeatureLevel(raise) => {
                self.control.raise_feature_level(raise.level);
                R::Done(pb::Done {})
            }
            C::Assign(assign) => done(self.control.assign(assign, at)),
        }
    }

    fn streamed(&mut self, stream: &str, applied: Applied) -> R {
        self.renew(stream);
        match applied {
            Applied::Done => R::Done(pb::Done {}),
            Applied::Appended { next } => R::Appended(pb::AppendDone {
                next_offset: next.0,
            }),
            Applied::Rejected {
                epoch,
                next,
                position,
            } => R::Rejected(pb::AppendRejected {
                epoch: epoch.0,
                next_offset: next.0,
                position: position.as_ref().map(SourcePosition::to_pb),
            }),
            Applied::Stale => R::Conflict(pb::Conflict {
                reason: "the stream has moved on".into(),
            }),
            Applied::NoStream => invalid("the stream does not exist"),
            Applied::Invalid(reason) => invalid(reason),
        }
    }

    /// Brings what readers see of a stream up to date.
    pub(crate) fn renew(&mut self, stream: &str) {
        match self.journal.streams.get(stream) {
            Some(state) => {
                self.states
                    .insert(stream.to_owned(), Arc::new(state.state()));
            }
            None => {
                self.states.remove(stream);
            }
        }
    }
}

/// The task of capturing a source, under which its stream is opened.
#[must_use]
pub fn source_task(source: &str) -> String {
    format!("source/{source}")
}

/// The task of delivering a share of a pipeline's tables, under which those are opened. Shares count from 0.
#[must_use]
pub fn pipeline_task(pipeline: &str, share: u32) -> String {
    match share {
        0 => format!("pipeline/{pipeline}"),
        share => format!("pipeline/{pipeline}/{share}"),
    }
}

fn invalid(reason: &str) -> R {
    R::Invalid(pb::Invalid {
        reason: reason.to_owned(),
    })
}

fn done(result: Result<(), Refused>) -> R {
    match result {
        Ok(()) => R::Done(pb::Done {}),
        Err(refused) => refused_reply(refused),
    }
}

fn refused_reply(refused: Refused) -> R {
    match refused {
        Refused::Conflict(reason) => R::Conflict(pb::Conflict { reason }),
        Refused::Invalid(reason) => R::Invalid(pb::Invalid { reason }),
    }
}
