//! A generation that replaces the table's rows: readers see it whole or not at all, wherever the owner crashes.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use common::lake::Lake;
use downriver_event::block::{Block, OldImage, RowOp};
use downriver_event::filter::{Comparator, Comparison, Condition};
use downriver_event::{
    BlockBuilder, Column, Cover, Incarnation, LogicalType, Lsn, Offset, Presence, ReplicaIdentity,
    RowFilter, SourcePosition, TableId, TableSchema, pb,
};
use downriver_lake::catalog::Catalog;
use downriver_lake::{Changes, LakeError, Schemas, TableConfig, TableWriter};

const TABLE: TableId = TableId(7);
/// 1: text; 2: the column is an int; 3: and part of the key; 4: and another one came.
const VERSIONS: std::ops::RangeInclusive<u32> = 1..=4;

fn schema(version: u32) -> Arc<TableSchema> {
    let column = |id, name: &str, ty, source_type: &str| Column {
        id,
        name: name.into(),
        ty,
        nullable: true,
        source_type: source_type.into(),
        cover: Cover::None,
        default: None,
    };
    let (ty, name) = match version {
        1 => (LogicalType::Text, "text"),
        _ => (LogicalType::Int32, "integer"),
    };
    let mut columns = vec![
        column(1, "id", LogicalType::Int64, "bigint"),
        column(2, "number", ty, name),
        column(3, "body", LogicalType::Text, "text"),
    ];
    if version > 3 {
        columns.push(column(4, "more", LogicalType::Text, "text"));
    }
    Arc::new(TableSchema {
        id: TABLE,
        version,
        namespace: "public".into(),
        name: "things".into(),
        columns,
        key: if version < 3 { vec![1] } else { vec![1, 2] },
        identity: ReplicaIdentity::Default,
        withheld: Vec::new(),
    })
}

/// `None` as body: it was not sent.
type Row = (i64, i32, Option<&'static str>);

fn push(builder: &mut BlockBuilder, version: u32, op: RowOp, (id, number, body): Row) {
    let columns = builder.row(&schema(version), op, OldImage::None);
    columns.new[0].push_i64(id);
    match version {
        1 => columns.new[1].push_bytes(number.to_string().as_bytes()),
        _ => columns.new[1].push_i32(number),
    }
    match body {
        Some(body) => columns.new[2].push_bytes(body.as_bytes()),
        None => columns.new[2].push_presence(Presence::Unchanged),
    }
    if let Some(more) = columns.new.get_mut(3) {
        more.push_bytes(b"more");
    }
}

enum Event {
    Turn(u32),
    Start,
    End,
    /// Of the part of the rows with an id of two at most.
    PartStart,
    PartEnd,
    Row(u32, RowOp, Row),
}

fn part() -> RowFilter {
    let is = Comparison {
        column: 1,
        comparator: Comparator::LessOrEqual,
        value: pb::Value {
            kind: Some(pb::value::Kind::Int(2)),
        },
    };
    RowFilter {
        text: "id <= 2".into(),
        condition: Condition::Is(is),
    }
}

/// A transaction, and what readers see when it is delivered.
struct Step {
    events: Vec<Event>,
    version: u32,
    seen: Vec<Row>,
}

fn step(events: Vec<Event>, version: u32, seen: &[Row]) -> Step {
    let seen = seen.to_vec();
    Step {
        events,
        version,
        seen,
    }
}

fn block(events: &[Event]) -> Result<Block> {
    use pb::marker::Kind;
    let mut builder = BlockBuilder::new();
    builder.begin("1".into(), 0);
    let generation = 2;
    for event in events {
        match event {
            Event::Turn(version) => builder.marker(Kind::SchemaChange(pb::SchemaChange {
                schema: Some(schema(*version).to_pb()),
                previous_version: version - 1,
            })),
            Event::Start => builder.marker(Kind::SnapshotStart(pb::SnapshotStart {
                table_id: TABLE.0,
                generation,
            })),
            Event::End => builder.marker(Kind::SnapshotEnd(pb::SnapshotEnd {
                table_id: TABLE.0,
                generation,
                rows: 0,
            })),
            Event::PartStart => {
                builder.marker(Kind::PartialSnapshotStart(pb::PartialSnapshotStart {
                    table_id: TABLE.0,
                    generation,
                    filter: Some(part().to_pb()),
                }));
            }
            Event::PartEnd => builder.marker(Kind::PartialSnapshotEnd(pb::PartialSnapshotEnd {
                table_id: TABLE.0,
                generation,
                rows: 0,
                filter: Some(part().to_pb()),
            })),
            Event::Row(version, op, row) => push(&mut builder, *version, *op, *row),
        }
    }
    builder.commit(&SourcePosition::Postgres(Lsn(1)));
    let (_, block) = builder.cut_and_read().context("a block")?;
    Ok(block)
}

async fn open(lake: &Lake, versions: &[u32]) -> Result<TableWriter, LakeError> {
    let versions: Vec<_> = versions.iter().map(|version| schema(*version)).collect();
    lake.open(lake.config_of_next(), &versions).await
}

/// The writer of a table that got the lake's table's name at an offset.
async fn open_of(
    lake: &Lake,
    versions: &[Arc<TableSchema>],
    claim: Option<Offset>,
) -> Result<TableWriter, LakeError> {
    let config = TableConfig {
        start: claim.unwrap_or_default(),
        claim,
        ..lake.config_of_next()
    };
    lake.open(config, versions).await
}

async fn ensure_is(lake: &Lake, version: u32, rows: &[Row]) -> Result<()> {
    let fill = |builder: &mut BlockBuilder| {
        for row in rows {
            push(builder, version, RowOp::Snapshot, *row);
        }
    };
    lake.ensure_is(schema(version), fill).await
}

/// Delivers the steps, one commit after each; the owner crashes before the step `crash`, and after applying it.
async fn play(steps: &[Step], crash: usize) -> Result<Lake> {
    let lake = Lake::new("things")?;
    let all: Vec<u32> = VERSIONS.collect();
    let schemas: Schemas = VERSIONS.map(|v| ((TABLE, v), schema(v))).collect();
    let mut next = Offset(0);
    let mut blocks = Vec::new();
    for step in steps {
        let block = block(&step.events)?;
        let base = next;
        next = next.plus(u64::from(block.events));
        blocks.push((base, block, next));
    }
    let mut writer = open(&lake, &[1]).await?;
    for (at, step) in steps.iter().enumerate() {
        let mut lost_answer = false;
        if at == crash {
            let (base, block, _) = &blocks[at];
            let changes = Changes::new(*base, block.clone());
            writer.apply(&changes, 0..changes.events, &schemas).await?;
            writer.spill().await?;
            writer = open(&lake, &all).await?;
            // What was beside is gone: it is read again from where the table stands.
            let from = writer.committed();
            for (base, block, end) in &blocks[..at] {
                if *end > from {
                    let changes = Changes::new(*base, block.clone());
                    let first = u32::try_from(from.0.saturating_sub(base.0))?;
                    writer
                        .apply(&changes, first..changes.events, &schemas)
                        .await?;
                }
            }
            lost_answer = true;
        }
        let (base, block, end) = &blocks[at];
        let changes = Changes::new(*base, block.clone());
        let first = u32::try_from(writer.committed().0.saturating_sub(base.0))?;
        writer
            .apply(&changes, first..changes.events, &schemas)
            .await?;
        if lost_answer && writer.has_changes() {
            *lake.pointers.lose_answer.lock().unwrap() = true;
        }
        writer.commit(*end).await?;
        if writer.is_whole() {
            ensure!(writer.committed() <= *end);
        } else {
            ensure!(
                writer.committed() < *end,
                "what is beside counts as delivered"
            );
        }
        let checked = ensure_is(&lake, step.version, &step.seen).await;
        checked.with_context(|| format!("after step {at}, crashed at {crash}"))?;
    }
    Ok(lake)
}

fn history() -> Vec<Step> {
    use Event::{End, Start, Turn};
    use RowOp::{Insert, Snapshot, Update};
    let old: &[Row] = &[(1, 10, Some("a")), (2, 20, Some("b")), (3, 30, Some("c"))];
    let new: &[Row] = &[
        (1, 11, Some("a")),
        (2, 22, Some("b")),
        (3, 33, Some("c")),
        (4, 44, Some("d")),
    ];
    let last: &[Row] = &[
        (1, 11, Some("a")),
        (2, 22, Some("b")),
        (3, 33, Some("c")),
        (3, 34, Some("e")),
    ];
    let insert = |version, row| Event::Row(version, Insert, row);
    let changed = |version, row| Event::Row(version, Update, row);
    let snapshot = |version, row| Event::Row(version, Snapshot, row);
    vec![
        step(old.iter().map(|row| insert(1, *row)).collect(), 1, old),
        // A row before and after the change of the type, in its transaction.
        step(
            vec![
                insert(1, (4, 40, Some("d"))),
                Turn(2),
                insert(2, (5, 50, Some("e"))),
            ],
            1,
            old,
        ),
        step(vec![changed(2, (4, 44, None))], 1, old),
        step(vec![Start], 1, old),
        step(vec![snapshot(2, new[0]), snapshot(2, new[1])], 1, old),
        // The chunk that brings the body comes later, as an update that leaves out what the stream knows better.
        step(vec![changed(2, (3, 33, None))], 1, old),
        step(vec![changed(2, new[2]), snapshot(2, new[3])], 1, old),
        step(vec![End], 2, new),
        step(
            vec![changed(2, (4, 45, None))],
            2,
            &[new[0], new[1], new[2], (4, 45, Some("d"))],
        ),
        // The key: rows are told apart by more than before.
        step(
            vec![Turn(3)],
            2,
            &[new[0], new[1], new[2], (4, 45, Some("d"))],
        ),
        step(
            vec![Start],
            2,
            &[new[0], new[1], new[2], (4, 45, Some("d"))],
        ),
        step(
            vec![snapshot(3, last[0])],
            2,
            &[new[0], new[1], new[2], (4, 45, Some("d"))],
        ),
        // A column that comes while it is built beside.
        step(
            vec![
                Turn(4),
                snapshot(4, last[1]),
                insert(4, last[2]),
                insert(4, last[3]),
            ],
            2,
            &[new[0], new[1], new[2], (4, 45, Some("d"))],
        ),
        step(vec![changed(4, last[0]), End], 4, last),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_see_the_old_rows_until_all_new_ones_are_there_wherever_the_owner_crashes()
-> Result<()> {
    let steps = history();
    for crash in 0..=steps.len() {
        let lake = play(&steps, crash).await?;
        let metadata = lake
            .catalog
            .load(&lake.name)
            .await?
            .context("table")?
            .metadata;
        let fields = metadata.current_schema().as_struct().fields();
        let ids: Vec<(&str, i32)> = fields.iter().map(|f| (f.name.as_str(), f.id)).collect();
        ensure!(
            ids[0] == ("id", 1) && ids[1].1 > 5 && ids[2] == ("body", 3),
            "{ids:?}"
        );
        let schemas = metadata.snapshots().map(|snapshot| snapshot.schema_id());
        ensure!(schemas.collect::<std::collections::BTreeSet<_>>().len() == 3);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_that_is_read_again_loses_what_it_did_not_see_and_one_of_a_table_that_waits_nothing()
-> Result<()> {
    use Event::{End, PartEnd, PartStart, Start, Turn};
    let row = |version, row| Event::Row(version, RowOp::Snapshot, row);
    let changed = |version, row| Event::Row(version, RowOp::Update, row);
    let old: &[Row] = &[
        (0, 0, Some("changed while it is read")),
        (1, 10, Some("gone")),
        (2, 20, Some("seen")),
        (3, 30, Some("outside")),
        (4, 40, Some("outside")),
    ];
    let begun: &[Row] = &[(0, 1, old[0].2), old[1], old[2], old[3], (4, 41, old[4].2)];
    let read: &[Row] = &[begun[0], (2, 21, Some("seen")), old[3], begun[4]];
    let new: &[Row] = &[(1, 10, Some("new"))];
    let steps = [
        step(old.iter().map(|old| row(1, *old)).collect(), 1, old),
        // A row that was deleted before in a file that stays.
        step(vec![changed(1, old[3])], 1, old),
        step(
            vec![
                PartStart,
                changed(1, (0, 1, None)),
                changed(1, (4, 41, None)),
            ],
            1,
            begun,
        ),
        step(vec![row(1, read[1]), PartEnd], 1, read),
        step(vec![Turn(2)], 1, read),
        step(vec![PartStart, row(2, (7, 70, Some("lost")))], 1, read),
        step(vec![PartEnd], 1, read),
        step(vec![Start, row(2, new[0])], 1, read),
        step(vec![End], 2, new),
    ];
    for crash in 0..=steps.len() {
        play(&steps, crash).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_generation_that_another_one_overtakes_leaves_nothing() -> Result<()> {
    use Event::{End, Start, Turn};
    let row = |version, row| Event::Row(version, RowOp::Snapshot, row);
    let old: &[Row] = &[(1, 10, Some("a"))];
    let new: &[Row] = &[(2, 20, Some("b"))];
    let steps = [
        step(vec![row(1, old[0])], 1, old),
        step(vec![Turn(2)], 1, old),
        step(vec![Start, row(2, (7, 70, Some("lost")))], 1, old),
        // Asked for again.
        step(vec![Start, row(2, (8, 80, Some("lost")))], 1, old),
        // Another change of the shape; then the rows that nobody carries over, and the generation that has them.
        step(vec![Turn(3), row(3, (9, 90, Some("lost")))], 1, old),
        step(vec![Start, row(3, new[0])], 1, old),
        step(vec![End], 3, new),
    ];
    for crash in 0..=steps.len() {
        let lake = play(&steps, crash).await?;
        if crash == steps.len() {
            let data = lake.folder.path().join("warehouse/shop_public");
            let mut files = Vec::new();
            let mut folders = vec![data];
            while let Some(folder) = folders.pop() {
                for entry in std::fs::read_dir(folder)? {
                    let path = entry?.path();
                    if path.is_dir() {
                        folders.push(path);
                    } else if path.extension().is_some_and(|e| e == "parquet") {
                        files.push(path);
                    }
                }
            }
            ensure!(files.len() == 2, "{files:?}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_table_that_got_the_name_last_has_the_lakes_table_and_replaces_its_rows() -> Result<()>
{
    use Event::{End, Start, Turn};
    let lake = Lake::new("things")?;
    let schemas: Schemas = VERSIONS.map(|v| ((TABLE, v), schema(v))).collect();
    let old: &[Row] = &[(1, 10, Some("a")), (2, 20, Some("b"))];
    let rows: Vec<Event> = old
        .iter()
        .map(|row| Event::Row(1, RowOp::Insert, *row))
        .collect();
    let apply = async |writer: &mut TableWriter, base, events: &[Event]| {
        let changes = Changes::new(base, block(events)?);
        writer.apply(&changes, 0..changes.events, &schemas).await?;
        let end = changes.base.plus(u64::from(changes.events));
        writer.commit(end).await?;
        anyhow::Ok(end)
    };
    // The one before: it had the name from the first.
    let before = [Arc::new(TableSchema {
        id: TableId(8),
        ..(*schema(1)).clone()
    })];
    let mut theirs = open_of(&lake, &before, None).await?;
    theirs.commit(Offset(0)).await?;
    drop(theirs);
    let loaded = |lake: &Lake| {
        let (catalog, name) = (lake.catalog.clone(), lake.name.clone());
        async move { anyhow::Ok(catalog.load(&name).await?.context("table")?.metadata) }
    };
    let uuid = loaded(&lake).await?.uuid();
    let mine = [schema(1)];
    let is_of_another =
        |opened: Result<TableWriter, LakeError>| matches!(opened, Err(LakeError::OfAnother(_)));
    ensure!(
        is_of_another(open_of(&lake, &mine, None).await),
        "nothing says that it has the name"
    );

    let at = Offset(100);
    let mut writer = open_of(&lake, &mine, Some(at)).await?;
    ensure!(writer.waits().is_some() && writer.committed() == at);
    // Changes before the generation are in it, and are no rows of a table that waits.
    let next = apply(&mut writer, at, &rows).await?;
    ensure!(writer.committed() == at);
    // The one before has it no more, whether it says so again or not.
    ensure!(is_of_another(open_of(&lake, &before, None).await));
    ensure!(is_of_another(
        open_of(&lake, &before, Some(Offset(99))).await
    ));
    // Nor does a crash forget what is to come.
    let mut writer = open_of(&lake, &mine, None).await?;
    ensure!(writer.waits().is_some() && writer.committed() == at);
    let next = apply(&mut writer, next, &[Start]).await?;
    let mut chunk = vec![Turn(1)];
    chunk.extend(old.iter().map(|row| Event::Row(1, RowOp::Snapshot, *row)));
    let next = apply(&mut writer, next, &chunk).await?;
    ensure_is(&lake, 1, &[]).await?;
    let next = apply(&mut writer, next, &[End]).await?;
    ensure_is(&lake, 1, old).await?;
    ensure!(writer.is_whole() && writer.committed() == next);
    // The same claim again, as a delivery makes it that was behind: it is done.
    let writer = open_of(&lake, &mine, Some(at)).await?;
    ensure!(writer.is_whole() && writer.committed() == next);
    // And the other way round, later.
    let writer = open_of(&lake, &before, Some(Offset(500))).await?;
    ensure!(writer.waits().is_some() && writer.committed() == Offset(500));
    ensure!(is_of_another(open_of(&lake, &mine, None).await));
    ensure_is(&lake, 1, old).await?;
    ensure!(loaded(&lake).await?.uuid() == uuid);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_has_what_the_log_lost_waits_for_a_generation_and_others_go_on() -> Result<()>
{
    use Event::{End, Start, Turn};
    let lake = Lake::new("things")?;
    let old: &[Row] = &[(1, 10, Some("a")), (2, 20, Some("b"))];
    let insert = |row: &Row| Event::Row(1, RowOp::Insert, *row);
    let apply = async |writer: &mut TableWriter, at: Offset, events: &[Event]| {
        let block = block(events)?;
        let end = at.plus(u64::from(block.events));
        let schemas = Schemas::from([((TABLE, 1), schema(1))]);
        let changes = Changes::new(at, block);
        writer.apply(&changes, 0..changes.events, &schemas).await?;
        writer.commit(end).await?;
        anyhow::Ok(end)
    };
    let mut writer = open(&lake, &[1]).await?;
    let first = apply(&mut writer, Offset(0), &[Turn(1), insert(&old[0])]).await?;
    let second = apply(&mut writer, first, &[insert(&old[1])]).await?;
    drop(writer);

    // The log was restored: this far it is the same one.
    let restored = |incarnation, ends: &[(u32, Offset)]| {
        let ended = ends.iter().map(|(one, end)| (Incarnation(*one), *end));
        TableConfig {
            incarnation: Incarnation(incarnation),
            ended: ended.collect(),
            ..lake.config_of_next()
        }
    };
    let versions = [schema(1)];
    let same = restored(2, &[(1, second)]);
    let writer = lake.open(same, &versions).await?;
    ensure!(writer.is_whole() && writer.committed() == second);
    drop(writer);
    // And once more, from a backup of before what the table has.
    let ends = [(1, second), (2, first)];
    for _ in 0..2 {
        let writer = lake.open(restored(3, &ends), &versions).await?;
        let waits = writer.waits().context("it waits")?;
        ensure!(waits.code == "DR-3024", "{waits:?}");
        ensure!(writer.committed() == first);
        ensure_is(&lake, 1, old).await?;
    }
    let mut writer = lake.open(restored(3, &ends), &versions).await?;
    let next = apply(&mut writer, first, &[insert(&(9, 90, None))]).await?;
    ensure_is(&lake, 1, old).await?;
    let new = (1, 11, Some("new"));
    let rows = [Start, Turn(1), Event::Row(1, RowOp::Snapshot, new), End];
    let next = apply(&mut writer, next, &rows).await?;
    ensure!(writer.is_whole() && writer.committed() == next);
    ensure_is(&lake, 1, &[new]).await?;
    drop(writer);
    let writer = lake.open(restored(3, &ends), &versions).await?;
    ensure!(writer.is_whole() && writer.committed() == next);
    Ok(())
}
