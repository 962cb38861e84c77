//! Where the binlog does not name the columns of its rows, as servers have it where nobody sets `binlog_row_metadata`: the
//! shapes of tables are those that the log has.

use anyhow::{Result, ensure};
use downriver_testkit::mysql::Product;
use e2e::log;
use e2e::mysql::{Shop, change};
use tokio_util::sync::CancellationToken;

const TYPES: &str = include_str!("binlog/load.sql");

/// Values that were cut to a type, which has gone again before anybody looked.
async fn cut_values_are_found(product: Product) -> Result<()> {
    let mut shop = Shop::open(product).await?;
    shop.mysql
        .execute("create table cut (id int primary key, n int, t varchar(20)); insert into cut values (1, 1000, 'whole'), (2, 5, null)")
        .await?;
    shop.deliver(&["shop.*"]).await?;
    shop.ensure_equal(&["cut"]).await?;
    shop.daemon.kill();
    shop.mysql
        .execute(
            "alter table cut modify n tinyint; alter table cut modify n int;
             alter table cut modify t varchar(2); alter table cut modify t varchar(20)",
        )
        .await?;
    shop.daemon.start().await?;
    shop.ensure_equal(&["cut"]).await?;
    // It is what it was already: nothing is read for that.
    let snapshots = shop.snapshots().await?;
    shop.mysql
        .execute("alter table cut modify n int comment 'said'; insert into cut values (3, 3, 'c')")
        .await?;
    shop.ensure_equal(&["cut"]).await?;
    ensure!(shop.snapshots().await? == snapshots, "it was read again");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_that_were_cut_on_the_way_to_the_same_type_are_read_again() -> Result<()> {
    cut_values_are_found(Product::Mysql9).await?;
    cut_values_are_found(Product::Mariadb11).await
}

async fn is_mirrored_without_names(product: Product, metadata: &str) -> Result<()> {
    let setting = format!("binlog-row-metadata = {metadata}");
    let mut shop = Shop::open_with(product, &[&setting]).await?;
    shop.mysql.execute(TYPES).await?;
    shop.mysql
        .execute("create table twins (id int primary key, a int, b int, c int); insert into twins values (1, 1, 2, 3);
             create table years (id int primary key, y year, u int unsigned, f float unsigned)")
        .await?;
    shop.fill(2_000).await?;
    shop.deliver(&["shop.*", "!shop.*_tmp"]).await?;
    let mut tables = vec![
        "orders",
        "customers",
        "pairs",
        "twins",
        "years",
        "numbers",
        "times",
        "texts",
    ];
    shop.ensure_equal(&tables).await?;
    let snapshots = shop.snapshots().await?;

    // What is understood from the catalog takes no reading: nothing changes the table between the statement and us.
    let stop = CancellationToken::new();
    let writing = change(&shop.mysql, 3, stop.clone());
    let altering = async {
        let alter = "alter table orders add column hint varchar(9) character set latin1 null first;
                     insert into orders (customer, total, hint) values (1, 2, 'Zo\u{eb}');
                     insert into years values (1, 2024, 4000000000, 0.5), (2, 0, 5, null);
                     alter table twins drop column c;
                     alter table twins add column big bigint unsigned null;
                     insert into twins values (3, 1, 2, 18446744073709551615);
                     alter table pairs rename column c to d;
                     insert into pairs values (77, 'd', 8)";
        let altered = shop.mysql.execute(alter).await;
        stop.cancel();
        altered
    };
    let (written, altered) = tokio::join!(writing, altering);
    altered?;
    ensure!(written? > 0);
    shop.ensure_equal(&tables).await?;
    ensure!(
        shop.snapshots().await? == snapshots,
        "a table was read again"
    );
    shop.mysql
        .execute("create table added (id int primary key, e enum('a','b')); insert into added values (1, 'b')")
        .await?;
    tables.push("added");
    shop.ensure_equal(&tables).await?;
    // One that was filled before it got its name.
    shop.mysql
        .execute("create table loaded_tmp (id int primary key, y year); insert into loaded_tmp values (1, 2024);
                  rename table loaded_tmp to loaded; insert into loaded values (2, 1999)")
        .await?;
    tables.push("loaded");
    shop.ensure_equal(&tables).await?;

    // Behind us the same table has one shape after another, and what its columns are is not in the rows.
    shop.daemon.kill();
    shop.mysql
        .execute(
            "update orders set customer = 8 where id < 20;
             alter table twins rename column a to b, rename column b to a;
             update twins set a = a + 10;
             alter table twins rename column a to b, rename column b to a;
             update twins set a = a + 100;
             alter table added modify e enum('b','a');
             insert into added values (2, 'b');
             alter table added modify e enum('c','b','a');
             insert into added values (3, 'c')",
        )
        .await?;
    shop.daemon.start().await?;
    shop.ensure_equal(&tables).await?;
    ensure!(
        shop.snapshots().await? > snapshots,
        "nothing was read again"
    );

    for event in log::events_of(&shop.daemon).await? {
        if event["table"] == "shop.added" && !event["after"].is_null() {
            let (id, label) = (&event["after"]["id"], &event["after"]["e"]);
            let expected = if *id == 3 { "c" } else { "b" };
            ensure!(label == expected, "a label of another shape: {event}");
        }
    }

    // A change that is kept out of the binlog.
    shop.mysql
        .execute(
            "set sql_log_bin = 0; alter table pairs add column late int; set sql_log_bin = 1;
             insert into pairs (a, b, late) values (500, 'q', 5)",
        )
        .await?;
    shop.ensure_equal(&tables).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_of_mysql_are_mirrored_though_the_binlog_names_no_columns() -> Result<()> {
    is_mirrored_without_names(Product::Mysql9, "MINIMAL").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_of_mariadb_are_mirrored_though_the_binlog_names_no_columns() -> Result<()> {
    is_mirrored_without_names(Product::Mariadb10, "NO_LOG").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_of_mariadb_are_mirrored_though_the_binlog_tells_little_of_columns() -> Result<()> {
    is_mirrored_without_names(Product::Mariadb11, "MINIMAL").await
}
