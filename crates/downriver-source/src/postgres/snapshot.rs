//! Reads a table chunk by chunk, each in a short transaction of its own.
//!
//! The consistent point of a chunk: its REPEATABLE READ transaction's snapshot S, taken by its first statement.
//! After it ended, `high` is where the server writes: every transaction visible in S was logged before.
//! The table is locked against changes of its shape before S is taken, and looked up in S: names alone do not tell a
//! column from another that got its name since.
//! On a standby it is known from before S up to where S sees everything at least, and a table without a key, for which
//! it has to be known exactly, is read through what a slot exports at its consistent point.
//! Chunks are ranges of the table's key; bounds are compared by the server only, in the key's own collation.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use downriver_decode::postgres::binary;
use downriver_decode::postgres::mask::Mask;
use downriver_event::block::RowColumns;
use downriver_event::{Column, LogicalType, Lsn, Presence, TableId, TableSchema};
use futures_util::TryStreamExt as _;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::catalog::{Catalog, SourceTable};
use super::config::PostgresConfig;
use super::cut::DatabaseCut;
use super::extent::Extent;
use super::rules::ColumnRules;
use super::sql::{identifier, literal, qualified};
use crate::error::SourceError;

/// A transaction snapshot, as `pg_current_snapshot()` prints it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PgSnapshot {
    /// Every transaction below it has ended.
    pub xmin: u64,
    /// No transaction from here on has ended.
    pub xmax: u64,
    /// Those between that have not.
    pub running: Vec<u64>,
}

impl PgSnapshot {
    /// Of the session's transaction, or of its next statement.
    pub(super) async fn current(client: &Client) -> Result<Self, SourceError> {
        let row = client
            .query_one("select pg_current_snapshot()::text", &[])
            .await?;
        Self::parse(row.get(0)).ok_or_else(|| malformed("a transaction snapshot"))
    }

    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(':');
        let (xmin, xmax) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        let running = parts.next()?.split(',').filter(|xid| !xid.is_empty());
        Some(Self {
            xmin,
            xmax,
            running: running.map(|xid| xid.parse().ok()).collect::<Option<_>>()?,
        })
    }

    /// Whether a committed transaction is visible. The stream's 32-bit id is widened to the one nearest to
    /// the snapshot: ids further apart than 2^31 cannot be alive together.
    #[must_use]
    pub fn sees(&self, xid: u32) -> bool {
        let mut wide = (self.xmax & !0xffff_ffff) | u64::from(xid);
        if wide > self.xmax + (1 << 31) {
            wide = wide.saturating_sub(1 << 32);
        } else if wide + (1 << 31) < self.xmax {
            wide += 1 << 32;
        }
        wide < self.xmin || (wide < self.xmax && !self.running.contains(&wide))
    }
}

/// Which transactions a chunk's rows contain for sure.
#[derive(Clone, Debug)]
pub enum Seen {
    /// Those that the snapshot sees, and no other.
    In(PgSnapshot),
    /// Of a standby: those whose commit ends here or before.
    UpTo(Lsn),
}

impl Seen {
    /// Whether a transaction that the stream brought is one of them; `end`: where its commit ends.
    #[must_use]
    pub fn has(&self, xid: u32, end: Option<Lsn>) -> bool {
        match self {
            Self::In(snapshot) => snapshot.sees(xid),
            Self::UpTo(position) => end.is_some_and(|end| end <= *position),
        }
    }
}

#[derive(Clone, Debug)]
pub struct ChunkRequest {
    /// Where the chunk starts, as an earlier chunk gave it; `None`: at the table's start.
    pub after: Option<Bytes>,
    /// Read just the rows with these keys (of the form that `Column::write_key` writes).
    pub keys: Option<Vec<Bytes>>,
    pub rows_max: u64,
}

#[derive(Clone, Debug)]
pub struct Chunk {
    pub seen: Seen,
    pub high: Lsn,
    /// Where the next chunk starts; `None` after the last.
    pub next: Option<Bytes>,
}

/// What reading a chunk found.
#[derive(Debug)]
pub enum ChunkRead {
    Rows(Chunk),
    Reshaped(Reshaped),
}

/// The table does not have the shape that was to be read any more.
#[derive(Debug)]
pub struct Reshaped {
    /// What it is now; `None`: it is gone, or not selected any more.
    pub now: Option<Box<SourceTable>>,
    /// The stream that has passed this position has brought every row of an earlier shape.
    pub high: Lsn,
}

/// One row of COPY's binary form.
#[derive(Debug)]
pub struct BinaryRow<'a> {
    schema: &'a TableSchema,
    /// One for each column; empty: none is masked.
    masks: &'a [Option<Arc<Mask>>],
    fields: &'a [u8],
}

impl BinaryRow<'_> {
    /// Pushes every column's cell.
    ///
    /// # Errors
    /// A value that is not of its column's type.
    pub fn push_into(&self, columns: RowColumns<'_>) -> Result<(), SourceError> {
        let mut rest = self.fields;
        let mut masks = self.masks.iter();
        for (column, out) in self.schema.columns.iter().zip(columns.new) {
            if rest.len() < 4 {
                return Err(malformed("a row ends early"));
            }
            let len = rest.get_i32();
            let value = if len == -1 {
                None
            } else {
                let value = usize::try_from(len)
                    .ok()
                    .and_then(|len| rest.split_at_checked(len));
                let (value, after) = value.ok_or_else(|| malformed("a value ends early"))?;
                rest = after;
                Some(value)
            };
            let pushed = match (masks.next(), value) {
                (Some(Some(mask)), value) => mask.push(column, value, out),
                (_, Some(value)) => binary::push(&column.ty, value, out),
                (_, None) => {
                    out.push_presence(Presence::Null);
                    Ok(())
                }
            };
            pushed.map_err(|error| SourceError::Value {
                table: self.schema.qualified_name(),
                column: column.name.clone(),
                error,
            })?;
        }
        Ok(())
    }
}

fn malformed(what: &str) -> SourceError {
    SourceError::definite(
        "DR-1040",
        format!("COPY sent what is not its format: {what}"),
        "report it",
    )
}

pub struct SnapshotSession {
    catalog: Catalog,
    /// The table that was read last, and the types that its key's columns are compared as.
    key_types: Option<(TableId, Vec<String>)>,
}

impl SnapshotSession {
    /// # Errors
    /// The server cannot be reached, or refuses.
    pub async fn connect(config: &PostgresConfig) -> Result<Self, SourceError> {
        Ok(Self {
            catalog: Catalog::connect(config).await?,
            key_types: None,
        })
    }

    fn client(&self) -> &Client {
        self.catalog.client()
    }

    /// # Errors
    /// The query failed.
    pub async fn current_snapshot(&self) -> Result<PgSnapshot, SourceError> {
        PgSnapshot::current(self.client()).await
    }

    /// The transactions that have an id and have not ended for other snapshots. The upper end of a snapshot does not
    /// tell: it stands behind the last transaction that *ended*, and below those that began since and still run.
    ///
    /// A transaction holds a lock on its id from when it gets it until after it became visible (PostgreSQL's
    /// `CommitTransaction`), also while it waits for a standby and when it is prepared.
    ///
    /// # Errors
    /// The query failed.
    pub async fn running_transactions(&self) -> Result<HashSet<String>, SourceError> {
        let rows = self
            .client()
            .query(
                "select transactionid::text from pg_locks
                  where locktype = 'transactionid' and mode = 'ExclusiveLock' and granted",
                &[],
            )
            .await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// Reads one chunk, row by row.
    ///
    /// # Errors
    /// A query failed, or `row` did.
    pub async fn read_chunk(
        &mut self,
        schema: &TableSchema,
        request: ChunkRequest,
        row: &mut (dyn FnMut(&BinaryRow<'_>) -> Result<(), SourceError> + Send),
    ) -> Result<ChunkRead, SourceError> {
        if !matches!(&self.key_types, Some((table, _)) if *table == schema.id) {
            self.find_operators(schema.id).await?;
            self.key_types = Some((schema.id, self.read_key_types(schema).await?));
        }
        let replayed = self.catalog.replayed().await?;
        if replayed.is_some() && schema.is_bag() {
            return self.read_bag_of_standby(schema, row).await;
        }
        self.client()
            .batch_execute("begin isolation level repeatable read read only")
            .await?;
        let read = self.read_in_transaction(schema, request, row).await;
        let ended = self.client().batch_execute("commit").await;
        let read = read?;
        ended?;
        let Some((snapshot, next)) = read else {
            return self.reshaped(schema).await;
        };
        Ok(ChunkRead::Rows(Chunk {
            seen: replayed.map_or(Seen::In(snapshot), Seen::UpTo),
            high: self.catalog.passed_position().await?,
            next,
        }))
    }

    async fn reshaped(&mut self, schema: &TableSchema) -> Result<ChunkRead, SourceError> {
        self.key_types = None;
        let now = self.catalog.table(schema.id).await?.map(Box::new);
        let high = self.catalog.passed_position().await?;
        Ok(ChunkRead::Reshaped(Reshaped { now, high }))
    }

    /// Reads a table without a key exactly as of one position: a change that was taken for unseen and is not would
    /// come twice. Its shape is kept by a lock from before that position on.
    async fn read_bag_of_standby(
        &mut self,
        schema: &TableSchema,
        row: &mut (dyn FnMut(&BinaryRow<'_>) -> Result<(), SourceError> + Send),
    ) -> Result<ChunkRead, SourceError> {
        self.client()
            .batch_execute("begin isolation level read committed read only")
            .await?;
        let read = async {
            if !self.lock_shape(schema).await? {
                return Ok(None);
            }
            let cut = DatabaseCut::take(self.catalog.config()).await?;
            cut.read(schema, row).await?;
            Ok::<_, SourceError>(Some(cut.position()))
        };
        let read = read.await;
        let ended = self.client().batch_execute("commit").await;
        let read = read?;
        ended?;
        match read {
            Some(position) => Ok(ChunkRead::Rows(Chunk {
                seen: Seen::UpTo(position),
                high: position,
                next: None,
            })),
            None => self.reshaped(schema).await,
        }
    }

    /// Keeps the table's shape until the transaction ends. Whether it is the one that is to be read.
    async fn lock_shape(&self, schema: &TableSchema) -> Result<bool, SourceError> {
        let name = qualified(&schema.namespace, &schema.name);
        // The transaction's snapshot is not taken by this statement, but by the next one.
        let lock = format!("lock table only {name} in access share mode");
        match self.client().batch_execute(&lock).await {
            Ok(()) => {}
            Err(error) if is_gone(&error) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
        let now = self.catalog.table(schema.id).await?;
        Ok(now.is_some_and(|now| is_read_as(&now.schema, schema)))
    }

    /// Puts the schemas of the key's operators at the end of the search path. Without them `>` on a key of an
    /// extension's type may be another type's, such as text's for citext, and chunks in another order leave rows out.
    async fn find_operators(&self, table: TableId) -> Result<(), SourceError> {
        self.client()
            .query_opt(
                "select set_config('search_path', concat_ws(', ', nullif(current_setting('search_path'), ''), schemas), false)
                   from (select string_agg(distinct quote_ident(n.nspname), ', ') as schemas
                           from pg_index i
                                join pg_opclass c on c.oid = any(i.indclass::oid[])
                                join pg_amop a on a.amopfamily = c.opcfamily
                                              and a.amoplefttype = c.opcintype and a.amoprighttype = c.opcintype
                                join pg_operator o on o.oid = a.amopopr
                                join pg_namespace n on n.oid = o.oprnamespace
                          where i.indrelid = $1 and (i.indisprimary or i.indisreplident) and n.nspname <> all(current_schemas(true))) missing
                  where schemas is not null",
                &[&table.0],
            )
            .await?;
        Ok(())
    }

    /// The types of the key's columns, without modifiers and domains: a domain hides an enum's operators.
    async fn read_key_types(&self, schema: &TableSchema) -> Result<Vec<String>, SourceError> {
        let mut types = Vec::with_capacity(schema.key.len());
        for column in schema.key_indexes() {
            let column = &schema.columns[column];
            let row = self
                .client()
                .query_opt(
                    "with recursive key as (
                         select atttypid ty from pg_attribute where attrelid = $1 and attname = $2 and not attisdropped
                         union all
                         select typbasetype from key join pg_type on oid = ty where typtype = 'd')
                     select format_type(oid, -1) from key join pg_type on oid = ty where typtype <> 'd'",
                    &[&schema.id.0, &column.name],
                )
                .await?;
            // Without the column the chunk's own statement fails, and says so.
            types.push(row.map_or_else(|| column.source_type.clone(), |row| row.get(0)));
        }
        Ok(types)
    }

    async fn read_in_transaction(
        &self,
        schema: &TableSchema,
        request: ChunkRequest,
        row: &mut (dyn FnMut(&BinaryRow<'_>) -> Result<(), SourceError> + Send),
    ) -> Result<Option<(PgSnapshot, Option<Bytes>)>, SourceError> {
        if !self.lock_shape(schema).await? {
            return Ok(None);
        }
        let snapshot = self.current_snapshot().await?;
        let Extent { table, filter } = self.catalog.extent(schema).await?;
        if schema.is_bag() {
            let filters = Vec::from_iter(filter);
            self.copy(schema, &table, &filters, row).await?;
            return Ok(Some((snapshot, None)));
        }
        let key = KeyColumns::of(
            schema,
            self.key_types.as_ref().map_or(&[], |(_, types)| types),
        );
        if let Some(keys) = request.keys {
            if !keys.is_empty() {
                let rows: Vec<String> = keys
                    .iter()
                    .map(|bytes| key.row_of(bytes))
                    .collect::<Result<_, _>>()?;
                let mut filters = Vec::from_iter(filter);
                filters.push(format!("({}) in ({})", key.compared(), rows.join(", ")));
                self.copy(schema, &table, &filters, row).await?;
            }
            return Ok(Some((snapshot, None)));
        }
        let mut filters = Vec::from_iter(filter);
        if let Some(after) = &request.after {
            filters.push(format!(
                "({}) > {}",
                key.compared(),
                key.row(&decode_bound(after)?)
            ));
        }
        let from = filters.clone();
        let last = self
            .client()
            .query_opt(
                &format!(
                    "select {} from {table} {} order by {} offset {} limit 1",
                    key.texts(),
                    where_(&from),
                    key.names(),
                    request.rows_max.saturating_sub(1)
                ),
                &[],
            )
            .await?;
        let next = last
            .map(|last| {
                (0..key.0.len())
                    .map(|at| last.try_get(at))
                    .collect::<Result<Vec<String>, _>>()
            })
            .transpose()?;
        if let Some(bound) = &next {
            filters.push(format!("({}) <= {}", key.compared(), key.row(bound)));
        }
        self.copy(schema, &table, &filters, row).await?;
        Ok(Some((snapshot, next.map(|bound| encode_bound(&bound)))))
    }

    async fn copy(
        &self,
        schema: &TableSchema,
        table: &str,
        filters: &[String],
        row: &mut (dyn FnMut(&BinaryRow<'_>) -> Result<(), SourceError> + Send),
    ) -> Result<(), SourceError> {
        let rules = self.catalog.rules();
        copy(self.client(), schema, rules, table, filters, row).await
    }
}

/// The name is no table's any more, or that of something else.
fn is_gone(error: &tokio_postgres::Error) -> bool {
    let gone = [
        &SqlState::UNDEFINED_TABLE,
        &SqlState::INVALID_SCHEMA_NAME,
        &SqlState::WRONG_OBJECT_TYPE,
    ];
    error.code().is_some_and(|code| gone.contains(&code))
}

/// Whether a table that is now one of `now` gives the rows of `schema` under its names.
fn is_read_as(now: &TableSchema, schema: &TableSchema) -> bool {
    let mut columns = now.columns.iter().zip(&schema.columns);
    now.namespace == schema.namespace
        && now.name == schema.name
        && now.key == schema.key
        && now.columns.len() == schema.columns.len()
        && columns.all(|(now, column)| {
            now.id == column.id
                && now.name == column.name
                && now.ty == column.ty
                && now.cover == column.cover
        })
}

/// Reads everything of a table that is published, inside the catalog's transaction.
pub(super) async fn copy_table(
    catalog: &Catalog,
    schema: &TableSchema,
    row: &mut (dyn FnMut(&BinaryRow<'_>) -> Result<(), SourceError> + Send),
) -> Result<(), SourceError> {
    let Extent { table, filter } = catalog.extent(schema).await?;
    let filters = Vec::from_iter(filter);
    let rules = catalog.rules();
    copy(catalog.client(), schema, rules, &table, &filters, row).await
}

async fn copy(
    client: &Client,
    schema: &TableSchema,
    rules: &ColumnRules,
    table: &str,
    filters: &[String],
    row: &mut (dyn FnMut(&BinaryRow<'_>) -> Result<(), SourceError> + Send),
) -> Result<(), SourceError> {
    if !rules.fit(schema) {
        return Err(SourceError::transient(
            "DR-1053",
            format!(
                "the rules for the columns of {} are other ones than those that its newest rows in the log are of",
                schema.qualified_name()
            ),
            "nothing: it goes on when the source has taken up the new rules",
        ));
    }
    let masks = rules.masks(schema);
    let columns = schema.columns.iter().enumerate();
    let columns: Vec<String> = columns
        .map(|(at, column)| match masks.get(at) {
            Some(Some(mask)) => select_masked(column, mask),
            _ => select_column(column),
        })
        .collect();
    let query = format!(
        "copy (select {} from {table} {}) to stdout (format binary)",
        columns.join(", "),
        where_(filters)
    );
    let stream = client.copy_out(&query).await?;
    let mut stream = std::pin::pin!(stream);
    let mut buffer = BytesMut::new();
    let mut header = true;
    while let Some(bytes) = stream.try_next().await? {
        // Usually one row a message; the header comes with the first.
        let mut rest: &[u8] = if buffer.is_empty() {
            &bytes
        } else {
            buffer.extend_from_slice(&bytes);
            &buffer
        };
        if header {
            let Some(after) = after_header(rest)? else {
                let kept = BytesMut::from(rest);
                buffer = kept;
                continue;
            };
            header = false;
            rest = after;
        }
        loop {
            match split_row(rest, schema.columns.len())? {
                Split::Row(fields, after) => {
                    row(&BinaryRow {
                        schema,
                        masks: &masks,
                        fields,
                    })?;
                    rest = after;
                }
                Split::End => {
                    rest = &[];
                    break;
                }
                Split::More => break,
            }
        }
        buffer = BytesMut::from(rest);
    }
    if buffer.is_empty() {
        Ok(())
    } else {
        Err(malformed("it ends in the middle of a row"))
    }
}

fn where_(filters: &[String]) -> String {
    if filters.is_empty() {
        String::new()
    } else {
        format!("where {}", filters.join(" and "))
    }
}

/// A masked column as its text, or not at all.
fn select_masked(column: &Column, mask: &Mask) -> String {
    if mask.is_fixed() {
        return "null::text".to_owned();
    }
    printed(&identifier(&column.name))
}

/// As the type's output function prints it, as in the stream. A cast to text may differ: `inet '::1'::text` is
/// `::1/128`. And `is null` holds for a composite value of nulls.
fn printed(name: &str) -> String {
    format!("case when {name} is distinct from null then format('%s', {name}) end")
}

/// A column in the form that `binary` reads as its type.
fn select_column(column: &Column) -> String {
    let name = identifier(&column.name);
    match &column.ty {
        // Not interpreted.
        LogicalType::Other => printed(&name),
        LogicalType::Array(element) => match wider(element) {
            Some(ty) => format!("{name}::{ty}[]"),
            None => name,
        },
        ty => match wider(ty) {
            Some(ty) => format!("{name}::{ty}"),
            None => name,
        },
    }
}

/// The one type whose binary form stands for all that are read as this one (money as numeric, oid as bigint); the cast
/// costs nothing for the type itself.
fn wider(ty: &LogicalType) -> Option<&'static str> {
    match ty {
        LogicalType::Decimal { .. } => Some("pg_catalog.numeric"),
        LogicalType::Int64 => Some("pg_catalog.int8"),
        _ => None,
    }
}

/// Past the signature, flags and extension; `None` if there is more to come.
fn after_header(bytes: &[u8]) -> Result<Option<&[u8]>, SourceError> {
    const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0";
    if bytes.len() < SIGNATURE.len() + 8 {
        return Ok(None);
    }
    let rest = bytes
        .strip_prefix(SIGNATURE)
        .ok_or_else(|| malformed("no signature"))?;
    let extension = u32::from_be_bytes([rest[4], rest[5], rest[6], rest[7]]) as usize;
    Ok(rest[8..].get(extension..))
}

enum Split<'a> {
    Row(&'a [u8], &'a [u8]),
    End,
    More,
}

fn split_row(bytes: &[u8], columns: usize) -> Result<Split<'_>, SourceError> {
    let Some((count, mut rest)) = bytes.split_first_chunk::<2>() else {
        return Ok(Split::More);
    };
    let count = i16::from_be_bytes(*count);
    if count == -1 {
        return Ok(Split::End);
    }
    if usize::try_from(count) != Ok(columns) {
        return Err(malformed("a row has another number of columns"));
    }
    let start = rest;
    for _ in 0..columns {
        let Some((len, after)) = rest.split_first_chunk::<4>() else {
            return Ok(Split::More);
        };
        rest = after;
        let len = i32::from_be_bytes(*len);
        if len >= 0 {
            let len = usize::try_from(len).expect("not negative");
            let Some(after) = rest.get(len..) else {
                return Ok(Split::More);
            };
            rest = after;
        }
    }
    Ok(Split::Row(&start[..start.len() - rest.len()], rest))
}

/// The key's columns in key order, each with the type that it is compared as.
struct KeyColumns<'a>(Vec<(&'a Column, &'a str)>);

impl<'a> KeyColumns<'a> {
    fn of(schema: &'a TableSchema, types: &'a [String]) -> Self {
        let columns = schema.key_indexes().into_iter();
        let columns = columns.map(|index| &schema.columns[index]);
        Self(columns.zip(types.iter().map(String::as_str)).collect())
    }

    fn each(&self, sql: impl Fn(&str, &str) -> String) -> String {
        let each: Vec<String> = self
            .0
            .iter()
            .map(|(column, ty)| sql(&identifier(&column.name), ty))
            .collect();
        each.join(", ")
    }

    fn names(&self) -> String {
        self.each(|name, _| name.to_owned())
    }

    fn compared(&self) -> String {
        self.each(|name, ty| format!("{name}::{ty}"))
    }

    fn texts(&self) -> String {
        self.each(|name, _| format!("{name}::text"))
    }

    /// A row of values printed as text.
    fn row(&self, values: &[String]) -> String {
        let values: Vec<String> = values
            .iter()
            .zip(&self.0)
            .map(|(value, (_, ty))| format!("{}::{ty}", literal(value)))
            .collect();
        format!("({})", values.join(", "))
    }

    /// A row of values as `Column::write_key` wrote them.
    fn row_of(&self, key: &[u8]) -> Result<String, SourceError> {
        let mut rest = key;
        let mut values = Vec::with_capacity(self.0.len());
        for (column, ty) in &self.0 {
            let value = key_value(&column.ty, &mut rest).ok_or_else(|| {
                SourceError::definite(
                    "DR-1042",
                    format!(
                        "a row's key cannot be looked up by column {:?} ({})",
                        column.name, column.source_type
                    ),
                    "report it; excluding the table lets the others go on",
                )
            })?;
            values.push(format!("{value}::{ty}"));
        }
        Ok(format!("({})", values.join(", ")))
    }
}

/// One value of a key as an SQL expression.
fn key_value(ty: &LogicalType, rest: &mut &[u8]) -> Option<String> {
    let (presence, after) = rest.split_first()?;
    *rest = after;
    match Presence::from_code(*presence)? {
        Presence::Value => {}
        Presence::NaN => return Some("'NaN'".into()),
        Presence::PositiveInfinity => return Some("'Infinity'".into()),
        Presence::NegativeInfinity => return Some("'-Infinity'".into()),
        _ => return None,
    }
    let mut take = |len: usize| {
        let (taken, after) = rest.split_at_checked(len)?;
        *rest = after;
        Some(taken)
    };
    let hex = |bytes: &[u8]| -> String { bytes.iter().map(|byte| format!("{byte:02x}")).collect() };
    Some(match ty {
        LogicalType::Bool => format!("'{}'", take(1)? != [0]),
        LogicalType::Int16 | LogicalType::Int32 => {
            format!("({})", i32::from_le_bytes(take(4)?.try_into().ok()?))
        }
        LogicalType::Date => {
            let days = i32::from_le_bytes(take(4)?.try_into().ok()?);
            format!("(date '1970-01-01' + ({days}))")
        }
        LogicalType::Int64 => format!("({})", i64::from_le_bytes(take(8)?.try_into().ok()?)),
        LogicalType::Float32 => {
            format!("'{}'", f32::from_le_bytes(take(4)?.try_into().ok()?))
        }
        LogicalType::Float64 => {
            format!("'{}'", f64::from_le_bytes(take(8)?.try_into().ok()?))
        }
        LogicalType::Time => {
            // Not as midnight and an interval: that makes 24:00:00 to 00:00:00.
            let micros = i64::from_le_bytes(take(8)?.try_into().ok()?);
            let (minutes, micros) = (micros / 60_000_000, micros % 60_000_000);
            let (seconds, micros) = (micros / 1_000_000, micros % 1_000_000);
            format!(
                "'{:02}:{:02}:{seconds:02}.{micros:06}'",
                minutes / 60,
                minutes % 60
            )
        }
        LogicalType::Timestamp | LogicalType::TimestampTz => {
            let micros = i64::from_le_bytes(take(8)?.try_into().ok()?);
            let zone = if *ty == LogicalType::TimestampTz {
                "timestamptz '1970-01-01 00:00:00+00'"
            } else {
                "timestamp '1970-01-01'"
            };
            // Before version 15 a number of microseconds is no larger than an int4; UTC has days of one length.
            let day = 86_400_000_000;
            let (days, micros) = (micros.div_euclid(day), micros.rem_euclid(day));
            let (seconds, micros) = (micros / 1_000_000, micros % 1_000_000);
            format!("({zone} + interval '{days} days {seconds}.{micros:06} seconds')")
        }
        LogicalType::Interval => {
            let bytes = take(8 + 16)?.split_at(8).1;
            let months = i32::from_le_bytes(bytes[..4].try_into().ok()?);
            let days = i32::from_le_bytes(bytes[4..8].try_into().ok()?);
            let micros = i64::from_le_bytes(bytes[8..].try_into().ok()?);
            format!("'{months} mons {days} days {micros} microseconds'")
        }
        LogicalType::Uuid => format!("'{}'", hex(take(8 + 16)?.split_at(8).1)),
        LogicalType::Bytes => {
            let len = usize::try_from(u64::from_le_bytes(take(8)?.try_into().ok()?)).ok()?;
            format!("E'\\\\x{}'", hex(take(len)?))
        }
        LogicalType::Text
        | LogicalType::Decimal { .. }
        | LogicalType::Enum { .. }
        | LogicalType::Other
        | LogicalType::Json => {
            let len = usize::try_from(u64::from_le_bytes(take(8)?.try_into().ok()?)).ok()?;
            literal(std::str::from_utf8(take(len)?).ok()?)
        }
        LogicalType::Array(_) => return None,
    })
}

/// Length and text of each of the bound's values.
fn encode_bound(values: &[String]) -> Bytes {
    let mut bytes = BytesMut::new();
    for value in values {
        bytes.put_u32_le(u32::try_from(value.len()).expect("a key's value is small"));
        bytes.extend_from_slice(value.as_bytes());
    }
    bytes.freeze()
}

fn decode_bound(mut bytes: &[u8]) -> Result<Vec<String>, SourceError> {
    let mut values = Vec::new();
    while !bytes.is_empty() {
        let value = bytes
            .try_get_u32_le()
            .ok()
            .and_then(|len| bytes.split_at_checked(len as usize));
        let (value, after) = value.ok_or_else(|| malformed("a stored bound"))?;
        bytes = after;
        values.push(String::from_utf8(value.to_vec()).map_err(|_| malformed("a stored bound"))?);
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_snapshot_sees_what_ended_before_it_across_the_wrap_of_ids() {
        let snapshot = PgSnapshot::parse("4294967290:4294967300:4294967295,4294967298").unwrap();
        assert!(snapshot.sees(4_294_967_289));
        assert!(!snapshot.sees(4_294_967_295));
        assert!(snapshot.sees(4_294_967_294));
        assert!(!snapshot.sees(2), "4294967298 runs");
        assert!(snapshot.sees(1), "4294967297 has ended");
        assert!(!snapshot.sees(4), "4294967300 was not there yet");
        assert!(PgSnapshot::parse("7:7:").unwrap().sees(6));
    }

    #[test]
    fn a_bound_is_read_back() {
        let bound = vec!["a'b".to_owned(), String::new(), "ü".to_owned()];
        assert_eq!(decode_bound(&encode_bound(&bound)).unwrap(), bound);
    }
}
