//! What became of the table, commit by commit, and whether it may be so. Each message is a detector's name.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use downriver_event::Offset;
use downriver_lake::catalog::BuiltinCatalog;
use downriver_lake::{Digest, TableScan, Warehouse};
use iceberg::spec::{ManifestList, Snapshot, TableMetadata};

use crate::far::{Registry, table_name};
use crate::log::{Rows, SourceLog, block_of, schema};

/// I6.
pub(crate) const NOT_THE_FOLD: &str = "the table is not the fold of the log up to its offset";
/// I6b.
pub(crate) const RANGES_APART: &str = "ranges of snapshots do not follow each other";
/// I6c.
pub(crate) const FILE_TWICE: &str = "a file is in the table twice";
/// I9.
pub(crate) const FORMER_OWNER: &str = "a former owner's commit landed after the next had the table";
/// I10.
pub(crate) const FILE_GONE: &str = "a file that the table needs is gone";
/// I11.
pub(crate) const UNNOTICED: &str = "a foreign change went unnoticed";
/// Not one of the invariants, but of no use to anybody.
pub(crate) const STOPPED: &str = "an owner stopped though nobody else changed the table";

#[derive(Debug)]
pub(crate) struct History {
    registry: Arc<Registry>,
    near: BuiltinCatalog,
    warehouse: Warehouse,
    seen: usize,
    pub(crate) main: Option<i64>,
    pub(crate) to: u64,
    /// The highest epoch whose owner has the table.
    owner: u64,
    /// Somebody else has changed the table: nothing may change it any more.
    is_foreign: bool,
    /// What each snapshot needs.
    files: BTreeMap<i64, BTreeSet<String>>,
    /// What the commits say, without what differs between two runs of a seed.
    pub(crate) trace: Vec<String>,
}

fn number(snapshot: &Snapshot, name: &str) -> Option<u64> {
    let summary = &snapshot.summary().additional_properties;
    summary.get(name)?.parse().ok()
}

impl History {
    pub(crate) fn new(registry: Arc<Registry>, near: BuiltinCatalog, warehouse: Warehouse) -> Self {
        Self {
            registry,
            near,
            warehouse,
            seen: 0,
            main: None,
            to: 0,
            owner: 0,
            is_foreign: false,
            files: BTreeMap::new(),
            trace: Vec::new(),
        }
    }

    pub(crate) fn say(&mut self, what: String) {
        if std::env::var("DOWNRIVER_SEEDS").is_ok_and(|seeds| seeds == "1") {
            println!("{what}");
        }
        self.trace.push(what);
    }

    /// An owner was told that it has the table.
    pub(crate) fn has_owner(&mut self, epoch: u64) {
        self.owner = self.owner.max(epoch);
    }

    /// What is new was done by somebody else.
    pub(crate) fn take_foreign(&mut self, main: i64) {
        self.main = Some(main);
        self.seen += self.registry.moves_after(self.seen).len();
        self.is_foreign = true;
    }

    /// The table as the registry has it.
    pub(crate) async fn now(&self) -> Option<TableMetadata> {
        let at = self.registry.moves_after(0).pop()?;
        let read = TableMetadata::read_from(self.warehouse.io(), at).await;
        Some(read.unwrap_or_else(|error| panic!("{FILE_GONE}: {error}")))
    }

    /// Checks everything that happened since the last time.
    pub(crate) async fn look(&mut self, log: &SourceLog) {
        let moves = self.registry.moves_after(self.seen);
        if moves.is_empty() {
            return;
        }
        self.seen += moves.len();
        let mut new = Vec::new();
        for location in moves {
            // The log of metadata files is longer than a step.
            let read = TableMetadata::read_from(self.warehouse.io(), &location).await;
            let metadata = read.unwrap_or_else(|error| panic!("{FILE_GONE}: {error}"));
            if metadata.current_snapshot_id() == self.main {
                continue;
            }
            let snapshot = metadata.current_snapshot().unwrap();
            self.follow(&metadata, snapshot);
            new.push(snapshot.clone());
        }
        let Some(now) = self.now().await else {
            return;
        };
        for snapshot in new {
            // It may have expired already.
            if now.snapshot_by_id(snapshot.snapshot_id()).is_some() {
                self.list_files(&now, &snapshot).await;
            }
        }
        self.ensure_files(&now);
        if let Some(snapshot) = now.current_snapshot_id() {
            self.ensure_rows(&now, snapshot, &log.fold(Offset(self.to)))
                .await;
        }
    }

    /// One commit, which becomes the newest.
    fn follow(&mut self, metadata: &TableMetadata, snapshot: &Snapshot) {
        let of = |name| number(snapshot, name);
        let said = (
            of("downriver.epoch"),
            of("downriver.from"),
            of("downriver.to"),
        );
        assert!(!self.is_foreign, "{UNNOTICED}: {said:?}");
        let (Some(epoch), Some(from), Some(to)) = said else {
            panic!("a snapshot of ours says {said:?}");
        };
        self.say(format!("epoch {epoch}: ({from}, {to}]"));
        let now = self.owner;
        assert!(epoch >= now, "{FORMER_OWNER}: {epoch} after {now}");
        let before = self.to;
        assert!(
            from == before && to >= from && snapshot.parent_snapshot_id() == self.main,
            "{RANGES_APART}: ({from}, {to}] after {before}"
        );
        let offset = metadata.properties().get("downriver.offset");
        assert_eq!(offset, Some(&to.to_string()), "{RANGES_APART}");
        self.owner = epoch;
        self.main = Some(snapshot.snapshot_id());
        self.to = to;
    }

    async fn list_files(&mut self, now: &TableMetadata, snapshot: &Snapshot) {
        let gone = |error: iceberg::Error| -> ! { panic!("{FILE_GONE}: {error}") };
        let list = snapshot.manifest_list();
        let input = self.warehouse.io().new_input(list).unwrap();
        let bytes = input.read().await.unwrap_or_else(|error| gone(error));
        let manifests = ManifestList::parse_with_version(&bytes, now.format_version()).unwrap();
        let mut files = BTreeSet::from([list.to_owned()]);
        for manifest in manifests.entries() {
            files.insert(manifest.manifest_path.clone());
            let loaded = manifest.load_manifest(self.warehouse.io()).await;
            let loaded = loaded.unwrap_or_else(|error| gone(error));
            for entry in loaded.entries().iter().filter(|entry| entry.is_alive()) {
                let path = entry.data_file().file_path();
                assert!(files.insert(path.to_owned()), "{FILE_TWICE}: {path}");
            }
        }
        self.files.insert(snapshot.snapshot_id(), files);
    }

    /// Everything is there that a snapshot of the table needs.
    fn ensure_files(&mut self, now: &TableMetadata) {
        let kept: HashSet<i64> = now.snapshots().map(|s| s.snapshot_id()).collect();
        self.files.retain(|snapshot, _| kept.contains(snapshot));
        let files: BTreeSet<&String> = self.files.values().flatten().collect();
        for file in files {
            let path = file.strip_prefix("file://").unwrap();
            let is_there = std::fs::exists(path).unwrap();
            assert!(is_there, "{FILE_GONE}: {file}");
        }
    }

    /// A snapshot's rows are these.
    pub(crate) async fn ensure_rows(&mut self, now: &TableMetadata, snapshot: i64, rows: &Rows) {
        let is_wide = now.current_schema().field_by_name("extra").is_some();
        let shape = schema(1 + u32::from(is_wide));
        let Some(model) = block_of(rows, &shape) else {
            panic!("{NOT_THE_FOLD}: a column is not there");
        };
        let cannot = |error| -> ! { panic!("{NOT_THE_FOLD}: {error}") };
        let (name, warehouse) = (table_name(), self.warehouse.clone());
        let scan = TableScan::open(&self.near, warehouse, &name, snapshot, shape).await;
        let scan = scan.unwrap_or_else(|error| cannot(error));
        let mut has: Vec<Digest> = Vec::new();
        let scanned = scan.digests(|digest, _| {
            has.push(digest);
            Ok(())
        });
        scanned.await.unwrap_or_else(|error| cannot(error));
        let mut wants: Vec<Digest> = Vec::new();
        for group in model.iter().flat_map(|block| &block.groups) {
            let digested = scan.digest_group(group, |digest, _| {
                wants.push(digest);
                Ok(())
            });
            digested.unwrap();
        }
        has.sort_unstable();
        wants.sort_unstable();
        self.say(format!("{} rows", has.len()));
        let counts = (has.len(), wants.len(), self.to);
        assert!(has == wants, "{NOT_THE_FOLD}: {counts:?}");
    }
}
