//! Heartbeats: messages in the database's WAL, for a source whose tables nobody changes.
//!
//! The stream's keepalives move an idle source, so these are needed only where something between the server and us
//! swallows them, or where a monitor wants to see the slot move. They never show in the log: the decoder knows them by
//! their prefix.

use std::time::Duration;

use downriver_decode::postgres::decoder::HEARTBEAT_PREFIX;

use super::catalog::Catalog;
use crate::error::SourceError;

/// Writes one message at a time. Returns when one cannot be written.
pub async fn beat(catalog: &Catalog, every: Duration) -> SourceError {
    // Transactional: the stream of a version that has no messages still ends a transaction.
    let message = "select pg_logical_emit_message(true, $1, '')";
    loop {
        tokio::time::sleep(every).await;
        let written = catalog.client().execute(message, &[&HEARTBEAT_PREFIX]);
        if let Err(error) = written.await {
            return error.into();
        }
    }
}
