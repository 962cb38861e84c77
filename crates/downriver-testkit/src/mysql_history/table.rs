//! One table of a history: its shape, and the statements that change its rows and its shape.

use rand::Rng;
use rand::rngs::StdRng;

/// A type, an expression of a value of it for row `i`, and whether it may have a default.
type Kind = (&'static str, &'static str, bool);

const KINDS: [Kind; 22] = [
    ("int", "i * 7 - 100", true),
    ("int unsigned", "4294967295 - i", true),
    ("bigint unsigned", "18446744073709551615 - i", true),
    ("tinyint", "i mod 128 - 60", true),
    ("mediumint", "i * 31 - 9000", true),
    ("decimal(12,3)", "i * 1.125 - 7", true),
    ("decimal(50,20)", "i / 7", true),
    ("varchar(40)", "concat('v', i, ' \u{e9}\u{1f600}')", true),
    ("char(8)", "concat('c', i mod 1000)", true),
    (
        "varchar(30) character set latin1",
        "concat('l', i, '\u{e9}')",
        true,
    ),
    ("text", "repeat(concat('t', i, ' '), i mod 40)", false),
    ("double", "i / 7", true),
    ("float", "i / 3", true),
    (
        "datetime(6)",
        "timestampadd(microsecond, i * 1000003, '2020-02-29')",
        false,
    ),
    (
        "timestamp(3) null",
        "timestampadd(second, i * 977, '2001-01-01')",
        false,
    ),
    ("date", "date_add('2000-01-01', interval i day)", false),
    ("time(3)", "sec_to_time(i * 37.5 - 5000)", false),
    ("json", "json_object('i', i, 't', concat('x', i))", false),
    ("enum('a','b','c')", "elt(1 + i mod 3, 'a', 'b', 'c')", true),
    ("set('x','y','z')", "i mod 8", true),
    ("blob", "repeat(char(i mod 256), i mod 60)", false),
    ("bit(10)", "i mod 1024", true),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Key {
    /// `id`, the row's number.
    Number,
    /// Text that is compared without regard to case.
    Text,
    Pair,
    /// None: equal rows are counted.
    Bag,
}

#[derive(Clone, Debug)]
struct Column {
    name: String,
    kind: usize,
    nullable: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Table {
    pub(super) name: String,
    key: Key,
    columns: Vec<Column>,
    indexes: u32,
    /// The number of the next row.
    next: u32,
}

/// `insert into WHAT select EXPRESSIONS` of numbers `i`.
pub(super) fn insert_numbers(what: &str, expressions: &str, first: u32, rows: u32) -> String {
    let last = first + rows.max(1) - 1;
    format!(
        "insert into {what} with recursive s as (select {first} as i union all select i + 1 from s where i < {last}) select {expressions} from s"
    )
}

impl Table {
    pub(super) fn new(name: String, random: &mut StdRng, columns_made: &mut u32) -> Self {
        let key = match random.random_range(0..8) {
            0..4 => Key::Number,
            4 | 5 => Key::Text,
            6 => Key::Pair,
            _ => Key::Bag,
        };
        let mut table = Self {
            name,
            key,
            columns: Vec::new(),
            indexes: 0,
            next: 0,
        };
        for _ in 0..random.random_range(1..6) {
            let column = table.new_column(random, columns_made);
            table.columns.push(column);
        }
        table
    }

    fn new_column(&self, random: &mut StdRng, columns_made: &mut u32) -> Column {
        *columns_made += 1;
        Column {
            name: format!("c{columns_made}"),
            kind: random.random_range(0..KINDS.len()),
            nullable: true,
        }
    }

    pub(super) fn create(&self) -> String {
        let key = match self.key {
            Key::Number => "id bigint unsigned auto_increment primary key, n int not null",
            Key::Text => "k varchar(20) primary key, n int not null",
            Key::Pair => "a enum('p','q','r') not null, n int not null, primary key (n, a)",
            Key::Bag => "n int not null",
        };
        let columns: Vec<String> = self
            .columns
            .iter()
            .map(|column| format!(", `{}` {}", column.name, KINDS[column.kind].0))
            .collect();
        format!("create table `{}` ({key}{})", self.name, columns.concat())
    }

    fn key_columns(&self) -> (&'static str, &'static str) {
        match self.key {
            Key::Number => ("id, n", "i + 1, i"),
            Key::Text => ("k, n", "concat('Key', i), i"),
            Key::Pair => ("a, n", "elt(1 + i mod 3, 'p', 'q', 'r'), i"),
            Key::Bag => ("n", "i"),
        }
    }

    pub(super) fn insert(&mut self, random: &mut StdRng, rows: u32) -> String {
        let first = self.next;
        self.next += rows.max(1);
        self.insert_from(random, first, rows)
    }

    fn insert_from(&self, random: &mut StdRng, first: u32, rows: u32) -> String {
        let (names, expressions) = self.key_columns();
        let (mut names, mut expressions) = (names.to_owned(), expressions.to_owned());
        for column in &self.columns {
            // It has its default, or what its type has.
            if random.random_range(0..4) == 0 {
                continue;
            }
            let value = KINDS[column.kind].1;
            names += &format!(", `{}`", column.name);
            expressions += &match column.nullable {
                true => format!(
                    ", if(i mod 5 = {}, null, {value})",
                    random.random_range(0..5)
                ),
                false => format!(", {value}"),
            };
        }
        insert_numbers(
            &format!("`{}` ({names})", self.name),
            &expressions,
            first,
            rows,
        )
    }

    fn some_rows(&self, random: &mut StdRng) -> String {
        let first = random.random_range(0..self.next.max(1));
        format!(
            "n >= {first} and n < {}",
            first + random.random_range(1..120)
        )
    }

    /// A change of rows.
    pub(super) fn change(&mut self, random: &mut StdRng) -> String {
        let name = self.name.clone();
        match random.random_range(0..20) {
            0..5 => {
                let rows = random.random_range(1..150);
                self.insert(random, rows)
            }
            5 => {
                let rows = random.random_range(800..1_000);
                self.insert(random, rows)
            }
            6..12 if !self.columns.is_empty() => {
                let at = random.random_range(0..self.columns.len());
                let column = &self.columns[at];
                // It is of `i`: a number of a subquery's here.
                let value = KINDS[column.kind].1;
                let shift = random.random_range(0..900);
                format!(
                    "update `{name}` join (select n as was, n + {shift} as i from (select distinct n from `{name}`) d) s on was = `{name}`.n set `{}` = {value} where {}",
                    column.name,
                    self.some_rows(random)
                        .replace("n ", &format!("`{name}`.n "))
                )
            }
            12..15 => format!("delete from `{name}` where {}", self.some_rows(random)),
            15 | 16 => match self.key {
                // Rows take each other's keys.
                Key::Number => format!(
                    "update `{name}` set id = id + 1 where {} order by id desc",
                    self.some_rows(random)
                ),
                Key::Text => format!(
                    "update `{name}` set k = if(k = binary upper(k), lower(k), upper(k)) where {}",
                    self.some_rows(random)
                ),
                Key::Pair => format!(
                    "update `{name}` set n = n + 5000, a = 'p' where {}",
                    self.some_rows(random)
                ),
                Key::Bag => format!(
                    "update `{name}` set n = n + 1 where {}",
                    self.some_rows(random)
                ),
            },
            17 if self.key == Key::Bag && self.next > 0 => {
                let first = random.random_range(0..self.next);
                self.insert_from(random, first, 20)
            }
            18 if self.next > 0 => {
                let first = random.random_range(0..self.next);
                let insert = self.insert_from(random, first, 30);
                insert.replacen("insert into", "replace into", 1)
            }
            _ => format!("update `{name}` set n = n where {}", self.some_rows(random)),
        }
    }

    /// A change of its shape.
    pub(super) fn alter(&mut self, random: &mut StdRng, columns_made: &mut u32) -> String {
        let name = self.name.clone();
        let some = (!self.columns.is_empty()).then(|| random.random_range(0..self.columns.len()));
        match (random.random_range(0..14), some) {
            (0..4, _) => {
                let mut column = self.new_column(random, columns_made);
                let (ty, value, may_default) = KINDS[column.kind];
                let place = match (random.random_range(0..3), some) {
                    (0, _) => " first".to_owned(),
                    (1, Some(at)) => format!(" after `{}`", self.columns[at].name),
                    _ => String::new(),
                };
                let how = match random.random_range(0..3) {
                    0 if may_default => {
                        column.nullable = false;
                        " not null"
                    }
                    1 if may_default
                        && !value.contains('\'')
                        && !ty.starts_with("bit")
                        && !ty.starts_with("set") =>
                    {
                        " default 1"
                    }
                    _ => "",
                };
                let sql = format!(
                    "alter table `{name}` add column `{}` {ty}{how}{place}",
                    column.name
                );
                self.columns.push(column);
                sql
            }
            (4 | 5, Some(at)) if self.columns.len() > 1 => {
                let dropped = self.columns.remove(at);
                format!("alter table `{name}` drop column `{}`", dropped.name)
            }
            (6 | 7, Some(at)) => {
                *columns_made += 1;
                let new = format!("c{columns_made}");
                let before = std::mem::replace(&mut self.columns[at].name, new.clone());
                format!("alter table `{name}` rename column `{before}` to `{new}`")
            }
            (8, Some(at)) => {
                // Dropped and made again under its name, of another type.
                let kind = random.random_range(0..KINDS.len());
                let column = &mut self.columns[at];
                (column.kind, column.nullable) = (kind, true);
                format!(
                    "alter table `{name}` drop column `{0}`; alter table `{name}` add column `{0}` {1}",
                    column.name, KINDS[kind].0
                )
            }
            (9 | 10, Some(at)) => {
                let column = &mut self.columns[at];
                let wider = match KINDS[column.kind].0 {
                    "int" | "tinyint" | "mediumint" => "decimal(50,20)",
                    "float" => "double",
                    "varchar(40)" | "char(8)" => "text",
                    "varchar(30) character set latin1" => "varchar(40)",
                    "date" => "datetime(6)",
                    _ => return format!("alter table `{name}` comment = 'of {at}'"),
                };
                column.kind = KINDS
                    .iter()
                    .position(|kind| kind.0 == wider)
                    .expect("it is one");
                column.nullable = true;
                format!(
                    "alter table `{name}` modify column `{}` {wider}",
                    column.name
                )
            }
            (11, _) => {
                self.indexes += 1;
                format!("alter table `{name}` add index i{} (n)", self.indexes)
            }
            (12, _) if self.key == Key::Number => {
                self.key = Key::Bag;
                format!("alter table `{name}` drop column id")
            }
            _ => format!("alter table `{name}` force"),
        }
    }

    /// Another table of the same shape, with the rows of this one or none.
    pub(super) fn copied(&self, name: String, random: &mut StdRng) -> (Vec<String>, Self) {
        let mut copy = Self {
            name,
            ..self.clone()
        };
        let (from, to) = (&self.name, &copy.name);
        let mut sql = vec![format!("create table `{to}` like `{from}`")];
        match random.random_bool(0.5) {
            true => sql.push(format!("insert into `{to}` select * from `{from}`")),
            false => {
                copy.next = 0;
                sql.push(copy.insert(random, 30));
            }
        }
        (sql, copy)
    }
}
