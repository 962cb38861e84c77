//! Sessions with source databases: slot, publication, snapshot, stream, acknowledge. What the bytes mean is
//! downriver-decode's; what is done with the changes is downriver-pipeline's.

mod error;
mod pace;
pub mod postgres;
mod wire;

pub use error::{Class, SourceError};
