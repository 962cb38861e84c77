//! Documents that are changed in part, at random: they are what the server shows.

use anyhow::{Result, ensure};
use downriver_testkit::mysql::{Mysql, Product};
use mysql_async::prelude::Queryable as _;

use super::{Shown, ensure_equal, kinds, read};

const DOCUMENTS: Shown = (
    "documents",
    &["id", "cast(j as char)", "other", "cast(k as char)"],
);
const PARTIAL_UPDATE_ROWS: u8 = 39;
const ROWS: u64 = 12;
const STATEMENTS: u64 = 600;

/// The same numbers for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }

    fn of<'a>(&mut self, what: &[&'a str]) -> &'a str {
        let at = self.below(what.len() as u64);
        what[usize::try_from(at).unwrap_or_default()]
    }

    /// An expression of SQL for a value of any kind, some large enough to move what is around them.
    fn value(&mut self, depth: u64) -> String {
        match self.below(if depth > 2 { 14 } else { 18 }) {
            0 => "null".into(),
            1 => "true".into(),
            2 => format!("{}", self.below(70_000)),
            3 => format!("-{}", self.below(5_000_000_000)),
            4 => "18446744073709551615".into(),
            5 => format!("{}.{}e{}", self.below(10), self.below(1000), self.below(40)),
            6 => format!(
                "cast('{}.{:03}' as decimal(20,3))",
                self.below(100_000),
                self.below(1000)
            ),
            7 => format!(
                "repeat('{}', {})",
                self.of(&["x", "é", "😀", "\"", "\\\\", "\\n"]),
                self.below(300)
            ),
            8 => "cast('2024-02-29 01:02:03.4' as datetime(6))".into(),
            9 => "cast('-12:34:56.5' as time(6))".into(),
            10 => "cast('abc' as binary)".into(),
            11 => "''".into(),
            12 => format!("cast({}e0 / 7 as double)", self.below(1000)),
            13 => "cast('[]' as json)".into(),
            14 | 15 => {
                let count = self.below(5);
                let members: Vec<String> = (0..count).map(|_| self.value(depth + 1)).collect();
                format!("json_array({})", members.join(", "))
            }
            _ => {
                let count = self.below(5);
                let members = (0..count).map(|_| {
                    let key = self.key();
                    format!("'{key}', {}", self.value(depth + 1))
                });
                let members: Vec<String> = members.collect();
                format!("json_object({})", members.join(", "))
            }
        }
    }

    fn key(&mut self) -> &'static str {
        self.of(&[
            "a",
            "b",
            "cc",
            "dd",
            "long name",
            "é",
            "quo\\\"te",
            "",
            "$x",
            "back\\\\slash",
            "0",
            "a.b",
        ])
    }

    /// A literal of a path.
    fn path(&mut self) -> String {
        let mut path = String::from("'$");
        for _ in 0..=self.below(3) {
            match self.below(5) {
                0 => path += &format!("[{}]", self.below(6)),
                1 => path += self.of(&["[last]", "[last-1]"]),
                _ => {
                    let key = self.key();
                    path += &match key.contains('\\') {
                        // Escaped once for the literal, and once for the name in it.
                        true => format!(".\"{}\"", key.replace('\\', "\\\\")),
                        false => format!(".\"{key}\""),
                    };
                }
            }
        }
        path + "'"
    }

    fn change(&mut self, of: &str) -> String {
        let mut changed = of.to_owned();
        for _ in 0..=self.below(2) {
            let function = self.of(&["json_set", "json_set", "json_replace", "json_remove"]);
            let mut arguments = Vec::new();
            for _ in 0..=self.below(2) {
                arguments.push(self.path());
                if function != "json_remove" {
                    arguments.push(self.value(0));
                }
            }
            changed = format!("{function}({changed}, {})", arguments.join(", "));
        }
        changed
    }

    fn statement(&mut self) -> String {
        let of = |column: &str, random: &mut Self| format!("{column} = {}", random.change(column));
        let set = match self.below(10) {
            0 => format!("j = {}", self.value(0)).replace("= null", "= cast('null' as json)"),
            1 => of("k", self),
            2 | 3 => format!("{}, {}", of("j", self), of("k", self)),
            4 => format!("{}, other = 'o{}'", of("j", self), self.below(100)),
            _ => of("j", self),
        };
        let rows = match self.below(4) {
            0 => format!("id > {}", self.below(ROWS)),
            _ => format!("id = {}", self.below(ROWS)),
        };
        format!("update documents set {set} where {rows}")
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn documents_that_are_changed_in_part_are_what_mysql_shows() -> Result<()> {
    let server = Mysql::start(Product::Mysql9).await?;
    let mut client = server.client().await?;
    client
        .query_drop("flush binary logs; create table documents (id int primary key, j json, other varchar(10), k json)")
        .await?;
    let seed = std::env::var("DOWNRIVER_SEED").map_or(Ok(1), |seed| seed.parse())?;
    let mut random = Random(seed);
    for id in 0..ROWS {
        let (j, k) = (random.value(0), random.value(0));
        let insert = format!(
            "insert into documents values ({id}, json_object('a', {j}, 'b', json_array(1, 2, 3, 4), 'cc', json_object('a', 1, 'dd', {k})), null, json_array({k}, {j}, 3, json_object('b', 1), 5))"
        );
        client.query_drop(insert).await?;
    }
    let mut changed = 0;
    for at in 0..STATEMENTS {
        if at % 50 == 0 {
            let (options, compression) = match at / 50 % 4 {
                0 => ("PARTIAL_JSON", "OFF"),
                1 => ("", "ON"),
                2 => ("PARTIAL_JSON", "ON"),
                _ => ("PARTIAL_JSON", "OFF"),
            };
            client
                .query_drop(format!(
                    "set binlog_row_value_options = '{options}', binlog_transaction_compression = {compression}"
                ))
                .await?;
        }
        let statement = random.statement();
        match client.query_drop(&statement).await {
            Ok(()) => changed += u64::from(client.affected_rows() > 0),
            // A path that goes nowhere, or names the whole.
            Err(mysql_async::Error::Server(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let (decoded, _) = read::tables(&server).await?;
    ensure_equal(&server, &decoded, DOCUMENTS).await?;
    let kinds = kinds(&server.newest_binlog()?);
    let in_part = kinds.get(&PARTIAL_UPDATE_ROWS).copied().unwrap_or_default();
    println!("{changed} of {STATEMENTS} statements changed rows; events: {kinds:?}");
    ensure!(changed > STATEMENTS / 3 && in_part > 50, "{kinds:?}");

    // A change without the document that it is of.
    client
        .query_drop(
            "flush binary logs; set binlog_row_image = minimal, binlog_row_value_options = partial_json;
             insert into documents values (100, json_object('a', 1, 'b', repeat('b', 500)), null, null);
             update documents set j = json_set(j, '$.a', 2) where id = 100",
        )
        .await?;
    let refused = read::tables(&server)
        .await
        .err()
        .map(|error| error.to_string());
    ensure!(
        refused
            .as_deref()
            .is_some_and(|reason| reason.contains("was changed in part")),
        "{refused:?}"
    );
    Ok(())
}
