//! The queue in front of Raft: what waits while an entry is being fsynced travels together in the next one.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use downriver_api::cluster::v1 as pb;
use openraft::Raft;
use openraft::error::{ClientWriteError, RaftError};
use prost::Message as _;
use tokio::sync::{mpsc, oneshot, watch};

use crate::TypeConfig;
use crate::node::ControlError;
use crate::state;
use crate::wire::Wire;

/// Largest entry, before one more command is taken.
const ENTRY_BYTES_MAX: usize = 4 << 20;
const ENTRY_COMMANDS_MAX: usize = 1_000;
/// Commands waiting in the queue.
const QUEUE_MAX: usize = 1_024;
/// Room that the data folder's disk must keep: the Raft log must never meet a full disk.
const DISK_BYTES_KEPT: u64 = 64 << 20;

type Answer = oneshot::Sender<Result<pb::command_reply::Kind, ControlError>>;

#[derive(Clone)]
pub(crate) struct Proposer {
    queue: mpsc::Sender<(pb::Command, Answer)>,
    bytes: Arc<AtomicU64>,
}

impl Proposer {
    /// Starts the queue's task. `fatal` is told when Raft itself has failed.
    pub(crate) fn start(
        raft: Raft<TypeConfig>,
        data: PathBuf,
        fatal: watch::Sender<Option<String>>,
    ) -> (Self, tokio::task::JoinHandle<()>) {
        let (queue, waiting) = mpsc::channel(QUEUE_MAX);
        let bytes = Arc::new(AtomicU64::new(0));
        let task = tokio::spawn(run(raft, data, waiting, Arc::clone(&bytes), fatal));
        (Self { queue, bytes }, task)
    }

    /// Bytes proposed since the start.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Returns when the command is applied, with what it answered.
    pub(crate) async fn propose(
        &self,
        kind: pb::command::Kind,
    ) -> Result<pb::command_reply::Kind, ControlError> {
        let (answer, answered) = oneshot::channel();
        let gone = || ControlError::Unavailable("the node is stopping".into());
        let command = pb::Command { kind: Some(kind) };
        self.queue
            .send((command, answer))
            .await
            .map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }
}

async fn run(
    raft: Raft<TypeConfig>,
    data: PathBuf,
    mut waiting: mpsc::Receiver<(pb::Command, Answer)>,
    proposed: Arc<AtomicU64>,
    fatal: watch::Sender<Option<String>>,
) {
    while let Some((command, answer)) = waiting.recv().await {
        let mut bytes = command.encoded_len();
        let mut entry = pb::Entry {
            format: state::FORMAT,
            commands: vec![command],
        };
        let mut answers = vec![answer];
        while bytes < ENTRY_BYTES_MAX && answers.len() < ENTRY_COMMANDS_MAX {
            let Ok((command, answer)) = waiting.try_recv() else {
                break;
            };
            bytes += command.encoded_len();
            entry.commands.push(command);
            answers.push(answer);
        }
        if let Err(full) = disk_has_room(&data, bytes as u64) {
            for answer in answers {
                let _ = answer.send(Err(ControlError::Unavailable(full.clone())));
            }
            continue;
        }
        proposed.fetch_add(bytes as u64, Ordering::Relaxed);
        match raft.client_write(Wire(entry)).await {
            Ok(written) => {
                for (answer, reply) in answers.into_iter().zip(written.data.0.replies) {
                    let kind = reply.kind.ok_or_else(|| {
                        ControlError::Invalid(
                            "the reply is of a kind that this build does not know".into(),
                        )
                    });
                    // Whoever asked may have given up; the command is applied all the same.
                    let _ = answer.send(kind);
                }
            }
            Err(error) => {
                let reason = error.to_string();
                for answer in answers {
                    let _ = answer.send(Err(ControlError::Unavailable(reason.clone())));
                }
                if let RaftError::Fatal(_) = error {
                    tracing::error!(error = reason, "the journal failed: the node must stop");
                    fatal.send_replace(Some(reason));
                    return;
                }
                debug_assert!(matches!(
                    error,
                    RaftError::APIError(
                        ClientWriteError::ForwardToLeader(_)
                            | ClientWriteError::ChangeMembershipError(_)
                    )
                ));
            }
        }
    }
}

fn disk_has_room(data: &std::path::Path, bytes: u64) -> Result<(), String> {
    let Ok(disk) = rustix::fs::statvfs(data) else {
        return Ok(());
    };
    let free = disk.f_bavail * disk.f_frsize;
    if free >= DISK_BYTES_KEPT + 2 * bytes {
        return Ok(());
    }
    Err(format!(
        "DR-1103: the disk of {} is full: {} MiB are free, {} MiB are kept for the journal",
        data.display(),
        free >> 20,
        DISK_BYTES_KEPT >> 20
    ))
}
