//! One value is one cell, whether the server sent it as text or in binary; what is no value is refused by name.
#![allow(clippy::unwrap_used)]

use downriver_decode::postgres::{ValueError, binary, text};
use downriver_event::block::ColumnBuilder;
use downriver_event::{LogicalType, Presence, pb, view};

const DECIMAL: LogicalType = LogicalType::Decimal {
    precision: 0,
    scale: 0,
};

type Push = fn(&LogicalType, &[u8], &mut ColumnBuilder) -> Result<(), ValueError>;

fn cell(push: Push, ty: &LogicalType, bytes: &[u8]) -> Result<pb::Cell, ValueError> {
    let mut column = ColumnBuilder::new(1, ty);
    push(ty, bytes, &mut column)?;
    Ok(view::cell_of(&column.read().unwrap(), ty, 0).unwrap())
}

fn hex(digits: &str) -> Vec<u8> {
    let digits: Vec<u8> = digits
        .bytes()
        .filter_map(|byte| (byte as char).to_digit(16))
        .map(|digit| u8::try_from(digit).unwrap())
        .collect();
    digits
        .chunks(2)
        .map(|pair| pair[0] * 16 + pair[1])
        .collect()
}

/// The cell of a text and of its binary form, which must be the same.
#[track_caller]
fn both(ty: &LogicalType, text: &str, binary: &str) -> pb::Cell {
    let of_text = cell(text::push, ty, text.as_bytes()).unwrap();
    let of_binary = cell(binary::push, ty, &hex(binary)).unwrap();
    // NaN is not equal to itself.
    assert_eq!(format!("{of_text:?}"), format!("{of_binary:?}"), "{text}");
    of_text
}

#[track_caller]
fn refused(ty: &LogicalType, text: &str) {
    let cell = cell(text::push, ty, text.as_bytes());
    assert!(cell.is_err(), "{text:?} is {cell:?}");
}

#[track_caller]
fn refused_binary(ty: &LogicalType, binary: &str) {
    let cell = cell(binary::push, ty, &hex(binary));
    assert!(cell.is_err(), "{binary:?} is {cell:?}");
}

fn int(cell: &pb::Cell) -> i64 {
    match cell.kind {
        Some(pb::cell::Kind::Value(pb::Value {
            kind: Some(pb::value::Kind::Int(value)),
        })) => value,
        ref other => panic!("{other:?}"),
    }
}

#[test]
fn integers_end_at_their_ends() {
    both(&LogicalType::Int16, "-32768", "8000");
    both(&LogicalType::Int32, "2147483647", "7fffffff");
    both(
        &LogicalType::Int64,
        "-9223372036854775808",
        "8000000000000000",
    );
    refused(&LogicalType::Int16, "32768");
    refused(&LogicalType::Int64, "9223372036854775808");
    for text in ["", "-", "+1", "1 ", "0x1", "1.0", "--1"] {
        refused(&LogicalType::Int32, text);
    }
    refused_binary(&LogicalType::Int32, "0000");
}

#[test]
fn a_float_keeps_every_bit_but_those_of_nan() {
    both(&LogicalType::Float64, "-0", "8000000000000000");
    both(&LogicalType::Float64, "5e-324", "0000000000000001");
    both(
        &LogicalType::Float64,
        "1.7976931348623157e+308",
        "7fefffffffffffff",
    );
    both(&LogicalType::Float32, "-Infinity", "ff800000");
    for nan in ["7ff8000000000000", "fff8000000000000", "7ff0000000000001"] {
        let cell = both(&LogicalType::Float64, "NaN", nan);
        let Some(pb::cell::Kind::Value(value)) = cell.kind else {
            panic!("{cell:?}")
        };
        let Some(pb::value::Kind::Double(value)) = value.kind else {
            panic!("{value:?}")
        };
        assert_eq!(value.to_bits(), f64::NAN.to_bits(), "{nan}");
    }
    refused(&LogicalType::Float64, "");
    refused(&LogicalType::Float64, "1,5");
}

#[test]
fn a_decimal_has_the_digits_that_the_server_shows() {
    // Count of groups, weight, sign, scale; then groups of four digits.
    both(&DECIMAL, "0", "0000 0000 0000 0000");
    both(&DECIMAL, "0.000", "0000 0000 0000 0003");
    both(&DECIMAL, "1.10", "0002 0000 0000 0002 0001 03e8");
    both(
        &DECIMAL,
        "-10000.0001",
        "0003 0001 4000 0004 0001 0000 0001",
    );
    both(&DECIMAL, "10000", "0001 0001 0000 0000 0001");
    both(&DECIMAL, "0.00010000", "0001 ffff 0000 0008 0001");
    both(&DECIMAL, "0.00000001", "0001 fffe 0000 0008 0001");
    let special = |text, binary| both(&DECIMAL, text, binary).kind;
    let presence = |presence: Presence| view::presence_cell(presence).kind;
    assert_eq!(
        special("NaN", "0000 0000 c000 0000"),
        presence(Presence::NaN)
    );
    assert_eq!(
        special("Infinity", "0000 0000 d000 0000"),
        presence(Presence::PositiveInfinity)
    );
    assert_eq!(
        special("-Infinity", "0000 0000 f000 0000"),
        presence(Presence::NegativeInfinity)
    );
    for text in [
        "", "-", ".5", "5.", "1e5", "1.2.3", "--1", "+1", "nan", "1,5",
    ] {
        refused(&DECIMAL, text);
    }
    refused_binary(&DECIMAL, "0001 0000 0000 0000 2710");
    refused_binary(&DECIMAL, "0002 0000 0000 0000 0001");
    refused_binary(&DECIMAL, "0000 0000 1000 0000");
}

#[test]
fn money_is_a_decimal_without_its_signs() {
    let decimal = |text: &str| cell(text::push, &DECIMAL, text.as_bytes());
    for (money, plain) in [
        ("-$92,233,720,368,547,758.08", "-92233720368547758.08"),
        ("$0.00", "0.00"),
        ("-$0.05", "-0.05"),
        ("$1,234.50", "1234.50"),
    ] {
        assert_eq!(decimal(money), decimal(plain), "{money}");
    }
    for text in [
        "$",
        "-$",
        "$1.2.3",
        "¥1,234",
        "1.234,50 €",
        "$-1.00",
        "($1.00)",
    ] {
        refused(&DECIMAL, text);
    }
}

#[test]
fn dates_reach_from_4714_bc_to_5874897_and_beyond_are_infinite() {
    let date = |text, binary| int(&both(&LogicalType::Date, text, binary));
    assert_eq!(date("1970-01-01", "ffffd533"), 0);
    assert_eq!(date("4714-11-24 BC", "ffda97a7"), -2_440_588);
    assert_eq!(date("5874897-12-31", "7fda970c"), 2_145_042_905);
    assert_eq!(date("0001-12-31 BC", "fff4dbf8"), -719_163);
    let infinite = both(&LogicalType::Date, "infinity", "7fffffff");
    assert_eq!(infinite, view::presence_cell(Presence::PositiveInfinity));
    let infinite = both(&LogicalType::Date, "-infinity", "80000000");
    assert_eq!(infinite, view::presence_cell(Presence::NegativeInfinity));
    for text in [
        "",
        "1970-1-1",
        "1970-02-29",
        "1970-13-01",
        "01.02.1970",
        "1970-01-01 AD",
    ] {
        refused(&LogicalType::Date, text);
    }
}

#[test]
fn timestamps_are_microseconds_and_the_last_thirty_years_are_refused() {
    let ty = LogicalType::TimestampTz;
    let at = |text, binary| int(&both(&ty, text, binary));
    assert_eq!(
        at("2000-01-01 00:00:00+00", "0000000000000000"),
        946_684_800_000_000
    );
    assert_eq!(
        at("1999-12-31 23:59:59.999999+00", "ffffffffffffffff"),
        946_684_799_999_999
    );
    let infinite = both(&ty, "-infinity", "8000000000000000");
    assert_eq!(infinite, view::presence_cell(Presence::NegativeInfinity));
    let last = "294276-12-31 23:59:59.999999+00";
    assert_eq!(
        cell(text::push, &ty, last.as_bytes()),
        Err(ValueError::TooLate)
    );
    assert_eq!(
        cell(binary::push, &ty, &hex("7ffffffffffffffe")),
        Err(ValueError::TooLate)
    );
    for text in [
        "2000-01-01 00:00:00",
        "2000-01-01 00:00:00+01",
        "2000-01-01T00:00:00+00",
        "2000-01-01 00:00:00.1234567+00",
    ] {
        refused(&ty, text);
    }
}

#[test]
fn a_day_ends_at_24_00() {
    let time = |text, binary| int(&both(&LogicalType::Time, text, binary));
    assert_eq!(time("24:00:00", "000000141dd76000"), 86_400_000_000);
    assert_eq!(time("00:00:00", "0000000000000000"), 0);
    for text in [
        "24:00:00.000001",
        "1:02:03",
        "01:02",
        "01:02:03.",
        "01:02:03+00",
    ] {
        refused(&LogicalType::Time, text);
    }
    refused_binary(&LogicalType::Time, "000000141dd76001");
    refused_binary(&LogicalType::Time, "ffffffffffffffff");
}

#[test]
fn an_interval_keeps_its_three_fields() {
    let ty = LogicalType::Interval;
    both(
        &ty,
        "1 mon -1 days +00:00:01",
        "00000000000f4240 ffffffff 00000001",
    );
    both(
        &ty,
        "-178000000 years",
        "0000000000000000 00000000 80af3a00",
    );
    both(
        &ty,
        "-2562047788:00:54.775808",
        "8000000000000000 00000000 00000000",
    );
    // PostgreSQL 17 and later.
    let infinite = both(&ty, "infinity", "7fffffffffffffff 7fffffff 7fffffff");
    assert_eq!(infinite, view::presence_cell(Presence::PositiveInfinity));
    let infinite = both(&ty, "-infinity", "8000000000000000 80000000 80000000");
    assert_eq!(infinite, view::presence_cell(Presence::NegativeInfinity));
    for text in [
        "1",
        "1 day 2",
        "P1D",
        "1 fortnight",
        "00:00",
        "1 day 00:00:01 ago",
        "178956971 years",
    ] {
        refused(&ty, text);
    }
}

#[test]
fn bytes_uuids_booleans_and_json_are_what_they_say() {
    both(&LogicalType::Bytes, "\\x", "");
    both(&LogicalType::Bytes, "\\x00ff5C", "00ff5c");
    both(
        &LogicalType::Uuid,
        "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
        "a0eebc999c0b4ef8bb6d6bb9bd380a11",
    );
    both(&LogicalType::Bool, "t", "01");
    both(&LogicalType::Json, "[1]", "01 5b315d");
    both(&LogicalType::Json, "[1]", "5b315d");
    for text in ["", "00", "\\x0", "\\x0g", "\\000"] {
        refused(&LogicalType::Bytes, text);
    }
    refused(&LogicalType::Uuid, "a0eebc999c0b4ef8bb6d6bb9bd380a11");
    refused(&LogicalType::Bool, "true");
    refused_binary(&LogicalType::Bool, "02");
    for ty in [LogicalType::Text, LogicalType::Other, LogicalType::Json] {
        assert_eq!(cell(text::push, &ty, b"\xe9"), Err(ValueError::NotUtf8));
        assert_eq!(cell(binary::push, &ty, b"\xe9"), Err(ValueError::NotUtf8));
    }
}

#[test]
fn an_array_keeps_bounds_dimensions_and_what_its_elements_are() {
    let ints = LogicalType::Array(Box::new(LogicalType::Int32));
    both(&ints, "{}", "00000000 00000000 00000017");
    both(
        &ints,
        "{1,NULL}",
        "00000001 00000001 00000017 00000002 00000001 00000004 00000001 ffffffff",
    );
    both(
        &ints,
        "[0:0][2:3]={{7,8}}",
        "00000002 00000000 00000017 00000001 00000000 00000002 00000002 00000004 00000007 00000004 00000008",
    );
    let texts = LogicalType::Array(Box::new(LogicalType::Text));
    both(
        &texts,
        "{\"NULL\",NULL,\"\",\"a\\\"\\\\,}\"}",
        "00000001 00000001 00000019 00000004 00000001 00000004 4e554c4c ffffffff 00000000 00000005 61225c2c7d",
    );
    let decimals = LogicalType::Array(Box::new(DECIMAL));
    both(
        &decimals,
        "{NaN}",
        "00000001 00000000 000006a4 00000001 00000001 00000008 00000000c0000000",
    );
    for text in [
        "",
        "{",
        "{1",
        "{1}}",
        "{1,}",
        "{,1}",
        "{{1},{1,2}}",
        "[1:1]={{1}}",
        "{\"1}",
        "{1} ",
        "{{{{{{{1}}}}}}}",
        "{a}",
    ] {
        refused(&ints, text);
    }
    refused_binary(&ints, "00000001 00000000 00000017 7fffffff 00000001");
    refused_binary(&ints, "00000007 00000000 00000017");
}
