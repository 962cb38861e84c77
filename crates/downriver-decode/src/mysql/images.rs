//! The rows of an event into a block: what a row was, and what it is.
//!
//! A new row may lack what its old row has: columns that did not change (`binlog_row_image` of MariaDB's `FULL_NODUP`, of
//! others in part), and documents that were changed in part. What is missing of it is taken from the old row, and what is
//! in neither is as it was. What an insert lacks is the column's default.

use downriver_event::block::{BlockBuilder, ColumnBuilder, OldImage, RowColumns, RowOp};
use downriver_event::{Column, Presence, view};

use super::cursor::Cursor;
use super::rows::{Bits, Change, Present, Rows, changed_in_part, nulls};
use super::shape::{Out, Shape, Unreadable};
use super::table_map::Wire;
use super::value::{Plan, ValueError};

/// What an old row has of a column.
#[derive(Clone, Copy)]
enum Before<'a> {
    Absent,
    Null,
    /// The value is at the front.
    At(Cursor<'a>),
}

/// A row that ends too early, or tells nothing, by no column's fault.
fn row_is(error: ValueError) -> Unreadable {
    Unreadable { column: 0, error }
}

pub(super) fn push(
    shape: &Shape,
    rows: &Rows<'_>,
    out: &mut BlockBuilder,
    scratch: &mut Vec<u8>,
) -> Result<(), Unreadable> {
    // An old row that is not logged whole has the key at least.
    let old_image = match (rows.change, shape.is_whole(rows.first)) {
        (Change::Insert, _) => OldImage::None,
        (_, true) => OldImage::Full,
        (_, false) => OldImage::Key,
    };
    let op = match rows.change {
        Change::Insert => RowOp::Insert,
        Change::Update => RowOp::Update,
        Change::Delete => RowOp::Delete,
    };
    let is_whole = rows.second.count == rows.columns && !rows.may_change_in_part;
    let mut before = Vec::new();
    let mut cursor = Cursor::new(rows.values);
    while !cursor.is_empty() {
        let left = cursor.rest().len();
        let RowColumns { new, old } = out.row(&shape.schema, op, old_image);
        match rows.change {
            Change::Insert => {
                image(
                    shape,
                    &mut cursor,
                    rows.first,
                    new,
                    scratch,
                    default,
                    |_| {},
                )?;
            }
            Change::Delete => {
                image(shape, &mut cursor, rows.first, old, scratch, absent, |_| {})?;
            }
            Change::Update if is_whole => {
                image(shape, &mut cursor, rows.first, old, scratch, absent, |_| {})?;
                image(
                    shape,
                    &mut cursor,
                    rows.second,
                    new,
                    scratch,
                    absent,
                    |_| {},
                )?;
            }
            Change::Update => {
                before.clear();
                let note = |value| before.push(value);
                image(shape, &mut cursor, rows.first, old, scratch, absent, note)?;
                over(shape, &mut cursor, rows, &before, new, scratch)?;
            }
        }
        // Nobody could tell how many such rows there are.
        if cursor.rest().len() == left {
            return Err(row_is(ValueError::Invalid("row: it has no columns")));
        }
    }
    Ok(())
}

/// Nobody knows what a row has of the column.
fn absent(_column: &Column, out: &mut ColumnBuilder) -> Result<(), ValueError> {
    out.push_presence(Presence::Absent);
    Ok(())
}

fn default(column: &Column, out: &mut ColumnBuilder) -> Result<(), ValueError> {
    let default = column.default.as_ref().ok_or(ValueError::InPart)?;
    let pushed = view::push_cell(out, &column.ty, &default.0);
    pushed.map_err(|_| ValueError::Invalid("default of its column"))
}

/// Reads one image of a row, fills in what it lacks, and tells what it has of each column.
#[inline]
fn image<'a>(
    shape: &Shape,
    row: &mut Cursor<'a>,
    present: Present<'_>,
    out: &mut [ColumnBuilder],
    scratch: &mut Vec<u8>,
    fill: impl Fn(&Column, &mut ColumnBuilder) -> Result<(), ValueError>,
    mut note: impl FnMut(Before<'a>),
) -> Result<(), Unreadable> {
    let nulls = nulls(row, present.count).ok_or_else(|| row_is(ValueError::Cut))?;
    let mut at = 0;
    for (column, plan, out) in shape.outs(out) {
        if !present.has.has(column) {
            let filled = out.map_or(Ok(()), |out| out.fill(&fill));
            filled.map_err(|error| Unreadable { column, error })?;
            note(Before::Absent);
            continue;
        }
        let is_null = nulls.has(at);
        at += 1;
        let pushed = match is_null {
            true => {
                note(Before::Null);
                null(out)
            }
            false => {
                note(Before::At(*row));
                value(plan, out, row, scratch)
            }
        };
        pushed.map_err(|error| Unreadable { column, error })?;
    }
    Ok(())
}

/// Reads a new row over its old one.
fn over<'a>(
    shape: &Shape,
    row: &mut Cursor<'a>,
    rows: &Rows<'_>,
    before: &[Before<'a>],
    out: &mut [ColumnBuilder],
    scratch: &mut Vec<u8>,
) -> Result<(), Unreadable> {
    let cut = || row_is(ValueError::Cut);
    let mut in_part: Option<Bits<'a>> = None;
    if rows.may_change_in_part {
        let documents = shape.plans.iter().filter(|plan| plan.is_document());
        in_part = changed_in_part(row, documents.count()).ok_or_else(cut)?;
    }
    let nulls = nulls(row, rows.second.count).ok_or_else(cut)?;
    let (mut at, mut document) = (0, 0);
    for ((column, plan, out), before) in shape.outs(out).zip(before) {
        let mut is_in_part = false;
        if plan.is_document() {
            is_in_part = in_part.is_some_and(|bits| bits.has(document));
            document += 1;
        }
        if !rows.second.has.has(column) {
            let pushed = match *before {
                Before::Absent => {
                    lacks(out, Presence::Unchanged);
                    Ok(())
                }
                Before::Null => null(out),
                Before::At(mut before) => value(plan, out, &mut before, scratch),
            };
            pushed.map_err(|error| Unreadable { column, error })?;
            continue;
        }
        let is_null = nulls.has(at);
        at += 1;
        let pushed = match (is_null, is_in_part, *before) {
            (true, ..) => null(out),
            (false, true, _) if out.is_none() => skip_changes(row),
            (false, false, _) => value(plan, out, row, scratch),
            (false, true, Before::At(mut before)) => {
                out.map_or(Ok(()), |out| out.changed(plan, &mut before, row, scratch))
            }
            (false, true, Before::Null) => Err(ValueError::Invalid("change of a JSON document")),
            (false, true, Before::Absent) => Err(ValueError::InPart),
        };
        pushed.map_err(|error| Unreadable { column, error })?;
    }
    Ok(())
}

// A column that is withheld has nowhere to go.

fn lacks(out: Option<Out<'_>>, presence: Presence) {
    if let Some(out) = out {
        out.lacks(presence);
    }
}

fn null(out: Option<Out<'_>>) -> Result<(), ValueError> {
    out.map_or(Ok(()), Out::null)
}

#[inline]
fn value(
    plan: &Plan,
    out: Option<Out<'_>>,
    row: &mut Cursor<'_>,
    scratch: &mut Vec<u8>,
) -> Result<(), ValueError> {
    match out {
        Some(out) => out.value(plan, row, scratch),
        None => plan.skip(row),
    }
}

/// They lie behind their length.
fn skip_changes(row: &mut Cursor<'_>) -> Result<(), ValueError> {
    Wire::Bytes(4).take(row).map(drop).ok_or(ValueError::Cut)
}
