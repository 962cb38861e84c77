//! The catalogs as their callers meet them: in the process, over HTTP, and SeaweedFS' own.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use common::Memory;
use downriver_lake::Warehouse;
use downriver_lake::catalog::server::{self, Catalogs};
use downriver_lake::catalog::{
    BuiltinCatalog, Catalog, CatalogError, NewTable, Pointer, Pointers, RestCatalog, RestOptions,
    TableName, contract,
};
use downriver_log::store::LocalStore;
use downriver_testkit::seaweed::{self, Seaweed};
use downriver_testkit::{host, port::Port};
use iceberg::spec::{
    NestedField, Operation, PrimitiveType, Schema, Snapshot, SnapshotReference, SnapshotRetention,
    Summary, Type,
};
use iceberg::{TableRequirement, TableUpdate};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

// --- What the catalogs stand on ----------------------------------------------------------------------

struct Lake {
    folder: tempfile::TempDir,
    pointers: Arc<Memory>,
    catalog: Arc<BuiltinCatalog>,
}

impl Lake {
    fn new() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let pointers = Arc::new(Memory::default());
        let catalog = Arc::new(Self::open(folder.path(), "lake", pointers.clone())?);
        Ok(Self {
            folder,
            pointers,
            catalog,
        })
    }

    fn open(folder: &Path, name: &str, pointers: Arc<Memory>) -> Result<BuiltinCatalog> {
        let store = LocalStore::open(&folder.join("warehouse"))?;
        let warehouse = Warehouse::open(Arc::new(store), &folder.join("spool"))?;
        Ok(BuiltinCatalog::new(name, warehouse, pointers))
    }

    /// The metadata files of all tables.
    fn metadata_files(&self) -> usize {
        fn count(folder: &Path) -> usize {
            let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
            entries
                .map(|entry| {
                    let path = entry.path();
                    if path.is_dir() {
                        count(&path)
                    } else {
                        usize::from(path.to_string_lossy().ends_with(".metadata.json"))
                    }
                })
                .sum()
        }
        count(&self.folder.path().join("warehouse"))
    }
}

struct Several(Vec<Arc<BuiltinCatalog>>);

impl Catalogs for Several {
    fn find(&self, warehouse: &str) -> Option<Arc<BuiltinCatalog>> {
        self.0.iter().find(|c| c.name() == warehouse).cloned()
    }

    fn names(&self) -> Vec<String> {
        self.0.iter().map(|c| c.name().to_owned()).collect()
    }
}

/// Serves the catalogs as the binary does; the address is up to `/iceberg`.
async fn serve(catalogs: Vec<Arc<BuiltinCatalog>>) -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let router = server::router(Arc::new(Several(catalogs)));
    let router = axum::Router::new().nest("/iceberg", router);
    tokio::spawn(async move { axum::serve(listener, router).await });
    Ok(format!("http://{address}/iceberg"))
}

fn rest(uri: &str) -> RestCatalog {
    let options = RestOptions {
        warehouse: Some("lake".to_owned()),
        request_timeout: Duration::from_secs(20),
        ..RestOptions::new(uri)
    };
    RestCatalog::open(options).unwrap()
}

fn name(namespace: &str, table: &str) -> TableName {
    TableName {
        namespace: namespace.to_owned(),
        table: table.to_owned(),
    }
}

fn new_table() -> NewTable {
    let id = NestedField::required(1, "id", Type::Primitive(PrimitiveType::Long));
    NewTable {
        schema: Schema::builder()
            .with_fields(vec![id.into()])
            .build()
            .unwrap(),
        properties: HashMap::new(),
    }
}

fn set(key: &str, value: &str) -> Vec<TableUpdate> {
    vec![TableUpdate::SetProperties {
        updates: HashMap::from([(key.to_owned(), value.to_owned())]),
    }]
}

async fn property(catalog: &dyn Catalog, name: &TableName, key: &str) -> Option<String> {
    let table = catalog.load(name).await.unwrap().unwrap();
    table.metadata.properties().get(key).cloned()
}

fn snapshot(id: i64, parent: Option<i64>, sequence_number: i64, at_ms: i64) -> Vec<TableUpdate> {
    let snapshot = Snapshot::builder()
        .with_snapshot_id(id)
        .with_parent_snapshot_id(parent)
        .with_sequence_number(sequence_number)
        .with_timestamp_ms(at_ms)
        .with_manifest_list(format!("file:///nowhere/snap-{id}.avro"))
        .with_summary(Summary {
            operation: Operation::Append,
            additional_properties: HashMap::new(),
        })
        .with_schema_id(0)
        .build();
    let main = SnapshotReference::new(id, SnapshotRetention::branch(None, None, None));
    vec![
        TableUpdate::AddSnapshot { snapshot },
        TableUpdate::SetSnapshotRef {
            ref_name: "main".to_owned(),
            reference: main,
        },
    ]
}

// --- The contract --------------------------------------------------------------------------------------

#[tokio::test]
async fn the_builtin_catalog_keeps_the_contract() -> Result<()> {
    let lake = Lake::new()?;
    contract::run(&*lake.catalog, &name("shop_public", "orders")).await;
    contract::run(&*lake.catalog, &name("shop_public", "../Odd name/%2F ü")).await;
    assert_eq!(lake.catalog.namespaces(), ["shop_public"]);
    assert_eq!(lake.catalog.tables().len(), 2);
    Ok(())
}

#[tokio::test]
async fn the_rest_catalog_keeps_the_contract_at_our_own_server() -> Result<()> {
    let lake = Lake::new()?;
    let uri = serve(vec![lake.catalog.clone()]).await?;
    contract::run(&rest(&uri), &name("shop_public", "orders")).await;
    contract::run(&rest(&uri), &name("odd/ns %2F", "ta/ble?x=1#ü")).await;
    let tables = lake.catalog.tables();
    assert_eq!(tables[0], name("odd/ns %2F", "ta/ble?x=1#ü"));
    assert_eq!(tables[1], name("shop_public", "orders"));
    Ok(())
}

#[tokio::test]
async fn the_rest_catalog_keeps_the_contract_at_seaweedfs() -> Result<()> {
    let server = Seaweed::start().await?;
    let options = RestOptions {
        warehouse: Some(seaweed::WAREHOUSE.to_owned()),
        credential: Some((
            seaweed::ACCESS_KEY.to_owned(),
            seaweed::SECRET_KEY.to_owned(),
        )),
        ..RestOptions::new(server.catalog_uri())
    };
    let shown = format!("{options:?}");
    assert!(!shown.contains(seaweed::SECRET_KEY), "{shown}");
    let catalog = RestCatalog::open(options.clone())?;
    let shown = format!("{catalog:?}");
    assert!(!shown.contains(seaweed::SECRET_KEY), "{shown}");
    contract::run(&catalog, &name("shop_public", "orders")).await;

    // A table made for nobody's format stays what was asked for.
    let table = catalog.load(&name("shop_public", "orders")).await?;
    let version = table.context("is there")?.metadata.format_version();
    assert_eq!(version, iceberg::spec::FormatVersion::V2);

    let wrong = RestOptions {
        credential: Some(("nobody".to_owned(), "nothing".to_owned())),
        ..options
    };
    let refused = RestCatalog::open(wrong)?
        .load(&name("shop_public", "orders"))
        .await;
    assert!(
        matches!(refused, Err(CatalogError::Refused(_))),
        "{refused:?}"
    );
    Ok(())
}

// --- Races and lost answers ------------------------------------------------------------------------------

#[tokio::test]
async fn a_commit_that_loses_the_race_changes_nothing() -> Result<()> {
    let lake = Lake::new()?;
    let orders = name("shop", "orders");
    let uri = serve(vec![lake.catalog.clone()]).await?;
    let first = lake.catalog.create(&orders, new_table()).await?;
    let other = lake
        .catalog
        .create(&name("shop", "other"), new_table())
        .await?;
    let rival = |from: &str, to: &str| Pointer {
        catalog: "lake".to_owned(),
        namespace: "shop".to_owned(),
        table: "orders".to_owned(),
        expected: from.to_owned(),
        metadata_location: to.to_owned(),
    };
    let (ours, theirs) = (&first.metadata_location, &other.metadata_location);
    for catalog in [&*lake.catalog as &dyn Catalog, &rest(&uri)] {
        *lake.pointers.rivals.lock().unwrap() = vec![rival(ours, theirs)];
        let lost = catalog.commit(&orders, vec![], set("a", "1")).await;
        assert!(matches!(lost, Err(CatalogError::Conflict(_))), "{lost:?}");
        assert_eq!(
            lake.pointers.get("lake", "shop", "orders").as_ref(),
            Some(theirs)
        );
        lake.pointers.apply(&[rival(theirs, ours)])?;
    }
    assert_eq!(property(&*lake.catalog, &orders, "a").await, None);
    Ok(())
}

#[tokio::test]
async fn every_acknowledged_commit_of_a_race_is_in_the_table() -> Result<()> {
    let lake = Lake::new()?;
    let orders = name("shop", "orders");
    lake.catalog.create(&orders, new_table()).await?;
    let racers: Vec<_> = (0..16)
        .map(|i| {
            let (catalog, orders) = (lake.catalog.clone(), orders.clone());
            tokio::spawn(async move {
                let done = catalog.commit(&orders, vec![], set(&format!("k{i}"), "1"));
                (i, done.await)
            })
        })
        .collect();
    let mut won = Vec::new();
    for racer in racers {
        match racer.await? {
            (i, Ok(_)) => won.push(i),
            (_, Err(CatalogError::Conflict(_))) => {}
            (_, Err(other)) => panic!("{other}"),
        }
    }
    ensure!(!won.is_empty(), "somebody wins");
    let table = lake.catalog.load(&orders).await?.context("is there")?;
    let there = |i: &i32| table.metadata.properties().contains_key(&format!("k{i}"));
    assert!(won.iter().all(there));
    assert_eq!((0..16).filter(there).count(), won.len());
    Ok(())
}

#[tokio::test]
async fn a_lost_answer_of_the_pointer_store_is_unknown_and_deletes_nothing() -> Result<()> {
    let lake = Lake::new()?;
    let orders = name("shop", "orders");
    let uri = serve(vec![lake.catalog.clone()]).await?;
    lake.catalog.create(&orders, new_table()).await?;
    for (value, catalog) in [("1", &*lake.catalog as &dyn Catalog), ("2", &rest(&uri))] {
        *lake.pointers.lose_answer.lock().unwrap() = true;
        let lost = catalog.commit(&orders, vec![], set("a", value)).await;
        assert!(matches!(lost, Err(CatalogError::Unknown(_))), "{lost:?}");
        let now = property(catalog, &orders, "a").await;
        assert_eq!(now.as_deref(), Some(value));
    }
    Ok(())
}

#[tokio::test]
async fn a_snapshot_made_for_an_older_table_is_a_conflict() -> Result<()> {
    let lake = Lake::new()?;
    let orders = name("shop", "orders");
    let uri = serve(vec![lake.catalog.clone()]).await?;
    let created = lake.catalog.create(&orders, new_table()).await?;
    let at = created.metadata.last_updated_ms();
    let catalog = rest(&uri);
    catalog
        .commit(&orders, vec![], snapshot(7, None, 1, at))
        .await?;
    for catalog in [&*lake.catalog as &dyn Catalog, &catalog] {
        for again in [snapshot(7, None, 2, at), snapshot(8, Some(7), 1, at)] {
            let stale = catalog.commit(&orders, vec![], again).await;
            assert!(matches!(stale, Err(CatalogError::Conflict(_))), "{stale:?}");
        }
        let moved = TableRequirement::RefSnapshotIdMatch {
            r#ref: "main".to_owned(),
            snapshot_id: Some(6),
        };
        let lost = catalog.commit(&orders, vec![moved], set("a", "1")).await;
        assert!(matches!(lost, Err(CatalogError::Conflict(_))), "{lost:?}");
        let gone = catalog
            .commit(&name("shop", "gone"), vec![], set("a", "1"))
            .await;
        assert!(matches!(gone, Err(CatalogError::Conflict(_))), "{gone:?}");
        let nonsense = vec![TableUpdate::SetCurrentSchema { schema_id: 99 }];
        let refused = catalog.commit(&orders, vec![], nonsense).await;
        assert!(
            matches!(refused, Err(CatalogError::Refused(_))),
            "{refused:?}"
        );
    }
    let table = catalog.load(&orders).await?.context("is there")?;
    assert_eq!(table.metadata.current_snapshot_id(), Some(7));
    Ok(())
}

#[tokio::test]
async fn a_commit_to_several_tables_is_all_or_nothing() -> Result<()> {
    let lake = Lake::new()?;
    let uri = serve(vec![lake.catalog.clone()]).await?;
    let catalog = rest(&uri);
    let (a, b) = (name("shop", "a"), name("shop", "b"));
    let uuid = |table: downriver_lake::catalog::LoadedTable| TableRequirement::UuidMatch {
        uuid: table.metadata.uuid(),
    };
    let is_a = uuid(catalog.create(&a, new_table()).await?);
    let is_b = uuid(catalog.create(&b, new_table()).await?);
    let both = |of_a: &TableRequirement, of_b: &TableRequirement, value: &str| {
        vec![
            (a.clone(), vec![of_a.clone()], set("x", value)),
            (b.clone(), vec![of_b.clone()], set("x", value)),
        ]
    };
    catalog.commit_all(both(&is_a, &is_b, "1")).await?;
    let failed = catalog.commit_all(both(&is_a, &is_a, "2")).await;
    assert!(
        matches!(failed, Err(CatalogError::Conflict(_))),
        "{failed:?}"
    );
    // The second table moves between the check and the swap.
    let now = lake.pointers.get("lake", "shop", "b").context("b")?;
    *lake.pointers.rivals.lock().unwrap() = vec![Pointer {
        catalog: "lake".to_owned(),
        namespace: "shop".to_owned(),
        table: "b".to_owned(),
        expected: now.clone(),
        metadata_location: String::new(),
    }];
    let failed = lake.catalog.commit_all(both(&is_a, &is_b, "3")).await;
    assert!(
        matches!(failed, Err(CatalogError::Conflict(_))),
        "{failed:?}"
    );
    assert_eq!(property(&catalog, &a, "x").await.as_deref(), Some("1"));
    assert!(catalog.load(&b).await?.is_none());
    Ok(())
}

#[tokio::test]
async fn a_commit_that_changes_nothing_writes_nothing() -> Result<()> {
    let lake = Lake::new()?;
    let orders = name("shop", "orders");
    lake.catalog.create(&orders, new_table()).await?;
    let first = lake.catalog.commit(&orders, vec![], set("a", "1")).await?;
    let files = lake.metadata_files();
    let mut again = set("a", "1");
    again.push(TableUpdate::RemoveProperties {
        removals: vec!["absent".to_owned()],
    });
    let second = lake.catalog.commit(&orders, vec![], again).await?;
    assert_eq!(second.metadata_location, first.metadata_location);
    assert_eq!(lake.metadata_files(), files);
    Ok(())
}

#[tokio::test]
async fn old_metadata_files_are_deleted_as_they_leave_the_log() -> Result<()> {
    let lake = Lake::new()?;
    let orders = name("shop", "orders");
    lake.catalog.create(&orders, new_table()).await?;
    let bound = set("write.metadata.previous-versions-max", "3");
    lake.catalog.commit(&orders, vec![], bound).await?;
    for i in 0..10 {
        let update = set("a", &i.to_string());
        lake.catalog.commit(&orders, vec![], update).await?;
    }
    let table = lake.catalog.load(&orders).await?.context("is there")?;
    assert_eq!(table.metadata.metadata_log().len(), 3);
    assert_eq!(lake.metadata_files(), 4);
    for entry in table.metadata.metadata_log() {
        let path = entry.metadata_file.trim_start_matches("file://");
        assert!(Path::new(path).exists(), "{path}");
    }
    Ok(())
}

// --- A server that fails -----------------------------------------------------------------------------------

#[derive(Clone)]
enum Act {
    Answer(u16, String),
    /// Takes the request and cuts the connection.
    Cut,
    /// Takes the request and stays silent.
    Hang,
}

/// A server that does to each request what `act` says, given "METHOD /path", the bearer and the count so far.
async fn failing(
    act: impl Fn(&str, Option<&str>, usize) -> Act + Send + Sync + 'static,
) -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let (act, count) = (Arc::new(act), Arc::new(Mutex::new(0)));
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (act, count) = (act.clone(), count.clone());
            tokio::spawn(async move {
                while let Some((line, bearer)) = request(&mut stream).await {
                    let number = {
                        let mut count = count.lock().unwrap();
                        *count += 1;
                        *count
                    };
                    match act(&line, bearer.as_deref(), number) {
                        Act::Cut => return,
                        Act::Hang => std::future::pending().await,
                        Act::Answer(status, body) => {
                            let length = body.len();
                            let answer = format!(
                                "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
                            );
                            if stream.write_all(answer.as_bytes()).await.is_err() {
                                return;
                            }
                        }
                    }
                }
            });
        }
    });
    Ok(address)
}

/// Reads one whole request: its method and path, and its bearer.
async fn request(stream: &mut TcpStream) -> Option<(String, Option<String>)> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).ok()?;
    let header = |name: &str| {
        head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name)
                .then(|| value.trim().to_owned())
        })
    };
    let length = header("content-length").map_or(0, |value| value.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    let line = head.split(" HTTP/").next()?.to_owned();
    let bearer = header("authorization").map(|value| value.replace("Bearer ", ""));
    Some((line, bearer))
}

fn json(text: &str) -> Act {
    Act::Answer(200, text.to_owned())
}

/// A catalog at a server that is well until a commit, to which it does `act`.
async fn failing_commit(act: Act) -> Result<RestCatalog> {
    let address = failing(move |line, _, _| match line.split_once(' ') {
        Some(("GET", path)) if path.starts_with("/v1/config") => {
            json(r#"{"defaults":{"prefix":"p"},"overrides":{}}"#)
        }
        Some(("POST", "/v1/p/namespaces/shop/tables/orders")) => act.clone(),
        other => panic!("{other:?} was not expected"),
    })
    .await?;
    let options = RestOptions {
        request_timeout: Duration::from_secs(2),
        ..RestOptions::new(format!("http://{address}/"))
    };
    Ok(RestCatalog::open(options)?)
}

#[tokio::test]
async fn a_commit_that_may_have_been_done_is_unknown() -> Result<()> {
    let unknown = [
        Act::Cut,
        Act::Hang,
        Act::Answer(500, String::new()),
        Act::Answer(502, "<html>bad gateway</html>".to_owned()),
        Act::Answer(503, String::new()),
        Act::Answer(504, String::new()),
        Act::Answer(200, "{".to_owned()),
    ];
    for act in unknown {
        let catalog = failing_commit(act).await?;
        let outcome = catalog
            .commit(&name("shop", "orders"), vec![], set("a", "1"))
            .await;
        assert!(
            matches!(outcome, Err(CatalogError::Unknown(_))),
            "{outcome:?}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_commit_that_was_not_done_is_told_apart() -> Result<()> {
    let error = |message: &str| format!(r#"{{"error":{{"message":"{message}","type":"E"}}}}"#);
    let orders = name("shop", "orders");
    let commit = async |act: Act| {
        let catalog = failing_commit(act).await.unwrap();
        catalog
            .commit(&orders, vec![], set("a", "1"))
            .await
            .unwrap_err()
    };
    let outcome = commit(Act::Answer(409, error("requirement failed"))).await;
    assert!(matches!(outcome, CatalogError::Conflict(_)), "{outcome}");
    let outcome = commit(Act::Answer(429, String::new())).await;
    assert!(matches!(outcome, CatalogError::Unavailable(_)), "{outcome}");
    let outcome = commit(Act::Answer(403, error("not yours"))).await;
    assert_eq!(outcome.to_string(), "the catalog refused: 403 E: not yours");
    let outcome = commit(Act::Answer(401, error("who are you"))).await;
    assert!(matches!(outcome, CatalogError::Refused(_)), "{outcome}");
    let outcome = commit(Act::Answer(307, String::new())).await;
    assert!(matches!(outcome, CatalogError::Refused(_)), "{outcome}");
    Ok(())
}

#[tokio::test]
async fn a_catalog_that_is_not_there_is_unavailable_only_when_it_is_called() -> Result<()> {
    let port = Port::reserve()?;
    let catalog = rest(&format!("http://127.0.0.1:{}", port.number()));
    let orders = name("shop", "orders");
    let load = catalog.load(&orders).await;
    assert!(
        matches!(load, Err(CatalogError::Unavailable(_))),
        "{load:?}"
    );
    let commit = catalog.commit(&orders, vec![], set("a", "1")).await;
    assert!(
        matches!(commit, Err(CatalogError::Unavailable(_))),
        "{commit:?}"
    );
    // It is met when it comes.
    let lake = Lake::new()?;
    let listener = TcpListener::bind(("127.0.0.1", port.number())).await?;
    let router = server::router(Arc::new(Several(vec![lake.catalog.clone()])));
    tokio::spawn(async move { axum::serve(listener, router).await });
    assert!(catalog.load(&orders).await?.is_none());
    let nonsense = RestCatalog::open(RestOptions::new("catalog:8181"));
    assert!(matches!(nonsense, Err(CatalogError::Refused(_))));
    Ok(())
}

#[tokio::test]
async fn a_refused_token_is_renewed_once() -> Result<()> {
    let address = failing(|line, bearer, number| match line {
        "POST /v1/oauth/tokens" => json(&format!(
            r#"{{"access_token":"t{number}","token_type":"bearer","expires_in":3600}}"#
        )),
        "GET /v1/config" if bearer == Some("t1") => json(r#"{"defaults":{},"overrides":{}}"#),
        // The fourth request is the renewal.
        _ if bearer == Some("t4") => Act::Answer(404, String::new()),
        _ => Act::Answer(401, String::new()),
    })
    .await?;
    let options = RestOptions {
        credential: Some(("id".to_owned(), "secret".to_owned())),
        ..RestOptions::new(format!("http://{address}"))
    };
    let catalog = RestCatalog::open(options)?;
    assert!(catalog.load(&name("shop", "orders")).await?.is_none());
    assert!(catalog.load(&name("shop", "orders")).await?.is_none());
    Ok(())
}

// --- The server, as other engines meet it ---------------------------------------------------------------------

#[tokio::test]
async fn the_server_speaks_the_error_model() -> Result<()> {
    let lake = Lake::new()?;
    let other = Lake::open(lake.folder.path(), "other", lake.pointers.clone())?;
    let both = serve(vec![lake.catalog.clone(), Arc::new(other)]).await?;
    let one = serve(vec![lake.catalog.clone()]).await?;
    let http = reqwest::Client::new();
    let get = async |url: String| -> Result<(u16, serde_json::Value)> {
        let answer = http.get(url).send().await?;
        Ok((answer.status().as_u16(), answer.json().await?))
    };
    let kind = |body: &serde_json::Value| body["error"]["type"].as_str().map(str::to_owned);

    let (status, body) = get(format!("{both}/v1/config?warehouse=lake")).await?;
    assert_eq!(
        (status, &body["overrides"]["prefix"]),
        (200, &"lake".into())
    );
    let (status, body) = get(format!("{both}/v1/config")).await?;
    assert_eq!(
        (status, kind(&body).as_deref()),
        (400, Some("BadRequestException"))
    );
    let (status, body) = get(format!("{both}/v1/config?warehouse=none")).await?;
    assert_eq!(
        (status, kind(&body).as_deref()),
        (404, Some("NoSuchWarehouseException"))
    );
    let (status, body) = get(format!("{one}/v1/config")).await?;
    assert_eq!(
        (status, &body["overrides"]["prefix"]),
        (200, &"lake".into())
    );
    let (status, body) = get(format!("{one}/v1/namespaces")).await?;
    assert_eq!((status, body), (200, serde_json::json!({"namespaces": []})));
    let (status, body) = get(format!("{both}/v1/namespaces")).await?;
    assert_eq!(
        (status, kind(&body).as_deref()),
        (400, Some("BadRequestException"))
    );
    let (status, body) = get(format!("{one}/v1/lake/namespaces/gone")).await?;
    assert_eq!(
        (status, kind(&body).as_deref()),
        (404, Some("NoSuchNamespaceException"))
    );
    lake.catalog.create(&name("shop", "a"), new_table()).await?;
    let (status, body) = get(format!("{one}/v1/namespaces/shop/tables/gone")).await?;
    assert_eq!(
        (status, kind(&body).as_deref()),
        (404, Some("NoSuchTableException"))
    );
    let (status, body) = get(format!("{one}/v1/namespaces/shop/tables/a")).await?;
    assert_eq!(
        (status, &body["metadata"]["format-version"]),
        (200, &2.into())
    );
    let (status, body) = get(format!("{one}/v1/lake/namespaces/shop/views")).await?;
    assert_eq!(
        (status, kind(&body).as_deref()),
        (406, Some("UnsupportedOperationException"))
    );

    let answer = http
        .post(format!("{one}/v1/lake/namespaces/shop/tables/a"))
        .body(r#"{"updates":[{"action":"no-such"}],"requirements":[]}"#)
        .send()
        .await?;
    assert_eq!(answer.status(), 400);
    assert_eq!(
        kind(&answer.json().await?).as_deref(),
        Some("BadRequestException")
    );
    let answer = http
        .delete(format!("{one}/v1/lake/namespaces/shop"))
        .send()
        .await?;
    assert_eq!(answer.status(), 409);
    assert_eq!(
        kind(&answer.json().await?).as_deref(),
        Some("NamespaceNotEmptyException")
    );
    let answer = http
        .post(format!("{one}/v1/oauth/tokens"))
        .form(&[("grant_type", "client_credentials")])
        .send()
        .await?;
    assert_eq!(answer.status(), 406);
    let head = async |path: &str| -> Result<u16> {
        let answer = http.head(format!("{one}/v1/lake/{path}")).send().await?;
        Ok(answer.status().as_u16())
    };
    assert_eq!(head("namespaces/shop").await?, 204);
    assert_eq!(head("namespaces/gone").await?, 404);
    assert_eq!(head("namespaces/shop/tables/a").await?, 204);
    assert_eq!(head("namespaces/shop/tables/gone").await?, 404);
    Ok(())
}

const PYICEBERG: &str = r#"
import os, sys
import pyarrow as pa
from pyiceberg.catalog import load_catalog
from pyiceberg.exceptions import CommitFailedException, NamespaceAlreadyExistsError, NamespaceNotEmptyError
from pyiceberg.exceptions import NoSuchNamespaceError, NoSuchTableError, TableAlreadyExistsError
from pyiceberg.table.update import AssertRefSnapshotId, SetPropertiesUpdate
from pyiceberg.types import StringType

uri, warehouse = sys.argv[1:]
catalog = load_catalog("river", type="rest", uri=uri, warehouse=warehouse)

def fails(kind, call, *arguments):
    try:
        call(*arguments)
    except kind:
        return
    raise SystemExit(f"{call} did not fail with {kind}")

assert catalog.list_namespaces() == [("shop_public",)], catalog.list_namespaces()
assert catalog.list_tables("shop_public") == [("shop_public", "orders")]
orders = catalog.load_table("shop_public.orders")
assert orders.properties["downriver.offset"] == "7", orders.properties
assert [field.name for field in orders.schema().fields] == ["id", "name"]
assert orders.scan().to_arrow().num_rows == 0

rows = pa.table({"id": pa.array(range(1000), pa.int64()), "name": [f"row {i}" for i in range(1000)]})
fails(NoSuchNamespaceError, catalog.create_table, "bench.t1", rows.schema)
catalog.create_namespace("bench", {"owner": "somebody"})
fails(NamespaceAlreadyExistsError, catalog.create_namespace, "bench")
assert ("bench",) in catalog.list_namespaces()
assert catalog.load_namespace_properties("bench") == {"owner": "somebody"}
assert catalog.namespace_exists("bench") and not catalog.namespace_exists("none")
table = catalog.create_table("bench.t1", rows.schema)
fails(TableAlreadyExistsError, catalog.create_table, "bench.t1", rows.schema)
fails(NoSuchTableError, catalog.load_table, "bench.none")
assert catalog.table_exists("bench.t1") and not catalog.table_exists("bench.none")
table.append(rows)
stale = catalog.load_table("bench.t1")
table.append(rows)
requirement = AssertRefSnapshotId(ref="main", snapshot_id=stale.metadata.current_snapshot_id)
update = SetPropertiesUpdate(updates={"a": "1"})
fails(CommitFailedException, catalog.commit_table, stale, (requirement,), (update,))
with table.update_schema() as update:
    update.add_column("note", StringType())
table.overwrite(table.scan(limit=10).to_arrow())
read = catalog.load_table("bench.t1")
assert read.scan().to_arrow().num_rows == 10
assert read.metadata.format_version == 2
assert len(read.metadata.snapshots) == 4, len(read.metadata.snapshots)
fails(NamespaceNotEmptyError, catalog.drop_namespace, "bench")

# A table that is made and filled in one commit.
with catalog.create_table_transaction("bench.staged", rows.schema, properties={"made": "staged"}) as transaction:
    assert not catalog.table_exists("bench.staged")
    transaction.append(rows)
staged = catalog.load_table("bench.staged")
assert staged.properties["made"] == "staged"
assert staged.scan().to_arrow().num_rows == 1000

catalog.drop_table("bench.staged")
folder = catalog.load_table("bench.t1").location().removeprefix("file://")
catalog.purge_table("bench.t1")
left = [os.path.join(at, file) for at, _, files in os.walk(folder) for file in files]
assert not left, left
fails(NoSuchTableError, catalog.drop_table, "bench.t1")
catalog.drop_namespace("bench")
assert catalog.list_namespaces() == [("shop_public",)], catalog.list_namespaces()
print("done")
"#;

/// Runs a Python script with the server's address and the warehouse's name; it says "done" at its end.
async fn run_python(script: &str, uri: &str) -> Result<()> {
    let output = tokio::process::Command::new(host::venv_program("python")?)
        .args(["-c", script, uri, "lake"])
        .kill_on_drop(true)
        .output()
        .await?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success() && said.contains("done"),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

#[tokio::test]
async fn pyiceberg_reads_and_writes_through_our_server() -> Result<()> {
    let lake = Lake::new()?;
    let uri = serve(vec![lake.catalog.clone()]).await?;
    contract::run(&*lake.catalog, &name("shop_public", "orders")).await;
    run_python(PYICEBERG, &uri).await
}

const DUCKDB: &str = r#"
import glob, importlib.util, os, sys
import duckdb

uri, warehouse = sys.argv[1:]
connection = duckdb.connect(config={"autoinstall_known_extensions": False, "autoload_known_extensions": False})
for extension in ["httpfs", "avro", "iceberg"]:
    folder = importlib.util.find_spec(f"duckdb_extension_{extension}").submodule_search_locations[0]
    (file,) = glob.glob(os.path.join(folder, "extensions", "*", f"{extension}.duckdb_extension"))
    connection.execute(f"LOAD '{file}'")
connection.execute(
    f"ATTACH '{warehouse}' AS lake (TYPE iceberg, ENDPOINT '{uri}',"
    " AUTHORIZATION_TYPE 'none', ACCESS_DELEGATION_MODE 'none')"
)
assert connection.execute("select count(*) from lake.shop_public.orders").fetchall() == [(0,)]
connection.execute("create schema lake.duck")
# In one statement DuckDB would write into a folder of the local disk that nobody has made yet.
connection.execute("create table lake.duck.pond (id bigint, name varchar)")
connection.execute("create table lake.duck.other (id bigint)")
connection.execute("insert into lake.duck.pond select range, 'row ' || range from range(1000)")
connection.execute("begin")
connection.execute("insert into lake.duck.pond values (1000, 'one of two')")
connection.execute("insert into lake.duck.other values (7)")
connection.execute("commit")
assert connection.execute("select count(*), sum(id) from lake.duck.pond").fetchall() == [(1001, 500500)]
assert connection.execute("select id from lake.duck.other").fetchall() == [(7,)]
connection.execute("drop table lake.duck.other")
print("done")
"#;

#[tokio::test]
async fn duckdb_reads_and_writes_through_our_server() -> Result<()> {
    let lake = Lake::new()?;
    let uri = serve(vec![lake.catalog.clone()]).await?;
    contract::run(&*lake.catalog, &name("shop_public", "orders")).await;
    run_python(DUCKDB, &uri).await?;
    let tables = lake.catalog.tables();
    assert_eq!(
        tables,
        [name("duck", "pond"), name("shop_public", "orders")]
    );
    Ok(())
}
