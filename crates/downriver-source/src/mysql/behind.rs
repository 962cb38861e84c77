//! What a server's binlog has behind a position, and for how long it keeps it.
//!
//! ```text
//!   oldest file        ours          the next          newest
//!   |------------|------o-----|--------------------|----------|
//!                       '------ behind ----------------------'
//! ```
//!
//! A server drops files by the time at which they were written last, which is when the next one begins. The newest is
//! never dropped, nor, while we read it, the one that we read.

use std::time::Duration;

use downriver_decode::mysql::FIRST_EVENT;
use downriver_decode::mysql::event::Kind;
use downriver_event::problem::Problem;
use downriver_event::{BinlogPlace, SourcePosition};
use mysql_async::prelude::Queryable as _;
use mysql_async::{Conn, Row};

use super::config::MysqlConfig;
use super::dump::BinlogStream;
use super::identity::Identity;
use super::server::{Flavor, Server, unreadable};
use super::setup::{Captured, has_what_follows};
use super::sql::{connect, number};
use crate::error::SourceError;

/// What is to be left at least before it is said, unless the source says otherwise: but half of what the server keeps.
const WARN_DEFAULT: Duration = Duration::from_secs(6 * 3600);
/// Where an event's type is, behind the time at which it was written.
const KIND_AT: usize = 4;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BinlogState {
    /// Where it ended.
    pub end: BinlogPlace,
    /// The server's clock, in seconds since 1970.
    pub now_s: u64,
    /// Bytes that follow the position; `None`: nobody knows where in this server's binlog the position is.
    pub behind_bytes: Option<u64>,
    /// Bytes of all files.
    pub kept_bytes: u64,
    /// After so long the server may drop what follows the position; `None`: not by age, or not known.
    pub safe: Option<Duration>,
    /// After so many more bytes; `None`: not by size, or not known.
    pub safe_bytes: Option<u64>,
    /// How long the server keeps a file; `None`: not by age.
    pub expires: Option<Duration>,
    /// What follows the position is not there any more.
    pub is_gone: bool,
}

/// Looks at one server's binlog again and again.
pub struct BinlogWatch {
    config: MysqlConfig,
    session: Conn,
    /// A file of the binlog, and when it was begun.
    begun: Option<(String, u64)>,
}

impl BinlogWatch {
    /// # Errors
    /// The server cannot be reached, or refuses.
    pub async fn connect(config: &MysqlConfig) -> Result<Self, SourceError> {
        Ok(Self {
            config: config.clone(),
            session: connect(config).await?,
            begun: None,
        })
    }

    /// # Errors
    /// The server cannot be reached, or writes no binlog.
    pub async fn look(&mut self, captured: &Captured) -> Result<BinlogState, SourceError> {
        let server = Server::look(&mut self.session).await?;
        let end = server.place(&mut self.session).await?;
        let files = server.files(&mut self.session).await?;
        let row: Option<Row> = self.session.query_first("select unix_timestamp()").await?;
        let now_s = row.and_then(|row| number(&row, 0));
        let now_s = now_s.ok_or_else(|| unreadable("unix_timestamp()", ""))?;
        let expires = server.binlog_expires_s.map(Duration::from_secs);
        let is_gone = is_gone(&mut self.session, &server, &files, captured).await?;
        let place = captured.position.place();
        let is_its = Identity::of(&server) == captured.identity;
        let place = place.filter(|_| is_its && !is_gone);
        let ours = place.and_then(|place| files.iter().position(|file| file.file == place.file));
        let kept = |files: &[BinlogPlace]| files.iter().map(|file| file.position).sum::<u64>();
        let behind = ours.zip(place).map(|(ours, place)| Behind {
            bytes: kept(&files[ours..]).saturating_sub(place.position),
            of_files: kept(&files[ours..]),
            next: files.get(ours + 1),
        });
        let safe = match (&behind, expires) {
            (Some(behind), Some(expires)) => Some(match behind.next {
                // It is dropped after it has ended, and so much later.
                None => expires,
                Some(next) => {
                    let ended = Duration::from_secs(self.begun(&server, &next.file).await?);
                    (ended + expires).saturating_sub(Duration::from_secs(now_s))
                }
            }),
            _ => None,
        };
        let safe_bytes = server.binlog_bytes_max.zip(behind.as_ref());
        Ok(BinlogState {
            end,
            now_s,
            behind_bytes: behind.as_ref().map(|behind| behind.bytes),
            kept_bytes: kept(&files),
            safe: if is_gone { Some(Duration::ZERO) } else { safe },
            safe_bytes: safe_bytes.map(|(max, behind)| max.saturating_sub(behind.of_files)),
            expires,
            is_gone,
        })
    }

    /// When a file was begun, by its first event.
    async fn begun(&mut self, server: &Server, file: &str) -> Result<u64, SourceError> {
        if let Some((known, begun)) = &self.begun
            && known == file
        {
            return Ok(*begun);
        }
        let start = server.position_at(BinlogPlace {
            file: file.to_owned(),
            position: FIRST_EVENT,
        });
        let mut stream = BinlogStream::start(&self.config.beside(), &start).await?;
        loop {
            let Some(event) = stream.pop()? else {
                stream.fill().await?;
                continue;
            };
            if event.get(KIND_AT) == Some(&Kind::FORMAT_DESCRIPTION.0)
                && let Some(time) = event.first_chunk()
            {
                let begun = u64::from(u32::from_le_bytes(*time));
                self.begun = Some((file.to_owned(), begun));
                return Ok(begun);
            }
        }
    }
}

/// Where a position lies in the binlog.
struct Behind<'a> {
    bytes: u64,
    /// Of whole files: the server drops no parts.
    of_files: u64,
    next: Option<&'a BinlogPlace>,
}

async fn is_gone(
    session: &mut Conn,
    server: &Server,
    files: &[BinlogPlace],
    captured: &Captured,
) -> Result<bool, SourceError> {
    let ours = &captured.position;
    if !ours.is_place_only() {
        // Without identifiers nobody knows.
        let is_known = server.flavor == Flavor::Mariadb || server.has_gtids();
        let purged = server.purged_before(session, files.first()).await?;
        return Ok(is_known && !has_what_follows(ours, &purged));
    }
    let is_its = Identity::of(server) == captured.identity;
    let place = ours.place().filter(|_| is_its);
    Ok(place.is_some_and(|place| {
        let is_there = files.iter().any(|file| file.file == place.file);
        !is_there && files.first().is_some_and(|first| first.covers(place))
    }))
}

impl BinlogState {
    /// Whether everything that was there then is covered.
    #[must_use]
    pub fn is_passed(&self, position: &SourcePosition) -> bool {
        let place = position.place();
        place.is_some_and(|place| place.covers(&self.end))
    }

    /// What will become of what follows the position, before it does; and that the server keeps too little of its binlog.
    /// `warn`: what is to be left at least.
    #[must_use]
    pub fn warning(&self, warn: Option<Duration>) -> Option<Problem> {
        let kept = self.expires.zip(warn);
        let kept = kept.and_then(|(expires, warn)| kept_too_short(expires, warn));
        match (self.nearly_purged(warn), kept) {
            (Some(purged), Some(kept)) => Some(Problem {
                reason: format!("{}; and {} ({})", purged.reason, kept.reason, kept.code),
                ..purged
            }),
            (purged, kept) => purged.or(kept),
        }
    }

    fn nearly_purged(&self, warn: Option<Duration>) -> Option<Problem> {
        const KEEP: &str = "see in downriver status what holds the capture up, and let the server keep its binlog for longer (binlog_expire_logs_seconds)";
        let mib = |bytes: u64| bytes >> 20;
        if self.is_gone {
            return Some(Problem::new(
                "DR-1097",
                "the server has purged what follows the source's position from its binlog: a hole, as soon as the source goes on",
                "let the server keep its binlog for longer (binlog_expire_logs_seconds), then: downriver resnapshot PIPELINE",
            ));
        }
        let half = self.expires.map(|expires| expires / 2);
        let budget = match warn {
            // More than the server ever keeps is never left.
            Some(warn) if self.expires.is_some_and(|expires| expires < warn) => half,
            warn => warn,
        };
        let budget = budget.unwrap_or_else(|| half.unwrap_or(WARN_DEFAULT).min(WARN_DEFAULT));
        let behind = mib(self.behind_bytes.unwrap_or_default());
        if let Some(safe) = self.safe.filter(|safe| *safe < budget) {
            return Some(Problem::new(
                "DR-1097",
                format!(
                    "the server may purge what follows the source's position from its binlog in {} min: {behind} MiB are not captured yet",
                    safe.as_secs() / 60
                ),
                KEEP,
            ));
        }
        // Four fifths of what the server keeps of its binlog are behind.
        let safe = self.safe_bytes?;
        (safe < self.behind_bytes.unwrap_or_default() / 4).then(|| {
            Problem::new(
                "DR-1097",
                format!(
                    "the server may purge what follows the source's position from its binlog after {} MiB more: {behind} MiB are not captured yet",
                    mib(safe)
                ),
                "see in downriver status what holds the capture up, and let the server keep more of its binlog (max_binlog_total_size)",
            )
        })
    }
}

/// The server keeps its binlog for less than is to be left of it at least.
pub(super) fn kept_too_short(expires: Duration, warn: Duration) -> Option<Problem> {
    (expires < warn).then(|| {
        Problem::new(
            "DR-1099",
            format!(
                "the server keeps its binlog for {} s, less than binlog_retention.warn ({} s): a capture that stands still for so long has a hole",
                expires.as_secs(),
                warn.as_secs()
            ),
            "raise binlog_expire_logs_seconds (MariaDB before 10.6: expire_logs_days), or lower binlog_retention.warn",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn state() -> BinlogState {
        BinlogState {
            end: BinlogPlace {
                file: "binlog.000007".into(),
                position: 900,
            },
            now_s: 1_000_000,
            behind_bytes: Some(0),
            kept_bytes: 1 << 30,
            safe: Some(30 * 24 * HOUR),
            safe_bytes: None,
            expires: Some(30 * 24 * HOUR),
            is_gone: false,
        }
    }

    fn code(state: &BinlogState, warn: Option<Duration>) -> Option<&'static str> {
        state.warning(warn).map(|problem| problem.code)
    }

    #[test]
    fn little_that_is_left_is_said_and_nothing_else() {
        assert_eq!(code(&state(), None), None);
        let left = |safe| BinlogState {
            safe: Some(safe),
            ..state()
        };
        assert_eq!(code(&left(5 * HOUR), None), Some("DR-1097"));
        assert_eq!(code(&left(7 * HOUR), None), None);
        assert_eq!(code(&left(7 * HOUR), Some(8 * HOUR)), Some("DR-1097"));
        assert_eq!(code(&left(5 * HOUR), Some(4 * HOUR)), None);
        // Who keeps little, and has nothing behind, is not warned for ever.
        let short = |safe| BinlogState {
            safe: Some(safe),
            expires: Some(2 * HOUR),
            ..state()
        };
        assert_eq!(code(&short(2 * HOUR), None), None);
        assert_eq!(code(&short(HOUR / 2), None), Some("DR-1097"));
        assert_eq!(code(&short(2 * HOUR), Some(3 * HOUR)), Some("DR-1099"));
        // What is urgent comes first, and hides nothing.
        assert_eq!(code(&short(5 * HOUR / 4), Some(3 * HOUR)), Some("DR-1099"));
        let both = short(HOUR / 2).warning(Some(3 * HOUR));
        let both = both.expect("less than half is left");
        assert_eq!(both.code, "DR-1097");
        assert!(both.reason.contains("DR-1099"), "{}", both.reason);
        let never = BinlogState {
            safe: None,
            expires: None,
            ..state()
        };
        assert_eq!(code(&never, Some(8 * HOUR)), None);
    }

    #[test]
    fn a_limit_by_size_is_said_when_four_fifths_are_behind() {
        let of = |behind, safe| BinlogState {
            behind_bytes: Some(behind),
            safe_bytes: Some(safe),
            safe: None,
            expires: None,
            ..state()
        };
        assert_eq!(code(&of(800, 200), None), None);
        assert_eq!(code(&of(804, 196), None), Some("DR-1097"));
        assert_eq!(code(&of(0, 0), None), None);
        let gone = BinlogState {
            is_gone: true,
            ..state()
        };
        assert_eq!(code(&gone, None), Some("DR-1097"));
    }
}
