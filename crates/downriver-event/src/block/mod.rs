//! The block: unit of append, checksum and compression; one column-oriented protobuf message.
//!
//! `builder` writes one, `frame` puts a length, a checksum and a codec around it, `reader` checks and opens
//! it. A block never knows its base offset: its event indexes are relative.

mod builder;
mod frame;
mod reader;
mod take_back;

pub use builder::{BlockBuilder, ColumnBuilder, EncodedBlock, OldImage, RowColumns, RowOp};
pub use frame::{
    FRAME_HEADER_BYTES, FrameError, FrameHeader, check_frame, decode_frame, encode_frame,
};
pub use reader::{Block, BlockError, Column, Interval, RowGroup, Values};

/// Largest block before compression, in bytes. A reader refuses to allocate more.
pub const BLOCK_RAW_BYTES_MAX: usize = 4 << 20;

/// Largest uncompressed length that a frame may announce: a block is cut once it has passed
/// [`BLOCK_RAW_BYTES_MAX`], so one row with its old image may lie above it.
pub const FRAME_RAW_BYTES_MAX: usize = BLOCK_RAW_BYTES_MAX + 3 * VALUE_BYTES_MAX;

/// Largest value of a cell, in bytes. A larger one stops its table.
pub const VALUE_BYTES_MAX: usize = 64 << 20;

#[cfg(test)]
mod tests;
