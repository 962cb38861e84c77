//! Sessions with source databases: slot and publication, or binlog; snapshot, stream, acknowledge. What the bytes mean is
//! downriver-decode's; what is done with the changes is downriver-pipeline's.

pub mod check;
pub mod chunk;
mod error;
mod filter;
pub mod mysql;
mod pace;
pub mod postgres;
mod reader;
pub mod rules;
mod transport;
mod url;
mod wire;

pub use error::{Class, SourceError};
pub use transport::{SslMode, Tls};
pub use url::InvalidUrl;
