//! Every type is the same through snapshot and stream, in every image, and what PostgreSQL itself prints; every
//! type that can be a key is read by chunks and by single keys.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::fmt::Write as _;

use common::log::{self, LoggedTable};
use common::{Capture, config, node};
use downriver_event::block::{BlockBuilder, OldImage, RowOp};
use downriver_event::{LogicalType, pb};
use downriver_pipeline::capture::CaptureConfig;
use downriver_source::postgres::snapshot::{ChunkRequest, SnapshotSession};
use downriver_testkit::postgres::Postgres;
use downriver_testkit::types::{CASES, Case, PREPARE};

/// Added to the id of a row that the stream brings.
const STREAMED: i64 = 1_000;

fn values(case: &Case) -> impl Iterator<Item = String> {
    let all = case.values.iter().chain(case.beyond_lake);
    all.map(|value| format!("$q${value}$q$"))
}

fn tables() -> String {
    let mut sql = String::new();
    for (at, case) in CASES.iter().enumerate() {
        let ty = case.ty;
        let array = if case.has_array() {
            format!(", a {ty}[]")
        } else {
            String::new()
        };
        writeln!(
            sql,
            "create table t{at} (id int primary key, v {ty}{array}); alter table t{at} replica identity full;
             alter table t{at} owner to cdc;"
        )
        .unwrap();
        if case.key {
            writeln!(
                sql,
                "create table k{at} (n int not null default 0, v {ty} primary key); alter table k{at} owner to cdc;"
            )
            .unwrap();
        }
    }
    sql
}

/// The same rows before the snapshot and, with other ids, after it.
fn rows(first_id: i64) -> String {
    let mut sql = String::new();
    for (at, case) in CASES.iter().enumerate() {
        let ty = case.ty;
        for (id, value) in (first_id..).zip(values(case)) {
            let array = if case.has_array() {
                format!(", array[{value}, null, {value}]::{ty}[]")
            } else {
                String::new()
            };
            writeln!(sql, "insert into t{at} values ({id}, {value}{array});").unwrap();
        }
        writeln!(sql, "insert into t{at} (id) values ({});", first_id + 900).unwrap();
        if case.has_array() {
            writeln!(
                sql,
                "insert into t{at} (id, a) values ({}, '{{}}');",
                first_id + 901
            )
            .unwrap();
        }
    }
    sql
}

/// SQL that says what `render` says of a cell; `None` for arrays, which the unit tests read.
fn printed(ty: &LogicalType) -> Option<&'static str> {
    Some(match ty {
        LogicalType::Date => {
            "case when isfinite(v) then (v - date '1970-01-01')::text else v::text end"
        }
        LogicalType::Timestamp | LogicalType::TimestampTz => {
            "case when isfinite(v) then (extract(epoch from v) * 1000000)::numeric(30,0)::text else v::text end"
        }
        LogicalType::Time => "(extract(epoch from v) * 1000000)::numeric(30,0)::text",
        LogicalType::Interval => {
            "(extract(year from v) * 12 + extract(month from v))::int || ' ' || extract(day from v)::int || ' ' ||
             ((extract(hour from v) * 3600 + extract(minute from v) * 60) * 1000000 + extract(microseconds from v))::numeric(30,0)"
        }
        LogicalType::Bytes => "encode(v, 'hex')",
        LogicalType::Uuid => "replace(v::text, '-', '')",
        LogicalType::Decimal { .. } => "v::numeric::text",
        LogicalType::Bool => "v::text",
        LogicalType::Array(_) => return None,
        _ => "case when v is distinct from null then format('%s', v) end",
    })
}

fn render(cell: &pb::Cell) -> Option<String> {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    match cell.kind.as_ref().unwrap() {
        pb::cell::Kind::Presence(presence) => match pb::Presence::try_from(*presence).unwrap() {
            pb::Presence::Null => None,
            pb::Presence::PositiveInfinity => Some("infinity".into()),
            pb::Presence::NegativeInfinity => Some("-infinity".into()),
            pb::Presence::Nan => Some("nan".into()),
            other => panic!("{other:?}"),
        },
        pb::cell::Kind::Value(value) => Some(match value.kind.as_ref().unwrap() {
            pb::value::Kind::Bool(value) => value.to_string(),
            pb::value::Kind::Int(value) => value.to_string(),
            pb::value::Kind::Float(value) => format!("{value:?}"),
            pb::value::Kind::Double(value) => format!("{value:?}"),
            pb::value::Kind::Text(value) => value.clone(),
            pb::value::Kind::Bytes(value) => hex(value),
            pb::value::Kind::Interval(value) => {
                format!("{} {} {}", value.months, value.days, value.micros)
            }
            pb::value::Kind::List(_) => panic!("a list has no oracle"),
        }),
    }
}

fn is_what_postgres_prints(ty: &LogicalType, cell: &pb::Cell, printed: Option<&str>) -> bool {
    let logged = render(cell);
    match (logged, printed) {
        (None, None) => true,
        (Some(logged), Some(printed)) => match ty {
            LogicalType::Float32 => logged == format!("{:?}", printed.parse::<f32>().unwrap()),
            LogicalType::Float64 => logged == format!("{:?}", printed.parse::<f64>().unwrap()),
            _ => {
                let special = cell_is_special(cell);
                logged == printed || (special && logged == printed.to_lowercase())
            }
        },
        _ => false,
    }
}

fn cell_is_special(cell: &pb::Cell) -> bool {
    matches!(cell.kind, Some(pb::cell::Kind::Presence(_)))
}

fn id_of(row: &pb::Row) -> i64 {
    match &row.cells[0].kind {
        Some(pb::cell::Kind::Value(pb::Value {
            kind: Some(pb::value::Kind::Int(id)),
        })) => *id,
        other => panic!("{other:?}"),
    }
}

/// Rows by id, without it. NaN is not equal to itself: compared as printed.
fn by_id<'a>(images: impl Iterator<Item = &'a pb::Row>) -> BTreeMap<i64, String> {
    images
        .map(|row| (id_of(row), format!("{:?}", &row.cells[1..])))
        .collect()
}

fn assert_images(case: &Case, table: &LoggedTable) {
    let after = |op| table.of(op).map(|event| event.after.as_ref().unwrap());
    let before = |op| table.of(op).map(|event| event.before.as_ref().unwrap());
    let copied = by_id(after(pb::Op::Snapshot));
    let streamed = by_id(after(pb::Op::Insert));
    assert_eq!(
        copied.len(),
        case.values.len() + case.beyond_lake.len() + 1 + usize::from(case.has_array())
    );
    let shifted: BTreeMap<i64, String> = copied
        .iter()
        .map(|(id, row)| (id + STREAMED, row.clone()))
        .collect();
    assert_eq!(streamed, shifted, "{}: stream and snapshot", case.ty);
    let mut all = copied.clone();
    all.extend(streamed);
    assert_eq!(by_id(before(pb::Op::Update)), all, "{}: old image", case.ty);
    assert_eq!(by_id(after(pb::Op::Update)), all, "{}: new image", case.ty);
    assert_eq!(
        by_id(before(pb::Op::Delete)),
        copied,
        "{}: deleted",
        case.ty
    );
}

fn assert_elements(case: &Case, table: &LoggedTable) {
    let (v, a) = (table.place("v"), table.place("a"));
    if !matches!(table.schema.columns[a].ty, LogicalType::Array(_)) {
        return;
    }
    for event in table.of(pb::Op::Snapshot) {
        let row = event.after.as_ref().unwrap();
        let Some(pb::cell::Kind::Value(pb::Value {
            kind: Some(pb::value::Kind::List(list)),
        })) = &row.cells[a].kind
        else {
            continue;
        };
        let elements: Vec<String> = list.elements.iter().map(|e| format!("{e:?}")).collect();
        let value = format!("{:?}", row.cells[v]);
        let null = format!(
            "{:?}",
            downriver_event::view::presence_cell(downriver_event::Presence::Null)
        );
        if !elements.is_empty() {
            assert_eq!(elements, [value.clone(), null, value], "{}", case.ty);
        }
    }
}

async fn assert_printed(client: &tokio_postgres::Client, at: usize, table: &LoggedTable) -> usize {
    let v = table.place("v");
    let ty = &table.schema.columns[v].ty;
    let Some(expression) = printed(ty) else {
        return 0;
    };
    let query = format!("select id::int8, {expression} from t{at}");
    let printed: BTreeMap<i64, Option<String>> = client
        .query(&query, &[])
        .await
        .unwrap()
        .iter()
        .map(|row| (row.get(0), row.get(1)))
        .collect();
    let inserted = table.of(pb::Op::Insert).map(|e| e.after.as_ref().unwrap());
    let mut compared = 0;
    for row in inserted {
        let (cell, printed) = (&row.cells[v], printed[&id_of(row)].as_deref());
        assert!(
            is_what_postgres_prints(ty, cell, printed),
            "{}: {cell:?} is not {printed:?}",
            CASES[at].ty
        );
        compared += 1;
    }
    compared
}

/// Chunks of two rows have read every key once, each is found by its key, and deletes name the same keys.
async fn assert_keys(config: &CaptureConfig, case: &Case, table: &LoggedTable, rows: usize) {
    let key = table.place("v");
    let mut seen = table.snapshot_keys.clone();
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), rows, "{}: keys that chunks saw", case.ty);
    assert_eq!(table.snapshot_keys.len(), rows, "{}: twice", case.ty);

    let mut session = SnapshotSession::connect(&config.postgres).await.unwrap();
    let mut builder = BlockBuilder::new();
    builder.begin("again".into(), 0);
    let request = ChunkRequest {
        after: None,
        keys: Some(seen.iter().cloned().map(Into::into).collect()),
        rows_max: 2,
    };
    session
        .read_chunk(&table.schema, request, &mut |row| {
            row.push_into(builder.row(&table.schema, RowOp::Snapshot, OldImage::None))
        })
        .await
        .unwrap_or_else(|error| panic!("{}: {error}", case.ty));
    let (_, block) = builder
        .cut_and_read()
        .unwrap_or_else(|| panic!("{}: no row", case.ty));
    let mut found = Vec::new();
    for group in &block.groups {
        for cell in 0..group.rows() {
            let mut bytes = Vec::new();
            let column = group.new_column(table.schema.columns[key].id).unwrap();
            column.write_key(cell, &mut bytes);
            found.push(bytes);
        }
    }
    found.sort();
    assert_eq!(found, seen, "{}: found by key", case.ty);

    let cells = |images: Vec<&pb::Row>| {
        let mut cells: Vec<String> = images
            .iter()
            .map(|row| format!("{:?}", row.cells[key]))
            .collect();
        cells.sort();
        cells
    };
    let copied = table.of(pb::Op::Snapshot);
    let copied = cells(copied.map(|e| e.after.as_ref().unwrap()).collect());
    let deleted = table.of(pb::Op::Delete);
    let deleted = cells(deleted.map(|e| e.before.as_ref().unwrap()).collect());
    let updated = table.of(pb::Op::Update);
    let updated = cells(updated.map(|e| e.after.as_ref().unwrap()).collect());
    assert_eq!(deleted, copied, "{}: deleted keys", case.ty);
    assert_eq!(updated, copied, "{}: updated keys", case.ty);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_type_is_the_same_in_every_image_and_as_postgresql_prints_it() {
    let folder = tempfile::tempdir().unwrap();
    let postgres = Postgres::start().await.unwrap();
    postgres
        .execute("grant create on database shop to cdc; grant create on schema public to cdc")
        .await
        .unwrap();
    postgres.execute(PREPARE).await.unwrap();
    postgres.execute(&tables()).await.unwrap();
    postgres.execute(&rows(0)).await.unwrap();
    let (mut keys, mut touch_keys) = (String::new(), String::new());
    for (at, case) in CASES.iter().enumerate().filter(|(_, case)| case.key) {
        for value in values(case) {
            writeln!(keys, "insert into k{at} (v) values ({value});").unwrap();
        }
        writeln!(touch_keys, "update k{at} set n = n + 1; delete from k{at};").unwrap();
    }
    postgres.execute(&keys).await.unwrap();
    // The role's own settings must not reach the values.
    postgres
        .execute(
            "alter role cdc set datestyle = 'German'; alter role cdc set intervalstyle = 'sql_standard';
             alter role cdc set bytea_output = 'escape'; alter role cdc set extra_float_digits = 0;
             alter role cdc set timezone = 'Asia/Kathmandu'; alter role cdc set xmloption = 'document'",
        )
        .await
        .unwrap();
    let mut config = config(&postgres, folder.path());
    config.snapshot.chunk_rows = 2;
    let node = node(folder.path()).await;
    let capture = Capture::start(&config, &node);
    capture.caught_up(&config).await;

    postgres.execute(&rows(STREAMED)).await.unwrap();
    let (mut update, mut delete) = (String::new(), String::new());
    for at in 0..CASES.len() {
        writeln!(update, "update t{at} set v = v;").unwrap();
        writeln!(delete, "delete from t{at} where id < {STREAMED};").unwrap();
    }
    postgres.execute(&update).await.unwrap();
    postgres.execute(&delete).await.unwrap();
    let mut key_rows = BTreeMap::new();
    for (at, _) in CASES.iter().enumerate().filter(|(_, case)| case.key) {
        let rows = postgres
            .number(&format!("select count(*) from k{at}"))
            .await;
        key_rows.insert(at, usize::try_from(rows.unwrap()).unwrap());
    }
    let to = capture.caught_up(&config).await;
    let logged = log::read(&node, to).await;
    let client = postgres.client().await.unwrap();
    client
        .batch_execute(
            "set timezone = 'UTC'; set datestyle = 'ISO'; set intervalstyle = 'postgres';
             set bytea_output = 'hex'; set extra_float_digits = 3",
        )
        .await
        .unwrap();
    let mut compared = 0;
    for (at, case) in CASES.iter().enumerate() {
        let table = &logged[&format!("public.t{at}")];
        assert_images(case, table);
        if case.has_array() {
            assert_elements(case, table);
        }
        compared += assert_printed(&client, at, table).await;
    }
    assert!(compared > 300, "{compared} values were compared");
    // Again for `assert_keys`, which looks the keys up.
    postgres.execute(&touch_keys).await.unwrap();
    let to = capture.caught_up(&config).await;
    let logged = log::read(&node, to).await;
    postgres.execute(&keys).await.unwrap();
    for (at, rows) in key_rows {
        let table = &logged[&format!("public.k{at}")];
        assert_keys(&config, &CASES[at], table, rows).await;
    }
    capture.killed().await;
    node.shutdown().await;
}
