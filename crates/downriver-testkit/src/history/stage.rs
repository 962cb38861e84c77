//! PostgreSQL as a player needs it.

use anyhow::{Context as _, Result, ensure};
use tokio_postgres::Client;

use super::History;
use crate::player::Stage;
use crate::postgres::{Options, Postgres, Version};
use crate::readers::{self, Lake};
use crate::resources;

#[derive(Clone, Copy, Debug)]
pub struct Style {
    pub seed: u64,
    pub version: Version,
}

impl Stage for Postgres {
    type Style = Style;
    type History = History;
    type Session = Client;

    async fn start(style: Style) -> Result<(Self, History)> {
        let options = Options {
            version: style.version,
            ..Options::default()
        };
        let postgres = Self::start_with(options).await?;
        Ok((postgres, History::new(style.seed)))
    }

    async fn session(&self) -> Result<Client> {
        self.client().await
    }

    async fn run(session: &mut Client, sql: &str) -> Result<()> {
        session
            .batch_execute(sql)
            .await
            .with_context(|| format!("the server refused: {sql}"))
    }

    fn source(&self, options: &[&str]) -> String {
        resources::source(self, &["public.*"], options)
    }

    async fn cut(&self) -> Result<()> {
        let sql = "select pg_terminate_backend(active_pid) from pg_replication_slots where active";
        self.execute(sql).await
    }

    async fn crash(&mut self) -> Result<()> {
        self.kill();
        self.start_again().await
    }

    async fn ensure_equal(&self, lake: &Lake, tables: &[&str]) -> Result<u64> {
        let compared = readers::compare(self, lake, tables).await?;
        let different: Vec<_> = compared.iter().filter(|table| !table.equal).collect();
        ensure!(
            different.is_empty(),
            "source and lake differ: {different:#?}"
        );
        Ok(compared.iter().map(|table| table.source.rows).sum())
    }
}
