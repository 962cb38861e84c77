//! A table's local folder of every format is read as it was written, and a newer one is refused.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use downriver_testkit::fixture;

use super::local::{FORMAT, Garbage, LocalState, Version};
use crate::index::{KeyHash, KeyIndex, Location};

const FIXTURE: &str = "lake-table-v1";

/// Two runs: one of several blocks, and one that hides some of its keys.
fn entries() -> [Vec<(KeyHash, Location)>; 2] {
    let entry = |key: u32, file| {
        let hash = KeyHash(u128::from(key) << 96 | u128::from(key));
        (hash, Location { file, row: key * 3 })
    };
    [
        (0..1_100).map(|key| entry(key, 1)).collect(),
        (1_000..1_200).map(|key| entry(key, u32::MAX)).collect(),
    ]
}

fn version(data_snapshot: i64, runs: Vec<String>) -> Version {
    Version {
        data_snapshot,
        files: vec![
            (1, "s3://lake/t/data/a.parquet".into()),
            (u32::MAX, "s3://lake/t/data/Zoë.parquet".into()),
        ],
        next_file: 9,
        runs,
    }
}

/// The content of the fixture but for the runs' names, which are drawn. It must never change; a new format gets
/// a new fixture beside it.
fn state(runs: &[String]) -> LocalState {
    LocalState {
        format: 1,
        table_uuid: "0197b3c0-0000-7000-8000-000000000001".into(),
        seed: u64::MAX,
        versions: vec![
            version(i64::MIN, runs[..1].to_vec()),
            version(7, runs.to_vec()),
        ],
        garbage: vec![Garbage {
            path: "s3://lake/t/metadata/b.avro".into(),
            sequence: 3,
        }],
    }
}

fn write(folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    let mut index = KeyIndex::empty(folder);
    for entries in entries() {
        index.add(entries).unwrap();
    }
    state(&index.names()).write(folder).unwrap();
}

#[test]
fn a_table_folder_of_format_1_is_read_as_it_was_written() {
    if let Some(path) = fixture::to_write(FIXTURE) {
        write(&path);
    }
    let folder = fixture::path(FIXTURE);
    let read = LocalState::read(&folder).unwrap().unwrap();
    let runs = &read.versions[1].runs;
    assert_eq!(runs.len(), 2);
    assert_eq!(read, state(runs));
    let index = KeyIndex::open(&folder, runs).unwrap();
    let mut expected = std::collections::BTreeMap::new();
    for entries in entries() {
        expected.extend(entries);
    }
    let hashes: Vec<KeyHash> = expected.keys().copied().collect();
    let locations: Vec<_> = expected.into_values().map(Some).collect();
    assert_eq!(index.lookup(&hashes).unwrap(), locations);
    assert_eq!(index.lookup(&[KeyHash(1)]).unwrap(), [None]);
}

#[test]
fn a_table_folder_of_a_newer_format_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    fixture::copy_folder(&fixture::path(FIXTURE), folder.path()).unwrap();
    let runs = LocalState::read(folder.path())
        .unwrap()
        .unwrap()
        .versions
        .remove(1)
        .runs;

    let newer = format!(r#"{{"format":{},"unknown":[]}}"#, FORMAT + 1);
    std::fs::write(folder.path().join("index.json"), newer).unwrap();
    let refused = LocalState::read(folder.path()).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::InvalidData);
    let reason = refused.to_string();
    assert!(
        reason.ends_with("index.json has format 2, this build reads 1"),
        "{reason}"
    );

    let run = folder.path().join(&runs[0]);
    let mut bytes = std::fs::read(&run).unwrap();
    *bytes.last_mut().unwrap() = b'2';
    std::fs::write(&run, bytes).unwrap();
    let reason = KeyIndex::open(folder.path(), &runs)
        .unwrap_err()
        .to_string();
    assert!(
        reason.ends_with("has format 2, this build reads 1"),
        "{reason}"
    );
}
