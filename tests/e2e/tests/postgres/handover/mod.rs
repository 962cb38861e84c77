//! The hand-over from a snapshot to the stream, where the order of commit, log and visibility is forced at the
//! real server to be the bad one; and the two things that both sides must agree on: encryption and settings.
//!
//! What forces an order is a gate: a transaction that is open while the capture starts keeps every chunk from
//! being read, so a test can let the stream bring what it likes first, and then let the chunks come.

mod prepared;
mod truncates;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use downriver_testkit::certificates::Authority;
use downriver_testkit::postgres::Options;
use downriver_testkit::{Postgres, daemon, host, resources, shop};
use e2e::log::{ensure_equal, events};
use e2e::{CATCH_UP, Shop};
use serde_json::Value;
use tokio::task::JoinHandle;

const ALL: [&str; 1] = ["public.*"];
const LEDGER: &str = "public.ledger";
const DOCUMENTS: &str = "public.documents";

/// A commit that waits for a standby which never comes: its record is in the WAL, so it is streamed, and nobody
/// sees it yet (the backend leaves the list of running transactions only after the wait).
const NEVER_CONFIRMED: [&str; 2] = [
    "synchronous_standby_names = 'nobody'",
    // Only who asks for it waits.
    "synchronous_commit = local",
];

// ---- what the tests are made of

/// A shop with rows whose chunks matter: `ledger`, and `documents` with bodies that updates leave unchanged in the
/// WAL. The daemon knows nothing yet.
async fn shop_with(settings: &[&str], ledger: u32, documents: u32) -> Result<Shop> {
    let postgres = Postgres::start_with(Options {
        settings: settings.iter().map(|line| (*line).to_owned()).collect(),
        ..Options::default()
    })
    .await?;
    shop::create(&postgres).await?;
    shop::fill(&postgres, 200).await?;
    postgres
        .execute(&format!(
            "insert into ledger select i, 'old ' || i from generate_series(1, {ledger}) i;
             insert into documents select i, 0, repeat('body ' || i || ' ', 400), null from generate_series(1, {documents}) i"
        ))
        .await?;
    Shop::over(postgres).await
}

/// Makes the slot and the publication before the capture does, which adopts them: so that a gate which is open
/// when the capture starts is older than its first chunk and younger than its slot.
async fn prepare_slot(postgres: &Postgres) -> Result<()> {
    postgres
        .execute("create publication downriver_shop for all tables")
        .await?;
    postgres
        .execute("select pg_create_logical_replication_slot('downriver_shop', 'pgoutput')")
        .await
}

/// Captures into a lake, with chunks of so many rows and the snapshot's further options.
async fn deliver(shop: &Shop, chunk_rows: u64, more: &str) -> Result<()> {
    let options =
        format!("snapshot: {{ mode: initial, chunk_rows: {chunk_rows}, max_workers: 2{more} }}");
    let sink = resources::sink_in_folder(&shop.folder.path().join("lake"));
    let source = resources::source(&shop.postgres, &ALL, &[&options]);
    let pipeline = resources::pipeline("1s");
    shop.daemon.apply(&(source + &sink + &pipeline)).await
}

/// A transaction that stays open, with a transaction id, until it is told to commit.
struct Open(tokio_postgres::Client);

impl Open {
    async fn begin(postgres: &Postgres, sql: &str) -> Result<Self> {
        let client = postgres.client().await?;
        client
            .batch_execute("begin; select pg_current_xact_id()")
            .await?;
        client.batch_execute(sql).await?;
        Ok(Self(client))
    }

    async fn execute(&self, sql: &str) -> Result<()> {
        Ok(self.0.batch_execute(sql).await?)
    }

    async fn commit(self) -> Result<()> {
        self.execute("commit").await
    }
}

/// A transaction whose commit is logged and does not become visible before [`confirm`].
struct Hanging(JoinHandle<Result<()>>);

impl Hanging {
    async fn commit(postgres: &Postgres, sql: &str) -> Result<Self> {
        let hanging = number_of_hanging(postgres).await?;
        let client = postgres.client().await?;
        let sql = format!("set synchronous_commit = on; begin; {sql}; commit");
        let waiting = tokio::spawn(async move { Ok(client.batch_execute(&sql).await?) });
        host::until("the commit to hang", CATCH_UP, async || {
            Ok(number_of_hanging(postgres).await? == hanging + 1)
        })
        .await?;
        Ok(Self(waiting))
    }

    async fn end(self) -> Result<()> {
        self.0.await.context("the waiting commit")?
    }
}

async fn number_of_hanging(postgres: &Postgres) -> Result<i64> {
    let waiting = "select count(*) from pg_stat_activity where wait_event = 'SyncRep'";
    postgres.number(waiting).await
}

/// Lets hanging commits become visible.
async fn confirm(postgres: &Postgres) -> Result<()> {
    postgres
        .execute("alter system set synchronous_standby_names = ''")
        .await?;
    postgres.execute("select pg_reload_conf()").await
}

/// Returns when the capture has seen a gate that keeps it from reading: it has asked for the transactions that run
/// and asks again and again.
async fn until_chunks_wait(postgres: &Postgres) -> Result<()> {
    let asked = "select (extract(epoch from query_start) * 1e6)::int8 from pg_stat_activity
                  where application_name = 'downriver' and state = 'idle' and query like 'select %pg_locks%'";
    let client = postgres.client().await?;
    let mut times = std::collections::BTreeSet::new();
    host::until(
        "the capture to wait for old transactions",
        CATCH_UP,
        async || {
            times.extend(
                client
                    .query(asked, &[])
                    .await?
                    .iter()
                    .map(|row| row.get::<_, i64>(0)),
            );
            Ok(times.len() >= 3)
        },
    )
    .await
}

async fn until_streaming(shop: &Shop) -> Result<()> {
    shop.daemon
        .until_described(
            "source",
            resources::SOURCE,
            "the snapshot to end",
            CATCH_UP,
            |source| source["state"] == "streaming",
        )
        .await
        .map(|_| ())
}

async fn until_logged(shop: &Shop, op: &str, table: &str, id: i64) -> Result<u64> {
    let mut offset = None;
    host::until(
        &format!("the {op} of {table} {id} to be logged"),
        CATCH_UP,
        async || {
            offset = find(&events(shop).await?, op, table, id);
            Ok(offset.is_some())
        },
    )
    .await?;
    offset.context("it was there")
}

/// The offset of the first such event of a row.
fn find(events: &[Value], op: &str, table: &str, id: i64) -> Option<u64> {
    events
        .iter()
        .find(|event| event["op"] == op && event["table"] == table && event["key"]["id"] == id)
        .and_then(|event| event["offset"].as_u64())
}

fn offset_of(events: &[Value], op: &str, table: &str, id: i64) -> Result<u64> {
    find(events, op, table, id).with_context(|| format!("no {op} of {table} {id} in the log"))
}

fn ensure_no_chunk(events: &[Value]) -> Result<()> {
    let read = events.iter().find(|event| event["op"] == "snapshot");
    ensure!(read.is_none(), "a chunk was read too early: {read:?}");
    Ok(())
}

async fn ensure_shop_equal(shop: &Shop) -> Result<()> {
    ensure_equal(shop, &[LEDGER, DOCUMENTS]).await
}

// ---- logged, and not yet visible

/// Lets the stream describe the tables of the hanging commits: a shape is looked up once its transaction is visible.
async fn tell_shapes(shop: &Shop) -> Result<()> {
    shop.postgres
        .execute("update ledger set what = what where id = 1; update documents set version = version where id = 1")
        .await?;
    until_logged(shop, "update", LEDGER, 1).await?;
    until_logged(shop, "update", DOCUMENTS, 1).await?;
    Ok(())
}

/// What two hanging commits do to rows that no chunk has read: 1,000 is updated, 1,001 deleted, 3,001 inserted, 1,002
/// moved to 5,002 and 1,003 replaced; of the documents, 100 keeps its body, 101 moves with it and 102 goes.
async fn hang_commits(postgres: &Postgres) -> Result<[Hanging; 2]> {
    Ok([
        Hanging::commit(
            postgres,
            "update ledger set what = 'new' where id = 1000; delete from ledger where id in (1001, 1003);
             insert into ledger values (3001, 'inserted'), (1003, 'replaced'); update ledger set id = 5002 where id = 1002",
        )
        .await?,
        Hanging::commit(
            postgres,
            "update documents set version = 1 where id = 100; update documents set id = 1101 where id = 101;
             delete from documents where id = 102",
        )
        .await?,
    ])
}

async fn until_hanging_commits_are_logged(shop: &Shop) -> Result<()> {
    until_logged(shop, "update", LEDGER, 5002).await?;
    until_logged(shop, "delete", DOCUMENTS, 102)
        .await
        .map(|_| ())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_is_logged_and_not_yet_visible_wins_over_the_chunks_that_do_not_see_it()
-> Result<()> {
    let shop = shop_with(&NEVER_CONFIRMED, 2_000, 200).await?;
    prepare_slot(&shop.postgres).await?;
    let gate = Open::begin(&shop.postgres, "").await?;
    deliver(&shop, 64, "").await?;
    until_chunks_wait(&shop.postgres).await?;
    tell_shapes(&shop).await?;
    let hanging = hang_commits(&shop.postgres).await?;
    until_hanging_commits_are_logged(&shop).await?;
    ensure_no_chunk(&events(&shop).await?)?;

    // Now all chunks are read, and none of them sees what the stream brought before.
    gate.commit().await?;
    until_logged(&shop, "snapshot", LEDGER, 2000).await?;
    until_logged(&shop, "snapshot", DOCUMENTS, 200).await?;
    let seen = events(&shop).await?;
    ensure!(
        number_of_hanging(&shop.postgres).await? == 2,
        "a commit did not hang while the chunks were read"
    );
    let old =
        "select count(*) from ledger where id in (1000, 1001, 1002, 1003) and what like 'old %'";
    ensure!(
        shop.postgres.number(old).await? == 4,
        "the hanging commit is visible"
    );
    // Their neighbours were read behind them, by the same chunks; the rows themselves are not there again.
    for (neighbour, op, id) in [(999, "update", 1000), (1004, "delete", 1001)] {
        let read = offset_of(&seen, "snapshot", LEDGER, neighbour)?;
        let streamed = offset_of(&seen, op, LEDGER, id)?;
        ensure!(
            streamed < read,
            "{op} of {id} at {streamed}, its neighbour read at {read}"
        );
    }
    for id in [1000, 1001, 1002, 1003, 3001, 5002] {
        let read = find(&seen, "snapshot", LEDGER, id);
        ensure!(read.is_none(), "the old row {id} follows at {read:?}");
    }
    let of_100: Vec<&Value> = seen
        .iter()
        .filter(|event| event["table"] == DOCUMENTS && event["key"]["id"] == 100)
        .collect();
    ensure!(
        of_100.len() == 2
            && of_100[0]["after"]["version"] == 1
            && of_100[0]["after"]["body"].is_null()
            && of_100[1]["after"]["body"].is_string()
            && of_100[1]["unchanged"] == serde_json::json!(["version", "scan"]),
        "the chunk must bring the body that the stream left unchanged, and nothing else: {of_100:?}"
    );

    confirm(&shop.postgres).await?;
    for commit in hanging {
        commit.end().await?;
    }
    ensure_shop_equal(&shop).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_was_logged_before_a_restart_and_is_not_yet_visible_keeps_the_chunks_waiting()
-> Result<()> {
    let mut shop = shop_with(&NEVER_CONFIRMED, 2_000, 200).await?;
    prepare_slot(&shop.postgres).await?;
    let gate = Open::begin(&shop.postgres, "").await?;
    deliver(&shop, 64, "").await?;
    until_chunks_wait(&shop.postgres).await?;
    tell_shapes(&shop).await?;
    let hanging = hang_commits(&shop.postgres).await?;
    until_hanging_commits_are_logged(&shop).await?;

    // The log's position is behind the commits, so they are not sent again: what was known of them is gone.
    shop.daemon.kill();
    gate.commit().await?;
    shop.daemon.start().await?;
    until_chunks_wait(&shop.postgres).await?;
    let seen = events(&shop).await?;
    ensure_no_chunk(&seen)?;
    ensure!(
        number_of_hanging(&shop.postgres).await? == 2,
        "a commit did not hang"
    );

    confirm(&shop.postgres).await?;
    for commit in hanging {
        commit.end().await?;
    }
    until_streaming(&shop).await?;
    let seen = events(&shop).await?;
    let again = seen
        .iter()
        .filter(|event| event["op"] == "delete" && event["key"]["id"] == 1001)
        .count();
    ensure!(again == 1, "the commit was streamed {again} times");
    ensure_shop_equal(&shop).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_commits_between_a_chunks_snapshot_and_its_rows_wins_over_the_chunk() -> Result<()> {
    let shop = shop_with(&[], 2_000, 200).await?;
    prepare_slot(&shop.postgres).await?;
    let gate = Open::begin(&shop.postgres, "").await?;
    deliver(&shop, 5_000, "").await?;
    until_chunks_wait(&shop.postgres).await?;
    // A chunk takes its snapshot and then waits for the index, which it looks for its end in.
    let writer = Open::begin(
        &shop.postgres,
        "reindex index ledger_pkey; reindex index documents_pkey",
    )
    .await?;
    gate.commit().await?;
    for table in ["documents", "ledger"] {
        let blocked = format!(
            "select count(*) from pg_stat_activity where application_name = 'downriver' and wait_event_type = 'Lock'
                and query like 'select %\"{table}\"%'"
        );
        host::until("chunks to wait for the lock", CATCH_UP, async || {
            Ok(shop.postgres.number(&blocked).await? > 0)
        })
        .await?;
    }
    writer
        .execute(
            "update ledger set what = 'new' where id = 1000; delete from ledger where id = 1001;
             update ledger set id = 5002 where id = 1002; insert into ledger values (3001, 'inserted');
             update documents set version = 1 where id = 100; update documents set id = 1101 where id = 101;
             delete from documents where id = 102",
        )
        .await?;
    writer.commit().await?;
    until_streaming(&shop).await?;
    let seen = events(&shop).await?;
    let committed = offset_of(&seen, "delete", DOCUMENTS, 102)?;
    for (table, neighbour) in [(LEDGER, 999), (DOCUMENTS, 99)] {
        let read = offset_of(&seen, "snapshot", table, neighbour)?;
        ensure!(
            committed < read,
            "{table}: the commit at {committed}, the chunk at {read}"
        );
    }
    for (table, id) in [
        (LEDGER, 1000),
        (LEDGER, 1001),
        (LEDGER, 1002),
        (DOCUMENTS, 102),
    ] {
        let read = find(&seen, "snapshot", table, id);
        ensure!(
            read.is_none(),
            "the old row {id} of {table} follows at {read:?}"
        );
    }
    ensure_shop_equal(&shop).await
}

// ---- transactions that are older than the slot

/// Waits until as many sessions of ours wait for a transaction to end, as making a slot does.
async fn until_slot_waits_for(postgres: &Postgres, xid: &str) -> Result<()> {
    let waits = format!(
        "select count(*) from pg_locks l join pg_stat_activity a using (pid)
          where a.query like '%pg_create_logical_replication_slot%' and not l.granted and l.locktype = 'transactionid'
            and l.transactionid = '{xid}'"
    );
    host::until(
        "the slot to wait for an old transaction",
        CATCH_UP,
        async || Ok(postgres.number(&waits).await? == 1),
    )
    .await
}

async fn xid_of(transaction: &Open) -> Result<String> {
    let row = transaction
        .0
        .query_one("select pg_current_xact_id()::xid::text", &[])
        .await?;
    Ok(row.get(0))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_chunk_is_read_while_a_transaction_runs_that_began_before_the_slot_was_made()
-> Result<()> {
    let shop = shop_with(&[], 2_000, 200).await?;
    let change = |n: i64| {
        format!(
            "update ledger set what = 'changed {n}' where id = {n}; delete from ledger where id = {n} + 10;
             insert into ledger values ({n} + 10000, 'inserted {n}'); update documents set version = {n} where id = {n}"
        )
    };
    let before = Open::begin(&shop.postgres, &change(1)).await?;
    deliver(&shop, 64, "").await?;
    until_slot_waits_for(&shop.postgres, &xid_of(&before).await?).await?;
    // The server waits a second time, for those that began while it waited.
    let during = Open::begin(&shop.postgres, &change(2)).await?;
    before.commit().await?;
    until_slot_waits_for(&shop.postgres, &xid_of(&during).await?).await?;
    // And not for this one, whose commit the slot decodes.
    let after = Open::begin(&shop.postgres, &change(3)).await?;
    during.commit().await?;
    until_chunks_wait(&shop.postgres).await?;
    // Between the slot and the first chunk.
    Open::begin(&shop.postgres, &change(4))
        .await?
        .commit()
        .await?;
    until_logged(&shop, "update", LEDGER, 4).await?;
    ensure_no_chunk(&events(&shop).await?)?;
    let source = shop.daemon.describe("source", resources::SOURCE).await?;
    ensure!(source["state"] == "snapshotting", "{source}");

    after
        .execute("update ledger set what = 'last' where id = 5")
        .await?;
    after.commit().await?;
    until_streaming(&shop).await?;
    let seen = events(&shop).await?;
    let first = seen
        .iter()
        .find(|event| event["op"] == "snapshot")
        .and_then(|event| event["offset"].as_u64())
        .context("no snapshot row")?;
    for id in [3, 4, 5] {
        let streamed = offset_of(&seen, "update", LEDGER, id)?;
        ensure!(
            streamed < first,
            "{id} was streamed at {streamed}, the first chunk came at {first}"
        );
    }
    for id in [1, 2] {
        let streamed = find(&seen, "update", LEDGER, id);
        ensure!(
            streamed.is_none(),
            "{id} was committed before the slot and is streamed at {streamed:?}"
        );
    }
    ensure_shop_equal(&shop).await
}

// ---- rows that move, and a crash

const MOVED_ROWS: i64 = 20_000;
const CHUNK_ROWS: u64 = 500;

/// Moves rows over the borders of chunks, forward and backward, until told to stop. No row comes back to where a
/// chunk may have read it: so each of the first keys is read at most once.
fn move_rows(postgres: &Postgres, stop: &Arc<AtomicBool>) -> JoinHandle<Result<()>> {
    let (url, stop) = (postgres.admin_url("shop"), Arc::clone(stop));
    tokio::spawn(async move {
        let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await?;
        tokio::spawn(connection);
        let mut round = 0i64;
        while !stop.load(Ordering::Relaxed) {
            round += 1;
            // Strides that visit every part of the tables early.
            let (low, high) = (
                round * 7_919 % MOVED_ROWS + 1,
                round * 6_007 % MOVED_ROWS + 1,
            );
            let (early, late) = (round * 79 % 2_000 + 1, round * 61 % 2_000 + 1);
            client
                .batch_execute(&format!(
                    "begin; update ledger set id = id + 100000, what = 'forward {round}' where id = {low};
                     update ledger set id = -id where id = {high}; commit;
                     update documents set id = id + 100000, version = version + 1 where id = {early};
                     update documents set id = -id where id = {late}"
                ))
                .await?;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    })
}

async fn rows_done(shop: &Shop, enough: u64) -> Result<u64> {
    let done = |source: &Value| {
        daemon::table_in(source, LEDGER)
            .and_then(|table| table["snapshot"]["rows_done"].as_u64())
            .unwrap_or(0)
    };
    let source = shop
        .daemon
        .until_described(
            "source",
            resources::SOURCE,
            "rows of the ledger to be read",
            CATCH_UP,
            |source| done(source) >= enough,
        )
        .await?;
    ensure!(
        daemon::table_in(&source, LEDGER).is_some_and(|table| table["state"] == "snapshotting"),
        "the snapshot was over too early: {source}"
    );
    Ok(done(&source))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_move_across_chunk_borders_are_kept_and_a_killed_snapshot_resumes_at_its_chunk()
-> Result<()> {
    let mut shop = shop_with(&[], MOVED_ROWS as u32, 2_000).await?;
    let stop = Arc::new(AtomicBool::new(false));
    let moving = move_rows(&shop.postgres, &stop);
    deliver(&shop, CHUNK_ROWS, ", rows_per_second: 2500").await?;
    let before = rows_done(&shop, 8_000).await?;
    shop.daemon.kill();
    shop.daemon.start().await?;
    let after = rows_done(&shop, 1).await?;
    println!("{before} rows were read before the kill, {after} are known after the restart");
    // What was read last may not have been logged.
    ensure!(
        after + 3 * CHUNK_ROWS >= before,
        "{before} rows were read before the kill, and {after} are known after it"
    );
    until_streaming(&shop).await?;
    stop.store(true, Ordering::Relaxed);
    moving.await??;

    let seen = events(&shop).await?;
    let end = seen
        .iter()
        .rfind(|event| event["op"] == "snapshot" && event["table"] == LEDGER)
        .and_then(|event| event["offset"].as_u64())
        .context("no snapshot row of the ledger")?;
    let mut read: HashMap<i64, u64> = HashMap::new();
    let (mut read_twice, mut never_read) = (0, 0);
    for event in seen.iter().filter(|event| event["table"] == LEDGER) {
        let Some(key) = event["key"]["id"].as_i64() else {
            continue;
        };
        if event["op"] == "snapshot" {
            *read.entry(key).or_default() += 1;
        }
        let moved_from = event["before"]["id"].as_i64().filter(|old| {
            event["op"] == "update" && *old != key && event["offset"].as_u64() < Some(end)
        });
        if let Some(old) = moved_from {
            match (key > old, read.contains_key(&old)) {
                (true, true) => read_twice += 1,
                (false, false) => never_read += 1,
                _ => {}
            }
        }
    }
    println!(
        "{read_twice} rows moved ahead of the chunks behind which they were read, {never_read} behind them before"
    );
    ensure!(
        read_twice > 0 && never_read > 0,
        "no row moved across the border of what was read"
    );
    let again: u64 = read
        .iter()
        .filter(|(key, _)| (1..=MOVED_ROWS).contains(*key))
        .map(|(_, times)| times - 1)
        .sum();
    println!("{again} rows of the ledger were read again");
    ensure!(
        again <= CHUNK_ROWS,
        "{again} rows were read again after the kill, which is more than a chunk"
    );
    ensure_shop_equal(&shop).await
}

// ---- TLS

/// The source's sessions by whether they are encrypted: (those that replicate and are, all that are not).
async fn encrypted(postgres: &Postgres) -> Result<(i64, i64)> {
    let replicating =
        "select count(*) from pg_stat_ssl join pg_stat_replication using (pid) where ssl";
    let plain = "select count(*) from pg_stat_ssl join pg_stat_activity using (pid)
                  where application_name = 'downriver' and not ssl";
    Ok((
        postgres.number(replicating).await?,
        postgres.number(plain).await?,
    ))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_tls_a_source_is_captured_and_a_server_that_cannot_be_trusted_is_refused() -> Result<()>
{
    let folder = tempfile::tempdir()?;
    let authority = Authority::new(&folder.path().join("ours"), "ours")?;
    let other = Authority::new(&folder.path().join("other"), "other")?;
    let postgres = Postgres::start_with_tls(&authority.issue("localhost")?).await?;
    shop::create(&postgres).await?;
    shop::fill(&postgres, 200).await?;
    let mut shop = Shop::over(postgres).await?;
    let source = |host: &str, mode: &str, ca: Option<&Authority>| {
        let url = format!(
            "postgres://cdc@{host}:{}/shop?sslmode={mode}",
            shop.postgres.port()
        );
        let tls = ca.map(|ca| format!("tls: {{ ca: {{ file: {} }} }}", ca.file().display()));
        let more: Vec<&str> = tls.as_deref().into_iter().collect();
        resources::source_at(&url, &ALL, &more)
    };

    let no_ca = source("localhost", "verify-full", Some(&authority)).replace("ca.pem", "no.pem");
    for (yaml, code, word) in [
        (
            source("localhost", "verify-full", Some(&other)),
            "DR-1006",
            "UnknownIssuer",
        ),
        (
            source("localhost", "verify-ca", Some(&other)),
            "DR-1006",
            "UnknownIssuer",
        ),
        (
            source("localhost", "require", Some(&other)),
            "DR-1006",
            "UnknownIssuer",
        ),
        // The system's authorities do not know ours.
        (
            source("localhost", "verify-full", None),
            "DR-1006",
            "UnknownIssuer",
        ),
        (
            source("127.0.0.1", "verify-full", Some(&authority)),
            "DR-1006",
            "127.0.0.1",
        ),
        (no_ca, "DR-1006", "no.pem"),
        (
            source("localhost", "disable", None),
            "DR-1001",
            "no encryption",
        ),
    ] {
        let answer = shop.daemon.try_apply(&yaml).await?;
        let text = answer.text();
        ensure!(
            answer.code == Some(1)
                && text.contains(code)
                && text.contains("fix:")
                && text.contains(word),
            "expected {code} and {word:?}, got {:?}: {text}\n{yaml}",
            answer.code
        );
    }

    let accepted = [
        source("127.0.0.1", "require", None),
        source("127.0.0.1", "verify-ca", Some(&authority)),
        source("localhost", "prefer", None),
        source("localhost", "verify-full", Some(&authority)),
    ];
    let last = accepted.len() - 1;
    for (at, yaml) in accepted.into_iter().enumerate() {
        shop.daemon
            .apply(&yaml)
            .await
            .with_context(|| yaml.clone())?;
        shop.caught_up().await.with_context(|| yaml.clone())?;
        let sessions = encrypted(&shop.postgres).await?;
        ensure!(
            sessions == (1, 0),
            "encrypted replication sessions and plain ones: {sessions:?}\n{yaml}"
        );
        if at < last {
            shop.daemon
                .ok(&["delete", "source", resources::SOURCE, "--yes"])
                .await?;
        }
    }
    // The last one goes on, also when the server has been away.
    shop.postgres.kill();
    shop.postgres.start_again().await?;
    shop.postgres
        .execute("insert into ledger values (1, 'encrypted')")
        .await?;
    until_logged(&shop, "insert", LEDGER, 1).await?;
    ensure!(encrypted(&shop.postgres).await? == (1, 0), "not encrypted");
    shop.daemon.stop()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_tls_is_refused_where_tls_is_asked_for() -> Result<()> {
    let shop = Shop::open(0).await?;
    for mode in ["require", "verify-ca", "verify-full"] {
        let url = format!("{}?sslmode={mode}", shop.postgres.source_url());
        let answer = shop
            .daemon
            .try_apply(&resources::source_at(&url, &ALL, &[]))
            .await?;
        ensure!(
            answer.code == Some(1)
                && answer.text().contains("DR-1006")
                && answer.text().contains("does not offer TLS"),
            "{mode}: {}",
            answer.text()
        );
    }
    Ok(())
}

// ---- settings

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn odd_settings_of_the_database_and_the_role_change_no_value() -> Result<()> {
    let postgres = Postgres::start().await?;
    shop::create(&postgres).await?;
    shop::fill(&postgres, 200).await?;
    shop::fill_types(&postgres).await?;
    postgres
        .execute(
            "alter database shop set DateStyle = 'SQL, DMY';
             alter database shop set IntervalStyle = 'sql_standard';
             alter database shop set TimeZone = 'Asia/Kolkata';
             alter database shop set bytea_output = 'escape';
             alter database shop set extra_float_digits = -15;
             alter role cdc set DateStyle = 'German';
             alter role cdc set TimeZone = 'America/St_Johns';
             alter role cdc in database shop set client_encoding = 'LATIN1';
             alter role cdc in database shop set standard_conforming_strings = off;
             alter role cdc in database shop set search_path = '';
             alter role cdc in database shop set statement_timeout = '1ms';
             alter role cdc in database shop set lock_timeout = '1ms';
             alter role cdc in database shop set idle_in_transaction_session_timeout = '1ms'",
        )
        .await?;
    let shop = Shop::over(postgres).await?;
    shop.deliver("1s").await?;
    // What the snapshot reads, and then the same values by the stream.
    shop.ensure_lake_equal().await?;
    shop.postgres
        .execute(
            "insert into types select id + 100, i2, i4, i8, f4, f8, n, free, b, t, vc, c, ba, u, j, jb, d, ti, ts, tz, iv, st, ai,
                at, an, net from types;
             update types set id = id + 200 where id in (1, 2); update orders set note = 'again' where id < 50",
        )
        .await?;
    shop.ensure_lake_equal().await?;
    shop.daemon.ok(&["verify", resources::PIPELINE]).await?;
    Ok(())
}
