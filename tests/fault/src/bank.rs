//! Money that moves between two tables and never becomes more or less: whoever sees half a transaction sees it.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use downriver_testkit::Postgres;
use mysql_async::prelude::Queryable as _;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub const TABLES: [&str; 2] = ["public.savings", "public.checking"];
pub const BRANCH_TABLES: [&str; 2] = ["shop.savings", "shop.checking"];
pub(crate) const ACCOUNTS: i64 = 20;
pub(crate) const EACH: i64 = 1_000;

/// Where money is moved, by its url.
#[derive(Clone, Debug)]
pub enum Office {
    /// PostgreSQL.
    Main(String),
    /// MySQL or MariaDB.
    Branch(String),
}

/// A connection with one.
enum Teller {
    Main(tokio_postgres::Client),
    Branch(mysql_async::Conn),
}

impl Office {
    fn tables(&self) -> [&'static str; 2] {
        match self {
            Self::Main(_) => TABLES,
            Self::Branch(_) => BRANCH_TABLES,
        }
    }

    async fn teller(&self) -> Result<Teller> {
        Ok(match self {
            Self::Main(url) => {
                let (client, connection) =
                    tokio_postgres::connect(url, tokio_postgres::NoTls).await?;
                tokio::spawn(connection);
                Teller::Main(client)
            }
            Self::Branch(url) => Teller::Branch(mysql_async::Conn::from_url(url).await?),
        })
    }
}

impl Teller {
    async fn run(&mut self, statements: &str) -> Result<()> {
        match self {
            Self::Main(client) => client.batch_execute(statements).await?,
            Self::Branch(client) => client.query_drop(statements).await?,
        }
        Ok(())
    }
}

pub async fn create(postgres: &Postgres) -> Result<()> {
    for table in TABLES {
        postgres
            .execute(&format!(
                "create table {table} (id bigint primary key, amount bigint not null);
                 alter table {table} owner to shop_owner;
                 insert into {table} select i, {EACH} from generate_series(1, {ACCOUNTS}) i"
            ))
            .await?;
    }
    Ok(())
}

/// Transfers on a task of their own; they survive restarts of the database.
pub struct Transfers {
    stop: watch::Sender<bool>,
    task: JoinHandle<u64>,
}

impl Transfers {
    pub fn start(postgres: &Postgres, seed: u64) -> Self {
        Self::start_at(Office::Main(postgres.admin_url("shop")), seed)
    }

    pub fn start_at(office: Office, seed: u64) -> Self {
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(async move {
            let mut random = StdRng::seed_from_u64(seed);
            let mut done = 0;
            while !*stopped.borrow() {
                let moved = transfer(&office, &mut random, &stopped, &mut done).await;
                if moved.is_err() {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
            done
        });
        Self { stop, task }
    }

    /// How many were made.
    pub async fn stop(self) -> Result<u64> {
        self.stop.send_replace(true);
        self.task.await.context("the bank's task")
    }
}

async fn transfer(
    office: &Office,
    random: &mut StdRng,
    stopped: &watch::Receiver<bool>,
    done: &mut u64,
) -> Result<()> {
    let mut teller = office.teller().await?;
    let [one, other] = office.tables();
    while !*stopped.borrow() {
        let (from, to) = match random.random_bool(0.5) {
            true => (one, other),
            false => (other, one),
        };
        let (one, other) = (
            random.random_range(1..=ACCOUNTS),
            random.random_range(1..=ACCOUNTS),
        );
        let amount = random.random_range(1..50);
        let moved = format!(
            "begin; update {from} set amount = amount - {amount} where id = {one};
             update {to} set amount = amount + {amount} where id = {other}; commit"
        );
        teller.run(&moved).await?;
        *done += 1;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

/// Between any two transactions of the log there is as much money as at the beginning. How many transactions were seen.
pub fn check(events: &[Value], tables: [&str; 2]) -> Result<u64> {
    let mut accounts: BTreeMap<(String, i64), i64> = BTreeMap::new();
    let all = 2 * ACCOUNTS * EACH;
    let (mut transaction, mut seen) = (None::<&Value>, 0);
    let mut is_complete = false;
    for event in events {
        let table = event["table"].as_str().unwrap_or_default();
        if !tables.contains(&table) {
            continue;
        }
        let Some(id) = event["after"]["id"].as_i64() else {
            continue;
        };
        let is_row = matches!(event["op"].as_str(), Some("snapshot" | "update" | "insert"));
        if is_complete && transaction != Some(&event["txn"]) {
            let sum: i64 = accounts.values().sum();
            ensure!(
                sum == all,
                "before offset {} the bank has {sum}, not {all}",
                event["offset"]
            );
            seen += 1;
        }
        transaction = Some(&event["txn"]);
        if is_row && let Some(amount) = event["after"]["amount"].as_i64() {
            accounts.insert((table.to_owned(), id), amount);
        }
        // From the first transfer on that came after both snapshots.
        is_complete = is_complete
            || event["op"] == "update" && accounts.len() == 2 * usize::try_from(ACCOUNTS)?;
    }
    let sum: i64 = accounts.values().sum();
    ensure!(sum == all, "the bank has {sum}, not {all}");
    Ok(seen)
}
