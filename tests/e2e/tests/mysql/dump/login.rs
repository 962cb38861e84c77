//! Who is let in, and how.

use anyhow::{Result, ensure};
use downriver_source::mysql::config::MysqlConfig;
use downriver_source::{SslMode, Tls};
use downriver_testkit::mysql::{Mysql, Product};

use super::{at_place, config, newest_file};
use downriver_source::mysql::dump::BinlogStream;

const PASSWORD: &str = "a%b/c:é€ d";

fn user(server: &Mysql, user: &str, mode: SslMode) -> MysqlConfig {
    MysqlConfig {
        user: user.into(),
        password: Some(PASSWORD.into()),
        tls: Tls {
            mode,
            ca_file: None,
        },
        ..config(server)
    }
}

/// Whether the user's stream begins; else the error's code.
async fn login(server: &Mysql, config: &MysqlConfig) -> Result<String> {
    let from = at_place(server, newest_file(server).await?);
    let mut stream = match BinlogStream::start(config, &from).await {
        Ok(stream) => stream,
        Err(error) => return Ok(error.problem().code.to_owned()),
    };
    Ok(match super::next(&mut stream).await {
        Ok(_) => "in".into(),
        Err(error) => error.problem().code.to_owned(),
    })
}

async fn create(server: &Mysql, user: &str, how: &str) -> Result<()> {
    server
        .execute(&format!(
            "create user {user}@'%' {how}; grant replication slave on *.* to {user}@'%'"
        ))
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_needs_the_password_and_the_privilege() -> Result<()> {
    for product in Product::ALL {
        let server = Mysql::start(product).await?;
        create(&server, "good", &format!("identified by '{PASSWORD}'")).await?;
        create(&server, "open", "identified by ''").await?;
        server
            .execute(&format!("create user bare@'%' identified by '{PASSWORD}'"))
            .await?;
        for (name, password, expected) in [
            ("good", Some(PASSWORD), "in"),
            ("good", Some("wrong"), "DR-1001"),
            ("good", None, "DR-1001"),
            ("open", None, "in"),
            ("open", Some("wrong"), "DR-1001"),
            ("nobody", Some(PASSWORD), "DR-1001"),
            ("bare", Some(PASSWORD), "DR-1004"),
        ] {
            let config = MysqlConfig {
                password: password.map(str::to_owned),
                ..user(&server, name, SslMode::Prefer)
            };
            let found = login(&server, &config).await?;
            ensure!(
                found == expected,
                "{product:?} {name} {password:?}: {found}, not {expected}"
            );
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_is_used_where_it_is_asked_for() -> Result<()> {
    for product in Product::ALL {
        let server = Mysql::start(product).await?;
        let by = format!("identified by '{PASSWORD}'");
        create(&server, "any", &by).await?;
        create(&server, "encrypted", &format!("{by} require ssl")).await?;
        let has_tls = product != Product::Mariadb10;
        let (offered, verified) = match has_tls {
            true => ("in", "DR-1006"),
            false => ("DR-1006", "DR-1006"),
        };
        for (mode, expected) in [
            (SslMode::Disable, ["in", "DR-1001"]),
            (
                SslMode::Prefer,
                ["in", if has_tls { "in" } else { "DR-1001" }],
            ),
            (SslMode::Require, [offered; 2]),
            // Nobody vouches for a certificate that the server made for itself.
            (SslMode::VerifyCa, [verified; 2]),
            (SslMode::VerifyFull, [verified; 2]),
        ] {
            for (name, expected) in ["any", "encrypted"].into_iter().zip(expected) {
                let found = login(&server, &user(&server, name, mode)).await?;
                ensure!(
                    found == expected,
                    "{product:?} {mode:?} {name}: {found}, not {expected}"
                );
            }
        }
        if product == Product::Mysql9 {
            let mut config = user(&server, "encrypted", SslMode::VerifyCa);
            config.tls.ca_file = Some(server.data_folder().join("ca.pem"));
            ensure!(login(&server, &config).await? == "in");
            // The certificate names no host.
            config.tls.mode = SslMode::VerifyFull;
            ensure!(login(&server, &config).await? == "DR-1006");
        }
    }
    Ok(())
}

/// The server knows no hash of a password that it has not seen since it started or forgot.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_that_the_server_has_forgotten_is_told_again() -> Result<()> {
    let server = Mysql::start(Product::Mysql9).await?;
    for (name, mode) in [("plain", SslMode::Disable), ("secret", SslMode::Require)] {
        create(
            &server,
            name,
            &format!("identified with caching_sha2_password by '{PASSWORD}'"),
        )
        .await?;
        let config = user(&server, name, mode);
        let wrong = MysqlConfig {
            password: Some("wrong".into()),
            ..config.clone()
        };
        for _ in 0..2 {
            ensure!(login(&server, &wrong).await? == "DR-1001");
            ensure!(login(&server, &config).await? == "in");
            // Known now.
            ensure!(login(&server, &config).await? == "in");
            ensure!(login(&server, &wrong).await? == "DR-1001");
            server.execute("flush privileges").await?;
        }
    }
    // A key of 2048 bits has room for no more than this.
    let long = "x".repeat(214);
    create(&server, "lengthy", &format!("identified by '{long}'")).await?;
    let mut config = user(&server, "lengthy", SslMode::Disable);
    config.password = Some(long);
    ensure!(login(&server, &config).await? == "DR-1067");
    config.tls.mode = SslMode::Require;
    ensure!(login(&server, &config).await? == "in");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kind_of_password_is_switched_to() -> Result<()> {
    let server = Mysql::start(Product::Mysql9).await?;
    create(
        &server,
        "sha",
        &format!("identified with sha256_password by '{PASSWORD}'"),
    )
    .await?;
    for mode in [SslMode::Disable, SslMode::Require] {
        let mut config = user(&server, "sha", mode);
        ensure!(login(&server, &config).await? == "in", "{mode:?}");
        config.password = Some("wrong".into());
        ensure!(login(&server, &config).await? == "DR-1001", "{mode:?}");
    }
    for product in [Product::Mariadb10, Product::Mariadb11] {
        let server = Mysql::start(product).await?;
        create(
            &server,
            "two",
            &format!(
                "identified via unix_socket or mysql_native_password using password('{PASSWORD}')"
            ),
        )
        .await?;
        let config = user(&server, "two", SslMode::Disable);
        let found = login(&server, &config).await?;
        ensure!(found == "in", "{product:?}: {found}");
    }
    Ok(())
}
