//! A short form of the campaign: rounds of faults over real servers.

use anyhow::{Context, Result, ensure};
use downriver_testkit::mysql::Product;
use fault::World;
use fault::round;

const ROUNDS: u64 = 10;

/// What the environment says instead.
fn number(name: &str, usual: u64) -> Result<u64> {
    match std::env::var(name) {
        Ok(number) => Ok(number.parse()?),
        Err(_) => Ok(usual),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_rounds_of_faults_lose_double_and_reorder_nothing() -> Result<()> {
    play(World::open().await?, ROUNDS).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rounds_over_a_second_source_in_mysql_lose_double_and_reorder_nothing() -> Result<()> {
    play(World::open_with_branch(Product::Mysql9).await?, ROUNDS / 3).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rounds_over_a_second_source_in_mariadb_lose_double_and_reorder_nothing() -> Result<()> {
    play(
        World::open_with_branch(Product::Mariadb11).await?,
        ROUNDS / 3,
    )
    .await
}

async fn play(mut world: World, usual: u64) -> Result<()> {
    let first = number("DOWNRIVER_FAULT_SEED", 1)?;
    let rounds = number("DOWNRIVER_FAULT_ROUNDS", usual)?;
    let mut counted = 0;
    for seed in first..first + rounds {
        let played = round::play(&mut world, seed).await;
        if played.is_err()
            && let Ok(folder) = std::env::var("DOWNRIVER_KEEP")
        {
            world.keep(std::path::Path::new(&folder))?;
        }
        let round = played.with_context(|| format!("the round of seed {seed}"))?;
        println!("{round:?}");
        counted += u64::from(round.counts());
    }
    ensure!(
        counted >= rounds.saturating_sub(2).max(1),
        "only {counted} rounds hurt anything"
    );
    Ok(())
}
