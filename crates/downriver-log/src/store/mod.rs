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

    /// Keys and lengths under a prefix, in the order of the keys' bytes, after `after`; at most 1,000.
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

mod local;
mod s3;

use std::sync::Arc;

pub use local::LocalStore;
pub use s3::{S3Options, S3Store};

/// Opens the store that a URL names: `file:///folder` or `s3://bucket/prefix`.
///
/// # Errors
/// The URL is neither, or the folder cannot be made.
pub fn open(url: &str, s3: &S3Options) -> Result<Arc<dyn ObjectStore>, StoreError> {
    if let Some(path) = url.strip_prefix("file://") {
        return Ok(Arc::new(LocalStore::open(std::path::Path::new(path))?));
    }
    if let Some(place) = url.strip_prefix("s3://") {
        let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
        if !bucket.is_empty() {
            return Ok(Arc::new(S3Store::open(bucket, prefix, s3)));
        }
    }
    Err(StoreError::Refused(format!(
        "{url:?} is not a store: use file:///folder or s3://bucket/prefix"
    )))
}

/// What every implementation must do; run it against a fresh, empty store.
pub mod contract {
    use bytes::Bytes;

    use super::{ObjectStore, StoreError};

    /// # Panics
    /// If the store breaks the contract.
    pub async fn run(store: &dyn ObjectStore) {
        let body = Bytes::from_static(b"0123456789");
        store.put("a/b/1", body.clone()).await.expect("put");
        store
            .put("a/b/1", body.clone())
            .await
            .expect("the same bytes again");
        assert_eq!(store.get("a/b/1").await.expect("get"), body);
        assert_eq!(store.head("a/b/1").await.expect("head"), 10);
        assert_eq!(
            &store.get_range("a/b/1", 3..6).await.expect("range")[..],
            b"345"
        );
        assert!(
            store.get_range("a/b/1", 8..12).await.is_err(),
            "a short range is an error"
        );
        assert!(matches!(
            store.get("a/none").await,
            Err(StoreError::NotFound(_))
        ));
        assert!(matches!(
            store.head("a/none").await,
            Err(StoreError::NotFound(_))
        ));
        let file =
            std::env::temp_dir().join(format!("downriver-contract-{}", uuid::Uuid::new_v4()));
        std::fs::write(&file, &body).expect("temporary file");
        store.put_file("a/c", &file).await.expect("put a file");
        std::fs::remove_file(&file).expect("temporary file");
        assert_eq!(store.get("a/c").await.expect("get"), body);
        let keys = |list: Vec<(String, u64)>| list.into_iter().map(|(k, _)| k).collect::<Vec<_>>();
        assert_eq!(
            keys(store.list("a/", None).await.expect("list")),
            ["a/b/1", "a/c"]
        );
        assert_eq!(
            keys(store.list("a/", Some("a/b/1")).await.expect("list")),
            ["a/c"]
        );
        assert!(store.list("zzz/", None).await.expect("list").is_empty());
        store.delete("a/c").await.expect("delete");
        store.delete("a/c").await.expect("delete what is not there");
        assert!(matches!(
            store.get("a/c").await,
            Err(StoreError::NotFound(_))
        ));
    }
}
