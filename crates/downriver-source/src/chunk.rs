//! Reading a table chunk by chunk beside the stream, whatever the database.

use std::future::Future;

use bytes::Bytes;
use downriver_event::block::RowColumns;
use downriver_event::{BinlogPlace, RowFilter, SourcePosition, TableSchema};

use crate::error::SourceError;
use crate::postgres::snapshot::PgSnapshot;

/// One row that was read.
pub trait Row {
    /// Pushes every column's cell.
    ///
    /// # Errors
    /// A value that is not of its column's type.
    fn push_into(&self, columns: RowColumns<'_>) -> Result<(), SourceError>;
}

/// Takes the rows of a chunk.
pub type RowSink<'a> = dyn FnMut(&dyn Row) -> Result<(), SourceError> + Send + 'a;

/// Which transactions a chunk's rows contain for sure.
#[derive(Clone, Debug)]
pub enum Seen {
    /// Those that a snapshot of PostgreSQL sees, and no other.
    In(PgSnapshot),
    /// Those whose own position this one covers.
    UpTo(SourcePosition),
    /// Those that end in the server's binlog here or before.
    UpToPlace(BinlogPlace),
}

impl Seen {
    /// Whether a transaction that the stream brought is one of them; `end`: where its commit ends.
    #[must_use]
    pub fn has(&self, id: &str, end: Option<&SourcePosition>) -> bool {
        match self {
            Self::In(snapshot) => id.parse().is_ok_and(|xid| snapshot.sees(xid)),
            Self::UpTo(position) => end.is_some_and(|end| position.covers(end)),
            Self::UpToPlace(place) => end
                .and_then(SourcePosition::place)
                .is_some_and(|end| place.covers(end)),
        }
    }
}

#[derive(Clone, Debug)]
pub struct ChunkRequest {
    /// Read just the rows of this part of the table.
    pub part: Option<RowFilter>,
    /// Where the chunk starts, as an earlier chunk gave it; `None`: at the table's start.
    pub after: Option<Bytes>,
    /// Read just the rows with these keys (of the form that `Column::write_key` writes), in any part of the table.
    pub keys: Option<Vec<Bytes>>,
    pub rows_max: u64,
}

#[derive(Clone, Debug)]
pub struct Chunk {
    pub seen: Seen,
    /// Every transaction that the rows contain ends here or before.
    pub high: SourcePosition,
    /// Where the next chunk starts; `None` after the last.
    pub next: Option<Bytes>,
}

/// What reading a chunk found.
#[derive(Debug)]
pub enum ChunkRead<T> {
    Rows(Chunk),
    Reshaped(Reshaped<T>),
}

/// The table does not have the shape that was to be read any more.
#[derive(Debug)]
pub struct Reshaped<T> {
    /// What it is now; `None`: it is gone, or not selected any more.
    pub now: Option<Box<T>>,
    /// The stream that has passed this position has brought every row of an earlier shape.
    pub high: SourcePosition,
}

/// A session that reads tables, one chunk after another.
pub trait ChunkReader: Sized + Send {
    /// How the database is reached.
    type Config: Clone + Send + Sync + 'static;
    /// What its catalog says of a table.
    type Table: Send + 'static;

    /// The configuration that comes to the same server, as a session says which that is; `None`: it is none of the source's.
    fn at(config: &Self::Config, server: &str) -> Option<Self::Config>;

    /// # Errors
    /// The server cannot be reached, or refuses.
    fn connect(config: &Self::Config) -> impl Future<Output = Result<Self, SourceError>> + Send;

    /// Which server the session has come to: the address, how the session is to be, and what the server says of itself.
    ///
    /// # Errors
    /// The query failed.
    fn server(&mut self) -> impl Future<Output = Result<String, SourceError>> + Send;

    /// Reads one chunk, row by row.
    ///
    /// # Errors
    /// A query failed, or `row` did.
    fn read_chunk(
        &mut self,
        schema: &TableSchema,
        request: ChunkRequest,
        row: &mut RowSink<'_>,
    ) -> impl Future<Output = Result<ChunkRead<Self::Table>, SourceError>> + Send;

    /// The planner's estimate of the rows of a part of a table, if it has one.
    ///
    /// # Errors
    /// The query failed.
    fn estimated_rows(
        &mut self,
        schema: &TableSchema,
        part: &RowFilter,
    ) -> impl Future<Output = Result<Option<u64>, SourceError>> + Send;
}
