//! Names and statements as people and sessions write them: whatever stands between the quotes is the table's name, and a
//! statement does what the session's settings make of it.

use anyhow::{Context as _, Result, ensure};
use downriver_testkit::mysql::{Mysql, Product};
use downriver_testkit::{daemon, resources};
use e2e::mysql::Shop;
use mysql_async::prelude::Queryable as _;
use serde_json::Value;

/// Backticks in them are doubled where they stand in a statement.
const NAMES: [&str; 8] = [
    "with.dot",
    "with space",
    "back`tick",
    "ha#sh",
    "Größe €",
    "表",
    "select",
    "quo\"te's\\",
];

fn quoted(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}

/// Runs statements one after another, each as it stands, in one session.
async fn run(mysql: &Mysql, statements: &[&str]) -> Result<()> {
    let mut client = mysql.client().await?;
    for statement in statements {
        client
            .query_drop(*statement)
            .await
            .with_context(|| (*statement).to_owned())?;
    }
    Ok(())
}

async fn any_name_is_captured(product: Product) -> Result<()> {
    let mut shop = Shop::open(product).await?;
    for (at, name) in NAMES.iter().enumerate() {
        let (table, column) = (quoted(name), quoted(&format!("c {name}")));
        let create = format!("create table {table} (id int primary key, {column} varchar(20))");
        let insert = format!("insert into {table} values (1, 'one'), (2, 'two')");
        // Half of them come later.
        if at % 2 == 0 {
            run(&shop.mysql, &[&create, &insert]).await?;
        }
    }
    shop.deliver(&["shop.*"]).await?;
    shop.daemon.wait(e2e::CATCH_UP).await?;
    for (at, name) in NAMES.iter().enumerate() {
        let (table, column) = (quoted(name), quoted(&format!("c {name}")));
        if at % 2 == 1 {
            let create = format!(
                "create table shop.{table} (id int, {column} varchar(20), primary key(id))"
            );
            run(&shop.mysql, &[&create]).await?;
        }
        let statements = [
            format!("insert into {table} values (3, 'three')"),
            format!(
                "alter table shop . {table} add column {} int not null default 7 after id",
                quoted("n.e w")
            ),
            format!(
                "alter table {table} rename column {column} to {}",
                quoted("re`named")
            ),
            format!(
                "update {table} set {} = 'changed' where id = 1",
                quoted("re`named")
            ),
        ];
        let statements = statements.each_ref().map(String::as_str);
        run(&shop.mysql, &statements).await?;
    }
    shop.ensure_equal(&NAMES).await?;
    shop.daemon.kill();
    for name in NAMES {
        let table = quoted(name);
        let statements = [
            format!("truncate {table}"),
            format!("insert into {table} (id) values (10)"),
            format!(
                "alter table {table} add unique key {} (id), add column later int default 3",
                quoted("k,e(y")
            ),
        ];
        run(&shop.mysql, &statements.each_ref().map(String::as_str)).await?;
    }
    shop.daemon.start().await?;
    shop.ensure_equal(&NAMES).await?;
    let source = shop.until_streaming().await?;
    for name in NAMES {
        let table = daemon::table_in(&source, &format!("shop.{name}"));
        ensure!(
            table.is_some_and(|table| table["code"].is_null()),
            "{name}: {source}"
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_and_columns_of_any_name_are_captured() -> Result<()> {
    let (mysql, mariadb) = tokio::join!(
        any_name_is_captured(Product::Mysql9),
        any_name_is_captured(Product::Mariadb11)
    );
    mysql.context("MySQL")?;
    mariadb.context("MariaDB")
}

/// Each adds a column with a value to `t1`, `t2`, …, which is missed unless the statement is understood.
fn statements_of_sessions(product: Product) -> Vec<(&'static str, Vec<&'static str>)> {
    let mut all = vec![
        (
            "plain",
            vec!["alter table t1 add column d int not null default 5"],
        ),
        (
            "without backslashes",
            vec![
                "set sql_mode = 'NO_BACKSLASH_ESCAPES'",
                r"alter table t2 add column c varchar(9) comment 'a\', add column d int not null default 5",
            ],
        ),
        (
            "with backslashes",
            vec![
                r"alter table t3 add column c varchar(9) comment 'a\', add column e int', add column d int not null default 5",
            ],
        ),
        (
            "quotes around names",
            vec![
                "set sql_mode = 'ANSI_QUOTES'",
                r#"alter table "shop"."t4" add column "c\" int, add column "d" int not null default 5"#,
            ],
        ),
        (
            "quotes around texts",
            vec![
                r#"alter table t5 add column c varchar(9) comment "a\"", add column d int not null default 5"#,
            ],
        ),
        (
            "executed comments",
            vec![
                "/*!40101 alter */ table t6 /*!50000 add column c int, */ add column d int /*!50000 not null default 5 */",
            ],
        ),
        (
            "comments of all kinds",
            vec![
                "alter /* a /*!b */ table t7 -- add\n # column\n /**/ add/*+ c */column d int not null default 5 -- and out",
            ],
        ),
        (
            "a comment that is executed by nobody",
            vec![
                "alter table t8 /*!999999 drop primary key, */ add column d int not null default 5",
                "create /*!999999 or replace */ table other (id int primary key)",
                "/*!999999 drop table t8 */",
            ],
        ),
        (
            "names of another character set",
            vec![
                "set names latin1",
                "alter table TABLE add column d int not null default 5",
            ],
        ),
        (
            "other databases",
            vec![
                "create database elsewhere",
                "use elsewhere",
                "alter table shop.t10 add column d int not null default 5",
            ],
        ),
        (
            "strange spaces",
            vec!["\u{b}alter\ttable\r\n t11\u{c}add\u{b}d int not null default 5"],
        ),
        (
            "nested comments",
            vec!["alter table t12 /*!50000 /* inner */ add column d int not null default 5 */"],
        ),
        (
            "a column that is called as an index is",
            vec![
                "alter table t13 add column `key` int not null default 5, add `index` int default 6, add column `check` int default 7",
            ],
        ),
        (
            "all at once",
            vec![
                "alter table t14 add column (c int, d int not null default 5), comment = 'x, add column e int'",
            ],
        ),
    ];
    if product.is_mariadb() {
        all.push((
            "MariaDB's own",
            vec![
                "alter online table if exists t15 wait 5 /*M! add column if not exists c int, */ add column if not exists d int not null default 5",
            ],
        ));
        all.push((
            "a statement's own settings",
            vec!["set statement lock_wait_timeout = 5 for alter table t16 add column d int not null default 5"],
        ));
        all.push((
            "another dialect",
            vec![
                "set sql_mode = 'ORACLE'",
                "alter table \"t17\" add column d int not null default 5",
            ],
        ));
    }
    all
}

async fn statements_are_understood(product: Product) -> Result<()> {
    let mut shop = Shop::open(product).await?;
    let sessions = statements_of_sessions(product);
    let mut names: Vec<String> = (1..=sessions.len()).map(|at| format!("t{at}")).collect();
    names[8] = "straße".into();
    for name in &names {
        let create = format!("create table `{name}` (id int primary key)");
        let insert = format!("insert into `{name}` values (1), (2)");
        run(&shop.mysql, &[&create, &insert]).await?;
    }
    shop.deliver(&["shop.*"]).await?;
    shop.daemon.wait(e2e::CATCH_UP).await?;
    shop.daemon.kill();
    for (what, statements) in &sessions {
        let mut client = shop.mysql.client().await?;
        for statement in statements {
            // In the one character set that the session was told.
            let (before, after) = statement.split_once("TABLE").unwrap_or((statement, ""));
            let mut bytes = before.as_bytes().to_vec();
            if !after.is_empty() {
                bytes.extend(b"stra\xdfe");
            }
            bytes.extend(after.as_bytes());
            client.query_drop(bytes).await.with_context(|| *what)?;
        }
    }
    for name in &names {
        run(
            &shop.mysql,
            &[&format!("insert into `{name}` (id) values (3)")],
        )
        .await?;
    }
    shop.daemon.start().await?;
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    shop.ensure_equal(&names).await?;
    let source = shop.until_streaming().await?;
    let is_refused = |table: &&Value| !table["code"].is_null();
    let refused = source["tables"].as_array().context("it has tables")?;
    let refused: Vec<&Value> = refused.iter().filter(is_refused).collect();
    ensure!(refused.is_empty(), "{refused:?}");
    shop.daemon.ok(&["verify", resources::PIPELINE]).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statements_mean_what_their_session_made_of_them() -> Result<()> {
    let (mysql, mariadb) = tokio::join!(
        statements_are_understood(Product::Mysql9),
        statements_are_understood(Product::Mariadb11)
    );
    mysql.context("MySQL")?;
    mariadb.context("MariaDB")
}

async fn case_is_no_difference(product: Product) -> Result<()> {
    let mut shop = Shop::open_with(product, &["lower-case-table-names = 1"]).await?;
    run(
        &shop.mysql,
        &[
            "create table Shop.MixedCase (Id int primary key, What text)",
            "insert into MIXEDCASE values (1, 'a'), (2, 'b')",
        ],
    )
    .await?;
    // As the user thinks of them.
    shop.deliver(&[
        "Shop.Mixed*",
        "SHOP.Orders",
        "shop.Later*",
        "!shop.LaterNot",
    ])
    .await?;
    shop.ensure_equal(&["mixedcase", "orders"]).await?;
    run(
        &shop.mysql,
        &[
            "insert into MixedCase values (3, 'c')",
            "alter table SHOP.mixedCASE add column Added int not null default 5",
            "alter table MixedCase rename column What to WHAT",
            "update Mixedcase set what = 'd' where id = 1",
            "create table LaterMade (id int primary key, Other int)",
            "create table LaterNot (id int primary key)",
            "insert into laterMade values (1, 2)",
            "insert into LaterNot values (1)",
            "insert into Orders (Customer) values (5)",
        ],
    )
    .await?;
    shop.ensure_equal(&["mixedcase", "orders", "latermade"])
        .await?;
    shop.daemon.kill();
    run(
        &shop.mysql,
        &[
            "rename table MixedCase to MixedOther, LaterMade to MixedCase",
            "insert into MIXEDother (id) values (100)",
            "insert into MixedCase values (100, 1)",
            "truncate table ORDERS",
            "insert into Orders (Customer) values (6)",
            "drop table if exists LATERNOT",
        ],
    )
    .await?;
    shop.daemon.start().await?;
    shop.ensure_equal(&["mixedcase", "mixedother", "orders"])
        .await?;
    shop.verify(&["shop.mixedcase", "shop.orders"]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_case_makes_no_difference_patterns_and_statements_make_none() -> Result<()> {
    let (mysql, mariadb) = tokio::join!(
        case_is_no_difference(Product::Mysql9),
        case_is_no_difference(Product::Mariadb11)
    );
    mysql.context("MySQL")?;
    mariadb.context("MariaDB")
}
