//! Merging, manifests, retention and restarts at random, with a store that fails: what was read of an offset never
//! changes, there is no gap, and nothing is left in the store but what a crash or a failed delete leaves behind.
//! `DOWNRIVER_SEED` repeats a run.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use downriver_event::block::{OldImage, RowOp};
use downriver_event::{
    BlockBuilder, Column, Cover, EncodedBlock, Epoch, LogicalType, Lsn, ReplicaIdentity,
    SourcePosition, TableId, TableSchema,
};
use downriver_log::segment::SegmentWriter;
use downriver_log::store::LocalStore;
use downriver_log::{Append, Log as _, ObjectStore, StoredBlock};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::*;
use crate::{NodeConfig, backup};

/// The events are of 1970, and stored a moment ago: they are young.
const KEPT: crate::Retention = crate::Retention {
    max_age: Duration::from_secs(86_400),
    max_bytes: None,
    protected_max_age: Duration::from_secs(86_400),
};
/// Microseconds of commit time an event.
const STEP_US: i64 = 1_000;

/// Fails now and then, before it has done anything.
#[derive(Debug)]
struct Flaky {
    store: LocalStore,
    random: Mutex<StdRng>,
    trouble: AtomicBool,
    /// Takes nothing more.
    full: AtomicBool,
    failed: AtomicU64,
    failed_deletes: AtomicU64,
}

impl Flaky {
    fn may_fail(&self) -> Result<(), StoreError> {
        let fails =
            self.trouble.load(Ordering::Relaxed) && self.random.lock().unwrap().random_bool(0.1);
        if fails {
            self.failed.fetch_add(1, Ordering::Relaxed);
            return Err(StoreError::Unavailable("on purpose".into()));
        }
        Ok(())
    }
}

#[async_trait]
impl ObjectStore for Flaky {
    async fn put(&self, key: &str, bytes: Bytes) -> Result<(), StoreError> {
        self.may_fail()?;
        self.store.put(key, bytes).await
    }

    async fn put_file(&self, key: &str, file: &Path) -> Result<(), StoreError> {
        self.may_fail()?;
        if self.full.load(Ordering::Relaxed) {
            self.failed.fetch_add(1, Ordering::Relaxed);
            return Err(StoreError::Unavailable("no space is left".into()));
        }
        self.store.put_file(key, file).await
    }

    async fn get_range(&self, key: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        self.may_fail()?;
        self.store.get_range(key, range).await
    }

    async fn get(&self, key: &str) -> Result<Bytes, StoreError> {
        self.may_fail()?;
        self.store.get(key).await
    }

    async fn head(&self, key: &str) -> Result<u64, StoreError> {
        self.store.head(key).await
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
    ) -> Result<Vec<(String, u64)>, StoreError> {
        self.store.list(prefix, after).await
    }

    async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.may_fail().inspect_err(|_| {
            self.failed_deletes.fetch_add(1, Ordering::Relaxed);
        })?;
        self.store.delete(key).await
    }

    fn url(&self) -> &str {
        self.store.url()
    }

    fn is_local(&self) -> bool {
        true
    }
}

fn schema(table: u32) -> Arc<TableSchema> {
    Arc::new(TableSchema {
        id: TableId(table),
        version: 1,
        namespace: "public".into(),
        name: format!("t{table}"),
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

fn block(table: u32, rows: Range<u64>) -> EncodedBlock {
    let mut builder = BlockBuilder::new();
    builder.begin("1".into(), rows.start as i64 * STEP_US);
    for row in rows.clone() {
        let image = builder.row(&schema(table), RowOp::Insert, OldImage::None);
        image.new[0].push_i64(row as i64);
    }
    builder.commit(&position(rows.end));
    builder.cut().unwrap()
}

fn position(end: u64) -> SourcePosition {
    SourcePosition::Postgres(Lsn(end * 10))
}

/// A node under test, and what was appended to its stream "s".
struct World {
    random: StdRng,
    folder: tempfile::TempDir,
    store: Arc<Flaky>,
    node: Arc<Node>,
    wanted: Arc<AtomicU64>,
    appended: BTreeMap<u64, StoredBlock>,
    restarts: u64,
}

impl World {
    async fn start(seed: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Arc::new(Flaky {
            store: LocalStore::open(&folder.path().join("objects")).unwrap(),
            random: Mutex::new(StdRng::seed_from_u64(seed)),
            trouble: AtomicBool::new(true),
            full: AtomicBool::new(false),
            failed: AtomicU64::new(0),
            failed_deletes: AtomicU64::new(0),
        });
        let wanted = Arc::new(AtomicU64::new(0));
        let node = start(&folder, &store, &wanted).await;
        Self {
            random: StdRng::seed_from_u64(seed ^ 1),
            folder,
            store,
            node,
            wanted,
            appended: BTreeMap::new(),
            restarts: 0,
        }
    }

    async fn restart(&mut self) {
        self.node.shutdown().await;
        self.restarts += 1;
        self.node = start(&self.folder, &self.store, &self.wanted).await;
    }

    fn stream<T>(&self, look: impl FnOnce(&Stream) -> T) -> T {
        self.node.with_state(|s| look(&s.journal.streams["s"]))
    }

    /// One to three blocks, inline or as an object.
    async fn append(&mut self) {
        let state = self.node.state("s").unwrap();
        let mut blocks = Vec::new();
        let mut base = state.next;
        for _ in 0..self.random.random_range(1..=3) {
            let end = base.0 + self.random.random_range(1..40);
            let table = self.random.random_range(1..4);
            blocks.push((base, block(table, base.0..end)));
            base = Offset(end);
        }
        for (base, block) in &blocks {
            let stored = StoredBlock {
                base: *base,
                events: block.events,
                epoch: state.epoch,
                frame: block.frame.clone(),
                position_after: Some(position(blocks.last().unwrap().0.0)),
            };
            self.appended.insert(base.0, stored);
        }
        let position_after = self
            .appended
            .values()
            .last()
            .unwrap()
            .position_after
            .clone();
        let schemas: Vec<_> = (1..4).map(schema).collect();
        let payloads = if self.random.random_bool(0.3) {
            let store = &*self.store;
            vec![loop {
                let (stream, epoch) = ((state.incarnation), state.epoch);
                let mut segment =
                    SegmentWriter::create(self.folder.path(), "s", stream, epoch).unwrap();
                for (_, block) in &blocks {
                    segment.write(block).unwrap();
                }
                if let Ok(object) = segment.put(store, &schemas).await {
                    break object;
                }
            }]
        } else {
            let inline = blocks.into_iter().map(|(_, block)| Payload::Inline(block));
            inline.collect()
        };
        let append = Append {
            stream: "s".into(),
            incarnation: state.incarnation,
            epoch: state.epoch,
            base: state.next,
            position_before: state.position.clone(),
            position_after,
            schemas,
            chunks_done: vec![],
            payloads,
            moved: None,
        };
        self.node.append(append).await.unwrap();
    }

    /// Reads from an offset on, as it was appended; or says that it is gone.
    async fn check_from(&self, mut from: u64) {
        let next = self.node.state("s").unwrap().next.0;
        while from < next {
            let blocks = match self.node.read("s", Offset(from), 1 << 10).await {
                Ok(blocks) => blocks,
                Err(ReadError::Store(StoreError::Unavailable(_))) => continue,
                Err(ReadError::Trimmed { trimmed, .. }) => {
                    assert!(trimmed.0 > from && trimmed.0 <= self.wanted.load(Ordering::Relaxed));
                    from = trimmed.0;
                    continue;
                }
                Err(error) => panic!("offset {from}: {error}"),
            };
            for block in blocks {
                let (_, appended) = self.appended.range(..=from).next_back().unwrap();
                assert_eq!(&block, appended);
                from = block.end().0;
            }
        }
    }

    async fn check_time(&self) {
        let next = self.node.state("s").unwrap().next.0;
        for (base, _) in self.appended.iter().step_by(7) {
            let found = loop {
                match self.node.offset_at_time("s", *base as i64 * STEP_US).await {
                    Ok(found) => break found,
                    Err(ReadError::Store(_) | ReadError::Trimmed { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            };
            let trimmed = self.stream(|s| s.trimmed);
            assert!(found.0 == *base || found <= trimmed, "{found} for {base}");
            assert!(found.0 <= next);
        }
    }

    /// The objects that are referred to; `None` if they change meanwhile.
    async fn wanted_objects(&self) -> Option<BTreeSet<String>> {
        let stream = self.stream(Clone::clone);
        let garbage = stream.garbage.into_iter().map(|one| one.key);
        let mut keys: BTreeSet<String> = garbage.collect();
        let mut segments = stream.segments;
        for manifest in &stream.manifests {
            let listed = self.node.segments().manifest(manifest).await.ok()?;
            let kept = listed.iter().filter(|s| s.place.end > stream.trimmed);
            segments.extend(kept.cloned());
            keys.insert(manifest.object.key.clone());
        }
        keys.extend(segments.into_iter().map(|s| s.place.object.key));
        Some(keys)
    }

    async fn objects(&self) -> BTreeSet<String> {
        let mut keys: BTreeSet<String> = BTreeSet::new();
        loop {
            let last = keys.last().cloned();
            let more = self.store.list("log/", last.as_deref()).await.unwrap();
            if more.is_empty() {
                return keys;
            }
            keys.extend(more.into_iter().map(|(key, _)| key));
        }
    }
}

async fn start(
    folder: &tempfile::TempDir,
    store: &Arc<Flaky>,
    wanted: &Arc<AtomicU64>,
) -> Arc<Node> {
    let store = Arc::clone(store) as Arc<dyn ObjectStore>;
    let mut config = NodeConfig::new(folder.path().join("node"), store);
    config.seal_interval = Duration::from_millis(1);
    config.tidy_interval = Duration::from_millis(5);
    config.segment_bytes_max = 3_000;
    config.merge_segments_min = 4;
    config.segment_refs_max = 8;
    config.retention = crate::Retention {
        max_bytes: Some(60_000),
        ..KEPT
    };
    let node = Node::start(config).await.unwrap();
    node.open("s", Some(position(0)), Bytes::new())
        .await
        .unwrap();
    let wanted = Arc::clone(wanted);
    node.protect(move |_| Some(Offset(wanted.load(Ordering::Relaxed))));
    node
}

async fn run(seed: u64, restarts: bool) {
    println!("DOWNRIVER_SEED={seed}");
    let mut world = World::start(seed).await;
    for round in 0..400 {
        world.append().await;
        if world.random.random_bool(0.4) {
            let _ = world.node.seal_now("s").await;
        }
        if world.random.random_bool(0.05) {
            let known: Vec<u64> = world.appended.keys().copied().collect();
            let from = known[world.random.random_range(0..known.len())];
            world.check_from(from).await;
            // Retention may take what every reader has read.
            let read = known[world.random.random_range(0..known.len() * 2 / 3 + 1)];
            world.wanted.fetch_max(read, Ordering::Relaxed);
        }
        if world.random.random_bool(0.02) {
            world.node.take_snapshot().await;
        }
        if restarts && round % 60 == 59 {
            world.restart().await;
        }
    }
    assert!(world.store.failed.load(Ordering::Relaxed) > 0);
    world.store.trouble.store(false, Ordering::Relaxed);
    world.node.seal_now("s").await.unwrap();
    world.check_from(0).await;
    world.check_time().await;

    let failed_deletes = world.store.failed_deletes.load(Ordering::Relaxed);
    let left_max = world.restarts + failed_deletes;
    // It comes to rest: few references, no garbage, and not an object too many or too few.
    loop {
        world.node.back_up().await.unwrap();
        let tidy = world.stream(|s| {
            let passed = |m: &ManifestRef| m.end <= s.trimmed;
            s.segments.len() <= 8
                && s.garbage.is_empty()
                && !s.manifests.iter().any(passed)
                && segment::worth_merging(&s.segments, 4, 3_000).is_none()
        });
        let stored = world.objects().await;
        if tidy && let Some(wanted) = world.wanted_objects().await {
            let left = stored.difference(&wanted).count() as u64;
            if wanted.is_subset(&stored) && left <= left_max {
                break;
            }
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let (manifests, trimmed) = world.stream(|s| (s.manifests.len(), s.trimmed));
    println!(
        "{manifests} manifests, trimmed {trimmed}, {} restarts",
        world.restarts
    );
    assert!(trimmed > Offset(0) && manifests > 0);
    world.check_from(0).await;

    // What was deleted is made again as another life.
    let before = world.node.state("s").unwrap().incarnation;
    world.node.drop_stream("s").await.unwrap();
    assert!(world.objects().await.is_empty());
    world.node.take_snapshot().await;
    world.node.open("s", None, Bytes::new()).await.unwrap();
    let after = world.node.state("s").unwrap();
    assert_eq!((after.incarnation.0, after.next), (before.0 + 1, Offset(0)));
    world.node.shutdown().await;
}

fn seed() -> u64 {
    let given = std::env::var("DOWNRIVER_SEED").ok();
    given.map_or_else(rand::random, |seed| seed.parse().unwrap())
}

#[tokio::test]
async fn a_tidied_stream_reads_as_it_was_appended() {
    run(seed(), false).await;
}

#[tokio::test]
async fn a_tidied_stream_reads_as_it_was_appended_through_restarts() {
    run(seed(), true).await;
}

/// A node whose retention has nothing to do with bytes, with a stream of ten segments.
async fn aged(retention: crate::Retention) -> World {
    let mut world = World::start(seed()).await;
    world.store.trouble.store(false, Ordering::Relaxed);
    let mut config = world.node.config().clone();
    world.node.shutdown().await;
    config.retention = retention;
    config.merge_segments_min = usize::MAX;
    world.node = Node::start(config).await.unwrap();
    world.node.open("s", None, Bytes::new()).await.unwrap();
    for _ in 0..10 {
        world.append().await;
        world.node.seal_now("s").await.unwrap();
    }
    world
}

#[tokio::test]
async fn what_is_old_is_forgotten_as_far_as_it_was_read() {
    let world = aged(crate::Retention {
        max_age: Duration::from_millis(1),
        ..KEPT
    })
    .await;
    let read = world.stream(|s| s.segments[4].place.base);
    world.node.protect(move |_| Some(read.plus(1)));
    while world.stream(|s| s.trimmed) != read {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    world.wanted.store(read.0, Ordering::Relaxed);
    world.check_from(0).await;
    world.node.shutdown().await;
}

#[tokio::test]
async fn a_reader_that_was_waited_for_long_enough_has_a_gap() {
    let world = aged(crate::Retention {
        protected_max_age: Duration::from_millis(1),
        ..KEPT
    })
    .await;
    world.node.protect(|_| Some(Offset(0)));
    let next = world.node.state("s").unwrap().next;
    while world.stream(|s| s.trimmed) != next {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let read = world.node.read("s", Offset(0), 1).await;
    assert!(matches!(read, Err(ReadError::Trimmed { .. })), "{read:?}");
    world.node.shutdown().await;
}

#[tokio::test]
async fn a_full_store_gets_room_by_retention() {
    let mut world = aged(crate::Retention {
        max_age: Duration::from_millis(1),
        ..KEPT
    })
    .await;
    world.store.full.store(true, Ordering::Relaxed);
    let mut config = world.node.config().clone();
    world.node.shutdown().await;
    config.merge_segments_min = 4;
    world.node = Node::start(config).await.unwrap();
    // Merges fail from here on.
    while world.store.failed.load(Ordering::Relaxed) == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let passed = world.stream(|s| s.segments[..3].to_vec());
    let read = passed[2].place.end;
    world.node.protect(move |_| Some(read));
    while world.stream(|s| s.trimmed != read || !s.garbage.is_empty()) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let left = world.objects().await;
    let is_left = |segment: &Segment| left.contains(&segment.place.object.key);
    assert!(!passed.iter().any(is_left));
    world.node.shutdown().await;
}

#[tokio::test]
async fn a_damaged_segment_is_left_as_it_is_and_the_others_are_merged() {
    let mut world = World::start(seed()).await;
    world.store.trouble.store(false, Ordering::Relaxed);
    world.node.shutdown().await;
    // Nothing is tidied until the damage is done.
    let mut config = world.node.config().clone();
    config.tidy_interval = Duration::from_secs(3600);
    config.segment_bytes_max = 1 << 20;
    world.node = Node::start(config.clone()).await.unwrap();
    world.node.open("s", None, Bytes::new()).await.unwrap();
    for _ in 0..8 {
        world.append().await;
        world.node.seal_now("s").await.unwrap();
    }
    let (place, epoch) = world.stream(|s| (s.segments[1].place.clone(), s.epoch));
    let path = world.folder.path().join("objects").join(&place.object.key);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[20] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    world.node.shutdown().await;
    config.tidy_interval = Duration::from_millis(5);
    world.node = Node::start(config).await.unwrap();
    while world.stream(|s| s.segments.len()) > 3 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    match world.node.read("s", place.base, 1 << 20).await {
        Err(ReadError::Damaged { object, .. }) => assert_eq!(object, place.object.key),
        other => panic!("{other:?}"),
    }
    assert_eq!(epoch, Epoch(2));
    world.check_from(place.end.0).await;
    world.node.shutdown().await;
}

/// When nothing is left to merge: what was replaced, and is to be deleted.
async fn replaced(world: &World) -> BTreeSet<String> {
    let is_merged = |s: &Stream| segment::worth_merging(&s.segments, 4, 3_000).is_none();
    while world.stream(|s| !is_merged(s) || s.garbage.is_empty()) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // Time enough to delete it.
    tokio::time::sleep(10 * world.node.config().tidy_interval).await;
    let garbage = world.stream(|s| s.garbage.clone());
    garbage.into_iter().map(|one| one.key).collect()
}

#[tokio::test]
async fn what_the_newest_backup_refers_to_is_there_until_the_next_one() {
    let mut world = aged(KEPT).await;
    let mut config = world.node.config().clone();
    world.node.shutdown().await;
    config.merge_segments_min = 4;
    world.node = Node::start(config).await.unwrap();
    let before = replaced(&world).await;
    assert!(!before.is_empty() && before.is_subset(&world.objects().await));

    world.node.back_up().await.unwrap();
    while world.stream(|s| !s.garbage.is_empty()) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(before.is_disjoint(&world.objects().await));

    for _ in 0..8 {
        world.append().await;
        world.node.seal_now("s").await.unwrap();
    }
    let since = replaced(&world).await;
    assert!(!since.is_empty() && since.is_subset(&world.objects().await));
    let seeds = crate::Seeds {
        addresses: Vec::new(),
        expect: 1,
    };
    let folder = world.folder.path().join("restored");
    let restored = backup::restore(&folder, &*world.store, (&seeds, None), "here:1", None).await;
    let stream = &restored.unwrap().streams[0];
    assert!(!stream.is_cut && stream.from == Offset(0), "{stream:?}");
    let found = crate::backups(&*world.store).await.unwrap();
    assert_eq!(found.len(), 2, "that of the restored life is the newest");
    world.node.shutdown().await;
}
