//! Values as PostgreSQL prints them, with the settings that every session of ours pins: DateStyle ISO,
//! IntervalStyle postgres, bytea_output hex, extra_float_digits 3, TimeZone UTC, client_encoding UTF8,
//! lc_monetary C.

use downriver_event::block::{ColumnBuilder, VALUE_BYTES_MAX};
use downriver_event::{LogicalType, Presence, civil, pb};
use prost::Message as _;

use super::ValueError;
use crate::hex;

/// Pushes one value.
///
/// # Errors
/// The text is not one of the type; nothing was pushed.
#[inline]
pub fn push(ty: &LogicalType, text: &[u8], out: &mut ColumnBuilder) -> Result<(), ValueError> {
    match ty {
        LogicalType::Int16 => out.push_i32(i32::from(integer::<i16>(text, "smallint")?)),
        LogicalType::Int32 => out.push_i32(integer(text, "integer")?),
        LogicalType::Int64 => out.push_i64(integer(text, "bigint")?),
        LogicalType::Text | LogicalType::Json | LogicalType::Enum { .. } | LogicalType::Other => {
            utf8(text)?;
            out.push_bytes(text);
        }
        LogicalType::Timestamp | LogicalType::TimestampTz => match text {
            b"infinity" => out.push_presence(Presence::PositiveInfinity),
            b"-infinity" => out.push_presence(Presence::NegativeInfinity),
            _ => out.push_i64(timestamp(text, *ty == LogicalType::TimestampTz)?),
        },
        LogicalType::Decimal { .. } => match text {
            b"NaN" => out.push_presence(Presence::NaN),
            b"Infinity" => out.push_presence(Presence::PositiveInfinity),
            b"-Infinity" => out.push_presence(Presence::NegativeInfinity),
            [b'$', digits @ ..] => push_money(b"", digits, out)?,
            [b'-', b'$', digits @ ..] => push_money(b"-", digits, out)?,
            _ => {
                decimal(text)?;
                out.push_bytes(text);
            }
        },
        LogicalType::Bool => match text {
            b"t" => out.push_bool(true),
            b"f" => out.push_bool(false),
            _ => return Err(ValueError::Invalid("boolean")),
        },
        LogicalType::Float32 => out.push_f32(float(text, "real")?),
        LogicalType::Float64 => out.push_f64(float(text, "double precision")?),
        LogicalType::Bytes => out.push_bytes(&bytea(text)?),
        LogicalType::Uuid => out.push_fixed16(&hex::uuid(text).ok_or(ValueError::Invalid("uuid"))?),
        LogicalType::Date => match text {
            b"infinity" => out.push_presence(Presence::PositiveInfinity),
            b"-infinity" => out.push_presence(Presence::NegativeInfinity),
            _ => out.push_i32(date(text)?),
        },
        LogicalType::Time => out.push_i64(time(text).ok_or(ValueError::Invalid("time"))?),
        LogicalType::Interval => {
            let (months, days, micros) = match text {
                b"infinity" => (i32::MAX, i32::MAX, i64::MAX),
                b"-infinity" => (i32::MIN, i32::MIN, i64::MIN),
                _ => interval(text)?,
            };
            super::push_interval(months, days, micros, out);
        }
        LogicalType::Array(element) => {
            let list = array(element, utf8(text)?)?.encode_to_vec();
            if list.len() > VALUE_BYTES_MAX {
                return Err(ValueError::TooLarge(list.len()));
            }
            out.push_bytes(&list);
        }
    }
    Ok(())
}

/// The constant of a mask, as [`push`] reads it.
///
/// # Errors
/// What it is not.
pub(crate) fn constant(
    ty: &LogicalType,
    text: &[u8],
    out: &mut ColumnBuilder,
) -> Result<(), String> {
    push(ty, text, out).map_err(|error| error.to_string())
}

fn utf8(text: &[u8]) -> Result<&str, ValueError> {
    if text.len() > VALUE_BYTES_MAX {
        return Err(ValueError::TooLarge(text.len()));
    }
    std::str::from_utf8(text).map_err(|_| ValueError::NotUtf8)
}

/// Digits with an optional sign, without `str` in between.
#[inline]
fn integer<T: TryFrom<i64>>(text: &[u8], name: &'static str) -> Result<T, ValueError> {
    let invalid = ValueError::Invalid(name);
    let (negative, digits) = match text {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    if digits.is_empty() || digits.len() > 19 {
        return Err(invalid);
    }
    let mut value = 0i64;
    for digit in digits {
        let digit = digit.wrapping_sub(b'0');
        if digit > 9 {
            return Err(invalid);
        }
        // Downwards, so that the smallest value fits.
        value = match value
            .checked_mul(10)
            .and_then(|v| v.checked_sub(i64::from(digit)))
        {
            Some(value) => value,
            None => return Err(invalid),
        };
    }
    let value = if negative {
        Some(value)
    } else {
        value.checked_neg()
    };
    value
        .and_then(|value| T::try_from(value).ok())
        .ok_or(invalid)
}

fn float<T: std::str::FromStr>(text: &[u8], name: &'static str) -> Result<T, ValueError> {
    let text = utf8(text)?;
    text.parse().map_err(|_| ValueError::Invalid(name))
}

/// Checks `-?digits[.digits]`, the only form that numeric prints.
#[inline]
fn decimal(text: &[u8]) -> Result<(), ValueError> {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    let mut points = 0;
    for byte in digits {
        match byte {
            b'0'..=b'9' => {}
            b'.' => points += 1,
            _ => return Err(ValueError::Invalid("numeric")),
        }
    }
    let ends = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_digit);
    if points > 1 || !ends(digits.first()) || !ends(digits.last()) {
        return Err(ValueError::Invalid("numeric"));
    }
    Ok(())
}

/// `-$1,234.50`, by its sign and what follows the `$`, as numeric would print it.
fn push_money(sign: &[u8], digits: &[u8], out: &mut ColumnBuilder) -> Result<(), ValueError> {
    let digits: Vec<u8> = digits
        .iter()
        .copied()
        .filter(|byte| *byte != b',')
        .collect();
    if !digits.first().is_some_and(u8::is_ascii_digit) {
        return Err(ValueError::Invalid("money"));
    }
    let text = [sign, &digits].concat();
    decimal(&text)?;
    out.push_bytes(&text);
    Ok(())
}

fn bytea(text: &[u8]) -> Result<Vec<u8>, ValueError> {
    let invalid = ValueError::Invalid("bytea");
    let Some(digits) = text.strip_prefix(b"\\x") else {
        return Err(invalid);
    };
    if digits.len() / 2 > VALUE_BYTES_MAX {
        return Err(ValueError::TooLarge(digits.len() / 2));
    }
    let (pairs, []) = digits.as_chunks::<2>() else {
        return Err(invalid);
    };
    pairs
        .iter()
        .map(|pair| hex::pair(*pair).ok_or(ValueError::Invalid("bytea")))
        .collect()
}

#[inline]
fn two(text: &[u8]) -> Option<i64> {
    match text {
        [a @ b'0'..=b'9', b @ b'0'..=b'9'] => Some(i64::from(a - b'0') * 10 + i64::from(b - b'0')),
        _ => None,
    }
}

/// `YYYY-MM-DD`, the year of four digits or more.
#[inline]
fn date_part(text: &[u8], before_christ: bool) -> Option<i32> {
    let len = text.len();
    if len < 10 || text[len - 3] != b'-' || text[len - 6] != b'-' {
        return None;
    }
    let year: i64 = integer(&text[..len - 6], "date").ok()?;
    let (month, day) = (two(&text[len - 5..len - 3])?, two(&text[len - 2..])?);
    let year = if before_christ { 1 - year } else { year };
    civil::days(year, u32::try_from(month).ok()?, u32::try_from(day).ok()?)
}

fn date(text: &[u8]) -> Result<i32, ValueError> {
    let (text, bc) = match text.strip_suffix(b" BC") {
        Some(text) => (text, true),
        None => (text, false),
    };
    date_part(text, bc).ok_or(ValueError::Invalid("date"))
}

/// `HH:MM:SS[.ffffff]`, up to `24:00:00`, in microseconds.
#[inline]
fn time(text: &[u8]) -> Option<i64> {
    if text.len() < 8 || text[2] != b':' || text[5] != b':' {
        return None;
    }
    let seconds = two(&text[..2])? * 3600 + two(&text[3..5])? * 60 + two(&text[6..8])?;
    let micros = match &text[8..] {
        [] => 0,
        [b'.', fraction @ ..] => fraction_us(fraction)?,
        _ => return None,
    };
    let total = seconds * 1_000_000 + micros;
    (total <= 86_400_000_000).then_some(total)
}

/// Up to six digits after the point.
#[inline]
fn fraction_us(digits: &[u8]) -> Option<i64> {
    if digits.is_empty() || digits.len() > 6 {
        return None;
    }
    let mut value = 0;
    for at in 0..6 {
        let digit = digits.get(at).map_or(0, |byte| byte.wrapping_sub(b'0'));
        if digit > 9 {
            return None;
        }
        value = value * 10 + i64::from(digit);
    }
    Some(value)
}

#[inline]
fn timestamp(text: &[u8], zoned: bool) -> Result<i64, ValueError> {
    let invalid = ValueError::Invalid(if zoned { "timestamptz" } else { "timestamp" });
    let parse = || {
        let (text, bc) = match text.strip_suffix(b" BC") {
            Some(text) => (text, true),
            None => (text, false),
        };
        let text = if zoned {
            text.strip_suffix(b"+00")?
        } else {
            text
        };
        let space = text.iter().position(|byte| *byte == b' ')?;
        Some((date_part(&text[..space], bc)?, time(&text[space + 1..])?))
    };
    let (days, time) = parse().ok_or(invalid)?;
    let midnight = i64::from(days).checked_mul(86_400_000_000);
    midnight
        .and_then(|midnight| midnight.checked_add(time))
        .ok_or(ValueError::TooLate)
}

/// IntervalStyle postgres: `1 year 2 mons -3 days -04:05:06.789`.
fn interval(text: &[u8]) -> Result<(i32, i32, i64), ValueError> {
    let parse = || {
        let text = std::str::from_utf8(text).ok()?;
        let (mut months, mut days, mut micros) = (0i64, 0i64, 0i64);
        let mut words = text.split(' ');
        while let Some(word) = words.next() {
            if word.contains(':') {
                micros = clock(word)?;
                break;
            }
            let value: i64 = word.strip_prefix('+').unwrap_or(word).parse().ok()?;
            match words.next()? {
                "year" | "years" => months = months.checked_add(value.checked_mul(12)?)?,
                "mon" | "mons" => months = months.checked_add(value)?,
                "day" | "days" => days = value,
                _ => return None,
            }
        }
        if words.next().is_some() {
            return None;
        }
        Some((
            i32::try_from(months).ok()?,
            i32::try_from(days).ok()?,
            micros,
        ))
    };
    parse().ok_or(ValueError::Invalid("interval"))
}

/// `[+-]H..H:MM:SS[.ffffff]`, hours of any count.
fn clock(text: &str) -> Option<i64> {
    let (sign, text) = match text.strip_prefix('-') {
        Some(text) => (-1, text),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    let mut parts = text.split(':');
    let hours: i64 = parts.next()?.parse().ok()?;
    let minutes = two(parts.next()?.as_bytes())?;
    let seconds = parts.next()?.as_bytes();
    if parts.next().is_some() || seconds.len() < 2 {
        return None;
    }
    let micros = match &seconds[2..] {
        [] => 0,
        [b'.', fraction @ ..] => fraction_us(fraction)?,
        _ => return None,
    };
    let seconds = two(&seconds[..2])?;
    // Downwards, so that the smallest interval fits.
    let total = hours
        .checked_mul(-3_600_000_000)?
        .checked_sub(minutes * 60_000_000 + seconds * 1_000_000 + micros)?;
    if sign < 0 {
        Some(total)
    } else {
        total.checked_neg()
    }
}

/// `{…}`, with `[l:u]…=` before it where a bound is not 1.
fn array(element: &LogicalType, text: &str) -> Result<pb::List, ValueError> {
    let mut parser = ArrayParser {
        rest: text,
        element,
        list: pb::List::default(),
        lengths: Vec::new(),
    };
    let bounds = parser.bounds()?;
    parser.level(0)?;
    if !parser.rest.is_empty() {
        return Err(INVALID_ARRAY);
    }
    let ArrayParser {
        mut list, lengths, ..
    } = parser;
    if !list.elements.is_empty() {
        if !bounds.is_empty() && bounds.len() != lengths.len() {
            return Err(INVALID_ARRAY);
        }
        list.dimensions = lengths
            .iter()
            .enumerate()
            .map(|(at, length)| pb::Dimension {
                lower_bound: bounds.get(at).copied().unwrap_or(1),
                length: *length,
            })
            .collect();
    }
    Ok(list)
}

const INVALID_ARRAY: ValueError = ValueError::Invalid("array");
const DIMENSIONS_MAX: usize = 6;

struct ArrayParser<'a> {
    rest: &'a str,
    element: &'a LogicalType,
    list: pb::List,
    /// Length of each dimension, once its first row was read.
    lengths: Vec<u32>,
}

impl ArrayParser<'_> {
    fn bounds(&mut self) -> Result<Vec<i32>, ValueError> {
        let mut bounds = Vec::new();
        if !self.rest.starts_with('[') {
            return Ok(bounds);
        }
        let (head, rest) = self.rest.split_once('=').ok_or(INVALID_ARRAY)?;
        for dimension in head.split_inclusive(']') {
            let inner = dimension
                .strip_prefix('[')
                .and_then(|d| d.strip_suffix(']'));
            let (lower, _) = inner
                .and_then(|inner| inner.split_once(':'))
                .ok_or(INVALID_ARRAY)?;
            bounds.push(lower.parse().map_err(|_| INVALID_ARRAY)?);
        }
        self.rest = rest;
        Ok(bounds)
    }

    fn eat(&mut self, token: char) -> bool {
        match self.rest.strip_prefix(token) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn level(&mut self, depth: usize) -> Result<(), ValueError> {
        if depth >= DIMENSIONS_MAX || !self.eat('{') {
            return Err(INVALID_ARRAY);
        }
        if self.eat('}') {
            return Ok(());
        }
        if self.lengths.len() == depth {
            self.lengths.push(0);
        }
        let mut count = 0;
        loop {
            if self.rest.starts_with('{') {
                self.level(depth + 1)?;
            } else {
                self.item()?;
            }
            count += 1;
            if self.eat('}') {
                break;
            }
            if !self.eat(',') {
                return Err(INVALID_ARRAY);
            }
        }
        match &mut self.lengths[depth] {
            0 => self.lengths[depth] = count,
            length if *length == count => {}
            _ => return Err(INVALID_ARRAY),
        }
        Ok(())
    }

    fn item(&mut self) -> Result<(), ValueError> {
        let cell = if self.eat('"') {
            let mut text = String::new();
            let mut chars = self.rest.char_indices();
            loop {
                match chars.next().ok_or(INVALID_ARRAY)? {
                    (at, '"') => {
                        self.rest = &self.rest[at + 1..];
                        break;
                    }
                    (_, '\\') => text.push(chars.next().ok_or(INVALID_ARRAY)?.1),
                    (_, other) => text.push(other),
                }
            }
            cell(self.element, text.as_bytes())?
        } else {
            let end = self.rest.find([',', '}']).ok_or(INVALID_ARRAY)?;
            let (text, rest) = self.rest.split_at(end);
            self.rest = rest;
            match text {
                "" => return Err(INVALID_ARRAY),
                "NULL" => downriver_event::view::presence_cell(Presence::Null),
                text => cell(self.element, text.as_bytes())?,
            }
        };
        self.list.elements.push(cell);
        Ok(())
    }
}

/// One element of an array.
fn cell(ty: &LogicalType, text: &[u8]) -> Result<pb::Cell, ValueError> {
    super::decoder::cell_with(ty, |out| push(ty, text, out))
}
