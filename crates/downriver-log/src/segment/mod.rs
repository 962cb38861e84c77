//! A segment: one immutable object of consecutive blocks with a footer index.
//!
//! ```text
//!  +---------+---------+-----+--------+------------+---------+------+
//!  | frame 0 | frame 1 | ... | footer | footer len | its crc | DRS1 |
//!  +---------+---------+-----+--------+------------+---------+------+
//!                            ^ ObjectRef.footer_offset     4 + 4 + 4 bytes, little endian
//! ```
//! The footer is a `SegmentFooter` message: for each block its place, its first event relative to the
//! segment's base, its time range and tables. Offsets are relative, so a segment is written before its base
//! offset is known.

//!
//! Small segments are merged at the same offsets (`merge`). The oldest references of a stream live in manifest
//! objects (`manifest`).

mod manifest;
mod merge;
mod place;
mod read;
mod write;

pub use manifest::{ManifestRef, put_manifest, read_manifest};
pub use merge::{MergeError, merge, worth_merging};
pub use place::{Segment, SegmentPlace};
pub use read::{SegmentReader, read_footer};
pub use write::SegmentWriter;

const MAGIC: &[u8; 4] = b"DRS1";
/// Microseconds since 1970.
fn now_us() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| {
        i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
    })
}

const TRAILER_BYTES: u64 = 12;
const FOOTER_FORMAT: u32 = 1;
/// Largest footer that a reader allocates.
const FOOTER_BYTES_MAX: u64 = 64 << 20;
