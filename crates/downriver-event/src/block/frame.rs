//! The bytes around a block.
//!
//! ```text
//!  0      4        8       12      13        14       16                 20
//!  +------+--------+-------+-------+---------+--------+------------------+---------
//!  | DRB1 | len    | crc   | codec | version | 0      | uncompressed_len | payload
//!  +------+--------+-------+-------+---------+--------+------------------+---------
//! ```
//! All numbers are little endian. `len` is the payload's length; `crc` is the crc32c of everything after it.

use bytes::Bytes;

use super::FRAME_RAW_BYTES_MAX;

pub const FRAME_HEADER_BYTES: usize = 20;
const MAGIC: &[u8; 4] = b"DRB1";
const VERSION: u8 = 1;
const CODEC_ZSTD: u8 = 1;
const ZSTD_LEVEL: i32 = 1;

/// What is wrong with a frame's bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("needs {needed} bytes, has {present}")]
    Truncated { needed: usize, present: usize },
    #[error("does not begin with the block's magic")]
    Magic,
    #[error("format version {0} is not known to this build")]
    Version(u8),
    #[error("codec {0} is not known to this build")]
    Codec(u8),
    #[error("checksum is {actual:08x}, should be {expected:08x}")]
    Checksum { expected: u32, actual: u32 },
    #[error("uncompressed length {0} is over the limit of {FRAME_RAW_BYTES_MAX} bytes")]
    TooLarge(usize),
    #[error("payload does not decompress to its announced length")]
    Payload,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    pub payload_len: usize,
    pub uncompressed_len: usize,
    crc: u32,
}

impl FrameHeader {
    /// Length of the whole frame.
    #[must_use]
    pub fn frame_len(&self) -> usize {
        FRAME_HEADER_BYTES + self.payload_len
    }

    /// # Errors
    /// Too few bytes, or not a frame that this build reads.
    pub fn parse(bytes: &[u8]) -> Result<Self, FrameError> {
        if bytes.len() < FRAME_HEADER_BYTES {
            return Err(FrameError::Truncated {
                needed: FRAME_HEADER_BYTES,
                present: bytes.len(),
            });
        }
        let number = |at: usize| {
            let mut four = [0; 4];
            four.copy_from_slice(&bytes[at..at + 4]);
            u32::from_le_bytes(four)
        };
        if &bytes[..4] != MAGIC {
            return Err(FrameError::Magic);
        }
        if bytes[13] != VERSION {
            return Err(FrameError::Version(bytes[13]));
        }
        if bytes[12] != CODEC_ZSTD {
            return Err(FrameError::Codec(bytes[12]));
        }
        let uncompressed_len = number(16) as usize;
        if uncompressed_len > FRAME_RAW_BYTES_MAX {
            return Err(FrameError::TooLarge(uncompressed_len));
        }
        Ok(Self {
            payload_len: number(4) as usize,
            uncompressed_len,
            crc: number(8),
        })
    }
}

/// Compresses and frames an encoded block.
///
/// # Panics
/// Never on memory that can be allocated: zstd fails only for a destination that is too small.
#[must_use]
pub fn encode_frame(raw: &[u8]) -> Bytes {
    let mut frame = vec![0; FRAME_HEADER_BYTES + zstd::zstd_safe::compress_bound(raw.len())];
    let written = zstd::bulk::compress_to_buffer(raw, &mut frame[FRAME_HEADER_BYTES..], ZSTD_LEVEL)
        .expect("the destination has the bound's size");
    frame.truncate(FRAME_HEADER_BYTES + written);
    frame[..4].copy_from_slice(MAGIC);
    frame[4..8].copy_from_slice(
        &u32::try_from(written)
            .expect("a frame is under 4 GiB")
            .to_le_bytes(),
    );
    frame[12] = CODEC_ZSTD;
    frame[13] = VERSION;
    let raw_len = u32::try_from(raw.len()).expect("a block is under 4 GiB");
    frame[16..20].copy_from_slice(&raw_len.to_le_bytes());
    let crc = crc32c::crc32c(&frame[12..]);
    frame[8..12].copy_from_slice(&crc.to_le_bytes());
    Bytes::from(frame)
}

/// Checks the frame at the start of `bytes` without opening it.
///
/// # Errors
/// Damaged or unknown bytes.
pub fn check_frame(bytes: &[u8]) -> Result<FrameHeader, FrameError> {
    let header = FrameHeader::parse(bytes)?;
    if bytes.len() < header.frame_len() {
        return Err(FrameError::Truncated {
            needed: header.frame_len(),
            present: bytes.len(),
        });
    }
    let actual = crc32c::crc32c(&bytes[12..header.frame_len()]);
    if actual != header.crc {
        return Err(FrameError::Checksum {
            expected: header.crc,
            actual,
        });
    }
    Ok(header)
}

/// Checks a frame at the start of `bytes` and returns its payload, decompressed.
///
/// # Errors
/// Damaged or unknown bytes; nothing is allocated before the lengths are checked.
pub fn decode_frame(bytes: &[u8]) -> Result<Bytes, FrameError> {
    let header = check_frame(bytes)?;
    let payload = &bytes[FRAME_HEADER_BYTES..header.frame_len()];
    let raw = zstd::bulk::decompress(payload, header.uncompressed_len)
        .map_err(|_| FrameError::Payload)?;
    if raw.len() == header.uncompressed_len {
        Ok(Bytes::from(raw))
    } else {
        Err(FrameError::Payload)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_damaged_byte_is_noticed() {
        let frame = encode_frame(&b"downriver ".repeat(40)).to_vec();
        assert_eq!(
            decode_frame(&frame).expect("sound")[..],
            b"downriver ".repeat(40)[..]
        );
        for at in 0..frame.len() {
            let mut damaged = frame.clone();
            damaged[at] ^= 0x10;
            assert!(decode_frame(&damaged).is_err(), "byte {at}");
        }
        for len in 0..frame.len() {
            assert!(decode_frame(&frame[..len]).is_err(), "cut at {len}");
        }
    }
}
