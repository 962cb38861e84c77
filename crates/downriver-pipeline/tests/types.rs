//! Every type is the same through snapshot and stream, in every image, and what PostgreSQL itself prints; every
//! type that can be a key is read by chunks and by single keys.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/log.rs"]
mod log;

use std::collections::BTreeMap;
use std::fmt::Write as _;

use common::{Capture, config, connection, node};
use downriver_event::block::{BlockBuilder, OldImage, RowOp};
use downriver_event::{LogicalType, pb};
use downriver_pipeline::TableState;
use downriver_pipeline::capture::{CaptureConfig, Database};
use downriver_source::chunk::{ChunkReader as _, ChunkRequest};
use downriver_source::postgres::catalog::Catalog;
use downriver_source::postgres::config::PostgresConfig;
use downriver_source::postgres::snapshot::SnapshotSession;
use downriver_testkit::host;
use downriver_testkit::postgres::{Options, Postgres, Version};
use downriver_testkit::types::{CASES, Case, PREPARE, VECTOR_CASES};
use log::LoggedTable;

/// Added to the id of a row that the stream brings.
const STREAMED: i64 = 1_000;

fn values(case: &Case) -> impl Iterator<Item = String> {
    let all = case.values.iter().chain(case.beyond_lake);
    all.map(|value| format!("$q${value}$q$"))
}

fn tables(cases: &[Case]) -> String {
    let mut sql = String::new();
    for (at, case) in cases.iter().enumerate() {
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
fn rows(cases: &[Case], first_id: i64) -> String {
    let mut sql = String::new();
    for (at, case) in cases.iter().enumerate() {
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

fn connection_mut(config: &mut CaptureConfig) -> &mut PostgresConfig {
    match &mut config.database {
        Database::Postgres(source) => &mut source.connection,
        Database::Mysql(_) => unreachable!("these tests have none"),
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

async fn assert_printed(
    client: &tokio_postgres::Client,
    at: usize,
    case: &Case,
    table: &LoggedTable,
) -> usize {
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
            case.ty
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

    let mut session = SnapshotSession::connect(connection(config)).await.unwrap();
    let mut builder = BlockBuilder::new();
    builder.begin("again".into(), 0);
    let request = ChunkRequest {
        part: None,
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
    let postgres = Postgres::start().await.unwrap();
    let compared = every_image_is_the_same(&postgres, PREPARE, CASES).await;
    assert!(compared > 300, "{compared} values were compared");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_type_is_the_same_in_every_image_on_18() {
    let postgres = Postgres::start_with(Options {
        version: Version::Major(18),
        ..Options::default()
    });
    let compared = every_image_is_the_same(&postgres.await.unwrap(), PREPARE, CASES).await;
    assert!(compared > 300, "{compared} values were compared");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_types_of_pgvector_are_the_same_in_every_image_and_as_postgresql_prints_them() {
    let postgres = Postgres::start_with(Options {
        version: Version::WithVector,
        ..Options::default()
    });
    let prepare = "create extension vector";
    let compared = every_image_is_the_same(&postgres.await.unwrap(), prepare, VECTOR_CASES).await;
    assert!(compared > 10, "{compared} values were compared");
}

/// How many values were compared with what PostgreSQL prints.
async fn every_image_is_the_same(postgres: &Postgres, prepare: &str, cases: &[Case]) -> usize {
    let folder = tempfile::tempdir().unwrap();
    postgres
        .execute("grant create on database shop to cdc; grant create on schema public to cdc")
        .await
        .unwrap();
    postgres.execute(prepare).await.unwrap();
    postgres.execute(&tables(cases)).await.unwrap();
    postgres.execute(&rows(cases, 0)).await.unwrap();
    let (mut keys, mut touch_keys) = (String::new(), String::new());
    for (at, case) in cases.iter().enumerate().filter(|(_, case)| case.key) {
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
    let mut config = config(postgres, folder.path());
    config.snapshot.chunk_rows = 2;
    let node = node(folder.path()).await;
    let capture = Capture::start(&config, &node);
    capture.caught_up(&config).await;

    postgres.execute(&rows(cases, STREAMED)).await.unwrap();
    let (mut update, mut delete) = (String::new(), String::new());
    for at in 0..cases.len() {
        writeln!(update, "update t{at} set v = v;").unwrap();
        writeln!(delete, "delete from t{at} where id < {STREAMED};").unwrap();
    }
    postgres.execute(&update).await.unwrap();
    postgres.execute(&delete).await.unwrap();
    let mut key_rows = BTreeMap::new();
    for (at, _) in cases.iter().enumerate().filter(|(_, case)| case.key) {
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
    for (at, case) in cases.iter().enumerate() {
        let table = &logged[&format!("public.t{at}")];
        assert_images(case, table);
        if case.has_array() {
            assert_elements(case, table);
        }
        compared += assert_printed(&client, at, case, table).await;
    }
    // Again for `assert_keys`, which looks the keys up.
    postgres.execute(&touch_keys).await.unwrap();
    let to = capture.caught_up(&config).await;
    let logged = log::read(&node, to).await;
    postgres.execute(&keys).await.unwrap();
    for (at, rows) in key_rows {
        let table = &logged[&format!("public.k{at}")];
        assert_keys(&config, &cases[at], table, rows).await;
    }
    capture.killed().await;
    node.shutdown().await;
    compared
}

/// Quotes, dots, back-slashes, four-byte letters, and a name that PostgreSQL cuts inside its limit of 63 bytes.
const NAMES: &str = r#"
    create schema "Quoted_"" . Schema";
    create type "Quoted_"" . Schema"."E""x" as enum ('a');
    create table "Quoted_"" . Schema"."a\b 'c' $d" ("'quoted'" int primary key, "a""b\" text, " " text, "колонка" text);
    insert into "Quoted_"" . Schema"."a\b 'c' $d" values (1, 'x', 'y', 'z'), (2, null, '', 'ü');
    create table "таблица_таблица_таблица_таблица_таблица" (
        "🚣🚣🚣🚣🚣🚣🚣🚣🚣🚣🚣🚣🚣🚣🚣🚣🚣" int primary key, v "Quoted_"" . Schema"."E""x");
    alter schema "Quoted_"" . Schema" owner to cdc;
    alter table "Quoted_"" . Schema"."a\b 'c' $d" owner to cdc;
    alter table "таблица_таблица_таблица_таблица_т" owner to cdc;
"#;

/// The next rows of both.
const MORE_NAMES: &str = r#"
    insert into "Quoted_"" . Schema"."a\b 'c' $d"
        select "'quoted'" + 10, "a""b\", " ", "колонка" from "Quoted_"" . Schema"."a\b 'c' $d";
    insert into "таблица_таблица_таблица_таблица_таблица" values (7, 'a');
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_are_kept_exactly() {
    let folder = tempfile::tempdir().unwrap();
    let postgres = Postgres::start().await.unwrap();
    postgres.execute(NAMES).await.unwrap();
    postgres
        .execute("grant create on database shop to cdc")
        .await
        .unwrap();
    let mut config = config(&postgres, folder.path());
    connection_mut(&mut config).tables = vec!["*.*".into()];
    let node = node(folder.path()).await;
    let capture = Capture::start(&config, &node);
    capture.caught_up(&config).await;
    postgres.execute(MORE_NAMES).await.unwrap();
    let to = capture.caught_up(&config).await;
    let logged = log::read(&node, to).await;
    let table = &logged["Quoted_\" . Schema.a\\b 'c' $d"];
    let names: Vec<&str> = table.schema.columns.iter().map(|c| &*c.name).collect();
    assert_eq!(names, ["'quoted'", "a\"b\\", " ", "колонка"]);
    let cells = |op| -> Vec<String> {
        let rows = table.of(op).map(|event| event.after.as_ref().unwrap());
        rows.map(|row| format!("{:?}", &row.cells[1..])).collect()
    };
    assert_eq!(cells(pb::Op::Insert), cells(pb::Op::Snapshot));
    assert_eq!(cells(pb::Op::Insert).len(), 2);
    // 63 bytes, but no half letter.
    let cut = &logged["public.таблица_таблица_таблица_таблица_т"];
    assert_eq!(cut.schema.columns[0].name, "🚣".repeat(15));
    assert_eq!(
        cut.schema.columns[1].source_type,
        "\"Quoted_\"\" . Schema\".\"E\"\"x\""
    );
    assert_eq!(cut.of(pb::Op::Insert).count(), 1);
    capture.killed().await;
    node.shutdown().await;
}

/// A database of another encoding, with the role's grants and one table.
async fn encoded(postgres: &Postgres, encoding: &str, folder: &std::path::Path) -> CaptureConfig {
    let admin = postgres.client_of("postgres").await.unwrap();
    admin
        .batch_execute(&format!(
            "create database other template template0 encoding '{encoding}' lc_collate 'C' lc_ctype 'C'"
        ))
        .await
        .unwrap();
    let other = postgres.client_of("other").await.unwrap();
    other
        .batch_execute(
            "grant create on database other to cdc; create table \"tä\" (k text primary key, \"ö\" text);
             alter table \"tä\" owner to cdc; insert into \"tä\" values ('é', 'ÿß'), ('a', null)",
        )
        .await
        .unwrap();
    let mut config = config(postgres, folder);
    connection_mut(&mut config).database = "other".into();
    config
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn text_of_a_latin1_database_is_utf8_in_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let postgres = Postgres::start().await.unwrap();
    let config = encoded(&postgres, "LATIN1", folder.path()).await;
    let node = node(folder.path()).await;
    let capture = Capture::start(&config, &node);
    capture.caught_up(&config).await;
    let other = postgres.client_of("other").await.unwrap();
    other
        .batch_execute("update \"tä\" set k = k || '£' where k = 'é'")
        .await
        .unwrap();
    let to = capture.caught_up(&config).await;
    let logged = log::read(&node, to).await;
    let table = &logged["public.tä"];
    assert_eq!(table.schema.columns[1].name, "ö");
    let text = |cell: &pb::Cell| render(cell).unwrap_or_default();
    let mut copied: Vec<_> = table
        .of(pb::Op::Snapshot)
        .map(|e| e.after.as_ref().unwrap())
        .map(|row| (text(&row.cells[0]), text(&row.cells[1])))
        .collect();
    copied.sort();
    assert_eq!(
        copied,
        [("a".into(), String::new()), ("é".into(), "ÿß".into())]
    );
    let update = table.of(pb::Op::Update).next().unwrap();
    assert_eq!(text(&update.before.as_ref().unwrap().cells[0]), "é");
    assert_eq!(text(&update.after.as_ref().unwrap().cells[0]), "é£");
    capture.killed().await;
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_of_a_sql_ascii_database_are_utf8_or_stop_with_their_name() {
    let folder = tempfile::tempdir().unwrap();
    let postgres = Postgres::start().await.unwrap();
    let config = encoded(&postgres, "SQL_ASCII", folder.path()).await;
    let node = node(folder.path()).await;
    let capture = Capture::start(&config, &node);
    let to = capture.caught_up(&config).await;
    let logged = log::read(&node, to).await;
    assert_eq!(logged["public.tä"].of(pb::Op::Snapshot).count(), 2);
    let other = postgres.client_of("other").await.unwrap();
    other
        .batch_execute("insert into \"tä\" values (E'\\xe9', null)")
        .await
        .unwrap();
    let status = &capture.status;
    host::until("the source to stop", common::PATIENCE, async || {
        Ok(status.get().state == TableState::Stopped)
    })
    .await
    .unwrap();
    let problem = status.get().problem.unwrap();
    assert_eq!(problem.code, "DR-1043", "{problem:?}");
    assert!(problem.reason.contains("0xe9"), "{problem:?}");
    capture.killed().await;
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_of_1600_columns_and_one_of_nulls_only_are_logged() {
    let folder = tempfile::tempdir().unwrap();
    let postgres = Postgres::start().await.unwrap();
    postgres
        .execute("grant create on database shop to cdc")
        .await
        .unwrap();
    let columns: Vec<String> = (1..1_600).map(|at| format!("c{at} bool")).collect();
    let set: Vec<String> = (1..1_600).map(|_| "true".to_owned()).collect();
    postgres
        .execute(&format!(
            "create table wide (id int primary key, {}); alter table wide owner to cdc;
             insert into wide (id) values (1); insert into wide values (2, {})",
            columns.join(", "),
            set.join(", ")
        ))
        .await
        .unwrap();
    let config = config(&postgres, folder.path());
    let node = node(folder.path()).await;
    let capture = Capture::start(&config, &node);
    capture.caught_up(&config).await;
    postgres
        .execute("create temp table w as select * from wide; update w set id = id + 2; insert into wide select * from w")
        .await
        .unwrap();
    let to = capture.caught_up(&config).await;
    let logged = log::read(&node, to).await;
    let table = &logged["public.wide"];
    let cells = |op| {
        let rows = table.of(op).map(|event| event.after.as_ref().unwrap());
        let mut rows: Vec<Vec<pb::Cell>> = rows.map(|row| row.cells[1..].to_vec()).collect();
        rows.sort_by_key(|row| format!("{:?}", row[0]));
        rows
    };
    let (copied, streamed) = (cells(pb::Op::Snapshot), cells(pb::Op::Insert));
    assert_eq!(copied.len(), 2);
    assert!(copied.iter().all(|row| row.len() == 1_599));
    assert_eq!(streamed, copied);
    capture.killed().await;
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn money_of_any_notation_is_read_and_of_a_currency_without_cents_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    for locale in ["de_DE", "ja_JP"] {
        let output = std::process::Command::new("localedef")
            .args(["-i", locale, "-f", "UTF-8"])
            .arg(folder.path().join(format!("{locale}.UTF-8")))
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    // The server runs as another user.
    let readable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(folder.path(), readable).unwrap();
    let locales = folder.path().to_string_lossy().into_owned();
    let postgres = Postgres::start_with(Options {
        environment: vec![("LOCPATH".into(), locales)],
        ..Options::default()
    })
    .await
    .unwrap();
    postgres
        .execute(
            "grant create on database shop to cdc; alter database shop set lc_monetary = 'de_DE.UTF-8'",
        )
        .await
        .unwrap();
    postgres
        .execute(
            "create table prices (id int primary key, v money); alter table prices owner to cdc;
             insert into prices values (1, '-1.234,11')",
        )
        .await
        .unwrap();
    let config = config(&postgres, folder.path());
    let node = node(folder.path()).await;
    let capture = Capture::start(&config, &node);
    capture.caught_up(&config).await;
    postgres
        .execute("insert into prices values (2, '-1.234,11')")
        .await
        .unwrap();
    let to = capture.caught_up(&config).await;
    let logged = log::read(&node, to).await;
    for op in [pb::Op::Snapshot, pb::Op::Insert] {
        let event = logged["public.prices"].of(op).next().unwrap();
        let cell = &event.after.as_ref().unwrap().cells[1];
        assert_eq!(render(cell).unwrap(), "-1234.11", "{op:?}");
    }
    capture.killed().await;
    node.shutdown().await;

    postgres
        .execute("alter database shop set lc_monetary = 'ja_JP.UTF-8'")
        .await
        .unwrap();
    let catalog = Catalog::connect(connection(&config)).await.unwrap();
    let tables = catalog.list_tables(connection(&config)).await.unwrap();
    let problem = tables[0].problem.as_ref().unwrap();
    assert_eq!(problem.code, "DR-1035", "{problem:?}");
}
