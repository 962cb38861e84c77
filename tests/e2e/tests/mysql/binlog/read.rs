//! The tables that a server's newest binlog leaves behind.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use downriver_decode::mysql::decoder::{BinlogDecoder, Decoded, Reached};
use downriver_decode::mysql::shape::{Described, Shape, describe};
use downriver_decode::mysql::table_map::TableMap;
use downriver_event::block::{Block, BlockBuilder};
use downriver_event::{
    BinlogPlace, Column, Cover, DomainGtids, GtidSet, LogicalType, Offset, ReplicaIdentity,
    SourcePosition, TableId, TableSchema, pb, view,
};
use downriver_testkit::mysql::Mysql;
use mysql_async::prelude::Queryable as _;

use super::seeds;

/// By name, rows by their first column, as text.
pub(crate) type Tables = HashMap<String, BTreeMap<String, Vec<Option<String>>>>;

const MAGIC: &[u8] = b"\xfebin";

/// What the file holds, and where it ends, as the decoder counted it.
pub(crate) async fn tables(server: &Mysql) -> Result<(Tables, SourcePosition)> {
    let reached = match server.product().is_mariadb() {
        true => Reached::Mariadb(DomainGtids::default()),
        false => Reached::Mysql(GtidSet::default()),
    };
    let place = BinlogPlace {
        file: "binlog.000001".into(),
        position: u64::try_from(MAGIC.len())?,
    };
    let mut reading = Reading::behind(server, reached, place).await?;
    let file = server.newest_binlog()?;
    let mut rest = file.strip_prefix(MAGIC).context("no binlog")?;
    while let Some(len) = rest.get(9..13) {
        let len = u32::from_le_bytes(len.try_into()?) as usize;
        let (event, after) = rest.split_at_checked(len).context("a whole event")?;
        rest = after;
        reading.event(event)?;
    }
    ensure!(rest.is_empty());
    seeds::write(server, &file)?;
    reading.finish()
}

/// Events one after the other, whether a file has them or a stream brings them.
pub(crate) struct Reading {
    decoder: BinlogDecoder,
    builder: BlockBuilder,
    charsets: HashMap<u64, String>,
    natives: Natives,
    schemas: HashMap<(u32, u32), TableSchema>,
    ids: HashMap<String, u32>,
}

impl Reading {
    pub(crate) async fn behind(
        server: &Mysql,
        reached: Reached,
        place: BinlogPlace,
    ) -> Result<Self> {
        Ok(Self {
            decoder: BinlogDecoder::new(reached, place),
            builder: BlockBuilder::new(),
            charsets: charsets(server).await?,
            natives: Natives::of(server).await?,
            schemas: HashMap::new(),
            ids: HashMap::new(),
        })
    }

    pub(crate) fn event(&mut self, event: &[u8]) -> Result<()> {
        let mut events = self.decoder.open(event)?;
        while let Some(decoded) = self.decoder.next(&mut events, &mut self.builder)? {
            match decoded {
                Decoded::Table(map) => {
                    let shape = self.shape(&map)?;
                    self.decoder.set_shape(Some(shape));
                }
                Decoded::Statement(_) if !self.builder.in_transaction() => {
                    self.decoder.end_statement(&mut self.builder);
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn shape(&mut self, map: &TableMap) -> Result<Shape> {
        let next = u32::try_from(self.ids.len())? + 1;
        let id = *self.ids.entry(map.table.clone()).or_insert(next);
        let version = u32::try_from(self.schemas.len())? + 1;
        let charsets = &self.charsets;
        let described = describe(map, |collation| charsets.get(&collation).cloned())?;
        let described = self.natives.close(&map.table, described);
        let columns = (1..).zip(&described).map(|(id, column)| Column {
            id,
            name: column.name.clone(),
            ty: column.ty.clone(),
            nullable: column.nullable,
            source_type: String::new(),
            cover: Cover::None,
            default: None,
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
        self.schemas.insert((id, version), schema.clone());
        let plans = described.into_iter().map(|column| column.plan).collect();
        Ok(Shape::new(Arc::new(schema), plans, Vec::new()))
    }

    /// Everything up to here was read.
    pub(crate) fn position(&self) -> SourcePosition {
        self.decoder.position()
    }

    pub(crate) fn finish(mut self) -> Result<(Tables, SourcePosition)> {
        ensure!(!self.decoder.in_transaction());
        let block = self.builder.cut().context("nothing was decoded")?;
        let block = Block::decode(&block.frame)?;
        let position = self.position();
        let events = view::events(&block, Offset(0), &position, |table, version| {
            self.schemas.get(&(table, version))
        })?;
        let mut tables = Tables::new();
        for event in events {
            let schema = (self.schemas)
                .get(&(event.table_id, event.schema_version))
                .context("a schema")?;
            let rows = tables.entry(schema.name.clone()).or_default();
            if let Some(before) = &event.before {
                let told = texts(schema, before);
                let left = rows.remove(&told[0].clone().unwrap_or_default());
                ensure!(
                    left.as_ref()
                        .is_none_or(|left| is_told(left, &told, before)),
                    "{}: {left:?}, not {told:?}",
                    schema.name
                );
            }
            if let Some(after) = &event.after {
                let cells = texts(schema, after);
                rows.insert(cells[0].clone().unwrap_or_default(), cells);
            }
        }
        Ok((tables, position))
    }
}

/// Types that a binlog does not name, by table and column.
pub(crate) struct Natives(HashMap<(String, String), String>);

impl Natives {
    pub(crate) async fn of(server: &Mysql) -> Result<Self> {
        let query = "select table_name, column_name, data_type from information_schema.columns
                      where table_schema = 'shop' and data_type in ('uuid', 'inet4', 'inet6')";
        let rows: Vec<(String, String, String)> = server.client().await?.query(query).await?;
        let named = rows.into_iter();
        let named = named.map(|(table, column, ty)| ((table, column), ty));
        Ok(Self(named.collect()))
    }

    pub(crate) fn close(&self, table: &str, described: Vec<Described>) -> Vec<Described> {
        let close = |column: Described| {
            let ty = self.0.get(&(table.to_owned(), column.name.clone()));
            match ty {
                Some(ty) => column.known_as(ty).expect("it has the type's form"),
                None => column,
            }
        };
        described.into_iter().map(close).collect()
    }
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

/// Whether a change left a row as the server tells of it with the next: what a row was it tells whole.
fn is_told(left: &[Option<String>], told: &[Option<String>], before: &pb::Row) -> bool {
    let is_absent = |cell: &pb::Cell| {
        let absent = pb::Presence::Absent as i32;
        matches!(&cell.kind, Some(pb::cell::Kind::Presence(presence)) if *presence == absent)
    };
    let mut cells = left.iter().zip(told).zip(&before.cells);
    let is_reshaped = left.len() != told.len();
    is_reshaped || cells.all(|((left, told), cell)| is_absent(cell) || left == told)
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
