//! What a server's newest binlog says: of its tables, their rows, and each change with where it ends.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use downriver_decode::mysql::decoder::{BinlogDecoder, Decoded, Reached};
use downriver_decode::mysql::shape::{Shape, describe};
use downriver_event::block::{Block, BlockBuilder};
use downriver_event::{
    BinlogPlace, Column, Cover, DomainGtids, GtidSet, Offset, ReplicaIdentity, SourcePosition,
    TableId, TableSchema, pb, view,
};
use downriver_testkit::mysql::Mysql;
use mysql_async::prelude::Queryable as _;

use crate::binlog::read::Natives;

/// A table as its last table map told it.
pub(crate) struct Table {
    pub(crate) columns: Vec<Column>,
    pub(crate) key: Option<Vec<usize>>,
    pub(crate) rows: Vec<pb::Row>,
}

/// A new row of a table.
pub(crate) struct Change {
    pub(crate) transaction: String,
    pub(crate) position: SourcePosition,
    pub(crate) after: Option<pb::Row>,
}

pub(crate) struct Told {
    pub(crate) tables: BTreeMap<String, Table>,
    pub(crate) changes: Vec<Change>,
}

const MAGIC: &[u8] = b"\xfebin";

pub(crate) async fn read(server: &Mysql, file: &str) -> Result<Told> {
    let charsets = charsets(server).await?;
    let natives = Natives::of(server).await?;
    let bytes = server.newest_binlog()?;
    let mut rest = bytes.strip_prefix(MAGIC).context("no binlog")?;
    let reached = match server.product().is_mariadb() {
        true => Reached::Mariadb(DomainGtids::default()),
        false => Reached::Mysql(GtidSet::default()),
    };
    let place = BinlogPlace {
        file: file.into(),
        position: u64::try_from(MAGIC.len())?,
    };
    let mut decoder = BinlogDecoder::new(reached, place);
    let mut builder = BlockBuilder::new();
    let mut schemas: HashMap<(u32, u32), TableSchema> = HashMap::new();
    let mut ids: HashMap<String, u32> = HashMap::new();
    let mut tables = BTreeMap::new();
    while let Some(len) = rest.get(9..13) {
        let len = u32::from_le_bytes(len.try_into()?) as usize;
        let (event, after) = rest.split_at_checked(len).context("a whole event")?;
        rest = after;
        let mut events = decoder.open(event)?;
        while let Some(decoded) = decoder.next(&mut events, &mut builder)? {
            match decoded {
                Decoded::Table(map) => {
                    let next = u32::try_from(ids.len())? + 1;
                    let id = *ids.entry(map.table.clone()).or_insert(next);
                    let version = u32::try_from(schemas.len())? + 1;
                    let described = describe(&map, |collation| charsets.get(&collation).cloned())
                        .with_context(|| map.table.clone())?;
                    let described = natives.close(&map.table, described);
                    let columns = (1..).zip(&described).map(|(id, column)| Column {
                        id,
                        name: column.name.clone(),
                        ty: column.ty.clone(),
                        nullable: column.nullable,
                        source_type: column.source_type.clone(),
                        cover: Cover::None,
                        default: None,
                    });
                    let columns: Vec<Column> = columns.collect();
                    let schema = TableSchema {
                        id: TableId(id),
                        version,
                        namespace: map.database.clone(),
                        name: map.table.clone(),
                        columns: columns.clone(),
                        key: vec![1],
                        identity: ReplicaIdentity::Full,
                        withheld: Vec::new(),
                    };
                    let (key, rows) = (map.key.clone(), Vec::new());
                    tables.insert(map.table.clone(), Table { columns, key, rows });
                    schemas.insert((id, version), schema.clone());
                    let plans = described.into_iter().map(|column| column.plan).collect();
                    decoder.set_shape(Some(Shape::new(Arc::new(schema), plans, Vec::new())));
                }
                Decoded::Statement(_) => {
                    decoder.end_statement(&mut builder);
                }
                _ => {}
            }
        }
    }
    ensure!(rest.is_empty() && !decoder.in_transaction());
    let Some(block) = builder.cut() else {
        let changes = Vec::new();
        return Ok(Told { tables, changes });
    };
    let block = Block::decode(&block.frame)?;
    let events = view::events(&block, Offset(0), &decoder.position(), |table, version| {
        schemas.get(&(table, version))
    })?;
    let mut changes = Vec::new();
    for event in events {
        let schema = schemas
            .get(&(event.table_id, event.schema_version))
            .context("a schema")?;
        let rows = &mut tables.get_mut(&schema.name).context("a table")?.rows;
        if let Some(before) = &event.before {
            let at = rows.iter().position(|row| row == before);
            rows.remove(at.with_context(|| format!("{}: {before:?}", schema.name))?);
        }
        rows.extend(event.after.clone());
        let position = event.position.as_ref().and_then(SourcePosition::from_pb);
        changes.push(Change {
            transaction: event.transaction_id,
            position: position.context("a position")?,
            after: event.after,
        });
    }
    Ok(Told { tables, changes })
}

async fn charsets(server: &Mysql) -> Result<HashMap<u64, String>> {
    let table = match server.product().is_mariadb() {
        true => "collation_character_set_applicability",
        false => "collations",
    };
    let query = format!(
        "select id, character_set_name from information_schema.{table} where id is not null"
    );
    let mut client = server.client().await?;
    let rows = client.query::<(u64, String), _>(query).await;
    let rows = match rows {
        Ok(rows) => rows,
        // Before 10.10.
        Err(_) => {
            let query = "select id, character_set_name from information_schema.collations";
            client.query(query).await?
        }
    };
    Ok(rows.into_iter().collect())
}
