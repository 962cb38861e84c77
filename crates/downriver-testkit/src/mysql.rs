//! A MySQL or MariaDB server of its own for one test, from the packages that `scripts/setup.sh test` unpacks.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use mysql_async::prelude::Queryable as _;
use mysql_async::{Conn, OptsBuilder, Row};
use serde_json::{Value, json};

use crate::host;
use crate::port::Port;
use crate::postgres::CDC_PASSWORD;

mod replica;

const PURGE_WITHIN: Duration = Duration::from_secs(30);

/// Whose server is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Product {
    Mysql9,
    Mariadb10,
    Mariadb11,
}

impl Product {
    pub const ALL: [Self; 3] = [Self::Mysql9, Self::Mariadb10, Self::Mariadb11];

    fn folder(self) -> &'static str {
        match self {
            Self::Mysql9 => "mysql-9",
            Self::Mariadb10 => "mariadb-10",
            Self::Mariadb11 => "mariadb-11",
        }
    }

    pub fn is_mariadb(self) -> bool {
        self != Self::Mysql9
    }
}

pub struct Mysql {
    product: Product,
    root: PathBuf,
    port: Port,
    child: Option<Child>,
    folder: tempfile::TempDir,
}

impl Mysql {
    /// A running server that writes a binlog with whole rows and what describes them, and an empty database `shop`.
    pub async fn start(product: Product) -> Result<Self> {
        Self::start_with(product, &[]).await
    }

    /// The same with more lines of my.cnf, behind ours and so stronger.
    pub async fn start_with(product: Product, settings: &[&str]) -> Result<Self> {
        let server = Self::start_empty(product, settings).await?;
        let mut administrator = server.connect(None).await?;
        administrator.query_drop("create database shop").await?;
        Ok(server)
    }

    /// The same without the database: nothing was written to its binlog.
    async fn start_empty(product: Product, settings: &[&str]) -> Result<Self> {
        let root = host::cache_dir().join("mysql").join(product.folder());
        ensure!(
            root.join(".unpacked").exists(),
            "{} is missing: run scripts/setup.sh test",
            root.display()
        );
        let mut server = Self {
            product,
            root,
            port: Port::reserve()?,
            child: None,
            folder: tempfile::Builder::new().prefix("downriver-my-").tempdir()?,
        };
        server.initialize(settings)?;
        server.run().await?;
        Ok(server)
    }

    fn initialize(&self, settings: &[&str]) -> Result<()> {
        let folder = self.folder.path().display();
        fs::create_dir(self.folder.path().join("tmp"))?;
        let usr = self.root.join("usr");
        let share = ["share/mariadb", "share/mysql"].map(|share| usr.join(share));
        let share = share.iter().find(|share| share.is_dir());
        let share = share
            .context("the server's messages are missing")?
            .display();
        let product = match self.product.is_mariadb() {
            true => format!("character-sets-dir = {share}/charsets"),
            false => {
                "mysqlx = OFF\nsecure-file-priv =\ngtid-mode = ON\nenforce-gtid-consistency = ON"
                    .into()
            }
        };
        let configuration = format!(
            "[mysqld]\nbasedir = {usr}\nlc-messages-dir = {share}\nplugin-dir = {usr}/lib/mysql/plugin\n\
             datadir = {folder}/data\ntmpdir = {folder}/tmp\nsocket = {folder}/socket\npid-file = {folder}/pid\n\
             log-error = {folder}/server.log\nbind-address = 127.0.0.1\nserver-id = 1\n\
             log-bin = binlog\nbinlog-format = ROW\nbinlog-row-metadata = FULL\ninnodb-buffer-pool-size = 64M\n\
             innodb-flush-log-at-trx-commit = 0\nsync-binlog = 0\ncharacter-set-server = utf8mb4\n\
             default-time-zone = +00:00\nsql-mode =\n{product}\n{}\n",
            settings.join("\n"),
            usr = usr.display(),
        );
        fs::write(self.configuration(), configuration)?;
        let output = match self.product.is_mariadb() {
            true => self
                .program("bin/mariadb-install-db")
                .arg(format!("--basedir={}", usr.display()))
                .args(["--auth-root-authentication-method=normal", "--skip-test-db"])
                .output(),
            false => self
                .program("sbin/mysqld")
                .arg("--initialize-insecure")
                .output(),
        };
        let output = output.context("initialize the server")?;
        ensure!(
            output.status.success(),
            "the server cannot be initialized: {}{}",
            String::from_utf8_lossy(&output.stderr),
            fs::read_to_string(self.log()).unwrap_or_default()
        );
        Ok(())
    }

    pub fn product(&self) -> Product {
        self.product
    }

    pub fn port(&self) -> u16 {
        self.port.number()
    }

    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// One of the server's own clients (`mysqlbinlog`), which connects as its administrator.
    pub fn client_program(&self, name: &str) -> Command {
        let mut command = self.tool(name);
        command
            .args(["--no-defaults", "--protocol=tcp", "--host=127.0.0.1"])
            .arg(format!("--port={}", self.port.number()))
            .arg("--user=root");
        command
    }

    /// One of the server's programs that connect to nothing.
    pub fn tool(&self, name: &str) -> Command {
        Command::new(self.root.join("usr/bin").join(name))
    }

    /// Where its files are; MySQL's self-made certificates among them.
    pub fn data_folder(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Ends the server as a power cut does.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// After it was killed.
    pub async fn start_again(&mut self) -> Result<()> {
        self.run().await
    }

    fn program(&self, name: &str) -> Command {
        let mut command = Command::new(self.root.join("usr").join(name));
        command
            .arg(format!(
                "--defaults-file={}",
                self.configuration().display()
            ))
            .arg(format!("--user={}", whoami()));
        command
    }

    fn configuration(&self) -> PathBuf {
        self.folder.path().join("my.cnf")
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("server.log")
    }

    async fn run(&mut self) -> Result<()> {
        let name = match self.product.is_mariadb() {
            true => "sbin/mariadbd",
            false => "sbin/mysqld",
        };
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log())?;
        let child = self
            .program(name)
            .arg(format!("--port={}", self.port.number()))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start the server")?;
        self.child = Some(child);
        host::until(
            "the server to accept connections",
            Duration::from_secs(60),
            async || {
                if let Some(child) = &mut self.child
                    && let Some(status) = child.try_wait()?
                {
                    let log = fs::read_to_string(self.folder.path().join("server.log"));
                    bail!(
                        "the server ended with {status}: {}",
                        log.unwrap_or_default()
                    );
                }
                Ok(self.connect(None).await.is_ok())
            },
        )
        .await
    }

    async fn connect(&self, database: Option<&str>) -> Result<Conn> {
        let options = OptsBuilder::default()
            .ip_or_hostname("127.0.0.1")
            .tcp_port(self.port.number())
            .user(Some("root"))
            .prefer_socket(false)
            .db_name(database);
        Ok(Conn::new(options).await?)
    }

    /// A connection to `shop` as its administrator.
    pub async fn client(&self) -> Result<Conn> {
        self.connect(Some("shop")).await
    }

    /// Runs statements, each ended by a semicolon.
    pub async fn execute(&self, statements: &str) -> Result<()> {
        let mut client = self.client().await?;
        client
            .query_drop(statements)
            .await
            .with_context(|| statements.chars().take(200).collect::<String>())
    }

    /// The files of the server's binlog, the oldest first.
    pub fn binlogs(&self) -> Result<Vec<PathBuf>> {
        let mut files: Vec<PathBuf> = fs::read_dir(self.data_folder())?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| is_binlog(path))
            .collect();
        files.sort();
        Ok(files)
    }

    /// Begins a new file of the binlog, and drops all before it.
    pub async fn flush_and_purge_binlogs(&self) -> Result<()> {
        self.administer("flush binary logs").await?;
        self.purge_binlogs().await
    }

    /// Drops all files of the binlog but the newest.
    pub async fn purge_binlogs(&self) -> Result<()> {
        if self.product == Product::Mariadb11 {
            // It keeps what no replica has asked for.
            self.administer("set global slave_connections_needed_for_purge = 0")
                .await?;
        }
        let files = self.binlogs()?;
        let newest = files.last().and_then(|file| file.file_name());
        let newest = newest.context("there is no binlog")?.to_string_lossy();
        let purge = format!("purge binary logs to '{newest}'");
        // MariaDB passes over a file that its engine may need still, and says nothing.
        host::until("older binlogs to be dropped", PURGE_WITHIN, async || {
            self.administer(&purge).await?;
            Ok(self.binlogs()?.len() == 1)
        })
        .await
    }

    /// The newest file of the server's binlog, with its first four bytes.
    pub fn newest_binlog(&self) -> Result<Vec<u8>> {
        let files = self.binlogs()?;
        let newest = files.last().context("there is no binlog")?;
        Ok(fs::read(newest)?)
    }
}

impl Mysql {
    /// A user that may do what capture needs, and no more.
    pub async fn create_capture_user(&self) -> Result<()> {
        self.execute(&format!(
            "create user cdc@'%' identified by '{CDC_PASSWORD}';
             grant select, replication slave, replication client, lock tables on *.* to cdc@'%'"
        ))
        .await
    }

    /// The url that its administrator connects to `shop` with.
    pub fn admin_url(&self) -> String {
        format!("mysql://root@127.0.0.1:{}/shop", self.port.number())
    }

    /// The url that a user would write for it.
    pub fn source_url(&self) -> String {
        format!("mysql://cdc@127.0.0.1:{}", self.port.number())
    }

    /// A table's rows as canonical texts, in the form that `compare.py` takes.
    pub async fn canonical_rows(&self, table: &str) -> Result<Value> {
        let mut client = self.client().await?;
        // An instant is written as that of UTC, whatever the server's time zone.
        client.query_drop("set time_zone = '+00:00'").await?;
        let query = "select column_name, data_type, column_type from information_schema.columns
                      where table_schema = 'shop' and table_name = ? order by ordinal_position";
        let columns: Vec<(String, String, String)> = client.exec(query, (table,)).await?;
        ensure!(!columns.is_empty(), "there is no table {table}");
        let forms: Vec<String> = columns
            .iter()
            .map(|(name, ty, whole)| canonical_sql(&identifier(name), ty, whole))
            .collect();
        let rows: Vec<Row> = client
            .query(format!(
                "select {} from {}",
                forms.join(", "),
                identifier(table)
            ))
            .await?;
        let rows = rows.into_iter().map(|row| {
            let cells = (0..row.len()).map(|at| row.get::<Option<String>, _>(at).flatten());
            cells.collect::<Vec<_>>()
        });
        let is_float = |ty: &str| ty == "float" || ty == "double";
        let floats = columns.iter().filter(|(_, ty, _)| is_float(ty));
        Ok(json!({
            "columns": columns.iter().map(|(name, ..)| name).collect::<Vec<_>>(),
            "floats": floats.map(|(name, ..)| name).collect::<Vec<_>>(),
            "rows": rows.collect::<Vec<_>>(),
        }))
    }
}

/// The SQL that turns a value of a type into its canonical text.
fn canonical_sql(column: &str, ty: &str, whole: &str) -> String {
    match ty {
        "bit" if whole == "bit(1)" => format!("elt({column} + 1, 'false', 'true')"),
        "bit" | "year" => format!("concat({column} + 0)"),
        "float" | "double" => format!("concat({column} + 0e0)"),
        "decimal" if whole.contains("zerofill") => format!("concat({column} + 0)"),
        "binary" | "varbinary" | "tinyblob" | "blob" | "mediumblob" | "longblob" | "geometry" => {
            format!("lower(hex({column}))")
        }
        // A date of zeros is no day of a calendar.
        "date" => format!(
            "if(day({column}) = 0 or month({column}) = 0, null, concat(datediff({column}, '1970-01-01')))"
        ),
        "datetime" | "timestamp" => format!(
            "if(day({column}) = 0 or month({column}) = 0, null, concat(timestampdiff(microsecond, '1970-01-01', {column})))"
        ),
        "json" => format!("cast({column} as char)"),
        _ if whole.contains("zerofill") => format!("concat({column} + 0)"),
        _ => format!("concat({column})"),
    }
}

fn identifier(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}

fn is_binlog(path: &Path) -> bool {
    let number = path.extension().and_then(|number| number.to_str());
    path.file_stem().is_some_and(|stem| stem == "binlog")
        && number.is_some_and(|number| number.bytes().all(|byte| byte.is_ascii_digit()))
}

/// The user that this process runs as: a server refuses to run as root unless it is told so.
fn whoami() -> String {
    let output = Command::new("id").arg("-un").output();
    let name = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    name.unwrap_or_default()
}

impl Drop for Mysql {
    fn drop(&mut self) {
        // Nobody is left to tell.
        let _ = self.kill();
    }
}
