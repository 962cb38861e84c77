//! A node over real files: what was answered survives, what is damaged is reported.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use downriver_cluster::{Node, NodeConfig, PointerSwap, ResourcePut};
use downriver_event::block::{OldImage, RowOp};
use downriver_event::{
    BlockBuilder, Column, Cover, EncodedBlock, LogicalType, Lsn, Offset, ReplicaIdentity,
    SourcePosition, TableId, TableSchema,
};
use downriver_log::segment::SegmentWriter;
use downriver_log::store::LocalStore;
use downriver_log::{Append, AppendError, Log, Payload, ReadError, StreamState};

fn schema() -> Arc<TableSchema> {
    Arc::new(TableSchema {
        id: TableId(1),
        version: 1,
        namespace: "public".into(),
        name: "t".into(),
        columns: vec![Column {
            id: 1,
            name: "id".into(),
            ty: LogicalType::Int64,
            nullable: false,
            source_type: "bigint".into(),
            cover: Cover::None,
            default: None,
        }],
        key: vec![1],
        identity: ReplicaIdentity::Default,
        withheld: Vec::new(),
    })
}

fn block(rows: std::ops::Range<i64>, end: u64) -> EncodedBlock {
    let mut builder = BlockBuilder::new();
    builder.begin("1".into(), 7);
    for row in rows {
        builder.row(&schema(), RowOp::Insert, OldImage::None).new[0].push_i64(row);
    }
    builder.commit(&SourcePosition::Postgres(Lsn(end)));
    builder.cut().unwrap()
}

fn append(state: &StreamState, payloads: Vec<Payload>, position: u64) -> Append {
    Append {
        stream: "s".into(),
        incarnation: state.incarnation,
        epoch: state.epoch,
        base: state.next,
        position_before: state.position.clone(),
        position_after: Some(SourcePosition::Postgres(Lsn(position))),
        schemas: vec![schema()],
        chunks_done: vec![],
        payloads,
        moved: None,
    }
}

async fn start(folder: &Path) -> Arc<Node> {
    let store = Arc::new(LocalStore::open(&folder.join("objects")).unwrap());
    let mut config = NodeConfig::new(folder.join("node"), store);
    config.seal_interval = Duration::from_secs(3600);
    Node::start(config).await.unwrap()
}

async fn frames(node: &Node) -> Vec<(Offset, Bytes)> {
    let mut from = Offset(0);
    let mut frames = Vec::new();
    loop {
        let blocks = node.read("s", from, 1).await.unwrap();
        let Some(last) = blocks.last() else {
            return frames;
        };
        from = last.end();
        for block in blocks {
            frames.push((block.base, block.frame));
        }
    }
}

#[tokio::test]
async fn what_was_appended_is_there_after_a_restart_sealed_or_not() {
    let folder = tempfile::tempdir().unwrap();
    let node = start(folder.path()).await;
    let state = node
        .open(
            "s",
            Some(SourcePosition::Postgres(Lsn(5))),
            Bytes::from_static(b"id"),
        )
        .await
        .unwrap();
    node.append(append(&state, vec![Payload::Inline(block(0..3, 10))], 10))
        .await
        .unwrap();
    let again = node
        .append(append(&state, vec![Payload::Inline(block(0..3, 10))], 10))
        .await;
    let Err(AppendError::Rejected { next, position, .. }) = again else {
        panic!("{again:?}")
    };
    assert_eq!(
        (next, position),
        (Offset(3), Some(SourcePosition::Postgres(Lsn(10))))
    );

    // A segment object joins in its place, and is sealed with what stands before it.
    let state = node.state("s").unwrap();
    let mut segment =
        SegmentWriter::create(folder.path(), "s", state.incarnation, state.epoch).unwrap();
    segment.write(&block(3..5, 20)).unwrap();
    segment.write(&block(5..6, 30)).unwrap();
    let object = segment.put(&*node.objects(), &[schema()]).await.unwrap();
    node.append(append(&state, vec![object], 30)).await.unwrap();
    node.seal_now("s").await.unwrap();
    let state = node.state("s").unwrap();
    assert_eq!((state.sealed, state.next), (Offset(6), Offset(6)));
    assert_eq!(
        state.sealed_position,
        Some(SourcePosition::Postgres(Lsn(30)))
    );
    node.append(append(&state, vec![Payload::Inline(block(6..7, 40))], 40))
        .await
        .unwrap();
    let state = node.state("s").unwrap();
    node.append(append(&state, vec![], 50)).await.unwrap();

    node.apply_resources(vec![ResourcePut {
        kind: "source".into(),
        name: "a".into(),
        spec_json: Bytes::from_static(b"{}"),
        expected_revision: Some(0),
    }])
    .await
    .unwrap();
    let swap = |expected: &str, new: &str| PointerSwap {
        catalog: "lake".into(),
        namespace: "n".into(),
        table: "t".into(),
        expected: expected.into(),
        metadata_location: new.into(),
    };
    node.swap_pointers(vec![swap("", "m1")]).await.unwrap();
    assert!(node.swap_pointers(vec![swap("", "m2")]).await.is_err());
    let before = (frames(&node).await, node.state("s").unwrap());
    // No shutdown of its own: as a killed process leaves it.
    node.shutdown().await;
    drop(node);

    let node = start(folder.path()).await;
    let state = node.state("s").unwrap();
    assert_eq!(frames(&node).await, before.0);
    assert_eq!(state.position, Some(SourcePosition::Postgres(Lsn(50))));
    assert_eq!(
        (state.sealed, state.next, state.epoch),
        (before.1.sealed, before.1.next, before.1.epoch)
    );
    assert_eq!(node.pointer("lake", "n", "t").as_deref(), Some("m1"));
    assert_eq!(node.resources().len(), 1);
    let reopened = node.open("s", None, Bytes::new()).await.unwrap();
    assert!(reopened.epoch > before.1.epoch);
    let stale = node.append(append(&before.1, vec![], 60)).await;
    assert!(
        matches!(stale, Err(AppendError::Rejected { .. })),
        "a stale owner's append is rejected"
    );
    node.shutdown().await;
}

#[tokio::test]
async fn a_damaged_byte_of_a_segment_is_reported_with_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let node = start(folder.path()).await;
    let state = node.open("s", None, Bytes::new()).await.unwrap();
    node.append(append(&state, vec![Payload::Inline(block(0..100, 10))], 10))
        .await
        .unwrap();
    node.seal_now("s").await.unwrap();
    let key = node.objects().list("log/s/", None).await.unwrap()[0]
        .0
        .clone();
    let path = folder.path().join("objects").join(&key);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[40] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    match node.read("s", Offset(0), 1 << 20).await {
        Err(ReadError::Damaged {
            object,
            position: 0,
            offset: Offset(0),
            ..
        }) => assert_eq!(object, key),
        other => panic!("{other:?}"),
    }
    node.shutdown().await;
}
