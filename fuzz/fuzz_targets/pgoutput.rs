//! Any bytes as a sequence of messages: the decoder may refuse them, and must neither panic nor take memory out of
//! proportion to them.
//!
//! The first byte chooses the mode; then each message is its length, one byte, and so many bytes.
#![no_main]

use std::collections::HashMap;
use std::sync::Arc;

use downriver_decode::postgres::decoder::{Decoded, PgDecoder, Relation, Streaming};
use downriver_decode::postgres::mask::{HashKey, Mask};
use downriver_decode::postgres::shape::{Shape, Treatment};
use downriver_event::{
    BlockBuilder, Column, Cover, LogicalType, Lsn, ReplicaIdentity, TableId, TableSchema,
};
use libfuzzer_sys::fuzz_target;

/// The mask of a column that is not the key, and whether it is withheld.
fn treatment(type_oid: u32) -> Treatment {
    Treatment::Masked(Arc::new(match (type_oid >> 8) % 6 {
        1 => Mask::Null,
        2 => Mask::Hash(HashKey::new(b"key")),
        3 => Mask::Partial { first: 1, last: 2 },
        4 => Mask::Constant("1".to_owned()),
        5 => return Treatment::Withheld,
        _ => return Treatment::Kept,
    }))
}

fn shape(relation: &Relation) -> Shape {
    let ty = |oid: u32| match oid % 20 {
        0 => LogicalType::Bool,
        1 => LogicalType::Int16,
        2 => LogicalType::Int32,
        3 => LogicalType::Int64,
        4 => LogicalType::Float32,
        5 => LogicalType::Float64,
        6 => LogicalType::Decimal {
            precision: 0,
            scale: 0,
        },
        7 => LogicalType::Bytes,
        8 => LogicalType::Uuid,
        9 => LogicalType::Json,
        10 => LogicalType::Date,
        11 => LogicalType::Time,
        12 => LogicalType::Timestamp,
        13 => LogicalType::TimestampTz,
        14 => LogicalType::Interval,
        15 => LogicalType::Array(Box::new(LogicalType::Decimal {
            precision: 9,
            scale: 2,
        })),
        16 => LogicalType::Array(Box::new(LogicalType::Text)),
        17 => LogicalType::Array(Box::new(LogicalType::TimestampTz)),
        18 => LogicalType::Other,
        _ => LogicalType::Text,
    };
    let (mut columns, mut withheld, mut treatments) = (Vec::new(), Vec::new(), Vec::new());
    for (described, id) in relation.columns.iter().zip(1..) {
        let mut column = Column {
            id,
            name: described.name.clone(),
            ty: ty(described.type_oid),
            nullable: true,
            source_type: String::new(),
            cover: Cover::None,
            default: None,
        };
        let mut treatment = match id {
            1 => Treatment::Kept,
            _ => treatment(described.type_oid),
        };
        if let Treatment::Masked(mask) = &treatment
            && mask.cover(&mut column).is_err()
        {
            treatment = Treatment::Kept;
        }
        match treatment {
            Treatment::Withheld => withheld.push(column),
            _ => columns.push(column),
        }
        treatments.push(treatment);
    }
    let schema = TableSchema {
        id: TableId(relation.id),
        version: 1 + relation.columns.len() as u32,
        namespace: relation.namespace.clone(),
        name: relation.name.clone(),
        columns,
        withheld,
        key: vec![1],
        identity: ReplicaIdentity::Default,
    };
    Shape::new(Arc::new(schema), treatments)
}

/// What the capture does with an answer; the shapes of one relation and number of columns are the same.
fn answer(
    decoder: &mut PgDecoder,
    known: &mut HashMap<(u32, usize), Shape>,
    decoded: Decoded,
) {
    if let Decoded::Relation(relation) = decoded {
        let captured = (relation.id % 5 != 0).then(|| {
            let key = (relation.id, relation.columns.len());
            known.entry(key).or_insert_with(|| shape(&relation)).clone()
        });
        decoder.set_shape(relation.id, captured);
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((mode, mut rest)) = data.split_first() else {
        return;
    };
    let streaming = match mode % 4 {
        0 => Streaming::Off,
        1 => Streaming::Parallel,
        _ => Streaming::On,
    };
    let position = (mode & 0x80 != 0).then_some(Lsn(1 << 20));
    let mut decoder = PgDecoder::new(position, streaming);
    let mut builder = BlockBuilder::new();
    let mut known = HashMap::new();
    let mut spool: HashMap<u32, Vec<(u64, &[u8])>> = HashMap::new();
    while let Some((len, after)) = rest.split_first() {
        let (message, after) = after.split_at(usize::from(*len).min(after.len()));
        rest = after;
        match decoder.decode(message, &mut builder) {
            Ok(Decoded::Piece(piece)) => {
                let pieces = spool.entry(piece.xid).or_default();
                pieces.push((piece.described, message));
            }
            Ok(Decoded::StreamAbort { xid }) => _ = spool.remove(&xid),
            Ok(Decoded::StreamCommit { xid }) => {
                for (described, message) in spool.remove(&xid).unwrap_or_default() {
                    match decoder.replay(message, described, &mut builder) {
                        Ok(decoded) => answer(&mut decoder, &mut known, decoded),
                        Err(_) => return,
                    }
                }
                decoder.commit_streamed(&mut builder);
            }
            Ok(decoded) => answer(&mut decoder, &mut known, decoded),
            Err(_) => return,
        }
        // What was built can be read.
        builder.cut_and_read();
    }
});
