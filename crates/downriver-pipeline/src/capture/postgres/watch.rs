//! Looks at the slot all the time, also while the capture stands still: what the server keeps for it, and what will
//! become of it.

use std::convert::Infallible;
use std::time::Duration;

use downriver_source::SourceError;
use downriver_source::postgres::catalog::Catalog;
use downriver_source::postgres::slot;
use tokio::sync::Notify;

use super::PostgresSource;
use crate::retry::Backoff;
use crate::status::{Board, SourceStatus};

const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Never returns. `over` is told when the slot is to be given up.
pub(in super::super) async fn watch(
    name: &str,
    source: &PostgresSource,
    status: &Board<SourceStatus>,
    over: &Notify,
) {
    let mut backoff = Backoff::new();
    loop {
        let Err(error) = look(name, source, status, over).await;
        // What keeps the database from being reached is the capture's to say.
        tracing::debug!(source = name, error = %error, "the slot cannot be looked at");
        status.update(|s| s.slot = None);
        backoff.wait().await;
    }
}

async fn look(
    name: &str,
    source: &PostgresSource,
    status: &Board<SourceStatus>,
    over: &Notify,
) -> Result<Infallible, SourceError> {
    let catalog = Catalog::connect(&source.connection).await?;
    loop {
        let state = slot::state(&catalog, &source.connection).await?;
        let max = source.wal_behind.max_bytes;
        let warning = state
            .as_ref()
            .filter(|state| !state.is_lost())
            .and_then(|state| state.warning(&source.connection.slot, max));
        if let Some(warning) = &warning
            && status.get().warning.as_ref().map(|w| w.code) != Some(warning.code)
        {
            tracing::warn!(source = name, code = warning.code, "{}", warning.reason);
        }
        let retained = state.as_ref().map_or(0, |state| state.retained_bytes);
        if source.wal_behind.drop_slot && max.is_some_and(|max| retained > max) {
            over.notify_one();
        }
        status.update(|s| {
            s.slot = state;
            s.warning = warning;
        });
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
