//! Which table of the source has the lake's table.
//!
//! The lake's table has the source's name, and names move: a table is renamed, or dropped and made again. The log says
//! where a table got its name, and whoever got it last has the lake's table. It takes it over by a fence of its own that
//! says so, and keeps the rows of the one before it until a generation of its snapshot replaces them; a writer of the one
//! before it cannot commit any more. Of two that claim the same name the later one has it, in whichever order they come.

use downriver_event::problem::Problem;
use downriver_event::{Offset, TableId};

use super::{
    AWAITS_PROPERTY, CLAIM_PROPERTY, CLAIMED, KEY_PROPERTY, LOST, OFFSET_PROPERTY, SCHEMA_PROPERTY,
    SNAPSHOT_PROPERTY, STREAM_PROPERTY, Standing, TABLE_PROPERTY, TableWriter,
};
use crate::LakeError;
use crate::catalog::{Catalog, TableName};

/// The table of the source that has the lake's table, if this stream fills it; where the log says that it got it, unless
/// it had it from the first; and how far it has come.
///
/// # Errors
/// The catalog's.
pub async fn owner_of(
    catalog: &dyn Catalog,
    name: &TableName,
    stream: &str,
) -> Result<Option<(TableId, Option<Offset>, Offset)>, LakeError> {
    let Some(loaded) = catalog.load(name).await? else {
        return Ok(None);
    };
    let of = |name: &str| loaded.metadata.properties().get(name);
    if of(STREAM_PROPERTY).is_none_or(|theirs| theirs != stream) {
        return Ok(None);
    }
    let id = of(TABLE_PROPERTY).and_then(|id| id.parse().ok());
    let claim = of(CLAIM_PROPERTY).and_then(|at| at.parse().ok());
    let offset = of(OFFSET_PROPERTY).and_then(|at| at.parse().ok());
    let offset = Offset(offset.unwrap_or_default());
    Ok(id.map(|id| (TableId(id), claim.map(Offset), offset)))
}

impl TableWriter {
    /// Whether the table is taken over now. `ours`: this stream filled it, or made it.
    pub(super) fn is_claimed(&self, ours: bool) -> Result<bool, LakeError> {
        let before = self.property(CLAIM_PROPERTY).filter(|_| ours);
        let before = before.and_then(|at| at.parse::<u64>().ok());
        if let Some(claim) = self.config.claim
            && before.is_none_or(|before| before < claim.0)
        {
            // Another life of the source is told apart by more than the table.
            return Ok(ours);
        }
        let of = self.property(TABLE_PROPERTY).filter(|_| ours);
        if of.is_some_and(|of| of != self.source.id.0.to_string()) {
            return Err(LakeError::OfAnother(Problem::new(
                "DR-3023",
                format!(
                    "table {} has the rows of another table of the source, which is or was called {} as well",
                    self.config.name,
                    self.source.qualified_name()
                ),
                "nothing, if the other one has this name now; otherwise downriver describe the source: its table is taken in when it is captured under this name",
            )));
        }
        Ok(false)
    }

    pub(super) fn take_over(&mut self) {
        self.committed = self.config.start;
        let claim = self.config.claim.unwrap_or_default();
        let claim = (CLAIM_PROPERTY.to_owned(), claim.to_string());
        self.pending.properties.extend([claim]);
        self.replace_rows(CLAIMED);
    }

    /// From here on a generation of the snapshot fills the table, and nothing else does.
    pub(super) fn replace_rows(&mut self, why: &str) {
        let mut properties = vec![(AWAITS_PROPERTY.to_owned(), why.to_owned())];
        for of_rows in [KEY_PROPERTY, SCHEMA_PROPERTY, SNAPSHOT_PROPERTY] {
            if self.property(of_rows).is_some() {
                properties.push((of_rows.to_owned(), String::new()));
            }
        }
        self.pending.properties.extend(properties);
        self.await_rows(why);
    }

    pub(super) fn await_rows(&mut self, why: &str) {
        let (name, source) = (&self.config.name, self.source.qualified_name());
        let problem = match why {
            LOST => Problem::new(
                "DR-3024",
                format!(
                    "table {name} has changes of {source} that the log lost when it was restored, and not those that came after them"
                ),
                "downriver resnapshot PIPELINE --tables SCHEMA.TABLE: a new snapshot replaces the table's rows",
            ),
            _ => Problem::new(
                "DR-3026",
                format!(
                    "the source's table {source} was renamed or made again, and table {name} does not have its rows yet"
                ),
                crate::reshape::WHEN_NONE_COMES,
            ),
        };
        self.standing = Standing::Waiting(problem);
    }
}
