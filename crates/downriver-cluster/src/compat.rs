//! A node's folder of every format opens as it was left, and what is of a newer one is refused.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use downriver_api::cluster::v1 as pb;
use downriver_api::cluster::v1::command::Kind as Command;
use downriver_api::cluster::v1::snapshot_item::Kind as Item;
use downriver_api::cluster::v1::stored_entry::Payload as StoredPayload;
use downriver_event::block::{Block, OldImage, RowOp};
use downriver_event::{
    BlockBuilder, Column, Cover, EncodedBlock, EndedIncarnations, Epoch, Incarnation, LogicalType,
    Lsn, Offset, ReplicaIdentity, SourcePosition, TableId, TableSchema, view,
};
use downriver_log::journal::Garbage;
use downriver_log::segment::{self, SegmentWriter};
use downriver_log::store::LocalStore;
use downriver_log::{Append, ChunkDone, ChunkState, Log as _, Payload, StreamState};
use downriver_testkit::fixture;
use openraft::SnapshotMeta;
use prost::Message as _;
use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition};

use crate::snapshot;
use crate::state::Replicated;
use crate::{
    Cursor, Member, Node, NodeConfig, PointerSwap, ResourcePut, SinkTableState, StoredResource,
    source_task,
};

const FIXTURE: &str = "node-v1";
/// With merged segments, manifests, garbage and dropped streams, which node-v1 had not.
const TIDIED_FIXTURE: &str = "node-v2";
/// With members, assignments and groups of consumers, which node-v2 had not.
const CLUSTERED_FIXTURE: &str = "node-v3";
const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");

fn lsn(position: u64) -> SourcePosition {
    SourcePosition::Postgres(Lsn(position))
}

fn schema(version: u32) -> Arc<TableSchema> {
    let column = |id, name: &str, ty| Column {
        id,
        name: name.into(),
        ty,
        nullable: id > 1,
        source_type: "x".into(),
        cover: Cover::None,
        default: None,
    };
    let mut columns = vec![column(1, "id", LogicalType::Int64)];
    if version > 1 {
        columns.push(column(2, "name", LogicalType::Text));
    }
    Arc::new(TableSchema {
        id: TableId(16_400),
        version,
        namespace: "public".into(),
        name: "t".into(),
        columns,
        key: vec![1],
        identity: ReplicaIdentity::Default,
        withheld: Vec::new(),
    })
}

fn block(rows: std::ops::Range<i64>, position: u64) -> EncodedBlock {
    let mut builder = BlockBuilder::new();
    builder.begin("731".into(), 1_767_225_600_000_000);
    for row in rows {
        let image = builder.row(&schema(2), RowOp::Insert, OldImage::None);
        image.new[0].push_i64(row);
        image.new[1].push_bytes("Zoë".as_bytes());
    }
    builder.commit(&lsn(position));
    builder.cut().unwrap()
}

/// The four blocks of each stream. They must never change; a new format gets a new fixture beside this one.
fn blocks() -> [(Offset, EncodedBlock); 4] {
    [
        (Offset(0), block(0..3, 100)),
        (Offset(3), block(3..4, 110)),
        (Offset(4), block(4..6, 120)),
        (Offset(6), block(6..7, 130)),
    ]
}

/// A folder with the node's own and its store.
async fn start(folder: &Path) -> Result<Arc<Node>, String> {
    let store = Arc::new(LocalStore::open(&folder.join("objects")).unwrap());
    let mut config = NodeConfig::new(folder.join("node"), store);
    config.seal_interval = Duration::from_secs(86_400);
    Node::start(config).await.map_err(|error| error.to_string())
}

async fn append(node: &Node, stream: &str, payloads: Vec<Payload>, position: u64) {
    let state = node.state(stream).unwrap();
    let first = state.next == Offset(0);
    let chunk = ChunkDone {
        table: TableId(16_400),
        generation: 2,
        resume_after: Bytes::from_static(b"opaque"),
        rows: 3,
        last: false,
    };
    let append = Append {
        stream: stream.into(),
        incarnation: state.incarnation,
        epoch: state.epoch,
        base: state.next,
        position_before: state.position.clone(),
        position_after: Some(lsn(position)),
        schemas: if first {
            vec![schema(1), schema(2)]
        } else {
            vec![]
        },
        chunks_done: if first { vec![chunk] } else { vec![] },
        payloads,
        moved: None,
    };
    node.append(append).await.unwrap();
}

/// One of everything that is replicated, under names that begin with `name`.
async fn fill(node: &Node, folder: &Path, name: &str) {
    let identity = Bytes::from_static(b"identity");
    let state = node.open(name, Some(lsn(90)), identity).await.unwrap();
    let [(_, first), (_, second), (_, third), (_, fourth)] = blocks();
    let mut segment = SegmentWriter::create(folder, name, state.incarnation, state.epoch).unwrap();
    segment.write(&first).unwrap();
    let object = segment
        .put(&*node.objects(), &[schema(1), schema(2)])
        .await
        .unwrap();
    append(node, name, vec![object], 100).await;
    append(node, name, vec![Payload::Inline(second)], 110).await;
    node.seal_now(name).await.unwrap();
    append(node, name, vec![Payload::Inline(third)], 120).await;
    append(node, name, vec![Payload::Inline(fourth)], 130).await;
    append(node, name, vec![], 140).await;

    let put = |kind: &str, expected_revision| ResourcePut {
        kind: kind.into(),
        name: name.into(),
        spec_json: Bytes::from_static(br#"{"a":1}"#),
        expected_revision,
    };
    let puts = vec![put("Source", Some(0)), put("Sink", None), put("Gone", None)];
    node.apply_resources(puts).await.unwrap();
    node.delete_resource("Gone", name, None).await.unwrap();
    let swap = |table: &str, expected: &str, location: &str| PointerSwap {
        catalog: name.into(),
        namespace: "n".into(),
        table: table.into(),
        expected: expected.into(),
        metadata_location: location.into(),
    };
    let swaps = vec![swap("t", "", "m1"), swap("gone", "", "m1")];
    node.swap_pointers(swaps).await.unwrap();
    let swaps = vec![swap("t", "m1", "m2"), swap("gone", "m1", "")];
    node.swap_pointers(swaps).await.unwrap();
    let gone = format!("{name}-gone");
    for pipeline in [name, &gone] {
        let table = TableId(7);
        node.open_sink_table(pipeline, 0, table).await.unwrap();
        let epoch = node
            .open_sink_table(pipeline, 0, table)
            .await
            .unwrap()
            .epoch;
        let detail = Bytes::from_static(b"detail");
        node.commit_sink_table(pipeline, table, epoch, Offset(5), detail)
            .await
            .unwrap();
        node.put_record(pipeline, Some(Bytes::from_static(b"value")))
            .await
            .unwrap();
    }
    node.drop_pipeline(&gone).await.unwrap();
    node.put_record(&gone, None).await.unwrap();
    node.open(&gone, None, Bytes::new()).await.unwrap();
    node.drop_stream(&gone).await.unwrap();
}

/// The fixture: what "snapshot" names is in a snapshot, what "log" names in the Raft log behind it.
async fn write(folder: &Path, fill: impl AsyncFn(&Node, &Path, &str)) {
    let node = start(folder).await.unwrap();
    fill(&node, folder, "snapshot").await;
    node.take_snapshot().await;
    while snapshot::newest(&folder.join("node")).unwrap().is_none() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    fill(&node, folder, "log").await;
    node.shutdown().await;
    drop(node);
    let raft = folder.join("node/raft.redb");
    // Raft's tasks may still hold it.
    let mut database = loop {
        match Database::open(&raft) {
            Ok(database) => break database,
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    };
    database.compact().unwrap();
}

async fn check(node: &Node, name: &str) {
    let state = node.state(name).unwrap();
    let chunk = ChunkState {
        generation: 2,
        resume_after: Bytes::from_static(b"opaque"),
        rows: 3,
        done: false,
    };
    let schemas = [1, 2].map(|version| ((TableId(16_400), version), schema(version)));
    let expected = StreamState {
        ended: EndedIncarnations::default(),
        incarnation: Incarnation(1),
        epoch: Epoch(1),
        trimmed: Offset(0),
        sealed: Offset(4),
        next: Offset(7),
        position: Some(lsn(140)),
        sealed_position: Some(lsn(110)),
        identity: Bytes::from_static(b"identity"),
        schemas: Arc::new(BTreeMap::from(schemas)),
        chunks: Arc::new(BTreeMap::from([(TableId(16_400), chunk)])),
    };
    assert_eq!(format!("{state:?}"), format!("{expected:?}"));

    let mut from = Offset(0);
    // A snapshot of then has of the last block where an append without blocks moved the stream to.
    let last = if name == "log" { 130 } else { 140 };
    for (position, (base, written)) in [100, 110, 120, last].into_iter().zip(blocks()) {
        let read = node.read(name, from, 1).await.unwrap();
        let events = |frame: &[u8]| {
            let block = Block::decode(frame).unwrap();
            view::events(&block, base, &lsn(1), |_, version| {
                Some(&*Box::leak(Box::new((*schema(version)).clone())))
            })
            .unwrap()
        };
        assert_eq!((read.len(), read[0].base), (1, base));
        assert_eq!(read[0].epoch, Epoch(1));
        assert_eq!(read[0].position_after, Some(lsn(position)));
        assert_eq!(events(&read[0].frame), events(&written.frame));
        from = read[0].end();
    }
    assert_eq!(from, Offset(7));

    let resources = node.resources();
    let of = |kind: &str| {
        let mut resources = resources.iter();
        resources
            .find(|r| r.kind == kind && r.name == name)
            .cloned()
    };
    let after = if name == "log" { 3 } else { 0 };
    let resource = |kind: &str, revision| StoredResource {
        kind: kind.into(),
        name: name.into(),
        spec_json: Bytes::from_static(br#"{"a":1}"#),
        revision,
    };
    assert_eq!(of("Source"), Some(resource("Source", 1 + after)));
    assert_eq!(of("Sink"), Some(resource("Sink", 2 + after)));
    assert_eq!(of("Gone"), None);
    let pointer = ("n".to_owned(), "t".to_owned(), "m2".to_owned());
    assert_eq!(node.pointers(name), [pointer]);
    let table = SinkTableState {
        epoch: Epoch(2),
        owner: 1,
        delivered: Offset(5),
        detail: Bytes::from_static(b"detail"),
    };
    assert_eq!(node.sink_tables(name), [(TableId(7), table)]);
    assert_eq!(node.record(name), Some(Bytes::from_static(b"value")));
    let gone = format!("{name}-gone");
    assert!(node.sink_tables(&gone).is_empty() && node.record(&gone).is_none());
    assert!(node.state(&gone).is_none());
}

/// A stream of six segments: the first two merged, that and the third in a manifest, trimmed to the manifest's second.
async fn fill_tidied(node: &Node, folder: &Path, name: &str) {
    node.open(name, Some(lsn(0)), Bytes::new()).await.unwrap();
    for row in 0..6 {
        let position = 10 * (row as u64 + 1);
        let payload = Payload::Inline(block(row..row + 1, position));
        append(node, name, vec![payload], position).await;
        node.seal_now(name).await.unwrap();
    }
    let look = || node.with_state(|s| s.journal.streams[name].segments.clone());
    let places: Vec<_> = look()[..2].iter().map(|s| s.place.clone()).collect();
    let of = (name, Incarnation(1));
    let (merged, schemas) = segment::merge(node.segments(), folder.to_owned(), of, &places)
        .await
        .unwrap();
    let merged = merged.put(&*node.objects(), &schemas).await.unwrap();
    let Payload::Object { object, .. } = merged else {
        panic!("a segment is an object");
    };
    let stream = name.to_owned();
    let merge = pb::MergeSegments {
        group: 0,
        stream: stream.clone(),
        incarnation: 1,
        base_offset: 0,
        end_offset: 2,
        segments: 2,
        object: Some(object.to_pb()),
    };
    node.propose(Command::MergeSegments(merge)).await.unwrap();
    let object = segment::put_manifest(&*node.objects(), name, Incarnation(1), &look()[..2])
        .await
        .unwrap();
    let fold = pb::FoldSegments {
        group: 0,
        stream: stream.clone(),
        incarnation: 1,
        base_offset: 0,
        end_offset: 3,
        segments: 2,
        object: Some(object.to_pb()),
    };
    node.propose(Command::FoldSegments(fold)).await.unwrap();
    let first = node.with_state(|s| s.journal.streams[name].garbage[0].key.clone());
    let forget = pb::ForgetObjects {
        group: 0,
        stream: stream.clone(),
        keys: vec![first],
    };
    node.propose(Command::ForgetObjects(forget)).await.unwrap();
    let trim = pb::TrimStream {
        group: 0,
        stream,
        offset: 2,
        incarnation: 1,
    };
    node.propose(Command::TrimStream(trim)).await.unwrap();
    let gone = format!("{name}-gone");
    node.open(&gone, None, Bytes::new()).await.unwrap();
    node.drop_stream(&gone).await.unwrap();
}

async fn check_tidied(node: &Node, name: &str) {
    let stream = node.with_state(|s| s.journal.streams[name].clone());
    assert_eq!((stream.trimmed, stream.sealed), (Offset(2), Offset(6)));
    assert_eq!((stream.segments.len(), stream.garbage.len()), (3, 1));
    let [manifest] = &stream.manifests[..] else {
        panic!("{:?}", stream.manifests);
    };
    let listed = node.segments().manifest(manifest).await.unwrap();
    let offsets: Vec<_> = listed
        .iter()
        .map(|s| (s.place.base.0, s.place.end.0))
        .collect();
    assert_eq!(offsets, [(0, 2), (2, 3)]);
    assert!(node.read(name, Offset(1), 1).await.is_err());
    for row in 2..6 {
        let read = node.read(name, Offset(row), 1).await.unwrap();
        assert_eq!((read.len(), read[0].base), (1, Offset(row)));
        assert_eq!(read[0].position_after, Some(lsn(10 * (row + 1))));
    }
    // What retention has passed is in the merged segment still.
    let merged = &listed[0].place;
    let blocks = node.segments().blocks(merged, Offset(0), 1 << 20).await;
    let positions: Vec<_> = blocks
        .unwrap()
        .into_iter()
        .map(|b| b.position_after)
        .collect();
    assert_eq!(positions, [Some(lsn(10)), Some(lsn(20))]);
    let gone = format!("{name}-gone");
    let again = node.open(&gone, None, Bytes::new()).await.unwrap();
    assert_eq!(again.incarnation, Incarnation(2));
}

fn member(name: &str) -> Member {
    Member {
        id: name.len() as u64,
        name: name.into(),
        peer_address: format!("{name}:7072"),
        grpc_address: format!("{name}:7070"),
        http_address: format!("{name}:7071"),
        version: "0.1.0".into(),
        starts: 3,
        draining: false,
        removed: false,
        feature_level: 1,
        process: "a process".into(),
    }
}

/// A stream that a member was given, and a group that has consumed some of it.
async fn fill_clustered(node: &Node, _: &Path, name: &str) {
    let member = member(name);
    let put = pb::PutMember {
        member: Some(member.to_pb()),
    };
    node.propose(Command::PutMember(put)).await.unwrap();
    let moves = vec![pb::Move {
        task: source_task(name),
        from: 0,
        to: node.id(),
    }];
    let term = node.raft().metrics().borrow().current_term;
    node.propose(Command::Assign(pb::Assign {
        moves,
        term,
        leader: node.id(),
    }))
    .await
    .unwrap();
    node.open(name, Some(lsn(0)), Bytes::new()).await.unwrap();
    append(node, name, vec![Payload::Inline(block(0..3, 10))], 10).await;
    let taken = node.take_group(name, "readers", "one").await.unwrap();
    let cursor = Cursor {
        incarnation: Incarnation(1),
        offset: Offset(2),
    };
    node.commit_group((name, "readers"), taken.epoch, None, cursor)
        .await
        .unwrap();
    let raise = pb::RaiseFeatureLevel { level: 1 };
    node.propose(Command::RaiseFeatureLevel(raise))
        .await
        .unwrap();
}

fn check_clustered(node: &Node, name: &str) {
    let member = member(name);
    assert_eq!(node.member(member.id), Some(member.clone()));
    let assigned = node.assigned(&source_task(name)).unwrap();
    assert!(assigned.node == node.id() && assigned.since > 0);
    let group = node.group(name, "readers").unwrap();
    assert!(group.epoch > Epoch(0) && group.member == "one");
    let cursor = group.cursor.unwrap();
    assert_eq!(
        (cursor.incarnation, cursor.offset),
        (Incarnation(1), Offset(2))
    );
    assert_eq!(node.with_state(|state| state.control.feature_level), 1);
}

/// A copy of a fixture.
fn copy_of(fixture: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fixture::copy_folder(&fixture::path(fixture), folder.path()).unwrap();
    folder
}

fn copy() -> tempfile::TempDir {
    copy_of(FIXTURE)
}

#[tokio::test]
async fn a_tidied_node_folder_of_format_2_opens_as_it_was_left() {
    if let Some(path) = fixture::to_write(TIDIED_FIXTURE) {
        write(&path, fill_tidied).await;
    }
    let folder = copy_of(TIDIED_FIXTURE);
    let node = start(folder.path()).await.unwrap();
    check_tidied(&node, "snapshot").await;
    check_tidied(&node, "log").await;
    node.shutdown().await;
}

#[tokio::test]
async fn a_clustered_node_folder_of_format_3_opens_as_it_was_left() {
    if let Some(path) = fixture::to_write(CLUSTERED_FIXTURE) {
        write(&path, fill_clustered).await;
    }
    let folder = copy_of(CLUSTERED_FIXTURE);
    let node = start(folder.path()).await.unwrap();
    check_clustered(&node, "snapshot");
    check_clustered(&node, "log");
    node.shutdown().await;
}

#[tokio::test]
async fn a_node_folder_of_format_1_opens_as_it_was_left() {
    if let Some(path) = fixture::to_write(FIXTURE) {
        write(&path, fill).await;
    }
    let folder = copy();
    let node = start(folder.path()).await.unwrap();
    check(&node, "snapshot").await;
    check(&node, "log").await;
    // The next revision is no one's yet.
    let put = ResourcePut {
        kind: "Source".into(),
        name: "new".into(),
        spec_json: Bytes::new(),
        expected_revision: Some(0),
    };
    assert_eq!(node.apply_resources(vec![put]).await.unwrap(), [7]);
    node.shutdown().await;
}

/// What starting says of a copy of the fixture after `change`.
async fn refusal(change: impl FnOnce(&Path)) -> String {
    let folder = copy();
    change(&folder.path().join("node"));
    match start(folder.path()).await {
        Ok(_) => panic!("it was opened"),
        Err(reason) => reason,
    }
}

/// Changes a Raft entry: the first or the last that is kept.
fn change_entry(node: &Path, last: bool, change: impl FnOnce(&mut pb::Entry, &mut u32)) {
    let database = Database::open(node.join("raft.redb")).unwrap();
    let (index, mut stored) = {
        let log = database.begin_read().unwrap().open_table(LOG).unwrap();
        let mut entries = log.iter().unwrap().map(|entry| {
            let (index, bytes) = entry.unwrap();
            (
                index.value(),
                pb::StoredEntry::decode(bytes.value()).unwrap(),
            )
        });
        let with_commands = |(_, stored): &(u64, pb::StoredEntry)| {
            matches!(stored.payload, Some(StoredPayload::Normal(_)))
        };
        if last {
            entries.rfind(with_commands).unwrap()
        } else {
            entries.find(with_commands).unwrap()
        }
    };
    let Some(StoredPayload::Normal(entry)) = &mut stored.payload else {
        unreachable!("it has commands");
    };
    change(entry, &mut stored.format);
    let write = database.begin_write().unwrap();
    let mut log = write.open_table(LOG).unwrap();
    log.insert(index, &stored.encode_to_vec()[..]).unwrap();
    drop(log);
    write.commit().unwrap();
}

fn snapshot_file(node: &Path) -> PathBuf {
    snapshot::newest(node).unwrap().unwrap()
}

/// Changes the items of the snapshot; its checksum stays right.
fn change_snapshot(node: &Path, mut change: impl FnMut(&mut pb::SnapshotItem)) {
    let path = snapshot_file(node);
    let mut bytes = Bytes::from(std::fs::read(&path).unwrap());
    bytes.truncate(bytes.len() - 4);
    let mut out = BytesMut::new();
    while !bytes.is_empty() {
        let mut item = pb::SnapshotItem::decode_length_delimited(&mut bytes).unwrap();
        change(&mut item);
        item.encode_length_delimited(&mut out).unwrap();
    }
    let crc = crc32c::crc32c(&out);
    out.extend_from_slice(&crc.to_le_bytes());
    std::fs::write(path, out).unwrap();
}

fn says(reason: &str, what: &str) {
    assert!(reason.contains(what), "{reason:?} does not say {what:?}");
}

#[tokio::test]
async fn a_raft_log_of_a_newer_format_is_refused_and_left_as_it_is() {
    let folder = copy();
    let path = folder.path().join("node/raft.redb");
    let set = |format: u8| {
        let database = Database::open(&path).unwrap();
        let write = database.begin_write().unwrap();
        write
            .open_table(META)
            .unwrap()
            .insert("format", &[format][..])
            .unwrap();
        write.commit().unwrap();
    };
    set(2);
    let reason = start(folder.path()).await.unwrap_err();
    says(&reason, "raft.redb\" has format 2, this build reads 1");
    set(1);
    let node = start(folder.path()).await.unwrap();
    check(&node, "log").await;
    node.shutdown().await;
}

#[tokio::test]
async fn a_raft_entry_of_a_newer_format_is_refused() {
    for last in [false, true] {
        let newer = |node: &Path| change_entry(node, last, |_, format| *format = 2);
        says(
            &refusal(newer).await,
            "a Raft entry has format 2, this build reads 1",
        );
        let newer = |node: &Path| change_entry(node, last, |entry, _| entry.format = 2);
        says(
            &refusal(newer).await,
            "a Raft entry has commands of format 2, this build reads 1",
        );
    }
}

#[tokio::test]
async fn a_command_that_is_not_known_is_refused() {
    let newer = |entry: &mut pb::Entry, _: &mut u32| entry.commands[0].kind = None;
    let reason = refusal(|node| change_entry(node, false, newer)).await;
    says(
        &reason,
        "a Raft entry has a command that this build does not know",
    );
}

#[tokio::test]
async fn a_snapshot_of_a_newer_format_is_refused() {
    let reason = refusal(|node| {
        change_snapshot(node, |item| {
            if let Some(Item::Header(header)) = &mut item.kind {
                header.format = 5;
            }
        });
    });
    says(&reason.await, "it has format 5, this build reads 1 to 4");
}

/// Format 4 is written where a log was restored, so that members of before read all others.
#[test]
fn a_snapshot_of_a_restored_log_is_read_as_it_was_written() {
    let folder = tempfile::tempdir().unwrap();
    let garbage = Garbage {
        key: "log/shop/1/1-00000001-of.seg".into(),
        since: 7,
    };
    let bytes = fixture::bytes("raft-v4.snapshot", || {
        let mut replicated = Replicated::default();
        replicated.journal.open(&pb::OpenStream {
            stream: "shop/1".into(),
            ..pb::OpenStream::default()
        });
        let stream = replicated.journal.streams.get_mut("shop/1").unwrap();
        stream.next = Offset(70);
        stream.garbage.push(garbage.clone());
        stream.begin_anew(Incarnation(2), Epoch(1).of_life(1), Offset(0));
        stream.next = Offset(90);
        stream.begin_anew(Incarnation(3), Epoch(1).of_life(2), Offset(0));
        let meta = SnapshotMeta::default();
        let path = snapshot::write(folder.path(), &meta, &replicated).unwrap();
        std::fs::read(path).unwrap()
    });
    let path = folder.path().join("fixture");
    std::fs::write(&path, bytes.unwrap()).unwrap();
    let (_, replicated) = snapshot::read(&path).unwrap();
    let stream = &replicated.journal.streams["shop/1"];
    let ended = [(Incarnation(1), Offset(70)), (Incarnation(2), Offset(90))];
    assert_eq!(stream.incarnation, Incarnation(3));
    assert_eq!(stream.ended, ended.into_iter().collect());
    assert_eq!(stream.epoch, Epoch(1).of_life(2));
    assert_eq!(stream.garbage, [garbage]);
}

#[tokio::test]
async fn what_is_not_known_in_a_snapshot_is_refused() {
    let reason = refusal(|node| {
        change_snapshot(node, |item| {
            if let Some(Item::Record(_)) = &item.kind {
                item.kind = None;
            }
        });
    });
    says(
        &reason.await,
        "it has an item that this build does not know",
    );
    let reason = refusal(|node| {
        change_snapshot(node, |item| {
            if let Some(Item::Stream(stream)) = &mut item.kind {
                stream.position = Some(downriver_event::pb::SourcePosition { kind: None });
            }
        });
    });
    says(
        &reason.await,
        "it has a source position that this build does not know",
    );
}
