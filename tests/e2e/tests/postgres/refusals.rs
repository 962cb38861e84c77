//! Bad input: each gets one clear error with a code and the fix, and leaves nothing half-created.

use anyhow::{Result, ensure};
use downriver_testkit::postgres::Options;
use downriver_testkit::readers::{self, Lake};
use downriver_testkit::{Daemon, Postgres, daemon, resources, seaweed};
use e2e::{CATCH_UP, Shop};

/// Applies and expects a refusal with the code; then no source, slot or publication may exist.
async fn refused(shop: &Shop, yaml: &str, code: &str, word: &str) -> Result<()> {
    let answer = shop.daemon.try_apply(yaml).await?;
    let text = answer.text();
    ensure!(
        answer.code == Some(1),
        "ended with {:?}: {text}",
        answer.code
    );
    ensure!(
        text.contains(code) && text.contains("fix:") && text.contains(word),
        "expected {code} and {word:?}: {text}"
    );
    ensure!(
        !text.contains(seaweed::SECRET_KEY),
        "a secret is shown: {text}"
    );
    ensure!(
        !shop.daemon.exists("source", resources::SOURCE).await?,
        "the source was made"
    );
    let slots = "select count(*) from pg_replication_slots";
    ensure!(shop.postgres.number(slots).await? == 0, "a slot was made");
    let publications = "select count(*) from pg_publication";
    ensure!(
        shop.postgres.number(publications).await? == 0,
        "a publication was made"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_specifications_and_connections_are_refused_by_name() -> Result<()> {
    let shop = Shop::open(0).await?;
    let all = ["public.*"];
    let good = resources::source(&shop.postgres, &all, &[]);
    refused(
        &shop,
        &(good.clone() + "  colour: red\n"),
        "DR-2004",
        "colour",
    )
    .await?;
    let wrong = good.replace("env: SHOP_PASSWORD", "env: CATALOG_CREDENTIAL");
    refused(&shop, &wrong, "DR-1001", "password").await?;
    let unset = good.replace("SHOP_PASSWORD", "NOT_SET_ANYWHERE");
    refused(&shop, &unset, "DR-2010", "NOT_SET_ANYWHERE").await?;
    let nowhere = resources::source_at("postgres://cdc@127.0.0.1:1/shop", &all, &[]);
    refused(&shop, &nowhere, "DR-1002", "127.0.0.1:1").await?;
    let absent = good.replace("/shop\n", "/absent\n");
    refused(&shop, &absent, "DR-1003", "absent").await?;
    let nothing = resources::source(&shop.postgres, &["nothing.*"], &[]);
    refused(&shop, &nothing, "DR-1033", "nothing").await?;
    refused(
        &shop,
        &good.replace("name: shop", "name: Shop"),
        "DR-2003",
        "Shop",
    )
    .await?;
    let sink = resources::sink_in_folder(&shop.folder.path().join("lake"));
    let relative = sink.replace("file:///", "file://");
    refused(&shop, &(good.clone() + &relative), "DR-2012", "absolute").await?;
    let file = shop.folder.path().join("file");
    std::fs::write(&file, "")?;
    let on_a_file = resources::sink_in_folder(&file.join("lake"));
    refused(
        &shop,
        &(good.clone() + &on_a_file),
        "DR-2012",
        "not a folder",
    )
    .await?;
    refused(
        &shop,
        &(good.clone() + &sink + "  colour: red\n"),
        "DR-2011",
        "iceberg.colour",
    )
    .await?;
    let pipeline = resources::pipeline("10s");
    refused(&shop, &(good.clone() + &pipeline), "DR-2015", "lake").await?;
    let history = (good.clone() + &sink + &pipeline).replace("mode: mirror", "mode: history");
    refused(&shop, &history, "DR-2052", "history").await?;
    let hasty = good.clone() + &sink + &resources::pipeline("500ms");
    refused(&shop, &hasty, "DR-2014", "freshness").await?;
    shop.postgres
        .execute("create role reader login password 'river'; alter role reader replication")
        .await?;
    let reader = good.replace("cdc@", "reader@");
    refused(&shop, &reader, "DR-1004", "grant").await?;
    shop.postgres
        .execute("alter role cdc noreplication")
        .await?;
    refused(&shop, &good, "DR-1004", "alter role \"cdc\" replication").await?;
    shop.postgres.execute("alter role cdc replication").await?;
    shop.daemon.apply(&(good + &sink)).await?;
    ensure!(
        shop.daemon.exists("sink", resources::SINK).await?,
        "the sink was not made"
    );
    let missing = shop.daemon.run(&["delete", "group", "shop/none"]).await?;
    ensure!(
        missing.code == Some(1) && missing.text().contains("DR-2042"),
        "{}",
        missing.text()
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_pipeline_uses_is_not_deleted_and_what_it_was_made_for_is_not_moved() -> Result<()> {
    let shop = Shop::open(10).await?;
    let source = resources::source(&shop.postgres, &["public.*"], &[]);
    let sink = resources::sink_in_folder(&shop.folder.path().join("lake"));
    let pipeline = resources::pipeline("10s");
    // The order of documents does not matter.
    let all = format!("{pipeline}{sink}---\n{source}");
    shop.daemon.apply(&all).await?;
    let again = shop.daemon.try_apply(&all).await?;
    ensure!(
        again.code == Some(0) && again.text().matches("unchanged").count() == 3,
        "{}",
        again.text()
    );
    for (kind, name) in [("source", resources::SOURCE), ("sink", resources::SINK)] {
        let answer = shop.daemon.run(&["delete", kind, name, "--yes"]).await?;
        ensure!(
            answer.code == Some(1) && answer.text().contains("DR-2022"),
            "{}",
            answer.text()
        );
    }
    let twice = pipeline.replace("shop-to-lake", "again");
    for (yaml, code) in [
        (twice, "DR-2016"),
        (pipeline.clone() + "namespace: other\n", "DR-2019"),
        (pipeline + "tables: [\"public.nothing\"]\n", "DR-2018"),
    ] {
        let answer = shop.daemon.try_apply(&yaml).await?;
        ensure!(
            answer.code == Some(1) && answer.text().contains(code),
            "{code}: {}",
            answer.text()
        );
    }
    shop.daemon.ok(&["pause", resources::PIPELINE]).await?;
    let answer = shop
        .daemon
        .run(&["wait", resources::PIPELINE, "--for", "caught-up"])
        .await?;
    ensure!(
        answer.code == Some(1) && answer.text().contains("DR-2025"),
        "{}",
        answer.text()
    );
    for (kind, name) in [
        ("pipeline", resources::PIPELINE),
        ("sink", resources::SINK),
        ("source", resources::SOURCE),
    ] {
        shop.daemon.ok(&["delete", kind, name, "--yes"]).await?;
        ensure!(
            !shop.daemon.exists(kind, name).await?,
            "{kind} {name} is still there"
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_logical_wal_is_refused() -> Result<()> {
    let postgres = Postgres::start_with(Options {
        settings: vec!["wal_level = replica".into()],
        ..Options::default()
    })
    .await?;
    let shop = Shop::over(postgres).await?;
    shop.postgres
        .execute("create table t (id int primary key); grant select on t to cdc")
        .await?;
    let source = resources::source(&shop.postgres, &["public.*"], &[]);
    refused(&shop, &source, "DR-1010", "wal_level").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_without_a_key_or_with_a_colliding_name_is_refused_and_the_others_go_on()
-> Result<()> {
    let shop = Shop::open(10).await?;
    shop.postgres
        .execute(
            "create table keyless (a int); alter table keyless owner to shop_owner;
             create table \"Orders\" (id int primary key); alter table \"Orders\" owner to shop_owner",
        )
        .await?;
    shop.capture().await?;
    let described = shop
        .daemon
        .until_described(
            "source",
            resources::SOURCE,
            "the snapshot",
            CATCH_UP,
            |source| source["state"] == "streaming",
        )
        .await?;
    let table = |name: &str| {
        daemon::table_in(&described, name)
            .cloned()
            .unwrap_or_default()
    };
    ensure!(table("public.keyless")["state"] == "refused", "{described}");
    ensure!(table("public.keyless")["code"] == "DR-1030", "{described}");
    ensure!(
        table("public.customers")["state"] == "streaming",
        "{described}"
    );
    let collide = [table("public.Orders"), table("public.orders")];
    ensure!(
        collide.iter().filter(|t| t["code"] == "DR-1031").count() == 1,
        "{described}"
    );
    // The keyless table was not published, so its owner can still change it.
    shop.postgres
        .execute("insert into keyless values (1); update keyless set a = 2; delete from keyless")
        .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deleting_a_source_drops_what_was_made_for_it_and_asks_first() -> Result<()> {
    let shop = Shop::open(10).await?;
    shop.capture().await?;
    shop.caught_up().await?;
    let asked = shop
        .daemon
        .run(&["delete", "source", resources::SOURCE])
        .await?;
    ensure!(
        asked.code == Some(2) && asked.text().contains("slot"),
        "{}",
        asked.text()
    );
    ensure!(
        shop.daemon.exists("source", resources::SOURCE).await?,
        "it was deleted unasked"
    );
    shop.daemon
        .ok(&["delete", "source", resources::SOURCE, "--yes"])
        .await?;
    ensure!(
        !shop.daemon.exists("source", resources::SOURCE).await?,
        "it is still there"
    );
    ensure!(
        shop.postgres
            .number("select count(*) from pg_replication_slots")
            .await?
            == 0,
        "the slot is still there"
    );
    ensure!(
        shop.postgres
            .number("select count(*) from pg_publication")
            .await?
            == 0,
        "the publication is still there"
    );
    // The same name can be used again.
    shop.capture().await?;
    shop.caught_up().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_usage_ends_with_2_and_a_missing_node_with_1() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut daemon = Daemon::new(folder.path())?;
    daemon.start().await?;
    for (arguments, code) in [
        (&["tail", "shop", "--from", "yesterday"][..], 2),
        (&["get", "volcanoes"][..], 2),
        (&["tail", "shop"][..], 1),
        (&["describe", "source", "shop"][..], 1),
    ] {
        let answer = daemon.run(arguments).await?;
        ensure!(
            answer.code == Some(code),
            "{arguments:?}: {:?} {}",
            answer.code,
            answer.text()
        );
    }
    let answer = daemon.run(&["--addr", "127.0.0.1:1", "status"]).await?;
    ensure!(
        answer.code == Some(1) && answer.text().contains("downriver dev"),
        "{}",
        answer.text()
    );
    daemon.stop()
}

/// Engines do not tell such columns apart, so they are refused by name, and the table is read again when they are mended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn columns_whose_names_differ_only_in_case_are_refused_until_one_is_renamed() -> Result<()> {
    let shop = Shop::open(10).await?;
    shop.postgres
        .execute(
            "create table twins (id int primary key, name text, \"Name\" text); alter table twins owner to shop_owner;
             create table later (id int primary key, name text, other text); alter table later owner to shop_owner;
             insert into twins select i, 'a', 'b' from generate_series(1, 50) i; insert into later select * from twins",
        )
        .await?;
    shop.deliver("1s").await?;
    let until = async |table: &str, state: &str, code: Option<&str>| {
        let name = format!("public.{table}");
        let is_so = |source: &serde_json::Value| {
            daemon::table_in(source, &name)
                .is_some_and(|t| t["state"] == state && t["code"].as_str() == code)
        };
        let what = format!("{table} to be {state}");
        shop.daemon
            .until_described("source", resources::SOURCE, &what, CATCH_UP, is_so)
            .await
    };
    until("twins", "refused", Some("DR-1031")).await?;
    until("later", "streaming", None).await?;
    shop.postgres
        .execute(
            "alter table later rename other to \"NAME\"; update later set name = 'c' where id < 10",
        )
        .await?;
    shop.postgres
        .execute("insert into ledger values (1, 'the others go on')")
        .await?;
    until("later", "refused", Some("DR-1031")).await?;
    shop.postgres
        .execute(
            "update later set \"NAME\" = 'd' where id > 40; alter table later rename \"NAME\" to third;
             alter table twins rename \"Name\" to other; delete from later where id = 20; update twins set other = 'c' where id = 1",
        )
        .await?;
    until("twins", "streaming", None).await?;
    until("later", "streaming", None).await?;
    shop.daemon.wait(CATCH_UP).await?;
    let lake = Lake::builtin(&shop.daemon)?;
    let tables = ["public.twins", "public.later", "public.ledger"];
    readers::ensure_equal(&shop.postgres, &lake, &tables).await
}

/// The stream brings the shape that is refused, and nothing else in its transaction, after the catalog has a good one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shape_that_was_mended_before_it_is_read_is_passed() -> Result<()> {
    let mut shop = Shop::open(10).await?;
    shop.postgres
        .execute(
            "create table later (id int primary key, name text, other text); alter table later owner to shop_owner;
             insert into later select i, 'a', 'b' from generate_series(1, 50) i",
        )
        .await?;
    shop.deliver("1s").await?;
    shop.daemon.wait(CATCH_UP).await?;
    shop.daemon.kill();
    shop.postgres
        .execute(
            "alter table later rename other to \"NAME\"; update later set name = 'c' where id < 10",
        )
        .await?;
    shop.postgres
        .execute("alter table later rename \"NAME\" to other; delete from later where id = 20")
        .await?;
    shop.daemon.start().await?;
    // Before it comes to the shape that is refused the table streams as well.
    shop.caught_up().await?;
    let is_again = |source: &serde_json::Value| {
        daemon::table_in(source, "public.later").is_some_and(|table| table["state"] == "streaming")
            && source["state"] == "streaming"
    };
    let what = "the table to be captured again";
    shop.daemon
        .until_described("source", resources::SOURCE, what, CATCH_UP, is_again)
        .await?;
    shop.daemon.wait(CATCH_UP).await?;
    let lake = Lake::builtin(&shop.daemon)?;
    readers::ensure_equal(&shop.postgres, &lake, &["public.later"]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_column_that_takes_a_name_of_the_lakes_own_stops_its_table_until_it_is_renamed()
-> Result<()> {
    let shop = Shop::open(10).await?;
    shop.postgres
        .execute(
            "create table later (id int primary key, name text, other text); alter table later owner to shop_owner;
             insert into later select i, 'a', 'b' from generate_series(1, 50) i",
        )
        .await?;
    shop.deliver("1s").await?;
    shop.daemon.wait(CATCH_UP).await?;
    shop.postgres
        .execute("alter table later rename other to _dr_offset; update later set name = 'c' where id < 10")
        .await?;
    let stands = |pipeline: &serde_json::Value| {
        daemon::table_in(pipeline, "public.later").is_some_and(|table| table["code"] == "DR-3013")
    };
    let what = "the lake's table to stop";
    shop.daemon
        .until_described("pipeline", resources::PIPELINE, what, CATCH_UP, stands)
        .await?;
    shop.postgres
        .execute("alter table later rename _dr_offset to other; update later set name = 'd' where id > 40")
        .await?;
    shop.caught_up().await?;
    shop.daemon.ok(&["resume", resources::PIPELINE]).await?;
    shop.daemon.wait(CATCH_UP).await?;
    let lake = Lake::builtin(&shop.daemon)?;
    readers::ensure_equal(&shop.postgres, &lake, &["public.later"]).await
}
