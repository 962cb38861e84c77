//! How the rows that a table map announces become the rows of a schema.

use std::borrow::Cow;
use std::sync::Arc;

use downriver_event::{LogicalType, TableSchema};

use super::charset::Charset;
use super::declared::Declared;
use super::native::{Native, open_bytes};
use super::rows::Bits;
use super::table_map::{MapColumn, TableMap, Wire, code};
use super::value::{Plan, ValueError};

/// The collation of bytes that are no text.
pub(super) const BINARY: u64 = 63;

/// Why the rows that a table map announces cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unshaped {
    #[error("column {0:?} has the unknown type {1}")]
    Type(String, u8),
    #[error("column {0:?} has text in the character set {1:?}, which is not understood")]
    Charset(String, String),
    #[error("its columns' names are not in the binlog")]
    Nameless,
}

/// What is read of a column, and as what.
#[derive(Clone, Debug)]
pub struct Described {
    pub name: String,
    pub ty: LogicalType,
    pub nullable: bool,
    /// The type in the server's words, as far as values depend on it: the same from a table map and from the catalog.
    pub source_type: String,
    pub plan: Plan,
}

impl Described {
    /// A column of a type that is understood.
    #[must_use]
    pub fn new(name: String, nullable: bool, code: u8, wire: Wire, declared: Declared) -> Self {
        let source_type = declared.source_type(code, wire);
        let (plan, ty) = Plan::new(code, wire, declared);
        Self {
            name,
            ty,
            nullable,
            source_type,
            plan,
        }
    }

    /// The same column of a table map that leaves its type open (see `native`), as one of a type that is known from
    /// elsewhere. `None`: values of that type have another form.
    #[must_use]
    pub fn known_as(self, source_type: &str) -> Option<Self> {
        let bytes = open_bytes(&self.source_type)?;
        if open_bytes(source_type) != Some(bytes) {
            return None;
        }
        let Some(native) = Native::named(source_type) else {
            return Some(self);
        };
        let declared = Declared {
            native: Some(native),
            ..Declared::default()
        };
        let (name, nullable) = (self.name, self.nullable);
        Some(Self::new(
            name,
            nullable,
            code::STRING,
            Wire::Char(bytes),
            declared,
        ))
    }
}

/// The columns of a table map that tells everything. `charset_of` names a collation's character set.
///
/// # Errors
/// It does not tell everything, or of a type or a character set that is not understood.
pub fn describe(
    map: &TableMap,
    charset_of: impl Fn(u64) -> Option<String>,
) -> Result<Vec<Described>, Unshaped> {
    let describe = |column: &MapColumn| {
        let name = column.name.clone().ok_or(Unshaped::Nameless)?;
        let wire = column
            .wire
            .ok_or_else(|| Unshaped::Type(name.clone(), column.code))?;
        let charset = match column.collation {
            None | Some(BINARY) => None,
            Some(collation) => {
                let charset = charset_of(collation).unwrap_or_else(|| collation.to_string());
                let found = Charset::named(&charset);
                Some(found.ok_or_else(|| Unshaped::Charset(name.clone(), charset))?)
            }
        };
        let labels = column.labels.iter().flatten();
        // Labels of a binary collation are shown as they are.
        let of_labels = charset.unwrap_or(Charset::UTF8);
        let labels = labels.map(|label| of_labels.decode(label).map(Cow::into_owned));
        let labels: Option<Vec<_>> = labels.collect();
        let declared = Declared {
            unsigned: column.unsigned.unwrap_or_default(),
            charset,
            labels: labels
                .ok_or_else(|| Unshaped::Charset(name.clone(), of_labels.name().into()))?,
            native: None,
        };
        let (nullable, code) = (column.nullable, column.code);
        Ok(Described::new(name, nullable, code, wire, declared))
    };
    map.columns.iter().map(describe).collect()
}

/// One for each table map of a captured table.
#[derive(Clone, Debug)]
pub struct Shape {
    pub(super) schema: Arc<TableSchema>,
    /// One for each of the schema's columns, which are the table map's, in order.
    pub(super) plans: Vec<Plan>,
}

/// A value could not be read.
pub(super) struct Unreadable {
    /// Its column's index.
    pub(super) column: usize,
    pub(super) error: ValueError,
}

impl Shape {
    /// # Panics
    /// If there is not one plan for each column.
    #[must_use]
    pub fn new(schema: Arc<TableSchema>, plans: Vec<Plan>) -> Self {
        assert_eq!(schema.columns.len(), plans.len(), "a plan for each column");
        Self { schema, plans }
    }

    pub(super) fn columns(&self) -> usize {
        self.plans.len()
    }

    /// The same of another version of the schema, with the same columns.
    pub(super) fn of(&self, schema: Arc<TableSchema>) -> Self {
        Self::new(schema, self.plans.clone())
    }

    /// Whether it is not known what rows have of a column that they are logged without.
    pub(super) fn lacks_default(&self, has: Bits<'_>) -> bool {
        let columns = self.schema.columns.iter().enumerate();
        let mut lacking = columns.filter(|(at, _)| !has.has(*at));
        lacking.any(|(_, column)| column.default.is_none())
    }
}
