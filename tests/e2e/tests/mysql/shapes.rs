//! Where the binlog does not name the columns of its rows, as servers have it where nobody sets `binlog_row_metadata`: the
//! shapes of tables are those that the log has.

use anyhow::{Result, ensure};
use downriver_testkit::mysql::Product;
use e2e::mysql::{Shop, change};
use tokio_util::sync::CancellationToken;

const TYPES: &str = include_str!("binlog/load.sql");

fn nameless(product: Product) -> &'static str {
    match product.is_mariadb() {
        true => "binlog-row-metadata = NO_LOG",
        false => "binlog-row-metadata = MINIMAL",
    }
}

async fn is_mirrored_without_names(product: Product) -> Result<()> {
    let mut shop = Shop::open_with(product, &[nameless(product)]).await?;
    shop.mysql.execute(TYPES).await?;
    shop.mysql
        .execute("create table twins (id int primary key, a int, b int, c int); insert into twins values (1, 1, 2, 3)")
        .await?;
    shop.fill(2_000).await?;
    shop.deliver(&["shop.*"]).await?;
    let mut tables = vec![
        "orders",
        "customers",
        "pairs",
        "twins",
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
    is_mirrored_without_names(Product::Mysql9).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_of_mariadb_are_mirrored_though_the_binlog_names_no_columns() -> Result<()> {
    is_mirrored_without_names(Product::Mariadb10).await
}
