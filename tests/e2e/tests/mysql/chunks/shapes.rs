//! Tables that are changed while they are read.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use downriver_source::chunk::ChunkReader as _;
use downriver_source::mysql::catalog::Catalog;
use downriver_source::mysql::server::Server;
use downriver_source::mysql::snapshot::SnapshotSession;
use downriver_source::mysql::sql;
use downriver_testkit::host::until;
use downriver_testkit::mysql::{Mysql, Product};
use mysql_async::prelude::Queryable as _;

use super::read::{Read, all_rows, chunk, config, request};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_of_another_shape_is_not_read() -> Result<()> {
    const CHANGES: [&str; 9] = [
        "alter table t add d int",
        "alter table t drop b",
        "alter table t rename column a to aa",
        "alter table t rename column a to b, rename column b to a",
        "alter table t modify a bigint",
        "alter table t modify a int not null",
        "alter table t drop primary key, add primary key (id, c)",
        "alter table t modify c varchar(10) character set latin1",
        "rename table t to t2",
    ];
    for product in Product::ALL {
        let server = Mysql::start(product).await?;
        let config = config(&server).await?;
        let mut session = SnapshotSession::connect(&config).await?;
        let mut facts = sql::connect(&config).await?;
        let look = Server::look(&mut facts).await?;
        for change in CHANGES {
            server
                .execute(
                    "drop table if exists t, t2; create table t (id int primary key, a int, b varchar(10), c varchar(10) not null);
                     insert into t values (1, 1, 'x', 'y'), (2, 2, 'x', 'y')",
                )
                .await?;
            let table = Catalog::connect(&config).await?.table("shop", "t").await?;
            let schema = table.context("the table")?.schema;
            let (rows, _) = all_rows(&mut session, &schema, 1).await?;
            ensure!(rows.len() == 2);
            server.execute(change).await?;
            let end = look.position(&mut facts).await?;
            let read = chunk(&mut session, &schema, request(None, 1)).await?;
            let Read::Reshaped(reshaped) = read else {
                bail!("{product:?}: {change} went unnoticed");
            };
            let (high, end) = (reshaped.high.place(), end.place());
            ensure!(
                high.zip(end).is_some_and(|(high, end)| high.covers(end)),
                "{product:?} {change}: {high:?}, not {end:?}"
            );
            match reshaped.now {
                Some(now) => {
                    ensure!(
                        !change.starts_with("rename") && now.schema != schema,
                        "{now:?}"
                    );
                    let (rows, _) = all_rows(&mut session, &now.schema, 1).await?;
                    ensure!(rows.len() == 2);
                }
                None => ensure!(change.starts_with("rename"), "{change}"),
            }
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_of_a_table_is_refused_by_name() -> Result<()> {
    let server = Mysql::start(Product::Mariadb11).await?;
    server
        .execute("create table t (id int primary key)")
        .await?;
    let config = config(&server).await?;
    let table = Catalog::connect(&config).await?.table("shop", "t").await?;
    let schema = table.context("the table")?.schema;
    let mut session = SnapshotSession::connect(&config).await?;
    let mut part = request(None, 1);
    part.part = Some(downriver_event::RowFilter::nothing("id > 5"));
    let refused = chunk(&mut session, &schema, part).await;
    let Err(refused) = refused else {
        bail!("it was read");
    };
    ensure!(refused.to_string().contains("DR-1076"), "{refused}");
    let (rows, _) = all_rows(&mut session, &schema, 1).await?;
    ensure!(rows.is_empty());
    Ok(())
}

/// Whoever changes a table waits for those that read it, and those that come later wait behind: a chunk that is read
/// meanwhile comes to an end when they do, and has seen the change.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_waits_is_let_pass() -> Result<()> {
    for product in Product::ALL {
        let server = Mysql::start(product).await?;
        server
            .execute("create table t (id int primary key); insert into t values (1)")
            .await?;
        let config = config(&server).await?;
        let table = Catalog::connect(&config).await?.table("shop", "t").await?;
        let schema = table.context("the table")?.schema;
        let mut session = SnapshotSession::connect(&config).await?;
        let mut reader = server.client().await?;
        reader.query_drop("start transaction").await?;
        reader.query_drop("select * from t").await?;
        let mut changer = server.client().await?;
        let change =
            tokio::spawn(async move { changer.query_drop("alter table t add a int").await });
        waiting(&server, 1).await?;
        let read =
            tokio::spawn(async move { chunk(&mut session, &schema, request(None, 1)).await });
        waiting(&server, 2).await?;
        reader.query_drop("commit").await?;
        change.await??;
        let Read::Reshaped(reshaped) = read.await?? else {
            bail!("{product:?}: the change went unnoticed");
        };
        let now = reshaped.now.context("it is there")?;
        ensure!(now.schema.columns.len() == 2);
    }
    Ok(())
}

/// So many sessions wait for a table's shape.
async fn waiting(server: &Mysql, sessions: u64) -> Result<()> {
    let query = "select count(*) from information_schema.processlist where state like 'Waiting for table metadata lock%'";
    let mut client = server.client().await?;
    until("sessions to wait", Duration::from_secs(30), async || {
        let found: Option<u64> = client.query_first(query).await?;
        Ok(found == Some(sessions))
    })
    .await
}
