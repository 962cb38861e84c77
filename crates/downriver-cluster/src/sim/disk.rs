//! A disk in memory that loses what was not synced when the power goes, and that may fail to sync.

use std::io;
use std::sync::{Arc, Mutex};

use rand::Rng as _;
use rand::rngs::StdRng;
use redb::StorageBackend;

#[derive(Debug, Default)]
struct Platters {
    bytes: Vec<u8>,
    /// What undoes the writes since the last sync, the oldest first.
    unsynced: Vec<Undo>,
    fails_to_sync: bool,
    /// Since the power came back.
    has_failed: bool,
    /// Counts how often the power went.
    life: u32,
}

#[derive(Debug)]
enum Undo {
    Write { at: usize, before: Vec<u8> },
    Length(Vec<u8>, usize),
}

impl Platters {
    fn undo(&mut self, undo: Undo) {
        match undo {
            Undo::Write { at, before } => {
                self.bytes[at..at + before.len()].copy_from_slice(&before)
            }
            Undo::Length(cut, length) => {
                self.bytes.truncate(length);
                self.bytes.extend(cut);
            }
        }
    }
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Disk(Arc<Mutex<Platters>>);

impl Disk {
    /// As whoever starts now sees it. One from before the power went reads and writes nothing any more.
    pub(crate) fn now(&self) -> Handle {
        let life = self.0.lock().unwrap().life;
        Handle {
            disk: self.clone(),
            life,
        }
    }

    /// Of what was not synced some of the first writes may have come through.
    pub(crate) fn lose_power(&self, random: &mut StdRng) {
        let mut platters = self.0.lock().unwrap();
        let kept = random.random_range(0..=platters.unsynced.len());
        for undo in platters.unsynced.split_off(kept).into_iter().rev() {
            platters.undo(undo);
        }
        platters.unsynced.clear();
        (platters.fails_to_sync, platters.has_failed) = (false, false);
        platters.life += 1;
    }

    /// Whether a sync failed since the power came back.
    pub(crate) fn has_failed(&self) -> bool {
        self.0.lock().unwrap().has_failed
    }

    /// The next sync fails, and what it was to sync is gone from then on, as the kernel has it.
    pub(crate) fn fail_next_sync(&self) {
        self.0.lock().unwrap().fails_to_sync = true;
    }
}

#[derive(Debug)]
pub(crate) struct Handle {
    disk: Disk,
    life: u32,
}

impl Handle {
    fn with<T>(&self, work: impl FnOnce(&mut Platters) -> io::Result<T>) -> io::Result<T> {
        let mut platters = self.disk.0.lock().unwrap();
        if platters.life != self.life {
            return Err(io::Error::other("the power went"));
        }
        work(&mut platters)
    }
}

fn range(offset: u64, len: usize) -> std::ops::Range<usize> {
    let from = usize::try_from(offset).unwrap();
    from..from + len
}

impl StorageBackend for Handle {
    fn len(&self) -> io::Result<u64> {
        self.with(|platters| Ok(platters.bytes.len() as u64))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.with(|platters| {
            let source = platters.bytes.get(range(offset, out.len()));
            out.copy_from_slice(source.ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.with(|platters| {
            let (before, len) = (platters.bytes.len(), usize::try_from(len).unwrap());
            let cut = platters.bytes.get(len..).unwrap_or_default().to_vec();
            platters.unsynced.push(Undo::Length(cut, before.min(len)));
            platters.bytes.resize(len, 0);
            Ok(())
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.with(|platters| {
            if std::mem::take(&mut platters.fails_to_sync) {
                platters.has_failed = true;
                for undo in std::mem::take(&mut platters.unsynced).into_iter().rev() {
                    platters.undo(undo);
                }
                return Err(io::Error::from_raw_os_error(5));
            }
            platters.unsynced.clear();
            Ok(())
        })
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.with(|platters| {
            let range = range(offset, data.len());
            let target = platters.bytes.get_mut(range.clone());
            let target = target.ok_or(io::ErrorKind::UnexpectedEof)?;
            let before = target.to_vec();
            target.copy_from_slice(data);
            let at = range.start;
            platters.unsynced.push(Undo::Write { at, before });
            Ok(())
        })
    }
}
