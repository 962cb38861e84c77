//! The replicated state and who replicates it: openraft over our own store, one command queue in front.
//!
//! - `state`: what the commands do; streams are downriver-log's journal, consumers' cursors `groups`, the rest `control`.
//! - `store`: the Raft log on redb, and snapshots.
//! - `node`: what can be asked of it. `propose`: many commands share one fsync, and go to the leader.
//! - `peer`: other nodes. `identity`, `form`: which node this is, and how it comes into a cluster. `members`: what the
//!   leader keeps in order of them, and `assign`: who runs what.
//! - `elect`: when a node may ask to lead. `transfer`: leadership that is handed over.
//! - `sealer`: committed blocks become segments. `tidy`: segments are merged, listed in manifests, forgotten.
//!
//! It does not know what runs under the epochs that it gives out.

mod assign;
mod backup;
#[cfg(test)]
mod compat;
mod control;
mod disk;
mod elect;
mod form;
mod groups;
mod identity;
mod members;
mod node;
mod objects;
mod peer;
mod propose;
mod sealer;
#[cfg(test)]
mod sim;
mod snapshot;
mod state;
mod store;
mod tidy;
mod transfer;
mod wire;

pub use assign::Task;
pub use backup::{Backup, Backups, RestoreError, Restored, RestoredStream, backups, restore};
pub use control::{Assignment, Member, ResourcePut, SinkTableState, StoredResource};
pub use downriver_api::cluster::v1::PointerSwap;
pub use form::Seeds;
pub use groups::{Cursor, Group};
pub use members::{MemberConfig, MemberView};
pub use node::{ControlError, Node, NodeConfig, NodeError, Retention};
pub use peer::PeerTls;
pub use state::{pipeline_task, source_task};

openraft::declare_raft_types!(
    pub(crate) TypeConfig:
        D = wire::Wire<downriver_api::cluster::v1::Entry>,
        R = wire::Wire<downriver_api::cluster::v1::EntryReply>,
        NodeId = u64,
        Node = openraft::BasicNode,
        SnapshotData = tokio::fs::File,
);
