//! Transactions that the server sends before they end: whatever they roll back, change or leave open, the log and the
//! lake get what committed, whole and in the order of commits.
//!
//! `logical_decoding_work_mem` is at its smallest, so that some hundred rows are enough; every test makes sure that
//! its transactions really were streamed.

use std::ops::RangeInclusive;

use anyhow::{Context, Result, ensure};
use downriver_testkit::disk::SmallDisk;
use downriver_testkit::postgres::{Options, Version};
use downriver_testkit::{Daemon, Postgres, host, resources, shop};
use e2e::log::{ensure_equal, events};
use e2e::{CATCH_UP, Shop};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;

const SETTINGS: [&str; 2] = [
    "logical_decoding_work_mem = 64kB",
    "max_prepared_transactions = 4",
];
const LEDGER: &str = "public.ledger";
const DOCUMENTS: &str = "public.documents";
/// Rows of the ledger that are larger than the server's memory for decoding, and than the capture's for one
/// transaction in progress.
const MANY: i64 = 600;

// ---- what the tests are made of

/// A shop whose large transactions are streamed.
async fn streaming_postgres(version: Version) -> Result<Postgres> {
    let postgres = Postgres::start_with(Options {
        version,
        settings: SETTINGS.map(str::to_owned).to_vec(),
        ..Options::default()
    })
    .await?;
    shop::create(&postgres).await?;
    shop::fill(&postgres, 100).await?;
    postgres
        .execute(
            "insert into documents select i, 0, repeat('body ' || i || ' ', 400), null from generate_series(1, 100) i",
        )
        .await?;
    Ok(postgres)
}

/// The same, captured and delivered: its snapshot is done.
async fn streaming_shop() -> Result<Shop> {
    streaming_shop_on(Version::System).await
}

async fn streaming_shop_on(version: Version) -> Result<Shop> {
    let shop = Shop::over(streaming_postgres(version).await?).await?;
    shop.deliver("1s").await?;
    shop.daemon.wait(CATCH_UP).await?;
    Ok(shop)
}

/// A session with a transaction in progress.
struct Open<'a> {
    shop: &'a Shop,
    client: tokio_postgres::Client,
}

impl<'a> Open<'a> {
    async fn begin(shop: &'a Shop) -> Result<Self> {
        let client = shop.postgres.client().await?;
        client.batch_execute("begin").await?;
        Ok(Self { shop, client })
    }

    async fn execute(&self, sql: &str) -> Result<()> {
        let executed = self.client.batch_execute(sql).await;
        executed.with_context(|| sql.chars().take(200).collect::<String>())
    }

    /// Inserts [`MANY`] rows from an id on and returns when the server has streamed so much more.
    async fn insert_many(&self, from: i64) -> Result<()> {
        self.insert_into("id, what", "", from).await
    }

    /// The same, with further columns and their values.
    async fn insert_into(&self, columns: &str, more: &str, from: i64) -> Result<()> {
        let before = streamed_bytes(&self.shop.postgres).await?;
        self.execute(&format!(
            "insert into ledger ({columns}) select i, repeat('row ' || i || ' ', 60){more} from generate_series({from}, {}) i",
            from + MANY - 1
        ))
        .await?;
        until_streamed(&self.shop.postgres, before + 64 * 1024).await
    }
}

fn ids(from: i64) -> RangeInclusive<i64> {
    from..=from + MANY - 1
}

async fn streamed_bytes(postgres: &Postgres) -> Result<i64> {
    postgres
        .number("select coalesce(sum(stream_bytes), 0) from pg_stat_replication_slots")
        .await
}

async fn until_streamed(postgres: &Postgres, bytes: i64) -> Result<()> {
    host::until("the transaction to be streamed", CATCH_UP, async || {
        // A commit of another session makes the server write what it has.
        postgres
            .execute("select pg_logical_emit_message(true, 'test', '')")
            .await?;
        Ok(streamed_bytes(postgres).await? >= bytes)
    })
    .await
}

/// The ledger's events in the log whose key is one of these.
fn of_ledger(events: &[Value], ids: RangeInclusive<i64>) -> Vec<&Value> {
    let is_meant = |event: &&Value| {
        event["table"] == LEDGER
            && event["key"]["id"]
                .as_i64()
                .is_some_and(|id| ids.contains(&id))
    };
    events.iter().filter(is_meant).collect()
}

/// Each was inserted once, and nothing else happened to them.
fn ensure_inserted_once(events: &[Value], from: i64) -> Result<()> {
    let found = of_ledger(events, ids(from));
    let inserts = found.iter().filter(|event| event["op"] == "insert").count();
    ensure!(
        found.len() == MANY as usize && inserts == found.len(),
        "{} events of {MANY} rows from {from}, {inserts} of them inserts",
        found.len()
    );
    Ok(())
}

fn ensure_nothing_of(events: &[Value], from: i64) -> Result<()> {
    let found = of_ledger(events, ids(from));
    ensure!(
        found.is_empty(),
        "rolled back, and in the log: {}",
        found[0]
    );
    Ok(())
}

fn count_of(events: &[Value], op: &str) -> usize {
    events.iter().filter(|event| event["op"] == op).count()
}

/// What the messages of the tests say.
fn messages(events: &[Value]) -> Vec<&str> {
    let of_app = events
        .iter()
        .filter(|event| event["message"]["prefix"] == "app");
    of_app
        .filter_map(|event| event["message"]["content"]["text"].as_str())
        .collect()
}

async fn ensure_all_equal(shop: &Shop) -> Result<()> {
    ensure_equal(shop, &[LEDGER, DOCUMENTS]).await
}

fn spool_files(shop: &Shop) -> Result<usize> {
    let folder = shop.daemon.data().join("spill").join(resources::SOURCE);
    let mut files = 0;
    for entry in std::fs::read_dir(&folder)? {
        files += usize::from(entry?.path().extension().is_some_and(|e| e == "spool"));
    }
    Ok(files)
}

// ---- subtransactions

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolled_back_savepoint_takes_those_released_into_it_along_and_nothing_else() -> Result<()>
{
    let shop = streaming_shop().await?;
    let open = Open::begin(&shop).await?;
    open.insert_many(10_000).await?;
    open.execute("savepoint a").await?;
    open.insert_many(20_000).await?;
    open.execute("savepoint b").await?;
    open.insert_many(30_000).await?;
    open.execute("savepoint c; delete from ledger where id < 10100; update documents set version = 9 where id < 10; truncate carts")
        .await?;
    open.insert_many(40_000).await?;
    open.execute("release c; release b").await?;
    open.insert_many(50_000).await?;
    open.execute("rollback to a").await?;
    open.insert_many(60_000).await?;
    open.execute("savepoint d").await?;
    open.insert_many(70_000).await?;
    open.execute("release d; update documents set version = 1 where id = 1; commit")
        .await?;

    ensure_all_equal(&shop).await?;
    let events = events(&shop).await?;
    for kept in [10_000, 60_000, 70_000] {
        ensure_inserted_once(&events, kept)?;
    }
    for gone in [20_000, 30_000, 40_000, 50_000] {
        ensure_nothing_of(&events, gone)?;
    }
    ensure!(
        count_of(&events, "truncate") == 0,
        "a truncate that was rolled back"
    );
    let transactions: std::collections::BTreeSet<_> = of_ledger(&events, 10_000..=79_999)
        .into_iter()
        .map(|event| event["txn"].to_string())
        .collect();
    ensure!(
        transactions.len() == 1,
        "one transaction became {transactions:?}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_alter_table_that_is_rolled_back_leaves_rows_of_the_old_shape_and_no_schema()
-> Result<()> {
    let shop = streaming_shop().await?;
    let known = count_of(&events(&shop).await?, "schema_change");
    let open = Open::begin(&shop).await?;
    open.insert_many(10_000).await?;
    open.execute("savepoint s; alter table ledger add column extra text; alter table ledger drop column what")
        .await?;
    open.insert_into("id, extra", "", 20_000).await?;
    open.execute("rollback to s").await?;
    open.insert_many(30_000).await?;
    open.execute("commit").await?;
    // The same in a transaction that comes to nothing.
    let open = Open::begin(&shop).await?;
    open.execute("alter table ledger add column other text")
        .await?;
    open.insert_into("id, what, other", ", 'other'", 40_000)
        .await?;
    open.execute("rollback").await?;
    shop.postgres
        .execute("insert into ledger values (1, 'after')")
        .await?;

    ensure_all_equal(&shop).await?;
    let events = events(&shop).await?;
    ensure_inserted_once(&events, 10_000)?;
    ensure_nothing_of(&events, 20_000)?;
    ensure_inserted_once(&events, 30_000)?;
    ensure_nothing_of(&events, 40_000)?;
    ensure!(
        count_of(&events, "schema_change") == known,
        "a shape that was rolled back is in the log"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_alter_table_holds_from_its_place_in_the_transaction_on_and_for_those_that_follow()
-> Result<()> {
    let shop = streaming_shop().await?;
    shop.postgres
        .execute("insert into ledger values (1, 'before')")
        .await?;
    let open = Open::begin(&shop).await?;
    open.insert_many(10_000).await?;
    open.execute("alter table ledger add column extra text")
        .await?;
    open.insert_into("id, what, extra", ", 'extra ' || i", 20_000)
        .await?;
    // Others write meanwhile, to a table that only they know the shape of.
    shop.postgres
        .execute("update documents set version = 1 where id = 1; insert into documents values (1001, 1, 'new', null)")
        .await?;
    shop.caught_up().await?;
    ensure_nothing_of(&events(&shop).await?, 10_000)?;
    open.execute("update ledger set extra = 'set' where id < 10100; alter table documents add column more int; update documents set more = id where id < 20; commit")
        .await?;
    shop.postgres
        .execute("insert into ledger values (2, 'after', 'extra'); insert into documents values (1002, 1, 'new', null, 7)")
        .await?;
    ensure_all_equal(&shop).await
}

// ---- several at once

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn interleaved_transactions_come_whole_in_the_order_of_their_commits() -> Result<()> {
    let shop = streaming_shop().await?;
    let first = Open::begin(&shop).await?;
    let second = Open::begin(&shop).await?;
    let third = Open::begin(&shop).await?;
    for chunk in 0..3 {
        first.insert_many(10_000 + chunk * MANY).await?;
        second.insert_many(20_000 + chunk * MANY).await?;
        third.insert_many(30_000 + chunk * MANY).await?;
        let small = format!("insert into ledger values ({}, 'small')", chunk + 1);
        shop.postgres.execute(&small).await?;
    }
    shop.caught_up().await?;
    let files = spool_files(&shop)?;
    ensure!(files > 0, "nothing is spooled");
    let seen = events(&shop).await?;
    ensure!(
        of_ledger(&seen, 1..=3).len() == 3,
        "small transactions wait for large ones"
    );
    ensure!(
        of_ledger(&seen, 10_000..=40_000).is_empty(),
        "rows of open transactions"
    );
    second.execute("commit").await?;
    third.execute("rollback").await?;
    first.execute("commit").await?;

    ensure_all_equal(&shop).await?;
    let events = events(&shop).await?;
    ensure_nothing_of(&events, 30_000)?;
    let offsets = |from: i64| -> Vec<u64> {
        of_ledger(&events, from..=from + 3 * MANY - 1)
            .iter()
            .filter_map(|event| event["offset"].as_u64())
            .collect()
    };
    let (of_first, of_second) = (offsets(10_000), offsets(20_000));
    ensure!(of_first.len() == 3 * MANY as usize && of_second.len() == of_first.len());
    ensure!(
        of_second.last() < of_first.first(),
        "not in the order of commits"
    );
    for offsets in [of_first, of_second] {
        ensure!(
            offsets.windows(2).all(|pair| pair[0] + 1 == pair[1]),
            "rows of others are in between"
        );
    }
    let left = spool_files(&shop)?;
    ensure!(left == 0, "{left} files are left");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_streamed_transaction_brings_truncates_messages_and_unchanged_values() -> Result<()> {
    let shop = streaming_shop().await?;
    let open = Open::begin(&shop).await?;
    open.insert_many(10_000).await?;
    open.execute(
        "update documents set version = version + 1; select pg_logical_emit_message(true, 'app', 'inside');
         truncate carts, stock; insert into carts values (1, '{}', now());
         select pg_logical_emit_message(false, 'app', 'at once')",
    )
    .await?;
    open.insert_many(20_000).await?;
    host::until("the message outside transactions", CATCH_UP, async || {
        Ok(messages(&events(&shop).await?) == ["at once"])
    })
    .await?;
    open.execute("update documents set id = id + 1000 where id < 5; commit")
        .await?;

    ensure_all_equal(&shop).await?;
    let events = events(&shop).await?;
    let messages = messages(&events);
    ensure!(messages == ["at once", "inside"], "{messages:?}");
    ensure!(
        count_of(&events, "truncate") == 1,
        "{} truncates",
        count_of(&events, "truncate")
    );
    let unchanged = events.iter().filter(|event| {
        event["table"] == DOCUMENTS
            && event["op"] == "update"
            && event["unchanged"] == serde_json::json!(["body"])
    });
    ensure!(unchanged.count() >= 100, "bodies were sent, or lost");
    Ok(())
}

/// In a chunk every message has the transaction's own id, so which subtransaction it is of does not come with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_of_a_rolled_back_savepoint_is_not_taken_for_one_that_was_kept() -> Result<()> {
    let shop = streaming_shop().await?;
    let open = Open::begin(&shop).await?;
    open.execute("select pg_logical_emit_message(true, 'app', 'kept')")
        .await?;
    open.insert_many(10_000).await?;
    open.execute("savepoint s; select pg_logical_emit_message(true, 'app', 'rolled back')")
        .await?;
    open.insert_many(20_000).await?;
    open.execute("rollback to s; select pg_logical_emit_message(true, 'app', 'kept too')")
        .await?;
    open.insert_many(30_000).await?;
    open.execute("commit").await?;
    ensure_all_equal(&shop).await?;

    let events = events(&shop).await?;
    let messages = messages(&events);
    ensure!(messages == ["kept", "kept too"], "{messages:?}");
    ensure_inserted_once(&events, 10_000)?;
    ensure_nothing_of(&events, 20_000)?;
    ensure_inserted_once(&events, 30_000)
}

// ---- cut

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_is_cut_amid_a_transaction_loses_and_doubles_nothing() -> Result<()> {
    let mut shop = streaming_shop().await?;
    for (round, kill) in [(1, false), (2, true), (3, false)] {
        let from = round * 100_000;
        // Of one transaction a part lies before the cut and a part behind it; the other is complete when it comes.
        let (client, complete) = {
            let open = Open::begin(&shop).await?;
            open.insert_many(from + 10_000).await?;
            open.execute("savepoint s").await?;
            open.insert_many(from + 20_000).await?;
            open.execute("rollback to s").await?;
            open.insert_many(from + 30_000).await?;
            let complete = Open::begin(&shop).await?;
            complete.insert_many(from + 40_000).await?;
            host::until("the chunks to arrive", CATCH_UP, async || {
                Ok(spool_files(&shop)? == 2)
            })
            .await?;
            (open.client, complete.client)
        };
        if kill {
            shop.daemon.kill();
            ensure!(
                spool_files(&shop)? == 2,
                "a killed process leaves its files"
            );
            complete.batch_execute("commit").await?;
            shop.daemon.start().await?;
        } else {
            shop.postgres
                .execute("select pg_terminate_backend(active_pid) from pg_replication_slots where active")
                .await?;
            complete.batch_execute("commit").await?;
        }
        let open = Open {
            shop: &shop,
            client,
        };
        // What is acknowledged meanwhile must not lose what is open.
        shop.postgres
            .execute(&format!("insert into ledger values ({from}, 'small')"))
            .await?;
        shop.daemon.wait(CATCH_UP).await?;
        open.insert_many(from + 50_000).await?;
        open.execute("commit").await?;

        ensure_all_equal(&shop).await?;
        let events = events(&shop).await?;
        for kept in [10_000, 30_000, 40_000, 50_000] {
            ensure_inserted_once(&events, from + kept)?;
        }
        ensure_nothing_of(&events, from + 20_000)?;
        ensure!(spool_files(&shop)? == 0, "files are left");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_amid_a_transaction_is_named_and_room_lets_it_go_on() -> Result<()> {
    let Some(disk) = SmallDisk::mount(16)? else {
        return Ok(());
    };
    let postgres = streaming_postgres(Version::System).await?;
    let folder = tempfile::tempdir()?;
    let mut daemon = Daemon::new(folder.path())?;
    // Only what is spilled lies on the small disk: the journal has its own words for a full one.
    std::fs::create_dir_all(daemon.data())?;
    std::os::unix::fs::symlink(disk.path(), daemon.data().join("spill"))?;
    daemon.start().await?;
    let shop = Shop {
        daemon,
        postgres,
        folder,
    };
    shop.deliver("1s").await?;
    shop.daemon.wait(CATCH_UP).await?;
    disk.fill()?;
    let open = Open::begin(&shop).await?;
    open.insert_many(10_000).await?;
    shop.daemon
        .until_described(
            "source",
            resources::SOURCE,
            "the full disk to be named",
            CATCH_UP,
            |source| source["code"] == "DR-1101" && source["fix"].is_string(),
        )
        .await?;
    disk.make_room()?;
    open.execute("commit").await?;
    ensure_all_equal(&shop).await?;
    ensure_inserted_once(&events(&shop).await?, 10_000)?;
    let source = shop.daemon.describe("source", resources::SOURCE).await?;
    ensure!(source["code"].is_null(), "still named: {source}");
    Ok(())
}

// ---- prepared

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prepared_transaction_comes_when_it_is_committed_and_never_when_it_is_not() -> Result<()>
{
    let mut shop = streaming_shop().await?;
    for (name, from) in [("kept", 10_000), ("gone", 20_000)] {
        let open = Open::begin(&shop).await?;
        open.insert_many(from).await?;
        open.execute(&format!("prepare transaction '{name}'"))
            .await?;
    }
    shop.postgres
        .execute(
            "begin; insert into ledger values (1, 'small'); prepare transaction 'small';
             begin; insert into ledger values (2, 'small'); prepare transaction 'small and gone';
             insert into ledger values (3, 'other')",
        )
        .await?;
    shop.caught_up().await?;
    let seen = events(&shop).await?;
    ensure!(of_ledger(&seen, 3..=3).len() == 1);
    for from in [10_000, 20_000] {
        ensure_nothing_of(&seen, from)?;
    }
    shop.daemon.kill();
    shop.daemon.start().await?;
    shop.postgres.execute("rollback prepared 'gone'").await?;
    for (act, name) in [
        ("commit", "kept"),
        ("commit", "small"),
        ("rollback", "small and gone"),
    ] {
        shop.postgres
            .execute(&format!("{act} prepared '{name}'"))
            .await?;
    }

    ensure_all_equal(&shop).await?;
    let events = events(&shop).await?;
    ensure_inserted_once(&events, 10_000)?;
    ensure_nothing_of(&events, 20_000)?;
    ensure!(of_ledger(&events, 1..=1).len() == 1 && of_ledger(&events, 2..=2).is_empty());
    Ok(())
}

// ---- everything at once

/// What one session does next: SQL over keys that only it has.
fn step(random: &mut StdRng, session: i64, next: &mut i64, depth: &mut u32) -> String {
    let own = |id: i64| session * 1_000_000 + id;
    match random.random_range(0..20) {
        0..8 => {
            let from = *next;
            *next += random.random_range(1..400);
            format!(
                "insert into ledger select i, repeat('s{session} ' || i, 15) from generate_series({}, {}) i",
                own(from),
                own(*next - 1)
            )
        }
        8..11 => {
            let from = random.random_range(0..=*next);
            format!(
                "update ledger set what = what || '.' where id between {} and {}",
                own(from),
                own(from + 100)
            )
        }
        11..13 => {
            let from = random.random_range(0..=*next);
            format!(
                "delete from ledger where id between {} and {}",
                own(from),
                own(from + 20)
            )
        }
        13 => format!(
            "insert into documents values ({}, 0, repeat('body ', 900), null) on conflict (id) do update set version = documents.version + 1",
            own(random.random_range(0..50))
        ),
        14..17 => {
            *depth += 1;
            format!("savepoint s{depth}")
        }
        17 if *depth > 0 => {
            *depth -= 1;
            format!("release s{}", *depth + 1)
        }
        18..20 if *depth > 0 => format!("rollback to s{depth}"),
        _ => "select 1".to_owned(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_sessions_do_at_once_log_and_lake_are_equal_to_the_source() -> Result<()> {
    let seeds: Vec<u64> = match std::env::var("DOWNRIVER_SEED") {
        Ok(seed) => vec![seed.parse()?],
        Err(_) => vec![1, 2, 3],
    };
    let shop = streaming_shop().await?;
    for seed in seeds {
        mix(&shop, seed)
            .await
            .with_context(|| format!("DOWNRIVER_SEED={seed}"))?;
    }
    Ok(())
}

/// Version 14 streams first, and 16 and later may in parallel.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_sessions_do_at_once_log_and_lake_are_equal_to_the_source_on_14_and_18()
-> Result<()> {
    for (version, seed) in [(14, 4), (18, 5)] {
        let shop = streaming_shop_on(Version::Major(version)).await?;
        mix(&shop, seed)
            .await
            .with_context(|| format!("version {version}, DOWNRIVER_SEED={seed}"))?;
    }
    Ok(())
}

async fn mix(shop: &Shop, seed: u64) -> Result<()> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut sessions = Vec::new();
    for session in 0..4 {
        let client = shop.postgres.client().await?;
        client.batch_execute("begin").await?;
        // Keys that no other seed has.
        sessions.push((client, (seed as i64) * 10 + session, 0i64, 0u32));
    }
    let before = streamed_bytes(&shop.postgres).await?;
    for round in 0..400 {
        let (client, session, next, depth) = {
            let at = random.random_range(0..sessions.len());
            &mut sessions[at]
        };
        let sql = if random.random_bool(0.04) {
            *depth = 0;
            let end = if random.random_bool(0.7) {
                "commit"
            } else {
                "rollback"
            };
            format!("{end}; begin")
        } else {
            step(&mut random, *session, next, depth)
        };
        client
            .batch_execute(&sql)
            .await
            .with_context(|| format!("step {round}: {sql}"))?;
        if random.random_bool(0.02) {
            shop.postgres
                .execute("select pg_terminate_backend(active_pid) from pg_replication_slots where active")
                .await?;
        }
    }
    for (client, ..) in sessions {
        client.batch_execute("commit").await?;
    }
    ensure_all_equal(shop).await?;
    ensure!(
        streamed_bytes(&shop.postgres).await? > before,
        "nothing was streamed"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_origin_of_a_transaction_is_told_with_it_and_with_no_other() -> Result<()> {
    let shop = streaming_shop().await?;
    let client = shop.postgres.client().await?;
    for sql in [
        "insert into ledger values (7001, 'ours')",
        "select pg_replication_origin_create('elsewhere')",
        "select pg_replication_origin_session_setup('elsewhere')",
        "insert into ledger values (7002, 'theirs')",
        "insert into ledger select i, repeat('row ' || i || ' ', 60) from generate_series(8001, 8600) i",
        "select pg_replication_origin_session_reset()",
        "insert into ledger values (7003, 'ours')",
    ] {
        client.batch_execute(sql).await?;
    }
    shop.daemon.wait(CATCH_UP).await?;
    let logged = events(&shop).await?;
    for (id, origin) in [
        (7001, Value::Null),
        (7002, "elsewhere".into()),
        (7003, Value::Null),
    ] {
        let of = logged.iter().find(|event| event["key"]["id"] == id);
        let event = of.with_context(|| format!("no event of row {id}"))?;
        ensure!(event["origin"] == origin, "{event}");
    }
    Ok(())
}
