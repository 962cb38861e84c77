//! What a resource may say. A document is YAML or JSON of one kind; unknown fields are refused with their place.

use std::path::PathBuf;

use downriver_event::problem::Problem;
use serde::{Deserialize, Serialize};
use serde_json::Value;

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
}

impl Spec {
    /// # Errors
    /// The field that is wrong, and how.
    pub fn parse(kind: &str, spec: &Value) -> Result<Self, Problem> {
        match kind {
            "Source" => Source::parse(spec).map(Self::Source),
            "Sink" | "Pipeline" => Err(Problem::new(
                "DR-2050",
                format!("a {kind} cannot be applied: sinks and pipelines are not built yet"),
                "apply the source alone; its log can be read with downriver tail",
            )),
            _ => {
                let mut problem = Problem::new(
                    "DR-2002",
                    format!("kind {kind:?} is not known"),
                    "use Source, Sink or Pipeline",
                );
                problem.field = Some("kind".into());
                Err(problem)
            }
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    pub postgres: Postgres,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Postgres {
    pub url: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password: Option<Secret>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
    pub tables: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub publication: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<Snapshot>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    pub ca: CaFile,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CaFile {
    pub file: PathBuf,
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

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Snapshot {
    Mode(SnapshotMode),
    Options(SnapshotOptions),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SnapshotMode {
    Initial,
    None,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotOptions {
    pub mode: SnapshotMode,
    #[serde(default = "SnapshotOptions::chunk_rows_default")]
    pub chunk_rows: u64,
    #[serde(default = "SnapshotOptions::max_workers_default")]
    pub max_workers: usize,
    /// 0: no limit.
    #[serde(default)]
    pub rows_per_second: u64,
}

impl SnapshotOptions {
    fn chunk_rows_default() -> u64 {
        100_000
    }

    fn max_workers_default() -> usize {
        2
    }
}

impl Source {
    fn parse(spec: &Value) -> Result<Self, Problem> {
        if spec.get("mysql").is_some() {
            let mut problem = Problem::new(
                "DR-2051",
                "MySQL and MariaDB sources are not built yet",
                "use a postgres source",
            );
            problem.field = Some("mysql".into());
            return Err(problem);
        }
        let source: Self = Self::deserialize(spec).map_err(|error| {
            let mut problem = Problem::new(
                "DR-2004",
                format!("the source is not valid: {error}"),
                "see docs/cli.md for the fields of a source",
            );
            problem.field = Some("postgres".into());
            problem
        })?;
        let at = |field: &str, mut problem: Problem| {
            problem.field = Some(field.to_owned());
            problem
        };
        let postgres = &source.postgres;
        if let Err(error) =
            downriver_source::postgres::config::PostgresConfig::from_url(&postgres.url)
        {
            let problem = Problem::new("DR-2005", error.0, "correct postgres.url");
            return Err(at("postgres.url", problem));
        }
        if postgres
            .url
            .split('@')
            .next()
            .is_some_and(|login| login.matches(':').count() > 1)
        {
            let problem = Problem::new(
                "DR-2006",
                "the url holds a password, which would be stored and shown",
                "take it out of the url and set postgres.password: { env: NAME } or { file: PATH }",
            );
            return Err(at("postgres.url", problem));
        }
        if postgres.tables.is_empty() {
            let problem = Problem::new(
                "DR-2007",
                "no tables are named",
                "give patterns such as [\"public.*\"]",
            );
            return Err(at("postgres.tables", problem));
        }
        if let Some(bad) = postgres
            .tables
            .iter()
            .position(|pattern| !pattern.contains('.'))
        {
            let pattern = &postgres.tables[bad];
            let problem = Problem::new(
                "DR-2007",
                format!("table pattern {pattern:?} names no schema"),
                format!("write it as public.{pattern}"),
            );
            return Err(at(&format!("postgres.tables[{bad}]"), problem));
        }
        let options = source.snapshot();
        if options.chunk_rows == 0 || options.max_workers == 0 {
            let problem = Problem::new(
                "DR-2008",
                "a snapshot needs chunk_rows and max_workers of at least 1",
                "leave them out for the defaults",
            );
            return Err(at("postgres.snapshot", problem));
        }
        Ok(source)
    }

    /// The snapshot's options, with what is not given filled in.
    #[must_use]
    pub fn snapshot(&self) -> SnapshotOptions {
        let of = |mode| SnapshotOptions {
            mode,
            chunk_rows: SnapshotOptions::chunk_rows_default(),
            max_workers: SnapshotOptions::max_workers_default(),
            rows_per_second: 0,
        };
        match &self.postgres.snapshot {
            None => of(SnapshotMode::Initial),
            Some(Snapshot::Mode(mode)) => of(*mode),
            Some(Snapshot::Options(options)) => options.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn source(text: &str) -> Result<Spec, Problem> {
        let documents = read_documents(text)?;
        Spec::parse(&documents[0].kind, &documents[0].spec)
    }

    #[test]
    fn a_source_is_read_with_its_defaults() {
        let text = "kind: Source\nname: shop\npostgres:\n  url: postgres://cdc@h/shop\n  password: { env: P }\n  tables: [\"public.*\"]\n  snapshot: none\n";
        let Spec::Source(source) = source(text).unwrap();
        assert_eq!(source.postgres.password, Some(Secret::Env("P".into())));
        assert_eq!(source.snapshot().mode, SnapshotMode::None);
        assert_eq!(source.snapshot().chunk_rows, 100_000);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_field() {
        let base = "kind: Source\nname: shop\npostgres:\n  url: postgres://cdc@h/shop\n  tables: [\"public.*\"]\n";
        let code = |text: &str| source(text).unwrap_err();
        assert!(
            code(&format!("{base}  colour: red\n"))
                .reason
                .contains("colour")
        );
        assert_eq!(
            code(&base.replace("postgres://cdc@h", "postgres://cdc:secret@h")).code,
            "DR-2006"
        );
        assert!(
            !code(&base.replace("postgres://cdc@h", "postgres://cdc:secret@h"))
                .reason
                .contains("secret")
        );
        let problem = code(&base.replace("public.*", "orders"));
        assert_eq!(
            (problem.code, problem.field.as_deref()),
            ("DR-2007", Some("postgres.tables[0]"))
        );
        assert_eq!(
            code(&base.replace("name: shop", "name: Shop")).code,
            "DR-2003"
        );
        assert_eq!(code("kind: Sink\nname: lake\n").code, "DR-2050");
        assert!(code("kind: [\n").reason.contains("line"));
    }
}
