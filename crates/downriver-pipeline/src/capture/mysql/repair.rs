//! Where a source goes on behind a hole.

use downriver_log::StreamState;
use downriver_source::mysql::setup;
use downriver_source::rules::keep_covered;

use super::super::CaptureError;
use super::super::progress::Standing;
use super::super::registry::Registry;
use super::super::repair::Anew;
use super::debts::Debts;
use super::history::is_closed;
use super::numbers::{named, numbered};
use super::tables::comes;
use super::{MysqlSource, captured};

/// Where the server is now, and the tables as they are there.
pub(in super::super) async fn begin_anew(
    name: &str,
    source: &MysqlSource,
    state: Option<&StreamState>,
) -> Result<Anew, CaptureError> {
    let known = captured(name, state)?;
    let prepared = setup::begin_anew(&source.connection, known.as_ref()).await?;
    let mut registry = state.map_or_else(Registry::default, Registry::new);
    let tables = prepared.tables.into_iter();
    let tables = tables.filter(|table| table.problem.is_none());
    let tables = tables.map(|table| {
        let (namespace, name) = (&table.schema.namespace, &table.schema.name);
        let before = named(&registry, namespace, name, |id| {
            state.is_some_and(|state| comes(state, id))
        });
        let mut schema = numbered(&registry, before.as_deref(), table.schema);
        if let Some(before) = before {
            // What it says is said at the start that follows.
            keep_covered(&before, &mut schema);
        }
        let registered = registry.register(schema);
        // Whether it was changed since the position was asked for, the binlog does not say by itself.
        let is_told = is_closed(prepared.identity.flavor, registered.schema());
        let standing = match prepared.names_columns && is_told {
            true => Standing::Unknown,
            false => Standing::Lapsed,
        };
        (registered.schema().as_ref().clone(), standing)
    });
    Ok(Anew {
        position: prepared.position.clone(),
        identity: prepared.identity.encode(),
        tables: tables.collect(),
        debts: Some(Debts::default().stored()),
    })
}
