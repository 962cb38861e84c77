//! One round: a workload, faults that overlap, everything healed, and then every invariant.

use std::collections::{BTreeMap, HashSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use downriver_testkit::readers::{self, Lake};
use downriver_testkit::workload::{Style, Workload};
use downriver_testkit::{host, resources, seaweed, shop};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use serde_json::Value;

use crate::bank::{self, Transfers};
use crate::branch;
use crate::faults::{Evidence, Fault, Going, plan};
use crate::subscriber::Subscriber;
use crate::world::{NODES, World};

/// How long everything may take to be as if nothing had happened.
const CONVERGE: Duration = Duration::from_secs(60);
/// What takes longer hangs.
const ROUND_WITHIN: Duration = Duration::from_secs(300);

/// Tables of which both sides print every value alike; of the others keys are compared here, and values in the lake.
const PLAIN: [&str; 3] = ["public.ledger", bank::TABLES[0], bank::TABLES[1]];

/// What a round did and found.
#[derive(Clone, Debug)]
pub struct Round {
    pub seed: u64,
    pub faults: Vec<(Fault, Evidence)>,
    /// From the end of the faults until everything had caught up.
    pub converged: Duration,
    pub took: Duration,
    pub transactions: u64,
    pub events: usize,
}

impl Round {
    /// A round in which nothing was really hurt does not count.
    pub fn counts(&self) -> bool {
        self.faults
            .iter()
            .any(|(_, evidence)| matches!(evidence, Evidence::Bit(_)))
    }
}

/// Plays the round of a seed.
///
/// # Errors
/// An invariant does not hold, or something did not converge, or hangs.
pub async fn play(world: &mut World, seed: u64) -> Result<Round> {
    let step = Mutex::new("begins");
    let played = tokio::time::timeout(ROUND_WITHIN, play_by_steps(world, seed, &step)).await;
    played.unwrap_or_else(|_| {
        let step = step.lock().expect("no holder panics");
        bail!("it hangs where it {step}")
    })
}

async fn play_by_steps(world: &mut World, seed: u64, step: &Mutex<&'static str>) -> Result<Round> {
    let now = |what| *step.lock().expect("no holder panics") = what;
    let began = Instant::now();
    let mut random = StdRng::seed_from_u64(seed);
    let only = std::env::var("DOWNRIVER_FAULT_ONLY").unwrap_or_default();
    let only: Vec<String> = only.split_terminator(',').map(str::to_owned).collect();
    let faults = plan(&mut random, &only, world.branch.is_some());
    let style = Style {
        seed,
        scale: 50,
        ..Style::default()
    };
    let workload = Workload::start(&world.postgres, style);
    let transfers = Transfers::start(&world.postgres, seed);
    let branch = world.branch.as_ref();
    let branch = branch.map(|branch| Transfers::start_at(branch.office(), seed));
    let subscribers: Vec<Subscriber> = (0..NODES)
        .map(|node| Subscriber::start(&world.cluster.nodes[node]))
        .collect();
    now("inflicts faults");
    let inflicted = inflict(world, faults, began).await?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let healed = Instant::now();
    now("heals");
    world.heal().await.context("heal")?;
    now("ends what writes");
    // What was written is part of it: something must also come after everything is well.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let written = workload.stop().await?;
    let mut moved = transfers.stop().await?;
    if let Some(transfers) = branch {
        moved += transfers.stop().await?;
    }
    now("converges");
    let converged = converge(world, healed).await?;
    now("checks");
    let events = check(world).await?;
    if let Some(branch) = &world.branch {
        branch.check(world).await.context("the branch")?;
    }
    now("reads what subscribers have not seen yet");
    for (index, subscriber) in subscribers.into_iter().enumerate() {
        let address = world.cluster.nodes[index].addresses()?.grpc.clone();
        let seen = subscriber.finish(&address, events.len() as u64).await;
        let seen = seen.with_context(|| format!("the subscriber of n{}", index + 1))?;
        for (offset, digest) in seen {
            let line = &events[usize::try_from(offset)?].0;
            ensure!(
                *line == digest,
                "the subscriber of n{} saw something else at offset {offset}",
                index + 1
            );
        }
    }
    Ok(Round {
        seed,
        faults: inflicted,
        converged,
        took: began.elapsed(),
        transactions: written.transactions + moved,
        events: events.len(),
    })
}

/// Begins and ends the faults at their times, so that they overlap as planned.
async fn inflict(
    world: &mut World,
    faults: Vec<Fault>,
    began: Instant,
) -> Result<Vec<(Fault, Evidence)>> {
    let mut steps: Vec<(Duration, usize, bool)> = Vec::new();
    for (index, fault) in faults.iter().enumerate() {
        steps.push((fault.at, index, true));
        steps.push((fault.at + fault.lasts, index, false));
    }
    steps.sort();
    let mut going: BTreeMap<usize, Going> = BTreeMap::new();
    let mut evidence: BTreeMap<usize, Evidence> = BTreeMap::new();
    for (at, index, begins) in steps {
        tokio::time::sleep_until((began + at).into()).await;
        if !begins {
            if let Some(going) = going.remove(&index) {
                evidence.insert(index, world.end(going).await?);
            }
            continue;
        }
        match world.begin(faults[index].kind).await {
            Ok(begun) => {
                going.insert(index, begun);
            }
            // Nobody was there who could say whom to hurt.
            Err(error) => {
                evidence.insert(index, Evidence::Skipped(format!("{error:#}")));
            }
        }
    }
    let mut with = Vec::new();
    for (index, fault) in faults.into_iter().enumerate() {
        with.push((fault, evidence.remove(&index).context("each has evidence")?));
    }
    Ok(with)
}

async fn converge(world: &mut World, healed: Instant) -> Result<Duration> {
    let branch = world.branch.as_ref().map(|_| branch::PIPELINE);
    let pipelines: Vec<&str> = [resources::PIPELINE].into_iter().chain(branch).collect();
    let asked = world.cluster.nodes.iter();
    for (node, pipeline) in asked.flat_map(|node| pipelines.iter().map(move |of| (node, of))) {
        let left = CONVERGE
            .saturating_sub(healed.elapsed())
            .max(Duration::from_secs(5));
        let mut last = String::new();
        host::until("everything to be delivered", left, async || {
            let timeout = format!("{}s", left.as_secs().max(1));
            let arguments = [
                "wait",
                pipeline,
                "--for",
                "caught-up",
                "--timeout",
                &timeout,
            ];
            let answer = node.run(&arguments).await?;
            last = answer.text();
            Ok(answer.code == Some(0))
        })
        .await
        .with_context(|| format!("wait says {last}"))?;
    }
    Ok(healed.elapsed())
}

/// The digest of an event, and the event.
pub(crate) type Read = (u64, Value);

/// A source's log, as every node tells it.
pub(crate) async fn told_alike(world: &World, source: &str) -> Result<Vec<Read>> {
    let mut logs = Vec::new();
    for node in &world.cluster.nodes {
        let text = node
            .ok(&[
                "tail", source, "--from", "earliest", "--until", "latest", "-o", "json",
            ])
            .await?;
        let read = text
            .lines()
            .map(|line| Ok((digest(line), serde_json::from_str(line)?)));
        logs.push(read.collect::<Result<Vec<Read>>>()?);
    }
    let shortest = logs.iter().map(Vec::len).min().unwrap_or_default();
    let log = logs.pop().context("three nodes")?;
    for (index, other) in logs.iter().enumerate() {
        let same = log
            .iter()
            .zip(other)
            .take(shortest)
            .all(|(one, other)| one.0 == other.0);
        ensure!(same, "n{} tells another log than n{NODES}", index + 1);
    }
    for (expected, (_, event)) in log.iter().enumerate() {
        let offset = event["offset"].as_u64();
        ensure!(
            offset == Some(expected as u64),
            "offset {offset:?} stands in place {expected}"
        );
    }
    Ok(log)
}

/// Every invariant; the log.
async fn check(world: &World) -> Result<Vec<Read>> {
    let log = told_alike(world, resources::SOURCE).await?;
    let events: Vec<Value> = log.iter().map(|(_, event)| event.clone()).collect();
    transactions_come_once(&events)?;
    bank::check(&events, bank::TABLES)?;
    for table in [
        "public.customers",
        "public.orders",
        "public.carts",
        "public.ledger",
    ]
    .iter()
    .chain(&bank::TABLES)
    {
        let logged = fold(&events, table)?;
        let client = world.postgres.client().await?;
        let rows = client
            .query(&format!("select id, to_jsonb(t)::text from {table} t"), &[])
            .await?;
        let source: BTreeMap<i64, Value> = rows
            .iter()
            .map(|row| Ok((row.get(0), serde_json::from_str(row.get(1))?)))
            .collect::<Result<_>>()?;
        ensure!(
            logged.keys().eq(source.keys()),
            "{table}: the source has {} keys, the log {}",
            source.len(),
            logged.len()
        );
        for (id, row) in source.iter().filter(|_| PLAIN.contains(table)) {
            ensure!(
                logged.get(id) == Some(row),
                "{table} {id} is {row}, and the log says {:?}",
                logged.get(id)
            );
        }
    }
    nothing_is_acknowledged_too_early(world).await?;
    no_secret_is_logged(world)?;
    let node = &world.cluster.nodes[0];
    let lake = Lake::builtin_on(node, &world.store)?;
    let tables: Vec<&str> = shop::TABLES.iter().chain(&bank::TABLES).copied().collect();
    readers::ensure_equal(&world.postgres, &lake, &tables)
        .await
        .context("the lake")?;
    Ok(log)
}

pub(crate) fn digest(line: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    line.hash(&mut hasher);
    hasher.finish()
}

pub(crate) fn transactions_come_once(events: &[Value]) -> Result<()> {
    let mut over: HashSet<&str> = HashSet::new();
    let mut open = "";
    for event in events {
        let Some(transaction) = event["txn"].as_str() else {
            continue;
        };
        let is_change = matches!(event["op"].as_str(), Some("insert" | "update" | "delete"));
        if !is_change || transaction == open {
            continue;
        }
        ensure!(
            over.insert(transaction),
            "transaction {transaction} is in the log twice, again at offset {}",
            event["offset"]
        );
        open = transaction;
    }
    Ok(())
}

/// What the log says that a table with the key `id` contains.
pub(crate) fn fold(events: &[Value], table: &str) -> Result<BTreeMap<i64, Value>> {
    let mut rows: BTreeMap<i64, Value> = BTreeMap::new();
    for event in events.iter().filter(|event| event["table"] == table) {
        let id = |row: &Value| row["id"].as_i64();
        let op = event["op"].as_str().context("an event without op")?;
        if !["insert", "update", "delete", "snapshot"].contains(&op) {
            continue;
        }
        let key = id(&event["key"]).context("an event without key")?;
        let before = id(&event["before"])
            .filter(|_| op == "update")
            .unwrap_or(key);
        let known = rows.remove(&before);
        // A transaction that is in the log twice without another between shows here.
        ensure!(
            op != "insert" || known.is_none(),
            "{table} {key} is in the log twice, again at offset {}",
            event["offset"]
        );
        ensure!(
            op != "delete" || known.is_some(),
            "{table} {key} is deleted and was not there, at offset {}",
            event["offset"]
        );
        if op == "delete" {
            continue;
        }
        let mut row = known
            .filter(|_| op == "update")
            .unwrap_or_else(|| serde_json::json!({}));
        for (column, value) in event["after"].as_object().context("an event without row")? {
            row[column] = value.clone();
        }
        rows.insert(key, row);
    }
    Ok(rows)
}

async fn nothing_is_acknowledged_too_early(world: &World) -> Result<()> {
    // In this order: what is logged only grows.
    let sql = "select confirmed_flush_lsn::text from pg_replication_slots where slot_name = 'downriver_shop'";
    let client = world.postgres.client().await?;
    let confirmed: String = client.query_one(sql, &[]).await?.get(0);
    let source = world.cluster.nodes[0]
        .describe("source", resources::SOURCE)
        .await?;
    let logged = source["position"].as_str().context("a position")?;
    let covers: bool = client
        .query_one(
            &format!("select '{logged}'::pg_lsn >= '{confirmed}'::pg_lsn"),
            &[],
        )
        .await?
        .get(0);
    ensure!(
        covers,
        "the slot was told {confirmed}, and the log is at {logged}"
    );
    Ok(())
}

fn no_secret_is_logged(world: &World) -> Result<()> {
    for node in &world.cluster.nodes {
        let log = std::fs::read_to_string(node.log())?;
        ensure!(
            !log.contains(seaweed::SECRET_KEY),
            "{} contains the object store's secret",
            node.log().display()
        );
    }
    Ok(())
}
