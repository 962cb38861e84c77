//! Parts of tables that are read again: rows of the part become the source's, and no other row is touched.

use anyhow::{Context as _, Result, ensure};
use downriver_testkit::daemon::table_in;
use downriver_testkit::workload::{Style, Workload};
use downriver_testkit::{Postgres, host, resources};
use e2e::{CATCH_UP, Shop};
use serde_json::Value;

/// A table for each type of a key, the part of it that is read again, and its keys.
const PARTS: [(&str, &str, &[&str]); 16] = [
    (
        "smallint",
        "k between -1 and 300 or k = 32767",
        &[
            "-32768", "-2", "-1", "0", "1", "299", "300", "301", "32766", "32767",
        ],
    ),
    (
        "bigint",
        "not (k < 5 or 9007199254740993 <= k)",
        &[
            "-9223372036854775808",
            "4",
            "5",
            "6",
            "9007199254740992",
            "9007199254740993",
            "9223372036854775807",
        ],
    ),
    (
        "numeric(12,2)",
        "k > 1.5 and k <= 1000000000.01",
        &[
            "-1.50",
            "1.49",
            "1.50",
            "1.51",
            "1000000000.00",
            "1000000000.01",
            "1000000000.02",
        ],
    ),
    (
        "text",
        "k in ('b', 'Zo\u{eb}', 'it''s', '') or k = 'a b'",
        &[
            "a", "b", "B", "Zo\u{eb}", "Zoe", "it's", "its", "", "a b", "a  b", "a\\b",
        ],
    ),
    (
        "varchar(5)",
        "k not in ('b', 'Zo\u{eb}')",
        &["a", "b", "b ", "B", "Zo\u{eb}", "abcde"],
    ),
    (
        "apart.citext",
        "k = 'Abc' or k = 'x'",
        &["aBc", "x", "y", "\u{dc}"],
    ),
    (
        "text collate apart.same",
        "k <> 'Abc' and k <> 'x'",
        &["aBc", "x", "y", "z"],
    ),
    (
        "mood",
        "k in ('sad', 'ok')",
        &["sad", "ok", "happy", "it's"],
    ),
    (
        "date",
        "k >= '1999-12-31' and k < '2000-03-01'",
        &[
            "0044-03-15 BC",
            "1999-12-30",
            "1999-12-31",
            "2000-02-29",
            "2000-03-01",
            "5874897-12-31",
        ],
    ),
    (
        "timestamptz",
        "k > '2001-02-03 04:05:06.789+02' or k <= '1900-01-01 00:00:00+00'",
        &[
            "0001-01-01 00:00:00+00",
            "1900-01-01 00:00:00+00",
            "1900-01-01 00:00:00.000001+00",
            "2001-02-03 02:05:06.789+00",
            "2001-02-03 02:05:06.789001+00",
        ],
    ),
    (
        "timestamp",
        "k < '2000-01-01'",
        &[
            "1999-12-31 23:59:59.999999",
            "2000-01-01",
            "2024-02-29 12:00:00",
        ],
    ),
    (
        "time",
        "k between '00:00:00.000001' and '12:00'",
        &[
            "00:00:00",
            "00:00:00.000001",
            "12:00:00",
            "12:00:00.000001",
            "23:59:59",
        ],
    ),
    (
        "uuid",
        "k > '7fffffff-ffff-ffff-ffff-ffffffffffff' and k <> 'ffffffffffffffffffffffffffffffff'",
        &[
            "00000000-0000-0000-0000-000000000000",
            "7fffffff-ffff-ffff-ffff-ffffffffffff",
            "80000000-0000-0000-0000-000000000000",
            "ffffffff-ffff-ffff-ffff-ffffffffffff",
        ],
    ),
    (
        "bytea",
        "k >= '\\x61' and k < '\\xff'",
        &[
            "\\x", "\\x60ff", "\\x61", "\\x6100", "\\xfe", "\\xff", "\\xff00",
        ],
    ),
    (
        "inet",
        "k = '10.0.0.1' or k = '::1'",
        &["10.0.0.1", "10.0.0.1/8", "::1", "::2"],
    ),
    ("whole", "k > 7", &["6", "7", "8", "100"]),
];

const PREPARE: &str = "create type mood as enum ('sad', 'ok', 'happy', 'it''s'); alter type mood owner to shop_owner;
    create domain whole as int check (value > 0); alter domain whole owner to shop_owner;
    create schema apart; create extension citext schema apart; grant usage on schema apart to public;
    create collation apart.same (provider = icu, locale = 'und-u-ks-level2', deterministic = false);";

fn create(at: usize, ty: &str, keys: &[&str]) -> String {
    let rows: Vec<String> = keys
        .iter()
        .enumerate()
        .map(|(n, key)| format!("($q${key}$q$, {n})"))
        .collect();
    // A key in three comes unseen.
    format!(
        "create table t{at} (k {ty} primary key, n int); alter table t{at} owner to shop_owner;
         create table apart.all{at} (like t{at});
         insert into apart.all{at} values {};
         insert into t{at} select * from apart.all{at} where n % 3 <> 1;
         create table apart.kept{at} as select * from t{at};",
        rows.join(", ")
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_becomes_the_sources_and_no_other_row_is_touched_whatever_the_key_is() -> Result<()>
{
    let postgres = Postgres::start().await?;
    postgres.execute(PREPARE).await?;
    for (at, (ty, _, keys)) in PARTS.iter().enumerate() {
        postgres.execute(&create(at, ty, keys)).await?;
    }
    let shop = Shop::over(postgres).await?;
    // Several chunks for each part.
    shop.deliver_with(&["snapshot: { mode: initial, chunk_rows: 2, max_workers: 2 }"])
        .await?;
    shop.daemon.wait(CATCH_UP).await?;
    for (at, (ty, part, _)) in PARTS.iter().enumerate() {
        let table = format!("t{at}");
        // Deleted, changed and new rows, in the part and outside of it.
        let unseen = format!(
            "delete from {table} where n % 3 = 0; update {table} set n = n + 100;
             insert into {table} select * from apart.all{at} where n % 3 = 1"
        );
        shop.change_unseen(&table, &unseen).await?;
        let asked = [
            "resnapshot",
            resources::PIPELINE,
            "--tables",
            &format!("public.{table}"),
            "--where",
            part,
        ];
        shop.daemon
            .ok(&asked)
            .await
            .with_context(|| format!("{ty}: {part}"))?;
    }
    shop.daemon.wait(CATCH_UP).await?;
    for (at, (ty, part, _)) in PARTS.iter().enumerate() {
        let table = format!("t{at}");
        // Texts are compared byte by byte, whatever their collation calls equal.
        let part = &match ty.contains("collate") {
            true => part.replace("k ", "k collate \"C\" "),
            false => (*part).to_owned(),
        };
        let client = shop.postgres.client().await?;
        let counts = format!(
            "select count(*) filter (where {part}), count(*) filter (where not ({part})) from apart.all{at}"
        );
        let counts = client.query_one(&counts, &[]).await?;
        let (inside, outside): (i64, i64) = (counts.get(0), counts.get(1));
        ensure!(inside > 0 && outside > 0, "{ty}: {part} is all or nothing");
        let verify = [
            "verify",
            resources::PIPELINE,
            "--tables",
            &format!("public.{table}"),
        ];
        let differs = shop.daemon.run(&verify).await?;
        ensure!(differs.code == Some(1), "{ty}: nothing differs outside");
        // What the lake is to have outside of the part is what was there before.
        let back = format!(
            "delete from {table} where not ({part}); insert into {table} select * from apart.kept{at} where not ({part})"
        );
        shop.change_unseen(&table, &back).await?;
        let equal = shop.daemon.run(&verify).await?;
        ensure!(equal.code == Some(0), "{ty}: {part}: {}", equal.text());
    }
    Ok(())
}

async fn reads_part(shop: &Shop, table: &str, part: &str) -> Result<Value> {
    let asked = [
        "resnapshot",
        resources::PIPELINE,
        "--tables",
        table,
        "--where",
        part,
        "-o",
        "json",
    ];
    shop.daemon.json(&asked).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_is_read_under_load_and_goes_on_after_kills() -> Result<()> {
    let mut shop = Shop::open(20_000).await?;
    let options = "snapshot: { mode: initial, chunk_rows: 500, max_workers: 2 }";
    shop.deliver_with(&[options]).await?;
    shop.ensure_lake_equal().await?;
    let unseen = "delete from orders where id between 2000 and 12000 and id % 50 = 1;
         update orders set total = total + 1 where id between 2000 and 12000 and id % 50 = 2";
    shop.change_unseen("orders", unseen).await?;
    let style = Style {
        scale: 20_000,
        ..Style::default()
    };
    let during = Workload::start(&shop.postgres, style);
    let answer = reads_part(&shop, "public.orders", "id between 2000 and 12000").await?;
    ensure!(
        answer["tables"][0]["generation"] == 2 && answer["where"] == "id between 2000 and 12000",
        "{answer}"
    );
    for _ in 0..3 {
        let described = shop.daemon.describe("source", resources::SOURCE).await?;
        println!("killed at {:?}", table_in(&described, "public.orders"));
        shop.daemon.kill();
        shop.daemon.start().await?;
    }
    shop.daemon.wait(CATCH_UP).await?;
    during.stop().await?;
    shop.ensure_lake_equal().await?;
    shop.daemon.ok(&["verify", resources::PIPELINE]).await?;

    // Readers of the log are told which rows were all that were read.
    let tail = [
        "tail",
        resources::SOURCE,
        "--from",
        "earliest",
        "--until",
        "latest",
        "-o",
        "json",
    ];
    let tail = shop.daemon.ok(&tail).await?;
    let events = tail.lines().map(serde_json::from_str::<Value>);
    let events = events.collect::<Result<Vec<_>, _>>()?;
    let of = |op: &str| events.iter().filter(|event| event["op"] == op).count();
    ensure!(
        of("partial_snapshot_start") == 1 && of("partial_snapshot_end") == 1,
        "{tail}"
    );
    let start = events
        .iter()
        .find(|event| event["op"] == "partial_snapshot_start");
    ensure!(
        start.is_some_and(|start| start["where"] == "id between 2000 and 12000"
            && start["table"] == "public.orders"),
        "{start:?}"
    );
    let began = events
        .iter()
        .position(|event| event["op"] == "partial_snapshot_start");
    let read = events[began.unwrap_or_default()..]
        .iter()
        .filter(|event| event["op"] == "snapshot" && event["table"] == "public.orders");
    let outside = |event: &&Value| {
        !(2000..=12000).contains(&event["after"]["id"].as_i64().unwrap_or_default())
    };
    ensure!(read.clone().count() > 5_000, "a part was read");
    ensure!(read.filter(outside).count() == 0, "rows outside were read");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_gives_way_to_the_whole_table_and_is_refused_by_name_where_it_cannot_be_read()
-> Result<()> {
    let postgres = Postgres::start().await?;
    postgres
        .execute(
            "create table notes (id bigint, tag text, body text, primary key (id, tag));
             alter table notes owner to shop_owner;
             insert into notes select i, 't' || i % 3, 'note ' || i from generate_series(1, 4000) i;
             create table pairs (a int, b char(3), c real, primary key (b, c)); alter table pairs owner to shop_owner;
             create table heap (a int); alter table heap owner to shop_owner, replica identity full;",
        )
        .await?;
    let shop = Shop::over(postgres).await?;
    let slow =
        "snapshot: { mode: initial, chunk_rows: 100, max_workers: 1, rows_per_second: 1000 }";
    shop.deliver_with(&[slow]).await?;
    let refused = async |table: &str, part: &str, code: &str, says: &str| {
        let asked = [
            "resnapshot",
            resources::PIPELINE,
            "--tables",
            table,
            "--where",
            part,
        ];
        let refused = shop.daemon.run(&asked).await?;
        let text = refused.text();
        ensure!(
            refused.code == Some(1) && text.contains(code) && text.contains(says),
            "{table} where {part}: {text}"
        );
        Ok(())
    };
    let is_read = async |what: &str| {
        shop.until_source(what, |source| {
            table_in(source, "public.notes").is_some_and(|table| {
                table["snapshot"]["rows_done"].as_u64().unwrap_or_default() > 0
                    && table["state"] == "snapshotting"
            })
        })
        .await
    };
    is_read("the first snapshot to be under way").await?;
    refused("public.notes", "id < 7", "DR-1055", "is not done").await?;
    shop.daemon.wait(CATCH_UP).await?;

    refused("public.notes", "body = 'x'", "DR-2057", "not of the key").await?;
    refused("public.notes", "tag > 't1'", "DR-2057", "can only be equal").await?;
    refused("public.notes", "id = 'seven'", "DR-2057", "seven").await?;
    refused(
        "public.notes",
        "id < 9223372036854775808",
        "DR-2057",
        "out of range",
    )
    .await?;
    refused("public.notes", "id % 2 = 0", "DR-2057", "compare").await?;
    refused("public.notes", "", "DR-2057", "no condition").await?;
    refused("public.pairs", "b = 'x'", "DR-2057", "character(3)").await?;
    refused("public.pairs", "c = 1", "DR-2057", "real").await?;
    refused("public.heap", "a = 1", "DR-2057", "without a key").await?;
    // Of all tables at once, or of none.
    refused("public.*", "id = 1", "DR-2057", "not of the key").await?;

    // Another type overtakes a part that is being read: the whole table follows.
    shop.change_unseen("notes", "update notes set body = 'unseen' where id % 7 = 0")
        .await?;
    reads_part(&shop, "public.notes", "tag = 't1' and id <= 3000").await?;
    is_read("the part to be under way").await?;
    refused("public.notes", "id < 7", "DR-1055", "is not done").await?;
    shop.postgres
        .execute("alter table notes alter id type numeric(20,0); insert into notes values (5000, 't1', 'new')")
        .await?;
    shop.daemon.wait(CATCH_UP).await?;
    shop.daemon.ok(&["verify", resources::PIPELINE]).await?;

    // So does whoever asks for all of it.
    shop.change_unseen(
        "notes",
        "update notes set body = 'again' where id % 5 = 0; delete from notes where id % 11 = 0",
    )
    .await?;
    reads_part(&shop, "public.notes", "id > 100.5")
        .await
        .map(drop)
        .ok();
    reads_part(&shop, "public.notes", "id > 100").await?;
    is_read("the part to be under way").await?;
    let whole = [
        "resnapshot",
        resources::PIPELINE,
        "--tables",
        "public.notes",
    ];
    shop.daemon.ok(&whole).await?;
    shop.daemon.wait(CATCH_UP).await?;
    shop.daemon.ok(&["verify", resources::PIPELINE]).await?;

    // In a hole everything has to be read.
    host::until("the slot to be dropped", CATCH_UP, async || {
        let drop = "select pg_terminate_backend(active_pid) from pg_replication_slots where active;
                    select pg_drop_replication_slot(slot_name) from pg_replication_slots";
        Ok(shop.postgres.execute(drop).await.is_ok())
    })
    .await?;
    shop.until_stopped("DR-1020").await?;
    refused("public.notes", "id < 7", "DR-1055", "hole").await
}
