//! A local folder as the object store. An object is written beside, fsynced, renamed, and its folder
//! fsynced: it is there whole or not at all.

use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::ops::Range;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use bytes::Bytes;

use super::{ObjectStore, StoreError};

const LIST_MAX: usize = 1_000;

#[derive(Debug)]
pub struct LocalStore {
    root: PathBuf,
    url: String,
}

impl LocalStore {
    /// # Errors
    /// The folder cannot be made.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        std::fs::create_dir_all(root)
            .map_err(|error| failed(&root.display().to_string(), &error))?;
        Ok(Self {
            root: root.to_owned(),
            url: format!("file://{}", root.display()),
        })
    }

    fn path(&self, key: &str) -> Result<PathBuf, StoreError> {
        let plain = |part: &str| !part.is_empty() && part != "." && part != "..";
        if key.split('/').all(plain) {
            Ok(self.root.join(key))
        } else {
            Err(StoreError::Refused(format!("{key:?} is not a valid key")))
        }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        key: &str,
        work: impl FnOnce(&Path) -> std::io::Result<T> + Send + 'static,
    ) -> Result<T, StoreError> {
        let path = self.path(key)?;
        let done = tokio::task::spawn_blocking(move || work(&path)).await;
        let done = done.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
        done.map_err(|error| failed(key, &error))
    }
}

fn failed(key: &str, error: &std::io::Error) -> StoreError {
    use std::io::ErrorKind;
    match error.kind() {
        ErrorKind::NotFound => StoreError::NotFound(key.to_owned()),
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
            StoreError::Refused(format!("{key}: {error}"))
        }
        _ => StoreError::Unavailable(format!("{key}: {error}")),
    }
}

/// Writes beside and renames; `write` fills the file.
fn put_durably(
    path: &Path,
    write: impl FnOnce(&mut std::fs::File) -> std::io::Result<()>,
) -> std::io::Result<()> {
    let folder = path.parent().expect("a key lies in the root");
    std::fs::create_dir_all(folder)?;
    let beside = folder.join(format!(".{}.new", uuid::Uuid::new_v4()));
    let written = (|| {
        let mut file = std::fs::File::create(&beside)?;
        write(&mut file)?;
        file.sync_all()?;
        std::fs::rename(&beside, path)?;
        std::fs::File::open(folder)?.sync_all()
    })();
    if written.is_err() {
        let _ = std::fs::remove_file(&beside);
    }
    written
}

#[async_trait]
impl ObjectStore for LocalStore {
    async fn put(&self, key: &str, bytes: Bytes) -> Result<(), StoreError> {
        self.blocking(key, move |path| {
            put_durably(path, |file| file.write_all(&bytes))
        })
        .await
    }

    async fn put_file(&self, key: &str, file: &Path) -> Result<(), StoreError> {
        let from = file.to_owned();
        self.blocking(key, move |path| {
            put_durably(path, |to| {
                std::io::copy(&mut std::fs::File::open(&from)?, to)?;
                Ok(())
            })
        })
        .await
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        self.blocking(key, move |path| {
            let mut file = std::fs::File::open(path)?;
            let len = file.metadata()?.len();
            if range.end > len || range.start > range.end {
                return Err(std::io::Error::other(format!(
                    "has {len} bytes, not {}",
                    range.end
                )));
            }
            file.seek(SeekFrom::Start(range.start))?;
            let wanted = usize::try_from(range.end - range.start).map_err(std::io::Error::other)?;
            let mut bytes = vec![0; wanted];
            file.read_exact(&mut bytes)?;
            Ok(Bytes::from(bytes))
        })
        .await
    }

    async fn get(&self, key: &str) -> Result<Bytes, StoreError> {
        self.blocking(key, |path| std::fs::read(path).map(Bytes::from))
            .await
    }

    async fn head(&self, key: &str) -> Result<u64, StoreError> {
        self.blocking(key, |path| Ok(std::fs::metadata(path)?.len()))
            .await
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
    ) -> Result<Vec<(String, u64)>, StoreError> {
        let (root, prefix, after) = (
            self.root.clone(),
            prefix.to_owned(),
            after.map(str::to_owned),
        );
        let listed = tokio::task::spawn_blocking(move || {
            let mut found = Vec::new();
            let folder = prefix
                .rsplit_once('/')
                .map_or_else(|| root.clone(), |(dir, _)| root.join(dir));
            walk(&root, &folder, &mut found)?;
            found.retain(|(key, _)| {
                key.starts_with(&prefix) && after.as_ref().is_none_or(|after| key > after)
            });
            found.sort_unstable();
            found.truncate(LIST_MAX);
            Ok(found)
        })
        .await;
        let listed = listed.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
        listed.map_err(|error: std::io::Error| failed("list", &error))
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        let deleted = self.blocking(key, |path| std::fs::remove_file(path)).await;
        match deleted {
            Err(StoreError::NotFound(_)) => Ok(()),
            other => other,
        }
    }

    fn url(&self) -> &str {
        &self.url
    }

    fn is_local(&self) -> bool {
        true
    }
}

fn walk(root: &Path, folder: &Path, found: &mut Vec<(String, u64)>) -> std::io::Result<()> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            walk(root, &path, found)?;
        } else if !entry.file_name().to_string_lossy().starts_with('.')
            && let Ok(key) = path.strip_prefix(root)
        {
            match entry.metadata() {
                Ok(file) => found.push((key.to_string_lossy().into_owned(), file.len())),
                // Deleted since the folder was read.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_folder_keeps_the_contract_of_a_store() {
        let folder = std::env::temp_dir().join(format!("downriver-store-{}", uuid::Uuid::new_v4()));
        let store = LocalStore::open(&folder).expect("folder");
        super::super::contract::run(&store).await;
        assert!(matches!(
            store.get("../escape").await,
            Err(StoreError::Refused(_))
        ));
        std::fs::remove_dir_all(folder).expect("folder");
    }
}
