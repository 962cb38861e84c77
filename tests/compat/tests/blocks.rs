//! Blocks of every released format are read as they were written.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use downriver_event::block::{Block, OldImage, RowOp};
use downriver_event::{
    BlockBuilder, Column, LogicalType, Lsn, Offset, Presence, ReplicaIdentity, SourcePosition,
    TableId, TableSchema, view,
};

const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/block-v1.bin");

fn schema() -> Arc<TableSchema> {
    let column = |id, name: &str, ty| Column {
        id,
        name: name.into(),
        ty,
        nullable: true,
        source_type: "x".into(),
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
    if std::env::var_os("DOWNRIVER_WRITE_FIXTURES").is_some() {
        std::fs::write(FIXTURE, &built.frame).unwrap();
    }
    let events = |frame: &[u8]| {
        let block = Block::decode(frame).unwrap();
        let end = SourcePosition::Postgres(Lsn(1));
        view::events(&block, Offset(40), &end, |_, _| {
            Some(&*Box::leak(Box::new((*schema()).clone())))
        })
        .unwrap()
    };
    let stored = events(&std::fs::read(FIXTURE).unwrap());
    assert_eq!(stored, events(&built.frame));
    assert_eq!(stored.len(), 2);
}
