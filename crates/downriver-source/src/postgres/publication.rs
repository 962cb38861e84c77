//! The publication: made or adopted, lost, and what it publishes of each table.
//!
//! What it publishes decides which changes come at all, and a change that did not come is told by nothing in the
//! stream. So a log keeps of each table the [`Outline`] of its standing in the publication when it was last known to be
//! whole: where that is another now, the table has to be read again. The catalog's rows tell every change, also one
//! that was taken back: a table that is put back into a publication, or gets another filter or column list, gets a
//! new row, and every other alteration of the publication writes its own row anew.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use downriver_event::problem::Problem;
use downriver_event::{TableId, TableSchema};

use super::catalog::{Catalog, RELATIONS, SourceTable};
use super::config::PostgresConfig;
use super::partitions::Role;
use super::sql::{identifier, literal, qualified};
use crate::error::{PUBLICATION_GONE, SourceError};

/// The comment on a publication that we made.
const MARK: &str = "made by downriver";
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// The word of an outline that has a table's partitions, `oid:file`.
const PARTS: &str = "parts";

/// Tells a publication from another that was made later under its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublicationId(pub(super) u32);

/// What of a publication decides which changes of a table come, as words that differ when any of it does.
///
/// Stored as lines, `name word`. A build that looks at more adds a name; one that a stored outline does not have
/// tells nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outline(BTreeMap<String, String>);

impl Outline {
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let lines = self.0.iter().map(|(name, word)| format!("{name} {word}\n"));
        Bytes::from(lines.collect::<String>())
    }

    /// `None` if it is not of this form.
    #[must_use]
    pub fn decode(stored: &[u8]) -> Option<Self> {
        let lines = std::str::from_utf8(stored).ok()?.lines();
        let lines = lines.map(|line| {
            let (name, word) = line.split_once(' ')?;
            Some((name.to_owned(), word.to_owned()))
        });
        lines.collect::<Option<_>>().map(Self)
    }

    /// Whether what this one says is still so, but for partitions that came since and are whole.
    #[must_use]
    pub fn holds(&self, now: &Self, new_parts: &BTreeSet<String>) -> bool {
        self.0.iter().all(|(name, word)| match now.0.get(name) {
            Some(now) if name == PARTS => {
                let (known, now) = (parts_of(word), parts_of(now));
                let mut came = now.difference(&known);
                known.is_subset(&now) && came.all(|part| new_parts.contains(*part))
            }
            now => now == Some(word),
        })
    }

    /// Partitions that there are now and were not.
    pub(super) fn parts_since(&self, before: &Self) -> BTreeSet<String> {
        let word = |of: &Self| of.0.get(PARTS).cloned().unwrap_or_default();
        let (before, now) = (word(before), word(self));
        let (before, now) = (parts_of(&before), parts_of(&now));
        let came = now.difference(&before);
        came.map(|part| (*part).to_owned()).collect()
    }
}

fn parts_of(word: &str) -> BTreeSet<&str> {
    word.split(',').filter(|part| !part.is_empty()).collect()
}

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

impl Catalog {
    /// How each table that the patterns select stands in the publication now.
    ///
    /// # Errors
    /// A query failed.
    pub async fn standings(&self) -> Result<Vec<Standing>, SourceError> {
        let client = self.client();
        // From version 15 on.
        let has_schemas: bool = client
            .query_one(
                "select to_regclass('pg_catalog.pg_publication_namespace') is not null",
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
            "with p as (select oid, xmin::text as written from pg_publication where pubname = $1)
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
                              exists (select from pg_index i where i.indrelid = c.oid and i.indisprimary))
             from pg_namespace n join pg_class c on n.oid = c.relnamespace left join p on true
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
                let members: Vec<_> = members
                    .chain(schema.map(|row| format!("schema:{row}")))
                    .collect();
                let mut words = BTreeMap::from([
                    ("publication".into(), format!("{publication}:{written}")),
                    ("members".into(), members.join(",")),
                ]);
                if roles.get(&table) == Some(&Role::Root) {
                    let parts = leaves.get(&table).into_iter().flatten();
                    let parts: Vec<_> = parts.map(String::as_str).collect();
                    words.insert(PARTS.into(), parts.join(","));
                }
                Outline(words)
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
        let names: Vec<String> = captured.map(name).collect();
        let tables = if names.is_empty() {
            String::new()
        } else {
            format!(" for table only {}", names.join(", only "))
        };
        let create = format!(
            "begin; create publication {publication}{tables} with (publish_via_partition_root = true); comment on publication {publication} is {}; commit",
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
    if missing.is_empty() || !is_ours(catalog, config).await? {
        return Ok(false);
    }
    let add = format!(
        "alter publication {publication} add table only {}",
        missing.join(", only ")
    );
    client.batch_execute(&add).await?;
    Ok(true)
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn outline(words: &[(&str, &str)]) -> Outline {
        let words = words.iter();
        Outline(
            words
                .map(|(name, word)| ((*name).into(), (*word).into()))
                .collect(),
        )
    }

    #[test]
    fn an_outline_holds_until_a_word_of_it_is_another_and_what_it_does_not_have_tells_nothing() {
        let stored = outline(&[("members", ""), ("publication", "16400:753")]);
        assert_eq!(&stored.encode()[..], b"members \npublication 16400:753\n");
        let stored = Outline::decode(&stored.encode()).unwrap();
        let more = [
            ("leaves", "1,2"),
            ("members", ""),
            ("publication", "16400:753"),
        ];
        let none = BTreeSet::new();
        assert!(stored.holds(&outline(&more), &none));
        assert!(!outline(&more).holds(&stored, &none));
        let altered = outline(&[("members", ""), ("publication", "16400:754")]);
        assert!(!stored.holds(&altered, &none));
        assert_eq!(Outline::decode(b"members\n"), None);
    }

    #[test]
    fn an_outline_holds_with_new_partitions_that_are_whole_and_not_without_old_ones() {
        let with = |parts| outline(&[("members", "table:1"), ("parts", parts)]);
        let stored = with("10:7,11:8");
        let now = with("10:7,11:8,12:9");
        assert_eq!(
            now.parts_since(&stored),
            BTreeSet::from(["12:9".to_owned()])
        );
        assert!(!stored.holds(&now, &BTreeSet::new()));
        assert!(stored.holds(&now, &now.parts_since(&stored)));
        for gone in ["10:7", "", "10:7,11:9"] {
            let now = with(gone);
            let came = now.parts_since(&stored);
            assert!(!stored.holds(&now, &came), "{gone}");
        }
    }
}
