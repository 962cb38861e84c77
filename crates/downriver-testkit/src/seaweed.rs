//! SeaweedFS: S3 and an Iceberg REST catalog in one process.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::net::TcpStream;

use crate::host;
use crate::port::Port;
use crate::postgres::tail_of;

pub const ACCESS_KEY: &str = "riverkey";
pub const SECRET_KEY: &str = "riversecret";
/// A plain bucket, for the log's segments and for a warehouse of the built-in catalog.
pub const BUCKET: &str = "lake";
/// The warehouse of SeaweedFS' own catalog.
pub const WAREHOUSE: &str = "warehouse";

/// Whether the catalog has its warehouse: it is made a moment after the catalog begins to answer.
async fn has_warehouse(http: &reqwest::Client, catalog: &str) -> Result<bool> {
    let form = [
        ("grant_type", "client_credentials"),
        ("client_id", ACCESS_KEY),
        ("client_secret", SECRET_KEY),
        ("scope", "catalog"),
    ];
    let asked = http
        .post(format!("{catalog}/v1/oauth/tokens"))
        .form(&form)
        .send();
    let token: serde_json::Value = asked.await?.json().await?;
    let token = token["access_token"].as_str().context("a token")?;
    let namespaces = http.get(format!("{catalog}/v1/{WAREHOUSE}/namespaces"));
    let listed = namespaces.bearer_auth(token).send().await?;
    Ok(listed.status().is_success())
}

pub struct Seaweed {
    folder: tempfile::TempDir,
    s3: Port,
    iceberg: Port,
    _others: Vec<Port>,
    child: Option<Child>,
}

impl Seaweed {
    pub async fn start() -> Result<Self> {
        let program = host::venv_program("weed")?;
        let folder = tempfile::Builder::new()
            .prefix("downriver-weed-")
            .tempdir()?;
        std::fs::create_dir(folder.path().join("volumes"))?;
        let (s3, iceberg) = (Port::reserve()?, Port::reserve()?);
        let others = (0..4)
            .map(|_| Port::reserve())
            .collect::<Result<Vec<_>>>()?;
        let log = File::create(folder.path().join("weed.log"))?;
        let child = Command::new(program)
            .arg("mini")
            .arg(format!("-dir={}", folder.path().join("volumes").display()))
            .args([
                "-ip=127.0.0.1",
                "-ip.bind=127.0.0.1",
                "-master.telemetry=false",
                "-webdav=false",
            ])
            .args([
                "-admin.ui=false",
                "-s3.port.lance=0",
                &format!("-bucket={BUCKET}"),
            ])
            .arg(format!("-tableBucket={WAREHOUSE}"))
            .arg(format!("-master.port={}", others[0].number()))
            .arg(format!("-volume.port={}", others[1].number()))
            .arg(format!("-filer.port={}", others[2].number()))
            .arg(format!("-admin.port={}", others[3].number()))
            .arg(format!("-s3.port={}", s3.number()))
            .arg(format!("-s3.port.iceberg={}", iceberg.number()))
            .arg(format!("-s3.externalUrl=http://127.0.0.1:{}", s3.number()))
            .env("AWS_ACCESS_KEY_ID", ACCESS_KEY)
            .env("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
            .env("HOME", folder.path())
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start weed")?;
        let mut server = Self {
            folder,
            s3,
            iceberg,
            _others: others,
            child: Some(child),
        };
        server.wait_until_ready().await?;
        Ok(server)
    }

    async fn wait_until_ready(&mut self) -> Result<()> {
        let log = self.log();
        let ports = [self.s3.number(), self.iceberg.number()];
        let (catalog, http) = (self.catalog_uri(), reqwest::Client::new());
        host::until("SeaweedFS to listen", Duration::from_secs(60), async || {
            if let Some(child) = &mut self.child
                && let Some(status) = child.try_wait()?
            {
                bail!("weed ended with {status}: {}", tail_of(&log));
            }
            for port in ports {
                TcpStream::connect(("127.0.0.1", port)).await?;
            }
            // The gateway listens before its filer is there and answers 5xx until then.
            for port in ports {
                if crate::daemon::http_status(&format!("127.0.0.1:{port}"), "/v1/config").await?
                    >= 500
                {
                    return Ok(false);
                }
            }
            has_warehouse(&http, &catalog).await
        })
        .await
    }

    pub fn s3_port(&self) -> u16 {
        self.s3.number()
    }

    pub fn s3_endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.s3.number())
    }

    pub fn catalog_uri(&self) -> String {
        format!("http://127.0.0.1:{}", self.iceberg.number())
    }

    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    pub fn log(&self) -> PathBuf {
        self.folder.path().join("weed.log")
    }
}

impl Drop for Seaweed {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            host::stop(&mut child, "TERM", Duration::from_secs(10));
        }
    }
}
