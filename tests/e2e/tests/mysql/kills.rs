//! kill -9 of the daemon at random moments under load, with a lake attached, while tables are read, rows change and shapes
//! do: nothing is lost, nothing doubled, no offset changes, and the lake is equal to the source.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use downriver_testkit::daemon::Daemon;
use downriver_testkit::mysql::{Mysql, Product};
use downriver_testkit::oracle::Oracle;
use downriver_testkit::resources;
use e2e::mysql::{Shop, change, ensure_each_came_once};
use mysql_async::prelude::Queryable as _;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio_util::sync::CancellationToken;

/// `DOWNRIVER_ROUNDS` for the long run.
const ROUNDS: u32 = 10;
/// The longest lives of a daemon: while tables are read at first, and later.
const LIFE_MS: [u64; 2] = [900, 1_800];
const TABLES: &str = "
    create table ledger (id bigint primary key, what varchar(200));
    create table scrap (id int auto_increment primary key, what varchar(20));
    create table left_one (id int primary key, l varchar(20)); create table right_one (id int primary key, r int);";

/// Rows 1, 2, 3, … in transactions of some, until it is told to stop. The last one.
async fn keep_ledger(mysql: &Mysql, stop: CancellationToken) -> Result<i64> {
    let mut client = mysql.client().await?;
    let mut last = 0;
    while !stop.is_cancelled() {
        let rows = last % 7 + 1;
        let values: Vec<String> = (1..=rows)
            .map(|row| format!("({}, repeat('entry ', 20))", last + row))
            .collect();
        let insert = format!("insert into ledger values {}", values.join(", "));
        client.query_drop(insert).await?;
        last += rows;
    }
    Ok(last)
}

/// Shapes of tables, and which tables there are, change until it is told to stop. The tables that are left.
async fn reshape(mysql: &Mysql, seed: u64, stop: CancellationToken) -> Result<Vec<String>> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut client = mysql.client().await?;
    let (mut made, mut extra): (Vec<String>, Vec<String>) = (Vec::new(), Vec::new());
    let mut number = 0;
    while !stop.is_cancelled() {
        number += 1;
        let statements = match random.random_range(0..10) {
            0 => {
                extra.push(format!("e{number}"));
                format!("alter table orders add column e{number} int")
            }
            1 => {
                extra.push(format!("e{number}"));
                format!("alter table orders add column e{number} varchar(9) not null default 'e'")
            }
            2 | 3 if !extra.is_empty() => {
                let dropped = extra.swap_remove(random.random_range(0..extra.len()));
                format!("alter table orders drop column {dropped}")
            }
            4 if !extra.is_empty() => {
                let at = random.random_range(0..extra.len());
                let before = std::mem::replace(&mut extra[at], format!("e{number}"));
                format!("alter table orders rename column {before} to e{number}")
            }
            5 => "truncate table scrap; insert into scrap (what) values ('a'), ('b')".into(),
            6 => {
                made.push(format!("made_{number}"));
                format!("create table made_{number} (id int primary key, n int); insert into made_{number} values (1, {number})")
            }
            7 if !made.is_empty() => {
                let dropped = made.swap_remove(random.random_range(0..made.len()));
                format!("drop table {dropped}")
            }
            8 => format!(
                "create table copy_{number} like left_one; insert into copy_{number} select * from left_one;
                 rename table left_one to old_{number}, copy_{number} to left_one; drop table old_{number}"
            ),
            _ => "rename table left_one to swapping, right_one to left_one, swapping to right_one;
                  insert into left_one (id) select count(*) + 1 from left_one; insert into right_one (id) select count(*) + 1 from right_one"
                .into(),
        };
        client
            .query_drop(&statements)
            .await
            .with_context(|| statements.clone())?;
        tokio::time::sleep(Duration::from_millis(random.random_range(20..400))).await;
    }
    let lasting = [
        "orders",
        "pairs",
        "ledger",
        "scrap",
        "left_one",
        "right_one",
    ];
    Ok(lasting.into_iter().map(str::to_owned).chain(made).collect())
}

/// Rounds of life and death, and what was seen meanwhile.
async fn live_and_die(daemon: &mut Daemon, seed: u64, rounds: u32) -> Result<Oracle> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut oracle = Oracle::new();
    for round in 1..=rounds {
        let longest = LIFE_MS[usize::from(round > rounds / 2)];
        let life = Duration::from_millis(random.random_range(30..longest));
        let rewind = random.random_range(0..2_000);
        oracle
            .follow(daemon, rewind, life)
            .await
            .with_context(|| format!("round {round}"))?;
        daemon.kill();
        daemon.start().await?;
        let (life, seen) = (life.as_millis(), oracle.next());
        println!("round {round}: killed after {life} ms, {seen} offsets seen");
    }
    Ok(oracle)
}

async fn survives(product: Product) -> Result<()> {
    let seed = std::env::var("DOWNRIVER_SEED");
    let seed = seed.map_or_else(|_| Ok(rand::random()), |seed| seed.parse())?;
    let rounds = std::env::var("DOWNRIVER_ROUNDS").map_or(Ok(ROUNDS), |rounds| rounds.parse())?;
    println!("DOWNRIVER_SEED={seed} DOWNRIVER_ROUNDS={rounds} repeats this run");
    let mut shop = Shop::open(product).await?;
    shop.mysql.execute(TABLES).await?;
    shop.fill(6_000).await?;
    let options = ["snapshot: { mode: initial, chunk_rows: 200, max_workers: 2 }"];
    shop.deliver_with(&["shop.*"], &options).await?;

    let stop = CancellationToken::new();
    let (daemon, mysql) = (&mut shop.daemon, &shop.mysql);
    let killing = async {
        let lived = live_and_die(daemon, seed, rounds).await;
        stop.cancel();
        lived
    };
    let (oracle, ledger, changed, tables) = tokio::join!(
        killing,
        keep_ledger(mysql, stop.clone()),
        change(mysql, seed, stop.clone()),
        reshape(mysql, seed, stop.clone()),
    );
    let (mut oracle, last, tables) = (oracle?, ledger?, tables?);
    println!("{last} entries, {} other transactions", changed?);
    let seen = oracle.next();
    let tables: Vec<&str> = tables.iter().map(String::as_str).collect();
    shop.ensure_equal(&tables).await?;
    let census = oracle.review(&shop.daemon, "shop.ledger", "id").await?;
    census.ensure_complete(last)?;
    println!("{} events, {:?}", census.events, census.by_operation);
    ensure_each_came_once(&shop.daemon).await?;
    shop.daemon.ok(&["verify", resources::PIPELINE]).await?;
    // The oracle only judges what it saw: it must have seen a good part before the last kill.
    ensure!(
        seen > census.events / 8,
        "the subscriber saw only {seen} of {} events before the last kill",
        census.events
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mysql_is_captured_whole_whenever_the_daemon_is_killed() -> Result<()> {
    survives(Product::Mysql9).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mariadb_is_captured_whole_whenever_the_daemon_is_killed() -> Result<()> {
    survives(Product::Mariadb11).await
}
