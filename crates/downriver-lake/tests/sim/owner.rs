//! An owner of the table, as the delivery drives one: it opens, applies and commits, and after an error it is gone.

use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;

use downriver_event::Offset;
use downriver_lake::{Changes, LakeError, Schemas, TableWriter};
use tokio::sync::Notify;

/// What an owner has done.
#[derive(Debug)]
pub(crate) enum Done {
    Opened,
    /// Up to there.
    Applied(Offset),
    /// Up to there, and whether there was anything to commit.
    Committed(Offset, bool),
}

pub(crate) struct Acted {
    pub(crate) writer: Option<TableWriter>,
    pub(crate) done: Result<Done, LakeError>,
}

/// Something that an owner is about, which goes on when it is woken.
pub(crate) type Act = Pin<Box<dyn Future<Output = Acted>>>;

pub(crate) enum Mind {
    Awake(Box<TableWriter>),
    Asleep(Act, Arc<Notify>),
}

pub(crate) struct Owner {
    pub(crate) epoch: u64,
    pub(crate) node: usize,
    /// What it or an owner before it knows to be delivered.
    pub(crate) delivered: Offset,
    pub(crate) applied: Offset,
    /// The snapshot that its next commit follows.
    pub(crate) base: Option<i64>,
}

pub(crate) fn open(opening: impl Future<Output = Result<TableWriter, LakeError>> + 'static) -> Act {
    Box::pin(async move {
        match opening.await {
            Ok(writer) => Acted {
                writer: Some(writer),
                done: Ok(Done::Opened),
            },
            Err(error) => Acted {
                writer: None,
                done: Err(error),
            },
        }
    })
}

pub(crate) fn apply(
    mut writer: TableWriter,
    read: Vec<(Changes, Range<u32>)>,
    schemas: Schemas,
    to: Offset,
    spills: bool,
) -> Act {
    Box::pin(async move {
        let applied = async {
            for (changes, range) in read {
                writer.apply(&changes, range, &schemas).await?;
            }
            if spills {
                writer.spill().await?;
            }
            Ok(Done::Applied(to))
        };
        let done = applied.await;
        Acted {
            writer: Some(writer),
            done,
        }
    })
}

pub(crate) fn commit(mut writer: TableWriter, to: Offset) -> Act {
    Box::pin(async move {
        let committed = writer.commit(to).await;
        Acted {
            writer: Some(writer),
            done: committed.map(|wrote| Done::Committed(to, wrote)),
        }
    })
}
