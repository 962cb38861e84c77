//! A standby of a server, and its promotion.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::{Postgres, unprivileged_user};
use crate::host;
use crate::port::Port;

impl Postgres {
    /// A running standby of this server, which streams through a physical slot of this name that is made for it. The
    /// server is stopped for a copy of its data.
    pub async fn start_standby(&mut self, slot: &str, settings: &[&str]) -> Result<Self> {
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
        self.stop();
        let copied = host::command_as(server_user.as_deref(), Path::new("cp"))
            .arg("-a")
            .args([&self.data, &data])
            .current_dir("/")
            .status()
            .context("copy the primary's data")?;
        if !copied.success() {
            bail!("the primary's data cannot be copied");
        }
        self.start_again().await?;
        self.execute(&format!(
            "select pg_create_physical_replication_slot('{slot}')"
        ))
        .await?;
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
            "port = {}\nhot_standby_feedback = on\nprimary_slot_name = '{slot}'\n\
             primary_conninfo = 'host=127.0.0.1 port={} user=postgres dbname=postgres application_name={slot}'",
            standby.port.number(),
            self.port()
        )?;
        for line in settings {
            writeln!(configuration, "{line}")?;
        }
        host::command_as(standby.server_user.as_deref(), Path::new("touch"))
            .arg(standby.data.join("standby.signal"))
            .current_dir("/")
            .status()?;
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
