//! A small disk that can be filled.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

/// A tmpfs of a few megabytes; unmounted when dropped.
pub struct SmallDisk {
    folder: tempfile::TempDir,
}

impl SmallDisk {
    /// None, with the reason printed, where this process may not mount.
    pub fn mount(size_mib: u32) -> Result<Option<Self>> {
        let folder = tempfile::Builder::new()
            .prefix("downriver-disk-")
            .tempdir()?;
        let output = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size_mib}m"), "tmpfs"])
            .arg(folder.path())
            .output()?;
        if !output.status.success() {
            let reason = String::from_utf8_lossy(&output.stderr);
            println!(
                "SKIPPED: this process may not mount a small disk ({})",
                reason.trim()
            );
            return Ok(None);
        }
        Ok(Some(Self { folder }))
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Writes until nothing more fits.
    pub fn fill(&self) -> Result<()> {
        let mut ballast = File::create(self.ballast())?;
        for size in [1 << 20, 64 << 10, 4 << 10, 512, 1] {
            let block = vec![0x5a; size];
            while ballast.write_all(&block).is_ok() {}
        }
        Ok(())
    }

    pub fn make_room(&self) -> Result<()> {
        Ok(fs::remove_file(self.ballast())?)
    }

    fn ballast(&self) -> PathBuf {
        self.path().join("ballast")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a process that is still being stopped may hold a file.
        let _ = Command::new("umount")
            .arg("--lazy")
            .arg(self.folder.path())
            .output();
    }
}
