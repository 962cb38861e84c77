//! The replicated state and who replicates it: openraft over our own store, one command queue in front.
//!
//! - `state`: what the commands do; streams are downriver-log's journal, the rest is `control`.
//! - `store`: the Raft log on redb, and snapshots.
//! - `node`: proposing (many commands share one fsync) and reading.
//! - `sealer`: committed blocks become segments. `tidy`: segments are merged, listed in manifests, forgotten.
//!
//! It does not know what runs under the epochs that it gives out. There is one voter: the transport
//! between nodes is not built, and says so when it is asked for.

#[cfg(test)]
mod compat;
mod control;
mod network;
mod node;
mod propose;
mod sealer;
mod snapshot;
mod state;
mod store;
mod tidy;
mod wire;

pub use control::{ResourcePut, SinkTableState, StoredResource};
pub use downriver_api::cluster::v1::PointerSwap;
pub use node::{ControlError, Node, NodeConfig, NodeError, Retention};

openraft::declare_raft_types!(
    pub(crate) TypeConfig:
        D = wire::Wire<downriver_api::cluster::v1::Entry>,
        R = wire::Wire<downriver_api::cluster::v1::EntryReply>,
        NodeId = u64,
        Node = openraft::BasicNode,
        SnapshotData = tokio::fs::File,
);
