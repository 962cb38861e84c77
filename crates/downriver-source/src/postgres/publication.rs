//! The publication: made or adopted, lost, and what it publishes of each table.
//!
//! What it publishes decides which changes come at all, and a change that did not come is told by nothing in the
//! stream. So a log keeps of each table the [`Outline`] of its standing in the publication. The catalog's rows tell
//! every change, also one that was taken back: a table that is put back into a publication, or gets another filter or
//! column list, gets a new row, and every other alteration of the publication writes its own row anew.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use downriver_event::problem::Problem;
use downriver_event::{TableId, TableSchema};

use super::catalog::{Catalog, RELATIONS, SourceTable};
use super::config::PostgresConfig;
use super::outline::{
    KEY, KEY_WORD, LABELS, LABELS_OF_TABLES, Outline, PARTS, STORAGE, STORAGE_WORD, Turn,
};
use super::partitions::Role;
use super::sql::{identifier, literal, qualified};
use crate::error::{PUBLICATION_GONE, SourceError};

/// The comment on a publication that we made.
const MARK: &str = "made by downriver";
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Tells a publication from another that was made later under its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublicationId(pub(super) u32);

/// A table that the patterns select, as it stands in the publication.
#[derive(Clone, Debug)]
pub struct Standing {
    pub table: TableId,
    /// Qualified.
    pub name: String,
    pub seen: Seen,
}

/// What a look at a table finds. Another one than at the start of a run is a reason to decide again what becomes of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// `None`: it is not published.
    pub outline: Option<Outline>,
    /// Its name, and what else decides whether and as what it is captured.
    traits: String,
}

impl Seen {
    /// Whether a table that was seen so is what it was: neither were changes of it left out, nor its rows written anew.
    #[must_use]
    pub fn goes_on_as(&self, now: &Self) -> bool {
        self.turn(now) == Some(Turn::Whole)
    }

    /// What became of a table's rows since it was seen so; `None` if it is published otherwise, or is another table now.
    #[must_use]
    pub fn turn(&self, now: &Self) -> Option<Turn> {
        if self.traits != now.traits {
            return None;
        }
        match (&self.outline, &now.outline) {
            (Some(was), Some(now)) => Some(was.turn(now, &BTreeSet::new())),
            (None, None) => Some(Turn::Whole),
            _ => None,
        }
    }
}

impl Catalog {
    /// How each table that the patterns select stands in the publication now.
    ///
    /// # Errors
    /// A query failed.
    pub async fn standings(&self) -> Result<Vec<Standing>, SourceError> {
        let client = self.client();
        // From version 15 on. And to compile what runs so shortly takes longer than to run it.
        let has_schemas: bool = client
            .query_one(
                "select to_regclass('pg_catalog.pg_publication_namespace') is not null, set_config('jit', 'off', false)",
                &[],
            )
            .await?
            .get(0);
        let schema = if has_schemas {
            "(select s.oid from pg_publication_namespace s where s.pnpubid = p.oid and s.pnnspid = n.oid)"
        } else {
            "null::oid"
        };
        let roles = self.roles(None).await?;
        let roots = roles.iter().filter(|(_, role)| **role == Role::Root);
        let roots: Vec<u32> = roots.map(|(root, _)| root.0).collect();
        let leaves = self.leaves(&roots).await?;
        let query = format!(
            "with recursive p as (select oid, xmin::text as written from pg_publication where pubname = $1),
             {LABELS_OF_TABLES}
             select c.oid, n.nspname::text, c.relname::text,
                    (n.nspname, c.relname) in
                        (select schemaname, tablename from pg_publication_tables where pubname = $1),
                    p.oid, p.written,
                    (select array_agg(r.oid order by r.oid) from pg_publication_rel r
                      where r.prpubid = p.oid
                        and (r.prrelid = c.oid
                             or c.relispartition and r.prrelid in (select relid from pg_partition_ancestors(c.oid)))),
                    {schema},
                    concat_ws(' ', n.nspname, c.relname, c.relkind, c.relpersistence, c.relreplident, row_security_active(c.oid),
                              exists (select from pg_index i where i.indrelid = c.oid and i.indisprimary),
                              exists (select from pg_index i where i.indrelid = c.oid and i.indisreplident)),
                    {STORAGE_WORD},
                    (select max(d.xmin::text) from pg_depend d
                      where d.classid = 'pg_class'::regclass and d.objid = c.oid and d.objsubid = 0
                        and d.refclassid = 'pg_namespace'::regclass),
                    labels.word, {KEY_WORD}
             from pg_namespace n join pg_class c on n.oid = c.relnamespace left join p on true
                  left join labels on labels.attrelid = c.oid
             where c.oid in (select c.oid {RELATIONS})"
        );
        let publication = &self.config().publication;
        let rows = client.query(&query, &[publication]).await?;
        let mut standings = Vec::with_capacity(rows.len());
        for row in rows {
            let (namespace, name): (&str, &str) = (row.get(1), row.get(2));
            let table = TableId(row.get(0));
            let is_part = roles.get(&table) == Some(&Role::Part);
            if is_part || !self.config().captures(namespace, name) {
                continue;
            }
            let publication: Option<u32> = row.get(4);
            let published: bool = row.get(3);
            let outline = publication.filter(|_| published).map(|publication| {
                let written: &str = row.get(5);
                let members: Option<Vec<u32>> = row.get(6);
                let members = members
                    .into_iter()
                    .flatten()
                    .map(|row| format!("table:{row}"));
                let schema: Option<u32> = row.get(7);
                // A table that was in another schema meanwhile has a new row for where it belongs.
                let home: Option<String> = schema.and_then(|_| row.get(10));
                let members: Vec<_> = members
                    .chain(schema.map(|row| format!("schema:{row}")))
                    .collect();
                let mut words = BTreeMap::from([
                    ("publication".into(), format!("{publication}:{written}")),
                    ("members".into(), members.join(",")),
                    (STORAGE.into(), row.get(9)),
                ]);
                if let Some(home) = home {
                    words.insert("home".into(), home);
                }
                for (name, at) in [(LABELS, 11), (KEY, 12)] {
                    if let Some(word) = row.get(at) {
                        words.insert(name.into(), word);
                    }
                }
                if roles.get(&table) == Some(&Role::Root) {
                    let parts = leaves.get(&table).into_iter().flatten();
                    let parts: Vec<_> = parts.map(String::as_str).collect();
                    words.insert(PARTS.into(), parts.join(","));
                }
                Outline::new(words)
            });
            standings.push(Standing {
                table,
                name: format!("{namespace}.{name}"),
                seen: Seen {
                    outline,
                    traits: row.get(8),
                },
            });
        }
        Ok(standings)
    }

    /// The same by table.
    pub(super) async fn seen(&self) -> Result<HashMap<TableId, Seen>, SourceError> {
        let standings = self.standings().await?.into_iter();
        Ok(standings
            .map(|standing| (standing.table, standing.seen))
            .collect())
    }
}

/// Makes the publication, or puts into ours what it has not. A table that was in it and was taken out stays out, and a
/// publication that somebody else made stays as it is. Whether something was made.
pub(super) async fn prepare(
    catalog: &Catalog,
    config: &PostgresConfig,
    tables: &[SourceTable],
    whole: impl Fn(TableId) -> bool,
) -> Result<bool, SourceError> {
    let client = catalog.client();
    let name = |table: &SourceTable| qualified(&table.schema.namespace, &table.schema.name);
    let captured = tables.iter().filter(|table| table.problem.is_none());
    let publication = identifier(&config.publication);
    let found = client
        .query_opt(
            "select pubinsert and pubupdate and pubdelete and pubtruncate
               from pg_publication where pubname = $1",
            &[&config.publication],
        )
        .await?;
    let Some(found) = found else {
        let create = creation(config, captured.map(name).collect());
        if catalog.is_standby().await? {
            return Err(missing_on_standby(config, &create));
        }
        let create = format!(
            "begin; {create}; comment on publication {publication} is {}; commit",
            literal(MARK)
        );
        client.batch_execute(&create).await?;
        return Ok(true);
    };
    if !found.get::<_, bool>(0) {
        return Err(leaves_changes_out(config));
    }
    let seen = catalog.seen().await?;
    let is_published = |id| seen.get(&id).is_some_and(|seen| seen.outline.is_some());
    let missing: Vec<String> = captured
        .filter(|table| {
            let id = table.schema.id;
            !is_published(id) && !whole(id)
        })
        .map(name)
        .collect();
    if missing.is_empty() || !is_ours(catalog, config).await? || catalog.is_standby().await? {
        return Ok(false);
    }
    let add = format!(
        "alter publication {publication} add table only {}",
        missing.join(", only ")
    );
    client.batch_execute(&add).await?;
    Ok(true)
}

/// The statement that makes it with these tables.
pub(super) fn creation(config: &PostgresConfig, tables: Vec<String>) -> String {
    let of = if tables.is_empty() {
        String::new()
    } else {
        format!(" for table only {}", tables.join(", only "))
    };
    format!(
        "create publication {}{of} with (publish_via_partition_root = true)",
        identifier(&config.publication)
    )
}

/// Goes on by itself when it was made on the primary and has come to the standby.
pub(super) fn missing_on_standby(config: &PostgresConfig, create: &str) -> SourceError {
    SourceError::transient(
        "DR-1015",
        format!(
            "publication {:?} is missing, and nothing can be made on a standby",
            config.publication
        ),
        format!("on the primary: {create}; it is then found by itself"),
    )
}

/// Goes on by itself when it is mended: what was left out is then read again.
pub(super) fn leaves_changes_out(config: &PostgresConfig) -> SourceError {
    SourceError::transient(
        "DR-1023",
        format!(
            "publication {} does not publish every kind of change",
            config.publication
        ),
        format!(
            "alter publication {} set (publish = 'insert, update, delete, truncate')",
            identifier(&config.publication)
        ),
    )
}

/// Why a table that is not in the publication is not captured.
#[must_use]
pub fn not_published(table: &TableSchema, config: &PostgresConfig) -> Problem {
    let (namespace, name) = (&table.namespace, &table.name);
    Problem::new(
        "DR-1038",
        format!(
            "table {} is not in publication {:?}: its changes are not in the stream",
            table.qualified_name(),
            config.publication
        ),
        format!(
            "alter publication {} add table only {}; it is then read by itself. Or exclude the table from the source",
            identifier(&config.publication),
            qualified(namespace, name)
        ),
    )
}

/// Returns when the publication of a running stream is gone or was made anew, or the database does not answer. From
/// version 18 on the server leaves out what it cannot find a publication for, and only its own log says so.
pub async fn lost(
    catalog: Arc<Catalog>,
    config: &PostgresConfig,
    publication: PublicationId,
) -> SourceError {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        match id(&catalog, config).await {
            Ok(found) if found == publication => {}
            Ok(_) => return gone("was made anew", config),
            Err(error) => return error,
        }
    }
}

pub(super) async fn id(
    catalog: &Catalog,
    config: &PostgresConfig,
) -> Result<PublicationId, SourceError> {
    let query = "select oid from pg_publication where pubname = $1";
    let found = catalog
        .client()
        .query_opt(query, &[&config.publication])
        .await?;
    found
        .map(|row| PublicationId(row.get(0)))
        .ok_or_else(|| gone("is missing", config))
}

pub(super) fn gone(what: &str, config: &PostgresConfig) -> SourceError {
    SourceError::hole(
        PUBLICATION_GONE,
        format!(
            "publication {:?} {what}: changes since it was dropped are not in the stream",
            config.publication
        ),
    )
}

/// Whether we made it.
pub(super) async fn is_ours(
    catalog: &Catalog,
    config: &PostgresConfig,
) -> Result<bool, SourceError> {
    let query = "select from pg_publication where pubname = $1 and obj_description(oid, 'pg_publication') = $2";
    Ok(catalog
        .client()
        .query_opt(query, &[&config.publication, &MARK])
        .await?
        .is_some())
}
