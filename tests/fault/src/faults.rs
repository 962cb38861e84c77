//! What is done to a world, when, and whether it bit.

use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use downriver_testkit::link::{Link, Mode};
use rand::Rng as _;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;

use crate::branch;
use crate::calls::Twist;
use crate::world::{NODES, SEATS, SOURCE, World};

/// Whom a fault is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Whom {
    Owner,
    Leader,
    /// Of the second source.
    BranchOwner,
    Any(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    Kill(Whom),
    KillAll,
    /// Frozen, and going on later.
    Freeze(Whom),
    /// Told to stop, and started again.
    Restart(Whom),
    /// Nothing comes from or to other nodes.
    Isolate(Whom),
    /// Nothing of what the node says to others arrives.
    Mute(Whom),
    /// Nothing of what others say to the node arrives.
    Deafen(Whom),
    /// Messages between the node and others are late.
    Lag(Whom),
    /// Connections of the node with others are cut in the middle of what they carry.
    CutPeers(Whom),
    CutDatabase(Whom),
    HangDatabase(Whom),
    SlowDatabase(Whom),
    CrashDatabase,
    StoreUnavailable,
    StoreHangs,
    StoreLosesAnswers,
    StoreCuts,
    TransferLeader,
    DiskFull(Whom),
    /// What is to be on the disk is there late.
    DiskSlow(Whom),
    /// What is to be on the disk is not, and the disk says so.
    DiskFails(Whom),
    ClockAhead(Whom),
    ClockBehind(Whom),
    /// One more node is let in, and taken out.
    MembersChange,
    CutBranch,
    HangBranch,
    CrashBranch,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = format!("{self:?}");
        let name = name.split('(').next().unwrap_or_default();
        f.write_str(name)
    }
}

/// One fault of a round's plan.
#[derive(Clone, Debug)]
pub struct Fault {
    pub kind: Kind,
    /// After the round's begin.
    pub at: Duration,
    pub lasts: Duration,
}

/// Whether a fault did something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Evidence {
    Bit(String),
    Skipped(String),
}

/// A link by its number, the callers that are hurt there, and how.
type Hurt = (usize, Vec<usize>, Mode);

/// How long it may take to find out whom a fault is for, and to let another lead.
const TOLD_WITHIN: Duration = Duration::from_secs(4);

/// Links in front of nodes have the nodes' numbers.
const DATABASE: usize = NODES;
const STORE: usize = NODES + 1;
const BRANCH: usize = NODES + 2;

/// A fault that was begun.
#[derive(Debug)]
pub enum Going {
    Over(Evidence),
    Frozen {
        index: usize,
        pid: u32,
    },
    Stopping {
        index: usize,
    },
    DatabaseDown,
    BranchDown,
    Links {
        hurt: Vec<Hurt>,
        before: u64,
    },
    DiskFull {
        index: usize,
        said_before: usize,
    },
    Twisted {
        index: usize,
        twist: Twist,
        before: i64,
    },
    Guest,
}

/// One to three faults that overlap; of `only` these kinds, if any are named.
pub fn plan(random: &mut StdRng, only: &[String], has_branch: bool) -> Vec<Fault> {
    let count = match only.len() {
        0 => random.random_range(1..=3),
        kinds => kinds,
    };
    let mut faults: Vec<Fault> = Vec::new();
    let mut drawn = 0;
    while faults.len() < count {
        let kind = kind(random, has_branch);
        drawn += 1;
        assert!(drawn < 100_000, "of {only:?} not each is a fault by itself");
        if !only.is_empty() && !only.contains(&kind.to_string()) {
            continue;
        }
        // For an hour DuckDB would not see what was written meanwhile: it reads a table as it was at its own time.
        if only.is_empty() && matches!(kind, Kind::ClockAhead(_)) {
            continue;
        }
        // Two that kill leave nobody to hurt.
        if faults
            .iter()
            .any(|fault| fault.kind.to_string() == kind.to_string())
        {
            continue;
        }
        faults.push(Fault {
            kind,
            at: Duration::from_millis(random.random_range(300..2_500)),
            lasts: Duration::from_millis(random.random_range(800..5_000)),
        });
    }
    faults.sort_by_key(|fault| fault.at);
    faults
}

fn kind(random: &mut StdRng, has_branch: bool) -> Kind {
    let any = Whom::Any(random.random_range(0..NODES));
    let whom = *[Whom::Owner, Whom::Leader, any]
        .choose(random)
        .expect("three");
    let kinds = [
        Kind::Kill(whom),
        Kind::Kill(Whom::Owner),
        Kind::Kill(Whom::Leader),
        Kind::KillAll,
        Kind::Freeze(whom),
        Kind::Freeze(Whom::Owner),
        Kind::Restart(whom),
        Kind::Isolate(whom),
        Kind::Isolate(Whom::Owner),
        Kind::Mute(whom),
        Kind::Deafen(whom),
        Kind::Lag(whom),
        Kind::CutPeers(whom),
        Kind::CutDatabase(Whom::Owner),
        Kind::HangDatabase(Whom::Owner),
        Kind::SlowDatabase(Whom::Owner),
        Kind::CrashDatabase,
        Kind::StoreUnavailable,
        Kind::StoreHangs,
        Kind::StoreLosesAnswers,
        Kind::StoreCuts,
        Kind::TransferLeader,
        Kind::DiskFull(whom),
        Kind::DiskSlow(whom),
        Kind::DiskFails(whom),
        Kind::ClockAhead(whom),
        Kind::ClockBehind(whom),
        Kind::MembersChange,
    ];
    let of_branch = [Kind::CutBranch, Kind::HangBranch, Kind::CrashBranch];
    let of_branch = &of_branch[..if has_branch { 3 } else { 0 }];
    let kinds = [&kinds, of_branch].concat();
    *kinds.choose(random).expect("there are some")
}

impl World {
    pub(crate) async fn whom(&mut self, whom: Whom) -> Result<usize> {
        if let Whom::Any(index) = whom {
            return Ok(index);
        }
        let asked = self.some_node().await?;
        let told = async {
            match whom {
                Whom::Owner => self.cluster.owner(asked, SOURCE).await,
                Whom::BranchOwner => {
                    let task = format!("source/{}", branch::NAME);
                    self.cluster.owner(asked, &task).await
                }
                _ => self.cluster.leader(asked).await,
            }
        };
        let told = tokio::time::timeout(TOLD_WITHIN, told).await;
        let index = told.context("nobody says who it is")??;
        ensure!(index < self.cluster.nodes.len(), "it has just left");
        Ok(index)
    }

    /// Begins a fault. One that is over at once has its evidence.
    pub async fn begin(&mut self, kind: Kind) -> Result<Going> {
        Ok(match kind {
            Kind::Kill(whom) => {
                let index = self.whom(whom).await?;
                Going::Over(self.kill(index))
            }
            Kind::KillAll => {
                let killed =
                    (0..NODES).filter(|index| matches!(self.kill(*index), Evidence::Bit(_)));
                let killed = killed.count();
                Going::Over(Evidence::Bit(format!("{killed} nodes were killed")))
            }
            Kind::Freeze(whom) => {
                let index = self.whom(whom).await?;
                match self.cluster.nodes[index].pid() {
                    Err(_) => Going::Over(skipped(index, "does not run")),
                    Ok(pid) => {
                        self.cluster.nodes[index].freeze()?;
                        Going::Frozen { index, pid }
                    }
                }
            }
            Kind::Restart(whom) => {
                let index = self.whom(whom).await?;
                let node = &mut self.cluster.nodes[index];
                if !node.is_running() {
                    return Ok(Going::Over(skipped(index, "does not run")));
                }
                node.ask_to_stop()?;
                Going::Stopping { index }
            }
            Kind::TransferLeader => {
                let asked = self.some_node().await?;
                let node = &self.cluster.nodes[asked];
                let transfer = node.run(&["cluster", "transfer-leader"]);
                Going::Over(match tokio::time::timeout(TOLD_WITHIN, transfer).await {
                    Ok(answer) => {
                        let answer = answer?;
                        match answer.code {
                            Some(0) => Evidence::Bit(answer.stdout.trim().to_owned()),
                            _ => Evidence::Skipped(answer.text().trim().to_owned()),
                        }
                    }
                    Err(_) => Evidence::Skipped("nobody says whether another leads".into()),
                })
            }
            Kind::CrashDatabase => {
                self.postgres.kill();
                Going::DatabaseDown
            }
            Kind::CrashBranch => {
                let branch = self.branch.as_mut().context("there is no branch")?;
                branch.mysql.kill()?;
                Going::BranchDown
            }
            Kind::DiskFull(whom) => {
                let index = self.whom(whom).await?;
                self.fill_disk(index)?
            }
            Kind::MembersChange => self.invite()?,
            kind => match Twist::of(kind) {
                Some((twist, whom)) => {
                    let index = self.whom(whom).await?;
                    self.twist(index, twist)?
                }
                None => self.hurt_links(kind).await?,
            },
        })
    }

    /// Ends a fault, and tells whether it bit.
    pub async fn end(&mut self, going: Going) -> Result<Evidence> {
        Ok(match going {
            Going::Over(evidence) => evidence,
            Going::Frozen { index, pid } => {
                let stood = state_of(pid) == Some('T');
                if self.cluster.nodes[index].pid().is_ok_and(|now| now == pid) {
                    self.cluster.nodes[index].thaw()?;
                }
                match stood {
                    true => Evidence::Bit(format!("n{} stood still", index + 1)),
                    false => skipped(index, "was killed meanwhile"),
                }
            }
            Going::Stopping { index } => {
                let node = &mut self.cluster.nodes[index];
                let stopped = !node.is_running();
                if stopped {
                    node.kill();
                    node.launch()?;
                    self.know_callers();
                } else {
                    self.may_end.insert(index);
                }
                match stopped {
                    true => Evidence::Bit(format!("n{} stopped, and was started", index + 1)),
                    false => skipped(index, "had not stopped yet"),
                }
            }
            Going::DatabaseDown => {
                self.postgres.start_again().await?;
                Evidence::Bit("the database was killed, and started".into())
            }
            Going::BranchDown => {
                let branch = self.branch.as_mut().context("it was killed")?;
                branch.mysql.start_again().await?;
                Evidence::Bit("the branch's database was killed, and started".into())
            }
            Going::Links { hurt, before } => {
                for (link, callers, _) in &hurt {
                    for caller in callers {
                        self.link(*link).set(*caller, Mode::Pass);
                    }
                }
                match self.bites(&hurt) - before {
                    0 => Evidence::Skipped("nothing passed there".into()),
                    bitten => Evidence::Bit(format!("{bitten} times, of {}", names(&hurt))),
                }
            }
            Going::DiskFull { index, said_before } => self.make_room(index, said_before)?,
            Going::Twisted {
                index,
                twist,
                before,
            } => self.untwist(index, twist, before)?,
            Going::Guest => self.take_out().await?,
        })
    }

    fn link(&self, number: usize) -> &Link {
        match number {
            number if number < NODES => &self.links.nodes[number],
            DATABASE => &self.links.database,
            BRANCH => self.links.branch.as_ref().expect("it is in the plan"),
            _ => &self.links.store,
        }
    }

    fn bites(&self, hurt: &[Hurt]) -> u64 {
        let of = |(link, callers, _): &Hurt| -> u64 {
            let bites = callers.iter().map(|caller| self.link(*link).bites(*caller));
            bites.sum()
        };
        hurt.iter().map(of).sum()
    }

    fn kill(&mut self, index: usize) -> Evidence {
        let node = &mut self.cluster.nodes[index];
        if !node.is_running() {
            return Evidence::Skipped(format!("n{} does not run", index + 1));
        }
        node.kill();
        Evidence::Bit(format!("n{} was killed", index + 1))
    }

    async fn hurt_links(&mut self, kind: Kind) -> Result<Going> {
        let everyone: Vec<usize> = (0..SEATS).collect();
        let mut hurt: Vec<Hurt> = Vec::new();
        match kind {
            Kind::Isolate(whom)
            | Kind::Mute(whom)
            | Kind::Deafen(whom)
            | Kind::Lag(whom)
            | Kind::CutPeers(whom) => {
                let index = self.whom(whom).await?;
                ensure!(index < NODES, "nobody can be kept from calling the guest");
                let others: Vec<usize> = everyone.into_iter().filter(|i| *i != index).collect();
                let late = Mode::Delay(Duration::from_millis(100));
                let (to_others, from_others) = match kind {
                    Kind::Isolate(_) => (Mode::Hang, Mode::Hang),
                    Kind::Mute(_) => (Mode::HangRequests, Mode::HangAnswers),
                    Kind::Deafen(_) => (Mode::HangAnswers, Mode::HangRequests),
                    Kind::Lag(_) => (late, late),
                    _ => (Mode::Cut, Mode::Cut),
                };
                let links = others.iter().filter(|other| **other < NODES);
                hurt.extend(links.map(|other| (*other, vec![index], to_others)));
                hurt.push((index, others, from_others));
            }
            Kind::CutDatabase(whom) => {
                hurt.push((DATABASE, vec![self.whom(whom).await?], Mode::Cut))
            }
            Kind::HangDatabase(whom) => {
                hurt.push((DATABASE, vec![self.whom(whom).await?], Mode::Hang))
            }
            Kind::SlowDatabase(whom) => {
                hurt.push((DATABASE, vec![self.whom(whom).await?], Mode::Slow(20_000)));
            }
            Kind::CutBranch => {
                hurt.push((BRANCH, vec![self.whom(Whom::BranchOwner).await?], Mode::Cut))
            }
            Kind::HangBranch => hurt.push((
                BRANCH,
                vec![self.whom(Whom::BranchOwner).await?],
                Mode::Hang,
            )),
            Kind::StoreUnavailable => hurt.push((STORE, everyone, Mode::Unavailable)),
            Kind::StoreHangs => hurt.push((STORE, everyone, Mode::Hang)),
            Kind::StoreLosesAnswers => hurt.push((STORE, everyone, Mode::LoseAnswers)),
            _ => hurt.push((STORE, everyone, Mode::Cut)),
        }
        let before = self.bites(&hurt);
        for (link, callers, mode) in &hurt {
            for caller in callers {
                self.link(*link).set(*caller, *mode);
            }
        }
        Ok(Going::Links { hurt, before })
    }
}

pub(crate) fn skipped(index: usize, why: &str) -> Evidence {
    Evidence::Skipped(format!("n{} {why}", index + 1))
}

fn names(hurt: &[Hurt]) -> String {
    let name = |(link, callers, mode): &Hurt| {
        let to = match *link {
            link if link < NODES => format!("n{}", link + 1),
            DATABASE => "database".to_owned(),
            BRANCH => "branch".to_owned(),
            _ => "store".to_owned(),
        };
        let from: Vec<String> = callers
            .iter()
            .map(|caller| format!("n{}", caller + 1))
            .collect();
        format!("{}->{to} {mode:?}", from.join(","))
    };
    hurt.iter().map(name).collect::<Vec<_>>().join("; ")
}

/// As /proc says it: R, S, T, ...
fn state_of(pid: u32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.trim().chars().next()
}
