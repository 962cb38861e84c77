//! Commits at a steady rate, of one row each, and when they were made.

use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::Result;
use tokio_postgres::Client;

use super::super::rows::{Rows, push_insert};

pub(super) const PER_SECOND: u32 = 100;

/// A transaction that inserts the row of this id.
#[derive(Clone, Copy, Debug)]
pub(super) struct Commit {
    pub(super) id: u64,
    /// Before COMMIT was sent.
    pub(super) sent: Instant,
    /// When it had returned.
    pub(super) returned: Instant,
}

/// Commits each row in its turn, and one that comes late at once: the rate holds.
pub(super) async fn write(
    client: &Client,
    table: &str,
    rows: &mut Rows,
    ids: Range<u64>,
) -> Result<Vec<Commit>> {
    let mut turns = tokio::time::interval(Duration::from_secs(1) / PER_SECOND);
    let (mut commits, mut sql) = (Vec::new(), String::new());
    for id in ids {
        sql.clear();
        sql.push_str("begin;");
        push_insert(&mut sql, table, id, 1, rows);
        client.batch_execute(&sql).await?;
        turns.tick().await;
        let sent = Instant::now();
        client.batch_execute("commit").await?;
        let returned = Instant::now();
        commits.push(Commit { id, sent, returned });
    }
    Ok(commits)
}
