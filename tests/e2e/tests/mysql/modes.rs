//! MySQL while its `gtid_mode` is changed, under a capture that runs and one that does not.

use anyhow::{Context as _, Result, ensure};
use downriver_testkit::mysql::Product;
use serde_json::Value;

use crate::starts::{Log, PATIENCE};

const SOURCE: &str = "modes";

impl Log {
    async fn mode(&self, mode: &str) -> Result<()> {
        self.mysql
            .execute(&format!("set global gtid_mode = {mode}"))
            .await
    }

    async fn insert(&self, id: i64) -> Result<()> {
        self.mysql
            .execute(&format!("insert into t values ({id}, 1)"))
            .await
    }

    async fn until(&self, what: &str, is: impl Fn(&Value) -> bool) -> Result<Value> {
        self.daemon
            .until_described("source", SOURCE, what, PATIENCE, is)
            .await
    }

    /// Waits until the log has the rows up to this one: each once, and in order.
    async fn until_captured(&self, last: i64) -> Result<()> {
        let rows: Vec<i64> = (1..=last).collect();
        let mut found = Vec::new();
        downriver_testkit::host::until(&format!("row {last}"), PATIENCE, async || {
            found = self.tail(SOURCE, "earliest").await?;
            Ok(found.len() >= rows.len())
        })
        .await?;
        ensure!(found == rows, "{found:?}");
        Ok(())
    }
}

fn goes_by_gtids(source: &Value) -> bool {
    let position = source["position"].as_str();
    position.is_some_and(|position| position.matches('-').count() >= 4)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_or_doubled_while_gtid_mode_is_changed() -> Result<()> {
    let mut log = Log::open(Product::Mysql9, &["gtid-mode = OFF"]).await?;
    let yaml = log.source(SOURCE, &["snapshot: none"]);
    log.daemon.apply(&yaml).await?;
    log.until("it to stream", |s| s["state"] == "streaming")
        .await?;

    // While it runs: by places until every transaction has an identifier, and then by all of these.
    let modes = ["OFF", "OFF_PERMISSIVE", "ON_PERMISSIVE", "ON"];
    for (mode, id) in modes.iter().zip(1..) {
        log.mode(mode).await?;
        log.insert(id).await?;
        log.until_captured(id).await?;
        let described = log.daemon.describe("source", SOURCE).await?;
        ensure!(*mode == "ON" || !goes_by_gtids(&described), "{described}");
    }
    let described = log.until("it to go by GTIDs", goes_by_gtids).await?;
    ensure!(described["position"] == log.at().await?.gtid, "{described}");
    log.insert(5).await?;
    log.until_captured(5).await?;

    // Back, while it is down: from its place on.
    log.daemon.kill();
    log.mode("ON_PERMISSIVE").await?;
    log.insert(6).await?;
    log.mode("OFF_PERMISSIVE").await?;
    log.insert(7).await?;
    log.daemon.start().await?;
    log.until_captured(7).await?;
    log.daemon.kill();
    log.mode("OFF").await?;
    log.insert(8).await?;
    log.daemon.start().await?;
    log.until_captured(8).await?;

    // To the end while it is down, with a transaction that it has not read and the server does not send any more.
    log.daemon.kill();
    log.insert(9).await?;
    for mode in &modes[1..] {
        log.mode(mode).await?;
    }
    log.insert(10).await?;
    log.daemon.start().await?;
    let held = log
        .until("it to be said", |s| s["code"] == "DR-1083")
        .await?;
    let fix = held["fix"].as_str().context("a fix")?;
    ensure!(fix.contains("ON_PERMISSIVE"), "{held}");
    log.mode("ON_PERMISSIVE").await?;
    log.until_captured(10).await?;
    log.mode("ON").await?;
    log.insert(11).await?;
    log.until_captured(11).await?;
    let described = log.until("it to go by GTIDs again", goes_by_gtids).await?;
    ensure!(described["position"] == log.at().await?.gtid, "{described}");
    log.daemon.kill();
    log.insert(12).await?;
    log.daemon.start().await?;
    log.until_captured(12).await
}
