//! The readers that Downriver is compared with: the databases' own clients, which print or throw away what they read.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, bail};
use downriver_testkit::Postgres;
use downriver_testkit::mysql::Mysql;
use tokio_postgres::types::PgLsn;

use super::measure::{self, Meter, Reading};
use super::node::PATIENCE;
use super::workloads::Backlog;

pub(super) fn recvlogical(
    postgres: &Postgres,
    slot: &str,
    publication: &str,
    backlog: &Backlog,
) -> Command {
    let mut command = Command::new(postgres.program("pg_recvlogical"));
    command
        .args(["--start", "--no-loop", "-f", "/dev/null"])
        .args(["-h", "127.0.0.1", "-U", "postgres", "-d", "shop"])
        .args(["-p", &postgres.port().to_string()])
        .args(["-S", slot])
        .arg(format!("--endpos={}", PgLsn::from(backlog.end)))
        .args(["-o", "proto_version=1"])
        .args(["-o", &format!("publication_names={publication}")]);
    command
}

pub(super) fn copy(postgres: &Postgres, table: &str) -> Command {
    let mut command = Command::new(postgres.program("psql"));
    command
        .args(["-X", "-q", "-d", &postgres.admin_url("shop"), "-c"])
        .arg(format!("copy {table} to stdout (format binary)"));
    command
}

/// Ends with the server's last file, which nobody writes to. Each file that it would write to `folder` is `/dev/null`.
pub(super) fn mysqlbinlog(mysql: &Mysql, folder: &Path, backlog: &Backlog) -> Result<Command> {
    let first = backlog.log_file.as_deref();
    let first = first.context("the backlog begins no file")?;
    for file in mysql.binlogs()? {
        let name = file.file_name().context("a binlog has a name")?;
        std::os::unix::fs::symlink("/dev/null", folder.join(name))?;
    }
    let mut command = mysql.client_program("mysqlbinlog");
    command
        .args(["--read-from-remote-server", "--raw", "--to-last-log"])
        .arg(format!("--result-file={}/", folder.display()))
        .arg(first);
    Ok(command)
}

pub(super) fn select(mysql: &Mysql, table: &str) -> Command {
    let mut command = mysql.client_program("mysql");
    command
        .args(["--quick", "--batch", "--skip-column-names", "--execute"])
        .arg(format!("select * from {table}"))
        .arg("shop");
    command
}

/// Measures a client from its start to its end.
pub(super) async fn run_to_end(mut command: Command, server: u32) -> Result<Reading> {
    let mut errors = tempfile::tempfile()?;
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(errors.try_clone()?);
    let meter = Meter::start(server, 0.0)?;
    let program = command.get_program().to_owned();
    let mut child = Killed(
        command
            .spawn()
            .with_context(|| format!("run {}", program.display()))?,
    );
    let used = measure::until_ended(&child.0, PATIENCE).await?;
    let reading = meter.finish(used)?;
    let status = child.0.wait()?;
    if !status.success() {
        let mut text = Vec::new();
        std::io::Seek::rewind(&mut errors)?;
        std::io::Read::read_to_end(&mut errors, &mut text)?;
        bail!(
            "{} ended with {status}: {}",
            program.display(),
            String::from_utf8_lossy(&text)
        );
    }
    Ok(reading)
}

/// A child that does not outlive an error.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // Both fail when it has ended and was waited for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
