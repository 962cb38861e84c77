//! Preflight: everything that is missing is listed at once, with the SQL that mends it, and applying lists the same.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use downriver_testkit::postgres::Options;
use downriver_testkit::{Postgres, resources, shop};
use e2e::{CATCH_UP, Shop};
use serde_json::Value;

struct Preflight {
    shop: Shop,
    yaml: String,
    file: PathBuf,
}

impl Preflight {
    fn of(shop: Shop, tables: &[&str]) -> Result<Self> {
        let yaml = resources::source(&shop.postgres, tables, &[]);
        let file = shop.folder.path().join("source.yaml");
        std::fs::write(&file, &yaml)?;
        Ok(Self { shop, yaml, file })
    }

    async fn findings(&self) -> Result<Vec<Value>> {
        let file = self.file.to_string_lossy();
        let arguments = ["check", "-f", &file, "-o", "json"];
        let answer = self.shop.daemon.run(&arguments).await?;
        let findings: Value = serde_json::from_str(&answer.stdout).context("findings")?;
        findings.as_array().cloned().context("a list")
    }
}

/// Of each finding that is not fine: severity, subject and code.
fn listed(findings: &[Value]) -> Vec<String> {
    let bad = findings
        .iter()
        .filter(|finding| finding["severity"] != "ok");
    let words = |finding: &Value| {
        let word = |key: &str| finding[key].as_str().unwrap_or_default().to_owned();
        format!("{} {} {}", word("severity"), word("subject"), word("code"))
    };
    let mut listed: Vec<String> = bad.map(words).collect();
    listed.sort();
    listed
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_missing_is_listed_and_the_sql_beside_it_mends_it() -> Result<()> {
    let postgres = Postgres::start().await?;
    shop::create(&postgres).await?;
    for statement in [
        "alter role cdc noreplication; revoke create on database shop from cdc",
        "create table unread (id bigint primary key); revoke select on unread from cdc",
        "create table keyless (v int); alter table keyless owner to shop_owner",
        "create table silent (id bigint primary key); alter table silent replica identity nothing;
         alter table silent owner to shop_owner",
        "create unlogged table passing (id bigint primary key); alter table passing owner to shop_owner",
        "create table guarded (id bigint primary key); alter table guarded owner to shop_owner;
         alter table guarded enable row level security; alter table guarded force row level security",
        "create table shapes (id bigint primary key, shape polygon); alter table shapes owner to shop_owner",
        "create view seen as select 1 as id",
    ] {
        postgres.execute(statement).await?;
    }
    let tables = ["public.*", "public.seen", "public.absent"];
    let preflight = Preflight::of(Shop::over(postgres).await?, &tables)?;
    let shop = &preflight.shop;

    let findings = preflight.findings().await?;
    let found = listed(&findings);
    let warnings = [
        "warning public.absent DR-1033",
        "warning public.guarded DR-1037",
        "warning public.keyless DR-1030",
        "warning public.passing DR-1037",
        "warning public.seen DR-1037",
        "warning public.shapes DR-1034",
        "warning public.silent DR-1032",
        "warning public.types DR-1034",
    ];
    let errors = [
        "error public.unread DR-1004",
        "error public.unread DR-1004",
        "error publication DR-1004",
        "error replication privilege DR-1004",
    ];
    ensure!(found == [&errors[..], &warnings[..]].concat(), "{found:#?}");
    let applied = shop.daemon.try_apply(&preflight.yaml).await?;
    ensure!(applied.code == Some(1), "{}", applied.text());
    for word in [
        "may not stream",
        "may not read",
        "does not own",
        "may not create",
    ] {
        ensure!(applied.text().contains(word), "{word}: {}", applied.text());
    }
    ensure!(
        !shop.daemon.exists("source", resources::SOURCE).await?,
        "it was made"
    );

    // As it is printed; the owner's part is somebody else's to do.
    for finding in findings
        .iter()
        .filter(|finding| finding["severity"] == "error")
    {
        let fix = finding["fix"].as_str().context("a fix")?;
        let sql = fix.split("; or ").next().unwrap_or_default();
        if !sql.starts_with("as the owner") {
            shop.postgres.execute(sql).await?;
        }
    }
    shop.postgres
        .execute("alter table unread owner to shop_owner")
        .await?;
    ensure!(
        listed(&preflight.findings().await?) == warnings,
        "{:#?}",
        listed(&preflight.findings().await?)
    );
    let applied = shop.daemon.try_apply(&preflight.yaml).await?;
    ensure!(applied.code == Some(0), "{}", applied.text());
    for word in ["DR-1030", "DR-1032", "DR-1033", "DR-1037"] {
        ensure!(applied.text().contains(word), "{word}: {}", applied.text());
    }
    shop.caught_up().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_cannot_stream_is_told_every_setting_at_once() -> Result<()> {
    let settings = [
        "wal_level = replica",
        "max_wal_senders = 0",
        "max_replication_slots = 0",
    ];
    let postgres = Postgres::start_with(Options {
        settings: settings.map(String::from).into(),
        ..Options::default()
    })
    .await?;
    shop::create(&postgres).await?;
    let preflight = Preflight::of(Shop::over(postgres).await?, &["public.*"])?;
    let findings = preflight.findings().await?;
    let errors: Vec<_> = listed(&findings);
    let expected = [
        "error replication slots DR-1011",
        "error wal_level DR-1010",
        "error walsenders DR-1011",
        "warning public.types DR-1034",
    ];
    ensure!(errors == expected, "{errors:#?}");
    for finding in findings
        .iter()
        .filter(|finding| finding["severity"] == "error")
    {
        let names_it = |word| {
            finding["fix"]
                .as_str()
                .is_some_and(|fix| fix.contains(word))
        };
        ensure!(names_it("max_") || names_it("wal_level"), "{finding}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publication_of_somebody_else_is_checked_and_not_changed() -> Result<()> {
    let postgres = Postgres::start().await?;
    shop::create(&postgres).await?;
    postgres
        .execute("create publication downriver_shop for table customers, orders with (publish = 'insert')")
        .await?;
    let preflight = Preflight::of(
        Shop::over(postgres).await?,
        &["public.customers", "public.carts"],
    )?;
    let shop = &preflight.shop;
    let expected = ["error publication DR-1023", "warning public.carts DR-1038"];
    let findings = preflight.findings().await?;
    ensure!(listed(&findings) == expected, "{findings:#?}");
    for finding in findings
        .iter()
        .filter(|finding| finding["severity"] != "ok")
    {
        let fix = finding["fix"].as_str().context("a fix")?;
        let sql = fix.split("; it is then").next().unwrap_or_default();
        shop.postgres.execute(sql).await?;
    }
    ensure!(
        listed(&preflight.findings().await?).is_empty(),
        "{:#?}",
        preflight.findings().await?
    );
    shop.daemon.apply(&preflight.yaml).await?;
    tokio::time::timeout(CATCH_UP, shop.caught_up()).await?
}

/// A table is locked while it is read, and the server lets nobody lock it who may read some of its columns only.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grant_of_columns_is_not_enough_and_the_columns_without_one_are_named() -> Result<()> {
    let postgres = Postgres::start().await?;
    for statement in [
        "create table parts (id int primary key, a text, secret text, \"Other\" text);
         insert into parts select i, 'a', 'secret', 'other' from generate_series(1, 100) i",
        "revoke select on parts from cdc; grant select (id, a) on parts to cdc",
        "create publication downriver_shop for table parts",
    ] {
        postgres.execute(statement).await?;
    }
    let shop = Shop::over(postgres).await?;
    let excluded = "exclude_columns: [\"public.parts.secret\"]";
    let mut preflight = Preflight::of(shop, &["public.parts"])?;
    for options in [&[][..], &[excluded]] {
        preflight.yaml = resources::source(&preflight.shop.postgres, &["public.parts"], options);
        std::fs::write(&preflight.file, &preflight.yaml)?;
        let findings = preflight.findings().await?;
        ensure!(
            listed(&findings) == ["error public.parts DR-1004"],
            "{findings:#?}"
        );
        let applied = preflight.shop.daemon.try_apply(&preflight.yaml).await?;
        ensure!(
            applied.code == Some(1) && applied.text().contains("not secret, Other"),
            "{}",
            applied.text()
        );
    }
    let shop = &preflight.shop;
    shop.postgres
        .execute("grant select on parts to cdc")
        .await?;
    let sink = resources::sink_in_folder(&shop.folder.path().join("lake"));
    let pipeline = resources::pipeline("1s");
    shop.daemon
        .apply(&(preflight.yaml.clone() + &sink + &pipeline))
        .await?;
    shop.daemon.wait(CATCH_UP).await?;
    shop.daemon.ok(&["verify", resources::PIPELINE]).await?;
    let events = e2e::log::events(shop).await?;
    let rows = events.iter().filter(|event| event["op"] == "snapshot");
    ensure!(
        rows.count() == 100
            && !events
                .iter()
                .any(|event| event["after"].get("secret").is_some())
    );
    Ok(())
}
