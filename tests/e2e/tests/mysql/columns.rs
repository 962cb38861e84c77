//! Columns that are excluded, masked or left out: nothing of their values reaches the log, from the snapshot or the binlog.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use downriver_testkit::mysql::{Mysql, Product};
use downriver_testkit::readers::{self, Lake};
use downriver_testkit::{Daemon, daemon, resources};
use e2e::CATCH_UP;
use e2e::log;
use e2e::mysql::Shop;
use serde_json::Value;

const KEY: &str = "0123456789abcdef0123456789abcdef";
/// Every value that nobody may see has this in it.
const SECRET: &str = "hush";
/// So many bytes of a value that cannot be made smaller stand as they are, wherever it is stored.
const NEEDLE_BYTES: usize = 24;

const RULES: [&str; 6] = [
    "exclude_columns: [\"shop.people.photo\", \"*.*.hidden\"]",
    "mask:",
    "  - { columns: [\"*.*.EMAIL\", \"shop.people.of_*\"], with: { hash: { key: { env: MASK_KEY } } } }",
    "  - { columns: [\"shop.people.card\"], with: { partial: { first: 1, last: 2 } } }",
    "  - { columns: [\"*.*.ssn*\", \"!*.*.ssn_format\"], with: null }",
    "  - { columns: [\"shop.people.note\", \"shop.people.level\", \"shop.people.since\"], with: { constant: \"7\" } }",
];

const PEOPLE: &str = "
    create table people (
        ssn text, id bigint primary key, email varchar(200), photo blob, card varchar(30) character set latin1,
        ssn_format varchar(10), note varchar(20), level int, since year,
        of_day date, of_time datetime(3), of_instant timestamp(6) null, of_price decimal(8,2), of_ratio double, of_float float,
        of_flag bit(1), of_bits bit(10), of_raw varbinary(600), of_kind enum('hush-a','b'), of_tags set('hush-x','y'),
        of_doc json, of_clock time(2), of_big bigint unsigned, of_year year, of_old char(10) character set latin1,
        free varchar(30) character set latin1, hidden json);
    create table plain (id bigint primary key, email_format text, body blob);
    insert into plain values (1, 'seen', null);";

/// Rows of people, whose values are made of `i`.
const ROWS: &str =
    "insert into people with recursive n (i) as (select 1 union all select i + 1 from n where i < 500)
         select 'hush', i, case when i % 7 > 0 then concat('hush-', repeat(i, if(i % 10 = 0, 40, 1))) end,
            'hush photo', case when i % 5 > 0 then concat('hush-\u{e9}-', i) end, '000-00', 'hush', i, 2000,
            if(i % 9 = 0, '0000-00-00', date_add('1970-01-01', interval i day)),
            date_add('1999-12-31 23:59:59.123', interval i hour), date_add('2001-02-03 04:05:06.000007', interval i minute),
            i / 8, i / 4 - 7, i / 2, i % 2, i % 1000, concat('hush', unhex('00ff'), i), if(i % 2, 'hush-a', 'b'),
            if(i % 3, 'hush-x,y', ''), concat('{\"hush\": ', i, '}'), '-12:34:56.78', 18446744073709551615 - i, 1901 + i % 200,
            concat('hush \u{e9}', i % 10), 'seen',
            concat('{\"hush\": ', i, ', \"b\": \"', repeat('hush', 20), '\"}') from n";

async fn shop_of(mysql: Mysql) -> Result<Shop> {
    mysql.create_capture_user().await?;
    let folder = tempfile::Builder::new()
        .prefix("downriver-e2e-")
        .tempdir()?;
    let mut daemon = Daemon::new(folder.path())?.with_variable("MASK_KEY", KEY);
    daemon.start().await?;
    Ok(Shop {
        daemon,
        mysql,
        folder,
    })
}

async fn shop_with(product: Product, settings: &[&str], tables: &str) -> Result<Shop> {
    let mysql = Mysql::start_with(product, settings).await?;
    mysql.execute(tables).await?;
    shop_of(mysql).await
}

async fn ensure_verified(shop: &Shop) -> Result<()> {
    shop.daemon.wait(CATCH_UP).await?;
    shop.daemon
        .ok(&["verify", resources::PIPELINE])
        .await
        .map(|_| ())
}

/// HMAC-SHA256 as SQL, as somebody would compute it who has the key.
fn hmac(text: &str) -> String {
    let pad = |with: u8| -> String {
        let mut block = KEY.as_bytes().to_vec();
        block.resize(64, 0);
        let bytes = block.iter().map(|byte| format!("{:02x}", byte ^ with));
        bytes.collect()
    };
    let (inner, outer) = (pad(0x36), pad(0x5c));
    format!(
        "lower(sha2(concat(X'{outer}', unhex(sha2(concat(X'{inner}', cast({text} as binary)), 256))), 256))"
    )
}

/// What the lake is to have of `people`, with these columns in the place of `card` and behind all others.
async fn ensure_masked(shop: &Shop, card: &str, more: &str) -> Result<()> {
    ensure_verified(shop).await?;
    let hashed = |name: &str, text: &str| format!("{} as {name}", hmac(text));
    let texts = [
        ("of_day", "cast(of_day as char)"),
        ("of_time", "cast(of_time as char)"),
        ("of_instant", "cast(of_instant as char)"),
        ("of_price", "cast(of_price as char)"),
        ("of_ratio", "cast(of_ratio as char)"),
        ("of_float", "cast(of_float as char)"),
        ("of_flag", "cast(of_flag + 0 as char)"),
        ("of_bits", "cast(of_bits + 0 as char)"),
        ("of_raw", "concat('\\\\x', lower(hex(of_raw)))"),
        ("of_kind", "cast(of_kind as char)"),
        ("of_tags", "cast(of_tags as char)"),
        ("of_doc", "cast(of_doc as char)"),
        ("of_clock", "cast(of_clock as char)"),
        ("of_big", "cast(of_big as char)"),
        ("of_year", "cast(of_year as char)"),
        ("of_old", "convert(of_old using utf8mb4)"),
    ];
    let texts: Vec<String> = texts
        .iter()
        .map(|(name, text)| hashed(name, text))
        .collect();
    let partial = format!(
        "case when {card} is null then null when char_length({card}) <= 3 then '***'
              else concat(left({card}, 1), '***', right({card}, 2)) end"
    );
    shop.mysql
        .execute(&format!(
            "create or replace view people_seen as
             select cast(null as char) as ssn, id, {} as email, {partial} as {card}, ssn_format, '7' as note, 7 as level,
                    7 as since, {}, free {more} from people",
            hmac("convert(email using utf8mb4)"),
            texts.join(", ")
        ))
        .await?;
    let lake = Lake::builtin(&shop.daemon)?;
    let tables = [("people", "people_seen"), ("plain", "plain")];
    readers::ensure_equal_mysql_views(&shop.mysql, &lake, &tables).await?;
    Ok(())
}

async fn ensure_nothing_told(shop: &Shop) -> Result<Vec<Value>> {
    let events = log::events_of(&shop.daemon).await?;
    let told = events.iter().find(|event| {
        let text = event.to_string();
        text.contains(SECRET) || text.contains("photo\":") || text.contains("hidden\":")
    });
    match told {
        Some(event) => anyhow::bail!("{event}"),
        None => Ok(events),
    }
}

fn event_of(events: &[Value], id: i64) -> Result<&Value> {
    let of = |event: &&Value| event["table"] == "shop.people" && event["key"]["id"] == id;
    events
        .iter()
        .rev()
        .find(of)
        .with_context(|| format!("no event of row {id}"))
}

/// Whether a file below a folder has the bytes.
fn has_bytes(folder: &Path, needle: &[u8]) -> Result<bool> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let has = match path.is_dir() {
            true => has_bytes(&path, needle)?,
            false => {
                let bytes = fs::read(&path).unwrap_or_default();
                bytes.windows(needle.len()).any(|bytes| bytes == needle)
            }
        };
        if has {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Bytes that nobody can make smaller.
fn noise(seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut bytes = Vec::new();
    for _ in 0..512 {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        bytes.push((state >> 56) as u8);
    }
    bytes
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

async fn nothing_reaches_the_log(product: Product, settings: &[&str]) -> Result<()> {
    let shop = shop_with(product, settings, PEOPLE).await?;
    shop.mysql.execute(ROWS).await?;
    shop.deliver_with(&["shop.*"], &RULES).await?;
    shop.daemon.wait(CATCH_UP).await?;
    let (excluded, masked, old, seen) = (noise(1), noise(2), noise(3), noise(4));
    let noisy = format!(
        "insert into people (id, photo, of_raw) values (9001, X'{}', X'{}'), (9002, X'{3}', X'{3}');
         update people set photo = null, of_raw = null where id = 9002;
         insert into plain values (2, 'seen', X'{}')",
        hex(&excluded),
        hex(&masked),
        hex(&seen),
        hex(&old),
    );
    shop.mysql.execute(&noisy).await?;
    shop.mysql
        .execute(
            "insert into people (id, email, card, ssn, ssn_format, note, level, photo, of_day, of_kind)
                select id + 1000, email, card, ssn, ssn_format, note, level, photo, of_day, of_kind from people where id < 200;
             update people set level = level + 1 where id % 10 = 0;
             update people set email = 'hush', card = 'hu', of_day = null where id % 10 = 1;
             update people set email = null, note = null, ssn = null, level = null, of_raw = null where id % 10 = 2;
             update people set id = id + 5000 where id % 10 = 3;
             delete from people where id % 10 = 4;
             update people set photo = 'hush again', of_doc = '{\"a\": \"hush\"}' where id % 10 = 5;
             update people set of_doc = json_set(of_doc, '$.hush', 7), hidden = json_set(hidden, '$.hush', 7) where id % 10 = 7;
             xa start 'x'; update people set email = 'hush-xa', photo = 'hush-xa' where id % 10 = 6;
             insert into people (id, ssn, of_tags) values (9100, 'hush', 'hush-x'); xa end 'x'; xa prepare 'x'; xa commit 'x';",
        )
        .await?;
    ensure_masked(&shop, "card", "").await?;
    let events = ensure_nothing_told(&shop).await?;
    let row = &event_of(&events, 9)?["after"];
    ensure!(row["ssn"] == "(masked)" && row["card"] == "h***-9", "{row}");
    let before = events.iter().filter(|event| event["op"] == "delete");
    ensure!(before.count() > 0, "nothing was deleted");
    // Nor is it in any file, where what everybody may see is.
    for bytes in [&excluded, &masked, &old] {
        let needle = &bytes[100..100 + NEEDLE_BYTES];
        ensure!(!has_bytes(shop.folder.path(), needle)?, "it is in a file");
    }
    let needle = &seen[100..100 + NEEDLE_BYTES];
    ensure!(has_bytes(shop.folder.path(), needle)?, "no file is seen");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_of_a_masked_or_excluded_column_of_mysql_reaches_the_log() -> Result<()> {
    nothing_reaches_the_log(Product::Mysql9, &[]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_of_a_masked_or_excluded_column_of_mariadb_reaches_the_log() -> Result<()> {
    nothing_reaches_the_log(Product::Mariadb11, &[]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_of_a_masked_or_excluded_column_reaches_the_log_where_the_binlog_names_none()
-> Result<()> {
    let settings = [
        "binlog-row-metadata = MINIMAL",
        "binlog-row-value-options = PARTIAL_JSON",
    ];
    nothing_reaches_the_log(Product::Mysql9, &settings).await?;
    let settings = ["binlog-row-metadata = NO_LOG", "log-bin-compress = ON"];
    nothing_reaches_the_log(Product::Mariadb11, &settings).await
}

async fn is_masked_from_its_first_value(product: Product, settings: &[&str]) -> Result<()> {
    let mut shop = shop_with(product, settings, PEOPLE).await?;
    shop.mysql.execute(ROWS).await?;
    shop.deliver_with(&["shop.*"], &RULES).await?;
    shop.daemon.wait(CATCH_UP).await?;
    shop.mysql
        .execute(
            "alter table people add ssn_old varchar(20) default 'hush' first, add other text;
             insert into people (id, ssn_old, other) values (2001, 'hush', 'seen');
             insert into people (id, ssn_old, photo) values (2004, 'hush', 'hush');",
        )
        .await?;
    ensure_verified(&shop).await?;
    // Changed and gone again before anybody looks.
    shop.daemon.kill();
    shop.mysql
        .execute(
            "alter table people add ssn_passing text;
             insert into people (id, ssn_passing, other) values (2002, 'hush', 'seen');
             update people set ssn_passing = 'hush', photo = 'hush' where id < 9;
             alter table people drop photo, drop ssn_passing;
             insert into people (id, other) values (2003, 'seen')",
        )
        .await?;
    shop.daemon.start().await?;
    ensure_verified(&shop).await?;
    ensure_masked(&shop, "card", ", cast(null as char) as ssn_old, other").await?;
    let events = ensure_nothing_told(&shop).await?;
    let after = &event_of(&events, 2001)?["after"];
    ensure!(
        after["ssn_old"] == "(masked)" && after["other"] == "seen",
        "{after}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_column_that_is_added_later_is_masked_from_its_first_value() -> Result<()> {
    is_masked_from_its_first_value(Product::Mysql9, &[]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_column_that_is_added_later_is_masked_where_the_binlog_names_none() -> Result<()> {
    is_masked_from_its_first_value(Product::Mariadb11, &["binlog-row-metadata = NO_LOG"]).await
}

async fn until_refused(shop: &Shop, table: &str) -> Result<Value> {
    shop.until_source("the table to be refused", |source| {
        daemon::table_in(source, table)
            .is_some_and(|table| table["code"] == "DR-1050" && table["state"] == "refused")
    })
    .await
}

async fn does_not_get_out_by_another_name(product: Product, settings: &[&str]) -> Result<()> {
    let mut shop = shop_with(product, settings, PEOPLE).await?;
    shop.mysql.execute(ROWS).await?;
    shop.deliver_with(&["shop.*"], &RULES).await?;
    shop.daemon.wait(CATCH_UP).await?;
    shop.mysql
        .execute(
            "alter table people rename column card to plastic;
             update people set plastic = 'hush-plastic' where id = 1;
             insert into plain values (2, 'seen', null)",
        )
        .await?;
    let refused = until_refused(&shop, "shop.people").await?;
    let plain = daemon::table_in(&refused, "shop.plain").context("plain")?;
    ensure!(plain["state"] == "streaming", "{refused}");
    // Nor after a start.
    shop.daemon.kill();
    shop.mysql
        .execute(
            "update people set plastic = 'hush-2' where id = 2; delete from people where id = 3",
        )
        .await?;
    shop.daemon.start().await?;
    until_refused(&shop, "shop.people").await?;
    ensure_nothing_told(&shop).await?;
    let rules = RULES.map(|rule| rule.replace("people.card", "people.plastic"));
    let rules = rules.each_ref().map(String::as_str);
    shop.deliver_with(&["shop.*"], &rules).await?;
    ensure_masked(&shop, "plastic", "").await?;
    ensure_nothing_told(&shop).await?;

    // Columns that take each other's names, and a table that takes another.
    shop.mysql
        .execute(
            "alter table people rename column plastic to free, rename column free to plastic;
             update people set free = 'hush-3' where id = 5",
        )
        .await?;
    until_refused(&shop, "shop.people").await?;
    // A statement that says nothing of it.
    shop.mysql
        .execute("alter table people comment = 'x'; update people set free = 'hush-3' where id = 6")
        .await?;
    until_refused(&shop, "shop.people").await?;
    let both = "\"shop.people.plastic\", \"shop.people.free\"";
    let rules = RULES.map(|rule| rule.replace("\"shop.people.card\"", both));
    let rules = rules.each_ref().map(String::as_str);
    shop.deliver_with(&["shop.*"], &rules).await?;
    ensure_verified(&shop).await?;
    ensure_nothing_told(&shop).await?;
    shop.mysql
        .execute(
            "rename table people to persons;
             update persons set plastic = 'hush-4', email = 'hush-4' where id = 6",
        )
        .await?;
    until_refused(&shop, "shop.persons").await?;
    shop.daemon.kill();
    shop.mysql
        .execute("update persons set plastic = 'hush-5' where id = 7")
        .await?;
    shop.daemon.start().await?;
    until_refused(&shop, "shop.persons").await?;
    ensure_nothing_told(&shop).await?;
    let rules = rules.map(|rule| rule.replace("shop.people", "shop.persons"));
    let rules = rules.each_ref().map(String::as_str);
    shop.deliver_with(&["shop.*"], &rules).await?;
    shop.daemon.wait(CATCH_UP).await?;
    shop.verify(&["shop.persons", "shop.plain"]).await?;
    ensure_nothing_told(&shop).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_covered_column_does_not_get_out_by_another_name() -> Result<()> {
    does_not_get_out_by_another_name(Product::Mysql9, &[]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_covered_column_does_not_get_out_by_another_name_where_the_binlog_names_none()
-> Result<()> {
    does_not_get_out_by_another_name(Product::Mariadb11, &["binlog-row-metadata = MINIMAL"]).await
}

/// What no statement in the binlog tells of.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_column_that_may_be_a_covered_one_is_not_let_out() -> Result<()> {
    let shop = shop_with(Product::Mariadb11, &[], PEOPLE).await?;
    shop.mysql.execute(ROWS).await?;
    shop.deliver_with(&["shop.*"], &RULES).await?;
    shop.daemon.wait(CATCH_UP).await?;
    shop.mysql
        .execute(
            "set sql_log_bin = 0; alter table people change photo picture varchar(100); set sql_log_bin = 1;
             update people set picture = 'hush' where id = 5",
        )
        .await?;
    until_refused(&shop, "shop.people").await?;
    ensure_nothing_told(&shop).await?;
    // A statement that tells what is gone.
    shop.mysql
        .execute(
            "alter table people change picture photo blob;
             update people set photo = 'hush' where id = 6",
        )
        .await?;
    ensure_masked(&shop, "card", "").await?;
    shop.mysql
        .execute(
            "alter table people drop photo, add picture blob;
             update people set picture = 'seen' where id = 7",
        )
        .await?;
    ensure_masked(&shop, "card", ", picture").await?;
    ensure_nothing_told(&shop).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_rules_read_the_table_again() -> Result<()> {
    let shop = shop_with(Product::Mysql9, &[], PEOPLE).await?;
    shop.mysql.execute(ROWS).await?;
    shop.deliver_with(&["shop.*"], &RULES).await?;
    ensure_verified(&shop).await?;
    let rules = [
        "exclude_columns: [\"shop.people.note\"]",
        "mask:",
        "  - { columns: [\"*.*.email\"], with: null }",
        "  - { columns: [\"shop.people.card\"], with: { partial: { last: 1 } } }",
        "  - { columns: [\"shop.people.level\"], with: { constant: \"8\" } }",
    ];
    shop.deliver_with(&["shop.*"], &rules).await?;
    shop.until_source("a second generation", |source| {
        let people = daemon::table_in(source, "shop.people");
        people.is_some_and(|table| table["state"] == "streaming" && table["code"].is_null())
    })
    .await?;
    ensure_verified(&shop).await?;
    let events = log::events_of(&shop.daemon).await?;
    let after = &event_of(&events, 1)?["after"];
    ensure!(
        after["email"] == "(masked)"
            && after["card"] == "***1"
            && after["level"] == 8
            && after["ssn"] == SECRET
            && after["of_day"] == "1970-01-02"
            && after["note"].is_null()
            && !after["photo"].is_null(),
        "{after}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rule_that_cannot_hold_refuses_its_table_by_name() -> Result<()> {
    let mut shop = shop_with(
        Product::Mariadb10,
        &[],
        "create table keyed (email varchar(20) primary key); create table typed (id bigint primary key, level int);
         create table plain (id bigint primary key);
         insert into keyed values ('hush'); insert into typed values (1, 1); insert into plain values (1)",
    )
    .await?;
    let rules = [
        "mask:",
        "  - { columns: [\"*.*.email\"], with: null }",
        "  - { columns: [\"*.*.level\"], with: { constant: high } }",
    ];
    shop.deliver_with(&["shop.*"], &rules).await?;
    shop.daemon.wait(CATCH_UP).await?;
    let source = shop.daemon.describe("source", resources::SOURCE).await?;
    for (table, code) in [("shop.keyed", "DR-1051"), ("shop.typed", "DR-1052")] {
        let table = daemon::table_in(&source, table).context("no such table")?;
        ensure!(
            table["state"] == "refused" && table["code"] == code,
            "{source}"
        );
    }
    // A name under which it cannot hold, and the end of that, in one backlog.
    shop.daemon.kill();
    shop.mysql
        .execute(
            "alter table plain rename column id to email; insert into plain values (2);
             alter table plain rename column email to id; insert into plain values (3)",
        )
        .await?;
    shop.daemon.start().await?;
    shop.ensure_equal(&["plain"]).await?;
    shop.mysql.execute("delete from plain where id > 1").await?;
    // A key that a covered column comes to be part of.
    shop.mysql
        .execute("alter table plain add email varchar(20) not null, drop primary key, add primary key (email)")
        .await?;
    shop.until_source("the table to be refused", |source| {
        daemon::table_in(source, "shop.plain").is_some_and(|table| table["code"] == "DR-1051")
    })
    .await?;
    let rules = [
        "mask:",
        "  - { columns: [\"*.*.level\"], with: { constant: \"3\" } }",
    ];
    shop.deliver_with(&["shop.*"], &rules).await?;
    ensure_verified(&shop).await?;

    let short = "mask: [{ columns: [\"*.*.x\"], with: { hash: { key: { env: SHOP_PASSWORD } } } }]";
    let yaml = resources::mysql_source(&shop.mysql, &["shop.*"], &[short]);
    let answer = shop.daemon.try_apply(&yaml).await?;
    ensure!(answer.text().contains("DR-2029"), "{}", answer.text());
    let whole = "exclude_columns: [\"photo\"]";
    let yaml = resources::mysql_source(&shop.mysql, &["shop.*"], &[whole]);
    let answer = shop.daemon.try_apply(&yaml).await?;
    ensure!(answer.text().contains("DR-2028"), "{}", answer.text());
    Ok(())
}

const GENERATED: &str = "
    create table gen (v int as (a + 1) virtual, id int primary key, a int, st varchar(20) as (concat('s', a)) stored, b int);
    insert into gen (id, a, b) values (1, 10, 1), (2, null, 2), (3, 5, 3);
    create table heap (a int, v int as (a + 1) virtual, b int);
    insert into heap (a, b) values (1, 1), (1, 1), (2, 2);
    create view gen_seen as select id, a, b from gen; create view heap_seen as select a, b from heap;";

async fn ensure_without_generated(shop: &Shop) -> Result<()> {
    ensure_verified(shop).await?;
    let lake = Lake::builtin(&shop.daemon)?;
    let tables = [("gen", "gen_seen"), ("heap", "heap_seen")];
    readers::ensure_equal_mysql_views(&shop.mysql, &lake, &tables).await?;
    Ok(())
}

async fn generated_columns_are_left_out(settings: &[&str]) -> Result<()> {
    let mut shop = shop_with(Product::Mariadb11, settings, GENERATED).await?;
    shop.deliver_with(&["shop.*"], &[]).await?;
    ensure_without_generated(&shop).await?;
    shop.mysql
        .execute(
            "update gen set a = 11 where id = 1; update gen set b = 7 where id = 2; delete from gen where id = 3;
             insert into gen (id, a) values (4, 4), (5, 5); update gen set id = 6, a = 9 where id = 5;
             update heap set a = 5 where b = 2; delete from heap where a = 1 limit 1; insert into heap (a) values (8);",
        )
        .await?;
    ensure_without_generated(&shop).await?;
    let described = shop.daemon.describe("source", resources::SOURCE).await?;
    let gen_table = daemon::table_in(&described, "shop.gen").context("gen")?;
    ensure!(
        gen_table["state"] == "streaming" && gen_table["code"] == "DR-1079",
        "{described}"
    );
    let yaml = resources::mysql_source(&shop.mysql, &["shop.*"], &[]);
    let file = shop.folder.path().join("source.yaml");
    fs::write(&file, yaml)?;
    let checked = shop
        .daemon
        .run(&["check", "-f", &file.display().to_string()])
        .await?;
    ensure!(
        checked.code == Some(0) && checked.text().contains("DR-1079"),
        "{}",
        checked.text()
    );
    // One that comes, one that is one no more, and one that goes before anybody looks.
    shop.mysql
        .execute("alter table gen add w int as (b * 2) virtual first; update gen set b = 70 where id = 1")
        .await?;
    ensure_without_generated(&shop).await?;
    shop.daemon.kill();
    shop.mysql
        .execute(
            "update gen set a = 12 where id = 1; alter table gen add passing int as (a * 3) virtual;
             update gen set a = 13 where id = 1; alter table gen drop passing;
             alter table gen modify st varchar(20); update gen set st = 'own' where id = 2; update gen set a = 3 where id = 1;
             create or replace view gen_seen as select id, a, st, b from gen",
        )
        .await?;
    shop.daemon.start().await?;
    ensure_without_generated(&shop).await?;
    shop.mysql
        .execute("update gen set st = 'other' where id = 4; update gen set b = 0 where id = 2")
        .await?;
    ensure_without_generated(&shop).await?;
    let events = log::events_of(&shop.daemon).await?;
    let has = |event: &Value, name: &str| event["after"].get(name).is_some();
    ensure!(
        !events
            .iter()
            .any(|event| has(event, "v") || has(event, "passing"))
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn generated_columns_that_are_left_out_of_updates_are_left_out() -> Result<()> {
    generated_columns_are_left_out(&[]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn generated_columns_are_left_out_where_the_binlog_names_none() -> Result<()> {
    generated_columns_are_left_out(&["binlog-row-metadata = NO_LOG"]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn generated_columns_are_left_out_of_rows_without_what_did_not_change() -> Result<()> {
    generated_columns_are_left_out(&["binlog-row-image = FULL_NODUP"]).await
}
