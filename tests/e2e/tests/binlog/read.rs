//! The tables that a server's newest binlog leaves behind.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use downriver_decode::mysql::decoder::{BinlogDecoder, Decoded, Reached};
use downriver_decode::mysql::shape::{Shape, describe};
use downriver_event::block::{Block, BlockBuilder};
use downriver_event::{
    BinlogPlace, Column, Cover, DomainGtids, GtidSet, LogicalType, Offset, ReplicaIdentity,
    SourcePosition, TableId, TableSchema, pb, view,
};
use downriver_testkit::mysql::Mysql;
use mysql_async::prelude::Queryable as _;

/// By name, rows by their first column, as text.
pub(crate) type Tables = HashMap<String, BTreeMap<String, Vec<Option<String>>>>;

const MAGIC: &[u8] = b"\xfebin";

/// Also where the binlog ends, as the decoder counted it.
pub(crate) async fn tables(server: &Mysql) -> Result<(Tables, SourcePosition)> {
    let charsets = charsets(server).await?;
    let file = server.newest_binlog()?;
    let mut rest = file.strip_prefix(MAGIC).context("no binlog")?;
    let reached = match server.product().is_mariadb() {
        true => Reached::Mariadb(DomainGtids::default()),
        false => Reached::Mysql(GtidSet::default()),
    };
    let place = BinlogPlace {
        file: "binlog.000001".into(),
        position: u64::try_from(MAGIC.len())?,
    };
    let mut decoder = BinlogDecoder::new(reached, place);
    let mut builder = BlockBuilder::new();
    let mut schemas: HashMap<(u32, u32), TableSchema> = HashMap::new();
    let mut ids: HashMap<String, u32> = HashMap::new();
    while let Some(len) = rest.get(9..13) {
        let len = u32::from_le_bytes(len.try_into()?) as usize;
        let (event, after) = rest.split_at_checked(len).context("a whole event")?;
        rest = after;
        match decoder.decode(event, &mut builder)? {
            Decoded::Table(map) => {
                let next = u32::try_from(ids.len())? + 1;
                let id = *ids.entry(map.table.clone()).or_insert(next);
                let version = u32::try_from(schemas.len())? + 1;
                let described = describe(&map, |collation| charsets.get(&collation).cloned())?;
                let columns = (1..).zip(&described).map(|(id, column)| Column {
                    id,
                    name: column.name.clone(),
                    ty: column.ty.clone(),
                    nullable: column.nullable,
                    source_type: String::new(),
                    cover: Cover::None,
                });
                let schema = TableSchema {
                    id: TableId(id),
                    version,
                    namespace: map.database.clone(),
                    name: map.table.clone(),
                    columns: columns.collect(),
                    key: vec![1],
                    identity: ReplicaIdentity::Full,
                    withheld: Vec::new(),
                };
                ensure!(map.key.as_deref() == Some(&[0]), "the key is told: {map:?}");
                schemas.insert((id, version), schema.clone());
                let plans = described.into_iter().map(|column| column.plan).collect();
                decoder.set_shape(Some(Shape::new(Arc::new(schema), plans)));
            }
            Decoded::Statement(_) => {
                decoder.end_statement(&mut builder);
            }
            _ => {}
        }
    }
    ensure!(rest.is_empty() && !decoder.in_transaction());
    let block = builder.cut().context("nothing was decoded")?;
    let block = Block::decode(&block.frame)?;
    let position = decoder.position();
    let events = view::events(&block, Offset(0), &position, |table, version| {
        schemas.get(&(table, version))
    })?;
    let mut tables = Tables::new();
    for event in events {
        let schema = schemas
            .get(&(event.table_id, event.schema_version))
            .context("a schema")?;
        let rows = tables.entry(schema.name.clone()).or_default();
        if let Some(before) = &event.before {
            rows.remove(&texts(schema, before)[0].clone().unwrap_or_default());
        }
        if let Some(after) = &event.after {
            let cells = texts(schema, after);
            rows.insert(cells[0].clone().unwrap_or_default(), cells);
        }
    }
    Ok((tables, position))
}

async fn charsets(server: &Mysql) -> Result<HashMap<u64, String>> {
    let query = "select id, character_set_name from information_schema.collations where id is not null and character_set_name is not null";
    let mut client = server.client().await?;
    let mut rows: HashMap<u64, String> = client
        .query::<(u64, String), _>(query)
        .await?
        .into_iter()
        .collect();
    if server.product().is_mariadb() {
        let query = "select id, character_set_name from information_schema.collation_character_set_applicability";
        rows.extend(
            client
                .query::<(u64, String), _>(query)
                .await
                .unwrap_or_default(),
        );
    }
    Ok(rows)
}

fn texts(schema: &TableSchema, row: &pb::Row) -> Vec<Option<String>> {
    let cells = row.cells.iter().zip(&schema.columns);
    cells.map(|(cell, column)| text(cell, &column.ty)).collect()
}

fn text(cell: &pb::Cell, ty: &LogicalType) -> Option<String> {
    use pb::value::Kind;
    let value = match cell.kind.as_ref()? {
        pb::cell::Kind::Presence(presence) if *presence == pb::Presence::ZeroDate as i32 => {
            return Some("zero".into());
        }
        pb::cell::Kind::Presence(_) => return None,
        pb::cell::Kind::Value(value) => value.kind.as_ref()?,
    };
    Some(match value {
        Kind::Bool(value) => u8::from(*value).to_string(),
        Kind::Int(value) => value.to_string(),
        Kind::Float(value) => f64::from(*value).to_string(),
        Kind::Double(value) => value.to_string(),
        Kind::Text(value) => value.clone(),
        Kind::Bytes(value) => value.iter().map(|byte| format!("{byte:02x}")).collect(),
        Kind::List(list) => {
            let floats = list
                .elements
                .iter()
                .filter_map(|cell| match cell.kind.as_ref()? {
                    pb::cell::Kind::Value(pb::Value {
                        kind: Some(Kind::Float(float)),
                    }) => Some(as_shown(*float)),
                    _ => None,
                });
            let floats: Vec<_> = floats.collect();
            format!("[{}]", floats.join(","))
        }
        Kind::Interval(_) => format!("{ty:?}"),
    })
}

/// As `vector_to_string` shows a number: `2.50000e+00`.
fn as_shown(float: f32) -> String {
    let text = format!("{float:.5e}");
    let (digits, exponent) = text.split_once('e').expect("so it is written");
    format!(
        "{digits}e{:+03}",
        exponent.parse::<i32>().expect("a number")
    )
}
