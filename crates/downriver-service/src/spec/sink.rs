//! A sink: where a lake's files lie, and who keeps its catalog.

use downriver_event::problem::Problem;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Secret, at, fields};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sink {
    pub iceberg: Iceberg,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Iceberg {
    pub catalog: CatalogSpec,
    /// `s3://bucket/prefix` or `file:///folder`.
    pub warehouse: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub s3: Option<S3Spec>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CatalogSpec {
    /// Served by the node itself; the warehouse's name there is the sink's.
    Builtin,
    Rest(RestSpec),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RestSpec {
    pub uri: String,
    /// The catalog's name of the warehouse.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warehouse: Option<String>,
    /// Names `id:secret` of the OAuth client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential: Option<Secret>,
    /// Names a bearer token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<Secret>,
}

/// What is not given comes from the environment, as the AWS SDK reads it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct S3Spec {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_style: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_key: Option<Secret>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_key: Option<Secret>,
}

impl Sink {
    pub(super) fn parse(spec: &Value) -> Result<Self, Problem> {
        let sink: Self = fields(spec, "DR-2011", "sink")?;
        let iceberg = &sink.iceberg;
        check_warehouse(&iceberg.warehouse).map_err(|reason| {
            let problem = Problem::new(
                "DR-2012",
                reason,
                "write it as s3://bucket/prefix or file:///folder",
            );
            at("iceberg.warehouse", problem)
        })?;
        let invalid =
            |field: &str, reason: &str, fix: &str| at(field, Problem::new("DR-2011", reason, fix));
        if let Some(s3) = &iceberg.s3 {
            if sink.folder().is_some() {
                return Err(invalid(
                    "iceberg.s3",
                    "the warehouse is a folder, which s3 says nothing about",
                    "leave s3 out, or name an s3:// warehouse",
                ));
            }
            if s3.access_key.is_some() != s3.secret_key.is_some() {
                return Err(invalid(
                    "iceberg.s3",
                    "one of access_key and secret_key is missing",
                    "give both, or neither to take them from the environment",
                ));
            }
            if let Some(endpoint) = &s3.endpoint {
                check_http(endpoint).map_err(|reason| {
                    invalid(
                        "iceberg.s3.endpoint",
                        reason,
                        "write it as http://host:port or https://host",
                    )
                })?;
            }
        }
        if let CatalogSpec::Rest(rest) = &iceberg.catalog {
            check_http(&rest.uri).map_err(|reason| {
                invalid(
                    "iceberg.catalog.rest.uri",
                    reason,
                    "write it as https://host/path, and set credential or token for a secret",
                )
            })?;
            if rest.credential.is_some() && rest.token.is_some() {
                return Err(invalid(
                    "iceberg.catalog.rest",
                    "both credential and token are given",
                    "keep the one that the catalog takes",
                ));
            }
        }
        Ok(sink)
    }

    /// The folder of a `file://` warehouse.
    #[must_use]
    pub fn folder(&self) -> Option<&str> {
        self.iceberg.warehouse.strip_prefix("file://")
    }

    /// The warehouse's root, without a slash at its end.
    #[must_use]
    pub fn root(&self) -> &str {
        self.iceberg.warehouse.trim_end_matches('/')
    }
}

fn check_warehouse(warehouse: &str) -> Result<(), String> {
    if let Some(folder) = warehouse.strip_prefix("file://") {
        if !folder.starts_with('/') {
            return Err(format!("warehouse {warehouse:?} is not an absolute folder"));
        }
        let mut parts = folder.split('/').filter(|part| !part.is_empty());
        if parts.clone().next().is_none() {
            return Err("the warehouse is the root folder".into());
        }
        if parts.any(|part| part == "." || part == "..") {
            return Err(format!("warehouse {warehouse:?} has . or .. in it"));
        }
        return Ok(());
    }
    match warehouse.strip_prefix("s3://") {
        Some(place)
            if place
                .split('/')
                .next()
                .is_some_and(|bucket| !bucket.is_empty()) =>
        {
            Ok(())
        }
        Some(_) => Err(format!("warehouse {warehouse:?} names no bucket")),
        None => Err(format!(
            "warehouse {warehouse:?} is neither s3:// nor file://"
        )),
    }
}

fn check_http(url: &str) -> Result<(), &'static str> {
    let rest = url
        .strip_prefix("http://")
        .or_else(|| url.strip_prefix("https://"))
        .ok_or("it is not an http:// or https:// address")?;
    let authority = rest.split('/').next().unwrap_or_default();
    if authority.contains('@') {
        return Err("it holds a login, which would be stored and shown");
    }
    if authority.is_empty() {
        return Err("it names no host");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::{Spec, read_documents};
    use super::*;

    fn sink(lines: &str) -> Result<Sink, Problem> {
        let documents = read_documents(&format!("kind: Sink\nname: lake\niceberg:\n{lines}"))?;
        match Spec::parse("Sink", &documents[0].spec)? {
            Spec::Sink(sink) => Ok(sink),
            other => panic!("{other:?}"),
        }
    }

    fn refused(lines: &str) -> (&'static str, String) {
        let problem = sink(lines).unwrap_err();
        (problem.code, problem.field.unwrap_or_default())
    }

    #[test]
    fn a_sink_is_read_with_either_catalog() {
        let builtin = sink("  catalog: builtin\n  warehouse: file:///lake/\n").unwrap();
        assert_eq!(builtin.iceberg.catalog, CatalogSpec::Builtin);
        assert_eq!(builtin.root(), "file:///lake");
        let rest = sink(
            "  catalog:\n    rest: { uri: http://h:8181/iceberg, warehouse: w, credential: { env: C } }\n  warehouse: s3://bucket\n  s3: { endpoint: http://h, path_style: true, access_key: { env: A }, secret_key: { file: /s } }\n",
        )
        .unwrap();
        let CatalogSpec::Rest(catalog) = rest.iceberg.catalog else {
            panic!("a REST catalog")
        };
        assert_eq!(catalog.credential, Some(Secret::Env("C".into())));
        assert_eq!(rest.iceberg.s3.unwrap().path_style, Some(true));
    }

    #[test]
    fn a_warehouse_must_be_a_bucket_or_an_absolute_folder() {
        for bad in [
            "file://relative",
            "file:///",
            "file:///a/../b",
            "s3:///prefix",
            "gs://bucket",
            "/folder",
        ] {
            let (code, field) = refused(&format!("  catalog: builtin\n  warehouse: {bad}\n"));
            assert_eq!(
                (code, field.as_str()),
                ("DR-2012", "iceberg.warehouse"),
                "{bad}"
            );
        }
    }

    #[test]
    fn unknown_fields_and_combinations_that_make_no_sense_are_refused_with_their_path() {
        let folder = "  catalog: builtin\n  warehouse: file:///lake\n";
        let bucket = "  catalog: builtin\n  warehouse: s3://lake\n";
        let rest = |fields: &str| {
            format!("  catalog: {{ rest: {{ {fields} }} }}\n  warehouse: s3://lake\n")
        };
        for (lines, field) in [
            (format!("{folder}  colour: red\n"), "iceberg.colour"),
            (
                format!("{bucket}  s3: {{ colour: red }}\n"),
                "iceberg.s3.colour",
            ),
            (
                rest("uri: http://h, colour: red"),
                "iceberg.catalog.rest.colour",
            ),
            (format!("{folder}  s3: {{ region: eu }}\n"), "iceberg.s3"),
            (
                format!("{bucket}  s3: {{ access_key: {{ env: A }} }}\n"),
                "iceberg.s3",
            ),
            (rest("uri: ftp://h"), "iceberg.catalog.rest.uri"),
            (rest("uri: http://id:pw@h/"), "iceberg.catalog.rest.uri"),
            (
                rest("uri: http://h, token: { env: T }, credential: { env: C }"),
                "iceberg.catalog.rest",
            ),
        ] {
            assert_eq!(refused(&lines), ("DR-2011", field.to_owned()), "{lines}");
        }
    }
}
