//! The built-in catalogs as one Iceberg REST catalog, for every other engine. Each sink is a warehouse, which
//! is the prefix of its paths; where there is only one, paths without a prefix are its own.
//!
//! The protocol is `open-api/rest-catalog-open-api.yaml` of apache/iceberg. Namespaces have one level.
//! Decisions are the catalog's: this only translates.

mod failure;

use std::collections::HashMap;
use std::sync::Arc;

use axum::extract::{DefaultBodyLimit, FromRequestParts, Path, Query, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::Bytes;
use iceberg::spec::{Schema, SortOrder, TableMetadata, UnboundPartitionSpec};
use iceberg::{TableCreation, TableRequirement, TableUpdate};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use self::failure::{Doing, Failure};
use super::{BuiltinCatalog, Catalog as _, LoadedTable, TableName};

/// A commit may carry many snapshots to remove, never data.
const BODY_BYTES_MAX: usize = 32 << 20;

/// What clients learn that they may call.
const ENDPOINTS: [&str; 13] = [
    "GET /v1/{prefix}/namespaces",
    "POST /v1/{prefix}/namespaces",
    "GET /v1/{prefix}/namespaces/{namespace}",
    "HEAD /v1/{prefix}/namespaces/{namespace}",
    "DELETE /v1/{prefix}/namespaces/{namespace}",
    "GET /v1/{prefix}/namespaces/{namespace}/tables",
    "POST /v1/{prefix}/namespaces/{namespace}/tables",
    "GET /v1/{prefix}/namespaces/{namespace}/tables/{table}",
    "HEAD /v1/{prefix}/namespaces/{namespace}/tables/{table}",
    "POST /v1/{prefix}/namespaces/{namespace}/tables/{table}",
    "DELETE /v1/{prefix}/namespaces/{namespace}/tables/{table}",
    "POST /v1/{prefix}/transactions/commit",
    "GET /v1/config",
];

/// The catalogs that there are now.
pub trait Catalogs: Send + Sync + 'static {
    fn find(&self, warehouse: &str) -> Option<Arc<BuiltinCatalog>>;

    fn names(&self) -> Vec<String>;
}

/// The routes, to be nested where clients look for the catalog.
pub fn router(catalogs: Arc<dyn Catalogs>) -> Router {
    let mut router = Router::new()
        .route("/v1/config", get(config))
        .route("/v1/oauth/tokens", post(no_tokens));
    for root in ["/v1", "/v1/{prefix}"] {
        router = router
            .route(
                &format!("{root}/namespaces"),
                get(list_namespaces).post(create_namespace),
            )
            .route(
                &format!("{root}/namespaces/{{namespace}}"),
                get(load_namespace)
                    .head(namespace_exists)
                    .delete(drop_namespace),
            )
            .route(
                &format!("{root}/namespaces/{{namespace}}/tables"),
                get(list_tables).post(create_table),
            )
            .route(
                &format!("{root}/namespaces/{{namespace}}/tables/{{table}}"),
                get(load_table)
                    .head(table_exists)
                    .post(commit_table)
                    .delete(drop_table),
            )
            .route(
                &format!("{root}/transactions/commit"),
                post(commit_transaction),
            );
    }
    router
        .fallback(nothing_here)
        .method_not_allowed_fallback(nothing_here)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(catalogs)
}

type Shared = Arc<dyn Catalogs>;
type Answer = Result<Response, Failure>;

/// The catalog that a path means, and what in it.
struct At {
    catalog: Arc<BuiltinCatalog>,
    name: TableName,
}

#[derive(Deserialize)]
struct Place {
    prefix: Option<String>,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    table: String,
}

impl FromRequestParts<Shared> for At {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, catalogs: &Shared) -> Result<Self, Failure> {
        let Path(place) = Path::<Place>::from_request_parts(parts, catalogs)
            .await
            .map_err(|error| Failure::bad_request(error.body_text()))?;
        Ok(Self {
            catalog: choose(catalogs, place.prefix.as_deref())?,
            name: TableName {
                namespace: place.namespace,
                table: place.table,
            },
        })
    }
}

impl At {
    fn existing_namespace(&self) -> Result<HashMap<String, String>, Failure> {
        let namespace = &self.name.namespace;
        self.catalog
            .namespace(namespace)
            .ok_or_else(|| Failure::no_namespace(namespace))
    }
}

fn choose(catalogs: &Shared, warehouse: Option<&str>) -> Result<Arc<BuiltinCatalog>, Failure> {
    let name = match warehouse {
        Some(name) => name.to_owned(),
        None => {
            let mut names = catalogs.names();
            if names.len() > 1 {
                return Err(Failure::bad_request(format!(
                    "there are several warehouses: name one of {}",
                    names.join(", ")
                )));
            }
            names.pop().unwrap_or_default()
        }
    };
    catalogs
        .find(&name)
        .ok_or_else(|| Failure::no_warehouse(&name))
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(body)
        .map_err(|error| Failure::bad_request(format!("the request cannot be read: {error}")))
}

/// Two levels are never the name of a namespace here.
fn one_level(levels: &[String]) -> Result<&str, Failure> {
    match levels {
        [name] => Ok(name),
        _ => Err(Failure::bad_request(format!(
            "{levels:?}: namespaces have one level here"
        ))),
    }
}

#[derive(Deserialize)]
struct ConfigQuery {
    warehouse: Option<String>,
}

async fn config(State(catalogs): State<Shared>, Query(query): Query<ConfigQuery>) -> Answer {
    // Some clients send an empty name for none.
    let warehouse = query.warehouse.filter(|name| !name.is_empty());
    let catalog = choose(&catalogs, warehouse.as_deref())?;
    let answer = json!({
        "defaults": {},
        "overrides": { "prefix": encoded(catalog.name()) },
        "endpoints": ENDPOINTS,
    });
    Ok(Json(answer).into_response())
}

/// Clients put the prefix into their paths as it is.
fn encoded(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    name.bytes()
        .map(|byte| {
            if plain(byte) {
                char::from(byte).to_string()
            } else {
                format!("%{byte:02X}")
            }
        })
        .collect()
}

async fn no_tokens() -> Failure {
    Failure::unsupported("this catalog gives no tokens: connect without a credential")
}

async fn nothing_here(request: axum::extract::Request) -> Failure {
    Failure::unsupported(format!(
        "{} {} is not served",
        request.method(),
        request.uri().path()
    ))
}

#[derive(Deserialize)]
struct ParentQuery {
    parent: Option<String>,
}

async fn list_namespaces(at: At, Query(query): Query<ParentQuery>) -> Answer {
    let namespaces = match query.parent.filter(|parent| !parent.is_empty()) {
        None => at.catalog.namespaces(),
        Some(parent) if at.catalog.namespace(&parent).is_some() => Vec::new(),
        Some(parent) => return Err(Failure::no_namespace(&parent)),
    };
    let levels: Vec<_> = namespaces.into_iter().map(|name| [name]).collect();
    Ok(Json(json!({ "namespaces": levels })).into_response())
}

#[derive(Deserialize)]
struct CreateNamespace {
    namespace: Vec<String>,
    properties: Option<HashMap<String, String>>,
}

async fn create_namespace(at: At, body: Bytes) -> Answer {
    let body: CreateNamespace = parse(&body)?;
    let (name, properties) = (
        one_level(&body.namespace)?,
        body.properties.unwrap_or_default(),
    );
    at.catalog
        .create_namespace(name, &properties)
        .await
        .map_err(|error| Failure::of(error, Doing::Create))?;
    let answer = json!({ "namespace": body.namespace, "properties": properties });
    Ok(Json(answer).into_response())
}

async fn load_namespace(at: At) -> Answer {
    let properties = at.existing_namespace()?;
    let answer = json!({ "namespace": [at.name.namespace], "properties": properties });
    Ok(Json(answer).into_response())
}

async fn namespace_exists(at: At) -> Answer {
    at.existing_namespace()?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn drop_namespace(at: At) -> Answer {
    at.existing_namespace()?;
    at.catalog
        .drop_namespace(&at.name.namespace)
        .await
        .map_err(|error| Failure::of(error, Doing::DropNamespace))?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn list_tables(at: At) -> Answer {
    at.existing_namespace()?;
    let tables = at.catalog.tables().into_iter();
    let identifiers: Vec<Value> = tables
        .filter(|table| table.namespace == at.name.namespace)
        .map(|table| json!({ "namespace": [table.namespace], "name": table.table }))
        .collect();
    Ok(Json(json!({ "identifiers": identifiers })).into_response())
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct CreateTable {
    name: String,
    location: Option<String>,
    schema: Schema,
    partition_spec: Option<UnboundPartitionSpec>,
    write_order: Option<SortOrder>,
    stage_create: Option<bool>,
    properties: Option<HashMap<String, String>>,
}

/// A table as the protocol gives it; one that is only staged lies nowhere yet.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct TableBody {
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata_location: Option<String>,
    metadata: TableMetadata,
    config: HashMap<String, String>,
}

impl From<LoadedTable> for TableBody {
    fn from(table: LoadedTable) -> Self {
        Self {
            metadata_location: Some(table.metadata_location),
            metadata: table.metadata,
            config: HashMap::new(),
        }
    }
}

async fn create_table(mut at: At, body: Bytes) -> Answer {
    let body: CreateTable = parse(&body)?;
    at.existing_namespace()?;
    at.name.table = body.name.clone();
    let creation = TableCreation::builder()
        .name(body.name)
        .location_opt(body.location)
        .schema(body.schema)
        .partition_spec_opt(body.partition_spec)
        .sort_order_opt(body.write_order)
        .properties(body.properties.unwrap_or_default())
        .build();
    let failed = |error| Failure::of(error, Doing::Create);
    let table = if body.stage_create == Some(true) {
        let metadata = at.catalog.stage_table(&at.name, creation).map_err(failed)?;
        TableBody {
            metadata_location: None,
            metadata,
            config: HashMap::new(),
        }
    } else {
        let created = at.catalog.create_table(&at.name, creation).await;
        created.map_err(failed)?.into()
    };
    Ok(Json(table).into_response())
}

async fn load_table(at: At) -> Answer {
    let loaded = at.catalog.load(&at.name).await;
    match loaded.map_err(|error| Failure::of(error, Doing::Read))? {
        Some(table) => Ok(Json(TableBody::from(table)).into_response()),
        None => Err(Failure::no_table(&at.name)),
    }
}

async fn table_exists(at: At) -> Answer {
    if at.catalog.has_table(&at.name) {
        Ok(StatusCode::NO_CONTENT.into_response())
    } else {
        Err(Failure::no_table(&at.name))
    }
}

#[derive(Deserialize)]
struct Identifier {
    namespace: Vec<String>,
    name: String,
}

#[derive(Deserialize)]
struct CommitTable {
    identifier: Option<Identifier>,
    #[serde(default)]
    requirements: Vec<TableRequirement>,
    #[serde(default)]
    updates: Vec<TableUpdate>,
}

impl CommitTable {
    /// A commit to what is not there, without asserting so, is told apart from a lost race.
    fn check_target(&self, catalog: &BuiltinCatalog, name: &TableName) -> Result<(), Failure> {
        if catalog.has_table(name) {
            return Ok(());
        }
        if !self.requirements.contains(&TableRequirement::NotExist) {
            return Err(Failure::no_table(name));
        }
        match catalog.namespace(&name.namespace) {
            Some(_) => Ok(()),
            None => Err(Failure::no_namespace(&name.namespace)),
        }
    }
}

async fn commit_table(at: At, body: Bytes) -> Answer {
    let body: CommitTable = parse(&body)?;
    body.check_target(&at.catalog, &at.name)?;
    let committed = at
        .catalog
        .commit(&at.name, body.requirements, body.updates)
        .await
        .map_err(|error| Failure::of(error, Doing::Commit))?;
    Ok(Json(TableBody::from(committed)).into_response())
}

#[derive(Deserialize)]
struct DropQuery {
    #[serde(rename = "purgeRequested")]
    purge_requested: Option<String>,
}

async fn drop_table(at: At, Query(query): Query<DropQuery>) -> Answer {
    // PyIceberg writes it as Python does.
    let purge = query
        .purge_requested
        .is_some_and(|asked| asked.eq_ignore_ascii_case("true"));
    let dropped = at.catalog.drop_table(&at.name, purge).await;
    if dropped.map_err(|error| Failure::of(error, Doing::Commit))? {
        Ok(StatusCode::NO_CONTENT.into_response())
    } else {
        Err(Failure::no_table(&at.name))
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct CommitTransaction {
    table_changes: Vec<CommitTable>,
}

async fn commit_transaction(at: At, body: Bytes) -> Answer {
    let body: CommitTransaction = parse(&body)?;
    let mut commits = Vec::new();
    for change in body.table_changes {
        let Some(identifier) = &change.identifier else {
            return Err(Failure::bad_request("a change does not name its table"));
        };
        let name = TableName {
            namespace: one_level(&identifier.namespace)?.to_owned(),
            table: identifier.name.clone(),
        };
        change.check_target(&at.catalog, &name)?;
        commits.push((name, change.requirements, change.updates));
    }
    at.catalog
        .commit_all(commits)
        .await
        .map_err(|error| Failure::of(error, Doing::Commit))?;
    Ok(StatusCode::NO_CONTENT.into_response())
}
