//! The binary that is measured.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;
use serde_json::Value;

#[derive(Clone, Debug, Serialize)]
pub(super) struct Binary {
    pub(super) path: PathBuf,
    pub(super) version: String,
    /// Built by this run, from this checkout, with the release profile.
    pub(super) is_release_build: bool,
}

/// `DOWNRIVER_BIN`, else a release build of this checkout.
pub(super) fn binary() -> Result<Binary> {
    let (path, is_release_build) = match std::env::var_os("DOWNRIVER_BIN") {
        Some(path) => (PathBuf::from(path), false),
        None => (build()?, true),
    };
    let output = Command::new(&path)
        .arg("--version")
        .output()
        .with_context(|| format!("run {}", path.display()))?;
    ensure!(
        output.status.success(),
        "{} --version ended with {}",
        path.display(),
        output.status
    );
    Ok(Binary {
        path,
        version: String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        is_release_build,
    })
}

fn build() -> Result<PathBuf> {
    println!("== building downriver with the release profile (minutes, the first time)");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args([
            "build",
            "--release",
            "--package",
            "downriver",
            "--message-format",
            "json-render-diagnostics",
        ])
        .stderr(Stdio::inherit())
        .output()
        .context("run cargo build")?;
    ensure!(
        output.status.success(),
        "cargo build ended with {}",
        output.status
    );
    let messages = String::from_utf8_lossy(&output.stdout);
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["target"]["name"] == "downriver")
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .context("cargo named no executable downriver")
}
