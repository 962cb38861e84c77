//! A standby of a server, and its promotion.

use std::fs::OpenOptions;
use std::io::Write;

use anyhow::{Context, Result, bail};

use super::{Postgres, unprivileged_user};
use crate::host;
use crate::port::Port;

impl Postgres {
    /// A running standby of this server, which streams through a physical slot of this name that is made for it.
    pub async fn start_standby(&self, slot: &str, settings: &[&str]) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("downriver-standby-")
            .tempdir()?;
        let base = folder.path().to_path_buf();
        let server_user = unprivileged_user()?;
        if let Some(user) = &server_user {
            let (uid, gid) = (
                host::id_number(&["-u", user])?,
                host::id_number(&["-g", user])?,
            );
            std::os::unix::fs::chown(&base, Some(uid), Some(gid))?;
        }
        let data = base.join("data");
        // With the database: slots are copied over an ordinary session.
        let primary = format!(
            "host=127.0.0.1 port={} user=postgres dbname=postgres",
            self.port()
        );
        let output = host::command_as(server_user.as_deref(), &self.programs.join("pg_basebackup"))
            .args(["-d", &primary, "-X", "stream", "-c", "fast", "--no-sync"])
            .args(["-R", "-C", "-S", slot, "-D"])
            .arg(&data)
            .current_dir("/")
            .output()
            .context("run pg_basebackup")?;
        if !output.status.success() {
            bail!(
                "pg_basebackup failed: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        let mut standby = Self {
            programs: self.programs.clone(),
            client_programs: self.client_programs.clone(),
            log: base.join("server.log"),
            data,
            port: Port::reserve()?,
            server_user,
            environment: self.environment.clone(),
            child: None,
            _folder: Some(folder),
        };
        let mut configuration = OpenOptions::new()
            .append(true)
            .open(standby.data.join("postgresql.conf"))?;
        writeln!(
            configuration,
            "port = {}\nhot_standby_feedback = on",
            standby.port.number()
        )?;
        for line in settings {
            writeln!(configuration, "{line}")?;
        }
        standby.run().await?;
        Ok(standby)
    }

    /// Makes a standby a primary; returns when it is one.
    pub async fn promote(&self) -> Result<()> {
        let client = self.client_of("postgres").await?;
        let promoted = client.query_one("select pg_promote()", &[]).await?;
        if promoted.get::<_, bool>(0) {
            Ok(())
        } else {
            bail!("the standby was not promoted")
        }
    }
}
