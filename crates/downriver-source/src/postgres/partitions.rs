//! Partitioned tables: which relations are tables of a log, and what their partitions are.
//!
//! A publication with `publish_via_partition_root`, as ours is, publishes the rows of partitions as those of the topmost
//! table that it has: that one is the table, and its partitions are a part of it. Without that option the partitions
//! are tables, and what they are partitions of is none. Attaching, detaching and dropping a partition moves rows in and
//! out of the table without an event, and so does truncating one: a table's outline therefore has its partitions with
//! their files.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use downriver_event::TableId;
use downriver_event::problem::Problem;

use super::catalog::Catalog;
use super::sql::{identifier, qualified};
use crate::error::SourceError;

/// Relations below `root.oid`, which come as `p (root, parent, oid)`; one that is being detached is gone already.
pub(super) const BELOW: &str = "recursive p (root, parent, oid) as (
        select root.oid, root.oid, i.inhrelid from root join pg_inherits i on i.inhparent = root.oid
         where not coalesce((to_jsonb(i) ->> 'inhdetachpending')::bool, false)
        union all
        select p.root, p.oid, i.inhrelid from p join pg_inherits i on i.inhparent = p.oid
         where not coalesce((to_jsonb(i) ->> 'inhdetachpending')::bool, false))";

/// What a partition, or a partitioned table, is to a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Its rows are another table's.
    Part,
    /// Its rows are its partitions', which are tables of their own.
    Shell,
    /// One table with all its partitions.
    Root,
    /// A partition that is a table of its own.
    Alone,
}

impl Catalog {
    /// The roles of partitioned tables and partitions that the patterns select; every other relation is a table.
    pub(super) async fn roles(
        &self,
        only: Option<TableId>,
    ) -> Result<HashMap<TableId, Role>, SourceError> {
        let rows = self
            .client()
            .query(
                "select c.oid, n.nspname::text, c.relname::text, c.relkind = 'p', c.relispartition,
                        coalesce((select pubviaroot from pg_publication where pubname = $1), true),
                        (n.nspname, c.relname) in
                            (select schemaname, tablename from pg_publication_tables where pubname = $1),
                        a.namespaces, a.names
                   from pg_class c join pg_namespace n on n.oid = c.relnamespace
                        cross join lateral (
                            select array_agg(an.nspname::text order by ac.oid) as namespaces,
                                   array_agg(ac.relname::text order by ac.oid) as names
                              from pg_partition_ancestors(c.oid) a join pg_class ac on ac.oid = a.relid
                                   join pg_namespace an on an.oid = ac.relnamespace
                             where ac.oid <> c.oid) a
                  where (c.relispartition or c.relkind = 'p') and c.relkind in ('r', 'p', 'f')
                    and ($2::oid is null or c.oid = $2)",
                &[&self.config().publication, &only.map(|table| table.0)],
            )
            .await?;
        let mut roles = HashMap::new();
        for row in rows {
            let (namespace, name): (&str, &str) = (row.get(1), row.get(2));
            if !self.config().captures(namespace, name) {
                continue;
            }
            let (is_partitioned, is_partition): (bool, bool) = (row.get(3), row.get(4));
            let (via_root, published): (bool, bool) = (row.get(5), row.get(6));
            let namespaces: Option<Vec<String>> = row.get(7);
            let names: Option<Vec<String>> = row.get(8);
            let mut above = namespaces.iter().flatten().zip(names.iter().flatten());
            let is_below = above.any(|(namespace, name)| self.config().captures(namespace, name));
            let role = match (via_root, is_partitioned) {
                (true, _) if is_partition && is_below && !published => Role::Part,
                (true, true) => Role::Root,
                (false, true) if is_partition && is_below => Role::Part,
                (false, true) => Role::Shell,
                (_, false) => Role::Alone,
            };
            roles.insert(TableId(row.get(0)), role);
        }
        Ok(roles)
    }

    /// Each partitioned table's partitions that have rows, with the number of the file that these are in: `oid:file`.
    pub(super) async fn leaves(
        &self,
        roots: &[u32],
    ) -> Result<HashMap<TableId, BTreeSet<String>>, SourceError> {
        if roots.is_empty() {
            return Ok(HashMap::new());
        }
        let query = format!(
            "with root as (select unnest($1::oid[]) as oid), below as materialized (
                 with {BELOW} select * from p)
             select b.root, c.oid, c.relfilenode
               from below b join pg_class c on c.oid = b.oid where c.relkind <> 'p'"
        );
        let rows = self.client().query(&query, &[&roots]).await?;
        let mut leaves: HashMap<TableId, BTreeSet<String>> = HashMap::new();
        for row in rows {
            let (oid, file): (u32, u32) = (row.get(1), row.get(2));
            let of_root = leaves.entry(TableId(row.get(0))).or_default();
            of_root.insert(format!("{oid}:{file}"));
        }
        Ok(leaves)
    }

    /// Whether every row that ever was in a partition came while it was one: it has no row, or it was made as a
    /// partition and has none of the transaction that made it.
    pub(super) async fn was_born_part(&self, leaf: u32) -> Result<bool, SourceError> {
        // The rows of a relation's system columns are written once, when it is made. A link above is older than what
        // was made below it, or of the same transaction; a filled partition that was attached with all below is not.
        let query = "with recursive link (parent, written) as (
                 select inhparent, xmin from pg_inherits where inhrelid = $1
                 union all
                 select i.inhparent, i.xmin from link join pg_inherits i on i.inhrelid = link.parent)
             select n.nspname::text, c.relname::text, a.xmin::text,
                    (select bool_and(written = a.xmin or age(written) > age(a.xmin)) from link),
                    has_schema_privilege(n.oid, 'usage') and has_table_privilege(c.oid, 'select')
               from pg_class c join pg_namespace n on n.oid = c.relnamespace
                    join pg_attribute a on a.attrelid = c.oid and a.attnum = -1
              where c.oid = $1 and c.relkind = 'r'";
        let Some(row) = self.client().query_opt(query, &[&leaf]).await? else {
            return Ok(false);
        };
        let (linked, readable): (Option<bool>, bool) = (row.get(3), row.get(4));
        if !readable {
            return Ok(false);
        }
        let table = qualified(row.get(0), row.get(1));
        let made_by: &str = row.get(2);
        let filter = match linked {
            Some(true) => format!("where xmin = '{made_by}'"),
            _ => String::new(),
        };
        let query = format!("select not exists (select from only {table} {filter})");
        Ok(self.client().query_one(&query, &[]).await?.get(0))
    }

    /// Why a partitioned table cannot be captured: a partition whose rows do not come, or not as the table's do.
    pub(super) async fn refuse_leaves(
        &self,
        roots: &[u32],
    ) -> Result<HashMap<TableId, Problem>, SourceError> {
        if roots.is_empty() {
            return Ok(HashMap::new());
        }
        let query = format!(
            "with root as (select oid, relreplident from pg_class where oid = any($1)), below as materialized (
                 with {BELOW} select * from p)
             select b.root, rn.nspname || '.' || rc.relname, n.nspname::text, c.relname::text,
                    c.relkind, c.relpersistence, c.relreplident, rc.relreplident
               from below b join pg_class c on c.oid = b.oid join pg_namespace n on n.oid = c.relnamespace
                    join pg_class rc on rc.oid = b.root join pg_namespace rn on rn.oid = rc.relnamespace
              where c.relkind <> 'p' and (c.relkind <> 'r' or c.relpersistence <> 'p' or c.relreplident <> rc.relreplident)
              order by n.nspname, c.relname"
        );
        let rows = self.client().query(&query, &[&roots]).await?;
        let mut problems = BTreeMap::new();
        for row in rows {
            let (root, leaf): (&str, String) = (row.get(1), qualified(row.get(2), row.get(3)));
            let letter = |at| char::from(u8::try_from(row.get::<_, i8>(at)).unwrap_or_default());
            let problem = if letter(4) == 'f' {
                Problem::new(
                    "DR-1037",
                    format!(
                        "partition {leaf} of table {root} is a foreign table: its rows are in no stream"
                    ),
                    format!("detach partition {leaf}, or exclude table {root} from the source"),
                )
            } else if letter(5) != 'p' {
                Problem::new(
                    "DR-1037",
                    format!(
                        "partition {leaf} of table {root} is unlogged: its rows are in no stream"
                    ),
                    format!("alter table {leaf} set logged"),
                )
            } else {
                Problem::new(
                    "DR-1037",
                    format!(
                        "the replica identity of partition {leaf} is not that of table {root}, which decides nothing"
                    ),
                    format!(
                        "alter table {leaf} replica identity {}",
                        identity(letter(7))
                    ),
                )
            };
            problems.entry(row.get::<_, u32>(0)).or_insert(problem);
        }
        let problems = problems.into_iter();
        Ok(problems
            .map(|(root, problem)| (TableId(root), problem))
            .collect())
    }
}

fn identity(letter: char) -> &'static str {
    match letter {
        'f' => "full",
        'n' => "nothing",
        _ => "default",
    }
}

/// Why a partitioned table is none whose publication publishes partitions as such.
pub(super) fn is_shell(name: &str, publication: &str) -> Problem {
    Problem::new(
        "DR-1036",
        format!(
            "table {name} is partitioned, and publication {publication:?} publishes its partitions as tables of their own: these are captured, and it is not"
        ),
        format!(
            "nothing, if that is good enough; or alter publication {} set (publish_via_partition_root = true), which makes it one table",
            identifier(publication)
        ),
    )
}
