//! Changes of a table that its rows in the lake do not survive: types, keys.

use anyhow::{Context, Result, ensure};
use downriver_testkit::readers::{self, Lake};
use downriver_testkit::workload::{Style, Workload};
use downriver_testkit::{daemon, host, resources};
use e2e::{CATCH_UP, Shop};

async fn ensure_equal(shop: &Shop, tables: &[&str]) -> Result<()> {
    shop.daemon.wait(CATCH_UP).await?;
    readers::ensure_equal(&shop.postgres, &Lake::builtin(&shop.daemon)?, tables).await?;
    let tables = tables.join(",");
    let verify = ["verify", resources::PIPELINE, "--tables", &tables];
    shop.daemon.ok(&verify).await?;
    Ok(())
}

/// What readers see of a lake's table now: the type of a column, and the number of rows.
async fn seen(shop: &Shop, table: &str, column: &str) -> Result<String> {
    let script = "
import sys
from pyiceberg.catalog import load_catalog
table = load_catalog('lake', type='rest', uri=sys.argv[1], warehouse='lake').load_table(('shop_public', sys.argv[2]))
print(table.schema().find_field(sys.argv[3]).field_type, table.scan().count())
";
    let output = tokio::process::Command::new(host::venv_program("python")?)
        .args(["-c", script, &shop.daemon.catalog_uri()?, table, column])
        .output()
        .await?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{error}");
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

const KINDS: &str = "
create type mood as enum ('low', 'high');
create table kinds (id bigint primary key, whole int, sum numeric(12,2), what text, list int[], mood mood, at timestamp, body text);
alter table kinds owner to shop_owner; alter type mood owner to shop_owner;
alter table kinds alter body set storage external;
insert into kinds select i, i, i / 7.0, (i % 100)::text, array[i, null], (enum_range(null::mood))[i % 2 + 1],
    timestamp '2026-01-01' + i * interval '1.1 s', repeat('body ' || i, 800) from generate_series(1, 2000) i";

/// The type of each of its columns changes, with values that are rounded and converted.
const CHANGES: [&str; 7] = [
    "alter table kinds alter whole type bigint",
    "alter table kinds alter sum type numeric(10,1)",
    "alter table kinds alter what type int using what::int * 2, alter list type text[]",
    "alter table kinds alter whole type text using 'number ' || whole",
    "alter table kinds alter at type timestamp(0)",
    "alter table kinds alter mood type text",
    "alter type mood rename value 'low' to 'deep'; alter table kinds alter sum type float8",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_are_read_again_when_a_columns_type_changes() -> Result<()> {
    let mut shop = Shop::open(300).await?;
    shop.postgres.execute(KINDS).await?;
    shop.deliver("1s").await?;
    ensure_equal(&shop, &["public.kinds"]).await?;
    let style = Style {
        scale: 300,
        ..Style::default()
    };
    let during = Workload::start(&shop.postgres, style);
    // Told by a row that leaves out a value; and a change that follows before the first is delivered.
    for change in &CHANGES[..2] {
        shop.postgres.execute(change).await?;
        let touch = "update kinds set id = id where id % 50 = 0";
        shop.postgres.execute(touch).await?;
    }
    ensure_equal(&shop, &["public.kinds"]).await?;

    // A backlog, with rows of every shape, and a change in the middle of a transaction.
    shop.daemon.kill();
    for (at, change) in CHANGES[2..].iter().enumerate() {
        let change = format!(
            "insert into kinds (id, body) values ({0}, 'before'); delete from kinds where id % 97 = {at};
             begin; update kinds set body = 'in {at}' where id % 31 = {at}; {change};
             insert into kinds (id, body) values ({0} + 1, 'behind'); commit;
             update kinds set id = -id where id % 41 = {at} and id > 0",
            10_000 + 2 * at
        );
        shop.postgres.execute(&change).await?;
    }
    shop.daemon.start().await?;
    during.stop().await?;
    ensure_equal(&shop, &["public.kinds"]).await?;
    shop.ensure_lake_equal().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_see_the_old_rows_until_the_new_ones_are_there_over_kills() -> Result<()> {
    let mut shop = Shop::open(50).await?;
    shop.postgres
        .execute(
            "create table large (id bigint primary key, number int, body text); alter table large owner to shop_owner;
             insert into large select i, i, repeat('b', 50) from generate_series(1, 4000) i",
        )
        .await?;
    let slowly = ["snapshot: { mode: initial, chunk_rows: 500, rows_per_second: 4000 }"];
    let source = resources::source(&shop.postgres, &["public.large"], &slowly);
    let sink = resources::sink_in_folder(&shop.folder.path().join("lake"));
    let all = source + &sink + &resources::pipeline("1s");
    shop.daemon.apply(&all).await?;
    ensure_equal(&shop, &["public.large"]).await?;
    // No chunk is read while a transaction runs that is older than the generation.
    let older = shop.postgres.client().await?;
    older
        .batch_execute("begin; insert into ledger values (7000, 'open')")
        .await?;
    let change = "alter table large alter number type text using 'n' || number; delete from large where id > 3990;
         insert into large select i, 'new', '' from generate_series(30001, 30010) i; delete from large where id = 5";
    shop.postgres.execute(change).await?;
    for _ in 0..2 {
        shop.daemon
            .until_described(
                "pipeline",
                resources::PIPELINE,
                "the table to be built beside",
                CATCH_UP,
                |pipeline| {
                    daemon::table_in(pipeline, "public.large")
                        .is_some_and(|table| table["state"] == "snapshotting")
                },
            )
            .await?;
        let before = seen(&shop, "large", "number").await?;
        ensure!(before == "int 4000", "readers see {before}");
        shop.daemon.kill();
        shop.daemon.start().await?;
    }
    // Changes that stream meanwhile are in it.
    shop.postgres
        .execute("update large set number = 'streamed' where id % 100 = 7; delete from large where id % 100 = 8")
        .await?;
    let before = seen(&shop, "large", "number").await?;
    ensure!(before == "int 4000", "readers see {before}");
    older.batch_execute("commit").await?;
    // Wherever it is now.
    shop.daemon.kill();
    shop.daemon.start().await?;
    ensure_equal(&shop, &["public.large"]).await?;
    let after = seen(&shop, "large", "number").await?;
    ensure!(after.starts_with("string 39"), "readers see {after}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_is_known_by_its_new_primary_key() -> Result<()> {
    let mut shop = Shop::open(50).await?;
    shop.postgres
        .execute(
            "create table keyed (id bigint primary key, code text not null, part int not null, body text);
             alter table keyed owner to shop_owner;
             insert into keyed select i, 'code ' || i, i % 5, 'body' from generate_series(1, 2000) i",
        )
        .await?;
    shop.deliver("1s").await?;
    ensure_equal(&shop, &["public.keyed"]).await?;
    let changes = [
        "alter table keyed drop constraint keyed_pkey, add primary key (code)",
        // Ids are not unique any more.
        "insert into keyed select id, code || '!', part, 'twice' from keyed where id % 10 = 0",
        "update keyed set code = code || '?' where id % 7 = 0; delete from keyed where id % 11 = 0",
    ];
    for change in changes {
        shop.postgres.execute(change).await?;
    }
    ensure_equal(&shop, &["public.keyed"]).await?;
    // Without one for a while, and two changes in a backlog; the last is of a column that gets another type with it.
    shop.daemon.kill();
    let changes = [
        "alter table keyed drop constraint keyed_pkey; insert into keyed values (9001, 'keyless', 1, null)",
        "alter table keyed add primary key (code, part); update keyed set part = part + 1 where id % 3 = 0",
        "alter table keyed drop constraint keyed_pkey, alter part type text, add primary key (part, code)",
        "update keyed set part = part || 'x', body = 'last' where id % 5 = 0",
    ];
    for change in changes {
        shop.postgres.execute(change).await?;
    }
    shop.daemon.start().await?;
    ensure_equal(&shop, &["public.keyed"]).await?;
    let described = shop
        .daemon
        .describe("pipeline", resources::PIPELINE)
        .await?;
    let table = daemon::table_in(&described, "public.keyed").context("the table")?;
    ensure!(table["state"] == "streaming", "{table}");
    Ok(())
}

/// A row of the pipeline's description.
async fn described(shop: &Shop, table: &str) -> Result<serde_json::Value> {
    let described = shop
        .daemon
        .describe("pipeline", resources::PIPELINE)
        .await?;
    let table = daemon::table_in(&described, table);
    Ok(table.with_context(|| format!("{described}"))?.clone())
}

const NAMED: &str = "
create table one (id bigint primary key, what text, body text); alter table one owner to shop_owner;
create table other (id bigint primary key, what text, number int); alter table other owner to shop_owner;
alter table one alter body set storage external;
insert into one select i, 'one ' || i, repeat('b' || i, 1500) from generate_series(1, 500) i;
insert into other select i, 'other ' || i, i from generate_series(1, 300) i";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_made_again_under_its_name_replaces_the_rows_of_the_one_before() -> Result<()> {
    let mut shop = Shop::open(50).await?;
    shop.postgres.execute(NAMED).await?;
    shop.deliver("1s").await?;
    ensure_equal(&shop, &["public.one", "public.other"]).await?;
    shop.postgres
        .execute(
            "update one set what = 'last' where id < 10; drop table one;
             create table one (what text, id uuid primary key); alter table one owner to shop_owner;
             insert into one select 'new ' || i, md5(i::text)::uuid from generate_series(1, 200) i",
        )
        .await?;
    ensure_equal(&shop, &["public.one", "public.other"]).await?;
    shop.postgres
        .execute("update one set what = 'streamed' where what like '%7'; delete from one where what like '%5'")
        .await?;
    ensure_equal(&shop, &["public.one"]).await?;
    // Twice in a backlog, with rows of each; and killed while the last one is taken in.
    shop.daemon.kill();
    for (at, columns) in [
        "id int primary key, a text",
        "a text, id bigint primary key",
    ]
    .iter()
    .enumerate()
    {
        let again = format!(
            "insert into one values ('of the one before', gen_random_uuid()); drop table one;
             create table one ({columns}); alter table one owner to shop_owner;
             insert into one (id, a) select i, 'again {at}' from generate_series(1, 400) i;
             update one set a = 'changed' where id % 3 = {at}"
        );
        let again = if at == 0 {
            again
        } else {
            again.replace(
                "values ('of the one before', gen_random_uuid())",
                "values (-1, '')",
            )
        };
        shop.postgres.execute(&again).await?;
    }
    shop.daemon.start().await?;
    shop.daemon
        .until_described(
            "pipeline",
            resources::PIPELINE,
            "the table to be taken in",
            CATCH_UP,
            |pipeline| daemon::table_in(pipeline, "public.one").is_some(),
        )
        .await?;
    shop.daemon.kill();
    shop.daemon.start().await?;
    ensure_equal(&shop, &["public.one", "public.other"]).await?;
    let table = described(&shop, "public.one").await?;
    ensure!(table["state"] == "streaming", "{table}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_goes_on_under_its_new_name_and_leaves_the_old_one() -> Result<()> {
    names_move(1).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_goes_on_under_its_new_name_also_where_tables_are_shared_out() -> Result<()> {
    names_move(3).await
}

async fn names_move(nodes: u32) -> Result<()> {
    let mut shop = Shop::open(50).await?;
    shop.postgres.execute(NAMED).await?;
    shop.deliver("1s").await?;
    let pipeline = format!("{}nodes: {nodes}\n", resources::pipeline("1s"));
    shop.daemon.apply(&pipeline).await?;
    ensure_equal(&shop, &["public.one", "public.other"]).await?;
    // No row follows, and none leaves the value out of line out of what is read again.
    shop.postgres
        .execute("insert into one values (9000, 'before', null); alter table one rename to first")
        .await?;
    shop.daemon
        .until_described(
            "pipeline",
            resources::PIPELINE,
            "the table under its new name",
            CATCH_UP,
            |pipeline| daemon::table_in(pipeline, "public.first").is_some(),
        )
        .await?;
    ensure_equal(&shop, &["public.first", "public.other"]).await?;
    let left = described(&shop, "public.one").await?;
    ensure!(
        left["code"] == "DR-3025" && left["target"] == "shop_public.one",
        "{left}"
    );
    let stays = seen(&shop, "one", "what").await?;
    // A row from right before the change may come under either name.
    ensure!(stays == "string 500" || stays == "string 501", "{stays}");
    shop.postgres
        .execute("update first set what = 'streamed' where id % 9 = 0; alter table other rename to one; update one set what = '!' where id < 5")
        .await?;
    // The name that was left belongs to another table now.
    ensure_equal(&shop, &["public.first", "public.one"]).await?;

    // Names that change places in a backlog, twice, and a table that leaves the selection and comes back.
    shop.daemon.kill();
    let swap = "begin; alter table one rename to passing; alter table first rename to one; alter table passing rename to first; commit";
    for sql in [
        swap,
        "update one set what = 'swapped' where id % 4 = 0; update first set what = 'swapped too' where id % 4 = 1",
        swap,
        "delete from one where id % 5 = 0",
        swap,
        "update first set number = number + 1 where id % 2 = 0",
    ] {
        shop.postgres.execute(sql).await?;
    }
    shop.daemon.start().await?;
    ensure_equal(&shop, &["public.first", "public.one"]).await?;
    shop.daemon.kill();
    shop.daemon.start().await?;
    shop.postgres
        .execute("create schema elsewhere authorization shop_owner; alter table one set schema elsewhere; update elsewhere.one set what = 'missed'")
        .await?;
    shop.caught_up().await?;
    shop.postgres
        .execute("delete from elsewhere.one where id % 6 = 0; alter table elsewhere.one set schema public; update one set what = 'back' where id % 7 = 0")
        .await?;
    shop.daemon
        .until_described(
            "source",
            resources::SOURCE,
            "the table to be back",
            CATCH_UP,
            |source| {
                daemon::table_in(source, "public.one")
                    .is_some_and(|table| table["state"] == "streaming")
            },
        )
        .await?;
    ensure_equal(&shop, &["public.first", "public.one"]).await
}

/// Rows of a table that snapshots have brought into the log so far.
async fn rows_read(shop: &Shop, table: &str) -> Result<usize> {
    let events = e2e::log::events(shop).await?;
    let of_snapshots = events
        .iter()
        .filter(|e| e["table"] == table && e["op"] == "snapshot");
    Ok(of_snapshots.count())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_a_change_wrote_anew_are_read_again_and_no_others() -> Result<()> {
    let mut shop = Shop::open(50).await?;
    shop.postgres
        .execute(
            "create table written (id bigint primary key, what text, short varchar(20)); alter table written owner to shop_owner;
             insert into written select i, 'what ' || i, 'short ' || i from generate_series(1, 1000) i",
        )
        .await?;
    shop.deliver("1s").await?;
    ensure_equal(&shop, &["public.written"]).await?;
    let mut read = rows_read(&shop, "public.written").await?;
    for (change, is_read) in [
        ("vacuum full written", false),
        (
            "alter table written alter what type text using upper(what)",
            true,
        ),
        (
            "truncate written; insert into written select i, 'again' from generate_series(1, 500) i",
            false,
        ),
        (
            "alter table written alter what type text using what || id",
            true,
        ),
        // Not before `VACUUM FULL`: one look that finds both cannot tell them from a rewrite.
        (
            "alter table written alter short type varchar(30); update written set id = id where id = 7",
            false,
        ),
    ] {
        for sql in change.split("; ") {
            shop.postgres.execute(sql).await?;
        }
        ensure_equal(&shop, &["public.written"]).await?;
        let now = rows_read(&shop, "public.written").await?;
        ensure!(
            (now > read) == is_read,
            "{change}: {read} rows were read, {now} now"
        );
        read = now;
    }
    // The default that filled the rows is gone when the change is captured.
    shop.daemon.kill();
    for sql in [
        "alter table written add token uuid default gen_random_uuid()",
        "alter table written alter token drop default",
        "update written set id = id where id = 7",
    ] {
        shop.postgres.execute(sql).await?;
    }
    shop.daemon.start().await?;
    ensure_equal(&shop, &["public.written"]).await?;
    shop.postgres
        .execute("begin; alter table written alter what type text using 'in a transaction'; update written set what = 'by a row' where id = 9; commit")
        .await?;
    ensure_equal(&shop, &["public.written"]).await
}

/// What the log gets of rows from before the change, under keys that are gone, is not taken for newer than the change.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_that_a_change_wrote_anew_leave_none_of_the_old_ones() -> Result<()> {
    let mut shop = Shop::open(50).await?;
    shop.postgres
        .execute(
            "create table keyed (id bigint primary key, what text); alter table keyed owner to shop_owner;
             insert into keyed select i, 'what ' || i from generate_series(1, 1000) i",
        )
        .await?;
    shop.deliver("1s").await?;
    ensure_equal(&shop, &["public.keyed"]).await?;
    shop.daemon.kill();
    let rewrite = "alter table keyed alter id type bigint using id + 10000";
    for sql in [
        "update keyed set what = 'old' where id < 10; insert into keyed values (2000, 'old'); delete from keyed where id = 20",
        rewrite,
        "update keyed set what = 'new' where id between 10005 and 10014",
    ] {
        shop.postgres.execute(sql).await?;
    }
    shop.daemon.start().await?;
    ensure_equal(&shop, &["public.keyed"]).await?;
    // While it is captured, and the server sends late what came before.
    let sender = shop.walsender().await?;
    host::signal(sender, "STOP");
    for sql in ["update keyed set what = 'late' where id < 10010", rewrite] {
        shop.postgres.execute(sql).await?;
    }
    // The run ends, and the next one finds the slot taken.
    let is_noticed = |source: &serde_json::Value| source["code"] == "DR-1012";
    let noticed = shop.daemon.until_described(
        "source",
        resources::SOURCE,
        "the change to be noticed",
        CATCH_UP,
        is_noticed,
    );
    let noticed = noticed.await;
    host::signal(sender, "CONT");
    noticed?;
    ensure_equal(&shop, &["public.keyed"]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_is_dropped_while_its_rows_are_read_again_keeps_nothing_waiting() -> Result<()>
{
    let mut shop = Shop::open(50).await?;
    for table in ["early", "late"] {
        let create = format!(
            "create table {table} (id bigint primary key, what text); alter table {table} owner to shop_owner;
             insert into {table} select i, i::text from generate_series(1, 3000) i"
        );
        shop.postgres.execute(&create).await?;
    }
    let options = ["snapshot: { mode: initial, chunk_rows: 100, rows_per_second: 1500 }"];
    let source = resources::source(&shop.postgres, &["public.early", "public.late"], &options);
    let sink = resources::sink_in_folder(&shop.folder.path().join("lake"));
    let yaml = source + &sink + &resources::pipeline("1s");
    shop.daemon.apply(&yaml).await?;
    ensure_equal(&shop, &["public.early", "public.late"]).await?;
    for (table, is_killed) in [("early", false), ("late", true)] {
        let change = format!(
            "alter table {table} alter what type int using what::int; update {table} set what = 0 where id = 1"
        );
        shop.postgres.execute(&change).await?;
        let name = format!("public.{table}");
        let is_read = |pipeline: &serde_json::Value| {
            let mut tables = pipeline["tables"].as_array().into_iter().flatten();
            tables.any(|table| table["table"] == *name && table["state"] == "snapshotting")
        };
        shop.daemon
            .until_described(
                "pipeline",
                resources::PIPELINE,
                "the rows to be read",
                CATCH_UP,
                is_read,
            )
            .await?;
        if is_killed {
            shop.daemon.kill();
        }
        shop.postgres
            .execute(&format!("drop table {table}"))
            .await?;
        if is_killed {
            shop.daemon.start().await?;
        }
        shop.daemon.wait(CATCH_UP).await?;
        let described = shop
            .daemon
            .describe("pipeline", resources::PIPELINE)
            .await?;
        let mut tables = described["tables"].as_array().into_iter().flatten();
        let is_told = tables.any(|table| table["table"] == *name && table["code"] == "DR-3027");
        ensure!(is_told, "{described}");
    }
    Ok(())
}
