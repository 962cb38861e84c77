//! What is another on a standby than on a primary: which one may be captured from, what is visible there, and what its
//! primary has to do.
//!
//! A standby makes commits visible one after another, in the order of the WAL, as it replays their records
//! (`xact_redo_commit` in PostgreSQL's source), and its walsenders send only what was replayed. So a snapshot there sees
//! a prefix of the stream: of a transaction it is enough to know where its commit ends, and none is ever sent before it
//! is visible. Which transactions run on the primary a standby does not show; that everything is over which ran at some
//! moment is told by a slot's consistent point instead, for which the primary has to write down what runs there
//! (`pg_log_standby_snapshot`, and now and then by itself while it is written to).
//!
//! A crash may take a standby back to before what it had sent: it answers as soon as its data is consistent.

use std::convert::Infallible;
use std::time::Duration;

use downriver_event::Lsn;

use super::catalog::{Catalog, parse_lsn};
use super::config::PostgresConfig;
use super::cut::ConsistentPoint;
use super::identity::{Identity, identify};
use super::replication::Session;
use super::sql;
use crate::error::SourceError;

/// The first version that decodes on a standby.
const CAPTURED_SINCE: i32 = 160_000;
/// How long what waits for the primary to write down its running transactions may take.
pub(super) const RUNNING_WITHIN: Duration = Duration::from_secs(30);
/// A primary that the url names is asked for it so often.
const ASK_EVERY: Duration = Duration::from_secs(1);
const LOOK_EVERY: Duration = Duration::from_millis(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Primary,
    Standby,
}

/// Refuses a standby that cannot be captured from, or where a primary was meant.
pub(super) async fn check_role(catalog: &Catalog) -> Result<Role, SourceError> {
    let query = "select pg_is_in_recovery(), current_setting('server_version_num')::int4,
                        current_setting('server_version')";
    let row = catalog.client().query_one(query, &[]).await?;
    if !row.get::<_, bool>(0) {
        return Ok(Role::Primary);
    }
    let name_primary = "name the primary in the url, or every server of the cluster: postgres://user@one:5432,two:5432/database";
    if row.get::<_, i32>(1) < CAPTURED_SINCE {
        let version: &str = row.get(2);
        return Err(SourceError::transient(
            "DR-1014",
            format!(
                "the server is a standby of version {version}, and standbys can be captured from version 16 on"
            ),
            name_primary,
        ));
    }
    if !catalog.config().target.may_be_standby() {
        return Err(SourceError::transient(
            "DR-1014",
            "the server is a standby, and the url does not say that one may be captured",
            format!(
                "{name_primary}; or let the url end in ?target_session_attrs=standby to capture from the standby itself"
            ),
        ));
    }
    Ok(Role::Standby)
}

impl Catalog {
    pub(super) async fn is_standby(&self) -> Result<bool, SourceError> {
        let query = "select pg_is_in_recovery()";
        Ok(self.client().query_one(query, &[]).await?.get(0))
    }

    /// Up to where everything is visible to the next snapshot; `None`: the server is a primary, and no position tells.
    pub(super) async fn replayed(&self) -> Result<Option<Lsn>, SourceError> {
        let query = "select case when pg_is_in_recovery() then pg_last_wal_replay_lsn()::text end";
        let row = self.client().query_one(query, &[]).await?;
        let position: Option<&str> = row.get(0);
        position.map(parse_lsn).transpose()
    }

    /// A position at or behind the end of every commit that a snapshot sees which was taken before the call.
    ///
    /// On a standby a commit shows a moment before its record counts as replayed. So this is a position that was
    /// reached after the one of the call, or at which nothing is being replayed: all that the standby has
    /// received is, or replay is paused.
    pub(super) async fn passed_position(&self) -> Result<Lsn, SourceError> {
        // In this order: what shows that nothing is being replayed counts for the position only if it was so before
        // the position was read, for a pause, or was looked at after it, for what was received.
        let query = "
            select pg_get_wal_replay_pause_state() = 'paused', pg_last_wal_replay_lsn()::text,
                   pg_last_wal_receive_lsn()::text, exists(select from pg_stat_wal_receiver)
             where pg_is_in_recovery()";
        let mut first = None;
        loop {
            // Version 13 does not know what is asked of a standby.
            if !self.is_standby().await? {
                return self.current_position().await;
            }
            let Some(row) = self.client().query_opt(query, &[]).await? else {
                continue;
            };
            let (paused, streams): (bool, bool) = (row.get(0), row.get(3));
            let replayed = parse_lsn(row.get(1))?;
            let received: Option<&str> = row.get(2);
            let received = received.map(parse_lsn).transpose()?;
            let all_replayed = streams && received.is_some_and(|received| received <= replayed);
            if paused || all_replayed || replayed > *first.get_or_insert(replayed) {
                return Ok(replayed);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

/// Returns when a standby has replayed up to a position that it has sent already; at once on a primary.
///
/// # Errors
/// A query failed.
pub async fn until_replayed(config: &PostgresConfig, position: Lsn) -> Result<(), SourceError> {
    let catalog = Catalog::connect(config).await?;
    while catalog
        .replayed()
        .await?
        .is_some_and(|replayed| replayed < position)
    {
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(())
}

/// Returns when every transaction is over, and replayed, that ran on a standby's primary at the call; `false`, and at
/// once, on a primary.
///
/// # Errors
/// The primary does not tell in time, or a query failed.
pub async fn old_transactions_gone(config: &PostgresConfig) -> Result<bool, SourceError> {
    if !Catalog::connect(config).await?.is_standby().await? {
        return Ok(false);
    }
    ConsistentPoint::find(config).await?;
    Ok(true)
}

/// Does what waits for the primary to write down its running transactions; a primary that the url names is asked to.
/// `None`: it took too long.
pub(super) async fn with_running_transactions<T>(
    config: &PostgresConfig,
    waiting: impl Future<Output = T>,
) -> Option<T> {
    tokio::select! {
        biased;
        done = waiting => Some(done),
        () = tokio::time::sleep(RUNNING_WITHIN) => None,
        never = ask_primary(config) => match never {},
    }
}

async fn ask_primary(config: &PostgresConfig) -> Infallible {
    loop {
        tokio::time::sleep(ASK_EVERY).await;
        for (host, port) in &config.cluster {
            let Ok(client) = sql::open(&config.at(host, *port), &[]).await else {
                continue;
            };
            let ask = "select pg_log_standby_snapshot() where not pg_is_in_recovery()";
            if let Err(error) = client.execute(ask, &[]).await {
                tracing::debug!(host, error = %error, "the primary is not asked for its running transactions");
            }
        }
    }
}

pub(super) fn waits_for_primary(config: &PostgresConfig, what: &str) -> SourceError {
    SourceError::transient(
        "DR-1013",
        format!(
            "{what} could not be made on the standby within {} s: it begins where the primary writes down which transactions run, and no such record came, or they did not end",
            RUNNING_WITHIN.as_secs()
        ),
        format!(
            "on the primary: select pg_log_standby_snapshot(); and end the transactions that are open for long. A primary that the url names is asked by itself after: grant execute on function pg_log_standby_snapshot() to {}. It is tried again by itself",
            sql::identifier(&config.user)
        ),
    )
}

/// Notices that a standby was promoted, or follows a server that was: its log is then another history from where that
/// happened on, and the identity that goes with the source's positions has to say so before one behind it is stored.
pub struct TimelineGuard {
    session: Session,
    timeline: u32,
}

impl TimelineGuard {
    /// `None` if nothing is known of the identity's timeline.
    ///
    /// # Errors
    /// The server has no walsender left, or cannot be reached.
    pub async fn connect(
        config: &PostgresConfig,
        identity: &Identity,
    ) -> Result<Option<Self>, SourceError> {
        let Some(timeline) = identity.timeline() else {
            return Ok(None);
        };
        let session = Session::connect(config).await?;
        Ok(Some(Self { session, timeline }))
    }

    /// Whether everything that was sent before the call is of the timeline.
    ///
    /// # Errors
    /// The server does not answer.
    pub async fn holds(&mut self) -> Result<bool, SourceError> {
        Ok(identify(&mut self.session).await?.timeline == self.timeline)
    }
}
