//! Blocks of every released format are read as they were written.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use downriver_event::block::{Block, BlockError, FrameError, OldImage, RowOp};
use downriver_event::{
    BlockBuilder, Column, Cover, LogicalType, Lsn, Offset, Presence, ReplicaIdentity,
    SourcePosition, TableId, TableSchema, view,
};
use downriver_testkit::fixture;

const FIXTURE: &str = "block-v1.bin";

fn schema() -> Arc<TableSchema> {
    let column = |id, name: &str, ty| Column {
        id,
        name: name.into(),
        ty,
        nullable: true,
        source_type: "x".into(),
        cover: Cover::None,
        default: None,
    };
    Arc::new(TableSchema {
        id: TableId(16_400),
        version: 1,
        namespace: "public".into(),
        name: "t".into(),
        columns: vec![
            column(1, "i4", LogicalType::Int32),
            column(2, "i8", LogicalType::Int64),
            column(3, "f8", LogicalType::Float64),
            column(4, "b", LogicalType::Bool),
            column(5, "t", LogicalType::Text),
            column(6, "u", LogicalType::Uuid),
            column(7, "iv", LogicalType::Interval),
        ],
        key: vec![1],
        identity: ReplicaIdentity::Default,
        withheld: Vec::new(),
    })
}

/// The content of the fixture. It must never change; a new format gets a new fixture beside it.
fn build() -> BlockBuilder {
    let schema = schema();
    let mut builder = BlockBuilder::new();
    builder.begin("731".into(), 1_767_225_600_000_000);
    let row = builder.row(&schema, RowOp::Insert, OldImage::None);
    row.new[0].push_i32(-7);
    row.new[1].push_i64(i64::MIN);
    row.new[2].push_f64(0.1);
    row.new[3].push_bool(true);
    row.new[4].push_bytes("Zoë".as_bytes());
    row.new[5].push_fixed16(&[7; 16]);
    row.new[6].push_interval(1, -2, 3);
    let row = builder.row(&schema, RowOp::Update, OldImage::Key);
    row.old[0].push_i32(-7);
    row.new[0].push_i32(8);
    for column in &mut row.old[1..] {
        column.push_presence(Presence::Absent);
    }
    row.new[1].push_presence(Presence::Null);
    row.new[2].push_presence(Presence::NaN);
    for column in &mut row.new[3..] {
        column.push_presence(Presence::Unchanged);
    }
    builder.commit(&SourcePosition::Postgres(Lsn(0x16_b374_d848)));
    builder
}

#[test]
fn a_block_of_format_1_reads_as_it_was_written() {
    let built = build().cut().unwrap();
    let stored = fixture::bytes(FIXTURE, || built.frame.to_vec()).unwrap();
    let events = |frame: &[u8]| {
        let block = Block::decode(frame).unwrap();
        let end = SourcePosition::Postgres(Lsn(1));
        view::events(&block, Offset(40), &end, |_, _| {
            Some(&*Box::leak(Box::new((*schema()).clone())))
        })
        .unwrap()
    };
    let stored = events(&stored);
    assert_eq!(stored, events(&built.frame));
    assert_eq!(stored.len(), 2);
}

#[test]
fn a_block_of_a_newer_format_is_refused() {
    let mut newer = std::fs::read(fixture::path(FIXTURE)).unwrap();
    newer[13] = 2;
    let refused = Block::decode(&newer).unwrap_err();
    assert!(
        matches!(refused, BlockError::Frame(FrameError::Version(2))),
        "{refused:?}"
    );
    assert!(
        refused
            .to_string()
            .contains("format version 2 is not known to this build")
    );
}
