//! Transactions that are no plain sequence of rows: prepared ones, those that were rolled back in part, statements in the
//! place of rows, and rows that the storage engine changes by foreign keys. After each the lake is equal to the server.

use anyhow::{Context as _, Result, ensure};
use downriver_testkit::mysql::Product;
use downriver_testkit::{daemon, host, resources};
use e2e::mysql::Shop;
use e2e::{CATCH_UP, log};
use mysql_async::prelude::Queryable as _;

const TABLES: [&str; 14] = [
    "before_start",
    "held",
    "large",
    "killed",
    "restarted",
    "rolled",
    "stated",
    "fired",
    "loaded",
    "parent",
    "child",
    "grandchild",
    "bag",
    "other",
];
const SCHEMA: &str = "
    create table before_start (id int primary key, v varchar(40));
    create table held (id int primary key, v varchar(40));
    create table large (id int primary key, v varchar(2000));
    create table killed (id int primary key, v varchar(40));
    create table restarted (id int primary key, v varchar(40));
    create table rolled (id int primary key, v varchar(40));
    create table stated (id int auto_increment primary key, v varchar(40));
    create table fired (id int auto_increment primary key, v varchar(40));
    create table loaded (id int primary key, v varchar(40));
    create table parent (id int primary key, v varchar(40));
    create table child (id int primary key, parent int, foreign key (parent) references parent (id) on delete cascade on update cascade);
    create table grandchild (id int primary key, child int, foreign key (child) references child (id) on delete set null);
    create table bag (a int, b varchar(40));
    create table other (id int primary key, v varchar(40));
    create table beside (id int primary key, v varchar(40)) engine = MyISAM;
    create trigger fires after insert on stated for each row insert into fired (v) values (concat('by ', new.v));
    insert into held values (1, 'a'), (2, 'b'), (3, 'c');
    insert into parent values (1, 'a'), (2, 'b'), (3, 'c'), (4, 'd');
    insert into child values (10, 1), (11, 1), (20, 2), (30, 3), (40, 4);
    insert into grandchild values (100, 10), (110, 11), (200, 20), (400, 40);
    insert into bag values (1, 'x'), (1, 'x'), (2, 'y');
    insert into killed values (1, 'a');
    insert into restarted values (1, 'a');";

struct Case {
    shop: Shop,
}

impl Case {
    async fn open(product: Product) -> Result<Self> {
        let settings: &[&str] = match product {
            // As servers did before 9.6.
            Product::Mysql9 => &["innodb_native_foreign_keys = ON"],
            Product::Mariadb10 | Product::Mariadb11 => &[],
        };
        let shop = Shop::open_with(product, settings).await?;
        shop.mysql
            .execute("grant trigger on *.* to cdc@'%'")
            .await?;
        shop.mysql.execute(SCHEMA).await?;
        Ok(Self { shop })
    }

    async fn ensure_equal(&self, what: &'static str, tables: &[&str]) -> Result<()> {
        self.shop.ensure_equal(tables).await.context(what)
    }

    /// Prepares a transaction, and leaves it to whoever ends it.
    async fn prepare(&self, xid: &str, statements: &str) -> Result<()> {
        self.shop
            .mysql
            .execute(&format!(
                "xa start '{xid}'; {statements}; xa end '{xid}'; xa prepare '{xid}'"
            ))
            .await
    }

    /// Ends a prepared transaction, as soon as the session that prepared it has left it.
    async fn end(&self, statement: &str) -> Result<()> {
        host::until("the transaction to be ended", CATCH_UP, async || {
            self.shop.mysql.execute(statement).await.map(|()| true)
        })
        .await
    }

    /// Operations on rows of a table, as the log has them.
    async fn logged(&self, table: &str) -> Result<Vec<String>> {
        let mut operations = Vec::new();
        for event in log::events_of(&self.shop.daemon).await? {
            let operation = event["op"].as_str().unwrap_or_default();
            let is_of_rows = ["insert", "update", "delete", "snapshot"].contains(&operation);
            if is_of_rows && event["table"] == format!("shop.{table}") {
                operations.push(operation.to_owned());
            }
        }
        Ok(operations)
    }

    async fn prepared_transactions(&mut self) -> Result<()> {
        // They count where they are committed.
        self.prepare(
            "one",
            "insert into held values (4, 'd'); update held set v = 'z' where id = 1; delete from held where id = 2",
        )
        .await?;
        self.prepare("two", "insert into held values (5, 'never')")
            .await?;
        self.shop
            .mysql
            .execute("insert into held values (6, 'first')")
            .await?;
        self.ensure_equal("prepared", &["held"]).await?;
        self.end("xa commit 'one'").await?;
        self.end("xa rollback 'two'").await?;
        self.shop.mysql
            .execute("xa start 'three'; update held set v = 'one phase' where id = 6; xa end 'three'; xa commit 'three' one phase")
            .await?;
        self.ensure_equal("committed", &["held"]).await?;
        let changes = self.logged("held").await?;
        let changes: Vec<&String> = changes.iter().filter(|op| *op != "snapshot").collect();
        ensure!(
            changes == ["insert", "insert", "update", "delete", "update"],
            "{changes:?}"
        );
        let rows: Vec<String> = (0..500)
            .map(|id| format!("({id}, '{}')", "long ".repeat(300)))
            .collect();
        self.prepare(
            "large",
            &format!("insert into large values {}", rows.join(", ")),
        )
        .await?;
        self.end("xa commit 'large'").await?;
        self.ensure_equal("large", &["large"]).await?;

        // Neither the daemon nor the server has to live through it.
        self.prepare(
            "killed",
            "insert into killed values (2, 'b'); delete from killed where id = 1",
        )
        .await?;
        self.prepare("gone", "insert into killed values (3, 'never')")
            .await?;
        self.shop
            .mysql
            .execute("insert into other values (1, 'passes')")
            .await?;
        self.ensure_equal("passed", &["killed", "other"]).await?;
        self.shop.daemon.kill();
        self.shop.daemon.start().await?;
        self.end("xa commit 'killed'").await?;
        self.end("xa rollback 'gone'").await?;
        self.ensure_equal("daemon killed", &["killed"]).await?;

        self.shop
            .mysql
            .execute("set global innodb_flush_log_at_trx_commit = 1; set global sync_binlog = 1")
            .await?;
        self.prepare(
            "restarted",
            "insert into restarted values (2, 'b'); delete from restarted where id = 1",
        )
        .await?;
        self.ensure_equal("prepared before a restart", &["restarted"])
            .await?;
        self.shop.mysql.kill()?;
        self.shop.mysql.start_again().await?;
        self.end("xa commit 'restarted'").await?;
        self.ensure_equal("server killed", &["restarted"]).await
    }

    async fn rolled_back_in_part(&self) -> Result<()> {
        let mut client = self.shop.mysql.client().await?;
        for statement in [
            "begin",
            "insert into rolled values (1, 'never')",
            "create temporary table t1 (id int)",
            "insert into rolled values (2, 'never')",
            "rollback",
            "begin",
            "insert into rolled values (3, 'kept')",
            "savepoint s",
            "insert into rolled values (4, 'never'), (5, 'never')",
            "create temporary table t2 (id int)",
            "rollback to s",
            "insert into rolled values (6, 'kept')",
            "commit",
        ] {
            client.query_drop(statement).await?;
        }
        if self.shop.mysql.product().is_mariadb() {
            for statement in [
                "begin",
                "insert into rolled values (7, 'kept')",
                "savepoint s",
                "insert into rolled values (8, 'never')",
                "insert into beside values (8, 'stays')",
                "rollback to s",
                "commit",
            ] {
                client.query_drop(statement).await?;
            }
        }
        self.ensure_equal("rolled back", &["rolled"]).await?;
        let rolled = self.logged("rolled").await?;
        let kept: usize = if self.shop.mysql.product().is_mariadb() {
            3
        } else {
            2
        };
        ensure!(rolled.len() == kept, "{rolled:?}");
        Ok(())
    }

    /// How many rows of a table were read by snapshots.
    async fn read(&self, table: &str) -> Result<usize> {
        let logged = self.logged(table).await?;
        Ok(logged.iter().filter(|op| *op == "snapshot").count())
    }

    async fn statements(&self) -> Result<()> {
        let before = self.read("held").await?;
        let file = self.shop.folder.path().join("rows.csv");
        std::fs::write(&file, "1,a\n2,b\n3,c\n")?;
        let load = format!(
            "load data infile '{}' into table loaded fields terminated by ','",
            file.display()
        );
        let mut client = self.shop.mysql.client().await?;
        for statement in [
            "set session binlog_format = STATEMENT",
            "begin",
            "insert into stated (v) values ('a'), ('b'), ('c')",
            "set @v = 'variable'",
            "update stated set v = @v where id = 2",
            "commit",
            "delete from stated where v = 'c'",
            &load,
        ] {
            client.query_drop(statement).await?;
        }
        drop(client);
        let tables = ["stated", "fired", "loaded"];
        self.ensure_equal("statements", &tables).await?;
        let held = self.read("held").await?;
        ensure!(held == before, "held was read again: {held} rows");
        Ok(())
    }

    async fn cascades(&self) -> Result<()> {
        self.shop
            .mysql
            .execute("delete from parent where id = 1; update parent set v = 'no key' where id = 2")
            .await?;
        self.ensure_equal("cascaded", &["parent", "child", "grandchild"])
            .await?;
        self.shop
            .mysql
            .execute("update parent set id = 33 where id = 3")
            .await?;
        let waits = |source: &serde_json::Value| {
            let table = daemon::table_in(source, "shop.child");
            table.is_some_and(|table| table["code"] == "DR-1093" && table["state"] == "pending")
        };
        self.shop
            .daemon
            .until_described(
                "source",
                resources::SOURCE,
                "the table to wait for its next reading",
                CATCH_UP,
                waits,
            )
            .await?;
        Ok(())
    }
}

async fn are_told(product: Product) -> Result<()> {
    let mut case = Case::open(product).await?;
    case.prepare(
        "before",
        "insert into before_start values (1, 'unseen'); insert into bag values (3, 'z')",
    )
    .await?;
    let tables = ["shop.*", "!shop.beside"];
    case.shop.deliver_with(&tables, &[]).await?;
    case.ensure_equal("snapshot", &TABLES).await?;
    case.rolled_back_in_part().await?;
    case.prepared_transactions().await?;
    case.statements().await?;
    case.cascades().await?;
    // What is due survives. Nobody knows what the transaction of before the start changed: everything is read again.
    case.end("xa commit 'before'").await?;
    case.shop.daemon.kill();
    case.shop.daemon.start().await?;
    case.ensure_equal("due", &TABLES).await?;
    println!(
        "{}",
        case.shop
            .daemon
            .ok(&["verify", resources::PIPELINE])
            .await?
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_transactions_of_mysql_do_the_lake_is_equal() -> Result<()> {
    are_told(Product::Mysql9).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_transactions_of_mariadb_10_do_the_lake_is_equal() -> Result<()> {
    are_told(Product::Mariadb10).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_transactions_of_mariadb_11_do_the_lake_is_equal() -> Result<()> {
    are_told(Product::Mariadb11).await
}

/// What foreign keys are and what tables are called changes while the source is captured.
async fn keys_are_followed(product: Product) -> Result<()> {
    let settings: &[&str] = match product {
        Product::Mysql9 => &["innodb_native_foreign_keys = ON"],
        Product::Mariadb10 | Product::Mariadb11 => &[],
    };
    let shop = Shop::open_with(product, settings).await?;
    shop.mysql
        .execute(
            "create table p1 (id int primary key); create table p2 (id int primary key); create table p3 (id int primary key);
             create table renamed (id int primary key, p int, q int,
                constraint by_p foreign key (p) references p1 (id) on delete cascade,
                constraint by_q foreign key (q) references p2 (id) on delete set null);
             create table late (id int primary key, p int);
             insert into p1 values (1), (2); insert into p2 values (1), (2); insert into p3 values (1), (2);
             insert into renamed values (1, 1, 1), (2, 2, 2); insert into late values (1, 1), (2, 2)",
        )
        .await?;
    let file = shop.folder.path().join("source.yaml");
    std::fs::write(
        &file,
        resources::mysql_source(&shop.mysql, &["shop.*"], &[]),
    )?;
    let file = file.to_str().context("a path")?;
    let checked = shop
        .daemon
        .run(&["check", "-f", file, "-o", "json"])
        .await?;
    let checked: serde_json::Value = serde_json::from_str(&checked.stdout)?;
    let findings = checked.as_array().context("a list")?;
    let of_keys: Vec<_> = findings
        .iter()
        .filter(|found| found["code"] == "DR-1089")
        .collect();
    let reason = of_keys.first().and_then(|found| found["reason"].as_str());
    let reason = reason.unwrap_or_default();
    ensure!(
        of_keys.len() == 1 && reason.contains("by_p (to shop.p1), by_q (to shop.p2)"),
        "{of_keys:?}"
    );

    let tables = ["p1", "p2", "p3", "renamed", "late"];
    shop.deliver(&["shop.*"]).await?;
    shop.ensure_equal(&tables).await?;
    // Keys are known by then.
    shop.mysql.execute("insert into p3 values (3)").await?;
    shop.ensure_equal(&tables).await?;
    shop.mysql
        .execute(
            "alter table late add constraint by_late foreign key (p) references p3 (id) on delete cascade;
             rename table p2 to p4;
             delete from p3 where id = 1;
             delete from p4 where id = 1",
        )
        .await?;
    shop.ensure_equal(&["p1", "p3", "p4", "renamed", "late"])
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn foreign_keys_of_mysql_are_followed_where_tables_change() -> Result<()> {
    keys_are_followed(Product::Mysql9).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn foreign_keys_of_mariadb_are_followed_where_tables_change() -> Result<()> {
    keys_are_followed(Product::Mariadb11).await
}

/// From 9.6 on the server logs what foreign keys change, unless it is told to leave that to the storage engine.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_mysql_changes_by_foreign_keys_itself_are_captured_as_others() -> Result<()> {
    let shop = Shop::open(Product::Mysql9).await?;
    shop.mysql
        .execute(
            "create table parent (id int primary key, v int);
             create table child (id int primary key, parent int, foreign key (parent) references parent (id) on delete cascade on update cascade);
             create table grandchild (id int primary key, child int, foreign key (child) references child (id) on delete set null);
             insert into parent values (1, 1), (2, 2), (3, 3);
             insert into child values (10, 1), (20, 2), (30, 3);
             insert into grandchild values (100, 10), (200, 20), (300, 30)",
        )
        .await?;
    let tables = ["parent", "child", "grandchild"];
    shop.deliver(&["shop.*"]).await?;
    shop.ensure_equal(&tables).await?;
    let read = shop.snapshots().await?;
    shop.mysql
        .execute("delete from parent where id = 1; update parent set id = 22 where id = 2; update parent set v = 9 where id = 3")
        .await?;
    shop.ensure_equal(&tables).await?;
    ensure!(shop.snapshots().await? == read, "a table was read again");
    Ok(())
}
