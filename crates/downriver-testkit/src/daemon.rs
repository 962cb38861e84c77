//! `downriver dev` as a process, and the client commands against it.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::board::Board;
use crate::disk::SmallDisk;
use crate::postgres::tail_of;
use crate::{host, resources};

/// Of what a small disk holds 64 MiB are kept free by who leads.
const SMALL_DISK_MIB: u32 = 400;

/// What `DIR/addresses.json` says.
#[derive(Clone, Debug, Deserialize)]
pub struct Addresses {
    pub grpc: String,
    pub http: String,
}

/// What a client command answered.
#[derive(Debug)]
pub struct Answer {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Answer {
    /// Everything that was printed, for assertions on messages.
    pub fn text(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }
}

pub struct Daemon {
    binary: PathBuf,
    folder: PathBuf,
    store: Option<String>,
    environment: Vec<(String, String)>,
    arguments: Vec<String>,
    /// Its file, if it is a node of a cluster.
    config: Option<PathBuf>,
    addresses: Option<Addresses>,
    child: Option<Child>,
    disk: Option<SmallDisk>,
    board: Option<Board>,
}

impl Daemon {
    /// A daemon that keeps everything in `folder/data`. It is not running yet.
    pub fn new(folder: &Path) -> Result<Self> {
        Ok(Self::of_binary(host::downriver_binary()?, folder))
    }

    /// The same, of a binary that the caller names.
    pub fn of_binary(binary: PathBuf, folder: &Path) -> Self {
        Self {
            binary,
            folder: folder.to_path_buf(),
            store: None,
            environment: resources::environment()
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value))
                .collect(),
            arguments: Vec::new(),
            config: None,
            addresses: None,
            child: None,
            disk: None,
            board: None,
        }
    }

    /// A node of a cluster, which keeps everything in `folder/data` as its file has to say.
    pub fn of_cluster(binary: PathBuf, folder: &Path, config: PathBuf) -> Self {
        let mut daemon = Self::of_binary(binary, folder);
        daemon.config = Some(config);
        daemon
    }

    /// Where segments are kept: the value of `--store`.
    pub fn with_store(mut self, url: &str) -> Self {
        self.store = Some(url.to_owned());
        self
    }

    pub fn with_variable(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Keeps its data on a small disk of its own, and has a board, as far as this machine allows for either.
    pub fn with_disk_and_clock_to_hurt(mut self) -> Result<Self> {
        fs::create_dir_all(self.data())?;
        self.disk = SmallDisk::mount_at(&self.data(), SMALL_DISK_MIB)?;
        self.board = Board::new(&self.folder)?;
        let variables = self.board.iter().flat_map(Board::variables);
        self.environment.extend(variables);
        Ok(self)
    }

    /// Further arguments of `dev`.
    pub fn with_arguments(mut self, arguments: &[&str]) -> Self {
        let arguments = arguments.iter().map(|argument| (*argument).to_owned());
        self.arguments.extend(arguments);
        self
    }

    pub fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    pub fn log(&self) -> PathBuf {
        self.folder.join("daemon.log")
    }

    pub fn disk(&self) -> Option<&SmallDisk> {
        self.disk.as_ref()
    }

    pub fn board(&self) -> Option<&Board> {
        self.board.as_ref()
    }

    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// Starts the process and returns when it says that it is ready.
    pub async fn start(&mut self) -> Result<()> {
        self.launch()?;
        self.until_ready(Duration::from_secs(60)).await
    }

    /// Starts the process without waiting for it.
    pub fn launch(&mut self) -> Result<()> {
        ensure!(self.child.is_none(), "the daemon runs already");
        fs::create_dir_all(self.data())?;
        // Those of the process before, which may have been killed.
        let _ = fs::remove_file(self.data().join("addresses.json"));
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log())?;
        let mut command = Command::new(&self.binary);
        match &self.config {
            Some(config) => command.args(["server", "--config"]).arg(config),
            None => command
                .args([
                    "dev",
                    "--grpc",
                    "127.0.0.1:0",
                    "--http",
                    "127.0.0.1:0",
                    "--data",
                ])
                .arg(self.data()),
        };
        if let Some(store) = &self.store {
            command.args(["--store", store]);
        }
        command.args(&self.arguments);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        self.addresses = None;
        self.child = Some(
            command
                .spawn()
                .with_context(|| format!("start {}", self.binary.display()))?,
        );
        Ok(())
    }

    pub async fn until_ready(&mut self, patience: Duration) -> Result<()> {
        host::until("the daemon to be ready", patience, async || {
            self.is_ready().await
        })
        .await
        .with_context(|| format!("end of its log:\n{}", tail_of(&self.log())))
    }

    /// Whether it says that it is ready; an error when it has ended, or says nothing.
    pub async fn is_ready(&mut self) -> Result<bool> {
        self.check_alive()?;
        let text = fs::read_to_string(self.data().join("addresses.json"))?;
        let addresses: Addresses = serde_json::from_str(&text)?;
        let ready = http_status(&addresses.http, "/readyz").await? == 200;
        if ready {
            self.addresses = Some(addresses);
        }
        Ok(ready)
    }

    /// An error when the process has ended by itself.
    pub fn check_alive(&mut self) -> Result<()> {
        let child = self.child.as_mut().context("the daemon was not started")?;
        if let Some(status) = child.try_wait()? {
            bail!("the daemon ended with {status}:\n{}", tail_of(&self.log()));
        }
        Ok(())
    }

    pub fn is_running(&mut self) -> bool {
        self.check_alive().is_ok()
    }

    /// SIGKILL: nothing is flushed, nothing is closed.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// SIGSTOP: it does nothing any more, and its connections stay open.
    pub fn freeze(&self) -> Result<()> {
        host::signal(self.pid()?, "STOP");
        Ok(())
    }

    /// SIGCONT.
    pub fn thaw(&self) -> Result<()> {
        host::signal(self.pid()?, "CONT");
        Ok(())
    }

    /// SIGTERM, without waiting for the end.
    pub fn ask_to_stop(&self) -> Result<()> {
        host::signal(self.pid()?, "TERM");
        Ok(())
    }

    /// SIGTERM; an error when it does not end by itself.
    pub fn stop(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            ensure!(
                host::stop(&mut child, "TERM", Duration::from_secs(30)),
                "the daemon did not end within 30 s"
            );
        }
        Ok(())
    }

    pub fn pid(&self) -> Result<u32> {
        Ok(self.child.as_ref().context("the daemon does not run")?.id())
    }

    pub fn addresses(&self) -> Result<&Addresses> {
        self.addresses.as_ref().context("the daemon is not ready")
    }

    /// The built-in catalog's URI.
    pub fn catalog_uri(&self) -> Result<String> {
        Ok(format!("http://{}/iceberg", self.addresses()?.http))
    }

    /// A client command, prepared to be run against this daemon.
    pub fn command(&self, arguments: &[&str]) -> Result<tokio::process::Command> {
        let mut command = tokio::process::Command::new(&self.binary);
        command
            .args(arguments)
            .env("DOWNRIVER_ADDR", &self.addresses()?.grpc)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        Ok(command)
    }

    /// Runs a client command to its end, whatever that is.
    pub async fn run(&self, arguments: &[&str]) -> Result<Answer> {
        let running = self.command(arguments)?.output();
        let output = tokio::time::timeout(Duration::from_secs(600), running)
            .await
            .with_context(|| {
                format!("downriver {} did not end within 600 s", arguments.join(" "))
            })??;
        Ok(Answer {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Runs a client command that must succeed; its standard output.
    pub async fn ok(&self, arguments: &[&str]) -> Result<String> {
        let answer = self.run(arguments).await?;
        ensure!(
            answer.code == Some(0),
            "downriver {} ended with {:?}: {}\nend of the daemon's log:\n{}",
            arguments.join(" "),
            answer.code,
            answer.text(),
            tail_of(&self.log())
        );
        Ok(answer.stdout)
    }

    pub async fn json(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.ok(arguments).await?;
        serde_json::from_str(&text)
            .with_context(|| format!("downriver {} printed no JSON: {text}", arguments.join(" ")))
    }

    /// Writes the YAML to a file and applies it, whatever the answer.
    pub async fn try_apply(&self, yaml: &str) -> Result<Answer> {
        let file = self.folder.join("resources.yaml");
        fs::write(&file, yaml)?;
        self.run(&["apply", "-f", &file.to_string_lossy()]).await
    }

    pub async fn apply(&self, yaml: &str) -> Result<()> {
        let answer = self.try_apply(yaml).await?;
        ensure!(
            answer.code == Some(0),
            "apply ended with {:?}: {}\n{yaml}",
            answer.code,
            answer.text()
        );
        Ok(())
    }

    /// Returns when all that is committed at the source now is delivered.
    pub async fn wait(&self, patience: Duration) -> Result<()> {
        let timeout = format!("{}s", patience.as_secs());
        self.ok(&[
            "wait",
            resources::PIPELINE,
            "--for",
            "caught-up",
            "--timeout",
            &timeout,
        ])
        .await
        .map(|_| ())
    }

    /// `describe -o json`, as the object of the one resource.
    pub async fn describe(&self, kind: &str, name: &str) -> Result<Value> {
        let value = self.json(&["describe", kind, name, "-o", "json"]).await?;
        Ok(match value {
            Value::Array(mut items) if items.len() == 1 => items.remove(0),
            other => other,
        })
    }

    /// Waits until `describe` of a resource satisfies a condition; its last state otherwise.
    pub async fn until_described(
        &self,
        kind: &str,
        name: &str,
        what: &str,
        patience: Duration,
        condition: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        let mut last = Value::Null;
        let waited = host::until(what, patience, async || {
            last = self.describe(kind, name).await?;
            Ok(condition(&last))
        })
        .await;
        waited.with_context(|| format!("{kind} {name} is {last}"))?;
        Ok(last)
    }

    /// Whether a client command finds the resource.
    pub async fn exists(&self, kind: &str, name: &str) -> Result<bool> {
        Ok(self.run(&["get", kind, name]).await?.code == Some(0))
    }

    /// Leaves the process running when this value is dropped.
    pub fn leave_running(mut self) {
        self.child = None;
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            host::stop(&mut child, "TERM", Duration::from_secs(10));
        }
    }
}

/// The entry of `tables` for "schema.table".
pub fn table_in<'a>(described: &'a Value, table: &str) -> Option<&'a Value> {
    described["tables"]
        .as_array()?
        .iter()
        .find(|entry| entry["table"] == table)
}

/// The status of a plain HTTP GET.
pub async fn http_status(address: &str, path: &str) -> Result<u16> {
    Ok(http_get(address, path).await?.0)
}

/// The status and the body of a plain HTTP GET.
pub async fn http_get(address: &str, path: &str) -> Result<(u16, String)> {
    let exchange = async {
        let mut stream = tokio::net::TcpStream::connect(address).await?;
        stream
            .write_all(
                format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")
                    .as_bytes(),
            )
            .await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
        let status = status.context("no HTTP status in the answer")?;
        Ok((status, body.to_owned()))
    };
    tokio::time::timeout(Duration::from_secs(5), exchange)
        .await
        .context("no answer within 5 s")?
}
