//! The workloads: what tables there are, what is written to them, and the slot that keeps it.
//!
//! Everything is drawn from one seed, so that two runs of the same scale write the same.

use std::fmt::Write as _;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use clap::ValueEnum;
use downriver_testkit::Postgres;
use futures_util::SinkExt as _;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio_postgres::Client;
use tokio_postgres::types::PgLsn;

const SEED: u64 = 42;
/// A statement string or COPY message is sent when it has grown to this.
const BATCH_BYTES: usize = 1 << 20;
const COLUMNS: &str = "id bigint primary key, account_id int not null, amount numeric(12,2) not null, \
                       status varchar(10) not null, created_at timestamp(6) not null, note varchar(64)";
const STATES: [&str; 5] = ["new", "paid", "shipped", "closed", "refunded"];
/// Its rows end a backlog: whoever has seen one has seen all before it.
const MARK: &str = "mark";

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Workload {
    #[value(name = "W1")]
    Inserts,
    #[value(name = "W2")]
    Mixed,
    #[value(name = "W4")]
    OneTransaction,
    #[value(name = "W5")]
    Snapshot,
}

/// What was written, and where it can be read.
#[derive(Clone, Debug)]
pub(super) struct Backlog {
    pub(super) tables: Vec<String>,
    pub(super) publication: String,
    /// Stands before the backlog and is never read itself: readers get copies.
    pub(super) slot: String,
    /// Every change of the backlog was committed before this, and one of table `mark` behind it.
    pub(super) end: PgLsn,
    pub(super) changes: u64,
    pub(super) transactions: u64,
    pub(super) wal_bytes: u64,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Written {
    pub(super) changes: u64,
    pub(super) transactions: u64,
}

impl Workload {
    pub(super) const ALL: [Self; 4] = [
        Self::Inserts,
        Self::Mixed,
        Self::OneTransaction,
        Self::Snapshot,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Inserts => "W1",
            Self::Mixed => "W2",
            Self::OneTransaction => "W4",
            Self::Snapshot => "W5",
        }
    }

    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Inserts => "100-byte inserts, 100 a transaction",
            Self::Mixed => "mixed changes, 1 to 10 a transaction",
            Self::OneTransaction => "one transaction of 100-byte inserts into ten tables",
            Self::Snapshot => "snapshot of a table of 100-byte rows",
        }
    }

    /// Of a run at scale 1.
    fn changes_full(self) -> u64 {
        match self {
            Self::Inserts | Self::OneTransaction => 1_000_000,
            Self::Mixed => 500_000,
            Self::Snapshot => 5_000_000,
        }
    }

    fn table_count(self) -> usize {
        match self {
            Self::OneTransaction => 10,
            _ => 1,
        }
    }
}

fn scaled(full: u64, scale: f64) -> u64 {
    ((full as f64 * scale) as u64).max(100)
}

/// Tables, publication, slot and backlog of a workload.
pub(super) async fn prepare(
    postgres: &Postgres,
    workload: Workload,
    scale: f64,
) -> Result<Backlog> {
    let client = writer(postgres).await?;
    client
        .batch_execute(&format!(
            "create table {MARK} (id bigint generated always as identity primary key, note text)"
        ))
        .await?;
    let base = workload.name().to_lowercase();
    let tables: Vec<String> = match workload.table_count() {
        1 => vec![base.clone()],
        count => (0..count).map(|at| format!("{base}_{at}")).collect(),
    };
    let publication = format!("bench_{base}");
    create(&client, workload, &tables, &publication, scale).await?;
    let slot = format!("bench_{base}");
    client
        .execute(
            "select pg_create_logical_replication_slot($1, 'pgoutput')",
            &[&slot],
        )
        .await?;
    let start = position(&client).await?;
    let mut written = fill(&client, workload, &tables, scale).await?;
    let end = position(&client).await?;
    if workload == Workload::Snapshot {
        // The rows were there before the slot.
        written.changes = scaled(workload.changes_full(), scale);
    }
    mark(&client).await?;
    Ok(Backlog {
        tables,
        publication,
        slot,
        end,
        changes: written.changes,
        transactions: written.transactions,
        wal_bytes: u64::from(end) - u64::from(start),
    })
}

/// The tables as they are before the backlog, and their publication.
pub(super) async fn create(
    client: &Client,
    workload: Workload,
    tables: &[String],
    publication: &str,
    scale: f64,
) -> Result<()> {
    for table in tables {
        client
            .batch_execute(&format!("create table {table} ({COLUMNS})"))
            .await?;
    }
    let seed = match workload {
        Workload::Mixed => scaled(200_000, scale),
        Workload::Snapshot => scaled(workload.changes_full(), scale),
        Workload::Inserts | Workload::OneTransaction => 0,
    };
    let mut rows = Rows::new();
    for table in tables {
        copy_rows(client, table, seed, &mut rows).await?;
    }
    client
        .batch_execute(&format!(
            "create publication {publication} for table {}, {MARK}",
            tables.join(", ")
        ))
        .await?;
    client.batch_execute("vacuum analyze").await?;
    Ok(client.batch_execute("checkpoint").await?)
}

/// The backlog's changes.
pub(super) async fn fill(
    client: &Client,
    workload: Workload,
    tables: &[String],
    scale: f64,
) -> Result<Written> {
    let changes = scaled(workload.changes_full(), scale);
    match workload {
        Workload::Inserts => insert(client, &tables[0], changes).await,
        Workload::Mixed => mix(client, &tables[0], changes, scaled(200_000, scale)).await,
        Workload::OneTransaction => insert_at_once(client, tables, changes).await,
        Workload::Snapshot => Ok(Written::default()),
    }
}

/// Ends a backlog durably; returns where the server then stands.
pub(super) async fn mark(client: &Client) -> Result<PgLsn> {
    client
        .batch_execute(&format!(
            "set synchronous_commit = on; insert into {MARK} (note) values ('end'); \
             set synchronous_commit = off; checkpoint"
        ))
        .await?;
    position(client).await
}

/// A connection whose commits do not wait for the disk.
pub(super) async fn writer(postgres: &Postgres) -> Result<Client> {
    let client = postgres.client().await?;
    client.batch_execute("set synchronous_commit = off").await?;
    Ok(client)
}

async fn position(client: &Client) -> Result<PgLsn> {
    // What is written, not where the next record would go: at the start of a page that lies behind the page's header,
    // and no reader ever comes to it.
    let row = client
        .query_one("select pg_current_wal_flush_lsn()", &[])
        .await?;
    Ok(row.get(0))
}

async fn insert(client: &Client, table: &str, changes: u64) -> Result<Written> {
    const ROWS: u64 = 100;
    let (mut rows, mut sql) = (Rows::new(), String::new());
    let transactions = changes / ROWS;
    for transaction in 0..transactions {
        sql.push_str("begin;");
        push_insert(&mut sql, table, transaction * ROWS, ROWS, &mut rows);
        sql.push_str("commit;");
        send_when_large(client, &mut sql).await?;
    }
    client.batch_execute(&sql).await?;
    Ok(Written {
        changes: transactions * ROWS,
        transactions,
    })
}

async fn insert_at_once(client: &Client, tables: &[String], changes: u64) -> Result<Written> {
    let (mut rows, mut sql) = (Rows::new(), String::from("begin;"));
    let statement_rows = (changes / tables.len() as u64).clamp(1, 1_000);
    let statements = changes / statement_rows;
    for (statement, table) in (0..statements).zip(tables.iter().cycle()) {
        push_insert(
            &mut sql,
            table,
            statement * statement_rows,
            statement_rows,
            &mut rows,
        );
        send_when_large(client, &mut sql).await?;
    }
    sql.push_str("commit");
    client.batch_execute(&sql).await?;
    Ok(Written {
        changes: statements * statement_rows,
        transactions: 1,
    })
}

/// Two inserts in five changes, one update in two, one delete in ten.
async fn mix(client: &Client, table: &str, changes: u64, seeded: u64) -> Result<Written> {
    let (mut rows, mut sql) = (Rows::new(), String::new());
    let mut live: Vec<u64> = (0..seeded).collect();
    let mut next = seeded;
    let mut written = Written::default();
    while written.changes < changes {
        let statements = rows
            .random
            .random_range(1..=10)
            .min(changes - written.changes);
        sql.push_str("begin;");
        for _ in 0..statements {
            let at = rows.random.random_range(0..live.len());
            match rows.random.random_range(0..10) {
                0..4 => {
                    push_insert(&mut sql, table, next, 1, &mut rows);
                    live.push(next);
                    next += 1;
                }
                4..9 => {
                    let row = rows.draw(live[at]);
                    let _infallible = write!(
                        sql,
                        "update {table} set amount = {}, status = '{}', note = '{}' where id = {};",
                        row.amount, row.state, row.note, row.id
                    );
                }
                _ => {
                    let id = live.swap_remove(at);
                    let _infallible = write!(sql, "delete from {table} where id = {id};");
                }
            }
        }
        sql.push_str("commit;");
        written.changes += statements;
        written.transactions += 1;
        send_when_large(client, &mut sql).await?;
    }
    client.batch_execute(&sql).await?;
    Ok(written)
}

async fn send_when_large(client: &Client, sql: &mut String) -> Result<()> {
    if sql.len() >= BATCH_BYTES {
        client.batch_execute(sql).await?;
        sql.clear();
    }
    Ok(())
}

fn push_insert(sql: &mut String, table: &str, first: u64, count: u64, rows: &mut Rows) {
    let _infallible = write!(sql, "insert into {table} values ");
    for id in first..first + count {
        let row = rows.draw(id);
        let separator = if id == first { "" } else { "," };
        let _infallible = write!(
            sql,
            "{separator}({},{},{},'{}','{}','{}')",
            row.id, row.account, row.amount, row.state, row.created_at, row.note
        );
    }
    sql.push(';');
}

async fn copy_rows(client: &Client, table: &str, count: u64, rows: &mut Rows) -> Result<()> {
    let sink = client.copy_in(&format!("copy {table} from stdin")).await?;
    let mut sink = std::pin::pin!(sink);
    let mut lines = String::new();
    for id in 0..count {
        let row = rows.draw(id);
        let _infallible = writeln!(
            lines,
            "{}\t{}\t{}\t{}\t{}\t{}",
            row.id, row.account, row.amount, row.state, row.created_at, row.note
        );
        if lines.len() >= BATCH_BYTES {
            sink.send(Bytes::from(std::mem::take(&mut lines))).await?;
        }
    }
    sink.send(Bytes::from(lines)).await?;
    let copied = sink.finish().await.context("copy rows")?;
    ensure!(copied == count, "{copied} of {count} rows were copied");
    Ok(())
}

/// Draws rows of about 100 bytes.
struct Rows {
    random: StdRng,
    /// Letters and blanks; a note is a piece of it.
    words: String,
    /// Made once: drawing one a row would cost more than the row.
    times: Vec<String>,
}

struct Row<'a> {
    id: u64,
    account: u32,
    amount: String,
    state: &'static str,
    created_at: &'a str,
    note: &'a str,
}

impl Rows {
    const NOTE_BYTES: usize = 48;

    fn new() -> Self {
        let mut random = StdRng::seed_from_u64(SEED);
        let letters = b"abcdefghijklmnopqrstuvwxyz     ";
        let words = (0..1 << 16)
            .map(|_| char::from(letters[random.random_range(0..letters.len())]))
            .collect();
        let times = (0..4_096_u64).map(|at| {
            let (day, second) = (at * 37 / 86_400 + 1, at * 37 % 86_400);
            format!(
                "2026-01-{day:02} {:02}:{:02}:{:02}.{:06}",
                second / 3_600,
                second / 60 % 60,
                second % 60,
                at * 7_919 % 1_000_000
            )
        });
        Self {
            words,
            times: times.collect(),
            random,
        }
    }

    fn draw(&mut self, id: u64) -> Row<'_> {
        let random = &mut self.random;
        let at = random.random_range(0..self.words.len() - Self::NOTE_BYTES);
        Row {
            id,
            account: random.random_range(0..100_000),
            amount: format!(
                "{}.{:02}",
                random.random_range(0..10_000),
                random.random_range(0..100)
            ),
            state: STATES[random.random_range(0..STATES.len())],
            created_at: &self.times[random.random_range(0..self.times.len())],
            note: &self.words[at..at + Self::NOTE_BYTES],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_draws_the_same_rows_of_about_100_bytes() {
        let drawn = || {
            let (mut rows, mut sql) = (Rows::new(), String::new());
            push_insert(&mut sql, "t", 1, 100, &mut rows);
            sql
        };
        assert_eq!(drawn(), drawn());
        assert!((9_000..13_000).contains(&drawn().len()));
    }
}
