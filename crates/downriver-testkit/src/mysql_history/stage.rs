//! MySQL and MariaDB as a player needs them.

use anyhow::{Context as _, Result};
use mysql_async::Conn;
use mysql_async::prelude::Queryable as _;

use super::History;
use crate::mysql::{Mysql, Product};
use crate::player::Stage;
use crate::readers::{self, Lake};
use crate::resources;

/// `ER_DUP_ENTRY`.
const SAME_KEY: u16 = 1062;

#[derive(Clone, Copy, Debug)]
pub struct Style {
    pub seed: u64,
    pub product: Product,
}

impl Stage for Mysql {
    type Style = Style;
    type History = History;
    type Session = Conn;

    async fn start(style: Style) -> Result<(Self, History)> {
        // What is committed outlasts the server, as it does where these have their defaults.
        let mut settings = vec!["innodb-flush-log-at-trx-commit = 2"];
        // What servers have where nobody sets it: the binlog names no columns.
        if style.seed % 2 == 1 {
            settings.push(match style.product.is_mariadb() {
                true => "binlog-row-metadata = NO_LOG",
                false => "binlog-row-metadata = MINIMAL",
            });
        }
        // MariaDB loses what `REPLACE` sets to a default there.
        if !style.product.is_mariadb() {
            settings.push(match style.seed / 2 % 3 {
                1 => "binlog-row-image = MINIMAL",
                2 => "binlog-row-image = NOBLOB",
                _ => "binlog-row-image = FULL",
            });
        }
        let mysql = Self::start_with(style.product, &settings).await?;
        mysql.create_capture_user().await?;
        Ok((mysql, History::new(style.seed)))
    }

    async fn session(&self) -> Result<Conn> {
        self.client().await
    }

    /// Rows of equal keys are no failure of a history: which rows there are it leaves to their numbers.
    async fn run(session: &mut Conn, sql: &str) -> Result<()> {
        for statement in sql.split(";\n").flat_map(|part| part.split("; ")) {
            match session.query_drop(statement).await {
                Err(mysql_async::Error::Server(error)) if error.code == SAME_KEY => {}
                done => done.with_context(|| format!("the server refused: {statement}"))?,
            }
        }
        Ok(())
    }

    fn source(&self, options: &[&str]) -> String {
        resources::mysql_source(self, &["shop.*"], options)
    }

    async fn cut(&self) -> Result<()> {
        let query =
            "select id from information_schema.processlist where command like 'Binlog Dump%'";
        let mut administrator = self.client().await?;
        let connections: Vec<u64> = administrator.query(query).await?;
        for id in connections {
            // It may have ended by itself.
            let _ = administrator.query_drop(format!("kill {id}")).await;
        }
        Ok(())
    }

    async fn crash(&mut self) -> Result<()> {
        self.kill()?;
        self.start_again().await
    }

    async fn ensure_equal(&self, lake: &Lake, tables: &[&str]) -> Result<u64> {
        let names = tables
            .iter()
            .filter_map(|table| table.strip_prefix("shop."));
        readers::ensure_equal_mysql(self, lake, &names.collect::<Vec<_>>()).await
    }
}
