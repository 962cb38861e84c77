//! Certificates for servers that speak TLS, made by openssl as an administrator would.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// A certificate authority of one test, in a folder of its own.
pub struct Authority {
    folder: PathBuf,
}

/// What a server shows, and its secret.
#[derive(Clone, Debug)]
pub struct ServerCertificate {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Authority {
    pub fn new(folder: &Path, name: &str) -> Result<Self> {
        std::fs::create_dir_all(folder)?;
        let authority = Self {
            folder: folder.to_path_buf(),
        };
        authority.openssl(&format!(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN={name} \
             -keyout ca.key -out ca.pem"
        ))?;
        Ok(authority)
    }

    /// The certificate that clients are given.
    pub fn file(&self) -> PathBuf {
        self.folder.join("ca.pem")
    }

    /// A certificate for a server that is reached by this name and no other.
    pub fn issue(&self, host: &str) -> Result<ServerCertificate> {
        std::fs::write(
            self.folder.join("extensions"),
            format!("subjectAltName=DNS:{host}\n"),
        )?;
        self.openssl(&format!(
            "req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN={host} \
             -keyout server.key -out server.csr"
        ))?;
        self.openssl(
            "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile extensions \
             -out server.pem",
        )?;
        Ok(ServerCertificate {
            certificate: self.folder.join("server.pem"),
            key: self.folder.join("server.key"),
        })
    }

    fn openssl(&self, arguments: &str) -> Result<()> {
        let output = Command::new("openssl")
            .args(arguments.split_whitespace())
            .current_dir(&self.folder)
            .output()
            .context("openssl is missing: run scripts/setup.sh test")?;
        ensure!(
            output.status.success(),
            "openssl {arguments}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }
}
