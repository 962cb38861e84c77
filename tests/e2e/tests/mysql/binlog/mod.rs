//! The binlogs of real servers, decoded: what comes out is what the server itself shows.

mod documents;
pub(crate) mod read;
mod seeds;

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail, ensure};
use downriver_event::{BinlogPlace, GtidSet, SourcePosition};
use downriver_testkit::mysql::{Mysql, Product};
use mysql_async::Row;
use mysql_async::prelude::Queryable as _;

/// A table, and what its columns are as canonical text.
type Shown = (&'static str, &'static [&'static str]);

const NUMBERS: Shown = (
    "numbers",
    &[
        "id", "t", "tu", "s", "su", "m", "mu", "i", "iu", "b", "bu", "z+0", "d", "d2", "d0", "d9",
        "f+0e0", "db", "b1+0", "b10+0", "b64+0", "y+0", "bo",
    ],
);
const TIMES: Shown = (
    "times",
    &[
        "id",
        "if(day(d) = 0, 'zero', datediff(d, '1970-01-01'))",
        "t0",
        "t3",
        "t6",
        "if(day(dt0) = 0, 'zero', timestampdiff(microsecond, '1970-01-01', dt0))",
        "if(month(dt6) = 0, 'zero', timestampdiff(microsecond, '1970-01-01', dt6))",
        "if(day(ts0) = 0, 'zero', timestampdiff(microsecond, '1970-01-01', ts0))",
        "if(day(ts2) = 0, 'zero', timestampdiff(microsecond, '1970-01-01', ts2))",
        "if(day(ts6) = 0, 'zero', timestampdiff(microsecond, '1970-01-01', ts6))",
    ],
);
const TEXTS: Shown = (
    "texts",
    &[
        "id",
        "c",
        "v",
        "tx",
        "lt",
        "l1",
        "g",
        "u2",
        "cb",
        "lower(hex(bi))",
        "lower(hex(vb))",
        "lower(hex(bl))",
        "e",
        "se",
        "el",
    ],
);

const LOAD: &str = include_str!("load.sql");
const LOAD_MYSQL: &str = include_str!("load_mysql.sql");
const LOAD_MARIADB: &str = include_str!("load_mariadb.sql");
const LOAD_NATIVES: &str = include_str!("natives.sql");
const DOCS: Shown = (
    "docs",
    &[
        "id",
        "cast(j as char)",
        "lower(hex(p))",
        "vector_to_string(ve)",
    ],
);

const PACKED: Shown = (
    "packed",
    &[
        "id",
        "v",
        "vs",
        "vl",
        "lower(hex(vb))",
        "plain",
        "t",
        "lt",
        "tt",
        "lower(hex(b))",
        "lower(hex(mb))",
    ],
);
const NATIVES: Shown = (
    "natives",
    &[
        "id",
        "replace(u, '-', '')",
        "replace(v, '-', '')",
        "a",
        "b",
        "c",
        "lower(hex(bi))",
        "lower(hex(b4))",
    ],
);
const ADDED: Shown = ("added", &["id", "a", "c"]);
const FORGET: &str = "drop table if exists numbers, times, texts, docs, packed, added, natives;";

/// How many events of each type a binlog has.
fn kinds(file: &[u8]) -> BTreeMap<u8, u64> {
    let mut kinds = BTreeMap::new();
    let mut rest = file.get(4..).unwrap_or_default();
    while let Some((head, len)) = rest.get(..9).zip(rest.get(9..13)) {
        *kinds.entry(head[4]).or_default() += 1;
        let len = u32::from_le_bytes([len[0], len[1], len[2], len[3]]);
        rest = rest.get(len as usize..).unwrap_or_default();
    }
    kinds
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_of_mysql_are_what_it_shows() -> Result<()> {
    let server = Mysql::start(Product::Mysql9).await?;
    let executed = async || -> Result<GtidSet> {
        let set: Option<String> = server
            .client()
            .await?
            .query_first("select @@gtid_executed")
            .await?;
        Ok(set.unwrap_or_default().parse()?)
    };
    const COMPACT: &str = "set global binlog_transaction_compression = on; set global binlog_row_value_options = partial_json;";
    const TRANSACTION_PAYLOAD: u8 = 40;
    for settings in ["", COMPACT] {
        server.execute(&format!("{FORGET}{settings}")).await?;
        let before = executed().await?;
        server.execute(LOAD).await?;
        server.execute(LOAD_MYSQL).await?;
        let (decoded, position) = read::tables(&server).await?;
        for table in [NUMBERS, TIMES, TEXTS, DOCS] {
            ensure_equal(&server, &decoded, table).await?;
        }
        let SourcePosition::Mysql { gtids, place } = position else {
            bail!("{position} is no position of MySQL's");
        };
        let expected = executed().await?.without(&before);
        ensure!(
            gtids == expected && gtids.to_string().contains(":night:"),
            "{gtids}, not {expected}"
        );
        ensure_all_read(&server, &place)?;
        let kinds = kinds(&server.newest_binlog()?);
        let is_compact = kinds.contains_key(&TRANSACTION_PAYLOAD);
        ensure!(is_compact != settings.is_empty(), "{kinds:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_of_mariadb_are_what_it_shows() -> Result<()> {
    const COMPACT: &str =
        "set global log_bin_compress = on; set global log_bin_compress_min_len = 10;";
    const NODUP: &str = "set global binlog_row_image = full_nodup;";
    for (product, settings) in [
        (Product::Mariadb10, &["", COMPACT][..]),
        (Product::Mariadb11, &["", COMPACT, NODUP]),
    ] {
        let server = Mysql::start(product).await?;
        for settings in settings {
            server.execute(&format!("{FORGET}{settings}")).await?;
            is_shown(&server)
                .await
                .with_context(|| format!("{product:?} {settings}"))?;
            let kinds = kinds(&server.newest_binlog()?);
            println!("{product:?} {settings}: {kinds:?}");
            // Statements, and rows of each kind.
            let is_compact = (165..=168).all(|kind| kinds.contains_key(&kind));
            ensure!(is_compact != settings.is_empty(), "{kinds:?}");
        }
    }
    Ok(())
}

async fn is_shown(server: &Mysql) -> Result<()> {
    server.execute(LOAD).await?;
    server.execute(LOAD_MARIADB).await?;
    server.execute(LOAD_NATIVES).await?;
    let (decoded, position) = read::tables(server).await?;
    for table in [NUMBERS, TIMES, TEXTS, PACKED, ADDED, NATIVES] {
        ensure_equal(server, &decoded, table).await?;
    }
    let SourcePosition::Mariadb { gtids, place } = position else {
        bail!("{position} is no position of MariaDB's");
    };
    let reached: Option<String> = server
        .client()
        .await?
        .query_first("select @@gtid_binlog_pos")
        .await?;
    ensure!(
        Some(gtids.to_string()) == reached,
        "{gtids}, not {reached:?}"
    );
    ensure_all_read(server, &place)
}

/// The server's own field for a place has 32 bits, and in some versions is 0: the decoder counts.
fn ensure_all_read(server: &Mysql, place: &BinlogPlace) -> Result<()> {
    let bytes = u64::try_from(server.newest_binlog()?.len())?;
    ensure!(place.position == bytes, "{place}, not {bytes}");
    Ok(())
}

async fn ensure_equal(
    server: &Mysql,
    decoded: &read::Tables,
    (table, expressions): Shown,
) -> Result<()> {
    let columns = expressions.join("), concat(");
    let mut client = server.client().await?;
    let rows: Vec<Row> = client
        .query(format!("select concat({columns}) from {table}"))
        .await?;
    let shown: BTreeMap<String, Vec<Option<String>>> = rows
        .into_iter()
        .map(|row| {
            let cells: Vec<Option<String>> = (0..row.len())
                .map(|at| row.get::<Option<String>, _>(at).flatten())
                .collect();
            (cells[0].clone().unwrap_or_default(), cells)
        })
        .collect();
    let found = decoded.get(table).context("nothing was decoded of it")?;
    ensure!(!shown.is_empty());
    for (id, cells) in &shown {
        let found = found
            .get(id)
            .with_context(|| format!("{table} {id} is missing"))?;
        for (at, (shown, found)) in cells.iter().zip(found).enumerate() {
            let is_equal = match expressions[at] {
                // Shown with fewer digits, or otherwise laid out.
                "f+0e0" | "db" => number(shown) == number(found),
                _ => shown == found,
            };
            ensure!(
                is_equal,
                "{table} {id}, column {at}: {shown:?}, not {found:?}"
            );
        }
    }
    ensure!(
        found.len() == shown.len(),
        "{table}: {} rows, not {}",
        found.len(),
        shown.len()
    );
    Ok(())
}

fn number(text: &Option<String>) -> Option<f64> {
    text.as_deref().and_then(|text| text.parse().ok())
}
