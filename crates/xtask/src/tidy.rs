//! What a machine can check of the tree and the compiler does not.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

pub(crate) fn run() -> Result<()> {
    let listed = Command::new("git")
        .args(["ls-files"])
        .output()
        .context("git ls-files")?;
    let files = String::from_utf8(listed.stdout)?;
    let mut codes = BTreeSet::new();
    let mut faults = Vec::new();
    for file in files.lines() {
        let Ok(text) = std::fs::read_to_string(file) else {
            continue;
        };
        // Written apart, so that this file does not find itself.
        for word in [
            concat!("/wo", "rk/"),
            concat!("../sha", "red"),
            concat!("todo", "!("),
            concat!("unimpl", "emented!("),
        ] {
            if text.contains(word) {
                faults.push(format!("{file} mentions {word}"));
            }
        }
        if file.starts_with("crates/") && !file.starts_with("crates/xtask/") {
            codes.extend(codes_in(&text));
        }
    }
    for code in codes {
        let page = format!("docs/errors/{code}.md");
        if !Path::new(&page).exists() {
            faults.push(format!("{code} has no page {page}"));
        }
    }
    ensure!(faults.is_empty(), "{}", faults.join("\n"));
    println!("tidy");
    Ok(())
}

/// Every `DR-` with four digits.
fn codes_in(text: &str) -> Vec<String> {
    let candidates = text
        .match_indices("DR-")
        .filter_map(|(at, _)| text.get(at..at + 7));
    candidates
        .filter(|code| code[3..].bytes().all(|b| b.is_ascii_digit()))
        .map(str::to_owned)
        .collect()
}
