//! Whatever happens to a database's tables and rows: after each round the lake is equal to it.

use anyhow::Result;
use downriver_testkit::history::{Player, Style};
use downriver_testkit::postgres::Version;

const ROUNDS: u32 = 15;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lake_is_equal_after_every_round_of_a_history() -> Result<()> {
    let seed = std::env::var("DOWNRIVER_SEED").map_or(Ok(2), |seed| seed.parse())?;
    let version = Version::Major(18);
    let mut player = Player::start(Style { seed, version }).await?;
    for _ in 0..ROUNDS {
        if let Err(error) = player.round().await {
            println!("kept in {}", player.keep().display());
            return Err(error);
        }
    }
    Ok(())
}
