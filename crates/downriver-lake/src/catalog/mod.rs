//! The catalog: which metadata file is a table's current one. It decides commits by compare-and-set and knows
//! nothing of rows.
//!
//! - `builtin`: pointers in the replicated state; metadata files in the warehouse.
//! - `rest`: any Iceberg REST catalog, as its client.
//! - `server`: the built-in catalog served as an Iceberg REST catalog to other engines.

mod builtin;
mod rest;
pub mod server;

use std::collections::HashMap;

use async_trait::async_trait;
use iceberg::spec::{Schema, TableMetadata};
use iceberg::{TableRequirement, TableUpdate};

pub use builtin::{BuiltinCatalog, Pointer, PointerError, Pointers};
pub use rest::{RestCatalog, RestOptions};

/// A table of one catalog: one level of namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableName {
    pub namespace: String,
    pub table: String,
}

impl std::fmt::Display for TableName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.namespace, self.table)
    }
}

/// A table as the catalog has it now.
#[derive(Clone, Debug)]
pub struct LoadedTable {
    pub metadata: TableMetadata,
    /// Where the metadata file lies.
    pub metadata_location: String,
}

/// What a new, unpartitioned table of format version 2 begins with. The catalog may give its own field
/// ids: read them from what `create` returns.
#[derive(Clone, Debug)]
pub struct NewTable {
    pub schema: Schema,
    pub properties: HashMap<String, String>,
}

/// Why the catalog did not do it.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// A requirement of the commit did not hold, or the table was made by somebody else: nothing was changed.
    #[error("the catalog has another state than expected: {0}")]
    Conflict(String),
    /// It may have been done, or may still be: look before doing it again.
    #[error("it is not known whether the catalog did it: {0}")]
    Unknown(String),
    /// Nothing was done; worth trying again.
    #[error("the catalog is unavailable: {0}")]
    Unavailable(String),
    /// Trying again will not help: wrong credentials, no such warehouse, a request it does not take.
    #[error("the catalog refused: {0}")]
    Refused(String),
}

#[async_trait]
pub trait Catalog: Send + Sync + std::fmt::Debug + 'static {
    /// The table as it is now, never from a cache; `None` if there is no such table or namespace.
    async fn load(&self, name: &TableName) -> Result<Option<LoadedTable>, CatalogError>;

    /// Makes the table, and its namespace if need be. `Conflict` if the table is there already.
    async fn create(&self, name: &TableName, new: NewTable) -> Result<LoadedTable, CatalogError>;

    /// Applies all updates if every requirement holds, or none. Never rebases, never retries by itself.
    async fn commit(
        &self,
        name: &TableName,
        requirements: Vec<TableRequirement>,
        updates: Vec<TableUpdate>,
    ) -> Result<LoadedTable, CatalogError>;
}

/// What every implementation must do; run it against a catalog that has no table `name`.
pub mod contract {
    use std::collections::HashMap;

    use iceberg::spec::{NestedField, PrimitiveType, Schema, Type};
    use iceberg::{TableRequirement, TableUpdate};

    use super::{Catalog, CatalogError, NewTable, TableName};

    /// # Panics
    /// If the catalog breaks the contract.
    pub async fn run(catalog: &dyn Catalog, name: &TableName) {
        let new = || NewTable {
            schema: Schema::builder()
                .with_fields(vec![
                    NestedField::required(1, "id", Type::Primitive(PrimitiveType::Long)).into(),
                    NestedField::optional(2, "name", Type::Primitive(PrimitiveType::String)).into(),
                ])
                .with_identifier_field_ids(vec![1])
                .build()
                .expect("schema"),
            properties: HashMap::from([("downriver.offset".to_owned(), "0".to_owned())]),
        };
        assert!(catalog.load(name).await.expect("load").is_none());
        let created = catalog.create(name, new()).await.expect("create");
        assert_eq!(created.metadata.properties()["downriver.offset"], "0");
        assert!(matches!(
            catalog.create(name, new()).await,
            Err(CatalogError::Conflict(_))
        ));
        let uuid = created.metadata.uuid();
        let set = |value: &str| {
            vec![TableUpdate::SetProperties {
                updates: HashMap::from([("downriver.offset".to_owned(), value.to_owned())]),
            }]
        };
        let requirements = |uuid| {
            vec![
                TableRequirement::UuidMatch { uuid },
                TableRequirement::RefSnapshotIdMatch {
                    r#ref: "main".into(),
                    snapshot_id: None,
                },
            ]
        };
        let committed = catalog
            .commit(name, requirements(uuid), set("7"))
            .await
            .expect("commit");
        assert_eq!(committed.metadata.properties()["downriver.offset"], "7");
        let refused = catalog
            .commit(name, requirements(uuid::Uuid::new_v4()), set("8"))
            .await;
        assert!(
            matches!(refused, Err(CatalogError::Conflict(_))),
            "{refused:?}"
        );
        let loaded = catalog.load(name).await.expect("load").expect("is there");
        assert_eq!(loaded.metadata.properties()["downriver.offset"], "7");
        assert_eq!(loaded.metadata.uuid(), uuid);
    }
}
