//! Any Iceberg REST catalog, as its client.
//!
//! The protocol is `open-api/rest-catalog-open-api.yaml` of apache/iceberg. What an answer means for a commit
//! is decided in one place, `answer`. Nothing is retried here, except one time after a token was refused.

mod answer;
mod session;

use std::time::Duration;

use async_trait::async_trait;
use iceberg::spec::{Schema, TableMetadata};
use iceberg::{TableRequirement, TableUpdate};
use reqwest::{Method, StatusCode};
use serde::{Deserialize, Serialize};

use self::answer::{Answer, Request};
use self::session::Session;
use super::{Catalog, CatalogError, LoadedTable, NewTable, TableName};

/// How to reach a catalog and as whom.
#[derive(Clone)]
pub struct RestOptions {
    /// Without the `/v1`.
    pub uri: String,
    /// What the catalog calls the warehouse; some serve only one.
    pub warehouse: Option<String>,
    /// Client id and secret, for tokens that are renewed.
    pub credential: Option<(String, String)>,
    /// A token that is used as it is, as long as it is taken.
    pub token: Option<String>,
    /// Where tokens are given for the credential, if not at the catalog itself.
    pub oauth2_server_uri: Option<String>,
    pub scope: String,
    /// How long one request may take. A commit that takes longer has an unknown outcome.
    pub request_timeout: Duration,
}

impl RestOptions {
    #[must_use]
    pub fn new(uri: impl Into<String>) -> Self {
        Self {
            uri: uri.into(),
            warehouse: None,
            credential: None,
            token: None,
            oauth2_server_uri: None,
            scope: "catalog".to_owned(),
            request_timeout: Duration::from_secs(60),
        }
    }
}

/// Without the secrets.
impl std::fmt::Debug for RestOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RestOptions")
            .field("uri", &self.uri)
            .field("warehouse", &self.warehouse)
            .field("oauth2_server_uri", &self.oauth2_server_uri)
            .field("scope", &self.scope)
            .field("request_timeout", &self.request_timeout)
            .finish_non_exhaustive()
    }
}

#[derive(Debug)]
pub struct RestCatalog {
    session: Session,
    /// Held while a namespace is made: some catalogs break one that is made twice at the same time.
    making: tokio::sync::Mutex<()>,
}

impl RestCatalog {
    /// Needs no network: the catalog is met at the first call.
    ///
    /// # Errors
    /// `Refused` if the URI is none.
    pub fn open(options: RestOptions) -> Result<Self, CatalogError> {
        Ok(Self {
            session: Session::open(options)?,
            making: tokio::sync::Mutex::default(),
        })
    }

    /// Commits to several tables, all or none, at catalogs that can.
    ///
    /// # Errors
    /// As a commit to each of them.
    pub async fn commit_all(
        &self,
        commits: Vec<(TableName, Vec<TableRequirement>, Vec<TableUpdate>)>,
    ) -> Result<(), CatalogError> {
        let body = TransactionBody {
            table_changes: commits
                .into_iter()
                .map(|(name, requirements, updates)| CommitBody {
                    identifier: Identifier::of(&name),
                    requirements,
                    updates,
                })
                .collect(),
        };
        let path = ["transactions", "commit"];
        let answer = self
            .session
            .call(Request::Write, Method::POST, &path, Some(&body))
            .await?;
        match answer.status {
            StatusCode::NOT_FOUND => Err(CatalogError::Conflict(answer.reason())),
            _ => answer.expect_success().map(|_| ()),
        }
    }

    async fn have_namespace(&self, namespace: &str) -> Result<(), CatalogError> {
        let _making = self.making.lock().await;
        let path = ["namespaces", namespace];
        let answer = self
            .session
            .call(Request::Read, Method::GET, &path, NO_BODY)
            .await?;
        if answer.status != StatusCode::NOT_FOUND {
            return answer.expect_success().map(|_| ());
        }
        let body = serde_json::json!({ "namespace": [namespace], "properties": {} });
        // Making a namespace twice is harmless, so no outcome of it is unknown.
        let answer = self
            .session
            .call(Request::Read, Method::POST, &["namespaces"], Some(&body))
            .await?;
        match answer.status {
            StatusCode::CONFLICT => Ok(()),
            _ => answer.expect_success().map(|_| ()),
        }
    }
}

#[async_trait]
impl Catalog for RestCatalog {
    async fn load(&self, name: &TableName) -> Result<Option<LoadedTable>, CatalogError> {
        let path = ["namespaces", &name.namespace, "tables", &name.table];
        let answer = self
            .session
            .call(Request::Read, Method::GET, &path, NO_BODY)
            .await?;
        if answer.status == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        loaded(answer.expect_success()?).map(Some)
    }

    async fn create(&self, name: &TableName, new: NewTable) -> Result<LoadedTable, CatalogError> {
        self.have_namespace(&name.namespace).await?;
        let creation = uuid::Uuid::new_v4().to_string();
        let mut properties = new.properties;
        properties.insert(CREATION.to_owned(), creation.clone());
        // The one way to ask for a format; servers do not keep it as a property.
        properties.insert("format-version".to_owned(), "2".to_owned());
        let body = CreateBody {
            name: &name.table,
            schema: &new.schema,
            stage_create: false,
            properties,
        };
        let path = ["namespaces", &name.namespace, "tables"];
        let answer = self
            .session
            .call(Request::Write, Method::POST, &path, Some(&body))
            .await?;
        let table = loaded(answer.expect_success()?)?;
        if table.metadata.properties().get(CREATION) == Some(&creation) {
            Ok(table)
        } else {
            Err(CatalogError::Conflict(format!(
                "table {name} is there already"
            )))
        }
    }

    async fn commit(
        &self,
        name: &TableName,
        requirements: Vec<TableRequirement>,
        updates: Vec<TableUpdate>,
    ) -> Result<LoadedTable, CatalogError> {
        let body = CommitBody {
            identifier: Identifier::of(name),
            requirements,
            updates,
        };
        let path = ["namespaces", &name.namespace, "tables", &name.table];
        let answer = self
            .session
            .call(Request::Write, Method::POST, &path, Some(&body))
            .await?;
        match answer.status {
            // The table was dropped: what loading it again will tell.
            StatusCode::NOT_FOUND => Err(CatalogError::Conflict(answer.reason())),
            _ => loaded(answer.expect_success()?),
        }
    }
}

const NO_BODY: Option<&()> = None;

/// A table property, different for every creation. SeaweedFS answers a creation with success and the table
/// that was there already; only by this can a new table be told from somebody else's.
const CREATION: &str = "downriver.creation";

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct CreateBody<'a> {
    name: &'a str,
    schema: &'a Schema,
    stage_create: bool,
    properties: std::collections::HashMap<String, String>,
}

#[derive(Serialize)]
struct Identifier {
    namespace: [String; 1],
    name: String,
}

impl Identifier {
    fn of(name: &TableName) -> Self {
        Self {
            namespace: [name.namespace.clone()],
            name: name.table.clone(),
        }
    }
}

#[derive(Serialize)]
struct CommitBody {
    identifier: Identifier,
    requirements: Vec<TableRequirement>,
    updates: Vec<TableUpdate>,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct TransactionBody {
    table_changes: Vec<CommitBody>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct TableBody {
    metadata_location: Option<String>,
    metadata: TableMetadata,
}

fn loaded(answer: Answer) -> Result<LoadedTable, CatalogError> {
    let body: TableBody = answer.parse("a table")?;
    Ok(LoadedTable {
        metadata: body.metadata,
        metadata_location: body.metadata_location.unwrap_or_default(),
    })
}
