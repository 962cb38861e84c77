//! What is in the object store, by its keys.

use std::collections::BTreeMap;

use downriver_event::Incarnation;
use downriver_log::store::{ObjectStore, StoreError};

/// Lengths of all objects under a prefix, by key.
///
/// # Errors
/// The store's.
pub(crate) async fn list_all(
    store: &dyn ObjectStore,
    prefix: &str,
) -> Result<BTreeMap<String, u64>, StoreError> {
    let mut found = BTreeMap::new();
    loop {
        let last = found
            .last_key_value()
            .map(|(last, _): (&String, &u64)| last.clone());
        let more = store.list(prefix, last.as_deref()).await?;
        if more.is_empty() {
            return Ok(found);
        }
        found.extend(more);
    }
}

/// Of an object of a stream: its key goes on with it behind the stream's prefix.
pub(crate) fn incarnation_of(key: &str, prefix: &str) -> Option<Incarnation> {
    let (incarnation, _) = key.strip_prefix(prefix)?.split_once('-')?;
    incarnation.parse().ok().map(Incarnation)
}
