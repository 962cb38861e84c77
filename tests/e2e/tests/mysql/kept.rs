//! How far a source is behind its server's binlog, and how long the server keeps what is not captured yet.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use downriver_testkit::daemon::{self, Daemon};
use downriver_testkit::mysql::{Mysql, Product};
use downriver_testkit::resources;
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(60);

async fn until(daemon: &Daemon, what: &str, is: impl Fn(&Value) -> bool) -> Result<Value> {
    daemon
        .until_described("source", resources::SOURCE, what, PATIENCE, is)
        .await
}

async fn metric(daemon: &Daemon, name: &str) -> Result<Option<f64>> {
    let (_, text) = daemon::http_get(&daemon.addresses()?.http, "/metrics").await?;
    let line = text
        .lines()
        .find(|line| line.starts_with(&format!("{name}{{")));
    let value = line.and_then(|line| line.rsplit(' ').next());
    Ok(value.map(str::parse).transpose()?)
}

async fn is_told(product: Product) -> Result<()> {
    let mysql = Mysql::start(product).await?;
    mysql.create_capture_user().await?;
    mysql
        .execute(
            "set global binlog_expire_logs_seconds = 3600;
             create table t (id int primary key);
             create table u (id int primary key);
             insert into t values (1)",
        )
        .await?;
    let folder = tempfile::tempdir()?;
    let mut daemon = Daemon::new(folder.path())?;
    daemon.start().await?;
    let source = |warn: &str| {
        let retention = format!("binlog_retention: {{ warn: {warn} }}");
        resources::mysql_source(&mysql, &["shop.t"], &[&retention])
    };
    // More than the server keeps.
    let warned = daemon.try_apply(&source("2h")).await?.text();
    ensure!(warned.contains("DR-1099"), "{warned}");
    until(&daemon, "DR-1099", |s| s["warning"]["code"] == "DR-1099").await?;

    // An idle source, whatever others write, is not behind.
    daemon.apply(&source("3598s")).await?;
    mysql.execute("insert into u values (1)").await?;
    let is_idle = |s: &Value| {
        s["state"] == "streaming"
            && s["binlog"]["behind_seconds"] == 0.0
            && s["binlog"]["behind_bytes"] == 0
            && s["warning"].is_null()
    };
    let idle = until(&daemon, "nothing to be behind", is_idle).await?;
    ensure!(idle["binlog"]["safe_seconds"] == 3600.0, "{idle}");
    ensure!(idle["binlog"]["kept_bytes"].as_u64() > Some(100), "{idle}");
    ensure!(metric(&daemon, "downriver_source_behind_seconds").await? == Some(0.0));
    ensure!(metric(&daemon, "downriver_source_binlog_safe_seconds").await? == Some(3600.0));

    // It stands still, and the file that it is in has ended.
    daemon.stop()?;
    mysql
        .execute(
            "set global binlog_format = STATEMENT;
             insert into t values (2);
             flush binary logs;
             insert into t values (3)",
        )
        .await?;
    daemon.start().await?;
    let stopped = until(&daemon, "what is left to be said", |s| {
        s["code"] == "DR-1080" && s["warning"]["code"] == "DR-1097"
    })
    .await?;
    ensure!(
        stopped["binlog"]["behind_bytes"].as_u64() > Some(0),
        "{stopped}"
    );
    let safe = stopped["binlog"]["safe_seconds"].as_f64();
    ensure!(safe > Some(3000.0) && safe < Some(3600.0), "{stopped}");
    ensure!(metric(&daemon, "downriver_source_behind_bytes").await? > Some(0.0));

    // What it needs is gone.
    mysql.purge_binlogs().await?;
    let gone = until(&daemon, "the hole to be foreseen", |s| {
        s["binlog"]["safe_seconds"] == 0.0
    })
    .await?;
    let reason = gone["warning"]["reason"].as_str();
    ensure!(
        reason.is_some_and(|reason| reason.contains("has purged")),
        "{gone}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn how_far_a_source_of_mysql_is_and_how_long_it_may_stay_there_is_told() -> Result<()> {
    is_told(Product::Mysql9).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn how_far_a_source_of_mariadb_is_and_how_long_it_may_stay_there_is_told() -> Result<()> {
    is_told(Product::Mariadb11).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_stands_still_or_logs_nothing_is_said() -> Result<()> {
    for product in [Product::Mysql9, Product::Mariadb10] {
        let mysql = Mysql::start(product).await?;
        mysql.create_capture_user().await?;
        // One that has never been started.
        mysql
            .execute(match product.is_mariadb() {
                true => {
                    "grant slave monitor on *.* to cdc@'%';
                     change master to master_host = '127.0.0.1', master_port = 1, master_user = 'r'"
                }
                false => "change replication source to source_host = '127.0.0.1', source_port = 1, source_user = 'r'",
            })
            .await?;
        let folder = tempfile::tempdir()?;
        let mut daemon = Daemon::new(folder.path())?;
        daemon.start().await?;
        let file = folder.path().join("source.yaml");
        let retention = ["binlog_retention: { warn: 400d }"];
        let yaml = resources::mysql_source(&mysql, &["shop.*"], &retention);
        std::fs::write(&file, yaml)?;
        let file = file.to_str().context("a path")?;
        let checked = daemon
            .run(&["check", "-f", file, "-o", "json"])
            .await?
            .text();
        ensure!(checked.contains("DR-1098"), "{checked}");
        // MariaDB's own defaults: nothing of its primary is logged, and its binlog is kept for ever.
        ensure!(
            checked.contains("DR-1070") == product.is_mariadb(),
            "{checked}"
        );
        ensure!(
            checked.contains("DR-1099") != product.is_mariadb(),
            "{checked}"
        );
    }
    Ok(())
}
