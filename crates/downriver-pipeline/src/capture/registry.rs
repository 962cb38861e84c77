//! The schemas of a source's captured tables, and their versions.

use std::collections::HashMap;
use std::sync::Arc;

use downriver_event::{TableId, TableSchema};
use downriver_log::StreamState;

/// What registering a schema found.
#[derive(Debug)]
pub(crate) enum Registered {
    /// The newest version has this shape already.
    Known(Arc<TableSchema>),
    /// A new version, to be announced before its first row.
    New {
        schema: Arc<TableSchema>,
        previous_version: u32,
    },
}

impl Registered {
    pub(crate) fn schema(&self) -> &Arc<TableSchema> {
        match self {
            Self::Known(schema) | Self::New { schema, .. } => schema,
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Registry {
    newest: HashMap<TableId, Arc<TableSchema>>,
    all: HashMap<(TableId, u32), Arc<TableSchema>>,
}

impl Registry {
    pub(crate) fn new(state: &StreamState) -> Self {
        let mut registry = Self::default();
        for (key, schema) in state.schemas.iter() {
            registry.all.insert(*key, Arc::clone(schema));
            registry.newest.insert(key.0, Arc::clone(schema));
        }
        registry
    }

    pub(crate) fn newest(&self, table: TableId) -> Option<&Arc<TableSchema>> {
        self.newest.get(&table)
    }

    /// The tables that were called so last: one that has the name, and those that were dropped with it.
    pub(crate) fn named<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
    ) -> impl Iterator<Item = &'a Arc<TableSchema>> {
        let newest = self.newest.values();
        newest.filter(move |schema| schema.namespace == namespace && schema.name == name)
    }

    pub(crate) fn tables(&self) -> impl Iterator<Item = &Arc<TableSchema>> {
        self.newest.values()
    }

    /// Every version of a table's schema.
    pub(crate) fn versions(&self, table: TableId) -> impl Iterator<Item = &Arc<TableSchema>> {
        let all = self.all.iter();
        all.filter_map(move |((of, _), schema)| (*of == table).then_some(schema))
    }

    pub(crate) fn version(&self, table: TableId, version: u32) -> Option<Arc<TableSchema>> {
        self.all.get(&(table, version)).cloned()
    }

    /// Gives the schema the table's next version, if its shape is not the newest one's.
    pub(crate) fn register(&mut self, mut schema: TableSchema) -> Registered {
        let previous = self.newest.get(&schema.id);
        if let Some(known) = previous.filter(|known| known.same_shape(&schema)) {
            return Registered::Known(Arc::clone(known));
        }
        let previous_version = previous.map_or(0, |previous| previous.version);
        schema.version = previous_version + 1;
        let schema = Arc::new(schema);
        self.newest.insert(schema.id, Arc::clone(&schema));
        self.all
            .insert((schema.id, schema.version), Arc::clone(&schema));
        Registered::New {
            schema,
            previous_version,
        }
    }
}
