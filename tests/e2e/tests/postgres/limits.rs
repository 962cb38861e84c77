//! How much memory it takes.

use anyhow::{Result, ensure};
use downriver_testkit::{Daemon, host, resources};
use e2e::{CATCH_UP, Shop};

const MIB: u64 = 1 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_node_stays_under_64_mib() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut daemon = Daemon::new(folder.path())?;
    daemon.start().await?;
    daemon.ok(&["status"]).await?;
    let peak = host::peak_memory_bytes(daemon.pid()?)?;
    println!("idle: {} MiB", peak / MIB);
    ensure!(peak < 64 * MIB, "{} MiB", peak / MIB);
    daemon.stop()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_million_row_transaction_over_ten_tables_into_a_lake_stays_under_256_mib() -> Result<()> {
    let shop = Shop::open(1_000).await?;
    shop.deliver("10s").await?;
    shop.daemon.wait(CATCH_UP).await?;
    shop.postgres
        .execute(
            "begin;
             insert into ledger select i, repeat('x', 80) from generate_series(10000001, 10900000) i;
             insert into stock select 's' || i, i, i, 1 from generate_series(1000001, 1100000) i;
             commit",
        )
        .await?;
    shop.daemon.wait(CATCH_UP).await?;
    let source = shop.daemon.describe("source", resources::SOURCE).await?;
    ensure!(
        source["events"]
            .as_u64()
            .is_some_and(|events| events >= 1_000_000),
        "{source}"
    );
    let peak = host::peak_memory_bytes(shop.daemon.pid()?)?;
    println!("a million rows: {} MiB", peak / MIB);
    ensure!(peak < 256 * MIB, "{} MiB", peak / MIB);
    shop.ensure_lake_equal().await
}
