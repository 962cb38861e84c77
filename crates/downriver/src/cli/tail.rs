//! tail: a source's log as lines.

use std::collections::HashMap;
use std::io::Write as _;

use clap::ValueEnum;
use downriver_api::log::v1::subscribe_response::Item;
use downriver_api::log::v1::{self as pb};
use downriver_event::block::Interval;
use downriver_event::{BinlogPlace, GtidSet, LogicalType, Lsn, SourcePosition, TableSchema};
use downriver_source::mysql::begin::Begin;
use serde_json::{Map, Value, json};

use super::client::{Client, Failure};
use super::render;

#[derive(clap::Args, Debug)]
pub(super) struct Tail {
    source: String,
    /// Patterns over "schema.table", `*` for any characters, `!` to exclude.
    #[arg(long, value_delimiter = ',')]
    tables: Vec<String>,
    /// earliest, latest, an offset, a time such as 2026-01-31T12:00:00Z, or what is to be left out: up to an LSN such as
    /// 0/16B3748, a set of GTIDs (UUID:1-77, of MariaDB 0-1-100,1-1-5), up to a place such as binlog.000042:4711.
    #[arg(long, default_value = "latest")]
    from: String,
    /// Stop at this offset (exclusive), or at what is the latest now.
    #[arg(long)]
    until: Option<String>,
    #[arg(short, long, default_value = "text")]
    output: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Json,
    Debezium,
    Text,
}

pub(super) async fn run(mut client: Client, tail: Tail) -> Result<(), Failure> {
    let start = start(&tail.from)?;
    let until_offset = match tail.until.as_deref() {
        None => 0,
        Some("latest") => {
            let request = pb::ResolveOffsetRequest {
                source: tail.source.clone(),
                start: Some(start.clone()),
            };
            let resolved = client.log.resolve_offset(request).await?.into_inner();
            if resolved.tail_offset <= resolved.offset {
                return Ok(());
            }
            resolved.tail_offset
        }
        Some(offset) => match offset.parse() {
            Ok(0) => return Ok(()),
            Ok(offset) => offset,
            Err(_) => {
                return Err(Failure::Usage(format!(
                    "--until {offset:?} is neither latest nor an offset"
                )));
            }
        },
    };
    let request = pb::SubscribeRequest {
        source: tail.source.clone(),
        start: Some(start),
        tables: tail.tables,
        format: pb::Format::Events as i32,
        until_offset,
        incarnation: 0,
    };
    let mut responses = client.log.subscribe(request).await?.into_inner();
    let mut schemas: HashMap<(u32, u32), TableSchema> = HashMap::new();
    // For events without a row: the last that was met, or the table's newest.
    let mut last_of: HashMap<u32, TableSchema> = HashMap::new();
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    while let Some(response) = responses.message().await? {
        match response.item {
            Some(Item::Schema(schema)) => {
                let schema =
                    TableSchema::from_pb(&schema).map_err(|e| Failure::Other(e.to_string()))?;
                last_of.insert(schema.id.0, schema.clone());
                schemas.insert((schema.id.0, schema.version), schema);
            }
            Some(Item::Events(events)) => {
                for event in &events.events {
                    if let Some(schema) = announced(event) {
                        last_of.insert(event.table_id, schema);
                    } else if event.marker.is_some()
                        && event.table_id != 0
                        && !last_of.contains_key(&event.table_id)
                        && let Some(newest) = newest(&mut client, &tail.source, event).await?
                    {
                        last_of.insert(event.table_id, newest);
                    }
                    let line = Line {
                        source: &tail.source,
                        incarnation: response.incarnation,
                        schema: match event.marker {
                            None => schemas.get(&(event.table_id, event.schema_version)),
                            Some(_) => last_of.get(&event.table_id),
                        },
                        event,
                    };
                    match tail.output {
                        Format::Json => writeln!(out, "{}", line.json())?,
                        Format::Debezium => {
                            if let Some(envelope) = line.debezium() {
                                writeln!(out, "{envelope}")?;
                            }
                        }
                        Format::Text => writeln!(out, "{}", line.text())?,
                    }
                }
                out.flush()?;
            }
            Some(Item::Block(_) | Item::Progress(_)) | None => {}
        }
    }
    Ok(())
}

/// The schema that a change of it announces.
fn announced(event: &pb::ChangeEvent) -> Option<TableSchema> {
    match event.marker.as_ref()?.kind.as_ref()? {
        pb::marker::Kind::SchemaChange(change) => {
            TableSchema::from_pb(change.schema.as_ref()?).ok()
        }
        _ => None,
    }
}

async fn newest(
    client: &mut Client,
    source: &str,
    event: &pb::ChangeEvent,
) -> Result<Option<TableSchema>, Failure> {
    let request = pb::GetSchemaRequest {
        source: source.to_owned(),
        table_id: event.table_id,
        version: 0,
    };
    match client.log.get_schema(request).await {
        Ok(answer) => {
            let schema = answer.into_inner().schema;
            Ok(schema.and_then(|schema| TableSchema::from_pb(&schema).ok()))
        }
        Err(status) if status.code() == tonic::Code::NotFound => Ok(None),
        Err(status) => Err(status.into()),
    }
}

fn start(from: &str) -> Result<pb::Start, Failure> {
    use pb::start::{At, Special};
    let at = if from == "earliest" {
        At::Special(Special::Earliest as i32)
    } else if from == "latest" {
        At::Special(Special::Latest as i32)
    } else if let Ok(offset) = from.parse() {
        At::Offset(offset)
    } else if let Ok(lsn) = from.parse::<Lsn>() {
        At::Position(SourcePosition::Postgres(lsn).to_pb())
    } else if let Ok(time) = from.parse::<prost_types::Timestamp>() {
        At::Time(time)
    } else if let Some(position) = of_binlog(from) {
        At::Position(position.to_pb())
    } else {
        return Err(Failure::Usage(format!(
            "--from {from:?} is none of earliest, latest, an offset, a time such as 2026-01-31T12:00:00Z, an LSN such as 0/16B3748, a set of GTIDs such as UUID:1-77 or 0-1-100,1-1-5, a place such as binlog.000042:4711"
        )));
    };
    Ok(pb::Start { at: Some(at) })
}

/// A position of MySQL or MariaDB. Of which of them a place is only the log knows.
fn of_binlog(text: &str) -> Option<SourcePosition> {
    let nowhere = BinlogPlace {
        file: String::new(),
        position: 0,
    };
    match Begin::gtid(text) {
        Ok(Begin::Gtids(gtids)) => {
            let place = nowhere;
            return Some(SourcePosition::Mysql { gtids, place });
        }
        Ok(Begin::Domains(gtids)) => {
            let place = nowhere;
            return Some(SourcePosition::Mariadb { gtids, place });
        }
        Ok(Begin::Place(_)) | Err(_) => {}
    }
    let place = text.parse().ok()?;
    let gtids = GtidSet::default();
    Some(SourcePosition::Mysql { gtids, place })
}

/// One event with what is needed to print it.
struct Line<'a> {
    source: &'a str,
    incarnation: u32,
    schema: Option<&'a TableSchema>,
    event: &'a pb::ChangeEvent,
}

impl Line<'_> {
    fn op(&self) -> &'static str {
        match self.event.op() {
            pb::Op::Insert => "insert",
            pb::Op::Update => "update",
            pb::Op::Delete => "delete",
            pb::Op::Snapshot => "snapshot",
            pb::Op::Truncate => "truncate",
            pb::Op::SchemaChange => "schema_change",
            pb::Op::SnapshotStart => "snapshot_start",
            pb::Op::SnapshotEnd => "snapshot_end",
            pb::Op::Message => "message",
            pb::Op::Hole => "hole",
            pb::Op::PartialSnapshotStart => "partial_snapshot_start",
            pb::Op::PartialSnapshotEnd => "partial_snapshot_end",
            pb::Op::Unspecified => "unknown",
        }
    }

    fn position(&self) -> String {
        let position = self
            .event
            .position
            .as_ref()
            .and_then(SourcePosition::from_pb);
        position.map_or_else(String::new, |position| position.to_string())
    }

    /// The row's cells that are known, by column name.
    fn row(&self, row: Option<&pb::Row>) -> Value {
        let (Some(row), Some(schema)) = (row, self.schema) else {
            return Value::Null;
        };
        let mut values = Map::new();
        for (column, cell) in schema.columns.iter().zip(&row.cells) {
            if let Some(value) = cell_json(cell, &column.ty) {
                values.insert(column.name.clone(), value);
            }
        }
        Value::Object(values)
    }

    fn unchanged(&self) -> Vec<&str> {
        let (Some(row), Some(schema)) = (self.event.after.as_ref(), self.schema) else {
            return Vec::new();
        };
        let is_unchanged = |cell: &pb::Cell| {
            cell.kind == Some(pb::cell::Kind::Presence(pb::Presence::Unchanged as i32))
        };
        let columns = schema
            .columns
            .iter()
            .zip(&row.cells)
            .filter(|(_, cell)| is_unchanged(cell));
        columns.map(|(column, _)| column.name.as_str()).collect()
    }

    fn key(&self) -> Value {
        let Some(schema) = self.schema.filter(|schema| !schema.key.is_empty()) else {
            return Value::Null;
        };
        let row = self.event.after.as_ref().or(self.event.before.as_ref());
        let Value::Object(row) = self.row(row) else {
            return Value::Null;
        };
        let names = schema
            .key_indexes()
            .into_iter()
            .map(|index| schema.columns[index].name.clone());
        names
            .filter_map(|name| row.get(&name).cloned().map(|value| (name, value)))
            .collect::<Map<_, _>>()
            .into()
    }

    /// A logical message's; bytes that are no text are in hexadecimal.
    fn message(&self) -> Option<Value> {
        let Some(pb::marker::Kind::Message(message)) = &self.event.marker.as_ref()?.kind else {
            return None;
        };
        let content = match std::str::from_utf8(&message.content) {
            Ok(text) => json!({ "text": text }),
            Err(_) => {
                let hex = message.content.iter().map(|byte| format!("{byte:02x}"));
                json!({ "hex": hex.collect::<String>() })
            }
        };
        Some(json!({
            "prefix": message.prefix,
            "content": content,
            "transactional": message.transactional,
        }))
    }

    /// Which part of the table a snapshot is of; `None`: of all of it, or this is no start or end of one.
    fn part(&self) -> Option<&str> {
        use pb::marker::Kind;
        let part = match &self.event.marker.as_ref()?.kind {
            Some(Kind::PartialSnapshotStart(start)) => start.filter.as_ref(),
            Some(Kind::PartialSnapshotEnd(end)) => end.filter.as_ref(),
            _ => None,
        };
        part.map(|part| part.text.as_str())
    }

    /// The range of the source that the log has not.
    fn hole(&self) -> Option<Value> {
        let Some(pb::marker::Kind::Hole(hole)) = &self.event.marker.as_ref()?.kind else {
            return None;
        };
        let text = |position: &Option<pb::SourcePosition>| {
            let position = position.as_ref().and_then(SourcePosition::from_pb);
            position.map(|position| position.to_string())
        };
        Some(json!({ "from": text(&hole.from), "to": text(&hole.to), "code": hole.code }))
    }

    fn json(&self) -> Value {
        let mut line = json!({
            "offset": self.event.offset,
            "incarnation": self.incarnation,
            "op": self.op(),
            "table": self.schema.map(TableSchema::qualified_name),
            "key": self.key(),
            "before": self.row(self.event.before.as_ref()),
            "after": self.row(self.event.after.as_ref()),
            "unchanged": self.unchanged(),
            "txn": self.event.transaction_id,
            "position": self.position(),
            "commit_ts": render::timestamp(self.event.commit_time_us),
        });
        if !self.event.origin.is_empty() {
            line["origin"] = json!(self.event.origin);
        }
        if let Some(message) = self.message() {
            line["message"] = message;
        }
        if let Some(hole) = self.hole() {
            line["hole"] = hole;
        }
        if let Some(part) = self.part() {
            line["where"] = json!(part);
        }
        line
    }

    /// The envelope that Debezium's users know; `None` for events that it does not have.
    fn debezium(&self) -> Option<Value> {
        let op = match self.event.op() {
            pb::Op::Insert => "c",
            pb::Op::Update => "u",
            pb::Op::Delete => "d",
            pb::Op::Snapshot => "r",
            _ => return None,
        };
        let schema = self.schema?;
        Some(json!({
            "before": self.row(self.event.before.as_ref()),
            "after": self.row(self.event.after.as_ref()),
            "source": {
                "connector": "downriver",
                "name": self.source,
                "schema": schema.namespace,
                "table": schema.name,
                "txId": self.event.transaction_id,
                "lsn": self.event.position.as_ref().and_then(SourcePosition::from_pb).and_then(|p| p.lsn()).map(|lsn| lsn.0),
                "ts_ms": self.event.commit_time_us.div_euclid(1_000),
                "snapshot": op == "r",
            },
            "op": op,
            "ts_ms": self.event.commit_time_us.div_euclid(1_000),
        }))
    }

    fn text(&self) -> String {
        let table = self
            .schema
            .map(TableSchema::qualified_name)
            .unwrap_or_default();
        let row = match self.event.op() {
            pb::Op::Delete if self.key().is_null() => self.row(self.event.before.as_ref()),
            pb::Op::Delete => self.key(),
            _ => self.row(self.event.after.as_ref()),
        };
        let row = if let Some(hole) = self.hole() {
            hole.to_string()
        } else if let Some(part) = self.part() {
            format!("where {part}")
        } else if row.is_null() {
            String::new()
        } else {
            row.to_string()
        };
        let time = render::timestamp(self.event.commit_time_us);
        format!(
            "{} {time} {} {} {table} {row}",
            self.event.offset,
            self.position(),
            self.op()
        )
        .trim_end()
        .to_owned()
    }
}

/// `None` for a cell whose value is not known here (unchanged, absent).
fn cell_json(cell: &pb::Cell, ty: &LogicalType) -> Option<Value> {
    match cell.kind.as_ref()? {
        pb::cell::Kind::Value(value) => Some(value_json(value, ty)),
        pb::cell::Kind::Presence(presence) => {
            Some(match pb::Presence::try_from(*presence).ok()? {
                pb::Presence::Null => Value::Null,
                pb::Presence::PositiveInfinity => json!("infinity"),
                pb::Presence::NegativeInfinity => json!("-infinity"),
                pb::Presence::Nan => json!("NaN"),
                pb::Presence::ZeroDate => json!("0000-00-00"),
                pb::Presence::Masked => json!("(masked)"),
                pb::Presence::Unspecified
                | pb::Presence::Value
                | pb::Presence::Unchanged
                | pb::Presence::Absent => return None,
            })
        }
    }
}

fn value_json(value: &pb::Value, ty: &LogicalType) -> Value {
    use pb::value::Kind;
    let hex = |bytes: &[u8]| {
        bytes
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>()
    };
    // JSON has no NaN or infinity.
    let float = |value: f64| {
        if value.is_finite() {
            json!(value)
        } else {
            json!(value.to_string().to_lowercase())
        }
    };
    match (value.kind.as_ref(), ty) {
        (None, _) => Value::Null,
        (Some(Kind::Bool(value)), _) => json!(value),
        (Some(Kind::Int(value)), LogicalType::Date) => json!(render::date(*value)),
        (Some(Kind::Int(value)), LogicalType::Time) => json!(render::time(*value)),
        (Some(Kind::Int(value)), LogicalType::Timestamp) => {
            json!(render::timestamp(*value).trim_end_matches('Z'))
        }
        (Some(Kind::Int(value)), LogicalType::TimestampTz) => json!(render::timestamp(*value)),
        (Some(Kind::Int(value)), _) => json!(value),
        // The shortest digits that read back as the same 32-bit float.
        (Some(Kind::Float(value)), _) if value.is_finite() => value
            .to_string()
            .parse()
            .map_or(Value::Null, |v: f64| json!(v)),
        (Some(Kind::Float(value)), _) => float(f64::from(*value)),
        (Some(Kind::Double(value)), _) => float(*value),
        (Some(Kind::Text(value)), _) => json!(value),
        (Some(Kind::Bytes(value)), LogicalType::Uuid) => {
            let hex = hex(value);
            json!(format!(
                "{}-{}-{}-{}-{}",
                &hex[..8],
                &hex[8..12],
                &hex[12..16],
                &hex[16..20],
                &hex[20..]
            ))
        }
        (Some(Kind::Bytes(value)), _) => json!(format!("\\x{}", hex(value))),
        (Some(Kind::Interval(value)), _) => json!(
            Interval {
                months: value.months,
                days: value.days,
                micros: value.micros,
            }
            .to_string()
        ),
        (Some(Kind::List(list)), LogicalType::Array(element)) => {
            let mut cells = list
                .elements
                .iter()
                .map(|cell| cell_json(cell, element).unwrap_or(Value::Null));
            let lengths: Vec<u32> = list
                .dimensions
                .iter()
                .map(|dimension| dimension.length)
                .collect();
            nested(&lengths, &mut cells)
        }
        (Some(Kind::List(_)), _) => Value::Null,
    }
}

/// A flat list of elements as arrays of arrays.
fn nested(lengths: &[u32], cells: &mut dyn Iterator<Item = Value>) -> Value {
    match lengths {
        [] => json!([]),
        [length] => cells.take(*length as usize).collect(),
        [length, inner @ ..] => (0..*length).map(|_| nested(inner, cells)).collect(),
    }
}
