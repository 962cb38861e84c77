//! Tables of real servers, read by SQL: what the catalog and the chunks say is what the binlog says.

mod binlog;
mod points;
mod read;
mod shapes;

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use downriver_event::block::ColumnBuilder;
use downriver_event::{LogicalType, ReplicaIdentity, TableSchema, pb, view};
use downriver_source::chunk::{ChunkReader as _, ChunkRequest};
use downriver_source::mysql::catalog::Catalog;
use downriver_source::mysql::server::{Flavor, Server};
use downriver_source::mysql::snapshot::SnapshotSession;
use downriver_source::mysql::sql;
use downriver_testkit::mysql::{Mysql, Product};
use read::{all_rows, config, request, rows_of};

const LOAD: &str = include_str!("../binlog/load.sql");
const LOAD_MYSQL: &str = include_str!("../binlog/load_mysql.sql");
const COMMON: &str = include_str!("common.sql");
const GENERATED: &str = include_str!("generated.sql");
const MYSQL: &str = include_str!("mysql.sql");
const MARIADB: &str = include_str!("mariadb.sql");
const NATIVES: &str = include_str!("../binlog/natives.sql");
const NATIVE_KEYS: &str = include_str!("natives.sql");
const KEYS: &str = include_str!("keys.sql");

/// The file that the server writes now.
async fn file(server: &Mysql) -> Result<String> {
    let mut session = sql::connect(&config(server).await?).await?;
    let position = Server::look(&mut session)
        .await?
        .position(&mut session)
        .await?;
    Ok(position.place().context("a place")?.file.clone())
}

/// Rows in an order that does not depend on where they are from.
fn sorted(rows: &[pb::Row]) -> Vec<String> {
    let mut rows: Vec<String> = rows.iter().map(|row| format!("{:?}", row.cells)).collect();
    rows.sort();
    rows
}

async fn ensure_equal(server: &Mysql) -> Result<()> {
    let told = binlog::read(server, &file(server).await?).await?;
    let config = config(server).await?;
    let mut catalog = Catalog::connect(&config).await?;
    let mut session = SnapshotSession::connect(&config).await?;
    for table in catalog.tables(&config).await? {
        let schema = &table.schema;
        let name = schema.qualified_name();
        ensure!(table.problem.is_none(), "{name}: {:?}", table.problem);
        let found = told.tables.get(&schema.name);
        let found = found.with_context(|| format!("{name} is not in the binlog"))?;
        for (ours, theirs) in schema.columns.iter().zip(&found.columns) {
            ensure!(ours == theirs, "{name}: {ours:?}, not {theirs:?}");
        }
        ensure!(schema.columns.len() == found.columns.len(), "{name}");
        let key = found.key.clone().unwrap_or_default();
        ensure!(
            schema.key_indexes() == key,
            "{name}: {:?}, not {key:?}",
            schema.key
        );
        ensure!(
            schema.is_bag() == key.is_empty() && schema.identity != ReplicaIdentity::Nothing,
            "{name}"
        );
        for rows_max in [1, 2, 1_000_000] {
            let (rows, chunks) = all_rows(&mut session, schema, rows_max)
                .await
                .with_context(|| format!("{name} by {rows_max}"))?;
            for (ours, theirs) in sorted(&rows).iter().zip(sorted(&found.rows)) {
                ensure!(
                    *ours == theirs,
                    "{name} by {rows_max}:\n{ours}, not\n{theirs}"
                );
            }
            ensure!(
                rows.len() == found.rows.len(),
                "{name} by {rows_max}: {} rows, not {}",
                rows.len(),
                found.rows.len()
            );
            let is_one =
                schema.is_bag() || schema.name.starts_with("k_prefix") || schema.name == "k_text";
            ensure!(
                is_one == (chunks == 1) || rows_max as usize > rows.len(),
                "{name} by {rows_max}: {chunks} chunks"
            );
        }
        by_keys(&mut session, schema, &found.rows)
            .await
            .with_context(|| format!("{name} by keys"))?;
    }
    Ok(())
}

/// Each row by its own key, and all together: exactly these.
async fn by_keys(
    session: &mut SnapshotSession,
    schema: &TableSchema,
    rows: &[pb::Row],
) -> Result<()> {
    if schema.is_bag() {
        return Ok(());
    }
    let request = |keys: Vec<Bytes>| ChunkRequest {
        keys: Some(keys),
        ..request(None, 1)
    };
    let keys = rows.iter().map(|row| key_of(schema, row));
    let keys: Vec<Bytes> = keys.collect::<Result<_>>()?;
    for key in &keys {
        // Dates with a zero in them are one cell.
        let same = keys.iter().zip(rows).filter(|(other, _)| *other == key);
        let expected: Vec<pb::Row> = same.map(|(_, row)| row.clone()).collect();
        let (found, chunk) = rows_of(session, schema, request(vec![key.clone()])).await?;
        ensure!(
            sorted(&found) == sorted(&expected) && chunk.next.is_none(),
            "{found:?}, not {expected:?}"
        );
    }
    let (found, _) = rows_of(session, schema, request(keys)).await?;
    ensure!(sorted(&found) == sorted(rows));
    let (none, _) = rows_of(session, schema, request(Vec::new())).await?;
    ensure!(none.is_empty());
    Ok(())
}

fn key_of(schema: &TableSchema, row: &pb::Row) -> Result<Bytes> {
    let mut key = Vec::new();
    for at in schema.key_indexes() {
        let column = &schema.columns[at];
        let mut cell = ColumnBuilder::new(column.id, &column.ty);
        view::push_cell(&mut cell, &column.ty, &row.cells[at])?;
        cell.read().context("a cell")?.write_key(0, &mut key);
    }
    Ok(key.into())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_read_of_mysql_is_what_its_binlog_says() -> Result<()> {
    let server = Mysql::start(Product::Mysql9).await?;
    for statements in [LOAD, LOAD_MYSQL, COMMON, GENERATED, MYSQL, KEYS] {
        server.execute(statements).await?;
    }
    ensure_equal(&server).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_read_of_mariadb_is_what_its_binlog_says() -> Result<()> {
    for product in [Product::Mariadb10, Product::Mariadb11] {
        let server = Mysql::start(product).await?;
        for statements in [LOAD, COMMON, MARIADB, NATIVES, NATIVE_KEYS, KEYS] {
            server.execute(statements).await?;
        }
        if product == Product::Mariadb10 {
            server.execute(GENERATED).await?;
        }
        ensure_equal(&server)
            .await
            .with_context(|| format!("{product:?}"))?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_the_server_takes_for_equal_is_another_one() -> Result<()> {
    let server = Mysql::start(Product::Mysql9).await?;
    server
        .execute("create table names (name varchar(20) primary key); insert into names values ('a'), ('B')")
        .await?;
    let config = config(&server).await?;
    let table = Catalog::connect(&config)
        .await?
        .table("shop", "names")
        .await?;
    let schema = table.context("the table")?.schema;
    let mut session = SnapshotSession::connect(&config).await?;
    let (rows, _) = all_rows(&mut session, &schema, 10).await?;
    let keys: Vec<Bytes> = rows
        .iter()
        .map(|row| key_of(&schema, row))
        .collect::<Result<_>>()?;
    server
        .execute("update names set name = 'A' where name = 'a'")
        .await?;
    let mut asked = request(None, 1);
    asked.keys = Some(keys);
    let (rows, _) = rows_of(&mut session, &schema, asked).await?;
    ensure!(
        rows.len() == 1 && sorted(&rows)[0].contains("\"B\""),
        "{rows:?}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_says_what_it_is_and_where_it_stands() -> Result<()> {
    for product in Product::ALL {
        let server = Mysql::start(product).await?;
        let config = config(&server).await?;
        let mut session = sql::connect(&config).await?;
        let facts = Server::look(&mut session).await?;
        let expected = match product.is_mariadb() {
            true => Flavor::Mariadb,
            false => Flavor::Mysql,
        };
        ensure!(facts.flavor == expected && facts.log_bin, "{facts:?}");
        ensure!(facts.has_gtids() != product.is_mariadb(), "{facts:?}");
        ensure!(facts.server_uid.is_some(), "{facts:?}");
        ensure!(
            facts.binlog_row_metadata.as_deref() == Some("FULL"),
            "{facts:?}"
        );
        ensure!(
            facts.tells_rows() && facts.lower_case_table_names == 0,
            "{facts:?}"
        );
        ensure!(
            facts.server_id == 1 && facts.binlog_format == "ROW",
            "{facts:?}"
        );
        let before = facts.position(&mut session).await?;
        server
            .execute("create table t (id int primary key); insert into t values (1); flush binary logs; insert into t values (2)")
            .await?;
        let after = facts.position(&mut session).await?;
        ensure!(
            after.covers(&before) && !before.covers(&after),
            "{before} {after}"
        );
        let place = after.place().context("a place")?.clone();
        ensure!(place.position == u64::try_from(server.newest_binlog()?.len())?);
        let purged = facts.purged(&mut session).await?;
        ensure!(before.covers(&purged), "{purged}");
        server.purge_binlogs().await?;
        let purged = facts.purged(&mut session).await?;
        ensure!(
            purged.covers(&before) && !purged.covers(&after) && after.covers(&purged),
            "{product:?}: {before} {purged} {after}"
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_that_cannot_be_captured_say_why() -> Result<()> {
    const COMMON: &str = "create table sw (id int primary key, t varchar(5) character set swe7);
        create table isam (id int primary key) engine = myisam;
        create table lost (id int primary key, e enum('a', '😀'));
        create view seen as select * from isam;
        create table fine (id int primary key)";
    const MARIADB: &str =
        "create table comp (id int primary key, c varchar(10) compressed, b blob compressed);
        create table hashed (id int primary key, lu text, unique key (lu));
        create table history (id int primary key) with system versioning;
        set global mysql56_temporal_format = off;
        create table old (id int primary key, t time(3));
        set global mysql56_temporal_format = on;
        create sequence numbers;";
    for product in Product::ALL {
        let server = Mysql::start(product).await?;
        server.execute(COMMON).await?;
        let mut expected = BTreeSet::from([
            ("fine".to_owned(), None),
            ("isam".into(), Some("DR-1073")),
            ("lost".into(), Some("DR-1071")),
            ("sw".into(), Some("DR-1072")),
        ]);
        if product.is_mariadb() {
            server.execute(MARIADB).await?;
            expected.insert(("old".into(), Some("DR-1071")));
            expected.insert(("comp".into(), None));
            expected.insert(("hashed".into(), Some("DR-1078")));
            expected.insert(("history".into(), Some("DR-1077")));
        }
        if product == Product::Mariadb11 {
            server.execute(GENERATED).await?;
            expected.insert(("gen".into(), None));
        }
        let config = config(&server).await?;
        let tables = Catalog::connect(&config).await?.tables(&config).await?;
        let found = tables.iter().map(|table| {
            let problem = table.problem.as_ref();
            (
                table.schema.name.clone(),
                problem.map(|problem| problem.code),
            )
        });
        let found: BTreeSet<_> = found.collect();
        ensure!(found == expected, "{product:?}: {found:?}");
        let warned = tables.iter().filter(|table| {
            let warning = table.warning.as_ref();
            warning.is_some_and(|warning| warning.code == "DR-1079")
        });
        let warned: Vec<&str> = warned.map(|table| table.schema.name.as_str()).collect();
        let leaves_out = product == Product::Mariadb11;
        ensure!(
            warned == if leaves_out { vec!["gen"] } else { Vec::new() },
            "{product:?}: {warned:?}"
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_is_encrypted_as_its_url_says() -> Result<()> {
    let server = Mysql::start(Product::Mysql9).await?;
    let encrypted = async |parameters: &str| -> Result<bool> {
        let port = server.client().await?.opts().tcp_port();
        let url = format!("mysql://root@127.0.0.1:{port}?{parameters}");
        let config = downriver_source::mysql::config::MysqlConfig::from_url(&url)?;
        let mut session = sql::connect(&config)
            .await
            .map_err(|error| anyhow::anyhow!("{}", error.problem().code))?;
        use mysql_async::prelude::Queryable as _;
        let cipher: Option<(String, Vec<u8>)> =
            session.query_first("show status like 'ssl_cipher'").await?;
        Ok(!cipher.context("a status")?.1.is_empty())
    };
    ensure!(!encrypted("ssl-mode=DISABLED").await?);
    ensure!(encrypted("").await?);
    ensure!(encrypted("ssl-mode=REQUIRED").await?);
    let refused = encrypted("ssl-mode=VERIFY_CA").await;
    ensure!(refused.is_err_and(|error| error.to_string() == "DR-1006"));
    Ok(())
}

/// What a user has to be granted, and no more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reading_takes_few_privileges() -> Result<()> {
    const USER: &str = "create table t (id int primary key); insert into t values (1), (2);
        create user cdc@'127.0.0.1' identified by 'p';
        grant replication client, replication slave on *.* to cdc@'127.0.0.1';";
    let without_gtids = ["gtid-mode = OFF", "enforce-gtid-consistency = OFF"];
    for (product, settings, needs_lock) in [
        (Product::Mysql9, &[][..], false),
        (Product::Mysql9, &without_gtids[..], true),
        (Product::Mariadb10, &[], false),
        (Product::Mariadb11, &[], false),
    ] {
        let server = Mysql::start_with(product, settings).await?;
        server.execute(USER).await?;
        let mut config = config(&server).await?;
        (config.user, config.password) = ("cdc".into(), Some("p".into()));
        let mut catalog = Catalog::connect(&config).await?;
        ensure!(
            catalog.table("shop", "t").await?.is_none(),
            "it is not to be seen"
        );
        server
            .execute("grant select on shop.* to cdc@'127.0.0.1'")
            .await?;
        let mut catalog = Catalog::connect(&config).await?;
        let schema = catalog
            .table("shop", "t")
            .await?
            .context("the table")?
            .schema;
        let mut session = SnapshotSession::connect(&config).await?;
        let read = all_rows(&mut session, &schema, 1).await;
        if needs_lock {
            ensure!(read.is_err_and(|error| error.to_string().contains("DR-1004")));
            server
                .execute("grant lock tables on shop.* to cdc@'127.0.0.1'")
                .await?;
            // Privileges of a database are those of when it was entered, or of a new session.
            session = SnapshotSession::connect(&config).await?;
        } else {
            read?;
        }
        let (rows, _) = all_rows(&mut session, &schema, 1).await?;
        ensure!(rows.len() == 2, "{product:?}");
        config.password = Some("wrong".into());
        let refused = SnapshotSession::connect(&config)
            .await
            .err()
            .context("a refusal")?;
        ensure!(
            refused.problem().code == "DR-1001",
            "{:?}",
            refused.problem()
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn enumerations_have_their_labels_from_the_catalog() -> Result<()> {
    let server = Mysql::start(Product::Mysql9).await?;
    server.execute(COMMON).await?;
    let config = config(&server).await?;
    let table = Catalog::connect(&config)
        .await?
        .table("shop", "labels")
        .await?;
    let schema = table.context("the table")?.schema;
    let labels = [
        "a",
        "it's",
        "back\\slash",
        "new\nline",
        "tab\tx",
        "q\"q",
        "com,ma",
        "",
    ];
    let ty = LogicalType::Enum {
        labels: labels.map(String::from).to_vec(),
    };
    ensure!(schema.columns[1].ty == ty, "{:?}", schema.columns[1]);
    ensure!(
        schema.columns[2].source_type == "set('x''y','ü','\\','last')",
        "{:?}",
        schema.columns[2]
    );
    Ok(())
}
