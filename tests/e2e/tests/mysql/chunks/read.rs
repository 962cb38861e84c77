//! A table, read chunk by chunk.

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use downriver_event::block::{Block, BlockBuilder, OldImage, RowOp};
use downriver_event::{Offset, SourcePosition, TableSchema, pb, view};
use downriver_source::chunk::{Chunk, ChunkRead, ChunkReader as _, ChunkRequest, Reshaped};
use downriver_source::mysql::catalog::SourceTable;
use downriver_source::mysql::config::MysqlConfig;
use downriver_source::mysql::snapshot::SnapshotSession;
use downriver_testkit::mysql::Mysql;
use std::sync::Arc;

pub(crate) async fn config(server: &Mysql) -> Result<MysqlConfig> {
    let port = server.client().await?.opts().tcp_port();
    let mut config = MysqlConfig::from_url(&format!("mysql://root@127.0.0.1:{port}"))?;
    config.tables = vec!["*.*".into()];
    Ok(config)
}

pub(crate) fn request(after: Option<Bytes>, rows_max: u64) -> ChunkRequest {
    ChunkRequest {
        part: None,
        after,
        keys: None,
        rows_max,
    }
}

pub(crate) enum Read {
    Rows(Vec<pb::Row>, Chunk),
    Reshaped(Reshaped<SourceTable>),
}

pub(crate) async fn chunk(
    session: &mut SnapshotSession,
    schema: &TableSchema,
    request: ChunkRequest,
) -> Result<Read> {
    let mut registered = schema.clone();
    registered.version = 1;
    let registered = Arc::new(registered);
    let mut builder = BlockBuilder::new();
    builder.begin("1".into(), 0);
    let read = session
        .read_chunk(schema, request, &mut |row| {
            row.push_into(builder.row(&registered, RowOp::Insert, OldImage::None))
        })
        .await
        .map_err(|error| anyhow::anyhow!("{:?}", error.problem()))?;
    let chunk = match read {
        ChunkRead::Rows(chunk) => chunk,
        ChunkRead::Reshaped(reshaped) => return Ok(Read::Reshaped(reshaped)),
    };
    builder.commit(&chunk.high);
    let rows = match builder.cut() {
        Some(block) => rows(&Block::decode(&block.frame)?, &registered, &chunk.high)?,
        None => Vec::new(),
    };
    Ok(Read::Rows(rows, chunk))
}

fn rows(block: &Block, schema: &TableSchema, high: &SourcePosition) -> Result<Vec<pb::Row>> {
    let events = view::events(block, Offset(0), high, |_, _| Some(schema))?;
    let rows = events.into_iter().map(|event| event.after);
    rows.collect::<Option<_>>().context("a row is new")
}

/// The rows of a table that has the shape that was asked for.
pub(crate) async fn rows_of(
    session: &mut SnapshotSession,
    schema: &TableSchema,
    request: ChunkRequest,
) -> Result<(Vec<pb::Row>, Chunk)> {
    match chunk(session, schema, request).await? {
        Read::Rows(rows, chunk) => Ok((rows, chunk)),
        Read::Reshaped(reshaped) => bail!("reshaped: {:?}", reshaped.now),
    }
}

/// Every row, and how many chunks they came in.
pub(crate) async fn all_rows(
    session: &mut SnapshotSession,
    schema: &TableSchema,
    rows_max: u64,
) -> Result<(Vec<pb::Row>, usize)> {
    let (mut all, mut after, mut chunks) = (Vec::new(), None, 0);
    loop {
        let (rows, chunk) = rows_of(session, schema, request(after, rows_max)).await?;
        all.extend(rows);
        chunks += 1;
        if chunks > 10_000 {
            bail!("there is no end of chunks");
        }
        match chunk.next {
            Some(next) => after = Some(next),
            None => return Ok((all, chunks)),
        }
    }
}
