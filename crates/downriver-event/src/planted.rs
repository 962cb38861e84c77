//! Bugs on purpose: what the tests and the campaign have to find, or they prove nothing.
//!
//! A build with the feature `planted-bugs` has the one that `DOWNRIVER_PLANTED_BUG` names, or that a test plants. Every other
//! build has none, and there `is_planted` is a constant. `docs/planted-bugs.md` tells which detector has found which.

macro_rules! bugs {
    ($($(#[$doc:meta])* $bug:ident = $name:literal,)*) => {
        /// A mistake that somebody could have made.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Bug {
            $($(#[$doc])* $bug,)*
        }

        impl Bug {
            pub const ALL: &[Self] = &[$(Self::$bug,)*];

            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$bug => $name,)*
                }
            }
        }
    };
}

bugs! {
    // The journal.
    /// An append is taken whatever its epoch.
    AnyEpoch = "any-epoch",
    /// An append is taken wherever it was to go: also one that is there already.
    AnyPlace = "any-place",
    /// The source may forget what is in no segment yet.
    SealedEarly = "sealed-early",
    /// A snapshot lacks the first block that is in no segment.
    SnapshotLacksBlock = "snapshot-lacks-block",
    /// Whoever is not assigned opens a stream as well.
    AnyOwner = "any-owner",
    // Groups.
    /// A member that another has taken over from commits still.
    StaleMember = "stale-member",
    /// Who takes a group over goes on one event too late.
    SkipsOne = "skips-one",
    // The Raft log.
    /// Entries are answered before they are on the disk.
    NoSync = "no-sync",
    /// A vote is answered before it is on the disk.
    NoVoteSync = "no-vote-sync",
    /// What the disk did not take counts as stored.
    WriteErrorIgnored = "write-error-ignored",
    // The lake.
    /// A commit that lost is sent again on top of what won.
    Rebases = "rebases",
    /// A commit whose answer was lost counts as one that failed, and its files are deleted.
    DeletesUnknown = "deletes-unknown",
    /// A commit whose answer was lost counts as one that landed.
    LostCounts = "lost-counts",
    /// A commit that failed counts as one that found nothing to write.
    CountsFailed = "counts-failed",
    /// A commit counts as landed wherever in the table's history it is.
    FoundBehind = "found-behind",
    /// A new owner does not tell the table of itself before it has something to commit.
    NoFence = "no-fence",
    /// An owner that another one replaced opens the table all the same.
    TakesBack = "takes-back",
    /// A table that was rolled back goes on from where it was.
    IgnoresRollback = "ignores-rollback",
    /// A table that somebody else has changed goes on.
    IgnoresForeign = "ignores-foreign",
    /// The key index of a commit counts whether it landed or not.
    AnyIndex = "any-index",
    /// Files go with the snapshot that replaces them, though older ones need them.
    CollectsEarly = "collects-early",
    // Captures.
    /// Transactions that are sent again are logged again.
    NoDedupe = "no-dedupe",
    /// A transaction is told from one that is there already by where it begins to end, not by where it ends.
    WrongLsn = "wrong-lsn",
    /// The source is told that it may forget what was received.
    AcknowledgesReceived = "acknowledges-received",
    // Readers.
    /// A reader that comes from segments to what is in none loses a block.
    LosesBlockAtSeal = "loses-block-at-seal",
    // Everything.
    /// A secret is logged.
    LogsSecret = "logs-secret",
}

#[cfg(not(feature = "planted-bugs"))]
impl Bug {
    #[inline(always)]
    #[must_use]
    pub const fn is_planted(self) -> bool {
        false
    }
}

#[cfg(feature = "planted-bugs")]
mod planting {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU8, Ordering};

    use super::Bug;

    const NONE: u8 = u8::MAX;
    static PLANTED: OnceLock<AtomicU8> = OnceLock::new();

    /// The number of the bug that the environment names.
    fn planted() -> &'static AtomicU8 {
        PLANTED.get_or_init(|| {
            let named = std::env::var("DOWNRIVER_PLANTED_BUG").ok();
            let bug = named.map(|name| {
                let bug = Bug::ALL.iter().find(|bug| bug.name() == name);
                *bug.unwrap_or_else(|| panic!("no bug is called {name:?}"))
            });
            AtomicU8::new(bug.map_or(NONE, |bug| bug as u8))
        })
    }

    impl Bug {
        #[must_use]
        pub fn is_planted(self) -> bool {
            planted().load(Ordering::Relaxed) == self as u8
        }

        /// From now on this process has it, and no other; `None`: none.
        pub fn plant(bug: Option<Self>) {
            planted().store(bug.map_or(NONE, |bug| bug as u8), Ordering::Relaxed);
        }
    }
}
