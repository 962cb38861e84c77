//! What of a table the publication publishes: its rows by a filter, its columns by a list. A snapshot reads exactly
//! that, as the stream brings nothing else.

use downriver_event::TableSchema;
use downriver_event::problem::Problem;

use super::catalog::Catalog;
use super::config::PostgresConfig;
use super::partitions::{Role, is_shell};
use super::sql::{identifier, qualified};
use crate::error::SourceError;

/// Where a table's published rows are read from.
pub(super) struct Extent {
    /// As it stands behind `from`.
    pub(super) table: String,
    /// As it stands behind `where`.
    pub(super) filter: Option<String>,
}

impl Catalog {
    pub(super) async fn extent(&self, schema: &TableSchema) -> Result<Extent, SourceError> {
        // The view has no filters before version 15. A filter names what it calls as this session finds it.
        let query = "select c.relkind = 'p',
                            (select to_jsonb(p) ->> 'rowfilter' from pg_publication_tables p
                              where pubname = $1 and schemaname = $2 and tablename = $3)
                       from pg_class c where c.oid = $4";
        let publication = &self.config().publication;
        let (namespace, name) = (&schema.namespace, &schema.name);
        let found = self
            .client()
            .query_opt(query, &[publication, namespace, name, &schema.id.0])
            .await?;
        let (is_partitioned, filter): (bool, Option<String>) =
            found.map_or((false, None), |row| (row.get(0), row.get(1)));
        // Of tables that inherit the rows are their own, and of partitions they are the table's.
        let only = if is_partitioned { "" } else { "only " };
        Ok(Extent {
            table: format!("{only}{}", qualified(namespace, name)),
            // What is neither true nor false is not published.
            filter: filter.map(|filter| format!("({filter})")),
        })
    }
}

/// What decides which of a relation's rows a log can have at all.
pub(super) struct RelationKind {
    /// `None`: it has nothing to do with partitions.
    pub(super) role: Option<Role>,
    pub(super) is_foreign: bool,
    pub(super) is_unlogged: bool,
    /// By policies that hold for the source's user.
    pub(super) hides_rows: bool,
}

impl RelationKind {
    pub(super) fn refusal(
        &self,
        namespace: &str,
        name: &str,
        config: &PostgresConfig,
    ) -> Option<Problem> {
        let (plain, table) = (format!("{namespace}.{name}"), qualified(namespace, name));
        let unseen = |what: &str, fix: String| {
            Some(Problem::new(
                "DR-1037",
                format!("table {plain} {what}"),
                fix,
            ))
        };
        if self.role == Some(Role::Shell) {
            return Some(is_shell(&plain, &config.publication));
        }
        if self.is_foreign {
            let fix = "capture it at its own server, or exclude the table from the source";
            return unseen("is a foreign table: its rows are in no stream", fix.into());
        }
        if self.is_unlogged {
            let fix =
                format!("alter table {table} set logged; or exclude the table from the source");
            return unseen("is unlogged: its changes are in no stream", fix);
        }
        if self.hides_rows {
            let user = identifier(&config.user);
            let what = format!(
                "has row-level security that may hide rows from role {}: its snapshot would lack what the stream has",
                config.user
            );
            let fix = format!(
                "as a superuser: alter role {user} bypassrls; or exclude the table from the source"
            );
            return unseen(&what, fix);
        }
        None
    }
}

/// Why a table cannot be captured whose column list leaves out a column of its key.
pub(super) fn leaves_key_out(schema: &TableSchema, config: &PostgresConfig) -> Option<Problem> {
    if schema.key_indexes().len() == schema.key.len() {
        return None;
    }
    let (publication, table) = (
        identifier(&config.publication),
        qualified(&schema.namespace, &schema.name),
    );
    Some(Problem::new(
        "DR-1039",
        format!(
            "the column list of table {} in publication {:?} leaves out a column of its primary key",
            schema.qualified_name(),
            config.publication
        ),
        format!(
            "alter publication {publication} drop table {table}; alter publication {publication} add table {table} (…) with the key's columns in the list"
        ),
    ))
}
