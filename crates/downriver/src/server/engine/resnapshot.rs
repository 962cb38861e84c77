//! Snapshots that are taken again: the capture is asked, and answers when its log knows of it.

use std::sync::Arc;
use std::time::Duration;

use downriver_event::TableId;
use downriver_event::problem::Problem;
use downriver_service::TableName;

use super::{NodeEngine, locked};

/// How long a capture may take to take a request in: an append, after a transaction that is open.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

impl NodeEngine {
    /// Each table that will be read again, and the generation of that snapshot.
    pub(super) async fn resnapshot_tables(
        &self,
        name: &str,
        patterns: &[String],
    ) -> Result<Vec<(TableName, u64)>, Problem> {
        let pipeline = self.pipeline_spec(name)?;
        let selected = match patterns {
            [] => self.pipeline_tables(name, &pipeline),
            some => self.select(name, some)?,
        };
        // What stands still is said, instead of waited for.
        self.seen_running(name, &pipeline)?;
        let names = self.logged_tables(&pipeline.source);
        let wanted = names.iter();
        let wanted: Vec<TableId> = wanted
            .filter(|(_, table)| selected.contains(&table.to_string()))
            .map(|(id, _)| *id)
            .collect();
        let control = {
            let captures = locked(&self.captures);
            captures
                .get(&pipeline.source)
                .map(|c| Arc::clone(&c.control))
        };
        let refused = |reason: &str| {
            Problem::new(
                "DR-2056",
                format!(
                    "source {:?} {reason}: nothing was asked for",
                    pipeline.source
                ),
                "see downriver status, and ask again when the source is streaming",
            )
        };
        let control = control.ok_or_else(|| refused("is not captured"))?;
        let asked = tokio::time::timeout(ANSWER_WITHIN, control.resnapshot(wanted)).await;
        let requested = match asked {
            Ok(Ok(requested)) if !requested.is_empty() => requested,
            Ok(Ok(_)) => return Err(refused("captures none of these tables")),
            Ok(Err(error)) => return Err(refused(&format!("cannot be asked ({error})"))),
            Err(_) => return Err(refused("does not take the request in")),
        };
        let named = requested
            .into_iter()
            .filter_map(|(table, generation)| Some((names.get(&table)?.clone(), generation)));
        Ok(named.collect())
    }
}
