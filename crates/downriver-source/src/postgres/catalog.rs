//! What the database's catalog says: its tables, their columns and types, where it stands.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use downriver_decode::postgres::decoder::Relation;
use downriver_event::problem::Problem;
use downriver_event::{Column, Cover, LogicalType, Lsn, ReplicaIdentity, TableId, TableSchema};
use tokio_postgres::Client;

use super::columns::{self, Known};
use super::config::PostgresConfig;
use super::extent::{self, RelationKind};
use super::key::{KEYS, Keys};
use super::partitions::Role;
use super::publication::Seen;
use super::sql;
use crate::error::SourceError;
use crate::rules::{ColumnRules, uncovered};

/// How often refused tables are looked at again, and for how much of the time at most: a database may have very many.
const REFUSED_LOOK_EVERY: Duration = Duration::from_secs(1);
const REFUSED_LOOK_SHARE: u32 = 50;
/// Where tables are found that a pattern may select: `c` of `pg_class`, `n` of `pg_namespace`. Not temporary ones, which
/// are their session's, nor views.
pub(super) const RELATIONS: &str = "from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where c.relkind in ('r', 'p', 'f') and c.relpersistence <> 't'
      and n.nspname <> 'information_schema' and n.nspname !~ '^pg_'";
const MONEY: u32 = 790;
/// money is a count of a currency's smallest unit: this many digits make the main one.
const MONEY_SCALE: i32 = 2;

/// A table that the patterns select.
#[derive(Clone, Debug)]
pub struct SourceTable {
    /// Version 0: not registered.
    pub schema: TableSchema,
    /// The server's estimate; 0 when it has none.
    pub estimated_rows: u64,
    /// Why it cannot be captured.
    pub problem: Option<Problem>,
    /// How it stands in the publication, where that was looked for.
    pub seen: Seen,
    /// Partitions, `oid:file`, that it has got since the log last knew, and every row of which came.
    pub new_parts: BTreeSet<String>,
}

impl SourceTable {
    /// Whether what may collide with another name is its own: so that it is mended by a change of this table.
    #[must_use]
    pub fn has_twin_columns(&self) -> bool {
        twin(&self.schema).is_some()
    }
}

/// A session that reads the catalog.
pub struct Catalog {
    config: PostgresConfig,
    client: Client,
    types: Mutex<HashMap<u32, TypeRow>>,
}

#[derive(Clone, Debug)]
struct TypeRow {
    kind: char,
    base: u32,
    base_modifier: i32,
    /// 0: not an array.
    element: u32,
    labels: Vec<String>,
}

struct CatalogColumn {
    table: u32,
    number: u32,
    name: String,
    type_oid: u32,
    type_modifier: i32,
    nullable: bool,
    source_type: String,
}

impl Catalog {
    /// # Errors
    /// The server cannot be reached, or refuses.
    pub async fn connect(config: &PostgresConfig) -> Result<Self, SourceError> {
        Ok(Self {
            config: config.clone(),
            client: sql::connect(config).await?,
            types: Mutex::default(),
        })
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    pub(super) fn rules(&self) -> &ColumnRules {
        &self.config.columns
    }

    pub(super) fn config(&self) -> &PostgresConfig {
        &self.config
    }

    /// The cluster's system identifier, and the database's oid.
    pub(super) async fn system_and_database(&self) -> Result<(String, String), SourceError> {
        let row = self
            .client
            .query_one(
                "select system_identifier::text, (select oid::text from pg_database where datname = current_database())
                   from pg_control_system()",
                &[],
            )
            .await?;
        Ok((row.get(0), row.get(1)))
    }

    /// Where the server writes: everything committed before the call lies before it. Of a standby, what it has received.
    ///
    /// # Errors
    /// The query failed.
    pub async fn current_position(&self) -> Result<Lsn, SourceError> {
        let row = self
            .client
            .query_one(
                "select case when pg_is_in_recovery()
                             then greatest(pg_last_wal_replay_lsn(), pg_last_wal_receive_lsn())
                             else pg_current_wal_insert_lsn() end::text,
                        pg_is_in_recovery()",
                &[],
            )
            .await?;
        let position = parse_lsn(row.get(0))?;
        // At the start of a page the insert position stands behind the page's header (24 bytes, 40 in a
        // file's first page), which no record ends at.
        let into_page = position.0 % 8192;
        let is_behind_header = (into_page == 24 || into_page == 40) && !row.get::<_, bool>(1);
        Ok(if is_behind_header {
            Lsn(position.0 - into_page)
        } else {
            position
        })
    }

    /// The tables that the patterns select, sorted by name.
    ///
    /// # Errors
    /// A query failed.
    pub async fn list_tables(
        &self,
        config: &PostgresConfig,
    ) -> Result<Vec<SourceTable>, SourceError> {
        self.selected(config, None).await
    }

    /// A table's name now, whether the patterns select it or not.
    ///
    /// # Errors
    /// The query failed.
    pub async fn name_of(&self, table: TableId) -> Result<Option<(String, String)>, SourceError> {
        let query = "select n.nspname::text, c.relname::text
                       from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = $1";
        let row = self.client.query_opt(query, &[&table.0]).await?;
        Ok(row.map(|row| (row.get(0), row.get(1))))
    }

    /// A table as it is now; `None`: it is gone, or the patterns do not select it any more.
    ///
    /// # Errors
    /// A query failed.
    pub async fn table(&self, table: TableId) -> Result<Option<SourceTable>, SourceError> {
        Ok(self.selected(&self.config, Some(table)).await?.pop())
    }

    /// Returns when one of these tables, which could not be captured, can be; its name. With the shape that was captured
    /// of it last.
    ///
    /// # Errors
    /// A query failed.
    pub async fn mended(
        &self,
        refused: &HashMap<TableId, Option<Arc<TableSchema>>>,
    ) -> Result<String, SourceError> {
        let mut rest = REFUSED_LOOK_EVERY;
        loop {
            tokio::time::sleep(rest).await;
            let began = Instant::now();
            for (table, before) in refused {
                let covered = |now: &TableSchema| {
                    let before = before.as_ref();
                    before.is_none_or(|before| uncovered(before, now).is_none())
                };
                if let Some(now) = self.table(*table).await?
                    && now.problem.is_none()
                    && covered(&now.schema)
                {
                    return Ok(now.schema.qualified_name());
                }
            }
            rest = REFUSED_LOOK_EVERY.max(began.elapsed() * REFUSED_LOOK_SHARE);
        }
    }

    async fn selected(
        &self,
        config: &PostgresConfig,
        only: Option<TableId>,
    ) -> Result<Vec<SourceTable>, SourceError> {
        let query = format!(
            "select c.oid, n.nspname::text, c.relname::text, c.relreplident,
                    greatest(c.reltuples, 0)::float8, {KEYS},
                    c.relkind, c.relpersistence, row_security_active(c.oid)
             {RELATIONS} and ($1::oid is null or c.oid = $1)
             order by 2, 3"
        );
        let roles = self.roles(only).await?;
        let only = only.map(|table| table.0);
        let rows = self.client.query(&query, &[&only]).await?;
        let (mut tables, mut keys) = (Vec::new(), Vec::new());
        for row in rows {
            let (namespace, name): (String, String) = (row.get(1), row.get(2));
            let oid: u32 = row.get(0);
            let role = roles.get(&TableId(oid)).copied();
            if !config.captures(&namespace, &name) || role == Some(Role::Part) {
                continue;
            }
            let letter = |at| char::from(u8::try_from(row.get::<_, i8>(at)).unwrap_or_default());
            let kind = RelationKind {
                role,
                is_foreign: letter(8) == 'f',
                is_unlogged: letter(9) == 'u',
                hides_rows: row.get(10),
            };
            let unseen = kind.refusal(&namespace, &name, config);
            let identity = replica_identity(u8::try_from(row.get::<_, i8>(3)).unwrap_or_default());
            let of_table = Keys::read(&row, 5);
            tables.push(SourceTable {
                schema: TableSchema {
                    id: TableId(oid),
                    version: 0,
                    namespace,
                    name,
                    columns: Vec::new(),
                    key: of_table.under(identity).to_vec(),
                    identity,
                    withheld: Vec::new(),
                },
                estimated_rows: row.get::<_, f64>(4) as u64,
                problem: unseen,
                seen: Seen::default(),
                new_parts: BTreeSet::new(),
            });
            keys.push(of_table);
        }
        let roots = roles.iter().filter(|(_, role)| **role == Role::Root);
        let roots: Vec<u32> = roots.map(|(root, _)| root.0).collect();
        let mut refused = self.refuse_leaves(&roots).await?;
        let oids: Vec<u32> = tables.iter().map(|table| table.schema.id.0).collect();
        let columns = self.columns(&oids).await?;
        self.load_types(columns.iter().map(|column| column.type_oid).collect())
            .await?;
        let mut with_money = HashSet::new();
        for column in columns {
            if self.is_money(column.type_oid) {
                with_money.insert(column.table);
            }
            let Some(table) = tables
                .iter_mut()
                .find(|table| table.schema.id.0 == column.table)
            else {
                continue;
            };
            table.schema.columns.push(Column {
                id: column.number,
                name: column.name,
                ty: self.logical(column.type_oid, column.type_modifier),
                nullable: column.nullable,
                source_type: column.source_type,
                cover: Cover::None,
                default: None,
            });
        }
        for (table, keys) in tables.iter_mut().zip(&keys) {
            let id = table.schema.id;
            table.problem = table
                .problem
                .take()
                .or_else(|| keys.refusal(&table.schema))
                .or_else(|| extent::leaves_key_out(&table.schema, config))
                .or_else(|| refused.remove(&id));
            if table.problem.is_none() && with_money.contains(&table.schema.id.0) {
                table.problem = self.refuse_currency(&table.schema.qualified_name()).await?;
            }
            if table.problem.is_none() {
                table.problem = config.columns.cover(&mut table.schema).err();
            }
        }
        refuse_collisions(&mut tables);
        Ok(tables)
    }

    /// The columns that are streamed: those that the publication lists, and of a table that is in none yet all that
    /// are not generated.
    async fn columns(&self, tables: &[u32]) -> Result<Vec<CatalogColumn>, SourceError> {
        let rows = self
            .client
            .query(
                // The view has no attnames before version 15.
                "with listed as (
                     select schemaname, tablename, jsonb_array_elements_text(attnames)::name as attname
                       from (select schemaname, tablename, to_jsonb(p) -> 'attnames' as attnames
                               from pg_publication_tables p where pubname = $2) p
                      where jsonb_typeof(attnames) = 'array')
                 select attrelid, attnum::int4, attname::text, atttypid, atttypmod, not attnotnull,
                        format_type(atttypid, atttypmod)
                   from pg_attribute join pg_class c on c.oid = attrelid join pg_namespace n on n.oid = relnamespace
                  where attrelid = any($1) and attnum > 0 and not attisdropped
                    and case when (nspname, relname) in (select schemaname, tablename from listed)
                             then (nspname, relname, attname) in (select schemaname, tablename, attname from listed)
                             else attgenerated = '' end
                  order by attrelid, attnum",
                &[&tables, &self.config.publication],
            )
            .await?;
        let column = |row: &tokio_postgres::Row| CatalogColumn {
            table: row.get(0),
            number: u32::try_from(row.get::<_, i32>(1)).unwrap_or_default(),
            name: row.get(2),
            type_oid: row.get(3),
            type_modifier: row.get(4),
            nullable: row.get(5),
            source_type: row.get(6),
        };
        Ok(rows.iter().map(column).collect())
    }

    async fn numbers(
        &self,
        relation: &Relation,
        previous: Option<&TableSchema>,
        today: &[CatalogColumn],
    ) -> Result<Vec<u32>, SourceError> {
        let last = self
            .client
            .query_one(
                "select coalesce(max(attnum), 0)::int4 from pg_attribute where attrelid = $1",
                &[&relation.id],
            )
            .await?;
        let last = u32::try_from(last.get::<_, i32>(0)).unwrap_or_default();
        let logical = |oid, modifier| self.logical(oid, modifier);
        let types = relation.columns.iter();
        let types: Vec<_> = types
            .map(|c| logical(c.type_oid, c.type_modifier))
            .collect();
        let names = relation.columns.iter().map(|c| c.name.as_str());
        let described: Vec<_> = names.zip(&types).collect();
        let before = previous.iter();
        let before: Vec<_> = before
            .flat_map(|previous| previous.source_columns())
            .map(|(column, ty)| Known {
                number: column.id,
                name: &column.name,
                ty,
            })
            .collect();
        let types = today.iter();
        let types: Vec<_> = types
            .map(|c| logical(c.type_oid, c.type_modifier))
            .collect();
        let today: Vec<_> = today
            .iter()
            .zip(&types)
            .map(|(column, ty)| Known {
                number: column.number,
                name: &column.name,
                ty,
            })
            .collect();
        Ok(columns::numbers(&described, &before, &today, last))
    }

    /// Whether rows from before a change of a table may have values in columns that it added: a default, or what
    /// today's catalog does not tell any more because a later change is in it already. Also where a column was
    /// dropped and added under the same name: the stream does not tell at which row.
    ///
    /// # Errors
    /// A query failed.
    pub async fn fills_rows(
        &self,
        before: &TableSchema,
        after: &TableSchema,
    ) -> Result<bool, SourceError> {
        let known = |id: u32| before.source_columns().any(|(column, _)| column.id == id);
        let added: Vec<_> = after.columns.iter().filter(|c| !known(c.id)).collect();
        if added.is_empty() {
            return Ok(false);
        }
        let named = |name: &str| {
            before
                .source_columns()
                .any(|(column, _)| column.name == name)
        };
        if added.iter().any(|column| named(&column.name)) {
            return Ok(true);
        }
        let (numbers, names): (Vec<i64>, Vec<&str>) = added
            .iter()
            .map(|c| (i64::from(c.id), c.name.as_str()))
            .unzip();
        let empty = self
            .client
            .query_one(
                "select count(*) from pg_attribute a, unnest($2::int8[], $3::text[]) added(number, name)
                  where a.attrelid = $1 and a.attnum = added.number and a.attname::text = added.name
                    and not (atthasdef or atthasmissing or attidentity <> '' or attgenerated <> '')",
                &[&after.id.0, &numbers, &names],
            )
            .await?;
        Ok(empty.get::<_, i64>(0) != i64::try_from(added.len()).unwrap_or_default())
    }

    /// A relation as the stream describes it, its columns numbered as they are in the catalog.
    ///
    /// # Errors
    /// A query failed.
    pub async fn described(
        &self,
        relation: &Relation,
        previous: Option<&TableSchema>,
    ) -> Result<SourceTable, SourceError> {
        let today = self.columns(&[relation.id]).await?;
        let types = relation.columns.iter().map(|column| column.type_oid);
        let types = types.chain(today.iter().map(|column| column.type_oid));
        self.load_types(types.collect()).await?;
        let numbers = self.numbers(relation, previous, &today).await?;
        let mut columns = Vec::with_capacity(relation.columns.len());
        for (number, column) in numbers.into_iter().zip(&relation.columns) {
            let mut known = previous
                .iter()
                .flat_map(|previous| previous.source_columns());
            let before = known.find(|(c, _)| c.id == number);
            let now = today.iter().find(|c| c.number == number);
            let ty = self.logical(column.type_oid, column.type_modifier);
            columns.push(Column {
                id: number,
                name: column.name.clone(),
                nullable: before
                    .map(|(c, _)| c.nullable)
                    .or(now.map(|c| c.nullable))
                    .unwrap_or(true),
                source_type: match (now, before) {
                    (Some(now), _)
                        if now.type_oid == column.type_oid
                            && now.type_modifier == column.type_modifier =>
                    {
                        now.source_type.clone()
                    }
                    (_, Some((before, before_ty))) if *before_ty == ty => {
                        before.source_type.clone()
                    }
                    _ => {
                        self.type_name(column.type_oid, column.type_modifier)
                            .await?
                    }
                },
                ty,
                cover: Cover::None,
                default: None,
            });
        }
        let identity = replica_identity(relation.replica_identity);
        let mut schema = TableSchema {
            id: TableId(relation.id),
            version: 0,
            namespace: if relation.namespace.is_empty() {
                "pg_catalog".into()
            } else {
                relation.namespace.clone()
            },
            name: relation.name.clone(),
            key: self.key_of(relation, &columns, previous, identity).await?,
            columns,
            identity,
            withheld: Vec::new(),
        };
        let mut problem = None;
        if relation.columns.iter().any(|c| self.is_money(c.type_oid)) {
            problem = self.refuse_currency(&schema.qualified_name()).await?;
        }
        if problem.is_none() {
            problem = self.config.columns.cover(&mut schema).err();
        }
        if problem.is_none() {
            problem = refuse_twins(&schema);
        }
        Ok(SourceTable {
            schema,
            estimated_rows: 0,
            seen: Seen::default(),
            new_parts: BTreeSet::new(),
            problem,
        })
    }

    async fn key_of(
        &self,
        relation: &Relation,
        columns: &[Column],
        previous: Option<&TableSchema>,
        identity: ReplicaIdentity,
    ) -> Result<Vec<u32>, SourceError> {
        let described = columns.iter().zip(&relation.columns);
        let flagged = described.filter(|(_, described)| described.is_key);
        let flagged: Vec<u32> = flagged.map(|(column, _)| column.id).collect();
        let query = format!("select {KEYS} from pg_class c where c.oid = $1");
        let row = self.client.query_opt(&query, &[&relation.id]).await?;
        let before = previous.map(|previous| &*previous.key);
        let mut key = match (&row, identity) {
            (Some(row), _) => Keys::read(row, 0).of_stream(identity, &flagged, before),
            // The table is gone since, and under these the stream does not tell.
            (None, ReplicaIdentity::Full | ReplicaIdentity::Nothing) => {
                before.unwrap_or_default().to_vec()
            }
            (None, _) => Keys::default().of_stream(identity, &flagged, before),
        };
        if !key.iter().all(|id| columns.iter().any(|c| c.id == *id)) {
            key.clear();
        }
        Ok(key)
    }

    async fn type_name(&self, oid: u32, modifier: i32) -> Result<String, SourceError> {
        let row = self
            .client
            .query_one("select format_type($1, $2)", &[&oid, &modifier])
            .await?;
        Ok(row.get(0))
    }

    /// Reads what is not known yet of these types, and of those they are made of.
    async fn load_types(&self, wanted: HashSet<u32>) -> Result<(), SourceError> {
        let mut missing: Vec<u32> = {
            let known = self.types.lock().expect("no holder panics");
            // Labels of an enum grow: it is read again.
            let stale = |oid: &u32| {
                known
                    .get(oid)
                    .is_none_or(|ty| ty.kind != 'b' || ty.element != 0)
            };
            wanted.into_iter().filter(stale).collect()
        };
        let mut read = HashSet::new();
        while !missing.is_empty() {
            let rows = self
                .client
                .query(
                    "select oid, typtype, typbasetype, typtypmod,
                            case when typinput = 'array_in'::regproc then typelem else 0 end,
                            coalesce((select array_agg(enumlabel::text order by enumsortorder)
                                        from pg_enum where enumtypid = t.oid), '{}')
                       from pg_type t where oid = any($1)",
                    &[&missing],
                )
                .await?;
            missing.clear();
            let mut known = self.types.lock().expect("no holder panics");
            for row in rows {
                let ty = TypeRow {
                    kind: char::from(u8::try_from(row.get::<_, i8>(1)).unwrap_or_default()),
                    base: row.get(2),
                    base_modifier: row.get(3),
                    element: row.get(4),
                    labels: row.get(5),
                };
                read.insert(row.get::<_, u32>(0));
                missing.extend(
                    [ty.base, ty.element]
                        .into_iter()
                        .filter(|oid| *oid != 0 && !read.contains(oid)),
                );
                known.insert(row.get(0), ty);
            }
        }
        Ok(())
    }

    /// Whether a loaded type is made of money.
    fn is_money(&self, oid: u32) -> bool {
        fn is_money(known: &HashMap<u32, TypeRow>, oid: u32) -> bool {
            let made_of = |ty: &TypeRow| is_money(known, ty.base) || is_money(known, ty.element);
            oid == MONEY || known.get(&oid).is_some_and(made_of)
        }
        is_money(&self.types.lock().expect("no holder panics"), oid)
    }

    /// Under the pinned lc_monetary money prints two digits after the point: in a database whose currency has more or
    /// fewer that is another amount.
    async fn refuse_currency(&self, table: &str) -> Result<Option<Problem>, SourceError> {
        let digits = sql::currency_digits(&self.config).await?;
        Ok((digits != MONEY_SCALE).then(|| {
            Problem::new(
                "DR-1035",
                format!(
                    "table {table} has a column of type money, and the database's currency has {digits} digits after the point, not {MONEY_SCALE}"
                ),
                "make the column numeric, or exclude the table",
            )
        }))
    }

    /// The canonical type of a loaded type.
    fn logical(&self, oid: u32, modifier: i32) -> LogicalType {
        let known = self.types.lock().expect("no holder panics");
        logical(&known, oid, modifier)
    }
}

fn logical(known: &HashMap<u32, TypeRow>, oid: u32, modifier: i32) -> LogicalType {
    match oid {
        16 => LogicalType::Bool,
        21 => LogicalType::Int16,
        23 => LogicalType::Int32,
        20 => LogicalType::Int64,
        700 => LogicalType::Float32,
        701 => LogicalType::Float64,
        1700 => decimal(modifier),
        // Under the pinned lc_monetary; see `refuse_currency`.
        MONEY => LogicalType::Decimal {
            precision: 19,
            scale: MONEY_SCALE,
        },
        // oid has no sign, so it takes the next larger integer.
        26 => LogicalType::Int64,
        19 | 25 | 1042 | 1043 => LogicalType::Text,
        17 => LogicalType::Bytes,
        2950 => LogicalType::Uuid,
        114 | 3802 => LogicalType::Json,
        1082 => LogicalType::Date,
        1083 => LogicalType::Time,
        1114 => LogicalType::Timestamp,
        1184 => LogicalType::TimestampTz,
        1186 => LogicalType::Interval,
        _ => match known.get(&oid) {
            Some(TypeRow {
                kind: 'e', labels, ..
            }) => LogicalType::Enum {
                labels: labels.clone(),
            },
            Some(TypeRow {
                kind: 'd',
                base,
                base_modifier,
                ..
            }) => logical(
                known,
                *base,
                if *base_modifier == -1 {
                    modifier
                } else {
                    *base_modifier
                },
            ),
            Some(TypeRow { element, .. }) if *element != 0 => {
                match logical(known, *element, modifier) {
                    // Elements that are not interpreted may have any delimiter and quoting.
                    LogicalType::Other | LogicalType::Array(_) => LogicalType::Other,
                    element => LogicalType::Array(Box::new(element)),
                }
            }
            _ => LogicalType::Other,
        },
    }
}

/// numeric's modifier: precision in the upper half, an 11-bit signed scale in the lower.
fn decimal(modifier: i32) -> LogicalType {
    if modifier < 4 {
        return LogicalType::Decimal {
            precision: 0,
            scale: 0,
        };
    }
    let packed = modifier - 4;
    let precision = u32::try_from((packed >> 16) & 0xffff).unwrap_or_default();
    LogicalType::Decimal {
        precision,
        scale: ((packed & 0x7ff) ^ 1024) - 1024,
    }
}

fn replica_identity(letter: u8) -> ReplicaIdentity {
    match letter {
        b'i' => ReplicaIdentity::Index,
        b'f' => ReplicaIdentity::Full,
        b'n' => ReplicaIdentity::Nothing,
        _ => ReplicaIdentity::Default,
    }
}

pub(super) fn parse_lsn(text: &str) -> Result<Lsn, SourceError> {
    text.parse().map_err(|_| {
        let reason = format!("the server gave {text:?} as a position");
        SourceError::definite("DR-1040", reason, "report it with the server's version")
    })
}

/// Two tables whose names differ only in case cannot both stand in a lake.
fn refuse_collisions(tables: &mut [SourceTable]) {
    let mut seen: HashMap<String, String> = HashMap::new();
    for table in tables {
        let name = table.schema.qualified_name();
        match seen.get(&name.to_lowercase()) {
            Some(first) => {
                table.problem = Some(Problem::new(
                    "DR-1031",
                    format!("table {name} collides with {first}: their names differ only in case"),
                    "rename one of them, or exclude one from the source",
                ));
            }
            None => {
                seen.insert(name.to_lowercase(), name.clone());
            }
        }
        if let Some(problem) = refuse_twins(&table.schema) {
            table.problem = Some(problem);
        }
    }
}

/// Two columns whose names differ only in case cannot both stand in a lake.
fn refuse_twins(schema: &TableSchema) -> Option<Problem> {
    let twin = twin(schema)?;
    Some(Problem::new(
        "DR-1031",
        format!(
            "column {:?} of table {} collides with another: their names differ only in case",
            twin.name,
            schema.qualified_name()
        ),
        "rename one of them, or exclude the table from the source",
    ))
}

/// A column whose name differs from that of one before it only in case.
fn twin(schema: &TableSchema) -> Option<&Column> {
    let mut names = HashSet::new();
    let mut columns = schema.columns.iter();
    columns.find(|column| !names.insert(column.name.to_lowercase()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_numeric_modifier_carries_an_eleven_bit_signed_scale() {
        let modifier = |precision: i32, scale: i32| ((precision << 16) | (scale & 0x7ff)) + 4;
        for (precision, scale) in [(12, 2), (3, -2), (3, 5), (1000, -1000)] {
            let expected = LogicalType::Decimal {
                precision: precision as u32,
                scale,
            };
            assert_eq!(decimal(modifier(precision, scale)), expected);
        }
        assert_eq!(
            decimal(-1),
            LogicalType::Decimal {
                precision: 0,
                scale: 0
            }
        );
    }
}
