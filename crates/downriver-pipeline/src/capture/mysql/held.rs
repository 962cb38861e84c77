//! The events of prepared transactions, kept as they came until somebody commits them. Opens none of them.
//!
//! ```text
//!  push ──> memory of the transaction ──over a limit──> its file     record: length  crc32c  checksums  event
//!  read ──> its file, then its memory, record by record                      u32     u32     u8
//! ```
//!
//! It outlasts a run of the capture, and not the process: what is missing then is read again from the tables. What was
//! committed stays until the log has it, for the run that may have to decode it once more.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Cursor, Read, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use downriver_event::SourcePosition;

use super::super::CaptureError;

/// What all prepared transactions together may hold in memory; beyond it a transaction goes to its file.
const MEMORY_BYTES_MAX: usize = 8 << 20;
/// What one of them may hold.
const TRANSACTION_MEMORY_BYTES_MAX: usize = 256 << 10;
const READ_BYTES: usize = 256 << 10;
const HEAD_BYTES: usize = 9;
/// Below the capture's spill folder, which each run empties.
const FOLDER: &str = "prepared";

/// Dropping it removes its files.
#[derive(Debug, Default)]
pub(in super::super) struct Held {
    /// `None`: this process has not used it yet.
    folder: Option<PathBuf>,
    /// The transaction whose events come.
    current: Option<Kept>,
    /// By the identifiers that they were prepared with.
    prepared: HashMap<String, Kept>,
    /// Those that ended, and where: once the log has that they are of no use.
    ended: Vec<(String, SourcePosition)>,
    memory_bytes: usize,
    files: u64,
}

#[derive(Debug, Default)]
struct Kept {
    /// Behind what is in the file.
    memory: Vec<u8>,
    file: Option<HeldFile>,
    bytes: u64,
}

/// Removed when nobody reads it any more.
#[derive(Clone, Debug)]
struct HeldFile(Arc<OwnedPath>);

#[derive(Debug)]
struct OwnedPath(PathBuf);

impl Drop for OwnedPath {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

impl Held {
    /// At the start of a run: only what the log knows of is kept, as everything behind comes again.
    pub(super) fn begin_run(
        &mut self,
        spill: &Path,
        known: &HashSet<&str>,
    ) -> Result<(), CaptureError> {
        if self.folder.is_none() {
            let folder = spill.join(FOLDER);
            let make = || -> io::Result<()> {
                if folder.exists() {
                    fs::remove_dir_all(&folder)?;
                }
                fs::create_dir_all(&folder)
            };
            make().map_err(|source| failed(&folder, source))?;
            self.folder = Some(folder);
        }
        self.ended.clear();
        self.drop_current();
        let unknown = self.prepared.keys();
        let unknown = unknown.filter(|id| !known.contains(id.as_str()));
        for id in unknown.cloned().collect::<Vec<_>>() {
            self.forget(&id);
        }
        Ok(())
    }

    /// Keeps an event of the transaction that comes.
    pub(super) fn push(&mut self, event: &[u8], has_checksums: bool) -> Result<(), CaptureError> {
        let head = head(event, has_checksums);
        let bytes = HEAD_BYTES + event.len();
        let kept = self.current.get_or_insert_default();
        kept.bytes += bytes as u64;
        let fits = kept.memory.len() + bytes <= TRANSACTION_MEMORY_BYTES_MAX
            && self.memory_bytes + bytes <= MEMORY_BYTES_MAX;
        if fits {
            kept.memory.extend_from_slice(&head);
            kept.memory.extend_from_slice(event);
            self.memory_bytes += bytes;
            return Ok(());
        }
        let memory = std::mem::take(&mut kept.memory);
        self.memory_bytes -= memory.len();
        self.append(&[&memory, &head, event])
    }

    fn append(&mut self, parts: &[&[u8]]) -> Result<(), CaptureError> {
        let folder = self.folder.clone().unwrap_or_default();
        let kept = self.current.get_or_insert_default();
        let files = &mut self.files;
        let file = kept.file.get_or_insert_with(|| {
            *files += 1;
            HeldFile(Arc::new(OwnedPath(folder.join(format!("{files}.held")))))
        });
        let write = || -> io::Result<()> {
            let mut file = OpenOptions::new()
                .append(true)
                .create(true)
                .open(&file.0.0)?;
            parts.iter().try_for_each(|part| file.write_all(part))
        };
        write().map_err(|source| failed(&folder, source))
    }

    /// The transaction whose events came is prepared.
    pub(super) fn prepared(&mut self, id: &str) {
        self.forget(id);
        let kept = self.current.take().unwrap_or_default();
        self.prepared.insert(id.to_owned(), kept);
    }

    /// The rest of it will not come.
    pub(super) fn drop_current(&mut self) {
        if let Some(kept) = self.current.take() {
            self.memory_bytes -= kept.memory.len();
        }
    }

    /// The events of the transaction that came, which is committed at once.
    pub(super) fn take_current(&mut self) -> Result<Reader, CaptureError> {
        let kept = self.current.take().unwrap_or_default();
        self.memory_bytes -= kept.memory.len();
        self.reader(kept.memory, kept.file, kept.bytes)
    }

    /// The events of a prepared transaction; `None`: they are not held.
    pub(super) fn read(&self, id: &str) -> Result<Option<Reader>, CaptureError> {
        let Some(kept) = self.prepared.get(id) else {
            return Ok(None);
        };
        let reader = self.reader(kept.memory.clone(), kept.file.clone(), kept.bytes)?;
        Ok(Some(reader))
    }

    fn reader(
        &self,
        memory: Vec<u8>,
        file: Option<HeldFile>,
        bytes: u64,
    ) -> Result<Reader, CaptureError> {
        let folder = self.folder.clone().unwrap_or_default();
        let memory = Cursor::new(memory);
        let reader: Box<dyn Read + Send + Sync> = match &file {
            Some(file) => {
                let opened = File::open(&file.0.0).map_err(|error| failed(&folder, error))?;
                Box::new(BufReader::with_capacity(READ_BYTES, opened).chain(memory))
            }
            None => Box::new(memory),
        };
        Ok(Reader {
            folder,
            reader,
            left: bytes,
            event: Vec::new(),
            _file: file,
        })
    }

    /// A prepared transaction has ended here.
    pub(super) fn ended(&mut self, id: String, at: SourcePosition) {
        if self.prepared.contains_key(&id) {
            self.ended.push((id, at));
        }
    }

    /// Everything up to here is in the log.
    pub(super) fn stored(&mut self, position: Option<&SourcePosition>) {
        let Some(position) = position.filter(|_| !self.ended.is_empty()) else {
            return;
        };
        let (stored, ended) = std::mem::take(&mut self.ended)
            .into_iter()
            .partition(|(_, at)| position.covers(at));
        self.ended = ended;
        let stored: Vec<(String, SourcePosition)> = stored;
        for (id, _) in stored {
            self.forget(&id);
        }
    }

    fn forget(&mut self, id: &str) {
        if let Some(kept) = self.prepared.remove(id) {
            self.memory_bytes -= kept.memory.len();
        }
    }
}

/// The events of one transaction, in order.
pub(super) struct Reader {
    folder: PathBuf,
    reader: Box<dyn Read + Send + Sync>,
    left: u64,
    event: Vec<u8>,
    _file: Option<HeldFile>,
}

impl Reader {
    /// The next event, and whether it has a checksum of the server's.
    pub(super) fn next(&mut self) -> Result<Option<(&[u8], bool)>, CaptureError> {
        if self.left == 0 {
            return Ok(None);
        }
        match self.read() {
            Ok(has_checksums) => Ok(Some((&self.event, has_checksums))),
            Err(source) => Err(failed(&self.folder, source)),
        }
    }

    fn read(&mut self) -> io::Result<bool> {
        let damaged = || io::Error::new(io::ErrorKind::InvalidData, "a held event is damaged");
        let mut found = [0; HEAD_BYTES];
        self.reader.read_exact(&mut found)?;
        let (len, _) = found.split_first_chunk::<4>().expect("9 bytes");
        let len = u32::from_le_bytes(*len);
        let after = self.left.checked_sub(HEAD_BYTES as u64 + u64::from(len));
        self.left = after.ok_or_else(damaged)?;
        self.event.resize(len as usize, 0);
        self.reader.read_exact(&mut self.event)?;
        let has_checksums = found[HEAD_BYTES - 1] != 0;
        match head(&self.event, has_checksums) == found {
            true => Ok(has_checksums),
            false => Err(damaged()),
        }
    }
}

fn head(event: &[u8], has_checksums: bool) -> [u8; HEAD_BYTES] {
    let len = u32::try_from(event.len()).expect("an event tells its length in 32 bits");
    let checksums = u8::from(has_checksums);
    let crc = crc32c::crc32c_append(crc32c::crc32c(&[checksums]), event);
    let mut head = [0; HEAD_BYTES];
    head[..4].copy_from_slice(&len.to_le_bytes());
    head[4..8].copy_from_slice(&crc.to_le_bytes());
    head[8] = checksums;
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
    use downriver_event::{BinlogPlace, GtidSet};

    use super::*;

    fn at(position: u64) -> SourcePosition {
        let place = BinlogPlace {
            file: "b.000001".into(),
            position,
        };
        let gtids = GtidSet::default();
        SourcePosition::Mysql { gtids, place }
    }

    fn files(spill: &Path) -> usize {
        fs::read_dir(spill.join(FOLDER)).unwrap().count()
    }

    fn all(mut reader: Reader) -> Vec<(Vec<u8>, bool)> {
        let mut events = Vec::new();
        while let Some((event, has_checksums)) = reader.next().unwrap() {
            events.push((event.to_vec(), has_checksums));
        }
        events
    }

    #[test]
    fn what_was_held_comes_back_until_the_log_has_its_commit() {
        let spill = tempfile::tempdir().unwrap();
        let mut held = Held::default();
        held.begin_run(spill.path(), &HashSet::new()).unwrap();
        let large = vec![7; TRANSACTION_MEMORY_BYTES_MAX];
        held.push(b"small", true).unwrap();
        held.prepared("a");
        held.push(b"first", false).unwrap();
        held.push(&large, true).unwrap();
        held.push(b"", true).unwrap();
        held.prepared("b");
        assert_eq!(files(spill.path()), 1);
        let expected = vec![
            (b"first".to_vec(), false),
            (large, true),
            (Vec::new(), true),
        ];
        for _ in 0..2 {
            let read = held.read("b").unwrap().unwrap();
            assert!(all(read) == expected);
        }
        held.ended("b".into(), at(9));
        held.stored(Some(&at(8)));
        assert!(held.read("b").unwrap().is_some());
        held.stored(Some(&at(9)));
        assert!(held.read("b").unwrap().is_none());
        assert_eq!(files(spill.path()), 0);
        assert_eq!(all(held.read("a").unwrap().unwrap()).len(), 1);
    }

    #[test]
    fn a_run_goes_on_with_what_the_log_knows_and_a_process_with_nothing() {
        let spill = tempfile::tempdir().unwrap();
        let mut held = Held::default();
        held.begin_run(spill.path(), &HashSet::new()).unwrap();
        for id in ["a", "b"] {
            held.push(&vec![1; TRANSACTION_MEMORY_BYTES_MAX], true)
                .unwrap();
            held.prepared(id);
        }
        held.push(b"half", true).unwrap();
        held.ended("b".into(), at(1));
        held.begin_run(spill.path(), &HashSet::from(["b"])).unwrap();
        assert!(held.read("a").unwrap().is_none() && held.read("b").unwrap().is_some());
        assert!(all(held.take_current().unwrap()).is_empty());
        assert_eq!((files(spill.path()), held.memory_bytes), (1, 0));
        std::mem::forget(held);
        let mut held = Held::default();
        held.begin_run(spill.path(), &HashSet::from(["b"])).unwrap();
        assert!(held.read("b").unwrap().is_none());
        assert_eq!(files(spill.path()), 0);
    }
}
