//! What the server's catalog says: its tables, their columns and types, and by what it knows their rows.

use std::collections::HashMap;

use downriver_event::problem::Problem;
use downriver_event::schema::{WhyWithheld, Withheld};
use downriver_event::{
    BinlogPlace, Column, Cover, GtidSet, LogicalType, ReplicaIdentity, SourcePosition, TableId,
    TableSchema,
};
use mysql_async::prelude::Queryable as _;
use mysql_async::{Conn, Row};

use super::columns::{COLUMNS, CatalogColumn, KnownColumn};
use super::config::MysqlConfig;
use super::key::{Key, KeyPart};
use super::server::Server;
use super::sql::{connect, literal, number, text};
use crate::error::SourceError;
use crate::rules::{ColumnRules, is_generated};

/// The server's own. A sequence, a view and a temporary table are told by their kind.
const SYSTEM: &str = "('mysql', 'sys', 'information_schema', 'performance_schema', 'ndbinfo')";
/// The one engine whose reads at a point in time are proven to fit the binlog.
const ENGINE: &str = "InnoDB";

/// A table that the patterns select.
#[derive(Clone, Debug)]
pub struct SourceTable {
    /// With table id 0 and version 0, and columns numbered from 1: the capture gives the real ids, by name.
    pub schema: TableSchema,
    /// The server's estimate; 0 when it has none.
    pub estimated_rows: u64,
    /// Why it cannot be captured.
    pub problem: Option<Problem>,
    /// What of it is not.
    pub warning: Option<Problem>,
}

/// A session that reads the catalog.
pub struct Catalog {
    config: MysqlConfig,
    pub(super) session: Conn,
    server: Server,
}

/// A table with all that reading it takes.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) table: SourceTable,
    /// One for each of its own columns, in its order, unless it has a problem.
    pub(super) columns: Vec<KnownColumn>,
    pub(super) key: Option<Key>,
}

/// A unique index, by its name, and its columns' names in order; of an expression `None`.
type Index = (String, Vec<IndexPart>);

#[derive(Debug)]
struct IndexPart {
    column: Option<String>,
    is_prefix: bool,
    is_descending: bool,
    is_hash: bool,
}

/// What the catalog has of one table.
#[derive(Debug, Default)]
struct Parts {
    columns: Vec<CatalogColumn>,
    indexes: Vec<Index>,
}

impl Catalog {
    /// # Errors
    /// The server cannot be reached, or refuses.
    pub async fn connect(config: &MysqlConfig) -> Result<Self, SourceError> {
        let mut session = connect(config).await?;
        let server = Server::look(&mut session).await?;
        Ok(Self {
            config: config.clone(),
            session,
            server,
        })
    }

    #[must_use]
    pub fn server(&self) -> &Server {
        &self.server
    }

    #[must_use]
    pub fn rules(&self) -> &ColumnRules {
        &self.config.columns
    }

    /// Whether every transaction has an identifier by now.
    ///
    /// # Errors
    /// The query failed.
    pub async fn gives_identifiers(&mut self) -> Result<bool, SourceError> {
        let server = Server::look(&mut self.session).await?;
        Ok(!server.goes_by_place())
    }

    /// Where the server is now.
    ///
    /// # Errors
    /// The server writes no binlog, or the query failed.
    pub async fn position(&mut self) -> Result<SourcePosition, SourceError> {
        self.server.position(&mut self.session).await
    }

    /// The identifiers of what has become visible.
    pub(super) async fn executed(&mut self) -> Result<GtidSet, SourceError> {
        self.server.executed(&mut self.session).await
    }

    /// Where the binlog ends.
    pub(super) async fn place(&mut self) -> Result<BinlogPlace, SourceError> {
        self.server.place(&mut self.session).await
    }

    /// The tables that the patterns select, sorted by name.
    ///
    /// # Errors
    /// A query failed.
    pub async fn tables(&mut self, config: &MysqlConfig) -> Result<Vec<SourceTable>, SourceError> {
        let found = self.find(config, None).await?;
        Ok(found.into_iter().map(|found| found.table).collect())
    }

    /// A table as it is now; `None`: there is none of this name, or the patterns do not select it.
    ///
    /// # Errors
    /// A query failed.
    pub async fn table(
        &mut self,
        database: &str,
        name: &str,
    ) -> Result<Option<SourceTable>, SourceError> {
        Ok(self.found(database, name).await?.map(|found| found.table))
    }

    pub(super) async fn found(
        &mut self,
        database: &str,
        name: &str,
    ) -> Result<Option<Found>, SourceError> {
        let config = self.config.clone();
        Ok(self.find(&config, Some((database, name))).await?.pop())
    }

    async fn find(
        &mut self,
        config: &MysqlConfig,
        only: Option<(&str, &str)>,
    ) -> Result<Vec<Found>, SourceError> {
        // Names stand as literals: only then MariaDB opens no more tables than are asked for.
        let which = match only {
            None => format!("table_schema not in {SYSTEM}"),
            Some((database, name)) => format!(
                "table_schema not in {SYSTEM} and table_schema = {} and table_name = {}",
                literal(database),
                literal(name)
            ),
        };
        let query = format!(
            "select table_schema, table_name, table_type, engine, table_rows
               from information_schema.tables
              where table_type in ('BASE TABLE', 'SYSTEM VERSIONED') and {which}"
        );
        let rows: Vec<Row> = self.session.query(query).await?;
        let mut parts = self.parts(&which).await?;
        let mut tables = Vec::new();
        for row in rows {
            let Some((database, name)) = text(&row, 0).zip(text(&row, 1)) else {
                continue;
            };
            let is_asked = only.is_none_or(|(asked, table)| {
                self.server.is_same_name(asked, &database) && self.server.is_same_name(table, &name)
            });
            if !is_asked || !self.captures(config, &database, &name) {
                continue;
            }
            let parts = parts
                .remove(&(database.clone(), name.clone()))
                .unwrap_or_default();
            let kind = Kind {
                is_versioned: text(&row, 2).as_deref() == Some("SYSTEM VERSIONED"),
                engine: text(&row, 3).unwrap_or_default(),
                estimated_rows: number(&row, 4).unwrap_or_default(),
            };
            tables.push(self.table_of(database, name, &kind, &parts));
        }
        let name = |found: &Found| {
            let schema = &found.table.schema;
            (schema.namespace.clone(), schema.name.clone())
        };
        tables.sort_by_cached_key(name);
        Ok(tables)
    }

    pub(super) fn captures(&self, config: &MysqlConfig, database: &str, name: &str) -> bool {
        if self.server.lower_case_table_names == 0 {
            return config.captures(database, name);
        }
        let folded = config.in_lower_case();
        folded.captures(&database.to_lowercase(), &name.to_lowercase())
    }

    /// The columns in their order, and the unique indexes.
    async fn parts(
        &mut self,
        which: &str,
    ) -> Result<HashMap<(String, String), Parts>, SourceError> {
        let mut parts: HashMap<(String, String), Parts> = HashMap::new();
        let query = format!(
            "select table_schema, table_name, {COLUMNS} from information_schema.columns
              where {which} order by table_schema, table_name, ordinal_position"
        );
        let rows: Vec<Row> = self.session.query(query).await?;
        for row in &rows {
            let column = CatalogColumn::read(row, 2);
            let Some(((table, name), column)) = text(row, 0).zip(text(row, 1)).zip(column) else {
                continue;
            };
            parts.entry((table, name)).or_default().columns.push(column);
        }
        let query = format!(
            "select table_schema, table_name, index_name, column_name, sub_part, collation, index_type
               from information_schema.statistics
              where non_unique = 0 and {which}
              order by table_schema, table_name, index_name, seq_in_index"
        );
        let rows: Vec<Row> = self.session.query(query).await?;
        for row in &rows {
            let Some(((table, name), index)) = text(row, 0).zip(text(row, 1)).zip(text(row, 2))
            else {
                continue;
            };
            let indexes = &mut parts.entry((table, name)).or_default().indexes;
            let part = IndexPart {
                column: text(row, 3),
                is_prefix: number(row, 4).is_some(),
                is_descending: text(row, 5).as_deref() == Some("D"),
                is_hash: text(row, 6).as_deref() == Some("HASH"),
            };
            match indexes.last_mut() {
                Some((last, parts)) if *last == index => parts.push(part),
                _ => indexes.push((index, vec![part])),
            }
        }
        Ok(parts)
    }

    fn table_of(&self, database: String, name: String, kind: &Kind, parts: &Parts) -> Found {
        let mut problem = None;
        let (mut columns, mut known) = (Vec::new(), Vec::new());
        for (id, column) in (1..).zip(&parts.columns) {
            let (ty, source_type) = match column.known(self.server.flavor) {
                Ok(column) => {
                    let described = &column.described;
                    let told = (described.ty.clone(), described.source_type.clone());
                    known.push(column);
                    told
                }
                Err(refused) => {
                    problem.get_or_insert(refused);
                    (LogicalType::Other, column.column_type.clone())
                }
            };
            columns.push(Column {
                id,
                name: column.name.clone(),
                ty,
                nullable: column.nullable,
                source_type,
                cover: match column.is_generated && !self.server.logs_generated_columns {
                    true => left_out(),
                    false => Cover::None,
                },
                default: None,
            });
        }
        let key = key_of(parts);
        let ids = key.iter().flat_map(|key| &key.parts);
        let mut schema = TableSchema {
            id: TableId(0),
            version: 0,
            namespace: database,
            name,
            key: ids
                .filter_map(|part| columns.get(part.column).map(|c| c.id))
                .collect(),
            columns,
            // Without a key every server logs whole old rows.
            identity: match key {
                Some(_) => ReplicaIdentity::Default,
                None => ReplicaIdentity::Full,
            },
            withheld: Vec::new(),
        };
        let problem = problem.or_else(|| self.refusal(&schema, kind, parts));
        let problem = problem.or_else(|| self.rules().cover(&mut schema).err());
        let warning = left_out_of(&schema);
        Found {
            columns: if problem.is_some() { Vec::new() } else { known },
            table: SourceTable {
                schema,
                estimated_rows: kind.estimated_rows,
                problem,
                warning,
            },
            key,
        }
    }

    /// Why the table itself cannot be captured, whatever its columns.
    fn refusal(&self, schema: &TableSchema, kind: &Kind, parts: &Parts) -> Option<Problem> {
        let table = schema.qualified_name();
        if kind.is_versioned {
            return Some(Problem::new(
                "DR-1077",
                format!("{table} keeps its history itself (with system versioning)"),
                "exclude the table, or drop its system versioning",
            ));
        }
        if !kind.engine.eq_ignore_ascii_case(ENGINE) {
            let engine = &kind.engine;
            return Some(Problem::new(
                "DR-1073",
                format!("{table} is stored by {engine}, of which no consistent copy can be read"),
                "alter table … engine = InnoDB, or exclude the table",
            ));
        }
        // The binlog has a column with the hash, which neither the catalog nor a select shows.
        let is_hash = |(_, index): &&Index| index.iter().any(|part| part.is_hash);
        if let Some((index, _)) = parts.indexes.iter().find(is_hash) {
            return Some(Problem::new(
                "DR-1078",
                format!("{table} has the unique index {index:?} over text of any length"),
                "make it an index over the text's beginning, or over a generated column with a hash of it; or exclude the table",
            ));
        }
        if schema.columns.is_empty() {
            return Some(Problem::new(
                "DR-1004",
                format!("the user may not see the columns of {table}"),
                "grant select on the whole table to the source's user",
            ));
        }
        None
    }
}

/// What is said of a generated column that the server leaves out of updates. Where it lies is told later.
#[must_use]
pub fn left_out() -> Cover {
    Cover::Withheld(Withheld {
        place: 0,
        why: WhyWithheld::Generated,
    })
}

/// Says which columns of a table are not captured because the server leaves them out of updates.
#[must_use]
pub fn left_out_of(schema: &TableSchema) -> Option<Problem> {
    let names = schema.withheld.iter().filter(|column| is_generated(column));
    let names: Vec<String> = names.map(|column| format!("{:?}", column.name)).collect();
    if names.is_empty() {
        return None;
    }
    Some(Problem::new(
        "DR-1079",
        format!(
            "of {} these columns are not captured, as they are generated and the server's binlog leaves them out of updates: {}",
            schema.qualified_name(),
            names.join(", ")
        ),
        "nothing, if nobody needs them; else let the application write them, or compute them from the others where they are read",
    ))
}

struct Kind {
    is_versioned: bool,
    engine: String,
    estimated_rows: u64,
}

/// The index by which the server itself knows rows, and by which the binlog says so: the primary key, or else the first
/// unique index of columns that are never null. The catalog marks its columns.
///
/// The rows of a table whose key has only the beginning of a column are known by the whole column: two rows that differ
/// in the beginning differ. Under a collation for which `a` is `A` an update from one to the other changes no key for the
/// server and is a change of the key here, where keys are bytes: one row goes and one comes, and at no point of the log
/// there are both.
fn key_of(parts: &Parts) -> Option<Key> {
    let column = |name: &str| parts.columns.iter().position(|column| column.name == name);
    let marked = parts.columns.iter().filter(|column| column.is_key).count();
    let is_marked = |(_, index): &&Index| {
        let is_marked = |part: &IndexPart| {
            let at = part.column.as_deref().and_then(column);
            at.is_some_and(|at| parts.columns[at].is_key)
        };
        index.len() == marked && index.iter().all(is_marked)
    };
    let is_primary = |(name, _): &&Index| name == "PRIMARY";
    let indexes = &parts.indexes;
    let primary = indexes.iter().find(is_primary);
    let (index, of) = primary.or_else(|| indexes.iter().find(is_marked))?;
    let part = |part: &IndexPart| {
        Some(KeyPart {
            column: part.column.as_deref().and_then(column)?,
            is_descending: part.is_descending,
        })
    };
    Some(Key {
        index: index.clone(),
        has_prefix: of.iter().any(|part| part.is_prefix),
        parts: of.iter().map(part).collect::<Option<_>>()?,
    })
}
