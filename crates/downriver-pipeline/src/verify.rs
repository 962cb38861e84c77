//! Compares source and lake row by row at one position.
//!
//! ```text
//!  delivery held at a boundary ─> cut of the database: position P ─> capture has passed P
//!        ─> delivery goes on to just after P, commits, and goes on ─> both sides read at P
//! ```
//! The database's cut sees exactly the transactions up to P; since the delivery was held before P was taken, it has
//! nothing beyond it. So a difference is one, whatever is written meanwhile. Rows are compared by digests that are
//! sorted out into local files by their key: memory holds one part of them at a time.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use downriver_event::block::{Block, OldImage, RowOp};
use downriver_event::problem::Problem;
use downriver_event::{BlockBuilder, Offset, SourcePosition, TableSchema};
use downriver_lake::catalog::Catalog;
use downriver_lake::{Digest, LakeError, TableScan, Warehouse};
use downriver_log::{Log, ReadError};
use downriver_source::SourceError;
use downriver_source::chunk::{Row, RowSink};
use downriver_source::mysql;
use downriver_source::mysql::config::MysqlConfig;
use downriver_source::postgres;
use downriver_source::postgres::config::PostgresConfig;
use downriver_source::postgres::copy::BinaryRow;
use tokio::sync::mpsc;

use crate::delivery::Control;

/// Files that each side's digests are sorted out into.
const PARTS: usize = 64;
/// Differing keys that are named.
const EXAMPLES_MAX: usize = 5;
const REPORT_EVERY_ROWS: u64 = 50_000;
/// A source that does not come to the position of its own cut by then has a problem of its own.
pub const PASS_WITHIN: Duration = Duration::from_secs(120);
/// The delivery stands still while the database waits for the transactions that run.
const CUT_WITHIN: Duration = Duration::from_secs(60);
const BLOCK_RAW_BYTES: usize = 1 << 20;

#[derive(Clone)]
pub struct VerifyConfig {
    pub source: String,
    pub database: Connection,
    pub catalog: Arc<dyn Catalog>,
    pub warehouse: Warehouse,
    /// For digests; emptied at the end.
    pub folder: PathBuf,
}

/// How the source's database is reached.
#[derive(Clone)]
pub enum Connection {
    Postgres(PostgresConfig),
    Mysql(MysqlConfig),
}

/// The database at one position.
enum Cut {
    Postgres(Box<postgres::cut::DatabaseCut>),
    Mysql(Box<mysql::cut::DatabaseCut>),
}

impl Cut {
    async fn take(connection: &Connection) -> Result<Self, SourceError> {
        Ok(match connection {
            Connection::Postgres(config) => {
                Self::Postgres(Box::new(postgres::cut::DatabaseCut::take(config).await?))
            }
            Connection::Mysql(config) => {
                Self::Mysql(Box::new(mysql::cut::DatabaseCut::take(config).await?))
            }
        })
    }

    fn position(&self) -> SourcePosition {
        match self {
            Self::Postgres(cut) => SourcePosition::Postgres(cut.position()),
            Self::Mysql(cut) => cut.position().clone(),
        }
    }

    async fn estimated_rows(&mut self, schema: &TableSchema) -> Result<u64, SourceError> {
        match self {
            Self::Postgres(cut) => cut.estimated_rows(schema).await,
            Self::Mysql(cut) => cut.estimated_rows(schema).await,
        }
    }

    async fn read(
        &mut self,
        schema: &TableSchema,
        row: &mut RowSink<'_>,
    ) -> Result<(), SourceError> {
        match self {
            Self::Postgres(cut) => {
                let row = &mut |read: &BinaryRow<'_>| row(read);
                cut.read(schema, row).await
            }
            Self::Mysql(cut) => cut.read(schema, row).await,
        }
    }
}

/// The source's capture, here or on another node.
#[async_trait]
pub trait Captured: Send + Sync {
    /// Returns when it has everything up to a position, with the log's end then; gives up after [`PASS_WITHIN`].
    async fn passed(&self, position: &SourcePosition) -> Result<Offset, Problem>;

    /// Whether the table's snapshot is being taken.
    fn is_copying(&self, table: &TableSchema) -> bool;
}

/// What runs of the pipeline.
#[derive(Clone)]
pub struct Running {
    pub log: Arc<dyn Log>,
    pub captured: Arc<dyn Captured>,
    pub control: Arc<Control>,
}

#[derive(Clone, Debug)]
pub struct Report {
    /// `schema.table`
    pub table: String,
    /// Rows read of both sides.
    pub rows_compared: u64,
    pub rows_estimated: u64,
    /// The table's last report.
    pub verdict: Option<Verdict>,
}

#[derive(Clone, Debug, Default)]
pub struct Verdict {
    pub source_rows: u64,
    pub target_rows: u64,
    /// At the source and not in the lake.
    pub missing: u64,
    pub unexpected: u64,
    pub different: u64,
    /// Keys of the first differences.
    pub examples: Vec<String>,
    /// The table could not be compared.
    pub problem: Option<Problem>,
}

impl Verdict {
    #[must_use]
    pub fn equal(&self) -> bool {
        self.problem.is_none() && self.missing + self.unexpected + self.different == 0
    }
}

/// Compares the tables whose `schema.table` is wanted.
///
/// # Errors
/// Nothing can be compared.
pub async fn verify(
    config: &VerifyConfig,
    running: &Running,
    wanted: impl Fn(&TableSchema) -> bool,
    reports: &mpsc::Sender<Report>,
) -> Result<(), Problem> {
    let not_running = || {
        Problem::new(
            "DR-2073",
            "the pipeline does not run, so it cannot be brought to one position",
            "see downriver describe; resume the pipeline",
        )
    };
    let held = running.control.hold().await.ok_or_else(not_running)?;
    let mut database = tokio::time::timeout(CUT_WITHIN, Cut::take(&config.database))
        .await
        .map_err(|_| cut_takes_too_long())?
        .map_err(|error| error.problem())?;
    let position = database.position();
    let end = running.captured.passed(&position).await?;
    let cut_at = boundary(&*running.log, &config.source, held.at, end, &position)
        .await
        .map_err(|error| Problem::new("DR-2035", error.to_string(), "verify again"))?;
    let cut = held.cut_at(cut_at).await.ok_or_else(not_running)?;
    let state = running.log.state(&config.source).ok_or_else(not_running)?;
    std::fs::create_dir_all(&config.folder).map_err(|error| folder_problem(&error))?;
    for table in &cut.tables {
        let Some(schema) = state.newest_schema(table.table).filter(|s| wanted(s)) else {
            continue;
        };
        let name = schema.qualified_name();
        let verdict = if running.captured.is_copying(schema) {
            Err(Problem::new(
                "DR-2074",
                format!("{name} is still being copied"),
                "verify again when its snapshot is complete",
            ))
        } else {
            let mut comparison = Comparison {
                config,
                schema: Arc::clone(schema),
                reports,
                database: &mut database,
            };
            comparison.run(&table.target, table.snapshot).await
        };
        let verdict = verdict.unwrap_or_else(|problem| Verdict {
            problem: Some(problem),
            ..Verdict::default()
        });
        let rows = verdict.source_rows + verdict.target_rows;
        let last = Report {
            table: name,
            rows_compared: rows,
            rows_estimated: rows,
            verdict: Some(verdict),
        };
        if reports.send(last).await.is_err() {
            break;
        }
    }
    let _ = std::fs::remove_dir_all(&config.folder);
    Ok(())
}

fn cut_takes_too_long() -> Problem {
    Problem::new(
        "DR-2075",
        format!(
            "the database gave no position to compare at within {} s: a transaction is open for longer",
            CUT_WITHIN.as_secs()
        ),
        "see pg_stat_activity for the oldest xact_start; verify again when it has ended",
    )
}

fn folder_problem(error: &std::io::Error) -> Problem {
    Problem::new(
        "DR-1101",
        format!("the folder of the comparison cannot be written: {error}"),
        "make room on the disk of the data folder and verify again",
    )
}

/// The first offset from `from` on whose transaction ends after the position; `end` if there is none.
async fn boundary(
    log: &dyn Log,
    stream: &str,
    from: Offset,
    end: Offset,
    position: &SourcePosition,
) -> Result<Offset, ReadError> {
    // Without regard to their identifiers: of what is logged before, and was not visible yet, nothing is of the tables.
    let is_before = |at: &SourcePosition| {
        let places = position.place().zip(at.place());
        position.covers(at) || places.is_some_and(|(cut, at)| cut.covers(at))
    };
    let after = |at: &SourcePosition| !is_before(at);
    let mut next = from;
    // Where the transaction began that goes on in the next block.
    let mut open = None;
    let mut changes = log.changes();
    while next < end {
        let blocks = log.read(stream, next, 4 << 20).await?;
        if blocks.is_empty() {
            // The capture is on a node that is ahead of this one. The log outlives whoever reads it.
            let _ = changes.changed().await;
        }
        for stored in blocks {
            let block = Block::decode(&stored.frame).map_err(|error| ReadError::Damaged {
                object: "a block".into(),
                position: 0,
                offset: stored.base,
                reason: error.to_string(),
            })?;
            for transaction in &block.transactions {
                let began = open
                    .take()
                    .unwrap_or(stored.base.plus(u64::from(transaction.first_event)));
                if !transaction.ends {
                    open = Some(began);
                    continue;
                }
                let placed = transaction
                    .position
                    .as_ref()
                    .and_then(SourcePosition::from_pb);
                if began >= from && placed.as_ref().is_some_and(after) {
                    return Ok(began);
                }
            }
            next = stored.end();
        }
    }
    Ok(end.max(from))
}

struct Comparison<'a> {
    config: &'a VerifyConfig,
    schema: Arc<TableSchema>,
    reports: &'a mpsc::Sender<Report>,
    database: &'a mut Cut,
}

impl Comparison<'_> {
    async fn run(
        &mut self,
        target: &downriver_lake::catalog::TableName,
        snapshot: i64,
    ) -> Result<Verdict, Problem> {
        let source = |error: SourceError| error.problem();
        let lake = |error: LakeError| error.problem();
        let local = |error: std::io::Error| folder_problem(&error);
        let scan = TableScan::open(
            &*self.config.catalog,
            self.config.warehouse.clone(),
            target,
            snapshot,
            Arc::clone(&self.schema),
        )
        .await
        .map_err(lake)?;
        let estimated = self
            .database
            .estimated_rows(&self.schema)
            .await
            .map_err(source)?
            .max(scan.rows());
        let mut progress = Progress {
            table: self.schema.qualified_name(),
            estimated: estimated + scan.rows(),
            done: 0,
            reports: self.reports,
        };

        let mut of_source = Parts::create(&self.config.folder, "source").map_err(local)?;
        self.read_source(&scan, |digest, _| {
            progress.row();
            of_source.push(digest)
        })
        .await?;
        let mut of_lake = Parts::create(&self.config.folder, "lake").map_err(local)?;
        scan.digests(|digest, _| {
            progress.row();
            of_lake.push(digest)
        })
        .await
        .map_err(lake)?;

        let mut verdict = Verdict {
            source_rows: of_source.rows,
            target_rows: of_lake.rows,
            ..Verdict::default()
        };
        let of_source = of_source.finish().map_err(local)?;
        let of_lake = of_lake.finish().map_err(local)?;
        let mut differing = Vec::new();
        for part in 0..PARTS {
            let source = read_part(&of_source[part]).map_err(local)?;
            let lake = read_part(&of_lake[part]).map_err(local)?;
            compare(&source, &lake, &mut verdict, &mut differing);
        }
        if !differing.is_empty() {
            self.name_keys(&scan, &differing, &mut verdict).await?;
        }
        Ok(verdict)
    }

    async fn read_source(
        &mut self,
        scan: &TableScan,
        mut each: impl FnMut(Digest, &dyn Fn() -> String) -> std::io::Result<()> + Send,
    ) -> Result<(), Problem> {
        let mut builder = BlockBuilder::new();
        builder.begin("verify".into(), 0);
        let mut failed = None;
        let mut hand_over = |builder: &mut BlockBuilder| {
            if let Some((_, block)) = builder.cut_and_read() {
                for group in &block.groups {
                    scan.digest_group(group, &mut each)?;
                }
            }
            Ok::<_, LakeError>(())
        };
        let schema = &self.schema;
        let mut row = |row: &dyn Row| {
            row.push_into(builder.row(schema, RowOp::Snapshot, OldImage::None))?;
            if failed.is_none() && builder.raw_bytes() >= BLOCK_RAW_BYTES {
                failed = hand_over(&mut builder).err();
            }
            Ok(())
        };
        let read = self.database.read(schema, &mut row).await;
        read.map_err(|error| error.problem())?;
        if failed.is_none() {
            failed = hand_over(&mut builder).err();
        }
        failed.map_or(Ok(()), |error| Err(error.problem()))
    }

    /// Reads once more to say which keys differ.
    async fn name_keys(
        &mut self,
        scan: &TableScan,
        differing: &[u128],
        verdict: &mut Verdict,
    ) -> Result<(), Problem> {
        let mut named: Vec<(u128, String)> = Vec::new();
        let mut name = |digest: Digest, text: &dyn Fn() -> String| {
            if differing.contains(&digest.key) && !named.iter().any(|(key, _)| *key == digest.key) {
                named.push((digest.key, text()));
            }
            Ok(())
        };
        self.read_source(scan, &mut name).await?;
        scan.digests(&mut name)
            .await
            .map_err(|error| error.problem())?;
        verdict.examples = named.into_iter().map(|(_, text)| text).collect();
        Ok(())
    }
}

struct Progress<'a> {
    table: String,
    estimated: u64,
    done: u64,
    reports: &'a mpsc::Sender<Report>,
}

impl Progress<'_> {
    fn row(&mut self) {
        self.done += 1;
        if self.done.is_multiple_of(REPORT_EVERY_ROWS) {
            // Whoever reads slowly sees fewer of them.
            let _ = self.reports.try_send(Report {
                table: self.table.clone(),
                rows_compared: self.done,
                rows_estimated: self.estimated.max(self.done),
                verdict: None,
            });
        }
    }
}

/// Digests of one side, sorted out by their key.
struct Parts {
    files: Vec<(PathBuf, BufWriter<File>)>,
    rows: u64,
}

impl Parts {
    fn create(folder: &Path, side: &str) -> std::io::Result<Self> {
        let files = (0..PARTS).map(|part| {
            let path = folder.join(format!("{side}-{part}"));
            let file = File::create(&path)?;
            Ok((path, BufWriter::new(file)))
        });
        Ok(Self {
            files: files.collect::<std::io::Result<_>>()?,
            rows: 0,
        })
    }

    fn push(&mut self, digest: Digest) -> std::io::Result<()> {
        let part = (digest.key >> 122) as usize;
        let out = &mut self.files[part].1;
        out.write_all(&digest.key.to_le_bytes())?;
        out.write_all(&digest.row.to_le_bytes())?;
        self.rows += 1;
        Ok(())
    }

    fn finish(self) -> std::io::Result<Vec<PathBuf>> {
        self.files
            .into_iter()
            .map(|(path, mut out)| out.flush().map(|()| path))
            .collect()
    }
}

fn read_part(path: &Path) -> std::io::Result<Vec<Digest>> {
    let mut bytes = Vec::new();
    BufReader::new(File::open(path)?).read_to_end(&mut bytes)?;
    let number = |bytes: &[u8]| u128::from_le_bytes(bytes.try_into().expect("sixteen bytes"));
    let mut digests: Vec<Digest> = bytes
        .chunks_exact(32)
        .map(|pair| Digest {
            key: number(&pair[..16]),
            row: number(&pair[16..]),
        })
        .collect();
    digests.sort_unstable();
    Ok(digests)
}

/// Counts what differs between two sorted sides; a key that is there twice on one side is unexpected there.
fn compare(source: &[Digest], lake: &[Digest], verdict: &mut Verdict, differing: &mut Vec<u128>) {
    let (mut s, mut l) = (0, 0);
    let mut differs = |key: u128| {
        if differing.len() < EXAMPLES_MAX {
            differing.push(key);
        }
    };
    while s < source.len() || l < lake.len() {
        match (source.get(s), lake.get(l)) {
            (Some(a), Some(b)) if a.key == b.key => {
                if a.row != b.row {
                    verdict.different += 1;
                    differs(a.key);
                }
                s += 1;
                l += 1;
            }
            (Some(a), b) if b.is_none_or(|b| a.key < b.key) => {
                verdict.missing += 1;
                differs(a.key);
                s += 1;
            }
            (_, Some(b)) => {
                verdict.unexpected += 1;
                differs(b.key);
                l += 1;
            }
            (_, None) => unreachable!("the loop ends when both sides do"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_difference_is_counted_and_named() {
        let digest = |key, row| Digest { key, row };
        let source = [digest(1, 1), digest(2, 2), digest(4, 4), digest(6, 6)];
        let lake = [
            digest(1, 1),
            digest(2, 20),
            digest(3, 3),
            digest(6, 6),
            digest(6, 6),
        ];
        let (mut verdict, mut differing) = (Verdict::default(), Vec::new());
        compare(&source, &lake, &mut verdict, &mut differing);
        assert_eq!(
            (verdict.missing, verdict.unexpected, verdict.different),
            (1, 2, 1)
        );
        assert_eq!(differing, [2, 3, 4, 6]);
        assert!(!verdict.equal());
        let mut same = Verdict::default();
        compare(&source, &source, &mut same, &mut Vec::new());
        assert!(same.equal());
    }
}
