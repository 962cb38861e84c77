//! What a node is told by a bad disk and by a wrong clock.

use anyhow::{Context as _, Result};
use downriver_testkit::board::Cell;

use crate::disks::outcome;
use crate::faults::{Evidence, Going, Kind, Whom, skipped};
use crate::world::World;

const LATE_MS: i64 = 300;
const HOUR: i64 = 3_600;

/// Calls that are answered otherwise: which, how, and where it is counted.
#[derive(Clone, Copy, Debug)]
pub struct Twist {
    cell: Cell,
    value: i64,
    counted: Cell,
}

impl Twist {
    /// What a fault of this kind does to the calls of whom; `None`: it does nothing to calls.
    pub(crate) fn of(kind: Kind) -> Option<(Self, Whom)> {
        let (whom, cell, value, counted) = match kind {
            Kind::DiskFails(whom) => (whom, Cell::SyncsFail, 1, Cell::Failed),
            Kind::DiskSlow(whom) => (whom, Cell::SyncsLateMs, LATE_MS, Cell::Late),
            Kind::ClockAhead(whom) => (whom, Cell::ClockOffSeconds, HOUR, Cell::Misread),
            Kind::ClockBehind(whom) => (whom, Cell::ClockOffSeconds, -HOUR, Cell::Misread),
            _ => return None,
        };
        let twist = Self {
            cell,
            value,
            counted,
        };
        Some((twist, whom))
    }
}

impl World {
    pub(crate) fn twist(&mut self, index: usize, twist: Twist) -> Result<Going> {
        let node = &mut self.cluster.nodes[index];
        if !node.is_running() {
            return Ok(Going::Over(skipped(index, "does not run")));
        }
        let Some(board) = node.board() else {
            let why = "is as it is: the workspace's build left no shim";
            return Ok(Going::Over(skipped(index, why)));
        };
        let before = board.get(twist.counted)?;
        board.set(twist.cell, twist.value)?;
        if twist.cell == Cell::SyncsFail {
            self.may_end.insert(index);
        }
        Ok(Going::Twisted {
            index,
            twist,
            before,
        })
    }

    pub(crate) fn untwist(&mut self, index: usize, twist: Twist, before: i64) -> Result<Evidence> {
        let node = &mut self.cluster.nodes[index];
        let outcome = outcome(node);
        let board = node.board().context("it has been written to")?;
        board.set(twist.cell, 0)?;
        let bitten = board.get(twist.counted)? - before;
        if bitten == 0 {
            return Ok(skipped(index, "did not ask for it"));
        }
        let what = match twist.cell {
            Cell::SyncsFail => format!("syncs failed, and it {outcome}"),
            Cell::SyncsLateMs => format!("syncs were {} ms late", twist.value),
            _ => format!("times it was told a time that is {} s off", twist.value),
        };
        Ok(Evidence::Bit(format!("n{}: {bitten} {what}", index + 1)))
    }
}
