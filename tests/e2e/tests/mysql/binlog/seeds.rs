//! Where the fuzzing of the decoder begins: the transactions of real servers, in the form that its target takes.
//!
//! ```text
//!   whose, 1 | (bytes of the body, 2 | type, 1 | body)*
//! ```
//!
//! They are written where `DOWNRIVER_WRITE_CORPUS` names a folder.

use std::fs;
use std::path::PathBuf;

use anyhow::Result;
use downriver_testkit::mysql::Mysql;

const SEED_BYTES_MAX: usize = 12 << 10;
const HEADER_BYTES: usize = 19;
const CHECKSUM_BYTES: usize = 4;
/// What opens a transaction: of MySQL, with and without an identifier and a tag, and of MariaDB.
const OPENINGS: [u8; 4] = [33, 34, 42, 162];
/// To the target: so many events that follow lie in a compressed transaction.
const IN_TRANSACTION: u8 = 240;

pub(crate) fn write(server: &Mysql, file: &[u8]) -> Result<()> {
    let Some(folder) = std::env::var_os("DOWNRIVER_WRITE_CORPUS").map(PathBuf::from) else {
        return Ok(());
    };
    fs::create_dir_all(&folder)?;
    let whose = u8::from(server.product().is_mariadb());
    // The server adds a checksum to each.
    let mut events = Vec::new();
    let mut rest = file.get(4..).unwrap_or_default();
    while let Some((kind, len)) = rest.get(4).zip(rest.get(9..13)) {
        let len = u32::from_le_bytes(len.try_into()?) as usize;
        let body = rest.get(HEADER_BYTES..len.saturating_sub(CHECKSUM_BYTES));
        events.push((*kind, body.unwrap_or_default()));
        rest = rest.get(len..).unwrap_or_default();
    }
    for (at, transaction) in events
        .chunk_by(|_, (kind, _)| !OPENINGS.contains(kind))
        .enumerate()
    {
        let plain = seed(whose, transaction, false);
        let name = format!("{:?}-{}-{at}", server.product(), file.len()).to_lowercase();
        let Some(plain) = plain else { continue };
        fs::write(folder.join(&name), plain)?;
        if whose == 0
            && let Some(nested) = seed(whose, transaction, true)
        {
            fs::write(folder.join(format!("{name}-nested")), nested)?;
        }
    }
    Ok(())
}

/// `None`: it is too large to be of use.
fn seed(whose: u8, transaction: &[(u8, &[u8])], is_nested: bool) -> Option<Vec<u8>> {
    let mut seed = vec![whose];
    for (at, (kind, body)) in transaction.iter().enumerate() {
        if at == 1 && is_nested {
            let inner = u16::try_from(transaction.len() - 1).ok()?;
            seed.extend(inner.to_le_bytes());
            seed.push(IN_TRANSACTION);
        }
        seed.extend(u16::try_from(body.len()).ok()?.to_le_bytes());
        seed.push(*kind);
        seed.extend_from_slice(body);
    }
    (seed.len() <= SEED_BYTES_MAX).then_some(seed)
}
