//! A small disk that can be filled.

use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

/// What a disk is called in the list of mounts, before the id of the process that mounted it.
const DEVICE: &str = "downriver-";

/// A tmpfs of a few megabytes; unmounted when dropped.
pub struct SmallDisk {
    path: PathBuf,
    /// The folder, where nobody else has it.
    _made: Option<tempfile::TempDir>,
}

impl SmallDisk {
    /// None, with the reason printed, where this process may not mount.
    pub fn mount(size_mib: u32) -> Result<Option<Self>> {
        let made = tempfile::Builder::new()
            .prefix("downriver-disk-")
            .tempdir()?;
        let disk = Self::mount_at(made.path(), size_mib)?;
        Ok(disk.map(|mut disk| {
            disk._made = Some(made);
            disk
        }))
    }

    /// The same over a folder that is there and stays.
    pub fn mount_at(path: &Path, size_mib: u32) -> Result<Option<Self>> {
        unmount_leftovers();
        let output = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size_mib}m")])
            .arg(format!("{DEVICE}{}", std::process::id()))
            .arg(path)
            .output()?;
        if !output.status.success() {
            let reason = String::from_utf8_lossy(&output.stderr);
            println!(
                "SKIPPED: this process may not mount a small disk ({})",
                reason.trim()
            );
            return Ok(None);
        }
        Ok(Some(Self {
            path: path.to_path_buf(),
            _made: None,
        }))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes until nothing more fits.
    pub fn fill(&self) -> Result<()> {
        let mut ballast = File::create(self.ballast())?;
        for size in [1 << 20, 64 << 10, 4 << 10, 512, 1] {
            let block = vec![0x5a; size];
            while fits(ballast.write_all(&block))? {}
        }
        Ok(())
    }

    /// Leaves about so much room.
    pub fn leave(&self, mib: u64) -> Result<()> {
        let free = rustix::fs::statvfs(self.path())?;
        let free = (free.f_bavail * free.f_frsize) >> 20;
        let block = vec![0x5a; 1 << 20];
        let mut ballast = File::create(self.ballast())?;
        for _ in mib..free {
            ballast.write_all(&block)?;
        }
        Ok(())
    }

    /// Whether it was full.
    pub fn make_room(&self) -> Result<bool> {
        match fs::remove_file(self.ballast()) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            removed => Ok(removed.map(|()| true)?),
        }
    }

    fn ballast(&self) -> PathBuf {
        self.path().join("ballast")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        unmount(&self.path);
    }
}

/// Lazily: a process that is still being stopped may hold a file.
fn unmount(path: &Path) {
    let _ = Command::new("umount").arg("--lazy").arg(path).output();
}

/// Disks of processes that were killed before they could unmount them.
fn unmount_leftovers() {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    for mount in mounts.lines() {
        let mut words = mount.split(' ');
        let (Some(device), Some(path)) = (words.next(), words.next()) else {
            continue;
        };
        let pid = device.strip_prefix(DEVICE).map(str::parse::<u32>);
        if let Some(Ok(pid)) = pid
            && !Path::new(&format!("/proc/{pid}")).exists()
        {
            unmount(Path::new(path));
        }
    }
}

fn fits(written: std::io::Result<()>) -> Result<bool> {
    match written {
        Err(error) if error.kind() == ErrorKind::StorageFull => Ok(false),
        written => Ok(written.map(|()| true)?),
    }
}
