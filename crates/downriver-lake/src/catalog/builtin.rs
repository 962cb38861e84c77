//! The built-in catalog: a pointer per table in a compare-and-set store, metadata files in the warehouse.
//!
//! A commit writes the next metadata file under a name that no file ever had and then moves the pointer from
//! the file that it was made from. A crash before the move leaves a file that nothing names; a crash after it
//! leaves a commit. A file is deleted only after a move that took it out of the metadata log: the file of a
//! move that failed stays, because the store may say so of a move that it has made.
//!
//! Who replicates the pointers is not known here.

mod plan;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use async_trait::async_trait;
use iceberg::spec::TableMetadata;
use iceberg::table::Table;
use iceberg::{NamespaceIdent, Runtime, TableCreation, TableIdent, TableRequirement, TableUpdate};

use self::plan::{Next, Planned};
use super::{Catalog, CatalogError, LoadedTable, NewTable, TableName};
use crate::files::Warehouse;

/// The table part of the pointer that keeps an explicitly made namespace; no table has an empty name. In
/// place of a location it holds the namespace's properties as a JSON object.
const NAMESPACE: &str = "";

/// A pointer's move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pointer {
    pub catalog: String,
    pub namespace: String,
    pub table: String,
    /// Empty: it must not exist.
    pub expected: String,
    /// Empty: it is removed.
    pub metadata_location: String,
}

#[derive(Clone, Debug, thiserror::Error)]
pub enum PointerError {
    /// A pointer is not where it was expected: none was moved.
    #[error("{0}")]
    Conflict(String),
    /// They may have been moved, or may still be.
    #[error("{0}")]
    Unknown(String),
}

/// Where the pointers are kept.
///
/// `get` and `list` MUST show every swap that was answered before the call, on any node, or the catalog
/// serves an old table; no commit is lost by it, since `swap` compares. `swap` MUST move all pointers or
/// none, whatever is done at the same time. Its future may be dropped: then the outcome is unknown.
#[async_trait]
pub trait Pointers: Send + Sync + std::fmt::Debug + 'static {
    fn get(&self, catalog: &str, namespace: &str, table: &str) -> Option<String>;

    /// Namespace, table and value of all pointers of a catalog.
    fn list(&self, catalog: &str) -> Vec<(String, String, String)>;

    async fn swap(&self, swaps: Vec<Pointer>) -> Result<(), PointerError>;
}

#[derive(Clone, Debug)]
pub struct BuiltinCatalog {
    name: String,
    warehouse: Warehouse,
    pointers: Arc<dyn Pointers>,
}

impl BuiltinCatalog {
    /// `name` is the sink's, and what clients call the warehouse.
    #[must_use]
    pub fn new(name: impl Into<String>, warehouse: Warehouse, pointers: Arc<dyn Pointers>) -> Self {
        Self {
            name: name.into(),
            warehouse,
            pointers,
        }
    }

    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// All tables, in order.
    #[must_use]
    pub fn tables(&self) -> Vec<TableName> {
        let pointers = self.pointers.list(&self.name).into_iter();
        let mut tables: Vec<_> = pointers
            .filter(|(_, table, _)| table != NAMESPACE)
            .map(|(namespace, table, _)| TableName { namespace, table })
            .collect();
        tables.sort_unstable();
        tables
    }

    /// All namespaces, in order: those that were made and those that have a table.
    #[must_use]
    pub fn namespaces(&self) -> Vec<String> {
        let pointers = self.pointers.list(&self.name).into_iter();
        let namespaces: BTreeSet<_> = pointers.map(|(namespace, _, _)| namespace).collect();
        namespaces.into_iter().collect()
    }

    #[must_use]
    pub fn has_table(&self, name: &TableName) -> bool {
        self.location_of(name).is_some()
    }

    /// The properties of a namespace, if there is such a namespace.
    #[must_use]
    pub fn namespace(&self, namespace: &str) -> Option<HashMap<String, String>> {
        if let Some(properties) = self.pointers.get(&self.name, namespace, NAMESPACE) {
            return Some(serde_json::from_str(&properties).unwrap_or_default());
        }
        let mut pointers = self.pointers.list(&self.name).into_iter();
        pointers
            .any(|(name, _, _)| name == namespace)
            .then(HashMap::new)
    }

    /// # Errors
    /// `Conflict` if it is there already.
    pub async fn create_namespace(
        &self,
        namespace: &str,
        properties: &HashMap<String, String>,
    ) -> Result<(), CatalogError> {
        check_name("namespace", namespace)?;
        if self.namespace(namespace).is_some() {
            return Err(CatalogError::Conflict(format!(
                "namespace {namespace} is there already"
            )));
        }
        let kept = serde_json::to_string(properties).expect("text to text is JSON");
        self.swap(vec![self.pointer(namespace, NAMESPACE, "", &kept)])
            .await
    }

    /// Removes a namespace that was made; one that has tables only ends with the last of them.
    ///
    /// # Errors
    /// `Conflict` if it has a table.
    pub async fn drop_namespace(&self, namespace: &str) -> Result<(), CatalogError> {
        if self.tables().iter().any(|t| t.namespace == namespace) {
            return Err(CatalogError::Conflict(format!(
                "namespace {namespace} is not empty"
            )));
        }
        match self.pointers.get(&self.name, namespace, NAMESPACE) {
            Some(kept) => {
                self.swap(vec![self.pointer(namespace, NAMESPACE, &kept, "")])
                    .await
            }
            None => Ok(()),
        }
    }

    /// Makes a table of any shape that the library knows.
    ///
    /// # Errors
    /// `Conflict` if the table is there already.
    pub async fn create_table(
        &self,
        name: &TableName,
        creation: TableCreation,
    ) -> Result<LoadedTable, CatalogError> {
        let next = self.draft(name, creation)?;
        let location = next.location.to_string();
        self.write(&next).await?;
        self.swap(vec![self.pointer(
            &name.namespace,
            &name.table,
            "",
            &location,
        )])
        .await?;
        Ok(LoadedTable {
            metadata: next.metadata,
            metadata_location: location,
        })
    }

    /// What `create_table` would make, for a client that fills the table before a commit makes it.
    ///
    /// # Errors
    /// `Conflict` if the table is there already.
    pub fn stage_table(
        &self,
        name: &TableName,
        creation: TableCreation,
    ) -> Result<TableMetadata, CatalogError> {
        Ok(self.draft(name, creation)?.metadata)
    }

    /// Commits to several tables, all or none; the tables are returned in the same order. A table that is not
    /// there is made by the commit that asserts it.
    ///
    /// # Errors
    /// As a commit to each of them.
    pub async fn commit_all(
        &self,
        commits: Vec<(TableName, Vec<TableRequirement>, Vec<TableUpdate>)>,
    ) -> Result<Vec<LoadedTable>, CatalogError> {
        let mut names = BTreeSet::new();
        for (name, _, _) in &commits {
            check_table(name)?;
            if !names.insert(name) {
                return Err(CatalogError::Refused(format!(
                    "{name} is there twice in one commit"
                )));
            }
        }
        let mut swaps = Vec::new();
        let mut tables = Vec::new();
        let mut expired = Vec::new();
        let mut moved = false;
        for (name, requirements, updates) in commits {
            let current = self.load(&name).await?;
            let place = self.place(&name);
            let planned = plan::commit(&name, current.as_ref(), &place, &requirements, updates)?;
            let expected = current.as_ref().map_or("", |t| &*t.metadata_location);
            let table = match planned {
                // Its requirements must hold when the others' pointers move, so it stands guard.
                Planned::Same => current
                    .clone()
                    .expect("what is not there is never the same"),
                Planned::Moved(next) => {
                    self.inside(next.metadata.location())?;
                    self.write(&next).await?;
                    moved = true;
                    expired.extend(next.expired);
                    LoadedTable {
                        metadata: next.metadata,
                        metadata_location: next.location.to_string(),
                    }
                }
            };
            let (namespace, location) = (&name.namespace, &table.metadata_location);
            swaps.push(self.pointer(namespace, &name.table, expected, location));
            tables.push(table);
        }
        if moved {
            self.swap(swaps).await?;
            self.delete(&expired).await;
        }
        Ok(tables)
    }

    /// Forgets a table and, if asked to, deletes its files; false if there was none. What cannot be deleted
    /// is left over.
    ///
    /// # Errors
    /// `Conflict` if the table was changed meanwhile.
    pub async fn drop_table(&self, name: &TableName, purge: bool) -> Result<bool, CatalogError> {
        let Some(location) = self.location_of(name) else {
            return Ok(false);
        };
        let doomed = if purge {
            Some(self.read(name, &location).await?)
        } else {
            None
        };
        self.swap(vec![self.pointer(
            &name.namespace,
            &name.table,
            &location,
            "",
        )])
        .await?;
        if let Some(metadata) = doomed {
            let table = Table::builder()
                .identifier(TableIdent::new(
                    NamespaceIdent::new(name.namespace.clone()),
                    name.table.clone(),
                ))
                .file_io(self.warehouse.io().clone())
                .metadata(metadata)
                .metadata_location(location)
                .runtime(Runtime::current())
                .build();
            let deleted = match table {
                Ok(table) => iceberg::drop_table_data(&table).await,
                Err(error) => Err(error),
            };
            if let Err(error) = deleted {
                tracing::warn!(table = %name, %error, "files of a dropped table are left over");
            }
        }
        Ok(true)
    }

    fn draft(&self, name: &TableName, creation: TableCreation) -> Result<Next, CatalogError> {
        check_table(name)?;
        if self.has_table(name) {
            return Err(CatalogError::Conflict(format!(
                "table {name} is there already"
            )));
        }
        let next = plan::draft(name, &self.place(name), creation)?;
        self.inside(next.metadata.location())?;
        Ok(next)
    }

    fn location_of(&self, name: &TableName) -> Option<String> {
        if name.table == NAMESPACE {
            return None;
        }
        self.pointers.get(&self.name, &name.namespace, &name.table)
    }

    fn pointer(
        &self,
        namespace: &str,
        table: &str,
        expected: &str,
        metadata_location: &str,
    ) -> Pointer {
        Pointer {
            catalog: self.name.clone(),
            namespace: namespace.to_owned(),
            table: table.to_owned(),
            expected: expected.to_owned(),
            metadata_location: metadata_location.to_owned(),
        }
    }

    /// The folder of a new table. A table that is dropped and made again does not meet its old files.
    fn place(&self, name: &TableName) -> String {
        let short = &uuid::Uuid::new_v4().simple().to_string()[..8];
        let (namespace, table) = (folder(&name.namespace), folder(&name.table));
        self.warehouse
            .location(&format!("{namespace}/{table}-{short}"))
    }

    fn inside(&self, location: &str) -> Result<(), CatalogError> {
        let key = self.warehouse.key(location);
        key.map(|_| ())
            .map_err(|error| CatalogError::Refused(error.to_string()))
    }

    async fn read(&self, name: &TableName, location: &str) -> Result<TableMetadata, CatalogError> {
        let read = TableMetadata::read_from(self.warehouse.io(), location).await;
        read.map_err(|error| files_failed(name, &error))
    }

    async fn write(&self, next: &Next) -> Result<(), CatalogError> {
        let io = self.warehouse.io();
        let written = next.metadata.write_to(io, &next.location).await;
        written.map_err(|error| files_failed(&next.location, &error))
    }

    async fn swap(&self, swaps: Vec<Pointer>) -> Result<(), CatalogError> {
        match self.pointers.swap(swaps.clone()).await {
            Ok(()) => Ok(()),
            Err(PointerError::Unknown(reason)) => Err(CatalogError::Unknown(reason)),
            Err(PointerError::Conflict(reason)) => {
                // A store that repeats a proposal whose answer it lost meets its own move. Only ours names
                // these files.
                let done = swaps.iter().all(|swap| {
                    let now = self
                        .pointers
                        .get(&swap.catalog, &swap.namespace, &swap.table);
                    now.unwrap_or_default() == swap.metadata_location
                });
                if done {
                    Ok(())
                } else {
                    Err(CatalogError::Conflict(reason))
                }
            }
        }
    }

    /// Deletes metadata files that nothing names any more. One that stays does no harm.
    async fn delete(&self, locations: &[String]) {
        for location in locations {
            let deleted = match self.warehouse.key(location) {
                Ok(key) => self.warehouse.store().delete(key).await,
                Err(error) => Err(error),
            };
            if let Err(error) = deleted {
                tracing::warn!(location, %error, "an old metadata file is left over");
            }
        }
    }
}

#[async_trait]
impl Catalog for BuiltinCatalog {
    async fn load(&self, name: &TableName) -> Result<Option<LoadedTable>, CatalogError> {
        let Some(mut location) = self.location_of(name) else {
            return Ok(None);
        };
        loop {
            match self.read(name, &location).await {
                Ok(metadata) => {
                    return Ok(Some(LoadedTable {
                        metadata,
                        metadata_location: location,
                    }));
                }
                // The file may have been deleted by commits made since the pointer was read.
                Err(error) => match self.location_of(name) {
                    None => return Ok(None),
                    Some(now) if now == location => return Err(error),
                    Some(now) => location = now,
                },
            }
        }
    }

    async fn create(&self, name: &TableName, new: NewTable) -> Result<LoadedTable, CatalogError> {
        let creation = TableCreation::builder()
            .name(name.table.clone())
            .schema(new.schema)
            .properties(new.properties)
            .build();
        self.create_table(name, creation).await
    }

    async fn commit(
        &self,
        name: &TableName,
        requirements: Vec<TableRequirement>,
        updates: Vec<TableUpdate>,
    ) -> Result<LoadedTable, CatalogError> {
        let committed = self
            .commit_all(vec![(name.clone(), requirements, updates)])
            .await?;
        Ok(committed
            .into_iter()
            .next()
            .expect("one commit gives one table"))
    }
}

fn files_failed(what: &dyn std::fmt::Display, error: &iceberg::Error) -> CatalogError {
    let reason = format!("{what}: {error}");
    if error.retryable() {
        CatalogError::Unavailable(reason)
    } else {
        CatalogError::Refused(reason)
    }
}

fn check_table(name: &TableName) -> Result<(), CatalogError> {
    check_name("namespace", &name.namespace)?;
    check_name("table", &name.table)
}

/// The unit separator joins the levels of a namespace in the REST protocol, and there is one level.
fn check_name(what: &str, name: &str) -> Result<(), CatalogError> {
    if name.is_empty() || name.contains('\u{1f}') {
        return Err(CatalogError::Refused(format!(
            "{name:?} cannot be the name of a {what}"
        )));
    }
    Ok(())
}

/// A name as every file system, object store and client takes it. It need not tell two tables apart.
fn folder(name: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    name.chars()
        .take(100)
        .map(|c| if plain(c) { c } else { '_' })
        .collect()
}
