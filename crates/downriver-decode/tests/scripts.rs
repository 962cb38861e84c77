//! Scripts: messages as a server sends them in, transactions as the log gets them out.
//!
//! A script is paragraphs of `tests/scripts/*.txt`: a line a message, then `----`, then what the decoder makes of it.
//! `DOWNRIVER_WRITE_SCRIPTS=1` writes the second half anew, to be reviewed like prose, and what the fuzzer begins with
//! (`fuzz/corpus`).
//!
//! ```text
//! position LSN | streaming off|on|parallel            first, if at all
//! begin XID LSN | commit LSN END | origin NAME
//! relation ID NAME IDENTITY COLUMN:TYPE[*]…           * is of the key; types: int, text
//! insert ID CELL… | delete ID key|full CELL…          cells: null, same, or a text
//! update ID [key|full CELL… to] CELL…
//! truncate ID… | message yes|no LSN PREFIX CONTENT | type ID NAME
//! start XID first|again | stop | end XID LSN END | abort XID SUBXID [LSN]
//! @XID MESSAGE                                        with a transaction id, as inside a chunk
//! hex BYTES | MESSAGE + BYTES | MESSAGE - COUNT       any bytes; with more or fewer bytes at the end
//! ```
//!
//! A relation `hidden` is not captured, nor is a column `withheld`; one that is called after a mask is masked.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use downriver_decode::mask::{Constant, HashKey, Mask, Treatment};
use downriver_decode::postgres::decoder::{Committed, Decoded, PgDecoder, Relation, Streaming};
use downriver_decode::postgres::shape::Shape;
use downriver_event::{
    BlockBuilder, Column, Cover, LogicalType, Lsn, Offset, ReplicaIdentity, SourcePosition,
    TableId, TableSchema, pb, view,
};

const INT: u32 = 23;
const TEXT: u32 = 25;

// ---- a script's lines into bytes

fn number<T: std::str::FromStr>(text: &str) -> T {
    text.parse()
        .unwrap_or_else(|_| panic!("{text:?} is not a number"))
}

fn name(out: &mut Vec<u8>, name: &str) {
    out.extend_from_slice(name.as_bytes());
    out.push(0);
}

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

fn tuple(out: &mut Vec<u8>, cells: &[&str]) {
    out.extend_from_slice(&(cells.len() as u16).to_be_bytes());
    for cell in cells {
        match *cell {
            "null" => out.push(b'n'),
            "same" => out.push(b'u'),
            text => {
                out.push(b't');
                out.extend_from_slice(&(text.len() as u32).to_be_bytes());
                out.extend_from_slice(text.as_bytes());
            }
        }
    }
}

fn old_tuple(out: &mut Vec<u8>, kind: &str, cells: &[&str]) {
    out.push(if kind == "key" { b'K' } else { b'O' });
    tuple(out, cells);
}

/// The message without the transaction id.
fn message(words: &[&str]) -> Vec<u8> {
    let mut out = Vec::new();
    let u32s = |out: &mut Vec<u8>, words: &[&str]| {
        for word in words {
            out.extend_from_slice(&number::<u32>(word).to_be_bytes());
        }
    };
    let lsns = |out: &mut Vec<u8>, words: &[&str]| {
        for word in words {
            out.extend_from_slice(&number::<u64>(word).to_be_bytes());
        }
    };
    let time = 0u64.to_be_bytes();
    match *words {
        ["begin", xid, at] => {
            out.push(b'B');
            lsns(&mut out, &[at]);
            out.extend_from_slice(&time);
            u32s(&mut out, &[xid]);
        }
        ["commit", at, end] => {
            out.extend_from_slice(b"C\0");
            lsns(&mut out, &[at, end]);
            out.extend_from_slice(&time);
        }
        ["origin", origin] => {
            out.push(b'O');
            lsns(&mut out, &["7"]);
            name(&mut out, origin);
        }
        ["relation", id, relation, identity, ref columns @ ..] => {
            out.push(b'R');
            u32s(&mut out, &[id]);
            name(&mut out, "public");
            name(&mut out, relation);
            out.push(identity.as_bytes()[0]);
            out.extend_from_slice(&(columns.len() as u16).to_be_bytes());
            for column in columns {
                let (column, ty) = column.split_once(':').unwrap();
                out.push(u8::from(ty.ends_with('*')));
                name(&mut out, column);
                let ty = if ty.starts_with("int") { INT } else { TEXT };
                out.extend_from_slice(&ty.to_be_bytes());
                out.extend_from_slice(&(-1i32).to_be_bytes());
            }
        }
        ["type", id, ty] => {
            out.push(b'Y');
            u32s(&mut out, &[id]);
            name(&mut out, "public");
            name(&mut out, ty);
        }
        ["insert", id, ref cells @ ..] => {
            out.push(b'I');
            u32s(&mut out, &[id]);
            out.push(b'N');
            tuple(&mut out, cells);
        }
        ["update", id, ref rest @ ..] => {
            out.push(b'U');
            u32s(&mut out, &[id]);
            let new = match rest.iter().position(|word| *word == "to") {
                Some(to) => {
                    old_tuple(&mut out, rest[0], &rest[1..to]);
                    &rest[to + 1..]
                }
                None => rest,
            };
            out.push(b'N');
            tuple(&mut out, new);
        }
        ["delete", id, kind, ref cells @ ..] => {
            out.push(b'D');
            u32s(&mut out, &[id]);
            old_tuple(&mut out, kind, cells);
        }
        ["truncate", ref ids @ ..] => {
            out.push(b'T');
            out.extend_from_slice(&(ids.len() as u32).to_be_bytes());
            out.push(0);
            u32s(&mut out, ids);
        }
        ["message", transactional, at, prefix, content] => {
            out.extend_from_slice(&[b'M', u8::from(transactional == "yes")]);
            lsns(&mut out, &[at]);
            name(&mut out, prefix);
            out.extend_from_slice(&(content.len() as u32).to_be_bytes());
            out.extend_from_slice(content.as_bytes());
        }
        ["start", xid, first] => {
            out.push(b'S');
            u32s(&mut out, &[xid]);
            out.push(u8::from(first == "first"));
        }
        ["stop"] => out.push(b'E'),
        ["end", xid, at, end] => {
            out.push(b'c');
            u32s(&mut out, &[xid]);
            out.push(0);
            lsns(&mut out, &[at, end]);
            out.extend_from_slice(&time);
        }
        ["abort", xid, subxid, ref at @ ..] => {
            out.push(b'A');
            u32s(&mut out, &[xid, subxid]);
            if !at.is_empty() {
                lsns(&mut out, at);
                out.extend_from_slice(&time);
            }
        }
        ["hex", ref bytes @ ..] => out = hex(&bytes.concat()),
        _ => panic!("not a line of a script: {words:?}"),
    }
    out
}

fn bytes_of(line: &str) -> Vec<u8> {
    if let Some((line, more)) = line.split_once(" + ") {
        let mut bytes = bytes_of(line);
        bytes.extend(hex(more));
        return bytes;
    }
    if let Some((line, fewer)) = line.split_once(" - ") {
        let mut bytes = bytes_of(line);
        bytes.truncate(bytes.len() - number::<usize>(fewer));
        return bytes;
    }
    let words: Vec<&str> = line.split_whitespace().collect();
    match words[0].strip_prefix('@') {
        None => message(&words),
        Some(xid) => {
            let mut bytes = message(&words[1..]);
            bytes.splice(1..1, number::<u32>(xid).to_be_bytes());
            bytes
        }
    }
}

// ---- whoever runs a decoder

fn treatment(column: &str) -> Treatment {
    Treatment::Masked(Arc::new(match column {
        "null" => Mask::Null,
        "constant" => Mask::Constant(Constant::of_postgres("7".to_owned())),
        "hash" => Mask::Hash(HashKey::new(b"key")),
        "partial" => Mask::Partial { first: 1, last: 1 },
        "withheld" => return Treatment::Withheld,
        _ => return Treatment::Kept,
    }))
}

struct Session {
    decoder: PgDecoder,
    builder: BlockBuilder,
    schemas: HashMap<(u32, u32), TableSchema>,
    spool: HashMap<u32, Vec<(u64, Vec<u8>)>>,
    out: String,
}

impl Session {
    fn take(
        &mut self,
        bytes: &[u8],
    ) -> Result<(), downriver_decode::postgres::decoder::DecodeError> {
        match self.decoder.decode(bytes, &mut self.builder)? {
            Decoded::Piece(piece) => {
                let pieces = self.spool.entry(piece.xid).or_default();
                pieces.push((piece.described, bytes.to_vec()));
            }
            Decoded::StreamAbort { xid } => {
                let pieces = self.spool.remove(&xid).map_or(0, |pieces| pieces.len());
                writeln!(self.out, "forget {pieces} of {xid}").unwrap();
            }
            Decoded::StreamCommit { xid } => {
                for (described, bytes) in self.spool.remove(&xid).unwrap_or_default() {
                    let decoded = self.decoder.replay(&bytes, described, &mut self.builder)?;
                    self.answer(decoded);
                }
                let committed = self.decoder.commit_streamed(&mut self.builder);
                self.committed(committed);
            }
            decoded => self.answer(decoded),
        }
        Ok(())
    }

    fn answer(&mut self, decoded: Decoded) {
        match decoded {
            Decoded::Relation(relation) => self.relation(&relation),
            Decoded::Commit(committed) => self.committed(committed),
            Decoded::Message(message) => {
                let content = String::from_utf8_lossy(&message.content);
                writeln!(self.out, "message {} {content}", message.prefix).unwrap();
            }
            Decoded::Uncertain { xid } => {
                writeln!(self.out, "a message of {xid} is uncertain").unwrap();
            }
            _ => {}
        }
    }

    fn relation(&mut self, relation: &Relation) {
        if relation.name == "hidden" {
            return self.decoder.set_shape(relation.id, None);
        }
        let (mut columns, mut withheld, mut treatments) = (Vec::new(), Vec::new(), Vec::new());
        for (described, id) in relation.columns.iter().zip(1..) {
            let mut column = Column {
                id,
                name: described.name.clone(),
                ty: if described.type_oid == INT {
                    LogicalType::Int32
                } else {
                    LogicalType::Text
                },
                nullable: true,
                source_type: String::new(),
                cover: Cover::None,
                default: None,
            };
            let treatment = treatment(&described.name);
            if let Treatment::Masked(mask) = &treatment {
                mask.cover(&mut column).unwrap();
            }
            match treatment {
                Treatment::Withheld => withheld.push(column),
                _ => columns.push(column),
            }
            treatments.push(treatment);
        }
        let mut schema = TableSchema {
            id: TableId(relation.id),
            version: 0,
            namespace: relation.namespace.clone(),
            name: relation.name.clone(),
            columns,
            withheld,
            key: vec![1],
            identity: ReplicaIdentity::Default,
        };
        let versions = self
            .schemas
            .keys()
            .filter(|(id, _)| *id == relation.id)
            .count() as u32;
        let known = (1..=versions)
            .find(|version| self.schemas[&(relation.id, *version)].same_shape(&schema));
        schema.version = known.unwrap_or(versions + 1);
        self.schemas
            .insert((relation.id, schema.version), schema.clone());
        let shape = Shape::new(Arc::new(schema), treatments);
        self.decoder.set_shape(relation.id, Some(shape));
    }

    fn committed(&mut self, Committed { end_lsn, events }: Committed) {
        writeln!(self.out, "commit {} with {events}", end_lsn.0).unwrap();
        let Some((_, block)) = self.builder.cut_and_read() else {
            return;
        };
        let schema = |table, version| self.schemas.get(&(table, version));
        let position = SourcePosition::Postgres(end_lsn);
        for event in view::events(&block, Offset(0), &position, schema).unwrap() {
            let op = event
                .op()
                .as_str_name()
                .trim_start_matches("OP_")
                .to_lowercase();
            write!(self.out, "  {} {op}", event.transaction_id).unwrap();
            if !event.origin.is_empty() {
                write!(self.out, " from {}", event.origin).unwrap();
            }
            if let Some(schema) = schema(event.table_id, event.schema_version) {
                write!(self.out, " {}", schema.name).unwrap();
                for (what, row) in [("old", &event.before), ("", &event.after)] {
                    let Some(row) = row else { continue };
                    let cells = schema.columns.iter().zip(&row.cells);
                    let cells =
                        cells.map(|(column, cell)| format!("{}={}", column.name, text(cell)));
                    write!(self.out, " {what}({})", cells.collect::<Vec<_>>().join(" ")).unwrap();
                }
            }
            match event.marker.and_then(|marker| marker.kind) {
                Some(pb::marker::Kind::Truncate(truncate)) => {
                    write!(self.out, " {:?}", truncate.table_ids).unwrap();
                }
                Some(pb::marker::Kind::Message(message)) => {
                    let content = String::from_utf8_lossy(&message.content);
                    write!(self.out, " {} {content}", message.prefix).unwrap();
                }
                _ => {}
            }
            self.out.push('\n');
        }
    }
}

fn text(cell: &pb::Cell) -> String {
    match cell.kind.as_ref().unwrap() {
        pb::cell::Kind::Presence(code) => {
            let name = pb::Presence::try_from(*code).unwrap().as_str_name();
            name.trim_start_matches("PRESENCE_").to_lowercase()
        }
        pb::cell::Kind::Value(value) => match value.kind.as_ref().unwrap() {
            pb::value::Kind::Int(value) => value.to_string(),
            pb::value::Kind::Text(value) => value.clone(),
            other => panic!("{other:?}"),
        },
    }
}

/// The messages in the form that the fuzzer reads, as far as they fit it.
fn seed(lines: &[&str]) -> Vec<u8> {
    let (mut mode, mut seed) = (2, Vec::new());
    for line in lines.iter().filter(|line| !line.starts_with('#')) {
        match line.split_once(' ') {
            Some(("position", _)) => mode |= 0x80,
            Some(("streaming", "off")) => mode &= 0x80,
            Some(("streaming", "parallel")) => mode = mode & 0x80 | 1,
            _ => {
                let message = bytes_of(line);
                if let Ok(len) = u8::try_from(message.len()) {
                    seed.push(len);
                    seed.extend(message);
                }
            }
        }
    }
    seed.insert(0, mode);
    seed
}

fn run(lines: &[&str]) -> String {
    let (mut position, mut streaming) = (None, Streaming::On);
    let mut messages = lines
        .iter()
        .filter(|line| !line.starts_with('#'))
        .peekable();
    while let Some(option) = messages.peek() {
        match option.split_once(' ') {
            Some(("position", lsn)) => position = Some(Lsn(number(lsn))),
            Some(("streaming", "off")) => streaming = Streaming::Off,
            Some(("streaming", "parallel")) => streaming = Streaming::Parallel,
            _ => break,
        }
        messages.next();
    }
    let mut session = Session {
        decoder: PgDecoder::new(position, streaming),
        builder: BlockBuilder::new(),
        schemas: HashMap::new(),
        spool: HashMap::new(),
        out: String::new(),
    };
    for line in messages {
        if let Err(error) = session.take(&bytes_of(line)) {
            writeln!(session.out, "error: {error}").unwrap();
            break;
        }
    }
    session.out
}

#[test]
fn every_script_ends_as_it_says() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scripts");
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/pgoutput");
    let mut paths: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    assert!(paths.len() >= 4, "the scripts are not there");
    for path in paths {
        let script = fs::read_to_string(&path).unwrap();
        let writes = std::env::var_os("DOWNRIVER_WRITE_SCRIPTS").is_some();
        let paragraphs = script.trim().split("\n\n").enumerate();
        let paragraphs = paragraphs.map(|(at, paragraph)| {
            let input = paragraph.split("\n----").next().unwrap().trim();
            let lines: Vec<_> = input.lines().collect();
            if writes {
                fs::create_dir_all(&corpus).unwrap();
                let name = path.file_stem().unwrap().to_string_lossy();
                fs::write(corpus.join(format!("{name}-{at}")), seed(&lines)).unwrap();
            }
            format!("{input}\n----\n{}", run(&lines))
        });
        let found = paragraphs.collect::<Vec<_>>().join("\n");
        if writes {
            fs::write(&path, &found).unwrap();
            continue;
        }
        assert_eq!(script, found, "{}", path.display());
    }
}
