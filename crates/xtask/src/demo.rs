//! The demo: a shop in a real PostgreSQL, under load, becomes an Iceberg lake and a readable log; then the same
//! tables are counted and summed up by PostgreSQL, DuckDB and PyIceberg.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use downriver_testkit::readers::{self, Lake};
use downriver_testkit::workload::{Style, Workload};
use downriver_testkit::{Daemon, Postgres, host, postgres, resources, shop};
use serde_json::Value;

const SCALE: u32 = 50_000;
const LOAD_FOR: Duration = Duration::from_secs(15);
const SHOW_EVERY: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(180);

pub(crate) async fn run(keep: bool) -> Result<()> {
    let folder = tempfile::Builder::new()
        .prefix("downriver-demo-")
        .tempdir()?;
    step("starting PostgreSQL and filling a shop");
    let postgres = Postgres::start_with(postgres::Options {
        data: Some(folder.path().join("postgres")),
        ..postgres::Options::default()
    })
    .await?;
    shop::create(&postgres).await?;
    shop::fill(&postgres, SCALE).await?;

    step("starting downriver dev");
    let mut daemon = Daemon::new(folder.path())?;
    daemon.start().await?;
    let addresses = daemon.addresses()?.clone();
    println!("   gRPC {}, HTTP {}", addresses.grpc, addresses.http);

    step("writing to the shop, and applying a source, a sink and a pipeline");
    let load = Workload::start(
        &postgres,
        Style {
            seed: 42,
            scale: SCALE,
            ..Style::default()
        },
    );
    let yaml = resources(&postgres, folder.path());
    for line in yaml.lines() {
        println!("   {line}");
    }
    daemon.apply(&yaml).await?;

    step("copying, and following what is written meanwhile");
    let until = Instant::now() + LOAD_FOR;
    while Instant::now() < until {
        show_progress(&daemon).await?;
        tokio::time::sleep(SHOW_EVERY).await;
    }
    step("adding a column and changing a key while it runs");
    postgres
        .execute(
            "alter table customers add column loyalty int;
             update customers set loyalty = id % 100 where id <= 1000;
             update orders set id = 900000001 where id = (select min(id) from orders)",
        )
        .await?;
    step("killing downriver with kill -9, and starting it again");
    daemon.kill();
    daemon.start().await?;
    let written = load.stop().await?;
    println!(
        "   the shop wrote {} transactions with {} changes",
        written.transactions, written.changes
    );

    step("waiting until everything is in the lake");
    daemon.wait(PATIENCE).await?;
    print!("{}", daemon.ok(&["status"]).await?);

    step("the same tables, by three engines");
    let lake = Lake::builtin(&daemon)?;
    let compared = readers::compare(&postgres, &lake, &shop::TABLES).await?;
    println!(
        "   {:<20} {:>11} {:>11} {:>11}  {:<12} {:<12} {:<12} equal",
        "table", "PostgreSQL", "DuckDB", "PyIceberg", "checksum", "", ""
    );
    let short = |checksum: &str| checksum.chars().take(12).collect::<String>();
    for table in &compared {
        println!(
            "   {:<20} {:>11} {:>11} {:>11}  {:<12} {:<12} {:<12} {}",
            table.table,
            table.source.rows,
            table.duckdb.rows,
            table.pyiceberg.rows,
            short(&table.source.checksum),
            short(&table.duckdb.checksum),
            short(&table.pyiceberg.checksum),
            if table.equal { "yes" } else { "NO" }
        );
    }

    step("downriver's own comparison, row by row at one position");
    print!("{}", daemon.ok(&["verify", resources::PIPELINE]).await?);

    step("the log's last events, as a subscriber reads them");
    postgres
        .execute("update customers set name = 'seen by tail' where id = 7")
        .await?;
    daemon.wait(PATIENCE).await?;
    let described = daemon.describe("source", resources::SOURCE).await?;
    let next = described["next_offset"].as_u64().unwrap_or_default();
    let from = next.saturating_sub(3).to_string();
    let tail = [
        "tail",
        resources::SOURCE,
        "--from",
        &from,
        "--until",
        "latest",
    ];
    print!("{}", daemon.ok(&tail).await?);

    let different = compared.iter().filter(|table| !table.equal).count();
    ensure!(
        different == 0,
        "{different} tables differ: {:#?}",
        compared.iter().filter(|t| !t.equal).collect::<Vec<_>>()
    );
    if keep {
        show_how_to_go_on(&daemon, &postgres)?;
        daemon.leave_running();
        postgres.leave_running();
        let _ = folder.keep();
        return Ok(());
    }
    step("stopping everything");
    daemon.stop()?;
    println!("To go on by hand: make demo KEEP=1");
    Ok(())
}

fn step(what: &str) {
    println!("== {what}");
}

/// What a user would write, all in one file.
fn resources(postgres: &Postgres, folder: &Path) -> String {
    let snapshot = "snapshot: { mode: initial, chunk_rows: 20000 }";
    resources::source(postgres, &["public.*"], &[snapshot])
        + &resources::sink_in_folder(&folder.join("lake"))
        + &resources::pipeline("2s")
}

async fn show_progress(daemon: &Daemon) -> Result<()> {
    let source = daemon.describe("source", resources::SOURCE).await?;
    let pipeline = daemon.describe("pipeline", resources::PIPELINE).await?;
    let tables = source["tables"].as_array().cloned().unwrap_or_default();
    let copying = tables.iter().filter(|t| t["state"] == "snapshotting");
    let sum = |key: &str| -> u64 {
        let rows = |table: &Value| table["snapshot"][key].as_u64().unwrap_or_default();
        tables.iter().map(rows).sum()
    };
    println!(
        "   {} of {} rows copied, {} tables to go; log at offset {}, lake at {}",
        sum("rows_done"),
        sum("rows_estimated"),
        copying.count(),
        source["next_offset"],
        pipeline["delivered_offset"]
    );
    Ok(())
}

fn show_how_to_go_on(daemon: &Daemon, postgres: &Postgres) -> Result<()> {
    let binary = daemon.binary().display();
    let uri = daemon.catalog_uri()?;
    step("everything is left running");
    println!("   psql '{}'", postgres.admin_url("shop"));
    println!("   export DOWNRIVER_ADDR={}", daemon.addresses()?.grpc);
    println!("   {binary} status --watch");
    println!("   {binary} tail {}", resources::SOURCE);
    println!("   {binary} verify {}", resources::PIPELINE);
    println!("   in DuckDB, with the extensions avro and iceberg:");
    println!(
        "     attach '{}' as lake (type iceberg, endpoint '{uri}', authorization_type 'none', access_delegation_mode 'none');",
        resources::SINK
    );
    println!("     select state, count(*), sum(total) from lake.shop_public.orders group by 1;");
    println!(
        "   in Python, with {}:",
        host::venv_program("python")?.display()
    );
    println!(
        "     from pyiceberg.catalog import load_catalog; c = load_catalog('lake', type='rest', uri='{uri}', warehouse='{}')",
        resources::SINK
    );
    println!(
        "   to stop it: kill {} and the server of psql",
        daemon.pid()?
    );
    Ok(())
}
