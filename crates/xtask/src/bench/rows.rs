//! Rows of about 100 bytes, drawn from one seed, and the statements that write them: the same in every database.

use std::fmt::Write as _;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

const SEED: u64 = 42;
const STATES: [&str; 5] = ["new", "paid", "shipped", "closed", "refunded"];
pub(super) const COLUMNS: &str = "id bigint primary key, account_id int not null, amount numeric(12,2) not null, \
     status varchar(10) not null, created_at timestamp(6) not null, note varchar(64)";

pub(super) struct Rows {
    pub(super) random: StdRng,
    /// Letters and blanks; a note is a piece of it.
    words: String,
    /// Made once: drawing one a row would cost more than the row.
    times: Vec<String>,
}

pub(super) struct Row<'a> {
    pub(super) id: u64,
    account: u32,
    pub(super) amount: String,
    pub(super) state: &'static str,
    created_at: &'a str,
    pub(super) note: &'a str,
}

impl Rows {
    const NOTE_BYTES: usize = 48;

    pub(super) fn new() -> Self {
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

    pub(super) fn draw(&mut self, id: u64) -> Row<'_> {
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

impl Row<'_> {
    /// As `COPY` takes it.
    pub(super) fn push_line(&self, lines: &mut String) {
        let _infallible = writeln!(
            lines,
            "{}\t{}\t{}\t{}\t{}\t{}",
            self.id, self.account, self.amount, self.state, self.created_at, self.note
        );
    }
}

pub(super) fn push_insert(sql: &mut String, table: &str, first: u64, count: u64, rows: &mut Rows) {
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
