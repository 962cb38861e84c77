//! A history is played, round by round, and what is left of a failure is kept.

use anyhow::Result;
use downriver_testkit::player::{Player, Stage};

/// `rounds` unless `DOWNRIVER_ROUNDS` has another number.
pub async fn play<S: Stage>(style: S::Style, rounds: u32) -> Result<()> {
    let rounds = std::env::var("DOWNRIVER_ROUNDS").map_or(Ok(rounds), |rounds| rounds.parse())?;
    let mut player = Player::<S>::start(style).await?;
    for _ in 0..rounds {
        if let Err(error) = player.round().await {
            println!("kept in {}", player.keep().display());
            return Err(error);
        }
    }
    Ok(())
}

/// That of `DOWNRIVER_SEED`, or this one.
pub fn seed(seed: u64) -> Result<u64> {
    Ok(std::env::var("DOWNRIVER_SEED").map_or(Ok(seed), |seed| seed.parse())?)
}
