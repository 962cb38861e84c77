//! Any bytes as a sequence of events: the decoder may refuse them, and must neither panic nor take memory out of
//! proportion to them.
//!
//! The first byte chooses whose binlog it is; then each event is its length, two bytes, its type, and its body. The rest of
//! its header is made here, so that it is looked into.
#![no_main]

use std::sync::Arc;

use downriver_decode::mysql::ddl;
use downriver_decode::mysql::decoder::{BinlogDecoder, Decoded, Reached};
use downriver_decode::mysql::shape::{Shape, describe};
use downriver_decode::mysql::table_map::TableMap;
use downriver_event::{
    BinlogPlace, BlockBuilder, Column, Cover, DomainGtids, GtidSet, ReplicaIdentity, TableId,
    TableSchema,
};
use libfuzzer_sys::fuzz_target;

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
    Some(Shape::new(Arc::new(schema), plans))
}

fn event(kind: u8, body: &[u8]) -> Option<Vec<u8>> {
    let mut event = vec![0, 0, 0, 0x60, kind, 1, 0, 0, 0];
    event.extend(u32::try_from(19 + body.len()).ok()?.to_le_bytes());
    event.extend([0; 6]);
    event.extend(body);
    Some(event)
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
    while let [low, high, kind, after @ ..] = rest {
        let len = usize::from(u16::from_le_bytes([*low, *high])).min(after.len());
        let (body, after) = after.split_at(len);
        rest = after;
        let Some(event) = event(*kind, body) else {
            return;
        };
        match decoder.decode(&event, &mut builder) {
            Ok(Decoded::Table(map)) => {
                version += 1;
                decoder.set_shape(shape(map, version));
            }
            Ok(Decoded::Statement(statement)) => {
                let effects = ddl::effects(&statement.database, &statement.text);
                if !decoder.in_transaction() && !effects.is_empty() {
                    decoder.open_statement(&mut builder);
                }
                if !builder.in_transaction() {
                    decoder.end_statement(&mut builder);
                }
            }
            Ok(_) => {}
            Err(_) => return,
        }
        // What was built can be read.
        if !builder.in_transaction() {
            builder.cut_and_read();
        }
    }
});
