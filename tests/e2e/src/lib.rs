//! What the end-to-end tests share: a shop in PostgreSQL, a daemon, a pipeline into a lake in a folder.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use downriver_testkit::readers::{self, Lake};
use downriver_testkit::{Daemon, Postgres, resources, shop};

/// How long the slowest machine of ours may take to catch up.
pub const CATCH_UP: Duration = Duration::from_secs(180);

/// Everything of one test under one folder. Fields are dropped in this order: the daemon first.
pub struct Shop {
    pub daemon: Daemon,
    pub postgres: Postgres,
    pub folder: tempfile::TempDir,
}

impl Shop {
    /// PostgreSQL with the shop's tables and a running daemon that knows nothing yet.
    pub async fn open(scale: u32) -> Result<Self> {
        let postgres = Postgres::start().await?;
        shop::create(&postgres).await?;
        if scale > 0 {
            shop::fill(&postgres, scale).await?;
        }
        Self::over(postgres).await
    }

    /// A running daemon beside a prepared PostgreSQL.
    pub async fn over(postgres: Postgres) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("downriver-e2e-")
            .tempdir()?;
        let mut daemon = Daemon::new(folder.path())?;
        daemon.start().await?;
        Ok(Self {
            daemon,
            postgres,
            folder,
        })
    }

    pub fn warehouse(&self) -> PathBuf {
        self.folder.path().join("lake")
    }

    /// The YAML of the usual pipeline: all tables of `public` into a folder.
    pub fn yaml(&self, more: &[&str]) -> String {
        resources::source(&self.postgres, &["public.*"], more)
            + &resources::sink_in_folder(&self.warehouse())
            + &resources::pipeline("1s")
    }

    pub async fn replicate(&self) -> Result<()> {
        self.daemon
            .apply(&self.yaml(&["snapshot: { mode: initial, chunk_rows: 5000, max_workers: 2 }"]))
            .await
    }

    /// Waits until the lake has everything, then compares these tables in both engines.
    pub async fn ensure_equal(&self, tables: &[&str]) -> Result<()> {
        self.daemon.wait(CATCH_UP).await?;
        readers::ensure_equal(&self.postgres, &Lake::builtin(&self.daemon)?, tables).await
    }
}

/// The value of `--store` for SeaweedFS' bucket; the keys come from the environment.
pub fn store_in_s3(endpoint: &str) -> String {
    format!(
        "s3://{}/log?endpoint={endpoint}&region=us-east-1&path_style=true",
        downriver_testkit::seaweed::BUCKET
    )
}
