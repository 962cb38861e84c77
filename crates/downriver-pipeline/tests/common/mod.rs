//! A capture into a node of its own, for the tests of this crate.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use downriver_cluster::{Node, NodeConfig};
use downriver_event::{Offset, SourcePosition};
use downriver_log::Log;
use downriver_log::store::LocalStore;
use downriver_pipeline::capture::{
    self, CaptureConfig, CaptureControl, Database, NoHelpers, PostgresSource, SnapshotConfig,
    WalBehind,
};
use downriver_pipeline::status::Board;
use downriver_pipeline::{SourceStatus, TableState};
use downriver_source::postgres::catalog::Catalog;
use downriver_source::postgres::config::PostgresConfig;
use downriver_testkit::host;
use downriver_testkit::postgres::{CDC_PASSWORD, Postgres};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Capture {
    pub(crate) status: Board<SourceStatus>,
    pub(crate) control: Arc<CaptureControl>,
    task: JoinHandle<()>,
}

pub(crate) fn config(postgres: &Postgres, folder: &Path) -> CaptureConfig {
    let mut source = PostgresConfig::from_url(&postgres.source_url()).unwrap();
    source.password = Some(CDC_PASSWORD.into());
    source.tables = vec!["public.*".into()];
    source.slot = "downriver_shop".into();
    source.publication = "downriver_shop".into();
    CaptureConfig {
        name: "shop".into(),
        database: Database::Postgres(Box::new(PostgresSource {
            connection: source,
            wal_behind: WalBehind::default(),
            heartbeat: None,
        })),
        snapshot: SnapshotConfig {
            initial: true,
            chunk_rows: 150,
            max_workers: 2,
            rows_per_second: 0,
            helpers: Arc::new(NoHelpers),
        },
        repairs_holes: false,
        spill: folder.join("spill"),
    }
}

/// How the captured database is reached.
pub(crate) fn connection(config: &CaptureConfig) -> &PostgresConfig {
    match &config.database {
        Database::Postgres(source) => &source.connection,
        Database::Mysql(_) => unreachable!("these tests have none"),
    }
}

impl Capture {
    pub(crate) fn start(config: &CaptureConfig, node: &Arc<Node>) -> Self {
        Self::start_into(config, node.clone())
    }

    pub(crate) fn start_into(config: &CaptureConfig, log: Arc<dyn Log>) -> Self {
        let status = Board::default();
        let control = Arc::new(CaptureControl::default());
        let run = capture::run(
            config.clone(),
            log,
            status.clone(),
            Arc::clone(&control),
            CancellationToken::new(),
        );
        Capture {
            task: tokio::spawn(run),
            status,
            control,
        }
    }

    /// Waits until everything committed before the call is in the log.
    pub(crate) async fn caught_up(&self, config: &CaptureConfig) -> Offset {
        let catalog = Catalog::connect(connection(config)).await.unwrap();
        let position = SourcePosition::Postgres(catalog.current_position().await.unwrap());
        host::until("the capture to catch up", PATIENCE, async || {
            self.control.nudge.notify_one();
            let status = self.status.get();
            assert_ne!(status.state, TableState::Stopped, "{:?}", status.problem);
            for (name, table) in &status.tables {
                assert_ne!(
                    table.state,
                    TableState::Stopped,
                    "{name}: {:?}",
                    table.problem
                );
            }
            Ok(status.has_passed(&position) && status.state == TableState::Streaming)
        })
        .await
        .unwrap();
        self.status.get().passed_offset
    }

    pub(crate) async fn killed(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

pub(crate) async fn node(folder: &Path) -> Arc<Node> {
    node_sealing(folder, Duration::from_millis(700)).await
}

pub(crate) async fn node_sealing(folder: &Path, every: Duration) -> Arc<Node> {
    let store = Arc::new(LocalStore::open(&folder.join("objects")).unwrap());
    let mut config = NodeConfig::new(folder.join("node"), store);
    config.seal_interval = every;
    Node::start(config).await.unwrap()
}
