//! The YAML that a user would write.

use std::fmt::Write;

use crate::mysql::Mysql;
use crate::postgres::Postgres;
use crate::seaweed::{self, Seaweed};

pub const SOURCE: &str = "shop";
pub const SINK: &str = "lake";
pub const PIPELINE: &str = "shop-to-lake";
/// The environment variable that the sources' password reference names.
pub const PASSWORD_VARIABLE: &str = "SHOP_PASSWORD";

/// A source with the tables of schema `public` that match, and its further lines (two spaces deep).
pub fn source(postgres: &Postgres, tables: &[&str], more: &[&str]) -> String {
    source_at(&postgres.source_url(), tables, more)
}

pub fn source_at(url: &str, tables: &[&str], more: &[&str]) -> String {
    named_source(SOURCE, "postgres", url, tables, more)
}

/// A source of this name, where the other functions' has the one that most tests need.
pub fn named_source(name: &str, kind: &str, url: &str, tables: &[&str], more: &[&str]) -> String {
    let tables: Vec<String> = tables.iter().map(|table| format!("\"{table}\"")).collect();
    let mut yaml = format!(
        "kind: Source\nname: {name}\n{kind}:\n  url: {url}\n  password: {{ env: {PASSWORD_VARIABLE} }}\n  tables: [{}]\n",
        tables.join(", ")
    );
    for line in more {
        // A String takes every write.
        let _ = writeln!(yaml, "  {line}");
    }
    yaml
}

/// A source with the tables of `shop` that match in MySQL or MariaDB, and its further lines (two spaces deep).
pub fn mysql_source(mysql: &Mysql, tables: &[&str], more: &[&str]) -> String {
    named_source(SOURCE, "mysql", &mysql.source_url(), tables, more)
}

/// The built-in catalog over a folder.
pub fn sink_in_folder(folder: &std::path::Path) -> String {
    format!(
        "---\nkind: Sink\nname: {SINK}\niceberg:\n  catalog: builtin\n  warehouse: file://{}\n",
        folder.display()
    )
}

/// The built-in catalog over a bucket, reached at `endpoint`.
pub fn sink_in_bucket(endpoint: &str) -> String {
    format!(
        "---\nkind: Sink\nname: {SINK}\niceberg:\n  catalog: builtin\n  warehouse: s3://{}/warehouse\n{}",
        seaweed::BUCKET,
        s3_lines(endpoint)
    )
}

/// SeaweedFS' own catalog over its table bucket.
pub fn sink_in_catalog(server: &Seaweed) -> String {
    format!(
        "---\nkind: Sink\nname: {SINK}\niceberg:\n  catalog:\n    rest:\n      uri: {}\n      warehouse: {}\n      \
         credential: {{ env: CATALOG_CREDENTIAL }}\n  warehouse: s3://{}\n{}",
        server.catalog_uri(),
        seaweed::WAREHOUSE,
        seaweed::WAREHOUSE,
        s3_lines(&server.s3_endpoint())
    )
}

fn s3_lines(endpoint: &str) -> String {
    format!(
        "  s3:\n    endpoint: {endpoint}\n    region: us-east-1\n    path_style: true\n    \
         access_key: {{ env: LAKE_ACCESS_KEY }}\n    secret_key: {{ env: LAKE_SECRET_KEY }}\n"
    )
}

pub fn pipeline(freshness: &str) -> String {
    named_pipeline(PIPELINE, SOURCE, freshness)
}

/// From this source into the one sink.
pub fn named_pipeline(name: &str, source: &str, freshness: &str) -> String {
    format!(
        "---\nkind: Pipeline\nname: {name}\nsource: {source}\nsink: {SINK}\nmode: mirror\nfreshness: {freshness}\n"
    )
}

/// The variables that the references above name.
pub fn environment() -> Vec<(&'static str, String)> {
    let credential = format!("{}:{}", seaweed::ACCESS_KEY, seaweed::SECRET_KEY);
    vec![
        (PASSWORD_VARIABLE, crate::postgres::CDC_PASSWORD.to_owned()),
        ("LAKE_ACCESS_KEY", seaweed::ACCESS_KEY.to_owned()),
        ("LAKE_SECRET_KEY", seaweed::SECRET_KEY.to_owned()),
        ("AWS_ACCESS_KEY_ID", seaweed::ACCESS_KEY.to_owned()),
        ("AWS_SECRET_ACCESS_KEY", seaweed::SECRET_KEY.to_owned()),
        ("AWS_REGION", "us-east-1".to_owned()),
        ("CATALOG_CREDENTIAL", credential),
    ]
}
