//! Iceberg tables: what a stream of changes becomes in a lake that every engine reads fast.
//!
//! - `catalog`: who decides commits: the built-in catalog (and its REST server) or any REST catalog.
//! - `table`: one table's owner: changes in, snapshots out. `window` reduces changes to each key's last
//!   state, `index` knows where keys are, `encoding` and `schema` what columns become, `data` and `snapshot`
//!   write the files.
//! - `files`: the warehouse's object store as the locations that metadata names.
//!
//! It does not know where changes come from nor when to commit: the pipeline does.

pub mod catalog;
mod data;
mod encoding;
mod error;
mod files;
mod index;
mod reshape;
mod scan;
mod schema;
mod snapshot;
mod table;
mod window;

pub use error::LakeError;
pub use files::Warehouse;
pub use scan::{Digest, TableScan};
pub use table::{Changes, Schemas, TableConfig, TableWriter, owner_of};
