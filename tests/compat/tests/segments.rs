//! Segments of every released format are read as they were written, and newer ones are refused.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use bytes::Bytes;
use downriver_api::cluster::v1 as pb;
use downriver_event::block::{Block, OldImage, RowOp};
use downriver_event::{
    BlockBuilder, Column, Cover, EncodedBlock, Epoch, Incarnation, LogicalType, Lsn, Offset,
    ReplicaIdentity, SourcePosition, TableId, TableSchema, view,
};
use downriver_log::segment::{SegmentPlace, SegmentReader, SegmentWriter, read_footer};
use downriver_log::store::LocalStore;
use downriver_log::{ObjectRef, ObjectStore as _, Payload, StoredBlock};
use downriver_testkit::fixture;
use prost::Message as _;

const FIXTURE: &str = "segment-v1.seg";
const TRAILER_BYTES: usize = 12;

fn schema() -> Arc<TableSchema> {
    Arc::new(TableSchema {
        id: TableId(16_400),
        version: 3,
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
        identity: ReplicaIdentity::Full,
        withheld: Vec::new(),
    })
}

fn lsn(position: u64) -> SourcePosition {
    SourcePosition::Postgres(Lsn(position))
}

fn block(rows: std::ops::Range<i64>, time_us: i64) -> EncodedBlock {
    let mut builder = BlockBuilder::new();
    builder.begin("731".into(), time_us);
    for row in rows {
        builder.row(&schema(), RowOp::Insert, OldImage::None).new[0].push_i64(row);
    }
    builder.commit(&lsn(9));
    builder.cut().unwrap()
}

/// The content of the fixture. It must never change; a new format gets a new fixture beside it.
fn blocks() -> [EncodedBlock; 2] {
    [block(0..5, -1), block(5..6, 1_767_225_600_000_000)]
}

async fn write() -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let store = LocalStore::open(&folder.path().join("objects")).unwrap();
    let mut segment =
        SegmentWriter::create(folder.path(), "shop", Incarnation(2), Epoch(7)).unwrap();
    let [first, second] = blocks();
    let times = (first.time_min_us, first.time_max_us);
    let appended = StoredBlock {
        base: Offset(0),
        events: 5,
        epoch: Epoch(0),
        frame: first.frame,
        position_after: Some(lsn(8)),
    };
    segment
        .write_appended(&appended, times, vec![16_400])
        .unwrap();
    segment.write(&second).unwrap();
    let Payload::Object { object, .. } = segment.put(&store, &[schema()]).await.unwrap() else {
        panic!("a segment is an object");
    };
    let bytes = store.get_range(&object.key, 0..object.len).await.unwrap();
    assert_eq!(crc32c::crc32c(&bytes), object.crc);
    bytes.to_vec()
}

async fn stored() -> Bytes {
    if let Some(path) = fixture::to_write(FIXTURE) {
        std::fs::write(path, write().await).unwrap();
    }
    std::fs::read(fixture::path(FIXTURE)).unwrap().into()
}

/// Where the footer starts, as the trailer says.
fn footer_offset(segment: &[u8]) -> usize {
    let trailer = segment.len() - TRAILER_BYTES;
    trailer - u32::from_le_bytes(segment[trailer..trailer + 4].try_into().unwrap()) as usize
}

#[tokio::test]
async fn a_segment_of_format_1_reads_as_it_was_written() {
    let segment = stored().await;
    let footer_offset = footer_offset(&segment);
    let footer = read_footer(segment.slice(footer_offset..)).unwrap();
    let entry = |first_event, block: &EncodedBlock, position, len, position_after| pb::IndexEntry {
        first_event,
        events: block.events,
        position,
        len,
        time_min_us: block.time_min_us,
        time_max_us: block.time_max_us,
        table_ids: vec![16_400],
        position_after,
        epoch: 0,
    };
    let [first, second] = blocks();
    // What zstd makes of the blocks is not ours to fix: their lengths are the fixture's.
    let cut = footer.blocks[1].position;
    let expected = pb::SegmentFooter {
        format: 1,
        stream: "shop".into(),
        incarnation: 2,
        epoch: 7,
        blocks: vec![
            entry(0, &first, 0, cut as u32, Some(lsn(8).to_pb())),
            entry(5, &second, cut, footer_offset as u32 - cut as u32, None),
        ],
        schemas: vec![schema().to_pb()],
        chain_from: Bytes::new(),
        chain_to: footer.chain_to.clone(),
    };
    assert_eq!(footer, expected);
    assert_eq!(footer.chain_to.len(), 32);

    let folder = tempfile::tempdir().unwrap();
    let store = LocalStore::open(folder.path()).unwrap();
    let path = folder.path().join("segment");
    std::fs::write(&path, &segment).unwrap();
    let place = SegmentPlace {
        base: Offset(100),
        end: Offset(106),
        epoch: Epoch(7),
        object: ObjectRef {
            key: "segment".into(),
            len: segment.len() as u64,
            crc: crc32c::crc32c(&segment),
            footer_offset: footer_offset as u64,
            stored_us: 0,
        },
        position_after: Some(lsn(9)),
    };
    let reader = SegmentReader::new(Arc::new(store));
    let read = reader.blocks(&place, Offset(100), 1 << 20).await.unwrap();
    let events = |frame: &[u8], base| {
        let block = Block::decode(frame).unwrap();
        view::events(&block, base, &lsn(1), |_, _| {
            Some(&*Box::leak(Box::new((*schema()).clone())))
        })
        .unwrap()
    };
    assert_eq!(read.len(), 2);
    for (read, (written, (base, position))) in
        read.iter().zip(blocks().iter().zip([(100, 8), (105, 9)]))
    {
        assert_eq!((read.base, read.events), (Offset(base), written.events));
        assert_eq!(read.position_after, Some(lsn(position)));
        assert_eq!(read.epoch, Epoch(7));
        assert_eq!(
            events(&read.frame, read.base),
            events(&written.frame, read.base)
        );
    }
}

#[tokio::test]
async fn a_segment_of_a_newer_format_is_refused() {
    let segment = stored().await;
    let tail = segment.slice(footer_offset(&segment)..);

    let mut footer = read_footer(tail.clone()).unwrap();
    footer.format = 2;
    let mut newer = footer.encode_to_vec();
    let (len, crc) = (newer.len() as u32, crc32c::crc32c(&newer));
    newer.extend_from_slice(&len.to_le_bytes());
    newer.extend_from_slice(&crc.to_le_bytes());
    newer.extend_from_slice(b"DRS1");
    let refused = read_footer(newer.into()).unwrap_err();
    assert_eq!(refused, "segment format 2 is not known to this build");

    let mut newer = tail.to_vec();
    *newer.last_mut().unwrap() = b'2';
    let refused = read_footer(newer.into()).unwrap_err();
    assert_eq!(refused, "the object does not end as a segment does");
}
