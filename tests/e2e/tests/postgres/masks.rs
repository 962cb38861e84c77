//! Columns that are excluded or masked: nothing of their values reaches the log, from the snapshot or the stream.

use anyhow::{Context, Result, ensure};
use downriver_testkit::readers::{self, Lake};
use downriver_testkit::{Daemon, Postgres, daemon, resources};
use e2e::{CATCH_UP, Shop};
use serde_json::Value;

const KEY: &str = "0123456789abcdef0123456789abcdef";
/// Every value that nobody may see has this in it.
const SECRET: &str = "hush";

const RULES: [&str; 6] = [
    "exclude_columns: [\"public.people.photo\"]",
    "mask:",
    "  - { columns: [\"*.*.EMAIL\", \"public.people.born\"], with: { hash: { key: { env: MASK_KEY } } } }",
    "  - { columns: [\"public.people.card\"], with: { partial: { first: 1, last: 2 } } }",
    "  - { columns: [\"*.*.ssn*\", \"!*.*.ssn_format\"], with: null }",
    "  - { columns: [\"public.people.note\", \"public.people.level\"], with: { constant: \"7\" } }",
];

const PEOPLE: &str = "
    create table people (id bigint primary key, email text, card text, ssn text, ssn_format text, note text, level int,
                         photo bytea, born date);
    alter table people alter email set storage external, alter card set storage external;
    alter table people owner to shop_owner;
    create table plain (id bigint primary key, email_format text);
    alter table plain owner to shop_owner;
    insert into plain values (1, 'seen');
    insert into people
        select i, case when i % 7 > 0 then 'hush-' || repeat(i::text, case when i % 10 = 0 then 3000 else 1 end) end,
               case when i % 5 > 0 then 'hush-card-' || i end, 'hush', '000-00', 'hush', i, 'hush', date '1970-01-01' + i::int
          from generate_series(1, 500) i;";

async fn shop_with(tables: &str) -> Result<Shop> {
    let postgres = Postgres::start().await?;
    postgres.execute(tables).await?;
    let folder = tempfile::Builder::new()
        .prefix("downriver-e2e-")
        .tempdir()?;
    let mut daemon = Daemon::new(folder.path())?.with_variable("MASK_KEY", KEY);
    daemon.start().await?;
    Ok(Shop {
        daemon,
        postgres,
        folder,
    })
}

/// Captures and delivers under these rules.
async fn deliver(shop: &Shop, rules: &[&str]) -> Result<()> {
    let source = resources::source(&shop.postgres, &["public.*"], rules);
    let sink = resources::sink_in_folder(&shop.folder.path().join("lake"));
    let pipeline = resources::pipeline("1s");
    shop.daemon.apply(&(source + &sink + &pipeline)).await
}

async fn ensure_verified(shop: &Shop) -> Result<()> {
    shop.daemon.wait(CATCH_UP).await?;
    let verify = ["verify", resources::PIPELINE];
    shop.daemon.ok(&verify).await.map(|_| ())
}

/// HMAC-SHA256 as SQL, as somebody would compute it who has the key.
fn hmac(text: &str) -> String {
    let pad = |with: u8| -> String {
        let mut block = KEY.as_bytes().to_vec();
        block.resize(64, 0);
        block
            .iter()
            .map(|byte| format!("{:02x}", byte ^ with))
            .collect()
    };
    let (inner, outer) = (pad(0x36), pad(0x5c));
    format!(
        "encode(sha256('\\x{outer}'::bytea || sha256('\\x{inner}'::bytea || convert_to({text}, 'UTF8'))), 'hex')"
    )
}

fn event_of(events: &[Value], id: i64) -> Result<&Value> {
    let of = |event: &&Value| event["table"] == "public.people" && event["key"]["id"] == id;
    events
        .iter()
        .rev()
        .find(of)
        .with_context(|| format!("no event of row {id}"))
}

/// Puts what the lake is to have of `people` in the table's place.
async fn ensure_masked(shop: &Shop) -> Result<()> {
    ensure_verified(shop).await?;
    let partial = "case when card is null then null when length(card) <= 3 then '***'
                        else left(card, 1) || '***' || right(card, 2) end";
    shop.postgres
        .execute(&format!(
            "alter table people rename to clear;
             create view people as select id, {} as email, {partial} as card, null::text as ssn, ssn_format,
                    '7' as note, 7 as level, {} as born from clear",
            hmac("email"),
            hmac("born::text")
        ))
        .await?;
    let lake = Lake::builtin(&shop.daemon)?;
    readers::ensure_equal(&shop.postgres, &lake, &["public.people"]).await?;
    shop.postgres
        .execute("drop view people; alter table clear rename to people")
        .await
}

async fn ensure_nothing_told(shop: &Shop) -> Result<Vec<Value>> {
    let events = e2e::log::events(shop).await?;
    let told = events.iter().find(|event| {
        let text = event.to_string();
        text.contains(SECRET) || text.contains("photo\":")
    });
    match told {
        Some(event) => anyhow::bail!("{event}"),
        None => Ok(events),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_of_a_masked_or_excluded_column_reaches_the_log() -> Result<()> {
    let shop = shop_with(PEOPLE).await?;
    deliver(&shop, &RULES).await?;
    shop.daemon.wait(CATCH_UP).await?;
    shop.postgres
        .execute(
            "insert into people select id + 1000, email, card, ssn, ssn_format, note, level, photo, born from people i
              where id < 200;
             update people set level = level + 1 where id % 10 = 0;
             update people set email = 'hush', card = 'hu', born = null where id % 10 = 1;
             update people set email = null, note = null, ssn = null, level = null where id % 10 = 2;
             update people set id = id + 5000 where id % 10 = 3;
             delete from people where id % 10 = 4;
             alter table people replica identity full;
             update people set level = level + 1, photo = 'hush again' where id % 10 = 5;
             delete from people where id % 10 = 6;",
        )
        .await?;
    ensure_masked(&shop).await?;
    let events = ensure_nothing_told(&shop).await?;
    let row = &event_of(&events, 9)?["after"];
    ensure!(row["ssn"] == "(masked)" && row["card"] == "h***-9", "{row}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_column_added_later_is_masked_from_its_first_value() -> Result<()> {
    let mut shop = shop_with(PEOPLE).await?;
    deliver(&shop, &RULES).await?;
    shop.daemon.wait(CATCH_UP).await?;
    shop.postgres
        .execute(
            "alter table people add ssn_old text default 'hush', add other text;
             insert into people (id, ssn_old, other) values (2001, 'hush', 'seen')",
        )
        .await?;
    ensure_verified(&shop).await?;
    // Changed and gone again before anybody looks.
    shop.daemon.kill();
    shop.postgres
        .execute(
            "alter table people add ssn_passing text;
             insert into people (id, ssn_passing, other) values (2002, 'hush', 'seen');
             alter table people drop photo, drop ssn_passing;
             insert into people (id, other) values (2003, 'seen')",
        )
        .await?;
    shop.daemon.start().await?;
    ensure_verified(&shop).await?;
    let events = ensure_nothing_told(&shop).await?;
    let mut passing = events.iter().map(|event| &event["after"]["ssn_passing"]);
    ensure!(
        passing.any(|value| value == "(masked)"),
        "no event has ssn_passing"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_covered_column_does_not_get_out_by_another_name() -> Result<()> {
    let shop = shop_with(PEOPLE).await?;
    deliver(&shop, &RULES).await?;
    shop.daemon.wait(CATCH_UP).await?;
    shop.postgres
        .execute(
            "alter table people rename card to plastic;
             update people set plastic = 'hush-plastic' where id = 1;
             insert into plain values (2, 'seen')",
        )
        .await?;
    let refused = shop
        .daemon
        .until_described(
            "source",
            resources::SOURCE,
            "people to be refused",
            CATCH_UP,
            |source| {
                daemon::table_in(source, "public.people")
                    .is_some_and(|table| table["code"] == "DR-1050")
            },
        )
        .await?;
    let plain = daemon::table_in(&refused, "public.plain").context("plain")?;
    ensure!(plain["state"] == "streaming", "{refused}");
    ensure_nothing_told(&shop).await?;
    shop.postgres
        .execute(
            "update people set plastic = 'hush-2' where id = 2; delete from people where id = 3",
        )
        .await?;
    let rules = RULES.map(|rule| rule.replace("people.card", "people.plastic"));
    deliver(&shop, &rules.each_ref().map(String::as_str)).await?;
    ensure_verified(&shop).await?;
    ensure_nothing_told(&shop).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_rules_read_the_table_again() -> Result<()> {
    let shop = shop_with(PEOPLE).await?;
    deliver(&shop, &RULES).await?;
    ensure_verified(&shop).await?;
    let rules = [
        "exclude_columns: [\"public.people.note\"]",
        "mask:",
        "  - { columns: [\"*.*.email\"], with: null }",
        "  - { columns: [\"public.people.card\"], with: { partial: { last: 1 } } }",
        "  - { columns: [\"public.people.level\"], with: { constant: \"8\" } }",
    ];
    deliver(&shop, &rules).await?;
    shop.daemon
        .until_described(
            "source",
            resources::SOURCE,
            "a second generation",
            CATCH_UP,
            |source| {
                let people = daemon::table_in(source, "public.people");
                people.is_some_and(|table| table["state"] == "streaming" && table["code"].is_null())
            },
        )
        .await?;
    ensure_verified(&shop).await?;
    let events = e2e::log::events(&shop).await?;
    let last = event_of(&events, 1)?;
    let after = &last["after"];
    ensure!(
        after["email"] == "(masked)"
            && after["card"] == "***1"
            && after["level"] == 8
            && after["ssn"] == SECRET
            && after["born"] == "1970-01-02"
            && after["note"].is_null()
            && !after["photo"].is_null(),
        "{last}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rule_that_cannot_hold_refuses_its_table_by_name() -> Result<()> {
    let shop = shop_with(
        "create table keyed (email text primary key); alter table keyed owner to shop_owner;
         create table typed (id bigint primary key, level int); alter table typed owner to shop_owner;
         create table plain (id bigint primary key); alter table plain owner to shop_owner;
         insert into keyed values ('hush'); insert into typed values (1, 1); insert into plain values (1)",
    )
    .await?;
    let rules = [
        "mask:",
        "  - { columns: [\"*.*.email\"], with: null }",
        "  - { columns: [\"*.*.level\"], with: { constant: high } }",
    ];
    deliver(&shop, &rules).await?;
    shop.daemon.wait(CATCH_UP).await?;
    let source = shop.daemon.describe("source", resources::SOURCE).await?;
    for (table, code) in [("public.keyed", "DR-1051"), ("public.typed", "DR-1052")] {
        let table = daemon::table_in(&source, table).context("no such table")?;
        ensure!(
            table["state"] == "refused" && table["code"] == code,
            "{source}"
        );
    }
    let plain = daemon::table_in(&source, "public.plain").context("plain")?;
    ensure!(plain["state"] == "streaming", "{source}");
    let rules = [
        "mask:",
        "  - { columns: [\"*.*.level\"], with: { constant: \"3\" } }",
    ];
    deliver(&shop, &rules).await?;
    ensure_verified(&shop).await?;

    let short = "mask: [{ columns: [\"*.*.x\"], with: { hash: { key: { env: SHOP_PASSWORD } } } }]";
    let yaml = resources::source(&shop.postgres, &["public.*"], &[short]);
    let answer = shop.daemon.try_apply(&yaml).await?;
    ensure!(answer.text().contains("DR-2029"), "{}", answer.text());
    Ok(())
}
