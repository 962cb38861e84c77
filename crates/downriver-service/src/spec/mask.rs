//! What the values of some columns are made into before they reach the log.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Secret;

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
