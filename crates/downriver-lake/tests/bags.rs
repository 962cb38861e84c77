//! Tables without a key: whatever comes and goes, wherever the owner ends, of equal rows there are as many as the model
//! says.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use common::lake::Lake;
use downriver_event::block::{Block, OldImage, RowOp};
use downriver_event::{
    BlockBuilder, Column, Cover, LogicalType, Lsn, Offset, Presence, ReplicaIdentity,
    SourcePosition, TableId, TableSchema, pb,
};
use downriver_lake::{Changes, Schemas, TableWriter};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const TABLE: TableId = TableId(7);

fn schema() -> Arc<TableSchema> {
    let column = |id, name: &str, ty, source_type: &str| Column {
        id,
        name: name.into(),
        ty,
        nullable: true,
        source_type: source_type.into(),
        cover: Cover::None,
        default: None,
    };
    Arc::new(TableSchema {
        id: TABLE,
        version: 1,
        namespace: "public".into(),
        name: "bag".into(),
        columns: vec![
            column(1, "number", LogicalType::Float64, "double precision"),
            column(2, "body", LogicalType::Text, "text"),
        ],
        key: Vec::new(),
        identity: ReplicaIdentity::Full,
        withheld: Vec::new(),
    })
}

/// 0: null; 1: -0, which is not 0; 2: NaN; else the number less three.
type Row = (u8, u8);

fn push(columns: &mut [downriver_event::block::ColumnBuilder], (number, body): Row) {
    match number {
        0 => columns[0].push_presence(Presence::Null),
        1 => columns[0].push_f64(-0.0),
        2 => columns[0].push_f64(f64::NAN),
        number => columns[0].push_f64(f64::from(number - 3)),
    }
    match body {
        0 => columns[1].push_presence(Presence::Null),
        body => columns[1].push_bytes(&[b'a' + body; 40]),
    }
}

/// What the source has: how often it has each row.
#[derive(Clone, Debug, Default)]
struct Source(BTreeMap<Row, u32>);

impl Source {
    fn change(&mut self, row: Row, by: i32) {
        let count = self.0.entry(row).or_default();
        *count = count
            .checked_add_signed(by)
            .expect("only what is there goes");
        self.0.retain(|_, count| *count > 0);
    }

    fn rows(&self) -> impl Iterator<Item = Row> + '_ {
        let rows = self.0.iter();
        rows.flat_map(|(row, count)| (0..*count).map(|_| *row))
    }

    fn any(&self, random: &mut StdRng) -> Option<Row> {
        let rows: Vec<Row> = self.rows().collect();
        (!rows.is_empty()).then(|| rows[random.random_range(0..rows.len())])
    }
}

fn marker(builder: &mut BlockBuilder, kind: pb::marker::Kind) {
    builder.begin("snapshot".into(), 0);
    builder.marker(kind);
    builder.commit_unplaced();
}

/// Some transactions, and perhaps a generation of the table's snapshot among them.
fn block(source: &mut Source, random: &mut StdRng) -> Block {
    use pb::marker::Kind;
    let schema = schema();
    let mut builder = BlockBuilder::new();
    for _ in 0..random.random_range(1..4) {
        if random.random_ratio(1, 8) {
            marker(
                &mut builder,
                Kind::SnapshotStart(pb::SnapshotStart {
                    table_id: TABLE.0,
                    generation: 2,
                }),
            );
            for row in source.rows() {
                builder.begin("snapshot".into(), 0);
                push(
                    builder.row(&schema, RowOp::Snapshot, OldImage::None).new,
                    row,
                );
                builder.commit_unplaced();
            }
            marker(
                &mut builder,
                Kind::SnapshotEnd(pb::SnapshotEnd {
                    table_id: TABLE.0,
                    generation: 2,
                    rows: 0,
                }),
            );
        }
        builder.begin("1".into(), 0);
        for _ in 0..random.random_range(1..30) {
            let new = (random.random_range(0..5), random.random_range(0..3));
            let old = source.any(random);
            match (random.random_range(0..20), old) {
                (0, _) if random.random_ratio(1, 8) => {
                    builder.marker(Kind::Truncate(pb::Truncate {
                        table_ids: vec![TABLE.0],
                        cascade: false,
                        restart_identity: false,
                    }));
                    source.0.clear();
                }
                (1..=6, Some(old)) => {
                    push(builder.row(&schema, RowOp::Delete, OldImage::Full).old, old);
                    source.change(old, -1);
                }
                (7..=12, Some(old)) => {
                    let columns = builder.row(&schema, RowOp::Update, OldImage::Full);
                    push(columns.new, new);
                    push(columns.old, old);
                    source.change(old, -1);
                    source.change(new, 1);
                }
                _ => {
                    push(builder.row(&schema, RowOp::Insert, OldImage::None).new, new);
                    source.change(new, 1);
                }
            }
        }
        builder.commit(&SourcePosition::Postgres(Lsn(1)));
    }
    builder.cut_and_read().expect("there are events").1
}

async fn open(lake: &Lake) -> Result<TableWriter> {
    Ok(lake.open(lake.config_of_next(), &[schema()]).await?)
}

async fn ensure_is(lake: &Lake, source: &Source) -> Result<()> {
    let fill = |builder: &mut BlockBuilder| {
        for row in source.rows() {
            let columns = builder.row(&schema(), RowOp::Snapshot, OldImage::None);
            push(columns.new, row);
        }
    };
    lake.ensure_is(schema(), fill).await
}

async fn play(seed: u64) -> Result<()> {
    let mut random = StdRng::seed_from_u64(seed);
    let (lake, mut source) = (Lake::new("bag")?, Source::default());
    let schemas: Schemas = [((TABLE, 1), schema())].into();
    let mut next = Offset(0);
    let mut log: Vec<(Offset, Block)> = Vec::new();
    let mut writer = open(&lake).await?;
    for _ in 0..40 {
        let new = block(&mut source, &mut random);
        let base = next;
        next = next.plus(u64::from(new.events));
        log.push((base, new.clone()));
        let changes = Changes::new(base, new);
        writer.apply(&changes, 0..changes.events, &schemas).await?;
        if random.random_ratio(1, 3) {
            writer.spill().await?;
        }
        if random.random_ratio(1, 8) {
            // What was not committed is read again, by an owner whose index may be gone.
            if random.random_ratio(1, 2) {
                std::fs::remove_dir_all(lake.index())?;
            }
            writer = open(&lake).await?;
            let from = writer.committed();
            for (base, block) in &log {
                let changes = Changes::new(*base, block.clone());
                let first = u32::try_from(from.0.saturating_sub(base.0))?.min(changes.events);
                writer
                    .apply(&changes, first..changes.events, &schemas)
                    .await?;
            }
        }
        if random.random_ratio(1, 2) {
            writer.commit(next).await?;
            ensure!(writer.is_whole() && writer.committed() <= next);
            // Deletes of a commit without changes: the one before it has them.
            if writer.committed() > Offset(0) {
                ensure_is(&lake, &source).await?;
            }
        }
    }
    writer.commit(next).await?;
    ensure_is(&lake, &source).await
}

#[tokio::test]
async fn of_equal_rows_there_are_as_many_as_at_the_source() {
    for seed in 0..8 {
        play(seed)
            .await
            .with_context(|| format!("seed {seed}"))
            .unwrap();
    }
}
