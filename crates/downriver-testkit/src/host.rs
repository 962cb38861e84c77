//! This machine: where programs and caches are, what a process used, how to stop one.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// The folder that outlasts a checkout; the same rule as `scripts/cache-dir.sh`.
pub fn cache_dir() -> PathBuf {
    if let Some(dir) = std::env::var_os("DOWNRIVER_CACHE") {
        return dir.into();
    }
    let base = std::env::var_os("XDG_CACHE_HOME").map_or_else(
        || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache"),
        PathBuf::from,
    );
    base.join("downriver")
}

/// A program of the Python environment that `scripts/setup.sh` makes.
pub fn venv_program(name: &str) -> Result<PathBuf> {
    let path = cache_dir().join("venv/bin").join(name);
    if !path.exists() {
        bail!("{} is missing: run scripts/setup.sh test", path.display());
    }
    Ok(path)
}

/// Where the packages of that environment are.
pub(crate) fn python_packages() -> Result<PathBuf> {
    let lib = cache_dir().join("venv/lib");
    let mut versions = std::fs::read_dir(&lib)
        .with_context(|| format!("{} is missing: run scripts/setup.sh test", lib.display()))?;
    let python = versions.next().context("the environment has no Python")??;
    Ok(python.path().join("site-packages"))
}

/// The `downriver` binary: `DOWNRIVER_BIN`, else beside the running executable.
pub fn downriver_binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("DOWNRIVER_BIN") {
        return Ok(path.into());
    }
    beside_executable("downriver")?.context(
        "no downriver binary beside this executable: build the workspace or set DOWNRIVER_BIN",
    )
}

/// What the workspace's build left beside the running executable, if it is there.
pub(crate) fn beside_executable(name: &str) -> Result<Option<PathBuf>> {
    let executable = std::env::current_exe().context("path of the running executable")?;
    // target/<profile>/xtask or target/<profile>/deps/<test>
    let folders = executable.ancestors().skip(1).take(2);
    let mut paths = folders.map(|folder| folder.join(name));
    Ok(paths.find(|path| path.is_file()))
}

/// The newest installed PostgreSQL's folder of programs, or the one named by `DOWNRIVER_PG_BIN`.
pub fn postgres_programs() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("DOWNRIVER_PG_BIN") {
        return Ok(dir.into());
    }
    let mut versions: Vec<(u32, PathBuf)> = std::fs::read_dir("/usr/lib/postgresql")
        .context("no PostgreSQL under /usr/lib/postgresql: run scripts/setup.sh")?
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let version = path.file_name()?.to_str()?.parse().ok()?;
            let programs = path.join("bin");
            programs
                .join("postgres")
                .exists()
                .then_some((version, programs))
        })
        .collect();
    versions.sort();
    let (_, programs) = versions
        .pop()
        .context("no PostgreSQL server programs: run scripts/setup.sh")?;
    Ok(programs)
}

/// The folder of one of the PostgreSQL servers that `scripts/setup.sh` installs for tests: `bin`, `lib`, `share`.
pub(crate) fn postgres_of(major: u32) -> Result<PathBuf> {
    let path = cache_dir().join(format!("postgres/node_modules/postgres-{major}/native"));
    if !path.exists() {
        bail!("{} is missing: run scripts/setup.sh test", path.display());
    }
    Ok(path)
}

pub fn is_root() -> bool {
    id_number(&["-u"]).is_ok_and(|id| id == 0)
}

pub(crate) fn id_number(arguments: &[&str]) -> Result<u32> {
    let output = Command::new("id")
        .args(arguments)
        .output()
        .context("run id")?;
    String::from_utf8_lossy(&output.stdout)
        .trim()
        .parse()
        .with_context(|| format!("id {arguments:?} gave no number"))
}

/// A command that runs as `user` where we are root, and as ourselves elsewhere.
pub(crate) fn command_as(user: Option<&str>, program: &Path) -> Command {
    match user {
        Some(user) => {
            let mut command = Command::new("setpriv");
            command.args([
                &format!("--reuid={user}"),
                &format!("--regid={user}"),
                "--clear-groups",
                "--",
            ]);
            command.arg(program);
            command
        }
        None => Command::new(program),
    }
}

/// Sends a signal ("TERM", "KILL", ...) to one process.
pub fn signal(pid: u32, name: &str) {
    // The process may have ended by itself: then there is nothing to tell it.
    let _ = Command::new("kill")
        .args([&format!("-{name}"), &pid.to_string()])
        .output();
}

/// Sends a signal and waits for the end; kills when the time is over. True when it ended by itself.
pub fn stop(child: &mut Child, name: &str, patience: Duration) -> bool {
    signal(child.id(), name);
    if ended_within(child, patience) {
        return true;
    }
    let _ = child.kill();
    let _ = child.wait();
    false
}

pub fn ended_within(child: &mut Child, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    loop {
        if !matches!(child.try_wait(), Ok(None)) {
            return true;
        }
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Peak resident memory of a running process, in bytes.
pub fn peak_memory_bytes(pid: u32) -> Result<u64> {
    status_bytes(pid, "VmHWM:")
}

/// Resident memory of a running process, in bytes.
pub fn memory_bytes(pid: u32) -> Result<u64> {
    status_bytes(pid, "VmRSS:")
}

fn status_bytes(pid: u32, field: &str) -> Result<u64> {
    let status =
        std::fs::read_to_string(format!("/proc/{pid}/status")).context("process has ended")?;
    let line = status
        .lines()
        .find(|line| line.starts_with(field))
        .context("no such field")?;
    let kib: u64 = line[field.len()..]
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .context("not a number")?;
    Ok(kib * 1024)
}

/// User and system time that a running process has used, all its threads together, in seconds.
pub fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).context("process has ended")?;
    let after_name = stat
        .rsplit_once(')')
        .context("unexpected /proc/PID/stat")?
        .1;
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    let ticks = |i: usize| {
        fields
            .get(i)
            .and_then(|f| f.parse::<u64>().ok())
            .context("unexpected /proc/PID/stat")
    };
    // Linux reports these in units of 1/100 s on every architecture that this runs on.
    Ok((ticks(11)? + ticks(12)?) as f64 / 100.0)
}

/// Asks `done` again and again until it says yes; an error names `what` was waited for.
pub async fn until(
    what: &str,
    patience: Duration,
    mut done: impl AsyncFnMut() -> Result<bool>,
) -> Result<()> {
    let deadline = Instant::now() + patience;
    loop {
        let last = match done().await {
            Ok(true) => return Ok(()),
            Ok(false) => String::new(),
            Err(error) => format!(", last error: {error:#}"),
        };
        if Instant::now() > deadline {
            bail!("waited {} s in vain for {what}{last}", patience.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
