//! The slot: made, taken over, watched, dropped.

use std::time::{Duration, Instant};

use downriver_event::Lsn;
use downriver_event::problem::Problem;
use tokio_postgres::error::SqlState;

use super::catalog::{Catalog, parse_lsn};
use super::config::PostgresConfig;
use super::sql::{APPLICATION, literal};
use super::standby::{waits_for_primary, with_running_transactions};
use crate::error::SourceError;

/// How long the server may take to notice that a slot's reader is gone, before it is told, and in all.
const ASK_AFTER: Duration = Duration::from_secs(2);
const FREE_WITHIN: Duration = Duration::from_secs(15);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// A session of ours that has not been heard of for this long has nobody at its other end: one that is alive reports
/// at least every ten seconds.
const SILENT_AFTER: Duration = Duration::from_secs(30);
/// How long one attempt to make a slot may wait for the transactions that run. The server gives up by itself and
/// leaves nothing.
const CREATE_WITHIN: Duration = Duration::from_secs(30);
/// The first version whose slots follow a failover.
const FAILOVER_SINCE: i32 = 170_000;

/// A slot as the server shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SlotState {
    /// reserved, extended, unreserved or lost; empty while nothing is kept for it.
    pub wal_status: String,
    /// Bytes of WAL that the server keeps for it.
    pub retained_bytes: u64,
    /// Bytes that may be written before it can be lost; `None`: no limit.
    pub safe_bytes: Option<u64>,
    /// Why it is lost.
    pub invalidation_reason: Option<String>,
    pub conflicting: bool,
    /// Transactions since the oldest whose catalog rows are kept for it.
    pub catalog_xmin_age: u64,
    pub active: bool,
    /// How long nobody has read it, and may at most; both since version 17 and 18.
    pub idle: Option<Duration>,
    pub idle_max: Option<Duration>,
}

impl SlotState {
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.lost_because().is_some()
    }

    /// What makes it unusable, and what keeps the next one from it.
    pub(super) fn lost_because(&self) -> Option<(String, &'static str)> {
        let (why, advice) = match self.invalidation_reason.as_deref() {
            Some("wal_removed") => (
                "the server removed its WAL (max_slot_wal_keep_size)",
                "raise max_slot_wal_keep_size",
            ),
            Some("rows_removed") => (
                "the server removed catalog rows that it needs",
                "set hot_standby_feedback = on at the standby",
            ),
            Some("wal_level_insufficient") => (
                "wal_level was lowered",
                "set wal_level = logical and restart the server",
            ),
            Some("idle_timeout") => (
                "nobody read it for as long as idle_replication_slot_timeout allows",
                "raise idle_replication_slot_timeout above the time that the capture may stand still",
            ),
            Some(other) => {
                return Some((format!("the server says {other:?}"), "see the server's log"));
            }
            None if self.conflicting => (
                "it conflicted with the recovery of the standby",
                "set hot_standby_feedback = on at the standby, and wal_level = logical at its primary",
            ),
            None if self.wal_status == "lost" => {
                ("the server removed its WAL", "raise max_slot_wal_keep_size")
            }
            None => return None,
        };
        Some((why.to_owned(), advice))
    }

    /// What will become of it, before it does.
    #[must_use]
    pub fn warning(&self, slot: &str, wal_behind_max: Option<u64>) -> Option<Problem> {
        let mib = |bytes: u64| bytes >> 20;
        if let Some(max) = wal_behind_max.filter(|max| self.retained_bytes > *max) {
            return Some(Problem::new(
                "DR-1027",
                format!(
                    "the server keeps {} MiB of WAL for replication slot {slot:?}, more than max_wal_behind ({} MiB)",
                    mib(self.retained_bytes),
                    mib(max)
                ),
                "see in downriver status what holds the capture up, and for transactions that are open for long",
            ));
        }
        // Four fifths of what the slot may keep are used.
        let short = self
            .safe_bytes
            .is_some_and(|safe| safe < self.retained_bytes / 4);
        if self.wal_status == "unreserved" || short {
            return Some(Problem::new(
                "DR-1028",
                format!(
                    "replication slot {slot:?} is about to be lost: {} MiB of WAL are kept for it, {} MiB more may be written",
                    mib(self.retained_bytes),
                    mib(self.safe_bytes.unwrap_or_default())
                ),
                "raise max_slot_wal_keep_size and reload the server; see in downriver status what holds the capture up",
            ));
        }
        match (self.idle, self.idle_max) {
            (Some(idle), Some(max)) if idle > max / 2 => Some(Problem::new(
                "DR-1028",
                format!(
                    "replication slot {slot:?} was read by nobody for {} s; after {} s a checkpoint invalidates it",
                    idle.as_secs(),
                    max.as_secs()
                ),
                "mend what keeps the source from being captured, or raise idle_replication_slot_timeout",
            )),
            _ => None,
        }
    }
}

/// A slot that is there.
pub(super) struct Found {
    pub(super) state: SlotState,
    plugin: Option<String>,
    database: Option<String>,
    /// Kept by the standby for the time after a failover, and not to be read before.
    is_copy: bool,
    /// `None`: it is being made.
    pub(super) confirmed: Option<Lsn>,
}

/// What the server shows of the slot; `None`: it is not there.
pub(super) async fn find(
    catalog: &Catalog,
    config: &PostgresConfig,
) -> Result<Option<Found>, SourceError> {
    // Columns that came with later versions are read by name, as JSON.
    let query = "
        select case slot_type when 'logical' then plugin::text end, database::text, confirmed_flush_lsn::text,
               coalesce(wal_status, ''), safe_wal_size, active, age(catalog_xmin)::int8,
               (case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_lsn() end
                - restart_lsn)::int8,
               to_jsonb(s) ->> 'invalidation_reason', (to_jsonb(s) ->> 'conflicting')::bool,
               extract(epoch from clock_timestamp() - (to_jsonb(s) ->> 'inactive_since')::timestamptz)::float8,
               (select setting::int8 from pg_settings where name = 'idle_replication_slot_timeout'),
               (select unit from pg_settings where name = 'idle_replication_slot_timeout'),
               pg_is_in_recovery() and coalesce((to_jsonb(s) ->> 'synced')::bool, false)
          from pg_replication_slots s where slot_name = $1";
    let found = catalog.client().query_opt(query, &[&config.slot]).await?;
    let Some(row) = found else { return Ok(None) };
    let unsigned = |at| {
        let number: Option<i64> = row.get(at);
        number.and_then(|number| u64::try_from(number).ok())
    };
    let confirmed: Option<&str> = row.get(2);
    let idle: Option<f64> = row.get(10);
    let idle_max = unsigned(11).filter(|max| *max > 0).map(|max| {
        let minutes = row.get::<_, Option<&str>>(12) == Some("min");
        Duration::from_secs(if minutes { max * 60 } else { max })
    });
    let active = row.get(5);
    Ok(Some(Found {
        plugin: row.get(0),
        database: row.get(1),
        is_copy: row.get(13),
        confirmed: confirmed.map(parse_lsn).transpose()?,
        state: SlotState {
            wal_status: row.get(3),
            retained_bytes: unsigned(7).unwrap_or_default(),
            safe_bytes: unsigned(4),
            invalidation_reason: row.get(8),
            conflicting: row.get::<_, Option<bool>>(9) == Some(true),
            catalog_xmin_age: unsigned(6).unwrap_or_default(),
            active,
            idle: idle
                .filter(|idle| !active && *idle >= 0.0)
                .map(Duration::from_secs_f64),
            idle_max,
        },
    }))
}

/// The slot's state; `None`: it is not there.
///
/// # Errors
/// The query failed.
pub async fn state(
    catalog: &Catalog,
    config: &PostgresConfig,
) -> Result<Option<SlotState>, SourceError> {
    Ok(find(catalog, config).await?.map(|found| found.state))
}

impl Found {
    /// Refuses a slot that is something else's.
    pub(super) fn check_kind(&self, config: &PostgresConfig) -> Result<(), SourceError> {
        if self.is_copy {
            return Err(SourceError::definite(
                "DR-1024",
                format!(
                    "replication slot {:?} is the standby's copy of its primary's, which nobody can read before a failover",
                    config.slot
                ),
                "name another slot in the source (postgres.slot)",
            ));
        }
        if self.plugin.as_deref() == Some("pgoutput")
            && self.database.as_deref() == Some(&config.database)
        {
            return Ok(());
        }
        Err(SourceError::definite(
            "DR-1024",
            format!(
                "replication slot {:?} is not a pgoutput slot of database {}",
                config.slot, config.database
            ),
            "name another slot in the source, or drop this one",
        ))
    }
}

/// Refuses while no slot is free: before anything was made.
pub(super) async fn check_room(catalog: &Catalog) -> Result<(), SourceError> {
    let query = "select current_setting('max_replication_slots')::int8 > count(*) from pg_replication_slots";
    if catalog.client().query_one(query, &[]).await?.get(0) {
        return Ok(());
    }
    Err(SourceError::transient(
        "DR-1011",
        "every replication slot of the server is taken",
        "drop a slot that nobody uses, or raise max_replication_slots and restart the server",
    ))
}

/// Makes the slot, and returns its consistent point.
pub(super) async fn create(catalog: &Catalog, config: &PostgresConfig) -> Result<Lsn, SourceError> {
    let client = catalog.client();
    let version: i32 = client
        .query_one("select current_setting('server_version_num')::int4", &[])
        .await?
        .get(0);
    let is_standby = catalog.is_standby().await?;
    let more = if config.failover && !is_standby && version >= FAILOVER_SINCE {
        ", failover => true"
    } else {
        ""
    };
    let limit = format!("set statement_timeout = {}", CREATE_WITHIN.as_millis());
    client.batch_execute(&limit).await?;
    let query = format!(
        "select lsn::text from pg_create_logical_replication_slot({}, 'pgoutput'{more})",
        literal(&config.slot)
    );
    let creating = client.query_one(&query, &[]);
    let too_long = || waits_for_primary(config, &format!("replication slot {:?}", config.slot));
    let created = if is_standby {
        let created = with_running_transactions(config, creating).await;
        created.ok_or_else(too_long)?
    } else {
        creating.await
    };
    let unlimited = client.batch_execute("set statement_timeout = 0").await;
    match created {
        Ok(row) => {
            unlimited?;
            parse_lsn(row.get(0))
        }
        Err(error) if error.code() == Some(&SqlState::QUERY_CANCELED) && is_standby => {
            Err(too_long())
        }
        Err(error) if error.code() == Some(&SqlState::QUERY_CANCELED) => {
            Err(waits_for_transactions(catalog, config).await?)
        }
        Err(error) => Err(error.into()),
    }
}

async fn waits_for_transactions(
    catalog: &Catalog,
    config: &PostgresConfig,
) -> Result<SourceError, SourceError> {
    let query = "
        select coalesce(string_agg(distinct coalesce('pid ' || pid, 'a prepared one'), ', '), 'none that still runs')
          from pg_locks where locktype = 'transactionid' and mode = 'ExclusiveLock' and granted";
    let row = catalog.client().query_one(query, &[]).await?;
    Ok(SourceError::transient(
        "DR-1013",
        format!(
            "replication slot {:?} could not be made within {} s: the server waits for transactions to end ({})",
            config.slot,
            CREATE_WITHIN.as_secs(),
            row.get::<_, String>(0)
        ),
        "end the transactions that are open for long; it is tried again by itself",
    ))
}

/// Somebody else's session makes the slot, and it has no position yet.
pub(super) async fn in_the_making(
    catalog: &Catalog,
    config: &PostgresConfig,
) -> Result<SourceError, SourceError> {
    let by = match holder(catalog, config).await? {
        Some(Some(holder)) => format!("pid {} ({})", holder.pid, holder.name),
        _ => "a session that has just ended".to_owned(),
    };
    Ok(SourceError::transient(
        "DR-1013",
        format!(
            "replication slot {:?} has no position yet: {by} is still making it",
            config.slot
        ),
        "end the transactions that are open for long, or the session that makes the slot; it is tried again by itself",
    ))
}

/// Who reads a slot.
struct Holder {
    pid: i32,
    /// A session of ours, of this process or another.
    is_ours: bool,
    /// Of whoever captured the same source before.
    is_former: bool,
    name: String,
    /// How long it has not been heard of.
    silent: Option<Duration>,
}

/// `None`: the slot is not there. `Some(None)`: nobody reads it.
async fn holder(
    catalog: &Catalog,
    config: &PostgresConfig,
) -> Result<Option<Option<Holder>>, SourceError> {
    let query = "
        select s.active_pid, split_part(a.application_name, ' ', 1) = $2 and a.usename = current_user,
               coalesce(a.application_name, '') || coalesce(' from ' || host(a.client_addr), ''),
               extract(epoch from clock_timestamp() - coalesce(r.reply_time, r.backend_start))::float8,
               a.application_name = $3 and a.usename = current_user
          from pg_replication_slots s
               left join pg_stat_activity a on a.pid = s.active_pid
               left join pg_stat_replication r on r.pid = s.active_pid
         where s.slot_name = $1";
    let row = catalog
        .client()
        .query_opt(query, &[&config.slot, &APPLICATION, &config.session])
        .await?;
    Ok(row.map(|row| {
        Some(Holder {
            pid: row.get::<_, Option<i32>>(0)?,
            is_ours: row.get::<_, Option<bool>>(1) == Some(true),
            is_former: row.get::<_, Option<bool>>(4) == Some(true) && config.session != APPLICATION,
            name: row.get::<_, Option<String>>(2).unwrap_or_default(),
            silent: row
                .get::<_, Option<f64>>(3)
                .filter(|seconds| *seconds >= 0.0)
                .map(Duration::from_secs_f64),
        })
    }))
}

fn in_use(config: &PostgresConfig, holder: &Holder) -> SourceError {
    SourceError::transient(
        "DR-1012",
        format!(
            "replication slot {:?} is read by pid {} ({})",
            config.slot, holder.pid, holder.name
        ),
        "stop that client, or give the source a slot of its own; capture goes on by itself",
    )
}

/// Returns when nobody reads the slot. The session of whoever captured the source before is ended, and one of ours that
/// was left behind and is silent; anybody else's is not.
pub(super) async fn take_over(
    catalog: &Catalog,
    config: &PostgresConfig,
) -> Result<(), SourceError> {
    let began = Instant::now();
    let mut ended = None;
    loop {
        let Some(Some(holder)) = holder(catalog, config).await? else {
            return Ok(());
        };
        let silent = holder.silent.is_some_and(|silent| silent > SILENT_AFTER);
        let is_left = holder.is_former || holder.is_ours && silent;
        if is_left && ended != Some(holder.pid) {
            ended = Some(holder.pid);
            tracing::info!(
                slot = config.slot,
                pid = holder.pid,
                "ending a session of ours that was left behind"
            );
            let end = "select pg_terminate_backend($1)";
            catalog.client().execute(end, &[&holder.pid]).await?;
        } else if began.elapsed() >= ASK_AFTER {
            return Err(in_use(config, &holder));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Drops the slot if it is there. A walsender notices the end of its connection when it next waits or sends, so the
/// slot may stay active for a while after its reader is gone: it is given that time, and a session of ours that the
/// server still believes in is ended.
///
/// # Errors
/// A query failed, or somebody else reads the slot.
pub(super) async fn drop(catalog: &Catalog, config: &PostgresConfig) -> Result<(), SourceError> {
    let client = catalog.client();
    let began = Instant::now();
    let mut ended = false;
    loop {
        let Some(holder) = holder(catalog, config).await? else {
            return Ok(());
        };
        let waited = began.elapsed();
        match holder {
            None => {
                let dropped = client
                    .execute("select pg_drop_replication_slot($1)", &[&config.slot])
                    .await;
                let is = |error: &tokio_postgres::Error, state| error.code() == Some(&state);
                match dropped {
                    Ok(_) => return Ok(()),
                    Err(error) if is(&error, SqlState::UNDEFINED_OBJECT) => return Ok(()),
                    // Somebody took it between the two statements.
                    Err(error) if is(&error, SqlState::OBJECT_IN_USE) && waited < FREE_WITHIN => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Some(holder) if waited >= FREE_WITHIN => {
                return Err(SourceError::definite(
                    "DR-1012",
                    format!(
                        "replication slot {:?} cannot be dropped: pid {} ({}) still reads it",
                        config.slot, holder.pid, holder.name
                    ),
                    format!(
                        "stop that client; then select pg_drop_replication_slot({})",
                        literal(&config.slot)
                    ),
                ));
            }
            Some(holder) => {
                if holder.is_ours && !ended && waited >= ASK_AFTER {
                    ended = true;
                    client
                        .execute("select pg_terminate_backend($1)", &[&holder.pid])
                        .await?;
                }
            }
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Gives the slot up if more WAL than this is kept for it. Whether it was.
///
/// # Errors
/// A query failed, or somebody else reads the slot.
pub async fn give_up(config: &PostgresConfig, retained_max: u64) -> Result<bool, SourceError> {
    let catalog = Catalog::connect(config).await?;
    let state = state(&catalog, config).await?;
    if state.is_none_or(|state| state.retained_bytes <= retained_max) {
        return Ok(false);
    }
    drop(&catalog, config).await?;
    Ok(true)
}
