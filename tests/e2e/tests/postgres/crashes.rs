//! kill -9 at random moments under load, with a lake attached: nothing is lost, nothing doubled, no offset
//! changes, and the lake is equal to the source.

use std::time::Duration;

use anyhow::{Context, Result};
use downriver_testkit::oracle::Oracle;
use downriver_testkit::resources;
use downriver_testkit::workload::{Style, Workload};
use e2e::Shop;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// `DOWNRIVER_KILL_ROUNDS=30` for the long run; `DOWNRIVER_SEED` repeats one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_random_moments_it_loses_doubles_and_changes_nothing() -> Result<()> {
    let rounds: u32 = variable("DOWNRIVER_KILL_ROUNDS")?.unwrap_or(10);
    let seed: u64 = variable("DOWNRIVER_SEED")?.unwrap_or_else(rand::random);
    println!(
        "seed {seed}, {rounds} rounds: DOWNRIVER_SEED={seed} DOWNRIVER_KILL_ROUNDS={rounds} repeats this run"
    );
    let mut random = StdRng::seed_from_u64(seed);
    let mut shop = Shop::open(20_000).await?;
    let load = Workload::start(
        &shop.postgres,
        Style {
            seed,
            scale: 20_000,
            ..Style::default()
        },
    );
    shop.deliver("1s").await?;

    let mut oracle = Oracle::new();
    for round in 1..=rounds {
        // The first rounds come quickly, while the snapshot runs; later ones leave time to seal and commit.
        let longest = if round <= rounds / 3 { 1_500 } else { 6_000 };
        let life = Duration::from_millis(random.random_range(50..longest));
        let rewind = random.random_range(0..5_000);
        oracle
            .follow(&shop.daemon, rewind, life)
            .await
            .with_context(|| format!("seed {seed}, round {round}"))?;
        shop.daemon.kill();
        shop.daemon
            .start()
            .await
            .with_context(|| format!("seed {seed}, restart after round {round}"))?;
        println!(
            "round {round}: killed after {} ms, {} offsets seen",
            life.as_millis(),
            oracle.next()
        );
    }

    let seen = oracle.next();
    let written = load.stop().await?;
    shop.caught_up()
        .await
        .with_context(|| format!("seed {seed}"))?;
    let census = oracle
        .review(&shop.daemon, "public.ledger", "id")
        .await
        .with_context(|| format!("seed {seed}"))?;
    census
        .ensure_complete(written.ledger)
        .with_context(|| format!("seed {seed}"))?;
    println!(
        "{} events, {:?}; written {written:?}",
        census.events, census.by_operation
    );
    shop.ensure_lake_equal()
        .await
        .with_context(|| format!("seed {seed}"))?;
    shop.daemon
        .ok(&["verify", resources::PIPELINE])
        .await
        .with_context(|| format!("seed {seed}"))?;
    // The oracle only judges what it saw: it must have seen a good part before the last kill.
    anyhow::ensure!(
        seen > census.events / 4,
        "the subscriber saw only {seen} of {} events before the last kill",
        census.events
    );
    shop.daemon.stop()
}

fn variable<T: std::str::FromStr>(name: &str) -> Result<Option<T>> {
    let Ok(text) = std::env::var(name) else {
        return Ok(None);
    };
    text.parse()
        .map(Some)
        .ok()
        .with_context(|| format!("{name}={text} is not a number"))
}
