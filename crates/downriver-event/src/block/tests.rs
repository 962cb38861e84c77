use std::sync::Arc;

use super::*;
use crate::position::{Lsn, Offset, SourcePosition};
use crate::presence::Presence;
use crate::schema::{
    Column as SchemaColumn, Cover, LogicalType, ReplicaIdentity, TableId, TableSchema,
};
use crate::{pb, view};

fn schema() -> Arc<TableSchema> {
    let column = |id, name: &str, ty| SchemaColumn {
        id,
        name: name.into(),
        ty,
        nullable: true,
        source_type: String::new(),
        cover: Cover::None,
        default: None,
    };
    Arc::new(TableSchema {
        id: TableId(7),
        version: 1,
        namespace: "public".into(),
        name: "t".into(),
        columns: vec![
            column(1, "id", LogicalType::Int64),
            column(2, "note", LogicalType::Text),
            column(4, "span", LogicalType::Interval),
        ],
        key: vec![1],
        identity: ReplicaIdentity::Default,
        withheld: Vec::new(),
    })
}

#[test]
fn what_was_built_is_read_back_over_a_cut_transaction() {
    let schema = schema();
    let end = SourcePosition::Postgres(Lsn(900));
    let mut builder = BlockBuilder::new();
    builder.begin("41".into(), 5);
    assert_eq!(
        builder.commit(&end),
        0,
        "an empty transaction leaves no trace"
    );
    assert!(builder.cut().is_none());

    builder.begin("42".into(), 6);
    let row = builder.row(&schema, RowOp::Insert, OldImage::None);
    row.new[0].push_i64(-1);
    row.new[1].push_bytes("å".as_bytes());
    row.new[2].push_interval(1, -2, 3);
    let first = builder.cut().expect("one row");
    assert!(first.continues);
    let row = builder.row(&schema, RowOp::Update, OldImage::Key);
    row.old[0].push_i64(-1);
    row.old[1].push_presence(Presence::Absent);
    row.old[2].push_presence(Presence::Absent);
    row.new[0].push_i64(2);
    row.new[1].push_presence(Presence::Unchanged);
    row.new[2].push_presence(Presence::Null);
    let row = builder.row(&schema, RowOp::Delete, OldImage::Key);
    assert!(row.new.is_empty());
    row.old[0].push_i64(2);
    row.old[1].push_presence(Presence::Absent);
    row.old[2].push_presence(Presence::Absent);
    builder.marker(pb::marker::Kind::SnapshotStart(pb::SnapshotStart {
        table_id: 9,
        generation: 3,
    }));
    assert_eq!(builder.commit(&end), 4);
    let second = builder.cut().expect("three events");
    assert!(!second.continues);
    assert_eq!(second.tables, [TableId(7), TableId(9)]);

    let read = |block: &EncodedBlock, base| {
        let block = Block::decode(&block.frame).expect("sound");
        view::events(&block, Offset(base), &end, |_, _| Some(&*schema)).expect("readable")
    };
    let mut events = read(&first, 100);
    events.extend(read(&second, 101));
    let offsets: Vec<u64> = events.iter().map(|e| e.offset).collect();
    assert_eq!(offsets, [100, 101, 102, 103]);
    assert!(
        events
            .iter()
            .all(|e| e.position == Some(end.to_pb()) && e.transaction_id == "42")
    );
    let ends: Vec<bool> = events.iter().map(|e| e.transaction_ends).collect();
    assert_eq!(ends, [false, false, false, true]);
    assert_eq!(events[1].transaction_index, 1);
    let int = |v| pb::Cell {
        kind: Some(pb::cell::Kind::Value(pb::Value {
            kind: Some(pb::value::Kind::Int(v)),
        })),
    };
    let update = &events[1];
    assert_eq!(update.after.as_ref().expect("new image").cells[0], int(2));
    assert_eq!(
        update.after.as_ref().expect("new image").cells[1],
        view::presence_cell(Presence::Unchanged)
    );
    assert_eq!(update.before.as_ref().expect("old image").cells[0], int(-1));
    assert_eq!(
        update.before.as_ref().expect("old image").cells[1],
        view::presence_cell(Presence::Absent)
    );
    assert!(events[2].after.is_none());
}

#[test]
fn an_unknown_presence_code_is_an_error() {
    let mut block = pb::Block {
        events: 1,
        transactions: vec![pb::Transaction {
            events: 1,
            ends: true,
            ..Default::default()
        }],
        groups: vec![pb::RowGroup {
            table_id: 1,
            schema_version: 1,
            events: vec![0],
            ops: vec![1].into(),
            new_columns: vec![pb::ColumnData {
                column_id: 1,
                int32s: vec![1],
                presence: vec![2].into(),
                ..Default::default()
            }],
            ..Default::default()
        }],
        markers: vec![],
    };
    let read = |block: &pb::Block| Block::from_message(prost::Message::encode_to_vec(block).into());
    assert!(read(&block).is_ok());
    block.groups[0].new_columns[0].presence = vec![200].into();
    assert_eq!(
        read(&block).err(),
        Some(BlockError::UnknownCode {
            what: "presence",
            code: 200
        })
    );
}

#[test]
fn an_interval_is_printed_as_postgres_prints_it() {
    let text = |months, days, micros| {
        Interval {
            months,
            days,
            micros,
        }
        .to_string()
    };
    assert_eq!(text(14, -3, 14_706_789_000), "P1Y2M-3DT4H5M6.789S");
    assert_eq!(text(-14, 3, -14_706_789_000), "P-1Y-2M3DT-4H-5M-6.789S");
    assert_eq!(text(0, 0, -500_000), "PT-0.5S");
    assert_eq!(text(0, 1, 0), "P1D");
    assert_eq!(text(0, 0, 3_600_000_000), "PT1H");
    assert_eq!(text(0, 0, 0), "PT0S");
}
