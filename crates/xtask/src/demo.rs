//! The demo: a shop in a real PostgreSQL, under load, captured into the log; then the log folded back into
//! rows and compared with the tables.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use downriver_testkit::workload::{Style, Workload};
use downriver_testkit::{Daemon, Postgres, host, resources, shop};
use serde_json::Value;

const SCALE: u32 = 50_000;
const LOAD_FOR: Duration = Duration::from_secs(15);
const PATIENCE: Duration = Duration::from_secs(180);

pub(crate) async fn run(keep: bool) -> Result<()> {
    let folder = tempfile::Builder::new()
        .prefix("downriver-demo-")
        .tempdir()?;
    step("starting PostgreSQL and filling a shop");
    let postgres = Postgres::start().await?;
    shop::create(&postgres).await?;
    shop::fill(&postgres, SCALE).await?;
    step("starting downriver dev");
    let mut daemon = Daemon::new(folder.path())?;
    daemon.start().await?;
    println!(
        "   gRPC {}, HTTP {}",
        daemon.addresses()?.grpc,
        daemon.addresses()?.http
    );
    step("writing to the shop, and applying this source");
    let load = Workload::start(
        &postgres,
        Style {
            seed: 42,
            scale: SCALE,
            ..Style::default()
        },
    );
    let source = resources::source(
        &postgres,
        &["public.*"],
        &["snapshot: { mode: initial, chunk_rows: 10000 }"],
    );
    println!("{source}");
    daemon.apply(&source).await?;
    let until = std::time::Instant::now() + LOAD_FOR;
    while std::time::Instant::now() < until {
        print_progress(&daemon).await?;
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    step("killing it with kill -9, and starting it again");
    daemon.kill();
    daemon.start().await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let written = load.stop().await?;
    println!("   the shop wrote {written:?}");
    let columns = "alter table public.customers add column demo_note text; update public.customers set demo_note = 'seen' where id <= 3";
    step("adding a column while the capture runs");
    postgres.execute(columns).await?;
    caught_up(&daemon, &postgres).await?;

    step("the same tables, from PostgreSQL and from the log");
    let folded = fold(&daemon).await?;
    let mut equal = true;
    println!(
        "   {:<24} {:>12} {:>12}  equal",
        "table", "PostgreSQL", "log"
    );
    for table in shop::TABLES {
        let keys = keys(&postgres, table).await?;
        let empty = BTreeSet::new();
        let log = folded.get(table).unwrap_or(&empty);
        equal &= *log == keys;
        println!(
            "   {table:<24} {:>12} {:>12}  {}",
            keys.len(),
            log.len(),
            if *log == keys { "yes" } else { "NO" }
        );
    }
    step("the last events");
    let described = daemon.describe("source", resources::SOURCE).await?;
    let from = described["next_offset"]
        .as_u64()
        .unwrap_or_default()
        .saturating_sub(4)
        .to_string();
    print!(
        "{}",
        daemon
            .ok(&[
                "tail",
                resources::SOURCE,
                "--from",
                &from,
                "--until",
                "latest"
            ])
            .await?
    );
    ensure!(equal, "the log is not the database");
    if keep {
        step("everything is left running");
        println!("   psql '{}'", postgres.admin_url("shop"));
        println!("   export DOWNRIVER_ADDR={}", daemon.addresses()?.grpc);
        println!("   {} status --watch", daemon.binary().display());
        println!(
            "   {} tail {}",
            daemon.binary().display(),
            resources::SOURCE
        );
        daemon.leave_running();
        postgres.leave_running();
        let _ = folder.keep();
        return Ok(());
    }
    step("stopping");
    daemon.stop()?;
    println!("To go on by hand: make demo KEEP=1");
    Ok(())
}

fn step(what: &str) {
    println!("== {what}");
}

async fn print_progress(daemon: &Daemon) -> Result<()> {
    let described = daemon.describe("source", resources::SOURCE).await?;
    let tables = described["tables"].as_array().cloned().unwrap_or_default();
    let copying: Vec<String> = tables
        .iter()
        .filter(|table| table["state"] == "snapshotting")
        .map(|table| {
            let snapshot = &table["snapshot"];
            let name = table["table"].as_str().unwrap_or_default();
            format!(
                "{name} {}/{} rows, {} rows/s",
                snapshot["rows_done"], snapshot["rows_estimated"], snapshot["rows_per_second"]
            )
        })
        .collect();
    let state = described["state"].as_str().unwrap_or_default();
    println!(
        "   {state}, offset {}  {}",
        described["next_offset"],
        copying.join("; ")
    );
    Ok(())
}

async fn caught_up(daemon: &Daemon, postgres: &Postgres) -> Result<()> {
    let client = postgres.client().await?;
    let committed: String = client
        .query_one("select pg_current_wal_lsn()::text", &[])
        .await?
        .get(0);
    host::until("the capture to catch up", PATIENCE, async || {
        let source = daemon.describe("source", resources::SOURCE).await?;
        let passed = source["position"].as_str().unwrap_or("0/0");
        let query = format!("select '{passed}'::pg_lsn >= '{committed}'::pg_lsn");
        Ok(
            client.query_one(&query, &[]).await?.get::<_, bool>(0)
                && source["state"] == "streaming",
        )
    })
    .await
}

/// The keys that the log's events leave behind, by table.
async fn fold(daemon: &Daemon) -> Result<BTreeMap<String, BTreeSet<String>>> {
    let arguments = [
        "tail",
        resources::SOURCE,
        "--from",
        "earliest",
        "--until",
        "latest",
        "-o",
        "json",
    ];
    let lines = daemon.ok(&arguments).await?;
    let mut tables: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in lines.lines() {
        let event: Value =
            serde_json::from_str(line).with_context(|| format!("not JSON: {line}"))?;
        let Some(table) = event["table"].as_str() else {
            continue;
        };
        let rows = tables.entry(table.to_owned()).or_default();
        let key = key_text(&event["key"]);
        match event["op"].as_str().unwrap_or_default() {
            "delete" => {
                rows.remove(&key);
            }
            "insert" | "snapshot" => {
                rows.insert(key);
            }
            "update" => {
                if let Value::Object(before) = &event["before"] {
                    let names = event["key"]
                        .as_object()
                        .map(|key| key.keys().cloned().collect::<Vec<_>>());
                    let old: Vec<String> = names
                        .unwrap_or_default()
                        .iter()
                        .map(|name| text(&before[name]))
                        .collect();
                    rows.remove(&old.join(","));
                }
                rows.insert(key);
            }
            _ => {}
        }
    }
    Ok(tables)
}

fn key_text(key: &Value) -> String {
    let values = key
        .as_object()
        .map(|key| key.values().map(text).collect::<Vec<_>>());
    values.unwrap_or_default().join(",")
}

fn text(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}

/// The table's keys as the log prints them: its columns in the order of their names.
async fn keys(postgres: &Postgres, table: &str) -> Result<BTreeSet<String>> {
    let client = postgres.client().await?;
    let columns = client
        .query_one(
            "select string_agg(format('%I::text', attname), ' || '','' || ' order by attname)
               from pg_index join pg_attribute on attrelid = indrelid and attnum = any(indkey)
              where indrelid = $1::text::regclass and indisprimary",
            &[&table],
        )
        .await?;
    let rows = client
        .query(
            &format!("select {} from {table}", columns.get::<_, String>(0)),
            &[],
        )
        .await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}
