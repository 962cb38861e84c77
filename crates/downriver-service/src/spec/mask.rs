//! What the values of some columns are made into before they reach the log.

use downriver_event::problem::Problem;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Secret, at};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MaskRule {
    /// Patterns over "schema.table.column".
    pub columns: Vec<String>,
    #[serde(
        deserialize_with = "MaskWith::read",
        serialize_with = "MaskWith::write"
    )]
    pub with: MaskWith,
}

#[derive(Clone, Debug, PartialEq)]
pub enum MaskWith {
    /// Written as `null`, which YAML does not take for a text.
    Null,
    Constant(String),
    Hash(HashOptions),
    Partial(PartialOptions),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HashOptions {
    pub key: Secret,
}

/// Characters that are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PartialOptions {
    #[serde(default)]
    pub first: usize,
    #[serde(default)]
    pub last: usize,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Written {
    Null,
    Constant(String),
    Hash(HashOptions),
    Partial(PartialOptions),
}

impl MaskWith {
    fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(match Option::<Written>::deserialize(deserializer)? {
            None | Some(Written::Null) => Self::Null,
            Some(Written::Constant(constant)) => Self::Constant(constant),
            Some(Written::Hash(options)) => Self::Hash(options),
            Some(Written::Partial(options)) => Self::Partial(options),
        })
    }

    fn write<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let written = match self {
            Self::Null => None,
            Self::Constant(constant) => Some(Written::Constant(constant.clone())),
            Self::Hash(options) => Some(Written::Hash(options.clone())),
            Self::Partial(options) => Some(Written::Partial(*options)),
        };
        written.serialize(serializer)
    }
}

/// The patterns of the rules for columns, below a source's own field (`postgres`), name schema, table and column.
/// `namespace`: what such a one may be called.
pub(super) fn check_columns(
    kind: &str,
    namespace: &str,
    excluded: &[String],
    masks: &[MaskRule],
) -> Result<(), Problem> {
    let excluded = excluded.iter().enumerate();
    let excluded = excluded.map(|(at, p)| (p, format!("{kind}.exclude_columns[{at}]")));
    let rules = masks.iter().enumerate();
    let masked = rules.flat_map(|(rule, mask)| {
        let patterns = mask.columns.iter().enumerate();
        patterns.map(move |(at, p)| (p, format!("{kind}.mask[{rule}].columns[{at}]")))
    });
    for (pattern, field) in excluded.chain(masked) {
        if pattern.matches('.').count() < 2 {
            let column = pattern.rsplit('.').next().unwrap_or_default();
            let problem = Problem::new(
                "DR-2028",
                format!("pattern {pattern:?} does not name schema, table and column"),
                format!("write it as \"{namespace}.users.{column}\" or \"*.*.{column}\""),
            );
            return Err(at(&field, problem));
        }
    }
    Ok(())
}
