//! What changes between two versions of a table's schema, by kind; and what a pipeline does about each.

use crate::{Column, LogicalType, TableSchema};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ChangeKind {
    AddColumn,
    DropColumn,
    RenameColumn,
    /// Values may be others than before: a type that converts or rounds them, a label of an enum that is renamed.
    ChangeType,
    /// Rows are known by other columns.
    ChangeKey,
    RenameTable,
    /// A table gets the name of another that was dropped or renamed.
    RecreateTable,
}

impl ChangeKind {
    pub const ALL: [Self; 7] = [
        Self::AddColumn,
        Self::DropColumn,
        Self::RenameColumn,
        Self::ChangeType,
        Self::ChangeKey,
        Self::RenameTable,
        Self::RecreateTable,
    ];

    /// Whether rows are right without it: not if they have other values or are known by others.
    #[must_use]
    pub fn may_be_ignored(self) -> bool {
        matches!(
            self,
            Self::AddColumn | Self::DropColumn | Self::RenameColumn
        )
    }

    /// As a specification calls it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::AddColumn => "add_column",
            Self::DropColumn => "drop_column",
            Self::RenameColumn => "rename_column",
            Self::ChangeType => "change_type",
            Self::ChangeKey => "change_key",
            Self::RenameTable => "rename_table",
            Self::RecreateTable => "recreate_table",
        }
    }
}

/// What a pipeline does when a table of its source changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ChangePolicy {
    /// The sink's table changes as well.
    #[default]
    Evolve,
    /// The table stops before the change until somebody lets it through.
    Pause,
    /// The sink's table stays as it is, and its rows are right without the change.
    Ignore,
}

/// A policy for each kind of change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChangePolicies([ChangePolicy; ChangeKind::ALL.len()]);

impl ChangePolicies {
    #[must_use]
    pub fn all(policy: ChangePolicy) -> Self {
        Self([policy; ChangeKind::ALL.len()])
    }

    #[must_use]
    pub fn with(mut self, kind: ChangeKind, policy: ChangePolicy) -> Self {
        self.0[kind as usize] = policy;
        self
    }

    #[must_use]
    pub fn of(&self, kind: ChangeKind) -> ChangePolicy {
        self.0[kind as usize]
    }

    #[must_use]
    pub fn has(&self, policy: ChangePolicy) -> bool {
        self.0.contains(&policy)
    }
}

/// One change, in words for people: `column "note" (text) was added`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub kind: ChangeKind,
    pub what: String,
}

/// What is another in `after`, in the order of the kinds. Nullability, the replica identity of a table with a key, rules
/// of masking and further labels of an enum change no table of a sink.
#[must_use]
pub fn changes(before: &TableSchema, after: &TableSchema) -> Vec<Change> {
    let mut found = Vec::new();
    let mut say = |kind, what| found.push(Change { kind, what });
    for column in &after.columns {
        let shown = format!("column {:?} ({})", column.name, column.source_type);
        match before.column_index(column.id).map(|at| &before.columns[at]) {
            None => say(ChangeKind::AddColumn, format!("{shown} was added")),
            Some(was) => {
                if was.name != column.name {
                    let what = format!("column {:?} was renamed to {:?}", was.name, column.name);
                    say(ChangeKind::RenameColumn, what);
                }
                if may_change_values(was, column) {
                    let what = format!(
                        "the type of column {:?} was changed from {} to {}",
                        column.name, was.source_type, column.source_type
                    );
                    say(ChangeKind::ChangeType, what);
                }
            }
        }
    }
    for column in &before.columns {
        if after.column_index(column.id).is_none() {
            let what = format!("column {:?} was dropped", column.name);
            say(ChangeKind::DropColumn, what);
        }
    }
    if before.key != after.key || before.is_bag() != after.is_bag() {
        let columns = |schema: &TableSchema| {
            let names = schema.key_indexes().into_iter();
            let names: Vec<&str> = names.map(|at| schema.columns[at].name.as_str()).collect();
            format!("({})", names.join(", "))
        };
        let what = format!(
            "the key was changed from {} to {}",
            columns(before),
            columns(after)
        );
        say(ChangeKind::ChangeKey, what);
    }
    if (&before.namespace, &before.name) != (&after.namespace, &after.name) {
        let what = format!("the table was renamed to {}", after.qualified_name());
        say(ChangeKind::RenameTable, what);
    }
    found.sort_by_key(|change| change.kind);
    found
}

fn may_change_values(before: &Column, after: &Column) -> bool {
    before.source_type != after.source_type || !keeps_values(before.source_ty(), after.source_ty())
}

/// Whether values of one type are the same in the other. An enum may get labels, and loses none.
#[must_use]
pub fn keeps_values(before: &LogicalType, after: &LogicalType) -> bool {
    match (before, after) {
        (LogicalType::Enum { labels: before }, LogicalType::Enum { labels: after }) => {
            before.iter().all(|label| after.contains(label))
        }
        (LogicalType::Array(before), LogicalType::Array(after)) => keeps_values(before, after),
        _ => before == after,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Cover, ReplicaIdentity, TableId};

    fn column(id: u32, name: &str, ty: LogicalType) -> Column {
        Column {
            id,
            name: name.into(),
            source_type: format!("{ty:?}"),
            ty,
            nullable: true,
            cover: Cover::None,
            default: None,
        }
    }

    fn table(columns: Vec<Column>, key: &[u32]) -> TableSchema {
        TableSchema {
            id: TableId(1),
            version: 1,
            namespace: "public".into(),
            name: "t".into(),
            columns,
            key: key.to_vec(),
            identity: ReplicaIdentity::Default,
            withheld: Vec::new(),
        }
    }

    fn kinds(before: &TableSchema, after: &TableSchema) -> Vec<ChangeKind> {
        changes(before, after).into_iter().map(|c| c.kind).collect()
    }

    #[test]
    fn every_kind_of_change_is_found() {
        use ChangeKind::{AddColumn, ChangeKey, ChangeType, DropColumn, RenameColumn, RenameTable};
        use LogicalType::{Int32, Int64, Text};
        let before = table(
            vec![
                column(1, "id", Int64),
                column(2, "a", Text),
                column(3, "b", Text),
            ],
            &[1],
        );
        assert_eq!(kinds(&before, &before), []);
        let mut after = table(
            vec![
                column(1, "id", Int32),
                column(2, "b", Text),
                column(4, "c", Text),
            ],
            &[2],
        );
        after.name = "u".into();
        let all = [
            AddColumn,
            DropColumn,
            RenameColumn,
            ChangeType,
            ChangeKey,
            RenameTable,
        ];
        assert_eq!(kinds(&before, &after), all);
    }

    #[test]
    fn a_label_more_and_a_key_that_goes_are_told_from_what_changes_nothing() {
        let of = |labels: &[&str]| {
            let labels = labels.iter().map(|label| (*label).to_owned()).collect();
            let mut mood = column(2, "mood", LogicalType::Enum { labels });
            mood.source_type = "mood".into();
            table(vec![column(1, "id", LogicalType::Int64), mood], &[1])
        };
        let before = of(&["low", "high"]);
        assert_eq!(kinds(&before, &of(&["low", "middle", "high"])), []);
        let renamed = of(&["deep", "high"]);
        assert_eq!(kinds(&before, &renamed), [ChangeKind::ChangeType]);
        let mut other = before.clone();
        other.identity = ReplicaIdentity::Full;
        other.columns[1].nullable = false;
        assert_eq!(kinds(&before, &other), []);
        other.key.clear();
        assert_eq!(kinds(&before, &other), [ChangeKind::ChangeKey]);
    }

    #[test]
    fn a_policy_is_of_its_kind_alone() {
        let policies = ChangePolicies::default().with(ChangeKind::ChangeKey, ChangePolicy::Pause);
        for kind in ChangeKind::ALL {
            let pauses = policies.of(kind) == ChangePolicy::Pause;
            assert_eq!(pauses, kind == ChangeKind::ChangeKey, "{}", kind.name());
        }
    }
}
