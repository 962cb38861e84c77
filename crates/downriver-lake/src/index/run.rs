//! A sorted run of the key index: one immutable local file.
//!
//! ```text
//!  +-------------+-------------+-----+--------+------------+-----+------+
//!  | block 0     | block 1     | ... | fences | blocks u32 | crc | DRK1 |
//!  +-------------+-------------+-----+--------+------------+-----+------+
//!   512 entries of 24 bytes (hash u128, file u32, row u32), then their crc32c; the last block may be shorter
//! ```
//! The last byte of the magic is the format's version. Little endian; ascending hashes, each once. A fence is the upper half of a block's first hash, so one
//! read finds a key. Every block that is used has passed its checksum.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use super::{KeyHash, Location};

const MAGIC: &[u8; 3] = b"DRK";
const VERSION: u8 = b'1';
const ENTRY_BYTES: usize = 24;
const BLOCK_ENTRIES: usize = 512;
const CRC_BYTES: usize = 4;
const TRAILER_BYTES: usize = 12;

#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) path: PathBuf,
    file: File,
    entries: u64,
    fences: Vec<u64>,
}

fn invalid(path: &Path, what: &str) -> std::io::Error {
    std::io::Error::new(
        std::io::ErrorKind::InvalidData,
        format!("key index {}: {what}", path.display()),
    )
}

fn upper_half(hash: KeyHash) -> u64 {
    (hash.0 >> 64) as u64
}

impl Run {
    /// Writes a run from entries in ascending order, each hash once.
    pub(crate) fn write(
        path: &Path,
        entries: impl Iterator<Item = std::io::Result<(KeyHash, Location)>>,
    ) -> std::io::Result<Self> {
        let mut out = BufWriter::with_capacity(1 << 16, File::create(path)?);
        let mut block = Vec::with_capacity(BLOCK_ENTRIES * ENTRY_BYTES + CRC_BYTES);
        let (mut fences, mut count) = (Vec::new(), 0u64);
        let mut finish = |block: &mut Vec<u8>| {
            let crc = crc32c::crc32c(block);
            block.extend_from_slice(&crc.to_le_bytes());
            let written = out.write_all(block);
            block.clear();
            written
        };
        for entry in entries {
            let (hash, location) = entry?;
            if block.is_empty() {
                fences.push(upper_half(hash));
            }
            block.extend_from_slice(&hash.0.to_le_bytes());
            block.extend_from_slice(&location.file.to_le_bytes());
            block.extend_from_slice(&location.row.to_le_bytes());
            count += 1;
            if block.len() == BLOCK_ENTRIES * ENTRY_BYTES {
                finish(&mut block)?;
            }
        }
        if !block.is_empty() {
            finish(&mut block)?;
        }
        let mut tail: Vec<u8> = fences
            .iter()
            .flat_map(|fence| fence.to_le_bytes())
            .collect();
        let blocks = u32::try_from(fences.len()).map_err(std::io::Error::other)?;
        tail.extend_from_slice(&blocks.to_le_bytes());
        tail.extend_from_slice(&crc32c::crc32c(&tail).to_le_bytes());
        tail.extend_from_slice(MAGIC);
        tail.push(VERSION);
        out.write_all(&tail)?;
        let file = out
            .into_inner()
            .map_err(std::io::IntoInnerError::into_error)?;
        file.sync_data()?;
        Ok(Self {
            path: path.to_owned(),
            file: File::open(path)?,
            entries: count,
            fences,
        })
    }

    pub(crate) fn open(path: &Path) -> std::io::Result<Self> {
        let file = File::open(path)?;
        let len = usize::try_from(file.metadata()?.len()).map_err(std::io::Error::other)?;
        let Some(trailer_at) = len.checked_sub(TRAILER_BYTES) else {
            return Err(invalid(path, "is cut short"));
        };
        let mut trailer = [0; TRAILER_BYTES];
        file.read_exact_at(&mut trailer, trailer_at as u64)?;
        if &trailer[8..11] != MAGIC {
            return Err(invalid(path, "is not one"));
        }
        if trailer[11] != VERSION {
            let (found, known) = (trailer[11].escape_ascii(), VERSION as char);
            return Err(invalid(
                path,
                &format!("has format {found}, this build reads {known}"),
            ));
        }
        let number = |at: usize| u32::from_le_bytes(trailer[at..at + 4].try_into().expect("four"));
        let blocks = number(0) as usize;
        let Some(fences_at) = trailer_at.checked_sub(blocks * 8) else {
            return Err(invalid(path, "is cut short"));
        };
        let mut tail = vec![0; blocks * 8 + 4];
        file.read_exact_at(&mut tail, fences_at as u64)?;
        if crc32c::crc32c(&tail) != number(4) {
            return Err(invalid(path, "its fences are damaged"));
        }
        tail.truncate(blocks * 8);
        let fences = tail
            .chunks_exact(8)
            .map(|fence| u64::from_le_bytes(fence.try_into().expect("eight")));
        let data = fences_at
            .checked_sub(blocks * CRC_BYTES)
            .filter(|data| data.is_multiple_of(ENTRY_BYTES))
            .ok_or_else(|| invalid(path, "its length is impossible"))?;
        Ok(Self {
            path: path.to_owned(),
            fences: fences.collect(),
            entries: (data / ENTRY_BYTES) as u64,
            file,
        })
    }

    pub(crate) fn entries(&self) -> u64 {
        self.entries
    }

    /// Finds the hashes that are not found yet; both slices ascend together.
    pub(crate) fn lookup(
        &self,
        hashes: &[KeyHash],
        found: &mut [Option<Location>],
    ) -> std::io::Result<()> {
        let mut loaded: Option<(usize, Vec<u8>)> = None;
        for (hash, found) in hashes.iter().zip(found.iter_mut()) {
            if found.is_some() {
                continue;
            }
            // Several blocks may begin with the same upper half; the last that does not lie above is tried
            // first, then those before it.
            let upper = upper_half(*hash);
            let mut at = self.fences.partition_point(|fence| *fence <= upper);
            while at > 0 {
                at -= 1;
                if loaded.as_ref().is_none_or(|(block, _)| *block != at) {
                    loaded = Some((at, self.block(at)?));
                }
                let (_, block) = loaded.as_ref().expect("it was just loaded");
                *found = search(block, *hash);
                if found.is_some() || self.fences[at] < upper {
                    break;
                }
            }
        }
        Ok(())
    }

    fn block(&self, at: usize) -> std::io::Result<Vec<u8>> {
        let first = at * BLOCK_ENTRIES;
        let entries = (self.entries as usize - first).min(BLOCK_ENTRIES);
        let position = at * (BLOCK_ENTRIES * ENTRY_BYTES + CRC_BYTES);
        let mut block = vec![0; entries * ENTRY_BYTES + CRC_BYTES];
        self.file.read_exact_at(&mut block, position as u64)?;
        checked(&self.path, block)
    }

    /// All entries in order.
    pub(crate) fn iter(
        &self,
    ) -> std::io::Result<impl Iterator<Item = std::io::Result<(KeyHash, Location)>> + use<>> {
        let mut input = BufReader::with_capacity(1 << 16, File::open(&self.path)?);
        let (path, mut left) = (self.path.clone(), self.entries as usize);
        let (mut block, mut at) = (Vec::new(), 0);
        Ok(std::iter::from_fn(move || {
            if at == block.len() {
                if left == 0 {
                    return None;
                }
                let entries = left.min(BLOCK_ENTRIES);
                left -= entries;
                let mut next = vec![0; entries * ENTRY_BYTES + CRC_BYTES];
                match input
                    .read_exact(&mut next)
                    .and_then(|()| checked(&path, next))
                {
                    Ok(next) => (block, at) = (next, 0),
                    Err(error) => {
                        left = 0;
                        return Some(Err(error));
                    }
                }
            }
            let entry = &block[at..at + ENTRY_BYTES];
            at += ENTRY_BYTES;
            Some(Ok((hash_of(entry), location_of(entry))))
        }))
    }
}

fn checked(path: &Path, mut block: Vec<u8>) -> std::io::Result<Vec<u8>> {
    let crc = block.split_off(block.len() - CRC_BYTES);
    if crc32c::crc32c(&block).to_le_bytes()[..] == crc[..] {
        Ok(block)
    } else {
        Err(invalid(path, "a block is damaged"))
    }
}

fn hash_of(entry: &[u8]) -> KeyHash {
    KeyHash(u128::from_le_bytes(
        entry[..16].try_into().expect("sixteen"),
    ))
}

fn location_of(entry: &[u8]) -> Location {
    Location {
        file: u32::from_le_bytes(entry[16..20].try_into().expect("four")),
        row: u32::from_le_bytes(entry[20..24].try_into().expect("four")),
    }
}

fn search(block: &[u8], hash: KeyHash) -> Option<Location> {
    let (mut low, mut high) = (0, block.len() / ENTRY_BYTES);
    while low < high {
        let middle = (low + high) / 2;
        let entry = &block[middle * ENTRY_BYTES..][..ENTRY_BYTES];
        match hash_of(entry).cmp(&hash) {
            std::cmp::Ordering::Equal => return Some(location_of(entry)),
            std::cmp::Ordering::Less => low = middle + 1,
            std::cmp::Ordering::Greater => high = middle,
        }
    }
    None
}
