//! The test environment itself: its servers start, its readers agree, its comparison sees differences.

use std::time::Duration;

use anyhow::{Result, ensure};
use downriver_testkit::proxy::{Mode, Proxy};
use downriver_testkit::workload::{Style, Workload};
use downriver_testkit::{Postgres, Seaweed, daemon, disk::SmallDisk, shop};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_starts_takes_a_load_and_survives_a_restart() -> Result<()> {
    let mut postgres = Postgres::start().await?;
    shop::create(&postgres).await?;
    shop::fill(&postgres, 200).await?;
    shop::fill_types(&postgres).await?;
    let writer = Workload::start(
        &postgres,
        Style {
            scale: 200,
            ..Style::default()
        },
    );
    tokio::time::sleep(Duration::from_secs(1)).await;
    postgres.stop();
    postgres.start_again().await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let written = writer.stop().await?;
    ensure!(written.changes > 100, "only {written:?}");
    ensure!(
        postgres.number("select count(*) from ledger").await? == written.ledger,
        "the ledger has holes: {written:?}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn seaweed_answers_and_a_cut_proxy_does_not() -> Result<()> {
    let server = Seaweed::start().await?;
    let proxy = Proxy::start(server.s3_port()).await?;
    let address = proxy.address().to_string();
    ensure!(
        daemon::http_status(&address, "/").await? < 500,
        "S3 does not answer through the proxy"
    );
    proxy.set(Mode::Hang);
    ensure!(
        daemon::http_status(&address, "/").await.is_err(),
        "an answer came through a hanging proxy"
    );
    proxy.set(Mode::Refuse);
    ensure!(
        daemon::http_status(&address, "/").await.is_err(),
        "an answer came through a cut proxy"
    );
    proxy.set(Mode::Pass);
    ensure!(
        daemon::http_status(&address, "/").await? < 500,
        "the proxy stays cut"
    );
    Ok(())
}

#[test]
fn a_small_disk_fills_up_and_has_room_again() -> Result<()> {
    let Some(disk) = SmallDisk::mount(8)? else {
        return Ok(());
    };
    disk.fill()?;
    ensure!(
        std::fs::write(disk.path().join("more"), [0; 4096]).is_err(),
        "a full disk took more"
    );
    disk.make_room()?;
    std::fs::write(disk.path().join("more"), [0; 4096])?;
    Ok(())
}
