//! Servers and sessions of other time zones: an instant stays one, and what a wall clock shows stays that.

use anyhow::{Context as _, Result, ensure};
use downriver_testkit::mysql::{Mysql, Product};
use e2e::mysql::Shop;
use mysql_async::prelude::Queryable as _;

/// Beside the times themselves: keys, defaults of the clock, an update of nothing else.
const TABLES: &str = "
    create table clocks (id int primary key, at timestamp(6) null, wall datetime(6), day date,
                         made timestamp not null default current_timestamp on update current_timestamp, note varchar(20));
    create table by_instant (at timestamp(3) not null, n int, primary key (at, n));";

/// The clock goes back in New York at 2024-11-03T06:00:00Z and forward at 2024-03-10T07:00:00Z.
const TIMES: &str = "
    set time_zone = 'ZONE';
    insert into clocks (id, at, wall, day) values
        (BASE + 1, '2024-07-04 12:00:00.123456', '2024-07-04 12:00:00.123456', '2024-07-04'),
        (BASE + 2, '2024-11-03 01:30:00', '2024-11-03 01:30:00', '2024-11-03'),
        (BASE + 3, '2024-03-10 03:00:00', '2024-03-10 02:30:00', null),
        (BASE + 4, '1970-01-02 00:00:01', '0001-01-01 00:00:00', '0001-01-01'),
        (BASE + 5, '2038-01-18 00:00:00', '9999-12-31 23:59:59.999999', '9999-12-31'),
        (BASE + 6, 0, 0, 0), (BASE + 7, null, null, null);
    set timestamp = 1730611800; insert into clocks (id, at, wall) values (BASE + 8, now(), now());
    set timestamp = 1730615400; insert into clocks (id, at, wall) values (BASE + 9, now(), now());
    set timestamp = default;
    insert into by_instant select at, id from clocks where id > BASE and at is not null and at <> 0";

async fn zones(mysql: &Mysql) -> Result<()> {
    let (tool, client) = match mysql.product().is_mariadb() {
        true => ("mariadb-tzinfo-to-sql", "mariadb"),
        false => ("mysql_tzinfo_to_sql", "mysql"),
    };
    let folder = tempfile::tempdir()?;
    for zone in ["America/New_York", "Europe/Berlin"] {
        let to = folder.path().join(zone);
        std::fs::create_dir_all(to.parent().context("it has a folder")?)?;
        std::fs::copy(format!("/usr/share/zoneinfo/{zone}"), to)?;
    }
    let sql = folder.path().join("zones.sql");
    let written = std::fs::File::create(&sql)?;
    let made = mysql
        .tool(tool)
        .arg(folder.path())
        .stdout(written)
        .status()?;
    let mut load = mysql.client_program(client);
    let loaded = load
        .arg("mysql")
        .stdin(std::fs::File::open(&sql)?)
        .status()?;
    ensure!(made.success() && loaded.success(), "the zones are missing");
    Ok(())
}

async fn of_sessions(mysql: &Mysql, base: u32) -> Result<()> {
    for (at, zone) in ["America/New_York", "Europe/Berlin", "+00:00", "-11:30"]
        .into_iter()
        .enumerate()
    {
        let mut client = mysql.client().await?;
        let times = TIMES
            .replace("ZONE", zone)
            .replace("BASE", &(base + 20 * at as u32).to_string());
        client.query_drop(times).await.with_context(|| zone)?;
    }
    Ok(())
}

async fn are_the_same_everywhere(product: Product) -> Result<()> {
    // Before the zones are known to the server it can be given an offset only.
    let mut shop = Shop::open_with(product, &["default-time-zone = -05:00"]).await?;
    zones(&shop.mysql).await?;
    shop.mysql
        .administer("set global time_zone = 'America/New_York'")
        .await?;
    shop.mysql.execute(TABLES).await?;
    of_sessions(&shop.mysql, 0).await?;
    shop.deliver_with(
        &["shop.*"],
        &["snapshot: { mode: initial, chunk_rows: 5, max_workers: 2 }"],
    )
    .await?;
    let tables = ["clocks", "by_instant"];
    shop.ensure_equal(&tables).await?;

    of_sessions(&shop.mysql, 100).await?;
    let changes = "
        update clocks set note = 'changed' where id % 3 = 0;
        update by_instant set at = at + interval 1 hour where n % 5 = 2;
        delete from by_instant where n % 5 = 3";
    shop.mysql.execute(changes).await?;
    shop.ensure_equal(&tables).await?;

    // Values that a change of the table computes in its session's zone.
    let mut client = shop.mysql.client().await?;
    client
        .query_drop(
            "set time_zone = 'Europe/Berlin';
             alter table clocks modify wall timestamp(6) null default null, modify at datetime(6);
             set time_zone = 'America/New_York';
             alter table clocks add column since timestamp not null default '2024-11-03 01:30:00';
             insert into clocks (id) values (1000)",
        )
        .await?;
    shop.ensure_equal(&tables).await?;
    shop.daemon.kill();
    of_sessions(&shop.mysql, 200).await?;
    shop.mysql
        .administer("set global time_zone = '+09:00'")
        .await?;
    of_sessions(&shop.mysql, 300).await?;
    shop.daemon.start().await?;
    shop.ensure_equal(&tables).await?;
    shop.verify(&["shop.clocks", "shop.by_instant"]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn times_of_mysql_are_the_same_whatever_the_time_zone() -> Result<()> {
    are_the_same_everywhere(Product::Mysql9).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn times_of_mariadb_are_the_same_whatever_the_time_zone() -> Result<()> {
    are_the_same_everywhere(Product::Mariadb11).await
}
