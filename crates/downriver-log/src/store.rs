//! The object store behind the log and the lake's built-in warehouse: a local folder, or S3.
//!
//! Objects are immutable and put under unique keys: nothing is ever overwritten, so correctness depends
//! neither on conditional puts nor on clocks.

use std::ops::Range;

use async_trait::async_trait;
use bytes::Bytes;

/// What went wrong, in the terms of a caller that decides whether to try again.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("object {0:?} does not exist")]
    NotFound(String),
    /// Worth trying again: a timeout, a refused connection, a 5xx, a full disk. The outcome of a put is unknown.
    #[error("the object store is unavailable: {0}")]
    Unavailable(String),
    /// Trying again will not help: wrong credentials, no such bucket, no permission.
    #[error("the object store refused: {0}")]
    Refused(String),
}

#[async_trait]
pub trait ObjectStore: Send + Sync + std::fmt::Debug + 'static {
    /// Stores a whole object durably. Putting the same bytes again under the same key is harmless.
    async fn put(&self, key: &str, bytes: Bytes) -> Result<(), StoreError>;

    /// Stores a local file's content durably, without holding it in memory.
    async fn put_file(&self, key: &str, file: &std::path::Path) -> Result<(), StoreError>;

    /// # Errors
    /// `NotFound`, or fewer bytes than asked for.
    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, StoreError>;

    async fn get(&self, key: &str) -> Result<Bytes, StoreError>;

    /// Length in bytes.
    async fn head(&self, key: &str) -> Result<u64, StoreError>;

    /// Keys and lengths under a prefix, in key order, after `after`; at most 1,000.
    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
    ) -> Result<Vec<(String, u64)>, StoreError>;

    /// Deleting what is not there is not an error.
    async fn delete(&self, key: &str) -> Result<(), StoreError>;

    /// The store's URL, for messages and for joining with keys: `file:///…` or `s3://bucket/prefix`.
    fn url(&self) -> &str;

    /// Whether only this machine can reach it.
    fn is_local(&self) -> bool;
}
