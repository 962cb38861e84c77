//! Parts of tables that are read again: rows of the part become the source's, and no other row is touched.

use anyhow::{Context as _, Result, ensure};
use downriver_testkit::mysql::{Mysql, Product};
use downriver_testkit::resources;
use e2e::CATCH_UP;
use e2e::log;
use e2e::mysql::Shop;
use mysql_async::prelude::Queryable as _;

/// A table for each type of a key, the part of it that is read again, the same in the server's words where these differ,
/// and its keys.
const PARTS: [(&str, &str, Option<&str>, &[&str]); 17] = [
    (
        "smallint",
        "k between -1 and 300 or k = 32767",
        None,
        &[
            "-32768", "-2", "-1", "0", "1", "299", "300", "301", "32766", "32767",
        ],
    ),
    (
        "bigint",
        "not (k < 5 or 9007199254740993 <= k)",
        None,
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
        "bigint unsigned",
        "k >= 9223372036854775808 or k = 7",
        None,
        &[
            "0",
            "7",
            "8",
            "9223372036854775807",
            "9223372036854775808",
            "18446744073709551615",
        ],
    ),
    (
        "int unsigned",
        "k > -5 and k <= 4000000000",
        None,
        &["0", "1", "4000000000", "4000000001", "4294967295"],
    ),
    (
        "decimal(12,2)",
        "k > 1.5 and k <= 1000000000.01",
        None,
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
        "varchar(20)",
        "k in ('b', 'Zo\u{eb}', 'it''s', '') or k = 'a b'",
        Some("binary k in ('b', 'Zo\u{eb}', 'it''s', '', 'a b')"),
        &[
            "a", "b", "c", "Zo\u{eb}", "x", "it's", "its", "", "a b", "a  b", "a\\b",
        ],
    ),
    (
        // Case makes no difference for its collation.
        "varchar(20)",
        "k not in ('B', 'Zo\u{eb}')",
        Some("binary k not in ('B', 'Zo\u{eb}')"),
        &["a", "b", "Zo\u{eb}", "abcde", "c"],
    ),
    (
        "varchar(20) character set latin1",
        "k in ('\u{e9}', 'x', '\u{6f22}')",
        Some("convert(k using utf8mb4) collate utf8mb4_bin in ('\u{e9}', 'x')"),
        &["\u{e9}", "e2", "x", "y", "z"],
    ),
    (
        "char(5)",
        "k <> 'Abc' and k <> 'x'",
        Some("binary k not in ('Abc', 'x')"),
        &["aBc", "x", "y", "z", ""],
    ),
    (
        "enum('sad', 'ok', 'happy', 'it''s')",
        "k not in ('sad', 'ok')",
        None,
        &["sad", "ok", "happy", "it's"],
    ),
    (
        "date",
        "k >= '1999-12-31' and k < '2000-03-01'",
        None,
        &[
            "1000-01-01",
            "1999-12-30",
            "1999-12-31",
            "2000-02-29",
            "2000-03-01",
            "9999-12-31",
        ],
    ),
    (
        "timestamp(6)",
        "k > '2001-02-03 02:05:06.789' or k <= '1980-01-01'",
        None,
        &[
            "1970-01-02 00:00:00",
            "1980-01-01 00:00:00",
            "1980-01-01 00:00:00.000001",
            "2001-02-03 02:05:06.789",
            "2001-02-03 02:05:06.789001",
        ],
    ),
    (
        "datetime",
        "k < '2000-01-01'",
        None,
        &[
            "1000-01-01 00:00:00",
            "1999-12-31 23:59:59",
            "2000-01-01 00:00:00",
            "9999-12-31 23:59:59",
        ],
    ),
    (
        "time(2)",
        "k not in ('12:00:00.00', '-01:00:00.50', '12:00')",
        Some("k not in ('12:00:00.00', '-01:00:00.50')"),
        &[
            "-838:59:59.00",
            "-01:00:00.50",
            "00:00:00.00",
            "12:00:00.00",
            "12:00:00.01",
        ],
    ),
    (
        "varbinary(10)",
        "k >= '\\x61' and k < '\\xff'",
        Some("k >= X'61' and k < X'ff'"),
        &["", "`z", "a", "a0", "b", "\u{ff}"],
    ),
    ("bit(10)", "k > 7", Some("k > 7"), &["6", "7", "8", "100"]),
    (
        "year",
        "k between 0 and 1999",
        Some("(k + 0) between 0 and 1999"),
        &["0", "1901", "1999", "2000", "2155"],
    ),
];

fn create(at: usize, ty: &str, keys: &[&str]) -> String {
    let is_number =
        ty.contains("int") || ty.contains("decimal") || ty.contains("bit") || ty == "year";
    let rows: Vec<String> = keys
        .iter()
        .enumerate()
        .map(|(n, key)| match is_number {
            true => format!("({key} + 0, {n})"),
            false => {
                let key = key.replace('\\', "\\\\").replace('\'', "''");
                format!("('{key}', {n})")
            }
        })
        .collect();
    // A key in three comes unseen.
    format!(
        "create table t{at} (k {ty} primary key, n int);
         create table apart.all{at} like t{at};
         insert into apart.all{at} values {};
         insert into t{at} select * from apart.all{at} where n % 3 <> 1;
         create table apart.kept{at} like t{at};
         insert into apart.kept{at} select * from t{at};",
        rows.join(", ")
    )
}

/// Changes that the binlog does not have.
async fn change_unseen(mysql: &Mysql, statements: &str) -> Result<()> {
    mysql
        .execute(&format!(
            "set sql_log_bin = 0; {statements}; set sql_log_bin = 1"
        ))
        .await
}

async fn a_part_becomes_the_sources(product: Product) -> Result<()> {
    let shop = Shop::open(product).await?;
    shop.mysql.execute("create database apart").await?;
    for (at, (ty, _, _, keys)) in PARTS.iter().enumerate() {
        let created = shop.mysql.execute(&create(at, ty, keys)).await;
        created.with_context(|| (*ty).to_owned())?;
    }
    // Several chunks for each part.
    let options = ["snapshot: { mode: initial, chunk_rows: 2, max_workers: 2 }"];
    shop.deliver_with(&["shop.*"], &options).await?;
    shop.daemon.wait(CATCH_UP).await?;
    for (at, (ty, part, _, _)) in PARTS.iter().enumerate() {
        let table = format!("t{at}");
        // Deleted, changed and new rows, in the part and outside of it.
        let unseen = format!(
            "delete from {table} where n % 3 = 0; update {table} set n = n + 100;
             insert into {table} select * from apart.all{at} where n % 3 = 1"
        );
        change_unseen(&shop.mysql, &unseen).await?;
        let table = format!("shop.{table}");
        let asked = [
            "resnapshot",
            resources::PIPELINE,
            "--tables",
            &table,
            "--where",
            part,
        ];
        shop.daemon
            .ok(&asked)
            .await
            .with_context(|| format!("{ty}: {part}"))?;
    }
    shop.daemon.wait(CATCH_UP).await?;
    for (at, (ty, part, sql, _)) in PARTS.iter().enumerate() {
        let table = format!("t{at}");
        let part = sql.unwrap_or(part);
        let mut client = shop.mysql.client().await?;
        let counts = format!(
            "select count(case when {part} then 1 end), count(case when not ({part}) then 1 end) from apart.all{at}"
        );
        let counts: Option<(u64, u64)> = client.query_first(counts).await?;
        let (inside, outside) = counts.context("counts")?;
        ensure!(inside > 0 && outside > 0, "{ty}: {part} is all or nothing");
        let name = format!("shop.{table}");
        let verify = ["verify", resources::PIPELINE, "--tables", &name];
        let differs = shop.daemon.run(&verify).await?;
        ensure!(differs.code == Some(1), "{ty}: nothing differs outside");
        // What the lake is to have outside of the part is what was there before.
        let back = format!(
            "delete from {table} where not ({part}); insert into {table} select * from apart.kept{at} where not ({part})"
        );
        change_unseen(&shop.mysql, &back).await?;
        let equal = shop.daemon.run(&verify).await?;
        ensure!(equal.code == Some(0), "{ty}: {part}: {}", equal.text());
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_of_mysql_becomes_the_sources_and_no_other_row_is_touched_whatever_the_key_is()
-> Result<()> {
    a_part_becomes_the_sources(Product::Mysql9).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_of_mariadb_becomes_the_sources_and_no_other_row_is_touched_whatever_the_key_is()
-> Result<()> {
    a_part_becomes_the_sources(Product::Mariadb11).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_is_read_while_rows_change_and_goes_on_after_kills() -> Result<()> {
    let mut shop = Shop::open(Product::Mysql9).await?;
    shop.fill(6_000).await?;
    let options = ["snapshot: { mode: initial, chunk_rows: 200, max_workers: 2 }"];
    shop.deliver_with(&["shop.*"], &options).await?;
    shop.ensure_equal(&["orders", "pairs"]).await?;
    change_unseen(
        &shop.mysql,
        "delete from orders where id between 1000 and 5000 and id % 50 = 1;
         update orders set total = total + 1 where id between 1000 and 5000 and id % 50 = 2",
    )
    .await?;
    let part = "id between 1000 and 5000";
    let asked = [
        "resnapshot",
        resources::PIPELINE,
        "--tables",
        "shop.orders",
        "--where",
        part,
        "-o",
        "json",
    ];
    let stop = tokio_util::sync::CancellationToken::new();
    let writing = e2e::mysql::change(&shop.mysql, 11, stop.clone());
    let daemon = &mut shop.daemon;
    let reading = async {
        let answer = daemon.json(&asked).await;
        for _ in 0..2 {
            daemon.kill();
            daemon.start().await?;
        }
        let waited = daemon.wait(CATCH_UP).await;
        stop.cancel();
        waited?;
        answer
    };
    let (written, answer) = tokio::join!(writing, reading);
    let answer = answer?;
    ensure!(written? > 0);
    ensure!(
        answer["tables"][0]["generation"] == 2 && answer["where"] == part,
        "{answer}"
    );
    shop.ensure_equal(&["orders", "pairs"]).await?;
    let events = log::events_of(&shop.daemon).await?;
    let of = |op: &str| events.iter().filter(|event| event["op"] == op).count();
    ensure!(of("partial_snapshot_start") == 1 && of("partial_snapshot_end") == 1);
    let began = events
        .iter()
        .position(|event| event["op"] == "partial_snapshot_start");
    let read = events[began.unwrap_or_default()..]
        .iter()
        .filter(|event| event["op"] == "snapshot" && event["table"] == "shop.orders");
    let outside = |event: &&serde_json::Value| {
        let id = event["after"]["id"].as_str().and_then(|id| id.parse().ok());
        !(1000..=5000).contains(&id.unwrap_or_default())
    };
    ensure!(read.clone().count() > 3_000, "the part was not read");
    ensure!(read.filter(outside).count() == 0, "rows outside were read");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_selects_no_part_is_refused_by_name() -> Result<()> {
    let shop = Shop::open(Product::Mariadb11).await?;
    shop.mysql
        .execute(
            "create table sets (s set('a','b') primary key);
             create table reals (r double primary key);
             create table heap (a int)",
        )
        .await?;
    shop.deliver(&["shop.*"]).await?;
    shop.daemon.wait(CATCH_UP).await?;
    for (table, part) in [
        ("orders", "total > 5"),
        ("orders", "id > 'x'"),
        ("orders", "id < 5 and note = 'a'"),
        ("customers", "code > 'a'"),
        ("sets", "s = 'a'"),
        ("reals", "r = 1"),
        ("heap", "a = 1"),
    ] {
        let table = format!("shop.{table}");
        let asked = [
            "resnapshot",
            resources::PIPELINE,
            "--tables",
            &table,
            "--where",
            part,
        ];
        let answer = shop.daemon.run(&asked).await?;
        ensure!(
            answer.text().contains("DR-2057"),
            "{part}: {}",
            answer.text()
        );
    }
    Ok(())
}
