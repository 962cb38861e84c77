//! The workloads: what tables there are in which database, and what is written to them.
//!
//! Everything is drawn from one seed, so that two runs of the same scale write the same.

use std::fmt::Write as _;

use anyhow::Result;
use clap::ValueEnum;
use clap::builder::PossibleValue;
use rand::Rng as _;

use super::rows::{COLUMNS, Rows, push_insert};
use super::server::Database;
use super::writer::Writer;

/// Its rows end a backlog: whoever has seen one has seen all before it.
pub(super) const MARK: &str = "mark";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Workload {
    pub(super) database: Database,
    pub(super) shape: Shape,
}

/// What is written, whatever the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    Inserts,
    Mixed,
    OneTransaction,
    Snapshot,
}

#[derive(Clone, Debug)]
pub(super) struct Tables {
    pub(super) names: Vec<String>,
    /// PostgreSQL's alone.
    pub(super) publication: String,
}

/// What was written, and where it can be read.
#[derive(Clone, Debug)]
pub(super) struct Backlog {
    /// Every change of the backlog was committed before this place, and one of table `mark` behind it.
    pub(super) end: u64,
    /// The file of the log that it begins, where files are named.
    pub(super) log_file: Option<String>,
    pub(super) changes: u64,
    pub(super) transactions: u64,
    pub(super) log_bytes: u64,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Written {
    pub(super) changes: u64,
    pub(super) transactions: u64,
}

impl Workload {
    const ALL: [Self; 8] = [
        Self::postgres(Shape::Inserts),
        Self::postgres(Shape::Mixed),
        Self::postgres(Shape::OneTransaction),
        Self::postgres(Shape::Snapshot),
        Self::mysql(Shape::Inserts),
        Self::mysql(Shape::Mixed),
        Self::mysql(Shape::OneTransaction),
        Self::mysql(Shape::Snapshot),
    ];

    pub(super) const fn postgres(shape: Shape) -> Self {
        let database = Database::Postgres;
        Self { database, shape }
    }

    pub(super) const fn mysql(shape: Shape) -> Self {
        let database = Database::Mysql;
        Self { database, shape }
    }

    pub(super) fn name(self) -> &'static str {
        match (self.database, self.shape) {
            (Database::Postgres, Shape::Inserts) => "W1",
            (Database::Postgres, Shape::Mixed) => "W2",
            (Database::Postgres, Shape::OneTransaction) => "W4",
            (Database::Postgres, Shape::Snapshot) => "W5",
            (Database::Mysql, Shape::Inserts) => "M1",
            (Database::Mysql, Shape::Mixed) => "M2",
            (Database::Mysql, Shape::OneTransaction) => "M4",
            (Database::Mysql, Shape::Snapshot) => "M5",
        }
    }

    pub(super) fn title(self) -> String {
        let shape = match self.shape {
            Shape::Inserts => "100-byte inserts, 100 a transaction",
            Shape::Mixed => "mixed changes, 1 to 10 a transaction",
            Shape::OneTransaction => "one transaction of 100-byte inserts into ten tables",
            Shape::Snapshot => "snapshot of a table of 100-byte rows",
        };
        format!("{}, {shape}", self.database.name())
    }
}

impl ValueEnum for Workload {
    fn value_variants<'a>() -> &'a [Self] {
        &Self::ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.name()).help(self.title()))
    }
}

impl Shape {
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

    /// Rows that a table has before.
    fn seeded(self, scale: f64) -> u64 {
        match self {
            Self::Mixed => scaled(200_000, scale),
            Self::Snapshot => scaled(self.changes_full(), scale),
            Self::Inserts | Self::OneTransaction => 0,
        }
    }
}

fn scaled(full: u64, scale: f64) -> u64 {
    ((full as f64 * scale) as u64).max(100)
}

/// The tables of a workload as they are before its backlog, called after `base`.
pub(super) async fn create(
    writer: &mut Writer,
    shape: Shape,
    base: &str,
    scale: f64,
) -> Result<Tables> {
    let names: Vec<String> = match shape.table_count() {
        1 => vec![base.to_owned()],
        count => (0..count).map(|at| format!("{base}_{at}")).collect(),
    };
    let tables = Tables {
        publication: format!("bench_{base}"),
        names,
    };
    let mark = format!("create table if not exists {MARK} (id bigint primary key, note text)");
    writer.execute(&mark).await?;
    let mut rows = Rows::new();
    for table in &tables.names {
        let create = format!("create table {table} ({COLUMNS})");
        writer.execute(&create).await?;
        writer.seed(table, shape.seeded(scale), &mut rows).await?;
    }
    writer.publish(&tables).await?;
    writer.settle().await?;
    Ok(tables)
}

/// Writes the backlog, and what ends it.
pub(super) async fn write(
    writer: &mut Writer,
    shape: Shape,
    tables: &Tables,
    scale: f64,
) -> Result<Backlog> {
    let log_file = writer.begin_log_file().await?;
    let start = writer.log_bytes().await?;
    let mut written = fill(writer, shape, tables, scale).await?;
    let (end, log_bytes) = (writer.place().await?, writer.log_bytes().await? - start);
    if shape == Shape::Snapshot {
        // The rows were there before.
        written.changes = shape.seeded(scale);
    }
    writer.mark().await?;
    Ok(Backlog {
        end,
        log_file,
        changes: written.changes,
        transactions: written.transactions,
        log_bytes,
    })
}

/// The backlog's changes.
pub(super) async fn fill(
    writer: &mut Writer,
    shape: Shape,
    tables: &Tables,
    scale: f64,
) -> Result<Written> {
    let changes = scaled(shape.changes_full(), scale);
    let names = &tables.names;
    match shape {
        Shape::Inserts => insert(writer, &names[0], changes).await,
        Shape::Mixed => mix(writer, &names[0], changes, shape.seeded(scale)).await,
        Shape::OneTransaction => insert_at_once(writer, names, changes).await,
        Shape::Snapshot => Ok(Written::default()),
    }
}

async fn insert(writer: &mut Writer, table: &str, changes: u64) -> Result<Written> {
    const ROWS: u64 = 100;
    let (mut rows, mut sql) = (Rows::new(), String::new());
    let transactions = changes / ROWS;
    for transaction in 0..transactions {
        sql.push_str("begin;");
        push_insert(&mut sql, table, transaction * ROWS, ROWS, &mut rows);
        sql.push_str("commit;");
        writer.execute_when_large(&mut sql).await?;
    }
    writer.execute(&sql).await?;
    Ok(Written {
        changes: transactions * ROWS,
        transactions,
    })
}

async fn insert_at_once(writer: &mut Writer, tables: &[String], changes: u64) -> Result<Written> {
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
        writer.execute_when_large(&mut sql).await?;
    }
    sql.push_str("commit");
    writer.execute(&sql).await?;
    Ok(Written {
        changes: statements * statement_rows,
        transactions: 1,
    })
}

/// Two inserts in five changes, one update in two, one delete in ten.
async fn mix(writer: &mut Writer, table: &str, changes: u64, seeded: u64) -> Result<Written> {
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
        writer.execute_when_large(&mut sql).await?;
    }
    writer.execute(&sql).await?;
    Ok(written)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workload_is_found_by_its_name_in_any_case_and_has_no_other() {
        for workload in Workload::ALL {
            let name = workload.name().to_lowercase();
            assert_eq!(Workload::from_str(&name, true), Ok(workload));
        }
        assert!(Workload::from_str("W3", true).is_err());
    }
}
