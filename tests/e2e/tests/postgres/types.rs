//! Every type in the lake: as DuckDB and PyIceberg read it, and by `verify`; what the lake cannot hold stops its table.

use std::fmt::Write as _;

use anyhow::{Context as _, Result, ensure};
use downriver_testkit::daemon::table_in;
use downriver_testkit::readers::{self, Lake};
use downriver_testkit::types::{CASES, Case, PREPARE};
use downriver_testkit::{Postgres, host, resources};
use e2e::{CATCH_UP, Shop};

/// Tables of all cases, each with a column of the type and one of arrays of it.
fn tables() -> String {
    let mut sql = String::from(PREPARE);
    for (at, case) in CASES.iter().enumerate() {
        let ty = case.ty;
        let array = case.has_array().then(|| format!(", a {ty}[]"));
        // A String takes every write.
        let _ = writeln!(
            sql,
            "create table t{at} (id int primary key, v {ty}{}); alter table t{at} owner to shop_owner;",
            array.unwrap_or_default()
        );
        for (number, value) in case.beyond_lake.iter().enumerate() {
            let _ = writeln!(
                sql,
                "create table x{at}_{number} (id int primary key, v {ty}); alter table x{at}_{number} owner to shop_owner;
                 insert into x{at}_{number} values (7, $q${value}$q$);"
            );
        }
        if case.key {
            let _ = writeln!(
                sql,
                "create table k{at} (n int, v {ty} primary key); alter table k{at} owner to shop_owner;"
            );
        }
    }
    sql
}

fn rows(first_id: usize) -> String {
    let mut sql = String::new();
    for (at, case) in CASES.iter().enumerate() {
        for (id, value) in (first_id..).zip(case.values) {
            let array = case
                .has_array()
                .then(|| format!(", array[$q${value}$q$, null, $q${value}$q$]::{}[]", case.ty));
            let _ = writeln!(
                sql,
                "insert into t{at} values ({id}, $q${value}$q${});",
                array.unwrap_or_default()
            );
        }
        let _ = writeln!(sql, "insert into t{at} (id) values ({});", first_id + 900);
        if case.has_array() {
            let _ = writeln!(
                sql,
                "insert into t{at} (id, a) values ({}, '{{}}');",
                first_id + 901
            );
        }
    }
    sql
}

/// One key in two is there before the snapshot, the others come after it.
fn keys(remainder: usize) -> String {
    let mut sql = String::new();
    for (at, case) in keyed() {
        for (n, value) in case.values.iter().enumerate() {
            if n % 2 == remainder {
                let _ = writeln!(sql, "insert into k{at} values ({n}, $q${value}$q$);");
            }
        }
    }
    sql
}

fn keyed() -> impl Iterator<Item = (usize, &'static Case)> {
    CASES.iter().enumerate().filter(|(_, case)| case.key)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_type_is_in_the_lake_or_refused_by_name() -> Result<()> {
    let postgres = Postgres::start().await?;
    postgres.execute(&tables()).await?;
    postgres.execute(&rows(0)).await?;
    postgres.execute(&keys(0)).await?;
    let shop = Shop::over(postgres).await?;
    shop.deliver("1s").await?;
    let refused: Vec<String> = CASES
        .iter()
        .enumerate()
        .flat_map(|(at, case)| {
            (0..case.beyond_lake.len()).map(move |n| format!("public.x{at}_{n}"))
        })
        .collect();
    let mut described = serde_json::Value::Null;
    host::until(
        "the tables that the lake refuses to stop",
        CATCH_UP,
        async || {
            described = shop
                .daemon
                .describe("pipeline", resources::PIPELINE)
                .await?;
            Ok(refused
                .iter()
                .all(|table| table_in(&described, table).is_some_and(|t| t["state"] == "stopped")))
        },
    )
    .await
    .with_context(|| described.to_string())?;
    for table in &refused {
        let stopped = table_in(&described, table).context("it was there")?;
        let reason = stopped["reason"].as_str().unwrap_or_default();
        ensure!(
            stopped["code"] == "DR-3020"
                && reason.contains("\"v\"")
                && reason.contains("at offset"),
            "{stopped}"
        );
    }

    shop.caught_up().await?;
    shop.postgres.execute(&rows(1_000)).await?;
    shop.postgres.execute(&keys(1)).await?;
    let mut changes = String::new();
    for at in 0..CASES.len() {
        let _ = writeln!(
            changes,
            "update t{at} set v = v; delete from t{at} where id = 0;"
        );
    }
    for (at, _) in keyed() {
        let _ = writeln!(
            changes,
            "update k{at} set n = n + 10; delete from k{at} where n in (10, 13);"
        );
    }
    shop.postgres.execute(&changes).await?;
    let tables: Vec<String> = (0..CASES.len())
        .map(|at| format!("public.t{at}"))
        .chain(keyed().map(|(at, _)| format!("public.k{at}")))
        .collect();
    let named: Vec<&str> = tables.iter().map(String::as_str).collect();
    let lake = Lake::builtin(&shop.daemon)?;
    // Tables have stopped, so the pipeline as a whole never catches up.
    let arrived = host::until("the lake to be equal", CATCH_UP, async || {
        let compared = readers::compare(&shop.postgres, &lake, &named).await?;
        Ok(compared.iter().all(|table| table.equal))
    });
    if arrived.await.is_err() {
        readers::ensure_equal(&shop.postgres, &lake, &named).await?;
    }
    let tables = named.join(",");
    shop.daemon
        .ok(&["verify", resources::PIPELINE, "--tables", &tables])
        .await?;
    Ok(())
}

/// Nothing in the stream tells that a label has another name, and rows that nobody touches have it at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_label_that_is_renamed_is_in_the_lake_by_its_new_name_also_in_keys() -> Result<()> {
    let mut shop = Shop::open(0).await?;
    shop.postgres
        .execute(
            "create type mood as enum ('sad', 'ok', 'happy'); create domain temper as mood;
             create type pair as (a int, b mood);
             create table moods (k mood, n int, v text, primary key (k, n)); alter table moods owner to shop_owner;
             create table wearers (id int primary key, one mood, many mood[], kept temper, two pair); alter table wearers owner to shop_owner;
             create table loose (m mood, n int); alter table loose owner to shop_owner; alter table loose replica identity full;
             insert into moods select m, i, 'v' from generate_series(1, 50) i, unnest(enum_range(null::mood)) m;
             insert into wearers select i, 'ok', '{sad,ok}', 'ok', (i, 'ok')::pair from generate_series(1, 50) i;
             insert into loose select 'ok', i % 10 from generate_series(1, 100) i",
        )
        .await?;
    shop.deliver("1s").await?;
    let tables = ["public.moods", "public.wearers", "public.loose"];
    let equal = async |shop: &Shop| {
        shop.daemon.wait(CATCH_UP).await?;
        readers::ensure_equal(&shop.postgres, &Lake::builtin(&shop.daemon)?, &tables).await
    };
    equal(&shop).await?;
    for change in [
        "alter type mood rename value 'ok' to 'fine'",
        "alter type mood add value 'new' before 'fine'; update moods set v = 'changed' where k = 'fine' and n < 10; delete from moods where k = 'fine' and n > 40;
         update moods set k = 'happy', n = n + 100 where k = 'fine' and n between 20 and 25;
         delete from loose where n = 3; update loose set n = 30 where n = 4",
        // The changes follow before anybody has looked.
        "alter type mood rename value 'fine' to 'good'; update moods set v = 'again' where k = 'good';
         delete from moods where k = 'good' and n < 5; delete from loose where n = 5; update loose set m = 'sad' where n = 6",
        // Names that change places, and one that comes back.
        "begin; alter type mood rename value 'sad' to 'passing'; alter type mood rename value 'happy' to 'sad';
         alter type mood rename value 'passing' to 'happy'; commit; update moods set v = 'sad' where k = 'sad'",
        "alter type mood rename value 'good' to 'passing'; update moods set v = 'passing' where k = 'passing' and n > 30;
         update wearers set one = 'passing', id = id + 100 where id > 40; alter type mood rename value 'passing' to 'good'",
        "insert into moods values ('new', 1, 'new')",
    ] {
        shop.postgres.execute(change).await?;
        shop.daemon.wait(CATCH_UP).await?;
        let verified = shop.daemon.ok(&["verify", resources::PIPELINE]).await;
        verified.with_context(|| change.to_owned())?;
    }
    // While nobody can look.
    shop.daemon.kill();
    shop.postgres
        .execute("update moods set v = 'before' where n = 1; alter type mood rename value 'good' to 'fair'; delete from moods where k = 'fair' and n = 30")
        .await?;
    shop.daemon.start().await?;
    equal(&shop).await
}
