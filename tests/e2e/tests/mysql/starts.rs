//! A source that is told where to begin, and a log that is read from a position on.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use downriver_testkit::daemon::Daemon;
use downriver_testkit::mysql::{Mysql, Product};
use downriver_testkit::resources;
use mysql_async::Row;
use mysql_async::prelude::Queryable as _;
use serde_json::Value;

pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Where a server was when something was written.
pub(crate) struct At {
    pub(crate) gtid: String,
    place: String,
}

pub(crate) struct Log {
    pub(crate) daemon: Daemon,
    pub(crate) mysql: Mysql,
    _folder: tempfile::TempDir,
}

impl Log {
    pub(crate) async fn open(product: Product, settings: &[&str]) -> Result<Self> {
        let mysql = Mysql::start_with(product, settings).await?;
        mysql.create_capture_user().await?;
        mysql
            .execute("create table t (id int primary key, v int)")
            .await?;
        let folder = tempfile::tempdir()?;
        let mut daemon = Daemon::new(folder.path())?;
        daemon.start().await?;
        Ok(Self {
            daemon,
            mysql,
            _folder: folder,
        })
    }

    async fn texts(&self, query: &str) -> Result<Vec<String>> {
        let row: Option<Row> = self.mysql.client().await?.query_first(query).await?;
        let row = row.with_context(|| query.to_owned())?;
        let cell = |at| match row.as_ref(at) {
            Some(mysql_async::Value::Bytes(bytes)) => String::from_utf8_lossy(bytes).into_owned(),
            Some(other) => other.as_sql(true),
            None => String::new(),
        };
        Ok((0..row.len()).map(cell).collect())
    }

    pub(crate) async fn at(&self) -> Result<At> {
        let (gtid, status) = match self.mysql.product().is_mariadb() {
            true => ("select @@global.gtid_binlog_pos", "show master status"),
            false => ("select @@global.gtid_executed", "show binary log status"),
        };
        let gtid = self.texts(gtid).await?.remove(0);
        let status = self.texts(status).await?;
        let place = format!("{}:{}", status[0], status[1]);
        Ok(At { gtid, place })
    }

    pub(crate) fn source(&self, name: &str, more: &[&str]) -> String {
        let source = resources::mysql_source(&self.mysql, &["shop.*"], more);
        source.replace(
            &format!("name: {}\n", resources::SOURCE),
            &format!("name: {name}\n"),
        )
    }

    /// Applies a source and waits until it has captured so many rows.
    async fn begin(&self, name: &str, start: &str, rows: usize) -> Result<Vec<i64>> {
        let start = format!("start: {start}");
        let yaml = self.source(name, &["snapshot: none", &start]);
        self.daemon.apply(&yaml).await?;
        self.daemon
            .until_described("source", name, "its rows to be captured", PATIENCE, |s| {
                s["state"] == "streaming" && s["events"].as_u64() >= Some(rows as u64)
            })
            .await?;
        self.tail(name, "earliest").await
    }

    /// The keys of the rows that the log has from a position on.
    pub(crate) async fn tail(&self, source: &str, from: &str) -> Result<Vec<i64>> {
        let arguments = [
            "tail", source, "--from", from, "--until", "latest", "-o", "json",
        ];
        let text = self.daemon.ok(&arguments).await?;
        let lines = text.lines().map(serde_json::from_str::<Value>);
        let events = lines.collect::<Result<Vec<_>, _>>()?;
        let rows = events.iter().filter(|event| event["op"] == "insert");
        Ok(rows.filter_map(|row| row["key"]["id"].as_i64()).collect())
    }

    async fn is_refused(&self, start: &str, expected: &str) -> Result<()> {
        let start = format!("start: {start}");
        let yaml = self.source("refused", &["snapshot: none", &start]);
        let refused = self.daemon.try_apply(&yaml).await?;
        let text = refused.text();
        ensure!(
            refused.code == Some(1) && text.contains("DR-1096") && text.contains(expected),
            "{start}: {text}"
        );
        Ok(())
    }
}

async fn begins_where_it_is_told(product: Product) -> Result<()> {
    let log = Log::open(product, &[]).await?;
    let insert = |id: u32| format!("insert into t values ({id}, 1)");
    let first = log.at().await?;
    log.mysql.execute(&insert(1)).await?;
    let early = log.at().await?;
    log.mysql.execute("flush binary logs").await?;
    log.mysql.execute(&insert(2)).await?;
    let start = log.at().await?;
    log.mysql.execute(&insert(3)).await?;
    let later = log.at().await?;
    log.mysql
        .execute("begin; insert into t values (4, 1); insert into t values (5, 1); commit")
        .await?;

    // By identifiers and by a place it is the same; at the place where the log ends, what comes then.
    let gtid = format!("{{ gtid: \"{}\" }}", start.gtid);
    let place = format!("{{ file_pos: \"{}\" }}", start.place);
    let end = format!("{{ file_pos: \"{}\" }}", log.at().await?.place);
    ensure!(log.begin("by-gtid", &gtid, 3).await? == [3, 4, 5]);
    ensure!(log.begin("by-place", &place, 3).await? == [3, 4, 5]);
    ensure!(log.begin("by-end", &end, 0).await?.is_empty());
    log.mysql.execute(&insert(6)).await?;
    for (source, rows) in [("by-gtid", 4), ("by-place", 4), ("by-end", 1)] {
        log.daemon
            .until_described("source", source, "row 6", PATIENCE, |s| {
                s["events"].as_u64() == Some(rows)
            })
            .await?;
    }
    ensure!(log.tail("by-end", "earliest").await? == [6]);

    // A log is read from behind a position.
    ensure!(log.tail("by-place", &later.gtid).await? == [4, 5, 6]);
    let from_place = log.tail("by-gtid", &later.place).await?;
    ensure!(from_place == [4, 5, 6], "{from_place:?}");
    ensure!(log.tail("by-gtid", &early.gtid).await? == [3, 4, 5, 6]);
    let elsewhere = log
        .daemon
        .run(&["tail", "by-gtid", "--from", "0/16B3748"])
        .await?;
    let text = elsewhere.text();
    ensure!(
        elsewhere.code == Some(1) && text.contains("another database") && text.contains("DR-2039"),
        "{text}"
    );

    // It goes on there, whatever the start says.
    let other = format!("start: {{ gtid: \"{}\" }}", early.gtid);
    let moved = log.source("by-gtid", &["snapshot: none", &other]);
    let refused = log.daemon.try_apply(&moved).await?.text();
    ensure!(
        refused.contains("DR-1096") && refused.contains("has begun already"),
        "{refused}"
    );

    // Where no transaction begins nothing does.
    let (file, at) = later.place.split_once(':').context("a place")?;
    let events: Vec<Row> = log
        .mysql
        .client()
        .await?
        .query(format!("show binlog events in '{file}' from {at}"))
        .await?;
    let inside = events.iter().find_map(|event| {
        let kind: String = event.get(2)?;
        kind.starts_with("Table_map")
            .then(|| event.get::<u64, _>(1))?
    });
    let inside = inside.context("a table map")?;
    let place = |at: u64| format!("{{ file_pos: \"{file}:{at}\" }}");
    log.is_refused(&place(inside), "inside a transaction")
        .await?;
    log.is_refused(&place(inside + 1), "inside an event")
        .await?;
    log.is_refused(&place(1 << 30), "ends at").await?;
    log.is_refused("{ file_pos: \"binlog.000099:4\" }", "no file")
        .await?;
    let (ahead, foreign) = match product.is_mariadb() {
        true => ("0-1-100000", "3e11fa47-71ca-11e1-9e33-c80aa9429562:1-5"),
        false => ("3e11fa47-71ca-11e1-9e33-c80aa9429562:1-5", "0-1-1"),
    };
    let ahead_of = if product.is_mariadb() {
        "ahead"
    } else {
        "never executed"
    };
    log.is_refused(&format!("{{ gtid: \"{ahead}\" }}"), ahead_of)
        .await?;
    log.is_refused(&format!("{{ gtid: \"{foreign}\" }}"), "the server is")
        .await?;
    log.mysql.purge_binlogs().await?;
    log.is_refused(&format!("{{ gtid: \"{}\" }}", first.gtid), "has purged")
        .await?;
    let initial = log.source("refused", &[&format!("start: {}", place(4))]);
    let refused = log.daemon.try_apply(&initial).await?.text();
    ensure!(refused.contains("snapshot: none"), "{refused}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_of_mysql_begins_where_it_is_told_to() -> Result<()> {
    begins_where_it_is_told(Product::Mysql9).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_of_mariadb_begins_where_it_is_told_to() -> Result<()> {
    begins_where_it_is_told(Product::Mariadb11).await
}
