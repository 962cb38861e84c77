//! What the generator knows of one table, and the SQL that changes its rows.

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;

use super::values::{ColumnType, Key};

/// `n bigint`, `body text` stored out of line, the key's own column if it has one, and columns that come and go.
#[derive(Clone, Debug)]
pub(super) struct Table {
    pub name: String,
    pub key: Key,
    /// The columns of the primary key, and its constraint's name, which outlasts names of the table.
    pub key_columns: &'static str,
    constraint: String,
    pub columns: Vec<Column>,
    /// Every `n` so far lies below it.
    pub next: i64,
    /// How often keys were shifted: each time to where no key has been.
    pub shifts: i64,
}

#[derive(Clone, Debug)]
pub(super) struct Column {
    pub name: String,
    pub ty: ColumnType,
}

/// Keys move by this much, which is more than a table ever gets rows.
const SHIFT: i64 = 1_000_000_000;

impl Table {
    pub(super) fn new(random: &mut StdRng, name: String, number: u32, columns: usize) -> Self {
        let columns = (0..columns)
            .map(|at| Column {
                name: format!("c{at}"),
                ty: ColumnType::draw(random),
            })
            .collect();
        let key = Key::draw(random);
        Self {
            name,
            key,
            key_columns: key.columns(),
            constraint: format!("key_{number}"),
            columns,
            next: 1,
            shifts: 0,
        }
    }

    pub(super) fn create(&self) -> String {
        let name = &self.name;
        let mut columns = String::from("n bigint not null, body text");
        if let Some(ty) = self.key.column_type() {
            columns += &format!(", k {ty} not null");
        }
        for column in &self.columns {
            columns += &format!(", {} {}", column.name, column.ty.sql());
        }
        let (key, constraint) = (self.key_columns, &self.constraint);
        let mut more = String::new();
        if self.key == Key::Bag {
            more += ", replica identity full";
        } else {
            columns += &format!(", constraint {constraint} primary key ({key})");
        }
        format!(
            "create table {name} ({columns});
             alter table {name} owner to shop_owner, alter body set storage external{more}"
        )
    }

    /// Another primary key, which every row has once as well.
    pub(super) fn change_key(&mut self, random: &mut StdRng) -> Option<String> {
        let all = self.key.all_columns();
        let other: Vec<_> = all.iter().filter(|key| **key != self.key_columns).collect();
        self.key_columns = other.choose(random)?;
        let (name, constraint, key) = (&self.name, &self.constraint, self.key_columns);
        Some(format!(
            "alter table {name} drop constraint {constraint}, add constraint {constraint} primary key ({key})"
        ))
    }

    /// A statement that changes some rows.
    pub(super) fn change(&mut self, random: &mut StdRng) -> String {
        match random.random_range(0..100) {
            0..35 => {
                let rows = random.random_range(1..40);
                self.insert(random, rows)
            }
            35..65 => self.update(random),
            65..72 => self.touch(random),
            72..84 => self.delete(random),
            84..92 => self.shift_keys(random),
            92..95 if self.key == Key::Bag => self.insert_equal(random),
            92..95 => self.upsert(random),
            95..97 => {
                let rows = random.random_range(500..3_000);
                self.insert(random, rows)
            }
            _ => format!("truncate {}", self.name),
        }
    }

    pub(super) fn insert(&mut self, random: &mut StdRng, rows: i64) -> String {
        let first = self.next;
        self.next += rows;
        format!(
            "insert into {} ({}) select {} from generate_series({first}, {}) i",
            self.name,
            self.all_columns(),
            self.row(random),
            self.next - 1
        )
    }

    fn all_columns(&self) -> String {
        let key = self.key.column_type().map(|_| "k");
        let named = self.columns.iter().map(|column| column.name.as_str());
        let all: Vec<&str> = ["n", "body"].into_iter().chain(key).chain(named).collect();
        all.join(", ")
    }

    /// The values of row `i`, in the order of `all_columns`.
    fn row(&self, random: &mut StdRng) -> String {
        let mut values = vec!["i".to_owned(), body(random, "i")];
        values.extend(self.key.expression("i"));
        values.extend(self.columns.iter().map(|c| c.ty.varied(random, "i")));
        values.join(", ")
    }

    fn update(&self, random: &mut StdRng) -> String {
        if self.columns.is_empty() {
            return self.touch(random);
        }
        let count = random.random_range(1..=self.columns.len().min(3));
        let mut sets = Vec::new();
        for column in rand::seq::index::sample(random, self.columns.len(), count) {
            let column = &self.columns[column];
            sets.push(format!(
                "{} = {}",
                column.name,
                column.ty.varied(random, "n")
            ));
        }
        if random.random_range(0..4) == 0 {
            sets.push(format!("body = {}", body(random, "n")));
        }
        format!(
            "update {} set {} where {}",
            self.name,
            sets.join(", "),
            some(random)
        )
    }

    /// Rows that are written and stay as they were, values out of line among them.
    fn touch(&self, random: &mut StdRng) -> String {
        format!("update {} set n = n where {}", self.name, some(random))
    }

    fn delete(&self, random: &mut StdRng) -> String {
        format!("delete from {} where {}", self.name, some(random))
    }

    fn shift_keys(&mut self, random: &mut StdRng) -> String {
        self.shifts += 1;
        let to = format!("n + {}", self.shifts * SHIFT);
        let key = self.key.expression(&format!("({to})"));
        let key = key.map_or_else(String::new, |key| format!(", k = {key}"));
        // Each row at most once to each place: what was shifted already stays.
        format!(
            "update {} set n = {to}{key} where n < {SHIFT} and {}",
            self.name,
            some(random)
        )
    }

    /// Rows that are there once more.
    fn insert_equal(&self, random: &mut StdRng) -> String {
        let (name, columns) = (&self.name, self.all_columns());
        let condition = some(random);
        format!(
            "insert into {name} ({columns}) select {columns} from {name} where {condition} limit 500"
        )
    }

    fn upsert(&self, random: &mut StdRng) -> String {
        let (first, last) = (self.next - 10, self.next - 1);
        format!(
            "insert into {} ({}) select {} from generate_series(greatest({first}, 1), {last}) i on conflict ({}) do update set body = excluded.body",
            self.name,
            self.all_columns(),
            self.row(random),
            self.key_columns
        )
    }
}

/// A condition that holds for about one row in a few.
fn some(random: &mut StdRng) -> String {
    let modulus = [2, 5, 13, 47][random.random_range(0..4)];
    let remainder = random.random_range(0..modulus);
    format!("n % {modulus} = {remainder}")
}

/// Null, short, or so long that it is stored out of line.
fn body(random: &mut StdRng, of: &str) -> String {
    let salt: u32 = random.random_range(0..1_000);
    match random.random_range(0..4) {
        0 => "null".to_owned(),
        1 => format!("'body ' || {of} || ' {salt}'"),
        _ => format!(
            "(select string_agg(md5({of} || ':{salt}:' || j), '') from generate_series(1, 70) j)"
        ),
    }
}
