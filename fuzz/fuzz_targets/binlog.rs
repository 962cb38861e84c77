//! Any bytes as a sequence of events: the decoder may refuse them, and must neither panic nor take memory out of
//! proportion to them.
//!
//! The first byte chooses whose binlog it is; then each event is its length, two bytes, its type, and its body. The rest of
//! its header is made here, so that it is looked into. Some types are of this target only:
//!
//! - 240: so many events as its length says, which follow, are in a compressed transaction that is in fact plain;
//! - 241: the same, compressed by zstd;
//! - 245 to 248: an event of the type 165 to 168, of which what is behind a head is compressed by zlib here. The head's
//!   length is the body's first byte.
#![no_main]

use std::sync::Arc;

use downriver_decode::mysql::ddl;
use downriver_decode::mysql::decoder::{BinlogDecoder, Decoded, Reached};
use downriver_decode::mysql::shape::{Shape, describe};
use downriver_decode::mysql::table_map::TableMap;
use downriver_event::{
    BinlogPlace, BlockBuilder, Column, Cover, DefaultCell, DomainGtids, GtidSet, Presence,
    ReplicaIdentity, TableId, TableSchema, view,
};
use flate2::Compression;
use flate2::write::ZlibEncoder;
use libfuzzer_sys::fuzz_target;
use std::io::Write as _;

const PLAIN_TRANSACTION: u8 = 240;
const ZSTD_TRANSACTION: u8 = 241;
const TRANSACTION_PAYLOAD: u8 = 40;

fn charset(collation: u64) -> Option<String> {
    let charsets = ["utf8mb4", "latin1", "gbk", "ucs2", "utf32", "swe7"];
    Some(charsets[usize::try_from(collation % 6).ok()?].to_owned())
}

/// What the capture does with a table map.
fn shape(mut map: TableMap, version: u32) -> Option<Shape> {
    for (at, column) in map.columns.iter_mut().enumerate() {
        column.name.get_or_insert_with(|| format!("c{at}"));
    }
    let described = describe(&map, charset).ok()?;
    let columns = (1..).zip(&described).map(|(id, column)| Column {
        id,
        name: column.name.clone(),
        ty: column.ty.clone(),
        nullable: column.nullable,
        source_type: column.source_type.clone(),
        cover: Cover::None,
        default: (version % 2 == 1).then(|| DefaultCell(view::presence_cell(Presence::Null))),
    });
    let schema = TableSchema {
        id: TableId(u32::try_from(map.number % 5).ok()?),
        version,
        namespace: map.database,
        name: map.table,
        columns: columns.collect(),
        withheld: Vec::new(),
        key: vec![1],
        identity: ReplicaIdentity::Default,
    };
    let plans = described.into_iter().map(|column| column.plan).collect();
    Some(Shape::new(Arc::new(schema), plans, Vec::new()))
}

fn event(kind: u8, body: &[u8]) -> Option<Vec<u8>> {
    let mut event = vec![0, 0, 0, 0x60, kind, 1, 0, 0, 0];
    event.extend(u32::try_from(19 + body.len()).ok()?.to_le_bytes());
    event.extend([0; 6]);
    event.extend(body);
    Some(event)
}

/// The next event, as a server would send it.
fn take(rest: &mut &[u8]) -> Option<Vec<u8>> {
    let [low, high, kind, after @ ..] = *rest else {
        return None;
    };
    let len = usize::from(u16::from_le_bytes([*low, *high]));
    match *kind {
        kind @ (PLAIN_TRANSACTION | ZSTD_TRANSACTION) => {
            *rest = after;
            transaction(kind == ZSTD_TRANSACTION, len, rest)
        }
        kind => {
            let (body, after) = after.split_at(len.min(after.len()));
            *rest = after;
            match kind {
                245..=248 => packed(kind - 80, body),
                kind => event(kind, body),
            }
        }
    }
}

fn transaction(is_compressed: bool, events: usize, rest: &mut &[u8]) -> Option<Vec<u8>> {
    let mut plain = Vec::new();
    for _ in 0..events {
        let Some(event) = take(rest) else { break };
        plain.extend(event);
    }
    let mut body = Vec::new();
    if is_compressed {
        body.extend([2, 1, 0, 3, 9, 254]);
        body.extend((plain.len() as u64).to_le_bytes());
        plain = zstd::encode_all(&plain[..], 1).ok()?;
    }
    body.extend([1, 9, 254]);
    body.extend((plain.len() as u64).to_le_bytes());
    body.push(0);
    body.extend(plain);
    event(TRANSACTION_PAYLOAD, &body)
}

fn packed(kind: u8, body: &[u8]) -> Option<Vec<u8>> {
    let (len, body) = body.split_first()?;
    let (head, plain) = body.split_at(usize::from(*len).min(body.len()));
    let mut event_body = head.to_vec();
    event_body.push(0x84);
    event_body.extend(u32::try_from(plain.len()).ok()?.to_be_bytes());
    let mut zlib = ZlibEncoder::new(event_body, Compression::fast());
    zlib.write_all(plain).ok()?;
    event(kind, &zlib.finish().ok()?)
}

fuzz_target!(|data: &[u8]| {
    let Some((mode, mut rest)) = data.split_first() else {
        return;
    };
    let reached = match mode % 2 {
        0 => Reached::Mysql(GtidSet::default()),
        _ => Reached::Mariadb(DomainGtids::default()),
    };
    let place = BinlogPlace {
        file: "binlog.000001".into(),
        position: 4,
    };
    let mut decoder = BinlogDecoder::new(reached, place);
    let mut builder = BlockBuilder::new();
    let mut version = 0;
    let mut held = Vec::new();
    while let Some(event) = take(&mut rest) {
        let Ok(mut events) = decoder.open(&event) else {
            return;
        };
        loop {
            let decoded = match decoder.next(&mut events, &mut builder) {
                Ok(None) => break,
                Ok(Some(decoded)) => decoded,
                Err(_) => return,
            };
            match decoded {
                Decoded::Table(map) => {
                    version += 1;
                    decoder.watch(&map, &["a".into()]);
                    decoder.set_shape(shape(map, version));
                }
                Decoded::Lacking(_) => {
                    let _ = decoder.complete(None, &mut builder);
                }
                Decoded::Held => {
                    let (event, has_checksum) = events.last();
                    held.push((event.to_vec(), has_checksum));
                }
                Decoded::CommittedHeld | Decoded::XaCommit(_) => {
                    decoder.open_statement(&mut builder);
                    for (event, has_checksum) in held.drain(..) {
                        match decoder.replay(&event, has_checksum, &mut builder) {
                            Ok(Decoded::Table(map)) => {
                                version += 1;
                                decoder.set_shape(shape(map, version));
                            }
                            Ok(Decoded::Lacking(_)) => {
                                let _ = decoder.complete(None, &mut builder);
                            }
                            Ok(_) => {}
                            Err(_) => return,
                        }
                    }
                    decoder.end_statement(&mut builder);
                }
                Decoded::XaRollback(_) => {
                    decoder.end_statement(&mut builder);
                }
                Decoded::Unseen(_) if !builder.in_transaction() => {
                    decoder.end_statement(&mut builder);
                }
                Decoded::Statement(statement) => {
                    let effects = ddl::effects(&statement.database, &statement.text);
                    let has_rows = builder.in_transaction();
                    if !has_rows && !effects.is_empty() {
                        decoder.open_statement(&mut builder);
                    }
                    if !has_rows {
                        decoder.end_statement(&mut builder);
                    }
                }
                _ => {}
            }
        }
        // What was built can be read.
        if !builder.in_transaction() {
            builder.cut_and_read();
        }
    }
});
