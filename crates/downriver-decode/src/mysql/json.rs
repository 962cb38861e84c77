//! MySQL's binary JSON into the text that the server shows.
//!
//! Source: MySQL's `sql-common/json_binary.h` for the form, and `Json_wrapper::to_string` in `sql-common/json_dom.cc` for
//! the text: `{"a": 1, "b": [true, null]}`.

use super::cursor::Cursor;
use super::table_map::code;
use super::value::{
    ValueError, check_size, decimal, push_number, split, write_fraction, write_time,
};

mod diff;

pub(super) use diff::write_changed;

const INVALID: ValueError = ValueError::Invalid("JSON document");
/// The server's own limit. Source: `JSON_DOCUMENT_MAX_DEPTH`.
const DEPTH_MAX: usize = 100;

mod kind {
    pub(super) const SMALL_OBJECT: u8 = 0;
    pub(super) const LARGE_OBJECT: u8 = 1;
    pub(super) const SMALL_ARRAY: u8 = 2;
    pub(super) const LARGE_ARRAY: u8 = 3;
    pub(super) const LITERAL: u8 = 4;
    pub(super) const INT16: u8 = 5;
    pub(super) const UINT16: u8 = 6;
    pub(super) const INT32: u8 = 7;
    pub(super) const UINT32: u8 = 8;
    pub(super) const INT64: u8 = 9;
    pub(super) const UINT64: u8 = 10;
    pub(super) const DOUBLE: u8 = 11;
    pub(super) const STRING: u8 = 12;
    pub(super) const OPAQUE: u8 = 15;
}

/// Writes a document's text behind what is there.
///
/// # Errors
/// The bytes are no document.
pub(super) fn write(document: &[u8], out: &mut Vec<u8>) -> Result<(), ValueError> {
    Value::parse(document).write(0, out)
}

/// A value where it lies: its kind, and the bytes from its beginning on.
#[derive(Clone, Copy, Debug)]
struct Value<'a> {
    kind: u8,
    bytes: &'a [u8],
}

impl<'a> Value<'a> {
    fn parse(document: &'a [u8]) -> Self {
        // What an interrupted update of an old server may leave is shown as null.
        let (kind, bytes) = document.split_first().unwrap_or((&kind::LITERAL, &[0]));
        Self { kind: *kind, bytes }
    }

    fn write(self, depth: usize, out: &mut Vec<u8>) -> Result<(), ValueError> {
        if let Some(members) = Members::of(self)? {
            return members.write(depth, out);
        }
        let mut cursor = Cursor::new(self.bytes);
        match self.kind {
            kind::STRING => {
                let len = varlen(&mut cursor)?;
                write_string(cursor.take(len).ok_or(INVALID)?, out);
                Ok(())
            }
            kind::OPAQUE => write_opaque(cursor, out),
            kind => write_scalar(kind, &mut cursor, out).ok_or(INVALID),
        }
    }
}

fn write_scalar(kind: u8, value: &mut Cursor<'_>, out: &mut Vec<u8>) -> Option<()> {
    let signed = |number: i64, out: &mut Vec<u8>| {
        if number < 0 {
            out.push(b'-');
        }
        push_number(number.unsigned_abs(), 1, out);
    };
    match kind {
        kind::LITERAL => out.extend_from_slice(match value.u8()? {
            0 => b"null",
            1 => b"true",
            2 => b"false",
            _ => return None,
        }),
        kind::INT16 => signed(value.u16()?.cast_signed().into(), out),
        kind::INT32 => signed(value.u32()?.cast_signed().into(), out),
        kind::INT64 => signed(value.u64()?.cast_signed(), out),
        kind::UINT16 => push_number(value.u16()?.into(), 1, out),
        kind::UINT32 => push_number(value.u32()?.into(), 1, out),
        kind::UINT64 => push_number(value.u64()?, 1, out),
        kind::DOUBLE => {
            let number = f64::from_le_bytes(value.array()?);
            write_double(Some(number).filter(|number| number.is_finite())?, out);
        }
        _ => return None,
    }
    Some(())
}

/// An object or an array: the number of its members, its bytes, the keys' places and lengths, the values' kinds and
/// places, all counted from its start and in numbers of `width` bytes; small values lie in the place of their place.
#[derive(Clone, Copy, Debug)]
struct Members<'a> {
    bytes: &'a [u8],
    width: usize,
    count: usize,
    is_object: bool,
    values_at: usize,
}

impl<'a> Members<'a> {
    /// `None`: the value has none.
    #[inline]
    fn of(value: Value<'a>) -> Result<Option<Self>, ValueError> {
        let (width, is_object) = match value.kind {
            kind::SMALL_OBJECT => (2, true),
            kind::LARGE_OBJECT => (4, true),
            kind::SMALL_ARRAY => (2, false),
            kind::LARGE_ARRAY => (4, false),
            _ => return Ok(None),
        };
        let mut head = Cursor::new(value.bytes);
        let mut number = || usize::try_from(head.uint(width)?).ok();
        let (count, bytes) = number().zip(number()).ok_or(INVALID)?;
        let mut members = Self {
            bytes: value.bytes.get(..bytes).ok_or(INVALID)?,
            width,
            count,
            is_object,
            values_at: 0,
        };
        let keys = count.checked_mul(members.key_bytes()).ok_or(INVALID)?;
        members.values_at = 2 * width + keys;
        // Each has a place of its own at least.
        let places = count.checked_mul(width + 1).ok_or(INVALID)?;
        match members.values_at.checked_add(places) {
            Some(end) if end <= bytes => Ok(Some(members)),
            _ => Err(INVALID),
        }
    }

    fn key_bytes(self) -> usize {
        if self.is_object { self.width + 2 } else { 0 }
    }

    fn entry(self, at: usize) -> Result<Cursor<'a>, ValueError> {
        self.bytes.get(at..).map(Cursor::new).ok_or(INVALID)
    }

    #[inline]
    fn key(self, member: usize) -> Result<&'a [u8], ValueError> {
        let mut key = self.entry(2 * self.width + member * self.key_bytes())?;
        let (from, len) = key.uint(self.width).zip(key.u16()).ok_or(INVALID)?;
        let from = usize::try_from(from).map_err(|_| INVALID)?;
        let key = self.bytes.get(from..).and_then(|key| key.get(..len.into()));
        key.ok_or(INVALID)
    }

    #[inline]
    fn value(self, member: usize) -> Result<Value<'a>, ValueError> {
        let mut found = self.entry(self.values_at + member * (self.width + 1))?;
        let kind = found.u8().ok_or(INVALID)?;
        let is_here = match kind {
            kind::LITERAL | kind::INT16 | kind::UINT16 => true,
            kind::INT32 | kind::UINT32 => self.width == 4,
            _ => false,
        };
        if is_here {
            let bytes = found.rest();
            return Ok(Value { kind, bytes });
        }
        let from = found.uint(self.width).ok_or(INVALID)?;
        let from = usize::try_from(from).map_err(|_| INVALID)?;
        let bytes = self.bytes.get(from..).ok_or(INVALID)?;
        Ok(Value { kind, bytes })
    }

    fn write(self, depth: usize, out: &mut Vec<u8>) -> Result<(), ValueError> {
        if depth >= DEPTH_MAX {
            return Err(INVALID);
        }
        out.push(if self.is_object { b'{' } else { b'[' });
        for member in 0..self.count {
            if member > 0 {
                out.extend_from_slice(b", ");
            }
            self.write_member(member, depth, out)?;
        }
        out.push(if self.is_object { b'}' } else { b']' });
        Ok(())
    }

    fn write_member(
        self,
        member: usize,
        depth: usize,
        out: &mut Vec<u8>,
    ) -> Result<(), ValueError> {
        // Members may lie in the same place, and so be many more than their bytes.
        check_size(out.len())?;
        if self.is_object {
            write_string(self.key(member)?, out);
            out.extend_from_slice(b": ");
        }
        self.value(member)?.write(depth + 1, out)
    }
}

/// Seven bits a byte, the lowest first; the eighth says that more follow.
fn varlen(cursor: &mut Cursor<'_>) -> Result<usize, ValueError> {
    let mut len = 0;
    for shift in (0..35).step_by(7) {
        let byte = cursor.u8().ok_or(INVALID)?;
        len |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return usize::try_from(len).map_err(|_| INVALID);
        }
    }
    Err(INVALID)
}

/// Source: `double_quote` in `sql-common/json_dom.cc`.
fn write_string(text: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    for byte in text {
        let escape = match byte {
            b'"' | b'\\' => *byte,
            0x08 => b'b',
            b'\t' => b't',
            b'\n' => b'n',
            0x0c => b'f',
            b'\r' => b'r',
            0..=0x1f => {
                const HEX: &[u8; 16] = b"0123456789abcdef";
                out.extend_from_slice(b"\\u00");
                out.extend([HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
                continue;
            }
            _ => {
                out.push(*byte);
                continue;
            }
        };
        out.extend([b'\\', escape]);
    }
    out.push(b'"');
}

/// The shortest digits that give the number again, as the server lays them out: always with a point or an exponent.
/// Source: `my_gcvt` in MySQL's `strings/dtoa.cc`, and `Json_double` in `Json_wrapper::to_string`.
fn write_double(number: f64, out: &mut Vec<u8>) {
    // Digits `d.ddd` and a power of ten.
    let shortest = format!("{:e}", number.abs());
    let (digits, exponent) = shortest.split_once('e').expect("so it is written");
    let exponent: i32 = exponent.parse().expect("a number");
    let digits = digits.replace('.', "");
    let count = i32::try_from(digits.len()).expect("under twenty");
    if number.is_sign_negative() {
        out.push(b'-');
    }
    let zeros = |count: i32| std::iter::repeat_n(b'0', usize::try_from(count).unwrap_or_default());
    // Where the point stands among the digits.
    let point = exponent + 1;
    if number == 0.0 {
        out.extend_from_slice(b"0.0");
    } else if point <= -FIXED_DIGITS || point > FIXED_DIGITS {
        out.push(digits.as_bytes()[0]);
        if count > 1 {
            out.push(b'.');
            out.extend_from_slice(&digits.as_bytes()[1..]);
        }
        out.extend_from_slice(format!("e{exponent}").as_bytes());
    } else if point <= 0 {
        out.extend_from_slice(b"0.");
        out.extend(zeros(-point));
        out.extend_from_slice(digits.as_bytes());
    } else if point >= count {
        out.extend_from_slice(digits.as_bytes());
        out.extend(zeros(point - count));
        out.extend_from_slice(b".0");
    } else {
        let (whole, part) = digits.split_at(usize::try_from(point).expect("positive"));
        out.extend_from_slice(whole.as_bytes());
        out.push(b'.');
        out.extend_from_slice(part.as_bytes());
    }
}

/// With more digits before the point, or as many zeros behind it, the server writes an exponent.
const FIXED_DIGITS: i32 = 15;

/// A value of one of the server's own types, which JSON does not have.
fn write_opaque(mut value: Cursor<'_>, out: &mut Vec<u8>) -> Result<(), ValueError> {
    let ty = value.u8().ok_or(INVALID)?;
    let len = varlen(&mut value)?;
    let bytes = value.take(len).ok_or(INVALID)?;
    let mut value = Cursor::new(bytes);
    match ty {
        code::NEWDECIMAL => {
            let (precision, scale) = value.u8().zip(value.u8()).ok_or(INVALID)?;
            decimal(&mut value, precision.into(), scale.into(), out)
        }
        code::DATE | code::DATETIME | code::TIMESTAMP | code::TIME => {
            let packed = value.u64().ok_or(INVALID)?.cast_signed();
            out.push(b'"');
            write_packed(ty, packed, out);
            out.push(b'"');
            Ok(())
        }
        _ => {
            out.extend_from_slice(format!("\"base64:type{ty}:").as_bytes());
            write_base64(bytes, out);
            out.push(b'"');
            Ok(())
        }
    }
}

/// Source: `TIME_from_longlong_packed` in MySQL's `mysys/my_time.cc`: a day, an instant or a time in one number, its low
/// 24 bits microseconds.
fn write_packed(ty: u8, packed: i64, out: &mut Vec<u8>) {
    let (whole, micros) = split(packed.unsigned_abs(), 3);
    if ty == code::TIME {
        let clock = [whole >> 12 & 0x3ff, whole >> 6 & 0x3f, whole & 0x3f];
        return write_time(packed < 0, clock, micros, 6, out);
    }
    let (date, clock) = (whole >> 17, whole & 0x1_ffff);
    let months = date >> 5;
    push_number(months / 13, 4, out);
    out.push(b'-');
    push_number(months % 13, 2, out);
    out.push(b'-');
    push_number(date & 0x1f, 2, out);
    if ty == code::DATE {
        return;
    }
    out.push(b' ');
    let clock = [clock >> 12, clock >> 6 & 0x3f, clock & 0x3f];
    write_time(false, clock, 0, 0, out);
    write_fraction(micros, 6, out);
}

fn write_base64(bytes: &[u8], out: &mut Vec<u8>) {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for chunk in bytes.chunks(3) {
        let mut three = [0; 3];
        three[..chunk.len()].copy_from_slice(chunk);
        let bits = u32::from_be_bytes([0, three[0], three[1], three[2]]);
        for digit in 0..4 {
            let at = bits >> (18 - 6 * digit) & 63;
            out.push(match digit <= chunk.len() {
                true => DIGITS[at as usize],
                false => b'=',
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_is_none_is_refused() {
        let shown = |number: f64| {
            let mut document = vec![kind::DOUBLE];
            document.extend(number.to_le_bytes());
            let mut out = Vec::new();
            write(&document, &mut out).map(|()| String::from_utf8_lossy(&out).into_owned())
        };
        assert_eq!(shown(1.5).as_deref(), Ok("1.5"));
        for number in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            assert_eq!(shown(number), Err(INVALID));
        }
    }
}
