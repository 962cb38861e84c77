//! The table writer against a model: random changes, spills, commits, crashes and takeovers, read back at every
//! commit. `DOWNRIVER_SEED` repeats a run, `DOWNRIVER_TABLE_ROUNDS` makes it longer.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use common::lake::Lake;
use downriver_event::block::{Block, OldImage, RowOp};
use downriver_event::{
    BlockBuilder, Column, Cover, Epoch, Incarnation, LogicalType, Lsn, Offset, Presence,
    ReplicaIdentity, SourcePosition, TableId, TableSchema, pb,
};
use downriver_lake::catalog::{Catalog, CatalogError, LoadedTable, NewTable, TableName};
use downriver_lake::{Changes, LakeError, Schemas, TableConfig, TableWriter};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const TABLE: TableId = TableId(7);

fn schema(version: u32) -> Arc<TableSchema> {
    let column = |id, name: &str, ty, nullable| Column {
        id,
        name: name.into(),
        ty,
        nullable,
        source_type: String::new(),
        cover: Cover::None,
        default: None,
    };
    let mut columns = vec![
        column(1, "id", LogicalType::Int64, false),
        column(2, "part", LogicalType::Text, false),
        column(3, "body", LogicalType::Text, true),
        column(
            4,
            "amount",
            LogicalType::Decimal {
                precision: 12,
                scale: 2,
            },
            true,
        ),
    ];
    if version > 1 {
        columns.push(column(6, "extra", LogicalType::Int32, true));
    }
    Arc::new(TableSchema {
        id: TABLE,
        version,
        namespace: "public".into(),
        name: "things".into(),
        columns,
        key: vec![1, 2],
        identity: ReplicaIdentity::Default,
        withheld: Vec::new(),
    })
}

fn schemas() -> Schemas {
    (1..=2).map(|v| ((TABLE, v), schema(v))).collect()
}

type Key = (i64, String);

#[derive(Clone, Debug, PartialEq)]
struct Row {
    body: Option<String>,
    amount: Option<String>,
    extra: Option<i32>,
}

type Model = BTreeMap<Key, Row>;

/// Builds blocks and what the table must be after each.
struct Source {
    random: StdRng,
    version: u32,
    model: Model,
    next: Offset,
    position: u64,
    /// Base, block, and the model after it.
    blocks: Vec<(Offset, Block, Model)>,
}

impl Source {
    fn new(seed: u64) -> Self {
        Self {
            random: StdRng::seed_from_u64(seed),
            version: 1,
            model: Model::new(),
            next: Offset(0),
            position: 0,
            blocks: Vec::new(),
        }
    }

    fn value(&mut self) -> Row {
        let random = &mut self.random;
        Row {
            body: random
                .random_bool(0.8)
                .then(|| "x".repeat(random.random_range(0..40))),
            amount: random
                .random_bool(0.9)
                .then(|| format!("{}.{:02}", random.random_range(-999..999), 7)),
            extra: (self.version > 1 && random.random_bool(0.5)).then_some(5),
        }
    }

    fn some_key(&mut self) -> Option<Key> {
        let len = self.model.len();
        let at = (len > 0).then(|| self.random.random_range(0..len))?;
        self.model.keys().nth(at).cloned()
    }

    fn new_key(&mut self) -> Key {
        let id = self.random.random_range(0..400);
        (id, format!("p{}", self.random.random_range(0..3)))
    }

    fn block(&mut self) {
        let mut builder = BlockBuilder::new();
        for _ in 0..self.random.random_range(1..6) {
            self.position += 1;
            builder.begin(self.position.to_string(), 1_000_000 * self.position as i64);
            for _ in 0..self.random.random_range(1..30) {
                self.change(&mut builder);
            }
            builder.commit(&SourcePosition::Postgres(Lsn(self.position)));
        }
        self.finish(builder);
    }

    fn finish(&mut self, mut builder: BlockBuilder) {
        if let Some((encoded, block)) = builder.cut_and_read() {
            self.blocks.push((self.next, block, self.model.clone()));
            self.next = self.next.plus(u64::from(encoded.events));
        }
    }

    fn change(&mut self, builder: &mut BlockBuilder) {
        let shape = schema(self.version);
        match self.random.random_range(0..1_000) {
            0..3 => {
                builder.marker(pb::marker::Kind::Truncate(pb::Truncate {
                    table_ids: vec![TABLE.0],
                    cascade: false,
                    restart_identity: false,
                }));
                self.model.clear();
            }
            3..6 => {
                if self.version == 2 {
                    return;
                }
                self.version = 2;
                builder.marker(pb::marker::Kind::SchemaChange(pb::SchemaChange {
                    schema: Some(schema(2).to_pb()),
                    previous_version: 1,
                }));
            }
            6..450 => {
                let key = self.new_key();
                let row = self.value();
                // What is there already is updated, as a source would.
                let op = if self.model.contains_key(&key) {
                    RowOp::Update
                } else {
                    RowOp::Insert
                };
                push(builder, &shape, op, None, &key, &row, false);
                self.model.insert(key, row);
            }
            450..700 => {
                let Some(key) = self.some_key() else { return };
                let unchanged = self.random.random_bool(0.5);
                let mut row = self.value();
                push(builder, &shape, RowOp::Update, None, &key, &row, unchanged);
                if unchanged {
                    row.body.clone_from(&self.model[&key].body);
                }
                self.model.insert(key, row);
            }
            700..850 => {
                let Some(old) = self.some_key() else { return };
                let key = self.new_key();
                if self.model.contains_key(&key) {
                    return;
                }
                let unchanged = self.random.random_bool(0.5);
                let mut row = self.value();
                push(
                    builder,
                    &shape,
                    RowOp::Update,
                    Some(&old),
                    &key,
                    &row,
                    unchanged,
                );
                let before = self.model.remove(&old).unwrap();
                if unchanged {
                    row.body = before.body;
                }
                self.model.insert(key, row);
            }
            _ => {
                let Some(key) = self.some_key() else { return };
                let row = self.model.remove(&key).unwrap();
                push(
                    builder,
                    &shape,
                    RowOp::Delete,
                    Some(&key),
                    &key,
                    &row,
                    false,
                );
            }
        }
    }
}

fn push(
    builder: &mut BlockBuilder,
    schema: &Arc<TableSchema>,
    op: RowOp,
    old: Option<&Key>,
    key: &Key,
    row: &Row,
    unchanged: bool,
) {
    let image = if old.is_some() {
        OldImage::Key
    } else {
        OldImage::None
    };
    let columns = builder.row(schema, op, image);
    if !columns.new.is_empty() {
        columns.new[0].push_i64(key.0);
        columns.new[1].push_bytes(key.1.as_bytes());
        match &row.body {
            _ if unchanged => columns.new[2].push_presence(Presence::Unchanged),
            Some(body) => columns.new[2].push_bytes(body.as_bytes()),
            None => columns.new[2].push_presence(Presence::Null),
        }
        match &row.amount {
            Some(amount) => columns.new[3].push_bytes(amount.as_bytes()),
            None => columns.new[3].push_presence(Presence::Null),
        }
        if let Some(column) = columns.new.get_mut(4) {
            match row.extra {
                Some(extra) => column.push_i32(extra),
                None => column.push_presence(Presence::Null),
            }
        }
    }
    if let Some(old) = old {
        columns.old[0].push_i64(old.0);
        columns.old[1].push_bytes(old.1.as_bytes());
        for column in &mut columns.old[2..] {
            column.push_presence(Presence::Absent);
        }
    }
}

async fn open(lake: &Lake, epoch: u64) -> Result<TableWriter, LakeError> {
    open_as(lake, lake.config(epoch)).await
}

async fn open_as(lake: &Lake, config: TableConfig) -> Result<TableWriter, LakeError> {
    lake.open(config, &[schema(1)]).await
}

/// The table's rows are the model's.
async fn ensure_is(lake: &Lake, model: &Model, version: u32) -> Result<()> {
    let loaded = lake.catalog.load(&lake.name).await?.context("no table")?;
    let fields = loaded.metadata.current_schema();
    let has_extra = fields.field_by_name("extra").is_some();
    let shape = schema(if has_extra { version } else { 1 });
    let fill = |builder: &mut BlockBuilder| {
        for (key, row) in model {
            push(builder, &shape, RowOp::Snapshot, None, key, row, false);
        }
    };
    lake.ensure_is(Arc::clone(&shape), fill).await
}

async fn apply(writer: &mut TableWriter, base: Offset, block: &Block) -> Result<(), LakeError> {
    let changes = Changes::new(base, block.clone());
    let events = changes.events;
    writer.apply(&changes, 0..events, &schemas()).await
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn at_every_commit_the_table_is_what_the_changes_make_of_it_through_crashes() -> Result<()> {
    let seed = number("DOWNRIVER_SEED").unwrap_or_else(rand::random);
    let rounds = number("DOWNRIVER_TABLE_ROUNDS").unwrap_or(6);
    for seed in seed..seed.saturating_add(rounds) {
        one_history(seed)
            .await
            .with_context(|| format!("DOWNRIVER_SEED={seed} DOWNRIVER_TABLE_ROUNDS=1"))?;
    }
    Ok(())
}

async fn one_history(seed: u64) -> Result<()> {
    let lake = Lake::new("things")?;
    let mut random = StdRng::seed_from_u64(seed ^ 0xD0);
    let mut source = Source::new(seed);
    let mut epoch = 1;
    let mut writer = open(&lake, epoch).await?;
    let mut next = 0;
    for _ in 0..40 {
        source.block();
        while next < source.blocks.len() {
            let (base, block, _) = &source.blocks[next];
            apply(&mut writer, *base, block)
                .await
                .with_context(|| format!("block {next}"))?;
            next += 1;
        }
        if random.random_bool(0.3) {
            writer.spill().await?;
        }
        if random.random_bool(0.4) {
            *lake.pointers.lose_answer.lock().unwrap() = random.random_bool(0.2);
            writer.commit(source.next).await?;
            // At first there may be nothing.
            let nothing = Model::new();
            let model = source.blocks.last().map_or(&nothing, |(_, _, model)| model);
            ensure_is(&lake, model, source.version).await?;
        }
        if random.random_bool(0.2) {
            // A crash: what was not committed is read again by the next owner.
            if random.random_bool(0.3) {
                std::fs::remove_dir_all(lake.index())?;
            }
            epoch += 1;
            writer = open(&lake, epoch).await?;
            let committed = writer.committed();
            next = source
                .blocks
                .iter()
                .position(|(base, _, _)| *base >= committed)
                .unwrap_or(source.blocks.len());
        }
    }
    for (base, block, _) in &source.blocks[next..] {
        apply(&mut writer, *base, block).await?;
    }
    writer.commit(source.next).await?;
    ensure_is(&lake, &source.model, source.version).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_was_replaced_cannot_commit_any_more() -> Result<()> {
    let lake = Lake::new("things")?;
    let mut source = Source::new(1);
    source.block();
    let (base, block, _) = source.blocks[0].clone();
    let mut old = open(&lake, 1).await?;
    apply(&mut old, base, &block).await?;
    let mut new = open(&lake, 2).await?;
    let refused = old.commit(source.next).await;
    ensure!(
        matches!(refused, Err(LakeError::Fenced(Epoch(2)))),
        "{refused:?}"
    );
    apply(&mut new, base, &block).await?;
    new.commit(source.next).await?;
    ensure_is(&lake, &source.model, 1).await?;
    let refused = open(&lake, 1).await.map(|_| ());
    ensure!(
        matches!(refused, Err(LakeError::Fenced(Epoch(2)))),
        "{refused:?}"
    );
    Ok(())
}

/// Loses the answer of one commit, after which the next owner takes the table over.
#[derive(Debug)]
struct TakenOver {
    lake: Arc<Lake>,
    due: std::sync::atomic::AtomicBool,
}

#[async_trait::async_trait]
impl Catalog for TakenOver {
    async fn load(&self, name: &TableName) -> Result<Option<LoadedTable>, CatalogError> {
        self.lake.catalog.load(name).await
    }

    async fn create(&self, name: &TableName, new: NewTable) -> Result<LoadedTable, CatalogError> {
        self.lake.catalog.create(name, new).await
    }

    async fn commit(
        &self,
        name: &TableName,
        requirements: Vec<iceberg::TableRequirement>,
        updates: Vec<iceberg::TableUpdate>,
    ) -> Result<LoadedTable, CatalogError> {
        let done = self.lake.catalog.commit(name, requirements, updates).await;
        if self.due.swap(false, std::sync::atomic::Ordering::Relaxed) {
            // On a disk of its own, as another node would have.
            let config = TableConfig {
                folder: self.lake.folder.path().join("of another node"),
                ..self.lake.config(2)
            };
            open_as(&self.lake, config).await.expect("the next owner");
            return Err(CatalogError::Unknown("the answer was lost".into()));
        }
        done
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_landed_before_a_takeover_does_not_make_its_owner_go_on() -> Result<()> {
    let lake = Arc::new(Lake::new("things")?);
    let catalog = Arc::new(TakenOver {
        lake: lake.clone(),
        due: false.into(),
    });
    let mut source = Source::new(7);
    source.block();
    let (base, block, _) = source.blocks[0].clone();
    let mut old = TableWriter::open(
        catalog.clone(),
        lake.warehouse.clone(),
        lake.config(1),
        &[schema(1)],
    )
    .await?;
    apply(&mut old, base, &block).await?;
    catalog
        .due
        .store(true, std::sync::atomic::Ordering::Relaxed);
    let refused = old.commit(source.next).await;
    ensure!(
        matches!(refused, Err(LakeError::Fenced(Epoch(2)))),
        "{refused:?}"
    );
    // It had landed, and the next owner found it.
    ensure_is(&lake, &source.model, source.version).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_was_rolled_back_or_is_not_ours_stops_by_name() -> Result<()> {
    let lake = Lake::new("things")?;
    let mut source = Source::new(2);
    source.block();
    let (base, block, _) = source.blocks[0].clone();
    let mut writer = open(&lake, 1).await?;
    let before = writer.current_snapshot().await?;
    apply(&mut writer, base, &block).await?;
    writer.commit(source.next).await?;
    let metadata = lake
        .catalog
        .load(&lake.name)
        .await?
        .context("table")?
        .metadata;
    lake.catalog
        .commit(
            &lake.name,
            vec![iceberg::TableRequirement::UuidMatch {
                uuid: metadata.uuid(),
            }],
            vec![iceberg::TableUpdate::SetSnapshotRef {
                ref_name: "main".into(),
                reference: iceberg::spec::SnapshotReference::new(
                    before.context("the fence's snapshot")?,
                    iceberg::spec::SnapshotRetention::branch(None, None, None),
                ),
            }],
        )
        .await?;
    let code = |result: Result<TableWriter, LakeError>| match result {
        Err(LakeError::Stopped(problem)) => Ok(problem.code),
        other => anyhow::bail!("{:?}", other.map(|_| ())),
    };
    ensure!(code(open(&lake, 2).await)? == "DR-3010");
    let other = TableConfig {
        pipeline: "another".into(),
        stream: "another/1".into(),
        ..lake.config(1)
    };
    ensure!(code(open_as(&lake, other).await)? == "DR-3018");
    let restored = TableConfig {
        incarnation: Incarnation(2),
        ..lake.config(1)
    };
    ensure!(code(open_as(&lake, restored).await)? == "DR-3024");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_snapshot_of_the_source_deletes_what_it_did_not_see_and_nobody_changed() -> Result<()>
{
    let lake = Lake::new("things")?;
    let mut before = Source::new(3);
    for _ in 0..5 {
        before.block();
    }
    let mut writer = open(&lake, 1).await?;
    for (base, block, _) in &before.blocks {
        apply(&mut writer, *base, block).await?;
    }
    writer.commit(before.next).await?;

    // The source was deleted and made again: another stream, from its start.
    let again = TableConfig {
        stream: "shop/2".into(),
        ..lake.config(1)
    };
    let mut writer = open_as(&lake, again.clone()).await?;
    ensure!(writer.committed() == Offset(0));
    let mut model = Model::new();
    let row = Row {
        body: Some("seen".into()),
        amount: None,
        extra: None,
    };
    let keys: Vec<Key> = before.model.keys().take(3).cloned().collect();
    let mut next = Offset(0);
    let mut blocks = Vec::new();
    let start = pb::marker::Kind::SnapshotStart(pb::SnapshotStart {
        table_id: TABLE.0,
        generation: 1,
    });
    let end = pb::marker::Kind::SnapshotEnd(pb::SnapshotEnd {
        table_id: TABLE.0,
        generation: 1,
        rows: 2,
    });
    for part in 0..4 {
        let mut builder = BlockBuilder::new();
        builder.begin("snapshot".into(), 0);
        match part {
            0 => builder.marker(start.clone()),
            1 | 2 => {
                let key = &keys[part - 1];
                push(
                    &mut builder,
                    &schema(1),
                    RowOp::Snapshot,
                    None,
                    key,
                    &row,
                    false,
                );
                model.insert(key.clone(), row.clone());
            }
            _ => builder.marker(end.clone()),
        }
        builder.commit(&SourcePosition::Postgres(Lsn(1)));
        let (encoded, block) = builder.cut_and_read().context("a block")?;
        blocks.push((next, block));
        next = next.plus(u64::from(encoded.events));
    }
    for (base, block) in &blocks[..2] {
        apply(&mut writer, *base, block).await?;
    }
    writer.commit(blocks[2].0).await?;
    // A crash in the middle does not forget which files are from before.
    let again = TableConfig {
        epoch: Epoch(2),
        ..again
    };
    let mut writer = open_as(&lake, again).await?;
    ensure!(writer.committed() == blocks[2].0);
    for (base, block) in &blocks[2..] {
        apply(&mut writer, *base, block).await?;
    }
    writer.commit(next).await?;
    ensure_is(&lake, &model, before.version).await
}

/// One transaction as a block of its own.
fn transaction(
    at: Offset,
    fill: impl FnOnce(&mut BlockBuilder),
) -> Result<(Offset, Block, Offset)> {
    let mut builder = BlockBuilder::new();
    builder.begin("1".into(), 0);
    fill(&mut builder);
    builder.commit(&SourcePosition::Postgres(Lsn(1)));
    let (encoded, block) = builder.cut_and_read().context("a block")?;
    Ok((at, block, at.plus(u64::from(encoded.events))))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_was_not_sent_may_come_with_the_rows_chunk_and_must_be_there_afterwards()
-> Result<()> {
    let lake = Lake::new("things")?;
    let mut writer = open(&lake, 1).await?;
    let key: Key = (1, "p".into());
    let row = |body: &str| Row {
        body: Some(body.into()),
        amount: Some("1.00".into()),
        extra: None,
    };
    let start = pb::marker::Kind::SnapshotStart(pb::SnapshotStart {
        table_id: TABLE.0,
        generation: 1,
    });
    let end = pb::marker::Kind::SnapshotEnd(pb::SnapshotEnd {
        table_id: TABLE.0,
        generation: 1,
        rows: 1,
    });
    let (base, block, next) = transaction(Offset(0), |b| b.marker(start))?;
    apply(&mut writer, base, &block).await?;
    let (base, block, next) = transaction(next, |b| {
        push(b, &schema(1), RowOp::Update, None, &key, &row(""), true);
    })?;
    apply(&mut writer, base, &block).await?;
    writer.commit(next).await?;
    // The next owner still knows that the chunk is to come.
    let mut writer = open(&lake, 2).await?;
    let (base, block, next) = transaction(next, |b| {
        push(
            b,
            &schema(1),
            RowOp::Update,
            None,
            &key,
            &row("from the chunk"),
            false,
        );
    })?;
    apply(&mut writer, base, &block).await?;
    let (base, block, next) = transaction(next, |b| b.marker(end))?;
    apply(&mut writer, base, &block).await?;
    writer.commit(next).await?;
    let model = Model::from([(key, row("from the chunk"))]);
    ensure_is(&lake, &model, 1).await?;
    // Now every value must be there.
    let other: Key = (2, "p".into());
    let (base, block, next) = transaction(next, |b| {
        push(b, &schema(1), RowOp::Update, None, &other, &row(""), true);
    })?;
    apply(&mut writer, base, &block).await?;
    match writer.commit(next).await {
        Err(LakeError::Stopped(problem)) => ensure!(problem.code == "DR-3012", "{problem:?}"),
        result => anyhow::bail!("{result:?}"),
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn another_key_waits_and_another_table_and_a_takeover_stop_by_name() -> Result<()> {
    let lake = Lake::new("things")?;
    let code = |result: Result<TableWriter, LakeError>| match result {
        Err(LakeError::Stopped(problem)) => Ok(problem.code),
        other => anyhow::bail!("{:?}", other.map(|_| ())),
    };
    let mut writer = open(&lake, 1).await?;
    let rekeyed = Arc::new(TableSchema {
        key: vec![1],
        version: 2,
        ..(*schema(1)).clone()
    });
    let change = pb::marker::Kind::SchemaChange(pb::SchemaChange {
        schema: Some(rekeyed.to_pb()),
        previous_version: 1,
    });
    let (base, block, _) = transaction(Offset(0), |b| b.marker(change))?;
    apply(&mut writer, base, &block).await?;
    let waits = |writer: &TableWriter| writer.waits().map(|problem| problem.code);
    ensure!(waits(&writer) == Some("DR-3022"));
    let writer = lake.open(lake.config(2), &[rekeyed]).await?;
    ensure!(waits(&writer) == Some("DR-3014"));
    let other = Arc::new(TableSchema {
        id: TableId(8),
        ..(*schema(1)).clone()
    });
    let of_another = lake.open(lake.config(3), &[other]).await;
    ensure!(matches!(of_another, Err(LakeError::OfAnother(_))));
    let taken_over = TableConfig {
        stream: "shop/2".into(),
        committed: Some(Offset(3)),
        ..lake.config(3)
    };
    ensure!(code(open_as(&lake, taken_over).await)? == "DR-3018");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_index_is_made_again() -> Result<()> {
    let lake = Lake::new("things")?;
    let mut source = Source::new(6);
    let mut writer = open(&lake, 1).await?;
    for _ in 0..4 {
        source.block();
    }
    for (base, block, _) in &source.blocks {
        apply(&mut writer, *base, block).await?;
    }
    writer.commit(source.next).await?;
    for file in files_in(&lake.index())? {
        if file.ends_with(".run") {
            let mut bytes = std::fs::read(&file)?;
            bytes[7] ^= 1;
            std::fs::write(&file, bytes)?;
        }
    }
    let at = source.blocks.len();
    source.block();
    let (base, block, _) = source.blocks[at].clone();
    let mut writer = open(&lake, 2).await?;
    apply(&mut writer, base, &block).await?;
    let failed = writer.commit(source.next).await;
    ensure!(
        matches!(&failed, Err(error) if error.is_transient()),
        "{failed:?}"
    );
    let mut writer = open(&lake, 3).await?;
    apply(&mut writer, base, &block).await?;
    writer.commit(source.next).await?;
    ensure_is(&lake, &source.model, source.version).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_that_its_column_cannot_hold_stops_the_table_by_name() -> Result<()> {
    let lake = Lake::new("things")?;
    let mut writer = open(&lake, 1).await?;
    let mut builder = BlockBuilder::new();
    builder.begin("1".into(), 0);
    let columns = builder.row(&schema(1), RowOp::Insert, OldImage::None);
    columns.new[0].push_i64(1);
    columns.new[1].push_bytes(b"p");
    columns.new[2].push_presence(Presence::Null);
    columns.new[3].push_presence(Presence::NaN);
    builder.commit(&SourcePosition::Postgres(Lsn(1)));
    let (_, block) = builder.cut_and_read().context("a block")?;
    apply(&mut writer, Offset(0), &block).await?;
    match writer.commit(Offset(1)).await {
        Err(LakeError::Stopped(problem)) => ensure!(
            problem.code == "DR-3020"
                && problem.reason.contains("amount")
                && problem.reason.contains("at offset 0"),
            "{problem:?}"
        ),
        other => anyhow::bail!("{other:?}"),
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn old_snapshots_expire_and_the_files_that_only_they_needed_go() -> Result<()> {
    let lake = Lake::new("things")?;
    let mut writer = open(&lake, 1).await?;
    let metadata = lake
        .catalog
        .load(&lake.name)
        .await?
        .context("table")?
        .metadata;
    let keep_few = std::collections::HashMap::from([
        (
            "history.expire.max-snapshot-age-ms".to_owned(),
            "0".to_owned(),
        ),
        (
            "history.expire.min-snapshots-to-keep".to_owned(),
            "2".to_owned(),
        ),
    ]);
    lake.catalog
        .commit(
            &lake.name,
            vec![iceberg::TableRequirement::UuidMatch {
                uuid: metadata.uuid(),
            }],
            vec![iceberg::TableUpdate::SetProperties { updates: keep_few }],
        )
        .await?;
    let mut source = Source::new(5);
    for _ in 0..60 {
        source.block();
        let (base, block, _) = source.blocks.last().unwrap().clone();
        apply(&mut writer, base, &block).await?;
        writer.commit(source.next).await?;
    }
    ensure_is(&lake, &source.model, source.version).await?;
    let metadata = lake
        .catalog
        .load(&lake.name)
        .await?
        .context("table")?
        .metadata;
    let snapshots = metadata.snapshots().count();
    ensure!(snapshots < 15, "{snapshots} snapshots are left");
    let files = files_in(&lake.folder.path().join("warehouse"))?;
    let lists = files.iter().filter(|file| file.contains("snap-")).count();
    ensure!(
        lists == snapshots,
        "{lists} manifest lists, {snapshots} snapshots"
    );
    // What a snapshot replaces goes once every older one has: a few times the live files at most.
    let data = files
        .iter()
        .filter(|file| file.ends_with(".parquet"))
        .count();
    ensure!(data < 150, "{data} data and delete files are left");
    ensure!(
        files_in(&lake.folder.path().join("spool"))?.is_empty(),
        "files are left in the spool"
    );
    Ok(())
}

fn files_in(folder: &Path) -> Result<Vec<String>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(files_in(&path)?);
        } else {
            files.push(path.to_string_lossy().into_owned());
        }
    }
    Ok(files)
}
