//! MariaDB's types that the binlog does not tell from `binary(n)`: they are what the table had at the row's place, whatever
//! it has by now.

use anyhow::{Context as _, Result, ensure};
use downriver_testkit::mysql::Product;
use downriver_testkit::readers::{self, Lake};
use downriver_testkit::{daemon, host};
use e2e::log;
use e2e::mysql::Shop;

const LOAD: &str = include_str!("binlog/natives.sql");
const TABLES: [&str; 3] = ["natives", "ids", "raw"];

/// A uuid of the number, as it is written in statements.
fn uuid(number: u32) -> String {
    format!("'{number:08x}-0000-1000-8000-0000000000ff'")
}

/// Whether each row of a table that the log has is of one of these forms, by its column `n`; how many rows have each.
async fn forms(shop: &Shop, table: &str, column: &str) -> Result<(usize, usize)> {
    let (mut uuids, mut bytes) = (0, 0);
    for event in log::events_of(&shop.daemon).await? {
        let row = &event["after"];
        if event["table"] != format!("shop.{table}") || row.is_null() {
            continue;
        }
        let number = row["n"].as_u64().context("a number")?;
        let number = u32::try_from(number)?;
        let text = uuid(number);
        let text = text.trim_matches('\'');
        match row[column].as_str().context("a value")? {
            value if value == text => uuids += 1,
            value if value == format!("\\x{}", text.replace('-', "")) => bytes += 1,
            value => anyhow::bail!("{value}, not {text}: {event}"),
        }
    }
    Ok((uuids, bytes))
}

async fn are_mirrored(product: Product, metadata: &str) -> Result<()> {
    let setting = format!("binlog-row-metadata = {metadata}");
    let shop = Shop::open_with(product, &[&setting]).await?;
    shop.mysql.execute(LOAD).await?;
    shop.mysql
        .execute(
            "create table ids (id uuid primary key, n int not null, a inet6, b inet4);
             create table raw (id binary(16) primary key, n int not null);
             insert into ids select v, id, b, a from natives where id < 100;
             insert into raw values (unhex(md5(1)), 1), ('', 2)",
        )
        .await?;
    shop.deliver(&["shop.*"]).await?;
    shop.ensure_equal(&TABLES).await?;
    let snapshots = shop.snapshots().await?;

    // Rows of all kinds, and changes of the table that leave its values alone.
    shop.mysql
        .execute(
            "update ids set a = '::ffff:9.8.7.6', b = '0.0.0.0' where n % 3 = 0;
             update ids set id = concat('c0000000-0000-4000-8000-', lpad(n, 12, '0')) where n % 5 = 0;
             delete from ids where n % 7 = 0;
             insert into ids values ('00000000-0000-0000-0000-000000000000', 1000, '::', '0.0.0.0');
             alter table ids add column more uuid null, add column bits binary(16) null;
             insert into ids values ('ffffffff-ffff-ffff-ffff-ffffffffff00', 1001, '1::', null, '00000000-0000-0000-0000-00000000000a', 'b');
             alter table ids rename column more to other, drop column b;
             update ids set other = id, bits = 'c' where n > 90;
             update natives set a = '1.2.3.0', b = '::1:0', u = c where id > 250;
             insert into raw values ('x', 3)",
        )
        .await?;
    shop.ensure_equal(&TABLES).await?;
    ensure!(
        shop.snapshots().await? == snapshots,
        "a table was read again"
    );
    shop.verify(
        &TABLES
            .map(|table| format!("shop.{table}"))
            .each_ref()
            .map(String::as_str),
    )
    .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn native_types_of_mariadb_10_are_mirrored() -> Result<()> {
    are_mirrored(Product::Mariadb10, "FULL").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn native_types_of_mariadb_11_are_mirrored() -> Result<()> {
    are_mirrored(Product::Mariadb11, "FULL").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn native_types_are_mirrored_though_the_binlog_names_no_columns() -> Result<()> {
    are_mirrored(Product::Mariadb10, "NO_LOG").await?;
    are_mirrored(Product::Mariadb11, "MINIMAL").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_uuid_that_the_server_does_not_find_stops_its_table() -> Result<()> {
    let shop = Shop::open(Product::Mariadb11).await?;
    // Bytes of no version and variant, that are shown as others.
    shop.mysql
        .execute(
            "create table mixed (id uuid primary key, n int);
             insert into mixed with recursive n as (select 0 as m union all select m + 1 from n where m < 255) select unhex(md5(m)), m from n;
             create table fine (id uuid primary key, n int);
             insert into fine select concat(left(id, 14), '4', mid(id, 16, 4), '8', right(id, 16)), n from mixed",
        )
        .await?;
    let options = ["snapshot: { mode: initial, chunk_rows: 1 }"];
    shop.deliver_with(&["shop.*"], &options).await?;
    let stopped = |source: &serde_json::Value| {
        let table = daemon::table_in(source, "shop.mixed");
        table.is_some_and(|table| table["code"] == "DR-1095" && table["fix"].is_string())
    };
    shop.until_source("the table to stop", stopped).await?;
    let lake = Lake::builtin(&shop.daemon)?;
    host::until("the other to be whole", e2e::CATCH_UP, async || {
        let compared = readers::ensure_equal_mysql(&shop.mysql, &lake, &["fine"]).await;
        Ok(compared.is_ok_and(|rows| rows == 256))
    })
    .await
}

/// Tables whose column is a uuid for a while and bytes for another, while nobody looks.
async fn are_what_they_were(product: Product, metadata: &str) -> Result<()> {
    let setting = format!("binlog-row-metadata = {metadata}");
    let mut shop = Shop::open_with(product, &[&setting]).await?;
    // By their number; `once` is changed once, `twice` there and back.
    let insert = |table: &str, numbers: std::ops::Range<u32>| {
        let rows = numbers.map(|number| {
            let hex = uuid(number).replace(['-', '\''], "");
            format!("(X'{hex}', {number})")
        });
        let rows: Vec<String> = rows.collect();
        format!("insert into {table} values {};", rows.join(", "))
    };
    let create = "create table once (id uuid primary key, n int not null);
                  create table twice (id uuid primary key, n int not null);
                  create table back (id binary(16) primary key, n int not null);
                  create table asleep (id uuid primary key, n int not null);";
    let tables = ["once", "twice", "back", "asleep"];
    let first = tables.map(|table| insert(table, 0..5)).concat();
    shop.mysql.execute(&format!("{create}{first}")).await?;
    shop.deliver(&["shop.*"]).await?;
    shop.ensure_equal(&tables).await?;
    let snapshots = shop.snapshots().await?;

    // One change is captured, and no row behind it when the daemon is killed.
    shop.mysql
        .execute("alter table asleep modify id binary(16)")
        .await?;
    shop.ensure_equal(&tables).await?;
    shop.daemon.kill();
    let backlog = [
        insert("once", 10..15),
        insert("twice", 10..15),
        insert("back", 10..15),
        insert("asleep", 10..15),
        "alter table once modify id binary(16);".into(),
        "alter table twice modify id binary(16);".into(),
        "alter table back modify id uuid;".into(),
        insert("once", 20..25),
        insert("twice", 20..25),
        insert("back", 20..25),
        "alter table twice modify id uuid;".into(),
        insert("twice", 30..35),
        "update twice set n = n where n < 3; delete from once where n = 11; delete from back where n = 22;".into(),
    ];
    shop.mysql.execute(&backlog.concat()).await?;
    shop.daemon.start().await?;
    shop.ensure_equal(&tables).await?;
    ensure!(
        shop.snapshots().await? > snapshots,
        "nothing was read again"
    );
    for table in tables {
        let (uuids, bytes) = forms(&shop, table, "id").await?;
        println!("{product:?} {metadata} {table}: {uuids} uuids, {bytes} bytes");
        ensure!(uuids > 0 && (bytes > 0 || table == "twice"), "{table}");
    }
    shop.verify(&["shop.once", "shop.twice", "shop.back", "shop.asleep"])
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_of_mariadb_10_have_the_types_of_their_place() -> Result<()> {
    are_what_they_were(Product::Mariadb10, "FULL").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_of_mariadb_11_have_the_types_of_their_place() -> Result<()> {
    are_what_they_were(Product::Mariadb11, "FULL").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_without_names_have_the_types_of_their_place() -> Result<()> {
    are_what_they_were(Product::Mariadb11, "NO_LOG").await
}
