//! A node's disk without any room.

use anyhow::{Context as _, Result};
use downriver_testkit::Daemon;

use crate::faults::{Evidence, Going, skipped};
use crate::world::World;

impl World {
    pub(crate) fn fill_disk(&mut self, index: usize) -> Result<Going> {
        let node = &mut self.cluster.nodes[index];
        if !node.is_running() {
            return Ok(Going::Over(skipped(index, "does not run")));
        }
        let said_before = said(node).len();
        let Some(disk) = node.disk() else {
            let why = "has no disk of its own: this process may not mount";
            return Ok(Going::Over(skipped(index, why)));
        };
        // It returns when something of ours did not fit.
        disk.fill()?;
        let ran = node.is_running();
        self.may_end.insert(index);
        Ok(match ran {
            true => Going::DiskFull { index, said_before },
            false => Going::Over(skipped(index, "ended before its disk was full")),
        })
    }

    pub(crate) fn make_room(&mut self, index: usize, said_before: usize) -> Result<Evidence> {
        let node = &mut self.cluster.nodes[index];
        let outcome = outcome(node);
        let disk = node.disk().context("it has been filled")?;
        disk.make_room()?;
        let said = said(node).get(said_before..).map(code).unwrap_or_default();
        Ok(Evidence::Bit(format!(
            "the disk of n{} was full, and it {outcome}{said}",
            index + 1
        )))
    }
}

/// Either is right for a node whose disk is bad.
pub(crate) fn outcome(node: &mut Daemon) -> &'static str {
    match node.is_running() {
        true => "goes on",
        false => "ended",
    }
}

fn said(node: &Daemon) -> String {
    std::fs::read_to_string(node.log()).unwrap_or_default()
}

/// Which of the codes for a full disk it named first.
fn code(said: &str) -> String {
    let codes = ["DR-1103", "DR-1104"];
    let named = codes
        .iter()
        .filter_map(|code| Some((said.find(code)?, code)));
    named
        .min()
        .map_or_else(String::new, |(_, code)| format!(", with {code}"))
}
