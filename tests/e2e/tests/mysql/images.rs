//! Rows that are logged without all of their columns (`binlog_row_image` is MINIMAL or NOBLOB): what an insert leaves out is
//! the column's default at that place of the binlog, and what an update leaves out is as it was. After each step the lake is
//! equal to the server.

use anyhow::{Context as _, Result, ensure};
use downriver_testkit::mysql::Product;
use downriver_testkit::{daemon, resources};
use e2e::mysql::Shop;
use e2e::{CATCH_UP, log};

const TABLES: [&str; 7] = [
    "defaults", "implied", "keyless", "by_index", "blobs", "twice", "queue",
];
const SCHEMA: &str = "
    set session time_zone = '+05:00';
    create table defaults (id int auto_increment primary key, a int default 7, b bigint unsigned default 18446744073709551615,
        c decimal(20,6) default -12.5, d varchar(20) character set latin1 default 'Zo\u{eb}', e char(4) default 'x ',
        f timestamp default '2020-06-01 12:00:00', g datetime(3) default '2020-06-01 12:00:00.125', h date default '2020-06-01',
        i time(2) default '-11:22:33.5', j year default 1999, k enum('p','q') default 'q', l set('r','s') default 'r,s',
        m bit(9) default b'101', n binary(4) default 'ab', o double default 0.1, p float default 0.1, q text, r json,
        s timestamp(6) default current_timestamp(6) on update current_timestamp(6), t varchar(40) default (uuid()),
        u int as (a + 1) stored, v int as (a + 2) virtual, w tinyint unsigned not null default 200,
        x varchar(9) default '\u{1f600}?', y varbinary(4) default 0x61006200, z float default 16777217,
        aa varchar(9) character set latin1 not null default '\u{eb}', ab datetime not null default '2020-06-01 12:00:00');
    create table implied (id int primary key, a int not null, b decimal(9,3) not null, c varchar(9) not null, d binary(3) not null,
        e date not null, f datetime not null, g time not null, h year not null, i enum('p','q') not null, j set('p','q') not null,
        k bit(3) not null, l double not null, m text not null, n blob not null, o varchar(9));
    create table keyless (a int, b text, c int default 3);
    create table by_index (a int not null, b int not null, c text, d text, unique key (b));
    create table blobs (id int primary key, a text, b blob, c json, d int default 3);
    create table twice (id int primary key, a int default 1, b int default 2);
    create table queue (id int auto_increment primary key, what varchar(20) default 'job', done int);
    insert into defaults (a) values (1), (null);
    insert into implied (id, o) values (1, 'o');
    insert into keyless values (1, 'x', 1), (1, 'x', 1), (2, null, null);
    insert into by_index values (1, 1, 'c', 'd');
    insert into blobs values (1, 'a', 'b', '{\"k\": 1}', 1);";
/// Rows that come with number `at` and those behind it.
fn changes(at: u32) -> String {
    let (one, two, three) = (at + 1, at + 2, at + 3);
    format!(
        "
    insert into defaults () values (), (); insert into defaults (c, q) values (3, 'text'); insert into defaults (id, a) values ({at}, 50);
    update defaults set a = {at} where id = 1; update defaults set q = repeat('q', 9000) where id = 2;
    update defaults set d = 'n', w = 1 where id = {at}; replace into defaults (id, c) values ({at}, 5);
    insert into defaults (id, c) values ({at}, 9) on duplicate key update c = 11, a = a + 1;
    update defaults set id = {one} where id = {at}; delete from defaults where id = 2;
    insert into implied (id) values ({at}), ({one}); update implied set c = 'c' where id = {one};
    insert into implied (id, a, o) values ({two}, 4, null);
    insert into keyless (a) values (1), (7); update keyless set c = 8 where a = 7; update keyless set b = 'y' where a = 1 limit 1;
    delete from keyless where a = 2; insert into keyless (b) values ('only');
    insert into by_index (a, b) values (2, {at}), (3, {one}); update by_index set c = 'x' where b = {at};
    update by_index set a = {at} where b = 1; update by_index set b = {two} where b = {one}; delete from by_index where b = {at};
    set session binlog_row_image = NOBLOB;
    insert into blobs (id) values ({at}), ({one}); insert into blobs values ({two}, 'a', 'b', '[1]', 4); update blobs set d = {at};
    update blobs set a = 'n' where id = {two}; replace into blobs (id, d) values ({three}, 5), (1, 5); delete from blobs where id = {at};
    insert into keyless (a, b) values (9, 'nine'); update keyless set c = 1 where a = 9;"
    )
}

async fn is_mirrored(settings: &[&str]) -> Result<()> {
    let settings = [&["binlog-row-image = MINIMAL"], settings].concat();
    let mut shop = Shop::open_with(Product::Mysql9, &settings).await?;
    shop.mysql.execute(SCHEMA).await?;
    shop.deliver(&["shop.*"]).await?;
    shop.until_streaming().await?;
    shop.ensure_equal(&TABLES).await?;
    let snapshots = shop.snapshots().await?;

    shop.mysql.execute(&changes(50)).await?;
    shop.ensure_equal(&TABLES).await.context("changes")?;
    // A table that is empty whenever somebody looks.
    let jobs = "insert into queue () values (); delete from queue;";
    shop.mysql.execute(&jobs.repeat(20)).await?;
    // A default holds for what comes behind it.
    for statements in [
        "insert into twice (id) values (0)",
        "alter table twice alter column a set default 10; insert into twice (id) values (1)",
        "alter table twice alter column a drop default, alter column b set default 20; insert into twice (id, a) values (2, 2)",
        "alter table twice modify column a int default 30 after b; insert into twice (id, b) values (3, 3)",
    ] {
        shop.mysql.execute(statements).await?;
        shop.ensure_equal(&TABLES).await.context(statements)?;
    }
    shop.daemon.kill();
    shop.daemon.start().await?;
    shop.mysql.execute(&changes(150)).await?;
    shop.ensure_equal(&TABLES).await.context("a restart")?;
    let events = log::events_of(&shop.daemon).await?;
    let filled = events.iter().find(|event| {
        event["op"] == "insert" && event["table"] == "shop.twice" && event["after"]["id"] == 1
    });
    let filled = filled.context("the row that was logged without its defaults")?;
    ensure!(
        filled["after"]["a"] == 10 && filled["after"]["b"] == 2,
        "{filled}"
    );
    let changed = events.iter().find(|event| {
        event["op"] == "update" && event["table"] == "shop.by_index" && event["after"]["c"] == "x"
    });
    let changed = changed.context("an update that was logged in part")?;
    ensure!(
        changed["unchanged"] == serde_json::json!(["a", "d"]),
        "{changed}"
    );
    ensure!(
        shop.snapshots().await? == snapshots,
        "a table was read again"
    );

    // What it was like in the backlog nobody knows any more: what is passed over there is read again.
    shop.daemon.stop()?;
    shop.mysql
        .execute(
            "insert into twice (id, a) values (4, 4); update twice set a = 5 where id = 4;
             alter table twice alter column b set default 40; insert into twice (id, a) values (5, 5);
             alter table twice add column c int default 30; insert into twice (id, a) values (6, 6); delete from twice where id = 1",
        )
        .await?;
    shop.daemon.start().await?;
    shop.ensure_equal(&TABLES).await.context("a backlog")?;
    shop.mysql
        .execute("insert into twice (id, a) values (7, 7); update twice set a = 8 where id = 7")
        .await?;
    shop.ensure_equal(&TABLES)
        .await
        .context("behind a backlog")?;
    shop.daemon.ok(&["verify", resources::PIPELINE]).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_mysql_logs_in_part_are_whole() -> Result<()> {
    is_mirrored(&[]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_mysql_logs_in_part_and_without_names_are_whole() -> Result<()> {
    is_mirrored(&["binlog-row-metadata = MINIMAL"]).await
}

/// There `REPLACE` is logged without the columns that it sets to their defaults.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_mariadb_logs_in_part_are_refused() -> Result<()> {
    let shop = Shop::open(Product::Mariadb11).await?;
    shop.mysql
        .execute("create table t (id int primary key, a int, b text); insert into t values (1, 1, 'b'), (2, 2, 'c')")
        .await?;
    shop.deliver(&["shop.*"]).await?;
    shop.until_streaming().await?;
    // Nothing is missing of it.
    shop.mysql
        .execute("set session binlog_row_image = NOBLOB; update t set b = 'n' where id = 2; delete from t where id = 2")
        .await?;
    shop.ensure_equal(&["t"]).await?;
    shop.mysql
        .execute("set session binlog_row_image = NOBLOB; replace into t (id, a) values (1, 5)")
        .await?;
    let refused = shop
        .until_source("the table to be refused", |source| {
            daemon::table_in(source, "shop.t").is_some_and(|table| table["code"] == "DR-1081")
        })
        .await?;
    let table = daemon::table_in(&refused, "shop.t").context("the table")?;
    ensure!(table["state"] == "refused", "{table}");
    shop.daemon
        .ok(&["resnapshot", resources::PIPELINE, "--tables", "shop.t"])
        .await?;
    shop.daemon.wait(CATCH_UP).await?;
    shop.ensure_equal(&["t"]).await?;

    shop.mysql
        .execute("set global binlog_row_image = NOBLOB")
        .await?;
    let source = resources::mysql_source(&shop.mysql, &["shop.*"], &["snapshot: none"]);
    let refused = shop.daemon.try_apply(&source).await?;
    ensure!(refused.code == Some(1), "{}", refused.text());
    ensure!(refused.text().contains("DR-1081"), "{}", refused.text());
    Ok(())
}
