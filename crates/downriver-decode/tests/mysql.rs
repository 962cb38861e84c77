//! Events that no server of the tests sends.

use downriver_decode::mysql::Flavor;
use downriver_decode::mysql::decoder::{BinlogDecoder, DecodeError, Decoded, Reached};
use downriver_decode::mysql::shape::{Described, Shape, describe};
use downriver_decode::mysql::table_map::TableMap;
use downriver_event::block::BlockBuilder;
use downriver_event::{
    BinlogPlace, Column, Cover, DefaultCell, Presence, ReplicaIdentity, SourcePosition, TableId,
    TableSchema, pb,
};

fn event(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut event = vec![0; 4];
    event.push(kind);
    event.extend([1, 0, 0, 0]);
    event.extend(u32::try_from(19 + body.len()).expect("small").to_le_bytes());
    event.extend([0; 6]);
    event.extend(body);
    event
}

fn query(text: &str) -> Vec<u8> {
    let mut body = vec![0; 4 + 4 + 1 + 2 + 2];
    body.push(0);
    body.extend(text.as_bytes());
    event(2, &body)
}

/// Of server 1 of domain 0, not standalone.
fn gtid(sequence: u64) -> Vec<u8> {
    let mut body = sequence.to_le_bytes().to_vec();
    body.extend([0; 11]);
    event(162, &body)
}

fn decoder(reached: &str) -> BinlogDecoder {
    let place = BinlogPlace {
        file: "binlog.000001".into(),
        position: 4,
    };
    BinlogDecoder::new(
        Reached::Mariadb(reached.parse().expect("a position")),
        place,
    )
}

/// What the last of an event's events was. Whatever table is asked for is captured.
fn decode(
    decoder: &mut BinlogDecoder,
    event: &[u8],
    out: &mut BlockBuilder,
) -> Result<Decoded, DecodeError> {
    let mut events = decoder.open(event)?;
    let mut last = Decoded::Passed;
    while let Some(decoded) = decoder.next(&mut events, out)? {
        if let Decoded::Table(map) = &decoded {
            decoder.watch(map, &["id".into()]);
            decoder.set_shape(Some(shape(map)));
        }
        last = decoded;
    }
    Ok(last)
}

#[test]
fn statements_within_a_contained_transaction_are_passed_with_it() -> Result<(), DecodeError> {
    let (mut decoder, mut out) = (decoder("0-1-7"), BlockBuilder::new());
    decode(&mut decoder, &gtid(7), &mut out)?;
    assert_eq!(
        decode(&mut decoder, &query("SAVEPOINT a"), &mut out)?,
        Decoded::Passed
    );
    assert!(decoder.in_transaction());
    let ended = decode(&mut decoder, &query("ROLLBACK"), &mut out)?;
    assert!(matches!(ended, Decoded::Commit(committed) if committed.events == 0));
    assert!(!decoder.in_transaction() && out.cut().is_none());
    // The next one is not contained.
    decode(&mut decoder, &gtid(8), &mut out)?;
    assert_eq!(
        decode(&mut decoder, &query("SAVEPOINT a"), &mut out)?,
        Decoded::Passed
    );
    let back = decode(&mut decoder, &query("ROLLBACK TO `A`"), &mut out)?;
    assert_eq!(back, Decoded::Passed);
    let ended = decode(&mut decoder, &query("ROLLBACK"), &mut out)?;
    let Decoded::Commit(ended) = ended else {
        panic!("{ended:?}");
    };
    assert!(ended.is_rolled_back && ended.events == 0 && ended.spoiled.is_empty());
    assert_eq!(reached(&decoder), "0-1-8");
    Ok(())
}

#[test]
fn a_statement_knows_the_temporary_tables_of_its_session() -> Result<(), DecodeError> {
    let (mut decoder, mut out) = (decoder("0-1-7"), BlockBuilder::new());
    let mut sequence = 7;
    let mut hidden = |session: u32, text: &str| -> Result<Vec<String>, DecodeError> {
        sequence += 1;
        let mut alone = gtid(sequence);
        alone[19 + 8 + 4] = 1;
        decode(&mut decoder, &alone, &mut out)?;
        let mut event = query(text);
        event[19..23].copy_from_slice(&session.to_le_bytes());
        let decoded = decode(&mut decoder, &event, &mut out)?;
        let Decoded::Statement(statement) = decoded else {
            panic!("{decoded:?}");
        };
        decoder.end_statement(&mut out);
        let mut names: Vec<String> = statement.temporary.into_iter().map(|it| it.table).collect();
        names.sort();
        Ok(names)
    };
    assert!(hidden(1, "create temporary table t (a int)")?.is_empty());
    assert!(hidden(1, "create temporary table u (a int)")? == ["t"]);
    assert!(hidden(2, "alter table t drop a")?.is_empty());
    assert!(hidden(1, "alter table t rename to v")? == ["t", "u"]);
    assert!(hidden(1, "truncate t")? == ["u", "v"]);
    assert!(hidden(1, "drop temporary table if exists u, v")? == ["u", "v"]);
    assert!(hidden(1, "truncate v")?.is_empty());
    Ok(())
}

#[test]
fn a_transaction_that_does_not_follow_the_last_of_its_domain_is_refused() -> Result<(), DecodeError>
{
    let (mut decoder, mut out) = (decoder("0-2-7,1-1-9"), BlockBuilder::new());
    // Of the same number, and of another server.
    let error =
        decode(&mut decoder, &gtid(7), &mut out).expect_err("nobody knows what is contained");
    let text = error.to_string();
    assert!(matches!(error, DecodeError::OutOfOrder { .. }), "{text}");
    assert!(
        text.starts_with("transaction 0-1-7 came behind 0-2-7 of its domain, at binlog.000001"),
        "{text}"
    );
    decode(&mut decoder, &gtid(8), &mut out)?;
    Ok(())
}

#[test]
fn a_table_may_be_made_inside_the_transaction_of_its_rows() -> Result<(), DecodeError> {
    let (mut decoder, mut out) = (decoder("0-1-7"), BlockBuilder::new());
    decode(&mut decoder, &gtid(8), &mut out)?;
    let made = query("CREATE TABLE `t` (`a` int) START TRANSACTION");
    let made = decode(&mut decoder, &made, &mut out)?;
    assert!(matches!(made, Decoded::Statement(_)) && decoder.in_transaction());
    let unseen = decode(&mut decoder, &query("INSERT INTO t VALUES (1)"), &mut out)?;
    assert!(matches!(unseen, Decoded::Unseen(statement) if statement.text.starts_with("INSERT")));
    Ok(())
}

/// The same one, of a prepared transaction.
fn prepared_gtid(sequence: u64) -> Vec<u8> {
    let mut gtid = gtid(sequence);
    gtid[19 + 8 + 4] = 64;
    gtid
}

fn reached(decoder: &BinlogDecoder) -> String {
    match decoder.position() {
        SourcePosition::Mariadb { gtids, .. } => gtids.to_string(),
        position => position.to_string(),
    }
}

/// Of `shop.t (id int primary key, v varchar(20))`.
fn table_map() -> Vec<u8> {
    let mut body = vec![22, 0, 0, 0, 0, 0, 1, 0];
    body.extend(b"\x04shop\x00\x01t\x00\x02\x03\x0f\x02\x50\x00\x02");
    body.extend(b"\x01\x01\x00\x02\x01\x2d\x04\x05\x02id\x01v\x08\x01\x00");
    event(19, &body)
}

fn rows(kind: u8, flags: u8, rows: &[(i32, &str)]) -> Vec<u8> {
    let mut body = vec![22, 0, 0, 0, 0, 0, flags, 0, 2, 3];
    if kind == 24 {
        body.push(3);
    }
    for (id, v) in rows {
        body.push(0xfc);
        body.extend(id.to_le_bytes());
        body.push(u8::try_from(v.len()).expect("small"));
        body.extend(v.as_bytes());
    }
    event(kind, &body)
}

fn described(map: &TableMap) -> Vec<Described> {
    describe(map, |_| Some("utf8mb4".into())).expect("it is understood")
}

fn shape(map: &TableMap) -> Shape {
    let plans = described(map).into_iter().map(|column| column.plan);
    Shape::new(schema(map).into(), plans.collect(), Vec::new())
}

fn schema(map: &TableMap) -> TableSchema {
    let described = described(map);
    let columns = (1..).zip(&described).map(|(id, column)| Column {
        id,
        name: column.name.clone(),
        ty: column.ty.clone(),
        nullable: column.nullable,
        source_type: column.source_type.clone(),
        cover: Cover::None,
        default: None,
    });
    TableSchema {
        id: TableId(1),
        version: 1,
        namespace: map.database.clone(),
        name: map.table.clone(),
        columns: columns.collect(),
        key: vec![1],
        identity: ReplicaIdentity::Default,
        withheld: Vec::new(),
    }
}

fn xa_prepare(is_one_phase: bool) -> Vec<u8> {
    let mut body = vec![u8::from(is_one_phase), 3, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0];
    body.extend(b"ab");
    event(38, &body)
}

#[test]
fn a_prepared_transaction_is_held_until_its_commit() -> Result<(), DecodeError> {
    let (mut decoder, mut out) = (decoder("0-1-7"), BlockBuilder::new());
    let end = query("XA END X'61',X'62',3");
    let mut held = Vec::new();
    let events = [prepared_gtid(8), table_map(), rows(23, 1, &[(1, "x")]), end];
    for event in events {
        match decode(&mut decoder, &event, &mut out)? {
            Decoded::Held => held.push(event),
            decoded => assert_eq!(decoded, Decoded::Passed),
        }
    }
    let prepared = decode(&mut decoder, &xa_prepare(false), &mut out)?;
    let Decoded::Prepared(prepared) = prepared else {
        panic!("{prepared:?}");
    };
    assert_eq!(prepared.xid.to_string(), "X'61',X'62',3");
    assert_eq!(prepared.id, "0-1-8");
    let tables = prepared.tables.expect("they are told");
    assert_eq!((tables.len(), &*tables[0].table), (1, "t"));
    assert!(!decoder.in_transaction() && out.cut().is_none());
    assert_eq!(reached(&decoder), "0-1-8");

    let mut commit = gtid(9);
    commit[19 + 8 + 4] = 128 | 1;
    decode(&mut decoder, &commit, &mut out)?;
    let commit = query("XA COMMIT X'61',X'62',3");
    let committed = decode(&mut decoder, &commit, &mut out)?;
    assert_eq!(committed, Decoded::XaCommit(prepared.xid));
    decoder.open_statement(&mut out);
    for event in &held {
        if let Decoded::Table(map) = decoder.replay(event, false, &mut out)? {
            decoder.set_shape(Some(shape(&map)));
        }
    }
    assert_eq!(decoder.end_statement(&mut out).events, 1);
    assert_eq!(reached(&decoder), "0-1-9");
    let (_, block) = out.cut_and_read().expect("a row");
    assert_eq!(block.transactions.len(), 1);
    Ok(())
}

#[test]
fn what_is_committed_in_one_phase_is_held_for_a_moment() -> Result<(), DecodeError> {
    let (mut decoder, mut out) = (decoder("0-1-7"), BlockBuilder::new());
    decode(&mut decoder, &prepared_gtid(8), &mut out)?;
    decode(&mut decoder, &table_map(), &mut out)?;
    let committed = decode(&mut decoder, &xa_prepare(true), &mut out)?;
    assert_eq!(committed, Decoded::CommittedHeld);
    decoder.open_statement(&mut out);
    assert_eq!(decoder.end_statement(&mut out).events, 0);
    assert_eq!(reached(&decoder), "0-1-8");
    // One that is contained is passed, however it ends.
    for is_one_phase in [false, true] {
        decode(&mut decoder, &prepared_gtid(8), &mut out)?;
        decode(&mut decoder, &table_map(), &mut out)?;
        let ended = decode(&mut decoder, &xa_prepare(is_one_phase), &mut out)?;
        assert!(matches!(ended, Decoded::Commit(_)) && !decoder.in_transaction());
    }
    Ok(())
}

#[test]
fn rows_behind_a_savepoint_are_taken_back_and_those_of_a_rolled_back_transaction()
-> Result<(), DecodeError> {
    let (mut decoder, mut out) = (decoder("0-1-7"), BlockBuilder::new());
    let events = [
        gtid(8),
        table_map(),
        rows(23, 1, &[(1, "kept")]),
        query("SAVEPOINT `s`"),
        rows(23, 1, &[(2, "gone"), (3, "gone")]),
        query("ROLLBACK TO `s`"),
        rows(23, 1, &[(4, "kept")]),
        event(16, &[0; 8]),
        gtid(9),
        rows(25, 1, &[(1, "kept")]),
        query("ROLLBACK"),
    ];
    let mut ended = Vec::new();
    for event in events {
        if let Decoded::Commit(committed) = decode(&mut decoder, &event, &mut out)? {
            ended.push((
                committed.events,
                committed.is_rolled_back,
                committed.parents.len(),
            ));
        }
    }
    assert_eq!(ended, [(2, false, 0), (0, true, 0)]);
    let (_, block) = out.cut_and_read().expect("rows");
    assert_eq!(block.transactions.len(), 1);
    // What was handed out cannot be taken back: its tables are told.
    decode(&mut decoder, &gtid(10), &mut out)?;
    decode(&mut decoder, &rows(23, 1, &[(5, "gone")]), &mut out)?;
    assert!(out.cut().is_some());
    let Decoded::Commit(ended) = decode(&mut decoder, &query("ROLLBACK"), &mut out)? else {
        panic!("it has ended");
    };
    assert_eq!(ended.spoiled, [TableId(1)]);
    Ok(())
}

#[test]
fn what_a_server_left_unfinished_has_no_effect() -> Result<(), DecodeError> {
    let mut description = vec![4, 0];
    description.extend([0; 50 + 4]);
    description.push(19);
    description.extend([0; 5]);
    for is_held in [false, true] {
        let (mut decoder, mut out) = (decoder("0-1-7"), BlockBuilder::new());
        let begin = if is_held { prepared_gtid(8) } else { gtid(8) };
        decode(&mut decoder, &begin, &mut out)?;
        decode(&mut decoder, &table_map(), &mut out)?;
        decode(&mut decoder, &rows(23, 1, &[(1, "gone")]), &mut out)?;
        let ended = decode(&mut decoder, &event(15, &description), &mut out)?;
        assert!(matches!(ended, Decoded::Commit(ended) if ended.events == 0));
        assert!(out.cut().is_none() && !decoder.in_transaction());
        assert_eq!(reached(&decoder), "0-1-7");
    }
    Ok(())
}

#[test]
fn rows_by_which_others_change_unseen_are_told() -> Result<(), DecodeError> {
    let (native, logged, unchecked) = (1, 1 | 16, 1 | 2);
    for (kind, flags, changed, expected) in [
        (25, native, vec![(1, "a")], Some((true, false))),
        (25, logged, vec![(1, "a")], None),
        (25, unchecked, vec![(1, "a")], None),
        (23, native, vec![(1, "a")], None),
        (24, native, vec![(1, "a"), (1, "b")], None),
        (24, native, vec![(1, "a"), (2, "a")], Some((false, true))),
        (24, logged, vec![(1, "a"), (2, "a")], None),
        (
            24,
            native,
            vec![(1, "a"), (1, ""), (7, "a"), (8, "a")],
            Some((false, true)),
        ),
    ] {
        let (mut decoder, mut out) = (decoder("0-1-7"), BlockBuilder::new());
        decode(&mut decoder, &gtid(8), &mut out)?;
        decode(&mut decoder, &table_map(), &mut out)?;
        decode(&mut decoder, &rows(kind, flags, &changed), &mut out)?;
        let ended = decode(&mut decoder, &event(16, &[0; 8]), &mut out)?;
        let Decoded::Commit(ended) = ended else {
            panic!("it has ended");
        };
        let told = ended.parents.first();
        let told = told.map(|parent| (parent.deletes, parent.updates));
        assert_eq!(told, expected, "{kind} {flags} {changed:?}");
    }
    Ok(())
}

/// The GTID of a transaction of MySQL's, by its number.
fn mysql_gtid(number: u64) -> Vec<u8> {
    let mut body = vec![0; 17];
    body.extend(number.to_le_bytes());
    event(33, &body)
}

fn mysql_decoder(reached: &str) -> BinlogDecoder {
    let place = BinlogPlace {
        file: "binlog.000001".into(),
        position: 4,
    };
    BinlogDecoder::new(Reached::Mysql(reached.parse().expect("a set")), place)
}

/// A compressed transaction with these events in it.
fn transaction(events: &[Vec<u8>]) -> Vec<u8> {
    let plain = events.concat();
    let packed = zstd::encode_all(&plain[..], 3).expect("in memory");
    let mut body = vec![2, 1, 0, 3, 9, 254];
    body.extend((plain.len() as u64).to_le_bytes());
    body.extend([1, 9, 254]);
    body.extend((packed.len() as u64).to_le_bytes());
    body.push(0);
    body.extend(packed);
    event(40, &body)
}

#[test]
fn a_compressed_transaction_is_one_place() -> Result<(), DecodeError> {
    let (mut decoder, mut out) = (mysql_decoder(""), BlockBuilder::new());
    let begun = decoder.position();
    decode(&mut decoder, &mysql_gtid(1), &mut out)?;
    let whole = transaction(&[query("BEGIN"), query("SAVEPOINT a"), event(16, &[0; 8])]);
    let mut events = decoder.open(&whole)?;
    for _ in 0..2 {
        let passed = decoder.next(&mut events, &mut out)?;
        assert_eq!(passed, Some(Decoded::Passed));
        assert!(decoder.in_transaction());
    }
    let ended = decoder.next(&mut events, &mut out)?;
    assert!(matches!(ended, Some(Decoded::Commit(_))) && !decoder.in_transaction());
    assert_eq!(decoder.next(&mut events, &mut out)?, None);
    assert_eq!(decoder.next(&mut events, &mut out)?, None);
    let ended = decoder.position();
    let place = ended.place().expect("a place");
    let bytes = mysql_gtid(1).len() + whole.len();
    assert_eq!(place.position, 4 + bytes as u64);
    assert!(ended.covers(&begun) && !begun.covers(&ended));

    // What the position contains is not looked into.
    let sets = "00000000-0000-0000-0000-000000000000:1";
    let mut decoder = mysql_decoder(sets);
    decode(&mut decoder, &mysql_gtid(1), &mut out)?;
    let wrong = event(40, b"no transaction");
    assert_eq!(decode(&mut decoder, &wrong, &mut out)?, Decoded::Passed);
    assert!(!decoder.in_transaction());
    Ok(())
}

#[test]
fn what_belongs_outside_a_compressed_transaction_is_refused_in_it() {
    let (begin, xid) = (query("BEGIN"), event(16, &[0; 8]));
    let nested = transaction(&[begin.clone(), xid.clone()]);
    let rotate = event(4, b"\x04\0\0\0\0\0\0\0binlog.000002");
    for (events, reason) in [
        (
            vec![begin.clone(), nested, xid.clone()],
            "type 40, which belongs outside",
        ),
        (
            vec![mysql_gtid(2), begin.clone(), xid.clone()],
            "type 33, which belongs outside",
        ),
        (
            vec![begin.clone(), rotate, xid.clone()],
            "type 4, which belongs outside",
        ),
        (
            vec![begin.clone(), event(99, b"")],
            "type 99, which belongs outside",
        ),
        (vec![begin.clone()], "has no end"),
        (vec![], "has no end"),
        (
            vec![begin.clone(), xid.clone(), begin.clone()],
            "goes on behind its end",
        ),
        (
            vec![begin.clone(), xid.clone(), xid.clone()],
            "goes on behind its end",
        ),
        (vec![xid.clone()], "before a transaction's beginning"),
        (
            vec![begin.clone(), begin.clone(), xid],
            "inside a transaction",
        ),
    ] {
        let (mut decoder, mut out) = (mysql_decoder(""), BlockBuilder::new());
        decode(&mut decoder, &mysql_gtid(1), &mut out).expect("opened");
        let error = decode(&mut decoder, &transaction(&events), &mut out);
        let error = error.expect_err(reason).to_string();
        assert!(error.contains(reason), "{error}, not {reason}");
    }
    let (mut decoder, mut out) = (mysql_decoder(""), BlockBuilder::new());
    let error = decode(&mut decoder, &transaction(&[begin]), &mut out);
    assert!(
        matches!(error, Err(DecodeError::OutOfPlace { .. })),
        "{error:?}"
    );
}

#[test]
fn rows_in_fragments_are_refused_by_name() {
    let (mut decoder, mut out) = (decoder("0-1-7"), BlockBuilder::new());
    decode(&mut decoder, &gtid(8), &mut out).expect("opened");
    let error = decode(&mut decoder, &event(172, &[0; 20]), &mut out);
    let error = error.expect_err("a refusal").to_string();
    assert!(
        error.contains("binlog_row_event_fragment_threshold"),
        "{error}"
    );
}

/// Rows of the table with their first column alone.
fn ids(kind: u8, ids: &[i32]) -> Vec<u8> {
    let mut body = vec![22, 0, 0, 0, 0, 0, 1, 0, 2, 1];
    if kind == 24 {
        body.push(1);
    }
    for id in ids {
        body.push(0xfe);
        body.extend(id.to_le_bytes());
    }
    event(kind, &body)
}

#[test]
fn what_an_insert_leaves_out_is_asked_for_and_filled_in() -> Result<(), DecodeError> {
    let (mut decoder, mut out) = (mysql_decoder(""), BlockBuilder::new());
    for event in [mysql_gtid(1), query("BEGIN"), table_map()] {
        decode(&mut decoder, &event, &mut out)?;
    }
    let lacking = decode(&mut decoder, &ids(23, &[1, 2]), &mut out)?;
    assert_eq!(lacking, Decoded::Lacking(TableId(1)));
    let map = TableMap::parse(&table_map()[19..], Flavor::Mysql).expect("a table map");
    let mut schema = schema(&map);
    // A version that does not know it either.
    let unknown = decoder.complete(Some(schema.clone().into()), &mut out);
    assert!(
        matches!(unknown, Err(DecodeError::InPart { .. })),
        "{unknown:?}"
    );

    let lacking = decode(&mut decoder, &ids(23, &[1, 2]), &mut out)?;
    assert_eq!(lacking, Decoded::Lacking(TableId(1)));
    schema.version = 2;
    let text = pb::value::Kind::Text("default".into());
    let cell = pb::cell::Kind::Value(pb::Value { kind: Some(text) });
    schema.columns[1].default = Some(DefaultCell(pb::Cell { kind: Some(cell) }));
    let filled = decoder.complete(Some(schema.into()), &mut out)?;
    assert!(matches!(filled, Decoded::Rows { .. }));
    // It is known from here on; and what an update leaves out is as it was.
    let known = decode(&mut decoder, &ids(23, &[3]), &mut out)?;
    assert!(matches!(known, Decoded::Rows { .. }));
    decode(&mut decoder, &ids(24, &[4, 5]), &mut out)?;
    let (_, block) = out.cut_and_read().expect("rows");
    let group = &block.groups[0];
    assert_eq!((group.schema_version, group.events.len()), (2, 4));
    let texts = group.new_column(2).expect("the column");
    assert_eq!(texts.bytes(2), Some(&b"default"[..]));
    assert_eq!(texts.presence(3), Presence::Unchanged);
    Ok(())
}

#[test]
fn mariadb_does_not_tell_what_a_row_in_part_leaves_out() -> Result<(), DecodeError> {
    for rows in [ids(23, &[1]), ids(24, &[1, 1])] {
        let (mut decoder, mut out) = (decoder("0-1-7"), BlockBuilder::new());
        decode(&mut decoder, &gtid(8), &mut out)?;
        decode(&mut decoder, &table_map(), &mut out)?;
        let refused = decode(&mut decoder, &rows, &mut out);
        assert!(
            matches!(refused, Err(DecodeError::InPart { .. })),
            "{refused:?}"
        );
    }
    // A row that is deleted is known by its key.
    let (mut decoder, mut out) = (decoder("0-1-7"), BlockBuilder::new());
    for event in [gtid(8), table_map(), ids(25, &[1])] {
        decode(&mut decoder, &event, &mut out)?;
    }
    Ok(())
}

#[test]
fn events_that_the_server_lost_are_a_hole() {
    let (mut decoder, mut out) = (mysql_decoder(""), BlockBuilder::new());
    // LOST_EVENTS, and a message.
    let incident = event(26, b"\x01\x00\x05error");
    let lost = decode(&mut decoder, &incident, &mut out);
    assert!(
        matches!(lost, Err(DecodeError::Incident { .. })),
        "{lost:?}"
    );
}
