//! The stored bytes of every format, under `tests/compat/fixtures`: read by whoever can read the form.
//!
//! A fixture is written once, by the build that brought its format: `DOWNRIVER_WRITE_FIXTURES=1` writes those
//! that are not there. It never replaces one: what a released build wrote must stay readable as it is.

use std::path::{Path, PathBuf};

/// Where a fixture is, a file or a folder. The checkout is the one that the tests are run from: a target folder may
/// outlast the one that they were built in.
#[must_use]
pub fn path(name: &str) -> PathBuf {
    let package =
        std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    Path::new(&package)
        .join("../../tests/compat/fixtures")
        .join(name)
}

/// Where to write a fixture that is wanted and is not there yet.
#[must_use]
pub fn to_write(name: &str) -> Option<PathBuf> {
    let path = path(name);
    (std::env::var_os("DOWNRIVER_WRITE_FIXTURES").is_some() && !path.exists()).then_some(path)
}

/// The bytes of a fixture, after `write` made them if they are wanted and not there yet.
///
/// # Errors
/// It is not there, or cannot be read or written.
pub fn bytes(name: &str, write: impl FnOnce() -> Vec<u8>) -> std::io::Result<Vec<u8>> {
    if let Some(path) = to_write(name) {
        std::fs::write(path, write())?;
    }
    std::fs::read(path(name))
}

/// Copies a fixture's folder, so that what opens it may change it.
///
/// # Errors
/// It cannot be read, or `to` cannot be written.
pub fn copy_folder(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_folder(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}
