//! What is stored in the lake's table itself carries a format, and another one's is refused.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::HashMap;
use std::sync::Arc;

use common::Memory;
use downriver_event::change::ChangePolicies;
use downriver_event::{
    Column, Cover, EndedIncarnations, Epoch, Incarnation, LogicalType, Offset, ReplicaIdentity,
    TableId, TableSchema,
};
use downriver_lake::catalog::{BuiltinCatalog, Catalog, TableName};
use downriver_lake::{LakeError, TableConfig, TableWriter, Warehouse};
use downriver_log::store::LocalStore;
use iceberg::TableUpdate;

fn schema() -> Arc<TableSchema> {
    Arc::new(TableSchema {
        id: TableId(7),
        version: 1,
        namespace: "public".into(),
        name: "t".into(),
        columns: vec![Column {
            id: 1,
            name: "id".into(),
            ty: LogicalType::Int64,
            nullable: false,
            source_type: String::new(),
            cover: Cover::None,
            default: None,
        }],
        key: vec![1],
        identity: ReplicaIdentity::Default,
        withheld: Vec::new(),
    })
}

#[tokio::test]
async fn a_table_of_another_format_is_refused_and_not_touched() {
    let folder = tempfile::tempdir().unwrap();
    let store = LocalStore::open(&folder.path().join("warehouse")).unwrap();
    let warehouse = Warehouse::open(Arc::new(store), &folder.path().join("spool")).unwrap();
    let pointers = Arc::new(Memory::default());
    let catalog = Arc::new(BuiltinCatalog::new("lake", warehouse.clone(), pointers));
    let name = TableName {
        namespace: "shop_public".into(),
        table: "t".into(),
    };
    let open = |epoch| {
        let config = TableConfig {
            name: name.clone(),
            pipeline: "p".into(),
            stream: "shop/1".into(),
            incarnation: Incarnation(1),
            ended: EndedIncarnations::default(),
            epoch: Epoch(epoch),
            start: Offset(0),
            claim: None,
            committed: None,
            schema_changes: ChangePolicies::default(),
            folder: folder.path().join("index"),
        };
        let (catalog, warehouse) = (catalog.clone(), warehouse.clone());
        async move { TableWriter::open(catalog, warehouse, config, &[schema()]).await }
    };
    drop(open(1).await.unwrap());

    let loaded = catalog.load(&name).await.unwrap().unwrap();
    assert_eq!(loaded.metadata.properties()["downriver.format"], "1");
    let newer = HashMap::from([("downriver.format".to_owned(), "2".to_owned())]);
    let updates = vec![TableUpdate::SetProperties { updates: newer }];
    let changed = catalog.commit(&name, vec![], updates).await.unwrap();
    let Err(LakeError::Stopped(problem)) = open(2).await else {
        panic!("it was opened");
    };
    assert_eq!(problem.code, "DR-3017");
    assert!(
        problem
            .reason
            .ends_with(r#"it has format "2", this build reads "1""#),
        "{problem:?}"
    );
    let loaded = catalog.load(&name).await.unwrap().unwrap();
    assert_eq!(
        loaded.metadata.current_snapshot_id(),
        changed.metadata.current_snapshot_id()
    );
}
