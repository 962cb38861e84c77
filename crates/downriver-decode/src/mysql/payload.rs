//! A compressed transaction: the events in it, as they come out, one at a time.
//!
//! ```text
//!   (field | bytes of its number | number)* | 0 | the events, each whole and without a checksum, compressed together
//! ```
//!
//! Never more of it is there than one event and what zstd looks back at.
//!
//! Source: MySQL's `libs/mysql/binlog/event/codecs/binary.h` and `compression/base.h`.

use std::fmt;

use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation as _, OutBuffer};

use super::cursor::Cursor;
use super::event::{EVENT_BYTES_MAX, HEADER_BYTES, Header};
use super::{BinlogError, RETAINED_BYTES_MAX};

/// The largest that MySQL's highest level takes, 128 MiB: what zstd may be told to look back at, as a power of two.
const WINDOW_LOG_MAX: u32 = 27;
/// Room is made for so many bytes that are to come, and for more when they have.
const STEP_BYTES: usize = 128 << 10;

mod field {
    pub(super) const END: u64 = 0;
    pub(super) const BYTES: u64 = 1;
    pub(super) const COMPRESSION: u64 = 2;
    pub(super) const BYTES_UNCOMPRESSED: u64 = 3;
}

mod compression {
    pub(super) const ZSTD: u64 = 0;
    pub(super) const NONE: u64 = 255;
}

/// One for all the transactions of a decoder: it is costly to make.
#[derive(Default)]
pub(super) struct Zstd(Option<Decoder<'static>>);

impl fmt::Debug for Zstd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Zstd").finish_non_exhaustive()
    }
}

#[derive(Debug)]
pub(super) struct Payload<'a> {
    /// What is still compressed.
    rest: &'a [u8],
    is_compressed: bool,
    /// Something of what was begun to be uncompressed is still to come.
    is_open: bool,
    /// Bytes to come, where they are told.
    left: Option<u64>,
}

const CUT: BinlogError = BinlogError::Cut("a compressed transaction");
const LONGER: BinlogError = BinlogError::Compressed("is longer than it says");

impl<'a> Payload<'a> {
    pub(super) fn parse(body: &'a [u8]) -> Result<Self, BinlogError> {
        let mut cursor = Cursor::new(body);
        let (mut bytes, mut compression, mut left) = (None, compression::NONE, None);
        loop {
            let field = cursor.lenenc().ok_or(CUT)?;
            if field == field::END {
                break;
            }
            let value = cursor.lenenc_bytes().ok_or(CUT)?;
            let number = Cursor::new(value).lenenc();
            match field {
                field::BYTES => bytes = Some(number.ok_or(CUT)?),
                field::COMPRESSION => compression = number.ok_or(CUT)?,
                field::BYTES_UNCOMPRESSED => left = Some(number.ok_or(CUT)?),
                _ => {}
            }
        }
        let rest = cursor.rest();
        if bytes.is_some_and(|bytes| usize::try_from(bytes) != Ok(rest.len())) {
            return Err(BinlogError::Compressed("has not as many bytes as it says"));
        }
        Ok(Self {
            rest,
            is_compressed: match compression {
                compression::ZSTD => true,
                compression::NONE => false,
                _ => return Err(BinlogError::Compressed("has an unknown form")),
            },
            is_open: false,
            left,
        })
    }

    /// Makes ready for another transaction.
    pub(super) fn begin(&self, zstd: &mut Zstd) -> Result<(), BinlogError> {
        if !self.is_compressed {
            return Ok(());
        }
        let mut begin = || {
            let mut decoder = match zstd.0.take() {
                Some(decoder) => decoder,
                None => Decoder::new()?,
            };
            decoder.set_parameter(DParameter::WindowLogMax(WINDOW_LOG_MAX))?;
            decoder.reinit()?;
            zstd.0 = Some(decoder);
            Ok(())
        };
        begin().map_err(|_: std::io::Error| BinlogError::Compressed("cannot be begun"))
    }

    /// The next event, into `event`; `false`: there is no more.
    pub(super) fn next(
        &mut self,
        zstd: &mut Zstd,
        event: &mut Vec<u8>,
    ) -> Result<bool, BinlogError> {
        event.clear();
        event.shrink_to(RETAINED_BYTES_MAX);
        self.read(HEADER_BYTES, zstd, event)?;
        if event.is_empty() {
            return match self.left {
                Some(1..) => Err(CUT),
                _ => Ok(false),
            };
        }
        let header = Header::parse(event).ok_or(CUT)?;
        let len = header.len as usize;
        if !(HEADER_BYTES..=EVENT_BYTES_MAX).contains(&len) {
            return Err(BinlogError::Compressed("has an event of impossible length"));
        }
        if self
            .left
            .is_some_and(|left| left < (len - HEADER_BYTES) as u64)
        {
            return Err(LONGER);
        }
        self.read(len - HEADER_BYTES, zstd, event)?;
        match event.len() == len {
            true => Ok(true),
            false => Err(CUT),
        }
    }

    /// Appends so many bytes; fewer at the end only.
    fn read(
        &mut self,
        bytes: usize,
        zstd: &mut Zstd,
        out: &mut Vec<u8>,
    ) -> Result<(), BinlogError> {
        let until = out.len() + bytes;
        while out.len() < until {
            let step = STEP_BYTES.min(until - out.len());
            let came = match self.is_compressed {
                true => self.inflate(step, zstd, out)?,
                false => {
                    let (taken, rest) = self.rest.split_at(step.min(self.rest.len()));
                    self.rest = rest;
                    out.extend_from_slice(taken);
                    taken.len()
                }
            };
            if came == 0 {
                break;
            }
            if let Some(left) = &mut self.left {
                *left = left.checked_sub(came as u64).ok_or(LONGER)?;
            }
        }
        Ok(())
    }

    /// Appends at most so many bytes; none at the end only.
    fn inflate(
        &mut self,
        bytes: usize,
        zstd: &mut Zstd,
        out: &mut Vec<u8>,
    ) -> Result<usize, BinlogError> {
        let decoder = zstd.0.as_mut().ok_or(CUT)?;
        let from = out.len();
        out.resize(from + bytes, 0);
        while self.is_open || !self.rest.is_empty() {
            let mut input = InBuffer::around(self.rest);
            let mut output = OutBuffer::around(&mut out[from..]);
            let hint = decoder.run(&mut input, &mut output);
            let hint = hint.map_err(|_| BinlogError::Compressed("is not in zstd's form"))?;
            let (read, written) = (input.pos(), output.pos());
            self.rest = &self.rest[read..];
            if read == 0 && written == 0 {
                return Err(CUT);
            }
            self.is_open = hint != 0;
            if written > 0 {
                out.truncate(from + written);
                return Ok(written);
            }
        }
        out.truncate(from);
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn event(bytes: usize) -> Vec<u8> {
        let mut event = vec![7; HEADER_BYTES + bytes];
        let len = u32::try_from(event.len()).unwrap();
        event[9..13].copy_from_slice(&len.to_le_bytes());
        event
    }

    fn body(compression: u8, told: Option<u32>, payload: &[u8]) -> Vec<u8> {
        let mut body = Vec::new();
        if compression == 0 {
            body.extend([2, 1, 0]);
        }
        if let Some(told) = told {
            body.extend([3, 9, 254]);
            body.extend(u64::from(told).to_le_bytes());
        }
        body.extend([1, 9, 254]);
        body.extend((payload.len() as u64).to_le_bytes());
        body.push(0);
        body.extend(payload);
        body
    }

    fn lengths(body: &[u8]) -> Result<Vec<usize>, BinlogError> {
        let (mut zstd, mut event) = (Zstd::default(), Vec::new());
        let mut payload = Payload::parse(body)?;
        payload.begin(&mut zstd)?;
        let mut lengths = Vec::new();
        while payload.next(&mut zstd, &mut event)? {
            lengths.push(event.len() - HEADER_BYTES);
        }
        assert!(event.capacity() <= 4 << 20, "{}", event.capacity());
        Ok(lengths)
    }

    #[test]
    fn events_come_out_one_after_the_other() {
        let events = [event(0), event(300_000), event(7)];
        let plain = events.concat();
        let told = u32::try_from(plain.len()).unwrap();
        let packed = zstd::encode_all(&plain[..], 3).unwrap();
        // A stream may be of several parts.
        let parts = events.map(|event| zstd::encode_all(&event[..], 19).unwrap());
        for body in [
            body(0, Some(told), &packed),
            body(0, None, &packed),
            body(0, Some(told), &parts.concat()),
            body(255, None, &plain),
        ] {
            assert_eq!(lengths(&body), Ok(vec![0, 300_000, 7]));
        }
        assert_eq!(lengths(&body(0, Some(0), b"")), Ok(Vec::new()));
    }

    #[test]
    fn one_that_lies_is_refused() {
        let plain = [event(5), event(300_000)].concat();
        let told = u32::try_from(plain.len()).unwrap();
        let packed = zstd::encode_all(&plain[..], 3).unwrap();
        let right = body(0, Some(told), &packed);
        for len in 0..right.len() {
            assert!(lengths(&right[..len]).is_err(), "{len}");
        }
        let cut = |len: usize| body(0, Some(told), &packed[..len]);
        for len in 0..packed.len() {
            assert!(lengths(&cut(len)).is_err(), "{len}");
        }
        assert_eq!(lengths(&body(0, Some(told - 1), &packed)), Err(LONGER));
        assert_eq!(lengths(&body(0, Some(told + 1), &packed)), Err(CUT));
        let mut other = packed.clone();
        other[0] ^= 1;
        assert!(lengths(&body(0, Some(told), &other)).is_err());
        assert!(lengths(&body(0, Some(told), &[&packed[..], b"more"].concat())).is_err());
        // An event that says that it is 1 GiB, and one that says it is nothing.
        for len in [(1_u32 << 30), 0, 18, u32::MAX] {
            let mut event = event(5);
            event[9..13].copy_from_slice(&len.to_le_bytes());
            let packed = zstd::encode_all(&event[..], 3).unwrap();
            assert!(lengths(&body(0, None, &packed)).is_err());
            assert!(lengths(&body(255, None, &event)).is_err());
        }
        let unknown = [2, 1, 9, 0];
        assert!(Payload::parse(&unknown).is_err());
    }

    #[test]
    fn what_zstd_looks_back_at_is_bounded() {
        let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
        encoder.window_log(WINDOW_LOG_MAX + 1).unwrap();
        encoder.include_contentsize(false).unwrap();
        std::io::Write::write_all(&mut encoder, &event(100)).unwrap();
        let packed = encoder.finish().unwrap();
        let refused = lengths(&body(0, None, &packed));
        assert_eq!(
            refused,
            Err(BinlogError::Compressed("is not in zstd's form"))
        );
    }
}
