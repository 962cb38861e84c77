//! The store, the pointers and the catalog as an owner reaches them: through what goes wrong.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use downriver_lake::catalog::{
    BuiltinCatalog, Catalog, CatalogError, LoadedTable, NewTable, Pointer, PointerError, Pointers,
    TableName,
};
use downriver_log::store::{LocalStore, ObjectStore, StoreError};
use iceberg::{TableRequirement, TableUpdate};

use crate::faults::{Fault, Faults, Level, OF_COMMITS, Request};

/// The store as an owner reaches it.
#[derive(Debug)]
pub(crate) struct FarStore {
    pub(crate) inner: LocalStore,
    pub(crate) faults: Arc<Faults>,
}

impl FarStore {
    fn is_reached(&self) -> Result<(), StoreError> {
        if self.faults.store_fails() {
            return Err(StoreError::Unavailable("try again".into()));
        }
        Ok(())
    }
}

#[async_trait]
impl ObjectStore for FarStore {
    async fn put(&self, key: &str, bytes: Bytes) -> Result<(), StoreError> {
        self.inner.put(key, bytes).await
    }

    async fn put_file(&self, key: &str, file: &Path) -> Result<(), StoreError> {
        self.is_reached()?;
        self.inner.put_file(key, file).await
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        self.inner.get_range(key, range).await
    }

    async fn get(&self, key: &str) -> Result<Bytes, StoreError> {
        self.inner.get(key).await
    }

    async fn head(&self, key: &str) -> Result<u64, StoreError> {
        self.inner.head(key).await
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
    ) -> Result<Vec<(String, u64)>, StoreError> {
        self.inner.list(prefix, after).await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.inner.delete(key).await
    }

    fn url(&self) -> &str {
        self.inner.url()
    }

    fn is_local(&self) -> bool {
        self.inner.is_local()
    }
}

/// The one pointer there is, with every metadata file that it ever named.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    moves: Mutex<Vec<String>>,
}

impl Registry {
    /// Metadata files after the first `seen`.
    pub(crate) fn moves_after(&self, seen: usize) -> Vec<String> {
        self.moves.lock().unwrap()[seen..].to_vec()
    }

    fn apply(&self, swaps: &[Pointer]) -> Result<(), PointerError> {
        let mut moves = self.moves.lock().unwrap();
        let [swap] = swaps else {
            panic!("there is one table");
        };
        if moves.last().map_or("", String::as_str) != swap.expected {
            return Err(PointerError::Conflict(format!("{} moved", swap.table)));
        }
        moves.push(swap.metadata_location.clone());
        Ok(())
    }
}

#[async_trait]
impl Pointers for Registry {
    fn get(&self, _: &str, _: &str, _: &str) -> Option<String> {
        self.moves.lock().unwrap().last().cloned()
    }

    fn list(&self, _: &str) -> Vec<(String, String, String)> {
        Vec::new()
    }

    async fn swap(&self, swaps: Vec<Pointer>) -> Result<(), PointerError> {
        self.apply(&swaps)
    }
}

/// The registry as an owner reaches it.
#[derive(Debug)]
pub(crate) struct FarRegistry {
    /// Over the registry itself.
    pub(crate) near: BuiltinCatalog,
    pub(crate) registry: Arc<Registry>,
    pub(crate) faults: Arc<Faults>,
}

#[async_trait]
impl Pointers for FarRegistry {
    fn get(&self, catalog: &str, namespace: &str, table: &str) -> Option<String> {
        self.registry.get(catalog, namespace, table)
    }

    fn list(&self, catalog: &str) -> Vec<(String, String, String)> {
        self.registry.list(catalog)
    }

    async fn swap(&self, swaps: Vec<Pointer>) -> Result<(), PointerError> {
        let unknown = || PointerError::Unknown("the answer was lost".into());
        match self.faults.draw(Level::Pointers, &OF_COMMITS) {
            None => self.registry.apply(&swaps),
            Some(Fault::Conflict) => {
                meet_stranger(&self.near, &self.faults).await;
                self.registry.apply(&swaps)
            }
            Some(Fault::AnswerLost) => {
                let _ = self.registry.apply(&swaps);
                Err(unknown())
            }
            Some(Fault::Late) => {
                self.faults.keep(Request::Swap(swaps));
                Err(unknown())
            }
            Some(Fault::SleepsBefore) => {
                self.faults.sleep().await;
                self.registry.apply(&swaps)
            }
            Some(Fault::SleepsAfter) => {
                let done = self.registry.apply(&swaps);
                self.faults.sleep().await;
                done
            }
            Some(Fault::SleepsAndLost) => {
                let _ = self.registry.apply(&swaps);
                self.faults.sleep().await;
                Err(unknown())
            }
            Some(Fault::SleepsAndLate) => {
                self.faults.keep(Request::Swap(swaps));
                self.faults.sleep().await;
                Err(unknown())
            }
            Some(_) => Err(unknown()),
        }
    }
}

/// Somebody sets a property of the table that is none of ours, which does no harm.
async fn meet_stranger(near: &BuiltinCatalog, faults: &Faults) {
    let comment = ("comment".to_owned(), faults.next_stranger().to_string());
    let update = TableUpdate::SetProperties {
        updates: HashMap::from([comment]),
    };
    let Ok(Some(loaded)) = near.load(&table_name()).await else {
        return;
    };
    let uuid = loaded.metadata.uuid();
    let same = vec![TableRequirement::UuidMatch { uuid }];
    near.commit(&table_name(), same, vec![update])
        .await
        .unwrap();
}

pub(crate) fn table_name() -> TableName {
    TableName {
        namespace: "shop_public".into(),
        table: "things".into(),
    }
}

/// The catalog as an owner reaches it.
#[derive(Debug)]
pub(crate) struct FarCatalog {
    /// Over the far registry.
    pub(crate) inner: BuiltinCatalog,
    /// Over the registry itself.
    pub(crate) near: BuiltinCatalog,
    pub(crate) registry: Arc<Registry>,
    pub(crate) faults: Arc<Faults>,
}

impl FarCatalog {
    /// What is late arrives, as far as it is due.
    pub(crate) async fn arrive(&self, all: bool) {
        for request in self.faults.due(all) {
            let landed = match request {
                Request::Commit(name, requirements, updates) => {
                    let done = self.near.commit(&name, requirements, updates).await;
                    done.is_ok()
                }
                Request::Swap(swaps) => self.registry.apply(&swaps).is_ok(),
            };
            let what = if landed {
                "late and landed"
            } else {
                "late and refused"
            };
            self.faults.count(what);
        }
    }
}

#[async_trait]
impl Catalog for FarCatalog {
    async fn load(&self, name: &TableName) -> Result<Option<LoadedTable>, CatalogError> {
        self.arrive(false).await;
        let of_loads = [
            Fault::LoadUnavailable,
            Fault::SleepsBeforeLoad,
            Fault::SleepsAfterLoad,
        ];
        match self.faults.draw(self.faults.level(), &of_loads) {
            Some(Fault::LoadUnavailable) => Err(CatalogError::Unavailable("try again".into())),
            Some(Fault::SleepsBeforeLoad) => {
                self.faults.sleep().await;
                self.inner.load(name).await
            }
            Some(_) => {
                let loaded = self.inner.load(name).await;
                self.faults.sleep().await;
                loaded
            }
            None => self.inner.load(name).await,
        }
    }

    async fn create(&self, name: &TableName, new: NewTable) -> Result<LoadedTable, CatalogError> {
        let unknown = || CatalogError::Unknown("the answer was lost".into());
        let of_creations = [Fault::Unavailable, Fault::AnswerLost, Fault::RequestLost];
        match self.faults.draw(Level::Catalog, &of_creations) {
            None => self.inner.create(name, new).await,
            Some(Fault::Unavailable) => Err(CatalogError::Unavailable("try again".into())),
            Some(Fault::AnswerLost) => {
                let _ = self.inner.create(name, new).await;
                Err(unknown())
            }
            Some(_) => Err(unknown()),
        }
    }

    async fn commit(
        &self,
        name: &TableName,
        requirements: Vec<TableRequirement>,
        updates: Vec<TableUpdate>,
    ) -> Result<LoadedTable, CatalogError> {
        self.arrive(false).await;
        let unknown = || CatalogError::Unknown("the answer was lost".into());
        let inner = &self.inner;
        match self.faults.draw(Level::Catalog, &OF_COMMITS) {
            None => inner.commit(name, requirements, updates).await,
            Some(Fault::Conflict) => {
                meet_stranger(&self.near, &self.faults).await;
                Err(CatalogError::Conflict("something else changed".into()))
            }
            Some(Fault::Unavailable) => Err(CatalogError::Unavailable("try again".into())),
            Some(Fault::AnswerLost) => {
                let _ = inner.commit(name, requirements, updates).await;
                Err(unknown())
            }
            Some(Fault::Late) => {
                let request = Request::Commit(name.clone(), requirements, updates);
                self.faults.keep(request);
                Err(unknown())
            }
            Some(Fault::SleepsBefore) => {
                self.faults.sleep().await;
                inner.commit(name, requirements, updates).await
            }
            Some(Fault::SleepsAfter) => {
                let done = inner.commit(name, requirements, updates).await;
                self.faults.sleep().await;
                done
            }
            Some(Fault::SleepsAndLost) => {
                let _ = inner.commit(name, requirements, updates).await;
                self.faults.sleep().await;
                Err(unknown())
            }
            Some(Fault::SleepsAndLate) => {
                let request = Request::Commit(name.clone(), requirements, updates);
                self.faults.keep(request);
                self.faults.sleep().await;
                Err(unknown())
            }
            Some(_) => Err(unknown()),
        }
    }
}
