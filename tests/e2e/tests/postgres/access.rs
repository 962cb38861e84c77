//! A node that asks who calls: over TLS, by its token or by a certificate.

use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use downriver_testkit::certificates::{Authority, ServerCertificate};
use downriver_testkit::daemon::Addresses;
use downriver_testkit::{Daemon, Postgres, host, resources, shop};

const TOKEN: &str = "d1a2b3c4e5f60718293a4b5c6d7e8f90";

/// Asks what an engine or a scrape does, over HTTPS; prints the answers' statuses, or what is in the catalog.
const ASK: &str = r"
import json, ssl, sys, urllib.error, urllib.request
port, ca, token = sys.argv[1:4]
trust = ssl.create_default_context(cafile=ca)
def status(path, token):
    request = urllib.request.Request(f'https://localhost:{port}{path}')
    if token: request.add_header('Authorization', f'Bearer {token}')
    try: return urllib.request.urlopen(request, context=trust).status
    except urllib.error.HTTPError as error: return error.code
from pyiceberg.catalog import load_catalog
def names(**given):
    catalog = load_catalog('lake', type='rest', uri=f'https://localhost:{port}/iceberg', warehouse='lake', **given)
    return sorted('.'.join(name) for space in catalog.list_namespaces() for name in catalog.list_tables(space))
try: stranger = names()
except Exception as error: stranger = type(error).__name__
print(json.dumps({
    'open': [status(path, '') for path in ('/livez', '/readyz')],
    'closed': [status(path, '') for path in ('/metrics', '/iceberg/v1/config')],
    'wrong': status('/metrics', token[:-1]),
    'right': status('/metrics', token),
    'stranger': stranger,
    'tables': names(token=token),
}))
";

struct Files {
    nodes: PathBuf,
    token: PathBuf,
    config: PathBuf,
    client: ServerCertificate,
    stranger: ServerCertificate,
}

/// A node that is a cluster by itself; whoever shows a certificate of `clients`, or sends the token, may call.
fn files(folder: &Path) -> Result<Files> {
    let nodes = Authority::new(&folder.join("nodes"), "nodes")?;
    let shown = nodes.issue("localhost")?;
    let clients = Authority::new(&folder.join("clients"), "clients")?;
    let client = clients.issue("reader")?;
    let stranger = Authority::new(&folder.join("strangers"), "strangers")?.issue("reader")?;
    let token = folder.join("token");
    std::fs::write(&token, format!("{TOKEN}\n"))?;
    let config = folder.join("node.toml");
    std::fs::write(
        &config,
        format!(
            "name = \"n1\"\ndata = {:?}\ngrpc = \"127.0.0.1:0\"\nhttp = \"127.0.0.1:0\"\n\
             [access]\ncertificate = {:?}\nkey = {:?}\nclient_ca = {:?}\ntoken = {{ file = {token:?} }}\n\
             [store]\nurl = \"file://{}\"\n\
             [cluster]\nlisten = \"127.0.0.1:0\"\nnodes = [\"localhost:1\"]\nexpect = 1\n",
            folder.join("data"),
            shown.certificate,
            shown.key,
            clients.file(),
            folder.join("objects").display(),
        ),
    )?;
    Ok(Files {
        nodes: nodes.file(),
        token,
        config,
        client,
        stranger,
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_who_has_the_token_or_a_certificate_is_answered() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let files = files(folder.path())?;
    let mut node = Daemon::of_cluster(
        host::downriver_binary()?,
        folder.path(),
        files.config.clone(),
    );
    node.launch()?;
    let mut addresses = None;
    host::until("the node to be up", Duration::from_secs(60), async || {
        node.check_alive()?;
        let text = std::fs::read_to_string(node.data().join("addresses.json"))?;
        addresses = Some(serde_json::from_str::<Addresses>(&text)?);
        Ok(true)
    })
    .await?;
    let addresses = addresses.context("it is up")?;
    let port = |address: &str| address.rsplit(':').next().unwrap_or_default().to_owned();
    let grpc = format!("localhost:{}", port(&addresses.grpc));
    let call = async |arguments: &[&str]| -> Result<Output> {
        let mut command = tokio::process::Command::new(node.binary());
        command.args(arguments).args(["--addr", &grpc]);
        Ok(command.kill_on_drop(true).output().await?)
    };
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let (ca, token) = (text(&files.nodes), text(&files.token));
    let shows = |shown: &ServerCertificate| [text(&shown.certificate), text(&shown.key)];
    let ([certificate, key], [other, other_key]) = (shows(&files.client), shows(&files.stranger));

    let with_token = ["--ca", &ca, "--token-file", &token];
    let with_certificate = ["--ca", &ca, "--certificate", &certificate, "--key", &key];
    for known in [&with_token[..], &with_certificate] {
        let answer = call(&[&["get", "nodes"], known].concat()).await?;
        ensure!(answer.status.success(), "{known:?}: {answer:?}");
    }
    let nobody = call(&["get", "nodes", "--ca", &ca]).await?;
    let said = String::from_utf8_lossy(&nobody.stderr);
    ensure!(
        nobody.status.code() == Some(1) && said.contains("DR-2092") && said.contains("fix:"),
        "{said}"
    );
    for unknown in [
        // Another authority's; a node that is not believed; no TLS at all.
        &["--ca", &ca, "--certificate", &other, "--key", &other_key][..],
        &["--token-file", &token, "--addr", &format!("https://{grpc}")],
        &["--token-file", &token],
    ] {
        let answer = call(&[&["get", "nodes"], unknown].concat()).await?;
        ensure!(!answer.status.success(), "{unknown:?}: {answer:?}");
    }

    let postgres = Postgres::start().await?;
    shop::create(&postgres).await?;
    let yaml = folder.path().join("shop.yaml");
    let resources = [
        resources::source(&postgres, &["public.customers"], &[]),
        resources::sink_in_folder(&folder.path().join("lake")),
        resources::pipeline("1s"),
    ];
    std::fs::write(&yaml, resources.concat())?;
    let yaml = text(&yaml);
    for arguments in [
        &["apply", "-f", &yaml][..],
        &["wait", resources::PIPELINE, "--for", "caught-up"],
    ] {
        let answer = call(&[arguments, &with_token].concat()).await?;
        ensure!(answer.status.success(), "{arguments:?}: {answer:?}");
    }
    let asked = tokio::process::Command::new(host::venv_program("python")?)
        .args(["-c", ASK, &port(&addresses.http), &ca, TOKEN])
        // What PyIceberg goes by from its first request on.
        .env("REQUESTS_CA_BUNDLE", &ca)
        .kill_on_drop(true)
        .output()
        .await?;
    let said = String::from_utf8_lossy(&asked.stdout);
    let answers: serde_json::Value =
        serde_json::from_str(&said).with_context(|| format!("{asked:?}"))?;
    let expected = serde_json::json!({
        "open": [200, 200],
        "closed": [401, 401],
        "wrong": 401,
        "right": 200,
        "stranger": "UnauthorizedError",
        "tables": ["shop_public.customers"],
    });
    ensure!(answers == expected, "{answers}");
    let log = std::fs::read_to_string(node.log())?;
    ensure!(!log.contains(TOKEN), "the token is in the log");
    Ok(())
}

#[tokio::test]
async fn an_address_that_others_reach_needs_a_certificate_and_to_know_who_calls() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let files = files(folder.path())?;
    let config = std::fs::read_to_string(&files.config)?;
    let open = config.replace("grpc = \"127.0.0.1:0\"", "grpc = \"0.0.0.0:0\"");
    let line = |name: &str| {
        let line = config.lines().find(|line| line.starts_with(name));
        line.map(str::to_owned).unwrap_or_default()
    };
    let anonymous = open
        .replace(&line("client_ca"), "")
        .replace(&line("token"), "");
    let plain = open
        .replace(&line("certificate"), "")
        .replace(&line("key"), "")
        .replace(&line("client_ca"), "");
    for refused in [anonymous, plain] {
        std::fs::write(&files.config, &refused)?;
        let output = tokio::process::Command::new(host::downriver_binary()?)
            .args(["server", "--config"])
            .arg(&files.config)
            .kill_on_drop(true)
            .output()
            .await?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.code() == Some(1) && said.contains("DR-2090"),
            "{refused}\n{said}"
        );
    }
    Ok(())
}
