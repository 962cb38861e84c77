//! The warehouse's files: an object store seen as the locations that Iceberg metadata names, and the same
//! store as the library's `FileIO`.

use std::io::Write as _;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use downriver_log::{ObjectStore, StoreError};
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use iceberg::io::{
    FileIO, FileIOBuilder, FileMetadata, FileRead, FileWrite, InputFile, OutputFile, Storage,
    StorageConfig, StorageFactory,
};
use iceberg::{Error, ErrorKind};
use serde::{Deserialize, Serialize};

/// Where a lake's files lie.
#[derive(Clone, Debug)]
pub struct Warehouse {
    files: Files,
    io: FileIO,
}

impl Warehouse {
    /// `spool` is a local folder for files that are being written.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn open(store: Arc<dyn ObjectStore>, spool: &Path) -> std::io::Result<Self> {
        std::fs::create_dir_all(spool)?;
        let files = Files {
            inner: Some(Arc::new(Inner {
                store,
                spool: spool.to_owned(),
            })),
        };
        let io = FileIOBuilder::new(Arc::new(files.clone())).build();
        Ok(Self { files, io })
    }

    #[must_use]
    pub fn store(&self) -> &Arc<dyn ObjectStore> {
        &self.files.inner().store
    }

    /// The library's view of the same files.
    #[must_use]
    pub fn io(&self) -> &FileIO {
        &self.io
    }

    /// The location of a new file.
    #[must_use]
    pub fn location(&self, key: &str) -> String {
        format!("{}/{key}", self.store().url())
    }

    /// The store's key of a location.
    ///
    /// # Errors
    /// The location is not in this warehouse.
    pub fn key<'a>(&self, location: &'a str) -> Result<&'a str, StoreError> {
        self.files.key(location)
    }

    #[must_use]
    pub fn spool(&self) -> &Path {
        &self.files.inner().spool
    }
}

#[derive(Debug)]
struct Inner {
    store: Arc<dyn ObjectStore>,
    spool: PathBuf,
}

/// The store as the library's storage. It is never serialized for real: the library wants that it could be.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Files {
    #[serde(skip)]
    inner: Option<Arc<Inner>>,
}

impl Files {
    fn inner(&self) -> &Inner {
        self.inner
            .as_ref()
            .expect("a storage is never deserialized")
    }

    fn store(&self) -> &dyn ObjectStore {
        &*self.inner().store
    }

    fn key<'a>(&self, location: &'a str) -> Result<&'a str, StoreError> {
        let root = self.store().url();
        let plain = |url: &'a str| url.split_once("://").map_or(url, |(_, rest)| rest);
        let rest = plain(location).strip_prefix(root.split_once("://").map_or(root, |(_, r)| r));
        rest.and_then(|rest| rest.strip_prefix('/'))
            .filter(|key| !key.is_empty())
            .ok_or_else(|| {
                StoreError::Refused(format!(
                    "{location:?} is not in the warehouse {root}: let the sink's warehouse be the root of the catalog's"
                ))
            })
    }
}

fn to_library(error: StoreError) -> Error {
    let transient = matches!(error, StoreError::Unavailable(_));
    Error::new(ErrorKind::Unexpected, error.to_string()).with_retryable(transient)
}

#[typetag::serde(name = "downriver")]
impl StorageFactory for Files {
    fn build(&self, _: &StorageConfig) -> iceberg::Result<Arc<dyn Storage>> {
        Ok(Arc::new(self.clone()))
    }
}

#[async_trait]
#[typetag::serde(name = "downriver")]
impl Storage for Files {
    async fn exists(&self, path: &str) -> iceberg::Result<bool> {
        let key = self.key(path).map_err(to_library)?;
        match self.store().head(key).await {
            Ok(_) => Ok(true),
            Err(StoreError::NotFound(_)) => Ok(false),
            Err(error) => Err(to_library(error)),
        }
    }

    async fn metadata(&self, path: &str) -> iceberg::Result<FileMetadata> {
        let key = self.key(path).map_err(to_library)?;
        let size = self.store().head(key).await.map_err(to_library)?;
        Ok(FileMetadata { size })
    }

    async fn read(&self, path: &str) -> iceberg::Result<Bytes> {
        let key = self.key(path).map_err(to_library)?;
        self.store().get(key).await.map_err(to_library)
    }

    async fn reader(&self, path: &str) -> iceberg::Result<Box<dyn FileRead>> {
        let key = self.key(path).map_err(to_library)?.to_owned();
        Ok(Box::new(Reader {
            files: self.clone(),
            key,
        }))
    }

    async fn write(&self, path: &str, bytes: Bytes) -> iceberg::Result<()> {
        let key = self.key(path).map_err(to_library)?;
        self.store().put(key, bytes).await.map_err(to_library)
    }

    async fn writer(&self, path: &str) -> iceberg::Result<Box<dyn FileWrite>> {
        let key = self.key(path).map_err(to_library)?.to_owned();
        let spooled = self
            .inner()
            .spool
            .join(format!("{}.spool", uuid::Uuid::now_v7()));
        let file = std::fs::File::create_new(&spooled).map_err(|error| {
            Error::new(
                ErrorKind::Unexpected,
                format!("{}: {error}", spooled.display()),
            )
            .with_retryable(true)
        })?;
        Ok(Box::new(Writer {
            files: self.clone(),
            key,
            spooled,
            file,
        }))
    }

    async fn delete(&self, path: &str) -> iceberg::Result<()> {
        let key = self.key(path).map_err(to_library)?;
        self.store().delete(key).await.map_err(to_library)
    }

    async fn delete_prefix(&self, path: &str) -> iceberg::Result<()> {
        let prefix = format!(
            "{}/",
            self.key(path).map_err(to_library)?.trim_end_matches('/')
        );
        loop {
            let keys = self.store().list(&prefix, None).await.map_err(to_library)?;
            if keys.is_empty() {
                return Ok(());
            }
            for (key, _) in keys {
                self.store().delete(&key).await.map_err(to_library)?;
            }
        }
    }

    async fn delete_stream(&self, mut paths: BoxStream<'static, String>) -> iceberg::Result<()> {
        while let Some(path) = paths.next().await {
            self.delete(&path).await?;
        }
        Ok(())
    }

    fn new_input(&self, path: &str) -> iceberg::Result<InputFile> {
        Ok(InputFile::new(Arc::new(self.clone()), path.to_owned()))
    }

    fn new_output(&self, path: &str) -> iceberg::Result<OutputFile> {
        Ok(OutputFile::new(Arc::new(self.clone()), path.to_owned()))
    }
}

struct Reader {
    files: Files,
    key: String,
}

#[async_trait]
impl FileRead for Reader {
    async fn read(&self, range: Range<u64>) -> iceberg::Result<Bytes> {
        self.files
            .store()
            .get_range(&self.key, range)
            .await
            .map_err(to_library)
    }
}

/// Collects a file locally, so that its bytes need no memory, and puts it whole.
struct Writer {
    files: Files,
    key: String,
    spooled: PathBuf,
    file: std::fs::File,
}

#[async_trait]
impl FileWrite for Writer {
    async fn write(&mut self, bytes: Bytes) -> iceberg::Result<()> {
        self.file.write_all(&bytes).map_err(|error| {
            Error::new(
                ErrorKind::Unexpected,
                format!("{}: {error}", self.spooled.display()),
            )
            .with_retryable(true)
        })
    }

    async fn close(&mut self) -> iceberg::Result<()> {
        self.files
            .store()
            .put_file(&self.key, &self.spooled)
            .await
            .map_err(to_library)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.spooled);
    }
}
