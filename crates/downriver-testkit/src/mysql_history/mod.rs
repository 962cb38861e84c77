//! Seeded histories of MySQL and MariaDB: tables come, change shape and go, and rows change all the while.
//!
//! The same seed gives the same SQL. The generator knows the shape of every table, so each statement is valid when it is
//! run in order; which rows one meets it leaves to their numbers.

mod stage;
mod table;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::player::{self, Act};
pub use stage::Style;
use table::Table;

pub type Player = player::Player<crate::mysql::Mysql>;

/// Tables at the start, and at most.
const TABLES: usize = 4;
const TABLES_MAX: usize = 7;
const ACTS: std::ops::Range<usize> = 12..30;

pub struct History {
    random: StdRng,
    tables: Vec<Table>,
    /// Numbers of tables and columns that were given away.
    tables_made: u32,
    columns_made: u32,
    aside_rows: u32,
}

impl History {
    pub fn new(seed: u64) -> Self {
        Self {
            random: StdRng::seed_from_u64(seed),
            tables: Vec::new(),
            tables_made: 0,
            columns_made: 0,
            aside_rows: 0,
        }
    }
}

impl player::History for History {
    fn tables(&self) -> Vec<String> {
        let own = self.tables.iter().map(|t| format!("shop.{}", t.name));
        own.chain(["shop.aside".to_owned()]).collect()
    }

    fn begin(&mut self) -> Vec<String> {
        let aside = "create table aside (id bigint primary key, what text)";
        let mut sql = vec![aside.to_owned()];
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
                10 if !is_open => acts.push(Act::Crash),
                11..13 if !is_down => {
                    let at = self.any_table();
                    acts.push(Act::Resnapshot(format!("shop.{}", self.tables[at].name)));
                }
                13..19 => {
                    let rows = self.random.random_range(1..200);
                    let first = self.aside_rows;
                    self.aside_rows += rows;
                    let insert = table::insert_numbers(
                        "aside (id, what)",
                        "i, repeat(concat('aside ', i), 20)",
                        first,
                        rows,
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
                19..42 => acts.extend(self.schema_change().into_iter().map(Act::Sql)),
                42..58 => acts.push(Act::Sql(self.transaction())),
                _ => acts.push(Act::Sql(self.row_change())),
            }
        }
        if is_open {
            acts.push(Act::Aside("commit".to_owned()));
        }
        // A binlog tells of a table's new shape with its next row.
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

    /// Rows change in one transaction, whole or with parts rolled back.
    fn transaction(&mut self) -> String {
        let mut sql = String::from("begin");
        for _ in 0..self.random.random_range(1..6) {
            sql += ";\n";
            if self.random.random_range(0..10) < 2 {
                let end = if self.random.random_bool(0.5) {
                    "rollback to s"
                } else {
                    "release savepoint s"
                };
                sql += &format!("savepoint s;\n{};\n{end}", self.row_change());
            } else {
                sql += &self.row_change();
            }
        }
        let end = if self.random.random_range(0..6) == 0 {
            "rollback"
        } else {
            "commit"
        };
        format!("{sql};\n{end}")
    }

    fn create_table(&mut self) -> Vec<String> {
        self.tables_made += 1;
        let name = format!("t{}", self.tables_made);
        let mut table = Table::new(name, &mut self.random, &mut self.columns_made);
        let create = table.create();
        let rows = self.random.random_range(0..900);
        let insert = table.insert(&mut self.random, rows);
        self.tables.push(table);
        vec![create, insert]
    }

    /// A change of a table's shape, or of which tables there are.
    fn schema_change(&mut self) -> Vec<String> {
        let at = self.any_table();
        match self.random.random_range(0..20) {
            0 if self.tables.len() < TABLES_MAX => self.create_table(),
            1 if self.tables.len() > 2 => {
                let dropped = self.tables.remove(at);
                vec![format!("drop table `{}`", dropped.name)]
            }
            2 => {
                // Made again under its name, with other columns.
                let name = self.tables[at].name.clone();
                let mut table = Table::new(name, &mut self.random, &mut self.columns_made);
                let mut sql = vec![format!("drop table `{}`", table.name), table.create()];
                sql.push(table.insert(&mut self.random, 40));
                self.tables[at] = table;
                sql
            }
            3 => {
                self.tables_made += 1;
                let name = format!("t{}", self.tables_made);
                let before = std::mem::replace(&mut self.tables[at].name, name.clone());
                vec![format!("rename table `{before}` to `{name}`")]
            }
            4 => {
                let other = self.any_table();
                if at == other {
                    return Vec::new();
                }
                let (one, two) = (
                    self.tables[at].name.clone(),
                    self.tables[other].name.clone(),
                );
                self.tables[at].name.clone_from(&two);
                self.tables[other].name.clone_from(&one);
                vec![format!(
                    "rename table `{one}` to swapping, `{two}` to `{one}`, swapping to `{two}`"
                )]
            }
            5 => vec![format!("truncate table `{}`", self.tables[at].name)],
            6 if self.tables.len() < TABLES_MAX => {
                self.tables_made += 1;
                let name = format!("t{}", self.tables_made);
                let (sql, table) = self.tables[at].copied(name, &mut self.random);
                self.tables.push(table);
                sql
            }
            7 => {
                let told = match self.random.random_bool(0.5) {
                    true => "FULL",
                    false => "MINIMAL",
                };
                vec![format!("set global binlog_row_metadata = {told}")]
            }
            _ => vec![self.tables[at].alter(&mut self.random, &mut self.columns_made)],
        }
    }
}
