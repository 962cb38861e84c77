//! How others speak to a running delivery.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex as StdMutex;
use std::time::Duration;

use downriver_event::{Offset, TableId};
use downriver_lake::catalog::TableName;
use tokio::sync::{Mutex, Notify, mpsc, oneshot, watch};

use super::tables::Held as HeldTable;

/// Longer than a commit that is sent again and again; a delivery that stands still does not answer.
const HOLD_WITHIN: Duration = Duration::from_secs(120);

/// Handles of one delivery; it outlives the runs that listen to it.
#[derive(Debug)]
pub struct Control {
    /// Commit what there is now.
    pub flush: Notify,
    pub told: watch::Sender<Told>,
    /// Tables that wait for a change to be let through, as the runs before found them.
    pub(super) held: StdMutex<BTreeMap<TableId, HeldTable>>,
    ask: mpsc::Sender<HoldRequest>,
    pub(super) holds: Mutex<mpsc::Receiver<HoldRequest>>,
}

/// What is said of the tables from outside; the delivery starts again when it changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Tables (`schema.table`) that must not be delivered for now.
    pub paused: BTreeSet<String>,
    /// Up to which version of its schema each table's changes are let through.
    pub approved: BTreeMap<TableId, u32>,
}

impl Default for Control {
    fn default() -> Self {
        let (ask, holds) = mpsc::channel(1);
        Self {
            flush: Notify::new(),
            told: watch::Sender::default(),
            held: StdMutex::default(),
            ask,
            holds: Mutex::new(holds),
        }
    }
}

#[derive(Debug)]
pub(super) struct HoldRequest {
    pub(super) held: oneshot::Sender<Offset>,
    pub(super) cut: oneshot::Receiver<Offset>,
    pub(super) done: oneshot::Sender<Cut>,
}

/// A delivery that has committed everything it read and reads nothing until this is used or dropped.
#[derive(Debug)]
pub struct Held {
    /// Everything before it is delivered.
    pub at: Offset,
    cut: oneshot::Sender<Offset>,
    done: oneshot::Receiver<Cut>,
}

/// All tables of a pipeline at one offset.
#[derive(Clone, Debug)]
pub struct Cut {
    pub at: Offset,
    pub tables: Vec<TableCut>,
}

#[derive(Clone, Debug)]
pub struct TableCut {
    pub table: TableId,
    pub target: TableName,
    /// What readers see at the cut.
    pub snapshot: i64,
}

impl Control {
    /// Stops the reading at the next boundary; `None` when the delivery does not run, or does not come to one.
    pub async fn hold(&self) -> Option<Held> {
        tokio::time::timeout(HOLD_WITHIN, self.ask_to_hold())
            .await
            .ok()?
    }

    async fn ask_to_hold(&self) -> Option<Held> {
        let (held, is_held) = oneshot::channel();
        let (cut, cut_at) = oneshot::channel();
        let (done, is_done) = oneshot::channel();
        let request = HoldRequest {
            held,
            cut: cut_at,
            done,
        };
        self.ask.send(request).await.ok()?;
        Some(Held {
            at: is_held.await.ok()?,
            cut,
            done: is_done,
        })
    }
}

impl Held {
    /// Delivers up to this offset, which lies between two transactions, and goes on. `None` when the delivery
    /// failed on the way.
    pub async fn cut_at(self, offset: Offset) -> Option<Cut> {
        self.cut.send(offset).ok()?;
        self.done.await.ok()
    }
}
