//! Captures a real PostgreSQL into a real log, and folds the log back into tables: they must be the source's.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use common::{Capture, PATIENCE, config, node, node_sealing};
use downriver_cluster::Node;
use downriver_event::block::Block;
use downriver_event::{Offset, SourcePosition, pb, view};
use downriver_log::store::ObjectStore;
use downriver_log::{
    Append, AppendError, Appended, Log, LogError, ReadError, StoredBlock, StreamState,
};
use downriver_pipeline::TableState;
use downriver_testkit::host;
use downriver_testkit::postgres::Postgres;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

type Row = Vec<Option<String>>;

/// The log's rows by table and key. The key is the first column.
async fn fold(node: &Node, to: Offset) -> BTreeMap<String, BTreeMap<String, Row>> {
    let state = node.state("shop").unwrap();
    let mut tables: BTreeMap<String, BTreeMap<String, Row>> = BTreeMap::new();
    let mut from = Offset(0);
    let mut expected = 0;
    while from < to {
        for stored in node.read("shop", from, 1 << 20).await.unwrap() {
            let block = Block::decode(&stored.frame).unwrap();
            let position = stored.position_after.clone().unwrap();
            let schema = |table, version| {
                let key = (downriver_event::TableId(table), version);
                state.schemas.get(&key).map(|schema| &**schema)
            };
            for event in view::events(&block, stored.base, &position, schema).unwrap() {
                assert_eq!(event.offset, expected, "offsets are dense");
                expected += 1;
                apply(
                    &mut tables,
                    &event,
                    schema(event.table_id, event.schema_version),
                );
            }
            from = stored.end();
        }
    }
    tables
}

fn apply(
    tables: &mut BTreeMap<String, BTreeMap<String, Row>>,
    event: &pb::ChangeEvent,
    schema: Option<&downriver_event::TableSchema>,
) {
    let Some(schema) = schema else { return };
    let rows = tables.entry(schema.name.clone()).or_default();
    let text = |cell: &pb::Cell| match cell.kind.as_ref().unwrap() {
        pb::cell::Kind::Value(value) => match value.kind.as_ref().unwrap() {
            pb::value::Kind::Int(v) => Ok(Some(v.to_string())),
            pb::value::Kind::Text(v) => Ok(Some(v.clone())),
            other => panic!("{other:?}"),
        },
        pb::cell::Kind::Presence(p) if *p == pb::Presence::Null as i32 => Ok(None),
        pb::cell::Kind::Presence(p) => Err(*p),
    };
    let key_of = |row: &pb::Row| text(&row.cells[0]).unwrap().unwrap();
    let old_key = event.before.as_ref().map(key_of);
    match event.op() {
        pb::Op::Delete => {
            rows.remove(&old_key.unwrap());
        }
        pb::Op::Insert | pb::Op::Update | pb::Op::Snapshot => {
            let after = event.after.as_ref().unwrap();
            let key = key_of(after);
            let before = rows.remove(old_key.as_ref().unwrap_or(&key));
            let cell = |(at, cell): (usize, &pb::Cell)| {
                text(cell).unwrap_or_else(|presence| {
                    assert_eq!(presence, pb::Presence::Unchanged as i32);
                    before
                        .as_ref()
                        .map_or_else(|| Some("(to be filled)".into()), |row| row[at].clone())
                })
            };
            rows.insert(key, after.cells.iter().enumerate().map(cell).collect());
        }
        pb::Op::Truncate => rows.clear(),
        pb::Op::SchemaChange | pb::Op::SnapshotStart | pb::Op::SnapshotEnd => {}
        other => panic!("{other:?}"),
    }
}

async fn source_rows(postgres: &Postgres, table: &str) -> BTreeMap<String, Row> {
    let client = postgres.client().await.unwrap();
    let rows = client
        .simple_query(&format!("select * from {table}"))
        .await
        .unwrap();
    rows.iter()
        .filter_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => {
                let cells: Row = (0..row.len())
                    .map(|at| row.get(at).map(str::to_owned))
                    .collect();
                Some((cells[0].clone().unwrap(), cells))
            }
            _ => None,
        })
        .collect()
}

/// Random single transactions on `items` until it is told to stop.
async fn write_randomly(postgres: &Postgres, seed: u64, stop: CancellationToken) -> u64 {
    use rand::{Rng as _, SeedableRng as _};
    let mut random = rand::rngs::StdRng::seed_from_u64(seed);
    let client = postgres.client().await.unwrap();
    let mut transactions = 0;
    while !stop.is_cancelled() {
        let mut statements = String::from("begin;");
        for _ in 0..random.random_range(1..5) {
            let id = random.random_range(0..3_000);
            let other = random.random_range(0..6_000);
            statements.push_str(&match random.random_range(0..10) {
                0..=1 => format!(
                    "insert into items values ({other}, {id}, repeat(md5('{id}'), 100)) on conflict (id) do update set n = {id};"
                ),
                2 => format!("delete from items where id = {id};"),
                3 => format!(
                    "update items set id = {other} where id = {id} and not exists (select from items where id = {other});"
                ),
                4 => format!("update items set big = repeat(md5('{other}'), 90) where id = {id};"),
                _ => format!("update items set n = n + 1 where id = {id};"),
            });
        }
        statements.push_str(if random.random_bool(0.9) {
            "commit"
        } else {
            "rollback"
        });
        client.batch_execute(&statements).await.unwrap();
        transactions += 1;
    }
    transactions
}

const ITEMS: &str = "
    create table items (id int primary key, n int, big text);
    alter table items alter big set storage external;
    alter table items owner to cdc;
    insert into items select i, 0, repeat(md5(i::text), 100) from generate_series(0, 2999) i;
    create table quiet (id bigint primary key, note varchar(20));
    alter table quiet owner to cdc;
    insert into quiet select i, 'q' || i from generate_series(1, 500) i;
    analyze";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_folds_to_the_source_after_kills_during_snapshot_and_stream() {
    let folder = tempfile::tempdir().unwrap();
    let postgres = Arc::new(Postgres::start().await.unwrap());
    postgres
        .execute("grant create on database shop to cdc; grant create on schema public to cdc")
        .await
        .unwrap();
    postgres.execute(ITEMS).await.unwrap();
    let config = config(&postgres, folder.path());
    let mut node = node(folder.path()).await;
    let stop = CancellationToken::new();
    let writer = tokio::spawn({
        let (postgres, stop) = (Arc::clone(&postgres), stop.clone());
        async move { write_randomly(&postgres, 7, stop).await }
    });
    for round in 0..6u64 {
        let capture = Capture::start(&config, &node);
        // Each round is killed a little further on.
        let target = Offset(node.state("shop").map_or(0, |s| s.next.0) + 300 + 400 * round);
        host::until("the log to grow", PATIENCE, async || {
            let status = capture.status.get();
            assert_ne!(status.state, TableState::Stopped, "{:?}", status.problem);
            Ok(node.state("shop").is_some_and(|s| s.next >= target))
        })
        .await
        .unwrap();
        capture.killed().await;
        if round % 2 == 1 {
            node.shutdown().await;
            node = common::node(folder.path()).await;
        }
    }
    let capture = Capture::start(&config, &node);
    stop.cancel();
    assert!(writer.await.unwrap() > 50, "the load was there");
    let to = capture.caught_up(&config).await;
    let folded = fold(&node, to).await;
    assert_eq!(folded["quiet"], source_rows(&postgres, "quiet").await);
    let (log, source) = (&folded["items"], source_rows(&postgres, "items").await);
    for (key, row) in &source {
        assert_eq!(log.get(key), Some(row), "row {key}");
    }
    assert_eq!(log.len(), source.len());

    // Truncate, an added column, and one large transaction.
    postgres
        .execute(
            "truncate quiet; alter table items add column extra text;
             update items set extra = 'e' where id % 2 = 0;
             insert into quiet select i, 'r' || i from generate_series(1, 200000) i",
        )
        .await
        .unwrap();
    let to = capture.caught_up(&config).await;
    let folded = fold(&node, to).await;
    assert_eq!(folded["quiet"].len(), 200_000);
    assert_eq!(folded["quiet"], source_rows(&postgres, "quiet").await);
    let extra = source_rows(&postgres, "items").await;
    for (key, row) in extra.iter().filter(|(_, row)| row[3].is_some()) {
        assert_eq!(folded["items"].get(key), Some(row), "row {key}");
    }

    // What is sealed is acknowledged.
    host::until("the source to be acknowledged", PATIENCE, async || {
        let lag = postgres
            .number("select (pg_current_wal_lsn() - confirmed_flush_lsn)::bigint from pg_replication_slots")
            .await?;
        capture.control.nudge.notify_one();
        Ok(lag < 100_000)
    })
    .await
    .unwrap();
    capture.killed().await;
    node.shutdown().await;
}

/// The server waits for the acknowledgement of all that it has sent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_can_stop_while_it_is_captured() {
    let folder = tempfile::tempdir().unwrap();
    let mut postgres = Postgres::start().await.unwrap();
    let create = "create table t (id int primary key); alter table t owner to shop_owner; insert into t values (1)";
    postgres.execute(create).await.unwrap();
    let config = config(&postgres, folder.path());
    // Nothing is sealed for its age.
    let node = node_sealing(folder.path(), Duration::from_secs(86_400)).await;
    let capture = Capture::start(&config, &node);
    capture.caught_up(&config).await;
    for insert in [
        "insert into t values (2)",
        "insert into t select i from generate_series(3, 900) i",
    ] {
        postgres.execute(insert).await.unwrap();
        capture.caught_up(&config).await;
        assert!(postgres.stop(), "the server had to be killed");
        postgres.start_again().await.unwrap();
    }
    capture.killed().await;
    node.shutdown().await;
}

/// A log that takes the end of a snapshot only when it is let.
struct HoldsEnds {
    node: Arc<Node>,
    /// One for each end that came.
    came: Semaphore,
    /// One for each end that is let.
    let_in: Semaphore,
}

#[async_trait]
impl Log for HoldsEnds {
    async fn open(
        &self,
        stream: &str,
        start: Option<SourcePosition>,
        identity: Bytes,
    ) -> Result<StreamState, LogError> {
        self.node.open(stream, start, identity).await
    }

    async fn append(&self, append: Append) -> Result<Appended, AppendError> {
        if append.chunks_done.iter().any(|chunk| chunk.last) {
            self.came.add_permits(1);
            self.let_in.acquire().await.unwrap().forget();
        }
        self.node.append(append).await
    }

    fn seal_soon(&self, stream: &str) {
        self.node.seal_soon(stream);
    }

    fn state(&self, stream: &str) -> Option<Arc<StreamState>> {
        self.node.state(stream)
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.node.changes()
    }

    async fn read(
        &self,
        stream: &str,
        from: Offset,
        bytes_max: usize,
    ) -> Result<Vec<StoredBlock>, ReadError> {
        self.node.read(stream, from, bytes_max).await
    }

    async fn offset_at_time(&self, stream: &str, time_us: i64) -> Result<Offset, ReadError> {
        self.node.offset_at_time(stream, time_us).await
    }

    fn objects(&self) -> Arc<dyn ObjectStore> {
        self.node.objects()
    }
}

/// Whoever waits for a table to stream looks where the log ends then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_streams_when_the_log_has_its_snapshot_and_not_before() {
    let folder = tempfile::tempdir().unwrap();
    let postgres = Postgres::start().await.unwrap();
    let create = "create table t (id int primary key); alter table t owner to shop_owner; insert into t values (1)";
    postgres.execute(create).await.unwrap();
    let config = config(&postgres, folder.path());
    let node = node(folder.path()).await;
    let log = Arc::new(HoldsEnds {
        node: Arc::clone(&node),
        came: Semaphore::new(0),
        let_in: Semaphore::new(0),
    });
    let capture = Capture::start_into(&config, log.clone());
    let came = tokio::time::timeout(PATIENCE, log.came.acquire()).await;
    came.expect("the snapshot ends").unwrap().forget();
    let status = capture.status.get();
    assert_eq!(status.state, TableState::Snapshotting);
    assert_eq!(status.tables["public.t"].state, TableState::Snapshotting);
    log.let_in.add_permits(Semaphore::MAX_PERMITS);
    host::until("the table to stream", PATIENCE, async || {
        let status = capture.status.get();
        Ok(status.tables["public.t"].state == TableState::Streaming)
    })
    .await
    .unwrap();
    assert!(node.state("shop").unwrap().chunks.values().all(|c| c.done));
    capture.killed().await;
    node.shutdown().await;
}
