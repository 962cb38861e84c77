//! A generation that replaces the table: it is built beside what readers see, and put in its place by one commit.
//!
//! ```text
//!                 ┌────────────────── end, and its commit ──────────────────┐
//!                 ▼                                                         │
//!   whole ── a shape that its rows cannot be carried into ──> waiting ── start ──> beside
//!                                                                ▲                  │
//!                                                                └─ another of them ┘
//! ```
//!
//! While it waits, changes are passed over: the generation contains them. What is beside are data files and a key index
//! that nothing names, so a crash throws it away, and the next owner reads the log again from where the table stands,
//! which says nothing newer until the end. The commit removes every old data file, adds the new ones and the schema
//! that they were written with.

use std::collections::BTreeMap;
use std::sync::Arc;

use downriver_event::TableSchema;
use downriver_event::problem::Problem;
use iceberg::spec::{Schema, TableMetadata};
use iceberg::{TableRequirement, TableUpdate};

use super::{AWAITS_PROPERTY, Pending, SNAPSHOT_PROPERTY, TableWriter};
use crate::LakeError;
use crate::reshape::{keyless, misfit, replacement};
use crate::schema::{COLUMNS_PROPERTY, Evolution, Layout, mapping_property};

#[derive(Debug)]
pub(super) enum Standing {
    Whole,
    /// Changes are passed over until a generation of the table's snapshot starts.
    Waiting(Problem),
    Beside(Box<Beside>),
}

#[derive(Debug)]
pub(super) struct Beside {
    /// The table's, with the new schema as its current one.
    pub(super) metadata: TableMetadata,
    mapping: BTreeMap<i32, u32>,
    /// The generation's rows are all there.
    pub(super) ended: bool,
}

impl TableWriter {
    /// Why changes are passed over until a generation of the table's snapshot starts, if they are.
    #[must_use]
    pub fn waits(&self) -> Option<&Problem> {
        match &self.standing {
            Standing::Waiting(problem) => Some(problem),
            Standing::Whole | Standing::Beside(_) => None,
        }
    }

    /// Whether readers see everything that was committed, and not what the table was before.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        matches!(self.standing, Standing::Whole)
    }

    /// Passes over all changes until a generation of the table's snapshot starts, and lets that replace the rows.
    ///
    /// # Errors
    /// Files of the warehouse's store could not be deleted.
    pub async fn wait_for_generation(&mut self, problem: Problem) -> Result<(), LakeError> {
        tracing::info!(
            table = %self.config.name,
            code = problem.code,
            reason = problem.reason,
            "a table waits for a generation that replaces it"
        );
        self.discard().await?;
        self.standing = Standing::Waiting(problem);
        Ok(())
    }

    /// What the table was told to be from here on, and the rows that it has cannot be.
    pub(super) fn misfit(&self, schema: &TableSchema) -> Option<Problem> {
        if schema.version == self.source.version || self.waits().is_some() {
            return None;
        }
        misfit(&self.source, schema)
    }

    /// Takes note of the shape that rows have from here on.
    pub(super) async fn meet(&mut self, schema: &Arc<TableSchema>) -> Result<(), LakeError> {
        let (taken, ignored) = self.taken(schema);
        let schema = &taken;
        self.met = Arc::clone(schema);
        self.ignore(ignored);
        match (&self.standing, self.misfit(schema)) {
            (Standing::Waiting(_), _) => {}
            (_, None) => {
                if schema.version > self.source.version {
                    self.source = Arc::clone(schema);
                    self.source_is_new = true;
                }
            }
            // Where the start was taken up in the middle of the log, its shape is known by the first row only.
            (Standing::Beside(_), Some(_)) if self.has_nothing_beside() => {
                self.begin_beside().await?
            }
            (_, Some(problem)) => self.wait_for_generation(problem).await?,
        }
        Ok(())
    }

    fn has_nothing_beside(&self) -> bool {
        self.window.is_empty() && self.pending.added.is_empty()
    }

    /// Begins to build the table anew, in the newest shape that was met.
    pub(super) async fn begin_beside(&mut self) -> Result<(), LakeError> {
        self.discard().await?;
        if !self.met.tells_rows() {
            self.standing = Standing::Waiting(keyless(&self.met));
            return Ok(());
        }
        if self.seed == 0 {
            self.seed = uuid::Uuid::new_v4().as_u64_pair().0;
        }
        self.window = crate::window::Window::new(self.seed);
        self.source = Arc::clone(&self.met);
        self.index.clear();
        self.snapshot_since = None;
        self.pending.removed = self.live.files.keys().copied().collect();
        for gone in [SNAPSHOT_PROPERTY, AWAITS_PROPERTY] {
            if self.property(gone).is_some() {
                let gone = (gone.to_owned(), String::new());
                self.pending.properties.extend([gone]);
            }
        }
        let ignored = std::mem::take(&mut self.ignored);
        self.ignore(ignored);
        let layout = Layout::of(&self.metadata)?;
        let (schema, mapping) = replacement(&self.metadata, &layout, &self.source)?;
        self.reshape_beside(schema, mapping, false)
    }

    fn reshape_beside(
        &mut self,
        schema: Schema,
        mapping: BTreeMap<i32, u32>,
        ended: bool,
    ) -> Result<(), LakeError> {
        let metadata = with_schema(self.metadata.clone(), schema)?;
        self.layout = Layout::with(&metadata, &mapping)?;
        self.standing = Standing::Beside(Box::new(Beside {
            metadata,
            mapping,
            ended,
        }));
        Ok(())
    }

    /// Takes columns in that came while the table is built beside: nothing of them is committed before the end.
    pub(super) fn evolve_beside(&mut self, evolution: Evolution) -> Result<(), LakeError> {
        let ended = matches!(&self.standing, Standing::Beside(beside) if beside.ended);
        self.reshape_beside(evolution.schema, evolution.mapping, ended)
    }

    /// All that was applied since the last commit goes; nothing names its files.
    async fn discard(&mut self) -> Result<(), LakeError> {
        self.window.clear();
        for file in std::mem::take(&mut self.pending).added.into_values() {
            let key = self.warehouse.key(file.file_path())?;
            self.warehouse.store().delete(key).await?;
        }
        self.pending = Pending::default();
        Ok(())
    }
}

impl Beside {
    /// What puts the schema into the table, together with its rows.
    pub(super) fn updates(&self) -> Vec<TableUpdate> {
        let columns = (COLUMNS_PROPERTY.to_owned(), mapping_property(&self.mapping));
        vec![
            TableUpdate::AddSchema {
                schema: self.metadata.current_schema().as_ref().clone(),
            },
            TableUpdate::SetCurrentSchema { schema_id: -1 },
            TableUpdate::SetProperties {
                updates: [columns].into(),
            },
        ]
    }

    /// The schema's ids are those that come next.
    pub(super) fn requirements(before: &TableMetadata) -> [TableRequirement; 2] {
        [
            TableRequirement::LastAssignedFieldIdMatch {
                last_assigned_field_id: before.last_column_id(),
            },
            TableRequirement::CurrentSchemaIdMatch {
                current_schema_id: before.current_schema_id(),
            },
        ]
    }
}

fn with_schema(metadata: TableMetadata, schema: Schema) -> Result<TableMetadata, LakeError> {
    let builder = metadata.into_builder(None).add_schema(schema)?;
    let built = builder.set_current_schema(-1)?.build()?;
    Ok(built.metadata)
}
