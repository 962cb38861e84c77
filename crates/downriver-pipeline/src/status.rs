//! What is visible from outside of a running capture or delivery.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use downriver_event::problem::Problem;
use downriver_event::{Offset, SourcePosition, TableId};
use downriver_source::postgres::publication::Seen;
use downriver_source::postgres::slot::SlotState;
use tokio::sync::watch;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TableState {
    #[default]
    Pending,
    Snapshotting,
    Streaming,
    Paused,
    /// Something is wrong with it; others go on.
    Stopped,
    /// It cannot be captured or mirrored as it is.
    Refused,
}

impl TableState {
    pub const ALL: [Self; 6] = [
        Self::Pending,
        Self::Snapshotting,
        Self::Streaming,
        Self::Paused,
        Self::Stopped,
        Self::Refused,
    ];

    /// Of the states of two parts of a pipeline the one that is to be shown.
    fn worse(self, other: Self) -> Self {
        let by_need = [
            Self::Stopped,
            Self::Refused,
            Self::Paused,
            Self::Pending,
            Self::Snapshotting,
        ];
        let mut found = by_need.into_iter();
        let found = found.find(|state| [self, other].contains(state));
        found.unwrap_or(Self::Streaming)
    }

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Snapshotting => "snapshotting",
            Self::Streaming => "streaming",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
            Self::Refused => "refused",
        }
    }
}

#[derive(Clone, Debug, Default)]
pub struct SnapshotProgress {
    pub rows_done: u64,
    /// The database's own estimate; 0 when it has none.
    pub rows_estimated: u64,
    /// Rows of this run and when it began: the rate is over both.
    pub rows_of_run: u64,
    pub began: Option<Instant>,
}

impl SnapshotProgress {
    #[must_use]
    pub fn rows_per_second(&self) -> f64 {
        let seconds = self
            .began
            .map_or(0.0, |began| began.elapsed().as_secs_f64());
        if seconds < 0.001 {
            0.0
        } else {
            self.rows_of_run as f64 / seconds
        }
    }

    /// `None` while it cannot be told.
    #[must_use]
    pub fn time_left(&self) -> Option<Duration> {
        let rate = self.rows_per_second();
        let left = self.rows_estimated.checked_sub(self.rows_done)?;
        (rate > 0.0).then(|| Duration::from_secs_f64(left as f64 / rate))
    }
}

#[derive(Clone, Debug, Default)]
pub struct TableStatus {
    pub state: TableState,
    pub problem: Option<Problem>,
    pub snapshot: Option<SnapshotProgress>,
}

/// Tables, and what was seen of each.
pub type Known = HashMap<TableId, Seen>;

/// What a server's binlog has behind a source's position, and how long it keeps it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BinlogStatus {
    /// Age of the newest transaction that came, while there are more; zero when there are none. `None`: not known.
    pub behind: Option<Duration>,
    /// Bytes that are not captured yet; `None`: nobody knows where in this server's binlog the position is.
    pub behind_bytes: Option<u64>,
    /// Bytes of all that the server keeps.
    pub kept_bytes: u64,
    /// After so long, or so many bytes more, the server may drop what is not captured yet; `None`: not by that.
    pub safe: Option<Duration>,
    pub safe_bytes: Option<u64>,
}

/// A capture, seen from outside.
#[derive(Clone, Debug, Default)]
pub struct SourceStatus {
    pub state: TableState,
    pub problem: Option<Problem>,
    /// By qualified name.
    pub tables: BTreeMap<String, TableStatus>,
    /// The tables that there were when the run began, captured or refused.
    pub known: Known,
    /// Everything committed at the source up to here is in the log.
    pub passed: Option<SourcePosition>,
    /// The log's end when `passed` was reached: whoever has delivered up to here has everything up to `passed`.
    pub passed_offset: Offset,
    pub acknowledged: Option<SourcePosition>,
    /// Events of this run.
    pub events: u64,
    /// It stands still because changes are not to be had any more; a new snapshot of everything repairs it.
    pub in_hole: bool,
    /// As the database shows it; `None`: there is none, or the database does not answer.
    pub slot: Option<SlotState>,
    /// As the database shows it; `None`: it has none, or does not answer.
    pub binlog: Option<BinlogStatus>,
    /// When the newest transaction that came was committed, microseconds since 1970.
    pub committed_us: Option<i64>,
    /// What is not wrong yet, and will be.
    pub warning: Option<Problem>,
}

impl SourceStatus {
    /// Whether everything committed at the source up to a position is in the log.
    #[must_use]
    pub fn has_passed(&self, position: &SourcePosition) -> bool {
        let passed = self.passed.as_ref();
        passed.is_some_and(|passed| has_come_to(passed, position))
    }
}

/// Whether a capture that has received so much has everything up to where its server said that it is.
pub(crate) fn has_come_to(received: &SourcePosition, position: &SourcePosition) -> bool {
    // What is captured by places has no identifiers, also where the server has begun to give them.
    let places = received.place().filter(|_| received.is_place_only());
    let places = places.zip(position.place());
    let is_behind = places.is_some_and(|(received, place)| received.covers(place));
    received.covers(position) || is_behind && received.is_of_kind(position)
}

/// A table of a pipeline.
#[derive(Clone, Debug, Default)]
pub struct DeliveryStatus {
    pub state: TableState,
    pub problem: Option<Problem>,
    /// Everything of this table before it is in the sink.
    pub delivered: Offset,
    /// The table's name in the lake: `namespace.table`.
    pub target: String,
    /// Rows written in this run.
    pub rows: u64,
    /// It is paused before a change of the table to this version of its schema, until that is let through.
    pub held: Option<(TableId, u32)>,
    /// It stands still because it waits for its rows to be read again, and nothing before this offset asks for that.
    pub unasked: Option<Offset>,
}

/// A pipeline, seen from outside.
#[derive(Clone, Debug, Default)]
pub struct PipelineStatus {
    pub state: TableState,
    pub problem: Option<Problem>,
    /// By qualified name at the source.
    pub tables: BTreeMap<String, DeliveryStatus>,
    /// Every running table has everything before it.
    pub delivered: Offset,
    /// First offset that some table still needs: the log is kept from there on.
    pub needed: Offset,
    /// Commit time of the newest transaction that is delivered, microseconds since 1970.
    pub delivered_time_us: i64,
    /// Events of this run.
    pub events: u64,
}

impl PipelineStatus {
    /// What is shown of shares of one pipeline together.
    #[must_use]
    pub fn join(mut self, other: Self) -> Self {
        self.state = self.state.worse(other.state);
        self.problem = self.problem.or(other.problem);
        self.tables.extend(other.tables);
        self.delivered = self.delivered.min(other.delivered);
        self.needed = self.needed.min(other.needed);
        self.delivered_time_us = self.delivered_time_us.min(other.delivered_time_us);
        // Each reads all of the log.
        self.events = self.events.max(other.events);
        self
    }
}

/// One writer, many readers of a status.
#[derive(Debug)]
pub struct Board<T>(Arc<watch::Sender<T>>);

impl<T> Clone for Board<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T: Default> Default for Board<T> {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(T::default())))
    }
}

impl<T: Clone> Board<T> {
    pub fn update(&self, change: impl FnOnce(&mut T)) {
        self.0.send_modify(change);
    }

    #[must_use]
    pub fn get(&self) -> T {
        self.0.borrow().clone()
    }

    #[must_use]
    pub fn watch(&self) -> watch::Receiver<T> {
        self.0.subscribe()
    }
}
