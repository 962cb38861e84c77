//! A value is the same cell through snapshot (COPY, binary) and stream (pgoutput, text).
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;

use common::{Capture, config, node};
use downriver_event::block::Block;
use downriver_event::{Offset, TableId, pb, view};
use downriver_log::Log;
use downriver_testkit::postgres::Postgres;

const TYPES: &str = "
    create type mood as enum ('sad', 'it''s \"fine\", {ok}', 'søvnig');
    create domain money_like as numeric(8,3);
    create table types (
        id int primary key, touched int not null default 0,
        i2 smallint, i4 int, i8 bigint, f4 real, f8 double precision, n numeric, n2 numeric(12,2), b boolean,
        t text, vc varchar(20), c char(5), ba bytea, u uuid, j json, jb jsonb, d date, ti time, ts timestamp,
        tz timestamptz, iv interval, m mood, dm money_like, ai int[], at text[], an numeric[], am mood[],
        net inet, r int4range, bx bit(5));
    alter table types owner to cdc;
    insert into types (id) values (0);
    insert into types (id, i2, i4, i8) values
        (1, -32768, -2147483648, -9223372036854775808), (2, 32767, 2147483647, 9223372036854775807), (3, 0, -1, 1);
    insert into types (id, f4, f8) values
        (10, 'NaN', 'NaN'), (11, 'Infinity', '-Infinity'), (12, '-0', '-0'), (13, 1e-45, 5e-324),
        (14, 0.1, 0.30000000000000004), (15, 3.4028235e38, 1.7976931348623157e308);
    insert into types (id, n, n2) values
        (20, 'NaN', 'NaN'), (21, 'Infinity', 0), (22, '-Infinity', -0.01), (23, 1.10, 9999999999.99), (24, 1e-20, 0.10),
        (25, 1e130, null), (26, 0, null), (27, 0.000, null), (28, -10000.0001, null), (29, 100000000, null),
        (30, 12345678901234567890.12345678901234567890, null), (31, 0.00010000, null), (32, 10000, null);
    insert into types (id, b, t, vc, c, ba) values
        (40, true, '', '', '', ''), (41, false, E'tab\\t\\\\N\\n''\"', 'zoë', 'ab', '\\x00ff5c'),
        (42, null, repeat('å', 3000), '\\N', 'abcde', decode(repeat('ab', 3000), 'hex'));
    insert into types (id, u, j, jb) values
        (50, 'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11', '{\"a\":1,\"a\":2, \"b\": 1.0}', '12345678901234567890.123'),
        (51, null, 'null', 'null'), (52, null, '\"\"', '{\"b\":1,\"a\":[1,null]}');
    insert into types (id, d, ti, ts, tz) values
        (60, 'infinity', '24:00:00', 'infinity', '-infinity'), (61, '-infinity', '00:00:00', '-infinity', 'infinity'),
        (62, '4713-01-01 BC', '23:59:59.999999', '4713-01-01 00:00:00 BC', '4713-01-02 00:00:00+00 BC'),
        (63, '5874897-12-31', '01:02:03.4', '294246-12-31 23:59:59.999999', '294246-12-31 23:59:59.999999+00'),
        (64, '2000-02-29', '00:00:00.000001', '1500-03-01 12:00:00.5', '1883-11-18 12:00:00-04:56:02'),
        (65, '0001-02-28 BC', null, '1969-12-31 23:59:59.999999', '2026-03-29 02:30:00+01');
    insert into types (id, iv) values
        (70, '1 mon -1 day +00:00:01'), (71, '-178000000 years'), (72, '0'), (73, '1 year 2 mons -3 days -04:05:06.789'),
        (74, '2562047788:00:54.775807'), (75, '-00:00:00.000001'), (76, '-1 year -1 mon'), (77, '1000 hours');
    insert into types (id, m, dm) values (80, 'sad', 1.5), (81, 'it''s \"fine\", {ok}', -99999.999), (82, 'søvnig', null);
    insert into types (id, ai, at, an, am) values
        (90, '{}', '{}', '{}', '{}'), (91, '{1,NULL,3}', '{\"\",\"NULL\",null,\"a,b\",\"c\\\\d\",\"e\\\"f\"}', '{1.10,NaN}', '{sad}'),
        (92, '[0:1]={7,8}', '{{a,b},{c,NULL}}', '{{{1}},{{2}}}', array['it''s \"fine\", {ok}'::mood, null]),
        (93, '[-1:0][2:3]={{1,2},{3,4}}', '{ü}', null, null);
    insert into types (id, net, r, bx) values (100, '192.168.2.0/12', '[1,5)', '10101'), (101, '::1', 'empty', '00000');";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_is_the_same_cell_through_snapshot_and_stream() {
    let folder = tempfile::tempdir().unwrap();
    let postgres = Postgres::start().await.unwrap();
    postgres
        .execute("grant create on database shop to cdc; grant create on schema public to cdc")
        .await
        .unwrap();
    postgres.execute(TYPES).await.unwrap();
    // The role's own settings must not reach the values.
    postgres
        .execute(
            "alter role cdc set datestyle = 'German'; alter role cdc set intervalstyle = 'sql_standard';
             alter role cdc set bytea_output = 'escape'; alter role cdc set extra_float_digits = 0;
             alter role cdc set timezone = 'Asia/Kathmandu'",
        )
        .await
        .unwrap();
    let config = config(&postgres, folder.path());
    let node = node(folder.path()).await;
    let capture = Capture::start(&config, &node);
    capture.caught_up(&config).await;
    postgres
        .execute("update types set touched = 1")
        .await
        .unwrap();
    let to = capture.caught_up(&config).await;

    let state = node.state("shop").unwrap();
    let mut snapshot: BTreeMap<String, pb::Row> = BTreeMap::new();
    let mut compared = 0;
    let mut from = Offset(0);
    while from < to {
        for stored in node.read("shop", from, 1 << 20).await.unwrap() {
            let block = Block::decode(&stored.frame).unwrap();
            let schema =
                |table, version| state.schemas.get(&(TableId(table), version)).map(|s| &**s);
            let end = stored.position_after.clone().unwrap();
            for event in view::events(&block, stored.base, &end, schema).unwrap() {
                let Some(mut after) = event.after.clone() else {
                    continue;
                };
                let id = format!("{:?}", after.cells[0]);
                after.cells.remove(1);
                match event.op() {
                    pb::Op::Snapshot => assert!(snapshot.insert(id, after).is_none()),
                    pb::Op::Update => {
                        let copied = &snapshot[&id].cells;
                        for (at, (streamed, copied)) in after.cells.iter().zip(copied).enumerate() {
                            let unchanged = downriver_event::Presence::Unchanged;
                            if *streamed != view::presence_cell(unchanged) {
                                // NaN is not equal to itself: compared as printed.
                                assert_eq!(
                                    format!("{streamed:?}"),
                                    format!("{copied:?}"),
                                    "row {id}, column {at}"
                                );
                            }
                        }
                        compared += 1;
                    }
                    other => panic!("{other:?}"),
                }
            }
            from = stored.end();
        }
    }
    assert_eq!(compared, snapshot.len());
    assert!(compared > 50);
    capture.killed().await;
    node.shutdown().await;
}
