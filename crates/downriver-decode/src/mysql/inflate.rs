//! What MariaDB compresses with zlib: the rows or the text of an event, and values of compressed columns.
//!
//! ```text
//!   of an event:   0x80 | bytes of the size, 1 | size | zlib
//!   of a value:    0 | the value      0x80 | 8: without zlib's frame | bytes of the size, 1 | size | zlib
//! ```
//! Sizes have their highest byte first.
//!
//! Source: MariaDB's `binlog_buf_uncompress` in `sql/log_event.cc`, and `sql/field_comp.cc`.

use flate2::{Decompress, FlushDecompress, Status};

use super::cursor::Cursor;
use super::event::EVENT_BYTES_MAX;
use super::value::{ValueError, check_size};
use super::{BinlogError, RETAINED_BYTES_MAX};

const ZLIB: u8 = 0x80;
const METHOD: u8 = 0xf0;
const IS_BARE: u8 = 0x08;
const SIZE_BYTES: u8 = 0x07;
/// More than the format can make of one byte.
const RATIO_MAX: usize = 1100;

/// What an event has behind its head, into `out`.
pub(super) fn event(packed: &[u8], out: &mut Vec<u8>) -> Result<(), BinlogError> {
    const WRONG: BinlogError = BinlogError::Compressed("is none of zlib's");
    let mut cursor = Cursor::new(packed);
    let head = cursor.u8().ok_or(BinlogError::Cut("a compressed event"))?;
    if head & (METHOD | IS_BARE) != ZLIB {
        return Err(BinlogError::Compressed("has an unknown form"));
    }
    let size = size(head, &mut cursor).ok_or(BinlogError::Cut("a compressed event"))?;
    if size > EVENT_BYTES_MAX {
        return Err(BinlogError::Compressed("is larger than events are"));
    }
    out.shrink_to(RETAINED_BYTES_MAX);
    inflate(cursor.rest(), true, size, out).ok_or(WRONG)
}

/// A value as it was given; `out` is where it is put, unless it lies there as it is.
pub(super) fn value<'a>(stored: &'a [u8], out: &'a mut Vec<u8>) -> Result<&'a [u8], ValueError> {
    const WRONG: ValueError = ValueError::Invalid("compressed value");
    let Some((head, plain)) = stored.split_first() else {
        return Ok(stored);
    };
    if *head == 0 {
        return Ok(plain);
    }
    if head & METHOD != ZLIB {
        return Err(WRONG);
    }
    let mut cursor = Cursor::new(plain);
    let size = size(*head, &mut cursor).ok_or(WRONG)?;
    check_size(size)?;
    inflate(cursor.rest(), head & IS_BARE == 0, size, out).ok_or(WRONG)?;
    Ok(out)
}

fn size(head: u8, cursor: &mut Cursor<'_>) -> Option<usize> {
    match head & SIZE_BYTES {
        bytes @ 1..=4 => usize::try_from(cursor.uint_be(bytes.into())?).ok(),
        _ => None,
    }
}

/// `None`: it does not come to exactly so many bytes.
fn inflate(packed: &[u8], has_frame: bool, size: usize, out: &mut Vec<u8>) -> Option<()> {
    // Room is made only for what may be in it.
    if size > packed.len().saturating_mul(RATIO_MAX) {
        return None;
    }
    out.clear();
    out.resize(size, 0);
    let mut zlib = Decompress::new(has_frame);
    let status = zlib.decompress(packed, out, FlushDecompress::Finish).ok()?;
    let is_whole = status == Status::StreamEnd
        && usize::try_from(zlib.total_out()) == Ok(size)
        && usize::try_from(zlib.total_in()) == Ok(packed.len());
    is_whole.then_some(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Write as _;

    use flate2::Compression;
    use flate2::write::{DeflateEncoder, ZlibEncoder};

    use super::*;

    fn packed(text: &[u8], head: u8) -> Vec<u8> {
        let mut out = vec![head | 2];
        out.extend(u16::try_from(text.len()).unwrap().to_be_bytes());
        if head & IS_BARE == 0 {
            let mut zlib = ZlibEncoder::new(out, Compression::default());
            zlib.write_all(text).unwrap();
            zlib.finish().unwrap()
        } else {
            let mut zlib = DeflateEncoder::new(out, Compression::default());
            zlib.write_all(text).unwrap();
            zlib.finish().unwrap()
        }
    }

    #[test]
    fn a_value_comes_out_as_it_was() {
        let text = b"a text, a text, a text, a text".repeat(9);
        for head in [ZLIB, ZLIB | IS_BARE] {
            let packed = packed(&text, head);
            assert_eq!(value(&packed, &mut Vec::new()), Ok(&text[..]));
        }
        let mut out = Vec::new();
        event(&packed(&text, ZLIB), &mut out).unwrap();
        assert_eq!(out, text);
        assert_eq!(value(b"", &mut Vec::new()), Ok(&b""[..]));
        assert_eq!(value(b"\0plain", &mut Vec::new()), Ok(&b"plain"[..]));
    }

    #[test]
    fn what_lies_is_refused_before_room_is_made_for_it() {
        let right = packed(&b"a text, ".repeat(30), ZLIB);
        for wrong in [
            &right[..right.len() - 1],
            &[&right[..], b"x"].concat(),
            &[&[ZLIB | 2, 0, 239], &right[3..]].concat(),
            &[&[ZLIB | 2, 0, 241], &right[3..]].concat(),
            &[&[ZLIB | 4, 0x3f, 0xff, 0xff, 0xff], &right[3..]].concat(),
            &[&[ZLIB], &right[3..]].concat(),
            &[&[ZLIB | 5, 0, 0, 0, 0, 240], &right[3..]].concat(),
            &[&[0x90 | 2], &right[1..]].concat(),
            &right[..2],
        ] {
            let mut out = Vec::new();
            assert!(event(wrong, &mut out).is_err(), "{wrong:x?}");
            assert!(value(wrong, &mut out).is_err(), "{wrong:x?}");
            assert!(out.capacity() <= 1 << 20, "{wrong:x?}");
        }
        let huge = [ZLIB | 4, 0xff, 0xff, 0xff, 0xff];
        let mut out = Vec::new();
        let refused = value(&huge, &mut out);
        assert_eq!(refused, Err(ValueError::TooLarge(0xffff_ffff)));
    }
}
