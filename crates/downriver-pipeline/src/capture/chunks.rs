//! Chunks of a table, read and encoded: by the node that captures the source, or by another one for it.
//!
//! Reading one changes nothing anywhere, and what was read counts only where the capture lets it join its stream. So
//! another node needs no epoch, and one that is lost or slow is given up: its chunk is read here.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use downriver_event::block::{BLOCK_RAW_BYTES_MAX, OldImage, RowOp};
use downriver_event::{BlockBuilder, EncodedBlock, TableSchema};
use downriver_source::SourceError;
use downriver_source::chunk::{Chunk, ChunkRead, ChunkReader, ChunkRequest, Reshaped};
use downriver_source::mysql;
use downriver_source::postgres;
use tokio::sync::mpsc;

use super::Database;
use super::snapshot::micros_since_epoch;

/// Rows between two looks at the size of a block.
const ROWS_PER_LOOK: u64 = 256;

/// A chunk as it goes into the log.
#[derive(Clone, Debug)]
pub struct EncodedChunk {
    pub chunk: Chunk,
    pub blocks: Vec<EncodedBlock>,
    pub rows: u64,
}

/// A chunk that one node asks another for.
#[derive(Clone, Debug)]
pub struct WantedChunk {
    /// As [`ChunkReader::server`] of the node that asks says it.
    pub server: String,
    pub schema: Arc<TableSchema>,
    pub request: ChunkRequest,
}

/// Another node's session with the source.
#[async_trait]
pub trait Helper: Send {
    /// Reads a chunk; `None`: the table has another shape by now.
    ///
    /// # Errors
    /// Why it cannot; whoever asks reads the chunk itself.
    async fn read(&mut self, wanted: &WantedChunk) -> Result<Option<EncodedChunk>, String>;
}

/// The other nodes.
pub trait Helpers: fmt::Debug + Send + Sync {
    /// Who reads chunks for the worker of this number; `None`: it reads them itself.
    fn of_worker(&self, worker: usize) -> Option<Box<dyn Helper>>;
}

/// Nobody.
#[derive(Debug)]
pub struct NoHelpers;

impl Helpers for NoHelpers {
    fn of_worker(&self, _: usize) -> Option<Box<dyn Helper>> {
        None
    }
}

/// Reads a chunk and gives its blocks away. How many rows it has is told with it.
pub(crate) async fn encode<R: ChunkReader>(
    session: &mut R,
    schema: &Arc<TableSchema>,
    request: ChunkRequest,
    put: &mut (dyn FnMut(EncodedBlock) -> Result<(), SourceError> + Send),
) -> Result<Result<(Chunk, u64), Reshaped<R::Table>>, SourceError> {
    let now_us = micros_since_epoch();
    let mut builder = BlockBuilder::new();
    let mut rows = 0u64;
    builder.begin("snapshot".into(), now_us);
    let read = session
        .read_chunk(schema, request, &mut |row| {
            row.push_into(builder.row(schema, RowOp::Snapshot, OldImage::None))?;
            rows += 1;
            if rows.is_multiple_of(ROWS_PER_LOOK)
                && builder.raw_bytes() >= BLOCK_RAW_BYTES_MAX - (512 << 10)
            {
                builder.commit_unplaced();
                builder.cut().map_or(Ok(()), &mut *put)?;
                builder.begin("snapshot".into(), now_us);
            }
            Ok(())
        })
        .await?;
    let chunk = match read {
        ChunkRead::Rows(chunk) => chunk,
        ChunkRead::Reshaped(reshaped) => return Ok(Err(reshaped)),
    };
    builder.commit_unplaced();
    builder.cut().map_or(Ok(()), put)?;
    Ok(Ok((chunk, rows)))
}

/// Reads chunks for another node over one session, until nobody asks any more.
///
/// # Errors
/// What the database says, or that it is not the server that the other node has come to.
pub async fn help(
    database: &Database,
    wanted: mpsc::Receiver<WantedChunk>,
    read: mpsc::Sender<Option<EncodedChunk>>,
) -> Result<(), String> {
    match database {
        Database::Postgres(source) => {
            let connection = &source.connection;
            help_over::<postgres::snapshot::SnapshotSession>(connection, wanted, read).await
        }
        Database::Mysql(source) => {
            let connection = &source.connection;
            help_over::<mysql::snapshot::SnapshotSession>(connection, wanted, read).await
        }
    }
}

async fn help_over<R: ChunkReader>(
    config: &R::Config,
    mut wanted: mpsc::Receiver<WantedChunk>,
    read: mpsc::Sender<Option<EncodedChunk>>,
) -> Result<(), String> {
    let said = |error: SourceError| error.problem().reason;
    let mut session: Option<(R, String)> = None;
    while let Some(chunk) = wanted.recv().await {
        let (session, server) = match &mut session {
            Some(session) => session,
            None => {
                let config = R::at(config, &chunk.server);
                let config = config.ok_or_else(|| format!("it knows no {}", chunk.server))?;
                let mut begun = R::connect(&config).await.map_err(said)?;
                let server = begun.server().await.map_err(said)?;
                session.insert((begun, server))
            }
        };
        if *server != chunk.server {
            return Err(format!("it comes to {server}, and not to {}", chunk.server));
        }
        let mut blocks = Vec::new();
        let put = &mut |block| {
            blocks.push(block);
            Ok(())
        };
        let encoded = encode(session, &chunk.schema, chunk.request, put).await;
        let encoded = encoded.map_err(said)?.ok();
        let encoded = encoded.map(|(chunk, rows)| EncodedChunk {
            chunk,
            blocks,
            rows,
        });
        if read.send(encoded).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}
