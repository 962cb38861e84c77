//! Positions and identities of MySQL and MariaDB as they are stored: in blocks, segments, the Raft log and its snapshots.
#![allow(clippy::unwrap_used)]

use downriver_event::{BinlogPlace, DomainGtids, GtidSet, SourcePosition, pb};
use downriver_source::mysql::identity::Identity;
use downriver_testkit::fixture;
use prost::Message as _;

const POSITIONS: &str = "binlog-positions-v1.bin";

/// The content of the fixture. It must never change.
fn positions() -> Vec<SourcePosition> {
    let place = BinlogPlace {
        file: "binlog.1000000".into(),
        position: 5 << 32,
    };
    let gtids = "3e11fa47-71ca-11e1-9e33-c80aa9429562:1-5:7:night:2-3,ffffffff-0000-0000-0000-000000000001:9";
    let domains = "0-1-100,4294967295-2-18446744073709551615";
    vec![
        SourcePosition::Mysql {
            gtids: gtids.parse().unwrap(),
            place: place.clone(),
        },
        SourcePosition::Mysql {
            gtids: GtidSet::default(),
            place: place.clone(),
        },
        SourcePosition::Mariadb {
            gtids: domains.parse().unwrap(),
            place: place.clone(),
        },
        SourcePosition::Mariadb {
            gtids: DomainGtids::default(),
            place,
        },
        // Of a source that begins behind identifiers.
        SourcePosition::Mysql {
            gtids: gtids.parse().unwrap(),
            place: BinlogPlace {
                file: String::new(),
                position: 0,
            },
        },
    ]
}

#[test]
fn positions_in_a_binlog_are_read_as_they_were_stored() {
    let stored = fixture::bytes(POSITIONS, || {
        let positions = positions();
        let stored = positions
            .iter()
            .map(|p| p.to_pb().encode_length_delimited_to_vec());
        stored.collect::<Vec<_>>().concat()
    });
    let stored = stored.unwrap();
    let mut left = &stored[..];
    let mut read = Vec::new();
    while !left.is_empty() {
        let position = pb::SourcePosition::decode_length_delimited(&mut left).unwrap();
        read.push(SourcePosition::from_pb(&position).unwrap());
    }
    assert_eq!(read, positions());
}

#[test]
fn identities_of_servers_are_read_as_they_were_stored() {
    for (name, text) in [
        (
            "identity-mysql-v1.txt",
            "mysql 3e11fa47-71ca-11e1-9e33-c80aa9429562",
        ),
        ("identity-mariadb-v1.txt", "mariadb 7"),
    ] {
        let stored = fixture::bytes(name, || text.as_bytes().to_vec()).unwrap();
        let identity = Identity::decode(&stored).unwrap();
        assert_eq!(identity.encode(), text, "{name}");
    }
}
