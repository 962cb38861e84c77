//! A branch of the bank, in MySQL or MariaDB: a second source of the same cluster.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use downriver_testkit::mysql::{Mysql, Product};
use downriver_testkit::readers::{self, Lake};
use downriver_testkit::resources;
use mysql_async::prelude::Queryable as _;
use serde_json::{Value, json};

use crate::bank::{self, ACCOUNTS, BRANCH_TABLES, EACH, Office};
use crate::round;
use crate::world::World;

pub(crate) const NAME: &str = "branch";
pub(crate) const PIPELINE: &str = "branch-to-lake";

/// What is committed outlasts a server that is killed, as it does where this has its default.
const DURABLE: &str = "innodb-flush-log-at-trx-commit = 2";

pub struct Branch {
    pub mysql: Mysql,
}

impl Branch {
    pub(crate) async fn open(product: Product) -> Result<Self> {
        let mysql = Mysql::start_with(product, &[DURABLE]).await?;
        mysql.create_capture_user().await?;
        for table in BRANCH_TABLES {
            let rows = (1..=ACCOUNTS).map(|id| format!("({id}, {EACH})"));
            let rows = rows.collect::<Vec<_>>().join(", ");
            let create =
                format!("create table {table} (id bigint primary key, amount bigint not null)");
            mysql
                .execute(&format!("{create}; insert into {table} values {rows}"))
                .await?;
        }
        Ok(Self { mysql })
    }

    pub(crate) fn office(&self) -> Office {
        Office::Branch(self.mysql.admin_url())
    }

    /// Its source, reached through this port, and its pipeline into the lake.
    pub(crate) fn resources(&self, port: u16) -> String {
        let here = format!(":{}", self.mysql.port());
        let url = self.mysql.source_url().replace(&here, &format!(":{port}"));
        let source = resources::named_source(NAME, "mysql", &url, &["shop.*"], &[]);
        format!(
            "---\n{source}{}",
            resources::named_pipeline(PIPELINE, NAME, "1s")
        )
    }

    async fn rows(&self, table: &str) -> Result<BTreeMap<i64, Value>> {
        let mut client = self.mysql.client().await?;
        let rows: Vec<(i64, i64)> = client
            .query(format!("select id, amount from {table}"))
            .await?;
        let row = |(id, amount): (i64, i64)| (id, json!({ "id": id, "amount": amount }));
        Ok(rows.into_iter().map(row).collect())
    }

    /// The invariants of the round, of this source.
    pub(crate) async fn check(&self, world: &World) -> Result<()> {
        let log = round::told_alike(world, NAME).await?;
        let events: Vec<Value> = log.into_iter().map(|(_, event)| event).collect();
        round::transactions_come_once(&events)?;
        bank::check(&events, BRANCH_TABLES)?;
        for table in BRANCH_TABLES {
            let (logged, rows) = (round::fold(&events, table)?, self.rows(table).await?);
            ensure!(
                logged == rows,
                "{table} is {rows:?}, and the log says {logged:?}"
            );
        }
        let lake = Lake::builtin_on(&world.cluster.nodes[0], &world.store)?.of_source(NAME);
        let tables = BRANCH_TABLES.map(|table| table.trim_start_matches("shop."));
        readers::ensure_equal_mysql(&self.mysql, &lake, &tables)
            .await
            .context("the lake")?;
        Ok(())
    }
}
