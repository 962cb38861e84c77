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
use std::fmt;

use bytes::Bytes;
use downriver_event::{RowFilter, SourcePosition, TableId, TableSchema};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use super::catalog::{Catalog, SourceTable};
use super::config::PostgresConfig;
use super::copy::{BinaryRow, copy, malformed, where_};
use super::cut::DatabaseCut;
use super::extent::Extent;
use super::filter::selecting;
use super::key_sql::{KeyColumns, decode_bound, encode_bound};
use super::sql::qualified;
use crate::chunk::{Chunk, ChunkRead, ChunkReader, ChunkRequest, Reshaped, RowSink, Seen};
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

    /// Reads it as the server prints it: `xmin:xmax:xid,xid`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
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

impl fmt::Display for PgSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let running: Vec<String> = self.running.iter().map(u64::to_string).collect();
        write!(f, "{}:{}:{}", self.xmin, self.xmax, running.join(","))
    }
}

fn address_of(config: &PostgresConfig) -> String {
    format!("{}:{}", config.host, config.port)
}

pub struct SnapshotSession {
    address: String,
    catalog: Catalog,
    /// The table that was read last, and the types that its key's columns are compared as.
    key_types: Option<(TableId, Vec<String>)>,
}

impl ChunkReader for SnapshotSession {
    type Config = PostgresConfig;
    type Table = SourceTable;

    fn at(config: &PostgresConfig, server: &str) -> Option<PostgresConfig> {
        let address = server.split(' ').next();
        config
            .servers()
            .find(|one| Some(address_of(one).as_str()) == address)
    }

    async fn connect(config: &PostgresConfig) -> Result<Self, SourceError> {
        Ok(Self {
            address: address_of(config),
            catalog: Catalog::connect(config).await?,
            key_types: None,
        })
    }

    async fn server(&mut self) -> Result<String, SourceError> {
        // A copy of the server has its identifier, and began at another time.
        let query = "select system_identifier::text,
                            extract(epoch from pg_postmaster_start_time())::text
                       from pg_control_system()";
        let row = self.client().query_one(query, &[]).await?;
        let (system, began): (String, String) = (row.get(0), row.get(1));
        Ok(format!("{} {system} {began}", self.address))
    }

    async fn read_chunk(
        &mut self,
        schema: &TableSchema,
        request: ChunkRequest,
        row: &mut RowSink<'_>,
    ) -> Result<ChunkRead<SourceTable>, SourceError> {
        self.key_types(schema).await?;
        let replayed = self.catalog.replayed().await?;
        let row = &mut |read: &BinaryRow<'_>| row(read);
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
        let up_to = |replayed| Seen::UpTo(SourcePosition::Postgres(replayed));
        Ok(ChunkRead::Rows(Chunk {
            seen: replayed.map_or(Seen::In(snapshot), up_to),
            high: SourcePosition::Postgres(self.catalog.passed_position().await?),
            next,
        }))
    }

    async fn estimated_rows(
        &mut self,
        schema: &TableSchema,
        part: &RowFilter,
    ) -> Result<Option<u64>, SourceError> {
        self.expected_rows(schema, part).await
    }
}

impl SnapshotSession {
    pub(super) fn client(&self) -> &Client {
        self.catalog.client()
    }

    /// The types that the key's columns are compared as, in key order. From here on the key's operators are found.
    pub(super) async fn key_types(
        &mut self,
        schema: &TableSchema,
    ) -> Result<&[String], SourceError> {
        if !matches!(&self.key_types, Some((table, _)) if *table == schema.id) {
            self.find_operators(schema.id).await?;
            self.key_types = Some((schema.id, self.read_key_types(schema).await?));
        }
        Ok(self.known_key_types())
    }

    fn known_key_types(&self) -> &[String] {
        self.key_types.as_ref().map_or(&[], |(_, types)| types)
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

    async fn reshaped(
        &mut self,
        schema: &TableSchema,
    ) -> Result<ChunkRead<SourceTable>, SourceError> {
        self.key_types = None;
        let now = self.catalog.table(schema.id).await?.map(Box::new);
        let high = SourcePosition::Postgres(self.catalog.passed_position().await?);
        Ok(ChunkRead::Reshaped(Reshaped { now, high }))
    }

    /// Reads a table without a key exactly as of one position: a change that was taken for unseen and is not would
    /// come twice. Its shape is kept by a lock from before that position on.
    async fn read_bag_of_standby(
        &mut self,
        schema: &TableSchema,
        row: &mut (dyn FnMut(&BinaryRow<'_>) -> Result<(), SourceError> + Send),
    ) -> Result<ChunkRead<SourceTable>, SourceError> {
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
            Some(position) => {
                let position = SourcePosition::Postgres(position);
                Ok(ChunkRead::Rows(Chunk {
                    seen: Seen::UpTo(position.clone()),
                    high: position,
                    next: None,
                }))
            }
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
        let key = KeyColumns::of(schema, self.known_key_types());
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
        if let Some(part) = &request.part {
            filters.push(selecting(part, &key)?);
        }
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
}
