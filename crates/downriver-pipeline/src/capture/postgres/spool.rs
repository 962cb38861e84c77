//! The messages of transactions in progress, kept as they came until their end is known. Opens none of them.
//!
//! ```text
//!  push ──> memory of the transaction ──over a limit──> its file        record: length  crc32c  place  message
//!  take ──> its file, then its memory, record by record                          u32     u32     u64
//! ```
//!
//! Nothing here outlasts the connection: the server sends a transaction that has not ended again, whole.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Cursor, Read, Write as _};
use std::path::{Path, PathBuf};

use super::super::{CaptureError, clear};

/// What all transactions in progress together may hold in memory; beyond it the largest goes to its file.
const MEMORY_BYTES_MAX: usize = 8 << 20;
/// What one of them may hold.
const TRANSACTION_MEMORY_BYTES_MAX: usize = 256 << 10;
const READ_BYTES: usize = 256 << 10;
const HEAD_BYTES: usize = 16;
const EXTENSION: &str = "spool";

/// Dropping it removes its files.
pub(super) struct Spool {
    folder: PathBuf,
    open: HashMap<u32, Kept>,
    memory_bytes: usize,
}

#[derive(Default)]
struct Kept {
    /// Behind what is in the file.
    memory: Vec<u8>,
    file: Option<SpoolFile>,
    bytes: u64,
}

/// Opened for each write, so that many transactions in progress hold no file descriptors. Dropping it removes it.
struct SpoolFile(PathBuf);

impl Drop for SpoolFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

impl Spool {
    /// Takes the capture's spill folder and removes what is in it: files of a killed process, or segments of an append
    /// of an older epoch, which the log refuses.
    pub(super) fn open(folder: &Path) -> Result<Self, CaptureError> {
        clear(folder)?;
        Ok(Self {
            folder: folder.to_owned(),
            open: HashMap::new(),
            memory_bytes: 0,
        })
    }

    /// Keeps a message of a transaction, behind those that came before.
    pub(super) fn push(
        &mut self,
        xid: u32,
        place: u64,
        message: &[u8],
    ) -> Result<(), CaptureError> {
        let head = head(place, message);
        let bytes = HEAD_BYTES + message.len();
        let kept = self.open.entry(xid).or_default();
        kept.bytes += bytes as u64;
        if kept.memory.len() + bytes > TRANSACTION_MEMORY_BYTES_MAX {
            self.spill(xid)?;
        }
        if bytes > TRANSACTION_MEMORY_BYTES_MAX {
            return self.append(xid, &[&head, message]);
        }
        let kept = self.open.entry(xid).or_default();
        kept.memory.extend_from_slice(&head);
        kept.memory.extend_from_slice(message);
        self.memory_bytes += bytes;
        while self.memory_bytes > MEMORY_BYTES_MAX {
            let largest = self.open.iter().max_by_key(|(_, kept)| kept.memory.len());
            let largest = *largest.expect("something is in memory").0;
            self.spill(largest)?;
        }
        Ok(())
    }

    /// Forgets a transaction; one that is not known has nothing to be forgotten.
    pub(super) fn discard(&mut self, xid: u32) {
        if let Some(kept) = self.open.remove(&xid) {
            self.memory_bytes -= kept.memory.len();
        }
    }

    /// Hands out the messages of a transaction that has ended.
    pub(super) fn take(&mut self, xid: u32) -> Result<Spooled, CaptureError> {
        let kept = self.open.remove(&xid).unwrap_or_default();
        self.memory_bytes -= kept.memory.len();
        let memory = Cursor::new(kept.memory);
        let reader: Box<dyn Read + Send> = match &kept.file {
            Some(file) => {
                let opened = File::open(&file.0).map_err(|error| failed(&self.folder, error))?;
                Box::new(BufReader::with_capacity(READ_BYTES, opened).chain(memory))
            }
            None => Box::new(memory),
        };
        Ok(Spooled {
            folder: self.folder.clone(),
            reader,
            left: kept.bytes,
            message: Vec::new(),
            _file: kept.file,
        })
    }

    /// Moves a transaction's memory to its file.
    fn spill(&mut self, xid: u32) -> Result<(), CaptureError> {
        let Some(kept) = self.open.get_mut(&xid).filter(|k| !k.memory.is_empty()) else {
            return Ok(());
        };
        let memory = std::mem::take(&mut kept.memory);
        self.memory_bytes -= memory.len();
        self.append(xid, &[&memory])
    }

    fn append(&mut self, xid: u32, parts: &[&[u8]]) -> Result<(), CaptureError> {
        let kept = self.open.entry(xid).or_default();
        let file = kept.file.get_or_insert_with(|| {
            let name = format!("{xid}.{EXTENSION}");
            SpoolFile(self.folder.join(name))
        });
        let write = || -> io::Result<()> {
            let mut file = OpenOptions::new().append(true).create(true).open(&file.0)?;
            parts.iter().try_for_each(|part| file.write_all(part))
        };
        write().map_err(|source| failed(&self.folder, source))
    }
}

/// The messages of one transaction, in order.
pub(super) struct Spooled {
    folder: PathBuf,
    reader: Box<dyn Read + Send>,
    left: u64,
    message: Vec<u8>,
    /// Removed when all is read.
    _file: Option<SpoolFile>,
}

impl Spooled {
    /// The next message and the place that it was given.
    pub(super) fn next(&mut self) -> Result<Option<(u64, &[u8])>, CaptureError> {
        if self.left == 0 {
            return Ok(None);
        }
        match self.read() {
            Ok(place) => Ok(Some((place, &self.message))),
            Err(source) => Err(failed(&self.folder, source)),
        }
    }

    fn read(&mut self) -> io::Result<u64> {
        let damaged = || io::Error::new(io::ErrorKind::InvalidData, "a spooled message is damaged");
        let mut found = [0; HEAD_BYTES];
        self.reader.read_exact(&mut found)?;
        let (len, rest) = found.split_first_chunk::<4>().expect("16 bytes");
        let (_, place) = rest.split_last_chunk::<8>().expect("12 bytes");
        let (len, place) = (u32::from_le_bytes(*len), u64::from_le_bytes(*place));
        let after = self.left.checked_sub(HEAD_BYTES as u64 + u64::from(len));
        self.left = after.ok_or_else(damaged)?;
        self.message.resize(len as usize, 0);
        self.reader.read_exact(&mut self.message)?;
        if head(place, &self.message) != found {
            return Err(damaged());
        }
        Ok(place)
    }
}

fn head(place: u64, message: &[u8]) -> [u8; HEAD_BYTES] {
    let len = u32::try_from(message.len()).expect("PostgreSQL's messages are under 1 GiB");
    let crc = crc32c::crc32c_append(crc32c::crc32c(&place.to_le_bytes()), message);
    let mut head = [0; HEAD_BYTES];
    head[..4].copy_from_slice(&len.to_le_bytes());
    head[4..8].copy_from_slice(&crc.to_le_bytes());
    head[8..].copy_from_slice(&place.to_le_bytes());
    head
}

fn failed(folder: &Path, source: io::Error) -> CaptureError {
    CaptureError::Spill {
        folder: folder.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn message(xid: u32, number: u64) -> Vec<u8> {
        let len = match number % 7 {
            0 => 0,
            // Larger than all that a transaction may hold in memory.
            1 if number.is_multiple_of(5) => TRANSACTION_MEMORY_BYTES_MAX + 11,
            rest => 3_000 * rest as usize,
        };
        vec![(u64::from(xid) + number) as u8; len]
    }

    fn files(folder: &Path) -> usize {
        fs::read_dir(folder).unwrap().count()
    }

    #[test]
    fn interleaved_transactions_come_back_whole_and_in_order_and_leave_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let mut spool = Spool::open(folder.path()).unwrap();
        for number in 0..200 {
            for xid in 1..=60 {
                if xid != 60 || number == 0 {
                    let place = number * 2;
                    spool.push(xid, place, &message(xid, number)).unwrap();
                }
                assert!(spool.memory_bytes <= MEMORY_BYTES_MAX);
            }
        }
        assert_eq!(files(folder.path()), 59, "the small one is in memory");
        spool.discard(7);
        spool.discard(70_000);
        assert_eq!(files(folder.path()), 58);
        for xid in (1..=60).filter(|xid| *xid != 7) {
            let mut spooled = spool.take(xid).unwrap();
            for number in 0..if xid == 60 { 1 } else { 200 } {
                let (place, found) = spooled.next().unwrap().unwrap();
                assert_eq!(place, number * 2);
                assert!(found == message(xid, number), "{xid} {number}");
            }
            assert!(spooled.next().unwrap().is_none());
        }
        assert_eq!(spool.memory_bytes, 0);
        assert_eq!(files(folder.path()), 0);
    }

    #[test]
    fn a_damaged_or_shortened_file_is_noticed() {
        for damage in [
            |bytes: &mut Vec<u8>| bytes[20] ^= 1,
            |bytes: &mut Vec<u8>| bytes[8] ^= 1,
            |bytes: &mut Vec<u8>| bytes[3] ^= 0x40,
            |bytes: &mut Vec<u8>| bytes.truncate(100),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let mut spool = Spool::open(folder.path()).unwrap();
            let long = vec![7; TRANSACTION_MEMORY_BYTES_MAX];
            spool.push(1, 0, &long).unwrap();
            let path = folder.path().join("1.spool");
            let mut bytes = fs::read(&path).unwrap();
            damage(&mut bytes);
            fs::write(&path, bytes).unwrap();
            let error = spool.take(1).unwrap().next().map(|_| ()).unwrap_err();
            assert!(matches!(error, CaptureError::Spill { .. }), "{error}");
        }
    }

    #[test]
    fn what_a_killed_process_left_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let mut killed = Spool::open(folder.path()).unwrap();
        let long = vec![7; TRANSACTION_MEMORY_BYTES_MAX];
        killed.push(1, 0, &long).unwrap();
        std::mem::forget(killed);
        fs::write(folder.path().join("other.segment"), b"x").unwrap();
        let mut spool = Spool::open(folder.path()).unwrap();
        assert_eq!(files(folder.path()), 0);
        spool.push(1, 0, &long).unwrap();
        assert_eq!(files(folder.path()), 1);
        drop(spool);
        assert_eq!(files(folder.path()), 0);
    }
}
