//! What a source's log says, and whether it is what the source says.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use downriver_testkit::{Daemon, resources};
use serde_json::Value;

use crate::Shop;

/// Every event that the log holds now, in order.
pub async fn events(shop: &Shop) -> Result<Vec<Value>> {
    events_of(&shop.daemon).await
}

/// The same of a daemon beside any server.
pub async fn events_of(daemon: &Daemon) -> Result<Vec<Value>> {
    let text = daemon
        .ok(&[
            "tail",
            resources::SOURCE,
            "--from",
            "earliest",
            "--until",
            "latest",
            "-o",
            "json",
        ])
        .await?;
    text.lines()
        .map(|line| serde_json::from_str(line).with_context(|| format!("not JSON: {line}")))
        .collect()
}

/// What the log says that a table with the key `id` contains.
pub fn fold(events: &[Value], table: &str) -> Result<BTreeMap<i64, Value>> {
    let mut rows: BTreeMap<i64, Value> = BTreeMap::new();
    for event in events.iter().filter(|event| event["table"] == table) {
        let op = event["op"].as_str().context("an event without op")?;
        if op == "truncate" {
            rows.clear();
        }
        if !["insert", "update", "delete", "snapshot"].contains(&op) {
            continue;
        }
        let id = |row: &Value| row["id"].as_i64();
        let key = id(&event["key"]).context("an event without key")?;
        let moved_from = (op == "update")
            .then(|| id(&event["before"]))
            .flatten()
            .filter(|old| *old != key);
        let known = match (op, moved_from) {
            ("delete", _) => {
                rows.remove(&key);
                continue;
            }
            ("insert", _) => None,
            (_, Some(old)) => rows.remove(&old),
            _ => rows.remove(&key),
        };
        let mut row = known.unwrap_or_else(|| serde_json::json!({}));
        for (column, value) in event["after"].as_object().context("an event without row")? {
            row[column] = value.clone();
        }
        rows.insert(key, row);
    }
    Ok(rows)
}

/// Tables with the key `id` as PostgreSQL shows them and as the log says, and the lake as DuckDB and PyIceberg read
/// it.
pub async fn ensure_equal(shop: &Shop, tables: &[&str]) -> Result<()> {
    shop.caught_up().await?;
    let client = shop.postgres.client().await?;
    let events = events(shop).await?;
    for table in tables {
        let rows = client
            .query(&format!("select id, to_jsonb(t)::text from {table} t"), &[])
            .await?;
        let mut logged = fold(&events, table)?;
        for row in &rows {
            let (id, text): (i64, String) = (row.get(0), row.get(1));
            let expected: Value = serde_json::from_str(&text)?;
            let mut found = logged.remove(&id);
            // A column that was added to a row that stands already is NULL without an event.
            if let (Some(Value::Object(found)), Value::Object(expected)) = (&mut found, &expected) {
                for column in expected.keys().filter(|column| expected[*column].is_null()) {
                    found.entry(column).or_insert(Value::Null);
                }
            }
            ensure!(
                found.as_ref() == Some(&expected),
                "{table} {id} is {} and the log says {}",
                shortened(Some(&expected)),
                shortened(found.as_ref())
            );
        }
        ensure!(
            logged.is_empty(),
            "{table}: the log has rows that PostgreSQL has not: {:?}",
            logged.keys()
        );
    }
    shop.ensure_lake_equal().await
}

fn shortened(row: Option<&Value>) -> String {
    row.map_or_else(
        || "nothing".into(),
        |row| row.to_string().chars().take(120).collect(),
    )
}
