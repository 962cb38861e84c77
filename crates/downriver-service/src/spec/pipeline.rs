//! A pipeline: which source feeds which sink, and how.

use std::time::Duration;

use downriver_event::change::ChangePolicies;
use downriver_event::pattern;
use downriver_event::problem::Problem;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{at, changes, fields};

const FRESHNESS_DEFAULT: Duration = Duration::from_secs(10);
const FRESHNESS_MIN: Duration = Duration::from_secs(1);
const NAMESPACE_BYTES_MAX: usize = 100;
const NODES_MAX: u32 = 32;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pipeline {
    pub source: String,
    pub sink: String,
    #[serde(default)]
    pub mode: Mode,
    /// As it was written: "10s".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    freshness: Option<String>,
    /// Patterns of the source's tables; empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tables: Vec<String>,
    /// The lake's namespace for all tables; `None`: `<source>_<schema>`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Over how many nodes its tables are shared out; `None`: one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    nodes: Option<u32>,
    /// As it was written: a policy, or one for each kind of change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    schema_changes: Option<Value>,
}

/// What a lake table shows of the source's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// The same rows.
    #[default]
    Mirror,
    SoftDelete,
    Changelog,
    History,
}

impl Pipeline {
    pub(super) fn parse(spec: &Value) -> Result<Self, Problem> {
        let pipeline: Self = fields(spec, "DR-2013", "pipeline")?;
        if pipeline.mode != Mode::Mirror {
            let mode = spec["mode"].as_str().unwrap_or_default();
            let problem = Problem::new(
                "DR-2052",
                format!("mode {mode} is not built yet"),
                "use mode: mirror",
            );
            return Err(at("mode", problem));
        }
        let fresh = pipeline.freshness.as_deref().map(parse_duration);
        if fresh.is_some_and(|fresh| fresh.is_none_or(|fresh| fresh < FRESHNESS_MIN)) {
            let problem = Problem::new(
                "DR-2014",
                format!(
                    "freshness {:?} is not a time of at least 1s",
                    pipeline.freshness.unwrap_or_default()
                ),
                "write a whole number with ms, s, m, h or d: 10s",
            );
            return Err(at("freshness", problem));
        }
        if let Some(bad) = pipeline.tables.iter().position(|p| !p.contains('.')) {
            let pattern = &pipeline.tables[bad];
            let problem = Problem::new(
                "DR-2018",
                format!("table pattern {pattern:?} names no schema"),
                format!("write it as public.{pattern}"),
            );
            return Err(at(&format!("tables[{bad}]"), problem));
        }
        if let Some(namespace) = &pipeline.namespace
            && !is_namespace(namespace)
        {
            let problem = Problem::new(
                "DR-2013",
                format!("{namespace:?} is not a namespace that every engine takes"),
                "use up to 100 letters, digits, - and _",
            );
            return Err(at("namespace", problem));
        }
        if let Some(nodes) = pipeline
            .nodes
            .filter(|nodes| !(1..=NODES_MAX).contains(nodes))
        {
            let problem = Problem::new(
                "DR-2013",
                format!("a pipeline's tables cannot be shared out over {nodes} nodes"),
                format!("write a number from 1 to {NODES_MAX}"),
            );
            return Err(at("nodes", problem));
        }
        changes::parse(pipeline.schema_changes.as_ref())?;
        Ok(pipeline)
    }

    /// How old the lake may be.
    #[must_use]
    pub fn freshness(&self) -> Duration {
        let given = self.freshness.as_deref().and_then(parse_duration);
        given.unwrap_or(FRESHNESS_DEFAULT)
    }

    /// What is done when a table of the source changes.
    #[must_use]
    pub fn schema_changes(&self) -> ChangePolicies {
        changes::parse(self.schema_changes.as_ref()).unwrap_or_default()
    }

    /// Into how many shares its tables are dealt, each of which runs on a node.
    #[must_use]
    pub fn shares(&self) -> u32 {
        self.nodes.unwrap_or(1)
    }

    #[must_use]
    pub fn delivers(&self, schema: &str, table: &str) -> bool {
        pattern::selects(&self.tables, schema, table)
    }

    /// The lake's namespace for tables of a schema.
    #[must_use]
    pub fn namespace_of(&self, schema: &str) -> String {
        match &self.namespace {
            Some(namespace) => namespace.clone(),
            None => format!("{}_{schema}", self.source),
        }
    }
}

fn is_namespace(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    !text.is_empty() && text.len() <= NAMESPACE_BYTES_MAX && text.chars().all(plain)
}

/// A whole number with its unit: ms, s, m, h or d.
#[must_use]
pub fn parse_duration(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    let seconds = match unit {
        "ms" => return Some(Duration::from_millis(number)),
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return None,
    };
    number.checked_mul(seconds).map(Duration::from_secs)
}

/// A whole number of bytes with its unit: B, KiB, MiB, GiB or TiB.
#[must_use]
pub fn parse_bytes(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    let bytes = match unit {
        "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        _ => return None,
    };
    number.checked_mul(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn pipeline(more: &Value) -> Result<Pipeline, Problem> {
        let mut spec = serde_json::json!({ "source": "shop", "sink": "lake" });
        for (name, value) in more.as_object().unwrap() {
            spec[name] = value.clone();
        }
        Pipeline::parse(&spec)
    }

    #[test]
    fn a_pipeline_has_defaults() {
        let plain = pipeline(&serde_json::json!({})).unwrap();
        assert_eq!(plain.mode, Mode::Mirror);
        assert_eq!(plain.freshness(), Duration::from_secs(10));
        assert!(plain.delivers("public", "orders"));
        assert_eq!(plain.namespace_of("public"), "shop_public");
    }

    #[test]
    fn a_duration_is_a_number_with_a_unit() {
        for (text, expected) in [
            ("1500ms", Some(1_500)),
            ("10s", Some(10_000)),
            ("2m", Some(120_000)),
            ("10", None),
            ("1.5s", None),
            ("s", None),
            ("", None),
            ("99999999999999999999s", None),
            ("18446744073709551615m", None),
        ] {
            let expected: Option<u64> = expected;
            assert_eq!(
                parse_duration(text),
                expected.map(Duration::from_millis),
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_its_field() {
        for (more, code, field) in [
            (serde_json::json!({ "colour": "red" }), "DR-2013", "colour"),
            (serde_json::json!({ "mode": "upsert" }), "DR-2013", "mode"),
            (
                serde_json::json!({ "mode": "soft-delete" }),
                "DR-2052",
                "mode",
            ),
            (
                serde_json::json!({ "mode": "changelog" }),
                "DR-2052",
                "mode",
            ),
            (serde_json::json!({ "mode": "history" }), "DR-2052", "mode"),
            (
                serde_json::json!({ "freshness": "999ms" }),
                "DR-2014",
                "freshness",
            ),
            (
                serde_json::json!({ "freshness": "soon" }),
                "DR-2014",
                "freshness",
            ),
            (
                serde_json::json!({ "tables": ["a.*", "orders"] }),
                "DR-2018",
                "tables[1]",
            ),
            (
                serde_json::json!({ "namespace": "a.b" }),
                "DR-2013",
                "namespace",
            ),
        ] {
            let problem = pipeline(&more).unwrap_err();
            assert_eq!(
                (problem.code, problem.field.as_deref()),
                (code, Some(field)),
                "{more}"
            );
        }
    }
}
