//! How others speak to a running delivery.

use std::collections::BTreeSet;
use std::time::Duration;

use downriver_event::{Offset, TableId};
use downriver_lake::catalog::TableName;
use tokio::sync::{Mutex, Notify, mpsc, oneshot, watch};

/// Longer than a commit that is sent again and again; a delivery that stands still does not answer.
const HOLD_WITHIN: Duration = Duration::from_secs(120);

/// Handles of one delivery; it outlives the runs that listen to it.
#[derive(Debug)]
pub struct Control {
    /// Commit what there is now.
    pub flush: Notify,
    /// Tables (`schema.table`) that must not be delivered for now.
    pub paused: watch::Sender<BTreeSet<String>>,
    ask: mpsc::Sender<HoldRequest>,
    pub(super) holds: Mutex<mpsc::Receiver<HoldRequest>>,
}

impl Default for Control {
    fn default() -> Self {
        let (ask, holds) = mpsc::channel(1);
        Self {
            flush: Notify::new(),
            paused: watch::Sender::default(),
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
