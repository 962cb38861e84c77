//! Whatever happens to a database's tables and rows: after each round the lake is equal to it.

use anyhow::Result;
use downriver_testkit::Postgres;
use downriver_testkit::history::Style;
use downriver_testkit::postgres::Version;
use e2e::history::{play, seed};

const ROUNDS: u32 = 15;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lake_is_equal_after_every_round_of_a_history() -> Result<()> {
    let seed = seed(2)?;
    let version = Version::Major(18);
    play::<Postgres>(Style { seed, version }, ROUNDS).await
}
