//! A seeded writer to the shop: mixed inserts, updates and deletes in transactions of one to ten
//! statements, over tables with all kinds of keys, for as long as a test wants.
//!
//! Every transaction also inserts the next row of `ledger`, whose keys have no hole: so a test can say
//! which transactions must be in the log.

use std::fmt::Write;
use std::time::Duration;

use anyhow::{Context, Result};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

use crate::postgres::Postgres;

/// How a writer writes.
#[derive(Clone, Copy, Debug)]
pub struct Style {
    pub seed: u64,
    /// Rest between transactions.
    pub pause: Duration,
    /// Customers that were there at the start; keys are drawn from about this range.
    pub scale: u32,
    /// Stop after so many row changes.
    pub changes_max: Option<u64>,
    /// Now and then change a primary key.
    pub key_changes: bool,
}

impl Default for Style {
    fn default() -> Self {
        Self {
            seed: 1,
            pause: Duration::from_millis(2),
            scale: 1_000,
            changes_max: None,
            key_changes: true,
        }
    }
}

/// What a writer has committed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Written {
    pub transactions: u64,
    pub changes: u64,
    /// Last key of `ledger`.
    pub ledger: i64,
}

/// A writer on a task of its own; it survives restarts of PostgreSQL.
pub struct Workload {
    stop: watch::Sender<bool>,
    task: JoinHandle<Result<Written>>,
}

impl Workload {
    pub fn start(postgres: &Postgres, style: Style) -> Self {
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(write(postgres.admin_url("shop"), style, stopped));
        Self { stop, task }
    }

    /// Lets the open transaction commit and returns what was written.
    pub async fn stop(self) -> Result<Written> {
        self.stop.send_replace(true);
        self.task.await.context("writer's task")?
    }

    /// Returns when `changes_max` is reached.
    pub async fn finish(self) -> Result<Written> {
        self.task.await.context("writer's task")?
    }
}

async fn write(url: String, style: Style, stopped: watch::Receiver<bool>) -> Result<Written> {
    let mut random = StdRng::seed_from_u64(style.seed);
    let mut written = Written::default();
    let is_over = |written: &Written| {
        *stopped.borrow() || style.changes_max.is_some_and(|max| written.changes >= max)
    };
    while !is_over(&written) {
        let Ok(client) = connect(&url).await else {
            tokio::time::sleep(Duration::from_millis(200)).await;
            continue;
        };
        // After a broken connection only the table knows whether the last transaction was committed.
        written.ledger = client
            .query_one("select coalesce(max(id), 0) from ledger", &[])
            .await?
            .get(0);
        while !is_over(&written) {
            let sql = transaction(&mut random, &style, written.ledger + 1);
            match client.simple_query(&sql).await {
                Ok(messages) => {
                    written.transactions += 1;
                    written.changes += row_changes(&messages);
                    written.ledger += 1;
                }
                Err(error) if error.is_closed() || is_shutdown(&error) => break,
                // Two writers may meet at a key: this transaction was rolled back whole.
                Err(error) if is_conflict(&error) => client.batch_execute("rollback").await?,
                Err(error) => return Err(error).context(sql),
            }
            if !style.pause.is_zero() {
                tokio::time::sleep(style.pause).await;
            }
        }
    }
    Ok(written)
}

async fn connect(url: &str) -> Result<Client> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(connection);
    client.batch_execute("set synchronous_commit = off").await?;
    Ok(client)
}

fn row_changes(messages: &[SimpleQueryMessage]) -> u64 {
    let rows = messages.iter().map(|message| match message {
        SimpleQueryMessage::CommandComplete(rows) => *rows,
        _ => 0,
    });
    rows.sum()
}

fn is_shutdown(error: &tokio_postgres::Error) -> bool {
    error
        .code()
        .is_some_and(|code| code.code().starts_with("57P"))
}

fn is_conflict(error: &tokio_postgres::Error) -> bool {
    error
        .code()
        .is_some_and(|code| matches!(code.code(), "23505" | "40001" | "40P01"))
}

fn transaction(random: &mut StdRng, style: &Style, ledger: i64) -> String {
    let mut sql = format!(
        "begin; insert into ledger values ({ledger}, 'seed {} transaction {ledger}');",
        style.seed
    );
    for _ in 0..random.random_range(1..=10) {
        statement(&mut sql, random, style);
    }
    sql.push_str("commit");
    sql
}

fn statement(sql: &mut String, random: &mut StdRng, style: &Style) {
    let scale = u64::from(style.scale);
    let (id, value): (u64, u64) = (
        random.random_range(1..=scale * 2),
        random.random_range(0..1_000_000),
    );
    // New rows get keys of a range of their own, so that they seldom exist.
    let new_id: u64 = scale * 10 + random.random_range(0..scale * 1_000);
    let choice = random.random_range(0..100);
    let written = match choice {
        0..15 => write!(
            sql,
            "insert into orders values ({new_id}, {id}, 'new', {value} / 100.0, timestamp '2026-01-01' + {value} * interval '1.000001 s', null) on conflict do nothing;"
        ),
        15..25 => write!(
            sql,
            "insert into order_lines values ({new_id}, {}, 'sku-{}', 1, {value} / 100.0) on conflict do nothing;",
            value % 4,
            value % 50
        ),
        25..30 => write!(
            sql,
            "insert into payments values (md5('{new_id} {value}')::uuid, {id}, {value} / 100.0, null) on conflict do nothing;"
        ),
        30..50 => write!(
            sql,
            "update orders set state = 'paid', total = {value} / 100.0, note = 'note {value}' where id = {id};"
        ),
        50..60 => write!(
            sql,
            "update stock set amount = amount - 1, weight = {value} / 7.0 where sku = 'sku-{}';",
            id % (scale / 4 + 1) + 1
        ),
        60..68 => write!(
            sql,
            "update customers set name = 'customer {value}', vip = not vip where id = {id};"
        ),
        68..74 => write!(
            sql,
            "update documents set version = version + 1 where id = {};",
            id % 40
        ),
        74..80 => write!(
            sql,
            "insert into carts values ({id}, '{{\"items\": {value}}}', timestamp '2026-02-01') on conflict (id) do update set content = excluded.content;"
        ),
        80..88 => write!(
            sql,
            "delete from order_lines where order_id = {id} and line = {};",
            value % 2
        ),
        88..94 => write!(sql, "delete from orders where id = {id};"),
        94..97 if style.key_changes => write!(
            sql,
            "update orders set id = {new_id} where id = {id} and not exists (select from orders where id = {new_id});"
        ),
        97..99 if style.key_changes => write!(
            sql,
            "update order_lines set line = line + 10 where order_id = {id} and line < 10 and not exists (select from order_lines o where o.order_id = {id} and o.line >= 10);"
        ),
        _ => write!(sql, "delete from carts where id = {id};"),
    };
    // A String takes every write.
    debug_assert!(written.is_ok());
}
