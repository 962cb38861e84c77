//! Free loopback ports that two tests never get at the same time.
//!
//! A port is held by a lock on a file named after it, not by a socket: the server must be able to bind
//! it. The range lies below the ports that the system gives to outgoing connections, and every port
//! leaves its number plus 10,000 free, where SeaweedFS listens as well.

use std::fs::File;
use std::net::TcpListener;

use anyhow::{Context, Result, bail};
use rand::Rng;

const FIRST: u16 = 12_000;
const LAST: u16 = 22_000;

/// A reserved port; free again when dropped.
#[derive(Debug)]
pub struct Port {
    number: u16,
    _lock: File,
}

impl Port {
    pub fn reserve() -> Result<Self> {
        let folder = std::env::temp_dir().join("downriver-ports");
        std::fs::create_dir_all(&folder).context("make the folder of port locks")?;
        for _ in 0..1_000 {
            let number = rand::rng().random_range(FIRST..LAST);
            let Ok(lock) = File::create(folder.join(number.to_string())) else {
                continue;
            };
            if lock.try_lock().is_ok() && is_free(number) && is_free(number + 10_000) {
                return Ok(Self {
                    number,
                    _lock: lock,
                });
            }
        }
        bail!("no free port between {FIRST} and {LAST}")
    }

    pub fn number(&self) -> u16 {
        self.number
    }
}

fn is_free(port: u16) -> bool {
    TcpListener::bind(("127.0.0.1", port)).is_ok()
}
