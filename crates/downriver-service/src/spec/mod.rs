//! What a resource may say. A document is YAML or JSON of one kind; unknown fields are refused with their place.

mod changes;
mod mask;
mod pipeline;
mod sink;
mod source;

use std::path::PathBuf;

use downriver_event::problem::Problem;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use mask::{MaskRule, MaskWith};
pub use pipeline::{Mode, Pipeline, parse_bytes, parse_duration};
pub use sink::{CatalogSpec, Iceberg, RestSpec, S3Spec, Sink};
pub use source::{
    CaFile, Failover, Mysql, OnHole, OnMaxWalBehind, Postgres, Snapshot, SnapshotMode,
    SnapshotOptions, Source, Tls,
};

/// Reads the documents of a file, in order.
///
/// # Errors
/// Where the text is not YAML, or a document is not a resource.
pub fn read_documents(text: &str) -> Result<Vec<Document>, Problem> {
    let mut documents = Vec::new();
    for document in serde_yaml_ng::Deserializer::from_str(text) {
        let value = Value::deserialize(document).map_err(|error| {
            Problem::new(
                "DR-2001",
                format!("the file is not valid YAML: {error}"),
                "correct the line that is named",
            )
        })?;
        if !value.is_null() {
            documents.push(Document::from_value(value)?);
        }
    }
    if documents.is_empty() {
        return Err(Problem::new(
            "DR-2001",
            "the file has no document",
            "begin with kind: Source",
        ));
    }
    Ok(documents)
}

/// A document before its specification is looked into.
#[derive(Clone, Debug, PartialEq)]
pub struct Document {
    pub kind: String,
    pub name: String,
    /// Everything but kind and name.
    pub spec: Value,
}

impl Document {
    fn from_value(value: Value) -> Result<Self, Problem> {
        let Value::Object(mut fields) = value else {
            return Err(Problem::new(
                "DR-2001",
                "a document is not a map of fields",
                "begin with kind: Source",
            ));
        };
        let mut take = |field: &str| match fields.remove(field) {
            Some(Value::String(text)) => Ok(text),
            _ => {
                let mut problem = Problem::new(
                    "DR-2002",
                    format!("a document has no {field}"),
                    "give kind (Source, Sink or Pipeline) and name as texts",
                );
                problem.field = Some(field.to_owned());
                Err(problem)
            }
        };
        let (kind, name) = (take("kind")?, take("name")?);
        check_name(&name)?;
        Ok(Self {
            kind,
            name,
            spec: Value::Object(fields),
        })
    }
}

/// Names become parts of slots, object keys and lake namespaces.
fn check_name(name: &str) -> Result<(), Problem> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
    let first = name.chars().next().is_some_and(|c| c.is_ascii_lowercase());
    if first && name.len() <= 40 && name.chars().all(plain) {
        return Ok(());
    }
    let mut problem = Problem::new(
        "DR-2003",
        format!("{name:?} is not a valid name"),
        "use up to 40 lower-case letters, digits, - and _, beginning with a letter",
    );
    problem.field = Some("name".into());
    Err(problem)
}

/// A specification of a known kind.
#[derive(Clone, Debug, PartialEq)]
pub enum Spec {
    Source(Source),
    Sink(Sink),
    Pipeline(Pipeline),
}

impl Spec {
    /// # Errors
    /// The field that is wrong, and how.
    pub fn parse(kind: &str, spec: &Value) -> Result<Self, Problem> {
        match kind {
            "Source" => Source::parse(spec).map(Self::Source),
            "Sink" => Sink::parse(spec).map(Self::Sink),
            "Pipeline" => Pipeline::parse(spec).map(Self::Pipeline),
            _ => {
                let problem = Problem::new(
                    "DR-2002",
                    format!("kind {kind:?} is not known"),
                    "use Source, Sink or Pipeline",
                );
                Err(at("kind", problem))
            }
        }
    }
}

/// The problem with the place of the field that it is about.
pub(crate) fn at(field: &str, mut problem: Problem) -> Problem {
    problem.field = Some(field.to_owned());
    problem
}

/// A specification's fields, with the path of the one that is wrong.
fn fields<T: DeserializeOwned>(spec: &Value, code: &'static str, kind: &str) -> Result<T, Problem> {
    serde_path_to_error::deserialize(spec).map_err(|error| {
        let mut path = error.path().to_string();
        let reason = error.into_inner().to_string();
        // The path of an unknown field ends at what holds it.
        let unknown = reason.strip_prefix("unknown field `");
        if let Some((field, _)) = unknown.and_then(|rest| rest.split_once('`'))
            && path.rsplit('.').next() != Some(field)
        {
            path = if path == "." {
                field.to_owned()
            } else {
                format!("{path}.{field}")
            };
        }
        let problem = Problem::new(
            code,
            format!("the {kind} is not valid: {reason}"),
            format!("see docs/cli.md for the fields of a {kind}"),
        );
        at(&path, problem)
    })
}

/// Where a secret is found; the secret itself is never stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Secret {
    Env(String),
    File(PathBuf),
}

impl Secret {
    /// # Errors
    /// It is not there.
    pub fn resolve(&self) -> Result<String, Problem> {
        match self {
            Self::Env(name) => std::env::var(name).map_err(|_| {
                Problem::new(
                    "DR-2010",
                    format!("environment variable {name} is not set where downriver runs"),
                    format!("set {name} and start downriver again, or use a file"),
                )
            }),
            Self::File(path) => match std::fs::read_to_string(path) {
                Ok(text) => Ok(text.trim_end_matches(['\n', '\r']).to_owned()),
                Err(error) => Err(Problem::new(
                    "DR-2010",
                    format!("secret file {} cannot be read: {error}", path.display()),
                    "make the file readable for downriver",
                )),
            },
        }
    }
}
