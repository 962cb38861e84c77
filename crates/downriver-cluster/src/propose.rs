//! The queue in front of Raft: what waits while an entry is being fsynced travels together in the next one. On a node
//! that does not lead, the entry goes to the one that does.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use downriver_api::cluster::v1 as pb;
use downriver_api::cluster::v1::command_reply::Kind as Reply;
use openraft::Raft;
use openraft::error::{ClientWriteError, RaftError};
use prost::Message as _;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::TypeConfig;
use crate::disk;
use crate::node::ControlError;
use crate::peer::Peers;
use crate::state;
use crate::store::Shared;
use crate::wire::Wire;

/// Largest entry, before one more command is taken.
const ENTRY_BYTES_MAX: usize = 4 << 20;
const ENTRY_COMMANDS_MAX: usize = 1_000;
/// Of what is proposed at once. An entry with two such has to fit a message between nodes.
pub(crate) const COMMAND_BYTES_MAX: usize = 6 << 20;
/// What waits in the queue.
const QUEUE_MAX: usize = 1_024;
/// How long an entry may take to be decided; a leader that is cut off never decides.
const DECIDE_WITHIN: Duration = Duration::from_secs(10);
/// How long a leader is looked for.
const LEADER_WITHIN: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// The replies to a list of commands, and the index of an entry at or after which they are applied.
pub(crate) type Replies = (Vec<Reply>, u64);

struct Asked {
    commands: Vec<pb::Command>,
    answer: oneshot::Sender<Result<Replies, ControlError>>,
}

/// Where entries go.
pub(crate) struct Journal {
    pub(crate) raft: Raft<TypeConfig>,
    pub(crate) peers: Peers,
    pub(crate) applied: Arc<Shared>,
    pub(crate) data: PathBuf,
    pub(crate) silence: Arc<Silence>,
}

/// Whether a node that leads takes no commands, so that another may lead.
#[derive(Debug, Default)]
pub(crate) struct Silence {
    is_kept: AtomicBool,
    /// Held while an entry is written.
    writing: tokio::sync::Mutex<()>,
}

impl Silence {
    /// Returns when nothing is being written any more.
    pub(crate) async fn begin(&self) {
        self.is_kept.store(true, Ordering::SeqCst);
        drop(self.writing.lock().await);
    }

    pub(crate) fn end(&self) {
        self.is_kept.store(false, Ordering::SeqCst);
    }
}

#[derive(Clone)]
pub(crate) struct Proposer {
    queue: mpsc::Sender<Asked>,
}

impl Proposer {
    /// Starts the queue's task. `fatal` is told when Raft itself has failed.
    pub(crate) fn start(
        journal: Journal,
        fatal: watch::Sender<Option<String>>,
    ) -> (Self, tokio::task::JoinHandle<()>) {
        let (queue, waiting) = mpsc::channel(QUEUE_MAX);
        let task = tokio::spawn(run(journal, waiting, fatal));
        (Self { queue }, task)
    }

    /// Returns when the command is applied, here as well, with what it answered.
    pub(crate) async fn propose(&self, kind: pb::command::Kind) -> Result<Reply, ControlError> {
        let command = pb::Command { kind: Some(kind) };
        let (mut replies, _) = self.propose_all(vec![command]).await?;
        replies
            .pop()
            .ok_or_else(|| ControlError::Unavailable("the journal did not answer".into()))
    }

    /// The same for several, which are in one entry.
    pub(crate) async fn propose_all(
        &self,
        commands: Vec<pb::Command>,
    ) -> Result<Replies, ControlError> {
        let bytes = bytes_of(&commands);
        if bytes > COMMAND_BYTES_MAX {
            return Err(ControlError::TooLarge { bytes });
        }
        let (answer, answered) = oneshot::channel();
        let gone = || ControlError::Unavailable("the node is stopping".into());
        self.queue
            .send(Asked { commands, answer })
            .await
            .map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }
}

fn bytes_of(commands: &[pb::Command]) -> usize {
    commands.iter().map(prost::Message::encoded_len).sum()
}

async fn run(
    journal: Journal,
    mut waiting: mpsc::Receiver<Asked>,
    fatal: watch::Sender<Option<String>>,
) {
    while let Some(Asked { commands, answer }) = waiting.recv().await {
        let mut bytes = bytes_of(&commands);
        let mut answers = vec![(commands.len(), answer)];
        let mut entry = pb::Entry {
            format: state::FORMAT,
            commands,
        };
        while bytes < ENTRY_BYTES_MAX && entry.commands.len() < ENTRY_COMMANDS_MAX {
            let Ok(Asked { commands, answer }) = waiting.try_recv() else {
                break;
            };
            bytes += bytes_of(&commands);
            answers.push((commands.len(), answer));
            entry.commands.extend(commands);
        }
        match journal.decide(entry).await {
            Ok((replies, index)) => {
                let mut replies = replies.into_iter();
                for (commands, answer) in answers {
                    let replies = replies.by_ref().take(commands).collect();
                    // Whoever asked may have given up; the commands are applied all the same.
                    let _ = answer.send(Ok((replies, index)));
                }
            }
            Err(Undecided { reason, is_fatal }) => {
                for (_, answer) in answers {
                    let _ = answer.send(Err(ControlError::Unavailable(reason.clone())));
                }
                if is_fatal {
                    tracing::error!(error = reason, "the journal failed: the node must stop");
                    fatal.send_replace(Some(format!("DR-1104: the journal failed: {reason}")));
                    return;
                }
            }
        }
    }
}

/// An entry that is not decided: it may still be applied.
struct Undecided {
    reason: String,
    is_fatal: bool,
}

impl From<String> for Undecided {
    fn from(reason: String) -> Self {
        Self {
            reason,
            is_fatal: false,
        }
    }
}

impl Journal {
    /// Returns when the entry is applied on this node.
    async fn decide(&self, entry: pb::Entry) -> Result<Replies, Undecided> {
        let give_up = Instant::now() + LEADER_WITHIN;
        loop {
            let metrics = self.raft.metrics().borrow().clone();
            // Whoever does not lead has done nothing, so that another may be asked.
            let decided = match metrics.current_leader {
                Some(leader) if leader == metrics.id => self.decide_here(&entry).await?,
                Some(leader) => {
                    let membership = metrics.membership_config.membership();
                    let node = membership.get_node(&leader);
                    let address = node.map(|node| node.addr.clone()).unwrap_or_default();
                    self.decide_there(&entry, leader, &address).await?
                }
                None => None,
            };
            if let Some(decided) = decided {
                return Ok(decided);
            }
            if Instant::now() >= give_up {
                return Err(Undecided::from(
                    "DR-1105: no leader was found: most of the cluster's voters must be up and reach each other"
                        .to_owned(),
                ));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// `None`: this node does not lead, and nothing was done.
    async fn decide_here(&self, entry: &pb::Entry) -> Result<Option<Replies>, Undecided> {
        let _writing = self.silence.writing.lock().await;
        if self.silence.is_kept.load(Ordering::SeqCst) {
            return Ok(None);
        }
        disk::takes(&self.data, entry.encoded_len() as u64)?;
        let written = self.raft.client_write(Wire(entry.clone()));
        let Ok(written) = tokio::time::timeout(DECIDE_WITHIN, written).await else {
            return Err(not_decided("most of the voters do not answer").into());
        };
        match written {
            Ok(written) => {
                let index = written.log_id.index;
                Ok(Some((kinds(written.data.0.replies)?, index)))
            }
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_))) => Ok(None),
            Err(error) => Err(Undecided {
                is_fatal: matches!(error, RaftError::Fatal(_)),
                reason: error.to_string(),
            }),
        }
    }

    /// `None`: that node does not lead, and nothing was done.
    async fn decide_there(
        &self,
        entry: &pb::Entry,
        leader: u64,
        address: &str,
    ) -> Result<Option<Replies>, Undecided> {
        let request = pb::ProposeRequest {
            envelope: self.peers.envelope(leader),
            entry: Some(entry.clone()),
        };
        let mut client = self
            .peers
            .client(address)
            .map_err(|error| not_decided(&format!("{address}: {error}")))?;
        let asked = tokio::time::timeout(DECIDE_WITHIN, client.propose(request)).await;
        let Ok(asked) = asked else {
            return Err(not_decided(&format!("the leader at {address} does not answer")).into());
        };
        let response = asked
            .map_err(|status| {
                not_decided(&format!("the leader at {address}: {}", status.message()))
            })?
            .into_inner();
        if !response.leads {
            return Ok(None);
        }
        let applied = self.applied.has_applied(response.index);
        if tokio::time::timeout(DECIDE_WITHIN, applied).await.is_err() {
            return Err(not_decided("this node does not hear of what was decided").into());
        }
        Ok(Some((kinds(response.replies)?, response.index)))
    }
}

fn not_decided(reason: &str) -> String {
    format!("not decided, and it may still be: {reason}")
}

fn kinds(replies: Vec<pb::CommandReply>) -> Result<Vec<Reply>, Undecided> {
    let kinds = replies.into_iter().map(|reply| reply.kind);
    kinds.collect::<Option<_>>().ok_or_else(|| {
        Undecided::from("a reply is of a kind that this build does not know".to_owned())
    })
}
