//! Whatever happens to a server's tables and rows: after each round the lake is equal to it.

use anyhow::Result;
use downriver_testkit::mysql::Product;
use downriver_testkit::mysql_history::{Player, Style};

const ROUNDS: u32 = 8;

async fn play(product: Product) -> Result<()> {
    let seed = std::env::var("DOWNRIVER_SEED").map_or(Ok(1), |seed| seed.parse())?;
    let rounds = std::env::var("DOWNRIVER_ROUNDS").map_or(Ok(ROUNDS), |rounds| rounds.parse())?;
    let mut player = Player::start(Style { seed, product }).await?;
    for _ in 0..rounds {
        if let Err(error) = player.round().await {
            println!("kept in {}", player.keep().display());
            return Err(error);
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lake_is_equal_after_every_round_of_a_history_of_mysql() -> Result<()> {
    play(Product::Mysql9).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lake_is_equal_after_every_round_of_a_history_of_mariadb() -> Result<()> {
    play(Product::Mariadb11).await
}
