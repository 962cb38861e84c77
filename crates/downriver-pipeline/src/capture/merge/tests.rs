#![allow(clippy::unwrap_used)]
use downriver_event::block::OldImage;
use downriver_event::{Column, Cover, LogicalType, Lsn, ReplicaIdentity};
use downriver_source::postgres::snapshot::PgSnapshot;

use super::*;

/// What a transaction does to table 7.
#[derive(Clone, Copy)]
enum Step {
    Insert(i32),
    /// Leaves the other column unchanged.
    Update(i32),
    Delete(i32),
    Truncate(u32),
}
use Step::{Delete, Insert, Truncate, Update};

fn table() -> Arc<TableSchema> {
    let column = |id: u32, name: &str| Column {
        id,
        name: name.into(),
        ty: LogicalType::Int32,
        nullable: true,
        source_type: "integer".into(),
        cover: Cover::None,
        default: None,
    };
    Arc::new(TableSchema {
        id: TableId(7),
        version: 1,
        namespace: "public".into(),
        name: "t".into(),
        columns: vec![column(1, "id"), column(2, "v")],
        key: vec![1],
        identity: ReplicaIdentity::Default,
        withheld: Vec::new(),
    })
}

/// What the stream brought, by transaction.
fn streamed(transactions: &[(u32, &[Step])]) -> RecentChanges {
    let schema = table();
    let mut recent = RecentChanges::default();
    recent.track(schema.id);
    for (xid, steps) in transactions {
        let mut out = BlockBuilder::new();
        out.begin(xid.to_string(), 0);
        for step in *steps {
            let (op, old, id) = match *step {
                Insert(id) => (RowOp::Insert, OldImage::None, id),
                Update(id) => (RowOp::Update, OldImage::None, id),
                Delete(id) => (RowOp::Delete, OldImage::Key, id),
                Truncate(table) => {
                    out.marker(pb::marker::Kind::Truncate(pb::Truncate {
                        table_ids: vec![table],
                        ..pb::Truncate::default()
                    }));
                    continue;
                }
            };
            let row = out.row(&schema, op, old);
            let image = if op == RowOp::Delete {
                row.old
            } else {
                row.new
            };
            image[0].push_i32(id);
            match op {
                RowOp::Insert => image[1].push_i32(id),
                RowOp::Update => image[1].push_presence(Presence::Unchanged),
                _ => image[1].push_presence(Presence::Absent),
            }
        }
        out.commit(&SourcePosition::Postgres(Lsn(u64::from(*xid) * 100)));
        let (_, block) = out.cut_and_read().unwrap();
        recent.observe(&block, |_, _| Some(Arc::clone(&schema)));
    }
    recent
}

fn up_to(lsn: u64) -> Seen {
    Seen::UpTo(SourcePosition::Postgres(Lsn(lsn)))
}

/// Everything below `xid` has ended, and nothing else.
fn sees_below(xid: u32) -> Seen {
    Seen::In(PgSnapshot {
        xmin: u64::from(xid),
        xmax: u64::from(xid),
        running: Vec::new(),
    })
}

/// What is left of a chunk that read rows 1 to 3: `id`, and `=v` where the chunk's other value counts.
fn left_of_chunk(newer: &Newer) -> Vec<String> {
    let schema = table();
    let mut out = BlockBuilder::new();
    out.begin("snapshot".into(), 0);
    for id in 1..=3 {
        let row = out.row(&schema, RowOp::Snapshot, OldImage::None);
        row.new[0].push_i32(id);
        row.new[1].push_i32(id + 10);
    }
    out.commit_unplaced();
    let blocks = newer.resolve(out.cut().into_iter().collect(), &schema);
    let mut left = Vec::new();
    for block in blocks {
        let block = Block::decode(&block.frame).unwrap();
        for group in &block.groups {
            for (op, _, cell, _) in group.images() {
                let cell = cell.unwrap();
                let value = |id: u32| {
                    let mut bytes = Vec::new();
                    group.new_column(id).unwrap().write_key(cell, &mut bytes);
                    i32::from_le_bytes(bytes[1..5].try_into().unwrap())
                };
                left.push(format!("{op:?} {}={}", value(1), value(2)));
            }
        }
    }
    left
}

const WHOLE: [&str; 3] = ["Snapshot 1=11", "Snapshot 2=12", "Snapshot 3=13"];

#[test]
fn of_a_chunk_that_does_not_see_a_truncate_nothing_is_left() {
    let truncates: [&[(u32, &[Step])]; 4] = [
        &[(5, &[Truncate(7)])],
        // Also where rows are written before or behind it, by the same transaction or others.
        &[(5, &[Insert(1), Update(2), Truncate(7), Insert(2)])],
        &[(4, &[Update(1)]), (5, &[Truncate(7)]), (6, &[Insert(1)])],
        &[
            (4, &[Delete(1)]),
            (6, &[Truncate(7), Insert(3)]),
            (5, &[Update(3)]),
        ],
    ];
    for transactions in truncates {
        let mut recent = streamed(transactions);
        let newer = recent.newer_than(TableId(7), &sees_below(4));
        assert!(!newer.is_empty());
        assert!(left_of_chunk(&newer).is_empty());
        // And of the next one neither.
        let newer = recent.newer_than(TableId(7), &sees_below(4));
        assert!(left_of_chunk(&newer).is_empty());
    }
}

#[test]
fn a_chunk_that_sees_a_truncate_has_what_came_behind_it() {
    let transactions: &[(u32, &[Step])] = &[
        (4, &[Update(1)]),
        (
            5,
            &[Delete(2), Truncate(7), Insert(1), Insert(2), Insert(3)],
        ),
        (6, &[Update(2)]),
        (7, &[Delete(3)]),
    ];
    let newer = streamed(transactions).newer_than(TableId(7), &sees_below(8));
    assert!(newer.is_empty());
    assert_eq!(left_of_chunk(&newer), WHOLE);
    let mut recent = streamed(transactions);
    let newer = recent.newer_than(TableId(7), &sees_below(6));
    assert_eq!(left_of_chunk(&newer), ["Snapshot 1=11", "Update 2=12"]);
    // What one chunk saw, all later ones see.
    let newer = recent.newer_than(TableId(7), &sees_below(4));
    assert_eq!(left_of_chunk(&newer), ["Snapshot 1=11", "Update 2=12"]);
}

#[test]
fn a_truncate_of_another_table_takes_nothing_away() {
    let newer = streamed(&[(5, &[Truncate(8)])]).newer_than(TableId(7), &sees_below(4));
    assert!(newer.is_empty());
    assert_eq!(left_of_chunk(&newer), WHOLE);
}

/// A standby's chunk sees what ended up to a position.
#[test]
fn a_truncate_that_ends_behind_what_a_standby_had_replayed_counts_as_not_seen() {
    let transactions: &[(u32, &[Step])] = &[(5, &[Truncate(7), Insert(1)])];
    let before = streamed(transactions).newer_than(TableId(7), &up_to(499));
    assert!(left_of_chunk(&before).is_empty());
    let behind = streamed(transactions).newer_than(TableId(7), &up_to(500));
    assert_eq!(left_of_chunk(&behind), WHOLE);
}
