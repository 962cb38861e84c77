//! Chunks that were read before a `truncate` and join the stream behind it.

use anyhow::{Result, ensure};
use downriver_testkit::readers::{self, Lake};
use downriver_testkit::{host, resources};
use e2e::CATCH_UP;
use e2e::log::events;

use super::{
    DOCUMENTS, LEDGER, Open, prepare_slot, shop_with, tell_shapes, until_chunks_wait,
    until_streaming,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_chunks_read_before_a_truncate_does_not_come_behind_it() -> Result<()> {
    let shop = shop_with(&[], 1_000, 300).await?;
    prepare_slot(&shop.postgres).await?;
    let gate = Open::begin(&shop.postgres, "").await?;
    // One worker each.
    let source = resources::source(
        &shop.postgres,
        &[LEDGER, DOCUMENTS],
        &["snapshot: { mode: initial, chunk_rows: 64, max_workers: 2 }"],
    );
    let sink = resources::sink_in_folder(&shop.folder.path().join("lake"));
    shop.daemon
        .apply(&(source + &sink + &resources::pipeline("1s")))
        .await?;
    until_chunks_wait(&shop.postgres).await?;
    tell_shapes(&shop).await?;

    // Nothing is sent, so chunks of both tables are read and held: the truncates' commits are the first ends behind them.
    let walsender = shop.walsender().await?;
    host::signal(walsender, "STOP");
    gate.commit().await?;
    let has_read = "select count(*) from pg_stat_activity
                     where application_name = 'downriver' and state = 'idle' and query like 'select case when pg_is_in_recovery()%'";
    host::until("chunks of both tables to be read", CATCH_UP, async || {
        Ok(shop.postgres.number(has_read).await? >= 2)
    })
    .await?;
    for change in [
        "truncate ledger, documents",
        "insert into ledger values (2, 'behind it'), (2000, 'new'); insert into documents values (3, 1, 'behind it', null)",
        // What one transaction writes before and behind its own.
        "begin; insert into ledger values (5, 'before it'), (6, 'before it'); update ledger set what = 'before it' where id = 2;
         truncate ledger; insert into ledger values (6, 'last'), (7, 'last'); update ledger set id = 8 where id = 7; commit",
    ] {
        shop.postgres.execute(change).await?;
    }
    host::signal(walsender, "CONT");
    until_streaming(&shop).await?;

    let seen = events(&shop).await?;
    let truncate = seen.iter().position(|event| event["op"] == "truncate");
    let behind = &seen[truncate.unwrap_or(seen.len())..];
    ensure!(!behind.is_empty(), "no truncate is in the log");
    let stale = behind.iter().find(|event| {
        event["op"] == "snapshot"
            && (event["table"] == LEDGER || event["table"] == DOCUMENTS)
            && !["behind it", "new", "last"]
                .iter()
                .any(|new| event["after"]["what"] == *new || event["after"]["body"] == *new)
    });
    ensure!(
        stale.is_none(),
        "a row that was truncated follows: {stale:?}"
    );
    shop.daemon.wait(CATCH_UP).await?;
    let lake = Lake::builtin(&shop.daemon)?;
    readers::ensure_equal(&shop.postgres, &lake, &[LEDGER, DOCUMENTS]).await
}
