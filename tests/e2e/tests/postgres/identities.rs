//! Replica identities: each from the start and changed in mid-stream, with values that the stream leaves out, and keys
//! whose rows pass over each other.

use anyhow::{Context, Result, ensure};
use downriver_testkit::readers::{self, Lake};
use downriver_testkit::{daemon, host, resources};
use e2e::{CATCH_UP, Shop};
use serde_json::Value;

/// Text that does not compress and stands outside its row, so that an update that leaves it sends no value of it.
const BODY: &str = "(select string_agg(md5(i || ' of ' || j), '') from generate_series(1, 80) j)";

/// Tables with each identity that has a key. `n` is what changes; `body` and `more` are what is left unchanged.
fn tables() -> String {
    let columns = "n int not null default 0, body text, more bytea";
    let mut sql = format!(
        "create table by_default (id bigint primary key, {columns});
         create table by_full (id bigint primary key, {columns}); alter table by_full replica identity full;
         create table by_index (id bigint primary key, code text not null, {columns});
         create unique index by_code on by_index (code); alter table by_index replica identity using index by_code;
         create table by_pair (n int not null default 0, a int not null, body text, b text not null, more bytea, id bigint);
         create unique index by_both on by_pair (b, a) include (n); alter table by_pair replica identity using index by_both;
         create table by_own (id bigint primary key, {columns}); alter table by_own replica identity using index by_own_pkey;
         create table included (id bigint, n int, body text, more bytea, primary key (id) include (n));"
    );
    for table in TABLES {
        sql += &format!(
            "alter table {table} owner to shop_owner;
             alter table {table} alter body set storage external, alter more set storage external;"
        );
    }
    sql
}

const TABLES: [&str; 6] = [
    "by_default",
    "by_full",
    "by_index",
    "by_pair",
    "by_own",
    "included",
];
const QUALIFIED: [&str; 6] = [
    "public.by_default",
    "public.by_full",
    "public.by_index",
    "public.by_pair",
    "public.by_own",
    "public.included",
];

/// Rows `from` to `to` of every table.
fn rows(from: u32, to: u32) -> String {
    let series = format!("from generate_series({from}, {to}) i");
    let more = "decode(md5(i::text), 'hex')";
    let plain = ["by_default", "by_full", "by_own", "included"].map(|table| {
        format!("insert into {table} (id, n, body, more) select i, i, {BODY}, {more} {series};")
    });
    plain.concat()
        + &format!(
            "insert into by_index select i, 'code ' || i, i, {BODY}, {more} {series};
             insert into by_pair select i, i % 7, {BODY}, 'b' || i, {more}, i {series};"
        )
}

/// Every kind of change to rows `from` to `from + 99`, most of which leave the long values as they are.
fn changes(from: u32) -> String {
    let kinds = TABLES.map(|table| {
        let key = match table {
            "by_index" => "code = 'moved ' || code",
            "by_pair" => "b = 'moved ' || b",
            _ => "id = id + 100000",
        };
        // Not the identity's column, so the server sends no old row with it.
        let other = match table {
            "by_index" => "id = id + 100000",
            _ => "n = n + 1",
        };
        let rows = |from: u32, count: u32| format!("id between {from} and {}", from + count - 1);
        [
            format!("update {table} set n = -n where {}", rows(from, 30)),
            format!("update {table} set {key}, n = n + 1 where {}", rows(from, 10)),
            format!("update {table} set {other} where {}", rows(from + 10, 10)),
            format!("update {table} set body = null where {}", rows(from + 30, 10)),
            format!("update {table} set n = 5 where {}", rows(from + 30, 15)),
            format!("update {table} set more = null, {key} where {}", rows(from + 40, 10)),
            format!("delete from {table} where {}", rows(from + 50, 10)),
            // The values of the row that was deleted do not come back.
            format!(
                "begin; delete from {table} where {again};
                 insert into {table} ({columns}) select {values} from generate_series({first}, {last}) i;
                 update {table} set n = 8 where {again}; commit",
                again = rows(from + 60, 10),
                first = from + 60,
                last = from + 69,
                columns = match table {
                    "by_index" => "id, code, n",
                    "by_pair" => "id, a, b, n",
                    _ => "id, n",
                },
                values = match table {
                    "by_index" => "i, 'code ' || i, 7",
                    "by_pair" => "i, i % 7, 'b' || i, 7",
                    _ => "i, 7",
                },
            ),
            // Changes nothing.
            format!("update {table} set n = n where {}", rows(from + 70, 10)),
        ]
        .join("; ")
    });
    kinds.join("; ")
}

async fn ensure_equal(shop: &Shop, tables: &[&str]) -> Result<()> {
    shop.daemon.wait(CATCH_UP).await?;
    readers::ensure_equal(&shop.postgres, &Lake::builtin(&shop.daemon)?, tables).await
}

async fn of_source(shop: &Shop, table: &str) -> Result<Value> {
    let source = shop.daemon.describe("source", resources::SOURCE).await?;
    let found = daemon::table_in(&source, &format!("public.{table}"));
    Ok(found.cloned().unwrap_or_default())
}

async fn until_table(shop: &Shop, table: &str, is: impl Fn(&Value) -> bool) -> Result<Value> {
    let what = format!("table {table}");
    let name = format!("public.{table}");
    let found = shop
        .daemon
        .until_described("source", resources::SOURCE, &what, CATCH_UP, |source| {
            daemon::table_in(source, &name).is_some_and(&is)
        })
        .await?;
    daemon::table_in(&found, &name)
        .cloned()
        .context("the table is there")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_each_identity_unchanged_values_stay_also_where_the_key_changes() -> Result<()> {
    let mut shop = Shop::open(0).await?;
    shop.postgres.execute(&tables()).await?;
    shop.postgres.execute(&rows(1, 400)).await?;
    shop.deliver("1s").await?;
    ensure_equal(&shop, &QUALIFIED).await?;
    for (table, key) in [("by_index", "code"), ("by_own", "id"), ("included", "id")] {
        let logged = e2e::log::events(&shop).await?;
        let name = format!("public.{table}");
        let row = logged
            .iter()
            .find(|event| event["table"] == name.as_str() && event["op"] == "snapshot");
        let found = row.map(|row| row["key"].clone()).unwrap_or_default();
        let columns: Vec<&String> = found
            .as_object()
            .map(|o| o.keys().collect())
            .unwrap_or_default();
        ensure!(columns == [key], "the key of {table} is {found}");
    }
    shop.postgres.execute(&changes(1)).await?;
    ensure_equal(&shop, &QUALIFIED).await?;
    // A backlog.
    shop.daemon.kill();
    shop.postgres.execute(&rows(401, 500)).await?;
    shop.postgres.execute(&changes(101)).await?;
    shop.daemon.start().await?;
    ensure_equal(&shop, &QUALIFIED).await?;
    // Read again while it changes.
    shop.daemon.ok(&["resnapshot", resources::PIPELINE]).await?;
    shop.postgres.execute(&changes(201)).await?;
    ensure_equal(&shop, &QUALIFIED).await
}

/// The table's identities in turn, all of which know its rows by the same key.
fn identities(table: &str) -> [String; 5] {
    let index = format!("using index {table}_pkey");
    ["full", &index, "default", "nothing", "default"]
        .map(|identity| format!("alter table {table} replica identity {identity}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_identity_that_changes_in_mid_stream_changes_no_row() -> Result<()> {
    let mut shop = Shop::open(0).await?;
    shop.postgres.execute(&tables()).await?;
    shop.postgres.execute(&rows(1, 1_000)).await?;
    shop.deliver("1s").await?;
    ensure_equal(&shop, &QUALIFIED).await?;
    let turn = async |from: u32| {
        for (at, identity) in (0..).zip(identities("by_default")) {
            shop.postgres.execute(&identity).await?;
            let from = from + at * 100;
            let sql = if identity.ends_with("nothing") {
                format!(
                    "insert into by_default (id, n) select i, 1 from generate_series({0}, {0} + 9) i",
                    50_000 + from
                )
            } else {
                changes(from)
            };
            shop.postgres.execute(&sql).await?;
        }
        anyhow::Ok(())
    };
    turn(1).await?;
    ensure_equal(&shop, &QUALIFIED).await?;
    shop.daemon.kill();
    let shop_off = &shop;
    for (at, identity) in (0..).zip(identities("by_default")) {
        shop_off.postgres.execute(&identity).await?;
        let sql = if identity.ends_with("nothing") {
            "insert into by_default (id, n) values (70000, 1), (70001, 1)".to_owned()
        } else {
            changes(501 + at * 100)
        };
        shop_off.postgres.execute(&sql).await?;
    }
    shop.daemon.start().await?;
    ensure_equal(&shop, &QUALIFIED).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_identity_that_changes_during_a_snapshot_changes_no_row() -> Result<()> {
    let shop = Shop::open(0).await?;
    shop.postgres.execute(&tables()).await?;
    shop.postgres.execute(&rows(1, 1_000)).await?;
    // The chunks wait for this one, and the stream does not.
    let gate = shop.postgres.client().await?;
    for sql in [
        "create publication downriver_shop for all tables",
        "select pg_create_logical_replication_slot('downriver_shop', 'pgoutput')",
    ] {
        shop.postgres.execute(sql).await?;
    }
    gate.batch_execute("begin; select pg_current_xact_id()")
        .await?;
    let sink = resources::sink_in_folder(&shop.folder.path().join("lake"));
    let options = "snapshot: { mode: initial, chunk_rows: 100, max_workers: 2 }";
    let source = resources::source(&shop.postgres, &["public.*"], &[options]);
    shop.daemon
        .apply(&(source + &sink + &resources::pipeline("1s")))
        .await?;
    until_table(&shop, "by_default", |table| {
        table["state"] == "snapshotting"
    })
    .await?;
    shop.postgres.execute(&changes(1)).await?;
    shop.postgres
        .execute(&format!(
            "alter table by_default replica identity full; {}",
            changes(101)
        ))
        .await?;
    shop.caught_up_in_snapshot().await?;
    gate.batch_execute("commit").await?;
    for (at, identity) in (2..).zip(
        identities("by_full")
            .into_iter()
            .filter(|sql| !sql.ends_with("nothing")),
    ) {
        shop.postgres.execute(&identity).await?;
        shop.postgres.execute(&changes(1 + at * 100)).await?;
    }
    ensure_equal(&shop, &QUALIFIED).await
}

/// A key that is stored out of line is not sent where it does not change, but the old key is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_out_of_line_that_does_not_change_is_known() -> Result<()> {
    let shop = Shop::open(0).await?;
    let long = "(select string_agg(md5(i || ' of ' || j), '') from generate_series(1, 70) j)";
    shop.postgres
        .execute(&format!(
            "create table long_key (k text primary key, n int, body text); alter table long_key owner to shop_owner;
             alter table long_key alter k set storage external, alter body set storage external;
             insert into long_key select {long}, i, {BODY} from generate_series(1, 50) i"
        ))
        .await?;
    shop.deliver("1s").await?;
    ensure_equal(&shop, &["public.long_key"]).await?;
    shop.postgres
        .execute(
            "update long_key set n = n + 100 where n <= 20; update long_key set k = k || '!' where n = 30;
             delete from long_key where n = 40; update long_key set n = 0",
        )
        .await?;
    ensure_equal(&shop, &["public.long_key"]).await?;
    let logged = e2e::log::events(&shop).await?;
    let updates = logged.iter().filter(|event| event["op"] == "update");
    let unsaid = updates.filter(|event| {
        event["unchanged"]
            .as_array()
            .is_some_and(|u| u.contains(&"k".into()))
    });
    ensure!(unsaid.count() == 0, "an update does not say its key");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_whose_keys_shift_in_one_statement_do_not_take_each_others_place() -> Result<()> {
    let shop = Shop::open(0).await?;
    // The statement meets the largest key first, so that each is free when a row comes to it.
    shop.postgres
        .execute(&format!(
            "create table shifted (id bigint primary key, n int, body text); alter table shifted owner to shop_owner;
             alter table shifted alter body set storage external;
             create table ranks (id bigint primary key, place int unique deferrable initially immediate, body text);
             alter table ranks owner to shop_owner; alter table ranks alter body set storage external;
             create table full_shifted (like shifted including all); alter table full_shifted owner to shop_owner;
             alter table full_shifted replica identity full;
             insert into shifted select i, i, {BODY} from generate_series(3000, 1, -1) i;
             insert into full_shifted select * from shifted;
             insert into ranks select i, i, {BODY} from generate_series(1, 1000) i"
        ))
        .await?;
    shop.deliver("1s").await?;
    let tables = ["public.shifted", "public.full_shifted", "public.ranks"];
    ensure_equal(&shop, &tables).await?;
    let by_one = "update shifted set id = id + 1; update full_shifted set id = id + 1; update ranks set place = place + 1";
    shop.postgres.execute(by_one).await?;
    ensure_equal(&shop, &tables).await?;
    // Several rounds before the lake sees the first, and back again in one transaction.
    shop.postgres
        .execute(
            "begin; update shifted set id = id + 1000000; update shifted set id = id - 1000001, n = n + 1;
             update full_shifted set id = id + 1000000; update full_shifted set id = id - 1000001, n = n + 1; commit;
             update ranks set place = place - 1; update ranks set place = 1001 - place;
             begin; update shifted set id = 0 where id = 1; update shifted set id = 1 where id = 2;
             update shifted set id = 2 where id = 0; commit",
        )
        .await?;
    ensure_equal(&shop, &tables).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_whose_rows_could_not_be_found_is_refused_and_taken_in_when_it_is_mended()
-> Result<()> {
    let shop = Shop::open(0).await?;
    let refused = [
        ("nothing", "id bigint primary key, n int", "DR-1032"),
        (
            "lost_index",
            "id bigint primary key, n int not null",
            "DR-1032",
        ),
        (
            "late",
            "id bigint primary key deferrable, n int not null",
            "DR-1045",
        ),
        ("keyless", "id bigint not null, n int", "DR-1030"),
        ("nullable", "id bigint unique, n int", "DR-1030"),
    ];
    for (table, columns, _) in refused {
        shop.postgres
            .execute(&format!(
                "create table {table} ({columns}); alter table {table} owner to shop_owner;
                 insert into {table} select i, i from generate_series(1, 50) i"
            ))
            .await?;
    }
    shop.postgres
        .execute(
            "alter table nothing replica identity nothing; create unique index gone on lost_index (n);
             alter table lost_index replica identity using index gone; drop index gone;
             create table good (id bigint primary key); alter table good owner to shop_owner",
        )
        .await?;
    shop.deliver("1s").await?;
    until_table(&shop, "good", |table| table["state"] == "streaming").await?;
    for (table, _, code) in refused {
        let described = of_source(&shop, table).await?;
        ensure!(
            described["state"] == "refused" && described["code"] == code,
            "{table}: {described}"
        );
        let fix = described["fix"].as_str().unwrap_or_default();
        ensure!(
            fix.contains(&format!("\"public\".\"{table}\"")),
            "{table}: {fix}"
        );
        // What is not captured is not published, so its rows can be changed.
        shop.postgres
            .execute(&format!(
                "update {table} set n = n + 1000 where id < 20; delete from {table} where id = 20"
            ))
            .await?;
    }
    shop.postgres
        .execute(
            "alter table nothing replica identity default; alter table lost_index replica identity default;
             create unique index fine on late (n); alter table late replica identity using index fine;
             create unique index by_id on keyless (id); alter table keyless replica identity using index by_id;
             alter table nullable add primary key (id)",
        )
        .await?;
    for (table, _, _) in refused {
        until_table(&shop, table, |table| table["state"] == "streaming").await?;
        shop.postgres
            .execute(&format!(
                "update {table} set n = n + 1000 where id > 40; delete from {table} where id = 21"
            ))
            .await?;
    }
    let names = refused.map(|(table, _, _)| format!("public.{table}"));
    ensure_equal(&shop, &names.each_ref().map(String::as_str)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_captured_table_without_identity_goes_on_with_its_new_rows_and_says_so() -> Result<()> {
    let mut shop = Shop::open(0).await?;
    shop.postgres.execute(&tables()).await?;
    shop.postgres.execute(&rows(1, 100)).await?;
    shop.deliver("1s").await?;
    ensure_equal(&shop, &QUALIFIED).await?;
    let insert = async |shop: &Shop, id: u32| {
        let sql = format!("insert into by_default (id, n) values ({id}, 1)");
        shop.postgres.execute(&sql).await
    };
    shop.postgres
        .execute("alter table by_default replica identity nothing")
        .await?;
    insert(&shop, 5_000).await?;
    until_table(&shop, "by_default", |table| {
        table["state"] == "streaming" && table["code"] == "DR-1032"
    })
    .await?;
    let update = shop
        .postgres
        .execute("update by_default set n = 3 where id = 1")
        .await;
    ensure!(
        update.is_err(),
        "the server updates a row that nobody could find"
    );
    shop.daemon.kill();
    insert(&shop, 5_001).await?;
    shop.daemon.start().await?;
    until_table(&shop, "by_default", |table| {
        table["state"] == "streaming" && table["code"] == "DR-1032"
    })
    .await?;
    insert(&shop, 5_002).await?;
    ensure_equal(&shop, &QUALIFIED).await?;
    shop.postgres
        .execute("alter table by_default replica identity default; update by_default set n = 3 where id % 2 = 0")
        .await?;
    until_table(&shop, "by_default", |table| table["code"].is_null()).await?;
    ensure_equal(&shop, &QUALIFIED).await
}

/// Its rows are known by other columns then, so they are read again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_identity_that_changes_the_key_replaces_the_rows() -> Result<()> {
    let shop = Shop::open(0).await?;
    shop.postgres.execute(&tables()).await?;
    shop.postgres.execute(&rows(1, 400)).await?;
    shop.deliver("1s").await?;
    ensure_equal(&shop, &QUALIFIED).await?;
    for (at, identity) in (0..).zip(["full", "using index by_code", "default"]) {
        let sql = format!(
            "alter table by_index replica identity {identity}; {}",
            changes(1 + at * 100)
        );
        shop.postgres.execute(&sql).await?;
        ensure_equal(&shop, &QUALIFIED).await?;
    }
    Ok(())
}

/// What happens while a table cannot be captured is in no stream, so it is read again when it can.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_captured_table_that_lost_its_key_is_read_again_when_it_has_it_back() -> Result<()> {
    let mut shop = Shop::open(0).await?;
    shop.postgres.execute(&tables()).await?;
    shop.postgres.execute(&rows(1, 100)).await?;
    shop.deliver("1s").await?;
    ensure_equal(&shop, &QUALIFIED).await?;
    shop.daemon.kill();
    shop.postgres
        .execute(
            "update by_default set n = 77 where id < 5; delete from by_default where id = 5;
             alter table by_default drop constraint by_default_pkey; insert into by_default (id, n) values (6000, 1), (6000, 1)",
        )
        .await?;
    shop.daemon.start().await?;
    until_table(&shop, "by_default", |table| {
        table["state"] == "refused" && table["code"] == "DR-1030"
    })
    .await?;
    shop.postgres
        .execute("insert into by_full (id, n) values (6000, 1)")
        .await?;
    ensure_equal(&shop, &["public.by_full"]).await?;
    // As somebody who needs the table to change would.
    shop.postgres
        .execute(
            "alter publication downriver_shop drop table by_default; delete from by_default where id = 6000;
             alter table by_default add primary key (id); update by_default set n = 78 where id between 10 and 20",
        )
        .await?;
    until_table(&shop, "by_default", |table| table["state"] == "streaming").await?;
    shop.postgres
        .execute("update by_default set n = 79 where id between 15 and 25")
        .await?;
    ensure_equal(&shop, &QUALIFIED).await
}

/// Waits until the stream has brought everything, whatever the snapshot does.
trait CaughtUpInSnapshot {
    async fn caught_up_in_snapshot(&self) -> Result<()>;
}

impl CaughtUpInSnapshot for Shop {
    async fn caught_up_in_snapshot(&self) -> Result<()> {
        let client = self.postgres.client().await?;
        let message = "select pg_logical_emit_message(true, 'e2e', '')::text";
        let committed: String = client.query_one(message, &[]).await?.get(0);
        host::until("the stream to bring everything", CATCH_UP, async || {
            let source = self.daemon.describe("source", resources::SOURCE).await?;
            let passed = source["position"].as_str().unwrap_or("0/0");
            let query = format!("select '{passed}'::pg_lsn >= '{committed}'::pg_lsn");
            Ok(client.query_one(&query, &[]).await?.get(0))
        })
        .await
    }
}

/// Values that stand outside their row, of every kind of type that can: `id` in, everything but `n` is left unchanged.
const LONG_VALUES: [(&str, &str); 8] = [
    ("raw bytea", "decode(BODY || BODY, 'hex')"),
    ("js jsonb", "jsonb_build_object('id', i, 'b', BODY)"),
    ("j json", "('{ \"b\" : \"' || BODY || '\", \"b\":1}')::json"),
    ("words text[]", "array['w' || i, null, BODY]"),
    (
        "numbers int[]",
        "(select array_agg((i * j * 7919) % 2147483 order by j) from generate_series(1, 700) j)",
    ),
    (
        "digits numeric",
        "(repeat(i || '7319', 1500) || '.50')::numeric",
    ),
    ("pairs hstore", "hstore(array['id', i::text, 'b', BODY])"),
    ("bits varbit", "('x' || BODY || BODY)::varbit"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_of_every_type_that_stand_outside_their_row_stay_where_they_are_not_sent()
-> Result<()> {
    let shop = Shop::open(0).await?;
    let columns = LONG_VALUES.map(|(column, _)| column).join(", ");
    let names = LONG_VALUES.map(|(column, _)| column.split(' ').next().unwrap_or_default());
    let external = names.map(|name| format!("alter {name} set storage external"));
    let values = LONG_VALUES.map(|(_, value)| value.replace("BODY", BODY));
    shop.postgres.execute("create extension hstore").await?;
    let tables = ["long_default", "long_full", "long_index"];
    for table in tables {
        shop.postgres
            .execute(&format!(
                "create table {table} (id bigint primary key, code text not null unique, n int, {columns});
                 alter table {table} owner to shop_owner; alter table {table} {}",
                external.join(", ")
            ))
            .await?;
    }
    shop.postgres
        .execute(
            "alter table long_full replica identity full;
             alter table long_index replica identity using index long_index_code_key",
        )
        .await?;
    let fill = |from: i64, to: i64| {
        tables
            .map(|table| {
                format!(
                    "insert into {table} select i, 'code ' || i, i, {} from generate_series({from}, {to}) i",
                    values.join(", ")
                )
            })
            .join("; ")
    };
    let change = |from: i64| {
        tables
            .map(|table| {
                let rows = |from: i64| format!("id between {from} and {}", from + 4);
                format!(
                    "update {table} set n = -n where {}; update {table} set id = id + 1000, n = 0 where {};
                     update {table} set code = 'moved ' || code where {}; update {table} set raw = '', digits = 1 where {};
                     update {table} set n = 5 where {}",
                    rows(from),
                    rows(from + 5),
                    rows(from + 10),
                    rows(from + 15),
                    rows(from + 13),
                )
            })
            .join("; ")
    };
    shop.postgres.execute(&fill(1, 40)).await?;
    shop.deliver("1s").await?;
    let qualified = tables.map(|table| format!("public.{table}"));
    let qualified = qualified.each_ref().map(String::as_str);
    ensure_equal(&shop, &qualified).await?;
    shop.postgres.execute(&fill(41, 80)).await?;
    shop.postgres.execute(&change(1)).await?;
    shop.postgres.execute(&change(41)).await?;
    ensure_equal(&shop, &qualified).await?;
    let logged = e2e::log::events(&shop).await?;
    let unsent = logged.iter().find(|event| {
        event["table"] == "public.long_default"
            && event["op"] == "update"
            && event["after"]["n"] == -1
    });
    let unsent = unsent.map(|event| event["unchanged"].clone());
    ensure!(
        unsent == Some(serde_json::json!(names)),
        "the server did not leave out every long value: {unsent:?}"
    );
    // Read again while it changes.
    shop.daemon.ok(&["resnapshot", resources::PIPELINE]).await?;
    shop.postgres.execute(&change(21)).await?;
    ensure_equal(&shop, &qualified).await
}
