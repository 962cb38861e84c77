//! The binlog's stream of real servers: what is in the files comes, from wherever it is asked for, or the reason is named.

mod login;

use std::time::Duration;

use super::binlog::read;
use anyhow::{Context as _, Result, bail, ensure};
use downriver_decode::mysql::decoder::Reached;
use downriver_decode::mysql::event::Kind;
use downriver_event::{BinlogPlace, DomainGtids, GtidSet, SourcePosition};
use downriver_source::SourceError;
use downriver_source::mysql::config::MysqlConfig;
use downriver_source::mysql::dump::BinlogStream;
use downriver_testkit::host;
use downriver_testkit::mysql::{Mysql, Product};
use downriver_testkit::proxy::{Mode, Proxy};
use mysql_async::Row;
use mysql_async::prelude::Queryable as _;
use read::Reading;

const LOAD: &str = include_str!("../binlog/load.sql");
/// A heartbeat comes every 10 s.
const EVENT_WITHIN: Duration = Duration::from_secs(90);

fn config(server: &Mysql) -> MysqlConfig {
    let url = format!("mysql://root@127.0.0.1:{}", server.port());
    let config = MysqlConfig::from_url(&url).expect("a valid url");
    MysqlConfig {
        server_id: 4711,
        ..config
    }
}

/// The first event of the server's newest file.
async fn newest_file(server: &Mysql) -> Result<BinlogPlace> {
    let rows: Vec<Row> = server.client().await?.query("show binary logs").await?;
    let newest = rows.last().context("there is no binlog")?;
    Ok(BinlogPlace {
        file: newest.get("Log_name").context("a file's name")?,
        position: 4,
    })
}

/// At a place, with no transaction behind.
fn at_place(server: &Mysql, place: BinlogPlace) -> SourcePosition {
    match server.product().is_mariadb() {
        true => SourcePosition::Mariadb {
            gtids: DomainGtids::default(),
            place,
        },
        false => SourcePosition::Mysql {
            gtids: GtidSet::default(),
            place,
        },
    }
}

/// Behind transactions.
fn behind(server: &Mysql, gtids: &str) -> Result<SourcePosition> {
    let place = BinlogPlace {
        file: "nowhere.000001".into(),
        position: 1 << 40,
    };
    Ok(match server.product().is_mariadb() {
        true => SourcePosition::Mariadb {
            gtids: gtids.parse()?,
            place,
        },
        false => SourcePosition::Mysql {
            gtids: gtids.parse()?,
            place,
        },
    })
}

/// Every transaction that the server has.
async fn executed(server: &Mysql) -> Result<String> {
    let query = match server.product().is_mariadb() {
        true => "select @@gtid_binlog_pos",
        false => "select @@gtid_executed",
    };
    let gtids: Option<String> = server.client().await?.query_first(query).await?;
    Ok(gtids.unwrap_or_default())
}

/// The next event, for a test that asks for no more.
async fn next(stream: &mut BinlogStream) -> Result<Vec<u8>, SourceError> {
    loop {
        if let Some(event) = stream.pop()? {
            return Ok(event.to_vec());
        }
        let filled = tokio::time::timeout(EVENT_WITHIN, stream.fill()).await;
        filled.expect("an event, or an error")?;
    }
}

/// Why the stream ends, whatever comes before.
async fn end(config: &MysqlConfig, from: &SourcePosition) -> Result<SourceError> {
    let mut stream = match BinlogStream::start(config, from).await {
        Ok(stream) => stream,
        Err(error) => return Ok(error),
    };
    loop {
        match next(&mut stream).await {
            Ok(event) if Kind(event[4]) == Kind::HEARTBEAT => bail!("the stream does not end"),
            Ok(_) => {}
            Err(error) => return Ok(error),
        }
    }
}

async fn reading(server: &Mysql, from: &SourcePosition) -> Result<Reading> {
    let (reached, place) = match from.clone() {
        SourcePosition::Mysql { gtids, place } => (Reached::Mysql(gtids), place),
        SourcePosition::Mariadb { gtids, place } => (Reached::Mariadb(gtids), place),
        SourcePosition::Postgres(_) => bail!("of another database"),
    };
    Reading::behind(server, reached, place).await
}

/// Everything that the server has, told as the position is.
async fn all_like(server: &Mysql, from: &SourcePosition) -> Result<SourcePosition> {
    let has_gtids = !matches!(from, SourcePosition::Mysql { gtids, .. } if gtids.is_empty())
        && !matches!(from, SourcePosition::Mariadb { gtids, .. } if gtids.is_empty());
    if has_gtids {
        return behind(server, &executed(server).await?);
    }
    let place = settled(server).await?;
    Ok(at_place(server, place))
}

/// The end of the newest file. MariaDB writes an event into it some time after it began, which the file is waited for.
async fn settled(server: &Mysql) -> Result<BinlogPlace> {
    let newest = newest_file(server).await?;
    let events = format!("show binlog events in '{}'", newest.file);
    let mut client = server.client().await?;
    host::until("the newest file to be complete", EVENT_WITHIN, async || {
        let rows: Vec<Row> = client.query(&events).await?;
        let mut kinds = rows.iter().map(|row| {
            let told = row.get::<String, _>("Event_type").zip(row.get("Info"));
            told.unwrap_or_default()
        });
        let checkpoint = ("Binlog_checkpoint".to_owned(), newest.file.clone());
        Ok(!server.product().is_mariadb() || kinds.any(|told| told == checkpoint))
    })
    .await?;
    Ok(BinlogPlace {
        position: u64::try_from(server.newest_binlog()?.len())?,
        ..newest
    })
}

/// What the stream brings from a position on until it has everything.
async fn rows_behind(
    server: &Mysql,
    config: &MysqlConfig,
    from: &SourcePosition,
) -> Result<(read::Tables, SourcePosition)> {
    let all = all_like(server, from).await?;
    let mut reading = reading(server, from).await?;
    let mut stream = BinlogStream::start(config, from).await?;
    let mut heartbeats = 0;
    while !reading.position().covers(&all) {
        let event = next(&mut stream).await;
        let event = event.with_context(|| format!("behind {}", reading.position()))?;
        reading.event(&event)?;
        // One comes where the server passed something over.
        heartbeats += usize::from(Kind(event[4]) == Kind::HEARTBEAT);
        ensure!(
            heartbeats < 3,
            "nothing more comes behind {}",
            reading.position()
        );
    }
    reading.finish()
}

/// The ids of the rows of a table that came.
fn ids(tables: &read::Tables, table: &str) -> String {
    let rows = tables.get(table);
    let ids = rows.map(|rows| rows.keys().map(String::as_str).collect::<Vec<_>>());
    ids.unwrap_or_default().join(" ")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_stream_brings_what_the_file_has() -> Result<()> {
    for product in Product::ALL {
        let server = Mysql::start(product).await?;
        server.execute(LOAD).await?;
        let from = at_place(&server, newest_file(&server).await?);
        let (streamed, position) = rows_behind(&server, &config(&server), &from).await?;
        let (filed, end) = read::tables(&server).await?;
        ensure!(streamed == filed, "{product:?}");
        let places = position.place().zip(end.place());
        let (place, end) = places.context("two places")?;
        ensure!(place.position == end.position, "{place}, not {end}");
        ensure!(Some(&place.file) == from.place().map(|from| &from.file));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_what_a_set_of_mysql_does_not_have_comes() -> Result<()> {
    let server = Mysql::start(Product::Mysql9).await?;
    server
        .execute("create table t (id int primary key)")
        .await?;
    let mut at = Vec::new();
    for id in 1..=7 {
        let tag = if id % 3 == 0 { ":night" } else { "" };
        let insert = format!("set gtid_next = 'automatic{tag}'; insert into t values ({id})");
        server.execute(&insert).await?;
        at.push(executed(&server).await?.parse::<GtidSet>()?);
    }
    let all = at.last().context("the last")?;
    // Transactions by their rows, 1 to 7.
    let only = |id: usize| at[id - 1].without(&at[id - 2]);
    let mut holed = all.clone();
    for id in [2, 5, 6] {
        holed = holed.without(&only(id));
    }
    for (have, come) in [
        (at[0].clone(), "2 3 4 5 6 7"),
        (at[4].clone(), "6 7"),
        (holed, "2 5 6"),
        (all.without(&only(3)), "3"),
        (all.without(&only(7)), "7"),
    ] {
        let from = behind(&server, &have.to_string())?;
        let (tables, position) = rows_behind(&server, &config(&server), &from).await?;
        ensure!(ids(&tables, "t") == come, "behind {have}: {tables:?}");
        ensure!(position.to_string() == all.to_string(), "{position}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn domains_of_mariadb_go_on_each_where_it_was() -> Result<()> {
    for product in [Product::Mariadb10, Product::Mariadb11] {
        let server = Mysql::start(product).await?;
        server
            .execute("create table t (id int primary key)")
            .await?;
        let mut at = Vec::new();
        for id in 1..=6 {
            // The file changes in their midst, and so does the server's id.
            if id == 4 {
                server.execute("flush binary logs").await?;
            }
            let domain = [7, 0][id % 2];
            let insert = format!(
                "set session gtid_domain_id = {domain}; set session server_id = {}; insert into t values ({id})",
                1 + id % 3
            );
            server.execute(&insert).await?;
            at.push(executed(&server).await?);
        }
        let all: DomainGtids = at[5].parse()?;
        for (have, come) in [(at[1].as_str(), "3 4 5 6"), (&at[3], "5 6"), (&at[4], "6")] {
            let from = behind(&server, have)?;
            let (tables, position) = rows_behind(&server, &config(&server), &from).await?;
            ensure!(
                ids(&tables, "t") == come,
                "{product:?} behind {have}: {tables:?}"
            );
            ensure!(position.to_string() == all.to_string(), "{position}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_place_in_the_midst_of_a_file_is_gone_on_from() -> Result<()> {
    for product in Product::ALL {
        let server = Mysql::start(product).await?;
        server
            .execute("create table t (id int primary key); insert into t values (1); insert into t values (2)")
            .await?;
        let start = at_place(&server, newest_file(&server).await?);
        let (_, middle) = rows_behind(&server, &config(&server), &start).await?;
        let middle = at_place(&server, middle.place().context("a place")?.clone());
        server
            .execute("insert into t values (3); flush binary logs; insert into t values (4)")
            .await?;
        let (tables, end) = rows_behind(&server, &config(&server), &middle).await?;
        ensure!(ids(&tables, "t") == "3 4", "{product:?}: {tables:?}");
        let last = newest_file(&server).await?;
        let bytes = u64::try_from(server.newest_binlog()?.len())?;
        let end = end.place().context("a place")?;
        ensure!(
            end.file == last.file && end.position == bytes,
            "{product:?}: {end}, not {}:{bytes}",
            last.file
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_server_has_no_more_is_a_hole() -> Result<()> {
    for product in Product::ALL {
        let server = Mysql::start(product).await?;
        server
            .execute("create table t (id int primary key); insert into t values (1)")
            .await?;
        let (old, few) = (newest_file(&server).await?, executed(&server).await?);
        server
            .execute("insert into t values (2); flush binary logs; insert into t values (3)")
            .await?;
        let new = newest_file(&server).await?;
        server.purge_binlogs().await?;
        let beyond = match product.is_mariadb() {
            true => "0-1-1000000".to_owned(),
            false => {
                let (server, _) = few.rsplit_once('-').context("an interval")?;
                format!("{server}-1000000")
            }
        };
        let past_end = BinlogPlace {
            position: 1 << 31,
            ..new
        };
        for (from, code) in [
            (at_place(&server, old), "DR-1062"),
            (behind(&server, &few)?, "DR-1062"),
            (behind(&server, &beyond)?, "DR-1063"),
            (at_place(&server, past_end.clone()), "DR-1063"),
            (
                at_place(
                    &server,
                    BinlogPlace {
                        position: 1 << 32,
                        ..past_end
                    },
                ),
                "DR-1061",
            ),
        ] {
            let error = end(&config(&server), &from).await;
            let error = error.with_context(|| format!("{product:?} {from}, to be {code}"))?;
            let problem = error.problem();
            ensure!(
                error.is_hole() && problem.code == code,
                "{product:?} {from}: {problem:?}, not {code}"
            );
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_takes_the_place_of_another_is_named_to_it() -> Result<()> {
    for product in Product::ALL {
        let server = Mysql::start(product).await?;
        let from = at_place(&server, newest_file(&server).await?);
        let mut first = BinlogStream::start(&config(&server), &from).await?;
        next(&mut first).await?;
        let mut second = BinlogStream::start(&config(&server), &from).await?;
        let error = loop {
            if let Err(error) = next(&mut first).await {
                break error;
            }
        };
        ensure!(
            error.is_transient() && error.problem().code == "DR-1060",
            "{product:?}: {:?}",
            error.problem()
        );
        next(&mut second).await?;
        // With a number of its own nobody is in the way.
        let other = MysqlConfig {
            server_id: 4712,
            ..config(&server)
        };
        let mut third = BinlogStream::start(&other, &from).await?;
        next(&mut third).await?;
        server
            .execute("create table t (id int primary key)")
            .await?;
        for stream in [&mut second, &mut third] {
            while Kind(next(stream).await?[4]) != Kind::QUERY {}
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_of_several_packets_comes_whole() -> Result<()> {
    for product in Product::ALL {
        let server = Mysql::start_with(product, &["max-allowed-packet = 1G"]).await?;
        server
            .execute("create table t (id int primary key, v longtext)")
            .await?;
        let from = at_place(&server, newest_file(&server).await?);
        for (id, mebibytes) in [(1, 1), (2, 17), (3, 40), (4, 1)] {
            let insert =
                format!("insert into t values ({id}, repeat('{id}', {mebibytes} * 1024 * 1024))");
            server.execute(&insert).await?;
        }
        let all = all_like(&server, &from).await?;
        let mut reading = reading(&server, &from).await?;
        let mut stream = BinlogStream::start(&config(&server), &from).await?;
        let mut sizes = Vec::new();
        while !reading.position().covers(&all) {
            let event = next(&mut stream).await?;
            // The decoder compares the checksum of all of it.
            reading.event(&event)?;
            if event.len() > 1 << 20 {
                sizes.push(event.len() >> 20);
            }
        }
        ensure!(sizes == [1, 17, 40, 1], "{product:?}: {sizes:?} MiB");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_with_nothing_to_send_is_heard_and_one_that_is_gone_is_missed() -> Result<()> {
    let mut streams = Vec::new();
    for product in Product::ALL {
        let server = Mysql::start(product).await?;
        let proxy = Proxy::start(server.port()).await?;
        let from = at_place(&server, newest_file(&server).await?);
        let through_proxy = MysqlConfig {
            port: proxy.address().port(),
            ..config(&server)
        };
        let stream = BinlogStream::start(&through_proxy, &from).await?;
        streams.push((server, proxy, stream));
    }
    let waiting = streams.into_iter().map(|(server, proxy, mut stream)| {
        tokio::spawn(async move {
            // Longer than a silence may be.
            let mut heartbeats = 0;
            while heartbeats < 4 {
                heartbeats += usize::from(Kind(next(&mut stream).await?[4]) == Kind::HEARTBEAT);
            }
            server
                .execute("create table t (id int primary key)")
                .await?;
            while Kind(next(&mut stream).await?[4]) != Kind::QUERY {}
            proxy.set(Mode::Hang);
            let error = loop {
                if let Err(error) = next(&mut stream).await {
                    break error;
                }
            };
            ensure!(error.is_transient(), "{error}");
            ensure!(error.to_string().contains("nothing for 30 s"), "{error}");
            Ok(())
        })
    });
    for product in waiting.collect::<Vec<_>>() {
        product.await??;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_dies_is_tried_again() -> Result<()> {
    for product in Product::ALL {
        let mut server = Mysql::start(product).await?;
        let from = at_place(&server, newest_file(&server).await?);
        let mut stream = BinlogStream::start(&config(&server), &from).await?;
        next(&mut stream).await?;
        server.kill()?;
        let error = loop {
            if let Err(error) = next(&mut stream).await {
                break error;
            }
        };
        ensure!(error.is_transient(), "{product:?}: {:?}", error.problem());
        let error = end(&config(&server), &from).await?;
        ensure!(error.is_transient(), "{product:?}: {:?}", error.problem());
    }
    Ok(())
}

/// A statement that ends a stream, and what the stream says then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_is_killed_is_tried_again() -> Result<()> {
    for product in Product::ALL {
        let server = Mysql::start(product).await?;
        let from = at_place(&server, newest_file(&server).await?);
        let mut stream = BinlogStream::start(&config(&server), &from).await?;
        next(&mut stream).await?;
        let dump =
            "select id from information_schema.processlist where command like 'Binlog Dump%'";
        let mut client = server.client().await?;
        let mut id: Option<u64> = None;
        host::until("the stream to be listed", EVENT_WITHIN, async || {
            id = client.query_first(dump).await?;
            Ok(id.is_some())
        })
        .await?;
        let kill = format!("kill {}", id.context("the stream's session")?);
        client.query_drop(kill).await?;
        let error = loop {
            if let Err(error) = next(&mut stream).await {
                break error;
            }
        };
        ensure!(error.is_transient(), "{product:?}: {:?}", error.problem());
    }
    Ok(())
}
