//! Cells of blocks as Arrow arrays of the lake's types.

use std::sync::Arc;

use arrow_array::builder::{
    BooleanBuilder, Decimal128Builder, FixedSizeBinaryBuilder, LargeBinaryBuilder,
    PrimitiveBuilder, StringBuilder,
};
use arrow_array::types::{
    ArrowPrimitiveType, Date32Type, Float32Type, Float64Type, Int32Type, Int64Type,
    Time64MicrosecondType, TimestampMicrosecondType,
};
use arrow_array::{Array, ArrayRef, ListArray};
use arrow_buffer::{NullBufferBuilder, OffsetBuffer};
use arrow_schema::{DataType, Field};
use downriver_event::block::{Column, ColumnBuilder, Values};
use downriver_event::{LogicalType, Presence, pb, view};
use prost::Message as _;

/// Midnight of the next day, which the lake's time cannot hold.
const DAY_MICROS: i64 = 86_400_000_000;

/// One cell of a block, or nothing, which is NULL.
pub(crate) type Cell<'a> = Option<(&'a Column, usize)>;

/// A value that its column in the lake cannot hold.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Unholdable {
    /// Index into the cells that were given.
    pub(crate) at: usize,
    pub(crate) what: &'static str,
}

/// Builds a column's array from cells of the source type `ty`. A day of zeros is NULL, unless the column has to have a value.
pub(crate) fn column(
    field: &Field,
    ty: &LogicalType,
    cells: &[Cell<'_>],
) -> Result<ArrayRef, Unholdable> {
    let is_zero = |cell: &Cell<'_>| {
        cell.is_some_and(|(column, at)| column.presence(at) == Presence::ZeroDate)
    };
    if !field.is_nullable()
        && let Some(at) = cells.iter().position(is_zero)
    {
        let what = "a day of zeros in the key";
        return Err(Unholdable { at, what });
    }
    array(field.data_type(), ty, cells)
}

/// Builds the array of `to` from cells of the source type `ty`. Cells that are unchanged or absent are NULL:
/// who has their value puts it there.
fn array(to: &DataType, ty: &LogicalType, cells: &[Cell<'_>]) -> Result<ArrayRef, Unholdable> {
    let len = cells.len();
    match to {
        DataType::Boolean => {
            let mut out = BooleanBuilder::with_capacity(len);
            each(cells, Special::Refused, |cell| match cell {
                Some(Known::Cell(column, at)) => match &column.values {
                    Values::Bool(values) => {
                        out.append_value(values[at] != 0);
                        Ok(())
                    }
                    _ => Err("a value of another type"),
                },
                _ => {
                    out.append_null();
                    Ok(())
                }
            })?;
            Ok(Arc::new(out.finish()))
        }
        DataType::Int32 => primitive::<Int32Type>(len, cells, to, int32),
        DataType::Int64 => primitive::<Int64Type>(len, cells, to, int64),
        DataType::Float32 => {
            primitive::<Float32Type>(len, cells, to, |column, at| match &column.values {
                Values::Float32(values) => Ok(values[at]),
                _ => Err("a value of another type"),
            })
        }
        DataType::Float64 => {
            primitive::<Float64Type>(len, cells, to, |column, at| match &column.values {
                Values::Float64(values) => Ok(values[at]),
                _ => Err("a value of another type"),
            })
        }
        DataType::Date32 => primitive::<Date32Type>(len, cells, to, int32),
        DataType::Time64(_) => primitive::<Time64MicrosecondType>(len, cells, to, |column, at| {
            match int64(column, at)? {
                DAY_MICROS.. => Err("the time 24:00:00"),
                micros => Ok(micros),
            }
        }),
        DataType::Timestamp(_, _) => primitive::<TimestampMicrosecondType>(len, cells, to, int64),
        DataType::Decimal128(precision, scale) => {
            let mut out = Decimal128Builder::with_capacity(len).with_data_type(to.clone());
            each(cells, Special::Refused, |cell| {
                out.append_option(match cell {
                    Some(Known::Cell(column, at)) => {
                        Some(decimal(text(column, at)?, *precision, *scale)?)
                    }
                    _ => None,
                });
                Ok(())
            })?;
            Ok(Arc::new(out.finish()))
        }
        DataType::FixedSizeBinary(16) => {
            let mut out = FixedSizeBinaryBuilder::with_capacity(len, 16);
            each(cells, Special::Refused, |cell| {
                match cell {
                    Some(Known::Cell(column, at)) => out
                        .append_value(column.bytes(at).ok_or("a value of another type")?)
                        .map_err(|_| "a value of another length")?,
                    _ => out.append_null(),
                }
                Ok(())
            })?;
            Ok(Arc::new(out.finish()))
        }
        DataType::LargeBinary => {
            let mut out = LargeBinaryBuilder::with_capacity(len, len * 16);
            each(cells, Special::Refused, |cell| {
                match cell {
                    Some(Known::Cell(column, at)) => {
                        out.append_value(column.bytes(at).ok_or("a value of another type")?)
                    }
                    _ => out.append_null(),
                }
                Ok(())
            })?;
            Ok(Arc::new(out.finish()))
        }
        DataType::Utf8 => {
            let mut out = StringBuilder::with_capacity(len, len * 16);
            each(cells, Special::Text, |cell| {
                match cell {
                    // The cell says what it is: the column may have had another type when it was written.
                    Some(Known::Cell(column, at))
                        if matches!(column.values, Values::Fixed16(_)) =>
                    {
                        let interval = column.interval(at).ok_or("a value of another type")?;
                        out.append_value(interval.to_string());
                    }
                    Some(Known::Cell(column, at)) => out.append_value(text(column, at)?),
                    Some(Known::Special(word)) if *ty == LogicalType::Interval => {
                        out.append_value(word.to_lowercase());
                    }
                    Some(Known::Special(word)) => out.append_value(word),
                    None => out.append_null(),
                }
                Ok(())
            })?;
            Ok(Arc::new(out.finish()))
        }
        DataType::List(element) => {
            let LogicalType::Array(element_ty) = ty else {
                return Err(Unholdable {
                    at: 0,
                    what: "a value of another type",
                });
            };
            list(element, element_ty, cells)
        }
        _ => Err(Unholdable {
            at: 0,
            what: "a type that is not written",
        }),
    }
}

enum Known<'a> {
    Cell(&'a Column, usize),
    /// Infinity and the like, where the lake's type can say it.
    Special(&'static str),
}

/// What to do with infinities and NaN that are no values of their type.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Special {
    Refused,
    Text,
}

fn each<'a>(
    cells: &[Cell<'a>],
    special: Special,
    mut push: impl FnMut(Option<Known<'a>>) -> Result<(), &'static str>,
) -> Result<(), Unholdable> {
    for (at, cell) in cells.iter().enumerate() {
        let known = match cell {
            None => None,
            Some((column, index)) => match (column.presence(*index), special) {
                (Presence::Value, _) => Some(Known::Cell(column, *index)),
                (
                    Presence::Null
                    | Presence::Unchanged
                    | Presence::Absent
                    | Presence::Masked
                    | Presence::ZeroDate,
                    _,
                ) => None,
                (Presence::PositiveInfinity, Special::Text) => Some(Known::Special("Infinity")),
                (Presence::NegativeInfinity, Special::Text) => Some(Known::Special("-Infinity")),
                (Presence::NaN, Special::Text) => Some(Known::Special("NaN")),
                (Presence::PositiveInfinity | Presence::NegativeInfinity, _) => {
                    return Err(Unholdable {
                        at,
                        what: "infinity",
                    });
                }
                (Presence::NaN, _) => return Err(Unholdable { at, what: "NaN" }),
            },
        };
        push(known).map_err(|what| Unholdable { at, what })?;
    }
    Ok(())
}

fn primitive<T: ArrowPrimitiveType>(
    len: usize,
    cells: &[Cell<'_>],
    to: &DataType,
    value: impl Fn(&Column, usize) -> Result<T::Native, &'static str>,
) -> Result<ArrayRef, Unholdable> {
    let mut out = PrimitiveBuilder::<T>::with_capacity(len).with_data_type(to.clone());
    each(cells, Special::Refused, |cell| {
        out.append_option(match cell {
            Some(Known::Cell(column, at)) => Some(value(column, at)?),
            _ => None,
        });
        Ok(())
    })?;
    Ok(Arc::new(out.finish()))
}

fn int32(column: &Column, at: usize) -> Result<i32, &'static str> {
    match &column.values {
        Values::Int32(values) => Ok(values[at]),
        _ => Err("a value of another type"),
    }
}

fn int64(column: &Column, at: usize) -> Result<i64, &'static str> {
    match &column.values {
        Values::Int64(values) => Ok(values[at]),
        Values::Int32(values) => Ok(i64::from(values[at])),
        _ => Err("a value of another type"),
    }
}

fn text(column: &Column, at: usize) -> Result<&str, &'static str> {
    let bytes = column.bytes(at).ok_or("a value of another type")?;
    std::str::from_utf8(bytes).map_err(|_| "text that is not UTF-8")
}

/// The digits of a decimal text at the scale.
fn decimal(text: &str, precision: u8, scale: i8) -> Result<i128, &'static str> {
    const WRONG: &str = "a decimal that is none";
    const TOO_LARGE: &str = "a decimal with too many digits";
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let scale = usize::try_from(scale).map_err(|_| WRONG)?;
    if fraction.len() > scale && fraction.as_bytes()[scale..].iter().any(|b| *b != b'0') {
        return Err(TOO_LARGE);
    }
    let fraction = &fraction.as_bytes()[..fraction.len().min(scale)];
    let mut value: i128 = 0;
    let zeros = std::iter::repeat_n(&b'0', scale - fraction.len());
    for digit in whole.as_bytes().iter().chain(fraction).chain(zeros) {
        if !digit.is_ascii_digit() {
            return Err(WRONG);
        }
        value = value
            .checked_mul(10)
            .and_then(|v| v.checked_add(i128::from(digit - b'0')))
            .ok_or(TOO_LARGE)?;
    }
    if value >= 10i128.pow(u32::from(precision)) {
        return Err(TOO_LARGE);
    }
    Ok(if negative { -value } else { value })
}

fn list(
    element: &arrow_schema::FieldRef,
    ty: &LogicalType,
    cells: &[Cell<'_>],
) -> Result<ArrayRef, Unholdable> {
    let mut elements = ColumnBuilder::new(0, ty);
    let mut lengths = Vec::with_capacity(cells.len());
    let mut nulls = NullBufferBuilder::new(cells.len());
    each(cells, Special::Refused, |cell| {
        let Some(Known::Cell(column, at)) = cell else {
            lengths.push(0);
            nulls.append_null();
            return Ok(());
        };
        let bytes = column.bytes(at).ok_or("a value of another type")?;
        let list = pb::List::decode(bytes).map_err(|_| "an array that cannot be read")?;
        if list.dimensions.len() > 1 {
            return Err("an array with more than one dimension");
        }
        lengths.push(list.elements.len());
        nulls.append_non_null();
        list.elements
            .iter()
            .try_for_each(|cell| view::push_cell(&mut elements, ty, cell))
            .map_err(|_| "an array element of another type")
    })?;
    let values = match elements.read() {
        Some(column) => {
            let cells: Vec<Cell<'_>> = (0..column.cells()).map(|at| Some((&column, at))).collect();
            array(element.data_type(), ty, &cells).map_err(|error| Unholdable {
                // Which element it is does not matter: the row is the one whose list reaches it.
                at: row_of(&lengths, error.at),
                what: error.what,
            })?
        }
        None => arrow_array::new_empty_array(element.data_type()),
    };
    Ok(Arc::new(ListArray::new(
        Arc::clone(element),
        OffsetBuffer::from_lengths(lengths),
        values,
        nulls.finish(),
    )))
}

fn row_of(lengths: &[usize], element: usize) -> usize {
    let mut end = 0;
    let row = lengths.iter().position(|len| {
        end += len;
        element < end
    });
    row.unwrap_or_default()
}

/// Appends a form of a row's values that is equal for equal values of the lake's types and differs for
/// different ones: what keys are compared by, and rows of two readings.
pub(crate) fn write_canonical(array: &dyn Array, row: usize, out: &mut Vec<u8>) {
    write(array, row, out, 0.0);
}

/// The same, where 0 and -0 are different too.
pub(crate) fn write_exact(array: &dyn Array, row: usize, out: &mut Vec<u8>) {
    write(array, row, out, -0.0);
}

/// `zero` is what is added to floating-point numbers: 0 makes 0 of -0, and -0 changes nothing.
fn write(array: &dyn Array, row: usize, out: &mut Vec<u8>, zero: f32) {
    use arrow_array::cast::AsArray as _;
    if array.is_null(row) {
        out.push(0);
        return;
    }
    out.push(1);
    let mut bytes = |bytes: &[u8]| {
        out.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        out.extend_from_slice(bytes);
    };
    match array.data_type() {
        DataType::Boolean => out.push(u8::from(array.as_boolean().value(row))),
        DataType::Int32 => {
            out.extend_from_slice(&array.as_primitive::<Int32Type>().value(row).to_le_bytes())
        }
        DataType::Date32 => {
            out.extend_from_slice(&array.as_primitive::<Date32Type>().value(row).to_le_bytes())
        }
        DataType::Int64 => {
            out.extend_from_slice(&array.as_primitive::<Int64Type>().value(row).to_le_bytes())
        }
        DataType::Time64(_) => out.extend_from_slice(
            &array
                .as_primitive::<Time64MicrosecondType>()
                .value(row)
                .to_le_bytes(),
        ),
        DataType::Timestamp(_, _) => out.extend_from_slice(
            &array
                .as_primitive::<TimestampMicrosecondType>()
                .value(row)
                .to_le_bytes(),
        ),
        DataType::Float32 => {
            let value = array.as_primitive::<Float32Type>().value(row);
            let value = if value.is_nan() {
                f32::NAN
            } else {
                value + zero
            };
            out.extend_from_slice(&value.to_bits().to_le_bytes());
        }
        DataType::Float64 => {
            let value = array.as_primitive::<Float64Type>().value(row);
            let value = if value.is_nan() {
                f64::NAN
            } else {
                value + f64::from(zero)
            };
            out.extend_from_slice(&value.to_bits().to_le_bytes());
        }
        DataType::Decimal128(_, _) => out.extend_from_slice(
            &array
                .as_primitive::<arrow_array::types::Decimal128Type>()
                .value(row)
                .to_le_bytes(),
        ),
        DataType::Utf8 => bytes(array.as_string::<i32>().value(row).as_bytes()),
        DataType::LargeBinary => bytes(array.as_binary::<i64>().value(row)),
        DataType::FixedSizeBinary(_) => bytes(array.as_fixed_size_binary().value(row)),
        DataType::List(_) => {
            let items = array.as_list::<i32>().value(row);
            out.extend_from_slice(&(items.len() as u64).to_le_bytes());
            for item in 0..items.len() {
                write(&items, item, out, zero);
            }
        }
        other => unreachable!("the lake has no column of type {other}"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use arrow_array::cast::AsArray as _;

    use super::*;

    #[test]
    fn a_decimal_keeps_every_digit_or_is_refused() {
        assert_eq!(decimal("-12.5", 4, 2), Ok(-1250));
        assert_eq!(decimal("0", 38, 10), Ok(0));
        let nines = "9999999999999999999999999999.9999999999";
        assert_eq!(decimal(nines, 38, 10), Ok(10i128.pow(38) - 1));
        assert!(decimal("12.345", 10, 2).is_err());
        assert!(decimal("12.340", 10, 2).is_ok());
        assert!(decimal("123", 2, 0).is_err());
        assert!(decimal("1e5", 9, 0).is_err());
    }

    #[test]
    fn exact_bytes_tell_negative_zero_apart_and_canonical_ones_do_not() {
        let array =
            arrow_array::Float64Array::from(vec![Some(0.0), Some(-0.0), None, Some(f64::NAN)]);
        let bytes = |write: fn(&dyn Array, usize, &mut Vec<u8>), row| {
            let mut out = Vec::new();
            write(&array, row, &mut out);
            out
        };
        assert_eq!(bytes(write_canonical, 0), bytes(write_canonical, 1));
        assert_ne!(bytes(write_exact, 0), bytes(write_exact, 1));
        for row in [0, 2, 3] {
            assert_eq!(bytes(write_exact, row), bytes(write_canonical, row));
        }
    }

    #[test]
    fn a_special_value_is_text_where_the_column_is_text_and_refused_elsewhere() {
        let ty = LogicalType::Decimal {
            precision: 0,
            scale: 0,
        };
        let mut column = ColumnBuilder::new(1, &ty);
        column.push_bytes(b"1.50");
        column.push_presence(Presence::NaN);
        column.push_presence(Presence::Null);
        let column = column.read().unwrap();
        let cells: Vec<Cell<'_>> = (0..3).map(|at| Some((&column, at))).collect();
        let text = array(&DataType::Utf8, &ty, &cells).unwrap();
        let text: Vec<Option<&str>> = text.as_string::<i32>().iter().collect();
        assert_eq!(text, [Some("1.50"), Some("NaN"), None]);
        let refused = array(&DataType::Decimal128(10, 2), &ty, &cells).unwrap_err();
        assert_eq!((refused.at, refused.what), (1, "NaN"));
    }

    #[test]
    fn an_array_is_a_list_and_one_of_two_dimensions_is_refused() {
        let ty = LogicalType::Array(Box::new(LogicalType::Int32));
        let int = |v: i64| pb::Cell {
            kind: Some(pb::cell::Kind::Value(pb::Value {
                kind: Some(pb::value::Kind::Int(v)),
            })),
        };
        let null = view::presence_cell(Presence::Null);
        let dimension = |length| pb::Dimension {
            lower_bound: 1,
            length,
        };
        let flat = pb::List {
            dimensions: vec![dimension(2)],
            elements: vec![int(7), null],
        };
        let square = pb::List {
            dimensions: vec![dimension(1), dimension(1)],
            elements: vec![int(1)],
        };
        let mut column = ColumnBuilder::new(1, &ty);
        column.push_bytes(&flat.encode_to_vec());
        column.push_bytes(&pb::List::default().encode_to_vec());
        column.push_bytes(&square.encode_to_vec());
        let column = column.read().unwrap();
        let cells: Vec<Cell<'_>> = (0..3).map(|at| Some((&column, at))).collect();
        let to = DataType::List(Arc::new(Field::new("element", DataType::Int32, true)));
        let lists = array(&to, &ty, &cells[..2]).unwrap();
        assert_eq!(lists.as_list::<i32>().value_length(0), 2);
        assert_eq!(lists.as_list::<i32>().value_length(1), 0);
        assert_eq!(array(&to, &ty, &cells).unwrap_err().at, 2);
    }
}
