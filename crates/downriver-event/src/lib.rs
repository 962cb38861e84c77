//! The vocabulary that everything shares: positions, schemas, presence, and the block, the unit in which
//! changes are stored. It knows no database, no network and no clock.

pub mod block;
pub mod change;
pub mod civil;
pub mod filter;
pub mod pattern;
pub mod planted;
pub mod position;
pub mod presence;
pub mod problem;
pub mod schema;
pub mod view;

/// The stored and wire messages this vocabulary is written in.
pub use downriver_api::log::v1 as pb;

pub use block::{Block, BlockBuilder, EncodedBlock};
pub use filter::RowFilter;
pub use position::{
    BinlogPlace, DomainGtid, DomainGtids, EndedIncarnations, Epoch, Gtid, GtidSet, GtidSource,
    Incarnation, InvalidPlace, Lsn, Offset, SourcePosition, UnknownPosition,
};
pub use presence::Presence;
pub use schema::{Column, Cover, DefaultCell, LogicalType, ReplicaIdentity, TableId, TableSchema};
