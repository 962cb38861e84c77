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

/// `None`: this node does not lead, and nothing was done.
type Answer = Result<Option<Replies>, ControlError>;

struct Asked {
    commands: Vec<pb::Command>,
    answer: oneshot::Sender<Answer>,
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

/// Two queues. This node's own commands wait for whoever leads; what is decided here waits for nobody but Raft. If both
/// waited in one, two nodes that each take the other for the leader would wait for each other.
#[derive(Clone)]
pub(crate) struct Proposer {
    own: mpsc::Sender<Asked>,
    here: mpsc::Sender<Asked>,
}

impl Proposer {
    /// Starts the queues' tasks. `fatal` is told when Raft itself has failed.
    pub(crate) fn start(
        journal: Journal,
        fatal: watch::Sender<Option<String>>,
    ) -> (Self, [tokio::task::JoinHandle<()>; 2]) {
        let journal = Arc::new(journal);
        let (own, waiting) = mpsc::channel(QUEUE_MAX);
        let (here, waiting_here) = mpsc::channel(QUEUE_MAX);
        let tasks = [
            tokio::spawn(pass_on(Arc::clone(&journal), here.clone(), waiting)),
            tokio::spawn(decide(journal, waiting_here, fatal)),
        ];
        (Self { own, here }, tasks)
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
        let decided = ask(&self.own, commands).await?;
        decided.ok_or_else(|| ControlError::Unavailable("the node does not lead".into()))
    }

    /// The same for another node's, if this one leads.
    pub(crate) async fn propose_here(&self, commands: Vec<pb::Command>) -> Answer {
        ask(&self.here, commands).await
    }
}

async fn ask(queue: &mpsc::Sender<Asked>, commands: Vec<pb::Command>) -> Answer {
    let (answer, answered) = oneshot::channel();
    let gone = || ControlError::Unavailable("the node is stopping".into());
    queue
        .send(Asked { commands, answer })
        .await
        .map_err(|_| gone())?;
    answered.await.map_err(|_| gone())?
}

fn bytes_of(commands: &[pb::Command]) -> usize {
    commands.iter().map(prost::Message::encoded_len).sum()
}

/// Takes this node's own commands to whoever leads.
async fn pass_on(
    journal: Arc<Journal>,
    here: mpsc::Sender<Asked>,
    mut waiting: mpsc::Receiver<Asked>,
) {
    while let Some(together) = Together::take(&mut waiting).await {
        match journal.pass_on(&together.entry, &here).await {
            Ok(replies) => together.answer(Some(replies)),
            Err(undecided) => together.fail(&undecided.reason),
        }
    }
}

/// Decides as the leader.
async fn decide(
    journal: Arc<Journal>,
    mut waiting: mpsc::Receiver<Asked>,
    fatal: watch::Sender<Option<String>>,
) {
    while let Some(mut together) = Together::take(&mut waiting).await {
        let entry = std::mem::take(&mut together.entry);
        match journal.decide_here(entry).await {
            Ok(decided) => together.answer(decided),
            Err(Undecided { reason, is_fatal }) => {
                together.fail(&reason);
                if is_fatal {
                    tracing::error!(error = reason, "the journal failed: the node must stop");
                    fatal.send_replace(Some(format!("DR-1104: the journal failed: {reason}")));
                    return;
                }
            }
        }
    }
}

/// What waited and travels in one entry.
struct Together {
    entry: pb::Entry,
    /// In the order of their commands, and how many each has.
    answers: Vec<(usize, oneshot::Sender<Answer>)>,
}

impl Together {
    /// What waits in the queue, as soon as something does.
    async fn take(waiting: &mut mpsc::Receiver<Asked>) -> Option<Self> {
        let Asked { commands, answer } = waiting.recv().await?;
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
        Some(Self { entry, answers })
    }

    fn answer(self, decided: Option<Replies>) {
        let (replies, index) = decided.map_or((None, 0), |(replies, index)| (Some(replies), index));
        let mut replies = replies.map(Vec::into_iter);
        for (commands, answer) in self.answers {
            let of_asked = replies.as_mut().map(|all| all.take(commands).collect());
            // Whoever asked may have given up; the commands are applied all the same.
            let _ = answer.send(Ok(of_asked.map(|replies| (replies, index))));
        }
    }

    fn fail(self, reason: &str) {
        for (_, answer) in self.answers {
            let _ = answer.send(Err(ControlError::Unavailable(reason.to_owned())));
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
    async fn pass_on(
        &self,
        entry: &pb::Entry,
        here: &mpsc::Sender<Asked>,
    ) -> Result<Replies, Undecided> {
        let give_up = Instant::now() + LEADER_WITHIN;
        loop {
            let metrics = self.raft.metrics().borrow().clone();
            // Whoever does not lead has done nothing, so that another may be asked.
            let decided = match metrics.current_leader {
                Some(leader) if leader == metrics.id => {
                    let decided = ask(here, entry.commands.clone()).await;
                    decided.map_err(|error| error.to_string())?
                }
                Some(leader) => {
                    let membership = metrics.membership_config.membership();
                    let node = membership.get_node(&leader);
                    let address = node.map(|node| node.addr.clone()).unwrap_or_default();
                    self.decide_there(entry, leader, &address).await?
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
    async fn decide_here(&self, entry: pb::Entry) -> Result<Option<Replies>, Undecided> {
        let _writing = self.silence.writing.lock().await;
        if self.silence.is_kept.load(Ordering::SeqCst) {
            return Ok(None);
        }
        disk::takes_entries(&self.data)?;
        let written = self.raft.client_write(Wire(entry));
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use downriver_log::store::LocalStore;

    use super::*;
    use crate::{Node, NodeConfig};

    #[tokio::test]
    async fn what_was_passed_on_to_a_node_that_leads_no_more_goes_back_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let store = Arc::new(LocalStore::open(&folder.path().join("objects")).unwrap());
        let config = NodeConfig::new(folder.path().join("node"), store);
        let node = Node::start(config).await.unwrap();
        let record = |key: &str| {
            vec![pb::Command {
                kind: Some(pb::command::Kind::PutRecord(pb::PutRecord {
                    key: key.into(),
                    ..pb::PutRecord::default()
                })),
            }]
        };
        let (replies, _) = node
            .proposer()
            .propose_here(record("one"))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(replies.len(), 1);
        // It lets another lead: its own commands wait for that one, and what others pass on does not wait behind them.
        node.silence().begin().await;
        let own = node.proposer().propose_all(record("own"));
        let passed_on = node.proposer().propose_here(record("two"));
        let mut own = std::pin::pin!(own);
        tokio::select! {
            biased;
            _ = &mut own => panic!("nobody leads"),
            answer = passed_on => assert!(answer.unwrap().is_none()),
        }
        node.silence().end();
        assert_eq!(own.await.unwrap().0.len(), 1);
        node.shutdown().await;
    }
}
