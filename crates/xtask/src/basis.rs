//! What a result rests on: when it was made, of which commit, on which machine.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;

#[derive(Debug, Serialize)]
pub(crate) struct Basis {
    made_at: String,
    commit: String,
    /// The checkout differed from the commit.
    is_modified: bool,
    machine: Machine,
}

#[derive(Debug, Serialize)]
struct Machine {
    cpu: String,
    cores: usize,
    memory_bytes: u64,
    kernel: String,
}

impl Basis {
    pub(crate) fn look() -> Result<Self> {
        Ok(Self {
            made_at: answer("date", &["-u", "+%Y-%m-%d %H:%M UTC"])?,
            commit: answer("git", &["rev-parse", "--short=12", "HEAD"])?,
            is_modified: !answer("git", &["status", "--porcelain"])?.is_empty(),
            machine: Machine::look()?,
        })
    }

    /// The commit's name, shortened.
    pub(crate) fn short(&self) -> &str {
        &self.commit
    }

    /// The time and the commit.
    pub(crate) fn commit(&self) -> String {
        let changes = if self.is_modified {
            " with changes"
        } else {
            ""
        };
        format!("{}: commit {}{changes}", self.made_at, self.commit)
    }

    pub(crate) fn machine(&self) -> String {
        let machine = &self.machine;
        format!(
            "{} x {}, {} GiB, Linux {}",
            machine.cores,
            machine.cpu,
            machine.memory_bytes >> 30,
            machine.kernel
        )
    }
}

impl Machine {
    fn look() -> Result<Self> {
        let field = |file: &str, name: &str| {
            let text = std::fs::read_to_string(file).unwrap_or_default();
            let line = text.lines().find(|line| line.starts_with(name));
            line.and_then(|line| Some(line.split_once(':')?.1.trim().to_owned()))
        };
        let memory_kib = field("/proc/meminfo", "MemTotal")
            .and_then(|text| text.trim_end_matches(" kB").parse::<u64>().ok())
            .context("no MemTotal in /proc/meminfo")?;
        Ok(Self {
            // Not every architecture has the field.
            cpu: field("/proc/cpuinfo", "model name")
                .unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            cores: std::thread::available_parallelism()?.get(),
            memory_bytes: memory_kib << 10,
            kernel: std::fs::read_to_string("/proc/sys/kernel/osrelease")?
                .trim()
                .to_owned(),
        })
    }
}

fn answer(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .with_context(|| format!("run {program}"))?;
    ensure!(
        output.status.success(),
        "{program} ended with {}",
        output.status
    );
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
