//! Reads a table chunk by chunk, each in a short transaction of its own.
//!
//! The consistent point of a chunk. A transaction is written to the binlog first and becomes visible afterwards, so the
//! end of the binlog alone does not tell what a read sees.
//!
//! ```text
//! MySQL with GTIDs      shape kept -> gtid_executed = seen -> read view -> end of the binlog = high
//! MySQL without them    shape kept -> locked against writers -> read view, end of the binlog = seen = high -> unlocked
//! MariaDB               shape kept elsewhere -> read view with its own place = seen = high -> shape kept
//! ```
//!
//! With GTIDs: what is in gtid_executed is visible to a view that is made later, and what a view shows was logged before.
//! Without: writers hold a lock on the table until what they wrote is visible, so where none is nothing hangs between.
//! MariaDB tells at which place of the binlog a view is.
//!
//! A table's shape is kept by the metadata lock that any statement takes on it until its transaction ends, and looked up
//! after that. A view that is older than the lock could be of an earlier shape, which MariaDB does not notice where
//! columns were added, dropped or renamed in an instant; there another session holds the lock meanwhile.
//!
//! Chunks are ranges of the table's key; bounds are compared by the server only.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use downriver_decode::mask::Mask;
use downriver_event::{
    BinlogPlace, Column, DomainGtids, GtidSet, LogicalType, RowFilter, SourcePosition, TableSchema,
};
use mysql_async::prelude::Queryable as _;
use mysql_async::{Conn, Error, Row as MysqlRow};

use super::catalog::{Catalog, Found, SourceTable};
use super::columns::KnownColumn;
use super::config::MysqlConfig;
use super::filter::selecting;
use super::key::KeyColumns;
use super::refusal::{is_gone, waited_for_lock};
use super::row::{SelectedRow, expression};
use super::server::{Flavor, no_binlog};
use super::sql::{connect, identifier, number, qualified, text, variables};
use crate::chunk::{Chunk, ChunkRead, ChunkReader, ChunkRequest, Reshaped, RowSink, Seen};
use crate::error::SourceError;
use crate::rules::{ColumnRules, is_generated, rules_moved};

/// How long writers may keep the lock away. Meanwhile those that come later wait behind it.
const WRITERS_WAIT_S: u64 = 2;
/// How long the reading session waits for its lock while another holds one for it: whoever wants to change the table
/// waits for that one, and would never come to an end.
const SHAPE_WAIT_S: u64 = 1;
/// How often a view is made anew because the table's shape was about to be changed.
const VIEWS_MAX: usize = 3;
/// Rows that one statement looks up by their keys.
const KEYS_A_STATEMENT: usize = 200;

pub struct SnapshotSession {
    config: MysqlConfig,
    pub(super) catalog: Catalog,
    /// A session beside it that holds a lock while a view is made.
    guard: Option<Conn>,
    /// The last chunk failed: its transaction may still be there, and rows of it on their way.
    is_spoiled: bool,
}

/// A transaction that reads a table of a known shape.
struct Opened {
    found: Found,
    seen: Seen,
    high: BinlogPlace,
}

/// How a session is to be.
const BY_PLACE: &str = "by-place";
const FOLDS_NAMES: &str = "folds-names";

fn address_of(config: &MysqlConfig) -> String {
    let ways = [
        (config.by_place, BY_PLACE),
        (config.folds_names, FOLDS_NAMES),
    ];
    let ways = ways.into_iter().filter(|(is, _)| *is);
    let ways: String = ways.map(|(_, way)| format!("{way} ")).collect();
    format!("{}:{} {ways}", config.host, config.port)
}

impl ChunkReader for SnapshotSession {
    type Config = MysqlConfig;
    type Table = SourceTable;

    fn at(config: &MysqlConfig, server: &str) -> Option<MysqlConfig> {
        let has = |way: &str| server.split(' ').any(|word| word == way);
        let mut there = config.clone();
        if has(FOLDS_NAMES) {
            there = there.in_lower_case();
        }
        there.by_place = has(BY_PLACE);
        server.starts_with(&address_of(&there)).then_some(there)
    }

    async fn connect(config: &MysqlConfig) -> Result<Self, SourceError> {
        Ok(Self {
            config: config.clone(),
            catalog: Catalog::connect(config).await?,
            guard: None,
            is_spoiled: false,
        })
    }

    async fn server(&mut self) -> Result<String, SourceError> {
        let names = ["hostname", "port", "server_id", "server_uuid", "server_uid"];
        let said = variables(self.session(), "global", &names).await?;
        let said: Vec<&str> = names
            .iter()
            .filter_map(|name| Some(said.get(*name)?.as_str()))
            .collect();
        Ok(format!("{}{}", address_of(&self.config), said.join("/")))
    }

    async fn read_chunk(
        &mut self,
        schema: &TableSchema,
        request: ChunkRequest,
        row: &mut RowSink<'_>,
    ) -> Result<ChunkRead<SourceTable>, SourceError> {
        if self.is_spoiled {
            self.catalog = Catalog::connect(&self.config).await?;
            self.guard = None;
        }
        self.is_spoiled = true;
        let read = self.read(schema, &request, row).await?;
        self.session().query_drop("commit").await?;
        self.is_spoiled = false;
        Ok(read)
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
    pub(super) fn session(&mut self) -> &mut Conn {
        &mut self.catalog.session
    }

    async fn read(
        &mut self,
        schema: &TableSchema,
        request: &ChunkRequest,
        row: &mut RowSink<'_>,
    ) -> Result<ChunkRead<SourceTable>, SourceError> {
        let opened = match self.catalog.server().flavor {
            Flavor::Mariadb => self.open_at_place(schema).await?,
            Flavor::Mysql => self.open_at_shape(schema).await?,
        };
        let Opened { found, seen, high } = match opened {
            Ok(opened) => opened,
            Err(now) => {
                let high = self.catalog.place().await?;
                let high = self.position(high);
                return Ok(ChunkRead::Reshaped(Reshaped { now, high }));
            }
        };
        let next = self.rows(schema, &found, request, row).await?;
        Ok(ChunkRead::Rows(Chunk {
            seen,
            high: self.position(high),
            next,
        }))
    }

    /// Compared by its place.
    fn position(&self, place: BinlogPlace) -> SourcePosition {
        match self.catalog.server().flavor {
            Flavor::Mysql => SourcePosition::Mysql {
                gtids: GtidSet::default(),
                place,
            },
            Flavor::Mariadb => SourcePosition::Mariadb {
                gtids: DomainGtids::default(),
                place,
            },
        }
    }

    /// The table, if it has the shape; otherwise what is there now. Its shape is kept already.
    async fn of_shape(&mut self, schema: &TableSchema) -> Result<Shaped, SourceError> {
        let found = self.catalog.found(&schema.namespace, &schema.name).await?;
        Ok(match found {
            Some(found) if is_read_as(&found.table, schema) => Ok(found),
            found => Err(found.map(|found| Box::new(found.table))),
        })
    }

    /// MySQL: the lock that keeps the shape comes first, and the transaction's first read makes the view.
    async fn open_at_shape(
        &mut self,
        schema: &TableSchema,
    ) -> Result<Result<Opened, Gone>, SourceError> {
        let name = qualified(&schema.namespace, &schema.name);
        self.session()
            .query_drop("start transaction read only")
            .await?;
        if !keep_shape(self.session(), &name, "").await? {
            return Ok(Err(None));
        }
        // Nothing of the catalog is looked up yet: that is a read of the transaction, and would make its view.
        let executed = self.catalog.executed().await?;
        let has_gtids = self.catalog.server().has_gtids() && !self.config.by_place;
        if !has_gtids {
            self.lock_out_writers(&name).await?;
        }
        let first_read = format!("select 1 from {name} limit 1");
        let viewed = self.session().query_drop(first_read).await;
        let place = match viewed {
            Ok(()) => self.catalog.place().await,
            Err(error) => Err(error.into()),
        };
        if let (false, Some(guard)) = (has_gtids, &mut self.guard) {
            guard.query_drop("unlock tables").await?;
        }
        let place = place?;
        let found = match self.of_shape(schema).await? {
            Ok(found) => found,
            Err(now) => return Ok(Err(now)),
        };
        let seen = match has_gtids {
            true => Seen::UpTo(SourcePosition::Mysql {
                gtids: executed,
                place: place.clone(),
            }),
            false => Seen::UpToPlace(place.clone()),
        };
        Ok(Ok(Opened {
            found,
            seen,
            high: place,
        }))
    }

    /// Waits until nobody writes to the table, and keeps it so. Enough for it are the privileges `SELECT` and
    /// `LOCK TABLES`; a `FLUSH TABLES` would need `RELOAD` and wait for reads too.
    async fn lock_out_writers(&mut self, name: &str) -> Result<(), SourceError> {
        let guard = self.guard().await?;
        guard
            .query_drop(format!("set session lock_wait_timeout = {WRITERS_WAIT_S}"))
            .await?;
        match guard.query_drop(format!("lock tables {name} read")).await {
            Err(error) if waited_for_lock(&error) => Err(SourceError::transient(
                "DR-1075",
                format!("writers of {name} did not let it be locked for {WRITERS_WAIT_S} s"),
                "nothing: it is tried again by itself; with gtid_mode = ON no lock is needed",
            )),
            locked => Ok(locked?),
        }
    }

    async fn guard(&mut self) -> Result<&mut Conn, SourceError> {
        let guard = match self.guard.take() {
            Some(guard) => guard,
            None => connect(&self.config).await?,
        };
        Ok(self.guard.insert(guard))
    }

    /// MariaDB: the statement that makes the view would release the lock that keeps the shape.
    async fn open_at_place(
        &mut self,
        schema: &TableSchema,
    ) -> Result<Result<Opened, Gone>, SourceError> {
        let name = qualified(&schema.namespace, &schema.name);
        for _ in 0..VIEWS_MAX {
            let guard = self.guard().await?;
            guard.query_drop("start transaction read only").await?;
            let is_there = keep_shape(guard, &name, "").await?;
            let place = match is_there {
                true => view_at_place(self.session()).await?,
                false => return Ok(Err(None)),
            };
            let wait = format!("set statement lock_wait_timeout = {SHAPE_WAIT_S} for ");
            let kept = touch(self.session(), &name, &wait).await;
            self.guard().await?.query_drop("commit").await?;
            match kept {
                Err(error) if waited_for_lock(&error) => {
                    self.session().query_drop("commit").await?;
                    continue;
                }
                Err(error) if is_gone(&error) => return Ok(Err(None)),
                kept => kept?,
            }
            return Ok(self.of_shape(schema).await?.map(|found| Opened {
                found,
                seen: Seen::UpToPlace(place.clone()),
                high: place,
            }));
        }
        Err(shape_is_changing(&name))
    }

    /// Reads the rows that are asked for. Where the next chunk starts.
    async fn rows(
        &mut self,
        schema: &TableSchema,
        found: &Found,
        request: &ChunkRequest,
        row: &mut RowSink<'_>,
    ) -> Result<Option<Bytes>, SourceError> {
        let reading = Reading::of(schema, found, self.catalog.rules())?;
        let from = reading.from();
        let session = self.session();
        let Some(key) = found.key.as_ref().filter(|_| !schema.is_bag()) else {
            reading.rows(session, &from, row, None).await?;
            return Ok(None);
        };
        let of_key = KeyColumns::of(schema, &found.columns, key);
        let part = match &request.part {
            Some(part) => vec![selecting(part, schema, found)?],
            None => Vec::new(),
        };
        let chosen = |filter: Option<String>| {
            let filters: Vec<String> = filter.into_iter().chain(part.iter().cloned()).collect();
            match filters.is_empty() {
                true => String::new(),
                false => format!(" where {}", filters.join(" and ")),
            }
        };
        if let Some(keys) = &request.keys {
            // Of those that the server takes for equal only the very ones.
            let asked: HashSet<&[u8]> = keys.iter().map(|key| &key[..]).collect();
            for keys in keys.chunks(KEYS_A_STATEMENT) {
                let query = format!("{from}{}", chosen(Some(of_key.any_of(keys)?)));
                reading.rows(session, &query, row, Some(&asked)).await?;
            }
            return Ok(None);
        }
        // An index of the beginning of a column has not its order: such a table would be sorted for every chunk.
        if key.has_prefix {
            let query = format!("{from}{}", chosen(None));
            reading.rows(session, &query, row, None).await?;
            return Ok(None);
        }
        let after = request.after.as_ref();
        let after = after.map(|bound| of_key.after(bound)).transpose()?;
        let query = format!(
            "{from} force index ({}){} order by {} limit {}",
            identifier(&key.index),
            chosen(after),
            of_key.order(),
            request.rows_max
        );
        let (count, last) = reading.rows(session, &query, row, None).await?;
        let Some(last) = last.filter(|_| count >= request.rows_max) else {
            return Ok(None);
        };
        let bound = of_key.bound(&last)?;
        if of_key.has_uuid() {
            let query = format!(
                "{from} force index ({}) where {} limit 1",
                identifier(&key.index),
                of_key.at(&bound)?
            );
            let (found, _) = reading.rows(session, &query, &mut |_| Ok(()), None).await?;
            if found == 0 {
                return Err(no_uuid(schema));
            }
        }
        Ok(Some(bound))
    }
}

/// What stands at a table's name now, if it is not what was to be read.
type Gone = Option<Box<SourceTable>>;
type Shaped = Result<Found, Gone>;

/// Takes the lock that keeps the table's shape until the transaction ends, and reads nothing.
async fn touch(session: &mut Conn, name: &str, setting: &str) -> Result<(), Error> {
    session
        .query_drop(format!("{setting}select 1 from {name} limit 0"))
        .await
}

/// The same; whether the table is there.
pub(super) async fn keep_shape(
    session: &mut Conn,
    name: &str,
    setting: &str,
) -> Result<bool, SourceError> {
    match touch(session, name, setting).await {
        Ok(()) => Ok(true),
        Err(error) if is_gone(&error) => Ok(false),
        Err(error) if waited_for_lock(&error) => Err(shape_is_changing(name)),
        Err(error) => Err(error.into()),
    }
}

pub(super) const SHAPE_IS_CHANGING: &str = "DR-1075";

fn shape_is_changing(name: &str) -> SourceError {
    SourceError::transient(
        SHAPE_IS_CHANGING,
        format!("{name} is locked by whoever changes its shape"),
        "nothing: it is tried again by itself when the change is over",
    )
}

/// Makes a view of which the server tells the place in the binlog.
pub(super) async fn view_at_place(session: &mut Conn) -> Result<BinlogPlace, SourceError> {
    session
        .query_drop("start transaction with consistent snapshot")
        .await?;
    let query =
        "show status where variable_name in ('binlog_snapshot_file', 'binlog_snapshot_position')";
    let rows: Vec<MysqlRow> = session.query(query).await?;
    let is = |row: &&MysqlRow, name: &str| {
        text(row, 0).is_some_and(|told| told.eq_ignore_ascii_case(name))
    };
    let file = rows.iter().find(|row| is(row, "binlog_snapshot_file"));
    let position = rows.iter().find(|row| is(row, "binlog_snapshot_position"));
    let place = file.zip(position).and_then(|(file, position)| {
        Some(BinlogPlace {
            file: text(file, 1).filter(|file| !file.is_empty())?,
            position: number(position, 1)?,
        })
    });
    place.ok_or_else(no_binlog)
}

/// Whether a table that is now `now` gives the rows of `schema`.
fn is_read_as(now: &SourceTable, schema: &TableSchema) -> bool {
    let key = |schema: &TableSchema| -> Vec<String> {
        let columns = schema.key_indexes().into_iter();
        columns.map(|at| schema.columns[at].name.clone()).collect()
    };
    let is_same = |(column, ty): (&Column, &LogicalType)| {
        now.schema.source_columns().any(|(now, now_ty)| {
            now.name == column.name
                && now_ty == ty
                && now.source_type == column.source_type
                && now.nullable == column.nullable
                && is_generated(now) == is_generated(column)
        })
    };
    now.problem.is_none()
        && now.schema.source_columns().count() == schema.source_columns().count()
        && schema.source_columns().all(is_same)
        && key(&now.schema) == key(schema)
}

/// Reads all of a table in the session's transaction.
pub(super) async fn read_whole(
    catalog: &mut Catalog,
    schema: &TableSchema,
    row: &mut RowSink<'_>,
) -> Result<(), SourceError> {
    let found = catalog.found(&schema.namespace, &schema.name).await?;
    let found = found.filter(|found| is_read_as(&found.table, schema));
    let found = found.ok_or_else(|| shape_is_changing(&schema.qualified_name()))?;
    let reading = Reading::of(schema, &found, catalog.rules())?;
    let from = reading.from();
    reading.rows(&mut catalog.session, &from, row, None).await?;
    Ok(())
}

/// MariaDB has stored a uuid in another order of bytes than it looks for: rows behind it may lie before it.
fn no_uuid(schema: &TableSchema) -> SourceError {
    let table = schema.qualified_name();
    SourceError::definite(
        "DR-1095",
        format!("the server does not find a row of {table} by the uuid that it shows of it"),
        "correct the uuids that were written as bytes and are none of RFC 9562, and alter table … force; or exclude the table",
    )
}

/// What is known of each of the schema's columns.
pub(super) fn selected_columns<'a>(
    schema: &TableSchema,
    columns: &'a [KnownColumn],
) -> Vec<&'a KnownColumn> {
    let known = |name: &str| columns.iter().find(|column| column.described.name == name);
    let names = schema.columns.iter().map(|column| column.name.as_str());
    names.filter_map(known).collect()
}

struct Reading<'a> {
    schema: &'a TableSchema,
    columns: Vec<&'a KnownColumn>,
    /// One for each of them; empty: none is masked.
    masks: Vec<Option<Arc<Mask>>>,
}

impl<'a> Reading<'a> {
    fn of(
        schema: &'a TableSchema,
        found: &'a Found,
        rules: &ColumnRules,
    ) -> Result<Self, SourceError> {
        if !rules.fit(schema) {
            return Err(rules_moved(schema));
        }
        Ok(Self {
            schema,
            columns: selected_columns(schema, &found.columns),
            masks: rules.masks(schema),
        })
    }

    fn from(&self) -> String {
        let mut masks = self.masks.iter();
        let columns = self.columns.iter();
        let columns: Vec<String> = columns
            .map(|column| expression(column, masks.next().and_then(Option::as_deref)))
            .collect();
        let name = qualified(&self.schema.namespace, &self.schema.name);
        format!("select {} from {name} as t", columns.join(", "))
    }

    /// Row by row: no more than one is in memory, and the last. Of prepared statements values come in binary form, so
    /// that none is rounded.
    async fn rows(
        &self,
        session: &mut Conn,
        query: &str,
        row: &mut RowSink<'_>,
        asked: Option<&HashSet<&[u8]>>,
    ) -> Result<(u64, Option<Vec<mysql_async::Value>>), SourceError> {
        let statement = session.prep(query).await?;
        let mut result = session.exec_iter(&statement, ()).await?;
        let (mut count, mut last) = (0, None);
        while let Some(read) = result.next().await? {
            let values = read.unwrap();
            let selected = SelectedRow {
                schema: self.schema,
                columns: &self.columns,
                masks: &self.masks,
                values: &values,
            };
            let is_asked = match asked {
                Some(asked) => asked.contains(&selected.key()?[..]),
                None => true,
            };
            if is_asked {
                row(&selected)?;
            }
            count += 1;
            last = Some(values);
        }
        drop(result);
        session.close(statement).await?;
        Ok((count, last))
    }
}
