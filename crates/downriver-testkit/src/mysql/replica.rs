//! A replica of a server by transaction identifiers, and what becomes of both.

use std::time::Duration;

use anyhow::{Context as _, Result};
use mysql_async::prelude::Queryable as _;

use super::Mysql;
use crate::host;

const CATCH_UP: Duration = Duration::from_secs(60);

impl Mysql {
    /// A running replica of this server that has everything from its first transaction on, and logs what it gets. With more
    /// lines of its my.cnf, a server-id among them: 2 by default.
    pub async fn start_replica(&self, settings: &[&str]) -> Result<Self> {
        let mut all = vec!["server-id = 2", "log-slave-updates = ON"];
        if !self.product.is_mariadb() {
            all[1] = "log-replica-updates = ON";
        }
        all.extend(settings);
        let replica = Self::start_empty(self.product, &all).await?;
        replica.follow(self).await?;
        Ok(replica)
    }

    /// Gets from another server what it has more, and goes on with that.
    pub async fn follow(&self, primary: &Self) -> Result<()> {
        let port = primary.port.number();
        let follow = match self.product.is_mariadb() {
            true => format!(
                "stop slave;
                 set global gtid_slave_pos = @@global.gtid_current_pos;
                 change master to master_host = '127.0.0.1', master_port = {port}, master_user = 'root',
                     master_use_gtid = slave_pos, master_connect_retry = 1;
                 start slave"
            ),
            false => format!(
                "stop replica;
                 change replication source to source_host = '127.0.0.1', source_port = {port}, source_user = 'root',
                     source_auto_position = 1, source_connect_retry = 1, get_source_public_key = 1;
                 start replica"
            ),
        };
        self.administer(&follow).await
    }

    /// Gets nothing from any server any more.
    pub async fn promote(&self) -> Result<()> {
        self.administer(match self.product.is_mariadb() {
            true => "stop slave; reset slave all",
            false => "stop replica; reset replica all",
        })
        .await
    }

    /// Waits until it has everything that another server has now.
    pub async fn until_it_has_all_of(&self, primary: &Self) -> Result<()> {
        let position = primary.gtids().await?;
        let has = match self.product.is_mariadb() {
            true => format!("select master_gtid_wait('{position}', 1) = 0"),
            false => format!("select wait_for_executed_gtid_set('{position}', 1) = 0"),
        };
        let mut administrator = self.connect(None).await?;
        host::until(
            &format!("the replica to have {position}"),
            CATCH_UP,
            async || Ok(administrator.query_first(&has).await? == Some(1u8)),
        )
        .await
    }

    /// The identifiers of all that it has, as the server writes them.
    pub async fn gtids(&self) -> Result<String> {
        let query = match self.product.is_mariadb() {
            true => "select @@global.gtid_current_pos",
            false => "select replace(@@global.gtid_executed, '\\n', '')",
        };
        let mut administrator = self.connect(None).await?;
        let gtids: Option<String> = administrator.query_first(query).await?;
        gtids.context("the server says nothing of its identifiers")
    }

    /// Listens at the port of another server, which is killed, and has this one's if it is started again.
    pub async fn take_over(&mut self, other: &mut Self) -> Result<()> {
        other.kill()?;
        self.kill()?;
        std::mem::swap(&mut self.port, &mut other.port);
        self.run().await
    }

    /// Runs statements that need no database.
    pub async fn administer(&self, statements: &str) -> Result<()> {
        let mut administrator = self.connect(None).await?;
        administrator
            .query_drop(statements)
            .await
            .with_context(|| statements.to_owned())
    }
}
