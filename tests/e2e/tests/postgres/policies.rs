//! What a pipeline does when tables of its source change: its `schema_changes`.

use anyhow::{Context, Result, ensure};
use downriver_testkit::readers::{self, Lake};
use downriver_testkit::{daemon, host, resources};
use e2e::{CATCH_UP, Shop};
use serde_json::Value;

/// Captures everything and delivers it under these policies.
async fn deliver(shop: &Shop, policies: &str) -> Result<()> {
    let source = resources::source(&shop.postgres, &["public.*"], &[]);
    let sink = resources::sink_in_folder(&shop.folder.path().join("lake"));
    shop.daemon
        .apply(&(source + &sink + &pipeline(policies)))
        .await
}

fn pipeline(policies: &str) -> String {
    resources::pipeline("1s") + "schema_changes: " + policies + "\n"
}

async fn ensure_equal(shop: &Shop, tables: &[&str]) -> Result<()> {
    shop.daemon.wait(CATCH_UP).await?;
    readers::ensure_equal(&shop.postgres, &Lake::builtin(&shop.daemon)?, tables).await?;
    let tables = tables.join(",");
    let verify = ["verify", resources::PIPELINE, "--tables", &tables];
    shop.daemon.ok(&verify).await?;
    Ok(())
}

/// What a reader sees of tables of the lake now, by name: `columns` without our own, and `rows` as maps, in the order of
/// `id`.
async fn all_seen(shop: &Shop, tables: &[&str]) -> Result<Value> {
    let script = "
import json, sys
from pyiceberg.catalog import load_catalog
catalog = load_catalog('lake', type='rest', uri=sys.argv[1], warehouse='lake')
def seen(name):
    table = catalog.load_table(('shop_public', name))
    columns = [f.name for f in table.schema().fields if not f.name.startswith('_dr_')]
    rows = table.scan(selected_fields=tuple(columns)).to_arrow().to_pylist()
    return {'columns': columns, 'rows': sorted(rows, key=lambda row: row['id'])}
print(json.dumps({name: seen(name) for name in sys.argv[2:]}, default=str))
";
    let output = tokio::process::Command::new(host::venv_program("python")?)
        .args(["-c", script, &shop.daemon.catalog_uri()?])
        .args(tables)
        .output()
        .await?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{error}");
    Ok(serde_json::from_slice(&output.stdout)?)
}

async fn seen(shop: &Shop, table: &str) -> Result<Value> {
    Ok(all_seen(shop, &[table]).await?[table].take())
}

fn ensure_is(seen: &Value, table: &str, columns: &[&str], rows: usize) -> Result<()> {
    let found = seen["rows"].as_array().context("rows")?.len();
    ensure!(
        seen["columns"] == serde_json::json!(columns) && found == rows,
        "{table} has {found} rows of {}",
        seen["columns"]
    );
    Ok(())
}

async fn ensure_shape(shop: &Shop, table: &str, columns: &[&str], rows: usize) -> Result<()> {
    ensure_is(&seen(shop, table).await?, table, columns, rows)
}

async fn until_paused(shop: &Shop, tables: &[&str]) -> Result<Value> {
    shop.daemon
        .until_described(
            "pipeline",
            resources::PIPELINE,
            "the tables to wait before their changes",
            CATCH_UP,
            |pipeline| {
                tables.iter().all(|table| {
                    daemon::table_in(pipeline, table).is_some_and(|table| {
                        table["state"] == "paused" && table["code"] == "DR-3031"
                    })
                })
            },
        )
        .await
}

async fn resume(shop: &Shop, tables: &str) -> Result<()> {
    let resume = ["resume", resources::PIPELINE, "--tables", tables];
    shop.daemon.ok(&resume).await.map(|_| ())
}

fn made(names: &[&str]) -> String {
    let made = names.iter().map(|name| {
        format!(
            "create table {name} (id bigint primary key, a text, b int not null); alter table {name} owner to shop_owner;
             insert into {name} select i, 'a ' || i, i from generate_series(1, 200) i;"
        )
    });
    made.collect()
}

/// Each with a table, how it changes, what the reason says of it, and what it is called then.
const KINDS: [(&str, &str, &str, &str); 7] = [
    (
        "adds",
        "alter table adds add c int default 7",
        "column \"c\" (integer) was added",
        "adds",
    ),
    (
        "drops",
        "alter table drops drop a",
        "column \"a\" was dropped",
        "drops",
    ),
    (
        "renames",
        "alter table renames rename a to c",
        "column \"a\" was renamed to \"c\"",
        "renames",
    ),
    (
        "retyped",
        "alter table retyped alter b type bigint",
        "the type of column \"b\" was changed from integer to bigint",
        "retyped",
    ),
    (
        "keys",
        "alter table keys drop constraint keys_pkey, add primary key (b, id)",
        "the key was changed from (id) to (b, id)",
        "keys",
    ),
    (
        "moves",
        "alter table moves rename to moved",
        "the table was renamed to public.moved",
        "moved",
    ),
    (
        "again",
        "drop table again; create table again (id bigint primary key, b int); alter table again owner to shop_owner",
        "another table of the source has this name now",
        "again",
    ),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_kind_of_change_waits_until_it_is_let_through_and_others_go_on() -> Result<()> {
    let mut shop = Shop::open(50).await?;
    let names = KINDS.map(|(name, ..)| name);
    shop.postgres.execute(&made(&names)).await?;
    deliver(&shop, "pause").await?;
    let qualified = names.map(|name| format!("public.{name}"));
    let qualified: Vec<&str> = qualified.iter().map(String::as_str).collect();
    ensure_equal(&shop, &qualified).await?;
    for name in names {
        let before = format!("insert into {name} (id, b) values (1000, 1)");
        shop.postgres.execute(&before).await?;
    }
    // A row from right before a change of the name may come under either.
    shop.caught_up().await?;
    for (_, change, _, now) in KINDS {
        let after =
            format!("insert into {now} (id, b) values (1001, 1); delete from {now} where id < 10");
        for sql in [change, &after] {
            shop.postgres.execute(sql).await?;
        }
    }
    for round in 0..2 {
        let described = until_paused(&shop, &qualified).await?;
        let seen = all_seen(&shop, &names).await?;
        for (name, _, what, _) in KINDS {
            let table = format!("public.{name}");
            let table = daemon::table_in(&described, &table).context("the table")?;
            let reason = table["reason"].as_str().unwrap_or_default();
            ensure!(reason.contains(what), "{table}");
            let fix = format!("downriver resume shop-to-lake --tables public.{name} ");
            ensure!(table["fix"].as_str().is_some_and(|f| f.starts_with(&fix)));
            ensure_is(&seen[name], name, &["id", "a", "b"], 201)?;
        }
        // The others go on, and nobody waits for these.
        let more = format!("insert into ledger values ({}, 'meanwhile')", 7000 + round);
        shop.postgres.execute(&more).await?;
        ensure_equal(&shop, &["public.ledger"]).await?;
        let verified = shop
            .daemon
            .run(&["verify", resources::PIPELINE, "--tables", "public.drops"])
            .await?;
        ensure!(
            verified.code == Some(1) && verified.text().contains("DR-3031"),
            "{}",
            verified.text()
        );
        // Nothing is let through by a pipeline that goes on.
        shop.daemon.ok(&["resume", resources::PIPELINE]).await?;
        shop.daemon.kill();
        shop.daemon.start().await?;
    }
    // Whatever the delivery has come to since the start.
    resume(&shop, "public.adds").await?;
    ensure_equal(&shop, &["public.adds"]).await?;
    until_paused(&shop, &qualified[1..]).await?;
    resume(&shop, &qualified[1..].join(",")).await?;
    let now = KINDS.map(|(.., now)| format!("public.{now}"));
    let now: Vec<&str> = now.iter().map(String::as_str).collect();
    ensure_equal(&shop, &now).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn letting_one_change_through_lets_no_later_one_through() -> Result<()> {
    let mut shop = Shop::open(50).await?;
    shop.postgres.execute(&made(&["one", "wide"])).await?;
    deliver(&shop, "{ default: pause, rename_column: evolve }").await?;
    ensure_equal(&shop, &["public.one", "public.wide"]).await?;
    // A kind that is not asked about, then two that are, in a backlog, the first in the middle of a transaction.
    shop.daemon.kill();
    for sql in [
        "alter table one rename a to c; update one set c = 'renamed' where id = 1",
        "begin; insert into one values (1000, 'with it', 1); alter table one add d int; insert into one values (1001, 'with it', 1, 2); commit",
        "alter table one drop c; insert into one values (1002, 1, 2)",
        // More than a block before the change, in one transaction.
        "begin; insert into wide select i, repeat(md5(i::text), 300), i from generate_series(1001, 2500) i;
         alter table wide drop b; insert into wide values (3000, 'behind'); commit",
    ] {
        shop.postgres.execute(sql).await?;
    }
    shop.daemon.start().await?;
    let both = ["public.one", "public.wide"];
    until_paused(&shop, &both).await?;
    ensure_shape(&shop, "one", &["id", "c", "b"], 200).await?;
    ensure_shape(&shop, "wide", &["id", "a", "b"], 200).await?;
    resume(&shop, "public.one").await?;
    // What was let through stays so, and nothing more is.
    for _ in 0..2 {
        let described = shop
            .daemon
            .until_described(
                "pipeline",
                resources::PIPELINE,
                "the table to wait before its next change",
                CATCH_UP,
                |pipeline| {
                    daemon::table_in(pipeline, "public.one").is_some_and(|table| {
                        let reason = table["reason"].as_str().unwrap_or_default();
                        reason.contains("\"c\" was dropped") && !reason.contains("\"d\"")
                    })
                },
            )
            .await?;
        ensure!(described["state"] == "streaming", "{described}");
        ensure_shape(&shop, "one", &["id", "c", "b", "d"], 202).await?;
        shop.daemon.kill();
        shop.daemon.start().await?;
    }
    until_paused(&shop, &both).await?;
    resume(&shop, "public.one,public.wide").await?;
    ensure_equal(&shop, &both).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_policy_holds_for_what_is_not_delivered_yet() -> Result<()> {
    let shop = Shop::open(50).await?;
    shop.postgres.execute(&made(&["one"])).await?;
    deliver(&shop, "evolve").await?;
    ensure_equal(&shop, &["public.one"]).await?;
    let change = "alter table one add c int; insert into one values (1000, 'new', 1, 2)";
    shop.postgres.execute(change).await?;
    ensure_equal(&shop, &["public.one"]).await?;
    shop.daemon
        .apply(&pipeline("{ drop_column: pause }"))
        .await?;
    // What was taken in before is not asked about.
    shop.postgres
        .execute("insert into one values (1001, 'streamed', 1, 2)")
        .await?;
    ensure_equal(&shop, &["public.one"]).await?;
    let change = "alter table one drop a; insert into one values (1002, 1, 2)";
    shop.postgres.execute(change).await?;
    until_paused(&shop, &["public.one"]).await?;
    ensure_shape(&shop, "one", &["id", "a", "b", "c"], 202).await?;
    shop.daemon.apply(&pipeline("evolve")).await?;
    ensure_equal(&shop, &["public.one"]).await?;

    let refused = shop
        .daemon
        .try_apply(&pipeline("{ drop_table: pause }"))
        .await?;
    ensure!(
        refused.code == Some(1)
            && refused
                .text()
                .contains("DR-2040 at schema_changes.drop_table"),
        "{}",
        refused.text()
    );
    Ok(())
}

const IGNORE: &str =
    "{ add_column: ignore, drop_column: ignore, rename_column: ignore, default: pause }";

/// What the source says in the columns that the lake has of it, under their names there.
async fn ensure_same_but(shop: &Shop, table: &str, kept: &str, columns: &str) -> Result<()> {
    let query = format!(
        "select coalesce(jsonb_agg(jsonb_build_object({columns}) order by id), '[]')::text from {table}"
    );
    let row = shop.postgres.client().await?.query_one(&query, &[]).await?;
    let expected: Value = serde_json::from_str(row.get(0))?;
    let mut seen = seen(shop, table).await?["rows"].take();
    for row in seen.as_array_mut().context("rows")? {
        row.as_object_mut().context("a row")?.remove(kept);
    }
    ensure!(seen == expected, "{table} is {seen}, expected {expected}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_ignored_leaves_the_table_of_the_lake_as_it_is() -> Result<()> {
    let mut shop = Shop::open(50).await?;
    shop.postgres
        .execute(
            "create table one (id bigint primary key, a text, b int, body text); alter table one owner to shop_owner;
             alter table one alter body set storage external;
             insert into one select i, 'a ' || i, i, repeat('body ' || i, 800) from generate_series(1, 100) i",
        )
        .await?;
    deliver(&shop, IGNORE).await?;
    ensure_equal(&shop, &["public.one"]).await?;
    // Its default fills rows without events, so that they are read again.
    shop.postgres
        .execute("alter table one add c int default 7; insert into one values (1000, 'new', 1, 'short', 8)")
        .await?;
    shop.daemon.wait(CATCH_UP).await?;
    ensure_shape(&shop, "one", &["id", "a", "b", "body"], 101).await?;
    shop.daemon.kill();
    for sql in [
        "alter table one drop a; insert into one values (1001, 1, 'short', 9)",
        "update one set b = b + 1 where id < 10; update one set id = -id where id = 5; update one set c = 70 where id = 20",
        "alter table one rename b to bb; update one set bb = 1000 where id = 9; insert into one values (1002, 2, 'short', 9)",
        "delete from one where id = 30; insert into one values (30, 3, 'again', 1); update one set bb = 4 where id = 30",
    ] {
        shop.postgres.execute(sql).await?;
    }
    shop.daemon.start().await?;
    let columns = "'id', id, 'b', bb, 'body', body";
    for _ in 0..2 {
        shop.daemon.wait(CATCH_UP).await?;
        ensure_shape(&shop, "one", &["id", "a", "b", "body"], 103).await?;
        ensure_same_but(&shop, "one", "a", columns).await?;
        let rows = seen(&shop, "one").await?["rows"].take();
        let of = |id: i64| {
            let mut rows = rows.as_array().into_iter().flatten();
            rows.find(|row| row["id"] == id).map(|row| row["a"].clone())
        };
        for (id, a) in [
            (-5, Some("a 5")),
            (9, Some("a 9")),
            (20, Some("a 20")),
            (50, Some("a 50")),
            (1000, Some("new")),
            (1001, None),
            (1002, None),
            (30, None),
        ] {
            ensure!(of(id) == Some(a.into()), "{id} has {:?}", of(id));
        }
        let verify = ["verify", resources::PIPELINE, "--tables", "public.one"];
        shop.daemon.ok(&verify).await?;
        shop.daemon.kill();
        shop.daemon.start().await?;
    }
    // A change that is not ignored, of a table that ignores others.
    shop.postgres
        .execute(
            "alter table one alter bb type bigint; update one set bb = 5000000000 where id = 10",
        )
        .await?;
    until_paused(&shop, &["public.one"]).await?;
    resume(&shop, "public.one").await?;
    shop.daemon.wait(CATCH_UP).await?;
    ensure_shape(&shop, "one", &["id", "b", "body", "a"], 103).await?;
    ensure_same_but(&shop, "one", "a", columns).await?;

    // What was ignored is nowhere: the rows have to be read again.
    shop.daemon.apply(&pipeline("evolve")).await?;
    shop.daemon
        .until_described(
            "pipeline",
            resources::PIPELINE,
            "the table to say what it lacks",
            CATCH_UP,
            |pipeline| {
                daemon::table_in(pipeline, "public.one").is_some_and(|table| {
                    table["state"] == "stopped"
                        && table["code"] == "DR-3032"
                        && table["reason"]
                            .as_str()
                            .is_some_and(|r| r.contains("\"c\""))
                })
            },
        )
        .await?;
    ensure_same_but(&shop, "one", "a", columns).await?;
    let resnapshot = ["resnapshot", resources::PIPELINE, "--tables", "public.one"];
    shop.daemon.ok(&resnapshot).await?;
    ensure_equal(&shop, &["public.one"]).await?;
    shop.postgres
        .execute("update one set c = 71 where id = 21")
        .await?;
    ensure_equal(&shop, &["public.one"]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_of_columns_stay_apart_where_changes_are_ignored() -> Result<()> {
    let shop = Shop::open(50).await?;
    shop.postgres.execute(&made(&["one", "again"])).await?;
    let bag = "create table bag (id bigint, a text); alter table bag replica identity full; alter table bag owner to shop_owner;
               insert into bag select i / 2, 'a' from generate_series(1, 100) i";
    shop.postgres.execute(bag).await?;
    deliver(&shop, "{ drop_column: ignore, rename_column: ignore }").await?;
    ensure_equal(&shop, &["public.one", "public.again", "public.bag"]).await?;
    for sql in [
        "alter table one rename a to z; insert into one values (1000, 'z', 1)",
        "alter table one add a int; insert into one values (1001, 'z', 1, 2)",
        "alter table one drop b; alter table one add b text; insert into one values (1002, 'z', 2, 'b')",
        "update one set b = 'b' where id < 3",
        "alter table bag drop a; insert into bag values (7)",
        // Its columns are others, whatever their numbers.
        "drop table again; create table again (id bigint primary key, b text, a int); alter table again owner to shop_owner;
         insert into again select i, 'b', i from generate_series(1, 50) i",
    ] {
        shop.postgres.execute(sql).await?;
    }
    // Without a key nothing can be ignored.
    until_paused(&shop, &["public.bag"]).await?;
    ensure_equal(&shop, &["public.one", "public.again"]).await?;
    shop.postgres
        .execute("alter table again rename a to c; update again set c = 0 where id = 7")
        .await?;
    shop.daemon.wait(CATCH_UP).await?;
    ensure_shape(&shop, "again", &["id", "b", "a"], 50).await?;
    let seen = seen(&shop, "one").await?;
    let kept = seen["columns"].as_array().context("columns")?;
    let kept: Vec<&str> = kept.iter().filter_map(Value::as_str).collect();
    ensure!(
        kept.len() == 5 && kept.iter().any(|name| name.starts_with("b_dropped_")),
        "{kept:?}"
    );
    resume(&shop, "public.bag").await?;
    ensure_equal(&shop, &["public.bag"]).await?;

    let refused = shop
        .daemon
        .try_apply(&pipeline("{ change_type: ignore }"))
        .await?;
    ensure!(
        refused.code == Some(1)
            && refused
                .text()
                .contains("DR-2041 at schema_changes.change_type"),
        "{}",
        refused.text()
    );
    Ok(())
}
