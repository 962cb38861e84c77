//! `node.toml`: what a node of a cluster is told.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use downriver_cluster::{Backups, PeerTls, Retention, Seeds};
use downriver_log::store::S3Options;
use downriver_service::spec::{S3Spec, Secret, parse_bytes, parse_duration};
use serde::{Deserialize, Deserializer};

use super::engine::s3_options;
use super::{AccessOptions, ClusterOptions, NodeOptions, Token};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NodeFile {
    /// As people call it; default: the host's name.
    name: Option<String>,
    data: PathBuf,
    #[serde(default = "default_grpc")]
    grpc: SocketAddr,
    #[serde(default = "default_http")]
    http: SocketAddr,
    #[serde(default)]
    access: AccessFile,
    store: StoreFile,
    #[serde(default)]
    retention: RetentionFile,
    #[serde(default)]
    backup: BackupFile,
    cluster: ClusterFile,
}

/// Who may call, and what the node shows them.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct AccessFile {
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
    /// Whoever shows a certificate of this authority may call.
    client_ca: Option<PathBuf>,
    /// Whoever sends it may call.
    token: Option<Secret>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoreFile {
    url: String,
    s3: Option<S3Spec>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RetentionFile {
    #[serde(deserialize_with = "age")]
    age: Duration,
    #[serde(deserialize_with = "bytes")]
    bytes: Option<u64>,
    #[serde(deserialize_with = "age")]
    max_age: Duration,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct BackupFile {
    #[serde(deserialize_with = "age")]
    every: Duration,
    /// How many are kept.
    keep: usize,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ClusterFile {
    /// Where other nodes are answered.
    #[serde(default = "default_peer")]
    listen: SocketAddr,
    /// `host:port` under which they reach it; default: where it listens.
    address: Option<String>,
    /// Addresses of nodes, this one among them or not. A name may stand for several.
    nodes: Vec<String>,
    /// How many nodes a new cluster begins with; default: as many as are named.
    expect: Option<usize>,
    tls: Option<TlsFile>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TlsFile {
    ca: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
}

fn default_grpc() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 7070))
}

fn default_http() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 7071))
}

fn default_peer() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 7072))
}

impl Default for RetentionFile {
    fn default() -> Self {
        let days = |days: u64| Duration::from_secs(days * 86_400);
        Self {
            age: days(7),
            bytes: None,
            max_age: days(30),
        }
    }
}

impl Default for BackupFile {
    fn default() -> Self {
        let Backups { every, kept: keep } = Backups::default();
        Self { every, keep }
    }
}

fn age<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse_duration(&text)
        .ok_or_else(|| serde::de::Error::custom("write a whole number with s, m, h or d: 7d"))
}

fn bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let bytes = parse_bytes(&text);
    bytes.map(Some).ok_or_else(|| {
        serde::de::Error::custom("write a whole number with MiB, GiB or TiB: 100GiB")
    })
}

/// Reads a node's file.
///
/// # Errors
/// It cannot be read, has a field that is not known, or asks for what cannot be.
pub(crate) fn read(path: &Path) -> anyhow::Result<NodeOptions> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("DR-2055: {} cannot be read", path.display()))?;
    parse(&text).with_context(|| format!("DR-2055: {} is not valid", path.display()))
}

fn parse(text: &str) -> anyhow::Result<NodeOptions> {
    let file: NodeFile = toml::from_str(text)?;
    let name = file.name.unwrap_or_else(host_name);
    ensure!(
        !name.is_empty(),
        "the host has no name: give the node one with `name`"
    );
    let cluster = file.cluster;
    ensure!(
        !cluster.nodes.is_empty(),
        "cluster.nodes is empty: name the nodes of the cluster, as host:port"
    );
    ensure!(
        cluster.expect.is_some() || cluster.nodes.len() > 1,
        "cluster.nodes names one address: say with cluster.expect how many nodes the cluster begins with, which may be 1"
    );
    let expect = cluster.expect.unwrap_or(cluster.nodes.len());
    ensure!(expect > 0, "cluster.expect is 0: a cluster has a node");
    ensure!(
        expect == 1 || !file.store.url.starts_with("file:"),
        "store.url is {:?}, which other nodes do not reach: use s3://bucket/prefix",
        file.store.url
    );
    ensure!(
        file.backup.keep > 0 && !file.backup.every.is_zero(),
        "backup.keep and backup.every are more than 0"
    );
    let s3 = match &file.store.s3 {
        Some(spec) => s3_options(spec).map_err(|problem| anyhow::anyhow!(problem.reason))?,
        None => S3Options::default(),
    };
    Ok(NodeOptions {
        data: file.data,
        store: Some(file.store.url),
        s3,
        grpc: file.grpc,
        http: file.http,
        access: access(file.access)?,
        retention: Retention {
            max_age: file.retention.age,
            max_bytes: file.retention.bytes,
            protected_max_age: file.retention.max_age,
        },
        backups: Backups {
            every: file.backup.every,
            kept: file.backup.keep,
        },
        cluster: Some(ClusterOptions {
            name,
            listen: cluster.listen,
            address: cluster.address,
            seeds: Seeds {
                addresses: cluster.nodes,
                expect,
            },
            tls: cluster.tls.map(|tls| PeerTls {
                ca: tls.ca,
                certificate: tls.certificate,
                key: tls.key,
            }),
        }),
    })
}

fn access(file: AccessFile) -> anyhow::Result<AccessOptions> {
    let shows = match (file.certificate, file.key) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        _ => bail!("access.certificate and access.key belong together: give both"),
    };
    ensure!(
        shows.is_some() || file.client_ca.is_none(),
        "access.client_ca is of no use without TLS: give access.certificate and access.key"
    );
    let token = file.token.map(|token| match token.resolve() {
        Ok(token) => Token::new(token).context("access.token"),
        Err(problem) => bail!("access.token: {}: {}", problem.reason, problem.fix),
    });
    Ok(AccessOptions {
        shows,
        client_ca: file.client_ca,
        token: token.transpose()?,
    })
}

fn host_name() -> String {
    let name = rustix::system::uname();
    name.nodename().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const LEAST: &str = r#"
        name = "n1"
        data = "/data"
        [store]
        url = "s3://bucket/log"
        [cluster]
        nodes = ["a:7072", "b:7072", "c:7072"]
    "#;

    #[test]
    fn little_has_to_be_said() {
        let options = parse(LEAST).unwrap();
        let cluster = options.cluster.unwrap();
        assert_eq!((cluster.name.as_str(), cluster.seeds.expect), ("n1", 3));
        assert_eq!(options.grpc.to_string(), "127.0.0.1:7070");
        assert_eq!(cluster.listen.to_string(), "127.0.0.1:7072");
        assert_eq!(options.retention.max_age, Duration::from_secs(7 * 86_400));
    }

    #[test]
    fn what_cannot_be_is_refused_with_its_place() {
        let wrong =
            |from: &str, to: &str| format!("{:#}", parse(&LEAST.replace(from, to)).unwrap_err());
        assert!(wrong("name =", "nmae =").contains("nmae"));
        assert!(wrong("s3://bucket/log", "file:///x").contains("other nodes do not reach"));
        assert!(wrong("[\"a:7072\", \"b:7072\", \"c:7072\"]", "[]").contains("cluster.nodes"));
        assert!(
            wrong("[\"a:7072\", \"b:7072\", \"c:7072\"]", "[\"a:7072\"]")
                .contains("cluster.expect")
        );
        assert!(wrong("[store]", "[access]\nkey = \"k\"\n[store]").contains("access.certificate"));
        assert!(wrong("[store]", "[access]\nclient_ca = \"c\"\n[store]").contains("TLS"));
        assert!(wrong("[cluster]", "[retention]\nage = \"7\"\n[cluster]").contains("7d"));
    }
}
