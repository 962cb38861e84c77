//! What a process is told instead of what its disk and its clock would say: the other end of `tests/shim`.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::host;

mod cell;

pub use cell::{CELLS, Cell, VARIABLE};

/// The cells of one process, and of those that are started after it with the same variables.
#[derive(Debug)]
pub struct Board {
    file: File,
    path: PathBuf,
    shim: PathBuf,
}

impl Board {
    /// In a folder that is not on a disk that is hurt. None where the shim was not built.
    pub fn new(folder: &Path) -> Result<Option<Self>> {
        let Some(shim) = host::beside_executable("libdownriver_shim.so")? else {
            return Ok(None);
        };
        let path = folder.join("board");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)
            .with_context(|| format!("make {}", path.display()))?;
        file.set_len((CELLS * size_of::<i64>()) as u64)?;
        Ok(Some(Self { file, path, shim }))
    }

    /// What a process is to be started with.
    pub fn variables(&self) -> [(String, String); 2] {
        let of = |name: &str, path: &Path| (name.to_owned(), path.display().to_string());
        [of("LD_PRELOAD", &self.shim), of(VARIABLE, &self.path)]
    }

    pub fn get(&self, cell: Cell) -> Result<i64> {
        let mut bytes = [0; size_of::<i64>()];
        self.file.read_exact_at(&mut bytes, place(cell))?;
        Ok(i64::from_ne_bytes(bytes))
    }

    pub fn set(&self, cell: Cell, value: i64) -> Result<()> {
        self.file.write_all_at(&value.to_ne_bytes(), place(cell))?;
        Ok(())
    }

    /// Lets every call be answered as it is.
    pub fn heal(&self) -> Result<()> {
        self.set(Cell::SyncsFail, 0)?;
        self.set(Cell::SyncsLateMs, 0)?;
        self.set(Cell::ClockOffSeconds, 0)
    }
}

fn place(cell: Cell) -> u64 {
    cell as u64 * size_of::<i64>() as u64
}
