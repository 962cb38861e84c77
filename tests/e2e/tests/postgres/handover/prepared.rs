//! Transactions that are prepared before the slot is made, before the first chunk and between chunks.

use anyhow::{Result, ensure};
use downriver_testkit::Postgres;
use e2e::log::events;

use super::{
    LEDGER, deliver, ensure_no_chunk, ensure_shop_equal, find, offset_of, rows_done, shop_with,
    until_chunks_wait, until_slot_waits_for, until_streaming,
};

/// Prepares changes of rows `n`, `n + 10` and `n + 10000`; its transaction id.
async fn prepare(postgres: &Postgres, n: i64) -> Result<String> {
    let client = postgres.client().await?;
    client
        .batch_execute(&format!(
            "begin; update ledger set what = 'changed {n}' where id = {n}; delete from ledger where id = {n} + 10;
             insert into ledger values ({n} + 10000, 'inserted {n}'); update documents set version = {n} where id = {n}"
        ))
        .await?;
    let row = client
        .query_one("select pg_current_xact_id()::xid::text", &[])
        .await?;
    client
        .batch_execute(&format!("prepare transaction '{n}'"))
        .await?;
    Ok(row.get(0))
}

async fn end(postgres: &Postgres, how: &str, n: i64) -> Result<()> {
    postgres.execute(&format!("{how} prepared '{n}'")).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_prepared_before_the_slot_or_between_chunks_comes_once_with_its_commit()
-> Result<()> {
    let mut shop = shop_with(&["max_prepared_transactions = 10"], 2_000, 200).await?;
    let before = prepare(&shop.postgres, 1).await?;
    deliver(&shop, 64, ", rows_per_second: 500").await?;
    until_slot_waits_for(&shop.postgres, &before).await?;
    let during = prepare(&shop.postgres, 2).await?;
    end(&shop.postgres, "commit", 1).await?;
    until_slot_waits_for(&shop.postgres, &during).await?;
    prepare(&shop.postgres, 3).await?;
    end(&shop.postgres, "commit", 2).await?;
    until_chunks_wait(&shop.postgres).await?;
    ensure_no_chunk(&events(&shop).await?)?;
    end(&shop.postgres, "commit", 3).await?;

    // Of rows that were read, and that were not.
    rows_done(&shop, 300).await?;
    for n in [4, 5, 1_904, 1_905] {
        prepare(&shop.postgres, n).await?;
    }
    rows_done(&shop, 500).await?;
    end(&shop.postgres, "commit", 4).await?;
    end(&shop.postgres, "commit", 1_904).await?;
    rows_done(&shop, 700).await?;
    shop.daemon.kill();
    shop.daemon.start().await?;
    until_chunks_wait(&shop.postgres).await?;
    end(&shop.postgres, "commit", 5).await?;
    end(&shop.postgres, "rollback", 1_905).await?;
    until_streaming(&shop).await?;

    let seen = events(&shop).await?;
    for n in [1, 2, 1_905] {
        let streamed = find(&seen, "insert", LEDGER, n + 10_000);
        ensure!(streamed.is_none(), "{n} is streamed at {streamed:?}");
    }
    for n in [3, 4, 5, 1_904] {
        offset_of(&seen, "insert", LEDGER, n + 10_000)?;
    }
    ensure_shop_equal(&shop).await
}
