//! Whatever happens to a server's tables and rows: after each round the lake is equal to it.

use anyhow::Result;
use downriver_testkit::mysql::{Mysql, Product};
use downriver_testkit::mysql_history::Style;
use e2e::history::{play, seed};

const ROUNDS: u32 = 8;

async fn play_on(product: Product, at: u64) -> Result<()> {
    let seed = seed(at)?;
    play::<Mysql>(Style { seed, product }, ROUNDS).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lake_is_equal_after_every_round_of_a_history_of_mysql() -> Result<()> {
    play_on(Product::Mysql9, 1).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lake_is_equal_after_every_round_of_a_history_of_mysql_with_rows_in_part() -> Result<()>
{
    play_on(Product::Mysql9, 2).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lake_is_equal_after_every_round_of_a_history_of_mariadb() -> Result<()> {
    play_on(Product::Mariadb11, 1).await
}
