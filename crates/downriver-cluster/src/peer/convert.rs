//! openraft's types as nodes send them to each other.

use downriver_api::cluster::v1 as pb;
use openraft::{CommittedLeaderId, LogId, Vote};

pub(super) fn vote_to_pb(vote: &Vote<u64>) -> pb::RaftVote {
    pb::RaftVote {
        term: vote.leader_id.term,
        node_id: vote.leader_id.node_id,
        committed: vote.committed,
    }
}

/// `None`: a field is missing.
pub(super) fn vote(vote: Option<&pb::RaftVote>) -> Option<Vote<u64>> {
    let vote = vote?;
    Some(if vote.committed {
        Vote::new_committed(vote.term, vote.node_id)
    } else {
        Vote::new(vote.term, vote.node_id)
    })
}

pub(super) fn log_id_to_pb(id: &LogId<u64>) -> pb::RaftLogId {
    pb::RaftLogId {
        term: id.leader_id.term,
        node_id: id.leader_id.node_id,
        index: id.index,
    }
}

pub(super) fn log_id(id: &pb::RaftLogId) -> LogId<u64> {
    LogId::new(CommittedLeaderId::new(id.term, id.node_id), id.index)
}
