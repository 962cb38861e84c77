//! Any bytes as a sequence of messages: the decoder may refuse them, and must neither panic nor take memory out of
//! proportion to them.
//!
//! The first byte chooses the mode; then each message is its length, one byte, and so many bytes.
#![no_main]

use std::collections::HashMap;
use std::sync::Arc;

use downriver_decode::postgres::decoder::{Decoded, PgDecoder, Relation, Streaming};
use downriver_event::{
    BlockBuilder, Column, LogicalType, Lsn, ReplicaIdentity, TableId, TableSchema,
};
use libfuzzer_sys::fuzz_target;

fn schema(relation: &Relation) -> TableSchema {
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
    let columns = relation.columns.iter().zip(1..);
    TableSchema {
        id: TableId(relation.id),
        version: 1 + relation.columns.len() as u32,
        namespace: relation.namespace.clone(),
        name: relation.name.clone(),
        columns: columns
            .map(|(column, id)| Column {
                id,
                name: column.name.clone(),
                ty: ty(column.type_oid),
                nullable: true,
                source_type: String::new(),
            })
            .collect(),
        key: vec![1],
        identity: ReplicaIdentity::Default,
    }
}

/// What the capture does with an answer; the schemas of one relation and version are the same.
fn answer(
    decoder: &mut PgDecoder,
    known: &mut HashMap<(u32, u32), Arc<TableSchema>>,
    decoded: Decoded,
) {
    if let Decoded::Relation(relation) = decoded {
        let captured = (relation.id % 5 != 0).then(|| {
            let schema = schema(&relation);
            let key = (relation.id, schema.version);
            Arc::clone(known.entry(key).or_insert_with(|| Arc::new(schema)))
        });
        decoder.set_schema(relation.id, captured);
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
