//! What the tests share: a pointer store in memory, with honest compare-and-set and what can go wrong around one; and a
//! lake over it.
#![allow(dead_code, clippy::unwrap_used)]

pub(crate) mod lake;

use std::collections::BTreeMap;
use std::sync::Mutex;

use async_trait::async_trait;
use downriver_lake::catalog::{Pointer, PointerError, Pointers};

/// Pointers in memory, moved by compare-and-set.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    pub(crate) pointers: Mutex<BTreeMap<(String, String, String), String>>,
    /// Moves that somebody else makes right before the next swap.
    pub(crate) rivals: Mutex<Vec<Pointer>>,
    /// The next swap is made but its answer is lost.
    pub(crate) lose_answer: Mutex<bool>,
}

impl Memory {
    pub(crate) fn apply(&self, swaps: &[Pointer]) -> Result<(), PointerError> {
        let key = |p: &Pointer| (p.catalog.clone(), p.namespace.clone(), p.table.clone());
        let mut pointers = self.pointers.lock().unwrap();
        for swap in swaps {
            let now = pointers.get(&key(swap)).map_or("", String::as_str);
            if now != swap.expected {
                return Err(PointerError::Conflict(format!("{} moved", swap.table)));
            }
        }
        for swap in swaps {
            if swap.metadata_location.is_empty() {
                pointers.remove(&key(swap));
            } else {
                pointers.insert(key(swap), swap.metadata_location.clone());
            }
        }
        Ok(())
    }
}

#[async_trait]
impl Pointers for Memory {
    fn get(&self, catalog: &str, namespace: &str, table: &str) -> Option<String> {
        let key = (catalog.to_owned(), namespace.to_owned(), table.to_owned());
        self.pointers.lock().unwrap().get(&key).cloned()
    }

    fn list(&self, catalog: &str) -> Vec<(String, String, String)> {
        let pointers = self.pointers.lock().unwrap();
        let of = pointers.iter().filter(|((c, _, _), _)| c == catalog);
        of.map(|((_, n, t), location)| (n.clone(), t.clone(), location.clone()))
            .collect()
    }

    async fn swap(&self, swaps: Vec<Pointer>) -> Result<(), PointerError> {
        let rivals = std::mem::take(&mut *self.rivals.lock().unwrap());
        self.apply(&rivals)?;
        self.apply(&swaps)?;
        if std::mem::take(&mut *self.lose_answer.lock().unwrap()) {
            return Err(PointerError::Unknown("the answer was lost".to_owned()));
        }
        Ok(())
    }
}
