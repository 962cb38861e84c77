//! Tables that are changed while they are read.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use downriver_event::RowFilter;
use downriver_event::filter::{Comparator, Condition, Written, WrittenFilter};
use downriver_source::chunk::ChunkReader as _;
use downriver_source::mysql::catalog::Catalog;
use downriver_source::mysql::filter::understand;
use downriver_source::mysql::server::Server;
use downriver_source::mysql::snapshot::SnapshotSession;
use downriver_source::mysql::sql;
use downriver_testkit::host::until;
use downriver_testkit::mysql::{Mysql, Product};
use mysql_async::prelude::Queryable as _;

use super::key_of;
use super::read::{Read, all_rows, chunk, config, request, rows_of};

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
async fn a_part_of_a_table_is_read_by_chunks_and_by_keys() -> Result<()> {
    for product in Product::ALL {
        let server = Mysql::start(product).await?;
        server
            .execute(
                "create table t (a int, b varchar(10), primary key (a, b(3)));
                 create table u (a int, b varchar(10), primary key (b, a));
                 insert into t values (1, 'x'), (2, 'X'), (3, 'y'), (4, 'x'), (5, 'x');
                 insert into u select * from t",
            )
            .await?;
        let config = config(&server).await?;
        let mut session = SnapshotSession::connect(&config).await?;
        for (name, chunks) in [("t", 1), ("u", 4)] {
            let table = Catalog::connect(&config).await?.table("shop", name).await?;
            let schema = table.context("the table")?.schema;
            let of = |column: &str, comparator, literal: &str| {
                Condition::Is(Written {
                    column: column.into(),
                    comparator,
                    literal: literal.into(),
                })
            };
            let written = WrittenFilter {
                text: "a > 1 and b = 'x'".into(),
                condition: Condition::All(vec![
                    of("a", Comparator::Greater, "1"),
                    of("b", Comparator::Equal, "x"),
                ]),
            };
            let part = understand(&schema, &written)?;
            let (mut after, mut found, mut read) = (None, Vec::new(), 0);
            loop {
                let mut asked = request(after.take(), 1);
                asked.part = Some(part.clone());
                let (rows, chunk) = rows_of(&mut session, &schema, asked).await?;
                found.extend(rows);
                read += 1;
                after = chunk.next;
                if after.is_none() {
                    break;
                }
            }
            ensure!(found.len() == 2, "{product:?} {name}: {found:?}");
            ensure!(read <= chunks, "{product:?} {name}: {read} chunks");
            let (all, _) = all_rows(&mut session, &schema, 10).await?;
            let keys = all.iter().map(|row| key_of(&schema, row));
            let mut asked = request(None, 10);
            asked.keys = Some(keys.collect::<Result<_>>()?);
            asked.part = Some(part.clone());
            let (rows, _) = rows_of(&mut session, &schema, asked).await?;
            ensure!(rows.len() == 2, "{product:?} {name}: {rows:?}");
            let mut nothing = request(None, 10);
            nothing.part = Some(RowFilter::nothing("no row"));
            let (rows, _) = rows_of(&mut session, &schema, nothing).await?;
            ensure!(rows.is_empty(), "{product:?} {name}: {rows:?}");
            let expected = session.estimated_rows(&schema, &part).await?;
            ensure!(
                expected.is_some_and(|rows| rows <= 5),
                "{product:?}: {expected:?}"
            );
        }
    }
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
