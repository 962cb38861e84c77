//! By which columns a table's rows are known, and whether its replica identity lets them be found again.
//!
//! | replica identity | the key |
//! |---|---|
//! | default, nothing | the primary key, deferrable or not |
//! | using index | the index's columns, which the server keeps unique and not null |
//! | full | the primary key, unless it is deferrable: then, and without one, the whole row |
//!
//! The server lets nobody update or delete rows of a published table without an identity: under NOTHING, and under the
//! default with a deferrable primary key. So there rows only come, and are unique at each commit. Under FULL a
//! deferrable key would not do: rows may pass over each other inside a transaction.

use downriver_event::problem::Problem;
use downriver_event::{ReplicaIdentity, TableSchema};
use tokio_postgres::Row;

use super::catalog::SourceTable;
use super::sql;

const WITHOUT_KEY: &str = "DR-1030";
const WITHOUT_IDENTITY: &str = "DR-1032";
const DEFERRABLE: &str = "DR-1045";

/// Of the tables `c` of `pg_class`: what [`Keys::read`] reads, three columns. An index's included columns are none of
/// its key.
pub(super) const KEYS: &str = "
    coalesce((select array_agg(k.attnum::int4 order by k.place)
                from pg_index i, unnest(i.indkey::int2[]) with ordinality k(attnum, place)
               where i.indrelid = c.oid and i.indisprimary and k.place <= i.indnkeyatts), '{}')::int4[],
    coalesce((select not i.indimmediate from pg_index i where i.indrelid = c.oid and i.indisprimary), false),
    coalesce((select array_agg(k.attnum::int4 order by k.place)
                from pg_index i, unnest(i.indkey::int2[]) with ordinality k(attnum, place)
               where i.indrelid = c.oid and i.indisreplident and k.place <= i.indnkeyatts), '{}')::int4[]";

/// The keys that a table has, as numbers of its columns in the key's order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Keys {
    primary: Vec<u32>,
    deferrable: bool,
    /// Of the index that is named as replica identity; empty when it is gone.
    index: Vec<u32>,
}

impl Keys {
    /// Reads the columns of [`KEYS`], the first of them at `at`.
    pub(super) fn read(row: &Row, at: usize) -> Self {
        let numbers = |at: usize| -> Vec<u32> {
            let numbers = row.get::<_, Vec<i32>>(at).into_iter();
            numbers
                .filter_map(|number| u32::try_from(number).ok())
                .collect()
        };
        Self {
            primary: numbers(at),
            deferrable: row.get(at + 1),
            index: numbers(at + 2),
        }
    }

    /// The key under this identity; empty without one.
    pub(super) fn under(&self, identity: ReplicaIdentity) -> &[u32] {
        match identity {
            ReplicaIdentity::Index => &self.index,
            ReplicaIdentity::Full if self.deferrable => &[],
            _ => &self.primary,
        }
    }

    /// The key of rows that the stream describes, where these keys are today's. `flagged` are the columns that the
    /// stream says are the identity's: of an index it is the truth, in no order.
    pub(super) fn of_stream(
        &self,
        identity: ReplicaIdentity,
        flagged: &[u32],
        before: Option<&[u32]>,
    ) -> Vec<u32> {
        let today = self.under(identity);
        if matches!(identity, ReplicaIdentity::Full | ReplicaIdentity::Nothing) {
            return today.to_vec();
        }
        let only_inserts = identity == ReplicaIdentity::Default && self.deferrable;
        if flagged.is_empty() && only_inserts {
            return today.to_vec();
        }
        let same = |key: &[u32]| {
            key.len() == flagged.len() && key.iter().all(|number| flagged.contains(number))
        };
        let mut ordered = before.into_iter().chain([today]);
        ordered
            .find(|key| same(key))
            .map_or_else(|| flagged.to_vec(), <[u32]>::to_vec)
    }

    /// Why a table cannot be captured.
    pub(super) fn refusal(&self, schema: &TableSchema) -> Option<Problem> {
        let (name, quoted) = (
            schema.qualified_name(),
            sql::qualified(&schema.namespace, &schema.name),
        );
        let problem = |code, reason, fix| Some(Problem::new(code, reason, fix));
        match schema.identity {
            ReplicaIdentity::Index if self.index.is_empty() => problem(
                WITHOUT_IDENTITY,
                format!("the index that was the replica identity of table {name} is gone"),
                format!("alter table {quoted} replica identity default, or using index …"),
            ),
            ReplicaIdentity::Nothing if !self.primary.is_empty() => problem(
                WITHOUT_IDENTITY,
                format!(
                    "the replica identity of table {name} is nothing: once it is published the server refuses to update or delete its rows"
                ),
                format!("alter table {quoted} replica identity default"),
            ),
            ReplicaIdentity::Full => None,
            ReplicaIdentity::Default if self.deferrable => problem(
                DEFERRABLE,
                format!(
                    "the primary key of table {name} is deferrable, so it is no replica identity"
                ),
                format!(
                    "alter table {quoted} replica identity full; or using index … (a unique index of columns that are not null); or make the primary key not deferrable; or exclude the table"
                ),
            ),
            _ if schema.key.is_empty() => problem(
                WITHOUT_KEY,
                format!("table {name} has no primary key, and its replica identity is not full"),
                format!(
                    "alter table {quoted} replica identity full; or add a primary key; or exclude the table"
                ),
            ),
            _ => None,
        }
    }
}

impl SourceTable {
    /// Whether a table that is captured under the key of `known` goes on so in spite of its problem: no change of it is
    /// lost, because the server refuses those that would be.
    #[must_use]
    pub fn goes_on_as(&self, known: &TableSchema) -> bool {
        let refused_by_server = self
            .problem
            .as_ref()
            .is_some_and(|problem| matches!(problem.code, WITHOUT_IDENTITY | DEFERRABLE));
        refused_by_server && !known.key.is_empty() && known.key == self.schema.key
    }
}

#[cfg(test)]
mod tests {
    use ReplicaIdentity::{Default, Full, Index, Nothing};

    use super::*;

    fn keys(primary: &[u32], deferrable: bool, index: &[u32]) -> Keys {
        Keys {
            primary: primary.to_vec(),
            deferrable,
            index: index.to_vec(),
        }
    }

    #[test]
    fn what_the_stream_flags_is_the_key_in_the_order_that_is_known() {
        let today = keys(&[3, 1], false, &[5, 4]);
        let of = |identity, flagged: &[u32], before: Option<&[u32]>| {
            today.of_stream(identity, flagged, before)
        };
        assert_eq!(of(Default, &[1, 3], None), [3, 1]);
        assert_eq!(of(Default, &[1, 3], Some(&[1, 3])), [1, 3]);
        assert_eq!(of(Index, &[4, 5], Some(&[3, 1])), [5, 4]);
        assert_eq!(
            of(Index, &[2], Some(&[3, 1])),
            [2],
            "of an index that is gone since"
        );
        assert_eq!(of(Full, &[1, 2, 3, 4, 5], Some(&[3, 1])), [3, 1]);
        assert_eq!(of(Nothing, &[], Some(&[3, 1])), [3, 1]);
    }

    #[test]
    fn without_an_identity_rows_are_known_only_while_something_keeps_them_unique() {
        let of = |keys: Keys, identity| keys.of_stream(identity, &[], Some(&[1]));
        assert!(
            of(keys(&[], false, &[]), Default).is_empty(),
            "no primary key"
        );
        assert!(
            of(keys(&[1], false, &[]), Default).is_empty(),
            "it came back since"
        );
        assert_eq!(
            of(keys(&[1], true, &[]), Default),
            [1],
            "deferrable: rows only come"
        );
        assert!(
            of(keys(&[1], false, &[]), Index).is_empty(),
            "the index is gone"
        );
        assert!(of(keys(&[], false, &[]), Nothing).is_empty());
        let flagged = [1, 2];
        let full = keys(&[1], true, &[]).of_stream(Full, &flagged, Some(&[1]));
        assert!(full.is_empty(), "rows may pass over each other");
    }
}
