//! How the rows that a table map announces become the rows of a schema.

use std::borrow::Cow;
use std::sync::Arc;

use downriver_event::block::ColumnBuilder;
use downriver_event::{Column, LogicalType, Presence, TableSchema};

use super::charset::Charset;
use super::cursor::Cursor;
use super::declared::Declared;
use super::native::{Native, open_bytes};
use super::rows::{Bits, Present};
use super::table_map::{MapColumn, TableMap, Wire, code};
use super::value::{Plan, ValueError};
use crate::mask::{Mask, Treatment};

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
    /// One for each of the table map's columns, in order: the source's own.
    pub(super) plans: Vec<Plan>,
    /// The same; empty: they are the schema's, as they are.
    treatments: Vec<Treatment>,
}

/// A value could not be read.
pub(super) struct Unreadable {
    /// Its column's index among the source's own.
    pub(super) column: usize,
    pub(super) error: ValueError,
}

/// Where the values of a captured column go.
pub(super) struct Out<'a> {
    column: &'a Column,
    mask: Option<&'a Mask>,
    cells: &'a mut ColumnBuilder,
}

impl Shape {
    /// `plans` and `treatments` have one for each of the table map's columns; those that are not withheld are the schema's.
    /// No treatments: all are kept.
    ///
    /// # Panics
    /// If they have not.
    #[must_use]
    pub fn new(schema: Arc<TableSchema>, plans: Vec<Plan>, treatments: Vec<Treatment>) -> Self {
        let mut treatments = treatments;
        if treatments.iter().all(|it| matches!(it, Treatment::Kept)) {
            treatments.clear();
        }
        let is_withheld = |it: &&Treatment| matches!(it, Treatment::Withheld);
        let withheld = treatments.iter().filter(is_withheld).count();
        assert_eq!(
            schema.columns.len() + withheld,
            plans.len(),
            "a plan for each column"
        );
        assert!(
            treatments.is_empty() || treatments.len() == plans.len(),
            "a treatment for each column"
        );
        Self {
            schema,
            plans,
            treatments,
        }
    }

    pub(super) fn columns(&self) -> usize {
        self.plans.len()
    }

    /// The same of another version of the schema, with the same columns.
    pub(super) fn of(&self, schema: Arc<TableSchema>) -> Self {
        Self::new(schema, self.plans.clone(), self.treatments.clone())
    }

    /// Whether it is not known what rows have of a column that they are logged without.
    pub(super) fn lacks_default(&self, has: Bits<'_>) -> bool {
        let captured = (0..self.columns()).filter(|at| !self.is_withheld(*at));
        let mut columns = captured.zip(&self.schema.columns);
        columns.any(|(at, column)| !has.has(at) && column.default.is_none())
    }

    pub(super) fn is_withheld(&self, column: usize) -> bool {
        matches!(self.treatments.get(column), Some(Treatment::Withheld))
    }

    /// Whether every column that is captured is one of those that are there.
    pub(super) fn are_all(&self, is_there: impl Fn(usize) -> bool) -> bool {
        (0..self.columns()).all(|at| is_there(at) || self.is_withheld(at))
    }

    /// Whether a row has every column that is captured.
    pub(super) fn is_whole(&self, present: Present<'_>) -> bool {
        present.count == self.columns() || self.are_all(|at| present.has.has(at))
    }

    /// The name of one of the source's columns, for messages.
    pub(super) fn name(&self, column: usize) -> String {
        let column = self.schema.source_columns().nth(column);
        column.map_or_else(String::new, |(column, _)| column.name.clone())
    }

    /// Each of the source's columns with its plan, and where its values go; `None`: nowhere.
    pub(super) fn outs<'a>(
        &'a self,
        cells: &'a mut [ColumnBuilder],
    ) -> impl Iterator<Item = (usize, &'a Plan, Option<Out<'a>>)> {
        let mut captured = self.schema.columns.iter().zip(cells);
        let plans = self.plans.iter().enumerate();
        plans.map(move |(at, plan)| {
            let mask = match self.treatments.get(at) {
                Some(Treatment::Withheld) => return (at, plan, None),
                Some(Treatment::Masked(mask)) => Some(&**mask),
                Some(Treatment::Kept) | None => None,
            };
            let out = captured.next().map(|(column, cells)| Out {
                column,
                mask,
                cells,
            });
            (at, plan, out)
        })
    }
}

impl Out<'_> {
    /// Pushes that the row does not have the column.
    pub(super) fn lacks(self, presence: Presence) {
        self.cells.push_presence(presence);
    }

    /// Pushes what stands for a column that the row does not have.
    pub(super) fn fill(
        self,
        fill: impl Fn(&Column, &mut ColumnBuilder) -> Result<(), ValueError>,
    ) -> Result<(), ValueError> {
        fill(self.column, self.cells)
    }

    pub(super) fn null(self) -> Result<(), ValueError> {
        match self.mask {
            Some(mask) => Ok(mask.push(self.column, None, self.cells)?),
            None => {
                self.cells.push_presence(Presence::Null);
                Ok(())
            }
        }
    }

    /// Reads a value from the front of a row.
    #[inline]
    pub(super) fn value(
        self,
        plan: &Plan,
        row: &mut Cursor<'_>,
        scratch: &mut Vec<u8>,
    ) -> Result<(), ValueError> {
        match self.mask {
            None => plan.push(row, self.cells, scratch),
            Some(mask) if mask.is_fixed() => {
                plan.skip(row)?;
                self.null()
            }
            Some(mask) => plan.push_masked(mask, self.column, self.cells, |cell| {
                plan.push(row, cell, scratch)
            }),
        }
    }

    /// Reads the changes of a document, which was before what is at the front of another row.
    pub(super) fn changed(
        self,
        plan: &Plan,
        before: &mut Cursor<'_>,
        row: &mut Cursor<'_>,
        scratch: &mut Vec<u8>,
    ) -> Result<(), ValueError> {
        match self.mask {
            None => plan.push_changed(before, row, self.cells, scratch),
            Some(mask) => plan.push_masked(mask, self.column, self.cells, |cell| {
                plan.push_changed(before, row, cell, scratch)
            }),
        }
    }
}
