//! Changes of tables as gh-ost and pt-online-schema-change make them: a copy with the new shape takes the table's name.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use downriver_testkit::mysql::{Mysql, Product};
use e2e::mysql::Shop;
use mysql_async::Conn;
use mysql_async::prelude::Queryable as _;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Rows that one statement copies.
const COPIED: u32 = 250;
/// Between two changes of rows: whoever makes them again is to come to an end.
const PAUSE: Duration = Duration::from_millis(2);
const OF_TOOLS: [&str; 5] = [
    "!shop._*_gho",
    "!shop._*_ghc",
    "!shop._*_del",
    "!shop._*_new",
    "!shop._*_old",
];

const ITEMS: &str =
    "create table items (id int primary key, what varchar(60), amount decimal(9,2));
    insert into items (id, what, amount)
        with recursive n(i) as (select 1 union all select i + 1 from n where i < 900)
        select i, concat('item ', i), i / 4 from n;";

/// Runs a statement, again if the server ended it for another's sake (`ER_LOCK_DEADLOCK`).
async fn run(client: &mut Conn, statement: &str) -> Result<()> {
    loop {
        match client.query_drop(statement).await {
            Err(mysql_async::Error::Server(error)) if error.code == 1213 => {}
            done => return done.with_context(|| statement.to_owned()),
        }
    }
}

/// Changes of rows of a table, each told before it is made so that it can be made elsewhere too. Made twice it does the same.
async fn write(
    mysql: &Mysql,
    told: mpsc::UnboundedSender<String>,
    stop: CancellationToken,
) -> Result<u32> {
    let mut client = mysql.client().await?;
    let mut number = 0;
    while !stop.is_cancelled() {
        number += 1;
        let id = number * 7 % 1_100;
        let change = match number % 4 {
            0 => format!("delete from TABLE where id = {id}"),
            1 => format!(
                "update TABLE set what = 'change {number}', amount = {number} where id = {id}"
            ),
            _ => format!(
                "replace into TABLE (id, what, amount) values ({id}, 'row {number}', {number})"
            ),
        };
        // Nobody listens any more once the tables were swapped.
        let _ = told.send(change.clone());
        run(&mut client, &change.replace("TABLE", "items")).await?;
        tokio::time::sleep(PAUSE).await;
    }
    Ok(number)
}

/// What one tool does to `items` from here to the end, while rows of it change.
async fn migrate(mysql: &Mysql, tool: Tool, alter: &str) -> Result<()> {
    let (tell, told) = mpsc::unbounded_channel();
    let stop = CancellationToken::new();
    let writing = write(mysql, tell, stop.clone());
    let migrating = async {
        let migrated = match tool {
            Tool::GhOst => gh_ost(mysql, alter, told).await,
            Tool::PtOsc => pt_osc(mysql, alter).await,
        };
        stop.cancel();
        migrated
    };
    let (written, migrated) = tokio::join!(writing, migrating);
    migrated.with_context(|| format!("{tool:?}: {alter}"))?;
    ensure!(written? > 5);
    Ok(())
}

#[derive(Clone, Copy, Debug)]
enum Tool {
    GhOst,
    PtOsc,
}

/// Rows of before, where no newer ones are.
async fn copy(client: &mut Conn, to: &str) -> Result<()> {
    for first in (0..1_200).step_by(COPIED as usize) {
        let end = first + COPIED;
        let rows = format!("select id, what, amount from items where id >= {first} and id < {end}");
        let insert =
            format!("insert ignore into {to} (id, what, amount) ({rows} lock in share mode)");
        run(client, &insert).await?;
    }
    Ok(())
}

/// Source: gh-ost's document "cut-over": a sentry table under the old table's later name and a lock hold writers back
/// until the last changes were made to the copy; then the names are swapped by one statement that was waiting already.
async fn gh_ost(
    mysql: &Mysql,
    alter: &str,
    mut told: mpsc::UnboundedReceiver<String>,
) -> Result<()> {
    let mut client = mysql.client().await?;
    client
        .query_drop(format!(
            "create table `_items_ghc` (id bigint auto_increment primary key, hint varchar(64) not null, value varchar(4096));
             insert into `_items_ghc` (hint, value) values ('state', 'GhostTableMigrated');
             create /* gh-ost */ table `shop`.`_items_gho` like `shop`.`items`;
             alter /* gh-ost */ table `shop`.`_items_gho` {alter}"
        ))
        .await?;
    let apply =
        async |client: &mut Conn, told: &mut mpsc::UnboundedReceiver<String>| -> Result<()> {
            while let Ok(change) = told.try_recv() {
                run(client, &change.replace("TABLE", "`_items_gho`")).await?;
            }
            anyhow::Ok(())
        };
    copy(&mut client, "`_items_gho`").await?;
    apply(&mut client, &mut told).await?;

    let mut locker = mysql.client().await?;
    locker
        .query_drop(
            "create /* gh-ost */ table `shop`.`_items_del` (id int auto_increment primary key) engine=InnoDB comment='ghost-cut-over-sentry';
             lock /* gh-ost */ tables `shop`.`items` write, `shop`.`_items_del` write",
        )
        .await?;
    apply(&mut client, &mut told).await?;
    let mut renamer = mysql.client().await?;
    let id: u64 = renamer
        .query_first("select connection_id()")
        .await?
        .context("a connection has an id")?;
    let renaming = tokio::spawn(async move {
        let rename = "rename /* gh-ost */ table `shop`.`items` to `shop`.`_items_del`, `shop`.`_items_gho` to `shop`.`items`";
        renamer.query_drop(rename).await
    });
    let waits = format!(
        "select count(*) from information_schema.processlist where id = {id} and state like '%metadata lock%'"
    );
    downriver_testkit::host::until("the rename to wait", e2e::CATCH_UP, async || {
        Ok(client.query_first(&waits).await? == Some(1u64))
    })
    .await?;
    locker
        .query_drop("drop table `shop`.`_items_del`; unlock tables")
        .await?;
    renaming.await??;
    client
        .query_drop("drop table `shop`.`_items_ghc`; drop table `shop`.`_items_del`")
        .await?;
    Ok(())
}

/// Source: the manual of pt-online-schema-change.
async fn pt_osc(mysql: &Mysql, alter: &str) -> Result<()> {
    let mut client = mysql.client().await?;
    client
        .query_drop(format!(
            "create table `shop`.`_items_new` like `shop`.`items`;
             alter table `shop`.`_items_new` {alter};
             create trigger `pt_osc_shop_items_del` after delete on `shop`.`items` for each row
                 delete ignore from `shop`.`_items_new` where `shop`.`_items_new`.`id` <=> OLD.`id`;
             create trigger `pt_osc_shop_items_upd` after update on `shop`.`items` for each row begin
                 delete ignore from `shop`.`_items_new` where !(OLD.`id` <=> NEW.`id`) and `shop`.`_items_new`.`id` <=> OLD.`id`;
                 replace into `shop`.`_items_new` (`id`, `what`, `amount`) values (NEW.`id`, NEW.`what`, NEW.`amount`);
             end;
             create trigger `pt_osc_shop_items_ins` after insert on `shop`.`items` for each row
                 replace into `shop`.`_items_new` (`id`, `what`, `amount`) values (NEW.`id`, NEW.`what`, NEW.`amount`)"
        ))
        .await?;
    copy(&mut client, "`_items_new`").await?;
    client
        .query_drop(
            "analyze table `shop`.`_items_new`;
             rename table `shop`.`items` to `shop`.`_items_old`, `shop`.`_items_new` to `shop`.`items`;
             drop table if exists `shop`.`_items_old`;
             drop trigger if exists `shop`.`pt_osc_shop_items_del`;
             drop trigger if exists `shop`.`pt_osc_shop_items_upd`;
             drop trigger if exists `shop`.`pt_osc_shop_items_ins`",
        )
        .await?;
    Ok(())
}

const ALTERS: [(Tool, &str); 4] = [
    (
        Tool::GhOst,
        "add column made int not null default 5, modify what varchar(80)",
    ),
    (
        Tool::PtOsc,
        "add column channel varchar(9) not null default 'web' first",
    ),
    (Tool::GhOst, "drop column made"),
    (
        Tool::GhOst,
        "modify amount decimal(12,3), add column late int",
    ),
];

async fn follows(product: Product, patterns: &[&str]) -> Result<()> {
    let mut shop = Shop::open(product).await?;
    shop.mysql.execute(ITEMS).await?;
    shop.deliver(patterns).await?;
    shop.ensure_equal(&["items"]).await?;
    let (first, others) = ALTERS.split_first().context("there are some")?;
    migrate(&shop.mysql, first.0, first.1).await?;
    shop.mysql
        .execute("insert into items (id, what) values (5000, 'after'); delete from items where id % 11 = 0")
        .await?;
    shop.ensure_equal(&["items"]).await?;

    // Two in a row, then one while the daemon is down.
    for (tool, alter) in &others[..2] {
        migrate(&shop.mysql, *tool, alter).await?;
    }
    shop.ensure_equal(&["items"]).await?;
    shop.daemon.kill();
    for (tool, alter) in &others[2..] {
        migrate(&shop.mysql, *tool, alter).await?;
    }
    shop.mysql
        .execute("update items set late = 7 where id % 5 = 0; insert into items (id, late) values (5001, 1)")
        .await?;
    shop.daemon.start().await?;
    shop.ensure_equal(&["items"]).await?;

    // Three tables take each other's names.
    shop.mysql
        .execute(
            "create table one (id int primary key, a int); create table two (id int primary key, b text);
             create table three (id int primary key, c date);
             insert into one values (1, 1), (2, 2); insert into two values (1, 'b'), (3, 'c'); insert into three values (9, '2024-05-06')",
        )
        .await?;
    let swapped = ["one", "two", "three"];
    shop.ensure_equal(&swapped).await?;
    let swap = "rename table one to tmp, three to one, two to three, tmp to two;
                insert into one values (10, '2024-01-01'); insert into two values (11, 12); update three set b = 'changed'";
    shop.mysql.execute(swap).await?;
    shop.ensure_equal(&swapped).await?;
    shop.daemon.kill();
    shop.mysql
        .execute("rename table one to tmp, three to one, two to three, tmp to two; delete from one where id = 1")
        .await?;
    shop.daemon.start().await?;
    shop.ensure_equal(&swapped).await?;

    // One makes room for an empty one, again and again.
    let rotate = "rename table two to two_old; create table two like two_old; insert into two values (1, 100);
                  drop table two_old; insert into two values (2, 200)";
    shop.mysql.execute(rotate).await?;
    shop.ensure_equal(&swapped).await?;
    shop.daemon.kill();
    for _ in 0..2 {
        shop.mysql.execute(rotate).await?;
    }
    shop.daemon.start().await?;
    shop.ensure_equal(&swapped).await?;
    let all = ["items", "one", "two", "three", "orders"].map(|table| format!("shop.{table}"));
    shop.verify(&all.each_ref().map(String::as_str)).await?;
    let source = shop.until_streaming().await?;
    let tables = source["tables"].as_array().context("it has tables")?;
    let names = tables.iter().filter_map(|table| table["table"].as_str());
    let of_tools: Vec<&str> = names.filter(|name| name.contains("._")).collect();
    ensure!(of_tools.is_empty(), "{of_tools:?} are captured still");
    Ok(())
}

async fn follows_with_and_without_tables_of_tools(product: Product) -> Result<()> {
    let without: Vec<&str> = ["shop.*"].into_iter().chain(OF_TOOLS).collect();
    let (with, without) = tokio::join!(follows(product, &["shop.*"]), follows(product, &without));
    with.context("with the tools' own tables")?;
    without.context("without the tools' own tables")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn online_schema_changes_of_mysql_are_followed() -> Result<()> {
    follows_with_and_without_tables_of_tools(Product::Mysql9).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn online_schema_changes_of_mariadb_are_followed() -> Result<()> {
    follows_with_and_without_tables_of_tools(Product::Mariadb11).await
}
