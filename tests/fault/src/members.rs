//! A node that comes while other things happen, is let in by itself, and is taken out for good.

use std::time::Duration;

use anyhow::Result;
use downriver_testkit::host;

use crate::faults::{Evidence, Going};
use crate::world::{NODES, World};

const NAME: &str = "n4";
/// How long a removal may take while other faults are going on; it is asked for again when everything is well.
const REMOVED_WITHIN: Duration = Duration::from_secs(5);
const SEEN_OUT_WITHIN: Duration = Duration::from_secs(60);

/// The cluster's last node, until it has left.
#[derive(Debug, Default)]
pub(crate) struct Guest {
    /// Once it was, it is only taken out, and never let in again.
    was_member: bool,
}

impl World {
    /// Starts one more node, which knows the others.
    pub(crate) fn invite(&mut self) -> Result<Going> {
        let node = self.cluster.add()?;
        node.launch()?;
        self.guest = Some(Guest::default());
        self.know_callers();
        Ok(Going::Guest)
    }

    /// Asks for the guest to be taken out, if it was let in.
    pub(crate) async fn take_out(&mut self) -> Result<Evidence> {
        let Ok(asked) = self.some_node().await else {
            return Ok(Evidence::Skipped("nobody says who is a member".into()));
        };
        let removed = async {
            if !self.lists_guest(asked).await? {
                return Ok(Evidence::Skipped(format!("{NAME} was not let in yet")));
            }
            self.guest = Some(Guest { was_member: true });
            let remove = self.cluster.nodes[asked].run(&["cluster", "remove", NAME]);
            let what = match tokio::time::timeout(REMOVED_WITHIN, remove).await {
                Ok(Ok(answer)) if answer.code == Some(0) => "was taken out",
                _ => "could not be taken out yet",
            };
            Ok(Evidence::Bit(format!("{NAME} was a member, and {what}")))
        };
        let removed: Result<Evidence> = removed.await;
        Ok(removed.unwrap_or_else(|error| Evidence::Skipped(format!("{error:#}"))))
    }

    /// When everything else is well: the guest is let in if it never was, is taken out, and ends.
    pub(crate) async fn see_out(&mut self) -> Result<()> {
        let Some(guest) = &self.guest else {
            return Ok(());
        };
        let mut was_member = guest.was_member;
        host::until("it to be let in", SEEN_OUT_WITHIN, async || {
            was_member = was_member || self.lists_guest(0).await?;
            if !was_member {
                self.start_guest()?;
            }
            Ok(was_member)
        })
        .await?;
        host::until("it to be taken out", SEEN_OUT_WITHIN, async || {
            let remove = self.cluster.nodes[0].run(&["cluster", "remove", NAME]);
            let answer = remove.await?;
            let is_out = !self.lists_guest(0).await?;
            anyhow::ensure!(is_out, "{}", answer.text());
            Ok(is_out)
        })
        .await?;
        host::until("it to end", SEEN_OUT_WITHIN, async || {
            Ok(!self.cluster.nodes[NODES].is_running())
        })
        .await?;
        self.guest = None;
        self.cluster.forget_last()
    }

    fn start_guest(&mut self) -> Result<()> {
        let node = &mut self.cluster.nodes[NODES];
        if !node.is_running() {
            node.kill();
            node.launch()?;
        }
        Ok(())
    }

    async fn lists_guest(&self, asked: usize) -> Result<bool> {
        let listed = self.cluster.listed(asked).await?;
        Ok(listed.iter().any(|node| node["name"] == NAME))
    }
}
