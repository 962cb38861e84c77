//! A relation's tuples into the columns of a row: which are kept, masked or left out.

use std::sync::Arc;

use downriver_event::block::{ColumnBuilder, OldImage};
use downriver_event::{Column, Cover, Lsn, Presence, ReplicaIdentity, TableSchema};

use super::decoder::DecodeError;
use super::message::{Cell, Tuple};
use super::{ValueError, binary, text};
use crate::mask::{Mask, Treatment};

/// What becomes of a relation's rows.
#[derive(Debug, Clone)]
pub struct Shape {
    pub(super) schema: Arc<TableSchema>,
    /// One for each of the relation's columns, in order; empty: they are the schema's, as they are.
    treatments: Vec<Treatment>,
}

impl Shape {
    /// `treatments` has one for each of the relation's columns, in their order; those that are not withheld are the
    /// schema's columns.
    #[must_use]
    pub fn new(schema: Arc<TableSchema>, mut treatments: Vec<Treatment>) -> Self {
        if treatments.iter().all(|t| matches!(t, Treatment::Kept)) {
            treatments = Vec::new();
        }
        Self { schema, treatments }
    }

    fn columns(&self) -> usize {
        match self.treatments.len() {
            0 => self.schema.columns.len(),
            columns => columns,
        }
    }
}

impl From<Arc<TableSchema>> for Shape {
    fn from(schema: Arc<TableSchema>) -> Self {
        Self::new(schema, Vec::new())
    }
}

pub(super) fn check_columns(shape: &Shape, tuple: &Tuple<'_>, at: Lsn) -> Result<(), DecodeError> {
    let (expected, found) = (shape.columns(), tuple.columns);
    if expected == found {
        return Ok(());
    }
    Err(DecodeError::ColumnCount {
        table: shape.schema.qualified_name(),
        expected,
        found,
        at,
    })
}

/// Whether the value of some column that is captured was not sent.
#[inline]
pub(super) fn push_cells<'a>(
    shape: &Shape,
    cells: impl Iterator<Item = Cell<'a>>,
    columns: &mut [ColumnBuilder],
    at: Lsn,
) -> Result<bool, DecodeError> {
    let schema = &*shape.schema;
    let mut leaves_out = false;
    if shape.treatments.is_empty() {
        for ((cell, column), out) in cells.zip(&schema.columns).zip(columns) {
            leaves_out |= matches!(cell, Cell::Unchanged);
            push_cell(schema, column, cell, out, at)?;
        }
        return Ok(leaves_out);
    }
    let mut columns = schema.columns.iter().zip(columns);
    for (cell, treatment) in cells.zip(&shape.treatments) {
        if matches!(treatment, Treatment::Withheld) {
            continue;
        }
        let (column, out) = columns.next().expect("every other column is the schema's");
        leaves_out |= matches!(cell, Cell::Unchanged);
        match treatment {
            Treatment::Masked(mask) => push_masked(schema, column, mask, cell, out, at)?,
            _ => push_cell(schema, column, cell, out, at)?,
        }
    }
    Ok(leaves_out)
}

fn push_masked(
    schema: &TableSchema,
    column: &Column,
    mask: &Mask,
    cell: Cell<'_>,
    out: &mut ColumnBuilder,
    at: Lsn,
) -> Result<(), DecodeError> {
    let value = match cell {
        _ if mask.is_fixed() => None,
        Cell::Text(text) => Some(text),
        Cell::Null => None,
        // What was made of the value did not change either.
        Cell::Unchanged => {
            out.push_presence(Presence::Unchanged);
            return Ok(());
        }
        Cell::Binary(_) => {
            return Err(value_error(schema, column, ValueError::Invalid("text"), at));
        }
    };
    let pushed = mask.push(column, value, out);
    pushed.map_err(|error| value_error(schema, column, error.into(), at))
}

fn value_error(schema: &TableSchema, column: &Column, error: ValueError, at: Lsn) -> DecodeError {
    DecodeError::Value {
        id: schema.id,
        table: schema.qualified_name(),
        column: column.name.clone(),
        error,
        at,
    }
}

#[inline]
fn push_cell(
    schema: &TableSchema,
    column: &Column,
    cell: Cell<'_>,
    out: &mut ColumnBuilder,
    at: Lsn,
) -> Result<(), DecodeError> {
    let pushed = match cell {
        Cell::Text(bytes) => text::push(&column.ty, bytes, out),
        Cell::Binary(bytes) => binary::push(&column.ty, bytes, out),
        Cell::Null => {
            out.push_presence(Presence::Null);
            Ok(())
        }
        Cell::Unchanged => {
            out.push_presence(Presence::Unchanged);
            Ok(())
        }
    };
    pushed.map_err(|error| value_error(schema, column, error, at))
}

/// An old image: of a key only the identity's columns are known, the others were not logged.
pub(super) fn push_old(
    shape: &Shape,
    kind: OldImage,
    old: Tuple<'_>,
    columns: &mut [ColumnBuilder],
    at: Lsn,
) -> Result<(), DecodeError> {
    if kind == OldImage::Full {
        return push_cells(shape, old.cells(), columns, at).map(drop);
    }
    let schema = &*shape.schema;
    debug_assert_ne!(schema.identity, ReplicaIdentity::Nothing);
    let withheld = |at: usize| matches!(shape.treatments.get(at), Some(Treatment::Withheld));
    let cells = old.cells().enumerate();
    let cells = cells.filter_map(|(at, cell)| (!withheld(at)).then_some(cell));
    for ((cell, column), out) in cells.zip(&schema.columns).zip(columns) {
        // A key's columns cannot be null, so a null is a column that the identity does not have.
        // No column of a key is masked.
        if cell == Cell::Null || matches!(column.cover, Cover::Masked(_)) {
            out.push_presence(Presence::Absent);
            continue;
        }
        push_cell(schema, column, cell, out, at)?;
    }
    Ok(())
}
