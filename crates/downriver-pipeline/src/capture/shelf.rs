//! Blocks that are set aside in a file until their place in the log has come. Opens none of them.
//!
//! ```text
//!  push ──> file        record: events  time min, max  length  crc32c  frame
//!  take ──> the same, in order  u32     i64, i64       u32     u32
//! ```
//!
//! Nothing here outlasts the capture's run: what is missing is read again.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use downriver_event::{EncodedBlock, TableId};

const HEAD_BYTES: usize = 28;
const BUFFER_BYTES: usize = 256 << 10;
/// Tells the files of this process apart.
static NUMBER: AtomicU64 = AtomicU64::new(0);

/// The file goes with it.
#[derive(Debug)]
struct ShelfFile(PathBuf);

impl Drop for ShelfFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[derive(Debug)]
pub(crate) struct Shelf {
    table: TableId,
    out: BufWriter<File>,
    blocks: u64,
    file: ShelfFile,
}

impl Shelf {
    /// A file in the folder, for blocks that are set aside for this table.
    pub(crate) fn create(folder: &Path, table: TableId) -> io::Result<Self> {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = folder.join(format!("{}-{number}.shelf", table.0));
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)?;
        Ok(Self {
            table,
            out: BufWriter::with_capacity(BUFFER_BYTES, file),
            blocks: 0,
            file: ShelfFile(path),
        })
    }

    pub(crate) fn push(&mut self, block: &EncodedBlock) -> io::Result<()> {
        self.blocks += 1;
        let head = head(
            block.events,
            (block.time_min_us, block.time_max_us),
            &block.frame,
        );
        self.out.write_all(&head)?;
        self.out.write_all(&block.frame)
    }

    /// From the first block on.
    pub(crate) fn take(self) -> io::Result<Shelved> {
        let mut file = self
            .out
            .into_inner()
            .map_err(io::IntoInnerError::into_error)?;
        file.seek(SeekFrom::Start(0))?;
        Ok(Shelved {
            table: self.table,
            reader: BufReader::with_capacity(BUFFER_BYTES, file),
            left: self.blocks,
            _file: self.file,
        })
    }
}

/// The blocks of a shelf, in order.
#[derive(Debug)]
pub(crate) struct Shelved {
    table: TableId,
    reader: BufReader<File>,
    left: u64,
    _file: ShelfFile,
}

impl Shelved {
    pub(crate) fn next(&mut self) -> io::Result<Option<EncodedBlock>> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        let damaged = || io::Error::new(io::ErrorKind::InvalidData, "a shelved block is damaged");
        let mut found = [0; HEAD_BYTES];
        self.reader.read_exact(&mut found)?;
        let number = |at: usize| u32::from_le_bytes(found[at..at + 4].try_into().expect("four"));
        let time = |at: usize| i64::from_le_bytes(found[at..at + 8].try_into().expect("eight"));
        let (events, times, len) = (number(0), (time(4), time(12)), number(20));
        let mut frame = Vec::new();
        let read = (&mut self.reader)
            .take(u64::from(len))
            .read_to_end(&mut frame)?;
        if read != len as usize || head(events, times, &frame) != found {
            return Err(damaged());
        }
        Ok(Some(EncodedBlock {
            frame: frame.into(),
            events,
            time_min_us: times.0,
            time_max_us: times.1,
            tables: vec![self.table],
            continues: false,
        }))
    }
}

fn head(events: u32, (min, max): (i64, i64), frame: &[u8]) -> [u8; HEAD_BYTES] {
    let len = u32::try_from(frame.len()).expect("a block is under 2^32 bytes");
    let mut head = [0; HEAD_BYTES];
    head[..4].copy_from_slice(&events.to_le_bytes());
    head[4..12].copy_from_slice(&min.to_le_bytes());
    head[12..20].copy_from_slice(&max.to_le_bytes());
    head[20..24].copy_from_slice(&len.to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&head[..24]), frame);
    head[24..].copy_from_slice(&crc.to_le_bytes());
    head
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn block(number: u32) -> EncodedBlock {
        EncodedBlock {
            frame: vec![number as u8; 1_000 * number as usize].into(),
            events: number,
            time_min_us: -i64::from(number),
            time_max_us: i64::from(number),
            tables: vec![TableId(7)],
            continues: false,
        }
    }

    #[test]
    fn blocks_come_back_in_order_and_leave_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let mut shelf = Shelf::create(folder.path(), TableId(7)).unwrap();
        (0..400).for_each(|number| shelf.push(&block(number)).unwrap());
        let mut shelved = shelf.take().unwrap();
        for number in 0..400 {
            let (found, expected) = (shelved.next().unwrap().unwrap(), block(number));
            assert_eq!(found.frame, expected.frame);
            assert_eq!(
                (found.events, found.time_min_us, found.time_max_us),
                (number, -i64::from(number), i64::from(number))
            );
        }
        assert!(shelved.next().unwrap().is_none());
        drop(shelved);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_damaged_block_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let mut shelf = Shelf::create(folder.path(), TableId(7)).unwrap();
        shelf.push(&block(3)).unwrap();
        shelf.out.flush().unwrap();
        let path = shelf.file.0.clone();
        let mut bytes = fs::read(&path).unwrap();
        bytes[1_500] ^= 1;
        fs::write(&path, bytes).unwrap();
        assert!(shelf.take().unwrap().next().is_err());
    }
}
