//! Changes of the source's columns that the table does not take.
//!
//! What is ignored shows in the table itself: a column that was added has no field, one that was renamed has the field of
//! its old name, and one that was dropped keeps its field. So a schema of the source is taken as the table has it: without
//! the first, under the old name of the second, and with the third, which no row logs.
//!
//! The property [`IGNORED_PROPERTY`] names the columns without a field. When they are not to be ignored any more, nobody
//! knows what they have in the rows that are there: a generation of the table's snapshot has to replace them.

use std::sync::Arc;

use downriver_event::change::{ChangeKind, ChangePolicy};
use downriver_event::problem::Problem;
use downriver_event::{Column, TableSchema};
use iceberg::spec::TableMetadata;

use super::beside::Standing;
use super::{AWAITS_PROPERTY, SCHEMA_PROPERTY, TableWriter};
use crate::schema::{Holds, Layout};

/// Ids of the source's columns that the table does not have, and its rows would.
pub(crate) const IGNORED_PROPERTY: &str = "downriver.ignored";

/// The columns of the source that the table does not have because they are ignored.
pub(crate) fn ignored_columns(metadata: &TableMetadata) -> Vec<u32> {
    let ids = metadata.properties().get(IGNORED_PROPERTY);
    let ids = ids.map_or("", String::as_str).split(',');
    ids.filter_map(|id| id.parse().ok()).collect()
}

impl TableWriter {
    fn ignores(&self, kind: ChangeKind) -> bool {
        self.config.schema_changes.of(kind) == ChangePolicy::Ignore
    }

    /// The fields of a table that has no rows of the source's table yet are of another one's columns.
    fn ignores_some(&self) -> bool {
        self.config.schema_changes.has(ChangePolicy::Ignore)
            && self.property(AWAITS_PROPERTY).is_none()
            && self.property(SCHEMA_PROPERTY).is_some()
    }

    /// The schema as the table takes it, and the columns that it does not take.
    pub(super) fn taken(&self, schema: &Arc<TableSchema>) -> (Arc<TableSchema>, Vec<u32>) {
        self.taken_after(schema, std::slice::from_ref(&self.source))
    }

    /// `before`: schemas that tell of columns which this one has no more.
    fn taken_after(
        &self,
        schema: &Arc<TableSchema>,
        before: &[Arc<TableSchema>],
    ) -> (Arc<TableSchema>, Vec<u32>) {
        // Without a key rows are known by all that is in them.
        if schema.is_bag() || !self.ignores_some() {
            return (Arc::clone(schema), Vec::new());
        }
        let mut taken = (**schema).clone();
        let mut ignored = Vec::new();
        if self.ignores(ChangeKind::AddColumn) {
            let is_taken = |id| schema.key.contains(&id) || self.layout.field_of(id).is_some();
            let left_out = schema.columns.iter().map(|column| column.id);
            ignored = left_out.filter(|id| !is_taken(*id)).collect();
            taken.columns.retain(|column| is_taken(column.id));
        }
        if self.ignores(ChangeKind::RenameColumn) {
            keep_names(&mut taken.columns, &self.layout);
        }
        if self.ignores(ChangeKind::DropColumn) {
            let dropped = kept_columns(schema, &self.layout, before, &taken.columns);
            taken.columns.extend(dropped);
        }
        (Arc::new(taken), ignored)
    }

    /// The columns of the last schema that was met which rows of this one do not log.
    pub(super) fn lacking(&self, schema: &TableSchema) -> Vec<u32> {
        let columns = self.met.columns.iter().map(|column| column.id);
        let lacking = columns.filter(|id| schema.column_index(*id).is_none());
        lacking.collect()
    }

    /// Takes up the schema that the table's rows have.
    pub(super) fn take_columns(
        &mut self,
        schema: &Arc<TableSchema>,
        versions: &[Arc<TableSchema>],
        is_ours: bool,
    ) {
        let (taken, ignored) = match is_ours {
            true => self.taken_after(schema, versions),
            false => (Arc::clone(schema), Vec::new()),
        };
        self.source = Arc::clone(&taken);
        self.met = taken;
        let missing = ignored_columns(&self.metadata);
        if !is_ours || missing.is_empty() || self.ignores(ChangeKind::AddColumn) {
            self.ignore(ignored);
            return;
        }
        let names = missing.iter().map(|id| match schema.column_index(*id) {
            Some(at) => format!("{:?}", schema.columns[at].name),
            None => id.to_string(),
        });
        self.standing = Standing::Waiting(Problem::new(
            "DR-3032",
            format!(
                "table {} does not have what {} has in column {}: it was ignored",
                self.config.name,
                schema.qualified_name(),
                names.collect::<Vec<_>>().join(", ")
            ),
            "downriver resnapshot PIPELINE --tables SCHEMA.TABLE: a new snapshot brings these columns; or apply the pipeline with add_column: ignore again",
        ));
    }

    /// Puts down which columns the table does not take.
    pub(super) fn ignore(&mut self, ignored: Vec<u32>) {
        let text: Vec<String> = ignored.iter().map(u32::to_string).collect();
        let text = text.join(",");
        self.ignored = ignored;
        let said = self.pending.properties.get(IGNORED_PROPERTY);
        let said = said.map_or_else(
            || self.property(IGNORED_PROPERTY),
            |said| Some(said.as_str()),
        );
        if said.unwrap_or_default() != text {
            let property = (IGNORED_PROPERTY.to_owned(), text);
            self.pending.properties.extend([property]);
        }
    }
}

/// Gives columns the names that their fields have, but for those whose name another column has now.
fn keep_names(columns: &mut [Column], layout: &Layout) {
    let names: Vec<String> = columns.iter().map(|column| column.name.clone()).collect();
    for column in columns.iter_mut() {
        if let Some(field) = layout.field_of(column.id) {
            column.name.clone_from(&field.name);
        }
    }
    loop {
        let clash = (0..columns.len()).find(|at| {
            let name = &columns[*at].name;
            let same = |(other, column): (usize, &Column)| {
                other != *at && column.name.eq_ignore_ascii_case(name)
            };
            *name != names[*at] && columns.iter().enumerate().any(same)
        });
        match clash {
            Some(at) => columns[at].name.clone_from(&names[at]),
            None => return,
        }
    }
}

/// The columns that the schema has no more and the table has, beside those that it takes. One whose name another has now
/// gets one of its own.
fn kept_columns(
    schema: &TableSchema,
    layout: &Layout,
    before: &[Arc<TableSchema>],
    taken: &[Column],
) -> Vec<Column> {
    let fields = layout.schema.as_struct().fields();
    let dropped = fields
        .iter()
        .zip(&layout.holds)
        .filter_map(|(field, holds)| {
            let Holds::Column(id) = holds else {
                return None;
            };
            let mut all = schema.columns.iter().chain(&schema.withheld);
            if all.any(|column| column.id == *id) {
                return None;
            }
            let known = before.iter().rev().find_map(|schema| {
                let at = schema.column_index(*id)?;
                Some(schema.columns[at].clone())
            });
            let mut column = known?;
            column.name.clone_from(&field.name);
            column.nullable = true;
            if taken
                .iter()
                .any(|other| other.name.eq_ignore_ascii_case(&column.name))
            {
                column.name = format!("{}_dropped_{}", field.name, field.id);
            }
            Some(column)
        });
    dropped.collect()
}
