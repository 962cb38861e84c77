//! Looks at the server's binlog all the time, also while the capture stands still: what of it is not captured yet, and how
//! long the server keeps it.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use downriver_log::Log;
use downriver_source::SourceError;
use downriver_source::mysql::behind::{BinlogState, BinlogWatch};

use super::{MysqlSource, captured};
use crate::retry::Backoff;
use crate::status::{BinlogStatus, Board, SourceStatus};

const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Never returns.
pub(in super::super) async fn watch(
    name: &str,
    source: &MysqlSource,
    log: &Arc<dyn Log>,
    status: &Board<SourceStatus>,
) {
    let mut backoff = Backoff::new();
    loop {
        let Err(error) = look(name, source, log, status).await;
        // What keeps the database from being reached is the capture's to say.
        tracing::debug!(source = name, error = %error, "the binlog cannot be looked at");
        status.update(|s| s.binlog = None);
        backoff.wait().await;
    }
}

async fn look(
    name: &str,
    source: &MysqlSource,
    log: &Arc<dyn Log>,
    status: &Board<SourceStatus>,
) -> Result<Infallible, SourceError> {
    let mut binlog = BinlogWatch::connect(&source.connection).await?;
    let mut passed_s = None;
    loop {
        // Without a position in the log nothing is kept for it.
        if let Ok(Some(mut captured)) = captured(name, log.state(name).as_deref()) {
            // An idle source's goes on, and is stored now and then only.
            if let Some(passed) = status.get().passed
                && passed.covers(&captured.position)
            {
                captured.position = passed;
            }
            let state = binlog.look(&captured).await?;
            tell(name, source, state, status, &mut passed_s);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// `passed_s`: when everything was captured last, by the server's clock.
fn tell(
    name: &str,
    source: &MysqlSource,
    state: BinlogState,
    status: &Board<SourceStatus>,
    passed_s: &mut Option<u64>,
) {
    let warning = state.warning(source.binlog_warn);
    let before = status.get();
    if let Some(warning) = &warning
        && before.warning.as_ref().map(|w| w.code) != Some(warning.code)
    {
        tracing::warn!(source = name, code = warning.code, "{}", warning.reason);
    }
    // The capture went on while the server was asked. A place of another server says nothing.
    let passed = before.passed.filter(|_| state.behind_bytes.is_some());
    let is_passed = passed.is_some_and(|passed| state.is_passed(&passed));
    if is_passed {
        *passed_s = Some(state.now_s);
    }
    // What came last may be old when an idle server writes again: but all of before was captured then.
    let since = passed_s.map(|passed_s| Duration::from_secs(state.now_s.saturating_sub(passed_s)));
    let age = before.committed_us.map(|us| age(state.now_s, us));
    let behind = match (since, age) {
        (Some(since), Some(age)) => Some(since.min(age)),
        (since, age) => since.or(age),
    };
    status.update(|s| {
        s.binlog = Some(BinlogStatus {
            behind,
            behind_bytes: match is_passed {
                true => Some(0),
                false => state.behind_bytes,
            },
            kept_bytes: state.kept_bytes,
            safe: state.safe,
            safe_bytes: state.safe_bytes,
        });
        s.warning = warning;
    });
}

/// Of a commit, by the server's own clock.
fn age(now_s: u64, committed_us: i64) -> Duration {
    let committed = Duration::from_micros(u64::try_from(committed_us).unwrap_or_default());
    Duration::from_secs(now_s).saturating_sub(committed)
}
