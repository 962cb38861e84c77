//! What a table's owner keeps in its own folder: the key index and what it belongs to. All of it can be made
//! again from the table; it is believed only if it speaks of the table's current snapshot.
//!
//! The file holds at most two versions: the table's current one, and the one whose commit is under way, so that
//! a crash between the two leaves an index for whichever the catalog has.

use std::io::Write as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

pub(crate) const FORMAT: u32 = 1;
const NAME: &str = "index.json";

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LocalState {
    pub(crate) format: u32,
    pub(crate) table_uuid: String,
    pub(crate) seed: u64,
    pub(crate) versions: Vec<Version>,
    pub(crate) garbage: Vec<Garbage>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Version {
    /// The snapshot that brought these rows; later ones may have changed none.
    pub(crate) data_snapshot: i64,
    /// Number and path of each data file.
    pub(crate) files: Vec<(u32, String)>,
    pub(crate) next_file: u32,
    /// Run files of the key index, from the oldest to the newest.
    pub(crate) runs: Vec<String>,
}

/// A file that snapshots before this sequence number need.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Garbage {
    pub(crate) path: String,
    pub(crate) sequence: i64,
}

impl LocalState {
    /// `None` if there is none; one that is damaged or of another format is `InvalidData`.
    pub(crate) fn read(folder: &Path) -> std::io::Result<Option<Self>> {
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let path = folder.join(NAME);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let invalid = |what: String| {
            let what = format!("{} {what}", path.display());
            std::io::Error::new(std::io::ErrorKind::InvalidData, what)
        };
        let damaged = |error: serde_json::Error| invalid(format!("is damaged: {error}"));
        let Format { format } = serde_json::from_slice(&bytes).map_err(damaged)?;
        if format != FORMAT {
            return Err(invalid(format!(
                "has format {format}, this build reads {FORMAT}"
            )));
        }
        serde_json::from_slice(&bytes).map(Some).map_err(damaged)
    }

    pub(crate) fn write(&self, folder: &Path) -> std::io::Result<()> {
        let beside = folder.join(format!("{NAME}.new"));
        let mut file = std::fs::File::create(&beside)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        file.sync_data()?;
        std::fs::rename(beside, folder.join(NAME))?;
        std::fs::File::open(folder)?.sync_all()
    }
    /// Keeps everything but the index, which is made again then.
    pub(crate) fn forget_index(folder: &Path) -> std::io::Result<()> {
        if let Some(mut state) = Self::read(folder)? {
            state.versions.clear();
            state.write(folder)?;
        }
        Ok(())
    }
}
