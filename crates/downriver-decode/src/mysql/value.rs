//! One value of a row: from its form in the binlog into its canonical cell.
//!
//! Source: MySQL's `mysys/decimal.cc`, `mysys/my_time.cc` and `Field::pack` in `sql/field.cc`.

use downriver_event::block::{ColumnBuilder, VALUE_BYTES_MAX};
use downriver_event::{LogicalType, Presence};

use super::charset::Charset;
use super::cursor::Cursor;
use super::declared::Declared;
use super::native::Native;
use super::table_map::Wire;
use super::{inflate, json};
use downriver_event::civil;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    #[error("ends before its last byte")]
    Cut,
    #[error("is not a valid {0}")]
    Invalid(&'static str),
    #[error("has bytes that are not {0}")]
    Charset(&'static str),
    #[error("has {0} bytes, more than the limit of {VALUE_BYTES_MAX}")]
    TooLarge(usize),
    #[error(
        "was changed in part, and the binlog does not have what it was before (binlog_row_image is not FULL in the session that changed it)"
    )]
    InPart,
}

/// How a column's values are read, and what they become.
#[derive(Clone, Debug)]
pub struct Plan {
    pub(super) wire: Wire,
    cell: Cell,
}

#[derive(Clone, Debug)]
enum Cell {
    /// The number as it is.
    Int32,
    Int64,
    /// An unsigned number that fits its cell with its own bytes only.
    Unsigned32,
    Unsigned64,
    /// The digits of an unsigned number of 64 bits.
    Digits,
    Bool,
    /// The wire's own form.
    Own,
    Text(Charset),
    /// Filled up with zeros to so many bytes.
    Padded(usize),
    Bytes,
    Labels(Vec<String>),
    Floats,
    Native(Native),
}

impl Plan {
    /// How values of this form become cells, and of which type. `None`: they are not understood.
    #[must_use]
    pub fn new(code: u8, wire: Wire, declared: Declared) -> (Self, LogicalType) {
        use super::table_map::code::{GEOMETRY, VECTOR};
        let Declared {
            unsigned,
            charset,
            labels,
            native,
        } = declared;
        let (cell, ty) = match wire {
            Wire::Integer(1) => (integer(unsigned), LogicalType::Int16),
            Wire::Integer(2) if !unsigned => (Cell::Int32, LogicalType::Int16),
            Wire::Integer(2 | 3) => (integer(unsigned), LogicalType::Int32),
            Wire::Integer(4) if !unsigned => (Cell::Int32, LogicalType::Int32),
            Wire::Integer(4) => (Cell::Unsigned64, LogicalType::Int64),
            Wire::Integer(_) if !unsigned => (Cell::Int64, LogicalType::Int64),
            Wire::Integer(_) => (Cell::Digits, UNSIGNED_64),
            Wire::Bits(1) => (Cell::Bool, LogicalType::Bool),
            Wire::Bits(..=63) => (Cell::Int64, LogicalType::Int64),
            Wire::Bits(_) => (Cell::Digits, UNSIGNED_64),
            Wire::Float => (Cell::Own, LogicalType::Float32),
            Wire::Double => (Cell::Own, LogicalType::Float64),
            Wire::Decimal { precision, scale } => (
                Cell::Own,
                LogicalType::Decimal {
                    precision: precision.into(),
                    scale: scale.into(),
                },
            ),
            Wire::Year => (Cell::Own, LogicalType::Int16),
            Wire::Date => (Cell::Own, LogicalType::Date),
            // It goes from -838 to 838 hours: no time of a day.
            Wire::Time(_) | Wire::OldTime => (Cell::Own, LogicalType::Other),
            Wire::Datetime(_) | Wire::OldDatetime => (Cell::Own, LogicalType::Timestamp),
            Wire::Timestamp(_) | Wire::OldTimestamp => (Cell::Own, LogicalType::TimestampTz),
            Wire::Enum(_) => {
                let ty = LogicalType::Enum {
                    labels: labels.clone(),
                };
                (Cell::Labels(labels), ty)
            }
            Wire::Set(_) => (Cell::Labels(labels), LogicalType::Text),
            Wire::Json(_) => (Cell::Own, LogicalType::Json),
            Wire::Bytes(_) if code == VECTOR => {
                let of = Box::new(LogicalType::Float32);
                (Cell::Floats, LogicalType::Array(of))
            }
            Wire::Bytes(_) if code == GEOMETRY => (Cell::Bytes, LogicalType::Bytes),
            Wire::Char(_) if let Some(native) = native => (
                Cell::Native(native),
                match native {
                    Native::Uuid => LogicalType::Uuid,
                    Native::Inet4 | Native::Inet6 => LogicalType::Other,
                },
            ),
            Wire::Char(_) | Wire::Bytes(_) | Wire::Compressed(_) => match (charset, wire) {
                (Some(charset), _) => (Cell::Text(charset), LogicalType::Text),
                (None, Wire::Char(len)) => (Cell::Padded(len.into()), LogicalType::Bytes),
                (None, _) => (Cell::Bytes, LogicalType::Bytes),
            },
        };
        (Self { wire, cell }, ty)
    }

    /// Reads a value from the front of a row.
    ///
    /// # Errors
    /// The bytes end too early, or are no value.
    #[inline]
    pub(super) fn push(
        &self,
        row: &mut Cursor<'_>,
        out: &mut ColumnBuilder,
        scratch: &mut Vec<u8>,
    ) -> Result<(), ValueError> {
        match self.wire {
            Wire::Integer(bytes) => {
                let value = row.uint(bytes.into()).ok_or(ValueError::Cut)?;
                self.push_integer(value, 8 * u32::from(bytes), out, scratch)
            }
            Wire::Bits(bits) => {
                let value = row.uint_be(usize::from(bits.div_ceil(8)));
                let value = value.ok_or(ValueError::Cut)?;
                self.push_integer(value, 64, out, scratch)
            }
            Wire::Float => {
                let bytes = row.array().ok_or(ValueError::Cut)?;
                out.push_f32(f32::from_le_bytes(bytes));
                Ok(())
            }
            Wire::Double => {
                let bytes = row.array().ok_or(ValueError::Cut)?;
                out.push_f64(f64::from_le_bytes(bytes));
                Ok(())
            }
            Wire::Decimal { precision, scale } => {
                scratch.clear();
                decimal(row, precision.into(), scale.into(), scratch)?;
                out.push_bytes(scratch);
                Ok(())
            }
            Wire::Year => {
                // 0 is the year 0000.
                let year = i32::from(row.u8().ok_or(ValueError::Cut)?);
                out.push_i32(if year == 0 { 0 } else { 1900 + year });
                Ok(())
            }
            Wire::Date => {
                let packed = row.uint(3).ok_or(ValueError::Cut)?;
                push_date(packed >> 9, packed >> 5 & 0xf, packed & 0x1f, out)
            }
            Wire::Time(digits) => {
                let bytes = fraction_bytes(digits);
                let packed = row.uint_be(3 + bytes).ok_or(ValueError::Cut)?;
                // Of the number with its fraction, so that it is right for negative ones too.
                let value = packed.cast_signed() - (0x80_0000 << (8 * bytes));
                let (whole, part) = split(value.unsigned_abs(), bytes);
                let clock = [whole >> 12 & 0x3ff, whole >> 6 & 0x3f, whole & 0x3f];
                push_time(value < 0, clock, part, digits, out, scratch)
            }
            Wire::OldTime => {
                let packed = row.uint(3).ok_or(ValueError::Cut)?.cast_signed();
                let packed = packed << 40 >> 40;
                let whole = packed.unsigned_abs();
                let clock = [whole / 10_000, whole / 100 % 100, whole % 100];
                push_time(packed < 0, clock, 0, 0, out, scratch)
            }
            Wire::Datetime(digits) => {
                let bytes = fraction_bytes(digits);
                let packed = row.uint_be(5 + bytes).ok_or(ValueError::Cut)?;
                let (whole, part) = split(packed, bytes);
                let (date, clock) = (whole >> 17 & 0x3f_ffff, whole & 0x1_ffff);
                push_datetime(
                    [date >> 5 & 0x1_ffff, date & 0x1f],
                    [clock >> 12, clock >> 6 & 0x3f, clock & 0x3f],
                    part,
                    out,
                )
            }
            Wire::OldDatetime => {
                let packed = row.u64().ok_or(ValueError::Cut)?;
                let (date, clock) = (packed / 1_000_000, packed % 1_000_000);
                let month = date / 10_000 * 13 + date / 100 % 100;
                push_datetime(
                    [month, date % 100],
                    [clock / 10_000, clock / 100 % 100, clock % 100],
                    0,
                    out,
                )
            }
            Wire::Timestamp(digits) => {
                let bytes = fraction_bytes(digits);
                let packed = row.uint_be(4 + bytes).ok_or(ValueError::Cut)?;
                let (seconds, part) = split(packed, bytes);
                push_instant(seconds, part, out);
                Ok(())
            }
            Wire::OldTimestamp => {
                let seconds = row.u32().ok_or(ValueError::Cut)?;
                push_instant(seconds.into(), 0, out);
                Ok(())
            }
            Wire::Enum(bytes) => {
                let number = row.uint(bytes.into()).ok_or(ValueError::Cut)?;
                self.push_label(number, out)
            }
            Wire::Set(bytes) => {
                let members = row.uint(bytes.into()).ok_or(ValueError::Cut)?;
                self.push_set(members, out, scratch)
            }
            Wire::Char(max) => {
                let bytes = prefixed(row, if max > 255 { 2 } else { 1 })?;
                self.push_text(bytes, out, scratch)
            }
            Wire::Bytes(length) => {
                let bytes = prefixed(row, length)?;
                self.push_text(bytes, out, scratch)
            }
            Wire::Compressed(length) => {
                let stored = prefixed(row, length)?;
                let mut inflated = std::mem::take(scratch);
                let pushed = inflate::value(stored, &mut inflated)
                    .and_then(|bytes| self.push_text(bytes, out, scratch));
                *scratch = inflated;
                pushed
            }
            Wire::Json(length) => {
                let bytes = prefixed(row, length)?;
                scratch.clear();
                json::write(bytes, scratch)?;
                check_size(scratch.len())?;
                out.push_bytes(scratch);
                Ok(())
            }
        }
    }

    /// The type that the binlog has in the form of bytes.
    pub(super) fn native(&self) -> Option<Native> {
        match self.cell {
            Cell::Native(native) => Some(native),
            _ => None,
        }
    }

    /// Whether the values are documents that may be changed in part.
    pub(super) fn is_document(&self) -> bool {
        matches!(self.wire, Wire::Json(_))
    }

    /// Reads the changes of a document from the front of a row, and the document as it was from another.
    pub(super) fn push_changed(
        &self,
        before: &mut Cursor<'_>,
        row: &mut Cursor<'_>,
        out: &mut ColumnBuilder,
        scratch: &mut Vec<u8>,
    ) -> Result<(), ValueError> {
        let Wire::Json(length) = self.wire else {
            return Err(ValueError::Invalid("JSON document"));
        };
        let document = prefixed(before, length)?;
        scratch.clear();
        json::write_changed(document, row, scratch)?;
        check_size(scratch.len())?;
        out.push_bytes(scratch);
        Ok(())
    }

    #[inline]
    pub(super) fn push_integer(
        &self,
        value: u64,
        bits: u32,
        out: &mut ColumnBuilder,
        scratch: &mut Vec<u8>,
    ) -> Result<(), ValueError> {
        let signed = (value << (64 - bits)).cast_signed() >> (64 - bits);
        match self.cell {
            Cell::Int32 => out.push_i32(i32::try_from(signed).expect("it has at most 4 bytes")),
            Cell::Int64 => out.push_i64(signed),
            Cell::Unsigned32 => out.push_i32(i32::try_from(value).expect("it has under 4 bytes")),
            Cell::Unsigned64 => out.push_i64(value.cast_signed()),
            Cell::Bool => out.push_bool(value != 0),
            Cell::Digits => {
                scratch.clear();
                push_number(value, 1, scratch);
                out.push_bytes(scratch);
            }
            _ => return Err(ValueError::Invalid("number")),
        }
        Ok(())
    }

    pub(super) fn push_label(
        &self,
        number: u64,
        out: &mut ColumnBuilder,
    ) -> Result<(), ValueError> {
        let Cell::Labels(labels) = &self.cell else {
            return Err(ValueError::Invalid("enumeration"));
        };
        // 0 is what the server puts for an invalid value.
        let label = match number.checked_sub(1).map(usize::try_from) {
            None => "",
            Some(Ok(at)) => labels.get(at).ok_or(ValueError::Invalid("label"))?,
            Some(Err(_)) => return Err(ValueError::Invalid("label")),
        };
        out.push_bytes(label.as_bytes());
        Ok(())
    }

    pub(super) fn push_set(
        &self,
        members: u64,
        out: &mut ColumnBuilder,
        scratch: &mut Vec<u8>,
    ) -> Result<(), ValueError> {
        let Cell::Labels(labels) = &self.cell else {
            return Err(ValueError::Invalid("set"));
        };
        scratch.clear();
        for at in (0..64).filter(|at| members >> at & 1 == 1) {
            let label = labels.get(at).ok_or(ValueError::Invalid("label"))?;
            if !scratch.is_empty() {
                scratch.push(b',');
            }
            scratch.extend_from_slice(label.as_bytes());
        }
        out.push_bytes(scratch);
        Ok(())
    }

    pub(super) fn push_text(
        &self,
        bytes: &[u8],
        out: &mut ColumnBuilder,
        scratch: &mut Vec<u8>,
    ) -> Result<(), ValueError> {
        check_size(bytes.len())?;
        match &self.cell {
            Cell::Text(charset) => {
                let text = charset.decode(bytes);
                let text = text.ok_or(ValueError::Charset(charset.name()))?;
                check_size(text.len())?;
                out.push_bytes(text.as_bytes());
            }
            Cell::Padded(len) if bytes.len() < *len => {
                scratch.clear();
                scratch.extend_from_slice(bytes);
                scratch.resize(*len, 0);
                out.push_bytes(scratch);
            }
            Cell::Padded(_) | Cell::Bytes => out.push_bytes(bytes),
            Cell::Native(native) => native.push(bytes, out)?,
            Cell::Floats => {
                let (floats, []) = bytes.as_chunks::<4>() else {
                    return Err(ValueError::Invalid("vector"));
                };
                super::push_floats(floats.iter().map(|f| f32::from_le_bytes(*f)), out);
            }
            _ => return Err(ValueError::Invalid("text")),
        }
        Ok(())
    }
}

const UNSIGNED_64: LogicalType = LogicalType::Decimal {
    precision: 20,
    scale: 0,
};

fn integer(unsigned: bool) -> Cell {
    match unsigned {
        true => Cell::Unsigned32,
        false => Cell::Int32,
    }
}

pub(super) fn check_size(bytes: usize) -> Result<(), ValueError> {
    match bytes > VALUE_BYTES_MAX {
        true => Err(ValueError::TooLarge(bytes)),
        false => Ok(()),
    }
}

fn prefixed<'a>(row: &mut Cursor<'a>, length: u8) -> Result<&'a [u8], ValueError> {
    let len = row.uint(length.into()).ok_or(ValueError::Cut)?;
    let len = usize::try_from(len).map_err(|_| ValueError::Cut)?;
    row.take(len).ok_or(ValueError::Cut)
}

fn fraction_bytes(digits: u8) -> usize {
    usize::from(digits.min(6)).div_ceil(2)
}

/// A packed number with its fraction, which has two digits in each of so many bytes: the number, and microseconds.
pub(super) fn split(packed: u64, bytes: usize) -> (u64, u64) {
    let part = packed & !(u64::MAX << (8 * bytes));
    let micros = part * [1, 10_000, 100, 1][bytes.min(3)];
    (packed >> (8 * bytes), micros)
}

/// Zero in any part of it makes it a zero date.
pub(super) fn push_date(
    year: u64,
    month: u64,
    day: u64,
    out: &mut ColumnBuilder,
) -> Result<(), ValueError> {
    if month == 0 || day == 0 {
        out.push_presence(Presence::ZeroDate);
        return Ok(());
    }
    out.push_i32(days(year, month, day)?);
    Ok(())
}

fn days(year: u64, month: u64, day: u64) -> Result<i32, ValueError> {
    let small = |number: u64| u32::try_from(number).ok();
    let days = || civil::days(i64::try_from(year).ok()?, small(month)?, small(day)?);
    days().ok_or(ValueError::Invalid("date"))
}

/// Years times 13 and months, and days; hours, minutes and seconds; microseconds.
pub(super) fn push_datetime(
    [months, day]: [u64; 2],
    [hour, minute, second]: [u64; 3],
    micros: u64,
    out: &mut ColumnBuilder,
) -> Result<(), ValueError> {
    let (year, month) = (months / 13, months % 13);
    if month == 0 || day == 0 {
        out.push_presence(Presence::ZeroDate);
        return Ok(());
    }
    if hour > 23 || minute > 59 || second > 59 || micros > 999_999 {
        return Err(ValueError::Invalid("datetime"));
    }
    let seconds = (hour * 60 + minute) * 60 + second;
    let of_day = i64::try_from(seconds * 1_000_000 + micros).expect("under a day");
    let days = i64::from(days(year, month, day)?);
    let at = days
        .checked_mul(86_400_000_000)
        .and_then(|at| at.checked_add(of_day));
    out.push_i64(at.ok_or(ValueError::Invalid("datetime"))?);
    Ok(())
}

/// Second 0 is no instant but the zero date.
fn push_instant(seconds: u64, micros: u64, out: &mut ColumnBuilder) {
    if seconds == 0 && micros == 0 {
        out.push_presence(Presence::ZeroDate);
    } else {
        let micros = seconds * 1_000_000 + micros;
        out.push_i64(i64::try_from(micros).expect("seconds have at most 5 bytes"));
    }
}

/// As the server shows it: `-838:59:59.999999`.
pub(super) fn push_time(
    is_negative: bool,
    [hour, minute, second]: [u64; 3],
    micros: u64,
    digits: u8,
    out: &mut ColumnBuilder,
    scratch: &mut Vec<u8>,
) -> Result<(), ValueError> {
    if minute > 59 || second > 59 || micros > 999_999 {
        return Err(ValueError::Invalid("time"));
    }
    scratch.clear();
    write_time(is_negative, [hour, minute, second], micros, digits, scratch);
    out.push_bytes(scratch);
    Ok(())
}

pub(super) fn write_time(
    is_negative: bool,
    [hour, minute, second]: [u64; 3],
    micros: u64,
    digits: u8,
    out: &mut Vec<u8>,
) {
    if is_negative {
        out.push(b'-');
    }
    push_number(hour, 2, out);
    out.push(b':');
    push_number(minute, 2, out);
    out.push(b':');
    push_number(second, 2, out);
    write_fraction(micros, digits, out);
}

/// So many of a second's digits.
pub(super) fn write_fraction(micros: u64, digits: u8, out: &mut Vec<u8>) {
    if digits == 0 {
        return;
    }
    out.push(b'.');
    let from = out.len();
    push_number(micros, 6, out);
    out.truncate(from + usize::from(digits));
}

/// At least so many digits.
pub(super) fn push_number(mut number: u64, width: usize, out: &mut Vec<u8>) {
    let mut digits = [b'0'; 20];
    let mut at = digits.len();
    while number > 0 || digits.len() - at < width {
        at -= 1;
        digits[at] = b'0' + u8::try_from(number % 10).expect("a digit");
        number /= 10;
    }
    out.extend_from_slice(&digits[at..]);
}

/// Digits as the server prints them, without the zeros in front that `zerofill` adds.
pub(super) fn write_decimal(printed: &[u8], out: &mut Vec<u8>) -> Result<(), ValueError> {
    let (sign, digits) = match printed.strip_prefix(b"-") {
        Some(digits) => (&b"-"[..], digits),
        None => (&b""[..], printed),
    };
    let is_decimal = |byte: &u8| byte.is_ascii_digit() || *byte == b'.';
    if !digits.first().is_some_and(u8::is_ascii_digit) || !digits.iter().all(is_decimal) {
        return Err(ValueError::Invalid("decimal"));
    }
    let zeros = digits.iter().take_while(|digit| **digit == b'0').count();
    let digits = match digits.get(zeros) {
        Some(digit) if digit.is_ascii_digit() => &digits[zeros..],
        // One stands before the point, or for nothing else.
        _ => &digits[zeros - 1..],
    };
    out.extend_from_slice(sign);
    out.extend_from_slice(digits);
    Ok(())
}

/// Digits lie in groups of nine in four bytes, counted from the point; the outermost groups have fewer of both. The first
/// bit says that the number is positive, and of a negative one every bit is inverted.
pub(super) fn decimal(
    row: &mut Cursor<'_>,
    precision: usize,
    scale: usize,
    out: &mut Vec<u8>,
) -> Result<(), ValueError> {
    const BYTES: [usize; 10] = [0, 1, 1, 2, 2, 3, 3, 4, 4, 4];
    const POWERS: [u64; 10] = [
        1,
        10,
        100,
        1_000,
        10_000,
        100_000,
        1_000_000,
        10_000_000,
        100_000_000,
        1_000_000_000,
    ];
    const DECIMAL_BYTES_MAX: usize = 40;
    const INVALID: ValueError = ValueError::Invalid("decimal");
    let whole = precision.checked_sub(scale).ok_or(INVALID)?;
    let bytes = whole / 9 * 4 + BYTES[whole % 9] + scale / 9 * 4 + BYTES[scale % 9];
    if !(1..=DECIMAL_BYTES_MAX).contains(&bytes) {
        return Err(INVALID);
    }
    let packed = row.take(bytes).ok_or(ValueError::Cut)?;
    let is_negative = packed[0] & 0x80 == 0;
    let mut inverted = 0;
    if is_negative {
        inverted = u64::MAX;
        out.push(b'-');
    }
    let mut digits = Cursor::new(packed);
    let mut is_first = true;
    let mut group = |count: usize| {
        let bytes = BYTES[count];
        let packed = digits.uint_be(bytes).ok_or(INVALID)?;
        let sign = match std::mem::take(&mut is_first) {
            true => 0x80 << (8 * (bytes - 1)),
            false => 0,
        };
        let number = (packed ^ sign ^ inverted) & !(u64::MAX << (8 * bytes));
        match number < POWERS[count] {
            true => Ok(number),
            false => Err(INVALID),
        }
    };
    // No zeros stand in front, unless there is nothing else.
    let mut is_begun = false;
    let partial = [whole % 9].into_iter().filter(|count| *count > 0);
    for count in partial.chain(std::iter::repeat_n(9, whole / 9)) {
        let number = group(count)?;
        if is_begun || number > 0 {
            push_number(number, if is_begun { count } else { 1 }, out);
            is_begun = true;
        }
    }
    if !is_begun {
        out.push(b'0');
    }
    if scale > 0 {
        out.push(b'.');
        for _ in 0..scale / 9 {
            push_number(group(9)?, 9, out);
        }
        if !scale.is_multiple_of(9) {
            push_number(group(scale % 9)?, scale % 9, out);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(packed: &[u8], precision: usize, scale: usize) -> Result<String, ValueError> {
        let (mut row, mut out) = (Cursor::new(packed), Vec::new());
        decimal(&mut row, precision, scale, &mut out)?;
        assert!(row.is_empty(), "{packed:x?} is read whole");
        Ok(String::from_utf8_lossy(&out).into_owned())
    }

    #[test]
    fn a_datetime_that_no_column_holds_is_an_error() {
        let mut out = ColumnBuilder::new(1, &LogicalType::Timestamp);
        let years = [9_999, 2_000_000, u64::MAX / 13];
        let told = years.map(|year| push_datetime([year * 13 + 1, 1], [0; 3], 0, &mut out).is_ok());
        assert_eq!(told, [true, false, false]);
    }

    #[test]
    fn a_decimal_has_the_digits_that_the_server_shows() {
        // The first two are the example of `decimal2bin` in the server's source.
        for (packed, precision, scale, text) in [
            (
                &b"\x81\x0d\xfb\x38\xd2\x04\xd2"[..],
                14,
                4,
                "1234567890.1234",
            ),
            (b"\x7e\xf2\x04\xc7\x2d\xfb\x2d", 14, 4, "-1234567890.1234"),
            (b"\x80\0\0\0\0\0", 12, 2, "0.00"),
            (b"\x80\0\0\0\x07\x05", 12, 2, "7.05"),
            (b"\x81\0\0\0\0\x63", 12, 2, "1000000000.99"),
            (b"\xb4", 2, 0, "52"),
            (b"\x4b", 2, 0, "-52"),
            (b"\x85", 1, 1, "0.5"),
            (b"\x7a", 1, 1, "-0.5"),
            (b"\x80\0\0\x01", 9, 0, "1"),
            (b"\x80\0\0\0\0\0\0\x09\x01", 20, 2, "9.01"),
        ] {
            let shown = shown(packed, precision, scale);
            assert_eq!(shown.as_deref(), Ok(text));
        }
    }

    #[test]
    fn what_is_no_decimal_is_refused() {
        let invalid = Err(ValueError::Invalid("decimal"));
        // A group of two digits has at most 99.
        assert_eq!(shown(b"\xe4", 2, 0), invalid);
        assert_eq!(shown(b"", 0, 0), invalid);
        assert_eq!(shown(b"\x80", 1, 2), invalid);
        assert_eq!(shown(b"\x80", 12, 2), Err(ValueError::Cut));
    }
}
