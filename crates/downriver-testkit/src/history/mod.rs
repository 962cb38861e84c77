//! Seeded histories of a database: tables come, change shape and go, and rows change all the while.
//!
//! The same seed gives the same SQL. The generator knows the shape of every table, so each statement is valid when
//! it is run in order; which rows one meets it leaves to their numbers.

mod schema;
mod stage;
mod table;
mod values;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::player::{self, Act};
pub use stage::Style;
use table::Table;
use values::ENUM;

pub type Player = player::Player<crate::postgres::Postgres>;

/// Tables at the start, and at most.
const TABLES: usize = 4;
const TABLES_MAX: usize = 7;
const ACTS: std::ops::Range<usize> = 12..30;

#[derive(Clone)]
pub struct History {
    random: StdRng,
    tables: Vec<Table>,
    /// Numbers of tables, columns and labels that were given away.
    tables_made: u32,
    columns_made: u32,
    labels_made: u32,
    aside_rows: u32,
}

impl History {
    pub fn new(seed: u64) -> Self {
        Self {
            random: StdRng::seed_from_u64(seed),
            tables: Vec::new(),
            tables_made: 0,
            columns_made: 0,
            labels_made: 0,
            aside_rows: 0,
        }
    }
}

impl player::History for History {
    fn tables(&self) -> Vec<String> {
        let own = self.tables.iter().map(|t| format!("public.{}", t.name));
        own.chain(["public.aside".to_owned()]).collect()
    }

    fn begin(&mut self) -> Vec<String> {
        let mut sql = vec![format!(
            "create type {ENUM} as enum ('g0', 'g1', 'g2'); alter type {ENUM} owner to shop_owner;
             create table aside (id bigint primary key, what text); alter table aside owner to shop_owner"
        )];
        for _ in 0..TABLES {
            sql.extend(self.create_table());
        }
        sql
    }

    fn round(&mut self) -> Vec<Act> {
        let mut acts = Vec::new();
        let (mut is_down, mut is_open) = (false, false);
        for _ in 0..self.random.random_range(ACTS) {
            match self.random.random_range(0..100) {
                0..3 if !is_down => {
                    is_down = true;
                    acts.push(Act::Kill);
                }
                0..8 if is_down => {
                    is_down = false;
                    acts.push(Act::Start);
                }
                8..10 if !is_down => acts.push(Act::Cut),
                10..12 if !is_down => {
                    let at = self.any_table();
                    let table = &self.tables[at];
                    let name = format!("public.{}", table.name);
                    acts.push(match self.random.random_bool(0.5) {
                        true if table.key_columns.contains('n') => {
                            let first = self.random.random_range(0..table.next);
                            Act::ResnapshotPart(
                                name,
                                format!("n >= {first} and n < {}", first + 500),
                            )
                        }
                        _ => Act::Resnapshot(name),
                    });
                }
                12..18 => {
                    let rows = self.random.random_range(1..200);
                    let first = self.aside_rows;
                    self.aside_rows += rows;
                    let insert = format!(
                        "insert into aside select i, repeat('aside ' || i, 20) from generate_series({first}, {}) i",
                        self.aside_rows - 1
                    );
                    acts.push(Act::Aside(match (is_open, self.random.random_bool(0.5)) {
                        (false, true) => {
                            is_open = true;
                            format!("begin; {insert}")
                        }
                        (true, true) => {
                            is_open = false;
                            format!("{insert}; commit")
                        }
                        _ => insert,
                    }));
                }
                18..46 => acts.extend(self.schema_change()),
                46..60 => acts.push(Act::Sql(self.transaction())),
                _ => acts.push(Act::Sql(self.row_change())),
            }
        }
        if is_open {
            acts.push(Act::Aside("commit".to_owned()));
        }
        // A server tells of a table's new shape with its next row.
        for at in 0..self.tables.len() {
            acts.push(Act::Sql(self.tables[at].insert(&mut self.random, 1)));
        }
        if is_down {
            acts.push(Act::Start);
        }
        acts
    }
}

impl History {
    fn any_table(&mut self) -> usize {
        self.random.random_range(0..self.tables.len())
    }

    fn row_change(&mut self) -> String {
        let at = self.any_table();
        self.tables[at].change(&mut self.random)
    }

    /// Rows and shapes change in one transaction, whole or with parts rolled back.
    fn transaction(&mut self) -> String {
        let kept = self.clone();
        let mut sql = String::from("begin");
        for _ in 0..self.random.random_range(1..6) {
            sql += ";\n";
            match self.random.random_range(0..10) {
                0..2 => {
                    let before = self.clone();
                    sql += "savepoint s;\n";
                    sql += &self.part();
                    if self.random.random_bool(0.5) {
                        sql += ";\nrollback to s";
                        self.forget_since(before);
                    } else {
                        sql += ";\nrelease s";
                    }
                }
                _ => sql += &self.part(),
            }
        }
        if self.random.random_range(0..6) == 0 {
            self.forget_since(kept);
            sql + ";\nrollback"
        } else {
            sql + ";\ncommit"
        }
    }

    fn part(&mut self) -> String {
        if self.random.random_range(0..4) == 0
            && let Some(change) = self.schema_change_in_transaction()
        {
            return change;
        }
        self.row_change()
    }

    /// Shapes are as they were; numbers that were given away stay given away, and chance goes on.
    fn forget_since(&mut self, before: Self) {
        let Self {
            random,
            tables_made,
            columns_made,
            labels_made,
            aside_rows,
            ..
        } = std::mem::replace(self, before);
        self.random = random;
        self.tables_made = tables_made;
        self.columns_made = columns_made;
        self.labels_made = labels_made;
        self.aside_rows = aside_rows;
    }
}
