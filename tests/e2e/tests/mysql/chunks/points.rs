//! The consistent point of a chunk: which transactions its rows contain, and where the last of them ends.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use downriver_event::{SourcePosition, TableSchema, pb};
use downriver_source::chunk::{Chunk, ChunkReader as _, Seen};
use downriver_source::mysql::catalog::Catalog;
use downriver_source::mysql::server::Server;
use downriver_source::mysql::snapshot::SnapshotSession;
use downriver_source::mysql::sql;
use downriver_testkit::host::until;
use downriver_testkit::mysql::{Mysql, Product};
use mysql_async::prelude::Queryable as _;

use super::read::{chunk, config, request, rows_of};
use super::{binlog, file};

const PATIENCE: Duration = Duration::from_secs(30);

/// How a server is told to let every transaction wait between its binlog and its engine, for a replica that is not there.
struct Hold {
    hold: &'static str,
    release: &'static str,
    /// Lines of my.cnf that it takes.
    settings: &'static [&'static str],
}

const MYSQL: Hold = Hold {
    hold: "set global rpl_semi_sync_source_wait_point = AFTER_SYNC, global rpl_semi_sync_source_timeout = 600000,
           global rpl_semi_sync_source_wait_no_replica = on, global rpl_semi_sync_source_enabled = on",
    release: "set global rpl_semi_sync_source_enabled = off",
    settings: &["plugin-load-add = semisync_source.so"],
};
const MYSQL_WITHOUT_GTIDS: Hold = Hold {
    settings: &[
        "plugin-load-add = semisync_source.so",
        "gtid-mode = OFF",
        "enforce-gtid-consistency = OFF",
    ],
    ..MYSQL
};
const MARIADB: Hold = Hold {
    hold: "set global rpl_semi_sync_master_wait_point = AFTER_SYNC, global rpl_semi_sync_master_timeout = 600000,
           global rpl_semi_sync_master_wait_no_slave = on, global rpl_semi_sync_master_enabled = on",
    release: "set global rpl_semi_sync_master_enabled = off",
    settings: &[],
};

async fn schema_of(server: &Mysql, name: &str) -> Result<TableSchema> {
    let table = Catalog::connect(&config(server).await?)
        .await?
        .table("shop", name)
        .await?;
    Ok(table.context("the table")?.schema)
}

/// Has the one transaction of the binlog that inserts row `id` been seen, and does it end before `high`?
fn stands(told: &binlog::Told, id: i64, chunk: &Chunk) -> Result<(bool, bool)> {
    let is_it = |change: &&binlog::Change| {
        let row = change.after.as_ref();
        row.is_some_and(|row| number(row, 0) == Some(id))
    };
    let change = told.changes.iter().find(is_it).context("the insert")?;
    let seen = chunk.seen.has(&change.transaction, Some(&change.position));
    let (high, end) = (chunk.high.place(), change.position.place());
    let is_before = high.zip(end).is_some_and(|(high, end)| high.covers(end));
    Ok((seen, is_before))
}

fn number(row: &pb::Row, at: usize) -> Option<i64> {
    match row.cells.get(at)?.kind.as_ref()? {
        pb::cell::Kind::Value(pb::Value {
            kind: Some(pb::value::Kind::Int(number)),
        }) => Some(*number),
        _ => None,
    }
}

/// A transaction is in the binlog and not visible yet.
async fn logged_and_not_visible(product: Product, hold: &Hold) -> Result<()> {
    let server = Mysql::start_with(product, hold.settings).await?;
    server
        .execute("create table p (id int primary key); flush binary logs; insert into p values (1)")
        .await?;
    let schema = schema_of(&server, "p").await?;
    let has_gtids = product == Product::Mysql9 && hold.settings.len() == 1;
    let mut session = SnapshotSession::connect(&config(&server).await?).await?;
    let mut facts = sql::connect(&config(&server).await?).await?;
    let look = Server::look(&mut facts).await?;
    let before = look.position(&mut facts).await?;
    server.execute(hold.hold).await?;
    let mut writer = server.client().await?;
    let waiting = tokio::spawn(async move { writer.query_drop("insert into p values (2)").await });
    until("the insert to be logged", PATIENCE, async || {
        let now = look.position(&mut facts).await?;
        Ok(now.place() != before.place())
    })
    .await?;
    let held = chunk(&mut session, &schema, request(None, 10)).await;
    server.execute(hold.release).await?;
    waiting.await??;
    let told = binlog::read(&server, &file(&server).await?).await?;
    match held {
        // Its writer has the table until it is visible.
        Err(error) if product == Product::Mysql9 && !has_gtids => {
            ensure!(error.to_string().contains("DR-1075"), "{error}");
        }
        Err(error) => return Err(error),
        Ok(super::read::Read::Reshaped(_)) => bail!("reshaped"),
        Ok(super::read::Read::Rows(rows, chunk)) => {
            ensure!(
                product.is_mariadb() || has_gtids,
                "it was read without a lock"
            );
            ensure!(rows.len() == 1, "{rows:?}");
            ensure!(stands(&told, 1, &chunk)? == (true, true), "{chunk:?}");
            // By the end of the binlog alone it would have been taken for seen, and lost.
            ensure!(!stands(&told, 2, &chunk)?.0, "{chunk:?}");
        }
    }
    let (rows, chunk) = rows_of(&mut session, &schema, request(None, 10)).await?;
    ensure!(rows.len() == 2, "{rows:?}");
    for id in [1, 2] {
        ensure!(stands(&told, id, &chunk)? == (true, true), "{chunk:?}");
    }
    ensure!(
        matches!(chunk.seen, Seen::UpTo(_)) == has_gtids,
        "{chunk:?}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_logged_and_not_visible_is_not_seen_with_gtids() -> Result<()> {
    logged_and_not_visible(Product::Mysql9, &MYSQL).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_logged_and_not_visible_is_not_seen_without_gtids() -> Result<()> {
    logged_and_not_visible(Product::Mysql9, &MYSQL_WITHOUT_GTIDS).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_logged_and_not_visible_is_not_seen_of_mariadb() -> Result<()> {
    for product in [Product::Mariadb10, Product::Mariadb11] {
        logged_and_not_visible(product, &MARIADB).await?;
    }
    Ok(())
}

const WRITERS: usize = 4;
const WRITES: usize = 1500;

/// Several sessions count up each row of a table while it is read again and again: no read has less than what it says
/// to have seen, nor anything from behind its end; and where the point is exact, nothing more.
async fn reads_among_writes(product: Product, settings: &[&str], is_exact: bool) -> Result<()> {
    let server = Mysql::start_with(product, settings).await?;
    server
        .execute("create table c (id int primary key, n int); flush binary logs; insert into c values (1, 0), (2, 0), (3, 0)")
        .await?;
    let schema = schema_of(&server, "c").await?;
    let config = config(&server).await?;
    let mut session = SnapshotSession::connect(&config).await?;
    let mut writers = Vec::new();
    for writer in 0..WRITERS {
        let mut client = server.client().await?;
        writers.push(tokio::spawn(async move {
            for write in 0..WRITES {
                let id = 1 + (writer + write) % 3;
                let update = format!("update c set n = n + 1 where id = {id}");
                client.query_drop(update).await?;
            }
            Ok::<_, mysql_async::Error>(())
        }));
    }
    let mut reads = Vec::new();
    while !writers.iter().all(tokio::task::JoinHandle::is_finished) {
        match chunk(&mut session, &schema, request(None, 10)).await {
            Ok(super::read::Read::Rows(rows, chunk)) => reads.push((rows, chunk)),
            Ok(super::read::Read::Reshaped(_)) => bail!("reshaped"),
            Err(error) if error.to_string().contains("DR-1075") => {}
            Err(error) => return Err(error),
        }
    }
    for writer in writers {
        writer.await??;
    }
    ensure!(reads.len() > 10, "{} reads", reads.len());
    let told = binlog::read(&server, &file(&server).await?).await?;
    for (rows, chunk) in reads {
        let found = counts(&rows);
        let seen = state(&told, |change| {
            chunk.seen.has(&change.transaction, Some(&change.position))
        });
        let before_high = state(&told, |change| covers(&chunk.high, &change.position));
        for (id, n) in found {
            let (low, high) = (seen.get(&id), before_high.get(&id));
            ensure!(low.is_some_and(|low| *low <= n), "{id}: {n}, not {low:?}");
            ensure!(
                high.is_some_and(|high| n <= *high),
                "{id}: {n}, not {high:?}"
            );
            ensure!(!is_exact || low == Some(&n), "{id}: {n}, not {low:?}");
        }
    }
    Ok(())
}

fn covers(high: &SourcePosition, end: &SourcePosition) -> bool {
    let places = high.place().zip(end.place());
    places.is_some_and(|(high, end)| high.covers(end))
}

fn counts(rows: &[pb::Row]) -> BTreeMap<i64, i64> {
    rows.iter()
        .filter_map(|row| number(row, 0).zip(number(row, 1)))
        .collect()
}

/// The rows that these changes leave.
fn state(told: &binlog::Told, is_in: impl Fn(&binlog::Change) -> bool) -> BTreeMap<i64, i64> {
    let changes = told.changes.iter().filter(|change| is_in(change));
    let rows = changes.filter_map(|change| change.after.as_ref());
    let mut state = BTreeMap::new();
    for row in rows {
        state.extend(number(row, 0).zip(number(row, 1)));
    }
    state
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_among_writes_have_what_they_say_with_gtids() -> Result<()> {
    reads_among_writes(
        Product::Mysql9,
        &["binlog-group-commit-sync-delay = 2000"],
        false,
    )
    .await?;
    reads_among_writes(Product::Mysql9, &["binlog-order-commits = OFF"], false).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_among_writes_have_what_they_say_without_gtids() -> Result<()> {
    let settings = ["gtid-mode = OFF", "enforce-gtid-consistency = OFF"];
    reads_among_writes(Product::Mysql9, &settings, true).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_among_writes_have_what_they_say_of_mariadb() -> Result<()> {
    for product in [Product::Mariadb10, Product::Mariadb11] {
        reads_among_writes(product, &[], true).await?;
    }
    Ok(())
}
