//! What a binlog has beside the rows of plain tables: statements in words, partitions that go with their rows, sequences,
//! temporary tables, columns that nobody sees. After each the lake is equal to the server.

use anyhow::{Context as _, Result, ensure};
use downriver_testkit::mysql::Product;
use downriver_testkit::{daemon, resources};
use e2e::log;
use e2e::mysql::Shop;

const PARTITIONED: &str = "
    create table parted (id int primary key, v varchar(20)) partition by range (id)
        (partition low values less than (100), partition mid values less than (200), partition high values less than (1000));
    insert into parted values (1, 'low'), (2, 'low'), (101, 'mid'), (102, 'mid'), (201, 'high');
    create table exchanged (id int primary key, v varchar(20));
    insert into exchanged values (50, 'exchanged'), (51, 'exchanged');";

async fn is_mirrored(product: Product) -> Result<()> {
    let settings: &[&str] = match product.is_mariadb() {
        true => &["binlog-annotate-row-events = ON"],
        false => &["binlog-rows-query-log-events = ON"],
    };
    let shop = Shop::open_with(product, settings).await?;
    shop.mysql.execute(PARTITIONED).await?;
    let mut tables = vec!["parted", "exchanged", "made", "unseen"];
    shop.mysql
        .execute(match product.is_mariadb() {
            true => {
                "create table unseen (id int primary key, v varchar(20) invisible, w int);
                 insert into unseen (id, v, w) values (1, 'v', 2), (2, 'w', 3);
                 create sequence numbers; select nextval(numbers)"
            }
            // Its key is one that the server made.
            false => {
                "create table unseen (v varchar(20), w int); insert into unseen values ('v', 2), ('w', 3);
                 set session sql_generate_invisible_primary_key = ON;
                 create table keyed (v varchar(20), w int); insert into keyed values ('v', 2), ('v', 2)"
            }
        })
        .await?;
    if !product.is_mariadb() {
        tables.push("keyed");
    }
    shop.deliver(&["shop.*"]).await?;
    let described = shop.until_streaming().await?;
    ensure!(
        daemon::table_in(&described, "shop.numbers").is_none(),
        "a sequence is no table: {described}"
    );
    shop.mysql
        .execute(
            "create table made (id int primary key, v varchar(20));
             create temporary table made_up (id int primary key, v varchar(20)); insert into made_up values (1, 'gone');
             create temporary table parted (id int, v varchar(20)); insert into parted values (1000, 'another'); drop temporary table parted;
             insert into made select * from made_up; update made set v = 'stays'; drop temporary table made_up",
        )
        .await?;
    shop.ensure_equal(&tables).await?;
    let statements: &[&str] = match product.is_mariadb() {
        true => &[
            "update unseen set v = 'changed' where id = 1; select nextval(numbers), nextval(numbers); drop sequence numbers",
            "create sequence numbers; insert into unseen (id, w) values (nextval(numbers) + 10, 4)",
        ],
        false => &[
            "update keyed set w = 3 limit 1; insert into keyed values ('v', 2); delete from keyed where w = 3",
            "alter table keyed alter column my_row_id set visible; update keyed set v = 'seen'",
        ],
    };
    let partitions = [
        "alter table parted truncate partition low",
        "insert into parted values (3, 'low'); alter table parted exchange partition low with table exchanged",
        "alter table parted drop partition mid; insert into parted values (150, 'high')",
        "alter table parted add partition (partition more values less than (2000))",
        "alter table parted remove partitioning; insert into parted values (4, 'plain')",
    ];
    for statement in statements.iter().chain(&partitions) {
        shop.mysql.execute(statement).await?;
        shop.ensure_equal(&tables).await.context(*statement)?;
    }
    shop.daemon.ok(&["verify", resources::PIPELINE]).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_mysql_has_beside_plain_rows_is_mirrored() -> Result<()> {
    is_mirrored(Product::Mysql9).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_mariadb_has_beside_plain_rows_is_mirrored() -> Result<()> {
    is_mirrored(Product::Mariadb10).await
}

/// Checksums come and go while the binlog is followed, and before it is taken up again.
async fn checksums_may_change(product: Product) -> Result<()> {
    let mut shop = Shop::open(product).await?;
    shop.deliver(&["shop.orders"]).await?;
    for (checksum, is_killed) in [
        ("NONE", false),
        ("CRC32", false),
        ("NONE", true),
        ("CRC32", true),
    ] {
        shop.fill(20).await?;
        if is_killed {
            shop.daemon.kill();
        }
        shop.mysql
            .administer(&format!("set global binlog_checksum = {checksum}"))
            .await?;
        shop.fill(20).await?;
        if is_killed {
            shop.daemon.start().await?;
        }
        shop.ensure_equal(&["orders"]).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn checksums_of_mysql_may_change() -> Result<()> {
    checksums_may_change(Product::Mysql9).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn checksums_of_mariadb_may_change() -> Result<()> {
    checksums_may_change(Product::Mariadb11).await
}

/// Their numbers take two bytes from the 256th on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_enum_may_have_more_labels_than_a_byte_counts() -> Result<()> {
    let shop = Shop::open(Product::Mysql9).await?;
    let labels: Vec<String> = (1..=300).map(|label| format!("'l{label}'")).collect();
    let labels = labels.join(", ");
    shop.mysql
        .execute(&format!(
            "create table many (id int primary key, v enum({labels}));
             insert into many values (1, 'l1'), (255, 'l255'), (256, 'l256'), (300, 'l300'), (301, null)"
        ))
        .await?;
    shop.deliver(&["shop.many"]).await?;
    shop.ensure_equal(&["many"]).await?;
    shop.mysql
        .execute("insert into many values (2, 'l2'), (257, 'l257'), (299, 'l299'); update many set v = 'l300' where id = 255")
        .await?;
    shop.ensure_equal(&["many"]).await
}

/// A change of a table ends the transaction that is open.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_before_a_change_of_a_table_are_committed_with_it() -> Result<()> {
    for product in [Product::Mysql9, Product::Mariadb11] {
        let shop = Shop::open(product).await?;
        shop.fill(10).await?;
        shop.deliver(&["shop.*"]).await?;
        shop.ensure_equal(&["orders"]).await?;
        shop.mysql
            .execute(
                "begin; insert into orders (customer) values (7001); create table made (id int primary key);
                 insert into made values (1); rollback;
                 begin; insert into orders (customer) values (7002); alter table made add v int; rollback;
                 begin; insert into orders (customer) values (7003); rollback",
            )
            .await?;
        shop.ensure_equal(&["orders", "made"]).await?;
        let events = log::events_of(&shop.daemon).await?;
        let of = |customer: i64| {
            let mut events = events.iter();
            events.any(|event| event["after"]["customer"] == customer)
        };
        ensure!(of(7001) && of(7002) && !of(7003));
    }
    Ok(())
}
