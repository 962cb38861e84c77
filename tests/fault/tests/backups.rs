//! A cluster that is gone, and what becomes of its backup.

use anyhow::{Context, Result, ensure};
use downriver_api::log::v1 as pb;
use downriver_testkit::workload::{Style, Workload};
use downriver_testkit::{host, resources};
use fault::{CATCH_UP, ClusteredShop};
use serde_json::Value;
use tokio::process::Command;

/// Runs `cluster restore` with a node's file, which needs no node.
async fn restore(shop: &ClusteredShop, node: usize, more: &[&str]) -> Result<std::process::Output> {
    let file = shop.folder.path().join(format!("n{}/node.toml", node + 1));
    let mut command = Command::new(host::downriver_binary()?);
    command
        .args(["cluster", "restore", "--config"])
        .arg(file)
        .args(more)
        .envs(resources::environment());
    Ok(command.kill_on_drop(true).output().await?)
}

/// Subscribes from a cursor; what is refused, if it is.
async fn refused(shop: &ClusteredShop, incarnation: u32, offset: u64) -> Result<Option<String>> {
    let request = pb::SubscribeRequest {
        source: resources::SOURCE.into(),
        incarnation,
        start: Some(pb::Start {
            at: Some(pb::start::At::Offset(offset)),
        }),
        ..pb::SubscribeRequest::default()
    };
    let answer = shop.log_client(1).await?.subscribe(request).await;
    Ok(answer.err().map(|status| status.message().to_owned()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_is_gone_is_made_again_of_its_backup_and_goes_on() -> Result<()> {
    let mut shop = ClusteredShop::open(50).await?;
    shop.deliver(0).await?;
    shop.ensure_equal(0).await?;
    let taken = shop.cluster.nodes[1]
        .json(&["cluster", "backup", "-o", "json"])
        .await?;
    let listed = shop.cluster.nodes[2]
        .json(&["cluster", "backup", "--list", "-o", "json"])
        .await?;
    ensure!(taken == listed, "{taken} is not {listed}");

    // The newest one is taken while changes come and come; what comes after it is lost to it.
    let workload = Workload::start(
        &shop.postgres,
        Style {
            scale: 50,
            ..Style::default()
        },
    );
    let taken = shop.cluster.nodes[2]
        .json(&["cluster", "backup", "-o", "json"])
        .await?;
    let before = shop.tail(2).await?;
    host::until("more to be logged", CATCH_UP, async || {
        Ok(shop.tail(2).await? > before + 1_000)
    })
    .await?;
    workload.stop().await?;
    shop.ensure_equal(0).await?;
    let lost = shop.tail(0).await?;
    // What is in segments the database is told to forget.
    let logged = shop.cluster.nodes[0]
        .describe("source", resources::SOURCE)
        .await?["position"]
        .clone();
    let logged = logged.as_str().context("a position")?;
    let client = shop.postgres.client().await?;
    let forgets = format!(
        "select confirmed_flush_lsn >= '{logged}' from pg_replication_slots where slot_name = 'downriver_shop'"
    );
    host::until(
        "the database to be told to forget it",
        CATCH_UP,
        async || Ok(client.query_one(&forgets, &[]).await?.get(0)),
    )
    .await?;

    shop.cluster.add()?;
    let alive = restore(&shop, 3, &[]).await?;
    let said = String::from_utf8_lossy(&alive.stderr);
    ensure!(
        alive.status.code() == Some(1) && said.contains("DR-1112") && said.contains("is up"),
        "{said}"
    );
    for node in 0..3 {
        shop.cluster.nodes[node].kill();
    }
    let kept = restore(&shop, 0, &[]).await?;
    let said = String::from_utf8_lossy(&kept.stderr);
    ensure!(
        kept.status.code() == Some(1) && said.contains("not empty"),
        "{said}"
    );
    for node in 0..3 {
        std::fs::remove_dir_all(shop.cluster.nodes[node].data())?;
    }
    let key = taken[0]["key"].as_str().context("a key")?;
    let restored = restore(&shop, 0, &["-o", "json"]).await?;
    ensure!(restored.status.success(), "{restored:?}");
    let restored: Value = serde_json::from_slice(&restored.stdout)?;
    let reaches = restored[0]["next"].as_u64().context("an offset")?;
    ensure!(
        restored[0]["incarnation"] == 2
            && restored[0]["from"] == 0
            && restored[0]["is_cut"] == false
            && lost > reaches + 1_000,
        "{restored}, and it went to {lost}"
    );
    for node in 0..3 {
        shop.cluster.nodes[node]
            .start()
            .await
            .with_context(|| format!("node {}", node + 1))?;
    }
    host::until("three voters", CATCH_UP, async || {
        let nodes = shop.cluster.listed(0).await?;
        let votes = |node: &&Value| node["state"] == "voter" || node["state"] == "leader";
        Ok(nodes.len() == 3 && nodes.iter().filter(votes).count() == 3)
    })
    .await?;

    // The hole is named, and whoever has read further is told.
    shop.cluster.nodes[0]
        .until_described(
            "source",
            resources::SOURCE,
            "the hole to be found",
            CATCH_UP,
            |source| source["code"] == "DR-1020",
        )
        .await?;
    ensure!(refused(&shop, 1, reaches).await?.is_none());
    let told = refused(&shop, 1, lost).await?.unwrap_or_default();
    ensure!(
        told.contains("incarnation is 2, not 1")
            && told.contains(&format!("from offset {reaches}")),
        "{told}"
    );
    shop.cluster.nodes[1]
        .ok(&["resnapshot", resources::PIPELINE])
        .await?;
    for node in 0..3 {
        shop.ensure_equal(node).await?;
    }
    let log = shop.cluster.nodes[2]
        .ok(&[
            "tail",
            resources::SOURCE,
            "--from",
            "earliest",
            "--until",
            "latest",
            "-o",
            "json",
        ])
        .await?;
    let offsets = log.lines().map(|line| {
        let event: Value = serde_json::from_str(line)?;
        event["offset"].as_u64().context("an offset")
    });
    let offsets = offsets.collect::<Result<Vec<u64>>>()?;
    ensure!(
        offsets.iter().copied().eq(0..shop.tail(0).await?),
        "the log of before is there, and offsets are dense"
    );

    // The same backup once more: what the life in between gave does not come again.
    for node in 0..3 {
        shop.cluster.nodes[node].kill();
        std::fs::remove_dir_all(shop.cluster.nodes[node].data())?;
    }
    let again = restore(&shop, 0, &["--backup", key, "-o", "json"]).await?;
    ensure!(again.status.success(), "{again:?}");
    let again: Value = serde_json::from_slice(&again.stdout)?;
    ensure!(
        again[0]["incarnation"].as_u64() > Some(2) && again[0]["next"] == reaches,
        "{again}"
    );
    Ok(())
}
