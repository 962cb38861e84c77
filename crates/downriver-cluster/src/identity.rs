//! Which node a folder is of. A folder that was emptied is another node: it has forgotten what it promised to others.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

const FORMAT: u32 = 1;
const FILE: &str = "identity.json";
/// Numbers are drawn below this, so that any JSON reader keeps them exact.
const NODE_ID_MAX: u128 = 1 << 48;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    format: u32,
    pub(crate) node_id: u64,
    /// Empty: it belongs to none yet.
    pub(crate) cluster_id: String,
    /// It is about to found the cluster: of nothing else is it known yet.
    #[serde(default)]
    pub(crate) founds: bool,
    /// How often the folder's node was started.
    pub(crate) starts: u64,
}

impl Identity {
    /// The folder's node, started once more; a new node's for a folder without one.
    pub(crate) fn started(folder: &Path) -> std::io::Result<Self> {
        let mut identity = match std::fs::read(folder.join(FILE)) {
            Ok(bytes) => Self::decode(&bytes)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Self::new(),
            Err(error) => return Err(error),
        };
        identity.starts += 1;
        identity.store(folder)?;
        Ok(identity)
    }

    fn new() -> Self {
        let drawn = uuid::Uuid::new_v4().as_u128() % NODE_ID_MAX;
        Self {
            format: FORMAT,
            node_id: u64::try_from(drawn).expect("it is below 2^48").max(1),
            cluster_id: String::new(),
            founds: false,
            starts: 0,
        }
    }

    /// A new node of a cluster, which is not stored yet.
    pub(crate) fn of_cluster(cluster_id: &str) -> Self {
        Self {
            cluster_id: cluster_id.to_owned(),
            ..Self::new()
        }
    }

    fn decode(bytes: &[u8]) -> std::io::Result<Self> {
        let identity: Self = serde_json::from_slice(bytes)?;
        if identity.format != FORMAT {
            let format = identity.format;
            return Err(std::io::Error::other(format!(
                "{FILE} has format {format}, this build reads {FORMAT}"
            )));
        }
        Ok(identity)
    }

    /// Durable when it returns.
    pub(crate) fn store(&self, folder: &Path) -> std::io::Result<()> {
        let beside = folder.join("identity.new");
        let mut file = File::create(&beside)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        file.sync_all()?;
        std::fs::rename(beside, folder.join(FILE))?;
        File::open(folder)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use downriver_testkit::fixture;

    use super::*;

    #[test]
    fn a_folder_stays_the_same_node_and_an_empty_one_is_another() {
        let folder = tempfile::tempdir().unwrap();
        let first = Identity::started(folder.path()).unwrap();
        let second = Identity::started(folder.path()).unwrap();
        assert_eq!((first.starts, second.starts), (1, 2));
        assert_eq!(first.node_id, second.node_id);
        let other = tempfile::tempdir().unwrap();
        let other = Identity::started(other.path()).unwrap();
        assert_ne!(other.node_id, first.node_id);
    }

    #[test]
    fn what_was_stored_is_read() {
        let identity = Identity {
            format: FORMAT,
            node_id: 260_523_174_004_276,
            cluster_id: "29fbce59-6e1a-4b67-80c5-9f9f6d3c0122".into(),
            founds: false,
            starts: 7,
        };
        let bytes = fixture::bytes("node-identity-v1.json", || {
            serde_json::to_vec(&identity).unwrap()
        });
        assert_eq!(Identity::decode(&bytes.unwrap()).unwrap(), identity);
    }

    #[test]
    fn another_format_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        Identity::started(folder.path()).unwrap();
        let path = folder.path().join(FILE);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace("\"format\":1", "\"format\":2")).unwrap();
        assert!(Identity::started(folder.path()).is_err());
    }
}
