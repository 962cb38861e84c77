//! What a server is told and asked for, so that its stream begins behind a position.
//!
//! Source: MySQL's `sql/rpl_source.cc` and `sql/rpl_gtid_set.cc`; MariaDB's knowledge base, "COM_BINLOG_DUMP" and
//! "Replication Protocol".

use std::time::Duration;

use downriver_decode::mysql::FIRST_EVENT;
use downriver_event::{BinlogPlace, DomainGtids, GtidSet, GtidSource, SourcePosition};
use mysql_common::packets::{
    BinlogDumpFlags, ComBinlogDump, ComBinlogDumpGtid, GnoInterval, Sid, Tag,
};
use mysql_common::proto::MySerialize as _;

use crate::error::SourceError;

/// How often the server says where it is while it has nothing to send: of what it passes over only this tells.
pub(super) const HEARTBEAT_EVERY: Duration = Duration::from_secs(1);
/// How long the server waits for us to take what it sends while capture stands still. Then it cuts the connection: what had
/// come until then is still read, the end is an error that goes away, and the stream begins again at the position.
const SERVER_WAITS_FOR: Duration = Duration::from_secs(3600);
/// The server sends all events that are in a file, also statements' texts: whoever counts needs them. The flag has another
/// name, and no meaning, with MySQL.
const EVERY_EVENT: BinlogDumpFlags = BinlogDumpFlags::BINLOG_THROUGH_POSITION;

/// Statements and a command.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Start {
    pub(super) settings: String,
    pub(super) command: Vec<u8>,
}

impl Start {
    /// # Errors
    /// The position is none of such a server, or cannot be asked for.
    pub(super) fn after(
        position: &SourcePosition,
        server_id: u32,
        is_mariadb: bool,
    ) -> Result<Self, SourceError> {
        let mut settings = settings(server_id, is_mariadb);
        let command = match position {
            SourcePosition::Mysql { gtids, place } if !is_mariadb => match gtids.is_empty() {
                true => by_place(place, server_id, BinlogDumpFlags::empty())?,
                false => by_set(gtids, server_id)?,
            },
            SourcePosition::Mariadb { gtids, place } if is_mariadb => match gtids.is_empty() {
                true => by_place(place, server_id, EVERY_EVENT)?,
                false => {
                    settings.push_str(&connect_state(gtids));
                    let first = u32::try_from(FIRST_EVENT).expect("it is small");
                    dump("", first, server_id, EVERY_EVENT)
                }
            },
            _ => {
                let server = if is_mariadb { "MariaDB" } else { "MySQL" };
                return Err(SourceError::definite(
                    "DR-1065",
                    format!(
                        "the server is {server}, and the source's position {position} is of another database"
                    ),
                    "connect to the server that was captured before, or give the new one a source of its own",
                ));
            }
        };
        Ok(Self { settings, command })
    }
}

/// Without the first, a server that has checksums refuses us. The uuid tells the server which old stream of ours it may
/// end: whoever has the same server id has the same one.
fn settings(server_id: u32, is_mariadb: bool) -> String {
    let heartbeat = HEARTBEAT_EVERY.as_nanos();
    let wait = SERVER_WAITS_FOR.as_secs();
    let mut settings = format!(
        "SET net_write_timeout = {wait}, net_read_timeout = {wait}, \
         @master_binlog_checksum = @@global.binlog_checksum, @master_heartbeat_period = {heartbeat}, \
         @slave_uuid = '{uuid}'",
        uuid = uuid(server_id),
    );
    settings.push_str(&match is_mariadb {
        // It knows every event of its own, and passes over nothing that it does not find.
        true => ", @mariadb_slave_capability = 4, @slave_gtid_strict_mode = 1, \
                  @slave_gtid_ignore_duplicates = 0"
            .to_owned(),
        false => format!(
            ", @source_binlog_checksum = @@global.binlog_checksum, \
             @source_heartbeat_period = {heartbeat}, @replica_uuid = '{uuid}'",
            uuid = uuid(server_id),
        ),
    });
    settings
}

/// "downriver" and the number.
fn uuid(server_id: u32) -> String {
    format!("646f776e-7269-4665-8200-0000{server_id:08x}")
}

/// The server looks for the file itself.
fn connect_state(gtids: &DomainGtids) -> String {
    format!(", @slave_connect_state = '{gtids}'")
}

fn by_place(
    place: &BinlogPlace,
    server_id: u32,
    flags: BinlogDumpFlags,
) -> Result<Vec<u8>, SourceError> {
    if place.file.is_empty() {
        return Err(SourceError::definite(
            "DR-1065",
            "the source's position names neither a transaction nor a file of the binlog",
            "give the source a position with a GTID or a file",
        ));
    }
    let Ok(position) = u32::try_from(place.position.max(FIRST_EVENT)) else {
        return Err(SourceError::hole(
            "DR-1061",
            format!("the protocol has no way to ask for {place}, which is behind the first 4 GiB of its file"),
        )
        .and_first("turn gtid_mode on, or keep transactions under max_binlog_size"));
    };
    Ok(dump(&place.file, position, server_id, flags))
}

fn dump(file: &str, position: u32, server_id: u32, flags: BinlogDumpFlags) -> Vec<u8> {
    let mut command = Vec::new();
    ComBinlogDump::new(server_id)
        .with_pos(position)
        .with_flags(flags)
        .with_filename(file.as_bytes())
        .serialize(&mut command);
    command
}

/// The server sends what is not in the set, from whichever file has the first of it.
fn by_set(gtids: &GtidSet, server_id: u32) -> Result<Vec<u8>, SourceError> {
    let mut sids: Vec<Sid<'_>> = Vec::new();
    let mut last: Option<&GtidSource> = None;
    let mut intervals = Vec::new();
    for (source, first, after) in gtids.intervals() {
        if let Some(last) = last.filter(|last| *last != source) {
            sids.push(sid(last, std::mem::take(&mut intervals))?);
        }
        last = Some(source);
        // There the end is the first that is not in it.
        intervals.push(GnoInterval::new(first, after + 1));
    }
    if let Some(last) = last {
        sids.push(sid(last, intervals)?);
    }
    let mut command = Vec::new();
    ComBinlogDumpGtid::new(server_id)
        .with_pos(FIRST_EVENT)
        .with_sids(sids)
        .serialize(&mut command);
    Ok(command)
}

fn sid(source: &GtidSource, intervals: Vec<GnoInterval>) -> Result<Sid<'_>, SourceError> {
    let sid = Sid::new(source.server).with_intervals(intervals);
    if source.tag.is_empty() {
        return Ok(sid);
    }
    let tag = Tag::new(source.tag.as_str()).map_err(|error| {
        SourceError::definite(
            "DR-1065",
            format!("the source's position has a GTID with a tag that no server gives: {error}"),
            "give the source a position with valid GTIDs",
        )
    })?;
    Ok(sid.with_tag(tag))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const A: &str = "3e11fa47-71ca-11e1-9e33-c80aa9429562";
    const A_BYTES: [u8; 16] = [
        0x3e, 0x11, 0xfa, 0x47, 0x71, 0xca, 0x11, 0xe1, 0x9e, 0x33, 0xc8, 0x0a, 0xa9, 0x42, 0x95,
        0x62,
    ];

    fn place(position: u64) -> BinlogPlace {
        BinlogPlace {
            file: "binlog.000007".into(),
            position,
        }
    }

    fn mysql(gtids: &str, position: u64) -> SourcePosition {
        SourcePosition::Mysql {
            gtids: gtids.replace('A', A).parse().unwrap(),
            place: place(position),
        }
    }

    fn mariadb(gtids: &str, position: u64) -> SourcePosition {
        SourcePosition::Mariadb {
            gtids: gtids.parse().unwrap(),
            place: place(position),
        }
    }

    fn command(position: &SourcePosition, is_mariadb: bool) -> Vec<u8> {
        Start::after(position, 7, is_mariadb).unwrap().command
    }

    #[test]
    fn a_place_is_asked_for_in_32_bits() {
        let asked = command(&mysql("", 0x0102_0304), false);
        assert_eq!(asked, b"\x12\x04\x03\x02\x01\0\0\x07\0\0\0binlog.000007");
        assert_eq!(command(&mysql("", 0), false)[1..5], [4, 0, 0, 0]);
        let maria = command(&mariadb("", 4), true);
        assert_eq!(maria, b"\x12\x04\0\0\0\x02\0\x07\0\0\0binlog.000007");
        assert!(Start::after(&mysql("", u64::from(u32::MAX)), 7, false).is_ok());
        let beyond = Start::after(&mysql("", 1 << 32), 7, false).unwrap_err();
        assert!(beyond.is_hole() && beyond.problem().code == "DR-1061");
    }

    #[test]
    fn a_set_is_encoded_with_its_holes() {
        let mut expected = b"\x1e\x04\0\x07\0\0\0\0\0\0\0".to_vec();
        expected.extend_from_slice(&4u64.to_le_bytes());
        expected.extend_from_slice(&(8u32 + 16 + 8 + 32).to_le_bytes());
        expected.extend_from_slice(&1u64.to_le_bytes());
        expected.extend_from_slice(&A_BYTES);
        for number in [2u64, 1, 6, 7, 9] {
            expected.extend_from_slice(&number.to_le_bytes());
        }
        // A place beside it is not asked for.
        assert_eq!(command(&mysql("A:1-5:7-8", 1 << 40), false), expected);
    }

    /// Source: MySQL's `sql/rpl_gtid_set.cc`, `Gtid_set::encode`: the number of sources from the second byte on, 1 in the
    /// eighth, and behind each source its tag, with a length in the form that doubles it.
    #[test]
    fn a_set_with_tags_has_a_form_of_its_own() {
        let asked = command(&mysql("A:1:night:2", 4), false);
        let (head, body) = asked.split_at(1 + 2 + 4 + 4 + 8);
        assert_eq!(head[0], 0x1e);
        let mut expected = Vec::new();
        let plain = [
            &A_BYTES[..],
            &[0],
            &1u64.to_le_bytes(),
            &1u64.to_le_bytes(),
            &2u64.to_le_bytes(),
        ];
        let tagged = [
            &A_BYTES[..],
            &[5 << 1],
            b"night",
            &1u64.to_le_bytes(),
            &2u64.to_le_bytes(),
            &3u64.to_le_bytes(),
        ];
        expected.extend_from_slice(&plain.concat());
        expected.extend_from_slice(&tagged.concat());
        let (len, body) = body.split_at(4);
        assert_eq!(
            len,
            u32::try_from(8 + expected.len()).unwrap().to_le_bytes()
        );
        let (count, body) = body.split_at(8);
        assert_eq!((count[1], count[7]), (2, 1));
        assert_eq!(body, expected);
    }

    #[test]
    fn domains_are_told_before_the_command() {
        let start = Start::after(&mariadb("7-3-5,0-1-100", 99), 7, true).unwrap();
        assert!(
            start
                .settings
                .ends_with("@slave_connect_state = '0-1-100,7-3-5'")
        );
        assert_eq!(start.command, b"\x12\x04\0\0\0\x02\0\x07\0\0\0");
        let by_place = Start::after(&mariadb("", 99), 7, true).unwrap();
        assert!(!by_place.settings.contains("connect_state"));
    }

    #[test]
    fn a_position_of_another_database_is_refused() {
        let elsewhere = SourcePosition::Mysql {
            gtids: GtidSet::default(),
            place: BinlogPlace {
                file: String::new(),
                position: 4,
            },
        };
        for (position, is_mariadb) in [
            (mysql("A:1", 4), true),
            (mariadb("0-1-1", 4), false),
            (SourcePosition::Postgres(downriver_event::Lsn(7)), false),
            (elsewhere, false),
        ] {
            let refused = Start::after(&position, 7, is_mariadb).unwrap_err();
            assert_eq!(refused.problem().code, "DR-1065", "{position}");
        }
    }
}
