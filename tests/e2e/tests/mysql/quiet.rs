//! Changes of tables that no row tells of: the log and the lake have them all the same, and nothing of before stays.

use anyhow::{Result, ensure};
use downriver_testkit::mysql::Product;
use e2e::log;
use e2e::mysql::Shop;
use serde_json::Value;

const TABLES: [&str; 9] = [
    "shapes", "again", "heap", "pair", "single", "doubles", "texts", "made", "gone",
];
const SCHEMA: &str = "
    create table shapes (id int primary key, a int, b varchar(20));
    create table again (id int primary key, a int, b int);
    create table heap (a int, b int);
    create table pair (a int, b int, c int, primary key (a, b));
    create table single (a int not null, b varchar(20), unique key u (a));
    create table doubles (id int primary key, a int);
    create table texts (id int primary key, v varchar(40) character set utf8mb4, w varchar(40) character set utf8mb4);
    create table made (id int primary key, a int);
    create table gone (id int primary key, a int);
    create table away (id int primary key);
    insert into shapes values (1, 1, 'a'), (2, 2, 'b');
    insert into again values (1, 1, 10), (2, 2, 20);
    insert into heap values (1, 10), (1, 10), (2, 20);
    insert into pair values (1, 1, 10), (2, 2, 20);
    insert into single values (1, 'a'), (2, 'b');
    insert into doubles values (1, 1), (2, 1), (3, 3);
    insert into texts values (1, 'ä', 'é'), (2, '東', 'ö');
    insert into made values (1, 1);
    insert into gone values (1, 1), (2, 2);";

async fn are_told(product: Product, settings: &[&str]) -> Result<()> {
    let mut shop = Shop::open_with(product, settings).await?;
    shop.mysql.execute(SCHEMA).await?;
    shop.deliver(&["shop.*"]).await?;
    shop.ensure_equal(&TABLES).await?;

    let equal = async |shop: &Shop| -> Result<()> {
        shop.ensure_equal(&TABLES).await?;
        let tables = TABLES.map(|table| format!("shop.{table}"));
        shop.verify(&tables.each_ref().map(String::as_str)).await
    };
    shop.mysql
        .execute("alter table shapes add column c int, drop column a, rename column b to d")
        .await?;
    equal(&shop).await?;
    // A column that is made under the name of one that is gone is another.
    for table in ["again", "heap"] {
        shop.mysql
            .execute(&format!(
                "alter table {table} drop column b; alter table {table} add column b int"
            ))
            .await?;
    }
    shop.mysql
        .execute("alter table pair drop primary key, add primary key (a), drop column b; alter table pair add column b int")
        .await?;
    equal(&shop).await?;
    shop.mysql
        .execute("drop index u on single; insert into single values (1, 'a'), (1, 'c'); delete from single where b = 'b'")
        .await?;
    shop.mysql
        .execute("create table if not exists shapes (x int); drop table gone, away; create table gone (id int primary key, b int)")
        .await?;
    if product.is_mariadb() {
        shop.mysql
            .execute("alter ignore table doubles add unique key (a); create or replace table made (id int primary key, b int)")
            .await?;
    }
    equal(&shop).await?;

    // While nobody listens, and between rows.
    shop.daemon.kill();
    shop.mysql
        .execute(
            "set session sql_mode = '';
             alter table shapes add column e int;
             update texts set v = concat(v, '!');
             alter table texts convert to character set latin1;
             update texts set w = concat(w, '!');
             alter table texts modify v varchar(40) character set gbk, modify w varchar(40) character set utf8mb4;
             update texts set v = '東', w = '東' where id = 1",
        )
        .await?;
    shop.daemon.start().await?;
    equal(&shop).await?;
    // Of temporary tables that hide others.
    shop.mysql
        .execute(
            "set session binlog_format = STATEMENT;
             create temporary table shapes (id int primary key, d int); create temporary table again (id int primary key);
             alter table shapes drop column d;
             truncate table again",
        )
        .await?;
    equal(&shop).await?;
    // Of a session that has others, which hide nothing.
    shop.mysql
        .execute(
            "create procedure load_made() begin
                create temporary table stage (id int);
                truncate table made; insert into made (id) values (9);
                alter table again add column d int, drop column b;
                drop temporary table stage;
             end;
             call load_made()",
        )
        .await?;
    equal(&shop).await?;
    let events = log::events_of(&shop.daemon).await?;
    let of_made = |event: &&Value| event["table"] == "shop.made" && event["op"] == "truncate";
    ensure!(events.iter().filter(of_made).count() == 1);
    shop.daemon.kill();
    shop.daemon.start().await?;
    equal(&shop).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_of_mysql_that_no_row_tells_of_are_told() -> Result<()> {
    are_told(Product::Mysql9, &[]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_of_mysql_that_no_row_tells_of_are_told_where_the_binlog_names_no_columns()
-> Result<()> {
    are_told(Product::Mysql9, &["binlog-row-metadata = MINIMAL"]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_of_mariadb_that_no_row_tells_of_are_told() -> Result<()> {
    are_told(Product::Mariadb10, &[]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_of_mariadb_that_no_row_tells_of_are_told_where_the_binlog_names_no_columns()
-> Result<()> {
    are_told(Product::Mariadb11, &["binlog-row-metadata = MINIMAL"]).await
}
