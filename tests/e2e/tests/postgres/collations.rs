//! Keys in the order of ICU collations, also of ones under which different texts are equal: chunks are ranges of the
//! server's order, and neither lose nor double rows.

use std::time::Duration;

use anyhow::{Result, ensure};
use downriver_testkit::postgres::{Options, Version};
use downriver_testkit::readers::{self, Lake};
use downriver_testkit::{Postgres, resources, shop};
use e2e::{CATCH_UP, Shop};

const TABLES: [&str; 3] = ["public.words", "public.nocase", "public.pairs"];

/// Words whose order differs between bytes and languages: case, accents, punctuation, digits, other scripts.
const WORDS: &str = "
    select distinct on (word) word from (
        select case i % 9 when 0 then upper(w) when 1 then initcap(w) when 2 then w || '-' || w when 3 then w || ' ' || w
                          when 4 then translate(w, 'aeo', 'äéø') when 5 then U&'\\0430' || w when 6 then w || U&'\\0301'
                          when 7 then '_' || w else w end as word
          from generate_series(1, 1800) i, lateral (select translate(md5(i::text), '0123456789', 'aeouymnrst') as long) l,
               lateral (select left(long, 2 + i % 5) as w) s) of_all";

fn tables() -> String {
    format!(
        r#"create collation nocase (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
           create collation letters (provider = icu, locale = 'und-u-ks-level1', deterministic = false);
           create table words (w text collate "und-x-icu" primary key, v int, long text);
           create table nocase (w text collate nocase primary key, v int, long text);
           create table pairs (w text collate letters, n int, v int, primary key (w, n));
           alter table nocase alter long set storage external;
           insert into words select word, 0, 'long' from ({WORDS}) words;
           insert into nocase select word, 0, repeat('long ', 1000) from ({WORDS}) words on conflict do nothing;
           insert into pairs select word, n, 0 from ({WORDS}) words, generate_series(1, 2) n on conflict do nothing"#
    )
}

/// Texts become others that are equal to them, move to the other end, go and come back in another case.
const CHANGES: [&str; 7] = [
    "update nocase set w = case when w = upper(w) collate \"C\" then lower(w) else upper(w) end where v % 3 = 0",
    "update nocase set v = v + 1 where w between 'm' and 'q'",
    "with gone as (delete from nocase where v % 4 = 1 returning *) insert into nocase select initcap(w), v + 1, long from gone",
    "update words set w = 'z' || w || 'z', v = v + 1 where w between 'a' and 'ad'",
    "update words set w = substr(w, 2, length(w) - 2), v = v + 1 where w like 'z%z' and v % 3 = 0",
    "update words set v = v + 1 where w between 'é' and 'g'; delete from words where w between 'na' and 'nb'",
    "update pairs set w = upper(w), v = v + 1 where n = 1 and v % 2 = 0; update pairs set v = v + 1 where w between 'o' and 'r'",
];

async fn captured_whole(version: u32) -> Result<()> {
    let postgres = Postgres::start_with(Options {
        version: Version::Major(version),
        ..Options::default()
    })
    .await?;
    shop::create(&postgres).await?;
    postgres.execute(&tables()).await?;
    for table in TABLES {
        let own = format!("alter table {table} owner to shop_owner");
        postgres.execute(&own).await?;
    }
    let mut shop = Shop::over(postgres).await?;
    let client = shop.postgres.client().await?;
    let load = tokio::spawn(async move {
        let mut turns = 0u32;
        loop {
            for change in CHANGES {
                client.batch_execute(change).await?;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            turns += 1;
            if turns == 40 {
                return Ok::<_, anyhow::Error>(());
            }
        }
    });
    let small = "snapshot: { mode: initial, chunk_rows: 37, max_workers: 2 }";
    let source = resources::source(&shop.postgres, &TABLES, &[small]);
    let sink = resources::sink_in_folder(&shop.folder.path().join("lake"));
    let yaml = source + &sink + &resources::pipeline("1s");
    shop.daemon.apply(&yaml).await?;
    shop.until_source("some chunks", |source| {
        let tables = source["tables"].as_array().into_iter().flatten();
        let mut rows = tables.filter_map(|table| table["snapshot"]["rows_done"].as_u64());
        rows.any(|rows| rows > 0)
    })
    .await?;
    shop.daemon.kill();
    shop.daemon.start().await?;
    load.await??;
    shop.daemon.wait(CATCH_UP).await?;
    let lake = Lake::builtin(&shop.daemon)?;
    readers::ensure_equal(&shop.postgres, &lake, &TABLES).await?;
    shop.daemon.ok(&["verify", resources::PIPELINE]).await?;
    let equal = "select count(*) from nocase a join nocase b on a.w = b.w";
    let rows = "select count(*) from nocase";
    ensure!(shop.postgres.number(equal).await? == shop.postgres.number(rows).await?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chunks_of_icu_keys_lose_and_double_no_row_on_15() -> Result<()> {
    captured_whole(15).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chunks_of_icu_keys_lose_and_double_no_row_on_18() -> Result<()> {
    captured_whole(18).await
}
